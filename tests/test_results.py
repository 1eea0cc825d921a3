"""Runs beside the paper's figures: what counts, what does not, and how it is shown."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from setr.cli import main
from setr.config import Config
from setr.errors import FAILED, OK, USAGE
from setr.labels import known_labels
from setr.pages.results_tables import as_html, as_markdown
from setr.paper_results import COLUMNS, collect, other_lines, paper_lines
from setr.paper_tables import IMAGES, rows
from setr.recipes import recipe

NAME = "cityscapes_setr_pup_large_80k"


CITYSCAPES = {
    "name": "cityscapes",
    "classes": list(known_labels("cityscapes").classes),
    "train_images": 2975,
    "val_images": 500,
    "digest": "0f1e2d3c4b5a",
}


def finished(
    folder: Path,
    config: Config,
    miou: float,
    seed: int = 0,
    data: dict[str, object] | None = CITYSCAPES,
) -> None:
    folder.mkdir(parents=True)
    config = config.replace({"train.seed": seed})
    (folder / "config.yaml").write_text(config.to_yaml())
    figures = {"miou": miou, "pixel_accuracy": None, "iou": {}}
    values = {
        "single_scale": figures,
        "recipe": config.recipe,
        "provenance": {"command": "setr train x", "commit": "abc", "hardware": "H", "seed": seed},
    }
    if data:
        values["data"] = data
    (folder / "metrics.json").write_text(json.dumps(values))


@pytest.fixture
def runs(tmp_path):
    finished(tmp_path / "a", recipe(NAME), 0.79)
    finished(tmp_path / "b", recipe(NAME), 0.80, seed=1)
    moved = dataclasses.replace(recipe(NAME).data, root="/elsewhere", workers=9)
    finished(tmp_path / "c", dataclasses.replace(recipe(NAME), data=moved), 0.81, seed=2)
    shorter = dataclasses.replace(recipe(NAME).train, steps=5)
    finished(tmp_path / "d", dataclasses.replace(recipe(NAME), train=shorter), 0.10)
    finished(tmp_path / "e", recipe("demo"), 0.5, data={**CITYSCAPES, "name": "scenes"})
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "metrics.json").write_text("{")
    return tmp_path


def test_runs_of_the_recipe_are_averaged_over_seeds(runs):
    lines = paper_lines(collect(runs), 6)[6]
    (line,) = [line for line in lines if line.ours]
    assert (line.row, line.setting, line.paper) == ("SETR-PUP", "80k, SS", "79.34")
    assert line.ours == "80.00 ± 1.00 (n=3)"
    assert line.difference == "+0.66"
    assert (line.commit, line.hardware, line.seeds) == ("abc", "H", "0; 1; 2")


def test_the_same_row_of_another_table_is_filled_too(runs):
    assert [line.paper for line in paper_lines(collect(runs), 2)[2] if line.ours] == ["79.34"]


def test_changed_settings_never_stand_in_a_table(runs):
    others = {line.setting: line for line in other_lines(collect(runs))}
    assert others["single scale, train.steps=5"].ours == "10.00"
    assert others["single scale"].recipe == "demo"
    assert len(others) == 2


def test_a_run_without_settings_does_not_count(runs):
    (runs / "a" / "config.yaml").unlink()
    assert "settings unknown" in {
        line.setting.split(", ")[-1] for line in other_lines(collect(runs))
    }


def test_runs_on_other_data_never_stand_beside_the_papers_figure(runs):
    own = {**CITYSCAPES, "name": "own", "digest": "1", "classes": ["a", "b"]}
    part = {**CITYSCAPES, "digest": "2", "val_images": 50}
    finished(runs / "own", recipe(NAME), 0.99, data=own)
    finished(runs / "part", recipe(NAME), 0.98, data=part)
    finished(runs / "old", recipe(NAME), 0.97, data=None)
    found = collect(runs)
    (line,) = [line for line in paper_lines(found, 6)[6] if line.ours]
    assert line.ours == "80.00 ± 1.00 (n=3)"
    others = {line.ours: (line.setting, line.data) for line in other_lines(found)}
    assert others["99.00"] == ("single scale, not the classes of cityscapes", "own")
    assert others["98.00"] == ("single scale, 50 test images, not 500", "cityscapes (2)")
    root = recipe(NAME).data.root
    assert others["97.00"] == ("single scale, data not recorded", root)


def test_runs_on_different_data_are_never_averaged(runs):
    mine = {**CITYSCAPES, "name": "mine", "digest": "3"}
    finished(runs / "g", recipe("demo"), 0.6, data=mine)
    finished(runs / "h", recipe("demo"), 0.8, seed=1, data={**mine, "name": "moved"})
    finished(runs / "i", recipe(NAME), 0.7, data={**CITYSCAPES, "digest": "4"})
    found = collect(runs)
    demo = {line.data: line.ours for line in other_lines(found) if line.recipe == "demo"}
    assert demo == {"scenes": "50.00", "mine; moved": "70.00 ± 14.14 (n=2)"}
    rows = {line.data: line.ours for line in paper_lines(found, 6)[6] if line.ours}
    digest = CITYSCAPES["digest"]
    assert rows == {f"cityscapes ({digest})": "80.00 ± 1.00 (n=3)", "cityscapes (4)": "70.00"}


def test_markdown_and_html(runs):
    titles = {"Table 6": paper_lines(collect(runs), 6)[6]}
    assert "| SETR-PUP | 80k, SS | 79.34 | 80.00 ± 1.00 (n=3) | +0.66 |" in as_markdown(titles)
    page = as_html(titles)
    bare = {"x": [line._replace(hardware="") for line in titles["Table 6"]]}
    heads = [re.findall(r"<th[^>]*>(\w+)</th>", text) for text in (page, as_html(bare))]
    assert heads[0] == list(COLUMNS)
    assert heads[1] == [name for name in COLUMNS if name != "hardware"]  # as it is empty
    assert ">80.00 ± 1.00 (n=3)</td>" in page
    assert "prefers-color-scheme:dark" in page


def test_the_command(runs, capsys):
    assert main(["results", "--runs", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "Table 6" in shown
    assert "Other recipes" in shown
    assert main(["results", "--runs", str(runs), "--json", "--table", "6"]) == 0
    titles = json.loads(capsys.readouterr().out)
    assert list(titles) == ["Table 6"]
    assert titles["Table 6"][0]["data"] == "cityscapes"
    page = runs / "r.html"
    assert main(["results", "--runs", str(runs), "--format", "html", "--output", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert main(["results", "--runs", str(runs / "none")]) == USAGE
    assert "no such folder" in capsys.readouterr().err


def test_without_runs_json_is_empty_and_no_file_is_claimed(tmp_path, capsys):
    assert main(["results", "--runs", str(tmp_path), "--json"]) == OK
    said = capsys.readouterr()
    assert json.loads(said.out) == {}
    assert "no finished runs" in said.err
    assert (
        main(["results", "--runs", str(tmp_path), "--output", str(tmp_path / "x.html")]) == FAILED
    )
    assert "x.html: not written: no finished runs" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_an_exact_repeat_of_a_run_is_no_second_run(tmp_path):
    for name, miou, seed in (("a", 0.79, 0), ("again", 0.79, 0), ("b", 0.81, 1)):
        finished(tmp_path / name, recipe(NAME), miou, seed)
        finished(tmp_path / f"demo_{name}", recipe("demo"), miou, seed)
    found = collect(tmp_path)
    (line,) = [line for line in paper_lines(found, 6)[6] if line.ours]
    assert line.ours == "80.00 ± 1.41 (n=2)"
    assert [line.ours for line in other_lines(found)] == ["80.00 ± 1.41 (n=2)"]


def test_pixel_accuracies_have_lines_of_their_own_figures(tmp_path):
    row = next(row for row in rows() if row.pixel_accuracy is not None and row.recipe)
    data = known_labels(row.recipe.split("_setr")[0].split("_fcn")[0])
    train, val = IMAGES[row.recipe.split("_setr")[0].split("_fcn")[0]]
    record = {"name": "d", "classes": list(data.classes), "digest": "1", "train_images": train,
              "val_images": val}  # fmt: skip
    finished(tmp_path / "a", recipe(row.recipe), 0.40, data=record)
    values = json.loads((tmp_path / "a" / "metrics.json").read_text())
    for protocol in ("single_scale", "multi_scale"):
        values[protocol] = {"miou": 0.40, "pixel_accuracy": 0.80, "iou": {}}
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(values))
    lines = [line for line in paper_lines(collect(tmp_path), row.table)[row.table] if line.ours]
    shown = {"pixel acc." in line.setting: line.ours for line in lines if line.recipe == row.recipe}
    assert shown == {False: "40.00", True: "80.00"}


def test_testing_on_training_images_is_no_row_and_the_same_weights_from_a_file_are(tmp_path):
    seen = dataclasses.replace(recipe(NAME).data, train_split="train+val")
    finished(tmp_path / "seen", dataclasses.replace(recipe(NAME), data=seen), 0.9)
    local = dataclasses.replace(recipe(NAME).model, pretrained="/weights/vit_large.npz")
    finished(tmp_path / "local", dataclasses.replace(recipe(NAME), model=local), 0.8)
    found = {run.folder.name: run.changed for run in collect(tmp_path)}
    assert found["seen"][-1] == "tested on images it was trained on"
    assert found["local"] == ()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        (NAME, "augreg_in21k_ft_in1k"),
        ("cityscapes_setr_pup_base_80k", "deit_distilled"),
        ("cityscapes_setr_pup_base_80k", "timm/vit_base_patch16_384.augreg_in21k_ft_in1k"),
        ("cityscapes_setr_pup_base_80k", "runs/mine"),
    ],
)
def test_other_weights_are_another_experiment(tmp_path, name, weights):
    """Table 2 compares pretraining: DeiT's result must not stand in the row of 21K."""
    model = dataclasses.replace(recipe(name).model, pretrained=weights)
    finished(tmp_path / "a", dataclasses.replace(recipe(name), model=model), 0.9)
    (run,) = collect(tmp_path)
    assert run.changed == (f"model.pretrained={weights}",)
    assert not [line for line in paper_lines([run], 2)[2] if line.ours]


def test_batch_norm_on_parts_of_the_batch_is_another_experiment(tmp_path):
    """Section 4.1: synchronised BN; where the batch is computed does not matter, in parts does."""
    for name, change in (("a", {"sharding": "full", "device": "cuda:1"}), ("b", {"accumulate": 8})):
        parts = dataclasses.replace(recipe(NAME).train, **change)
        finished(tmp_path / name, dataclasses.replace(recipe(NAME), train=parts), 0.7)
    assert [run.changed for run in collect(tmp_path)] == [(), ("train.accumulate=8",)]


def test_versions_of_a_data_set_may_differ_by_three_images(tmp_path):
    for name, count in (("three", 2978), ("four", 2979), ("none", 2975)):
        finished(tmp_path / name, recipe(NAME), 0.7, data={**CITYSCAPES, "train_images": count})
    found = {run.folder.name: run.changed for run in collect(tmp_path)}
    assert found == {"three": (), "none": (), "four": ("2979 training images, not 2975",)}


def test_augmentation_of_ones_own_is_another_experiment(tmp_path):
    finished(tmp_path / "a", recipe(NAME), 0.7)
    path = tmp_path / "a" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "augment": ""}))
    (run,) = collect(tmp_path)
    assert run.changed == ("own augmentation",)


def test_a_further_test_is_no_other_experiment(tmp_path):
    """Table 2 is single-scale; its systems may be tested at several scales, too."""
    name = "cityscapes_setr_naive_large_80k"
    twice = dataclasses.replace(recipe(name).eval, multi_scale=True)
    finished(tmp_path / "a", dataclasses.replace(recipe(name), eval=twice), 0.78)
    (line,) = [line for line in paper_lines(collect(tmp_path), 2)[2] if line.ours]
    assert (line.paper, line.ours) == ("77.90", "78.00")


def test_a_run_tested_without_some_images_does_not_stand_in_a_table(tmp_path):
    finished(tmp_path / "a", recipe(NAME), 0.79)
    path = tmp_path / "a" / "metrics.json"
    values = json.loads(path.read_text())
    values["single_scale"]["failed"] = ["a.png: broken", "b.png: broken"]
    path.write_text(json.dumps(values))
    assert not [line for line in paper_lines(collect(tmp_path), 6)[6] if line.ours]
    (line,) = other_lines(collect(tmp_path))
    assert line.setting == "single scale, 2 test images failed"

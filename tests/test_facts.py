"""What a run was given can be told apart, and places may differ."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import pytest

from setr import provenance
from setr.cli import main
from setr.config import Config
from setr.datasets import open_dataset
from setr.errors import USAGE, SetrError
from setr.processes.differences import differences
from setr.training.facts import data_facts, data_record, require_same_run, run_facts


def facts(root, config: Config | None = None):
    return run_facts(config or Config(), open_dataset(str(root), "train"))


def test_the_same_data_elsewhere_are_the_same(folder_data, tmp_path):
    copy = shutil.copytree(folder_data, tmp_path / "other" / "place")
    assert facts(folder_data) == facts(copy)
    moved = Config(out="elsewhere", data=dataclasses.replace(Config().data, root=str(copy)))
    assert facts(copy, moved) == facts(folder_data)


def test_other_files_sizes_and_classes_are_named(folder_data, tmp_path):
    before = data_facts(open_dataset(str(folder_data), "train"))
    image = folder_data / "images" / "train" / "scene_000.png"
    image.write_bytes(image.read_bytes() + b"\0")
    assert "file sizes" in differences(before, data_facts(open_dataset(str(folder_data), "train")))
    for kind in ("images", "labels"):
        (folder_data / kind / "train" / "scene_000.png").unlink()
    found = differences(before, data_facts(open_dataset(str(folder_data), "train")))
    assert "pairs 5, not 6" in found
    assert "file names" in found
    text = (folder_data / "data.yaml").read_text()
    (folder_data / "data.yaml").write_text(text.replace("hill", "mountain"))
    found = differences(before, data_facts(open_dataset(str(folder_data), "train")))
    assert "classes" in found


def test_resuming_with_other_ids_of_the_same_classes_is_refused(folder_data):
    before = facts(folder_data)
    text = (folder_data / "data.yaml").read_text()
    classes = len(open_dataset(str(folder_data), "train").labels.classes)
    ids = ", ".join(f"{i}: {'ignore' if i == 3 else i}" for i in range(classes))
    (folder_data / "data.yaml").write_text(f"{text}label_map: {{{ids}, 255: ignore}}\n")
    with pytest.raises(
        SetrError, match=r"other data or classes: data\.train\.ids 3 'ignore', not 3"
    ):
        require_same_run("run", before, facts(folder_data))


def test_resuming_with_other_masks_of_the_same_names_is_refused(folder_data):
    before = facts(folder_data)
    mask = folder_data / "labels" / "train" / "scene_000.png"
    mask.write_bytes(mask.read_bytes() + b"\0")
    with pytest.raises(SetrError, match="mask sizes"):
        require_same_run("run", before, facts(folder_data))


def test_resuming_with_other_bands_is_refused(folder_data):
    """Also where the run began on images read as RGB, of which no fact was kept."""
    before, text = facts(folder_data), (folder_data / "data.yaml").read_text()
    (folder_data / "data.yaml").write_text(f"{text}bands: [3, 2, 1]\n")
    now = facts(folder_data)
    with pytest.raises(SetrError, match=r"data\.train\.bands \[3, 2, 1\], not None"):
        require_same_run("run", before, now)
    with pytest.raises(SetrError, match=r"data\.train\.bands None, not \[3, 2, 1\]"):
        require_same_run("run", now, before)
    require_same_run("run", now, now)


def test_resuming_with_other_shards_of_the_same_names_is_refused(folder_data, tmp_path):
    def packed(name: str) -> dict[str, object]:
        out = tmp_path / name / "shards"
        assert main(["shard", str(folder_data), str(out), "--splits", "train"]) == 0
        return facts(out)

    before = packed("first")
    assert before == packed("again")
    image = folder_data / "images" / "train" / "scene_000.png"
    image.write_bytes((folder_data / "images" / "train" / "scene_001.png").read_bytes())
    with pytest.raises(SetrError, match=r"data\.train\.checksum"):
        require_same_run("run", before, packed("other"))


def test_facts_an_earlier_version_did_not_keep_are_not_compared(folder_data):
    now = facts(folder_data)
    require_same_run("run", {k: v for k, v in now.items() if not k.endswith(".ids")}, now)
    with pytest.raises(SetrError, match="other data"):
        require_same_run("run", {k: v for k, v in now.items() if "data.train." not in k}, now)


def test_a_setting_an_earlier_version_did_not_have_was_at_its_default(folder_data, capsys):
    new = ("train.patience", "model.patch_stride")
    before = {key: value for key, value in facts(folder_data).items() if key not in new}
    require_same_run("run", before, facts(folder_data))
    assert capsys.readouterr().err == ""
    config = Config(model=dataclasses.replace(Config().model, patch_stride=8))
    with pytest.raises(SetrError, match=r"another model: model\.patch_stride 8, not None"):
        require_same_run("run", before, facts(folder_data, config))


def test_the_record_beside_figures_tells_data_apart(folder_data, tmp_path):
    def record(root):
        train, val = (open_dataset(str(root), split) for split in ("train", "val"))
        return data_record(run_facts(Config(), train, val), train, val)

    first = record(folder_data)
    assert (first["name"], first["train_images"], first["val_images"]) == ("data", 6, 3)
    copy = shutil.copytree(folder_data, tmp_path / "elsewhere")
    assert record(copy) == {**first, "name": "elsewhere"}
    for kind in ("images", "labels"):
        (copy / kind / "val" / "scene_000.png").unlink()
    assert record(copy)["digest"] != first["digest"]


def test_resuming_with_other_settings_is_named_and_accepted(folder_data, capsys):
    config = Config()
    longer = config.replace({"train.steps": 7})
    require_same_run("run", facts(folder_data, config), facts(folder_data, longer))
    assert "train.steps 7, not 80000" in capsys.readouterr().err


def test_resuming_with_another_model_is_refused(folder_data):
    config = Config()
    other = config.replace({"model.channels": 8})
    with pytest.raises(SetrError, match=r"another model: model\.channels 8, not None") as caught:
        require_same_run("run", facts(folder_data, config), facts(folder_data, other))
    assert caught.value.code == USAGE


def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
    """Installed in a folder of somebody's repository, the package is no part of it."""
    inside = tmp_path / ".venv" / "setr" / "provenance.py"
    inside.parent.mkdir(parents=True)
    inside.touch()
    (tmp_path / "own.py").touch()

    def git(*words: str) -> str:
        named = ("-c", "user.name=a", "-c", "user.email=a@b.example")
        command = ["git", "-C", str(tmp_path), *named, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", "own.py")
    git("commit", "-m", "mine")
    monkeypatch.setattr(provenance, "__file__", str(inside))
    assert provenance.commit() is None
    git("add", "-f", str(inside))
    git("commit", "-m", "the package")
    assert provenance.commit() == git("rev-parse", "--short=12", "HEAD")
    inside.write_text("changed")
    assert provenance.commit().endswith("+")

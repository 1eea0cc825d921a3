"""The README runs as written: its own-data commands (tiny model, few steps) and its Python."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import setr
from setr.cli import VERBS, main
from setr.config import ModelConfig
from setr.data.scenes import draw
from setr.errors import OK
from setr.images import encode_png
from setr.recipes import recipe
from setr.writing import write_bytes
from tests.conftest import write_scene_folders

README = Path(__file__).parents[1] / "README.md"
FAQ = README.parent / "docs" / "faq.md"
SMALLER = (
    "--model.name setr_naive_nano --model.encoder None --model.channels 8 --train.steps 2 "
    "--train.batch-size 2 --data.crop-size 48 48 --data.workers 0"
)


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_own_folder_from_description_to_prediction(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_scene_folders(tmp_path / "photos", {"train": 4, "val": 2})
    (tmp_path / "photos" / "data.yaml").unlink()
    write_bytes(tmp_path / "holiday.jpg", encode_png(draw("x", 0, size=48)[0]))
    block = next(b for b in blocks("") if "setr init-data" in b)
    commands = [line.split("#")[0].strip() for line in block.splitlines()]
    verbs = ["init-data", "doctor", "train", "eval", "predict", "export", "serve"]
    assert [c.split()[1] for c in commands] == verbs
    for command in commands[:-1]:  # a server would not end
        arguments = shlex.split(command)[1:]
        if arguments[0] == "train":  # a download and thousands of steps are left out
            arguments = [a for a in arguments if a not in ("--model.pretrained", "lvd142m")]
            arguments += SMALLER.split()
        assert main(arguments) == OK, command
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"holiday.png", "holiday_overlay.png", "manifest.jsonl"}
    assert (tmp_path / "model.onnx").is_file()
    capsys.readouterr()
    code = next(b for b in blocks("python") if "setr.load" in b)
    monkeypatch.setattr(setr, "create_model", lambda *a, **k: None, raising=False)  # 318 M weights
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "overlay.png").is_file()
    (tmp_path / "new").mkdir()
    (tmp_path / "holiday.jpg").rename(tmp_path / "new" / "holiday.jpg")
    code = next(b for b in blocks("python", FAQ) if "regions.csv" in b)
    exec(compile(code.replace("runs/scans", "runs/mine"), "faq.md", "exec"), {})
    regions = (tmp_path / "regions.csv").read_text().splitlines()
    assert regions[0] == "image,class,pixels"
    assert 20 <= sum(int(line.split(",")[2]) for line in regions[1:]) <= 48 * 48
    small = recipe("finetune")
    small = dataclasses.replace(
        small,
        model=ModelConfig(name="setr_naive_nano", channels=8),
        data=dataclasses.replace(small.data, crop_size=(48, 48), workers=0),
        train=dataclasses.replace(small.train, steps=2, batch_size=2),
    )
    monkeypatch.setattr(setr, "recipe", lambda name: small, raising=False)
    code = next(b for b in blocks("python") if "setr.train" in b).replace('"lvd142m"', "None")
    exec(compile(code, "README.md", "exec"), {"setr": setr})
    assert (tmp_path / "runs" / "again" / "metrics.json").is_file()


def test_the_page_about_python_runs_in_its_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in blocks("python", README.parent / "docs" / "python.md"):
        exec(compile(code, "python.md", "exec"), names)
    image = names["torch"].zeros(1, 3, 64, 64)
    assert names["model"](image).shape == (1, 9, 64, 64)
    assert [tuple(m.shape[2:]) for m in names["maps"]][-1] == (10, 13)
    assert names["result"].mask.shape == names["data"].load(0).mask.shape
    assert 0 <= names["figures"]["miou"] <= 1
    mask = names["Drops"]()[0][1]
    np.testing.assert_array_equal(names["decoded"](names["encoded"](mask), *mask.shape), mask)
    assert (tmp_path / "runs" / "small" / "metrics.json").is_file()


def test_the_two_commands_exist():
    makefile = (README.parent / "Makefile").read_text()
    for target in ("demo", "test", "lint", "bench"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make demo" in README.read_text()
    assert "make test" in README.read_text()


def test_an_encoder_of_ones_own_is_made_as_the_page_says():
    code = next(b for b in blocks("python", FAQ) if "register_model" in b)
    run = f"import setr._timm, torch\n{code}\nprint(*model(torch.zeros(1, 3, 80, 60)).shape)"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1", "3", "80", "60"], done.stderr


PAGES = (README, *sorted(README.parent.glob("docs/*.md")), *README.parent.glob("examples/**/*.*"))
TYPED = re.compile(r"(?:^|`|-m |[$!(] ?)setr ([a-z][a-z-]+)((?:\\\n|[^`\n#])*)", re.MULTILINE)


@functools.cache
def help_of(*words: str) -> tuple[str, str]:
    """The help of a command: its description with examples, and its options in boxes."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    _, about, *listed = shown.getvalue().split("\n\n", 2)  # that of `explain` lists no options
    return about, "".join(listed)


def options(*words: str) -> set[str]:
    """What the help of a command lists."""
    _, listed = help_of(*words)
    return {"--help", "--debug", *re.findall(r"(?<![\w-])--?[a-z][\w.-]*", listed)}


WITH_SETTINGS = {"auto", "sweep"}
"""Commands that take the options of `setr train`, too."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_pages_have_the_options_they_are_given(page):
    text = page.read_text(encoding="utf-8")
    typed = [(verb, rest.split()) for verb, rest in TYPED.findall(text) if verb in VERBS]
    for verb, words in typed:
        known = options(verb, *words[:1]) if verb == "explain" and words else options(verb)
        known = known | options("train") if verb in WITH_SETTINGS else known
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.rstrip(".,;:)").replace("_", "-") in known, f"setr {verb} {word}"
    for word in re.findall(r"--(?:data|model|optim|train|eval)\.[\w-]+", text):
        assert word.replace("_", "-") in options("train"), word


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"explain"}))
def test_each_help_has_examples_with_options_that_it_lists(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    help_of.cache_clear()
    about = help_of(verb)[0].splitlines()
    help_of.cache_clear()
    examples = [line.split() for line in about if line.startswith("    setr ")]
    assert examples
    assert all(words[1] == verb for words in examples)
    known = options(verb) | (options("train") if verb in WITH_SETTINGS else set())
    assert {word for words in examples for word in words if re.match(r"--?[a-z]", word)} <= known
    text = [line for line in about if not line.startswith("    setr ")]
    assert max(map(len, text)) <= 72


def test_the_example_for_kubernetes_trains_a_batch_that_its_processes_share():
    job = (README.parent / "examples/kubernetes/train.yaml").read_text(encoding="utf-8")
    nodes, each, batch = (int(re.search(rf"--{name} (\d+)", job)[1])
                          for name in ("nnodes", "nproc-per-node", "train.batch-size"))  # fmt: skip
    assert f"completions: {nodes}\n" in job
    assert batch % (nodes * each) == 0


def test_all_public_names_are_on_the_page_about_python():
    text = (README.parent / "docs" / "python.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)`", text[text.index("## All names") :]))
    assert set(setr.__all__) - {"__version__"} <= listed


def headings(page: Path) -> list[str]:
    """The anchors of a page, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_links_inside_the_repository_lead_somewhere():
    for page in [README, *README.parent.glob("docs/*.md"), README.parent / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)\s]+)", page.read_text(encoding="utf-8")):
            if link.startswith("http"):
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name} links to {link}"
            if anchor:
                assert anchor in headings(target), f"{page.name} links to {link}"

"""The examples of loops of other libraries run; those of libraries that are missing are skipped."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import setr

LOOPS = Path(__file__).parents[1] / "examples" / "loops"
NEEDS = {
    "accelerate_loop.py": ("accelerate",),
    "lightning_module.py": ("lightning",),
    "transformers_trainer.py": ("transformers", "accelerate"),
}


def test_every_example_is_tested():
    assert {path.name for path in LOOPS.glob("*.py")} == set(NEEDS)


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_trains_a_model(name, tmp_path, monkeypatch):
    for library in NEEDS[name]:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    text = (LOOPS / name).read_text(encoding="utf-8").replace('"scenes:64"', '"scenes:20"')
    (tmp_path / name).write_text(text.replace("EPOCHS, BATCH, CROP = 2", "EPOCHS, BATCH, CROP = 1"))
    runpy.run_path(str(tmp_path / name), run_name="__main__")
    (saved,) = (tmp_path / "runs").glob("*/model.safetensors")
    assert len(setr.load(saved.parent).classes) == 9

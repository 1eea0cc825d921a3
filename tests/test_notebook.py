"""The notebook runs from its first cell to its last, with fewer scenes and steps."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from setr.cli import main
from setr.errors import OK

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook" / "finetune.ipynb"
SMALLER = {"200": "6", "20}": "4}", 'steps": 150': 'steps": 2', 'batch_size": 8': 'batch_size": 2'}


def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        code = "".join(cell["source"])
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        if code.startswith("!setr bench"):
            continue  # it compiles for minutes; `test_bench.py` has it
        if code.startswith("!setr "):
            assert main(shlex.split(code)[1:]) == OK, code
        else:
            exec(compile(code, NOTEBOOK.name, "exec"), names)
    assert "data:image" in names["result"]._repr_html_()
    assert Path("runs/photos/eval-val/report.html").is_file()
    assert Path("003.geojson").is_file()
    assert Path("photos.onnx").is_file()

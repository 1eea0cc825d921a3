"""`setr demo` end to end, shortened: what it writes and prints."""

from __future__ import annotations

import json
import re

from setr import recipes
from setr.cli import main
from setr.data.scenes import CLASSES
from setr.errors import OK, USAGE


def test_demo_writes_model_figures_and_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe_scenes = "scenes:40"
    full = recipes.recipe("demo")
    small = full.replace({"data.root": recipe_scenes, "data.workers": 0})
    monkeypatch.setitem(recipes._RECIPES, "demo", (lambda: small, ""))
    assert main(["demo", "--steps", "3"]) == OK
    out = capsys.readouterr().out
    assert all(name in out for name in (*CLASSES, "mIoU", "single scale", "multi scale"))
    assert out.count("  setr ") == 3  # the commands to try next
    run = tmp_path / "runs" / "demo"
    metrics = json.loads((run / "metrics.json").read_text())
    for protocol in ("single_scale", "multi_scale"):
        figures = metrics[protocol]
        assert set(figures["iou"]) == set(CLASSES)
        assert all(0 <= figures[k] <= 1 for k in ("miou", "pixel_accuracy", "mean_accuracy"))
    assert metrics["seconds"] > 0
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(settings.replace("recipe: demo", "recipe: finetune"))
    assert main(["demo"]) == USAGE
    assert "runs/demo: holds a run of finetune, which the demo" in capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert page.count('alt="prediction"') == 4
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded from elsewhere

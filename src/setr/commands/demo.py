"""`setr demo`: train, test and show a small model on drawn scenes."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from setr.commands.parsing import parse, require_at_least
from setr.config import Config
from setr.errors import OK, UsageError
from setr.pages.tables import figures_table
from setr.processes.standard_streams import tell
from setr.recipes import recipe

SHOWN = 8


@dataclass(frozen=True)
class Arguments:
    """Train and test SETR-PUP on drawn street scenes: minutes on two cores, no data needed.

    setr demo
    """

    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "runs/demo"
    """Folder for the model, figures and report; an earlier demo there is replaced."""
    steps: int = 0
    """Training steps; the recipe's own by default."""
    seed: int = 0
    """The same seed gives the same numbers."""
    json: bool = False
    """Print the figures as JSON."""


def run(arguments: list[str]) -> int:
    """Train the `demo` recipe and write its report."""
    given = parse(Arguments, arguments, "demo")
    require_at_least(given, 0, "steps", "seed")
    _require_demo(Path(given.out))
    config = recipe("demo")
    steps = given.steps or config.train.steps
    config = config.replace({"out": given.out, "train.steps": steps, "train.seed": given.seed})
    from setr.datasets import open_dataset
    from setr.engine import train
    from setr.loading import load
    from setr.pages.run_page import Shown, write_run

    tell("setr demo: drawn scenes, 9 classes, a ViT of 6 blocks in 8 px patches")
    metrics = train(config, overwrite=True)
    out = Path(given.out)
    predictor = load(out)
    val = open_dataset(config.data.root, config.data.val_split)
    samples = [val.load(i) for i in range(min(SHOWN, len(val)))]
    shown = [Shown(s.image, s.mask, predictor.predict(s.image).mask) for s in samples]
    write_run(
        out / "report.html",
        title="SETR-PUP on drawn scenes",
        metrics=metrics,
        labels=val.labels,
        shown=shown,
        log=out / "log.jsonl",
    )
    if given.json:
        print(json.dumps(metrics))
        return OK
    print(figures_table(metrics))
    named = shlex.quote(str(out))
    print(
        f"\n{metrics['seconds']:.0f} s. Written to {out}/: report.html (open it), metrics.json, "
        "and the model\n\nNext:\n"
        f"  setr predict {named} PHOTO.jpg -o predictions --save mask,overlay\n"
        f"  setr serve {named}   # a page to try it in a browser\n"
        "  setr auto YOUR_FOLDER --model.pretrained lvd142m   # your own images and masks"
    )
    return OK


def _require_demo(out: Path) -> None:
    """Refuse to replace a run of another recipe."""
    settings = out / "config.yaml"
    if settings.is_file() and (name := Config.load(settings).recipe) != "demo":
        raise UsageError(
            f"{out}: holds a run of {name}, which the demo would replace; choose another --out"
        )

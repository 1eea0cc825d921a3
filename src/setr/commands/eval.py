"""`setr eval MODEL DATA [options]`."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from setr.cli import parse
from setr.config import Precision
from setr.errors import OK
from setr.tables import figures_table


@dataclass(frozen=True)
class Arguments:
    """Test a model on a data set."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Model directory."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder or YAML file of the data set, or `scenes` for drawn scenes."""
    split: str = "val"
    """Split to test on; several joined with +."""
    multi_scale: bool = False
    """Also test with the paper's six scales and flip."""
    precision: Precision = "auto"
    """bf16 where the hardware has it, else fp32."""
    workers: int = 1
    """Processes that decode images; 0 decodes in this one."""
    out: Path | None = None
    """Folder for metrics.json; MODEL/eval-SPLIT if not given."""
    json: bool = False
    """Print the figures as JSON."""


def run(arguments: list[str]) -> int:
    """Print the figures of one split and write them to a folder."""
    given = parse(Arguments, arguments, "eval")
    import torch

    from setr.datasets import open_dataset
    from setr.evaluation import evaluate, write_json
    from setr.hub import from_pretrained
    from setr.inference import MULTI_SCALES

    model, info = from_pretrained(given.model)
    dataset = open_dataset(given.data, given.split, info.labels)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    protocols = {"single_scale": info.protocol}
    if given.multi_scale:
        several = dataclasses.replace(info.protocol, scales=MULTI_SCALES, flip=True)
        protocols["multi_scale"] = several
    metrics = {}
    for name, protocol in protocols.items():
        tested = dataclasses.replace(info, protocol=protocol)
        metrics[name] = evaluate(
            model, tested, dataset, precision=given.precision, workers=given.workers
        )
    out = given.out or given.model / f"eval-{given.split}"
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", metrics)
    print(json.dumps(metrics) if given.json else figures_table(metrics))
    print(f"written to {out}", file=sys.stderr)
    return OK

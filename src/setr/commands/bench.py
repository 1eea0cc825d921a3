"""`setr bench MODEL [--data DATA]`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from setr.commands.parsing import parse, require_at_least, require_default, require_within
from setr.commands.shared import Model, Words, require_size
from setr.errors import OK, UsageError


@dataclass(frozen=True)
class Arguments:
    """Time a model on this machine in every runtime: speed, memory, agreement, which to use.

    Rows: PyTorch eager and compiled, ONNX Runtime, OpenVINO; fp32, bf16, int8. What is timed is the
    way from a normalised image to its mask.

    setr bench runs/mine --data photos
    """

    model: Model
    """Model directory, Hub name or checkpoint."""
    data: str | None = None
    """Labelled data set: adds the mIoU, and the int8 row."""
    split: str = "val"
    """Split of the data."""
    images: int = 20
    """Images of the split that are used, evenly spread."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; the model's window or training crop if not given."""
    batches: tuple[int, ...] = (1, 8)
    """Batch sizes."""
    seconds: float = 5.0
    """Each row is timed for at least so long per batch size."""
    skip: Words = ()
    """Runtimes to leave out: compile, onnxruntime, openvino."""
    device: str = "auto"
    """Of the PyTorch rows: auto, cpu, cuda, cuda:1, …"""
    json: bool = False
    """Print the figures as JSON."""


def run(arguments: list[str]) -> int:
    """Print the table and the advice."""
    given: Arguments = parse(Arguments, arguments, "bench")
    require_at_least(given, 1, "images", "batches")
    require_size(given.size)
    require_within(given, 0.001, 86_400, "seconds")
    if given.data is None:
        rule = "does nothing without --data; add it, or leave this out"
        require_default(given, rule, "split", "images")
    from setr.bench import ROWS, bench

    optional = {row.runtime for row in ROWS[1:]} - {ROWS[0].runtime}
    unknown = sorted(set(given.skip) - optional)
    if unknown:
        raise UsageError(f"--skip {unknown[0]}: choose from {', '.join(sorted(optional))}")
    report = bench(
        given.model,
        data=given.data,
        split=given.split,
        count=given.images,
        size=given.size,
        batches=given.batches,
        seconds=given.seconds,
        rows=tuple(row for row in ROWS if row.runtime not in given.skip),
        device=given.device,
    )
    print(json.dumps(report) if given.json else table(report))
    return OK


def table(report: dict[str, Any]) -> str:
    """The figures as text columns."""
    height, width = report["size"]
    head = f"{'runtime':<18}{'batch':>6}{'images/s':>10}{'p50 ms':>10}{'p95 ms':>10}{'peak MB':>9}"
    lines = [
        f"{report['hardware']}, {report['threads']} threads; {width}x{height} pixels",
        f"{head}{'agreement':>11}{'mIoU':>7}",
    ]
    for row in report["rows"]:
        name = f"{row['runtime']} {row['precision']}"
        if "error" in row:
            lines.append(f"{name:<18}  {row['error']}")
            continue
        miou = "" if row["miou"] is None else f"{100 * row['miou']:.2f}"
        quality = f"{row['agreement']:>11.2%}{miou:>7}"
        for batch, t in row["batches"].items():
            lines.append(
                f"{name:<18}{batch:>6}{t['images_per_second']:>10.2f}{t['p50_ms']:>10.1f}"
                f"{t['p95_ms']:>10.1f}{t['peak_mb']:>9.0f}{quality}"
            )
            name = quality = ""
    return "\n".join([*lines, report["advice"]])

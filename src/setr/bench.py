"""Benchmark of a model on this machine in every runtime and precision, with a recommendation.

Each row runs in a process of its own (`bench_row.py`), so that its peak memory can be measured and
a failure concerns one row only. Exported files are written without the checks of `setr export`,
because the table shows the agreement with PyTorch's fp32 masks, and the mIoU if labels are given.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from setr import distributed
from setr.arguments.choices import ExportPrecision
from setr.datasets import open_dataset
from setr.errors import SetrError
from setr.export import metadata, write_openvino
from setr.exporting.export_check import MAX_DROP
from setr.exporting.graphs import Graph, trace
from setr.exporting.onnx_file import write_onnx
from setr.exporting.quantize import calibration_images
from setr.fitting import require_labelled
from setr.loading import load
from setr.predictor import Predictor
from setr.provenance import hardware

MIN_AGREEMENT = 0.99
"""Share of pixels that must keep their class, where there are no labels to compute a mIoU."""


class Row(NamedTuple):
    """A runtime and a precision."""

    runtime: str
    precision: ExportPrecision


ROWS = (
    Row("eager", "fp32"),
    Row("eager", "bf16"),
    Row("compile", "fp32"),
    Row("compile", "bf16"),
    Row("onnxruntime", "fp32"),
    Row("openvino", "fp32"),
    Row("openvino", "bf16"),
    Row("openvino", "int8"),
)
"""The first is what the others are compared with."""


def bench(
    source: str,
    *,
    data: str | None = None,
    split: str = "val",
    count: int = 20,
    size: tuple[int, int] | None = None,
    batches: tuple[int, ...] = (1, 8),
    seconds: float = 5.0,
    rows: tuple[Row, ...] = ROWS,
    device: str = "auto",
) -> dict[str, Any]:
    """Time a model in every runtime.

    Args:
        source: a model directory, Hub name or checkpoint.
        data: labelled data set for mIoU and int8; without it, drawn scenes give the agreement and
            the int8 row is left out.
        count: images of the split that are used.
        size: (height, width) in pixels that is timed; by default the model's window or crop.
        seconds: each is timed for at least so long.
        rows: what to time; `ROWS[0]` is always first.
        device: of the PyTorch rows.

    Returns:
        `hardware`, `threads`, `size`, `rows` (each with the figures of `bench_row.run_row`, or
        `error`) and `advice`.

    Raises:
        SetrError: a model or data set that cannot be opened, or a first row that fails.
    """
    own = distributed.device(device)
    predictor = load(source, device="cpu")
    info = predictor.info
    if data is not None:
        require_labelled(predictor.model, info, open_dataset(data, split, info.labels, info.bands))
    size = size or info.protocol.window or info.crop_size or (512, 512)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="setr-bench-") as name:
        folder = Path(name)
        files = _export(predictor, folder, data, split, rows)
        for row in (ROWS[0], *(r for r in rows if r != ROWS[0])):
            job = {
                "source": str(files.get(row, source)),
                "runtime": row.runtime,
                "precision": row.precision,
                "device": device if row.runtime in ("eager", "compile") else "cpu",
                "size": size,
                "batches": batches,
                "seconds": seconds,
                "data": data,
                "split": split,
                "count": count,
                "masks": str(folder / f"{row.runtime}-{row.precision}.npz"),
                "reference": str(folder / f"{ROWS[0].runtime}-{ROWS[0].precision}.npz"),
            }
            file = files.get(row)  # or why there is none
            figures = {"error": file} if isinstance(file, str) else run_process(job)
            found.append({**row._asdict(), **figures})
            if "error" in found[0]:
                raise SetrError(f"{source}: {found[0]['error']}")
            done = "not timed" if "error" in figures else "timed"
            print(f"setr: {done}: {row.runtime} {row.precision}", file=sys.stderr)
    return {
        "hardware": hardware(own),
        "threads": torch.get_num_threads(),
        "size": list(size),
        "rows": found,
        "advice": advice(source, found, data, split),
    }


def _export(
    predictor: Predictor, folder: Path, data: str | None, split: str, rows: tuple[Row, ...]
) -> dict[Row, Path | str]:
    """Exported files for the rows that need one, or the reason why there is none."""
    model, info = predictor.network, predictor.info
    wanted = [row for row in rows if row.runtime in ("onnxruntime", "openvino")]
    if not wanted:
        return {}
    files: dict[Row, Path | str] = {}
    plain = folder / "model.onnx"
    program = trace(Graph(model, "logits"))
    try:
        write_onnx(program, plain, "logits", metadata(model, info, "fp32", "logits"), None)
    except SetrError as error:
        return dict.fromkeys(wanted, str(error))
    for row in wanted:
        if row.runtime == "onnxruntime":
            files[row] = plain
            continue
        path, images = folder / f"{row.precision}.xml", None
        if row.precision == "int8":
            if data is None:
                files[row] = "needs --data: int8 takes its ranges from images"
                continue
            images = calibration_images(open_dataset(data, split, info.labels, info.bands), info)
        stored = metadata(model, info, row.precision, "logits")
        try:
            write_openvino(plain, path, row.precision, stored, images)
            files[row] = path
        except SetrError as error:
            files[row] = str(error)
    return files


def run_process(job: dict[str, Any]) -> dict[str, Any]:
    """Run one row in a new process; `error` if it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "setr.exporting.bench_row"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"ended with code {done.returncode}"
        reason = reason.removeprefix(f"{SetrError.__module__}.{SetrError.__name__}: ")
        return {"error": reason[:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def advice(
    source: str, rows: list[dict[str, Any]], data: str | None = None, split: str = "val"
) -> str:
    """The fastest row at the first batch size that keeps the masks, and the command to use it.

    Args:
        source: of the model.
        rows: timed ones, the reference first.
        data: labelled data set, if one was given.
    """
    timed = [row for row in rows if "error" not in row]
    reference = timed[0]

    def good(row: dict[str, Any]) -> bool:
        if reference["miou"] is not None:
            return bool(row["miou"] >= reference["miou"] - MAX_DROP)
        return bool(row["agreement"] >= MIN_AGREEMENT)

    batch = next(iter(reference["batches"]))
    speed = lambda row: row["batches"][batch]["images_per_second"]  # noqa: E731
    best = max((row for row in timed if good(row)), key=speed)
    ratio = speed(best) / speed(reference)
    name = f"{best['runtime']} {best['precision']}"
    text = f"fastest that keeps the masks, batch {batch}: {name}, {speed(best):.2f} images/s"
    if best is reference:
        return f"{text}; nothing to change"
    file = "onnx -o model.onnx" if best["runtime"] == "onnxruntime" else "openvino -o model.xml"
    check = ""
    if best["precision"] != "fp32":
        check = f" --precision {best['precision']} --calibration {shlex.quote(data or 'DATA')}"
        check += "" if split == "val" else f" --split {shlex.quote(split)}"
        check += "" if data else " (DATA: a labelled data set as setr eval takes it)"
    model = shlex.quote(source)
    how = {
        "eager": f"setr predict {model} --precision {best['precision']}",
        "compile": "torch.compile(predictor.model.coarse) in your own program",
    }.get(best["runtime"], f"setr export {model} --format {file}{check}")
    return f"{text}, {ratio:.1f} times eager fp32: {how}"

"""`setr export MODEL --format FORMAT -o OUT`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from setr.arguments.choices import ExportFormat, ExportPrecision
from setr.commands.parsing import parse, require_default
from setr.commands.shared import Model, Out, require_size
from setr.errors import OK
from setr.processes.interrupt import ending_with


@dataclass(frozen=True)
class Arguments:
    """Write a model as one file for another runtime, after comparing it with PyTorch.

    The file takes any batch, height and width, or only --size. fp32 is written only if its logits
    are PyTorch's (to 1e-4 of the largest, at three sizes); bf16, fp16 and int8 only if the mIoU on
    the calibration data falls by no more than half a point.

    setr export runs/mine --format onnx -o model.onnx
    setr export runs/mine --format openvino --precision int8 --calibration photos -o model.xml
    """

    model: Model
    """Model directory, Hub name or checkpoint."""
    out: Out
    """File to write: .onnx, .xml (OpenVINO; its .bin goes beside it) or .pt2 (torch.export)."""
    format: ExportFormat
    """Runtime it is for."""
    precision: ExportPrecision = "fp32"
    """Of weights and arithmetic. onnx has no bf16, torch no int8."""
    argmax: bool = False
    """Output the best class (uint8, image size) in place of full-size logits."""
    size: tuple[int, int] | None = None
    """Height and width: the file takes single images of this size alone, for NPUs and other
    runtimes that need fixed shapes."""
    pixels: bool = False
    """The file takes uint8 RGB pixels (B, H, W, 3) and normalises them."""
    calibration: str | None = None
    """Labelled data set: int8 takes its ranges from it, and the mIoU is compared on it."""
    split: str = "val"
    """Split of the calibration data."""
    json: bool = False
    """Print what was compared as JSON."""


def run(arguments: list[str]) -> int:
    """Export; prints what was compared."""
    given: Arguments = parse(Arguments, arguments, "export")
    require_size(given.size)
    if given.calibration is None:
        rule = "does nothing without --calibration; add it, or leave this out"
        require_default(given, rule, "split")
    from setr.datasets import open_dataset
    from setr.export import check_request, export
    from setr.loading import load

    check_request(
        given.out, given.format, given.precision, calibrated=given.calibration is not None
    )
    predictor = load(given.model, device="cpu")
    calibration = None
    if given.calibration:
        info = predictor.info
        calibration = open_dataset(given.calibration, given.split, info.labels, info.bands)
    with ending_with(f"interrupted; {given.out} was not written"):
        report = export(
            predictor.network,
            predictor.info,
            given.out,
            format=given.format,
            precision=given.precision,
            head="mask" if given.argmax else "logits",
            size=given.size,
            pixels=given.pixels,
            calibration=calibration,
        )
    print(json.dumps({"file": str(given.out), **report}) if given.json else _text(given, report))
    return OK


def _text(given: Arguments, report: dict[str, Any]) -> str:
    lines = [
        f"{size:>12}  largest difference {report['difference'][size]:.1e} of the largest logit, "
        f"same class on {report['agreement'][size]:.2%} of pixels (noise)"
        for size in report["difference"]
    ]
    if "miou" in report:
        before, after = (100 * report["miou"][k] for k in ("pytorch_fp32", "exported"))
        lines.append(
            f"mIoU on {given.calibration} ({given.split}): PyTorch fp32 {before:.2f}, "
            f"this file {after:.2f}"
        )
    return "\n".join([*lines, f"wrote {given.out} ({report['bytes'] / 1e6:.1f} MB)"])

"""Export of a trained model to one file for another runtime: ONNX, OpenVINO or torch.export.

A file appears under its name only after its outputs were compared with PyTorch's: fp32 must give
the same logits at three sizes, lower precisions must keep the mIoU on the user's own data. Classes,
colours, label map, normalisation, protocol and licence are stored inside: in `metadata_props` of
ONNX, `rt_info` of OpenVINO, and the extra file `setr.json` of torch.export.

Shapes: B batch, H x W image, K classes.
"""

from __future__ import annotations

import dataclasses
import errno
import glob
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setr._extras import import_extra
from setr.arguments.choices import ExportFormat, ExportPrecision
from setr.arguments.typed import checked
from setr.data.dataset import Dataset
from setr.errors import UsageError
from setr.evaluation import grid_size
from setr.exporting.export_check import compare, compare_accuracy, require_accuracy
from setr.exporting.graphs import DTYPES, Graph, Head, trace
from setr.exporting.onnx_file import weights_beside, write_onnx
from setr.exporting.quantize import calibration_images, quantized
from setr.exporting.runtime import ANY, Form
from setr.fitting import require_labelled
from setr.model import SETR
from setr.model_info import ModelInfo, describe, licence_of
from setr.processes.lock import ScratchFolder
from setr.writing import cannot_write, write_errors

SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
LONGEST_NAME = 255
"""Bytes in the name of a file, on all common file systems."""
PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8"),  # ONNX Runtime has no bf16 arithmetic on CPUs
    "openvino": ("fp32", "bf16", "fp16", "int8"),
    "torch": ("fp32", "bf16", "fp16"),
}


@checked
def export(
    model: SETR,
    info: ModelInfo,
    out: str | os.PathLike,
    *,
    format: ExportFormat,
    precision: ExportPrecision = "fp32",
    head: Head = "logits",
    size: tuple[int, int] | None = None,
    pixels: bool = False,
    calibration: Dataset | None = None,
) -> dict[str, Any]:
    """Write one file, after comparing it with PyTorch.

    Args:
        model: the network, on any device; it is not changed.
        info: what is stored with it.
        out: the file, with the ending of its format; OpenVINO's .bin is written beside it.
        format: of the file.
        precision: of its weights and arithmetic; `int8` quantises with images of `calibration`.
        head: output beside `coarse`: full-size `logits`, or the best class as `mask`.
        size: (H, W) of the single image the file takes, for runtimes that need fixed shapes; the
            stored protocol then runs images by windows of that size. None: any size.
        pixels: the file takes uint8 pixels (B, H, W, C) and normalises them.
        calibration: a labelled split; needed for every precision but fp32.

    Returns:
        What was compared, by size: `difference` of the logits, relative to the largest, and
        `agreement`, the share of pixels with the same class; with `calibration` also `miou`, of
        PyTorch and of the file; and `bytes` of the file.

    Raises:
        SetrError: the file differs too much (and is not written), a precision the format lacks, no
            calibration data, or a package that is not installed.
    """
    path = Path(out)
    check_request(path, format, precision, calibrated=calibration is not None)
    if calibration is not None:
        require_labelled(model, info, calibration)
    form = Form(info.mean, info.std, size, pixels)
    if size and info.protocol.window != size:
        info = dataclasses.replace(info, protocol=info.protocol.in_windows(size))
    stored = metadata(model, info, precision, head, form)
    with _scratch(path) as folder:
        draft = folder / path.name
        _write(draft, model, info, format, precision, head, form, stored, calibration)
        report = compare(draft, model, head, form, exact=precision == "fp32")
        if calibration is not None:
            report["miou"] = compare_accuracy(draft, model, info, stored, calibration)
            require_accuracy(report["miou"], precision, path)
        files = list(folder.glob(glob.escape(f"{path.stem}.") + "*"))
        report["bytes"] = sum(file.stat().st_size for file in files)
        for file in sorted(files, key=lambda file: file.name == path.name):  # after its weights
            os.replace(file, path.with_name(file.name))
        if format == "onnx":
            _remove_old_weights(path, files)
    return report


def _remove_old_weights(path: Path, written: list[Path]) -> None:
    """Remove the second file of a larger model that an ONNX file was written over."""
    weights = weights_beside(path)
    if weights.name not in {file.name for file in written}:
        weights.unlink(missing_ok=True)


def metadata(
    model: SETR, info: ModelInfo, precision: ExportPrecision, head: Head, form: Form = ANY
) -> dict[str, str]:
    """The metadata of a file: that of `config.json` and more, each value as JSON."""
    values = {
        **describe(model, info),
        "licence": licence_of(model, info),
        "export": {
            "precision": precision,
            "head": head,
            "patch_size": model.encoder.patch_size,
            "grid": grid_size(model),
            "size": form.size,
            "pixels": form.pixels,
            "input": _input(info, form),
        },
    }
    return {key: json.dumps(value) for key, value in values.items()}


def _input(info: ModelInfo, form: Form) -> str:
    """A description of the graph's input for people."""
    H, W = form.size or ("H", "W")
    B, C = 1 if form.size else "B", len(info.mean)
    what = "RGB" if info.bands is None and C == 3 else str(info.bands or f"{C} channels")
    if form.pixels:
        return f"uint8 {what} ({B}, {H}, {W}, {C})"
    return f"float32 {what} ({B}, {C}, {H}, {W}), (pixel / 255 - mean) / std"


def check_request(path: Path, format: str, precision: str, *, calibrated: bool) -> None:
    """Refuse what cannot be exported, before a model is opened.

    Args:
        path: the file to write.
        format: of the file.
        precision: of its weights and arithmetic.
        calibrated: whether there is a labelled split to compare on.

    Raises:
        SetrError: an ending that is not the format's, a folder, a precision that the format lacks,
            no labelled split for one that needs it, or a package that is not installed.
    """
    if path.suffix != SUFFIX[format]:
        raise UsageError(f"-o {path}: {format} files end in {SUFFIX[format]}")
    for file in (path, *_beside(path, format)):
        if os.path.isdir(file):
            raise UsageError(f"-o {file}: is a folder; give another name")
        if len(os.fsencode(file.name)) > LONGEST_NAME:
            raise UsageError(f"-o {path}: has a long name; give a shorter one")
    if precision not in PRECISIONS[format]:
        known = ", ".join(PRECISIONS[format])
        raise UsageError(f"--precision {precision}: {format} files have {known}")
    if precision != "fp32" and not calibrated:
        raise UsageError(
            f"--precision {precision}: give --calibration DATA, labelled images on which the mIoU "
            "must not fall by more than half a point"
        )
    if precision == "int8":
        import_extra("nncf", "openvino", "--precision int8")
    if format == "openvino":
        import_extra("openvino", "openvino", str(path))


def _beside(path: Path, format: str) -> tuple[Path, ...]:
    """Further files that an export writes or replaces beside the one that is named."""
    return {"openvino": (path.with_suffix(".bin"),), "onnx": (weights_beside(path),)}.get(
        format, ()
    )


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A temporary folder beside the file."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = ScratchFolder(path.parent, ".export-")
    with scratch as folder:
        try:
            yield folder
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise cannot_write(path, error) from None


def _write(
    path: Path,
    model: SETR,
    info: ModelInfo,
    format: ExportFormat,
    precision: ExportPrecision,
    head: Head,
    form: Form,
    stored: dict[str, str],
    calibration: Dataset | None,
) -> None:
    """Trace the model and write it in one of the formats."""
    native = precision if format == "torch" or precision == "fp16" else "fp32"
    dtype = DTYPES["fp32" if format == "openvino" else native]
    graph = Graph(model, head, dtype, form=form, convolve_first=precision != "int8")
    program = trace(graph, functional=format == "torch")
    if format == "torch":
        values = {key: json.loads(text) for key, text in stored.items()}
        whole = io.BytesIO()  # torch's own writer ends the process where the disk is full
        torch.export.save(program, whole, extra_files={"setr.json": json.dumps(values)})
        path.write_bytes(whole.getbuffer())
        return
    images = None
    if precision == "int8" and calibration:
        images = [form.of(image) for image in calibration_images(calibration, info)]
    if format == "onnx":
        write_onnx(program, path, head, stored, images, form)
        return
    plain = path.with_suffix(".onnx")
    write_onnx(program, plain, head, {}, None, form)
    write_openvino(plain, path, precision, stored, images)
    for file in plain.parent.glob(glob.escape(plain.name) + "*"):
        file.unlink()


def write_openvino(
    plain: Path,
    path: Path,
    precision: ExportPrecision,
    stored: dict[str, str],
    images: list[np.ndarray] | None = None,
) -> None:
    """Turn an fp32 ONNX file into OpenVINO's format; int8 needs `images` to quantise with.

    `openvino.convert_model` reads and simplifies a graph in the same way, but it also sends usage
    statistics, and after an error it leaves the root logger silent.
    """
    ov = import_extra("openvino", "openvino", str(path))
    offline = import_extra("openvino._offline_transformations", "openvino", str(path))
    network = ov.Core().read_model(plain)
    offline.apply_moc_transformations(network, cf=False, smart_reshape=True)
    if images:
        network = quantized(network, images)
    for key, text in stored.items():
        network.set_rt_info(text, ["setr", key])
    ov.save_model(network, path, compress_to_fp16=precision in ("bf16", "fp16"))

"""A trained model as one file for another runtime: ONNX, OpenVINO or torch.export.

A file appears under its name only after it was run beside PyTorch: fp32 must give the same logits
at two sizes, lower precision must keep the mIoU on the user's own data. Classes, colours, label
map, normalisation, protocol and licence travel inside: `metadata_props` of ONNX, `rt_info` of
OpenVINO, the extra file `setr.json` of torch.export.

Shapes: B batch, H x W image, K classes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from setr.datasets import Dataset
from setr.errors import USAGE, SetrError
from setr.evaluation import evaluate_split, require_labelled
from setr.graphs import DTYPES, Graph, Head, trace
from setr.hub import ModelInfo, describe, encoder_licence
from setr.inference import normalize
from setr.model import SETR
from setr.onnx_file import write_onnx
from setr.quantize import calibration_images, import_nncf, quantized
from setr.runtime import (
    ANY,
    COARSE,
    ExportedModel,
    Form,
    Run,
    import_openvino,
    onnx_run,
    openvino_run,
)

Format = Literal["onnx", "openvino", "torch"]
ExportPrecision = Literal["fp32", "bf16", "fp16", "int8"]
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8"),  # ONNX Runtime has no bf16 arithmetic on CPUs
    "openvino": ("fp32", "bf16", "fp16", "int8"),
    "torch": ("fp32", "bf16", "fp16"),
}
MAX_DIFFERENCE = 1e-4
"""Of fp32 logits, relative to the largest."""
MAX_DROP = 0.005
"""Of the mIoU, where the precision is lower: half a point."""


def export(
    model: SETR,
    info: ModelInfo,
    out: str | os.PathLike,
    *,
    format: Format,
    precision: ExportPrecision = "fp32",
    head: Head = "logits",
    size: tuple[int, int] | None = None,
    pixels: bool = False,
    calibration: Dataset | None = None,
) -> dict[str, Any]:
    """Write one file, after comparing it with PyTorch.

    Args:
        model: the network, on any device; it stays as it is.
        info: what travels with it.
        out: the file, with the ending of its format; OpenVINO's .bin is written beside it.
        format: of the file.
        precision: of its weights and arithmetic; `int8` quantises with images of `calibration`.
        head: output beside `coarse`: full-size `logits`, or the best class as `mask`.
        size: (H, W) of the single image the file takes, for runtimes that need fixed shapes; the
            protocol that travels with it then runs images by windows of that size. None: any.
        pixels: the file takes uint8 RGB (B, H, W, 3) and normalises it.
        calibration: a labelled split; needed for every precision but fp32.

    Returns:
        What was compared: `difference` (relative, by size) for fp32, else `miou` of PyTorch and of
        the file; `agreement`, the share of pixels with the same class; `bytes`.

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
            _require_accuracy(report["miou"], precision, path)
        files = _beginning(folder, f"{path.stem}.")
        report["bytes"] = sum(file.stat().st_size for file in files)
        for file in files:  # weights come before .xml
            os.replace(file, path.with_name(file.name))
    return report


def metadata(
    model: SETR, info: ModelInfo, precision: ExportPrecision, head: Head, form: Form = ANY
) -> dict[str, str]:
    """What travels inside a file: `config.json` and more, each value as JSON."""
    values = {
        **describe(model, info),
        "licence": encoder_licence(model.arguments, info.pretrained),
        "export": {
            "precision": precision,
            "head": head,
            "patch_size": model.encoder.patch_size,
            "size": form.size,
            "pixels": form.pixels,
            "input": _input(info, form),
        },
    }
    return {key: json.dumps(value) for key, value in values.items()}


def _input(info: ModelInfo, form: Form) -> str:
    """What the graph takes, for people."""
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
        SetrError: an ending that is not the format's, a precision it lacks, no labelled split for
            one that needs it, or a package that is not installed.
    """
    if path.suffix != SUFFIX[format]:
        raise SetrError(f"-o {path}: {format} files end in {SUFFIX[format]}", code=USAGE)
    if precision not in PRECISIONS[format]:
        known = ", ".join(PRECISIONS[format])
        raise SetrError(f"--precision {precision}: {format} files have {known}", code=USAGE)
    if precision != "fp32" and not calibrated:
        raise SetrError(
            f"--precision {precision}: give --calibration DATA, labelled images on which the mIoU "
            "must not fall by more than half a point",
            code=USAGE,
        )
    if precision == "int8":
        import_nncf()
    if format == "openvino":
        import_openvino(path)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder beside the file that is gone afterwards, whatever happens."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
    except OSError as error:
        raise SetrError(f"{path}: cannot write: {error.strerror}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    path: Path,
    model: SETR,
    info: ModelInfo,
    format: Format,
    precision: ExportPrecision,
    head: Head,
    form: Form,
    stored: dict[str, str],
    calibration: Dataset | None,
) -> None:
    """Trace the model and write it in one of the formats."""
    native = precision if format == "torch" or precision == "fp16" else "fp32"
    dtype = DTYPES["fp32" if format == "openvino" else native]
    program = trace(Graph(model, head, dtype, form=form, spread=precision != "int8"))
    if format == "torch":
        values = {key: json.loads(text) for key, text in stored.items()}
        torch.export.save(program, path, extra_files={"setr.json": json.dumps(values)})
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
    for file in _beginning(plain.parent, plain.name):
        file.unlink()


def _beginning(folder: Path, start: str) -> list[Path]:
    """Files of a folder whose names begin like this, sorted; `[` and `*` mean themselves."""
    return sorted(file for file in folder.iterdir() if file.name.startswith(start))


def write_openvino(
    plain: Path,
    path: Path,
    precision: ExportPrecision,
    stored: dict[str, str],
    images: list[np.ndarray] | None = None,
) -> None:
    """Turn an fp32 ONNX file into OpenVINO's format; int8 needs `images` to quantise with."""
    ov = import_openvino(path)
    network = ov.convert_model(plain)
    if images:
        network = quantized(network, images)
    for key, text in stored.items():
        network.set_rt_info(text, ["setr", key])
    ov.save_model(network, path, compress_to_fp16=precision in ("bf16", "fp16"))


def open_run(path: Path, outputs: tuple[str, ...]) -> Run:
    """An exported file of any format as a function of these outputs; only for files of our own."""
    if path.suffix == ".onnx":
        return onnx_run(path, outputs)[0]
    if path.suffix == ".xml":
        return openvino_run(path, outputs)[0]
    network = torch.export.load(path).module(check_guards=False)
    wanted = [0 if name != COARSE else 1 for name in outputs]

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            found = network(torch.from_numpy(images))
        return [found[i].numpy() for i in wanted]

    return run


def compare(
    path: Path, model: SETR, head: Head, form: Form = ANY, *, exact: bool
) -> dict[str, Any]:
    """Run a file and PyTorch on the same noise at two sizes, or at the file's only one.

    Returns:
        `difference`: by size, the largest of the logits' absolute differences over the largest
        logit; `agreement`: share of pixels with the same class, by size.

    Raises:
        SetrError: with `exact`, logits or masks that are not PyTorch's.
    """
    run = open_run(path, (head, COARSE))
    report: dict[str, Any] = {"difference": {}, "agreement": {}}
    C = model.encoder.in_chans
    for B, H, W in [(1, *form.size)] if form.size else _sizes(model):
        images, taken = _noise((B, C, H, W), form)
        with torch.inference_mode():
            device = next(model.parameters()).device
            expected = model.eval()(images.to(device)).float().cpu()
            coarse = model.coarse(images.to(device)).logits.float().cpu()
        given, raw = (torch.from_numpy(a) for a in run(taken))
        pairs = [(raw, coarse)] + ([(given, expected)] if head == "logits" else [])
        difference = max(
            float((a - b).abs().max() / b.abs().max()) if a.shape == b.shape else float("inf")
            for a, b in pairs
        )
        mask = given if head == "mask" else given.argmax(dim=1)
        agreement = float((mask == expected.argmax(dim=1)).double().mean())
        name = f"{B}x{H}x{W}"
        report["difference"][name], report["agreement"][name] = difference, agreement
        wrong_mask = head == "mask" and _clear_errors(mask, expected)
        if exact and (not difference <= MAX_DIFFERENCE or wrong_mask):
            raise SetrError(
                f"{path.name}: at {H}x{W} the file's logits differ from PyTorch's by "
                f"{difference:.1e} of the largest (allowed {MAX_DIFFERENCE:.0e}); nothing was "
                "written"
            )
    return report


def _noise(shape: tuple[int, int, int, int], form: Form) -> tuple[torch.Tensor, np.ndarray]:
    """Normalised images (B, C, H, W), and the same as a file takes them."""
    generator = torch.Generator().manual_seed(0)
    if not form.pixels:
        images = torch.randn(shape, generator=generator)
        return images, images.numpy()
    B, C, H, W = shape
    pixels = torch.randint(256, (B, H, W, C), dtype=torch.uint8, generator=generator)
    return normalize(pixels, form.mean, form.std), pixels.numpy()


def _clear_errors(mask: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether a mask differs where the best logit leads by more than rounding."""
    best = logits.topk(min(2, logits.shape[1]), dim=1).values
    clear = best[:, 0] - best[:, -1] > 2 * MAX_DIFFERENCE * logits.abs().max()
    return bool((clear & (mask != logits.argmax(dim=1))).any())


def _sizes(model: SETR) -> list[tuple[int, int, int]]:
    """Batches to compare at: eight patches square, and sides that are no multiples of the patch."""
    p = model.encoder.patch_size
    return [(1, 8 * p, 8 * p), (2, 6 * p + p // 2 + 1, 11 * p - 1)]


def compare_accuracy(
    path: Path, model: SETR, info: ModelInfo, stored: dict[str, str], dataset: Dataset
) -> dict[str, float]:
    """The mIoU on a split of PyTorch in fp32 and of a file, 0 to 1."""
    values = {key: json.loads(text) for key, text in stored.items()}
    networks: dict[str, Callable[[], Any]] = {
        "pytorch_fp32": lambda: model,
        "exported": lambda: ExportedModel(open_run(path, (COARSE,)), values),
    }
    return {
        name: float(
            evaluate_split(
                network(), info, dataset, precision="fp32", workers=0, detailed=False
            )["miou"]
        )
        for name, network in networks.items()
    }  # fmt: skip


def _require_accuracy(miou: dict[str, float], precision: str, path: Path) -> None:
    drop = miou["pytorch_fp32"] - miou["exported"]
    if not drop <= MAX_DROP:
        raise SetrError(
            f"{path.name}: {precision} lowers the mIoU from {100 * miou['pytorch_fp32']:.2f} to "
            f"{100 * miou['exported']:.2f}, by more than {100 * MAX_DROP:g} points; nothing was "
            "written; choose a higher precision"
        )

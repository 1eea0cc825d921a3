"""Compares an exported file with PyTorch: by its logits, or by the mIoU on labelled data."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setr.data.dataset import Dataset
from setr.errors import SetrError
from setr.evaluation import evaluate_split
from setr.exporting.graphs import Head
from setr.exporting.runtime import ANY, ExportedModel, Form
from setr.exporting.sessions import COARSE, Run, onnx_run, openvino_run
from setr.inference import normalize
from setr.model import SETR
from setr.model_info import ModelInfo

MAX_DIFFERENCE = 1e-4
"""Largest difference of fp32 logits, relative to the largest logit."""
MAX_DROP = 0.005
"""Largest drop of the mIoU in lower precisions: half a point."""


def open_run(path: Path, outputs: tuple[str, ...]) -> Run:
    """Open an exported file of any format as a function that computes these outputs."""
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
    """Run a file and PyTorch on the same noise at three sizes, or at the file's only one.

    Returns:
        `difference`: by size, the largest of the logits' absolute differences over the largest
        logit; `agreement`: share of pixels with the same class, by size.

    Raises:
        SetrError: with `exact`, logits or masks that are not PyTorch's.
    """
    if next(model.parameters()).is_cuda:  # there convolutions compute in TF32
        model = copy.deepcopy(model).cpu()
    run = open_run(path, (head, COARSE))
    report: dict[str, Any] = {"difference": {}, "agreement": {}}
    C = model.encoder.in_chans
    for B, H, W in [(1, *form.size)] if form.size else _sizes(model):
        images, taken = _noise((B, C, H, W), form)
        with torch.inference_mode():
            expected = model.eval()(images).float()
            coarse = model.coarse(images).logits.float()
        given, raw = (torch.from_numpy(a) for a in run(taken))
        pairs = [(raw, coarse)] + ([(given, expected)] if head == "logits" else [])
        differences = [
            float((a - b).abs().max() / b.abs().max()) if a.shape == b.shape else float("inf")
            for a, b in pairs
        ]
        difference = float(np.max(differences))  # NaN if any is
        mask = given if head == "mask" else given.argmax(dim=1)
        agreement = float((mask == expected.argmax(dim=1)).double().mean())
        name = f"{B}x{H}x{W}"
        report["difference"][name], report["agreement"][name] = difference, agreement
        if exact and not difference <= MAX_DIFFERENCE:
            raise SetrError(
                f"{path.name}: at {H}x{W} the file's logits differ from PyTorch's by "
                f"{difference:.1e} of the largest (allowed {MAX_DIFFERENCE:.0e}); nothing was "
                "written"
            )
        if exact and head == "mask" and _clear_errors(mask, expected):
            raise SetrError(
                f"{path.name}: at {H}x{W} the file's mask differs from PyTorch's on "
                f"{1 - agreement:.2%} of the pixels, also where one class leads clearly; nothing "
                "was written"
            )
    return report


def _noise(shape: tuple[int, int, int, int], form: Form) -> tuple[torch.Tensor, np.ndarray]:
    """Normalised images (B, C, H, W), and the same in the form that the file takes."""
    generator = torch.Generator().manual_seed(0)
    if not form.pixels:
        images = torch.randn(shape, generator=generator)
        return images, images.numpy()
    B, C, H, W = shape
    pixels = torch.randint(256, (B, H, W, C), dtype=torch.uint8, generator=generator)
    return normalize(pixels, form.mean, form.std), pixels.numpy()


def _clear_errors(mask: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether a mask is wrong where the best logit leads by more than rounding errors."""
    best = logits.topk(min(2, logits.shape[1]), dim=1).values
    clear = best[:, 0] - best[:, -1] > 2 * MAX_DIFFERENCE * logits.abs().max()
    return bool((clear & (mask != logits.argmax(dim=1))).any())


def _sizes(model: SETR) -> list[tuple[int, int, int]]:
    """Batches to compare at: eight patches square, and a wide and a tall image.

    The sides of the last two are no multiples of the patch, and have several windows along each
    axis, if the encoder attends in windows.
    """
    p, side = model.encoder.patch_size, model.encoder.window_size
    short, long = (6 + side) * p + p // 2 + 1, (11 + side) * p - 1
    return [(1, 8 * p, 8 * p), (2, short, long), (1, long, short)]


def compare_accuracy(
    path: Path, model: SETR, info: ModelInfo, stored: dict[str, str], dataset: Dataset
) -> dict[str, float]:
    """The mIoU (0 to 1) of PyTorch in fp32 and of an exported file on a split."""

    def miou(network: SETR | ExportedModel) -> float:
        figures = evaluate_split(
            network, info, dataset, precision="fp32", workers=0, detailed=False
        )
        return float(figures["miou"])

    before = miou(model)
    values = {key: json.loads(text) for key, text in stored.items()}
    exported = ExportedModel(open_run(path, (COARSE,)), values, path.name)
    return {"pytorch_fp32": before, "exported": miou(exported)}


def require_accuracy(miou: dict[str, float], precision: str, path: Path) -> None:
    """Refuse a file whose mIoU falls by more than `MAX_DROP`."""
    drop = miou["pytorch_fp32"] - miou["exported"]
    if not drop <= MAX_DROP:
        raise SetrError(
            f"{path.name}: {precision} lowers the mIoU from {100 * miou['pytorch_fp32']:.2f} to "
            f"{100 * miou['exported']:.2f}, by more than {100 * MAX_DROP:g} points; nothing was "
            "written; choose a higher precision"
        )

"""Runs exported models: an ONNX or OpenVINO file as the network of a `Predictor`.

Every file that `export.py` writes has two outputs: one for deployment (`logits` or `mask`, at the
image's size) and `coarse`, the logits at the decoder's own scale. Only `coarse` is used here;
windows, resizing and argmax are then computed as for a PyTorch model, by blocks of rows, so the
full-size logits of a large image never exist and every file gives the same `Result`.

Shapes: B batch, H x W image, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from setr.errors import SetrError, UsageError, first_line
from setr.exporting.sessions import COARSE, LARGEST_PATCH, Run, onnx_run, openvino_run
from setr.model import Output, resize
from setr.model_info import ModelInfo, read_info
from setr.processes.faults import machine_fault
from setr.reading.parsed import BROKEN, fault_of, json_of
from setr.weight_files.mapped_model import in_file

SUFFIXES = (".onnx", ".xml")
"""Endings of the files `open_exported` reads."""
KEYS = ("format", "model", "labels", "protocol", "mean", "std", "export")
"""Required metadata, stored as JSON under `setr.KEY` (ONNX) or setr/KEY (OpenVINO)."""


class Form(NamedTuple):
    """The input of a graph.

    Attributes:
        mean: of each channel, for images from 0 to 1.
        std: standard deviation of each channel.
        size: (H, W) of the single image it takes; None for any batch and size.
        pixels: images are uint8 (B, H, W, C), and the graph normalises them.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None
    pixels: bool = False

    def of(self, images: np.ndarray) -> np.ndarray:
        """Convert normalised images float32 (B, C, h, w) to the graph's input.

        Smaller ones are padded at the bottom and right with the mean colour; pixels are rounded.

        Raises:
            SetrError: images larger than `size`.
        """
        if self.size:
            free = [whole - side for whole, side in zip(self.size, images.shape[-2:], strict=True)]
            if min(free) < 0:
                H, W = images.shape[-2:]
                raise UsageError(
                    f"the file takes images of {self.size[0]}x{self.size[1]} (height x width) and "
                    f"was given {H}x{W}; leave out --window, --protocol and their like, or export "
                    "without --size"
                )
            images = np.pad(images, ((0, 0), (0, 0), (0, free[0]), (0, free[1])))
        if self.pixels:
            mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
            images = images.transpose(0, 2, 3, 1) * std + mean
            images = np.rint(images * 255).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(images)


ANY = Form()
"""Normalised images of any batch and size."""


class ExportedModel(nn.Module):
    """A network in another runtime, with the methods of `SETR` that inference calls.

    Args:
        run: computes the coarse logits.
        values: the file's metadata.
        name: of the file, for messages.
    """

    def __init__(self, run: Run, values: dict[str, Any], name: str) -> None:
        super().__init__()
        self.run, self.export, self.name = run, values["export"], name
        self.precision = str(self.export["precision"])
        size, grid = self.export.get("size"), self.export.get("grid")
        self.grid = (int(grid[0]), int(grid[1])) if grid else None
        self.form = Form(
            tuple(values["mean"]),
            tuple(values["std"]),
            (int(size[0]), int(size[1])) if size else None,
            bool(self.export.get("pixels")),
        )
        self.num_classes = len(values["labels"]["classes"])
        self.patch_size = int(self.export["patch_size"])
        if not 1 <= self.patch_size <= LARGEST_PATCH or min(self.form.size or (1,)) < 1:
            raise ValueError(f"patch_size {self.patch_size}, size {self.form.size}")
        self.is_transformer = values["model"].get("decoder") not in ("fcn", "semantic_fpn")
        self.squeeze = values["model"].get("odd_sizes") == "squeeze"

    def coarse(self, images: Tensor) -> Output:
        """As `SETR.coarse`.

        Raises:
            SetrError: the runtime refuses the images, as where the metadata is of another graph.
        """
        given = self.form.of(images.float().cpu().numpy())
        parts = np.split(given, len(given)) if self.form.size else [given]
        try:
            found = [self.run(part)[0] for part in parts]
        except Exception as error:  # of the runtime's own classes
            if machine_fault(error):
                raise
            raise SetrError(
                f"{self.name}: the runtime refuses images of {images.shape[-1]}x{images.shape[-2]} "
                f"({first_line(error)}); export the model again"
            ) from None
        logits = found[0] if len(found) == 1 else np.concatenate(found)
        H, W = self.form.size or images.shape[-2:]
        p = self.patch_size
        size = (H, W) if self.squeeze else (-(-H // p) * p, -(-W // p) * p)
        return Output(torch.from_numpy(logits).to(images.device), [], size)

    def forward(self, images: Tensor) -> Tensor:
        """As `SETR.forward`: normalised images (B, C, H, W) -> logits (B, K, H, W)."""
        output = self.coarse(images)
        return resize(output.logits, output.size)[..., : images.shape[-2], : images.shape[-1]]


def open_exported(path: Path, device: str = "auto") -> tuple[ExportedModel, ModelInfo]:
    """Open a file that `setr export` wrote.

    Args:
        path: an .onnx file, or an .xml file with its .bin beside it.
        device: `cpu`; for ONNX also `cuda`, `cuda:1`, … where onnxruntime has that provider; `auto`
            takes the first GPU if so.

    Raises:
        SetrError: missing or broken file, a model of another program, no such device, or the
            runtime is not installed.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    opener = onnx_run if path.suffix == ".onnx" else openvino_run
    run, stored = opener(path, (COARSE,), device)
    missing = [key for key in KEYS if key not in stored]
    if missing:
        raise SetrError(
            f"{path}: was not written by setr export (no '{missing[0]}' in its metadata), so its "
            "classes and normalisation are unknown; export the model again from its directory"
        )
    try:
        values = {key: json_of(text) for key, text in stored.items()}
        return ExportedModel(run, values, str(path)).eval(), read_info(values, str(path))
    except SetrError as error:
        raise in_file(path, error) from None
    except BROKEN as error:
        raise SetrError(f"{path}: its metadata is broken ({fault_of(error)})") from None

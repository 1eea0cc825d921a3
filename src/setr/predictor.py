"""Predictor: image in, Result out. The one class behind the command line, notebooks and scripts.

`setr.load(...)` gives a Predictor; `.predict(...)` takes a path, file bytes, a PIL image or a numpy
array and answers at the input's own size, under the protocol stored with the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setr.config import Precision
from setr.errors import SetrError
from setr.evaluation import autocast_dtype
from setr.foreign import FOREIGN_KEYWORDS, load_foreign
from setr.hub import ModelInfo, from_pretrained
from setr.images import MAX_PIXELS, read_image
from setr.inference import normalize, predict_mask, predict_scores
from setr.model import SETR
from setr.result import Result
from setr.runtime import SUFFIXES, ExportedModel, open_exported


class Predictor:
    """A model ready to segment images.

    Args:
        model: the network, put in eval mode.
        info: labels, normalisation and protocol.
        device: `auto` takes a GPU if there is one.
        precision: `auto` computes in bf16 where the hardware does.
        max_pixels: larger files are refused from their header.
    """

    def __init__(
        self,
        model: SETR | ExportedModel,
        info: ModelInfo,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.device = _device(device)
        self.model: SETR | ExportedModel = model.eval().to(self.device)
        self.info = info
        self.max_pixels = max_pixels
        self.dtype = autocast_dtype(precision, self.device)

    @property
    def network(self) -> SETR:
        """The model as a PyTorch network.

        Raises:
            SetrError: the model is an exported file, which gives scores and nothing else.
        """
        if isinstance(self.model, ExportedModel):
            raise SetrError("an exported file gives scores only; load the model it came from")
        return self.model

    @property
    def classes(self) -> Sequence[str]:
        """Class names in id order."""
        return self.info.labels.classes

    def predict(self, source: Any) -> Result:
        """Segment one image.

        Args:
            source: a path, the bytes of a file, a PIL image, or an array uint8 RGB (H, W, 3) or
                grey (H, W).

        Raises:
            SetrError: unreadable file or an array of another kind.
        """
        image = self._as_array(source)
        mask, confidence = self._run(predict_mask, image)

        def scores() -> np.ndarray:
            values: np.ndarray = self._run(predict_scores, image)[0].softmax(dim=0).numpy()
            return values

        path = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
        ids, sure = mask[0].numpy(), confidence[0].numpy()
        return Result(image, ids, sure, self.info.labels, scores, path=path)

    def _run(self, function: Callable[..., Any], image: np.ndarray) -> Any:
        """Apply `predict_mask` or `predict_scores` to one image; tensors come back on the CPU."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None),
        ):
            x = torch.from_numpy(image)[None].to(self.device)
            x = normalize(x, self.info.mean, self.info.std)
            size = (image.shape[0], image.shape[1])
            found = function(self.model, x, self.info.protocol, size=size)
        return found.cpu() if isinstance(found, torch.Tensor) else tuple(f.cpu() for f in found)

    def _as_array(self, source: Any) -> np.ndarray:
        if isinstance(source, str | os.PathLike | bytes):
            return read_image(source, max_pixels=self.max_pixels)
        if hasattr(source, "convert"):  # PIL
            source = source.convert("RGB")
        image = np.array(source)
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise SetrError(
                f"array {image.shape} {image.dtype}: give uint8 RGB (H, W, 3) or grey (H, W)"
            )
        return np.ascontiguousarray(image)


def load(source: str | os.PathLike, *, device: str = "auto", **options: Any) -> Predictor:
    """Load a trained model.

    Args:
        source: a model directory, `owner/name` on the Hub, a SETR checkpoint (.pth) of the authors
            or of mmsegmentation, or a file of `setr export` (.onnx, .xml), whose precision is its
            own.
        device: `auto`, `cpu`, `cuda`, …
        options: further keywords of `Predictor`; for a foreign checkpoint also those of
            `foreign.convert_foreign`, for example `num_heads`.

    Raises:
        SetrError: missing or broken model, or no such device.
    """
    if Path(source).suffix in SUFFIXES:
        network, info = open_exported(Path(source), device)
        if options.pop("precision", "auto") not in ("auto", network.export["precision"]):
            own = network.export["precision"]
            raise SetrError(f"{source}: computes in {own}; leave --precision out, or export again")
        return Predictor(network, info, device="cpu", precision="fp32", **options)
    if Path(source).is_file():
        given = {key: options.pop(key) for key in FOREIGN_KEYWORDS if key in options}
        model, info = load_foreign(source, **given)
    else:
        model, info = from_pretrained(os.fspath(source))
    return Predictor(model, info, device=device, **options)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise SetrError(f"device '{name}': {str(error).splitlines()[0]:.100}") from None

"""Predictor: image in, Result out. The one class behind the command line, notebooks and scripts.

`setr.load(...)` gives a Predictor; `.predict(...)` takes a path, file bytes, a PIL image or a numpy
array and answers at the input's own size, under the protocol stored with the model.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setr.config import Precision
from setr.errors import SetrError
from setr.evaluation import autocast_dtype
from setr.foreign import FOREIGN_KEYWORDS, load_foreign
from setr.hub import ModelInfo, from_pretrained
from setr.images import MAX_PIXELS, encode_png, read_image, write_bytes
from setr.inference import normalize, predict_mask, predict_scores
from setr.labels import Labels
from setr.model import SETR


class Result:
    """What a model says about one image.

    Attributes:
        image: the input, uint8 RGB (H, W, 3).
        mask: training ids (H, W) uint8.
        confidence: probability of the chosen class (H, W) float32, 0 to 1.
        labels: class names and colours of the ids.
    """

    def __init__(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        confidence: np.ndarray,
        labels: Labels,
        compute_scores: Callable[[], np.ndarray],
    ) -> None:
        self.image, self.mask, self.confidence, self.labels = image, mask, confidence, labels
        self._compute_scores = compute_scores

    @cached_property
    def scores(self) -> np.ndarray:
        """Class probabilities (K, H, W) float32; they sum to 1 over K.

        Computed when first asked for, by a second run of the model: masks of large images with many
        classes are possible where their scores would not fit into memory.
        """
        return self._compute_scores()

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the image per class, largest first, without classes that do not occur."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.labels.classes))
        order = np.argsort(-counts)
        return {self.labels.classes[i]: counts[i] / self.mask.size for i in order if counts[i]}

    def color(self) -> np.ndarray:
        """The mask in class colours, uint8 RGB (H, W, 3)."""
        return self.labels.palette[self.mask]

    def overlay(self, opacity: float = 0.55) -> np.ndarray:
        """The image under its class colours, uint8 RGB (H, W, 3)."""
        mixed = (1 - opacity) * self.image + opacity * self.color()
        return np.rint(mixed).astype(np.uint8)

    def save(self, path: str | os.PathLike, kind: str = "mask") -> None:
        """Write one picture or array; the file appears when complete.

        Args:
            path: the file to write; its folder is made.
            kind: `mask` (palette PNG whose indices are training ids), `color` or `overlay` (RGB
                PNG), `scores` (npz with float16 probabilities (K, H, W) and the class names).

        Raises:
            SetrError: unknown kind, or a file that cannot be written.
        """
        if kind not in KINDS:
            raise SetrError(f"save kind '{kind}': choose from {', '.join(KINDS)}")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, self._encode(kind))

    def _encode(self, kind: str) -> bytes:
        if kind == "mask":
            return encode_png(self.mask, palette=self.labels.palette)
        if kind == "scores":
            import io

            buffer = io.BytesIO()
            names = np.array(self.labels.classes)
            np.savez_compressed(buffer, scores=self.scores.astype(np.float16), classes=names)
            return buffer.getvalue()
        return encode_png(self.color() if kind == "color" else self.overlay())

    def __repr__(self) -> str:
        height, width = self.mask.shape
        top = ", ".join(f"{name} {share:.0%}" for name, share in list(self.shares.items())[:4])
        return f"<Result {width}x{height}: {top}>"

    def _repr_html_(self) -> str:
        """How a notebook shows it: the overlay with a legend."""
        data = base64.b64encode(encode_png(self.overlay())).decode()
        legend = " ".join(
            f'<span style="white-space:nowrap"><span style="display:inline-block;width:.8em;'
            f'height:.8em;background:rgb{tuple(self.labels.colours[self.labels.classes.index(n)])}">'
            f"</span> {html.escape(n)} {share:.1%}</span>"
            for n, share in self.shares.items()
        )
        return f'<img src="data:image/png;base64,{data}" style="max-width:100%"><p>{legend}</p>'


KINDS = {"mask": ".png", "color": "_color.png", "overlay": "_overlay.png", "scores": "_scores.npz"}
"""What can be saved, with the ending of the file name."""


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
        model: SETR,
        info: ModelInfo,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.device = _device(device)
        self.model = model.eval().to(self.device)
        self.info = info
        self.max_pixels = max_pixels
        self.dtype = autocast_dtype(precision, self.device)

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

        return Result(image, mask[0].numpy(), confidence[0].numpy(), self.info.labels, scores)

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
        source: a model directory, `owner/name` on the Hub, or a SETR checkpoint (.pth) of the
            authors or of mmsegmentation.
        device: `auto`, `cpu`, `cuda`, …
        options: further keywords of `Predictor`; for a foreign checkpoint also those of
            `foreign.convert_foreign`, for example `num_heads`.

    Raises:
        SetrError: missing or broken model, or no such device.
    """
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

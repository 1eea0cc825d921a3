"""Predictor, the class that segments images for the command line, notebooks and scripts.

`setr.load(...)` returns a Predictor. Its method `predict` takes a path, file bytes, a PIL image, an
array, a tensor or a URL, and returns a `Result` at the input's size, using the inference protocol
stored with the model. Very large images are processed in blended sliding windows. Videos are
handled in `filming.py`, rasters larger than memory in `mapping.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from setr.arguments.choices import Precision
from setr.arguments.elsewhere_python import HintsAtNames, answers_keywords
from setr.arguments.typed import checked
from setr.bands import Bands, Range, as_rgb
from setr.errors import SetrError, UsageError
from setr.evaluation import resolve_protocol
from setr.exporting.runtime import ExportedModel
from setr.inference import NormalizedImages, predict_mask, predict_scores
from setr.labels import IGNORE
from setr.model_info import ModelInfo, require_own
from setr.opening import Trained
from setr.prediction.live import is_live, open_video
from setr.prediction.model_bands import ModelBands
from setr.prediction.placed import PlacedModel
from setr.prediction.rasters import Raster
from setr.prediction.several import is_pattern, is_sequence, single_sources
from setr.prediction.shares import checked_confidence
from setr.prediction.video import is_video
from setr.protocols import Protocol
from setr.reading.arrays import as_image
from setr.reading.gdal import is_georeferenced
from setr.reading.pillow import MAX_PIXELS
from setr.reading.urls import without_password
from setr.result import Result

WINDOW = 512
"""Side of the windows of large images in pixels, for models without a known training crop size."""


class Predictor(PlacedModel, HintsAtNames):
    """A model ready to segment images, usually from `setr.load`; thread-safe.

    Args:
        model: the network; it is put in eval mode.
        info: class labels, normalisation and inference protocol.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, …
        precision: `auto`, `fp32`, `bf16` or `fp16`; `auto` is bf16 where the hardware supports it,
            and the type of the weights after `model.half()` or `model.double()`.
        max_pixels: limit on an image's pixels; larger files are refused before they are decoded.
        protocol: inference protocol, or the name of a preset (`protocols.preset`); by default the
            model's own. A GeoTIFF is always processed in windows.
        scales: image scales for multi-scale testing, in place of the protocol's; probabilities are
            averaged. GeoTIFF files are then refused.
        flip: whether to average with the prediction for the mirrored image, in place of what the
            protocol says. If so, GeoTIFF files are refused.
        short_side: images are first scaled to this short side in pixels, in place of the
            protocol's; a smaller one takes less time. GeoTIFF files are then refused.
        window: side in pixels of blended sliding windows, used for every image; by default the
            protocol decides (`Protocol.needs_windows`).
        min_confidence: pixels whose class is less probable, 0 to 1, are unlabelled; see
            `Result.with_min_confidence`.
        allow_urls: whether `predict` may download http(s) addresses.
        bands: numbers of the bands to read from a file, counted from 1; by default the model's own.
            For an RGB model it applies only to GeoTIFF files.
        value_range: values of a file that are mapped to 0 and 255; default and scope as for
            `bands`.

    Raises:
        SetrError: `model` and `info` differ in classes or channels, or the number of bands does not
            fit.
    """

    @checked
    def __init__(
        self,
        model: Trained,
        info: ModelInfo,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        max_pixels: int = MAX_PIXELS,
        protocol: str | Protocol | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        short_side: int | None = None,
        window: int | None = None,
        min_confidence: float = 0.0,
        allow_urls: bool = False,
        bands: tuple[int, ...] | None = None,
        value_range: Range | None = None,
    ) -> None:
        if window is not None and window < 1:
            raise UsageError(f"window {window}: give pixels from 1")
        require_own(model, info)
        super().__init__(model.eval(), device, precision)
        views = {
            "scales": None if scales is None else tuple(scales),
            "flip": flip,
            "short_side": short_side,
        }
        self._resizes = scales is not None or bool(flip) or short_side is not None
        chosen = resolve_protocol(protocol, model, info).overridden(**views)
        chosen = chosen if window is None else chosen.in_windows(window)
        self.info = replace(info, protocol=chosen)
        self.max_pixels = max_pixels
        self.window = window
        self.min_confidence = checked_confidence(min_confidence)
        self.allow_urls = allow_urls
        self.reads = ModelBands(self.info, bands or (), value_range)

    @property
    def bands(self) -> Bands | None:
        """The bands read from every file; None for RGB."""
        return self.reads.of_files

    @property
    def classes(self) -> Sequence[str]:
        """Class names in the order of their ids."""
        return self.info.labels.classes

    @answers_keywords("predict")
    @checked
    def predict(
        self,
        source: Any,
        *,
        bands: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> Result:
        """Segment one image.

        Args:
            source: a path; the bytes of a file, or an open file; a PIL image; a uint8 array, RGB
                (H, W, 3) or grey (H, W), or (H, W, C) for a model of C bands; a tensor of these
                shapes or (3, H, W), uint8 or float from 0 to 1; an http(s) address if `allow_urls`.
                The result of a GeoTIFF is georeferenced.
            bands: overrides the predictor's `bands`.
            value_range: overrides the predictor's `value_range`.

        Raises:
            SetrError: an unreadable or too large image, a video, or an array of another shape or
                type.
        """
        if is_live(source) or is_video(source):
            raise UsageError(
                f"{without_password(str(source))}: is a video; predict_all gives the result of "
                "each frame, `setr predict` writes its overlay"
            )
        if isinstance(source, str | os.PathLike) and os.path.isdir(source):
            raise UsageError(f"{os.fspath(source)}: is a folder; predict_all takes folders")
        if isinstance(source, str) and is_pattern(source):
            raise UsageError(f"{source}: is a pattern; predict_all takes patterns")
        if is_sequence(source):
            raise UsageError(
                f"a {type(source).__name__}: predict takes one image; predict_all takes several, "
                "predict_batch those of one size in one pass"
            )
        if is_georeferenced(source):
            return self._predict_raster(self.reads.open_raster(source, bands or (), value_range))
        return self._predict_batch([source], self.reads.chosen(bands or (), value_range))[0]

    __call__ = predict

    @answers_keywords("predict")
    def predict_batch(self, sources: Sequence[Any]) -> list[Result]:
        """Segment images of equal size in one batch.

        Args:
            sources: images in any form that `predict` takes; georeferences are not read.

        Raises:
            SetrError: as `predict`; also if the sizes differ.
        """
        is_one = isinstance(sources, str | bytes | os.PathLike)
        if isinstance(sources, np.ndarray | torch.Tensor) and sources.ndim == 3:
            is_one = sources.shape[-1] == 3 or len(sources) == 3  # else its rows would be images
        if is_one:
            raise UsageError(
                "predict_batch takes a list of images, and this is one; predict takes one"
            )
        return self._predict_batch(list(sources), self.bands)

    def _predict_batch(self, sources: Sequence[Any], bands: Bands | None) -> list[Result]:
        limit, urls = self.max_pixels, self.allow_urls
        if not sources:
            return []
        images = [
            as_image(source, max_pixels=limit, allow_urls=urls, bands=bands) for source in sources
        ]
        sizes = {image.shape[:2] for image in images}
        if len(sizes) != 1:
            raise SetrError(f"sizes {sorted(sizes)}: a batch needs images of one size")
        results = self._results(images, self._protocol(images[0].shape))
        for result, source in zip(results, sources, strict=True):
            result.path = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
        return [self._labelled(result) for result in results]

    @answers_keywords("predict")
    def predict_all(self, *sources: Any) -> Iterator[Result]:
        """Segment many images, one at a time.

        Args:
            sources: files, folders (searched recursively, without hidden files), glob patterns,
                videos (frame by frame), a live source (the number of a camera, the address of a
                stream if `allow_urls`), anything that `predict` takes, or sequences and iterators
                of these.

        Yields:
            One result per image or frame. Frames of a live source that come before the result
            before them is done with are skipped; `path` ends in the number of the frame.

        Raises:
            SetrError: a source without images, or an image that cannot be read; a live source that
                has broken off and cannot be opened again.
        """
        for source in sources:
            for found in single_sources(source):
                if is_live(found) or is_video(found):
                    yield from self._predict_frames(found)
                else:
                    yield self.predict(found)

    def _predict_frames(self, source: Any) -> Iterator[Result]:
        with open_video(source, allow_urls=self.allow_urls) as reader:
            for frame in reader:
                result = self.predict(frame)
                result.path = f"{reader.name}#{reader.number}"
                yield result
            if reader.ended:
                raise SetrError(f"{reader.name}: {reader.ended}")

    @property
    def raster_protocol(self) -> Protocol:
        """The inference protocol of rasters: blended windows, never resized."""
        return Protocol().in_windows(self._window)

    @property
    def _window(self) -> int | tuple[int, int]:
        fixed = self.model.form.size if isinstance(self.model, ExportedModel) else None
        trained = max(self.info.crop_size) if self.info.crop_size else WINDOW
        return self.window or fixed or trained

    def _protocol(self, shape: tuple[int, ...]) -> Protocol:
        """The predictor's protocol, with windows where the image is too large without."""
        own = self.info.protocol
        return own.in_windows(self._window) if own.needs_windows(shape[0], shape[1]) else own

    def _predict_raster(self, opened: Raster) -> Result:
        with opened as raster:
            if self._resizes:
                raise SetrError(
                    f"{raster.name}: a georeferenced raster is never rescaled or flipped; load the "
                    "model without scales, flip and short_side, or give the pixels as an array"
                )
            H, W = raster.shape
            if self.max_pixels < H * W:
                raise SetrError(
                    f"{raster.name}: {W}x{H} is {H * W:,} pixels, above the limit of "
                    f"{self.max_pixels:,}; raise --max-pixels, or write only mask and confidence, "
                    "which work at any size"
                )
            image = raster.read((0, H), (0, W))
            has_data = raster.has_data((0, H), (0, W))
        (found,) = self._results([image], self.raster_protocol)
        found.mask[~has_data] = IGNORE
        found.confidence[~has_data] = 0
        found.path, found.geo = raster.name, raster.geo
        return self._labelled(found)

    def _labelled(self, result: Result) -> Result:
        least = self.min_confidence
        return result.with_min_confidence(least) if least > 0 else result

    def _results(self, images: Sequence[np.ndarray], protocol: Protocol) -> list[Result]:
        masks, confidences = self._run(predict_mask, images, protocol)

        def scores_of(image: np.ndarray) -> Callable[[], np.ndarray]:
            return lambda: self._run(predict_scores, [image], protocol)[0].softmax(dim=0).numpy()

        return [
            Result(as_rgb(image), mask.numpy(), sure.numpy(), self.info.labels, scores_of(image))
            for image, mask, sure in zip(images, masks, confidences, strict=True)
        ]

    def _run(
        self, function: Callable[..., Any], images: Sequence[np.ndarray], protocol: Protocol
    ) -> Any:
        """Apply `predict_mask` or `predict_scores` to images; returns tensors on the CPU."""
        with self.computing():
            pixels = torch.from_numpy(images[0][None] if len(images) == 1 else np.stack(images))
            x = NormalizedImages(pixels.to(self.device), self.info.mean, self.info.std)
            found = function(self.passes, x, protocol, size=(x.shape[-2], x.shape[-1]))
        return found.cpu() if isinstance(found, torch.Tensor) else tuple(f.cpu() for f in found)

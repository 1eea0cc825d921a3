"""Predictor: image in, Result out. The one class behind the command line, notebooks and scripts.

`setr.load(...)` gives a Predictor; `.predict(...)` takes a path, file bytes, a PIL image, an array,
a tensor or an address and answers at the input's own size, under the protocol stored with the
model. Images too large to be run at once are run by blended windows. Videos are handled in
`filming.py`, rasters larger than memory in `mapping.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setr import distributed
from setr.arguments.choices import Precision
from setr.bands import Bands, Range, as_rgb
from setr.errors import USAGE, SetrError
from setr.evaluation import resolve_protocol
from setr.exporting.runtime import SUFFIXES, ExportedModel, open_exported
from setr.hub import from_pretrained
from setr.images import MAX_PIXELS
from setr.inference import NormalizedImages, Protocol, predict_mask, predict_scores
from setr.kernels.recorded import recorded
from setr.kernels.windows import Model
from setr.labels import IGNORE
from setr.layers.precision import autocast_dtype
from setr.model import SETR
from setr.model_info import ModelInfo, require_own
from setr.prediction.model_bands import ModelBands
from setr.prediction.rasters import Raster
from setr.prediction.unsure import checked_confidence
from setr.prediction.video import frames, is_video
from setr.reading.arrays import as_image
from setr.reading.files import expanded
from setr.reading.gdal import is_georeferenced
from setr.reading.remote import at_revision, fetched
from setr.reading.urls import is_url
from setr.result import Result
from setr.weight_files.foreign import FOREIGN_KEYWORDS, load_foreign

WHOLE_PIXELS = 2048 * 2048
"""Images of more pixels, after the protocol's resize, are run by windows even if the protocol has
none, because the cost of attention grows with the square of the pixels."""
WINDOW = 512
"""Side of these windows in pixels, where the model does not name its crop size."""


class Predictor:
    """A model ready to segment images; threads may share it.

    Args:
        model: the network, put in eval mode.
        info: labels, normalisation and protocol.
        device: `auto` takes a GPU if there is one.
        precision: `auto` computes in bf16 where the hardware does.
        max_pixels: larger files are refused from their header.
        protocol: how images are run, or the name of a preset (`protocols.preset`), in place of the
            model's own; a GeoTIFF goes by windows all the same.
        scales: factors on the image in place of the protocol's; with several, probabilities are
            averaged. A GeoTIFF is then refused.
        flip: average with the mirrored image, whatever the protocol. A GeoTIFF is then refused.
        window: run every image by blended windows of so many pixels; by default the model's own
            protocol decides, and only images above `WHOLE_PIXELS` go by windows.
        min_confidence: pixels whose class is less probable are unlabelled; see
            `Result.with_min_confidence`.
        allow_urls: `predict` may download http(s) addresses.
        bands: which of a file are read, from 1, in place of the model's own; of a model for RGB
            those of GeoTIFF files alone.
        value_range: the values that become 0 and 255, likewise.

    Attributes:
        passes: the model as it is run; on a GPU, repeated shapes are replayed as a CUDA graph.

    Raises:
        SetrError: a model and an `info` of other classes or channels, or bands of another number.
    """

    def __init__(
        self,
        model: SETR | ExportedModel,
        info: ModelInfo,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        max_pixels: int = MAX_PIXELS,
        protocol: str | Protocol | None = None,
        scales: Sequence[float] | None = None,
        flip: bool = False,
        window: int | None = None,
        min_confidence: float = 0.0,
        allow_urls: bool = False,
        bands: tuple[int, ...] = (),
        value_range: Range | None = None,
    ) -> None:
        if window is not None and window < 1:
            raise SetrError(f"window {window}: give pixels from 1", code=USAGE)
        require_own(model, info)
        self.device = distributed.device(device)
        self.model = model.eval().to(self.device)
        views = {"scales": None if scales is None else tuple(scales), "flip": flip}
        self._averages = scales is not None or flip
        chosen = resolve_protocol(protocol, model, info).overridden(**views)
        self.info = replace(info, protocol=chosen)
        self.max_pixels = max_pixels
        self.window = window
        self.min_confidence = checked_confidence(min_confidence)
        self.allow_urls = allow_urls
        self.precision: Precision = precision
        self.dtype = autocast_dtype(precision, self.device)
        self.reads = ModelBands(self.info, bands, value_range)

    @property
    def model(self) -> SETR | ExportedModel:
        """The model; it can be replaced by assignment."""
        return self._model

    @model.setter
    def model(self, model: SETR | ExportedModel) -> None:
        self._model = model
        self.passes: Model = recorded(model)

    @property
    def bands(self) -> Bands | None:
        """What is read of every file; None for RGB."""
        return self.reads.of_files

    @property
    def network(self) -> SETR:
        """The model as a PyTorch network.

        Raises:
            SetrError: the model is an exported file, which gives scores and nothing else.
        """
        if isinstance(self.model, ExportedModel):
            raise SetrError(
                "an exported file gives scores only; load the model it came from", code=USAGE
            )
        return self.model

    @property
    def classes(self) -> Sequence[str]:
        """Class names in id order."""
        return self.info.labels.classes

    def predict(
        self,
        source: Any,
        *,
        bands: tuple[int, ...] = (),
        value_range: tuple[float, float] | None = None,
    ) -> Result:
        """Segment one image.

        Args:
            source: a path; the bytes of a file, or an open one; a PIL image; an array uint8 RGB
                (H, W, 3) or grey (H, W), for a model of C bands (H, W, C); a tensor of these or
                (3, H, W), uint8 or float from 0 to 1; an http(s) address if `allow_urls`. A GeoTIFF
                gives a result with georeference.
            bands: in place of the predictor's own.
            value_range: in place of the predictor's own.

        Raises:
            SetrError: unreadable, too large, a video, or an array of another kind.
        """
        if isinstance(source, str | os.PathLike) and is_video(source):
            raise SetrError(
                f"{os.fspath(source)}: is a video; predict_all gives the result of each frame, "
                "`setr predict` writes its overlay",
                code=USAGE,
            )
        if is_georeferenced(source):
            return self._predict_raster(self.reads.open_raster(source, bands, value_range))
        return self._predict_batch([source], self.reads.chosen(bands, value_range))[0]

    def predict_batch(self, sources: Sequence[Any]) -> list[Result]:
        """Segment images of one size in one pass of the model.

        Args:
            sources: each as `predict` takes it; georeferences are not read.

        Raises:
            SetrError: as `predict`, and for images of several sizes.
        """
        return self._predict_batch(sources, self.bands)

    def _predict_batch(self, sources: Sequence[Any], bands: Bands | None) -> list[Result]:
        limit, urls = self.max_pixels, self.allow_urls
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

    def predict_all(self, *sources: Any) -> Iterator[Result]:
        """Segment many images, one at a time.

        Args:
            sources: files, folders (walked, hidden files left out), globs, videos (frame by frame),
                or anything `predict` takes.

        Raises:
            SetrError: a source that names nothing, or an image that cannot be read.
        """
        for source in sources:
            if isinstance(source, str | os.PathLike) and not is_url(os.fspath(source)):
                for path in _expand(os.fspath(source)):
                    yield self.predict(path)
            else:
                yield self.predict(source)

    @property
    def raster_protocol(self) -> Protocol:
        """How rasters are run: blended windows, never resized."""
        return Protocol().in_windows(self._window)

    @property
    def _window(self) -> int | tuple[int, int]:
        fixed = self.model.form.size if isinstance(self.model, ExportedModel) else None
        trained = max(self.info.crop_size) if self.info.crop_size else WINDOW
        return self.window or fixed or trained

    def _protocol(self, shape: tuple[int, ...]) -> Protocol:
        """The model's own protocol, by windows where asked for or where the image is too large."""
        own = self.info.protocol
        if self.window is None:
            height, width = own.view_size(shape[0], shape[1], max(own.scales))
            if own.window is not None or height * width <= WHOLE_PIXELS:
                return own
        return own.in_windows(self._window)

    def _predict_raster(self, opened: Raster) -> Result:
        with opened as raster:
            if self._averages:
                raise SetrError(
                    f"{raster.name}: pixels of a raster have a size on the ground; load the model "
                    "without scales and flip, or give the pixels as an array"
                )
            H, W = raster.shape
            if self.max_pixels < H * W:
                raise SetrError(
                    f"{raster.name}: {W}x{H} is {H * W:,} pixels, above the limit of "
                    f"{self.max_pixels:,}; raise --max-pixels, or write mask and confidence alone, "
                    "which any size fits"
                )
            image = raster.read((0, H), (0, W))
            has_data = raster.has_data((0, H), (0, W))
        (found,) = self._results([image], self.raster_protocol)
        found.mask[~has_data] = IGNORE
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
        """Apply `predict_mask` or `predict_scores`; returns tensors on the CPU."""
        with self.computing():
            pixels = torch.from_numpy(images[0][None] if len(images) == 1 else np.stack(images))
            x = NormalizedImages(pixels.to(self.device), self.info.mean, self.info.std)
            found = function(self.passes, x, protocol, size=(x.shape[-2], x.shape[-1]))
        return found.cpu() if isinstance(found, torch.Tensor) else tuple(f.cpu() for f in found)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inference mode in the predictor's precision."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None),
        ):
            yield


def load(
    source: str | os.PathLike,
    *,
    device: str | torch.device = "auto",
    revision: str | None = None,
    **options: Any,
) -> Predictor:
    """Load a trained model.

    Args:
        source: a model directory, `owner/name` on the Hub (or `owner/name@revision`), a SETR
            checkpoint (.pth) of the authors or of mmsegmentation, a linear head of DINOv2, the
            http(s) address of one of these files, which torch's cache keeps, or a file of `setr
            export` (.onnx, .xml), whose precision is its own.
        device: `auto`, `cpu`, `cuda`, …
        revision: branch, tag or commit on the Hub.
        options: further keywords of `Predictor`; for a foreign checkpoint also those of
            `foreign.convert_foreign`, for example `num_heads`, or `pretrained` of a linear head.

    Raises:
        SetrError: missing or broken model, or no such device.
    """
    source = at_revision(source, revision)
    if is_url(source):
        source = str(fetched(source))
    if Path(source).suffix in SUFFIXES:
        network, info = open_exported(Path(source), str(device))
        if options.pop("precision", "auto") not in ("auto", network.export["precision"]):
            own = network.export["precision"]
            raise SetrError(
                f"{source}: computes in {own}; leave --precision out, or export again", code=USAGE
            )
        return Predictor(network, info, device="cpu", precision="fp32", **options)
    if Path(source).suffix == ".pt2":
        raise SetrError(
            f"{source}: a torch.export file is for programs without this package; load the model "
            "it was made from, or an .onnx or .xml export",
            code=USAGE,
        )
    if Path(source).is_file():
        given = {key: options.pop(key) for key in FOREIGN_KEYWORDS if key in options}
        model, info = load_foreign(source, **given)
    else:
        model, info = from_pretrained(source)
    return Predictor(model, info, device=device, **options)


def _expand(source: str) -> Iterator[str | np.ndarray]:
    """The images of a file, folder, glob or video."""
    files = expanded(source)
    if not files:
        raise SetrError(f"{source}: no images found here", code=USAGE)
    for path, _ in files:
        if is_video(path):
            yield from frames(path)
        else:
            yield path

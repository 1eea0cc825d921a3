"""A `Result` as the bytes of an answer, in the format a request asks for."""

from __future__ import annotations

import base64
import json
from typing import Any, Literal, NamedTuple

from setr.colours import hex_colour
from setr.prediction.kinds import OPACITY, POLYGON_KINDS, options_of
from setr.result import Result
from setr.serve.limits import Refusal
from setr.serve.regions import large_regions

FormatName = Literal[
    "mask", "ids", "color", "overlay", "confidence", "json", "geojson", "coco_rle", "coco",
    "labelme", "scores",
]  # fmt: skip


class Options(NamedTuple):
    """What a request may say about its answer."""

    opacity: float = OPACITY
    tolerance: float = 0.0
    min_pixels: int = 1
    min_confidence: float = 0.0


class Format(NamedTuple):
    """One kind of answer.

    Attributes:
        media_type: of the body.
        ending: of a file it is saved as.
        says: one line for the documents.
    """

    media_type: str
    ending: str
    says: str


FORMATS: dict[FormatName, Format] = {
    "mask": Format("image/png", ".png", "palette PNG; its indices are class ids"),
    "ids": Format("image/png", "_ids.png", "class ids, grey PNG"),
    "color": Format("image/png", "_color.png", "the mask in class colours, RGB PNG"),
    "overlay": Format("image/png", "_overlay.png", "the image under its class colours, RGB PNG"),
    "confidence": Format(
        "image/png", "_confidence.png", "probability of the chosen class, grey PNG, 255 is 1"
    ),
    "json": Format("application/json", ".json", "shares, and mask and confidence as PNG in base64"),
    "geojson": Format("application/geo+json", ".geojson", "polygons in pixels, y down the image"),
    "coco": Format("application/vnd.coco+json", "_coco.json", "COCO annotations with polygons"),
    "coco_rle": Format(
        "application/vnd.coco.rle+json", "_coco_rle.json", "COCO annotations with run lengths"
    ),
    "labelme": Format("application/vnd.labelme+json", "_labelme.json", "a LabelMe file"),
    "scores": Format(
        "application/x-npz", "_scores.npz", "float16 probabilities (K, H, W) and class names"
    ),
}
"""Answers of `/v1/segment`; of several with one media type, `Accept` means the first."""


def encode(kind: FormatName, name: str, result: Result, options: Options) -> bytes:
    """The body of an answer.

    Args:
        kind: of `FORMATS`.
        name: of the model, as served.

    Raises:
        Refusal: 413, more regions than there is time for.
    """
    if options.min_confidence > 0:
        result = result.with_min_confidence(options.min_confidence)
    if kind == "json":
        return _segmentation(name, result)
    if kind in POLYGON_KINDS:
        result.mask = large_regions(result.mask, len(result.labels.classes), options.min_pixels)
    return result.encode(kind, **options_of(kind, options._asdict()))


def _segmentation(name: str, result: Result) -> bytes:
    """The JSON of `schema.Segmentation`, which the page draws."""
    height, width = result.mask.shape
    labels, share = result.labels, result.share()
    ids = {name: i for i, name in enumerate(labels.classes)}
    answer: dict[str, Any] = {
        "model": name,
        "width": width,
        "height": height,
        **{key: share[key] for key in ("mean_confidence", "unlabelled") if key in share},
        "classes": [
            {"id": ids[n], "name": n, "color": hex_colour(labels.colours[ids[n]]), "share": s}
            for n, s in result.shares.items()
        ],
        "mask": base64.b64encode(result.encode("mask")).decode(),
        "confidence": base64.b64encode(result.encode("confidence")).decode(),
    }
    return json.dumps(answer, ensure_ascii=False).encode()


def choose(name: FormatName | None, accept: str) -> FormatName:
    """The format a request asks for by parameter, else by its `Accept` header, else `mask`.

    Raises:
        Refusal: 406, nothing of what `Accept` lists.
    """
    if name is not None:
        return name
    wanted: list[tuple[float, int, str]] = []
    for part in accept.split(","):
        kind, _, rest = part.partition(";")
        weight = _weight(rest)
        if kind.strip() and weight > 0:
            wanted.append((-weight, len(wanted), kind.strip().lower()))
    for _, _, kind in sorted(wanted):
        for format_name, form in FORMATS.items():
            if kind in ("*/*", form.media_type, form.media_type.partition("/")[0] + "/*"):
                return format_name
    if not wanted:
        return "mask"
    kinds = ", ".join(dict.fromkeys(form.media_type for form in FORMATS.values()))
    raise Refusal(406, "accept", f"this server answers in {kinds}; or give ?format=")


def _weight(parameters: str) -> float:
    """The q of an `Accept` entry; 1 without, 0 where it is no number."""
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0

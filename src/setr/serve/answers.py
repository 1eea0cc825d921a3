"""A `Result` as the bytes of an answer, in the format a request asks for."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from setr.images import encode_png
from setr.predictor import Predictor, Result
from setr.serve.limits import Refusal
from setr.serve.models import summary


class Options(NamedTuple):
    """What a request may say about its answer."""

    opacity: float = 0.55


class Format(NamedTuple):
    """One kind of answer.

    Attributes:
        media_type: of the body.
        ending: of a file it is saved as.
        says: one line for the documents.
        encode: model's name, the model, result, options -> bytes.
    """

    media_type: str
    ending: str
    says: str
    encode: Callable[[str, Predictor, Result, Options], bytes]


def _mask(name: str, predictor: Predictor, result: Result, options: Options) -> bytes:
    return encode_png(result.mask, palette=result.labels.palette)


def _color(name: str, predictor: Predictor, result: Result, options: Options) -> bytes:
    return encode_png(result.color())


def _overlay(name: str, predictor: Predictor, result: Result, options: Options) -> bytes:
    return encode_png(result.overlay(options.opacity))


def _confidence(name: str, predictor: Predictor, result: Result, options: Options) -> bytes:
    return encode_png(np.rint(result.confidence * 255).astype(np.uint8))


def _json(name: str, predictor: Predictor, result: Result, options: Options) -> bytes:
    height, width = result.mask.shape
    return _dump(
        {
            "model": name,
            "width": width,
            "height": height,
            "mean_confidence": float(result.confidence.mean()),
            "classes": summary(predictor, result),
            "mask": base64.b64encode(_mask(name, predictor, result, options)).decode(),
            "confidence": base64.b64encode(_confidence(name, predictor, result, options)).decode(),
        }
    )


def _rle(name: str, predictor: Predictor, result: Result, options: Options) -> bytes:
    classes = [
        {
            **{key: entry[key] for key in ("id", "name")},
            "counts": run_lengths(result.mask, entry["id"]),
        }
        for entry in summary(predictor, result)
    ]
    height, width = result.mask.shape
    return _dump({"model": name, "size": [height, width], "classes": classes})


def run_lengths(mask: np.ndarray, class_id: int) -> list[int]:
    """COCO's uncompressed run lengths of a class: columns first, beginning with pixels outside."""
    inside = np.concatenate([[0], (mask.T.ravel() == class_id).view(np.uint8), [2]])
    starts = np.flatnonzero(np.diff(inside.astype(np.int8)))
    return np.diff(starts, prepend=0).tolist()


def _scores(name: str, predictor: Predictor, result: Result, options: Options) -> bytes:
    import io

    buffer = io.BytesIO()
    names = np.array(result.labels.classes)
    np.savez_compressed(buffer, scores=result.scores.astype(np.float16), classes=names)
    return buffer.getvalue()


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


FORMATS = {
    "mask": Format("image/png", "png", "palette PNG; its indices are class ids", _mask),
    "color": Format("image/png", "png", "the mask in class colours, RGB PNG", _color),
    "overlay": Format("image/png", "png", "the image under its class colours, RGB PNG", _overlay),
    "confidence": Format(
        "image/png", "png", "probability of the chosen class, grey PNG, 255 is 1", _confidence
    ),
    "json": Format(
        "application/json", "json", "shares; mask and confidence as PNG in base64", _json
    ),
    "rle": Format(
        "application/vnd.setr.rle+json", "json", "COCO's run lengths of every class", _rle
    ),
    "scores": Format(
        "application/x-npz", "npz", "float16 probabilities (K, H, W) and class names", _scores
    ),
}
"""Answers of `/v1/segment`; of several with one media type, `Accept` means the first."""


def choose(name: str | None, accept: str) -> str:
    """The format a request asks for by parameter, else by its `Accept` header, else `mask`.

    Raises:
        Refusal: 406, nothing of what `Accept` lists.
    """
    if name is not None:
        return name
    wanted: list[tuple[float, int, str]] = []
    for part in accept.split(","):
        kind, _, rest = part.partition(";")
        weight = 1.0
        for parameter in rest.split(";"):
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
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

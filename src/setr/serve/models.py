"""The models of a server: loading them, checking what each can take, and running them.

Shapes: H x W image in pixels, h x w patch grid, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from setr.ensemble import Ensemble
from setr.errors import SetrError, UsageError
from setr.explain import attention_maps, attention_rollout
from setr.exporting.runtime import ExportedModel
from setr.kernels.recorded import Members
from setr.loading import load
from setr.model_sources import name_of
from setr.pages.figures import make_view
from setr.prediction.passes import attempt, predict_each
from setr.predictor import Predictor, Result
from setr.protocols import WHOLE_PIXELS
from setr.serve.batching import DeadlinePassed
from setr.serve.limits import Limits, Refusal

BATCH_PIXELS = 8_000_000
"""Pixels of all images in one batch; a larger image runs alone."""

Task = Literal["segment", "scores", "attention", "rollout"]


class Key(NamedTuple):
    """Jobs that can share a batch: one task of one model on images of one size."""

    model: str
    task: Task
    height: int
    width: int


class Question(NamedTuple):
    """What a patch attends to: an image, a point in fractions of it, a layer (0 for rollout)."""

    image: np.ndarray
    x: float
    y: float
    layer: int


class Attention(NamedTuple):
    """The answer to a `Question`.

    Attributes:
        values: weights (h, w), for one layer the mean of its heads.
        cell: row and column of the patch asked about.
        covers: height and width in pixels of the image that the grid covers, its padding included.
        heads: heads that were averaged.
    """

    values: np.ndarray
    cell: tuple[int, int]
    covers: tuple[float, float]
    heads: int


class Models:
    """Loaded models by name, in the order given.

    Args:
        sources: `MODEL` or `NAME=MODEL`, as `setr.load` takes them.

    Raises:
        SetrError: a model that cannot be loaded, or two of one name.
    """

    def __init__(self, sources: Sequence[str], limits: Limits, **options: Any) -> None:
        self.limits = limits
        self.by_name: dict[str, Predictor] = {}
        self._running: Callable[[], bool] | None = None
        for source in sources:
            name, path = split_name(source)
            if name in self.by_name:
                raise UsageError(f"{source}: a model is called '{name}' already; give NAME={path}")
            self.by_name[name] = load(path, max_pixels=limits.max_pixels, **options)
        for predictor in self.by_name.values():
            passes: Any = predictor.passes
            predictor.passes = cancellable(passes, self._stop_if_unwanted)
            channels = len(predictor.info.mean)
            predictor.predict(np.zeros((64, 64, channels), np.uint8))  # the first run allocates

    def __getitem__(self, name: str | None) -> tuple[str, Predictor]:
        """A model by name, the first one for None."""
        name = name or next(iter(self.by_name))
        if name not in self.by_name:
            known = ", ".join(self.by_name)
            raise Refusal(404, "unknown_model", f"no model of that name here; there are: {known}")
        return name, self.by_name[name]

    def max_pixels(self, name: str) -> int:
        """Pixels of an image this model takes, if its sides do not differ extremely."""
        predictor = self.by_name[name]
        protocol, patch = predictor.info.protocol, patch_size(predictor)
        if protocol.window or protocol.short_side:
            return self.limits.max_pixels
        whole = min(WHOLE_PIXELS, self.limits.max_patches * patch**2) if patch else WHOLE_PIXELS
        return min(self.limits.max_pixels, int(whole / max(protocol.scales) ** 2))

    def scores(self, name: str, height: int, width: int, task: Task) -> int:
        """Probabilities (K x H x W) that an answer holds; 0 where it has none."""
        return height * width * len(self.by_name[name].classes) if task == "scores" else 0

    def check(self, name: str, height: int, width: int, task: Task) -> None:
        """Refuse what would take too long or too much memory.

        Raises:
            Refusal: 413; 422 for sides the model's protocol cannot take.
        """
        predictor = self.by_name[name]
        protocol, patch = predictor.info.protocol, patch_size(predictor)
        try:
            view = protocol.view_size(height, width, max(protocol.scales))
        except SetrError as error:
            raise Refusal(422, "shape", str(error)) from None
        explains = task in ("attention", "rollout")
        window = protocol.window if protocol.window and not explains else view
        sides = (min(a, b) for a, b in zip(window, view, strict=True))
        patches = int(np.prod([-(-side // patch) for side in sides])) if patch else 0
        size = f"{width}x{height} pixels"
        limit = self.limits.max_patches
        if patches > limit:
            most = limit * patch**2 * height * width // (view[0] * view[1])
            most = min(most, self.max_pixels(name))
            raise Refusal(
                413,
                "too_many_patches",
                f"{size} are {patches:,} patches for {name}, above the limit of {limit:,}; scale "
                f"the image to at most {most:,} pixels",
            )
        if protocol.needs_windows(height, width):
            raise Refusal(
                413,
                "too_many_pixels",
                f"{size} are {view[0] * view[1]:,} for {name}, above the limit of {WHOLE_PIXELS:,} "
                f"of a model without windows; scale the image to at most "
                f"{self.max_pixels(name):,} pixels",
            )
        limit = self.limits.rollout_patches
        if task == "rollout" and patches > limit:
            raise Refusal(
                413,
                "too_many_patches",
                f"{size} are {patches:,} patches for {name}, above the limit of {limit:,} for "
                "rollout; ask for one layer, or scale the image to at most "
                f"{height * width * limit // patches:,} pixels",
            )
        limit = self.limits.max_scores
        if self.scores(name, height, width, task) > limit:
            raise Refusal(
                413,
                "too_many_scores",
                f"{size} and {len(predictor.classes)} classes are above the limit of {limit:,} "
                "scores; ask for a mask, or scale the image down",
            )

    def batch_size(self, key: Key) -> int:
        """Images of a key that run together."""
        if key.task != "segment":
            return 1
        return min(self.limits.batch, max(1, BATCH_PIXELS // (key.height * key.width)))

    def run(self, key: Key, items: Sequence[Any], wanted: Callable[[], bool]) -> Sequence[Any]:
        """Compute a batch; called by one thread alone, because attention hooks into the model.

        Returns:
            Per item a `Result` or an `Attention`, or the `SetrError` it failed with.
        """
        predictor = self.by_name[key.model]
        with self._wanted(wanted):
            if key.task == "segment":
                return predict_each(predictor, items)
            compute = _with_scores if key.task == "scores" else self._attention
            shape = key.height, key.width
            return [attempt(partial(compute, predictor, item), shape) for item in items]

    @torch.inference_mode()
    def _attention(self, predictor: Predictor, question: Question) -> Attention:
        view = make_view(predictor, question.image)
        p = patch_size(predictor)
        H, W = view.pixels.shape[-2:]
        cell = (
            min(int(question.y * H), H - 1) // p if p else 0,
            min(int(question.x * W), W - 1) // p if p else 0,
        )
        model = predictor.network
        self._stop_if_unwanted()
        if question.layer:
            heads = attention_maps(model, view.pixels, [question.layer], cell)[question.layer]
            values, count = heads.mean(axis=0), len(heads)
        else:
            check = self._stop_if_unwanted
            values, count = attention_rollout(model, view.pixels, cell, check=check), 0
        scale = question.image.shape[0] / H, question.image.shape[1] / W
        covers = values.shape[0] * p * scale[0], values.shape[1] * p * scale[1]
        return Attention(values, cell, covers, count)

    @contextmanager
    def _wanted(self, wanted: Callable[[], bool]) -> Iterator[None]:
        self._running = wanted
        try:
            yield
        finally:
            self._running = None

    def _stop_if_unwanted(self) -> None:
        """Called before every forward pass and every block of rollout: does a client still wait?"""
        if self._running is not None and not self._running():
            raise DeadlinePassed


def cancellable(model: Any, check: Callable[[], None]) -> Any:
    """A model, or the models of an ensemble, with a check before every forward pass."""
    if hasattr(model, "members"):
        return Members(tuple(cancellable(member, check) for member in model.members))
    return _Cancellable(model, check)


class _Cancellable:
    """A model with a check before every forward pass; a recorded pass would not call hooks."""

    def __init__(self, model: Any, check: Callable[[], None]) -> None:
        self.model, self.check = model, check

    def coarse(self, images: torch.Tensor) -> Any:
        self.check()
        return self.model.coarse(images)


def split_name(source: str) -> tuple[str, str]:
    """`NAME=MODEL` or a path or Hub name -> (name, what to load)."""
    if Path(source).exists():
        return Path(source).resolve().name, source
    name, equals, path = source.partition("=")
    if equals and name and "/" not in name:
        return name, path
    return name_of(source), source


def patch_size(predictor: Predictor) -> int:
    """Pixels of a patch's side; 0 for models without a transformer."""
    model = predictor.model
    if isinstance(model, ExportedModel):
        return model.patch_size if model.is_transformer else 0
    networks = model.networks if isinstance(model, Ensemble) else [model]
    sizes = [n.encoder.patch_size if hasattr(n.encoder, "vit") else 0 for n in networks]
    return min(sizes)


def num_layers(predictor: Predictor) -> int:
    """Blocks whose attention can be shown; 0 for models without."""
    blocks = getattr(getattr(getattr(predictor.model, "encoder", None), "vit", None), "blocks", ())
    return len(blocks)


def _with_scores(predictor: Predictor, image: np.ndarray) -> Result:
    """A result with its probabilities in float16, as the answer has them."""
    result = predictor.predict(image)
    result.scores = result.scores.astype(np.float16)
    return result

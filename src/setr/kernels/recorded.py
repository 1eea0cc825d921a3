"""A model's forward pass as a CUDA graph, for images of a shape that comes again.

A forward pass of a ViT is 400 to 900 short kernels, which a processor starts more slowly than a GPU
computes them. A graph starts them together: the same kernels, the same numbers. `graphed.py` does
this for training steps.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs says what may be recorded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

PLAIN = 2
"""Passes of a shape before it is recorded, which costs as much as a few of them."""
WARM_UPS = 2
"""Passes on the recording's stream, in which libraries choose kernels and take their memory."""
SHAPES = 8
"""Recordings kept at a time."""
REST = 256
"""Passes without a recording's shape after which another shape may take its place; in a folder of
many sizes they would else replace each other, and each recording costs several passes."""
MAX_PIXELS = 1 << 22
"""Of all images of a pass together; more keep a GPU busy however they are started, and a recording
holds its memory."""


def recorded(model: Any) -> Any:
    """The model, or on a GPU what replays its passes."""
    parameter = next(iter(model.parameters()), None)
    if parameter is None or parameter.device.type != "cuda" or not hasattr(model, "coarse"):
        return model
    return Recorded(model)


class Recorded:
    """Un-resized logits of a model in eval mode, replayed where a shape comes again.

    Threads may share it. Weights may change in place; tensors may move, and everything is then
    recorded anew.

    Args:
        model: has `coarse`, which does everything on the GPU.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.lock = model, threading.Lock()
        self.tensors = [*model.parameters(), *model.buffers()]
        self.places: list[int] = []
        self.passes = 0
        self.seen: dict[tuple, int] = {}
        self.recordings: OrderedDict[tuple, _Recording] = OrderedDict()  # the latest used last
        self.used: dict[tuple, int] = {}  # in which pass
        self.pool: Any = None
        self.possible = True

    def coarse(self, images: Tensor) -> Any:
        """As the model's own."""
        B, _, H, W = images.shape
        if not self.possible or B * H * W > MAX_PIXELS or torch.is_grad_enabled():
            return self.model.coarse(images)
        with self.lock, torch.cuda.device(images.device):
            return self._replayed(images)

    def _replayed(self, images: Tensor) -> Any:
        key = (images.shape, images.dtype, *_autocast())
        places = [tensor.data_ptr() for tensor in self.tensors]
        if places != self.places:
            self.places = places
            self.recordings.clear()
        self.passes += 1
        if self.passes % REST == 0:
            self.seen.clear()  # or it would grow with every size there is
        recording = self.recordings.get(key)
        if recording is None:
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] > PLAIN and self._has_room():
                recording = self._record(key, images)
            if recording is None:
                return self.model.coarse(images)
        self.recordings.move_to_end(key)
        self.used[key] = self.passes
        return recording(images)

    def _has_room(self) -> bool:
        """Whether one more shape may be recorded; the longest unused one makes room if need be."""
        if len(self.recordings) < SHAPES:
            return True
        oldest = next(iter(self.recordings))
        if self.passes - self.used[oldest] <= REST:
            return False
        del self.recordings[oldest], self.used[oldest]
        return True

    def _record(self, key: tuple, images: Tensor) -> _Recording | None:
        """A new recording; none where torch refuses it or no memory is left, then or later."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        try:
            self.recordings[key] = _Recording(self.model, images, self.pool)
        except RuntimeError:  # torch.OutOfMemoryError is one
            self.possible = False
            self.recordings.clear()
            torch.cuda.empty_cache()
            return None
        return self.recordings[key]


class _Recording:
    """One graph with its input and output, whose memory the next replay writes again."""

    def __init__(self, model: Any, images: Tensor, pool: Any) -> None:
        self.images, self.graph = images.clone(), torch.cuda.CUDAGraph()
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        enabled, dtype = _autocast()
        # a cast that autocast keeps would be gone when the graph is replayed
        with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    model.coarse(self.images)
            current.wait_stream(side)
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                self.output = model.coarse(self.images)

    def __call__(self, images: Tensor) -> Any:
        self.images.copy_(images)
        self.graph.replay()
        return self.output._replace(logits=self.output.logits.clone())


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

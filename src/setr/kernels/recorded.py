"""A model's forward pass as a CUDA graph, for images of a shape that comes again.

A forward pass of a ViT is 400 to 900 short kernels, which a processor starts more slowly than a GPU
computes them. A graph starts them together: the same kernels, the same numbers. `graphed.py` does
this for training steps.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from setr.kernels.capture import Staying, capture, warming_stream
from setr.layers.recompute import offer
from setr.processes.faults import is_out_of_memory

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

_LOCK = threading.RLock()
"""Of all models: torch records one graph at a time in a process."""
_LAST: dict[torch.device, Any] = {}
"""The stream of the last replay on each GPU."""


def recorded(model: Any) -> Any:
    """The model, or on a GPU what replays its passes."""
    parameter = next(iter(model.parameters()), None)
    if parameter is None or parameter.device.type != "cuda" or not hasattr(model, "coarse"):
        return model
    return Recorded(model)


class Recorded:
    """Un-resized logits of a model in eval mode, replayed where a shape comes again.

    Threads may share it. Weights may change in place; where tensors or modules are replaced or move
    everything is recorded anew, and while somebody's hooks are on the model its passes are plain.

    Args:
        model: has `coarse`, which does everything on the GPU.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.parts = model, _Parts(model)
        self.passes = 0
        self.seen: dict[tuple, int] = {}
        self.recordings: OrderedDict[tuple, _Recording] = OrderedDict()  # the latest used last
        self.used: dict[tuple, int] = {}  # in which pass
        self.place: tuple[Any, Any] | None = None  # pool of memory and stream of the recordings
        self.possible = True

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy records for itself."""
        return recorded, (self.model,)

    def coarse(self, images: Tensor) -> Any:
        """As the model's own."""
        B, _, H, W = images.shape
        # tensors of inference mode cannot be written again outside it
        if not self.possible or B * H * W > MAX_PIXELS or not torch.is_inference_mode_enabled():
            return self._plain(images)
        with _LOCK, torch.cuda.device(images.device):
            return self._replayed(images)

    def _plain(self, images: Tensor) -> Any:
        try:
            return self.model.coarse(images)
        except RuntimeError as error:
            if not self.recordings or not is_out_of_memory(error):
                raise
        with _LOCK:
            self._give_up()  # the memory of recordings
        return self.model.coarse(images)

    def _replayed(self, images: Tensor) -> Any:
        if not self.parts.are_as_before():
            self.parts = _Parts(self.model)
            self._forget()
        if self.parts.hooked:
            return self._plain(images)
        key = (images.shape, images.dtype, *_autocast())
        self.passes += 1
        if self.passes % REST == 0:
            self.seen.clear()  # or it would grow with every size there is
        recording = self.recordings.get(key)
        if recording is None:
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] > PLAIN and self._has_room():
                recording = self._record(key, images)
            if recording is None:
                return self._plain(images)
        self.recordings.move_to_end(key)
        self.used[key] = self.passes
        _in_order(images.device)
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
        # not torch's own stream, which is on the GPU that recorded first: what another GPU does is
        # not recorded there; nor one of two models, as their graphs share the stream's workspaces
        if self.place is None:
            self.place = torch.cuda.graph_pool_handle(), torch.cuda.Stream(images.device)
        try:
            self.recordings[key] = _Recording(self.model, images, *self.place)
        except RuntimeError:  # torch.OutOfMemoryError is one
            self._give_up()
            return None
        return self.recordings[key]

    def _forget(self) -> None:
        self.recordings.clear()
        self.used.clear()
        self.place = None  # torch lets no graph into a pool that all others have left

    def _give_up(self) -> None:
        self.possible = False
        self._forget()
        with contextlib.suppress(RuntimeError):  # where a recording was broken off
            torch.cuda.empty_cache()


class _Parts:
    """What a recording depends on: a model's modules, their hooks, and where their tensors lie.

    Every pass asks, so a question costs a few hundredths of a millisecond.

    Attributes:
        hooked: whether hooks are there that a replay would pass over.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        hooks: list[Any] = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks)]
        held: list[Any] = [d for m in modules for d in (m._modules, m._parameters, m._buffers)]
        self.hooked = any(hook is not offer for d in hooks for hook in d.values())
        self.full = [d for d in (*hooks, *held) if d]
        self.empty = [d for d in (*hooks, *held) if not d]
        self.contents = self._contents()
        self.tensors = [*model.parameters(), *model.buffers()]
        self.places = self._places()

    def are_as_before(self) -> bool:
        """Whether nothing was added, taken away, replaced or moved."""
        now = self._contents()
        same = len(now) == len(self.contents) and all(map(is_, now, self.contents))
        return same and not any(self.empty) and self._places() == self.places

    def _contents(self) -> list[Any]:
        return [part for found in self.full for part in found.values()]

    def _places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors]


class _Recording:
    """One graph with its input and output, whose memory the next replay writes again."""

    def __init__(self, model: Any, images: Tensor, pool: Any, stream: Any) -> None:
        self.images, self.graph = images.clone(), torch.cuda.CUDAGraph()
        current, warming = torch.cuda.current_stream(), warming_stream(images.device)
        enabled, dtype = _autocast()
        # a cast that autocast keeps would be gone when the graph is replayed
        with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
            warming.wait_stream(current)
            with torch.cuda.stream(warming):
                with Staying():
                    model.coarse(self.images)
                for _ in range(WARM_UPS - 1):
                    model.coarse(self.images)
            current.wait_stream(warming)
            with capture(self.graph, pool, stream):
                self.output = model.coarse(self.images)

    def __call__(self, images: Tensor) -> Any:
        self.images.copy_(images)
        self.graph.replay()
        return self.output._replace(logits=self.output.logits.clone())


def _in_order(device: torch.device) -> None:
    """Let the current stream wait for the last replay, beside which none may run."""
    stream = torch.cuda.current_stream()
    if _LAST.setdefault(device, stream) != stream:
        stream.wait_stream(_LAST[device])
        _LAST[device] = stream


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

"""A model's forward pass as CUDA graphs, one for each image shape that recurs.

A forward pass of a ViT launches 400 to 900 short kernels, which takes a CPU longer than a GPU takes
to compute them. A graph launches them together: the same kernels, the same results. `graphed.py`
does this for training steps.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from setr.kernels.capture import Staying, capture, warming_stream
from setr.layers.recompute import offer
from setr.processes.faults import is_out_of_memory

PLAIN = 2
"""Eager passes of a shape before it is captured, since a capture costs as much as a few passes."""
WARM_UPS = 2
"""Passes before a capture, in which libraries choose kernels and allocate workspaces."""
SHAPES = 8
"""Maximum number of graphs kept."""
REST = 256
"""Passes for which a graph must be unused before another shape may replace it; otherwise the graphs
would replace each other in a folder of many image sizes, and each capture costs several passes."""
MAX_PIXELS = 1 << 22
"""Maximum number of pixels in a batch; larger ones keep a GPU busy anyway, and a graph reserves its
memory."""

_LOCK = threading.RLock()
"""Shared by all models: torch captures one graph at a time in a process."""
_LAST: dict[torch.device, Any] = {}
"""The stream of the last replay on each GPU."""


def recorded(model: Any) -> Any:
    """Wrap a model on a GPU in `Recorded`, or each of an ensemble; return others as they are."""
    if hasattr(model, "members"):
        return Members(tuple(map(recorded, model.members)))
    parameter = next(iter(model.parameters()), None)
    if parameter is None or parameter.device.type != "cuda" or not hasattr(model, "coarse"):
        return model
    return Recorded(model)


class Members(NamedTuple):
    """The models of an ensemble, as inference calls them."""

    members: tuple[Any, ...]


class Recorded:
    """A model in eval mode whose `coarse` replays CUDA graphs for shapes that recur.

    Thread-safe. Weights may change in place; if tensors or modules are replaced or moved, all
    graphs are captured anew, and while the model has foreign hooks its passes run eagerly.

    Args:
        model: has a method `coarse` that runs entirely on the GPU.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.parts = model, _Parts(model)
        self.passes = 0
        self.counts: dict[tuple, int] = {}
        self.recordings: OrderedDict[tuple, _Recording] = OrderedDict()  # least recently used first
        self.last_used: dict[tuple, int] = {}  # number of the last pass that used it
        self.pool_and_stream: tuple[Any, Any] | None = None  # of all captures
        self.enabled = True

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy starts without graphs."""
        return recorded, (self.model,)

    def coarse(self, images: Tensor) -> Any:
        """As `model.coarse`."""
        B, _, H, W = images.shape
        # inference tensors cannot be overwritten outside inference mode
        if not self.enabled or B * H * W > MAX_PIXELS or not torch.is_inference_mode_enabled():
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
            self._give_up()  # to free the memory of the graphs
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
            self.counts.clear()  # else it would grow with every image size
        recording = self.recordings.get(key)
        if recording is None:
            self.counts[key] = self.counts.get(key, 0) + 1
            if self.counts[key] > PLAIN and self._has_room():
                recording = self._record(key, images)
            if recording is None:
                return self._plain(images)
        self.recordings.move_to_end(key)
        self.last_used[key] = self.passes
        _in_order(images.device)
        return recording(images)

    def _has_room(self) -> bool:
        """Whether another shape may be captured; drops the least recently used graph if needed."""
        if len(self.recordings) < SHAPES:
            return True
        oldest = next(iter(self.recordings))
        if self.passes - self.last_used[oldest] <= REST:
            return False
        del self.recordings[oldest], self.last_used[oldest]
        return True

    def _record(self, key: tuple, images: Tensor) -> _Recording | None:
        """Capture a shape; if that fails or memory runs out, return None and capture no more."""
        # not torch's default capture stream, which is on the GPU of the first capture and captures
        # no other GPU's work; nor one shared by models, as graphs share the stream's workspaces
        if self.pool_and_stream is None:
            self.pool_and_stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(images.device)
        try:
            self.recordings[key] = _Recording(self.model, images, *self.pool_and_stream)
        except RuntimeError:  # torch.OutOfMemoryError is one
            self._give_up()
            return None
        return self.recordings[key]

    def _forget(self) -> None:
        self.recordings.clear()
        self.last_used.clear()
        self.pool_and_stream = None  # torch does not reuse a pool that all graphs have left

    def _give_up(self) -> None:
        self.enabled = False
        self._forget()
        with contextlib.suppress(RuntimeError):  # after a failed capture
            torch.cuda.empty_cache()


class _Parts:
    """What graphs depend on: a model's modules, their hooks, and the addresses of their tensors.

    Checked in every pass, which takes a few hundredths of a millisecond.

    Attributes:
        hooked: whether there are hooks, which a replay would not call.
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
        """Whether nothing was added, removed, replaced or moved."""
        now = self._contents()
        same = len(now) == len(self.contents) and all(map(is_, now, self.contents))
        return same and not any(self.empty) and self._places() == self.places

    def _contents(self) -> list[Any]:
        return [part for found in self.full for part in found.values()]

    def _places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors]


class _Recording:
    """A graph with its input and output, which the next replay overwrites."""

    def __init__(self, model: Any, images: Tensor, pool: Any, stream: Any) -> None:
        self.images, self.graph = images.clone(), torch.cuda.CUDAGraph()
        current, warming = torch.cuda.current_stream(), warming_stream(images.device)
        enabled, dtype = _autocast()
        # weights in autocast's cache would be freed before the graph is replayed
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
    """Make the current stream wait for the last replay, since replays must not overlap."""
    stream = torch.cuda.current_stream()
    if _LAST.setdefault(device, stream) != stream:
        stream.wait_stream(_LAST[device])
        _LAST[device] = stream


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

"""What every recording of a CUDA graph needs: a look at the work before, and order after a failure.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs says what may be recorded.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@functools.cache
def warming_stream(device: torch.device) -> Any:
    """A GPU's stream for passes before a recording; libraries keep a workspace for every stream."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def capture(graph: Any, pool: Any, stream: Any) -> Iterator[None]:
    """What is done inside becomes a graph, or all is as before.

    Where torch breaks a recording off, its allocator takes it to go on and keeps cached memory even
    from a pass that needs it, the broken graph's stream stays this thread's, and (torch 2.11) its
    generator refuses to draw anywhere else: training with random depth would end at its next step.

    Args:
        graph: a new `torch.cuda.CUDAGraph`.
        pool: of its memory, from `torch.cuda.graph_pool_handle`.
        stream: on its GPU, not the current one.
    """
    try:
        # other threads (serving, loading) may allocate and wait meanwhile
        with (
            torch.cuda.stream(torch.cuda.current_stream(stream.device)),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            yield
    except RuntimeError:
        _put_back(pool, stream)
        raise


def _put_back(pool: Any, stream: Any) -> None:
    """Do what torch leaves undone where the end of a recording fails."""
    with contextlib.suppress(RuntimeError, AttributeError):  # it did not fail, or it has gone
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
        torch._C._cuda_releasePool(stream.device.index, pool)
    another = torch.cuda.CUDAGraph()  # its end is the generator's, too
    with contextlib.suppress(RuntimeError), torch.cuda.stream(stream), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        another.capture_begin(capture_error_mode="thread_local")
        another.capture_end()


class Staying(TorchDispatchMode):
    """Refuses what no graph can record: copies between devices, and waiting for values.

    Better found before a recording than by one that is broken off.
    """

    COPIES = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_)
    WAITS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found, called = func(*args, **(kwargs or {})), func.overloadpacket
        waits = called is torch.ops.aten.is_nonzero or not self.WAITS.isdisjoint(func.tags)
        if called is torch.ops.aten.index:  # by numbers, or by a mask, whose places are counted
            waits = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        devices = {x.device for x in (*args, found) if isinstance(x, Tensor)}
        if waits or (called in self.COPIES and len(devices) > 1):
            raise RuntimeError(f"{func} cannot be recorded")
        return found

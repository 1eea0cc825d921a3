"""Capture of CUDA graphs: checks before, and cleaning up after a failure.

Restrictions on captured work: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@functools.cache
def warming_stream(device: torch.device) -> Any:
    """The stream of a GPU for warm-up passes; shared, as libraries keep a workspace per stream."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def capture(graph: Any, pool: Any, stream: Any) -> Iterator[None]:
    """Context manager that captures its work in a graph; restores torch's state if that fails.

    When a capture fails, torch's allocator acts as if it were still running and does not release
    cached memory even to a pass that needs it, the graph's stream remains the current one, and
    (torch 2.11) the random generator refuses to be used elsewhere: training with drop path would
    fail at its next step.

    Args:
        graph: a new `torch.cuda.CUDAGraph`.
        pool: memory pool of the graph, from `torch.cuda.graph_pool_handle`.
        stream: a stream on its GPU other than the current one.
    """
    try:
        # thread_local: other threads (serving, loading) may allocate and synchronise meanwhile
        with (
            torch.cuda.stream(torch.cuda.current_stream(stream.device)),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            yield
    except RuntimeError:
        _put_back(pool, stream)
        raise


def _put_back(pool: Any, stream: Any) -> None:
    """Reset what torch leaves behind when the end of a capture fails."""
    # the capture had ended after all, or torch has removed the functions
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
        torch._C._cuda_releasePool(stream.device.index, pool)
    another = torch.cuda.CUDAGraph()  # the end of this capture also resets the generator
    with contextlib.suppress(RuntimeError), torch.cuda.stream(stream), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        another.capture_begin(capture_error_mode="thread_local")
        another.capture_end()


class Staying(TorchDispatchMode):
    """Raises an error for operations that cannot be captured: copies between devices, and syncs.

    A failed capture would be harder to recover from. Functions of `torch.compile` run eagerly
    inside: a call under a dispatch mode would stop their use for good (torch 2.11 and 2.13).
    """

    COPIES = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_)
    WAITS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})

    def __enter__(self) -> Any:
        self.eager = contextlib.ExitStack()
        if "torch._dynamo" in sys.modules:  # else nothing is compiled; its import takes a second
            self.eager.enter_context(torch.compiler.set_stance("force_eager"))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.eager.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found, called = func(*args, **(kwargs or {})), func.overloadpacket
        waits = called is torch.ops.aten.is_nonzero or not self.WAITS.isdisjoint(func.tags)
        if called is torch.ops.aten.index:  # a boolean mask needs a sync
            waits = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        devices = {x.device for x in (*args, found) if isinstance(x, Tensor)}
        if waits or (called in self.COPIES and len(devices) > 1):
            raise RuntimeError(f"{func} cannot be recorded")
        return found

"""A forward and backward pass as one CUDA graph.

A training step of a ViT-S launches 1200 to 1450 kernels, which takes a CPU two to four times as
long as an H200 takes to compute them (docs/performance.md). A graph captures them once and launches
all of them together: the same kernels with the same results. Random numbers still come from the
generator's seed and offset at each replay.

Graphs require constant shapes and no synchronisation with the GPU:
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from setr.kernels.capture import Staying, capture, warming_stream

WARM_UPS = 3
"""Passes before capture, in which libraries choose kernels and allocate their workspaces."""

Work = Callable[[Tensor, Tensor], dict[str, Tensor]]


class Graphed:
    """Captures `work` in a CUDA graph at the first call, and replays it.

    Args:
        work: takes a batch on the GPU, computes the gradients of the model's weights, and returns
            detached tensors; runs entirely on the GPU.
        model: the model whose weights and buffers it uses; their addresses must not change.
    """

    def __init__(self, work: Work, model: nn.Module) -> None:
        self.work, self.model = work, model
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The outputs of `work`, valid until the next call; all batches have the same shape."""
        if self.graph is None:
            self._record(images, masks)
        for place, given in zip(self.inputs, (images, masks), strict=True):
            place.copy_(given)
        self.graph.replay()  # type: ignore[union-attr]
        for weight, gradient in self.gradients:  # zero_grad(set_to_none=True) has dropped them
            weight.grad = gradient
        return self.outputs

    def release(self) -> None:
        """Free the memory of the graph; the next call captures it again."""
        if self.graph is not None:
            self.graph = None
            del self.inputs, self.outputs, self.gradients

    def _record(self, images: Tensor, masks: Tensor) -> None:
        self.inputs = images.clone(), masks.clone()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # torch's default capture stream is on the GPU of the first capture and works on no other
        self.stream = self.stream or torch.cuda.Stream(images.device)
        with _unchanged(self.model, images.device):
            self._warm_up(warming_stream(images.device))
            with capture(graph, pool, self.stream):
                self.outputs = self.work(*self.inputs)
        self.gradients = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
        self.graph = graph

    def _warm_up(self, side: torch.cuda.Stream) -> None:
        """Run a few passes; the capture allocates the gradients anew, in the graph's memory."""
        current = torch.cuda.current_stream(side.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for number in range(WARM_UPS):
                self.model.zero_grad(set_to_none=True)
                # the first pass creates cached tensors, and may copy them to the GPU
                with Staying() if number else contextlib.nullcontext():
                    self.work(*self.inputs)
        current.wait_stream(side)
        self.model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Context manager that restores the model's buffers and the random generator at its end."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    random = torch.cuda.get_rng_state(device)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in before:
                buffer.copy_(kept)
        torch.cuda.set_rng_state(random, device)

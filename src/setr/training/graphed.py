"""A forward and backward pass as one CUDA graph.

A training step of a ViT-S is 1200 to 1450 kernels; a processor takes two to four times as long to
start them as an H200 to compute them (docs/performance.md). A graph records them once and starts
them together. They are the same kernels with the same numbers; random ones come from the
generator's seed and offset at each replay.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs says what may be recorded: shapes
that stay, nothing that waits for the GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from setr.kernels.capture import Staying, capture, warming_stream

WARM_UPS = 3
"""Passes before recording, in which libraries choose kernels and allocate their workspaces."""

Work = Callable[[Tensor, Tensor], dict[str, Tensor]]


class Graphed:
    """Calls `work` once to record it, and then replays the recording.

    Args:
        work: takes a batch on the GPU, gives the model's weights their gradients, and returns
            detached tensors; everything it does happens on the GPU.
        model: whose weights and buffers it uses; they must stay where they are in memory.
    """

    def __init__(self, work: Work, model: nn.Module) -> None:
        self.work, self.model = work, model
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """What `work` returns for this batch, until the next call; all batches have one shape."""
        if self.graph is None:
            self._record(images, masks)
        for place, given in zip(self.inputs, (images, masks), strict=True):
            place.copy_(given)
        self.graph.replay()  # type: ignore[union-attr]
        for weight, gradient in self.gradients:  # which the optimiser's caller may have dropped
            weight.grad = gradient
        return self.outputs

    def release(self) -> None:
        """Give the memory of the recording back, for other work; the next call records again."""
        if self.graph is not None:
            self.graph = None
            del self.inputs, self.outputs, self.gradients

    def _record(self, images: Tensor, masks: Tensor) -> None:
        self.inputs = images.clone(), masks.clone()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # torch's own stream is on the GPU that recorded first, and does not record another's work
        self.stream = self.stream or torch.cuda.Stream(images.device)
        with _unchanged(self.model, images.device):
            self._warm_up(warming_stream(images.device))
            with capture(graph, pool, self.stream):
                self.outputs = self.work(*self.inputs)
        self.gradients = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
        self.graph = graph

    def _warm_up(self, side: torch.cuda.Stream) -> None:
        """A few passes; the gradients are then made anew, in the graph's own memory."""
        current = torch.cuda.current_stream(side.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for number in range(WARM_UPS):
                self.model.zero_grad(set_to_none=True)
                # the first makes what is kept for all steps, and may copy it
                with Staying() if number else contextlib.nullcontext():
                    self.work(*self.inputs)
        current.wait_stream(side)
        self.model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards batch norms have counted nothing, and the generator has drawn nothing."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    random = torch.cuda.get_rng_state(device)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in before:
                buffer.copy_(kept)
        torch.cuda.set_rng_state(random, device)

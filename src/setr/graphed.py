"""A forward and backward pass as one CUDA graph.

A training step of a ViT-S launches 1200 to 1450 kernels, which a processor takes two to four times
as long to start as an H200 to compute (benchmarks/gpu_check.py, `speed`). A graph records them once
and starts them together. They are the same kernels with the same numbers; random ones come from the
generator's seed and offset at each replay.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs says what may be recorded: shapes
that stay, nothing that waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

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

    def _record(self, images: Tensor, masks: Tensor) -> None:
        self.inputs = images.clone(), masks.clone()
        model, device = self.model, images.device
        before = [(buffer, buffer.clone()) for buffer in model.buffers()]
        random = torch.cuda.get_rng_state(device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                model.zero_grad(set_to_none=True)
                self.work(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        model.zero_grad(set_to_none=True)  # gradients are then made anew, in the graph's memory
        graph = torch.cuda.CUDAGraph()
        # the loader's thread pins memory meanwhile, which may not end the recording
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.outputs = self.work(*self.inputs)
        self.gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        with torch.no_grad():
            for buffer, kept in before:  # batch norms have counted the passes before
                buffer.copy_(kept)
        torch.cuda.set_rng_state(random, device)
        self.graph = graph

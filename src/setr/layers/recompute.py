"""Recompute cheap activations in the backward pass instead of saving them.

A transformer block saves the inputs of its linear layers. Some of them follow by one cheap
operation from a tensor that is saved anyway: the output of the MLP's activation, which is the
widest tensor of the block, and the outputs of the norms. They are a quarter of what a ViT block
saves; recomputing them takes less than one percent of a step. Values and gradients are
bit-identical. The same is done for the norm at the start of each head.

Gradient checkpointing (`set_grad_checkpointing`) saves more memory at the cost of a second forward
pass, and replaces this where it is on. Where it runs batch norms again, as in a ResNet, their
running statistics must not move a second time (`still_statistics`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from setr.layers.cpu_blocks import wrap_forward
from setr.layers.products import no_autocast

CHEAP = (nn.GELU, nn.SiLU, nn.LayerNorm)
"""Modules whose outputs are recomputed."""


class _Recomputed(NamedTuple):
    """What replaces a saved tensor: the module and input that it is recomputed from."""

    module: nn.Module
    input: Tensor
    version: int
    shape: torch.Size

    def compute(self) -> Tensor:
        if self.input._version != self.version:
            raise RuntimeError(
                f"the input of {type(self.module).__name__} was changed in place before the "
                "backward pass"
            )
        with torch.no_grad(), no_autocast(self.input.device):
            output: Tensor = self.module.forward(self.input)
        return output if output.shape == self.shape else output.view(self.shape)


class _SavedTensors(saved_tensors_hooks):
    """Hooks for one forward pass of a block, which save no outputs of `CHEAP` modules."""

    def __init__(self) -> None:
        super().__init__(self.pack, lambda x: x.compute() if type(x) is _Recomputed else x)
        # by storage; outputs are held until the block ends, so that no storage is reused meanwhile
        self.cheap: dict[int, tuple[Tensor, nn.Module, Tensor]] = {}

    def offer(self, module: nn.Module, input: Tensor, output: Tensor) -> None:
        """Register an output that can be recomputed."""
        if output.dtype is input.dtype:
            self.cheap[output.untyped_storage()._cdata] = output, module, input.detach()

    def pack(self, tensor: Tensor) -> Tensor | _Recomputed:
        """What autograd saves for a tensor."""
        found = self.cheap.get(tensor.untyped_storage()._cdata)
        if found is None:
            return tensor
        output, module, input = found
        same_layout = tensor.shape == output.shape and tensor.stride() == output.stride()
        whole = same_layout or (tensor.numel() == output.numel() and tensor.is_contiguous())
        if not whole or tensor.dtype is not output.dtype or output._version:
            return tensor
        return _Recomputed(module, input, input._version, tensor.shape)


class _Current(threading.local):
    """Hooks of the block that runs in this thread; None outside, or if the block saves all."""

    saved: _SavedTensors | None = None


_CURRENT = _Current()


def recompute_cheap(block: nn.Module) -> None:
    """Recompute the outputs of a block's, or a head's, `CHEAP` modules in the backward pass.

    Parameters, their names and copies of the block do not change. A block saves everything while
    its attribute `keeps_all` is true, while it is compiled, and where other saved-tensor hooks are
    active.
    """
    wrap_forward(block, _hooks_active)
    for module in block.modules():
        if isinstance(module, CHEAP):
            module.register_forward_hook(offer)


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Context manager for a backward pass with checkpointing: running statistics do not move.

    Not by `track_running_stats`: without it torch saves other tensors, which checkpointing refuses.
    """
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    norms = [m for m in model.modules() if isinstance(m, kinds)]
    momenta = [norm.momentum for norm in norms]
    counts = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
    kept = [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, value in zip(counts, kept, strict=True):
            count.copy_(value)


@contextmanager
def _hooks_active(block: nn.Module) -> Iterator[None]:
    outer = _CURRENT.saved
    keeps_all = getattr(block, "keeps_all", False) or _other_hooks_active()
    _CURRENT.saved = saved = _SavedTensors() if torch.is_grad_enabled() and not keeps_all else None
    try:
        with saved or nullcontext():
            yield
    finally:
        _CURRENT.saved = outer
        if saved is not None:
            saved.cheap.clear()


def _other_hooks_active() -> bool:
    """Whether there are other saved-tensor hooks (checkpointing, offloading) or none are allowed.

    torch calls only the innermost hooks.
    """
    autograd = torch._C._autograd
    if autograd._saved_tensors_hooks_get_disabled_error_message() is not None:  # torch.func
        return True
    return autograd._top_saved_tensors_default_hooks(True) is not None


def offer(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """Forward hook of the `CHEAP` modules: registers the output with the running block."""
    if torch.compiler.is_compiling():
        return
    saved = _CURRENT.saved
    if saved is not None:
        saved.offer(module, inputs[0], output)

"""Activations that cost next to nothing are computed again in the backward pass, not kept.

A transformer block keeps the inputs of its linear layers. Two kinds of them are one pointwise step
away from a tensor that is kept anyway: the output of the MLP's activation, the widest map of the
block, and the outputs of the norms. They are a quarter of what a ViT block keeps; to compute them
again takes less than one percent of a step. Values and gradients are equal to the bit. The same
holds for the norm each head starts with.

Checkpointing (`set_grad_checkpointing`) goes further, at the price of a second forward pass, and
takes over where it is on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from setr.layers.cpu_blocks import enclose
from setr.layers.products import no_autocast

CHEAP = (nn.GELU, nn.SiLU, nn.LayerNorm)
"""Modules whose outputs are not kept."""


class _Recipe(NamedTuple):
    """How a tensor is made again."""

    module: nn.Module
    input: Tensor
    version: int
    shape: torch.Size

    def cook(self) -> Tensor:
        if self.input._version != self.version:
            raise RuntimeError(
                f"the input of {type(self.module).__name__} was changed in place before the "
                "backward pass"
            )
        with torch.no_grad(), no_autocast(self.input.device):
            made: Tensor = self.module.forward(self.input)
        return made if made.shape == self.shape else made.view(self.shape)


class _Kept(saved_tensors_hooks):
    """What one forward pass of a block keeps: recipes in place of cheap outputs."""

    def __init__(self) -> None:
        super().__init__(self.pack, lambda kept: kept.cook() if type(kept) is _Recipe else kept)
        # by storage; the outputs themselves stay until the block ends, so that none is reused
        self.cheap: dict[int, tuple[Tensor, nn.Module, Tensor]] = {}

    def offer(self, module: nn.Module, input: Tensor, output: Tensor) -> None:
        """An output that need not be kept."""
        if output.dtype is input.dtype:
            self.cheap[output.untyped_storage()._cdata] = output, module, input.detach()

    def pack(self, tensor: Tensor) -> Tensor | _Recipe:
        """What autograd keeps for a tensor."""
        found = self.cheap.get(tensor.untyped_storage()._cdata)
        if found is None:
            return tensor
        output, module, input = found
        itself = tensor.shape == output.shape and tensor.stride() == output.stride()
        same = itself or (tensor.numel() == output.numel() and tensor.is_contiguous())
        if not same or tensor.dtype is not output.dtype or output._version:
            return tensor
        return _Recipe(module, input, input._version, tensor.shape)


class _Running(threading.local):
    """What the block that computes in this thread keeps; None outside, and where one keeps all."""

    kept: _Kept | None = None


_RUNNING = _Running()


def recompute_cheap(block: nn.Module) -> None:
    """Let a block, or a head, keep recipes for the outputs of its `CHEAP` modules.

    Parameters, names and copies stay what they are. A block whose attribute `keeps_all` is true, or
    that is being compiled, keeps everything; so do all where somebody else decides what is kept.
    """
    enclose(block, _keeping)
    for module in block.modules():
        if isinstance(module, CHEAP):
            module.register_forward_hook(offer)


@contextmanager
def _keeping(block: nn.Module) -> Iterator[None]:
    outer = _RUNNING.kept
    keeps_all = getattr(block, "keeps_all", False) or _others_decide()
    _RUNNING.kept = kept = _Kept() if torch.is_grad_enabled() and not keeps_all else None
    try:
        with kept or nullcontext():
            yield
    finally:
        _RUNNING.kept = outer
        if kept is not None:
            kept.cheap.clear()


def _others_decide() -> bool:
    """Whether saved tensors go to other hooks (checkpointing, offloading) or may have none.

    torch asks only the hooks entered last. Before 2.8 it does not tell that there are others.
    """
    autograd = torch._C._autograd
    if autograd._saved_tensors_hooks_get_disabled_error_message() is not None:  # torch.func
        return True
    top = getattr(autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(True) is not None


def offer(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """The hook of the `CHEAP` modules: tells the block that runs of an output."""
    if torch.compiler.is_compiling():
        return
    kept = _RUNNING.kept
    if kept is not None:
        kept.offer(module, inputs[0], output)

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
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

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
        device = self.input.device.type
        plain = nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
        with torch.no_grad(), plain:
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
    """The blocks that are computing in this thread, outer first; None where one keeps all."""

    def __init__(self) -> None:
        self.blocks: list[_Kept | None] = []


_RUNNING = _Running()


def recompute_cheap(block: nn.Module) -> None:
    """Let a block, or a head, keep recipes for the outputs of its `CHEAP` modules.

    Hooks alone: parameters, names and copies stay what they are. A block whose attribute
    `keeps_all` is true, or that is being compiled, keeps everything.
    """
    block.register_forward_pre_hook(_enter)
    block.register_forward_hook(_leave, always_call=True)
    for module in block.modules():
        if isinstance(module, CHEAP):
            module.register_forward_hook(_offer)


def _enter(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    if torch.compiler.is_compiling():
        return
    wanted = torch.is_grad_enabled() and not getattr(block, "keeps_all", False)
    kept = _Kept() if wanted else None
    _RUNNING.blocks.append(kept)
    if kept is not None:
        kept.__enter__()


def _leave(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    kept = _RUNNING.blocks.pop()
    if kept is not None:
        kept.__exit__()
        kept.cheap.clear()


def _offer(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if torch.compiler.is_compiling() or not _RUNNING.blocks:
        return
    kept = _RUNNING.blocks[-1]
    if kept is not None:
        kept.offer(module, inputs[0], output)

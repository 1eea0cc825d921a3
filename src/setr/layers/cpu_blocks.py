"""Encoder blocks on CPUs: linear layers and attention by faster routes to the same values.

In fp32, linear layers and attention multiply with oneDNN where MKL is slow (`products.py`); under
bf16 autocast attention runs as plain products (`attention.py`). The blocks stay timm's: while one
of them computes, two of torch's functions are answered here, and everything else is left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from setr.layers.attention import attention
from setr.layers.products import linear, onednn_is_faster, worth_it


class _Route(TorchFunctionMode):
    """Answers the calls of two functions that fit."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Every torch call made while the mode is on comes through here."""
        kwargs = kwargs or {}
        if func is F.linear and not _in_bf16():
            x, weight, bias = _linear_arguments(*args, **kwargs)
            if worth_it(x, weight):
                return linear(x, weight, bias)
        if func is F.scaled_dot_product_attention and _fits(*args, **kwargs):
            return attention(*args)
        return func(*args, **kwargs)


_ROUTE = _Route()


def _linear_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _fits(
    *args: Any, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **kwargs: Any
) -> bool:
    plain = len(args) == 3 and attn_mask is None and not dropout_p and not any(kwargs.values())
    if not plain or args[0].ndim != 4:
        return False
    q, k, _ = args
    return _in_bf16() or worth_it(q[0, 0], k[0, 0])


def _in_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16


def speed_up(block: nn.Module) -> None:
    """Let a module's linear layers and attention take the faster routes wherever they apply.

    They apply on CPUs, in fp32 and under bf16 autocast, untraced; attention without a mask or
    dropout. The module's parameters, names and copies stay what they are.
    """
    enclose(block, _route)


def _route(block: nn.Module) -> AbstractContextManager[Any]:
    if any(p.is_cuda for p in block.parameters()):  # there the mode only makes every call slower
        return nullcontext()
    autocast = torch.is_autocast_enabled("cpu")
    return _ROUTE if (_in_bf16() if autocast else onednn_is_faster()) else nullcontext()


def is_traced() -> bool:
    """Whether calls become a graph (torch.compile, torch.jit.trace) or are torch.func's.

    Operators and autograd functions of our own have no form for either.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


Context = Callable[[nn.Module], AbstractContextManager[Any]]


def enclose(module: nn.Module, context: Context) -> None:
    """Let a module's forward passes run inside `context(module)`, unless they are traced.

    The module gets a subclass of its class, under the same name. Forward hooks would leave the
    context open when Ctrl-C ends a pass: torch then calls none of them. A `forward` set on the
    module would stay bound to it in copies.
    """
    kind: Any = type(module)
    kind, contexts = getattr(module, "_enclosed", (kind, ()))
    module.__class__ = _subclass(kind, (*contexts, context))


@functools.cache
def _subclass(kind: Any, contexts: tuple[Context, ...]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_traced():
            return kind.forward(self, *args, **kwargs)
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context(self))
            return kind.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:  # pickle finds no class made here
        return _blank, (kind, contexts), *kind.__reduce_ex__(self, protocol)[2:]

    own = {"forward": forward, "__reduce_ex__": reduce, "_enclosed": (kind, contexts)}
    return type(kind.__name__, (kind,), {**own, "__module__": kind.__module__})


def _blank(kind: Any, contexts: tuple[Context, ...]) -> nn.Module:
    subclass = _subclass(kind, contexts)
    return subclass.__new__(subclass)

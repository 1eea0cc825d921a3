"""Faster linear layers and attention for encoder blocks on CPUs.

In fp32, linear layers and attention multiply with oneDNN where MKL is slow (`products.py`); under
bf16 autocast, attention runs as plain matrix products (`attention.py`). The blocks remain timm's:
during their forward pass a `TorchFunctionMode` replaces two torch functions.
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


class _FastOps(TorchFunctionMode):
    """Replaces `F.linear` and `F.scaled_dot_product_attention` where a faster form applies."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not _in_bf16():
            x, weight, bias = _linear_arguments(*args, **kwargs)
            if worth_it(x, weight):
                return linear(x, weight, bias)
        if func is F.scaled_dot_product_attention and _is_plain_attention(*args, **kwargs):
            query, key, value = args
            return attention(query, key, value, kwargs.get("scale"))
        return func(*args, **kwargs)


_FAST_OPS = _FastOps()


def _linear_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _is_plain_attention(
    *args: Any,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    **kwargs: Any,
) -> bool:
    """Whether `attention` computes the same for these arguments, and faster."""
    plain = len(args) == 3 and attn_mask is None and not dropout_p and not any(kwargs.values())
    return plain and args[0].ndim == 4 and takes_attention(args[0], args[1])


def takes_attention(q: Tensor, k: Tensor) -> bool:
    """Whether `attention` is faster than torch's kernel for (B, h, N, D) queries and keys."""
    return q.device.type == "cpu" and (_in_bf16() or worth_it(q[0, 0], k[0, 0]))


def _in_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16


def speed_up(block: nn.Module) -> None:
    """Use the faster linear layers and attention in a module wherever they apply.

    They apply on CPUs, in fp32 or under bf16 autocast, when the module is not traced; attention
    only without mask and dropout. Parameters, their names and copies of the module do not change.
    """
    wrap_forward(block, _fast_ops)


def _fast_ops(block: nn.Module) -> AbstractContextManager[Any]:
    if any(p.is_cuda for p in block.parameters()):  # on a GPU the mode would only add overhead
        return nullcontext()
    autocast = torch.is_autocast_enabled("cpu")
    return _FAST_OPS if (_in_bf16() if autocast else onednn_is_faster()) else nullcontext()


def is_traced() -> bool:
    """Whether torch.compile, torch.jit.trace or torch.func transforms this call.

    Our own operators and autograd functions support none of them.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


Context = Callable[[nn.Module], AbstractContextManager[Any]]


def wrap_forward(module: nn.Module, context: Context) -> None:
    """Run a module's forward passes inside `context(module)`, unless they are traced.

    The module's class is replaced by a subclass of the same name. Forward hooks would not do:
    torch calls none of them when Ctrl-C ends a pass, and the context would stay open. A `forward`
    set on the instance would stay bound to it in copies.
    """
    base: Any = type(module)
    base, contexts = getattr(module, "_wrapped", (base, ()))
    module.__class__ = _subclass(base, (*contexts, context))


@functools.cache
def _subclass(base: Any, contexts: tuple[Context, ...]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_traced():
            return base.forward(self, *args, **kwargs)
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context(self))
            return base.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:  # pickle cannot look this class up by name
        return _new_instance, (base, contexts), *base.__reduce_ex__(self, protocol)[2:]

    members = {"forward": forward, "__reduce_ex__": reduce, "_wrapped": (base, contexts)}
    return type(base.__name__, (base,), {**members, "__module__": base.__module__})


def _new_instance(base: Any, contexts: tuple[Context, ...]) -> nn.Module:
    subclass = _subclass(base, contexts)
    return subclass.__new__(subclass)

"""Data parallelism over several processes: DDP, FSDP2 per block, synchronised batch norm.

The results equal those of one process with the whole batch. Gradients are summed, not averaged: the
loss is divided by the pixel count of all processes, and `scale_loss` undoes torch's averaging.
`find_unused_parameters` is not needed; `static_graph` fails with gradient accumulation
(pytorch/pytorch#143580) and is not used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from setr.arguments.choices import Sharding
from setr.distributed import world
from setr.errors import SetrError
from setr.model import SETR


class Parallel:
    """A model that all processes train together.

    Args:
        model: on its device; changed in place (batch norms; with sharding its parameters, too).
        sharding: `none` copies the model to every process (DDP), `full` shards parameters,
            gradients and optimiser state over the processes, block by block (FSDP2).
        compiled: use torch.compile.

    Raises:
        SetrError: torch.compile has no compiler on this machine.
    """

    def __init__(self, model: SETR, sharding: Sharding, *, compiled: bool = False) -> None:
        self.model = model
        self.call: Callable[..., Any] = model
        self.copies: DistributedDataParallel | None = None  # `call` may be the compiled module
        self.sharded = sharding == "full" and world() > 1
        if world() > 1:
            self._distribute()
        if compiled:
            _require_compiler(next(model.parameters()).device)
            self.call = torch.compile(self.call)

    def _distribute(self) -> None:
        model = self.model
        sync_batch_norms(model)
        if self.sharded:
            # by default torch uses a mesh of GPUs if there are any, even for a model on the CPU
            mesh = init_device_mesh(next(model.parameters()).device.type, (world(),))
            for block in (*model.encoder.stages(), model):
                fully_shard(block, mesh=mesh)
        else:
            devices = [p.device.index for p in model.parameters() if p.is_cuda][:1] or None
            # batch norms are in sync anyway; torch 2.12 renamed the option
            option = "forward_sync_buffers"
            if option not in inspect.signature(DistributedDataParallel).parameters:
                option = "broadcast_buffers"
            sync: dict[str, Any] = {option: False}
            # the strides of a class token's gradient differ only in dimensions of size 1: harmless
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            self.call = self.copies = DistributedDataParallel(model, device_ids=devices, **sync)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Undo torch's averaging of gradients over processes."""
        return loss * world()

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Context manager that synchronises gradients only in the last micro-batch of a step."""
        if self.sharded:
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        if last or self.copies is None:
            yield
        else:
            with self.copies.no_sync():
                yield

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Context manager in which every process has all weights and can call the model alone."""
        blocks = [m for m in self.model.modules() if isinstance(m, FSDPModule)]
        for block in blocks:
            block.set_reshard_after_forward(False, recurse=False)
            block.unshard()
        try:
            yield
        finally:
            for block in blocks:
                block.reshard()
                block.set_reshard_after_forward(block is not self.model, recurse=False)


def _require_compiler(device: torch.device) -> None:
    """Check for the compiler of torch.compile: C++ for CPUs, Triton for GPUs."""
    if device.type == "cpu":
        named = os.environ.get("CXX")
        lacks = not any(map(shutil.which, [named] if named else ["g++", "clang++", "cl"]))
        what = "a C++ compiler (g++, or the one CXX names)"
    else:
        lacks, what = importlib.util.find_spec("triton") is None, "Triton (pip install triton)"
    if lacks:
        raise SetrError(f"train.compile: needs {what} on this machine; install it or leave it off")


def full_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with sharded tensors gathered, the same in every process."""
    return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sync_batch_norms(model: nn.Module) -> None:
    """Replace batch norms by synchronised ones; parameters stay the same objects.

    Uses torch's SyncBatchNorm on CUDA. It does not support CPUs, where `SyncBatchNorm2d` is used.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.BatchNorm2d:
                continue
            on_cuda = any(t.is_cuda for t in (*child.parameters(), *child.buffers()))
            kind = nn.SyncBatchNorm if on_cuda else SyncBatchNorm2d
            synced = kind(child.num_features, child.eps, child.momentum, child.affine,
                          child.track_running_stats)  # fmt: skip
            synced._parameters, synced._buffers = child._parameters, child._buffers
            synced.train(child.training)
            setattr(parent, name, synced)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Synchronised batch norm with one collective each in the forward and backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape, normalised over the B, H, W of all processes."""
        if not self.training or not self.track_running_stats:
            return super().forward(x)
        y, mean, var, count = _SyncBatchNormFunction.apply(x, self.weight, self.bias, self.eps)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (count / (count - 1)), share)
        return y


class _SyncBatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = _at_least_fp32(x)
        var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        count = mean.new_tensor([wide.numel() / wide.shape[1]])
        own = torch.cat([mean, var, count])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, variances, counts = torch.stack(parts).split([len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        shares = counts / total
        mean = (means * shares).sum(0)
        var = ((variances + (means - mean) ** 2) * shares).sum(0)  # Chan et al. 1979
        rate = torch.rsqrt(var + eps)
        scaled = (wide - _column(mean)) * _column(rate)
        ctx.save_for_backward(scaled, weight, rate, total)
        ctx.mark_non_differentiable(mean, var, total)
        y = torch.addcmul(_column(bias), scaled, _column(weight))
        return y.to(x.dtype), mean, var, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Any:
        scaled, weight, rate, total = ctx.saved_tensors
        wide = _at_least_fp32(grad)
        bias_grad = wide.sum((0, 2, 3))
        weight_grad = (wide * scaled).sum((0, 2, 3))
        sums = torch.stack([bias_grad, weight_grad])
        dist.all_reduce(sums)
        sums /= total
        x_grad = (wide - _column(sums[0]) - scaled * _column(sums[1])) * _column(rate * weight)
        return x_grad.to(grad.dtype), weight_grad, bias_grad, None


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _column(values: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, 1)."""
    return values[None, :, None, None]


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Clip gradients to the norm `limit`, if it is not 0; returns their total norm before.

    The norm includes the shards of all processes.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if limit:
        norm = nn.utils.clip_grad_norm_(trained, limit)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm

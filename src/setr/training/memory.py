"""Estimates the memory of a training step before it runs.

The step runs on fake tensors: every operation of forward, loss and backward pass is dispatched,
nothing is computed or allocated, and the bytes that would be alive are added up. So the estimate
follows the actual network (frozen blocks, LoRA, gradient checkpointing, any encoder), where a
formula would need a term for each. Internal allocations of kernels are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from setr.inference import normalize
from setr.kernels.row_blocks import block_bytes, classes_last, saved_gradient
from setr.layers.mask_classifier import MaskOutput
from setr.layers.precision import autocast
from setr.losses import LossKind
from setr.mask_loss import OVERSAMPLING, POINTS
from setr.model import SETR, Features, Output, predictions
from setr.processes.machine import resident_bytes
from setr.training.single_value import require_several_values

KERNELS = 130_000_000
"""Bytes that libraries and their kernels allocate on a CPU in the first steps, besides tensors;
0.11 to 0.17 GB were measured with small models by benchmarks/memory.py."""

SORTED = 180
"""Bytes per pixel that Lovász needs on a CPU to sort one class; 152 to 178 were measured."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step in one process.

    Attributes:
        process: the interpreter with its libraries; 0 on a GPU.
        parameters: weights and buffers.
        gradients: of the trained weights.
        optimizer: optimiser state and moving average.
        activations: saved for the backward pass at the end of the forward pass.
        logits: of all heads, with the tensors that the loss saves.
        total: the peak. Gradients replace activations during the backward pass, so it is below the
            sum of the parts; temporary tensors may raise it above that sum without gradients.
    """

    process: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    total: int


def step_memory(
    model: SETR,
    *,
    teachers: Sequence[SETR] = (),
    batch: int,
    size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype | None = None,
    moments: int = 1,
    average: bool = False,
    keeps_gradients: bool = False,
    cached: bool = False,
    loss: LossKind = "cross_entropy",
) -> Memory:
    """Run two micro-batches of training on fake tensors.

    Args:
        model: on the meta device, with frozen parts frozen; its weights become fake tensors.
        teachers: of a run with distillation, on the meta device.
        batch: number of images in a micro-batch.
        size: (H, W) of the images in pixels.
        dtype: of autocast; None for fp32.
        moments: optimiser tensors per trained weight: 2 for AdamW, 1 for SGD with momentum, 0
            without.
        average: whether a moving average of the weights is kept.
        keeps_gradients: whether gradients are kept between micro-batches (accumulation).
        cached: whether the model is given stored features of its frozen encoder.
        loss: loss of the main head.

    Raises:
        SetrError: a single image of a single patch, which cannot be trained on.
    """
    trained = _bytes(p for p in model.parameters() if p.requires_grad)
    weights = _bytes(_tensors(model))
    optimizer = moments * trained + (weights if average else 0)
    weights += sum(_bytes(_tensors(teacher)) for teacher in teachers)
    process = resident_bytes() + KERNELS if device.type == "cpu" else 0
    if device.type == "cpu":
        # measured beyond the tensors: 2 bytes per weight in bf16; in fp32 the gaps that freed
        # gradients leave in the heap, too small for activations
        process += weights // 2 if dtype is torch.bfloat16 else trained
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device=device)
        model.train()
        tracker = _MemoryTracker(_tensors(model))
        for teacher in teachers:
            tracker.count(_tensors(teacher.to_empty(device=device).eval()))
        output, inputs = None, _inputs(model, batch, size, device, cached)
        tracker.count(inputs.maps if isinstance(inputs, Features) else [inputs])
        with tracker:
            for _ in range(2):
                with autocast(device, dtype), require_several_values(batch, size):
                    taught = _taught(teachers, inputs)
                    output = model(inputs, with_aux=True)
                before = tracker.now
                parts = _loss_parts(output, size, loss)
                parts += [_LossMemory.apply(output.logits) for _ in taught]
                value = torch.stack(parts)
                del parts
                held = tracker.now - weights
                read = [*taught, *predictions(output)]
                logits = _bytes(read) + tracker.now - before
                output = None
                taught.clear()
                del read
                value.sum().backward()
                if not keeps_gradients:
                    model.zero_grad(set_to_none=True)
        del output, inputs
    largest = max((p.numel() * p.element_size() for p in model.parameters()), default=0)
    updating = weights + trained + 2 * largest
    return Memory(
        process=process,
        parameters=weights,
        gradients=trained,
        optimizer=optimizer,
        activations=max(0, held - logits - (trained if keeps_gradients else 0)),
        logits=logits,
        total=process + optimizer + max(tracker.peak, updating),
    )


def _inputs(
    model: SETR, batch: int, size: tuple[int, int], device: torch.device, cached: bool
) -> Tensor | Features:
    channels = model.encoder.in_chans
    images = torch.empty(batch, *size, channels, dtype=torch.uint8, device=device)
    x = normalize(images, (0.5,) * channels, (0.5,) * channels)
    if not cached:
        return x
    with torch.no_grad():
        return Features([torch.empty_like(m) for m in model.encoder(x)], size)


@torch.no_grad()
def _taught(teachers: Sequence[SETR], inputs: Tensor | Features) -> list[Tensor]:
    """The logits of teachers, for images with their own normalisation."""
    if isinstance(inputs, Features):
        return []
    return [teacher.coarse(inputs.clone()).logits for teacher in teachers]


def _loss_parts(output: Output | MaskOutput, size: tuple[int, int], loss: LossKind) -> list[Tensor]:
    """Scalars whose backward passes hold what those of the loss hold."""
    if isinstance(output, MaskOutput):
        return [_MaskLossMemory.apply(*stage) for stage in output.stages]
    parts = [_LossMemory.apply(x) for x in (output.logits, *output.aux)]
    if loss in ("dice", "lovasz"):
        parts.append(_RegionLossMemory.apply(output.logits, size, loss == "lovasz"))
    return parts


class _MaskLossMemory(torch.autograd.Function):
    """Allocates what `mask_loss.py` allocates if every image has as many classes as here."""

    CLASSES = 12

    @staticmethod
    def forward(ctx: Any, masks: Tensor, classes: Tensor) -> Tensor:
        B, Q, h, w = masks.shape
        points = min(POINTS, h * w)
        matching = masks.new_empty(2 * B * Q * points, dtype=torch.float)  # logits and softplus
        del matching
        targets = B * min(Q, _MaskLossMemory.CLASSES)
        sampled = masks.new_empty(targets * points * OVERSAMPLING * 3, dtype=torch.float)
        del sampled
        kept = masks.new_empty(targets * points * 6, dtype=torch.float)
        ctx.save_for_backward(masks, classes, kept)
        return masks.new_zeros((), dtype=torch.float)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        masks, classes, _ = ctx.saved_tensors
        return torch.zeros_like(masks), torch.zeros_like(classes)


class _LossMemory(torch.autograd.Function):
    """Allocates the same tensors as `row_blocks.upsample_sum`, without its loop over blocks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        x = classes_last(logits)
        grad = torch.zeros_like(x)
        block = x.new_empty(4 * block_bytes(x.device) // x.element_size())
        ctx.save_for_backward(saved_gradient(grad, logits.dtype))
        return block.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * grad_output.to(grad.dtype)


class _RegionLossMemory(torch.autograd.Function):
    """Allocates the tensors of `region_losses.py` for a target with all classes.

    Both losses save a second gradient; Lovász also needs a probability and its derivative for every
    pixel and class, and `SORTED` bytes per pixel to sort the pixels of a class.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, size: tuple[int, int], sorts: bool) -> Tensor:
        x = classes_last(logits)
        B, _, _, K = x.shape
        if sorts:
            held = [x.new_empty(K, B, *size) for _ in range(2)]
            held.append(x.new_empty(B, *size, SORTED, dtype=torch.uint8))
            del held
        grad = torch.zeros_like(x)
        ctx.save_for_backward(saved_gradient(grad, logits.dtype))
        return grad.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * grad_output.to(grad.dtype), None, None


class _MemoryTracker(TorchDispatchMode):
    """Tracks the total size of the storages that are alive, and its peak.

    Args:
        known: tensors that exist already.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0
        self.count(known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count([value for value in tree_leaves(out) if isinstance(value, Tensor)])
        return out

    def count(self, tensors: list[Tensor]) -> None:
        """Add the storages of tensors that are not counted yet."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.alive:
                self.alive[key] = storage.nbytes()
                self.now += self.alive[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def _tensors(model: SETR) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)

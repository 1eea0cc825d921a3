"""Traces a trained model as one graph for other runtimes, with dynamic batch, height and width.

`Graph` is what is traced: padding to whole patches, the network, and one of two heads at the
image's size. Batch norms are folded into the convolutions before them. The resampling of position
embeddings becomes two small matrix products, because runtimes disagree about antialiased resizing
(OpenVINO's bicubic differs from PyTorch's by 1e-2) but not about products. Rotary positions are
computed for the size of the image.

Shapes: B batch, H x W image, p patch size, K classes.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from setr.errors import SetrError, first_line
from setr.exporting.runtime import ANY, Form
from setr.inference import normalize
from setr.layers.conv_bn_relu import ConvBNReLU
from setr.layers.feature_pyramid import DoubledLevel
from setr.layers.upernet import Level
from setr.model import SETR
from setr.processes.faults import machine_fault

Head = Literal["logits", "mask"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Graph(nn.Module):
    """A model as it is exported.

    Args:
        model: the network; the graph has a copy of its own.
        head: `logits` (B, K, H, W) float32, or `mask`, the best class uint8 (B, H, W).
        dtype: of weights and arithmetic; inputs and logits stay float32.
        form: its input; by default normalised images of any batch and size.
        convolve_first: before upsampling by 2 (`upsampled_convolution.py`); int8 is as fast and
            more accurate without it.
    """

    def __init__(
        self,
        model: SETR,
        head: Head,
        dtype: torch.dtype = torch.float32,
        *,
        form: Form = ANY,
        convolve_first: bool = True,
    ) -> None:
        super().__init__()
        self.form = form
        self.model = _prepared(model, dtype, convolve_first)
        self.patch_size = model.encoder.patch_size
        self.squeeze = model.odd_sizes == "squeeze"
        self.head, self.dtype = head, dtype

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as `form` says -> the head, and the logits it came from."""
        if self.form.pixels:
            images = normalize(images, self.form.mean, self.form.std)
        H, W = images.shape[-2:]
        p = self.patch_size
        height, width = (H + p - 1) // p * p, (W + p - 1) // p * p
        padded = F.pad(images, (0, width - W, 0, height - H)).to(self.dtype)
        coarse = self.model.coarse(padded).logits.float()
        size = (H, W) if self.squeeze else (height, width)
        logits = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        logits = logits[..., :H, :W]
        return logits.argmax(dim=1).to(torch.uint8) if self.head == "mask" else logits, coarse


def trace(graph: Graph) -> torch.export.ExportedProgram:
    """The graph with free batch, height and width, or for the one image its form takes.

    Raises:
        SetrError: torch.export cannot follow the model, for example an encoder of the user's own.
    """
    form = graph.form
    height, width = form.size or _example_size(graph)
    images = torch.zeros(1 if form.size else 2, graph.model.encoder.in_chans, height, width)
    if form.pixels:
        images = images.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    free = {} if form.size else dict.fromkeys(free_axes(form), torch.export.Dim.DYNAMIC)
    with quiet(), torch.enable_grad():  # without gradients decoders go the way of eager inference
        try:
            program = torch.export.export(
                graph, (images,), dynamic_shapes={"images": free or None}, strict=False
            )
        except Exception as error:  # of many kinds
            if machine_fault(error):
                raise
            raise SetrError(
                f"torch.export cannot follow this model: {first_line(error)}; --debug shows where"
            ) from error
        resized = {
            torch.ops.aten._upsample_bicubic2d_aa: _bicubic,
            torch.ops.aten._upsample_bilinear2d_aa: _bilinear,
        }
        program = program.run_decompositions(
            {op: by for each, by in resized.items() for op in (each.vec, each.default)}
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


def _example_size(graph: Graph) -> tuple[int, int]:
    """Height and width of the image that is traced for all sizes.

    Where the encoder attends in windows there are several along each axis, and the last ones are
    padded: the graph would be fixed to a single window, or to no padding.
    """
    side, p = graph.model.encoder.window_size, graph.patch_size
    rows, columns = max(6, side + 1), max(9, 2 * side + 1)
    if side > 1:
        rows, columns = (n + (n % side == 0) for n in (rows, columns))
    return rows * p - p + 3, columns * p - 2


def free_axes(form: Form) -> tuple[int, int, int]:
    """Axes of batch, height and width in a graph's input."""
    return (0, 1, 2) if form.pixels else (0, 2, 3)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's messages about its internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _prepared(model: SETR, dtype: torch.dtype, convolve_first: bool) -> SETR:
    """A frozen copy for tracing, batch norms folded, without auxiliary heads."""
    copied = copy.deepcopy(model).eval().cpu().requires_grad_(False)
    copied.aux_heads = nn.ModuleList()
    for module in copied.modules():
        if isinstance(module, ConvBNReLU):
            conv, norm = cast(nn.Conv2d, module[0]), cast(nn.BatchNorm2d, module[1])
            module[0], module[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
            module.in_graph = convolve_first
        if hasattr(module, "dynamic_img_pad"):  # `Graph` has padded already
            module.dynamic_img_pad, module.strict_img_size = False, False  # type: ignore[assignment]
    for module in copied.modules():
        if isinstance(module, Level | DoubledLevel):
            module.merge()
    rope = getattr(getattr(copied.encoder, "vit", None), "rope", None)
    tensors = [*rope.named_buffers(), *rope.named_parameters()] if rope is not None else []
    kept = {name: tensor.clone() for name, tensor in tensors}
    copied.to(dtype)
    for name, tensor in kept.items():  # angles need all their digits
        owner, _, leaf = name.rpartition(".")
        getattr(rope.get_submodule(owner), leaf).data = tensor  # type: ignore[union-attr]
    return copied


def _bicubic(x: Tensor, size: Any, align_corners: bool, *scales: Any) -> Tensor:
    """Antialiased bicubic resize, as `F.interpolate` without align_corners, by two products."""
    return _by_products(bicubic_weights, x, size)


def _bilinear(x: Tensor, size: Any, align_corners: bool, *scales: Any) -> Tensor:
    """Antialiased bilinear resize, likewise."""
    return _by_products(bilinear_weights, x, size)


def _by_products(weights: Callable[[int, int], Tensor], x: Tensor, size: Any) -> Tensor:
    """Resize (B, C, h, w) by a product along each axis."""
    down = weights(x.shape[-2], size[0])
    across = weights(x.shape[-1], size[1])
    return (down.to(x.dtype) @ x) @ across.to(x.dtype).t()


def bicubic_weights(old: int, new: int) -> Tensor:
    """Weights (new, old) float32 of an antialiased bicubic resize along one axis.

    The kernel of Keys (1981) with a = -0.5, stretched where the axis shrinks; rows sum to 1. At the
    old size it is the identity.
    """
    x = _distances(old, new)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def bilinear_weights(old: int, new: int) -> Tensor:
    """As `bicubic_weights`, with the triangle as the kernel."""
    weights = (1 - _distances(old, new)).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def _distances(old: int, new: int) -> Tensor:
    """Distances (new, old) of new places from old ones; in new cells where the axis shrinks."""
    step = old / new
    centre = (torch.arange(new, dtype=torch.float32) + 0.5) * step
    place = torch.arange(old, dtype=torch.float32) + 0.5
    return ((place - centre[:, None]) / torch.sym_max(step, 1.0)).abs()

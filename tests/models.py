"""Checks that the tests of many encoders and decoders share."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import setr
from setr.cli import main
from setr.encoder import Encoder
from setr.errors import OK
from setr.hub import from_pretrained, save_pretrained
from setr.labels import Labels
from setr.layers.outputs import Output
from setr.model import SETR
from setr.model_info import ModelInfo


@torch.inference_mode()
def assert_same(
    found: nn.Module, model: nn.Module, *size: int, aux: bool = False, **tolerance: float
) -> None:
    """Two models compute the same, with `aux` also in their auxiliary heads, at a size (H, W)."""
    images = torch.randn(1, 3, *size)
    more = {"with_aux": True} if aux else {}
    torch.testing.assert_close(found(images, **more), model(images, **more), **tolerance)


def assert_converts(source: Path, model: nn.Module, out: Path, *options: str) -> None:
    """`setr convert` makes a model directory of a checkpoint."""
    assert main(["convert", str(source), *options, "-o", str(out)]) == OK
    assert_same(setr.load(out, device="cpu").model.eval(), model, 64, 80)


def assert_comes_back(model: SETR, folder: Path) -> None:
    """A model directory holds the model to the bit."""
    names = tuple(f"class {number}" for number in range(model.num_classes))
    save_pretrained(folder, model.eval(), ModelInfo(labels=Labels(names)))
    assert_same(from_pretrained(folder)[0], model, 50, 70, rtol=0, atol=0)


def assert_learns(model: SETR, *size: int, images: int = 2, zeros: bool = False) -> Output:
    """A step reaches every parameter, and logits have the images' size; returns the output.

    Args:
        zeros: gradients may be zero everywhere.
    """
    output = model(torch.randn(images, 3, *size), with_aux=True)
    truth = torch.randint(0, model.num_classes, (images, *size), dtype=torch.uint8)
    setr.segmentation_loss(output, truth)["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [n for n, grad in gradients.items() if grad is None or not (zeros or grad.any())]
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, model.num_classes, *size)
    return output


def assert_same_gradients_recomputed(model: SETR, *size: int) -> None:
    """Every weight has a gradient, the same with checkpointing, for images (H, W)."""
    images = torch.randn(2, 3, *size)
    gradients = []
    for recomputed in (False, True):
        model.set_grad_checkpointing(recomputed)
        model.zero_grad()
        output = model(images, with_aux=True)
        sum(x.square().mean() for x in (output.logits, *output.aux)).backward()
        assert all(p.grad is not None for p in model.parameters())
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@torch.inference_mode()
def assert_near_in_bf16(model: nn.Module, share: float) -> None:
    """Under autocast, logits differ by less than a share of the largest one."""
    images = torch.randn(1, 3, 64, 90)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images)
    assert (rough - exact).abs().max() < share * exact.abs().max()


def assert_pads_with_zeros(encoder: Encoder) -> None:
    """Sides that are no multiple of 16 are padded at the bottom and right."""
    images = torch.randn(1, 3, 50, 70)
    padded = F.pad(images, (0, 10, 0, 14))
    assert all(map(torch.equal, encoder(images), encoder(padded)))

"""The best class of every pixel: of all scores, and of logits before they are resized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from setr import inference
from setr.errors import SetrError
from setr.inference import predict_mask
from setr.kernels import best_class as module
from setr.kernels.best_class import best_class, best_upsampled
from setr.model import Output
from setr.protocols import Protocol


def smooth(B: int, K: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits whose best class stays the same over some pixels, as a network's do."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(B, K, -(-h // 8), -(-w // 8), generator=generator)
    return F.interpolate(coarse, (h, w), mode="bicubic").to(dtype)


def test_best_class_takes_the_first_of_equals():
    scores = torch.randint(0, 6, (2, 9, 5, 7), generator=torch.Generator().manual_seed(0)).float()
    best, ids = best_class(scores)
    assert ids.dtype == torch.uint8
    assert torch.equal(best, scores.amax(dim=1))
    assert np.array_equal(ids.numpy(), scores.numpy().argmax(axis=1))
    assert (best_class(torch.rand(1, 255, 4, 4))[1] < 255).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "padded", "size"),
    [
        ((1, 7, 40, 56), (80, 112), (75, 112)),
        ((2, 3, 32, 24), (512, 384), (501, 380)),
        ((1, 255, 24, 24), (100, 131), (100, 131)),
        ((1, 4, 1, 30), (16, 480), (3, 477)),
        ((1, 1, 2, 2), (32, 32), (32, 32)),
    ],
)
def test_classes_without_resizing_all_scores(shape, padded, size, dtype, monkeypatch):
    """Some class of the largest score of each pixel, but for rounding."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 3000)  # several blocks of logits and of pixels
    monkeypatch.setattr(module, "UNSURE", 1.0)
    logits = smooth(*shape, dtype=dtype)
    ids = best_upsampled(logits, padded, size)
    assert ids is not None
    assert ids.shape == (shape[0], *size)
    scores = F.interpolate(logits.float(), padded, mode="bilinear", align_corners=False)
    scores = scores[..., : size[0], : size[1]]
    found = scores.gather(1, ids[:, None].long())[:, 0]
    assert (scores.amax(dim=1) - found).max() < 1e-5


def test_resizing_all_where_that_is_as_quick():
    noise = torch.rand(1, 9, 20, 20, generator=torch.Generator().manual_seed(0))
    assert best_upsampled(noise, (40, 40), (40, 40)) is None
    assert best_upsampled(smooth(1, 9, 40, 40), (40, 40), (40, 40)) is None


@pytest.mark.parametrize("protocol", [Protocol(), Protocol(window=(64, 64), stride=(48, 48))])
def test_masks_with_and_without_confidence_agree(protocol, monkeypatch):
    """Only an image that is one window goes the short way."""
    logits, calls = smooth(1, 9, 32, 40), []

    class Model:
        def coarse(self, images: Tensor) -> Output:
            H, W = images.shape[-2:]
            h, w = -(-H // 4), -(-W // 4)
            return Output(logits[..., :h, :w].expand(len(images), -1, -1, -1), [], (h * 4, w * 4))

    def counted(*args):
        calls.append(args)
        return best_upsampled(*args)

    monkeypatch.setattr(inference, "best_upsampled", counted)
    images = torch.zeros(1, 3, 126, 157)
    mask, none = predict_mask(Model(), images, protocol, with_confidence=False)
    full, confidence = predict_mask(Model(), images, protocol)
    assert none is None
    assert confidence is not None
    assert torch.equal(mask, full)
    assert len(calls) == (protocol.window is None)


def test_nan_scores_are_an_error():
    broken = torch.full((1, 4, 8, 8), float("nan"))
    for call in (lambda: best_class(broken), lambda: best_upsampled(broken, (16, 16), (16, 16))):
        with pytest.raises(SetrError, match="not numbers"):
            call()


def test_infinite_scores_are_an_error():
    """As logits that overflow fp16; their probability would be no number."""
    broken = torch.zeros(1, 4, 8, 8)
    broken[0, 1, 2, 3] = float("inf")
    for call in (lambda: best_class(broken), lambda: best_upsampled(broken, (16, 16), (16, 16))):
        with pytest.raises(SetrError, match=r"not numbers \(inf\)"):
            call()
    low = torch.full((1, 2, 1, 2), -torch.inf)
    low[0, 1] = -3
    assert best_class(low)[1].tolist() == [[[1, 1]]]
    assert best_class(low[..., :0])[1].shape == (1, 1, 0)

"""Focal, OHEM, Dice and Lovász against plain formulas, with gradients, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from setr.errors import SetrError
from setr.kernels.region_losses import hard_target, upsample_dice, upsample_lovasz
from setr.labels import IGNORE
from setr.losses import count_weight, segmentation_loss, upsample_cross_entropy, upsample_focal
from setr.model import Output

SIZE = (32, 48)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks per image, so that their seams are tested too."""
    monkeypatch.setattr("setr.kernels.row_blocks.BLOCK_BYTES", 16_000)


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def batch(request):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 8, 12, dtype=torch.float64, generator=generator)
    logits = logits.to(request.param)
    target = torch.randint(0, 4, (2, 30, 45), generator=generator).to(torch.uint8)  # class 4 absent
    target[:, :7, :9] = IGNORE
    return logits.requires_grad_(), target


def wide(logits, target):
    H, W = target.shape[-2:]
    full = F.interpolate(logits, size=SIZE, mode="bilinear", align_corners=False)
    return full[..., :H, :W].movedim(1, -1)[target != IGNORE], target[target != IGNORE].long()


def plain_focal(logits, target):
    x, y = wide(logits, target)
    p = x.softmax(-1).gather(1, y[:, None])[:, 0]
    return (-((1 - p) ** 2) * p.log()).sum()


def plain_dice(logits, target):
    x, y = wide(logits, target)
    p, truth = x.softmax(-1), F.one_hot(y, x.shape[1])
    dice = 1 - 2 * (p * truth).sum(0) / (p.sum(0) + truth.sum(0))
    return dice[truth.sum(0) > 0].mean()


def plain_lovasz(logits, target):
    """Sum over sorted errors of error times the growth of the Jaccard loss."""
    x, y = wide(logits, target)
    p, losses = x.softmax(-1), []
    for k in y.unique():
        own = (y == k).double()
        errors, order = (own - p[:, k]).abs().sort(descending=True)
        truth = own[order]
        before = 0.0
        loss = x.new_zeros(())
        hits, false = truth.sum(), 0.0
        for error, is_own in zip(errors, truth, strict=True):
            hits, false = hits - is_own, false + 1 - is_own
            jaccard = 1 - hits / (truth.sum() + false)
            loss = loss + error * (jaccard - before)
            before = jaccard
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("fused", "plain"),
    [(upsample_focal, plain_focal), (upsample_dice, plain_dice), (upsample_lovasz, plain_lovasz)],
)
def test_value_and_gradient_equal_the_plain_formula(batch, fused, plain):
    logits, target = batch
    ours = fused(logits, target, SIZE)
    (our_grad,) = torch.autograd.grad(ours, logits)
    theirs = plain(logits, target)
    (their_grad,) = torch.autograd.grad(theirs, logits)
    assert ours.dtype == our_grad.dtype == logits.dtype
    exact = logits.dtype == torch.float64
    value, slope = (1e-10, (1e-8, 1e-12)) if exact else (1e-5, (1e-3, 1e-6))
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=value, atol=value)
    torch.testing.assert_close(our_grad, their_grad, rtol=slope[0], atol=slope[1])


def two_pixels(first, second):
    """Two pixels of class 0 and 1 with the given probabilities of their true class."""
    logit = [math.log(p / (1 - p)) for p in (first, second)]
    return (
        torch.tensor([[[[logit[0], 0.0]], [[0.0, logit[1]]]]], dtype=torch.float64),
        torch.tensor([[[0, 1]]]),
    )


def test_by_hand():
    logits, target = two_pixels(0.9, 0.6)
    focal = -(0.1**2) * math.log(0.9) - 0.4**2 * math.log(0.6)
    assert upsample_focal(logits, target, (1, 2)).item() == pytest.approx(focal)
    # class 0 has mass 0.9 + 0.4, class 1 has 0.1 + 0.6, each one pixel
    dice = 1 - (2 * 0.9 / (1.3 + 1) + 2 * 0.6 / (0.7 + 1)) / 2
    assert upsample_dice(logits, target, (1, 2)).item() == pytest.approx(dice)
    # class 0: errors 0.1 (own) and 0.4; sorted 0.4, 0.1: Jaccard loss 1/2, then 1
    # class 1: errors 0.1 and 0.4 (own); sorted 0.4, 0.1: Jaccard loss 1, then 1
    lovasz = ((0.4 * 0.5 + 0.1 * 0.5) + 0.4 * 1.0) / 2
    assert upsample_lovasz(logits, target, (1, 2)).item() == pytest.approx(lovasz)


def test_class_weight_of_focal():
    logits, target = two_pixels(0.9, 0.6)
    weight = torch.tensor([2.0, 3.0], dtype=torch.float64)
    expected = 2 * -(0.1**2) * math.log(0.9) + 3 * -(0.4**2) * math.log(0.6)
    got = upsample_focal(logits, target, (1, 2), weight=weight).item()
    assert got == pytest.approx(expected)


def test_hard_target_by_hand():
    logits, target = two_pixels(0.9, 0.6)
    assert hard_target(logits, target, (1, 2)).tolist() == [[[IGNORE, 1]]]
    assert hard_target(logits, target, (1, 2), threshold=0.95).tolist() == [[[0, 1]]]
    # nothing is below the threshold, but half of the pixels are kept: the less likely one
    kept = hard_target(logits, target, (1, 2), threshold=0.5, min_share=0.5)
    assert kept.tolist() == [[[IGNORE, 1]]]


def test_ohem_is_the_mean_over_hard_pixels():
    logits, target = two_pixels(0.9, 0.6)
    output = Output(logits, [], (1, 2))
    loss = segmentation_loss(output, target, normalizer=count_weight(target), kind="ohem")["loss"]
    assert loss.item() == pytest.approx(-math.log(0.6))


@pytest.mark.parametrize("kind", ["dice", "lovasz"])
def test_region_losses_are_added_to_the_cross_entropy(batch, kind):
    logits, target = batch
    output = Output(logits, [], SIZE)
    arguments = {"normalizer": count_weight(target)}
    plain = segmentation_loss(output, target, **arguments)["loss"]
    both = segmentation_loss(output, target, kind=kind, **arguments)["loss"]
    region = {"dice": upsample_dice, "lovasz": upsample_lovasz}[kind](logits, target, SIZE)
    torch.testing.assert_close(both, plain + region)


@pytest.mark.parametrize("kind", ["cross_entropy", "ohem", "focal", "dice", "lovasz"])
def test_all_ignored_gives_zero_and_no_gradient(kind):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    target = torch.full((1, 16, 16), IGNORE, dtype=torch.uint8)
    output = Output(logits, [logits], (16, 16))
    loss = segmentation_loss(output, target, normalizer=count_weight(target), kind=kind)["loss"]
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("function", [upsample_dice, upsample_lovasz])
def test_a_scaled_loss_keeps_the_fp16_gradients_of_a_mean(function):
    """On a map of a training batch's size a pixel's share is below what fp16 can hold."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 5, 192, 192, generator=generator).half()
    target = torch.randint(0, 5, (1, 192, 192), generator=generator).to(torch.uint8)
    grads = []
    for x in (logits, logits.float()):
        x = x.requires_grad_()
        (2.0**16 * function(x, target, (192, 192))).backward()
        grads.append(x.grad.double())
    assert (grads[0] - grads[1]).norm() < 1e-3 * grads[1].norm()


def test_config_refuses_an_unknown_loss():
    from setr.config import Config

    with pytest.raises(SetrError, match=r"train\.loss"):
        Config.from_yaml("train: {loss: hinge}")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["cross_entropy", "ohem", "focal", "dice", "lovasz"])
def test_a_micro_batch_is_its_share_of_the_step(batch, kind, weighted):
    """A step twice as large halves what this part of it adds; class weights reach every head."""
    logits, target = batch
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0, 1.0], dtype=torch.float64) if weighted else None
    own = count_weight(target, weight)
    output = Output(logits, [logits], SIZE, aux_scale=2)
    alone = segmentation_loss(output, target, normalizer=own, weight=weight, kind=kind)
    half = segmentation_loss(output, target, normalizer=2 * own, weight=weight, kind=kind)
    for name, value in alone.items():
        torch.testing.assert_close(half[name], value / 2)
    plain = upsample_cross_entropy(logits, target, SIZE, weight=weight) / own
    expected = {
        "cross_entropy": plain,
        "ohem": alone["main"],  # by hand above
        "focal": upsample_focal(logits, target, SIZE, weight=weight) / own,
        "dice": plain + upsample_dice(logits, target, SIZE),
        "lovasz": plain + upsample_lovasz(logits, target, SIZE),
    }
    torch.testing.assert_close(alone["main"], expected[kind].detach())
    aux = upsample_cross_entropy(logits, target, SIZE, weight=weight, scale=2) / own
    torch.testing.assert_close(alone["aux_1"], aux.detach())


def test_hard_pixels_are_a_share_of_the_counted_ones():
    """Also where most are ignored, and a sixteenth if nothing else is said."""
    p = torch.linspace(0.8, 0.95, 32, dtype=torch.float64)  # all easy
    logits = torch.stack([(p / (1 - p)).log(), torch.zeros_like(p)]).view(1, 2, 1, 32)
    target = torch.zeros(1, 1, 32, dtype=torch.long)
    assert (hard_target(logits, target, (1, 32)) == 0).flatten().nonzero().tolist() == [[0], [1]]
    target[..., :16] = IGNORE
    hard = hard_target(logits, target, (1, 32), min_share=0.25)
    assert (hard == 0).flatten().nonzero().flatten().tolist() == [16, 17, 18, 19]


@pytest.mark.parametrize("kind", ["cross_entropy", "ohem", "focal", "dice", "lovasz"])
def test_a_class_of_weight_0_is_as_if_ignored(batch, kind):
    """Also where it has the hardest pixels, and among the probabilities of Dice and Lovász."""
    logits, target = batch
    with torch.no_grad():
        logits[:, 2] -= 9
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    found = []
    for truth in (target, target.where(target != 2, IGNORE)):
        output = Output(logits, [logits], SIZE)
        loss = segmentation_loss(output, truth, weight=weight, kind=kind)["loss"]
        found.append((loss, torch.autograd.grad(loss, logits)[0]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


def test_pixels_of_weight_0_do_not_take_the_place_of_hard_ones():
    """Where all are easy, a sixteenth of the others is learnt: of 32 the two least likely."""
    p = torch.cat([torch.full((32,), 0.25), torch.linspace(0.8, 0.95, 32)]).double()
    logits = torch.stack([(p / (1 - p)).log(), torch.zeros_like(p)]).view(1, 2, 1, 64)
    target = torch.cat([torch.ones(32), torch.zeros(32)]).long().view(1, 1, 64)
    weight = torch.tensor([1.0, 0.0], dtype=torch.float64)
    loss = segmentation_loss(logits, target, weight=weight, kind="ohem")["loss"]
    assert loss.item() == pytest.approx(-p[32:34].log().mean().item())

"""Learning rates: who learns how fast, the schedule, the moving average."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
import torch.nn.functional as F

from setr.config import OptimConfig
from setr.errors import USAGE, SetrError
from setr.labels import IGNORE
from setr.layers.positions import prefix_names
from setr.losses import segmentation_loss
from setr.model import create_model
from setr.recipes import recipe
from setr.training.optim import MovingAverage, build_optimizer, learning_rate, set_lr
from tests.conftest import tiny_model


def factors(model, config):
    names = {id(p): n for n, p in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    return {names[id(p)]: (g["lr_factor"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_heads_learn_ten_times_faster_and_the_neck_does_not():
    found = factors(tiny_model("mla"), OptimConfig())
    assert len(found) == len(list(tiny_model("mla").parameters()))
    for name, (factor, decay) in found.items():
        assert factor == (10.0 if name.startswith(("decoder", "aux_heads")) else 1.0), name
        assert decay == 0


def test_layer_decay_and_no_decay_for_norms():
    config = OptimConfig(name="adamw", layer_decay=0.5, weight_decay=0.1)
    found = factors(tiny_model("pup"), config)
    assert found["encoder.vit.blocks.1.attn.qkv.weight"] == (0.5, 0.1)
    assert found["encoder.vit.blocks.0.attn.qkv.weight"] == (0.25, 0.1)
    assert found["encoder.vit.patch_embed.proj.weight"] == (0.125, 0.1)
    assert found["encoder.vit.pos_embed"] == (0.125, 0.0)
    assert found["encoder.vit.blocks.1.norm1.weight"] == (0.5, 0.0)
    assert found["decoder.classifier.weight"] == (10.0, 0.1)


def test_the_class_tokens_of_segmenter_do_not_decay():
    model = create_model("segmenter_nano", num_classes=2, img_size=32, channels=16)
    found = factors(model, OptimConfig(weight_decay=0.1))
    assert found["decoder.class_tokens"] == (10.0, 0.0)
    assert found["decoder.patch_proj.weight"] == (10.0, 0.1)


def test_groups_have_their_rates_for_a_loop_of_ones_own():
    """Without `set_lr`, or with a scheduler of torch, which begins at a group's rate."""
    config = OptimConfig(name="adamw", lr=0.01, layer_decay=0.5)
    optimizer = build_optimizer(tiny_model("pup"), config)
    begun = {g["lr_factor"]: g["lr"] for g in optimizer.param_groups}
    assert begun == {0.125: 0.00125, 0.25: 0.0025, 0.5: 0.005, 10.0: 0.1}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert schedule.get_last_lr() == [g["initial_lr"] / 2 for g in optimizer.param_groups]


def test_no_token_before_the_patches_decays():
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    for encoder in ("deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"):
        model = tiny_model("pup", encoder=encoder, encoder_args=small)
        found = factors(model, OptimConfig(weight_decay=0.1))
        names = prefix_names(model.encoder.vit)
        assert len(names) == 2
        assert {found[f"encoder.vit.{name}"][1] for name in names} == {0.0}


def test_polynomial_decay_and_warm_up_by_hand():
    config = OptimConfig(lr=1.0, min_lr=0.1, power=0.9)
    assert learning_rate(config, 0, 100) == pytest.approx(1.0)
    assert learning_rate(config, 50, 100) == pytest.approx(0.1 + 0.9 * 0.5**0.9)
    assert learning_rate(config, 100, 100) == pytest.approx(0.1)
    warm = OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=9, power=1.0)
    assert learning_rate(warm, 0, 1000) == pytest.approx(0.1)
    assert learning_rate(warm, 9, 1000) == pytest.approx(0.991)


def test_cosine_decay_by_hand():
    config = OptimConfig(lr=1.0, min_lr=0.1, schedule="cosine", warmup_steps=4)
    assert learning_rate(config, 0, 100) == pytest.approx(0.2)
    assert learning_rate(config, 25, 100) == pytest.approx(0.1 + 0.9 * (1 + 0.5**0.5) / 2)
    assert learning_rate(config, 50, 100) == pytest.approx(0.55)
    assert learning_rate(config, 100, 100, factor=10) == pytest.approx(0.1)


def test_all_groups_end_at_the_same_rate():
    """As mmcv's poly policy in the authors' code; heads start ten times higher."""
    config = OptimConfig(lr=0.01, min_lr=1e-4)
    optimizer = build_optimizer(tiny_model("pup"), config)
    for step, rates in ((0, {0.01, 0.1}), (100, {1e-4})):
        set_lr(optimizer, config, step, 100)
        found = {g["lr"] for g in optimizer.param_groups}
        assert sorted(found) == pytest.approx(sorted(rates))
    set_lr(optimizer, config, 90, 100)
    decay = 0.1**0.9
    assert {round(g["lr"], 12) for g in optimizer.param_groups} == {
        round(1e-4 + (0.01 - 1e-4) * decay, 12),
        round(1e-4 + (0.1 - 1e-4) * decay, 12),
    }
    assert learning_rate(config, 50, 100, factor=1e-3) == pytest.approx(1e-5)  # never rises


def test_baselines_decay_norms_too():
    config = OptimConfig(weight_decay=0.1, decay_norms=True)
    assert {decay for _, decay in factors(tiny_model("pup"), config).values()} == {0.1}


def test_moving_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = MovingAverage(model, decay=0.5)
    torch.nn.init.constant_(model.weight, 1.0)
    average.update(model, step=0)  # decay rises from 1/10
    assert average.state["weight"].item() == pytest.approx(0.9)
    average.update(model, step=1000)
    assert average.state["weight"].item() == pytest.approx(0.95)
    with contextlib.suppress(KeyboardInterrupt), average.inside(model):
        assert model.weight.item() == pytest.approx(0.95)
        raise KeyboardInterrupt
    assert model.weight.item() == 1.0


def test_momentum_neck_and_tokens_follow_their_settings():
    config = OptimConfig(momentum=0.7, weight_decay=0.1, neck_lr_factor=3.0)
    model = tiny_model("mla")
    optimizer = build_optimizer(model, config)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}
    found = factors(model, config)
    assert {f for name, (f, _) in found.items() if name.startswith("neck.")} == {3.0}
    assert found["encoder.vit.cls_token"] == (1.0, 0.0)


def test_moving_average_takes_whole_numbers_as_they_are():
    model = torch.nn.BatchNorm2d(1)
    average = MovingAverage(model, decay=0.5)
    model.num_batches_tracked.fill_(7)
    average.update(model, step=0)
    assert average.state["num_batches_tracked"].item() == 7


@pytest.mark.parametrize("name", ["lr", "weight_decay", "clip_grad", "head_lr_factor"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_settings_are_finite_and_not_negative(name, value):
    with pytest.raises(SetrError, match=rf"optim\.{name} {value:g}: give ") as caught:
        OptimConfig(**{name: value})
    assert caught.value.code == USAGE


@pytest.mark.parametrize("decoder", ["naive", "pup", "mla"])
def test_the_papers_recipes_train_as_the_authors_code(decoder):
    """Heads at ten times the rate, 1e-4 at the end, a mean over all pixels, auxiliary heads 0.4."""
    config, steps = recipe(f"cityscapes_setr_{decoder}_large_40k"), 5
    torch.manual_seed(0)
    model = tiny_model(decoder).double().train()
    plain = copy.deepcopy(model)
    ours = build_optimizer(model, config.optim)
    base = 0.002 if decoder == "mla" else 0.01
    peaks = [
        base * (10 if name.startswith(("decoder", "aux_heads")) else 1)
        for name, _ in plain.named_parameters()
    ]
    theirs = torch.optim.SGD([{"params": [p]} for p in plain.parameters()], momentum=0.9)
    for step in range(steps):
        images = torch.randn(2, 3, 32, 48, dtype=torch.double)
        target = torch.randint(0, 5, (2, 32, 48))
        target[:, 20:] = IGNORE
        set_lr(ours, config.optim, step, steps)
        losses = segmentation_loss(
            model(images, with_aux=True),
            target,
            normalizer=torch.tensor(float(target.numel())),
            aux_weight=config.train.aux_weight,
        )
        ours.zero_grad()
        losses["loss"].backward()
        ours.step()

        for group, peak in zip(theirs.param_groups, peaks, strict=True):
            group["lr"] = 1e-4 + (peak - 1e-4) * (1 - step / steps) ** 0.9
        output = plain(images, with_aux=True)
        loss = torch.zeros((), dtype=torch.double)
        for number, logits in enumerate([output.logits, *output.aux]):
            if number and decoder == "pup":
                logits = F.interpolate(logits, scale_factor=4, mode="bilinear")
            full = F.interpolate(logits, (32, 48), mode="bilinear")
            entropy = F.cross_entropy(full, target, ignore_index=IGNORE, reduction="none").mean()
            loss = loss + (0.4 if number else 1.0) * entropy
        theirs.zero_grad()
        loss.backward()
        theirs.step()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)

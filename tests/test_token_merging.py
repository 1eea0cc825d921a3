"""Token merging: what is merged, what decoders get, and where it is refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from setr.encoder import Encoder
from setr.errors import UsageError
from setr.layers.token_merging import most_alike
from setr.model import create_model
from setr.training.complexity import forward_flops
from tests.conftest import tiny_model

SMALL = {"depth": 3, "embed_dim": 64, "num_heads": 2}
PLAIN = "vit_base_patch16_224"


def vit(name: str = PLAIN, **arguments: Any) -> Encoder:
    torch.manual_seed(0)
    settings = {"taps": (1, 3), "img_size": 64, **SMALL, **arguments}
    return Encoder(name, **settings).eval()


def alike(patches: Tensor, h: int, w: int) -> dict[tuple[int, int], float]:
    """By its place, the mean cosine of all pairs of a group's tokens, of (h*w, C) tokens."""
    maps = F.normalize(patches, dim=-1).unflatten(0, (h, w))
    return {
        (i, j): float((group @ group.T).mean())
        for i, j in product(range(h // 2), range(w // 2))
        for group in [maps[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(0, 1)]
    }


@pytest.mark.parametrize(("h", "w"), [(4, 6), (5, 7), (3, 2)])
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_the_most_similar_groups_become_their_mean(h, w, share):
    patches = torch.randn(3, h * w, 8)
    merging = most_alike(patches, (h, w), share)
    merged = merging.merge(patches)
    k = int(share * (h // 2) * (w // 2))
    assert merged.shape == (3, h * w - 3 * k, 8)
    restored = merging.restore(merged)
    for image, found in zip(patches, restored, strict=True):
        by_place = alike(image, h, w)
        best = sorted(by_place, key=lambda place: -by_place[place])[:k]
        expected = image.unflatten(0, (h, w)).clone()
        for i, j in best:
            group = expected[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            group[:] = group.mean(dim=(0, 1))
        torch.testing.assert_close(found.unflatten(0, (h, w)), expected)


def test_patches_that_stay_alone_keep_their_order():
    merging = most_alike(torch.randn(1, 20, 8), (4, 5), 0.5)
    alone = merging.chosen[0, 2:] - 6  # behind the means of six groups, two of them incomplete
    assert alone.tolist() == sorted(alone.tolist())
    assert merging.places[0, alone].tolist() == list(range(2, 14))


def test_an_encoder_runs_its_other_blocks_on_the_merged_tokens():
    encoder, images = vit(merge_tokens=0.5), torch.randn(2, 3, 64, 96)
    first, last = encoder(images)
    tokens, _, grid = encoder.embed(images)
    blocks = encoder.vit.blocks
    tokens = blocks[0](tokens)
    assert torch.equal(first, tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2))
    merging = most_alike(tokens[:, 1:], grid, 0.5)
    fewer = blocks[2](blocks[1](torch.cat([tokens[:, :1], merging.merge(tokens[:, 1:])], dim=1)))
    assert fewer.shape[1] == 1 + 24 - 3 * 3
    expected = merging.restore(fewer[:, 1:]).unflatten(1, grid).permute(0, 3, 1, 2)
    assert torch.equal(last, expected)


@pytest.mark.parametrize(
    "name",
    [
        PLAIN,
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_rope_mixed_224",
        "naflexvit_base_patch16_gap",
        "cait_xxs24_224",
        "deit3_small_patch16_224",
    ],
)
def test_no_merged_group_changes_nothing(name):
    """The path of merged tokens computes what timm's own loop does, whatever the positions."""
    encoder, images = vit(name), torch.randn(2, 3, 70, 84)
    whole = encoder(images)
    encoder.set_merge_tokens(1e-6)  # rounded down to no group
    for ours, plain in zip(encoder(images), whole, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    encoder.set_merge_tokens(0.5)
    assert [m.shape for m in encoder(images)] == [m.shape for m in whole]


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"])
def test_a_merged_token_is_rotated_to_the_middle_of_its_group(name):
    encoder = vit(name)
    _, rope, (h, w) = encoder.embed(torch.randn(1, 3, 64, 64))
    angles = rope if rope.ndim == 2 else rope[0]
    merging = most_alike(torch.randn(1, h * w, 8), (h, w), 1.0)
    turned = merging.turned([angles])[0]
    assert turned is not None
    sines, cosines = (part[..., ::2] for part in angles.unflatten(-2, (h, w)).chunk(2, dim=-1))
    rotation = torch.complex(cosines, sines)[..., :2, :2, :].flatten(-3, -2)
    middle = rotation.mean(dim=-2).angle()
    place = int(merging.places[0, 0])
    own_sines, own_cosines = (part[0, ..., place, ::2] for part in turned.chunk(2, dim=-1))
    torch.testing.assert_close(
        torch.complex(own_cosines, own_sines).squeeze(),
        torch.polar(torch.ones_like(middle), middle).squeeze(),
    )


def test_an_image_does_not_depend_on_its_batch():
    encoder, images = vit(merge_tokens=0.6), torch.randn(3, 3, 80, 64)
    for i, alone in enumerate(images):
        for ours, expected in zip(encoder(images), encoder(alone[None]), strict=True):
            torch.testing.assert_close(ours[i], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", ["naive", "pup", "mla"])
def test_gradients_reach_every_parameter_also_with_checkpointing(decoder):
    images, found = torch.randn(2, 3, 64, 64), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = tiny_model(decoder, merge_tokens=0.5)
        model.set_grad_checkpointing(checkpointing)
        output = model(images, with_aux=True)
        sum(x.square().sum() for x in (output.logits, *output.aux)).backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        assert all(g is not None and bool(g.abs().sum()) for g in grads.values())
        found.append(grads)
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name])


def test_eomt_s_queries_see_merged_patches():
    """Nothing merged changes nothing; a mask admits a merged token if it admits a patch of it."""
    torch.manual_seed(0)
    arguments = {"depth": 3, "embed_dim": 64, "num_heads": 2, "query_blocks": 2}
    model = create_model("eomt_nano", num_classes=4, img_size=64, encoder_args=arguments)
    images = torch.randn(2, 3, 64, 64)
    model.set_progress(0.0)

    def stages(share: float) -> list[Tensor]:
        model.set_merge_tokens(share)
        output = model(images, with_aux=True)
        return [x for stage in output.stages for x in (stage.masks, stage.classes)]

    whole, none, half = stages(0.0), stages(1e-6), stages(0.5)
    for ours, expected in zip(none, whole, strict=True):
        torch.testing.assert_close(ours, expected)
    assert [x.shape for x in half] == [x.shape for x in whole]
    assert not torch.allclose(half[-1], whole[-1])
    sum(x.square().sum() for x in half).backward()
    assert all(p.grad is not None for p in model.parameters())
    encoder = model.encoder
    merging = most_alike(torch.randn(1, 16, 8), (4, 4), 1.0)
    logits = torch.full((1, 1, 4, 4), -1.0)
    logits[0, 0, 1, 2] = 1.0  # of the second group
    share = torch.ones(())
    mask = encoder._attention_mask(logits, 1 + 1 + 4, (4, 4), share, merging)[0, 0, 0]
    second = int(merging.places[0, 2])
    assert mask.tolist() == [True, True, *(i == second for i in range(4))]


def test_a_readout_gets_the_prefix_tokens():
    whole, images = vit(readout="concat"), torch.randn(1, 3, 64, 64)
    whole.set_merge_tokens(1e-6)
    for ours, plain in zip(whole(images), vit(readout="concat")(images), strict=True):
        torch.testing.assert_close(ours, plain)


def test_merging_all_groups_leaves_about_a_quarter_of_the_operations():
    with torch.device("meta"):
        model = create_model("setr_naive_base", num_classes=19, img_size=512)
    whole = forward_flops(model, 512, 512)
    model.set_merge_tokens(1.0)
    assert 0.2 < forward_flops(model, 512, 512) / whole < 0.35


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_other_shares_are_refused(share):
    with pytest.raises(UsageError, match=r"merge_tokens .*: give the share"):
        vit(merge_tokens=share)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("setr_naive_base", {"encoder": "beit_base_patch16_224"}),
        ("setr_naive_base", {"encoder": "samvit_base_patch16"}),
        ("setr_naive_base", {"encoder": "convit_tiny"}),
        ("setr_naive_base", {"encoder": "vit_relpos_small_patch16_224"}),
        ("fcn_r101", {}),
    ],
)
def test_models_that_need_the_whole_grid_are_refused(name, arguments):
    with torch.device("meta"), pytest.raises(UsageError, match="merge_tokens"):
        create_model(name, num_classes=2, merge_tokens=0.5, **arguments)

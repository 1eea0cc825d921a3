"""BEiT's relative position bias: timm's numbers at its own grid, transformers' at any other."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from setr._timm import timm
from setr.config import OptimConfig
from setr.encoder import Encoder
from setr.errors import USAGE, SetrError
from setr.explain import attention_maps, attention_rollout
from setr.layers.relative_bias import bias, places
from setr.layers.timm_vit import list_encoders
from setr.model import SETR, create_model
from setr.training.optim import build_optimizer
from setr.weight_files.relative_bias import relative_taps
from setr.weights import load_weights
from tests.models import (
    assert_near_in_bf16,
    assert_pads_with_zeros,
    assert_same_gradients_recomputed,
)
from tests.test_other_vits import randomised

NAME = "beit_base_patch16_224"
SIZE = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64}


def pair(**more: object) -> tuple[Encoder, torch.nn.Module]:
    """Our encoder and timm's model with the same random weights."""
    theirs = randomised(timm.create_model(NAME, num_classes=0, **SIZE, **more))
    ours = Encoder(NAME, taps=(1, 3), **SIZE, **more).eval()
    ours.vit.load_state_dict(theirs.state_dict(), strict=False)
    return ours, theirs


def looked_up(table: Tensor, own: int, grid: tuple[int, int]) -> Tensor:
    """The bias (M, N, N) of a square table for a grid, one pair of tokens after the other."""
    h, w = grid
    maps = table[:-3].reshape(2 * own - 1, 2 * own - 1, -1)
    N = h * w + 1
    bias = torch.empty(table.shape[1], N, N, dtype=table.dtype)

    def between(line: int, old: int, new: int) -> tuple[int, int, float]:
        """Neighbours and weight of the second one: pixel centres stay in proportion."""
        place = max(0.0, (line + 0.5) * old / new - 0.5)
        low = min(math.floor(place), old - 1)
        return low, min(low + 1, old - 1), place - low

    side = 2 * own - 1
    for i in range(N):
        for j in range(N):
            if i == 0 or j == 0:
                bias[:, i, j] = table[-1 if i == j == 0 else (-3 if i == 0 else -2)]
                continue
            (y1, x1), (y2, x2) = divmod(i - 1, w), divmod(j - 1, w)
            top, bottom, v = between(y1 - y2 + h - 1, side, 2 * h - 1)
            left, right, u = between(x1 - x2 + w - 1, side, 2 * w - 1)
            above = (1 - u) * maps[top, left] + u * maps[top, right]
            below = (1 - u) * maps[bottom, left] + u * maps[bottom, right]
            bias[:, i, j] = (1 - v) * above + v * below
    return bias


# --- the bias -------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"use_abs_pos_emb": True}, {"qkv_bias": False}])
def test_the_own_grid_is_timms_forward(more):
    ours, theirs = pair(**more)
    images = torch.randn(2, 3, 64, 64)
    expected = theirs.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    for mine, reference in zip(ours(images), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 4), (3, 6), (7, 2), (1, 1)])
def test_other_grids_are_transformers_interpolation(grid):
    attn = pair()[0].double().vit.blocks[1].attn
    at = places(grid, has_class_token=True, device=torch.device("cpu"))
    found = bias(attn.rows(grid), at, torch.float64)[0]
    torch.testing.assert_close(found, looked_up(attn.relative_position_bias_table, 4, grid))


def test_images_of_any_size_have_the_resampled_bias():
    """A block by plain operations, on a grid that is neither square nor the table's own."""
    encoder = pair()[0].double()
    images = torch.randn(1, 3, 45, 90, dtype=torch.float64)  # 3 x 6 patches
    tokens = encoder.vit.patch_embed(F.pad(images, (0, 6, 0, 3))).flatten(1, 2)
    tokens = torch.cat([encoder.vit.cls_token, tokens], dim=1)
    block = encoder.vit.blocks[0]
    x = block.norm1(tokens)
    zero = torch.zeros_like(block.attn.q_bias)
    qkv_bias = torch.cat([block.attn.q_bias, zero, block.attn.v_bias])
    q, k, v = (x @ block.attn.qkv.weight.T + qkv_bias).unflatten(2, (3, 2, 16)).unbind(2)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 4
    scores = scores + looked_up(block.attn.relative_position_bias_table, 4, (3, 6))
    mixed = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)
    tokens = tokens + block.gamma_1 * block.attn.proj(mixed)
    tokens = tokens + block.gamma_2 * block.mlp(block.norm2(tokens))
    expected = tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 6))
    torch.testing.assert_close(encoder(images)[0], expected)


def test_odd_sizes_are_padded_with_zeros():
    assert_pads_with_zeros(pair()[0])


def test_a_constant_table_changes_nothing_at_any_size():
    encoder, images = pair()[0], torch.randn(1, 3, 50, 90)
    results = []
    for value in (0.0, 1.5):
        with torch.no_grad():
            for block in encoder.vit.blocks:
                block.attn.relative_position_bias_table.fill_(value)
        results.append(encoder(images)[-1])
    torch.testing.assert_close(*results)


def test_dropped_class_tokens_need_absolute_positions_and_keep_the_offsets():
    with pytest.raises(SetrError, match="need an absolute position embedding"):
        Encoder(NAME, taps=(1,), prefix_tokens="drop", **SIZE)
    with pytest.raises(SetrError, match="need an absolute position embedding"):
        Encoder(NAME, taps=(1,), pos_interp="bilinear", **SIZE)
    encoder = Encoder(NAME, taps=(1,), prefix_tokens="drop", use_abs_pos_emb=True, **SIZE)
    assert encoder(torch.zeros(1, 3, 48, 80))[0].shape == (1, 32, 3, 5)
    whole, patches = (
        places((3, 5), has_class_token=kept, device=torch.device("cpu")).pairs
        for kept in (True, False)
    )
    assert torch.equal(whole[1:, 1:], patches)


# --- training -------------------------------------------------------------------------------------


def tiny(decoder: str = "mla", **more: object) -> SETR:
    torch.manual_seed(0)
    arguments = {**SIZE, "drop_path_rate": 0.1, **more}
    img_size = arguments.pop("img_size")
    name = decoder if decoder.endswith("_nano") else f"setr_{decoder}_nano"
    return create_model(
        name, num_classes=3, encoder=NAME, channels=16, img_size=img_size, encoder_args=arguments
    )


def test_gradients_reach_every_weight_also_recomputed_and_on_other_grids():
    model = randomised(tiny())
    assert_same_gradients_recomputed(model, 50, 90)
    table = model.encoder.vit.blocks[1].attn.relative_position_bias_table
    assert (table.grad.abs() > 0).float().mean() > 0.9


def test_the_gradient_of_a_table_is_that_of_plain_lookups():
    encoder = pair()[0].double()
    attn = encoder.vit.blocks[0].attn
    table = attn.relative_position_bias_table
    at = places((3, 5), has_class_token=True, device=torch.device("cpu"))
    weights = torch.randn(2, 16, 16, dtype=torch.float64)
    (ours,) = torch.autograd.grad(
        (bias(attn.rows((3, 5)), at, torch.float64)[0] * weights).sum(), table
    )
    (plain,) = torch.autograd.grad((looked_up(table, 4, (3, 5)) * weights).sum(), table)
    torch.testing.assert_close(ours, plain)


def test_tables_have_no_weight_decay_and_the_rate_of_their_block():
    model = tiny()
    optimizer = build_optimizer(model, OptimConfig(name="adamw", layer_decay=0.5))
    where = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for i, factor in enumerate((0.125, 0.25, 0.5)):
        group = where[id(model.encoder.vit.blocks[i].attn.relative_position_bias_table)]
        assert (group["lr_factor"], group["weight_decay"]) == (factor, 0.0)


def test_frozen_blocks_have_frozen_tables():
    model = tiny()
    model.encoder.freeze(1)
    free = [b.attn.relative_position_bias_table.requires_grad for b in model.encoder.vit.blocks]
    assert free == [False, True, True]


def test_bf16_is_near_fp32():
    assert_near_in_bf16(randomised(tiny()), 0.05)


# --- as an encoder like any other -----------------------------------------------------------------


def test_all_of_timms_are_listed():
    names = set(list_encoders("beit*"))
    assert names >= {"beit_base_patch16_224", "beit_large_patch16_512", "beitv2_large_patch16_224"}


@pytest.mark.parametrize(
    "arguments", [{"patch_stride": 8}, {"in_chans": 5}, {"readout": "concat"}, {"patch_size": 8}]
)
def test_options_of_other_encoders(arguments):
    encoder = Encoder(NAME, taps=(1, 3), **SIZE, **arguments).eval()
    p = 8 if {"patch_stride", "patch_size"} & set(arguments) else 16
    images = torch.randn(1, arguments.get("in_chans", 3), 40, 56)
    maps = encoder(images)
    width = 64 if "readout" in arguments else 32
    assert [tuple(m.shape) for m in maps] == [(1, width, -(-40 // p), -(-56 // p))] * 2


def test_copies_hold_no_tables_of_pairs():
    encoder = pair()[0]
    assert not dict(encoder.vit.blocks.named_buffers())
    copied, images = copy.deepcopy(encoder), torch.randn(1, 3, 48, 80)
    assert all(map(torch.equal, copied(images), encoder(images)))


@torch.inference_mode()
def test_attention_maps_include_the_bias():
    model = randomised(tiny("pup"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for block in model.encoder.vit.blocks:
            block.attn.qkv.weight.zero_()  # only the bias is left
            block.attn.q_bias.zero_()
    found = attention_maps(model, images, [2], (1, 2))[2]
    table = model.encoder.vit.blocks[1].attn.relative_position_bias_table
    expected = looked_up(table.detach(), 4, (4, 4))[:, 1 + 4 + 2].softmax(-1)[:, 1:]
    torch.testing.assert_close(torch.from_numpy(found).flatten(1), expected)
    assert attention_rollout(model, images, (1, 2)).shape == (4, 4)


def test_eomt_refuses_it_in_one_line():
    with pytest.raises(SetrError, match=f"'{NAME}': its position bias has no values") as error:
        create_model("eomt_base", num_classes=2, encoder=NAME)
    assert error.value.code == USAGE


# --- weights --------------------------------------------------------------------------------------


def own_model(**more: object) -> SETR:
    arguments = {**SIZE, **more}
    img_size = arguments.pop("img_size")
    return create_model(
        "linear_nano", num_classes=2, encoder=NAME, img_size=img_size, encoder_args=arguments
    ).eval()


def test_a_file_of_timm(tmp_path):
    theirs = randomised(timm.create_model(NAME, num_classes=5, **SIZE))
    torch.save(theirs.state_dict(), tmp_path / "beit.pth")
    model, images = own_model(), torch.randn(1, 3, 64, 64)
    report = load_weights(model, tmp_path / "beit.pth")
    assert report.encoder_share == 1
    assert not report.resized
    expected = theirs.forward_intermediates(images, indices=[2], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using a non-tuple", "ignore:torch.searchsorted")
@pytest.mark.parametrize("size", [(96, 64), (32, 160)])
def test_tables_are_resampled_as_timm_does_when_it_loads(tmp_path, size):
    theirs = randomised(timm.create_model(NAME, num_classes=0, **SIZE))
    torch.save({"module": theirs.state_dict()}, tmp_path / "beit.pth")
    model, images = own_model(img_size=size), torch.randn(1, 3, *size)
    report = load_weights(model, tmp_path / "beit.pth")
    assert len(report.resized) == 3
    theirs.set_input_size(size)
    expected = theirs.forward_intermediates(images, indices=[2], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


def test_a_table_that_all_blocks_share_in_microsofts_pretrained_files(tmp_path):
    """Their files also hold the index of pairs, a mask token and a head for visual words."""
    theirs = randomised(timm.create_model(NAME, num_classes=0, **SIZE))
    state = theirs.state_dict()
    shared = torch.randn(52, 2)
    state = {n: v for n, v in state.items() if not n.endswith("bias_table")}
    state |= {
        "rel_pos_bias.relative_position_bias_table": shared,
        "rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.long),
        "mask_token": torch.zeros(1, 1, 32),
        "lm_head.weight": torch.zeros(8, 32),
    }
    torch.save({"model": state}, tmp_path / "beit.pth")
    model = own_model()
    report = load_weights(model, tmp_path / "beit.pth")
    assert report.encoder_share == 1
    assert set(report.unexpected) >= {"mask_token"}
    assert not any("position_index" in name for name in report.unexpected)
    for block in model.encoder.vit.blocks:
        assert torch.equal(block.attn.relative_position_bias_table, shared)


def test_a_plain_vit_starts_without_bias_and_computes_the_same(tmp_path):
    """mmsegmentation's MAE: absolute positions, bias of 0, layer scale of 1, no bias of the key."""
    shape = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64}
    plain = randomised(timm.create_model("vit_base_patch16_224", num_classes=0, **shape))
    torch.save(plain.state_dict(), tmp_path / "mae.pth")
    model, images = own_model(use_abs_pos_emb=True, init_values=0.1), torch.randn(1, 3, 64, 64)
    report = load_weights(model, tmp_path / "mae.pth")
    assert len(report.filled) == 9
    assert report.encoder_share == 1
    expected = plain.forward_intermediates(images, indices=[2], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(SetrError, match="of the encoder"):
        load_weights(own_model(), tmp_path / "mae.pth")  # has no place for the positions


def test_a_table_of_an_unknown_grid_is_refused(tmp_path):
    theirs = timm.create_model(NAME, num_classes=0, **{**SIZE, "img_size": (64, 96)})
    torch.save(theirs.state_dict(), tmp_path / "beit.pth")
    with pytest.raises(SetrError, match="80 rows, which belong to no square grid"):
        load_weights(own_model(), tmp_path / "beit.pth")


@pytest.mark.parametrize(
    ("depth", "taps"), [(12, (4, 6, 8, 12)), (24, (8, 12, 16, 24)), (6, (2, 3, 4, 6))]
)
def test_the_blocks_that_upernet_reads(depth, taps):
    assert relative_taps(depth) == taps

"""timm's ViTs of other kinds as encoders: rotary, NaFlex (RADIO, SigLIP 2), relative biases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from setr._timm import timm
from setr.config import OptimConfig
from setr.encoder import Encoder
from setr.errors import USAGE, SetrError, UsageError
from setr.explain import attention_maps, attention_rollout, layer_features, position_similarity
from setr.exporting.graphs import Graph, trace
from setr.layers.antialiased import bilinear_weights
from setr.lora import add_lora
from setr.model import SETR, create_model
from setr.training.complexity import forward_flops
from setr.training.optim import build_optimizer
from setr.weight_files.flexible_layouts import plain_names
from tests.models import assert_comes_back, assert_near_in_bf16, assert_pads_with_zeros

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
RADIO = "naflexvit_base_patch16_radio_v3"
SIGLIP = "naflexvit_base_patch16_siglip"
FACTORISED = "naflexvit_base_patch16_parfac_gap"
MIXED = "vit_base_patch16_rope_mixed_ape_224"
RELATIVE = "vit_relpos_base_patch16_cls_224"
SHARED = "vit_srelpos_small_patch16_224"
QWEN, DEEPSEEK, CAIT = "qwen3_vit_88m_enc", "deepseek_vit_412m_enc", "cait_xxs24_224"
CONVIT = "convit_tiny"
KINDS: dict[str, dict[str, Any]] = {
    "vit_base_patch16_rope_224": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
    "vit_base_patch16_rope_mixed_224": {},
    MIXED: {},
    "naflexvit_base_patch16_gap": {},
    "naflexvit_base_patch16_par_gap": {},
    FACTORISED: {},
    SIGLIP: {},
    RADIO: {"pos_embed_grid_size": (8, 8)},
    "naflexvit_huge_patch16_radio_v4": {"pos_embed_grid_size": (8, 8)},
    "vit_relpos_base_patch16_224": {},
    RELATIVE: {},
    "vit_relpos_base_patch16_rpn_224": {},
    SHARED: {},
    QWEN: {"pos_embed_grid_size": 6},
    DEEPSEEK: {"patch_size": 16},
    CAIT: {},
    CONVIT: {"local_up_to_layer": 1},
}
OTHERS = [
    ("naflexvit_base_patch16_gap", {"rope_type": "axial"}),
    ("naflexvit_base_patch16_gap", {"rope_type": "mixed", "pos_embed": "none"}),
    ("naflexvit_base_patch16_gap", {"rope_type": "dinov3", "pre_norm": True}),
    (RELATIVE, {"rel_pos_type": "bias"}),
    (SHARED, {"rel_pos_type": "bias"}),
    ("vit_relpos_base_patch16_224", {"rel_pos_type": "mlp-swin"}),
]
FEW = {
    name: KINDS[name] for name in (MIXED, RADIO, FACTORISED, RELATIVE, SHARED, QWEN, CAIT, CONVIT)
}


def randomised(module: nn.Module) -> Any:
    """Random values for all weights; the angles of mixed rotations stay as they are."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith("freqs"):
                parameter.normal_(std=0.3)
    return module.eval()


def pair(name: str, size: Any = 64, **more: Any) -> tuple[Encoder, Any]:
    """Our encoder and timm's model with the same random weights."""
    arguments = {**SMALL, "img_size": size, **more}
    theirs = randomised(timm.create_model(name, num_classes=0, **arguments))
    ours = Encoder(name, taps=(1, 2), **arguments).eval()
    found = ours.vit.load_state_dict(plain_names(theirs.state_dict()), strict=False)
    assert not found.missing_keys
    return ours, theirs


def model_with(name: str, kind: str = "setr_mla_nano", **more: Any) -> SETR:
    torch.manual_seed(0)
    arguments = {"channels": 16} if "eomt" not in kind and "linear" not in kind else {}
    return create_model(
        kind, num_classes=3, encoder=name, img_size=64, encoder_args={**SMALL, **more}, **arguments
    )


# --- timm's numbers -------------------------------------------------------------------------------


ANY_SIZE = [k for k in KINDS.items() if k[0].startswith(("naflex", "qwen", "deepseek"))]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "more", "size"),
    [
        *((*kind, (64, 64)) for kind in (*KINDS.items(), *OTHERS)),  # their own
        *((*kind, size) for kind in ANY_SIZE for size in ((48, 96), (112, 32), (160, 160))),
    ],
)
def test_a_pass_is_timms_forward(name, more, size):
    ours, theirs = (model.double() for model in pair(name, **more))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = theirs.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", [n for n in KINDS if "relpos" in n])
def test_biases_of_offsets_are_timms_for_a_model_of_the_images_size(name):
    ours, theirs = pair(name)
    for size in ((48, 112), (80, 32)):
        images = torch.randn(1, 3, *size)
        theirs.set_input_size(size)
        expected = theirs.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)


def test_relative_tables_of_other_grids_are_resampled_bilinearly():
    ours, _ = pair(SHARED, size=(64, 32), rel_pos_type="bias")
    table = ours.vit.shared_rel_pos.relative_position_bias_table
    rows = ours.vit.shared_rel_pos.rows((3, 5))
    maps = table.t().reshape(1, 2, 7, 3)
    expected = F.interpolate(maps, size=(5, 9), mode="bilinear", align_corners=False)
    assert torch.equal(rows[:, 3:], expected[0].flatten(1))
    assert not rows[:, :3].any()  # there is no class token


@pytest.mark.parametrize("name", KINDS)
def test_odd_sizes_are_padded_with_zeros(name):
    assert_pads_with_zeros(pair(name, **KINDS[name])[0])


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_step_on_a_size_that_is_not_square(name):
    model = model_with(name, **KINDS[name]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    output = model(torch.randn(2, 3, 60, 90), with_aux=True)
    sum(x.square().mean() for x in (output.logits, *output.aux)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    optimizer.step()
    stem = [n for n in before if "patch_embed.proj.weight" in n or "pos_embed" in n]
    assert stem
    assert not any(torch.equal(dict(model.named_parameters())[n], before[n]) for n in stem)


def gradients(model: SETR) -> Iterator[Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    model(torch.randn(2, 3, 48, 80)).square().mean().backward()
    return (p.grad for p in model.encoder.parameters())


@pytest.mark.parametrize("name", FEW)
def test_recomputed_gradients_and_fast_products_are_the_same(name, onednn):
    """Also in train mode, with the dropout of the MLP of offsets."""
    model = randomised(model_with(name, "setr_naive_nano", **KINDS[name])).train()
    plain = list(gradients(model))
    model.set_grad_checkpointing()
    again = list(gradients(model))
    model.set_grad_checkpointing(False)
    for block in model.encoder.vit.blocks:
        base = type(block)._wrapped[0]  # timm's class, with products as they are
        block.__class__ = base
    slow = list(gradients(model))
    for found in (again, slow):
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FEW)
def test_bf16_is_near_fp32(name):
    assert_near_in_bf16(randomised(model_with(name, "linear_nano", **KINDS[name])), 0.06)


def test_angles_have_no_weight_decay_and_frozen_blocks_keep_theirs():
    model = model_with(MIXED)
    groups = build_optimizer(model, OptimConfig(name="adamw", layer_decay=0.5)).param_groups
    where = {id(p): group for group in groups for p in group["params"]}
    angles = where[id(model.encoder.vit.rope.freqs)]
    assert (angles["lr_factor"], angles["weight_decay"]) == (0.125, 0.0)  # as the stem
    model.encoder.freeze(1)
    free = {n for n, p in model.encoder.named_parameters() if p.requires_grad}
    assert free
    assert all(".blocks.1." in n for n in free)


@pytest.mark.parametrize("name", FEW)
def test_lora_trains_attention_alone(name):
    model = model_with(name, **KINDS[name])
    add_lora(model, 2)
    free = {n.rsplit(".", 4)[0] for n, p in model.encoder.named_parameters() if p.requires_grad}
    ends = ("qkv", "proj") if "rope" not in name else ("qkv", "proj", "q_proj", "k_proj", "v_proj")
    ends = ("qk", "v", "qkv", "proj") if name == CONVIT else ends
    assert free
    assert all(n.rpartition(".")[2] in ends for n in free)


# --- options of other encoders --------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("arguments", [{"patch_stride": 8}, {"in_chans": 5}, {"patch_size": 8}])
def test_options_of_other_encoders(name, arguments):
    encoder = Encoder(name, taps=(1, 2), img_size=64, **SMALL, **KINDS[name], **arguments).eval()
    p = 8 if {"patch_stride", "patch_size"} & set(arguments) else 16
    maps = encoder(torch.randn(1, arguments.get("in_chans", 3), 40, 56))
    width = encoder.channels
    assert [tuple(m.shape) for m in maps] == [(1, width, -(-40 // p), -(-56 // p))] * 2


def test_class_tokens_are_read_out_and_others_are_not():
    encoder = Encoder(RADIO, taps=(2,), readout="concat", **SMALL, **KINDS[RADIO]).eval()
    images = torch.randn(1, 3, 32, 48)
    behind: list[torch.Tensor] = []
    encoder.vit.blocks[-1].register_forward_hook(lambda *args: behind.append(args[-1]))
    (found,) = encoder(images)
    assert behind[0].shape == (1, 8 + found[0, 0].numel(), 32)
    assert torch.equal(found[0, 32:, 0, 0], behind[0][0, 0])
    with pytest.raises(SetrError, match=f"{SIGLIP} has no class token"):
        Encoder(SIGLIP, taps=(1,), readout="add", **SMALL)


@pytest.mark.parametrize("name", [RADIO, RELATIVE, "vit_base_patch16_rope_224"])
def test_options_that_need_plain_positions_are_refused(name):
    for options in ({"pos_interp": "bilinear"}, {"prefix_tokens": "drop"}):
        with pytest.raises(SetrError, match="need an absolute position embedding") as error:
            Encoder(name, taps=(1,), **SMALL, **options)
        assert error.value.code == USAGE


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", SIGLIP])
def test_patches_cannot_be_dropped(name):
    with pytest.raises(SetrError, match="patch_drop_rate leaves holes in the feature maps"):
        Encoder(name, taps=(1,), **SMALL, patch_drop_rate=0.5)


def test_naflex_positions_keep_their_grid_whatever_the_size():
    encoder = Encoder(SIGLIP, taps=(1,), img_size=(64, 96), **SMALL)
    assert encoder.vit.pos_embed.shape == (1, 256, 32)
    assert encoder.vit.patch_embed.img_size == (64, 96)  # protocols take windows of this size
    own = Encoder(RADIO, taps=(1,), **SMALL).vit.patch_embed
    assert (own.img_size, own.grid_size) == ((512, 512), (128, 128))


# --- EoMT -----------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("name", [MIXED, "vit_base_patch16_rope_224", SIGLIP])
def test_eomt_without_queries_is_timms_forward(name):
    arguments = {**SMALL, "img_size": 64, **KINDS[name]}
    theirs = randomised(timm.create_model(name, num_classes=0, **arguments))
    model = model_with(name, "eomt_base", query_blocks=1, **KINDS[name]).eval()
    state = plain_names(theirs.state_dict())
    assert not model.encoder.vit.load_state_dict(state, strict=False).missing_keys
    images = torch.randn(2, 3, 64, 64)
    expected = theirs.forward_intermediates(images, indices=[1], norm=True, intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [RADIO, "vit_base_patch16_rope_reg1_gap_256", QWEN])
def test_eomt_gets_a_norm_where_the_encoder_has_none(name):
    model = model_with(name, "eomt_base", query_blocks=1, **KINDS[name])
    (patches,) = model.encoder(torch.randn(1, 3, 48, 64))
    torch.testing.assert_close(patches.mean(1), torch.zeros(1, 3, 4), atol=1e-5, rtol=0)
    output = model(torch.randn(1, 3, 48, 64), with_aux=True)
    sum(x.square().mean() for stage in output.stages for x in stage).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (RELATIVE, "its position bias has no values"),
        (SHARED, "its position bias has no values"),
        (CAIT, "its blocks take no masks"),
        (CONVIT, "its blocks take no masks"),
        ("gemma4_vit_167m_enc", "its blocks rotate all tokens"),
        (DEEPSEEK, "its blocks take no masks"),
    ],
)
def test_eomt_refuses_other_attention_in_one_line(name, reason):
    with pytest.raises(SetrError, match=f"'{name}': {reason}") as error:
        create_model("eomt_base", num_classes=2, encoder=name)
    assert error.value.code == USAGE


# --- around the encoder ---------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("name", [SHARED, "vit_relpos_base_patch16_224"])
def test_attention_maps_include_the_bias(name):
    model = randomised(model_with(name, "setr_pup_nano"))
    for block in model.encoder.vit.blocks:
        block.attn.qkv.weight.zero_()  # only the bias is left
        if block.attn.qkv.bias is not None:
            block.attn.qkv.bias.zero_()
    vit, images = model.encoder.vit, torch.randn(1, 3, 48, 80)
    found = attention_maps(model, images, [2], (1, 2))[2]
    rows = (vit.shared_rel_pos or vit.blocks[1].attn.rel_pos).rows((3, 5))[:, 3:]
    scores = rows.reshape(2, 5, 9)[:, range(3, 0, -1)][:, :, range(6, 1, -1)]
    expected = scores.flatten(1).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(found).flatten(1), expected)
    assert attention_rollout(model, images, (1, 2)).shape == (3, 5)


@torch.inference_mode()
@pytest.mark.parametrize("name", FEW)
def test_attention_and_features_can_be_shown(name):
    model, images = randomised(model_with(name, **KINDS[name])), torch.randn(1, 3, 48, 80)
    if name in (CAIT, CONVIT):
        with pytest.raises(UsageError, match="no plain attention that could be shown"):
            attention_maps(model, images, [1, 2], (0, 0))
    else:
        maps = attention_maps(model, images, [1, 2], (0, 0))
        assert {m.shape for m in maps.values()} == {(2, 3, 5)}
        assert all((m.sum((1, 2)) <= 1 + 1e-5).all() for m in maps.values())
    features = layer_features(model, images, [2])[2]
    np.testing.assert_allclose(features, model.encoder(images)[-1][0].numpy(), atol=1e-5)


def test_positions_can_be_compared_also_factorised_or_of_a_large_grid():
    model = randomised(model_with(FACTORISED))
    vit = model.encoder.vit.requires_grad_(False)
    rows, columns = vit.pos_embed_y[0], vit.pos_embed_x[0]
    similarity = position_similarity(model)
    expected = F.cosine_similarity(rows[1] + columns[2], rows[3] + columns[0], dim=0)
    assert similarity[1, 2, 3, 0] == pytest.approx(float(expected), abs=1e-6)
    assert position_similarity(model_with(RADIO)).shape == (64, 64, 64, 64)
    with pytest.raises(SetrError, match="rotary or relative"):
        position_similarity(model_with(RELATIVE))


@pytest.mark.parametrize("name", FEW)
def test_a_saved_model_is_the_same(name, tmp_path):
    assert_comes_back(randomised(model_with(name, **KINDS[name])), tmp_path)


@pytest.mark.parametrize("name", FEW)
def test_operations_are_counted_without_weights(name):
    with torch.device("meta"):
        model = create_model(
            "linear_nano", num_classes=3, encoder=name, encoder_args={**SMALL, **KINDS[name]}
        )
    assert 2 < forward_flops(model, 96, 160) / forward_flops(model, 64, 96) < 6


@pytest.mark.parametrize(
    ("name", "more"), [(MIXED, {}), (RADIO, KINDS[RADIO]), (RELATIVE, {"rel_pos_type": "bias"})]
)
def test_exported_graphs_are_equal_at_any_size(name, more):
    model = randomised(model_with(name, "linear_nano", **more))
    program = trace(Graph(model, "logits")).module(check_guards=False)
    for shape in ((1, 3, 64, 64), (3, 3, 90, 37), (2, 3, 37, 90)):
        images = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(program(images)[0], model(images), atol=1e-4, rtol=1e-4)


def test_exported_angles_keep_their_digits_in_half_precision():
    model = model_with(MIXED)
    graph = Graph(model, "logits", torch.bfloat16)
    copied = graph.model.encoder.vit
    assert copied.blocks[0].attn.qkv.weight.dtype is torch.bfloat16
    assert torch.equal(copied.rope.freqs, model.encoder.vit.rope.freqs)


@pytest.mark.parametrize(("old", "new"), [(16, 16), (16, 33), (37, 9), (1, 5), (5, 1)])
def test_bilinear_weights_are_those_of_interpolate(old, new):
    x = torch.randn(1, 2, old, 3)
    expected = F.interpolate(x, (new, 3), mode="bilinear", antialias=True)
    torch.testing.assert_close(bilinear_weights(old, new) @ x, expected, atol=1e-5, rtol=0)

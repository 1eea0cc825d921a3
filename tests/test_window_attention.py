"""SAM's image encoder: timm's numbers at any size, its weight files, and all around an encoder."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from setr._timm import timm
from setr.config import OptimConfig
from setr.encoder import Encoder
from setr.errors import USAGE, SetrError
from setr.explain import attention_maps, attention_rollout, layer_features, position_similarity
from setr.layers.attention import attention
from setr.layers.timm_vit import list_encoders
from setr.lora import add_lora
from setr.model import SETR, create_model
from setr.recipes import recipe
from setr.training.build import build_model
from setr.training.optim import build_optimizer
from setr.weight_files.licences import offered_licence, weights_licence
from setr.weights import load_weights
from tests.models import (
    assert_comes_back,
    assert_near_in_bf16,
    assert_pads_with_zeros,
    assert_same_gradients_recomputed,
)
from tests.test_other_vits import randomised

NAME = "samvit_base_patch16"
SHAPE = {"embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 3, "global_attn_indexes": (1,)}
SIZE = {**SHAPE, "img_size": 64}
TIMMS = {"norm_eps": 1e-5}
"""timm's epsilon; the authors' and so ours is 1e-6."""


def timms(**more: object) -> torch.nn.Module:
    return randomised(timm.create_model(NAME, num_classes=0, **{**SIZE, **more}))


def pair(**more: object) -> tuple[Encoder, torch.nn.Module]:
    """Our encoder and timm's model with the same random weights."""
    theirs = timms(**more)
    ours = Encoder(NAME, taps=(1, 2), **TIMMS, **{**SIZE, **more}).eval()
    state = theirs.state_dict()
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"].flatten(1, 2)
    assert not ours.vit.load_state_dict(state, strict=False).missing_keys
    return ours, theirs


def equal_timms(ours: Encoder, theirs: torch.nn.Module, images: Tensor) -> None:
    expected = theirs.forward_intermediates(images, intermediates_only=True)
    for mine, reference in zip(ours(images), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


# --- the encoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (48, 112), (16, 16), (96, 32)])
@torch.no_grad()
def test_the_maps_are_timms_on_any_grid(size):
    """The tables' own grid, padded windows, a single patch, whole windows."""
    equal_timms(*pair(), torch.randn(2, 3, *size))


@pytest.mark.parametrize(
    "more",
    [
        {"use_abs_pos": False},
        {"use_rel_pos": False},
        {"qk_norm": True},
        {"qkv_bias": False, "init_values": 0.1, "pre_norm": True},
        {"window_size": 0},
    ],
    ids=str,
)
@torch.no_grad()
def test_the_maps_are_timms_with_other_arguments(more):
    equal_timms(*pair(**more), torch.randn(1, 3, 48, 80))


def test_a_score_has_the_vectors_of_its_offsets():
    """The global block by plain operations, one pair of patches after the other."""
    attn = pair()[0].double().vit.blocks[1].attn
    h, w = 4, 4
    q, k = torch.randn(2, 1, 2, h * w, 16, dtype=torch.float64)
    wide_q, wide_k = attn._with_positions(q, k, (h, w))
    for i in range(h * w):
        for j in range(h * w):
            (y, x), (y2, x2) = divmod(i, w), divmod(j, w)
            vectors = attn.rel_pos_h[y - y2 + h - 1] + attn.rel_pos_w[x - x2 + w - 1]
            score = (q[0, :, i] * k[0, :, j]).sum(-1) / 4 + q[0, :, i] @ vectors
            found = (wide_q[0, :, i] * wide_k[0, :, j]).sum(-1) / 4
            torch.testing.assert_close(found, score)


def test_odd_sizes_are_padded_with_zeros():
    assert_pads_with_zeros(pair()[0])


@torch.no_grad()
def test_norms_have_the_authors_epsilon():
    encoder = Encoder(NAME, taps=(1, 2), **SIZE)
    norms = [m for m in encoder.vit.blocks.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 4
    assert {norm.eps for norm in norms} == {1e-6}


def test_only_the_blocks_and_the_stem_are_left():
    encoder = Encoder(NAME, taps=(1,), **SIZE)
    parts = {name.split(".")[1] for name, _ in encoder.named_parameters()}
    assert parts == {"pos_embed", "patch_embed", "blocks"}
    assert len(encoder.stages()) == 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [("base", (3, 6, 9, 12)), ("large", (6, 12, 18, 24)), ("huge", (8, 16, 24, 32))],
)
def test_mla_reads_the_global_blocks(size, expected):
    with torch.device("meta"):
        model = create_model("setr_mla_base", num_classes=2, encoder=f"samvit_{size}_patch16")
    assert model.arguments["taps"] == expected
    attends = [block.attn.window_size for block in model.encoder.vit.blocks]
    assert tuple(i for i, side in enumerate(attends, 1) if not side) == expected


def test_attention_takes_values_of_another_width_and_a_scale():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 20, 12)
    v = torch.randn(2, 3, 20, 5)
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.7)
    with torch.autocast("cpu", torch.bfloat16):
        rough = attention(q, k, v, 0.7)
    torch.testing.assert_close(rough.float(), expected, atol=0.03, rtol=0.03)


# --- training -------------------------------------------------------------------------------------


def tiny(name: str = "setr_mla_nano", *, encoder_args: dict | None = None, **more: object) -> SETR:
    torch.manual_seed(0)
    arguments = {"num_classes": 3, "encoder": NAME, "img_size": 64, "channels": 16, **more}
    if name in ("linear_nano", "eomt_nano"):
        del arguments["channels"]
    return create_model(name, encoder_args={**SHAPE, **(encoder_args or {})}, **arguments)


def test_gradients_reach_every_weight_also_recomputed_and_on_other_grids():
    model = randomised(tiny(encoder_args={"drop_path_rate": 0.1}))
    assert_same_gradients_recomputed(model, 50, 90)
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_gradients_are_timms():
    """On another grid than the tables'; absolute positions would be resampled in fp32 by timm."""
    ours, theirs = (encoder.double() for encoder in pair(use_abs_pos=False))
    images = torch.randn(1, 3, 48, 80, dtype=torch.float64)
    ours(images)[-1].square().sum().backward()
    theirs.forward_intermediates(images, intermediates_only=True)[-1].square().sum().backward()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.vit.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name].grad)


def test_drop_path_drops_images_not_windows():
    encoder = Encoder(NAME, taps=(1,), **{**SIZE, "drop_path_rate": 0.5}).train()
    block = encoder.vit.blocks[0]
    block.drop_path1 = type("Seen", (torch.nn.Module,), {"forward": seen})()
    encoder(torch.randn(2, 3, 64, 96))
    assert block.drop_path1.shape == (2, 24, 32)


def seen(self: torch.nn.Module, x: Tensor) -> Tensor:
    self.shape = x.shape
    return x


def test_rates_decay_by_layer_and_vectors_of_offsets_have_no_weight_decay():
    model = tiny()
    optimizer = build_optimizer(model, OptimConfig(name="adamw", layer_decay=0.5))
    where = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for i, factor in enumerate((0.25, 0.5)):
        group = where[id(model.encoder.vit.blocks[i].attn.rel_pos_h)]
        assert (group["lr_factor"], group["weight_decay"]) == (factor, 0.0)
    group = where[id(model.encoder.vit.pos_embed)]
    assert (group["lr_factor"], group["weight_decay"]) == (0.125, 0.0)


def test_blocks_freeze_and_lora_trains_their_attention():
    model = tiny()
    model.encoder.freeze(1)
    assert [b.attn.rel_pos_w.requires_grad for b in model.encoder.vit.blocks] == [False, True]
    model = randomised(tiny())
    images = torch.randn(1, 3, 48, 80)
    before = model(images)
    add_lora(model, 2)
    torch.testing.assert_close(model(images), before)
    model(images).square().mean().backward()
    assert sum(p.requires_grad for p in model.encoder.parameters()) == 2 * 2 * 2


def test_bf16_is_near_fp32():
    assert_near_in_bf16(randomised(tiny()), 0.05)


def test_the_run_says_nothing_of_normalisation_for_sa1b(capsys, tmp_path):
    """SAM was trained with ImageNet's mean and deviation, the default."""
    torch.save(timm.create_model(NAME, num_classes=0, depth=1).state_dict(), tmp_path / "sam.pth")
    config = recipe("finetune")
    model = dataclasses.replace(
        config.model, encoder=NAME, pretrained=str(tmp_path / "sam.pth"), taps=(1,)
    )
    build_model(dataclasses.replace(config, model=model), 2)
    said = capsys.readouterr().err
    assert "dialect timm" in said
    assert "was trained with" not in said


# --- as an encoder like any other -----------------------------------------------------------------


def test_all_of_timms_are_listed_with_their_licence():
    assert set(list_encoders("samvit*")) == set(timm.list_models("samvit*"))
    assert offered_licence(NAME) == weights_licence(NAME, "sa1b") == "apache-2.0"


@pytest.mark.parametrize(
    "arguments",
    [
        {"patch_stride": 8},
        {"in_chans": 5},
        {"encoder_args": {"patch_size": 8}},
        {"pos_interp": "bilinear"},
        {"prefix_tokens": "drop"},
        {"name": "hybrid_base", "resnet": "resnet18"},
        {"name": "dpt_nano"},
        {"name": "upernet_nano", "neck": "feature2pyramid", "encoder_args": {"depth": 4}},
        {"img_size": (48, 80)},
    ],
    ids=str,
)
def test_options_of_other_encoders(arguments):
    model = tiny(**arguments).eval()
    p = (
        8
        if {"patch_stride", "patch_size"} & {*arguments, *arguments.get("encoder_args", ())}
        else 16
    )
    images = torch.randn(1, arguments.get("in_chans", 3), 40, 56)
    assert model(images).shape == (1, 3, 40, 56)
    assert model.encoder(images)[-1].shape == (1, 32, -(-40 // p), -(-56 // p))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "eomt_nano"}, f"'{NAME}': its windows have no place for EoMT's queries; choose"),
        ({"encoder_args": {"readout": "add"}}, "has no class token; give readout 'ignore'"),
        ({"encoder_args": {"use_rope": True, "use_rel_pos": False}}, "use_rope.*leave it out"),
        ({"encoder_args": {"patch_drop_rate": 0.1}}, "patch_drop_rate"),
        ({"img_size": 8}, "cannot be built with img_size 8"),
        ({"encoder_args": {"window_size": -1}}, "cannot be built with.*window_size -1"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message):
    with pytest.raises(SetrError, match=message) as error:
        tiny(**arguments)
    assert error.value.code == USAGE
    assert "\n" not in str(error.value)


def test_copies_and_model_directories_compute_the_same(tmp_path):
    model, images = randomised(tiny()), torch.randn(1, 3, 48, 80)
    expected = model(images)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(images), expected)
    assert_comes_back(model, tmp_path)


def test_copies_hold_no_index_of_pairs():
    assert not dict(pair()[0].named_buffers())


# --- attention maps -------------------------------------------------------------------------------


def unfused(model: SETR, images: Tensor) -> list[Tensor]:
    """Weights (windows, M, n, n) of each block, from timm's own forward without a fused kernel."""
    theirs = timms()
    state = {k.removeprefix("vit."): v for k, v in model.encoder.state_dict().items()}
    state["pos_embed"] = state["pos_embed"].unflatten(1, (4, 4))
    theirs.load_state_dict(state, strict=False)
    found: list[Tensor] = []
    for block in theirs.blocks:
        for norm in (block.norm1, block.norm2):
            norm.eps = 1e-6
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, x: found.append(x[0]))
    theirs.forward_intermediates(images)
    return [weights.unflatten(0, (-1, 2)) for weights in found]


@torch.no_grad()
def test_maps_of_windows_are_in_place_and_zero_elsewhere():
    model, images = randomised(tiny(taps=(1, 2))), torch.randn(1, 3, 64, 80)  # 4 x 5 patches
    windows, whole = unfused(model, images)
    maps = attention_maps(model, images, (1, 2), (2, 4))
    # row 2 and column 4 are at row 2 and column 1 of the second of 2 x 2 windows of 3 x 3
    expected = torch.zeros(2, 4, 5)
    expected[:, :3, 3:] = windows[1, :, 2 * 3 + 1].unflatten(1, (3, 3))[:, :, :2]
    torch.testing.assert_close(torch.from_numpy(maps[1]), expected, rtol=1e-4, atol=1e-6)
    expected = whole[0, :, 2 * 5 + 4].unflatten(1, (4, 5))
    torch.testing.assert_close(torch.from_numpy(maps[2]), expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_rollout_follows_windows():
    model, images = randomised(tiny(taps=(1, 2))), torch.randn(1, 3, 64, 80)
    windows, whole = (weights.mean(dim=1) for weights in unfused(model, images))
    first = torch.zeros(20, 20)
    places = model.encoder.vit.blocks[0].attn.places((4, 5))
    assert places.shape == (4, 9)
    for window, weights in zip(places, windows, strict=True):
        inside = [(i, int(token)) for i, token in enumerate(window) if token >= 0]
        for i, token in inside:
            for j, other in inside:
                first[token, other] = weights[i, j]
    product = (0.5 * whole[0] + 0.5 * torch.eye(20)) @ (0.5 * first + 0.5 * torch.eye(20))
    found = attention_rollout(model, images, (2, 4))
    np.testing.assert_allclose(found, product[14].reshape(4, 5), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_features_and_positions_can_be_shown():
    model = randomised(tiny())
    assert layer_features(model, torch.randn(1, 3, 48, 80), (1, 2))[2].shape == (32, 3, 5)
    assert position_similarity(model).shape == (4, 4, 4, 4)


# --- weights --------------------------------------------------------------------------------------


def meta_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in Meta's and MedSAM's files, with a few tensors of the other parts."""
    named = {f"image_encoder.{n.replace('mlp.fc', 'mlp.lin')}": v for n, v in state.items()}
    return named | {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.zeros(2, 8),
        "mask_decoder.transformer.layers.0.mlp.lin1.weight": torch.zeros(8, 4),
    }


def transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As in the files of transformers' SamModel and SamVisionModel."""
    named = {}
    for name, value in state.items():
        for old, new in (("blocks.", "layers."), ("norm1", "layer_norm1"), ("norm2", "layer_norm2"),
                         ("mlp.fc", "mlp.lin"), ("embed.proj", "embed.projection"),
                         ("neck.0", "neck.conv1"), ("neck.2", "neck.conv2")):  # fmt: skip
            name = name.replace(old, new)
        named[f"vision_encoder.{name}"] = value
    return named | {
        "shared_image_embedding.positional_embedding": torch.zeros(2, 8),
        "mask_decoder.transformer.layers.0.mlp.lin1.weight": torch.zeros(8, 4),
    }


def write(path: Path, layout: str, state: dict[str, Tensor]) -> Path:
    names = {
        "timm": lambda s: s,
        "meta": meta_names,
        "transformers": transformers_names,
        "encoder alone": lambda s: {n.replace("mlp.fc", "mlp.lin"): v for n, v in s.items()},
        "training": lambda s: {"model": {f"module.{n}": v for n, v in meta_names(s).items()}},
    }
    torch.save(names[layout](state), path)
    return path


@pytest.mark.parametrize("layout", ["timm", "meta", "transformers", "encoder alone", "training"])
@torch.no_grad()
def test_files_of_every_layout(tmp_path, layout):
    theirs = timms()
    model = tiny("linear_nano", encoder_args=TIMMS).eval()
    report = load_weights(model, write(tmp_path / "sam.pth", layout, theirs.state_dict()))
    assert report.dialect == ("timm" if layout == "timm" else "sam")
    assert report.encoder_share == 1
    assert not report.resized + report.missing
    unused = [name for name in report.unexpected if "neck." not in name]
    assert len(unused) == (0 if layout in ("timm", "encoder alone") else 2)
    images = torch.randn(1, 3, 48, 80)
    expected = theirs.forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(model.encoder(images)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 48), (32, 80), 128])
@torch.no_grad()
def test_weights_for_another_grid_are_resampled_once_as_in_a_pass(tmp_path, size):
    theirs = timms()
    path = write(tmp_path / "sam.pth", "meta", theirs.state_dict())
    model = tiny("linear_nano", encoder_args=TIMMS, img_size=size).eval()
    report = load_weights(model, path)
    assert sorted(name.rpartition(".")[2] for name in report.resized) == [
        "pos_embed", "rel_pos_h", "rel_pos_w",
    ]  # fmt: skip
    images = torch.randn(1, 3, *((size, size) if isinstance(size, int) else size))
    expected = theirs.forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(model.encoder(images)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_file_of_another_size_is_one_line(tmp_path):
    path = write(tmp_path / "sam.pth", "meta", timms(embed_dim=48).state_dict())
    with pytest.raises(SetrError, match=r"fits \d+% of the encoder .*choose the encoder"):
        load_weights(tiny("linear_nano"), path)


def test_positions_are_not_dropped_in_silence(tmp_path):
    """`samvit_base_patch16_224` has the same blocks, but no absolute positions."""
    path = write(tmp_path / "sam.pth", "meta", timms().state_dict())
    model = tiny("linear_nano", encoder=f"{NAME}_224")
    with pytest.raises(SetrError, match="the encoder has no place for"):
        load_weights(model, path)
    assert "encoder.vit.pos_embed" in load_weights(model, path, partial=True).unexpected


def test_rgb_weights_are_adapted_to_other_bands(tmp_path):
    path = write(tmp_path / "sam.pth", "transformers", timms().state_dict())
    report = load_weights(tiny("linear_nano", in_chans=5), path)
    assert report.adapted == ["encoder.vit.patch_embed.proj.weight"]

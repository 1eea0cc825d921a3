"""Encoders under the names of their authors, compared with timm's own conversion of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from setr._timm import timm
from setr.errors import SetrError
from setr.model import create_model
from setr.weights import load_weights
from tests.test_other_vits import randomised

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
State = dict[str, Tensor]


def theirs(name: str, **more: Any) -> Any:
    size = 56 if "patch14" in name else 64
    return randomised(timm.create_model(name, num_classes=0, img_size=size, **{**SMALL, **more}))


def maps(name: str, state: Any, tmp_path: Any, **more: Any) -> tuple[Any, Tensor, Tensor]:
    """What our encoder makes of a file: the report, images and the map of the last block."""
    torch.save(state, tmp_path / "weights.pth")
    size = 56 if "patch14" in name else 64
    model = create_model("linear_nano", num_classes=2, encoder=name, img_size=size,
                         encoder_args={**SMALL, **more}).eval()  # fmt: skip
    report = load_weights(model, tmp_path / "weights.pth")
    torch.manual_seed(1)
    images = torch.randn(1, model.encoder.in_chans, size, size)
    with torch.inference_mode():
        return report, images, model.encoder(images)[0]


def last_map(vit: Any, images: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = vit.forward_intermediates(images, [1], intermediates_only=True)[0]
    return found


def renamed(state: State, swaps: list[tuple[str, str]], start: str = "") -> State:
    """The names after all replacements (regular expressions), with others' shapes of tokens."""
    found = {}
    for name, value in state.items():
        for pattern, target in swaps:
            name = re.sub(pattern, target, name)
        found[start + name] = value
    return found


def openclip_names(state: State, start: str) -> State:
    swaps = [
        (r"^norm\.", "ln_post."), (r"^norm_pre\.", "ln_pre."),
        (r"^blocks", "transformer.resblocks"),
        (r"\.norm([12])\.", r".ln_\1."), (r"patch_embed\.proj", "conv1"),
        (r"attn\.qkv\.", "attn.in_proj_"), (r"attn\.proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"), (r"gamma_([12])", r"ls_\1.gamma"),
        (r"^cls_token", "class_embedding"), (r"^pos_embed", "positional_embedding"),
    ]  # fmt: skip
    named = {n: v for n, v in renamed(state, swaps).items() if not n.startswith("attn_pool")}
    named["positional_embedding"] = named["positional_embedding"][0]
    if "class_embedding" in named:
        named["class_embedding"] = named["class_embedding"][0, 0]
    text = {"positional_embedding": torch.ones(7, 3)} if start else {}
    text |= {"transformer.resblocks.0.ln_1.weight": torch.ones(3)} if start else {}
    return {start + name: value for name, value in named.items()} | text


def aimv2_names(state: State, start: str) -> State:
    return renamed(
        state,
        [
            (r"\.norm([12])\.", r".norm_\1."), ("fc1_g", "fc1"), ("fc1_x", "fc3"),
            (r"^norm\.", "trunk.post_trunk_norm."), (r"^blocks", "trunk.blocks"),
            (r"^patch_embed\.", "preprocessor.patchifier."),
            (r"^pos_embed", "preprocessor.pos_embed"),
        ],
        start,
    )  # fmt: skip


def eva_names(state: State, start: str) -> State:
    swaps = [
        (r"mlp\.fc2", "mlp.w3"), (r"mlp\.fc1_g", "mlp.w1"), (r"mlp\.fc1_x", "mlp.w2"),
        (r"mlp\.norm", "mlp.ffn_ln"), (r"attn\.norm", "attn.inner_attn_ln"),
        (r"([qv])_proj\.bias", r"\1_bias"),
    ]  # fmt: skip
    angles = {f"{start}rope.freqs_cos": torch.ones(2), f"{start}blocks.0.attn.rope.freqs_sin":
              torch.ones(2)}  # fmt: skip
    return renamed(state, swaps, start) | angles


def trunk_names(state: State, start: str) -> State:
    return renamed(state, [], start) | {"text.transformer.resblocks.0.ln_1.weight": torch.ones(3)}


Filter = Callable[[State, Any], State]
PLAIN: Filter = timm.models.vision_transformer.checkpoint_filter_fn
EVA: Filter = timm.models.eva.checkpoint_filter_fn
CLIP = "vit_base_patch16_clip_224"


@pytest.mark.parametrize(
    ("name", "rename", "start", "convert", "dialect"),
    [
        (CLIP, openclip_names, "visual.", PLAIN, "openclip"),
        ("vit_pe_core_base_patch16_224", openclip_names, "visual.", EVA, "openclip"),
        ("vit_pe_spatial_base_patch16_512", openclip_names, "", EVA, "openclip"),
        ("aimv2_large_patch14_224", aimv2_names, "", PLAIN, "aimv2"),
        ("eva02_base_patch16_clip_224", eva_names, "visual.", EVA, "timm"),
        ("eva02_tiny_patch14_224", eva_names, "", EVA, "timm"),
        ("vit_base_patch16_siglip_224", trunk_names, "visual.trunk.", PLAIN, "timm"),
    ],
)
def test_the_names_of_others_mean_what_timm_says(name, rename, start, convert, dialect, tmp_path):
    state = rename(theirs(name).state_dict(), start)
    report, images, found = maps(name, dict(state), tmp_path)
    assert (report.dialect, report.encoder_share) == (dialect, 1)
    vit = timm.create_model(name, num_classes=0, img_size=images.shape[-1], **SMALL).eval()
    missing = vit.load_state_dict(convert(dict(state), vit), strict=False).missing_keys
    assert not [n for n in missing if not n.startswith("attn_pool")]
    torch.testing.assert_close(found, last_map(vit, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", ["", "vision_model."])
def test_internvit_under_opengvlabs_names(start, tmp_path):
    name = "vit_intern300m_patch14_448"
    vit = theirs(name)
    swaps = [
        (r"^cls_token", "embeddings.class_embedding"), (r"^blocks", "encoder.layers"),
        (r"^pos_embed", "embeddings.position_embedding"), (r"\.gamma$", ""),
        (r"patch_embed\.proj", "embeddings.patch_embedding"),
    ]  # fmt: skip
    report, images, found = maps(name, renamed(vit.state_dict(), swaps, start), tmp_path)
    assert (report.dialect, report.encoder_share) == ("internvit", 1)
    torch.testing.assert_close(found, last_map(vit, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", ["", "model.vision_tower."])
def test_internvit_under_the_names_of_transformers(start, tmp_path):
    """Its query is called as DINOv3's."""
    name = "vit_intern300m_patch14_448"
    vit = theirs(name)
    swaps = [
        (r"^(cls_token)", r"embeddings.\1"), (r"^pos_embed", "embeddings.position_embeddings"),
        (r"patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^blocks", "encoder.layer"), (r"\.ls([12])\.gamma$", r".lambda_\1"),
        (r"attn\.proj", "attention.projection_layer"),
        (r"\.norm1\.", ".layernorm_before."), (r"\.norm2\.", ".layernorm_after."),
    ]  # fmt: skip
    named = {}
    for key, value in renamed(vit.state_dict(), swaps, start).items():
        if ".attn.qkv." in key:
            for part, projection in zip("qkv", value.chunk(3), strict=True):
                named[key.replace("attn.qkv", f"attention.{part}_proj")] = projection
        else:
            named[key] = value
    report, images, found = maps(name, named, tmp_path)
    assert (report.dialect, report.encoder_share) == ("huggingface", 1)
    torch.testing.assert_close(found, last_map(vit, images), rtol=1e-5, atol=1e-5)


def of_another_run(state: State, start: str) -> State:
    return {start + name: torch.zeros_like(value) for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {**renamed(s, [], "module.base_encoder."),
                                  **of_another_run(s, "module.momentum_encoder.")}},
        lambda s: {"state_dict": {**of_another_run(s, "student.backbone."),
                                  **renamed(s, [], "teacher.backbone.")}},
        lambda s: {"encoder": of_another_run(s, "module."), "epoch": 3,
                   "target_encoder": renamed(s, [], "module.")},
        lambda s: {"teacher": renamed(s, [(r"^blocks\.0", "blocks.0.0"),
                                          (r"^blocks\.1", "blocks.2.1")], "backbone.")},
        lambda s: {**renamed(s, [(r"^reg_token", "register_tokens")], "vision_encoder."),
                   "text_encoder.pos_embed": torch.ones(3)},
        lambda s: {**s, "decoder_blocks.0.norm1.bias": torch.ones(3), "mask_token": torch.ones(1)},
    ],
    ids=["MoCo v3", "student and teacher", "I-JEPA", "chunks of DINOv2", "TIPS", "MAE"],
)  # fmt: skip
def test_checkpoints_of_self_supervised_training(wrap, tmp_path):
    name = "vit_small_patch14_reg4_dinov2"
    vit = theirs(name)
    report, images, found = maps(name, wrap(vit.state_dict()), tmp_path)
    assert report.encoder_share == 1
    torch.testing.assert_close(found, last_map(vit, images), rtol=1e-5, atol=1e-5)


# --- several dates --------------------------------------------------------------------------------


def waves(width: int, places: np.ndarray) -> np.ndarray:
    angles = np.outer(places, 1 / 10000 ** (np.arange(width // 2) / (width / 2)))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def positions_of_dates(width: int, dates: int, side: int) -> Tensor:
    """Prithvi's fixed table, the class token's zeros first: (1, 1 + dates * side², width)."""
    rows = waves(width // 16 * 6, np.arange(side))
    across = np.tile(rows, (dates * side, 1))
    down = np.tile(np.repeat(rows, side, axis=0), (dates, 1))
    when = np.repeat(waves(width // 16 * 4, np.arange(dates)), side * side, axis=0)
    table = np.concatenate([across, down, when], axis=1)
    return torch.tensor(np.concatenate([np.zeros((1, width)), table])).float()[None]


@torch.inference_mode()
@pytest.mark.parametrize("start", ["", "encoder."])
@pytest.mark.parametrize("dates", [1, 3, 4])
def test_prithvi_on_one_date(dates, start, tmp_path):
    """Its own forward pass, in plain operations: the 3-D convolution, and the first positions."""
    name = "vit_large_patch16_224"
    vit = theirs(name, in_chans=6)
    state = vit.state_dict()
    stem = state["patch_embed.proj.weight"][:, :, None]
    table = positions_of_dates(32, dates, 4)
    own = {"patch_embed.proj.weight": stem, "pos_embed": table}
    file = renamed({**state, **own}, [], start)
    others = {
        "decoder.mask_token": torch.ones(1),
        f"{start}temporal_embed_enc.scale": torch.ones(1),
    }
    report, images, found = maps(name, {**file, **others}, tmp_path, in_chans=6)
    assert (report.dialect, report.encoder_share, report.resized) == ("prithvi", 1, [])

    tokens = torch.nn.functional.conv3d(
        images[:, :, None], stem, state["patch_embed.proj.bias"], stride=(1, 16, 16)
    )
    tokens = tokens.flatten(2).transpose(1, 2) + table[:, 1:17]
    tokens = torch.cat([state["cls_token"] + table[:, :1], tokens], dim=1)
    for block in vit.blocks:
        tokens = block(tokens)
    expected = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "dates"), [(14, 1), (16, 1), (14, 3), (14, 4), (16, 4), (28, 1)])
def test_dates_of_a_published_table_are_counted(side, dates):
    """Four dates of 14x14 patches have as many positions as one of 28x28."""
    from setr.weight_files.frames import of_one_date

    table = positions_of_dates(1024, dates, side)
    given = {"patch_embed.proj.weight": torch.zeros(8, 6, 1, 16, 16), "pos_embed": table}
    assert torch.equal(of_one_date(given)["pos_embed"], table[:, : 1 + side * side])


# --- what is none ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"blocks.0.norm1.weight": torch.ones(32),
          "patch_embed.proj.weight": torch.ones(32, 3, 2, 16, 16)},
         "embeds 2 frames of a video at once, and encoders here read single images"),
        ({"visual.layer1.0.conv1.weight": torch.ones(1), "visual.conv1.weight": torch.ones(1),
          "transformer.resblocks.0.ln_1.weight": torch.ones(1)},
         "is a text model, or a CLIP whose image encoder is not a ViT"),
        ({"blocks.0.norm1.weight": torch.ones(32), "pos_embed": torch.ones(1, 17, 32),
          "patch_embed.weight_generator.fc_weight.weight": torch.ones(4)},
         "its patches are embedded in a way of their own or elsewhere, so no encoder here fits"),
        ({"transformer.layers.0.attention.q_proj.weight": torch.ones(32, 32),
          "patch_conv.weight": torch.ones(32, 3, 16, 16)},
         "its patches are embedded in a way of their own or elsewhere, so no encoder here fits"),
        ({"visual.conv1.weight": torch.ones(1),
          "visual.transformer.resblocks.0.ln_1.weight": torch.ones(1)},
         "incomplete or damaged"),
    ],
)  # fmt: skip
def test_other_networks_are_named(state, message, tmp_path):
    with pytest.raises(SetrError, match=message):
        maps(CLIP, state, tmp_path)


@pytest.mark.parametrize(
    "name", ["hf-hub:MahmoodLab/UNI", "MahmoodLab/UNI", "local-dir:weights", "."]
)
def test_a_place_of_weights_is_not_the_name_of_an_encoder(name):
    place = name.partition(":")[2] or name
    with pytest.raises(SetrError, match=rf"give them as pretrained \(--model\.pretrained {place}"):
        create_model("linear_nano", num_classes=2, encoder=name)

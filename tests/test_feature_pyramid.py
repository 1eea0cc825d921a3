"""UPerNet on BEiT and MAE: its neck against plain operations, its recipes and published layout."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import setr
from setr.errors import SetrError
from setr.layers import feature_pyramid, joined_convolution
from setr.layers.feature_pyramid import FeaturePyramidNeck
from setr.recipes import recipe
from setr.training.build import build_model
from setr.weight_files.foreign import convert_foreign
from tests.conftest import renamed
from tests.models import assert_converts, assert_learns, assert_same
from tests.test_upernet import CLASSES, PORT, Weights, conv_bn_relu, randomised

BEIT = "beit_base_patch16_224"
SMALL = {"embed_dim": 64, "depth": 12, "num_heads": 2}


def plain_neck(features: list[Tensor], p: Weights) -> list[Tensor]:
    """mmsegmentation's Feature2Pyramid and the head's lateral convolutions, written out."""

    def doubled(x: Tensor, name: str) -> Tensor:
        """Each cell becomes 2x2 cells, by one matrix for each of the four places."""
        weight = p[f"{name}.weight"]
        out = torch.einsum("bihw,iokl->bohkwl", x, weight).flatten(4, 5).flatten(2, 3)
        return out + p[f"{name}.bias"][:, None, None]

    first, second, third, last = features
    keys = ("running_mean", "running_var", "weight", "bias")
    norm = [p[f"levels.0.first.1.{key}"] for key in keys]
    first = F.gelu(F.batch_norm(doubled(first, "levels.0.first.0"), *norm))
    maps = [doubled(first, "levels.0.up"), doubled(second, "levels.1.up"), third]
    maps = [conv_bn_relu(x, p, f"levels.{i}.lateral") for i, x in enumerate(maps)]
    h, w = (side // 2 * 2 for side in last.shape[-2:])
    cells = last[..., :h, :w].unflatten(-1, (w // 2, 2)).unflatten(-3, (h // 2, 2))
    return [*maps, cells.amax(dim=(-1, -3))]


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (3, 2)])
@pytest.mark.parametrize("mode", ["eager", "layers", "traced"])
def test_neck_is_mmsegmentations(size, mode, monkeypatch):
    neck = randomised(FeaturePyramidNeck([12] * 4, channels=8)).double()
    features = [torch.randn(2, 12, *size, dtype=torch.double) for _ in range(4)]
    if mode == "traced":
        for module in (joined_convolution, feature_pyramid):
            monkeypatch.setattr(module, "is_traced", lambda: True)
    with torch.set_grad_enabled(mode == "layers"):
        found = neck(features)
    for ours, expected in zip(found, plain_neck(features, neck.state_dict()), strict=True):
        torch.testing.assert_close(ours, expected)


def test_training_statistics_are_those_of_the_layers_in_turn():
    """The transposed and the lateral convolution as one: batch statistics and gradients."""
    level = FeaturePyramidNeck([6] * 4, channels=4).double().levels[1]
    x = torch.randn(2, 6, 3, 4, dtype=torch.double)
    wanted = torch.randn(2, 4, 6, 8, dtype=torch.double)
    results = []
    for run in (level, lambda x: level.lateral(level.up(x))):
        level.zero_grad()
        level.lateral[1].reset_running_stats()
        run(x).backward(wanted)
        results.append([p.grad.clone() for p in level.parameters()])
        results[-1] += [level.lateral[1].running_mean.clone()]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (5, 9)])
def test_every_parameter_gets_a_gradient_and_any_size_logits(size):
    model = setr.create_model(
        "upernet_nano", num_classes=CLASSES, img_size=32, neck="feature2pyramid"
    )
    assert (model.arguments["taps"][2:3], model.arguments["aux_taps"]) == ((4,), (4,))
    output = assert_learns(model, *size, images=3, zeros=True)
    assert output.aux[0].shape[-2:] == (-(-size[0] // 8), -(-size[1] // 8))


def test_other_numbers_of_taps_are_refused():
    with pytest.raises(SetrError, match=r"3 taps, but its neck makes 4 levels"):
        setr.create_model(
            "upernet_nano", num_classes=3, img_size=32, taps=(2, 4, 6), neck="feature2pyramid"
        )


@pytest.mark.parametrize("name", ["beit_upernet_base", "beit_upernet_large", "mae_upernet_base"])
def test_recipes_are_mmsegmentations(name):
    config = recipe(f"ade20k_{name}_160k")
    weightless = dataclasses.replace(config.model, pretrained=None)
    with torch.device("meta"):
        model = build_model(dataclasses.replace(config, model=weightless), 150)
    width = 1024 if "large" in name else 768
    assert model.decoder.classifier.in_channels == model.encoder.channels == width
    assert model.aux_heads[0].classifier.in_channels == 256
    assert model.arguments["aux_taps"] == ((16,) if "large" in name else (8,))
    assert config.eval.window == ((640, 640) if "beit" in name else (512, 512))
    assert config.eval.stride == ((426, 426) if "beit" in name else (341, 341))


MMSEGMENTATION = [
    (r"^neck\.levels\.0\.first\.(\d)\.", r"neck.upsample_4x.\1."),
    (r"^neck\.levels\.0\.up\.", "neck.upsample_4x.3."),
    (r"^neck\.levels\.1\.up\.", "neck.upsample_2x.0."),
    *((there, here) for there, here in PORT if "attn" not in there),
]


@pytest.mark.parametrize("kind", ["beit", "mae"])
def test_a_checkpoint_of_mmsegmentation(tmp_path, kind):
    mae = kind == "mae"
    model = setr.create_model(
        "upernet_base", num_classes=CLASSES, encoder=BEIT, img_size=64, neck="feature2pyramid",
        channels=16, taps=(4, 6, 8, 12), pos_interp="bicubic_plain" if mae else "bicubic",
        encoder_args={**SMALL, "use_abs_pos_emb": mae},
    )  # fmt: skip
    state = renamed(randomised(model), MMSEGMENTATION)
    for i in range(12):
        attn = f"backbone.layers.{i}.attn."
        state[f"{attn}relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
        if mae:  # a bias of the key changes nothing
            query, value = (state.pop(f"{attn}{part}_bias") for part in "qv")
            state[f"{attn}qkv.bias"] = torch.cat([query, torch.randn(64), value])
    path, meta = tmp_path / "port.pth", {"CLASSES": [f"c{i}" for i in range(CLASSES)]}
    torch.save({"state_dict": state, "meta": meta}, path)
    found, info, report = convert_foreign(path)
    assert (report.dialect, report.unexpected, report.filled) == ("mmseg", [], [])
    assert (found.arguments["taps"], found.arguments["aux_taps"]) == ((4, 6, 8, 12), (8,))
    assert (info.protocol.window, info.protocol.stride) == ((64, 64), (42, 42))
    assert_same(found, model, 64, 64, aux=True)
    assert_converts(path, found, tmp_path / "model")


# --- transformers ---------------------------------------------------------------------------------

HEADS = [
    (r"^neck\.levels\.0\.first\.(\d)\.", r"fpn1.\1."), (r"^neck\.levels\.0\.up\.", "fpn1.3."),
    (r"^neck\.levels\.1\.up\.", "fpn2.0."),
    (r"^neck\.levels\.(\d)\.lateral\.", r"decode_head.lateral_convs.\1."),
    (r"^decoder\.pools\.(\d)\.conv\.", r"decode_head.psp_modules.\1.1."),
    (r"^decoder\.context\.", "decode_head.bottleneck."),
    (r"^decoder\.smooth\.(\d)\.", r"decode_head.fpn_convs.\1."),
    (r"^decoder\.join\.", "decode_head.fpn_bottleneck."), (r"^decoder\.", "decode_head."),
    (r"^aux_heads\.0\.", "auxiliary_head."),
    (r"^((?:decode_head|auxiliary_head)\..*)\b0\.(weight)$", r"\1conv.\2"),
    (r"^((?:decode_head|auxiliary_head)\..*)\b1\.(\w+)$", r"\1bn.\2"),
]  # fmt: skip
NEWER = [
    (r"\bbn\.", "normalization."), (r"\bconv\.weight", "convolution.weight"),
    (r"decode_head\.bottleneck", "decode_head.psp_bottleneck"),
    (r"psp_modules\.(\d)\.1\.", r"psp_modules.blocks.\1.conv."),
    (r"^fpn1\.0\.", "fpn.fpn1.conv_transpose1."), (r"^fpn1\.1\.", "fpn.fpn1.normalization."),
    (r"^fpn1\.3\.", "fpn.fpn1.conv_transpose2."), (r"^fpn2\.0\.", "fpn.fpn2."),
]  # fmt: skip
ENCODER = [
    (r"^cls_token", "embeddings.cls_token"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."), (r"\.gamma_", ".lambda_"),
    (r"attn\.(relative_position_bias)_table", r"attention.attention.\1.\1_table"),
    (r"attn\.q_bias", "attention.attention.query.bias"),
    (r"attn\.v_bias", "attention.attention.value.bias"),
    (r"attn\.proj\.", "attention.output.dense."), (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."), (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
]  # fmt: skip


def transformers_names(model: nn.Module, *, newer: bool, prefix: str) -> Weights:
    """The tensors of a model by the names of transformers."""
    state: Weights = {}
    for name, value in model.state_dict().items():
        inside = name.startswith("encoder.vit.")
        there = name.removeprefix("encoder.vit.")
        for pattern, replacement in ENCODER if inside else HEADS + (NEWER if newer else []):
            there = re.sub(pattern, replacement, there)
        if there.endswith("attn.qkv.weight"):
            for part, weight in zip(("query", "key", "value"), value.chunk(3), strict=True):
                stem = there.replace("attn.qkv", f"attention.attention.{part}")
                state[prefix + stem] = weight.clone()
        else:
            state[prefix + there if inside else there] = value
    return state


@pytest.mark.parametrize(("kind", "newer"), [("beit", False), ("data2vec_vision", True)])
def test_a_folder_of_transformers(tmp_path, kind, newer):
    """Its `out_indices` count the embeddings as the first output."""
    model = setr.create_model(
        "upernet_base", num_classes=3, encoder=BEIT, img_size=64, neck="feature2pyramid",
        channels=64, taps=(2, 4, 6, 10), encoder_args={**SMALL, "norm_eps": 1e-3},
    )  # fmt: skip
    state = transformers_names(randomised(model), newer=newer, prefix=f"{kind}.")
    save_file({n: v.contiguous() for n, v in state.items()}, tmp_path / "model.safetensors")
    config = {
        "model_type": kind.replace("_", "-"), "out_indices": [3, 5, 7, 11], "layer_norm_eps": 1e-3,
        "id2label": {"0": "a", "1": "b", "2": "c"}, "num_attention_heads": 2,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    mean = {"image_mean": [0.5] * 3, "image_std": [0.4] * 3, "size": 64}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(mean))
    found, info, report = convert_foreign(tmp_path)
    assert (report.dialect, report.unexpected) == ("beit-transformers", [])
    assert (found.arguments["taps"], found.arguments["aux_taps"]) == ((2, 4, 6, 10), (6,))
    assert (info.labels.classes, info.mean, info.std) == (("a", "b", "c"), (0.5,) * 3, (0.4,) * 3)
    assert_same(found, model, 80, 50, aux=True)


def test_an_encoder_of_transformers(tmp_path):
    """Pretrained ones share one table among all blocks and have a mask token."""
    model = setr.create_model(
        "linear_nano", num_classes=2, encoder=BEIT, img_size=64, encoder_args=SMALL
    )
    state = transformers_names(randomised(model), newer=False, prefix="beit.")
    state = {n: v for n, v in state.items() if n.startswith("beit.") and "bias_table" not in n}
    shared = torch.randn(52, 2)
    state["beit.encoder.relative_position_bias.relative_position_bias_table"] = shared
    state["beit.embeddings.mask_token"] = torch.zeros(1, 1, 64)
    torch.save(state, tmp_path / "encoder.bin")
    fresh = setr.create_model(
        "linear_nano", num_classes=2, encoder=BEIT, img_size=64, encoder_args=SMALL
    )
    report = setr.load_weights(fresh, tmp_path / "encoder.bin")
    assert (report.dialect, report.encoder_share) == ("huggingface", 1)
    for name, value in fresh.encoder.vit.state_dict().items():
        expected = shared if "bias_table" in name else model.encoder.vit.state_dict()[name]
        assert torch.equal(value, expected), name

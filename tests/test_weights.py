"""Every checkpoint layout loads to the same function, and every bad file is one line."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PosixPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from setr import create_model, load_weights
from setr._timm import timm
from setr.errors import USAGE, SetrError
from setr.hub import save_pretrained
from setr.labels import Labels
from setr.layers.positions import resample_grid
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.weight_files.architecture import read_architecture
from setr.weight_files.foreign import convert_foreign
from setr.weight_files.naming import Translation
from setr.weight_files.pretrained import load_encoder, pretrained_id
from setr.weight_files.stored_grid import shape_of
from setr.weight_files.tensorfiles import read_tensor_file
from tests.conftest import tiny_model

SIZE = {"embed_dim": 64, "depth": 3, "num_heads": 4}
VIT = "vit_base_patch16_384"


def build(encoder: str = VIT, img_size: object = 64, **arguments: object) -> SETR:
    torch.manual_seed(1)
    return SETR(
        encoder=encoder,
        decoder="naive",
        num_classes=3,
        taps=(1, 3),
        img_size=img_size,
        encoder_args=SIZE,
        decoder_args={"channels": 8},
        **arguments,
    ).eval()


def source_vit(name: str = VIT, **arguments: object) -> torch.nn.Module:
    """A timm model with random values everywhere, zero-initialised tensors included."""
    torch.manual_seed(0)
    vit = timm.create_model(name, num_classes=5, img_size=64, **SIZE, **arguments).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.2)
    return vit


def assert_same_maps(model: SETR, vit: torch.nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = vit.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
        for ours, theirs in zip(model.encoder(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


# --- layouts --------------------------------------------------------------------------------------


def google_arrays(vit: torch.nn.Module) -> dict[str, np.ndarray]:
    """The layout of Google's ViT and AugReg files: kernels (in, out), attention split by head."""
    state = {k: v.detach().numpy() for k, v in vit.state_dict().items()}
    width, heads = SIZE["embed_dim"], SIZE["num_heads"]
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(SIZE["depth"]):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for a, b in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}{b}/scale"] = state[f"{ours}{a}.weight"]
            arrays[f"{theirs}{b}/bias"] = state[f"{ours}{a}.bias"]
        weights = np.split(state[f"{ours}attn.qkv.weight"], 3)
        biases = np.split(state[f"{ours}attn.qkv.bias"], 3)
        attn = f"{theirs}MultiHeadDotProductAttention_1/"
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attn}{name}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attn}{name}/bias"] = bias.reshape(heads, -1)
        out = state[f"{ours}attn.proj.weight"]
        arrays[f"{attn}out/kernel"] = out.T.reshape(heads, -1, width)
        arrays[f"{attn}out/bias"] = state[f"{ours}attn.proj.bias"]
        for j in (0, 1):
            mlp = f"{theirs}MlpBlock_3/Dense_{j}/"
            arrays[f"{mlp}kernel"] = state[f"{ours}mlp.fc{j + 1}.weight"].T
            arrays[f"{mlp}bias"] = state[f"{ours}mlp.fc{j + 1}.bias"]
    return arrays


def huggingface_state(vit: torch.nn.Module, generation: int) -> dict[str, Tensor]:
    """Names of transformers' ViTModel; the mapping was checked against transformers 5.23."""
    rename = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    layer = {
        4: ("encoder.layer.", "attention.attention.query attention.attention.key "
            "attention.attention.value attention.output.dense intermediate.dense output.dense"),
        5: ("layers.", "attention.q_proj attention.k_proj attention.v_proj attention.o_proj "
            "mlp.fc1 mlp.fc2"),
    }  # fmt: skip
    stem, names = layer[generation]
    query, key, value, out, fc1, fc2 = names.split()
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": out,
             "mlp.fc1": fc1, "mlp.fc2": fc2}  # fmt: skip
    state = {}
    for name, tensor in vit.state_dict().items():
        if name.startswith("blocks."):
            _, i, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            if part == "attn.qkv":
                for target, chunk in zip((query, key, value), tensor.chunk(3), strict=True):
                    state[f"vit.{stem}{i}.{target}.{kind}"] = chunk.clone()
            else:
                state[f"vit.{stem}{i}.{parts[part]}.{kind}"] = tensor
        elif name in rename:
            state[f"vit.{rename[name]}"] = tensor
        elif name.rsplit(".", 1)[0] in rename:
            part, kind = name.rsplit(".", 1)
            state[f"vit.{rename[part]}.{kind}"] = tensor
    return state


@pytest.mark.parametrize("layout", ["safetensors", "pth", "bin", "google", "hf4", "hf5"])
def test_encoder_layouts_give_the_same_maps(tmp_path, layout):
    vit = source_vit()
    if layout == "google":
        path = tmp_path / "vit.npz"
        np.savez(path, **{f"opt/target/{k}": v for k, v in google_arrays(vit).items()})
    elif layout.startswith("hf"):
        path = tmp_path / "model.safetensors"
        save_file(huggingface_state(vit, int(layout[2])), path)
    elif layout == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(vit.state_dict(), path)
    else:
        path = tmp_path / f"model.{layout}"
        torch.save({"model": vit.state_dict()}, path)
    model = build()
    report = load_weights(model, path)
    assert_same_maps(model, vit)
    assert report.encoder_share == 1
    assert not report.missing
    assert not report.resized
    assert report.dialect == {"google": "google", "hf4": "huggingface", "hf5": "huggingface"}.get(
        layout, "timm"
    )


def test_google_layout_agrees_with_timms_own_reader(tmp_path):
    vit = source_vit()
    path = tmp_path / "vit.npz"
    np.savez(path, **google_arrays(vit))
    other = timm.create_model(VIT, num_classes=5, img_size=64, **SIZE).eval()
    other.load_pretrained(str(path))
    model = build()
    load_weights(model, path)
    assert_same_maps(model, other)


def test_a_state_dict_or_another_module_is_one_line():
    model = build()
    for given, message in (
        ((model, model.state_dict()), "weights are a OrderedDict: give a file; a state dict"),
        ((model.encoder, "vit.pth"), "Encoder: give a model of setr.create_model"),
    ):
        with pytest.raises(SetrError, match=re.escape(message)) as caught:
            load_weights(*given)
        assert caught.value.code == USAGE


def test_distilled_deit_has_two_prefix_tokens(tmp_path):
    name = "deit_base_distilled_patch16_384"
    vit = source_vit(name)
    path = tmp_path / "deit.pth"
    torch.save({"model": vit.state_dict()}, path)
    model = build(name)
    assert load_weights(model, path).dialect == "deit"
    assert_same_maps(model, vit)
    bilinear = build(name, pos_interp="bilinear")
    load_weights(bilinear, path)
    assert_same_maps(bilinear, vit)


def test_distilled_deit_in_a_plain_vit_drops_the_distillation_token(tmp_path):
    vit = source_vit("deit_base_distilled_patch16_384")
    path = tmp_path / "deit.pth"
    torch.save({"model": vit.state_dict()}, path)
    model = build()
    report = load_weights(model, path)
    assert "encoder.vit.dist_token" in report.unexpected
    own = model.encoder.vit.pos_embed
    torch.testing.assert_close(own[:, 0], vit.pos_embed[:, 0])
    torch.testing.assert_close(own[:, 1:], vit.pos_embed[:, 2:])


def test_registers_and_folded_class_position(tmp_path):
    """DINOv2's own file covers the class token; timm's variant with registers does not."""
    name = "vit_small_patch14_reg4_dinov2"
    torch.manual_seed(0)
    vit = timm.create_model(name, num_classes=0, img_size=56, **SIZE).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.2)
    state = {k.replace("reg_token", "register_tokens"): v for k, v in vit.state_dict().items()}
    class_position = torch.randn(1, 1, 64)
    state["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - class_position
    state["mask_token"] = torch.zeros(1, 64)
    path = tmp_path / "dinov2.pth"
    torch.save(state, path)
    model = build(name, img_size=56)
    assert "mask_token" in load_weights(model, path).unexpected
    images = torch.randn(1, 3, 56, 56)
    expected = vit.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    for ours, theirs in zip(model.encoder(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", ["meta", "huggingface"])
@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"]
)
def test_dinov3_under_the_names_of_meta_and_of_transformers(tmp_path, name, layout):
    vit = source_vit(name)
    gated = "plus" in name
    renames = {
        "meta": [
            (r"gamma_(\d)", r"ls\1.gamma"),
            ("reg_token", "storage_tokens"),
            ("fc1_g", "w1"),
            ("fc1_x", "w2"),
            ("fc2", "w3" if gated else "fc2"),
        ],
        "huggingface": [
            (r"^(cls_token)", r"embeddings.\1"),
            ("^reg_token", "embeddings.register_tokens"),
            (r"^patch_embed\.proj", "embeddings.patch_embeddings"),
            (r"blocks\.", "layer."),
            (r"gamma_(\d)", r"layer_scale\1.lambda1"),
            (r"attn\.proj", "attention.o_proj"),
            ("fc1_g", "gate_proj"),
            ("fc1(_x)?", "up_proj"),
            ("fc2", "down_proj"),
        ],
    }[layout]
    state: dict[str, Tensor] = {}
    for key, value in vit.state_dict().items():
        stem = key.rpartition(".")[0]
        if key.startswith("head") or key.endswith(("k_bias", "v_bias")):
            continue
        if key.endswith("q_bias"):
            query, value_bias = value, vit.state_dict()[f"{stem}.v_bias"]
            if layout == "meta":
                state[f"{stem}.qkv.bias"] = torch.cat([query, torch.ones(64), value_bias])
                state[f"{stem}.qkv.bias_mask"] = torch.zeros(192)
            else:
                block = stem.replace("blocks", "layer").replace("attn", "attention")
                state |= {f"{block}.q_proj.bias": query, f"{block}.v_proj.bias": value_bias}
            continue
        if layout == "huggingface" and key.endswith("qkv.weight"):
            block = stem.removesuffix(".qkv").replace("blocks", "layer")
            for part, weight in zip("qkv", value.chunk(3), strict=True):
                part_name = f"{block.replace('attn', 'attention')}.{part}_proj.weight"
                state[part_name] = weight.clone()
            continue
        for ours, theirs in renames:
            key = re.sub(ours, theirs, key)
        state[key] = value
    state["mask_token" if layout == "meta" else "embeddings.mask_token"] = torch.zeros(1, 64)
    path = tmp_path / "dinov3.pth"
    torch.save(state, path)
    model = build(name)
    report = load_weights(model, path)
    assert report.dialect == "dinov3"
    assert report.encoder_share == 1
    assert not [n for n in report.unexpected if "norm." not in n]
    assert_same_maps(model, vit)


def test_real_dinov2_file(shared):
    model = create_model(
        "setr_pup_small", encoder="vit_small_patch14_dinov2", num_classes=5, img_size=(112, 168)
    )
    report = load_weights(model, shared / "weights/dinov2_vits14.safetensors")
    assert report.encoder_share == 1
    assert report.resized == ["encoder.vit.pos_embed"]
    assert str(report).startswith("dialect timm: 172 tensors loaded (100.0% of the encoder)")


@pytest.mark.parametrize("hybrid", [False, True])
def test_resnets_of_torchvision_and_timm(tmp_path, hybrid):
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", num_classes=4).eval()  # torchvision's names and shapes
    path = tmp_path / "resnet18.pth"
    torch.save(resnet.state_dict(), path)
    if hybrid:
        model = build(resnet="resnet18")
        assert load_weights(model, path).encoder_share == 1  # of its part, the ResNet
        stem = model.encoder.vit.patch_embed.backbone
    else:
        model = SETR(encoder="resnet18", decoder="fcn", num_classes=3, taps=(3, 4),
                     decoder_args={"channels": 8})  # fmt: skip
        assert load_weights(model, path).encoder_share == 1
        stem = model.encoder.net
    assert torch.equal(stem.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)


def test_a_vit_fills_its_part_of_a_hybrid(tmp_path):
    vit = build().encoder.vit
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    model = build(resnet="resnet18")
    report = load_weights(model, tmp_path / "vit.safetensors")
    assert (report.part, report.encoder_share, report.missing) == ("ViT", 1, [])
    assert "100.0% of the ViT" in str(report)
    for name, value in vit.blocks.state_dict().items():
        assert torch.equal(value, model.encoder.vit.blocks.state_dict()[name]), name
    state = {k: v for k, v in vit.state_dict().items() if "mlp" not in k}
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(SetrError, match="of the encoder"):
        load_weights(model, tmp_path / "half.safetensors")


def test_a_hybrid_takes_two_tags(monkeypatch):
    """Every tensor of ViT and ResNet is set but the 1x1 projection between them."""
    monkeypatch.setattr(
        "setr.weight_files.pretrained._download", lambda name: timm.create_model(name).state_dict()
    )
    hybrid = {"encoder": "vit_tiny_patch16_224", "resnet": "resnet18", "aux": False}
    model = create_model("hybrid_base", num_classes=2, img_size=64, **hybrid)
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("encoder.")}
    reports = [load_encoder(model, "augreg_in21k"), load_encoder(model, "gluon_in1k", resnet=True)]
    assert [report.part for report in reports] == ["ViT", "ResNet"]
    loaded = {name for report in reports for name in report.loaded}
    kept = {name for name in before if name not in loaded}
    assert kept == {f"encoder.vit.patch_embed.proj.{part}" for part in ("weight", "bias")}


def test_our_own_files_round_trip(tmp_path):
    source, target = tiny_model("mla"), tiny_model("mla")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    report = load_weights(target, tmp_path)
    assert report.dialect == "setr"
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name


@pytest.mark.parametrize("name", ["official/naive", "official/mla", "mmseg/pup_ade"])
def test_converted_model_loads_back_from_its_own_layout(shared, tmp_path, name):
    from setr.hub import from_pretrained, save_pretrained

    model, info, _ = convert_foreign(shared / f"parity/{name}.pth", num_heads=4)
    save_pretrained(tmp_path / "model", model, info)
    again, info_again = from_pretrained(tmp_path / "model")
    images = torch.randn(1, 3, 50, 70)
    with torch.inference_mode():
        assert torch.equal(model(images), again(images))
    assert info_again == info
    assert again.arguments == model.arguments


def test_report_names_functions_that_differ(shared):
    """Shapes fit, functions do not: the model built by name follows the authors, not the port."""
    target, _, _ = convert_foreign(shared / "parity/official/naive.pth", num_heads=4)
    arguments = {**target.arguments, "decoder_args": {"channels": 32}}
    arguments["aux_args"] = {"channels": 32, "num_convs": 2, "scale": 4, "final_scale": 4}
    other = SETR(**{**arguments, "pos_interp": "bicubic"})
    report = load_weights(other, shared / "parity/mmseg/naive_ade.pth")
    assert report.differences == ["pos_interp 'bicubic' instead of 'bilinear'",
                                  "final_scale 1 instead of 4"]  # fmt: skip
    assert len(report.filled) == 8


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_objects_beside_the_weights_are_skipped(tmp_path, monkeypatch, zipped):
    """Training checkpoints of DeiT carry an argparse.Namespace, others NumPy values or paths."""
    vit, path = source_vit(), tmp_path / "checkpoint.pth"
    newer = PosixPath
    if newer.__module__ == "pathlib":
        newer = type("PosixPath", (), {"__module__": "pathlib._local"})  # as Python 3.13 names it
        monkeypatch.setitem(sys.modules, "pathlib._local", SimpleNamespace(PosixPath=newer))
    args = argparse.Namespace(lr=0.1, out=PosixPath("runs"), data=newer())
    extras = {"args": args, "best": np.float64(3.0), "epoch": 3}
    torch.save({"model": vit.state_dict(), **extras}, path, _use_new_zipfile_serialization=zipped)
    model = build()
    load_weights(model, path)
    assert_same_maps(model, vit)


# --- position embeddings --------------------------------------------------------------------------


def test_positions_resample_the_grid_and_keep_the_prefix(tmp_path):
    vit = source_vit()
    path = tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), path)
    for mode in ("bicubic", "bilinear"):
        model = build(img_size=(48, 96))
        report = load_weights(model, path, pos_interp=mode)
        assert report.resized == ["encoder.vit.pos_embed"]
        own = model.encoder.vit.pos_embed
        assert torch.equal(own[:, :1], vit.pos_embed[:, :1])
        expected = resample_grid(vit.pos_embed[:, 1:], (4, 4), (3, 6), mode=mode)
        torch.testing.assert_close(own[:, 1:], expected)


def test_square_grid_with_the_models_count_is_not_mistaken_for_its_shape(tmp_path):
    """4x4 positions in a 2x8 model must be resampled although both hold 16."""
    vit = source_vit()
    path = tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), path)
    model = build(img_size=(32, 128))
    assert load_weights(model, path).resized == ["encoder.vit.pos_embed"]
    expected = resample_grid(vit.pos_embed[:, 1:], (4, 4), (2, 8), mode="bicubic")
    torch.testing.assert_close(model.encoder.vit.pos_embed[:, 1:], expected)


def test_rectangular_grid_needs_the_size_it_was_trained_at(tmp_path):
    source = build(img_size=(48, 80))
    path = tmp_path / "encoder.safetensors"
    save_file(source.encoder.vit.state_dict(), path)
    target = build(img_size=(48, 80))
    assert not load_weights(target, path).resized
    with pytest.raises(
        SetrError, match="15 position embeddings form neither a square grid"
    ) as caught:
        load_weights(build(), path)
    assert caught.value.code == USAGE


@pytest.mark.parametrize("encoder", [VIT, "beit_base_patch16_224"])
@pytest.mark.parametrize(
    ("size", "other"),
    [((32, 128), (64, 64)), ((64, 64), (32, 128)), ((48, 80), (80, 48)), ((48, 80), (64, 96))],
)
def test_a_model_directory_tells_the_shape_of_its_grid(encoder, size, other, tmp_path):
    """Tensors of 2x8 and of 4x4 patches, of 3x5 and of 5x3, have the same shape."""
    source, target = build(encoder, size), build(encoder, other)
    is_beit = encoder.startswith("beit")
    with torch.no_grad():
        ramp = torch.arange(source.encoder.vit.patch_embed.grid_size[1], dtype=torch.float32)
        if is_beit:  # the offset of columns
            width = len(ramp)
            offsets = torch.arange(1 - width, width).float().expand(2 * size[0] // 16 - 1, -1)
            for block in source.encoder.vit.blocks:
                block.attn.relative_position_bias_table[:-3] = offsets.reshape(-1, 1)
        else:  # the number of the column
            columns = ramp.expand(size[0] // 16, -1).reshape(1, -1, 1)
            source.encoder.vit.pos_embed[:, 1:] = columns.expand(-1, -1, 64)
    save_pretrained(tmp_path, source, ModelInfo(Labels(("a", "b", "c"))))
    for place in (tmp_path, tmp_path / "model.safetensors"):
        load_weights(target, place)
        rows, columns = other[0] // 16, other[1] // 16
        if is_beit:
            table = target.encoder.vit.blocks[0].attn.relative_position_bias_table[:-3, 0]
            maps = table.unflatten(0, (2 * rows - 1, 2 * columns - 1))
        else:
            maps = target.encoder.vit.pos_embed[0, 1:, 0].unflatten(0, (rows, columns))
        torch.testing.assert_close(maps, maps[:1].expand_as(maps), atol=1e-4, rtol=0)
        assert (maps.diff(dim=1) >= 0).all()


def test_the_shape_of_a_grid_is_its_images():
    assert shape_of(256, (64, 256)) == (8, 32)
    assert shape_of(1200, (480, 640)) == (30, 40)
    assert shape_of(945, (130, 515)) == (15, 63)
    assert shape_of(7, (64, 64)) in ((1, 7), (7, 1))


# --- what is refused ------------------------------------------------------------------------------


def evil_pickle(path: Path, marker: Path, how: str, zipped: bool) -> None:
    class Evil:
        def __reduce__(self):
            return {
                "system": (os.system, (f"touch {marker}",)),
                "exec": (exec, (f"open({str(marker)!r}, 'w')",)),
                "popen": (subprocess.Popen, (["touch", str(marker)],)),
                "touch": (Path.touch, (marker,)),
                "open": (open, (str(marker), "w")),
            }[how]

    weights = {"backbone.blocks.0.x": torch.zeros(2)}
    torch.save({"state_dict": weights, "meta": Evil()}, path, _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("how", ["system", "exec", "popen", "touch", "open"])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path, how, zipped):
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    evil_pickle(path, marker, how, zipped)
    with pytest.raises(SetrError, match="contains code"):
        read_tensor_file(path)
    assert not marker.exists()


def test_training_states_of_lightlytrain_point_to_its_exports(tmp_path):
    for name in ("checkpoints", "exported_models"):
        (tmp_path / name).mkdir()
    evil_pickle(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "marker", "system", zipped=True)
    with pytest.raises(SetrError, match="never run; give a model of the folder exported_models"):
        load_weights(build(), tmp_path / "checkpoints" / "last.ckpt")


def test_the_file_would_create_the_marker_if_it_were_unpickled(tmp_path):
    """The proof's other half: the same file does harm in an unrestricted loader."""
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    evil_pickle(path, marker, "open", True)
    code = f"import torch; torch.load({str(path)!r}, weights_only=False)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert marker.exists()


def zip_of(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Every kind of broken file with the words its error must contain."""
    good = folder / "good.pth"
    torch.save({"state_dict": build().state_dict()}, good)
    data = good.read_bytes()
    plain = folder / "good.safetensors"
    save_file(build().state_dict(), plain)
    cases = {
        "missing": (b"", "no such weight file"),
        "empty.pth": (b"", "empty"),
        "html.pth": (b"<!DOCTYPE html><html>404</html>", "web page"),
        "lfs.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        "cut.pth": (data[: len(data) // 2], "broken"),
        "cut.safetensors": (plain.read_bytes()[:5000], "broken"),
        "noise.pth": (bytes(range(256)) * 40, "broken"),
        "text.safetensors": (b"hello world, this is no weight file", "broken"),
    }
    found = {}
    for name, (content, words) in cases.items():
        if name != "missing":
            (folder / name).write_bytes(content)
        found[name] = (folder / name, words)
    found["bomb"] = (zip_of(folder / "bomb.npz", "a.npy", npy(np.zeros(10**7))), "zip bomb")
    found["path"] = (zip_of(folder / "path.npz", "../a.npy", npy(np.arange(3.0))), "leaves")
    pickled = npy(np.array([{"a": 1}], dtype=object))
    found["object"] = (zip_of(folder / "object.npz", "a.npy", pickled), "pickled object")
    tensors = {
        "dots": ({"../../etc/x": torch.zeros(2)}, "leaves its folder"),
        "nan": ({"blocks.0.norm1.weight": torch.tensor([1.0, float("nan")])}, "NaN"),
        "huge": ({"a": torch.zeros(1).expand(10**6, 10**6)}, "more values"),
        "sparse": ({"a": torch.eye(3).to_sparse()}, "sparse"),
        "strange": ({"foo.weight": torch.zeros(2)}, "unknown layout"),
        "nothing": ({"epoch": 3}, "no tensors"),
        "module": (torch.nn.Linear(2, 2), "holds Python objects"),
        "list": ([torch.zeros(2)], "not named tensors"),
        "cut_model": ({"backbone.blocks.0.norm1.weight": torch.zeros(2)}, "decoder|fits|missing"),
    }
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, folder / "eight.safetensors")
    found["eight"] = (folder / "eight.safetensors", "'a' holds 8-bit floats")
    for name, (values, words) in tensors.items():
        torch.save(values, folder / f"{name}.pth")
        found[name] = (folder / f"{name}.pth", words)
    return found


def test_bad_files_are_one_line_and_change_nothing(tmp_path):
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name, (path, words) in bad_files(tmp_path).items():
        with pytest.raises(SetrError, match=words) as caught:
            load_weights(model, path)
        assert "\n" not in str(caught.value), name
        assert len(str(caught.value).replace(str(path), "")) < 450, name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_wrong_encoder_is_refused_and_partial_accepts_it(tmp_path):
    path = tmp_path / "vit.safetensors"
    state = source_vit().state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("blocks.1.")}, path)
    model = build()
    with pytest.raises(
        SetrError, match=r"fits 70% of the encoder \(missing: .*--partial"
    ) as caught:
        load_weights(model, path)
    assert caught.value.code == USAGE
    report = load_weights(model, path, partial=True)
    assert len(report.missing) == 12
    assert 0.6 < report.encoder_share < 0.8


def test_a_missing_patch_embedding_is_refused_although_it_is_small(tmp_path):
    path = tmp_path / "vit.safetensors"
    state = source_vit().state_dict()
    save_file({k: v for k, v in state.items() if k != "patch_embed.proj.weight"}, path)
    with pytest.raises(SetrError, match="patch_embed"):
        load_weights(build(), path)


def test_other_width_is_refused(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(source_vit().state_dict(), path)
    with pytest.raises(SetrError, match=r"is \(64,\), the model's is \(32,\)"):
        load_weights(tiny_model("naive"), path)


def test_other_class_count_only_with_new_head(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tiny_model("pup", num_classes=7).state_dict(), path)
    model = tiny_model("pup", num_classes=5)
    before = model.decoder.classifier.weight.clone()
    with pytest.raises(SetrError, match=r"is for 7 classes, the model has 5.*--new-head") as caught:
        load_weights(model, path)
    assert caught.value.code == USAGE
    report = load_weights(model, path, new_head=True)
    kept = {name.rsplit(".", 1)[0] for name in report.new_head}
    assert kept == {"decoder.classifier", "aux_heads.0.classifier", "aux_heads.1.classifier"}
    assert torch.equal(model.decoder.classifier.weight, before)


@pytest.mark.parametrize("name", ["segmenter_nano", "eomt_nano"])
def test_other_class_count_of_models_without_a_classifier(tmp_path, name):
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    models = [create_model(name, num_classes=k, img_size=32, encoder_args=args) for k in (7, 5)]
    path = tmp_path / "model.safetensors"
    save_file(models[0].state_dict(), path)
    with pytest.raises(SetrError, match=r"is for 7 classes, the model has 5.*--new-head"):
        load_weights(models[1], path)
    report = load_weights(models[1], path, new_head=True)
    assert all("class" in name or "mask_norm" in name for name in report.new_head)


def test_other_decoder_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tiny_model("pup").state_dict(), path)
    with pytest.raises(SetrError, match="has another decoder"):
        load_weights(tiny_model("mla"), path)


def test_encoder_file_is_no_whole_model(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(source_vit().state_dict(), path)
    with pytest.raises(SetrError, match=r"holds an encoder only .*load_weights") as caught:
        convert_foreign(path)
    assert caught.value.code == USAGE


def damaged(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A checkpoint with one tensor missing, flattened or of another size, for many tensors."""
    found = {}
    for name in list(state)[::37]:
        rest = {k: v for k, v in state.items() if k != name}
        found[f"without {name}"] = rest
        found[f"flat {name}"] = {**rest, name: state[name].flatten()[:3].clone()}
    return found


@pytest.mark.parametrize(
    "name", ["official/naive", "official/mla", "mmseg/pup_ade", "mmseg/mla_ade"]
)
def test_damaged_checkpoints_fail_in_one_line(shared, tmp_path, name):
    """Whatever is missing or misshapen: SetrError, or a tensor the function does not need."""
    values = torch.load(shared / f"parity/{name}.pth", weights_only=True)
    model, _, _ = convert_foreign(shared / f"parity/{name}.pth", num_heads=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path, messages = tmp_path / "damaged.pth", []
    cases = damaged(values["state_dict"])
    for state in cases.values():
        torch.save({"state_dict": state}, path)
        for load in (lambda: convert_foreign(path, num_heads=4), lambda: load_weights(model, path)):
            try:
                load()
            except SetrError as error:
                messages.append(str(error))
    assert len(messages) > len(cases)
    assert not any("\n" in message for message in messages)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_heads_must_divide_the_width(shared):
    with pytest.raises(SetrError, match="cannot be split into 5 heads") as caught:
        convert_foreign(shared / "parity/official/pup.pth", num_heads=5)
    assert caught.value.code == USAGE


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module."),
        *("model._orig_mod.", "_forward_module.", "model.model.", "model.student."),
    ],
)
def test_names_of_wrappers_are_taken_off(tmp_path, prefix):
    model, other = (create_model("setr_naive_nano", num_classes=2, img_size=16) for _ in range(2))
    torch.save({prefix + n: v for n, v in model.state_dict().items()}, tmp_path / "own.pth")
    load_weights(other, tmp_path / "own.pth")
    state = other.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("start", ["net.", "trainer.segmenter.", "model.net._orig_mod."])
def test_names_of_attributes_are_taken_off(tmp_path, start):
    """What Lightning and others save of a model inside their own module, and of its loss."""
    model, other = (create_model("setr_naive_nano", num_classes=2, img_size=16) for _ in range(2))
    vit, encoder = source_vit(), build()
    for source, load in ((model, other), (vit, encoder)):
        saved = {start + name: value for name, value in source.state_dict().items()}
        torch.save({"state_dict": saved | {"loss.weight": torch.ones(2)}}, tmp_path / "last.ckpt")
        report = load_weights(load, tmp_path / "last.ckpt")
        assert report.encoder_share == 1
        assert any(name.endswith("loss.weight") for name in report.unexpected)
    assert_same_maps(encoder, vit)
    state = other.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_names_inside_of_sharded_and_recomputed_blocks(tmp_path):
    model, other = (create_model("setr_naive_nano", num_classes=2, img_size=16) for _ in range(2))
    block = r"_fsdp_wrapped_module.\1_checkpoint_wrapped_module._orig_mod."
    saved = {
        f"_fsdp_wrapped_module.{re.sub(r'(blocks[.][0-9]+[.])', block, name)}": value
        for name, value in model.state_dict().items()
    }
    torch.save(saved, tmp_path / "own.pth")
    assert load_weights(other, tmp_path / "own.pth").encoder_share == 1
    state = other.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "segformer.encoder.block.0.1.attention.self.query.weight",
        "model.pixel_level_module.encoder.encoder.layers.1.blocks.0.output.dense.bias",
        "backbone.layers.0.1.0.attn.attn.in_proj_weight",
        "stages.0.blocks.0.gamma",
    ],
)
def test_encoders_in_stages_are_told_from_unknown_layouts(tmp_path, name):
    torch.save({name: torch.ones(2), "decode_head.x": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(SetrError, match=r"stages of several resolutions .*only models on plain"):
        load_weights(build(), tmp_path / "x.pth")


def test_several_models_and_lora_of_peft_are_named(tmp_path):
    model = create_model("setr_naive_nano", num_classes=2, img_size=16)
    state, path = model.state_dict(), tmp_path / "last.ckpt"
    both = {start + name: v for start in ("model.", "ema.module.") for name, v in state.items()}
    torch.save({"state_dict": both}, path)
    with pytest.raises(SetrError, match=r"several models, .* 'ema\.module\.' and 'model\.'"):
        load_weights(model, path)
    layer = "encoder.vit.blocks.0.attn.qkv."
    adapter = {f"base_model.model.{layer}lora_A.weight": torch.zeros(4, 128)}
    whole = {f"base_model.model.{name}": value for name, value in state.items()}
    whole[f"base_model.model.{layer}base_layer.weight"] = whole.pop(
        f"base_model.model.{layer}weight"
    )
    for given in (adapter, whole):
        torch.save(given, path)
        with pytest.raises(SetrError, match=r"LoRA layers of PEFT .*merge_and_unload"):
            load_weights(model, path)


@pytest.mark.parametrize("names", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averages_are_read_first_as_in_timm(tmp_path, names):
    vits = [source_vit() for _ in range(2)]
    with torch.no_grad():
        vits[0].pos_embed.add_(1)
    states = (vit.state_dict() for vit in vits)
    torch.save(dict(zip(names, states, strict=True)), tmp_path / "last.pth")
    model = build()
    load_weights(model, tmp_path / "last.pth")
    assert_same_maps(model, vits[1])


def test_weights_are_found_in_a_checkpoint_by_any_name(tmp_path):
    vit, path = source_vit(), tmp_path / "last.pth"
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    beside = {"epoch": 3, "optimizer": optimizer, "rng_state": torch.zeros(8)}
    for weights in (
        {"net": vit.state_dict()},
        {"model": {"state_dict": vit.state_dict()}},
        {"model": {"ema": vit.state_dict(), "steps": torch.tensor(3)}},
    ):
        torch.save(weights | beside, path)
        model = build()
        assert load_weights(model, path).encoder_share == 1
        assert_same_maps(model, vit)
    torch.save({"net": vit.state_dict(), "ema": vit.state_dict()} | beside, path)
    with pytest.raises(SetrError, match=r"several sets of tensors \(net, ema\); save the one"):
        load_weights(build(), path)


def in_parts(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Write weights as transformers does from a few gigabytes on; returns the index."""
    folder.mkdir()
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for part, own in parts.items():
        save_file({name: tensors[name].contiguous() for name in own}, folder / part)
    places = {name: part for part, own in parts.items() for name in own}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("of_folder", [True, False])
def test_weights_in_several_files_are_read_by_their_index(tmp_path, of_folder):
    state = source_vit().state_dict()
    index = in_parts(tmp_path / "vit", state)
    save_file(state, tmp_path / "whole.safetensors")
    maps = []
    for source in (index.parent if of_folder else index, tmp_path / "whole.safetensors"):
        model = build()
        report = load_encoder(model, str(source))
        assert "100.0%" in str(report)
        maps.append(model.encoder(torch.ones(1, 3, 64, 64))[-1])
    assert torch.equal(*maps)


def test_an_index_lists_files_beside_it_that_are_there(tmp_path):
    index = in_parts(tmp_path / "vit", {"a": torch.ones(2), "b": torch.ones(2)})
    (index.parent / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SetrError, match=r"lists 2 files, of which model-00002-of-00002\.safet"):
        read_tensor_file(index.parent)
    for text, why in (
        ('{"weight_map": {"a": "../whole.safetensors"}}', "lists a file elsewhere"),
        ('{"weight_map": {}}', "lists no files"),
        ('{"weight_map": {"a": 5}}', "a value is of another kind"),
        ("[]", "a value is of another kind"),
        ("{", "no index of weights"),
    ):
        index.write_text(text)
        with pytest.raises(SetrError, match=why):
            read_tensor_file(index)


def test_weights_in_several_files_are_fetched_from_the_hub(tmp_path, monkeypatch):
    index = in_parts(tmp_path / "there", source_vit().state_dict())
    here = tmp_path / "here"
    here.mkdir()

    def snapshot_download(repo_id, *, allow_patterns, local_files_only=False, **rest):
        for name in [] if local_files_only else allow_patterns:
            if (index.parent / name).is_file():
                shutil.copy(index.parent / name, here / name)
        return str(here)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("setr.reading.remote._require_network", lambda *_: None)
    model = build()
    assert "100.0%" in str(load_encoder(model, "owner/name"))


@pytest.mark.parametrize("generation", [4, 5])
def test_other_transformers_in_a_file_are_not_the_encoder(tmp_path, generation):
    """ViTMAEForPreTraining's decoder and a text model have layers of the same names."""
    vit = source_vit()
    state = huggingface_state(vit, generation)
    more = {n.removeprefix("vit."): torch.zeros_like(v) for n, v in state.items() if "layer" in n}
    text = {f"text_model.{name}": value for name, value in more.items()}
    mae = {f"decoder.decoder_{name.removeprefix('encoder.')}": v for name, v in more.items()}
    torch.save({**state, **mae, **text}, tmp_path / "pytorch_model.bin")
    model = build()
    report = load_weights(model, tmp_path / "pytorch_model.bin")
    assert {*mae, *text} <= set(report.unexpected)
    assert_same_maps(model, vit)


# --- pretrained by tag ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "tag", "name"),
    [
        (VIT, "augreg_in21k", "vit_base_patch16_224.augreg_in21k"),
        (VIT, "deit", "deit_base_patch16_384.fb_in1k"),
        (VIT, "deit_distilled", "deit_base_distilled_patch16_384.fb_in1k"),
        ("resnet50c", "gluon_in1k", "resnet50c.gluon_in1k"),
        ("vit_base_patch16_384", "orig_in21k_ft_in1k", "vit_base_patch16_384.orig_in21k_ft_in1k"),
        ("vit_small_patch14_dinov2", "lvd142m", "vit_small_patch14_dinov2.lvd142m"),
        ("resnet101", "tv_in1k", "resnet101.tv_in1k"),
        ("vit_base_patch16_224.dino", "augreg_in1k", "vit_base_patch16_224.augreg_in1k"),
    ],
)
def test_tags_name_timm_weights(encoder, tag, name):
    assert pretrained_id(encoder, tag) == name


def test_pretrained_may_be_a_switch_as_in_timm(monkeypatch):
    asked = []

    def download(name: str) -> dict[str, torch.Tensor]:
        asked.append(name)
        return timm.create_model(name).state_dict()

    monkeypatch.setattr("setr.weight_files.pretrained._download", download)
    create_model("setr_naive_tiny", num_classes=2, img_size=64, pretrained=False)
    assert asked == []
    create_model("setr_naive_tiny", num_classes=2, img_size=64, pretrained=True)
    named = "vit_tiny_patch16_224.augreg_in21k"
    create_model("setr_naive_tiny", num_classes=2, encoder=named, img_size=64, pretrained=True)
    assert asked == ["vit_tiny_patch16_384.augreg_in21k_ft_in1k", named]
    with pytest.raises(SetrError, match="timm has no weights for vit_base_patch32_plus_256"):
        create_model(
            "setr_naive_base",
            num_classes=2,
            img_size=64,
            encoder="vit_base_patch32_plus_256",
            pretrained=True,
        )


def test_unknown_tag_lists_the_known_ones():
    with pytest.raises(SetrError, match=r"pretrained 'nope'.*augreg_in21k.*; give .*a file"):
        pretrained_id(VIT, "nope")


def test_download_is_refused_politely_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refusal = "no such folder here, and not in the Hub's cache, and HF_HUB_OFFLINE is set; correct"
    with pytest.raises(SetrError, match=refusal):
        load_encoder(create_model("setr_naive_tiny", num_classes=2, img_size=64), "augreg_in21k")


def test_no_network_is_noticed_at_once(monkeypatch, tmp_path):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(SetrError, match=r"huggingface\.co cannot be reached \(Name or service"):
        load_encoder(create_model("setr_naive_tiny", num_classes=2, img_size=64), "augreg_in21k")


@pytest.mark.parametrize(
    ("text", "taps", "heads"),
    [
        ("dict(num_heads=4, out_indices=(0, 2))", (1, 3), 4),
        ("dict(\n    num_heads = 2,\n    out_indices=[\n        0,\n        2,\n    ])", (1, 3), 2),
        ("out_indices = [1, 2]", (2, 3), 1),
        ("out_indices=2", (3,), 1),
        ("num_heads=2", (1, 2, 3), 2),
    ],
)
def test_taps_and_heads_are_read_from_a_recorded_configuration(text, taps, heads):
    model = build(aux_taps=(1,) if len(taps) > 1 else ())
    found = Translation("mmseg", dict(model.state_dict()), whole=True)
    read = read_architecture(found, {"cfg": text}, source="x.pth")
    assert (read["taps"], read["encoder_args"]["num_heads"]) == (taps, heads)


@pytest.mark.parametrize("prefix", ["", "vit.", "model.", "backbone."])
@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_clip_224"])
def test_every_tensor_under_a_prefix_is_loaded(tmp_path, name, prefix):
    source, model = build(name, img_size=56), build(name, img_size=56)
    with torch.no_grad():
        for parameter in source.encoder.parameters():
            parameter.normal_(std=0.2)
    state = source.encoder.vit.state_dict()
    save_file(
        {prefix + key: value.contiguous() for key, value in state.items()},
        tmp_path / "w.safetensors",
    )
    load_encoder(model, str(tmp_path / "w.safetensors"))
    for key, value in model.encoder.vit.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_the_encoder_of_an_own_state_dict_is_loaded(tmp_path):
    source, model = build(), build()
    with torch.no_grad():
        for parameter in source.encoder.parameters():
            parameter.normal_(std=0.2)
    state = {f"encoder.{key}": value for key, value in source.encoder.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    load_encoder(model, str(tmp_path / "w.safetensors"))
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, state[f"encoder.{key}"]), key

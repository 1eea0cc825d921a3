"""Models of segmentation_models.pytorch: its DPT against plain operations; all others refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import setr
from setr._timm import timm
from setr.cli import main
from setr.errors import OK, SetrError
from setr.weight_files.foreign import convert_foreign
from tests.models import assert_converts

CLASSES, FUSED, INNER = 5, 8, (4, 8, 8, 16)
TINY = {"embed_dim": 32, "depth": 4, "num_heads": 2}


def decoder_state(width: int, patch: int, read: int, classes: int = CLASSES) -> dict[str, Tensor]:
    """Random tensors of its decoder and head; `read` channels go into a projection, 0 for none."""
    draw = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int, bias: int = 0) -> None:
        fan = torch.Size(shape[1:]).numel() ** 0.5
        state[f"{name}.weight"] = torch.randn(shape, generator=draw) / fan
        if bias:
            state[f"{name}.bias"] = torch.randn(bias, generator=draw)

    def norm(name: str) -> None:
        for part in ("weight", "running_var"):
            state[f"{name}.{part}"] = torch.rand(FUSED, generator=draw) + 0.5
        for part in ("bias", "running_mean"):
            state[f"{name}.{part}"] = torch.randn(FUSED, generator=draw) / 4
        state[f"{name}.num_batches_tracked"] = torch.tensor(3)

    for i, inner in enumerate(INNER):
        if read:
            layer(f"decoder.projection_blocks.{i}.project.0", width, read, bias=width)
        block, scale = f"decoder.reassemble_blocks.{i}", patch / 2 ** (i + 2)
        layer(f"{block}.project_to_out_channel", inner, width, 1, 1, bias=inner)
        if scale != 1:
            side = int(scale) if scale > 1 else 3
            layer(f"{block}.upsample", inner, inner, side, side, bias=inner)
        layer(f"{block}.project_to_feature_dim", FUSED, inner, 3, 3)
        fusion = f"decoder.fusion_blocks.{i}"
        for unit in (1, 2):
            for part in (1, 2):
                layer(f"{fusion}.residual_conv_block{unit}.conv_{part}", FUSED, FUSED, 3, 3)
                norm(f"{fusion}.residual_conv_block{unit}.batch_norm_{part}")
        layer(f"{fusion}.project", FUSED, FUSED, 1, 1, bias=FUSED)
    layer("segmentation_head.head.0", FUSED, FUSED, 3, 3)
    norm("segmentation_head.head.1")
    layer("segmentation_head.head.4", classes, FUSED, 1, 1, bias=classes)
    return state


def published(
    s: dict[str, Tensor], vit: Any, images: Tensor, taps: list[int], patch: int, readout: str
) -> Tensor:
    """Logits in its order of operations (its decoders/dpt/decoder.py), for images (B, C, H, W)."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(s[f"{name}.{part}"] for part in parts))

    def unit(x: Tensor, name: str) -> Tensor:
        y = x
        for part in (1, 2):
            y = F.conv2d(y.relu(), s[f"{name}.conv_{part}.weight"], padding=1)
            y = norm(y, f"{name}.batch_norm_{part}")
        return x + y

    def doubled(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

    options = {"return_prefix_tokens": True} if vit.num_prefix_tokens else {}
    found = vit.forward_intermediates(images, taps, intermediates_only=True, **options)
    levels = []
    for i, one in enumerate(found):
        x, prefix = one if options else (one, None)
        if readout == "add" and prefix is not None:
            x = x + prefix.mean(dim=1)[:, :, None, None]
        if readout == "cat":
            tokens = x.flatten(2).transpose(1, 2)
            if prefix is not None:
                tokens = torch.cat([tokens, prefix[:, :1].expand_as(tokens)], dim=2)
            name = f"decoder.projection_blocks.{i}.project.0"
            tokens = F.gelu(F.linear(tokens, s[f"{name}.weight"], s[f"{name}.bias"]))
            x = tokens.transpose(1, 2).reshape(x.shape)
        block, scale = f"decoder.reassemble_blocks.{i}", patch / 2 ** (i + 2)
        first, second = f"{block}.project_to_out_channel", f"{block}.upsample"
        x = F.conv2d(x, s[f"{first}.weight"], s[f"{first}.bias"])
        if scale > 1:
            weights = s[f"{second}.weight"], s[f"{second}.bias"]
            x = F.conv_transpose2d(x, *weights, stride=int(scale))
        elif scale < 1:
            weights = s[f"{second}.weight"], s[f"{second}.bias"]
            x = F.conv2d(x, *weights, stride=int(1 / scale), padding=1)
        levels.append(F.conv2d(x, s[f"{block}.project_to_feature_dim.weight"], padding=1))
    fused: Tensor | None = None
    for i, x in enumerate(reversed(levels)):
        name = f"decoder.fusion_blocks.{i}"
        x = unit(x, f"{name}.residual_conv_block1")
        x = x if fused is None else x + fused
        x = doubled(unit(x, f"{name}.residual_conv_block2"))
        fused = F.conv2d(x, s[f"{name}.project.weight"], s[f"{name}.project.bias"])
    assert fused is not None
    head = "segmentation_head.head"
    x = norm(F.conv2d(fused, s[f"{head}.0.weight"], padding=1), f"{head}.1").relu()
    return doubled(F.conv2d(x, s[f"{head}.4.weight"], s[f"{head}.4.bias"]))


def made(
    name: str, readout: str = "cat", classes: int = CLASSES, **arguments: Any
) -> tuple[dict[str, Tensor], Any]:
    """The state dict of its DPT on a timm ViT with random values, and the ViT."""
    torch.manual_seed(0)
    vit = timm.create_model(name, dynamic_img_size=True, **arguments).eval()
    with torch.no_grad():
        for part, value in vit.named_parameters():
            if part.endswith(("token", "pos_embed", "bias")):
                value.normal_(std=0.3)
    width, patch = vit.embed_dim, vit.patch_embed.patch_size[0]
    read = 0 if readout != "cat" else width * (2 if vit.num_prefix_tokens else 1)
    state = decoder_state(width, patch, read, classes)
    return {**{f"encoder.model.{k}": v for k, v in vit.state_dict().items()}, **state}, vit


def saved(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> Path:
    """A folder as its `save_pretrained` writes it."""
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    usual = {"_model_class": "DPT", "activation": None, "aux_params": None, "encoder_depth": 4,
             "encoder_output_indices": None, "encoder_weights": "imagenet", "in_channels": 3,
             "classes": CLASSES, "decoder_fusion_channels": FUSED, "decoder_readout": "cat",
             "decoder_intermediate_channels": list(INNER)}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(usual | config))
    return folder


@pytest.mark.parametrize(
    ("name", "readout", "ours"),
    [
        ("vit_base_patch16_224.augreg_in21k", "cat", "concat"),
        ("vit_base_patch16_224", "add", "add"),
        ("vit_base_patch16_224", "ignore", "ignore"),
        ("deit_base_distilled_patch16_224", "add", "mean"),
        ("vit_little_patch16_reg4_gap_256", "cat", "concat"),  # a register is the class token
        ("vit_base_patch16_siglip_224", "cat", "ignore"),  # projected without a class token
        ("vit_base_patch16_siglip_224", "add", "ignore"),
        ("vit_base_patch8_224", "cat", "concat"),
        ("vit_base_patch32_224", "cat", "concat"),
    ],
)
@torch.inference_mode()
def test_dpt_against_plain_operations(tmp_path, name, readout, ours):
    state, vit = made(name, readout, **TINY)
    config = {"encoder_name": f"tu-{name}", "decoder_readout": readout, **TINY}
    folder = saved(tmp_path / "smp", state, {**config, "dynamic_img_size": True})
    model, info, report = convert_foreign(folder)
    assert (report.dialect, report.unexpected, report.missing) == ("dpt-smp", [], [])
    assert model.arguments["encoder"] == name
    assert model.arguments["encoder_args"]["readout"] == ours
    assert (info.protocol.short_side, info.crop_size) == (None, None)  # any size
    patch = vit.patch_embed.patch_size[0]
    own = vit.patch_embed.img_size
    for size in (own, (64, 2 * 64)):
        images = torch.randn(1, 3, *size)
        want = published(state, vit, images, [0, 1, 2, 3], patch, readout)
        assert want.shape == (1, CLASSES, *size)
        torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-4)


def test_a_folder_becomes_a_model_directory_with_own_classes(tmp_path, capsys):
    state, _ = made("vit_base_patch16_224", **TINY, img_size=64)
    config = {"encoder_name": "tu-vit_base_patch16_224", **TINY, "img_size": 64,
              "encoder_output_indices": [0, -2, 1, 3], "activation": "sigmoid",
              "drop_path_rate": 0.1}  # fmt: skip
    state["classification_head.3.weight"] = torch.zeros(2, 32)
    folder = saved(tmp_path / "smp", state, config)
    (folder / "albumentations_config_eval.json").write_text(json.dumps({"transform": {"transforms":
        [{"__class_fullname__": "Resize"}, {"__class_fullname__": "Normalize", "mean": [10, 20, 30],
          "std": [50.0, 51.0, 52.0], "max_pixel_value": 1.0}]}}))  # fmt: skip
    model, info, report = convert_foreign(folder)
    assert info.mean == pytest.approx((10 / 255, 20 / 255, 30 / 255))
    assert info.std[0] == pytest.approx(50 / 255)
    assert model.arguments["taps"] == (1, 2, 3, 4)
    assert "drop_path_rate" not in model.arguments["encoder_args"]
    assert (info.protocol.short_side, info.crop_size) == (64, (64, 64))
    assert report.differences == ["a sigmoid of each class there, here a softmax of all"]
    assert report.unexpected == ["classification_head.3.weight"]
    assert_converts(folder, model, tmp_path / "model")
    names = [f"thing {i}" for i in range(CLASSES)]
    (tmp_path / "data.yaml").write_text(json.dumps({"classes": names}))
    out = str(tmp_path / "named")
    labels = ["--labels", str(tmp_path / "data.yaml")]
    assert main(["convert", str(folder), "-o", out, *labels]) == OK
    assert setr.load(out, device="cpu").info.labels.classes == tuple(names)
    assert main(["predict", str(folder), "nothing.png", "-o", str(tmp_path / "p")]) != OK
    assert "format is not" not in capsys.readouterr().err  # folders are opened as they are


@torch.inference_mode()
def test_one_class_becomes_two_with_the_same_masks(tmp_path):
    state, vit = made("vit_base_patch16_224", classes=1, **TINY)
    config = {"encoder_name": "tu-vit_base_patch16_224", **TINY, "classes": 1}
    folder = saved(tmp_path / "smp", state, {**config, "activation": "sigmoid"})
    model, _, report = convert_foreign(folder)
    assert not any("sigmoid" in said for said in report.differences)
    images = torch.randn(1, 3, 64, 64)
    want = published(state, vit, images, [0, 1, 2, 3], 16, "cat").sigmoid()
    torch.testing.assert_close(model(images).softmax(dim=1)[:, 1:], want, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_tensors_alone_and_in_a_lightning_module(tmp_path):
    state, vit = made("vit_tiny_patch16_224")
    torch.save(state, tmp_path / "bare.pth")
    around = {"mean": torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1),
              "std": torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)}  # fmt: skip
    inside = {**{f"model.{k}": v for k, v in state.items()}, **around}
    torch.save({"state_dict": inside}, tmp_path / "last.ckpt")
    images = torch.randn(1, 3, 64, 64)
    want = published(state, vit, images, [2, 5, 8, 11], 16, "cat")
    for file, mean in (("bare.pth", (0.5, 0.5, 0.5)), ("last.ckpt", (0.1, 0.2, 0.3))):
        model, info, report = convert_foreign(tmp_path / file)
        torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-4)
        assert (model.arguments["encoder"], info.mean) == ("vit_tiny_patch16_224", mean)
        assert any("mean and std" in said for said in report.differences) == (file == "bare.pth")
        assert (info.protocol.short_side, info.crop_size) == (224, (224, 224))


@pytest.mark.parametrize(
    ("name", "arguments", "given", "message"),
    [
        ("deit3_small_patch16_224", {}, None, "has blocks.0.ls1.gamma, unlike timm's vit_small_"),
        ("vit_base_patch16_224", TINY, None, "does not say which encoder of 32 channels; give"),
        ("vit_tiny_patch16_224", {}, "tu-vit_base_patch16_224", "192 channels, timm's vit_base_p"),
        ("vit_small_patch14_dinov2", {"img_size": 56}, None, "has patches of 14 pixels, at which"),
    ],
)
def test_tensors_that_do_not_show_the_encoder(tmp_path, name, arguments, given, message):
    state, _ = made(name, "ignore", **arguments)
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(SetrError, match=message):
        convert_foreign(tmp_path / "bare.pth", encoder=given)
    if name.startswith("deit3"):
        model, _, report = convert_foreign(tmp_path / "bare.pth", encoder=f"tu-{name}")
        assert model.arguments["encoder"] == name
        assert any("taken to be ignored" in said for said in report.differences)


@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ("Unet", "decoder.blocks.0.conv1.0.weight"),
        ("UnetPlusPlus", "decoder.blocks.x_0_0.conv1.0.weight"),
        ("MAnet", "decoder.center.top_conv.weight"),
        ("Linknet", "decoder.blocks.0.block.0.0.weight"),
        ("FPN", "decoder.seg_blocks.0.block.0.block.0.weight"),
        ("PSPNet", "decoder.psp.blocks.0.pool.1.0.weight"),
        ("DeepLabV3", "decoder.aspp.convs.0.0.weight"),
        ("DeepLabV3Plus", "decoder.aspp.0.convs.0.0.weight"),
        ("PAN", "decoder.fpa.branch1.1.conv.weight"),
        ("UPerNet", "decoder.feature_norms.0.weight"),
        ("Segformer", "decoder.mlp_stage.0.linear.weight"),
    ],
)
def test_other_models_are_named(tmp_path, model, tensor):
    names = (tensor, "decoder.blocks.4.conv1.0.weight", "segmentation_head.0.weight",
             "encoder.model.blocks.0.0.conv.weight", "encoder.layer1.0.conv1.weight")  # fmt: skip
    if model != "Unet":
        names = tuple(name for name in names if not name.startswith("decoder.blocks.4."))
    torch.save({f"model.{name}": torch.ones(1) for name in names}, tmp_path / "last.ckpt")
    with pytest.raises(SetrError, match=rf"is a {model} of segmentation_models\.pytorch, not a"):
        convert_foreign(tmp_path / "last.ckpt")

"""Encoders that differ from timm's model of their name, as those of pathology do."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from setr._timm import timm
from setr.arguments.named_values import encoder_arguments
from setr.cli import main
from setr.config import Config, ModelConfig
from setr.errors import OK, USAGE, SetrError
from setr.hub import from_pretrained
from setr.model import create_model
from setr.recipes import recipe
from setr.training.build import build_model, require_buildable, require_fitting_weights
from setr.weight_files.weight_settings import trained_normalisation
from setr.weights import load_weights
from tests.test_other_vits import randomised

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
OPTIONS = tuple(f"{name}={value}" for name, value in SMALL.items())
GATED = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
FORMS: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    # as their authors build them with timm; and the encoder and its settings here
    "UNI": ("vit_large_patch16_224", {"init_values": 1e-5}, "vit_large_patch16_224",
            ("init_values=1e-5",)),
    "UNI2-h": ("vit_giant_patch14_224",
               {"init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "no_embed_class": True,
                "reg_tokens": 8, **GATED},
               "vit_giant_patch14_reg4_dinov2", ("reg_tokens=8",)),
    "Virchow": ("vit_huge_patch14_224", {"init_values": 1e-5, "mlp_ratio": 5.3375, **GATED},
                "vit_giant_patch14_dinov2", ("mlp_ratio=5.3375",)),
    "Virchow2": ("vit_huge_patch14_224",
                 {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, **GATED},
                 "vit_giant_patch14_dinov2", ("mlp_ratio=5.3375", "reg_tokens=4")),
    "as the model card": ("vit_huge_patch14_224", {"init_values": 1e-5, **GATED},
                          "vit_huge_patch14_224",
                          ("init_values=1e-5", "mlp_layer=SwiGLUPacked", "act_layer=silu")),
    "Prov-GigaPath": ("vit_giant_patch14_dinov2", {"patch_size": 16, "mlp_ratio": 5.33334},
                      "vit_giant_patch14_dinov2", ("patch_size=16",)),
}  # fmt: skip


def theirs(name: str, **more: Any) -> Any:
    return randomised(timm.create_model(name, num_classes=0, img_size=112, **{**SMALL, **more}))


def settings(tmp_path: Path, encoder: str, arguments: tuple[str, ...], **more: Any) -> Config:
    """Of a run that starts from `weights.pth`."""
    model = ModelConfig(
        name="linear_nano", encoder=encoder, encoder_args=(*OPTIONS, *arguments), img_size=112,
        pretrained=str(tmp_path / "weights.pth"), **more,
    )  # fmt: skip
    return dataclasses.replace(recipe("finetune"), model=model)


@torch.inference_mode()
@pytest.mark.parametrize("kind", FORMS)
def test_an_encoder_is_built_as_its_authors_build_it(kind, tmp_path):
    name, form, encoder, arguments = FORMS[kind]
    source, images = theirs(name, **form), torch.randn(1, 3, 112, 112)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = build_model(settings(tmp_path, encoder, arguments), 2).eval()
    expected = source.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "form", "encoder", "option"),
    [
        ("vit_large_patch16_224", {"init_values": 1e-5}, "vit_large_patch16_224",
         "init_values=1e-05"),
        ("vit_huge_patch14_224", {"reg_tokens": 4, "mlp_ratio": 5.3375, **GATED, "init_values": 1},
         "vit_huge_patch14_224",
         "mlp_layer=SwiGLUPacked act_layer=silu mlp_ratio=5.3125 init_values=1e-05 reg_tokens=4"),
        ("vit_giant_patch14_dinov2", {"patch_size": 16}, "vit_giant_patch14_dinov2",
         "patch_size=16"),
        ("vit_base_patch16_clip_224", {}, "vit_base_patch16_224", "pre_norm=True"),
        ("vit_base_patch16_224", {"qk_norm": True}, "vit_base_patch16_224", "qk_norm=True"),
        ("vit_base_patch16_224", {"qkv_bias": False}, "vit_base_patch16_224", "qkv_bias=False"),
        ("vit_base_patch16_224", {"depth": 1}, "vit_base_patch16_224", "depth=1"),
        ("vit_base_patch16_224", {"embed_dim": 48, "depth": 3}, "vit_base_patch16_224",
         r"embed_dim=48 num_heads=\? depth=3 \(\? as its authors state\)"),
        ("vit_base_patch14_dinov2", {}, "vit_base_patch14_reg4_dinov2", "reg_tokens=0"),
    ],
)  # fmt: skip
def test_what_the_tensors_show_is_suggested(name, form, encoder, option, tmp_path):
    """Without a layer scale or a norm the same weights would compute something else."""
    torch.save(theirs(name, **form).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(SetrError, match=rf"or add --model\.encoder-args {option}, or load what"):
        build_model(settings(tmp_path, encoder, ()), 2)


@pytest.mark.parametrize(
    "kind", [kind for kind in FORMS if kind != "Virchow"]
)  # fits at this width
def test_a_suggestion_is_enough(kind, tmp_path):
    name, form, encoder, _ = FORMS[kind]
    torch.save(theirs(name, **form).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(SetrError) as error:
        build_model(settings(tmp_path, encoder, ()), 2)
    found = re.search(r"--model\.encoder-args (.+?), or load what", str(error.value))
    assert found
    build_model(settings(tmp_path, encoder, tuple(found[1].split())), 2)


@torch.inference_mode()
def test_positions_of_registers_are_added_to_them(tmp_path):
    """Virchow2's cover them; those of DINOv2 with registers do not."""
    source = theirs("vit_giant_patch14_dinov2", reg_tokens=4)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    images = torch.randn(1, 3, 112, 112)
    model = build_model(settings(tmp_path, "vit_giant_patch14_reg4_dinov2", ()), 2).eval()
    assert model.encoder.num_pos_prefix == 0
    expected = source.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["eva_large_patch14_196", "vit_base_patch16_224"])
def test_layer_scales_under_either_name(name, tmp_path):
    source = theirs(name, init_values=1e-5)
    swapped = {
        re.sub(r"gamma_(\d)", r"ls\1.gamma", n) if "gamma_" in n
        else re.sub(r"ls(\d)\.gamma", r"gamma_\1", n): value
        for n, value in source.state_dict().items()
    }  # fmt: skip
    assert swapped.keys() != source.state_dict().keys()
    torch.save(swapped, tmp_path / "weights.pth")
    images = torch.randn(1, 3, 112, 112)
    model = build_model(settings(tmp_path, name, ("init_values=1e-5",)), 2).eval()
    expected = source.forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(model.encoder(images), expected, rtol=1e-5, atol=1e-5)


def test_weights_for_other_bands_say_which_data_they_need(tmp_path):
    torch.save(theirs("vit_small_patch16_224", in_chans=13).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(SetrError, match="are for images of 13 bands, the model for 3: give data"):
        build_model(settings(tmp_path, "vit_small_patch16_224", ()), 2)
    bands = {"mean": (0.5,) * 13, "std": (0.25,) * 13}
    build_model(settings(tmp_path, "vit_small_patch16_224", (), **bands), 2)


def test_tensors_without_effect_need_no_place(tmp_path):
    state = theirs("vit_base_patch16_224").state_dict()
    more = {"blocks.5.ls1.gamma": torch.ones(32), "patch_embed.norm.bias": torch.zeros(32)}
    torch.save({**state, **more, "fc_norm.weight": torch.ones(32)}, tmp_path / "weights.pth")
    model = create_model("linear_nano", num_classes=2, encoder="vit_base_patch16_224",
                         img_size=112, encoder_args=SMALL)  # fmt: skip
    assert len(load_weights(model, tmp_path / "weights.pth").unexpected) == 3
    torch.save({**state, "blocks.1.ls1.gamma": torch.ones(32)}, tmp_path / "weights.pth")
    assert load_weights(model, tmp_path / "weights.pth", partial=True).encoder_share == 1
    with pytest.raises(SetrError, match=r"no place for encoder\.vit\.blocks\.1\.ls1\.gamma"):
        load_weights(model, tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_downloaded_folder_is_as_good_as_its_file(name, tmp_path):
    """UNI's has a pytorch_model.bin alone."""
    config = settings(tmp_path, "vit_base_patch16_224", ())
    folder = tmp_path / "uni"
    folder.mkdir()
    model = dataclasses.replace(config.model, pretrained=str(folder))
    config = dataclasses.replace(config, model=model)
    with pytest.raises(SetrError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        require_buildable(config, weights=True)
    state = theirs("vit_base_patch16_224").state_dict()
    (save_file if name.endswith("safetensors") else torch.save)(state, folder / name)
    require_buildable(config, weights=True)
    require_fitting_weights(config)
    build_model(config, 2)


def test_setr_convert_takes_the_settings_too(tmp_path, capsys):
    torch.save(theirs("vit_base_patch16_224", init_values=1).state_dict(), tmp_path / "weights.pth")
    words = ["convert", str(tmp_path / "weights.pth"), "-o", str(tmp_path / "model"),
             "--model", "linear_nano", "--encoder", "vit_base_patch16_224", "--num-classes", "2",
             "--encoder-args", *OPTIONS]  # fmt: skip
    assert main(words) == USAGE
    assert "add --model.encoder-args init_values=1e-05" in capsys.readouterr().err
    assert main([*words, "init_values=1e-5"]) == OK
    model, info = from_pretrained(tmp_path / "model")
    assert model.arguments["encoder_args"] == {**SMALL, "init_values": 1e-5}
    assert "--encoder-args embed_dim=32 depth=2 num_heads=2 init_values=1e-5" in str(info.command)


# --- the option -----------------------------------------------------------------------------------


def test_values_are_read_as_in_yaml_and_python():
    given = ("init_values=1e-5", "reg_tokens=8", "qkv_bias=false", "pre_norm=True",
             "act_layer=silu", "pos_embed_grid_size=(4, 4)", "fc_norm=None")  # fmt: skip
    assert encoder_arguments(given, "x") == {
        "init_values": 1e-5, "reg_tokens": 8, "qkv_bias": False, "pre_norm": True,
        "act_layer": "silu", "pos_embed_grid_size": (4, 4), "fc_norm": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("reg_tokens",), r"model\.encoder_args 'reg_tokens': give NAME=VALUE, as reg_tokens=8"),
        (("=8",), "'=8': give NAME=VALUE"),
        (("a=1", "a=2"), "'a=2': a is given twice"),
        (("in_chans=4",), r"is set by the data's bands \(`bands` of data\.yaml\); leave it out"),
        (("img_size=224",), r"is set by model\.img_size; leave it out"),
    ],
)
def test_other_forms_of_the_option_are_one_line(given, said):
    with pytest.raises(SetrError, match=said) as error:
        ModelConfig(encoder_args=given)
    assert error.value.code == USAGE


@pytest.mark.parametrize(
    ("name", "encoder", "argument"),
    [
        ("linear_nano", "vit_base_patch16_224", "no_such=1"),
        ("linear_nano", "vit_base_patch16_224", "mlp_layer=os"),
        ("linear_nano", "vit_base_patch16_224", "depth=many"),
        ("linear_nano", "vit_base_patch16_224", "reg_tokens=-3"),
        ("linear_nano", "vit_base_patch16_224", "checkpoint_path=x.pth"),
        ("linear_nano", "vit_base_patch16_224", "features_only=True"),
        ("linear_nano", "vit_base_patch16_224", "dynamic_img_size=False"),
        ("linear_nano", "vit_base_patch16_224", "patch_size=(8, 4)"),
        ("linear_nano", "samvit_base_patch16", "neck_chans=256"),
        ("fcn_r101", None, "no_such=1"),
        ("hybrid_base", None, "patch_size=8"),
    ],
)
def test_settings_that_no_encoder_has_are_one_line(name, encoder, argument):
    model = ModelConfig(name=name, encoder=encoder, encoder_args=(argument,))
    with torch.device("meta"), pytest.raises(SetrError) as error:
        build_model(dataclasses.replace(recipe("finetune"), model=model), 2)
    assert error.value.code == USAGE
    assert argument.partition("=")[0] in str(error.value)


# --- normalisation --------------------------------------------------------------------------------


def said(capsys: Any, tmp_path: Path, encoder: str, state: dict[str, Tensor], **more: Any) -> str:
    """The note of a run that starts from these weights."""
    torch.save(state, tmp_path / "weights.pth")
    capsys.readouterr()
    build_model(settings(tmp_path, encoder, (), **more), 2)
    lines: list[str] = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")
    ]
    return "".join(lines)


STAINS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"architecture": "x", "pretrained_cfg": {**STAINS, "tag": "y"}}),
        ("config.json", {"architecture": "x", **STAINS}),
        ("preprocessor_config.json",
         {"image_mean": list(STAINS["mean"]), "image_std": list(STAINS["std"])}),
    ],
)  # fmt: skip
def test_the_file_beside_the_weights_tells_their_normalisation(file, content, tmp_path, capsys):
    name = "vit_giant_patch14_reg4_dinov2"
    (tmp_path / file).write_text(json.dumps(content))
    state = theirs(name).state_dict()
    note = said(capsys, tmp_path, name, state)
    assert re.fullmatch(
        r"note: \S+/weights\.pth was trained with --model\.mean 0\.707223 0\.578729 0\.703617 "
        r"--model\.std 0\.211883 0\.230117 0\.177517; this run is not",
        note,
    )
    assert not said(capsys, tmp_path, name, state, **STAINS)


@pytest.mark.parametrize("broken", ["", "[]", '{"mean": 3, "std": 4}', '{"pretrained_cfg": []}',
                                    '{"mean": [0, 0, 0], "std": [0, 0, 0]}'])  # fmt: skip
def test_a_broken_file_beside_the_weights_tells_nothing(broken, tmp_path, capsys):
    (tmp_path / "config.json").write_text(broken)
    state = theirs("vit_base_patch14_dinov2").state_dict()
    assert not said(capsys, tmp_path, "vit_base_patch14_dinov2", state)


@pytest.mark.parametrize(
    "content",
    [
        {"num_attention_heads": 4, "model_type": "dinov2"},
        {"model_args": {"num_heads": 4}},
        {"vision_config": {"num_attention_heads": 4}, "hidden_size": 7},
    ],
)
def test_another_number_of_heads_than_in_the_file_beside_is_refused(content, tmp_path):
    """No tensor shows it, and the same weights compute something else."""
    name = "vit_base_patch14_dinov2"
    torch.save(theirs(name).state_dict(), tmp_path / "weights.pth")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(SetrError, match=r"has 4 attention heads, \S+ has 2; .+num_heads=4$"):
        require_fitting_weights(settings(tmp_path, name, ()))
    (tmp_path / "config.json").write_text(json.dumps(content).replace("4", "2"))
    require_fitting_weights(settings(tmp_path, name, ()))


@pytest.mark.parametrize("nested", [False, True])
def test_another_activation_than_in_the_file_beside_is_refused(nested, tmp_path):
    """As of OpenAI's CLIP, whose files fit the encoders of OpenCLIP's, too."""
    name = "vit_base_patch14_dinov2"
    torch.save(theirs(name).state_dict(), tmp_path / "weights.pth")
    for activation, others, is_refused in (
        ("quick_gelu", (), True),
        ("quick_gelu", ("act_layer=quick_gelu",), False),
        ("gelu_pytorch_tanh", (), False),
        ("gelu", (), False),
        ("relu", (), True),
    ):
        content = {"hidden_act": activation}
        content = {"vision_config": content, "hidden_act": "silu"} if nested else content
        (tmp_path / "config.json").write_text(json.dumps(content))
        given = settings(tmp_path, name, others)
        if is_refused:
            with pytest.raises(SetrError, match=rf"activation {activation}, .+act_layer=\w+$"):
                require_fitting_weights(given)
        else:
            require_fitting_weights(given)


def test_weights_of_an_encoder_with_several_normalisations_say_so(tmp_path, capsys):
    """timm's vit_large_patch16_224 has AugReg's weights, with 0.5, and MAE's, with ImageNet's."""
    state = theirs("vit_large_patch16_224").state_dict()
    note = said(capsys, tmp_path, "vit_large_patch16_224", state)
    assert "weights.pth does not say what it was trained with; timm's weights for " in note
    assert "--model.mean 0.5 0.5 0.5 --model.std 0.5 0.5 0.5 or --model.mean 0.485" in note
    assert note.endswith(
        "this run has --model.mean 0.485 0.456 0.406 --model.std 0.229 0.224 0.225"
    )


@pytest.mark.parametrize(
    ("encoder", "tag", "mean"),
    [
        ("vit_large_patch16_dinov3", "sat493m", (0.43, 0.411, 0.296)),
        ("vit_large_patch16_dinov3", "lvd1689m", (0.485, 0.456, 0.406)),
        ("vit_base_patch16_224", "augreg_in21k", (0.5, 0.5, 0.5)),
        ("vit_base_patch16_224", "dino", (0.485, 0.456, 0.406)),
        ("vit_large_patch14_clip_224", "openai", (0.481, 0.458, 0.408)),
        ("vit_large_patch14_clip_224", "laion2b", (0.5, 0.5, 0.5)),
    ],
)
def test_tags_have_their_own_normalisation(encoder, tag, mean):
    found = trained_normalisation(encoder, tag, "timm")
    assert found
    assert found.mean == pytest.approx(mean, abs=1e-3)

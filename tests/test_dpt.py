"""DPT: readouts, its decoder against plain operations, and its published layouts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import setr
from setr.catalog import default_taps
from setr.cli import main
from setr.encoder import Encoder
from setr.errors import OK, SetrError
from setr.labels import known_labels
from setr.layers.dpt import DPT, DPTNeck, reassembled_channels
from setr.layers.positions import resample_grid
from setr.weight_files.foreign import convert_foreign
from setr.weight_files.transformers_files import transformers_settings
from tests.conftest import renamed
from tests.models import assert_converts, assert_learns, assert_same

CLASSES = 5
TINY = {"embed_dim": 64, "depth": 4, "num_heads": 2}


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, with weights and statistics far from the initial ones, so that all count."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            fan = max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 4.0
            value.copy_(torch.randn(value.shape, generator=draw) / fan)
            if re.search(r"norm.*weight$|running_var", name):
                value.abs_().add_(0.5)
    return model.eval()


# --- readout --------------------------------------------------------------------------------------


def test_readouts_ignore_add_and_concatenate_the_class_token():
    torch.manual_seed(0)
    plain = Encoder("vit_base_patch16_384", taps=(2, 4), img_size=64, **TINY).eval()
    images = torch.randn(2, 3, 50, 64)
    with torch.inference_mode():
        found = plain.vit.forward_intermediates(
            F.pad(images, (0, 0, 0, 14)), [1, 3], return_prefix_tokens=True, intermediates_only=True
        )
        for readout in ("ignore", "add", "concat"):
            encoder = Encoder(
                "vit_base_patch16_384", taps=(2, 4), img_size=64, readout=readout, **TINY
            ).eval()
            encoder.load_state_dict(plain.state_dict())
            maps = encoder(images)
            assert [m.shape[1] for m in maps] == encoder.widths
            for got, (patches, prefix) in zip(maps, found, strict=True):
                token = prefix[:, 0, :, None, None].expand_as(patches)
                expected = {
                    "ignore": patches,
                    "add": patches + token,
                    "concat": torch.cat([patches, token], dim=1),
                }[readout]
                torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_base_patch16_siglip_224", {"readout": "add"}, "has no class token; give readout 'ig"),
        ("vit_base_patch16_384", {"readout": "max"}, "readout 'max': give ignore, add, concat, m"),
        (
            "vit_base_patch16_384",
            {"readout": "concat", "prefix_tokens": "drop"},
            "prefix_tokens 'drop' drops the class token",
        ),
    ],
)
def test_refused_readouts(name, arguments, message):
    with pytest.raises(SetrError, match=message):
        Encoder(name, taps=(1,), depth=1, **arguments)


@pytest.mark.parametrize(
    ("encoder", "readout"),
    [
        ("vit_small_patch14_reg4_dinov2", "concat"),
        ("eva02_tiny_patch14_224", "concat"),
        ("vit_base_patch16_siglip_224", None),  # has none
    ],
)
def test_other_encoders_read_a_class_token_where_there_is_one(encoder, readout):
    with torch.device("meta"):
        model = setr.create_model(
            "dpt_base", num_classes=2, encoder=encoder, img_size=56, encoder_args={"depth": 4}
        )
        assert model.arguments["encoder_args"].get("readout") == readout
        assert model(torch.zeros(1, 3, 56, 70)).shape == (1, 2, 56, 70)


# --- decoder --------------------------------------------------------------------------------------


def unit(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    """A residual unit, written out."""
    y = x
    for layer in ("first", "second"):
        y = F.conv2d(y.relu(), p[f"{name}.{layer}.0.weight"], padding=1)
        stats = (p[f"{name}.{layer}.1.{k}"] for k in ("running_mean", "running_var"))
        y = F.batch_norm(y, *stats, p[f"{name}.{layer}.1.weight"], p[f"{name}.{layer}.1.bias"])
    return x + y


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
@pytest.mark.parametrize("readout", ["project", "ignore"])
def test_decoder_against_plain_operations(size, readout):
    """In the order of the paper: projections after upsampling, batch norms unfolded."""
    C, width = 16, 32 if readout == "project" else 16
    neck = randomised(DPTNeck([width] * 4, width=C, channels=8, reassembled=(2, 4, 8, 16))).double()
    head = randomised(DPT(8, CLASSES, channels=12, final_scale=2)).double()
    features = [torch.randn(2, width, *size, dtype=torch.double) for _ in range(4)]
    p = {**neck.state_dict(), **{f"head.{k}": v for k, v in head.state_dict().items()}}
    levels = []
    for i, x in enumerate(features):
        name = f"reassemble.{i}"
        if readout == "project":
            tokens = x.flatten(2).transpose(1, 2)
            tokens = tokens @ p[f"{name}.readout.0.weight"].T + p[f"{name}.readout.0.bias"]
            x = F.gelu(tokens).transpose(1, 2).reshape(2, C, *size)
        x = F.conv2d(x, p[f"{name}.project.weight"], p[f"{name}.project.bias"])
        if i < 2:
            stride = (4, 2)[i]
            x = F.conv_transpose2d(
                x, p[f"{name}.resample.weight"], p[f"{name}.resample.bias"], stride
            )
        if i == 3:
            x = F.conv2d(x, p[f"{name}.resample.weight"], p[f"{name}.resample.bias"], 2, 1)
        levels.append(F.conv2d(x, p[f"{name}.conv.weight"], padding=1))
    expected: list[Tensor] = []
    for i in (3, 2, 1, 0):
        name, x = f"fusions.{i}", levels[i]
        if expected:
            x = F.interpolate(x, expected[-1].shape[-2:], mode="bilinear", align_corners=False)
            x = expected[-1] + unit(x, p, f"{name}.lateral")
        x = doubled(unit(x, p, f"{name}.refine"))
        expected.append(F.conv2d(x, p[f"{name}.project.weight"], p[f"{name}.project.bias"]))
    y = F.conv2d(expected[-1], p["head.conv.0.weight"], padding=1)
    stats = (p[f"head.conv.1.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
    y = F.conv2d(
        F.batch_norm(y, *stats).relu(), p["head.classifier.weight"], p["head.classifier.bias"]
    )
    for context in (torch.enable_grad(), torch.inference_mode()):
        with context:
            fused = neck(features)
            for got, want in zip(fused, reversed(expected), strict=True):
                torch.testing.assert_close(got, want)
            torch.testing.assert_close(head(fused), doubled(y))
    even = [2 * -(-side // 2) for side in size]
    assert [tuple(f.shape[-2:]) for f in fused] == [
        (s * even[0], s * even[1]) for s in (8, 4, 2, 1)
    ]


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_every_parameter_gets_a_gradient_and_any_size_logits(size):
    model = setr.create_model("dpt_nano", num_classes=CLASSES, img_size=32)
    output = assert_learns(model, *size)
    assert output.aux[0].shape[-1] * 2 == output.logits.shape[-1]  # the last fusion but one


def test_sizes_of_the_paper():
    assert reassembled_channels(768) == (96, 192, 384, 768)
    assert reassembled_channels(1024) == (256, 512, 1024, 1024)
    assert default_taps("dpt", 12) == ((3, 6, 9, 12), (6,))
    assert default_taps("dpt", 24) == ((6, 12, 18, 24), (12,))
    with pytest.raises(SetrError, match="taps: 5 blocks; DPT reads 4 or fewer"):
        DPTNeck([8] * 5, width=8)
    with pytest.raises(SetrError, match=r"reassembled \(2, 4\): give one number for each of 3"):
        DPTNeck([8] * 3, width=8, reassembled=(2, 4))
    few = DPTNeck([8] * 2, width=8, channels=4)([torch.randn(1, 8, 4, 4)] * 2)
    assert [f.shape[-1] for f in few] == [32, 16]
    aligned = setr.create_model("dpt_nano", num_classes=2, align_corners=False)
    assert not any(fusion.align_corners for fusion in aligned.neck.fusions)


def test_plain_bicubic_positions_have_the_kernel_of_other_libraries():
    """Between samples of a step, Keys' kernel with a = -0.75; antialiased ones have -0.5."""
    step = torch.zeros(1, 16, 1)
    step[0, 8:] = 1  # the lower two rows of a 4x4 grid
    column = resample_grid(step, (4, 4), (8, 4), mode="bicubic_plain")[0].reshape(8, 4)[:, 0]
    a, t = -0.75, 0.25  # row 3 of 8 lies a quarter behind row 1 of 4
    far = a * (2 - t) ** 3 - 5 * a * (2 - t) ** 2 + 8 * a * (2 - t) - 4 * a
    near = (a + 2) * (1 - t) ** 3 - (a + 3) * (1 - t) ** 2 + 1
    assert column[3].item() == pytest.approx(far + near)
    other = resample_grid(step, (4, 4), (8, 4), mode="bicubic")[0].reshape(8, 4)[:, 0]
    assert abs(other[3] - column[3]) > 0.01


# --- checkpoints ----------------------------------------------------------------------------------

UNITS = {"lateral": "1", "refine": "2"}
LAYERS = {"first": "1", "second": "2"}


def own(**arguments: object) -> setr.SETR:
    settings: dict[str, object] = {
        "encoder_args": {**TINY, "num_heads": 1, "readout": "concat", "norm_eps": 1e-5},
        "neck_args": {"channels": 8, "reassembled": (4, 8, 8, 16)},
        "aux_taps": (1,),
        "aux_args": {"channels": 8, "num_convs": 1, "concat_input": False},
        "decoder_args": {"channels": 8},
        "pos_interp": "bicubic_plain",
        "num_classes": CLASSES,
    }
    model = setr.SETR(
        encoder="vit_base_patch16_384", decoder="dpt", taps=(1, 2, 3, 4), img_size=64,
        **(settings | arguments),
    )  # fmt: skip
    return randomised(model)


PORT = [
    (r"^encoder\.vit\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^encoder\.vit\.", "backbone."),
    (r"\.blocks\.", ".layers."), (r"\.norm([12])\.", r".ln\1."),
    (r"attn\.qkv\.", "attn.attn.in_proj_"), (r"attn\.proj\.", "attn.attn.out_proj."),
    (r"mlp\.fc1\.", "ffn.layers.0.0."), (r"mlp\.fc2\.", "ffn.layers.1."),
    (r"^decoder\.classifier", "decode_head.conv_seg"),
    (r"^decoder\.conv\.0", "decode_head.project.conv"),
    (r"^decoder\.conv\.1", "decode_head.project.bn"),
    (r"^neck\.reassemble\.(\d)\.conv", r"decode_head.convs.\1.conv"),
    (r"^neck\.reassemble\.(\d)\.project", r"decode_head.reassemble_blocks.projects.\1.conv"),
    (r"^neck\.reassemble\.(\d)\.resample", r"decode_head.reassemble_blocks.resize_layers.\1"),
    (r"^neck\.reassemble\.(\d)\.readout", r"decode_head.reassemble_blocks.readout_projects.\1"),
    (
        r"^neck\.fusions\.(\d)\.project",
        lambda m: f"decode_head.fusion_blocks.{3 - int(m[1])}.project.conv",
    ),
    (
        r"^neck\.fusions\.(\d)\.(\w+)\.(first|second)\.([01])",
        lambda m: f"decode_head.fusion_blocks.{3 - int(m[1])}.res_conv_unit{UNITS[m[2]]}."
        f"conv{LAYERS[m[3]]}.{('conv', 'bn')[int(m[4])]}",
    ),
]  # fmt: skip
HEADS = [
    (r"^decoder\.conv\.", "MAIN."), (r"^decoder\.classifier", "MAIN.4"),
    (r"^aux_heads\.0\.convs\.0\.", "AUX."), (r"^aux_heads\.0\.classifier", "AUX.4"),
]  # fmt: skip
TRANSFORMERS = [
    (r"^encoder\.vit\.pos_embed", "dpt.embeddings.position_embeddings"),
    (r"^encoder\.vit\.cls_token", "dpt.embeddings.cls_token"),
    (r"^encoder\.vit\.patch_embed\.proj", "dpt.embeddings.patch_embeddings.projection"),
    (r"^encoder\.vit\.blocks", "dpt.encoder.layer"),
    (r"attn\.proj", "attention.output.dense"), (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"), (r"norm1", "layernorm_before"), (r"norm2", "layernorm_after"),
    *HEADS, ("MAIN", "head.head"), ("AUX", "auxiliary_head.head"),
    (r"^neck\.reassemble\.(\d)\.conv", r"neck.convs.\1"),
    (r"^neck\.reassemble\.(\d)\.project", r"neck.reassemble_stage.layers.\1.projection"),
    (r"^neck\.reassemble\.(\d)\.resample", r"neck.reassemble_stage.layers.\1.resize"),
    (r"^neck\.reassemble\.(\d)\.readout", r"neck.reassemble_stage.readout_projects.\1"),
    (
        r"^neck\.fusions\.(\d)\.project",
        lambda m: f"neck.fusion_stage.layers.{3 - int(m[1])}.projection",
    ),
    (
        r"^neck\.fusions\.(\d)\.(\w+)\.(first|second)\.([01])",
        lambda m: f"neck.fusion_stage.layers.{3 - int(m[1])}.residual_layer{UNITS[m[2]]}."
        f"{('convolution', 'batch_norm')[int(m[4])]}{LAYERS[m[3]]}",
    ),
]  # fmt: skip
AUTHORS = [
    (r"^encoder\.vit\.", "pretrained.model."),
    *HEADS, ("MAIN", "scratch.output_conv"), ("AUX", "auxlayer"),
    (r"^neck\.reassemble\.(\d)\.conv", lambda m: f"scratch.layer{int(m[1]) + 1}_rn"),
    (
        r"^neck\.reassemble\.(\d)\.(project|resample|readout)",
        lambda m: f"pretrained.act_postprocess{int(m[1]) + 1}."
        + {"project": "3", "resample": "4", "readout": "0.project"}[m[2]],
    ),
    (r"^neck\.fusions\.(\d)\.project", lambda m: f"scratch.refinenet{int(m[1]) + 1}.out_conv"),
    (
        r"^neck\.fusions\.(\d)\.(\w+)\.(first|second)\.([01])",
        lambda m: f"scratch.refinenet{int(m[1]) + 1}.resConfUnit{UNITS[m[2]]}."
        f"{('conv', 'bn')[int(m[4])]}{LAYERS[m[3]]}",
    ),
]  # fmt: skip


def split_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as separate layers, as in transformers."""
    found = {}
    for name, value in state.items():
        if ".attn.qkv." not in name:
            found[name] = value
            continue
        for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
            found[name.replace("attn.qkv", f"attention.attention.{part}")] = rows.clone()
    return found


def unused(prefix: str) -> dict[str, Tensor]:
    """A residual unit of the deepest fusion, which is in the files and never called."""
    return {f"{prefix}.weight": torch.ones(8, 8, 3, 3)}


def test_a_checkpoint_of_mmsegmentation(tmp_path):
    model = own(aux_taps=())
    state = renamed(model, PORT)
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "port.pth")
    found, info, report = convert_foreign(tmp_path / "port.pth")
    assert (report.dialect, report.unexpected, report.filled) == ("mmseg", [], [])
    assert_same(found, model, 64, 96)  # resamples the positions, too
    assert (info.protocol.short_side, info.protocol.long_side) == (512, 2048)
    assert (info.protocol.window, info.crop_size) == (None, (512, 512))
    assert info.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("readout", ["add", "ignore"])
def test_a_readout_without_weights_is_read_from_the_recorded_text(tmp_path, readout):
    encoder_args = {**TINY, "num_heads": 2, "readout": readout, "norm_eps": 1e-5}
    model = own(aux_taps=(), encoder_args=encoder_args)
    meta = {"cfg": f"backbone=dict(num_heads=2), decode_head=dict(readout_type='{readout}')"}
    torch.save({"state_dict": renamed(model, PORT), "meta": meta}, tmp_path / "port.pth")
    found, _, _ = convert_foreign(tmp_path / "port.pth")
    assert_same(found, model, 64, 64)


def test_a_checkpoint_of_the_authors(tmp_path):
    model = own(
        encoder_args={**TINY, "num_heads": 1, "readout": "concat"},
        decoder_args={"channels": 8, "final_scale": 2},
        pos_interp="bilinear",
    )
    state = renamed(model, AUTHORS) | unused("scratch.refinenet4.resConfUnit1.conv1")
    state |= {f"pretrained.model.{n}.weight": torch.ones(64) for n in ("norm", "head")}
    torch.save(state, tmp_path / "dpt_large-ade20k.pt")
    found, info, report = convert_foreign(tmp_path / "dpt_large-ade20k.pt")
    assert (report.dialect, report.unexpected) == ("dpt", [])
    assert_same(found, model, 64, 96, aux=True)
    assert (info.mean, info.std, info.protocol.short_side) == ((0.5,) * 3, (0.5,) * 3, 480)


CONFIG = {"model_type": "dpt", "num_attention_heads": 2, "layer_norm_eps": 1e-5,
          "backbone_out_indices": [0, 1, 2, 3], "readout_type": "project",
          "id2label": {str(i): f"thing {i}" for i in range(CLASSES)}}  # fmt: skip


def write_folder(folder: Path, state: dict[str, Tensor], config: dict | None, name: str) -> Path:
    """A folder as transformers writes it."""
    folder.mkdir()
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        from safetensors.torch import save_file

        names = sorted(state)
        parts = {name: names}
        if name.endswith(".index.json"):
            parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
            places = {key: part for part, own in parts.items() for key in own}
            (folder / name).write_text(json.dumps({"weight_map": places}))
        for part, own in parts.items():
            save_file({key: state[key].contiguous() for key in own}, folder / part)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
        preprocessor = {"size": {"height": 96, "width": 64}, "image_mean": [0.4, 0.5, 0.6]}
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"]
)
def test_a_folder_of_transformers(tmp_path, name, capsys):
    model = own(
        encoder_args={**TINY, "readout": "concat", "norm_eps": 1e-5},
        decoder_args={"channels": 8, "final_scale": 2},
        pos_interp="bilinear",
    )
    state = split_attention(renamed(model, TRANSFORMERS))
    state |= unused("neck.fusion_stage.layers.0.residual_layer1.convolution1")
    state |= {"dpt.layernorm.weight": torch.ones(64), "dpt.pooler.dense.bias": torch.ones(64)}
    folder = write_folder(tmp_path / "dpt", state, CONFIG, name)
    for source in (folder, folder / name):
        found, info, report = convert_foreign(source)
        assert (report.dialect, report.unexpected) == ("dpt-transformers", [])
        assert_same(found, model, 64, 64, aux=True)
        assert info.labels.classes == tuple(CONFIG["id2label"].values())
        assert (info.mean, info.std) == ((0.4, 0.5, 0.6), (0.5,) * 3)
        assert (info.protocol.short_side, info.protocol.window) == (64, None)
    assert_converts(folder, found, tmp_path / "model")
    assert "dialect dpt-transformers" in capsys.readouterr().out
    assert_same(setr.load(folder, device="cpu").model.eval(), found, 64, 64)


@pytest.mark.parametrize(
    ("name", "count"),
    [("model.safetensors", 1), ("pytorch_model.bin", 1), ("model.safetensors.index.json", 3)],
)
def test_a_repository_of_transformers_is_downloaded(tmp_path, monkeypatch, name, count):
    """Other files than the first choice only where that is missing, and never twice."""
    state = split_attention(renamed(own(pos_interp="bilinear"), TRANSFORMERS))
    there = write_folder(tmp_path / "there", state, CONFIG, name)
    here = tmp_path / "here"
    here.mkdir()
    copied: list[str] = []

    def snapshot_download(repo_id, *, revision, allow_patterns, local_files_only=False, **rest):
        assert (repo_id, revision) == ("owner/dpt", "v1")
        for file in [] if local_files_only else allow_patterns:
            if (there / file).is_file() and not (here / file).is_file():
                copied.append(shutil.copy(there / file, here / file).name)
        return str(here)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("setr.reading.remote._require_network", lambda *_: None)
    predictor = setr.load("owner/dpt", revision="v1", device="cpu")
    assert predictor.info.labels.classes[0] == "thing 0"
    assert len(copied) == 2 + count
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # all is in the cache
    assert main(["convert", "owner/dpt@v1", "-o", str(tmp_path / "model")]) == OK
    with pytest.raises(SetrError, match=r"format is not 'setr-1'; setr\.load and"):
        setr.from_pretrained(here)


@pytest.mark.parametrize("start", ["model.", "net.model._orig_mod."])
@pytest.mark.parametrize("names", [TRANSFORMERS, PORT])
def test_a_whole_model_inside_of_another_module_is_one(tmp_path, start, names):
    """As Lightning saves it; its encoder alone has names of its own, too."""
    state = renamed(own(aux_taps=()), names)
    state = split_attention(state) if names is TRANSFORMERS else state
    torch.save(state, tmp_path / "bare.pth")
    inside = {start + name: value for name, value in state.items()}
    torch.save({"state_dict": inside | {"loss.weight": torch.ones(2)}}, tmp_path / "last.ckpt")
    models = [convert_foreign(tmp_path / name)[0] for name in ("bare.pth", "last.ckpt")]
    assert_same(*models, 64, 64)


@pytest.mark.parametrize("has_norms", [False, True])
def test_residual_units_of_other_forms(tmp_path, has_norms):
    """transformers also builds them without norms, by default, or with biases beside them."""
    model = own(pos_interp="bilinear", decoder_args={"channels": 8, "final_scale": 2})
    state = split_attention(renamed(model, TRANSFORMERS))
    layer = re.compile(r"(.+residual_layer\d\.)(?:convolution|batch_norm)(\d)\.weight$")
    units = {f"{m[1]}{{}}{m[2]}." for name in state if (m := layer.match(name))}
    assert len(units) == 14
    for unit in units:
        bias = state[unit.format("convolution") + "bias"] = torch.randn(8)
        norm = unit.format("batch_norm")
        if has_norms:
            state[f"{norm}running_mean"] = state[f"{norm}running_mean"] + bias
            continue
        mean, var = (state.pop(f"{norm}running_{part}") for part in ("mean", "var"))
        scale = state.pop(f"{norm}weight") / (var + 1e-5).sqrt()
        weight = unit.format("convolution") + "weight"
        state[weight] = state[weight] * scale[:, None, None, None]
        state[unit.format("convolution") + "bias"] = state.pop(f"{norm}bias") - mean * scale
        del state[f"{norm}num_batches_tracked"]
    config = CONFIG | {"readout_type": "project", "num_attention_heads": 1}
    folder = write_folder(tmp_path / "dpt", state, config, "model.safetensors")
    found, _, report = convert_foreign(folder)
    assert len(report.filled) == (0 if has_norms else 70)
    assert_same(found, model, 64, 64)


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_act", "relu"), ("head_in_index", -2), ("pool_scales", [1, 2, 4, 8]),
     ("rope_parameters", {"rope_theta": 50.0})],
)  # fmt: skip
def test_settings_of_another_function_are_refused(tmp_path, name, value):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dpt", name: value}))
    with pytest.raises(SetrError, match=r"config\.json has \w+ .*, which is not computed here"):
        transformers_settings(tmp_path)


@pytest.mark.parametrize(
    ("given", "mean", "std"),
    [
        ({"image_mean": [0.4] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}, 0.4, 0.5),
        ({"image_mean": [0.4] * 3, "image_std": [0.5] * 3, "do_normalize": False}, 0, 1),
        ({"image_mean": [102] * 3, "image_std": [51] * 3, "do_rescale": False}, 0.4, 0.2),
        ({"image_mean": [0.4] * 3, "image_std": [0.5] * 3, "rescale_factor": 2 / 255}, 0.2, 0.25),
    ],
)
def test_normalisation_of_an_image_processor(tmp_path, given, mean, std):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dpt"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    found = transformers_settings(tmp_path)
    assert found["mean"] == pytest.approx([mean] * 3)
    assert found["std"] == pytest.approx([std] * 3)


def test_reduced_labels_are_ids_from_1(tmp_path):
    """transformers takes 1 from the ids in masks, and 0 is then ignored."""
    state = split_attention(renamed(own(pos_interp="bilinear"), TRANSFORMERS))
    folder = write_folder(tmp_path / "dpt", state, CONFIG, "model.safetensors")
    (folder / "preprocessor_config.json").write_text('{"do_reduce_labels": true}')
    labels = convert_foreign(folder)[1].labels
    assert labels.classes[0] == "thing 0"
    assert labels.label_map == {place + 1: place for place in range(CLASSES)}


def test_tensors_without_a_place_are_refused(tmp_path):
    state = split_attention(renamed(own(pos_interp="bilinear"), TRANSFORMERS))
    state["dpt.encoder.layer.0.lambda_1"] = torch.ones(64)
    folder = write_folder(tmp_path / "dpt", state, CONFIG, "model.safetensors")
    with pytest.raises(SetrError, match="gamma_1 has no place in the architecture"):
        convert_foreign(folder)
    state["dpt.encoder.layer.0.lambda_1"] = torch.zeros(64)
    torch.save(state, tmp_path / "zeros.bin")
    convert_foreign(tmp_path / "zeros.bin")


def test_a_file_alone_has_the_values_of_its_code(tmp_path):
    """Names of classes that only count are none; 150 classes are ADE20K's."""
    model = own(num_classes=150)
    state = split_attention(renamed(model, TRANSFORMERS))
    labels = {str(i): f"LABEL_{i}" for i in range(150)}
    for config, heads, eps in ((None, 1, 1e-12), (CONFIG | {"id2label": labels}, 2, 1e-5)):
        folder = write_folder(tmp_path / f"dpt{heads}", state, config, "model.safetensors")
        found, info, _ = convert_foreign(folder / "model.safetensors")
        block = found.encoder.vit.blocks[0]
        assert (block.attn.num_heads, block.norm1.eps) == (heads, eps)
        assert info.labels == known_labels("ade20k")


def test_hybrids_and_broken_settings_are_named(tmp_path):
    state = split_attention(renamed(own(), TRANSFORMERS))
    torch.save(state | {"dpt.embeddings.backbone.bit.x": torch.ones(1)}, tmp_path / "hybrid.bin")
    with pytest.raises(SetrError, match=r"hybrid\.bin: DPT-Hybrid, with a ResNet"):
        convert_foreign(tmp_path / "hybrid.bin")
    folder = write_folder(tmp_path / "dpt", state, None, "model.safetensors")
    (folder / "config.json").write_text("{")
    with pytest.raises(SetrError, match=r"config\.json: broken"):
        convert_foreign(folder)


def test_depth_models_give_their_encoder(tmp_path):
    """They have no batch norm in the head, so only their encoder can be used."""
    state = split_attention(renamed(own(pos_interp="bilinear"), TRANSFORMERS))
    state = {n: v for n, v in state.items() if not n.startswith(("head.", "auxiliary_head."))}
    torch.save(state, tmp_path / "depth.bin")
    model = setr.SETR(
        encoder="vit_base_patch16_384", encoder_args=TINY, decoder="naive", num_classes=2,
        taps=(4,), img_size=64,
    )  # fmt: skip
    assert setr.load_weights(model, tmp_path / "depth.bin").encoder_share == 1
    with pytest.raises(SetrError, match="holds an encoder and heads of another kind"):
        convert_foreign(tmp_path / "depth.bin")

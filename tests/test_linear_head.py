"""DINOv2's published linear heads, joined with the encoder they were trained on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import setr
from setr._timm import timm
from setr.cli import main
from setr.errors import OK, USAGE, SetrError
from setr.labels import known_labels
from setr.weight_files.foreign import convert_foreign
from setr.weight_files.naming import identity_norm
from tests.conftest import renamed
from tests.test_dpt import randomised

ENCODER, WIDTH = "test_vit", 64


def head(channels: int, num_classes: int = 3) -> dict[str, torch.Tensor]:
    """The tensors of a head as DINOv2 publishes them."""
    draw = torch.Generator().manual_seed(0)
    bn = {k: torch.rand(channels, generator=draw) + 0.5 for k in ("weight", "running_var")}
    bn |= {k: torch.randn(channels, generator=draw) for k in ("bias", "running_mean")}
    return {
        "decode_head.conv_seg.weight": torch.randn(num_classes, channels, 1, 1, generator=draw),
        "decode_head.conv_seg.bias": torch.randn(num_classes, generator=draw),
        **{f"decode_head.bn.{name}": value for name, value in bn.items()},
        "decode_head.bn.num_batches_tracked": torch.tensor(0),
    }


@pytest.fixture
def files(tmp_path):
    """A head of two blocks in mmcv's form, and the weights of its encoder with a drawn norm."""
    vit = timm.create_model(ENCODER, num_classes=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        vit.norm.weight.copy_(torch.rand(WIDTH, generator=draw) + 0.5)
        vit.norm.bias.copy_(torch.randn(WIDTH, generator=draw))
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    meta = {"CLASSES": ["a", "b", "c"], "PALETTE": [[0, 0, 0], [9, 9, 9], [50, 0, 0]]}
    torch.save({"meta": meta, "state_dict": head(2 * WIDTH)}, tmp_path / "x_head.pth")
    return vit.eval(), tmp_path / "x_head.pth", str(tmp_path / "vit.safetensors")


def test_logits_are_norm_batch_norm_and_classifier_on_the_last_blocks(files):
    vit, path, weights = files
    model = setr.load(path, encoder=ENCODER, pretrained=weights, device="cpu").model
    images = torch.randn(2, 3, 160, 160)
    given = head(2 * WIDTH)
    with torch.inference_mode():
        maps = vit.forward_intermediates(images, indices=2, norm=True, intermediates_only=True)
        moments = (given[f"decode_head.bn.running_{k}"] for k in ("mean", "var"))
        scale = (given[f"decode_head.bn.{k}"] for k in ("weight", "bias"))
        joined = F.batch_norm(torch.cat(maps, dim=1), *moments, *scale)
        classifier = (given[f"decode_head.conv_seg.{k}"] for k in ("weight", "bias"))
        expected = F.conv2d(joined, *classifier)
        torch.testing.assert_close(model.coarse(images).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_head_becomes_a_model_directory(files, tmp_path, capsys):
    _, path, weights = files
    out = tmp_path / "m"
    command = ["convert", str(path), "--encoder", ENCODER, "--pretrained", weights, "-o", str(out)]
    assert main([*command, "--json"]) == OK
    report = json.loads(capsys.readouterr().out)
    assert (report["missing"], report["unexpected"]) == ([], [])
    predictor = setr.load(out, device="cpu")
    assert predictor.classes == ("a", "b", "c")
    assert predictor.info.protocol.window == predictor.info.crop_size == (512, 512)
    assert predictor.info.protocol.stride == (341, 341)
    assert predictor.info.pretrained == "vit.safetensors"
    assert str(tmp_path) not in (out / "README.md").read_text()
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    direct = setr.load(path, encoder=ENCODER, pretrained=weights, device="cpu")
    assert (predictor.predict(image).scores == direct.predict(image).scores).all()
    assert predictor.predict(image).mask.shape == (60, 80)


def test_windows_and_classes_are_those_of_the_file(files, tmp_path):
    _, _, weights = files
    meta = {
        "config": "crop_size = (448, 448)\ntest_cfg = dict(mode='slide', stride=(300, 300))",
        "CLASSES": known_labels("voc").classes,
    }
    path = tmp_path / "voc_head.pth"
    torch.save({"meta": meta, "state_dict": head(WIDTH, 21)}, path)
    model, info, _ = convert_foreign(path, encoder=ENCODER, pretrained=weights)
    assert info.labels == known_labels("voc")
    assert (info.protocol.window, info.protocol.stride) == ((448, 448), (300, 300))
    assert model.arguments["taps"] == (len(timm.create_model(ENCODER).blocks),)


@pytest.mark.parametrize(
    ("name", "channels", "encoder", "blocks"),
    [
        ("head.pth", 384, "vit_small_patch14_dinov2", 1),
        ("head.pth", 4 * 768, "vit_base_patch14_dinov2", 4),
        ("dinov2_vits14_ade20k_ms_head.pth", 1536, "vit_small_patch14_dinov2", 4),
        ("dinov2_vitg14_ade20k_linear_head.pth", 1536, "vit_giant_patch14_dinov2", 1),
    ],
)
def test_the_encoder_follows_from_the_width(tmp_path, monkeypatch, name, channels, encoder, blocks):
    class AskedError(Exception):
        pass

    def model(**arguments):
        raise AskedError(arguments["encoder"], len(arguments["taps"]))

    monkeypatch.setattr("setr.weight_files.linear_head.SETR", model)
    torch.save(head(channels), tmp_path / name)
    with pytest.raises(AskedError) as caught:
        convert_foreign(tmp_path / name, pretrained="lvd142m")
    assert caught.value.args == (encoder, blocks)


def test_what_does_not_fit_is_said(files, tmp_path, capsys):
    _, path, weights = files
    torch.save(head(1536), tmp_path / "head.pth")
    cases = [
        ({}, path, r"holds a linear head without its encoder; add .*--pretrained lvd142m"),
        ({"pretrained": weights}, path, "reads 128 channels, which no DINOv2 encoder has; give"),
        (
            {"pretrained": weights},
            tmp_path / "head.pth",
            "vit_small_patch14_dinov2 or vit_giant_patch14_dinov2 has; give the",
        ),
        (
            {"pretrained": weights, "encoder": "vit_tiny_patch16_224"},
            path,
            "reads 128 channels, and vit_tiny_patch16_224 has 192 per block",
        ),
        ({"pretrained": weights, "num_heads": 2}, path, "num_heads 2: .* is a linear head; leave"),
    ]
    for keywords, source, message in cases:
        with pytest.raises(SetrError, match=message) as caught:
            setr.load(source, **keywords)
        assert caught.value.code == USAGE
    assert main(["predict", str(path), "x.png", "-o", str(tmp_path / "o")]) == USAGE
    assert "without its encoder" in capsys.readouterr().err
    bare = {k: v for k, v in timm.create_model(ENCODER).state_dict().items() if "norm." not in k}
    bare |= {k: v for k, v in timm.create_model(ENCODER).state_dict().items() if "blocks" in k}
    save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(SetrError, match="has no final norm, which a linear head needs"):
        setr.load(path, encoder=ENCODER, pretrained=str(tmp_path / "bare.safetensors"))
    cut = {k: v for k, v in head(2 * WIDTH).items() if "conv_seg.bias" not in k}
    torch.save(cut, tmp_path / "cut.pth")
    with pytest.raises(
        SetrError, match=r"decoder\.classifier\.bias is missing; the file is incomplete"
    ):
        setr.load(tmp_path / "cut.pth", encoder=ENCODER, pretrained=weights)


def test_a_whole_model_takes_no_encoder(shared):
    path = shared / "parity/official/pup.pth"
    with pytest.raises(SetrError, match=r"pretrained lvd142m: .* is a whole model; leave it"):
        setr.load(path, pretrained="lvd142m")


# --- LightlyTrain ---------------------------------------------------------------------------------

CLASSES = 3
LINEAR = [(r"^encoder\.vit\.", "model.backbone._model."), (r"\.reg_token$", ".register_tokens"),
          (r"^decoder\.classifier\.", "model.head."),
          (r"^decoder\.norms\.0\.", "model.backbone._model.norm.")]  # fmt: skip


@pytest.mark.parametrize("registers", [4, 0])
def test_a_linear_head_of_lightlytrain(tmp_path, registers):
    """The last channel is of ignored classes; positions are resampled for its windows."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    args = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    model = randomised(
        setr.SETR(encoder=name, encoder_args=args, decoder="linear", taps=(2,), img_size=56,
             num_classes=CLASSES + 1)
    )  # fmt: skip
    norm = model.decoder.batch_norm
    norm.load_state_dict(identity_norm(64, ""))
    state = {n: v for n, v in renamed(model, LINEAR).items() if "batch_norm" not in n}
    token, table = (state[f"model.backbone._model.{n}"] for n in ("cls_token", "pos_embed"))
    if registers:
        own = torch.randn_like(token)
        state["model.backbone._model.cls_token"] = token - own
        state["model.backbone._model.pos_embed"] = torch.cat([own, table], dim=1)
    state["model.head.weight"] = state["model.head.weight"][:, :, 0, 0]
    settings = {
        "image_size": (56, 70),
        "image_normalize": {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)},
        "classes": {3 * i: f"name {i}" for i in range(CLASSES)},
    }
    path = tmp_path / "exported_best.pt"
    torch.save({"model_init_args": settings, "train_model": state}, path)
    found, info, report = convert_foreign(path, num_heads=2)
    assert (report.dialect, report.unexpected) == ("lightly-linear", [])
    images = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        torch.testing.assert_close(found(images), model(images)[:, :CLASSES], rtol=1e-4, atol=1e-4)
    assert (info.protocol.window, info.protocol.short_side) == ((56, 56), 56)
    assert (info.mean, info.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert info.labels.label_map[3] == 1
    settings["image_size"] = (84, 84)
    torch.save({"model_init_args": settings, "train_model": state}, path)
    larger = convert_foreign(path, num_heads=2)[0].encoder.vit.pos_embed
    assert larger.shape[1] == (4 * 4 if registers else 1 + 6 * 6)
    settings["classes"] = 3
    torch.save({"model_init_args": settings, "train_model": state}, path)
    with pytest.raises(SetrError, match="stored beside its tensors"):
        convert_foreign(path, num_heads=2)


def test_other_models_of_lightlytrain_give_their_encoder(tmp_path):
    args = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    model = setr.SETR(
        encoder="vit_small_patch14_dinov2", encoder_args=args, decoder="naive", taps=(2,),
        img_size=56, num_classes=2,
    )  # fmt: skip
    state = {n: v for n, v in renamed(model, LINEAR).items() if "_model" in n}
    state["model.class_head.weight"] = torch.ones(3, 64)
    torch.save({"train_model": state}, tmp_path / "x.pt")
    assert setr.load_weights(model, tmp_path / "x.pt").encoder_share == 1
    with pytest.raises(SetrError, match="holds an encoder"):
        convert_foreign(tmp_path / "x.pt")

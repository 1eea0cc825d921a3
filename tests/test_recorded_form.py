"""What the configuration in a file of mmsegmentation says about the network itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import setr
from setr.errors import SetrError
from setr.weight_files.foreign import convert_foreign
from tests.conftest import renamed
from tests.test_dpt import PORT, own


def written(folder: Path, state: dict[str, Tensor], text: str) -> Path:
    torch.save({"state_dict": state, "meta": {"cfg": text}}, folder / "port.pth")
    return folder / "port.pth"


@pytest.fixture(scope="module")
def model() -> setr.SETR:
    return own(aux_taps=())


BGR = "data_preprocessor = dict(type='SegDataPreProcessor', mean=[51, 102, 153], std=[51, 51, 102]"
OLD = "img_norm_cfg = dict(mean=[51, 102, 153], std=[51, 51, 102], to_rgb="
TIFF = "\ntest_pipeline = [dict(type='LoadImageFromFile', imdecode_backend='tifffile')]"


@pytest.mark.parametrize(
    ("text", "is_turned"),
    [
        (f"{BGR})", True),
        (f"{BGR}, bgr_to_rgb=False)", True),
        (f"{BGR}, bgr_to_rgb=True)", False),
        (f"{BGR}, bgr_to_rgb=True){TIFF}", True),
        (f"{BGR}){TIFF}", False),
        (f"{OLD}False)", True),
        (f"{OLD}True)", False),
        (f"model = dict({BGR}))", True),
    ],
)
def test_networks_that_read_bgr_get_rgb(tmp_path, model, text, is_turned):
    found, info, _ = convert_foreign(written(tmp_path, renamed(model, PORT), text))
    pixels = torch.rand(1, 3, 64, 64)
    theirs = pixels.flip(1) if is_turned else pixels
    mean, std = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.2, 0.2, 0.4])
    ours = (pixels - torch.tensor(info.mean)[:, None, None]) / torch.tensor(info.std)[:, None, None]
    with torch.inference_mode():
        expected = model((theirs - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(found(ours), expected, rtol=1e-4, atol=1e-4)


def test_pixels_without_normalisation(tmp_path, model):
    text = "data_preprocessor = dict(type='SegDataPreProcessor', bgr_to_rgb=True)"
    _, info, _ = convert_foreign(written(tmp_path, renamed(model, PORT), text))
    assert info.mean == (0, 0, 0)
    assert info.std == (1 / 255,) * 3


@pytest.mark.parametrize(("text", "threshold"), [("", 0.3), ("threshold=0.6", 0.6)])
def test_one_channel_is_a_class_and_the_background(tmp_path, text, threshold):
    model, images = own(aux_taps=(), num_classes=1), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        middle = model(images).median() + 1e-3  # no pixel is just at the threshold
        model.decoder.classifier.bias -= middle - math.log(threshold / (1 - threshold))
    state = renamed(model, PORT)
    found, info, _ = convert_foreign(
        written(tmp_path, state, f"model = dict(decode_head=dict({text}))")
    )
    with torch.inference_mode():
        expected = model(images)[:, 0].sigmoid() > threshold
        assert 0 < expected.float().mean() < 1
        assert torch.equal(found(images).argmax(1).bool(), expected)
    assert len(info.labels.classes) == 2


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("decode_head=dict(align_corners=True)", "decode_head.align_corners = True"),
        ("decode_head=dict(pool_scales=(1, 2, 4, 8))", "decode_head.pool_scales"),
        ("backbone=dict(out_indices=(0, 1, 2, 3)), decode_head=dict(in_index=2)", "in_index = 2"),
        ("backbone=dict(act_cfg=dict(type='ReLU'))", "backbone.act_cfg"),
    ],
)
def test_another_function_is_refused(tmp_path, model, part, told):
    path = written(tmp_path, renamed(model, PORT), f"model = dict({part})")
    with pytest.raises(SetrError, match=told):
        convert_foreign(path)
    setr.load_weights(own(aux_taps=()), path)  # as a start for training


@pytest.mark.parametrize(
    ("text", "mode", "prefix"),
    [
        ("type='VisionTransformer'", "bicubic_plain", "keep"),
        ("type='VisionTransformer', interpolate_mode='bilinear'", "bilinear", "keep"),
        ("type='VisionTransformer', with_cls_token=False", "bicubic_plain", "drop"),
        ("type='Other', interpolate_mode='bilinear'", "bicubic_plain", "keep"),
    ],
)
def test_modes_of_the_backbone_are_taken(tmp_path, text, mode, prefix):
    model = own(aux_taps=(), encoder_args={"embed_dim": 64, "depth": 4, "num_heads": 1,
                                           "readout": "ignore"})  # fmt: skip
    text = f"model = dict(backbone=dict({text}))"
    found, _, _ = convert_foreign(written(tmp_path, renamed(model, PORT), text))
    assert (found.arguments["pos_interp"], found.arguments["prefix_tokens"]) == (mode, prefix)


@pytest.mark.parametrize("name", ["backbone.pre_ln.weight", "decode_head.convs.0.conv.bias"])
def test_tensors_without_a_place_are_refused(tmp_path, model, name):
    state = renamed(model, PORT) | {name: torch.ones(8)}
    with pytest.raises(SetrError, match=r"port\.pth: .* has no place .* not supported"):
        convert_foreign(written(tmp_path, state, ""))
    setr.load_weights(own(aux_taps=()), tmp_path / "port.pth")


def test_squashed_images_are_told(tmp_path, model):
    text = "test_pipeline = [dict(type='Resize', scale=(512, 256))]"  # mmcv 2's default
    _, info, report = convert_foreign(written(tmp_path, renamed(model, PORT), text))
    assert (info.protocol.short_side, info.protocol.long_side) == (256, None)
    assert "squashed to 512x256" in str(report)
    text = "test_pipeline = [dict(type='Resize', scale=(512, 256), keep_ratio=True)]"
    _, info, report = convert_foreign(written(tmp_path, renamed(model, PORT), text))
    assert (info.protocol.short_side, info.protocol.long_side) == (256, 512)
    assert not report.differences

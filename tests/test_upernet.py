"""UPerNet: neck and head against plain operations, and its published layout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import setr
from setr.errors import USAGE, SetrError
from setr.layers import joined_convolution
from setr.layers.joined_convolution import JoinedConv, average_grid, halve
from setr.layers.upernet import UPerHead, UPerNeck
from setr.layers.upsampled_convolution import conv_of_resized
from setr.recipes import list_recipes, recipe
from setr.training.build import build_model
from setr.weight_files.foreign import convert_foreign
from tests.conftest import renamed
from tests.models import assert_converts, assert_learns, assert_same

WIDTH, CLASSES = 64, 5
Weights = dict[str, Tensor]


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, and far from what models start as, so that no tensor may go missing."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                inputs = max(1, value[0].numel())
                value.copy_(torch.randn(value.shape, generator=draw) / inputs**0.5)
                if name.endswith("running_var"):
                    value.abs_().add_(0.5)
    return model.eval()


def conv(x: Tensor, p: Weights, name: str) -> Tensor:
    weight = p[f"{name}.weight"]
    return F.conv2d(x, weight, p.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def conv_bn_relu(x: Tensor, p: Weights, name: str) -> Tensor:
    norm = [p[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(conv(x, p, f"{name}.0"), *norm).relu()


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def neck_and_head(features: list[Tensor], p: Weights, *, pyramid: bool, ln: bool) -> Tensor:
    """mmsegmentation's MultiLevelNeck and UPerHead, written out: logits, and the last map."""
    *earlier, last = features
    if ln:
        scale, shift = p["neck.norm.weight"], p["neck.norm.bias"]
        last = F.layer_norm(last.permute(0, 2, 3, 1), scale.shape, scale, shift, 1e-6)
        last = last.permute(0, 3, 1, 2)
    maps = [*earlier, last]
    if pyramid:
        names = ["neck.levels.0", "neck.levels.1", "neck.levels.2", "neck.last"]
        maps = [conv(x, p, f"{name}.project") for x, name in zip(maps, names, strict=True)]
        maps = [
            F.interpolate(x, scale_factor=s, mode="bilinear") if s != 1 else x
            for x, s in zip(maps, (4, 2, 1, 0.5), strict=True)
        ]
        maps = [conv(x, p, f"{name}.conv") for x, name in zip(maps, names, strict=True)]
    last = maps[-1]
    pooled = [
        conv_bn_relu(F.adaptive_avg_pool2d(last, side), p, f"decoder.pools.{i}.conv")
        for i, side in enumerate((1, 2, 3, 6))
    ]
    joined = torch.cat([last, *(resized(x, last) for x in pooled)], dim=1)
    x = conv_bn_relu(joined, p, "decoder.context")
    outs = [x]
    for i in (2, 1, 0):
        x = conv_bn_relu(maps[i], p, f"neck.levels.{i}.lateral") + resized(x, maps[i])
        outs.insert(0, conv_bn_relu(x, p, f"decoder.smooth.{i}"))
    joined = torch.cat([resized(x, outs[0]) for x in outs], dim=1)
    return conv(conv_bn_relu(joined, p, "decoder.join"), p, "decoder.classifier"), last


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (3, 2)])
@pytest.mark.parametrize("kind", ["ln_mln", "mln", "none"])
@pytest.mark.parametrize("mode", ["eager", "layers", "traced"])
def test_neck_and_head_are_mmsegmentations(size, kind, mode, monkeypatch):
    pyramid, ln = kind != "none", kind == "ln_mln"
    neck = UPerNeck([12] * 4, channels=8, inner=10, pyramid=pyramid, norm_last=ln)
    head = UPerHead(neck.widths[-1], CLASSES, channels=8, pyramid=pyramid)
    model = randomised(nn.ModuleDict({"neck": neck, "decoder": head})).double()
    features = [torch.randn(2, 12, *size, dtype=torch.double) for _ in range(4)]
    expected, last = neck_and_head(features, model.state_dict(), pyramid=pyramid, ln=ln)
    if mode == "traced":  # the form for GPUs and graphs
        for module in (joined_convolution, setr.layers.upernet):
            monkeypatch.setattr(module, "is_traced", lambda: True)
    with torch.set_grad_enabled(mode == "layers"):
        maps = neck(features)
        torch.testing.assert_close(head(maps), expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(maps[-1], last, atol=1e-12, rtol=1e-10)


def test_bf16_rounds_about_as_much_as_in_the_plain_order():
    neck, head = UPerNeck([48] * 4, channels=32), UPerHead(48, CLASSES, channels=32)
    model = randomised(nn.ModuleDict({"neck": neck, "decoder": head}))
    features, p = [torch.randn(2, 48, 8, 9) for _ in range(4)], model.state_dict()
    double = {name: value.double() for name, value in p.items()}
    exact, _ = neck_and_head([x.double() for x in features], double, pyramid=True, ln=True)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours = head(neck(features)).double() - exact
        plain = neck_and_head(features, p, pyramid=True, ln=True)[0].double() - exact
    assert ours.square().mean().sqrt() < 1.3 * plain.square().mean().sqrt()


@pytest.mark.parametrize("size", [(2, 2), (8, 12), (7, 9), (16, 24)])
def test_joined_convolution_is_that_of_the_concatenation(size):
    joined = randomised(JoinedConv([3, 5, 2], 4)).double()
    maps = [torch.randn(2, 3, 8, 12), torch.randn(2, 5, 4, 6), torch.randn(2, 2, *size)]
    maps = [x.double().requires_grad_() for x in maps]
    plain = joined(torch.cat([resized(x, maps[0]) for x in maps], dim=1))
    ours = joined.joined(maps)
    torch.testing.assert_close(ours, plain)
    wanted = torch.randn_like(plain)
    inputs = [*maps, *joined.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours, inputs, wanted), torch.autograd.grad(plain, inputs, wanted),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (7, 3), (64, 43)])
def test_averages_are_those_of_adaptive_pooling(size):
    x = torch.randn(2, 3, *size)
    for side in (1, 2, 3, 6):
        torch.testing.assert_close(average_grid(x, side), F.adaptive_avg_pool2d(x, side))
    if min(size) > 1:
        torch.testing.assert_close(halve(x), F.interpolate(x, scale_factor=0.5, mode="bilinear"))
    else:
        assert halve(x).shape == (2, 3, 1, 1)


def test_taps_of_any_resize():
    x, weight = torch.randn(1, 3, 5, 4).double(), torch.randn(2, 3, 3, 3).double()
    for size in ((5, 4), (11, 7), (2, 9), (20, 16)):
        plain = F.conv2d(F.interpolate(x, size, mode="bilinear"), weight, padding=1)
        torch.testing.assert_close(conv_of_resized(x, weight, size), plain)


@pytest.mark.parametrize("neck", ["ln_mln", "mln", "none"])
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (5, 9)])
def test_every_parameter_gets_a_gradient_and_any_size_logits(neck, size):
    model = setr.create_model("upernet_nano", num_classes=CLASSES, img_size=32, neck=neck)
    output = assert_learns(model, *size, images=3, zeros=True)
    assert len(output.aux) == 1


def test_a_batch_of_one_trains_and_keeps_statistics_finite():
    model = setr.create_model("upernet_nano", num_classes=CLASSES, img_size=32)
    output = model(torch.randn(1, 3, 64, 64), with_aux=True)
    output.logits.sum().backward()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert all(p.grad.isfinite().all() for p in model.decoder.parameters())
    pools = [pool.conv[1].num_batches_tracked for pool in model.decoder.pools]
    assert [count.item() for count in pools] == [0, 1, 1, 1]  # one value has no variance
    model(torch.randn(2, 3, 64, 64))
    assert [count.item() for count in pools] == [1, 2, 2, 2]


def test_refusals():
    with pytest.raises(SetrError, match=r"3 taps, but its neck makes 4 levels; give 4") as raised:
        setr.create_model("upernet_nano", num_classes=3, img_size=32, taps=(2, 4, 6))
    assert raised.value.code == USAGE
    with pytest.raises(SetrError, match="neck mln: setr_pup_nano has no such neck"):
        setr.create_model("setr_pup_nano", num_classes=3, neck="mln")


def test_torch_func_and_a_trace_go_through_it():
    model = setr.create_model("upernet_nano", num_classes=3, img_size=32, channels=16)
    model, images = randomised(model), torch.randn(2, 3, 40, 72)
    expected = model(images)
    one_by_one = torch.func.vmap(lambda image: model(image[None])[0])(images)
    torch.testing.assert_close(one_by_one, expected, atol=1e-4, rtol=1e-4)
    traced = torch.jit.trace(model, images, check_trace=False)
    torch.testing.assert_close(traced(images), expected, atol=1e-4, rtol=1e-4)


# --- recipes and files ----------------------------------------------------------------------------


def test_recipes_are_mmsegmentations():
    names = [name for name in list_recipes() if "_upernet_" in name and "it_upernet" in name]
    names = [name for name in names if "beit" not in name]
    assert len(names) == 11
    config = recipe("ade20k_vit_upernet_base_ln_mln_160k")
    assert (config.model.neck, config.model.drop_path, config.train.steps) == ("ln_mln", 0.1, 160e3)
    assert recipe("ade20k_vit_upernet_base_mln_80k").model.drop_path == 0
    for name in names:  # neck and channels arrive at the model
        config = recipe(name)
        weightless = dataclasses.replace(config.model, pretrained=None)
        with torch.device("meta"):
            model = build_model(dataclasses.replace(config, model=weightless), 150)
        assert model.neck.pyramid == ("mln" in name)
        assert isinstance(model.neck.norm, nn.Identity) == ("ln_mln" not in name)
        assert model.decoder.classifier.in_channels == 512
        assert model.aux_heads[0].classifier.in_channels == 256


def test_the_neck_takes_the_encoders_final_norm(tmp_path):
    whole = setr.create_model("upernet_nano", num_classes=3, img_size=32)
    state = {n: torch.randn_like(value) for n, value in whole.encoder.vit.state_dict().items()}
    state |= {"norm.weight": torch.randn(128), "norm.bias": torch.randn(128)}
    torch.save(state, tmp_path / "encoder.pth")
    report = setr.load_weights(whole, tmp_path / "encoder.pth")
    assert torch.equal(whole.neck.norm.weight, state["norm.weight"])
    assert report.unexpected == []
    plain = setr.create_model("upernet_nano", num_classes=3, img_size=32, neck="none")
    report = setr.load_weights(plain, tmp_path / "encoder.pth")
    assert report.unexpected == ["encoder.vit.norm.weight", "encoder.vit.norm.bias"]


@pytest.mark.parametrize("decoder", ["segmenter", "linear"])
def test_decoders_that_begin_with_the_encoders_final_norm_take_it(decoder, tmp_path):
    taps = (5, 6) if decoder == "linear" else (6,)
    model = setr.create_model(f"{decoder}_nano", num_classes=3, img_size=32, taps=taps)
    state = {n: torch.randn_like(value) for n, value in model.encoder.vit.state_dict().items()}
    state |= {"norm.weight": torch.randn(128), "norm.bias": torch.randn(128)}
    torch.save(state, tmp_path / "encoder.pth")
    assert setr.load_weights(model, tmp_path / "encoder.pth").unexpected == []
    norms = model.decoder.norms if decoder == "linear" else [model.decoder.norm]
    assert len(norms) == len(taps)
    for norm in norms:
        assert torch.equal(norm.weight, state["norm.weight"])
        assert torch.equal(norm.bias, state["norm.bias"])


PORT = [
    (r"^encoder\.vit\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^encoder\.vit\.", "backbone."), (r"\.blocks\.", ".layers."), (r"\.norm([12])\.", r".ln\1."),
    (r"attn\.qkv\.", "attn.attn.in_proj_"), (r"attn\.proj\.", "attn.attn.out_proj."),
    (r"mlp\.fc1\.", "ffn.layers.0.0."), (r"mlp\.fc2\.", "ffn.layers.1."),
    (r"^neck\.norm\.", "backbone.ln1."), (r"^neck\.last\.", "neck.levels.3."),
    (r"^neck\.levels\.(\d)\.lateral\.", r"decode_head.lateral_convs.\1."),
    (r"^neck\.levels\.(\d)\.project\.", r"neck.lateral_convs.\1.conv."),
    (r"^neck\.levels\.(\d)\.conv\.", r"neck.convs.\1.conv."),
    (r"^decoder\.pools\.(\d)\.conv\.", r"decode_head.psp_modules.\1.1."),
    (r"^decoder\.context\.", "decode_head.bottleneck."),
    (r"^decoder\.smooth\.(\d)\.", r"decode_head.fpn_convs.\1."),
    (r"^decoder\.join\.", "decode_head.fpn_bottleneck."), (r"^decoder\.", "decode_head."),
    (r"^aux_heads\.0\.", "auxiliary_head."), (r"classifier", "conv_seg"),
    (r"^((?:decode_head|auxiliary_head)\..*)\b0\.(weight|bias)$", r"\1conv.\2"),
    (r"^((?:decode_head|auxiliary_head)\..*)\b1\.(\w+)$", r"\1bn.\2"),
]  # fmt: skip


@pytest.mark.parametrize("neck", ["ln_mln", "mln", "none"])
@pytest.mark.parametrize("patch_bias", [True, False])
def test_a_checkpoint_of_mmsegmentation(tmp_path, capsys, neck, patch_bias):
    """The patch projection has a bias in files older than 1.0, and none in later ones."""
    small = {"embed_dim": WIDTH, "depth": 12, "num_heads": 1}
    model = setr.create_model(
        "upernet_base", num_classes=CLASSES, img_size=64, neck=neck, channels=16,
        encoder_args=small, pos_interp="bicubic_plain",
    )  # fmt: skip
    state = renamed(randomised(model), PORT)
    if not patch_bias:
        del state["backbone.patch_embed.projection.bias"]
        nn.init.zeros_(model.encoder.vit.patch_embed.proj.bias)
    path, meta = tmp_path / "port.pth", {"CLASSES": [f"c{i}" for i in range(CLASSES)]}
    torch.save({"state_dict": state, "meta": meta}, path)
    found, info, report = convert_foreign(path)
    assert (report.dialect, report.unexpected, len(report.filled)) == ("mmseg", [], not patch_bias)
    assert (found.arguments["taps"], found.arguments["aux_taps"]) == ((3, 6, 9, 12), (12,))
    assert_same(found, model, 64, 90, aux=True)
    assert (info.mean[0], info.protocol.window) == (0.485, None)
    assert (info.protocol.short_side, info.protocol.long_side) == (64, 256)
    assert "UPerNet converted from port.pth" in info.recipe
    assert_converts(path, found, tmp_path / "model")
    assert "dialect mmseg" in capsys.readouterr().out


def test_a_cut_checkpoint_is_named(tmp_path):
    model = setr.create_model("upernet_nano", num_classes=3, img_size=32)
    state = renamed(model, PORT)
    del state["decode_head.bottleneck.conv.weight"]
    torch.save({"state_dict": state}, tmp_path / "cut.pth")
    with pytest.raises(SetrError, match=r"decoder\.context\.0\.weight is missing"):
        convert_foreign(tmp_path / "cut.pth", num_heads=4, taps=(2, 3, 4, 6))


def test_positions_are_resampled_as_in_mmsegmentation():
    """Bicubic without antialiasing, whose kernel differs also where the grid grows."""
    model = setr.create_model(
        "upernet_nano", num_classes=3, img_size=32, pos_interp="bicubic_plain"
    ).eval()
    grid = nn.init.normal_(model.encoder.vit.pos_embed)[:, 1:].reshape(1, 4, 4, -1)
    larger = F.interpolate(grid.permute(0, 3, 1, 2), (6, 5), mode="bicubic")
    seen = []
    model.encoder.vit.pos_drop.register_forward_hook(lambda m, inputs, out: seen.append(out))
    nn.init.zeros_(model.encoder.vit.patch_embed.proj.weight)
    nn.init.zeros_(model.encoder.vit.patch_embed.proj.bias)
    with torch.inference_mode():
        model(torch.randn(1, 3, 48, 40))
    torch.testing.assert_close(seen[0][:, 1:], larger.flatten(2).mT)

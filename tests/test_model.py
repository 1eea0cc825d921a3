"""The assembled models: names, parameter counts of Table 2, sizes, auxiliary outputs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import setr
from setr.catalog import default_taps
from setr.errors import SetrError
from setr.model import SETR, create_model, predictions, resize
from setr.training.complexity import (
    TABLE2,
    UNUSED_CLASSIFIER,
    forward_flops,
    meta_model,
    model_figures,
    parameter_counts,
    table2_figures,
    transformer_size,
)
from tests.conftest import tiny_model

NAMES = setr.list_models()
NANO = setr.list_models("*_nano")


# --- names and counts -----------------------------------------------------------------------------


def test_names():
    assert {f"setr_{d}_{s}" for d in ("naive", "pup", "mla")
            for s in ("tiny", "small", "base", "large")} <= set(NAMES)  # fmt: skip
    assert {"hybrid_base", "fcn_r101", "semantic_fpn_r101"} <= set(NAMES)
    assert setr.list_models("*pup_l*") == ["setr_pup_large"]
    with pytest.raises(SetrError, match=r"'SETR-MLA-Base' is unknown; nearest: setr_mla_base"):
        create_model("SETR-MLA-Base", num_classes=2)
    with pytest.raises(SetrError, match=r"'setr_pop_base' is unknown; nearest: setr_pup_base"):
        create_model("setr_pop_base", num_classes=2)


def test_a_debugger_changes_nothing():
    """On Python 3.12 a debugger that shows variables changes the dict that `locals()` returned."""

    def shows(frame, event, argument):
        _ = frame.f_locals
        return shows if frame.f_code is SETR.__init__.__code__ else None

    before = sys.gettrace()
    sys.settrace(shows)
    try:
        model = tiny_model()
    finally:
        sys.settrace(before)
    assert model.arguments == tiny_model().arguments


PRINTED = {  # the paper's Table 2, millions of parameters as printed
    "fcn_r101": "68.59",
    "semantic_fpn_r101": "47.51",
    "setr_naive_base": "87.69",
    "setr_mla_base": "92.59",
    "setr_pup_base": "97.64",
    "setr_naive_large": "305.67",
    "setr_mla_large": "310.57",
    "setr_pup_large": "318.31",
}


@pytest.mark.parametrize("name", PRINTED)
def test_parameters_equal_table_2_to_the_printed_digit(name):
    row = next(r for r in TABLE2 if r.name == name)
    figures = table2_figures(row)
    assert f"{figures['total'] / 1e6:.2f}" == PRINTED[name] == f"{row.paper:.2f}"


def test_counts_part_by_part():
    """The terms of the authors' code, unused classifier apart (76,950 in every head)."""
    pup = table2_figures(next(r for r in TABLE2 if r.name == "setr_pup_large"))
    assert pup["encoder"] == 304_147_456
    assert pup["decoder"] + UNUSED_CLASSIFIER == 4_249_388
    assert pup["aux_heads"] + 4 * UNUSED_CLASSIFIER == 4 * 2_477_612
    mla = table2_figures(next(r for r in TABLE2 if r.name == "setr_mla_base"))
    assert (mla["encoder"], mla["neck"]) == (86_433_024, 3_155_968)
    assert mla["decoder"] + UNUSED_CLASSIFIER == 2_539_820
    assert mla["aux_heads"] + 4 * UNUSED_CLASSIFIER == 4 * 115_350


@pytest.mark.parametrize(("size", "table_1"), [("base", (12, 768, 12)), ("large", (24, 1024, 16))])
def test_sizes_of_table_1(size, table_1):
    model = meta_model(f"setr_pup_{size}", num_classes=2, img_size=64)
    assert tuple(transformer_size(model).values()) == table_1


def test_hybrid_is_shown_term_by_term():
    """No configuration was published: 0.39 M of the paper's 112.59 M stay unexplained."""
    figures = table2_figures(next(r for r in TABLE2 if r.name == "hybrid_base"))
    model = meta_model("hybrid_base", num_classes=150, img_size=512)
    embed = model.encoder.vit.patch_embed
    terms = {
        "resnet": parameter_counts(embed.backbone)[1],
        "projection": parameter_counts(embed.proj)[1],
        "blocks": parameter_counts(model.encoder.vit.blocks)[1],
    }
    assert terms == {"resnet": 23_527_264, "projection": 1_573_632, "blocks": 85_054_464}
    tokens = 768 + (32 * 32 + 1) * 768
    assert sum(terms.values()) + tokens == figures["encoder"]
    assert figures["total"] == 112_200_976
    assert figures["difference_millions"] == 0.389


@pytest.mark.parametrize("name", NAMES)
def test_every_name_builds_and_answers_at_the_images_size(name):
    model = meta_model(name, num_classes=7, img_size=64)
    with torch.device("meta"):
        images = torch.empty(1, 3, 70, 100)
    assert model.eval()(images).shape == (1, 7, 70, 100)
    output = model(images, with_aux=True)
    assert len(getattr(output, "aux", ())) == len(model.aux_heads)  # EoMT's output has none
    assert output.size[0] >= 70
    assert output.size[1] >= 100


def test_operations_follow_the_formula():
    """Naive on T-Tiny: 2 operations per multiply-add, counted by hand."""
    model = meta_model("setr_naive_tiny", num_classes=3, img_size=64)
    N, C, hidden = 16 + 1, 192, 768
    block = 2 * N * C * (3 * C + C + 2 * hidden) + 2 * 2 * N * N * C
    embed = 2 * 16 * C * 3 * 16 * 16
    head = 2 * 16 * (C * 256 + 256 * 3)
    assert forward_flops(model, 64, 64) == 12 * block + embed + head
    assert model_figures("setr_naive_tiny", num_classes=3, size=64)["gflops"] * 1e9 == (
        12 * block + embed + head
    )


# --- taps -----------------------------------------------------------------------------------------


def test_taps_of_the_paper():
    assert default_taps("naive", 24) == ((10, 15, 20, 24), (10, 15, 20))
    assert default_taps("pup", 24) == ((10, 15, 20, 24),) * 2
    assert default_taps("mla", 24) == ((6, 12, 18, 24),) * 2
    assert default_taps("naive", 12) == ((3, 6, 9, 12), (3, 6, 9))
    assert default_taps("pup", 12) == ((5, 8, 10, 12),) * 2
    assert default_taps("mla", 12) == ((3, 6, 9, 12),) * 2


def test_deit_base_has_its_own_auxiliary_layers_and_two_prefix_tokens():
    with torch.device("meta"):
        model = create_model(
            "setr_pup_base", num_classes=19, encoder="deit_base_distilled_patch16_384", img_size=768
        )
    assert model.arguments["aux_taps"] == (5, 8, 10, 12)
    assert model.encoder.vit.num_prefix_tokens == 2
    assert model.encoder.vit.pos_embed.shape == (1, 48 * 48 + 2, 768)


# --- forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["naive", "pup", "mla"])
@pytest.mark.parametrize("size", [(32, 32), (40, 24), (33, 47)])
def test_every_parameter_gets_a_gradient(decoder, size):
    torch.manual_seed(0)
    model = tiny_model(decoder)
    output = model(torch.randn(2, 3, *size), with_aux=True)
    sum(x.square().mean() for x in (output.logits, *output.aux)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("decoder", ["naive", "pup", "mla"])
def test_plain_call_is_the_resized_main_output(decoder):
    model = tiny_model(decoder).eval()
    images = torch.randn(1, 3, 33, 47)
    output = model(images, with_aux=True)
    assert output.size == (40, 48)
    assert torch.equal(model(images), resize(output.logits, (40, 48))[..., :33, :47])


def test_return_type_does_not_depend_on_the_mode():
    model, images = tiny_model("pup"), torch.randn(2, 3, 32, 32)
    for mode in (True, False):
        model.train(mode)
        assert isinstance(model(images), torch.Tensor)
        assert len(model(images, with_aux=True).aux) == 2


@pytest.mark.parametrize("decoder", sorted({name.rpartition("_")[0] for name in NANO}))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_have_the_dtype_of_the_weights(decoder, dtype):
    small = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    model = create_model(f"{decoder}_nano", num_classes=5, img_size=32, encoder_args=small).to(
        dtype
    )
    images = torch.rand(2, 3, 32, 32, dtype=dtype)
    with torch.inference_mode():
        assert model.eval()(images).dtype is model.coarse(images).logits.dtype is dtype
    assert {part.dtype for part in predictions(model.train()(images, with_aux=True))} == {dtype}


def test_squeezing_odd_sizes_is_the_named_defect():
    torch.manual_seed(0)
    crop, squeeze = tiny_model("mla").eval(), tiny_model("mla", odd_sizes="squeeze").eval()
    squeeze.load_state_dict(crop.state_dict())
    even, odd = torch.randn(1, 3, 32, 48), torch.randn(1, 3, 33, 41)
    assert torch.equal(crop(even), squeeze(even))
    padded = squeeze(odd, with_aux=True).logits
    expected = F.interpolate(padded, size=(33, 41), mode="bilinear", align_corners=False)
    assert torch.equal(squeeze(odd), expected)
    assert not torch.allclose(crop(odd), squeeze(odd))


def test_other_taps_take_their_auxiliary_heads_along():
    mla = tiny_model("mla", taps=(2,), aux_taps=(2,))
    assert create_model("setr_mla_nano", num_classes=2, taps=(3, 6)).arguments["aux_taps"] == (3, 6)
    assert create_model("setr_naive_nano", num_classes=2, taps=(3, 6)).encoder.taps == (3, 6)
    assert create_model("setr_naive_nano", num_classes=2, taps=(3, 6)).arguments["aux_taps"] == (3,)
    assert mla.encoder.taps == (2,)
    with pytest.raises(SetrError, match="fixed width and stages"):
        create_model("fcn_r101", num_classes=2, taps=(3, 4))


@pytest.mark.parametrize("align_corners", [True, False])
def test_upsampling_of_mla_is_a_choice(align_corners):
    torch.manual_seed(0)
    model = create_model("setr_mla_nano", num_classes=3, align_corners=align_corners).eval()
    features = [torch.randn(1, model.neck.channels, 3, 5) for _ in range(4)]
    streams = zip(model.decoder.streams, features, strict=True)
    x = torch.cat([stream(f) for stream, f in streams], dim=1)
    x = F.interpolate(x, size=(12, 20), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(model.decoder(features), model.decoder.classifier(x))
    other = create_model("setr_pup_nano", num_classes=2, align_corners=False)  # does so anyway
    assert other.arguments == create_model("setr_pup_nano", num_classes=2).arguments


def test_a_pyramid_may_end_or_begin_elsewhere():
    for taps, stride in (((1, 2, 3), 16), ((2, 3, 4), 32)):
        model = SETR(
            encoder="resnet10t",
            decoder="semantic_fpn",
            num_classes=2,
            taps=taps,
            encoder_args={"output_stride": stride},
        )
        assert model.eval()(torch.zeros(1, 3, 50, 70)).shape == (1, 2, 50, 70)


def test_keywords_of_parts_join_the_names_own():
    def arguments(name, **given):
        return create_model(name, num_classes=2, **given).arguments

    pup = arguments("setr_pup_nano", decoder_args={"num_convs": 3}, aux_args={"num_convs": 2})
    assert pup["decoder_args"] == {"channels": 64, "num_convs": 3}
    assert pup["aux_args"] == {"channels": 64, "kernel_size": 3, "final_scale": 4, "num_convs": 2}
    mla = arguments("setr_mla_nano", neck_args={"channels": 8}, decoder_args=None)
    assert (mla["neck_args"], mla["decoder_args"]) == ({"channels": 8}, {"stream_channels": 32})
    assert arguments("setr_mla_nano")["neck_args"] == {"channels": 64}


def test_auxiliary_heads_can_be_left_out():
    assert not tiny_model("pup", aux_taps=()).aux_heads
    with torch.device("meta"):
        assert not create_model("fcn_r101", num_classes=2, aux=False).aux_heads


@pytest.mark.parametrize("name", ["fcn_r101", "semantic_fpn_r101", "hybrid_base"])
def test_baselines_and_hybrid_train_a_step(name):
    """Small stand-ins of the same classes, a size that is no multiple of the stride."""
    torch.manual_seed(0)
    arguments: dict[str, object] = {"encoder": "resnet10t"}
    if name == "hybrid_base":
        arguments = {
            "resnet": "resnet10t",
            "encoder_args": {"embed_dim": 32, "depth": 2, "num_heads": 2},
            "channels": 8,
            "img_size": 64,
        }
    model = create_model(name, num_classes=3, **arguments)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 50, 70)
    assert model.eval()(images).shape == (2, 3, 50, 70)
    output = model.train()(images, with_aux=True)
    sum(x.square().mean() for x in (output.logits, *output.aux)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_fcn_dilates_to_stride_8():
    with torch.device("meta"):
        model = create_model("fcn_r101", num_classes=3).eval()
        output = model(torch.empty(1, 3, 128, 64), with_aux=True)
    assert output.logits.shape[-2:] == output.aux[0].shape[-2:] == (16, 8)


def test_hybrid_tokens_stand_for_16_pixels():
    with torch.device("meta"):
        model = create_model("hybrid_base", num_classes=3, img_size=(64, 128)).eval()
        maps = model.encoder(torch.empty(1, 3, 96, 160))
    assert model.encoder.vit.patch_embed.grid_size == (4, 8)
    assert maps[0].shape == (1, 768, 6, 10)


@pytest.mark.parametrize("decoder", ["pup", "mla"])
def test_torch_func_and_a_trace_go_through_a_model(onednn, decoder):
    model = tiny_model(decoder).eval()
    images, weights = torch.randn(2, 3, 24, 40), dict(model.named_parameters())

    def energy(weights):
        return functional_call(model, weights, (images,)).square().mean()

    found = torch.func.grad(energy)(weights)
    energy(weights).backward()
    for name, weight in weights.items():
        if weight.grad is not None:
            assert torch.allclose(found[name], weight.grad, rtol=1e-3, atol=1e-6), name
    wanted = model(images)
    one_by_one = torch.func.vmap(lambda image: model(image[None])[0])(images)
    assert torch.allclose(one_by_one, wanted, atol=1e-5)
    traced = torch.jit.trace(model, images, check_trace=False)
    assert torch.allclose(traced(images), wanted, atol=1e-5)


def test_refusals():
    for number in (0, 256):
        with pytest.raises(SetrError, match=f"num_classes {number}: ids are 8-bit; give 1 to 255"):
            tiny_model("pup", num_classes=number)
    known = "choose from naive, pup, mla, segmenter, eomt, dpt, upernet, linear, fcn, semantic_fpn"
    with pytest.raises(SetrError, match=f"decoder 'unet' is unknown; {known}"):
        create_model("setr_pup_nano", num_classes=2, decoder="unet")
    for name, decoder, right in (
        ("setr_pup_base", "mla", "setr_mla_base"),
        ("setr_naive_large", "linear", "linear_large"),
        ("hybrid_base", "pup", "setr_pup_base"),
        ("setr_pup_tiny", "fcn", "fcn_r101"),
        ("fcn_r101", "mla", "setr_mla_base"),
    ):
        with pytest.raises(SetrError, match=f"decoder '{decoder}': {name} has .*'{right}'"):
            create_model(name, num_classes=2, decoder=decoder)
    for arguments in ({"encoder_args": {"output_stride": 16}}, {"taps": (1, 3, 4)}):
        taps = arguments.pop("taps", (1, 2, 3, 4))
        with pytest.raises(SetrError, match="each must be twice the one before"):
            SETR(encoder="resnet10t", decoder="semantic_fpn", num_classes=2, taps=taps, **arguments)
    with pytest.raises(SetrError, match=r"model 'qqqq' is unknown \(`setr models` lists all\)"):
        create_model("qqqq", num_classes=2)
    with pytest.raises(SetrError, match="pretrained_resnet: setr_pup_nano has no ResNet"):
        create_model("setr_pup_nano", num_classes=2, pretrained_resnet="gluon_in1k")
    with pytest.raises(SetrError, match=r"nowhere\.pth: no such"):
        create_model("setr_pup_nano", num_classes=2, pretrained=Path("nowhere.pth"))
    with pytest.raises(SetrError, match=r"aux_taps \(7,\): must be among"):
        tiny_model("pup", aux_taps=(7,))
    with pytest.raises(SetrError, match="fcn_r101 has a fixed width"):
        create_model("fcn_r101", num_classes=2, channels=64)
    with pytest.raises(SetrError, match="merge_tokens: resnet101c has none of them"):
        create_model("fcn_r101", num_classes=2, pos_interp="bilinear")
    with pytest.raises(SetrError, match="is not a timm ResNet"):
        SETR(encoder="vit_tiny_patch16_384", decoder="fcn", num_classes=2, taps=(4,))


def test_the_tables_in_the_documents_are_the_commands():
    """All names and the sizes, and parameters and operations of some, in docs/models.md."""
    text = (Path(__file__).parents[1] / "docs/models.md").read_text(encoding="utf-8")
    cells = [[c.strip(" `") for c in line.split("|")[1:-1]] for line in text.splitlines()]
    head = next(row for row in cells if row[:2] == ["model", "nano"])
    costs = {
        row[0].replace("*", size): cost
        for row in cells
        for size, cost in zip(head[1:], row[1:], strict=False)
        if len(row) == 6 and row[0].endswith("_*") and cost
    }
    baselines = re.findall(r"`(\w+_r101)` \(([\d.]+, [\d.]+);", " ".join(text.split()))
    hybrid = next(row[4] for row in cells if row and row[0] == "hybrid_base")
    costs |= dict(baselines) | {"hybrid_base": hybrid}
    assert set(costs) == set(NAMES)
    sizes = {row[0]: row[2:] for row in cells if len(row) == 5 and row[0] in head}
    for name in NAMES:
        if not name.endswith("_r101"):
            size = transformer_size(meta_model(name, num_classes=2, img_size=64))
            assert sizes[name.rpartition("_")[2]] == [str(v) for v in size.values()], name
    for name in ("setr_mla_tiny", "setr_pup_nano", "hybrid_base", "fcn_r101"):
        found = model_figures(name, num_classes=150, size=512)
        assert costs[name] == f"{found['parameters'] / 1e6:.2f}, {found['gflops']:.1f}"


def test_a_linear_probe_is_linear_in_normalised_features():
    """Logits at patch scale: norm, batch norm and one matrix, on one block or on several joined."""
    for taps in ((6,), (3, 4, 5, 6)):
        model = create_model("linear_nano", num_classes=5, img_size=64, taps=taps).eval()
        images = torch.randn(2, 3, 40, 56)
        with torch.inference_mode():
            maps = model.encoder(images)
            logits = model.coarse(images).logits
        normed = [torch.nn.functional.layer_norm(m.movedim(1, -1), m.shape[1:2]) for m in maps]
        x = torch.cat(normed, dim=-1) / (1 + model.decoder.batch_norm.eps) ** 0.5
        weight, bias = model.decoder.classifier.weight[..., 0, 0], model.decoder.classifier.bias
        torch.testing.assert_close(logits.movedim(1, -1), x @ weight.T + bias, atol=1e-4, rtol=1e-4)
        assert len(model.aux_heads) == 0
        assert logits.shape == (2, 5, 5, 7)
    with pytest.raises(SetrError, match="channels 8: linear_nano has a fixed width"):
        create_model("linear_nano", num_classes=5, channels=8)


@pytest.mark.parametrize(
    ("name", "channels", "least"),
    [("setr_mla_nano", 1, 2), ("upernet_nano", 1, 2), ("setr_pup_nano", 0, 1)],
)
def test_heads_have_channels(name, channels, least):
    with pytest.raises(SetrError, match=f"channels {channels}: give {name} at least {least}"):
        create_model(name, num_classes=2, channels=channels)
    model = create_model(name, num_classes=2, img_size=32, channels=least).eval()
    assert model(torch.randn(1, 3, 32, 32), with_aux=True).aux[0].shape[1] == 2

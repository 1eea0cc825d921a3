"""Attention, features, positions: numbers against timm's own softmax, pictures and the command."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from setr import explain
from setr.cli import main
from setr.data import scenes
from setr.errors import DATA_CHECK_FAILED, OK, USAGE, SetrError, UsageError
from setr.explain import (
    attention_maps,
    attention_rollout,
    layer_features,
    position_similarity,
    principal_colours,
    stretch,
    strongest_channels,
)
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.labels import Labels
from setr.layers import cpu_blocks
from setr.model import SETR, create_model
from setr.model_info import ModelInfo
from setr.pages import lettering
from setr.pages.figures import View, attention_figure, features_figure, make_view, spread_layers
from setr.pages.lettering import fitted, lettered
from setr.pages.montage import mark, montage, with_legend
from setr.predictor import Predictor
from setr.protocols import Protocol
from setr.writing import write_bytes
from tests.conftest import refusal, tiny_model

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 2}
ENCODERS = {
    "plain": ("vit_tiny_patch16_224", SMALL),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL),
    "eva02": ("eva02_tiny_patch14_224", SMALL),
    "dinov3": ("vit_small_patch16_dinov3", SMALL),
    "qk-norm": ("vit_tiny_patch16_224", {**SMALL, "qk_norm": True}),
}


def build(name: str, **arguments: object) -> SETR:
    encoder, encoder_args = ENCODERS[name]
    torch.manual_seed(0)
    return create_model(
        "setr_naive_tiny", num_classes=3, encoder=encoder, encoder_args=encoder_args, img_size=56,
        taps=(1, 3), aux=False, channels=8, **arguments,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_attention_equals_timms_own_softmax(name):
    """timm's unfused path computes the softmax openly; what enters its dropout is the truth."""
    model = build(name)
    images = torch.rand(1, 3, 50, 72)
    p = model.encoder.patch_size
    h, w = -(-50 // p), -(-72 // p)
    maps = attention_maps(model, images, (1, 3), (1, 2))
    attn = model.encoder.vit.blocks[2].attn
    assert attn.fused_attn  # put back as it was
    attn.fused_attn = False
    seen = []
    attn.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encoder(images)
    (weights,) = seen
    row = weights.shape[-1] - h * w + w + 2
    expected = weights[0, :, row, -h * w :].reshape(-1, h, w)
    assert maps[3].shape == (2, h, w)
    torch.testing.assert_close(torch.from_numpy(maps[3]), expected, atol=1e-6, rtol=1e-4)
    assert set(maps) == {1, 3}


@pytest.mark.parametrize("name", ["plain", "eva02"])
@torch.inference_mode()
def test_attention_is_seen_where_blocks_take_the_faster_route(onednn, monkeypatch, name):
    """As on AMD processors with AVX-512, where attention never reaches the fused kernel."""
    model, images, calls = build(name), torch.rand(1, 3, 50, 72), []
    real = cpu_blocks.attention
    monkeypatch.setattr(cpu_blocks, "attention", lambda *a: calls.append(1) or real(*a))
    routed = attention_maps(model, images, (1, 3), (1, 2))
    assert len(calls) == 3  # every block's, the watched ones' too
    monkeypatch.setattr(cpu_blocks, "onednn_is_faster", lambda: False)
    plain = attention_maps(model, images, (1, 3), (1, 2))
    for layer in (1, 3):
        np.testing.assert_allclose(routed[layer], plain[layer], atol=1e-6)


@torch.inference_mode()
def test_looking_does_not_change_the_model():
    model = build("registers")
    images = torch.rand(1, 3, 56, 56)
    before = model(images)
    attention_maps(model, images, (1, 2, 3), (0, 0))
    assert torch.equal(model(images), before)
    assert not any(block.attn._forward_hooks for block in model.encoder.vit.blocks)


@torch.inference_mode()
def test_rollout_equals_the_product_of_matrices():
    model = build("registers")
    images = torch.rand(1, 3, 56, 56)
    weights: list[torch.Tensor] = []
    for block in model.encoder.vit.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, x: weights.append(x[0]))
    model.encoder(images)
    product = torch.eye(weights[0].shape[-1])
    for w in weights:
        product = (0.5 * w[0].mean(dim=0) + 0.5 * torch.eye(len(product))) @ product
    for block in model.encoder.vit.blocks:
        block.attn.fused_attn = True
    rollout = attention_rollout(model, images, (2, 1))
    expected = product[-16 + 2 * 4 + 1, -16:].reshape(4, 4)
    torch.testing.assert_close(torch.from_numpy(rollout), expected, atol=1e-6, rtol=1e-4)


@torch.inference_mode()
def test_rollout_by_blocks_of_rows_is_the_same_and_can_be_ended(monkeypatch):
    """17 to 21 tokens in blocks of 5 and in one; between the blocks it asks whether to go on."""
    for name in ENCODERS:
        model, images = build(name), torch.rand(1, 3, 56, 56)
        whole = attention_rollout(model, images, (1, 2))
        asked: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(explain, "ROLLOUT_ROWS", 5)
            rows = attention_rollout(model, images, (1, 2), check=lambda a=asked: a.append(1))
        np.testing.assert_allclose(rows, whole, rtol=1e-5, atol=1e-7)
        assert len(asked) in (3 * 2 * 4, 3 * 2 * 5)  # layers, heads, blocks

    def end() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        attention_rollout(model, images, (1, 2), check=end)


@torch.inference_mode()
def test_dropped_prefix_tokens_are_no_patches():
    model = build("plain", prefix_tokens="drop")
    maps = attention_maps(model, torch.rand(1, 3, 48, 48), (2,), (0, 0))
    np.testing.assert_allclose(maps[2].sum(axis=(1, 2)), 1.0, atol=1e-5)


@torch.inference_mode()
def test_features_are_the_encoders_maps():
    model = build("plain")
    images = torch.rand(1, 3, 40, 56)
    features = layer_features(model, images, (3, 1))
    for tap, expected in zip((1, 3), model.encoder(images), strict=True):
        np.testing.assert_allclose(features[tap], expected[0].numpy(), atol=1e-5)


@torch.inference_mode()
def test_eomts_queries_take_part():
    """Shown is what the model computes: its last blocks also attend to the queries."""
    torch.manual_seed(0)
    model = create_model("eomt_nano", num_classes=3, img_size=64).eval()
    images, depth = torch.rand(1, 3, 40, 56), len(model.encoder.vit.blocks)
    features = torch.from_numpy(layer_features(model, images, (depth,))[depth])
    expected = model.encode(images)[0][0]
    shown = model.encoder.vit.norm(features.movedim(0, -1)).movedim(-1, 0)
    torch.testing.assert_close(shown, expected)
    weights: list[torch.Tensor] = []
    for block in model.encoder.vit.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, x: weights.append(x[0][0]))
    model.encode(images)
    seen, queries = tuple(weights), len(model.decoder.queries)
    assert [len(w[0]) for w in seen[-2:]] == [1 + 35, queries + 1 + 35]
    maps = attention_maps(model, images, (depth,), (2, 3))[depth]
    row = queries + 1 + 2 * 7 + 3
    torch.testing.assert_close(torch.from_numpy(maps), seen[-1][:, row, -35:].unflatten(1, (5, 7)))
    flow = F.one_hot(torch.tensor(row), queries + 36).float()
    for w in reversed(seen):
        flow = flow[-len(w[0]) :]
        flow = 0.5 * flow + 0.5 * flow @ w.mean(dim=0)
    rollout = torch.from_numpy(attention_rollout(model, images, (2, 3)))
    torch.testing.assert_close(rollout, flow[-35:].reshape(5, 7), atol=1e-6, rtol=1e-4)


def test_principal_colours_find_the_directions_of_variance():
    rng = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, 40)
    axis, across = rng.standard_normal((2, 16))
    features = 5 * axis[:, None, None] * ramp[None, :, None]
    features = features + across[:, None, None] * rng.standard_normal((40, 30))
    colours = principal_colours(features)
    assert colours.shape == (40, 30, 3)
    assert abs(np.corrcoef(colours[..., 0].mean(axis=1), ramp)[0, 1]) > 0.99
    assert principal_colours(np.ones((2, 4, 5))).shape == (4, 5, 3)


def test_strongest_channels_and_stretch():
    features = np.stack([np.zeros((3, 3)), np.arange(9.0).reshape(3, 3), np.ones((3, 3))])
    features[2, 0, 0] = 2
    assert [number for number, _ in strongest_channels(features, 2)] == [1, 2]
    assert stretch(np.arange(101.0)).min() == 0
    assert stretch(np.arange(101.0)).max() == 1


def test_position_similarity():
    similarity = position_similarity(build("plain"))
    assert similarity.shape == (3, 3, 3, 3)  # 56 px hold three patches of 16
    for y in range(3):
        assert similarity[y, 1, y, 1] == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UsageError, match="rotary"):
        position_similarity(build("dinov3"))


def test_features_are_shown_of_the_layers_of_figure_5():
    assert spread_layers(24) == [1, 9, 17, 24]
    assert spread_layers(12) == [1, 5, 9, 12]
    assert spread_layers(2) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"layers": (4,)}, "numbered 1 to 3"), ({"layers": (1,), "point": (9, 0)}, "3 rows")],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(SetrError, match=message):
        attention_maps(build("plain"), torch.rand(1, 3, 48, 48), **{"point": (0, 0), **arguments})


def test_a_convolutional_encoder_has_no_attention():
    model = create_model("fcn_r101", num_classes=3, encoder_args={}).eval()
    with pytest.raises(UsageError, match="no vision transformer"):
        attention_maps(model, torch.rand(1, 3, 32, 32), (1,), (0, 0))


def test_montage_and_legend():
    wide, tall = np.full((20, 60, 3), 10, np.uint8), np.full((60, 20, 3), 200, np.uint8)
    picture = montage([[(wide, "a"), (tall, "b")], [(wide, "c")]], width=100)
    assert picture.shape[1] == 2 * 108
    assert (picture[4, 4] == 10).all()
    assert (picture[:, -1] == 255).all()
    marked = mark(wide, 30, 10)
    assert (wide == 10).all()
    assert (marked != wide).any()
    grown = with_legend(picture, scenes.LABELS, range(9))
    colours = {tuple(c) for c in grown[picture.shape[0] :].reshape(-1, 3)}
    assert set(scenes.LABELS.colours) <= colours


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("explain")
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        model = tiny_model(num_classes=9)
        save_pretrained(root / name, model, ModelInfo(labels=scenes.LABELS))
    image, mask = scenes.draw("test", 0)
    write_bytes(root / "scene.png", encode_png(np.ascontiguousarray(image[:90])))
    write_bytes(root / "truth.png", encode_png(np.ascontiguousarray(mask[:90])))
    return root


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("attention", ["a", "scene.png", "--point", "100,50", "20,80", "--layers", "1", "2"]),
        ("attention", ["a", "scene.png", "--layer", "1,2"]),  # its name before
        ("attention", ["a", "scene.png", "--head", "2", "--short-side", "64"]),
        ("features", ["a", "scene.png", "--layers", "1,2", "--channels", "2"]),
        ("features", ["a", "scene.png", "--layers", "1", "2"]),
        ("position", ["a", "--grid", "3"]),
        ("compare", ["scene.png", "a", "b", "--truth", "truth.png"]),
    ],
)
def test_command(folder, tmp_path, monkeypatch, kind, arguments):
    monkeypatch.chdir(folder)
    assert main(["explain", kind, *arguments, "-o", str(tmp_path)]) == OK
    with Image.open(tmp_path / f"{kind}.png") as picture:
        assert min(picture.size) > 100
    page = (tmp_path / f"{kind}.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<figure>") >= 3
    if kind == "compare":
        assert "person" in page
        assert "% right" in page


def test_models_that_end_alike_are_told_apart(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for name in ("a", "b"):
        shutil.copytree(name, tmp_path / name / "best", dirs_exist_ok=True)
    models = [str(tmp_path / name / "best") for name in ("a", "b")]
    assert main(["explain", "compare", "scene.png", *models, "-o", str(tmp_path)]) == OK
    page = (tmp_path / "compare.html").read_text()
    assert all(f"<figcaption>{model}</figcaption>" in page for model in models)
    save_pretrained(tmp_path / "c", tiny_model(num_classes=2), ModelInfo(labels=Labels(("a", "b"))))
    assert main(["explain", "compare", "scene.png", "a", str(tmp_path / "c")]) == USAGE
    assert "a and c have different classes; give two models" in capsys.readouterr().err


def test_a_truth_in_colours_is_read_as_the_models_data_were(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    labels = scenes.LABELS
    colour_map = {(0, 0, 0): 255} | {colour: i for i, colour in enumerate(labels.colours)}
    coloured = dataclasses.replace(labels, colour_map=colour_map)
    save_pretrained(tmp_path / "c", tiny_model(num_classes=9), ModelInfo(labels=coloured))
    truth = labels.palette[np.asarray(Image.open("truth.png"))]
    write_bytes(tmp_path / "truth.png", encode_png(truth))
    model, out = str(tmp_path / "c"), str(tmp_path)
    command = ["explain", "compare", "scene.png", model, model, "--truth", f"{out}/truth.png"]
    assert main([*command, "-o", out]) == OK
    assert "% right" in (tmp_path / "compare.html").read_text()


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (scenes.LABELS.palette[np.eye(96, 128, dtype=int)], "holds colours, but .* trained on ids"),
        (np.full((96, 128), 77, np.uint8), "77 .*; give a label image coded as the models' data"),
        (np.zeros((9, 8), np.uint8), "mask is 8x9 but its image "),
    ],
)
def test_a_truth_that_does_not_fit_is_told_with_what_to_do(
    folder, tmp_path, monkeypatch, capsys, truth, message
):
    monkeypatch.chdir(folder)
    size = np.asarray(Image.open("scene.png")).shape[:2]
    truth = truth if truth.shape == (9, 8) else np.resize(truth, (*size, *truth.shape[2:]))
    write_bytes(tmp_path / "wrong.png", encode_png(truth))
    command = ["explain", "compare", "scene.png", "a", "b", "--truth", f"{tmp_path}/wrong.png"]
    assert main([*command, "-o", str(tmp_path)]) == DATA_CHECK_FAILED
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"wrong.png: .*{message}", told)
    assert "data.yaml" not in told


def test_a_place_where_nothing_can_be_written_is_refused_first(folder, capsys):
    (folder / "notes").write_text("somebody's")
    words = "attention", folder / "no model", folder / "scene.png", "-o", folder / "notes"
    assert "notes: cannot write: Not a directory; choose" in refusal(capsys, "explain", *words)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["attentoin"], USAGE, "did you mean 'attention'?"),
        (["heads"], USAGE, "choose from attention"),
        (["compare", "a", "b", "scene.png"], USAGE, "a: is a folder, not an image; the order"),
        (["attention", "scene.png", "a"], USAGE, "setr explain attention MODEL IMAGE"),
        (["attention", "a", "scene.png", "--point", "1-2"], USAGE, "give X,Y"),
        (["attention", "a", "scene.png", "--point", "500,2"], USAGE, "outside the image"),
        (["attention", "a", "scene.png", "--layers", "9"], USAGE, "numbered 1 to 2"),
        (["attention", "a", "scene.png", "--head", "9"], USAGE, "has 1 to 2"),
        (["features", "a", "scene.png", "--layers", "x"], USAGE, "give numbers"),
        (["attention", "a", "nowhere.png"], USAGE, "no such file"),
    ],
)
def test_command_errors(folder, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(folder)
    extra = ["-o", str(tmp_path)] if len(arguments) > 1 else []
    assert main(["explain", *arguments, *extra]) == code
    assert message in capsys.readouterr().err


def test_point_marks_the_patch_under_it(folder):
    """The patch a pixel belongs to is found in the resized image, at its far edge too."""
    predictor = Predictor(tiny_model(num_classes=9), ModelInfo(labels=scenes.LABELS), device="cpu")
    image = np.zeros((30, 50, 3), np.uint8)
    view = View(image, torch.rand(1, 3, 60, 100))
    figure = attention_figure(predictor, view, [(49.9, 29.9), (0, 0)], (2,), head=1)
    assert [len(row) for row in figure.rows] == [3, 3]
    assert all(panel[0].shape == (30, 50, 3) for row in figure.rows for panel in row)


def test_names_in_other_letters_are_drawn_as_they_are():
    names = ("Straße", "Strañe")
    if any(lettered(name, "none")[1] == "none" for name in names):
        pytest.skip("no font with these letters on this machine")
    row = np.zeros((10, 200, 3), np.uint8)
    one, other = (with_legend(row, Labels((name,)), [0]) for name in names)
    assert (one != other).any()  # two boxes for unknown letters would be the same


def test_names_that_no_font_can_write_become_numbers(monkeypatch):
    monkeypatch.setattr(lettering, "_FONTS", ("no such font.ttf",))
    lettered.cache_clear()
    try:
        assert lettered("道路", "class 3")[1] == "class 3"
        assert lettered("Straße")[1] == "Stra?e"
        assert lettered("road", "class 3")[1] == "road"
    finally:
        lettered.cache_clear()


def test_a_long_caption_keeps_its_end():
    font, text = lettered("runs/a-model-with-a-name-that-says-everything: 97.3 % right")
    shown = fitted(font, text, 200)
    assert font.getlength(shown) <= 200
    assert re.fullmatch(r"runs/a.*\.\.\..* 97\.3 % right", shown)
    assert fitted(font, "short", 200) == "short"


def test_montage_of_a_strip_stays_small():
    strip = np.full((5000, 10, 3), 7, np.uint8)
    picture = montage([[(strip, "strip"), (np.zeros((10, 10, 3), np.uint8), "square")]], width=50)
    assert picture.shape == (200 + 32, 2 * 58, 3)
    assert (picture[4:204, 4] == 7).all()


def test_a_view_of_a_model_tested_in_windows_is_whole():
    protocol = Protocol(short_side=40).in_windows(32)
    info = ModelInfo(labels=scenes.LABELS, protocol=protocol)
    predictor = Predictor(tiny_model(num_classes=9), info, device="cpu")
    assert make_view(predictor, np.zeros((80, 120, 3), np.uint8)).pixels.shape == (1, 3, 40, 60)


def test_panels_of_a_large_photo_are_small():
    """One model has dozens of heads; the point stays where it is in the photo."""
    predictor = Predictor(tiny_model(num_classes=9), ModelInfo(labels=scenes.LABELS), device="cpu")
    photo = np.zeros((1000, 2000, 3), np.uint8)
    view = View(photo, torch.rand(1, 3, 60, 120))
    attention = attention_figure(predictor, view, [(1500, 250)], (2,))
    features = features_figure(predictor, view, (2,))
    panels = [panel for figure in (attention, features) for row in figure.rows for panel in row]
    assert {picture.shape for picture, _ in panels} == {(260, 520, 3)}
    ys, xs, _ = np.nonzero(attention.rows[0][0][0])
    assert (ys.mean(), xs.mean()) == pytest.approx((65, 390), abs=1)


def test_a_truth_that_is_ignored_everywhere_says_nothing_of_right(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    size = np.asarray(Image.open("scene.png")).shape[:2]
    write_bytes(tmp_path / "truth.png", encode_png(np.full(size, 255, np.uint8)))
    command = ["explain", "compare", "scene.png", "a", "b", "--truth", f"{tmp_path}/truth.png"]
    assert main([*command, "-o", str(tmp_path)]) == OK
    page = (tmp_path / "compare.html").read_text()
    assert "a: no pixel counts" in page
    assert "% right" not in page

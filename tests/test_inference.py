"""Whole, sliding-window and multi-scale prediction: order of merging, sizes, memory."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from setr import inference
from setr.errors import USAGE, SetrError
from setr.inference import NormalizedImages, mask_blocks, normalize, predict_mask, predict_scores
from setr.kernels import windows
from setr.kernels.resized_rows import _resize_columns, resize_rows
from setr.kernels.windows import window_starts
from setr.labels import known_labels
from setr.model import SETR, Output
from setr.protocols import MULTI_SCALES, PRESETS, Protocol, preset
from setr.recipes import recipe
from setr.training.build import build_info
from setr.training.memory import _MemoryTracker

SIZES = [(64, 64), (1, 1), (1, 97), (33, 70), (70, 33), (40, 129), (129, 40)]
PROTOCOLS = {
    "whole": Protocol(),
    "slide": Protocol(window=(48, 48), stride=(32, 32)),
    "multi-scale": Protocol(scales=MULTI_SCALES, flip=True, window=(48, 48), stride=(32, 20)),
    "paper-like": Protocol(
        scales=MULTI_SCALES, flip=True, window=(48, 48), stride=(32, 32), short_side=52,
        fill_window=True,
    ),
    "blended": Protocol().in_windows(32),
    "blended-multi-scale": Protocol(scales=MULTI_SCALES, flip=True).in_windows(40),
    "no-patches": Protocol(window=(40, 40), stride=(24, 28)),  # not a whole number of patches
    "port-like": Protocol(window=(48, 48), stride=(31, 31), short_side=60, long_side=90),
}  # fmt: skip


def constant(images: Tensor) -> Tensor:
    """Scores that do not depend on the image."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64).to(images.dtype)
    return logits[:, None, None].expand(images.shape[0], 4, *images.shape[-2:])


def pointwise(images: Tensor) -> Tensor:
    """Scores that depend on the pixel alone, so flips and windows cannot change them."""
    red, green, blue = images.unbind(dim=1)
    return torch.stack([red + 2 * green, green - blue, 0.5 * blue - red], dim=1)


def random_images(*size: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> SETR:
    torch.manual_seed(0)
    return SETR(
        encoder="vit_tiny_patch16_224",
        encoder_args={"embed_dim": 32, "depth": 2, "num_heads": 2},
        decoder="pup",
        num_classes=5,
        taps=(1, 2),
        img_size=48,
        decoder_args={"channels": 8},
    ).eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_constant_model_stays_constant(protocol, size):
    scores = predict_scores(constant, random_images(*size), protocol)
    assert scores.shape == (1, 4, *size)
    expected = constant(torch.zeros(1, 3, 1, 1))
    if len(protocol.scales) > 1:
        expected = expected.log_softmax(dim=1)
    torch.testing.assert_close(scores, expected.expand_as(scores), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(48, 48), (30, 41), (48, 20)], ids=str)
def test_one_window_equals_whole(model, size):
    images = random_images(*size)
    with torch.inference_mode():
        whole = predict_scores(model, images, Protocol())
        slide = predict_scores(model, images, Protocol(window=(48, 48), stride=(32, 32)))
        plain = model(images)
    assert torch.equal(slide, whole)
    torch.testing.assert_close(whole, plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_windows_do_not_change_a_pointwise_model(size):
    images = random_images(*size)
    whole = predict_scores(pointwise, images, Protocol())
    for name in ("slide", "blended"):
        slide = predict_scores(pointwise, images, PROTOCOLS[name])
        torch.testing.assert_close(slide, whole, atol=1e-6, rtol=0)


def test_flip_of_a_symmetric_model_changes_nothing():
    images = random_images(40, 57)
    plain = predict_scores(pointwise, images, Protocol(scales=(1.0, 0.5), flip=False))
    flipped = predict_scores(pointwise, images, Protocol(scales=(1.0, 0.5), flip=True))
    torch.testing.assert_close(flipped, plain, atol=1e-6, rtol=0)


def plainly(model: SETR, images: Tensor, protocol: Protocol, size: tuple[int, int]) -> Tensor:
    """The order of merging written out, everything at full size."""
    views = []
    for scale, flip in itertools.product(protocol.scales, (False, True)[: 1 + protocol.flip]):
        H, W = protocol.view_size(*images.shape[-2:], scale)
        view = F.interpolate(images, (H, W), mode="bilinear", align_corners=False)
        view = view.flip(-1) if flip else view
        wh, ww = (min(a, b) for a, b in zip(protocol.window or (H, W), (H, W), strict=True))
        sh, sw = protocol.stride or (wh, ww)
        total, count = torch.zeros(1, 5, H, W), torch.zeros(1, 1, H, W)
        for y, x in itertools.product(window_starts(H, wh, sh), window_starts(W, ww, sw)):
            weight = torch.ones(wh, ww)
            if protocol.blend:  # highest in the middle, falling evenly towards the border
                tall, wide = (1 - (2 * torch.arange(n) + 1 - n).abs() / n for n in (wh, ww))
                weight = tall[:, None] * wide
            total[..., y : y + wh, x : x + ww] += weight * model(view[..., y : y + wh, x : x + ww])
            count[..., y : y + wh, x : x + ww] += weight
        merged = total / count
        merged = merged.flip(-1) if flip else merged
        views.append(F.interpolate(merged, size, mode="bilinear", align_corners=False))
    if len(views) == 1:
        return views[0]
    return torch.stack([v.softmax(dim=1) for v in views]).mean(dim=0).log()


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("block", [1, 256 << 20], ids=["small-blocks", "one-block"])
def test_blocks_of_rows_equal_the_plain_computation(model, protocol, block, monkeypatch):
    monkeypatch.setitem(inference.BLOCK_BYTES, "cpu", block)
    images, size = random_images(83, 121), (83, 121)
    with torch.inference_mode():
        expected = plainly(model, images, protocol, size)
        scores = predict_scores(model, images, protocol, size=size, batch_windows=3)
        ids, confidence = predict_mask(model, images, protocol, size=size, batch_windows=3)
    torch.testing.assert_close(scores, expected, atol=2e-6, rtol=1e-5)
    assert torch.equal(ids.long(), scores.argmax(dim=1))
    torch.testing.assert_close(confidence, scores.softmax(dim=1).amax(dim=1), atol=1e-6, rtol=0)


def test_result_has_the_size_asked_for_and_batches(model):
    images = random_images(40, 50, batch=2)
    with torch.inference_mode():
        both = predict_scores(model, images, PROTOCOLS["slide"], size=(31, 77))
        one = predict_scores(model, images[1:], PROTOCOLS["slide"], size=(31, 77))
    assert both.shape == (2, 5, 31, 77)
    torch.testing.assert_close(both[1:], one, atol=1e-6, rtol=1e-5)


def test_windows_run_in_batches():
    sizes = []

    def counting(images: Tensor) -> Tensor:
        sizes.append(images.shape[0])
        return pointwise(images)

    protocol = Protocol(window=(16, 16), stride=(16, 16))
    predict_scores(counting, random_images(64, 64), protocol, batch_windows=8)
    assert sizes == [8, 8]


@pytest.mark.parametrize(
    ("protocol", "count"),
    [(Protocol(), 8), (Protocol(window=(256, 256)), 64), (Protocol(window=(512, 1024)), 8)],
)
def test_windows_in_a_pass_of_a_gpu(protocol, count):
    """At least eight, and as many as have four million pixels."""
    images = torch.empty(1, 3, 1024, 1024, device="meta")
    assert inference._batch_windows(images, protocol) == count


def test_batches_that_run_out_of_memory_are_halved():
    sizes = []

    def small(images: Tensor) -> Tensor:
        sizes.append(images.shape[0])
        if images.shape[0] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pointwise(images)

    images, limit = random_images(64, 64, batch=2), 5
    protocol = Protocol(window=(16, 16), stride=(16, 16))
    scores = predict_scores(small, images, protocol, batch_windows=32)
    assert sizes == [32, 16, 8, *[4] * 8]
    torch.testing.assert_close(scores, predict_scores(pointwise, images, protocol))
    limit = 1
    with pytest.raises(torch.OutOfMemoryError):  # not even one window of both images fits
        predict_scores(small, images, protocol, batch_windows=32)


def test_scores_above_the_block_are_dropped(monkeypatch):
    """A tall image holds about two rows of windows, however tall it is."""
    monkeypatch.setitem(inference.BLOCK_BYTES, "cpu", 1)
    held = []
    original = windows.View._compute

    def watched(view: windows.View) -> None:
        original(view)
        held.append(sum(w.logits.numel() for w in view.active))

    monkeypatch.setattr(windows.View, "_compute", watched)
    protocol = Protocol(window=(32, 32), stride=(16, 16))
    predict_mask(pointwise, random_images(640, 32), protocol, batch_windows=1)
    assert len(held) == 39
    assert max(held) <= 2 * 3 * 32 * 32


def test_padded_logits_are_cropped_not_squeezed():
    class Padding:
        def coarse(self, images: Tensor) -> Output:
            H, W = (-(-s // 16) * 16 for s in images.shape[-2:])
            ramp = torch.arange(H // 4).float()[:, None].expand(H // 4, W // 4)
            return Output(ramp.expand(1, 2, -1, -1), [], (H, W))

    scores = predict_scores(Padding(), random_images(18, 18), Protocol())  # type: ignore[arg-type]
    full = F.interpolate(torch.arange(8.0)[None, None, :, None], (32, 1), mode="bilinear")
    torch.testing.assert_close(scores[0, 0, :, 0], full[0, 0, :18, 0])


def test_nan_scores_are_an_error():
    with pytest.raises(SetrError, match="not numbers"):
        predict_mask(lambda x: constant(x) * float("nan"), random_images(8, 8), Protocol())


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 80), st.data())
def test_windows_cover_everything_and_stay_inside(length, window, data):
    stride = data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    covered = {i for s in starts for i in range(s, s + window) if i < length}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert all(s + window <= max(length, window) for s in starts)


def test_normalize():
    image = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    x = normalize(image, (0.5, 0.4, 0.3), (0.1, 0.2, 0.5))
    expected = torch.tensor([(0 - 0.5) / 0.1, (128 / 255 - 0.4) / 0.2, (1 - 0.3) / 0.5])
    torch.testing.assert_close(x[0, :, 0, 0], expected)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(2, 5, 4, 3),
        torch.zeros(2, 3, 5, 4, dtype=torch.uint8),
        torch.zeros(5, 4, 3, dtype=torch.uint8),
        torch.zeros(2, 5, 4, 1, dtype=torch.uint8),
    ],
    ids=["floats", "channels first", "no batch", "grey"],
)
def test_what_would_be_normalised_wrongly_is_refused(images):
    with pytest.raises(
        SetrError, match=r"give uint8 \(B, H, W, 3\), 0 to 255; normalise"
    ) as caught:
        normalize(images, (0.5, 0.4, 0.3), (0.1, 0.2, 0.5))
    assert str(tuple(images.shape)) in str(caught.value)
    assert caught.value.code == USAGE


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_images_normalised_where_read_give_the_same_scores(protocol):
    pixels = torch.randint(0, 256, (2, 70, 61, 3), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.5)
    lazy = predict_scores(pointwise, NormalizedImages(pixels, mean, std), protocol)
    assert torch.equal(lazy, predict_scores(pointwise, normalize(pixels, mean, std), protocol))


@pytest.mark.parametrize(
    ("data", "image", "shorts"),
    [
        ("ade20k", (683, 512), (512, 512, 512, 640, 768, 896)),
        ("cityscapes", (1024, 2048), (768, 768, 1025, 1281, 1537, 1793)),
        ("pascal_context", (375, 500), (480, 480, 520, 650, 780, 910)),
    ],
)
def test_paper_sizes(data, image, shorts):
    """The short sides of the authors' settings; the other side keeps the aspect."""
    protocol = preset(f"paper-ms:{data}")
    views = [protocol.view_size(*image, scale) for scale in protocol.scales]
    assert [min(v) for v in views] == list(shorts)
    for view, short in zip(views, shorts, strict=True):
        assert max(view) == int(max(image) * short / min(image) + 0.5)


def fitted(H: int, W: int, sides: tuple[float, float]) -> tuple[int, int]:
    """An image fitted into two sides as by mmcv: the smaller of two factors, then rounded."""
    factor = min(max(sides) / max(H, W), min(sides) / min(H, W))
    return int(H * factor + 0.5), int(W * factor + 0.5)


@pytest.mark.parametrize(
    ("data", "window", "base"),
    [
        ("ade20k", 512, (512, 2048)),
        ("cityscapes", 768, (1025, 2049)),
        ("pascal_context", 480, (520, 520)),
    ],
)
@example(H=512, W=2050)  # 511.5 rows, rounded, still fill the window of 512
@given(H=st.integers(256, 2048), W=st.integers(256, 2048))
def test_sizes_of_the_authors_pipeline(data, window, base, H, W):
    """Every scale of `paper-ms`; `paper-ss` fits images into both sides, except Pascal Context's.

    Images whose short side would be below the window are enlarged to it.
    """
    several, single = preset(f"paper-ms:{data}"), preset(f"paper-ss:{data}")
    for scale in several.scales:
        short = max(int(min(base) * scale), window)
        sides = short * H / min(H, W), short * W / min(H, W)
        assert several.view_size(H, W, scale) == fitted(H, W, sides)
    if data == "pascal_context":
        assert single.view_size(H, W, 1.0) == several.view_size(H, W, 1.0)
    elif min(fitted(H, W, base)) >= window:
        assert single.view_size(H, W, 1.0) == fitted(H, W, base)
    else:
        assert min(single.view_size(H, W, 1.0)) == window


@pytest.mark.parametrize("data", ["ade20k", "cityscapes", "pascal_context"])
def test_a_run_tests_its_own_protocol_at_the_papers_scales(data):
    assert preset(f"paper-ss:{data}").multi_scale() == preset(f"paper-ms:{data}")


def test_cityscapes_has_as_many_columns_as_in_the_authors_run():
    assert preset("paper-ss:cityscapes").view_size(1024, 2048, 1.0) == (1025, 2049)
    assert preset("paper-ms:cityscapes").view_size(1024, 2048, 1.0) == (1025, 2050)


@pytest.mark.parametrize("scale", MULTI_SCALES)
def test_scaled_sides_of_the_baselines_are_whole(scale):
    """The mmsegmentation with which the paper compares truncated both scaled sides."""
    several = Protocol(short_side=1025, long_side=2049).multi_scale()
    sides = int(1025 * scale), int(2049 * scale)
    assert several.view_size(1024, 2048, scale) == fitted(1024, 2048, sides)


def test_windows_of_unequal_sides_overlap_by_a_quarter_each_way():
    assert Protocol().in_windows((40, 96)).stride == (30, 72)


def test_the_largest_scale_decides_whether_windows_are_needed():
    assert not Protocol().needs_windows(1100, 1100)
    assert Protocol(scales=(1.0, 2.0)).needs_windows(1100, 1100)


@pytest.mark.parametrize(
    ("short", "long", "size"), [(2050, 4098, (2049, 4098)), (900, 2049, (900, 1800))]
)
def test_a_larger_short_side_is_not_undone_by_the_limit_of_the_long_side(short, long, size):
    """Cityscapes has 1024x2048 pixels, of which a limit of 2049 allows no other size."""
    own = preset("paper-ss:cityscapes")
    found = own.overridden(short_side=short)
    assert found.long_side == long
    assert found.view_size(1024, 2048, 1.0) == size
    assert own.overridden(short_side=short, long_side=2049).long_side == 2049


def test_port_scales_the_original_and_caps_the_long_side():
    several = preset("mmseg-ms:ade20k")
    assert several.view_size(300, 400, 0.5) == (150, 200)
    # mmcv fits the image into both scaled sides, rounded: 557.25 x 870.75 -> 557 x 871 -> 0.7497
    assert several.view_size(743, 1161, 0.75) == (557, 870)
    assert several.view_size(1447, 1445, 1.25) == (1808, 1806)
    assert several.view_size(1, 3000, 0.25) == (1, 750)
    single = preset("mmseg-ss:ade20k")
    assert single.view_size(300, 400, 1.0) == (512, 683)
    assert single.view_size(100, 4000, 1.0) == (51, 2048)
    assert preset("mmseg-ss:cityscapes").view_size(1024, 2048, 1.0) == (1025, 2049)
    assert preset("mmseg-ss:pascal_context").view_size(375, 500, 1.0) == (390, 520)


def test_a_line_of_pixels_is_not_blown_up():
    with pytest.raises(SetrError, match="3000x1 would be enlarged to 1638000x546"):
        Protocol(short_side=546).view_size(1, 3000, 1.0)
    assert Protocol().view_size(1, 3000, 1.0) == (1, 3000)
    assert Protocol(short_side=546).view_size(6000, 8000, 1.0) == (546, 728)


def test_presets_of_other_data_use_the_models_own_sizes():
    own = Protocol(short_side=546)
    paper = preset("paper-ms", own=own, grid=(378, 504))
    assert (paper.window, paper.stride, paper.short_side) == ((378, 504), (252, 336), 546)
    assert preset("whole", own=own) == own == own.in_windows(48).multi_scale().whole()
    assert preset("whole:cityscapes", own=own) == Protocol(short_side=1025)
    assert preset("mmseg-ms", own=own, grid=(96, 96)).short_side is None
    for name in PRESETS:
        described = preset(name, own=own).describe()
        assert ("window" in described) != (name == "whole")
        assert ("flip" in described) == name.endswith("-ms")


@pytest.mark.parametrize(
    "name", ["cityscapes_fcn_r101_80k", "cityscapes_semantic_fpn_r101_80k", "ade20k_fcn_r101_160k"]
)
def test_the_ports_presets_test_baselines_as_its_settings_of_them_do(name):
    config = recipe(name)
    labels = known_labels(config.data.labels)
    own = build_info(config, labels).protocol
    assert preset("mmseg-ss", own=own, labels=labels, grid=None) == own
    several = preset("mmseg-ms", own=own, labels=labels, grid=None)
    assert several.window == own.window
    assert several.short_side is None
    named = config.replace({"eval.protocol": "mmseg-ss"})
    assert build_info(named, labels).protocol == own
    assert preset("mmseg-ss:cityscapes", own=own, labels=labels, grid=None).window == (768, 768)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, "positive factors"),
        ({"scales": (1.0, float("nan"))}, "positive factors"),
        ({"scales": (float("inf"),)}, "positive factors"),
        ({"window": (32, 32), "stride": (40, 32)}, "would be skipped"),
        ({"window": (0, 5)}, "positive pixels"),
        ({"fill_window": True}, "fill_window needs a window: give a window"),
        ({"stride": (8, 8)}, "stride needs a window: give a window"),
        ({"blend": True}, "blend needs a window: give a window"),
        ({"long_side": 600}, "long_side limits the scaling to short_side"),
    ],
)
def test_impossible_protocols(arguments, message):
    with pytest.raises(SetrError, match=message):
        Protocol(**arguments)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(SetrError, match="did you mean 'paper-ms'"):
        preset("paper_ms")


def test_blended_windows_show_no_border():
    """Scores that depend on the place in the window: averaged they jump, blended they do not."""

    def place(images: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, images.shape[-1]).expand(1, 1, *images.shape[-2:])
        return torch.cat([ramp, -ramp], dim=1).expand(images.shape[0], -1, -1, -1)

    averaged = Protocol(window=(32, 32), stride=(24, 24))
    steps = {}
    for name, protocol in (("averaged", averaged), ("blended", Protocol().in_windows(32))):
        scores = predict_scores(place, random_images(8, 200), protocol)
        steps[name] = float(scores[0, 0].diff(dim=-1).abs().max())
    assert steps["averaged"] > 0.7
    assert steps["blended"] < 0.25  # the slope of the weights over the overlap of 8 pixels


@pytest.mark.parametrize("name", ["slide", "blended"])
def test_strips_of_pieces_equal_the_whole(model, name):
    """A source read piece by piece, in vertical strips, gives the values of the whole image."""
    images, read = random_images(83, 150), []

    class Source:
        shape, device = images.shape, images.device

        def __getitem__(self, place: tuple) -> Tensor:
            read.append(images[place].shape[-2:].numel())
            return images[place]

    with torch.inference_mode():
        ids, confidence = predict_mask(model, images, PROTOCOLS[name])
        for start, stop in ((0, 64), (64, 65), (65, 150)):
            blocks = mask_blocks(model, Source(), PROTOCOLS[name], columns=(start, stop))
            parts = [torch.cat(block, dim=1) for block in zip(*blocks, strict=True)]
            assert torch.equal(parts[0], ids[..., start:stop])
            torch.testing.assert_close(parts[1], confidence[..., start:stop], atol=1e-6, rtol=1e-6)
    assert max(read) <= 48 * 48


@pytest.mark.parametrize(
    ("w", "width"), [(1, 2), (5, 10), (5, 20), (4, 14), (7, 3), (8, 6), (6, 6), (39, 546), (9, 10)]
)
def test_widened_rows_are_those_of_the_bilinear_resize(w, width):
    rows = torch.randn(2, 3, 4, w, dtype=torch.float64)
    wanted = F.interpolate(rows, (4, width), mode="bilinear", align_corners=False)
    assert torch.allclose(_resize_columns(rows, width), wanted, rtol=0, atol=1e-12)
    assert _resize_columns(rows.requires_grad_(), width).requires_grad


def test_rows_are_resized_without_reading_back_from_the_device():
    """Meta tensors have no values to wait for."""
    rows = torch.empty(1, 3, 5, 4, device="meta")
    found = resize_rows(lambda a, b: rows[..., a:b, :], (5, 4), (20, 17), 3, 9)
    assert found.shape == (1, 3, 6, 17)
    assert found.device.type == "meta"


def test_more_classes_than_ids_are_refused():
    many = torch.zeros(1, 256, 2, 2)
    with pytest.raises(SetrError, match="256 classes: the ids of a mask are 8-bit, 255 at most"):
        predict_mask(lambda x: many, random_images(2, 2), Protocol())
    assert predict_scores(lambda x: many, random_images(2, 2), Protocol()).shape[1] == 256


def held(protocol: Protocol, images: Tensor) -> int:
    """Bytes of float images and windows alive at a time, besides the images given."""

    class Coarse:
        def coarse(self, crops: Tensor) -> Output:
            H, W = crops.shape[-2:]
            return Output(crops.new_zeros(len(crops), 2, 1, 1), [], (H, W))

    tracker = _MemoryTracker([images])
    given = tracker.now
    with tracker:
        for _ in mask_blocks(Coarse(), images, protocol, batch_windows=1):  # type: ignore[arg-type]
            pass
    return tracker.peak - given


def test_a_flipped_view_has_no_image_of_its_own(monkeypatch):
    monkeypatch.setitem(inference.BLOCK_BYTES, "cpu", 1)
    images = random_images(200, 200)
    window = {"window": (32, 32), "stride": (32, 32)}
    one = images.nbytes
    assert held(Protocol(flip=True, **window), images) < 0.5 * one
    assert held(Protocol(scales=(2.0,), flip=True, **window), images) < 4.5 * one


def test_whole_views_are_resized_one_after_the_other(monkeypatch):
    monkeypatch.setitem(inference.BLOCK_BYTES, "cpu", 1)
    images = random_images(200, 200)
    found = held(Protocol(scales=(1.9, 2.0, 1.8), flip=True), images)
    assert found < (4 + 4 + 0.5) * images.nbytes  # the largest and what is cut from it


def test_flip_alone_averages_probabilities(model):
    images, protocol = random_images(40, 57), Protocol(flip=True)
    with torch.inference_mode():
        scores = predict_scores(model, images, protocol)
        _, confidence = predict_mask(model, images, protocol)
        views = [model(images), model(images.flip(-1)).flip(-1)]
    expected = torch.stack([view.softmax(dim=1) for view in views]).mean(dim=0)
    torch.testing.assert_close(scores.softmax(dim=1), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(confidence, expected.amax(dim=1), atol=1e-6, rtol=1e-5)


def test_presets_keep_what_is_the_models_own():
    own = Protocol(window=(48, 64), stride=(24, 30), short_side=60, long_side=90)
    for name in ("paper-ss", "paper-ms", "mmseg-ss", "mmseg-ms"):
        found = preset(name, own=own, grid=(32, 32))
        assert (found.window, found.stride) == ((48, 64), (24, 30))
    for name in ("whole", "mmseg-ss"):
        found = preset(name, own=own, grid=(32, 32))
        assert (found.short_side, found.long_side) == (60, 90)


@pytest.mark.parametrize(
    ("data", "window", "stride"),
    [("ade20k", 512, 341), ("cityscapes", 768, 512), ("pascal_context", 480, 320)],
)
def test_paper_windows(data, window, stride):
    for name in ("paper-ss", "paper-ms", "mmseg-ss", "mmseg-ms"):
        protocol = preset(f"{name}:{data}")
        assert (protocol.window, protocol.stride) == ((window, window), (stride, stride))

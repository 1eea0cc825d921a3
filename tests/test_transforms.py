"""Augmentation: crop-first equals resize-then-crop, ids are never blended, odds are as told."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setr import transforms
from setr.crop_window import CropWindow
from setr.data import scenes
from setr.labels import IGNORE
from setr.transforms import (
    PAD_COLOUR,
    Augmentation,
    base_scale,
    distort,
    fill_colour,
    rare_class_odds,
)

IMAGE, MASK = scenes.draw("train", 0, size=160)
IMAGE, MASK = np.ascontiguousarray(IMAGE[:120]), np.ascontiguousarray(MASK[:120])
PLAIN = {"flip": 0.0, "photometric": False, "max_class_share": 1.0}


def whole_then_crop(array, resized, origin, size, interpolation):
    whole = cv2.resize(array, resized[::-1], interpolation=interpolation)
    return whole[origin[0] : origin[0] + size[0], origin[1] : origin[1] + size[1]]


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 2.0), st.integers(0, 10**6))
def test_a_window_equals_resizing_everything(scale, seed):
    resized = round(120 * scale), round(160 * scale)
    rng = np.random.default_rng(seed)
    size = (48, 56)
    origin = tuple(int(rng.integers(0, r - s + 1)) for r, s in zip(resized, size, strict=True))
    window = CropWindow((120, 160), resized, origin, size)
    ours = window.cut(IMAGE, nearest=False, fill=PAD_COLOUR).astype(int)
    theirs = whole_then_crop(IMAGE, resized, origin, size, cv2.INTER_LINEAR).astype(int)
    # warpAffine places samples on a grid of 1/32 pixel
    assert np.abs(ours - theirs).mean() < 1.0
    for axis, length in enumerate((120, 160)):
        places = np.arange(length, dtype=np.uint8).reshape((-1, 1) if axis == 0 else (1, -1))
        field = np.ascontiguousarray(np.broadcast_to(places, (120, 160)))
        picked = window.cut(field, nearest=True, fill=IGNORE)
        picked = picked[:, 0] if axis == 0 else picked[0]
        centres = (np.arange(size[axis]) + origin[axis] + 0.5) * length / resized[axis] - 0.5
        assert np.abs(picked - centres).max() <= 0.5 + 1 / 32


def off_in_its_region(height: int, width: int, seed: int, angle: float = 0.0) -> np.ndarray:
    """Differences between a crop of what `source_region` names and one of the whole image."""
    rng = np.random.default_rng(seed)
    size = 30 + seed % 40, 50
    top, left = (
        int(rng.integers(0, max(r - s, 0) + 1)) for r, s in ((height, size[0]), (width, size[1]))
    )
    window = CropWindow((120, 160), (height, width), (top, left), size, angle)
    rows, columns = window.source_region
    part = IMAGE[rows, columns]
    ours = window.cut(part, nearest=False, fill=0, corner=(rows.start, columns.start))
    return np.abs(ours.astype(int) - window.cut(IMAGE, nearest=False, fill=0))


@settings(max_examples=60, deadline=None)
@given(st.integers(30, 300), st.integers(30, 400), st.integers(0, 10_000))
def test_its_region_is_all_it_samples(height, width, seed):
    """At any scale and place."""
    off = off_in_its_region(height, width, seed)
    assert off.max() <= 1  # positions are counted in fp32 from another corner
    assert off.mean() < 0.1


@pytest.mark.parametrize("angle", [0.0, 180.0])
@pytest.mark.parametrize("ratio", [2, 4])
def test_masks_at_an_exact_ratio_are_not_moved_against_their_images(ratio, angle):
    """Two pixels are equally near everywhere; over many samples, each is chosen as often."""
    side = 48 // ratio
    places = np.broadcast_to(np.arange(48, dtype=np.uint8), (48, 48))
    centres = (np.arange(side) + 0.5) * ratio - 0.5
    augment = Augmentation((side, side), short_side=side, scale_range=(1, 1), **PLAIN)
    image = np.zeros((48, 48, 3), np.uint8)
    for field in (places, places.T):
        seen = []
        for seed in range(100):
            rng = np.random.default_rng((seed, 1, 2))
            _, mask = augment(image, np.ascontiguousarray(field), rng)
            line = mask[side // 2] if field is places else mask[:, side // 2]
            seen.append((line - centres).mean())
        assert set(seen) == {-0.5, 0.5}
        assert abs(np.mean(seen)) < 0.2
    for lean in (-1, 1):
        window = CropWindow((48, 48), (side, side), (0, 0), (side, side), angle, (lean, lean))
        picked = window.cut(np.ascontiguousarray(places), nearest=True, fill=IGNORE)[side // 2]
        assert (picked == (centres if angle == 0 else centres[::-1]) + lean / 2).all()


def test_the_side_of_equally_near_pixels_changes_no_other_draw(monkeypatch):
    augment = Augmentation((32, 40), short_side=60)
    drawn, fixed = (np.random.default_rng((0, 1)) for _ in range(2))
    image, _ = augment(IMAGE, MASK, drawn)
    monkeypatch.setattr(transforms, "_sides", lambda rng: (0, 0))
    np.testing.assert_array_equal(augment(IMAGE, MASK, fixed)[0], image)
    assert drawn.random() == fixed.random()


def test_at_scale_one_it_is_the_plain_crop():
    window = CropWindow((120, 160), (120, 160), (11, 23), (48, 56))
    np.testing.assert_array_equal(window.cut(IMAGE, nearest=False, fill=0), IMAGE[11:59, 23:79])
    np.testing.assert_array_equal(window.cut(MASK, nearest=True, fill=0), MASK[11:59, 23:79])


def test_origins_and_scales_are_uniform():
    """Crops of a coordinate image tell where they lie; compared with resize-then-crop's law."""
    rows = np.repeat(np.arange(120, dtype=np.uint8)[:, None], 160, axis=1)
    augment = Augmentation((30, 40), scale_range=(0.5, 2.0), **PLAIN)
    image = np.repeat(rows[..., None], 3, axis=2)
    tops, extents = [], []
    for seed in range(1500):
        cropped, _ = augment(image, rows, np.random.default_rng(seed))
        column = cropped[:, 0, 0].astype(float)
        tops.append(column[0])
        extents.append(column[-1] - column[0])
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.5, 2.0, 200_000)
    heights = np.round(120 * scales)
    origins = np.floor(rng.uniform(size=200_000) * (heights - 30 + 1))
    for ours, law in ((tops, origins / scales), (extents, 29 / scales)):
        quantiles = [5, 25, 50, 75, 95]
        np.testing.assert_allclose(np.percentile(ours, quantiles), np.percentile(law, quantiles),
                                   atol=4.0)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_ids_are_never_blended_and_padding_is_ignored(seed):
    augment = Augmentation((150, 170), scale_range=(0.4, 1.2))
    image, mask = augment(IMAGE, MASK, np.random.default_rng(seed))
    assert set(np.unique(mask)) <= set(np.unique(MASK)) | {IGNORE}
    assert image.shape == (150, 170, 3)
    assert mask.shape == (150, 170)


def test_outside_the_image_is_mean_colour_and_ignored():
    window = CropWindow((120, 160), (120, 160), (0, 0), (130, 170))
    image = window.cut(IMAGE, nearest=False, fill=PAD_COLOUR)
    assert (image[120:] == PAD_COLOUR).all()
    assert (window.cut(MASK, nearest=True, fill=IGNORE)[:, 160:] == IGNORE).all()


def test_padding_is_zero_after_the_models_normalisation():
    assert fill_colour((0.485, 0.456, 0.406)) == PAD_COLOUR
    assert fill_colour((0.5, 0.4, 0.0)) == (128, 102, 0)
    assert fill_colour((0.1, 0.2, 0.3, 1.0)) == (26, 51, 76, 255)
    assert fill_colour((-0.1,)) == (0,)  # of values that were not clipped


def test_padding_is_neither_distorted_nor_flipped():
    """As in mmsegmentation, which pads last: mean colour, below and to the right."""
    augment = Augmentation((130, 170), scale_range=(1, 1))
    flips = 0
    for seed in range(20):
        image, mask = augment(IMAGE, MASK, np.random.default_rng(seed))
        assert (image[120:] == PAD_COLOUR).all()
        assert (image[:, 160:] == PAD_COLOUR).all()
        assert (mask[120:] == IGNORE).all()
        assert (mask[:, 160:] == IGNORE).all()
        flips += (mask[:120, :160] == MASK[:, ::-1]).all()
    assert 0 < flips < 20


def test_a_dominating_class_is_cropped_around():
    mask = np.zeros((100, 400), np.uint8)
    mask[:, 360:] = 1
    image = np.zeros((100, 400, 3), np.uint8)
    free = Augmentation((100, 100), scale_range=(1, 1), **PLAIN)
    held = Augmentation((100, 100), scale_range=(1, 1), **{**PLAIN, "max_class_share": 0.75})

    def shares(augment):
        return [augment(image, mask, np.random.default_rng(s))[1].mean() for s in range(200)]

    assert np.mean([share >= 0.25 for share in shares(held)]) > 2 * np.mean(
        [share >= 0.25 for share in shares(free)]
    )


def test_crops_without_a_counted_pixel_are_drawn_again():
    mask = np.full((60, 300), IGNORE, np.uint8)
    mask[:, 250:] = 1
    image = np.zeros((60, 300, 3), np.uint8)
    augment = Augmentation((60, 60), scale_range=(1, 1), **PLAIN)
    kept = [(augment(image, mask, np.random.default_rng(s))[1] == 1).any() for s in range(100)]
    assert np.mean(kept) > 0.8  # 1 - (191 / 241)^10 = 0.90; a single draw would give 0.21


def test_rare_crops_hold_the_rare_class():
    mask = np.zeros((200, 400), np.uint8)
    mask[150:153, 300:304] = 1
    image = np.zeros((200, 400, 3), np.uint8)
    odds = rare_class_odds(np.bincount(mask.ravel(), minlength=3))
    np.testing.assert_allclose(odds[1] / odds[0], np.sqrt((mask == 0).sum() / 12))
    assert odds[2] == 0
    assert sum(odds) == pytest.approx(1)
    share = {}
    for rare in (0.0, 1.0):
        augment = Augmentation((40, 40), scale_range=(0.5, 2), rare_crops=rare, class_odds=odds,
                               **PLAIN)  # fmt: skip
        crops = [augment(image, mask, np.random.default_rng(s))[1] for s in range(200)]
        share[rare] = np.mean([(crop == 1).any() for crop in crops])
    assert share[0.0] < 0.1
    assert share[1.0] > 0.9 * odds[1]


@pytest.mark.parametrize("place", [(100, 200), (3, 5), (0, 395)])
@pytest.mark.parametrize("rotate", [15.0, 180.0])
def test_rare_crops_hold_the_rare_class_when_they_are_rotated(place, rotate):
    y, x = place
    mask = np.zeros((200, 400), np.uint8)
    mask[y : y + 5, x : x + 5] = 1
    image = np.zeros((200, 400, 3), np.uint8)
    augment = Augmentation((40, 60), scale_range=(0.5, 2), rare_crops=1.0, class_odds=(0.0, 1.0),
                           rotate=rotate, **PLAIN)  # fmt: skip
    crops = [augment(image, mask, np.random.default_rng(s))[1] for s in range(300)]
    # sampling the nearest pixel may miss a class that only touches the crop
    assert np.mean([(crop == 1).any() for crop in crops]) > 0.98


def test_a_window_knows_which_points_it_shows():
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(300):
        origin, angle = rng.integers(0, [61, 101]), rng.uniform(-180, 180)
        window = CropWindow(
            (120, 160), (120, 160), (int(origin[0]), int(origin[1])), (60, 60), angle
        )
        y, x = rng.integers(1, [119, 159])
        mask = np.zeros((120, 160), np.uint8)
        mask[y - 1 : y + 2, x - 1 : x + 2] = 1
        shown.append(window.shows(y + 0.5, x + 0.5))
        cut = window.cut(mask, nearest=True, fill=0)
        assert cut.sum() > 1 if shown[-1] else cut.sum() < 9
    assert 0.1 < np.mean(shown) < 0.9


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((1024, 2048), None, None, 1.0),
        ((512, 683), 512, 2048, 1.0),
        ((256, 2048), 512, 2048, 1.0),  # the long side stops it
        ((1024, 2048), 1025, 2049, 2049 / 2048),
        ((333, 500), 520, 520, 520 / 500),
    ],
)
def test_base_scale(size, short, long, expected):
    assert base_scale(*size, short, long) == expected


@pytest.mark.parametrize(("flip", "axis"), [("flip", 1), ("flip_vertical", 0)])
def test_a_flip_turns_both(flip, axis):
    augment = Augmentation((120, 160), scale_range=(1, 1), **{**PLAIN, flip: 1.0})
    image, mask = augment(IMAGE, MASK, np.random.default_rng(0))
    np.testing.assert_array_equal(image, np.flip(IMAGE, axis))
    np.testing.assert_array_equal(mask, np.flip(MASK, axis))


@pytest.mark.parametrize(("angle", "turns"), [(90, -1), (-90, 1), (180, 2)])
def test_a_right_angle_is_an_exact_turn(angle, turns):
    """Clockwise as it is seen, and every pixel is kept."""
    square = np.ascontiguousarray(IMAGE[:, :120])
    window = CropWindow((120, 120), (120, 120), (0, 0), (120, 120), angle)
    np.testing.assert_array_equal(
        window.cut(square, nearest=False, fill=PAD_COLOUR), np.rot90(square, turns)
    )
    np.testing.assert_array_equal(
        window.cut(MASK[:, :120], nearest=True, fill=IGNORE), np.rot90(MASK[:, :120], turns)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 300), st.integers(10, 400), st.floats(-180, 180), st.integers(0, 10_000))
def test_a_turned_window_asks_for_all_it_samples(height, width, angle, seed):
    off = off_in_its_region(height, width, seed, angle)
    # at the image's own edge a sample may fall just in or just out
    assert (off > 8).mean() < 0.02
    assert off.mean() < 1.0


def test_rotation_keeps_image_and_mask_together_and_ids_whole():
    """An image that shows its mask's ids still does, wherever both were sampled."""
    painted = np.repeat(MASK[..., None] * 20, 3, axis=2)
    augment = Augmentation((90, 100), rotate=40.0, scale_range=(0.5, 2.0), **PLAIN)
    ignored = 0
    for seed in range(20):
        image, mask = augment(painted, MASK, np.random.default_rng(seed))
        assert set(np.unique(mask)) <= {*np.unique(MASK), IGNORE}
        inside = mask != IGNORE
        agree = np.abs(image[..., 0].astype(int) - mask * 20) <= 10
        assert agree[inside].mean() > 0.9  # the rest: blends of two classes at their border
        ignored += (~inside).mean()
    assert 0.02 < ignored / 20 < 0.6


def test_distortion_stays_within_its_ranges():
    grey = np.full((8, 8, 3), 100, np.uint8)
    values = [int(distort(grey, np.random.default_rng(s))[0, 0, 0]) for s in range(400)]
    assert (min(values), max(values)) != (100, 100)
    assert min(values) >= round((100 - 32) * 0.5) - 2
    assert max(values) <= round((100 + 32) * 1.5) + 2
    assert 0.1 < np.mean([v == 100 for v in values]) < 0.4  # 1/4 is left alone: grey has no hue


def test_the_same_generator_gives_the_same_sample():
    augment = Augmentation((64, 64))
    first = augment(IMAGE, MASK, np.random.default_rng((1, 2, 3)))
    second = augment(IMAGE, MASK, np.random.default_rng((1, 2, 3)))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


class Recorded:
    """An image that remembers the rows it was asked for."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.asked = pixels, pixels.shape, 0

    def __getitem__(self, place):
        self.asked = place[0].stop
        return np.ascontiguousarray(self.pixels[place])


def test_only_rows_above_the_crop_are_asked_for_and_change_nothing():
    saved = 0
    for seed in range(60):
        augment = Augmentation((48, 56), scale_range=(0.5, 2.0))
        image = Recorded(IMAGE)
        part, mask = augment(image, MASK, np.random.default_rng(seed))
        whole, same = augment(IMAGE, MASK, np.random.default_rng(seed))
        np.testing.assert_array_equal(part, whole)
        np.testing.assert_array_equal(mask, same)
        saved += image.asked < len(IMAGE)
    assert saved > 20


def test_distortion_moves_hue_and_saturation_as_told_and_keeps_the_channels():
    """A red patch stays red (hue moves by at most 36 degrees of 360), its saturation by a half."""
    red = np.full((4, 4, 3), (200, 80, 80), np.uint8)  # hue 0, saturation 0.6, value 200
    found = [distort(red, np.random.default_rng(s))[0, 0].astype(int) for s in range(400)]
    assert all(r >= max(g, b) for r, g, b in found)
    plain = [(r, g, b) for r, g, b in found if r == 200]  # brightness and contrast rested
    saturation = np.array([1 - min(p) / 200 for p in plain])
    assert 0.3 < np.mean(np.abs(saturation - 0.6) > 0.01) < 0.7
    assert saturation.min() > 0.28
    assert saturation.max() < 0.92
    hue = np.array([30 * (g - b) / (r - min(g, b)) for r, g, b in plain])  # of OpenCV's 180
    assert 0.3 < np.mean(np.abs(hue) > 0.5) < 0.7
    assert -18.5 < hue.min() < -10
    assert 10 < hue.max() < 18.5


def test_the_crop_is_of_the_image_at_its_base_size():
    mask = np.ones((120, 160), np.uint8)
    image = np.zeros((120, 160, 3), np.uint8)
    for limits, height, width in (
        ({"short_side": 60}, 60, 80),
        ({"short_side": 60, "long_side": 40}, 30, 40),
    ):
        augment = Augmentation((100, 100), scale_range=(1, 1), **limits, **PLAIN)
        cropped = augment(image, mask, np.random.default_rng(0))[1]
        assert (cropped[:height, :width] == 1).all()
        assert (cropped != IGNORE).sum() == height * width


@pytest.mark.parametrize("shape", [(8, 40_000), (40_000, 8)])
def test_images_of_any_length_are_cut(shape):
    mask = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    mask = (mask // 7 % 5).astype(np.uint8)
    image = np.repeat(mask[..., None] * 40, 3, axis=2)
    augmentation = Augmentation(
        (8, 8), scale_range=(1, 1), flip=0.0, photometric=False, max_class_share=1.0
    )
    for seed in range(4):
        crop, truth = augmentation(image, mask, np.random.default_rng(seed))
        np.testing.assert_array_equal(crop[..., 0], truth * 40)

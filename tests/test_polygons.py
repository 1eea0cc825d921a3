"""Polygons of masks: exact areas, the mask given back, and the files other tools read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setr.data import scenes
from setr.errors import SetrError
from setr.labels import Labels
from setr.prediction.annotations import merge_coco, to_coco, to_geojson, to_labelme
from setr.prediction.ground import Georeference
from setr.prediction.polygons import Polygon, mask_polygons, run_lengths, signed_area, simplified

LABELS = Labels(("a", "b", "c"))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Noise and coarse blobs, sides 1 to 24, up to three classes; 255 belongs to no class."""
    H, W = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    coarse = draw(st.sampled_from([1, 2, 5]))
    ids = rng.choice(np.array([0, 1, 2, 255], np.uint8), (-(-H // coarse), -(-W // coarse)))
    return np.kron(ids, np.ones((coarse, coarse), np.uint8))[:H, :W]


def inside(rings: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre is inside by the even-odd rule: count crossings to the left."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    odd = np.zeros(size, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                crosses = (min(y0, y1) < y) & (y < max(y0, y1))
                odd ^= crosses & (x0 + (y - y0) / (y1 - y0) * (x1 - x0) < x)
    return odd


def filled(polygons: list[Polygon], size: tuple[int, int]) -> np.ndarray:
    mask = np.full(size, 255, np.uint8)
    for polygon in polygons:
        mask[inside(list(polygon.rings), size)] = polygon.class_id
    return mask


@given(masks())
@settings(max_examples=150, deadline=None)
def test_filling_the_polygons_gives_the_mask_back(mask):
    polygons = mask_polygons(mask, 3)
    np.testing.assert_array_equal(filled(polygons, mask.shape), mask)
    assert sum(p.pixels for p in polygons) == (mask < 3).sum()
    for polygon in polygons:
        assert polygon.area == polygon.pixels
        x, y, width, height = polygon.box
        assert (polygon.rings[0].min(axis=0) == (x, y)).all()
        assert (polygon.rings[0].max(axis=0) == (x + width, y + height)).all()
        assert signed_area(polygon.rings[0]) > 0
        assert all(signed_area(hole) < 0 for hole in polygon.rings[1:])
        for ring in polygon.rings:  # simple rings: no corner twice
            assert len({tuple(point) for point in ring.tolist()}) == len(ring)


def test_gdal_fills_the_same_pixels():
    features = pytest.importorskip("rasterio.features")
    mask = scenes.draw("photo", 1, size=96)[1]
    collection = to_geojson(mask_polygons(mask, len(scenes.CLASSES)), scenes.LABELS)
    shapes = [(f["geometry"], f["properties"]["class_id"]) for f in collection["features"]]
    np.testing.assert_array_equal(features.rasterize(shapes, mask.shape, fill=255), mask)


@given(masks())
@settings(max_examples=60, deadline=None)
def test_run_lengths_give_the_mask_back(mask):
    given_back = np.full(mask.shape, 255, np.uint8)
    for polygon in mask_polygons(mask, 3):
        counts = run_lengths(polygon, mask.shape)
        assert sum(counts) == mask.size
        assert all(counts[1:-1])
        runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        region = runs.reshape(mask.shape[::-1]).T
        assert region.sum() == polygon.pixels
        given_back[region] = polygon.class_id
    np.testing.assert_array_equal(given_back, mask)


def test_a_pixel_wide_line_a_ring_and_a_corner_contact():
    mask = np.zeros((6, 7), np.uint8)
    mask[1:4, 1:4] = 1
    mask[2, 2] = 0
    mask[4, 4:] = 1  # touches the square by a corner alone
    ring, line = mask_polygons(mask, 2)[-2:]
    assert (ring.pixels, len(ring.rings), line.pixels, len(line.rings)) == (8, 2, 3, 1)
    assert sorted(map(tuple, line.rings[0].tolist())) == [(4, 4), (4, 5), (7, 4), (7, 5)]


def test_simplified_outlines_stay_close_and_keep_their_turn():
    y, x = np.mgrid[:200, :200]
    disc = ((x - 100) ** 2 + (y - 90) ** 2 < 70**2).astype(np.uint8)
    exact = mask_polygons(disc, 2)[1]
    for tolerance in (1.0, 3.0):
        fewer = simplified(exact, tolerance)
        assert len(fewer.rings[0]) < len(exact.rings[0]) / 3
        radius = np.hypot(*(fewer.rings[0] - (100.5, 90.5)).T)
        assert abs(radius - 70).max() <= tolerance + 1
        assert fewer.area == pytest.approx(exact.area, rel=0.02 * tolerance)
        assert fewer.pixels == exact.pixels
    dot = mask_polygons(np.array([[0, 1]], np.uint8), 2)[1]
    assert simplified(dot, 50).area == 1
    with pytest.raises(SetrError, match=r"give 0 \(exact\) to 1,000,000 pixels"):
        simplified(exact, -1)


def test_small_regions_can_be_left_out():
    mask = np.zeros((9, 9), np.uint8)
    mask[1, 1] = mask[4:7, 4:7] = 1
    assert [p.pixels for p in mask_polygons(mask, 2, min_pixels=2)] == [71, 9]
    assert mask_polygons(np.full((3, 3), 255, np.uint8), 2) == []


def test_geojson_in_pixels_and_on_a_map():
    mask = np.zeros((4, 4), np.uint8)
    mask[1:3, 1:3] = 1
    polygons = mask_polygons(mask, 2)
    square = to_geojson(polygons, LABELS)["features"][1]
    assert square["properties"] == {
        "class": "b", "class_id": 1, "color": "#{:02x}{:02x}{:02x}".format(*LABELS.colours[1]),
        "pixels": 4,
    }  # fmt: skip
    ring = square["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1]
    assert {tuple(p) for p in ring} == {(1, 1), (3, 1), (3, 3), (1, 3)}
    north_up = Georeference("EPSG:32633", (10.0, 0.0, 500.0, 0.0, -10.0, 9000.0))
    on_map = to_geojson(polygons, LABELS, geo=north_up)
    assert on_map["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    outline, hole = on_map["features"][0]["geometry"]["coordinates"]
    assert signed_area(np.array(outline[:-1])) == 1600  # anticlockwise, in square metres
    assert signed_area(np.array(hole[:-1])) == -400
    assert [500.0, 9000.0] in outline
    assert [510.0, 8990.0] in hole


@given(masks())
@settings(max_examples=40, deadline=None)
def test_coco_gives_the_mask_back(mask):
    for everything in (False, True):
        coco = to_coco(
            mask_polygons(mask, 3),
            LABELS,
            file_name="x.png",
            size=mask.shape,
            all_run_lengths=everything,
        )
        json.dumps(coco)
        again = np.full(mask.shape, 255, np.uint8)
        for annotation in coco["annotations"]:
            found = annotation["segmentation"]
            if isinstance(found, dict):
                runs = np.repeat(np.arange(len(found["counts"])) % 2 == 1, found["counts"])
                region = runs.reshape(found["size"][::-1]).T
            else:
                assert not everything
                region = inside([np.array(found[0]).reshape(-1, 2)], mask.shape)
            assert annotation["area"] == region.sum()
            again[region] = annotation["category_id"] - 1
        np.testing.assert_array_equal(again, mask)


def test_coco_files_of_single_images_become_one():
    mask = np.array([[0, 1], [0, 1]], np.uint8)
    one = to_coco(mask_polygons(mask, 2), LABELS, file_name="1.png", size=(2, 2))
    two = to_coco(mask_polygons(mask, 2), LABELS, file_name="2.png", size=(2, 2))
    whole = merge_coco([one, two])
    assert [i["id"] for i in whole["images"]] == [1, 2]
    assert [a["id"] for a in whole["annotations"]] == [1, 2, 3, 4]
    assert [a["image_id"] for a in whole["annotations"]] == [1, 1, 2, 2]
    assert [c["name"] for c in whole["categories"]] == ["a", "b", "c"]


@given(masks())
@settings(max_examples=40, deadline=None)
def test_labelme_drawn_in_order_gives_the_mask_back(mask):
    mask[mask == 255] = 0  # every pixel of a prediction has a class
    file = to_labelme(mask_polygons(mask, 3), LABELS, file_name="x.png", size=mask.shape)
    again = np.full(mask.shape, 255, np.uint8)
    for shape in file["shapes"]:
        again[inside([np.array(shape["points"])], mask.shape)] = LABELS.classes.index(
            shape["label"]
        )
    np.testing.assert_array_equal(again, mask)

"""Outlines in GeoJSON: files of one image, and layers over images that lie on a map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from setr.cli import main
from setr.datasets import open_dataset
from setr.errors import DATA_CHECK_FAILED, OK, USAGE
from setr.init_data import draft, write
from setr.prediction.annotations import to_geojson
from setr.prediction.ground import Georeference
from setr.prediction.polygons import mask_polygons
from setr.reading.masks import read_mask

from .test_outlines import LABELS, SIZE, labelme, photo, put, refused, shape, square

ORIGIN = (500_000.0, 5_400_000.0)
METRES = 0.5


def tile(path: Path, column: int = 0, **more: Any) -> Georeference:
    """A GeoTIFF, `column` tiles to the east of the first one; returns where it lies."""
    rasterio = pytest.importorskip("rasterio", reason='needs the extra: pip install "setr[geo]"')
    path.parent.mkdir(parents=True, exist_ok=True)
    left = ORIGIN[0] + column * SIZE[1] * METRES
    transform = rasterio.Affine(METRES, 0, left, 0, -METRES, ORIGIN[1])
    kind: dict[str, Any] = {"dtype": "uint8", "crs": "EPSG:32633", "transform": transform, **more}
    options = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 3}
    with rasterio.open(path, "w", **options, **kind) as file:
        file.write(np.full((3, *SIZE), 90, np.uint8))
    return Georeference(kind["crs"] or "", tuple(kind["transform"])[:6])


def feature(
    line: list[list[float]], geo: Georeference, crs: str = "", holes: Any = (), **properties: Any
) -> dict[str, Any]:
    """A polygon of pixels of an image, led to the map and from there to `crs`."""
    rings = [geo.to_map(np.array([*ring, ring[0]], float)) for ring in (line, *holes)]
    if crs:
        from rasterio.warp import transform

        rings = [np.stack(transform(geo.crs, crs, *ring.T), axis=1) for ring in rings]
    geometry = {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def layer(*features: dict[str, Any], crs: str | None = None) -> dict[str, Any]:
    named = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    return {"type": "FeatureCollection", "features": list(features), **named}


def ids(root: Path, name: str) -> np.ndarray:
    return read_mask(root / "masks_drawn" / name)


def test_our_own_predictions_give_their_masks_back(tmp_path):
    mask = np.random.default_rng(1).integers(0, 3, SIZE).astype(np.uint8)
    polygons = mask_polygons(mask, 3)
    photo(tmp_path / "plain.png")
    places = {"plain": None, "placed": tile(tmp_path / "placed.tif")}
    places["unnamed"] = tile(tmp_path / "unnamed.tif", crs=None)
    for name, geo in places.items():
        put(tmp_path / f"{name}.geojson", to_geojson(polygons, LABELS, geo=geo))
    write(tmp_path, draft(tmp_path))
    assert open_dataset(str(tmp_path), "train").labels.classes == ("a", "b", "c")
    for name in places:
        np.testing.assert_array_equal(ids(tmp_path, f"{name}.png"), mask)


def test_layers_over_tiles(tmp_path, capsys):
    geo = tile(tmp_path / "images" / "1.tif")
    tile(tmp_path / "images" / "2.tif", 1)
    tile(tmp_path / "images" / "far.tif", 50)
    hole = square(22, 4, 6)
    put(
        tmp_path / "layers" / "house.geojson",  # over both tiles, with a yard; of no class property
        layer(feature(square(20, 2, 16), geo, "OGC:CRS84", [hole], height=12.5)),
    )
    pond = feature(square(2, 2, 4), geo, CLASS="water")
    deep = [[[*point, -3.0] for point in ring] for ring in pond["geometry"]["coordinates"]]
    pond["geometry"] = {"type": "MultiPolygon", "coordinates": [deep]}
    path = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}
    both = layer(
        pond, {"type": "Feature", "properties": {"CLASS": "way"}, "geometry": path},
        feature(square(23, 5, 2), geo, "EPSG:32633", CLASS=7.0),
        crs="urn:ogc:def:crs:EPSG::32633",
    )  # fmt: skip
    put(tmp_path / "layers" / "rest.json", both)
    put(tmp_path / "classes.json", json.dumps({"7": "tree", "9": "car"}))
    assert main(["init-data", str(tmp_path)]) == OK
    said = capsys.readouterr().err
    assert "1 GeoJSON's LineString" in said
    assert "1 of 3 images have no outlines, left out: images/far.tif" in said
    classes = open_dataset(str(tmp_path), "train").labels.classes
    assert classes == ("tree", "house", "water", "background")
    tree, house, water, background = range(4)
    first, second = ids(tmp_path, "images/1.png"), ids(tmp_path, "images/2.png")
    expected = np.full((SIZE[0], 2 * SIZE[1]), background)
    expected[2:18, 20:36] = house
    expected[4:10, 22:28] = background
    expected[5:7, 23:25] = tree
    expected[2:6, 2:6] = water
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), expected)


def test_pixels_without_data_are_ignored(tmp_path):
    geo = tile(tmp_path / "a.tif", nodata=90, dtype="uint8")
    with pytest.importorskip("rasterio").open(tmp_path / "a.tif", "r+") as file:
        file.write(np.full((3, 10, SIZE[1]), 70, np.uint8), window=((5, 15), (0, SIZE[1])))
    put(tmp_path / "a.geojson", layer(feature(square(0, 0, 8), geo, "OGC:CRS84", name="house")))
    tile(tmp_path / "b.tif", 1)
    put(tmp_path / "b.geojson", layer())
    write(tmp_path, draft(tmp_path))
    mask = ids(tmp_path, "a.png")
    assert (mask[:5] == 255).all()
    assert (mask[15:] == 255).all()
    assert (mask[5:8, :8] == 0).all()
    assert (mask[8:15] == 1).all()


def test_a_file_without_areas_says_that_its_image_has_none(tmp_path):
    geo = tile(tmp_path / "a.tif")
    tile(tmp_path / "b.tif", 1)
    put(tmp_path / "a.geojson", layer(feature(square(0, 0, 4), geo, "OGC:CRS84", name="house")))
    put(tmp_path / "b.geojson", layer())
    write(tmp_path, draft(tmp_path))
    assert (ids(tmp_path, "b.png") == 1).all()


def test_all_problems_of_layers_are_told_at_once(tmp_path):
    geo = tile(tmp_path / "a.tif")
    photo(tmp_path / "x" / "twice.png")
    photo(tmp_path / "y" / "twice.png")
    good = feature(square(0, 0, 4), geo, "OGC:CRS84", name="house")
    put(tmp_path / "a.geojson", layer(feature(square(0, 0, 4), geo, "OGC:CRS84", height=3)))
    put(tmp_path / "metres.geojson", layer(feature(square(0, 0, 4), geo, label="house")))
    put(tmp_path / "west.geojson", layer(feature(square(-99, 0, 4), geo, "OGC:CRS84", label="a")))
    put(tmp_path / "odd.geojson", layer(good, crs="EPSG:nothing"))
    put(tmp_path / "twice.geojson", layer(good))
    broken = {"type": "Polygon", "coordinates": [[[0, 0], ["?", 1]]]}
    put(
        tmp_path / "bad.geojson",
        layer(good, {"geometry": broken, "properties": {}}, {**good, "properties": None}, {}),
    )
    said = refused(tmp_path)
    for part in (
        "8 problems with outlines (GeoJSON)",
        "a.geojson: no property called class or label or class_name or category or classification "
        "or name names the class; it has height; choose one with --class-key",
        "metres.geojson: cannot be reprojected from OGC:CRS84 to EPSG:32633",
        "west.geojson: none of its areas intersects any of 1 georeferenced images; check its "
        "reference system (OGC:CRS84)",
        "odd.geojson: unknown reference system 'EPSG:nothing'",
        "twice.geojson: image 'twice' may be x/twice.png or y/twice.png",
        "bad.geojson: feature 2 is not a valid area", "bad.geojson: feature 4 is not a valid area",
        "bad.geojson: feature 3 has no class: its property name is empty",
    ):  # fmt: skip
        assert part in said


def test_of_an_unknown_reference_system_proj_says_nothing_itself(tmp_path, capfd):
    geo = tile(tmp_path / "a.tif")
    put(tmp_path / "x.geojson", layer(feature(square(2, 2, 4), geo), crs="EPSG:999999"))
    assert "x.geojson: unknown reference system 'EPSG:999999'" in refused(tmp_path)
    assert "PROJ" not in capfd.readouterr().err


def test_another_property_names_the_class(tmp_path, capsys):
    geo = tile(tmp_path / "a.tif")
    field, wood = (
        feature(square(x, 0, 4), geo, "OGC:CRS84", Landuse=name)
        for x, name in ((0, "field"), (9, "wood"))
    )
    put(tmp_path / "area.geojson", layer(field, wood))
    assert main(["init-data", str(tmp_path)]) == OK
    said = (
        "area.geojson: all of class 'area', from the file name; --class-key names another property"
    )
    assert f"{said} (landuse)" in capsys.readouterr().err
    assert main(["init-data", str(tmp_path), "--overwrite", "--class-key", "landuse"]) == OK
    assert open_dataset(str(tmp_path), "train").labels.classes == ("field", "wood", "background")
    assert main(["init-data", str(tmp_path), "--overwrite", "--class-key", "use"]) != OK
    said = "area.geojson: no property called use names the class; it has landuse; choose one with"
    assert f"1 problem with outlines (GeoJSON): {said} --class-key" in capsys.readouterr().err


@pytest.mark.parametrize("in_a_collection", [True, False])
def test_annotations_of_qupath(tmp_path, in_a_collection):
    photo(tmp_path / "slide.png")
    shapes = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*line, line[0]]]},
            "properties": {"objectType": "annotation", "name": f"the {name} of this slide",
                           "classification": {"name": name, "color": [200, 0, 0]}},
        }
        for name, line in (("Tumor", square(0, 0, 9)), ("Stroma", square(12, 0, 4)))
    ]  # fmt: skip
    put(tmp_path / "slide.geojson", layer(*shapes) if in_a_collection else shapes)
    assert main(["init-data", str(tmp_path)]) == OK
    classes = open_dataset(str(tmp_path), "train").labels.classes
    assert classes == ("Stroma", "Tumor", "background")
    drawn = ids(tmp_path, "slide.png")
    assert [int((drawn == i).sum()) for i in (0, 1)] == [16, 81]


def test_a_class_key_is_for_geojson_alone(tmp_path, capsys):
    photo(tmp_path / "a.png")
    put(tmp_path / "a.json", labelme("a.png", shape("wall", square(0, 0, 9))))
    assert main(["init-data", str(tmp_path), "--class-key", "use"]) == USAGE
    assert (
        "--class-key use: is for GeoJSON, Shapefile, GeoPackage and VIA, and"
        in capsys.readouterr().err
    )


def test_a_layer_over_pictures_without_a_place(tmp_path, capsys):
    photo(tmp_path / "a.png")
    put(tmp_path / "houses.geojson", layer())
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    said = "houses.geojson: no image is called 'houses', and none is georeferenced"
    assert said in capsys.readouterr().err

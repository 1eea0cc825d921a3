"""Outlines in Shapefiles and GeoPackages, which geographic information systems write."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import setr._extras
from setr.cli import main
from setr.datasets import open_dataset
from setr.errors import OK, SetrError
from setr.init_data import draft, write
from setr.prediction.annotations import to_geojson, to_geopackage
from setr.prediction.outputs import parse_kinds
from setr.prediction.polygons import mask_polygons
from setr.reading.vectors import vector_layers

from .test_outlines import LABELS, SIZE, photo, put, refused, square
from .test_outlines_geojson import feature, ids, layer, tile

DRIVERS = {".shp": "ESRI Shapefile", ".gpkg": "GPKG"}


def wkb(geometry: dict[str, Any]) -> bytes:
    """Well-known binary of a GeoJSON geometry."""
    kind, points = geometry["type"], geometry.get("coordinates", [])
    if kind == "GeometryCollection":
        parts = [wkb(part) for part in geometry["geometries"]]
        return struct.pack("<BII", 1, 7, len(parts)) + b"".join(parts)
    if kind == "MultiPolygon":
        parts = [wkb({"type": "Polygon", "coordinates": part}) for part in points]
        return struct.pack("<BII", 1, 6, len(parts)) + b"".join(parts)
    if kind == "Point":
        return struct.pack("<BI2d", 1, 1, *points)
    if kind == "LineString":
        return struct.pack("<BII", 1, 2, len(points)) + np.array(points, float).tobytes()
    rings = [struct.pack("<I", len(ring)) + np.array(ring, float).tobytes() for ring in points]
    return struct.pack("<BII", 1, 3, len(rings)) + b"".join(rings)


def save(
    path: Path, *features: dict[str, Any], crs: str | None = "EPSG:32633", name: str = ""
) -> None:
    """Features in a Shapefile or a layer of a GeoPackage."""
    raw = pytest.importorskip("pyogrio.raw", reason='needs the extra: pip install "setr[geo]"')
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = list(features[0]["properties"]) if features else []
    kinds = {f["geometry"]["type"] for f in features if f["geometry"]}
    with warnings.catch_warnings():  # of a layer without a reference system
        warnings.simplefilter("ignore")
        raw.write(
            path,
            np.array([f["geometry"] and wkb(f["geometry"]) for f in features], object),
            [np.array([f["properties"][key] for f in features]) for key in keys],
            keys,
            driver=DRIVERS[path.suffix],
            layer=name or path.stem,
            crs=crs,
            geometry_type=kinds.pop() if len(kinds) == 1 else "Unknown",
            append=bool(name) and path.exists(),
        )


@pytest.mark.parametrize("suffix", list(DRIVERS))
def test_layers_give_the_masks_of_geojson(tmp_path, suffix):
    """The same outlines as in GeoJSON, here in a reference system other than the images'."""
    for folder in ("json", "file"):
        geo = tile(tmp_path / folder / "1.tif")
        tile(tmp_path / folder / "2.tif", 1)
    yard = [square(22, 4, 6)]
    shapes = (("house", 20, 2, 16, yard), ("pond", 2, 2, 4, ()), ("house", 4, 22, 9, ()))
    for crs, name in (("OGC:CRS84", "json/x.geojson"), ("EPSG:3857", f"file/x{suffix}")):
        features = [
            feature(square(x, y, side), geo, crs, holes, name=kind)
            for kind, x, y, side, holes in shapes
        ]
        if name.endswith(".geojson"):
            put(tmp_path / name, layer(*features))
        else:
            save(tmp_path / name, *features, crs=crs)
    for folder in ("json", "file"):
        write(tmp_path / folder, draft(tmp_path / folder))
    for name in ("1.png", "2.png"):
        np.testing.assert_array_equal(ids(tmp_path / "file", name), ids(tmp_path / "json", name))
    classes = open_dataset(str(tmp_path / "file"), "train").labels.classes
    assert classes == ("house", "pond", "background")


def test_a_geopackage_of_several_layers(tmp_path, capsys):
    """Layers are classes where no property names them; lines and points have no area."""
    geo = tile(tmp_path / "a.tif")
    parts = [feature(square(0, 0, 4), geo, height=2.5), feature(square(9, 9, 4), geo, height=7.0)]
    both = {"type": "MultiPolygon", "coordinates": [p["geometry"]["coordinates"] for p in parts]}
    point = {"type": "Point", "coordinates": [500_000, 5_400_000]}
    mixed = {"type": "GeometryCollection", "geometries": [point, parts[0]["geometry"]]}
    path = {"type": "LineString", "coordinates": [[500_000, 5_400_000], [500_009, 5_400_000]]}
    save(tmp_path / "x.gpkg", {**parts[0], "geometry": both}, name="houses")
    save(
        tmp_path / "x.gpkg",
        {**parts[1], "geometry": mixed},
        {**parts[1], "geometry": None},
        feature(square(20, 20, 4), geo, height=1.0),
        name="trees",
    )
    save(tmp_path / "x.gpkg", {**parts[1], "geometry": path}, name="roads")
    assert main(["init-data", str(tmp_path)]) == OK
    said = capsys.readouterr().err
    assert "1 GeoPackage's LineString" in said
    assert "1 GeoPackage's Point" in said
    for name in ("houses", "trees"):
        assert f"x.gpkg, layer '{name}': all of class '{name}', from the layer's name" in said
    expected = np.full(SIZE, 2)
    expected[9:13, 9:13] = 0
    expected[:4, :4] = 1  # the smaller of the two objects
    expected[20:24, 20:24] = 1
    np.testing.assert_array_equal(ids(tmp_path, "a.png"), expected)


def test_fields_of_other_names_and_numbers(tmp_path, capsys):
    """A field with numbers, and one that does not exist: the fields there are, in one line."""
    geo = tile(tmp_path / "a.tif")
    shapes = [feature(square(x, 0, 4), geo, code=code, area=1.0) for x, code in ((0, 7), (9, 9))]
    save(tmp_path / "x.shp", *shapes)
    put(tmp_path / "classes.json", '{"7": "tree", "9": "car"}')
    assert main(["init-data", str(tmp_path), "--class-key", "kind"]) != OK
    said = "1 problem with outlines (Shapefile): x.shp: no property called kind names the class"
    assert f"{said}; it has code, area; choose one with --class-key" in capsys.readouterr().err
    assert main(["init-data", str(tmp_path), "--class-key", "CODE"]) == OK
    assert open_dataset(str(tmp_path), "train").labels.classes == ("tree", "car", "background")
    assert (ids(tmp_path, "a.png")[:4, 9:13] == 1).all()


def test_a_file_for_each_image(tmp_path):
    geo = tile(tmp_path / "images" / "a.tif")
    east = tile(tmp_path / "images" / "b.tif", 1)
    save(tmp_path / "labels" / "a.gpkg", feature(square(2, 2, 4), geo, label="house"))
    save(tmp_path / "labels" / "b.gpkg", feature(square(0, 0, 3), east, label="tree"))
    write(tmp_path, draft(tmp_path))
    assert (ids(tmp_path, "images/a.png") == 0).sum() == 16
    assert (ids(tmp_path, "images/b.png") == 1).sum() == 9


def test_only_what_lies_on_the_images_is_read(tmp_path, monkeypatch):
    """Of a layer of a whole country, the few features near the images."""
    geo = tile(tmp_path / "a.tif")
    far = [feature(square(10_000 * i, 0, 4), geo, "EPSG:4326", label="far") for i in range(1, 40)]
    near = feature(square(2, 2, 4), geo, "EPSG:4326", label="near")
    save(tmp_path / "x.gpkg", near, *far, crs="EPSG:4326")
    seen = []
    read = vector_layers(tmp_path / "x.gpkg")[0].__class__.features
    monkeypatch.setattr(
        "setr.reading.vectors.VectorLayer.features",
        lambda self, box=None: seen.append(read(self, box)) or seen[-1],
    )
    write(tmp_path, draft(tmp_path))
    assert [len(features) for features in seen] == [1]
    assert (ids(tmp_path, "a.png") == 0).sum() == 16


def test_problems_of_files_are_told_in_one_line(tmp_path):
    geo = tile(tmp_path / "a.tif")
    good = feature(square(2, 2, 4), geo, label="house")
    save(tmp_path / "unplaced.shp", good, crs=None)
    save(tmp_path / "west.gpkg", feature(square(-9000, 0, 4), geo, label="house"))
    save(tmp_path / "cut.gpkg", good)
    (tmp_path / "cut.gpkg").write_bytes((tmp_path / "cut.gpkg").read_bytes()[:3000])
    (tmp_path / "other.shp").write_text('<OGRVRTDataSource><OGRVRTLayer name="x"/>')
    save(tmp_path / "bare.shp", good)
    (tmp_path / "bare.shx").unlink()
    said = refused(tmp_path)
    for part in (
        "5 problems with outlines (Shapefile and GeoPackage)",
        "unplaced.shp: names no reference system (its .prj file is missing); set it where it was "
        "drawn, in QGIS with Set Layer CRS",
        "west.gpkg: none of its areas intersects any of 1 georeferenced images; check its "
        "reference system (EPSG:32633)",
        "cut.gpkg: broken GeoPackage (", "other.shp: not a Shapefile",
        "bare.shp: broken Shapefile (",
    ):  # fmt: skip
        assert part in said


def test_outlines_over_pictures_without_a_place(tmp_path):
    """Coordinates are pixels, as in GeoJSON."""
    photo(tmp_path / "a.png")
    plain = {"type": "Polygon", "coordinates": [[*square(2, 2, 4), square(2, 2, 4)[0]]]}
    save(tmp_path / "a.shp", {"geometry": plain, "properties": {"label": "house"}}, crs=None)
    write(tmp_path, draft(tmp_path))
    assert (ids(tmp_path, "a.png") == 0).sum() == 16


def test_predicted_polygons_give_their_masks_back(tmp_path):
    """As GeoPackage, with and without a place on the map, and of no polygon at all."""
    pytest.importorskip("pyogrio", reason='needs the extra: pip install "setr[geo]"')
    mask = np.random.default_rng(1).integers(0, 3, SIZE).astype(np.uint8)
    polygons = mask_polygons(mask, 3)
    photo(tmp_path / "plain.png")
    for name, geo in (("plain", None), ("placed", tile(tmp_path / "placed.tif"))):
        (tmp_path / f"{name}.gpkg").write_bytes(to_geopackage(polygons, LABELS, geo=geo))
    (found,) = vector_layers(tmp_path / "placed.gpkg")
    assert (found.name, found.crs, found.total) == ("polygons", "EPSG:32633", len(polygons))
    expected = to_geojson(polygons, LABELS, geo=geo)["features"]
    for mine, theirs in zip(found.features(), expected, strict=True):
        assert mine["properties"] == theirs["properties"]
        rings = [ring.tolist() for ring in mine["geometry"]["coordinates"]]
        assert rings == theirs["geometry"]["coordinates"]
    tile(tmp_path / "none.tif", 3)
    (tmp_path / "none.gpkg").write_bytes(to_geopackage([], LABELS, geo=geo))
    write(tmp_path, draft(tmp_path))
    for name in ("plain", "placed"):
        np.testing.assert_array_equal(ids(tmp_path, f"{name}.png"), mask)
    assert (ids(tmp_path, "none.png") == 3).all()


def test_without_the_extra(tmp_path, monkeypatch):
    photo(tmp_path / "a.png")
    (tmp_path / "a.gpkg").write_bytes(b"SQLite format 3\0")
    found = setr._extras.importlib.import_module

    def missing(name: str) -> Any:
        if name.startswith("pyogrio"):
            raise ImportError
        return found(name)

    monkeypatch.setattr(setr._extras.importlib, "import_module", missing)
    with pytest.raises(SetrError, match=r'--save gpkg needs pyogrio; pip install "setr\[geo\]"'):
        parse_kinds("mask,gpkg")
    said = refused(tmp_path)
    assert 'a.gpkg: reading a GeoPackage needs pyogrio; pip install "setr[geo]"' in said


def test_triangles_and_measures(tmp_path, capsys):
    """Surfaces in space are left out and counted; measured polygons are read without warnings."""
    geo = tile(tmp_path / "a.tif")
    raw = pytest.importorskip("pyogrio.raw", reason='needs the extra: pip install "setr[geo]"')
    ring = geo.to_map(np.array([(2, 2), (8, 2), (8, 8), (2, 2)], float))
    triangle = struct.pack("<BIII", 1, 17, 1, 4) + ring.tobytes()
    surface = struct.pack("<BII", 1, 16, 1) + triangle
    other = wkb(feature(square(10, 10, 4), geo)["geometry"])
    measured = struct.pack("<BIII", 1, 2003, 1, 4) + np.insert(ring, 2, 7.0, axis=1).tobytes()
    kinds = np.array(["house"] * 2, object)
    options = {"crs": "EPSG:32633", "geometry_type": "Unknown"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = np.array([surface, other], object)
        raw.write(tmp_path / "x.gpkg", shapes, [kinds], ["class"], driver="GPKG", **options)
        shapes = np.array([measured], object)
        raw.write(
            tmp_path / "y.shp", shapes, [kinds[:1]], ["class"], driver="ESRI Shapefile", **options
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["init-data", str(tmp_path)]) == OK
    assert "1 GeoPackage's TIN" in capsys.readouterr().err
    found = ids(tmp_path, "a.png") == 0
    assert found[10:14, 10:14].all()
    assert 0 < found[:9, :9].sum() < 36


@pytest.mark.parametrize("cut", [1, 100])
def test_a_shapefile_that_is_cut_off(tmp_path, cut):
    """GDAL gives the features behind its end without their areas, and no error."""
    photo(tmp_path / "a.jpg")
    squares = [square(0, 0, 9), square(10, 0, 9)]
    areas = [{"type": "Polygon", "coordinates": [[*ring, ring[0]]]} for ring in squares]
    features = [
        {"geometry": area, "properties": {"class": name}}
        for area, name in zip(areas, ("a", "b"), strict=True)
    ]
    save(tmp_path / "a.shp", *features, crs=None)
    size = (tmp_path / "a.shp").stat().st_size
    os.truncate(tmp_path / "a.shp", size - cut)
    assert f"a.shp: cut off, {size - cut} of {size} bytes; copy it again" in refused(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_shapefiles_that_do_not_tell_their_encoding(tmp_path, encoding):
    geo = tile(tmp_path / "a.tif")
    save(tmp_path / "y.shp", feature(square(0, 0, 4), geo, label="Straße"))
    (tmp_path / "y.cpg").unlink()
    path = tmp_path / "y.dbf"
    text = "Straße".encode(encoding).ljust(len("Straße".encode()))
    path.write_bytes(path.read_bytes().replace("Straße".encode(), text))
    assert '- "Straße"\n' in draft(tmp_path).yaml


def test_classes_that_cannot_be_read(tmp_path):
    """An empty field, one of another type, and text in another encoding than its .cpg says."""
    geo = tile(tmp_path / "a.tif")
    shapes = [feature(square(x, 0, 4), geo, label=value) for x, value in ((0, 1.5), (9, np.nan))]
    save(tmp_path / "x.gpkg", *shapes)
    save(tmp_path / "y.shp", feature(square(0, 0, 4), geo, label="Straße"))
    (tmp_path / "y.cpg").write_text("UTF-8")
    path = tmp_path / "y.dbf"
    path.write_bytes(path.read_bytes().replace("ß".encode(), b"\xdf "))
    said = refused(tmp_path)
    assert "x.gpkg: feature 1 has no class: its property label is 1.5; give a name or an id" in said
    assert "x.gpkg: feature 2 has no class: its property label is nan" in said
    assert "y.shp: its text is not in utf-8; correct the encoding in its .cpg file" in said

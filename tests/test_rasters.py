"""GeoTIFF: georeference kept, windows without seams, memory of a strip, labels in map units."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import setr
from setr import inference
from setr.cli import main
from setr.data import scenes
from setr.errors import FAILED, INTERRUPTED, OK, USAGE, SetrError
from setr.hub import save_pretrained
from setr.labels import IGNORE, Labels
from setr.prediction import mapping, rasters
from setr.prediction.annotations import to_geojson
from setr.prediction.ground import ClassAreas, Georeference
from setr.prediction.mapping import predict_raster
from setr.prediction.outputs import write
from setr.prediction.polygons import mask_polygons, signed_area, simplified
from setr.prediction.rasters import Raster
from setr.prediction.shares import area_text
from setr.predictor import Predictor
from setr.reading.gdal import is_georeferenced
from tests.conftest import scene_predictor

rasterio = pytest.importorskip("rasterio", reason='needs the extra: pip install "setr[geo]"')
TRANSFORM = rasterio.Affine(0.5, 0.0, 500_000.0, 0.0, -0.5, 5_400_000.0)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return scene_predictor(info={"crop_size": (32, 32)})


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    parts = [scenes.draw("map", i, size=64)[0] for i in range(4)]
    return np.concatenate(parts, axis=1)[:60, :230]


def write_tiff(path: Path, bands: np.ndarray, **profile: object) -> Path:
    """Bands (n, H, W) with a georeference unless `profile` says otherwise."""
    settings = {"crs": "EPSG:32633", "transform": TRANSFORM, **profile}
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **settings) as file:
        file.write(bands)
    return path


def test_labels_keep_the_georeference(predictor, pixels, tmp_path):
    path = write_tiff(tmp_path / "map.tif", pixels.transpose(2, 0, 1))
    out = {"mask": tmp_path / "o" / "l.tif", "confidence": tmp_path / "o" / "c.tif"}
    shares = predict_raster(predictor, path, out)["shares"]
    expected = predictor.predict(path)
    with rasterio.open(out["mask"]) as file:
        assert (file.crs, file.transform) == (rasterio.CRS.from_epsg(32633), TRANSFORM)
        assert (file.nodata, file.dtypes, file.profile["tiled"]) == (IGNORE, ("uint8",), True)
        np.testing.assert_array_equal(file.read(1), expected.mask)
        assert file.colormap(1)[3] == (*scenes.LABELS.colours[3], 255)
        assert file.tags()["class_3"] == scenes.LABELS.classes[3]
    with rasterio.open(out["confidence"]) as file:
        assert file.transform == TRANSFORM
        np.testing.assert_allclose(file.read(1) / 255, expected.confidence, atol=0.003)
    assert shares == pytest.approx(expected.shares)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["c.tif", "l.tif"]


@pytest.mark.parametrize("strip", [1, 40, 64])
def test_strips_give_the_labels_of_the_whole(predictor, pixels, tmp_path, strip):
    path = write_tiff(tmp_path / "map.tif", pixels[:40, :100].transpose(2, 0, 1))
    predict_raster(predictor, path, {"mask": tmp_path / "l.tif"}, strip=strip)
    with rasterio.open(tmp_path / "l.tif") as file:
        np.testing.assert_array_equal(file.read(1), predictor.predict(path).mask)


def test_pixels_are_read_window_by_window(predictor, tmp_path, monkeypatch):
    tall = np.zeros((3, 700, 96), np.uint8)
    path = write_tiff(tmp_path / "map.tif", tall, tiled=True, blockxsize=16, blockysize=16)
    sizes, original = [], Raster.read

    def watched(raster: Raster, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        found = original(raster, rows, columns)
        sizes.append(found.shape[0] * found.shape[1])
        return found

    monkeypatch.setattr(Raster, "read", watched)
    predict_raster(predictor, path, {"mask": tmp_path / "l.tif"}, strip=64)
    assert max(sizes) == 32 * 32
    with pytest.raises(SetrError, match="above the limit of 1,000"):
        Predictor(predictor.model, predictor.info, max_pixels=1000).predict(path)


def test_without_data_there_is_no_label(predictor, pixels, tmp_path):
    bands = pixels[:40, :60].transpose(2, 0, 1).copy()
    bands[:, :10] = 0
    path = write_tiff(tmp_path / "map.tif", bands, nodata=0)
    empty = (bands == 0).all(axis=0)
    result = predictor.predict(path)
    np.testing.assert_array_equal(result.mask == IGNORE, empty)
    assert sum(result.shares.values()) == pytest.approx(1)
    predict_raster(predictor, path, {"mask": tmp_path / "l.tif"})
    with rasterio.open(tmp_path / "l.tif") as file:
        np.testing.assert_array_equal(file.read(1), result.mask)
        np.testing.assert_array_equal(file.dataset_mask() == 0, empty)


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_without_data_there_is_no_confidence(predictor, pixels, tmp_path, least):
    """Neither in the raster, where a program would count it, nor in the mean."""
    bands = pixels[:40, :60].transpose(2, 0, 1).copy()
    plain = predictor.predict(write_tiff(tmp_path / "whole.tif", bands))
    bands[:, 30:] = 0
    path = write_tiff(tmp_path / "map.tif", bands, nodata=0)
    own = Predictor(predictor.model, predictor.info, precision="fp32", min_confidence=least)
    result = own.predict(path)
    found = predict_raster(own, path, {"confidence": tmp_path / "c.tif"}, strip=40)
    result.save(tmp_path / "saved.tif", "confidence")
    for file in ("c.tif", "saved.tif"):
        with rasterio.open(tmp_path / file) as opened:
            np.testing.assert_array_equal(opened.dataset_mask() == 0, (bands == 0).all(axis=0))
            mean = np.ma.mean(opened.read(1, masked=True)) / 255
    assert result.share()["mean_confidence"] == pytest.approx(mean, abs=2e-3)
    assert found["mean_confidence"] == pytest.approx(result.share()["mean_confidence"])
    assert plain.share()["mean_confidence"] == pytest.approx(float(plain.confidence.mean()))
    result.save(tmp_path / "ids.tif", "ids")
    with rasterio.open(tmp_path / "ids.tif") as opened:
        np.testing.assert_array_equal(opened.dataset_mask() == 0, result.mask == IGNORE)


def test_what_has_no_data_is_told_row_by_row(predictor, pixels, tmp_path, monkeypatch):
    """Labels come in blocks of rows, and each has rows of its own without data."""
    monkeypatch.setitem(inference.BLOCK_BYTES, "cpu", 1)
    bands = pixels[:40, :60].transpose(2, 0, 1).copy()
    bands[:, 21:33, 5:50] = 0
    path = write_tiff(tmp_path / "map.tif", bands, nodata=0)
    predict_raster(predictor, path, {"mask": tmp_path / "l.tif"})
    with rasterio.open(tmp_path / "l.tif") as file:
        np.testing.assert_array_equal(file.read(1) == IGNORE, (bands == 0).all(axis=0))


def test_unsure_pixels_of_a_map_are_unlabelled(predictor, pixels, tmp_path):
    bands = pixels[:40, :60].transpose(2, 0, 1).copy()
    bands[:, :10] = 0
    path = write_tiff(tmp_path / "map.tif", bands, nodata=0)
    plain = predictor.predict(path)
    least = float(np.median(plain.confidence))
    strict = Predictor(predictor.model, predictor.info, precision="fp32", min_confidence=least)
    result = strict.predict(path)
    unsure = plain.confidence < least
    expected = np.where(unsure, IGNORE, plain.mask)
    np.testing.assert_array_equal(result.mask, expected)
    with_data = (plain.mask != IGNORE).sum()
    assert result.unsure == (unsure & (plain.mask != IGNORE)).sum()
    assert sum(result.shares.values()) == pytest.approx((expected != IGNORE).sum() / with_data)
    for kinds in (("mask",), ("mask", "confidence")):
        out = {k: tmp_path / f"{k}.tif" for k in kinds}
        shares = predict_raster(strict, path, out, strip=40)["shares"]
        assert shares == pytest.approx(result.shares)
        with rasterio.open(tmp_path / "mask.tif") as file:
            np.testing.assert_array_equal(file.read(1), expected)
    with rasterio.open(tmp_path / "confidence.tif") as file:
        np.testing.assert_allclose(file.read(1) / 255, plain.confidence, atol=0.003)


def test_bands_and_value_ranges(tmp_path, pixels):
    wide = pixels.transpose(2, 0, 1).astype(np.uint16) * 10
    four = np.concatenate([np.zeros_like(wide[:1]), wide[::-1]])
    path = write_tiff(tmp_path / "four.tif", four)
    H, W = pixels.shape[:2]
    with Raster(path, bands=(4, 3, 2), value_range=(0, 2550)) as raster:
        np.testing.assert_array_equal(raster.read((0, H), (0, W)), pixels)
    with Raster(path, bands=(2,)) as raster:
        grey = raster.read((5, 9), (1, 8))
        assert grey.shape == (4, 7, 3)
        np.testing.assert_array_equal(grey[..., 0], np.rint(four[1, 5:9, 1:8] / 257))
    floats = write_tiff(tmp_path / "floats.tif", np.full((1, 4, 4), np.nan, np.float32))
    with Raster(floats, value_range=(0, 1)) as raster:
        assert (raster.read((0, 4), (0, 4)) == 0).all()
    for wrong, reason in (
        ({"bands": (5, 2, 1)}, "bands 5,2,1: give one or three of 1 to 4"),
        ({"bands": (1, 2)}, "give one or three"),
        ({"value_range": (9.0, 1.0)}, "give low, then high"),
    ):
        with pytest.raises(SetrError, match=reason):
            Raster(path, **wrong)
    with pytest.raises(SetrError, match="has float32 values; give the range"):
        Raster(floats)


def test_a_colour_table_is_applied_unless_bands_are_named(pixels, tmp_path):
    colours, indices = np.unique(
        pixels[:40, :60].reshape(-1, 3) // 64 * 64, axis=0, return_inverse=True
    )
    path = write_tiff(tmp_path / "map.tif", indices.reshape(1, 40, 60).astype(np.uint8))
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (*map(int, c), 255) for i, c in enumerate(colours)})
    with Raster(path) as raster:
        np.testing.assert_array_equal(raster.read((0, 40), (0, 60)), pixels[:40, :60] // 64 * 64)
    with Raster(path, bands=(1,)) as raster:
        found = raster.read((0, 40), (0, 60))
    np.testing.assert_array_equal(found[..., 0].ravel(), indices.ravel())


def test_what_has_a_georeference(shared, tmp_path):
    tiny = np.zeros((1, 4, 4), np.uint8)
    assert is_georeferenced(write_tiff(tmp_path / "a.tif", tiny))
    assert is_georeferenced(write_tiff(tmp_path / "b.TIFF", tiny, BIGTIFF="YES"))
    Image.fromarray(tiny[0]).save(tmp_path / "plain.tif")
    assert not is_georeferenced(tmp_path / "plain.tif")
    assert not is_georeferenced(shared / "data" / "odd_inputs" / "images" / "photo.tif")
    for name, data in (("text.tif", b"text"), ("empty.tif", b""), ("cut.tif", b"II*\0\x10")):
        (tmp_path / name).write_bytes(data)
        assert not is_georeferenced(tmp_path / name)
    assert not is_georeferenced(tmp_path / "gone.tif")
    assert not is_georeferenced(b"II*\0")


def test_broken_rasters_and_folders_are_one_line(predictor, pixels, tmp_path):
    path = write_tiff(tmp_path / "map.tif", np.tile(pixels, (4, 2, 1)).transpose(2, 0, 1))
    cut = tmp_path / "cut.tif"
    cut.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(SetrError, match=r"cut\.tif: broken GeoTIFF") as caught:
        predict_raster(predictor, cut, {"mask": tmp_path / "l.tif"})
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.tif", "map.tif"]
    (tmp_path / "file").write_text("")
    with pytest.raises(SetrError, match=r"file: cannot make this folder"):
        predict_raster(predictor, path, {"mask": tmp_path / "file" / "l.tif"})


def test_without_the_extra_the_georeference_is_not_dropped(predictor, tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "map.tif", np.zeros((3, 8, 8), np.uint8))
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(SetrError, match=r'pip install "setr\[geo\]"'):
        predictor.predict(path)


def test_geojson_in_map_units(predictor, pixels, tmp_path):
    path = write_tiff(tmp_path / "map.tif", pixels.transpose(2, 0, 1))
    result = predictor.predict(path)
    mask, geojson = write(result, tmp_path / "labels", ("mask", "geojson"))
    assert mask.name == "labels.tif"
    collection = json.loads(geojson.read_text())
    assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    area = sum(
        signed_area(np.array(ring[:-1]))
        for feature in collection["features"]
        for ring in feature["geometry"]["coordinates"]
    )
    assert area == pytest.approx(60 * 230 * 0.25)
    shapes = [(f["geometry"], f["properties"]["class_id"]) for f in collection["features"]]
    features = pytest.importorskip("rasterio.features")
    again = features.rasterize(shapes, (60, 230), fill=255, transform=TRANSFORM)
    np.testing.assert_array_equal(again, result.mask)


def test_rasters_from_the_command_line(predictor, pixels, tmp_path, capsys):
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    write_tiff(folder / "sub" / "map.tif", pixels.transpose(2, 0, 1))
    Image.fromarray(pixels).save(folder / "plain.tif")
    command = ["predict", str(tmp_path / "model"), str(folder), "-o", str(out)]
    assert main(command) == OK
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        "manifest.jsonl",
        "plain.png",
        "sub/map.tif",
    ]
    path = str(folder / "sub" / "map.tif")
    options = ["--bands", "3,2,1", "--value-range", "0,255"]
    assert main([*command[:2], path, "-o", str(out), "--save", "geojson,mask", *options]) == OK
    assert {"map.tif", "map.geojson"} <= {p.name for p in out.iterdir()}
    capsys.readouterr()
    assert main([*command[:2], path, "-o", str(out), "--bands", "7,8,9"]) == FAILED
    assert "give one or three of 1 to 3" in capsys.readouterr().err


def test_a_raster_is_never_overwritten(predictor, pixels, tmp_path, monkeypatch, capsys):
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    for folder in (tmp_path, tmp_path / "out"):
        folder.mkdir(exist_ok=True)
        write_tiff(folder / "map.tif", pixels.transpose(2, 0, 1))
    before = (tmp_path / "map.tif").read_bytes()
    monkeypatch.chdir(tmp_path)
    for source in ("map.tif", "."):
        assert main(["predict", "model", source, "-o", "."]) == USAGE
        assert "map.tif: is an input" in capsys.readouterr().err
    assert (tmp_path / "map.tif").read_bytes() == before
    views_of_images = (
        *(("--protocol", "whole"), ("--scales", "0.5", "1.0")),
        *(("--flip",), ("--short-side", "50")),
    )
    for views in views_of_images:
        assert main(["predict", "model", "map.tif", "-o", "out", *views]) == USAGE
        err = capsys.readouterr().err
        assert err.startswith(f"setr: {' '.join(views)}: resizes or mirrors images, and map.tif is")
    for averaged in ({"scales": (0.5, 1.0)}, {"flip": True}, {"short_side": 50}):
        with pytest.raises(SetrError, match=r"map\.tif: .* without scales, flip and short_side"):
            setr.load("model", **averaged).predict("map.tif")
    foreign = tmp_path / "out" / "map.tif"
    assert main(["predict", "model", ".", "-o", "out"]) == USAGE
    assert "map.tif: is there already, and no manifest" in capsys.readouterr().err
    foreign.rename(foreign.with_name("drawn.tif"))
    assert main(["predict", "model", ".", "-o", "out", "--json"]) == OK
    images = json.loads(capsys.readouterr().out)["images"]
    assert [image["image"] for image in images] == ["map.tif"]  # and not what lies in OUT


def test_the_strip_bounds_what_is_held(predictor, pixels, tmp_path, monkeypatch):
    """Label blocks are as wide as a strip, whatever the raster."""
    path = write_tiff(tmp_path / "map.tif", pixels.transpose(2, 0, 1))
    widths, original = [], rasters.RasterWriter.write

    def watched(writer: object, values: np.ndarray, row: int, column: int) -> None:
        widths.append(values.shape[1])
        original(writer, values, row, column)  # type: ignore[arg-type]

    monkeypatch.setattr(mapping.RasterWriter, "write", watched)
    predict_raster(predictor, path, {"mask": tmp_path / "l.tif"}, strip=50)
    assert max(widths) == 50


def test_what_a_killed_run_left_of_a_raster_goes_with_the_next(predictor, pixels, tmp_path):
    path = write_tiff(tmp_path / "map.tif", pixels.transpose(2, 0, 1))
    code = """if True:
        import os
        from pathlib import Path
        import numpy as np
        from setr.prediction.annotations import Georeference
        from setr.prediction.rasters import RasterWriter
        SIZE, HERE = (600, 600), Georeference("", (1, 0, 0, 0, 1, 0))
        with RasterWriter(Path("l.tif"), SIZE, HERE, "mask") as file:
            file.write(np.ones(SIZE, np.uint8), 0, 0)
            os._exit(0)
    """
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert len(os.listdir(tmp_path)) == 2
    predict_raster(predictor, path, {"mask": tmp_path / "l.tif"})
    assert sorted(os.listdir(tmp_path)) == ["l.tif", "map.tif"]


@pytest.mark.parametrize("save", ["mask", "geojson"])
def test_a_signal_ends_the_raster_at_hand(predictor, pixels, tmp_path, monkeypatch, capsys, save):
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    path, out = write_tiff(tmp_path / "map.tif", pixels.transpose(2, 0, 1)), tmp_path / "out"
    command = ["predict", str(tmp_path / "model"), str(path), "-o", str(out), "--save", save]
    calls, read = [], Raster.read

    def struck(raster: Raster, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        calls.append(rows)
        if len(calls) == (2 if save == "mask" else 1):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does
        return read(raster, rows, columns)

    with monkeypatch.context() as patch:
        patch.setattr(Raster, "read", struck)
        assert main(command) == INTERRUPTED
    assert len(calls) == (2 if save == "mask" else 1)
    assert "stopped; 1 images are left" in capsys.readouterr().err
    assert os.listdir(out) == ["manifest.jsonl"]
    assert main(command) == OK
    assert len(os.listdir(out)) == 2


def test_areas_are_those_on_the_ground_whatever_the_reference_system(predictor, pixels, tmp_path):
    """Compared with the ellipsoid's own formulas: UTM's scale, and the length of degrees."""
    bands, places = pixels.transpose(2, 0, 1), {}
    step = 1e-5
    places["EPSG:32633"] = TRANSFORM, (0.5 / 0.9996) ** 2  # at the central meridian
    places["EPSG:4326"] = rasterio.Affine(step, 0, 15, 0, -step, 50), _degree(50) * step**2
    mercator = np.log(np.tan(np.pi / 4 + np.radians(60) / 2)) * 6378137
    places["EPSG:3857"] = rasterio.Affine(2, 0, 0, 0, -2, mercator), 4 * _mercator(60)
    for crs, (transform, square) in places.items():
        path = write_tiff(tmp_path / "map.tif", bands, crs=crs, transform=transform)
        result = predictor.predict(path)
        expected = {name: n * square for name, n in result.share()["pixels"].items()}
        assert result.areas == pytest.approx(expected, rel=2e-3), crs
        assert result.share()["area_m2"] == result.areas
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    path = write_tiff(tmp_path / "local.tif", bands, crs=local)
    result = predictor.predict(path)
    assert result.geo
    assert result.areas == {}
    assert "area_m2" not in result.share()
    assert predictor.predict(pixels).areas == {}


@pytest.mark.parametrize("degrees", [0.01, 0.25, 1.0])
def test_areas_of_coarse_pixels_are_those_of_their_own_latitude(degrees):
    """Halves of a block, whose rows differ in size; compared with the ellipsoid's zones."""
    top, (h, w) = 70.0, (64, 90)
    geo = Georeference("EPSG:4326", (degrees, 0, 10, 0, -degrees, top))
    mask = np.repeat(np.arange(2, dtype=np.uint8), h // 2)[:, None].repeat(w, axis=1)
    found = ClassAreas(geo, 2)
    found.add(mask)
    ends = top - degrees * np.array([0, h // 2, h])
    expected = -np.diff(_below(ends)) * np.radians(degrees * w)
    assert found.by_class("ab") == pytest.approx(dict(zip("ab", expected, strict=True)), rel=5e-5)


def _below(latitude: np.ndarray) -> np.ndarray:
    """Square metres per radian of longitude from the equator to a latitude."""
    a, e2 = 6378137.0, 0.00669437999014
    sine, e = np.sin(np.radians(latitude)), np.sqrt(e2)
    logarithm = np.log((1 + e * sine) / (1 - e * sine)) / (2 * e)
    return a**2 * (1 - e2) / 2 * (sine / (1 - e2 * sine**2) + logarithm)


@pytest.mark.parametrize(
    ("crs", "middle", "scale"),
    [
        ("EPSG:32760", (819_452, 8_118_000), 1.00086),  # UTM 60S in Fiji, where the map is 180°
        ("EPSG:3031", (0, -2e6), 0.99788),  # Antarctica, at 180°
        ("EPSG:3031", (0, 0), 0.97276),  # at the South Pole
    ],
)
def test_areas_are_right_where_other_maps_end(crs, middle, scale):
    side = 200
    geo = Georeference(crs, (side, 0, middle[0] - 256 * side, 0, -side, middle[1] + 32 * side))
    found = ClassAreas(geo, 1)
    found.add(np.zeros((64, 512), np.uint8))
    assert found.by_class("a")["a"] == pytest.approx(64 * 512 * (side / scale) ** 2, rel=2e-3)


@pytest.mark.parametrize("tolerance", [0, 2])
def test_areas_of_large_regions_are_those_of_their_pixels(tolerance):
    """A region whose pixels are mostly in the north of its box, and one row of pixels."""
    mask = np.full((300, 80), 255, np.uint8)
    mask[0:20], mask[:, 0:3], mask[40, 10:] = 0, 0, 1
    geo = Georeference("EPSG:4326", (0.1, 0, 10, 0, -0.1, 75))
    whole = ClassAreas(geo, 2)
    whole.add(mask)
    polygons = [simplified(p, tolerance) for p in mask_polygons(mask, 2)]
    features = to_geojson(polygons, Labels(("a", "b")), geo=geo)["features"]
    found = {f["properties"]["class"]: f["properties"]["area_m2"] for f in features}
    assert found == pytest.approx(whole.by_class("ab"), rel=0.03 if tolerance else 1e-6)


def _degree(latitude: float) -> float:
    """Square metres of a square degree on the ellipsoid of WGS 84."""
    a, e2 = 6378137.0, 0.00669437999014
    sine = np.sin(np.radians(latitude))
    along = a * np.cos(np.radians(latitude)) / np.sqrt(1 - e2 * sine**2)
    up = a * (1 - e2) / (1 - e2 * sine**2) ** 1.5
    return along * up * np.radians(1) ** 2


def _mercator(latitude: float) -> float:
    """Square metres on the ground of a square metre in Web Mercator."""
    per_degree = 6378137 * np.radians(1)
    return _degree(latitude) / (per_degree**2 / np.cos(np.radians(latitude)))


@pytest.mark.parametrize("unsure", [False, True])
def test_a_share_file_needs_no_raster_in_memory(
    predictor, pixels, tmp_path, monkeypatch, capsys, unsure
):
    path = write_tiff(tmp_path / "map.tif", pixels.transpose(2, 0, 1))
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    least = float(np.median(predictor.predict(path).confidence)) if unsure else 0.0
    options = {"precision": "fp32", "min_confidence": least}
    expected = setr.load(tmp_path / "model", **options).predict(path)
    monkeypatch.setattr(Predictor, "predict", None)
    words = ["predict", str(tmp_path / "model"), str(path), "-o", str(tmp_path / "out")]
    words += ["--min-confidence", str(least), "--precision", "fp32"]
    assert main([*words, "--save", "mask,share"]) == OK
    found = json.loads((tmp_path / "out" / "map_share.json").read_text())
    plain = expected.share()
    for key in ("area_m2", "shares", "mean_confidence"):
        assert found.pop(key) == pytest.approx(plain.pop(key), rel=1e-6)
    assert found == plain
    row = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert (row["width"], row["height"]) == (pixels.shape[1], pixels.shape[0])
    assert row["classes"] == pytest.approx(expected.shares, abs=1e-6)
    assert row["area_m2"] == pytest.approx(expected.areas, abs=1e-3)
    name, area = next(iter(expected.areas.items()))
    assert f"{name} {expected.shares[name]:.0%} ({area_text(area)})" in capsys.readouterr().out


def test_polygons_of_a_map_have_their_area(predictor, pixels, tmp_path):
    path = write_tiff(tmp_path / "map.tif", pixels.transpose(2, 0, 1))
    result = predictor.predict(path)
    sums = dict.fromkeys(result.areas, 0.0)
    for feature in result.geojson()["features"]:
        sums[feature["properties"]["class"]] += feature["properties"]["area_m2"]
    assert sums == pytest.approx(result.areas, rel=1e-4)
    raw = pytest.importorskip("pyogrio.raw")
    file = tmp_path / "map.gpkg"
    result.save(file, "gpkg")
    meta, _, _, columns = raw.read(file)
    assert dict(zip(meta["fields"], columns, strict=True))["area_m2"].sum() == pytest.approx(
        sum(result.areas.values()), rel=1e-4
    )


@pytest.mark.parametrize(
    ("square_metres", "text"),
    [(850.0, "850 m²"), (1000.0, "0.1 ha"), (123_456.0, "12.35 ha"), (2.5e8, "25,000 ha")],
)
def test_areas_are_shown_in_hectares(square_metres, text):
    assert area_text(square_metres) == text

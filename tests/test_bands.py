"""Images with other bands than red, green and blue: model, data, training, prediction."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import setr
from setr import bands
from setr.bands import Bands, check_pixels, open_pixels, read_pixels
from setr.cli import main
from setr.config import ModelConfig
from setr.crop_window import CropWindow
from setr.data import scenes
from setr.data.data_yaml import read_description
from setr.datasets import open_dataset
from setr.doctor import check
from setr.errors import DATA_CHECK_FAILED, FAILED, OK, USAGE, SetrError
from setr.export import metadata
from setr.exporting.graphs import Graph, trace
from setr.hub import from_pretrained, save_pretrained
from setr.images import encode_png
from setr.labels import IGNORE
from setr.model import create_model
from setr.model_info import ModelInfo
from setr.prediction.filming import predict_video
from setr.prediction.rasters import Raster
from setr.predictor import Predictor
from setr.reading import gdal
from setr.reading.arrays import as_image
from setr.reading.gdal import GdalFile
from setr.training.normalisation import measured, with_channels
from setr.transforms import Augmentation, distort
from setr.weight_files.architecture import read_architecture
from setr.weight_files.dialects import translate
from setr.weights import load_weights, match_weights
from tests.conftest import tiny_config, tiny_model
from tests.test_images import in_one_tile

STEM = "encoder.vit.patch_embed.proj.weight"
FOUR = Bands((1, 2, 3, 4), ((0.0, 2550.0),))


def info_of(channels: int, **values: object) -> ModelInfo:
    return ModelInfo(scenes.LABELS, (0.4,) * channels, (0.2,) * channels, **values)  # type: ignore[arg-type]


def write_tiff(path: Path, values: np.ndarray, *, placed: bool = True) -> Path:
    """Bands (n, H, W), with a georeference or without."""
    rasterio = pytest.importorskip("rasterio", reason='needs the extra: pip install "setr[geo]"')
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5.4e6)}
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", **shape, **(place if placed else {})) as file:
        file.write(values)
    return path


def tile(split: str, index: int, size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A drawn scene with a fourth band that sees trees: uint8 (H, W, 4), and its ids."""
    image, mask = scenes.draw(split, index, size=size)
    near = np.where(mask == scenes.LABELS.classes.index("tree"), 220, 30 + index).astype(np.uint8)
    return np.concatenate([image, near[..., None]], axis=2), mask


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """A data set of GeoTIFF files: four bands of 16 bits, 0 to 2550."""
    root = tmp_path / "tiles"
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            image, mask = tile(split, index)
            values = image.transpose(2, 0, 1).astype(np.uint16) * 10
            write_tiff(root / "images" / split / f"t{index}.tif", values)
            file = root / "labels" / split / f"t{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_png(mask))
    names = ", ".join(scenes.CLASSES)
    (root / "data.yaml").write_text(
        f"classes: [{names}]\nignore: 255\nbands: [1, 2, 3, 4]\nvalue_range: [0, 2550]\n"
    )
    return root


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_rgb_weights_are_adapted_as_timm_does(channels, tmp_path):
    """Summed for one channel, else repeated and scaled; never the other way round."""
    rgb = tiny_model("naive")
    state = {k: v for k, v in rgb.state_dict().items() if k.startswith("encoder.")}
    path = tmp_path / "encoder.safetensors"
    save_file({k.removeprefix("encoder.vit."): v for k, v in state.items()}, path)
    model, weight = tiny_model("naive", in_chans=channels), state[STEM]
    report = load_weights(model, path)
    summed = weight.sum(dim=1, keepdim=True)
    wide = weight.repeat(1, 2, 1, 1)[:, :channels] * (3 / channels)
    torch.testing.assert_close(model.state_dict()[STEM], summed if channels == 1 else wide)
    assert (report.adapted, report.missing) == ([STEM], [])
    assert f"adapted from RGB to the model's channels: {STEM}" in str(report)
    with pytest.raises(SetrError, match=rf"{STEM} is \(32, {channels}, 8, 8\)"):
        match_weights(rgb, translate(model.state_dict(), "x"), "x")
    with pytest.raises(SetrError, match=rf"{STEM} is \(32, {channels}, 8, 8\)"):
        match_weights(
            tiny_model("naive", in_chans=5), translate(model.state_dict(), "x"), "x"
        )  # only those of RGB can be adapted


@pytest.mark.parametrize("name", ["setr_mla_nano", "hybrid_base", "semantic_fpn_r101"])
def test_models_of_other_channels_come_back_from_their_folder(name, tmp_path):
    small = {"encoder_args": {"embed_dim": 24, "depth": 4, "num_heads": 2}, "img_size": 32}
    if name == "semantic_fpn_r101":
        small = {"encoder": "resnet10t"}
    elif name == "hybrid_base":
        small |= {"resnet": "resnet10t", "channels": 8}
    model = create_model(name, num_classes=len(scenes.CLASSES), in_chans=4, **small).eval()
    save_pretrained(tmp_path, model, info_of(4, bands=FOUR))
    again, info = from_pretrained(tmp_path)
    assert (again.encoder.in_chans, info) == (4, info_of(4, bands=FOUR))
    images = torch.randn(1, 4, 41, 50)
    with torch.inference_mode():
        torch.testing.assert_close(again(images), model(images))
    with pytest.raises(SetrError, match="the model takes 4 channels; give ModelInfo one value"):
        Predictor(model, info_of(3))
    with pytest.raises(SetrError, match="in_chans 0: give at least one") as caught:
        create_model(name, num_classes=2, in_chans=0)
    assert caught.value.code == USAGE


def test_a_foreign_checkpoint_tells_its_channels():
    model = tiny_model("pup", in_chans=6)
    found = dataclasses.replace(translate(model.state_dict(), "x"), dialect="mmseg")
    arguments = read_architecture(found, {}, source="x", num_heads=2, img_size=32)
    assert arguments["encoder_args"]["in_chans"] == 6


def test_nothing_new_is_stored_with_an_rgb_model(tmp_path):
    save_pretrained(tmp_path, tiny_model("naive", len(scenes.CLASSES)), ModelInfo(scenes.LABELS))
    values = json.loads((tmp_path / "config.json").read_text())
    assert not {"bands", "value_range"} & set(values)
    assert "in_chans" not in values["model"]["encoder_args"]


# --- the data -------------------------------------------------------------------------------------


def test_bands_are_read_in_order_and_range(tmp_path):
    values = np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5) * 20 - 100
    path = write_tiff(tmp_path / "x.tif", values, placed=False)
    pairs = ((0.0, 1000.0), (-100.0, 100.0))
    found = bands.open_pixels(path, Bands((3, 1), pairs))
    assert found.shape == (6, 5, 2)
    for place, (number, (low, high)) in enumerate(zip((3, 1), pairs, strict=True)):
        scaled = (values[number - 1] - low) * 255 / (high - low)
        expected = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(found[:][..., place], expected)
        np.testing.assert_array_equal(found[2:4, 1:3][..., place], expected[2:4, 1:3])
    again = read_pixels(path.read_bytes(), Bands((3, 1), pairs))
    np.testing.assert_array_equal(again, found[:])


def test_sixteen_bits_of_colours_are_scaled_without_a_georeference(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (3, 6, 5)).astype(np.uint16)
    path = write_tiff(tmp_path / "x.tif", values, placed=False)
    expected = np.rint(values.transpose(1, 2, 0) / 257)
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(read_pixels(source, None), expected)
        np.testing.assert_array_equal(open_pixels(source, None)[2:4], expected[2:4])
        assert check_pixels(source, None) == ((6, 5), False)


@pytest.mark.parametrize("bands", ["", "bands: [1, 2, 3]\n"])
def test_pixels_without_data_are_ignored_in_training(tmp_path, bands):
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    values = np.full((3, 6, 5), 90, np.uint8)
    values[:, :2] = 7
    values[0, 3] = 7  # in one band of three: there is data
    path = write_tiff(tmp_path / "images" / "train" / "x.tif", values)
    with pytest.importorskip("rasterio").open(path, "r+") as file:
        file.nodata = 7
    mask = encode_png(np.ones((6, 5), np.uint8))
    (tmp_path / "labels" / "train" / "x.png").write_bytes(mask)
    (tmp_path / "data.yaml").write_text(f"classes: [a, b]\n{bands}")
    dataset = open_dataset(str(tmp_path), "train")
    expected = np.array([[IGNORE] * 5] * 2 + [[1] * 5] * 4)
    np.testing.assert_array_equal(dataset[0].mask, expected)
    assert check(dataset).pixels.tolist() == [0, 20]
    assert main(["shard", str(tmp_path), str(tmp_path / "packed"), "--splits", "train"]) == OK
    packed = open_dataset(str(tmp_path / "packed"), "train")
    np.testing.assert_array_equal(packed[0].mask, expected)


def test_a_crop_reads_of_the_pixels_without_data_its_window_alone(tmp_path, monkeypatch):
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    values = np.random.default_rng(0).integers(1, 99, (4, 600, 600), dtype=np.uint8)
    values[:, :300] = 0
    path = write_tiff(tmp_path / "images" / "train" / "x.tif", values)
    with pytest.importorskip("rasterio").open(path, "r+") as file:
        file.nodata = 0
    mask = encode_png(np.arange(600 * 600, dtype=np.uint8).reshape(600, 600) % 2)
    (tmp_path / "labels" / "train" / "x.png").write_bytes(mask)
    (tmp_path / "data.yaml").write_text("classes: [a, b]\nbands: [1, 2, 3, 4]\n")
    dataset = open_dataset(str(tmp_path), "train")
    augment = Augmentation((64, 64), scale_range=(1, 1), rotate=20.0, fill=(0, 0, 0, 0))
    whole = [augment(*dataset[0], np.random.default_rng(i)) for i in range(8)]
    rows_read, has_data = [], GdalFile.has_data

    def recorded(file, rows, columns, numbers):
        rows_read.append(rows[1] - rows[0])
        return has_data(file, rows, columns, numbers)

    monkeypatch.setattr(GdalFile, "has_data", recorded)
    for i, (image, ids) in enumerate(whole):
        cropped = augment(*dataset.open(0), np.random.default_rng(i))
        np.testing.assert_array_equal(cropped[0], image)
        # OpenCV rounds positions to fp32, so one between two pixels may depend on the corner
        assert (cropped[1] != ids).sum() <= 1
    assert 0 < max(rows_read) < 120


def test_a_fourth_band_that_is_read_makes_nothing_transparent(tmp_path):
    """GDAL marks it as alpha by default; over water near infrared is 0."""
    values = np.full((4, 6, 5), 90, np.uint8)
    values[3, :2], values[:, 5] = 0, 0  # the last row holds nothing
    path = write_tiff(tmp_path / "x.tif", values)
    rasterio = pytest.importorskip("rasterio")
    for nodata, data in ((None, [True] * 6), (0, [True] * 5 + [False])):
        with rasterio.open(path, "r+") as file:
            assert file.colorinterp[3].name == "alpha"
            file.nodata = nodata
        with Raster(path, channels=4) as raster:
            assert raster.has_data((0, 6), (0, 5))[:, 0].tolist() == data
        with Raster(path) as raster:  # of red, green and blue it is what the file says
            assert raster.has_data((0, 6), (0, 5))[:, 0].tolist() == [
                False,
                False,
                True,
                True,
                True,
                False,
            ]


def test_arrays_of_other_types_are_scaled_by_the_range_of_the_bands():
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 300
    one = Bands((1,), ((300.0, 2850.0),))
    expected = np.clip(np.rint((values.astype(np.float32) - 300) / 10), 0, 255).astype(np.uint8)
    for array in (values, values.astype(np.float32), values[..., None]):
        np.testing.assert_array_equal(as_image(array, bands=one)[..., 0], expected)
    np.testing.assert_array_equal(as_image(expected, bands=one)[..., 0], expected)  # bytes are
    two = Bands((4, 2), ((0.0, 2550.0), (0.0, 25_500.0)))
    found = as_image(np.stack([values, values], axis=2), bands=two)
    assert (found[0, 3].tolist(), found[0, 0].tolist()) == ([90, 9], [0, 0])
    with pytest.raises(SetrError, match="array: has float32 values; give the range"):
        as_image(values.astype(np.float32), bands=Bands((1,)))
    with pytest.raises(SetrError, match=r"array \(4, 4\) uint16: give uint8 RGB"):
        as_image(values)


def test_without_gdal_pillow_reads_what_it_does_not_change(tmp_path, monkeypatch):
    pixels = tile("train", 0)[0]
    deep = pixels[..., 3].astype(np.uint16) * 256 + 7
    Image.fromarray(pixels).save(tmp_path / "four.png")
    Image.fromarray(pixels).save(tmp_path / "four.tif")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wide = write_tiff(tmp_path / "wide.tif", pixels.transpose(2, 0, 1).astype(np.uint16))
    with_gdal = read_pixels(tmp_path / "four.tif", Bands((4, 2)))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for name in ("four.png", "four.tif"):
        found = read_pixels(tmp_path / name, Bands((4, 2)))
        np.testing.assert_array_equal(found, pixels[..., [3, 1]])
        np.testing.assert_array_equal(found, with_gdal)
    found = read_pixels(tmp_path / "deep.png", Bands((1,), ((0.0, 65535.0),)))
    np.testing.assert_array_equal(found[..., 0], np.rint(deep * (255 / 65535)))
    with pytest.raises(SetrError, match=r'wide\.tif: .* needs rasterio; pip install "setr\[geo\]"'):
        read_pixels(wide, Bands((1,)))
    Image.fromarray(pixels[..., 0]).convert("P").save(tmp_path / "palette.png")
    with pytest.raises(SetrError, match="bands cannot be read from PNG with P pixels"):
        read_pixels(tmp_path / "palette.png", Bands((1,)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bands: [0, 1]", "bands [0, 1]: give numbers from 1"),
        ("bands: 4", "bands 4: give numbers from 1"),
        ("bands: []", "bands []: give numbers from 1"),
        ("value_range: [0, 9]", "value_range: needs bands"),
        ("bands: [1, 2]\nvalue_range: [9, 0]", "value range 9 to 0: give low, then high"),
        ("bands: [1, 2]\nvalue_range: [[0, 9]]", None),
        ("bands: [1, 2, 3]\nvalue_range: [[0, 9], [0, 8]]", "2 ranges for 3 bands"),
        ("bands: [1, 2]\nvalue_range: [0, 9, 3]", "value_range [0, 9, 3]: give low and high"),
    ],
)
def test_what_data_yaml_says_of_bands(tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(f"classes: [a, b]\n{text}\n")
    if message is None:
        assert read_description(tmp_path).bands == Bands((1, 2), ((0.0, 9.0),))
        return
    with pytest.raises(SetrError) as caught:
        read_description(tmp_path)
    assert message in str(caught.value)
    assert (caught.value.code, str(caught.value).count("\n")) == (USAGE, 0)


def test_the_check_names_what_does_not_fit(tiles):
    first = tiles / "images" / "train" / "t0.tif"
    write_tiff(first, np.zeros((3, 48, 48), np.uint16))
    second = tiles / "images" / "train" / "t1.tif"
    second.write_bytes(second.read_bytes()[:9000])
    checkup = check(open_dataset(str(tiles), "train"))
    assert len(checkup.problems) == 2
    assert "t0.tif: has 3 bands; bands 1,2,3,4 were requested" in checkup.problems[0]
    assert "t1.tif: broken image file" in checkup.problems[1]
    values = np.zeros((1, 4, 4), np.complex64)
    with pytest.raises(SetrError, match="has complex64 values; store magnitude and phase"):
        check_pixels(write_tiff(tiles / "c.tif", values), Bands((1,), ((0.0, 1.0),)))
    with pytest.raises(SetrError, match="has int16 values; give the range"):
        check_pixels(write_tiff(tiles / "i.tif", np.zeros((1, 4, 4), np.int16)), Bands((1,)))
    write_tiff(first, np.zeros((4, 48, 48), np.uint16))  # a change is seen, and so are other bands
    text = (tiles / "data.yaml").read_text()
    (tiles / "data.yaml").write_text(text.replace("[1, 2, 3, 4]", "[5]"))
    problems = check(open_dataset(str(tiles), "train")).problems
    assert ["bands 5 were requested" in problem for problem in problems] == [True] * 4


def test_init_data_drafts_bands_and_their_range(tiles, capsys):
    (tiles / "data.yaml").unlink()
    assert main(["init-data", str(tiles)]) == OK
    described = read_description(tiles)
    assert described.bands is not None
    assert described.bands.numbers == (1, 2, 3, 4)
    ((low, high),) = described.bands.ranges
    assert 0 <= low < 500
    assert 2000 < high <= 2550
    for path in (tiles / "images").rglob("*.tif"):
        write_tiff(path, np.zeros((3, 48, 48), np.uint8))
    assert main(["init-data", str(tiles), "--overwrite"]) == OK
    assert read_description(tiles).bands is None
    for path in (tiles / "images").rglob("*.tif"):  # 12 bits of 16, which Pillow reads as grey
        write_tiff(path, np.linspace(0, 4095, 48 * 48).astype(np.uint16).reshape(1, 48, 48))
    assert main(["init-data", str(tiles), "--overwrite"]) == OK
    assert open_dataset(str(tiles), "train").load(0).image.max() == 255


def test_twelve_bits_in_a_png_are_told_and_get_their_range(tiles, capsys):
    for path in (tiles / "images").rglob("*.tif"):
        values = np.linspace(0, 4095, 48 * 48).astype(np.uint16).reshape(48, 48)
        path.with_suffix(".png").write_bytes(encode_png(values))
        path.unlink()
    (tiles / "data.yaml").write_text(f"classes: [{', '.join(scenes.CLASSES)}]\nignore: 255\n")
    assert main(["doctor", str(tiles)]) == OK
    assert "warning train: 4 images are nearly black" in capsys.readouterr().out
    assert main(["init-data", str(tiles), "--overwrite"]) == OK
    assert read_description(tiles).bands == Bands((1,), ((3.606, 4091.0),))
    assert main(["doctor", str(tiles)]) == OK
    assert "nearly black" not in capsys.readouterr().out
    for path in (tiles / "images").rglob("*.png"):  # all 16 bits
        path.write_bytes(encode_png(values * 16))
    assert main(["init-data", str(tiles), "--overwrite"]) == OK
    assert read_description(tiles).bands is None


def test_of_a_stack_the_first_page_is_used_and_that_is_told(tmp_path, caplog):
    pages = [Image.fromarray(np.full((4, 6), value, np.uint16)) for value in (100, 200)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    image = open_pixels(tmp_path / "stack.tif", Bands((1,), ((0.0, 255.0),)))
    assert (image[:] == 100).all()
    assert f"{tmp_path / 'stack.tif'}: has several frames or pages; the first" in caplog.text


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_augmentation_treats_every_channel_alike(channels):
    rng = np.random.default_rng(0)
    one = rng.integers(0, 255, (40, 50), dtype=np.uint8)
    image = np.repeat(one[..., None], channels, axis=2)
    mask = rng.integers(0, 3, (40, 50), dtype=np.uint8)
    augment = Augmentation(
        (48, 48), rotate=40, flip=1, flip_vertical=1, max_class_share=1, fill=(9,) * channels
    )
    pixels, cropped = augment(image, mask, np.random.default_rng(1))
    assert pixels.shape == (48, 48, channels)
    assert (pixels == pixels[..., :1]).all()
    plain = dataclasses.replace(augment, photometric=False)
    still, _ = plain(image, mask, np.random.default_rng(1))
    assert (still[cropped == IGNORE][-1] == 9).all()
    window = CropWindow((40, 50), (33, 61), (3, 5), (20, 30), 0.0)
    alone = window.cut(one, nearest=False, fill=0)
    np.testing.assert_allclose(
        window.cut(image, nearest=False, fill=(0,) * channels)[..., -1].astype(int), alone, atol=1
    )
    assert distort(image, np.random.default_rng(2)).shape == image.shape


def test_mean_and_deviation_are_measured(tiles):
    dataset = open_dataset(str(tiles), "train")
    mean, std = measured(dataset)
    images = np.concatenate([dataset.load(i).image.reshape(-1, 4) for i in range(4)]) / 255
    np.testing.assert_allclose(mean, images.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(std, images.std(axis=0), atol=1e-4)


# --- training, testing, prediction ----------------------------------------------------------------


@pytest.fixture
def config(tiles: Path, tmp_path: Path) -> setr.Config:
    plain = tiny_config(tmp_path / "run", steps=2, samples=1)
    data = dataclasses.replace(plain.data, root=str(tiles), crop_size=(32, 32))
    return dataclasses.replace(plain, data=data)


def test_from_training_to_prediction(config, tiles, tmp_path, capsys):
    """One run: channels from the data, bands into the model, and out of it again."""
    setr.train(config)
    run = tmp_path / "run"
    model, info = from_pretrained(run)
    assert (model.encoder.in_chans, info.bands) == (4, FOUR)
    assert list(info.mean) == list(measured(open_dataset(str(tiles), "train"))[0])
    values = json.loads((run / "config.json").read_text())
    assert (values["bands"], values["value_range"]) == ([1, 2, 3, 4], [0, 2550])
    assert main(["eval", str(run), str(tiles), "--workers", "0"]) == OK
    assert "image/jpeg" in (run / "eval-val" / "report.html").read_text()
    path, out = tiles / "images" / "val" / "t1.tif", tmp_path / "out"
    exact = ["--precision", "fp32"]
    command = ["predict", str(run), str(path), "-o", str(out), *exact]
    assert main(command) == OK
    predictor = setr.load(run, precision="fp32")
    pixels = open_dataset(str(tiles), "val").load(1).image
    result = predictor.predict(path)
    np.testing.assert_array_equal(result.image, pixels[..., :3])
    np.testing.assert_array_equal(
        Predictor(model, info, precision="fp32", window=32).predict(pixels).mask, result.mask
    )
    import rasterio

    with rasterio.open(out / "t1.tif") as file:
        assert file.crs == rasterio.CRS.from_epsg(32633)
        np.testing.assert_array_equal(file.read(1), result.mask)
    turned = predictor.predict(path, bands=(4, 3, 2, 1)).image
    np.testing.assert_array_equal(turned, pixels[..., [3, 2, 1]])
    capsys.readouterr()
    assert main([*command, "--bands", "4,3,2"]) == USAGE
    assert "bands 4,3,2: the model takes 4 channels; give 4 numbers" in capsys.readouterr().err
    photo = tmp_path / "photo.jpg"
    Image.fromarray(pixels[..., :3]).save(photo)
    assert main([*command[:2], str(photo), "-o", str(out)]) == FAILED
    assert "photo.jpg: has 3 bands; bands 1,2,3,4 were requested" in capsys.readouterr().err
    # without a georeference a file is an image like others, in its model's bands all the same
    write_tiff(
        tmp_path / "flat.tif", pixels.transpose(2, 0, 1).astype(np.uint16) * 10, placed=False
    )
    assert main([*command[:2], str(tmp_path / "flat.tif"), "-o", str(out), *exact]) == OK
    with Image.open(out / "flat.png") as found:
        np.testing.assert_array_equal(np.asarray(found), predictor.predict(pixels).mask)
    with pytest.raises(
        SetrError, match=r"clip\.mp4: a video has red, green and blue, and the model"
    ):
        predict_video(predictor, "clip.mp4", out / "clip")
    with pytest.raises(SetrError, match=r"array \(48, 48, 3\) uint8: give uint8 \(H, W, 4\)"):
        predictor.predict(pixels[..., :3])


def test_a_model_brings_its_bands_to_data_that_name_none(tiles, tmp_path):
    """And refuses images of other channels."""
    model = tiny_model("naive", len(scenes.CLASSES), in_chans=4).eval()
    described = tiles / "data.yaml"
    expected = setr.evaluate(model, str(tiles), info=info_of(4, bands=FOUR), workers=0)
    text = described.read_text()
    described.write_text(text.partition("bands")[0])
    found = setr.evaluate(model, str(tiles), info=info_of(4, bands=FOUR), workers=0)
    assert found["confusion"] == expected["confusion"]
    with pytest.raises(SetrError, match=r"t0\.tif: a TIFF file that is not 8-bit RGB"):
        open_dataset(str(tiles), "val").load(0)
    described.write_text(text.replace("[1, 2, 3, 4]", "[1, 2]"))
    with pytest.raises(SetrError, match="takes 4 channels but the images of tiles") as caught:
        setr.evaluate(model, str(tiles), info=info_of(4, bands=FOUR))
    assert caught.value.code == DATA_CHECK_FAILED


def test_bands_survive_packing_and_cached_features(config, tiles, tmp_path):
    assert main(["shard", str(tiles), str(tmp_path / "packed")]) == OK
    data = dataclasses.replace(config.data, root=str(tmp_path / "packed"))
    model = dataclasses.replace(config.model, freeze=-1)
    train = dataclasses.replace(config.train, cache_features="flip", samples=0)
    setr.train(dataclasses.replace(config, data=data, model=model, train=train))
    packed = open_dataset(str(tmp_path / "packed"), "train")
    files = open_dataset(str(tiles), "train")
    assert packed.bands == files.bands == FOUR
    sums = [sorted(int(d.load(i).image.sum()) for i in range(4)) for d in (packed, files)]
    assert sums[0] == sums[1]


def test_given_means_must_be_as_many_as_bands(config):
    model = dataclasses.replace(config.model, mean=(0.5, 0.4))
    with pytest.raises(SetrError, match="the images of tiles have 4 channels; give one value"):
        setr.train(dataclasses.replace(config, model=model))
    assert len(with_channels(config, 4).model.std) == 4


@pytest.mark.parametrize("name", ["mean", "std"])
def test_means_for_0_to_255_are_refused(name):
    message = rf"model\.{name} \(0\.5, 0\.5, 116\.28\): is of pixels from 0 to 1; divide"
    with pytest.raises(SetrError, match=message) as caught:
        ModelConfig(**{name: (0.5, 0.5, 116.28)})
    assert caught.value.code == USAGE
    assert ModelConfig(**{name: (1.0, 1.0, 1.0)})


def test_exported_graphs_take_the_model_s_bands(monkeypatch):
    """What is traced, and what the file says; a whole export takes ten seconds."""
    model = tiny_model("naive", len(scenes.CLASSES), in_chans=2).eval()

    def export(graph: Graph, inputs: tuple[torch.Tensor], **_: object) -> None:
        torch.testing.assert_close(graph(*inputs)[0], model(*inputs), atol=1e-4, rtol=1e-4)
        raise StopIteration

    monkeypatch.setattr(torch.export, "export", export)
    with pytest.raises(SetrError, match="cannot follow this model: StopIteration"):
        trace(Graph(model, "logits"))
    stored = metadata(model, info_of(2, bands=Bands((2, 1))), "fp32", "logits")
    assert json.loads(stored["bands"]) == [2, 1]
    assert "(B, 2, H, W)" in json.loads(stored["export"])["input"]


def test_the_server_reads_files_as_predict_does(tmp_path):
    """Bands of a model, and colours of 16 bits, which Pillow would cut off or mix up."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("fastapi")
    from setr.serve.limits import Limits
    from setr.serve.models import Models
    from tests.serving import running

    torch.manual_seed(0)
    numbers = np.random.default_rng(0)
    for name, channels, more in (("four", 4, {"bands": FOUR}), ("rgb", 3, {})):
        model = tiny_model("naive", len(scenes.CLASSES), in_chans=channels)
        save_pretrained(tmp_path / name, model, info_of(channels, **more))
        values = numbers.integers(0, 65536, (channels, 80, 96)).astype(np.uint16)
        write_tiff(tmp_path / f"{name}.tif", values // (1 if channels == 3 else 25), placed=False)
    write_tiff(tmp_path / "one.tif", np.zeros((1, 8, 8), np.uint16), placed=False)
    sources = [str(tmp_path / "four"), str(tmp_path / "rgb")]
    models = Models(sources, Limits(), device="cpu", precision="fp32")
    with running(models, Limits()) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        cards = client.get("/v1/models").json()["models"]
        assert [card["bands"] for card in cards] == [[1, 2, 3, 4], None]
        for source in sources:
            data = Path(f"{source}.tif").read_bytes()
            query = {"model": Path(source).name, "format": "confidence"}
            answer = client.post("/v1/segment", params=query, content=data)
            expected = setr.load(source, device="cpu", precision="fp32").predict(data)
            assert answer.content == expected.encode("confidence")
            query = {"model": query["model"], "x": "0.5", "y": "0.5"}
            answer = client.post("/v1/attention", params=query, content=data)
            assert answer.status_code == 200
        refused = client.post("/v1/segment", content=(tmp_path / "one.tif").read_bytes())
        assert refused.status_code == 422
        assert refused.json()["error"]["message"] == (
            "image data: has one band; bands 1,2,3,4 were requested"
        )
    models = Models(sources, small := Limits(max_pixels=5000), device="cpu", precision="fp32")
    with running(models, small) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        refused = client.post("/v1/segment", content=Path(f"{sources[0]}.tif").read_bytes())
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_pixels")


def test_a_small_image_in_a_huge_tile_is_refused(monkeypatch):
    pytest.importorskip("rasterio")
    with GdalFile(in_one_tile(2048)) as file:
        assert file.read((1,), (0, 16), (0, 16)).shape == (1, 16, 16)
    monkeypatch.setattr(gdal, "LARGEST_TILE", 1_000_000)
    with pytest.raises(SetrError, match="image of 16x16 pixels in tiles of 2048x2048, which are"):
        GdalFile(in_one_tile(2048))

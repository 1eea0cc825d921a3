"""Files as other systems write them: endings and formats, lists from Windows, folders of drives."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from setr.bands import read_pixels
from setr.cli import main
from setr.datasets import open_dataset
from setr.doctor import check, diagnose
from setr.errors import DATA_CHECK_FAILED, OK, USAGE, SetrError
from setr.images import check_whole, read_image
from setr.prediction.inputs import find_items
from setr.prediction.several import single_sources
from setr.reading.files import walk_images
from setr.reading.gdal import is_georeferenced
from setr.reading.lazy_image import LazyImage
from setr.reading.masks import read_mask

PHOTO = np.random.default_rng(0).integers(0, 256, (16, 20, 3)).astype(np.uint8)
IDS = np.arange(320, dtype=np.uint8).reshape(16, 20) % 2


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def folder(root: Path, data: str, **files: str) -> str:
    """Two pairs in subfolders, lists, and data.yaml."""
    for stem in ("a", "b"):
        put(root / "images" / "x" / f"{stem}.png", PHOTO)
        put(root / "labels" / "x" / f"{stem}.png", IDS)
    for name, text in files.items():
        (root / f"{name}.txt").write_text(text)
    (root / "data.yaml").write_text(data)
    return str(root)


@pytest.mark.parametrize("ending", ["JPG", "jfif", "jp2", "tga", "avif", "pnm", "apng"])
def test_images_with_unusual_endings_are_found(tmp_path, ending):
    if not {"avif": features.check("avif"), "jp2": features.check("jpg_2000")}.get(ending, True):
        pytest.skip("this Pillow lacks the format")
    put(tmp_path / "images" / f"a.{ending}", PHOTO)
    assert walk_images(tmp_path) == [f"images/a.{ending}"]
    assert read_image(tmp_path / "images" / f"a.{ending}").shape == PHOTO.shape


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"\xff\x0a" + bytes(9), "JPEG XL files are not read"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(9), "JPEG XL files are not read"),
        (b"%PDF-1.7", "PDF files are not read"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, head, told):
    (tmp_path / "a.jpg").write_bytes(head)
    with pytest.raises(SetrError, match=told):
        read_image(tmp_path / "a.jpg")


def test_photos_that_are_not_read_are_counted(tmp_path, capsys):
    for name in ("a.JXL", "b.jxl", "c.dng"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"?")
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    told = "files that are not read: 2 .jxl, 1 .dng (as images/a.JXL); save them as JPEG or PNG"
    assert told in capsys.readouterr().err
    put(tmp_path / "images" / "d.png", PHOTO)
    put(tmp_path / "masks" / "d.png", IDS)
    assert main(["init-data", str(tmp_path)]) == OK
    assert f"# not used: {told}" in (tmp_path / "data.yaml").read_text()


def test_masks_in_lossy_formats_are_refused(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow lacks AVIF")
    put(tmp_path / "a.avif", IDS)
    with pytest.raises(SetrError, match="AVIF compression has changed the ids"):
        read_mask(tmp_path / "a.avif")


def test_masks_in_lossy_webp_are_refused(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "a.webp", quality=90)
    with pytest.raises(SetrError, match="lossy WebP compression has changed the ids"):
        read_mask(tmp_path / "a.webp")
    Image.fromarray(IDS).save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.webp"), IDS)


def test_thumbnails_of_network_drives_are_no_images(tmp_path):
    for name in ("a.png", "@eaDir/a.png/SYNO_THUMB.png", "__MACOSX/a.png", "._a.png", "x/b.png"):
        put(tmp_path / name, PHOTO)
    (tmp_path / "Thumbs.db").write_bytes(b"?")
    assert walk_images(tmp_path) == ["a.png", "x/b.png"]


def test_a_pipe_is_not_waited_for(tmp_path):
    put(tmp_path / "a.png", PHOTO)
    os.mkfifo(tmp_path / "pipe.png")
    assert walk_images(tmp_path) == ["a.png"]
    os.symlink("pipe.png", tmp_path / "link.png")
    for read in (read_pixels, read_image, read_mask, check_whole, LazyImage):
        for name in ("pipe.png", "link.png"):
            with pytest.raises(SetrError, match=f"{name}: is a pipe or device; save the image to"):
                read(tmp_path / name, *([None] if read is read_pixels else []))
    os.symlink("pipe.png", tmp_path / "link.tif")
    assert not is_georeferenced(tmp_path / "link.tif")


@pytest.mark.parametrize(
    ("split", "lines"),
    [
        ("train: all.txt\n", "images\\x\\a.png labels\\x\\a.png\n"),
        ("train: all.txt\n", ".\\images\\x\\a.png\n"),
        ("train: all.txt\n", "images\\x\\a.png\tlabels/x/a.png\n"),
    ],
)
def test_lists_written_on_windows(tmp_path, split, lines):
    root = folder(tmp_path, f"{split}classes: [a, b]\n", all=lines)
    (pair,) = open_dataset(root, "train").pairs
    assert pair.image.is_file()
    assert pair.mask == tmp_path / "labels" / "x" / "a.png"


def test_lists_beside_folders_written_on_windows(tmp_path):
    for folder_name in ("train", "trainannot"):
        for stem in ("a", "b"):
            put(tmp_path / folder_name / "x" / f"{stem}.png", IDS)
    (tmp_path / "train.txt").write_text("C:\\data\\x\\b.png\nx\\a\n")
    (tmp_path / "data.yaml").write_text("classes: [a, b]\n")
    pairs = open_dataset(str(tmp_path), "train").pairs
    assert [pair.image.stem for pair in pairs] == ["b", "a"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            "classes: [1, 2, 3]\nlabel_map: {0: 1, 1: 2}",
            "label_map value 1 may be the class called",
        ),
        ("classes: [a, 0]\ncolour_map: {'#000000': 0, '#ffffff': 1}", "write '0' in quotes, or 1"),
        ("classes: [{name: road}, car]", "'classes' has {'name': 'road'} where a name should be"),
        ("classes: [null, car]", "'classes' has None where a name should be"),
        ("classes: {0: '#ff0000', 1: '#00ff00'}", "'classes' has numbers for names of colours"),
        ("classes: [a, b]\ntrain0: x", "unknown key 'train0'"),
        (
            "classes: [a, b]\nreduce_zero_label: true",
            "'reduce_zero_label'; did you mean 'label_map: {0: ignore, 1: road, …}'?",
        ),
        ("classes: [a, b]\npalette: [[0, 0, 0]]", "'palette'; did you mean 'colours'?"),
        ("classes: [a, b]\nfold1: x", "unknown key 'fold1'"),
    ],
)
def test_classes_that_may_be_misunderstood(tmp_path, data, told):
    with pytest.raises(SetrError) as caught:
        open_dataset(folder(tmp_path, f"train: images\n{data}\n"), "train")
    assert told in str(caught.value)
    assert caught.value.code == USAGE


def test_numbers_as_names_of_classes(tmp_path):
    root = folder(tmp_path, "train: images\nclasses: [1, 2]\nlabel_map: {0: '1', 1: '2'}\n")
    assert open_dataset(root, "train").labels.label_map == {0: 0, 1: 1}
    root = folder(tmp_path, "train: images\nclasses: [0, 1]\nlabel_map: {0: 0, 1: 1}\n")
    assert open_dataset(root, "train").labels.label_map == {0: 0, 1: 1}


def test_rare_classes_of_training_are_told(tmp_path):
    root = folder(tmp_path, "train: images\nval: images\nclasses: [sky, bird, gone]\n")
    rare = np.zeros((16, 20), np.uint8)
    rare[3, 4:7] = 1
    put(tmp_path / "labels" / "x" / "a.png", rare)
    put(tmp_path / "labels" / "x" / "b.png", rare * 0)
    found = diagnose([check(open_dataset(root, split)) for split in ("train", "val")])
    (note,) = [finding for finding in found if "rare classes" in finding.text]
    assert (note.level, note.split, note.count) == ("note", "train", 1)
    assert "rare classes: bird (0.47 % of the pixels, 1 images); what helps: " in note.text


def test_bytes_without_a_name_are_named_image_data():
    with pytest.raises(SetrError, match="image data: JPEG XL files are not read"):
        read_image(io.BytesIO(b"\xff\x0a" + bytes(20)).getvalue())


def test_photos_that_are_not_predicted_are_told(tmp_path, caplog):
    (tmp_path / "a.JXL").write_bytes(b"?")
    told = r"no images found here; files that are not read: 1 \.jxl \(as a\.JXL\)"
    for find in (lambda: find_items([str(tmp_path)]), lambda: list(single_sources(tmp_path))):
        with pytest.raises(SetrError, match=told):
            find()
    put(tmp_path / "b.jpg", PHOTO)
    with caplog.at_level(logging.WARNING, "setr"):
        assert [item.name for item in find_items([str(tmp_path)])] == ["b.jpg"]
    assert "files that are not read: 1 .jxl (as a.JXL); save them as JPEG" in caplog.text

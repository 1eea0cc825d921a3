"""HEIC photos, written by pillow-heif: read like JPEG where it is installed, else named."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from setr.cli import main
from setr.data.loader import whole_images
from setr.datasets import open_dataset
from setr.errors import OK, SetrError
from setr.hub import save_pretrained
from setr.images import check_whole, read_image
from setr.model_info import ModelInfo
from setr.prediction.inputs import find_items
from setr.reading import files, pillow
from setr.reading.files import unread_text, walk_images
from setr.reading.heif import heif_package
from setr.reading.lazy_image import LazyImage
from setr.reading.masks import read_mask
from tests.conftest import tiny_model

PHOTO = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
HEADER = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
EXACT = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}


def heic(pixels: np.ndarray, *, orientation: int = 1, **options: Any) -> bytes:
    """The bytes of a photo, without loss unless options say otherwise."""
    plugin, buffer = pytest.importorskip("pillow_heif"), io.BytesIO()
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[1 if pixels.ndim == 2 else pixels.shape[2]]
    file = plugin.from_bytes(mode, pixels.shape[1::-1], pixels.tobytes())
    exif = Image.Exif()
    exif[0x0112] = orientation
    file.info["exif"] = exif.tobytes()
    file.save(buffer, **{**EXACT, **options})
    return buffer.getvalue()


def declared(data: bytes, width: int, height: int) -> bytes:
    """The photo with another size in its header."""
    parts = data.split(b"ispe")
    size = struct.pack(">II", width, height)
    return b"ispe".join([parts[0], *(part[:4] + size + part[12:] for part in parts[1:])])


def test_photos_are_read_by_content(tmp_path):
    data = heic(PHOTO)
    Path(tmp_path, "a.jpg").write_bytes(data)
    for source in (data, tmp_path / "a.jpg"):
        np.testing.assert_array_equal(read_image(source), PHOTO)
        np.testing.assert_array_equal(LazyImage(source)[5:20, 3:9], PHOTO[5:20, 3:9])
        assert check_whole(source) == ((48, 64), False)
    assert "HEIF" not in Image.ID  # nothing was registered for the rest of the program
    grey, clear = PHOTO[..., 0], np.dstack([PHOTO, PHOTO[..., 0]])
    np.testing.assert_array_equal(read_image(heic(grey, matrix_coefficients=1))[..., 2], grey)
    np.testing.assert_array_equal(read_image(heic(clear)), PHOTO)


def test_rotation_is_applied_once():
    """Both the header and EXIF tell it."""
    data = heic(PHOTO, orientation=6)
    assert b"irot" in data
    found = read_image(data)
    np.testing.assert_array_equal(found, np.rot90(PHOTO, -1))
    assert check_whole(data) == ((64, 48), False)


def test_ten_bits_become_eight():
    plugin = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    deep = (PHOTO.astype(np.uint16) * 257).tobytes()
    plugin.from_bytes("RGB;16", (64, 48), deep).save(buffer, **EXACT)
    np.testing.assert_array_equal(read_image(buffer.getvalue()), PHOTO)


def test_the_size_in_the_header_is_limited_and_true():
    data = heic(PHOTO)
    with pytest.raises(SetrError, match="image data: 64x48 is 3,072 pixels, above the limit of 99"):
        read_image(data, max_pixels=99)
    with pytest.raises(SetrError, match=r"broken image file .*Security limit"):
        read_image(declared(data, 2_000_000, 2_000_000))
    bomb = declared(heic(np.zeros((2000, 2000, 3), np.uint8), quality=10), 64, 48)
    assert len(bomb) < 9000
    with pytest.raises(SetrError, match=r"broken image file .*2000x2000 exceeds"):
        read_image(bomb)


@pytest.mark.parametrize("kept", [20, 300, 1500, -1])
def test_truncated_photos_are_refused(tmp_path, kept):
    (tmp_path / "a.heic").write_bytes(heic(PHOTO)[:kept])
    with pytest.raises(SetrError, match=r"a\.heic: broken image file \("):
        read_image(tmp_path / "a.heic")


def test_masks_are_not_photos():
    with pytest.raises(SetrError, match="HEIF compression has changed the ids"):
        read_mask(heic(PHOTO))


def test_folders_of_photos_train_and_are_predicted(tmp_path, capsys):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        (tmp_path / "images" / split / f"{split}.HEIC").write_bytes(heic(PHOTO))
        Image.fromarray(PHOTO[..., 0] % 5).save(tmp_path / "labels" / split / f"{split}.png")
    (tmp_path / "data.yaml").write_text(
        "train: images/train\nval: images/val\nclasses: [a, b, c, d, e]\n"
    )
    dataset = open_dataset(str(tmp_path), "train")
    ((image, _),) = [s for s in whole_images(dataset, 0, range(1)) if not isinstance(s, Exception)]
    np.testing.assert_array_equal(image[0].numpy(), PHOTO)
    np.testing.assert_array_equal(dataset.open(0)[0][3:9, 5:20], PHOTO[3:9, 5:20])
    assert main(["doctor", str(tmp_path)]) == OK
    assert [item.name for item in find_items([str(tmp_path / "images")])] == [
        "train/train.HEIC",
        "val/val.HEIC",
    ]
    assert unread_text(tmp_path) == ""
    save_pretrained(tmp_path / "model", tiny_model(), ModelInfo(labels=dataset.labels))
    photos, out = str(tmp_path / "images" / "val"), tmp_path / "out"
    assert main(["predict", str(tmp_path / "model"), photos, "-o", str(out)]) == OK
    (mask,) = out.rglob("*.png")
    assert read_mask(mask).shape == (48, 64)


def test_without_a_package_photos_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pillow, "heif_package", lambda: None)
    monkeypatch.setattr(files, "UNREAD_SUFFIXES", frozenset({".heic", ".dng"}))
    way = 'pip install "setr[heif]"'
    for name in ("a.HEIC", "b.heic", "c.dng"):
        (tmp_path / name).write_bytes(HEADER)
    with pytest.raises(SetrError) as caught:
        read_image(tmp_path / "a.HEIC")
    assert str(caught.value).endswith(f"a.HEIC: HEIC files need {way}; or save it as JPEG or PNG")
    assert unread_text(tmp_path) == (
        f"files that are not read: 2 .heic, 1 .dng (as a.HEIC); save them as JPEG or PNG, or {way} "
        "for HEIC"
    )


def test_a_package_is_imported_for_the_first_photo_only(tmp_path, monkeypatch):
    found = bool(walk_images(tmp_path_with(tmp_path, "a.heic")))
    assert found == (heif_package() is not None)
    for name in [name for name in sys.modules if name.startswith(("pillow_heif", "pi_heif"))]:
        monkeypatch.delitem(sys.modules, name)
    Image.fromarray(PHOTO).save(tmp_path / "b.png")
    read_image(tmp_path / "b.png")
    assert not {"pillow_heif", "pi_heif"} & sys.modules.keys()


def tmp_path_with(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(HEADER)
    return folder

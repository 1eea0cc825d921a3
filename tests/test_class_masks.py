"""Masks of one class or of one object each: found by their names, or named by patterns."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from string import ascii_letters

import numpy as np
import pytest
from PIL import Image

from setr.cli import main
from setr.data.mask_parts import Folders, parts_in_folders
from setr.data.name_patterns import pairs_by_pattern, parts_by_pattern
from setr.datasets import open_dataset
from setr.errors import DATA_CHECK_FAILED, FAILED, INTERRUPTED, OK, USAGE
from setr.outlines import masks as drawing
from setr.outlines.class_masks import class_masks
from setr.outlines.drawing import Drawn, Shape
from setr.outlines.index import AnnotatedImage
from setr.outlines.mask_files import MaskFile
from setr.outlines.mask_store import Counts, MaskStore, _read_journal
from setr.outlines.rendering import Rules
from setr.reading.masks import read_mask
from tests.conftest import refusal

PHOTO = np.full((8, 10, 3), 90, np.uint8)
WIDE, SMALL = np.zeros((2, 8, 10), np.uint8)
WIDE[:, :6], SMALL[2:4, 4:8] = 255, 255


def put(root: Path, files: Mapping[str, np.ndarray]) -> None:
    for name, pixels in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


def joined(root: Path, name: str) -> np.ndarray:
    return read_mask(root / "masks_drawn" / name)


def described(root: Path, *options: str) -> tuple[str, ...]:
    """Class names after `setr init-data`."""
    assert main(["init-data", str(root), *options]) == OK
    return open_dataset(str(root), "train").labels.classes


def over(small: int, wide: int, rest: int) -> np.ndarray:
    """Ids if the small area lies over the wide one."""
    ids = np.where(WIDE > 0, wide, rest)
    return np.where(SMALL > 0, small, ids).astype(np.uint8)


def test_masks_beside_their_images(tmp_path, capsys):
    for stem in ("img_001", "img_002"):
        put(
            tmp_path,
            {f"{stem}.jpg": PHOTO, f"{stem}_road.png": WIDE, f"{stem}_tall car.png": SMALL},
        )
    assert described(tmp_path) == ("road", "tall car", "background")
    np.testing.assert_array_equal(joined(tmp_path, "img_001.png"), over(1, 0, 2))
    error = capsys.readouterr().err
    assert "classes overlap in 2 images, smaller areas cover larger ones" in error
    assert "tall car over road (8 pixels)" in error


def test_photos_that_are_called_alike_are_no_masks(tmp_path, capsys):
    for stem in ("cat", "dog"):
        noise = np.random.default_rng(0).integers(0, 255, (8, 10, 3), np.uint8)
        put(tmp_path, {f"{stem}{end}.png": noise for end in ("", "_black", "_white")})
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    assert "no image folder with masks beside it" in capsys.readouterr().err
    assert not (tmp_path / "masks_drawn").exists()


def test_an_order_of_classes(tmp_path, capsys):
    for stem in "ab":
        place = "{}/images/{}.png", "{}/masks/{}_{}.png"
        split = "train" if stem == "a" else "val"
        files = {place[1].format(split, stem, c): m for c, m in (("hair", SMALL), ("skin", WIDE))}
        put(tmp_path, {place[0].format(split, stem): PHOTO, **files})
    assert described(tmp_path, "--order", "hair, skin") == ("hair", "skin", "background")
    expected = np.where(WIDE > 0, 1, over(0, 2, 2)).astype(np.uint8)
    np.testing.assert_array_equal(joined(tmp_path, "train/images/a.png"), expected)
    assert "as --order says: skin over hair (8 pixels)" in capsys.readouterr().err
    for order, told in (
        ("hair,skim", "no class 'skim'; did you mean 'skin'?"),
        ("hair,hair", "name each class once"),
    ):
        assert told in refusal(capsys, "init-data", tmp_path, "--overwrite", "--order", order)


def test_ignored_pixels_are_no_class_of_a_mask(tmp_path):
    """Or the split would be drawn so that both parts have some."""
    put(tmp_path, {"images/a.png": PHOTO, "masks/a_hair.png": SMALL, "masks/a_skin.png": WIDE})
    drawn = drawing.draw_masks(tmp_path, class_masks(tmp_path), rest="ignore")
    assert drawn.by_mask == {"masks_drawn/images/a.png": {0, 1}}
    assert drawn.pixels[255] == (WIDE + SMALL == 0).sum() > 0


def test_an_order_for_masks_of_all_classes_is_refused(tmp_path, capsys):
    put(tmp_path, {"images/a.png": PHOTO, "masks/a.png": WIDE // 255})
    assert main(["init-data", str(tmp_path), "--order", "a,b"]) == USAGE
    assert "--order a,b: is for outlines and masks of one class each" in capsys.readouterr().err


def test_nuclei_of_the_data_science_bowl(tmp_path, capsys):
    """A folder for each image, and a file for each object."""
    for stem in ("0a1b", "2c3d"):
        folder = f"stage1_train/{stem}"
        put(tmp_path, {f"{folder}/images/{stem}.png": PHOTO})
        put(tmp_path, {f"{folder}/masks/9{stem}{i}.png": m for i, m in enumerate((WIDE, SMALL))})
    assert described(tmp_path) == ("object", "background")
    either = np.where((WIDE > 0) | (SMALL > 0), 0, 1)
    np.testing.assert_array_equal(joined(tmp_path, "stage1_train/0a1b/images/0a1b.png"), either)
    error = capsys.readouterr().err
    assert "4 masks of one object each; all objects are of one class" in error
    assert "overlap" not in error  # of one class
    (tmp_path / "classes.txt").write_text("background\nnucleus\n")
    assert described(tmp_path, "--overwrite") == ("nucleus", "background")


def test_a_folder_for_each_image_with_one_mask(tmp_path):
    """Its name is that of the image with a usual end: no class."""
    for stem in ("a1", "b2"):
        put(tmp_path, {f"{stem}/images/{stem}.png": PHOTO, f"{stem}/masks/{stem}_mask.png": WIDE})
    assert described(tmp_path) == ("background", "foreground")
    assert not (tmp_path / "masks_drawn").exists()


def test_numbers_may_be_classes_or_objects(tmp_path, capsys):
    for stem in ("a", "b"):
        put(tmp_path, {f"images/{stem}.png": PHOTO})
        put(tmp_path, {f"masks/{stem}/{i}.png": m for i, m in ((1, WIDE), (2, SMALL))})
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    assert "masks/a/1.png and 3 other masks are numbered; if the" in capsys.readouterr().err
    assert described(tmp_path, "--images", "images/*", "--masks", "masks/*/{class}")[:2] == (
        "1", "2",
    )  # fmt: skip
    given = "--images", "images/*", "--masks", "masks/*/{any}", "--overwrite"
    assert described(tmp_path, *given) == ("object", "background")


def test_numbers_of_objects_behind_several_classes(tmp_path, capsys):
    for stem in ("1000", "1001"):
        put(tmp_path, {f"images/{stem}.jpg": PHOTO, f"annotations/{stem}_square_0.png": WIDE,
                       f"annotations/{stem}_circle_1.png": SMALL})  # fmt: skip
    assert described(tmp_path) == ("circle", "square", "background")
    assert "numbers at the end are those of objects: circle_1 is" in capsys.readouterr().err


def test_celebamask_has_numbers_with_zeros_and_colours(tmp_path):
    colour = np.dstack([SMALL, SMALL // 2, SMALL * 0])  # black and one other colour
    for i in (0, 12):
        put(tmp_path, {f"img/{i}.jpg": PHOTO, f"anno/0/{i:05}_l_eye.png": colour,
                       f"anno/0/{i:05}_skin.png": WIDE})  # fmt: skip
    given = "--images", "img/{number}", "--masks", "anno/{any}/{number}_{class}"
    assert described(tmp_path, *given, "--rest", "ignore") == ("l_eye", "skin")
    np.testing.assert_array_equal(joined(tmp_path, "img/12.png"), over(0, 1, 255))


def test_several_lesions_of_one_image(tmp_path, capsys):
    for i in (1, 2):
        for kind in ("benign", "malignant"):
            stem = f"{kind}/{kind} ({i})"
            put(tmp_path, {f"{stem}.png": PHOTO, f"{stem}_mask.png": WIDE})
    put(tmp_path, {"benign/benign (2)_mask_1.png": SMALL})
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    error = capsys.readouterr().err
    assert "seem to be masks of two objects in one image" in error
    given = "--images", "{any}/*", "--masks", "{class}/*_mask{any}"
    assert described(tmp_path, *given) == ("benign", "malignant", "background")
    expected = np.where((WIDE > 0) | (SMALL > 0), 0, 2)
    np.testing.assert_array_equal(joined(tmp_path, "benign/benign (2).png"), expected)


def test_vessels_of_drive(tmp_path):
    for split, number in (("training", 21), ("training", 22), ("test", 1)):
        stem = f"{number:02}"
        put(tmp_path, {f"{split}/images/{stem}_{split}.tif": PHOTO,
                       f"{split}/mask/{stem}_{split}_mask.gif": WIDE,
                       f"{split}/1st_manual/{stem}_manual1.gif": SMALL})  # fmt: skip
    described(tmp_path)
    for split in ("train", "val", "test"):
        (pair,) = open_dataset(str(tmp_path), split).pairs
        assert pair.mask.parent.name == "1st_manual"
        assert pair.mask.name[:2] == pair.image.name[:2]
    assert "not used: images in test/mask" in (tmp_path / "data.yaml").read_text()


def test_two_annotators_are_no_classes(tmp_path, capsys):
    for stem in ("Image_01L", "Image_01R"):
        put(tmp_path, {f"{stem}.jpg": PHOTO, f"{stem}_1stHO.png": WIDE,
                       f"{stem}_2ndHO.png": np.roll(WIDE, 1, 1)})  # fmt: skip
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    assert "'1stHO' and of '2ndHO' mostly cover the same pixels" in capsys.readouterr().err
    described(tmp_path, "--images", "*.jpg", "--masks", "*_1stHO.png")
    assert not (tmp_path / "masks_drawn").exists()


def test_two_annotators_of_numbered_objects_are_no_classes_either(tmp_path, capsys):
    """Whatever the order in which they drew the objects."""
    left, right = WIDE.copy(), WIDE.copy()
    left[:, 3:], right[:, :3] = 0, 0
    for stem in ("p", "q"):
        put(tmp_path, {f"images/{stem}.png": PHOTO,
                       f"masks/{stem}_anna_1.png": left, f"masks/{stem}_anna_2.png": right,
                       f"masks/{stem}_ben_1.png": np.roll(right, 1, 1),
                       f"masks/{stem}_ben_2.png": np.roll(left, 1, 1)})  # fmt: skip
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    assert "'anna' and of 'ben' mostly cover the same pixels" in capsys.readouterr().err


def test_lists_beside_the_folders_are_the_splits(tmp_path):
    for stem in "abc":
        put(tmp_path, {f"images/{stem}.png": PHOTO, f"masks/car/{stem}.png": WIDE,
                       f"masks/tree/{stem}.png": SMALL})  # fmt: skip
    for split, text in (("train", "a\nc\n"), ("val", "b.png\n")):
        (tmp_path / f"{split}.txt").write_text(text)
    assert main(["init-data", str(tmp_path), "--name", "own.yaml"]) == OK
    (pair,) = open_dataset(str(tmp_path / "own.yaml"), "val").pairs
    assert pair.image.stem == "b"


@pytest.mark.parametrize(
    ("names", "mask"),
    [(("car", "tree"), WIDE * 0), ([f"{a}{b}" for a in ascii_letters for b in "uvwxy"], WIDE)],
    ids=["empty", "260 names"],
)
def test_masks_without_pixels_or_of_countless_names_are_no_classes(tmp_path, capsys, names, mask):
    for stem in "pq":
        files = {f"masks/{stem}_{name}.png": mask for name in names}
        put(tmp_path, {f"images/{stem}.jpg": PHOTO, **files})
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    assert "images have several masks (p has p_" in capsys.readouterr().err


def test_an_area_inside_another_is_a_class(tmp_path):
    inner = WIDE.copy()
    inner[0] = 0
    for stem in "ab":
        put(tmp_path, {f"images/{stem}.png": PHOTO, f"masks/disc/{stem}.png": WIDE,
                       f"masks/cup/{stem}.png": inner})  # fmt: skip
    assert described(tmp_path) == ("cup", "disc", "background")


def test_soft_masks_of_one_class_each(tmp_path, capsys):
    soft = np.where(WIDE > 0, 200, 60).astype(np.uint8)
    for stem in "ab":
        put(tmp_path, {f"images/{stem}.png": PHOTO, f"masks/{stem}_car.png": SMALL,
                       f"masks/{stem}_tree.jpg": soft})  # fmt: skip
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    capsys.readouterr()
    given = "--images", "images/*", "--masks", "masks/*_{class}"
    assert main(["init-data", str(tmp_path), *given]) == DATA_CHECK_FAILED
    assert "JPEG compression has changed" in capsys.readouterr().err
    assert described(tmp_path, "--threshold", "128") == ("car", "tree", "background")
    np.testing.assert_array_equal(joined(tmp_path, "images/a.png"), over(0, 1, 2))


def test_masks_that_are_not_of_one_class_are_told(tmp_path, capsys):
    put(tmp_path, {"images/a.png": PHOTO, "masks/car/a.png": WIDE // 2 + (SMALL > 0),
                   "images/b.png": PHOTO, "masks/car/b.png": WIDE[:4]})  # fmt: skip
    given = "--images", "images/*", "--masks", "masks/{class}/*"
    assert main(["init-data", str(tmp_path), *given]) == DATA_CHECK_FAILED
    error = capsys.readouterr().err
    assert "masks/car/a.png: has the values 0, 1, 127, 128; a mask of one class or" in error
    assert "masks/car/b.png: mask is 10x4 but its image 10x8" in error
    assert not (tmp_path / "data.yaml").exists()
    assert not (tmp_path / ".masks_drawn.part").exists()


@pytest.mark.parametrize(
    ("images", "masks", "told"),
    [
        ("{class}/*", "masks/*", "{class} stands for the class that a mask is of"),
        ("images/*", "{class}/{class}/*", "give it once, in --masks"),
        ("images/*", "masks/{class}", "the same number of *"),
        ("images/*", "gone/*_{class}", "1 images, as images/a.png and no mask of the same name"),
        ("/images/*", "masks/*_{class}", "give a path below"),
    ],
)
def test_patterns_that_find_nothing(tmp_path, capsys, images, masks, told):
    put(tmp_path, {"images/a.png": PHOTO, "masks/a_car.png": WIDE})
    assert told in refusal(capsys, "init-data", tmp_path, "--images", images, "--masks", masks)


def test_what_wildcards_stand_for():
    files = ["images/img_1.jpg", "images/img_2.jpg", "m/img_1_l_eye.png", "m/img_1_hair.png"]
    both = {"images/img_1.jpg": [("l_eye", files[2]), ("hair", files[3])]}
    assert parts_by_pattern(files, "images/*", "m/*_{class}") == (both, ["images/img_2.jpg"])
    beside = [name.partition("/")[2] for name in files]
    found, without = parts_by_pattern(beside, "*", "*_{class}")
    assert found == {"img_1.jpg": [("l_eye", beside[2]), ("hair", beside[3])]}
    assert without == ["img_2.jpg"]
    files = ["images/a.jpg", "images/b.jpg", "car/a.png"]
    assert parts_by_pattern(files, "images/*", "{class}/*") == (
        {"images/a.jpg": [("car", "car/a.png")]}, ["images/b.jpg"],
    )  # fmt: skip
    files = ["i/a_x.jpg", "m/a.png"]
    assert pairs_by_pattern(files, "i/*_{any}", "m/*") == ([("i/a_x.jpg", "m/a.png")], [])


def test_an_interrupted_join_continues(tmp_path, monkeypatch):
    """Masks that were complete are not drawn again, unless a file has changed."""
    for stem in "abc":
        put(tmp_path, {f"images/{stem}.png": PHOTO, f"masks/car/{stem}.png": WIDE,
                       f"masks/tree/{stem}.png": SMALL})  # fmt: skip
    drawn: list[str] = []
    draw = drawing.whole_mask

    def stopped(root, entry, rules):
        if entry.image == "images/c.png" and "images/c.png" not in drawn:
            drawn.append(entry.image)
            raise KeyboardInterrupt
        drawn.append(entry.image)
        return draw(root, entry, rules)

    monkeypatch.setattr(drawing, "cpus", lambda: 1)
    monkeypatch.setattr(drawing, "whole_mask", stopped)
    assert main(["init-data", str(tmp_path)]) == INTERRUPTED
    assert drawn == ["images/a.png", "images/b.png", "images/c.png"]
    assert not (tmp_path / "masks_drawn").exists()
    put(tmp_path, {"masks/tree/b.png": WIDE})
    with (tmp_path / ".masks_drawn.part" / ".journal").open("a") as journal:
        journal.write('["cut')
    assert main(["init-data", str(tmp_path)]) == OK
    assert drawn[3:] == ["images/b.png", "images/c.png"]
    assert not (tmp_path / ".masks_drawn.part").exists()
    for stem, small in (("a", SMALL), ("b", WIDE), ("c", SMALL)):
        ids = np.where(small > 0, 1, np.where(WIDE > 0, 0, 2))
        np.testing.assert_array_equal(joined(tmp_path, f"images/{stem}.png"), ids)


def test_masks_of_an_interrupted_call_are_known_only_if_nothing_has_changed(tmp_path):
    put(tmp_path, {"images/a.png": PHOTO, "masks/car/a.png": WIDE})
    mask = MaskFile(tmp_path / "masks/car/a.png")
    entry = AnnotatedImage("images/a.png", (Shape("car", (mask,)),), "")
    rules = Rules({"car": 0, "tree": 1}, 1, largest_first=True)
    counts = Counts({0: 60, 1: 20}, Counter({("car", "tree"): 3}))
    with MaskStore(tmp_path, rules) as store:
        key = store.key("a", entry)
        store.save("a", Drawn(WIDE, Counter()), np.zeros((256, 3), np.uint8))
        store.note(key, counts)
        # a process may be killed now
        assert _read_journal(store.hidden / ".journal") == {key: counts}
        assert store.key("a", entry) == key
        assert store.key("b", entry) != key
        assert store.key("a", entry._replace(shapes=(Shape("tree", (mask,)),))) != key
        os.utime(tmp_path / "masks/car/a.png", ns=(5, 5))
        touched = store.key("a", entry)
        os.utime(tmp_path / "images/a.png", ns=(5, 5))
        latest = store.key("a", entry)
        assert len({key, touched, latest}) == 3
    for other in (rules._replace(order=("car",)), rules._replace(rest=255)):
        with MaskStore(tmp_path, other) as store:
            assert store.key("a", entry) != latest


def test_an_interrupt_before_the_first_mask_promises_nothing(tmp_path, capsys):
    store = MaskStore(tmp_path, Rules({"car": 0}, 1, largest_first=True))
    with pytest.raises(KeyboardInterrupt), store:
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_one_process_draws_at_a_time(tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    put(tmp_path, {"images/a.png": PHOTO, "masks/a_car.png": WIDE, "masks/a_tree.png": SMALL})
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert main(["init-data", str(tmp_path)]) == FAILED
    assert "another `setr init-data` is at work here" in capsys.readouterr().err
    os.close(lock)
    assert main(["init-data", str(tmp_path)]) == OK


def test_masks_are_read_as_they_are_stored(tmp_path):
    """One bit, 16 bits, palettes, RGB and RGBA: 0 or black is outside."""
    pictures = {
        "bit": Image.fromarray(WIDE > 0),
        "wide": Image.fromarray(WIDE.astype(np.uint16) * 200),
        "palette": Image.fromarray(WIDE // 255).convert("P"),
        "rgb": Image.fromarray(np.dstack([WIDE] * 3)),
        "rgba": Image.fromarray(np.dstack([WIDE, WIDE * 0, WIDE * 0, WIDE * 0 + 255])),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        inside = MaskFile(tmp_path / f"{name}.png", exact=True).pixels()
        np.testing.assert_array_equal(inside, WIDE > 0)


def test_two_images_with_one_mask_are_told(tmp_path, capsys):
    put(tmp_path, {"images/a.png": PHOTO, "images/a.jpg": PHOTO, "masks/a.png": WIDE})
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    error = capsys.readouterr().err
    assert "a.jpg and a.png are images with the same stem, so both would get" in error
    assert "--images 'images/*.jpg'" in error
    described(tmp_path, "--images", "images/*.jpg", "--masks", "masks/*")
    put(tmp_path, {"masks/a_car.png": WIDE, "masks/a_tree.png": SMALL})
    (tmp_path / "masks" / "a.png").unlink()
    assert main(["init-data", str(tmp_path), "--overwrite"]) == DATA_CHECK_FAILED


def test_pages_of_a_mask_are_told_and_overviews_are_not(tmp_path, caplog):
    page = Image.fromarray(WIDE)
    page.save(tmp_path / "stack.tif", save_all=True, append_images=[page])
    with caplog.at_level(logging.WARNING, "setr"):
        read_mask(tmp_path / "stack.tif")
        assert "has several frames or pages" in caplog.text
        caplog.clear()
        rasterio = pytest.importorskip("rasterio")
        place = rasterio.Affine(1, 0, 5, 0, -1, 5)
        size = {"height": 600, "width": 600, "count": 1, "dtype": "uint8", "transform": place}
        with rasterio.open(tmp_path / "cog.tif", "w", driver="COG", **size) as file:
            file.write(np.zeros((600, 600), np.uint8), 1)
        with Image.open(tmp_path / "cog.tif") as opened:
            assert opened.n_frames > 1
        read_mask(tmp_path / "cog.tif")
        assert not caplog.text


def test_what_names_of_parts_mean():
    def parts(images: list[str], masks: list[str]) -> Mapping[str, list[tuple[str, str]]] | None:
        found = parts_in_folders([Folders("i", "m", images, masks)])
        return found and found.of

    # the longest name of an image is meant
    two = ["a.png", "a_1.png"]
    assert parts(
        two, [f"{stem}_{name}.png" for stem in ("a", "a_1") for name in ("sky", "road")]
    ) == {
        "i/a.png": [("sky", "m/a_sky.png"), ("road", "m/a_road.png")],
        "i/a_1.png": [("sky", "m/a_1_sky.png"), ("road", "m/a_1_road.png")],
    }
    # folders of splits are no classes
    assert parts(two, ["train/a.png", "val/a_1.png"]) is None
    assert parts(two, ["sky/a.png", "road/a_1.png"]) is not None
    # names with digits are those of objects where each is there once, in several images
    assert parts(["a.png"], ["a/cell7.png", "a/cell8.png"]) == {
        "i/a.png": [("cell7", "m/a/cell7.png"), ("cell8", "m/a/cell8.png")]
    }
    several = parts(["a.png", "b.png"], ["a/c7.png", "a/c8.png", "b/c9.png"])
    assert {name for named in several.values() for name, _ in named} == {""}

"""Folders as annotation tools and other toolkits leave them: names of splits, masks and classes."""

from __future__ import annotations

import errno
import io
import os
import shlex
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr.cli import main
from setr.data.mask_names import masks_by_stem
from setr.data.split_draft import draft_lists
from setr.datasets import open_dataset
from setr.doctor import check
from setr.errors import DATA_CHECK_FAILED, FAILED, OK, USAGE, SetrError
from setr.init_data import draft, write
from setr.labels import IGNORE
from setr.outlines.index import ImageIndex

PHOTO = np.full((6, 8, 3), 90, np.uint8)
IDS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 2
COLOURS = np.array([[0, 128, 0], [10, 10, 128]], np.uint8)[IDS]


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def names(root: Path, split: str) -> list[tuple[str, str]]:
    pairs = open_dataset(str(root), split).pairs
    return [(str(p.image.relative_to(root)), str(p.mask.relative_to(root))) for p in pairs]


def reports(root: Path, name: str) -> str:
    """What the check finds in the training split."""
    found = check(open_dataset(str(root / name), "train")).findings
    return "; ".join(f"{finding.level}: {finding.text}" for finding in found)


@pytest.mark.parametrize("folder", ["val", "valid", "validation"])
@pytest.mark.parametrize("layout", ["images/{}", "{}/images"])
def test_validation_folders_have_several_names(tmp_path, folder, layout):
    for split in ("train", folder):
        put(tmp_path / layout.format(split) / "a.jpg", PHOTO)
        put(tmp_path / layout.format(split).replace("images", "masks") / "a.png", IDS)
    write(tmp_path, draft(tmp_path))
    assert len(open_dataset(str(tmp_path), "train")) == 1
    ((image, mask),) = names(tmp_path, "val")
    assert image == layout.format(folder) + "/a.jpg"
    assert mask == layout.format(folder).replace("images", "masks") + "/a.png"


def test_where_validation_is_missing_it_is_taken_from_training(tmp_path):
    for image in ("train/a", "train/b", "train/c", "test/d"):
        put(tmp_path / f"images/{image}.jpg", PHOTO)
        put(tmp_path / f"labels/{image}.png", IDS)
    write(tmp_path, draft(tmp_path))
    parts = {split: [image for image, _ in names(tmp_path, split)] for split in ("train", "val")}
    assert len(parts["val"]) == 1
    assert sorted(parts["train"] + parts["val"]) == [f"images/train/{n}.jpg" for n in "abc"]
    assert names(tmp_path, "test") == [("images/test/d.jpg", "labels/test/d.png")]
    put(tmp_path / "images/train/e f.jpg", PHOTO)
    put(tmp_path / "labels/train/e f.png", IDS)
    assert main(["init-data", str(tmp_path), "--overwrite"]) == OK  # loses none, finds the new one
    again = [image for split in ("train", "val") for image, _ in names(tmp_path, split)]
    assert sorted(again) == [f"images/train/{n}.jpg" for n in ("a", "b", "c", "e f")]


def test_masks_beside_their_images_with_a_table_of_classes(tmp_path):
    """As Roboflow exports semantic masks."""
    for split in ("train", "valid"):
        for stem in ("1", "10"):
            put(tmp_path / split / f"{stem}.jpg", PHOTO)
            put(tmp_path / split / f"{stem}_mask.png", IDS)
        (tmp_path / split / "_classes.csv").write_text(
            "Pixel Value, Class\n0, background\n1, crack\n"
        )
    assert main(["init-data", str(tmp_path)]) == OK
    assert main(["doctor", str(tmp_path)]) == OK
    assert names(tmp_path, "val") == [
        ("valid/1.jpg", "valid/1_mask.png"),
        ("valid/10.jpg", "valid/10_mask.png"),
    ]
    assert open_dataset(str(tmp_path), "train").labels.classes == ("background", "crack")


def test_one_folder_without_splits(tmp_path):
    for i in range(5):
        put(tmp_path / f"{i}.png", PHOTO)
        put(tmp_path / f"{i}_L.png", IDS)
    put(tmp_path / "alone.png", PHOTO)
    made = draft(tmp_path)
    assert made.note == "1 of 6 images have no mask, left out: alone.png"
    write(tmp_path, made)
    assert (len(names(tmp_path, "train")), len(names(tmp_path, "val"))) == (4, 1)
    assert all(mask == image.replace(".png", "_L.png") for image, mask in names(tmp_path, "train"))


@pytest.mark.parametrize("end", ["_segmentation", "-gt", "_mask"])
def test_masks_of_another_folder_may_share_an_end(tmp_path, end):
    for stem in ("1", "10", "100"):
        put(tmp_path / "images" / "train" / f"{stem}.jpg", PHOTO)
        put(tmp_path / "masks" / "train" / f"{stem}{end}.png", IDS)
    (tmp_path / "data.yaml").write_text("classes: [a, b]\n")
    pairs = dict(names(tmp_path, "train"))
    assert pairs["images/train/10.jpg"] == f"masks/train/10{end}.png"
    (tmp_path / "masks" / "train" / f"10{end}.png").unlink()
    with pytest.raises(SetrError, match=r"no mask for 1 of 3 images: 10\.jpg") as caught:
        open_dataset(str(tmp_path), "train")
    assert caught.value.code == DATA_CHECK_FAILED


def test_a_mask_of_the_same_name_goes_before_any_end():
    found = masks_by_stem(["a", "b"], ["a.png", "a_mask.png", "b.png"])
    assert (found["a"], found["b"]) == ("a.png", "b.png")
    assert masks_by_stem(["a"], ["x.png"]) == {"x": "x.png"}


def test_masks_may_be_called_after_the_whole_name_of_their_image(tmp_path):
    for number, suffix in enumerate(("jpg", "jpeg", "jpg")):
        put(tmp_path / "images" / "train" / f"a.{number}.{suffix}", PHOTO)
        put(tmp_path / "masks" / "train" / f"a.{number}.{suffix}.png", IDS)
    (tmp_path / "data.yaml").write_text("classes: [a, b]\n")
    masks = [mask for _, mask in names(tmp_path, "train")]
    assert masks == [f"masks/train/a.{name}.png" for name in ("0.jpg", "1.jpeg", "2.jpg")]


@pytest.mark.parametrize("layout", ["images/{}", "train/images/{}", "train/{}"])
def test_accents_may_be_written_as_a_mac_does(tmp_path, layout):
    apart, one = "Cafe\N{COMBINING ACUTE ACCENT}", "Caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    put(tmp_path / layout.format(f"{apart}.JPG"), PHOTO)
    place = tmp_path / layout.format(one).replace("images", "masks")
    put(place.with_name(f"{place.name}_mask.png"), IDS)
    made = draft(tmp_path)
    assert "1 pairs" in made.yaml
    assert not made.note
    images = ImageIndex([f"photos/{apart}.JPG"])
    assert images.find(f"{one}.JPG", "a.json") == images.find(f"photos/{one}.JPG", "a.json") != []


def test_of_several_masks_for_each_image_the_one_called_so_is_taken():
    stems = ["a", "b"]
    kinds = [f"{stem}_{kind}.png" for stem in stems for kind in ("color", "gt", "instances")]
    assert masks_by_stem(stems, kinds) == {"a": "a_gt.png", "b": "b_gt.png"}
    with pytest.raises(SetrError, match=r"a has a_1\.png and a_2\.png\); keep one for each image"):
        masks_by_stem(stems, ["a_1.png", "a_2.png"])
    with pytest.raises(SetrError, match=r"a has a_gt\.png and a_mask\.png"):
        masks_by_stem(stems, ["a_gt.png", "a_mask.png", "b_mask.png", "b_gt.png"])


def test_an_end_is_found_where_few_images_have_masks():
    stems = [str(number) for number in range(1, 11)]
    found = masks_by_stem(sorted(stems), ["10_seg.png"])
    assert {stem: found[stem] for stem in stems if stem in found} == {"10": "10_seg.png"}
    found = masks_by_stem(stems, ["7_seg.png", "8_seg.png"])
    assert found == {"7": "7_seg.png", "8": "8_seg.png"}


def test_colours_have_names_from_a_label_map(tmp_path):
    """As CVAT exports masks."""
    for stem in ("a", "b"):
        put(tmp_path / "JPEGImages" / f"{stem}.jpg", PHOTO)
        put(tmp_path / "SegmentationClass" / f"{stem}.png", COLOURS)
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nback ground:0,128,0::\nplane:10,10,128::\nbird:1,2,3::\n"
    )
    write(tmp_path, draft(tmp_path))
    dataset = open_dataset(str(tmp_path), "train")
    assert dataset.labels.classes == ("back ground", "plane")
    np.testing.assert_array_equal(dataset.load(0).mask, IDS)


@pytest.mark.parametrize(
    ("images", "masks", "end"),
    [("{}", "{}_labels", "_L"), ("{}", "{}_masks", ""), ("{}_images", "{}_annotations", "_mask")],
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict.csv", "name,r,g,b\r\nback ground, 0, 128, 0\r\nplane,10,10,128\r\n"),
        ("label_colors.txt", "# color_rgb label\n0 128 0 back ground\n10 10 128\t\tplane\n"),
    ],
)
def test_folders_with_the_split_in_their_name(tmp_path, images, masks, end, name, text):
    """As Kaggle has CamVid, with the colours of its classes, and others."""
    for split in ("train", "val", "test"):
        put(tmp_path / images.format(split) / f"{split}1.png", PHOTO)
        put(tmp_path / masks.format(split) / f"{split}1{end}.png", COLOURS)
    (tmp_path / name).write_text(text)
    made = draft(tmp_path)
    assert not made.lists
    write(tmp_path, made)
    for split in ("train", "val", "test"):
        assert names(tmp_path, split) == [
            (f"{images.format(split)}/{split}1.png", f"{masks.format(split)}/{split}1{end}.png")
        ]
    assert open_dataset(str(tmp_path), "val").labels.classes == ("back ground", "plane")


def test_void_among_the_colours_of_classes_is_pointed_out(tmp_path):
    """It stays a class: what is left out is for the user to say."""
    put(tmp_path / "train" / "a.png", PHOTO)
    put(tmp_path / "train_labels" / "a_L.png", COLOURS)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nVoid,0,128,0\nplane,10,10,128\n")
    made = draft(tmp_path)
    assert '# "Void" is a class; if it means pixels without a label, map it to ignore' in made.yaml
    write(tmp_path, made)
    assert open_dataset(str(tmp_path), "train").labels.classes == ("Void", "plane")


def test_a_mask_without_objects_among_colour_masks(tmp_path):
    """It is black all over, which would also be id 0."""
    for stem, mask in (("a", COLOURS), ("b", np.zeros_like(COLOURS)), ("c", COLOURS)):
        put(tmp_path / "images" / f"{stem}.jpg", PHOTO)
        put(tmp_path / "masks" / f"{stem}.png", mask)
    write(tmp_path, draft(tmp_path))
    masks = [open_dataset(str(tmp_path), s).load(i).mask for s, n in (("train", 2), ("val", 1))
             for i in range(n)]  # fmt: skip
    assert sorted(np.unique(mask).tolist() for mask in masks) == [[0], [1, 2], [1, 2]]
    put(tmp_path / "masks" / "b.png", IDS)
    with pytest.raises(SetrError, match=r"some masks contain ids \(masks/b\.png\), others colours"):
        draft(tmp_path)


def test_masks_of_labelme2voc(tmp_path):
    """Older versions put arrays into SegmentationClass, and masks into SegmentationClassPNG."""
    for stem in "ab":
        put(tmp_path / "JPEGImages" / f"{stem}.jpg", PHOTO)
        put(tmp_path / "SegmentationClassPNG" / f"{stem}.png", IDS)
        put(tmp_path / "SegmentationClassVisualization" / f"{stem}.jpg", PHOTO)
    (tmp_path / "SegmentationClass").mkdir()
    np.save(tmp_path / "SegmentationClass" / "a.npy", IDS)
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\nplane\n")
    write(tmp_path, draft(tmp_path))
    assert open_dataset(str(tmp_path), "train").labels.classes == ("_background_", "plane")


@pytest.mark.parametrize("ahead", ["", "VOCdevkit/VOC2012"])
def test_other_classes_in_the_folders_of_voc(tmp_path, ahead):
    """As tutorials on VOC's format have it: with its lists, whatever the images are called."""
    voc = tmp_path / ahead
    for stem, suffix in (("a 1", "jpg"), ("b", "png"), ("c", "jpg"), ("left out", "jpg")):
        put(voc / "JPEGImages" / f"{stem}.{suffix}", PHOTO)
        put(voc / "SegmentationClass" / f"{stem}.png", IDS)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, text in (("train", "a 1\nb\n"), ("val", "c\n")):
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)
    with pytest.raises(SetrError, match="class names are unknown; write"):
        open_dataset(str(tmp_path), "train")
    made = draft(tmp_path)
    assert made.lists == {}  # the folder has its own
    write(tmp_path, made)
    assert open_dataset(str(tmp_path), "train").labels.classes == ("class_0", "class_1")
    assert [Path(image).name for image, _ in names(tmp_path, "train")] == ["a 1.jpg", "b.png"]
    assert [Path(image).name for image, _ in names(tmp_path, "val")] == ["c.jpg"]


def test_ids_without_a_name_are_told(tmp_path):
    """As files of classes leave them that list the objects only."""
    for stem in "ab":
        put(tmp_path / "images" / f"{stem}.jpg", PHOTO)
        put(tmp_path / "masks" / f"{stem}.png", IDS)
    (tmp_path / "classes.txt").write_bytes(b"plane\r\n")
    assert "# the file of class names has no name for 1: ignored" in draft(tmp_path).yaml
    (tmp_path / "classes.txt").write_text("ground\nplane\n")
    assert "no name" not in draft(tmp_path).yaml


@pytest.mark.parametrize("masks", [IDS * 2, COLOURS])
def test_what_is_called_ignore_is_no_class(tmp_path, masks):
    for stem in ("a", "b"):
        put(tmp_path / "images" / f"{stem}.jpg", PHOTO)
        put(tmp_path / "masks" / f"{stem}.png", masks)
        masks = masks // 2  # the second has another class in its place
    (tmp_path / "classes.txt").write_text("ground\nignore\nplane\n")
    (tmp_path / "labelmap.txt").write_text("ground:0,128,0\nignore:10,10,128\nplane:0,64,0\n")
    write(tmp_path, draft(tmp_path))
    labels = open_dataset(str(tmp_path), "train").labels
    assert "ignore" not in labels.classes
    assert {"ground", "plane"} <= set(labels.classes)
    assert IGNORE in (labels.colour_map or labels.label_map).values()


def test_palettes_in_several_orders_are_colours(tmp_path):
    """And in one order they are not, whatever colours they have."""
    ids = np.array([[0, 1, 2, 2]], np.uint8)
    red, blue = [255, 0, 0], [0, 0, 255]
    for name, values, palette in (("a", ids, [red, blue]), ("b", 3 - ids, [blue, red])):
        put(tmp_path / "images" / f"{name}.png", np.zeros((1, 4, 3), np.uint8))
        image = Image.fromarray(np.where(ids == 0, 0, values).astype(np.uint8))
        image.putpalette([0, 0, 0, *palette[0], *palette[1]])
        (tmp_path / "masks").mkdir(exist_ok=True)
        image.save(tmp_path / "masks" / f"{name}.png")
    write(tmp_path, draft(tmp_path))
    train, val = (open_dataset(str(tmp_path), split)[0].mask for split in ("train", "val"))
    np.testing.assert_array_equal(train, val)
    np.testing.assert_array_equal(train, [[0, 2, 1, 1]])  # black, red, blue, sorted by colour
    assert "different orders" not in reports(tmp_path, "data.yaml")
    by_hand = "classes: [a, b, c]\ntrain: all.csv\n"
    (tmp_path / "all.csv").write_text(
        "image,mask\n" + "".join(f"images/{n}.png,masks/{n}.png\n" for n in "ab")
    )
    (tmp_path / "by_hand.yaml").write_text(by_hand)
    assert "different orders" in reports(tmp_path, "by_hand.yaml")
    for name in "ab":
        image = Image.fromarray(ids)
        image.putpalette([0, 0, 0, *red, 9, 9, ord(name)])
        image.save(tmp_path / "masks" / f"{name}.png")
    assert "label_map" in draft(tmp_path).yaml
    assert "different orders" not in reports(tmp_path, "by_hand.yaml")


@pytest.mark.parametrize("colour", [[255], [255, 0, 0]])
def test_masks_drawn_in_their_alpha_are_told(tmp_path, colour):
    for name in "ab":
        put(tmp_path / "images" / f"{name}.png", PHOTO)
        flat = np.broadcast_to(np.array(colour, np.uint8), (6, 8, len(colour)))
        put(tmp_path / "masks" / f"{name}.png", np.dstack([flat, IDS * 255]))
    with pytest.raises(SetrError, match=r"a\.png: of one value everywhere.* alpha") as error:
        draft(tmp_path)
    assert error.value.code == DATA_CHECK_FAILED
    listed = "".join(f"images/{n}.png,masks/{n}.png\n" for n in "ab")
    (tmp_path / "all.csv").write_text("image,mask\n" + listed)
    how = "label_map: {0: a, 255: b}" if len(colour) == 1 else "colour_map: {red: b, black: a}"
    how = how.replace("red", "'#ff0000'").replace("black", "'#000000'")
    (tmp_path / "all.yaml").write_text(f"train: all.csv\nclasses: [a, b]\n{how}\n")
    assert "error: 2 masks are of one value everywhere" in reports(tmp_path, "all.yaml")
    for name in "ab":  # with a picture in the colours, too, the alpha says nothing
        drawn = np.where(IDS[..., None] > 0, flat, 0).astype(np.uint8)
        put(tmp_path / "masks" / f"{name}.png", np.dstack([drawn, IDS * 255]))
    assert "one value" not in reports(tmp_path, "all.yaml")


LARGE, SMALL = np.zeros((2, 4, 5), np.uint8)
LARGE[:, :4], SMALL[1:3, 3:] = 255, 1


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{x}", "masks/{c}/{x}"), ("images/{x}", "masks/{x}/{c}"),
        ("images/{x}", "masks/{x}_{c}"), ("img/1 {x}", "mask/1 {x}-{c}"),
        ("images/train/{x}", "masks/train/{c}/{x}"), ("images/train/{x}", "masks/{c}/train/{x}"),
        ("train/images/{x}", "train/masks/{x}_{c}"),
    ],
)  # fmt: skip
def test_masks_of_one_class_each_are_joined(tmp_path, image, mask):
    """Not every class is in every image; small areas lie over large ones."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for stem, classes in (("a", ("car", "tree")), ("b", ("tree",)), ("none", ())):
        put(tmp_path / f"{image.format(x=stem)}.png", np.zeros((4, 5, 3), np.uint8))
        for title in classes:
            place = mask.format(x=stem, c=title)
            put(tmp_path / f"{place}.png", LARGE if title == "tree" else SMALL)
    made = draft(tmp_path)
    assert made.note.startswith("1 of 3 images have no outlines, left out: ")
    write(tmp_path, made)
    expected = np.full((4, 5), 2, np.uint8)
    expected[:, :4] = 1
    for split in ("train", "val"):
        dataset = open_dataset(str(tmp_path), split)
        assert dataset.labels.classes == ("car", "tree", "background")
        both = expected.copy()
        both[1:3, 3:] = 0
        first = dataset.pairs[0].image.stem.endswith("a")
        np.testing.assert_array_equal(dataset.load(0).mask, both if first else expected)


@pytest.mark.parametrize("names", [("car/a", "tree/a"), ("a_car", "a_tree"), ("a/car", "a/tree")])
def test_masks_of_one_class_each_that_are_not_binary_are_told(tmp_path, names):
    put(tmp_path / "images" / "a.png", np.zeros((4, 5, 3), np.uint8))
    for name in names:
        put(tmp_path / "masks" / f"{name}.png", LARGE + SMALL)
    with pytest.raises(SetrError, match=r"several masks.*one other value") as error:
        draft(tmp_path)
    assert error.value.code == DATA_CHECK_FAILED


def test_other_pictures_beside_masks_are_no_classes(tmp_path):
    for stem in "ab":
        put(tmp_path / "images" / f"{stem}.png", np.zeros((4, 5, 3), np.uint8))
        for end in ("gt", "edge"):
            put(tmp_path / "masks" / f"{stem}_{end}.png", LARGE)
    assert "classes: [" in draft(tmp_path).yaml
    for stem in "ab":
        put(tmp_path / "labels" / f"{stem}.png", LARGE)
        for title in ("car", "tree"):
            put(tmp_path / "mask" / title / f"{stem}.png", LARGE)
    assert "labels/a.png" in "".join(draft(tmp_path).lists.values())
    assert not (tmp_path / "masks_drawn").exists()
    for folder in ("labels", "mask"):
        shutil.rmtree(tmp_path / folder)
    put(tmp_path / "masks" / "a" / "crack.png", LARGE[:3])
    for path in (tmp_path / "masks").glob("*.png"):
        path.unlink()
    with pytest.raises(SetrError, match=r"crack\.png: mask is 5x3 but its image 5x4"):
        draft(tmp_path)


def test_masks_of_segments_ai(tmp_path):
    """Numbered objects and colours may lie beside them, in one folder with the images."""
    for stem in "ab":
        put(tmp_path / f"{stem}.jpg", PHOTO)
        for end, mask in (("", IDS * 9), ("_semantic", IDS), ("_semantic_colored", COLOURS)):
            put(tmp_path / f"{stem}_label_ground-truth{end}.png", mask)
    made = draft(tmp_path)
    assert made.note == ""
    write(tmp_path, made)
    assert names(tmp_path, "train")[0][0].endswith(".jpg")
    assert np.unique(open_dataset(str(tmp_path), "val").load(0).mask).tolist() == [0, 1]


def test_masks_that_are_named_after_tasks_of_label_studio(tmp_path):
    put(tmp_path / "images" / "a.jpg", PHOTO)
    put(tmp_path / "masks" / "task-1-annotation-2-by-1-tag-cat-0.png", IDS)
    with pytest.raises(SetrError, match=r"PNG export names tasks, not images; export as JSON"):
        draft(tmp_path)


def test_masks_saved_as_jpeg_are_wrong_data(tmp_path):
    for kind in ("images", "masks"):
        put(tmp_path / kind / "a.jpg", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(SetrError, match="export it as PNG") as error:
        draft(tmp_path)
    assert error.value.code == DATA_CHECK_FAILED


def test_more_classes_than_there_may_be_are_told_how_many(tmp_path):
    put(tmp_path / "images" / "a.jpg", np.zeros((15, 20, 3), np.uint8))
    put(tmp_path / "masks" / "a.png", np.arange(300, dtype=np.uint16).reshape(15, 20))
    with pytest.raises(SetrError, match=r"256 ids.* at most 255 classes.*--threshold 1 "):
        draft(tmp_path)
    made = draft(tmp_path, threshold=1)  # numbers of objects
    assert '0: "foreground"  # 99.67 %' in made.yaml
    assert '1: "background"  # 0.33 %' in made.yaml


def test_soft_edges_are_no_classes(tmp_path):
    hard = np.repeat(np.array([[0, 255]], np.uint8), 200, axis=1).repeat(4, axis=0)
    soft = hard.copy()
    soft[0, 190:210] = np.linspace(0, 255, 20)
    for mask, told in ((hard, False), (soft, True)):
        for stem in "ab":
            put(tmp_path / "images" / f"{stem}.png", np.zeros((4, 400, 3), np.uint8))
            put(tmp_path / "masks" / f"{stem}.png", mask)
        assert ("anti-aliased edges" in draft(tmp_path).yaml) == told
        for stem in "ab":
            put(tmp_path / "masks" / f"{stem}.png", np.stack([mask, mask // 2, 255 - mask], 2))
        assert ("without anti-aliasing" in draft(tmp_path).yaml) == told


@pytest.mark.parametrize("quality", [60, 95, 100])
@pytest.mark.parametrize("middle", [0, 128])
def test_masks_that_were_jpeg_once_are_told_of(tmp_path, capsys, quality, middle):
    """Levels become dozens of ids, or at the highest quality a few beside them."""
    clean = np.zeros((96, 128), np.uint8)
    clean[20:70, 30:80], clean[40:90, 60:110] = middle, 255
    rows, columns = np.mgrid[:96, :128]
    clean[(rows - 25) ** 2 + (columns - 25) ** 2 < 300] = middle or 255
    for lossy in (False, True):
        stored = io.BytesIO()
        Image.fromarray(clean).save(stored, "JPEG" if lossy else "PNG", quality=quality)
        for stem in "ab":
            put(tmp_path / "images" / f"{stem}.png", np.zeros((96, 128, 3), np.uint8))
            put(tmp_path / "masks" / f"{stem}.png", np.asarray(Image.open(stored)))
        assert main(["init-data", str(tmp_path), "--overwrite"]) == OK
        told = capsys.readouterr().err
        assert told.count("warning: ") == lossy
        assert ("form no areas, as after lossy compression" in told) == lossy
        assert ("export the masks from their source again, as PNG" in told) == lossy


def test_thin_classes_are_classes(tmp_path):
    """Lines two pixels wide, and areas of three by three."""
    mask = np.zeros((64, 64), np.uint8)
    for i in range(1, 13):
        mask[5 * i : 5 * i + (2 if i % 2 else 3), : 64 if i % 2 else 3] = i
    put(tmp_path / "images" / "a.png", np.zeros((64, 64, 3), np.uint8))
    put(tmp_path / "masks" / "a.png", mask)
    assert not draft(tmp_path).note
    mask[:], mask[20:40] = 0, 255
    mask[:, 10], mask[:, 20] = 1, 2  # between two areas far apart, but beside one only
    put(tmp_path / "masks" / "a.png", mask)
    assert not draft(tmp_path).note


NAMES = [f"images/{i}.png" for i in range(60)]
BY_CHECKSUM = sorted(NAMES, key=lambda name: zlib.crc32(name.encode()))


def spread(rare: list[str]) -> dict[str, list[str]]:
    """Images of each split where class 1 is in these only; class 0 is everywhere."""
    classes = {name: frozenset({0, 1} if name in rare else {0}) for name in NAMES}
    lists = draft_lists([(name, name) for name in NAMES], 0.2, {}, classes)
    return {split: [line.split("\t")[0] for line in lists[split].splitlines()] for split in lists}


@pytest.mark.parametrize("rare", [BY_CHECKSUM[-5:], BY_CHECKSUM[:2]], ids=["train", "val"])
def test_a_rare_class_is_in_both_parts(rare):
    plain, found = spread([]), spread(rare)
    assert set(plain["val"]) == set(BY_CHECKSUM[:12])
    assert sorted(found["train"] + found["val"]) == sorted(NAMES)
    assert all(set(part) & set(rare) for part in found.values())
    assert len(set(found["val"]) - set(plain["val"])) == 1  # and no other pair has moved
    assert found == spread(rare)


def test_the_number_for_validation_is_rounded():
    pairs = [(name, name) for name in NAMES[:9]]
    counts = []
    for share in (0.0, 0.25, 0.3, 1.0):
        lists = draft_lists(pairs, share, {}, {name: {0} for name in NAMES})
        counts.append(len(lists["val"].splitlines()))
    assert counts == [1, 2, 3, 8]


def test_a_split_with_all_classes_in_both_parts_stays():
    assert spread([BY_CHECKSUM[3], BY_CHECKSUM[30]]) == spread([]) == spread(BY_CHECKSUM[-1:])


def test_no_class_leaves_the_training_for_another():
    """Two for validation lack class 1; the pair with it has the only pixels of 2 to learn from."""
    first, second, both, other, *rest = BY_CHECKSUM[:8]
    classes = {name: {0} for name in rest}
    classes |= {first: {0, 2}, second: {0}, both: {0, 1, 2}, other: {0, 1}}
    lists = draft_lists([(name, name) for name in classes], 0.25, {}, classes)
    val = {line.split("\t")[0] for line in lists["val"].splitlines()}
    assert val == {second, both}


def test_no_class_is_given_up_for_another():
    """One pair for validation, and each class in two."""
    names = ["a", "b", "c", "d"]
    classes = {name: frozenset({n // 2}) for n, name in enumerate(names)}
    lists = draft_lists([(name, name) for name in names], 0.25, {}, classes)
    assert len(lists["val"].splitlines()) == 1
    both = {name: frozenset({n // 2, 2}) for n, name in enumerate(names)}
    assert draft_lists([(name, name) for name in names], 0.25, {}, both) == lists


def test_known_splits_are_kept_whatever_they_lack():
    known = {name: "val" if name in BY_CHECKSUM[:9] else "train" for name in NAMES}
    classes = {name: frozenset({0, 1} if known[name] == "train" else {0}) for name in NAMES}
    lists = draft_lists([(name, name) for name in NAMES], 0.2, known, classes)
    found = {line.split("\t")[0] for line in lists["val"].splitlines()}
    assert found == set(BY_CHECKSUM[:9])


def test_a_rare_defect_is_validated(tmp_path):
    for i, name in enumerate(BY_CHECKSUM):
        put(tmp_path / name, PHOTO)
        put(tmp_path / name.replace("images", "masks"), IDS * (i >= 55))
    write(tmp_path, draft(tmp_path))
    val = open_dataset(str(tmp_path), "val")
    assert len(val) == 12
    assert any(val.load(i).mask.any() for i in range(len(val)))


def test_names_that_are_no_text_come_back_from_the_lists(tmp_path):
    """As archives of other systems leave them."""
    names = sorted(os.fsdecode(name) for name in (b"caf\xe9", b"a b", b"c"))
    for name in names:
        put(tmp_path / "images" / f"{name}.png", PHOTO)
        put(tmp_path / "masks" / f"{name}.png", IDS)
    write(tmp_path, draft(tmp_path))
    found = [p.image for s in ("train", "val") for p in open_dataset(str(tmp_path), s).pairs]
    assert sorted(path.stem for path in found) == names


@pytest.mark.parametrize("lists", [("train", "val"), ("Train", "Validation")])
def test_subsets_of_cvat_are_the_splits(tmp_path, lists):
    """It writes VOC's folders, but its own classes."""
    for stem in ("a b", "c", "d"):
        put(tmp_path / "JPEGImages" / f"{stem}.jpg", PHOTO)
        put(tmp_path / "SegmentationClass" / f"{stem}.png", COLOURS)
    (tmp_path / "labelmap.txt").write_text("# label:…\nfloor:0,128,0::\nplane:10,10,128::\n")
    folder = tmp_path / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for name, text in zip(lists, ("a b\n", "c\nd\n"), strict=True):
        (folder / f"{name}.txt").write_text(text)
    write(tmp_path, draft(tmp_path))
    dataset = open_dataset(str(tmp_path), "val")
    assert dataset.labels.classes == ("floor", "plane")
    assert [pair.image.stem for pair in dataset.pairs] == ["c", "d"]
    (pair,) = open_dataset(str(tmp_path), "train").pairs
    assert pair.image.stem == "a b"


def test_masks_below_the_folder_of_the_images(tmp_path):
    """As CVAT's masks without images are unpacked beside these."""
    for stem in "abc":
        put(tmp_path / f"{stem}.jpg", PHOTO)
        put(tmp_path / "more" / f"{stem}.jpg", PHOTO)
        for kind in ("Class", "Object"):
            put(tmp_path / f"Segmentation{kind}" / f"{stem}.png", COLOURS)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "Train.txt").write_text("a\nb\n")
    (lists / "Validation.txt").write_text("c\n")
    (tmp_path / "labelmap.txt").write_text("# label:…\nfloor:0,128,0::\nplane:10,10,128::\n")
    write(tmp_path, draft(tmp_path))
    assert names(tmp_path, "train") == [(f"{n}.jpg", f"SegmentationClass/{n}.png") for n in "ab"]
    assert names(tmp_path, "val") == [("c.jpg", "SegmentationClass/c.png")]


@pytest.mark.parametrize(
    "subsets", [("default",), ("Train", "Validation", "Test"), ("train", "val")]
)
def test_cvat_s_export_as_camvid(tmp_path, capsys, subsets):
    """Colours have names; an image without objects has no mask, except where folders are splits."""
    for subset in subsets:
        lines = []
        for stem in ("a", "b c"):
            put(tmp_path / subset / f"{stem}.png", PHOTO)
            put(tmp_path / f"{subset}annot" / f"{stem}.png", COLOURS)
            lines.append(f"/{subset}/{stem}.png /{subset}annot/{stem}.png\n")
        if subset in ("default", "Train"):
            put(tmp_path / subset / "empty.png", PHOTO)
            lines.append(f"/{subset}/empty.png \n")
        (tmp_path / f"{subset}.txt").write_text("".join(lines))
    (tmp_path / "label_colors.txt").write_text("0 0 0 background\n0 128 0 floor\n10 10 128 a b\n")
    assert main(["init-data", str(tmp_path)]) == OK
    dataset = open_dataset(str(tmp_path), "val")
    assert dataset.labels.classes == ("floor", "a b")
    assert len(dataset) == (1 if subsets == ("default",) else 2)
    if subsets[0] != "train":
        assert f"1 of {2 * len(subsets) + 1} images have no mask" in capsys.readouterr().err
    if "Test" in subsets:
        assert names(tmp_path, "test")[1] == ("Test/b c.png", "Testannot/b c.png")


@pytest.mark.parametrize("folder", ["imgsFine/leftImg8bit", "leftImg8bit"])
@pytest.mark.parametrize("subset", ["default", "train", "Validation"])
def test_cvat_s_export_as_cityscapes(tmp_path, capsys, folder, subset):
    """Its ids are the lines of the file of colours, not Cityscapes' own."""
    for stem in ("a", "berlin/b", "c"):
        put(tmp_path / folder / subset / f"{stem}_leftImg8bit.png", PHOTO)
        if stem != "c":
            for kind, pixels in (("labelIds", IDS * 2), ("instanceIds", IDS), ("color", COLOURS)):
                put(tmp_path / "gtFine" / subset / f"{stem}_gtFine_{kind}.png", pixels)
    (tmp_path / "label_colors.txt").write_text("0 0 0 back\n0 0 0 floor\n10 10 128 plane\n")
    assert main(["init-data", str(tmp_path)]) == OK
    assert "1 of 3 images have no mask, left out" in capsys.readouterr().err
    dataset = open_dataset(str(tmp_path), "val")
    assert dataset.labels.classes == ("back", "floor", "plane")
    assert set(np.unique(dataset[0].mask)) == {0, 2}
    shown = [str(pair.mask.relative_to(tmp_path)) for pair in dataset.pairs]
    assert set(shown) <= {f"gtFine/{subset}/{s}_gtFine_labelIds.png" for s in ("a", "berlin/b")}


ULTRALYTICS = """
path: .
train: images/train
val: [images/val, images/more]
masks_dir: segments
names:
  1: crack
  0: wall
nc: 2
download: |
  raise SystemExit("never run")
"""


def test_a_file_in_ultralytics_form(tmp_path):
    for folder in ("train", "val", "more"):
        put(tmp_path / "images" / folder / "a.jpg", PHOTO)
        put(tmp_path / "segments" / folder / "a.png", IDS)
    file = tmp_path / "cracks.yaml"
    file.write_text(ULTRALYTICS)
    dataset = open_dataset(str(file), "val")
    assert dataset.labels.classes == ("wall", "crack")
    assert [p.mask.parent.name for p in dataset.pairs] == ["val", "more"]
    np.testing.assert_array_equal(open_dataset(str(file), "train").load(0).mask, IDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("nc: 2", "nc: 3"), "nc 3, but 'names' has 2 entries"),
        (("  0: wall", "  5: wall"), "'names' must have the ids 0 to 1"),
        (("  0: wall", "  x: wall"), "'names' must have the ids 0 to 1"),
        (("nc: 2", "classes: [a, b]"), "'names' and 'classes' mean the same; remove one"),
        (("[images/val, images/more]", "[1, 2]"), "'val' must name a folder or list file"),
        (("masks_dir: segments", "masks_dir: nowhere"), "'images' replaced by nowhere"),
        (("nc: 2", "labels: cityscapes"), "'names' beside 'labels': a known data set has its own"),
        (
            ("names:", "colour_map: classes\nignore: 3\nnames:"),
            "'ignore' beside 'colour_map': masks",
        ),
        (("path: .", "path: ../datasets/cracks"), "path: ../datasets/cracks leads to .* no such"),
    ],
)
def test_what_such_a_file_may_not_say(tmp_path, change, message):
    for folder in ("train", "val", "more"):
        put(tmp_path / "images" / folder / "a.jpg", PHOTO)
        put(tmp_path / "segments" / folder / "a.png", IDS)
    file = tmp_path / "cracks.yaml"
    file.write_text(ULTRALYTICS.replace(*change))
    with pytest.raises(SetrError, match=message) as caught:
        open_dataset(str(file), "val")
    assert caught.value.code in (USAGE, DATA_CHECK_FAILED)


def test_a_folder_called_as_the_built_in_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for stem in "ab":
        put(tmp_path / "scenes" / "images" / f"{stem}.jpg", PHOTO)
        put(tmp_path / "scenes" / "masks" / f"{stem}.png", IDS)
    assert main(["init-data", "scenes"]) == OK
    assert "then `setr doctor ./scenes`" in capsys.readouterr().out
    assert open_dataset("./scenes", "train").labels.classes == ("class_0", "class_1")


def test_masks_of_other_names_or_kinds_are_told(tmp_path):
    put(tmp_path / "images" / "a.jpg", PHOTO)
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "a.npy", IDS)
    with pytest.raises(SetrError, match=r"images \(1 images, as a\.jpg\) .* but \.npy\)") as caught:
        draft(tmp_path)
    assert caught.value.code == DATA_CHECK_FAILED
    put(tmp_path / "masks" / "1.png", IDS)
    with pytest.raises(SetrError, match=r"masks \(1 images, as 1\.png\); save a mask of the same"):
        draft(tmp_path)


def test_the_check_misses_a_split_that_training_wants(tmp_path, capsys):
    put(tmp_path / "images" / "train" / "a.jpg", PHOTO)
    put(tmp_path / "masks" / "train" / "a.png", IDS)
    (tmp_path / "data.yaml").write_text("classes: [a, b]\n")
    assert main(["doctor", str(tmp_path)]) == OK
    told = " ".join(capsys.readouterr().out.split())
    assert "warning val: no such split; training wants one or --data.val-split" in told
    assert told.endswith("0 errors, 1 warnings: ready to train, once there is val")
    assert main(["doctor", str(tmp_path), "--splits", "train"]) == OK
    told = capsys.readouterr()
    assert "no such split" not in told.out
    assert "next:" not in told.err
    put(tmp_path / "images" / "val" / "b.jpg", PHOTO // 2)
    put(tmp_path / "masks" / "val" / "b.png", IDS)
    assert main(["doctor", str(tmp_path)]) == OK
    assert f"next: setr auto {tmp_path}, or setr train" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path), "--quick"]) == OK
    assert "next:" not in capsys.readouterr().err


def test_the_next_command_can_be_pasted_whatever_the_name_of_the_folder(tmp_path, capsys):
    folder = tmp_path / "Prüf Stand's Bilder"
    rng = np.random.default_rng(0)
    for name in ("a ä.png", "b ä.png", "c ä.png"):
        put(folder / "images" / name, rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        put(folder / "masks" / name, np.eye(16, dtype=np.uint8) * 255)
    assert main(["init-data", str(folder)]) == OK
    said = capsys.readouterr().out
    command = said[said.index("`setr doctor ") + 1 : said.rindex("`")]
    assert shlex.split(command) == ["setr", "doctor", str(folder)]
    assert main(shlex.split(command)[1:]) == OK
    assert f"next: setr auto {shlex.quote(str(folder))}, or " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.txt", "val.txt", "data.yaml"])
def test_a_draft_that_is_not_all_written_is_none(tmp_path, capsys, monkeypatch, name):
    """As on a full disk: the description comes last, and the same call finishes it."""
    for number in range(5):
        put(tmp_path / f"images/{number}.png", PHOTO)
        put(tmp_path / f"masks/{number}.png", IDS)

    def refusing(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refusing)
        assert main(["init-data", str(tmp_path)]) == FAILED
    assert not (tmp_path / "data.yaml").exists()
    assert main(["init-data", str(tmp_path)]) == OK
    assert len(names(tmp_path, "train")) == 4
    # lists of someone else stay
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "val.txt").write_text("images/1.png\tmasks/1.png\n")
    capsys.readouterr()
    assert main(["init-data", str(tmp_path)]) == USAGE
    assert "val.txt exists; add --overwrite" in capsys.readouterr().err

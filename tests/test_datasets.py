"""Finding files: every released layout on real samples, own layouts, and everything in disorder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest

from setr.data import hub_rows
from setr.data.pairing import NoSplitError, SplitFiles
from setr.data.pairs import Pairs
from setr.datasets import open_dataset
from setr.doctor import check
from setr.errors import DATA_CHECK_FAILED, FAILED, USAGE, SetrError
from setr.fitting import require_fit
from setr.images import encode_png
from setr.init_data import draft, write
from setr.labels import IGNORE, Labels, known_labels
from setr.model_info import ModelInfo
from setr.reading.masks import read_mask

IDS = np.zeros((6, 8), np.uint8)
PHOTO = np.full((6, 8, 3), 90, np.uint8)


def put(path: Path, array: np.ndarray = IDS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(array))


@pytest.fixture
def folder(tmp_path):
    """Two training pairs and one for validation, described by a data.yaml."""
    for split, stem in (("train", "a"), ("train", "b"), ("val", "c")):
        put(tmp_path / "images" / split / f"{stem}.png", PHOTO)
        put(tmp_path / "labels" / split / f"{stem}.png")
    (tmp_path / "data.yaml").write_text("classes: [road, car]\n")
    return tmp_path


def fails(path, split="train", code=DATA_CHECK_FAILED, labels=None) -> str:
    with pytest.raises(SetrError) as caught:
        open_dataset(str(path), split, labels)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- released layouts, real samples ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "split", "labels", "count", "classes"),
    [
        ("cityscapes", "train", None, 2, 19),
        ("cityscapes_mini", "val", None, 1, 19),
        ("cityscapes_mini", "val", "cityscapes:train_ids", 1, 19),
        ("ade20k", "val", None, 3, 150),
        ("ade20k/ADEChallengeData2016", "val", None, 3, 150),
        ("pascal_context", "val", None, 4, 60),
        ("pascal_context/VOCdevkit/VOC2010", "val", "pascal_context_59", 4, 59),
        ("voc", "val", None, 4, 21),
        ("coco_stuff", "train+val", "coco_stuff", 16, 171),
        ("../camvid", "val", "camvid", 101, 11),
    ],
)
def test_released_layouts(shared, path, split, labels, count, classes):
    dataset = open_dataset(str(shared / "data" / "samples" / path), split, labels)
    assert len(dataset) == count
    assert len(dataset.labels.classes) == classes
    image, mask = dataset.load(count - 1)
    assert image.shape[:2] == mask.shape
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {*range(classes), IGNORE}
    assert (mask != IGNORE).any()


def test_cityscapes_label_ids_become_19_classes(shared):
    dataset = open_dataset(str(shared / "data" / "samples" / "cityscapes"), "train")
    raw = read_mask(dataset.pairs[0].mask)
    mask = dataset.load(0).mask
    assert dataset.pairs[0].mask.name.endswith("_gtFine_labelIds.png")
    np.testing.assert_array_equal(mask == 0, raw == 7)
    np.testing.assert_array_equal(mask == 13, raw == 26)
    ignored = [*range(7), 9, 10, 14, 15, 16, 18, 29, 30]
    np.testing.assert_array_equal(mask == IGNORE, np.isin(raw, ignored))


def test_ade20k_zero_is_ignored(shared):
    dataset = open_dataset(str(shared / "data" / "samples" / "ade20k"), "val")
    raw, mask = read_mask(dataset.pairs[0].mask), dataset.load(0).mask
    np.testing.assert_array_equal(mask, np.where(raw == 0, IGNORE, raw.astype(int) - 1))


@pytest.mark.parametrize("labels", ["pascal_context", "pascal_context_59"])
def test_pascal_context_png_and_mat_agree(shared, tmp_path, labels):
    """Where only the released .mat files exist, they are read, with their own ids."""
    pytest.importorskip("scipy")
    source = shared / "data" / "samples" / "pascal_context"
    png = open_dataset(str(source), "val", labels)
    mat = open_dataset(str(source), "val", f"{labels}:mat")
    assert mat.pairs[0].mask.suffix == ".mat"
    voc = tmp_path / "VOCdevkit" / "VOC2010"
    for name in ("JPEGImages", "ImageSets"):
        shutil.copytree(source / "VOCdevkit" / "VOC2010" / name, voc / name)
    shutil.copytree(source / "trainval_mat_rebuilt", tmp_path / "trainval")
    alone = open_dataset(str(tmp_path), "val", labels)
    for i in range(4):
        np.testing.assert_array_equal(png.load(i).mask, mat.load(i).mask)
        np.testing.assert_array_equal(png.load(i).mask, alone.load(i).mask)


def test_pascal_context_as_its_archives_unpack(tmp_path):
    """VOC 2010 with masks and lists of its own, and a folder of .mat files beside it."""
    savemat = pytest.importorskip("scipy.io").savemat
    voc = tmp_path / "VOCdevkit" / "VOC2010"
    for name in ("ImageSets/Main", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    for stem in ("2008_000002", "2008_000003", "2008_000004"):
        put(voc / "JPEGImages" / f"{stem}.jpg", PHOTO)
        put(voc / "SegmentationClass" / f"{stem}.png", np.full((6, 8), 7, np.uint8))
    (voc / "ImageSets/Main/val.txt").write_text("2008_000002\n2008_000003\n2008_000004\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("2008_000002\n")
    assert "VOC's masks but not Pascal Context's" in fails(voc, "val", labels="pascal_context")
    assert open_dataset(str(voc), "val").labels.classes[0] == "background"
    (tmp_path / "trainval").mkdir()
    for stem in ("2008_000002", "2008_000003", "2008_000004"):
        ids = np.full((6, 8), 2, np.uint16)
        savemat(tmp_path / "trainval" / f"{stem}.mat", {"LabelMap": ids})
    dataset = open_dataset(str(tmp_path), "val", "pascal_context")
    assert len(dataset) == 3
    assert {dataset.labels.classes[i] for i in np.unique(dataset.load(2).mask)} == {"aeroplane"}


def test_voc_border_is_ignored(shared):
    dataset = open_dataset(str(shared / "data" / "samples" / "voc"), "val")
    np.testing.assert_array_equal(dataset.load(0).mask, read_mask(dataset.pairs[0].mask))


def test_coco_stuff_ids(shared):
    dataset = open_dataset(str(shared / "data" / "samples" / "coco_stuff"), "val", "coco_stuff")
    raw, mask = read_mask(dataset.pairs[0].mask), dataset.load(0).mask
    np.testing.assert_array_equal(mask == IGNORE, raw == 255)
    facts = {0: "person", 97: "cabinet", 156: "sky-other", 181: "wood"}  # labels.txt counts from 1
    label_map, names = dataset.labels.label_map, dataset.labels.classes
    assert {raw: names[label_map[raw]] for raw in facts} == facts
    assert all((mask[raw == i] == label_map[i]).all() for i in np.unique(raw))


def test_the_full_ade20k_is_refused_with_the_reason(shared):
    root = shared / "data" / "samples" / "ade20k_full_format"
    for path in (root, root / "ADE20K_2021_17_01"):
        assert "SceneParsing-150" in fails(path)


def cityscapes(root: Path, kind: str, split: str, ids: str, names=("a",)) -> None:
    for name in names:
        stem = f"{name}_000000_000001"
        put(root / "leftImg8bit" / split / name / f"{stem}_leftImg8bit.png", PHOTO)
        put(root / kind / split / name / f"{stem}_{kind}_{ids}.png", IDS + 7)


def test_cityscapes_coarse_joins_the_fine_set(tmp_path):
    cityscapes(tmp_path, "gtFine", "train", "labelIds")
    cityscapes(tmp_path, "gtCoarse", "train_extra", "labelIds", ("b", "c"))
    dataset = open_dataset(str(tmp_path), "train+train_extra")
    kinds = [pair.mask.relative_to(tmp_path).parts[0] for pair in dataset.pairs]
    assert kinds == ["gtFine", "gtCoarse", "gtCoarse"]
    assert (dataset.load(2).mask == 0).all()


def test_a_model_is_tested_on_any_encoding_of_its_classes(tmp_path):
    """What a model carries are Cityscapes' label ids; these files hold training ids."""
    put(tmp_path / "leftImg8bit" / "val" / "a" / "a_000000_000001_leftImg8bit.png", PHOTO)
    put(tmp_path / "gtFine" / "val" / "a" / "a_000000_000001_gtFine_labelTrainIds.png", IDS + 13)
    dataset = open_dataset(str(tmp_path), "val", known_labels("cityscapes"))
    assert (dataset.load(0).mask == 13).all()


def test_a_models_own_map_is_kept_for_other_folders(folder):
    (folder / "data.yaml").unlink()
    own = Labels(known_labels("camvid").classes, label_map={0: 4})
    assert (open_dataset(str(folder), "train", own).load(0).mask == 4).all()


def test_class_numbers_are_no_ids_of_a_released_layout(tmp_path):
    """Read as they are, ADE20K's ids from 1 would be the classes before them."""
    for kind, values in (("images", PHOTO), ("annotations", IDS + 1)):
        put(tmp_path / kind / "training" / "ADE_train_00000001.png", values)
    nameless = Labels(tuple(f"class {i}" for i in range(150)))
    dataset = open_dataset(str(tmp_path), "train", nameless)
    assert (dataset.load(0).mask == IDS).all()
    with pytest.raises(SetrError, match="class 0 is 'class 0' in the model but 'wall' in"):
        require_fit(types.SimpleNamespace(num_classes=150), ModelInfo(nameless), dataset)


def test_cityscapes_instance_ids_are_refused(tmp_path):
    cityscapes(tmp_path, "gtFine", "train", "instanceIds")
    assert "hold object numbers" in fails(tmp_path)


def test_cityscapes_test_images_have_no_masks(tmp_path):
    put(tmp_path / "leftImg8bit" / "test" / "a" / "a_000000_000001_leftImg8bit.png", PHOTO)
    dataset = open_dataset(str(tmp_path), "test")
    assert dataset.pairs[0].mask is None
    with pytest.raises(SetrError, match="has no mask"):
        dataset.load(0)


def test_coco_2017_folders(tmp_path):
    put(tmp_path / "train2017" / "1.png", PHOTO)
    put(tmp_path / "stuffthingmaps" / "train2017" / "1.png", IDS + 181)
    dataset = open_dataset(str(tmp_path), "train")
    assert dataset.labels == known_labels("coco_stuff")
    assert dataset.labels.classes[dataset.load(0).mask[0, 0]] == "wood"


# --- own data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["labels", "masks", "annotations"])
def test_plain_folders(tmp_path, masks):
    put(tmp_path / "images" / "train" / "city" / "a.PNG", PHOTO)
    put(tmp_path / masks / "train" / "city" / "a.png")
    put(tmp_path / "val" / "images" / "b.png", PHOTO)
    put(tmp_path / "val" / masks / "b.png")
    for split in ("train", "val"):
        assert len(open_dataset(str(tmp_path), split, "camvid")) == 1


def test_segnet_folders_with_a_list(tmp_path):
    for stem in "abc":
        put(tmp_path / "train" / f"{stem}.png", PHOTO)
        put(tmp_path / "trainannot" / f"{stem}.png")
    (tmp_path / "train.txt").write_bytes(b"/x/c.png /x/c.png\r\n\r\n  a.png \r\n")
    dataset = open_dataset(str(tmp_path), "train", "camvid")
    assert [pair.image.stem for pair in dataset.pairs] == ["c", "a"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "images/train/a.png\tlabels/train/a.png\n\nimages/val/c.png labels/val/c.png"),
        (
            "list.csv",
            "mask,image\nlabels/train/a.png,images/train/a.png\nlabels/val/c.png,images/val/c.png",
        ),
        (
            "list.csv",
            "image, mask\r\nimages/train/a.png, labels/train/a.png\r\n"
            "images/val/c.png, labels/val/c.png\r\n",
        ),
        (
            "list.csv",
            "image;mask\nimages/train/a.png;labels/train/a.png\nimages/val/c.png;labels/val/c.png",
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_lists_of_pairs(folder, name, text, encoding):
    (folder / name).write_text("\ufeff" + text, encoding=encoding)
    (folder / "data.yaml").write_text(f"train: {name}\nclasses: [road, car]\n")
    dataset = open_dataset(str(folder / "data.yaml"), "train")
    assert [pair.image.stem for pair in dataset.pairs] == ["a", "c"]
    assert dataset.load(1).mask.shape == (6, 8)


@pytest.mark.parametrize("ahead", ["", "./", "ABSOLUTE/"])
def test_lists_of_images_alone(folder, ahead):
    ahead = ahead.replace("ABSOLUTE", str(folder))
    (folder / "list.txt").write_text(f"{ahead}images/val/c.png\n{ahead}images/train/a.png\n")
    (folder / "data.yaml").write_text("train: list.txt\nnames: [road, car]\nmasks_dir: labels\n")
    dataset = open_dataset(str(folder), "train")
    assert [pair.mask.relative_to(folder) for pair in dataset.pairs] == [
        Path("labels/val/c.png"),
        Path("labels/train/a.png"),
    ]


@pytest.mark.parametrize("ahead", ["", "./", "ABSOLUTE/"])
def test_lists_of_images_alone_may_hold_blanks(folder, ahead):
    root = folder / "my data"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
        for name in ("photo 1", "photo"):
            copied = (folder / kind / "train" / "a.png").read_bytes()
            (root / kind / f"{name}.png").write_bytes(copied)
    ahead = ahead.replace("ABSOLUTE", str(root))
    (root / "list.txt").write_text(f"{ahead}images/photo 1.png\n{ahead}images/photo.png\n")
    (root / "data.yaml").write_text("train: list.txt\nnames: [road, car]\n")
    dataset = open_dataset(str(root), "train")
    assert [pair.mask.name for pair in dataset.pairs] == ["photo 1.png", "photo.png"]
    (root / "list.txt").write_text("images/photo 1.png\tlabels/photo.png\n")
    assert open_dataset(str(root), "train").pairs[0].mask.name == "photo.png"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.txt", "only\n", "is not 'image mask'"),
        ("list.txt", "only.png\n", "no mask for only.png; looked for a folder 'images'"),
        ("list.txt", "images/train/no.png\n", "looked for labels/train/no.png, masks/train/no"),
        ("list.txt", "images/train/a.png\nimages/train/b.png x.png\n", "is not one image"),
        ("list.txt", "a b c\n", "use a .csv"),
        ("list.txt", "\n", "lists no images"),
        ("list.txt", "a.png x\na.png y\n", "'a.png' is listed more than once"),
        ("list.csv", "picture,mask\n1,2\n", "columns image and mask"),
        ("none.txt", None, "cannot read"),
    ],
)
def test_wrong_lists(folder, name, text, message):
    if text is not None:
        (folder / name).write_text(text)
    (folder / "data.yaml").write_text(f"train: {name}\nclasses: [road]\n")
    assert message in fails(folder)


def test_a_data_yaml_with_everything(folder):
    (folder / "data.yaml").write_text(
        "train: images/train\nclasses: {road: [1, 2, 3], car: '#040506'}\n"
        "label_map: {0: car, 5: ignore}\nignore: [7, 8]\n"
    )
    dataset = open_dataset(str(folder), "train")
    assert dataset.labels.colours == ((1, 2, 3), (4, 5, 6))
    assert dataset.labels.label_map == {0: 1, 5: IGNORE, 7: IGNORE, 8: IGNORE}
    assert (dataset.load(0).mask == 1).all()


def test_ignore_adds_to_what_is_ignored_anyway(folder):
    (folder / "data.yaml").write_text("classes: [road, car]\nignore: [7]\n")
    labels = open_dataset(str(folder), "train").labels
    assert labels.label_map == {0: 0, 1: 1, 7: IGNORE, 255: IGNORE}


@pytest.mark.parametrize(("stem", "name"), [("ADE_val_00000001", "ade20k"), ("mine", None)])
def test_folders_named_as_ade20k_are_it_by_their_files(tmp_path, stem, name):
    for kind in ("images", "annotations"):
        for part in ("training", "validation"):
            put(tmp_path / kind / part / f"{stem}.png", PHOTO if kind == "images" else IDS)
    if name:
        assert len(open_dataset(str(tmp_path), "train").labels.classes) == 150
    else:
        fails(tmp_path, code=USAGE)  # its classes are unknown
        assert len(open_dataset(str(tmp_path), "train", "ade20k").labels.classes) == 150
        write(tmp_path, draft(tmp_path))
        for split, part in (("train", "training"), ("val", "validation")):
            (pair,) = open_dataset(str(tmp_path), split).pairs
            assert pair.image.parent.name == part


def test_rgb_masks_by_a_colour_map(folder):
    put(folder / "labels" / "train" / "a.png", np.full((6, 8, 3), (9, 8, 7), np.uint8))
    (folder / "data.yaml").write_text(
        "classes: {road: [1, 1, 1], car: [9, 8, 7]}\ncolour_map: classes\n"
    )
    dataset = open_dataset(str(folder), "train")
    assert (dataset.load(0).mask == 1).all()


def test_words_that_yaml_takes_for_true_and_false_are_names(folder):
    (folder / "data.yaml").write_text("classes: [yes, No, on]\nlabel_map: {0: yes, 1: No, 2: on}\n")
    assert open_dataset(str(folder), "train").labels.classes == ("yes", "No", "on")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases: [a]", "did you mean 'classes'"),
        ("- a", "expected keys"),
        ("classes: [a", "not valid YAML (line 1: expected ',' or ']'"),
        ("classes:\n\t- a", "not valid YAML (line 2: found character '\\t' that cannot start"),
        ("classes: [a, b]\nlabel_map: {0: a, 7: b, 7: a}", "'7' is listed twice, again in line 2"),
        ("classes: road", "must list the class names"),
        ("classes: [a, ignore, b]", "'classes' lists 'ignore', which marks pixels to leave out"),
        ("names: {0: a, 1: ignore, 2: b}", "'names' lists 'ignore', which marks pixels to leave"),
        ("classes: [road]\nlabel_map: {0: raod}", "did you mean 'road'"),
        ("classes: [a, b]\nlabel_map: [0, 1]", "label_map [0, 1]: give a table"),
        ("classes: [a, b]\nlabel_map: [0, 1]\nignore: 2", "label_map [0, 1]: give a table"),
        ("classes: [a, b]\nlabel_map: 5", "label_map 5: give a table"),
        ("classes: [a, b]\nlabel_map: {0: null}", "label_map value None: give a class name"),
        ("classes: [a, b]\nlabel_map: {0: [a]}", "label_map value ['a']: give a class name"),
        ("classes: [a, b]\nlabel_map: {null: a}", "label_map key None: raw ids are whole"),
        ("classes: [a, b]\ncolours: 5", "colours 5: give a list"),
        ("classes: [a, b]\nignore: {a: 1}", "ignore {'a': 1}: give an id"),
        ("classes: [a, b]\nignore: [[1]]", "ignore [1]: give an id"),
        ("classes: [a, b]\ncolour_map: {'#000000': null}", "colour_map value None: give a class"),
        ("classes: [a, b]\ncolour_map: {null: a}", "colour None: give [red, green, blue]"),
    ],
)
def test_a_wrong_data_yaml_is_a_usage_error(folder, text, message):
    (folder / "data.yaml").write_text(text)
    assert message in fails(folder, code=USAGE)


def test_an_unreadable_data_yaml_is_one_line(folder, monkeypatch):
    """Root reads every file, so the system's refusal is acted."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert "data.yaml: cannot read" in fails(folder, code=USAGE)


def test_a_folder_may_be_a_path(folder_data):
    found = open_dataset(Path(folder_data), "val")
    assert list(found.pairs) == list(open_dataset(str(folder_data), "val").pairs)


@pytest.mark.parametrize("count", ["abc", "0", "-3", "1.5"])
def test_a_wrong_number_of_scenes(count):
    assert f"scenes:{count}: give a number of scenes" in fails(f"scenes:{count}", code=USAGE)


def test_classes_are_never_guessed(folder):
    (folder / "data.yaml").unlink()
    assert "setr init-data" in fails(folder, code=USAGE)
    assert "no such file or folder" in fails(folder / "gone", code=USAGE)


def test_splits_are_joined_by_name(folder_data):
    joined = open_dataset(str(folder_data), "train+val")
    parts = [open_dataset(str(folder_data), split) for split in ("train", "val")]
    names = [pair.image for part in parts for pair in part.pairs]
    assert len(joined) == 9
    assert [pair.image for pair in joined.pairs] == names
    with pytest.raises(SetrError, match="tets"):
        open_dataset(str(folder_data), "train+tets")


def test_a_split_that_does_not_exist(folder):
    with pytest.raises(NoSplitError, match="no split 'test'"):
        open_dataset(str(folder), "test")


# --- disorder -------------------------------------------------------------------------------------


def test_an_empty_folder(folder):
    for path in (folder / "images" / "train").iterdir():
        path.unlink()
    assert "no images in this folder" in fails(folder)


def test_missing_masks_are_counted_and_named(folder):
    (folder / "labels" / "train" / "b.png").unlink()
    assert "no mask for 1 of 2 images: b.png" in fails(folder)


def test_a_mask_without_image_is_noted(folder):
    put(folder / "labels" / "train" / "z.png")
    assert "1 masks have no image: z.png" in open_dataset(str(folder), "train").notes[0]


def test_two_images_of_one_stem(folder):
    put(folder / "images" / "train" / "a.jpg", PHOTO)
    assert "a.jpg and a.png are images with the same stem" in fails(folder)


def test_names_that_differ_in_case_only(folder):
    put(folder / "images" / "train" / "A.png", PHOTO)
    put(folder / "labels" / "train" / "A.png")
    assert len(open_dataset(str(folder), "train")) == 3


def test_hidden_files_are_left_out(folder):
    for name in (".DS_Store", "._a.png", "Thumbs.db"):
        (folder / "images" / "train" / name).write_bytes(b"x")
        (folder / "labels" / "train" / name).write_bytes(b"x")
    dataset = open_dataset(str(folder), "train")
    assert len(dataset) == 2
    assert not dataset.notes


def test_linked_folders_are_walked(folder, tmp_path):
    for kind in ("images", "labels"):
        place = folder / kind / "train"
        store = tmp_path / "store" / kind
        shutil.copytree(place, store / "town")
        (store / "town" / "up").symlink_to("..")
        (place / "linked").symlink_to(store)
        (place / "self").symlink_to("self")
        (place / "above").symlink_to(folder.parent)
    dataset = open_dataset(str(folder), "train")
    names = sorted(pair.image.relative_to(folder / "images" / "train") for pair in dataset.pairs)
    plain = [name for name in names if len(name.parts) == 1]
    assert names == sorted([*plain, *(Path("linked", "town", name) for name in plain)])
    assert not dataset.notes


def test_link_loops_end_and_bad_links_are_named(folder):
    train = folder / "images" / "train"
    (train / "loop").symlink_to(train)
    assert len(open_dataset(str(folder), "train")) == 2
    (train / "d.png").symlink_to(train / "gone.png")
    put(folder / "labels" / "train" / "d.png")
    with pytest.raises(SetrError, match=r"d\.png: a link that leads nowhere"):
        open_dataset(str(folder), "train").load(2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\r\n\r\nb \r\n", None),
        ("a\nnowhere\n", "1 entries have no image: nowhere"),
        ("a\na\n", "'a' is listed more than once"),
    ],
)
def test_list_files_beside_folders(folder, lines, message):
    (folder / "train.txt").write_bytes(lines.encode())
    if message is None:
        assert len(open_dataset(str(folder), "train")) == 2
    else:
        assert message in fails(folder)


@pytest.fixture
def cities(folder):
    for city in ("cityA", "cityB"):
        for kind, array in (("images", PHOTO), ("labels", IDS)):
            put(folder / kind / "train" / city / "0001.png", array)
    return folder


@pytest.mark.parametrize(
    ("entry", "image"),
    [
        ("cityA/0001.png", "cityA/0001.png"),
        ("cityB/0001", "cityB/0001.png"),
        ("/there/images/train/cityB/0001.jpg", "cityB/0001.png"),
        ("/there/a.jpg", "a.png"),
        ("b", "b.png"),
    ],
)
def test_a_list_names_images_by_their_path(cities, entry, image):
    (cities / "train.txt").write_text(f"{entry}\n")
    (pair,) = open_dataset(str(cities), "train").pairs
    assert pair.image == cities / "images" / "train" / image
    assert pair.mask == cities / "labels" / "train" / image


def test_a_list_that_fits_several_images_or_another_folder(cities):
    (cities / "train.txt").write_text("0001\n")
    message = fails(cities)
    assert "'0001' matches 2 images (images/train/cityA/0001.png and images/train/cityB/" in message
    shutil.rmtree(cities / "images" / "train" / "cityA")
    assert len(open_dataset(str(cities), "train")) == 1
    (cities / "train.txt").write_text("cityA/0001.png\n")
    assert "1 entries have no image: cityA/0001.png" in fails(cities)
    (cities / "train.txt").write_text("cityB/0001.png\n0001.png\n")
    assert "cityB/0001.png' is listed more than once" in fails(cities)


def test_undecodable_names(folder):
    name = os.fsdecode(b"caf\xe9.png")
    put(folder / "images" / "train" / name, PHOTO)
    put(folder / "labels" / "train" / name)
    dataset = open_dataset(str(folder), "train")
    assert dataset.pairs[2].image.name == name
    assert dataset.load(2).mask.shape == (6, 8)


def test_packed_pairs_are_a_sequence():
    pairs = Pairs(
        [SplitFiles(Path("/r"), ["a", "ü"], ["x", "y"]), SplitFiles(Path("/s"), ["b"], None)]
    )
    listed = [(Path("/r/a"), Path("/r/x")), (Path("/r/ü"), Path("/r/y")), (Path("/s/b"), None)]
    assert list(pairs) == listed
    assert pairs[-1] == listed[-1]
    assert pairs[1:] == tuple(listed[1:])
    assert list(pickle.loads(pickle.dumps(pairs))) == listed
    with pytest.raises(IndexError):
        pairs[3]


def test_names_are_those_of_the_pairs():
    names = ["images/a.png", "/elsewhere/b.png"]
    pairs = Pairs([SplitFiles(Path("/r"), names, names), SplitFiles(Path("s"), ["c"], None)])
    assert [*pairs.names()] == [(str(i), None if m is None else str(m)) for i, m in pairs]


def test_a_hundred_thousand_pairs_take_little_memory():
    names = [f"images/train/frame_{i:07d}.png" for i in range(100_000)]
    tracemalloc.start()
    pairs = Pairs([SplitFiles(Path("/data"), names, names)])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 100_000 * 100
    assert pairs[99_999].mask == Path("/data/images/train/frame_0099999.png")


def test_a_hugging_face_data_set(tmp_path, monkeypatch):
    """A folder in the Hub's format: the same code path as an id, without network."""
    datasets = pytest.importorskip("datasets")
    arrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"image": [], "annotation": []}
    for i in range(3):
        rows["image"].append({"path": None, "bytes": encode_png(PHOTO)})
        rows["annotation"].append({"path": None, "bytes": encode_png(IDS + i)})
    (tmp_path / "data").mkdir()
    place = tmp_path / "data" / "train-00000-of-00001.parquet"
    parquet.write_table(arrow.Table.from_pydict(rows), place)
    dataset = open_dataset(f"hf:{tmp_path}", "train", "camvid")
    assert len(dataset) == 3
    image, mask = dataset.load(2)
    assert image.shape == (6, 8, 3)
    assert (mask == 2).all()
    assert "no split 'val'" in fails(f"hf:{tmp_path}", "val", USAGE, "camvid")
    assert "--data.labels" in fails(f"hf:{tmp_path}", "train", USAGE)
    own = tmp_path / "own.yaml"
    own.write_text(f"path: hf:{tmp_path}\nclasses: [a, b]\nlabel_map: {{0: a, 1: b, 2: ignore}}\n")
    dataset = open_dataset(str(own), "train")
    assert [int(dataset.load(i).mask[0, 0]) for i in range(3)] == [0, 1, IGNORE]
    configs = [{"config_name": c, "data_files": "data/*"} for c in ("small", "full")]
    (tmp_path / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    assert len(open_dataset(f"hf:{tmp_path}:full", "train", "camvid")) == 3
    assert "which configuration? it has" in fails(f"hf:{tmp_path}", "train", USAGE, "camvid")
    other = fails(f"hf:{tmp_path}:x", "train", USAGE, "camvid")
    assert "no configuration 'x'; it has" in other


class HubRows:
    """What is used of `datasets.Dataset`: three rows of an image and a mask of one id."""

    _fingerprint = "f"

    def __init__(
        self, first: int, columns: tuple[str, ...] = ("image", "label"), **kinds: str
    ) -> None:
        self.first, self.column_names = first, columns
        self.features = {c: types.SimpleNamespace(dtype=kinds.get(c, "")) for c in columns}

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict:
        mask = encode_png(IDS + self.first + index)
        files = zip(self.column_names, (encode_png(PHOTO), mask), strict=False)
        found = {column: {"bytes": data, "path": None} for column, data in files}
        found |= {c: {"bytes": None, "path": "car"} for c in found if self.is_of(c, "string")}
        return {**found, "mask": None} if index == 2 and "mask" in found else found

    def is_of(self, column: str, kind: str) -> bool:
        return self.features[column].dtype == kind

    def cast_column(self, column: str, kind: object) -> HubRows:
        assert kind == "undecoded"
        if self.is_of(column, "int64"):
            raise TypeError("Couldn't cast array of type int64 to struct")
        return self

    def select_columns(self, columns: list[str]) -> HubRows:
        return self


@pytest.fixture
def hub(monkeypatch):
    """The Hub holds `me/photos` with the splits train, validation and extra."""
    splits = {"train": HubRows(0), "validation": HubRows(10), "extra": HubRows(20)}
    other = {
        "train": HubRows(0, ("pixel_values", "mask", "label"), label="int64"),
        "val": HubRows(0, label="int64"),
        "text": HubRows(0, ("image", "segmentation_mask", "label"), label="string"),
    }
    module = types.ModuleType("datasets")

    def load_dataset(
        name: str,
        config: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = True,
    ) -> dict[str, HubRows]:
        assert not trust_remote_code  # versions before 4 can run code of a data set
        if revision == "v2":
            return {"train": HubRows(1)}
        if revision is not None:
            raise ValueError(f"Invalid rev id: {revision}")
        if name == "me/many" and config not in ("full", "small"):
            raise ValueError(
                f"BuilderConfig '{config}' not found. Available: ['full', 'small']" if config else
                "Config name is missing.\nPlease pick one among the available configs: "
                "['full', 'small']\nExample of usage:\n\t`load_dataset('me/many', 'full')`"
            )  # fmt: skip
        return {"me/photos": splits, "me/other": other, "me/many": splits}[name]

    def no_network(*_: object, **__: object) -> Path:
        raise SetrError("no network")

    monkeypatch.setattr(hub_rows, "fetch", no_network)
    module.load_dataset = load_dataset
    module.Image = lambda decode: "decoded" if decode else "undecoded"
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.parametrize(
    ("splits", "split", "first"),
    [("", "train", 0), ("", "val", 10), ("", "extra", 20), ("val: extra\n", "val", 20)],
)
def test_a_hugging_face_data_set_with_own_classes(hub, tmp_path, splits, split, first):
    ids = f"{{{first}: car, {first + 1}: road, {first + 2}: ignore}}"
    description = tmp_path / "photos.yaml"
    description.write_text(f"path: hf:me/photos\n{splits}classes: [road, car]\nlabel_map: {ids}\n")
    dataset = open_dataset(str(description), split)
    assert dataset.name == "me/photos"
    assert dataset.labels.classes == ("road", "car")
    assert [int(dataset.load(i).mask[0, 0]) for i in range(3)] == [1, 0, IGNORE]


def test_a_configuration_of_a_hugging_face_data_set(hub, tmp_path):
    dataset = open_dataset("hf:me/many:small", "val", "camvid")
    assert (dataset.name, str(dataset.pairs[0].image)) == (
        "me/many:small",
        "me/many:small/validation/0000000",
    )
    message = fails("hf:me/many", "val", USAGE, "camvid")
    assert message.endswith("which configuration? it has full, small; name one, as hf:me/many:full")
    message = fails("hf:me/many:large", "val", USAGE, "camvid")
    assert "no configuration 'large'; it has full, small; " in message
    assert "cannot load ('me/gone')" in fails("hf:me/gone", "val", FAILED, "camvid")


@pytest.mark.parametrize("name", ["hf:me/photos@v2", "hf:me/many@v2:small"])
def test_a_revision_of_a_hugging_face_data_set(hub, name):
    dataset = open_dataset(name, "train", "camvid")
    assert [int(dataset.load(i).mask[0, 0]) for i in range(3)] == [1, 2, 3]
    assert dataset.name == name.removeprefix("hf:")
    message = fails(name.replace("v2", "v3"), "train", FAILED, "camvid")
    assert "@v3" in message
    assert "cannot load (Invalid rev id: v3)" in message


def test_broken_images_of_a_hugging_face_data_set_are_named(hub, monkeypatch):
    row = {"image": {"bytes": b"x", "path": "a.png"}, "label": {"bytes": b"y", "path": None}}
    monkeypatch.setattr(HubRows, "__getitem__", lambda *_: row)
    dataset = open_dataset("hf:me/photos", "train", "camvid")
    with pytest.raises(SetrError, match=r"^me/photos/train/0000001: not an image"):
        dataset.load(1)
    with pytest.raises(SetrError, match=r"^me/photos/train/0000001:label: not an image"):
        dataset.raw_mask(1, dataset.sources(1)[1], (6, 8))


def test_columns_of_hugging_face_rows_that_hold_no_image(hub, tmp_path):
    """`label` may be the number of a class, and a row may lack its mask."""
    description = tmp_path / "other.yaml"
    description.write_text("path: hf:me/other\nclasses: [a, b, c]\n")
    dataset = open_dataset(str(description), "train")
    assert [int(dataset.load(i).mask[0, 0]) for i in range(2)] == [0, 1]
    assert check(dataset).problems == ("me/other/train/0000002: has no mask",)
    assert (open_dataset(str(description), "text").load(1).mask == 1).all()  # not of the text
    message = fails(description, "val")
    assert "needs images in the columns" in message
    assert "it has image, label" in message


def test_class_names_in_a_file_of_a_hugging_face_data_set(hub, tmp_path, monkeypatch):
    asked = []

    def fetch(source: str, files: tuple[str, ...], **options: object) -> Path:
        asked.append((source, files, options["kind"]))
        return tmp_path

    monkeypatch.setattr(hub_rows, "fetch", fetch)
    names = tmp_path / "id2label.json"
    names.write_text('{"10": "car", "11": "road", "12": "ignore"}')
    for name in ("me/many:small", "me/photos"):
        dataset = open_dataset(f"hf:{name}", "val")
        assert dataset.labels.classes == ("car", "road")
        assert [int(dataset.load(i).mask[0, 0]) for i in range(3)] == [0, 1, IGNORE]
    open_dataset("hf:me/photos@v2", "train")
    sources = ("me/many", "me/photos", "me/photos@v2")
    assert asked == [(source, ("id2label.json",), "dataset") for source in sources]
    names.write_text('["car", 3]')
    assert "does not list names by id" in fails("hf:me/photos", "val", DATA_CHECK_FAILED)
    names.unlink()
    assert "class names are unknown (it has no id2label.json)" in fails(
        "hf:me/photos", "val", USAGE
    )
    assert open_dataset("hf:me/photos", "val", "camvid").labels.classes[0] == "Sky"


def test_a_data_set_that_cannot_be_asked_for_its_class_names(hub):
    """The reader is told of the network or the wrong name, not only to write a file."""
    assert "class names are unknown (no network); name" in fails("hf:me/photos", "val", USAGE)


def test_a_hugging_face_description_that_lacks_something(hub, tmp_path):
    description = tmp_path / "photos.yaml"
    description.write_text("path: hf:me/photos\n")
    assert "'path: hf:me/photos' and 'classes:'" in fails(description, code=USAGE)
    description.write_text("path: hf:me/photos\nclasses: [road]\nval: valid\n")
    assert "no split 'valid'; it has train, validation, extra" in fails(
        description, "val", code=USAGE
    )
    with pytest.raises(NoSplitError, match="no split 'test'"):
        open_dataset(str(description), "test")


def test_a_list_in_another_order_keeps_its_pairs(tmp_path):
    for stem in "abc":
        put(tmp_path / "train" / f"{stem}.png", PHOTO)
        put(tmp_path / "trainannot" / f"{stem}.png")
    (tmp_path / "train.txt").write_text("c.png\na.png\n")
    pairs = open_dataset(str(tmp_path), "train", "camvid").pairs
    assert [(pair.image.stem, pair.mask.stem) for pair in pairs] == [("c", "c"), ("a", "a")]


@pytest.mark.parametrize("split", ["", "train+", "+", " "])
def test_an_empty_name_of_a_split_is_refused(folder, split):
    assert f"split '{split}': give a name" in fails(folder, split, code=USAGE)


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (("cam", "cam.01", "cam.02"), ["cam.01"]),
        (("2024.05.01_a", "2024.05.01_b"), ["2024.05.01_a"]),
        (("img", "img 1", "img 2"), ["img 1", "img 2"]),
    ],
)
@pytest.mark.parametrize("layout", ["plain", "voc"])
def test_listed_names_may_hold_dots_and_blanks(tmp_path, names, listed, layout):
    images, masks, lists = (
        ("images/train", "labels/train", "train.txt")
        if layout == "plain"
        else ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt")
    )
    for name in names:
        put(tmp_path / images / f"{name}.jpg", PHOTO)
        put(tmp_path / masks / f"{name}.png")
    (tmp_path / "data.yaml").write_text("classes: [road, car]\n")
    path = tmp_path / lists
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in listed))
    pairs = open_dataset(str(tmp_path), "train").pairs
    assert [pair.image.stem for pair in pairs] == listed


@pytest.mark.parametrize("lists", ["train.txt", "ImageSets/Segmentation/train.txt"])
def test_a_list_without_names_is_told(folder, lists):
    (folder / "SegmentationClass").mkdir()
    (folder / lists).parent.mkdir(parents=True, exist_ok=True)
    (folder / lists).write_text("\n")
    assert f"{folder / lists}: lists no images; write their names" in fails(folder)


def test_two_masks_of_one_name_are_refused(folder):
    put(folder / "labels/train/a.bmp")
    assert "a.bmp and a.png are masks with the same stem" in fails(folder)

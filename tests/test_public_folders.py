"""Folders as public data sets have them, and images and masks that the user names."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr.cli import main
from setr.data.flat_pairs import inventory
from setr.data.mask_names import masks_by_stem, separate_masks
from setr.data.name_patterns import pairs_by_pattern
from setr.data.split_draft import known_split
from setr.datasets import open_dataset
from setr.doctor import check
from setr.errors import DATA_CHECK_FAILED, OK, USAGE, SetrError
from setr.init_data import draft, write
from tests.conftest import refusal

from .test_own_folders import IDS, PHOTO, put

COLOURS = np.array([[0, 255, 255], [255, 255, 0]], np.uint8)[IDS]


def fill(root: Path, images: str, masks: str, pixels: np.ndarray, places: str = "") -> None:
    """Three pairs each; `{p}` in the names is a place, `{i}` a number."""
    for place in places.split() or [""]:
        for i in (1, 10, 11):
            put(root / images.format(p=place, i=i), PHOTO)
            put(root / masks.format(p=place, i=i), pixels)


def pairs(root: Path, split: str) -> dict[str, str]:
    found = open_dataset(str(root), split).pairs
    return {str(p.image.relative_to(root)): str(p.mask.relative_to(root)) for p in found}


FOUND = {
    "DeepGlobe": ("train/{i}_sat.jpg", "train/{i}_mask.png", "", COLOURS),
    "LandCover.ai's tiles": ("output/N-3_{i}.jpg", "output/N-3_{i}_m.png", "", IDS),
    "LoveDA": ("{p}/images_png/{i}.png", "{p}/masks_png/{i}.png", "Train/Urban Val/Rural", IDS),
    "UAVid": ("{p}/Images/{i}.png", "{p}/Labels/{i}.png", "uavid_train/seq1 uavid_val/seq7", IDS),
    "Inria": ("{p}/images/a{i}.tif", "{p}/gt/a{i}.tif", "train", IDS * 255),
    "WHU": ("{p}/Image/{p}{i}.tif", "{p}/Label/{p}{i}.tif", "train val test", IDS * 255),
    "CVC-ClinicDB": ("PNG/Original/{i}.png", "PNG/Ground Truth/{i}.png", "", IDS * 255),
    "one folder deeper": ("data/images/{i}.jpg", "data/masks/{i}.png", "", IDS),
    "Cityscapes' names": (
        "images/{p}/{i}_leftImg8bit.png", "labels/{p}/{i}_gtFine_labelIds.png", "train val", IDS,
    ),
}  # fmt: skip
NAMED = {
    "Potsdam": (
        "2_Ortho_RGB/top_2_{i}_RGB.tif", "5_Labels_all/top_2_{i}_label.tif", "", COLOURS,
        "2_Ortho_RGB", "5_Labels_all",
    ),
    "BDD100K": (
        "images/10k/{p}/{i}-a.jpg", "labels/sem_seg/masks/{p}/{i}-a.png", "train val", IDS,
        "images/10k", "labels/sem_seg/masks",
    ),
    "Mapillary Vistas 2": (
        "{p}/images/{i}.jpg", "{p}/v2.0/labels/{i}.png", "training validation", IDS,
        "*/images/*", "*/v2.0/labels/*",
    ),
    "KITTI": (
        "training/image_2/{i}_10.png", "training/semantic/{i}_10.png", "", IDS,
        "training/image_2", "training/semantic",
    ),
    "KITTI's roads": (
        "training/image_2/um_{i}.png", "training/gt_image_2/um_road_{i}.png", "", COLOURS,
        "training/image_2/*_*.png", "training/gt_image_2/*_road_*.png",
    ),
    "A2D2": (
        "{p}/camera/front/{p}_camera_front_{i}.png", "{p}/label/front/{p}_label_front_{i}.png",
        "20180807 20180810", COLOURS, "*/camera/**_camera_*", "./*/label/**_label_*",
    ),
    "iSAID": (
        "{p}/images/P{i}.png", "{p}/Semantic_masks/images/P{i}_instance_color_RGB.png",
        "train val", COLOURS, "*/images/*", "*/Semantic_masks/images/*_instance_color_RGB",
    ),
    "ISIC": (
        "Training_Input/ISIC_{i}.jpg", "Training_GroundTruth/ISIC_{i}_segmentation.png", "",
        IDS * 255, "Training_Input", "Training_GroundTruth",
    ),
    "HAM10000": (
        "HAM10000_images_part_{p}/ISIC_{p}{i}.jpg",
        "HAM10000_segmentations_lesion_tschandl/ISIC_{p}{i}_segmentation.png", "1 2", IDS * 255,
        "HAM10000_images_part_{any}/*", "HAM10000_segmentations_lesion_tschandl/*_segmentation",
    ),
    "DeepCrack": (
        "{p}_img/{p}{i}.jpg", "{p}_lab/{p}{i}.png", "train test", IDS * 255, "*_img/*", "*_lab/*",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FOUND, *NAMED])
def test_pairs_of_public_data_sets(tmp_path, name):
    images, masks, places, pixels, *given = (FOUND | NAMED)[name]
    fill(tmp_path, images, masks, pixels, places)
    options = ["--images", given[0], "--masks", given[1]] if given else []
    assert main(["init-data", str(tmp_path), *options]) == OK
    found = pairs(tmp_path, "train") | pairs(tmp_path, "val")
    known = [known_split(f"{place}/x", {}) for place in places.split()]
    if "test" in known or name == "DeepCrack":
        found |= pairs(tmp_path, "test")
    both = {
        images.format(p=p, i=i): masks.format(p=p, i=i)
        for p in places.split() or [""]
        for i in (1, 10, 11)
    }
    assert found == both
    if "val" in known:
        assert len(pairs(tmp_path, "val")) == 3
    assert main(["doctor", str(tmp_path), "--splits", "train", "--quick"]) == OK


def test_a_folder_called_testing_is_not_ade20k(tmp_path):
    fill(tmp_path, "{p}/images/{p}{i}.jpg", "{p}/labels/{p}{i}.png", IDS, "training validation")
    for i in (1, 2):
        put(tmp_path / "testing" / "images" / f"{i}.jpg", PHOTO)
    (tmp_path / "testing" / "labels").mkdir()  # empty, as Mapillary Vistas has it
    assert main(["init-data", str(tmp_path)]) == OK
    test = open_dataset(str(tmp_path), "test")
    assert [pair.mask for pair in test.pairs] == [None, None]
    put(tmp_path / "testing" / "labels" / "1.png", IDS)
    put(tmp_path / "testing" / "labels" / "2.png", IDS)
    assert pairs(tmp_path, "test") == {
        f"testing/images/{i}.jpg": f"testing/labels/{i}.png" for i in (1, 2)
    }


def test_test_images_of_ade20k_are_still_known(tmp_path):
    put(tmp_path / "testing" / "ADE_test_00000001.jpg", PHOTO)
    test = open_dataset(str(tmp_path), "test")
    assert (len(test), len(test.labels.classes), test.pairs[0].mask) == (1, 150, None)
    (tmp_path / "testing" / "ADE_test_00000001.jpg").rename(tmp_path / "testing" / "1.jpg")
    assert len(open_dataset(str(tmp_path), "test", "ade20k")) == 1
    with pytest.raises(SetrError, match="no split 'test' found"):
        open_dataset(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--images", "a"], "--images a: give --masks, too"),
        (["--masks", "b"], "--masks b: give --images, too"),
        (["--images", "a/*", "--masks", "b/*_*"], "the same number of *, one or more"),
        (["--images", "a/1.png", "--masks", "b/1.png"], "the same number of *, one or more"),
        (["--images", "../a", "--masks", "b"], "--images ../a: give a path below"),
        (["--images", "a", "--masks", "/b"], "--masks /b: give a path below"),
        (["--images", "a/*", "--masks", "c/*"], "2 images, as a/1.png and no mask of the same"),
        (["--images", "c/*", "--masks", "b/*"], "no image and no mask of the same name; "),
        (["--images", "a/*", "--masks", "*/**"], "the same number of *"),
        (["--images", "*/*", "--masks", "b/**"], "the same number of *"),
        (["--images", "a/*", "--masks", "b/*_b", "--rest", "ignore"], "--rest ignore: is for outl"),
        (["--images", "a", "--masks", "b", "--class-key", "k"], "--class-key k: is for GeoJSON"),
        (["--threshold", "-1"], "--threshold -1: give 0 to 65,535"),
    ],
)
def test_what_cannot_be_paired_is_told(tmp_path, capsys, options, told):
    for name in ("1", "2"):
        put(tmp_path / "a" / f"{name}.png", PHOTO)
        put(tmp_path / "b" / f"{name}_b.png", IDS)
    assert told in refusal(capsys, "init-data", tmp_path, *options)
    assert not (tmp_path / "data.yaml").exists()


def test_several_files_for_one_place_of_a_pattern():
    files = ["a/1.jpg", "a/1.png", "b/1.png"]
    with pytest.raises(SetrError, match=r"--images a/\*: a/1\.jpg and a/1\.png agree"):
        pairs_by_pattern(files, "a/*", "b/*")
    assert pairs_by_pattern(files, "a/*.jpg", "b/*") == ([("a/1.jpg", "b/1.png")], [])
    files = ["1.png", "1_m.png", "x/2.png", "x/2_m.png", "3.png"]
    both = [("1.png", "1_m.png"), ("x/2.png", "x/2_m.png")]
    assert pairs_by_pattern(files, "**/*", "**/*_m") == (both, ["3.png"])
    assert pairs_by_pattern(files, "*", "*_m") == (both[:1], ["3.png"])


def test_a_folder_without_usual_names_is_described(tmp_path, capsys):
    for folder in "abcdefg":
        put(tmp_path / folder / f"{folder}1.png", PHOTO)
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    error = capsys.readouterr().err
    assert "it has images in a (1, as a1.png), b (1, as b1.png), " in error
    assert "f (1, as f1.png), …; say which files belong together" in error
    assert "--images 'IMAGE_FOLDER/*' --masks 'MASK_FOLDER/*_mask'" in error
    assert inventory([]) == ""


def test_numbers_with_other_zeros(tmp_path, capsys):
    fill(tmp_path, "images/{i}.jpg", "masks/000{i}.png", IDS)
    assert main(["init-data", str(tmp_path)]) == DATA_CHECK_FAILED
    given = "--images", "images/{number}", "--masks", "masks/{number}"
    told = "--images 'images/{number}' --masks 'masks/{number}' takes them as equal"
    assert told in capsys.readouterr().err
    assert main(["init-data", str(tmp_path), *given]) == OK
    found = pairs(tmp_path, "train") | pairs(tmp_path, "val")
    assert found == {f"images/{i}.jpg": f"masks/000{i}.png" for i in (1, 10, 11)}


def test_images_that_are_in_no_pair_are_told(tmp_path):
    """Others may be meant, as those of vessels instead of the field of view."""
    fill(tmp_path, "images/{i}.tif", "mask/{i}_mask.gif", IDS)
    fill(tmp_path, "vessels/{i}_vessels.gif", "masks_drawn/{i}.png", IDS)
    made = draft(tmp_path)
    assert "# not used: images in vessels (3, as 10_vessels.gif)\n" in made.yaml
    made = draft(tmp_path, images="images", masks="vessels")
    assert "# not used: images in mask (3, as 10_mask.gif)\n" in made.yaml
    assert "vessels/1_vessels.gif" in "".join(made.lists.values())


def test_an_end_that_all_images_share_is_left_out():
    images = ["a/1_sat.jpg", "a/10_sat.jpg"]
    assert masks_by_stem(images, ["a/1_m.png"]) == {"a/1_sat": "a/1_m.png"}
    assert masks_by_stem(images, ["a/10.png"]) == {"a/10_sat": "a/10.png"}
    assert masks_by_stem(images[:1], ["a/10_m.png"]) == {"a/10_m": "a/10_m.png"}
    assert masks_by_stem(["a/x_1", "b/x_1"], ["a/x.png"]) == {"a/x": "a/x.png"}  # a number
    assert separate_masks(["1_sat.jpg", "1_mask.png", "about.png"]) == (
        ["1_sat.jpg"],
        ["1_mask.png"],
    )


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("images/train/a", "train"), ("Train/a", "train"), ("test-org-img/a", "test"),
        ("stage1_train/a", "train"), ("Task1_Validation_Input/a", "val"), ("train_val/a", ""),
        ("trains/a", ""), ("strain/a", ""), ("a/train", ""), ("trainval/val/a", "val"),
    ],
)  # fmt: skip
def test_splits_are_words_in_the_names_of_folders(path, split):
    assert known_split(path, {}) == split
    assert known_split(path, {path: "other"}) == "other"


def test_lists_beside_the_folders_are_the_splits(tmp_path, capsys):
    """As LandCover.ai has them; a draft does not replace them."""
    fill(tmp_path, "output/N-3_{i}.jpg", "output/N-3_{i}_m.png", IDS)
    (tmp_path / "train.txt").write_text("N-3_11")
    (tmp_path / "val.txt").write_text("N-3_1.jpg\n")
    (tmp_path / "test.txt").write_text("N-3_10\n")
    for options in ([], ["--overwrite"]):
        assert main(["init-data", str(tmp_path), *options]) == USAGE
        assert "train.txt: a draft would replace this list" in capsys.readouterr().err
        assert (tmp_path / "train.txt").read_text() == "N-3_11"
    for _ in range(2):  # the second time over its own lists
        options = ["--name", "tiles.yaml", "--overwrite"]
        assert main(["init-data", str(tmp_path), *options]) == OK
    for split, number in (("train", 11), ("val", 1), ("test", 10)):
        (pair,) = open_dataset(str(tmp_path / "tiles.yaml"), split).pairs
        assert pair.image.name == f"N-3_{number}.jpg"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("options", [[], ["--images", "images", "--masks", "masks"]])
def test_masks_of_two_classes_that_are_not_exact_are_drawn_anew(tmp_path, capsys, suffix, options):
    """As Kvasir-SEG has them, in JPEG; and with soft edges, in PNG."""
    rows, columns = np.mgrid[:48, :64]
    exact = ((rows - 20) ** 2 + (columns - 30) ** 2 < 200).astype(np.uint8)
    stored = io.BytesIO()
    Image.fromarray(exact * 255).save(stored, "JPEG", quality=90)
    for split in ("train", "val"):
        put(tmp_path / "images" / split / f"{split}.jpg", np.zeros((48, 64, 3), np.uint8))
        mask = tmp_path / "masks" / split / f"{split}.{suffix}"
        mask.parent.mkdir(parents=True)
        Image.open(io.BytesIO(stored.getvalue())).save(mask)
    code = main(["init-data", str(tmp_path), *options])
    assert code == (DATA_CHECK_FAILED if suffix == "jpg" else OK)
    assert "--threshold 128" in capsys.readouterr().err
    again = ["init-data", str(tmp_path), "--threshold", "128", "--overwrite", *options]
    for _ in range(2):
        assert main(again) == OK
    assert "not used" not in (tmp_path / "data.yaml").read_text()
    for split in ("train", "val"):
        dataset = open_dataset(str(tmp_path), split)
        assert dataset.labels.classes == ("foreground", "background")
        np.testing.assert_array_equal(dataset.load(0).mask, 1 - exact)
        assert dataset.pairs[0].image.stem == split
    (tmp_path / "classes.txt").write_text("skin\npolyp\n")
    assert main([*again, "--rest", "skin"]) == OK
    assert open_dataset(str(tmp_path), "val").labels.classes == ("polyp", "skin")


def test_a_threshold_reads_masks_of_16_bits_and_colours(tmp_path):
    fill(tmp_path, "images/{i}.jpg", "masks/{i}.png", IDS.astype(np.uint16) * 60000 + 90)
    write(tmp_path, draft(tmp_path, threshold=30000))
    np.testing.assert_array_equal(open_dataset(str(tmp_path), "val").load(0).mask, 1 - IDS)
    fill(
        tmp_path,
        "images/{i}.jpg",
        "masks/{i}.png",
        np.where(IDS[..., None] > 0, 250, (9, 8, 7)).astype(np.uint8),
    )
    write(tmp_path, draft(tmp_path, threshold=128))
    np.testing.assert_array_equal(open_dataset(str(tmp_path), "val").load(0).mask, 1 - IDS)


def test_names_in_the_files_of_public_data_sets(tmp_path):
    fill(tmp_path, "images/{i}.jpg", "masks/{i}.png", COLOURS)
    a2d2, kaggle = tmp_path / "class_list.json", tmp_path / "label_class_dict.csv"
    a2d2.write_text('{"#00ffff": "Car 1", "#ffff00": "Road", "#010203": "Sky"}')
    assert 'classes:\n  "Car 1": [0, 255, 255]\n  "Road": [' in draft(tmp_path).yaml
    a2d2.write_text("[]")
    assert "  class_0: [0, 255, 255]" in draft(tmp_path).yaml
    kaggle.write_text("name,r,g,b\nwater,0,255,255\nroad,255,255,0\n")
    assert '  "water": [0, 255, 255]' in draft(tmp_path).yaml
    kaggle.write_text("name,r,g,b\nground,0,0,0\nbuilding,255,255,255\n")
    fill(tmp_path, "images/{i}.jpg", "masks/{i}.png", np.dstack([IDS * 255] * 3))
    assert 'label_map: {0: "ground", 255: "building"}' in draft(tmp_path).yaml
    fill(tmp_path, "images/{i}.jpg", "masks/{i}.png", IDS * 254)
    assert '  254: "class_254"' in draft(tmp_path).yaml
    fill(tmp_path, "images/{i}.jpg", "masks/{i}.png", IDS + 1)
    labels = [
        {"name": "a--bird", "readable": name, "evaluate": counts}
        for name, counts in (("Bird", True), ("Curb", True), ("Unlabeled", False))
    ]
    (tmp_path / "config.json").write_text(json.dumps({"labels": labels}))
    made = draft(tmp_path).yaml
    assert 'classes:\n  - "Bird"\n  - "Curb"\nlabel_map:' in made
    assert "\n  2: ignore" in made
    (tmp_path / "config_v2.json").write_text(json.dumps({"labels": labels}))
    assert "class_1" in draft(tmp_path).yaml  # which of the two is not known


def test_a_share_for_validation_that_has_no_effect_is_refused(tmp_path, capsys):
    fill(tmp_path, "images/{p}/{p}{i}.jpg", "masks/{p}/{p}{i}.png", IDS, "train val")
    options = ["init-data", str(tmp_path), "--val-share", "0.4"]
    for more in ([], ["--threshold", "1"], ["--images", "images", "--masks", "masks"]):
        assert "--val-share 0.4: has no effect, because" in refusal(capsys, *options, *more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]
    (tmp_path / "images" / "val").rename(tmp_path / "images" / "test")
    (tmp_path / "masks" / "val").rename(tmp_path / "masks" / "test")
    assert main(options) == OK
    assert len(pairs(tmp_path, "val")) == 1


@pytest.mark.parametrize("command", ["init-data", "doctor", "auto"])
def test_an_archive_is_no_folder(tmp_path, capsys, command):
    (tmp_path / "photos.zip").write_bytes(b"PK\3\4\xff")
    error = refusal(capsys, command, tmp_path / "photos.zip")
    assert "photos.zip: is " in error
    assert "folder" in error
    assert "unpacked" in error


def test_links_to_folders_are_followed_once(tmp_path):
    fill(tmp_path / "far", "Images/{i}.jpg", "gt/{i}.png", IDS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "train").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(tmp_path / "photos")
    write(tmp_path / "photos", draft(tmp_path / "photos"))
    found = pairs(tmp_path / "photos", "train") | pairs(tmp_path / "photos", "val")
    assert found == {f"train/Images/{i}.jpg": f"train/gt/{i}.png" for i in (1, 10, 11)}


def test_ids_that_begin_at_one_are_told(tmp_path):
    """Adding only the last one, as a class or 'ignore', would shift all others."""
    fill(tmp_path, "images/train/{i}.png", "masks/train/{i}.png", IDS + 1)
    (tmp_path / "data.yaml").write_text("classes: [wall, crack]\n")
    (problem, *_) = check(open_dataset(str(tmp_path), "train")).problems
    assert "outside the 2 classes: 2 (24 px)" in problem
    assert problem.endswith(
        "if ids begin at 1, map all of them: label_map: {1: wall, …}, else add this one as a class "
        "or 'ignore'"
    )
    fill(tmp_path, "images/train/{i}.png", "masks/train/{i}.png", IDS * 3)
    (problem, *_) = check(open_dataset(str(tmp_path), "train")).problems
    assert problem.endswith("add them to label_map as a class or 'ignore'")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_masks_of_0_and_255_are_told_whatever_their_bits(tmp_path, kind):
    fill(tmp_path, "images/train/{i}.png", "masks/train/{i}.png", IDS.astype(kind) * 255)
    (tmp_path / "data.yaml").write_text("classes: [wall, crack]\n")
    (problem,) = check(open_dataset(str(tmp_path), "train")).problems
    assert "masks contain only 0 and 255, and 255 is ignored, so class 'crack' never" in problem

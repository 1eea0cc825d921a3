"""Groups of images that stay together, and folds for cross-validation, in data.yaml."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setr.cli import main
from setr.data.fold_draft import draft_folds
from setr.datasets import open_dataset
from setr.errors import OK, USAGE, SetrError

PHOTO = np.full((6, 8, 3), 90, np.uint8)
IDS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 2


def fill(root: Path, names: list[str]) -> None:
    for name in names:
        for folder, pixels in (("images", PHOTO), ("masks", IDS)):
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def stems(root: Path, split: str) -> set[str]:
    return {pair.image.stem for pair in open_dataset(str(root), split).pairs}


PATIENTS = [f"p{i}_{k}" for i in range(8) for k in range(1 + i % 3)]


def test_images_of_a_group_are_in_one_split(tmp_path):
    fill(tmp_path, PATIENTS)
    assert main(["init-data", str(tmp_path)]) == OK
    without = [{name[:2] for name in stems(tmp_path, split)} for split in ("train", "val")]
    assert without[0] & without[1]
    given = "--group-by", "images/*_{any}", "--val-share", "0.25", "--overwrite"
    assert main(["init-data", str(tmp_path), *given]) == OK
    train, val = ({name[:2] for name in stems(tmp_path, split)} for split in ("train", "val"))
    assert len(val) == 2
    assert not train & val
    assert stems(tmp_path, "train") | stems(tmp_path, "val") == set(PATIENTS)


@pytest.mark.parametrize("groups", [(), ("--group-by", "images/*_{any}")])
def test_folds(tmp_path, groups):
    """Each image is validated on once; the same command gives the same folds."""
    fill(tmp_path, PATIENTS)
    assert main(["init-data", str(tmp_path), "--folds", "4", *groups]) == OK
    parts = [stems(tmp_path, f"val{k}") for k in range(1, 5)]
    assert sum(map(len, parts)) == len(PATIENTS)
    assert set().union(*parts) == set(PATIENTS)
    assert max(map(len, parts)) - min(map(len, parts)) <= (2 if groups else 1)
    for k, val in enumerate(parts, 1):
        assert stems(tmp_path, f"train{k}") == set(PATIENTS) - val
        if groups:
            assert not {n[:2] for n in val} & {n[:2] for n in set(PATIENTS) - val}
    before = (tmp_path / "fold2.txt").read_bytes()
    assert main(["init-data", str(tmp_path), "--folds", "4", *groups, "--overwrite"]) == OK
    assert (tmp_path / "fold2.txt").read_bytes() == before
    assert main(["doctor", str(tmp_path), "--splits", "train2", "val2", "--quick"]) == OK


def test_folds_take_the_place_of_train_and_val(tmp_path, capsys):
    """A model that was trained on four folds is never tested on one of them by default."""
    fill(tmp_path, [f"{split}/{split}{i}" for split in ("train", "val") for i in range(3)])
    assert main(["init-data", str(tmp_path), "--folds", "3"]) == OK
    with pytest.raises(SetrError, match="no split 'val', but folds; name one of train1, val1, "):
        open_dataset(str(tmp_path), "val")
    assert len(open_dataset(str(tmp_path), "val1+val2+val3")) == 6
    capsys.readouterr()
    assert main(["doctor", str(tmp_path), "--quick"]) == OK
    told = capsys.readouterr().out
    assert "val1: 2 images" in told
    assert "val3: 2 images" in told
    assert "0 errors, 0 warnings" in told


def test_test_images_are_in_no_fold(tmp_path):
    fill(tmp_path, [f"{split}/{split}{i}" for split in ("train", "val", "test") for i in range(3)])
    assert main(["init-data", str(tmp_path), "--folds", "2", "--name", "cv.yaml"]) == OK
    parts = [stems(tmp_path / "cv.yaml", split) for split in ("val1", "val2", "test")]
    assert parts[2] == {"test0", "test1", "test2"}
    assert parts[0] | parts[1] == {f"{split}{i}" for split in ("train", "val") for i in range(3)}
    assert (tmp_path / "cv_fold1.txt").is_file()


def test_rare_classes_are_spread_over_the_folds():
    pairs = [(f"{i}.jpg", f"{i}.png") for i in range(20)]
    classes = {mask: {0, 1 + (i < 4)} for i, (_, mask) in enumerate(pairs)}
    lists = draft_folds(pairs, 4, {}, classes, {})
    for text in lists.values():
        images = [line.split("\t")[0] for line in text.splitlines()]
        assert len(images) == 5
        assert sum(int(name[:-4]) < 4 for name in images) == 1
    assert draft_folds(pairs[::-1], 4, {}, classes, {}) == lists


def test_rare_classes_are_spread_though_groups_differ_in_size():
    """A large group with one image of a class is not made up for by the class's other images."""
    names = ["large_0", "large_1", "large_2", "a_0", "b_0", "c_0"]
    pairs = [(f"{name}.jpg", f"{name}.png") for name in names]
    classes = {f"{name}.png": {0} if name in names[1:3] else {0, 1} for name in names}
    groups = {image: image.partition("_")[0] for image, _ in pairs}
    lists = draft_folds(pairs, 2, {}, classes, groups)
    for text in lists.values():
        masks = [line.split("\t")[1] for line in text.splitlines()]
        assert sum(1 in classes[mask] for mask in masks) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--folds", "1"], "--folds 1: give 2 to"),
        (["--folds", "40"], "--folds 40: there are only 15 images"),
        (["--folds", "9", "--group-by", "images/*_{any}"], "--folds 9: there are only 8 groups"),
        (["--folds", "3", "--val-share", "0.3"], "--val-share 0.3: has no effect beside --folds"),
        (["--group-by", "images/q*"], "15 of 15 images do not fit, as images/p0_0.png; * stands"),
        (["--group-by", "images/{any}"], "--group-by images/{any}: all images are in one group"),
        (["--folds", "3", "--tile", "64"], "--folds 3: is not for --tile"),
        (["--group-by", "*/*_{any}", "--tile", "64"], "--group-by */*_{any}: is not for --tile"),
    ],
)
def test_folds_that_cannot_be_made(tmp_path, capsys, options, told):
    fill(tmp_path, PATIENTS)
    assert main(["init-data", str(tmp_path), *options]) == USAGE
    assert told in capsys.readouterr().err
    assert not (tmp_path / "data.yaml").exists()


def test_groups_and_known_splits(tmp_path, capsys):
    fill(tmp_path, ["train/a_1", "val/a_2", "val/b_1"])
    given = "--group-by", "images/**/*_{any}"
    assert main(["init-data", str(tmp_path), *given]) == USAGE
    assert "has no effect, because" in capsys.readouterr().err
    fill(tmp_path, ["test/c_1", "train/c_2", "train/d_1", "train/e_1"])
    for folder in ("images", "masks"):
        shutil.rmtree(tmp_path / folder / "val")
    given = "--group-by", "images/{any}/*_{any}"
    assert main(["init-data", str(tmp_path), *given]) == USAGE
    assert "has images in test and train, because of folders" in capsys.readouterr().err
    assert main(["init-data", str(tmp_path), *given, "--folds", "2"]) == USAGE
    assert "has images in test and folds, because of folders" in capsys.readouterr().err

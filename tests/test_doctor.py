"""The check before training: every bad mask ends as it should, through doctor and through train."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from setr.cli import main
from setr.data import scenes, survey
from setr.datasets import open_dataset
from setr.doctor import check, describe_map, diagnose, figures
from setr.engine import train
from setr.errors import DATA_CHECK_FAILED, OK, SetrError
from setr.images import encode_png
from setr.labels import IGNORE, Labels, known_labels
from setr.reading.masks import read_mask

# mask file: what the error says; None where it must be accepted
MASKS = {
    "out_of_range.png": r"out_of_range\.png.*77 \(.* px\), 254 .*first at x=",
    "half_size.png": "mask is 240x180 but its image 480x360; masks are never resized",
    "transposed.png": "mask is 360x480 but its image 480x360; rotated",
    "lossy.jpg": "JPEG compression has changed the ids",
    "rgb_colour.png": "RGB colour mask.*colour_map",
    "all_ignore.png index.png": None,
    "index.png palette.png index16.png rgb_gray_triplet.png": None,
}


def with_mask(root: Path, shared: Path, names: str, classes: str) -> Path:
    """A good pair for validation, and the masks in question for training."""
    source = shared / "data" / "odd_inputs" / "masks"
    for split, masks in (("train", names.split()), ("val", ["index.png"])):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for mask in masks:
            shutil.copy(source / "photo.png", root / "images" / split / f"{Path(mask).stem}.png")
            shutil.copy(source / mask, root / "labels" / split / mask)
    (root / "data.yaml").write_text(classes)
    return root


@pytest.mark.parametrize("name", MASKS)
def test_odd_masks_through_doctor_and_training(tmp_path, shared, config, name, capsys):
    root = with_mask(tmp_path / "data", shared, name, "labels: camvid\n")
    if "all_ignore.png" in name:
        (root / "data.yaml").write_text(
            f"classes: {json.dumps(known_labels('camvid').classes)}\nignore: [11, 255]\n"
        )
    data = dataclasses.replace(config.data, root=str(root), crop_size=(64, 64), short_side=64)
    every = dataclasses.replace(config.train, steps=len(name.split()), batch_size=1, log_every=1)
    run = dataclasses.replace(config, data=data, train=every)
    expected = MASKS[name]
    assert main(["doctor", str(root)]) == (OK if expected is None else DATA_CHECK_FAILED)
    shown = capsys.readouterr().out
    if expected is None:
        figures = train(run)
        log = (Path(config.out) / "log.jsonl").read_text().splitlines()
        losses = [row["loss"] for row in map(json.loads, log) if "loss" in row]
        assert len(losses) == every.steps
        assert np.isfinite(losses).all()
        assert figures["single_scale"]["images"] == 1
    else:
        assert "1 errors" in shown
        with pytest.raises(SetrError, match=expected) as caught:
            train(run)
        assert caught.value.code == DATA_CHECK_FAILED
        assert not Path(config.out).exists()


def test_colour_masks_with_a_colour_map(tmp_path, shared):
    root = with_mask(tmp_path, shared, "rgb_colour.png", "labels: camvid\n")
    camvid = known_labels("camvid")
    names = dict(zip(camvid.classes, map(list, camvid.colours), strict=True))
    colours = {"#{:02x}{:02x}{:02x}".format(*c): n for n, c in names.items()} | {"0,0,0": "ignore"}
    (root / "data.yaml").write_text(
        f"classes: {json.dumps(names)}\ncolour_map: {json.dumps(colours)}\n"
    )
    mask = open_dataset(str(root), "train").load(0).mask
    truth = read_mask(shared / "data" / "odd_inputs" / "masks" / "index.png")
    np.testing.assert_array_equal(mask, np.where(truth == 11, IGNORE, truth))


def test_binary_masks_do_not_lose_a_class(tmp_path, shared):
    root = with_mask(tmp_path, shared, "binary_0_255.png", "classes: [back, thing]\n")
    checkup = check(open_dataset(str(root), "train"))
    with pytest.raises(SetrError, match=r"'thing' never occurs.*\{0: back, 255: thing\}"):
        checkup.raise_problems()
    (root / "data.yaml").write_text("classes: [back, thing]\nlabel_map: {0: back, 255: thing}\n")
    checkup = check(open_dataset(str(root), "train"))
    assert not checkup.problems
    assert checkup.pixels.all()


def test_a_single_class_is_an_error(tmp_path):
    """Every answer would be right: training would report 100 %."""
    images, masks = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    for folder, pixels in ((images, (8, 8, 3)), (masks, (8, 8))):
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros(pixels, np.uint8)).save(folder / "a.png")
    (tmp_path / "data.yaml").write_text("classes: [crack]\nlabel_map: {0: crack}\n")
    with pytest.raises(
        SetrError,
        match=r"^split '\w+' of \w+ is unusable: 'crack' is the only class.*\[background, crack\]",
    ):
        check(open_dataset(str(tmp_path), "train")).raise_problems()


def test_all_ignored_masks_are_a_warning(tmp_path, shared):
    root = with_mask(tmp_path, shared, "all_ignore.png", "classes: [a, b]\n")
    (finding,) = check(open_dataset(str(root), "train")).findings
    assert finding.level == "warning"
    assert "ignored everywhere" in finding.text


@pytest.mark.parametrize("needed", ["train", "val"])
def test_splits_of_training_that_are_ignored_everywhere_are_an_error(folder_data, capsys, needed):
    """One for testing is not: Cityscapes has such masks."""
    for split, code in (("test", OK), (needed, DATA_CHECK_FAILED)):
        for mask in (folder_data / "labels" / split).iterdir():
            mask.write_bytes(encode_png(np.full((48, 48), IGNORE, np.uint8)))
        assert main(["doctor", str(folder_data)]) == code
    told = capsys.readouterr().out
    assert f"error   {needed}: all mask pixels are ignored; map ids" in told
    assert f"--data.{needed}-split" in told


def test_classes_that_never_occur(folder_data):
    dataset = open_dataset(str(folder_data), "train")
    wider = Labels((*scenes.CLASSES, "dragon"))
    checkup = check(dataclasses.replace(dataset, labels=wider))
    assert any("never occur: " in f.text and "dragon" in f.text for f in checkup.findings)


def test_a_class_called_like_pixels_without_a_label_is_noted(folder_data):
    """CamVid's `Void`, as Kaggle has it among 32 classes; one that never occurs does no harm."""
    dataset = open_dataset(str(folder_data), "train")
    names = ("Void", *tuple(scenes.CLASSES)[1:], "un-labeled", "avoid")
    findings = check(dataclasses.replace(dataset, labels=Labels(names))).findings
    (found,) = (f for f in findings if "pixels without a label" in f.text)
    assert found.level == "note"
    assert found.text.startswith("'Void' is a class")


def test_pixels_and_images_are_counted_exactly(folder_data):
    dataset = open_dataset(str(folder_data), "train")
    masks = [dataset.load(i).mask for i in range(len(dataset))]
    counts = np.bincount(np.stack(masks).ravel(), minlength=256)[:9]
    checkup = check(dataset)
    np.testing.assert_array_equal(checkup.pixels, counts)
    images = [sum(bool((mask == k).any()) for mask in masks) for k in range(9)]
    np.testing.assert_array_equal(checkup.survey.images(9), images)
    values = figures(checkup)
    assert values["sizes"] == {"48x48": 6}
    assert values["classes"]["sky"]["share"] == pytest.approx(counts[0] / counts.sum())


def reading(monkeypatch) -> list[int]:
    """Numbers of the pairs that are read from now on."""
    seen: list[int] = []
    real = survey._examine

    def examine(dataset, index, full):
        seen.append(index)
        return real(dataset, index, full)

    monkeypatch.setattr(survey, "_examine", examine)
    return seen


def test_only_what_changed_is_read_again(folder_data, monkeypatch):
    seen = reading(monkeypatch)
    first = check(open_dataset(str(folder_data), "train"))
    assert sorted(seen) == list(range(6))
    seen.clear()
    again = check(open_dataset(str(folder_data), "train"))
    assert not seen
    np.testing.assert_array_equal(first.pixels, again.pixels)

    mask = folder_data / "labels" / "train" / "scene_003.png"
    changed = np.full((48, 48), 2, np.uint8)
    mask.write_bytes(encode_png(changed))
    (folder_data / "images" / "train" / "scene_000.png").unlink()
    (folder_data / "labels" / "train" / "scene_000.png").unlink()
    dataset = open_dataset(str(folder_data), "train")
    partly = check(dataset)
    assert seen == [2]
    masks = np.stack([dataset.load(i).mask for i in range(5)])
    np.testing.assert_array_equal(
        partly.pixels, np.bincount(masks.ravel(), minlength=256)[:9]
    )  # fmt: skip


def test_lists_of_absolute_paths_are_remembered(folder_data, monkeypatch):
    names = [f"train/scene_{i:03d}.png" for i in range(6)]
    lines = [f"{folder_data}/images/{n} {folder_data}/labels/{n}\n" for n in names]
    (folder_data / "t.txt").write_text("".join(lines))
    with (folder_data / "data.yaml").open("a") as file:
        file.write("train: t.txt\n")
    check(open_dataset(str(folder_data), "train"))
    seen = reading(monkeypatch)
    check(open_dataset(str(folder_data), "train"))
    assert not seen


def test_a_full_check_reads_once_more_and_other_labels_anew(folder_data, monkeypatch):
    dataset = open_dataset(str(folder_data), "train")
    check(dataset)
    seen = reading(monkeypatch)
    check(dataset, full=True)
    assert len(seen) == 6
    check(dataset)
    assert len(seen) == 6
    check(dataclasses.replace(dataset, labels=Labels(tuple("abcdefghi"))))
    assert len(seen) == 12


def test_problems_are_looked_at_again_and_kept(folder_data, monkeypatch):
    broken = folder_data / "images" / "train" / "scene_001.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:100])
    dataset = open_dataset(str(folder_data), "train")
    assert len(check(dataset).problems) == 1
    seen = reading(monkeypatch)
    assert len(check(dataset).problems) == 1
    assert seen == [1]
    broken.write_bytes(good)
    assert not check(dataset).problems


def test_a_damaged_cache_is_no_harm(folder_data):
    dataset = open_dataset(str(folder_data), "train")
    expected = check(dataset).pixels
    place = survey._cache_file(dataset)
    place.write_bytes(place.read_bytes()[:200])
    np.testing.assert_array_equal(check(dataset).pixels, expected)


def test_a_cache_that_cannot_be_written_is_no_harm(folder_data, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SETR_CACHE", str(tmp_path / "file" / "below"))
    assert not check(open_dataset(str(folder_data), "train")).problems


def test_listed_files_that_do_not_exist_are_named(folder_data):
    (folder_data / "t.txt").write_text("images/train/nope.png labels/train/scene_001.png\n")
    names = ", ".join(scenes.CLASSES)
    (folder_data / "data.yaml").write_text(f"train: t.txt\nclasses: [{names}]\n")
    with pytest.raises(SetrError, match=r"nope\.png: no such file"):
        check(open_dataset(str(folder_data), "train")).raise_problems()


def test_leaks_identical_and_nearly(folder_data):
    source = folder_data / "images" / "train" / "scene_001.png"
    shutil.copy(source, folder_data / "images" / "val" / "scene_000.png")
    image = cv2.resize(cv2.imread(str(source)), (48, 48), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder_data / "images" / "val" / "scene_001.png"), cv2.add(image, 2))
    checkups = [check(open_dataset(str(folder_data), s), full=True) for s in ("train", "val")]
    leaks = [f for f in diagnose(checkups) if "train and val" in f.text]
    assert [(f.count, Path(f.files[0]).name) for f in leaks] == [
        (1, "scene_000.png"),
        (1, "scene_001.png"),
    ]


@pytest.mark.parametrize("at_once", [7, 1 << 16])
def test_near_hashes_equal_the_comparison_of_all(monkeypatch, at_once):
    monkeypatch.setattr(survey, "_HASHES", at_once)
    rng = np.random.default_rng(0)
    for case in range(20):
        known = rng.integers(1, 2**64, 40, dtype=np.uint64)
        if case % 2:  # flat skies: many hashes share their pieces
            known[:20] &= np.uint64(0xFFFF)
        flipped = np.zeros((300, 64), bool)
        for row in flipped:  # 0 to 6 bits away from a known hash, anywhere or in one piece
            width = (64, 16)[rng.integers(2)]
            bits = rng.choice(width, rng.integers(7), replace=False)
            row[bits + width * rng.integers(64 // width)] = True
        away = np.packbits(flipped, axis=1).view(np.uint64)[:, 0]
        others = rng.integers(2**20, size=50, dtype=np.uint64)
        hashes = np.concatenate([rng.choice(known, 300) ^ away, others])
        hashes[::9] = known[0] = 0  # 0 stands for no hash
        apart = [min(int(a ^ b).bit_count() for b in known.tolist() if b) for a in hashes.tolist()]
        expected = [i for i, n in enumerate(apart) if n <= 3 and hashes[i]]
        assert survey.near_hashes(known, hashes, 3).tolist() == expected
        assert {2, 3, 4} <= set(apart)
    none = np.zeros(0, np.uint64)
    assert not len(survey.near_hashes(none, hashes, 3))
    assert not len(survey.near_hashes(known, none, 3))


def test_the_same_image_twice_in_a_split(folder_data):
    train = folder_data / "images" / "train"
    shutil.copy(train / "scene_001.png", train / "scene_004.png")
    dataset = open_dataset(str(folder_data), "train")
    (finding,) = [f for f in check(dataset, full=True).findings if "identical copies" in f.text]
    assert [Path(file).name for file in finding.files] == ["scene_004.png"]


def test_camvid_has_no_trouble(shared):
    data = str(shared / "data" / "camvid")
    checkup = check(open_dataset(data, "val", "camvid"), full=True)
    assert not checkup.findings
    assert figures(checkup)["sizes"] == {"480x360": 101}


def test_the_map_is_told_in_one_line():
    labels = Labels(("a", "b"), label_map={0: 0, 1: 0, 2: 0, 5: 1, 255: IGNORE})
    text = describe_map(labels)
    assert text == "ids in the masks: a: 0-2; b: 5; ignored: 255; any other is an error"
    coloured = Labels(("a",), colour_map={(1, 2, 3): 0, (9, 9, 9): IGNORE})
    assert "a: #010203; ignored: #090909" in describe_map(coloured)


def test_command_json_and_page(folder_data, tmp_path, capsys):
    foreign = encode_png(np.full((48, 48), 99, np.uint8))
    (folder_data / "labels" / "val" / "scene_001.png").write_bytes(foreign)
    page = tmp_path / "page.html"
    assert main(["doctor", str(folder_data), "--json", "--page", str(page)]) == DATA_CHECK_FAILED
    values = json.loads(capsys.readouterr().out)
    assert not values["ok"]
    assert set(values["splits"]) == {"train", "val", "test"}
    (error,) = [f for f in values["findings"] if f["level"] == "error"]
    assert error["split"] == "val"
    assert "99 (2304 px)" in error["files"][0]
    text = page.read_text()
    assert text.count("<img") == 6 + 2 + 2
    assert "99 (2304 px)" in text
    assert "http" not in text
    assert "prefers-color-scheme:dark" in text


def test_a_split_with_missing_masks_fails_the_command(folder_data, capsys):
    (folder_data / "labels" / "val" / "scene_001.png").unlink()
    assert main(["doctor", str(folder_data)]) == DATA_CHECK_FAILED
    assert "no mask for 1 of 3 images: scene_001.png" in capsys.readouterr().out


def test_a_foreign_layout_is_refused_once(shared, capsys):
    folder = shared / "data" / "samples" / "ade20k_full_format"
    assert main(["doctor", str(folder)]) == DATA_CHECK_FAILED
    assert capsys.readouterr().out.count("SceneParsing-150") == 1


def test_init_data_describes_ids(folder_data, capsys):
    (folder_data / "data.yaml").unlink()
    assert main(["init-data", str(folder_data)]) == OK
    assert main(["init-data", str(folder_data)]) == 2
    dataset = open_dataset(str(folder_data), "train")
    assert dataset.labels.classes[0] == "class_0"
    assert dataset.labels.label_map[255] == IGNORE
    assert main(["doctor", str(folder_data)]) == OK


def test_init_data_describes_colours_and_splits(tmp_path, shared):
    masks = shared / "data" / "odd_inputs" / "masks"
    for i in range(5):
        for kind, name in (("images", "photo.png"), ("masks", "rgb_colour.png")):
            (tmp_path / kind).mkdir(exist_ok=True)
            shutil.copy(masks / name, tmp_path / kind / f"{i}.png")
    assert main(["init-data", str(tmp_path)]) == OK
    train, val = (open_dataset(str(tmp_path), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 1)
    assert train.labels.colours[train.load(0).mask[0, 0]] == tuple(
        cv2.imread(str(masks / "rgb_colour.png"))[0, 0, ::-1].tolist()
    )


def test_init_data_tells_of_images_without_mask(folder_data, tmp_path, capsys):
    for kind, count in (("images", 10), ("masks", 3)):
        (tmp_path / kind).mkdir()
        for i in range(count):
            source = folder_data / kind.replace("masks", "labels") / "train" / "scene_000.png"
            shutil.copy(source, tmp_path / kind / f"{i}.png")
    assert main(["init-data", str(tmp_path)]) == OK
    names = ", ".join(f"images/{i}.png" for i in range(3, 8))
    note = f"7 of 10 images have no mask, left out: {names}, …\n"
    assert f"warning: {tmp_path}: {note}" in capsys.readouterr().err
    assert f"# {note}" in (tmp_path / "data.yaml").read_text()
    assert sum(len(open_dataset(str(tmp_path), split)) for split in ("train", "val")) == 3


def test_init_data_takes_binary_masks_as_two_classes(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    mask = np.zeros((8, 8), np.uint8)
    mask[:3] = 255
    (tmp_path / "masks" / "a.png").write_bytes(encode_png(mask))
    (tmp_path / "images" / "a.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    assert main(["init-data", str(tmp_path)]) == OK
    dataset = open_dataset(str(tmp_path), "train")
    assert dataset.labels.classes == ("background", "foreground")
    assert not check(dataset).problems


def test_init_data_says_what_it_will_not_describe(shared, capsys):
    assert main(["init-data", str(shared / "data" / "samples" / "voc")]) != OK
    assert "needs no data.yaml" in capsys.readouterr().err


def test_thumbnails_of_strips_are_small(tmp_path):
    sizes = {"a": (10, 20000), "b": (20000, 10), "c": (16, 16)}
    for name, (width, height) in sizes.items():
        for kind, shape in (("images", (height, width, 3)), ("labels", (height, width))):
            (tmp_path / kind / "val").mkdir(parents=True, exist_ok=True)
            picture = encode_png(np.zeros(shape, np.uint8))
            (tmp_path / kind / "val" / f"{name}.png").write_bytes(picture)
    (tmp_path / "data.yaml").write_text("path: .\nclasses: [a, b]\n")
    page = tmp_path / "page.html"
    assert main(["doctor", str(tmp_path), "--page", str(page)]) == OK
    shown = []
    for code in re.findall(r'base64,([^"]+)"', page.read_text()):
        with Image.open(io.BytesIO(base64.b64decode(code))) as picture:
            shown.append(picture.size)
    assert shown == [(1, 2 * 960), (240, 2), (240, 480)]


@pytest.fixture
def ids_data(tmp_path):
    """One pair whose mask holds the ids 0, 1 and 10."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    mask = np.zeros((8, 8), np.uint8)
    mask[:2], mask[2:4] = 1, 10
    (tmp_path / "masks" / "a.png").write_bytes(encode_png(mask))
    (tmp_path / "images" / "a.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('["road", "car"]', (0, 1)),
        ('{"classes": ["road", "car"]}', (0, 1)),
        ('{"10": "car", "2": "road"}', (2, 10)),
        ('[{"id": 1, "name": "car"}, {"id": 0, "name": "road"}]', (0, 1)),
        ('{"classes": [{"id": 2, "name": "road"}, {"id": 10, "name": "car"}]}', (2, 10)),
    ],
)
def test_init_data_reads_names_in_json(ids_data, text, ids):
    (ids_data / "classes.json").write_text(text)
    assert main(["init-data", str(ids_data)]) == OK
    labels = open_dataset(str(ids_data), "train").labels
    assert labels.classes == ("road", "car")
    in_masks = dict.fromkeys((0, 1, 10), IGNORE)
    assert labels.label_map == in_masks | {ids[0]: 0, ids[1]: 1}


@pytest.mark.parametrize(
    "text", ["not json", "5", '"road"', "[0, 1]", '{"road": 0}', '{"-1": "a"}', '[{"id": 0}]']
)
def test_init_data_refuses_other_json_in_one_line(ids_data, capsys, text):
    (ids_data / "classes.json").write_text(text)
    assert main(["init-data", str(ids_data)]) == DATA_CHECK_FAILED
    error = f"setr: {ids_data / 'classes.json'}: no class names found; write a list of names"
    progress, said = capsys.readouterr().err.splitlines()
    assert progress.startswith("read masks 1/1")
    assert said.startswith(error)
    assert not (ids_data / "data.yaml").exists()


def test_file_names_that_are_no_text(folder_data):
    """A terminal that refuses them is no reason to end, or to write no page."""
    for kind in ("images", "labels"):
        folder = folder_data / kind / "train"
        (folder / "scene_000.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    (folder_data / "labels" / "train" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"broken")
    page = folder_data / "page.html"
    done = subprocess.run(
        [sys.executable, "-m", "setr", "doctor", str(folder_data), "--page", str(page)],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode == DATA_CHECK_FAILED
    assert b"caf?.png" in done.stdout
    assert "caf" in page.read_text(encoding="utf-8")


def test_a_file_that_is_named_twice_is_no_copy(folder_data):
    lines = [f"images/train/scene_{i:03d}.png labels/train/scene_{i:03d}.png" for i in (0, 1)]
    (folder_data / "some.txt").write_text("\n".join(lines))
    about = folder_data / "data.yaml"
    kept = [line for line in about.read_text().splitlines() if not line.startswith("train:")]
    about.write_text("\n".join([*kept, "train: [some.txt, some.txt]", ""]))
    dataset = open_dataset(str(folder_data), "train")
    assert len(dataset) == 4
    assert not [f for f in check(dataset, full=True).findings if "identical copies" in f.text]
    train = folder_data / "images" / "train"
    shutil.copy(train / "scene_000.png", train / "scene_001.png")
    (finding,) = [f for f in check(dataset, full=True).findings if "identical copies" in f.text]
    assert finding.text.startswith("2 images")

"""Classes by the ids of masks: our own tables, and data files of other toolkits as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from setr.data.class_tables import _own_form, names_of_json
from setr.datasets import open_dataset
from setr.errors import USAGE, SetrError
from setr.images import encode_png
from setr.init_data import draft
from setr.labels import IGNORE
from setr.writing import write_bytes

PHOTO = np.full((4, 6, 3), 90, np.uint8)


def pair(root: Path, ids: list[int], images: str = "images/train", masks: str = "masks/train"):
    """One image, and its mask with these ids in its columns."""
    mask = np.tile(np.array(ids, np.uint8), (4, 6 // len(ids)))
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_bytes(root / images / "a.png", encode_png(PHOTO))
    write_bytes(root / masks / "a.png", encode_png(mask))


def opened(root: Path, text: str):
    (root / "data.yaml").write_text(text)
    return open_dataset(root, "train")


def first_row(dataset) -> list[int]:
    return sorted(set(dataset.load(0).mask[0].tolist()))


@pytest.mark.parametrize(
    ("text", "ids", "classes", "row"),
    [
        ("classes: {0: road, 7: car, 8: car, 9: ignore}", [0, 7, 8, 9, 255, 0],
         ("road", "car"), [0, 1, IGNORE]),
        ("classes: {'3': road, '1': car}", [1, 3], ("car", "road"), [0, 1]),
        ("classes: {0: road, 7: car}\nignore: [9]", [0, 7, 9], ("road", "car"), [0, 1, IGNORE]),
        # Ultralytics: ids that are not listed stay, negative ones do not exist
        ("names: {0: road, 1: car}\nlabel_mapping: {-1: ignore_label, 0: ignore_label, 7: 0, 8: 1}",
         [0, 7, 8], ("road", "car"), [0, 1, IGNORE]),
        ("names: [road, car]\nlabel_mapping: {0: ignore_label}", [0, 1, 255],
         ("road", "car"), [1, IGNORE]),
        ("names: [road, car]\nlabel_mapping: {0: 255, 1: null, 2: ' ignore_label', 3: '0', 4: 1}",
         [0, 1, 2, 3, 4, 4], ("road", "car"), [0, 1, IGNORE]),
        # one name is of id 1, and what is not it is 0
        ("names: {0: crack}\nnc: 1", [0, 1], ("background", "crack"), [0, 1]),
        ("names: [crack]", [0, 1, 255], ("background", "crack"), [0, 1, IGNORE]),
        ("names: [crack]\nlabel_mapping: {255: 1}", [0, 255], ("background", "crack"), [0, 1]),
        ("names: [crack]\nroboflow: {version: 1}\nlabel_map: {0: background, 255: crack}",
         [0, 255], ("background", "crack"), [0, 1]),
        # LightlyTrain: ids of classes, with ids of masks, of which some are not trained
        ("classes: {0: none, 1: {name: vehicle, labels: [1, 2]}, 5: sky}\nignore_classes: [0]",
         [0, 1, 2, 5, 5, 5], ("vehicle", "sky"), [0, 1, IGNORE]),
    ],
)  # fmt: skip
def test_classes_by_id(tmp_path, text, ids, classes, row):
    pair(tmp_path, ids)
    dataset = opened(tmp_path, f"train: images/train\nmasks_dir: masks\n{text}\n")
    assert dataset.labels.classes == classes
    assert first_row(dataset) == row


def test_classes_by_colour_as_lightly_train_has_them(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    colours = np.array([[0, 0, 0], [255, 255, 255], [128, 64, 128]], np.uint8)
    write_bytes(tmp_path / "images" / "a.png", encode_png(PHOTO))
    write_bytes(tmp_path / "masks" / "a.png", encode_png(np.tile(colours, (4, 2, 1))))
    text = (
        "train: {images: images, masks: masks}\nclasses:\n"
        "  0: {name: other, labels: [[0, 0, 0], [255, 255, 255]]}\n"
        "  1: {name: road, labels: [[128, 64, 128]]}\n"
    )
    dataset = opened(tmp_path, text)
    assert dataset.labels.classes == ("other", "road")
    assert dataset.labels.colours[1] == (128, 64, 128)
    assert first_row(dataset) == [0, 1]
    dataset = opened(tmp_path, f"{text}ignore_classes: [0]\n")
    assert (dataset.labels.classes, first_row(dataset)) == (("road",), [0, IGNORE])


def test_two_folders_of_a_split(tmp_path):
    pair(tmp_path, [0, 1], "photos/first", "truth")
    pair(tmp_path / "far", [1, 1], "photos", "truth")
    both = "[{images: ./photos/first, masks: truth}, {images: far/photos, masks: far/truth}]"
    dataset = opened(tmp_path, f"classes: [a, b]\ntrain: {both}\n")
    assert [first_row(dataset), dataset.load(1).mask[0, 0]] == [[0, 1], 1]
    assert [dataset.image_name(i) for i in (0, 1)] == ["photos/first/a.png", "far/photos/a.png"]
    folders = f"{{images: {tmp_path}/far/photos, masks: {tmp_path}/far/truth}}"
    assert first_row(opened(tmp_path, f"classes: [a, b]\ntrain: {folders}\n")) == [1]


@pytest.mark.parametrize(
    "text",
    [
        '{"0": "road", "7": "car"}',
        '{"id2label": {"0": "road", "7": "car"}, "model_type": "segformer"}',
        '[{"id": 0, "name": "road"}, {"id": 7, "name": "car"}]',
        '{"classes": {"7": "car", "0": "road"}}',
    ],
)
def test_names_in_a_file_of_json(tmp_path, text):
    pair(tmp_path, [0, 7])
    assert names_of_json(text) == {0: "road", 7: "car"}
    (tmp_path / "id2label.json").write_text(text)
    dataset = opened(tmp_path, "classes: id2label.json\ntrain: images/train\n")
    assert (dataset.labels.classes, first_row(dataset)) == (("road", "car"), [0, 1])


def test_a_file_of_json_without_names(tmp_path):
    pair(tmp_path, [0, 7])
    (tmp_path / "names.json").write_text('{"road": 0}')
    with pytest.raises(SetrError, match=r"names\.json: no class names found; write {id: name}"):
        opened(tmp_path, "classes: names.json\ntrain: images/train\n")


def test_a_draft_takes_the_names_of_id2label(tmp_path):
    pair(tmp_path, [0, 7])
    (tmp_path / "id2label.json").write_text(json.dumps({0: "road", 7: "car"}))
    assert '7: "car"' in draft(tmp_path).yaml


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("classes: {0: a, 1: b}\nlabel_map: {0: a}", "'label_map' beside 'classes with ids'"),
        ("names: [a, b]\nlabel_map: {0: a}\nlabel_mapping: {0: 1}", "'label_map' beside 'label_m"),
        ("names: [a, b]\nlabel_mapping: {x: 1}", "label_mapping key 'x': give ids of the masks"),
        ("names: [a, b]\nlabel_mapping: {3: 5}", "label_map value 5: classes are 0..1"),
        (
            "names: {5: crack}",
            "'names' must have the ids 0 to 0; give names by the ids of the masks",
        ),
        ("names: [a]\nnc: 2", "nc 2, but 'names' has 1 entr"),
        ("names: [a, b]\nchannels: 10", "unknown key 'channels'; did you mean 'bands'?"),
        ("names: [a, b]\nvalidation: images", "unknown key 'validation'; did you mean 'val'?"),
        ("names: [a, b]\nlabel_mapping: 3", "label_mapping 3: give a table of id: class"),
        ("labels: voc\nlabel_mapping: {3: 5}", "'label_mapping' beside 'labels'"),
        ("classes: {0: a, 1: {name: b, labels: [0]}}", "classes: 0 is of both 'a' and 'b'"),
        ("classes: {0: a, 1: {label: b}}", "classes 1: {'label': 'b'}: give a name, or {name:"),
        ("classes: {0: a, 1: {name: b, labels: [x]}}", "classes 1: label 'x': give an id"),
        ("classes: {0: a, 1: {name: b, labels: [[0, 0, 0]]}}", "are ids or colours; give one"),
        ("classes: {0: a, 1: b}\nignore_classes: [x]", "ignore_classes 'x': give ids of the masks"),
        ("classes: [a, b]\nignore_classes: [0]", "ignore_classes: is for classes with ids"),
        ("classes: names.json", "names.json is no readable file"),
        ("classes: names.txt", "'classes' must list the class names"),
        ("classes: {0: ignore}", "'classes' must list the class names"),
        ("classes: [a, b]\ntrain: {images: images}", "as {images: photos, masks: labels}"),
        ("classes: [a, b]\ntrain: {images: images, masks: 3}", "as {images: photos, masks: labe"),
        (
            "classes: [a, b]\ntrain: {images: images, masks: '{image_path.stem}.png'}",
            "'train' has a pattern for masks: give their folder",
        ),
        ("path: hf:me/photos\nclasses: [a]\ntrain: {images: a, masks: b}", "names two folders"),
    ],
)
def test_what_such_files_may_not_say(tmp_path, text, told, monkeypatch):
    if "hf:" in text:
        monkeypatch.setattr("setr.data.hub_rows.import_extra", lambda *_: None)
        monkeypatch.setattr("setr.data.hub_rows._load_splits", lambda *_: {})
    pair(tmp_path, [0, 1])
    with pytest.raises(SetrError) as caught:
        opened(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == USAGE


def test_ids_that_are_no_class_may_be_ignored():
    """As LightlyTrain accepts them: a class that is left out need not be named."""
    found = _own_form({0: "a", 7: "b"}, [9, 255])
    assert found["classes"] == ["a", "b"]
    assert found["label_map"] == {0: "a", 7: "b", 9: "ignore", 255: "ignore"}

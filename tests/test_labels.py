"""Classes, colours and id maps: against the facts they come from, and their errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from setr.errors import SetrError
from setr.labels import IGNORE, Labels, known_datasets, known_labels

RGB = Labels(("road", "car"), ((1, 2, 3), (4, 5, 6)), colour_map={(1, 2, 3): 0, (9, 9, 9): IGNORE})


@pytest.mark.parametrize("name", known_datasets())
def test_known_labels_survive_json(name):
    labels = known_labels(name)
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


def test_cityscapes_equals_its_source(shared):
    facts = json.loads((shared / "labels" / "cityscapes.json").read_text())
    labels = known_labels("cityscapes")
    assert list(labels.classes) == facts["train_classes"]
    assert [list(c) for c in labels.colours] == facts["train_palette"]
    assert labels.label_map == {int(k): v for k, v in facts["id_to_trainId"].items() if k != "-1"}
    assert known_labels("cityscapes:train_ids").label_map == {**{i: i for i in range(19)}, 255: 255}


def test_ade20k_equals_its_source(shared):
    facts = json.loads((shared / "labels" / "ade20k150.json").read_text())["classes"]
    labels = known_labels("ade20k")
    assert [(labels.classes[c["train_id"]], labels.label_map[c["index"]]) for c in facts] == [
        (c["name"], c["train_id"]) for c in facts
    ]
    assert labels.label_map[0] == IGNORE


def test_pascal_context_orders_name_the_same_classes(shared):
    facts = json.loads((shared / "labels" / "pascal_context.json").read_text())
    labels, mat = known_labels("pascal_context"), known_labels("pascal_context:mat").label_map
    assert list(labels.classes) == facts["classes60"]
    for raw, name in facts["all_459"].items():
        assert not mat[int(raw)] or name == labels.classes[mat[int(raw)]]
    assert len(set(mat.values()) - {0}) == 59
    fcn = known_labels("pascal_context:fcn").label_map
    renamed = {"diningtable": "table", "clothes": "cloth", "bedcloth": "bedclothes"}
    expected = [renamed.get(name, name) for name in facts["fcn_order60"]]
    assert [labels.classes[fcn[i]] for i in range(60)] == expected


def test_59_classes_are_the_60_without_background():
    with_background, without = known_labels("pascal_context"), known_labels("pascal_context_59")
    assert with_background.classes[1:] == without.classes
    for encoding in ("", ":mat", ":fcn"):
        sixty = known_labels(f"pascal_context{encoding}").label_map
        fifty_nine = known_labels(f"pascal_context_59{encoding}").label_map
        assert fifty_nine == {k: v - 1 if v else IGNORE for k, v in sixty.items()}


def test_camvid_equals_its_source(shared):
    facts = json.loads((shared / "labels" / "camvid11.json").read_text())
    labels = known_labels("camvid")
    assert list(labels.classes) == facts["classes"]
    assert [list(c) for c in labels.colours] == facts["palette"]
    assert labels.label_map[facts["void"]] == IGNORE


def test_lists_and_arrays_make_the_same_labels():
    colours = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    labels = Labels(["road", "sky"], colours)
    assert labels == Labels(("road", "sky"), ((1, 2, 3), (4, 5, 6)))
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
    with pytest.raises(SetrError, match="classes 'road': give the names one by one"):
        Labels("road")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(SetrError, match="known: ade20k, camvid"):
        known_labels("cityscape")
    with pytest.raises(SetrError, match="cityscapes:train_ids"):
        known_labels("cityscapes:trainids")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ids_outside_the_map_are_named_with_count_and_place(dtype):
    raw = np.zeros((4, 5), dtype)
    raw[2, 3:] = 77
    with pytest.raises(SetrError, match=r"77 \(2 px\), first at x=3 y=2.*label_map"):
        Labels(("a", "b")).to_train_ids(raw)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_map_merges_and_ignores(dtype):
    labels = Labels(("a", "b"), label_map={7: 1, 8: 1, 9: 0, 3: IGNORE})
    ids = labels.to_train_ids(np.array([[7, 8], [9, 3]], dtype))
    assert ids.tolist() == [[1, 1], [0, IGNORE]]
    assert ids.dtype == np.uint8


def test_colours_match_exactly():
    raw = np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)
    assert RGB.to_train_ids(raw).tolist() == [[0, IGNORE]]
    raw[0, 1] = (9, 9, 8)
    with pytest.raises(SetrError, match=r"#090908 \(1 px\), first at x=1 y=0.*colour_map"):
        RGB.to_train_ids(raw)


def test_a_colour_map_survives_json():
    assert Labels.from_dict(json.loads(json.dumps(RGB.to_dict()))) == RGB


def test_colour_map_from_the_classes_own_colours():
    values = {"classes": ["a", "b"], "colours": ["#010203", [4, 5, 6]], "colour_map": "classes"}
    assert Labels.from_dict(values).colour_map == {(1, 2, 3): 0, (4, 5, 6): 1}
    values["colours"] = [[1, 2, 3], [1, 2, 3]]
    with pytest.raises(SetrError, match="all different"):
        Labels.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": []}, "1 to 255"),
        ({"classes": ["a", "a"]}, "listed twice"),
        ({"classes": ["a"], "colours": [[1, 2, 3], [4, 5, 6]]}, "2 colours for 1"),
        ({"classes": ["a"], "colours": ["red"]}, "colour 'red'"),
        ({"classes": ["a"], "colours": [[1, 2, 300]]}, "from 0 to 255"),
        ({"classes": ["road"], "label_map": {0: "raod"}}, "did you mean 'road'"),
        ({"classes": ["a"], "label_map": {"x": "a"}}, "whole numbers"),
        ({"classes": ["a"], "label_map": {70000: "a"}}, "0 to 65535"),
        ({"classes": ["a"], "label_map": {0: 3}}, r"classes are 0\.\.0"),
        ({"classes": ["a"], "colour_map": [1]}, "give 'classes' or"),
        ({"classes": ["a"], "label_map": {True: "a"}}, "key True: raw ids"),
        ({"classes": ["a"], "label_map": {0: 0.5}}, "label_map value 0.5: give a class name"),
        ({"classes": ["a"], "colours": {"a": [1, 2, 3]}}, "give a list with one colour"),
        ({"classes": ["a"], "colours": [[float("inf"), 2, 3]]}, r"colour \[inf, 2, 3\]"),
        (
            {"classes": ["sky", "class_1"], "colour_map": {"#000000": "class_0"}},
            "'class_0' is not among the classes; if you have given it a name there, write that",
        ),
        ({"classes": ["a"], "colour_map": {"#000000": "b"}}, "colour_map value 'b' is not among"),
    ],
)
def test_wrong_descriptions_are_one_clear_line(values, message):
    with pytest.raises(SetrError, match=message) as caught:
        Labels.from_dict(values)
    assert "\n" not in str(caught.value)

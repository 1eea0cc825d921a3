"""Outlines as VIA, Label Studio, V7 and COCO's panoptic format have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from setr.cli import main
from setr.datasets import open_dataset
from setr.errors import OK
from setr.images import encode_png
from setr.init_data import draft, write
from setr.reading.masks import read_mask

from .test_outlines import SIZE, photo, put, refused, square


def drawn(root: Path, image: str) -> np.ndarray:
    return read_mask(root / "masks_drawn" / Path(image).with_suffix(".png"))


# --- VGG Image Annotator --------------------------------------------------------------------------


def region(kind: str, attributes: dict[str, Any], **shape: Any) -> dict[str, Any]:
    return {"shape_attributes": {"name": kind, **shape}, "region_attributes": attributes}


def polygon(attributes: dict[str, Any], x: int, y: int, side: int) -> dict[str, Any]:
    xs, ys = zip(*square(x, y, side), strict=True)
    return region("polygon", attributes, all_points_x=xs, all_points_y=ys)


def via(**images: Any) -> dict[str, Any]:
    return {
        f"{name}.jpg-1": {"filename": f"{name}.jpg", "size": 1, "regions": regions,
                          "file_attributes": {}}
        for name, regions in images.items()
    }  # fmt: skip


def test_a_project_of_via(tmp_path, capsys):
    """Its options are the classes; an attribute may be one to tick."""
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    regions = [
        polygon({"Class": "cat", "note": "x"}, 0, 0, 10),
        region("rect", {"Class": {"dog": True, "cat": False}}, x=2, y=2, width=4, height=3),
        region("circle", {"Class": "dog"}, cx=20, cy=10, r=4),
        region("ellipse", {"Class": "cat"}, cx=20, cy=10, rx=3, ry=1, theta=np.pi / 2),
        region("polyline", {"Class": "cat"}, all_points_x=[1, 2], all_points_y=[1, 2]),
    ]
    options = {"options": {"dog": "", "bird": "", "cat": ""}, "type": "dropdown"}
    project = {
        "_via_settings": {}, "_via_img_metadata": via(a=regions, b=[]),
        "_via_attributes": {"region": {"Class": options}, "file": {}},
    }  # fmt: skip
    put(tmp_path / "via_project.json", project)
    assert main(["init-data", str(tmp_path)]) == OK
    assert "no area: 1 VIA's polyline" in capsys.readouterr().err
    assert open_dataset(str(tmp_path), "train").labels.classes == (
        "dog", "bird", "cat", "background",
    )  # fmt: skip
    mask = drawn(tmp_path, "a.jpg")
    assert (mask[2:5, 2:6] == 0).all()
    assert (mask[:10, :10] == 2).sum() == 100 - 12
    assert (mask[8:12, 20] == 2).all()
    assert (mask[10, 17], mask[10, 23]) == (0, 0)
    assert abs((mask[:, 10:] != 3).sum() - np.pi * 16) < 4
    assert (drawn(tmp_path, "b.jpg") == 3).all()


def test_exports_of_via_in_folders_of_splits(tmp_path, capsys):
    """Version 1 numbers the regions; a single class often has no attribute."""
    for split, x in (("train", 0), ("val", 5)):
        photo(tmp_path / split / "a.jpg")
        put(tmp_path / split / "via_region_data.json", via(a={"0": polygon({}, x, 0, 4)}))
    assert main(["init-data", str(tmp_path)]) == OK
    note = "val/via_region_data.json: regions have no attributes: all of class 'object'"
    assert note in capsys.readouterr().err
    dataset = open_dataset(str(tmp_path), "val")
    assert dataset.labels.classes == ("object", "background")
    assert (dataset.load(0).mask[:4, 5:9] == 0).all()


def test_the_attribute_of_via_that_names_the_class(tmp_path):
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    both = {"kind": "oak", "state": "dry"}
    put(tmp_path / "x.json", via(a=[polygon(both, 0, 0, 4)], b=[polygon({"kind": ""}, 0, 0, 4)]))
    said = "which attribute names the class? regions have kind, state; give it as --class-key"
    assert said in refused(tmp_path)
    assert "regions have kind, state" in refused(tmp_path, class_key="other")
    assert "x.json: b.jpg: region 1 has no class in its attribute 'kind', or no points" in refused(
        tmp_path, class_key="kind"
    )
    put(tmp_path / "x.json", via(a=[polygon(both, 0, 0, 4)], b=[polygon(both, 0, 0, 4)]))
    assert '"dry"' in draft(tmp_path, class_key="state").yaml
    put(tmp_path / "x.json", via(a=[polygon({"only": "oak"}, 0, 0, 4)], gone=[]))
    assert "x.json: image 'gone.jpg' not found" in refused(tmp_path)


@pytest.mark.parametrize(
    "broken",
    [
        region("ellipse", {"k": "a"}, cx=1, cy=1, rx=float("nan"), ry=1),
        region("rect", {"k": "a"}, x=1, y=1, width=1e999, height=1),
        region("polygon", {"k": "a"}, all_points_x=[1, 2], all_points_y=[1]),
        region("circle", [None], cx=1, cy=1, r=1),
        {"region_attributes": {"k": "a"}},
    ],
)
def test_broken_regions_of_via(tmp_path, broken):
    photo(tmp_path / "a.jpg")
    put(tmp_path / "x.json", via(a=[polygon({"k": "a"}, 0, 0, 4), broken]))
    assert "x.json: a.jpg: region 2 has no class in its attribute 'k', or no points" in refused(
        tmp_path
    )


# --- Label Studio ---------------------------------------------------------------------------------


def result(kind: str, label: str, number: int = 1, **value: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}", "type": kind, "from_name": "label", "to_name": "image",
        "original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0,
        "value": {kind: [label], **value} if label else value,
    }  # fmt: skip


def task(image: str, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    annotations = [{"id": 1, "was_cancelled": False, "result": list(results), **more}]
    return {"id": 1, "data": {"image": image, "text": "x"}, "annotations": annotations}


def percent(points: list[list[float]]) -> list[list[float]]:
    return [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in points]


def packed(alpha: np.ndarray) -> list[int]:
    """Alpha as RGBA in rle-pack: runs of up to 256 equal values, or up to eight one by one."""
    values = np.stack([np.full_like(alpha, 7), alpha, alpha, alpha], 2).ravel().tolist()
    bits = f"{len(values):032b}{8 - 1:05b}{3 - 1:04b}{4 - 1:04b}{8 - 1:04b}{16 - 1:04b}"
    while values:
        equal = next((i for i, v in enumerate(values[:256]) if v != values[0]), len(values[:256]))
        if equal > 1:
            bits += f"110{equal - 1:08b}{values[0]:08b}"
        else:
            equal = min(8, len(values))
            bits += f"000{equal - 1:03b}" + "".join(f"{v:08b}" for v in values[:equal])
        values = values[equal:]
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_label_studio(tmp_path, capsys):
    for name in ("a", "b c", "new"):
        photo(tmp_path / "images" / f"{name}.jpg")
    stroke = np.random.default_rng(0).random(SIZE) < 0.5
    stroke[:, 4:] = False
    edge = np.where(np.arange(SIZE[1]) == 25, 100, 0) + np.where(stroke, 255, 0)
    put(
        tmp_path / "project.json",
        [
            task(
                "/data/upload/1/1a2b3c4d-a.jpg",
                result("polygonlabels", "wall", points=percent(square(0, 0, 10)), closed=True),
                result("brushlabels", "dirt", 2, format="rle", rle=packed(edge)),
                result("ellipselabels", "dirt", 3, x=200 / 3, y=50, radiusX=20, radiusY=10,
                       rotation=90),
                result("rectanglelabels", "dirt", 4, x=0, y=0, width=50, height=50),
                result("choices", "good", 5),
                {"type": "relation", "from_id": "r1", "to_id": "r2"},
            ),
            task(
                "/data/local-files/?d=x/b%20c.jpg",
                result("polygon", "", points=percent(square(1, 1, 3))),
                result("labels", "wall", points=percent(square(1, 1, 3))),
            ),
            task("s3://bucket/new.jpg?x=1", was_cancelled=True),
            {"data": {"image": "gone.jpg"}, "annotations": []},
        ],
    )  # fmt: skip
    assert main(["init-data", str(tmp_path)]) == OK
    warning = capsys.readouterr().err
    assert "they have no area: 1 Label Studio's rectanglelabels" in warning
    assert "1 of 3 images have no outlines, left out: images/new.jpg" in warning
    assert open_dataset(str(tmp_path), "train").labels.classes == ("dirt", "wall", "background")
    mask = drawn(tmp_path, "images/a.jpg")
    np.testing.assert_array_equal(mask[:, :4] == 0, stroke[:, :4])
    assert (mask[:10, 4:10] == 1).all()
    assert (mask[:, 25] == 2).all()
    assert (mask[5:15, 20] == 0).all()  # 6 x 2 pixels, turned
    assert (mask[10, 17], mask[10, 23]) == (2, 2)
    assert (drawn(tmp_path, "images/b c.jpg") == 1).sum() == 9


def test_label_studio_s_short_form(tmp_path):
    """JSON-MIN: a line for each annotation, its regions in a list that is called as the tag is."""
    value = {"points": percent(square(0, 0, 5)), "polygonlabels": ["wall"],
             "original_width": SIZE[1], "original_height": SIZE[0]}  # fmt: skip
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    entries = [
        {"image": f"/data/upload/{name}.jpg", "id": 1, "annotation_id": 1, "annotator": 1,
         "label": [value], "choice": "good", "lead_time": 1.5}
        for name in "ab"
    ]  # fmt: skip
    put(tmp_path / "min.json", entries)
    write(tmp_path, draft(tmp_path))
    assert (drawn(tmp_path, "a.jpg") == 0).sum() == 25


POINTS = [[1, 1], [2, 1], [2, 2]]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([task("gone.jpg")], "x.json: image 'gone.jpg' not found"),
        ([task("a.jpg"), task("a.jpg")], "lists the image a.jpg twice, perhaps by two annotators"),
        ([task("a.jpg", {**result("polygonlabels", "b", points=POINTS), "image_rotation": 90})],
         "region 1 has no label or several, belongs to a rotated image"),
        ([task("a.jpg", result("polygon", "", points=POINTS))], "a.jpg: region 1 has no label"),
        ([task("a.jpg", result("brushlabels", "b", rle=[0, 0, 9, 6]))], "a.jpg: region 1"),
        ([task("a.jpg", {**result("brushlabels", "b", rle=packed(np.zeros((3, 3), int))),
                         "original_width": 3, "original_height": 3})], "gives a.jpg 3x3 pixels"),
        ([{"data": {}, "annotations": []}], "task 1 is not valid Label Studio JSON"),
    ],
)  # fmt: skip
def test_broken_label_studio(tmp_path, tasks, said):
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    good = task("b.jpg", result("polygonlabels", "b", points=percent(square(0, 0, 5))))
    put(tmp_path / "x.json", [*tasks, good])
    assert said in refused(tmp_path)


# --- V7 -------------------------------------------------------------------------------------------


def darwin(image: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    folder, _, name = image.rpartition("/")
    slot = {"type": "image", "slot_name": "0", "width": SIZE[1], "height": SIZE[0]}
    item = {"name": name, "path": f"/{folder}", "slots": [slot]}
    return {"version": "2.0", "item": item, "annotations": list(annotations)}


def paths(name: str, *lines: list[list[float]]) -> dict[str, Any]:
    polygon = {"paths": [[{"x": x, "y": y} for x, y in line] for line in lines]}
    box = {"h": 1, "w": 1, "x": 0, "y": 0}
    return {"id": "p", "name": name, "polygon": polygon, "bounding_box": box, "slot_names": ["0"]}


def test_v7(tmp_path, capsys):
    for image in ("one/a.jpg", "two/a.jpg"):
        photo(tmp_path / "images" / image)
    hole = paths("wall", square(0, 0, 10), square(2, 2, 3))
    box = {"id": "b", "name": "wall", "bounding_box": {"h": 1, "w": 1, "x": 0, "y": 0}}
    tag = {"id": "t", "name": "sunny", "tag": {}}
    put(tmp_path / "annotations" / "1.json", darwin("one/a.jpg", hole, box, tag))
    layer = {
        "dense_rle": [0, 30, 2, 5, 1, 4, 0, SIZE[0] * SIZE[1] - 39],
        "mask_annotation_ids_mapping": {"x": 1, "y": 2}, "total_pixels": SIZE[0] * SIZE[1],
    }  # fmt: skip
    masks = [{"id": key, "name": name, "mask": {}} for key, name in (("x", "car"), ("y", "wall"))]
    raster = {"id": "r", "name": "__raster_layer__", "raster_layer": layer}
    put(tmp_path / "annotations" / "2.json", darwin("two/a.jpg", *masks, raster))
    assert main(["init-data", str(tmp_path)]) == OK
    assert "no area: 1 V7's bounding_box" in capsys.readouterr().err
    assert open_dataset(str(tmp_path), "train").labels.classes == ("car", "wall", "background")
    assert np.bincount(drawn(tmp_path, "images/one/a.jpg").ravel()).tolist() == [0, 91, 509]
    second = drawn(tmp_path, "images/two/a.jpg")
    assert second[1].tolist() == [1] * 5 + [0] * 4 + [2] * 21
    assert (second != 2).sum() == 9
    (tmp_path / "data.yaml").unlink()
    layer["dense_rle"][1] = 3
    put(tmp_path / "annotations" / "2.json", darwin("two/a.jpg", *masks, raster))
    assert "2.json: annotation 3 is broken" in refused(tmp_path)
    put(tmp_path / "annotations" / "2.json", darwin("three/a.jpg"))
    assert "2.json: image 'three/a.jpg'" in refused(tmp_path)


# --- COCO panoptic --------------------------------------------------------------------------------


def panoptic(*files: str, suffix: str = ".png") -> dict[str, Any]:
    segments = [{"id": 256, "category_id": 7}, {"id": 65536 + 2, "category_id": 3},
                {"id": 5, "category_id": 7}]  # fmt: skip
    return {
        "images": [{"id": i, "file_name": f, "height": SIZE[0], "width": SIZE[1]}
                   for i, f in enumerate(files)],
        "annotations": [{"image_id": i, "file_name": Path(f).stem + suffix,
                         "segments_info": segments} for i, f in enumerate(files)],
        "categories": [{"id": 7, "name": "sky", "isthing": 0}, {"id": 3, "name": "cat"}],
    }  # fmt: skip


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_coco_panoptic(tmp_path, capsys, kind):
    """Of several segments in their colours; the PNG files are no images that lack outlines."""
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[:, :5], colours[:, 5:7], colours[:, 7:10] = (0, 1, 0), (2, 0, 1), (5, 0, 0)
    for split in ("train", "val"):
        photo(tmp_path / f"{split}2017" / f"1{kind}")
        put(tmp_path / f"annotations/panoptic_{split}2017.json", panoptic(f"1{kind}"))
        place = tmp_path / f"annotations/panoptic_{split}2017/1.png"
        place.parent.mkdir()
        place.write_bytes(encode_png(colours))
    assert main(["init-data", str(tmp_path), "--rest", "ignore"]) == OK
    assert "have no outlines" not in capsys.readouterr().err
    dataset = open_dataset(str(tmp_path), "val")
    assert dataset.labels.classes == ("cat", "sky")
    assert dataset.load(0).mask[9].tolist() == [1] * 5 + [0] * 2 + [1] * 3 + [255] * 20
    (tmp_path / "data.yaml").unlink()
    place.write_bytes(encode_png(colours[:5]))
    said = refused(tmp_path)
    assert "1.png: mask is 30x5 but its image 30x20" in said


def test_panoptic_files_beside_the_images(tmp_path):
    """As Segments.ai writes them."""
    photo(tmp_path / "a.jpg")
    end = "_label_ground-truth_coco-panoptic.png"
    (tmp_path / f"a{end}").write_bytes(encode_png(np.full((*SIZE, 3), (0, 1, 0), np.uint8)))
    put(tmp_path / "export_coco-panoptic_me.json", panoptic("a.jpg", suffix=end))
    made = draft(tmp_path)
    assert made.note == ""
    assert (drawn(tmp_path, "a.jpg") == 1).all()
    put(tmp_path / "export_coco-panoptic_me.json", panoptic("a.jpg", "b.jpg", suffix=end))
    assert "image 'b.jpg' not found" in refused(tmp_path)
    put(tmp_path / "export_coco-panoptic_me.json", {**panoptic("a.jpg"), "categories": []})
    assert "not valid COCO panoptic JSON" in refused(tmp_path)

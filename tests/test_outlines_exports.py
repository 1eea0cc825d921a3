"""Outlines in the tables of VIA, in projects of VIA 3, and in exports of Labelbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from setr.cli import main
from setr.datasets import open_dataset
from setr.errors import OK
from setr.images import encode_png
from setr.init_data import draft

from .test_outlines import SIZE, labelme, photo, put, refused, shape, square
from .test_outlines_annotators import drawn


def field(value: Any) -> str:
    """JSON as VIA writes it into a column."""
    return '"' + json.dumps(value).replace('"', '""') + '"'


# --- CSV of VIA 2 ---------------------------------------------------------------------------------

HEADER = (
    "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
    "region_attributes"
)


def row(image: str, count: int, number: int, form: dict[str, Any], given: dict[str, Any]) -> str:
    return f'{image},99,"{{}}",{count},{number},{field(form)},{field(given)}'


@pytest.mark.parametrize("start", ["", "#"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_of_via(tmp_path, capsys, start, end):
    """An image without regions has a line, too."""
    for name in "abc":
        photo(tmp_path / f"{name}.jpg")
    xs, ys = zip(*square(0, 0, 10), strict=True)
    polygon = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    rect = {"name": "rect", "x": 2, "y": 2, "width": 4, "height": 3}
    line = {"name": "polyline", "all_points_x": [1, 2], "all_points_y": [1, 2]}
    lines = [
        start + HEADER,
        row("a.jpg", 3, 0, polygon, {"class": "cat"}),
        row("a.jpg", 3, 1, rect, {"class": "d\u2028g"}),
        row("a.jpg", 3, 2, line, {"class": "cat"}),
        row("b.jpg", 0, 0, {}, {}),
    ]
    (tmp_path / "via_region_data.csv").write_bytes(end.join(lines).encode())
    (tmp_path / "others.csv").write_bytes(b"a,b\n\xff,2\n")
    assert main(["init-data", str(tmp_path)]) == OK
    said = capsys.readouterr().err
    assert "no area: 1 VIA's polyline" in said
    assert "1 of 3 images have no outlines, left out: c.jpg" in said
    mask = drawn(tmp_path, "a.jpg")
    assert (mask[2:5, 2:6] == 1).all()
    assert (mask == 0).sum() == 100 - 12
    assert (drawn(tmp_path, "b.jpg") == 2).all()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('a,b.jpg,99,"{}",1,0,"{}","{}"', "8 instead of 7 columns in 'a,b.jpg,99"),
        ('a.jpg,99,"{}",1,0,"{""name""","{}"', "not a table of VIA (Expecting"),
        ('a.jpg,99,"{}",1,0,"{}" x,"{}"', "not a table of VIA ("),
        (row("gone.jpg", 0, 0, {}, {}), "x.csv: image 'gone.jpg' not found"),
        (row("a.jpg", 1, 0, {"name": "circle", "cx": 1}, {"class": "a"}), "a.jpg: region 2 has no"),
    ],
)
def test_broken_tables_of_via(tmp_path, line, said):
    photo(tmp_path / "a.jpg")
    rect = row("a.jpg", 1, 0, {"name": "rect", "x": 2, "y": 2, "width": 4, "height": 3}, {"k": "a"})
    put(tmp_path / "x.csv", "\n".join([HEADER, rect.replace('""k""', '""class""'), line]))
    put(tmp_path / "b.json", labelme("a.jpg", shape("wall", square(0, 0, 9))))
    if "x.csv: image" in said or "region" in said:
        (tmp_path / "b.json").unlink()
    assert said in refused(tmp_path)


# --- VIA 3 ----------------------------------------------------------------------------------------


def via3(*regions: tuple[str, list[float], dict[str, str]], **attributes: Any) -> dict[str, Any]:
    """A project with the images a.jpg and b.jpg as views "1" and "2"."""
    return {
        "project": {"pid": "__VIA_PROJECT_ID__", "data_format_version": "3.1.1",
                    "vid_list": ["1", "2"]},
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}, "ui": {}},
        "attribute": attributes or {
            "1": {"aname": "kind", "anchor_id": "FILE1_Z0_XY1", "type": 4, "desc": "",
                  "options": {"0": "dog", "1": "bird", "2": "cat"}, "default_option_id": ""},
        },
        "file": {
            "1": {"fid": "1", "fname": "a.jpg", "type": 2, "loc": 1, "src": ""},
            "2": {"fid": 2, "fname": "the second", "type": 2, "loc": 2, "src": "http://x/b.jpg"},
        },
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": [2]}},
        "metadata": {
            f"{view}_{number}": {"vid": view, "flg": 0, "z": [], "xy": xy, "av": av}
            for number, (view, xy, av) in enumerate(regions)
        },
    }  # fmt: skip


def test_a_project_of_via3(tmp_path, capsys):
    """Options have numbers; several may be ticked, but one names the class."""
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    corners = [side for point in square(0, 0, 10) for side in point]
    content = via3(
        ("1", [7, *corners], {"1": "2"}),
        ("1", [2, 2, 2, 4, 3], {"1": "0"}),
        ("1", [3, 20, 10, 4], {"1": "0"}),
        ("1", [4, 20, 10, 1, 3], {"1": "2"}),
        ("1", [6, 1, 1, 2, 2], {"1": "2"}),
        ("2", [], {"1": "2"}),
    )
    put(tmp_path / "project.json", content)
    assert main(["init-data", str(tmp_path)]) == OK
    assert "no area: 1 VIA's polyline" in capsys.readouterr().err
    classes = open_dataset(str(tmp_path), "train").labels.classes
    assert classes == ("dog", "bird", "cat", "background")
    mask = drawn(tmp_path, "a.jpg")
    assert (mask[2:5, 2:6] == 0).all()
    assert (mask[:10, :10] == 2).sum() == 100 - 12
    assert (mask[8:12, 20] == 2).all()
    assert (mask[10, 17], mask[10, 23]) == (0, 0)
    assert (drawn(tmp_path, "b.jpg") == 3).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"xy": [8, 1, 1, 2, 2]}, "a.jpg: region 1 has no class in its attribute"),
        ({"av": {"1": "0,1"}}, "a.jpg: region 1 has no class in its attribute 'kind'"),
        ({"z": [1.5]}, "x.json: cannot be read as a file of VIA (a region of a video)"),
        ({"vid": "7"}, "x.json: cannot be read as a file of VIA ("),
        ({"av": {"9": "x"}}, "x.json: cannot be read as a file of VIA ("),
    ],
)
def test_broken_projects_of_via3(tmp_path, change, said):
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    content = via3(("1", [2, 2, 2, 4, 3], {"1": "0"}), ("2", [2, 2, 2, 4, 3], {"1": "0"}))
    content["metadata"]["1_0"] |= change
    put(tmp_path / "x.json", content)
    assert said in refused(tmp_path)


def test_other_files_in_a_project_of_via3(tmp_path):
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    content = via3(("1", [2, 2, 2, 4, 3], {"1": "0"}))
    content["file"]["2"] |= {"type": 4, "fname": "b.mp4"}
    put(tmp_path / "x.json", content)
    assert "cannot be read as a file of VIA ('b.mp4' is no image)" in refused(tmp_path)
    content["view"]["2"]["fid_list"] = ["1", "2"]
    put(tmp_path / "x.json", content)
    assert "cannot be read as a file of VIA (view 2 shows 2 files)" in refused(tmp_path)


def test_a_table_of_via3(tmp_path):
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    described = {"1": {"aname": "kind", "type": 1, "options": {}}}
    lines = [
        "# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)",
        "# SHAPE_ID = " + json.dumps({"POINT": 1, "RECT": 2}),
        "# ATTRIBUTE = " + json.dumps(described),
        "# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,"
        "metadata",
        *(
            f'"{name}_x",{field([f"{name}.jpg"])},0,"[]",{field(xy)},{field({"1": kind})}'
            for name, xy, kind in (
                ("a", [2, 2, 2, 4, 3], "oak, old"),
                ("b", [2, 0, 0, 5, 5], "ash"),
            )
        ),
    ]
    put(tmp_path / "Default-Project_export.csv", "\n".join(lines))
    assert '  1: "oak, old"' in draft(tmp_path).yaml
    assert (drawn(tmp_path, "a.jpg") == 1).sum() == 12
    assert (drawn(tmp_path, "b.jpg") == 0).sum() == 25


# --- Labelbox -------------------------------------------------------------------------------------

ADDRESS = "https://api.labelbox.com/api/v1"


def objects(*given: dict[str, Any]) -> dict[str, Any]:
    entries = [{"feature_id": f"ck{i}", "value": "v", "classifications": [], **one}
               for i, one in enumerate(given)]  # fmt: skip
    annotations = {"objects": entries, "classifications": [], "relationships": []}
    return {"label_kind": "Default", "version": "1.0.0", "id": "l", "annotations": annotations}


def area(name: str, *points: list[float]) -> dict[str, Any]:
    corners = [{"x": x, "y": y} for x, y in points]
    return {"name": name, "annotation_kind": "ImagePolygon", "polygon": corners}


def masked(name: str, key: str = "", colour: tuple[int, ...] = (0, 0, 0)) -> dict[str, Any]:
    """An object with a mask of its own and, if given, one of all objects."""
    joint = {"url": f"{ADDRESS}/tasks/t1/masks/{key}/index/1", "color_rgb": list(colour)}
    own = {"url": f"{ADDRESS}/projects/p/annotations/f/index/1/mask"}
    return {"name": name, "annotation_kind": "ImageSegmentationMask", "mask": own,
            **({"composite_mask": joint} if key else {})}  # fmt: skip


def export(path: Path, *rows: tuple[dict[str, str], list[dict[str, Any]]]) -> None:
    lines = [
        json.dumps({
            "data_row": {"id": "c1", "row_data": "https://storage/x.jpg?a=b", **named},
            "media_attributes": {"height": SIZE[0], "width": SIZE[1], "asset_type": "image",
                                 "mime_type": "image/jpeg", "exif_rotation": "1"},
            "projects": {"p": {"name": "trees", "labels": labels}},
        })
        for named, labels in rows
    ]  # fmt: skip
    put(path, "\n".join(lines) + "\n")


def test_labelbox(tmp_path, capsys):
    """Images are found by the name that is given, by their key, or by their address."""
    for name in ("a", "b", "c", "new"):
        photo(tmp_path / "images" / f"{name}.jpg")
    box = {"name": "cat", "annotation_kind": "ImageBoundingBox",
           "bounding_box": {"top": 1, "left": 1, "height": 2, "width": 2}}  # fmt: skip
    export(
        tmp_path / "export.ndjson",
        ({"external_id": "a.jpg", "global_key": "k1"},
         [objects(area("dog", *square(0, 0, 10)), area("cat", *square(2, 2, 3)), box)]),
        ({"external_id": "photo", "global_key": "b.jpg"}, [objects(area("cat", *square(0, 0, 4)))]),
        ({"row_data": "https://storage/images/c.jpg?key=1"}, [objects()]),
        ({"external_id": "new.jpg"}, []),
    )  # fmt: skip
    assert main(["init-data", str(tmp_path)]) == OK
    said = capsys.readouterr().err
    assert "no area: 1 Labelbox's ImageBoundingBox" in said
    assert "1 of 4 images have no outlines, left out: images/new.jpg" in said
    assert open_dataset(str(tmp_path), "train").labels.classes == ("cat", "dog", "background")
    mask = drawn(tmp_path, "images/a.jpg")
    assert (mask[2:5, 2:5] == 0).all()
    assert (mask == 1).sum() == 91
    assert (drawn(tmp_path, "images/b.jpg") == 0).sum() == 16
    assert (drawn(tmp_path, "images/c.jpg") == 2).all()


def test_masks_of_labelbox(tmp_path, capsys):
    """They are no images that lack outlines."""
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    export(
        tmp_path / "export.ndjson",
        ({"external_id": "a.jpg"},
         [objects(masked("sky", "m7", (1, 2, 3)), masked("sea", "m7", (3, 2, 1)))]),
        ({"external_id": "b.jpg"}, [objects(area("sky", *square(0, 0, 9)), masked("sea"))]),
    )  # fmt: skip
    said = refused(tmp_path)
    assert "export.ndjson: 2 masks are only addresses, which need your API key of Labelbox" in said
    assert f"{ADDRESS}/tasks/t1/masks/m7/index/1 as m7.png, and so on" in said
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[:, :5], colours[:, 5:7] = (1, 2, 3), (3, 2, 1)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "m7.png").write_bytes(encode_png(colours))
    own = np.zeros(SIZE, np.uint8)
    own[:, 20:] = 255
    (tmp_path / "masks" / "ck1.png").write_bytes(encode_png(own))
    assert main(["init-data", str(tmp_path)]) == OK
    assert "left out" not in capsys.readouterr().err
    assert drawn(tmp_path, "a.jpg")[3].tolist() == [1] * 5 + [0] * 2 + [2] * 23
    assert drawn(tmp_path, "b.jpg")[3].tolist() == [1] * 9 + [2] * 11 + [0] * 10


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([objects(area("a", [1, 1], [2, 2]))], "x.json: image 1 is not valid Labelbox JSON"),
        ([objects({"annotation_kind": "GeoX", "name": "a"})], "cannot read GeoX"),
        ([{"annotations": {"frames": {}}}], "image 1 is not valid Labelbox JSON"),
        ([objects(), objects()], "lists the image a.jpg twice, perhaps by two annotators"),
    ],
)
def test_broken_labelbox(tmp_path, labels, said):
    """A list of images is read as lines are."""
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    good = [objects(area("cat", *square(0, 0, 4)))]
    export(tmp_path / "x.ndjson", ({"external_id": "a.jpg"}, labels), ({"row_data": "b.jpg"}, good))
    lines = (tmp_path / "x.ndjson").read_text().splitlines()
    (tmp_path / "x.ndjson").unlink()
    put(tmp_path / "x.json", f"[{','.join(lines)}]")
    assert said in refused(tmp_path)
    export(tmp_path / "x.json", ({"external_id": "gone.jpg"}, good))
    assert "x.json: image 'gone.jpg' not found" in refused(tmp_path)


def test_a_cut_off_line_of_labelbox(tmp_path):
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    good = [objects(area("cat", *square(0, 0, 4)))]
    export(tmp_path / "x.ndjson", ({"external_id": "a.jpg"}, good), ({"row_data": "b.jpg"}, good))
    put(tmp_path / "y.ndjson", (tmp_path / "x.ndjson").read_text()[:-40])
    assert "y.ndjson: not JSON in each line" in refused(tmp_path)
    put(tmp_path / "y.ndjson", '{"of": "another program"}\n{"cut o')
    assert "2 masks" in draft(tmp_path).yaml

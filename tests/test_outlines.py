"""Outlines of annotation tools, the masks drawn from them, and `setr init-data` on them."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from setr.cli import main
from setr.datasets import open_dataset
from setr.errors import DATA_CHECK_FAILED, FAILED, OK, USAGE, SetrError
from setr.images import encode_png
from setr.init_data import draft, write
from setr.labels import IGNORE, Labels
from setr.outlines import supervisely
from setr.outlines.drawing import (
    Patch,
    Ring,
    Rules,
    Runs,
    Shape,
    as_counts,
    draw,
    ellipse,
    unrolled,
)
from setr.prediction.annotations import merge_coco, to_coco, to_labelme
from setr.prediction.polygons import mask_polygons, run_lengths
from setr.reading.masks import read_mask

from .test_polygons import inside, masks

LABELS = Labels(("a", "b", "c"))
SIZE = (20, 30)


def photo(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def shape(label: str | None, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, **more}


def labelme(image: str, *shapes: dict[str, Any], size: tuple[int, int] = SIZE) -> dict[str, Any]:
    sides = {"imageHeight": size[0], "imageWidth": size[1]}
    return {"version": "5.4.1", "shapes": list(shapes), "imagePath": image, **sides}


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


# --- drawing --------------------------------------------------------------------------------------


@given(masks())
@settings(max_examples=60, deadline=None)
def test_what_is_written_as_outlines_gives_its_mask_back(mask):
    polygons = mask_polygons(mask, 3)
    ids = {name: i for i, name in enumerate(LABELS.classes)}
    lengths = [as_counts(run_lengths(p, mask.shape)) for p in polygons]
    whole = [
        Shape(LABELS.classes[p.class_id], (Runs(mask.shape, counts),))
        for p, counts in zip(polygons, lengths, strict=True)
    ]
    written = to_labelme(polygons, LABELS, file_name="", size=mask.shape)["shapes"]
    lines = [Shape(s["label"], (Ring(np.array(s["points"])),)) for s in written]
    np.testing.assert_array_equal(draw(whole, mask.shape, Rules(ids, IGNORE, True)).mask, mask)
    if (mask < 3).all():  # an outline covers what a hole of no class leaves
        drawn = draw(lines, mask.shape, Rules(ids, IGNORE, False))
        np.testing.assert_array_equal(drawn.mask, mask)


def test_a_pixel_belongs_to_the_outline_around_its_centre():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ring = rng.uniform(-5, 25, (7, 2))  # crosses itself and leaves the image
        top, left, covered = Ring(ring).cover((20, 18))
        mask = np.zeros((20, 18), bool)
        mask[top : top + covered.shape[0], left : left + covered.shape[1]] = covered
        np.testing.assert_array_equal(mask, inside([ring], (20, 18)))


def test_neighbours_leave_no_pixel_and_share_none():
    cut = [(3.3, 0), (7.7, 20)]
    sides = [(0, 0), *cut, (0, 20)], [cut[0], (30, 0), (30, 20), cut[1]]
    rings = [Ring(np.array(side, float)) for side in sides]
    assert sum(ring.cover(SIZE).inside.sum() for ring in rings) == SIZE[0] * SIZE[1]
    shapes = [Shape("a", (ring,)) for ring in rings]
    assert (draw(shapes, SIZE, Rules({"a": 0}, IGNORE, False)).mask == 0).all()


def test_small_objects_lie_over_large_ones_where_a_format_has_no_order():
    large, small = (
        Shape(n, (Ring(np.array(square(0, 0, s), float)),)) for n, s in (("a", 10), ("b", 4))
    )
    for first, name in ((True, 1), (False, 0)):
        mask = draw([small, large], SIZE, Rules({"a": 0, "b": 1}, IGNORE, first)).mask
        assert mask[0, 0] == name
        assert mask[9, 9] == 0
        assert mask[19, 19] == 255


def test_compressed_run_lengths():
    """Written as `rleToString` of COCO's maskApi.c does."""
    lengths = [5, 300, 2, 1, 40, 252]
    text = ""
    for i, value in enumerate(lengths):
        rest = value - (lengths[i - 2] if i > 2 else 0)
        more = True
        while more:
            part = rest & 31
            rest >>= 5
            more = rest != (-1 if part & 16 else 0)
            text += chr(part + (32 if more else 0) + 48)
    np.testing.assert_array_equal(
        Runs(SIZE, as_counts(text)).cover(SIZE).inside,
        Runs(SIZE, as_counts(lengths)).cover(SIZE).inside,
    )
    top, left, inside = Runs((2, 3), as_counts([3, 2, 1])).cover((2, 3))
    assert (top, left) == (0, 1)  # no larger than the object
    np.testing.assert_array_equal(inside, [[False, True], [True, False]])
    assert not Runs((2, 3), as_counts([6])).cover((2, 3)).inside.size
    with pytest.raises(SetrError, match=r"run lengths of 6 pixels, size \[2, 3\]"):
        Runs((2, 3), as_counts([1, 2, 3])).cover((3, 2))


def test_a_patch_is_cut_off_at_the_border():
    png = base64.b64encode(encode_png(np.full((3, 4), 255, np.uint8))).decode()
    assert Patch(-1, 28, png).cover(SIZE).inside.shape == (2, 2)
    for top, left in ((21, 0), (0, 33), (-3, 0), (0, -9)):
        shape = Shape("a", (Patch(top, left, png),))
        assert (draw([shape], SIZE, Rules({"a": 0}, IGNORE, True)).mask == IGNORE).all()
    with pytest.raises(SetrError, match="not base64"):
        Patch(0, 0, "?").cover(SIZE)


# --- folders --------------------------------------------------------------------------------------


def drawn(root: Path, image: str) -> np.ndarray:
    return read_mask(root / "masks_drawn" / Path(image).with_suffix(".png"))


def test_labelme(tmp_path, capsys):
    png = base64.b64encode(encode_png(np.full((2, 3), 255, np.uint8))).decode()
    photo(tmp_path / "a.jpg")
    put(tmp_path / "a.json", labelme(
        "..\\elsewhere\\a.jpg",
        shape("wall", square(0, 0, 10)), shape("pole", [[4, 6], [2, 2]], "rectangle"),
        shape("ball", [[20, 10], [24, 10]], "circle"),
        shape("dot", [[25, 3], [27, 4]], "mask", mask=png),
        shape("__ignore__", square(0, 8, 4)), shape("_background_", square(8, 8, 1)),
        shape("pole", [[1, 1], [9, 9]], "line"),
    ))  # fmt: skip
    photo(tmp_path / "b.jpg")
    put(tmp_path / "b.json", labelme("b.jpg", shape("wall", square(0, 0, 30))))
    photo(tmp_path / "new.jpg")
    put(tmp_path / "settings.json", {"theme": "dark"})
    assert main(["init-data", str(tmp_path)]) == OK
    warning = capsys.readouterr().err
    assert "left out, because they have no area: 1 LabelMe's line" in warning
    assert "1 of 3 images have no outlines, left out: new.jpg" in warning
    assert main(["doctor", str(tmp_path)]) == OK
    dataset = open_dataset(str(tmp_path), "train")
    assert dataset.labels.classes == ("ball", "dot", "pole", "wall", "background")
    mask = drawn(tmp_path, "a.jpg")
    assert (mask[2:6, 2:4] == 2).all()
    assert (mask == 2).sum() == 8
    assert (mask[3:5, 25:28] == 1).all()
    assert (mask == 1).sum() == 6
    assert abs((mask == 0).sum() - np.pi * 16) < 4
    assert (mask[8:12, :4] == 255).all()
    assert (mask == 255).sum() == 16
    assert (mask[8, 8], mask[0, 0], mask[19, 0]) == (4, 3, 4)
    assert (drawn(tmp_path, "b.jpg") == 3).all()


def test_a_full_disk_is_no_problem_of_the_outlines(tmp_path, capsys, monkeypatch):
    for stem in "ab":
        photo(tmp_path / f"{stem}.png")
        put(tmp_path / f"{stem}.json", labelme(f"{stem}.png", shape("a", square(2, 2, 9))))

    def refusing(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("setr.writing.os.replace", refusing)
        assert main(["init-data", str(tmp_path)]) == FAILED
    last = capsys.readouterr().err.splitlines()[-1]
    assert "png: cannot write: No space left on device" in last
    assert "with outlines" not in last
    assert main(["init-data", str(tmp_path)]) == OK


@pytest.mark.parametrize("name", ["__ignore__", "ignore"])
def test_what_is_called_ignored_is_no_class(tmp_path, name):
    photo(tmp_path / "a.jpg")
    shapes = shape("wall", square(0, 0, 9)), shape(name, square(2, 2, 3))
    put(tmp_path / "a.json", labelme("a.jpg", *shapes))
    write(tmp_path, draft(tmp_path))
    dataset = open_dataset(str(tmp_path), "train")
    assert dataset.labels.classes == ("wall", "background")
    assert (dataset[0].mask == 255).sum() == 9


def test_labelme_apart_from_images_in_splits(tmp_path):
    for split in ("train", "val"):
        for stem in ("a", "b"):
            photo(tmp_path / "images" / split / f"{split}_{stem}.jpg")
            content = labelme("x.jpg", shape("b", square(0, 0, 30)), shape("a", square(0, 0, 3)))
            put(tmp_path / "annotations" / split / f"{split}_{stem}.json", content)
    (tmp_path / "classes.txt").write_text("b\na\n")
    write(tmp_path, draft(tmp_path))
    dataset = open_dataset(str(tmp_path), "val")
    assert dataset.labels.classes == ("b", "a")  # nothing is uncovered: no background
    assert [p.image.name for p in dataset.pairs] == ["val_a.jpg", "val_b.jpg"]
    assert dataset.pairs[0].mask == tmp_path / "masks_drawn/images/val/val_a.png"


def test_labelme_in_folders_like_those_of_the_images(tmp_path):
    for cut, camera in enumerate(("one", "two"), 3):
        photo(tmp_path / "photos" / camera / "0001.jpg")
        path = f"..\\..\\photos\\{camera}\\0001.jpg"
        put(tmp_path / "outlines" / camera / "0001.json",
            labelme(path, shape("wall", square(0, 0, cut))))  # fmt: skip
    draft(tmp_path)
    for cut, camera in enumerate(("one", "two"), 3):
        mask = read_mask(tmp_path / "masks_drawn" / "photos" / camera / "0001.png")
        assert (mask == 0).sum() == cut**2


def test_real_outlines_of_labelme(shared, tmp_path):
    """Beside the masks that LabelMe drew itself, which holds pixels on a line inside, too."""
    sample = shared / "data" / "samples" / "labelme_voc"
    for path in (*(sample / "data_annotated").iterdir(), sample / "labels.txt"):
        shutil.copyfile(path, tmp_path / path.name)
    assert main(["init-data", str(tmp_path)]) == OK
    for path in sorted((sample / "data_dataset_voc" / "SegmentationClass").glob("*.png")):
        theirs = read_mask(path)  # 0 is the background there
        theirs = np.where(theirs == 0, 20, np.where(theirs == 255, 255, theirs - 1))
        assert (drawn(tmp_path, path.name) == theirs).mean() > 0.993


def coco(*files: str, size: tuple[int, int] = SIZE, **more: Any) -> dict[str, Any]:
    images = [
        {"id": i, "file_name": f, "height": size[0], "width": size[1]} for i, f in enumerate(files)
    ]
    small, large = (square(2, 2, 4), square(20, 2, 4)), (square(0, 0, 10),)
    areas = {7: [np.ravel(r).tolist() for r in small], 3: [np.ravel(r).tolist() for r in large]}
    return {
        "images": images,
        "categories": [{"id": 7, "name": "small", "supercategory": "things"},
                       {"id": 0, "name": "things", "supercategory": "none"},
                       {"id": 3, "name": "large", "supercategory": "things"}],
        "annotations": [{"id": 2 * i + k, "image_id": i, "category_id": c, "segmentation": area}
                        for i in range(len(files)) for k, (c, area) in enumerate(areas.items())],
        **more,
    }  # fmt: skip


def bitmap(mask: np.ndarray, form: str) -> str:
    """A mask as Supervisely's program (P) or its page (RGBA) stores it."""
    buffer = io.BytesIO()
    image = Image.fromarray(mask.astype(np.uint8))
    if form == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(buffer, "PNG", transparency=0)
    else:
        alpha = np.repeat(255 * mask.astype(np.uint8)[..., None], 4, axis=2)
        alpha[..., :3] = 255
        Image.fromarray(alpha).save(buffer, "PNG")
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


@pytest.mark.parametrize("form", ["P", "RGBA"])
def test_supervisely(tmp_path, capsys, form):
    corner = np.array([[1, 0], [1, 1]], bool)
    hole = {"exterior": square(10, 0, 8), "interior": [square(12, 2, 2)]}
    objects = [
        {"classTitle": "cat", "geometryType": "polygon", "points": hole},
        {"classTitle": "dog", "geometryType": "bitmap",
         "bitmap": {"data": bitmap(corner, form), "origin": [10, 0]}},
        {"classTitle": "dog", "geometryType": "rectangle",
         "points": {"exterior": [[0, 0], [9, 9]], "interior": []}},
    ]  # fmt: skip
    size = {"height": SIZE[0], "width": SIZE[1]}
    for dataset, drawn in (("ds0", objects), ("ds1", [])):
        photo(tmp_path / dataset / "img" / "1.jpg")
        content = {"description": "", "tags": [], "size": size, "objects": drawn}
        put(tmp_path / dataset / "ann" / "1.jpg.json", content)
    classes = [{"title": t, "shape": "any", "color": "#000000"} for t in ("dog", "cat", "bird")]
    put(tmp_path / "meta.json", {"classes": classes, "tags": []})
    assert main(["init-data", str(tmp_path)]) == OK
    assert "they have no area: 1 Supervisely's rectangle" in capsys.readouterr().err
    expected = np.full(SIZE, 3, np.uint8)
    expected[0:8, 10:18], expected[2:4, 12:14] = 1, 3
    expected[:2, 10:12][corner] = 0
    np.testing.assert_array_equal(read_mask(tmp_path / "masks_drawn/ds0/img/1.png"), expected)
    assert (read_mask(tmp_path / "masks_drawn/ds1/img/1.png") == 3).all()
    classes = open_dataset(str(tmp_path), "train").labels.classes
    assert classes == ("dog", "cat", "bird", "background")


def test_broken_supervisely(tmp_path):
    photo(tmp_path / "ds" / "img" / "1.jpg")
    picture = {"data": "QQ==", "origin": [0, 0]}
    broken = {"classTitle": "a", "geometryType": "bitmap", "bitmap": picture}
    content = {"size": {"height": SIZE[0], "width": SIZE[1]}, "objects": [broken]}
    put(tmp_path / "ds" / "ann" / "1.jpg.json", content)
    with pytest.raises(
        SetrError, match="object 1 has no class, or is not a valid polygon or bitmap"
    ):
        draft(tmp_path)


def test_cvat_for_images(tmp_path, capsys):
    for name in ("train/1.jpg", "2.jpg"):
        photo(tmp_path / "images" / name)
    H, W = SIZE
    put(
        tmp_path / "annotations.xml",
        f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>dog</name></label><label><name>cat</name></label></labels></task></meta>
<image id="0" name="train/1.jpg" subset="Train" width="{W}" height="{H}">
  <mask label="dog" source="manual" occluded="0" rle="2, 3, 1" left="5" top="7" width="3"
    height="2" z_order="1.0"></mask>
  <polygon label="cat" source="manual" occluded="0" points="4,6;10,6;10,10;4,10" z_order="0">
    <attribute name="a">b</attribute></polygon>
  <box label="cat" occluded="0" xtl="1" ytl="1" xbr="3" ybr="3" z_order="top"></box>
  <ellipse label="dog" cx="20" cy="10" rx="6" ry="2" rotation="90" z_order="0"></ellipse>
</image>
<image id="1" name="2.jpg" subset="Validation" width="{W}" height="{H}"></image>
</annotations>""",
    )
    assert main(["init-data", str(tmp_path)]) == OK
    assert "no area: 1 CVAT's box" in capsys.readouterr().err
    mask = open_dataset(str(tmp_path), "train")[0].mask
    np.testing.assert_array_equal(mask[6:10, 4:10].sum(), 24 - 3)
    np.testing.assert_array_equal(mask[7:9, 5:8], [[1, 1, 0], [0, 0, 1]])
    assert (mask[5:15, 20] == 0).all()
    assert (mask[10, :17] == 2).all()
    assert (open_dataset(str(tmp_path), "val")[0].mask == 2).all()
    broken = (tmp_path / "annotations.xml").read_text().replace("2, 3, 1", "2, 3")
    (tmp_path / "annotations.xml").write_text(broken)
    with pytest.raises(SetrError, match=r"train/1\.jpg: a mask without a label or its points"):
        draft(tmp_path)


@pytest.mark.parametrize("encoding", ["gb2312", "of-old"])
def test_other_programs_xml_is_passed_over(tmp_path, encoding):
    photo(tmp_path / "a.jpg")
    put(tmp_path / "a.json", labelme("a.jpg", shape("wall", square(0, 0, 9))))
    put(tmp_path / "voc.xml", f'<?xml version="1.0" encoding="{encoding}"?><annotation/>')
    assert "1 masks in masks_drawn" in draft(tmp_path).yaml


def test_a_file_of_cvat_that_is_cut_off_is_told(tmp_path):
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
        image = (
            f'<image name="{name}.jpg"><polygon label="{name}" points="4,6;10,6;10,10"/></image>'
        )
        put(tmp_path / f"{name}.xml", f"<annotations>{image}</annotations>")
    assert "2 masks in masks_drawn" in draft(tmp_path).yaml
    put(tmp_path / "b.xml", (tmp_path / "b.xml").read_text()[:60])
    assert "b.xml: not XML that can be read (unclosed token" in refused(tmp_path)


def test_coco_of_roboflow(tmp_path):
    for split in ("train", "valid"):
        photo(tmp_path / split / "a.jpg")
        put(tmp_path / split / "_annotations.coco.json", coco("a.jpg"))
    write(tmp_path, draft(tmp_path))
    dataset = open_dataset(str(tmp_path), "val")
    assert dataset.labels.classes == ("large", "small", "background")
    mask = dataset.load(0).mask
    assert (mask[2:6, 2:6] == 1).all()
    assert (mask[2:6, 20:24] == 1).all()
    assert (mask == 1).sum() == 32
    assert (mask == 0).sum() == 100 - 16
    assert (mask == 2).sum() == 600 - 116


def test_a_background_among_coco_s_categories_shifts_no_class(tmp_path):
    """As labelme2coco writes them: `_background_` has the id 0."""
    names = [{"id": 0, "name": "_background_"}, {"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name)
    put(tmp_path / "all.json", coco("a.jpg", "b.jpg", categories=names))
    write(tmp_path, draft(tmp_path))
    dataset = open_dataset(str(tmp_path), "val")
    assert dataset.labels.classes == ("cat", "dog", "background")
    mask = dataset.load(0).mask
    assert (mask[2:6, 2:6] == 1).all()
    assert np.bincount(mask.ravel()).tolist() == [100 - 16, 32, 600 - 116]


def test_boxes_of_coco_are_left_out_and_counted(tmp_path):
    photo(tmp_path / "a.jpg")
    whole = coco("a.jpg")["annotations"]
    put(tmp_path / "x.json", coco("a.jpg", annotations=[*whole, *(one(7, a) for a in ([], [[]]))]))
    assert "no area: 2 annotations without an outline" in draft(tmp_path).note


def test_coco_as_via_writes_it(tmp_path):
    content = coco("a.jpg", "b.jpg")
    content["categories"] = [{"id": 10, "name": "large"}, {"id": 7, "name": "small"}]
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = "10" if annotation["category_id"] == 3 else 7
        annotation["segmentation"] = annotation["segmentation"][0]
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name)
    put(tmp_path / "via_export_coco.json", content)
    write(tmp_path, draft(tmp_path))
    assert open_dataset(str(tmp_path), "val").labels.classes == ("small", "large", "background")
    assert np.bincount(drawn(tmp_path, "b.jpg").ravel()).tolist() == [16, 100 - 16, 500]


def test_sizes_of_coco_may_be_text(tmp_path):
    photo(tmp_path / "a.jpg")
    content = coco("a.jpg")
    content["images"][0] |= {"height": str(SIZE[0]), "width": str(SIZE[1])}
    put(tmp_path / "x.json", content)
    assert "1 masks" in draft(tmp_path).yaml


def test_what_is_for_testing_is_not_trained_on(tmp_path):
    def lists(*names: str) -> dict[str, list[str]]:
        for name in names:
            photo(tmp_path / name)
        put(tmp_path / "all.json", coco(*names))
        found = draft(tmp_path).lists
        return {k: [line.partition("\t")[0] for line in v.splitlines()] for k, v in found.items()}

    found = lists("test/1.jpg", "train/1.jpg", "train/2.jpg", "train/3.jpg")
    assert found["test.txt"] == ["test/1.jpg"]
    assert sorted(found["train.txt"] + found["val.txt"]) == [f"train/{i}.jpg" for i in (1, 2, 3)]
    found = lists("test/1.jpg", "train/1.jpg", "val/2.jpg", "more/3.jpg")
    assert found == {
        "train.txt": ["more/3.jpg", "train/1.jpg"], "val.txt": ["val/2.jpg"],
        "test.txt": ["test/1.jpg"],
    }  # fmt: skip
    assert set(lists("test/1.jpg", "test/2.jpg")) == {"train.txt", "val.txt"}


def test_coco_in_its_own_folders(tmp_path, capsys):
    for split in ("train", "val"):
        photo(tmp_path / f"{split}2017" / "1.jpg")
    for split in ("train", "val"):
        put(tmp_path / "annotations" / f"instances_{split}2017.json", coco("1.jpg"))
        put(
            tmp_path / "annotations" / f"captions_{split}2017.json",
            {"images": [], "annotations": []},
        )
    put(tmp_path / "annotations" / "instances_test2017.json", coco("8.jpg", "9.jpg"))
    assert main(["init-data", str(tmp_path), "--rest", "ignore"]) == OK
    note = "annotations/instances_test2017.json: none of its 2 images was found"
    assert note in capsys.readouterr().err
    for split in ("train", "val"):
        (pair,) = open_dataset(str(tmp_path), split).pairs
        assert pair.image == tmp_path / f"{split}2017" / "1.jpg"
    assert (read_mask(pair.mask) == 255).sum() == 600 - 116


def test_outlines_over_images_of_bands(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    options = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 4}
    for name in ("a.tif", "b.tif"):
        with rasterio.open(tmp_path / name, "w", dtype="float32", **options) as file:
            file.write(np.random.default_rng(0).random((4, *SIZE), np.float32))
    put(tmp_path / "all.json", coco("a.tif", "b.tif"))
    write(tmp_path, draft(tmp_path))
    dataset = open_dataset(str(tmp_path), "train")
    assert dataset.load(0).image.shape == (*SIZE, 4)
    assert (dataset.load(0).mask == 1).sum() == 32


def test_coco_of_our_own_predictions(tmp_path):
    mask = np.random.default_rng(1).integers(0, 3, SIZE).astype(np.uint8)
    parts = []
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name)
        parts.append(to_coco(mask_polygons(mask, 3), LABELS, file_name=name, size=SIZE))
    put(tmp_path / "all.json", merge_coco(parts))
    write(tmp_path, draft(tmp_path))
    for name in ("a.jpg", "b.jpg"):
        np.testing.assert_array_equal(drawn(tmp_path, name), mask)


def test_yolo_beside_a_data_yaml_of_another_program(tmp_path, capsys):
    own = "train: images/train\nval: images/val\nnames:\n  0: box\n  1: on\nroboflow: {a: b}\n"
    (tmp_path / "data.yaml").write_text(own)
    for split in ("train", "val"):
        photo(tmp_path / "images" / split / "a.png")
        photo(tmp_path / "images" / split / "empty.png")
        put(
            tmp_path / "labels" / split / "a.txt",
            "0 0 0 0.5 0 0.5 0.5 0 0.5\n\n1 0.1 0.1 0.2 0.1 0.2 1 0.1 1\n",
        )
    for words in ([], ["--overwrite"]):  # or a second time the names would be gone
        assert main(["init-data", str(tmp_path), "--name", "data.yaml", *words]) == USAGE
        assert "lose the classes it names; add --name OTHER.yaml" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path), "--quick"]) == DATA_CHECK_FAILED
    assert f"contains polygons, `setr init-data {tmp_path}` draws" in capsys.readouterr().out
    assert main(["init-data", str(tmp_path)]) == OK
    printed = capsys.readouterr()
    assert "data.yaml is of another program and stays as it is" in printed.err
    with pytest.raises(SetrError, match=r"init-data` has drawn masks: give .*setr\.yaml"):
        open_dataset(str(tmp_path), "val")
    assert f"`setr doctor {tmp_path / 'setr.yaml'}`" in printed.out
    assert main(["init-data", str(tmp_path), "--name", "setr.yaml"]) == USAGE
    assert "add --overwrite to replace it, or --name OTHER.yaml" in capsys.readouterr().err
    assert main(["init-data", str(tmp_path), "--overwrite"]) == OK
    assert (tmp_path / "data.yaml").read_text() == own
    dataset = open_dataset(str(tmp_path / "setr.yaml"), "val")
    assert (tmp_path / "setr_val.txt").is_file()
    assert len(dataset) == 2
    assert dataset.labels.classes == ("box", "on", "background")
    mask = dataset.load(0).mask
    assert (mask[:10, :15] == 0).sum() == 150 - 8 * 3
    assert (mask[2:20, 3:6] == 1).all()
    assert (dataset.load(1).mask == 2).all()


def yolo_split(root: Path) -> None:
    for split in ("train", "val"):
        photo(root / "images" / split / "a.png")
        put(root / "labels" / split / "a.txt", "1 0 0 0.5 0 0.5 0.5 0 0.5\n")


@pytest.mark.parametrize("place", [".", "cells"])
def test_yolo_described_by_a_file_elsewhere_or_by_one_that_names_its_own_folder(
    tmp_path, capsys, monkeypatch, place
):
    monkeypatch.chdir(tmp_path)
    yolo_split(tmp_path / "cells")
    file = Path(place, "cells8-seg.yaml")
    put(file, "path: cells\ntrain: images/train\nval: images/val\ntest:\nnames:\n 0: a\n 1: b\n")
    assert main(["doctor", str(file), "--quick"]) == DATA_CHECK_FAILED
    given = file if place == "." else place
    assert f"`setr init-data {given}` draws masks" in capsys.readouterr().out
    assert main(["init-data", str(file)]) == OK
    assert "`setr doctor cells`" in capsys.readouterr().out
    for split in ("train", "val"):
        dataset = open_dataset("cells", split)
        assert dataset.labels.classes == ("a", "b", "background")
        assert len(dataset) == 1
    assert (dataset.load(0).mask == 1).sum() == 150
    with pytest.raises(SetrError, match=r"init-data` has drawn masks: give .*cells.data\.yaml"):
        open_dataset(str(file), "val")


def test_yolo_without_names_of_classes_is_told(tmp_path, capsys):
    yolo_split(tmp_path)
    assert main(["init-data", str(tmp_path)]) == OK
    printed = capsys.readouterr()
    assert '1: "class_1"' in printed.out
    assert "no file names the classes; if a YAML file of Ultralytics" in printed.err


def test_a_file_of_yolo_is_refused_for_a_folder_of_others(tmp_path, capsys):
    put(tmp_path / "a.yaml", "path: photos\nnames: [a]\n")
    photo(tmp_path / "photos" / "a.jpg")
    put(tmp_path / "photos" / "a.json", labelme("a.jpg", shape("wall", square(0, 0, 9))))
    assert main(["init-data", str(tmp_path / "a.yaml")]) == USAGE
    assert "has LabelMe, not YOLO's outlines; give this folder" in capsys.readouterr().err
    put(tmp_path / "a.yaml", "path: nowhere\nnames: [a]\n")
    assert main(["init-data", str(tmp_path / "a.yaml")]) == USAGE
    assert "path: nowhere leads to" in capsys.readouterr().err
    train = tmp_path / "photos"
    put(tmp_path / "x" / "a.yaml", f"train: {train}\nnames: [a]\n")
    assert main(["init-data", str(tmp_path / "x" / "a.yaml")]) == USAGE
    assert f"{train} is outside {tmp_path / 'x'}; name the folder" in capsys.readouterr().err
    put(tmp_path / "a.yaml", "names: 3\n")
    assert main(["init-data", str(tmp_path / "a.yaml")]) == USAGE
    assert "no YAML file with names of classes" in capsys.readouterr().err


def test_yolo_as_roboflow_exports_it_or_with_masks_too(tmp_path):
    (tmp_path / "data.yaml").write_text("train: ../train/images\nnc: 2\nnames: [box, on]\n")
    photo(tmp_path / "train" / "images" / "a.png")
    put(tmp_path / "train" / "labels" / "a.txt", "0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    with pytest.raises(SetrError, match=r"no such folder.*if labels are polygons: `setr init-data"):
        open_dataset(str(tmp_path), "train")
    (tmp_path / "data.yaml").write_text("train: train/images\nnames: [box, on]\n")
    (tmp_path / "train" / "masks").mkdir()
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "train" / "masks" / "a.png")
    assert (open_dataset(str(tmp_path), "train").load(0).mask == 1).all()


def test_yolo_splits_by_lists_and_folders(tmp_path):
    for folder in ("a", "b", "c"):
        for number in range(3):
            photo(tmp_path / "images" / folder / f"{number}.png")
            put(tmp_path / "labels" / folder / f"{number}.txt", "0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    put(tmp_path / "data.yaml", "train: images/a\nval: v.txt\ntest: [images/c]\nnames: [box]\n")
    put(tmp_path / "v.txt", "".join(f"./images/b/{number}.png\n" for number in range(3)))
    assert main(["init-data", str(tmp_path), "--name", "own.yaml"]) == OK
    for split, folder in (("train", "a"), ("val", "b"), ("test", "c")):
        pairs = open_dataset(str(tmp_path / "own.yaml"), split).pairs
        assert [pair.image.parent.name for pair in pairs] == [folder] * 3


def test_masks_go_before_outlines(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    put(tmp_path / "images" / "a.json", labelme("a.jpg", shape("wall", square(0, 0, 9))))
    put(tmp_path / "masks" / "x.txt", "")
    Image.fromarray(np.eye(*SIZE, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    assert "masks/a.png" in next(iter(draft(tmp_path).lists.values()))
    assert not (tmp_path / "masks_drawn").exists()


# --- what cannot be read --------------------------------------------------------------------------


def refused(root: Path, code: int = DATA_CHECK_FAILED, **options: Any) -> str:
    with pytest.raises(SetrError) as caught:
        draft(root, **options)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert not (root / "data.yaml").exists()
    return str(caught.value)


def test_all_problems_are_told_at_once(tmp_path):
    for name in "abcdef":
        photo(tmp_path / f"{name}.jpg")
    put(
        tmp_path / "a.json",
        labelme("a.jpg", shape("wall", square(0, 0, 9)), shape("pole", [[1, 2]])),
    )
    put(tmp_path / "b.json", '{"shapes": [')
    put(tmp_path / "c.json", labelme("c.jpg", shape("pole", square(0, 0, 9)), size=(30, 20)))
    put(tmp_path / "d.json", labelme("d.jpg", shape("pole", [[0, 0], [1, 1]], "mask", mask="?")))
    put(
        tmp_path / "e.json",
        labelme(
            "e.jpg", {"points": square(0, 0, 9)}, [], {"label": None, "points": square(0, 0, 9)}
        ),
    )
    put(tmp_path / "gone.json", labelme("gone.jpg", shape("wall", square(0, 0, 9))))
    (tmp_path / "f.jpg").write_bytes(b"no image")
    put(tmp_path / "f.json", labelme("f.jpg"))
    said = refused(tmp_path)
    for part in ("9 problems with outlines (LabelMe)", "a.json: shape 2 has no label, or no points",
                 "b.json: not JSON", "c.json: gives c.jpg 20x30 pixels, the file has 30x20; draw",
                 "d.json: a mask that is not base64", "e.json: shape 1 has no label",
                 "gone.json: image 'gone.jpg' not found", "f.jpg: not an image",
                 "e.json: shape 2 has no label", "e.json: shape 3 has no label"):  # fmt: skip
        assert part in said


def test_masks_are_replaced_when_all_are_drawn(tmp_path):
    """Another class would change ids, so that masks and data.yaml would not fit."""
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
        put(tmp_path / f"{name}.json", labelme(f"{name}.jpg", shape("wall", square(0, 0, 9))))
    assert main(["init-data", str(tmp_path)]) == OK
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    added = {tmp_path / "a.json", tmp_path / "b.json"}
    put(tmp_path / "a.json", labelme("a.jpg", shape("arch", square(0, 0, 9))))
    put(tmp_path / "b.json", labelme("b.jpg", shape("wall", square(0, 0, 9)), size=(3, 3)))
    assert main(["init-data", str(tmp_path), "--overwrite"]) == DATA_CHECK_FAILED
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in after if before.get(path) != after[path]} == added
    assert not (tmp_path / ".masks_drawn.part").exists()
    put(tmp_path / "b.json", labelme("b.jpg", shape("wall", square(0, 0, 9))))
    (tmp_path / "masks_drawn" / "mine.txt").write_text("kept")
    assert main(["init-data", str(tmp_path), "--overwrite"]) == OK
    assert (read_mask(tmp_path / "masks_drawn" / "b.png") == 1).sum() == 81
    assert (tmp_path / "masks_drawn" / "mine.txt").exists()


def test_keypoints_are_no_outlines(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    put(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2 0.1 0.1 0.3 0.3\n")
    put(tmp_path / "pose.yaml", "names: [person]\nkpt_shape: [2, 2]\n")
    assert "1 problem with outlines (YOLO): the YAML file has kpt_shape" in refused(tmp_path)


def test_boxes_are_no_outlines(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    put(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    said = "(YOLO): left out, because they have no area: 1 boxes; draw polygons or masks"
    assert said in refused(tmp_path)
    put(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2\n0 0 0 1 0 1 nan\n")
    assert "2 problems" in refused(tmp_path)
    put(tmp_path / "labels" / "a.txt", "99999999999 0 0 1 0 1 1\n")
    assert "class number 99999999999: at most 255 classes" in refused(tmp_path)


def test_yolo_in_pixels_is_no_outline(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    put(tmp_path / "labels" / "a.txt", "0 -0.1 0 1.05 0 1 1\n1 2 2 8 2 8 18\n")
    said = refused(tmp_path)
    assert "1 problem with outlines (YOLO): labels/a.txt: line 2: 18 is out of range" in said


def test_more_classes_than_a_mask_can_hold(tmp_path):
    """As LVIS has them."""
    photo(tmp_path / "a.jpg")
    many = [{"id": i, "name": f"c{i}"} for i in range(255)]
    put(tmp_path / "x.json", coco("a.jpg", categories=many))
    said = "outlines (COCO) of 256 classes, including --rest; at most 255 fit into masks: merge"
    assert said in refused(tmp_path)
    assert "c254" in draft(tmp_path, rest="ignore").yaml


def test_one_class_needs_another_for_the_rest(tmp_path):
    photo(tmp_path / "a.jpg")
    put(tmp_path / "a.json", labelme("a.jpg", shape("wall", square(0, 0, 9))))
    assert "--rest ignore: the outlines have a single class, 'wall'" in refused(
        tmp_path, USAGE, rest="ignore"
    )
    assert '  - "ground"' in draft(tmp_path, rest="ground").yaml


def test_outlines_in_two_places(tmp_path):
    photo(tmp_path / "a.jpg")
    for name in ("one.json", "two.json"):
        put(tmp_path / name, coco("a.jpg"))
    assert "a.jpg has outlines in one.json and in two.json" in refused(tmp_path)
    (tmp_path / "two.json").unlink()
    put(tmp_path / "a.json", labelme("a.jpg", shape("wall", square(0, 0, 9))))
    assert "outlines of LabelMe and COCO" in refused(tmp_path)


def test_an_image_is_listed_once(tmp_path):
    photo(tmp_path / "a.jpg")
    put(tmp_path / "x.json", coco("a.jpg", "a.jpg"))
    assert "x.json lists the image a.jpg twice" in refused(tmp_path)


def test_no_image_of_another_folder_is_taken(tmp_path):
    for name in ("one/1.jpg", "one/2.jpg"):
        photo(tmp_path / name)
    put(tmp_path / "x.json", coco("one/1.jpg", "two/2.jpg"))
    assert "x.json: image 'two/2.jpg' not found" in refused(tmp_path)
    put(tmp_path / "x.json", coco("/home/me/1.jpg", "upload\\2.jpg"))
    assert "2 masks" in draft(tmp_path).yaml


def one(category: int, area: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": 0, "category_id": category, "segmentation": area}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": [{"id": 0}]}, "not valid COCO JSON"),
        ({"annotations": [one(9, [[1, 2] * 3])]}, "annotation 5: unknown category or image"),
        ({"annotations": [one(7, [[1, 2]])]}, "annotation 5"),
        ({"annotations": [one(7, {"size": [20, 30], "counts": "5"})]}, "run lengths of 5 pixels"),
    ],
)  # fmt: skip
def test_broken_coco(tmp_path, change, said):
    photo(tmp_path / "a.jpg")
    put(tmp_path / "x.json", coco("a.jpg", **change))
    assert said in refused(tmp_path)
    put(tmp_path / "x.json", coco("gone.jpg"))
    assert "x.json: none of its 1 images was found" in refused(tmp_path)


@pytest.mark.parametrize("name", ["../x.yaml", "x.txt", ".yaml"])
def test_names_of_the_description(tmp_path, name, capsys):
    assert main(["init-data", str(tmp_path), "--name", name]) == USAGE
    assert "give a name without folders that ends in .yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lengths", "size"),
    [
        ((0, 10**12), (10**6, 10**6)),
        ((0, 3 * 10**9), (10**5, 3 * 10**4)),
        ((2**62, 2**62, 2**62, 2**62, 12), (3, 4)),
        ((-4, 16), (3, 4)),
        ((5, 6), (3, 4)),
    ],
)
def test_run_lengths_are_those_of_an_image(lengths, size):
    """A line of text can claim terabytes; sums of int64 can be anything."""
    runs = np.array(lengths, np.int64)
    with pytest.raises(ValueError, match=r"^$"):
        unrolled(np.arange(len(runs)), runs, size)
    with pytest.raises(SetrError, match="run lengths of"):
        Runs(size, runs).cover(size)


def test_a_bitmap_that_unpacks_to_gigabytes(monkeypatch):
    monkeypatch.setattr(supervisely, "MOST_BYTES", 1000)
    for data in (zlib.compress(bytes(10**6)), zlib.compress(bytes(10**6))[:500]):
        held = {"bitmap": {"origin": [0, 0], "data": base64.b64encode(data).decode()}}
        with pytest.raises(ValueError, match=r"^$"):
            supervisely._part({"geometryType": "bitmap", **held})


def test_a_tangle_is_refused():
    """Each of its edges crosses all rows."""
    points = np.zeros((200_000, 2))
    points[:, 0], points[1::2, 1] = np.linspace(0, 100, len(points)), 1000
    with pytest.raises(SetrError, match="200,000 points crosses the rows of an image of 1000 x 99"):
        Ring(points).cover((1000, 99))
    assert Ring(points[:2000]).cover((1000, 99)).inside.any()


def test_ellipses_turn_clockwise_as_rows_go_down():
    points = ellipse((10, 20), (8, 2), np.pi / 6).points - (10, 20)
    farthest = points[np.argmax(np.hypot(*points.T)) % (len(points) // 2)]
    np.testing.assert_allclose(farthest, (8 * np.cos(np.pi / 6), 8 * 0.5), atol=1e-9)

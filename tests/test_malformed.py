"""Files with single values that no program writes, as mutations of good ones found them."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from setr.cli import main
from setr.commands.auto import _figures
from setr.commands.auto_again import _steps
from setr.data.class_files import names_by_id
from setr.data.split_draft import list_text
from setr.datasets import open_dataset
from setr.errors import DATA_CHECK_FAILED, FAILED, OK, USAGE, SetrError
from setr.images import encode_png
from setr.labels import Labels, known_labels
from setr.outlines.index import AnnotatedFolder, ImageIndex
from setr.outlines.layers import Layers
from setr.prediction.inputs import find_items
from setr.prediction.manifest import Manifest, write_parquet
from setr.prediction.video import VideoReader
from setr.reading.parsed import BROKEN, fault_of
from setr.reading.storage import Storage
from setr.recipes import recipe
from setr.trackers import CsvTable

from .conftest import write_scene_folders
from .test_outlines import labelme, photo, put, refused, shape, square
from .test_outlines_annotators import darwin, paths, percent, result, task

PAPER = "cityscapes_setr_pup_large_80k"


def failure(code: int, *arguments: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that fails."""
    assert main(list(map(str, arguments))) == code
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("setr: ")
    return last


# --- class names ----------------------------------------------------------------------------------

HALF = "\ud800"


@pytest.mark.parametrize("name", [HALF, f"wall{HALF}", "w\udcff"])
def test_class_names_with_half_of_a_character(tmp_path, capsys, name):
    """They would end a training when it writes its model."""
    with pytest.raises(SetrError, match="is no valid text"):
        Labels(("a", name))
    photo(tmp_path / "a.jpg")
    put(tmp_path / "a.json", labelme("a.jpg", shape(name, square(0, 0, 9))))
    assert "is no valid text" in failure(DATA_CHECK_FAILED, "init-data", tmp_path, capsys=capsys)
    assert {p.name for p in tmp_path.iterdir()} == {"a.jpg", "a.json"}


def test_half_of_a_character_in_a_file_of_class_names(tmp_path, capsys):
    data = write_scene_folders(tmp_path, {"train": 1, "val": 1})
    (data / "data.yaml").unlink()
    put(data / "classes.json", [f"n{i}{HALF}" for i in range(12)])
    assert "is no valid text" in failure(DATA_CHECK_FAILED, "init-data", data, capsys=capsys)
    assert not (data / "data.yaml").exists()


@pytest.mark.parametrize("name", ["a\x7f", "a\x96b", "a\x85b", "a\u2028b", "\ufeffa", "a\ufffe"])
def test_class_names_with_characters_that_yaml_forbids(tmp_path, name):
    """\x96 is the dash of a Windows text that was read as Latin-1."""
    photo(tmp_path / "a.jpg")
    put(tmp_path / "a.json", labelme("a.jpg", shape(name, square(0, 0, 9))))
    assert main(["init-data", str(tmp_path)]) == OK
    assert open_dataset(str(tmp_path), "train").labels.classes == (name, "background")


def test_notes_stay_comments(tmp_path, capsys):
    """Classes that cover each other are named in data.yaml, in one line."""
    photo(tmp_path / "images" / "a.jpg")
    for name, size in (("a\x7f", 4), ("b\u2028c", 9)):
        mask = tmp_path / "masks" / f"a_{name}.png"
        mask.parent.mkdir(exist_ok=True)
        image = [[int(max(x, y) < size) for x in range(30)] for y in range(20)]
        mask.write_bytes(encode_png(np.array(image, np.uint8)))
    assert main(["init-data", str(tmp_path)]) == OK
    assert "classes overlap in 1 images" in capsys.readouterr().err
    assert set(open_dataset(str(tmp_path), "train").labels.classes) > {"a\x7f", "b\u2028c"}


def test_ids_of_class_names_without_a_number(tmp_path):
    put(tmp_path / "classes.json", '[{"id": 1e999, "name": "a"}]')
    with pytest.raises(SetrError, match=r"classes\.json: no class names found"):
        names_by_id(tmp_path)
    (tmp_path / "classes.json").unlink()
    put(tmp_path / "_classes.csv", "Pixel Value,Class\n0," + "x" * 200_000 + "\n")
    with pytest.raises(SetrError, match=r"_classes\.csv: no class names found"):
        names_by_id(tmp_path)


def test_names_of_yolo_with_ids_that_are_none(tmp_path):
    photo(tmp_path / "a.jpg")
    put(tmp_path / "a.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    put(tmp_path / "set.yaml", "names: {.inf: a}\n")
    assert main(["init-data", str(tmp_path)]) == OK
    assert open_dataset(str(tmp_path), "train").labels.classes == ("class_0", "background")


# --- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\rb"])
@pytest.mark.parametrize("kind", ["pairs", "outlines"])
def test_names_that_no_line_of_a_list_can_hold(tmp_path, capsys, kind, name):
    """A draft that cannot be read is none."""
    for stem in (name, "other"):
        photo(tmp_path / "images" / f"{stem}.png")
        if kind == "pairs":
            mask = tmp_path / "masks" / f"{stem}.png"
            mask.parent.mkdir(exist_ok=True)
            mask.write_bytes(encode_png(np.arange(600, dtype=np.uint8).reshape(20, 30) % 3))
        else:
            content = labelme(f"{stem}.png", shape("wall", square(0, 0, 9)))
            put(tmp_path / "images" / f"{stem}.json", content)
    before = sorted(tmp_path.rglob("*"))
    said = failure(DATA_CHECK_FAILED, "init-data", tmp_path, capsys=capsys)
    assert f"{name!a}"[1:-1] in said
    assert "rename it" in said
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


def test_spaces_at_the_ends_of_names_in_lists():
    with pytest.raises(SetrError, match=r"' a\.png': a tab"):
        list_text([("b.png", "b_mask.png"), (" a.png", "a_mask.png")])
    assert list_text([("b/ a.png", "b/ a_mask.png")]) == "b/ a.png\tb/ a_mask.png\n"


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_names_with_a_zero_in_a_list(tmp_path, capsys, kind):
    data = write_scene_folders(tmp_path, {"train": 2, "val": 1})
    names = {"image": "images/train/scene_000.png", "mask": "labels/train/scene_000.png"}
    good = " ".join(names.values()).replace("000", "001")
    names[kind] = names[kind].replace("/", "\0", 1)
    put(data / "train.txt", f"{good}\n{' '.join(names.values())}\n")
    with (data / "data.yaml").open("a") as file:
        file.write("train: train.txt\nval: images/val\n")
    assert main(["doctor", str(data)]) == DATA_CHECK_FAILED
    assert "1 of 2 pairs are unusable" in capsys.readouterr().out


def test_an_open_quotation_mark_in_a_table(tmp_path):
    data = write_scene_folders(tmp_path, {"train": 2, "val": 1})
    put(data / "train.csv", 'image,mask\n"images/train/scene_000.png' + "\nx" * 100_000)
    with (data / "data.yaml").open("a") as file:
        file.write("train: train.csv\nval: images/val\n")
    with pytest.raises(SetrError, match=r"train\.csv: line .* no table in CSV") as caught:
        open_dataset(str(data), "train")
    assert caught.value.code == DATA_CHECK_FAILED


def test_a_description_in_another_encoding(tmp_path):
    (tmp_path / "data.yaml").write_bytes("classes: [Straße]\n".encode("cp1252"))
    with pytest.raises(SetrError, match=r"data\.yaml: not UTF-8; save it in that encoding"):
        open_dataset(str(tmp_path), "train")


# --- outlines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"categories": [{"name": "a"}]}, "not valid COCO JSON ('id' is missing)"),
        ({"images": [5]}, "not valid COCO JSON (a value is of another kind"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "height": 1e999, "width": 2}]}, "infinity"),
    ],
)
def test_what_is_wrong_is_said_without_python(tmp_path, value, said):
    photo(tmp_path / "a.jpg")
    good = {"images": [], "annotations": [], "categories": []}
    put(tmp_path / "x.json", {**good, **value})
    message = refused(tmp_path)
    assert said in message
    assert "Error" not in message


@pytest.mark.parametrize("value", [[1, 2, 3], "a", [], ""])
def test_annotations_that_are_no_tables(tmp_path, value):
    """They are not passed over, as annotations without an area are."""
    for name in "ab":
        photo(tmp_path / f"{name}.jpg")
    ring = result("polygonlabels", "wall", points=percent(square(0, 0, 10)))
    put(tmp_path / "x.json", [task("a.jpg", ring, value)])
    assert "x.json: task 1 is not valid Label Studio JSON (a value is of another" in refused(
        tmp_path
    )
    put(tmp_path / "x.json", darwin("a.jpg", paths("wall", square(0, 0, 10)), value))
    assert "x.json: annotation 2 is broken" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", '{"images": [', "x.json: not JSON (Expecting value"),
        ("x.xml", "<annotations><image", "x.xml: not XML that can be read (unclosed token"),
        ("x.csv", "filename,file_size,file_attributes,region_count,region_id,\na", "x.csv: not a"),
    ],
)
def test_the_only_file_of_outlines_is_cut_off(tmp_path, name, text, said):
    photo(tmp_path / "a.jpg")
    put(tmp_path / name, text)
    message = refused(tmp_path)
    assert said in message
    assert "no outlines" in message


def test_faults():
    assert fault_of(KeyError("name")) == "'name' is missing"
    with pytest.raises(UnicodeDecodeError) as caught:
        b"ab\xff".decode()
    assert fault_of(caught.value) == "byte 2 is no text in UTF-8"
    assert fault_of(RecursionError()) == "nested too deeply"
    assert fault_of(ValueError()) == "a value is out of range"
    assert fault_of(ValueError("x\ny")) == "x"
    assert all(fault_of(kind()) for kind in BROKEN)


@pytest.mark.parametrize("rle", ["9" * 30, "2,3,x", ""])
def test_run_lengths_of_cvat_that_are_no_numbers(tmp_path, rle):
    photo(tmp_path / "a.jpg")
    put(
        tmp_path / "x.xml",
        '<annotations><image name="a.jpg" width="30" height="20">'
        f'<mask label="a" rle="{rle}" left="0" top="0" width="3" height="2"/></image>'
        "</annotations>",
    )
    assert "x.xml: a.jpg: a mask without a label or its points" in refused(tmp_path)


def test_geometries_inside_geometries():
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [square(0, 0, 9)]}
    for _ in range(3000):
        geometry = {"type": "GeometryCollection", "geometries": [geometry]}
    feature = {"type": "Feature", "properties": {"class": "a"}, "geometry": geometry}
    layers = Layers(Path(), ["a.jpg"], ImageIndex(["a.jpg"]), {}, "")
    layers.read("a.geojson", {"features": [feature]})
    found: AnnotatedFolder = layers.annotated()
    assert found.problems == ["a.geojson: feature 1 is not a valid area"]


# --- manifests ------------------------------------------------------------------------------------

ROW = {
    **{"name": "a", "input": "a", "status": "ok", "run": "r", "stamp": "1", "output": "a"},
    **{"files": ["a.png"], "width": 2, "height": 2, "classes": {"x": 1.0}, "pack": ["p.tar", 1]},
}


@pytest.mark.parametrize(
    "change",
    [
        *({"name": value} for value in (["a"], {"a": 1}, 5)),
        *({"pack": value} for value in (5, ["a"], ["a", "b"], "ab")),
        *({"files": value} for value in (5, [5], {"a": 1})),
        *({"classes": value} for value in ([1], {"x": "y"}, {"x": 1e300}, {"x": 10**400})),
        *({"width": 2**40}, {"stamp": 5}, {"error": ["x"]}, {"status": 5}),
    ],
)
def test_lines_of_a_manifest_that_are_no_outcomes(tmp_path, change):
    text = json.dumps({**ROW, **change}) + "\n"
    (tmp_path / "manifest.jsonl").write_text(json.dumps(ROW) + "\n" + text)
    with pytest.raises(SetrError, match="line 2 is not an outcome") as caught:
        Manifest(Storage(str(tmp_path)), "manifest", lambda row: True)
    assert caught.value.code == FAILED
    assert (tmp_path / "manifest.jsonl").read_text().endswith(text)


def test_a_manifest_in_parquet_of_rows_without_all_fields(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    short = {name: ROW[name] for name in ("name", "status", "run")}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(short) + "\n")
    with Manifest(Storage(str(tmp_path)), "manifest", lambda row: True) as manifest:
        name = write_parquet(manifest)
    assert pq.read_table(tmp_path / name)["name"].to_pylist() == ["a"]


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [],
        {"single_scale": {"miou": "high"}},
        {"single_scale": {"miou": [0.5]}},
        {"single_scale": {"miou": 0.5, "failed": 3}},
        {"single_scale": {"miou": 0.5}, "provenance": [1]},
        {"single_scale": {"miou": 0.5}, "data": {"classes": None}, "recipe": PAPER},
        {
            "single_scale": {"miou": 0.5},
            "recipe": PAPER,
            "data": {"classes": list(known_labels("cityscapes").classes), "train_images": "2975"},
        },
    ],
)
def test_figures_of_a_run_that_are_none(tmp_path, capsys, values):
    """The others are shown, and it is told what is not."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(recipe(PAPER).to_yaml())
    good = {"single_scale": {"miou": 0.5, "pixel_accuracy": None}, "recipe": "mine"}
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(good))
    (tmp_path / "b" / "metrics.json").write_text(json.dumps(values))
    assert main(["results", "--runs", str(tmp_path)]) == OK
    shown = capsys.readouterr()
    assert "mine" in shown.out
    (warning,) = shown.err.splitlines()
    assert "b/metrics.json: left out (" in warning


def test_figures_of_a_test_that_are_damaged(tmp_path):
    (tmp_path / "model.safetensors").touch()
    file = tmp_path / "metrics.json"
    good = {"single_scale": {"miou": None, "pixel_accuracy": 0.5}}
    for text, found in (("{", {}), ("[]", {}), ('{"a": 1}', {}), (json.dumps(good), good)):
        file.write_text(text)
        assert _figures(file, tmp_path) == found
    assert _steps(tmp_path) == 0
    file.write_text("{")
    assert _steps(tmp_path) == 0


@pytest.mark.parametrize(
    "end", ["2,0.5,9,9\n", "\u00b2,0.5\n", '2,"' + "x" * 200_000, "2,0.\0\0\0\0"]
)
def test_a_table_of_figures_that_is_damaged_at_its_end(tmp_path, end):
    (tmp_path / "log.csv").write_text(f"step,loss\n1,0.5\n{end}")
    table = CsvTable(tmp_path, 1)
    table.line({"step": 2, "loss": 0.25})
    assert (tmp_path / "log.csv").read_text().split() == ["step,loss", "1,0.5", "2,0.25"]


@pytest.mark.parametrize("options", [["--num-classes", "9999999999"], ["--label-map", "map.yaml"]])
def test_more_classes_than_ids(tmp_path, capsys, monkeypatch, options):
    """Their names alone would fill the memory."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "map.yaml", "7: 9999999998\n")
    assert "9999999999 classes: give 1 to 255" in failure(
        USAGE, "score", tmp_path, tmp_path, *options, capsys=capsys
    )


# --- shards ---------------------------------------------------------------------------------------


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy of nested values with one replaced, or without it if `new` is `...`."""
    if not place:
        return new
    first, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is ... and not rest:
        del copy[first]
    else:
        copy[first] = changed(copy[first], tuple(rest), new)
    return copy


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    data = write_scene_folders(root / "data", {"train": 3, "val": 1}, size=16)
    assert main(["shard", str(data), str(root / "out"), "--samples", "2"]) == OK
    return root / "out"


SPLIT = ("splits", "train")


@pytest.mark.parametrize(
    ("place", "new"),
    [
        (("name",), ...),
        (("name",), float("nan")),
        (("splits",), "x"),
        ((*SPLIT, "labels"), "x"),
        ((*SPLIT, "labels", "classes", 0), HALF),
        ((*SPLIT, "shards", 0, "samples"), ...),
        ((*SPLIT, "shards", 0, "samples"), 10**12),
        ((*SPLIT, "shards", 0, "samples"), 1),
        ((*SPLIT, "shards", 0, "samples"), float("nan")),
    ],
)
def test_descriptions_of_shards_that_are_none(shards, tmp_path, place, new):
    shutil.copytree(shards, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "shards.json").read_text())
    (tmp_path / "shards.json").write_text(json.dumps(changed(values, place, new)))
    with pytest.raises(SetrError) as caught:
        open_dataset(str(tmp_path), "train")
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("name", ["shard", "start", "size", "crc", "names"])
@pytest.mark.parametrize(
    "change",
    [
        lambda array: array[:0],
        lambda array: array[:-1],
        lambda array: array[None],
        lambda array: array.astype(float) / 2,
        lambda array: -array.astype(np.int64) - 1,
        lambda array: np.array(["x"]),
    ],
)
def test_an_index_of_shards_that_is_none(shards, tmp_path, name, change):
    """Its checksum is right, as that of an index which another program wrote."""
    shutil.copytree(shards, tmp_path, dirs_exist_ok=True)
    arrays = dict(np.load(tmp_path / "train.npz"))
    arrays[name] = change(arrays[name])
    np.savez(tmp_path / "train.npz", **arrays)
    values = json.loads((tmp_path / "shards.json").read_text())
    crc = zlib.crc32((tmp_path / "train.npz").read_bytes())
    values = changed(values, (*SPLIT, "crc"), crc)
    (tmp_path / "shards.json").write_text(json.dumps(values))
    if name == "names" and arrays[name].dtype == np.uint8 and arrays[name].ndim == 2:
        assert len(open_dataset(str(tmp_path), "train")) == 3  # the same bytes
        return
    with pytest.raises(SetrError, match="not shards written by setr shard"):
        open_dataset(str(tmp_path), "train")


# --- videos and lists of images -------------------------------------------------------------------


def test_libraries_say_nothing_about_a_broken_video(tmp_path, capfd):
    """OpenCV's reader of AVI files would print bytes of them on the terminal."""
    (tmp_path / "a.avi").write_bytes(b"RIFF\x10\0\0\0AVI LIST\0\0" + bytes(range(256)) * 8)
    with (
        pytest.raises(SetrError, match="not a video in a known format"),
        VideoReader(tmp_path / "a.avi"),
    ):
        pass
    assert capfd.readouterr().err == ""


def test_a_list_of_images_that_names_itself(tmp_path, monkeypatch):
    """As `ls > images.txt` writes it."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "images.txt", "a.png\nother.txt\n")
    put(tmp_path / "other.txt", "images.txt\n")
    with pytest.raises(SetrError, match=r"images\.txt: this list names itself; remove that line"):
        find_items(["images.txt"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_images_as_windows_writes_them(tmp_path, monkeypatch, encoding):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.txt").write_text("a.png\nb\0.png\n", encoding=encoding)
    found = find_items(["images.txt"])
    assert [(item.place, item.stamp) for item in found] == [
        ("a.png", "missing"),
        ("b\0.png", "missing"),
    ]


def test_a_list_in_utf_16_that_is_cut_off(tmp_path):
    data = write_scene_folders(tmp_path, {"train": 2, "val": 1})
    text = "images/train/scene_000.png labels/train/scene_000.png\n".encode("utf-16")
    (data / "train.txt").write_bytes(text[:-3])
    with (data / "data.yaml").open("a") as file:
        file.write("train: train.txt\nval: images/val\n")
    dataset = open_dataset(str(data), "train")
    with pytest.raises(SetrError, match="no such file"):
        dataset.load(0)

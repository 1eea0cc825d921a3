"""Many images: the same bits however they are batched, packed, split, killed and read."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from setr import predictor
from setr.batch import Outcome, Task, outcomes
from setr.cli import main
from setr.data import scenes
from setr.errors import FAILED, OK, USAGE, SetrError
from setr.images import encode_png
from setr.loading import load
from setr.prediction import packs, passes
from setr.prediction.inputs import find_items, read_item
from setr.prediction.manifest import Manifest
from setr.prediction.passes import Batches, NoMemoryError, predict_each
from setr.prediction.settled import run_names
from setr.processes.lock import Lock, open_locked
from setr.reading.files import walk_images
from setr.reading.storage import Storage, result_test
from setr.result import Result
from setr.writing import write_bytes
from tests.conftest import refusal, save_scene_model

SIZES = ((48, 48), (48, 48), (40, 56), (48, 48), (48, 48), (40, 56), (37, 48), (48, 48), (48, 48))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scene_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of three sizes in two folders, and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    for i, (height, width) in enumerate(SIZES):
        image = scenes.draw("photo", i, size=64)[0][:height, :width]
        path = folder / ("a" if i % 2 else "b") / f"p{i}.png"
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, encode_png(image))
    write_bytes(folder / "a" / "broken.png", b"no image")
    return folder


def predict(model: Path, source: object, out: object, *options: str) -> int:
    given = [str(a) for a in (model, source, "-o", out, "--precision", "fp32", *options)]
    return main(["predict", *given])


def outputs(out: Path) -> dict[str, bytes]:
    files = (p for p in out.rglob("*") if p.is_file() and not p.name.startswith("manifest"))
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def rows(out: Path, name: str = "manifest.jsonl") -> dict[str, dict]:
    """Outcomes by name; none is there twice."""
    lines = [json.loads(line) for line in (out / name).read_text().splitlines()]
    found = {line["name"]: line for line in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture(scope="module")
def expected(model_dir: Path, photos: Path) -> dict[str, bytes]:
    """Every output, one image after the other by a Predictor."""
    predictor, found = load(model_dir, precision="fp32"), {}
    for path in sorted(photos.rglob("p*.png")):
        name = str(path.relative_to(photos))
        result = predictor.predict(path)
        found[name] = result.encode("mask")
        found[name.replace(".png", "_scores.npz")] = result.encode("scores")
    return found


@pytest.mark.parametrize("options", [("--batch", "1"), ("--batch", "2"), ("--batch", "5")])
def test_outputs_are_those_of_one_by_one(model_dir, photos, expected, tmp_path, options):
    code = predict(model_dir, photos, tmp_path, "--save", "mask,scores", "--workers", "2", *options)
    assert code == FAILED  # the broken one
    written = outputs(tmp_path)
    assert written.keys() == expected.keys()
    for name, data in written.items():
        if name.endswith(".png"):
            assert data == expected[name]
        else:  # npz files hold the time of writing
            ours, theirs = np.load(io.BytesIO(data)), np.load(io.BytesIO(expected[name]))
            np.testing.assert_array_equal(ours["scores"], theirs["scores"])
    settled = rows(tmp_path)
    assert len(settled) == len(SIZES) + 1
    assert settled["a/broken.png"]["status"] == "failed"
    assert "not an image" in settled["a/broken.png"]["error"]
    ok = settled["b/p2.png"]
    assert (ok["files"], ok["width"], ok["height"]) == (["b/p2.png", "b/p2_scores.npz"], 56, 40)
    assert sum(ok["classes"].values()) == pytest.approx(1, abs=1e-4)


class Rounding:
    """A model whose batched confidences may differ in the last bit."""

    def __init__(self, differs: bool) -> None:
        self.differs, self.calls = differs, []

    def predict_batch(self, images):
        self.calls.append(len(images))
        error = np.float32(1e-7 if self.differs and len(images) > 1 else 0)
        size = images[0].shape[:2]
        return [
            Result(i, i[..., 0], np.full(size, 0.5, np.float32) + error, scenes.LABELS, None)
            for i in images
        ]


@pytest.mark.parametrize(
    ("differs", "calls"), [(False, [4, 1, 1, 1, 1, 4, 1]), (True, [4, 1, 1, 1, 1] + [1] * 5)]
)
def test_images_are_batched_only_where_no_bit_changes(differs, calls):
    model = Rounding(differs)
    batches = Batches(model, 4, exact=True)
    image = np.zeros((8, 8, 3), np.uint8)
    found = [r for n in (4, 4, 1) for r in batches.run([image] * n)]
    assert model.calls == calls
    assert all((r.confidence == 0.5).all() for r in found)


def test_inexact_batches_are_filled_up():
    model = Rounding(True)
    found = Batches(model, 4, exact=False).run([np.ones((8, 8, 3), np.uint8)] * 3)
    assert model.calls == [4]
    assert len(found) == 3


def test_large_images_run_alone(monkeypatch):
    for most, calls in ((64, [4]), (63, [1, 1, 1])):
        monkeypatch.setattr(passes, "BATCH_PIXELS", most)
        model = Rounding(False)
        Batches(model, 4, exact=False).run([np.ones((8, 8, 3), np.uint8)] * 3)
        assert model.calls == calls


class Slow(Rounding):
    """A model that takes longer for an image than its files take to be written."""

    def predict_batch(self, images):
        time.sleep(0.05)
        return super().predict_batch(images)


def test_a_finished_image_is_noted_while_the_next_is_run(tmp_path):
    image = encode_png(np.zeros((8, 8, 3), np.uint8))
    for i in range(12):
        write_bytes(tmp_path / f"{i:02}.png", image)
    tasks = [Task(item, item.name) for item in find_items([str(tmp_path)])]
    model = Slow(differs=False)
    found = outcomes(model, tasks, lambda task, _: task.output, batch=1)
    calls = [(name, len(model.calls)) for name in found]
    assert [name for name, _ in calls] == [task.output for task in tasks]
    assert all(called <= i + 3 for i, (_, called) in enumerate(calls))


SHORT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


class Cramped(Rounding):
    """A model in whose memory `fits` images of 8x8 pixels fit, and none larger."""

    def __init__(self, fits: int, error: BaseException) -> None:
        super().__init__(differs=False)
        self.fits, self.error = fits, error

    def predict_batch(self, images):
        found = super().predict_batch(images)
        if len(images) * images[0].shape[0] > 8 * self.fits:
            raise self.error
        return found


@pytest.mark.parametrize("error", SHORT, ids=["cuda", "cpu", "python"])
def test_a_batch_that_does_not_fit_into_memory_runs_one_by_one(error):
    model, small, large = Cramped(2, error), np.zeros((8, 8, 3), np.uint8), (40, 8, 3)
    found = predict_each(model, [small] * 3)
    assert model.calls == [3, 1, 1, 1]
    assert all(isinstance(result, Result) for result in found)
    for lost in predict_each(model, [np.zeros(large, np.uint8)] * 2):
        assert isinstance(lost, NoMemoryError)
        assert str(lost) == "8x40 pixels do not fit into memory; give the model a window"
        assert lost.__context__ is None  # it would keep the tensors that were too many
    with pytest.raises(RuntimeError, match="shape"):
        predict_each(Cramped(1, RuntimeError("shape mismatch")), [small] * 2)


@pytest.mark.parametrize("function", ["predict_mask", "predict_scores"])
@pytest.mark.parametrize("error", SHORT, ids=["cuda", "cpu", "python"])
def test_predict_without_enough_memory_names_the_images(
    model_dir, photos, tmp_path, capsys, monkeypatch, function, error
):
    real = getattr(predictor, function)

    def short(model, images, *rest, **options):
        if images.shape[-1] > 48:
            raise error
        return real(model, images, *rest, **options)

    monkeypatch.setattr(predictor, function, short)
    assert predict(model_dir, photos, tmp_path, "--save", "scores") == FAILED
    assert "56x40 pixels do not fit into memory" in capsys.readouterr().err
    failed = {name for name, row in rows(tmp_path).items() if row["status"] == "failed"}
    assert failed == {"a/broken.png", "b/p2.png", "a/p5.png"}


def test_the_same_command_again_does_nothing(model_dir, photos, tmp_path, capsys):
    predict(model_dir, photos, tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    capsys.readouterr()
    assert predict(model_dir, photos, tmp_path, "--json") == FAILED
    captured = capsys.readouterr()
    assert "10 of 10 images were done before" in captured.err
    assert json.loads(captured.out)["failed"] == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")} == times


def test_what_changed_is_done_again(model_dir, photos, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(photos, source)
    predict(model_dir, source, out)
    before = rows(out)
    write_bytes(source / "b" / "p0.png", encode_png(np.zeros((20, 30, 3), np.uint8)))
    (out / "a" / "p1.png").unlink()
    write_bytes(source / "c.png", encode_png(np.zeros((8, 8, 3), np.uint8)))
    capsys.readouterr()
    assert predict(model_dir, source, out) == FAILED
    assert "2 outcomes are outdated" in capsys.readouterr().err
    after = rows(out)
    assert after["b/p0.png"]["width"] == 30
    assert (out / "a" / "p1.png").is_file()
    assert {k for k in after if after[k] != before.get(k)} == {"b/p0.png", "c.png"}
    predict(model_dir, source, out, "--save", "overlay")
    assert all(row["files"][0].endswith("_overlay.png") for row in rows(out).values()
               if row["status"] == "ok")  # fmt: skip
    write_bytes(source / "a" / "broken.png", encode_png(np.zeros((8, 8, 3), np.uint8)))
    assert predict(model_dir, source, out, "--save", "overlay") == OK


def test_only_what_changes_outputs_makes_them_anew(model_dir, photos, tmp_path, capsys):
    predict(model_dir, photos, tmp_path, "--max-pixels", "2400")
    assert sum(row["status"] == "failed" for row in rows(tmp_path).values()) == 1
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    assert len(times) == len(SIZES)
    for options, held in (
        (("--max-pixels", "2000"), 9),  # what is done is done
        (("--max-pixels", "2000", "--allow-urls"), 9),
        (("--max-pixels", "2000", "--device", "cpu", "--allow-urls"), 9),
        (("--save", "mask", "--workers", "1"), 9),
        (("--save", "mask", "--workers", "1"), 10),
        (("--save", "palette"), 10),
        (("--save", "mask", "--tolerance", "2"), 0),
    ):
        capsys.readouterr()
        assert predict(model_dir, photos, tmp_path, *options) == FAILED
        err = capsys.readouterr().err
        assert (f"{held} of 10 images were done before" in err) == (held > 0), options
        if held:
            assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")} == times
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")} != times


def test_views_and_confidence_make_outputs_anew(model_dir, photos, tmp_path, capsys):
    photo, views = photos / "b" / "p0.png", ("--scales", "0.5", "1")
    for options, held in (
        ((), False),
        (("--min-confidence", "0.9"), False),
        (("--min-confidence", "0.9"), True),
        (("--min-confidence", "0.9", *views), False),
        (("--min-confidence", "0.9", *views), True),
        (("--min-confidence", "0.9", *views, "--flip"), False),
        (("--min-confidence", "0.9", *views, "--no-flip"), False),
        (("--min-confidence", "0.9", *views, "--no-flip"), True),
        (("--min-confidence", "0", "--opacity", "0.3"), False),
        (("--min-confidence", "0", "--opacity", "0.55"), False),
    ):
        capsys.readouterr()
        assert predict(model_dir, photo, tmp_path, *options) == OK
        assert ("1 of 1 images were done before" in capsys.readouterr().err) == held, options
        (row,) = rows(tmp_path).values()
        strict = "--min-confidence" in options and "0" not in options
        assert (sum(row["classes"].values()) < 0.999) == strict
    named = run_names(str(model_dir))  # as runs are named that know no such options
    plain = [["mask"], {"tolerance": 0.0, "min_pixels": 1}, "fp32", None, None, "no", None]
    assert row["run"] == named(plain)


def test_a_raised_limit_does_what_it_refused(model_dir, photos, tmp_path, capsys):
    predict(model_dir, photos, tmp_path, "--max-pixels", "2300")
    assert "48x48 is 2,304 pixels, above the limit" in capsys.readouterr().err
    assert len(list(tmp_path.rglob("*.png"))) == 3
    predict(model_dir, photos, tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == len(SIZES)
    assert "3 of 10 images were done before" in capsys.readouterr().err


def test_every_key_of_the_manifest_is_documented(model_dir, photos, tmp_path):
    predict(model_dir, photos, tmp_path, "--pack", "tar")
    keys = {key for row in rows(tmp_path).values() for key in row}
    assert {"error", "limits", "pack"} <= keys
    text = (Path(__file__).parents[1] / "docs" / "batch.md").read_text(encoding="utf-8")
    table = text.partition("| key | what |")[2].partition("\n\n")[0]
    assert not [key for key in keys if f"`{key}`" not in table]


def test_failures_are_tried_again_when_asked(model_dir, photos, tmp_path, capsys):
    predict(model_dir, photos, tmp_path)
    assert predict(model_dir, photos, tmp_path, "--retry") == FAILED
    err = capsys.readouterr().err
    assert "9 of 10 images were done before" in err
    assert err.count("not an image") == 2
    assert len(rows(tmp_path)) == 10


def test_kill_9_leaves_neither_a_gap_nor_a_duplicate(model_dir, photos, expected, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(40):
        shutil.copytree(photos, source / f"{i:02}")
    command = [sys.executable, "-m", "setr", "predict", model_dir, source, "-o", out]
    process = subprocess.Popen(
        [*command, "--precision", "fp32", "--workers", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    manifest, deadline = out / "manifest.jsonl", time.monotonic() + 60
    while not (manifest.exists() and manifest.stat().st_size > 20_000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = manifest.read_bytes().count(b"\n")
    assert 0 < done < 400
    with open(manifest, "r+b") as file:  # as if it had died inside a write
        file.truncate(manifest.stat().st_size - 30)
    assert predict(model_dir, source, out) == FAILED
    settled = rows(out)
    assert len(settled) == 400
    assert sum(row["status"] == "failed" for row in settled.values()) == 40
    written = outputs(out)
    assert len(written) == 360  # and nothing unfinished
    for name, data in written.items():
        assert data == expected[name.partition("/")[2]]


def test_shards_of_the_work_cover_it_once(model_dir, photos, tmp_path):
    for i in range(3):
        predict(model_dir, photos, tmp_path, "--shard", f"{i}/3")
    parts = [rows(tmp_path, f"manifest-{i}-of-3.jsonl") for i in range(3)]
    assert sum(map(len, parts)) == len(SIZES) + 1
    assert set().union(*parts) == {item.name for item in find_items([str(photos)])}
    assert len(outputs(tmp_path)) == len(SIZES)


@pytest.fixture(scope="module")
def archives(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos in a tar shard and in a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("archives")
    names = sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png"))
    with tarfile.open(folder / "photos.tar", "w") as archive:
        for name in names:
            archive.add(photos / name, name)
        member = tarfile.TarInfo("../../up.png")
        archive.addfile(member)
        archive.addfile(tarfile.TarInfo("a/p1.mask.png"))
    images = [{"bytes": (photos / n).read_bytes(), "path": None} for n in names]
    pq.write_table(
        pa.table({"image": images, "name": names}), folder / "photos.parquet", row_group_size=4
    )
    return folder


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_archives_in(model_dir, archives, expected, tmp_path, form):
    assert predict(model_dir, archives / f"photos.{form}", tmp_path) == FAILED
    masks = {f"photos/{k}": v for k, v in expected.items() if k.endswith(".png")}
    assert outputs(tmp_path) == masks
    settled = rows(tmp_path)
    assert f"photos.{form}:a/broken.png: not an image" in settled["photos/a/broken.png"]["error"]
    if form == "tar":
        assert "empty" in settled["photos/up.png"]["error"]


def test_rows_without_a_name_are_numbered(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"image": [{"bytes": b"x"}] * 4, "name": [None, "", "b.png", None]})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "x.parquet")
    names = [item.name for item in find_items([str(tmp_path / "x.parquet")])]
    assert names == ["x/00000000", "x/00000001", "x/b.png", "x/00000003"]


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_packs_out_survive_a_stop_at_any_line(model_dir, photos, expected, tmp_path, form):
    options = ("--pack", form, "--pack-samples", "4", "--save", "mask,ids")
    predict(model_dir, photos, tmp_path, *options)
    whole = (tmp_path / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    packs = outputs(tmp_path)
    assert sorted(packs) == [f"part-00000{i}.{form}" for i in range(3)]
    for kept in range(len(whole)):
        torn = whole[kept][:20] if kept % 2 else b""
        (tmp_path / "manifest.jsonl").write_bytes(b"".join(whole[:kept]) + torn)
        predict(model_dir, photos, tmp_path, *options)
        masks = read_packs(tmp_path, form)
        assert masks == {k: v for k, v in expected.items() if k.endswith(".png")}
        assert len(rows(tmp_path)) == len(SIZES) + 1


def test_packs_are_written_by_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "PACK_BYTES", 100)
    storage = Storage(str(tmp_path))
    with Manifest(storage, "manifest", lambda row: True) as manifest:
        packer = packs.Packer(storage, manifest, "tar", stem="part", samples=1000)
        for i in range(6):
            row = {"name": f"{i}.png", "status": "ok", "run": "r"}
            packer.add(Outcome(row, {f"{i}.mask.png": bytes(60)}, ""))
    written = outputs(tmp_path)
    assert sorted(written) == [f"part-00000{i}.tar" for i in range(3)]
    for data in written.values():
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert len(archive.getnames()) == 2


def test_outcomes_reach_object_storage_after_some_time(monkeypatch):
    store, storage = fsspec.filesystem("memory"), Storage("memory://slow")
    row = {"name": "a.png", "status": "ok", "run": "r"}
    with Manifest(storage, "manifest", lambda row: True) as manifest:
        manifest.append([row])
        assert not store.glob("/slow/*")
        monkeypatch.setattr("setr.prediction.manifest.PART_SECONDS", -1.0)
        manifest.append([{**row, "name": "b.png"}])
        assert store.cat("/slow/manifest-000000.jsonl").count(b"\n") == 2


def test_coco_names_images_by_their_place_in_the_folder(model_dir, tmp_path):
    for folder in "ab":
        (tmp_path / "in" / folder).mkdir(parents=True)
        image = encode_png(np.full((32, 32, 3), 9, np.uint8))
        (tmp_path / "in" / folder / "1.png").write_bytes(image)
    assert predict(model_dir, tmp_path / "in", tmp_path / "out", "--save", "coco") == OK
    for folder in "ab":
        coco = json.loads((tmp_path / "out" / folder / "1_coco.json").read_text())
        assert coco["images"][0]["file_name"] == f"{folder}/1.png"


def test_two_inputs_of_one_name_are_refused_in_packs(model_dir, tmp_path, capsys):
    """Their lines of the manifest would be each other's: all would be done again in every run."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    given = [str(tmp_path / name) for name in ("one", "two", "out")]
    command = ["predict", str(model_dir), *given[:2], "-o", given[2], "--pack", "tar"]
    assert main(command) == USAGE
    assert "two/x.png and" in (err := capsys.readouterr().err)
    assert "would both be 'x.png' in the manifest; give them other names" in err
    assert not (tmp_path / "out").exists()


def test_files_that_no_run_wrote_are_not_replaced(model_dir, tmp_path, capsys):
    """LabelMe files beside the images, or masks in a folder of labels."""
    image, drawn = tmp_path / "x.png", tmp_path / "x.json"
    image.write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    drawn.write_text("by hand")
    command = ["predict", str(model_dir), str(image), "-o", str(tmp_path), "--save", "labelme"]
    assert main(command) == USAGE
    assert f"{drawn}: is there already, and no manifest" in capsys.readouterr().err
    assert drawn.read_text() == "by hand"
    drawn.unlink()
    assert main(command) == OK
    (tmp_path / "manifest.jsonl").write_bytes(b"")  # as after a kill, before the first line
    assert main(command) == OK
    assert drawn.read_text() != "by hand"


def test_patterns_reach_into_folders(tmp_path):
    for name in ("x.png", "cam1/0.png", "cam2/deep/0.png", "cam2/.hidden.png", "out/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    items = find_items([str(tmp_path / "**" / "*.png")])
    assert [i.name for i in items] == ["cam1/0.png", "cam2/deep/0.png", "out/x.png", "x.png"]
    is_result = result_test(str(tmp_path / "out"))
    assert [i.name for i in items if is_result(i.name, i.place)] == ["out/x.png"]
    assert [i.name for i in find_items([str(tmp_path / "c*" / "0.png")])] == ["cam1/0.png"]
    assert [i.name for i in find_items([str(tmp_path / "cam1" / "*")])] == ["0.png"]
    named = find_items([str(tmp_path / "cam?" / ".." / "x.png")])
    assert {i.name for i in named} == {"x.png"}  # below OUT, whatever the pattern


def read_packs(out: Path, form: str) -> dict[str, bytes]:
    """Masks and confidences of all packs, named as single files; none is there twice."""
    found: list[tuple[str, bytes]] = []
    for path in sorted(out.glob(f"*.{form}")):
        if form == "tar":
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.name.endswith((".mask.png", ".confidence.png")):
                        data = archive.extractfile(member).read()
                        name = member.name.replace(".mask.png", ".png")
                        found.append((name.replace(".confidence.png", "_confidence.png"), data))
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(path).to_pylist()
            assert {"name", "input", "width", "height", "mask", "ids"} == set(table[0])
            found += [(row["name"], row["mask"]) for row in table]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("key", ["ETag", "md5Hash", "blob_id"])  # of S3, Google and the Hub
def test_the_stamp_of_an_object_is_of_its_bytes(monkeypatch, key):
    store = fsspec.filesystem("memory")
    store.pipe("/stamped/a.png", b"1")
    plain = store.info
    monkeypatch.setattr(type(store), "info", lambda _, path, **__: {**plain(path), key: "ab"})
    assert [item.stamp for item in find_items(["memory://stamped"])] == ["1-ab"]


def test_object_storage_in_and_out(model_dir, photos, archives, expected, tmp_path, monkeypatch):
    store = fsspec.filesystem("memory")
    store.put(f"{photos}/", "/photos", recursive=True)
    store.put(str(archives / "photos.tar"), "/tars/photos.tar")
    monkeypatch.setattr("setr.prediction.manifest.PART_ROWS", 3)
    masks = {k: v for k, v in expected.items() if k.endswith(".png")}
    assert predict(model_dir, "memory://photos", "memory://out") == FAILED
    assert {k: store.cat(f"/out/{k}") for k in masks} == masks
    lines = store.cat("/out/manifest.jsonl").splitlines()
    assert len({json.loads(line)["name"] for line in lines}) == len(lines) == 10
    assert not store.glob("/out/manifest-*")
    # a run that was killed before it gathered its parts
    store.pipe("/out/manifest.jsonl", b"\n".join(lines[:4]) + b"\n")
    store.pipe("/out/manifest-000000.jsonl", b"\n".join(lines[3:6]) + b"\n")
    assert predict(model_dir, "memory://photos", "memory://out") == FAILED
    again = store.cat("/out/manifest.jsonl").splitlines()
    assert sorted(again) == sorted(lines)
    assert predict(model_dir, "memory://photos/b/*.png", tmp_path / "glob") == OK
    assert outputs(tmp_path / "glob").keys() == {k[2:] for k in masks if k.startswith("b/")}
    assert predict(model_dir, "memory://tars", tmp_path / "tar") == FAILED
    assert outputs(tmp_path / "tar") == {f"photos/{k}": v for k, v in masks.items()}
    before = store.cat("/photos/b/p0.png")
    assert predict(model_dir, "memory://photos", "memory://photos/") == USAGE
    assert store.cat("/photos/b/p0.png") == before
    assert predict(model_dir, "memory://photos", "memory://photos/out") == FAILED
    assert predict(model_dir, "memory://photos", "memory://photos/out") == FAILED
    assert len(store.find("/photos/out")) == len(SIZES) + 1  # no masks of masks
    item = find_items([f"local://{photos}/b/p0.png"])[0]
    assert read_item(item) == (photos / "b" / "p0.png").read_bytes()


def test_manifest_as_a_table(model_dir, photos, tmp_path):
    import pyarrow.parquet as pq

    predict(model_dir, photos, tmp_path, "--manifest", "parquet")
    table = {row["name"]: row for row in pq.read_table(tmp_path / "manifest.parquet").to_pylist()}
    listed = rows(tmp_path)
    assert table.keys() == listed.keys()
    for name, row in listed.items():
        found = table[name]
        for key in ("input", "status", "error", "width", "height"):
            assert found[key] == row.get(key), key
        assert found["files"] == row.get("files", [])
        assert dict(found["classes"]) == row.get("classes", {})


def test_one_writer_at_a_time(tmp_path):
    with (
        Manifest(Storage(str(tmp_path)), "manifest", lambda row: True),
        pytest.raises(SetrError, match="another run is writing it"),
    ):
        Manifest(Storage(str(tmp_path)), "manifest", lambda row: True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such locks")
def test_a_lock_on_a_file_that_was_replaced_is_none(tmp_path, monkeypatch):
    """A second run opens the manifest just before the first one replaces it by a smaller one."""
    path, open_file = tmp_path / "manifest.jsonl", os.open
    path.touch()
    opened = []

    def replaced(*arguments: object) -> int:
        opened.append(open_file(*arguments))
        if len(opened) == 1:
            write_bytes(path, b"")
        return opened[-1]

    monkeypatch.setattr(os, "open", replaced)
    fd, locked = open_locked(path, os.O_RDWR, "flock")
    assert locked
    assert fd == opened[1]
    assert os.path.samestat(os.fstat(fd), path.stat())
    os.close(fd)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_file_systems_without_locks(number, tmp_path, monkeypatch):
    """Such as Lustre, as many clusters mount it."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    with Manifest(Storage(str(tmp_path)), "manifest", lambda row: True) as manifest:
        manifest.append([{"name": "a", "status": "ok", "run": "r"}])
    assert "a" in (tmp_path / "manifest.jsonl").read_text()
    Lock(tmp_path).take()


def test_a_file_system_on_which_a_file_is_never_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with Manifest(Storage(str(tmp_path)), "manifest", lambda row: True):
        pass


def test_a_file_that_is_no_manifest_stays(model_dir, photos, tmp_path, capsys):
    (tmp_path / "manifest.jsonl").write_text('{"my": "own"}\n')
    assert predict(model_dir, photos, tmp_path) == FAILED
    assert "manifest.jsonl: line 1 is not an outcome" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["manifest.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "4/4"), "--shard 4/4: give i/n with i from 0 to n - 1"),
        (("--batch", "0"), "--batch 0: give at least 1"),
        (("nothing.tar",), "nothing.tar: no such file"),
        (("nowhere://x",), "nowhere://x"),
        (("memory://empty/*.png",), "no images found here"),
        (("nothere/",), "nothere/: no such folder"),
        (
            ("hf:someone/data@main:all",),
            "predicted are files; give hf://datasets/someone/data@main\n",
        ),
        (("hf:/tmp",), "predicted are files; give /tmp\n"),
        (("",), "'': is empty"),
    ],
)
def test_wrong_use_is_one_line(model_dir, photos, tmp_path, capsys, arguments, message):
    given = [str(model_dir), str(photos), *arguments, "-o", str(tmp_path / "out")]
    assert main(["predict", *given]) == USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_object_storage_without_its_package_names_the_extra(model_dir, photos, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert main(["predict", str(model_dir), str(photos), "-o", "s3://bucket/out"]) == FAILED
    assert 'pip install "setr[s3]"' in capsys.readouterr().err


def test_broken_archives_are_named(model_dir, tmp_path, capsys):
    for name in ("x.tar", "x.parquet"):
        (tmp_path / name).write_bytes(b"broken" * 200)
        assert predict(model_dir, tmp_path / name, tmp_path / "out") == FAILED
        assert f"{name}: not a readable archive" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.alone
def test_ray_gives_the_same_bits(model_dir, photos, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    plain, ray, packed = (tmp_path / name for name in ("plain", "ray", "packed"))
    options = ("--engine", "ray", "--actors", "1")
    several = ("--protocol", "paper-ms", "--save", "mask,confidence")
    predict(model_dir, photos / "a", tmp_path / "several", *several)
    assert predict(model_dir, photos / "a", packed, *options, *several, "--pack", "tar") == FAILED
    assert read_packs(packed, "tar") == outputs(tmp_path / "several")
    predict(model_dir, photos / "a", tmp_path / "once", *several[2:])
    assert outputs(tmp_path / "once") != outputs(tmp_path / "several")
    predict(model_dir, photos, plain)
    assert predict(model_dir, photos, ray, *options) == FAILED
    masks = {k: v for k, v in expected.items() if k.endswith(".png")}
    assert outputs(ray) == outputs(plain) == masks
    assert rows(ray) == rows(plain)


def test_names_with_dots_stay_apart_in_a_pack(model_dir, photos, tmp_path):
    folder = tmp_path / "in"
    for name in ("frame.0001.png", "frame.0002.png", "v1.0/x.png", "v1.0/x.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "b" / "p0.png", folder / name)
    for options in ((), ("--retry",)):  # again, nothing is left to do
        assert predict(model_dir, folder, tmp_path, "--pack", "tar", *options) == OK
    with tarfile.open(tmp_path / "part-000000.tar") as archive:
        names = archive.getnames()
    keys = ["frame_0001", "frame_0002", "v1.0/x", "v1.0/x-2"]
    assert sorted(names) == sorted(f"{key}.mask.png" for key in keys)
    assert rows(tmp_path)["frame.0002.png"]["output"] == "frame_0002"
    assert not (tmp_path / "part-000001.tar").exists()


@pytest.mark.parametrize(
    ("out", "options", "why"),
    [
        ("", (), "is empty"),
        ("", ("--submit", "ade20k"), "is empty"),
        ("s3://", (), "names no folder; give one"),
    ],
)
def test_results_need_a_folder(photos, capsys, out, options, why):
    assert predict(Path("no-model"), photos, out, *options) == USAGE
    assert f"setr: -o '{out}': {why}" in capsys.readouterr().err
    with pytest.raises(SetrError, match="names no folder"):
        Storage(out)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--submit ade20k --shard 1/2", "--shard 1/2: does nothing with --submit ade20k; leave"),
        ("--submit ade20k --save ids", "--save ids: does nothing with --submit"),
        ("--submit ade20k --pack tar", "--pack tar: does nothing with --submit"),
        ("--submit ade20k --engine ray", "--engine ray: does nothing with --submit"),
        ("--submit ade20k --manifest parquet", "--manifest parquet: does nothing with --submit"),
        ("--submit ade20k --no-exact", "--no-exact: does nothing with --submit"),
        ("--submit ade20k -o s3://b/x", "-o s3://b/x: --submit writes a file; give a folder"),
        ("--submit ade20k --min-confidence 0.5", "--min-confidence 0.5: leaves pixels without a"),
        ("--min-confidence 1.5", "--min-confidence 1.5: give 0 to 1"),
        ("--min-confidence nan", "--min-confidence nan: give 0 to 1"),
        ("--scales 1 0", "scales (1.0, 0.0): give one or more positive factors"),
        ("--scales nan", "scales (nan,): give one or more positive factors"),
        ("--scales", "scales (): give one or more positive factors"),
        ("--pack-samples 5", "--pack-samples 5: does nothing without --pack; add"),
        ("--actors 5", "--actors 5: does nothing without --engine ray; add"),
        ("--bands 4.7,3,2", "--bands 4.7,3,2: give numbers from 1, such as 4,3,2"),
        ("--bands nan", "--bands nan: give numbers from 1"),
        ("--bands inf,1,2", "--bands inf,1,2: give numbers from 1"),
        ("--bands 0", "--bands 0: give numbers from 1"),
        ("--value-range nan,5", "--value-range nan,5: give low, then high, such as 0,3000"),
        ("--value-range 0,inf", "--value-range 0,inf: give low, then high"),
        ("--value-range 1,2,3", "--value-range 1,2,3: give low, then high"),
    ],
)
def test_options_without_effect_are_refused(photos, tmp_path, monkeypatch, capsys, line, message):
    monkeypatch.chdir(tmp_path)
    told = refusal(capsys, "predict", "no-model", photos, "-o", "out", *line.split())
    assert told.startswith(f"setr: {message}")
    assert os.listdir() == []


def test_the_progress_line_ends_before_what_is_said_next(
    model_dir, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("setr.prediction.tally.LINES", 3)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert predict(model_dir, photos, tmp_path) == FAILED
    lines = capsys.readouterr().err.split("\n")
    assert lines[-3].startswith("setr: ")
    assert lines[-2].startswith("setr: 1 of 10 images failed")
    assert "predict 10/10" in lines[-4]


def test_names_in_archives_stay_below_out(model_dir, photos, tmp_path):
    data = (photos / "b" / "p0.png").read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("..\\..\\up.png", "a\\b.png", "/root.png"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    items = find_items([str(tmp_path / "x.tar")])
    assert [item.name for item in items] == ["x/up.png", "x/a/b.png", "x/root.png"]


def test_a_manifest_is_replaced_while_it_is_not_open_where_there_are_no_locks(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("setr.processes.lock.fcntl", None)
    storage, row = Storage(str(tmp_path)), {"name": "a", "status": "ok", "run": "x"}
    with Manifest(storage, "manifest", lambda row: True) as manifest:
        manifest.append([row, {**row, "name": "b"}])
    held, write = set(os.listdir("/proc/self/fd")), storage.write

    def watched(name: str, data: bytes) -> None:
        assert set(os.listdir("/proc/self/fd")) == held
        write(name, data)

    monkeypatch.setattr(storage, "write", watched)
    with Manifest(storage, "manifest", lambda row: row["name"] == "b") as manifest:
        manifest.append([{**row, "name": "c"}])
        assert manifest.dropped == 1
    assert list(rows(tmp_path)) == ["b", "c"]


@pytest.mark.parametrize(
    "name", ["b\0c.png", f"{'x' * 300}/b.png", f"{'/'.join(['y' * 99] * 60)}/b.png"]
)
def test_a_name_that_no_file_can_have_fails_alone(name, model_dir, photos, tmp_path, capsys):
    data = (photos / "b" / "p0.png").read_bytes()
    with tarfile.open(tmp_path / "in.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for member in ("a.png", name, "c.png"):
            info = tarfile.TarInfo("x")
            info.size, info.pax_headers = len(data), {"path": member}
            archive.addfile(info, io.BytesIO(data))
    out = tmp_path / "out"
    for _ in range(2):
        assert main(["predict", str(model_dir), str(tmp_path / "in.tar"), "-o", str(out)]) == FAILED
        captured = capsys.readouterr()
        assert "1 of 3 images failed" in captured.err
        assert "Traceback" not in captured.err
    assert {row["name"]: row["status"] for row in rows(out).values()} == {
        "in/a.png": "ok", f"in/{name}": "failed", "in/c.png": "ok"
    }  # fmt: skip
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == [
        "a.png",
        "c.png",
        "manifest.jsonl",
    ]


def test_folders_that_link_each_other_in_countless_ways(tmp_path):
    """Seven of them have 13,699 paths, ten a million."""
    for i in range(7):
        (tmp_path / f"d{i}").mkdir()
        (tmp_path / f"d{i}" / "a.png").touch()
    for i, j in itertools.permutations(range(7), 2):
        (tmp_path / f"d{i}" / f"l{j}").symlink_to(tmp_path / f"d{j}")
    with pytest.raises(SetrError, match=r"links lead to .*/d\d in more than 200 ways"):
        walk_images(tmp_path)
    many = tmp_path / "many"
    for i in range(300):
        (many / f"{i}").mkdir(parents=True)
        (many / f"{i}" / "l").symlink_to(tmp_path / "common")
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "a.png").touch()
    assert len(walk_images(many)) == 300

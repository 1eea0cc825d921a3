"""Shards hold the same samples as the folder, and say so when they no longer do."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from setr.cli import main
from setr.commands import shard
from setr.data.loader import training_batches
from setr.data.shard_writer import Keys, Packed, write_split
from setr.data.shards import BUFFER, Shards
from setr.datasets import open_dataset
from setr.doctor import check
from setr.errors import DATA_CHECK_FAILED, FAILED, USAGE, SetrError
from setr.images import encode_png
from setr.labels import Labels
from setr.prediction.inputs import find_items
from setr.transforms import Augmentation


@pytest.fixture(params=["tar", "parquet"])
def packed(folder_data, tmp_path, request):
    out, form = tmp_path / "packed", request.param
    assert main(["shard", str(folder_data), str(out), "--samples", "4", "--format", form]) == 0
    return out


def by_name(dataset):
    """Numbers of the samples: those of a folder are sorted, those of shards shuffled."""
    return {dataset.image_name(i): i for i in range(len(dataset))}


def shard_file(packed, name):
    return next(packed.glob(f"{name}.*"))


def test_samples_classes_and_names_are_the_same(folder_data, packed):
    for split in ("train", "val"):
        ours, theirs = open_dataset(str(packed), split), open_dataset(str(folder_data), split)
        assert len(ours) == len(theirs)
        assert ours.labels == theirs.labels
        places = by_name(theirs)
        assert by_name(ours).keys() == places.keys()
        for name, i in by_name(ours).items():
            for a, b in zip(ours.load(i), theirs.load(places[name]), strict=True):
                np.testing.assert_array_equal(a, b)
        assert check(ours).pixels.tolist() == check(theirs).pixels.tolist()


def test_other_tools_see_a_known_layout(packed, folder_data):
    path = shard_file(packed, "train-000000")
    images = Shards(str(packed), "train").names
    stems = [os.path.basename(name).removesuffix(".png") for name in images]
    assert sorted(stems) == [f"scene_{i:03d}" for i in range(6)]
    names = [f"{stem}{ending}" for stem in stems for ending in (".png", ".mask.png")][:4]
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            assert archive.getnames()[:4] == names
            assert len(archive.getnames()) == 8
        return
    rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    assert [row[c]["path"] for row in rows for c in ("image", "mask")][:4] == names
    dataset = open_dataset(str(folder_data), "train")
    places = by_name(dataset)
    for name, row in zip(images, rows, strict=False):
        image, mask = dataset.sources(places[name])
        assert row["image"]["bytes"] == image.read_bytes()
        assert row["mask"]["bytes"] == mask.read_bytes()


def test_keys_are_the_images_names_unique_and_safe():
    keys, names = (
        Keys(),
        ("a.jpg", "A.png", "a.b.jpg", "a_b.png", "a-2.png", "a.tif", "Straße 1.png"),
    )
    assert [keys(name) for name in names] == [
        *("a", "A-2", "a_b", "a_b-2", "a-2-2", "a-3", "Straße 1")
    ]
    assert keys("0000007") == "0000007"
    assert keys("bad\udcff:x.png") == "bad__x"
    long = [keys(f"{'ü' * 60}{i}.png") for i in range(3)]
    assert len({*long}) == 3
    assert all(len(f"{key}.mask.png".encode()) < 100 for key in long)


def test_images_of_one_name_keep_their_paths(tmp_path):
    """Reports of shards name images as those of the folder do."""
    paths = [f"{split}/{city}/1.png" for split in ("train", "val") for city in ("bern", "rome")]
    for kind in ("images", "labels"):
        for i, path in enumerate(paths):
            place = tmp_path / "data" / kind / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encode_png(np.full((4, 4, 3)[: 2 + (kind == "images")], i, np.uint8)))
    (tmp_path / "data" / "data.yaml").write_text("classes: [a, b, c, d]\n")
    assert main(["shard", str(tmp_path / "data"), str(tmp_path / "packed")]) == 0
    packed = open_dataset(str(tmp_path / "packed"), "train")
    names = {packed.image_name(i): packed[i].mask[0, 0] for i in range(2)}
    assert names == {"images/train/bern/1.png": 0, "images/train/rome/1.png": 1}
    with tarfile.open(tmp_path / "packed" / "train-000000.tar") as archive:
        assert {name.partition(".")[0] for name in archive.getnames()} == {"1", "1-2"}


def test_every_sample_of_an_index_has_a_name_of_its_own(tmp_path):
    names = ["a.png", "b.png", "a.png", "new\nline.png", "latin\udce9.png", "a-2.png"]
    data = [encode_png(np.full((4, 4), i, np.uint8)) for i in range(len(names))]
    packed = [Packed(name, d, ".png", d) for name, d in zip(names, data, strict=True)]
    entry = write_split(tmp_path, "train", packed, per_shard=2)
    labels = Labels(("a", "b")).to_dict()
    description = {
        **{"format": "setr-shards-1", "name": "data", "labels": labels},
        "splits": {"train": entry},
    }
    (tmp_path / "shards.json").write_text(json.dumps(description))
    shards = Shards(str(tmp_path), "train")
    assert list(shards.names) == [
        *("a.png", "b.png", "a-2.png", "new_line.png", "latin_.png", "a-2-2.png")
    ]
    assert [shards.read(i)[0] for i in range(len(names))] == data


def test_the_names_of_many_samples_take_little_memory(tmp_path):
    """Every process of a run holds them, and a million paths would be a gigabyte."""
    count = 2000
    packed = (Packed(f"images/train/{i:09}.jpg", b"i", ".jpg", b"m") for i in range(count))
    entry = write_split(tmp_path, "train", packed, per_shard=count)
    description = {"format": "setr-shards-1", "name": "many", "labels": {"classes": ["a", "b"]},
                   "splits": {"train": entry}}  # fmt: skip
    (tmp_path / "shards.json").write_text(json.dumps(description))
    open_dataset(str(tmp_path), "train")  # what is loaded once
    tracemalloc.start()
    pairs = open_dataset(str(tmp_path), "train").pairs
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / count < 150
    last = Path("many", "train", "images", "train", "000001999.jpg")
    assert pairs[-1] == pairs[count - 1] == (last, last.with_name(f"{last.name}:mask"))
    assert [pair.image.stem[-4:] for pair in pairs[1:4]] == ["0001", "0002", "0003"]
    with pytest.raises(IndexError):
        pairs[count]


def test_outputs_of_a_packed_archive_are_named_after_the_images(packed):
    items = find_items([str(shard_file(packed, "val-000000"))])
    stems = {os.path.splitext(os.path.basename(item.name))[0] for item in items}
    assert stems == {f"scene_{i:03d}" for i in range(3)}


def test_row_groups_join_without_a_seam(folder_data, tmp_path, monkeypatch):
    monkeypatch.setattr("setr.data.shard_writer.GROUP", 2)
    out = str(tmp_path / "out")
    assert main(["shard", str(folder_data), out, "--samples", "5", "--format", "parquet"]) == 0
    ours, theirs = open_dataset(out, "train"), open_dataset(str(folder_data), "train")
    places = by_name(theirs)
    for name, i in by_name(ours).items():
        np.testing.assert_array_equal(ours.load(i).mask, theirs.load(places[name]).mask)
        np.testing.assert_array_equal(ours.load(i).image, theirs.load(places[name]).image)


def test_neighbours_in_a_folder_are_none_in_the_shards(tmp_path):
    """An epoch shuffles blocks of neighbours only, so a sorted folder must not stay sorted."""
    for name in ("first", "again"):
        out = str(tmp_path / name)
        assert main(["shard", "scenes:60", out, "--splits", "train", "--samples", "20"]) == 0
    first, again = (Shards(str(tmp_path / name), "train") for name in ("first", "again"))
    numbers = [int(name[-9:-4]) for name in first.names]
    assert sorted(numbers) == list(range(60))
    for start in range(0, 60, 20):  # every shard holds samples of every third of the folder
        assert {number // 20 for number in numbers[start : start + 20]} == {0, 1, 2}
    assert list(again.names) == list(first.names)


def test_every_split_keeps_its_own_map(tmp_path):
    """Cityscapes with label ids for training (road is 7) and training ids for validation."""
    for split, ids, road in (("train", "labelIds", 7), ("val", "labelTrainIds", 0)):
        for kind, name, array in (
            ("leftImg8bit", "leftImg8bit", np.zeros((8, 8, 3), np.uint8)),
            ("gtFine", f"gtFine_{ids}", np.full((8, 8), road, np.uint8)),
        ):
            place = tmp_path / "data" / kind / split / "a" / f"a_000000_000001_{name}.png"
            place.parent.mkdir(parents=True)
            place.write_bytes(encode_png(array))
    out = str(tmp_path / "out")
    assert main(["shard", str(tmp_path / "data"), out]) == 0
    for split in ("train", "val"):
        assert (open_dataset(out, split).load(0).mask == 0).all()


def test_shards_with_one_map_for_all_splits_are_still_read(packed):
    place = packed / "shards.json"
    values = json.loads(place.read_text())
    for entry in values["splits"].values():
        values["labels"] = entry.pop("labels")
    expected = open_dataset(str(packed), "train").labels
    place.write_text(json.dumps(values))
    assert open_dataset(str(packed), "train").labels == expected


def test_no_splits_and_absent_splits(packed, folder_data, tmp_path, capsys):
    assert main(["shard", str(folder_data), str(tmp_path / "none"), "--splits"]) == USAGE
    assert "--splits: name at least one split" in capsys.readouterr().err
    assert main(["doctor", str(packed)]) == 0  # there is no test split
    assert "ready to train" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_resume_at_any_step(packed, workers):
    dataset = open_dataset(str(packed), "train")

    def batches(start: int, workers: int):
        options = {"batch_size": 2, "seed": 1, "start": start, "stop": 6, "workers": workers}
        return [i.numpy().copy() for i, _ in training_batches(dataset, augment, **options)]

    augment = Augmentation(crop_size=(16, 16))
    whole = batches(0, 0)
    for late, expected in zip(batches(4, workers), whole[4:], strict=True):
        np.testing.assert_array_equal(late, expected)


def test_an_epoch_reads_few_shards_at_a_time(packed):
    shards = Shards(str(packed), "train")
    shards.shards = [{"samples": 1000}] * 20
    order = shards.permutation(np.random.default_rng(0))
    assert sorted(order) == list(range(20_000))
    for start in range(0, 20_000, BUFFER):
        assert len(set(order[start : start + BUFFER] // 1000)) <= BUFFER // 1000 + 2
    assert len(set(np.diff(order[:BUFFER]))) > 1000  # shuffled within


def test_through_fsspec(packed):
    import fsspec

    store = fsspec.filesystem("memory")
    for path in packed.iterdir():
        store.pipe(f"/bucket/{path.name}", path.read_bytes())
    remote, local = open_dataset("memory://bucket", "val"), open_dataset(str(packed), "val")
    np.testing.assert_array_equal(remote.load(1).image, local.load(1).image)
    again = pickle.loads(pickle.dumps(remote))
    np.testing.assert_array_equal(again.load(2).mask, local.load(2).mask)


def test_missing_cut_and_corrupt_shards_are_named(packed):
    path = shard_file(packed, "train-000001")
    data = path.read_bytes()
    flipped = bytearray(data)
    shards = Shards(str(packed), "train")
    flipped[int(shards.start[4][0]) + 88] ^= 1
    path.write_bytes(flipped)
    message = rf"train-000001\.\w+: {re.escape(shards.names[4])}: checksum differs"
    with pytest.raises(SetrError, match=message):
        open_dataset(str(packed), "train").load(4)
    path.write_bytes(data[:-1])
    with pytest.raises(SetrError, match=r"train-000001\.\w+: .* of .* bytes") as caught:
        open_dataset(str(packed), "train")
    assert caught.value.code == DATA_CHECK_FAILED
    path.unlink()
    with pytest.raises(SetrError, match=r"train-000001\.\w+: missing"):
        open_dataset(str(packed), "train")


def test_wrong_addresses_are_one_line(packed):
    with pytest.raises(SetrError, match="no split 'test'; it has train, val"):
        open_dataset(str(packed), "test")
    with pytest.raises(SetrError, match="nowhere://x"):
        open_dataset("nowhere://x", "train")
    with pytest.raises(SetrError, match="no such file"):
        open_dataset("memory://empty", "train")
    (packed / "shards.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(SetrError, match="not an index of shards"):
        open_dataset(str(packed), "train")


def test_a_folder_that_cannot_be_written_is_told_before_the_check(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("setr.doctor.check", lambda *_, **__: pytest.fail("checked"))
    (tmp_path / "file").write_text("in the way")
    assert main(["shard", "scenes:20", str(tmp_path / "file" / "out")]) == USAGE
    assert f"cannot write in {tmp_path / 'file'}: Not a directory" in capsys.readouterr().err


def test_two_commands_of_one_folder(tmp_path, capsys, monkeypatch):
    """The first to end is kept whole."""
    original, out = shard._samples, str(tmp_path / "out")
    command = ["shard", "scenes:20", out, "--splits", "train"]

    def samples(dataset):
        for number, sample in enumerate(original(dataset)):
            if number == 3:
                monkeypatch.setattr(shard, "_samples", original)
                assert main([*command, "--samples", "5"]) == 0
            yield sample

    monkeypatch.setattr(shard, "_samples", samples)
    assert main([*command, "--samples", "2"]) == USAGE
    assert "holds shards already" in capsys.readouterr().err
    dataset = open_dataset(out, "train")
    assert not check(dataset, full=True).problems
    names = {f"train-00000{number}.tar" for number in range(-(-len(dataset) // 5))}
    assert {path.name for path in Path(out).iterdir()} == names | {"train.npz", "shards.json"}


def test_what_ends_midway_leaves_nothing(tmp_path, monkeypatch):
    original, out = shard._samples, tmp_path / "out"

    def samples(dataset):
        yield from itertools.islice(original(dataset), 3)
        raise SetrError("scene: broken")

    (out / ".packing-killed").mkdir(parents=True)
    (out / ".packing-killed" / ".lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(shard, "_samples", samples)
        assert main(["shard", "scenes:20", str(out), "--samples", "2"]) == FAILED
    assert list(out.iterdir()) == []
    assert main(["shard", "scenes:20", str(out)]) == 0


@pytest.mark.parametrize("name", ["val-000000.tar", "train.npz"])
def test_files_of_others_are_not_replaced(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "val-notes.tar").touch()
    assert main(["shard", "scenes:20", str(tmp_path)]) == USAGE
    assert f"{name}: would be replaced; move it away" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == b"mine"
    (tmp_path / name).unlink()
    assert main(["shard", "scenes:20", str(tmp_path)]) == 0

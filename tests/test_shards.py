"""Shards hold the same samples as the folder, and say so when they no longer do."""

from __future__ import annotations

import json
import pickle
import tarfile

import numpy as np
import pytest

from setr.cli import main
from setr.datasets import open_dataset
from setr.doctor import check
from setr.errors import DATA_CHECK_FAILED, SetrError
from setr.loader import training_batches
from setr.shards import BUFFER, Shards
from setr.transforms import Augmentation


@pytest.fixture(params=["tar", "parquet"])
def packed(folder_data, tmp_path, request):
    out, form = tmp_path / "packed", request.param
    assert main(["shard", str(folder_data), str(out), "--samples", "4", "--format", form]) == 0
    return out


def shard_file(packed, name):
    return next(packed.glob(f"{name}.*"))


def test_samples_classes_and_names_are_the_same(folder_data, packed):
    for split in ("train", "val"):
        ours, theirs = open_dataset(str(packed), split), open_dataset(str(folder_data), split)
        assert len(ours) == len(theirs)
        assert ours.labels == theirs.labels
        for i in range(len(ours)):
            for a, b in zip(ours.load(i), theirs.load(i), strict=True):
                np.testing.assert_array_equal(a, b)
            assert ours.pairs[i].image.name == theirs.pairs[i].image.name
        assert check(ours).pixels.tolist() == check(theirs).pixels.tolist()


def test_other_tools_see_a_known_layout(packed, folder_data):
    path = shard_file(packed, "train-000000")
    names = ["00000000.png", "00000000.mask.png", "00000001.png", "00000001.mask.png"]
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            assert archive.getnames()[:4] == names
            assert len(archive.getnames()) == 8
        return
    rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    assert [row[c]["path"] for row in rows for c in ("image", "mask")][:4] == names
    dataset = open_dataset(str(folder_data), "train")
    for i, row in enumerate(rows):
        image, mask = dataset.sources(i)
        assert row["image"]["bytes"] == image.read_bytes()
        assert row["mask"]["bytes"] == mask.read_bytes()


def test_row_groups_join_without_a_seam(folder_data, tmp_path, monkeypatch):
    monkeypatch.setattr("setr.shards.GROUP", 2)
    out = str(tmp_path / "out")
    assert main(["shard", str(folder_data), out, "--samples", "5", "--format", "parquet"]) == 0
    ours, theirs = open_dataset(out, "train"), open_dataset(str(folder_data), "train")
    for i in range(len(theirs)):
        np.testing.assert_array_equal(ours.load(i).mask, theirs.load(i).mask)
        np.testing.assert_array_equal(ours.load(i).image, theirs.load(i).image)


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
    flipped[int(Shards(str(packed), "train").start[4][0]) + 88] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(SetrError, match=r"train-000001\.\w+: scene_004\.png: checksum differs"):
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
    with pytest.raises(SetrError, match="not a description of shards"):
        open_dataset(str(packed), "train")

"""Training with less: stored features, frozen blocks; what is saved is really not computed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import setr.training.features as features
import setr.training.run as running
from setr.cli import main
from setr.config import Config
from setr.datasets import open_dataset
from setr.engine import train
from setr.errors import SetrError
from setr.hub import from_pretrained
from setr.inference import normalize
from setr.labels import IGNORE
from setr.model import Features
from setr.recipes import recipe
from setr.training.features import fit, open_features
from setr.training.runfolder import RunFolder
from tests.conftest import tiny_config, tiny_model
from tests.runs import assert_same_weights, killed_and_resumed


def frozen(out: Path, cache: str = "flip", **settings: object) -> Config:
    config = tiny_config(out, **settings)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, freeze=-1),
        train=dataclasses.replace(config.train, cache_features=cache),
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SETR_CACHE", str(tmp_path / "cache"))


def test_heads_from_features_equal_the_whole_model():
    for decoder in ("naive", "pup", "mla"):
        model = tiny_model(decoder).eval()
        images = torch.randn(2, 3, 40, 50)
        given = Features(model.encoder(images), (40, 50))
        assert torch.equal(model(given), model(images))
        ours, theirs = model(given, with_aux=True), model(images, with_aux=True)
        assert ours.size == theirs.size
        assert all(torch.equal(a, b) for a, b in zip(ours.aux, theirs.aux, strict=True))


def test_stored_views_equal_the_encoder(tmp_path):
    config = frozen(tmp_path / "run")
    run = running.Run(config, RunFolder(Path(config.out)))
    dataset = open_dataset(config.data.root, "train")
    stored = open_features(config, dataset, run.model, None)
    assert len(stored.maps) == 2 * len(dataset)
    for index, mirrored in ((0, 0), (3, 1)):
        image, mask = dataset.load(index)
        if mirrored:
            image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
        image, mask = fit(image, mask, config.data.crop_size)
        x = normalize(torch.from_numpy(image)[None], config.model.mean, config.model.std)
        with torch.no_grad():
            direct = torch.cat(run.model.encoder(x), dim=1)[0].numpy()
        view = 2 * index + mirrored
        assert np.array_equal(stored.masks[view], mask)
        np.testing.assert_allclose(stored.maps[view], direct, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["maps", "masks"])
def test_damaged_features_are_computed_again(tmp_path, name):
    config = frozen(tmp_path / "run")
    run = running.Run(config, RunFolder(Path(config.out)))
    dataset = open_dataset(config.data.root, "train")
    open_features(config, dataset, run.model, None)
    (folder,) = (tmp_path / "cache" / "features").glob("[!.]*")
    os.truncate(folder / f"{name}.npy", 200)
    again = open_features(config, dataset, run.model, None)
    assert len(again.maps) == len(again.masks) == 2 * len(dataset)


@pytest.mark.parametrize(("flip", "expected"), [(0.0, {0}), (1.0, {1}), (0.5, {0, 1})])
def test_stored_views_are_mirrored_as_often_as_asked_for(tmp_path, flip, expected):
    """And in some epochs only."""
    config = frozen(tmp_path / "run", steps=24)  # 4 epochs
    config = config.replace({"data.flip": flip})
    run = running.Run(config, RunFolder(Path(config.out)))
    seen: dict[int, set[int]] = {}
    for _, masks in run.source.batches(0):
        for mask in masks.numpy():
            (view,) = np.flatnonzero((run.source.stored.masks == mask).all(axis=(1, 2)))
            seen.setdefault(int(view) // 2, set()).add(int(view) % 2)
    assert len(seen) == len(run.dataset)
    assert set().union(*seen.values()) == expected
    assert any(views == expected for views in seen.values())


def test_fit_keeps_the_shape_and_ignores_the_rest():
    image, mask = np.full((40, 80, 3), 9, np.uint8), np.ones((40, 80), np.uint8)
    image, mask = fit(image, mask, (64, 64))
    assert mask.shape == (64, 64)
    assert (mask[:32] == 1).all()
    assert (mask[32:] == IGNORE).all()
    assert (image[:32] == 9).all()


def test_training_from_features_resumes_bit_for_bit_and_never_encodes(tmp_path, monkeypatch):
    def no_images(self, x):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(running.Run, "_validate", lambda self: None)
    monkeypatch.setattr(running.Run, "finish", lambda self: {})
    train(frozen(tmp_path / "whole", steps=4))  # computes the features
    monkeypatch.setattr("setr.encoder.Encoder.forward", no_images)
    parts = frozen(tmp_path / "parts", steps=4, save_every=2)
    killed_and_resumed(parts, monkeypatch, at=3)
    assert_same_weights(tmp_path / "whole", parts)


def test_a_step_on_features_of_shards_names_its_images(tmp_path, folder_data):
    shards = tmp_path / "shards"
    arguments = ["shard", str(folder_data), str(shards), "--splits", "train", "val"]
    assert main([*arguments, "--samples", "2"]) == 0
    config = frozen(tmp_path / "run")
    data = dataclasses.replace(config.data, root=str(shards), flip=0.0)
    config = dataclasses.replace(config, data=data)
    run = running.Run(config, RunFolder(Path(config.out)))
    for _, masks in run.source.batches(0):
        names = [Path(name).name for name in run.source.names(run.step)]
        views = [
            np.flatnonzero((run.source.stored.masks == m).all(axis=(1, 2))) for m in masks.numpy()
        ]
        assert names == [run.dataset.pairs[int(view[0]) // 2].image.name for view in views]
        run.step += 1
    assert run.step == 4


def test_a_cached_run_is_a_model_directory_like_any_other(tmp_path):
    metrics = train(frozen(tmp_path / "run", steps=2))
    assert metrics["single_scale"]["miou"] is not None
    model, _ = from_pretrained(tmp_path / "run")
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 9, 64, 64)


def test_other_weights_data_or_sizes_are_computed_anew(tmp_path):
    keys = set()
    changes = (
        {},
        {"train": {"seed": 1}},
        {"data": {"root": "scenes:13"}},
        {"data": {"crop_size": (48, 64)}},
        {"train": {"cache_features": "once"}},
        {"model": {"patch_stride": 8}},
        {"model": {"pos_interp": "bilinear"}},
        {"model": {"prefix_tokens": "drop"}},
        {"model": {"drop_path": 0.1}},  # one of the encoder_args
    )
    for change in changes:
        config = frozen(tmp_path / "run")
        for part, values in change.items():
            changed = dataclasses.replace(getattr(config, part), **values)
            config = dataclasses.replace(config, **{part: changed})
        torch.manual_seed(config.train.seed)
        model = running.build_model(config, 9)
        keys.add(features._key(config, open_dataset(config.data.root, "train"), model, None))
    assert len(keys) == len(changes)


def key_of(config: Config) -> str:
    torch.manual_seed(0)
    dataset = open_dataset(config.data.root, "train")
    return features._key(config, dataset, running.build_model(config, 9), None)


def test_other_library_versions_are_computed_anew(tmp_path, monkeypatch):
    config = frozen(tmp_path / "run")
    keys = {key_of(config)}
    for library in ("torch", "timm", "cv2"):
        with monkeypatch.context() as patch:
            patch.setattr(f"{library}.__version__", "0.0")
            keys.add(key_of(config))
    assert len(keys) == 4


def test_other_heads_share_the_features(tmp_path):
    """Their width changes nothing in the encoder."""
    config = frozen(tmp_path / "run")
    wider = config.replace({"model.channels": 24})
    assert key_of(wider) == key_of(config)


def test_lists_of_absolute_paths_tell_data_sets_apart(tmp_path, folder_data):
    def listed(name: str, numbers: range) -> Config:
        place = tmp_path / name
        place.mkdir()
        lines = [
            f"{folder_data}/images/train/scene_{i:03d}.png "
            f"{folder_data}/labels/train/scene_{i:03d}.png\n"
            for i in numbers
        ]
        (place / "train.txt").write_text("".join(lines))
        description = (folder_data / "data.yaml").read_text()
        (place / "data.yaml").write_text(description + "train: train.txt\n")
        config = frozen(tmp_path / "run")
        return config.replace({"data.root": str(place)})

    assert key_of(listed("first", range(3))) != key_of(listed("last", range(3, 6)))
    with pytest.raises(SetrError, match=r"scene_006\.png: it or its mask does not exist"):
        key_of(listed("gone", range(5, 7)))


def in_the_middle(monkeypatch, action) -> None:
    """Do something once while features are being computed, after some of them are written."""
    original = features._views

    def views(*arguments):
        for number, view in enumerate(original(*arguments)):
            if number == 3:
                monkeypatch.setattr(features, "_views", original)
                action()
            yield view

    monkeypatch.setattr(features, "_views", views)


def test_two_runs_at_once_leave_each_other_alone(tmp_path, monkeypatch):
    config = frozen(tmp_path / "run")
    torch.manual_seed(0)
    model, dataset = running.build_model(config, 9), open_dataset(config.data.root, "train")
    place = tmp_path / "cache" / "features"
    first: list[tuple[int, np.ndarray]] = []

    def other_run():
        stored = open_features(config, dataset, model, None)
        (folder,) = (f for f in place.iterdir() if not f.name.startswith("."))
        first.append((folder.stat().st_ino, np.array(stored.maps)))

    in_the_middle(monkeypatch, other_run)
    ours = open_features(config, dataset, model, None)
    (folder,) = place.iterdir()
    inode, theirs = first[0]
    assert folder.stat().st_ino == inode  # the first to finish is kept
    np.testing.assert_array_equal(ours.maps, theirs)
    assert np.asarray(ours.maps).any(axis=(1, 2, 3)).all()


def test_leftovers_of_killed_runs_go(tmp_path):
    pytest.importorskip("fcntl")
    config = frozen(tmp_path / "run")
    torch.manual_seed(0)
    model, dataset = running.build_model(config, 9), open_dataset(config.data.root, "train")
    place = tmp_path / "cache" / "features"
    left = place / ".computing-killed"
    left.mkdir(parents=True)
    (left / "maps.npy").write_bytes(b"half")
    os.utime(left, (0, 0))
    open_features(config, dataset, model, None)
    assert [f.name.startswith(".") for f in place.iterdir()] == [False]


def test_half_computed_features_are_none(tmp_path, monkeypatch):
    config = frozen(tmp_path / "run")
    run = running.Run(config, RunFolder(Path(config.out)))
    (folder,) = (tmp_path / "cache" / "features").iterdir()
    assert json.loads((folder / "facts.json").read_text())["views"] == len(run.source.stored.maps)
    (folder / "facts.json").unlink()
    seen = []
    original = features._views
    monkeypatch.setattr(features, "_views", lambda *a: seen.append(a) or original(*a))
    open_features(config, run.dataset, run.model, None)
    assert len(seen) == 1


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(SetrError, match=r"0\.0 GB are free; set SETR_CACHE"):
        train(frozen(tmp_path / "run"))
    assert list((tmp_path / "cache" / "features").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve")
def test_the_place_on_disk_is_taken_at_once(tmp_path):
    """Else another run may take it after it was found free, and a write is a bus error."""
    for array in features._create_arrays(tmp_path, (4, 64, 32, 32), (4, 512, 512)):
        told = os.stat(array.filename)
        assert 512 * told.st_blocks >= told.st_size > array.nbytes


def test_frozen_blocks_have_no_backward_pass():
    """A block whose output needs no gradient has no node in the graph, so no backward work."""
    model = tiny_model("mla", taps=(1, 2), aux_taps=())
    model.encoder.freeze(1)
    needs = []
    for block in model.encoder.stages():
        block.register_forward_hook(lambda m, i, out: needs.append(out.requires_grad))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(len(needs)) or t,
                                                  lambda t: t):  # fmt: skip
        output = model.train()(torch.randn(2, 3, 32, 32), with_aux=True)
    assert needs == [False, True]
    assert 0 not in kept  # nothing saved before the first free block
    output.logits.sum().backward()
    reached = {n for n, p in model.encoder.named_parameters() if p.grad is not None}
    assert reached
    assert all("blocks.1." in name for name in reached)


@pytest.mark.parametrize("kind", ["frozen", "last4", "lora"])
def test_recipes_train_a_part(kind):
    config = recipe(f"camvid_setr_mla_small_{kind}_cpu")
    with torch.device("meta"):
        model = running.build_model(config, 11)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "encoder" in n}
    expected = {"frozen": 0, "last4": 4, "lora": 12}[kind]
    assert len({n.split("blocks.")[1].split(".")[0] for n in trained}) == expected

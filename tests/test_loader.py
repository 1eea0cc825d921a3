"""Batches depend on (seed, step) alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from setr.data import loader
from setr.data import workers as worker_processes
from setr.data.loader import training_batches, whole_images
from setr.data.order import BatchOrder, Share, training_order
from setr.data.sampling import evenly_spaced
from setr.datasets import open_dataset
from setr.errors import SetrError
from setr.training.sources import open_source
from setr.transforms import Augmentation
from tests.conftest import tiny_config


def test_every_sample_once_an_epoch_and_a_new_order_each():
    order = list(BatchOrder(10, 4, seed=3, start=0, stop=5))
    flat = [position for batch in order for position in batch]
    assert [e for e, _ in flat] == [0] * 10 + [1] * 10
    first, second = [i for _, i in flat[:10]], [i for _, i in flat[10:]]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_starting_late_gives_the_same_batches():
    whole = list(BatchOrder(7, 3, seed=0, start=0, stop=9))
    assert list(BatchOrder(7, 3, seed=0, start=4, stop=9)) == whole[4:]


def batches(workers: int, start: int = 0):
    dataset = open_dataset("scenes:6", "train")
    augment = Augmentation(crop_size=(48, 40))
    return [
        (images.clone(), masks.clone())
        for images, masks in training_batches(
            dataset, augment, batch_size=2, seed=5, start=start, stop=4, workers=workers
        )
    ]


def test_workers_and_resumption_change_nothing():
    torch.manual_seed(0)
    alone, helped, late = batches(0), batches(2), batches(0, start=2)
    for (a, b), (c, d) in zip(alone, helped, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert torch.equal(alone[2][0], late[0][0])
    assert alone[0][0].shape == (2, 48, 40, 3)
    assert alone[0][0].dtype == torch.uint8


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_workers_outlive_signals_until_they_are_told_to_end(monkeypatch):
    """A terminal and `timeout` send them to the whole group; only SIGTERM ends one, later."""
    monkeypatch.setattr(worker_processes, "LINGER", 0.3)
    before = set(multiprocessing.active_children())
    dataset = open_dataset("scenes:6", "train")
    order = {"batch_size": 2, "seed": 5, "start": 0, "stop": 40}
    found = training_batches(dataset, Augmentation(crop_size=(48, 40)), workers=1, **order)
    next(found)
    stops = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & stops
    (worker,) = set(multiprocessing.active_children()) - before
    for number in [signal.SIGINT] * 8 + [signal.SIGHUP] * 2:
        os.kill(worker.pid, number)
        next(found)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    next(found)
    worker.join(20)
    assert worker.exitcode == 0


def test_making_a_loader_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    batches(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_line_from_a_worker_too(folder_data, workers):
    path = folder_data / "images" / "val" / "scene_001.png"
    path.write_bytes(path.read_bytes()[:50])
    dataset = open_dataset(str(folder_data), "val")
    with pytest.raises(SetrError, match=r"scene_001\.png: broken image file") as caught:
        list(
            training_batches(
                dataset,
                Augmentation((8, 8)),
                batch_size=3,
                seed=0,
                start=0,
                stop=1,
                workers=workers,
            )
        )
    assert "\n" not in str(caught.value)


def test_no_process_starts_that_has_no_image(folder_data, monkeypatch, recwarn):
    started, original = [], loader.Loader
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # PyTorch would warn of more

    def recorded(*arguments, workers, **options):
        started.append(workers)
        return original(*arguments, workers=workers, **options)

    monkeypatch.setattr(loader, "Loader", recorded)
    assert len(list(whole_images(open_dataset(str(folder_data), "val"), 9, range(2)))) == 2
    assert started == [2]
    assert not [w for w in recwarn if "DataLoader" in str(w.message)]


def test_whole_images_come_in_order(folder_data):
    dataset = open_dataset(str(folder_data), "val")
    for i, batch in enumerate(whole_images(dataset, 0, range(3))):
        sample = dataset.load(i)
        assert not isinstance(batch, SetrError)
        images, masks = batch
        np.testing.assert_array_equal(images[0], sample.image)
        np.testing.assert_array_equal(masks[0], sample.mask)
    assert i == 2


@pytest.mark.parametrize("there_is_a_gpu", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_a_gpu_that_trains(monkeypatch, device, there_is_a_gpu):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_a_gpu)
    monkeypatch.setattr(
        loader, "Loader", lambda *_, pin_memory, **__: asked.append(pin_memory) or []
    )
    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(device))]))
    source = open_source(
        tiny_config(Path("run")),
        open_dataset("scenes:6", "train"),
        model,
        None,
        np.ones(9),
        Share(0, 1, 1),
    )
    list(source.batches(0))
    assert asked == [device == "cuda"]


def test_the_order_of_a_source_is_that_of_its_batches():
    config, dataset = tiny_config(Path("run")), open_dataset("scenes:6", "train")
    model = SimpleNamespace(parameters=lambda: iter([torch.zeros(1)]))
    source = open_source(config, dataset, model, None, np.ones(9), Share(0, 1, 1))
    whole = list(source.order(0, 4))
    assert whole == list(training_order(dataset, 2, seed=0, start=0, stop=4))
    halves = [list(source.order(0, 4, Share(rank, 2, 1))) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_augmentation_and_order_change_with_epoch_and_seed():
    dataset = open_dataset("scenes:1", "train")

    def samples(seed: int) -> list[torch.Tensor]:
        """One sample in three epochs."""
        arguments = {"batch_size": 1, "start": 0, "stop": 3, "workers": 0}
        return [
            images
            for images, _ in training_batches(
                dataset, Augmentation((40, 40)), seed=seed, **arguments
            )
        ]

    every = [*samples(5), *samples(6)]
    assert len({image.numpy().tobytes() for image in every}) == 6
    orders = [next(iter(BatchOrder(10, 10, seed=seed, start=0, stop=1))) for seed in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("cores", "processes", "wanted"), [(16, 1, 8), (4, 1, 3), (1, 1, 1), (16, 4, 3), (2, 4, 1)]
)
def test_a_gpu_gets_as_many_workers_as_the_machine_can_spare(monkeypatch, cores, processes, wanted):
    monkeypatch.setattr(worker_processes, "cpus", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert worker_processes.chosen_workers(torch.device("cuda")) == wanted
    assert worker_processes.chosen_workers(torch.device("cpu")) == 2


def test_batches_go_through_a_pipe_where_shared_memory_has_no_room(monkeypatch, tmp_path):
    """A worker that finds no room loses its batch, and training waited for it without end."""
    monkeypatch.setattr(loader, "SHARED_MEMORY", tmp_path)
    original, ways = loader.Loader, []

    def recorded(*arguments, collate_fn, **options):
        ways.append(collate_fn)
        return original(*arguments, collate_fn=collate_fn, **options)

    monkeypatch.setattr(loader, "Loader", recorded)
    batch_bytes = 2 * 48 * 40 * 4  # two crops of `batches`, three channels and the mask
    found = []
    for free in (2 * 3 * batch_bytes, 2 * 3 * batch_bytes - 1):  # two ready, one in use
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(loader.shutil, "disk_usage", lambda path, usage=usage: usage)
        found.append(batches(workers=1))
    assert ways == [loader._stack_shared, loader.stack]
    for (a, b), (c, d) in zip(*found, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_a_sample_reaches_from_the_first_to_the_last():
    assert evenly_spaced(10, 3) == [0, 4, 9]
    assert evenly_spaced(3, 5) == [0, 1, 2]
    assert evenly_spaced(7, 1) == [0]
    assert evenly_spaced(0, 3) == []

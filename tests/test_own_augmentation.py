"""The user's own augmentation: how it is called, seeded and checked, and runs with it."""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import random
import sys

import cv2
import numpy as np
import pytest
import torch

import setr
from setr import _torchvision  # noqa: F401  must come before torchvision
from setr.config import Config
from setr.data.loader import training_batches
from setr.data.own_augmentation import OwnAugmentation, described, require_augment
from setr.datasets import open_dataset
from setr.errors import USAGE, SetrError
from setr.paper_results import collect
from setr.training.facts import require_same_run, run_facts
from setr.transforms import Augmentation
from tests.conftest import tiny_config

from torchvision.transforms import v2  # isort: skip

CLASSES = 9  # of the scenes
SIZE = (48, 40)


def noisy(image, mask, rng):
    noise = rng.integers(0, 40, image.shape, dtype=np.uint8)
    return cv2.add(image, noise), mask


def by_global_generators(image, mask):
    """What a function in a notebook uses."""
    image[: random.randrange(1, 20)] = np.random.randint(256)
    image[:, : int(torch.randint(1, 20, ()))] = cv2.randu(np.zeros((1, 1)), 0, 256).item() // 1
    return image, mask


def by_names(**sample):
    return {**sample, "image": 255 - sample["image"], "extra": 1}


class Transform:
    """The protocol of albumentations 2: its own generators, and `seed` differs between workers."""

    def __init__(self) -> None:
        self.set_random_seed(None)

    def set_random_seed(self, seed) -> None:
        worker = torch.utils.data.get_worker_info()
        seed = None if seed is None else seed + (worker.id + 1 if worker else 0)
        self.set_random_state(np.random.default_rng(seed), random.Random(seed))

    def set_random_state(self, random_generator, py_random) -> None:
        self.random_generator, self.py_random = random_generator, py_random

    def __call__(self, *args, force_apply=False, **data):
        if args:
            raise KeyError("pass the data as named arguments")
        added = self.random_generator.integers(0, 9, data["image"].shape, dtype=np.uint8)
        data["image"] = cv2.add(data["image"], added) // self.py_random.randint(1, 3)
        return data


class SeededOnly:
    """Takes a seed and no generators."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def set_random_seed(self, seed) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, **data):
        return {**data, "image": self.rng.integers(0, 9, data["image"].shape, dtype=np.uint8)}


class Flips:
    def __call__(self, image, mask, rng):
        return image[:, ::-1], mask[:, ::-1]


TORCHVISION = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomInvert(), v2.RandomPosterize(3)])
EVERY = (noisy, by_global_generators, by_names, Transform(), SeededOnly(), Flips(), TORCHVISION)


def batches(augment, workers: int = 0, start: int = 0):
    own = augment and OwnAugmentation(augment, CLASSES)
    found = training_batches(
        open_dataset("scenes:6", "train"),
        Augmentation(crop_size=SIZE),
        batch_size=2,
        seed=5,
        start=start,
        stop=4,
        workers=workers,
        own=own,
    )
    return [(images.numpy().copy(), masks.numpy().copy()) for images, masks in found]


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for one, other in zip(a, b, strict=True)
               for x, y in zip(one, other, strict=True))  # fmt: skip


def once(augment, image=None, mask=None, seed: int = 0):
    image = np.full((*SIZE, 3), 100, np.uint8) if image is None else image
    mask = np.zeros(SIZE, np.uint8) if mask is None else mask
    own = OwnAugmentation(augment, CLASSES)
    return own(image, mask, np.random.default_rng(seed), "train/0.png")


# --- calling and seeding --------------------------------------------------------------------------


@pytest.mark.parametrize("augment", EVERY, ids=lambda x: getattr(x, "__name__", type(x).__name__))
def test_workers_and_resumption_change_nothing(augment):
    alone = batches(augment)
    assert equal(alone, batches(augment, workers=2))
    assert equal(alone[2:], batches(augment, start=2))
    assert not equal(alone, batches(None))


def test_crops_are_those_of_the_recipe():
    crops = batches(None)
    assert equal(batches(lambda image, mask: (image, mask)), crops)
    inverted = [(255 - images, masks) for images, masks in crops]
    assert equal(batches(by_names), inverted)


def test_samples_and_epochs_get_different_numbers():
    drawn = []
    batches(lambda image, mask, rng: drawn.append((rng.random(), random.random())) or (image, mask))
    assert len(set(drawn)) == 8  # 6 samples of the first epoch, 2 of the second
    assert all(a != b for a, b in drawn)


def test_global_generators_are_left_alone():
    def draws():
        return random.random(), np.random.random(), torch.rand(()).item()

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    once(by_global_generators)
    with pytest.raises(ZeroDivisionError):
        once(lambda image, mask: 1 / 0)
    assert draws() == expected


def test_torchvision_moves_the_mask_with_the_image():
    image = np.arange(np.prod(SIZE) * 3, dtype=np.uint8).reshape(*SIZE, 3)
    mask = (np.arange(np.prod(SIZE)) % CLASSES).astype(np.uint8).reshape(SIZE)
    found = once(v2.RandomHorizontalFlip(1.0), image, mask)
    np.testing.assert_array_equal(found[0], image[:, ::-1])
    np.testing.assert_array_equal(found[1], mask[:, ::-1])


def test_the_users_data_are_not_changed_in_place():
    image, mask = np.full((*SIZE, 3), 9, np.uint8), np.ones(SIZE, np.uint8)
    for array in (image, mask):
        array.setflags(write=False)

    def erase(image, mask, rng):
        image[:], mask[:] = 0, 255
        return image, mask

    found = once(erase, image, mask)
    assert (found[0].max(), found[1].min(), image.min(), mask.max()) == (0, 255, 9, 1)


def test_an_array_that_is_used_again_does_not_change_earlier_samples():
    class Reusing:
        image, mask = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)

        def __call__(self, image, mask):
            self.image[:], self.mask[:] = image, mask
            return self.image, self.mask

    assert equal(batches(Reusing()), batches(None))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda i, m: None, "augment returned NoneType; return the pair"),
        (lambda i, m: i, r"returned ndarray uint8 \(48, 40, 3\); return the pair"),
        (lambda i, m: {"image": i}, "returned dict; return the pair"),
        (lambda i, m: (i, m, 0), "returned tuple of 3; return the pair"),
        (lambda i, m: (i / 255, m), r"the image as ndarray float64 \(48, 40, 3\); return an array"),
        (lambda i, m: (i[:20], m), r"the image as ndarray uint8 \(20, 40, 3\)"),
        (lambda i, m: (torch.from_numpy(i), m), r"the image as Tensor uint8 \(48, 40, 3\)"),
        (lambda i, m: (i, m.astype(int)), r"the mask as ndarray int64 \(48, 40\); return an array "
                                          r"uint8 \(48, 40\)"),
        (lambda i, m: (i, m[..., None]), r"the mask as ndarray uint8 \(48, 40, 1\)"),
        (lambda i, m: (i, None), "the mask as NoneType"),
        (lambda i, m: (i, m + 9), "the id 9 in the mask; return 0 to 8, or 255"),
        (lambda i, m: (i, m + 254), "the id 254 in the mask"),
        (v2.Compose([v2.ToDtype(torch.float32, scale=True)]), r"the image as ndarray float32"),
        (v2.RandomCrop(16), r"the image as ndarray uint8 \(16, 16, 3\)"),
    ],
)  # fmt: skip
def test_what_it_returns_is_checked(returned, message):
    with pytest.raises(SetrError, match=message) as caught:
        once(returned)
    assert str(caught.value).startswith("train/0.png: augment returned ")
    assert "\n" not in str(caught.value)


def test_known_ids_and_255_pass():
    for value in (0, 8, 255):
        assert (once(lambda i, m, v=value: (i, m + np.uint8(v)))[1] == value).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unknown_id_is_one_line_from_a_worker_too(workers):
    with pytest.raises(SetrError, match=r"train_0000\d\.png: augment returned the id 9") as caught:
        batches(lambda i, m: (i, np.full_like(m, 9)), workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Flips, "augment is the class Flips; give a function"),
        ([Flips()], "augment is list of 1; give a function"),
        ("flip", "augment is str"),
        (lambda image: image, r"augment takes \(image\); write it for \(image, mask, rng\)"),
        (lambda a, b, c, d: None, r"augment takes \(a, b, c, d\)"),
    ],
)
def test_what_cannot_be_called_is_refused_before_training(tmp_path, given, message):
    with pytest.raises(SetrError, match=message) as caught:
        setr.train(tiny_config(tmp_path / "run"), augment=given)
    assert caught.value.code == USAGE
    assert not (tmp_path / "run").exists()


def test_arguments_may_be_bound_and_named():
    def darker(image, mask, rng=None, *, by):
        return image // by, mask

    require_augment(functools.partial(darker, by=2))
    assert once(functools.partial(darker, by=2))[0].max() == 50


def test_an_argument_with_a_default_is_no_generator():
    assert once(lambda image, mask, by=2: (image // by, mask))[0].max() == 50
    found = []
    once(lambda image, mask, rng, **_: found.append(rng) or (image, mask))
    assert isinstance(found.pop(), np.random.Generator)
    once(lambda image, mask, rng=None: found.append(rng) or (image, mask))
    once(lambda image, mask, generator: found.append(generator) or (image, mask))
    assert [type(x) for x in found] == [np.random.Generator] * 2


def test_stored_features_cannot_be_augmented(tmp_path):
    config = tiny_config(tmp_path / "run", cache_features="none")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, freeze=-1),
        train=dataclasses.replace(config.train, cache_features="flip"),
    )
    with pytest.raises(SetrError, match="cache_features flip: stored features cannot") as caught:
        setr.train(config, augment=noisy)
    assert caught.value.code == USAGE


# --- other ways to start workers ------------------------------------------------------------------


@pytest.fixture
def spawned():
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("spawned")
def test_spawned_workers_give_the_same_samples():
    assert equal(batches(noisy, workers=1), batches(noisy))


@pytest.mark.usefixtures("spawned")
def test_what_spawned_workers_cannot_load_is_one_line(monkeypatch):
    with pytest.raises(SetrError, match=r"augment <function test_what.*: worker processes cannot"):
        batches(lambda i, m: (i, m), workers=1)
    batches(lambda i, m: (i, m))  # without workers
    typed = type("Typed", (Flips,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Typed", typed, raising=False)
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(SetrError, match="define it at the top level of a") as caught:
        batches(typed(), workers=1)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("spawned")
def test_samples_that_spawned_workers_cannot_load_are_one_line():
    class Local(list):
        pass

    image, mask = np.zeros((60, 60, 3), np.uint8), np.zeros((60, 60), np.uint8)
    data = setr.wrap_dataset(Local([(image, mask)] * 2), ["a", "b"], "train")
    order = {"batch_size": 2, "seed": 0, "start": 0, "stop": 1}
    with pytest.raises(SetrError, match="samples: worker processes cannot load them") as caught:
        list(training_batches(data, Augmentation(crop_size=SIZE), workers=1, **order))
    assert "\n" not in str(caught.value)


# --- runs -----------------------------------------------------------------------------------------


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = tiny_config(tmp_path / "whole")
    metrics = setr.train(whole, augment=by_global_generators)
    assert metrics["augment"] == "<function by_global_generators>"
    plain = setr.train(tiny_config(tmp_path / "plain"))
    assert plain["augment"] is None
    assert weights(tmp_path / "plain") != weights(tmp_path / "whole")

    class Stop(setr.Tracker):
        def line(self, line):
            if line["step"] == 2:
                self.ended = "enough"

    parts = tiny_config(tmp_path / "parts")
    assert setr.train(parts, augment=by_global_generators, trackers=[Stop])["steps"] == 2
    with pytest.raises(SetrError, match=r"with another augmentation: augment None, not 'setr\.tr"):
        setr.train(parts, resume=True)
    assert setr.train(parts, augment=by_global_generators, resume=True)["steps"] == 4
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    runs = {run.folder.name: run.changed for run in collect(tmp_path)}
    assert runs["plain"] == runs["whole"] == ("settings unknown",)  # of no recipe


def test_results_tell_runs_with_an_augmentation_apart(tmp_path):
    config = dataclasses.replace(setr.recipe("demo"), out=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml())
    for augment, expected in ((None, ()), ("mine 2", ("own augmentation",))):
        content = {"recipe": "demo", "augment": augment, "data": {"name": "scenes"}}
        (tmp_path / "run" / "metrics.json").write_text(json.dumps(content))
        assert collect(tmp_path)[0].changed == expected


def test_facts_tell_augmentations_apart(capsys):
    data = open_dataset("scenes:4", "train")

    def facts(augment):
        return run_facts(Config(), data, augment=augment)

    require_same_run("run", facts(noisy), facts(noisy))
    assert "warning" not in capsys.readouterr().err
    require_same_run("run", facts(noisy), facts(by_names))
    assert "augment.version '<function by_names>'" in capsys.readouterr().err
    old = {k: v for k, v in facts(None).items() if "augment" not in k}
    require_same_run("run", old, facts(None))
    for before, now in ((None, noisy), (noisy, None)):
        with pytest.raises(SetrError, match="another augmentation"):
            require_same_run("run", facts(before), facts(now))
    with pytest.raises(SetrError, match="another augmentation"):
        require_same_run("run", old, facts(noisy))


def test_an_augmentation_is_named_by_its_version_or_its_repr():
    class Mine(Flips):
        version = "2026-11"

    assert described(Mine()) == "2026-11"
    assert described(functools.partial(noisy, rng=1)) == (
        "functools.partial(<function noisy>, rng=1)"
    )
    assert "\n" not in described(TORCHVISION)
    assert " 0x" not in described(Flips())

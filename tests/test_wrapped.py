"""Samples out of the user's own code: what they may be, what is refused, and a run on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from torch.utils.data import Dataset as TorchDataset

import setr
from setr.bands import Bands
from setr.config import Config
from setr.data.dataset import Sample
from setr.data.survey import survey
from setr.datasets import open_dataset
from setr.doctor import check
from setr.errors import USAGE, SetrError
from setr.labels import IGNORE, Labels
from setr.training.facts import require_same_run, run_facts
from setr.wrapped import wrap_dataset
from tests.conftest import tiny_model

CLASSES = ("background", "crack")
SHAPE = (48, 64)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


def ids(seed: int) -> np.ndarray:
    """Brighter pixels are cracks; a corner is ignored."""
    mask = (picture(seed).mean(axis=2) > 127).astype(np.uint8)
    mask[:4, :4] = IGNORE
    return mask


class Cracks(TorchDataset):
    """What a user has written for another loop."""

    def __init__(self, seeds) -> None:
        self.seeds = list(seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index):
        seed = self.seeds[index]
        return Image.fromarray(picture(seed)), Image.fromarray(ids(seed))


class Stream(IterableDataset):
    """Has a length and no index, though its base has `__getitem__`."""

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        return iter(())


def of(image, mask, labels=CLASSES, **given) -> Sample:
    return wrap_dataset([(image, mask)], labels, "train", **given).load(0)


def refused(image, mask, **given) -> str:
    with pytest.raises(SetrError) as caught:
        of(image, mask, **given)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("own/train/0000000: ")
    return str(caught.value)


# --- what samples may be --------------------------------------------------------------------------


def test_images_and_masks_of_every_kind_are_the_same_sample(tmp_path):
    image, mask = picture(0), ids(0)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    palette = Image.fromarray(mask, "P")
    palette.putpalette(bytes(range(256)) * 3)
    images = (
        image,
        Image.fromarray(image),
        torch.from_numpy(image).permute(2, 0, 1),
        torch.from_numpy(image).permute(2, 0, 1) / 255,
        tmp_path / "image.png",
        (tmp_path / "image.png").read_bytes(),
    )
    masks = (
        mask,
        mask.astype(np.int64),
        torch.from_numpy(mask.astype(np.int64)),
        torch.from_numpy(mask)[None],
        Image.fromarray(mask),
        palette,
        Image.fromarray(mask.astype(np.int32)),
        str(tmp_path / "mask.png"),
    )
    for given in images:
        np.testing.assert_array_equal(of(given, mask).image, image)
    for given in masks:
        np.testing.assert_array_equal(of(image, given).mask, mask)


def test_rows_of_a_table_are_samples_by_their_names():
    image, mask = picture(1), ids(1)
    for place, key in (("image", "mask"), ("image", "annotation"), ("pixel_values", "label")):
        data = wrap_dataset([{"id": 7, place: image, key: mask}], CLASSES, "train")
        np.testing.assert_array_equal(data[0].image, image)
        np.testing.assert_array_equal(data[0].mask, mask)


class Table:
    """As pandas: an index is a column, and rows may be shuffled."""

    iloc = columns = None

    def __init__(self, rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column):
        return [row[column] for row in self.rows]

    def to_dict(self, orient):
        assert orient == "records"
        return self.rows


def test_a_table_has_a_sample_in_each_row(tmp_path):
    rows = []
    for seed in (4, 2):
        paths = {"image": tmp_path / f"{seed}.png", "mask": str(tmp_path / f"{seed}_mask.png")}
        Image.fromarray(picture(seed)).save(paths["image"])
        Image.fromarray(ids(seed)).save(paths["mask"])
        rows.append({"id": seed, **paths})
    data = wrap_dataset(Table(rows), CLASSES, "train")
    assert len(data) == 2
    np.testing.assert_array_equal(data[1].image, picture(2))
    np.testing.assert_array_equal(data[1].mask, ids(2))
    pandas = pytest.importorskip("pandas")
    data = wrap_dataset(pandas.DataFrame(rows, index=[7, 3]), CLASSES, "train")
    np.testing.assert_array_equal(data[1].mask, ids(2))
    with pytest.raises(SetrError, match=r"has id, photo; give 'image' and one of annotation"):
        wrap_dataset(pandas.DataFrame({"id": [1], "photo": ["x"]}), CLASSES, "train").load(0)


def test_truth_values_are_two_classes():
    mask = ids(2) == 1
    np.testing.assert_array_equal(of(picture(2), mask).mask, mask.astype(np.uint8))


def test_other_ids_have_a_mapping():
    mask = np.where(ids(3) == 1, 40, 7).astype(np.int32)
    mask[0, 0], mask[0, 1], mask[0, 2] = 300, 255, 8
    named = {40: "crack", 7: "wall", 8: "wall", 300: "ignore"}
    data = wrap_dataset([(picture(3), mask)], named, "train")
    assert data.labels.classes == ("wall", "crack")
    found = data.load(0).mask
    assert found[0, :3].tolist() == [IGNORE, IGNORE, 0]
    np.testing.assert_array_equal(found[1:] == 1, mask[1:] == 40)


def test_ids_may_be_text_as_json_has_them():
    names = {str(i): f"class {i}" for i in range(12)}
    found = wrap_dataset([(picture(0), ids(0))], names, "train").labels
    assert found.classes == tuple(names.values())


def test_colours_have_a_colour_map():
    labels = Labels.from_dict(
        {"classes": CLASSES, "colours": ["#000000", "#ff8000"], "colour_map": "classes"}
    )
    mask = (ids(4) == 1).astype(np.uint8)
    colours = labels.palette[mask]
    for given in (colours, Image.fromarray(colours)):
        np.testing.assert_array_equal(of(picture(4), given, labels).mask, mask)
    assert "give colours, uint8 (H, W, 3)" in refused(picture(4), mask, labels=labels)


def test_bands_come_as_arrays():
    image = np.concatenate([picture(5), picture(6)[..., :1]], axis=2)
    data = wrap_dataset([(image, ids(5))], CLASSES, "train", bands=Bands((1, 2, 3, 4)))
    assert data.channels == 4
    np.testing.assert_array_equal(data.load(0).image, image)


def test_names_and_numbers():
    data = wrap_dataset(Cracks(range(3)), CLASSES, "val", name="cracks")
    assert len(data) == len(data.pairs) == 3
    assert [str(pair.image) for pair in data.pairs][-1] == "cracks/val/0000002"
    np.testing.assert_array_equal(data[-1].image, picture(2))
    assert len(list(data)) == 3
    with pytest.raises(IndexError):
        data[3]


# --- folds ----------------------------------------------------------------------------------------


def test_folds_of_an_opened_data_set_have_its_training_ids(tmp_path):
    for seed in range(4):
        for kind, pixels in (("images", picture(seed)), ("labels", 10 + 90 * (ids(seed) == 1))):
            place = tmp_path / kind / "train" / f"{seed}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place)
    (tmp_path / "data.yaml").write_text(
        "classes: [background, crack]\nlabel_map: {10: background, 100: crack}\n"
    )
    data = open_dataset(str(tmp_path), "train")
    fold = wrap_dataset(Subset(data, [1, 3]), data.labels, "val")
    assert fold.labels.classes == CLASSES
    for place, seed in enumerate((1, 3)):
        np.testing.assert_array_equal(fold[place].image, data[seed].image)
        np.testing.assert_array_equal(fold[place].mask, data[seed].mask)
    both = wrap_dataset(ConcatDataset([data, fold]), data.labels, "train")
    assert len(both) == 6
    np.testing.assert_array_equal(both[5].mask, data[3].mask)


def bands_data(tmp_path, numbers: str, name: str = "tiles"):
    for kind, pixels in (("images", picture(0)), ("labels", ids(0))):
        place = tmp_path / name / kind / "train" / "0.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    (tmp_path / name / "data.yaml").write_text(
        f"classes: [background, crack]\nbands: {numbers}\nvalue_range: [0, 100]\n"
    )
    return open_dataset(str(tmp_path / name), "train")


def test_folds_keep_the_bands_and_the_classes_of_their_data(tmp_path):
    """Of three bands nothing else would tell that they are not red, green and blue."""
    data = bands_data(tmp_path, "[3, 2, 1]")
    fold = wrap_dataset(Subset(data, [0]), data.labels, "val")
    assert fold.bands == data.bands
    np.testing.assert_array_equal(fold[0].image, data[0].image)
    rgb = bands_data(tmp_path, "[1, 2, 3]", "other")
    for given, labels, more, said in (
        (Subset(data, [0]), CLASSES, {"bands": Bands((3, 2, 1))}, "bands 3, 2, 1 of 8 or 16 bits"),
        (ConcatDataset([data, rgb]), CLASSES, {}, "the samples of other have bands 1, 2, 3 of 0"),
        (Subset(data, [0]), CLASSES[::-1], {}, "the samples of tiles have background, crack"),
    ):
        with pytest.raises(SetrError) as caught:
            wrap_dataset(given, labels, "val", **more)
        assert said in str(caught.value)
        assert caught.value.code == USAGE
    mixed = wrap_dataset(ConcatDataset([data, Cracks([1])]), CLASSES, "val")
    with pytest.raises(SetrError, match="own/val/0000001: some samples are of setr's own"):
        mixed[1]


# --- what is refused ------------------------------------------------------------------------------


def test_what_cannot_be_a_sample_is_one_line():
    image, mask = picture(7), ids(7)
    assert "mask is 48x64 but its image 64x48; rotated?" in refused(image, mask.T)
    assert "fractions" in refused(image, mask / 255)
    assert "float32" in refused(image, torch.rand(1, *SHAPE))
    assert "ids -1..1 exceed 0..65535; 255 leaves pixels out" in refused(
        image, (mask == 1).astype(np.int64) * 2 - 1
    )
    assert "ids outside the 2 classes: 9 (1 px), first at x=63 y=47" in refused(
        image, np.where(np.arange(mask.size).reshape(SHAPE) == mask.size - 1, 9, mask)
    )
    assert "colour mask" in refused(image, Image.fromarray(picture(8)))
    assert "give uint8 RGB" in refused(image.astype(np.float32), mask)
    assert "no such file" in refused("nowhere.png", mask)
    assert "list: not an image; give uint8 RGB" in refused([[1], [2, 3]], mask)
    assert "list: not a mask; give ids" in refused(image, [[1], [2, 3]])


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ((1, 2, 3), "is a tuple of 3; give a pair, (image, mask)"),
        (None, "is a NoneType; give a pair, (image, mask)"),
        ({"image": 1, "target": 2}, "has image, target; give 'image' and one of annotation, mask"),
        ({}, "has nothing; give"),
    ],
)
def test_what_is_no_pair_is_one_line(sample, said):
    with pytest.raises(SetrError, match="own/train/0000000") as caught:
        wrap_dataset([sample], CLASSES, "train").load(0)
    assert said in str(caught.value)


def test_a_stream_has_no_index():
    with pytest.raises(SetrError, match="generator: has no length or no index") as caught:
        wrap_dataset((x for x in ()), CLASSES, "train")
    assert caught.value.code == USAGE
    with pytest.raises(SetrError, match="split 'val' of own has no samples"):
        wrap_dataset([], CLASSES, "val")


@pytest.mark.parametrize(
    ("samples", "labels", "said"),
    [
        ({"train": 1, "test": 2}, CLASSES, "dict of train, test: give one of its splits"),
        (Stream(), CLASSES, "Stream: has no length or no index"),
        ([(0, 0)], {"background": 0, "crack": 1}, "give names by id, as {0: 'road', 7: 'car'}"),
        ([(0, 0)], {0: "background", "x": "crack"}, "give names by id"),
        ([(0, 0)], 2, "labels 2: give the names of the classes"),
    ],
)
def test_what_cannot_be_wrapped_is_one_line(samples, labels, said):
    with pytest.raises(SetrError) as caught:
        wrap_dataset(samples, labels, "train")
    assert said in str(caught.value)
    assert caught.value.code == USAGE


def test_errors_of_the_users_code_stay_theirs():
    class Broken(Cracks):
        def __getitem__(self, index):
            raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        wrap_dataset(Broken([0]), CLASSES, "train")


def test_a_class_lost_in_255_and_a_sample_given_twice_are_found():
    binary = [(picture(i), (ids(i) == 1).astype(np.uint8) * 255) for i in range(2)]
    found = check(wrap_dataset(binary, CLASSES, "train"))
    assert "class 'crack' never occurs" in found.problems[0]
    twice = check(wrap_dataset(Cracks([0, 1, 0]), CLASSES, "train"))
    assert [(f.level, f.count) for f in twice.findings] == [("warning", 1)]
    assert "are identical copies of an earlier one" in twice.findings[0].text


def test_checks_are_remembered_under_a_version_alone():
    class Counted(Cracks):
        asked = 0

        def __getitem__(self, index):
            self.asked += 1
            return super().__getitem__(index)

    def asked(version):
        samples = Counted(range(3))
        survey(wrap_dataset(samples, CLASSES, "train", version=version, name="counted"))
        return samples.asked - 1  # one is looked at when it is wrapped

    assert [asked(version) for version in (None, None, "1", "1", "2")] == [3, 3, 3, 0, 3]


def test_another_fold_is_another_version():
    def key(samples):
        return wrap_dataset(samples, CLASSES, "train", version="1").version

    data = Cracks(range(6))
    folds = [Subset(data, [0, 1]), Subset(data, [2, 3]), Subset(Subset(data, [2, 3]), [0, 1])]
    assert len({key(fold) for fold in (*folds, ConcatDataset(folds[:2]))}) == 4
    assert key(Subset(data, np.array([0, 1]))) == key(folds[0])
    assert key(data) == "1"


# --- a run ----------------------------------------------------------------------------------------


def splits():
    train = wrap_dataset(Cracks(range(6)), CLASSES, "train", name="cracks")
    return train, wrap_dataset(Cracks(range(6, 8)), CLASSES, "val", name="cracks")


def weights(config):
    model, _ = setr.from_pretrained(config.out)
    return model.state_dict()


def test_a_run_trains_continues_and_is_tested_on_them(config, tmp_path):
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, crop_size=(32, 32), workers=2),
        train=dataclasses.replace(config.train, save_every=2),
    )
    metrics = setr.train(config, data=splits())
    assert metrics["data"] | {"digest": ""} == {
        "name": "cracks", "classes": list(CLASSES), "train_images": 6, "val_images": 2, "digest": ""
    }  # fmt: skip
    assert metrics["split"] == "val"
    again = setr.evaluate(config.out, splits()[1], precision="fp32")
    assert again["miou"] == metrics["single_scale"]["miou"]
    assert set(setr.load(config.out).predict(picture(9)).shares) <= set(CLASSES)

    class Stop(setr.Tracker):
        def line(self, line):
            if line["step"] == 3:
                raise KeyboardInterrupt

    short = dataclasses.replace(config, out=str(tmp_path / "short"))
    with pytest.raises(KeyboardInterrupt):
        setr.train(short, data=splits(), trackers=[Stop])
    setr.train(short, data=splits(), resume=True)
    found = weights(short)
    for name, value in weights(config).items():
        assert torch.equal(value, found[name]), name


def test_a_run_knows_that_its_data_came_from_python(config):
    train, val = splits()
    setr.train(config, data=(train, val))
    kept = Config.load(Path(config.out) / "config.yaml")
    assert (kept.data.root, kept.data.train_split, kept.data.val_split) == (
        "python:cracks", "train", "val"
    )  # fmt: skip
    with pytest.raises(SetrError, match=r"data set is a Python object.* data=\(train, val\)"):
        setr.train(kept, resume=True)
    for name in ("train", "fold 0.1"):
        first, then = (wrap_dataset(Cracks(range(n)), CLASSES, name) for n in (6, 5))
        facts = [run_facts(config, data, val) for data in (first, then)]
        with pytest.raises(SetrError, match=rf"other data or classes: data.{name}.pairs"):
            require_same_run(config.out, *facts)
    more = wrap_dataset(Cracks(range(5)), CLASSES, "train", name="cracks")
    with pytest.raises(SetrError, match=r"other data or classes: data.train.pairs 5, not 6"):
        setr.train(config, data=(more, val), resume=True)


def test_splits_that_do_not_go_together_are_one_line(config):
    train, val = splits()
    others = wrap_dataset(Cracks([1]), ("background", "gap"), "val")
    bands, three = (
        wrap_dataset(Cracks([1]), CLASSES, "val", bands=Bands(numbers))
        for numbers in ((1, 2, 3, 4), (3, 2, 1))
    )
    for given, said in (
        (Cracks([1]), "give a training and a validation split"),
        ((train, Cracks([1])), "made by setr.wrap_dataset"),
        ((train, train), "both splits are called 'train'"),
        ((train, others), "classes ('background', 'crack') in 'train' but"),
        ((train, bands), "channels 3 in 'train' but 4 in 'val'"),
        ((train, three), "images of red, green and blue in 'train' but bands 3, 2, 1"),
    ):
        with pytest.raises(SetrError) as caught:
            setr.train(config, data=given)
        assert said in str(caught.value)
        assert caught.value.code == USAGE
    assert val.labels.classes == CLASSES
    with pytest.raises(SetrError, match="data tuple: give a path, or one split"):
        setr.evaluate(tiny_model("naive", 2), (train, val), info=setr.ModelInfo(val.labels))


def test_features_are_kept_only_under_a_version(config):
    frozen = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, freeze=-1),
        data=dataclasses.replace(config.data, crop_size=(32, 32)),
        train=dataclasses.replace(config.train, cache_features="once"),
    )
    with pytest.raises(SetrError, match="give wrap_dataset one, or leave it out"):
        setr.train(frozen, data=splits())
    named = wrap_dataset(Cracks(range(6)), CLASSES, "train", name="cracks", version="1")
    assert setr.train(frozen, data=(named, splits()[1]), overwrite=True)["steps"] == 4

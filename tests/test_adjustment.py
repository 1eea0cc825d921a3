"""Logit adjustment: against a search by hand, and through the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from setr import inference
from setr.cli import main
from setr.data import scenes
from setr.datasets import open_dataset
from setr.engine import train
from setr.errors import DATA_CHECK_FAILED, FAILED, OK, USAGE, SetrError
from setr.evaluation import evaluate
from setr.hub import from_pretrained, save_pretrained
from setr.images import encode_png
from setr.inference import normalize, score_blocks
from setr.labels import Labels
from setr.model import create_model
from setr.model_info import ModelInfo
from setr.protocols import Protocol
from setr.scores import adjustment
from setr.scores.adjustment import (
    GRID,
    best_by_iou,
    best_offsets,
    find_offsets,
    shift_logits,
    threshold_offsets,
)
from setr.training import best
from setr.writing import write_bytes
from tests.conftest import save_scene_model, tiny_config, tiny_model


def pixels(n=4000, K=4, seed=0):
    """Scores of a classifier that favours the rarest class, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(K, n, p=[0.6, 0.3, 0.07, 0.03])
    scores = rng.normal(size=(n, K)).astype(np.float32)
    scores[np.arange(n), truth] += 2
    scores[:, 3] += 2
    return scores, truth


def miou(prediction, truth, K=4):
    return np.mean(
        [((prediction == k) & (truth == k)).sum() / ((prediction == k) | (truth == k)).sum()
         for k in range(K)]
    )  # fmt: skip


@pytest.mark.parametrize("k", range(4))
def test_every_threshold_of_a_class_has_the_miou_it_would_have(k):
    scores, truth = pixels(500)
    found = adjustment._miou_on_grid(scores, truth, k)
    for at in range(0, len(GRID), 16):
        moved = scores.copy()
        moved[:, k] += GRID[at]
        assert found[at] == pytest.approx(miou(moved.argmax(1), truth), abs=1e-12)


def test_finds_what_a_wrong_prior_costs_and_carries_over_to_new_pixels():
    offsets = best_offsets(*pixels())
    scores, truth = pixels(seed=1)
    before, after = miou(scores.argmax(1), truth), miou((scores + offsets).argmax(1), truth)
    assert offsets[3] < offsets[:3].min() - 1
    assert after > before + 0.05


def test_a_class_that_is_hard_to_find_wins_at_a_lower_probability():
    """No multiple of log share tells two classes of one share apart, of which one is hidden."""
    share, signal = np.array([0.9, 0.05, 0.05]), np.array([1.0, 4.0, 1.0])

    def draw(seed, n=100_000):
        rng = np.random.default_rng(seed)
        truth = rng.choice(3, n, p=share)
        seen = rng.normal(size=(n, 3)) / signal
        seen[np.arange(n), truth] += 1
        likelihood = (seen - 0.5) * signal**2  # log of N(1, 1/signal) over N(0, 1/signal)
        return (likelihood + np.log(share)).astype(np.float32), truth

    counts = (1e6 * share).astype(np.int64)
    offsets = best_by_iou(*draw(0), counts)
    assert offsets[2] > offsets[1] + 0.5
    scores, truth = draw(1)
    log_share = np.log(share).astype(np.float32)
    best_multiple = max(
        miou((scores + m * log_share).argmax(1), truth, 3) for m in adjustment.MULTIPLES
    )
    reached = miou((scores + offsets).argmax(1), truth, 3)
    by_class = miou((scores + best_offsets(*draw(0))).argmax(1), truth, 3)
    assert reached > best_multiple + 0.002
    assert reached > by_class - 0.003


def test_the_iou_that_counts_is_averaged_over_the_rounds(monkeypatch):
    """It depends on the offsets, which would swing about the best ones."""
    monkeypatch.setattr(adjustment, "MULTIPLES", np.zeros(1))
    share, rng = np.array([0.9, 0.1]), np.random.default_rng(0)
    truth = rng.choice(2, 20_000, p=share)
    scores = (rng.normal(size=(20_000, 2)) + np.eye(2)[truth] + np.log(share)).astype(np.float32)
    before = np.array([((scores.argmax(1) == k) & (truth == k)).sum() for k in range(2)], float) / [
        ((scores.argmax(1) == k) | (truth == k)).sum() for k in range(2)
    ]
    expected = -np.log(np.maximum(before, adjustment.LOWEST)) / 2
    found = best_by_iou(scores, truth, np.array([9, 1]), rounds=2)
    np.testing.assert_allclose(found, expected - expected.mean(), rtol=1e-5)
    assert found[1] > found[0]


def test_one_multiple_takes_class_weights_back():
    """Scores with weights of 1/share in them ask for about +1; without, for less than none."""
    rng = np.random.default_rng(0)
    share = np.array([0.6, 0.3, 0.07, 0.03])

    def draw(weighted):
        truth = rng.choice(4, 20_000, p=share)
        scores = rng.normal(size=(20_000, 4)) / 1.5
        scores[np.arange(20_000), truth] += 1 / 1.5**2
        scores = scores * 1.5**2 + (0 if weighted else np.log(share))  # log-probabilities
        return scores.astype(np.float32), truth

    counts = (1e6 * share).astype(np.int64)
    slope = np.log(share[0] / share[3])
    found = {}
    for weighted in (True, False):
        offsets = best_by_iou(*draw(weighted), counts)
        found[weighted] = (offsets[0] - offsets[3]) / slope
        scores, truth = draw(weighted)
        assert miou((scores + offsets).argmax(1), truth) >= miou(scores.argmax(1), truth)
    assert found[True] == pytest.approx(found[False] + 1, abs=0.25)
    assert found[True] > 0.2
    even = best_by_iou(10 * np.eye(4, dtype=np.float32)[truth], truth, np.array([5, 0, 5, 5]))
    assert not even.any()


def test_is_never_worse_and_leaves_a_perfect_model_alone():
    for seed in range(5):
        scores, truth = pixels(300, seed=seed)
        offsets = best_offsets(scores, truth)
        assert miou((scores + offsets).argmax(1), truth) >= miou(scores.argmax(1), truth)
    truth = np.arange(100) % 4
    assert not best_offsets(10 * np.eye(4, dtype=np.float32)[truth], truth).any()
    narrow = np.array([[1, 0], [0, 10]], np.float32)[truth % 2]  # of several best offsets, none
    assert not best_offsets(narrow, truth % 2).any()


@pytest.mark.parametrize("by", ["iou", "class"])
def test_command_writes_a_model_that_scores_higher(tmp_path, capsys, by):
    tiny_run = save_scene_model(tmp_path / "model")
    out = tmp_path / "adjusted"
    assert main(["adjust", str(tiny_run), "scenes:40", "-o", str(out), "--by", by]) == 0
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    scores = []
    for number, model in enumerate((tiny_run, out)):
        assert main(["eval", str(model), "scenes:40", "--out", str(tmp_path / str(number))]) == 0
        figures = json.loads((tmp_path / str(number) / "metrics.json").read_text())
        scores.append(figures["single_scale"]["miou"])
    assert scores[1] > scores[0]
    for taken in (out, out / "config.json"):
        assert main(["adjust", str(tiny_run), "scenes:40", "-o", str(taken)]) == 2
        assert f"{taken}: exists; choose another folder" in capsys.readouterr().err
    unused = ["-o", str(tmp_path / "more"), "--by", "class", "--train-split", "all"]
    assert main(["adjust", str(tiny_run), "scenes:40", *unused]) == 2
    assert "--train-split all: does nothing with --by class" in capsys.readouterr().err


def nano(name):
    args = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return create_model(f"{name}_nano", num_classes=5, img_size=32, encoder_args=args).eval()


@pytest.mark.parametrize(
    "name", ["setr_naive", "setr_pup", "setr_mla", "segmenter", "dpt", "upernet", "linear"]
)
def test_offsets_are_added_to_the_logits_of_every_model(name):
    model, images = nano(name), torch.randn(1, 3, 37, 41)
    offsets = np.linspace(-2, 3, 5, dtype=np.float32)
    with torch.inference_mode():
        before = model(images)
        shift_logits(model, offsets)
        added = model(images) - before
    expected = torch.from_numpy(offsets)[:, None, None].expand_as(added[0])
    torch.testing.assert_close(added[0], expected, rtol=0, atol=1e-4)


def test_eomt_is_refused_before_the_data_are_read(tmp_path, capsys):
    labels = Labels(tuple("abcde"))
    save_pretrained(tmp_path / "model", nano("eomt"), ModelInfo(labels))
    assert main(["adjust", str(tmp_path / "model"), "none", "-o", str(tmp_path / "out")]) == USAGE
    assert "EoMT's logits have no bias per class" in capsys.readouterr().err


def test_a_run_adjusts_its_model_once(tmp_path):
    config = tiny_config(tmp_path / "run", adjust_logits=True)
    adjusted = train(config)
    plain = train(tiny_config(tmp_path / "plain"))
    assert adjusted["single_scale"]["iou"] != plain["single_scale"]["iou"]
    biases = [
        load_file(tmp_path / name / "model.safetensors")["decoder.classifier.bias"]
        for name in ("run", "plain")
    ]
    assert (biases[0] - biases[1]).abs().max() > 0.1
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = train(config, resume=True)
    assert again["single_scale"]["iou"] == adjusted["single_scale"]["iou"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("steps", [4, 5])
def test_the_figures_of_an_adjusted_model_stay_its_own(tmp_path, monkeypatch, steps):
    """The run continues without the option, and finds no better weights."""
    monkeypatch.setattr(best, "find_offsets", lambda *_, **__: np.arange(9, dtype=np.float32))
    config = tiny_config(tmp_path / "run", adjust_logits=True)
    first = train(config)["single_scale"]
    settings = dataclasses.replace(config.train, adjust_logits=False, steps=steps)
    monkeypatch.setattr(best.Best, "test", lambda *_, **__: None)
    again = train(dataclasses.replace(config, train=settings), resume=True)["single_scale"]
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def break_pixels(image: Path) -> None:
    """Header and end stay as they are, so that only decoding finds it."""
    data = image.read_bytes()
    image.write_bytes(data[:50] + bytes(len(data) - 70) + data[-20:])


def test_a_search_that_fails_restores_the_mode(folder_data):
    dataset = open_dataset(str(folder_data), "val")
    for pair in dataset.pairs:
        break_pixels(pair.image)
    model = tiny_model("naive", num_classes=9).train()
    with pytest.raises(SetrError, match=r"none of the 3 images of split 'val' .*scene_000\.png"):
        find_offsets(model, ModelInfo(labels=scenes.LABELS), dataset)
    assert all(m.training for m in model.modules())


def test_images_that_break_when_decoded_are_left_out(folder_data, tmp_path, capsys):
    """As by an evaluation: the rest of a finished training would be lost with them."""
    model = tiny_model("naive", num_classes=9).eval()
    dataset = open_dataset(str(folder_data), "val")
    others = find_offsets(model, ModelInfo(labels=scenes.LABELS), dataset.part([0, 2]))
    break_pixels(dataset.pairs[1].image)
    found = find_offsets(model, ModelInfo(labels=scenes.LABELS), dataset)
    assert found.any()
    np.testing.assert_array_equal(found, others)
    save_pretrained(tmp_path / "model", model, ModelInfo(labels=scenes.LABELS))
    words = [str(tmp_path / "model"), str(folder_data), "-o", str(tmp_path / "out")]
    assert main(["adjust", *words, "--by", "class", "--workers", "0"]) == FAILED
    out, err = capsys.readouterr()
    assert "written to" in out
    assert "scene_001.png: broken image file" in err
    assert "1 of 3 images failed and are in no figure" in err
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_finished_training_is_adjusted_without_an_image_that_breaks(
    folder_data, tmp_path, monkeypatch
):
    config = tiny_config(tmp_path / "run", adjust_logits=True, steps=1)
    config = config.replace({"data.root": str(folder_data)})
    original = best.Best.adjust

    def adjust(self, pixels):
        break_pixels(self.val.pairs[1].image)
        original(self, pixels)

    monkeypatch.setattr(best.Best, "adjust", adjust)
    figures = train(config)["single_scale"]
    assert (figures["images"], len(figures["failed"])) == (2, 1)


@pytest.mark.parametrize(
    ("blank", "by", "fix"),
    [
        ("val", "iou", "search on another one with --split"),
        ("val", "class", "search on another one with --split"),
        ("train", "iou", "count another one with --train-split, or adjust --by class"),
    ],
)
def test_a_split_without_counted_pixels_is_refused(folder_data, tmp_path, capsys, blank, by, fix):
    for mask in (folder_data / "labels" / blank).iterdir():
        write_bytes(mask, encode_png(np.full((48, 48), 255, np.uint8)))
    model = save_scene_model(tmp_path / "model", "naive")
    words = ["adjust", str(model), str(folder_data), "-o", str(tmp_path / "out"), "--by", by]
    assert main([*words, "--workers", "0"]) == DATA_CHECK_FAILED
    said = capsys.readouterr().err
    assert f"all mask pixels of split '{blank}' of data are ignored" in said
    assert said.endswith(f"{fix}\n")
    assert not (tmp_path / "out").exists()


def test_training_pairs_that_cannot_be_read_are_told(folder_data, tmp_path, capsys):
    (folder_data / "labels" / "train" / "scene_002.png").write_bytes(b"no mask")
    model = save_scene_model(tmp_path / "model", "naive")
    words = ["adjust", str(model), str(folder_data), "-o", str(tmp_path / "out")]
    assert main(words) == DATA_CHECK_FAILED
    assert "1 of 6 pairs of split 'train' are unusable" in capsys.readouterr().err


def test_a_class_without_training_pixels_counts_as_the_rarest():
    scores, truth = pixels()
    counts = np.array([9000, 800, 200, 0])
    as_rarest = best_by_iou(scores, truth, np.array([9000, 800, 200, 200]))
    np.testing.assert_array_equal(best_by_iou(scores, truth, counts), as_rarest)


def test_pixels_are_sampled_at_one_scale_whatever_the_model_is_tested_with(monkeypatch):
    """The offsets belong to logits; scores of several views are logarithms of probabilities."""
    torch.manual_seed(0)
    model, dataset = tiny_model(num_classes=9).eval(), open_dataset("scenes:2", "val")
    monkeypatch.setattr(adjustment, "SAMPLE_BYTES", 4 * 9 * 2 * 50)
    found = []
    for protocol in (Protocol(), Protocol(scales=(0.5, 1.0), flip=True)):
        info = ModelInfo(labels=scenes.LABELS, protocol=protocol)
        found.append(adjustment._sample(model, info, dataset, "fp32", 0))
    np.testing.assert_array_equal(found[0][0], found[1][0])


def test_pixels_are_sampled_block_by_block(monkeypatch):
    """The scores of a whole image are never there, and none is sampled twice."""
    torch.manual_seed(0)
    model, info = tiny_model(num_classes=9), ModelInfo(labels=scenes.LABELS)
    dataset = open_dataset("scenes:2", "val")
    monkeypatch.setattr(adjustment, "SAMPLE_BYTES", 4 * 9 * 2 * 500)
    whole = adjustment._sample(model.eval(), info, dataset, "fp32", 0)
    monkeypatch.setitem(inference.BLOCK_BYTES, "cpu", 1)
    heights = []

    def watched(*arguments, **options):
        for block in score_blocks(*arguments, **options):
            heights.append(block.shape[2])
            yield block

    monkeypatch.setattr(adjustment, "score_blocks", watched)
    parts = adjustment._sample(model, info, dataset, "fp32", 0)
    assert max(heights) == 8
    assert len(parts[1]) == 1000
    assert np.array_equal(parts[1], whole[1])
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-5)
    image, mask = dataset.load(0)
    x = normalize(torch.from_numpy(image)[None], info.mean, info.std)
    with torch.inference_mode():
        scores = model(x)[0].flatten(1).T.numpy()
    for found, number in zip(parts[0][:500:10], parts[1][:500:10], strict=True):
        at = np.abs(scores - found).max(axis=1).argmin()
        assert np.abs(scores[at] - found).max() < 1e-4
        assert mask.flat[at] == number


@pytest.mark.parametrize("rare", [0, 1])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.85])
def test_the_rarer_of_two_classes_wins_from_its_threshold_on(rare, threshold):
    logits = np.random.default_rng(0).normal(0, 2, (2000, 2)).astype(np.float32)
    probability = 1 / (1 + np.exp(logits[:, 1 - rare] - logits[:, rare]))
    pixels = np.array([10, 90] if rare == 0 else [90, 10])
    chosen = (logits + threshold_offsets(threshold, pixels)).argmax(1) == rare
    near = np.abs(probability - threshold) < 1e-5
    np.testing.assert_array_equal(chosen[~near], (probability >= threshold)[~near])


def two_classes(root):
    """A model of two classes and a data set for it, of which the second class is rare."""
    info = ModelInfo(labels=Labels(("good", "scratch")))
    save_pretrained(root / "model", tiny_model("naive", num_classes=2), info)
    for folder in ("images", "labels"):
        (root / "parts" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        mask = np.zeros((48, 48), np.uint8)
        mask[10:14, 5:40] = 1
        picture = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        for folder, pixels in (("images", picture), ("labels", mask)):
            write_bytes(root / "parts" / folder / f"{number}.png", encode_png(pixels))
    write_bytes(root / "parts" / "data.yaml", b"val: images\nclasses: [good, scratch]\n")
    return root / "model", root / "parts"


def test_a_model_with_another_threshold_has_the_figures_that_eval_shows(tmp_path, capsys):
    torch.manual_seed(0)
    model, parts = two_classes(tmp_path)
    before = evaluate(model, parts, workers=0, precision="fp32")
    curve = before["thresholds"]
    place = int(np.argmin(np.abs(np.array(curve["recall"]) - 0.6)))  # not all, not none
    threshold = curve["threshold"][place]
    words = ["adjust", str(model), str(parts), "-o", str(tmp_path / "out"), "--workers", "0"]
    assert main([*words, "--threshold", str(threshold), "--precision", "fp32"]) == OK
    said = capsys.readouterr().out
    assert "scratch" in said
    assert "precision" in said
    card = json.loads((tmp_path / "out" / "config.json").read_text())["metrics"]
    assert card["threshold of scratch"] == threshold
    after = evaluate(tmp_path / "out", parts, workers=0, precision="fp32")
    assert after["accuracy"]["scratch"] == pytest.approx(curve["recall"][place], abs=0.01)
    assert after["precision"]["scratch"] == pytest.approx(curve["precision"][place], abs=0.01)
    assert after["accuracy"]["scratch"] != before["accuracy"]["scratch"]


def test_the_card_names_the_threshold_of_all_adjustments(tmp_path):
    model, parts = two_classes(tmp_path)
    for source, name, threshold in (("model", "one", "0.3"), ("one", "two", "0.7")):
        words = ["adjust", str(tmp_path / source), str(parts), "-o", str(tmp_path / name)]
        assert main([*words, "--threshold", threshold, "--workers", "0"]) == OK
    card = json.loads((tmp_path / "two" / "config.json").read_text())["metrics"]
    assert card["threshold of scratch"] == 0.5
    first, last = (from_pretrained(path)[0].state_dict() for path in (model, tmp_path / "two"))
    assert all(torch.allclose(value, last[name], atol=1e-6) for name, value in first.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "0"], "--threshold 0: give more than 0 and less than 1"),
        (["--threshold", "nan"], "--threshold nan: give more than 0 and less than 1"),
        (["--threshold", "0.3", "--by", "class"], "--by class: does nothing with --threshold"),
        (["--threshold", "0.3"], "threshold 0.3: is for models of two classes, and this one has 9"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(folder_data, tmp_path, capsys, words, message):
    model = save_scene_model(tmp_path / "model", "naive")
    out = tmp_path / "out"
    assert main(["adjust", str(model), str(folder_data), "-o", str(out), *words]) == USAGE
    assert message in capsys.readouterr().err
    assert not out.exists()

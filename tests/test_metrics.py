"""Figures against written-out definitions and the official evaluators."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setr.errors import SetrError
from setr.labels import IGNORE
from setr.metrics import ConfusionMatrix, summarize
from setr.reading.masks import read_mask
from setr.scores import scorecard
from setr.scores.boundary import BoundaryCounts, band, contour, fill_ignored
from setr.scores.calibration import Calibration
from setr.scores.intervals import Bootstrap, image_miou, paired_difference
from setr.scores.regions import RegionCounts
from setr.scores.scorecard import Scorecard
from setr.scores.thresholds import Thresholds

NAMES = ("a", "b", "c", "d", "e")


def random_pair(seed: int, K: int = 5, shape: tuple[int, int] = (40, 56)):
    """Blocky truth with ignored pixels, and a prediction that is mostly right."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, K, (shape[0] // 8, shape[1] // 8), dtype=np.uint8)
    truth = cv2.resize(small, shape[::-1], interpolation=cv2.INTER_NEAREST)
    wrong = rng.random(shape) < 0.2
    prediction = np.where(wrong, rng.integers(0, K, shape), np.roll(truth, 2, axis=1))
    truth = np.where(rng.random(shape) < 0.05, IGNORE, truth)
    return prediction.astype(np.uint8), truth.astype(np.uint8)


def count(prediction: np.ndarray, truth: np.ndarray, K: int = 5) -> ConfusionMatrix:
    matrix = ConfusionMatrix(K)
    matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return matrix


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("K", [1, 5, 150, 255])
def test_counts_equal_a_loop(K, kind):
    rng = np.random.default_rng(K)
    truth = rng.choice([*range(K), IGNORE], 500).astype(np.uint8)
    prediction = rng.integers(0, min(K + 3, 256), 500)
    matrix = ConfusionMatrix(K)
    matrix.update(torch.from_numpy(prediction).to(kind), torch.from_numpy(truth))
    expected = np.zeros((K, K + 1), np.int64)
    for t, p in zip(truth, prediction, strict=True):
        if t != IGNORE:
            expected[t, min(p, K)] += 1
    assert np.array_equal(matrix.matrix, expected)


def test_negative_predictions_are_foreign():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([-1, 0, 1]), torch.tensor([0, 0, 1], dtype=torch.uint8))
    assert matrix.matrix.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_figures_by_hand():
    truth = np.array([[0, 0, 0, 1, 1, IGNORE]], np.uint8)
    prediction = np.array([[0, 0, 2, 1, 7, 0]], np.uint8)
    figures = count(prediction, truth, K=4).summary(NAMES[:4])
    assert figures["iou"] == {"a": 2 / 3, "b": 1 / 2, "c": 0.0, "d": None}
    assert figures["accuracy"] == {"a": 2 / 3, "b": 1 / 2, "c": None, "d": None}
    assert figures["miou"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert figures["pixel_accuracy"] == pytest.approx(3 / 5)
    assert figures["mean_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert figures["frequency_weighted_iou"] == pytest.approx(0.6 * 2 / 3 + 0.4 * 1 / 2)
    zero = count(prediction, truth, K=4).summary(NAMES[:4], absent="zero")
    assert zero["miou"] == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert zero["mean_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert figures["mean_dice"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert zero["mean_dice"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 4)
    assert (figures["absent"], zero["absent"]) == ("skip", "zero")


def test_dice_and_precision_are_f1_and_precision_of_each_class():
    prediction, truth = random_pair(3)
    figures = count(prediction, truth).summary(NAMES)
    kept = truth != IGNORE
    for k, name in enumerate(NAMES):
        said, is_so = prediction[kept] == k, truth[kept] == k
        precision = (said & is_so).sum() / said.sum()
        recall = (said & is_so).sum() / is_so.sum()
        assert figures["precision"][name] == pytest.approx(precision)
        assert figures["accuracy"][name] == pytest.approx(recall)
        assert figures["dice"][name] == pytest.approx(2 / (1 / precision + 1 / recall))
    assert figures["mean_dice"] == pytest.approx(np.mean(list(figures["dice"].values())))


def test_a_class_without_predictions_has_no_precision_and_no_dice_if_it_is_absent_too():
    truth = np.array([0, 0, 1, 1], np.uint8)
    figures = count(np.zeros(4, np.uint8), truth, K=3).summary(("a", "b", "c"))
    assert figures["precision"] == {"a": 0.5, "b": None, "c": None}
    assert figures["dice"] == {"a": pytest.approx(2 / 3), "b": 0.0, "c": None}
    assert figures["mean_dice"] == pytest.approx(1 / 3)


def test_nothing_counted_has_no_figures():
    figures = count(np.zeros((2, 2), np.uint8), np.full((2, 2), IGNORE, np.uint8)).summary(NAMES)
    assert figures["miou"] is None
    assert figures["pixel_accuracy"] is None


def test_sizes_must_agree():
    with pytest.raises(SetrError, match="differ in size"):
        ConfusionMatrix(2).update(torch.zeros(3, 4), torch.zeros(4, 3))


def test_camvid_case_equals_the_referees(shared):
    """Figures of the official tools, `metric_cases/README.md`."""
    folder = shared / "data" / "metric_cases" / "camvid"
    matrix = ConfusionMatrix(11)
    for path in sorted((folder / "gt").iterdir()):
        truth = read_mask(path).astype(np.uint8)
        truth[truth == 11] = IGNORE
        prediction = read_mask(folder / "pred" / path.name).astype(np.uint8)
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    figures = matrix.summary(tuple(map(str, range(11))))
    assert figures["miou"] == pytest.approx(0.67086744, abs=1e-8)
    assert figures["pixel_accuracy"] == pytest.approx(0.91448798, abs=1e-8)
    assert figures["mean_accuracy"] == pytest.approx(0.76721613, abs=1e-8)
    assert figures["frequency_weighted_iou"] == pytest.approx(0.84817014, abs=1e-8)
    expected = [0.86684, 0.866343, 0.131204, 0.899786, 0.7823, 0.887787, 0.482612, 0.710208,
                0.748457, 0.418642, 0.585361]  # fmt: skip
    assert list(figures["iou"].values()) == pytest.approx(expected, abs=1e-6)


def slow_band(mask: np.ndarray, width: int) -> np.ndarray:
    """The reference definition: erosion by `width` steps, the outside being background."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (eroded == 0)


@pytest.mark.parametrize("width", [1, 3, 30])
@pytest.mark.parametrize("seed", range(3))
def test_bands_equal_erosion_class_by_class(seed, width):
    ids, _ = random_pair(seed)
    expected = np.zeros(ids.shape, bool)
    for c in range(5):
        expected |= slow_band(ids == c, width)
    assert np.array_equal(band(ids, width), expected)


@pytest.mark.parametrize("shape", [(40, 56), (80, 112)])  # bands of 1.4 and 2.8 pixels, rounded
def test_boundary_iou_equals_its_definition(shape):
    counts = BoundaryCounts(5)
    hits, union = np.zeros(5), np.zeros(5)
    for seed in range(3):
        prediction, truth = random_pair(seed, shape=shape)
        truth = np.where(truth == IGNORE, 0, truth)
        counts.update(prediction, truth)
        width = round(0.02 * float(np.hypot(*truth.shape)))
        for c in range(5):
            t, p = slow_band(truth == c, width), slow_band(prediction == c, width)
            hits[c] += (t & p).sum()
            union[c] += (t | p).sum()
    figures = counts.summary(NAMES)
    assert list(figures["iou_by_class"].values()) == pytest.approx(hits / union)
    assert figures["iou"] == pytest.approx((hits / union).mean())


@pytest.mark.parametrize("shape", [(40, 56), (160, 224)])  # matched within 1 and 2.06 pixels
def test_boundary_f_by_brute_force(shape):
    prediction, truth = random_pair(5, shape=shape)
    truth = np.where(truth == IGNORE, 0, truth).astype(np.uint8)
    counts = BoundaryCounts(5)
    counts.update(prediction, truth)
    tolerance = max(1.0, 0.0075 * float(np.hypot(*truth.shape)))
    expected = []
    for c in range(5):
        t = np.argwhere(contour(truth) & (truth == c)).astype(np.int32)
        p = np.argwhere(contour(prediction) & (prediction == c)).astype(np.int32)
        down, right = (t[:, None, axis] - p[None, :, axis] for axis in (0, 1))
        near = down * down + right * right <= tolerance**2
        recall, precision = near.any(axis=1).mean(), near.any(axis=0).mean()
        expected.append(2 * precision * recall / (precision + recall))
    assert list(counts.summary(NAMES)["f_by_class"].values()) == pytest.approx(expected)


def test_boundary_of_a_perfect_and_a_hopeless_prediction():
    _, truth = random_pair(1)
    perfect, hopeless = BoundaryCounts(5), BoundaryCounts(5)
    perfect.update(np.where(truth == IGNORE, 3, truth).astype(np.uint8), truth)
    assert perfect.summary(NAMES)["iou"] == 1.0
    clean = np.zeros((40, 40), np.uint8)
    clean[10:20, 10:20] = 1
    hopeless.update(np.zeros_like(clean), clean)
    figures = hopeless.summary(NAMES)
    assert figures["iou_by_class"]["b"] == 0.0
    assert figures["f_by_class"] == {"a": 0.0, "b": 0.0, "c": None, "d": None, "e": None}
    invented = BoundaryCounts(5)
    invented.update(clean, np.zeros_like(clean))
    assert invented.summary(NAMES)["f_by_class"]["b"] == 0.0


def test_a_straight_contour_one_pixel_off_matches():
    truth = np.zeros((40, 40), np.uint8)
    truth[:, 20:] = 1
    counts = BoundaryCounts(2)
    counts.update(np.roll(truth, 1, axis=1)[:, 1:], truth[:, 1:])
    assert counts.summary(("a", "b"))["f"] == 1.0


def test_an_ignored_line_between_classes_keeps_its_contour():
    """As in VOC, where a line along every boundary is ignored."""
    truth = np.zeros((100, 200), np.uint8)
    truth[:, 100:] = 1
    prediction = truth.copy()
    truth[:, 99:102] = IGNORE
    counts = BoundaryCounts(2)
    counts.update(prediction, truth)
    assert counts.summary(("a", "b"))["f"] == 1.0
    filled = fill_ignored(truth, 2)
    assert not (filled == IGNORE).any()
    wide = np.where((np.arange(200) > 60) & (np.arange(200) < 140), IGNORE, truth)
    assert (fill_ignored(wide.astype(np.uint8), 2)[:, 64:136] == IGNORE).all()


def test_contours_inside_a_wide_ignored_region_are_not_wrong():
    truth = np.zeros((100, 200), np.uint8)
    truth[:, 100:] = 1
    truth[:, 20:70] = IGNORE
    prediction = np.where(truth == IGNORE, 0, truth).astype(np.uint8)
    prediction[30:60, 30:60] = 1  # where nobody knows
    counts = BoundaryCounts(2)
    counts.update(prediction, truth)
    assert counts.summary(("a", "b"))["f"] == 1.0
    prediction[truth == IGNORE] = 2  # a foreign id, as in scored files that keep void
    counts.update(prediction, truth)
    assert counts.summary(("a", "b"))["f"] == 1.0


def test_calibration_equals_its_definition():
    rng = np.random.default_rng(0)
    confidence = torch.from_numpy(rng.random(5000).astype(np.float32))
    correct = torch.from_numpy(rng.random(5000)) < confidence**2
    counts = Calibration(bins=10)
    for part in (slice(0, 1000), slice(1000, 5000)):
        counts.update(confidence[part], correct[part])
    figures = counts.summary()
    expected, edges = 0.0, np.linspace(0, 1, 11)
    for low, high in pairwise(edges):
        inside = (confidence.numpy() >= low) & (confidence.numpy() < high)
        gap = correct.numpy()[inside].mean() - confidence.numpy()[inside].mean()
        expected += abs(gap) * inside.sum() / 5000
    assert figures["ece"] == pytest.approx(expected, abs=1e-6)
    assert sum(figures["pixels"]) == 5000


def test_calibration_of_a_perfectly_sure_and_right_model():
    counts = Calibration()
    counts.update(torch.ones(10), torch.ones(10, dtype=torch.bool))
    assert counts.summary()["ece"] == 0.0
    assert Calibration().summary()["ece"] is None


def test_recall_by_size_by_hand():
    truth = np.zeros((300, 300), np.uint8)
    truth[10:20, 10:20] = 1  # 100 px, found
    truth[10:20, 40:50] = 1  # 100 px, missed
    truth[100:150, 100:150] = 1  # 2500 px, 60 % right
    prediction = np.zeros_like(truth)
    prediction[10:20, 10:20] = 1
    prediction[100:150, 100:130] = 1
    recall = RegionCounts(2)
    recall.update(prediction, truth)
    figures = recall.summary()
    assert figures["small"] == {"regions": 2, "found": 0.5, "recall": 0.5}
    assert figures["medium"] == {"regions": 1, "found": 1.0, "recall": 0.6}
    assert figures["large"]["regions"] == 1  # the background


def test_regions_of_truth_and_prediction_by_hand():
    truth = np.zeros((60, 60), np.uint8)
    truth[5:10, 5:15] = 1  # found
    truth[20:25, 5:15] = 1  # touched, not found
    truth[40:45, 5:15] = 1  # missed
    truth[50:60, 30:60] = IGNORE
    prediction = np.zeros_like(truth)
    prediction[5:10, 5:12] = 1  # right
    prediction[20:22, 5:40] = 1  # touching, not right
    prediction[30:32, 30:32] = 1  # a false alarm
    prediction[55:57, 40:42] = 1  # where nothing is labelled
    prediction[49:55, 50:52] = 1  # mostly ignored: judged by its two labelled pixels
    counts = RegionCounts(2)
    counts.update(prediction, truth)
    assert counts.by_class(("ok", "scratch"))["scratch"] == {
        "regions": 3,
        "found": 1 / 3,
        "touched": 2 / 3,
        "predicted": 4,
        "right": 1 / 4,
        "touching": 2 / 4,
    }
    empty = RegionCounts(2)
    empty.update(np.zeros((4, 4), np.uint8), np.full((4, 4), IGNORE, np.uint8))
    assert empty.by_class(("ok", "scratch"))["ok"]["predicted"] == 0


@pytest.mark.parametrize("rare", [0, 1])
def test_thresholds_are_those_of_a_search_by_hand(rare):
    rng = np.random.default_rng(rare)
    truth = np.where(rng.random(4000) < 0.1, rare, 1 - rare)
    own = np.clip(np.where(truth == rare, 0.55, 0.2) + rng.normal(0, 0.2, 4000), 0.001, 0.999)
    own = (np.floor(own * 500) + 0.5) / 500  # away from the thresholds
    second = own if rare == 1 else 1 - own
    prediction = (second > 0.5).astype(np.int64)
    sure = np.maximum(second, 1 - second).astype(np.float32)
    counts = Thresholds()
    for part in np.array_split(np.arange(4000), 3):
        counts.update(*(torch.from_numpy(a[part]) for a in (prediction, truth, sure)))
    found = counts.summary(("a", "b"))
    assert found
    assert found["class"] == "ab"[rare]
    dice = []
    for i, threshold in enumerate(found["threshold"]):
        taken, real = own >= threshold, truth == rare
        hits = (taken & real).sum()
        assert found["recall"][i] == pytest.approx(hits / real.sum())
        if taken.any():
            assert found["precision"][i] == pytest.approx(hits / taken.sum())
        dice.append(2 * hits / (taken.sum() + real.sum()))
    assert found["dice"] == pytest.approx(dice)
    assert found["best"]["dice"] == pytest.approx(max(dice))
    order = np.sort(np.unique(own))[::-1]
    precision = [(truth[own >= t] == rare).mean() for t in order]
    recall = [(truth[own >= t] == rare).sum() / (truth == rare).sum() for t in order]
    exact = np.sum(np.diff([0, *recall]) * precision)
    assert found["average_precision"] == pytest.approx(exact, abs=1e-3)
    assert Thresholds().summary(("a", "b")) is None


@pytest.mark.parametrize("rare", [0, 1])
def test_average_precision_tells_confident_pixels_apart(rare):
    """Also where most probabilities differ from 0 or 1 by less than any threshold."""
    rng = np.random.default_rng(5)
    own = rng.random(3000) < 0.1
    odds = torch.from_numpy(np.where(own, 7, 5) + rng.normal(0, 1.5, 3000)).float()
    second = torch.sigmoid(odds if rare else -odds)
    prediction = (second > 0.5).long()
    counts = Thresholds()
    truth = torch.from_numpy(np.where(own, rare, 1 - rare))
    counts.update(prediction, truth, second.where(prediction == 1, 1 - second))
    found = counts.summary(("a", "b"))
    hits = own[torch.argsort(odds, descending=True).numpy()].cumsum()
    precision = hits / np.arange(1, 3001)
    exact = (np.diff(hits, prepend=0) * precision).sum() / own.sum()
    assert found
    assert found["average_precision"] == pytest.approx(exact, abs=1e-3)


def test_kappa_is_agreement_beyond_chance():
    truth = torch.tensor([0] * 20 + [0] * 5 + [1] * 10 + [1] * 15)
    prediction = torch.tensor([0] * 20 + [1] * 5 + [0] * 10 + [1] * 15)
    counts = ConfusionMatrix(2)
    counts.update(prediction, truth)
    assert counts.summary(("a", "b"))["kappa"] == pytest.approx(0.4)  # Cohen's own way, by hand
    alone = ConfusionMatrix(2)
    alone.update(torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))
    assert alone.summary(("a", "b"))["kappa"] is None


def test_bootstrap_is_streaming_resampling():
    """Replicate r equals the figures of the set with its images repeated by their weights."""
    matrices = [count(*random_pair(seed)).matrix for seed in range(12)]
    bootstrap = Bootstrap(5, replicates=20, seed=3)
    for index in np.random.default_rng(0).permutation(12):  # any order
        bootstrap.update(int(index), matrices[index])
    weights = np.stack([np.random.default_rng((3, i)).poisson(1.0, 20) for i in range(12)])
    mious = []
    for r in range(20):
        repeated = sum(w * m for w, m in zip(weights[:, r], matrices, strict=True))
        mious.append(summarize(repeated, NAMES)["miou"])
    low, high = np.quantile(mious, [0.025, 0.975])
    assert bootstrap.summary()["miou"] == pytest.approx([low, high])


def test_the_interval_counts_absent_classes_as_the_figure_does():
    card = Scorecard(("a", "b", "c", "d"), absent="zero")
    for index in range(8):
        ids = torch.tensor([[0, 1]], dtype=torch.uint8)
        card.update(index, ids, ids)
    figures = card.summary()
    assert figures["miou"] == 0.5
    assert figures["intervals"]["miou"] == [0.5, 0.5]
    assert figures["intervals"]["image_miou"] == [1.0, 1.0]


def test_bootstrap_interval_is_as_wide_as_theory_says():
    """Accuracy per image varies independently: the interval is near mean ± 1.96 errors."""
    rng = np.random.default_rng(0)
    bootstrap = Bootstrap(2)
    hits = rng.integers(300, 900, 200)
    for i, hit in enumerate(hits):
        bootstrap.update(i, np.array([[hit, 1000 - hit, 0], [0, 0, 0]]))
    low, high = bootstrap.summary()["pixel_accuracy"]
    error = 1.96 * hits.std() / 1000 / np.sqrt(200)
    assert low == pytest.approx(hits.mean() / 1000 - error, abs=0.15 * error)
    assert high == pytest.approx(hits.mean() / 1000 + error, abs=0.15 * error)


def test_image_miou_counts_the_classes_of_the_image():
    assert image_miou(count(np.array([[0, 0, 1]]), np.array([[0, 0, 0]])).matrix) == 1 / 3
    assert image_miou(np.zeros((5, 6), np.int64)) is None


def test_threads_count_what_one_after_the_other_counts(monkeypatch):
    """However many images wait, and in other threads than the model's."""
    pairs = [random_pair(seed) for seed in range(12)]
    boundary, regions = BoundaryCounts(5), RegionCounts(5)
    for prediction, truth in pairs:
        boundary.update(prediction, truth)
        regions.update(prediction, truth)
    seen, real = set(), scorecard._boundary_and_regions

    def watched(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        seen.add(threading.current_thread())
        return real(*arguments)

    monkeypatch.setattr(scorecard, "_boundary_and_regions", watched)
    for ahead in (0, 2 * pairs[0][1].size, scorecard.AHEAD_PIXELS):
        monkeypatch.setattr(scorecard, "AHEAD_PIXELS", ahead)
        card = Scorecard(NAMES)
        for index, (prediction, truth) in enumerate(pairs):
            card.update(index, torch.from_numpy(prediction), torch.from_numpy(truth))
            assert sum(pixels for pixels, _ in card._pending) <= ahead
        assert np.array_equal(card.boundary.counts, boundary.counts)
        assert np.array_equal(card.regions.counts, regions.counts)
    assert threading.main_thread() not in seen
    assert boundary.counts.sum() > 0


def test_what_fails_in_a_thread_fails_the_test(monkeypatch):
    monkeypatch.setattr(scorecard, "_boundary_and_regions", lambda *_: 1 / 0)
    card = Scorecard(NAMES)
    card.update(0, *map(torch.from_numpy, random_pair(0)))
    with pytest.raises(ZeroDivisionError):
        card.summary()


def test_paired_difference():
    rng = np.random.default_rng(1)
    base = rng.random(60)
    same = paired_difference(base, base)
    assert same["p"] == 1.0
    assert same["difference"] == 0.0
    better = paired_difference(base + 0.05 + 0.02 * rng.standard_normal(60), base)
    assert better["p"] < 0.001
    assert better["interval"][0] < 0.05 < better["interval"][1]
    noise = paired_difference(base + 0.05 * rng.standard_normal(60), base)
    assert noise["p"] > 0.01
    with pytest.raises(SetrError, match="no image"):
        paired_difference(np.array([]), np.array([]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=5), st.integers(0, 4))
def test_any_order_and_split_gives_the_same_bits(seeds, cut):
    def card(order: list[tuple[int, int]]) -> Scorecard:
        result = Scorecard(NAMES)
        for index, seed in order:
            prediction, truth = map(torch.from_numpy, random_pair(seed))
            confidence = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed))
            result.update(index, prediction, truth, confidence)
        return result

    numbered = list(enumerate(seeds))
    whole = card(numbered)
    first, second = card(numbered[cut:][::-1]), card(numbered[:cut])
    first.confusion.counts += second.confusion.counts
    first.calibration.counts += second.calibration.counts
    first.totals += second.totals
    first.boundary.counts += second.boundary.counts
    first.regions.counts += second.regions.counts
    first.regions.matches += second.regions.matches
    first.bootstrap.counts += second.bootstrap.counts
    first.bootstrap.images += second.bootstrap.images
    assert first.summary() == whole.summary()


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_what_is_compared_stays_as_it_is(kind):
    truth = torch.tensor([0, 1, IGNORE]).to(kind)
    prediction = torch.tensor([0, 2, 7]).to(kind)
    matrix = ConfusionMatrix(3)
    for _ in range(2):
        matrix.update(prediction, truth)
    assert truth.tolist() == [0, 1, IGNORE]
    assert prediction.tolist() == [0, 2, 7]
    assert matrix.matrix.tolist() == [[2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("K", [0, 256])
def test_ids_are_8_bit(K):
    with pytest.raises(SetrError, match=f"num_classes {K}: ids are 8-bit; give 1 to 255"):
        ConfusionMatrix(K)


def test_ignored_pixels_make_no_band():
    ids = np.zeros((60, 60), np.uint8)
    expected = band(ids, 2)
    ids[28:32, 28:32] = IGNORE  # far from the image's edge
    assert np.array_equal(band(ids, 2), expected)
    ids[28:32, 32] = 1  # and they hide none
    assert band(ids, 2)[28:32, 33].all()


def test_calibration_by_bin_and_of_a_test():
    """90 % sure and always right, 60 % sure and never."""
    counts = Calibration(bins=10)
    counts.update(torch.tensor([0.92, 0.94, 0.64]), torch.tensor([True, True, False]))
    figures = counts.summary()
    assert (figures["accuracy"][9], figures["accuracy"][6]) == (1.0, 0.0)
    assert figures["confidence"][9] == pytest.approx(0.93, abs=1e-6)
    assert figures["confidence"][6] == pytest.approx(0.64, abs=1e-6)
    truth = torch.tensor([[0, 0, IGNORE]], dtype=torch.uint8)
    card = Scorecard(NAMES)
    card.update(0, torch.zeros_like(truth), truth, torch.tensor([[0.75, 1.0, 0.5]]))
    assert card.summary()["calibration"]["ece"] == pytest.approx(0.125)


def test_edges_of_regions_sizes_and_what_is_found():
    truth = np.zeros((100, 100), np.uint8)
    truth[:32, :32] = 1  # 1024 px: no longer small
    truth[50, 50] = truth[51, 51] = 2  # joined by a corner: one region
    prediction = np.zeros_like(truth)
    prediction[:16, :32] = 1  # exactly half of it
    recall = RegionCounts(3)
    recall.update(prediction, truth)
    figures = recall.summary()
    assert figures["small"] == {"regions": 1, "found": 0.0, "recall": 0.0}
    assert figures["medium"]["regions"] == 2  # and the background, 8974 px
    assert figures["medium"]["found"] == 1.0


def test_paired_p_is_two_sided_and_ties_are_not_better():
    """Four images that all lose: 2 of the 16 patterns of signs are as extreme."""
    worse = paired_difference(np.zeros(4), np.ones(4))
    assert worse["p"] == pytest.approx(2 / 16, abs=0.015)
    assert worse["difference"] == -1.0
    better = paired_difference(np.ones(4), np.zeros(4))
    assert better["p"] == pytest.approx(2 / 16, abs=0.015)
    mixed = paired_difference(np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0]))
    assert mixed["better"] == 0.25
    low, high = mixed["interval"]  # draws of 1, 0, 0 and -1 lie evenly around 0
    assert low == pytest.approx(-high, abs=0.01)
    assert low < -0.5


def test_a_test_resamples_its_images_and_skips_those_without_truth():
    card, bootstrap, mious = Scorecard(NAMES), Bootstrap(5), []
    for index in range(6):
        prediction, truth = random_pair(index)
        if index == 3:
            truth = np.full_like(truth, IGNORE)
        matrix = count(prediction, truth).matrix
        bootstrap.update(index, matrix)
        mious.append(image_miou(matrix))
        card.update(index, torch.from_numpy(prediction), torch.from_numpy(truth))
    figures = card.summary()
    assert figures["images"] == 6
    assert figures["intervals"] == bootstrap.summary()
    low, high = figures["intervals"]["miou"]
    assert high - low > 1e-3
    counted = [m for m in mious if m is not None]
    assert len(counted) == 5
    assert figures["image_miou"] == pytest.approx(np.mean(counted), abs=1e-6)
    weights = np.stack([np.random.default_rng((0, i)).poisson(1.0, 1000) for i in range(6)])[
        [0, 1, 2, 4, 5]
    ]
    total = weights.sum(axis=0)
    means = (weights * np.array(counted)[:, None]).sum(axis=0)[total > 0] / total[total > 0]
    expected = np.quantile(means, [0.025, 0.975])
    assert figures["intervals"]["image_miou"] == pytest.approx(expected, abs=1e-6)


def test_one_image_has_no_interval():
    """Its replicates are all equal, which would say that the figure is certain."""
    card, ignored = Scorecard(NAMES), np.full((4, 4), IGNORE, np.uint8)
    card.update(0, *map(torch.from_numpy, random_pair(0)))
    card.update(1, *map(torch.from_numpy, (ignored, ignored)))
    figures = card.summary()
    assert 0 < figures["miou"] < 1
    assert [figures["intervals"][key] for key in ("miou", "pixel_accuracy", "image_miou")] == [
        None,
        None,
        None,
    ]
    card.update(2, *map(torch.from_numpy, random_pair(1)))
    low, high = card.summary()["intervals"]["miou"]
    assert low < high
    alone = paired_difference(np.array([0.5]), np.array([0.25]))
    assert (alone["difference"], alone["interval"], alone["p"]) == (0.25, None, 1.0)


def test_pixels_counted_in_parts_are_counted_once(monkeypatch):
    confidence = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    correct = confidence > 0.4
    whole, parts = Calibration(), Calibration()
    whole.update(confidence, correct)
    monkeypatch.setattr("setr.scores.calibration.PIXELS", 300)
    parts.update(confidence, correct)
    parts.update(confidence[:0], correct[:0])
    assert parts.summary() == whole.summary()

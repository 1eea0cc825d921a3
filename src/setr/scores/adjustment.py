"""Logit adjustment: constants on the class logits that raise mIoU, found on a validation split.

A pixel gets its most probable class, which maximises pixel accuracy. mIoU counts every class the
same, so a rare class should win below one half; class weights in the loss push the other way, and
too far where the truth is thin. Constants added to the class logits correct both. They commute with
the bilinear resize (its weights sum to 1), so they live in the classifier's bias and cost nothing.

Two ways. By IoU, from two rules with one number to search for. A multiple of the log of a class's
share of the training pixels takes back what class weights added, or adds what is missing (Menon et
al., Long-tail learning via logit adjustment, ICLR 2021). And a class that is hard to find wins at a
lower probability: giving it one more pixel of probability p changes its IoU by (p(1 + IoU) - IoU)
over its union, so against a class so large that a pixel changes nothing, the odds to reach are IoU
to 1, and minus log IoU is what its logit lacks (on such decisions: Nowozin, Optimal decisions from
probabilistic models: the intersection-over-union case, CVPR 2014). By class: every constant is
searched alone, one class at a time, the best threshold exactly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from setr.arguments.choices import Precision
from setr.data.dataset import Dataset
from setr.data.loader import whole_images
from setr.evaluation import require_fit, testing
from setr.inference import NormalizedImages, predict_scores
from setr.layers.precision import autocast_dtype
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.processes.progress import Progress

ADJUSTED = "logits adjusted on"
"""Key of a model card's figures that names the split."""
SAMPLE_BYTES = 2**27
"""Scores kept of the whole split."""
GRID = np.linspace(-4, 4, 161, dtype=np.float32)
"""Constants tried, in logits."""
MULTIPLES = np.linspace(-1.5, 1.5, 31)
"""Multiples of log share tried; class weights of 1/share^a in the loss ask for about a."""
LOWEST = 0.05
"""IoU below which a class is helped no further: -log is 3 logits there."""


def find_offsets(
    model: SETR,
    info: ModelInfo,
    dataset: Dataset,
    *,
    pixels: np.ndarray | None = None,
    precision: Precision = "auto",
    workers: int = 0,
) -> np.ndarray:
    """Search the constants on a split.

    Args:
        model: stays as it is.
        info: its protocol is used, single-scale.
        dataset: a split with counted pixels; the model must not have been trained on it.
        pixels: (K,) counts of the classes in the training split, to adjust by IoU; None searches
            every class.
        precision: as in `evaluate_split`.
        workers: processes that decode images.

    Returns:
        (K,) what to add to each class's logit, for `shift_logits`.

    Raises:
        SetrError: no images, or other classes than the model's.
    """
    require_fit(model, info, dataset)
    scores, truth = _sample(model, info, dataset, precision, workers)
    return best_offsets(scores, truth) if pixels is None else best_by_iou(scores, truth, pixels)


def shift_logits(model: SETR, offsets: np.ndarray) -> None:
    """Add constants (K,) to the logits of a model for good: they become part of its bias."""
    bias = model.decoder.classifier.bias
    with torch.no_grad():
        bias += torch.from_numpy(offsets).to(bias)


def best_by_iou(
    scores: np.ndarray, truth: np.ndarray, pixels: np.ndarray, *, rounds: int = 5
) -> np.ndarray:
    """Constants (K,) by the first way: `multiple * log share - log IoU`, the best multiple.

    IoU is that of the decision itself, so the two are found in turns, from `IoU = 1` on. The result
    is never worse on these pixels than zeros, or than a multiple of the log shares alone.

    Args:
        scores: (n, K) logits or log-probabilities of pixels.
        truth: (n,) class ids, 0 to K - 1.
        pixels: (K,) counts in the training split; a class without any counts as the rarest.
        rounds: how often the multiple is searched.
    """
    counts = np.maximum(pixels, min(pixels[pixels > 0], default=1))
    share = np.log(counts / counts.sum())
    share -= share.mean()
    true = np.bincount(truth, minlength=scores.shape[1])

    def iou(offsets: np.ndarray) -> np.ndarray:
        found = (scores + offsets.astype(np.float32)).argmax(axis=1)
        return _iou(_counts(found, truth, scores.shape[1]), true)[0]

    hard = np.zeros(len(share))
    best, best_miou = hard, np.nanmean(iou(hard))
    for _ in range(rounds):
        tried = {multiple: iou(multiple * share + hard) for multiple in sorted(MULTIPLES, key=abs)}
        multiple, reached = max(tried.items(), key=lambda one: np.nanmean(one[1]))
        if np.nanmean(reached) > best_miou:
            best, best_miou = multiple * share + hard, np.nanmean(reached)
        lacks = -np.log(np.maximum(np.nan_to_num(reached, nan=1.0), LOWEST))
        hard = (hard + lacks) / 2
    return (best - best.mean()).astype(np.float32)


def best_offsets(scores: np.ndarray, truth: np.ndarray, *, rounds: int = 4) -> np.ndarray:
    """Constants (K,) that maximise the mIoU of `argmax(scores + constants)`.

    Coordinate ascent: for one class at a time every threshold of the grid is scored from one
    histogram. The result is never worse on these pixels than zeros.

    Args:
        scores: (n, K) logits or log-probabilities of pixels.
        truth: (n,) class ids, 0 to K - 1.
        rounds: passes over the classes; it stops early when one changes nothing.
    """
    K = scores.shape[1]
    offsets = np.zeros(K, np.float32)
    best = _miou(_counts(scores.argmax(axis=1), truth, K), np.bincount(truth, minlength=K))[0]
    for _ in range(rounds):
        before = best
        for k in range(K):
            values = _thresholds(scores + offsets, truth, k)
            at = int(np.argmax(values))
            if values[at] > best + 1e-7:
                best = float(values[at])
                offsets[k] += GRID[at]
        if best == before:
            break
    return offsets - offsets.mean()


def _thresholds(scores: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """MIoU for every constant of the grid added to class k alone."""
    K, G = scores.shape[1], len(GRID)
    others = scores.copy()
    others[:, k] = -np.inf
    other = others.argmax(axis=1)
    margin = np.take_along_axis(others, other[:, None], axis=1)[:, 0] - scores[:, k]
    first = np.searchsorted(GRID, margin, side="right")  # from this constant on, k wins

    def wins(chosen: np.ndarray) -> np.ndarray:  # pixels that k has won at each constant
        return np.cumsum(np.bincount(first[chosen], minlength=G + 1)[:G])

    def keeps(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:  # (G, K) left to the others
        table = np.bincount(first[chosen] * K + values[chosen], minlength=(G + 1) * K)
        table = table.reshape(G + 1, K)
        return table[::-1].cumsum(axis=0)[::-1][1:]

    everywhere = np.ones(len(truth), bool)
    predicted, hits = keeps(other, everywhere), keeps(other, other == truth)
    predicted[:, k], hits[:, k] = wins(everywhere), wins(truth == k)
    return _miou((hits, predicted), np.bincount(truth, minlength=K))


def _counts(prediction: np.ndarray, truth: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray]:
    hits = np.bincount(truth[prediction == truth], minlength=K)
    return hits[None], np.bincount(prediction, minlength=K)[None]


def _miou(counts: tuple[np.ndarray, np.ndarray], true: np.ndarray) -> np.ndarray:
    """Mean over the classes in the truth: hits and predicted (G, K), true (K,) -> (G,)."""
    found: np.ndarray = np.nanmean(_iou(counts, true), axis=1)
    return found


def _iou(counts: tuple[np.ndarray, np.ndarray], true: np.ndarray) -> np.ndarray:
    """Hits and predicted (G, K), true (K,) -> (G, K); nan for classes not in the truth."""
    hits, predicted = counts
    union = predicted + true - hits
    found: np.ndarray = np.where(true > 0, hits / np.maximum(union, 1), np.nan)
    return found


def _sample(
    model: SETR, info: ModelInfo, dataset: Dataset, precision: Precision, workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, K) and truth (n,) of pixels drawn evenly from all images of a split."""
    device = next(model.parameters()).device
    dtype = autocast_dtype(precision, device)
    protocol = replace(info.protocol, scales=(1.0,), flip=False)
    per_image = max(1, SAMPLE_BYTES // (4 * model.num_classes * len(dataset)))
    scores, truth = [], []
    with testing(model, dtype), Progress("adjust", len(dataset)) as progress:
        for index, sample in enumerate(whole_images(dataset, workers, range(len(dataset)))):
            if isinstance(sample, Exception):
                raise sample
            images, masks = sample
            x = NormalizedImages(images.to(device), info.mean, info.std)
            size = (masks.shape[-2], masks.shape[-1])
            logits: Tensor = predict_scores(model, x, protocol, size=size)[0].flatten(1)
            ids = masks.flatten().numpy()
            counted = np.flatnonzero(ids < model.num_classes)
            rng = np.random.default_rng(index)
            chosen = rng.choice(counted, min(per_image, len(counted)), replace=False)
            scores.append(logits[:, torch.from_numpy(chosen).to(device)].T.float().cpu().numpy())
            truth.append(ids[chosen].astype(np.int64))
            progress.update(index + 1, images=1)
    return np.concatenate(scores), np.concatenate(truth)

"""Logit adjustment: offsets on the class logits that raise mIoU, fitted on a validation split.

Predicting the most probable class maximises pixel accuracy. mIoU counts every class the same, so a
rare class should win below a probability of one half; class weights in the loss have this effect,
but too much of it where data are few. Offsets on the class logits correct both. They commute with
the bilinear resize (its weights sum to 1), so they are added to the last layer's bias at no cost.

There are two methods. By IoU, with a single parameter to search for, the offset is the sum of two
terms. A multiple of the log of a class's share of the training pixels undoes or completes the
effect of class weights (Menon et al., Long-tail learning via logit adjustment, ICLR 2021). Minus
log IoU lets a class that is hard to find win at a lower probability: one more pixel of probability
p changes a class's IoU by (p(1 + IoU) - IoU) / union, so against a class so large that a pixel does
not matter, it should be predicted from odds of IoU to 1 on (see Nowozin, Optimal decisions from
probabilistic models: the intersection-over-union case, CVPR 2014). By class: coordinate ascent over
the offsets, with an exact search for the best value of one class at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setr.arguments.choices import Precision
from setr.data.dataset import Dataset
from setr.data.loader import whole_images
from setr.errors import SetrError, UsageError
from setr.evaluation import computed_in, none_tested, testing
from setr.fitting import require_fit
from setr.inference import NormalizedImages, score_blocks
from setr.layers.mask_classifier import MaskClassifier
from setr.layers.mask_transformer import MaskTransformer
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.processes.progress import Progress
from setr.scores.scored_images import fitting

ADJUSTED = "logits adjusted on"
"""Key in a model card's metrics under which the split is named."""
SAMPLE_BYTES = 2**27
"""Memory for the scores sampled from the whole split."""
GRID = np.linspace(-4, 4, 161, dtype=np.float32)
"""Offsets tried, in logits."""
MULTIPLES = np.linspace(-1.5, 1.5, 31)
"""Multiples of log share tried; after training with weights 1/share^a the best is about a."""
LOWEST = 0.05
"""Lower bound on the IoU in -log IoU, which is then at most 3 logits."""


def find_offsets(
    model: SETR,
    info: ModelInfo,
    dataset: Dataset,
    *,
    pixels: np.ndarray | None = None,
    precision: Precision = "auto",
    workers: int = 0,
) -> np.ndarray:
    """Fit the offsets on a split, of which images that cannot be read are left out.

    Those are the ones that `evaluate_split` lists in `failed`.

    Args:
        model: is not changed.
        info: its protocol is used, single-scale.
        dataset: a labelled split that the model was not trained on.
        pixels: (K,) pixels per class in the training split, to adjust by IoU; None searches each
            class separately.
        precision: as in `evaluate_split`.
        workers: processes that decode images.

    Returns:
        (K,) offsets to add to the class logits, for `shift_logits`.

    Raises:
        SetrError: no images, none readable, other classes than the model's, or a model without
            biases of its class logits.
    """
    class_biases(model)
    require_fit(model, info, dataset)
    scores, truth = _sample(model, info, dataset, precision, workers)
    return best_offsets(scores, truth) if pixels is None else best_by_iou(scores, truth, pixels)


def threshold_offsets(threshold: float, pixels: np.ndarray) -> np.ndarray:
    """Offsets (2,) by which the rarer of two classes wins from this probability on.

    Args:
        threshold: above 0 and below 1; 0.5 changes nothing.
        pixels: (2,) labelled pixels of each class; of equal ones, the second class is the rarer.

    Raises:
        SetrError: more classes, or another threshold.
    """
    if len(pixels) != 2:
        raise UsageError(
            f"threshold {threshold:g}: is for models of two classes, and this one has "
            f"{len(pixels)}; leave it out to raise the mIoU"
        )
    if not 0 < threshold < 1:
        raise UsageError(f"threshold {threshold:g}: give more than 0 and less than 1")
    raised = np.log((1 - threshold) / threshold) / 2
    return np.array([raised, -raised] if pixels[0] < pixels[1] else [-raised, raised], np.float32)


def threshold_after(first: float, second: float) -> float:
    """The threshold of a model that was given one, and then another one: their log-odds add up."""
    odds = first / (1 - first) * second / (1 - second)
    return round(odds / (1 + odds), 6)


def shift_logits(model: SETR, offsets: np.ndarray) -> None:
    """Add offsets (K,) to the logits of a model in place, in the bias of its last layer."""
    bias = class_biases(model)
    with torch.no_grad():
        bias += torch.from_numpy(offsets).to(bias)


def class_biases(model: SETR) -> Tensor:
    """The biases (K,) of the class logits: the classifier's, or Segmenter's last norm's.

    Raises:
        SetrError: EoMT, whose logits are logarithms of sums over its queries.
    """
    decoder: Any = model.decoder
    if isinstance(decoder, MaskClassifier):
        raise UsageError(
            "EoMT's logits have no bias per class, so they cannot be adjusted; leave "
            "train.adjust_logits or `setr adjust` out"
        )
    last = decoder.mask_norm if isinstance(decoder, MaskTransformer) else decoder.classifier
    return last.bias


def best_by_iou(
    scores: np.ndarray, truth: np.ndarray, pixels: np.ndarray, *, rounds: int = 5
) -> np.ndarray:
    """Offsets (K,) by IoU: `multiple * log share - log IoU` with the best multiple.

    The IoU depends on the offsets, so the two are updated alternately, starting from `IoU = 1`. On
    these pixels the result is never worse than no offsets, or than a multiple of the log shares.

    Args:
        scores: (n, K) logits or log-probabilities of pixels.
        truth: (n,) class ids, 0 to K - 1.
        pixels: (K,) pixels per class in the training split; a class that does not occur counts as
            the rarest.
        rounds: how often the multiple is searched.
    """
    counts = np.maximum(pixels, min(pixels[pixels > 0], default=1))
    share = np.log(counts / counts.sum())
    share -= share.mean()
    true = np.bincount(truth, minlength=scores.shape[1])

    def iou(offsets: np.ndarray) -> np.ndarray:
        prediction = (scores + offsets.astype(np.float32)).argmax(axis=1)
        return _iou(_counts(prediction, truth, scores.shape[1]), true)[0]

    by_iou = np.zeros(len(share))
    best, best_miou = by_iou, np.nanmean(iou(by_iou))
    for _ in range(rounds):
        tried = {m: iou(m * share + by_iou) for m in sorted(MULTIPLES, key=abs)}
        multiple, reached = max(tried.items(), key=lambda item: np.nanmean(item[1]))
        if np.nanmean(reached) > best_miou:
            best, best_miou = multiple * share + by_iou, np.nanmean(reached)
        update = -np.log(np.maximum(np.nan_to_num(reached, nan=1.0), LOWEST))
        by_iou = (by_iou + update) / 2
    return (best - best.mean()).astype(np.float32)


def best_offsets(scores: np.ndarray, truth: np.ndarray, *, rounds: int = 4) -> np.ndarray:
    """Offsets (K,) that maximise the mIoU of `argmax(scores + offsets)`.

    Coordinate ascent: for one class at a time, every offset of the grid is evaluated from one
    histogram. On these pixels the result is never worse than no offsets.

    Args:
        scores: (n, K) logits or log-probabilities of pixels.
        truth: (n,) class ids, 0 to K - 1.
        rounds: maximum number of passes over the classes; stops when a pass changes nothing.
    """
    K = scores.shape[1]
    offsets = np.zeros(K, np.float32)
    best = _miou(_counts(scores.argmax(axis=1), truth, K), np.bincount(truth, minlength=K))[0]
    for _ in range(rounds):
        before = best
        for k in range(K):
            miou = _miou_on_grid(scores + offsets, truth, k)
            index = int(np.argmax(miou))
            if miou[index] > best + 1e-7:
                best = float(miou[index])
                offsets[k] += GRID[index]
        if best == before:
            break
    return offsets - offsets.mean()


def _miou_on_grid(scores: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """MIoU (G,) for each offset of the grid added to class k alone."""
    K, G = scores.shape[1], len(GRID)
    others = scores.copy()
    others[:, k] = -np.inf
    runner_up = others.argmax(axis=1)
    margin = np.take_along_axis(others, runner_up[:, None], axis=1)[:, 0] - scores[:, k]
    first = np.searchsorted(GRID, margin, side="right")  # index of the first offset at which k wins

    def won(selected: np.ndarray) -> np.ndarray:
        """Number of selected pixels (G,) predicted as k at each offset."""
        return np.cumsum(np.bincount(first[selected], minlength=G + 1)[:G])

    def kept(selected: np.ndarray) -> np.ndarray:
        """Number of selected pixels (G, K) predicted as each of the other classes."""
        index = first[selected] * K + runner_up[selected]
        table = np.bincount(index, minlength=(G + 1) * K).reshape(G + 1, K)
        return table[::-1].cumsum(axis=0)[::-1][1:]

    everywhere = np.ones(len(truth), bool)
    predicted, hits = kept(everywhere), kept(runner_up == truth)
    predicted[:, k], hits[:, k] = won(everywhere), won(truth == k)
    return _miou((hits, predicted), np.bincount(truth, minlength=K))


def _counts(prediction: np.ndarray, truth: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits and predicted pixels per class, each (1, K)."""
    hits = np.bincount(truth[prediction == truth], minlength=K)
    return hits[None], np.bincount(prediction, minlength=K)[None]


def _miou(counts: tuple[np.ndarray, np.ndarray], true: np.ndarray) -> np.ndarray:
    """Mean over the classes in the truth: hits and predicted (G, K), true (K,) -> (G,)."""
    return np.asarray(np.nanmean(_iou(counts, true), axis=1))


def _iou(counts: tuple[np.ndarray, np.ndarray], true: np.ndarray) -> np.ndarray:
    """Hits and predicted (G, K), true (K,) -> (G, K); nan for classes not in the truth."""
    hits, predicted = counts
    union = predicted + true - hits
    return np.asarray(np.where(true > 0, hits / np.maximum(union, 1), np.nan))


def _sample(
    model: SETR, info: ModelInfo, dataset: Dataset, precision: Precision, workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, K) and truth (n,) of pixels sampled from all images of a split alike."""
    device = next(model.parameters()).device
    dtype = computed_in(model, precision, device)
    protocol = replace(info.protocol, scales=(1.0,), flip=False)
    per_image = max(1, SAMPLE_BYTES // (4 * model.num_classes * len(dataset)))
    scores, truth = [], []
    problem: SetrError | None = None
    with testing(model, dtype), Progress("adjust", len(dataset)) as progress:
        loaded = enumerate(whole_images(dataset, workers, range(len(dataset))))
        for index, sample in progress.fed_by(fitting(loaded, dataset, protocol)):
            if isinstance(sample, SetrError):
                problem = problem or sample
                continue
            images, masks = sample
            x = NormalizedImages(images.to(device), info.mean, info.std)
            size = (masks.shape[-2], masks.shape[-1])
            ids = masks.flatten().numpy()
            labelled = np.flatnonzero(ids < model.num_classes)
            rng = np.random.default_rng(index)
            chosen = rng.choice(labelled, min(per_image, len(labelled)), replace=False)
            chosen.sort()
            first = 0
            for block in score_blocks(model, x, protocol, size=size):
                logits = block[0].flatten(1)
                last = first + logits.shape[1]
                inside = chosen[slice(*np.searchsorted(chosen, (first, last)))] - first
                found = logits[:, torch.from_numpy(inside).to(device)]
                scores.append(found.T.float().cpu().numpy())
                first = last
            truth.append(ids[chosen].astype(np.int64))
            progress.update(index + 1, images=1)
    if problem and not truth:
        raise none_tested(dataset, problem)
    return np.concatenate(scores), np.concatenate(truth)

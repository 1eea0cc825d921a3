"""Sources of training batches: augmented images, or stored features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from setr.config import Config
from setr.data.dataset import Dataset
from setr.data.loader import located, training_batches
from setr.data.order import (
    WHOLE,
    BatchOrder,
    Extra,
    Order,
    Share,
    further_places,
    training_order,
)
from setr.data.own_augmentation import Augment, OwnAugmentation
from setr.inference import normalize
from setr.labels import IGNORE
from setr.model import SETR, Features
from setr.training.features import FeatureFiles, open_features, split_maps
from setr.training.pixel_counts import build_augmentation


class Source:
    """A source of training batches.

    Args:
        widths: channels of each tap of the encoder, by which stored features are split.
        datasets: that of the training split, and that of further images, if any.
    """

    def __init__(self, config: Config, widths: list[int], *datasets: Dataset) -> None:
        self.config, self.widths, self.datasets = config, widths, datasets

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's batches from step `start` on: inputs, and masks uint8 (B, H, W)."""
        raise NotImplementedError

    def order(self, start: int, stop: int, share: Share = WHOLE) -> Order:
        """The samples of steps start .. stop-1, by default of all processes."""
        raise NotImplementedError

    def names(self, step: int, share: Share = WHOLE) -> list[str]:
        """Paths of the images of a step, by default of all processes."""
        (batch,) = self.order(step, step + 1, share)
        found = (located(self.datasets, index) for _, index in batch)
        return [str(dataset.pairs[index].image) for dataset, index in found]

    def inputs(self, part: Tensor) -> Tensor | Features:
        """The model's arguments, on the device: normalised images, or one feature map per tap."""
        model = self.config.model
        if self.config.train.cache_features == "none":
            return normalize(part, model.mean, model.std)
        return Features(split_maps(part, self.widths), self.config.data.crop_size)

    def told_apart(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """What to learn from the masks of a batch, and what from a teacher.

        Args:
            masks: (B, H, W) as in `batches`.

        Returns:
            Training ids, which are `IGNORE` in images without labels; and the same shape with
            `IGNORE` where these have no data, or a crop goes beyond them. All have labels unless a
            source says otherwise.
        """
        return masks, torch.zeros_like(masks)


class _Images(Source):
    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        pixels: np.ndarray,
        share: Share,
        device: torch.device,
        augment: Augment | None,
        extra: Extra | None,
    ) -> None:
        super().__init__(config, [], dataset, *([extra.dataset] if extra else []))
        self.dataset, self.share, self.device, self.extra = dataset, share, device, extra
        self.augment = build_augmentation(config, pixels)
        self.own = None if augment is None else OwnAugmentation(augment, len(pixels))
        self.unlabelled: Tensor | None = None
        if extra:
            size = config.train.batch_size
            places = further_places(size, extra.per_batch)[share.of(size)]
            self.unlabelled = torch.from_numpy(places)[:, None, None]

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 (B, H, W, C) and masks."""
        train = self.config.train
        return training_batches(
            self.dataset,
            self.augment,
            batch_size=train.batch_size,
            seed=train.seed,
            start=start,
            stop=train.steps,
            workers=self.config.data.workers,
            share=self.share,
            pinned=self.device.type == "cuda",
            own=self.own,
            extra=self.extra,
        )

    def order(self, start: int, stop: int, share: Share = WHOLE) -> Order:
        """With further images in between."""
        train = self.config.train
        return training_order(
            self.dataset,
            train.batch_size,
            seed=train.seed,
            start=start,
            stop=stop,
            share=share,
            extra=self.extra,
        )

    def told_apart(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """By the places in the batch."""
        if self.unlabelled is None:
            return masks, torch.zeros_like(masks)
        unlabelled = self.unlabelled.to(masks.device)
        return masks.where(~unlabelled, IGNORE), masks.where(unlabelled, 0)


class _Features(Source):
    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        stored: FeatureFiles,
        widths: list[int],
        share: Share,
    ) -> None:
        super().__init__(config, widths, dataset)
        self.stored, self.share = stored, share

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Feature maps float16 (B, C, h, w) and masks; mirrored with probability data.flip."""
        train, stored = self.config.train, self.stored
        for positions in self.order(start, train.steps, self.share):
            views = []
            for epoch, index in positions:
                draw = np.random.default_rng((train.seed, epoch, index)).random()
                mirrored = stored.views == 2 and draw < self.config.data.flip
                views.append(index * stored.views + mirrored)
            yield (
                torch.from_numpy(np.stack([stored.maps[view] for view in views])),
                torch.from_numpy(np.stack([stored.masks[view] for view in views])),
            )

    def order(self, start: int, stop: int, share: Share = WHOLE) -> BatchOrder:
        """A fully random order, since stored features allow random access."""
        train, count = self.config.train, len(self.stored.maps) // self.stored.views
        return BatchOrder(
            count, train.batch_size, seed=train.seed, start=start, stop=stop, share=share
        )


def open_source(
    config: Config,
    dataset: Dataset,
    model: SETR,
    dtype: torch.dtype | None,
    pixels: np.ndarray,
    share: Share,
    augment: Augment | None = None,
    extra: Extra | None = None,
) -> Source:
    """The source of batches for a run; computes features unless they are cached.

    Args:
        dataset: the training split.
        model: on its device, with frozen parts frozen.
        dtype: of autocast; None for fp32.
        pixels: (K,) pixel counts of the classes in the split.
        share: this process's share of every batch.
        extra: images beside those of the split.
    """
    if config.train.cache_features == "none":
        device = next(model.parameters()).device
        return _Images(config, dataset, pixels, share, device, augment, extra)
    stored = open_features(config, dataset, model, dtype)
    return _Features(config, dataset, stored, model.encoder.widths, share)

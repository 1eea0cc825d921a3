"""What merging tokens gains and costs on a user's images: speed and mIoU by share of the groups.

What is merged: `layers/token_merging.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from setr.data.dataset import Dataset
from setr.errors import UsageError
from setr.evaluation import evaluate_split
from setr.exporting.bench_row import time_batch
from setr.model import SETR
from setr.predictor import Predictor
from setr.training.complexity import forward_flops

SECONDS = 1.0
"""Each share is timed for at least so long."""


class Tried(NamedTuple):
    """A share and what it gives.

    Attributes:
        share: of the 2x2 groups of patches that go through the encoder as one token, 0 to 1.
        miou: 0 to 1.
        gflops: of one window.
        images_per_second: windows that become masks in a second, one at a time.
        figures: all of `evaluate_split`.
    """

    share: float
    miou: float
    gflops: float
    images_per_second: float
    figures: dict[str, Any]


def timed_size(predictor: Predictor) -> tuple[int, int]:
    """Height and width in pixels of the window that is timed: the protocol's, or the crop's."""
    return predictor.info.protocol.window or predictor.info.crop_size or (512, 512)


def try_shares(
    predictor: Predictor,
    network: SETR,
    dataset: Dataset,
    shares: Sequence[float],
    *,
    workers: int = 2,
    count: int | None = None,
) -> Iterator[Tried]:
    """Test a model with each share in turn; it keeps the last one.

    Args:
        predictor: of the model, in the precision that is tested.
        network: the predictor's own.
        dataset: a labelled split with the model's classes.
        shares: 0, then others up to 1.
        workers: processes that load images.
        count: number of images, evenly spaced over the split; all by default.

    Raises:
        SetrError: a share out of range, or of less than a group; an encoder whose blocks need the
            whole grid of patches; or as `evaluate_split`.
    """
    height, width = timed_size(predictor)
    shape = (1, len(predictor.info.mean), height, width)
    flops: list[int] = []
    for share in shares:
        network.set_merge_tokens(share)
        flops.append(forward_flops(network, height, width))
        if share and flops[-1] == flops[0]:
            raise UsageError(
                f"--shares {share:g}: less than a group of 2x2 patches of {width}x{height} pixels; "
                "give a larger share"
            )
    for share, operations in zip(shares, flops, strict=True):
        network.set_merge_tokens(share)
        figures = evaluate_split(
            network,
            predictor.info,
            dataset,
            precision=predictor.precision,
            workers=workers,
            detailed=False,
            count=count,
        )
        yield Tried(
            share,
            figures["miou"] or 0.0,
            operations / 1e9,
            time_batch(predictor, shape, SECONDS)["images_per_second"],
            figures,
        )


def fastest(tried: Sequence[Tried], max_drop: float) -> Tried | None:
    """The one with most tokens merged whose mIoU is at most `max_drop` below that of share 0.

    None if there is none beside share 0.
    """
    before = next(one.miou for one in tried if not one.share)
    good = [one for one in tried if one.share and before - one.miou <= max_drop]
    return max(good, key=lambda one: one.share, default=None)

"""`setr merge-tokens MODEL DATA -o OUT [options]`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from setr.arguments.choices import Precision
from setr.commands.parsing import parse, require_at_least, require_unused, require_within
from setr.commands.shared import Data, Device, Model, Out
from setr.errors import SetrError, UsageError
from setr.pages.tables import report_failed


@dataclass(frozen=True)
class Arguments:
    """Make a trained model faster: similar neighbouring patches go through the encoder as one.

    No training: groups of 2x2 patches that look alike become one token behind the first block.
    Shares of the groups are tried on a validation split, and the largest whose mIoU falls by at
    most --max-drop is written. Every command takes the result as any model.

    setr merge-tokens runs/mine photos -o runs/fast
    """

    model: Model
    """Model directory, Hub name or checkpoint."""
    data: Data
    """Folder, YAML file or shards of the data set, or hf:OWNER/NAME."""
    out: Out
    """Folder for the faster model."""
    shares: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Shares of the groups to try, above 0 and up to 1."""
    max_drop: float = 0.5
    """Points of mIoU that may be lost."""
    split: str = "val"
    """Split to test on."""
    count: int | None = None
    """Use so many images, evenly spaced over the split; all if not given."""
    device: Device = "auto"
    precision: Precision = "auto"
    """Compute in this precision."""
    workers: int = 2
    """Processes that decode images."""


def run(arguments: list[str]) -> int:
    """Print what each share gives, and write the fastest model that is good enough."""
    given = parse(Arguments, arguments, "merge-tokens")
    require_at_least(given, 0, "workers")
    require_within(given, 0, 100, "max_drop")
    require_at_least(given, 1, "count")
    if not given.shares or not all(0 < share <= 1 for share in given.shares):
        raise UsageError(
            f"--shares {' '.join(f'{s:g}' for s in given.shares)}: give shares above 0, up to 1"
        )
    require_unused(given.out)
    from setr.datasets import open_dataset
    from setr.hub import save_pretrained
    from setr.loading import load
    from setr.model_info import with_metrics
    from setr.token_shares import Tried, fastest, timed_size, try_shares

    predictor = load(given.model, device=given.device, precision=given.precision)
    network, info = predictor.network, predictor.info
    network.set_merge_tokens(max(given.shares))  # refused before anything is computed
    dataset = open_dataset(given.data, given.split, info.labels, info.bands)
    height, width = timed_size(predictor)
    print(f"  merged    mIoU   change   GFLOPs   images/s of {width}x{height}")
    tried: list[Tried] = []
    shares = (0.0, *sorted(set(given.shares)))
    found = try_shares(
        predictor, network, dataset, shares, workers=given.workers, count=given.count
    )
    for one in found:
        tried.append(one)
        change = f"{100 * (one.miou - tried[0].miou):+.2f}" if one.share else ""
        print(
            f"{one.share:>8.0%}{100 * one.miou:>8.2f}{change:>9}{one.gflops:>9.1f}"
            f"{one.images_per_second:>11.2f}",
            flush=True,
        )
    best = fastest(tried, given.max_drop / 100)
    if best is None:
        raise SetrError(
            f"every share lowers the mIoU by more than {given.max_drop:g} points; nothing was "
            "written; try smaller --shares"
        )
    network.set_merge_tokens(best.share)
    words = [given.model, given.data, "--shares", f"{best.share:g}", "-o", str(given.out)]
    command = shlex.join(["setr", "merge-tokens", *words])
    metrics = {f"{given.split} mIoU": round(best.miou, 4)}
    info = with_metrics(info, metrics, dataset.public_name)
    save_pretrained(given.out, network, replace(info, command=command))
    print(f"{best.share:.0%} of the groups merged; written to {given.out}")
    return report_failed(best.figures)

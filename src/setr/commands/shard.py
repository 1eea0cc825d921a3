"""`setr shard DATA OUT`: pack a data set into tar or Parquet files."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from setr.arguments.choices import ShardForm
from setr.commands.parsing import parse, require_at_least
from setr.commands.shared import Data
from setr.errors import OK, UsageError
from setr.processes.standard_streams import tell

if TYPE_CHECKING:
    from setr.data.dataset import Dataset
    from setr.data.shard_writer import Packed


@dataclass(frozen=True)
class Arguments:
    """Pack a data set into tar (webdataset layout) or Parquet files that train like the folder.

    setr shard photos packed
    """

    data: Data
    """Folder or YAML file of the data set, or `scenes`."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write; then train with --data.root OUT, or copy it to object storage."""
    splits: tuple[str, ...] = ("train", "val")
    """Splits to pack."""
    labels: str | None = None
    """Known data set whose classes to use where the folder names none."""
    samples: int = 1000
    """Samples per file."""
    format: ShardForm = "tar"
    """Of the files; parquet needs the extra parquet."""


def run(arguments: list[str]) -> int:
    """Check the splits, then write them."""
    given: Arguments = parse(Arguments, arguments, "shard")
    require_at_least(given, 1, "samples")
    if not given.splits:
        raise UsageError("--splits: name at least one split, as train")
    from setr.data.shard_writer import write_split
    from setr.data.shards import FORMAT, INDEX
    from setr.datasets import open_dataset
    from setr.doctor import check
    from setr.processes.lock import ScratchFolder
    from setr.processes.progress import counting
    from setr.writing import json_bytes, require_writable, write_errors

    _require_none(given)
    require_writable(given.out, "OUT")
    opened = [open_dataset(given.data, split, given.labels) for split in given.splits]
    for dataset in opened:
        check(dataset, progress=counting(f"check {dataset.split}")).raise_problems()
    bands = opened[0].bands.to_dict() if opened[0].bands else {}  # of one data.yaml
    with write_errors(given.out):
        given.out.mkdir(parents=True, exist_ok=True)
        with ScratchFolder(given.out, ".packing-") as scratch:
            entries = {
                d.split: {
                    **write_split(
                        scratch, d.split, _samples(d), per_shard=given.samples, form=given.format
                    ),
                    "labels": d.labels.to_dict(),  # of one data set, splits may code ids apart
                }
                for d in opened
            }
            content = {"format": FORMAT, "name": opened[0].name, **bands, "splits": entries}
            (scratch / INDEX).write_bytes(json_bytes(content))
            _require_none(given)  # another process may have written some
            files = sorted(scratch.glob("[!.]*"), key=lambda file: file.name == INDEX)
            for file in files:  # the index last, without which the others are not read
                os.replace(file, given.out / file.name)
    for split, entry in entries.items():
        count = sum(shard["samples"] for shard in entry["shards"])
        tell(f"{split}: {count} samples in {len(entry['shards'])} shards")
    return OK


def _require_none(given: Arguments) -> None:
    """Refuse a folder with shards, which would be replaced."""
    from setr.data.shards import INDEX

    if (given.out / INDEX).exists():
        raise UsageError(f"{given.out}: holds shards already; choose another OUT")
    for split in given.splits:
        taken = re.compile(rf"{re.escape(split)}(-\d{{6,}}\.(tar|parquet)|\.npz)")
        names = sorted(os.listdir(given.out)) if given.out.is_dir() else []
        if found := next(filter(taken.fullmatch, names), None):
            raise UsageError(
                f"{given.out / found}: would be replaced; move it away, or choose another OUT"
            )


def _samples(dataset: Dataset) -> Iterator[Packed]:
    """Files as they are; drawn scenes and MATLAB masks as PNG.

    In a fixed random order: training shuffles neighbouring samples only, and neighbours in a folder
    are often alike, such as frames of one video.
    """
    import numpy as np

    from setr.data.shard_writer import Packed
    from setr.images import encode_png
    from setr.processes.progress import counting
    from setr.reading.masks import is_mat, read_mask
    from setr.reading.pillow import file_bytes

    show = counting(f"pack {dataset.split}")
    order = np.random.default_rng(zlib.crc32(dataset.split.encode())).permutation(len(dataset))
    for done, index in enumerate(order.tolist(), 1):
        name = dataset.image_name(index)
        name = os.path.basename(name) if os.path.isabs(name) else name  # local to this machine
        if dataset.decoded:
            image, mask = map(encode_png, dataset.load(index))
            yield Packed(name, image, ".png", mask)
        else:
            first, second = dataset.sources(index)
            assert second is not None  # checked
            suffix = Path(name).suffix.lower() or ".jpg"
            packed = encode_png(read_mask(second)) if is_mat(second) else file_bytes(second)
            yield Packed(name, file_bytes(first), suffix, packed)
        show(done, len(dataset))

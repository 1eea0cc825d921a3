"""Writes shards; `shards.py` describes the format and reads them."""

from __future__ import annotations

import io
import itertools
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setr._extras import import_extra
from setr.arguments.choices import ShardForm

GROUP = 100
"""Samples per row group of a Parquet file."""
KEY_BYTES = 72
"""Longer names are cut: USTAR allows 100 bytes, including a number and the file ending."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f./\\:*?"<>|\ud800-\udfff]')


class Packed(NamedTuple):
    """One sample of a shard: its name in the index, its image and mask files, and the ending.

    The name is the image's path below the data set's folder; shards use the key that `Keys` makes.
    """

    name: str
    image: bytes
    suffix: str
    mask: bytes


class Keys:
    """Makes unique archive keys from image names, without folder and file ending.

    Dots become `_`, since webdataset's keys end at the first dot, and so do characters that file
    systems do not allow. Names that repeat, ignoring case, get a number: `a`, `a-2`.
    """

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """The key of one image."""
        stem = _UNSAFE.sub("_", os.path.splitext(os.path.basename(name))[0])
        stem = stem.encode()[:KEY_BYTES].decode(errors="ignore") or "_"
        key = stem
        while (folded := key.casefold()) in self._taken:
            self._taken[stem.casefold()] += 1
            key = f"{stem}-{self._taken[stem.casefold()]}"
        self._taken[folded] = 1
        return key


def write_split(
    out: Path, split: str, samples: Iterable[Packed], *, per_shard: int, form: ShardForm = "tar"
) -> dict[str, Any]:
    """Write the shards and the index of one split; returns its entry in `shards.json`.

    Args:
        out: a folder for these files alone.
        split: begins their names.
        samples: in the order they get.
        per_shard: samples in one.
        form: of the shards.

    Raises:
        SetrError: Parquet without pyarrow.
    """
    rows: dict[str, list[Any]] = {"shard": [], "start": [], "size": [], "crc": []}
    names: list[str] = []
    shards: list[dict[str, Any]] = []
    numbered = enumerate(_keyed(samples))
    for number, group in itertools.groupby(numbered, lambda pair: pair[0] // per_shard):
        file = f"{split}-{number:06}.{form}"
        count = len(names)
        write = _write_tar if form == "tar" else _write_parquet
        for sample, starts in write(out / file, (keyed for _, keyed in group)):
            names.append(sample.name)
            rows["shard"].append(number)
            rows["start"].append(starts)
            rows["size"].append([len(sample.image), len(sample.mask)])
            rows["crc"].append([zlib.crc32(sample.image), zlib.crc32(sample.mask)])
        size = (out / file).stat().st_size
        shards.append({"file": file, "samples": len(names) - count, "bytes": size})
    buffer = io.BytesIO()
    text = "".join(f"{name}\n" for name in names).encode()
    np.savez(
        buffer,
        names=np.frombuffer(text, np.uint8),
        shard=np.array(rows["shard"], np.int32),
        start=np.array(rows["start"], np.int64),
        size=np.array(rows["size"], np.int64),
        crc=np.array(rows["crc"], np.int64),
    )
    (out / f"{split}.npz").write_bytes(buffer.getvalue())
    return {"shards": shards, "index": f"{split}.npz", "crc": zlib.crc32(buffer.getvalue())}


def _keyed(samples: Iterable[Packed]) -> Iterator[tuple[str, Packed]]:
    """Samples with their keys; the key also replaces repeated names and unprintable ones."""
    keys, taken = Keys(), set[str]()
    for sample in samples:
        key = keys(sample.name)
        if sample.name in taken or not sample.name.isprintable():
            sample = sample._replace(name=f"{key}{sample.suffix}")
        taken.add(sample.name)
        yield key, sample


def _write_tar(
    path: Path, samples: Iterable[tuple[str, Packed]]
) -> Iterator[tuple[Packed, list[int]]]:
    """Write a tar file; yields each sample with the byte offsets of its image and mask."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, sample in samples:
            image = _add(archive, f"{key}{sample.suffix}", sample.image)
            yield sample, [image, _add(archive, f"{key}.mask.png", sample.mask)]


def _write_parquet(
    path: Path, samples: Iterable[tuple[str, Packed]]
) -> Iterator[tuple[Packed, list[int]]]:
    """As `_write_tar`, for Parquet: without compression, so that files can be read by offset."""
    pa = import_extra("pyarrow", "parquet", "--format parquet")
    pq = import_extra("pyarrow.parquet", "parquet", "--format parquet")
    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("key", pa.string()), ("image", file), ("mask", file)])
    remaining = iter(samples)
    with (
        open(path, "w+b") as sink,
        pq.ParquetWriter(
            sink, schema, compression="none", use_dictionary=False, write_statistics=False
        ) as writer,
    ):
        while group := list(itertools.islice(remaining, GROUP)):
            begin = sink.tell()
            writer.write_table(pa.Table.from_pylist([_row(*pair) for pair in group], schema))
            end = sink.tell()
            sink.seek(begin)
            data = sink.read(end - begin)
            images = _offsets(data, [sample.image for _, sample in group], 0)
            masks = _offsets(data, [sample.mask for _, sample in group], images[-1])
            for (_, sample), image, mask in zip(group, images, masks, strict=True):
                yield sample, [begin + image, begin + mask]


def _row(key: str, sample: Packed) -> dict[str, Any]:
    image = {"bytes": sample.image, "path": f"{key}{sample.suffix}"}
    return {"key": key, "image": image, "mask": {"bytes": sample.mask, "path": f"{key}.mask.png"}}


def _offsets(data: bytes, values: list[bytes], position: int) -> list[int]:
    """Offsets of values that follow each other in `data`, searched from a position on."""
    offsets = []
    for value in values:
        position = data.index(value, position)
        offsets.append(position)
        position += len(value)
    return offsets


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file; returns the offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
    return int(archive.offset) - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

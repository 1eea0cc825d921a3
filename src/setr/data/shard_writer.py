"""Writing shards; `shards.py` says what they are and reads them."""

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
"""A longer name is cut: with number and ending, a tar file of the oldest kind takes 100."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f./\\:*?"<>|\ud800-\udfff]')


class Packed(NamedTuple):
    """One sample as it goes into a shard.

    Its name, a path below the data set's folder, goes into the index; the shard has its key.
    """

    name: str
    image: bytes
    suffix: str
    mask: bytes


class Keys:
    """Names of images as keys of an archive: without ending and folder, and unique.

    Dots become `_`, since webdataset's keys end at the first one, and so does what file systems
    refuse. A name that was there before, in whatever case, gets a number: `a`, `a-2`.
    """

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """The key of the next image."""
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

    Raises:
        SetrError: Parquet without pyarrow.
    """
    rows: dict[str, list[Any]] = {"shard": [], "start": [], "size": [], "crc": []}
    names: list[str] = []
    shards: list[dict[str, Any]] = []
    numbered = enumerate(_keyed(samples))
    for number, group in itertools.groupby(numbered, lambda pair: pair[0] // per_shard):
        part, file = out / f".{split}.part", f"{split}-{number:06}.{form}"
        count = len(names)
        write = _write_tar if form == "tar" else _write_parquet
        for sample, starts in write(part, (keyed for _, keyed in group)):
            names.append(sample.name)
            rows["shard"].append(number)
            rows["start"].append(starts)
            rows["size"].append([len(sample.image), len(sample.mask)])
            rows["crc"].append([zlib.crc32(sample.image), zlib.crc32(sample.mask)])
        os.replace(part, out / file)
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
    """Samples with their keys; a name that was there before, or is no text, becomes the key's."""
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
    """Write a tar file; yields every sample with the first bytes of its image and mask."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, sample in samples:
            image = _add(archive, f"{key}{sample.suffix}", sample.image)
            yield sample, [image, _add(archive, f"{key}.mask.png", sample.mask)]


def _write_parquet(
    path: Path, samples: Iterable[tuple[str, Packed]]
) -> Iterator[tuple[Packed, list[int]]]:
    """The same as a Parquet file: plain encoding, no compression, no statistics of the pixels."""
    pa = import_extra("pyarrow", "parquet", "--format parquet")
    pq = import_extra("pyarrow.parquet", "parquet", "--format parquet")
    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("key", pa.string()), ("image", file), ("mask", file)])
    waiting = iter(samples)
    with (
        open(path, "w+b") as sink,
        pq.ParquetWriter(
            sink, schema, compression="none", use_dictionary=False, write_statistics=False
        ) as writer,
    ):
        while group := list(itertools.islice(waiting, GROUP)):
            begin = sink.tell()
            writer.write_table(pa.Table.from_pylist([_row(*pair) for pair in group], schema))
            end = sink.tell()
            sink.seek(begin)
            data = sink.read(end - begin)
            images = _places(data, [sample.image for _, sample in group], 0)
            masks = _places(data, [sample.mask for _, sample in group], images[-1])
            for (_, sample), image, mask in zip(group, images, masks, strict=True):
                yield sample, [begin + image, begin + mask]


def _row(key: str, sample: Packed) -> dict[str, Any]:
    image = {"bytes": sample.image, "path": f"{key}{sample.suffix}"}
    return {
        "key": key,
        "image": image,
        "mask": {"bytes": sample.mask, "path": f"{key}.mask.png"},
    }


def _places(data: bytes, values: list[bytes], position: int) -> list[int]:
    """Where values begin that lie one after another in some data."""
    places = []
    for value in values:
        position = data.index(value, position)
        places.append(position)
        position += len(value)
    return places


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file; returns where its bytes start."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
    return int(archive.offset) - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

"""Samples packed into tar or Parquet files, for millions of files and for object storage.

Files go in as they were, so other tools read the shards too. Tar files have webdataset's layout:
`KEY.jpg` followed by `KEY.mask.png`, KEY being the image's own name as `Keys` makes it. Parquet
files have the columns `key`, `image` and `mask`, the last two as Hugging Face stores images:
structs of bytes and path.

Beside them `SPLIT.npz` tells at which byte every image and mask begins (in Parquet files, too: they
are written without compression, so that a value lies there as it is). With it a sample is one range
read of a tar file, or two of a Parquet file, from a disk or through fsspec from s3://, gs://,
https://, …, and needs neither tarfile nor pyarrow; any order can be resumed at any position by any
number of processes, which streaming readers cannot promise.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.pairing import NoSplitError
from setr.storage import file_system, first_line

Form = Literal["tar", "parquet"]
INDEX = "shards.json"
FORMAT = "setr-shards-1"
BUFFER = 4096
"""Samples shuffled among each other in an epoch; they come from a few shards."""
GAP = 4096
"""Image and mask at most this many bytes apart are read at once."""
GROUP = 100
"""Samples per row group of a Parquet file."""
KEY_BYTES = 72
"""A longer name is cut: with number and ending, a tar file of the oldest kind takes 100."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f./\\:*?"<>|\ud800-\udfff]')


class Packed(NamedTuple):
    """One sample as it goes into a shard."""

    name: str
    image: bytes
    suffix: str
    mask: bytes


def is_shards(path: str) -> bool:
    """Whether a path is a folder of shards, or an address that only shards can be read from."""
    return "://" in path or os.path.isfile(os.path.join(path, INDEX))


class Shards:
    """One split of a folder or an address of shards.

    Args:
        root: the folder or address.
        split: of the data set.

    Raises:
        SetrError: not reachable, no such split, or a shard that is missing or cut off.
    """

    def __init__(self, root: str, split: str) -> None:
        self.root, self.split = root.rstrip("/"), split
        self._files: dict[int, Any] = {}
        self._process = os.getpid()
        self.description = self._description()
        splits = self.description["splits"]
        if split not in splits:
            raise NoSplitError(
                f"{root}: no split '{split}'; it has {', '.join(splits)}", code=USAGE
            )
        # once there was one map for all splits
        self.labels: dict[str, Any] = splits[split].get("labels") or self.description["labels"]
        self.shards: list[dict[str, Any]] = splits[split]["shards"]
        data = self._read(splits[split]["index"])
        self.content = zlib.crc32(data)
        if self.content != splits[split]["crc"]:
            raise SetrError(
                f"{self.root}/{splits[split]['index']}: checksum differs; copy it again"
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            self.shard, self.start, self.size, self.crc = (
                arrays[name] for name in ("shard", "start", "size", "crc")
            )
            self.names: list[str] = arrays["names"].tobytes().decode().split("\n")[:-1]
        for shard in self.shards:
            size = self._size(shard["file"])
            if size != shard["bytes"]:
                what = "missing" if size < 0 else f"{size:,} of {shard['bytes']:,} bytes"
                raise SetrError(
                    f"{self.root}/{shard['file']}: {what}; copy it again", code=DATA_CHECK_FAILED
                )

    def __len__(self) -> int:
        return len(self.shard)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def read(self, index: int) -> tuple[bytes, bytes]:
        """The files of one sample: image and mask.

        Raises:
            SetrError: unreadable, or other bytes than were written.
        """
        file = self.shards[self.shard[index]]["file"]
        (a, b), (m, n) = self.start[index].tolist(), self.size[index].tolist()
        if 0 <= b - (a + m) <= GAP:
            data = self._read(file, a, b + n)
            parts = data[:m], data[b - a :]
        else:
            parts = self._read(file, a, a + m), self._read(file, b, b + n)
        for part, size, crc in zip(parts, (m, n), self.crc[index].tolist(), strict=True):
            if len(part) != size or zlib.crc32(part) != crc:
                raise SetrError(
                    f"{self.root}/{file}: {self.names[index]}: checksum differs; copy the shard "
                    "again"
                )
        return parts

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """An order for one epoch: shards shuffled, then every `BUFFER` samples among each other.

        Samples lie in the shards in random order, so those of one block are a random part of the
        split, and an epoch still reads a few shards at a time.
        """
        counts = np.array([shard["samples"] for shard in self.shards])
        ends = np.cumsum(counts)
        order = np.concatenate(
            [np.arange(ends[i] - counts[i], ends[i]) for i in rng.permutation(len(counts))]
        )
        for start in range(0, len(order), BUFFER):
            order[start : start + BUFFER] = rng.permutation(order[start : start + BUFFER])
        return order

    def _description(self) -> dict[str, Any]:
        data = self._read(INDEX)
        try:
            values = json.loads(data)
            if values["format"] != FORMAT:
                raise ValueError
        except (ValueError, LookupError, TypeError):
            raise SetrError(f"{self.root}/{INDEX}: not a description of shards") from None
        return dict(values)

    def _store(self) -> tuple[Any, str]:
        """The file system and the path in it; made anew in a forked process."""
        if self._process != os.getpid() or -1 not in self._files:
            self._process, self._files = os.getpid(), {}
            self._files[-1] = file_system(self.root)
        found: tuple[Any, str] = self._files[-1]
        return found

    def _read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        store, root = self._store()
        try:
            data: bytes = store.cat_file(f"{root}/{name}", start=start, end=stop)
        except FileNotFoundError:
            raise SetrError(f"{self.root}/{name}: no such file", code=USAGE) from None
        except Exception as error:  # network and permission errors of many libraries
            raise SetrError(f"{self.root}/{name}: cannot read ({first_line(error)})") from None
        return data

    def _size(self, name: str) -> int:
        store, root = self._store()
        try:
            return int(store.size(f"{root}/{name}"))
        except FileNotFoundError:
            return -1
        except Exception as error:
            raise SetrError(f"{self.root}/{name}: cannot read ({first_line(error)})") from None


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
    out: Path, split: str, samples: Iterable[Packed], *, per_shard: int, form: Form = "tar"
) -> dict[str, Any]:
    """Write the shards and the index of one split; returns its entry in `shards.json`.

    Raises:
        SetrError: Parquet without pyarrow.
    """
    rows: dict[str, list[Any]] = {"shard": [], "start": [], "size": [], "crc": []}
    names: list[str] = []
    shards: list[dict[str, Any]] = []
    keys = Keys()
    for number, group in itertools.groupby(enumerate(samples), lambda pair: pair[0] // per_shard):
        part, file = out / f".{split}.part", f"{split}-{number:06}.{form}"
        count = len(names)
        write = _write_tar if form == "tar" else _write_parquet
        for sample, starts in write(part, ((keys(sample.name), sample) for _, sample in group)):
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
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SetrError('--format parquet needs pyarrow; pip install "setr[parquet]"') from None
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

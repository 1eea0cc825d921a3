"""Samples packed into tar or Parquet files, for millions of files and for object storage.

Image and mask files are stored unchanged, so other tools can read the shards, too. Tar files have
webdataset's layout: `KEY.jpg` followed by `KEY.mask.png`, with the key that `Keys` makes of the
image's name. Parquet files have the columns `key`, `image` and `mask`, the last two as Hugging Face
stores images: structs of bytes and path.

The index `SPLIT.npz` contains each image's path below the data set's folder, for reports, and the
byte offsets of image and mask (Parquet files are uncompressed, so they have offsets, too). With it
a sample is one range read of a tar file or two of a Parquet file, from disk or through fsspec from
s3://, gs://, https://, …, without tarfile or pyarrow. Random access allows any order to be resumed
at any position with any number of processes, which streaming readers do not.
"""

from __future__ import annotations

import io
import os
import zlib
from typing import Any
from zipfile import BadZipFile

import numpy as np

from setr.arguments.typed import typed
from setr.bands import Bands
from setr.data.pairing import NoSplitError
from setr.data.pairs import Strings
from setr.errors import USAGE, DataError, SetrError, UsageError, first_line
from setr.labels import Labels
from setr.reading.parsed import BROKEN, fault_of, json_of
from setr.reading.storage import file_system

INDEX = "shards.json"
FORMAT = "setr-shards-1"
BUFFER = 4096
"""Size of the shuffle buffer in samples; they come from a few shards."""
GAP = 4096
"""Image and mask are read together if at most this many bytes apart."""


def is_shards(path: str) -> bool:
    """Whether a path is a folder of shards or a URL, which always means shards."""
    return "://" in path or os.path.isfile(os.path.join(path, INDEX))


class Shards:
    """Reads one split of a data set in shards.

    Args:
        root: folder or URL.

    Raises:
        SetrError: not reachable, no such split, or a shard that is missing or truncated.
    """

    def __init__(self, root: str, split: str) -> None:
        self.root, self.split = root.rstrip("/"), split
        self._opened: tuple[Any, str] | None = None
        self._process = os.getpid()
        try:
            self._open(split)
        except SetrError as error:
            named = str(error).startswith(self.root)
            raise error if named else SetrError(f"{root}/{INDEX}: {error}") from None
        except (OSError, BadZipFile, *BROKEN) as error:
            raise SetrError(
                f"{root}: not shards written by setr shard ({fault_of(error)})"
            ) from None

    def _open(self, split: str) -> None:
        """Read the description and the index of the split, and check the shards."""
        root = self.root
        description = self._description()
        splits = dict(description["splits"])
        if split not in splits:
            raise NoSplitError(
                f"{root}: no split '{split}'; it has {', '.join(splits)}", code=USAGE
            )
        self.name = typed(str, description["name"], "name")
        # older shards have one label map for all splits
        self.labels = Labels.from_dict(splits[split].get("labels") or description["labels"])
        self.bands = Bands.of(description)
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
            self.names = Strings(arrays["names"].tobytes().decode().split("\n")[:-1])
        self._require_fitting()
        for shard in self.shards:
            size = self._size(shard["file"])
            if size != shard["bytes"]:
                what = "missing" if size < 0 else f"{size:,} of {shard['bytes']:,} bytes"
                raise DataError(f"{self.root}/{shard['file']}: {what}; copy it again")

    def _require_fitting(self) -> None:
        """Raise `ValueError` if the index and the list of shards contradict each other."""
        counts = [typed(int, shard["samples"], "samples") for shard in self.shards]
        total = sum(counts)
        shapes = {"shard": (total,), **dict.fromkeys(("start", "size", "crc"), (total, 2))}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype.kind not in "iu" or (array < 0).any():
                raise ValueError(f"'{name}' of the index is not for {total} samples")
        numbers = np.repeat(np.arange(len(counts)), counts)
        if not np.array_equal(self.shard, numbers) or len(self.names) != total:
            raise ValueError("the index is of other shards")

    def __len__(self) -> int:
        return len(self.shard)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, index: int) -> tuple[bytes, bytes]:
        """Image and mask file of one sample.

        Raises:
            SetrError: unreadable, or the checksum differs.
        """
        file = self.shards[self.shard[index]]["file"]
        (image, mask), sizes = self.start[index].tolist(), self.size[index].tolist()
        image_end, mask_end = image + sizes[0], mask + sizes[1]
        if 0 <= mask - image_end <= GAP:
            data = self._read(file, image, mask_end)
            parts = data[: sizes[0]], data[mask - image :]
        else:
            parts = self._read(file, image, image_end), self._read(file, mask, mask_end)
        for part, size, crc in zip(parts, sizes, self.crc[index].tolist(), strict=True):
            if len(part) != size or zlib.crc32(part) != crc:
                raise SetrError(
                    f"{self.root}/{file}: {self.names[index]}: checksum differs; copy the shard "
                    "again"
                )
        return parts

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """Order of one epoch: shards are shuffled, then samples within blocks of `BUFFER`.

        `setr shard` writes samples in random order, so each block is a random part of the split
        although it is read from a few shards.
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
            values = json_of(data)
            if values["format"] != FORMAT:
                raise ValueError
        except BROKEN:
            raise SetrError(
                f"{self.root}/{INDEX}: not an index of shards written by setr shard"
            ) from None
        return dict(values)

    def _store(self) -> tuple[Any, str]:
        """The file system and the root in it; opened again in a forked process."""
        if self._opened is None or self._process != os.getpid():
            self._process, self._opened = os.getpid(), file_system(self.root)
        return self._opened

    def _read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        store, root = self._store()
        try:
            data: bytes = store.cat_file(f"{root}/{name}", start=start, end=stop)
        except FileNotFoundError:
            raise UsageError(f"{self.root}/{name}: no such file") from None
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

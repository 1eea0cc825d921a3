"""Inputs of a prediction: files, folders, globs, lists, tar shards, Parquet files; also on a store.

All inputs are listed first, so that output names, `--shard` and finished work are known before
anything is decoded. An item is a few strings and numbers: a million of them fit into memory, and
they can be sent to other processes and machines.
"""

from __future__ import annotations

import glob
import logging
import os
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from setr._extras import import_extra
from setr.data.data_yaml import HUB
from setr.data.pairing import open_list
from setr.data.shard_writer import Keys
from setr.errors import SetrError, UsageError, first_line
from setr.reading.files import IMAGE_SUFFIXES, expanded, no_images, one_line, unread_text
from setr.reading.pillow import Source
from setr.reading.storage import file_system, is_address, read_range

ARCHIVES = (".tar", ".parquet")
LIST = ".txt"
"""Ending of a text file that names a source in each line."""
NAME_COLUMNS = ("name", "key", "__key__", "file_name", "path", "id")
"""Columns of a Parquet file that may name its rows; the first one present is used."""


class Item(NamedTuple):
    """One image.

    Attributes:
        name: its unique name, the path below the source that was given.
        place: the file or address that holds it.
        stamp: changes when the file changes.
        part: in a tar file, first byte and length; in a Parquet file, row group and row in it.
    """

    name: str
    place: str
    stamp: str
    part: tuple[int, int] | None = None

    @property
    def path(self) -> str:
        """The local file; empty for addresses and members of archives."""
        return "" if self.part is not None or is_address(self.place) else self.place

    @property
    def shown(self) -> str:
        """Its name in messages."""
        inside = self.name.partition("/")[2]
        return self.place if self.part is None else f"{self.place}:{inside}"


def find_items(sources: Sequence[str]) -> list[Item]:
    """The images of files, folders, globs, archives and addresses, ordered, without duplicates.

    Raises:
        SetrError: a source that names nothing, or data for `open_dataset`, or an archive that
            cannot be read.
    """
    found: dict[tuple[str, object], Item] = {}
    for source in sources:
        items = list(_items(source))
        if not items:
            raise no_images(source)
        if os.path.isdir(source) and (unread := unread_text(Path(source))):
            logging.getLogger("setr").warning("setr: %s", one_line(f"{source}: {unread}"))
        for item in items:
            found.setdefault((item.place, item.part), item)
    return list(found.values())


def output_names(items: Sequence[Item], *, packed: bool = False) -> list[str]:
    """Output names without ending: an image's stem, or its whole name where stems clash.

    In a pack they end in a key of `shard_writer.Keys`, unique in its folder.
    """
    if packed:
        folders = [posixpath.dirname(item.name) for item in items]
        keys = {folder: Keys() for folder in folders}
        return [
            posixpath.join(folder, keys[folder](item.name))
            for item, folder in zip(items, folders, strict=True)
        ]
    stems = [os.path.splitext(item.name)[0] for item in items]
    count = Counter(stems)
    return [
        stem if count[stem] == 1 else item.name for item, stem in zip(items, stems, strict=True)
    ]


def in_shard(item: Item, shard: tuple[int, int]) -> bool:
    """Whether shard (number, count) has an image: by its name, so new files move no old ones."""
    number, count = shard
    return zlib.crc32(os.fsencode(item.name)) % count == number


def read_item(item: Item) -> Source:
    """The path or the bytes of the image.

    Raises:
        SetrError: cannot be read; names it.
    """
    if item.part is None:
        return read_range(item.place) if is_address(item.place) else item.place
    if item.place.endswith(".tar"):
        start, size = item.part
        data = read_range(item.place, start, start + size)
        if len(data) != size:
            raise SetrError(f"{item.shown}: the tar file is cut off")
        return data
    column = _images(item.place, item.stamp, item.part[0])
    value = column[item.part[1]].as_py()
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise SetrError(f"{item.shown}: the row holds no image")
    return value


def _items(source: str, lists: tuple[str, ...] = ()) -> Iterator[Item]:
    """The images of one source, which the last of these lists names."""
    if is_address(source):
        yield from _remote(source)
        return
    if source.lower().endswith(LIST) and os.path.isfile(source):
        yield from _listed(source, lists)
        return
    if source.startswith(HUB) and not os.path.lexists(source):
        raise UsageError(f"{source}: predicted are files; give {_files_of(source)}")
    for path, name in expanded(source) or expanded(source, frozenset(ARCHIVES)):
        if not name:  # ends in a slash, or is empty
            raise UsageError(f"{source or repr(source)}: no such folder")
        if path.endswith(ARCHIVES):
            yield from _archive(path, file_stamp(path))
        else:
            yield Item(name, path, file_stamp(path))


def _files_of(data: str) -> str:
    """What names the files of a Hugging Face data set."""
    name = data.removeprefix(HUB)
    return name if os.path.exists(name) else f"hf://datasets/{name.partition(':')[0]}"


def _listed(source: str, lists: tuple[str, ...]) -> Iterator[Item]:
    """What the lines of a text file name; files by their paths below the folder of all."""
    lists = (*lists, os.path.realpath(source))
    if lists[-1] in lists[:-1]:
        raise UsageError(f"{source}: this list names itself; remove that line")
    with open_list(Path(source)) as file:
        lines = [line for line in map(str.strip, file) if line]
    files = [os.path.abspath(line) for line in lines if _is_plain(line)]
    base = os.path.commonpath(map(os.path.dirname, files)) if files else ""
    for line in lines:
        if _is_plain(line):
            name = os.path.relpath(os.path.abspath(line), base)
            yield Item(name.replace(os.sep, "/"), line, file_stamp(line))
        else:
            yield from _items(line, lists)


def _is_plain(source: str) -> bool:
    """Whether a source is a single image: no folder, pattern, archive, list or address."""
    special = is_address(source) or source.lower().endswith((*ARCHIVES, LIST))
    pattern = glob.has_magic(source) and not os.path.lexists(source)
    return not (special or pattern or os.path.isdir(source))


def file_stamp(path: str) -> str:
    """Size and modification time of a file, or `missing`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # or no name that a file can have
        return "missing"  # reading it says why
    return f"{status.st_size}-{status.st_mtime_ns}"


def _remote(source: str) -> Iterator[Item]:
    store, path = file_system(source)
    try:
        if glob.has_magic(path):
            base = posixpath.dirname(path.partition("*")[0].partition("[")[0].partition("?")[0])
            found = sorted(store.glob(path))
        elif store.isdir(path):
            base, found = path, sorted(store.find(path))
        else:
            base, found = posixpath.dirname(path), [path]
        wanted = [f for f in found if Path(f).suffix.lower() in IMAGE_SUFFIXES]
        archives = [] if wanted else [f for f in found if f.endswith(ARCHIVES)]
        if found == [path] and not archives:
            wanted = found  # whatever its ending
        for file in wanted:
            name = _safe(file.removeprefix(base))
            yield Item(name, store.unstrip_protocol(file), _remote_stamp(store, file))
    except SetrError:
        raise
    except Exception as error:  # of many libraries
        raise UsageError(f"{source}: cannot list ({first_line(error)})") from None
    for file in archives:
        yield from _archive(store.unstrip_protocol(file), _remote_stamp(store, file))


def _remote_stamp(store: Any, file: str) -> str:
    try:
        info = store.info(file)
    except FileNotFoundError:
        return "missing"
    known = ("ETag", "etag", "md5Hash", "blob_id", "mtime")
    version = next((info[k] for k in known if info.get(k)), "")
    return f"{info.get('size')}-{version}"


def _opened(place: str) -> Any:
    """A file or object, open for reading."""
    if not is_address(place):
        return open(place, "rb")
    store, path = file_system(place)
    return store.open(path, "rb")


def _archive(place: str, stamp: str) -> Iterator[Item]:
    list_items = _tar_items if place.endswith(".tar") else _parquet_items
    try:
        with _opened(place) as file:
            items = list(list_items(file, place, stamp))
    except FileNotFoundError:
        raise UsageError(f"{place}: no such file") from None
    except SetrError:
        raise
    except Exception as error:  # tarfile, pyarrow and network errors
        raise SetrError(f"{place}: not a readable archive ({first_line(error)})") from None
    yield from items


def _tar_items(file: Any, place: str, stamp: str) -> Iterator[Item]:
    stem = PurePosixPath(place).stem
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            lower = member.name.lower()
            image = os.path.splitext(lower)[1] in IMAGE_SUFFIXES and not lower.endswith(".mask.png")
            if member.isfile() and image:
                part = (member.offset_data, member.size)
                yield Item(f"{stem}/{_safe(member.name)}", place, stamp, part)


def _parquet_items(file: Any, place: str, stamp: str) -> Iterator[Item]:
    pq = import_extra("pyarrow.parquet", "parquet", place)
    table = pq.ParquetFile(file)
    columns = table.schema_arrow.names
    if "image" not in columns:
        raise UsageError(f"{place}: needs a column 'image'; it has {', '.join(columns)}")
    named = next((c for c in NAME_COLUMNS if c in columns), None)
    stem, number = PurePosixPath(place).stem, 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        names = [None] * rows
        if named:
            names = table.read_row_group(group, [named])[named].to_pylist()
        for row, name in enumerate(names):
            text = f"{number:08}" if name is None else _safe(str(name)) or f"{number:08}"
            yield Item(f"{stem}/{text}", place, stamp, (group, row))
            number += 1


@lru_cache(maxsize=4)
def _images(place: str, stamp: str, group: int) -> Any:
    """The images of a row group; cached, since neighbouring rows are read one after another."""
    pq = import_extra("pyarrow.parquet", "parquet", place)
    try:
        with _opened(place) as file:
            return pq.ParquetFile(file).read_row_group(group, ["image"])["image"]
    except Exception as error:
        raise SetrError(f"{place}: cannot read ({first_line(error)})") from None


def _safe(name: str) -> str:
    """A name from an archive without parts that lead out of the output folder, on Windows too."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in ("/", "//", "..", "."))

"""Files in folders: images found below one, and any file written whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import re
import tempfile
import unicodedata
import uuid
from pathlib import Path
from typing import Any

from setr.errors import USAGE, SetrError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
)


def require_alive(path: str | os.PathLike) -> None:
    """Refuse a link that leads nowhere, before it passes for a name on the Hub or a free place."""
    name: str = os.fspath(path)
    if os.path.islink(name) and not os.path.exists(name):
        raise SetrError(
            f"{name}: is a link to {os.readlink(name)}, which leads nowhere; link it "
            "anew, or give the place itself",
            code=USAGE,
        )


def require_writable(folder: Path, option: str) -> None:
    """Refuse a folder in which, or in whose place, no file can be made, before work begins.

    Args:
        folder: for results; need not be there yet.
        option: that names another one.
    """
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    require_alive(place)
    try:
        with tempfile.TemporaryFile(dir=place):
            return
    except OSError as error:
        where = "" if place == folder else f" in {place}"
        raise SetrError(
            f"{folder}: cannot write{where}: {error.strerror}; choose another folder with {option}",
            code=USAGE,
        ) from None


def composed(name: str) -> str:
    """A file name with one character for a letter and its accent (NFC).

    Archives made on a Mac hold two, which look the same.
    """
    return unicodedata.normalize("NFC", name)


def stem_of(path: str) -> str:
    """A path without its suffix, `composed`: what files that belong together have in common."""
    return composed(os.path.splitext(path)[0])


def printable(name: str) -> str:
    """A file name as text that can be written; bytes that are no UTF-8 become `?`."""
    return name.encode("utf-8", "replace").decode()


def write_bytes(path: Path, data: bytes, *, mark: str | None = None) -> None:
    """Write a file so that its final name never holds half of it.

    Args:
        path: the file.
        data: its content.
        mark: names the unfinished file. One writer at a time may use it; what a killed process left
            is then overwritten by the next. Random by default.
    """
    part = path.with_name(f".{mark or uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SetrError(f"{path}: cannot write: {error.strerror}") from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as JSON, NumPy's numbers too; the file appears when complete."""
    write_bytes(path, (json.dumps(values, indent=1, default=float) + "\n").encode())


def cache_folder(kind: str) -> Path:
    """Where files of a kind are kept between runs: in `SETR_CACHE`, else `~/.cache/setr`."""
    return Path(os.environ.get("SETR_CACHE") or os.path.expanduser("~/.cache/setr"), kind)


def list_images(folder: Path) -> list[Path]:
    """Image files below a folder; see `walk_images`."""
    return [folder / name for name in walk_images(folder)]


def walk_images(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[str]:
    """Files below a folder by suffix (any case), sorted, as names relative to it.

    Hidden files are left out. Links to folders are followed, unless they lead back to where the
    walk came from.
    Plain strings, because a million `Path` objects take a gigabyte.
    """
    found, waiting = [], [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = prefix + entry.name
                wanted = os.path.splitext(name)[1].lower() in suffixes
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                elif wanted:
                    found.append(name)
                elif entry.is_symlink() and os.path.isdir(entry) and not _loops(folder, name):
                    waiting.append(f"{name}/")
    return sorted(found)


def _loops(folder: Path, name: str) -> bool:
    """Whether a link below a folder leads to a folder on the way to it, or around one."""
    target = os.path.realpath(os.path.join(folder, name))
    way = (os.path.realpath(folder / parent) for parent in Path(name).parents)
    return any(f"{place}{os.sep}".startswith(os.path.join(target, "")) for place in way)


def expanded(source: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[tuple[str, str]]:
    """What a file, folder or glob stands for, each file with its name below what was asked for.

    A folder is walked for files of the given suffixes; of a glob, in which `**` stands for any
    folders, the names are below its fixed part. Both are sorted, without hidden files. What is
    neither stands for itself, also where nothing is there.
    """
    if os.path.isdir(source):
        return [(os.path.join(source, n), n) for n in walk_images(Path(source), suffixes)]
    if os.path.lexists(source) or not glob.has_magic(source):
        return [(source, os.path.basename(source))]
    base = os.path.dirname(re.split(r"[*?[]", source)[0])
    paths = sorted(path for path in glob.glob(source, recursive=True) if not os.path.isdir(path))
    names = (path[len(base) :].lstrip("/") for path in paths)
    return [
        (path, os.path.basename(path) if ".." in name.split("/") else name)
        for path, name in zip(paths, names, strict=True)
    ]

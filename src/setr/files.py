"""Files in folders: images found below one, and any file written whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

from setr.errors import SetrError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
)


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
    """Write values as JSON; the file appears when complete."""
    write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())


def list_images(folder: Path) -> list[Path]:
    """Image files below a folder; see `walk_images`."""
    return [folder / name for name in walk_images(folder)]


def walk_images(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[str]:
    """Files below a folder by suffix (any case), sorted, as names relative to it.

    Hidden files are left out; links to folders are not followed, so loops cannot trap the walk.
    Plain strings, because a million `Path` objects take a gigabyte.
    """
    found, waiting = [], [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in suffixes:
                    found.append(prefix + entry.name)
    return sorted(found)


def globbed(pattern: str) -> list[tuple[str, str]]:
    """Files that a pattern stands for, sorted, each with its name below the pattern's fixed part.

    `**` stands for any folders. Hidden files are left out.
    """
    base = os.path.dirname(re.split(r"[*?[]", pattern)[0])
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    names = (path[len(base) :].lstrip("/") for path in paths)
    return [
        (path, os.path.basename(path) if ".." in name.split("/") else name)
        for path, name in zip(paths, names, strict=True)
    ]

"""Names of files as text, and lists of image files."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from setr.errors import SetrError, UsageError
from setr.reading.heif import HEIF_SUFFIXES, INSTALL, heif_package
from setr.reading.made_folders import made_folders

_HEIF_READ = HEIF_SUFFIXES if heif_package() else frozenset[str]()
IMAGE_SUFFIXES = _HEIF_READ | frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
    | {".avif", ".jp2", ".j2k", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"}
)
UNREAD_SUFFIXES = (HEIF_SUFFIXES - _HEIF_READ) | frozenset(
    {".jxl", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".psd", ".exr", ".dcm"}
)
"""Of images that are not read here."""

_OF_SYSTEMS = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information")
"""Folders in which network drives, archives of macOS and Windows keep thumbnails and the like."""
MOST_WAYS = 200
"""To a folder by links inside linked folders; ten folders that link each other have a million."""
LONGEST_LINE = 2_000
"""Characters of a message; of longer ones, beginning and end are shown."""


def require_alive(path: str | os.PathLike) -> None:
    """Refuse a broken symbolic link, which would be taken for a Hub name or an unused path."""
    name: str = os.fspath(path)
    if os.path.islink(name) and not os.path.exists(name):
        raise UsageError(
            f"{name}: is a link to {os.readlink(name)}, which leads nowhere; fix the link, or "
            "give another path"
        )


def composed(name: str) -> str:
    """A file name in Unicode NFC; archives from macOS may contain names in NFD."""
    return unicodedata.normalize("NFC", name)


def stem_of(path: str) -> str:
    """A path without its suffix, in NFC: the common name of an image and its mask."""
    return composed(os.path.splitext(path)[0])


def printable(name: str) -> str:
    """A file name as valid text; bytes that are not UTF-8 become `?`."""
    return name.encode("utf-8", "replace").decode()


@contextlib.contextmanager
def in_text(path: Path) -> Iterator[Path]:
    """A path of the same file for libraries that refuse names that are not UTF-8; on Linux."""
    if printable(str(path)) == str(path) or not os.path.isdir("/proc/self/fd"):
        yield path
        return
    number = os.open(path, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{number}")
    finally:
        os.close(number)


def one_line(text: str) -> str:
    """A message as one line of a terminal, or as a comment in YAML.

    Names from files and archives of strangers may hold line ends, and control characters with which
    a terminal rewrites what it shows; values may be megabytes.
    """
    line = re.sub(r"\s*[\r\n]\s*", " ", text)
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]", "?", printable(line))
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def walk_images(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[str]:
    """Files below a folder with the given suffixes (any case), sorted, relative to the folder.

    Hidden files, folders of systems, pipes and devices are left out. Links to folders are followed,
    except those to a folder above. Returns plain strings, because a million `Path` objects take a
    gigabyte.

    Raises:
        SetrError: folders that are linked with each other in countless ways.
    """
    found, pending, ways = list[str](), [("", False)], Counter[str]()
    while pending:
        prefix, linked = pending.pop()
        with os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _OF_SYSTEMS:
                    continue
                name = prefix + entry.name
                wanted = os.path.splitext(name)[1].lower() in suffixes
                if entry.is_dir(follow_symlinks=False):
                    pending.append((f"{name}/", linked))
                elif wanted:
                    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
                        found.append(name)  # no pipe, nor device
                elif entry.is_symlink() and os.path.isdir(entry) and not is_cycle(folder, name):
                    target = os.path.realpath(entry)
                    ways[target] += linked
                    if ways[target] > MOST_WAYS:
                        raise UsageError(
                            f"{folder}: links lead to {target} in more than {MOST_WAYS} ways; "
                            "remove those between linked folders"
                        )
                    pending.append((f"{name}/", True))
    return sorted(found)


def unread_text(folder: Path) -> str:
    """Message on images below a folder that are not read; empty without any."""
    names = walk_images(folder, UNREAD_SUFFIXES)
    kinds = Counter(os.path.splitext(name)[1].lower() for name in names)
    if not kinds:
        return ""
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    way = f", or {INSTALL} for HEIC" if HEIF_SUFFIXES & kinds.keys() else ""
    return (
        f"files that are not read: {shown} (as {printable(names[0])}); save them as JPEG or "
        f"PNG{way}"
    )


def no_images(source: str | os.PathLike, option: str = "") -> SetrError:
    """The error of a folder or pattern without images, which names those that are not read."""
    unread = unread_text(Path(source)) if os.path.isdir(source) else ""
    place = f"{option} {os.fspath(source)}" if option else os.fspath(source)
    return UsageError(f"{place}: no images found here{unread and f'; {unread}'}")


def is_cycle(folder: Path, name: str) -> bool:
    """Whether a link to a folder leads to one of its own parents, or above them."""
    target = os.path.realpath(os.path.join(folder, name))
    parents = (os.path.realpath(folder / parent) for parent in Path(name).parents)
    return any(f"{parent}{os.sep}".startswith(os.path.join(target, "")) for parent in parents)


def expanded(source: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[tuple[str, str]]:
    """The files of a file, folder or glob: path and name relative to the source.

    A folder is searched recursively for files with the given suffixes, without the masks and tiles
    that `setr init-data` wrote into it. In a glob, `**` matches any
    folders, and names are relative to the part before the first wildcard. Both are sorted and skip
    hidden files. Anything else is returned as it is, even if it does not exist.
    """
    if os.path.isdir(source):
        made = tuple(f"{name}/" for name in made_folders(Path(source)))
        found = walk_images(Path(source), suffixes)
        return [(os.path.join(source, n), n) for n in found if not n.startswith(made)]
    if os.path.lexists(source) or not glob.has_magic(source):
        return [(source, os.path.basename(source))]
    base = os.path.dirname(re.split(r"[*?[]", source)[0])
    paths = sorted(path for path in glob.glob(source, recursive=True) if not os.path.isdir(path))
    names = (path[len(base) :].lstrip("/") for path in paths)
    return [
        (path, os.path.basename(path) if ".." in name.split("/") else name)
        for path, name in zip(paths, names, strict=True)
    ]

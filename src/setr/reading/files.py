"""Listing image files, and writing files atomically."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import os
import re
import tempfile
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from setr.errors import SetrError, UsageError, first_line
from setr.reading.heif import HEIF_SUFFIXES, INSTALL, heif_package
from setr.reading.made_folders import made_folders

_HEIF_READ = HEIF_SUFFIXES if heif_package() else frozenset[str]()
IMAGE_SUFFIXES = _HEIF_READ | frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif"}
    | {".jp2", ".j2k", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"}
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
_OF_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""Errors by which file systems refuse names that are too long, or have characters they lack."""


class NameRefusedError(SetrError):
    """A name under which no file can be written here."""


def cannot_write(path: object, error: Exception) -> SetrError:
    """The error of a file that cannot be written, one of its own for a name that is the reason."""
    reason = getattr(error, "strerror", None) or first_line(error)
    of_name = isinstance(error, ValueError) or getattr(error, "errno", None) in _OF_NAMES
    kind = NameRefusedError if of_name else SetrError
    return kind(f"{path}: cannot write: {reason}")


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Makes errors of the file system in the block those of `cannot_write`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where they are missing.

    Raises:
        SetrError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetrError(f"{folder}: cannot make this folder: {error.strerror}") from None


def require_alive(path: str | os.PathLike) -> None:
    """Refuse a broken symbolic link, which would be taken for a Hub name or an unused path."""
    name: str = os.fspath(path)
    if os.path.islink(name) and not os.path.exists(name):
        raise UsageError(
            f"{name}: is a link to {os.readlink(name)}, which leads nowhere; fix the link, or "
            "give another path"
        )


def require_writable(folder: Path, option: str) -> None:
    """Refuse an output folder that cannot be written to, before work begins.

    Args:
        folder: need not exist yet; then its nearest existing parent is tested.
        option: of the command line that sets it, for the message.
    """
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    require_alive(existing)
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        where = "" if existing == folder else f" in {existing}"
        raise UsageError(
            f"{folder}: cannot write{where}: {error.strerror}; choose another folder with {option}"
        ) from None


def composed(name: str) -> str:
    """A file name in Unicode NFC; archives from macOS may contain names in NFD."""
    return unicodedata.normalize("NFC", name)


def stem_of(path: str) -> str:
    """A path without its suffix, in NFC: the common name of an image and its mask."""
    return composed(os.path.splitext(path)[0])


def printable(name: str) -> str:
    """A file name as valid text; bytes that are not UTF-8 become `?`."""
    return name.encode("utf-8", "replace").decode()


def one_line(text: str) -> str:
    """A message as one line of a terminal, or as a comment in YAML.

    Names from files and archives of strangers may hold line ends, and control characters with which
    a terminal rewrites what it shows; values may be megabytes.
    """
    line = re.sub(r"\s*[\r\n]\s*", " ", text)
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]", "?", printable(line))
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def part_of(path: Path) -> Path:
    """The hidden name of an unfinished file; the next run overwrites what a killed one left."""
    mark = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:24]
    return path.with_name(f".{mark}.part")


@contextlib.contextmanager
def replacing(path: Path, *, mark: str | None = None) -> Iterator[Path]:
    """A hidden file to write, which takes the place of `path` in the end, or goes after an error.

    Args:
        mark: name for the hidden file, random by default. With a fixed one, leftovers of a killed
            process are overwritten by the next; only one writer at a time may use it.
    """
    part = path.with_name(f".{mark or uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes, *, mark: str | None = None) -> None:
    """Write a file atomically: it appears under its name when complete.

    Args:
        mark: see `replacing`.

    Raises:
        SetrError: cannot be written.
    """
    try:
        with replacing(path, mark=mark) as part:
            part.write_bytes(data)
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Write a text atomically; names of files in it may be no text."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_rows(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows, the head first, as CSV; the file is written atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as `json_bytes`; the file is written atomically."""
    write_bytes(path, json_bytes(values))


def json_bytes(values: dict[str, Any]) -> bytes:
    """Values, also NumPy numbers, as the text of a JSON file."""
    return (json.dumps(values, indent=1, default=float) + "\n").encode()


def cache_folder(kind: str) -> Path:
    """Folder for cached files of one kind: below `SETR_CACHE`, else `~/.cache/setr`."""
    return Path(os.environ.get("SETR_CACHE") or os.path.expanduser("~/.cache/setr"), kind)


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

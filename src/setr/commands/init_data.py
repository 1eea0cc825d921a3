"""`setr init-data DIR`: write the data.yaml of a folder of one's own."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from setr.commands.parsing import parse, require_within
from setr.data.class_tables import REST
from setr.data.layouts import BESIDE, is_drafted
from setr.errors import OK, UsageError
from setr.init_data import VAL_SHARE, DraftOptions, draft, list_names, write
from setr.outlines.yolo import yolo_folder
from setr.processes.standard_streams import tell
from setr.reading.made_folders import TILES

MOST_FOLDS = 1000
_NAMES = re.compile(rb"^names[ \t]*:", re.MULTILINE)
"""The key under which Ultralytics' files, and no drafts, list the classes."""


@dataclass(frozen=True)
class Arguments:
    """Describe a folder of images and masks: splits, ids or colours, and classes to be named.

    Outlines (LabelMe, COCO, YOLO, GeoJSON, Shapefile, GeoPackage, Supervisely, CVAT, VIA, Label
    Studio, Labelbox, V7) are drawn as masks into FOLDER/masks_drawn. Masks of one class each are
    joined there.

    setr init-data photos
    setr init-data scans --group-by 'images/*_{any}' --folds 5
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder with images and masks or outlines; of YOLO's outlines also the YAML file that names
    the folder and the classes."""
    images: str = ""
    """Where the images are, if their folders have unusual names: a folder below FOLDER, or a
    pattern in quotes, as 'train/*_sat.jpg' (give --masks, too)."""
    masks: str = ""
    """Where the masks are, as 'train/*_mask.png'; in an image and its mask * stands for the same
    text, and ** also for folders. {class} in it is the class of a mask of one class, {any} is text
    that may differ, {number} (in both) a number with any zeros in front."""
    val_share: float = VAL_SHARE
    """Share of the pairs for validation where the folder has no split for it."""
    group_by: str = ""
    """Keep images together in a split or fold, as of one patient, video or place: a pattern of
    their names, as 'images/*_{any}', in which * stands for the group."""
    folds: int = 0
    """Divide the images into so many folds for cross-validation, as train1 and val1, train2 …"""
    rest: str = REST
    """Class of what no outline covers, or `ignore` to leave it out of training and scores."""
    order: str = ""
    """Classes with commas between, as road,car: those named later are drawn over those named
    earlier, and all of them over others. By default as in the files, or small areas over large."""
    class_key: str = ""
    """Property (field) of map layers or of VIA's outlines that names the class; if not given,
    class, label, class_name, category, classification or name."""
    threshold: int = 0
    """For masks of two classes with soft edges or saved as JPEG: grey levels from this one on, as
    128, are foreground; 1 for masks whose numbers count objects. They are drawn anew into
    FOLDER/masks_drawn; 0 uses them as they are."""
    tile: int = 0
    """Cut images and masks into tiles of at most this many pixels a side, in FOLDER/tiles (extra
    geo), and choose blocks of neighbouring tiles for validation; 0 uses the images as they are."""
    name: str | None = None
    """Of the file written into FOLDER; by default data.yaml, or setr.yaml beside a data.yaml of
    another program."""
    overwrite: bool = False
    """Replace an earlier draft and its lists."""


def run(arguments: list[str]) -> int:
    """Write data.yaml and, where there are no splits, train.txt and val.txt."""
    given = parse(Arguments, arguments, "init-data")
    file = given.folder if is_foreign(given.folder) else None
    given = replace(given, folder=yolo_folder(file) if file else given.folder)
    if not given.folder.is_dir():
        is_file = given.folder.is_file()
        told = "is a file; give the folder of the images, unpacked" if is_file else "no such folder"
        raise UsageError(f"{given.folder}: {told}")
    if not 0 < given.val_share < 1:
        raise UsageError(f"--val-share {given.val_share}: give a share between 0 and 1")
    name = given.name or (BESIDE if is_foreign(given.folder / "data.yaml") else "data.yaml")
    if Path(name).name != name or Path(name).suffix not in (".yaml", ".yml"):
        raise UsageError(f"--name {name}: give a name without folders that ends in .yaml")
    if given.tile < 0:
        raise UsageError(f"--tile {given.tile}: give a number of pixels")
    require_within(given, 0, 65535, "threshold")
    if given.folds and not 2 <= given.folds <= MOST_FOLDS:
        raise UsageError(f"--folds {given.folds}: give 2 to {MOST_FOLDS}")
    _require_absent(given, [name, *([TILES, *list_names(name).values()] if given.tile else [])])
    options = {option: getattr(given, option, None) for option in DraftOptions._fields}
    made = draft(given.folder, **{**options, "name": name, "yolo_file": file})
    own = made.lists.items()  # a call that was killed may have written them already
    same = {n for n, text in own if _text(given.folder / n) == text}
    _require_absent(given, [n for n in made.files if n not in same])
    files = write(given.folder, made)
    print(made.yaml, end="")
    if made.note:
        tell(f"warning: {given.folder}: {made.note}")
    data = str(given.folder if name == "data.yaml" else files[0])
    data = shlex.quote(f"./{data}" if data == "scenes" else data)  # which is built in
    if name != given.name and name == BESIDE:
        tell("data.yaml is of another program and stays as it is")
    print(f"wrote {', '.join(map(str, files))}; look at the classes, then `setr doctor {data}`")
    return OK


def is_foreign(path: Path) -> bool:
    """Whether this YAML file is of another program."""
    return path.is_file() and bool(_NAMES.search(path.read_bytes()))


def _text(path: Path) -> str | None:
    """The text of a file; None without one."""
    if not path.is_file():
        return None
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _require_absent(given: Arguments, names: list[str]) -> None:
    for path in (given.folder / name for name in names):
        if path.suffix != ".txt" and is_foreign(path):
            raise UsageError(
                f"{path} is of another program, and a draft would lose the classes it names; add "
                "--name OTHER.yaml to keep it"
            )
        if path.suffix == ".txt" and path.is_file() and not is_drafted(path):
            raise UsageError(
                f"{path}: a draft would replace this list, which is of another program; add --name "
                "OTHER.yaml to keep it"
            )
        if path.exists() and not given.overwrite:
            keep = "rename it" if path.name == TILES else "--name OTHER.yaml"
            raise UsageError(f"{path} exists; add --overwrite to replace it, or {keep} to keep it")

"""`setr init-data DIR`: write the data.yaml of a folder of one's own."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from setr.cli import parse
from setr.errors import OK, USAGE, SetrError
from setr.init_data import draft, write


@dataclass(frozen=True)
class Arguments:
    """Describe a folder of images and masks: splits, ids or colours, and classes to be named."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder with images and masks."""
    val_share: float = 0.2
    """Share of the pairs for validation where the folder has no splits."""
    overwrite: bool = False
    """Replace an existing data.yaml."""


def run(arguments: list[str]) -> int:
    """Write data.yaml and, where there are no splits, train.txt and val.txt."""
    given = parse(Arguments, arguments, "init-data")
    if not given.folder.is_dir():
        raise SetrError(f"{given.folder}: no such folder", code=USAGE)
    if not 0 < given.val_share < 1:
        raise SetrError(f"--val-share {given.val_share}: give a share between 0 and 1", code=USAGE)
    if (given.folder / "data.yaml").exists() and not given.overwrite:
        raise SetrError(
            f"{given.folder}/data.yaml exists; add --overwrite to replace it", code=USAGE
        )
    made = draft(given.folder, val_share=given.val_share)
    files = write(given.folder, made)
    print(made.yaml, end="")
    if made.note:
        print(f"warning: {given.folder}: {made.note}", file=sys.stderr)
    print(
        f"wrote {', '.join(map(str, files))}; name the classes, then `setr doctor {given.folder}`"
    )
    return OK

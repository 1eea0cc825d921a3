"""Drafting `data.yaml` for a folder: finds images, masks, ids or colours, and splits.

Outlines are drawn into masks first. What can be read from the data is written (ids, colours, names
from a classes file); what cannot be known is asked for in a comment.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from setr.data.band_draft import draft_bands
from setr.data.class_draft import draft_classes, listed_classes
from setr.data.data_yaml import SPLITS
from setr.data.flat_pairs import flat_pairs, mask_folders
from setr.data.layouts import find_split, split_lists
from setr.data.pairing import NoSplitError, open_list
from setr.data.split_draft import draft_lists
from setr.data.tile_folder import TILES, TileFolder
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.outlines.class_masks import class_masks
from setr.outlines.files import find_outlines
from setr.outlines.index import DRAWN
from setr.outlines.masks import draw_masks, left_out_text
from setr.reading.files import printable, stem_of, write_bytes

SHOWN = 5


class Draft(NamedTuple):
    """A YAML file and its list files, not yet written.

    Attributes:
        yaml: text of the YAML file.
        lists: text of each list by file name.
        note: message on what was left out, and on masks that look wrong.
        name: of the YAML file.
    """

    yaml: str
    lists: dict[str, str]
    note: str = ""
    name: str = "data.yaml"

    @property
    def files(self) -> dict[str, str]:
        """All texts by file name."""
        return {self.name: self.yaml, **self.lists}


def draft(
    root: Path,
    *,
    val_share: float = 0.2,
    rest: str = "background",
    name: str = "data.yaml",
    class_key: str = "",
    tile: int = 0,
) -> Draft:
    """Draft the description of a folder.

    Outlines and binary masks per class are drawn into its folder `masks_drawn`, again on each call.
    With `tile`, images and masks are cut into its folder `tiles` instead.

    Args:
        root: folder with images and masks, or outlines, with or without folders per split.
        val_share: fraction of the pairs for the validation split if the folder has none; the choice
            depends on file names, and on classes that a part would lack.
        rest: for outlines, the class of pixels outside all of them, or `ignore`.
        name: of the YAML file; unless it is data.yaml, its stem is a prefix of the list files.
        class_key: for GeoJSON, Shapefile, GeoPackage and VIA, the property that names the class.
        tile: most pixels a side of the tiles; 0 to use the images as they are.

    Raises:
        SetrError: a known data set that needs no description, an unknown layout, a `class_key` for
            other formats, or images that cannot be cut.
    """
    if not tile:
        return _draft(root, val_share, rest, name, class_key, None)
    with TileFolder(root, tile) as tiles:
        made = _draft(root, val_share, rest, name, class_key, tiles)
        tiles.finish()
        return made


def _draft(
    root: Path, val_share: float, rest: str, name: str, class_key: str, tiles: TileFolder | None
) -> Draft:
    annotated = class_masks(root, mask_folders())
    if annotated is None:
        try:
            from_masks = _draft_masks(root, val_share, name, tiles)
        except SetrError as error:
            annotated = find_outlines(root, class_key) if error.code == DATA_CHECK_FAILED else None
            if annotated is None:
                raise
            if tiles is not None:
                tiles.clear()
        else:
            _refuse_class_key(root, class_key, "masks")
            return from_masks
    if not annotated.has_properties:
        _refuse_class_key(root, class_key, annotated.kind)
    drawn = draw_masks(root, annotated, rest=rest, tiles=tiles)
    notes = [
        *annotated.notes,
        left_out_text(annotated.left_out),
        _left_out(annotated.unannotated, len(annotated.images), "outlines"),
    ]
    pairs, folder = drawn.pairs, DRAWN
    if tiles is None:
        lists = draft_lists(pairs, val_share, drawn.splits, drawn.by_mask)
    else:
        lists, left_out = tiles.divide(val_share, drawn.splits, drawn.by_mask)
        pairs, folder = tiles.pairs, TILES
        notes += left_out
    head = [
        f"# {len(pairs)} masks in {folder} drawn by `setr init-data` from outlines "
        f"({annotated.kind})."
    ]
    note = "; ".join(filter(None, notes))
    body = [
        *draft_bands([root / image for image, _ in pairs]),
        *listed_classes(dict(enumerate(drawn.classes)), drawn.pixels),
    ]
    return _composed(name, head, note, body, lists)


def _refuse_class_key(root: Path, class_key: str, kind: str) -> None:
    """Refuse a class key that would have no effect."""
    if class_key:
        raise SetrError(
            f"--class-key {class_key}: is for GeoJSON, Shapefile, GeoPackage and VIA, and {root} "
            f"has {kind}; leave it out",
            code=USAGE,
        )


def _draft_masks(root: Path, val_share: float, name: str, tiles: TileFolder | None) -> Draft:
    """Draft the description of a folder of mask files."""
    pairs: list[tuple[str, str]] = []
    known: dict[str, str] = {}
    for split in SPLITS:
        try:
            found = find_split(root, split, None, listed=not _is_drafted(root / f"{split}.txt"))
        except NoSplitError:
            continue
        if found.labels:
            raise SetrError(
                f"{root}: is {found.labels.partition(':')[0]} in its released layout and needs no "
                "data.yaml; check it with `setr doctor`",
                code=USAGE,
            )
        prefix = "" if found.root == root else f"{found.root.relative_to(root).as_posix()}/"
        images = [prefix + image for image in found.images]
        pairs += zip(images, (prefix + mask for mask in found.masks or ()), strict=False)
        known |= dict.fromkeys(images, split)
    divided = "train" not in known.values() or "val" in known.values()
    unpaired: list[str] = []
    if not pairs:
        divided = False
        pairs, unpaired = flat_pairs(root)
        listed = split_lists(root)
        stems = {i: stem_of(i.partition("/")[2] or i) for i, _ in pairs}
        known = {image: listed[stem] for image, stem in stems.items() if stem in listed}
    notes = [_left_out(unpaired, len(pairs), "mask")]
    what = "pairs found"
    if tiles is None:
        classes = draft_classes(root, [mask for _, mask in pairs])
        lists = {} if divided else draft_lists(pairs, val_share, known, classes.by_mask)
    else:
        classes = draft_classes(root, tiles.cut_files(pairs))
        lists, left_out = tiles.divide(val_share, known, classes.by_mask)
        pairs, what = tiles.pairs, f"tiles in {TILES} cut"
        notes += left_out
    head = [f"# {len(pairs)} {what} by `setr init-data`."]
    note = "; ".join(filter(None, (*notes, classes.note)))
    body = [*draft_bands([root / image for image, _ in pairs]), *classes.lines]
    return _composed(name, head, note, body, lists)


def _is_drafted(path: Path) -> bool:
    """Whether a list file is from an earlier draft: image and mask separated by a tab."""
    if not path.is_file():
        return False
    with open_list(path) as file:
        return "\t" in file.readline()


def _left_out(unpaired: list[str], count: int, what: str) -> str:
    """Message on images without a mask or outlines, next to `count` with; empty if all have."""
    if not unpaired:
        return ""
    shown = ", ".join(unpaired[:SHOWN]) + (", …" if len(unpaired) > SHOWN else "")
    shown = " ".join(printable(shown).split())  # one line, for a YAML comment
    return f"{len(unpaired)} of {count + len(unpaired)} images have no {what}, left out: {shown}"


def _composed(
    name: str, head: list[str], note: str, body: list[str], lists: dict[str, str]
) -> Draft:
    """The draft; `lists` are by split, empty if folders define the splits."""
    names = {split: file for split, file in list_names(name).items() if split in lists}
    lines = [*head, *([f"# {note}"] if note else ())]
    lines += [f"{split}: {file}" for split, file in names.items()]
    files = {file: lists[split] for split, file in names.items()}
    return Draft("\n".join([*lines, *body]) + "\n", files, note, name)


def list_names(name: str) -> dict[str, str]:
    """The list file of each split, for a YAML file of this name."""
    prefix = "" if name == "data.yaml" else f"{Path(name).stem}_"
    return {split: f"{prefix}{split}.txt" for split in SPLITS}


def write(root: Path, made: Draft) -> list[Path]:
    """Write a draft into its folder and return the files."""
    for name, text in made.files.items():
        write_bytes(root / name, text.encode("utf-8", "surrogateescape"))
    return [root / name for name in made.files]

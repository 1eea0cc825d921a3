"""Drafting `data.yaml` for a folder: finds images, masks, ids or colours, and splits.

Outlines are drawn into masks first. What can be read from the data is written (ids, colours, names
from a classes file); what cannot be known is asked for in a comment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from setr.data.band_draft import draft_bands
from setr.data.class_draft import draft_classes, listed_classes
from setr.data.class_tables import REST
from setr.data.data_yaml import SPLITS
from setr.data.fold_draft import draft_folds, grouped_lists
from setr.data.found_pairs import find_pairs
from setr.data.name_groups import groups_of
from setr.data.split_draft import MaskPair, draft_lists, known_split, require_listable
from setr.data.tile_folder import TileFolder
from setr.errors import DATA_CHECK_FAILED, DataError, SetrError, UsageError, first_few
from setr.outlines.binary_masks import binary_masks
from setr.outlines.class_masks import chosen_class_masks, class_masks
from setr.outlines.files import find_outlines
from setr.outlines.index import AnnotatedFolder
from setr.outlines.masks import draw_masks, left_out_text, overlaps_text
from setr.outlines.yolo import YOLO
from setr.reading.files import one_line
from setr.reading.made_folders import DRAWN, TILES
from setr.writing import write_text

SHOWN = 5
VAL_SHARE = 0.2
"""Share of the pairs for validation."""


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


class DraftOptions(NamedTuple):
    """What the user may ask for.

    Attributes:
        val_share: fraction of the pairs for the validation split if the folder has none; the choice
            depends on file names, and on classes that a part would lack.
        rest: for outlines, the class of pixels outside all of them, or `ignore`.
        name: of the YAML file; unless it is data.yaml, its stem is a prefix of the list files.
        class_key: for GeoJSON, Shapefile, GeoPackage and VIA, the property that names the class.
        tile: most pixels a side of the tiles; 0 to use the images as they are.
        images: folder or pattern of the images (see `chosen_pairs`); empty to look for usual names.
        masks: the same for the masks.
        threshold: for masks of two classes whose values are not exact: those from this one on are
            foreground. The masks are drawn anew, as outlines are. 0 if values are ids or colours.
        order: for outlines and masks of one class each, names of classes with commas between:
            those named later are drawn over those named earlier, and all of them over others.
        group_by: pattern of image names; images in which its wildcards stand for the same text are
            kept in one split or fold (see `groups_of`).
        folds: number of folds for cross-validation; 0 for none.
        yolo_file: for YOLO's outlines, the YAML file with their classes and splits; None for one
            in the folder.
    """

    val_share: float = VAL_SHARE
    rest: str = REST
    name: str = "data.yaml"
    class_key: str = ""
    tile: int = 0
    images: str = ""
    masks: str = ""
    threshold: int = 0
    order: str = ""
    group_by: str = ""
    folds: int = 0
    yolo_file: Path | None = None

    @property
    def covering(self) -> tuple[str, ...]:
        """The names in `order`."""
        return tuple(filter(None, map(str.strip, self.order.split(","))))

    def lists(
        self, pairs: list[MaskPair], known: Mapping[str, str], classes: Mapping[str, Set[int]]
    ) -> dict[str, str]:
        """Text of the list of each split, or of each fold and of test."""
        groups = groups_of([image for image, _ in pairs], self.group_by) if self.group_by else {}
        if self.folds:
            return draft_folds(pairs, self.folds, known, classes, groups)
        if groups:
            return grouped_lists(pairs, self.val_share, known, classes, groups)
        return draft_lists(pairs, self.val_share, known, classes)


def draft(root: Path, **options: Any) -> Draft:
    """Draft the description of a folder.

    Outlines and binary masks per class are drawn into its folder `masks_drawn`, again on each call.
    With `tile`, images and masks are cut into its folder `tiles` instead.

    Args:
        root: folder with images and masks, or outlines, with or without folders per split.

    Raises:
        SetrError: a known data set that needs no description, an unknown layout, an option that
            would have no effect, one of `images` and `masks` without the other, or images that
            cannot be cut.
    """
    asked = DraftOptions(**options)
    if bool(asked.images) != bool(asked.masks):
        given, other = ("images", "masks") if asked.images else ("masks", "images")
        raise UsageError(f"--{given} {asked.images or asked.masks}: give --{other}, too")
    if asked.tile and (asked.group_by or asked.folds):
        option = f"--group-by {asked.group_by}" if asked.group_by else f"--folds {asked.folds}"
        raise UsageError(f"{option}: is not for --tile, which chooses blocks of tiles")
    if not asked.tile:
        return _draft(root, asked, None)
    with TileFolder(root, asked.tile) as tiles:
        made = _draft(root, asked, tiles)
        tiles.finish()
        return made


def _draft(root: Path, asked: DraftOptions, tiles: TileFolder | None) -> Draft:
    if asked.images:
        annotated = chosen_class_masks(root, asked.images, asked.masks, asked.threshold)
    else:
        annotated = class_masks(root, asked.threshold)
    if annotated is None and asked.threshold:
        found = find_pairs(root, asked.images, asked.masks)
        annotated = binary_masks(root, found, asked.threshold)
    if annotated is None:
        try:
            return _draft_masks(root, asked, tiles)
        except SetrError as error:
            may_have_outlines = error.code == DATA_CHECK_FAILED and not asked.images
            broken: list[str] = []
            if may_have_outlines:
                annotated = find_outlines(root, asked.class_key, broken, asked.yolo_file)
            if annotated is None and broken:
                raise DataError(f"{error}; {first_few(broken, SHOWN)}") from None
            if annotated is None:
                raise
            if tiles is not None:
                tiles.clear()
    return _draft_outlines(root, asked, tiles, annotated)


def _draft_outlines(
    root: Path, asked: DraftOptions, tiles: TileFolder | None, annotated: AnnotatedFolder
) -> Draft:
    """Draft the description of a folder whose masks are drawn here."""
    _refuse_for_others(root, asked, annotated.kind, has_properties=annotated.has_properties)
    splits = {entry.image: entry.split for entry in annotated.images if entry.split}
    _refuse_no_effect(root, asked, [entry.image for entry in annotated.images], splits)
    require_listable(entry.image for entry in annotated.images)  # before anything is written
    drawn = draw_masks(root, annotated, rest=asked.rest, order=asked.covering, tiles=tiles)
    notes = [
        *annotated.notes,
        left_out_text(annotated.left_out),
        _left_out(annotated.unannotated, len(annotated.images), "outlines"),
        overlaps_text(drawn, asked.covering) if annotated.tells_overlaps else "",
    ]
    pairs, folder = drawn.pairs, DRAWN
    if tiles is None:
        lists = asked.lists(pairs, drawn.splits, drawn.by_mask)
    else:
        lists, left_out = tiles.divide(asked.val_share, drawn.splits, drawn.by_mask)
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
    return _composed(asked.name, head, note, body, lists)


def _refuse_for_others(root: Path, asked: DraftOptions, kind: str, *, has_properties: bool) -> None:
    """Refuse a class key or a file of YOLO that would have no effect on this kind of folder."""
    if asked.class_key and not has_properties:
        raise UsageError(
            f"--class-key {asked.class_key}: is for GeoJSON, Shapefile, GeoPackage and VIA, and "
            f"{root} has {kind}; leave it out"
        )
    if asked.yolo_file and kind != YOLO:
        raise UsageError(
            f"{asked.yolo_file}: {root} has {kind}, not YOLO's outlines; give this folder, or the "
            "file to `setr doctor`"
        )


def _refuse_no_effect(
    root: Path, asked: DraftOptions, images: Sequence[str], splits: Mapping[str, str]
) -> None:
    """Refuse a share or groups that no split is drawn by, and groups that images do not have."""
    if asked.group_by:
        groups_of(images, asked.group_by)
    known = {known_split(image, splits) for image in images}
    both = "val" in known and bool(known & {"", "train"})
    share = f"--val-share {asked.val_share}" if asked.val_share != VAL_SHARE else ""
    option = share or (asked.group_by and f"--group-by {asked.group_by}")
    if share and asked.folds:
        raise UsageError(f"{share}: has no effect beside --folds; leave it out")
    if option and both and not asked.folds:
        raise UsageError(
            f"{option}: has no effect, because {root} has images for validation; leave it out"
        )


def _draft_masks(root: Path, asked: DraftOptions, tiles: TileFolder | None) -> Draft:
    """Draft the description of a folder of mask files."""
    found = find_pairs(root, asked.images, asked.masks)
    _refuse_for_others(root, asked, "masks", has_properties=False)
    _refuse_no_effect(root, asked, [image for image, _ in found.pairs], found.splits)
    if asked.rest != REST:
        raise UsageError(
            f"--rest {asked.rest}: is for outlines and masks of one class each, and {root} has "
            "masks of all classes; leave it out, and map their ids in data.yaml"
        )
    if asked.covering:
        raise UsageError(
            f"--order {','.join(asked.covering)}: is for outlines and masks of one class each, and "
            f"{root} has masks of all classes; leave it out"
        )
    notes = [_left_out(found.unpaired, len(found.pairs), "mask")]
    pairs, what = found.pairs, "pairs found"
    if tiles is None:
        classes = draft_classes(root, [mask for _, mask in pairs])
        lists = asked.lists(pairs, found.splits, classes.by_mask)
        lists = {} if found.is_divided and not asked.folds else lists
    else:
        classes = draft_classes(root, tiles.cut_files(pairs))
        lists, left_out = tiles.divide(asked.val_share, found.splits, classes.by_mask)
        pairs, what = tiles.pairs, f"tiles in {TILES} cut"
        notes += left_out
    head = [f"# {len(pairs)} {what} by `setr init-data`."]
    head += [f"# not used: {found.unused}"] if found.unused else []
    note = "; ".join(filter(None, (*notes, classes.note)))
    body = [*draft_bands([root / image for image, _ in pairs]), *classes.lines]
    return _composed(asked.name, head, note, body, lists)


def _left_out(unpaired: list[str], count: int, what: str) -> str:
    """Message on images without a mask or outlines, next to `count` with; empty if all have."""
    if not unpaired:
        return ""
    shown = first_few(unpaired, SHOWN)
    return f"{len(unpaired)} of {count + len(unpaired)} images have no {what}, left out: {shown}"


def _composed(
    name: str, head: list[str], note: str, body: list[str], lists: dict[str, str]
) -> Draft:
    """The draft; `lists` are by split or fold, empty if folders define the splits."""
    folds = [part for part in lists if part not in SPLITS]
    names = list_names(name, [*(split for split in SPLITS if split in lists), *folds])
    note = one_line(note)
    lines = [*map(one_line, head), *([f"# {note}"] if note else ())]
    lines += [f"{split}: {file}" for split, file in names.items() if split in SPLITS]
    for number, own in enumerate(folds, 1):
        others = ", ".join(names[fold] for fold in folds if fold != own)
        lines += [f"train{number}: [{others}]", f"val{number}: {names[own]}"]
    files = {file: lists[part] for part, file in names.items()}
    return Draft("\n".join([*lines, *body]) + "\n", files, note, name)


def list_names(name: str, parts: Sequence[str] = SPLITS) -> dict[str, str]:
    """The list file of each split or fold, for a YAML file of this name."""
    prefix = "" if name == "data.yaml" else f"{Path(name).stem}_"
    return {part: f"{prefix}{part}.txt" for part in parts}


def write(root: Path, made: Draft) -> list[Path]:
    """Write a draft into its folder and return the files.

    The YAML file is last: what is there after a kill, or on a full disk, is no description yet.
    """
    for name, text in reversed(made.files.items()):
        write_text(root / name, text)
    return [root / name for name in made.files]

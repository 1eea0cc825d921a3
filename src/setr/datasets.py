"""Data sets on disk: a folder or a small YAML file -> pairs of image and mask files -> samples.

Layouts recognised without a word of configuration (SPLIT is train, val or test):
`images/SPLIT` + `labels/SPLIT` (or masks, annotations), `SPLIT/images` + `SPLIT/labels`, and
SegNet's `SPLIT` + `SPLITannot`, with or without the list file `SPLIT.txt`. Pairs share a stem.
A YAML file beside or above the data names classes, colours and the label map.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from setr import scenes
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.images import list_images, read_image, read_mask
from setr.labels import Labels, known_labels

SPLITS = ("train", "val", "test")
_MASK_FOLDERS = ("labels", "masks", "annotations")
_YAML_KEYS = ("path", *SPLITS, "classes", "colours", "label_map", "ignore", "labels")


class Pair(NamedTuple):
    """One image file and its mask file; `mask` is None where only images exist."""

    image: Path
    mask: Path | None


class Sample(NamedTuple):
    """One decoded example: image uint8 RGB (H, W, 3), mask uint8 training ids (H, W)."""

    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """One split: file pairs and the classes their ids mean."""

    name: str
    split: str
    labels: Labels
    pairs: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> Sample:
        """Decode one pair.

        Raises:
            SetrError: unreadable file, sizes that differ, ids outside the classes; names the file.
        """
        pair = self.pairs[index]
        image = read_image(pair.image)
        if pair.mask is None:
            raise SetrError(f"{pair.image}: has no mask", code=DATA_CHECK_FAILED)
        raw = read_mask(pair.mask)
        if raw.shape != image.shape[:2]:
            turned = raw.shape[::-1] == image.shape[:2]
            hint = "rotated? re-export it upright" if turned else "masks are never resized silently"
            raise SetrError(
                f"{pair.mask}: mask is {raw.shape[1]}x{raw.shape[0]} but its image "
                f"{image.shape[1]}x{image.shape[0]}; {hint}"
            )
        try:
            return Sample(image, self.labels.to_train_ids(raw))
        except SetrError as error:
            raise SetrError(f"{pair.mask}: {error}") from None


class SceneDataset(Dataset):
    """The embedded data set: drawn street scenes, generated from a seed, never on disk."""

    def load(self, index: int) -> Sample:
        """Draw scene number `index` of this split."""
        return Sample(*scenes.draw(self.split, index))


def open_dataset(path: str, split: str, labels: Labels | None = None) -> Dataset:
    """Open one split of a data set.

    Args:
        path: a folder, a YAML file, or `scenes` for the embedded drawn data, 1000 for
            training and a tenth of that for other splits (`scenes:COUNT` for another number).
        split: `train`, `val`, `test`, or several joined with `+`.
        labels: classes to use where the data does not name its own.

    Raises:
        SetrError: no such path, no such split, no pairs, masks missing, or classes unknown.
    """
    if path.partition(":")[0] == "scenes":
        count = int(path.partition(":")[2] or 1000)
        count = count if split == "train" else max(count // 10, 2)
        pairs = tuple(Pair(Path(f"{split}_{i:05d}.png"), None) for i in range(count))
        return SceneDataset("scenes", split, scenes.LABELS, pairs)
    root, own, folders = _read_description(Path(path))
    labels = own or labels
    if labels is None:
        raise SetrError(
            f"{path}: class names are unknown; write a data.yaml beside the images "
            "(`setr init-data DIR` does) or name a known data set with --data.labels",
            code=USAGE,
        )
    pairs = tuple(pair for part in split.split("+") for pair in _find_pairs(root, part, folders))
    return Dataset(root.name, split, labels, pairs)


def _read_description(path: Path) -> tuple[Path, Labels | None, Mapping[str, str]]:
    """A folder or YAML file -> (root folder, labels if named, image folders by split)."""
    if not path.exists():
        raise SetrError(f"{path}: no such file or folder", code=USAGE)
    if path.is_dir():
        if not (path / "data.yaml").is_file():
            return path, None, {}
        path = path / "data.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SetrError(
            f"{path}: not valid YAML ({str(error).splitlines()[0]})", code=USAGE
        ) from None
    if not isinstance(values, dict):
        raise SetrError(f"{path}: expected keys such as 'classes:'", code=USAGE)
    unknown = [key for key in values if key not in _YAML_KEYS]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), _YAML_KEYS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(_YAML_KEYS)}"
        raise SetrError(f"{path}: unknown key '{unknown[0]}'{hint}", code=USAGE)
    root = (path.parent / str(values.get("path", "."))).resolve()
    folders = {split: str(values[split]) for split in SPLITS if split in values}
    return root, _labels_of(values, path), folders


def _labels_of(values: Mapping[str, Any], path: Path) -> Labels | None:
    if "labels" in values:
        return known_labels(str(values["labels"]))
    classes = values.get("classes")
    if classes is None:
        return None
    if not isinstance(classes, list | dict) or not classes:
        raise SetrError(f"{path}: 'classes' must list the class names", code=USAGE)
    colours = list(classes.values()) if isinstance(classes, dict) else values.get("colours")
    names = list(classes)
    label_map = dict(values.get("label_map") or {})
    if "ignore" in values:
        ignored = values["ignore"] if isinstance(values["ignore"], list) else [values["ignore"]]
        if not label_map:
            label_map = {i: i for i in range(len(names))}
        label_map.update(dict.fromkeys(ignored, "ignore"))
    try:
        return Labels.from_dict({"classes": names, "colours": colours, "label_map": label_map})
    except SetrError as error:
        raise SetrError(f"{path}: {error}", code=USAGE) from None


def _find_pairs(root: Path, split: str, folders: Mapping[str, str]) -> list[Pair]:
    for images, masks in _candidates(root, split, folders):
        listed = root / f"{split}.txt"
        if images.is_dir() and masks.is_dir():
            pairs = _pairs_by_stem(images, masks)
            return _only_listed(pairs, listed) if listed.is_file() else pairs
    tried = (
        f"images/{split} + labels/{split}, {split}/images + {split}/labels, {split} + {split}annot"
    )
    raise SetrError(f"{root}: no split '{split}' found; looked for {tried}", code=DATA_CHECK_FAILED)


def _candidates(root: Path, split: str, folders: Mapping[str, str]) -> list[tuple[Path, Path]]:
    if split in folders:
        images = root / folders[split]
        renamed = [
            Path(*[m if part == "images" else part for part in Path(folders[split]).parts])
            for m in _MASK_FOLDERS
        ]
        return [(images, root / m) for m in renamed if root / m != images]
    return [
        *((root / "images" / split, root / m / split) for m in _MASK_FOLDERS),
        *((root / split / "images", root / split / m) for m in _MASK_FOLDERS),
        (root / split, root / f"{split}annot"),
    ]


def _pairs_by_stem(images: Path, masks: Path) -> list[Pair]:
    files = list_images(images)
    if not files:
        raise SetrError(f"{images}: no images in this folder", code=DATA_CHECK_FAILED)
    by_stem = {p.relative_to(masks).with_suffix(""): p for p in list_images(masks)}
    stems = [p.relative_to(images).with_suffix("") for p in files]
    doubles = (
        sorted({str(s) for s in stems if stems.count(s) > 1})
        if len(set(stems)) < len(stems)
        else []
    )
    if doubles:
        raise SetrError(
            f"{images}: several images share the stem '{doubles[0]}' ({len(doubles)} such stems); "
            "rename them, their masks and outputs would be mixed up",
            code=DATA_CHECK_FAILED,
        )
    missing = [p for p, s in zip(files, stems, strict=True) if s not in by_stem]
    if missing:
        names = ", ".join(p.name for p in missing[:10])
        raise SetrError(
            f"{masks}: no mask for {len(missing)} of {len(files)} images: {names}"
            + (", …" if len(missing) > 10 else ""),
            code=DATA_CHECK_FAILED,
        )
    return [Pair(p, by_stem[s]) for p, s in zip(files, stems, strict=True)]


def _only_listed(pairs: list[Pair], listed: Path) -> list[Pair]:
    """Keep the pairs a list file names: first word of each line, any folder, any suffix."""
    by_stem = {pair.image.stem: pair for pair in pairs}
    lines = listed.read_text(encoding="utf-8").splitlines()
    stems = [Path(line.split()[0]).stem for line in lines if line.strip()]
    unknown = [s for s in stems if s not in by_stem]
    if unknown:
        raise SetrError(
            f"{listed}: {len(unknown)} entries have no image: {', '.join(unknown[:10])}",
            code=DATA_CHECK_FAILED,
        )
    double = (
        sorted({s for s in stems if stems.count(s) > 1}) if len(set(stems)) < len(stems) else []
    )
    if double:
        raise SetrError(
            f"{listed}: '{double[0]}' is listed more than once ({len(double)} such entries)",
            code=DATA_CHECK_FAILED,
        )
    return [by_stem[s] for s in stems]

"""Scoring existing label images against the truth, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from setr.arguments.choices import Absent
from setr.data.data_yaml import DataLoader, labels_of
from setr.errors import DataError, SetrError, UsageError, first_few, first_line
from setr.labels import IGNORE, Labels, known_datasets, known_labels
from setr.reading.files import composed, walk_images
from setr.reading.masks import IdMaskError, read_mask
from setr.reading.parsed import json_of, yaml_of
from setr.scores.by_group import Groups
from setr.scores.scorecard import Scorecard

CHUNK = 32
_IDS, _TRAIN_IDS = "_labelIds", "_labelTrainIds"
_TRUTH = ("_gtFine", "_gtCoarse")
_ENDINGS = (*(kind + ids for kind in _TRUTH for ids in (_IDS, _TRAIN_IDS)), "_leftImg8bit")
"""Suffixes that Cityscapes appends to frame names; removed to find pairs."""
_OTHER = tuple(
    kind + what for kind in _TRUTH for what in ("_color", "_instanceIds", "_instanceTrainIds")
)
"""Suffixes of Cityscapes files that are not label maps."""
_LAST_ID = 33
"""Largest label id of Cityscapes; a map without it is for training ids."""


def score_labels(
    num_classes: int | None,
    *,
    ignore: tuple[int, ...] | None = None,
    reduce_zero_label: bool = False,
    label_map: str | None = None,
) -> Labels:
    """The classes, and the map from ids in the files to them.

    Args:
        num_classes: K; None takes it from the map.
        ignore: raw ids of the truth that are not counted, whatever the map says; None for 255,
            unless the map lists it.
        reduce_zero_label: raw 0 is not counted and raw i is class i - 1, as in ADE20K's files.
        label_map: a YAML or JSON file of raw id -> class id, class name or `ignore`; a `data.yaml`
            or its folder; or the name of a known data set.

    Raises:
        SetrError: conflicting options, ids beside a map of colours, or an unreadable map.
    """
    if label_map is not None:
        if reduce_zero_label:
            raise UsageError("--reduce-zero-label and --label-map both map ids: give one")
        labels = read_labels(label_map, num_classes)
        if num_classes not in (None, len(labels.classes)):
            raise UsageError(
                f"--num-classes {num_classes}: {label_map} has {len(labels.classes)} classes"
            )
        given = dict(labels.label_map or {})
    else:
        if num_classes is None:
            raise UsageError("how many classes? give --num-classes or --label-map")
        labels = Labels(_numbered(num_classes))
        first = int(reduce_zero_label)
        given = {i + first: i for i in range(num_classes)}
        if reduce_zero_label:
            given[0] = IGNORE
    if ignore is None:
        return replace(labels, label_map={IGNORE: IGNORE, **given})
    invalid = [raw for raw in ignore if not 0 <= raw <= 65535]
    if invalid:
        raise UsageError(f"--ignore-index {invalid[0]}: ids in files are 0 to 65535")
    if ignore and labels.colour_map is not None:
        raise UsageError(
            f"--ignore-index {ignore[0]}: the truth of {label_map} contains colours, not ids; map "
            "colours to 'ignore' in its colour_map"
        )
    return replace(labels, label_map=given | dict.fromkeys(ignore, IGNORE))


def _numbered(count: int) -> tuple[str, ...]:
    """Names of classes that have none, for no more of them than ids can be."""
    if count > IGNORE:
        raise UsageError(f"{count} classes: give 1 to {IGNORE}, with ids from 0 on")
    return tuple(map(str, range(count)))


def read_labels(source: str, num_classes: int | None = None) -> Labels:
    """The classes of a known data set, of a YAML or JSON file, or of a folder with `data.yaml`.

    Args:
        source: name of the data set, or path.
        num_classes: number of classes, where a file only maps ids to classes.

    Raises:
        SetrError: no such data set or file, or one without classes.
    """
    if source.partition(":")[0] in known_datasets():
        return known_labels(source)
    path = Path(source)
    path = path / "data.yaml" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json_of(text) if path.suffix == ".json" else yaml_of(text, DataLoader)
    except OSError as error:
        known = ", ".join(known_datasets())
        raise UsageError(f"{path}: {error.strerror}; known maps: {known}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not valid JSON or YAML ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected lines such as '7: 0'")
    if not values.keys() & {"classes", "names", "labels"}:
        targets = [v for v in values.values() if isinstance(v, int) and v != IGNORE]
        count = num_classes or max(targets, default=0) + 1
        values = {"classes": list(_numbered(count)), "label_map": values}
    labels = labels_of(values, path)
    if labels is None:
        raise UsageError(f"{path}: names no classes")
    return known_labels(labels) if isinstance(labels, str) else labels


def score_folders(
    predictions: Path,
    truth: Path,
    labels: Labels,
    *,
    class_ids: bool = False,
    absent: Absent = "skip",
    group_by: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score label images; pairs have equal paths below the folders, apart from the suffix.

    If Cityscapes files with label ids and with training ids are both there, those that fit the
    label map are read.

    Args:
        predictions: folder of label images with ids (or colours) as in the truth; ids outside the
            classes count as wrong.
        truth: folder of label images, each of which needs a prediction.
        labels: the classes and the map from ids in the files, from `score_labels`.
        class_ids: predictions contain training ids, whatever the truth has.
        absent: see `setr.metrics`.
        group_by: pattern of the truth's paths, as `*_{any}`, in which * stands for the group; see
            `evaluate_split`.
        progress: called with (done, total).

    Returns:
        The metrics of `Scorecard.summary`; `failed` has a line for each unreadable pair.

    Raises:
        SetrError: no truth, missing predictions, truth ids that the map does not list, different
            sizes, names that do not fit `group_by`, or nothing readable.
    """
    train_ids = _LAST_ID not in (labels.label_map or ())
    pairs = _pairs(predictions, truth, train_ids=train_ids, class_ids=class_ids)
    K, colours = len(labels.classes), labels.colour_map is not None

    def load(pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray] | str:
        try:
            ours = read_mask(pair[0], rgb=colours and not class_ids)
        except IdMaskError:
            raise DataError(
                f"{pair[0]}: contains one id per pixel, but the truth contains colours; if these "
                "ids are class numbers from 0, add --class-ids"
            ) from None
        except SetrError as error:
            return str(error)
        try:
            real = read_mask(pair[1], rgb=colours)
        except SetrError as error:
            return str(error)
        if ours.shape[:2] != real.shape[:2]:
            raise DataError(
                f"{pair[0]}: prediction is {ours.shape[1]}x{ours.shape[0]} but its truth "
                f"{real.shape[1]}x{real.shape[0]}; resize it (nearest) before scoring"
            )
        ids = ours if class_ids else labels.look_up(ours)
        try:
            real = labels.to_train_ids(real)
        except SetrError as error:
            raise DataError(f"{pair[1]}: {error}") from None
        return np.where((ids >= 0) & (ids < K), ids, K).astype(np.uint8), real

    names = [path.relative_to(truth).as_posix() for _, path in pairs]
    groups = Groups.by_name(names, group_by) if group_by else None
    card = Scorecard(labels.classes, absent=absent, groups=groups)
    for index, loaded in enumerate(_in_threads(load, pairs)):
        if isinstance(loaded, str):
            card.fail(loaded)
        else:
            card.update(index, *map(torch.from_numpy, loaded))
        if progress:
            progress(index + 1, len(pairs))
    if len(card.failed) == len(pairs):
        raise SetrError(f"{truth}: nothing could be scored; first: {card.failed[0]}")
    return card.summary()


def _in_threads(load: Callable[[Any], Any], items: list[Any]) -> Iterator[Any]:
    """Map over threads in order, in chunks to limit memory."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), CHUNK):
            yield from pool.map(load, items[start : start + CHUNK])


def _pairs(
    predictions: Path, truth: Path, *, train_ids: bool, class_ids: bool
) -> list[tuple[Path, Path]]:
    """Prediction and truth of each image."""
    ours, real = _by_stem(predictions, train_ids or class_ids), _by_stem(truth, train_ids)
    other = next((p for p in real.values() if p.stem.endswith(_TRAIN_IDS) and not train_ids), None)
    if other is not None:
        raise DataError(
            f"{other}: contains training ids, but the map lists label ids; for training ids of "
            "Cityscapes give --label-map cityscapes:train_ids"
        )
    for stem in real:
        ids = stem.with_name(f"{stem.name}_ids")  # name of `setr predict --save ids`
        if ids in ours:
            ours.setdefault(stem, ours[ids])
    missing = [str(stem) for stem in real if stem not in ours]
    if missing:
        raise DataError(
            f"{predictions}: no prediction for {len(missing)} of {len(real)} images of {truth}: "
            f"{first_few(missing, 5)}"
        )
    return [(ours[stem], path) for stem, path in real.items()]


def _by_stem(folder: Path, train_ids: bool) -> dict[Path, Path]:
    """Label images by their relative path without Cityscapes' and the format's suffixes."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    files = [folder / name for name in walk_images(folder)]
    kept, skipped = (_TRAIN_IDS, _IDS) if train_ids else (_IDS, _TRAIN_IDS)
    preferred = (path for path in files if path.stem.endswith(kept))
    duplicates = {path.with_stem(path.stem.removesuffix(kept) + skipped) for path in preferred}
    found: dict[Path, Path] = {}
    for path in files:
        stem = Path(composed(str(path.relative_to(folder).with_suffix(""))))
        if stem.name.endswith(_OTHER) or path in duplicates:
            continue
        for ending in _ENDINGS:
            stem = stem.with_name(stem.name.removesuffix(ending) or stem.name)
        if stem in found:
            raise DataError(
                f"{folder}: {found[stem].name} and {path.name} are for the same image; keep one"
            )
        found[stem] = path
    if not found:
        raise DataError(f"{folder}: no label images in this folder")
    return found

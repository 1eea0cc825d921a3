"""Hugging Face data sets of images and masks (extra `hf`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from setr._extras import import_extra
from setr.bands import Bands
from setr.data.class_tables import labels_by_id, names_of_json
from setr.data.configured import Place
from setr.data.data_yaml import HUB
from setr.data.dataset import Dataset
from setr.data.pairing import NoSplitError
from setr.data.pairs import NamedPairs, Numbers
from setr.errors import USAGE, DataError, SetrError, UsageError, first_few
from setr.labels import Labels, known_labels
from setr.reading.pillow import Named, Source
from setr.reading.remote import fetch

IMAGE_KEYS = ("image", "pixel_values")
NAMES = "id2label.json"
"""File of class names in a data set on the Hub."""
MASK_KEYS = ("annotation", "mask", "label", "labels", "semantic_segmentation", "segmentation_mask")


@dataclass(frozen=True)
class HubDataset(Dataset):
    """A split of a Hugging Face data set whose rows contain an image and a mask as files.

    Attributes:
        rows: the `datasets.Dataset`, with images not decoded.
        columns: names of the image and mask columns.
    """

    rows: Any = None
    columns: tuple[str, str] = ("", "")

    @property
    def version(self) -> str:
        """The fingerprint that the library gives the rows."""
        return str(self.rows._fingerprint)

    @property
    def public_name(self) -> str:
        """`owner/name` on the Hub; of a local folder its name."""
        place, _, _ = _parts(self.name)
        return super().public_name if Path(place).exists() else place

    def _part(self, indices: list[int]) -> Dataset:
        """The rows with these indices."""
        chosen = replace(self, rows=self.rows.select(indices))
        return replace(chosen, pairs=[self.pairs[i] for i in indices])

    def sources(self, index: int) -> tuple[Source, Source | None]:
        """Image and mask as stored: bytes, named after the row, or paths."""
        row, pair = self.rows[index], self.pairs[index]
        image, mask = (
            _stored(row[column], str(name)) for column, name in zip(self.columns, pair, strict=True)
        )
        if image is None:
            raise DataError(f"{pair.image}: has no image")
        return image, mask


def _stored(value: Any, name: str) -> Source | None:
    """Bytes or path of an undecoded image; None if the row has none."""
    if value and value["bytes"]:
        return Named(value["bytes"], name)
    return value and value["path"]


def open_hub(
    path: str,
    split: str,
    labels: Labels | str | None,
    split_names: Mapping[str, tuple[Place, ...]],
    bands: Bands | None,
) -> Dataset:
    """Open a split of a Hugging Face data set.

    Args:
        path: `hf:OWNER/NAME`, optionally with `@REVISION` and `:CONFIG`.
        split: name of the split here.
        labels: classes, or the name of a known data set; None takes them from its `id2label.json`.
        split_names: the data set's own names of splits, where they differ.
        bands: bands to read of the images; None for RGB.

    Raises:
        SetrError: not found, no such split, or no columns of images and masks.
    """
    hub = import_extra("datasets", "hf", path)
    name = path.removeprefix(HUB)
    labels, problem = (labels, "") if labels else _own_labels(name)
    if labels is None:
        raise UsageError(
            f"{path}: class names are unknown ({problem}); name a known data set (--data.labels in "
            f"training, --labels elsewhere), or give a YAML file with 'path: {path}' and "
            "'classes:' as data"
        )
    available = _load_splits(hub, name)
    key, *more = split_names.get(split, (split,))
    if more or not isinstance(key, str):
        what = "several splits" if more else "two folders"
        raise UsageError(f"{path}: '{split}' names {what}; give one split of it")
    if key == "val" and key not in available and "validation" in available:
        key = "validation"
    if key not in available:
        kind = SetrError if split in split_names else NoSplitError
        raise kind(f"{path}: no split '{key}'; it has {', '.join(available)}", code=USAGE)
    rows = available[key]
    images, masks = (_column(rows, keys, hub) for keys in (IMAGE_KEYS, MASK_KEYS))
    if images is None or masks is None:
        raise DataError(
            f"{path}: needs images in the columns {' or '.join(IMAGE_KEYS)}, and one of "
            f"{', '.join(MASK_KEYS)}; it has {', '.join(rows.column_names)}"
        )
    columns = images, masks
    for column in columns:
        rows = rows.cast_column(column, hub.Image(decode=False))
    rows = rows.select_columns(list(columns))
    known = known_labels(labels) if isinstance(labels, str) else labels
    pairs = NamedPairs(Path(name, key), Numbers(len(rows)), f":{masks}")
    return HubDataset(name, split, known, pairs, (), rows, columns, bands=bands)


def _parts(name: str) -> tuple[str, str, str]:
    """Repository or folder, revision and configuration of `OWNER/NAME[@REVISION][:CONFIG]`."""
    place, _, config = name.rpartition(":")
    if not place or "/" in config or Path(name).exists():
        place, config = name, ""
    if Path(place).exists():
        return place, "", config
    repository, _, revision = place.partition("@")
    return repository, revision, config


def _own_labels(name: str) -> tuple[Labels | None, str]:
    """The classes in the file `id2label.json` of a data set, which many have; or why none."""
    place, revision, _ = _parts(name)
    folder = Path(place)
    if not folder.exists():
        source = f"{place}@{revision}" if revision else place
        try:
            folder = fetch(source, (NAMES,), is_complete=_has_names, kind="dataset")
        except SetrError as error:
            return None, str(error).partition(";")[0]
    if not _has_names(folder):
        return None, f"it has no {NAMES}"
    names = names_of_json((folder / NAMES).read_text(encoding="utf-8", errors="replace"))
    if names is None:
        raise DataError(f"{HUB}{name}: {NAMES} does not list names by id")
    return labels_by_id(names), ""


def _has_names(folder: Path) -> bool:
    return (folder / NAMES).is_file()


def _load_splits(hub: Any, name: str) -> Any:
    """Splits by name, of `OWNER/NAME[@REVISION][:CONFIG]` or of a local folder."""
    repository, revision, config = _parts(name)
    try:
        return hub.load_dataset(
            repository,
            config or None,
            revision=revision or None,
            trust_remote_code=False,  # before version 2.20, code of the data set ran without asking
        )
    except Exception as error:  # network, gating and format errors of several libraries
        message = " ".join(str(error).split())
        listed = re.search(r"config.*?\[['\"](.+?)['\"]\]", message, re.IGNORECASE)
        if listed is None:
            raise SetrError(f"{HUB}{name}: cannot load ({message[:160]})") from None
    configs = re.split(r"['\"], ['\"]", listed[1])
    shown = first_few(configs, 20)
    what = f"no configuration '{config}';" if config else "which configuration?"
    place = f"{repository}@{revision}" if revision else repository
    raise UsageError(f"{HUB}{name}: {what} it has {shown}; name one, as {HUB}{place}:{configs[0]}")


def _column(rows: Any, names: Iterable[str], hub: Any) -> str | None:
    """The first of these columns that contains images; `label` may also be a class number.

    Columns of text come last, since they may contain class names instead of paths.
    """
    present = [name for name in names if name in rows.column_names]
    kinds = {name: getattr(rows.features[name], "dtype", "") for name in present}
    for name in sorted(present, key=lambda name: "string" in kinds[name]):
        try:
            rows.cast_column(name, hub.Image(decode=False))
        except Exception:  # pyarrow and datasets raise different errors
            continue
        return name
    return None

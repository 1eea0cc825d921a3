"""`data.yaml`: a data set's folders, classes, colours and the mapping from ids to classes.

`names`, `nc`, `masks_dir`, `label_mapping` and `download` are keys of Ultralytics' files for
semantic segmentation: the classes, their number, the folder of masks, the ids of other masks, and
code that is never run; in `roboflow` Roboflow names the source of its exports. `ignore_classes`,
and splits of two folders, are LightlyTrain's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from setr.bands import Bands
from setr.data.class_tables import in_own_keys
from setr.data.configured import FolderPair, Place, described_folder
from setr.errors import SetrError, UsageError, first_line, nearest
from setr.labels import IGNORE, Labels, as_label_map
from setr.reading.parsed import PlainLoader, yaml_of

HUB = "hf:"
"""Prefix of Hugging Face data sets (extra `hf`)."""
SPLITS = ("train", "val", "test")
_FOLD = re.compile(r"(train|val)[1-9]\d*")
"""The splits of a fold for cross-validation."""
YAML_KEYS = (
    "path", *SPLITS, "masks_dir", "classes", "names", "nc", "colours", "label_map", "colour_map",
    "ignore", "labels", "bands", "value_range", "download", "roboflow", "label_mapping",
    "ignore_classes",
)  # fmt: skip

_SHIFT = "label_map: {0: ignore, 1: road, …}"
_ELSEWHERE = {
    "channels": "bands",
    "data_root": "path",
    "do_reduce_labels": _SHIFT,
    "id2label": "names",
    "num_classes": "nc",
    "palette": "colours",
    "reduce_zero_label": _SHIFT,
    "valid": "val",
    "validation": "val",
}
"""Keys of other toolkits -> what does the same here."""
_INSTEAD = (
    (
        "labels",
        (
            *("classes", "names", "nc", "colours", "label_map", "colour_map", "ignore"),
            *("label_mapping", "ignore_classes"),
        ),
        "a known data set has its own classes and ids; remove one of the two",
    ),
    (
        "colour_map",
        ("label_map", "ignore"),
        "masks are read as colours or as ids; remove one of the two, and map colours to leave out "
        "to 'ignore' in colour_map",
    ),
)
"""Keys that replace others, which would have no effect."""


class Description(NamedTuple):
    """The description of a data set, from a YAML file or a folder without one.

    Attributes:
        root: the folder, or `hf:OWNER/NAME`, optionally with `@REVISION` and `:CONFIG`.
        labels: classes, the name of a known data set, or None.
        splits: image folders, list files, or folders of images and masks of each split; for `hf:`
            data the split's name there.
        masks_dir: name of the folder of masks that corresponds to `images`.
        bands: bands to read of the images; None for RGB.
        has_names: whether the classes are listed as other programs do it, under `names`.
    """

    root: Path
    labels: Labels | str | None = None
    splits: Mapping[str, tuple[Place, ...]] = {}
    masks_dir: str | None = None
    bands: Bands | None = None
    has_names: bool = False

    @property
    def folds(self) -> list[str]:
        """Names of the splits of folds: train1, val1, and so on."""
        return [split for split in self.splits if split not in SPLITS]


class DataLoader(PlainLoader):
    """YAML without duplicate keys, booleans and dates.

    PyYAML would silently keep the last of duplicate keys. `yes`, `no` and `on`, booleans in
    YAML 1.1, may be class names here, and dates names of folders.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As in the base class, after looking for duplicate keys."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                again = f"'{key.value}' is listed twice, again in line {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(problem=again)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def as_written(self, node: yaml.ScalarNode) -> str:
        """A scalar as text."""
        return str(node.value)


for _kind in ("bool", "timestamp"):
    DataLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", DataLoader.as_written)


def read_description(path: Path) -> Description:
    """Read a YAML file, or the `data.yaml` of a folder if it has one.

    Raises:
        SetrError: no such file or folder, or not such a description.
    """
    if not path.exists():
        raise UsageError(
            f"{path}: no such file or folder; give the data set's folder or its data.yaml "
            "(--data.root in training), or `scenes` for the built-in synthetic data"
        )
    if path.is_dir():
        if not (path / "data.yaml").is_file():
            return Description(path)
        path = path / "data.yaml"
    elif path.suffix.lower() not in (".yaml", ".yml", ""):
        raise UsageError(
            f"{path}: is neither a folder nor a YAML file; give the data set's folder, unpacked, "
            "or its data.yaml"
        )
    try:
        values = yaml_of(path.read_text(encoding="utf-8"), DataLoader)
    except OSError as error:
        raise UsageError(f"{path}: cannot read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8; save it in that encoding") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected keys such as 'classes:'")
    folds = [key for key in values if isinstance(key, str) and _FOLD.fullmatch(key)]
    unknown = [key for key in values if key not in (*YAML_KEYS, *folds)]
    if unknown:
        key = str(unknown[0])
        near = _ELSEWHERE.get(key) or nearest(key, YAML_KEYS)
        hint = f"; did you mean '{near}'?" if near else f"; known: {', '.join(YAML_KEYS)}"
        raise UsageError(f"{path}: unknown key '{key}'{hint}")
    place = str(values.get("path", "."))
    root = Path(place) if place.startswith(HUB) else described_folder(path, place).resolve()
    named = [split for split in (*SPLITS, *folds) if values.get(split)]
    splits = {split: _places(values[split], split, path) for split in named}
    masks_dir = values.get("masks_dir")
    try:
        bands = Bands.of(values)
    except SetrError as error:
        raise UsageError(f"{path}: {error}") from None
    labels = labels_of(values, path)
    masks_dir = masks_dir and str(masks_dir)
    return Description(root, labels, splits, masks_dir, bands, has_names="names" in values)


def _places(value: Any, split: str, path: Path) -> tuple[Place, ...]:
    return tuple(
        _place(place, split, path) for place in (value if isinstance(value, list) else [value])
    )


def _place(place: Any, split: str, path: Path) -> Place:
    if isinstance(place, str):
        return place
    folders = place if isinstance(place, dict) else {}
    if folders.keys() != {"images", "masks"} or not all(
        isinstance(f, str) for f in folders.values()
    ):
        raise UsageError(
            f"{path}: '{split}' must name a folder or list file, or several, or two folders as "
            "{images: photos, masks: labels}"
        )
    if "{image_path" in folders["masks"]:
        raise UsageError(
            f"{path}: '{split}' has a pattern for masks: give their folder if each has the stem of "
            "its image or that and a common suffix, else pair the files with `setr init-data DIR "
            "--images 'photos/*' --masks 'labels/*_mask'`"
        )
    return FolderPair(**folders)


def labels_of(values: Mapping[str, Any], path: Path) -> Labels | str | None:
    """Classes, or the name of a known data set, from a file's keys; None without either."""
    for key, others, why in _INSTEAD:
        surplus = [other for other in others if other in values]
        if key in values and surplus:
            raise UsageError(f"{path}: '{surplus[0]}' beside '{key}': {why}")
    if "labels" in values:
        return str(values["labels"])
    if "names" in values and "classes" in values:
        raise UsageError(f"{path}: 'names' and 'classes' mean the same; remove one")
    try:
        values = in_own_keys(values, path.parent)
    except SetrError as error:
        raise UsageError(f"{path}: {error}") from None
    key = "names" if "names" in values else "classes"
    classes = values.get(key)
    if classes is None:
        return None
    _require_names(path, key, classes)
    if key == "names" and isinstance(classes, dict):
        if set(classes) != set(range(len(classes))):
            raise UsageError(
                f"{path}: 'names' must have the ids 0 to {len(classes) - 1}; give names by the ids "
                "of the masks as classes: {0: background, 7: road}"
            )
        classes = [classes[i] for i in range(len(classes))]
    if values.get("nc", len(classes)) != len(classes):
        raise UsageError(f"{path}: nc {values['nc']}, but '{key}' has {len(classes)} entries")
    colours = values.get("colours")
    if isinstance(classes, dict) and any(classes.values()):
        colours = list(classes.values())
    for key in ("label_map", "colour_map"):
        _refuse_ambiguous(path, key, values.get(key), [str(name) for name in classes])
    try:
        return Labels.from_dict(
            {
                "classes": list(classes),
                "colours": colours,
                "label_map": _label_map(values, len(classes)),
                "colour_map": values.get("colour_map"),
            }
        )
    except SetrError as error:
        raise UsageError(f"{path}: {error}") from None


def _require_names(path: Path, key: str, classes: Any) -> None:
    """Refuse classes that are no list of names, no names by id, and no names with colours."""
    if not isinstance(classes, list | dict) or not classes:
        raise UsageError(f"{path}: '{key}' must list the class names")
    named = classes.values() if key == "names" and isinstance(classes, dict) else classes
    if "ignore" in named:
        raise UsageError(
            f"{path}: '{key}' lists 'ignore', which marks pixels to leave out and cannot be a "
            "class; list only the other classes, and map this id to 'ignore' in label_map:"
        )
    pairs = classes.items() if isinstance(classes, dict) and key == "classes" else ()
    if pairs and all(type(i) is int and isinstance(value, str) for i, value in pairs):
        raise UsageError(
            f"{path}: 'classes' has numbers for names of colours; give names by id, as "
            "{0: road}, or names with colours, as {road: '#804080'}"
        )
    for name in named:
        if not isinstance(name, str | int | float):
            raise UsageError(
                f"{path}: '{key}' has {name!r} where a name should be; give names, or names with "
                "colours, as {road: [128, 64, 128]}; write a name such as null in quotes"
            )


def _refuse_ambiguous(path: Path, key: str, mapping: Any, classes: list[str]) -> None:
    """Refuse numbers that are the name of one class and the place of another."""
    for number in mapping.values() if isinstance(mapping, Mapping) else ():
        name = str(number)
        if type(number) is int and name in classes and classes.index(name) != number:
            raise UsageError(
                f"{path}: {key} value {number} may be the class called '{name}' or, counted from "
                f"0, another one; write '{name}' in quotes, or {classes.index(name)}"
            )


def _label_map(values: Mapping[str, Any], count: int) -> Mapping[Any, Any]:
    """`label_map` (by default ids 0 .. count-1, and 255 ignored) with the ids of `ignore` added."""
    given = as_label_map(values.get("label_map"))
    if "ignore" not in values:
        return given
    ignored = values["ignore"] if isinstance(values["ignore"], list) else [values["ignore"]]
    wrong = [value for value in ignored if type(value) is not int]
    if wrong:
        raise SetrError(f"ignore {wrong[0]!r}: give an id of the masks, or a list of ids")
    label_map = given or {**{i: i for i in range(count)}, IGNORE: "ignore"}
    return {**label_map, **dict.fromkeys(ignored, "ignore")}

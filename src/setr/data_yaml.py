"""`data.yaml`: where a data set's files are, its classes, their colours and the map of its ids."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from setr.errors import USAGE, SetrError
from setr.labels import Labels

SPLITS = ("train", "val", "test")
YAML_KEYS = (
    "path", *SPLITS, "classes", "colours", "label_map", "colour_map", "ignore", "labels",
)  # fmt: skip


def read_description(path: Path) -> tuple[Path, Labels | str | None, Mapping[str, str]]:
    """A folder or YAML file -> (root, labels or a known name, folder or list file by split)."""
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
    unknown = [key for key in values if key not in YAML_KEYS]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), YAML_KEYS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(YAML_KEYS)}"
        raise SetrError(f"{path}: unknown key '{unknown[0]}'{hint}", code=USAGE)
    root = (path.parent / str(values.get("path", "."))).resolve()
    folders = {split: str(values[split]) for split in SPLITS if split in values}
    return root, _labels_of(values, path), folders


def _labels_of(values: Mapping[str, Any], path: Path) -> Labels | str | None:
    if "labels" in values:
        return str(values["labels"])
    classes = values.get("classes")
    if classes is None:
        return None
    if not isinstance(classes, list | dict) or not classes:
        raise SetrError(f"{path}: 'classes' must list the class names", code=USAGE)
    colours = values.get("colours")
    if isinstance(classes, dict) and any(classes.values()):
        colours = list(classes.values())
    label_map = dict(values.get("label_map") or {})
    if "ignore" in values:
        ignored = values["ignore"] if isinstance(values["ignore"], list) else [values["ignore"]]
        if not label_map:
            label_map = {i: i for i in range(len(classes))}
        label_map.update(dict.fromkeys(ignored, "ignore"))
    try:
        return Labels.from_dict(
            {
                "classes": list(classes),
                "colours": colours,
                "label_map": label_map,
                "colour_map": values.get("colour_map"),
            }
        )
    except SetrError as error:
        raise SetrError(f"{path}: {error}", code=USAGE) from None

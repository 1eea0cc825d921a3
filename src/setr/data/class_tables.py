"""Classes by the ids of the masks, also as files of other toolkits write them.

The result has the keys `classes`, `colours`, `label_map` and `colour_map` of `data.yaml`:

    classes: {0: road, 7: car, 8: car, 255: ignore}    names by id; ids of one name are one class
    classes: id2label.json                             the same in a file, as transformers has it
    classes: {0: road, 1: {name: car, labels: [7, 8]}} LightlyTrain's, with ignore_classes
    label_mapping: {7: 0, 8: 1, 0: ignore_label}       Ultralytics', beside names
    names: [crack]                                     Ultralytics': 1 in the masks; 0 is the rest
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setr.colours import hex_colour
from setr.errors import SetrError, UsageError
from setr.labels import IGNORE, Labels
from setr.reading.parsed import BROKEN, json_of

REST = "background"
"""Class of what is in no other one, if nobody names it."""
_LABELS = ("labels", "values")
"""LightlyTrain's keys of the ids or colours of a class, the second in older versions."""


def labels_by_id(names: Mapping[Any, Any]) -> Labels:
    """Classes from names by id, where ids of one name are one class and `ignore` is none.

    Raises:
        SetrError: keys that are no ids, or as `Labels`.
    """
    return Labels.from_dict(_named(_ids(names, "labels")))


def names_of_json(text: str) -> dict[int, str] | None:
    """Class names by id in a JSON file; None if it has another form.

    The forms are a list of names, {id: name}, [{"id", "name"}], each also under `classes` or, in
    a `config.json` of transformers, `id2label`.
    """
    try:
        values = json_of(text)
        if isinstance(values, dict):
            values = values.get("id2label") or values.get("classes", values)
        if isinstance(values, list):
            named = any(isinstance(v, dict) for v in values)
            values = {v["id"]: v["name"] for v in values} if named else dict(enumerate(values))
        names = dict(sorted((int(key), name) for key, name in values.items()))
    except BROKEN:
        return None
    good = all(key >= 0 and isinstance(name, str) for key, name in names.items())
    return names if good else None


def in_own_keys(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The keys of a data.yaml, with tables of ids and keys of other toolkits in our own.

    Args:
        folder: where the file is.

    Raises:
        SetrError: two keys of which only one can be meant, or a table that cannot be read.
    """
    found = _with_rest(values)
    if "label_mapping" in found:
        _refuse_maps_beside(found, "label_mapping")
        names = found.get("names", found.get("classes"))
        count = len(names) if isinstance(names, list | dict) else 0
        found["label_map"] = _mapped(found.pop("label_mapping"), count)
    classes, ignored = found.get("classes"), found.pop("ignore_classes", None)
    if isinstance(classes, str) and classes.lower().endswith(".json"):
        classes = _of_file(folder / classes)
    if not isinstance(classes, Mapping) or not _is_table(classes):
        if ignored is not None:
            raise SetrError(
                "ignore_classes: is for classes with ids, as {0: road, 1: car}; map the ids to "
                "'ignore' in label_map"
            )
        return found
    _refuse_maps_beside(found, "classes with ids")
    return {**found, **_own_form(classes, ignored)}


def _with_rest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with both classes of Ultralytics' binary files, whose `names` have only id 1."""
    names = values.get("names")
    only = list(names.values()) if isinstance(names, Mapping) else names
    only = only if isinstance(only, list) else []
    if len(only) != 1 or REST in only or values.get("nc", 1) != 1:
        return dict(values)
    if isinstance(names, Mapping) and str(*names) not in ("0", "1"):
        return dict(values)  # not such a file; refused as others whose ids do not begin with 0
    return {**values, "names": [REST, *only], "nc": 2}


def _is_table(classes: Mapping[Any, Any]) -> bool:
    """Whether classes are given by id: numbers with names, not names with colours."""
    return (
        bool(classes)
        and all(re.fullmatch(r"\d+", str(key)) for key in classes)
        and all(
            isinstance(v, str | Mapping) and not str(v).startswith("#") for v in classes.values()
        )
    )


def _own_form(classes: Mapping[Any, Any], ignored: Any) -> dict[str, Any]:
    """`classes` and the map of ids or colours of a table."""
    table = _ids(classes, "classes")
    left_out = _ignored_ids(ignored)
    by_id: dict[int, str] = {}
    by_colour: dict[str, str] = {}
    colours: dict[str, Any] = {}
    for number, entry in table.items():
        name, raws = _entry(number, entry)
        name = "ignore" if number in left_out else name
        for raw in raws:
            if isinstance(raw, int):
                _add(by_id, raw, name)
            else:
                _add(by_colour, hex_colour(raw), name)
                colours.setdefault(name, list(raw))
    if by_id and by_colour:
        raise SetrError("classes: labels of masks are ids or colours; give one of both")
    if not by_colour:
        for raw in left_out - set(table):  # an id that is no class is ignored, too
            _add(by_id, raw, "ignore")
        return _named(by_id)
    kept = [name for name in dict.fromkeys(by_colour.values()) if name != "ignore"]
    return {"classes": kept, "colours": [colours[name] for name in kept], "colour_map": by_colour}


def _named(by_id: Mapping[int, Any]) -> dict[str, Any]:
    names = dict.fromkeys(name for _, name in sorted(by_id.items()) if name != "ignore")
    return {"classes": list(names), "label_map": {IGNORE: "ignore", **by_id}}


def _entry(number: int, entry: Any) -> tuple[str, list[Any]]:
    """The name of a class, and the ids (int) or colours (three ints) of its pixels."""
    if not isinstance(entry, Mapping):
        return entry, [number]
    name = entry.get("name")
    unknown = [key for key in entry if key not in ("name", *_LABELS)]
    if unknown or not isinstance(name, str):
        raise SetrError(
            f"classes {number}: {dict(entry)!r:.80}: give a name, or {{name: road, labels: [7, 8]}}"
        )
    raws = next((entry[key] for key in _LABELS if key in entry), [number])
    if not isinstance(raws, list) or not raws:
        raise SetrError(f"classes {number}: labels {raws!r:.80}: give a list of ids or colours")
    for raw in raws:
        is_colour = (
            isinstance(raw, list)
            and len(raw) == 3
            and all(type(value) is int and 0 <= value <= 255 for value in raw)
        )
        if type(raw) is not int and not is_colour:
            raise SetrError(
                f"classes {number}: label {raw!r:.80}: give an id of the masks, or a colour as "
                "[128, 64, 128]"
            )
    return name, [tuple(raw) if isinstance(raw, list) else raw for raw in raws]


def _add(table: dict[Any, str], raw: Any, name: str) -> None:
    if table.setdefault(raw, name) != name:
        raise SetrError(f"classes: {raw} is of both '{table[raw]}' and '{name}'; give it once")


def _ignored_ids(ignored: Any) -> set[int]:
    listed = ignored if isinstance(ignored, list) else [] if ignored is None else [ignored]
    for number in listed:
        if type(number) is not int or number < 0:
            raise SetrError(f"ignore_classes {number!r}: give ids of the masks")
    return set(listed)


def _ids(table: Mapping[Any, Any], what: str) -> dict[int, Any]:
    """A table by whole numbers; JSON's keys are text."""
    try:
        return {int(str(key)): value for key, value in table.items()}
    except ValueError:
        raise UsageError(
            f"{what} {dict(table)!r:.80}: give names by id, as {{0: 'road', 7: 'car'}}"
        ) from None


def _mapped(mapping: Any, count: int) -> dict[int, Any]:
    """Ultralytics' map of ids: ids that it does not list stay what they are, negative are none."""
    if not isinstance(mapping, Mapping):
        raise SetrError(f"label_mapping {mapping!r:.80}: give a table of id: class")
    own = {**{i: i for i in range(count)}, IGNORE: "ignore"}
    for raw, target in mapping.items():
        if not re.fullmatch(r"-?\d+", str(raw)):
            raise SetrError(f"label_mapping key {raw!r}: give ids of the masks")
        if int(str(raw)) >= 0:
            own[int(str(raw))] = _target(target)
    return own


def _target(target: Any) -> Any:
    """The class that Ultralytics reads in `label_mapping`: an id, also as text, or none."""
    text = str(target).strip()
    if target is None or text in ("ignore_label", str(IGNORE)):
        return "ignore"
    return int(text) if text.isdecimal() else target


def _of_file(path: Path) -> dict[int, str]:
    try:
        names = names_of_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        raise SetrError(
            f"classes: {path} is no readable file; list the names, or name a JSON file of them"
        ) from None
    if not names:
        raise SetrError(f"classes: {path}: no class names found; write {{id: name}} as JSON")
    return names


def _refuse_maps_beside(values: Mapping[str, Any], key: str) -> None:
    for other in ("label_map", "colour_map"):
        if values.get(other) is not None:
            raise SetrError(f"'{other}' beside '{key}': both say the ids of the masks; remove one")

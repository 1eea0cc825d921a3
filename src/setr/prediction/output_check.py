"""Refuses a run that would overwrite its inputs, the files of others, or its own outputs."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable

from setr.errors import SetrError, UsageError
from setr.prediction.inputs import Item
from setr.reading.storage import Identity, Storage, identity
from setr.reading.urls import is_url


def check_outputs(
    written: Iterable[tuple[Item, Iterable[str]]], others: Iterable[str], storage: Storage
) -> None:
    """Refuse inputs of the same name, and outputs that would overwrite inputs or each other.

    Args:
        written: every input with its output files (or folders of files) below OUT.
        others: further files below OUT that the run may replace.
        storage: OUT.

    Raises:
        SetrError: names the file.
    """
    owners: dict[str, Item] = {}
    called: dict[str, Item] = {}
    inputs: dict[Identity, str] = {}
    for item, names in written:
        if not is_url(item.place) and (found := identity(item.place)) is not None:
            inputs[found] = item.place
        _claim_files(item, names, owners)
        _claim_name(item, called)
    _require_no_folders(owners)
    replaced = [*owners, *others]
    _require_no_inputs(replaced, inputs, storage)
    if not storage.remote:
        _require_own(replaced, storage)


def _claim_files(item: Item, names: Iterable[str], owners: dict[str, Item]) -> None:
    """Note who writes which file; refuse a file that another input writes, too."""
    for name in names:
        if owners.setdefault(name, item) is not item:
            raise _clash(item, owners[name], name)


def _claim_name(item: Item, called: dict[str, Item]) -> None:
    """Note the name of an input; refuse one that another has: in packs, outputs are renamed."""
    if called.setdefault(item.name, item) is not item:
        raise UsageError(
            f"{item.shown} and {called[item.name].shown} would both be '{item.name}' in the "
            "manifest; give them other names, or use two output folders"
        )


def _require_no_folders(owners: dict[str, Item]) -> None:
    """Refuse an output file that has to be the folder of another output."""
    for name, item in owners.items():
        folder = posixpath.dirname(name)
        while folder:
            if folder in owners:
                raise _clash(item, owners[folder], folder)
            folder = posixpath.dirname(folder)


def _require_no_inputs(
    replaced: Iterable[str], inputs: dict[Identity, str], storage: Storage
) -> None:
    """Refuse to write over an input."""
    for name in replaced:
        for found in storage.identities(name):
            if found in inputs:
                raise UsageError(
                    f"{inputs[found]}: is an input that this run would replace by its results; "
                    "choose another folder with -o"
                )


def _require_own(names: Iterable[str], storage: Storage) -> None:
    """Refuse to overwrite files that no run wrote: a run makes its manifest before any output.

    Checked once a file is found, because other processes (`--shard`) may be starting, too.
    """
    for name in names:
        if os.path.isfile(storage.path(name)):
            if any(found.endswith(".jsonl") for found in storage.names("manifest")):
                return
            raise UsageError(
                f"{storage.path(name)}: is there already, and no manifest of a run that wrote it; "
                "choose another folder with -o, or move it away"
            )


def _clash(one: Item, other: Item, name: str) -> SetrError:
    return UsageError(
        f"{one.shown} and {other.shown} would both write {name}; use two output folders"
    )

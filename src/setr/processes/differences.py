"""Names what differs between the facts of two processes, or of two starts of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from setr.errors import joined_problems

_SHOWN, _CUT = 5, 60  # differences listed, characters shown of each value


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The differences between two sets of facts, as `key a, not b; …`; empty if there are none.

    For nested maps the differing keys are named, for long lists the first differing entry.
    """
    named = [text for key in {**first, **second} for text in _differing(key, first, second)]
    return joined_problems(named, _SHOWN)


def _differing(key: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """The differences in one fact."""
    mine, theirs = first.get(key), second.get(key)
    if mine == theirs:
        return
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for inner in {**mine, **theirs}:
            yield from (f"{key} {text}" for text in _differing(inner, mine, theirs))
        return
    if isinstance(mine, list) and isinstance(theirs, list) and len(repr(mine)) > _CUT:
        place = next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None
        )
        if place is None:
            yield f"{key} {len(theirs)} entries, not {len(mine)}"
            return
        key, mine, theirs = f"{key}[{place}]", mine[place], theirs[place]
    yield f"{key} {theirs!r:.{_CUT}}, not {mine!r:.{_CUT}}"

"""Which samples of a split stand for all of it where reading every one would take too long."""

from __future__ import annotations


def evenly_spaced(length: int, count: int) -> list[int]:
    """`count` evenly spaced indices from 0 to length - 1, or all if there are fewer; one is 0."""
    if count >= length:
        return list(range(length))
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]

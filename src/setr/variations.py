"""The settings that a sweep tries: all combinations of values, or points spread over ranges."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, product
from typing import Any

from setr.arguments.options import Option, options_of
from setr.config import Config, setting_name
from setr.errors import UsageError
from setr.training.settings import WITHOUT_EFFECT

Variation = Mapping[str, Any]
"""Values by the dotted names of settings."""

LOGARITHMIC = 10.0
"""Ranges whose ends have at least this ratio are spread over the logarithm."""
NAME_LENGTH = 100
"""Most letters in the name of a variation, which names its run folder."""
_RANGE = re.compile(r"([+-]?[\d.]+(?:e[+-]?\d+)?)\.\.([+-]?[\d.]+(?:e[+-]?\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if `whole`."""

    low: float
    high: float
    whole: bool

    def at(self, share: float) -> float | int:
        """The number at a share of the range, 0 to below 1; three significant digits."""
        if self.low > 0 and self.high / self.low >= LOGARITHMIC:
            value = self.low * (self.high / self.low) ** share
        elif self.whole:
            value = math.floor(self.low + share * (self.high - self.low + 1))
        else:
            value = self.low + share * (self.high - self.low)
        return min(round(value), int(self.high)) if self.whole else float(f"{value:.3g}")


@dataclass(frozen=True)
class Listed:
    """Values of any kind."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The value at a share of the list, 0 to below 1."""
        return self.values[int(share * len(self.values))]


def variations(
    config: Config, vary: Mapping[str, Any], number: int | None = None
) -> list[Variation]:
    """The variations of settings to train, in order; the first ones do not depend on `number`.

    Args:
        config: the settings that stay.
        vary: for each varied setting its values, a sequence; or a range, the text `1e-5..1e-3`,
            which needs a number. Names as for `Config.replace`.
        number: so many, spread evenly over values and ranges (Halton's sequence, Numerische
            Mathematik 2, 1960). All combinations if not given.

    Raises:
        UsageError: nothing to vary, an unknown name, a setting that has no effect on the result,
            no values, a value twice, a range of a setting that is no number or without `number`,
            more variations than there are combinations.
    """
    if not vary:
        raise UsageError("vary: nothing is varied; name at least one setting and its values")
    known = {option.dotted: option for option in options_of(Config)}
    choices = dict[str, Range | Listed]()
    for given, values in vary.items():
        name = setting_name(given, known, "vary ")
        if name == "train.seed":
            raise UsageError("vary train.seed: give seeds, how often each setting is trained")
        if name in WITHOUT_EFFECT or name == "recipe":
            raise UsageError(f"vary {name}: does not change what a run learns; give it once")
        if name in choices:
            raise UsageError(f"vary {name}: given twice; give all its values once")
        choices[name] = _choices(name, values, known[name])
    lists = {name: c.values for name, c in choices.items() if isinstance(c, Listed)}
    ranged = next((name for name in choices if name not in lists), None)
    if number is None:
        if ranged:
            raise UsageError(
                f"vary {ranged}: a range needs trials, the number of points to try in it"
            )
        return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    if number < 1:
        raise UsageError(f"trials {number}: give at least 1")
    most = math.prod(map(len, lists.values()))
    if not ranged and number > most:
        raise UsageError(
            f"trials {number}: there are only {most} combinations; leave it out to try them all"
        )
    return _spread(choices, number)


def _choices(name: str, values: Any, option: Option) -> Range | Listed:
    texts = [values] if isinstance(values, str) else values
    if not isinstance(texts, Iterable):
        raise UsageError(f"vary {name} {values!r:.80}: give a list of values, or LOW..HIGH")
    listed = list(texts)
    if not listed:
        raise UsageError(f"vary {name}: no values; give two or more, or LOW..HIGH")
    match = _RANGE.fullmatch(listed[0]) if len(listed) == 1 and isinstance(listed[0], str) else None
    if match:
        return _range(name, match, option)
    twice = next((value for i, value in enumerate(listed) if value in listed[:i]), None)
    if twice is not None:
        raise UsageError(f"vary {name}: {value_text(twice)} is given twice; give each value once")
    return Listed(tuple(listed))


def _range(name: str, match: re.Match[str], option: Option) -> Range:
    text = match[0]
    if option.hint not in (int, float):
        raise UsageError(f"vary {name} {text}: not a setting with one number; list its values")
    try:
        low, high = (option.hint(end) for end in match.groups())
    except ValueError:
        kind = "whole numbers" if option.hint is int else "numbers"
        raise UsageError(f"vary {name} {text}: give {kind} as LOW..HIGH") from None
    if not low < high:
        raise UsageError(f"vary {name} {text}: give LOW below HIGH")
    return Range(low, high, option.hint is int)


def _spread(choices: Mapping[str, Range | Listed], number: int) -> list[Variation]:
    """Distinct points; every next one lies where the ones before are sparse."""
    found = dict[str, Variation]()
    for i in count(1):
        point = {
            name: values.at(_radical_inverse(i, base))
            for base, (name, values) in zip(_primes(), choices.items(), strict=False)
        }
        found.setdefault(repr(point), point)
        if len(found) == number:
            return list(found.values())
    raise AssertionError  # the count has no end


def _primes() -> Iterator[int]:
    return (n for n in count(2) if all(n % k for k in range(2, n)))


def _radical_inverse(number: int, base: int) -> float:
    """The digits of a number mirrored at the point: 0 to below 1."""
    value, place = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        place /= base
        value += digit * place
    return value


def name_of(variation: Variation) -> str:
    """A file name that tells a variation: `lr=0.0001_layer-decay=0.75`.

    Names that are long, or that letters without a place in file names make ambiguous, end with a
    checksum.
    """
    exact = "_".join(f"{key}={value_text(value)}" for key, value in short(variation).items())
    name = re.sub(r"[^\w.=+-]+", "-", exact)
    if name == exact and len(name) <= NAME_LENGTH:
        return name
    return f"{name[: NAME_LENGTH - 9]}-{zlib.crc32(exact.encode()):08x}"


def short(variation: Variation) -> dict[str, Any]:
    """The values by the last parts of their names, or by the whole names where two end alike."""
    ends = [name.rpartition(".")[2] for name in variation]
    return {
        (end if ends.count(end) == 1 else name).replace("_", "-"): value
        for end, (name, value) in zip(ends, variation.items(), strict=True)
    }


def value_text(value: Any) -> str:
    """A value in a table: numbers without trailing zeros, sizes as 378x504, true or false."""
    if isinstance(value, list | tuple):
        return "x".join(map(value_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)

"""One-line messages about wrong command lines: the option as typed, the rule, the fix.

When the argument parser fails, the words are checked here once more against the fields of the
command's dataclass. So no option needs messages of its own, and users never see the parser's
notation.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from setr.arguments.elsewhere import ADVICE, ELSEWHERE, VALUES_ELSEWHERE
from setr.arguments.options import Option, options_of
from setr.arguments.typed import described, members

_TYPO_CUTOFF = 0.8  # similarity of a typing error; at 0.7 different words match


def problem(kind: Any, words: Sequence[str], verb: str) -> str | None:
    """What is wrong with the words after a command's name; None if nothing is found here."""
    if "--" in words:
        return "--: has no meaning here; write a path that begins with - as ./-…"
    options = options_of(kind)
    flags = flags_of(options)
    return unknown(words, flags, options, verb) or _Checker(options, flags, verb).problem(words)


def flags_of(options: list[Option]) -> dict[str, Option]:
    """The options by the words that set them, `--no-…` of switches included."""
    flags = {flag: option for option in options for flag in option.flags}
    negatives = {option.negative: option for option in options if option.is_switch}
    return flags | {flag: option for flag, option in negatives.items() if flag}


def unknown(
    words: Sequence[str], flags: Mapping[str, Option], options: list[Option], verb: str
) -> str | None:
    """The message on the first word that begins like an option and is none of `flags`, or None.

    Args:
        flags: the options that it may have.
        options: those that may be meant.
    """
    for word in words:
        flag = _split(word, flags)[0]
        if _is_flag(word) and _hyphenated(flag) not in flags:
            return f"{flag}: {_unknown_option(flag, options, verb)}"
    return None


def missing(kind: Any, given: Any, verb: str) -> str | None:
    """Message on a required positional argument of any length, which the parser lets be empty."""
    options = options_of(kind)
    for option in options:
        if not option.flags and option.required and getattr(given, option.dotted) == ():
            return f"{option.placeholder} is missing; write {usage(options, verb)}"
    return None


def emptied(kind: Any, words: Sequence[str], verb: str) -> str | None:
    """Message on an empty word where something is named; a path would be `.`, a name left out."""
    if "" not in words and not any(word.endswith("=") for word in words):
        return None
    options = options_of(kind)
    checker = _Checker(options, flags_of(options), verb)
    checker.problem(words)
    why = "is empty, as a variable that is not set"
    here = "the current folder is ."
    for flag, option, values in checker.given:
        is_path = option.hint is Path or option.name == "out"
        is_name = option.optional and option.hint is str
        if (is_path or is_name) and values[:1] == [""]:
            return f"{flag} '': {why}; {here if is_path else 'leave it out, or give a value'}"
    if any(not word for word, _ in checker.positionals):
        return f"'': {why}; {here}; write {usage(options, verb)}"
    return None


def named_as_typed(kind: Any, text: str, words: Sequence[str]) -> str:
    """A message with `train.batch_size` replaced by the flag as typed: `--train.batch-size`."""
    flags = (word.partition("=")[0] for word in words)
    typed = {_hyphenated(flag): flag for flag in flags if _is_flag(flag)}
    for option in options_of(kind):
        if option.flags and "." in option.dotted:
            shown = next((typed[f] for f in option.flags if f in typed), option.flags[0])
            text = re.sub(rf"(?<![\w.-]){re.escape(option.dotted)}(?!\w)", shown, text)
    return text


@dataclass
class _Checker:
    """Checks the words of a command line against its options.

    Attributes:
        options: of the command.
        flags: options by flag.
        verb: the command's name.
        given: the options as typed, each with its values.
        positionals: words that are not the value of an option, each with the message to give if
            there are too many.
        counts: number of positionals before each option.
    """

    options: list[Option]
    flags: dict[str, Option]
    verb: str
    given: list[tuple[str, Option, list[str]]] = field(default_factory=list)
    positionals: list[tuple[str, str]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def problem(self, words: Sequence[str]) -> str | None:
        """The first wrong value, else a surplus word, else what is missing."""
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if not _is_flag(word):
                self.positionals.append((word, ""))
                continue
            flag, attached, value = _split(word, self.flags)
            option = self.flags[_hyphenated(flag)]
            self.counts.append(len(self.positionals))
            values = [value] if attached else []
            while not attached and rest and not _is_flag(rest[0]):
                values.append(rest.pop(0))
            self.given.append((flag, option, values))
            check = self._switch if option.is_switch else self._value
            message = check(flag, option, values, bool(attached))
            if message:
                return message
        return self._positionals()

    def _switch(self, flag: str, option: Option, values: list[str], attached: bool) -> str | None:
        ways = filter(None, (option.flags[0], option.negative))
        rule = f"takes no value; write {' or '.join(ways)}"
        if attached:
            return f"{flag}={values[0]}: {rule}"
        self.positionals += [(v, "" if i else f"{flag} {v}: {rule}") for i, v in enumerate(values)]
        return None

    def _value(self, flag: str, option: Option, values: list[str], attached: bool) -> str | None:
        kinds, many = members(option.hint)
        if option.optional and values[:1] == ["None"]:
            kinds, many = (str,), False
        count = len(kinds)
        rule = f"give {described(kinds, many)}"
        if many:
            kept = max(0, len(values) - self._positionals_to_come())
            own, others = values[:kept], values[kept:]
        else:
            own, others = values[:count], values[count:]
        shown = f"{flag}={own[0]}" if attached else " ".join((flag, *map(_shown, own)))
        wrong = [v for v, k in zip(own, kinds * len(own), strict=False) if not _fits(v, k)]
        if wrong:
            alone = count == 1 and not attached
            near = VALUES_ELSEWHERE.get(_hyphenated(wrong[0].lower()), "")
            if any(near in map(str, get_args(kind)) for kind in kinds):
                rule += f"; the nearest is {near}"
            return f"{flag} {_shown(wrong[0])}: {rule}" if alone else f"{shown}: {rule}"
        if many:
            self.positionals += [(value, "") for value in others]
            return None
        if not own:
            fix = f"write {option.usage}" if option.hint in (str, Path) else rule
            return f"{flag}: its value is missing; {fix}"
        if len(own) < count:
            repeated = " ".join([own[0]] * count)
            return f"{shown}: {rule}, such as {flag} {repeated}"
        surplus = f"{shown} {others[0]}: {rule}" if others and not self._is_variadic() else ""
        self.positionals += [(v, "" if i else surplus) for i, v in enumerate(others)]
        return None

    def _positionals_to_come(self) -> int:
        """Number of required positional arguments that have no word yet, without variadic ones."""
        required = (o for o in self.options if o.required and not o.flags)
        return max(0, sum(not members(o.hint)[1] for o in required) - len(self.positionals))

    def _is_variadic(self) -> bool:
        """Whether a positional argument takes any number of words; they must not be separated."""
        return any(members(option.hint)[1] for option in self.options if not option.flags)

    def _positionals(self) -> str | None:
        """Surplus or missing words; then missing options."""
        given = {option.dotted for _, option, _ in self.given}
        expected = [option for option in self.options if not option.flags]
        variadic = self._is_variadic()
        if len(self.positionals) > len(expected) and not variadic:
            word, message = self.positionals[len(expected)]
            fix = f"write {usage(self.options, self.verb)}"
            if any(option.dotted == "data.root" for option in self.options) and Path(word).exists():
                fix = f"data are given by --data.root {word}"
            return message or self._assigned() or f"'{word}' is one word too many; {fix}"
        missing = [o.placeholder for o in expected[len(self.positionals) :] if o.required]
        missing += [o.flags[-1] for o in self.options
                    if o.flags and o.required and o.dotted not in given]  # fmt: skip
        if missing:
            if assignment := self._assigned():
                return assignment
            *first, last = missing
            listed = f"{', '.join(first)} and {last} are" if first else f"{last} is"
            return f"{listed} missing; write {usage(self.options, self.verb)}"
        separated = [n for n in self.counts if len(expected) <= n < len(self.positionals)]
        if variadic and separated:
            word, message = self.positionals[separated[0]]
            fix = f"write all {expected[-1].placeholder} together, before the options"
            return (
                message
                or f"'{word}' is not the value of an option and is separated from the rest; {fix}"
            )
        return None

    def _assigned(self) -> str | None:
        """The message on the first `name=value`, the way other toolkits write options."""
        messages = (assigned(word, self.options, self.verb) for word, _ in self.positionals)
        return next(filter(None, messages), None)


def assigned(word: str, options: list[Option], verb: str) -> str | None:
    """How to write the option in `name=value`; None for other words."""
    found = re.match(r"([a-z][\w.-]*)=", word)
    if not found:
        return None
    matches = meant(found[1], options)
    is_option = matches and matches[0].flags
    fix = f"write {matches[0].usage if is_option else usage(options, verb)}"
    return f"{word}: options are written --NAME VALUE here; {fix}"


def usage(options: list[Option], verb: str) -> str:
    """The command with its positional arguments and required options."""
    needed = [o for o in options if not o.flags] + [o for o in options if o.flags and o.required]
    return " ".join(("setr", verb, *(option.usage for option in needed)))


def _is_flag(word: str) -> bool:
    """Whether it begins with - and a letter, unlike negative numbers, and is not -inf or -nan."""
    return bool(re.match(r"--?[a-zA-Z]", word)) and word.lower() not in ("-inf", "-nan")


def _split(word: str, flags: Mapping[str, Option]) -> tuple[str, str, str]:
    """Flag, separator and value of `--out=x` or `-ox`; the separator is empty without a value."""
    flag, separator, value = word.partition("=")
    if flag not in flags and flag[:2] in flags:
        return word[:2], "attached", word[2:]
    return flag, separator, value


def _shown(word: str) -> str:
    """The word, or quotes if it is empty."""
    return word or "''"


def _hyphenated(flag: str) -> str:
    """`--train.batch_size` as `--train.batch-size`."""
    return flag.replace("_", "-")


def _fits(value: str, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in map(str, get_args(kind))
    if kind in (int, float):  # any word is text or a path
        try:
            kind(value)
        except ValueError:
            return False
    return True


def _unknown_option(flag: str, options: list[Option], verb: str) -> str:
    """Message on an unknown option, with the option that was probably meant."""
    command = f"setr {verb}".removesuffix(" RECIPE")
    name = _hyphenated(flag).lstrip("-")
    matches = meant(name, options)
    if not matches:
        fix = ADVICE.get(name) or ADVICE.get(name.rpartition(".")[2]) or f"see `{command} --help`"
        return f"{command} has no such option; {fix}"
    if any(option.flags for option in matches):
        negated = any(part.startswith("no-") for part in name.split("."))
        shown = [
            option.negative if negated and option.is_switch and option.negative else option.flags[0]
            for option in matches
            if option.flags
        ]
        in_steps = "epochs" in name and matches[0].name.endswith("steps")
        unit = " (in steps, not epochs)" if in_steps else ""
        advice = f" ({ADVICE[name]})" if name in ADVICE else ""  # it may mean none of them
        return f"{command} has no such option; did you mean {' or '.join(shown)}{unit}?{advice}"
    return (
        f"{command} has no such option; {matches[0].placeholder} is written without one: "
        f"{usage(options, verb)}"
    )


def meant(name: str, options: list[Option]) -> list[Option]:
    """Options that an unknown name may mean, empty if none.

    Tried in turn: the name in another toolkit, the last part of a dotted name, a typing error. The
    name has no leading hyphens.
    """
    name = _hyphenated(name)
    by_last: dict[str, list[Option]] = {}
    for option in options:
        by_last.setdefault(option.name.rpartition(".")[2], []).append(option)
    by_name = {option.name: [option] for option in options}
    bare = name.rpartition(".")[2]

    def elsewhere(word: str) -> list[Option]:
        for equivalent in ELSEWHERE.get(word, ()):
            if equivalent in by_name:
                return by_name[equivalent]
            if equivalent in by_last and len(by_last[equivalent]) == 1:
                return by_last[equivalent]
        return []

    if found := elsewhere(name):
        return found
    for last in (bare, bare.removeprefix("no-")):
        if last in by_last:
            return by_last[last]
    if found := elsewhere(bare):
        return found
    if {name, bare} & ADVICE.keys():  # no typing error
        return []
    for known, key in ((by_name, name.replace("no-", "")), (by_last, bare.removeprefix("no-"))):
        near = difflib.get_close_matches(key, known, 1, _TYPO_CUTOFF)
        if near:
            return known[near[0]]
    return []

"""What is wrong with a command line, in one line: the option as it was typed, the rule, the fix.

The argument parser says that something is wrong; what, is found here by walking over the words once
more beside the fields of the verb's dataclass. So messages and hints need no case per option, and
nothing of the parser's own notation reaches the user.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from setr.arguments.elsewhere import ELSEWHERE
from setr.arguments.options import Option, options_of

_NEAR = 0.8  # likeness of a slip of the keys; at 0.7 other words pass for one
_KINDS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("whole number", int),
    float: ("number", float),
    Path: ("path", Path),
    str: ("text", str),
}


def problem(kind: Any, words: Sequence[str], verb: str) -> str | None:
    """What is wrong with the words after a verb; None if nothing is found here."""
    if "--" in words:
        return "--: has no meaning here; write a path that begins with - as ./-…"
    table = options_of(kind)
    flags = {flag: option for option in table for flag in option.flags}
    flags |= {option.negative: option for option in table if option.is_switch}
    for word in words:
        flag = _split(word, flags)[0]
        if _is_flag(word) and _plain(flag) not in flags:
            return f"{flag}: {_no_such(flag, table, verb)}"
    return _Walk(table, flags, verb).problem(words)


def missing(kind: Any, given: Any, verb: str) -> str | None:
    """That words are missing where the parser takes any number of them, also none."""
    table = options_of(kind)
    for option in table:
        if not option.flags and option.required and getattr(given, option.dotted) == ():
            return f"{option.placeholder} is missing; write {usage(table, verb)}"
    return None


def named_as_typed(kind: Any, text: str, words: Sequence[str]) -> str:
    """A message with `train.batch_size` as the user wrote it: `--train.batch-size`."""
    typed = {_plain(flag): flag for flag in (w.partition("=")[0] for w in words) if _is_flag(flag)}
    for option in options_of(kind):
        if option.flags and "." in option.dotted:
            shown = next((typed[f] for f in option.flags if f in typed), option.flags[0])
            text = re.sub(rf"(?<![\w.-]){re.escape(option.dotted)}(?!\w)", shown, text)
    return text


@dataclass
class _Walk:
    """Words of a command line beside the options; `free` are those that belong to no option.

    `breaks` are how many of them stand before each option.
    """

    table: list[Option]
    flags: dict[str, Option]
    verb: str
    free: list[tuple[str, str]] = field(default_factory=list)  # and what they may have to do with
    breaks: list[int] = field(default_factory=list)

    def problem(self, words: Sequence[str]) -> str | None:
        """The first wrong value, else a word too many, else what is missing."""
        given: set[str] = set()
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if not _is_flag(word):
                self.free.append((word, ""))
                continue
            flag, attached, value = _split(word, self.flags)
            option = self.flags[_plain(flag)]
            given.add(option.dotted)
            self.breaks.append(len(self.free))
            values = [value] if attached else []
            while not attached and rest and not _is_flag(rest[0]):
                values.append(rest.pop(0))
            found = self._switch if option.is_switch else self._value
            message = found(flag, option, values, bool(attached))
            if message:
                return message
        return self._places(given)

    def _switch(self, flag: str, option: Option, values: list[str], attached: bool) -> str | None:
        rule = f"takes no value; write {option.flags[0]} or {option.negative}"
        if attached:
            return f"{flag}={values[0]}: {rule}"
        self.free += [(v, "" if i else f"{flag} {v}: {rule}") for i, v in enumerate(values)]
        return None

    def _value(self, flag: str, option: Option, values: list[str], attached: bool) -> str | None:
        kinds, many = members(option.hint)
        if option.optional and values[:1] == ["None"]:
            kinds, many = (str,), False
        count = len(kinds)
        rule = f"give {described(kinds, many)}"
        if many:
            kept = max(0, len(values) - self._needed())
            own, others = values[:kept], values[kept:]
        else:
            own, others = values[:count], values[count:]
        shown = f"{flag}={own[0]}" if attached else " ".join((flag, *map(_shown, own)))
        wrong = [v for v, k in zip(own, kinds * len(own), strict=False) if not _fits(v, k)]
        if wrong:
            alone = count == 1 and not attached
            return f"{flag} {_shown(wrong[0])}: {rule}" if alone else f"{shown}: {rule}"
        if many:
            self.free += [(value, "") for value in others]
            return None
        if not own:
            fix = f"write {option.usage}" if option.hint in (str, Path) else rule
            return f"{flag}: its value is missing; {fix}"
        if len(own) < count:
            repeated = " ".join([own[0]] * count)
            return f"{shown}: {rule}, such as {flag} {repeated}"
        more = f"{shown} {others[0]}: {rule}" if others and not self._endless() else ""
        self.free += [(v, "" if i else more) for i, v in enumerate(others)]
        return None

    def _needed(self) -> int:
        """Words by their place that are still to come, where their number is fixed."""
        places = (o for o in self.table if o.required and not o.flags)
        return max(0, sum(not members(o.hint)[1] for o in places) - len(self.free))

    def _endless(self) -> bool:
        """Whether the last place takes any number of words, which stand together."""
        return any(members(option.hint)[1] for option in self.table if not option.flags)

    def _places(self, given: set[str]) -> str | None:
        """Words too many, wrong or missing; then missing options."""
        places = [option for option in self.table if not option.flags]
        endless = self._endless()
        if len(self.free) > len(places) and not endless:
            word, known = self.free[len(places)]
            fix = f"write {usage(self.table, self.verb)}"
            if any(option.dotted == "data.root" for option in self.table) and Path(word).exists():
                fix = f"data are named by --data.root {word}"
            return known or self._assigned() or f"'{word}' is one word too many; {fix}"
        missing = [o.placeholder for o in places[len(self.free) :] if o.required]
        missing += [o.flags[-1] for o in self.table
                    if o.flags and o.required and o.dotted not in given]  # fmt: skip
        if missing:
            if assigned := self._assigned():
                return assigned
            *first, last = missing
            listed = f"{', '.join(first)} and {last} are" if first else f"{last} is"
            return f"{listed} missing; write {usage(self.table, self.verb)}"
        apart = [at for at in self.breaks if len(places) <= at < len(self.free)]
        if endless and apart:
            word, known = self.free[apart[0]]
            fix = f"write all {places[-1].placeholder} together, before the options"
            return known or f"'{word}' is no value of an option and stands apart; {fix}"
        return None

    def _assigned(self) -> str | None:
        """The first word that is `name=value`, as another toolkit writes options."""
        return next(filter(None, (assigned(w, self.table, self.verb) for w, _ in self.free)), None)


def assigned(word: str, table: list[Option], verb: str) -> str | None:
    """How the option in `name=value` is written here; None of any other word."""
    found = re.match(r"([a-z][\w.-]*)=", word)
    if not found:
        return None
    meant = _meant(_plain(found[1]), table)
    fix = f"write {meant[0].usage}" if meant and meant[0].flags else f"write {usage(table, verb)}"
    return f"{word}: options are written --NAME VALUE here; {fix}"


def usage(table: list[Option], verb: str) -> str:
    """The command with all it needs, as one would type it."""
    needed = [o.usage for o in table if not o.flags] + [
        o.usage for o in table if o.flags and o.required
    ]
    return " ".join(("setr", verb, *needed))


def _is_flag(word: str) -> bool:
    """Begins with - and a letter; negative numbers do not, nor do inf and nan with a sign."""
    return bool(re.match(r"--?[a-zA-Z]", word)) and word.lower() not in ("-inf", "-nan")


def _split(word: str, flags: dict[str, Option]) -> tuple[str, str, str]:
    """`--out=x` and `-ox` as option, what joins it to its value, and value."""
    flag, joint, value = word.partition("=")
    if flag not in flags and flag[:2] in flags:
        return word[:2], "attached", word[2:]
    return flag, joint, value


def _shown(word: str) -> str:
    """A word as it is typed: one that is empty has quotes."""
    return word or "''"


def _plain(flag: str) -> str:
    """`--train.batch_size` is `--train.batch-size`."""
    return flag.replace("_", "-")


def members(hint: Any) -> tuple[tuple[Any, ...], bool]:
    """Types of a value's words, and whether there may be any number of them."""
    if get_origin(hint) is not tuple:
        return (hint,), False
    kinds = get_args(hint)
    return (kinds[:1], True) if kinds[-1] is Ellipsis else (kinds, False)


def described(kinds: tuple[Any, ...], many: bool) -> str:
    """What to give for such types, for a message."""
    if get_origin(kinds[0]) is Literal:
        return f"one of {', '.join(map(str, get_args(kinds[0])))}"
    word, _ = _KINDS.get(kinds[0], ("text", str))
    if len(kinds) == 1 and not many:
        return word if word == "text" else f"a {word}"
    number = "" if many else {2: "two ", 3: "three "}.get(len(kinds), f"{len(kinds)} ")
    return f"{number}{word}" + ("" if word == "text" else "s")


def _fits(value: str, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in map(str, get_args(kind))
    try:
        _KINDS.get(kind, ("", str))[1](value)
    except ValueError:
        return False
    return True


def _no_such(flag: str, table: list[Option], verb: str) -> str:
    """That there is no such option, and which one is meant if that is clear."""
    command = f"setr {verb}".removesuffix(" RECIPE")
    name = _plain(flag).lstrip("-")
    meant = _meant(name, table)
    if not meant:
        return f"{command} has no such option; see `{command} --help`"
    if any(option.flags for option in meant):
        off = any(part.startswith("no-") for part in name.split("."))
        shown = [
            option.negative if off and option.is_switch else option.flags[0]
            for option in meant
            if option.flags
        ]
        other = "epochs" in name and meant[0].name.endswith("steps")
        unit = " (in steps, not epochs)" if other else ""
        return f"{command} has no such option; did you mean {' or '.join(shown)}{unit}?"
    return (
        f"{command} has no such option; {meant[0].placeholder} is written without one: "
        f"{usage(table, verb)}"
    )


def _meant(name: str, table: list[Option]) -> list[Option]:
    """The option another toolkit calls so, one whose last part is that, or a slip of the keys."""
    by_last: dict[str, list[Option]] = {}
    for option in table:
        by_last.setdefault(option.name.rpartition(".")[2], []).append(option)
    by_name = {option.name: option for option in table}
    bare = name.rpartition(".")[2]
    for wanted in ELSEWHERE.get(name, ()):
        if wanted in by_name:
            return [by_name[wanted]]
        if wanted in by_last and len(by_last[wanted]) == 1:
            return by_last[wanted]
    for last in (bare, bare.removeprefix("no-")):
        if last in by_last:
            return by_last[last]
    for known, key in ((by_name, name.replace("no-", "")), (by_last, bare.removeprefix("no-"))):
        near = difflib.get_close_matches(key, known, 1, _NEAR)
        if near:
            found = known[near[0]]
            return found if isinstance(found, list) else [found]
    return []

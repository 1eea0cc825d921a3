"""`setr models [PATTERN] [--table2] [--encoders]`."""

from __future__ import annotations

import fnmatch
import json
import shlex
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from setr.commands.parsing import parse, require_at_least, require_default
from setr.errors import OK, UsageError

_UNUSED = {"encoders": ("table2", "size", "classes"), "table2": ("size", "classes")}
"""Options without effect on the tables that two others choose."""


@dataclass(frozen=True)
class Arguments:
    """List the named models with their size, cost and the licence of their encoder's weights.

    setr models '*pup*'
    setr models --encoders '*dinov2*'
    """

    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[PATTERN]")] = "*"
    """Shell pattern, for example '*pup*'."""
    size: int = 512
    """Image side in pixels for positions and operations."""
    classes: int = 150
    """Number of classes."""
    table2: bool = False
    """Compare the parameters with the paper's Table 2 instead, part by part."""
    encoders: bool = False
    """List timm's plain vision transformers that can be an encoder instead."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Print one model a line."""
    given = parse(Arguments, arguments, "models")
    require_at_least(given, 16, "size")
    require_at_least(given, 1, "classes")
    for other, unused in _UNUSED.items():
        if getattr(given, other):
            rule = f"does nothing with --{other}; leave one of them out"
            require_default(given, rule, *unused)
    if given.encoders:
        rows = _encoders(given.pattern)
        text = "\n".join(rows)
    elif given.table2:
        rows, text = _table2(given.pattern)
    else:
        rows, text = _models(given)
    if not rows:
        if not given.encoders and not given.table2 and _encoders(given.pattern):
            hint = f"`setr models --encoders {shlex.quote(given.pattern)}` lists encoders"
        else:
            hint = "`setr models` lists all"
        raise UsageError(f"no model matches '{given.pattern}'; {hint}")
    print(json.dumps(rows) if given.json else text)
    return OK


def _encoders(pattern: str) -> list[str]:
    from setr.layers.timm_vit import list_encoders

    return list_encoders(pattern)


def _models(given: Arguments) -> tuple[list[Any], str]:
    from setr.catalog import list_models
    from setr.training.complexity import model_figures

    names = list_models(given.pattern)
    rows = [model_figures(n, num_classes=given.classes, size=given.size) for n in names]
    note = (
        f"{given.classes} classes, {given.size}x{given.size}; parameters with auxiliary heads, "
        "GFLOPs without (a multiply-add is two)"
    )
    sizes = ("layers", "width", "heads")
    lines = [
        f"{'model':<20}{'encoder':<30}"
        + "".join(f"{size:>7}" for size in sizes)
        + f"{'M params':>10}{'GFLOPs':>8}{'stride':>8}  licence"
    ]
    lines += [
        f"{r['name']:<20}{r['encoder']:<30}"
        + "".join(f"{r[size] or '':>7}" for size in sizes)
        + f"{r['parameters'] / 1e6:>10.2f}{r['gflops']:>8.1f}{r['stride']:>8}  {r['licence']}"
        for r in rows
    ]
    return rows, "\n".join([*lines, note])


def _table2(pattern: str) -> tuple[list[Any], str]:
    from setr.training.complexity import TABLE2, table2_figures

    rows = [table2_figures(row) for row in TABLE2 if fnmatch.fnmatch(row.name, pattern)]
    parts = ("encoder", "neck", "decoder", "aux_heads", "unused_classifiers", "total")
    lines = [f"{'Table 2':<26}{'paper M':>9}" + "".join(f"{p:>19}" for p in parts) + "   rest M"]
    lines += [
        f"{r['system']:<26}{r['paper_millions']:>9.2f}"
        + "".join(f"{r[p]:>19,}" for p in parts)
        + f"{r['difference_millions']:>9.3f}"
        for r in rows
    ]
    lines.append("at 512x512 with 150 classes; unused_classifiers: 76,950 in each head of the")
    lines.append("authors' code that it never calls and our models do not carry")
    lines += [f"{r['system']}: {r['note']}" for r in rows if r["note"]]
    return rows, "\n".join(lines)

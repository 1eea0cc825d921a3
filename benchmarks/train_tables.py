"""Tables and plot of `train_step.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

Rows = list[dict[str, Any]]


def markdown(record: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/performance.md by the kind of their cases, and the machine."""
    machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    texts = {"machine": f"{machine}; {record['repeats']} steps x {record['rounds']} rounds\n"}
    for kind, table in TABLES.items():
        rows = [r for r in record["rows"] if r["kind"] == kind and "failed" not in r]
        if rows:
            texts[kind] = table(rows)
    return texts


def fill(text: str, tables: dict[str, str]) -> str:
    """A document with what stands between `<!-- KIND -->` and `<!-- end -->` replaced."""
    for kind, table in tables.items():
        before, mark, rest = text.partition(f"<!-- {kind} -->\n")
        if mark:
            text = f"{before}{mark}{table}<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def step_table(rows: Rows) -> str:
    """Ours beside the peer's step in fp32."""
    peers = {
        row["decoder"]: row for row in rows if (row["who"], row["precision"]) == ("mmseg", "fp32")
    }
    lines = []
    for row in rows:
        peer = peers.get(row["decoder"])
        faster = f"{peer['median'] / row['median']:.2f}" if peer else ""
        share = f"{row['peak_mb'] / peer['peak_mb']:.2f}" if peer else ""
        what = [row["decoder"], row["who"], row["precision"]]
        lines.append([*what, f"{row['median']:.2f}", floor(row), row["peak_mb"], faster, share])
    head = ("decoder", "who", "precision", "s", "floor s", "peak MB")
    return grid([*head, "times faster than the peer's fp32", "of its memory"], lines)


def parts_table(rows: Rows) -> str:
    """One table for each precision, with all decoders side by side."""
    texts = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        columns = {row["decoder"]: row for row in rows if row["precision"] == precision}
        rates = (f"{d} {r['flops_per_second'] / 1e9:.0f}" for d, r in columns.items())
        texts.append(f"{precision}; measured, in GFLOP/s: {', '.join(rates)}\n")
        head = [f"{decoder}: {what}" for decoder in columns for what in ("s", "GFLOP", "floor s")]
        names = next(iter(columns.values()))["parts"]
        lines = [[name] for name in [*names, "all"]]
        for row in columns.values():
            sums = {
                key: sum(part[key] for part in row["parts"].values())
                for key in ("seconds", "flops")
            }
            for line, part in zip(lines, [*row["parts"].values(), sums], strict=True):
                flops = part["flops"]
                line += [f"{part['seconds']:.2f}", f"{flops / 1e9:.0f}",
                         f"{flops / row['flops_per_second']:.2f}"]  # fmt: skip
        texts.append(grid(["part", *head], lines))
    return "\n".join(texts)


def growth_table(rows: Rows) -> str:
    """Time and memory over image side, batch and classes, with the decoders side by side."""
    names = ("side", "batch", "classes")
    decoders = list(dict.fromkeys(r["decoder"] for r in rows))
    found = {(r["decoder"], *(r[n] for n in names)): r for r in rows}
    lines = []
    for case in dict.fromkeys(tuple(r[n] for n in names) for r in rows):
        of = [found.get((d, *case)) for d in decoders]
        cells = [(f"{r['median']:.2f}", r["peak_mb"]) if r else ("", "") for r in of]
        lines.append([*case, *(cell for pair in cells for cell in pair)])
    head = [f"{decoder}: {what}" for decoder in decoders for what in ("s", "peak MB")]
    return grid([*names, *head], lines)


def memory_table(rows: Rows) -> str:
    """Peak memory of the loss alone, under its plot."""
    found = {(r["side"], r["loss"]): r["peak_mb"] for r in rows}
    sides = sorted({r["side"] for r in rows})
    lines = [[side, *(found.get((side, loss), "") for loss in ("fused", "plain"))]
             for side in sides]  # fmt: skip
    picture = "![Peak memory of the loss over the image's side](images/train_memory.svg)\n\n"
    return picture + grid(["image side", "fused, MB", "plain, MB"], lines)


def gpu_table(rows: Rows) -> str:
    """MFU: operations of the model, per second, over the measured rate of a matrix product."""
    lines = []
    for r in rows:
        used = r["flops"] / r["median"] / r["flops_per_second"] if r["flops"] else None
        what = [r[name] for name in ("who", "size", "side", "batch", "loss", "compile")]
        speed = [f"{1000 * r['median']:.1f}", f"{r['batch'] / r['median']:.1f}"]
        lines.append([*what, *speed, r["peak_mb"], "" if used is None else f"{100 * used:.0f}"])
    head = ("who", "size", "side", "batch", "loss", "compiled", "ms", "images/s", "peak MB")
    return grid([*head, "MFU %"], lines)


TABLES: dict[str, Callable[[Rows], str]] = {
    "step": step_table,
    "parts": parts_table,
    "growth": growth_table,
    "memory": memory_table,
    "gpu": gpu_table,
}


def floor(row: dict[str, Any]) -> str:
    """Seconds its operations take at the measured rate; empty where they were not counted."""
    return f"{row['flops'] / row['flops_per_second']:.2f}" if row["flops"] else ""


def grid(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + "\n"


def plot(rows: Rows) -> str:
    """Peak memory of the loss over the image's side, as SVG."""
    names = {"fused": "fused loss", "plain": "interpolate, then cross-entropy"}
    curves = {
        name: [
            (r["side"], r["peak_mb"])
            for r in rows
            if r["kind"] == "memory" and r["loss"] == loss and "failed" not in r
        ]
        for loss, name in names.items()
    }
    return line_chart(curves, "image side in pixels", "peak memory of loss and gradient in MB")


def line_chart(curves: dict[str, list[tuple[float, float]]], x_name: str, y_name: str) -> str:
    """Up to two curves of (x, y) from the origin, marked and named; a file of its own."""
    right = max(x for curve in curves.values() for x, _ in curve)
    high = max(y for curve in curves.values() for _, y in curve)
    parts = [
        "<style>text{font:12px system-ui,sans-serif;fill:#777}"
        "line{stroke:#888}polyline{fill:none;stroke-width:2}</style>",
        '<line x1="60" y1="250" x2="600" y2="250"/><line x1="60" y1="20" x2="60" y2="250"/>',
        f'<text x="330" y="288" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(14,135) rotate(-90)" text-anchor="middle">{escape(y_name)}'
        "</text>",
        f'<text x="54" y="26" text-anchor="end">{high:,.0f}</text>',
        '<text x="54" y="254" text-anchor="end">0</text>',
    ]
    parts += [
        f'<text x="{60 + 520 * x / right:.0f}" y="268" text-anchor="middle">{x:g}</text>'
        for x in sorted({x for curve in curves.values() for x, _ in curve})
    ]
    for number, (name, curve) in enumerate(curves.items()):
        tone = ("#0072b2", "#d55e00")[number]
        points = [(60 + 520 * x / right, 250 - 228 * y / high) for x, y in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" stroke="{tone}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{tone}"/>' for x, y in points]
        parts.append(f'<circle cx="76" cy="{30 + 20 * number}" r="4" fill="{tone}"/>'
                     f'<text x="86" y="{34 + 20 * number}">{escape(name)}</text>')  # fmt: skip
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="620" viewBox="0 0 620 300" role="img" '
        f'aria-label="{escape(f"{y_name} over {x_name}")}">{"".join(parts)}</svg>'
    )

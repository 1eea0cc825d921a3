"""The finished rows as one picture: test mIoU of each, and how far it is from its reference."""

from __future__ import annotations

from html import escape
from pathlib import Path

from manifest import Row
from store import Store, mean, spread
from summary import TITLES

LEFT, WIDTH, LINE = 330, 760, 22
START, RANDOM = "#0072b2", "#d55e00"
STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#777}.h{font-weight:600}"
    "line{stroke:#999}.grid{stroke-opacity:.3}</style>"
)


def draw(tables: dict[str, list[Row]], store: Store, path: Path) -> Path:
    """Write an SVG file; a row's line leads from the row it is compared with to its own dot."""
    known = {row.name: row for rows in tables.values() for row in rows}
    groups = {name: [r for r in rows if store.score(r)] for name, rows in tables.items()}
    scores = [mean(store.score(row)) or 0.0 for rows in groups.values() for row in rows]
    low, high = 5 * (min(scores) // 5), 5 * (max(scores) // 5 + 1)

    def place(score: float) -> float:
        return LEFT + (WIDTH - LEFT - 60) * (score - low) / (high - low)

    parts, y = [], 8
    for name, rows in groups.items():
        if not rows:
            continue
        y += LINE
        parts.append(f'<text class="h" x="8" y="{y}">{escape(TITLES[name])}</text>')
        for row in rows:
            y += LINE
            parts += _row(row, known, store, y, place)
        y += LINE // 2
    marks = range(int(-(-low // 10)) * 10, int(high) + 1, 10)
    axis = [
        f'<line class="grid" x1="{place(mark):.1f}" x2="{place(mark):.1f}" y1="16" y2="{y}"/>'
        f'<text x="{place(mark):.1f}" y="{y + 16}" text-anchor="middle">{mark}</text>'
        for mark in marks
    ]
    legend = "".join(
        f'<circle cx="{x}" cy="{y + 34}" r="4" fill="{tone}"/><text x="{x + 10}" y="{y + 38}">'
        f"{text}</text>"
        for x, tone, text in (
            (16, START, "from pretrained weights"),
            (190, RANDOM, "from random weights"),
            (340, "none", "test mIoU, single-scale; lines start at the row compared with"),
        )
    )
    label = "test mIoU of the runs on CamVid"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" viewBox="0 0 {WIDTH} {y + 48}" '
        f'role="img" aria-label="{label}">{STYLE}{"".join(axis)}{"".join(parts)}{legend}</svg>\n',
        encoding="utf-8",
    )
    return path


def _row(row: Row, known: dict[str, Row], store: Store, y: int, place) -> list[str]:  # type: ignore[no-untyped-def]
    """Title, line, dot and number of a row whose text stands on `y`."""
    scores = store.score(row)
    score, middle = mean(scores) or 0.0, y - 4
    tone = START if row.weights else RANDOM
    title = row.title.removesuffix(", random weights").removesuffix(", pretrained")
    parts = [f'<text x="20" y="{y}">{escape(title)}</text>']
    reference = mean(store.score(known[row.against])) if row.against in known else None
    if reference is not None:
        parts.append(
            f'<line x1="{place(reference):.1f}" x2="{place(score):.1f}" y1="{middle}" '
            f'y2="{middle}" style="stroke:{tone};stroke-width:2"/>'
        )
    parts.append(f'<circle cx="{place(score):.1f}" cy="{middle}" r="4" fill="{tone}"/>')
    number = f"{score:.1f}" + (f" ± {spread(scores):.1f}" if len(scores) > 1 else "")
    ahead = reference is not None and reference > score
    x, anchor = (place(score) - 8, "end") if ahead else (place(score) + 8, "start")
    parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{number}</text>')
    return parts

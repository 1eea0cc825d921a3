"""Tables of runs as text, Markdown or a page."""

from __future__ import annotations

from collections.abc import Sequence

from setr.pages import page
from setr.pages.tables import aligned
from setr.paper_results import COLUMNS, Line


def as_text(titles: dict[str, list[Line]], columns: Sequence[str] = COLUMNS) -> str:
    """Aligned columns for the terminal."""
    blocks = []
    for title, lines in titles.items():
        cells = [list(columns), *([getattr(line, c) for c in columns] for line in lines)]
        blocks.append("\n".join([title, *aligned(cells)]))
    return "\n\n".join(blocks)


def as_markdown(titles: dict[str, list[Line]]) -> str:
    """GitHub tables."""
    blocks = []
    for title, lines in titles.items():
        table = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        table += [
            f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |" for line in lines
        ]
        blocks.append(f"## {title}\n\n" + "\n".join(table))
    return "\n\n".join(blocks) + "\n"


def as_html(titles: dict[str, list[Line]]) -> str:
    """A self-contained page; columns that are empty in a table are left out of it."""
    parts = []
    for title, lines in titles.items():
        shown = [i for i in range(len(COLUMNS)) if any(line[i] for line in lines)]
        head = [COLUMNS[i] for i in shown]
        figures = [head.index(name) for name in ("paper", "ours", "difference") if name in head]
        rows_ = [[page.escape(line[i]) for i in shown] for line in lines]
        parts += [f"<h2>{page.escape(title)}</h2>", page.table(head, rows_, figures)]
    return page.document("Results", parts)

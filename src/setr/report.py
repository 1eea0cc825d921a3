"""A self-contained page about a run: figures, loss curve, and images beside their truth.

One HTML file, no request to anywhere; pictures are embedded.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setr.images import encode_png, write_bytes
from setr.labels import IGNORE, Labels

ERROR_COLOURS = np.array([[235, 235, 235], [213, 94, 0], [120, 120, 120]], np.uint8)


class Shown(NamedTuple):
    """One image of the report: uint8 RGB (H, W, 3), truth and prediction (H, W) ids."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def write_report(
    path: Path,
    *,
    title: str,
    metrics: dict[str, Any],
    labels: Labels,
    shown: list[Shown],
    log: Path,
) -> None:
    """Write the page.

    Args:
        path: the file, complete when it appears.
        title: heading.
        metrics: as in `metrics.json`.
        labels: class names and colours.
        shown: images to show, in order.
        log: the run's `log.jsonl`, for the loss curve.
    """
    body = "\n".join(
        [
            f"<h1>{html.escape(title)}</h1>",
            _tiles(metrics),
            "<h2>IoU per class</h2>",
            _class_table(metrics, labels),
            "<h2>Training loss</h2>",
            _loss_curve(log),
            "<h2>Validation images</h2>",
            _legend(labels),
            '<div class="grid">' + "".join(map(_row(labels), shown)) + "</div>",
        ]
    )
    write_bytes(path, _PAGE.replace("TITLE", html.escape(title)).replace("BODY", body).encode())


def _protocols(metrics: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metrics.items() if isinstance(v, dict) and "iou" in v}


def _tiles(metrics: dict[str, Any]) -> str:
    tiles = [
        (f"{100 * figures['miou']:.1f}", f"mIoU %, {name.replace('_', ' ')}")
        for name, figures in _protocols(metrics).items()
    ]
    first = next(iter(_protocols(metrics).values()))
    tiles.append((f"{100 * first['pixel_accuracy']:.1f}", "pixel accuracy %"))
    tiles.append((f"{metrics['seconds'] / 60:.1f}", "minutes in all"))
    return '<div class="tiles">' + "".join(
        f"<div><b>{value}</b><span>{html.escape(text)}</span></div>" for value, text in tiles
    ) + "</div>"  # fmt: skip


def _class_table(metrics: dict[str, Any], labels: Labels) -> str:
    protocols = _protocols(metrics)
    head = "".join(f"<th>{html.escape(p.replace('_', ' '))}</th>" for p in protocols)
    rows = []
    for name, colour in zip(labels.classes, labels.colours, strict=True):
        cells = "".join(_bar(figures["iou"][name], colour) for figures in protocols.values())
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return f"<table><tr><th>class</th>{head}</tr>{''.join(rows)}</table>"


def _bar(value: float | None, colour: tuple[int, int, int]) -> str:
    if value is None:
        return "<td>n/a</td>"
    return (
        f'<td><div class="bar"><i style="width:{100 * value:.1f}%;background:rgb{colour}"></i>'
        f"</div>{100 * value:.1f}</td>"
    )


def _loss_curve(log: Path) -> str:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if len(points) < 2:
        return "<p>Too few steps for a curve.</p>"
    steps, losses = np.array(points).T
    x = 40 + 640 * (steps - steps[0]) / (steps[-1] - steps[0])
    y = 180 - 160 * losses / losses.max()
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f"""<svg viewBox="0 0 700 210" role="img" aria-label="training loss over steps">
<line x1="40" y1="180" x2="680" y2="180"/><line x1="40" y1="20" x2="40" y2="180"/>
<polyline points="{path}"/>
<text x="36" y="26" text-anchor="end">{losses.max():.1f}</text>
<text x="36" y="184" text-anchor="end">0</text>
<text x="680" y="200" text-anchor="end">step {int(steps[-1])}</text></svg>"""


def _legend(labels: Labels) -> str:
    names = zip(labels.classes, labels.colours, strict=True)
    return '<p class="legend">' + "".join(
        f'<span><i style="background:rgb{colour}"></i>{html.escape(name)}</span>'
        for name, colour in names
    ) + '<span><i style="background:rgb(213,94,0)"></i>wrong (error map)</span></p>'  # fmt: skip


def _row(labels: Labels) -> Any:
    def row(shown: Shown) -> str:
        wrong = np.where(shown.truth == IGNORE, 2, shown.prediction != shown.truth)
        pictures = {
            "image": shown.image,
            "truth": labels.palette[shown.truth],
            "prediction": labels.palette[shown.prediction],
            "error": ERROR_COLOURS[wrong.astype(np.uint8)],
        }
        return "".join(
            f'<figure><img alt="{name}" src="data:image/png;base64,'
            f'{base64.b64encode(encode_png(np.ascontiguousarray(picture))).decode()}">'
            f"<figcaption>{name}</figcaption></figure>"
            for name, picture in pictures.items()
        )

    return row


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
:root{color-scheme:light dark;--line:#8884;--accent:#0072b2}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem}
.tiles{display:flex;flex-wrap:wrap;gap:1rem}
.tiles div{border:1px solid var(--line);border-radius:.6rem;padding:.7rem 1.1rem}
.tiles b{display:block;font-size:1.7rem}.tiles span{opacity:.75;font-size:.85rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{border-bottom:1px solid var(--line);padding:.25rem .5rem;text-align:left}
.bar{display:inline-block;width:60%;height:.7rem;background:var(--line);margin-right:.6rem;
border-radius:.35rem;overflow:hidden;vertical-align:middle}.bar i{display:block;height:100%}
svg{width:100%}svg line{stroke:currentColor;opacity:.4}
svg polyline{fill:none;stroke:var(--accent);stroke-width:2}
svg text{font-size:12px;fill:currentColor}
.legend span{display:inline-block;margin-right:1rem}
.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.35rem;border-radius:.2rem}
.grid{display:grid;grid-template-columns:repeat(4,1fr);gap:.4rem}
figure{margin:0}img{width:100%;image-rendering:pixelated;border-radius:.3rem}
figcaption{font-size:.8rem;opacity:.75;text-align:center}
</style><body>
BODY
</body></html>
"""

"""The page of `setr doctor --page`: one self-contained HTML file, no script, no outside request."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from setr.bands import as_rgb
from setr.doctor import Checkup, Finding, describe_map, figures
from setr.errors import SetrError
from setr.files import write_bytes
from setr.labels import Labels
from setr.montage import fitted_size
from setr.page import escape

THUMBNAILS = 12
"""Pairs shown per split, spread evenly over it."""
_WIDTH = 240  # of a thumbnail in pixels, at most

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1080px;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em;border-bottom:1px solid #ccc}
table{border-collapse:collapse;margin-bottom:1em;display:block;overflow-x:auto}
td,th{padding:2px 10px;text-align:right}
td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f6f6f6}
.swatch{display:inline-block;width:.9em;height:.9em;margin-right:.5em;border:1px solid #888}
.bar{display:inline-block;height:.8em;background:#3b6ea8;vertical-align:middle}
.error{border-left:5px solid #b3261e}.warning{border-left:5px solid #c77700}
.note{border-left:5px solid #4a6572}.finding{padding:.3em .8em;margin:.6em 0;background:#fafafa}
.finding code{display:block;overflow-wrap:anywhere;font-size:.85em}
.pairs{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0}
figcaption{font-size:.8em;max-width:240px;overflow-wrap:anywhere}img{display:block}
"""


def write_page(
    path: Path, data: str, checkups: Sequence[Checkup], findings: Sequence[Finding]
) -> None:
    """Write the page; it appears under its name when complete."""
    parts = [f"<h1>{escape(data)}</h1>"]
    errors = sum(finding.level == "error" for finding in findings)
    parts.append(f"<p>{'Training would refuse this data.' if errors else 'Ready to train.'}</p>")
    parts += [_finding(finding) for finding in findings]
    if checkups:
        parts.append(f"<p>{escape(describe_map(checkups[0].dataset.labels))}</p>")
    for checkup in checkups:
        parts.append(f"<h2>{escape(checkup.dataset.split)}</h2>")
        parts += [_sizes(checkup), _classes(checkup), _thumbnails(checkup)]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(data)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    write_bytes(path, page.encode("utf-8", "xmlcharrefreplace"))


def _finding(finding: Finding) -> str:
    files = "".join(f"<code>{escape(file)}</code>" for file in finding.files)
    text = escape(f"{finding.split}: {finding.text}")
    return f'<div class="finding {finding.level}"><b>{finding.level}</b> {text}{files}</div>'


def _sizes(checkup: Checkup) -> str:
    values = figures(checkup)
    most = max(values["sizes"].values(), default=1)
    rows = "".join(
        f"<tr><td>{size}</td><td>{count}</td><td style='text-align:left'>{_bar(count / most)}</td>"
        for size, count in values["sizes"].items()
    )
    more = f"<p>and {values['other_sizes']} other sizes</p>" if values["other_sizes"] else ""
    return (
        f"<p>{values['images']} images, {values['unusable']} unusable</p>"
        f"<table><tr><th>size</th><th>images</th><th></th></tr>{rows}</table>{more}"
    )


def _classes(checkup: Checkup) -> str:
    labels, table = checkup.dataset.labels, figures(checkup)["classes"]
    most = max((values["share"] for values in table.values()), default=0) or 1
    rows = "".join(
        f"<tr><td>{_swatch(labels, k)}{escape(name)}</td><td>{100 * values['share']:.3f}</td>"
        f"<td style='text-align:left'>{_bar(values['share'] / most)}</td>"
        f"<td>{values['images']}</td><td>{values['weight']:.2f}</td></tr>"
        for k, (name, values) in enumerate(table.items())
    )
    head = "<tr><th>class</th><th>% of pixels</th><th></th><th>images</th><th>weight</th></tr>"
    return f"<table>{head}{rows}</table>"


def _bar(share: float) -> str:
    return f"<span class='bar' style='width:{round(200 * share)}px'></span>"


def _swatch(labels: Labels, k: int) -> str:
    return f"<span class='swatch' style='background:rgb{tuple(labels.colours[k])}'></span>"


def _thumbnails(checkup: Checkup) -> str:
    dataset = checkup.dataset
    rows = np.unique(np.linspace(0, len(dataset) - 1, THUMBNAILS).astype(int))
    shown = []
    for row in rows:
        name = escape(dataset.image_name(int(row)))
        try:
            image, mask = dataset.load(int(row))
        except SetrError as error:
            reason = escape(str(error))
            shown.append(f"<figure><figcaption>{name}: {reason}</figcaption></figure>")
            continue
        size = fitted_size(image, _WIDTH)
        image = cv2.resize(as_rgb(image), size, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
        both = np.concatenate((image, dataset.labels.palette[mask]))
        shown.append(f"<figure>{_img(both)}<figcaption>{name}</figcaption></figure>")
    note = "<p>Image above, classes below; black is ignored.</p>"
    return f"{note}<div class='pairs'>{''.join(shown)}</div>"


def _img(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=80)
    code = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='' width='{pixels.shape[1]}' src='data:image/jpeg;base64,{code}'>"

"""The files of `setr pick`: the list of the chosen images, JSON, CSV and a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setr.labels import Labels
from setr.pages.page import escape, failures, figure, heat, heat_scale, legend, tiles, write_page
from setr.picking import Picks
from setr.scores.scored_images import ScoredImage
from setr.writing import write_rows, write_text

SHOWN = 12
"""Chosen images shown with pictures."""


def pick_json(picks: Picks, places: dict[int, str]) -> dict[str, Any]:
    """What `pick.json` holds; `places` are the files of the chosen images."""
    return {
        "complete": picks.complete,
        "images": len(picks.names),
        "protocol": picks.protocol,
        "failed": picks.failed,
        "chosen": [
            {
                "image": picks.names[number],
                "file": places[number],
                "uncertainty": picks.uncertainty[number],
            }
            for number in picks.chosen
        ],
    }


def write_list(path: Path, picks: Picks, places: dict[int, str]) -> list[str]:
    """Write the files of the chosen images, one a line, in order; returns what no line can hold."""
    files = [places[number] for number in picks.chosen]
    left_out = [file for file in files if "\n" in file or "\r" in file]
    write_text(path, "".join(f"{file}\n" for file in files if file not in left_out))
    return left_out


def write_picks_csv(path: Path, picks: Picks) -> None:
    """Write `image,uncertainty,rank`, the most uncertain first; no rank if not chosen."""
    ranks = {number: rank for rank, number in enumerate(picks.chosen, 1)}
    order = sorted(picks.names, key=lambda number: (-picks.uncertainty[number], number))
    rows = ((picks.names[n], f"{picks.uncertainty[n]:.6g}", ranks.get(n, "")) for n in order)
    write_rows(path, [("image", "uncertainty", "rank"), *rows])


def write_picks_page(
    path: Path, title: str, picks: Picks, labels: Labels, pictures: Sequence[ScoredImage]
) -> None:
    """Write the page; `pictures` are the first chosen images, `measured` their uncertainty."""
    seen = {int(i) for picture in pictures for i in np.unique(picture.prediction)}
    parts = [
        tiles([(str(len(picks.names)), "images"), (str(len(picks.chosen)), "chosen")]),
        f'<p class="note">{escape(f"Protocol: {picks.protocol}.")}</p>',
        legend(labels, sorted(seen)),
        heat_scale("certain", "undecided between two classes"),
        failures(picks.failed),
    ]
    if not picks.complete:
        parts.append("<p><b>Interrupted: the choice is among the images seen until then.</b></p>")
    for picture in pictures:
        assert picture.measured is not None
        value = picks.uncertainty[picture.number]
        parts.append(
            f"<h3>{escape(picture.name)}: uncertainty {value:.3f}</h3>"
            '<div class="grid">'
            + figure(picture.image, "image", photo=True)
            + figure(labels.palette[picture.prediction], "prediction")
            + figure(heat(picture.measured), "uncertainty", photo=True)
            + "</div>"
        )
    write_page(path, title, parts)

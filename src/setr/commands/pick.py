"""`setr pick MODEL FOLDER -o OUT`: which images to label next."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from setr.arguments.choices import Precision
from setr.commands.parsing import parse, require_at_least
from setr.commands.shared import Device, Model, Out, require_apart
from setr.errors import INTERRUPTED
from setr.pages.tables import report_failed
from setr.processes.standard_streams import tell
from setr.reading.files import one_line

if TYPE_CHECKING:
    from setr.data.dataset import Dataset
    from setr.model_info import ModelInfo
    from setr.picking import Picks
    from setr.predictor import Predictor

LISTED = 10
"""Images shown in the terminal."""


@dataclass(frozen=True)
class Arguments:
    """Choose images to label next: those a model is unsure about, spread over what they show.

    Writes images.txt (the chosen files, which `setr predict` takes), images.csv, pick.json and
    report.html.

    setr pick runs/mine unlabelled -o next --count 50
    """

    model: Model
    """Model directory, Hub name, checkpoint or file of `setr export`."""
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of images without labels; walked."""
    out: Out
    """Folder for the results."""
    count: int = 100
    """Images to choose."""
    protocol: str | None = None
    """As in `setr eval`; the model's own if not given."""
    device: Device = "auto"
    precision: Precision = "auto"
    """auto: bf16 where the hardware has it, else fp16 on GPUs and fp32 on CPUs."""
    workers: int = 1
    """Processes that decode images; 0 decodes in this one."""
    json: bool = False
    """Print what pick.json holds."""


def run(arguments: list[str]) -> int:
    """Choose; interrupted, among the images seen until then."""
    given = parse(Arguments, arguments, "pick")
    require_at_least(given, 0, "workers")
    require_at_least(given, 1, "count")
    from setr.data.unlabelled import open_unlabelled
    from setr.evaluation import resolve_protocol
    from setr.loading import load
    from setr.picking import pick_images
    from setr.processes.interrupt import Interrupt
    from setr.writing import require_writable

    predictor = load(given.model, device=given.device)
    model, info = predictor.model, predictor.info
    dataset = open_unlabelled(given.folder, info.labels, info.bands, "")
    info = dataclasses.replace(info, protocol=resolve_protocol(given.protocol, model, info))
    require_apart(given.out)
    require_writable(given.out, "-o")
    with Interrupt() as stop:
        picks = pick_images(
            model,
            info,
            dataset,
            given.count,
            precision=given.precision,
            workers=given.workers,
            stopped=lambda: stop.requested,
        )
    if not picks.names:
        raise KeyboardInterrupt
    _write(given, picks, predictor, info, dataset)
    code = report_failed({"images": len(picks.names), "failed": picks.failed})
    if picks.complete:
        return code
    seen = f"{len(picks.names)} of {len(dataset)} images"
    tell(f"setr: interrupted; the choice is among {seen}")
    return INTERRUPTED


def _write(
    given: Arguments, picks: Picks, predictor: Predictor, info: ModelInfo, dataset: Dataset
) -> None:
    """Print the choice, then write its files."""
    from setr.evaluation import evaluate_split
    from setr.pages.gallery import small
    from setr.pages.pick_page import SHOWN, pick_json, write_list, write_picks_csv, write_picks_page
    from setr.picking import margin_uncertainty
    from setr.scores.scored_images import ScoredImage
    from setr.writing import make_folder, write_json

    places = {n: os.path.abspath(str(dataset.pairs[n].image)) for n in picks.chosen}
    values = {"model": given.model, "folder": given.folder, **pick_json(picks, places)}
    if given.json:
        print(json.dumps(values), flush=True)
    else:
        for number in picks.chosen[:LISTED]:
            print(one_line(f"{picks.uncertainty[number]:.3f}  {picks.names[number]}"))
        more = len(picks.chosen) - LISTED
        print(f"{f'and {more} more; ' if more > 0 else ''}{len(picks.chosen)} chosen", flush=True)
    make_folder(given.out)
    if broken := write_list(given.out / "images.txt", picks, places):
        which = f"{len(broken)} of the chosen images ({one_line(broken[0])})"
        why = "a name with a line end, which no list can hold; pick.json has them"
        tell(f"setr: warning: not in images.txt: {which}: {why}")
    write_picks_csv(given.out / "images.csv", picks)
    write_json(given.out / "pick.json", values)
    pictures: list[ScoredImage] = []
    if picks.complete:
        shown = picks.chosen[:SHOWN]
        evaluate_split(
            predictor.model,
            info,
            dataset.part(shown),
            precision=given.precision,
            workers=given.workers,
            detailed=False,
            measure=margin_uncertainty,
            on_image=lambda scored: pictures.append(
                small(scored)._replace(number=shown[scored.number])
            ),
        )
    title = f"What to label next in {given.folder}, by {Path(given.model).name}"
    write_picks_page(given.out / "report.html", title, picks, info.labels, pictures)
    files = "images.txt, images.csv, pick.json, report.html"
    tell(f"written to {given.out}: {files}")

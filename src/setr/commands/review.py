"""`setr review MODEL DATA`: find wrong labels with a trained model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from setr.arguments.choices import Precision
from setr.commands.parsing import parse, require_at_least
from setr.commands.shared import Data, Device, Model, require_apart, results_folder
from setr.errors import INTERRUPTED
from setr.pages.tables import report_failed
from setr.processes.standard_streams import tell

if TYPE_CHECKING:
    from setr.data.dataset import Dataset
    from setr.review import Review


@dataclass(frozen=True)
class Arguments:
    """Find labels that look wrong to a trained model; writes review.json, images.csv, report.html.

    Best done with a model that was not trained on these images.

    setr review runs/mine photos --split val
    """

    model: Model
    """Model directory, Hub name, checkpoint or file of `setr export`."""
    data: Data
    """Folder, YAML file or shards of the data set, or hf:OWNER/NAME."""
    split: str = "val"
    """Split to review; several joined with +."""
    protocol: str | None = None
    """As in `setr eval`; the model's own if not given."""
    device: Device = "auto"
    precision: Precision = "auto"
    """auto: bf16 where the hardware has it, else fp16 on GPUs and fp32 on CPUs."""
    workers: int = 1
    """Processes that decode images; 0 decodes in this one."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the results; review-SPLIT in the model directory if not given."""
    json: bool = False
    """Print what review.json holds."""


def run(arguments: list[str]) -> int:
    """Review one split; interrupted, what was seen until then is written."""
    given = parse(Arguments, arguments, "review")
    require_at_least(given, 0, "workers")
    from setr.datasets import open_dataset
    from setr.evaluation import resolve_protocol
    from setr.fitting import require_fit
    from setr.loading import load
    from setr.pages.review_page import SHOWN
    from setr.processes.interrupt import Interrupt
    from setr.review import review_split
    from setr.writing import require_writable

    predictor = load(given.model, device=given.device)
    model, info = predictor.model, predictor.info
    dataset = open_dataset(given.data, given.split, info.labels, info.bands)
    info = dataclasses.replace(info, protocol=resolve_protocol(given.protocol, model, info))
    require_fit(model, info, dataset)
    usual = f"review-{given.split}"
    out = given.out or results_folder(given.model, usual)
    require_apart(out, usual)
    require_writable(out, "-o")
    with Interrupt() as stop:
        review = review_split(
            model,
            info,
            dataset,
            precision=given.precision,
            workers=given.workers,
            shown=SHOWN,
            stopped=lambda: stop.requested,
        )
    if not review.rows:
        raise KeyboardInterrupt
    _write(given, out, review, dataset)
    code = report_failed({"images": len(review.rows), "failed": review.failed})
    if review.complete:
        return code
    seen = f"{len(review.rows)} of {len(dataset)} images"
    tell(f"setr: interrupted; the results are of {seen}")
    return INTERRUPTED


def _write(given: Arguments, out: Path, review: Review, dataset: Dataset) -> None:
    """Print the result, then write its files."""
    from setr.pages.review_page import write_review
    from setr.pages.review_tables import as_json, review_text, write_csv
    from setr.writing import make_folder, write_json

    classes = dataset.labels.classes
    named = {"model": given.model, "data": given.data, "split": given.split}
    values = named | as_json(review, classes)
    # before writing, which may fail on a full disk
    print(json.dumps(values) if given.json else review_text(review, classes), flush=True)
    make_folder(out)
    write_json(out / "review.json", values)
    write_csv(out / "images.csv", review)
    title = f"Labels of {dataset.name}, {given.split}, reviewed by {Path(given.model).name}"
    write_review(out / "report.html", title, review, dataset.labels)
    tell(f"written to {out}: review.json, images.csv, report.html")

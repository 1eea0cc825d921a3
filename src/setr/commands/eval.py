"""`setr eval MODEL DATA [options]`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from setr.arguments.choices import Absent, Precision
from setr.commands.parsing import parse, require_at_least, require_default
from setr.commands.shared import (
    Data,
    Device,
    Flip,
    Model,
    NoFlip,
    Scales,
    Words,
    mirrored,
    model_names,
    require_apart,
    results_folder,
)
from setr.errors import OK, SetrError, UsageError
from setr.pages.group_tables import difference_lines, group_lines, write_groups
from setr.pages.tables import figures_table, report_failed
from setr.processes.standard_streams import tell

if TYPE_CHECKING:
    from setr.data.dataset import Dataset
    from setr.pages.gallery import Gallery
    from setr.predictor import Predictor
    from setr.protocols import Protocol


@dataclass(frozen=True)
class Arguments:
    """Test a model on a data set; writes metrics.json, images.csv and report.html.

    setr eval runs/mine photos --split test
    setr eval runs/mine photos --protocol paper-ms --compare runs/other
    """

    model: Model
    """Model directory, Hub name, checkpoint or file of `setr export`; several models, joined with
    commas, or a quoted pattern of folders: the mean of their probabilities."""
    data: Data
    """Folder, YAML file or shards of the data set, hf:OWNER/NAME, or `scenes` for drawn scenes."""
    split: str = "val"
    """Split to test on; several joined with +."""
    protocol: str | None = None
    """paper-ss, paper-ms, mmseg-ss, mmseg-ms or whole, with :ade20k, :cityscapes or :pascal_context
    for that data set's sizes; the model's own if not given."""
    multi_scale: bool = False
    """Also test with the paper's six scales and flip."""
    scales: Scales = None
    flip: Flip = False
    no_flip: NoFlip = False
    window: tuple[int, int] | None = None
    """Height and width of the sliding window in pixels, in place of the protocol's."""
    stride: tuple[int, int] | None = None
    """Vertical and horizontal step of the window in pixels, in place of the protocol's."""
    short_side: int | None = None
    """Images are first scaled to this short side in pixels, in place of the protocol's."""
    compare: Words = ()
    """Further models, tested on the same images; differences come with p-values."""
    group_by: str | None = None
    """Figures of each group of images, as of one patient or video, in groups.csv; intervals and
    p-values are then over groups. A pattern of the names, as 'images/*_{any}', in which * stands
    for the group."""
    absent: Absent = "skip"
    """Classes in neither truth nor prediction: left out of the means, or counted as 0."""
    detailed: bool = True
    """Also boundary IoU and F, recall by size, calibration, intervals and report.html, which shows
    them; all that takes processor time, up to seconds for a large image."""
    device: Device = "auto"
    precision: Precision = "auto"
    """auto: bf16 where the hardware has it, else fp16 on GPUs and fp32 on CPUs."""
    workers: int = 1
    """Processes that decode images; 0 decodes in this one."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder for the results; eval-SPLIT in the model directory if not given."""
    json: bool = False
    """Print the figures as JSON."""


def run(arguments: list[str]) -> int:
    """Print the figures of one split and write them to a folder with a report."""
    given: Arguments = parse(Arguments, arguments, "eval")
    if len({given.model, *given.compare}) <= len(given.compare):
        raise UsageError("--compare names a model twice")
    require_at_least(given, 0, "workers")
    require_at_least(given, 1, "short_side")
    mirrored(flip=given.flip, no_flip=given.no_flip)
    if given.multi_scale:
        require_default(given, "--multi-scale has scales of its own; leave one out", "scales")
    from setr.distributed import joined

    with joined(given.device):
        return _run(given)


def _run(given: Arguments) -> int:
    """Evaluate in one process of the run; the first one writes and prints."""
    from setr.distributed import everywhere, rank
    from setr.pages.gallery import Gallery

    predictor, dataset = everywhere(partial(_opened, given))
    gallery = Gallery()
    metrics: dict[str, Any] = dict(_test(given, predictor, dataset, gallery))
    figures = next(iter(metrics.values()))
    for path in given.compare:
        with contextlib.suppress(OSError, SetrError):  # the last _write reports them
            _write(given, metrics, dataset, gallery)  # kept even if this comparison fails
        predictor, other = _load(given, path, dataset), Gallery(shown=0)
        results = _test(given, predictor, dataset, other)
        theirs = results.pop(next(iter(results)))
        against = {"against": _compared(figures, theirs, gallery, other)}
        metrics.setdefault("compare", {})[path] = theirs | against | results
    if rank() == 0:  # before writing, which may fail on a full disk
        print(json.dumps(metrics) if given.json else _table(given, metrics), flush=True)
    out = _write(given, metrics, dataset, gallery)
    if rank() > 0:
        return OK
    files = "metrics.json, images.csv" + ", groups.csv" * bool(given.group_by)
    files += ", report.html" * given.detailed
    tell(f"written to {out}: {files}")
    return report_failed(figures)


def _compared(
    ours: dict[str, Any], theirs: dict[str, Any], gallery: Gallery, other: Gallery
) -> dict[str, Any]:
    """Differences of two models on the same images, or groups of them."""
    from setr.pages.gallery import paired
    from setr.scores.by_group import paired_groups

    if "groups" in ours:
        return paired_groups(ours["groups"], theirs["groups"])
    return paired(gallery, other)


def _opened(given: Arguments) -> tuple[Predictor, Dataset]:
    """Open model and split, and check now what would fail only after hours of testing."""
    from setr.datasets import open_dataset
    from setr.distributed import rank
    from setr.evaluation import image_groups
    from setr.fitting import require_fit
    from setr.loading import load
    from setr.writing import require_writable

    predictor = load(given.model, device=given.device)
    dataset = open_dataset(given.data, given.split, predictor.info.labels, predictor.info.bands)
    if given.group_by:
        image_groups(dataset, given.group_by)
    _protocols(given, predictor)
    for path in given.compare:
        _protocols(given, _load(given, path, dataset))
    require_fit(predictor.model, predictor.info, dataset)
    if rank() == 0:
        require_apart(_out(given), f"eval-{given.split}")
        require_writable(_out(given), "-o")
    return predictor, dataset


def _load(given: Arguments, path: str, dataset: Dataset) -> Predictor:
    """Load a model to compare with; an error names it."""
    from setr.fitting import require_fit
    from setr.loading import load

    predictor = load(path, device=given.device)
    try:
        require_fit(predictor.model, predictor.info, dataset)
    except SetrError as error:
        raise SetrError(f"{path}: {error}", code=error.code) from None
    return predictor


def _out(given: Arguments) -> Path:
    """Folder for the results."""
    return given.out or results_folder(given.model, f"eval-{given.split}")


def _write(given: Arguments, metrics: dict[str, Any], dataset: Dataset, gallery: Gallery) -> Path:
    """Write the results so far, in the first process; returns their folder."""
    from setr.distributed import rank
    from setr.pages.evaluation_page import write_evaluation
    from setr.writing import make_folder, write_json

    out = _out(given)
    if rank() > 0:
        return out
    make_folder(out)
    write_json(out / "metrics.json", metrics)
    gallery.write_csv(out / "images.csv")
    write_groups(out / "groups.csv", next(iter(metrics.values())))
    page = out / "report.html"
    if given.detailed:
        names = _names(given)
        title = f"{names[given.model]} on {dataset.name}, {given.split}"
        log = Path(given.model) / "log.jsonl"
        renamed, found = _renamed(metrics, names), log if log.is_file() else None
        write_evaluation(page, title, renamed, dataset.labels, gallery, found)
    else:
        page.unlink(missing_ok=True)  # of an earlier test, with other figures
    return out


def _test(
    given: Arguments, predictor: Predictor, dataset: Dataset, gallery: Gallery
) -> dict[str, dict[str, Any]]:
    """Figures of one model by protocol; the gallery sees the first protocol."""
    from setr.evaluation import evaluate_split

    model, info = predictor.model, predictor.info
    protocols = _protocols(given, predictor)
    results = {}
    for chosen in protocols:
        results["multi_scale" if len(chosen.scales) > 1 else "single_scale"] = evaluate_split(
            model,
            dataclasses.replace(info, protocol=chosen),
            dataset,
            precision=given.precision,
            workers=given.workers,
            detailed=given.detailed,
            absent=given.absent,
            group_by=given.group_by,
            on_image=gallery if chosen is protocols[0] else None,
        )
    gallery.gather()
    return results


def _protocols(given: Arguments, predictor: Predictor) -> list[Protocol]:
    """The requested protocol or the model's own, and with --multi-scale that of several scales."""
    from setr.evaluation import resolve_protocol

    model, info = predictor.model, predictor.info
    protocol = _overridden(given, resolve_protocol(given.protocol, model, info))
    if not given.multi_scale or len(protocol.scales) > 1:
        return [protocol]
    named = (given.protocol or "").replace("-ss", "-ms")  # `whole` has no such twin
    several = resolve_protocol(named or None, model, info)
    several = several if len(several.scales) > 1 else several.multi_scale()
    return [protocol, _overridden(given, several)]


def _overridden(given: Arguments, protocol: Protocol) -> Protocol:
    """The protocol with the fields given on the command line."""
    fields = {name: getattr(given, name) for name in ("scales", "window", "stride", "short_side")}
    flip = mirrored(flip=given.flip, no_flip=given.no_flip)
    return protocol.overridden(flip=flip, **fields)


def _names(given: Arguments) -> dict[str, str]:
    """Names of the models by path."""
    paths = (given.model, *given.compare)
    return dict(zip(paths, model_names(paths), strict=True))


def _renamed(metrics: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The figures with the compared models by name."""
    return {**metrics, "compare": {names[k]: v for k, v in metrics.get("compare", {}).items()}}


def _table(given: Arguments, metrics: dict[str, Any]) -> str:
    """The figures of every protocol and model side by side, with p-values of the differences."""
    names = _names(given)
    columns = _renamed(metrics, names)
    others = columns.pop("compare")
    first = next(iter(columns))
    if others:
        columns = {}
        for name, figures in {names[given.model]: metrics[first], **others}.items():
            columns[name] = figures
            several = (figures if name in others else metrics).get("multi_scale", figures)
            if several is not figures:
                columns[f"{name}, multi scale"] = several
    lines = [figures_table(columns), f"protocol: {metrics[first]['protocol']}"]
    lines += group_lines(metrics[first])
    for other, figures in others.items():
        lines += difference_lines(f"{names[given.model]} against {other}", figures["against"])
    return "\n".join(lines)

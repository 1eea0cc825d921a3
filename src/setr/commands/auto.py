"""`setr auto DATA [options]`: everything from a folder of images to a model in use.

Every stage is another command of this toolkit, printed as it would be typed and run through the
same function. This module only decides which, and skips those whose results are there already.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from setr._extras import import_extra
from setr.arguments.choices import ExportFormat
from setr.commands.auto_again import in_steps, is_finished, is_other_data
from setr.commands.auto_settings import chosen_settings, has_length
from setr.commands.init_data import is_foreign
from setr.commands.mixed_words import parse_mixed
from setr.commands.shared import Data
from setr.commands.train import parsed
from setr.config import Config, DataConfig
from setr.data.layouts import BESIDE
from setr.errors import FAILED, INTERRUPTED, OK, SetrError, UsageError
from setr.outlines.yolo import yolo_folder
from setr.processes.standard_streams import tell
from setr.reading.parsed import table_in

_SUFFIXES: dict[ExportFormat, str] = {"onnx": "model.onnx", "openvino": "model.xml",
                                      "torch": "model.pt2"}  # fmt: skip
_NEEDED: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "torch": (),
}
_DEFAULT: tuple[ExportFormat, ...] = ("onnx", "openvino")
_OURS = {"--data.root": "give it as DATA", "--resume": "give the same command again"}
"""Options of `setr train` that have another form here."""


@dataclass(frozen=True)
class Arguments:
    """Describe, check, train on, test and export your own data: one command.

    Prints every stage as the command that does it. A run that was stopped continues. All options of
    `setr train` with a dot (`--model.pretrained lvd142m`) may follow.

    setr auto photos --model.pretrained lvd142m --minutes 60 --serve
    """

    data: Data
    """Folder with images and masks or outlines, a YAML file, or hf:OWNER/NAME."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Run folder; runs/NAME of the data if not given."""
    minutes: float = 30.0
    """Time for training and the tests during it, from which the number of steps follows: a step is
    timed on this machine first."""
    export: Annotated[tuple[ExportFormat, ...] | None, tyro.conf.arg(name="export")] = None
    """Formats to export to; those of onnx and openvino that are installed by default."""
    serve: bool = False
    """At the end serve the model, with a web page to try it."""
    overwrite: bool = False
    """Train again in a run folder that holds a run."""
    json: bool = False
    """Print the result as JSON; not with --serve."""


def run(arguments: list[str]) -> int:
    """Run the stages whose results are not there; prints what they made."""
    given, settings = parse_mixed(Arguments, arguments, "auto", "DATA", _OURS)
    _require(given, settings)
    wanted = parsed(["scratch", "--data.root", given.data, *settings]).config.data
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):
        data = _described(wanted)
        out = Path(given.out or f"runs/{_name(data)}")
        settings = settings if given.overwrite else in_steps(out, data, settings)
        finished = not given.overwrite and is_finished(out, data, settings)
        _stage("doctor", data, "--quick", *(["--labels", wanted.labels] if wanted.labels else []))
        if finished:
            tell(f"\n{out}: trained already; --overwrite trains again")
        else:
            _train(given, data, out, settings)
        split = _test_split(data, wanted)
        tested = out / f"eval-{split}"
        report = tested / "report.html"  # written last
        metrics = _figures(tested / "metrics.json", out)
        if not (metrics and _is_current(report, out)):
            _stage("eval", str(out), data, "--split", split)
            metrics = _figures(tested / "metrics.json", out)
        exported, failed = _export(given, out)
    result = {
        "data": data,
        "run": str(out),
        "split": split,
        "metrics": metrics,
        "report": str(report),
        "exports": [str(file) for file in exported],
        "seconds": time.monotonic() - began,
    }
    print(json.dumps(result) if given.json else _summary(result), flush=True)
    if given.serve:
        _stage("serve", str(out))
    return FAILED if failed else OK


def _require(given: Arguments, settings: list[str]) -> None:
    """Refuse what cannot work together, before anything is read."""
    from setr.processes.launch import place_of

    if not 0 < given.minutes < float("inf"):
        raise UsageError(f"--minutes {given.minutes}: give a positive number")
    if has_length(settings) and given.minutes != Arguments.minutes:
        raise UsageError(
            f"--minutes {given.minutes}: has no effect beside a number of steps or epochs; give "
            "one of them"
        )
    if given.json and given.serve:
        raise UsageError("--json and --serve: give one of them")
    place = place_of(os.environ)
    if place is not None and place.world > 1:
        raise UsageError(
            "auto is one process; write `setr train` after torchrun or srun, as scaling.md shows"
        )
    for format in given.export or ():
        for package in _NEEDED[format]:
            import_extra(package, format, f"--export {format}")
    if given.serve:
        import_extra("fastapi", "serve", "--serve")


def _stage(verb: str, *words: str) -> None:
    """Print a command and run it.

    Raises:
        SetrError: it did not do everything; it has said why.
    """
    tell(f"\n$ setr {verb} {shlex.join(words)}")
    code = importlib.import_module(f"setr.commands.{verb.replace('-', '_')}").run(list(words))
    if code != OK:
        raise SetrError(
            f"`setr {verb}` stopped this, as it says above; mend that and give the same command",
            code=code,
        )


def _described(wanted: DataConfig) -> str:
    """The data set as other commands take it; a folder without description gets one.

    So does the folder of another program's YAML file, if it has outlines in place of masks.
    """
    from setr.datasets import open_dataset

    given, folder = wanted.root, Path(wanted.root)
    if is_foreign(folder):
        folder = yolo_folder(folder)
    elif (folder / BESIDE).is_file():
        return str(folder / BESIDE)
    beside, own = folder / BESIDE, folder / "data.yaml"
    elsewhere = Path(given).is_file() and Path(given) != own
    try:
        for split in (wanted.train_split, wanted.val_split):
            open_dataset(given, split, wanted.labels)
    except SetrError:
        drafted = own.exists() and not is_foreign(own)
        if not folder.is_dir() or wanted.labels or (drafted and not elsewhere):
            raise
        given = given if folder == Path(given) or elsewhere else str(folder)
        if not beside.is_file() and not drafted:
            _stage("init-data", given)
            tell(
                "to name the classes first, stop this, edit that file, and give the same command "
                "again"
            )
        return str(beside if beside.is_file() else folder)
    return given


def _name(data: str) -> str:
    """Name of a run on a data set."""
    path = Path(data.rpartition(":")[2])
    if path.suffix in (".yaml", ".yml"):
        path = path.parent if path.stem in ("data", "setr") else path.with_suffix("")
    return path.name or path.resolve().name


def _train(given: Arguments, data: str, out: Path, settings: list[str]) -> None:
    """Train, or continue a run."""
    from setr.checkpoint import states
    from setr.training.runfolder import LAST

    if not given.overwrite and (out / "config.yaml").is_file():
        begun = Config.load(out / "config.yaml")
        if not has_length(settings):
            tell(
                f"\n{out}: goes on with the train.steps {begun.train.steps} it began with, "
                "whatever --minutes says; --train.steps N changes them, --overwrite starts anew"
            )
        how = "--resume" if states(out / LAST) else "--overwrite"  # nothing was saved yet
        root = ["--data.root", data] if is_other_data(begun.data.root, data) else []
        _stage("train", str(out), *root, *settings, how)
    else:
        words = chosen_settings(data, out, settings, minutes=given.minutes)
        _stage("train", *words, *(["--overwrite"] if given.overwrite else []))


def _test_split(data: str, wanted: DataConfig) -> str:
    """The split to test on: `test` if there is one with masks, else that of the validation."""
    from setr.data.pairing import NoSplitError
    from setr.datasets import open_dataset

    try:
        test = open_dataset(data, "test", wanted.labels)
    except NoSplitError:
        return wanted.val_split
    labelled = test.decoded or (len(test) and test.sources(0)[1] is not None)
    return "test" if labelled else wanted.val_split


def _export(given: Arguments, out: Path) -> tuple[list[Path], bool]:
    """Export to the formats that are not there; the files, and whether one failed."""
    formats = given.export
    if formats is None:
        formats = tuple(f for f in _DEFAULT if _is_installed(f))
        if not formats:
            tell('\nno export: pip install "setr[onnx]" for ONNX files')
    files, failed = [], False
    for format in formats:
        file = out / _SUFFIXES[format]
        try:
            if not _is_current(file, out):
                _stage("export", str(out), "--format", format, "-o", str(file))
            files.append(file)
        except SetrError as error:
            if error.code == INTERRUPTED:
                raise
            failed = True
            tell(f"warning: {file} was not written: {error}")
    for format, name in _SUFFIXES.items():
        file = out / name
        if format not in formats and file.is_file() and not _is_current(file, out):
            tell(f"warning: {file} holds older weights than {out}; --export {format} makes it anew")
    return files, failed


def _is_current(file: Path, out: Path) -> bool:
    """Whether a file made from the model in `out` is there and not older than it."""
    model = out / "model.safetensors"
    return file.is_file() and file.stat().st_mtime_ns >= model.stat().st_mtime_ns


def _figures(file: Path, out: Path) -> dict[str, Any]:
    """The figures of the test of the model in `out`; none if they are missing, old or damaged."""
    metrics = table_in(file) if _is_current(file, out) else {}
    first = next(iter(metrics.values()), None)
    whole = isinstance(first, dict) and {"miou", "pixel_accuracy"} <= first.keys()
    return metrics if whole else {}


def _is_installed(format: ExportFormat) -> bool:
    with contextlib.suppress(SetrError):
        for package in _NEEDED[format]:
            import_extra(package, format, "")
        return True
    return False


def _summary(result: dict[str, Any]) -> str:
    out = shlex.quote(str(result["run"]))
    figures = next(iter(result["metrics"].values()), None)  # none if a clock was set back
    found = f"no figures newer than the model; setr eval {out} DATA tests it"
    if figures is not None and figures["miou"] is None:
        found = "its masks have no labelled pixel"
    elif figures is not None:
        accuracy = 100 * figures["pixel_accuracy"]
        found = f"mIoU {100 * figures['miou']:.1f}, pixel accuracy {accuracy:.1f}"
    lines = [
        f"\n{result['split']}: {found} ({result['report']})",
        f"{result['run']}: the model",
        *(f"{file}: the same for another runtime" for file in result["exports"]),
        "\nNext:",
        f"  setr predict {out} PHOTO.jpg -o predictions --save mask,overlay",
        f"  setr serve {out}",
        f"  setr bench {out}   # how fast it runs here",
    ]
    return "\n".join(lines)

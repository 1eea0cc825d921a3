"""Experiment tracking: log.jsonl, log.csv and sample images always, other trackers on request.

A resumed run first removes what was logged after the step it continues from, and after the last
evaluation in its state, which may be of an earlier step. So every step is logged once.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from setr._extras import import_extra
from setr.errors import SetrError
from setr.images import encode_png
from setr.reading.parsed import json_of
from setr.writing import replacing, write_bytes, write_text


class Tracker:
    """Base class of trackers, also of your own (`setr.train(…, trackers=[Mine])`).

    An exception in a method ends the run, except `OSError` and `SetrError`, which become warnings.

    Args:
        out: the run folder.
        step: the run continues after this step; 0 for a new run.

    Attributes:
        ended: set this to a reason to end training after the current step, as with
            `train.patience`: the state is saved, the best weights kept, `metrics.json` written.
    """

    ended: str = ""

    def __init__(self, out: Path, step: int) -> None:
        self.out = out

    def line(self, line: Mapping[str, Any]) -> None:
        """Log the metrics of a step.

        Args:
            line: `step`, `epoch` and `seconds`, with `loss`, `lr`, … every `train.log_every` steps,
                or with `val`, the metrics of an evaluation (`val["miou"]`); numbers by name,
                possibly nested. The loss of a step skipped because of fp16 overflow may be nan or
                inf.
        """

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Log an image uint8 RGB (H, W, 3): of predictions, or of training crops at step 0."""

    def close(self) -> None:
        """Called at the end of the run."""


def scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics as a flat dictionary by path (`val/iou/road`), without the line's `step`."""
    found: dict[str, float] = {}
    for key, value in values.items():
        path = prefix + key
        if isinstance(value, Mapping):
            found |= scalars(value, f"{path}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and path != "step":
            found[path] = value  # `val/iou/step` is a class of ADE20K
    return found


class JsonLines(Tracker):
    """`log.jsonl`: one JSON object per line with all metrics; nan and inf become null."""

    def __init__(self, out: Path, step: int, tested: int | None = None) -> None:
        super().__init__(out, step)
        self.path = out / "log.jsonl"
        if not step or not self.path.is_file():
            self.path.unlink(missing_ok=True)
            return
        lines = read_lines(self.path)
        kept = (line for line in lines if line["step"] <= _last(step, tested, "val" in line))
        write_text(self.path, "".join(map(_json_line, kept)))

    def line(self, line: Mapping[str, Any]) -> None:
        """Append."""
        _append(self.path, _json_line(line))


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(_finite(line), allow_nan=False) + "\n"


def _append(path: Path, text: str) -> None:
    """Append to a file; on a full disk nothing, since the next line would join a part of this."""
    data = memoryview(text.encode())
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise


def read_lines(log: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a `log.jsonl` that are complete; the last one of a full disk is not."""
    if not log.is_file():
        return
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json_of(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def _last(step: int, tested: int | None, is_test: bool) -> int:
    """The last step of which a line is kept."""
    return tested if is_test and tested is not None else step


def _finite(value: Any) -> Any:
    """Metrics with nan and inf, which JSON does not have, replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class CsvTable(Tracker):
    """`log.csv`: a row per line, a column per metric; missing values are empty."""

    def __init__(self, out: Path, step: int, tested: int | None = None) -> None:
        super().__init__(out, step)
        self.path = out / "log.csv"
        self.columns: list[str] = []
        rows = []
        for row in self._rows():
            is_test = any(value for name, value in row.items() if name.startswith("val/"))
            if row["step"].isdecimal() and int(row["step"]) <= _last(step, tested, is_test):
                rows.append(row)
        self.path.unlink(missing_ok=True)
        if rows:
            self._rewrite(rows)
        else:
            self.columns = []  # the header is written with the next line

    def line(self, line: Mapping[str, Any]) -> None:
        """Append; new metrics add columns."""
        row = {"step": line["step"], **scalars(_finite(line))}
        if row.keys() <= set(self.columns):
            _append(self.path, self._text([row]))
            return
        rows: list[Mapping[str, Any]] = list(self._rows())
        before = self.columns
        self.columns = [*before, *(key for key in row if key not in before)]
        try:
            self._rewrite([*rows, row])
        except BaseException:
            self.columns = before  # those of the file
            raise

    def _rows(self) -> list[dict[str, str]]:
        """The complete rows; also sets the columns to those of the file."""
        if not self.path.is_file():
            return []
        rows = []
        with (
            self.path.open(encoding="utf-8", errors="replace", newline="") as file,
            contextlib.suppress(csv.Error),  # the rest is no table
        ):
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or [])
            # cells beyond the columns have the key None, missing cells the value None
            for row in reader:
                if row.get("step") and None not in (*row, *row.values()):
                    rows.append(row)
        return rows

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with replacing(self.path, mark="log.csv") as part:
            part.write_bytes(self._text(rows, header=True).encode())

    def _text(self, rows: Sequence[Mapping[str, Any]], *, header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


class Pictures(Tracker):
    """`samples/step-000500.png`: validation images next to truth and prediction.

    `samples/step-000000.png` shows the first training crops next to their masks.
    """

    def __init__(self, out: Path, step: int) -> None:
        super().__init__(out, step)
        for path in (out / "samples").glob("step-*.png"):
            number = path.stem.removeprefix("step-")
            if not step or (number.isdecimal() and int(number) > step):
                path.unlink()

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Write the image."""
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        write_bytes(folder / f"step-{step:06d}.png", encode_png(picture))


class TensorBoard(Tracker):
    """Event files in `tensorboard/`, for `tensorboard --logdir runs`."""

    def __init__(self, out: Path, step: int) -> None:
        super().__init__(out, step)
        from torch.utils.tensorboard import SummaryWriter

        if not step:
            shutil.rmtree(out / "tensorboard", ignore_errors=True)
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def line(self, line: Mapping[str, Any]) -> None:
        """Add every metric as a scalar."""
        for name, value in scalars(line).items():
            self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Add the image."""
        self.writer.add_image("samples", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WeightsAndBiases(Tracker):
    """Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync` uploads."""

    def __init__(self, out: Path, step: int) -> None:
        super().__init__(out, step)
        wandb = import_extra("wandb", "log", "train.log wandb")
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        known = out / "wandb" / "run_id"
        if not step:
            shutil.rmtree(out / "wandb", ignore_errors=True)
        known.parent.mkdir(parents=True, exist_ok=True)
        if not known.is_file():
            known.write_text(uuid.uuid4().hex[:8])
        self.image = wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "setr"),
            name=out.name,
            id=known.read_text(),
            dir=str(out),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def line(self, line: Mapping[str, Any]) -> None:
        """Log every metric."""
        self.run.log(scalars(line), step=line["step"])

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Log the image."""
        self.run.log({"samples": self.image(picture)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


Builder = Callable[[Path, int], Tracker]
"""Makes a tracker from the run folder and the step: a `Tracker` class or a function."""

_OPTIONAL: dict[str, Builder] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def require(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        SetrError: says how to install it.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a namespace package: a folder called `wandb`
            raise SetrError(f'train.log {name}: not installed; pip install "setr[log]"')


def open_trackers(
    out: Path,
    names: Sequence[str],
    step: int,
    own: Sequence[Builder] = (),
    tested: int | None = None,
) -> list[Tracker]:
    """The built-in trackers, the named ones and the user's.

    Args:
        out: the run folder.
        names: of optional trackers.
        step: the run continues after this step.
        own: builders of the user's.
        tested: the last evaluation that need not be repeated is of this step; `step` by default.
    """
    named = (_OPTIONAL[name] for name in names)
    always = (JsonLines(out, step, tested), CsvTable(out, step, tested), Pictures(out, step))
    return [*always, *(build(out, step) for build in (*named, *own))]

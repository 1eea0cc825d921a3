"""From rows to records: trains what is missing, continues what was interrupted, tests once."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from manifest import SEEDS, Row, schedule
from runlog import logged_peak_mb, seconds_per_step
from store import Record, Store, mean, plain
from worker import INTERRUPTED, Clock, Cost, last_lines, run_foreign, run_setr

HERE = Path(__file__).parent
RIVALS = {
    "mmseg": ("rival_mmseg.py",),
    "segformer": ("rival_transformers.py", "--model", "segformer"),
    "upernet": ("rival_transformers.py", "--model", "upernet"),
    "yolo": ("rival_ultralytics.py",),
}
CLOSE = 2.0
"""Points of mIoU below which a difference is settled by more seeds."""
VIEWS = 12 * 1.4
"""Cost of the multi-scale test in single-scale tests: 12 views of 1.4 times the pixels."""


@dataclass
class Bench:
    """Where things are, and how many runs share the machine.

    Attributes:
        store: of the results.
        data: folder of CamVid in the layout of SegNet's split.
        runs: folder the runs are written to.
        weights: file of the pretrained encoder.
        peer: interpreter of the rivals.
        rival_weights: folder or Hub name SegFormer starts from; random if None.
        jobs: runs at the same time.
        seeds: at most this many per row.
        clock: when to stop.
        tiny: the smoke test.
    """

    store: Store
    data: Path
    runs: Path
    weights: Path | None
    peer: str | None
    rival_weights: str | None
    jobs: int
    seeds: int
    clock: Clock
    tiny: bool = False

    def complete(self, rows: list[Row], known: list[Row]) -> None:
        """Run until every row has its seeds; `known` are rows that gains are counted from."""
        while pending := list(self.pending(rows, known)):
            with ThreadPoolExecutor(self.jobs) as pool:
                for future in [pool.submit(self._attempt, row, seed) for row, seed in pending]:
                    future.result()
            if self.clock.over:
                left = len(list(self.pending(rows, known)))
                print(f"stopped; {left} runs left: the same command continues", file=sys.stderr)
                raise SystemExit(INTERRUPTED if left else 0)

    def pending(self, rows: list[Row], known: list[Row]) -> Iterator[tuple[Row, int]]:
        """Runs that are missing now; close calls ask for more seeds once seed 0 is in."""
        for row in rows:
            for seed in SEEDS[: self._wanted(row, known)]:
                if not self._finished(row, seed):
                    yield row, seed

    def _wanted(self, row: Row, known: list[Row]) -> int:
        ours = mean(self.store.score(row))
        if row.every_seed or self.seeds == 1 or ours is None:
            return self.seeds if row.every_seed else 1
        reference = next((r for r in known if r.name == row.against), None)
        theirs = mean(self.store.score(reference)) if reference else None
        return self.seeds if theirs is not None and abs(ours - theirs) < CLOSE else 1

    def _finished(self, row: Row, seed: int) -> bool:
        record = self.store.runs.get(run_name(row, seed))
        if record and record["settings"] != plain(row.settings):
            raise SystemExit(
                f"{self.store.path}: {run_name(row, seed)} was run with other settings than the "
                "manifest's; remove its record and its folder to run it again"
            )
        return record is not None and (not row.multi_scale or "multi_scale" in record["test"])

    def _attempt(self, row: Row, seed: int) -> None:
        if self.clock.over:
            return
        name = run_name(row, seed)
        folder = self.runs / name
        self._require_same(folder, row, seed)
        try:
            record = (
                self._ours(row, seed, folder)
                if row.trainer == "setr"
                else self._rival(row, seed, folder)
            )
        except _InterruptedError:
            print(f"{name}: interrupted", file=sys.stderr)
            return
        self.store.add(name, record)
        figures = record["test"]["single_scale"]
        print(f"{name}: test mIoU {100 * figures['miou']:.2f}, "
              f"{record['seconds_per_step']:.3f} s/step", flush=True)  # fmt: skip

    def _require_same(self, folder: Path, row: Row, seed: int) -> None:
        """A folder belongs to one row's settings for ever."""
        mark, wanted = folder / "run.json", {"settings": plain(row.settings), "seed": seed}
        if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) != wanted:
            raise SystemExit(f"{folder}: holds a run with other settings; remove the folder")
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps(wanted), encoding="utf-8")

    # --- our runs ---------------------------------------------------------------------------------

    def _ours(self, row: Row, seed: int, folder: Path) -> Record:
        peak = self._train(row, seed, folder)
        trained = read(folder / "metrics.json")
        source = trained["provenance"]
        joined = "val" in setting(row, "data.train_split").split("+")  # a figure of training
        record = {
            **self._common(row, seed),
            "command": self._command(row, seed),
            "commit": source["commit"],
            "hardware": source["hardware"],
            "torch": source["torch"],
            "train_seconds": round(trained["seconds"], 1),
            "seconds_per_step": seconds_per_step(folder),
            "peak_mb": round(peak),
            "val": {} if joined else {"single_scale": brief(trained["single_scale"])},
            "test": {"single_scale": self._test(folder, "single_scale")},
        }
        if row.multi_scale:
            self.store.add(
                run_name(row, seed), record
            )  # the second test takes longer than training
            both = {**record["test"], "multi_scale": self._test(folder, "multi_scale")}
            record = {**record, "test": both}
        return record

    def _test(self, folder: Path, protocol: str) -> Record:
        """Test once by a protocol."""
        from setr.protocols import MULTI_SCALES

        out = folder / f"test-{protocol}"
        if not (out / "metrics.json").is_file():
            command = ["eval", str(folder), str(self.data), "--split", "test", "--workers", "2",
                       "--out", str(out)]  # fmt: skip
            views = ["--scales", *map(str, MULTI_SCALES), "--flip"]
            self._setr([*command, *(views if protocol == "multi_scale" else [])], folder)
        return brief(read(out / "metrics.json")[protocol])

    def _train(self, row: Row, seed: int, folder: Path) -> float:
        """Train, or continue, to `metrics.json`; returns the peak memory of all sessions in MB."""
        peak = folder / "peak.json"
        if (folder / "metrics.json").is_file() and peak.is_file():
            return float(read(peak)["mb"])
        states = list((folder / "last").glob("step-*/state.json"))
        if not states:
            (folder / "train.log").unlink(missing_ok=True)  # it tells the sessions of this run
        arguments = ["train", row.recipe, "--out", str(folder), *self._options(row, seed)]
        cost = self._setr([*arguments, "--resume" if states else "--overwrite"], folder)
        highest = max(cost.peak_mb, logged_peak_mb(folder))  # of this session, and of those before
        peak.write_text(json.dumps({"mb": highest}), encoding="utf-8")
        return highest

    def _setr(self, arguments: list[str], folder: Path) -> Cost:
        cost = run_setr(arguments, folder, self.clock)
        _require_done(cost, folder / f"{arguments[0]}.log", shlex.join(["setr", *arguments]))
        return cost

    def _options(self, row: Row, seed: int) -> list[str]:
        options = ["--data.root", str(self.data), "--train.seed", str(seed)]
        if row.weights:
            options += ["--model.pretrained", self._weights(row)]
        return options + as_arguments(row.settings)

    def _weights(self, row: Row) -> str:
        if self.weights is None:
            raise SystemExit(f"{row.name}: starts from pretrained weights; give --weights FILE")
        return str(self.weights)

    def _command(self, row: Row, seed: int) -> str:
        """The run as a user would type it."""
        start = ["--model.pretrained", "WEIGHTS"] if row.weights else []
        words = ["setr", "train", row.recipe, "--data.root", "CAMVID", *start]
        return shlex.join([*words, "--train.seed", str(seed), *as_arguments(row.settings)])

    def _common(self, row: Row, seed: int) -> Record:
        return {
            "row": row.name,
            "seed": seed,
            "recipe": row.recipe,
            "settings": plain(row.settings),
            "pretrained": self.weights.name if self.weights and row.weights else None,
            "steps": setting(row, "train.steps"),
            "batch_size": setting(row, "train.batch_size"),
            "jobs": self.jobs,
        }

    # --- rivals -----------------------------------------------------------------------------------

    def _rival(self, row: Row, seed: int, folder: Path) -> Record:
        """Another library trains and predicts; the predictions are scored like ours."""
        result = folder / "result.json"
        command = self._rival_command(row, seed, folder)
        if not result.is_file():
            cost = run_foreign(command, folder, self.clock)
            _require_done(cost, folder / "train.log", shlex.join(command))
        figures = read(result)
        test = {}
        for protocol in ("single_scale", "multi_scale"):
            if (folder / protocol).is_dir():
                test[protocol] = brief(self._score(folder, protocol))
        known = ("commit", "hardware", "torch", "train_seconds", "seconds_per_step", "peak_mb")
        return {
            **self._common(row, seed),
            "command": shlex.join(
                ["python", Path(command[1]).name, *self._rival_options(row, seed)]
            ),
            **{key: figures[key] for key in known},
            "pretrained": figures["pretrained"],
            "val": {},
            "test": test,
        }

    def _rival_command(self, row: Row, seed: int, folder: Path) -> list[str]:
        if self.peer is None:
            raise SystemExit(f"{row.name}: give the rival's interpreter, --peer-python PYTHON")
        start = self._weights(row) if row.weights else None
        if row.trainer == "segformer" and not self.tiny:
            start = self.rival_weights
        places = ["--data", str(self.data), "--out", str(folder)]
        places += ["--weights", start] if start else []
        script = str(HERE / RIVALS[row.trainer][0])
        return [self.peer, script, *places, *self._rival_options(row, seed)]

    def _rival_options(self, row: Row, seed: int) -> list[str]:
        height, width = setting(row, "data.crop_size")
        options = {
            "--steps": setting(row, "train.steps"),
            "--batch-size": setting(row, "train.batch_size"),
            "--seed": seed,
            "--short-side": setting(row, "data.short_side"),
            "--workers": setting(row, "data.workers"),
        }
        words = [*RIVALS[row.trainer][1:]]
        words += [word for pair in options.items() for word in map(str, pair)]
        words += ["--crop", str(height), str(width)]
        words += ["--multi-scale"] if row.multi_scale else []
        return words + (["--tiny"] if self.tiny else [])

    def _score(self, folder: Path, protocol: str) -> Record:
        from setr.datasets import open_dataset

        labels = open_dataset(str(self.data), "test", "camvid").labels
        described = folder / "labels.json"
        described.write_text(json.dumps(labels.to_dict()), encoding="utf-8")
        log = folder / "score.log"
        log.unlink(missing_ok=True)
        truth = str(self.data / "labels" / "test")
        command = ["score", str(folder / protocol), truth, "--label-map", str(described), "--json"]
        self._setr(command, folder)
        figures: Record = json.loads(last_lines(log, 1))
        return figures

    # --- trials: what a step costs, before a budget is spent --------------------------------------

    def try_out(self, rows: list[Row], steps: int) -> None:
        """Train each row for a few steps, without a test, and keep what it took."""
        for row in rows:
            if self.clock.over:
                raise SystemExit(INTERRUPTED)
            short = {**row.settings, **schedule(steps), "train.eval_every": 0,
                     "train.log_every": max(1, steps // 2)}  # fmt: skip
            trial = dataclasses.replace(row, settings=short)
            folder = self.runs / "trials" / row.name
            shutil.rmtree(folder, ignore_errors=True)
            try:
                cost = {**self._trial(trial, folder), "settings": plain(row.settings)}
                self.store.add_trial(row.name, cost)
            except _InterruptedError:
                raise SystemExit(INTERRUPTED) from None
            shutil.rmtree(folder)
            found = self.store.trials[row.name]
            print(f"{row.name}: {found['seconds_per_step']:.4f} s/step, "
                  f"{found['peak_mb']} MB", flush=True)  # fmt: skip

    def _trial(self, row: Row, folder: Path) -> Record:
        if row.trainer != "setr":
            cost = run_foreign(
                [*self._rival_command(row, 0, folder), "--no-test"], folder, self.clock
            )
            _require_done(cost, folder / "train.log", row.name)
            found = read(folder / "result.json")
            return {key: found[key] for key in ("seconds_per_step", "peak_mb", "hardware")}
        peak = self._train(row, 0, folder)
        trained = read(folder / "metrics.json")
        tested = trained["single_scale"]
        step = seconds_per_step(folder)
        return {
            "seconds_per_step": step,
            "peak_mb": round(peak),
            "hardware": trained["provenance"]["hardware"],
            "seconds_per_image": round(tested["seconds"] / tested["images"], 4),
        }

    def estimate(self, row: Row, images: int) -> float | None:
        """Seconds one run of a row would take alone, from its trial; None without one."""
        trial = self.store.trial(row)
        if trial is None:
            return None
        test = images * trial.get("seconds_per_image", 0.0)
        steps = setting(row, "train.steps") * trial["seconds_per_step"]
        return float(steps + test * (1 + VIEWS * row.multi_scale))


class _InterruptedError(Exception):
    """The clock was over while a command ran."""


def _require_done(cost: Cost, log: Path, command: str) -> None:
    if cost.code == INTERRUPTED:
        raise _InterruptedError
    if cost.code:
        raise SystemExit(f"exit code {cost.code} of {command}\n{last_lines(log)}")


def run_name(row: Row, seed: int) -> str:
    """Name of a run and of its folder."""
    return f"{row.name}-s{seed}"


def setting(row: Row, name: str) -> Any:
    """A setting of a row: what it changes, or its recipe's."""
    from setr.recipes import recipe

    if name in row.settings:
        return row.settings[name]
    return reduce(getattr, name.split("."), recipe(row.recipe))


def as_arguments(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line takes them."""
    words: list[str] = []
    for name, value in settings.items():
        if isinstance(value, bool):
            section, _, key = name.rpartition(".")
            words.append(f"--{name}" if value else f"--{section}.no-{key}")
        else:
            values = value if isinstance(value, tuple | list) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def read(path: Path) -> Record:
    """A JSON file."""
    values: Record = json.loads(path.read_text(encoding="utf-8"))
    return values


def brief(figures: Record) -> Record:
    """The figures a table or page needs, without the long lists."""
    keep = ("miou", "iou", "pixel_accuracy", "mean_accuracy", "images", "protocol", "intervals")
    found = {key: figures[key] for key in keep if key in figures}
    for part, inner in (("boundary", ("iou", "f")), ("calibration", ("ece",))):
        if part in figures:
            found[part] = {key: figures[part][key] for key in inner}
    return found

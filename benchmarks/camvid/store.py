"""Results of finished runs: one JSON file, read and written whole, under its name when complete."""

from __future__ import annotations

import json
import os
import statistics
import threading
from pathlib import Path
from typing import Any

from manifest import Row

Record = dict[str, Any]


class Store:
    """Records by name of the run, and figures of short trial runs by name of the row.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.runs: dict[str, Record] = values.get("runs", {})
        self.trials: dict[str, Record] = values.get("trials", {})

    def add(self, name: str, record: Record) -> None:
        """Keep the record of a finished run."""
        with self.lock:
            self.runs[name] = record
            self._write()

    def add_trial(self, row: str, record: Record) -> None:
        """Keep what a short trial of a row cost."""
        with self.lock:
            self.trials[row] = record
            self._write()

    def trial(self, row: Row) -> Record | None:
        """What a trial of a row cost, if it was made with the settings the row has now."""
        found = self.trials.get(row.name)
        return found if found and found.get("settings") == plain(row.settings) else None

    def merge(self, path: Path) -> list[str]:
        """Take over runs that only another file has; returns their names.

        Raises:
            SystemExit: a run is in both with other figures: a run is tested once.
        """
        other = Store(path)
        for name, record in other.runs.items():
            if name in self.runs and self.runs[name] != record:
                raise SystemExit(f"{path}: has other figures for {name}; remove one of the two")
        new = [name for name in other.runs if name not in self.runs]
        with self.lock:
            self.runs |= other.runs
            self.trials |= other.trials
            self._write()
        return new

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        values = {"runs": self.runs, "trials": self.trials}
        part.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def of(self, row: Row) -> list[Record]:
        """Records of a row, by seed."""
        found = [r for r in self.runs.values() if r["row"] == row.name]
        return sorted(found, key=lambda record: record["seed"])

    def score(self, row: Row, split: str = "test", protocol: str = "single_scale") -> list[float]:
        """Scores of a row's runs, mIoU in percent."""
        found = [(record.get(split) or {}).get(protocol) for record in self.of(row)]
        return [100 * figures["miou"] for figures in found if figures]


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    values: dict[str, Any] = json.loads(json.dumps(settings))
    return values


def mean(values: list[float]) -> float | None:
    """The mean; None of nothing."""
    return statistics.fmean(values) if values else None


def spread(values: list[float]) -> float:
    """Sample standard deviation; 0 of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else 0.0

"""CamVid: every figure of docs/results.md about it, one command per table.

    python benchmarks/camvid main --data CAMVID --weights dinov2_vits14.safetensors
    python benchmarks/camvid steps|questions|rivals …     the other tables
    python benchmarks/camvid main+questions …             several in one queue
    python benchmarks/camvid trial main --steps 300 …     what a step of each row costs
    python benchmarks/camvid plan main                    runs that are missing, with estimates
    python benchmarks/camvid tables                       Markdown of all that was measured
    python benchmarks/camvid chart                        the same as a picture
    python benchmarks/camvid report --run RUN --data …    the page about one model
    python benchmarks/camvid merge FILE                   take over runs made elsewhere
    python benchmarks/camvid --smoke                      all of it in minutes, tiny

The same command continues what was stopped: finished runs are not repeated, interrupted ones go on
from their last state. `README.md` beside this file says in which order and at what cost.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from pathlib import Path

import chart
import drawn
import manifest
import pages
import summary
from manifest import TABLES, Row, best_rows, combined, select
from runner import Bench, run_name
from store import Store, mean, spread
from worker import Clock

RESULTS = Path(__file__).resolve().parents[1] / "results" / "camvid.json"
CHART = RESULTS.parents[2] / "docs" / "images" / "camvid.svg"
REPORT = Path("runs/camvid/report")
TEST_IMAGES = 233


def main() -> int:
    given = _arguments()
    store = Store(given.results)
    clock = Clock(given.minutes)
    signal.signal(signal.SIGINT, lambda *_: setattr(clock, "interrupted", True))
    bench = Bench(
        store=store,
        data=given.data.resolve(),
        runs=given.runs,
        weights=given.weights,
        peer=given.peer_python,
        rival_weights=given.segformer_weights,
        jobs=given.jobs,
        seeds=given.seeds,
        clock=clock,
    )
    if given.smoke:
        smoke(bench, given.data if given.data.is_dir() else None)
    elif given.what == "merge":
        print(f"new: {', '.join(store.merge(given.table)) or 'nothing'}")
    elif given.what == "tables":
        print(summary.markdown(with_best(store), store))
    elif given.what == "chart":
        print(chart.draw(with_best(store), store, given.out or CHART))
    elif given.what == "report":
        print(pages.write(given.out or REPORT, given.run, bench.data))
    elif given.what == "plan":
        plan(bench, select(with_best(store)[given.table], given.only))
    elif given.what == "trial":
        bench.try_out(select(with_best(store)[given.table], given.only), given.steps)
    else:
        make(bench, given.what.split("+"), given.only)
    return 0


def make(bench: Bench, names: list[str], only: list[str] | None) -> None:
    """Run what tables miss, all in one queue, and print them."""
    tables = with_best(bench.store)
    wanted = {name: tables[name] for name in names}
    rows = select([row for rows in wanted.values() for row in rows], only)
    bench.complete(rows, [row for known in tables.values() for row in known])
    print(summary.markdown(wanted, bench.store))


def with_best(store: Store) -> dict[str, list[Row]]:
    """The tables, with the rows that the finished switches lead to.

    Once such a run is recorded its settings stay, whatever further seeds of the switches say.
    """
    if record := store.runs.get("best-s0"):
        return {**TABLES, "main": [*TABLES["main"], *best_rows(record["settings"])]}
    plain, *others = TABLES["steps"]
    switched = [row for row in others if row.name.startswith("with_")]
    base = store.score(plain, "val")
    gains = {
        row.name.removeprefix("with_"): mean(store.score(row, "val")) - mean(base)  # type: ignore[operator]
        for row in switched
        if base and store.score(row, "val")
    }
    if len(gains) < len(switched):
        return TABLES
    return {**TABLES, "main": [*TABLES["main"], *best_rows(combined(gains, spread(base)))]}


def plan(bench: Bench, rows: list[Row]) -> None:
    """List the runs that are missing and what they would take one after the other."""
    total, unknown = 0.0, 0
    for row, seed in bench.pending(rows, [r for t in TABLES.values() for r in t]):
        seconds = bench.estimate(row, TEST_IMAGES)
        total, unknown = total + (seconds or 0), unknown + (seconds is None)
        print(
            f"{run_name(row, seed):<28}{'?' if seconds is None else f'{seconds / 60:.1f}':>8} min"
        )
    print(f"{'in all':<28}{total / 60:>8.1f} min, {unknown} without a trial")


# --- the smoke test -------------------------------------------------------------------------------


def smoke(bench: Bench, camvid: Path | None) -> None:
    """Run a few rows of every table with a tiny model on a few images, then page and tables."""
    bench.data, bench.tiny = small_data(bench.runs / "data", camvid), True
    tables = {
        name: [manifest.shrunk(r) for r in rows if r.smoke and (r.trainer == "setr" or bench.peer)]
        for name, rows in TABLES.items()
    }
    known = [row for rows in tables.values() for row in rows]
    bench.seeds = min(bench.seeds, 2)
    bench.complete(known, known)
    bench.try_out(tables["main"], 2)
    plan(bench, tables["main"])
    run = bench.runs / run_name(tables["main"][0], 0)
    print(pages.write(bench.runs / "report", run, bench.data, shown=1))
    print(summary.markdown(tables, bench.store))


def small_data(folder: Path, camvid: Path | None) -> Path:
    """Four training, two validation and two test images: CamVid's, or drawn scenes."""
    if folder.is_dir():
        return folder
    part = folder.with_name("data.part")
    shutil.rmtree(part, ignore_errors=True)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        if camvid is None:
            drawn.write_split(part, split, split, count, size=64)
            continue
        for kind in ("images", "labels"):
            (part / kind / split).mkdir(parents=True)
        files = sorted((camvid / "images" / split).iterdir())
        for path in files[:: len(files) // count][:count]:
            shutil.copy(path, part / "images" / split)
            shutil.copy(camvid / "labels" / split / f"{path.stem}.png", part / "labels" / split)
    part.rename(folder)
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/camvid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = ("trial", "plan", "tables", "chart", "report", "merge")
    parser.add_argument("what", nargs="?", help="tables, joined with +, or a command")
    parser.add_argument("table", nargs="?", help="of trial and plan; the file of merge")
    parser.add_argument("--data", type=Path, default=Path("data/camvid"), help="CamVid's folder")
    parser.add_argument("--weights", type=Path, help="pretrained encoder, a DINOv2 ViT-S/14")
    parser.add_argument("--peer-python", help="interpreter with mmsegmentation and transformers")
    parser.add_argument("--segformer-weights", help="MiT-B2: folder or Hub name; else random")
    parser.add_argument("--only", nargs="+", help="rows by name, with * and ?")
    parser.add_argument("--seeds", type=int, default=len(manifest.SEEDS), choices=(1, 2, 3))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--minutes", type=float, help="stop, resumably, after this long")
    parser.add_argument("--steps", type=int, default=300, help="of a trial")
    parser.add_argument("--runs", type=Path, default=Path("runs/camvid"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--run", type=Path, help="of report: the folder of the best run")
    parser.add_argument("--out", type=Path, help="folder of report, file of chart")
    parser.add_argument("--smoke", action="store_true", help="all of it, tiny, in minutes")
    given = parser.parse_args()
    if given.what is None and not given.smoke:
        parser.error("name a table or a command, or --smoke")
    unknown = set((given.what or "").split("+")) - {*TABLES, ""}
    if unknown and given.what not in verbs:
        tables = ", ".join(TABLES)
        parser.error(f"{given.what}: give {', '.join(verbs)}, or one or more of {tables}")
    if given.what in ("trial", "plan") and given.table not in TABLES:
        parser.error(f"{given.what}: name a table: {', '.join(TABLES)}")
    if given.what == "merge":
        if given.table is None or not Path(given.table).is_file():
            parser.error("merge: name a results file")
        given.table = Path(given.table)
    if given.what == "report" and given.run is None:
        parser.error("report: give --run, the folder of a finished run")
    if given.smoke and given.results == RESULTS:
        given.results = given.runs / "camvid.json"
    return given


if __name__ == "__main__":
    sys.exit(main())

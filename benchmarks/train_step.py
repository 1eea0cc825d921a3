"""Time and memory of a training step, beside the peer's and the floor given by its operations.

    python benchmarks/train_step.py [--peer-python PEER/bin/python] [--tiny] [--only step memory]
    python benchmarks/train_step.py --markdown          # fills the tables of docs/performance.md

A step is forward, loss and backward of T-Base at 512x512, batch 2, 150 classes, with all auxiliary
heads, in two threads. Each case runs in a process of its own, so that its peak memory is its own;
the peer (mmsegmentation 1.2.2 with mmcv-lite, in another environment) takes turns with ours.

- step: the three decoders, fp32 and the default precision, beside the peer's.
- parts: encoder, decoder, auxiliary heads and loss, forward and backward, beside the floor: their
  operations at the rate this machine multiplies matrices.
- growth: time and memory over image side, batch and classes.
- memory: of the loss alone, with logits of one size and a growing image.
- gpu: Base and Large at 512 and 768 with torch.compile and the fused loss on and off, if there is
  CUDA; SETR-L at batch 8.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_tables import fill, markdown, plot

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "train_step.json"
DOCUMENT = HERE.parent / "docs" / "performance.md"
PLOT = HERE.parent / "docs" / "images" / "train_memory.svg"
GROUPS = ("step", "parts", "growth", "memory", "gpu")
DECODERS = ("naive", "pup", "mla")
BASE = {"who": "setr", "decoder": "pup", "size": "base", "side": 512, "batch": 2, "classes": 150,
        "precision": "auto", "device": "cpu", "loss": "fused", "compile": False}  # fmt: skip


def cases(
    groups: Sequence[str], *, peer: bool, tiny: bool, cuda: bool, half: bool = True
) -> list[dict[str, Any]]:
    """What to run, in order; the peer's cases stand between ours.

    Without `half`, on processors that have no bf16, the default precision is fp32 once more.
    """
    listed: list[dict[str, Any]] = []

    def add(kind: str, **changes: Any) -> None:
        listed.append({**BASE, "kind": kind, **changes})

    if "step" in groups:
        for decoder in DECODERS:
            add("step", decoder=decoder, precision="fp32")
            if peer:
                add("step", decoder=decoder, precision="fp32", who="mmseg")
            if half:
                add("step", decoder=decoder)
            if peer and half:
                add("step", decoder=decoder, precision="bf16", who="mmseg")
    if "parts" in groups:
        for precision in ("fp32", "auto")[: 1 + half]:
            for decoder in DECODERS:
                add("parts", decoder=decoder, precision=precision)
    if "growth" in groups:
        for decoder in ("pup", "mla"):
            for side in (256, 512, 768, 1024):
                add("growth", decoder=decoder, side=side)
            for batch in (1, 4):
                add("growth", decoder=decoder, batch=batch)
            for classes in (19, 1000):
                add("growth", decoder=decoder, classes=classes)
    if "memory" in groups:
        for side in (256, 512, 768, 1024, 1536):
            for loss in ("fused", "plain"):
                add("memory", side=side, loss=loss)
    if "gpu" in groups and cuda:
        for size in ("base", "large"):
            for side in (512, 768):
                for loss, compiled in (("fused", False), ("plain", False), ("fused", True)):
                    add("gpu", size=size, side=side, loss=loss, compile=compiled, device="cuda")
                if peer:
                    add("gpu", size=size, side=side, who="mmseg", precision="bf16", device="cuda")
        add("gpu", size="large", batch=8, device="cuda")
    if tiny:
        small = {512: 64, 768: 96, 1024: 128, 1536: 192, 2048: 256, 256: 32}
        for case in listed:
            case |= {
                "size": "tiny",
                "side": small[case["side"]],
                "classes": min(case["classes"], 9),
            }
    return listed


def run_case(python: str, case: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Run one case in a fresh process and read its figures."""
    command = [python, __file__, "--case", json.dumps(case), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{label(case)}: failed: {reason}", file=sys.stderr)
        return {"failed": reason}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases, round after round; seconds of the rounds are put together."""
    import torch

    from setr.layers.precision import autocast_dtype

    listed = cases(
        given.only,
        peer=bool(given.peer_python),
        tiny=given.tiny,
        cuda=torch.cuda.is_available(),
        half=autocast_dtype("auto", torch.device("cpu")) is not None,
    )
    rows: list[dict[str, Any]] = [dict(case) for case in listed]
    for number in range(given.rounds):
        for case, row in zip(listed, rows, strict=True):
            if number and case["kind"] != "step":
                continue
            python = given.peer_python if case["who"] == "mmseg" else sys.executable
            figures = run_case(python, case, given.repeats)
            seconds = row.get("seconds", []) + figures.get("seconds", [])
            row |= figures
            if seconds:
                row["seconds"] = seconds
                row["median"] = statistics.median(seconds)
            shown = f"{row.get('median', 0):8.2f} s" if seconds else ""
            print(f"{label(case):<60}{shown} {row.get('peak_mb', '-'):>8} MB", flush=True)
    return rows


def label(case: dict[str, Any]) -> str:
    names = ("kind", "who", "decoder", "size", "side", "batch", "classes", "precision", "loss")
    words = [str(case[name]) for name in names]
    return " ".join([*words, "compiled"] if case["compile"] else words)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter with mmsegmentation 1.2.2")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--repeats", type=int, default=3, help="steps in a process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of a step, in turns")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file")
    parser.add_argument(
        "--markdown", action="store_true", help="put the JSON file's tables into the document"
    )
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)  # in this process
    given = parser.parse_args()
    if given.case:
        from train_case import run  # the peer's interpreter has torch, and nothing of ours

        print(json.dumps(run(given.case, given.repeats)))
        return
    if given.markdown:
        DOCUMENT.write_text(fill(DOCUMENT.read_text(), markdown(json.loads(given.out.read_text()))))
        return
    rows = run_all(given)
    kept = []
    if given.out.exists():  # other groups of an earlier run on the same commit and machine stay
        before = json.loads(given.out.read_text())
        kept = [r for r in before["rows"] if r["kind"] not in given.only]
        kept = kept if before["machine"] == machine() else []
    record = {"machine": machine(), "repeats": given.repeats, "rounds": given.rounds,
              "rows": kept + rows}  # fmt: skip
    print(*markdown(record).values(), sep="\n")
    if given.tiny and given.out == RESULTS:
        return
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    if "memory" in given.only and not given.tiny:
        PLOT.write_text(plot(rows))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    from setr.provenance import commit, hardware

    return {
        "hardware": hardware(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


if __name__ == "__main__":
    main()

"""Tables of `inference.py`."""

from __future__ import annotations

from typing import Any


def markdown(record: dict[str, Any]) -> str:
    """The record as tables for a document."""
    lines = []
    for found in record["models"]:
        floors = {p: found["least_gflops"] / rate for p, rate in found["matmul_gflops"].items()}
        rates = (f"{rate:.0f} GFLOP/s in {p}" for p, rate in found["matmul_gflops"].items())
        lines += [
            "",
            f"{found['model']}: {found['parameters'] / 1e6:.1f} M parameters, "
            f"{found['gflops']:.0f} GFLOP, {found['least_gflops']:.0f} in the cheapest order; "
            f"matrix products at {', '.join(rates)}: "
            f"floor {', '.join(f'{floor:.2f} s in {p}' for p, floor in floors.items())}.",
            "",
            f"| contender | seconds | times {found['reference']} | peak MB | of its memory | "
            "floor / seconds | same class |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['contender']} | {r['seconds']:.2f} | {r['speedup']:.2f} | {r['peak_mb']:.0f} | "
            f"{r['memory_ratio']:.2f} | {of_floor(r, floors)} | {r['agreement']:.2%} |"
            for r in found["rows"]
        ]
    if record.get("trained"):
        lines += ["", "| runtime | images/s | p50 ms | peak MB | same class as fp32 | mIoU |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for r in record["trained"]["rows"]:
            if "error" not in r:
                t = r["batches"]["1"]
                lines.append(
                    f"| {r['runtime']} {r['precision']} | {t['images_per_second']:.2f} | "
                    f"{t['p50_ms']:.0f} | {t['peak_mb']:.0f} | {r['agreement']:.2%} | "
                    f"{100 * r['miou']:.2f} |"
                )
    if record.get("gpu"):
        lines += ["", "| model | way | batch | images/s | peak MB |", "|---|---|---|---|---|"]
        lines += [
            f"| {g['model']} | {r['contender']} | {r['batch']} | {r['images_per_second']:.1f} | "
            f"{r['peak_mb']:.0f} |"
            for g in record["gpu"]
            for r in g["rows"]
        ]
    return "\n".join(lines)


def of_floor(row: dict[str, Any], floors: dict[str, float]) -> str:
    """The floor of a row's own precision over its time; nothing where no rate was measured."""
    floor = floors.get(row["contender"].split()[-1])
    return "" if floor is None else f"{floor / row['seconds']:.0%}"

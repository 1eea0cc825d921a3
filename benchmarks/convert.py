"""Convert full-size checkpoints of both dialects: time and peak memory.

No released checkpoint is needed: a random SETR-PUP is written under the dialect's names, then
`setr convert` runs in a process of its own, whose largest resident memory is what is reported
(pages of the source file that the kernel maps count too).

    python benchmarks/convert.py [--sizes base large] [--out benchmarks/results/convert.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from setr.catalog import list_models
from setr.model import create_model
from setr.writing import write_bytes

BLOCKS = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv.": "attn.attn.in_proj_",
    "attn.proj.": "attn.attn.out_proj.",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}


def official_name(name: str, last: int) -> str:
    """A name of our PUP model in the authors' layout."""
    name = name.replace("encoder.vit.", "backbone.")
    name = re.sub(r"convs\.(\d)\.0\.", r"conv_\1.", name)
    name = re.sub(r"convs\.(\d)\.1\.", r"syncbn_fc_\1.", name)
    name = name.replace("classifier", f"conv_{last}")
    return name.replace("aux_heads", "auxiliary_head").replace("decoder", "decode_head")


def mmseg_name(name: str) -> str:
    """A name of our PUP model in mmsegmentation's layout."""
    if name.startswith("encoder."):
        name = name.replace("encoder.vit.", "backbone.").replace(".blocks.", ".layers.")
        name = name.replace("patch_embed.proj", "patch_embed.projection")
        for ours, theirs in BLOCKS.items():
            name = name.replace(f".{ours}", f".{theirs}")
        return name
    name = re.sub(r"convs\.(\d)\.0\.", r"up_convs.\1.0.conv.", name)
    name = re.sub(r"convs\.(\d)\.1\.", r"up_convs.\1.0.bn.", name)
    name = name.replace("classifier", "conv_seg")
    return name.replace("aux_heads", "auxiliary_head").replace("decoder", "decode_head")


def synthetic(dialect: str, size: str) -> dict[str, Tensor]:
    """A full-size random PUP checkpoint; 512x512 positions and 150 classes."""
    port = dialect == "mmseg"
    arguments = {"aux_args": {"channels": 256, "num_convs": 2, "kernel_size": 3}} if port else {}
    model = create_model(f"setr_pup_{size}", num_classes=150, img_size=512, **arguments)
    state = {}
    for name, value in model.state_dict().items():
        if port:
            if not re.search(r"convs\.\d\.0\.bias", name):
                state[mmseg_name(name)] = value
        else:
            state[official_name(name, 4 if name.startswith("decoder") else 1)] = value
    return state


MEASURED = """
import sys
from setr.cli import main
from setr.processes.machine import process_peak
code = main(["convert", *sys.argv[1:]])
print(process_peak())
sys.exit(code)
"""


def convert(source: Path, out: Path) -> tuple[float, float, str]:
    """Run `setr convert`: seconds, peak memory in GiB, its report."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(source), "-o", str(out)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"setr convert failed on {source}")
    report, _, peak = done.stdout.strip().rpartition("\n")
    return time.monotonic() - began, int(peak) / 2**30, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["base", "large"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    unknown = [s for s in given.sizes if f"setr_pup_{s}" not in list_models()]
    if unknown:
        parser.error(f"no size {unknown[0]}")
    rows = []
    print("| dialect | model | file GiB | seconds | peak GiB | report |")
    print("|---|---|---|---|---|---|")
    for dialect in ("official", "mmseg"):
        for size in given.sizes:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / f"{dialect}_{size}.pth"
                torch.save({"state_dict": synthetic(dialect, size), "meta": {}}, source)
                gib = source.stat().st_size / 2**30
                seconds, peak, report = convert(source, Path(folder) / "model")
            rows.append({"dialect": dialect, "model": f"setr_pup_{size}", "file_gib": gib,
                         "seconds": seconds, "peak_gib": peak, "report": report})  # fmt: skip
            print(f"| {dialect} | setr_pup_{size} | {gib:.2f} | {seconds:.1f} | {peak:.2f} | "
                  f"{report} |", flush=True)  # fmt: skip
    if given.out:
        values = {"python": platform.python_version(), "torch": torch.__version__,
                  "load_average": os.getloadavg()[0], "rows": rows}  # fmt: skip
        write_bytes(given.out, (json.dumps(values, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

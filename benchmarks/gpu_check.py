"""What only a GPU can show: that it computes what the CPU does, waits nowhere, and how fast.

    python benchmarks/gpu_check.py [--device cuda|cpu] [--only loss step …] [--tiny] [--out FILE]

Every check is on its own: one that fails is reported, and the next one runs. Prints a line for each
and writes a JSON file. The exit code is 1 if one failed. With `--device cpu` the same code is tried
where there is no GPU; `--tiny` makes everything small. Nothing is downloaded.

- loss, step: values and gradients beside the CPU's, in fp32 and half precision.
- train: `setr train` on drawn scenes in every precision, resumed, and with the options that take
  other roads; train_compiled: through `torch.compile`; graph: with
  and without a CUDA graph.
- predict: a model's masks on this device beside the CPU's, by every protocol.
- others: figures of a model, constants on its logits, evaluation, an ONNX file.
- models: a few steps and a prediction of every further family of models.
- waits: where a training step makes the processor wait for the GPU.
- memory: the estimate of a step beside the allocator's peak.
- speed, compiled: a training step of CamVid's recipe; layers: forms of PUP's layers; images,
  images_compiled: images per second through SETR-PUP, Base and Large.
- shared: steps per second of several trainings on one GPU, in turns and through NVIDIA's MPS.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import gpu_models
import gpu_shared
import gpu_speed
import gpu_training
import torch
from gpu_bench import Bench, Figures

CHECKS: dict[str, Callable[[Bench], Figures]] = {
    check.__name__: check
    for check in (
        gpu_training.loss,
        gpu_training.step,
        gpu_training.train,
        gpu_training.train_compiled,
        gpu_training.graph,
        gpu_models.predict,
        gpu_models.others,
        gpu_models.models,
        gpu_speed.waits,
        gpu_speed.memory,
        gpu_speed.speed,
        gpu_speed.compiled,
        gpu_speed.layers,
        gpu_speed.images,
        gpu_speed.images_compiled,
        gpu_shared.shared,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--tiny", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--decoders", nargs="+", default=Bench.decoders, help="to be timed")
    parser.add_argument("--patience", type=float, default=300, metavar="SECONDS",
                        help="end a check that takes longer, and print where it was")  # fmt: skip
    given = parser.parse_args()
    from setr.provenance import commit, hardware

    results: Figures = {"hardware": hardware(), "torch": torch.__version__, "commit": commit(),
                        "checks": {}}  # fmt: skip
    failed = 0
    with tempfile.TemporaryDirectory(prefix="setr-gpu-") as folder:
        bench = Bench(torch.device(given.device), given.tiny, Path(folder), given.decoders)
        for name in given.only:
            began = time.monotonic()
            faulthandler.dump_traceback_later(given.patience, exit=True, file=sys.__stderr__)
            torch.manual_seed(0)
            try:
                found: Figures = CHECKS[name](bench)
            except Exception as problem:
                traceback.print_exc()
                failed += 1
                found = {"failed": f"{type(problem).__name__}: {problem}"}
            seconds = round(time.monotonic() - began, 1)
            results["checks"][name] = {"seconds": seconds, **found}
            print(f"{name} ({seconds} s): {json.dumps(found)}", flush=True)
            if given.out:  # what was measured stays if the machine goes
                given.out.write_text(json.dumps(results, indent=1) + "\n")
    faulthandler.cancel_dump_traceback_later()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Segmentation models of other libraries beside ours, from a normalised image to its mask.

    python benchmarks/rivals.py --peer-python PEER/bin/python [--rounds 3] [--markdown]

512x512, 150 classes, batch 1, fp32 on a CPU, random weights: speed and memory only. Each model runs
in a process of its own, in turn, `--rounds` times; figures are medians over the rounds, ratios are
taken within a round. The rivals come as their libraries build them (no auxiliary head), logits are
resized to the image and the best class taken as these libraries do it.

The peer's interpreter has transformers and segmentation-models-pytorch beside the same torch.
Prints a table (`--markdown` for documents) and writes results/rivals.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from inference import machine, start
from inference_case import NUM_CLASSES, ours, prepare, timed
from peers import peak_mb

RIVALS = ("transformers DPT ViT-B", "transformers SegFormer-B5", "smp DPT ViT-B")
OURS = ("pup", "naive", "mla")
PRECISIONS = ("fp32", "bf16")


def rival(job: dict[str, Any], _: Path) -> dict[str, Any]:
    """Time a model of another library; runs in the peer's interpreter."""
    repair_torchvision()
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    size = job["size"]
    model = build(job["rival"], size).eval()
    x = torch.randn(1, 3, size, size)

    @torch.inference_mode()
    def run() -> Any:
        logits = model(x)
        logits = getattr(logits, "logits", logits)
        if logits.shape[-2:] != x.shape[-2:]:
            logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return logits.argmax(dim=1)

    seconds, mask = timed(run, job["repeats"])
    assert mask.shape == (1, size, size)
    parameters = sum(p.numel() for p in model.parameters())
    return {"seconds": seconds, "peak_mb": peak_mb(), "parameters": parameters}


def build(name: str, size: int) -> Any:
    """A rival with random weights."""
    if name == "smp DPT ViT-B":
        import segmentation_models_pytorch as smp

        return smp.DPT(
            encoder_name="tu-vit_base_patch16_224.augreg_in21k",
            encoder_weights=None,
            classes=NUM_CLASSES,
            dynamic_img_size=True,
        )
    import transformers

    if name == "transformers DPT ViT-B":
        config = transformers.DPTConfig(
            num_labels=NUM_CLASSES, image_size=size, use_auxiliary_head=False
        )
        return transformers.DPTForSemanticSegmentation(config)
    config = transformers.SegformerConfig(
        depths=[3, 6, 40, 3],
        hidden_sizes=[64, 128, 320, 512],
        decoder_hidden_size=768,
        num_labels=NUM_CLASSES,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def repair_torchvision() -> None:
    """As this package does for itself, which the peer's interpreter does not have."""
    path = Path(__file__).parents[1] / "src/setr/_torchvision.py"
    spec = importlib.util.spec_from_file_location("repaired_torchvision", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its operator schemas live as long as this
    spec.loader.exec_module(module)


STEPS = {"rival": rival, "prepare": prepare, "ours": ours}


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all contenders."""
    contenders = [f"setr {d}_{given.scale} {p}" for d in OURS for p in PRECISIONS]
    rivals = list(RIVALS) if given.peer_python else []
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="setr-rivals-") as folder:
        common = {"size": given.size, "repeats": given.repeats, "script": __file__}
        parameters = {}
        for decoder in OURS:
            work = Path(folder, decoder)
            work.mkdir()
            job = {"model": f"{decoder}_{given.scale}", "contenders": [], **common}
            about = start(sys.executable, "prepare", work, given.threads, **job)
            parameters[decoder] = about["parameters"]
        for _ in range(given.rounds):
            figures: dict[str, dict[str, float]] = {}
            for name in rivals:
                figures[name] = start(
                    given.peer_python, "rival", Path(folder), given.threads, rival=name, **common
                )
            for name in contenders:
                decoder, precision = name[5:].split("_")[0], name.split()[-1]
                figures[name] = start(
                    sys.executable, "ours", Path(folder, decoder), given.threads,
                    contender=f"eager {precision}", device="cpu", batch=1, **common,
                )  # fmt: skip
                figures[name]["parameters"] = parameters[decoder]
            rounds.append(figures)
            for name, found in figures.items():
                print(f"{name:<28}{found['seconds']:>8.3f} s{found['peak_mb']:>7.0f} MB",
                      file=sys.stderr)  # fmt: skip
    first = f"setr pup_{given.scale} fp32"
    return [
        {
            "contender": name,
            "parameters": rounds[0][name]["parameters"],
            "seconds": statistics.median(r[name]["seconds"] for r in rounds),
            "peak_mb": statistics.median(r[name]["peak_mb"] for r in rounds),
            "times_ours": statistics.median(
                r[name]["seconds"] / r[first]["seconds"] for r in rounds
            ),
        }
        for name in rounds[0]
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table for a document."""
    lines = ["| model | M parameters | seconds | seconds over SETR-PUP's in fp32 | peak MB |",
             "|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {r['contender']} | {r['parameters'] / 1e6:.1f} | {r['seconds']:.2f} | "
        f"{r['times_ours']:.2f} | {r['peak_mb']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter with transformers and smp")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--scale", default="base", choices=("tiny", "base"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="print a table for a document")
    parser.add_argument("--out", type=Path, help="JSON file; results/rivals.json by default")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # one step, in this process
    given = parser.parse_args()
    if given.step:
        job = json.loads(given.step)
        print(json.dumps(STEPS[job["step"]](job, Path(job["work"]))))
        return
    rows = measure(given)
    settings = {"size": given.size, "classes": NUM_CLASSES, "batch": 1, "rounds": given.rounds,
                "repeats": given.repeats}  # fmt: skip
    print(markdown(rows) if given.markdown else json.dumps(rows))
    out = given.out or Path(__file__).parent / "results/rivals.json"
    record = {"machine": machine(given.threads), "settings": settings, "rows": rows}
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

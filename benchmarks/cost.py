"""What SETR costs on paper: operations, activation memory, bytes exchanged, data rate.

    python benchmarks/cost.py --model setr_pup_large --size 512 768 --classes 150

Operations are counted by torch's FlopCounterMode and activations by hooks on what autograd saves,
both on the meta device: nothing is computed, so any model is counted in seconds on any machine.
`docs/scaling.md` explains the table and says what of it was checked by measurement.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from setr.model import SETR, create_model


def count(name: str, size: int, classes: int, *, checkpointing: bool, dtype: torch.dtype) -> dict:
    """Parameters, operations of one training step and activation bytes, for one image."""
    with torch.device("meta"):
        model: SETR = create_model(name, num_classes=classes, img_size=size).to(dtype)
        images = torch.empty(1, 3, size, size, dtype=dtype)
    if checkpointing:
        model.set_grad_checkpointing()
    model.train()
    vit = model.encoder.vit
    tokens = (size // model.encoder.patch_size) ** 2 + vit.num_prefix_tokens
    seen: dict[int, int] = {}
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: list[torch.Tensor] = []

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.shape[-2:] == (tokens, tokens):  # fused attention keeps no such matrix
            return tensor
        if storage._cdata not in parameters and storage._cdata not in seen:
            seen[storage._cdata] = storage.nbytes()
            kept.append(tensor)  # or another tensor could get its place
        return tensor

    forward = FlopCounterMode(display=False)
    with forward, torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        output = model(images, with_aux=True)
    backward = FlopCounterMode(display=False)
    with backward:
        torch.autograd.backward([t.sum() for t in (output.logits, *output.aux)])
    inference = FlopCounterMode(display=False)
    with inference, torch.no_grad():
        model.coarse(images)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "inference_flops": inference.get_total_flops(),
        "step_flops": forward.get_total_flops() + backward.get_total_flops(),
        "activation_bytes": sum(seen.values()),
        "logit_bytes": sum(t.numel() * 4 for t in (output.logits, *output.aux)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["setr_pup_large", "setr_mla_large"])
    parser.add_argument("--size", type=int, nargs="+", default=[512, 768])
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    given = parser.parse_args()
    rows = []
    print(
        "| model | size | parameters M | forward TFLOP | training TFLOP | activations GB, bf16 "
        "| recomputed GB | training TFLOP, recomputed |\n|---|---|---|---|---|---|---|---|"
    )
    for name in given.model:
        for size in given.size:
            plain, recomputed = (
                count(name, size, given.classes, checkpointing=c, dtype=torch.bfloat16)
                for c in (False, True)
            )
            rows.append({"model": name, "size": size, "plain": plain, "recomputed": recomputed})
            print(
                f"| {name} | {size} | {plain['parameters'] / 1e6:.1f} "
                f"| {plain['inference_flops'] / 1e12:.2f} | {plain['step_flops'] / 1e12:.2f} "
                f"| {plain['activation_bytes'] / 1e9:.2f} "
                f"| {recomputed['activation_bytes'] / 1e9:.2f} "
                f"| {recomputed['step_flops'] / 1e12:.2f} |"
            )
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

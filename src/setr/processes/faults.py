"""One-line messages for errors that libraries raise when the machine fails."""

from __future__ import annotations

import re

import torch

_LOST = re.compile(r"DataLoader worker \(pid.* [\d, ]+\) (is killed by signal: [\w ]+|exited)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or a CPU."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "DefaultCPUAllocator" in text
        or "out of memory" in text
        or "could not create a memory" in text  # oneDNN
        or "failed to map segment" in text  # a library
    )


def machine_fault(error: BaseException) -> str | None:
    """What happened and what to do, if the machine failed; None for any other error."""
    text = str(error)
    if is_out_of_memory(error):
        return "out of memory; lower the batch size or the image size"
    if lost := _LOST.search(text):
        how = lost[1].replace("is killed by", "was killed by")
        return (
            f"a data loader process {how}, probably because memory ran out; use fewer workers; "
            "`setr train RUN --resume` continues a training from its last state"
        )
    if text.startswith("CUDA error"):
        what = text.splitlines()[0].rstrip(".")
        return (
            f"{what}; if it happens again, torch may not support this GPU or its driver: "
            "`--device cpu` runs without it, --debug shows where it happened"
        )
    return None

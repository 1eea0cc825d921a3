"""A model from its description, with the weights of a file in memory of its own.

Both files may come from a stranger: neither a wrong nor a malicious description takes memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from setr.errors import FAILED, SetrError
from setr.model import SETR
from setr.processes.machine import page_out
from setr.reading.files import in_text

LARGEST = 100_000
"""Upper limit on the numbers in a model's arguments, such as widths, depths and image sides."""
MOST_NUMBERS = 1_000
"""Upper limit on how many they are."""
MAPPED_BYTES = 16 << 20
"""Of a weight file that are in memory beside their copies, about."""


def open_model(arguments: dict[str, Any], config: Path, weights: Path) -> SETR:
    """The model of a model directory, on the CPU.

    Args:
        arguments: of `SETR`.
        config: the file that contains them, for messages.
        weights: a safetensors file.

    Raises:
        SetrError: invalid arguments, or weights that are missing, broken or of another model.
    """
    try:
        model = _build(config, arguments, weights)
        _assign_weights(model, weights)
    except FileNotFoundError:
        raise SetrError(f"{weights}: no such file; the model directory is incomplete") from None
    except (SafetensorError, RuntimeError) as error:
        lines = str(error).splitlines()
        reason = " ".join(lines[1:] or lines).split()  # torch's first line names no tensor
        raise SetrError(
            f"{weights}: broken or of another model ({' '.join(reason):.160})"
        ) from None
    return model


def in_file(path: Path, error: SetrError) -> SetrError:
    """An error about a setting as one about the file that contains it, with exit code 1."""
    text = str(error)
    names_file = text.startswith(str(path.parent))
    return SetrError(text if names_file else f"{path}: {text}", code=FAILED)


def _build(config: Path, arguments: dict[str, Any], weights: Path) -> SETR:
    """The model described by a config.json, without weights.

    It is built on the meta device and may not have more weights than its file.

    Raises:
        SetrError: invalid arguments, or more weights than the file contains.
        FileNotFoundError: no weight file.
    """
    size = weights.stat().st_size
    try:
        numbers = list(islice(_numbers(arguments), MOST_NUMBERS + 1))
        if len(numbers) > MOST_NUMBERS or any(abs(number) > LARGEST for number in numbers):
            raise SetrError(
                f"model: has a number above {LARGEST:,}, or more than {MOST_NUMBERS:,} of them, "
                "which no architecture has"
            )
        with torch.device("meta"), _meta_parameters(weights, size):
            model = SETR(**arguments)
        state = model.state_dict()
        if all(name in state for name, _ in model.named_buffers()):
            return model
        with _meta_parameters(weights, size):  # non-persistent buffers must be computed
            return SETR(**arguments)
    except SetrError as error:
        raise in_file(config, error) from None
    except MemoryError:
        raise
    except OSError as error:  # of the machine, as where torch finds no temporary folder
        raise SetrError(error.strerror or str(error)) from None
    except Exception as error:  # torch and timm raise many types on invalid values
        raise SetrError(f"{config}: not a valid model description ({error!r:.120})") from None


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


_PATCH_LOCK = threading.Lock()
"""Only one thread at a time may patch torch in `_meta_parameters`, or the patch would stay."""


@contextmanager
def _meta_parameters(weights: Path, size: int) -> Iterator[None]:
    """Create parameters on the meta device, without memory; buffers are created as usual.

    Other threads are not affected.

    Raises:
        SetrError: inside, for more parameters than `size`, the bytes of the weight file.
    """
    left = size
    with _PATCH_LOCK:
        register, thread = nn.Module.register_parameter, threading.get_ident()

        def register_on_meta(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
            nonlocal left
            if value is not None and threading.get_ident() == thread:
                left -= value.numel()
                if left < 0:
                    raise SetrError(
                        f"{weights}: broken or of another model (its {size:,} bytes are fewer than "
                        "the weights that config.json describes)"
                    )
                value = nn.Parameter(value.to("meta"), requires_grad=value.requires_grad)
            register(module, name, value)

        nn.Module.register_parameter = register_on_meta  # type: ignore
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore


def _assign_weights(model: SETR, weights: Path) -> None:
    """Give a model copies of the tensors of a file.

    Mapped memory would follow the file: a program that writes into it in place, such as `cp`, would
    change the model or, while the file is shorter, end the process. Windows could not replace it.
    """
    with in_text(weights) as place:
        tensors, since = load_file(place), 0
    for name, parameter in model.state_dict().items():
        if name in tensors:
            tensors[name] = tensors[name].to(parameter.dtype, copy=True)
            since += tensors[name].nbytes
        if since > MAPPED_BYTES:
            page_out(weights)
            since = 0
    model.load_state_dict(tensors, assign=True)

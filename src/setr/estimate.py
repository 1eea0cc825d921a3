"""Estimates a run before it starts: memory, the largest batch, and what would need less memory.

`memory.py` estimates the memory of one step; this module does so for the settings of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch

from setr import distributed
from setr.config import Config, DataConfig, OptimConfig, TrainConfig
from setr.errors import SetrError
from setr.hub import from_pretrained
from setr.layers.precision import autocast_dtype, precision_name
from setr.model import SETR
from setr.model_sources import sources_of
from setr.processes.faults import is_out_of_memory
from setr.processes.machine import free_bytes
from setr.training.build import build_empty, without_weights
from setr.training.complexity import training_flops
from setr.training.memory import Memory, step_memory

USABLE = 0.92
"""Share of the free memory that `batch auto` uses; the estimate excludes workspaces of kernels."""


def estimate(config: Config, num_classes: int, device: torch.device) -> Memory:
    """Memory of one process of this run, without sharding (which would reduce it)."""
    train = config.train
    return _cached_estimate(
        _relevant_settings(config),
        num_classes,
        device,
        train.batch_size // (train.accumulate * distributed.world()),
        train.accumulate > 1,
    )


def flops_per_image(config: Config, num_classes: int) -> int:
    """FLOPs of the forward and backward pass for one crop, without recomputation."""
    plain = config.replace({"train.grad_checkpointing": False})
    return _cached_flops(_relevant_settings(plain), num_classes)


def _relevant_settings(config: Config) -> Config:
    """The settings that affect the estimates, others at their defaults: a key of the caches."""
    kept = ("precision", "ema", "grad_checkpointing", "cache_features", "loss")
    return Config(
        model=without_weights(config).model,
        data=DataConfig(crop_size=config.data.crop_size),
        optim=OptimConfig(name=config.optim.name, momentum=config.optim.momentum),
        distill=config.distill,
        train=TrainConfig(**{name: getattr(config.train, name) for name in kept}),
    )


@lru_cache(maxsize=64)
def _cached_estimate(
    config: Config, num_classes: int, device: torch.device, batch: int, keeps_gradients: bool
) -> Memory:
    teacher = config.distill.teacher
    return step_memory(
        build_empty(config, num_classes),
        teachers=_meta_teachers(teacher) if teacher else (),
        batch=batch,
        size=config.data.crop_size,
        device=device,
        dtype=autocast_dtype(config.train.precision, device),
        moments=2 if config.optim.name == "adamw" else int(config.optim.momentum > 0),
        average=config.train.ema > 0,
        keeps_gradients=keeps_gradients,
        cached=config.train.cache_features != "none",
        loss=config.train.loss,
    )


def _meta_teachers(source: str) -> list[SETR]:
    """The models of a teacher without their weights."""
    with torch.device("meta"):
        return [SETR(**arguments) for arguments in _teacher_arguments(source)]


@lru_cache(maxsize=1)
def _teacher_arguments(source: str) -> list[dict[str, Any]]:
    """What teachers are built from; their files are read once for all batch sizes tried."""
    return [from_pretrained(one)[0].arguments for one in sources_of(source)]


@lru_cache(maxsize=64)
def _cached_flops(config: Config, num_classes: int) -> int:
    cached = config.train.cache_features != "none"
    return training_flops(build_empty(config, num_classes), *config.data.crop_size, cached=cached)


def with_batch(config: Config, batch: int) -> Config:
    """The same run with a fixed batch size."""
    return config.replace({"train.batch_size": batch, "train.batch": "fixed"})


def largest_batch(
    config: Config, num_classes: int, device: torch.device, *, room: int, at_most: int
) -> tuple[int, Memory] | None:
    """The largest batch size whose estimate fits into `room` bytes, and the estimate.

    Batch sizes are multiples of processes x micro-batches; None if even the smallest does not fit.
    The search interpolates, since memory grows about linearly with the batch.
    """
    unit = config.train.accumulate * distributed.world()

    def need(units: int) -> int:
        return estimate(with_batch(config, units * unit), num_classes, device).total

    most = max(1, at_most // unit)
    low, high = 1, min(2, most)
    below, above = need(low), need(high)
    if below > room:
        return None
    while above <= room and high < most:
        slope = max(1, (above - below) / (high - low))
        low, below = high, above
        high = min(most, max(high + 1, int(high + (room - above) / slope)))
        above = need(high)
    while above > room and high - low > 1:
        middle = min(high - 1, max(low + 1, int(low + (room - below) * (high - low)
                                                / (above - below))))  # fmt: skip
        if (needed := need(middle)) > room:
            high, above = middle, needed
        else:
            low, below = middle, needed
    units = high if above <= room else low
    chosen = with_batch(config, units * unit)
    return units * unit, estimate(chosen, num_classes, device)


def _room(free: int, device: torch.device) -> int:
    """Bytes that `batch auto` may use; on CPUs the processes share the memory of the machine."""
    return int(USABLE * free / (distributed.world() if device.type == "cpu" else 1))


def with_chosen_batch(
    config: Config,
    num_classes: int,
    images: int,
    device: torch.device,
    before: Mapping[str, Any] | None = None,
) -> Config:
    """Replace `train.batch auto` by a batch size.

    Args:
        images: size of the training split, an upper limit of the labelled images in a batch.
        before: facts of the run that is continued; it keeps its batch size.

    Raises:
        SetrError: even the smallest batch does not fit; the message says what needs less memory.
    """
    if config.train.batch == "fixed":
        return config
    if before:
        return with_batch(config, before["train.batch_size"])
    free = min(distributed.gather(free_bytes(device)))
    room = _room(free, device)
    if config.distill.images:  # which are not labelled ones
        images = max(2, int(images / (1 - config.distill.share)))
    found = distributed.on_first(
        lambda: largest_batch(config, num_classes, device, room=room, at_most=images)
    )
    if found is None:
        unit = config.train.accumulate * distributed.world()
        smallest = with_batch(config, unit)
        raise SetrError(
            f"train.batch auto: even {unit} needs {_gb(estimate(smallest, num_classes, device))}; "
            + advice(smallest, num_classes, device)
        )
    batch, memory = found
    distributed.say(f"batch {batch}: {_gb(memory)} of {_gb(free)} free, by estimate")
    return with_batch(config, batch)


def forecast(config: Config, num_classes: int, device: torch.device) -> dict[str, Any]:
    """The report of `setr train … --estimate`, JSON-serialisable; memory in bytes."""
    unit = config.train.accumulate * distributed.world()
    at_most = (4 * config.train.batch_size + 64) // unit * unit
    free = free_bytes(device)
    found = largest_batch(config, num_classes, device, room=_room(free, device), at_most=at_most)
    return {
        "recipe": config.recipe,
        "device": device.type,
        "precision": precision_name(autocast_dtype(config.train.precision, device)),
        "batch_size": config.train.batch_size,
        "crop_size": list(config.data.crop_size),
        "num_classes": num_classes,
        **dataclasses.asdict(estimate(config, num_classes, device)),
        "free": free,
        "largest_batch": found and found[0],
        "largest_tried": at_most,
        "training_gflops_per_image": flops_per_image(config, num_classes) / 1e9,
        "advice": advice(config, num_classes, device),
    }


def forecast_text(values: dict[str, Any]) -> str:
    """The report of `forecast` as text."""
    H, W = values["crop_size"]
    rows = [
        f"{values['recipe']}: batch {values['batch_size']} of {H}x{W}, {values['num_classes']} "
        f"classes, {values['precision']}, {values['device']}, one process of the run"
    ]
    for name in (f.name for f in dataclasses.fields(Memory)):
        note = ""
        if name == "total":
            note = f"   peak; {_gb(values['free'])} are free"
        elif name == "gradients":
            note = "   they replace activations during the backward pass"
        rows.append(f"  {name:<12} {values[name] / 1e9:8.2f} GB{note}")
    largest = values["largest_batch"]
    fits = f"the largest batch that fits is {largest}" if largest else "no batch fits"
    if largest == values["largest_tried"]:
        fits = f"a batch of {largest} fits, and no larger one was tried"
    return "\n".join([*rows, f"by estimate {fits}; {values['advice']}"])


def advice(config: Config, num_classes: int, device: torch.device) -> str:
    """Changes that need less memory: `these need less: --train.accumulate 2 …: 7.1 GB, …`."""
    train = config.train
    unit = distributed.world() * train.accumulate
    parts = train.batch_size // unit
    options: dict[str, Config] = {}
    if not train.grad_checkpointing and train.cache_features == "none":
        options["--train.grad-checkpointing"] = config.replace({"train.grad_checkpointing": True})
    if parts > 1:
        factor = next(f for f in range(2, parts + 1) if parts % f == 0)
        more = train.accumulate * factor
        options[f"--train.accumulate {more} (the same batch in parts)"] = config.replace(
            {"train.accumulate": more}
        )
        options[f"--train.batch-size {parts // 2 * unit}"] = with_batch(config, parts // 2 * unit)
    patch = build_empty(config).encoder.patch_size
    H, W = (max(patch, round(side * 0.75 / patch) * patch) for side in config.data.crop_size)
    options[f"--data.crop-size {H} {W}"] = config.replace({"data.crop_size": (H, W)})
    found = {name: estimate(other, num_classes, device) for name, other in options.items()}
    return "these need less: " + ", ".join(f"{name}: {_gb(m)}" for name, m in found.items())


def _gb(memory: Memory | int) -> str:
    return f"{(memory.total if isinstance(memory, Memory) else memory) / 1e9:.1f} GB"


@contextlib.contextmanager
def explain_out_of_memory(config: Config, num_classes: int, device: torch.device) -> Iterator[None]:
    """Context that turns out-of-memory errors into a `SetrError` with changes that would help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        train, (H, W) = config.train, config.data.crop_size
        needed = estimate(config, num_classes, device)
        raise SetrError(
            f"out of memory at batch {train.batch_size} of {H}x{W} on {device.type}, which needs "
            f"{_gb(needed)} by estimate; {advice(config, num_classes, device)}; or let "
            "--train.batch auto choose"
        ) from None

"""Profiling of training steps: a trace, and the ten costliest operations by module.

torch's profiler does not record modules outside TorchScript. Hooks mark every module's forward pass
in the trace; a backward operation belongs to the module whose forward operation created its
autograd node (both have the same sequence number). Numbered layers are grouped.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import record_function

from setr.distributed import rank, say

SKIPPED = 2
"""Warm-up steps for caches and allocators, which are not profiled."""
SHOWN = 10
_MODULE = "module: "
_BACKWARD = "autograd::engine::evaluate_function"
_NO_WORK = (_MODULE, "ProfilerStep", "enumerate(DataLoader)", "Activity Buffer", "[memory]")


class Profile:
    """Context manager for a loop that calls `step` after every step; only rank 0 profiles.

    Args:
        model: the model whose modules are distinguished.
        steps: number of steps to profile; 0 disables it.
        out: folder in which `trace.json` is written.
        remaining: number of steps the loop will run.
    """

    def __init__(self, model: nn.Module, steps: int, out: Path, *, remaining: int) -> None:
        self.model, self.out = model, out
        self.steps = min(steps, remaining) if rank() == 0 else 0
        self.first = min(SKIPPED, remaining - self.steps)
        self.done = 0
        self.profiler: Any = None
        self.handles: list[Any] = []
        self.open: list[Any] = []

    def __enter__(self) -> Profile:
        if self.steps and not self.first:
            self._start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.profiler is not None:
            self._stop(self.done - self.first)

    def step(self) -> None:
        """Count a step; start before the first profiled step, report after the last."""
        self.done += 1
        if self.profiler is not None and self.done == self.first + self.steps:
            self._stop(self.steps)
        elif self.steps and self.done == self.first:
            self._start()

    def _start(self) -> None:
        for name, module in self.model.named_modules():
            if name:
                self.handles += [
                    module.register_forward_pre_hook(partial(self._enter, name)),
                    module.register_forward_hook(self._leave, always_call=True),
                ]
        self.profiler = torch.profiler.profile()  # all kinds of devices
        self.profiler.__enter__()

    def _enter(self, name: str, *_: Any) -> None:
        self.open.append(record_function(_MODULE + name))
        self.open[-1].__enter__()

    def _leave(self, *_: Any) -> None:
        self.open.pop().__exit__(None, None, None)

    def _stop(self, steps: int) -> None:
        profiler, self.profiler = self.profiler, None
        profiler.__exit__(None, None, None)
        for handle in self.handles:
            handle.remove()
        self._write(profiler, f"{steps} steps, for chrome://tracing or ui.perfetto.dev")
        say("\n".join(report(profiler.events())))

    def _write(self, profiler: Any, what: str) -> None:
        """Write the trace; on a full disk, which torch does not report, only the trace is lost."""
        part, whole = self.out / ".trace.json.part", self.out / "trace.json"
        try:
            profiler.export_chrome_trace(str(part))
            os.replace(part, whole)
            say(f"{whole}: {what}")
        except OSError:
            say(f"warning: {whole}: not written, the disk may be full; training goes on")
        finally:
            for left in self.out.glob(f"{part.name}*"):
                left.unlink(missing_ok=True)


def report(events: Iterable[Any]) -> list[str]:
    """A line for each of the ten costliest (operation, pass, module), by self time.

    Args:
        events: `events()` of torch's profiler, with marked modules.
    """
    mine = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    on_device = any(e.self_device_time_total for e in mine)
    owners = _forward_owners(mine)
    spent: dict[tuple[str, str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str, str], int] = defaultdict(int)
    for event in mine:
        if event.name.startswith(_NO_WORK):
            continue
        key = event.name.removeprefix(_BACKWARD + ": "), *_owner(event, owners)
        spent[key] += event.self_device_time_total if on_device else event.self_cpu_time_total
        calls[key] += 1
    total = sum(spent.values()) or 1.0
    lines = []
    for key in sorted(spent, key=spent.__getitem__, reverse=True)[:SHOWN]:
        name, direction, module = key
        lines.append(
            f"{100 * spent[key] / total:5.1f} %  {spent[key] / 1e3:10.1f} ms  {calls[key]:6} x  "
            f"{name:<40.40}  {direction:<8}  {module}"
        )
    return lines


def _forward_owners(events: list[Any]) -> dict[int, str]:
    """Module of the operation that created each autograd node, by sequence number.

    Operations without a node have the number of the next one, so the last to start is used.
    """
    owners = {}
    for event in sorted(events, key=lambda e: e.time_range.start):
        if event.sequence_nr >= 0 and not _ancestor(event, _BACKWARD):
            owners[event.sequence_nr] = _module(event)
    return owners


def _owner(event: Any, owners: dict[int, str]) -> tuple[str, str]:
    """(pass, module) of an operation; recomputed ones are inside their module."""
    node, marked = _ancestor(event, _BACKWARD), _ancestor(event, _MODULE)
    if node is None:
        return "forward" if marked else "-", _module(event)
    if marked:
        return "again", _module(event)
    return "backward", owners.get(node.sequence_nr, "-")


def _module(event: Any) -> str:
    """The innermost module around an event; else the function or optimiser that it belongs to."""
    if found := _ancestor(event, _MODULE):
        return re.sub(r"\.\d+(?=\.|$)", ".*", found.name.removeprefix(_MODULE))
    named = "-"
    while event is not None:
        if not event.name.startswith(("aten::", "autograd::", *_NO_WORK)):
            named = event.name
        event = event.cpu_parent
    return named


def _ancestor(event: Any, prefix: str) -> Any:
    """The event itself or its nearest ancestor whose name starts with `prefix`."""
    while event is not None and not event.name.startswith(prefix):
        event = event.cpu_parent
    return event

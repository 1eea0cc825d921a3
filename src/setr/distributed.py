"""The processes of a run: who they are, what they agree on, and what happens when one is lost.

torch's own engine, without a launcher of our own: `torchrun`, or `srun` with one task per process,
starts the same command on every device. Without either, or with a world of one, everything here
does nothing. `parallel.py` spreads a model over the processes.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from setr.errors import USAGE, SetrError, first_line
from setr.processes.launch import gpu_of, meet, place_of
from setr.processes.progress import Progress
from setr.processes.watch import Watch

T = TypeVar("T")
JOIN_SECONDS = 300
"""How long processes wait for each other at the start."""
PATIENCE = datetime.timedelta(days=7)
"""How long processes wait for one that reads a data set or tests alone; torch would give up after
half an hour. The watch tells within seconds who is lost."""
_SHOWN, _CUT = 5, 60  # differences named, characters of their values
_LEFT: list[Any] = []
"""The group that was left last. torch's Reducer, which goes with the model and so after the block,
would else be its last owner, and wait with Python's lock for a thread of the group that waits for
that lock; this list gives it up without the lock."""
_WATCHES: list[Watch] = []
"""The watch of the group, if it was joined here."""


@contextlib.contextmanager
def joined(on: str = "auto", *, timeout: float = JOIN_SECONDS) -> Iterator[None]:
    """Join the other processes for the length of a `with` block, if there are any.

    `on` is where they compute, as `device` takes it: each on a GPU of its own, or all on CPUs.

    Inside, a lost process ends the others within 30 seconds with a line that names it, and only
    rank 0 says something on the terminal. A group that exists already is used and left alone.

    Raises:
        SetrError: a wrong world size, a port in use, processes that do not arrive, more processes
            than GPUs, or a process that was lost.
    """
    place = place_of(os.environ)
    if place is None or place.world == 1 or dist.is_initialized():
        yield
        return
    if on not in ("auto", "cpu", "cuda"):
        raise SetrError(
            f"device '{on}': {place.world} processes take a GPU each; give cuda, cpu or auto",
            code=USAGE,
        )
    cuda = on != "cpu" and torch.cuda.is_available()
    if not cuda:
        device(on)
    count = torch.cuda.device_count() if cuda else 0
    gpu = gpu_of(place, count, os.environ)
    if cuda and gpu >= count:
        raise SetrError(
            f"process {gpu} of this host has no GPU of its own: there are {count}; start as many "
            "processes as GPUs",
            code=USAGE,
        )
    _LEFT.clear()
    store, watched = meet(place, timeout)
    if cuda:
        torch.cuda.set_device(gpu)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world)
    # not of NCCL, which passes on gradients and counts: there a long wait is a fault
    waiting = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    waiting._set_default_timeout(PATIENCE)
    watch = Watch(watched, place.rank, place.world)
    watch.start()
    _WATCHES.append(watch)
    Progress.silent = place.rank > 0
    try:
        yield
    except SetrError as error:
        watch.leave("" if error.reported else str(error))
        raise
    except RuntimeError as error:
        lost = watch.find_lost() if _is_connection(error) else None
        if lost is None:
            watch.leave(f"{type(error).__name__}: {first_line(error)}")
            raise
        watch.leave("")
        raise SetrError(lost) from None
    except BaseException as error:
        watch.leave(type(error).__name__)
        raise
    else:
        watch.leave("")
        dist.barrier()
    finally:
        Progress.silent = False
        _WATCHES.clear()
        _LEFT.append(dist.group.WORLD)
        dist.destroy_process_group()


def _is_connection(error: Exception) -> bool:
    """Whether an error of torch comes from another process that vanished."""
    words = ("connection", "gloo", "nccl", "timed out", "peer", "socket", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def rank() -> int:
    """Number of this process; 0 without a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """Number of processes; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def device(name: str | torch.device = "auto") -> torch.device:
    """Where to compute, decided here for all commands.

    Args:
        name: `auto` (this process's GPU, or else the CPU), `cpu`, `cuda`, `cuda:1`, …

    Raises:
        SetrError: this machine has no such device.
    """
    name = str(name)
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if name == "auto":
        name = "cpu"
    if name not in devices():
        raise SetrError(
            f"device '{name}': this machine has {', '.join(devices())}; give one of them, or auto",
            code=USAGE,
        )
    return torch.device(name)


def devices() -> list[str]:
    """Names of what this package computes on here.

    Not `mps`, where nothing of it was ever run: it knows no fp64, in which losses are summed.
    """
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def say(text: str) -> None:
    """A line on stderr, from rank 0 only."""
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)


def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; waits for the last of them, however long it takes."""
    if world() == 1:
        return flag
    # NCCL waits for half an hour, at its first collective (the end of `setr eval`) five minutes
    on = "cpu" if "cpu:" in dist.get_backend_config() else "auto"
    return bool(add_up(torch.tensor(int(flag), device=device(on))))


def heard_of(asked: bool) -> bool:
    """Whether this process is asked to stop, or has heard that another one is.

    It waits for nobody: the others hear of it within seconds, each at another moment. `any_of` then
    tells what all do.
    """
    watch = _WATCHES[0] if _WATCHES else None
    if watch and asked:
        watch.asked = True
    return watch.asked if watch else asked


def leave(problem: str) -> None:
    """Tell the others why this process ends alone; they end with that line, and wait no longer."""
    for watch in _WATCHES:
        watch.leave(problem)


def together(error: SetrError) -> SetrError:
    """Mark an error that all processes raise, so that only rank 0 prints it."""
    error.reported = rank() != 0
    return error


def on_first(action: Callable[[], T]) -> T:
    """Do something on rank 0 and give everyone its result, or its error."""
    if world() == 1:
        return action()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [(action(), None)]
        except SetrError as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0)
    result, problem = outcome[0]
    if problem is not None:
        raise together(problem)
    return result


def everywhere(action: Callable[[], T]) -> T:
    """Do something in every process; where it fails in any, all end with one line."""
    outcome: list[T] = []
    problem: SetrError | None = None
    try:
        outcome.append(action())
    except SetrError as error:
        problem = error
    failed = [(number, found) for number, found in enumerate(gather(problem)) if found]
    if failed:
        number, first = failed[0]
        alike = len(failed) == world()
        raise together(first if alike else SetrError(f"rank {number}: {first}", code=first.code))
    return outcome[0]


def gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def require_equal(facts: Mapping[str, Any]) -> None:
    """Compare what the processes were given; they must have the same, by hash.

    Raises:
        SetrError: names what differs, and in which process.
    """
    text = json.dumps(facts, sort_keys=True, default=str)
    digests = gather(hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    others = gather((socket.gethostname(), dict(facts)))
    mine = others[0][1]
    for number, (host, theirs) in enumerate(others):
        found = differences(mine, theirs)
        if found:
            raise together(
                SetrError(
                    f"rank {number} on {host} was given something else than rank 0: "
                    f"{found}; start all processes with the same command, data and versions",
                    code=USAGE,
                )
            )


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """What differs between two sets of facts: `key a, not b; …`; empty if nothing does.

    Of maps inside them the keys that differ are named, of long lists the first such entry.
    """
    named = [text for key in {**first, **second} for text in _named(key, first, second)]
    more = [f"and {len(named) - _SHOWN} more"] if len(named) > _SHOWN else []
    return "; ".join(named[:_SHOWN] + more)


def _named(key: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """The differences of one fact."""
    mine, theirs = first.get(key), second.get(key)
    if mine == theirs:
        return
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for inner in {**mine, **theirs}:
            yield from (f"{key} {text}" for text in _named(inner, mine, theirs))
        return
    if isinstance(mine, list) and isinstance(theirs, list) and len(repr(mine)) > _CUT:
        place = next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None
        )
        if place is None:
            yield f"{key} {len(theirs)} entries, not {len(mine)}"
            return
        key, mine, theirs = f"{key}[{place}]", mine[place], theirs[place]
    yield f"{key} {theirs!r:.{_CUT}}, not {mine!r:.{_CUT}}"

"""The processes of a distributed run: joining, collectives, and errors that involve all of them.

Built on torch.distributed, without a launcher of our own: `torchrun`, or `srun` with one task per
process, starts the same command for every device. Without either, or with a world size of 1, these
functions do nothing. `parallel.py` distributes the model.
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
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from setr.errors import SetrError, UsageError, first_line
from setr.processes.differences import differences
from setr.processes.launch import gpu_of, meet, place_of
from setr.processes.progress import Progress
from setr.processes.watch import Watch, silence_of

T = TypeVar("T")
JOIN_SECONDS = 300
"""Timeout for processes to find each other at the start."""
PATIENCE = datetime.timedelta(days=7)
"""Timeout of gloo collectives: one process may read a data set or evaluate alone while the others
wait, and torch gives up after half an hour. `Watch` finds lost processes within seconds."""
_LAST_GROUP: list[Any] = []
"""Keeps a reference to the process group left last. Otherwise DDP's Reducer, freed with the model
after `joined` has ended, would hold the last one. Freeing it there waits, with the GIL held, for a
thread of the group that waits for the GIL: a deadlock. Clearing this list releases the GIL."""
_WATCHES: list[Watch] = []
"""The watch of the process group, if `joined` created it."""


@contextlib.contextmanager
def joined(on: str = "auto", *, timeout: float = JOIN_SECONDS) -> Iterator[None]:
    """Context manager in which this process belongs to the process group, if there are several.

    `on` is the device, as for `device`: every process uses a GPU of its own, or all use CPUs.

    Inside, if a process is lost, the others exit within 30 seconds with an error that names it, and
    only rank 0 prints to the terminal. An existing process group is used and left as it is.

    Raises:
        SetrError: a wrong world size, a port in use, processes that do not connect, more processes
            than GPUs, or a process that was lost.
    """
    place = place_of(os.environ)
    if place is None or place.world == 1 or dist.is_initialized():
        yield
        return
    if on not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"device '{on}': {place.world} processes take a GPU each; give cuda, cpu or auto"
        )
    cuda = on != "cpu" and torch.cuda.is_available()
    if not cuda:
        device(on)
    count = torch.cuda.device_count() if cuda else 0
    gpu = gpu_of(place, count, os.environ)
    if cuda and gpu >= count:
        raise UsageError(
            f"process {gpu} of this host has no GPU of its own: there are {count}; start as many "
            "processes as GPUs"
        )
    silence = silence_of(os.environ)
    _LAST_GROUP.clear()
    store, watched = meet(place, timeout)
    if cuda:
        torch.cuda.set_device(gpu)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world)
    # not for NCCL, which only transfers gradients and counts: there a long wait is an error
    gloo = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    gloo._set_default_timeout(PATIENCE)
    watch = Watch(watched, place.rank, place.world, silence)
    watch.start()
    _WATCHES.append(watch)
    Progress.silent = place.rank > 0
    try:
        yield
    except SetrError as error:
        watch.leave("" if error.reported else str(error))
        raise
    except RuntimeError as error:
        lost = watch.find_lost() if _is_connection_error(error) else None
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
        _LAST_GROUP.append(dist.group.WORLD)
        dist.destroy_process_group()


def _is_connection_error(error: Exception) -> bool:
    """Whether a torch error may be caused by another process that disappeared."""
    words = ("connection", "gloo", "nccl", "timed out", "peer", "socket", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def device(name: str | torch.device = "auto") -> torch.device:
    """The device to compute on, for all commands.

    Args:
        name: `auto` (this process's GPU, or else the CPU), `cpu`, `cuda`, `cuda:1`, …

    Raises:
        SetrError: the machine does not have this device.
    """
    name = str(name)
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if name == "auto":
        name = "cpu"
    if name not in devices():
        why = gpu_out_of_reach() if name.startswith("cuda") else ""
        raise UsageError(
            f"device '{name}': this machine has {', '.join(devices())}; give one of them, or auto"
            + (why and f"; {why}")
        )
    return torch.device(name)


def devices() -> list[str]:
    """Names of the usable devices of this machine.

    Without `mps`, which was never tested and lacks fp64, in which losses are summed.
    """
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def place_name(device: torch.device) -> str:
    """A device and what it is, such as `cpu (threads: 2)`."""
    own = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return f"{device} ({own or f'threads: {torch.get_num_threads()}'})"


def gpu_out_of_reach() -> str:
    """Why torch does not see the NVIDIA GPU of this machine; empty if it does or there is none."""
    if torch.cuda.is_available() or not any(Path("/dev").glob("nvidia[0-9]*")):
        return ""
    if torch.version.cuda is None:
        return (
            f"this machine has an NVIDIA GPU, but torch {torch.__version__} is built without CUDA; "
            "install its CUDA build to use the GPU"
        )
    return (
        f"this machine has an NVIDIA GPU that torch {torch.__version__} cannot use; it may need a "
        f"driver for CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides the GPU"
    )


def say(text: str) -> None:
    """Print a line on stderr, on rank 0 only."""
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)


def add_up(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; waits for all of them, without a timeout."""
    if world() == 1:
        return flag
    # NCCL times out after half an hour; its first collective (end of `setr eval`), after 5 minutes
    on = "cpu" if "cpu:" in dist.get_backend_config() else "auto"
    return bool(add_up(torch.tensor(int(flag), device=device(on))))


def heard_of(requested: bool) -> bool:
    """Whether this process was asked to stop, or knows that another one was.

    Does not wait: the others learn of it within seconds, each at a different time. `any_of` makes
    them agree afterwards.
    """
    watch = _WATCHES[0] if _WATCHES else None
    if watch and requested:
        watch.stop_requested = True
    return watch.stop_requested if watch else requested


def leave(problem: str) -> None:
    """Tell the other processes why this one exits; they exit with the same message."""
    for watch in _WATCHES:
        watch.leave(problem)


def together(error: SetrError) -> SetrError:
    """Mark an error that all processes raise, so that only rank 0 prints it."""
    error.reported = rank() != 0
    return error


def on_first(action: Callable[[], T]) -> T:
    """Run a function on rank 0 and broadcast its result, or its error, to all processes."""
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
    """Run a function in every process; if it fails in any of them, all raise the same error."""
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


def raise_everywhere(problem: Exception | None) -> None:
    """Raise this process's problem, or in the others the message of the first that has one.

    Called by all processes. A problem that is no `SetrError` keeps its traceback.
    """

    def fail() -> None:
        if problem is not None:
            own = isinstance(problem, SetrError)
            raise problem if own else SetrError(f"{type(problem).__name__}: {first_line(problem)}")

    try:
        everywhere(fail)
    except SetrError as error:
        if problem is None or isinstance(problem, SetrError):
            raise
        raise problem from error


def gather(value: T) -> list[T]:
    """The values of all processes, ordered by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def require_equal(facts: Mapping[str, Any]) -> None:
    """Check, by hash, that the facts are the same in all processes.

    Raises:
        SetrError: says what differs, and in which process.
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
                UsageError(
                    f"rank {number} on {host} differs from rank 0: "
                    f"{found}; start all processes with the same command, data and versions"
                )
            )

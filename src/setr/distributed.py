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
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from setr.errors import USAGE, SetrError
from setr.progress import Progress
from setr.watch import Watch

T = TypeVar("T")
JOIN_SECONDS = 300
"""How long processes wait for each other at the start."""
_SHOWN = 5  # differences named


class Place(NamedTuple):
    """Where this process stands, as its launcher tells.

    Attributes:
        rank: its number, 0 to world - 1.
        world: number of processes.
        local_rank: its number on its host, which is the number of its GPU.
        address: host where rank 0 listens.
        port: of that host.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    port: int


def place_of(env: Mapping[str, str]) -> Place | None:
    """The place that torchrun (RANK, WORLD_SIZE, …) or srun (SLURM_PROCID, …) gives a process.

    A batch script without `srun` is one process, whatever it reserved. torchrun inside a SLURM job
    wins. MASTER_ADDR and MASTER_PORT override what is read off the SLURM job.

    Returns:
        None for a process on its own.

    Raises:
        SetrError: half an environment, or numbers that contradict each other.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        values = {name: env.get(name, "") for name in names}
        values["LOCAL_RANK"] = values["LOCAL_RANK"] or values["RANK"]
    elif int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        values = {
            "RANK": env.get("SLURM_PROCID", ""),
            "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
            "MASTER_ADDR": env.get("MASTER_ADDR") or _first_host(env),
            "MASTER_PORT": env.get("MASTER_PORT")
            or str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000),
        }
    else:
        return None
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise SetrError(
            f"{', '.join(missing)}: not set although other processes are announced; start with "
            "torchrun or srun, or unset RANK and WORLD_SIZE",
            code=USAGE,
        )
    numbers = [name for name in values if name != "MASTER_ADDR" and not values[name].isdigit()]
    if numbers:
        raise SetrError(f"{numbers[0]}={values[numbers[0]]}: must be a number", code=USAGE)
    rank, world = int(values["RANK"]), int(values["WORLD_SIZE"])
    if not rank < world:
        raise SetrError(f"RANK={rank}: must be below WORLD_SIZE={world}", code=USAGE)
    return Place(
        rank, world, int(values["LOCAL_RANK"]), values["MASTER_ADDR"], int(values["MASTER_PORT"])
    )


def _first_host(env: Mapping[str, str]) -> str:
    """First of a SLURM host list: `gpu[03-07,9],x1` -> `gpu03`."""
    names = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    found = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", names)
    return "".join(part or "" for part in found.groups()) if found else ""


def restarted() -> bool:
    """Whether torchrun or SLURM started this run again after a failure."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(int(os.environ.get(name) or 0) > 0 for name in names)


@contextlib.contextmanager
def joined(*, timeout: float = JOIN_SECONDS) -> Iterator[None]:
    """Join the other processes for the length of a `with` block, if there are any.

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
    store = _meet(place, timeout)
    watch = Watch(store.clone(), place.rank, place.world)
    watch.start()
    Progress.silent = place.rank > 0
    try:
        yield
    except SetrError as error:
        watch.leave("" if error.reported else str(error))
        raise
    except RuntimeError as error:
        lost = watch.find_lost() if _is_connection(error) else None
        if lost is None:
            watch.leave(f"{type(error).__name__}: {str(error).splitlines()[0]}")
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
        dist.destroy_process_group()


def _meet(place: Place, timeout: float) -> Any:
    """The store of all processes, with the default group made."""
    where = f"{place.address}:{place.port}"
    patience = datetime.timedelta(seconds=timeout)
    cuda = torch.cuda.is_available()
    if cuda and place.local_rank >= torch.cuda.device_count():
        raise SetrError(
            f"process {place.local_rank} of this host has no GPU of its own: there are "
            f"{torch.cuda.device_count()}; start as many processes as GPUs",
            code=USAGE,
        )
    # torchrun keeps a fresh store for every start of the workers
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            place.address,
            place.port,
            place.world,
            is_master=place.rank == 0 and not agent,
            timeout=patience,
            wait_for_workers=False,
        )
        arrived = store.add("setr/arrived", 1)
        store.set(f"setr/here/{place.rank}", socket.gethostname())
        try:
            store.wait([f"setr/here/{rank}" for rank in range(place.world)], patience)
        except dist.DistStoreError:
            arrived = store.add("setr/arrived", 0)
            raise SetrError(
                f"{arrived} of {place.world} processes came to {where} within {timeout:g} s; "
                "check that every host runs its share and reaches this address",
                code=USAGE,
            ) from None
    except dist.DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise SetrError(
                f"port {place.port} is in use on this host; set another MASTER_PORT "
                "(torchrun: --master-port, or --standalone)",
                code=USAGE,
            ) from None
        raise SetrError(f"{where}: rank 0 does not answer within {timeout:g} s; "
                        "check MASTER_ADDR and the firewall", code=USAGE) from None  # fmt: skip
    if cuda:
        torch.cuda.set_device(place.local_rank)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world)
    return store


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


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device() if world() > 1 else 0)


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
    """Whether the flag is set in any process."""
    if world() == 1:
        return flag
    return bool(add_up(torch.tensor(int(flag), device=device())))


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
    """What differs between two sets of facts: `key a, not b; …`; empty if nothing does."""
    keys = [k for k in {**first, **second} if first.get(k) != second.get(k)]
    named = [f"{k} {second.get(k)!r:.60}, not {first.get(k)!r:.60}" for k in keys[:_SHOWN]]
    more = [f"and {len(keys) - _SHOWN} more"] if len(keys) > _SHOWN else []
    return "; ".join(named + more)

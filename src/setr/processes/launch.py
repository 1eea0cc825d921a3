"""Where a launcher puts this process, and how it meets the others.

`torchrun` and `srun` set variables; everything else is agreed over a store that rank 0 or torchrun
keeps.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import queue
import re
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.distributed as dist

from setr.errors import USAGE, SetrError

GRACE_SECONDS = 10
"""How much longer than everyone's patience a connection may stay silent."""
_SLURM_PORTS = range(20000, 32000)  # below those that Linux gives to outgoing connections


class Place(NamedTuple):
    """Where this process stands, as its launcher tells.

    Attributes:
        rank: its number, 0 to world - 1.
        world: number of processes.
        local_rank: its number on its host.
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
            or str(_SLURM_PORTS[int(env.get("SLURM_JOB_ID", "0")) % len(_SLURM_PORTS)]),
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


def gpu_of(place: Place, count: int, env: Mapping[str, str]) -> int:
    """The number of a process's GPU, of `count` that it sees.

    That of the process on its host; 0 where srun shows each its own alone (`--gpus-per-task 1`).
    """
    of_task = "" if "RANK" in env else env.get("SLURM_GPUS_PER_TASK", "")  # 1, or h100:1
    return 0 if count == 1 and of_task.rpartition(":")[2] == "1" else place.local_rank


def _first_host(env: Mapping[str, str]) -> str:
    """First of a SLURM host list: `gpu[03-07,9],x1` -> `gpu03`."""
    names = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    found = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", names)
    return "".join(part or "" for part in found.groups()) if found else ""


def is_first() -> bool:
    """Whether this is the process that prints results."""
    place = place_of(os.environ)
    return place is None or place.rank == 0


def restarted() -> bool:
    """Whether torchrun or SLURM started this run again after a failure."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(int(os.environ.get(name) or 0) > 0 for name in names)


def meet(place: Place, timeout: float) -> tuple[Any, Any]:
    """Wait for all processes: two connections to the store of this start, with each host's name.

    Where rank 0 keeps the store itself, it goes with the second of its connections.

    The wait is done in a thread of its own, because torch waits without end for the first word of
    whoever accepts its connection, and that may be another program.

    Raises:
        SetrError: a port in use, or processes that do not come.
    """
    outcome: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def wait() -> None:
        try:
            outcome.put((_meet(place, timeout), None))
        except Exception as error:
            outcome.put((None, error))

    threading.Thread(target=wait, daemon=True).start()
    try:
        stores, problem = outcome.get(timeout=timeout + GRACE_SECONDS)
    except queue.Empty:
        raise SetrError(
            f"{place.address}:{place.port}: what listens there is not rank 0; set another "
            "MASTER_PORT",
            code=USAGE,
        ) from None
    if problem is not None:
        raise problem
    met: tuple[Any, Any] = stores
    return met


def _meet(place: Place, timeout: float) -> tuple[Any, Any]:
    deadline = time.monotonic() + timeout
    where = f"{place.address}:{place.port}"
    # torchrun keeps the store itself, and keeps it when it starts the processes again
    serves = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    patience = datetime.timedelta(seconds=timeout)
    try:
        keeper, other = (
            dist.TCPStore(
                place.address,
                place.port,
                place.world,
                is_master=serves and number == 0,
                timeout=patience,
                wait_for_workers=False,
            )
            for number in range(2)
        )
        name = _agree(keeper, place, where, timeout, deadline)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise SetrError(
                f"port {place.port} is in use on this host; set another MASTER_PORT "
                "(torchrun: --master-port, or --standalone)",
                code=USAGE,
            ) from None
        raise SetrError(
            f"{where}: rank 0 does not answer within {timeout:g} s; check MASTER_ADDR and the "
            "firewall",
            code=USAGE,
        ) from None
    stores = dist.PrefixStore(name, other), dist.PrefixStore(name, keeper)
    stores[0].set(f"host/{place.rank}", socket.gethostname())
    return stores


def _agree(store: Any, place: Place, where: str, timeout: float, deadline: float) -> str:
    """A name for this start: the store may hold what earlier starts of the same job wrote.

    Every process puts down a number of its own. Rank 0 lists the numbers until all processes have
    found theirs in one list; its checksum is the name.
    """
    own = uuid.uuid4().hex
    store.set(f"setr/here/{place.rank}", own)
    keys = [f"setr/here/{rank}" for rank in range(place.world)]
    answered = ""
    while time.monotonic() < deadline:
        if place.rank == 0 and store.check(keys):
            store.set("setr/list", ",".join(value.decode() for value in map(store.get, keys)))
        if store.check(["setr/list"]):
            listed = store.get("setr/list").decode()
            name = "setr/" + hashlib.sha256(listed.encode()).hexdigest()[:16]
            if own in listed and name != answered:
                store.add(f"{name}/found", 1)
                answered = name
            if answered == name and store.add(f"{name}/found", 0) == place.world:
                return name
        time.sleep(0.05)
    came = sum(store.check([key]) for key in keys)
    raise SetrError(
        f"{came} of {place.world} processes came to {where} within {timeout:g} s; check that every "
        "host runs its share and reaches this address",
        code=USAGE,
    )

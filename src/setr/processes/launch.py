"""Rank and address from the launcher, and the rendezvous of all processes.

`torchrun` and `srun` set environment variables; everything else is exchanged through a TCP store
that rank 0 or torchrun hosts.
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

from setr.errors import UsageError

GRACE_SECONDS = 10
"""Extra seconds after the timeout before a connection that does not answer is given up."""
_SLURM_PORTS = range(20000, 32000)  # below the range that Linux uses for outgoing connections


class Place(NamedTuple):
    """A process's ranks and the address of rank 0, as set by its launcher.

    Attributes:
        rank: 0 to world - 1.
        world: number of processes.
        local_rank: rank on its host.
        address: host where rank 0 listens.
        port: port on that host.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    port: int


def place_of(env: Mapping[str, str]) -> Place | None:
    """Read the variables of torchrun (RANK, WORLD_SIZE, …) or srun (SLURM_PROCID, …).

    A batch script without `srun` is a single process, whatever it reserved. torchrun's variables
    take precedence over SLURM's, and MASTER_ADDR and MASTER_PORT over values derived from the SLURM
    job.

    Returns:
        None for a single process.

    Raises:
        SetrError: variables are missing, no numbers, or contradict each other.
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
        raise UsageError(
            f"{', '.join(missing)}: not set although other processes are announced; start with "
            "torchrun or srun, or unset RANK and WORLD_SIZE"
        )
    numbers = [name for name in values if name != "MASTER_ADDR" and not values[name].isdecimal()]
    if numbers:
        raise UsageError(f"{numbers[0]}={values[numbers[0]]}: must be a number")
    rank, world = int(values["RANK"]), int(values["WORLD_SIZE"])
    if not rank < world:
        raise UsageError(f"RANK={rank}: must be below WORLD_SIZE={world}")
    return Place(
        rank, world, int(values["LOCAL_RANK"]), values["MASTER_ADDR"], int(values["MASTER_PORT"])
    )


def gpu_of(place: Place, count: int, env: Mapping[str, str]) -> int:
    """Index of a process's GPU among the `count` GPUs that it sees.

    Its local rank; or 0 if srun shows each process only its own GPU (`--gpus-per-task 1`).
    """
    of_task = "" if "RANK" in env else env.get("SLURM_GPUS_PER_TASK", "")  # 1, or h100:1
    return 0 if count == 1 and of_task.rpartition(":")[2] == "1" else place.local_rank


def _first_host(env: Mapping[str, str]) -> str:
    """First of a SLURM host list: `gpu[03-07,9],x1` -> `gpu03`."""
    names = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    found = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", names)
    return "".join(part or "" for part in found.groups()) if found else ""


def is_first() -> bool:
    """Whether this process has rank 0, which prints results."""
    place = place_of(os.environ)
    return place is None or place.rank == 0


def restarted() -> bool:
    """Whether torchrun or SLURM restarted this run after a failure."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(int(os.environ.get(name) or 0) > 0 for name in names)


def meet(place: Place, timeout: float) -> tuple[Any, Any]:
    """Wait for all processes; returns two connections to the store, which holds their host names.

    If rank 0 hosts the store, the store ends with the second of its connections.

    Waits in a separate thread, since torch has no timeout for the first answer of the program that
    accepts its connection, which may be an unrelated one.

    Raises:
        SetrError: a port in use, or processes that do not connect.
    """
    outcome: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def wait() -> None:
        try:
            outcome.put((_connect(place, timeout), None))
        except Exception as error:
            outcome.put((None, error))

    threading.Thread(target=wait, daemon=True).start()
    try:
        stores, problem = outcome.get(timeout=timeout + GRACE_SECONDS)
    except queue.Empty:
        raise UsageError(
            f"{place.address}:{place.port}: another program listens there, not rank 0; set another "
            "MASTER_PORT"
        ) from None
    if problem is not None:
        raise problem
    return stores


def _connect(place: Place, timeout: float) -> tuple[Any, Any]:
    deadline = time.monotonic() + timeout
    where = f"{place.address}:{place.port}"
    # torchrun hosts the store itself and keeps it across restarts
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
            raise UsageError(
                f"port {place.port} is in use on this host; set another MASTER_PORT "
                "(torchrun: --master-port, or --standalone)"
            ) from None
        raise UsageError(
            f"{where}: rank 0 does not answer within {timeout:g} s; check MASTER_ADDR and the "
            "firewall"
        ) from None
    stores = dist.PrefixStore(name, other), dist.PrefixStore(name, keeper)
    stores[0].set(f"host/{place.rank}", socket.gethostname())
    return stores


def _agree(store: Any, place: Place, where: str, timeout: float, deadline: float) -> str:
    """Agree on a key prefix for this start; the store may hold keys of earlier starts of the job.

    Every process writes a random id. Rank 0 publishes the list of ids until all processes have
    found theirs in the same list, whose checksum becomes the prefix.
    """
    own_id = uuid.uuid4().hex
    store.set(f"setr/here/{place.rank}", own_id)
    keys = [f"setr/here/{rank}" for rank in range(place.world)]
    confirmed = ""
    while time.monotonic() < deadline:
        if place.rank == 0 and store.check(keys):
            store.set("setr/list", ",".join(value.decode() for value in map(store.get, keys)))
        if store.check(["setr/list"]):
            listed = store.get("setr/list").decode()
            name = "setr/" + hashlib.sha256(listed.encode()).hexdigest()[:16]
            if own_id in listed and name != confirmed:
                store.add(f"{name}/found", 1)
                confirmed = name
            if confirmed == name and store.add(f"{name}/found", 0) == place.world:
                return name
        time.sleep(0.05)
    connected = sum(store.check([key]) for key in keys)
    raise UsageError(
        f"{connected} of {place.world} processes reached {where} within {timeout:g} s; check that "
        "every host starts its processes and can reach this address"
    )

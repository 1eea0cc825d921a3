"""Worker processes that load samples: their number, their start, and the signals they get."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from setr.errors import UsageError, first_line
from setr.processes.quota import cpus

LINGER = 10.0
"""Seconds for which a worker continues after SIGTERM."""
MAX_WORKERS = 8
PREFETCH_FACTOR = 2
"""Batches that each worker loads in advance."""
_OF_TERMINALS = [signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
_STOP_SIGNALS = [*_OF_TERMINALS, signal.SIGTERM]


class Loader(DataLoader):
    """PyTorch's loader with workers that outlive the signals of a terminal or a scheduler.

    It does not advance the global random generator, and does not warn about the number of workers.

    Args:
        samples: a torch data set.
        workers: number of worker processes; 0 loads in this one.
        options: further arguments of PyTorch's loader.
    """

    def __init__(self, samples: Any, *, workers: int, **options: Any) -> None:
        super().__init__(
            samples,
            num_workers=workers,
            worker_init_fn=init_worker,
            generator=torch.Generator(),
            prefetch_factor=PREFETCH_FACTOR if workers else None,
            **options,
        )

    def check_worker_number_rationality(self) -> None:
        """Do not warn."""

    def __iter__(self) -> Any:
        """Start the workers.

        Raises:
            SetrError: samples that workers need a copy of cannot be pickled.
        """
        try:
            with _blocked_signals():
                return super().__iter__()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            if not self.num_workers or multiprocessing.get_start_method() == "fork":
                raise
            raise UsageError(
                f"samples: worker processes cannot load them ({first_line(error)}); define their "
                "class at the top level of a .py file and keep no open files in it, or set "
                "data.workers to 0"
            ) from None


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Context manager in which signals that stop wait, also in processes started in it.

    A terminal sends Ctrl-C, and SIGHUP when it closes, to all processes of a command, and `timeout`
    and schedulers send SIGTERM to its process group. A worker that ended then would lose samples
    that this process is about to fetch. `init_worker` unblocks the signals once it has installed
    its handlers.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker(_: int) -> None:
    """Use one thread for decoding, ignore terminals, and end `LINGER` seconds after SIGTERM.

    The training process ends workers that do not respond with SIGTERM, so it cannot be ignored.
    """
    cv2.setNumThreads(0)
    for number in _OF_TERMINALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _end_later(*_: Any) -> None:
    timer = threading.Timer(LINGER, os._exit, (0,))
    timer.daemon = True
    timer.start()


def chosen_workers(device: torch.device) -> int:
    """Default number of workers of a training process.

    Training on a CPU needs the cores itself; for a GPU all cores but one load data.
    """
    if device.type == "cpu":
        return 2
    cores = cpus() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # processes of torchrun
    return min(MAX_WORKERS, max(1, cores - 1))

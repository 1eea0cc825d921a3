"""What the processes of `test_distributed.py` run: `python -m tests.processes OUT CASE PORT …`.

The launcher's variables (RANK, WORLD_SIZE) come from the environment; a port of 0 keeps the
launcher's own. Each case trains into OUT/CASE, or prints the error it ends with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import io
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed import distributed_c10d
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from setr import cli, distributed, evaluation
from setr.config import Config, DistillConfig
from setr.data import dataset, scenes
from setr.engine import train
from setr.errors import SetrError
from setr.hub import save_pretrained
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.scores import scored_images
from setr.training import best, sources, updates
from setr.training import run as running
from setr.training.loss_scale import LossScaler
from setr.training.parallel import local
from tests.conftest import tiny_config, tiny_model, write_scene_folders

STEPS = 10
Fault = contextlib.AbstractContextManager[Any]


def settings(out: Path, case: str) -> Config:
    """Batch norm, auxiliary heads, unequal numbers of ignored pixels; a global batch of four."""
    options: dict[str, Any] = {
        "whole": {},
        "accumulate": {"accumulate": 2},
        "sharded": {"sharding": "full", "ema": 0.9},
        "resharded": {"sharding": "full", "ema": 0.9, "save_every": 6},
        "endless": {"steps": 1_000_000},
        "dies": {"save_every": 4},
        "stops": {},
        "unreadable": {},
        "examined": {"eval_every": 4},
        "failing": {"eval_every": 4},
        "tested": {},
        "led": {},
        "nothing": {},
        "nowhere": {},
        "batch": {"batch_size": 3},
        "overflows": {},
        "halves": {"sharding": "full", "ema": 0.9, "accumulate": 2, "steps": 4},
        "patient": {"eval_every": 1, "patience": 2},
        "seeds": {"seed": int(os.environ.get("RANK", 0))},
        "taught": {"accumulate": 2},
        "exact": {"steps": 4, "accumulate": 2, "loss": "focal", "class_weights": "auto"},
    }[case]
    config = tiny_config(out / case, **{"steps": STEPS, "batch_size": 4, **options})
    # gentle, so that rounding grows slowly: where it flips a ReLU, weights differ by more than 1e-6
    clip = 1.0 if case == "resharded" else 0.0  # elsewhere it would hide gradients of a wrong size
    optim = dataclasses.replace(config.optim, lr=0.002, clip_grad=clip)
    config = dataclasses.replace(config, optim=optim)
    if case == "taught":
        distill = DistillConfig(teacher=str(out / "model"), images=str(out / "photos"))
        config = dataclasses.replace(config, distill=distill)
    if case == "accumulate":  # as the paper's MLA; torch would wait for a token that nothing reads
        config = config.replace({"model.prefix_tokens": "drop"})
    if case == "halves":  # many processors take long for products in fp16
        small = {"model.img_size": 32, "data.crop_size": (32, 32), "model.lora_rank": 2}
        config = config.replace({**small, "optim.name": "adamw"})
    if case == "exact":  # what lets rounding grow within a few steps
        adamw = {"optim.name": "adamw", "optim.clip_grad": 0.5, "optim.layer_decay": 0.75}
        upernet = {"model.name": "upernet_nano", "model.taps": None, "data.rare_class_crops": 0.5}
        config = config.replace({**adamw, **upernet, "optim.weight_decay": 0.05, "train.ema": 0.9})
    if case == "nowhere":
        config = config.replace({"data.root": "nowhere"})
    if case in ("examined", "failing"):  # four images for one process, three for the other
        config = config.replace({"data.root": "scenes:70"})
    return config


def struck(number: signal.Signals) -> Fault:
    """Rank 1 gets a signal in step 7 of the first start."""
    original = running.Run.train_step

    def step(self: running.Run, images: torch.Tensor, masks: torch.Tensor) -> dict[str, float]:
        if self.step == 6 and self.folder.state is None and distributed.rank() == 1:
            os.kill(os.getpid(), number)
        return original(self, images, masks)

    return patch.object(running.Run, "train_step", step)


@contextlib.contextmanager
def tests_with(first: Callable[[], None], word: str) -> Iterator[None]:
    """Images are tested slowly, the first after a call; prints how many this process tests."""
    original, tested = evaluation.score_images, 0

    def test(*arguments: Any) -> Iterator[scored_images.ScoredImage]:
        nonlocal tested
        tested += 1
        if tested == 1:
            first()
        time.sleep(2.5)  # more than two beats
        return original(*arguments)

    with patch.object(evaluation, "score_images", test):
        try:
            yield
        finally:
            print(f"{word}: {tested} images")


def struck_in_a_test(rank: int = 1) -> Fault:
    """A process gets a signal at its first image."""

    def strike() -> None:
        if distributed.rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    return tests_with(strike, "examined")


def failing_in_a_test() -> Fault:
    """Rank 1 cannot score its first image."""

    def fail() -> None:
        if distributed.rank() == 1:
            raise SetrError("photo.png: the scores are not numbers")

    return tests_with(fail, "failing")


def unreadable() -> Fault:
    """Rank 1 alone cannot read an image of its share of step 7."""
    original = dataset.Dataset.open
    read = 0

    def refusing(self: dataset.Dataset, index: int) -> Any:
        nonlocal read
        read += self.split == "train"
        if distributed.rank() == 1 and read > 6 * 2:
            raise SetrError("photo.png: cannot read")
        return original(self, index)

    return patch.object(dataset.Dataset, "open", refusing)


def overflowing() -> Fault:
    """Rank 1 alone finds the gradients' norm too large."""
    original = updates.clip_gradients

    def clip(model: torch.nn.Module, limit: float) -> torch.Tensor:
        return original(model, limit) * (torch.inf if distributed.rank() == 1 else 1)

    return patch.object(updates, "clip_gradients", clip)


@contextlib.contextmanager
def in_halves() -> Iterator[None]:
    """fp16, though on a CPU; in step 3 a gradient overflows that only rank 1 has. Prints each step.

    The line tells whether the weights moved, those of the moving average, and the next scale.
    """
    unscale, update = LossScaler.unscale, updates.Updates.step
    steps = 0

    def overflowing(self: LossScaler, optimizer: torch.optim.Optimizer) -> None:
        own = [p for group in optimizer.param_groups for p in group["params"]]
        if steps == 3 and distributed.rank() == 1:
            next(g for g in (local(p.grad) for p in own) if g.numel()).fill_(torch.inf)
        unscale(self, optimizer)

    def digest(tensors: Iterable[torch.Tensor]) -> str:
        whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in whole)).hexdigest()

    def step(self: updates.Updates, *arguments: Any) -> dict[str, float]:
        nonlocal steps
        steps += 1
        assert self.ema
        held = lambda: [digest(self.model.state_dict().values()), digest(self.ema.state.values())]  # noqa: E731
        before = held()
        found = update(self, *arguments)
        moved = [a != b for a, b in zip(before, held(), strict=True)]
        print(f"halves: {steps} {moved} {self.scaler.scaler.get_scale():g} {held()[0][:8]}")
        return found

    with (
        patch.object(LossScaler, "unscale", overflowing),
        patch.object(updates.Updates, "step", step),
        patch.object(running, "autocast_dtype", lambda *_: torch.float16),
        patch.object(best, "evaluate_split", lambda *_, **__: {"miou": 0.5}),
    ):
        yield


@contextlib.contextmanager
def in_fp64(out: Path) -> Iterator[None]:
    """The case "exact", without dropout; writes weights and moving average in place of a model."""
    build, see, weigh = running.build_model, sources.normalize, running.build_weights

    def built(*arguments: Any) -> SETR:
        model = build(*arguments).double()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.p = 0.0
        return model

    def finish(self: running.Run) -> dict[str, Any]:
        if distributed.rank() == 0:
            assert self.ema
            torch.save([self.model.state_dict(), self.ema.state], out / "exact.pt")
        return {}

    with (
        patch.object(running, "build_model", built),
        patch.object(running, "build_weights", lambda *given: weigh(*given).double()),
        patch.object(sources, "normalize", lambda *given: see(*given).double()),
        patch.object(running.Run, "finish", finish),
    ):
        yield


def scored() -> Fault:
    """Step 2 is the best one."""
    figures = itertools.chain([0.2, 0.5, 0.3], itertools.repeat(0.4))
    return patch.object(best, "evaluate_split", lambda *_, **__: {"miou": next(figures)})


def evaluate(out: Path) -> None:
    """`setr eval` on seven images, which two processes cannot share evenly."""
    options = ["--precision", "fp32", "--workers", "0", "--out", str(out / "figures")]
    assert cli.main(["eval", str(out / "model"), "scenes:70", *options]) == 0


def refused(out: Path, port: int) -> None:
    """`setr eval` of what all processes refuse alike; prints the lines each ends with."""
    own, told = out / os.environ["RANK"], io.StringIO()
    data = write_scene_folders(own / "data", {"val": 2})
    for path in (data / "images" / "val").iterdir():
        path.write_bytes(b"broken")
    save_pretrained(own / "model", tiny_model(num_classes=9), ModelInfo(scenes.LABELS))
    mistakes = ["nowhere"], [str(data), "--protocol", "paper"], [str(data)]
    with contextlib.redirect_stderr(told):
        for number, words in enumerate(mistakes):
            os.environ["MASTER_PORT"] = str(port + number)
            assert cli.main(["eval", str(own / "model"), *words, "--workers", "0"]) > 0
    print(*(f"refused: {x}" for x in told.getvalue().splitlines() if x[:5] == "setr:"), sep="\n")


def again(port: int) -> None:
    """Groups one after the other, each with a model that outlives it."""
    for number in range(25):
        os.environ["MASTER_PORT"] = str(port + number)
        with distributed.joined("cpu"):
            model = DistributedDataParallel(torch.nn.Linear(8, 8))
            model(torch.ones(2, 8)).sum().backward()
    print("again: all ended")


def slow() -> None:
    """The first process reads a data set for longer than torch waits by itself."""
    seconds = datetime.timedelta(seconds=3)
    with patch.object(distributed_c10d, "default_pg_timeout", seconds):
        try:
            with distributed.joined("cpu"):
                print("slow:", distributed.on_first(lambda: time.sleep(7) or "all read"))
        except (SetrError, RuntimeError) as error:
            print(f"slow: {error}")


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for case, port in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        print("case", case, file=sys.stderr, flush=True)
        if port != "0":
            os.environ["MASTER_PORT"] = port
        if case == "evaluate":
            evaluate(out)
            continue
        if case == "refused":
            refused(out, int(port))
            continue
        if case == "again":
            again(int(port))
            continue
        if case == "slow":
            slow()
            continue
        faults = {
            "dies": lambda: struck(signal.SIGKILL),
            "stops": lambda: struck(signal.SIGTERM),
            "unreadable": unreadable,
            "overflows": overflowing,
            "halves": in_halves,
            "exact": lambda: in_fp64(out),
            "examined": struck_in_a_test,
            "failing": failing_in_a_test,
            "tested": struck_in_a_test,
            "led": lambda: struck_in_a_test(0),
            "patient": scored,
        }
        try:
            with faults.get(case, contextlib.nullcontext)():
                train(settings(out, case), resume=case in ("resharded", "nothing"))
        except SetrError as error:
            print(f"{case}: {error}" if not error.reported else f"{case}: reported")


if __name__ == "__main__":
    main()

"""Kills a training run at random moments, with SIGKILL, until it has ended in spite of it.

    python benchmarks/faults.py --kills 100

A run saves often and is killed `--kills` times: after a random time, and every other time while a
state is being written. After each kill a new process resumes. Checked every time: it resumes from a
whole state that is at most the save interval behind the last step logged. At the end the weights,
moments and average are compared bit for bit with a run that nobody disturbed.

The trainer is one process that forks a child per life, because importing torch takes longer than a
life; the child is killed, so nothing of it survives but its files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch

from setr import checkpoint
from setr.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from setr.engine import train
from setr.training.runfolder import LAST


def settings(out: Path, steps: int, save_every: int) -> Config:
    return Config(
        out=str(out),
        model=ModelConfig(name="setr_naive_nano", img_size=32, channels=8, drop_path=0.1),
        data=DataConfig(root="scenes:12", crop_size=(32, 32), workers=0),
        optim=OptimConfig(name="adamw", lr=1e-3, min_lr=0.0),
        train=TrainConfig(
            steps=steps,
            batch_size=2,
            accumulate=2,
            ema=0.9,
            precision="fp32",
            log_every=1,
            save_every=save_every,
        ),
    )


def live(config: Config, slow_save: float) -> None:
    """One life of the trainer; `slow_save` seconds stretch every write, so that kills hit it."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    if slow_save:
        original = checkpoint._flush

        def flush(path: Path) -> None:
            time.sleep(slow_save)
            original(path)

        checkpoint._flush = flush
    begun = any((Path(config.out) / LAST).glob("step-*"))
    train(config, resume=begun, overwrite=not begun)


def newest(out: Path) -> int:
    state = checkpoint.newest_state(out / LAST)
    return state.step if state else 0


def logged(out: Path) -> int:
    """The last step whose line is complete."""
    steps = [0]
    path = out / "log.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            steps.append(json.loads(line)["step"])
        except ValueError:
            continue
    return max(steps)


def tensors(out: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.newest_state(out / LAST)
    assert state is not None
    found = {name: torch.zeros(state.shape(name)) for name in state.names()}
    for name, value in found.items():
        state.read(name, value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, help="default: four per kill, and 20")
    parser.add_argument("--save-every", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="log as JSON")
    given = parser.parse_args()
    given.steps = given.steps or 4 * given.kills + 20
    random.seed(given.seed)
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    work = Path(tempfile.mkdtemp(prefix="setr-faults-"))
    config = settings(work / "disturbed", given.steps, given.save_every)
    out = Path(config.out)
    lives: list[dict[str, object]] = []
    ended = False
    while not ended:
        before = newest(out)
        killing = len(lives) < given.kills
        in_save = killing and len(lives) % 2 == 1
        child = context.Process(target=live, args=(config, 0.05 if in_save else 0.0))
        child.start()
        moment = "end"
        if killing:
            deadline = time.monotonic() + 120
            target = before + random.randint(1, 2 * given.save_every)
            while child.is_alive() and time.monotonic() < deadline:
                if in_save and any((out / LAST).glob(".step-*.part")):
                    time.sleep(random.uniform(0, 0.12))
                    break
                if not in_save and logged(out) >= target:
                    time.sleep(random.uniform(0, 0.05))
                    break
                time.sleep(0.002)
            moment = "in a save" if any((out / LAST).glob(".step-*.part")) else "between saves"
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
            elif child.exitcode == 0:
                moment = "end"
        child.join()
        ended = child.exitcode == 0
        if not ended and child.exitcode != -signal.SIGKILL:
            print(f"life {len(lives) + 1}: ended by itself with {child.exitcode}")
            return 1
        kept, done = newest(out), logged(out)
        lives.append({"killed": moment, "logged": done, "state": kept, "lost": done - kept})
        print(f"life {len(lives)}: {moment}, step {done} logged, state of step {kept}", flush=True)
        if done - kept > given.save_every or kept < before:
            print("lost more than the save interval")
            return 1
    calm = dataclasses.replace(config, out=str(work / "calm"))
    child = context.Process(target=live, args=(calm, 0.0))
    child.start()
    child.join()
    first, second = tensors(out), tensors(Path(calm.out))
    differing = [name for name in second if not torch.equal(first[name], second[name])]
    kills = sum(life["killed"] != "end" for life in lives)
    within = sum(life["killed"] == "in a save" for life in lives)
    lost = max(int(str(life["lost"])) for life in lives)
    print(
        f"{kills} kills, {within} of them in a save; at most {lost} steps lost; "
        f"{len(second) - len(differing)} of {len(second)} tensors equal the undisturbed run's"
    )
    if given.out:
        summary = {"kills": kills, "in_save": within, "most_steps_lost": lost, "lives": lives}
        given.out.write_text(json.dumps({**summary, "differing": differing}, indent=1) + "\n")
    shutil.rmtree(work)
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Two processes give the numbers of one; what does not fit together is named.

The processes are started by hand, as `srun` does, or by torchrun; they speak over gloo.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from setr import distributed
from setr.data.order import BatchOrder, Share
from setr.distributed import device, devices, joined
from setr.engine import train
from setr.errors import SetrError
from setr.processes.differences import differences
from setr.processes.launch import Place, gpu_of, place_of
from setr.training.parallel import Parallel
from setr.training.runfolder import LAST
from tests.conftest import tiny_model, write_scene_folders
from tests.processes import STEPS, evaluate, in_fp64, settings
from tests.runs import final_state

pytestmark = pytest.mark.alone
ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 400  # seconds, for machines that are busy with other things
CASES = (
    *("batch", "seeds", "whole", "accumulate", "sharded", "resharded", "stops", "overflows"),
    "halves",
    *(
        "examined",
        "failing",
        "tested",
        "nothing",
        "nowhere",
        "patient",
        "evaluate",
        "slow",
        "taught",
        "exact",
    ),
    *("unreadable", "refused", "again"),
    "led",  # the last one: it ends with the first process
)


def free_port() -> str:
    """Not of those that systems give to connections: one might take it before its case comes."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return str(port)


def environment(**values: object) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC"))}
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    return {**plain, "OMP_NUM_THREADS": "1", "PYTHONPATH": path} | {
        k: str(v) for k, v in values.items()
    }


def start(command: list[str], **values: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *command],
        env=environment(**values),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process printed; of one that hangs, where its threads stand, and status -6."""
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        out, err = process.communicate()
        return out, f"hung for {PATIENCE} s: {err}"


def finish_all(processes: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """The same of all; those that hang in each other are stopped at once."""
    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(finish, processes))


def start_pair(out: Path, *cases: str, **values: object) -> list[subprocess.Popen[str]]:
    """Two processes that run cases together."""
    arguments = [word for case in cases for word in (case, free_port())]
    values |= {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    command = ["-m", "tests.processes", str(out), *arguments]
    return [start(command, RANK=rank, LOCAL_RANK=rank, **values) for rank in (0, 1)]


def wait_for(path: Path, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appears"
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def lose_one(out: Path) -> tuple[str, float]:
    """Kill one of two processes that train: what the other says, and how long it took to."""
    first, second = start_pair(out, "endless", SETR_SILENCE=15)
    wait_for(out / "endless" / "log.jsonl", [first, second])
    second.kill()
    lost = time.monotonic()
    said = "".join(finish(first))
    seconds = time.monotonic() - lost
    second.communicate()
    return said, seconds


def start_again(out: Path) -> tuple[list[int], str]:
    """Statuses and words of two torchrun agents, one of whose processes is killed."""
    command = [
        *("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", "test"),
        *("--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"),
        *("-m", "tests.processes", str(out), "dies", "0"),
    ]
    agents = [start(command, SETR_SILENCE=15) for _ in range(2)]
    said = "".join(text for output in finish_all(agents) for text in output)
    return [agent.returncode for agent in agents], said


class Meanwhile(NamedTuple):
    """What mostly waits for lost processes, while the other cases compute."""

    folder: Path
    lost: Future[tuple[str, float]]
    restarted: Future[tuple[list[int], str]]


@pytest.fixture(scope="module")
def meanwhile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meanwhile]:
    folder = tmp_path_factory.mktemp("meanwhile")
    with ThreadPoolExecutor(2) as pool:
        yield Meanwhile(folder, pool.submit(lose_one, folder), pool.submit(start_again, folder))


@pytest.fixture(scope="module")
def alone(meanwhile: Meanwhile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    for case in ("whole", "accumulate", "resharded"):
        train(settings(out, case))
    shutil.copytree(out / "whole", out / "model")
    write_scene_folders(out / "photos", {"extra": 3}, size=64)
    shutil.rmtree(out / "photos" / "labels")
    train(settings(out, "taught"))
    with in_fp64(out):
        train(settings(out, "exact"))
    evaluate(out)
    return out


class Pair(NamedTuple):
    """The folder of two processes, and what each printed, also to stderr."""

    out: Path
    printed: list[str]
    errors: list[str]


@pytest.fixture(scope="module")
def pair(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """All cases in one pair of processes; starting Python costs more than they do."""
    out = tmp_path_factory.mktemp("pair")
    for name in ("resharded", "model", "photos"):
        shutil.copytree(alone / name, out / name)
    shutil.rmtree(out / "resharded" / LAST / f"step-{STEPS:08}")
    both = start_pair(out, *CASES)
    results = finish_all(both)
    assert [process.returncode for process in both] == [0, 0], results
    return Pair(out, *map(list, zip(*results, strict=True)))


def require_close(first: Path, second: Path, *, part: str = "model/") -> None:
    a, b = final_state(first), final_state(second)
    for name in a:
        if name.startswith(part) and a[name].is_floating_point():
            torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", ["whole", "accumulate", "taught"])
def test_two_processes_equal_one(pair, alone, case):
    """2 x batch 2 == 1 x batch 4, with batch norm, auxiliary heads and ignored pixels."""
    require_close(pair.out / case, alone / case)
    state = final_state(alone / case)
    assert any("running_var" in name for name in state)
    assert any("aux_heads" in name for name in state)


def test_two_processes_equal_one_in_fp64(pair, alone):
    """With all that makes rounding grow in fp32: AdamW, which divides by a gradient that may be
    nothing else, clipping, class weights, and one image at a time on UPerNet's grid of one cell.
    """
    for part, other in zip(*(torch.load(f / "exact.pt") for f in (alone, pair.out)), strict=True):
        assert all(value.dtype is torch.float64 for value in part.values() if value.ndim)
        for name in part:
            torch.testing.assert_close(part[name], other[name], rtol=0, atol=1e-9, msg=name)


def test_two_processes_lose_patience_together(pair):
    out = pair.out
    assert not any("patient" in text for text in pair.printed)
    assert json.loads((out / "patient" / "metrics.json").read_text())["steps"] == 4
    states = sorted(p.name for p in (out / "patient" / LAST).iterdir())
    assert states == ["step-00000002", "step-00000004"]  # the best weights', and the last


def test_two_processes_log_the_same_losses(pair, alone):
    logs = [
        [json.loads(line) for line in (folder / "whole" / "log.jsonl").read_text().splitlines()]
        for folder in (pair.out, alone)
    ]
    losses = [{line["step"]: line["loss"] for line in log if "loss" in line} for log in logs]
    assert list(losses[0]) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(losses[0].values()), list(losses[1].values()), rtol=1e-6)
    validated = [[line["val"]["loss"] for line in log if "val" in line] for log in logs]
    assert len(validated[0]) == 1
    np.testing.assert_allclose(*validated, rtol=1e-5)


def test_sharded_equals_copied(pair, alone):
    """FSDP2, block by block, == one process with plain weights."""
    require_close(pair.out / "sharded", alone / "whole")


def test_a_state_fits_any_number_of_processes_and_any_sharding(pair, alone):
    """One process saves in step 6, two continue with sharded weights, one reads what they save."""
    folder = pair.out / "resharded"
    assert len(list((folder / LAST).glob(f"step-{STEPS:08}/rank-*"))) == 2
    for part in ("model/", "optimizer/", "ema/"):
        require_close(folder, alone / "resharded", part=part)


def test_two_processes_test_a_model_as_one(pair, alone):
    """Every image once, integer counts: the same bits, and every image in the report."""
    both = []
    for folder in (alone, pair.out):
        metrics = json.loads((folder / "figures" / "metrics.json").read_text())
        figures = metrics["single_scale"]
        del figures["seconds"]
        both.append((figures, (folder / "figures" / "images.csv").read_text()))
    assert both[0] == both[1]
    assert both[0][0]["images"] == 7
    assert both[0][0]["confusion"]


def test_what_does_not_fit_together_is_named(pair):
    first, second = pair.printed
    assert "train.batch_size 3: must be a multiple of processes (2)" in first
    assert "rank 1 on" in first
    assert "train.seed 1, not 0" in first
    assert "seeds: reported" in second


def test_what_all_processes_refuse_is_said_once(pair):
    first, second = pair.printed
    assert "no training state to resume from" in first
    assert "nothing: reported" in second
    assert "nowhere: nowhere: no such file or folder" in first
    assert "nowhere: reported" in second


def test_processes_wait_for_one_that_reads_a_large_data_set(pair):
    """Torch would end them after half an hour, and what was read would be lost."""
    assert all("slow: all read" in text for text in pair.printed)


def test_a_norm_that_overflows_in_one_process_ends_both(pair):
    first, second = pair.printed
    assert "overflows: gradient norm is inf at step 1 with lr" in first
    assert "overflows: reported" in second


def test_an_overflow_in_one_process_skips_the_step_in_both(pair):
    """In fp16 with sharded weights, LoRA, accumulation and a moving average."""
    first, second = (
        [line for line in said.splitlines() if line.startswith("halves: ")] for said in pair.printed
    )
    assert first == second
    moved = [line.rpartition(" ")[0] for line in first]
    assert moved == [
        "halves: 1 [True, True] 65536",
        "halves: 2 [True, True] 65536",
        "halves: 3 [False, False] 32768",
        "halves: 4 [True, True] 32768",
    ]


def test_a_signal_to_one_process_stops_and_saves_all(pair):
    first, second = pair.printed
    assert "stops: stopped after step 7; continue with `setr train" in first
    assert "stops: reported" in second
    assert [p.name for p in (pair.out / "stops" / LAST).iterdir()] == ["step-00000007"]


def test_an_image_that_one_process_cannot_read_costs_no_step(pair):
    first, second = pair.printed
    assert "unreadable: rank 1: photo.png: cannot read" in first
    assert "unreadable: reported" in second
    assert [p.name for p in (pair.out / "unreadable" / LAST).iterdir()] == ["step-00000006"]


def test_a_signal_to_one_process_ends_a_test_of_all(pair):
    """Each finishes its image; the one without a signal hears of it before its third at most."""
    first, second = pair.printed
    assert "examined: stopped after step 4; continue with `setr train" in first
    assert "examined: reported" in second
    assert [p.name for p in (pair.out / "examined" / LAST).iterdir()] == ["step-00000004"]
    assert '"val"' not in (pair.out / "examined" / "log.jsonl").read_text()
    assert "examined: 1 images" in second
    assert "examined: 1 images" in first or "examined: 2 images" in first


def test_an_error_in_a_test_of_one_process_costs_no_step(pair):
    """All save the step before the test; the other one does not finish its share first."""
    first, second = pair[1]
    assert "failing: rank 1: photo.png: the scores are not numbers" in first
    assert "failing: reported" in second
    assert [p.name for p in (pair[0] / "failing" / LAST).iterdir()] == ["step-00000004"]
    assert '"val"' not in (pair[0] / "failing" / "log.jsonl").read_text()
    assert "failing: 1 images" in second
    assert any(f"failing: {n} images" in first for n in (1, 2, 3))


def test_a_signal_to_one_process_in_the_last_test_is_told_to_the_others(pair):
    """They would wait for its counts, and then fail with torch's error."""
    first, second = pair.printed
    assert "tested: rank 1 on" in first
    assert f"stopped: stopped after step {STEPS}; continue with `setr train" in first
    assert "tested: reported" in second
    assert [p.name for p in (pair.out / "tested" / LAST).iterdir()] == [f"step-{STEPS:08}"]


def test_the_first_process_ends_after_the_others_know_why(pair):
    """It keeps the store: one that is gone makes torch print its stack."""
    first, second = pair.printed
    assert f"led: stopped after step {STEPS}; continue with `setr train" in first
    assert f"stopped: stopped after step {STEPS}; continue with `setr train" in second
    assert "led: rank 0 on" in second
    _, begun, errors = pair.errors[1].rpartition("case led\n")
    assert begun
    assert "frame #" not in errors


def test_what_all_processes_of_a_test_refuse_is_said_once(pair):
    first, second = pair.printed
    assert first.count("refused: ") == 3
    assert "refused: setr: nowhere: no such file or folder" in first
    assert "protocol 'paper' is unknown" in first
    assert "none of the 2 images of split 'val'" in first
    assert "refused: " not in second


def test_a_lost_process_is_named_and_the_others_stop(meanwhile):
    said, seconds = meanwhile.lost.result()
    assert seconds < 120  # torch alone would take ten minutes
    assert "lost rank 1 on" in said
    assert "no sign of life for 15 s" in said
    assert "Traceback" not in said


def test_a_model_may_outlive_its_group(pair):
    """Of 400 such groups one of the first ten hung at its end, before they were kept."""
    for printed in pair.printed:
        assert "again: all ended" in printed


def test_two_torchrun_agents_restart_and_equal_one_process(meanwhile, alone):
    """Rank 1 is killed; torchrun starts both again, which continue from step 4 by themselves."""
    statuses, said = meanwhile.restarted.result()
    assert statuses == [0, 0], said
    assert "continuing after step 4" in said
    require_close(meanwhile.folder / "dies", alone / "whole")


def test_shares_cut_every_micro_batch_evenly():
    orders = [
        [list(BatchOrder(10, 8, seed=1, start=2, stop=5, share=Share(r, w, 2))) for r in range(w)]
        for w in (1, 2, 4)
    ]
    for many in orders[1:]:
        for step in range(3):
            whole = orders[0][0][step]
            for half in range(2):
                size = 4 // len(many)
                parts = [o[step][half * size : (half + 1) * size] for o in many]
                assert list(itertools.chain(*parts)) == whole[half * 4 : half * 4 + 4]


SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-07,9],x1",
    "SLURM_JOB_ID": "41",
}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "77",
}


def test_places_of_launchers():
    assert place_of({}) is None
    assert place_of(TORCHRUN) == Place(3, 4, 1, "host", 77)
    assert place_of(SLURM) == Place(5, 8, 1, "gpu03", 20041)
    assert place_of({**SLURM, **TORCHRUN}) == Place(3, 4, 1, "host", 77)
    assert place_of({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None  # sbatch without srun
    named = {**SLURM, "SLURM_STEP_NODELIST": "a-1,b", "MASTER_PORT": "5"}
    assert place_of(named) == Place(5, 8, 1, "a-1", 5)


def test_a_process_may_see_its_own_gpu_alone():
    place = place_of(SLURM)
    assert place is not None
    for own in ("1", "h100:1"):
        assert gpu_of(place, 1, {**SLURM, "SLURM_GPUS_PER_TASK": own}) == 0
        assert gpu_of(place, 8, {**SLURM, "SLURM_GPUS_PER_TASK": own}) == 1  # --gpu-bind none
        assert gpu_of(place, 1, {**SLURM, **TORCHRUN, "SLURM_GPUS_PER_TASK": own}) == 1
    assert gpu_of(place, 1, SLURM) == 1  # none of its own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "4"}, "RANK=4: must be below WORLD_SIZE=4"),
        ({"RANK": "x"}, "RANK=x: must be a number"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: not set"),
    ],
)
def test_wrong_environments_are_one_line(changes, message):
    with pytest.raises(SetrError, match=message):
        place_of({**TORCHRUN, **changes})


@pytest.fixture
def first_of_two(monkeypatch):
    for name, value in {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port())


def test_a_port_in_use_is_one_line(first_of_two):
    with socket.socket() as taken:
        taken.bind(("", int(os.environ["MASTER_PORT"])))
        taken.listen()
        with pytest.raises(SetrError, match=r"port \d+ is in use.*MASTER_PORT"), joined():
            pass


def test_several_processes_take_no_numbered_device(first_of_two):
    with pytest.raises(SetrError, match="'cuda:1': 2 processes take a GPU each"), joined("cuda:1"):
        pass


def test_processes_that_do_not_come_are_counted(first_of_two):
    message = r"1 of 2 processes reached 127\.0\.0\.1:\d+ within 3 s"
    with pytest.raises(SetrError, match=message), joined(timeout=3):
        pass


def test_a_first_process_that_does_not_come_is_one_line(first_of_two, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SetrError, match="rank 0 does not answer within 1 s"), joined(timeout=1):
        pass


def test_another_program_on_the_port_is_one_line(first_of_two, monkeypatch):
    """It accepts the connection and says nothing, which torch waits for without end."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("setr.processes.launch.GRACE_SECONDS", 0.5)
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
        other.listen()
        message = (
            r"127\.0\.0\.1:\d+: another program listens there, not rank 0; set another MASTER_PORT"
        )
        with pytest.raises(SetrError, match=message), joined(timeout=1):
            pass


def test_differences_are_named():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == "b 3, not 2; c 4, not None"
    assert differences({"a": 1}, {"a": 1}) == ""
    ids = {"0": 0, "7": 1}
    assert differences({"ids": ids}, {"ids": {**ids, "7": 2}}) == "ids 7 2, not 1"
    names = [f"class {i}" for i in range(20)]
    other = [*names[:9], "hill", *names[10:]]
    assert differences({"names": names}, {"names": other}) == "names[9] 'hill', not 'class 9'"
    assert differences({"names": names}, {"names": names[:9]}) == "names 9 entries, not 20"


def test_a_model_on_the_cpu_is_sharded_there_beside_gpus(monkeypatch):
    group = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", store=group.FakeStore(), rank=0, world_size=2)
    try:
        monkeypatch.setattr(torch._C, "_get_accelerator", lambda: torch.device("cuda"))
        model = tiny_model()
        Parallel(model, "full")
        assert {p.device_mesh.device_type for p in model.parameters()} == {"cpu"}
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("group", "place"), [("cpu:gloo,cuda:nccl", "cpu"), ("cpu:gloo", "cpu"), ("cuda:nccl", "meta")]
)
def test_processes_on_gpus_wait_for_each_other_on_cpus(monkeypatch, group, place):
    """Where one has the slower images of a test; NCCL gives up."""
    used = []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed.dist, "get_backend", lambda: "undefined")
    monkeypatch.setattr(distributed.dist, "get_backend_config", lambda: group)
    monkeypatch.setattr(
        distributed, "device", lambda on: torch.device("meta" if on == "auto" else on)
    )

    def add_up(tensor):
        used.append(tensor.device.type)
        return torch.ones(())

    monkeypatch.setattr(distributed, "add_up", add_up)
    assert distributed.any_of(False)
    assert used == [place]


def test_only_devices_that_were_tried_are_offered(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "mps" not in devices()
    with pytest.raises(SetrError, match="device 'mps': this machine has cpu"):
        device("mps")

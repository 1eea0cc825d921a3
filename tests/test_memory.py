"""The estimate of memory against what steps really take, and what is said when it is short."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import setr.estimate as estimating
import setr.training.run as running
from setr.cli import main
from setr.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from setr.engine import train
from setr.errors import USAGE, SetrError
from setr.estimate import (
    estimate,
    flops_per_image,
    forecast_text,
    largest_batch,
    with_chosen_batch,
)
from setr.inference import predict_mask
from setr.layers import recompute
from setr.processes import machine
from setr.processes.faults import is_out_of_memory
from setr.processes.machine import free_bytes, peak_bytes, process_peak, resident_bytes
from setr.protocols import Protocol
from setr.training import memory
from setr.training.memory import step_memory
from tests.conftest import tiny_config, tiny_model

CPU = torch.device("cpu")


def nano(**train_settings: object) -> Config:
    return Config(
        model=ModelConfig(name="setr_naive_nano", img_size=64, channels=16, taps=(1, 2)),
        data=DataConfig(crop_size=(64, 64)),
        train=TrainConfig(**{"batch_size": 4, "precision": "fp32", **train_settings}),  # type: ignore[arg-type]
    )


@functools.cache
def rehearsed(**options: object):
    with torch.device("meta"):
        model = tiny_model("pup")
    settings = {"batch": 2, "size": (64, 64), "device": CPU, **options}
    return step_memory(model, **settings)


def test_fixed_parts_are_exact():
    model = tiny_model("pup")
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    trained = 4 * sum(p.numel() for p in model.parameters())
    found = rehearsed(moments=2, average=True)
    assert found.parameters == weights
    assert found.gradients == trained
    assert found.optimizer == 2 * trained + weights
    assert found.total > found.process + weights + found.optimizer + found.activations


def test_activations_equal_what_autograd_keeps(monkeypatch):
    """Counted by hooks on what a real forward pass saves, storage by storage."""
    model = tiny_model("pup").train()
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def keep(self: Any, tensor: torch.Tensor) -> Any:  # inside blocks, our own hooks are asked
        kept = pack(self, tensor)
        save(kept if isinstance(kept, torch.Tensor) else kept.input)
        return kept

    pack = recompute._SavedTensors.pack
    monkeypatch.setattr(recompute._SavedTensors, "pack", keep)
    monkeypatch.setattr(recompute, "_other_hooks_active", lambda: False)
    images = torch.randn(2, 3, 64, 64)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        output = model(images, with_aux=True)
    heads = {x.untyped_storage().data_ptr() for x in (output.logits, *output.aux)}
    saved = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in heads) - (
        images.untyped_storage().nbytes() if images.data_ptr() in kept else 0
    )
    monkeypatch.undo()
    found = rehearsed()
    inputs = images.untyped_storage().nbytes()
    assert found.activations - inputs == pytest.approx(saved, rel=0.1)


def test_activations_grow_with_the_batch_and_shrink_by_recomputation():
    one, two, four = (rehearsed(batch=b).activations for b in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    with torch.device("meta"):
        model = tiny_model("pup")
    model.set_grad_checkpointing()
    recomputed = step_memory(model, batch=4, size=(64, 64), device=CPU)
    assert recomputed.activations < four
    assert recomputed.logits == rehearsed(batch=4).logits


@pytest.mark.parametrize("decoder", ["naive", "pup", "mla"])
def test_bf16_is_rehearsed_on_machines_without_it(decoder):
    """Fake kernels give other types than real ones, so each head's backward pass is walked."""
    with torch.device("meta"):
        model = tiny_model(decoder)
    found = step_memory(model, batch=2, size=(64, 64), device=CPU, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = tiny_model(decoder)
    whole = step_memory(model, batch=2, size=(64, 64), device=CPU)
    assert found.activations < whole.activations


def test_losses_of_regions_need_room_of_their_own():
    """Lovász holds a probability and its derivative of every pixel and class."""
    size, K = (256, 256), 5
    plain, dice, lovasz = (
        rehearsed(size=size, loss=loss) for loss in ("cross_entropy", "dice", "lovasz")
    )
    assert plain.logits < dice.logits == lovasz.logits
    more = (lovasz.total - lovasz.process) - (plain.total - plain.process)
    held = 2 * 256 * 256 * (2 * 4 * K + memory.SORTED)
    assert 0.5 * held < more < 1.2 * held
    totals = [
        estimate(nano(loss=loss), 9, CPU).logits for loss in ("cross_entropy", "focal", "lovasz")
    ]
    assert totals[0] == totals[1] < totals[2]


def test_frozen_blocks_keep_nothing():
    with torch.device("meta"):
        model = tiny_model("naive", aux_taps=())
        model.encoder.freeze(-1)
    found = step_memory(model, batch=4, size=(64, 64), device=CPU)
    assert found.activations < rehearsed(batch=4).activations / 4
    assert found.gradients < found.parameters / 3


def test_flops_count_forward_and_backward_once():
    config = nano()
    plain = flops_per_image(config, 5)
    again = config.replace({"train.grad_checkpointing": True})
    assert flops_per_image(again, 5) == plain  # recomputed operations are no use to the model
    frozen = config.replace({"model.freeze": -1})
    assert flops_per_image(frozen, 5) < 0.9 * plain
    cached = frozen.replace({"train.cache_features": "once"})
    assert flops_per_image(cached, 5) < flops_per_image(frozen, 5)


@pytest.mark.parametrize(
    ("name", "momentum", "kept"), [("sgd", 0.0, 0), ("sgd", 0.9, 1), ("adamw", 0.9, 2)]
)
def test_an_estimate_counts_what_the_optimiser_keeps(name, momentum, kept):
    optim = OptimConfig(name=name, momentum=momentum)
    found = estimate(dataclasses.replace(nano(), optim=optim), 5, CPU)
    assert found.optimizer == kept * found.gradients


def test_an_estimate_opens_no_weights():
    files = {"pretrained": "a.pt", "pretrained_resnet": "b.pt"}
    model = ModelConfig(name="hybrid_base", img_size=64, taps=(1, 2), **files)
    config = dataclasses.replace(nano(), model=model)
    assert flops_per_image(config, 5) > 0


def test_the_largest_batch_fits_and_the_next_one_does_not(monkeypatch):
    monkeypatch.setattr(memory, "resident_bytes", lambda: 0)  # of this process: it changes
    config = nano()

    def total(batch: int) -> int:
        return estimate(estimating.with_batch(config, batch), 5, CPU).total

    room = (total(11) + total(12)) // 2
    assert largest_batch(config, 5, CPU, room=room, at_most=100)[0] == 11
    assert largest_batch(config, 5, CPU, room=room, at_most=7)[0] == 7
    assert largest_batch(config, 5, CPU, room=1000, at_most=100) is None
    monkeypatch.setattr(estimating, "free_bytes", lambda device: 1000)
    auto = config.replace({"train.batch": "auto"})
    with pytest.raises(SetrError, match=r"even 1 needs .* GB; these need less: --train.grad-check"):
        with_chosen_batch(auto, 5, 1000, CPU)


def test_batch_auto_trains_and_is_kept_on_resume(tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run", batch="auto", steps=2, save_every=1)
    metrics = train(config)
    assert metrics["single_scale"]["miou"] is not None
    assert Config.load(tmp_path / "run" / "config.yaml").train.batch_size == 12  # all images
    monkeypatch.setattr(estimating, "free_bytes", lambda device: 1000)
    train(config, resume=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't"
                     " allocate memory: you tried to allocate 4 bytes."),
        MemoryError(),
    ],
)  # fmt: skip
def test_out_of_memory_is_one_line_with_figures(config, monkeypatch, error):
    def short(self, images, masks):
        raise error

    monkeypatch.setattr(running.Run, "train_step", short)
    with pytest.raises(SetrError) as caught:
        train(config)
    said = str(caught.value)
    # the process's own size counts, so the figure depends on what ran in it before
    start = r"out of memory at batch 2 of 64x64 on cpu, which needs \d+\.\d GB by estimate"
    for part in (start, r"checkpointing: \d", "--train.accumulate 2", "--train.batch-size 1:"):
        assert re.search(part, said)
    assert "\n" not in said
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux")
def test_a_real_allocation_failure_is_explained(tmp_path):
    """A process with a limit on its memory runs into it on its own."""
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from tests.conftest import tiny_config\n"
        "from setr.estimate import explain_out_of_memory\n"
        "c = tiny_config(Path(sys.argv[1]), batch_size=512, steps=1)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 10**9,) * 2)\n"
        "with explain_out_of_memory(c, 9, torch.device('cpu')):\n"
        "    torch.empty(10**9)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert "out of memory at batch 512 of 64x64" in result.stderr, result.stderr[-500:]


def test_the_command_prints_parts_and_advice(capsys):
    options = [
        "--train.batch-size",
        "2",
        "--model.name",
        "setr_naive_nano",
        "--model.taps",
        "1",
        "2",
    ]
    assert main(["train", "demo", "--estimate", *options, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["total"] >= values["process"] + values["parameters"] + values["optimizer"]
    assert values["largest_batch"] > 2
    assert "batch of 72 fits, and no larger one" in forecast_text(values | {"largest_batch": 72})
    shown = forecast_text(values | {"largest_batch": 71})
    for word in (
        "parameters",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "total",
        "peak",
        "the largest batch that fits is",
        "--train.grad-checkpointing",
    ):
        assert word in shown  # fmt: skip


def test_the_machine_tells_its_memory():
    assert 1e8 < resident_bytes() <= peak_bytes(CPU) * 1.01
    assert free_bytes(CPU) > resident_bytes()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_process_does_not_count_what_its_parent_held():
    code = (
        "import resource, sys\n"
        "from setr.processes.machine import process_peak\n"
        "assert 'torch' not in sys.modules\n"
        "print(process_peak(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own, with_parent = map(int, done.stdout.split())
    assert own < 6e7 < resident_bytes()
    assert own <= with_parent


def test_the_peak_is_told_without_proc(monkeypatch):
    def missing(path: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert process_peak() > 1e8


def test_nothing_else_asks_the_system_for_its_peak():
    root = Path(__file__).parents[1]
    files = [*root.glob("src/setr/**/*.py"), *root.glob("benchmarks/**/*.py")]
    asking = [p for p in files if "ru_maxrss" in p.read_text(encoding="utf-8")]
    assert asking == [root / "src/setr/processes/machine.py"]


def test_a_cache_needs_a_frozen_encoder():
    with pytest.raises(SetrError, match=r"only with --model\.freeze -1") as caught:
        Config(train=TrainConfig(cache_features="flip"))
    assert caught.value.code == USAGE
    frozen = Config(model=ModelConfig(freeze=-1), train=TrainConfig(cache_features="flip"))
    for name in ("flip_vertical", "rotate", "rare_class_crops"):
        with pytest.raises(SetrError, match=rf"data\.{name} 1\.0: has no effect with train\.cache"):
            frozen.replace({f"data.{name}": 1.0})


def test_freed_memory_is_given_back_when_a_process_has_grown(monkeypatch):
    held, trims = [100], []

    def trim(_):
        trims.append(held[0])
        held[0] -= 30

    monkeypatch.setattr(machine, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(machine, "_c_function", lambda name: trim)
    heap = machine.Heap(growth=50)
    for now in (40, 51, 60, 71, 72):
        held[0] = now
        heap.give_back()
    assert trims == [51, 72]  # 21 are left after the first: 71 are not more than 50 above
    heap.give_back(now=True)
    assert trims == [51, 72, 42]


needs_malloc_trim = pytest.mark.skipif(
    machine._c_function("malloc_trim") is None, reason="this C library has no malloc_trim"
)


@needs_malloc_trim
def test_gaps_of_the_heap_go_back_to_the_system():
    """Blocks below the size that is mapped alone, with small ones between them that stay."""
    blocks = [(bytearray(100 << 10), bytearray(600)) for _ in range(3000)]
    small = [b for _, b in blocks]
    before = resident_bytes()
    del blocks
    machine.Heap(growth=0).give_back()
    assert before - resident_bytes() > 200 << 20
    assert len(small) == 3000


def mapped_from_files() -> int:
    """Bytes of this process's memory that are pages of files."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(row.split()[1]) for row in rows if row.startswith("RssFile"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_pages_of_a_mapped_file_are_let_go_and_read_again(tmp_path):
    given = np.arange(8 << 20, dtype=np.uint32)
    given.tofile(tmp_path / "a file.bin")
    found = np.memmap(tmp_path / "a file.bin", np.uint32, mode="r")
    total = int(found.sum(dtype=np.int64))
    before = mapped_from_files()
    machine.page_out(tmp_path / "another.bin")
    machine.page_out(tmp_path / "a file.bin")
    if "tmpfs" not in subprocess.check_output(["stat", "-f", "-c", "%T", tmp_path], text=True):
        assert before - mapped_from_files() > 30 << 20
    assert int(found.sum(dtype=np.int64)) == total == int(given.sum(dtype=np.int64))


def test_a_machine_without_such_functions_keeps_its_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_c_function", lambda name: None)
    machine.Heap(growth=0).give_back(now=True)
    machine.page_out(tmp_path)


def test_every_block_of_a_large_image_looks_after_the_heap(monkeypatch):
    asked = []
    monkeypatch.setattr(machine.HEAP, "give_back", lambda: asked.append(1))
    model = tiny_model("naive").eval()
    with torch.inference_mode():
        predict_mask(model, torch.randn(1, 3, 64, 600), Protocol(window=(64, 64)))
    assert asked

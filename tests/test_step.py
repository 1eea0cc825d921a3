"""The optimiser step: fp16 with a loss scaler, torch.compile, fused updates, and bad input."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import setr.training.best as best
import setr.training.optim as optim
import setr.training.parallel as parallel
import setr.training.run as running
from setr.config import Config, ModelConfig, OptimConfig
from setr.data import scenes
from setr.engine import train
from setr.errors import USAGE, SetrError
from setr.images import encode_png
from setr.layers.conv_bn_relu import ConvBNReLU
from setr.training.loss_scale import MAX_SKIPPED, LossScaler
from setr.training.optim import build_optimizer
from setr.training.parallel import Parallel
from setr.training.runfolder import RunFolder
from tests.conftest import tiny_config, tiny_model, write_scene_folders
from tests.runs import assert_same_weights, log_lines, stopped_and_resumed, with_train

CPU = torch.device("cpu")


def on_folder(config: Config, data: Path) -> Config:
    return config.replace({"data.root": str(data)})


def on_small_crops(config: Config) -> Config:
    """Many processors take long for products in fp16."""
    model = dataclasses.replace(config.model, img_size=32)
    return dataclasses.replace(
        config, model=model, data=dataclasses.replace(config.data, crop_size=(32, 32))
    )


# --- fp16 -----------------------------------------------------------------------------------------


def one_weight() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(1))
    return weight, torch.optim.SGD([weight], lr=0.25)


def test_a_scaled_step_is_the_plain_step():
    weight, optimizer = one_weight()
    scaler = LossScaler(CPU, enabled=True)
    scaler.scale(2 * weight.sum()).backward()
    assert weight.grad.item() == 2 * 2.0**16
    scaler.unscale(optimizer)
    assert weight.grad.item() == 2
    assert scaler.step(optimizer)
    assert weight.item() == 0.5
    assert scaler.figures() == {"skipped": 0}


def test_overflow_is_left_out_counted_and_ends_in_one_line():
    weight, optimizer = one_weight()
    scaler = LossScaler(CPU, enabled=True)

    def overflowing_step() -> bool:
        weight.grad = torch.full((1,), float("inf"))
        scaler.scale(weight.sum())
        scaler.unscale(optimizer)
        return scaler.step(optimizer)

    for count in range(1, MAX_SKIPPED):
        assert not overflowing_step()
        assert scaler.figures() == {"skipped": count}
        assert weight.item() == 1
    with pytest.raises(SetrError, match=f"{MAX_SKIPPED} steps in a row .* overflow fp16"):
        overflowing_step()


def test_overflows_between_good_steps_end_nothing():
    """Now and then the scale grows too far, however long a run is."""
    weight, optimizer = one_weight()
    scaler, updated = LossScaler(CPU, enabled=True), []
    for gradient in (float("inf"), 0.0) * MAX_SKIPPED:
        weight.grad = torch.full((1,), gradient)
        scaler.scale(weight.sum())
        scaler.unscale(optimizer)
        updated.append(scaler.step(optimizer))
    assert updated == [False, True] * MAX_SKIPPED
    assert scaler.figures() == {"skipped": MAX_SKIPPED}


def test_fp16_trains_and_resumes_exactly(tmp_path, monkeypatch):
    """On a GPU without bf16; here the CPU takes its part."""
    monkeypatch.setattr(running, "autocast_dtype", lambda precision, device: torch.float16)
    monkeypatch.setattr(best, "evaluate_split", lambda *_, **__: {"miou": 0.5})
    settings = {"accumulate": 2, "steps": 2}
    whole, parts = (
        on_small_crops(tiny_config(tmp_path / name, **settings)) for name in ("whole", "parts")
    )
    train(whole)
    assert [line["skipped"] for line in log_lines(whole)] == [0, 0]
    stopped_and_resumed(parts, monkeypatch, at=1)
    assert_same_weights(whole, parts)


@pytest.mark.parametrize(
    "settings", [{}, {"train.accumulate": 2, "model.lora_rank": 2, "optim.name": "adamw"}]
)
def test_a_skipped_step_leaves_no_trace_in_the_batch_norms(tmp_path, monkeypatch, settings):
    """An activation that overflows would make their running mean NaN, and every later test.

    Also if it does in the last of several micro-batches only.
    """
    monkeypatch.setattr(running, "autocast_dtype", lambda precision, device: torch.float16)
    config = on_small_crops(tiny_config(tmp_path / "run", ema=0.9)).replace(settings)
    run = running.Run(config, RunFolder(Path(config.out)))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    masks = torch.randint(9, (2, 32, 32), dtype=torch.uint8, generator=generator)
    run.train_step(images, masks)
    before, averaged = (
        {name: value.clone() for name, value in state.items()}
        for state in (run.model.state_dict(), run.ema.state)
    )
    assert any("running_mean" in name for name in before)
    layer = next(m for m in run.model.decoder.modules() if isinstance(m, ConvBNReLU))
    calls = itertools.count(1)

    def overflow(module, given):
        return (given[0] * 1e9,) if next(calls) == config.train.accumulate else given

    hook = layer.register_forward_pre_hook(overflow)
    run.step = 1
    assert run.train_step(images, masks)["skipped"] == 1
    hook.remove()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(run.ema.state[name], averaged[name]), name


# --- recomputed activations -----------------------------------------------------------------------


def test_recomputed_batch_norms_count_a_batch_once(tmp_path):
    """The ResNets of the baselines and of Hybrid run again in the backward pass."""
    states = []
    for recompute in (False, True):
        config = tiny_config(tmp_path / str(recompute), grad_checkpointing=recompute)
        model = ModelConfig(name="semantic_fpn_r101", encoder="resnet10t")
        run = running.Run(dataclasses.replace(config, model=model), RunFolder(Path(config.out)))
        for dropout in (m for m in run.model.modules() if isinstance(m, nn.Dropout2d)):
            dropout.p = 0.0
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            images = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)
            masks = torch.randint(9, (2, 64, 64), dtype=torch.uint8, generator=generator)
            run.train_step(images, masks)
        states.append(run.model.state_dict())
    assert any(name.endswith("num_batches_tracked") for name in states[0])
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    assert all(m.momentum for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))


# --- torch.compile and fused updates --------------------------------------------------------------


def test_mla_compiles_to_one_graph():
    call = torch.compile(tiny_model("mla"), fullgraph=True, backend="eager")  # a break is an error
    assert len(call(torch.randn(1, 3, 32, 32), with_aux=True).aux) == 2


def test_a_compiled_run_resumes_exactly(tmp_path, monkeypatch):
    """Traced and differentiated ahead of time, without the minutes that code generation takes."""
    compile_ = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(best, "evaluate_split", lambda *_, **__: {"miou": 0.5})
    whole, parts = (
        tiny_config(tmp_path / name, compile=True, steps=3) for name in ("whole", "parts")
    )
    train(whole)
    stopped_and_resumed(parts, monkeypatch, at=1)
    assert_same_weights(whole, parts)
    plain = tiny_config(tmp_path / "plain", steps=3)
    train(plain)
    losses = [[line["loss"] for line in log_lines(config)] for config in (whole, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_exchanged_in_the_last_micro_batch_alone(monkeypatch, compiled):
    """The group has one process, which is told of two."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(parallel, "world", lambda: 2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        spread = Parallel(tiny_model("naive"), "none", compiled=compiled)
        exchanged = []

        def exchange(_, bucket):
            exchanged.append(bucket)
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        spread.copies.register_comm_hook(None, exchange)
        counts = []
        for last in (False, False, True, False):
            with spread.micro_batch(last=last):
                output = spread.call(torch.randn(2, 3, 32, 32), with_aux=True)
                sum(logits.sum() for logits in (output.logits, *output.aux)).backward()
            counts.append(len(exchanged))
            exchanged.clear()
    finally:
        dist.destroy_process_group()
    assert [count > 0 for count in counts] == [False, False, True, False]


def test_compile_without_a_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SetrError, match=r"train\.compile: needs a C\+\+ compiler"):
        Parallel(tiny_model(), "none", compiled=True)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_updates_equal_plain_ones(name, monkeypatch):
    states = []
    for fused in (True, False):
        monkeypatch.setattr(optim, "FUSED", fused)
        torch.manual_seed(0)
        model = tiny_model("naive")
        optimizer = build_optimizer(model, OptimConfig(name=name, weight_decay=0.1))
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        states.append(model.state_dict())
    torch.testing.assert_close(states[0], states[1])


# --- bad input ------------------------------------------------------------------------------------


def test_a_non_finite_loss_names_step_rate_and_files(tmp_path):
    data = write_scene_folders(tmp_path / "data", {"train": 3, "val": 1})
    config = on_folder(tiny_config(tmp_path / "run", steps=9), data)
    wild = config.replace({"optim.lr": 1e30})
    with pytest.raises(SetrError, match=r"at step \d with lr 1?\d*\.?\d*e\+\d\d") as caught:
        train(wild)
    assert str(caught.value).count(".png") == 2
    assert "or limit gradients with --optim.clip-grad;" in str(caught.value)  # fp32 already
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "side"), [("setr_naive_nano", 8), ("upernet_nano", 16)])
def test_a_single_value_per_channel_is_refused_in_one_line(tmp_path, name, side):
    data = write_scene_folders(tmp_path / "data", {"train": 2, "val": 1})
    config = on_folder(tiny_config(tmp_path / "run", batch_size=2, accumulate=2), data)
    config = config.replace(
        {"data.crop_size": (side, side), "model.name": name, "model.taps": None, "model.aux": False}
    )
    run = running.Run(config, RunFolder(Path(config.out)))
    message = rf"data\.crop_size {side} {side}: with 1 image at a time .* give larger crops"
    with pytest.raises(SetrError, match=message) as caught:
        run.train_step(*next(run.source.batches(0)))
    assert caught.value.code == USAGE
    assert all(b.isfinite().all() for b in run.model.buffers())


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_non_finite_gradient_ends_before_the_weights_move(tmp_path, factor, clip):
    data = write_scene_folders(tmp_path / "data", {"train": 3, "val": 1})
    config = on_folder(tiny_config(tmp_path / "run", ema=0.9), data)
    config = config.replace({"optim.clip_grad": clip})
    run = running.Run(config, RunFolder(Path(config.out)))
    before = [p.clone() for p in run.model.parameters()]
    average = {k: v.clone() for k, v in run.ema.state.items()}
    next(run.model.parameters()).register_hook(lambda gradient: gradient * factor)
    message = r"gradient norm is (inf|nan) at step 1 with lr 0\.01; .*\.png, .*\.png$"
    with pytest.raises(SetrError, match=message):
        run.train_step(*next(run.source.batches(0)))
    assert all(map(torch.equal, before, run.model.parameters()))
    assert all(torch.equal(average[k], v) for k, v in run.ema.state.items())


def test_a_batch_without_a_counted_pixel_is_named_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(best, "evaluate_split", lambda *_, **__: {"miou": 0.5})
    data = write_scene_folders(tmp_path / "data", {"train": 2, "val": 1})
    for path in (data / "labels" / "train").glob("*.png"):
        path.write_bytes(encode_png(np.zeros((48, 48), np.uint8)))
    settings = {"steps": 2, "class_weights": f"{scenes.LABELS.classes[0]}=0"}
    config = on_folder(tiny_config(tmp_path / "run", **settings), data)
    train(config)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "no valid pixel" in x]
    assert line.startswith("warning: step 1 ")
    assert "scene_000.png" in line


def test_a_loss_of_zero_on_counted_pixels_is_no_cause_for_a_warning(tmp_path, capsys):
    run = running.Run(config := tiny_config(tmp_path / "run"), RunFolder(Path(config.out)))
    with torch.no_grad():
        run.model.decoder.classifier.bias[0] = 1e4  # softmax gives 1
    images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    assert run.train_step(images, masks)["main"] == 0
    assert "no valid pixel" not in capsys.readouterr().err


def test_a_precision_the_hardware_lacks_is_refused(config):
    with pytest.raises(SetrError, match=r"precision fp16: CPUs compute in bf16 or fp32"):
        train(with_train(config, precision="fp16"))


def test_accumulation_must_divide_the_batch(config):
    with pytest.raises(SetrError, match=r"train\.accumulate 2: must divide train\.batch_size 3"):
        with_train(config, batch_size=3, accumulate=2)

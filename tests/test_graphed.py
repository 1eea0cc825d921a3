"""One CUDA graph per step: what is put in, what comes out, and where there is none.

Where there is no GPU a stand-in of torch's graphs records the work by doing it, and replays it by
doing it again into the same memory. `benchmarks/gpu_check.py --only graph` has the real ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from setr import distributed
from setr.config import TrainConfig
from setr.engine import train
from setr.kernels.capture import Staying
from setr.layers.mask_classifier import MaskClassifier
from setr.training import graphed
from setr.training.graphed import WARM_UPS, Graphed
from setr.training.updates import Updates
from tests.conftest import tiny_config
from tests.runs import assert_same_weights, log_lines


class Recorded:
    """A graph that does the work again, into the memory of the recording."""

    made: list[Recorded]

    def __init__(self) -> None:
        self.replays = 0
        self.made.append(self)

    def capture_begin(self, **_) -> None: ...

    def capture_end(self) -> None: ...

    def replay(self) -> None:
        self.replays += 1
        call = self.call
        weights = [weight for weight, _ in call.gradients]
        for weight in weights:
            weight.grad = None
        outputs = call.work(*call.inputs)
        for name, place in call.outputs.items():
            place.copy_(outputs[name])
        for weight, place in call.gradients:
            place.copy_(weight.grad)
            weight.grad = None  # a graph knows nothing of attributes


@pytest.fixture
def graphs(monkeypatch):
    """Stand-ins for what torch has of a GPU; the graphs that were made."""
    Recorded.made = []
    record = Graphed._record

    def recording(self, *batch):
        record(self, *batch)
        self.graph.call = self

    class Stream:
        def __init__(self, device=None) -> None:
            self.device = device

        def wait_stream(self, other) -> None: ...

    nothing = {"stream": lambda stream: contextlib.nullcontext(), "Stream": Stream,
               "graph": lambda graph, **_: contextlib.nullcontext(), "CUDAGraph": Recorded,
               "current_stream": Stream, "graph_pool_handle": object,
               "get_rng_state": lambda device: torch.get_rng_state(),
               "set_rng_state": lambda state, device: torch.set_rng_state(state)}  # fmt: skip
    for name, value in nothing.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):  # real ones in a CUDA build
        monkeypatch.setattr(torch._C, name, lambda device, pool: None)
    monkeypatch.setattr(graphed, "warming_stream", Stream)
    monkeypatch.setattr(graphed, "Staying", contextlib.nullcontext)  # the CPU's loss reads values
    monkeypatch.setattr(Graphed, "_record", recording)
    monkeypatch.setattr(Updates, "_can_capture", lambda self: self.config.train.cuda_graph)
    return Recorded.made


@pytest.mark.parametrize("decoder", ["naive", "pup"])
def test_a_run_by_graph_is_the_run_without(graphs, tmp_path, decoder):
    """Batch norms' statistics, random depth, the moving average and an evaluation between."""

    def run(name: str, on: bool):
        config = tiny_config(
            tmp_path / name, cuda_graph=on, steps=5, ema=0.5, eval_every=2, log_every=1
        )
        model = dataclasses.replace(config.model, name=f"setr_{decoder}_nano", drop_path=0.3)
        config = dataclasses.replace(config, model=model)
        train(config)
        return config

    plain, recorded = run("plain", False), run("graph", True)
    # recorded anew after each validation, whose memory it would have taken; recording is no step
    assert [graph.replays for graph in graphs] == [2, 2, 1]
    assert_same_weights(plain, recorded)
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in log_lines(plain)] == [
            line[key] for line in log_lines(recorded)
        ]


def test_recording_warms_up_and_leaves_no_trace(graphs):
    layer = torch.nn.BatchNorm1d(3)
    calls = []

    def work(x, masks):
        calls.append(len(x))
        loss = (layer(x) * masks[:, None]).square().sum()
        loss.backward()
        return {"loss": loss.detach()}

    torch.manual_seed(0)
    before = torch.get_rng_state()
    call = Graphed(work, layer)
    torch.rand(1)
    torch.set_rng_state(before)
    first = call(torch.arange(12.0).view(4, 3), torch.ones(4))["loss"].clone()
    assert calls == [4] * (WARM_UPS + 2)  # one of the recording, one of the replay
    assert layer.num_batches_tracked == 1
    assert torch.equal(torch.get_rng_state(), before)
    gradient = layer.weight.grad.clone()
    layer.zero_grad(set_to_none=True)  # as after every step
    second = call(-torch.arange(12.0).view(4, 3), 2 * torch.ones(4))["loss"]
    assert second == pytest.approx(4 * float(first))
    assert torch.allclose(layer.weight.grad, 4 * gradient)


def test_a_step_is_recorded_on_a_stream_of_its_gpu(graphs, monkeypatch):
    """torch's own stream stays on the GPU that recorded first."""
    used = []

    def graph(graph, *, stream=None, **_):
        used.append(stream)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "graph", graph)
    layer, x = torch.nn.Linear(3, 1), torch.ones(4, 3)

    def work(x, masks):
        layer(x).sum().backward()
        return {}

    Graphed(work, layer)(x, torch.ones(4))
    assert [stream.device for stream in used] == [x.device]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (RuntimeError("not permitted\nwhen stream is capturing"), "not permitted"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (None, "aten._local_scalar_dense.default cannot be recorded"),
    ],
)
def test_where_no_graph_can_be_made_training_goes_on_without(
    graphs, tmp_path, monkeypatch, capsys, fault, said
):
    """Also where a plain step has the memory that a recording lacks, and where losses read values.

    The latter is known before the recording.
    """
    plain = tiny_config(tmp_path / "plain", cuda_graph=False, steps=3)
    train(plain)

    @contextlib.contextmanager
    def refusing(graph, **_):
        assert fault, "recorded"
        yield
        raise fault

    monkeypatch.setattr(torch.cuda, "graph", refusing)
    if not fault:
        monkeypatch.setattr(graphed, "Staying", Staying)
    config = tiny_config(tmp_path / "run", cuda_graph=True, steps=3)
    capsys.readouterr()
    train(config)
    assert capsys.readouterr().err.count(f"warning: cannot capture a CUDA graph ({said})") == 1
    assert_same_weights(plain, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"cuda_graph": False},
        {"accumulate": 2},
        {"loss": "ohem"},
        {"compile": True},
        {"grad_checkpointing": True},
        {"profile": 1},
        {"cache_features": "once"},
    ],
)
def test_what_cannot_be_recorded_is_not(changes, monkeypatch):
    updates = Updates.__new__(Updates)
    updates.device, updates.scaler = (
        torch.device("cuda"),
        dataclasses.make_dataclass("Scaler", ["enabled"])(False),
    )
    updates.model, updates.teacher = SimpleNamespace(decoder=None), None
    config = dataclasses.make_dataclass("Settings", ["train"])
    updates.config = config(TrainConfig(steps=1))
    assert updates._can_capture()
    updates.config = config(TrainConfig(steps=1, **changes))
    assert not updates._can_capture()
    updates.config = config(TrainConfig(steps=1))
    updates.scaler.enabled = True
    assert not updates._can_capture()
    updates.scaler.enabled = False
    monkeypatch.setattr(distributed, "world", lambda: 2)
    assert not updates._can_capture()
    monkeypatch.undo()
    updates.model = SimpleNamespace(decoder=MaskClassifier(8, 3, patch_size=16))
    assert not updates._can_capture()
    updates.model = SimpleNamespace(decoder=None)
    updates.teacher = SimpleNamespace()
    assert not updates._can_capture()
    updates.teacher = None
    updates.device = torch.device("cpu")
    assert not updates._can_capture()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_graph_on_a_gpu(tmp_path):
    runs = []
    for on in (False, True):
        config = tiny_config(tmp_path / str(on), cuda_graph=on, steps=4, device="cuda", log_every=1)
        train(config)
        runs.append([line["loss"] for line in log_lines(config)])
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)

"""Before and after the recording of a CUDA graph, with stand-ins for what torch has of a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from setr import create_model
from setr.kernels import capture


class _GPU:
    """What torch 2.11 remembers of recordings, in `torch.cuda`'s place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream: Any = "own"
        self.drawing_is_recorded = self.breaks = False
        self.graphs = 0
        self.underway: list[Any] = []
        self.pools: list[Any] = []
        for name in ("stream", "graph", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", partial(_Graph, self))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self._release, raising=False)

    def _current_stream(self, device: Any = None) -> Any:
        return self.stream

    @contextlib.contextmanager
    def _stream(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextlib.contextmanager
    def _graph(self, graph: Any, *, pool: Any, stream: Any, **_: Any) -> Iterator[None]:
        before, self.stream = self.stream, stream
        graph.capture_begin(pool=pool)
        try:
            yield
        finally:
            graph.capture_end()
            self.stream = before

    def _end(self, device: int, pool: Any) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def _release(self, device: int, pool: Any) -> None:
        self.pools.remove(pool)

    def used(self) -> tuple[Any, ...]:
        return self.stream, self.underway, self.drawing_is_recorded


class _Graph:
    def __init__(self, gpu: _GPU) -> None:
        self.gpu = gpu

    def capture_begin(self, pool: Any = None, **_: Any) -> None:
        self.gpu.underway.append(pool)
        self.gpu.pools.append(pool)
        self.gpu.drawing_is_recorded = True

    def capture_end(self) -> None:
        if self.gpu.breaks:
            self.gpu.breaks = False
            raise RuntimeError("operation failed due to a previous error during capture")
        self.gpu.underway.pop()
        self.gpu.drawing_is_recorded = False
        self.gpu.graphs += 1


class _Stream:
    device = torch.device("cuda", 0)


def test_a_recording_that_breaks_off_leaves_torch_as_it_was(monkeypatch):
    gpu = _GPU(monkeypatch)
    gpu.breaks = True
    with pytest.raises(RuntimeError, match="previous error"):  # noqa: SIM117
        with capture.capture(torch.cuda.CUDAGraph(), "pool", _Stream()):
            assert gpu.underway == ["pool"]
    assert gpu.used() == ("own", [], False)
    assert "pool" not in gpu.pools


def test_so_does_one_that_ends_because_of_its_work(monkeypatch):
    """As where memory runs out: torch ends the recording in order then, and once is enough."""
    gpu = _GPU(monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):  # noqa: SIM117
        with capture.capture(torch.cuda.CUDAGraph(), "pool", _Stream()):
            raise torch.OutOfMemoryError("CUDA out of memory")
    assert gpu.used() == ("own", [], False)


def test_a_recording_on_its_stream(monkeypatch):
    gpu, stream = _GPU(monkeypatch), _Stream()
    with capture.capture(torch.cuda.CUDAGraph(), "pool", stream):
        assert gpu.stream is stream
    assert gpu.used() == ("own", [], False)
    assert gpu.graphs == 1


@pytest.mark.parametrize(
    "encoder", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "samvit_base_patch16"]
)
def test_a_pass_stays_on_its_device(encoder):
    with torch.device("meta"):
        model = create_model("setr_pup_nano", num_classes=5, encoder=encoder, img_size=32,
                             encoder_args={"drop_path_rate": 0.2}).eval()  # fmt: skip
        x = torch.empty(1, 3, 32, 48)
    for mode in (torch.inference_mode(), torch.enable_grad()):
        with mode, torch.autocast("cpu", torch.bfloat16), capture.Staying():
            model.coarse(x)
    with torch.autocast("cpu", torch.bfloat16), capture.Staying():  # in training, too
        output = model.train()(x, with_aux=True)
        sum(logits.float().sum() for logits in (output.logits, *output.aux)).backward()


def test_what_leaves_the_device_is_refused_before_it_is_recorded():
    for mode in (torch.inference_mode(), torch.enable_grad()):
        with mode, pytest.raises(RuntimeError, match="cannot be recorded"), capture.Staying():
            torch.zeros(3).to("meta")


def test_values_are_not_waited_for():
    x = torch.ones(3)
    waits = [
        lambda: x[0].item(),
        lambda: bool(x[0]),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: x.equal(x),
    ]
    for wait in waits:
        for mode in (torch.inference_mode(), torch.enable_grad()):
            with mode, pytest.raises(RuntimeError, match="cannot be recorded"), capture.Staying():
                wait()
    with capture.Staying():
        assert x[torch.tensor([0, 2])].shape == (2,)


def test_compiled_functions_run_eagerly_inside_and_stay_compiled():
    compiled_calls = []

    def backend(graph: Any, _: Any) -> Any:
        def call(*inputs: torch.Tensor) -> Any:
            compiled_calls.append(inputs[0].shape)
            return graph.forward(*inputs)

        return call

    double = torch.compile(lambda x: 2 * x, backend=backend, dynamic=False)
    x = torch.ones(3)
    with torch.inference_mode():
        double(x)
        with capture.Staying():
            doubled = double(x)
        assert torch.equal(doubled, 2 * x)
        assert len(compiled_calls) == 1
        double(x)
        double(torch.ones(4))
    assert len(compiled_calls) == 3

"""Replaying a model's passes; what needs a GPU is left out where there is none."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from setr import Predictor, create_model
from setr.data import scenes
from setr.kernels import recorded as module
from setr.kernels.recorded import Recorded, recorded
from setr.model_info import ModelInfo


def _model() -> Any:
    torch.manual_seed(0)
    return create_model("setr_mla_nano", num_classes=5, img_size=32, channels=8).eval()


def test_on_a_cpu_it_is_the_model():
    model = _model()
    assert recorded(model) is model


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes recorded, without a GPU."""
    shapes: list[tuple[int, ...]] = []

    def recording(model: Any, images: torch.Tensor, pool: Any, stream: Any) -> Any:
        shapes.append(tuple(images.shape))
        return model.coarse

    monkeypatch.setattr(module, "_Recording", recording)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: _Stream.current)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(module, "_LAST", {})
    return shapes


class _Stream:
    """In place of a GPU's; `torch.cuda.stream` sets the current one."""

    current: Any = None

    def __init__(self, device: Any) -> None:
        self.device, self.waited = device, []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


def test_a_shape_that_comes_again_is_recorded_once(made):
    model, (x, y) = _model(), torch.rand(2, 1, 3, 32, 48)
    passes, (x, y) = Recorded(model), (x, y[..., :32])
    with torch.inference_mode():
        for _ in range(5):
            found = passes.coarse(x)
        passes.coarse(y)
        assert torch.equal(found.logits, model.coarse(x).logits)
    assert made == [(1, 3, 32, 48)]


def test_where_weights_have_moved_all_is_recorded_anew(made, monkeypatch):
    monkeypatch.setattr(module, "PLAIN", 0)
    model, x = _model(), torch.rand(1, 3, 32, 32)
    passes = Recorded(model)
    with torch.inference_mode():
        passes.coarse(x)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        passes.coarse(x)
        passes.coarse(x)
    assert made == [(1, 3, 32, 32)] * 2


def test_many_shapes_do_not_replace_each_other(made, monkeypatch):
    for name, value in {"PLAIN": 0, "SHAPES": 2, "REST": 10}.items():
        monkeypatch.setattr(module, name, value)
    passes = Recorded(_model())
    images = [torch.rand(1, 3, 32, 16 * n) for n in (1, 2, 3)]
    widths = [16, 32]
    with torch.inference_mode():
        for _ in range(5):
            for x in images:
                passes.coarse(x)
        assert [shape[-1] for shape in made] == widths
        for _ in range(10):  # the first two have gone out of use
            passes.coarse(images[2])
        passes.coarse(images[1])
    assert [shape[-1] for shape in made] == [*widths, 48]
    assert len(passes.recordings) == 2


def test_without_memory_passes_are_plain(made, monkeypatch):
    def refused(*_: Any) -> None:
        made.append(())
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "_Recording", refused)
    passes, x = Recorded(_model()), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        for _ in range(5):
            assert passes.coarse(x).logits.shape == (1, 5, 16, 16)
    assert made == [()]


def test_what_is_replaced_is_recorded_anew(made, monkeypatch):
    """In a pool of its own: torch refuses one that all its graphs have left."""
    pools = []
    recording = module._Recording

    def recorded_in(model: Any, images: torch.Tensor, pool: Any, stream: Any) -> Any:
        pools.append(pool)
        return recording(model, images, pool, stream)

    monkeypatch.setattr(module, "PLAIN", 0)
    monkeypatch.setattr(module, "_Recording", recorded_in)
    model, x = _model(), torch.rand(1, 3, 32, 32)
    passes = Recorded(model)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.inference_mode():
        passes.coarse(x)
        last.weight = torch.nn.Parameter(last.weight.clone())
        passes.coarse(x)
        model.decoder = copy.deepcopy(model.decoder)
        passes.coarse(x)
        passes.coarse(x)
    assert len(made) == 3
    assert len(set(pools)) == 3


def test_hooks_are_called_in_every_pass(made, monkeypatch):
    monkeypatch.setattr(module, "PLAIN", 0)
    model, x, seen = _model(), torch.rand(1, 3, 32, 32), []
    passes = Recorded(model)
    with torch.inference_mode():
        passes.coarse(x)
        assert len(made) == 1
        handle = model.encoder.register_forward_hook(lambda *_: seen.append(1))
        passes.coarse(x)
        passes.coarse(x)
        Recorded(model).coarse(x)
        assert (len(seen), len(made)) == (3, 1)
        handle.remove()
        passes.coarse(x)
    assert (len(seen), len(made)) == (3, 2)


def test_only_in_inference_mode_whose_tensors_may_not_be_written_outside(made, monkeypatch):
    monkeypatch.setattr(module, "PLAIN", 0)
    passes, x = Recorded(_model()), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        passes.coarse(x)
    assert made == []


def test_recordings_make_room_for_a_pass_that_needs_their_memory(made, monkeypatch):
    monkeypatch.setattr(module, "PLAIN", 0)
    monkeypatch.setattr(module, "MAX_PIXELS", 32 * 32)
    model = _model()
    passes, coarse = Recorded(model), model.coarse

    def short_of_memory(images: torch.Tensor) -> Any:
        if images.shape[-1] > 32 and passes.recordings:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return coarse(images)

    model.coarse = short_of_memory
    with torch.inference_mode():
        passes.coarse(torch.rand(1, 3, 32, 32))
        assert passes.recordings
        assert passes.coarse(torch.rand(1, 3, 32, 64)).logits.shape == (1, 5, 16, 32)
        passes.coarse(torch.rand(1, 3, 32, 32))
    assert not passes.recordings


def test_streams_take_turns(made, monkeypatch):
    """Of one model and of two, whose graphs share memory."""
    monkeypatch.setattr(module, "PLAIN", 0)
    x, first, second = torch.rand(1, 3, 32, 32), _Stream(0), _Stream(0)
    passes = Recorded(_model()), Recorded(_model())
    with torch.inference_mode():
        for stream, which in ((first, 0), (first, 1), (second, 1), (second, 0), (first, 0)):
            monkeypatch.setattr(_Stream, "current", stream)
            passes[which].coarse(x)
    assert (first.waited, second.waited) == ([second], [first])


def test_a_copy_is_of_the_copied_model(monkeypatch):
    monkeypatch.setattr(module, "recorded", Recorded)
    model = _model()
    copied, passes = copy.deepcopy((model, Recorded(model)))
    assert passes.model is copied is not model


def test_a_predictor_takes_another_model():
    info = ModelInfo(labels=scenes.LABELS)
    models = [
        create_model(
            "setr_mla_nano", num_classes=len(scenes.LABELS.classes), img_size=32, channels=8
        )
        for _ in range(2)
    ]
    image = scenes.draw("recorded", 0, size=32)[0]
    one, other = (Predictor(m, info, device="cpu").predict(image).scores for m in models)
    predictor = Predictor(models[0], info, device="cpu")
    assert (predictor.predict(image).scores == one).all()
    predictor.model = models[1]
    assert (predictor.predict(image).scores == other).all()


@pytest.mark.parametrize("broken", [False, True])
def test_a_recording_is_on_the_streams_of_its_gpu(monkeypatch, broken):
    """And leaves this thread its own stream, also where it is broken off."""
    used: list[Any] = []

    @contextlib.contextmanager
    def entered(stream: Any) -> Iterator[None]:
        before, _Stream.current = _Stream.current, stream
        try:
            yield
        finally:
            _Stream.current = before

    class CUDAGraph:
        def capture_begin(self, **_: Any) -> None: ...

        def capture_end(self) -> None: ...

    class Graph:
        def __init__(self, graph: Any, pool: Any, stream: Any = None, **_: Any) -> None:
            used.append(stream)

        def __enter__(self) -> None:
            _Stream.current = used[-1]

        def __exit__(self, *_: object) -> None:
            if broken:
                raise RuntimeError("operation failed due to a previous error during capture")
            _Stream.current = own

    own = _Stream(0)
    for name, value in {"CUDAGraph": CUDAGraph, "Stream": _Stream, "stream": entered,
                        "graph": Graph,
                        "current_stream": lambda *_: _Stream.current}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):  # real ones in a CUDA build
        monkeypatch.setattr(torch._C, name, lambda device, pool: None)
    monkeypatch.setattr(_Stream, "current", own)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(module, "warming_stream", _Stream)
    monkeypatch.setattr(module, "PLAIN", 0)
    monkeypatch.setattr(module._Recording, "__call__", lambda made, _: made.output)
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        for model in (_model(), _model()):
            assert Recorded(model).coarse(x).logits.shape == (1, 5, 16, 16)
    assert [stream.device for stream in used] == [x.device] * 2
    assert used[0] is not used[1]
    assert _Stream.current is own


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_replay_is_the_pass():
    model = _model().cuda()
    passes = recorded(model)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for _ in range(5):
            x = torch.rand(2, 3, 32, 48, device="cuda")
            assert torch.equal(passes.coarse(x).logits, model.coarse(x).logits)
    assert len(passes.recordings) == 1

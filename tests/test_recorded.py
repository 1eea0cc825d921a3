"""Replaying a model's passes; what needs a GPU is left out where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from setr import create_model
from setr.kernels import recorded as module
from setr.kernels.recorded import Recorded, recorded


def _model() -> Any:
    torch.manual_seed(0)
    return create_model("setr_mla_nano", num_classes=5, img_size=32, channels=8).eval()


def test_on_a_cpu_it_is_the_model() -> None:
    model = _model()
    assert recorded(model) is model


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes recorded, without a GPU."""
    shapes: list[tuple[int, ...]] = []

    def recording(model: Any, images: torch.Tensor, pool: Any) -> Any:
        shapes.append(tuple(images.shape))
        return model.coarse

    monkeypatch.setattr(module, "_Recording", recording)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    return shapes


def test_a_shape_that_comes_again_is_recorded_once(made: list[tuple[int, ...]]) -> None:
    model, (x, y) = _model(), torch.rand(2, 1, 3, 32, 48)
    passes, (x, y) = Recorded(model), (x, y[..., :32])
    with torch.inference_mode():
        for _ in range(5):
            found = passes.coarse(x)
        passes.coarse(y)
        assert torch.equal(found.logits, model.coarse(x).logits)
    assert made == [(1, 3, 32, 48)]


def test_where_weights_have_moved_all_is_recorded_anew(
    made: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_many_shapes_do_not_replace_each_other(
    made: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_without_memory_passes_are_plain(
    made: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        made.append(())
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "_Recording", refused)
    passes, x = Recorded(_model()), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        for _ in range(5):
            assert passes.coarse(x).logits.shape == (1, 5, 16, 16)
    assert made == [()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_replay_is_the_pass() -> None:
    model = _model().cuda()
    passes = recorded(model)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        for _ in range(5):
            x = torch.rand(2, 3, 32, 48, device="cuda")
            assert torch.equal(passes.coarse(x).logits, model.coarse(x).logits)
    assert len(passes.recordings) == 1

"""The validation loss: the training loss of one step with an image each, whatever the protocol."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from setr import inference
from setr.arguments.choices import LossKind
from setr.datasets import open_dataset
from setr.engine import train
from setr.hub import from_pretrained
from setr.inference import normalize, predict_mask, predict_scores
from setr.labels import IGNORE
from setr.losses import count_weight, segmentation_loss
from setr.model import SETR
from setr.protocols import Protocol
from setr.scores.split_loss import SplitLoss
from setr.training import best
from tests.conftest import tiny_config, tiny_model
from tests.test_eomt import tiny as tiny_eomt

WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])
SIZES = [(48, 64), (45, 61), (32, 40)]


def images_of(sizes: list[tuple[int, int]], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Pixels (1, 3, H, W) and ids (1, H, W), a corner ignored; class 4 only in the first."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, (H, W) in enumerate(sizes):
        image = torch.randn(1, 3, H, W, generator=generator)
        ids = torch.randint(0, 4 + (number == 0), (1, H, W), generator=generator)
        ids = ids.to(torch.uint8)
        ids[:, :9, :13] = IGNORE
        found.append((image, ids))
    return found


def decisive(decoder: str = "pup") -> SETR:
    """A model whose probabilities are not all alike."""
    torch.manual_seed(0)
    model = tiny_model(decoder).eval()
    for parameter in model.decoder.parameters():
        parameter.data *= 3 if parameter.ndim > 1 else 1
    return model


def streamed(model: SETR, pairs: list[tuple[Tensor, Tensor]], loss: SplitLoss, **protocol) -> float:
    with torch.inference_mode():
        for image, ids in pairs:
            seen = loss.images(ids)
            predict_mask(model, image, Protocol(**protocol), with_confidence=False, on_scores=seen)
            loss.add(seen)
    found = loss.mean()
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks per image."""
    monkeypatch.setitem(inference.BLOCK_BYTES, "cpu", 5 * 64 * 4 * 9)


@pytest.mark.parametrize("kind", get_args(LossKind))
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("norm", ["valid", "all"])
def test_it_is_the_loss_of_a_step_with_an_image_in_each_micro_batch(kind, weight, norm):
    model, pairs = decisive(), images_of(SIZES)
    divisor = sum(
        count_weight(ids, weight) if norm == "valid" else torch.tensor(float(ids.numel()))
        for _, ids in pairs
    )
    with torch.no_grad():
        parts = [
            segmentation_loss(
                model(image, with_aux=True), ids, normalizer=divisor, weight=weight, kind=kind
            )["main"]
            for image, ids in pairs
        ]
    found = streamed(model, pairs, SplitLoss(kind, weight, norm=norm))
    assert found == pytest.approx(float(sum(parts)), rel=1e-5)
    assert found > 0.05


@pytest.mark.parametrize("kind", get_args(LossKind))
@pytest.mark.parametrize("norm", ["valid", "all"])
def test_images_together_count_as_one_by_one(kind, norm):
    pairs = images_of([SIZES[0], SIZES[0]])
    together = [(torch.cat([a, b]), torch.cat([c, d])) for (a, c), (b, d) in [pairs]]
    model = decisive()
    first, second = (
        streamed(model, p, SplitLoss(kind, WEIGHT, norm=norm)) for p in (pairs, together)
    )
    assert first == pytest.approx(second, rel=1e-5)


PROTOCOLS = {
    "resized": {"short_side": 40},
    "windows": {"window": (32, 32), "stride": (24, 16)},
    "blended": {"window": (32, 32), "stride": (24, 16), "blend": True},
    "views": {"scales": (0.75, 1.0), "flip": True},
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_it_is_of_the_scores_that_are_tested(name):
    model, pairs, protocol = decisive(), images_of(SIZES), Protocol(**PROTOCOLS[name])
    total = pixels = 0.0
    for image, ids in pairs:
        with torch.inference_mode():
            scores = predict_scores(model, image, protocol)
        entropy = F.cross_entropy(scores, ids.long(), WEIGHT, ignore_index=IGNORE, reduction="sum")
        total, pixels = total + float(entropy), pixels + float(count_weight(ids, WEIGHT))
    found = streamed(model, pairs, SplitLoss("cross_entropy", WEIGHT), **PROTOCOLS[name])
    assert found == pytest.approx(total / pixels, rel=1e-5)


@pytest.mark.parametrize("name", ["whole", *PROTOCOLS])
def test_it_costs_no_pass_and_changes_no_class(name, monkeypatch):
    model, (image, ids) = decisive(), images_of([(64, 96)])[0]
    protocol = Protocol(**PROTOCOLS.get(name, {}))
    passes, original = [], SETR.coarse
    monkeypatch.setattr(SETR, "coarse", lambda m, x: passes.append(len(x)) or original(m, x))
    found = []
    for seen in (None, SplitLoss().images(ids)):
        passes.clear()
        with torch.inference_mode():
            mask, _ = predict_mask(model, image, protocol, with_confidence=False, on_scores=seen)
        found.append((mask, list(passes)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_without_a_pixel_that_counts_there_is_none():
    ids = torch.full((1, 16, 16), IGNORE, dtype=torch.uint8)
    for kind in get_args(LossKind):
        loss = SplitLoss(kind)
        seen = loss.images(ids)
        seen(0, torch.randn(1, 5, 16, 16))
        loss.add(seen)
        assert loss.mean() is None


def test_a_run_logs_the_loss_of_its_validation(tmp_path, capsys):
    settings = tiny_config(
        tmp_path / "run", steps=4, eval_every=2, class_weights="sky=0.25,road=2", ema=0.5
    )
    train(settings)
    lines = [json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["val"]["loss"] for line in lines if "val" in line}
    assert list(losses) == [2, 4]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [f"loss {losses[step]:.3f};" in line for step, line in zip(losses, told, strict=True)]
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())["single_scale"]
    assert kept["loss"] in losses.values()

    model, info = from_pretrained(tmp_path / "run")
    assert losses[info.metrics["step"]] == kept["loss"]
    val = open_dataset(settings.data.root, settings.data.val_split)
    classes = list(val.labels.classes)
    weight = torch.ones(len(classes))
    weight[classes.index("sky")], weight[classes.index("road")] = 0.25, 2.0
    total = pixels = 0.0
    for index in range(len(val)):
        image, ids = (torch.from_numpy(np.ascontiguousarray(a))[None] for a in val.load(index))
        with torch.no_grad():
            output = model.eval()(normalize(image, info.mean, info.std), with_aux=True)
        one = torch.ones(())
        total += float(segmentation_loss(output, ids, normalizer=one, weight=weight)["main"])
        pixels += float(count_weight(ids, weight))
    assert kept["loss"] == pytest.approx(total / pixels, rel=1e-5)


def test_it_has_the_kind_the_weights_and_the_divisor_of_the_training(tmp_path):
    config = tiny_config(tmp_path, loss="dice", loss_norm="all")
    run = best.Best(config, None, None, None, torch.device("cpu"), WEIGHT)  # type: ignore[arg-type]
    loss = run._loss(tiny_model("naive"))
    assert (loss.kind, loss.norm, loss.weight) == ("dice", "all", WEIGHT)


def test_eomt_has_the_cross_entropy_of_its_scores(tmp_path):
    """Under another name: its own loss compares the masks of queries."""
    config = tiny_config(tmp_path, loss_norm="all")
    run = best.Best(config, None, None, None, torch.device("cpu"), torch.ones(5))  # type: ignore[arg-type]
    loss = run._loss(tiny_eomt())
    assert (loss.kind, loss.norm, loss.name) == ("cross_entropy", "valid", "cross_entropy")
    assert loss.weight is run.weight
    assert run._loss(tiny_model("naive")).name == "loss"

    model, pairs = tiny_eomt().eval(), images_of([(64, 64), (64, 96)])
    total = pixels = 0.0
    for image, ids in pairs:
        with torch.inference_mode():
            scores = model(image).exp()  # of classes, whose shares are the probabilities
        shares = scores / scores.sum(1, keepdim=True)
        chosen = shares.gather(1, ids.where(ids != IGNORE, 0)[:, None].long())[:, 0]
        total += float(-chosen.log()[ids != IGNORE].sum())
        pixels += float((ids != IGNORE).sum())
    assert streamed(model, pairs, loss) == pytest.approx(total / pixels, rel=1e-5)


def test_a_run_of_eomt_tells_its_cross_entropy(tmp_path, capsys):
    pytest.importorskip("scipy")
    model = {"model.name": "eomt_nano", "model.taps": None, "model.channels": None}
    config = tiny_config(tmp_path / "run", steps=2).replace(model)
    found = train(config)["single_scale"]
    assert "loss" not in found
    assert 0.1 < found["cross_entropy"] < 10
    assert f" %, cross-entropy {found['cross_entropy']:.3f}; " in capsys.readouterr().err

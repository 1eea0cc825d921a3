"""Distillation: the distance from a teacher's predictions, and training with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import setr.estimate as estimating
from setr.cli import main
from setr.config import Config, DistillConfig
from setr.data import scenes
from setr.data.order import BatchOrder, MixedOrder, Share
from setr.data.unlabelled import open_unlabelled
from setr.engine import train
from setr.errors import DATA_CHECK_FAILED, USAGE, SetrError
from setr.estimate import estimate
from setr.hub import from_pretrained, save_pretrained
from setr.images import encode_png
from setr.inference import normalize
from setr.kernels import row_blocks
from setr.kernels.divergence import upsample_divergence
from setr.labels import IGNORE, Labels
from setr.layers.outputs import Output
from setr.losses import count_weight, segmentation_loss
from setr.model_info import ModelInfo
from setr.training.resolved import announce, unlabelled_count, with_steps
from setr.training.run import Run
from setr.training.runfolder import RunFolder
from setr.training.teacher import Taught, Teacher
from setr.writing import write_bytes
from tests.conftest import tiny_config, tiny_model, write_scene_folders
from tests.runs import assert_same_weights, stopped_and_resumed

CPU = torch.device("cpu")
CLASSES = tuple(scenes.CLASSES)
LABELS = Labels(CLASSES)


def taught(config: Config, teacher: Path, **distill: float) -> Config:
    return dataclasses.replace(config, distill=DistillConfig(teacher=str(teacher), **distill))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A model with another decoder, patch size and normalisation than the student."""
    torch.manual_seed(3)
    model = tiny_model("pup", num_classes=len(CLASSES))
    info = ModelInfo(labels=LABELS, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    save_pretrained(tmp_path / "teacher", model, info)
    return tmp_path / "teacher"


# --- the distance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_distance_is_kl_of_resized_logits(monkeypatch, temperature):
    """Against PyTorch's own functions, with several blocks, two resolutions, and a crop."""
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 1 << 12)
    torch.manual_seed(0)
    student = torch.randn(2, 7, 5, 9, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 7, 20, 36)
    target = torch.zeros(2, 37, 70, dtype=torch.uint8)
    target[0, :20], target[1, :, 33:40] = IGNORE, IGNORE
    sizes = (40, 72), (42, 70)

    wanted, found = (
        F.interpolate(x, size=size, mode="bilinear")[..., :37, :70] / temperature
        for x, size in zip((teacher.double(), student), sizes[::-1], strict=True)
    )
    expected = (
        temperature**2
        * F.kl_div(found.log_softmax(1), wanted.log_softmax(1), reduction="none", log_target=True)
        .sum(1)[target != IGNORE]
        .sum()
    )
    (gradient,) = torch.autograd.grad(expected, student)
    value = upsample_divergence(student, teacher, target, *sizes, temperature=temperature)
    (own,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(own, gradient)


def test_equal_predictions_have_no_distance():
    logits = torch.randn(1, 4, 6, 6, requires_grad=True)
    target = torch.zeros(1, 24, 24, dtype=torch.uint8)
    value = upsample_divergence(logits, logits.detach(), target, (24, 24), (24, 24))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-4)
    assert logits.grad.abs().max() < 1e-5


# --- training -------------------------------------------------------------------------------------


def test_a_student_with_the_teachers_weights_has_nothing_to_learn_from_it(tmp_path):
    first = tiny_config(tmp_path / "first", steps=1)
    train(first)
    config = taught(tiny_config(tmp_path / "second", steps=1), tmp_path / "first")
    run = Run(config, RunFolder(Path(config.out)))
    run.model.load_state_dict(from_pretrained(tmp_path / "first")[0].state_dict(), strict=False)
    run.model.eval()
    run.model.train = lambda mode=True: run.model  # batch norm as in the teacher
    images, masks = next(iter(run.source.batches(0)))
    assert run.train_step(images, masks)["distill"] == pytest.approx(0, abs=1e-5)


def test_the_teacher_sees_its_own_normalisation(tmp_path, teacher):
    config = taught(tiny_config(tmp_path / "run"), teacher)
    run = Run(config, RunFolder(Path(config.out)))
    images, masks = next(iter(run.source.batches(0)))
    model, info = from_pretrained(teacher)
    with torch.no_grad():
        pixels = images.permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (info.mean, info.std))
        wanted = model((pixels - mean) / std).log_softmax(1)
        run.model.train()
        state = {k: v.clone() for k, v in run.model.state_dict().items()}
        found = run.model(run.source.inputs(images)).log_softmax(1)
        run.model.load_state_dict(state)
        expected = (wanted.exp() * (wanted - found)).sum() / masks.numel()
    assert run.train_step(images, masks)["distill"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.fixture
def two_teachers(tmp_path: Path, teacher: Path) -> str:
    """Teachers that differ in decoder, patch size and normalisation, as a pattern of folders."""
    model = tiny_model("naive", num_classes=len(CLASSES), encoder_args={
        "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2})  # fmt: skip
    save_pretrained(tmp_path / "teacher2", model, ModelInfo(labels=LABELS))
    return f"{tmp_path}/teach*"


def test_several_teachers_are_their_mean_probabilities(tmp_path, two_teachers):
    config = taught(tiny_config(tmp_path / "run"), Path(two_teachers), temperature=2.0)
    run = Run(config, RunFolder(Path(config.out)))
    images, masks = next(iter(run.source.batches(0)))
    logits = torch.randn(2, len(CLASSES), 8, 8, requires_grad=True)
    wide = F.interpolate(logits, (64, 64), mode="bilinear")
    found, shares, apart = (wide / 2).log_softmax(1), [], []
    for folder in sorted(tmp_path.glob("teach*")):
        model, info = from_pretrained(folder)
        with torch.no_grad():
            wanted = (model(normalize(images, info.mean, info.std)) / 2).log_softmax(1)
        shares.append(wanted.exp())
        apart.append(4 * (wanted.exp() * (wanted - found)).sum() / masks.numel())
    mean = (shares[0] + shares[1]) / 2
    expected = 4 * (mean * (mean.log() - found)).sum() / masks.numel()

    teacher = run.updates.teacher
    counted = torch.zeros_like(masks)
    given = Taught(teacher(images), counted, count_weight(counted))
    value = teacher.loss(Output(logits, [], (64, 64)), given)
    assert value.item() == pytest.approx((apart[0] + apart[1]).item() / 2, rel=1e-4)
    own, wanted = (torch.autograd.grad(x, logits)[0] for x in (value, expected))
    torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-7)


def test_several_teachers_train_and_resume(tmp_path, two_teachers, monkeypatch):
    whole, parts = (
        taught(tiny_config(tmp_path / n, steps=3), Path(two_teachers)) for n in ("a", "b")
    )
    train(whole)
    stopped_and_resumed(parts, monkeypatch, at=2)
    assert_same_weights(whole, parts)


def test_a_student_comes_closer_to_its_teacher(tmp_path, teacher):
    data = write_scene_folders(tmp_path / "data", {"train": 4, "val": 1})
    config = taught(tiny_config(tmp_path / "run", steps=30), teacher, weight=4.0)
    train(config.replace({"data.root": str(data)}))
    lines = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    distances = [line["distill"] for line in lines if "loss" in line]
    assert sum(distances[-5:]) < 0.7 * sum(distances[:5])


def test_micro_batches_add_up(tmp_path, teacher):
    images = torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8)
    masks = torch.randint(9, (4, 64, 64), dtype=torch.uint8)
    values = []
    for accumulate in (1, 2):
        config = tiny_config(tmp_path / str(accumulate), batch_size=4, accumulate=accumulate)
        settings = taught(config, teacher, temperature=2.0, weight=3.0)
        run = Run(settings, RunFolder(Path(config.out)))
        run.model.eval()
        run.model.train = lambda mode=True: None
        values.append(run.train_step(images, masks))
    assert values[0]["distill"] == pytest.approx(values[1]["distill"], rel=1e-5)
    weighted = values[0]["main"] + 3 * values[0]["distill"]
    weighted += 0.4 * sum(v for k, v in values[0].items() if k.startswith("aux_"))
    assert values[0]["loss"] == pytest.approx(weighted, rel=1e-5)


def test_resume_equals_uninterrupted(tmp_path, teacher, monkeypatch):
    whole, parts = (taught(tiny_config(tmp_path / n, steps=3), teacher) for n in ("a", "b"))
    train(whole)
    stopped_and_resumed(parts, monkeypatch, at=2)
    assert_same_weights(whole, parts)


# --- images without labels ------------------------------------------------------------------------


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """Five images, one in a folder of its own, beside files that are none."""
    folder = tmp_path / "unlabelled"
    for i in range(5):
        path = folder / ("deep" if i == 4 else "") / f"photo {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, encode_png(scenes.draw("val", 100 + i, size=48)[0]))
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_text("none")
    for name in (".thumbs", "@eaDir"):
        (folder / name).mkdir()
        (folder / name / "photo 0.png").write_text("none")
    return folder


def with_images(config: Config, teacher: Path, images: Path, **distill: float) -> Config:
    settings = DistillConfig(teacher=str(teacher), images=str(images), **distill)
    return dataclasses.replace(config, distill=settings)


@pytest.mark.parametrize(("size", "count"), [(4, 2), (4, 1), (6, 4), (5, 4)])
def test_every_batch_has_its_share_of_further_images(size, count):
    def orders(start: int, share: Share) -> MixedOrder:
        parts = [
            BatchOrder(length, part, seed=3, start=start, stop=20)
            for length, part in ((7, size - count), (10, count))
        ]
        return MixedOrder(*parts, share)

    batches = list(orders(0, Share(0, 1, 1)))
    assert len(batches) == len(orders(0, Share(0, 1, 1))) == 20
    assert all(sum(index >= 7 for _, index in batch) == count for batch in batches)
    # every image once in each epoch
    extra = [position for batch in batches for position in batch if position[1] >= 7]
    assert sorted(extra[:10]) == [(0, index) for index in range(7, 17)]
    # a resumed run has the same, and processes share them out
    assert list(orders(5, Share(0, 1, 1))) == batches[5:]
    if size % 2 == 0:
        halves = [list(orders(0, Share(rank, 2, 1))) for rank in range(2)]
        assert [a + b for a, b in zip(*halves, strict=True)] == batches


@pytest.mark.parametrize("norm", ["valid", "all"])
def test_images_without_labels_are_seen_by_student_and_teacher(tmp_path, teacher, unlabelled, norm):
    config = tiny_config(tmp_path / "run", batch_size=4).replace({"train.loss_norm": norm})
    config = with_images(config, teacher, unlabelled)
    normalizer = count_weight if norm == "valid" else lambda ids: torch.tensor(ids.numel())
    run = Run(config, RunFolder(Path(config.out)))
    names = run.source.names(0)
    is_photo = ["photo" in name for name in names]
    assert is_photo == [False, True, False, True]
    images, masks = next(iter(run.source.batches(0)))
    truths, counted = run.source.told_apart(masks)
    assert [(truth == IGNORE).all() for truth in truths.numpy()] == is_photo
    assert not counted[::2].any()
    # the labels' loss is that of the labelled ones, the divergence that of all
    run.model.eval()  # holds batch norm still
    run.model.train = lambda mode=True: run.model
    inputs, (own,) = run.source.inputs(images), run.updates.teacher(images)
    with torch.no_grad():
        output = run.model(inputs, with_aux=True)
    main = segmentation_loss(
        Output(output.logits[::2], [], output.size), truths[::2], normalizer=normalizer(truths[::2])
    )["main"]
    sizes = output.size, own.size
    distance = upsample_divergence(output.logits, own.logits, counted, *sizes)
    losses = run.train_step(images, masks)
    assert losses["main"] == pytest.approx(main.item(), rel=1e-5)
    pixels = (counted != IGNORE).sum()
    assert losses["distill"] == pytest.approx((distance / pixels).item(), rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pixels_without_data_are_not_learnt(tmp_path, teacher, accumulate):
    rasterio = pytest.importorskip("rasterio")
    folder = tmp_path / "tiles"
    folder.mkdir()
    for i in range(4):
        pixels = scenes.draw("val", 100 + i, size=64)[0].transpose(2, 0, 1).clip(1)
        pixels[:, : 16 * i] = 0
        profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 3, "dtype": "uint8"}
        profile["transform"] = rasterio.Affine(10, 0, 500_000, 0, -10, 5_400_000)
        with rasterio.open(folder / f"{i}.tif", "w", nodata=0, **profile) as file:
            file.write(pixels)
    config = tiny_config(tmp_path / "run", batch_size=8, accumulate=accumulate)
    config = with_images(config, teacher, folder).replace(
        {"data.scale_range": (1.0, 1.0), "data.flip": 0.0}
    )
    run = Run(config, RunFolder(Path(config.out)))
    images, masks = next(iter(run.source.batches(0)))
    truths, counted = run.source.told_apart(masks)
    assert (truths[1::2] == IGNORE).all()
    empty = (counted[1::2] == IGNORE).sum((1, 2))
    assert sorted(empty.tolist()) == [0, 1024, 2048, 3072]
    run.model.eval()
    run.model.train = lambda mode=True: run.model
    with torch.no_grad():
        found = run.model(run.source.inputs(images)).log_softmax(1)
        own, info = from_pretrained(teacher)
        wanted = own.eval()(normalize(images, info.mean, info.std)).log_softmax(1)
    distance = (wanted.exp() * (wanted - found)).sum(1)
    learnt = run.train_step(images, masks)["distill"]
    assert learnt == pytest.approx(distance[counted != IGNORE].mean().item(), rel=1e-4)


def test_a_run_with_images_is_resumed_bit_for_bit(tmp_path, teacher, unlabelled, monkeypatch):
    whole, parts = (
        with_images(tiny_config(tmp_path / name, steps=3), teacher, unlabelled)
        for name in ("a", "b")
    )
    train(whole)
    stopped_and_resumed(parts, monkeypatch, at=2)
    assert_same_weights(whole, parts)
    (unlabelled / "photo 0.png").rename(unlabelled / "photo 9.png")
    with pytest.raises(SetrError, match=r"cannot resume with other data .*distill\.images\.file"):
        train(parts, resume=True)


def test_epochs_are_passes_over_labelled_images(tmp_path, teacher, unlabelled):
    config = tiny_config(tmp_path / "run", batch_size=8, steps=0, epochs=2.0)
    config = with_images(config, teacher, unlabelled, share=0.25)
    assert with_steps(config, images=12).train.steps == 4  # of 6 labelled images each
    assert with_steps(taught(config, teacher), images=12).train.steps == 3


def test_a_batch_is_compared_with_the_split_by_its_labelled_images(
    tmp_path, teacher, unlabelled, capsys
):
    config = with_images(tiny_config(tmp_path / "run", batch_size=8), teacher, unlabelled)
    announce(config, images=4)
    assert "several crops" not in capsys.readouterr().err
    announce(config, images=3)
    assert "has 3 images; every batch of 4 has several crops" in capsys.readouterr().err


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.7, 3), (0.99, 3)])
def test_no_share_leaves_a_batch_without_images_of_both_kinds(
    tmp_path, teacher, unlabelled, share, count
):
    config = with_images(
        tiny_config(tmp_path / "run", batch_size=4), teacher, unlabelled, share=share
    )
    assert unlabelled_count(config) == count


def test_images_that_cannot_be_used_are_found_before_the_first_step(tmp_path, teacher, unlabelled):
    (unlabelled / "photo 2.png").write_bytes(b"none")
    config = with_images(tiny_config(tmp_path / "run"), teacher, unlabelled)
    with pytest.raises(SetrError, match=r"1 of 5 images cannot be used: .*photo 2\.png") as caught:
        train(config)
    assert caught.value.code == DATA_CHECK_FAILED
    assert not (tmp_path / "run").exists()


def test_images_are_found_as_in_other_folders(tmp_path, unlabelled):
    """Also behind links, and without the thumbnails of network drives."""
    more = tmp_path / "more"
    more.mkdir()
    write_bytes(more / "a.jpg", (unlabelled / "photo 0.png").read_bytes())
    (unlabelled / "linked").symlink_to(more)
    found = open_unlabelled(unlabelled, LABELS, None)
    assert [pair.image.relative_to(unlabelled).as_posix() for pair in found.pairs] == [
        "deep/photo 4.png", "linked/a.jpg", *(f"photo {i}.png" for i in range(4)),
    ]  # fmt: skip


def test_a_batch_of_one_has_no_room_for_both(tmp_path, teacher, unlabelled):
    config = with_images(tiny_config(tmp_path / "run", batch_size=1), teacher, unlabelled)
    with pytest.raises(SetrError, match=r"train\.batch_size 1: give at least 2"):
        train(config)


@pytest.mark.parametrize(("images", "share", "batch"), [(1, 0.5, 2), (1, 0.1, 2), (3, 0.7, 9)])
def test_the_largest_batch_is_limited_by_its_labelled_images(
    tmp_path, teacher, unlabelled, images, share, batch
):
    config = tiny_config(tmp_path / "run", batch="auto")
    config = with_images(config, teacher, unlabelled, share=share)
    found = estimating.with_chosen_batch(config, 9, images, CPU)
    assert found.train.batch_size == batch
    assert batch - unlabelled_count(found) <= images


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_images_is_refused(tmp_path, teacher, folder):
    (tmp_path / "empty").mkdir()
    config = with_images(tiny_config(tmp_path / "run"), teacher, tmp_path / folder)
    with pytest.raises(SetrError, match=r"distill\.images .*: no (such folder|images found here)"):
        train(config)


# --- resuming, estimating -------------------------------------------------------------------------


def test_another_teacher_is_noted_on_resume(tmp_path, teacher, capsys):
    config = taught(tiny_config(tmp_path / "run", steps=2), teacher)
    train(config)
    model, info = from_pretrained(teacher)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_pretrained(tmp_path / "moved", model, info)
    train(taught(tiny_config(tmp_path / "run", steps=3), tmp_path / "moved"), resume=True)
    assert "distill.weights" in capsys.readouterr().err


def test_the_estimate_reads_the_teacher_once(tmp_path, teacher, monkeypatch):
    read = []
    monkeypatch.setattr(
        estimating, "from_pretrained", lambda source: read.append(source) or from_pretrained(source)
    )
    estimating._teacher_arguments.cache_clear()
    config = taught(tiny_config(tmp_path), teacher)
    assert estimating.largest_batch(config, 9, CPU, room=10**10, at_most=12)[0] == 12
    assert len(read) == 1


def test_the_estimate_knows_the_teacher(tmp_path, teacher):
    config = tiny_config(tmp_path / "run")
    alone = estimate(config, 9, CPU)
    both = estimate(taught(config, teacher), 9, CPU)
    weights = sum(p.numel() * p.element_size() for p in from_pretrained(teacher)[0].parameters())
    assert both.parameters - alone.parameters >= weights
    assert both.optimizer == alone.optimizer
    assert both.gradients == alone.gradients
    assert both.logits > alone.logits


def test_the_estimate_knows_all_teachers(tmp_path, two_teachers):
    config = tiny_config(tmp_path / "run")
    one, both = (
        estimate(taught(config, Path(of)), 9, CPU) for of in (tmp_path / "teacher", two_teachers)
    )
    second = from_pretrained(tmp_path / "teacher2")[0]
    weights = sum(p.numel() * p.element_size() for p in second.parameters())
    assert weights <= both.parameters - one.parameters < 1.5 * weights
    assert both.logits > one.logits


# --- what does not fit ----------------------------------------------------------------------------


def refusal(capsys, *options: str) -> str:
    arguments = ["train", "demo", "--data.root", "scenes:8", *options]
    assert main(arguments) == USAGE
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("setr: ")]
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distill.teacher", "nowhere"], "nowhere: no such model directory"),
        (["--distill.weight", "0"], "distill.weight 0: give a positive number"),
        (["--distill.temperature", "-1"], "distill.temperature -1: give a positive number"),
        (["--distill.images", "x"], "distill.images x: learnt from by a teacher; give"),
        (
            ["--distill.teacher", "x", "--distill.images", "x", "--distill.share", "1"],
            "distill.share 1: give a share above 0 and below 1",
        ),
        (
            ["--distill.teacher", "x", "--distill.share", "0.2"],
            "distill.share 0.2: has no effect without --distill.images",
        ),
        (["--distill.weight", "4"], "distill.weight 4: has no effect without --distill.teacher"),
        (
            ["--distill.teacher", "x", "--model.name", "eomt_nano", "--model.channels", "None"],
            "EoMT learns masks",
        ),
        (
            ["--distill.teacher", "x", "--model.freeze", "-1", "--train.cache-features", "once"],
            "a teacher needs the images",
        ),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, capsys, options, message):
    assert message in refusal(capsys, *options, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a", *CLASSES[1:]), f"class 0 is 'a', the data's '{CLASSES[0]}'"),
        (CLASSES[:-1], f"has {len(CLASSES) - 1} classes, the data"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(tmp_path, classes, message):
    info = ModelInfo(labels=Labels(classes))
    save_pretrained(tmp_path / "other", tiny_model("pup", num_classes=len(classes)), info)
    with pytest.raises(SetrError, match=message) as caught:
        train(taught(tiny_config(tmp_path / "run"), tmp_path / "other"))
    assert caught.value.code == USAGE
    assert not (tmp_path / "run").exists()


def test_of_several_teachers_the_one_that_does_not_fit_is_named(tmp_path, teacher):
    info = ModelInfo(labels=Labels(CLASSES[:-1]))
    save_pretrained(tmp_path / "other", tiny_model("pup", num_classes=len(CLASSES) - 1), info)
    both = Path(f"{teacher},{tmp_path / 'other'}")
    with pytest.raises(SetrError, match=f"^distill.teacher {tmp_path / 'other'}: has 8 classes"):
        train(taught(tiny_config(tmp_path / "run"), both))


def test_a_teacher_of_other_bands_is_refused(tmp_path):
    from setr.bands import Bands

    model = tiny_model("pup", num_classes=len(CLASSES), in_chans=4)
    info = ModelInfo(labels=LABELS, mean=(0.5,) * 4, std=(0.2,) * 4, bands=Bands((1, 2, 3, 4)))
    save_pretrained(tmp_path / "other", model, info)
    with pytest.raises(SetrError, match=r"reads .*, the data have RGB"):
        train(taught(tiny_config(tmp_path / "run"), tmp_path / "other"))


def test_a_teacher_computes_without_gradients(monkeypatch):
    """Decoders compute in another way where gradients are asked for."""
    model = tiny_model(num_classes=9)
    teacher = Teacher([(model, ModelInfo(labels=scenes.LABELS))], DistillConfig(), CPU, None)
    asked, coarse = [], model.coarse

    def watched(images: torch.Tensor) -> object:
        asked.append(torch.is_grad_enabled())
        return coarse(images)

    monkeypatch.setattr(model, "coarse", watched)
    with torch.enable_grad():
        teacher(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert asked == [False]

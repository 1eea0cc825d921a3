"""`setr auto`: from a folder to a trained, tested and exported model, stage by stage."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import setr
from setr.cli import main
from setr.commands import auto
from setr.commands.auto import _described, _summary
from setr.commands.auto_settings import chosen_settings
from setr.commands.mixed_words import split_words
from setr.config import Config, DataConfig, DistillConfig, TrainConfig
from setr.data import scenes
from setr.data.scenes import LABELS
from setr.datasets import open_dataset
from setr.doctor import check
from setr.encoder import Encoder
from setr.errors import DATA_CHECK_FAILED, INTERRUPTED, OK, USAGE, SetrError
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.recipes import recipe
from setr.training import plan, timing
from setr.training.plan import Extent, length_choices, scale_choices, seconds_before
from setr.training.teacher import Teacher
from setr.writing import write_bytes
from tests.conftest import tiny_config, tiny_model, write_scene_folders

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TINY = ["--data.workers", "0", "--data.crop-size", "32", "32"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ten drawn scenes without a description; the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "masks"):
        Path("photos", folder).mkdir(parents=True)
    for i in range(10):
        image, mask = scenes.draw("train", i)
        cv2.imwrite(f"photos/images/{i}.png", image[:64, :64, ::-1])
        cv2.imwrite(f"photos/masks/{i}.png", mask[:64, :64])
    return "photos"


def stages(err: str) -> list[str]:
    """The commands it printed."""
    return [line[2:] for line in err.splitlines() if line.startswith("$ ")]


def verbs(err: str) -> list[str]:
    return [line.split()[1] for line in stages(err)]


def test_one_command_leads_from_a_folder_to_an_exported_model(photos, capsys):
    assert main(["auto", photos, "--minutes", "0.02", "--export", "onnx", "--json", *TINY]) == OK
    out, err = capsys.readouterr()
    assert verbs(err) == ["init-data", "doctor", "train", "eval", "export"]
    result = json.loads(out)
    run = Path("runs/photos")
    assert (result["run"], result["split"], result["data"]) == (str(run), "val", photos)
    assert result["exports"] == [str(run / "model.onnx")]
    assert Path(result["report"]).is_file()
    found = json.loads((run / "metrics.json").read_text())
    assert result["metrics"]["single_scale"]["miou"] == found["single_scale"]["miou"]
    photo = cv2.imread("photos/images/0.png")[:, :, ::-1]
    masks = [setr.load(model).predict(photo).mask for model in (run, run / "model.onnx")]
    assert (masks[0] == masks[1]).mean() > 0.99

    # what it printed does the same: the same weights
    (typed,) = [line.split()[1:] for line in stages(err) if line.startswith("setr train")]
    typed[typed.index("--out") + 1] = "runs/again"
    assert main(typed) == OK
    weights = [Path(f"runs/{name}/model.safetensors").read_bytes() for name in ("photos", "again")]
    assert weights[0] == weights[1]

    # again: nothing is left to do
    capsys.readouterr()
    assert main(["auto", photos, "--export", "onnx"]) == OK
    out, err = capsys.readouterr()
    assert verbs(err) == ["doctor"]
    assert "runs/photos: trained already; --overwrite trains again" in err
    assert f"mIoU {100 * found['single_scale']['miou']:.1f}" in out
    assert "older weights" not in err
    # a test that was stopped before it had written its report
    Path(result["report"]).unlink()
    assert main(["auto", photos, "--export", "onnx"]) == OK
    assert verbs(capsys.readouterr().err) == ["doctor", "eval"]
    assert Path(result["report"]).is_file()
    # a newer model: its figures and files are made again, and what else is there is named
    (run / "model.xml").touch()
    time.sleep(0.02)
    os.utime(run / "model.safetensors")
    assert main(["auto", photos, "--export", "onnx"]) == OK
    err = capsys.readouterr().err
    assert verbs(err) == ["doctor", "eval", "export"]
    told = "holds older weights than runs/photos; --export openvino makes it anew"
    assert f"warning: runs/photos/model.xml {told}\n" in err


def test_a_stopped_run_continues_with_its_own_settings(photos, capsys):
    assert main(["auto", photos, "--train.steps", "3", "--export", "torch", *TINY]) == OK
    run = Path("runs/photos")
    figures = (run / "metrics.json").read_bytes()
    (run / "metrics.json").unlink()
    capsys.readouterr()
    assert main(["auto", photos, "--export", "torch"]) == OK
    err = capsys.readouterr().err
    assert "setr train runs/photos --resume" in stages(err)
    assert (
        "runs/photos: goes on with the train.steps 3 it began with, whatever --minutes says" in err
    )
    again = json.loads((run / "metrics.json").read_bytes())
    assert again["single_scale"] == json.loads(figures)["single_scale"]
    # stopped before anything was saved
    for state in (run / "last").iterdir():
        assert state.is_dir()
    (run / "metrics.json").unlink()
    os.rename(run / "last", "elsewhere")
    (run / "last" / ".step-00000002.part").mkdir(parents=True)  # killed in its first save
    assert main(["auto", photos, "--export", "torch"]) == OK
    assert "setr train runs/photos --overwrite" in stages(capsys.readouterr().err)
    assert Config.load(run / "config.yaml").train.steps == 3
    # made longer: the time given does not matter, and nothing says that it does
    (run / "metrics.json").unlink()
    assert main(["auto", photos, "--train.steps", "4", "--export", "torch"]) == OK
    err = capsys.readouterr().err
    assert "setr train runs/photos --train.steps 4 --resume" in stages(err)
    assert "whatever --minutes says" not in err


def test_a_finished_run_is_not_taken_for_one_with_other_settings(photos, capsys, monkeypatch):
    monkeypatch.setattr("setr.commands.auto._export", lambda *_: ([], False))
    tested = ["--train.eval-every", "1"]
    assert main(["auto", photos, "--train.steps", "2", *tested, *TINY]) == OK
    run = Path("runs/photos")
    weights = (run / "model.safetensors").read_bytes()
    capsys.readouterr()

    def refused(*words: str, data: str = photos) -> str:
        code = main(["auto", data, "-o", str(run), *words])
        err = capsys.readouterr().err
        assert (code, verbs(err)) == (USAGE, [])
        assert (run / "model.safetensors").read_bytes() == weights
        return err.splitlines()[-1].removeprefix("setr: runs/photos: was trained with ")

    way = "; add --overwrite to train it again, or choose another folder with -o"
    assert refused("--optim.lr", "0.5", "--train.ema", "0") == (
        "optim.lr 0.003, not 0.5; train.ema 0.99, not 0.0" + way
    )
    assert refused("--train.steps", "1") == "train.steps 2, not 1" + way
    assert refused("--train.patience", "5", *tested) == "train.patience 0, not 5" + way
    assert refused("--data.crop-size", "40", "32") == "data.crop_size 32 32, not 40 32" + way
    assert refused("--train.steps", "4", "--model.freeze", "1").startswith(
        "model.freeze 0, not 1; "
    )
    os.rename(run / "last", "away")  # nothing to continue from
    assert refused("--train.steps", "3") == "train.steps 2, not 3" + way
    os.rename("away", run / "last")
    shutil.copytree(photos, "other")
    assert refused(data="other") == "data.root photos, not other" + way

    os.rename(photos, "moved")
    assert main(["auto", "moved", "-o", str(run)]) == OK
    assert verbs(capsys.readouterr().err) == ["doctor"]
    os.rename("moved", photos)

    # epochs are counted in steps of the run: 4 epochs would be 4 steps, which makes it longer
    with monkeypatch.context() as patch:
        patch.setattr("setr.commands.train.run", lambda words: OK)
        for words in (["--train.epochs", "4"], ["--train.epochs=4"]):
            assert main(["auto", photos, *words]) == OK
            continued = stages(capsys.readouterr().err)[1]
            assert continued == "setr train runs/photos --train.steps 4 --resume"
    assert refused("--train.epochs", "1") == "train.steps 2, not 1" + way

    # the same settings, and such without effect, are those it was trained with
    words = ["--train.steps", "2", "--train.samples", "1", "--data.workers", "1"]
    # 2 epochs of 8 images in batches of 8 are 2 steps
    epochs = [photos, "--train.epochs", "2"]
    for same in ([photos], ["photos/data.yaml"], [photos, *words], epochs):
        assert main(["auto", *same]) == OK
        err = capsys.readouterr().err
        assert verbs(err) == ["doctor"]
        assert "runs/photos: trained already" in err
    # made longer
    longer = ["--train.steps", "3", "--train.patience", "5", *tested]
    assert main(["auto", photos, *longer]) == OK
    again = f"setr train runs/photos {' '.join(longer)} --resume"
    assert again in stages(capsys.readouterr().err)
    assert json.loads((run / "metrics.json").read_text())["steps"] == 3


def test_the_test_split_is_tested_if_it_has_masks(photos, capsys):
    assert main(["init-data", photos]) == OK
    listed = Path(photos, "val.txt").read_text().splitlines()
    Path(photos, "test.txt").write_text(listed[0] + "\n")
    yaml = Path(photos, "data.yaml")
    yaml.write_text(yaml.read_text().replace("val: val.txt\n", "val: val.txt\ntest: test.txt\n"))
    assert len(open_dataset(photos, "test")) == 1
    arguments = ["auto", photos, "--train.steps", "1", "--export", "torch", "-o", "runs/t", *TINY]
    assert main(arguments) == OK
    assert "setr eval runs/t photos --split test" in stages(capsys.readouterr().err)


def test_masks_of_a_test_split_may_be_blank():
    """As where nobody may see the labels."""
    result = {"split": "test", "run": "runs/t", "report": "report.html", "exports": []}
    result["metrics"] = {"single_scale": {"miou": None, "pixel_accuracy": None}}
    assert _summary(result).startswith("\ntest: its masks have no labelled pixel (report.html)\n")


def test_figures_older_than_the_model_are_not_shown():
    """As when a clock was set back."""
    result = {"split": "val", "run": "runs/t", "report": "report.html", "exports": []}
    assert "val: no figures newer than the model" in _summary({**result, "metrics": {}})


def test_an_export_that_fails_leaves_the_rest(photos, capsys, monkeypatch):
    from setr.commands import export
    from setr.errors import SetrError

    def refused(words):
        raise SetrError("logits differ")

    monkeypatch.setattr(export, "run", refused)
    assert main(["auto", photos, "--train.steps", "1", "--export", "torch", *TINY]) == 1
    out, err = capsys.readouterr()
    assert "model.pt2 was not written: logits differ" in err
    assert "runs/photos: the model" in out
    assert "model.pt2" not in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("", USAGE, "DATA is missing"),
        ("nowhere", USAGE, "nowhere: no such file or folder"),
        ("photos --minutes 0", USAGE, "--minutes 0.0: give a positive number"),
        ("photos --minutes nan", USAGE, "--minutes nan: give a positive number"),
        ("photos --minutes 9 --train.steps 9", USAGE, "--minutes 9.0: has no effect beside"),
        ("photos --train.sseed 1", USAGE, "did you mean --train.seed?"),
        ("photos --optim.lr -1", USAGE, "--optim.lr -1: give a positive"),
        ("--train.seed 1 photos", USAGE, "auto needs the data before --train.seed"),
        ("photos --data.root x", USAGE, "--data.root: give it as DATA"),
        ("photos --resume", USAGE, "--resume: give the same command again"),
        ("photos --json --serve", USAGE, "--json and --serve: give one of them"),
        ("photos --export coreml", USAGE, "--export coreml: give one of onnx, openvino, torch"),
        ("photos --model.pretrained none.pth", USAGE, "none.pth: no such weight file"),
        ("photos/masks", DATA_CHECK_FAILED, "photos/masks: no image folder"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_trained(photos, capsys, words, code, message):
    assert main(["auto", *words.split()]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "train" not in verbs(err)
    assert not Path("runs").exists()


def test_a_yaml_file_of_outlines_is_taken_for_its_folder(photos, capsys):
    shutil.rmtree(Path(photos, "masks"))
    Path(photos, "labels").mkdir()
    for i in range(10):
        write_bytes(Path(photos, f"labels/{i}.txt"), b"0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    given = Path(photos, "data.yaml")
    given.write_text("path: .\ntrain: images\nval: images\nnames: [road]\n")
    wanted = DataConfig(root=str(given))
    drawn = str(Path(photos, "setr.yaml"))
    assert _described(wanted) == drawn
    assert stages(capsys.readouterr().err) == [f"setr init-data {photos}"]
    assert _described(wanted) == _described(DataConfig(root=photos)) == drawn
    assert stages(capsys.readouterr().err) == []


def test_a_yaml_file_of_outlines_elsewhere_is_taken_for_the_folder_it_names(photos, capsys):
    shutil.rmtree(Path(photos, "masks"))
    Path(photos, "labels").mkdir()
    for i in range(10):
        write_bytes(Path(photos, f"labels/{i}.txt"), b"0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    given = Path("elsewhere.yaml")
    given.write_text(f"path: {photos}\ntrain: images\nval: images\nnames: [road, car]\n")
    for ran in ([f"setr init-data {given}"], []):
        assert _described(DataConfig(root=str(given))) == photos
        assert stages(capsys.readouterr().err) == ran
    assert '0: "road"' in Path(photos, "data.yaml").read_text()


def test_a_yaml_file_of_masks_is_read_as_it_is(photos, capsys):
    given = Path(photos, "data.yaml")
    names = ", ".join(LABELS.classes)
    given.write_text(f"path: .\ntrain: images\nval: images\nmasks_dir: masks\nnames: [{names}]\n")
    assert _described(DataConfig(root=str(given))) == str(given)
    assert stages(capsys.readouterr().err) == []


def test_data_that_training_would_refuse_stops_it(photos, capsys):
    assert main(["init-data", photos]) == OK
    Path(photos, "masks/3.png").write_bytes(b"")
    capsys.readouterr()
    assert main(["auto", photos]) == DATA_CHECK_FAILED
    assert "`setr doctor` stopped this" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_launcher_is_sent_to_train(photos, capsys, monkeypatch):
    launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "2000"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert main(["auto", photos]) == USAGE
    assert "auto is one process" in capsys.readouterr().err


def test_a_shell_or_a_script_inside_a_slurm_job_is_one_process(photos, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert main(["auto", photos, "--data.root", "x"]) == USAGE
    assert main(["auto", "nowhere"]) == USAGE
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "2000"}
    for name, value in one.items():  # as torchrun with one process sets them
        monkeypatch.setenv(name, value)
    assert main(["auto", "nowhere"]) == USAGE
    assert "nowhere: no such file or folder" in capsys.readouterr().err


def test_what_was_typed_is_kept_and_known(photos, monkeypatch):
    """Also where the choice is the opposite, as `no-aux` of `aux`."""
    sides = []

    def choices(*_: object, short_side: int | None, **__: object) -> plan.Choices:
        sides.append(short_side)
        return {"model.no-aux": (), "train.batch-size": (4,)}

    monkeypatch.setattr(plan, "scale_choices", choices)
    assert main(["init-data", photos]) == OK

    def chosen(*typed: str) -> list[str]:
        settings = ["--train.steps", "2", *TINY, *typed]
        return chosen_settings(photos, Path("runs/x"), settings, minutes=1.0)

    words = chosen("--model.aux", "--data.short-side", "48")
    assert "--model.no-aux" not in words
    assert words[words.index("--train.batch-size") + 1] == "4"
    assert "--model.no-aux" in chosen()
    assert sides == [48, None]


def test_settings_of_the_training_are_told_from_its_own_options():
    words = "data --optim.lr 1e-3 --model.freeze -1 --json --data.crop-size 32 32 -o runs/x"
    own, settings = split_words(words.split(), "auto", "DATA")
    assert own == ["data", "--json", "-o", "runs/x"]
    assert settings == [*words.split()[1:5], "--data.crop-size", "32", "32"]


@pytest.mark.parametrize(
    ("name", "short", "device", "crop", "resized"),
    [
        ("finetune", 360, CPU, 350, None),  # a multiple of 14
        ("finetune", 3000, CPU, 364, 448),
        ("finetune", 3000, GPU, 448, 672),
        ("finetune", 100, GPU, 224, 224),  # patches of small images would be few
        ("scratch", 128, CPU, 128, None),
        ("scratch", 1080, CPU, 192, 256),
        ("scratch", 20, GPU, 96, 96),
    ],
)
def test_images_and_crops_have_sizes_that_the_device_can_train(name, short, device, crop, resized):
    patch = 14 if name == "finetune" else 8
    chosen = scale_choices(name, Extent(50, short, 2 * short), device, patch=patch)
    assert chosen["data.crop-size"] == (crop, crop)
    assert chosen.get("data.short-side") == (resized and (resized,))


def test_only_fine_tuning_on_a_cpu_has_a_smaller_batch_and_no_auxiliary_heads():
    data = Extent(50, 360, 480)
    for name, device, smaller in (
        ("finetune", CPU, {"model.no-aux": (), "train.batch-size": (4,)}),
        ("finetune", GPU, {}),
        ("scratch", CPU, {}),
    ):
        chosen = scale_choices(name, data, device, patch=14)
        assert {key: chosen[key] for key in chosen if not key.startswith("data.")} == smaller


def test_the_extent_of_a_split_is_that_of_its_readable_images(tmp_path):
    root = write_scene_folders(tmp_path, {"train": 5})
    for i, side in enumerate((30, 40, 60)):
        for kind, shape in (("images", (side, 100, 3)), ("labels", (side, 100))):
            write_bytes(
                root / kind / "train" / f"scene_{i:03d}.png", encode_png(np.zeros(shape, np.uint8))
            )
    for i in (3, 4):
        (root / "images" / "train" / f"scene_{i:03d}.png").write_bytes(b"")
    assert plan.extent(check(open_dataset(str(root), "train"))) == Extent(5, 40, 100)


def test_a_crop_is_no_larger_than_images_of_the_side_given():
    chosen = scale_choices("finetune", Extent(50, 900, 1200), CPU, patch=14, short_side=240)
    assert chosen["data.crop-size"] == (238, 238)


def test_steps_fit_the_time_and_the_images():
    config = recipe("finetune")

    def chosen(images=1000, config=config, minutes=10.0, step=1.0, **seconds):
        seconds = {"minutes": minutes, "step": step, "test": 1.0, **seconds}
        return length_choices(config, Extent(images, 64, 64), **seconds)

    assert chosen()["train.steps"] == (450,)  # three quarters of 600 s
    assert chosen(step=0.001)["train.steps"] == (12_500,)  # 100 epochs of 125 steps
    assert chosen(images=20, step=0.001)["train.steps"] == (2000,)
    assert chosen(images=10**6, step=0.0001)["train.steps"] == (40_000,)
    assert chosen(minutes=0.001)["train.steps"] == (1,)
    assert chosen()["train.eval-every"] == (90,)
    assert chosen(before=1.0)["train.eval-every"] == (90,)  # of 449 steps: five tests, not six
    assert chosen(test=22.4)["train.eval-every"] == (90,)  # four take less than 15 % of 600 s
    assert chosen(test=22.6)["train.eval-every"] == (0,)
    patient = dataclasses.replace(config.train, patience=3)  # which counts tests
    assert chosen(config=dataclasses.replace(config, train=patient), test=60.0)[
        "train.eval-every"
    ] == (90,)
    assert chosen(before=150.0)["train.steps"] == (300,)
    assert chosen(before=1000.0)["train.steps"] == (1,)
    assert chosen(step=2.0)["optim.warmup-steps"] == (22,)
    assert chosen(step=0.1)["optim.warmup-steps"] == (100,)  # the recipe's
    # the average spans a tenth of the steps, at most the recipe's
    assert chosen()["train.ema"] == (0.9778,)
    assert config.train.ema == 0.999
    assert chosen(step=0.01)["train.ema"] == (0.999,)
    # saved and logged often enough in short runs, and not too often in long ones
    short = chosen(minutes=0.001)
    assert (short["train.ema"], short["train.eval-every"]) == ((0.5,), (0,))
    assert (short["train.save-every"], short["train.log-every"]) == ((1,), (1,))
    assert (chosen()["train.save-every"], chosen()["train.log-every"]) == ((90,), (22,))
    long = chosen(step=0.01)
    assert (long["train.save-every"], long["train.log-every"]) == ((1000,), (50,))


def test_pretrained_models_that_see_each_image_rarely_get_milder_augmentation():
    config = recipe("finetune")
    weights = dataclasses.replace(config.model, pretrained="lvd142m")
    pretrained = dataclasses.replace(config, model=weights)
    seconds = {"minutes": 10.0, "step": 1.0, "test": 1.0}  # 450 steps of 8

    def chosen(config, images):
        return length_choices(config, Extent(images, 64, 64), **seconds)

    few = chosen(pretrained, 361)
    assert few["data.scale-range"] == (0.75, 1.5)
    assert few["data.no-photometric"] == ()
    assert not {"data.scale-range", "data.no-photometric"} & chosen(pretrained, 360).keys()
    assert "data.scale-range" not in chosen(config, 361)


def test_the_time_of_a_step_is_measured_on_the_settings(monkeypatch):
    config = recipe("scratch")
    data = open_dataset("scenes:10", "train")
    seen = []

    def step(self, done, images, masks):
        seen.append((done, tuple(images.shape), tuple(masks.shape), int(masks.max())))
        return {}

    monkeypatch.setattr(timing.Updates, "step", step)
    steps = 0.0, 1.0, 10.0, 13.0, 20.0, 22.0, 30.0, 34.0  # the first does not count
    images = 0.0, 0.1, 1.0, 1.8, 2.0, 2.5, 3.0, 3.7
    times = iter([*steps, *images])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(times))
    found = timing.measure(config, data, CPU)
    assert found.step == pytest.approx(2.0 * timing.LOADING)
    assert found.image == pytest.approx(0.5 * timing.LOADING)
    assert [s[:3] for s in seen] == [(i, (8, 192, 192, 3), (8, 192, 192)) for i in range(4)]
    assert max(s[3] for s in seen) == 8  # of nine classes


def test_the_time_of_a_step_has_its_teacher_in_it(tmp_path, monkeypatch):
    save_pretrained(tmp_path / "teacher", tiny_model(num_classes=9), ModelInfo(labels=LABELS))
    teacher = DistillConfig(teacher=str(tmp_path / "teacher"))
    config = dataclasses.replace(tiny_config(tmp_path / "run"), distill=teacher)
    asked = []
    original = Teacher.__call__
    monkeypatch.setattr(
        Teacher, "__call__", lambda self, pixels: asked.append(pixels) or original(self, pixels)
    )
    timing.measure(config, open_dataset("scenes:10", "train"), CPU)
    assert len(asked) == 4  # a pass in every step
    assert asked[0].shape == (config.train.batch_size, 64, 64, 3)


def test_the_time_of_a_step_has_its_recomputation_in_it(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(SETR, "set_grad_checkpointing", lambda self: asked.append(self))
    for recomputed in (False, True):
        config = tiny_config(tmp_path / "run", grad_checkpointing=recomputed)
        timing.measure(config, open_dataset("scenes:10", "train"), CPU)
        assert len(asked) == recomputed


def frozen(config: Config, kind: str) -> Config:
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, freeze=-1),
        train=dataclasses.replace(config.train, cache_features=kind),
    )


@pytest.mark.parametrize("kind", ["once", "flip"])
def test_the_time_of_a_step_on_stored_features_has_no_encoder_in_it(tmp_path, monkeypatch, kind):
    config = frozen(tiny_config(tmp_path / "run"), kind)
    passes = []
    original = Encoder.forward

    def forward(self, images):
        passes.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Encoder, "forward", forward)
    timing.measure(config, open_dataset("scenes:10", "train"), CPU)
    assert passes == [1] * 5  # for the features' shape, and to time an image
    assert seconds_before(config, Extent(7, 64, 64), 2.0) == {"once": 14.0, "flip": 28.0}[kind]
    plain = dataclasses.replace(config, train=TrainConfig())
    assert seconds_before(plain, Extent(7, 64, 64), 2.0) == 0.0


def test_a_batch_that_is_chosen_later_is_timed(photos, capsys, monkeypatch):
    sizes = []
    original = timing.measure

    def measured(config, *arguments):
        sizes.append(config.train.batch_size)
        return original(config, *arguments)

    monkeypatch.setattr(timing, "measure", measured)
    words = ["--train.batch", "auto", "--minutes", "0.02", "--export", "torch", *TINY]
    assert main(["auto", photos, *words]) == OK
    run = Config.load(Path("runs/photos/config.yaml"))
    assert sizes == [run.train.batch_size]


def test_an_export_that_is_interrupted_ends_the_command(tmp_path, monkeypatch):
    """Else Ctrl-C would only begin the next format, and the server."""
    (tmp_path / "model.safetensors").touch()

    def interrupted(*_: str) -> None:
        raise SetrError("interrupted", code=INTERRUPTED)

    monkeypatch.setattr(auto, "_stage", interrupted)
    with pytest.raises(SetrError, match="interrupted"):
        auto._export(auto.Arguments("photos", export=("torch", "onnx")), tmp_path)

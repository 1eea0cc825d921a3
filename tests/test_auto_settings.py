"""What `setr auto` chooses, to the word: from the images, the time, and what was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

import setr
from setr.commands.auto_settings import chosen_settings, has_length
from setr.config import Config
from setr.protocols import Protocol
from setr.training import build, timing
from setr.training.plan import Extent, seconds_per_test, shrinking
from setr.training.timing import Timing

SCENES = "scenes:40"
"""40 images of 128x128 for training, and 4 for validation."""
LENGTH = {"--train.steps": "900", "--optim.warmup-steps": "50", "--train.ema": "0.9889",
          "--train.eval-every": "180", "--train.save-every": "180",
          "--train.log-every": "45"}  # fmt: skip
"""Of 900 steps: three quarters of ten minutes, half a second each."""


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The settings that were timed, of which each step took 0.5 s and each image 0.25 s."""
    seen: list[Config] = []

    def measure(config, *_):
        seen.append(config)
        return Timing(0.5, 0.25)

    monkeypatch.setattr(timing, "measure", measure)
    return seen


def chosen(*settings: str, minutes: float = 10.0) -> list[str]:
    """The words after `setr train`."""
    return chosen_settings(SCENES, Path("runs/x"), settings, minutes=minutes)


def values(words: list[str]) -> dict[str, str]:
    """The values of each option; an option is there once."""
    found: dict[str, str] = {}
    for word in words[1:]:
        if word.startswith("--"):
            option, _, value = word.partition("=")
            assert option not in found, words
            found[option] = value
        else:
            found[option] = f"{found[option]} {word}".strip()
    return found


def named(word: str) -> str:
    """The setting of an option, whichever way it is written."""
    return word.partition("=")[0].replace("_", "-").replace(".no-", ".")


def test_a_model_from_random_weights(timed, capsys):
    words = chosen()
    assert words[0] == "scratch"
    own = {"--data.root": SCENES, "--out": "runs/x", "--data.crop-size": "128 128"}
    assert values(words) == own | LENGTH
    said = "a step takes about 0.5 s here and a test about 1 s: 900 steps, 7.5 minutes"
    assert capsys.readouterr().err.splitlines()[-1] == said
    (config,) = timed
    assert (config.data.crop_size, config.train.batch_size) == ((128, 128), 8)


def test_pretrained_weights_are_fine_tuned(timed, monkeypatch):
    monkeypatch.setattr(build, "require_buildable", lambda *_, **__: None)
    words = chosen("--model.pretrained", "weights.pth", "--train.device", "cpu")
    assert words[0] == "finetune"
    found = values(words)
    assert found == {
        "--data.root": SCENES,
        "--out": "runs/x",
        "--data.crop-size": "224 224",
        "--data.short-side": "224",  # the images have 128
        "--model.no-aux": "",
        "--train.batch-size": "4",
        **(LENGTH | {"--optim.warmup-steps": "90"}),
        "--model.pretrained": "weights.pth",
        "--train.device": "cpu",
    }
    (config,) = timed
    assert (config.data.short_side, config.train.batch_size, config.model.aux) == (224, 4, False)
    # few passes: 90 steps of 4 crops for 40 images
    milder = values(chosen("--model.pretrained", "weights.pth", minutes=1.0))
    assert milder["--data.scale-range"] == "0.75 1.5"
    assert milder["--data.no-photometric"] == ""


@pytest.mark.parametrize(
    "typed",
    [
        "--data.crop-size 56 56",
        "--data.short-side 100",
        "--model.aux",
        "--model.no-aux",
        "--train.batch-size 2",
        "--train.batch_size=2",
        "--optim.warmup-steps 3",
        "--train.ema 0",
        "--train.eval-every 7",
        "--train.save-every 3",
        "--train.log_every 2",
        "--data.scale-range 1 1",
        "--data.photometric",
        "--data.no-photometric",
    ],
)
def test_what_is_typed_is_not_chosen(timed, monkeypatch, typed):
    monkeypatch.setattr(build, "require_buildable", lambda *_, **__: None)
    words = chosen("--model.pretrained", "weights.pth", *typed.split(), minutes=1.0)
    assert words[-len(typed.split()) :] == typed.split()
    names = [named(word) for word in words if word.startswith("--")]
    assert len(names) == len(set(names))


def test_crops_fit_into_images_of_a_typed_side(timed):
    assert values(chosen("--data.short-side", "100"))["--data.crop-size"] == "96 96"
    assert timed[0].data.short_side == 100


@pytest.mark.parametrize("length", ["--train.steps 7", "--train.epochs 2", "--train.steps=7"])
def test_a_length_is_not_timed(timed, length):
    words = values(chosen(*length.split()))
    assert not timed
    assert has_length(length.split())
    assert not LENGTH.keys() - {"--train.steps"} & words.keys()
    assert words["--data.crop-size"] == "128 128"


def test_what_is_timed_has_the_settings_of_the_run(timed):
    chosen("--train.precision", "bf16", "--train.batch", "auto", "--train.accumulate", "2")
    (config,) = timed
    assert (config.train.precision, config.train.batch) == ("bf16", "fixed")
    assert config.train.accumulate == 2


def test_features_are_stored_before_the_steps(timed, capsys):
    words = ["--model.freeze", "-1", "--train.cache-features", "once", "--data.fraction", "0.5"]
    assert values(chosen(*words))["--train.steps"] == "890"  # 20 images take 5 s
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("the encoder's features take about 5 s, a step takes about 0.5 s here")
    assert said.endswith(": 890 steps, 7.5 minutes")


@pytest.mark.parametrize(
    "windows",
    ["--eval.window 64 64 --eval.stride 32 32", "--eval.protocol paper-ss"],
    ids=["typed", "named"],
)
def test_a_test_in_windows_takes_longer(timed, capsys, windows):
    chosen("--data.crop-size", "64", "64", *windows.split())  # 9 windows on each of 4 images
    assert "and a test about 9 s" in capsys.readouterr().err


def test_the_time_of_a_test_follows_from_its_pixels():
    whole, crop = Protocol(), (192, 192)
    assert seconds_per_test(whole, crop, Extent(16, 192, 192), 0.5) == pytest.approx(8.0)
    assert seconds_per_test(whole, crop, Extent(16, 384, 384), 0.5) == pytest.approx(32.0)
    sliding = Protocol(window=(192, 192), stride=(96, 96))
    assert seconds_per_test(sliding, crop, Extent(16, 384, 384), 0.5) == pytest.approx(16 * 9 * 0.5)
    assert seconds_per_test(sliding, crop, Extent(16, 96, 192), 0.5) == pytest.approx(4.0)
    apart = Protocol(window=(192, 96))  # without a stride: 2 x 4 windows that do not overlap
    assert seconds_per_test(apart, crop, Extent(16, 384, 384), 0.5) == pytest.approx(32.0)
    # resized to half the short side: 192 x 288, and with a limit 128 x 192
    half = Protocol(short_side=192)
    assert seconds_per_test(half, crop, Extent(16, 384, 576), 0.5) == pytest.approx(12.0)
    limited = Protocol(short_side=192, long_side=192)
    assert seconds_per_test(limited, crop, Extent(16, 384, 576), 0.5) == pytest.approx(16 / 3)


def test_images_that_are_scaled_to_half_or_less_are_told():
    config = setr.recipe("finetune").replace({"data.short_side": 448, "data.crop_size": (364, 364)})
    said = shrinking(config, Extent(300, 1536, 2048), 14)
    assert "a patch of the encoder then covers 48 of their pixels a side" in said
    assert "thinner than about 4 may vanish" in said
    assert "--data.short-side 1536 --eval.window 364 364" in said
    assert shrinking(config, Extent(300, 895, 1200), 14) == ""
    assert shrinking(setr.recipe("finetune"), Extent(300, 1536, 2048), 14) == ""

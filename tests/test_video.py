"""Videos: frames in, overlay video and frame masks out, one frame in memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from setr import scenes
from setr.cli import main
from setr.errors import FAILED, OK, USAGE, SetrError
from setr.files import write_bytes
from setr.filming import predict_video
from setr.hub import ModelInfo, save_pretrained
from setr.images import encode_png
from setr.masks import read_mask
from setr.predictor import Predictor
from setr.video import VideoReader, VideoWriter, frames
from tests.conftest import tiny_model

RATE, COUNT = 12.5, 5


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = tiny_model(num_classes=len(scenes.CLASSES))
    return Predictor(model, ModelInfo(labels=scenes.LABELS), precision="fp32")


def write_clip(path: Path, count: int = COUNT, size: tuple[int, int] = (48, 64)) -> Path:
    with VideoWriter(path, RATE) as writer:
        for i in range(count):
            writer.add(scenes.draw("video", i, size=max(size))[0][: size[0], : size[1]])
    return path


def test_frames_come_back(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    with VideoReader(clip) as reader:
        assert (reader.rate, reader.announced) == (RATE, COUNT)
    found = list(frames(clip))
    assert len(found) == COUNT
    for i, frame in enumerate(found):
        drawn = scenes.draw("video", i, size=64)[0][:48].astype(int)
        assert abs(frame - drawn).mean() < 12  # lossy
        assert abs(frame - drawn).mean() < abs(frame[..., ::-1] - drawn).mean()  # RGB, not BGR


def test_overlay_video_and_masks_of_frames(predictor, tmp_path):
    clip, seen = write_clip(tmp_path / "clip.mp4", size=(47, 63)), []
    report = predict_video(
        predictor,
        clip,
        tmp_path / "out" / "clip",
        ("overlay", "color", "mask", "share"),
        on_frame=lambda done, announced: seen.append((done, announced)),
    )
    out = tmp_path / "out"
    assert report.files == [out / "clip_overlay.mp4", out / "clip_color.mp4", out / "clip"]
    assert (report.frames, report.announced) == (COUNT, COUNT)
    assert seen == [(i, COUNT) for i in range(1, COUNT + 1)]
    assert sum(report.shares.values()) == pytest.approx(1)
    masks = sorted((out / "clip").glob("*.png"))
    assert [m.name for m in masks] == [f"{i:06d}.png" for i in range(1, COUNT + 1)]
    overlays = list(frames(out / "clip_overlay.mp4"))
    for path, frame, overlay in zip(masks, frames(clip), overlays, strict=True):
        result = predictor.predict(frame)
        np.testing.assert_array_equal(read_mask(path), result.mask)
        assert overlay.shape == frame.shape
        assert abs(overlay.astype(int) - result.overlay()).mean() < 12
    share = json.loads((out / "clip" / "000002_share.json").read_text())
    assert share["image"] == f"{clip}#2"
    assert not list(out.glob(".*"))


def test_memory_does_not_grow_with_the_length(predictor, tmp_path):
    peaks, side = [], 128  # a frame then outweighs what Python keeps of small objects
    for count in (4, 24):
        clip = write_clip(tmp_path / f"{count}.mp4", count, (side, side))
        predict_video(predictor, clip, tmp_path / "warm")
        tracemalloc.start()
        predict_video(predictor, clip, tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2 * side * side * 3


def test_what_is_no_video_is_refused(predictor, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, reason in (
        ("text.mp4", "not a video"), ("empty.mp4", "empty"), ("gone.mp4", "no such file"),
    ):  # fmt: skip
        with pytest.raises(SetrError, match=rf"{name}: .*{reason}"):
            predict_video(predictor, tmp_path / name, tmp_path / "out" / "x")
    assert not list((tmp_path / "out").glob("**/*"))


def test_an_error_leaves_no_half_video(predictor, tmp_path, monkeypatch):
    clip, calls = write_clip(tmp_path / "clip.mp4"), []

    def failing(frame: np.ndarray) -> object:
        calls.append(frame)
        if len(calls) == 3:
            raise SetrError("broken here")
        return Predictor.predict(predictor, frame)

    monkeypatch.setattr(predictor, "predict", failing)
    with pytest.raises(SetrError, match="broken here"):
        predict_video(predictor, clip, tmp_path / "out" / "clip")
    assert not list((tmp_path / "out").iterdir())


def test_a_video_from_the_command_line(predictor, tmp_path, capsys):
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    clip, out = write_clip(tmp_path / "clip.mp4"), tmp_path / "out"
    (tmp_path / "bad.avi").write_bytes(b"RIFF")
    command = ["predict", str(tmp_path / "model"), "-o", str(out)]
    assert main([*command, str(clip)]) == OK
    assert f"{COUNT} frames" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["clip_overlay.mp4", "manifest.jsonl"]
    assert len(list(predictor.predict_all(str(clip)))) == COUNT
    code = main([*command, str(tmp_path / "*.avi"), str(clip), "--save", "mask", "--json"])
    captured = capsys.readouterr()
    assert code == FAILED
    answer = json.loads(captured.out)["images"]
    assert "not a video" in answer[0]["error"]
    assert answer[1]["files"] == [str(out / "clip")]
    assert len(list((out / "clip").glob("*.png"))) == COUNT
    assert main([*command, str(clip), "--save", "mask"]) == OK  # the same as before: nothing to do
    assert "1 of 1 images were done before" in capsys.readouterr().err
    assert cv2.VideoCapture(str(out / "clip_overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == COUNT


def test_no_input_is_overwritten_by_a_video_or_its_frames(predictor, tmp_path, monkeypatch, capsys):
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    write_clip(tmp_path / "clip.mp4")
    write_clip(tmp_path / "clip_overlay.mp4")
    (tmp_path / "clip").mkdir()
    write_bytes(tmp_path / "clip" / "000001.png", encode_png(scenes.draw("video", 0)[0]))
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for images, options in (
        (("clip.mp4", "clip_overlay.mp4"), ()),
        (("clip.mp4", "clip/000001.png"), ("--save", "mask")),
    ):
        assert main(["predict", "model", *images, "-o", ".", *options]) == USAGE
        assert "is an input that this run would replace" in capsys.readouterr().err
    (tmp_path / "in" / "clip").mkdir(parents=True)
    write_bytes(tmp_path / "in" / "clip" / "000001.jpg", encode_png(scenes.draw("video", 0)[0]))
    assert main(["predict", "model", "clip.mp4", "in", "-o", "out", "--save", "mask"]) == USAGE
    assert "would both write clip;" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in before} == before
    assert not (tmp_path / "out").exists()

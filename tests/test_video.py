"""Videos: frames in, overlay video and frame masks out, few frames in memory."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import signal
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from setr.cli import main
from setr.data import scenes
from setr.errors import FAILED, INTERRUPTED, OK, USAGE, SetrError
from setr.hub import save_pretrained
from setr.images import encode_png
from setr.prediction import video
from setr.prediction.filming import predict_video
from setr.prediction.streams import Stream, predict_stream
from setr.prediction.video import VideoReader, VideoWriter
from setr.predictor import Predictor
from setr.processes.progress import Progress
from setr.reading.masks import read_mask
from setr.writing import write_bytes
from tests.conftest import frames, scene_predictor

RATE, COUNT = 12.5, 5


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return scene_predictor()


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


INTERLACED = base64.b64decode(
    "AAABswEAEBP//+AYAAABtRSCAAEAAAAAAbgACABAAAABAAAP//gAAAG1j//zAAAAAAEBQ3g6UpEQAAABAkN4OlKREAAA"
    "AbMBABAT///gGAAAAbUUggABAAAAAAG4AAgAwAAAAQAAD//4AAABtY//8wAAAAABAUNmpSkRAAAAAQJDZqUpEQAAAAGz"
    "AQAQE///4BgAAAG1FIIAAQAAAAABuAAIAUAAAAEAAA//+AAAAbWP//MAAAAAAQFDerpSkRAAAAECQ3q6UpEQ"
)
"""Three frames of 16x16 in MPEG-2, of greys 60, 119 and 180."""


@pytest.mark.parametrize("count", [1, 3])
def test_an_interlaced_video_is_read_rightly_or_refused(count, tmp_path):
    """OpenCV from 4.13 on gives what its memory held before."""
    start = b"\x00\x00\x01\xb3"
    pictures = [start + part for part in INTERLACED.split(start)[1 : 1 + count]]
    (tmp_path / "tv.mpg").write_bytes(b"".join(pictures))
    found: object = None
    with contextlib.suppress(SetrError):
        found = [frame.mean() for frame in frames(tmp_path / "tv.mpg")]
    assert found in (None, pytest.approx([60, 119, 180][:count], abs=2))


def test_frames_behind_a_damaged_one_are_read(tmp_path, monkeypatch):
    """OpenCV says of a damaged packet of H.264 what it says of the end, and reads on if asked."""

    class Damaged:
        def __init__(self, file: cv2.VideoCapture) -> None:
            self.file, self.asked = file, 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def read(self) -> tuple[bool, np.ndarray | None]:
            self.asked += 1
            found, frame = self.file.read()
            return (False, None) if self.asked in (1, 3, 4) else (found, frame)

    clip = write_clip(tmp_path / "clip.mp4")
    whole = list(frames(clip))
    monkeypatch.setattr(
        video, "open_file", lambda path, opened=video.open_file: Damaged(opened(path))
    )
    found = list(frames(clip))
    assert [(one == two).all() for one, two in zip(found, [whole[1], whole[4]], strict=True)] == [
        True
    ] * 2


class Timed:
    """A capture whose frames have other times, in milliseconds."""

    def __init__(self, file: cv2.VideoCapture, times: list[float]) -> None:
        self.file, self.times, self.asked = file, times, -1

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.asked += 1
        return self.file.read()

    def get(self, what: int) -> float:
        is_time = what == cv2.CAP_PROP_POS_MSEC
        return self.times[self.asked] if is_time else self.file.get(what)


@pytest.mark.parametrize(
    ("name", "times", "places"),
    [
        ("clip.webm", [40, 140, 240, 740, 840], [0, 1, 2, 7, 8]),  # at 10 frames a second
        ("clip.mkv", [0, 99, 201, 210, 300], [0, 1, 2, 2, 3]),
        ("clip.mkv", [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]),
        ("clip.mkv", [0, 9e15, -9e15, math.nan, math.inf], [0, 1, 2, 3, 4]),
        ("clip.mp4", [0, 100, 200, 700, 800], [0, 1, 2, 3, 4]),
    ],
)
def test_frames_of_webm_and_matroska_keep_their_times(name, times, places, tmp_path, monkeypatch):
    write_clip(tmp_path / "clip.mp4").rename(tmp_path / name)  # OpenCV goes by the content
    monkeypatch.setattr(
        video, "open_file", lambda path, opened=video.open_file: Timed(opened(path), times)
    )
    with VideoReader(tmp_path / name) as reader:
        reader.rate = 10.0
        assert [reader.place for _ in reader] == places


def test_a_still_video_is_read(tmp_path):
    with VideoWriter(tmp_path / "still.mp4", RATE) as writer:
        for _ in range(3):
            writer.add(np.full((16, 16, 3), 90, np.uint8))
    assert len(list(frames(tmp_path / "still.mp4"))) == 3


@pytest.mark.parametrize("rate", [0.5, 14.9857, 29.97, 66.667, 119.957, 239.234, 1000, 7500])
def test_any_rate_can_be_written(rate, tmp_path):
    """MPEG-4 has no rate of 119957 / 1000, which OpenCV would make of a phone's 119.957."""
    with VideoWriter(tmp_path / "clip.mp4", rate) as writer:
        for _ in range(3):
            writer.add(np.zeros((49, 69, 3), np.uint8))
    with VideoReader(tmp_path / "clip.mp4") as reader:
        assert reader.rate == pytest.approx(rate, rel=1e-4)
        assert [frame.shape for frame in reader] == [(48, 68, 3)] * 3


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


def test_unsure_pixels_of_a_video_are_unlabelled(predictor, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 2)
    least = float(np.median([predictor.predict(frame).confidence for frame in frames(clip)]))
    strict = Predictor(predictor.model, predictor.info, precision="fp32", min_confidence=least)
    stream = Stream(str(clip), Path("clip.mp4"))
    text = predict_stream(strict, stream, tmp_path / "out" / "clip", ("mask",)).text
    masks = np.stack([read_mask(path) for path in sorted((tmp_path / "out" / "clip").iterdir())])
    share = (masks == 255).mean()
    assert 0.3 < share < 0.7
    assert text.endswith(f", unlabelled {share:.0%}")


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


def test_videos_in_a_folder_are_told_of(predictor, tmp_path, monkeypatch, capsys):
    """Which the folder's other files are segmented without."""
    monkeypatch.chdir(tmp_path)
    save_pretrained("model", predictor.model, predictor.info)
    (tmp_path / "photos" / "b").mkdir(parents=True)
    write_clip(tmp_path / "photos" / "b" / "clip.mp4")
    assert main(["predict", "model", "photos", "-o", "photos/out"]) == USAGE  # no images
    capsys.readouterr()
    cv2.imwrite("photos/a.png", np.zeros((48, 64, 3), np.uint8))
    command = ["predict", "model", "-o", "photos/out"]
    assert main([*command, "photos"]) == OK
    told = capsys.readouterr().err
    start = "setr: photos: a video in this folder left out, such as photos/b/clip.mp4; a video is "
    assert told.startswith(start)
    assert told.count("video in this folder") == 1
    assert main([*command, "photos", "photos/b/clip.mp4"]) == OK
    assert main([*command, "photos", "photos/b/clip.mp4"]) == OK  # beside its result
    assert "left out" not in capsys.readouterr().err
    assert (tmp_path / "photos" / "out" / "clip_overlay.mp4").exists()


def test_the_opacity_of_a_video(predictor, tmp_path, capsys):
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    clip = write_clip(tmp_path / "clip.mp4")
    command = ["predict", str(tmp_path / "model"), str(clip)]
    for opacity in ("0", "1"):
        out = str(tmp_path / opacity)
        assert main([*command, "-o", out, "--save", "overlay,ids", "--opacity", opacity]) == OK
    (clear, *_), (covered, *_) = (
        list(frames(tmp_path / name / "clip_overlay.mp4")) for name in "01"
    )
    original = next(iter(frames(clip)))
    assert np.abs(clear.astype(int) - original).mean() < 4  # encoded twice
    assert np.abs(covered.astype(int) - original).mean() > 10
    assert main([*command, "-o", str(tmp_path / "o"), "--opacity", "1.5"]) == USAGE
    assert "--opacity 1.5: give 0 to 1" in capsys.readouterr().err


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


def test_a_video_that_a_full_disk_cut_off_is_refused(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(SetrError, match=r"clip\.mp4: cannot write: .* the disk may be full"):
            write_clip(tmp_path / "clip.mp4", 20, (128, 128))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [0.5, 24000 / 1001, 25.0, 29.97, 240.0])
@pytest.mark.parametrize("count", [1, 31])
def test_whole_videos_are_whole_at_every_rate(tmp_path, rate, count):
    with VideoWriter(tmp_path / "clip.mp4", rate) as writer:
        for _ in range(count):
            writer.add(np.zeros((16, 16, 3), np.uint8))
    assert len(list(frames(tmp_path / "clip.mp4"))) == count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_video_at_hand(predictor, tmp_path, monkeypatch, capsys, number):
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    clips, out = [write_clip(tmp_path / f"{name}.mp4") for name in "ab"], tmp_path / "out"
    command = ["predict", str(tmp_path / "model"), *map(str, clips), "-o", str(out)]
    command += ["--save", "overlay,mask"]
    calls, predict = [], Predictor.predict

    def struck(self: Predictor, frame: np.ndarray) -> object:
        calls.append(frame)
        if len(calls) == COUNT + 2:
            os.kill(os.getpid(), number)
        return predict(self, frame)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", struck)
        assert main(command) == INTERRUPTED
    assert len(calls) == COUNT + 2
    assert "stopped; 1 images are left" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == ["a", "a_overlay.mp4", "manifest.jsonl"]
    assert main(command) == OK
    assert "1 of 2 images were done before" in capsys.readouterr().err
    assert len(list((out / "b").iterdir())) == len(list(frames(out / "b_overlay.mp4"))) == COUNT


def test_frames_of_a_longer_video_before_do_not_stay(predictor, tmp_path, monkeypatch):
    clip, folder = tmp_path / "clip.mp4", tmp_path / "out" / "clip"
    long, short = ({f"{i:06d}.png" for i in range(1, count + 1)} for count in (COUNT, 2))
    predict_video(predictor, write_clip(clip), folder, ("mask",))
    assert {p.name for p in folder.iterdir()} == long
    write_clip(clip, 2)
    with monkeypatch.context() as patch:
        patch.setattr(predictor, "predict", lambda frame: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_video(predictor, clip, folder, ("mask",))
    assert {p.name for p in folder.iterdir()} == long
    for name in ("notes.txt", "000007_ids.png"):  # not of this kind
        (folder / name).touch()
    predict_video(predictor, clip, folder, ("mask",))
    assert {p.name for p in folder.iterdir()} == short | {"notes.txt", "000007_ids.png"}
    assert [p.name for p in folder.parent.iterdir()] == ["clip"]


def test_frames_appear_when_all_are_there(predictor, tmp_path):
    clip, folder, seen = write_clip(tmp_path / "clip.mp4"), tmp_path / "out" / "clip", []
    predict_video(
        predictor, clip, folder, ("mask",), on_frame=lambda *_: seen.append(folder.exists())
    )
    assert seen == [False] * COUNT
    assert len(list(folder.iterdir())) == COUNT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_without_a_known_end(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    for announced, shown in ((0, "a 1000  "), (500, "a 1000  "), (2000, "a 1000/2000  ")):
        with Progress("a", 0) as progress:
            for done in range(1, 1000):
                progress.count(done, announced)
            progress.shown = 0.0  # long ago
            progress.count(1000, announced)
        lines = terminal.getvalue().split("\r")
        assert len(lines) < 10  # not one per frame
        assert lines[-1].startswith(shown)
        assert ("ETA" in lines[-1]) == (announced > 1000)
        assert lines[-1].endswith("\n")
        terminal.truncate(terminal.seek(0))
    with Progress("a", 0):
        pass
    assert terminal.getvalue() == ""

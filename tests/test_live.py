"""Live sources: the newest frame of a camera or stream, in constant memory, to an orderly end."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from setr.cli import main
from setr.errors import FAILED, INTERRUPTED, OK, USAGE, SetrError
from setr.hub import save_pretrained
from setr.prediction import live, streams
from setr.prediction.filming import predict_video
from setr.prediction.live import LiveReader, is_live, live_name, open_video
from setr.prediction.video import VideoWriter
from setr.predictor import Predictor
from setr.processes.interrupt import Stopped
from setr.reading.urls import without_password
from tests.conftest import frames, refusal, scene_predictor

SECRET = "rtsp://me:p@ss@cam.example/live"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return scene_predictor(allow_urls=True)


@pytest.fixture(scope="module")
def model(predictor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("live") / "model"
    save_pretrained(folder, predictor.model, predictor.info)
    return str(folder)


def picture(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), number % 250, np.uint8)


class Source:
    """Stands in for OpenCV's capture; a frame's grey value is its number.

    Args:
        count: frames until it ends.
        at_will: frames come only when the test allows them.
        announced: length it tells.
        opens: whether it can be opened.
    """

    def __init__(
        self,
        count: int = 10**9,
        *,
        at_will: bool = False,
        announced: float = -1,
        opens: bool = True,
    ) -> None:
        self.count, self.announced, self.opens = count, announced, opens
        self.allowed = threading.Semaphore(0) if at_will else None
        self.given, self.released = 0, False

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self.opens

    def get(self, key: int) -> float:
        return {cv2.CAP_PROP_FPS: 20.0, cv2.CAP_PROP_FRAME_COUNT: self.announced}[key]

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.allowed:
            self.allowed.acquire()
        else:
            time.sleep(0.002)
        if self.given >= self.count:
            return False, None
        self.given += 1
        return True, picture(self.given)

    def release(self) -> None:
        self.released = True

    def send(self, frames: int, reader: LiveReader) -> None:
        """Let frames come, and wait until the reader has the last one."""
        wanted = self.given + frames
        self.allowed.release(frames)
        wait_for(lambda: reader._newest is not None and reader._newest[0] == wanted)


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def source_is(monkeypatch) -> Callable[[Source], Source]:
    def use(source: Source) -> Source:
        monkeypatch.setattr(live, "open_capture", lambda name: source)
        monkeypatch.setattr(live, "PAUSES", ())
        return source

    return use


@contextlib.contextmanager
def serving(handler: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


SENT, PERIOD = 50, 0.04


class MotionJpeg(http.server.BaseHTTPRequestHandler):
    """Sends JPEG pictures of growing brightness, as network cameras do."""

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has left
            for number in range(1, SENT + 1):
                data = cv2.imencode(".jpg", picture(4 * number))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(PERIOD)


@pytest.mark.parametrize(
    "source",
    [0, "0", "12", "/dev/video0", SECRET, "RTMP://host/app", "udp://@:1234",
     "https://host/a/live.m3u8?token=1", "http://host/cam.MJPG", "http://host:8080/video?.mjpg"],
)  # fmt: skip
def test_what_is_live(source):
    assert is_live(source)


@pytest.mark.parametrize(
    "source",
    [-1, True, None, 0.0, np.zeros((2, 2)), b"0", "", "0.png", "1234", "clip.mp4", "a.mjpg",
     "https://host/a.jpg", "https://host/clip.mp4", "s3://bucket/a.mjpg", Path("0")],
)  # fmt: skip
def test_what_is_not_live(source):
    assert not is_live(source)


def test_a_file_or_folder_named_like_a_camera_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").mkdir()
    assert not is_live("0")
    assert is_live(0)
    assert is_live("1")


def test_recordings_are_named_by_source_and_time(monkeypatch):
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2026, 1, 31, 12, 0, 5, 5, 31, 0)))
    assert live_name("/dev/video2") == "camera-2-20260131T120005Z"
    assert live_name("http://host/front.mjpg?a=1") == "front-20260131T120005Z"
    assert live_name("rtsp://me:secret@192.168.1.4:554/") == "192.168.1.4-20260131T120005Z"


def test_frames_that_come_while_the_model_works_are_dropped(source_is):
    source = source_is(Source(at_will=True))
    source.allowed.release()
    with LiveReader(0) as reader:
        found = iter(reader)
        assert next(found).mean() == 1
        source.send(6, reader)
        assert next(found).mean() == 7  # the newest
        assert (reader.number, reader.dropped) == (7, 5)
        source.send(1, reader)
        assert next(found).mean() == 8
        assert (reader.number, reader.dropped) == (8, 5)
        assert reader.name == "0"
        source.allowed.release(9)
    wait_for(lambda: source.released)


def test_a_frame_that_comes_while_the_reader_closes_is_not_counted(source_is):
    class Late(Source):
        def read(self) -> tuple[bool, np.ndarray | None]:
            if self.given == 1:
                wait_for(lambda: taken)
            if self.given == 2:
                wait_for(lambda: reader._closing)
            return super().read()

    taken: list[np.ndarray] = []
    source = source_is(Late())
    with LiveReader(0) as reader:
        taken.append(next(iter(reader)))
        wait_for(lambda: reader._newest is not None)
    wait_for(lambda: source.released)
    assert (source.given, reader.dropped) == (3, 0)


def test_memory_does_not_grow_while_the_model_works(source_is):
    source = source_is(Source(at_will=True))
    source.allowed.release()
    with LiveReader(0) as reader:
        frame = next(iter(reader))
        source.send(1, reader)
        tracemalloc.start()
        source.send(100, reader)
        grown = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        source.allowed.release(9)
    assert grown < 6 * frame.nbytes


def test_a_stream_with_an_end_loses_no_frame_and_is_read_once(source_is, monkeypatch):
    source = source_is(Source(30, announced=31))  # a length is an estimate
    opened = []
    monkeypatch.setattr(live, "open_capture", lambda name: opened.append(name) or source)
    monkeypatch.setattr(live, "PAUSES", (0.0,))
    with LiveReader("http://host/finished.m3u8") as reader:
        found = [frame.mean() for frame in reader if time.sleep(0.01) is None]
    assert found == list(range(1, 31))
    assert (reader.dropped, reader.ended, reader.place, len(opened)) == (0, "", 29, 1)


def test_seconds_of_a_stream_with_an_end_are_those_of_its_frames(source_is):
    """However fast they are read."""
    source_is(Source(60, announced=60))
    with LiveReader("http://host/finished.m3u8", seconds=2) as reader:
        assert sum(1 for _ in reader) == 40  # 20 a second
    assert reader.ended == ""


def test_an_interlaced_stream_is_refused(source_is, monkeypatch):
    """OpenCV repeats what its memory holds; a camera that sees nothing move does, too."""
    source = source_is(Source(at_will=True))
    asked = []
    monkeypatch.setattr(source, "read", lambda: (source.allowed.acquire(), picture(7)))
    monkeypatch.setattr(live, "is_refused", lambda *place, **_: asked.append(place) or True)
    source.allowed.release(2)
    with LiveReader("RTSP://host/tv") as reader:
        assert sum(1 for _ in reader) <= 1
    assert asked == [("rtsp://host/tv", 2)]
    assert reader.ended.startswith("its frames are interlaced")
    monkeypatch.setattr(live, "is_refused", lambda *place, **_: False)
    source.allowed.release(9)
    with LiveReader("rtsp://host/night") as reader:
        wait_for(lambda: reader._count == 9)


def test_a_stream_with_an_end_is_read_on_behind_a_damaged_frame(source_is, monkeypatch):
    source = source_is(Source(30, announced=30))
    read, asked = source.read, []
    monkeypatch.setattr(
        source, "read", lambda: (False, None) if asked.append(0) or len(asked) == 5 else read()
    )
    with LiveReader("http://host/finished.m3u8") as reader:
        assert sum(1 for _ in reader) == 30


def test_an_error_in_a_stream_with_an_end_is_told(source_is, monkeypatch):
    source = source_is(Source(60, announced=60))
    read = source.read

    def broken() -> object:
        return read() if source.given < 5 else cv2.imdecode(np.zeros(0, np.uint8), 1)

    monkeypatch.setattr(source, "read", broken)
    with LiveReader("http://host/finished.m3u8") as reader:
        assert sum(1 for _ in reader) == 5
    assert reader.ended.endswith(", after 5 frames")


def test_a_stop_just_after_the_first_frame_came(source_is, predictor, tmp_path, monkeypatch):
    """The first frame is written, so that no output is named that is not there."""
    source_is(Source())
    entered: list[LiveReader] = []
    enter = LiveReader.__enter__
    monkeypatch.setattr(LiveReader, "__enter__", lambda self: entered.append(self) or enter(self))
    report = predict_video(
        predictor,
        0,
        tmp_path / "camera",
        ("overlay", "mask"),
        limits={"until": lambda: bool(entered) and entered[0]._newest is not None},
    )
    assert report.frames == 1
    assert all(file.exists() for file in report.files)


@pytest.mark.parametrize("count", [1, 20])
def test_a_source_that_ends_says_so(source_is, count):
    source = source_is(Source(count))
    with LiveReader(SECRET) as reader:
        last = [frame.mean() for frame in reader][-1]
    assert last == count
    assert reader.ended == (f"the source stopped, or the connection was lost, after {count} frames")
    assert source.released


def test_a_source_that_falls_silent_is_given_up(source_is, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 0.2)
    monkeypatch.setattr(live, "CLOSE_SECONDS", 0.1)
    source = source_is(Source(at_will=True))
    source.allowed.release(2)
    began = time.monotonic()
    with LiveReader(0) as reader:
        assert [frame.mean() for frame in reader][-1] == 2
    assert reader.ended == "it sent nothing for 0.2 seconds, after 2 frames"
    assert time.monotonic() - began < 10
    source.allowed.release(9)


@pytest.fixture
def sources_are(monkeypatch) -> Callable[..., None]:
    def use(*sources: Source, pauses: tuple[float, ...] = (0.01, 0.02)) -> None:
        rest = iter(sources)
        monkeypatch.setattr(live, "open_capture", lambda name: next(rest))
        monkeypatch.setattr(live, "PAUSES", pauses)

    return use


def test_a_source_that_breaks_off_is_opened_again(sources_are):
    parts = Source(4), Source(opens=False), Source(3)
    sources_are(*parts)
    with LiveReader(SECRET) as reader:
        found = [(reader.number, frame.mean()) for frame in reader]
    assert found[-1] == (7, 3)  # numbers go on
    assert (reader.number - reader.dropped, reader.reconnects) == (len(found), 1)
    assert reader.ended == (
        "the source stopped, or the connection was lost, after 7 frames and 2 attempts to connect "
        "again"
    )
    assert all(part.released for part in parts)


def test_an_error_of_a_connection_that_was_mended_is_no_reason(sources_are, monkeypatch):
    broken = Source(2)
    read = broken.read

    def failing() -> object:
        return read() if broken.given < 2 else cv2.imdecode(np.zeros(0, np.uint8), 1)

    monkeypatch.setattr(broken, "read", failing)
    sources_are(broken, Source(2), Source(opens=False))
    with LiveReader(SECRET) as reader:
        assert len(list(reader)) + reader.dropped == 4
    assert reader.ended.startswith("the source stopped, or the connection was lost, after 4 frames")


def test_a_steady_connection_gives_the_attempts_back(sources_are, monkeypatch):
    monkeypatch.setattr(live, "STEADY_SECONDS", 0.0)
    sources_are(*(Source(2) for _ in range(5)), *2 * [Source(opens=False)], pauses=(0.01,))
    with LiveReader(SECRET) as reader:
        assert len(list(reader)) + reader.dropped == 10
    assert reader.reconnects == 4


def test_seconds_and_a_stop_end_the_attempts(sources_are):
    sources_are(Source(4), Source(), pauses=(0.01,))
    with LiveReader(SECRET, seconds=0.5) as reader:
        assert len(list(reader)) > 1
    assert (reader.ended, reader.reconnects) == ("", 1)
    stop = threading.Event()
    sources_are(Source(4), pauses=(60.0,))
    began = time.monotonic()
    with LiveReader(SECRET, until=stop.is_set) as reader:
        for _ in reader:
            threading.Timer(0.2, stop.set).start()
    assert reader.ended == ""
    assert time.monotonic() - began < 10


def test_a_network_camera_that_breaks_off(predictor, monkeypatch):
    monkeypatch.setattr(live, "PAUSES", (0.1,))
    with serving(MotionJpeg) as address, LiveReader(f"{address}/cam.mjpg") as reader:
        assert sum(1 for _ in reader) + reader.dropped >= 2 * SENT - 4  # FFmpeg probes some
    assert reader.reconnects == 1
    assert reader.ended.endswith("frames and 1 attempts to connect again")


def test_python_is_told_of_the_end(source_is, predictor):
    source_is(Source(3))
    found = []
    with pytest.raises(SetrError, match=r"^0: the source stopped, or .* was lost, after 3"):
        found.extend(predictor.predict_all(0))
    source_is(Source(3, announced=3))
    assert len(list(predictor.predict_all("http://host/finished.m3u8"))) == 3


def test_a_source_that_cannot_be_read_is_refused(source_is):
    for name, source, reason in (
        (3, Source(opens=False), "3: no camera of this number can be opened"),
        (SECRET, Source(opens=False), r"rtsp://me:\*\*\*@cam.example/live: no video can be opened"),
        (0, Source(0), "0: sends no frame that can be read"),
    ):
        source_is(source)
        with pytest.raises(SetrError, match=rf"^{reason}"), LiveReader(name):
            pass
        wait_for(lambda used=source: used.released or not used.opens)


def test_an_error_of_opencv_is_told(source_is, monkeypatch):
    source = source_is(Source(at_will=True))
    monkeypatch.setattr(source, "read", lambda: cv2.imdecode(np.zeros(0, np.uint8), 1))
    with pytest.raises(SetrError, match="0: sends no frame"), LiveReader(0):
        pass


def test_a_stop_before_the_first_frame(source_is, monkeypatch):
    monkeypatch.setattr(live, "CLOSE_SECONDS", 0.1)
    source = source_is(Source(at_will=True))
    began = time.monotonic()
    with pytest.raises(Stopped), LiveReader(0, until=lambda: time.monotonic() - began > 0.3):
        pass
    source.allowed.release(9)


def test_a_picture_stays_until_the_next_one(tmp_path):
    """So that a video of few frames is as long as it took."""
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for place, value in ((0, 40), (3, 120), (3, 255), (5, 200)):
            writer.add(picture(value), place)
        writer.add(picture(80, (96, 128)))  # of another size
    found = list(frames(tmp_path / "a.mp4"))
    assert {frame.shape for frame in found} == {(48, 64, 3)}
    means = [float(frame.mean()) for frame in found]
    assert means == pytest.approx([40, 40, 40, 120, 120, 200, 80], abs=6)


def test_a_network_camera_and_a_slow_model(predictor, tmp_path, monkeypatch):
    def slow(frame: np.ndarray) -> object:
        time.sleep(5 * PERIOD)
        return Predictor.predict(predictor, frame)

    monkeypatch.setattr(predictor, "predict", slow)
    monkeypatch.setattr(live, "PAUSES", ())
    with serving(MotionJpeg) as address:
        report = predict_video(
            predictor, f"{address}/cam.mjpg", tmp_path / "cam", ("overlay", "share")
        )
    assert report.frames < SENT / 3
    assert report.frames + report.dropped <= SENT
    assert report.dropped > SENT / 2
    assert report.ended.startswith("the source stopped")
    assert len(list(frames(tmp_path / "cam_overlay.mp4"))) > SENT / 2  # not as short as its frames
    files = sorted((tmp_path / "cam").iterdir())
    assert len(files) == report.frames
    numbers = [int(file.name[:6]) for file in files]
    assert 1 <= numbers[0] < SENT / 3  # a busy machine drops the first ones, too
    assert numbers[-1] > SENT / 2
    last = json.loads(files[-1].read_text())
    assert last["image"] == f"{address}/cam.mjpg#{numbers[-1]}"


def test_frames_of_a_network_camera_in_python(predictor, model):
    with serving(MotionJpeg) as address:
        results = predictor.predict_all(f"{address}/video?.mjpg")
        first, second = next(results), next(results)
        results.close()
        with pytest.raises(SetrError, match=r"sends a video .* \?\.mjpg"):
            predictor.predict(f"{address}/video")
        strict = Predictor(predictor.model, predictor.info)
        with pytest.raises(SetrError, match="disabled; allow them with --allow-urls"):
            next(strict.predict_all(f"{address}/video?.mjpg"))
    assert first.mask.shape == (48, 64)
    places, numbers = zip(*(r.path.rsplit("#", 1) for r in (first, second)), strict=True)
    assert set(places) == {f"{address}/video?.mjpg"}
    assert 1 <= int(numbers[0]) < int(numbers[1])  # a busy machine drops the first ones, too


def test_a_video_file_at_an_address(predictor, model, tmp_path, capfd):
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for number in range(1, 9):
            writer.add(picture(20 * number))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with serving(functools.partial(Quiet, directory=str(tmp_path))) as address:
        clip = f"{address}/clip.mp4?token=1"
        assert len(list(predictor.predict_all(clip))) == 8
        command = ["predict", model, clip, "-o", str(tmp_path / "out")]
        assert main(command) == FAILED
        assert "downloads are disabled" in capfd.readouterr().err
        assert main([*command, "--allow-urls"]) == OK
        assert len(list(frames(tmp_path / "out" / "clip_overlay.mp4"))) == 8
        assert main([*command, "--allow-urls"]) == OK
        assert "1 of 1 images were done before" in capfd.readouterr().err
        with pytest.raises(SetrError, match=r"gone\.mp4: not a video"):
            list(predictor.predict_all(f"{address}/gone.mp4"))


def test_one_image_is_not_a_video(predictor):
    for source in (0, "7", SECRET):
        with pytest.raises(SetrError, match="is a video; predict_all") as caught:
            predictor.predict(source)
        assert "p@ss" not in str(caught.value)


def test_a_live_source_of_the_command_line(source_is, model, tmp_path, monkeypatch, capsys):
    names = iter(["camera-0-a", "camera-0-b"])
    monkeypatch.setattr(streams, "live_name", lambda source: next(names))
    for _ in range(2):
        source_is(Source(5))
        command = ["predict", model, "0", "-o", str(tmp_path / "out"), "--save", "overlay,ids"]
        assert main([*command, "--json"]) == FAILED  # it ended, though nobody asked for that
        captured = capsys.readouterr()
        answer = json.loads(captured.out)["images"][0]
        assert answer["frames"] + answer["dropped"] == 5
        assert captured.err.endswith(
            "setr: 0: the source stopped, or the connection was lost, after 5 frames\n"
        )
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == [
        "camera-0-a", "camera-0-a_overlay.mp4", "camera-0-b", "camera-0-b_overlay.mp4",
        "manifest.jsonl",
    ]  # fmt: skip
    rows = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(row)["status"] for row in rows] == ["ok", "ok"]
    assert len(list((tmp_path / "out" / "camera-0-b").glob("*_ids.png"))) == answer["frames"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_live_source_in_order(
    source_is, model, tmp_path, monkeypatch, capsys, number
):
    source = source_is(Source())
    calls, predict = [], Predictor.predict

    def struck(self: Predictor, frame: np.ndarray) -> object:
        calls.append(frame)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return predict(self, frame)

    monkeypatch.setattr(Predictor, "predict", struck)
    out = tmp_path / "out"
    command = ["predict", model, SECRET, "--allow-urls", "-o", str(out)]
    assert main([*command, "--save", "overlay,mask"]) == INTERRUPTED
    captured = capsys.readouterr()
    assert captured.err.endswith("setr: stopped; all that was recorded is saved\n")
    assert captured.out.startswith("1/1  rtsp://me:***@cam.example/live  4 frames, ")
    assert " dropped: " in captured.out
    (film,) = out.glob("live-*_overlay.mp4")
    assert len(list(frames(film))) >= 1
    assert len(list(out.glob("live-*/*.png"))) == len(calls) == 4
    assert not list(out.glob(".*"))
    assert source.released
    assert "p@ss" not in (out / "manifest.jsonl").read_text()


def test_an_error_leaves_what_was_recorded(source_is, predictor, tmp_path, monkeypatch):
    source_is(Source())
    calls = []

    def failing(frame: np.ndarray) -> object:
        calls.append(frame)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Predictor.predict(predictor, frame)

    monkeypatch.setattr(predictor, "predict", failing)
    with pytest.raises(KeyboardInterrupt):
        predict_video(predictor, 0, tmp_path / "camera", ("overlay", "mask"))
    assert list(frames(tmp_path / "camera_overlay.mp4"))
    assert len(list((tmp_path / "camera").iterdir())) == 2
    assert not list(tmp_path.glob(".*"))


def test_so_many_seconds_of_a_live_source(source_is, model, tmp_path, capsys):
    source_is(Source())
    command = ["predict", model, "0", "-o", str(tmp_path / "out"), "--seconds", "1"]
    assert main(command) == OK
    assert capsys.readouterr().err.startswith("setr: predicting on ")
    (film,) = (tmp_path / "out").glob("*_overlay.mp4")
    assert 1 <= len(list(frames(film))) <= 21  # 20 a second


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("0", "1"), "0: a live source runs alone; start one command for it and "),
        ((SECRET, "a.png"), r"rtsp://me:\*\*\*@cam.example/live: a live source runs alone"),
        (("a.png", "--seconds", "5"), "--seconds 5.0: only a live source"),
        (("0", "--seconds", "0"), "--seconds 0.0: give 1 to"),
        (("0", "--shard", "0/2"), "--shard 0/2: does nothing with a live source"),
        (("0", "--pack", "tar"), "--pack tar: does nothing with a live source"),
        (("0", "--submit", "cityscapes"), "--submit takes images, not 0"),
    ],
)
def test_what_does_not_go_with_a_live_source(model, tmp_path, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    captured = refusal(capsys, "predict", model, *words, "-o", "out")
    assert re.match(f"setr: {reason}", captured)


def test_an_output_folder_named_like_the_camera(source_is, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source_is(Source())
    assert main(["predict", model, "0", "-o", "0", "--seconds", "1"]) == OK
    assert list(Path("0").glob("camera-0-*_overlay.mp4"))


def test_ffmpeg_gets_schemes_in_lower_case(monkeypatch):
    opened = []
    monkeypatch.setattr(cv2, "VideoCapture", lambda address, *_: opened.append(address))
    for address in ("RTSP://Cam/Live", "Http://Cam/a.MJPG?B=://"):
        live.open_capture(address)
    assert opened == ["rtsp://Cam/Live", "http://Cam/a.MJPG?B=://"]


@pytest.mark.parametrize(
    "address",
    ["http://[::1/a.jpg", "http://[::1/a.mp4", "http://me:secret@[::1/a.mjpg", "rtsp://[::1/a"],
)
def test_addresses_that_are_none_are_one_line(model, tmp_path, capsys, address):
    command = ["predict", model, address, "--allow-urls", "-o", str(tmp_path / "out")]
    assert main(command) == USAGE
    message = capsys.readouterr().err
    assert message.endswith(": not an address (Invalid IPv6 URL); correct it\n")
    assert "secret" not in message


@pytest.mark.parametrize("user", ["me", "me@example.org", "", "m%2Fe"])
def test_no_password_is_shown(user, predictor):
    assert without_password(f"rtsp://{user}:se:cr@t@cam/live") == f"rtsp://{user}:***@cam/live"
    with pytest.raises(SetrError, match="downloaded without a user") as caught:
        predictor.predict(f"http://{user}:secret@cam/photo.jpg")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["rtsp://cam:554/a@b", "http://cam/a:b@c", "rtsp://me@cam/a"])
def test_addresses_without_a_password_are_shown_whole(address):
    assert without_password(address) == address


def test_addresses_are_opt_in(source_is, model, tmp_path, capsys):
    source_is(Source(5))
    assert main(["predict", model, SECRET, "-o", str(tmp_path / "out")]) == FAILED
    assert (
        "setr: rtsp://me:***@cam.example/live: downloads are disabled; allow them with --allow-urls"
    ) in capsys.readouterr().err
    with pytest.raises(SetrError, match="downloads are disabled"):
        open_video(SECRET)
    with pytest.raises(SetrError, match="no such file"), open_video("s3://bucket/clip.mp4"):
        pass  # not read from object storage

"""Arrays, tensors, Pillow images, open files, addresses, folders; and every odd file of a user."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from setr.cli import main
from setr.data import scenes
from setr.errors import FAILED, OK, SetrError
from setr.hub import save_pretrained
from setr.images import encode_png, read_image
from setr.model_info import ModelInfo
from setr.prediction.streams import split_sources
from setr.predictor import Predictor
from setr.protocols import Protocol
from setr.reading.arrays import as_image
from setr.reading.files import expanded
from setr.reading.masks import read_mask
from setr.reading.urls import download, download_file
from setr.writing import write_bytes
from tests.conftest import scene_predictor
from tests.serving import until
from tests.test_images import UNREADABLE


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return scene_predictor(info={"protocol": Protocol(short_side=8), "crop_size": (32, 32)})


@pytest.fixture
def photo() -> np.ndarray:
    return scenes.draw("photo", 0, size=64)[0][:50]


def test_everything_that_holds_an_image(photo, tmp_path):
    write_bytes(tmp_path / "a.png", encode_png(photo))
    tensor = torch.from_numpy(photo)
    with open(tmp_path / "a.png", "rb") as file, Image.open(tmp_path / "a.png") as picture:
        for source in (
            *(tmp_path / "a.png", str(tmp_path / "a.png"), file, picture, photo),
            *(encode_png(photo), bytearray(encode_png(photo)), memoryview(encode_png(photo))),
            *(tensor, tensor.permute(2, 0, 1), tensor.permute(2, 0, 1) / 255, photo.tolist()),
        ):
            if isinstance(source, list):
                source = np.array(source, np.uint8)
            np.testing.assert_array_equal(as_image(source), photo)
    grey = photo[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(as_image(tensor[..., 0]), grey)
    np.testing.assert_array_equal(as_image(tensor[None, ..., 0]), grey)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (torch.zeros(2, 3, 8, 8), "give one image"),
        (torch.full((3, 8, 8), 2.0), "values from 0 to 1"),
        (torch.full((3, 8, 8), torch.nan), "values from 0 to 1"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "give one image"),
        (torch.zeros(3, 0, 8), r"array \(0, 8, 3\) uint8: .*; this one has no pixels"),
        (np.zeros((8, 8, 4), np.uint8), r"give uint8 RGB .*without alpha: array\[\.\.\., :3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"array\.transpose\(1, 2, 0\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "predict_batch takes several"),
        (np.zeros((8, 8, 3)), r"\(8, 8, 3\) float64: .*\(255 \* array\)\.round\(\)"),
        (np.zeros((8, 8), np.uint16), r"array \(8, 8\) uint16: .*array // 257"),
        (np.zeros((200, 60, 3), np.uint8), "above the limit of 10,000"),
        (Image.new("RGB", (200, 60)), "200x60 pixels; give at least one, and up to 10,000"),
        (None, "NoneType: not an image; give uint8 RGB"),
        (5, "int: not an image; give uint8 RGB"),
        (io.StringIO("http://localhost/a.png"), "opened as text"),
        ("http://localhost/a.png", "allow"),
    ],
)
def test_what_holds_no_image_is_refused_in_one_line(source, reason):
    with pytest.raises(SetrError, match=reason) as caught:
        as_image(source, max_pixels=10_000)
    assert "\n" not in str(caught.value)


def test_the_odd_files_from_python(shared, predictor):
    """Path, bytes and Pillow image end alike: the same pixels, or one line with the reason."""
    for path in sorted((shared / "data" / "odd_inputs" / "images").iterdir()):
        if path.name == "8000x6000.jpg":
            continue  # from the command line, below
        if path.name in UNREADABLE:
            for source in (path, path.read_bytes()):
                with pytest.raises(SetrError, match=UNREADABLE[path.name]):
                    predictor.predict(source)
            continue
        expected = read_image(path)
        with Image.open(path) as picture:
            for source in (path, path.read_bytes(), picture):
                np.testing.assert_array_equal(as_image(source), expected, err_msg=path.name)
        assert predictor.predict(path).mask.shape == expected.shape[:2]
    with (
        pytest.raises(SetrError, match=r"truncated\.jpg"),
        Image.open(shared / "data" / "odd_inputs" / "images" / "truncated.jpg") as picture,
    ):
        predictor.predict(picture)


def test_the_odd_files_from_the_command_line(shared, predictor, tmp_path, capsys):
    folder, out = shared / "data" / "odd_inputs" / "images", tmp_path / "out"
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    code = main(["predict", str(tmp_path / "model"), str(folder), "-o", str(out), "--json"])
    captured = capsys.readouterr()
    assert code == FAILED
    assert "Traceback" not in captured.err
    answer = json.loads(captured.out)
    outcomes = {Path(i["image"]).name: i for i in answer["images"]}
    assert set(outcomes) == {p.name for p in folder.iterdir()}
    for name, outcome in outcomes.items():
        path = folder / name
        if name in UNREADABLE:
            assert UNREADABLE[name] in outcome["error"]
            assert name in outcome["error"]
            assert not list(out.glob(f"{path.stem}*"))
        else:
            (written,) = outcome["files"]
            with Image.open(path) as picture, Image.open(written) as mask:
                turned = picture.getexif().get(0x0112, 1) >= 5
                assert mask.size == (picture.size[::-1] if turned else picture.size)
    assert len(list(out.glob("*.png"))) == len(outcomes) - len(UNREADABLE)


def test_the_first_of_several_frames_is_used_and_said(caplog, photo, tmp_path):
    caplog.set_level("WARNING", logger="setr")  # whatever other packages did to the root's
    frames = [Image.fromarray(np.roll(photo, k * 20, axis=1)) for k in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    for _ in range(2):
        np.testing.assert_array_equal(as_image(tmp_path / "a.webp"), photo)
    assert [r.message for r in caplog.records] == [
        f"setr: {tmp_path / 'a.webp'}: has several frames or pages; the first is used"
    ]


def test_a_limit_the_user_can_raise(shared, predictor, photo):
    path = shared / "data" / "odd_inputs" / "images" / "bomb_400Mpx.png"
    with pytest.raises(SetrError, match="--max-pixels"):
        predictor.predict(path)
    with pytest.raises(SetrError, match="53x37 is 1,961 pixels"):
        as_image(encode_png(np.zeros((37, 53, 3), np.uint8)), max_pixels=1960)
    assert as_image(encode_png(np.zeros((37, 53, 3), np.uint8)), max_pixels=1961).size


def test_a_header_that_lies_is_refused(photo):
    """A small PNG whose header promises 30000 x 30000 pixels; another that promises more rows."""

    def patched(width: int, height: int) -> bytes:
        data = bytearray(encode_png(photo))
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return bytes(data)

    with pytest.raises(SetrError, match="pixels"):
        as_image(patched(30_000, 30_000))
    with pytest.raises(SetrError, match="broken image"):
        as_image(patched(64, 500))


def test_names_that_need_care(predictor, photo, tmp_path, capsys, monkeypatch):
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    stems = [
        "é",
        "e\u0301",
        "日本語",
        "🙂",
        "a b",
        "-dash",
        "%s",
        "a;b",
        "it's",
        "new\nline",
        "a.b.c",
    ]
    stems += [".hidden", "x" * 251, os.fsdecode(b"latin\xe9")]
    for stem in stems:
        (folder / f"{stem}.png").write_bytes(encode_png(photo[:9, :9]))
    deep = folder / "/".join(["d" * 100] * 3)
    deep.mkdir(parents=True)
    (deep / "far.png").write_bytes(encode_png(photo[:9, :9]))
    monkeypatch.chdir(deep.parent)
    images = [str(folder), str(folder / ".hidden.png"), f"../{'d' * 100}/{'d' * 100}/far.png"]
    model, kinds = str(tmp_path / "model"), "mask,overlay"
    code = main(["predict", model, *images[:2], "-o", str(out), "--save", kinds])
    assert main(["predict", model, images[2], "-o", str(tmp_path / "up"), "--save", kinds]) == OK
    assert "Traceback" not in capsys.readouterr().err
    assert code == OK
    written = {p.relative_to(out).as_posix() for p in out.rglob("*.png")}
    assert {f"{stem}.png" for stem in stems} <= written
    assert f"{deep.relative_to(folder)}/far.png" in written
    assert len(written) == 2 * (len(stems) + 1)
    assert sorted(os.listdir(tmp_path / "up")) == ["far.png", "far_overlay.png", "manifest.jsonl"]


def test_folders_globs_and_lists(predictor, photo, tmp_path):
    for name in ("b.png", "a.png", ".hidden.png"):
        write_bytes(tmp_path / name, encode_png(photo))
    found = [r.path for r in predictor.predict_all(tmp_path, str(tmp_path / "b*.png"), photo)]
    assert found == [str(tmp_path / "a.png"), str(tmp_path / "b.png"), str(tmp_path / "b.png"), ""]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_bytes(tmp_path / "deep" / "er" / "c.png", encode_png(photo))
    found = [r.path for r in predictor.predict_all(str(tmp_path / "**" / "*.png"))]
    assert found == [str(tmp_path / name) for name in ("a.png", "b.png", "deep/er/c.png")]
    with pytest.raises(SetrError, match="no images found"):
        list(predictor.predict_all(str(tmp_path / "*.gif")))
    with pytest.raises(SetrError, match="no such file"):
        list(predictor.predict_all(tmp_path / "gone.png"))
    with pytest.raises(SetrError, match=r"clip\.mp4: is a video; predict_all gives"):
        predictor.predict(tmp_path / "clip.mp4")


def test_large_images_go_by_windows(predictor, photo, monkeypatch):
    large = np.tile(photo, (2, 3, 1))
    plain = Predictor(predictor.model, ModelInfo(labels=scenes.LABELS, crop_size=(32, 32)))
    assert plain._protocol(large.shape).window is None
    monkeypatch.setattr("setr.protocols.WHOLE_PIXELS", 64 * 64)
    assert plain._protocol(large.shape) == Protocol().in_windows(32)
    assert plain.predict(large).mask.shape == large.shape[:2]
    forced = Predictor(predictor.model, predictor.info, window=24)
    assert forced._protocol(photo.shape) == Protocol(short_side=8).in_windows(24)
    with pytest.raises(SetrError, match="give pixels from 1"):
        Predictor(predictor.model, predictor.info, window=0)


class Answers(http.server.BaseHTTPRequestHandler):
    """A server on this machine that behaves well and badly."""

    image = encode_png(scenes.draw("photo", 0, size=64)[0])
    poured: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        if self.path == "/image.png":
            self.answer(self.image)
        elif self.path == "/to-image":
            self.redirect("/image.png")
        elif self.path == "/to-file":
            self.redirect("file:///etc/hostname")
        elif self.path == "/to-ftp":
            self.redirect("ftp://127.0.0.1/image.png")
        elif self.path == "/loop":
            self.redirect("/loop")
        elif self.path == "/user":
            self.redirect("http://me:secret@127.0.0.1/image.png")
        elif self.path == "/long-way":
            self.redirect("/image.png")
            self.pour()
        elif self.path == "/drip":
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                for _ in range(60):
                    self.wfile.write(b"a")
                    time.sleep(0.05)
        elif self.path == "/cut.png":
            self.answer(self.image[:100], announced=len(self.image))
        elif self.path == "/slow":
            self.answer(b"", announced=100)
            threading.Event().wait(1.5)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.pour()
        else:
            self.send_error(404)

    def pour(self) -> None:
        """65 megabytes, as far as they are taken."""
        taken = 0
        with contextlib.suppress(OSError):
            for _ in range(1000):
                taken += self.wfile.write(bytes(1 << 16))
        self.poured.append(taken)

    def answer(self, data: bytes, announced: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) if announced is None else announced))
        self.end_headers()
        self.wfile.write(data)

    def redirect(self, place: str) -> None:
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


def test_addresses_only_when_allowed(server, predictor):
    expected = predictor.predict(Answers.image).mask
    with pytest.raises(SetrError, match="downloads are disabled"):
        predictor.predict(f"{server}/image.png")
    open_one = Predictor(predictor.model, predictor.info, allow_urls=True, precision="fp32")
    for place in ("/image.png", "/to-image"):
        np.testing.assert_array_equal(open_one.predict(server + place).mask, expected)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("/none.png", "answers 404"),
        ("/to-file", "redirects to file:///etc/hostname, which is not an http address"),
        ("/to-ftp", "not an http address"),
        ("/loop", "redirects more than 10 times"),
        ("/user", r"me:\*\*\*@127.0.0.1/image.png: files are downloaded without a user"),
        ("/drip", r"not complete after 0\.7 s"),
        ("/cut.png", "ended after|download failed"),
        ("/slow", "download failed|not complete after"),
        ("/endless", "larger than the limit"),
    ],
)
def test_bad_answers_are_one_line(server, place, reason):
    with pytest.raises(SetrError, match=reason) as caught:
        download(server + place, max_bytes=1 << 20, seconds=0.7)
    assert place in str(caught.value) or place == "/user"
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_comes_with_a_redirect_is_not_read(server):
    Answers.poured.clear()
    assert download(f"{server}/long-way") == Answers.image
    until(lambda: Answers.poured)
    assert Answers.poured[0] < 20 << 20


def test_a_file_that_ends_early_is_not_kept(server, tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(SetrError, match=r"/cut\.png: ended after 100 of [\d,]+ bytes"):
        download_file(f"{server}/cut.png", path)
    assert not list(tmp_path.iterdir())
    download_file(f"{server}/to-image", path)
    assert path.read_bytes() == Answers.image
    assert list(tmp_path.iterdir()) == [path]


def test_addresses_are_checked_before_anything_is_sent(server):
    for wrong in ("file:///etc/hostname", "ftp://localhost/a", "http://", "/etc/hostname"):
        with pytest.raises(SetrError, match="begins with http"):
            download(wrong)
    with pytest.raises(SetrError, match="above the limit of 10"):
        download(f"{server}/image.png", max_bytes=10)
    with pytest.raises(SetrError, match="download failed"):
        download("http://127.0.0.1:9/a.png", seconds=2)


def test_addresses_from_the_command_line(server, predictor, tmp_path, capsys):
    save_pretrained(tmp_path / "model", predictor.model, predictor.info)
    command = ["predict", str(tmp_path / "model"), f"{server}/image.png", "-o", str(tmp_path / "o")]
    assert main(command) == FAILED
    assert "--allow-urls" in capsys.readouterr().err
    assert main([*command, "--allow-urls", "--save", "mask,share"]) == OK
    expected = predictor.predict(Answers.image).mask
    np.testing.assert_array_equal(read_mask(tmp_path / "o" / "image.png"), expected)
    assert f"{server}/image.png" in (tmp_path / "o" / "image_share.json").read_text()


def test_an_open_file_that_is_no_image_names_itself():
    with pytest.raises(SetrError, match="image data: not an image"):
        as_image(io.BytesIO(b"no image"))


def test_addresses_name_files_without_folders():
    for path, name in (("a/b.png", "b.png"), ("..%5C..%5Cb.png", "b.png"), ("a%5C..", "x.org")):
        ((stream,), _) = split_sources([f"http://x.org/{path}"])
        assert str(stream.below) == name


def test_a_folder_is_searched_without_the_masks_and_tiles_made_in_it(tmp_path, photo):
    names = ("a.png", "tiles/b.png", "masks_drawn/a.png", "deep/masks_drawn/c.png")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(tmp_path / name, encode_png(photo))
    below = [name for _, name in expanded(str(tmp_path))]
    assert below == ["a.png", "deep/masks_drawn/c.png", "tiles/b.png"]  # tiles of the user's own
    (tmp_path / "tiles" / "tiles.csv").write_text("")
    assert [name for _, name in expanded(str(tmp_path))] == ["a.png", "deep/masks_drawn/c.png"]
    assert [name for _, name in expanded(str(tmp_path / "masks_drawn"))] == ["a.png"]

"""What one client must not take from the others: time, memory, threads, and the server itself."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
import anyio
import httpx

from setr.cli import main
from setr.commands.serve import read_keys
from setr.data import scenes
from setr.errors import USAGE, SetrError
from setr.export import export
from setr.exporting.runtime import ExportedModel
from setr.hub import from_pretrained
from setr.images import read_image
from setr.protocols import WHOLE_PIXELS
from setr.result import Result
from setr.serve import app as app_module
from setr.serve import bodies, regions, server, service
from setr.serve import models as models_module
from setr.serve.app import create_app
from setr.serve.batching import MAX_FAULTS, DeadlinePassed
from setr.serve.gate import Gate
from setr.serve.limits import Admission, Limits, Refusal
from setr.serve.models import Key, Models, Question, patch_size
from setr.serve.regions import large_regions
from tests.conftest import refusal
from tests.serving import connect, listening, photo, request, running, save_models, until

LIMITS = Limits(deadline=120.0, drain=5.0, header_seconds=120.0, body_seconds=120.0)
SHORT = RuntimeError("[alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
Client = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_models(tmp_path_factory.mktemp("models"))[0]


@pytest.fixture
def models(source: str) -> Models:
    return Models([source], LIMITS, device="cpu", precision="fp32")


@contextlib.contextmanager
def asked(models: Models, **limits: Any) -> Iterator[tuple[Gate, Client, str]]:
    """An app, its address, and a function that sends a photo and gives status and error code."""
    models.limits = dataclasses.replace(LIMITS, **limits)
    with (
        running(models, models.limits) as (url, app),
        httpx.Client(base_url=url, timeout=120) as client,
    ):

        def ask(path: str = "/v1/segment", content: bytes | None = None) -> tuple[int, str]:
            if path.startswith("/v1/"):
                answer = client.post(path, content=photo() if content is None else content)
            else:
                answer = client.get(path)
            code = "" if answer.status_code == 200 else answer.json()["error"]["code"]
            return answer.status_code, code

        yield app, ask, url


# --- time ----------------------------------------------------------------------------------------


class Stuck:
    """Encodes nothing until it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.may = threading.Semaphore(0), threading.Event()
        monkeypatch.setattr(app_module, "encode", self)

    def __call__(self, *_: Any) -> bytes:
        self.began.release()
        assert self.may.wait(120)
        return b"done"


def test_slow_encoding_ends_with_the_deadline_and_holds_up_no_decoding(models, monkeypatch):
    stuck = Stuck(monkeypatch)
    with asked(models) as (app, ask, url):
        socks = [connect(url) for _ in range(2)]
        for sock in socks:
            sock.sendall(request(photo()))
        for _ in socks:
            assert stuck.began.acquire(timeout=120)
        assert ask(content=b"no image") == (422, "image")
        assert ask("/v1/segment?deadline=1") == (504, "deadline")
        for sock in socks:
            sock.close()
        until(lambda: not app.service.admission.requests)
        stuck.may.set()
        assert ask() == (200, "")


def test_slow_decoding_ends_with_the_deadline(models, monkeypatch):
    may = threading.Event()
    monkeypatch.setattr(service, "read_pixels", lambda *_, **__: may.wait(120))
    with asked(models) as (app, ask, _):
        assert ask("/v1/segment?deadline=1") == (504, "deadline")
        assert not app.service.admission.requests
        may.set()


def test_slow_forms_end_with_the_deadline_and_hold_up_nobody(models, monkeypatch):
    may = threading.Event()
    monkeypatch.setattr(
        bodies, "_file_of_form", slow := AsyncMock(side_effect=lambda *_: may.wait(120))
    )
    with asked(models) as (app, ask, url), httpx.Client(base_url=url, timeout=120) as client:
        files = {"image": ("a.png", photo())}
        answer = client.post("/v1/segment?deadline=1", files=files)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")
        assert slow.await_count == 1
        assert ask("/healthz") == (200, "")
        assert not app.service.admission.requests
        may.set()


def test_a_noisy_mask_makes_no_polygons(models, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 9, (200, 200), dtype=np.uint8)
    with pytest.raises(Refusal, match="min_pixels") as caught:
        large_regions(noise, 9, 1)
    assert (caught.value.status, caught.value.code) == (413, "too_many_regions")
    assert (large_regions(noise, 9, 200) == 255).all()
    monkeypatch.setattr(regions, "MAX_BOX_PIXELS", 40 * 48 - 1)
    with asked(models) as (_, ask, _):
        for kind in ("geojson", "coco", "coco_rle", "labelme"):
            assert ask(f"/v1/segment?format={kind}") == (413, "too_many_regions")
        assert ask("/v1/segment?format=geojson&min_pixels=100000") == (200, "")
        assert ask("/v1/segment?format=mask") == (200, "")


def test_polygons_are_those_of_the_whole_mask():
    _, mask = scenes.draw("polygons", 1, size=96)
    mask[::7, ::5] = 3
    mask[50:60, 20:30] = 255
    labels = scenes.LABELS

    def polygons(mask: np.ndarray) -> bytes:
        empty = np.zeros(mask.shape, np.float32)
        return Result(mask, mask, empty, labels, empty.copy).encode("geojson", min_pixels=9)

    large = large_regions(mask, len(labels.classes), 9)
    assert (large != mask).any()
    assert polygons(large) == polygons(mask)


def test_a_recorded_model_stops_when_nobody_waits(source, monkeypatch):
    """Its replayed passes call no hooks."""

    class Replayed:
        def __init__(self, model):
            self.model, self.output = model, None

        def coarse(self, images):
            self.output = self.output or self.model.coarse(images)
            return self.output

    monkeypatch.setattr("setr.prediction.placed.recorded", Replayed)
    models, key = Models([source], LIMITS, device="cpu"), Key("pup", "segment", 64, 64)
    image = np.zeros((64, 64, 3), np.uint8)
    assert models.run(key, [image], lambda: True)[0].mask.shape == (64, 64)
    with pytest.raises(DeadlinePassed):
        models.run(key, [image], lambda: False)


def test_rollout_stops_when_nobody_waits(models):
    """Two blocks of two heads: asked before the encoder, and before each of their weights."""
    calls: list[bool] = []

    def wanted() -> bool:
        calls.append(len(calls) < 3)
        return calls[-1]

    question = Question(read_image(photo()), 0.5, 0.5, 0)
    key = Key("pup", "rollout", 40, 48)
    with pytest.raises(DeadlinePassed):
        models.run(key, [question], wanted)
    assert calls == [True, True, True, False]
    assert models.run(key, [question], lambda: True)[0].heads == 0


# --- amounts -------------------------------------------------------------------------------------


def test_what_fits_beside_others_and_what_does_not():
    """Bytes of 16 bodies, pixels of two images; the first may have any size."""
    admission = Admission(Limits(max_bytes=10, max_pixels=100, max_scores=50, max_unsent=70))
    for budget, most in (
        (admission.bytes, 160),
        (admission.pixels, 200),
        (admission.scores, 50),
        (admission.unsent, 70),
    ):
        budget.take(1)
        budget.take(most - 1)
        with pytest.raises(Refusal, match="the server is full") as caught:
            budget.take(1)
        assert (caught.value.status, caught.value.code) == (429, "busy")
        budget.give_back(most)
        budget.take(10 * most)


def test_the_queue_is_full_at_its_number_and_says_for_how_long():
    admission = Admission(Limits(queue=30))
    with contextlib.ExitStack() as inside:
        for _ in range(30):
            inside.enter_context(admission.admit())
        for seconds, wait in ((0.5, 15), (0.001, 1), (1000.0, 60)):
            admission.seconds_per_image = seconds
            with pytest.raises(Refusal) as caught, admission.admit():
                pass
            assert caught.value.headers == {"Retry-After": str(wait)}
        assert admission.requests == 30
    assert admission.requests == 0


# --- memory --------------------------------------------------------------------------------------


def test_rollout_has_a_limit_of_its_own(models):
    with asked(models, rollout_patches=29) as (_, ask, _):
        assert ask("/v1/attention?x=0&y=0&layer=0") == (413, "too_many_patches")
        assert ask("/v1/attention?x=0&y=0&layer=1") == (200, "")
    with asked(models, rollout_patches=30) as (_, ask, _):
        assert ask("/v1/attention?x=0&y=0&layer=0") == (200, "")


def test_scores_run_alone_and_leave_the_model_at_half_size(models):
    key = Key("pup", "scores", 40, 48)
    assert models.batch_size(key) == 1
    (result,) = models.run(key, [read_image(photo())], lambda: True)
    assert result.scores.dtype == np.float16


def test_all_scores_inside_have_a_limit_until_they_are_sent(models, monkeypatch):
    count = 40 * 48 * len(scenes.CLASSES)
    with asked(models, max_scores=count) as (app, ask, url):
        held = app.service.admission.scores
        assert ask("/v1/segment?format=scores") == (200, "")
        until(lambda: held.held == 0)
        monkeypatch.setattr(app_module, "encode", lambda *_: bytes(64 << 20))
        with connect(url, buffer=4096) as slow:
            slow.sendall(request(photo(), "format=scores"))
            assert slow.recv(100).startswith(b"HTTP/1.1 200")
            assert not app.service.admission.requests  # it is being sent
            assert held.held == count
            assert ask("/v1/segment?format=scores") == (429, "busy")
        until(lambda: held.held == 0)
        assert ask("/v1/segment?format=scores") == (200, "")
    with asked(models, max_scores=count - 1) as (_, ask, _):
        assert ask("/v1/segment?format=scores") == (413, "too_many_scores")


def test_answers_that_are_not_taken_have_a_limit(models, monkeypatch):
    """A client may take half a minute for each 256 KB, and many may do so."""
    monkeypatch.setattr(app_module, "encode", lambda *_: bytes(64 << 20))
    with asked(models, max_unsent=(64 << 20) + 1) as (app, ask, url):
        unsent = app.service.admission.unsent
        with connect(url, buffer=4096) as slow:
            slow.sendall(request(photo()))
            assert slow.recv(100).startswith(b"HTTP/1.1 200")
            assert unsent.held == 64 << 20
            assert ask() == (429, "busy")
            assert unsent.held == 64 << 20
        until(lambda: unsent.held == 0)
        assert ask() == (200, "")


def test_a_batch_that_does_not_fit_into_memory_runs_one_by_one(models, monkeypatch):
    predictor = models.by_name["pup"]
    real, sizes = predictor.predict_batch, []

    def cramped(images: Any) -> Any:
        sizes.append(len(images))
        if len(images) > 1:
            raise SHORT
        return real(images)

    monkeypatch.setattr(predictor, "predict_batch", cramped)
    images = [read_image(photo(i)) for i in range(3)]
    found = models.run(Key("pup", "segment", 40, 48), images, lambda: True)
    assert sizes == [3, 1, 1, 1]
    for image, result in zip(images, found, strict=True):
        assert (result.mask == real([image])[0].mask).all()


def test_an_image_that_does_not_fit_into_memory_is_503(models, monkeypatch):
    def short(*_: Any, **__: Any) -> Any:
        raise SHORT

    with asked(models) as (_, ask, _):
        for where, name, path in (
            (models.by_name["pup"], "predict_batch", "/v1/segment"),
            (models.by_name["pup"], "predict", "/v1/segment?format=scores"),
            (models_module, "attention_maps", "/v1/attention?x=0&y=0"),
            (models_module, "attention_rollout", "/v1/attention?x=0&y=0&layer=0"),
            (service, "read_pixels", "/v1/segment"),
            (app_module, "encode", "/v1/segment"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(where, name, short)
                assert ask(path) == (503, "memory"), (name, path)
        assert ask() == (200, "")
        assert ask("/healthz") == (200, "")


def refused(models: Models, height: int, width: int) -> str:
    """The error code for an image of this size; empty if it is taken."""
    (name,) = models.by_name
    try:
        models.check(name, height, width, "segment")
    except Refusal as refusal:
        return refusal.code
    return ""


def test_images_are_seen_whole_or_refused(source):
    models = Models([source], Limits(max_patches=10**9), device="cpu", precision="fp32")
    predictor = models.by_name["pup"]
    assert models.max_pixels("pup") == WHOLE_PIXELS
    for height, code in ((2048, ""), (2049, "too_many_pixels")):
        assert refused(models, height, 2048) == code
        assert (predictor._protocol((height, 2048)) == predictor.info.protocol) == (not code)
    models = Models([source], LIMITS, device="cpu", precision="fp32", window=512)
    assert refused(models, 5000, 10_000) == ""


def test_images_are_scaled_to_a_short_side(source):
    limits = Limits(max_patches=100)
    models = Models([source], limits, device="cpu", precision="fp32", short_side=32)
    assert models.by_name["pup"].info.protocol.short_side == 32
    assert refused(models, 3000, 4000) == ""


def test_the_size_that_attention_would_take_is_named(source):
    """A window bounds the patches of a segmentation; attention looks at the whole image."""
    limits = Limits(max_patches=100)
    models = Models([source], limits, device="cpu", precision="fp32", window=32)
    models.check("pup", 400, 300, "segment")
    with pytest.raises(Refusal, match=r"1,900 patches .* to at most 6,400 pixels"):
        models.check("pup", 400, 300, "attention")
    models.check("pup", 80, 80, "attention")


def test_patches_of_exported_models_are_counted(source, tmp_path):
    pytest.importorskip("onnx")
    path = tmp_path / "pup.onnx"
    export(*from_pretrained(source), path, format="onnx")
    models = Models([str(path)], Limits(max_patches=30), device="cpu")
    assert models.max_pixels("pup.onnx") == 30 * 64
    assert refused(models, 40, 48) == ""
    assert refused(models, 40, 49) == "too_many_patches"
    with running(models, Limits()) as (url, _):
        answer = httpx.post(f"{url}/v1/attention?x=0&y=0", content=photo(), timeout=120)
        (card,) = httpx.get(f"{url}/v1/models").json()["models"]
    assert card["parameters"] is None  # not 0
    assert answer.status_code == 422
    assert "a file of setr export" in answer.json()["error"]["message"]
    values = {
        "labels": {"classes": ["a"]},
        "export": {"patch_size": 8, "precision": "fp32"},
        "mean": [0],
        "std": [1],
    }
    for decoder, patch in (("pup", 8), ("fcn", 0)):
        model = ExportedModel(
            lambda images: [images], {**values, "model": {"decoder": decoder}}, "model.onnx"
        )
        assert patch_size(SimpleNamespace(model=model)) == patch  # type: ignore[arg-type]


# --- threads and connections ---------------------------------------------------------------------


def test_who_never_takes_an_answer_is_disconnected(models, monkeypatch):
    monkeypatch.setattr(server, "PART_WAY", 0.2)
    limits = dataclasses.replace(LIMITS, send_seconds=0.5)
    gate = create_app(models, limits)
    routes = gate.app

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await routes(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})

    gate.app = endless
    with listening(gate, limits) as (url, listener), connect(url, buffer=4096) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: listener.server_state.tasks)
        until(lambda: not listener.server_state.tasks)
        until(lambda: not listener.server_state.connections)


def test_who_takes_not_even_the_headers_is_disconnected(models):
    """Answers to requests before it on the connection may fill all buffers."""
    gate = create_app(models, dataclasses.replace(LIMITS, send_seconds=0.1))
    scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": []}
    scope |= {"query_string": b"", "raw_path": b"/healthz"}

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Any) -> None:
        await anyio.sleep_forever()

    async def ask() -> None:
        with anyio.fail_after(60):
            await gate(scope, receive, send)

    with pytest.raises(ConnectionAbortedError):
        anyio.run(ask)
    gate.service.close()


def test_a_server_that_only_fails_says_so(models, monkeypatch):
    def fault(*_: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with asked(models) as (app, ask, _):
        with monkeypatch.context() as patch:
            patch.setattr(app.service.batcher, "_run", fault)
            for _ in range(MAX_FAULTS):
                assert ask("/healthz") == (200, "")
                assert ask() == (500, "internal")
        for path in ("/healthz", "/readyz"):
            assert ask(path) == (503, "unhealthy")
        assert ask() == (200, "")
        for path in ("/healthz", "/readyz"):
            assert ask(path) == (200, "")


# --- keys ----------------------------------------------------------------------------------------


def test_metrics_may_be_open(models):
    with running(models, LIMITS, keys=("secret",), open_metrics=True) as (url, _):
        assert httpx.get(f"{url}/metrics").status_code == 200
        assert httpx.get(f"{url}/v1/models").status_code == 401
        paths = httpx.get(f"{url}/openapi.json").json()["paths"]
        assert "security" not in paths["/metrics"]["get"]
        assert paths["/v1/models"]["get"]["security"]


def test_keys_are_read_as_they_were_meant(tmp_path, monkeypatch):
    monkeypatch.delenv("SETR_API_KEYS", raising=False)
    assert read_keys(None) == []
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbffirst\r\n  # a note\n\n second \n#third\n")
    assert read_keys(file) == ["first", "second"]
    monkeypatch.setenv("SETR_API_KEYS", " a, b,")
    assert read_keys(None) == ["a", "b"]
    assert read_keys(file) == ["a", "b", "first", "second"]


@pytest.mark.parametrize("listed", ["", " ", ",", "schlüssel", "a,b\x07"])
def test_keys_that_would_let_all_or_nobody_in_end_the_start(tmp_path, monkeypatch, capsys, listed):
    monkeypatch.setenv("SETR_API_KEYS", listed)
    said = refusal(capsys, "serve", "no/such/model")
    assert said.startswith("setr: SETR_API_KEYS: ")
    assert "schl" not in said
    monkeypatch.delenv("SETR_API_KEYS")
    file = tmp_path / "keys"
    file.write_text("\n".join(["# none", *listed.split(",")]), encoding="utf-8")
    with pytest.raises(SetrError, match=r"keys: (has no keys|key [12] is not)"):
        read_keys(file)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        *((f"--max-mb {value}", "0.001 to 1,000,000") for value in ("nan", "inf", "1e-7", "-1")),
        ("--deadline nan", "0.001 to 1,000,000"),
        ("--drain inf", "0.001 to 1,000,000"),
        *((f"--wait-ms {value}", "0 to 1,000,000,000") for value in ("nan", "1e300", "-5")),
        *(
            (f"--{name} 0", "at least 1")
            for name in ("batch", "queue", "max-pixels", "max-patches")
        ),
    ],
)
def test_numbers_out_of_range_end_the_start_by_the_name_of_their_option(options, rule, capsys):
    assert main(["serve", "no/such/model", *options.split()]) == USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"setr: {options.split()[0]} ")
    assert said.endswith(f": give {rule}\n")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch 0: give at least 1"),
        ({"wait": -1}, "wait -1: give 0 to 1,000,000 seconds"),
        ({"deadline": 0}, "deadline 0: give more than 0, at most 1,000,000 seconds"),
        ({"drain": float("nan")}, "drain nan: give more than 0"),
    ],
)
def test_limits_say_their_rule(wrong, message):
    with pytest.raises(SetrError, match=message):
        Limits(**wrong)
    assert Limits(wait=0, deadline=1).wait == 0

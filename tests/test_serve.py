"""The server over real sockets: answers, refusals, hostile clients."""

from __future__ import annotations

import base64
import dataclasses
import errno
import io
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
import httpx

from setr import loading
from setr.cli import main
from setr.data import scenes
from setr.errors import FAILED, USAGE, SetrError
from setr.images import read_image
from setr.reading.masks import read_mask
from setr.serve import gate
from setr.serve.answers import FORMATS
from setr.serve.limits import Limits
from setr.serve.models import Models, split_name
from setr.serve.server import allow_connections, listen
from tests.serving import connect, photo, request, running, save_models, until

LIMITS = Limits(
    max_bytes=300_000, max_pixels=90_000, max_patches=900, header_seconds=120.0, body_seconds=120.0,
    deadline=120.0, batch=4,
)  # fmt: skip
"""Nothing is too slow for them; `impatient` is the server for those who are."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def url(sources: list[str]) -> Iterator[str]:
    with running(Models(sources, LIMITS, device="cpu", precision="fp32"), LIMITS) as (url, _):
        yield url


@pytest.fixture(scope="module")
def impatient(sources: list[str]) -> Iterator[str]:
    limits = dataclasses.replace(LIMITS, header_seconds=2.0, body_seconds=2.0)
    with running(Models(sources[:1], limits, device="cpu", precision="fp32"), limits) as (url, _):
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=120) as client:
        yield client


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def raw(url: str, data: bytes) -> bytes:
    """What the server says to these bytes, until it closes."""
    with connect(url) as sock:
        sock.sendall(data)
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
        return b"".join(parts)


# --- answers -------------------------------------------------------------------------------------


def test_every_format_is_what_the_predictor_says(client, sources):
    expected = loading.load(sources[1], device="cpu", precision="fp32").predict(photo())
    for kind, form in FORMATS.items():
        query = {"model": "mla", "format": kind, "opacity": 0.3}
        answer = client.post("/v1/segment", params=query, content=photo())
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith(form.media_type)
        assert form.ending in answer.headers["content-disposition"]
        if kind == "json":
            continue
        if kind == "overlay":
            assert (read_image(answer.content) == expected.overlay(0.3)).all()
        elif kind == "scores":
            saved = np.load(io.BytesIO(answer.content))
            np.testing.assert_allclose(saved["scores"], expected.scores, atol=2e-3)
        else:
            assert answer.content == expected.encode(kind), kind


def test_json_has_all_the_page_needs(client):
    answer = client.post("/v1/segment?format=json", content=photo()).json()
    mask = read_mask(base64.b64decode(answer["mask"]))
    assert mask.shape == (answer["height"], answer["width"]) == (40, 48)
    assert answer["model"] == "pup"
    shares = {c["id"]: c["share"] for c in answer["classes"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert all((mask == i).mean() == pytest.approx(share) for i, share in shares.items())
    sure = read_mask(base64.b64decode(answer["confidence"]))
    assert sure.mean() / 255 == pytest.approx(answer["mean_confidence"], abs=0.01)


def test_unsure_pixels_are_unlabelled_where_asked_for(client, sources):
    plain = loading.load(sources[0], device="cpu", precision="fp32").predict(photo())
    least = float(np.median(plain.confidence))
    expected = plain.with_min_confidence(least)
    query = {"min_confidence": least, "format": "ids"}
    answer = client.post("/v1/segment", params=query, content=photo())
    assert answer.content == expected.encode("ids") != plain.encode("ids")
    answer = client.post("/v1/segment", params={**query, "format": "json"}, content=photo()).json()
    assert answer["unlabelled"] == expected.unsure / expected.mask.size > 0
    assert sum(c["share"] for c in answer["classes"]) == pytest.approx(1 - answer["unlabelled"])
    assert "unlabelled" not in client.post("/v1/segment?format=json", content=photo()).json()
    assert error(client.post("/v1/segment?min_confidence=50", content=photo()))[0] == 422


def test_raw_and_form_give_the_same(client):
    plain = client.post("/v1/segment", content=photo()).content
    for name in ("a.png", "../../etc/passwd", 'x"\r\nX-Evil: 1', "ü" * 300):
        form = client.post("/v1/segment", files={"image": (name, photo())})
        assert form.status_code == 200
        assert form.content == plain
        assert "x-evil" not in form.headers


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("application/json", "application/json"),
        ("text/html, application/geo+json;q=0.9", "application/geo+json"),
        ("image/png;q=0.1, application/json", "application/json"),
    ],
)
def test_accept_chooses(client, accept, kind):
    answer = client.post("/v1/segment", content=photo(), headers={"Accept": accept})
    assert answer.headers["content-type"] == kind


def test_attention_of_a_point(client):
    query = {"x": 0.99, "y": 0.0, "model": "mla"}
    answer = client.post("/v1/attention", params=query, content=photo()).json()
    assert (answer["rows"], answer["columns"]) == (5, 6)
    assert (answer["row"], answer["column"]) == (0, 5)
    assert (answer["layer"], answer["heads"]) == (2, 2)
    assert answer["covers"] == [40, 48]
    assert read_mask(base64.b64decode(answer["map"])).shape == (5, 6)
    rollout = client.post("/v1/attention", params={**query, "layer": 0}, content=photo()).json()
    assert rollout["heads"] == 0
    assert rollout["map"] != answer["map"]


def test_what_is_served(client):
    cards = client.get("/v1/models").json()
    assert [m["name"] for m in cards["models"]] == ["pup", "mla"]
    assert [c["name"] for c in cards["models"][0]["classes"]] == list(scenes.CLASSES)
    assert cards["models"][0]["max_pixels"] == 900 * 64
    assert cards["models"][0]["parameters"] > 1000
    assert cards["max_bytes"] == LIMITS.max_bytes
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_pages_load_nothing_from_elsewhere(client):
    for path in ("/", "/docs"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        text = re.sub(r"xmlns='[^']*'", "", answer.text)
        assert not re.search(r"https?://(?!127)", text)
        assert " style=" not in text  # the policy would drop it
        assert not re.search(r"<[^>]+ on\w+=", text)
        assert client.get(path, params={"text": "<h1>forged</h1>"}).text == answer.text
    assert "access-control-allow-origin" not in client.options("/v1/segment").headers


def test_metrics_and_log(client, monkeypatch):
    log = io.StringIO()  # a captured stderr loses what a thread writes while it is read
    monkeypatch.setattr(gate, "sys", SimpleNamespace(stderr=log))
    client.post("/v1/segment", content=photo(), headers={"X-Request-ID": "mine-1"})
    until(lambda: '"mine-1"' in log.getvalue())
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    line = next(line for line in lines if line["id"] == "mine-1")
    said = {"model": "pup", "status": 200, "route": "/v1/segment", "width": 48}
    assert said.items() <= line.items()
    assert line["ms"] >= line["model_ms"] > 0
    assert line["bytes_in"] == len(photo())
    client.head("/", headers={"X-Request-ID": "mine-2"})
    until(lambda: '"mine-2"' in log.getvalue())
    assert json.loads(log.getvalue().splitlines()[-1])["bytes_out"] == 0
    page = client.get("/metrics").text
    assert re.search(r'setr_requests_total\{route="/v1/segment",status="200"\} \d', page)
    assert 'setr_batch_size_count{model="pup"}' in page
    client.get("/no/such/place-of-a-stranger")
    assert "stranger" not in client.get("/metrics").text


# --- refusals ------------------------------------------------------------------------------------


def test_bodies_that_are_no_image(client):
    post = client.post
    assert error(post("/v1/segment", content=b"")) == (400, "empty")
    assert error(post("/v1/segment", content=b"hello")) == (422, "image")
    assert error(post("/v1/segment", content=photo()[:900])) == (422, "image")
    assert error(post("/v1/segment", json={"image": 1})) == (415, "content_type")
    assert error(post("/v1/segment", data={"image": "x"})) == (415, "content_type")
    assert error(post("/v1/segment", files={"file": photo()})) == (400, "form")
    answer = post("/v1/segment", files={"image": photo()}, data={"format": "json"})
    assert error(answer) == (400, "form")
    assert "parameters go into the address" in answer.text
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    almost = head + photo() + b"\r\n--xy" * 200 + b"\r\n--x--\r\n"  # each takes some time
    answer = post("/v1/segment", content=almost, headers=broken)
    assert error(answer) == (400, "form")
    assert "too many boundaries" in answer.text
    for headers in (broken, {"Content-Type": "multipart/form-data"}):
        assert error(post("/v1/segment", content=b"nonsense", headers=headers)) == (400, "form")
    zipped = {"Content-Encoding": "gzip"}
    assert error(post("/v1/segment", content=photo(), headers=zipped)) == (415, "content_type")


def test_parameters(client):
    def ask(**query):
        return error(client.post("/v1/segment", params=query, content=photo()))

    assert ask(model="../pup") == (404, "unknown_model")
    assert ask(format="jpeg") == (422, "parameter")
    assert ask(opacity=2) == (422, "parameter")
    assert ask(deadline=1e9) == (422, "parameter")
    assert ask(opacity="nan") == (422, "parameter")
    assert ask(formt="json") == (422, "parameter")  # would get a mask
    assert ask(format=["json", "mask"]) == (422, "parameter")
    told = client.post("/v1/segment?min_confidnce=0.5", content=photo()).json()["error"]["message"]
    assert told == "min_confidnce: no such parameter; did you mean min_confidence?"
    told = client.post("/v1/attention?x=0&y=0&a=1", content=photo()).json()["error"]["message"]
    assert told == "a: no such parameter; there are: x, y, model, layer, deadline"
    accept = {"Accept": "audio/ogg"}
    assert error(client.post("/v1/segment", content=photo(), headers=accept)) == (406, "accept")
    assert error(client.post("/v1/attention?x=2&y=0", content=photo())) == (422, "parameter")
    assert error(client.get("/v1/segment")) == (405, "http")
    assert client.get("/v1/segment").headers["allow"] == "POST"
    told = client.post("/predict", content=photo()).json()["error"]["message"]
    assert told.startswith("no such route; POST /v1/segment takes an image")
    for path in ("/../../etc/passwd", "/%2e%2e/pyproject.toml", "/v1/segment/", "/x%00y"):
        assert client.get(path).status_code in (404, 405), path


def test_a_head_request_gets_the_headers_of_a_get(client):
    """What monitors and `curl -I` ask with."""
    for path in ("/", "/docs", "/healthz", "/readyz", "/metrics", "/v1/models"):
        head, full = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == full.headers["content-type"]
    assert client.head("/").headers["content-length"] == str(len(client.get("/").content))
    assert client.head("/v1/segment").status_code == 405
    assert client.head("/nothing").status_code == 404


def test_sizes_are_refused_from_the_header(client):
    def blank(width, height):
        buffer = io.BytesIO()
        Image.new("1", (width, height)).save(buffer, "PNG")
        return buffer.getvalue()

    def ask(data, **query):
        return error(client.post("/v1/segment", params=query, content=data))

    assert ask(blank(20000, 20000)) == (413, "too_many_pixels")
    assert ask(blank(310, 300)) == (413, "too_many_pixels")
    assert ask(blank(300, 290)) == (413, "too_many_patches")
    assert client.post("/v1/segment", content=blank(1, 1)).status_code == 200


def test_odd_images_end_as_their_table_says(sources, shared):
    refused = {
        "truncated.jpg": (422, "image"),
        "truncated.png": (422, "image"),
        "text_renamed.jpg": (422, "image"),
        "zero_byte.jpg": (400, "empty"),
        "bomb_400Mpx.png": (413, "too_many_pixels"),
        "8000x6000.jpg": (413, "too_many_patches"),
    }
    limits = Limits(max_patches=4000)
    models = Models(sources[:1], limits, device="cpu", precision="fp32")
    done = 0
    with running(models, limits) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        for path in sorted((shared / "data" / "odd_inputs" / "images").iterdir()):
            answer = client.post("/v1/segment?format=ids", content=path.read_bytes())
            if path.name in refused:
                assert error(answer) == refused.pop(path.name), path.name
                continue
            assert answer.status_code == 200, path.name
            assert read_mask(answer.content).shape == read_image(path).shape[:2], path.name
            done += 1
    assert not refused
    assert done > 12


@pytest.mark.parametrize("announced", [True, False])
def test_ten_gigabytes_are_cut_at_the_limit(url, client, announced):
    """The client is answered early, and the server reads little more than its limit."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10 << 30:
            sent += 65536
            yield bytes(65536)

    headers = {"Content-Length": str(10 << 30)} if announced else {}
    try:
        answer = client.post("/v1/segment", content=endless(), headers=headers)
        assert error(answer) == (413, "too_large")
    except (httpx.WriteError, httpx.ReadError):
        pass  # some clients only notice that the connection was closed
    assert sent < 64 << 20
    head = "POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    length = (
        f"Content-Length: {10 << 30}\r\n\r\n" if announced else "Transfer-Encoding: chunked\r\n\r\n"
    )
    body = b"" if announced else b"%x\r\n%s\r\n" % (400_000, bytes(400_000))
    answer = raw(url, (head + length).encode() + body)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"too_large" in answer


def test_slow_clients_are_given_up(impatient):
    assert raw(impatient, b"") == b""
    assert raw(impatient, b"POST /v1/segment HTTP/1.1\r\nX-Slow: ") == b""
    assert raw(impatient, request(b"abcdefghi")[:-6]).startswith(b"HTTP/1.1 408")


def test_a_trickle_of_headers_is_given_up(impatient):
    def trickle() -> None:
        with connect(impatient) as sock:
            for byte in b"GET / HTTP/1.1\r\nX-Slow: " + b"a" * 2000:
                sock.sendall(bytes([byte]))
                time.sleep(0.05)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        trickle()


def test_idle_connections_do_not_keep_others_out(impatient):
    allow_connections()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2500:
        pytest.skip("needs both ends of a thousand connections in one process (ulimit -Hn)")
    idle = [connect(impatient) for _ in range(1000)]
    try:
        with httpx.Client(base_url=impatient, timeout=120) as client:
            assert client.post("/v1/segment", content=photo()).status_code == 200
        assert idle[-1].recv(1) == b""  # closed by the server after its time
    finally:
        for sock in idle:
            sock.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000,
        b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nsix\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000_000,  # still sending when refused
    ],
)
def test_broken_http(url, data):
    head, _, body = raw(url, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "http"


def test_pages_of_other_sites_are_refused(client):
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert error(client.post("/v1/segment", content=photo(), headers=headers)) == (
        403,
        "cross_site",
    )
    assert client.get("/", headers=headers).status_code == 200


# --- many at once --------------------------------------------------------------------------------


def test_answers_of_a_crowd_are_not_mixed_up(url, sources):
    """Mixed sizes and models at once: every answer is the offline one of its own image."""
    offline = {Path(s).name: loading.load(s, device="cpu", precision="fp32") for s in sources}
    cases = [
        (name, photo(i, 40, 48 + 8 * (i % 2))) for i in range(6) for name in ("pup", "mla")
    ] * 2
    answers: dict[int, np.ndarray] = {}

    def work(first: int) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            for i in range(first, len(cases), 8):
                name, data = cases[i]
                answer = client.post(f"/v1/segment?format=scores&model={name}", content=data)
                answers[i] = np.load(io.BytesIO(answer.content))["scores"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    expected = [offline[name].predict(data).scores for name, data in cases[:12]]
    for i in range(len(cases)):
        distance = [
            float(abs(answers[i] - e).max()) if e.shape == answers[i].shape else np.inf
            for e in expected
        ]
        assert int(np.argmin(distance)) == i % 12
        assert min(distance) < 1e-3  # batches round differently, float16 too


class Held(Models):
    """Models that compute nothing until they may."""

    def __init__(self, sources: list[str], limits: Limits) -> None:
        super().__init__(sources, limits, device="cpu", precision="fp32")
        self.began, self.may = threading.Event(), threading.Event()
        self.stopped = False

    def run(self, key, items, wanted):
        self.began.set()
        while not self.may.wait(0.01):
            if not wanted():
                self.stopped = True
        return super().run(key, items, wanted)


def test_full_queue_late_and_leaving_clients(sources):
    limits = Limits(queue=2, batch=1, deadline=120.0, drain=5.0)
    models = Held(sources[:1], limits)
    with running(models, limits) as (url, app), httpx.Client(base_url=url, timeout=120) as client:
        service = app.service
        first = threading.Thread(target=lambda: client.post("/v1/segment", content=photo()))
        first.start()
        assert models.began.wait(120)
        late = client.post("/v1/segment?deadline=3", content=photo())
        assert error(late) == (504, "deadline")
        leaver = connect(url)
        leaver.sendall(request(photo()))
        until(lambda: service.admission.requests == 2 and len(service.batcher) == 1)
        full = client.post("/v1/segment", content=photo())
        assert error(full) == (429, "busy")
        assert 1 <= int(full.headers["retry-after"]) <= 60
        leaver.close()
        until(lambda: service.admission.requests == 1)
        assert (len(service.batcher), service.batcher.dropped) == (0, 2)  # though one computes
        assert client.get("/readyz").status_code == 200
        models.may.set()
        first.join(120)
        assert not first.is_alive()
        until(lambda: not service.admission.requests)
        assert service.admission.bytes.held == service.admission.pixels.held == 0
        service.draining = True
        assert error(client.get("/readyz")) == (503, "draining")


def test_a_fault_is_500_and_the_server_lives(sources, capfd, monkeypatch):
    limits = Limits(drain=5.0)
    models = Models(sources[:1], limits, device="cpu", precision="fp32")
    with running(models, limits) as (url, app), httpx.Client(base_url=url, timeout=120) as client:
        with monkeypatch.context() as patch:
            patch.setattr(app.service.batcher, "_run", lambda *_: 1 / 0)
            answer = client.post("/v1/segment", content=photo())
            assert error(answer) == (500, "internal")
        assert client.post("/v1/segment", content=photo()).status_code == 200
    assert "Traceback" in capfd.readouterr().err


def test_keys(sources):
    limits = Limits(drain=5.0)
    models = Models(sources[:1], limits, device="cpu", precision="fp32")
    with (
        running(models, limits, keys=("other", "secret")) as (url, _),
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        wrong = client.post("/v1/segment", content=photo())
        assert error(wrong) == (401, "key")
        assert wrong.headers["www-authenticate"] == "Bearer"
        for header in (
            {"Authorization": "Bearer wrong"},
            {"X-API-Key": ""},
            {"X-API-Key": "secre"},
        ):
            assert client.get("/v1/models", headers=header).status_code == 401
        for header in ({"Authorization": "Bearer secret"}, {"X-API-Key": "secret"}):
            assert client.get("/v1/models", headers=header).status_code == 200
        assert client.get("/metrics").status_code == 401
        for path in ("/", "/docs", "/healthz", "/readyz", "/openapi.json"):
            assert client.get(path).status_code == 200
        paths = client.get("/openapi.json").json()["paths"]
        assert paths["/v1/segment"]["post"]["security"]
        assert "security" not in paths["/healthz"]["get"]


# --- the command ---------------------------------------------------------------------------------


def test_what_cannot_start_ends_with_one_line(sources, tmp_path, capsys):
    def fails(*arguments: str) -> tuple[int, str]:
        code = main(["serve", "--port", "0", *arguments])
        message = capsys.readouterr().err.strip()
        assert "\n" not in message
        return code, message

    assert fails(str(tmp_path / "none"))[0] == USAGE
    assert fails(sources[0], "--port", "99999") == (USAGE, "setr: --port 99999: give 0 to 65,535")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    code, message = fails(sources[0], str(tmp_path / "broken"))
    assert code == FAILED
    assert "broken" in message
    assert fails(sources[0], sources[0])[0] == USAGE
    assert fails()[0] == USAGE
    assert fails(sources[0], "--queue", "0")[0] == USAGE
    assert fails(sources[0], "--api-keys", str(tmp_path / "keys"))[0] == USAGE
    (tmp_path / "keys").write_text("# none yet\n")
    assert fails(sources[0], "--api-keys", str(tmp_path / "keys"))[0] == USAGE
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", sources[0], "--port", port]) == FAILED
        message = capsys.readouterr().err
        assert message.startswith(f"setr: 127.0.0.1:{port}: cannot listen here (")
        assert message.endswith("); give another --host or --port\n")


def test_a_port_is_taken_before_models_are_loaded():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SetrError, match=f"127.0.0.1:{port}: cannot listen here"):
            listen("127.0.0.1", port)


def test_open_files_are_raised_where_the_system_lets(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits in ((256, sys.maxsize), (256, 4096), (20_000, 30_000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        allow_connections()
    assert asked == [(10_240, sys.maxsize), (4096, 4096)]
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    allow_connections()


def test_no_room_for_a_connection_is_said_once(sources, monkeypatch, capsys):
    """asyncio alone tries, and writes a traceback, a thousand times a second."""
    models = Models(sources[:1], LIMITS, device="cpu", precision="fp32")
    tries, room, accept = [], threading.Event(), socket.socket.accept

    def accepting(listener: socket.socket) -> tuple[socket.socket, object]:
        if room.is_set():
            return accept(listener)
        tries.append(listener)
        raise OSError(errno.EMFILE, "Too many open files")

    with running(models, LIMITS) as (url, _):
        capsys.readouterr()
        monkeypatch.setattr(socket.socket, "accept", accepting)
        waiting = connect(url)
        until(lambda: len(tries) > 1)
        room.set()
        assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
        waiting.close()
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("{")]
    assert len(tries) < 10
    assert said == [
        "setr: no room for another connection (Too many open files); new ones wait until others "
        "close; see `ulimit -n`"
    ]


def test_the_health_check_of_the_image_asks_no_proxy(sources):
    dockerfile = (Path(__file__).parents[1] / "Dockerfile").read_text()
    _, *command = json.loads(re.search(r"HEALTHCHECK.*\\\n +CMD (.*)", dockerfile)[1])
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
    models = Models(sources[:1], LIMITS, device="cpu", precision="fp32")
    with running(models, LIMITS) as (url, app):

        def check() -> int:
            given = [part.replace("8000", url.rsplit(":", 1)[1]) for part in command]
            return subprocess.run(
                [sys.executable, *given], env={**os.environ, **proxy}, check=False
            ).returncode

        assert check() == 0
        app.service.draining = True
        assert check() != 0


def test_names_of_models(tmp_path, monkeypatch):
    (tmp_path / "best").mkdir()
    assert split_name(f"a={tmp_path}/best") == ("a", f"{tmp_path}/best")
    assert split_name(f"{tmp_path}/best/") == ("best", f"{tmp_path}/best/")
    assert split_name("owner/name") == ("name", "owner/name")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.01").mkdir()
    assert split_name("lr=0.01") == ("lr=0.01", "lr=0.01")
    assert split_name("a=lr=0.01") == ("a", "lr=0.01")
    assert split_name(str(Path("/x=1/best"))) == ("best", "/x=1/best")

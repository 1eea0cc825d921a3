"""Names a server answers to, and pages of other sites: what a browser may be led to."""

from __future__ import annotations

import socket
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
import httpx
from starlette.datastructures import Headers

from setr.cli import main
from setr.errors import OK, USAGE, SetrError
from setr.serve import server
from setr.serve.hosts import Hosts, is_loopback
from setr.serve.limits import Limits, Refusal
from setr.serve.models import Models
from tests.conftest import refusal
from tests.serving import connect, photo, running, save_models

LIMITS = Limits(deadline=120.0, drain=5.0)
LOCAL = (
    "localhost",
    "localhost:8000",
    "LOCALHOST.:1",
    "a.localhost",
    "127.0.0.1:8000",
    "[::1]:8000",
    "host.docker.internal:8000",
)
ADDRESSES = ("192.168.1.5:8000", "10.0.0.7", "[fe80::1]")
STRANGE = (
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
    "notlocalhost", "127.1", "[::1", "xn--setr.example",
)  # fmt: skip


def code_of(check: Any, headers: dict[str, str]) -> str:
    """The code of the refusal; empty without one."""
    try:
        check(Headers(headers))
    except Refusal as refusal:
        return refusal.code if refusal.status == 403 else str(refusal.status)
    return ""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_models(tmp_path_factory.mktemp("models"))[0]


@pytest.fixture(scope="module")
def models(source: str) -> Models:
    return Models([source], LIMITS, device="cpu", precision="fp32")


def test_a_local_server_answers_to_addresses_and_localhost_alone():
    local, anywhere = Hosts(local=True), Hosts()
    for host in (*LOCAL, *ADDRESSES, ""):
        assert code_of(local.check, {"Host": host}) == "", host
    for host in STRANGE:
        assert code_of(local.check, {"Host": host}) == "host", host
        assert code_of(anywhere.check, {"Host": host}) == "", host
    assert code_of(local.check, {}) == ""  # HTTP/1.0; no browser leaves it out
    with pytest.raises(Refusal, match=r"^evil\.example is no .*--allowed-hosts evil\.example$"):
        local.check(Headers({"Host": "Evil.example:8000"}))


@pytest.mark.parametrize("local", [True, False])
def test_allowed_names_are_answered_and_others_are_not(local):
    hosts = Hosts(["Setr.example", "*.lab.example"], local=local)
    for host in (*LOCAL, *ADDRESSES, "setr.example", "SETR.example.:443", "gpu-1.lab.example"):
        assert code_of(hosts.check, {"Host": host}) == "", host
    for host in (*STRANGE, "lab.example", "a.setr.example", "setr.example.evil.example"):
        assert code_of(hosts.check, {"Host": host}) == "host", host
    assert code_of(Hosts(["*"], local=local).check, {"Host": "evil.example"}) == ""


@pytest.mark.parametrize(
    "name", ["https://a.example", "a.example:8000", "[::1]", "", "schön.example"]
)
def test_names_that_no_request_can_have_are_refused(name):
    with pytest.raises(SetrError, match=r"^--allowed-hosts .*: give a host name") as caught:
        Hosts([name])
    assert caught.value.code == USAGE


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),  # no browser
        ({"Sec-Fetch-Site": "none"}, False),  # typed by the user
        ({"Sec-Fetch-Site": "none", "Origin": "chrome-extension://abc"}, False),  # may read all
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://setr.lan"}, True),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://other.lan"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),  # a link
        # plain http to another machine, where browsers send no Sec-Fetch-Site
        ({"Origin": "http://setr.lan:8000"}, False),
        ({"Origin": "http://SETR.lan"}, False),
        ({"Origin": "http://evil.example"}, True),
        ({"Origin": "http://setr.lan.evil.example:8000"}, True),
        ({"Origin": "null"}, True),  # a sandboxed frame
        ({"Origin": ""}, True),
        ({"Origin": "file://"}, True),
        ({"Origin": "http://[setr.lan:8000"}, True),
        # a proxy changed Host: the browser's word, or a name that was allowed
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://front.example"}, False),
        ({"Origin": "http://allowed.example"}, False),
    ],
)
def test_pages_of_other_sites_are_told_apart(headers, refused):
    hosts = Hosts(["allowed.example"])
    given = {"Host": "setr.lan:8000", **headers}
    assert code_of(hosts.check_page, given) == ("cross_site" if refused else "")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_addresses_only_this_machine_reaches():
    for address in ("127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"):
        assert is_loopback(address), address
    for address in ("0.0.0.0", "::", "192.168.1.5", "fe80::1%eth0", "::ffff:192.168.1.5"):
        assert not is_loopback(address), address


def test_every_route_asks_for_the_name(models):
    with running(models, LIMITS, hosts=Hosts(local=True)) as (url, _):
        evil = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
        with httpx.Client(base_url=url, timeout=120) as client:
            for path in ("/", "/docs", "/healthz", "/metrics", "/v1/models", "/none"):
                answer = client.get(path, headers=evil)
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host"), path
                assert "pup" not in answer.text
            assert client.post("/v1/segment", content=photo(), headers=evil).status_code == 403
            assert client.post("/v1/segment", content=photo()).status_code == 200
        with connect(url) as sock:
            sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://127.0.0.1:80/healthz?x=1", b"evil.example", b"200"),
        (b"HTTP://127.0.0.1", b"evil.example", b"200"),
        (b"http://evil.example/healthz", b"127.0.0.1", b"403"),
        (b"http:///healthz", b"127.0.0.1", b"200"),
        (b"http://127.0.0.1/none", b"127.0.0.1", b"404"),
    ],
)
def test_the_name_in_an_address_comes_before_the_header(models, target, host, status):
    """As proxies send addresses: RFC 9112, section 3.2.2."""
    with running(models, LIMITS, hosts=Hosts(local=True)) as (url, _), connect(url) as sock:
        sock.sendall(b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, host))
        assert sock.recv(100).startswith(b"HTTP/1.1 " + status)


def test_a_form_of_another_site_computes_nothing(models, monkeypatch):
    with running(models, LIMITS) as (url, app), httpx.Client(base_url=url, timeout=120) as client:
        monkeypatch.setattr(app.service, "compute", None)
        form, strange = {"image": ("a.png", photo())}, {"Origin": "https://evil.example"}
        answer = client.post("/v1/segment", files=form, headers=strange)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")
        assert client.get("/", headers=strange).status_code == 200  # a page without any figures
        assert client.get("/metrics", headers=strange).status_code == 403
        monkeypatch.undo()
        for origin in (url, "http://127.0.0.1:9"):  # another port of this machine
            answer = client.post("/v1/segment", files=form, headers={"Origin": origin})
            assert answer.status_code == 200, origin


def test_a_key_is_proof_enough(models):
    with running(models, LIMITS, keys=("secret",)) as (url, _):
        headers = {"Origin": "http://front.example", "Sec-Fetch-Site": "cross-site"}
        with httpx.Client(base_url=url, headers=headers, timeout=120) as client:
            assert client.get("/v1/models").status_code == 401
            client.headers["X-API-Key"] = "secret"
            assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("options", "keys", "strangers", "allowed"),
    [
        ("", None, "host", "host"),
        ("--host localhost", None, "host", "host"),
        ("--host ::1", None, "host", "host"),
        ("--allowed-hosts a.example b.example", None, "host", ""),
        ("", "secret", "", ""),
        ("--allowed-hosts b.example", "secret", "host", ""),
        ("--host 0.0.0.0", None, "", ""),  # what a container listens on, for any name
        ("--host 0.0.0.0 --allowed-hosts b.example", None, "host", ""),
    ],
)
def test_the_command_knows_when_names_matter(
    source, monkeypatch, options, keys, strangers, allowed
):
    if "::1" in options and not has_ipv6():
        pytest.skip("needs IPv6")
    apps = []
    monkeypatch.setattr(server, "serve", lambda app, *_: apps.append(app))
    if keys:
        monkeypatch.setenv("SETR_API_KEYS", keys)
    assert main(["serve", source, "--port", "0", "--device", "cpu", *options.split()]) == OK
    (app,) = apps
    assert code_of(app.hosts.check, {"Host": "evil.example"}) == strangers
    assert code_of(app.hosts.check, {"Host": "b.example"}) == allowed
    app.service.close()


def test_a_wrong_name_ends_the_start(capsys):
    assert main(["serve", "no/model", "--port", "0", "--allowed-hosts", "https://a"]) == USAGE
    assert capsys.readouterr().err.startswith("setr: --allowed-hosts https://a: give a host name")


def test_an_empty_host_is_not_the_whole_network(capsys):
    assert "--host '': give an address" in refusal(capsys, "serve", "m", "--port", 0, "--host", "")

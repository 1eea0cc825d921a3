"""The server as a process: its log, and SIGTERM while requests run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
import httpx

from tests.serving import connect, photo, request, save_models, until


@contextlib.contextmanager
def process(*command: str) -> Iterator[tuple[subprocess.Popen, str, str]]:
    """A server, its first line, and its address."""
    server = subprocess.Popen(
        [sys.executable, *command],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stderr is not None
    try:
        first = server.stderr.readline()
        url = re.search(r"http://\S+", first)
        assert url, first
        yield server, first, url[0]
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


def test_sigterm_answers_what_was_taken_and_ends_with_0(tmp_path):
    """Every request either gets its whole answer or no connection; none gets half."""
    source = save_models(tmp_path)[0]
    serving = process("-m", "setr", "serve", source, "--port", "0", "--wait-ms", "200")
    with serving as (server, first, url):
        answered, refused, broken = [], [], []
        started = threading.Barrier(5)

        def ask() -> None:
            with httpx.Client(base_url=url, timeout=120) as client:
                started.wait()
                while True:
                    try:
                        answer = client.post("/v1/segment?format=json", content=photo())
                        answered.append((answer.status_code, json.loads(answer.content)["width"]))
                    except httpx.ConnectError:
                        refused.append(1)
                        return
                    except (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError) as error:
                        broken.append(str(error))  # closed before any byte of an answer
                        return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        until(lambda: len(answered) >= 4)
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        log = server.stderr.read()
        assert server.wait(120) == 0
        assert len(refused) + len(broken) == 4
        assert set(answered) == {(200, 48)}
        assert all("incomplete" not in text for text in broken)
        assert "Traceback" not in log
        taken = [json.loads(line) for line in (first + log).splitlines() if line[:1] == "{"]
        assert [line["status"] for line in taken] == [200] * len(answered)  # none taken and lost


def test_the_log_has_one_object_per_request_whatever_is_sent(tmp_path):
    source = save_models(tmp_path)[0]
    with process("-m", "setr", "serve", source, "--port", "0") as (server, _, url):
        for body in (b"nonsense", b"--x\r\nno colon\r\n\r\n", b"--xy\r\n"):
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            answer = httpx.post(f"{url}/v1/segment", content=body, headers=headers, timeout=120)
            assert answer.status_code == 400
        frames, facts = io.BytesIO(), io.BytesIO()
        pictures = [Image.new("RGB", (48, 40), colour) for colour in ("red", "blue")]
        pictures[0].save(frames, "GIF", save_all=True, append_images=pictures[1:])
        pictures[0].save(facts, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
        for image in (frames, facts):
            answer = httpx.post(f"{url}/v1/segment", content=image.getvalue(), timeout=120)
            assert answer.status_code == 200
        server.send_signal(signal.SIGHUP)  # its terminal closes
        assert [json.loads(line)["status"] for line in server.stderr] == [400] * 3 + [200] * 2
        assert server.wait(120) == 0


def test_a_system_without_resource_limits_can_serve():
    code = "import sys; sys.modules['resource'] = None; import setr.serve.server"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


STUCK = """
import sys, time
from setr.cli import main
from setr.serve import app
from setr.serve.models import Models

def stuck(*_):
    print("stuck", file=sys.stderr, flush=True)
    time.sleep(3600)

def run_once(*given, calls=[]):
    calls.append(given)
    return run(*given) if len(calls) == 1 else stuck()

run, Models.run, app.encode = Models.run, run_once, stuck
sys.exit(main(sys.argv[1:]))
"""


def test_the_end_does_not_wait_for_threads_that_never_do(tmp_path):
    """One request hangs in encoding, one in the model."""
    source = save_models(tmp_path)[0]
    serving = process("-c", STUCK, "serve", source, "--port", "0", "--drain", "1")
    with serving as (server, _, url), contextlib.ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(connect(url)).sendall(request(photo()))
            assert server.stderr.readline() == "stuck\n"
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0

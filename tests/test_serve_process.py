"""The server as a process: SIGTERM while requests run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
import httpx

from tests.serving import save_models, until
from tests.test_serve import photo


def test_sigterm_answers_what_was_taken_and_ends_with_0(tmp_path):
    """Every request either gets its whole answer or no connection; none gets half."""
    source = save_models(tmp_path)[0]
    command = [sys.executable, "-m", "setr", "serve", source, "--port", "0", "--wait-ms", "200"]
    server = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert server.stderr is not None
    try:
        first = server.stderr.readline()
        url = re.search(r"http://\S+", first)
        assert url, first
        answered, refused, broken = [], [], []
        started = threading.Barrier(5)

        def ask() -> None:
            with httpx.Client(base_url=url[0], timeout=60) as client:
                started.wait()
                for _ in range(200):
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
        until(lambda: len(answered) >= 4, 60)
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        log = server.stderr.read()
        assert server.wait(60) == 0
        assert len(refused) + len(broken) == 4
        assert set(answered) == {(200, 48)}
        assert all("incomplete" not in text for text in broken)
        assert "Traceback" not in log
        taken = [json.loads(line) for line in (first + log).splitlines() if line[:1] == "{"]
        assert [line["status"] for line in taken] == [200] * len(answered)  # none taken and lost
    finally:
        server.kill()

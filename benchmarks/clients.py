"""`setr serve` as a process, and clients that ask it without a pause and check every answer."""

from __future__ import annotations

import http.client
import io
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "ids"


class Server:
    """`setr serve` as a process."""

    def __init__(self, model: str, batch: int, port: int = 0) -> None:
        command = [sys.executable, "-m", "setr", "serve", model, "--port", str(port)]
        command += ["--batch", str(batch), "--queue", "256", "--deadline", "300", "--quiet"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            raise SystemExit(f"the server did not start: {line}")
        self.port = int(found[1])

    def resident_mb(self) -> float:
        """Resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def metric(self, name: str) -> float:
        """A figure of `/metrics`, summed over its labels."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


class Clients:
    """Threads that ask until told to stop; each request is one case, in a fixed order."""

    def __init__(self, port: int, cases: list[Any], masks: list[np.ndarray], count: int) -> None:
        self.port, self.cases, self.masks = port, cases, masks
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.seconds: list[tuple[float, float]] = []  # when answered, and how long it took
        self.outcomes: Counter[str] = Counter()
        self.agreement: list[float] = []
        self.threads = [threading.Thread(target=self._work, args=(i,)) for i in range(count)]

    def run(self, seconds: float, during: Any = None) -> float:
        """Ask for so long; the seconds until the last answer."""
        began = self.began = time.perf_counter()
        for thread in self.threads:
            thread.start()
        if during:
            during()
        while time.perf_counter() - began < seconds:
            time.sleep(0.05)
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return time.perf_counter() - began

    def _work(self, number: int) -> None:
        index, connection = number, None
        while not self.stopping.is_set():
            case = index % len(self.cases)
            began = time.perf_counter()
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            outcome, body = self._ask(connection, self.cases[case][0])
            if outcome == "answered":
                self._check(case, body, time.perf_counter() - began)
                index += len(self.threads)
                continue
            with self.lock:
                self.outcomes[outcome] += 1
            connection.close()
            connection = None
            time.sleep(0.1)  # and ask for the same image again

    def _ask(self, connection: http.client.HTTPConnection, data: bytes) -> tuple[str, bytes]:
        try:
            headers = {"Content-Type": "image/jpeg"}
            connection.request("POST", f"/v1/segment?format={FORMAT}", data, headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException):
            return "repeated", b""
        try:
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return "lost", b""
        return ("answered" if answer.status == 200 else f"status {answer.status}"), body

    def _check(self, case: int, body: bytes, seconds: float) -> None:
        from PIL import Image

        mask = np.asarray(Image.open(io.BytesIO(body)))
        own = self.masks[case]
        agree = float((mask == own).mean()) if mask.shape == own.shape else 0.0
        mixed = agree < 1 and any(
            other.shape == mask.shape and float((mask == other).mean()) > agree
            for other in self.masks
        )
        with self.lock:
            self.seconds.append((time.perf_counter() - self.began, seconds))
            self.agreement.append(agree)
            self.outcomes["answered"] += 1
            self.outcomes["identical"] += agree == 1
            self.outcomes["wrong"] += agree < 0.999
            self.outcomes["mixed up"] += mixed

    def figures(self, first: float, last: float) -> dict[str, Any]:
        """What happened, in numbers; rate and latencies of the answers first .. last seconds."""
        answered = sorted(self.seconds)
        edges = [max((w for w, _ in answered if w < edge), default=0.0) for edge in (first, last)]
        took = [seconds for when, seconds in answered if edges[0] < when <= edges[1]]
        p50, p95, p99 = np.percentile(took, [50, 95, 99]) if took else [0.0] * 3
        return {
            "images_per_second": len(took) / (edges[1] - edges[0]) if took else 0.0,
            "p50_s": round(float(p50), 3),
            "p95_s": round(float(p95), 3),
            "p99_s": round(float(p99), 3),
            "lowest_agreement": round(min(self.agreement, default=0.0), 6),
            **{key.replace(" ", "_"): int(n) for key, n in sorted(self.outcomes.items())},
        }

"""Load on `setr serve`: throughput against the bare model, latency, memory, a restart under load.

    python benchmarks/serve.py MODEL --images FOLDER [--clients 32] [--seconds 60]
    python benchmarks/serve.py MODEL --images FOLDER --only memory --seconds 600
    python benchmarks/serve.py MODEL --images FOLDER --only restart

The server is a process of its own, the clients are another (this one: one thread per client with
one kept connection, standard library only), and the bare model runs in a third before the server
starts, on the same images in batches of one size. Images come from FOLDER at three sizes each.

- bare: images per second of `Predictor.predict_batch` over the decoded images, batch as served.
- load: images per second of all clients together, p50/p95/p99 of their latencies, batch sizes. What
  is counted are the answers of `--seconds`, after `--ramp` seconds in which the queue fills;
  every answer, these included, is compared with the bare model's mask of its own image. One that
  differs on more than 0.1 % of the pixels is wrong; an answer is counted as mixed up where another
  image of that size is nearer.
- memory: resident size of the server every 5 s; the slope is fitted over the second half.
- restart: SIGTERM under load, start again on the same port. Clients repeat what had no answer.
  Counts answers lost (an answer cut off) and requests repeated (no byte of an answer).

Prints a table and writes JSON beside the results of the other benchmarks.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import platform
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

SIZES = ((480, 360), (320, 240), (400, 400))  # width, height
FORMAT = "ids"


def prepare(folder: Path, count: int) -> list[tuple[bytes, tuple[int, int]]]:
    """JPEG files of `count` images at each of the sizes, and (H, W)."""
    from PIL import Image

    from setr.files import list_images
    from setr.images import read_image

    paths = list_images(folder)[:count]
    if not paths:
        raise SystemExit(f"{folder}: no images")
    cases = []
    for path in paths:
        image = Image.fromarray(read_image(path))
        for size in SIZES:
            buffer = io.BytesIO()
            image.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=92)
            cases.append((buffer.getvalue(), (size[1], size[0])))
    return cases


def bare(model: str, cases: list[Any], batch: int, seconds: float, out: Path) -> dict[str, float]:
    """The model's own batched rate on decoded images; masks of single runs go to `out`."""
    from setr.images import read_image
    from setr.predictor import load

    predictor = load(model)
    images = [read_image(data) for data, _ in cases]
    np.savez(out, *[predictor.predict(image).mask for image in images])
    groups = [
        same[start : start + batch]
        for size in sorted({size for _, size in cases})
        for same in [[i for i, case in zip(images, cases, strict=True) if case[1] == size]]
        for start in range(0, len(same), batch)
    ]
    predictor.predict_batch(groups[0])
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for group in groups:
            predictor.predict_batch(group)
            done += len(group)
            if time.perf_counter() - began >= seconds:
                break
    return {"images_per_second": done / (time.perf_counter() - began), "images": done}


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
        took = [seconds for when, seconds in self.seconds if first <= when < last]
        p50, p95, p99 = np.percentile(took, [50, 95, 99]) if took else [0.0] * 3
        return {
            "images_per_second": len(took) / (last - first),
            "p50_s": round(float(p50), 3),
            "p95_s": round(float(p95), 3),
            "p99_s": round(float(p99), 3),
            "lowest_agreement": round(min(self.agreement, default=0.0), 6),
            **{key.replace(" ", "_"): int(n) for key, n in sorted(self.outcomes.items())},
        }


def measure_load(server: Server, clients: Clients, seconds: float, ramp: float) -> dict[str, Any]:
    """Throughput and latency."""
    clients.run(ramp + seconds)
    figures = clients.figures(ramp, ramp + seconds)
    batches = server.metric("setr_batch_size_count")
    figures["mean_batch"] = round(server.metric("setr_batch_size_sum") / max(1.0, batches), 2)
    figures["resident_mb"] = round(server.resident_mb())
    return figures


def measure_memory(server: Server, clients: Clients, seconds: float) -> dict[str, Any]:
    """Resident memory over time."""
    samples: list[tuple[float, float]] = []

    def sample() -> None:
        began = time.perf_counter()
        while (now := time.perf_counter() - began) < seconds:
            samples.append((round(now, 1), round(server.resident_mb(), 1)))
            time.sleep(min(5.0, seconds / 10))

    clients.run(seconds, sample)
    later = samples[len(samples) // 2 :]
    slope = float(np.polyfit(*np.array(later).T, 1)[0]) if len(later) > 1 else 0.0
    return {
        "first_mb": samples[0][1],
        "half_mb": later[0][1],
        "last_mb": samples[-1][1],
        "slope_mb_per_minute": round(60 * slope, 3),
        "answered": clients.outcomes["answered"],
        "samples": samples,
    }


def measure_restart(
    server: Server, clients: Clients, seconds: float, again: Any
) -> tuple[dict[str, Any], Server]:
    """SIGTERM in the middle, and a new server on the same port."""
    codes = []
    replacement = server

    def restart() -> None:
        nonlocal replacement
        time.sleep(seconds / 3)
        codes.append(server.stop())
        replacement = again(server.port)

    figures = clients.figures(0, clients.run(seconds, restart))
    figures["exit_status"] = codes[0]
    figures.setdefault("lost", 0)
    return figures, replacement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16, help="images taken from the folder")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--ramp", type=float, default=15, help="seconds before the load is counted")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--only", nargs="+", default=["load"], choices=["load", "memory", "restart"]
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    cases = prepare(given.images, given.count)
    if given.bare:
        seconds = given.seconds if "load" in given.only else 1
        figures = bare(given.model, cases, given.batch, seconds, given.bare)
        print(json.dumps(figures))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    masks_file = given.out / "serve_masks.npz"
    command = [sys.executable, *sys.argv, "--bare", str(masks_file)]
    alone = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with np.load(masks_file) as saved:
        masks = [saved[f"arr_{i}"] for i in range(len(cases))]
    masks_file.unlink()
    report: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
        },
        "command": " ".join(sys.argv),
        "clients": given.clients,
        "batch": given.batch,
        "sizes": SIZES,
        "bare": alone,
    }
    server = Server(given.model, given.batch)
    try:
        for name in given.only:
            clients = Clients(server.port, cases, masks, given.clients)
            if name == "load":
                report[name] = measure_load(server, clients, given.seconds, given.ramp)
                share = report[name]["images_per_second"] / alone["images_per_second"]
                report[name]["share_of_bare"] = round(share, 3)
            elif name == "memory":
                report[name] = measure_memory(server, clients, given.seconds)
            else:
                report[name], server = measure_restart(
                    server,
                    clients,
                    given.seconds,
                    lambda port: Server(given.model, given.batch, port),
                )
    finally:
        server.stop()
    for name in ("bare", *given.only):
        print(name)
        for key, value in report[name].items():
            if key != "samples":
                print(
                    f"  {key:<22} {value:.2f}"
                    if isinstance(value, float)
                    else f"  {key:<22} {value}"
                )
    path = given.out / f"serve_{'_'.join(given.only)}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

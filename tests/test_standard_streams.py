"""A command works on when what reads its output has gone; what stops it lets it save."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from setr.checkpoint import newest_state
from setr.cli import main
from setr.errors import FAILED, INTERRUPTED, OK
from setr.processes.interrupt import Interrupt
from setr.training.runfolder import LAST

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and terminals of POSIX")

PROGRAM = """
import os, sys
from setr.processes.standard_streams import outlast_readers
outlast_readers()
print("begun", flush=True)
print("begun", file=sys.stderr, flush=True)
sys.stdin.readline()
for _ in range(200):
    print("x" * 1000)
    print("y" * 1000, file=sys.stderr)
sys.stdout.flush()
with open(sys.argv[1], "w") as file:
    file.write(f"done, number {file.fileno()}")
"""


def started(path: Path, **streams: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(path)]
    return subprocess.Popen(command, **{"stdin": subprocess.PIPE, **streams})


def test_a_pipe_whose_reader_leaves(tmp_path):
    """As `head` does, and `tee` at Ctrl-C."""
    process = started(tmp_path / "out", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for pipe in (process.stdout, process.stderr):
        assert pipe.readline() == b"begun\n"
        pipe.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(60) == 0
    assert (tmp_path / "out").read_text().startswith("done")


def test_a_terminal_that_is_gone(tmp_path):
    outside, inside = os.openpty()
    process = started(tmp_path / "out", stdout=inside, stderr=inside)
    os.close(inside)
    assert os.read(outside, 5) == b"begun"
    os.close(outside)
    process.communicate(b"\n", 60)
    assert process.returncode == 0
    assert (tmp_path / "out").read_text().startswith("done")


def test_streams_that_were_closed(tmp_path):
    """No file gets their number, into which C libraries write warnings."""
    code = PROGRAM.replace("sys.stdin.readline()", "")
    command = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", command, sys.executable, code, str(tmp_path / "out")], check=True)
    words = (tmp_path / "out").read_text().split()
    assert words[0] == "done,"
    assert int(words[-1]) > 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_costs_messages_but_results_are_an_error(tmp_path):
    with open("/dev/full", "w") as full:
        process = started(tmp_path / "out", stdout=subprocess.DEVNULL, stderr=full)
        process.communicate(b"\n", 60)
        assert process.returncode == 0
        command = [sys.executable, "-m", "setr", "recipes"]
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert told.returncode == FAILED
    assert told.stderr == f"setr: {os.strerror(errno.ENOSPC)}\n"


@contextlib.contextmanager
def training(out: Path, **streams: object) -> Iterator[subprocess.Popen[bytes]]:
    """A run that trains for ever and tests after each step; killed in the end."""
    command = [
        *(sys.executable, "-m", "setr", "train", "demo", "--out", str(out)),
        *("--data.root", "scenes:20", "--data.workers", "1", "--train.steps", "100000"),
        *("--train.batch-size", "2", "--train.log-every", "1", "--train.eval-every", "1"),
    ]
    with subprocess.Popen(command, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def steps(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_text().count('"lr"') if log.exists() else 0


def await_that(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def require_saved(out: Path, least: int) -> None:
    state = newest_state(out / LAST)
    assert state is not None
    assert state.step >= least


def test_a_run_goes_on_without_a_reader_and_ctrl_c_saves_it(tmp_path):
    """`setr train … 2>&1 | tee log`: Ctrl-C ends `tee` first."""
    out = tmp_path / "run"
    with training(out, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        await_that(process, lambda: steps(out) >= 1)
        process.stdout.close()
        process.stderr.close()
        before = steps(out)
        await_that(process, lambda: steps(out) > before + 2)  # each test tells its figures
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == INTERRUPTED
    require_saved(out, before + 2)


@pytest.mark.alone
def test_a_terminal_that_closes_stops_a_run_which_saves(tmp_path):
    outside, inside = os.openpty()
    name = os.ttyname(inside)

    def lead() -> None:
        os.setsid()
        os.close(os.open(name, os.O_RDWR))  # becomes its terminal

    out = tmp_path / "run"

    def has_begun() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(outside, 1 << 16)  # else it waits for room
        return steps(out) >= 1

    with training(out, stdin=inside, stdout=inside, stderr=inside, preexec_fn=lead) as process:
        os.close(inside)
        os.set_blocking(outside, False)
        await_that(process, has_begun)
        os.close(outside)
        assert process.wait(60) == INTERRUPTED
    require_saved(out, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_every_command_as_ctrl_c_does(number, monkeypatch, capsys, tmp_path):
    cleared = []

    def work(_: list[str]) -> int:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # `timeout` sends both to process and group
            cleared.append(number)
        return OK

    monkeypatch.setattr("setr.commands.recipes.run", work)
    before = signal.getsignal(number)
    assert before is signal.SIG_DFL
    assert main(["recipes"]) == INTERRUPTED
    assert cleared == [number]
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err == "setr: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_torch_is_loaded(number, monkeypatch, capsys):
    """Its modules of C++ end the process with a dump of all frames when an exception passes."""
    torch = types.SimpleNamespace(__spec__=types.SimpleNamespace(_initializing=True))
    loaded = []

    def work(_: list[str]) -> int:
        signal.raise_signal(number)
        time.sleep(0.2)
        torch.__spec__._initializing = False
        loaded.append(number)
        time.sleep(10)
        return OK

    monkeypatch.setattr("setr.commands.recipes.run", work)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert main(["recipes"]) == INTERRUPTED
    assert loaded == [number]
    assert capsys.readouterr().err == "setr: interrupted\n"


def test_a_held_ctrl_c_counts_once(monkeypatch):
    """Keys repeat; and wrappers pass on what the terminal sends to everyone."""
    with Interrupt() as interrupt:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        monkeypatch.setattr("setr.processes.interrupt.ONE_PRESS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_after_ctrl_c_shows_no_traceback():
    code = """if True:
        import signal
        from setr import cli
        cli._dispatch = cli._fail = lambda *_: signal.raise_signal(signal.SIGINT)
        cli.main()"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


def test_nohup_is_respected(monkeypatch):
    def work(_: list[str]) -> int:
        signal.raise_signal(signal.SIGHUP)
        return OK

    monkeypatch.setattr("setr.commands.recipes.run", work)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["recipes"]) == OK
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

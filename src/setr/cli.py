"""The command line: a table from verb to function.

Each verb is a module of `commands` and parses its own words (`commands/parsing.py`). Logs and
progress go to stderr, results to stdout (`--json` for machines). A user error is one line;
`--debug` shows the traceback. Exit codes: 0 ok, 1 failed, 2 usage, 3 data check failed, 130
interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Callable

from setr import __version__
from setr.arguments.elsewhere import COMMANDS_ELSEWHERE
from setr.errors import FAILED, INTERRUPTED, OK, USAGE, SetrError, UsageError, nearest
from setr.processes.interrupt import ending_at_once_after, ending_by_signals
from setr.processes.quota import limit_spinning, limit_threads
from setr.processes.standard_streams import outlast_readers
from setr.reading.files import one_line

GROUPS = {
    "to begin": {
        "demo": "train and test a small model on drawn scenes in a few minutes; no data needed",
        "auto": "from a folder to a trained, tested, exported model: setr auto DATA [--minutes 30]",
    },
    "data": {
        "init-data": "write a data.yaml for a folder of your own: setr init-data DIR",
        "doctor": "check a data set before training: setr doctor DATA",
        "review": "find wrong labels with a trained model: setr review MODEL DATA",
        "pick": "which images to label next: setr pick MODEL FOLDER -o OUT",
        "shard": "pack a data set into tar or Parquet files: setr shard DATA OUT",
    },
    "training": {
        "recipes": "list the named experiments: setr recipes [--table N]",
        "models": "list the named models: setr models [PATTERN]",
        "train": "train a recipe, or continue a run: setr train RECIPE [--optim.lr 0.01 …]",
        "sweep": "compare settings by training: setr sweep RECIPE --vary optim.lr 1e-5 1e-4",
        "adjust": "raise mIoU, or set the threshold of two classes: setr adjust MODEL DATA -o OUT",
        "merge-tokens": "a faster model, without training: setr merge-tokens MODEL DATA -o OUT",
        "average": "one model from the mean weights of several runs: setr average RUN RUN… -o OUT",
    },
    "testing": {
        "eval": "test a model on a data set: setr eval MODEL DATA",
        "score": "score label images against truth: setr score PRED_DIR TRUTH_DIR",
        "explain": "attention, features, positions of a model: setr explain attention MODEL IMAGE",
        "results": "finished runs beside the paper's tables: setr results",
    },
    "using a model": {
        "predict": "segment images: setr predict MODEL IMAGES… -o OUT",
        "serve": "a server and a web page: setr serve MODEL…",
        "export": "write a model for another runtime: setr export MODEL --format onnx -o OUT",
        "bench": "how fast a model runs on this machine, in every runtime: setr bench MODEL",
        "convert": "turn a foreign checkpoint into a model directory: setr convert FILE -o DIR",
    },
}
"""Commands by what they are for, each with the line of `setr --help`."""
VERBS = {verb: text for group in GROUPS.values() for verb, text in group.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    outlast_readers()
    _end_quickly()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it with its first tensor
    limit_threads()
    limit_spinning()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # file names may be no text
    try:
        _require_folder()
        with contextlib.ExitStack() as stack:
            if arguments is None:
                stack.enter_context(ending_at_once_after())
            stack.enter_context(ending_by_signals())
            return _dispatch(args)
    except SetrError as error:
        if debug:
            raise
        return error.code if error.reported else _fail(str(error), error.code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except OSError as error:
        if debug:
            raise
        return _fail(_reason(error), FAILED)
    except (MemoryError, RuntimeError, ImportError) as error:
        told = _fault(error)
        if debug or told is None:
            raise
        return _fail(told, FAILED)


def _end_quickly() -> None:
    """Spare the search for cycles when Python ends: a second of a CPU once torch is loaded.

    What is in cycles then ends with the process; files and processes are closed before.
    """
    atexit.unregister(gc.freeze)  # where this is called again
    atexit.register(gc.freeze)


def _require_folder() -> None:
    """Refuse a current folder that was removed, in which libraries that torch needs do not load."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current folder was removed; change to another one") from None


def _find_temporary_folder() -> None:
    """Let torch, which does not load without one, use shared memory where no disk is writable."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # a container with a read-only root
        if os.access("/dev/shm", os.W_OK):
            os.environ["TMPDIR"] = "/dev/shm"


def _reason(error: OSError) -> str:
    """A message for an error of the operating system that was not handled elsewhere."""
    named = isinstance(error.filename, str | bytes | os.PathLike)  # not the number of an open file
    path = f"{os.fsdecode(error.filename)}: " if named else ""
    lines = (error.strerror or str(error)).splitlines()  # a loader's begin with a traceback
    return path + (lines[-1] if lines else type(error).__name__)


def _fault(error: Exception) -> str | None:
    """As `machine_fault`, which needs torch, also where torch does not fit into memory."""
    try:
        from setr.processes.faults import machine_fault
    except Exception:
        unmapped = isinstance(error, MemoryError) or "failed to map segment" in str(error)
        return "out of memory for torch's libraries; see `ulimit -v`" if unmapped else None
    return machine_fault(error)


def _fail(message: str, code: int) -> int:
    print(f"setr: {one_line(' '.join(message.split()))}", file=sys.stderr)
    return code


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return OK if args else USAGE
    if args[0] == "help":
        return _dispatch([*args[1:2], "--help"])
    if args[0] in ("--version", "version"):
        print(f"setr {__version__}")
        return OK
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        near = COMMANDS_ELSEWHERE.get(verb.replace("_", "-")) or nearest(verb, VERBS)
        hint = f"did you mean '{near}'?" if near else f"verbs: {', '.join(VERBS)}"
        raise UsageError(f"'{verb}' is not a command; {hint}")
    _find_temporary_folder()
    run: Callable[[list[str]], int]
    run = importlib.import_module(f"setr.commands.{verb.replace('-', '_')}").run
    return run(rest)


def _help() -> str:
    width = max(map(len, VERBS))
    groups = [
        "\n".join([f"{title}:", *(f"  {verb:<{width}}  {text}" for verb, text in group.items())])
        for title, group in GROUPS.items()
    ]
    return (
        f"setr {__version__}: semantic segmentation with plain vision transformers\n\n"
        "usage: setr COMMAND [options]      setr COMMAND --help      setr --version\n\n"
        + "\n\n".join(groups)
        + "\n\nStart with `setr demo`, or with a folder of images and masks:\n"
        "  setr auto FOLDER --model.pretrained lvd142m\n"
        "With --debug any command shows the traceback of an error."
    )


if __name__ == "__main__":
    raise SystemExit(main())

"""The command line: a table from verb to function.

Arguments are generated from typed signatures and the configuration dataclasses. Logs and progress
go to stderr, results to stdout (`--json` for machines). A user error is one line; `--debug` shows
the traceback. Exit codes: 0 ok, 1 failed, 2 usage, 3 data check failed, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setr import __version__
from setr.errors import FAILED, INTERRUPTED, OK, USAGE, SetrError

VERBS = {
    "demo": "train and test a small model on drawn scenes in a few minutes; no data needed",
    "train": "train a recipe, or continue a run: setr train RECIPE [--optim.lr 0.01 …]",
    "eval": "test a model on a data set: setr eval MODEL DATA",
    "adjust": "raise a model's mIoU by one constant per class: setr adjust MODEL DATA -o OUT",
    "average": "one model from the mean weights of several runs: setr average RUN RUN… -o OUT",
    "score": "score label images against truth: setr score PRED_DIR TRUTH_DIR",
    "explain": "attention, features, positions of a model: setr explain attention MODEL IMAGE",
    "predict": "segment images: setr predict MODEL IMAGES… -o OUT",
    "export": "write a model for another runtime: setr export MODEL --format onnx -o OUT",
    "bench": "how fast a model runs on this machine, in every runtime: setr bench MODEL",
    "serve": "a server and a web page: setr serve MODEL…",
    "doctor": "check a data set before training: setr doctor DATA",
    "init-data": "write a data.yaml for a folder of your own: setr init-data DIR",
    "convert": "turn a foreign checkpoint into a model directory: setr convert FILE -o DIR",
    "shard": "pack a data set into tar or Parquet files: setr shard DATA OUT",
    "models": "list the named models: setr models [PATTERN]",
    "recipes": "list the named experiments: setr recipes [--table N]",
    "results": "finished runs beside the paper's tables: setr results",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it with its first tensor
    try:
        return _dispatch(args)
    except SetrError as error:
        if debug:
            raise
        return error.code if error.reported else _fail(str(error), error.code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if debug:
            raise
        return _fail(_reason(error), FAILED)
    except (MemoryError, RuntimeError) as error:
        from setr.estimate import is_out_of_memory

        if debug or not is_out_of_memory(error):
            raise
        return _fail("out of memory; lower the batch size or the image size", FAILED)


def _reason(error: OSError) -> str:
    """The file and what the system says about it, where no better message was found."""
    named = isinstance(error.filename, str | bytes | os.PathLike)  # not the number of an open file
    path = f"{os.fsdecode(error.filename)}: " if named else ""
    lines = (error.strerror or str(error)).splitlines()  # a loader's begin with a traceback
    return path + (lines[-1] if lines else type(error).__name__)


def _fail(message: str, code: int) -> int:
    print(f"setr: {' '.join(message.split())}", file=sys.stderr)
    return code


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return OK if args else USAGE
    if args[0] == "--version":
        print(f"setr {__version__}")
        return OK
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"verbs: {', '.join(VERBS)}"
        raise SetrError(f"'{verb}' is not a command; {hint}", code=USAGE)
    run: Callable[[list[str]], int]
    run = importlib.import_module(f"setr.commands.{verb.replace('-', '_')}").run
    return run(rest)


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return (
        f"setr {__version__}: semantic segmentation with plain vision transformers\n\n"
        "usage: setr COMMAND [options]      setr COMMAND --help      setr --version\n\n"
        + "\n".join(lines)
        + "\n\nStart with `setr demo`."
    )


def parse(kind: Any, args: list[str], verb: str, **options: Any) -> Any:
    """Parse arguments into a typed function or dataclass; errors become one line, exit code 2."""
    import tyro

    caught = io.StringIO()
    shown: Any = _HelpWithoutNone(sys.stdout)
    try:
        with contextlib.redirect_stderr(caught), contextlib.redirect_stdout(shown):
            return tyro.cli(kind, args=args, prog=f"setr {verb}", **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise SetrError(_one_line(caught.getvalue(), verb), code=USAGE) from None


def require_unused(out: Path) -> None:
    """Refuse a folder for results (-o) that is a file or holds something."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SetrError(f"{out}: exists; choose another folder with -o", code=USAGE)


class _HelpWithoutNone:
    """Standard output that writes the parser's `{None}|INT` as `INT`; defaults say None anyway."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Each line keeps its width, and so the box its border."""
        lines = text.split("\n")
        for i, line in enumerate(lines):
            shorter = line.replace("{None}|", "")
            border = shorter.rfind("│")
            if border > 0:
                gap = " " * (len(line) - len(shorter))
                shorter = shorter[:border] + gap + shorter[border:]
            lines[i] = shorter
        return int(self._stream.write("\n".join(lines)))


def _one_line(boxed: str, verb: str) -> str:
    """The message inside the parser's box, with its suggestion.

    The box has a title, then sections between rules; where stdout is not UTF-8 the frame is left
    out and the title is a section of its own.
    """
    rows = [row.strip("│ ") for row in boxed.splitlines()]
    framed = any(row.startswith("╭") for row in rows)
    sections: list[list[str]] = [[]]
    for row in rows:
        if not row or row[0] in "╭╰":
            continue
        if set(row) <= {"─", "-"}:
            sections.append([])
        else:
            sections[-1].append(row)
    sections = sections if framed else sections[1:]
    message = " ".join(sections[0]) or "wrong arguments"
    for section in sections[1:]:
        if section and section[0].startswith("Perhaps you meant") and len(section) > 1:
            return f"{message}; did you mean {section[1].split()[0]}?"
    return f"{message}; see `setr {verb} --help`"


if __name__ == "__main__":
    raise SystemExit(main())

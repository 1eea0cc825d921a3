"""Training states on disk: what an interrupted run needs to continue bit for bit.

`last/step-00001000/` holds one safetensors file per writing process, and `state.json` with plain
values, the position of every slice, and checksums: nothing executable. The processes of a sharded
run write their slices in parallel; any number of processes can read them. (torch's distributed
checkpoint does the same, but its index is a pickle.) A folder is written under a temporary name,
flushed to disk and renamed, so a `step-*` folder is complete. The newest intact one is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from setr import __version__
from setr.distributed import gather, on_first, rank, say, together, world
from setr.errors import SetrError, first_line
from setr.reading.files import in_text
from setr.reading.parsed import BROKEN, json_of

FORMAT = "setr-state-1"
_INDEX = "state.json"


class State(NamedTuple):
    """A complete training state on disk.

    Attributes:
        folder: its path.
        step: number of steps trained.
        values: the plain values saved.
        tensors: shape of every tensor, and the rows in each file.
    """

    folder: Path
    step: int
    values: dict[str, Any]
    tensors: dict[str, Any]

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self.tensors)

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor."""
        return list(self.tensors[name]["shape"])

    def read(self, name: str, into: Tensor) -> None:
        """Read into a tensor, of which this process may hold only some of the rows.

        Raises:
            SetrError: the state does not have this tensor, or has it with another shape.
        """
        entry = self.tensors.get(name)
        shape = list(into.shape)
        if entry is None or entry["shape"] != shape:
            what = "is missing" if entry is None else f"has shape {entry['shape']}, not {shape}"
            raise SetrError(f"{self.folder}: state of another model: {name} {what}")
        target = into.to_local() if isinstance(into, DTensor) else into
        first, last = _rows(into, rank()) if isinstance(into, DTensor) else (0, (shape or [1])[0])
        with torch.no_grad():
            for number, (start, stop) in entry["rows"]:
                a, b = max(start, first), min(stop, last)
                if a < b:
                    with in_text(self.folder / _file(number)) as place:
                        file = safe_open(place, "pt")
                    if shape:
                        rows = file.get_slice(name)[a - start : b - start]
                        target[a - first : b - first].copy_(rows)
                    else:
                        target.copy_(file.get_tensor(name))


def save_state(
    last: Path, step: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor], *, keep: int
) -> str | None:
    """Write a state; keep it and the `keep` - 1 before it. Called by all processes.

    Args:
        last: folder of the states.
        step: number of steps trained.
        values: JSON-serialisable values.
        tensors: complete, or sharded by rows over the processes.
        keep: number of states to keep, at least 1.

    Returns:
        None, or why it could not be written; on all processes of a sharded run, else on rank 0.
        Earlier states are kept if it fails.
    """
    sharded = any(isinstance(t, DTensor) for t in tensors.values())
    if rank() > 0 and not sharded:
        return None
    part = last / f".step-{step:08}.part"
    problem = _attempt(lambda: _begin(last, part)) if rank() == 0 else None
    if sharded:
        gather(None)  # wait until the folder exists
    digest: dict[str, Any] = {}
    problem = problem or _attempt(lambda: digest.update(_write_tensors(part, tensors)))
    written = gather((problem, digest)) if sharded else [(problem, digest)]
    problem = next((p for p, _ in written if p), None)
    if problem is None and rank() == 0:
        content = {
            "format": FORMAT,
            "version": __version__,
            "step": step,
            "values": dict(values),
            "tensors": _index(tensors, len(written)),
            "files": {_file(number): d for number, (_, d) in enumerate(written)},
        }
        problem = _attempt(lambda: _finish(last, part, step, content, keep))
    if rank() == 0 and problem:
        shutil.rmtree(part, ignore_errors=True)
    return gather(problem)[0] if sharded else problem


def newest_state(last: Path) -> State | None:
    """The newest intact state, or None if there are no states; called by all processes.

    Broken states are reported on stderr and skipped.

    Raises:
        SetrError: there are states, but all are broken.
    """
    names = on_first(lambda: [p.name for p in states(last)])
    problems = []
    for name in reversed(names):
        found, problem = _examine(last / name)
        problem = next((f"rank {r}: {p}" if world() > 1 else p
                        for r, p in enumerate(gather(problem)) if p), "")  # fmt: skip
        if not problem and found:
            return found
        problems.append(f"{last / name}: broken training state ({problem})")
        if name != names[0]:
            say(f"warning: {problems[-1]}; falling back to the one before")
    if problems:
        problem = f"{problems[-1]}; no intact state is left, start again with --overwrite"
        raise together(SetrError(problem))
    return None


def states(last: Path) -> list[Path]:
    """The folders of all states, the oldest first; the newest may be broken."""
    return sorted(p for p in last.glob("step-*") if p.is_dir()) if last.is_dir() else []


def _file(number: int) -> str:
    return f"rank-{number:05}.safetensors"


def _rows(tensor: DTensor, number: int) -> tuple[int, int]:
    """The rows of a tensor on rank `number`: FSDP2 gives each rank the same number, rounded up."""
    each = -(-tensor.shape[0] // world())
    return min(number * each, tensor.shape[0]), min((number + 1) * each, tensor.shape[0])


def _index(tensors: Mapping[str, Tensor], writers: int) -> dict[str, Any]:
    index = {}
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        rows: list[Any] = [(0, (0, (shape or [1])[0]))]
        if isinstance(tensor, DTensor):
            rows = [(n, _rows(tensor, n)) for n in range(writers)]
        index[name] = {"shape": shape, "rows": rows}
    return index


def _attempt(action: Any) -> str | None:
    """Run a function; the reason, in one line, if it fails."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        return "the disk is full" if full else first_line(error)
    return None


def _begin(last: Path, part: Path) -> None:
    remove_parts(last)
    part.mkdir(parents=True)


def remove_parts(last: Path) -> None:
    """Remove what interrupted saves and removals left behind."""
    for leftover in last.glob(".step-*.part"):
        shutil.rmtree(leftover)


def remove_states(last: Path) -> None:
    """Remove all states."""
    remove_parts(last)
    for state in states(last):
        _retire(state)
    remove_parts(last)


def _retire(state: Path) -> None:
    """Rename a state, which is atomic; `remove_parts` deletes the files, which may take long."""
    os.replace(state, state.with_name(f".{state.name}.old.part"))


def _write_tensors(part: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write this process's tensors; returns size and checksum of the file."""
    own = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            own[name] = tensor.to_local().detach().cpu().contiguous()
        elif rank() == 0:
            own[name] = tensor.detach().cpu().contiguous()
    path = part / _file(rank())
    save_file(own, path)
    _flush(path)
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _finish(last: Path, part: Path, step: int, content: dict[str, Any], keep: int) -> None:
    text = json.dumps(content)
    check = hashlib.sha256(text.encode()).hexdigest()
    (part / _INDEX).write_text(f'{{"sha256": "{check}", "state":\n{text}\n}}\n', encoding="utf-8")
    _flush(part / _INDEX)
    final = last / f"step-{step:08}"
    if final.exists():  # broken, else training would have resumed from it
        _retire(final)
    os.replace(part, final)
    _flush(last)
    # later states are broken, those without an index incomplete: keep intact ones instead
    kept = [s for s in states(last) if s.name <= final.name and (s / _INDEX).is_file()][-keep:]
    for state in states(last):
        if state not in kept:
            _retire(state)
    remove_parts(last)


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _examine(folder: Path) -> tuple[State | None, str]:
    """A state, or what is wrong with it; each process checks a share of the files."""
    try:
        lines = (folder / _INDEX).read_text(encoding="utf-8").split("\n")
        check = json_of(lines[0].rstrip().removesuffix(', "state":') + "}")["sha256"]
        if hashlib.sha256(lines[1].encode()).hexdigest() != check:
            return None, f"{_INDEX}: checksum differs"
        content = json_of(lines[1])
        if content["format"] != FORMAT:
            return None, f"{_INDEX}: format is not {FORMAT}"
        files = content["files"]
    except FileNotFoundError:
        return None, f"{_INDEX}: no such file"
    except (OSError, *BROKEN):
        return None, f"{_INDEX}: not a training state of this toolkit"
    for name in list(files)[rank() :: world()]:
        path = folder / name
        if not path.is_file():
            return None, f"{name}: no such file"
        size = path.stat().st_size
        if size != files[name]["bytes"]:
            return None, f"{name}: {size} of {files[name]['bytes']} bytes"
        if _digest(path) != files[name]["sha256"]:
            return None, f"{name}: checksum differs"
    return State(folder, content["step"], content["values"], content["tensors"]), ""

"""States survive broken disks, or say so; nothing half-written is ever read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import setr.checkpoint as checkpoint
from setr.checkpoint import newest_state, remove_states, save_state
from setr.errors import SetrError

VALUES = {"facts": {"a": 1}, "seconds": 2.5}


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model/weight": torch.randn(7, 5, generator=generator),
        "model/count": torch.tensor(step),
        "optimizer/weight/step": torch.tensor(float(step)),
    }


def save(last: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        assert save_state(last, step, VALUES, tensors(step), keep=keep) is None


def require_whole(last: Path, step: int) -> None:
    state = newest_state(last)
    assert state is not None
    assert (state.step, state.values) == (step, VALUES)
    for name, value in tensors(step).items():
        found = torch.zeros_like(value)
        state.read(name, found)
        assert torch.equal(found, value)


def test_a_state_comes_back_and_older_ones_go(tmp_path):
    assert newest_state(tmp_path / "last") is None
    save(tmp_path / "last", 1, 2, 3, keep=2)
    assert [p.name for p in sorted(tmp_path.glob("last/*"))] == ["step-00000002", "step-00000003"]
    require_whole(tmp_path / "last", 3)


def test_only_tensors_and_plain_values(tmp_path):
    save(tmp_path, 1)
    (folder,) = tmp_path.iterdir()
    assert {p.name for p in folder.iterdir()} == {"state.json", "rank-00000.safetensors"}
    content = json.loads((folder / "state.json").read_text())["state"]
    assert content["values"] == VALUES


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


FAULTS = {
    "checksum differs": ("rank-00000.safetensors", flip),
    "bytes": ("rank-00000.safetensors", cut),
    "state.json: checksum differs": ("state.json", flip),
    "state.json: not a training state": ("state.json", lambda p: p.write_bytes(b"\x80\x04pickle")),
    "state.json: no such file": ("state.json", os.unlink),
    "rank-00000.safetensors: no such file": ("rank-00000.safetensors", os.unlink),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_broken_state_falls_back_to_the_one_before(tmp_path, capsys, message):
    save(tmp_path, 1, 2)
    name, damage = FAULTS[message]
    damage(tmp_path / "step-00000002" / name)
    require_whole(tmp_path, 1)
    line = capsys.readouterr().err
    assert "step-00000002: broken training state" in line
    assert message in line
    assert "falling back" in line
    save(tmp_path, 2)  # the resumed run comes to the same step again
    require_whole(tmp_path, 2)


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "state.json"])
def test_a_broken_state_never_takes_the_place_of_the_one_just_written(tmp_path, name):
    save(tmp_path, 1, 8)
    (tmp_path / "step-00000008" / name).unlink()
    save(tmp_path, 2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    require_whole(tmp_path, 2)


def test_only_a_folder_with_an_index_counts_as_kept(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "state.json").unlink()
    save(tmp_path, 3, keep=2)
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000001", "step-00000003"}


def test_removed_states_count_no_more_wherever_it_is_cut_off(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", lambda path: (path / "state.json").unlink())
        remove_states(tmp_path)
    assert newest_state(tmp_path) is None
    remove_states(tmp_path)
    assert not list(tmp_path.iterdir())


def test_none_whole_is_an_error(tmp_path):
    save(tmp_path, 1, 2)
    for path in tmp_path.glob("*/state.json"):
        cut(path)
    with pytest.raises(SetrError, match="no intact state is left"):
        newest_state(tmp_path)


def test_another_models_state_is_refused(tmp_path):
    save(tmp_path, 1)
    state = newest_state(tmp_path)
    with pytest.raises(SetrError, match=r"model/weight has shape \[7, 5\], not \[7, 4\]"):
        state.read("model/weight", torch.zeros(7, 4))
    with pytest.raises(SetrError, match="is missing"):
        state.read("model/bias", torch.zeros(1))


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_and_the_state_before_stays(small_disk):
    last = small_disk / "last"
    save(last, 1)
    large = {"model/weight": torch.zeros(50_000)}
    assert save_state(last, 2, VALUES, large, keep=2) == "the disk is full"
    assert [p.name for p in last.iterdir()] == ["step-00000001"]
    require_whole(last, 1)


@pytest.mark.parametrize("moment", ["_write_tensors", "_flush", "_begin", "os.replace"])
def test_a_save_cut_off_anywhere_leaves_the_state_before(tmp_path, monkeypatch, moment):
    """As if the process died there: nothing is cleaned up."""
    save(tmp_path, 1)

    class DiedError(BaseException):
        pass

    def die(*_: object) -> None:
        raise DiedError

    with monkeypatch.context() as patch:
        target = checkpoint.os if moment.startswith("os.") else checkpoint
        patch.setattr(target, moment.removeprefix("os."), die)
        with pytest.raises(DiedError):
            save_state(tmp_path, 2, VALUES, tensors(2), keep=2)
    require_whole(tmp_path, 1)
    save(tmp_path, 2)
    assert not list(tmp_path.glob(".*"))
    require_whole(tmp_path, 2)


def test_a_state_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done: list[str] = []
    flush, replace = checkpoint._flush, os.replace
    monkeypatch.setattr(checkpoint, "_flush", lambda path: done.append(path.name) or flush(path))
    monkeypatch.setattr(
        checkpoint.os, "replace", lambda old, new: done.append("named") or replace(old, new)
    )
    save(tmp_path / "last", 1)
    assert done == ["rank-00000.safetensors", "state.json", "named", "last"]


@pytest.mark.parametrize("writers", [1, 2, 3])
def test_slices_of_any_number_of_writers_are_put_together(tmp_path, writers):
    """What a sharded run leaves behind, read by one process."""
    from safetensors.torch import save_file

    save(tmp_path, 1)
    state = newest_state(tmp_path)
    whole = tensors(1)["model/weight"]
    each = -(-len(whole) // writers)
    rows = []
    for number in range(writers):
        part = whole[number * each : (number + 1) * each]
        rows.append([number, [number * each, number * each + len(part)]])
        save_file({"w": part.contiguous()}, state.folder / f"rank-{number:05}.safetensors")
    sliced = state._replace(tensors={"w": {"shape": [7, 5], "rows": rows}})
    found = torch.zeros(7, 5)
    sliced.read("w", found)
    assert torch.equal(found, whole)

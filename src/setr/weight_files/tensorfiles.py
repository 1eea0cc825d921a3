"""Read the tensors of weight files, without running any code in them.

Formats are recognised by content: safetensors, PyTorch zip and legacy files, NumPy `.npz`.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr.errors import SetrError, UsageError, first_line
from setr.reading.files import in_text
from setr.reading.parsed import BROKEN, fault_of, json_of
from setr.weight_files.torch_files import read_torch_file

MAX_RATIO = 20
"""Archives that unpack to more than this many times their size are refused."""

WEIGHTS = tuple(
    f"{name}{index}"
    for name in ("model.safetensors", "pytorch_model.bin")
    for index in ("", ".index.json")
)
"""Names of weights in a folder of transformers or of this toolkit, the first that is there: one
file, or the index of several."""
_SETTINGS = (".py", ".yaml", ".yml", ".json")


@dataclass(frozen=True)
class TensorFile:
    """The content of a weight file.

    Attributes:
        path: the file.
        tensors: by name, taken out of an enclosing dictionary (`state_dict`, `model`, …).
        meta: values stored beside the tensors, such as class names.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)


def read_tensor_file(path: Path) -> TensorFile:
    """Read all tensors of a file, of the files that an index lists, or of a model directory.

    In a directory, this is the first of `WEIGHTS`.

    Raises:
        SetrError: a missing, empty, damaged or other file, one that contains code, or a zip bomb.
    """
    if path.is_dir():
        path = weights_in(path) or path / WEIGHTS[0]
    if is_index(path):
        return _read_parts(path)
    return _read_one(path)


def _read_one(path: Path) -> TensorFile:
    if not path.is_file():
        raise UsageError(f"{path}: no such weight file")
    if path.suffix in _SETTINGS:
        raise UsageError(
            f"{path}: a configuration file, not weights; give only the checkpoint (.pth, .bin, "
            ".safetensors, .npz)"
        )
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise SetrError(f"{path}: the file is empty (0 bytes)")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise SetrError(f"{path}: is a web page, not weights; the download went wrong")
    if head.startswith(b"version https://git-lfs"):
        raise SetrError(f"{path}: is a Git LFS pointer, not weights; fetch it with `git lfs pull`")
    try:
        if head.startswith(b"PK"):
            found = _read_zip(path)
        elif head[8:9] == b"{":
            found = _read_safetensors(path)
        else:
            found = TensorFile(path, *read_torch_file(path))
    except SetrError:
        raise
    except Exception as error:
        raise SetrError(
            f"{path}: broken, or not a weight file ({first_line(error):.100})"
        ) from None
    if not found.tensors:
        raise SetrError(f"{path}: holds no tensors")
    _check_tensors(found)
    return found


def weights_in(folder: Path) -> Path | None:
    """The first of `WEIGHTS` in a folder; None without any."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def holds_weights(folder: Path) -> bool:
    """Whether a folder has the first of `WEIGHTS` that is there, with all files of an index."""
    file = weights_in(folder)
    if file is None or not is_index(file):
        return file is not None
    return all(part.is_file() for part in parts_of(file))


def is_index(path: Path) -> bool:
    """Whether a path is called as transformers calls the index of weights in several files."""
    return path.name.endswith(".index.json") and path.is_file()


def parts_of(index: Path) -> list[Path]:
    """The files that an index of weights lists, which lie beside it.

    Raises:
        SetrError: no such index, or files elsewhere.
    """
    try:
        names = set(json_of(index.read_text(encoding="utf-8"))["weight_map"].values())
        elsewhere = [name for name in names if Path(name).name != name]
    except BROKEN as error:
        raise SetrError(f"{index}: no index of weights ({fault_of(error)})") from None
    if not names:
        raise SetrError(f"{index}: no index of weights (lists no files)")
    if elsewhere:
        raise SetrError(f"{index}: lists a file elsewhere ({elsewhere[0]!r:.80}); not read")
    return [index.with_name(name) for name in sorted(names)]


def _read_parts(index: Path) -> TensorFile:
    parts = parts_of(index)
    lacking = [part.name for part in parts if not part.is_file()]
    if lacking:
        raise SetrError(
            f"{index}: lists {len(parts)} files, of which {lacking[0]} is not beside it; fetch all"
        )
    return TensorFile(index, {k: v for part in parts for k, v in _read_one(part).tensors.items()})


def _read_safetensors(path: Path) -> TensorFile:
    from safetensors.torch import load_file

    with in_text(path) as place:
        return TensorFile(path, load_file(place))


def _read_zip(path: Path) -> TensorFile:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_RATIO * path.stat().st_size:
        raise SetrError(
            f"{path}: would unpack from {path.stat().st_size:,} to {unpacked:,} bytes; refused as "
            "a zip bomb"
        )
    for member in members:
        _check_name(path, member.filename)
    if any(member.filename.endswith(".npy") for member in members):
        return _read_npz(path)
    return TensorFile(path, *read_torch_file(path))


def _read_npz(path: Path) -> TensorFile:
    import numpy as np

    tensors = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            try:
                tensors[name] = torch.from_numpy(np.asarray(arrays[name]))
            except (ValueError, TypeError) as error:  # pickled objects are refused, text is skipped
                if "allow_pickle" in str(error):
                    raise SetrError(
                        f"{path}: '{name}' is a pickled object; refused, code is never run"
                    ) from None
    return TensorFile(path, tensors)


def _check_tensors(found: TensorFile) -> None:
    for name, tensor in found.tensors.items():
        _check_name(found.path, name)
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise SetrError(f"{found.path}: '{name}' is sparse or quantised; save dense tensors")
        if tensor.is_floating_point() and tensor.element_size() == 1:
            raise SetrError(
                f"{found.path}: '{name}' holds 8-bit floats, whose scale is stored elsewhere; save "
                "16 or 32 bits"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise SetrError(f"{found.path}: '{name}' claims more values than the file holds")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise SetrError(
                f"{found.path}: '{name}' has NaN or infinite values; the file is damaged or its "
                "training diverged"
            )


def _check_name(path: Path, name: str) -> None:
    if ".." in Path(name.replace("\\", "/")).parts or name.startswith("/"):
        raise SetrError(f"{path}: the name '{name}' leaves its folder; refused")

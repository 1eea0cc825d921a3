"""Read the tensors of weight files, without running any code in them.

Formats are recognised by content: safetensors, PyTorch zip and legacy files, NumPy `.npz`. PyTorch
files are read by `torch.load(weights_only=True)`. Training checkpoints of mmengine and similar
frameworks also hold objects of other packages; these are replaced by placeholders, so the packages
are neither imported nor needed. Any other global in a pickle is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr.errors import SetrError, UsageError, first_line
from setr.reading.files import in_text
from setr.reading.parsed import BROKEN, fault_of, json_of

MAX_RATIO = 20
"""Archives that unpack to more than this many times their size are refused."""

WEIGHTS = tuple(
    f"{name}{index}"
    for name in ("model.safetensors", "pytorch_model.bin")
    for index in ("", ".index.json")
)
"""Names of weights in a folder of transformers or of this toolkit, the first that is there: one
file, or the index of several."""
_INERT_PACKAGES = frozenset(
    {"addict", "argparse", "collections", "datetime", "lightning", "lightning_fabric", "mmcls"}
    | {"mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg", "numpy", "omegaconf"}
    | {"pytorch_lightning", "yacs"}
)
"""Packages whose objects occur in checkpoints; they become placeholders, without any import."""
_SETTINGS = (".py", ".yaml", ".yml", ".json")
_STATES = (
    *("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "teacher", "module"),
    "target_encoder",
)
"""Where training frameworks store the weights in a checkpoint, the first that is there; timm and
DeiT store moving averages beside the last weights, and timm reads those first, too."""
_SETTINGS_IN = ("meta", "model_init_args")
"""Where training frameworks store settings in a checkpoint: mmengine, LightlyTrain."""
_EXPORTED = "exported_models"
"""Where LightlyTrain writes models; its training state, in a folder beside it, contains code."""
_LEGACY_PICKLES = 5  # magic number, protocol, system, values, storage keys; then raw numbers
_INERT_NAMES = (
    frozenset(f"builtins.{name}" for name in ("getattr", "slice", "set", "bytearray", "complex"))
    | {f"pathlib.{part}{kind}Path" for part in ("", "_local.") for kind in ("Posix", "Windows")}
    | {"_codecs.encode"}
)
"""Single names, among them the paths of a script's options; Python 3.13 writes `pathlib._local`."""


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
            found = _read_torch(path)
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
    return _read_torch(path)


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


def _read_torch(path: Path) -> TensorFile:
    mmap = zipfile.is_zipfile(path)  # legacy files cannot be memory-mapped
    arguments: dict[str, Any] = {"map_location": "cpu", "weights_only": True, "mmap": mmap}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about pickle protocols
            values = torch.load(path, **arguments)
    except pickle.UnpicklingError:
        foreign = [n for n in sorted(_globals(path)) if not n.startswith("torch.")]
        code = [n for n in foreign if not _is_inert(n)]
        if code:
            fix = "get a file with tensors only, preferably .safetensors"
            if path.resolve().parent.with_name(_EXPORTED).is_dir():
                fix = f"give a model of the folder {_EXPORTED} beside its own"
            raise SetrError(
                f"{path}: contains code ({code[0]}), which is never run; {fix}"
            ) from None
        try:
            with torch.serialization.safe_globals([(_Placeholder, name) for name in foreign]):
                values = torch.load(path, **arguments)
        except pickle.UnpicklingError:
            raise SetrError(
                f"{path}: holds Python objects instead of named tensors; save model.state_dict()"
            ) from None
    if not isinstance(values, dict):
        raise SetrError(f"{path}: holds a {type(values).__name__}, not named tensors")
    meta = next((values[key] for key in _SETTINGS_IN if key in values), None)
    tensors = {str(k): v.detach() for k, v in _state(values, path).items() if isinstance(v, Tensor)}
    return TensorFile(path, tensors, meta if isinstance(meta, dict) else {})


def _state(values: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """The dictionary with the tensors in the content of a file.

    Raises:
        SetrError: several dictionaries have more tensors than the file itself.
    """
    for key in _STATES:
        if isinstance(values.get(key), dict):
            return _state(values[key], path)
    counts = {
        key: sum(isinstance(part, Tensor) for part in value.values())
        for key, value in values.items()
        if isinstance(value, dict)
    }
    own = sum(isinstance(value, Tensor) for value in values.values())
    inner = [key for key, count in counts.items() if count > own]
    if len(inner) > 1:
        raise SetrError(
            f"{path}: holds several sets of tensors ({', '.join(map(str, inner))}); save the one "
            "you mean: torch.save(torch.load(FILE)[NAME], …)"
        )
    return values[inner[0]] if inner else values


class _Placeholder:
    """Replaces an object of another package; accepts all arguments and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _is_inert(name: str) -> bool:
    return name.partition(".")[0] in _INERT_PACKAGES or name in _INERT_NAMES


def _globals(path: Path) -> set[str]:
    """Qualified names of all globals in a PyTorch file, found without unpickling."""
    names = set()
    for data in _pickles(path):
        strings: list[str] = []
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                names.add(f"{IMPORT_MAPPING.get(module, module)}.{name}")
            elif operation.name == "STACK_GLOBAL":
                names.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return names


def _pickles(path: Path) -> list[bytes]:
    """The pickle streams of a PyTorch file; a legacy file is split at each STOP opcode."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return [archive.read(n) for n in archive.namelist() if n.endswith(".pkl")]
    data, start = path.read_bytes(), 0
    streams: list[bytes] = []
    while len(streams) < _LEGACY_PICKLES and data[start : start + 1] == pickle.PROTO:
        end = max(position or 0 for _, _, position in pickletools.genops(data[start:])) + 1
        streams.append(data[start : start + end])
        start += end
    return streams or [data]


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

"""Read PyTorch's zip and legacy files, without running any code in them.

They are read by `torch.load(weights_only=True)`. Training checkpoints of mmengine and similar
frameworks also hold objects of other packages; these are replaced by placeholders, so the packages
are neither imported nor needed. Any other global in a pickle is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setr.errors import SetrError

_INERT_PACKAGES = frozenset(
    {"addict", "argparse", "collections", "datetime", "lightning", "lightning_fabric", "mmcls"}
    | {"mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg", "numpy", "omegaconf"}
    | {"pytorch_lightning", "yacs"}
)
"""Packages whose objects occur in checkpoints; they become placeholders, without any import."""
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


def read_torch_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a file by name, and the settings that training frameworks store beside them.

    Raises:
        SetrError: it contains code, or no named tensors, or several sets of them.
        Exception: what `torch.load` raises for a file that is broken or of another kind.
    """
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
    return tensors, meta if isinstance(meta, dict) else {}


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
    names, strings = set(), list[str]()
    for operation, argument, _ in _operations(path):
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            names.add(f"{IMPORT_MAPPING.get(module, module)}.{name}")
        elif operation.name == "STACK_GLOBAL":
            names.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return names


def _operations(path: Path) -> Iterator[Any]:
    """The operations of all pickle streams in a PyTorch file; a legacy one begins with them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield from pickletools.genops(archive.read(name)) if name.endswith(".pkl") else ()
        return
    with path.open("rb") as file:
        for number in range(_LEGACY_PICKLES):
            if number == 0 or file.peek(1)[:1] == pickle.PROTO:
                yield from pickletools.genops(file)

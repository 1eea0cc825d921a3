"""Model directories in the Hub's layout: config.json, model.safetensors, README.md.

`config.json` contains everything that evaluation and prediction need besides the weights:
architecture, classes, colours, label map, normalisation and test protocol.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from setr.errors import FAILED, USAGE, SetrError, first_line
from setr.layers.low_rank import merged_state
from setr.model import SETR
from setr.model_info import FORMAT, ModelInfo, as_tuple, describe, read_info
from setr.pages.model_card import model_card
from setr.reading.files import require_alive, write_bytes, write_json
from setr.reading.remote import at_revision, fetch, is_repository
from setr.weight_files.transformers_files import is_transformers

FILES = ("config.json", "model.safetensors", "README.md", "config.yaml")
"""Files of a repository; `config.yaml` (the training settings) only if the model was trained."""
_OTHERS = ("preprocessor_config.json", "pytorch_model.bin")
"""Further files of a repository of transformers; the second where `model.safetensors` is absent."""
LARGEST = 100_000
"""Upper limit on the numbers in a model's arguments, such as widths, depths and image sides."""


def save_pretrained(
    folder: str | Path,
    model: nn.Module,
    info: ModelInfo,
    *,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a model directory; each file is written atomically.

    Args:
        folder: created if missing.
        model: a `SETR`, also wrapped by torch.compile, DDP or AveragedModel.
        info: classes, normalisation, test protocol and so on.
        state: weights to save instead of the model's own (such as a moving average).

    Raises:
        SetrError: an info of another model, a model with other parts than `SETR` builds, or a
            folder that cannot be written.
    """
    model = _unwrapped(model)
    merged = merged_state(state or model.state_dict())
    tensors = {k.replace("_orig_mod.", ""): v.detach().contiguous() for k, v in merged.items()}
    if not isinstance(info, ModelInfo):
        raise SetrError(
            f"info is a {type(info).__name__}: give setr.ModelInfo(labels=setr.Labels((…)))",
            code=USAGE,
        )
    values = describe(model, info)
    _require_described(model, tensors)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetrError(f"{folder}: cannot make this folder: {error.strerror}") from None
    _write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", values)
    write_bytes(folder / "README.md", model_card(model, info).encode())


def _unwrapped(model: nn.Module) -> SETR:
    """The model inside wrappers such as torch.compile, DDP or AveragedModel."""
    inner = model
    while not isinstance(inner, SETR):
        found = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if not isinstance(found, nn.Module):
            raise SetrError(
                f"{type(model).__name__}: give a model of setr.create_model", code=USAGE
            )
        inner = found
    return inner


def _require_described(model: SETR, tensors: dict[str, Tensor]) -> None:
    """Refuse weights that do not fit a model built from the arguments."""
    with torch.device("meta"):
        rebuilt = SETR(**model.arguments).state_dict()
    for name in sorted(rebuilt.keys() ^ tensors.keys()) or rebuilt:
        if name not in tensors or name not in rebuilt or tensors[name].shape != rebuilt[name].shape:
            raise SetrError(
                f"{name}: is not as the model's arguments build it, so the folder could not be "
                "loaded; save a model with your own modules by torch.save(model.state_dict(), …)",
                code=USAGE,
            )


def from_pretrained(source: str | Path, *, revision: str | None = None) -> tuple[SETR, ModelInfo]:
    """Load a model directory or a repository of the Hub; eval mode, on the CPU.

    Args:
        source: a local folder, or `owner/name` or `owner/name@revision` on the Hub. Cached
            repositories need no network.
        revision: branch, tag or commit on the Hub.

    Raises:
        SetrError: missing or corrupt files, weights that do not fit the configuration, or a
            repository that is missing, gated or unreachable.
    """
    return _read_folder(model_folder(at_revision(source, revision)))


def model_folder(source: str | Path) -> Path:
    """The local folder of a model, downloaded if it is a repository of the Hub.

    Args:
        source: a folder, or `owner/name` or `owner/name@revision`; also a repository of
            transformers.

    Raises:
        SetrError: as `from_pretrained`, except for the content of the files.
    """
    if Path(source).is_dir():
        return Path(source)
    require_named(source)
    found = fetch(
        str(source),
        (*FILES, _OTHERS[0]),
        is_complete=lambda f: _holds_model(f) or _holds_older_model(f),
    )
    if is_transformers(found) and not (_holds_model(found) or _holds_older_model(found)):
        found = fetch(str(source), _OTHERS, is_complete=_holds_older_model)
    return found


def require_named(source: str | Path) -> None:
    """Refuse a source that is neither a local path nor a repository name of the Hub."""
    require_alive(source)
    if not Path(source).exists() and not is_repository(str(source)):
        raise SetrError(
            f"{source}: no such model directory; `setr train` or `setr demo` makes one", code=USAGE
        )


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a model directory to the Hub and return its URL.

    Only `FILES` are uploaded, never training state. Uses the access token of `hf auth login`.

    Args:
        folder: a model directory or run folder.
        repo_id: `owner/name`; created if missing.
        private: whether a new repository is private.

    Raises:
        SetrError: no model directory, no permission or no network.
    """
    from huggingface_hub import HfApi

    _read_folder(Path(folder))
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Upload model",
        )
    except Exception as error:
        raise SetrError(
            f"{repo_id}: cannot upload ({first_line(error):.80}); see `hf auth login`"
        ) from None
    return f"https://huggingface.co/{repo_id}"


def _holds_model(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


def _holds_older_model(folder: Path) -> bool:
    return is_transformers(folder) and (folder / _OTHERS[1]).is_file()


def _read_folder(folder: Path) -> tuple[SETR, ModelInfo]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = folder / "config.json", folder / "model.safetensors"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            theirs = isinstance(values, dict) and "model_type" in values
            hint = "; setr.load and `setr convert` open models of transformers" if theirs else ""
            raise SetrError(f"{config}: format is not '{FORMAT}'{hint}")
        arguments = {k: as_tuple(v) for k, v in values["model"].items()}
        info = read_info(values, str(config))
    except FileNotFoundError:
        raise SetrError(
            f"{folder}: no config.json; is this a model directory?", code=USAGE
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SetrError(f"{config}: broken ({error!r:.120})") from None
    except SetrError as error:
        raise _in_file(config, error) from None
    try:
        model = _build(config, arguments, path)
        _assign_weights(model, load_file(path))
    except FileNotFoundError:
        raise SetrError(f"{path}: no such file; the model directory is incomplete") from None
    except (SafetensorError, RuntimeError) as error:
        lines = str(error).splitlines()
        reason = " ".join(lines[1:] or lines).split()  # torch's first line names no tensor
        raise SetrError(f"{path}: broken or of another model ({' '.join(reason):.160})") from None
    return model.eval(), info


def _in_file(path: Path, error: SetrError) -> SetrError:
    """An error about a setting as one about the file that contains it, with exit code 1."""
    text = str(error)
    names_file = text.startswith(str(path.parent))
    return SetrError(text if names_file else f"{path}: {text}", code=FAILED)


def _build(config: Path, arguments: dict[str, Any], weights: Path) -> SETR:
    """The model described by a config.json, without weights.

    It is built on the meta device and may not have more weights than its file, so that a wrong or
    malicious description takes no memory.

    Args:
        config: the file, for messages.
        arguments: of `SETR`.
        weights: the weight file.

    Raises:
        SetrError: invalid arguments, or more weights than the file contains.
        FileNotFoundError: no weight file.
    """
    size = weights.stat().st_size
    try:
        if any(abs(number) > LARGEST for number in _numbers(arguments)):
            raise SetrError(f"model: has a number above {LARGEST:,}, which no architecture has")
        with torch.device("meta"), _meta_parameters(weights, size):
            model = SETR(**arguments)
        state = model.state_dict()
        if all(name in state for name, _ in model.named_buffers()):
            return model
        with _meta_parameters(weights, size):  # non-persistent buffers must be computed
            return SETR(**arguments)
    except SetrError as error:
        raise _in_file(config, error) from None
    except Exception as error:  # torch and timm raise many types on invalid values
        raise SetrError(f"{config}: not a valid model description ({error!r:.120})") from None


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


_PATCH_LOCK = threading.Lock()
"""Only one thread at a time may patch torch in `_meta_parameters`, or the patch would stay."""


@contextmanager
def _meta_parameters(weights: Path, size: int) -> Iterator[None]:
    """Create parameters on the meta device, without memory; buffers are created as usual.

    Other threads are not affected.

    Raises:
        SetrError: inside, for more parameters than `size`, the bytes of the weight file.
    """
    left = size
    with _PATCH_LOCK:
        register, thread = nn.Module.register_parameter, threading.get_ident()

        def register_on_meta(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
            nonlocal left
            if value is not None and threading.get_ident() == thread:
                left -= value.numel()
                if left < 0:
                    raise SetrError(
                        f"{weights}: broken or of another model (its {size:,} bytes are fewer than "
                        "the weights that config.json describes)"
                    )
                value = nn.Parameter(value.to("meta"), requires_grad=value.requires_grad)
            register(module, name, value)

        nn.Module.register_parameter = register_on_meta  # type: ignore
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore


def _assign_weights(model: SETR, tensors: dict[str, Tensor]) -> None:
    """Assign memory-mapped tensors of a file to a model, without a copy."""
    for name, parameter in model.state_dict().items():
        if name in tensors:
            tensor = tensors[name].to(parameter.dtype)
            # Windows cannot replace a file that is mapped
            tensors[name] = tensor.clone() if os.name == "nt" else tensor
    model.load_state_dict(tensors, assign=True)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically, without a copy in memory."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # safetensors would make it readable by its owner only
        save_file(tensors, part, {"format": "pt"})
        part.chmod(mode)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise SetrError(f"{path}: cannot write: {first_line(error):.100}") from None

"""A trained model as a directory in Hub layout: config.json, model.safetensors, README.md.

`config.json` carries everything evaluation and prediction need besides the weights: architecture,
classes, colours, label map, normalisation and test protocol.
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
from setr.lora import merged_state
from setr.model import SETR
from setr.model_info import FORMAT, ModelInfo, as_tuple, describe, read_info
from setr.pages.model_card import model_card
from setr.reading.files import require_alive, write_bytes, write_json
from setr.reading.remote import at_revision, fetch, is_repository

FILES = ("config.json", "model.safetensors", "README.md", "config.yaml")
"""What a repository holds; `config.yaml` (the training settings) only if the model was trained."""
LARGEST = 100_000
"""Of the numbers that describe an architecture: widths, depths, sides of images."""


def save_pretrained(
    folder: str | Path,
    model: nn.Module,
    info: ModelInfo,
    *,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a model directory; each file appears under its name when complete.

    Args:
        folder: made if missing.
        model: a `SETR`, also in a wrapper: torch.compile, DDP, AveragedModel.
        info: what else evaluation needs.
        state: weights to save in place of the model's own (a moving average).

    Raises:
        SetrError: an info of another model, parts replaced by others than `SETR` builds, or a
            folder that cannot be written.
    """
    model = _unwrapped(model)
    merged = merged_state(state or model.state_dict())
    tensors = {k.replace("_orig_mod.", ""): v.detach().contiguous() for k, v in merged.items()}
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
    """The model inside torch.compile's module, DDP, AveragedModel and the like."""
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
    """Refuse weights that a model built anew from its arguments could not take."""
    with torch.device("meta"):
        again = SETR(**model.arguments).state_dict()
    for name in sorted(again.keys() ^ tensors.keys()) or again:
        if name not in tensors or name not in again or tensors[name].shape != again[name].shape:
            raise SetrError(
                f"{name}: is not as the model's arguments build it, so no command could open the "
                "folder; keep a model with parts of your own by torch.save(model.state_dict(), …)",
                code=USAGE,
            )


def from_pretrained(source: str | Path, *, revision: str | None = None) -> tuple[SETR, ModelInfo]:
    """Read a model directory or a repository of the Hub; eval mode, on the CPU.

    Args:
        source: a local folder (needs no network), or `owner/name` on the Hub, `owner/name@revision`
            too. What was downloaded once is found in the cache when there is no network.
        revision: branch, tag or commit on the Hub.

    Raises:
        SetrError: missing or broken files, weights that do not fit the configuration, or a
            repository that is missing, gated or out of reach.
    """
    source = at_revision(source, revision)
    if Path(source).is_dir():
        return _read_folder(Path(source))
    require_named(source)
    return _read_folder(fetch(source, FILES, is_complete=_holds_model))


def require_named(source: str | Path) -> None:
    """Refuse what is neither a file or folder here nor called like a repository of the Hub."""
    require_alive(source)
    if not Path(source).exists() and not is_repository(str(source)):
        raise SetrError(
            f"{source}: no such model directory; `setr train` or `setr demo` makes one", code=USAGE
        )


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a model directory to the Hub and return its address.

    Only the files of the layout are uploaded, never training state. The access token is the one
    `hf auth login` stored.

    Args:
        folder: a model directory, or the run that holds one.
        repo_id: `owner/name`; made if missing.
        private: whether a repository that is made is seen by its owner alone.

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


def _read_folder(folder: Path) -> tuple[SETR, ModelInfo]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = folder / "config.json", folder / "model.safetensors"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise SetrError(f"{config}: format is not '{FORMAT}'")
        arguments = {k: as_tuple(v) for k, v in values["model"].items()}
        info = read_info(values, str(config))
    except FileNotFoundError:
        raise SetrError(
            f"{folder}: no config.json; is this a model directory?", code=USAGE
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SetrError(f"{config}: broken ({error!r:.120})") from None
    except SetrError as error:
        raise _of_file(config, error) from None
    try:
        model = _build(config, arguments, path)
        _take_over(model, load_file(path))
    except FileNotFoundError:
        raise SetrError(f"{path}: no such file; the model directory is incomplete") from None
    except (SafetensorError, RuntimeError) as error:
        lines = str(error).splitlines()
        what = " ".join(lines[1:] or lines).split()  # torch's first of several names no tensor
        raise SetrError(f"{path}: broken or of another model ({' '.join(what):.160})") from None
    return model.eval(), info


def _of_file(path: Path, error: SetrError) -> SetrError:
    """What would be wrong usage as a setting is a broken file here."""
    text = str(error)
    named = text.startswith(str(path.parent))
    return SetrError(text if named else f"{path}: {text}", code=FAILED)


def _build(config: Path, arguments: dict[str, Any], weights: Path) -> SETR:
    """The model that a config.json describes, without weights.

    Shapes come first, of no more weights than there can be: what is described by mistake or malice
    takes no memory.

    Args:
        config: the file, for messages.
        arguments: of `SETR`.
        weights: the file that holds its weights.

    Raises:
        SetrError: no such model can be, or none with weights in that file.
        FileNotFoundError: no such weights.
    """
    held = weights.stat().st_size
    try:
        if any(abs(number) > LARGEST for number in _numbers(arguments)):
            raise SetrError(f"model: has a number above {LARGEST:,}, which no architecture has")
        with torch.device("meta"), _without_memory(weights, held):
            model = SETR(**arguments)
        own = model.state_dict()
        if all(name in own for name, _ in model.named_buffers()):  # others are in no file
            return model
        with _without_memory(weights, held):
            return SETR(**arguments)
    except SetrError as error:
        raise _of_file(config, error) from None
    except Exception as error:  # of torch and timm, one kind for each wrong value
        raise SetrError(f"{config}: describes no model ({error!r:.120})") from None


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


_ONE_AT_A_TIME = threading.Lock()
"""Two threads inside `_without_memory` would leave torch with the replacement of one of them."""


@contextmanager
def _without_memory(weights: Path, held: int) -> Iterator[None]:
    """Parameters made inside take neither memory nor time; buffers are made in full.

    Those that other threads make meanwhile are left alone.

    Raises:
        SetrError: inside, where there are more of them than the `held` bytes of their file.
    """
    left = held
    with _ONE_AT_A_TIME:
        register, mine = nn.Module.register_parameter, threading.get_ident()

        def register_empty(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
            nonlocal left
            if value is not None and threading.get_ident() == mine:
                left -= value.numel()
                if left < 0:
                    raise SetrError(
                        f"{weights}: broken or of another model (its {held:,} bytes are fewer than "
                        "the weights that config.json describes)"
                    )
                value = nn.Parameter(value.to("meta"), requires_grad=value.requires_grad)
            register(module, name, value)

        nn.Module.register_parameter = register_empty  # type: ignore
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore


def _take_over(model: SETR, tensors: dict[str, Tensor]) -> None:
    """Put a file's tensors in a model's place: pages of the file, read when they are first used."""
    for name, own in model.state_dict().items():
        if name in tensors:
            found = tensors[name].to(own.dtype)
            # Windows cannot replace a file that is in use
            tensors[name] = found.clone() if os.name == "nt" else found
    model.load_state_dict(tensors, assign=True)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write safetensors without a second copy in memory; the final name appears when complete."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # safetensors would leave the file to its owner alone
        save_file(tensors, part, {"format": "pt"})
        part.chmod(mode)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise SetrError(f"{path}: cannot write: {first_line(error):.100}") from None

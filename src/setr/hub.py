"""Model directories in the Hub's layout: config.json, model.safetensors, README.md.

`config.json` contains everything that evaluation and prediction need besides the weights:
architecture, classes, colours, label map, normalisation and test protocol.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from setr.arguments.elsewhere_python import answers_keywords
from setr.arguments.typed import checked
from setr.errors import SetrError, UsageError, first_line
from setr.layers.low_rank import merged_state
from setr.model import SETR
from setr.model_info import FORMAT, ModelInfo, as_tuple, describe, read_info, require_own
from setr.pages.model_card import model_card
from setr.processes.lock import ScratchFolder, open_locked
from setr.reading.files import printable, require_alive
from setr.reading.parsed import BROKEN, fault_of, json_of
from setr.reading.remote import at_revision, fetch, import_hub, is_repository
from setr.weight_files.mapped_model import in_file, open_model
from setr.weight_files.pretrained import weights_on_the_hub
from setr.weight_files.tensorfiles import holds_weights
from setr.weight_files.transformers_files import is_foreign
from setr.writing import json_bytes, make_folder, write_errors

FILES = ("config.json", "model.safetensors", "README.md", "config.yaml")
"""Files of a repository; `config.yaml` (the training settings) only if the model was trained."""
_PREPROCESSORS = ("preprocessor_config.json", "albumentations_config_eval.json")
"""Further files of a repository of transformers, or of segmentation_models.pytorch."""
_SAVING = ".saving-"


def save_pretrained(
    folder: str | Path,
    model: nn.Module,
    info: ModelInfo,
    *,
    state: dict[str, Tensor] | None = None,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Write a model directory; its files appear together, when all are complete.

    Args:
        folder: created if missing.
        model: a `SETR`, also wrapped by torch.compile, DDP or AveragedModel.
        info: classes, normalisation, test protocol and so on.
        state: weights to save instead of the model's own (such as a moving average).
        before: called once all is written, before it takes the place of another model.

    Raises:
        SetrError: an info of another model, a model with other parts than `SETR` builds, or a
            folder that cannot be written.
    """
    model = _unwrapped(model)
    merged = merged_state(state or model.state_dict())
    tensors = {k.replace("_orig_mod.", ""): v.detach().contiguous() for k, v in merged.items()}
    if not isinstance(info, ModelInfo):
        raise UsageError(
            f"info is a {type(info).__name__}: give setr.ModelInfo(labels=setr.Labels((…)))"
        )
    values = describe(model, info)
    _require_described(model, tensors)
    folder = Path(folder)
    make_folder(folder)
    card = printable(model_card(model, info)).encode()
    _finish_saving(folder)  # else its description would be removed with its folder
    with write_errors(folder), ScratchFolder(folder, _SAVING) as scratch:
        _write_tensors(scratch / "model.safetensors", tensors, folder)
        (scratch / "README.md").write_bytes(card)
        (scratch / "config.json").write_bytes(json_bytes(values))
        before()
        try:
            os.replace(scratch / "model.safetensors", folder / "model.safetensors")
        finally:  # also after a signal
            _move_rest(scratch, folder)


def _move_rest(scratch: Path, folder: Path) -> None:
    """Move what describes the weights after them, if they have been moved.

    They are written first, so a description alone is that of weights that are in the folder.
    """
    if (scratch / "config.json").exists() and not (scratch / "model.safetensors").exists():
        for name in ("README.md", "config.json"):
            with contextlib.suppress(FileNotFoundError):  # moved before
                os.replace(scratch / name, folder / name)


def _finish_saving(folder: Path) -> None:
    """Finish what a process that was killed between the files of a model had begun."""
    for lock in folder.glob(f"{_SAVING}*/.lock"):
        with contextlib.suppress(OSError):  # another process is at work, or the disk is read-only
            fd, locked = open_locked(lock, os.O_RDWR, "flock")
            try:
                if locked:
                    _move_rest(lock.parent, folder)
            finally:
                os.close(fd)


def _unwrapped(model: nn.Module) -> SETR:
    """The model inside wrappers such as torch.compile, DDP or AveragedModel."""
    inner = model
    while not isinstance(inner, SETR):
        found = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if not isinstance(found, nn.Module):
            raise UsageError(f"{type(model).__name__}: give a model of setr.create_model")
        inner = found
    return inner


def _require_described(model: SETR, tensors: dict[str, Tensor]) -> None:
    """Refuse weights that do not fit a model built from the arguments."""
    with torch.device("meta"):
        rebuilt = SETR(**model.arguments).state_dict()
    for name in sorted(rebuilt.keys() ^ tensors.keys()) or rebuilt:
        if name not in tensors or name not in rebuilt or tensors[name].shape != rebuilt[name].shape:
            raise UsageError(
                f"{name}: is not as the model's arguments build it, so the folder could not be "
                "loaded; save a model with your own modules by torch.save(model.state_dict(), …)"
            )


@answers_keywords("from_pretrained")
@checked
def from_pretrained(source: str | Path, *, revision: str | None = None) -> tuple[SETR, ModelInfo]:
    """Load a model directory or a repository of the Hub; eval mode, on the CPU.

    Args:
        source: a local folder, or `owner/name` or `owner/name@revision` on the Hub. Cached
            repositories need no network.
        revision: branch, tag or commit on the Hub.

    Returns:
        The model, and what is stored with it besides its weights.

    Raises:
        SetrError: missing or corrupt files, weights that do not fit the configuration, or a
            repository that is missing, gated or unreachable.
    """
    return _read_folder(model_folder(at_revision(source, revision)))


def model_folder(source: str | Path) -> Path:
    """The local folder of a model, downloaded if it is a repository of the Hub.

    Args:
        source: a folder, or `owner/name` or `owner/name@revision`; also a repository of
            transformers or segmentation_models.pytorch.

    Raises:
        SetrError: as `from_pretrained`, except for the content of the files.
    """
    if Path(source).is_dir():
        return Path(source)
    if Path(source).is_file():
        raise UsageError(
            f"{source}: is a file; give a model directory (`setr convert` makes one of a weight "
            "file, and an exported file was made from one)"
        )
    require_named(source)
    found = fetch(
        str(source),
        (*FILES, *_PREPROCESSORS),
        is_complete=lambda f: holds_weights(f) if is_foreign(f) else holds_model(f),
    )
    if is_foreign(found) and not holds_weights(found):  # under other names
        return weights_on_the_hub(str(source)).parent
    return found


def require_named(source: str | Path) -> None:
    """Refuse a source that is neither a local path nor a repository name of the Hub."""
    require_alive(source)
    if not Path(source).exists() and not is_repository(str(source)):
        hint = "`setr train` or `setr demo` makes one"
        if "," in str(source):
            hint = "several models are for setr.load, predict, eval and serve; give one here"
        raise UsageError(f"{source}: no such model directory; {hint}")


@checked
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
    _read_folder(Path(folder))
    try:
        api = import_hub().HfApi()
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


def holds_model(folder: Path) -> bool:
    """Whether a folder has the files that a model consists of."""
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


def _read_folder(folder: Path) -> tuple[SETR, ModelInfo]:
    config, weights = folder / "config.json", folder / "model.safetensors"
    _finish_saving(folder)
    if config.exists() and not config.is_file():  # a pipe would be waited for
        raise SetrError(f"{config}: is no file")
    try:
        values = json_of(config.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            theirs = isinstance(values, dict) and {"model_type", "_model_class"} & values.keys()
            hint = "; setr.load and `setr convert` open models of other code" if theirs else ""
            raise SetrError(f"{config}: format is not '{FORMAT}'{hint}")
        arguments = {k: as_tuple(v) for k, v in values["model"].items()}
        info = read_info(values, str(config))
    except FileNotFoundError:
        why = "is this a model directory?"
        if (folder / "config.yaml").is_file():
            why = "a run gets its model with its first test, at the latest when training ends"
        raise UsageError(f"{folder}: no config.json; {why}") from None
    except SetrError as error:
        raise in_file(config, error) from None
    except BROKEN as error:
        raise SetrError(f"{config}: broken ({fault_of(error)})") from None
    model = open_model(arguments, config, weights).eval()
    try:
        require_own(model, info)
    except SetrError as error:
        raise in_file(config, error) from None
    return model, info


def _write_tensors(path: Path, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write a safetensors file, without a copy in memory; errors name the folder it is for."""
    try:
        path.touch()
        mode = path.stat().st_mode  # safetensors would make it readable by its owner only
        save_file(tensors, path, {"format": "pt"})
        path.chmod(mode)
    except (OSError, SafetensorError) as error:
        reason = f"{first_line(error):.100}"
        raise SetrError(f"{folder / path.name}: cannot write: {reason}") from None

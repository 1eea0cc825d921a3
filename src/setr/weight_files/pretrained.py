"""Pretrained encoder weights: from a file, from the Hub, or by a tag of timm's weights."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from setr.errors import SetrError, UsageError
from setr.reading.files import require_alive
from setr.reading.remote import WEIGHT_SUFFIXES, fetch, fetched, is_repository
from setr.reading.urls import is_url
from setr.weight_files.dialects import translate
from setr.weight_files.load_report import LoadReport
from setr.weight_files.naming import Translation
from setr.weight_files.recorded_form import translate_file
from setr.weight_files.tensorfiles import (
    WEIGHTS,
    holds_weights,
    is_index,
    parts_of,
    read_tensor_file,
    weights_in,
)
from setr.weights import Loadable, match_weights

_SETTINGS = ("config.json", "preprocessor_config.json")
_EITHER = "neither model.safetensors nor pytorch_model.bin, nor an index of several such files"


def load_encoder(model: Loadable, source: str, *, resnet: bool = False) -> LoadReport:
    """Load encoder weights from a file, from the Hub, or by a tag of weights that timm downloads.

    Args:
        model: the model; its heads keep their values unless the file holds a whole model.
        source: a path or an http(s) address; `owner/name` on the Hub, of a setr model or an
            encoder; or a tag such as `augreg_in21k`, `deit`, `deit_distilled` or `lvd142m`.
        resnet: whether a tag is for the ResNet of a Hybrid model instead of its ViT.

    Raises:
        SetrError: as `load_weights`; also an unknown tag, or weights that cannot be downloaded.
    """
    found, name = encoder_weights(model, source, resnet=resnet)
    state, report = match_weights(model, found, name, new_head=True)
    model.load_state_dict(state, strict=False)
    return report


def encoder_weights(
    model: Loadable, source: str, *, resnet: bool = False
) -> tuple[Translation, str]:
    """The tensors that `load_encoder` would load, with our names, and where they are from."""
    file = local_file(source)
    if file is not None:
        return translate_file(read_tensor_file(file), str(file)), str(file)
    name = pretrained_id(_timm_name(model, resnet), source)
    return translate(_download(name), name), name


def require_weights(model: Loadable, source: str, *, resnet: bool = False) -> None:
    """Check that encoder weights exist, without reading them.

    Weights of a repository or tag are downloaded.

    Raises:
        SetrError: no such file or repository, or no such weights for the model's encoder.
    """
    require_alive(source)
    file = local_file(source)
    if file is None:
        _timm_file(pretrained_id(_timm_name(model, resnet), source))
    elif file.is_dir() and not weights_in(file):
        raise UsageError(f"{source}: the folder has {_EITHER}; give the file")
    elif not file.exists():
        raise UsageError(f"{source}: no such weight file")


def require_weights_fit(model: Loadable, source: str) -> None:
    """Check that encoder weights of a file or repository fit the model, without loading them.

    Raises:
        SetrError: as `load_weights`.
    """
    if local_file(source) is not None:
        found, name = encoder_weights(model, source)
        match_weights(model, found, name, new_head=True)


def local_file(source: str) -> Path | None:
    """The file or folder with encoder weights, downloaded if necessary; None for a tag."""
    if is_url(source):
        return fetched(source)
    if is_repository(source):
        return weights_on_the_hub(source)
    path = Path(source)
    return path if path.exists() or path.suffix or "/" in source else None


def _timm_name(model: Loadable, resnet: bool) -> str:
    return str(model.arguments["resnet" if resnet else "encoder"])


def default_tag(encoder: str) -> str:
    """The tag of an encoder's default weights in timm, or the tag in its name.

    Raises:
        SetrError: timm has no weights for it.
    """
    from setr._timm import timm

    tag = timm.get_pretrained_cfg(encoder).tag if timm.is_model(encoder) else None
    if not tag or not timm.list_pretrained(f"{encoder.partition('.')[0]}.{tag}"):
        raise UsageError(f"pretrained: timm has no weights for {encoder}; give a file, or None")
    return str(tag)


def pretrained_id(encoder: str, tag: str) -> str:
    """The timm name of pretrained weights for an encoder, at its own or another resolution.

    Raises:
        SetrError: no such weights; the message lists the existing tags.
    """
    encoder = encoder.partition(".")[0]  # timm's names may include a tag
    if tag in ("deit", "deit_distilled"):
        encoder = re.sub(r"^(vit|deit)_", "deit_", encoder)
        if tag == "deit_distilled" and "_distilled_" not in encoder:
            encoder = encoder.replace("_patch", "_distilled_patch")
        tag = "fb_in1k"
    known = pretrained_names(encoder)
    fits = [name for name in known if name.endswith(f".{tag}")]
    if not fits:
        tags = sorted({name.partition(".")[2] for name in known})
        raise UsageError(
            f"pretrained '{tag}': no such file, and no such weights for {encoder}; timm has "
            f"{', '.join(tags) or 'none'}; give one of these tags, or a file with the weights"
        )
    return next((name for name in fits if name.startswith(f"{encoder}.")), fits[-1])


def pretrained_names(encoder: str) -> list[str]:
    """The timm names of all weights for an encoder, at its own or another resolution."""
    from setr._timm import timm

    family = re.sub(r"_\d+$", "", encoder.partition(".")[0])
    return [n for n in timm.list_pretrained() if re.fullmatch(rf"{family}(_\d+)?\..+", n)]


def timm_name_of(source: str) -> str | None:
    """The last part of a path, address or repository's name, if timm has weights of this name."""
    from setr._timm import timm

    name = Path(source.partition("@")[0]).name
    name = name.removesuffix(Path(name).suffix if Path(name).suffix in WEIGHT_SUFFIXES else "")
    return name if name in timm.list_pretrained() else None


def _download(name: str) -> dict[str, Tensor]:
    """The state dict of a pretrained timm model, from the Hub or its cache."""
    from setr._timm import timm

    overlay = {"file": str(_timm_file(name))}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()


def _timm_file(name: str) -> Path:
    return weights_on_the_hub(timm_repository(name))


def timm_repository(name: str) -> str:
    """The repository on the Hub of timm's weights of this name."""
    from setr._timm import timm

    repo_id = timm.get_pretrained_cfg(name).hf_hub_id or "timm/"
    return f"{repo_id}{name}" if repo_id.endswith("/") else repo_id


def weights_on_the_hub(repo_id: str) -> Path:
    """The file of weights in a repository, or their index, downloaded unless it is cached.

    Files of settings are then beside it, with what our own models started from, and with the
    normalisation of others.
    """
    file = weights_in(fetch(repo_id, (*WEIGHTS, *_SETTINGS), is_complete=weights_in))
    if file is None:
        raise SetrError(
            f"{repo_id}: the repository has {_EITHER}; download its file "
            f"(`hf download {repo_id.partition('@')[0]} FILE`) and give the path"
        )
    if is_index(file):
        parts = [part.name for part in parts_of(file)]
        fetch(repo_id, (file.name, *parts, *_SETTINGS), is_complete=holds_weights)
    return file

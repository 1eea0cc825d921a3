"""Load weights of any known layout into a model, and report what was loaded.

The new state is checked completely before the model is changed. An encoder whose tensors do not fit
is an error, so that nobody trains from scratch without noticing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from setr.arguments.choices import PosInterp
from setr.errors import UsageError
from setr.layers.low_rank import fit_low_rank
from setr.weight_files.architecture import dialect_options, function_options
from setr.weight_files.form import has_plain_form, name_layer_scales
from setr.weight_files.load_report import LoadReport as LoadReport
from setr.weight_files.misfits import head_message, require_encoder
from setr.weight_files.naming import DELTA, WHOLE, Translation
from setr.weight_files.recorded_form import translate_file
from setr.weight_files.relative_bias import TABLE, fill_plain, fit_table, split_qkv_bias
from setr.weight_files.sam import OFFSETS, fit_offsets
from setr.weight_files.stem import (
    PATCHES,
    POSITIONS,
    adapt_channels,
    fit_patches,
    fit_positions,
    flatten_positions,
    fold_prefix,
    patch_grid,
    reads_rgb_alone,
)
from setr.weight_files.stored_grid import stored_size
from setr.weight_files.tensorfiles import read_tensor_file

_FINAL_NORMS = {
    "upernet": r"neck\.norm",
    "segmenter": r"decoder\.norm",
    "linear": r"decoder\.norms\.\d+",
}
"""Layers that stand for the encoder's final norm, by the decoder's name."""


class Loadable(Protocol):
    """The interface of a model that weights can be loaded into; `SETR` has it."""

    encoder: Any
    arguments: dict[str, Any]
    num_classes: int

    def state_dict(self) -> dict[str, Any]:
        """As `nn.Module.state_dict`."""

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool) -> Any:
        """As `nn.Module.load_state_dict`."""


def load_weights(
    model: Loadable,
    source: str | os.PathLike,
    *,
    partial: bool = False,
    new_head: bool = False,
    pos_interp: PosInterp | None = None,
) -> LoadReport:
    """Load a checkpoint of any known layout into a model.

    A checkpoint of an encoder leaves the heads unchanged, except the encoder's final norm, with
    which UPerNet's neck, Segmenter's decoder and the linear probe begin.
    If the model does not have three input channels, RGB weights are adapted as in timm: summed for
    one channel, else repeated and scaled by 3 / in_chans.
    LoRA in a checkpoint is merged into the weights, unless the model has it, too.

    Args:
        model: the model, for example from `create_model`; unchanged if an error is raised.
        source: a .pth, .bin, .safetensors or .npz file, or a model directory.
        partial: accept an encoder of which less than 95 % of the tensors match, or some have
            another shape.
        new_head: keep the model's values of head tensors that do not fit, for example because the
            number of classes differs.
        pos_interp: how position embeddings are resampled; by default the model's own mode.

    Returns:
        Names of the tensors that were loaded, resized, missing, unexpected and so on.

    Raises:
        SetrError: unreadable file, unknown layout, tensors that do not fit, or arguments of other
            types.
    """
    if not hasattr(model, "arguments"):
        raise UsageError(f"{type(model).__name__}: give a model of setr.create_model")
    if not isinstance(source, str | os.PathLike):
        raise UsageError(
            f"weights are a {type(source).__name__}: give a file; a state dict of this model loads "
            "with its load_state_dict"
        )
    file = read_tensor_file(Path(source))
    found = translate_file(file, str(source))
    state, report = match_weights(
        model, found, str(source), partial=partial, new_head=new_head, pos_interp=pos_interp
    )
    model.load_state_dict(state, strict=False)
    return report


def match_weights(
    model: Loadable,
    found: Translation,
    source: str,
    *,
    partial: bool = False,
    new_head: bool = False,
    pos_interp: PosInterp | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Match a checkpoint's tensors to the model's, without changing the model.

    Returns:
        The checked tensors to load into the model, and the report.

    Raises:
        SetrError: they do not fit; see `load_weights`.
    """
    if found.dialect == DELTA:
        raise UsageError(
            f"{source}: holds the differences between EoMT and DINOv3, not weights; make a model "
            "of both, and give that: `setr convert FILE --pretrained lvd1689m -o DIR`"
        )
    own = model.state_dict()
    named = found.whole or found.dialect == "setr"
    given = dict(found.tensors) if named else _with_prefix(model, found, own)
    given = fit_low_rank(given, own, source)
    flatten_positions(given)
    fold_prefix(model.encoder, given)
    split_qkv_bias(given, own)
    name_layer_scales(given, own)
    filled = found.filled + fill_plain(given, own)

    size = stored_size(source) if found.dialect == "setr" and not _keeps_grid(model) else None
    state: dict[str, Tensor] = {}
    resized, adapted, mismatched = [], [], []
    for name in [n for n in given if n in own]:
        exact = found.dialect == "setr" and given[name].shape == own[name].shape and size is None
        value = given[name]
        if not exact:
            value = _resampled(model, found, name, given, own, pos_interp, source, size)
        if value is not given[name]:
            resized.append(name)
        if reads_rgb_alone(value, own[name]):
            value = adapt_channels(value, own[name].shape[1])
            adapted.append(name)
        if value.shape == own[name].shape:
            state[name] = value.to(own[name].dtype)
        else:
            mismatched.append(name)

    heads = [n for n in own if not n.startswith("encoder.")]
    encoder = [n for n in own if n.startswith("encoder.")]
    part, expected = _expected(model, found, encoder)
    share = sum(n in state for n in expected) / len(expected)
    head_mismatches = [n for n in heads if n not in state] if found.whole else []
    absent = [n for n in expected if n not in state]
    missing = absent + [n for n in head_mismatches if n not in given]
    if not partial:
        form = has_plain_form(model.encoder)
        require_encoder(source, mismatched, absent, own, given, share, has_form=form)
    if head_mismatches and not new_head:
        raise UsageError(head_message(source, model.num_classes, head_mismatches, own, given))
    report = LoadReport(
        dialect=found.dialect,
        loaded=[n for n in state if n not in filled],
        resized=resized,
        missing=missing,
        unexpected=found.unexpected + [n for n in given if n not in own],
        new_head=head_mismatches,
        filled=[n for n in filled if n in state],
        differences=_differences(model, found, source),
        encoder_share=share,
        part=part,
        adapted=adapted,
    )
    return state, report


def _resampled(
    model: Loadable,
    found: Translation,
    name: str,
    given: dict[str, Tensor],
    own: dict[str, Tensor],
    pos_interp: PosInterp | None,
    source: str,
    size: tuple[int, int] | None,
) -> Tensor:
    """A given tensor, resampled if it belongs to another patch grid or size than the model's.

    `size` is that of the images which the checkpoint is for, if known.
    """
    value = given[name]
    if name == POSITIONS:
        if found.dialect == "radio" and value.shape[1] != own[name].shape[1]:
            raise UsageError(
                f"{source}: RADIO resamples its positions in its own way; choose the encoder "
                "naflexvit_*_radio_* that these weights belong to (--model.encoder)"
            )
        mode = pos_interp or model.encoder.pos_interp
        return fit_positions(model.encoder, value, given, mode, source, size)
    if name.endswith(TABLE):
        return fit_table(name, value, own[name], patch_grid(model.encoder), source, size)
    if name.endswith(OFFSETS):
        return fit_offsets(value, own[name])
    if name == PATCHES and "patch_size" in (model.arguments["encoder_args"] or {}):
        return fit_patches(value, own[name])
    return value


def _keeps_grid(model: Loadable) -> bool:
    """Whether positions belong to one grid whatever the image size, as in NaFlex ViTs."""
    return hasattr(getattr(model.encoder, "vit", None), "positions")


def _differences(model: Loadable, found: Translation, source: str) -> list[str]:
    """Options in which a foreign whole model differs from this model."""
    if found.dialect not in WHOLE:
        return []
    ours = function_options(model.arguments)
    return [
        f"{key} {ours[key]!r} instead of {value!r}"
        for key, value in dialect_options(found, source).items()
        if key in ours and ours[key] != value
    ]


def _expected(model: Loadable, found: Translation, encoder: list[str]) -> tuple[str, list[str]]:
    """The part of the encoder that a checkpoint is for, and the names of its tensors."""
    if found.whole or not model.arguments["resnet"]:
        return "encoder", encoder
    if found.dialect == "resnet":
        return "ResNet", [n for n in encoder if ".patch_embed.backbone." in n]
    return "ViT", [n for n in encoder if ".patch_embed." not in n]


def _with_final_norm(
    given: dict[str, Tensor], own: dict[str, Tensor], decoder: str
) -> dict[str, Tensor]:
    """Give the encoder's final norm to the layers of neck or decoder that stand for it."""
    layers = rf"(?:{_FINAL_NORMS.get(decoder, '')})\.(weight|bias)"
    found = {name: re.fullmatch(layers, name) for name in own}
    places = {name: f"encoder.vit.norm.{match[1]}" for name, match in found.items() if match}
    norms = {name: given[there] for name, there in places.items() if there in given}
    rest = {name: value for name, value in given.items() if name not in places.values()}
    return rest | norms


def _with_prefix(model: Loadable, found: Translation, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder's tensors to their names in the model."""
    hybrid = model.arguments["resnet"] is not None
    if found.dialect != "resnet":
        # a Hybrid embeds ResNet features, so a patch embedding of pixels is left out
        stem = found.tensors.get("patch_embed.proj.weight")
        pixels = hybrid and stem is not None and stem.shape[1] == 3
        given = {
            f"encoder.vit.{name}": value
            for name, value in found.tensors.items()
            if not (pixels and name.startswith("patch_embed.proj."))
        }
        return _with_final_norm(given, own, model.arguments["decoder"])
    prefix = "encoder.vit.patch_embed.backbone." if hybrid else "encoder.net."
    return {prefix + name: value for name, value in found.tensors.items()}

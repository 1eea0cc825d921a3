"""timm's plain vision transformers by name, without pretrained weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from setr.errors import SetrError, UsageError, first_line
from setr.reading.remote import is_repository

_FAMILIES = (
    r"(vit|deit3?|eva02|eva|flexivit|naflexvit|beit|beitv2|beit3|aimv2|samvit|cait|convit)_|"
    r"(qwen3|deepseek|gemma4)_vit_.+_enc$"
)
"""Start of the names of timm's plain ViTs (regular expression)."""

_OF_WEIGHTS = frozenset(
    {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
)
"""Arguments of `timm.create_model` that open files or the network."""
_MLPS = ("Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked")
"""timm's MLPs that a ViT's blocks can have."""
_DRAWING = frozenset(
    {Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_}
)
"""What a truncated normal distribution is drawn with."""


def list_encoders(pattern: str = "*") -> list[str]:
    """Names of timm's plain vision transformers that match a shell pattern."""
    from setr._timm import timm

    return [
        name
        for name in timm.list_models(pattern)
        if re.match(_FAMILIES, name) and not re.search(r"_r(26|50)?_|_resnet|hybrid", name)
    ]


def timm_module(name: str) -> str:
    """The module of timm that has a model, such as `beit`; empty for an unknown name."""
    from setr._timm import timm

    known = timm.is_model(name)
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2] if known else ""


def has_class_token(name: str) -> bool:
    """Whether a timm ViT has a class token, without allocating its weights."""
    with torch.device("meta"):
        return getattr(create_vit(name, img_size=None), "cls_token", None) is not None


def encoder_depth(name: str) -> int:
    """Number of blocks of a timm ViT, without allocating its weights."""
    with torch.device("meta"):
        return len(create_vit(name, img_size=None).blocks)


def create_vit(name: str, *, img_size: int | tuple[int, int] | None, **timm_args: Any) -> Any:
    """A timm ViT without classifier that takes images of any size.

    Args:
        name: timm model name.
        img_size: image side or (height, width) in pixels for which position embeddings are created;
            None keeps the model's default.
        timm_args: further keyword arguments of `timm.create_model`.

    Raises:
        SetrError: unknown name, a model without variable input size, or arguments that it refuses.
    """
    from setr._timm import timm
    from setr.layers.rotary import make_on_device

    _require_known(name)
    require_architecture(timm_args)
    adapt, needed = _adaptation(name, img_size)
    size = {} if img_size is None else {"img_size": img_size}
    vit = _created(name, needed, {**size, **timm_args})
    embed: Any = getattr(vit, "patch_embed", None)  # others get their own below
    if hasattr(embed, "grid_size") and min(embed.grid_size) < 1:
        raise UsageError(
            f"img_size {img_size}: {name} has patches of {embed.patch_size[0]} pixels; "
            "give the side of an image in pixels, no smaller than a patch"
        )
    if len({*timm.layers.to_2tuple(getattr(embed, "patch_size", 1))}) > 1:
        raise UsageError(f"encoder_args: patch_size {embed.patch_size}: patches must be square")
    if getattr(vit, "attn_pool", None) is not None:
        vit.attn_pool = None  # SigLIP's pooling head is not used and would get no gradient
    adapt(vit)
    make_on_device(vit)
    return vit


def require_architecture(timm_args: dict[str, Any]) -> None:
    """Refuse arguments of `timm.create_model` that read weights: they may be a stranger's.

    Raises:
        SetrError: names the argument.
    """
    wrong = sorted(_OF_WEIGHTS & timm_args.keys())
    if wrong:
        raise UsageError(
            f"encoder_args: {wrong[0]} is about weights, not the architecture; leave it out, and "
            "give weights as pretrained"
        )


def _adaptation(
    name: str, img_size: int | tuple[int, int] | None
) -> tuple[Callable[[Any], None], dict[str, Any]]:
    """What makes a timm model of this name usable at any size, and the arguments that this needs.

    Most only need the arguments.
    """
    from setr.layers.flexible_vit import make_plain
    from setr.layers.gated_positions import make_gated
    from setr.layers.gemma_vit import make_of_any_size
    from setr.layers.language_vit import make_plain_encoder
    from setr.layers.relative_bias import make_variable
    from setr.layers.talking_heads import make_without_class
    from setr.layers.window_attention import make_windowed

    is_encoder = name.endswith("_enc")  # other models of these modules are classifiers
    match timm_module(name):
        case "naflexvit":
            return partial(make_plain, img_size=img_size), {}
        case "beit" | "vision_transformer_relpos":
            return make_variable, {}
        case "vision_transformer_sam":
            return partial(make_windowed, name=name), {"neck_chans": 0}  # SAM's neck is not used
        case "cait":
            return make_without_class, {}
        case "convit":
            return make_gated, {}
        case "gemma4_vit" if is_encoder:
            return partial(make_of_any_size, img_size=img_size), {"global_pool": ""}
        case "qwen3_vit" | "deepseek_vit" if is_encoder:  # whose projector is not used
            return make_plain_encoder, {"global_pool": "", "out_features": 0}
    return lambda vit: None, {"dynamic_img_size": True, "dynamic_img_pad": True}


class _UndrawnOnMeta(TorchFunctionMode):
    """Draws no weights on the meta device: they have no values there, but took most of the time."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _DRAWING and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _created(name: str, needed: dict[str, Any], given: dict[str, Any]) -> Any:
    """A model of timm, with the arguments that are given and, beside them, those it needs."""
    from setr._timm import timm

    heads = given.get("num_heads", 1)
    try:
        if not isinstance(heads, int) or heads < 1:  # timm checks only that they divide the width
            raise ValueError("num_heads must be a whole number from 1")
        if given.get("patch_drop_rate"):
            raise ValueError("patch_drop_rate leaves holes in the feature maps")
        if given.get("features_only"):
            raise ValueError("features_only: leave it out; encoders return feature maps anyway")
        for key, value in needed.items():
            if given.get(key, value) != value:
                raise ValueError(f"{key} must be {value!r}")
        arguments = {**needed, **given}
        if isinstance(layer := given.get("mlp_layer"), str):  # of other layers timm takes names
            arguments["mlp_layer"] = _mlp_layer(layer)
        with _UndrawnOnMeta():
            return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except SetrError:
        raise
    except (TypeError, AssertionError, ValueError, ArithmeticError, LookupError) as error:
        raise _not_buildable(name, given, error) from None
    except RuntimeError as error:
        if "negative" not in str(error):  # torch's word for the sizes of tensors
            raise
        raise _not_buildable(name, given, error) from None


def _mlp_layer(name: str) -> Any:
    """A class of timm's MLPs by its name, such as `SwiGLUPacked`."""
    from setr._timm import timm

    if name not in _MLPS:
        raise ValueError(f"mlp_layer is one of {', '.join(_MLPS)}")
    return getattr(timm.layers, name)


def _require_known(name: str) -> None:
    """Raise `SetrError` with similar names unless timm has a model of this name."""
    from setr._timm import timm

    if timm.is_model(name):
        return
    if (place := _place_of_weights(name)) is not None:
        raise UsageError(
            f"encoder '{name}': is where weights are; give them as pretrained (--model.pretrained "
            f"{place}), and as encoder timm's name of the network (`architecture` of config.json)"
        )
    bare = re.split("[/:]", name)[-1].split(".")[0]  # without Hub owner and tag
    near = timm.list_models(f"*{bare}*")[:3]
    near = near or difflib.get_close_matches(bare, timm.list_models(), 3)
    nearest = f"; nearest: {', '.join(near)}" if near else ""
    raise UsageError(
        f"encoder '{name}' is not a timm model{nearest} (`setr models --encoders` lists all)"
    )


def _place_of_weights(name: str) -> str | None:
    """The folder, file or repository that stands in place of a model's name; None if none does.

    timm itself takes `hf-hub:OWNER/NAME` and `local-dir:FOLDER` for a name.
    """
    place = re.sub(r"^(local-dir|hf[-_]hub):", "", name)
    if place.startswith("timm/"):  # whose weights are named by tags
        return None
    return place if place != name or Path(place).exists() or is_repository(name) else None


def _not_buildable(name: str, given: dict[str, Any], error: Exception) -> SetrError:
    """What to do about timm's error: choose another encoder, or other arguments."""
    if isinstance(error, TypeError) and ("dynamic_img" in str(error) or not given):
        return UsageError(
            f"encoder '{name}' cannot be used: it is not a plain ViT with variable input size "
            f"({error}); choose one of `setr models --encoders`"
        )
    settings = ", ".join(f"{key} {value}" for key, value in given.items()) or "its own settings"
    return UsageError(
        f"encoder '{name}' cannot be built with {settings} ({first_line(error)}); correct them"
    )

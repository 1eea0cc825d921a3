"""What encoder weights do not hold themselves: their normalisation, and the number of heads.

timm and transformers store both in files beside the weights; timm also has a list of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from setr.errors import SetrError, UsageError
from setr.reading.parsed import BROKEN, table_in
from setr.weight_files.naming import part_of
from setr.weight_files.pretrained import local_file, pretrained_id, pretrained_names, timm_name_of

_BY_LAYOUT = {
    "google": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of all weights in these layouts."""
_SETTINGS = {
    "config.json": ("pretrained_cfg", "mean", "std"),
    "preprocessor_config.json": ("", "image_mean", "image_std"),
}
"""Files beside the weights of timm and of transformers: the part with the two values, and their
names; timm's older files have no such part."""

_ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu"),
    **{"quick_gelu": "quick_gelu", "relu": "relu"},
}
"""Activations by transformers' names -> timm's; the forms of GELU are the same to 1e-3."""


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, for pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def is_near(self, other: Normalisation) -> bool:
        """Whether both are the same to 0.03 grey levels."""
        pairs = [*zip(self.mean, other.mean, strict=True), *zip(self.std, other.std, strict=True)]
        return all(abs(a - b) <= 1e-4 for a, b in pairs)

    def __str__(self) -> str:
        values = (f"--model.{name} {' '.join(f'{v:g}' for v in getattr(self, name))}" for name in
                  self._fields)  # fmt: skip
        return " ".join(values)


def trained_normalisation(encoder: str, source: str, dialect: str) -> Normalisation | None:
    """What weights were trained with, as their files, timm or their layout tell; None if unknown.

    Args:
        encoder: timm name of the encoder.
        source: of the weights, as `load_encoder` takes it.
        dialect: layout of the weights.
    """
    if (recorded := _recorded(source)) is not None:
        return recorded
    name = timm_name_of(source)
    if name is None:
        try:
            name = pretrained_id(encoder, source)
        except SetrError:
            return Normalisation(*_BY_LAYOUT[dialect]) if dialect in _BY_LAYOUT else None
    return _of_timm(name)


def usual_normalisations(encoder: str) -> list[Normalisation]:
    """What timm's weights for an encoder were trained with, without duplicates; first the usual."""
    found: list[Normalisation] = []
    for name in (encoder, *pretrained_names(encoder)):
        values = _of_timm(name)
        if values is not None and not any(values.is_near(other) for other in found):
            found.append(values)
    return found


def _of_timm(name: str) -> Normalisation | None:
    from setr._timm import timm

    config = timm.get_pretrained_cfg(name)
    return _three(config.mean, config.std) if config else None


def require_recorded(vit: Any, encoder: str, source: str) -> None:
    """Check heads and activation against the settings beside the weights, if there are.

    With another number of heads, or another activation, the same weights compute something else.

    Args:
        vit: timm's model, or what an encoder has in its place.
        encoder: its timm name.
        source: of the weights, as `load_encoder` takes it.

    Raises:
        SetrError: another number, or an activation of another kind.
    """
    values = _beside(source, "config.json")
    values = part_of(values, "vision_config") or values  # of CLIP and SigLIP
    if values.get("hidden_size") not in (None, vit.embed_dim):
        return  # of another part, such as a language model
    block = vit.blocks[0]
    ours = getattr(getattr(block, "attn", None), "num_heads", None)
    theirs = values.get("num_attention_heads") or part_of(values, "model_args").get("num_heads")
    if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs:
        raise UsageError(
            f"{source}: its config.json has {theirs} attention heads, {encoder} has {ours}; choose "
            f"another encoder, or add --model.encoder-args num_heads={theirs}"
        )
    mlp: Any = getattr(block, "mlp", None)
    activation = values.get("hidden_act")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        return
    if type(mlp).__name__ != "Mlp":  # gated layers have theirs
        return
    wanted, name = _ACTIVATIONS[activation], type(mlp.act).__name__
    if name.lower().removesuffix("tanh") != wanted.replace("_", ""):
        raise UsageError(
            f"{source}: its config.json has the activation {activation}, {encoder} has {name}; "
            f"choose another encoder, or add --model.encoder-args act_layer={wanted}"
        )


def _recorded(source: str) -> Normalisation | None:
    """The values in a settings file of timm or transformers beside the weights."""
    for file, (part, mean, std) in _SETTINGS.items():
        values = _beside(source, file)
        values = part_of(values, part) or values
        if (found := _three(values.get(mean), values.get(std))) is not None:
            return found
    return None


def _beside(source: str, file: str) -> dict[str, Any]:
    """The values in a file of settings beside weights; none without it, or if it is broken."""
    place = local_file(source)  # downloaded before
    if place is None:
        return {}
    return table_in((place if place.is_dir() else place.parent) / file)


def _three(mean: Any, std: Any) -> Normalisation | None:
    """The two, if they are for three channels."""
    try:
        found = Normalisation(tuple(map(float, mean)), tuple(map(float, std)))
    except BROKEN:
        return None
    return found if len(found.mean) == len(found.std) == 3 and min(found.std) > 0 else None

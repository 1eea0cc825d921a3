"""What transformers stores beside a model's weights: `config.json`, `preprocessor_config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setr.errors import SetrError
from setr.reading.parsed import BROKEN, fault_of, json_of
from setr.weight_files.naming import part_of

_PLAIN = {"num_attention_heads": "num_heads", "layer_norm_eps": "norm_eps",
          "readout_type": "readout_type"}  # fmt: skip
_COUNTS_EMBEDDINGS = ("beit", "data2vec-vision")
"""Models whose `out_indices` count from 1, and the embeddings as the first output."""
_COMPUTED = {
    "hidden_act": ("gelu",),
    "head_in_index": (-1,),
    "pool_scales": ([1, 2, 3, 6],),
    "rope_theta": (100,),
}
"""Settings that no tensor shows, with the values that models here compute with."""
_BYTE = 255


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds a model of transformers or segmentation_models.pytorch."""
    values = read_settings(folder / "config.json")
    return bool({"model_type", "_model_class"} & values.keys()) and "format" not in values


def transformers_settings(folder: Path) -> dict[str, Any]:
    """Settings of the model in a folder, by the names that are used for other checkpoints.

    Returns:
        Those that are given, of: `classes` (by the ids in masks if 0 is none), `num_heads`,
        `norm_eps`, `readout_type`, `out_indices` (of blocks, from 0), `mean`, `std`, `side` (of the
        images in pixels, the shorter one).
        Empty for a folder of another kind.

    Raises:
        SetrError: a file that is not JSON, a setting of another type, or one of another function.
    """
    config, preprocessor = (
        read_settings(folder / name) for name in ("config.json", "preprocessor_config.json")
    )
    if "model_type" not in config or "format" in config:
        return {}
    for name, known in _COMPUTED.items():
        value = {**config, **part_of(config, "rope_parameters")}.get(name)
        if value is not None and value not in known:
            raise SetrError(
                f"{folder}: config.json has {name} {value!r:.40}, which is not computed here, only "
                f"{known[0]}; of this model only the encoder's weights can be used (--model NAME)"
            )
    try:
        return _settings(config, preprocessor)
    except BROKEN as error:
        raise SetrError(f"{folder}: broken settings of transformers ({fault_of(error)})") from None


def _settings(config: dict[str, Any], preprocessor: dict[str, Any]) -> dict[str, Any]:
    """As `transformers_settings`, from the values of the two files.

    Raises:
        one of `BROKEN`: a setting of another type.
    """
    found = {name: config.get(key) for key, name in _PLAIN.items()}
    found["mean"], found["std"] = _normalisation(preprocessor)
    indices = config.get("backbone_out_indices")
    if isinstance(indices, list):
        found["out_indices"] = tuple(map(int, indices))
    places = config.get("out_indices") or config.get("segmentation_indices")
    if config["model_type"] in _COUNTS_EMBEDDINGS and isinstance(places, list):
        found["out_indices"] = tuple(place - 2 for place in places)
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels.get("0") != "LABEL_0":  # its names for nameless classes
        names = [str(labels[key]) for key in sorted(labels, key=int)]
        reduced = preprocessor.get("do_reduce_labels") or preprocessor.get("reduce_labels")
        # an id of 0 is then no class
        found["classes"] = dict(enumerate(names, start=1)) if reduced else names
    size = preprocessor.get("size")
    sides = size.values() if isinstance(size, dict) else [size]
    found["side"] = min((side for side in sides if isinstance(side, int)), default=None)
    return {key: value for key, value in found.items() if value is not None}


def _normalisation(preprocessor: dict[str, Any]) -> tuple[list[float] | None, list[float] | None]:
    """Mean and standard deviation for pixels from 0 to 1; None for those that are not given."""
    given = {"mean": preprocessor.get("image_mean"), "std": preprocessor.get("image_std")}
    if preprocessor.get("do_normalize") is False:
        given = {"mean": [0.0] * 3, "std": [1.0] * 3}
    scale = _BYTE * float(preprocessor.get("rescale_factor") or 1 / _BYTE)
    if preprocessor.get("do_rescale") is False:
        scale = float(_BYTE)
    mean, std = (
        None if values is None else [round(float(value) / scale, 9) for value in values]
        for values in given.values()
    )
    return mean, std


def read_settings(path: Path) -> dict[str, Any]:
    """The values in a JSON file; none if there is no such file.

    Raises:
        SetrError: a file that is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        values = json_of(path.read_text(encoding="utf-8"))
    except BROKEN as error:
        raise SetrError(f"{path}: broken ({fault_of(error)})") from None
    return values if isinstance(values, dict) else {}

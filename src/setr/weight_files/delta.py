"""EoMT on DINOv3 as its authors publish it: differences to DINOv3's weights, added to these.

Meta's licence keeps DINOv3's weights from being passed on, so the files hold what fine-tuning
changed (tue-mps/eomt, model_zoo/dinov3.md, and `delta_weights` in training/lightning_module.py).
Everything outside the encoder is a difference to zero. A checkpoint of a run with that code has the
same names and plain weights: it is told apart by its distance to DINOv3's.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from setr.errors import UsageError
from setr.model import SETR
from setr.weight_files.eomt import eomt_architecture
from setr.weight_files.naming import Translation
from setr.weight_files.pretrained import encoder_weights
from setr.weights import match_weights


def add_base(
    found: Translation, source: str, *, pretrained: str | None, num_heads: int | None = None
) -> Translation:
    """The weights of an EoMT on DINOv3.

    Args:
        found: the tensors of the file, of dialect `DELTA`.
        source: name of the file.
        pretrained: DINOv3's weights, as in `load_encoder`.
        num_heads: number of attention heads; by default one per 64 channels.

    Returns:
        A whole model of dialect `eomt`: the sums, or the file's own tensors if they are nearer to
        DINOv3's than to zero, which differences are not.

    Raises:
        SetrError: no `pretrained`, or weights of another encoder.
    """
    if pretrained is None:
        raise UsageError(
            f"{source}: holds EoMT's differences to DINOv3's weights; add these: `setr convert "
            "FILE --pretrained lvd1689m -o DIR` (downloaded by timm), or --pretrained FILE (as "
            "Meta or Hugging Face publish them); in Python setr.load(path, pretrained=…)"
        )
    with torch.device("meta"):
        model = SETR(**eomt_architecture(found, num_heads=num_heads))
    weights, name = encoder_weights(model, pretrained)
    if weights.whole:
        raise UsageError(
            f"{name}: is a whole model; give the weights of DINOv3 alone, from which {source} was "
            "trained"
        )
    base, _ = match_weights(model, weights, name, partial=True)
    own = model.arguments["encoder"]
    for key in model.state_dict():
        if key.startswith("encoder.") and key not in base:
            raise UsageError(
                f"{name}: has no {key.removeprefix('encoder.vit.')} that fits {own}, the encoder "
                f"of {source}; give the DINOv3 weights of this size with their attention biases, "
                "as Meta and Hugging Face publish them, or lvd1689m"
            )
    tensors = dict(found.tensors)
    changed = {key: tensors[key].float() for key in base if key in tensors}
    if not _is_plain(changed, base):
        tensors |= {key: base[key] + value for key, value in changed.items()}
    return dataclasses.replace(found, dialect="eomt", tensors=tensors)


def _is_plain(given: dict[str, Tensor], base: dict[str, Tensor]) -> bool:
    """Whether tensors are weights near the base, and not differences to it."""
    pairs = [(value, base[key]) for key, value in given.items()]
    distance = sum(float((value - own).square().sum()) for value, own in pairs)
    return distance < sum(float(value.square().sum()) for value, _ in pairs)

"""Pretrained encoder weights from a local file.

Tensors only: safetensors, or `torch.load(weights_only=True)`; nothing in a file is ever executed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from setr.encoder import Encoder, resample_grid
from setr.errors import SetrError

MIN_MATCH = 0.95


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors or .pth/.bin file, by name, without executing anything."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise SetrError(f"{path}: no such weight file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise SetrError(f"{path}: broken weight file ({str(error).splitlines()[0]:.100})") from None
    for key in ("state_dict", "model"):
        values = values.get(key, values)
    return {k: v for k, v in values.items() if isinstance(v, Tensor)}


def load_encoder(encoder: Encoder, source: str) -> None:
    """Load weights with timm names into an encoder, resampling the position grid.

    Raises:
        SetrError: unreadable file, or less than 95 % of the encoder's tensors found.
    """
    vit = encoder.vit
    own = vit.state_dict()
    given = read_tensors(Path(source))
    state = {}
    for name, value in given.items():
        if name == "pos_embed" and name in own and value.shape != own[name].shape:
            num_prefix = vit.num_prefix_tokens
            side = round((value.shape[1] - num_prefix) ** 0.5)
            grid = resample_grid(
                value[:, num_prefix:].float(),
                (side, side),
                vit.patch_embed.grid_size,
                mode=encoder.pos_interp,
            )
            value = torch.cat([value[:, :num_prefix].float(), grid], dim=1)
        if name in own and own[name].shape == value.shape:
            state[name] = value.to(own[name].dtype)
    if len(state) < MIN_MATCH * len(own):
        missing = [name for name in own if name not in state][:3]
        raise SetrError(
            f"{source}: only {len(state)} of {len(own)} encoder tensors match (missing: "
            f"{', '.join(missing)}); is this the right encoder? choose it with --model.encoder"
        )
    vit.load_state_dict(state, strict=False)

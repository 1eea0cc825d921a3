"""What becomes of the class token of a ViT whose patch tokens are used as a feature map.

Ranftl et al. 2021 (DPT, arXiv 2103.13413), section 3, "Read": the token is ignored, added to all
patch tokens, or concatenated to each of them.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from setr.arguments.choices import Readout
from setr.errors import UsageError


def read_out(patches: Tensor, prefix: Tensor, readout: Readout) -> Tensor:
    """Combine patch tokens with the class token.

    Args:
        patches: (B, N, C).
        prefix: the tokens before them (B, P, C), the class token first.
        readout: `ignore`, `add`, `concat`, or `mean` to add the mean of all prefix tokens.

    Returns:
        (B, N, C); for `concat` (B, N, 2C), the class token's channels last.
    """
    if readout == "ignore":
        return patches
    if readout == "mean":
        return patches + prefix.mean(dim=1, keepdim=True)
    token = prefix[:, :1]
    if readout == "add":
        return patches + token
    return torch.cat([patches, token.expand_as(patches)], dim=2)


def require_readout(vit: Any, name: str, readout: Readout, *, dropped: bool) -> None:
    """Raise `SetrError` for an unknown readout, or if there is no class token to read.

    Args:
        readout: what is to become of the class token.
        dropped: whether prefix tokens are dropped before the blocks.
    """
    if readout not in get_args(Readout):
        raise UsageError(f"readout {readout!r}: give {', '.join(get_args(Readout))}")
    if readout == "ignore":
        return
    if dropped:
        raise UsageError(
            f"readout '{readout}': prefix_tokens 'drop' drops the class token; keep it, or give "
            "readout 'ignore'"
        )
    if not vit.num_prefix_tokens:
        raise UsageError(f"readout '{readout}': {name} has no class token; give readout 'ignore'")

"""What every encoder has in common, transformer or convolutional: stages, depths, freezing."""

from __future__ import annotations

import re

from torch import nn

from setr.errors import USAGE, SetrError


class Backbone(nn.Module):
    """What a model needs to know about its encoder, transformer or convolutional.

    Attributes:
        widths: channels of each map `forward` returns.
        patch_size: pixels per token; image sides are padded to multiples of it.
        in_chans: channels of the images.
    """

    widths: list[int]
    patch_size: int
    in_chans: int
    stage_pattern: str
    """Regular expression whose first group is the number of the stage a parameter belongs to."""
    first_stage: int
    """The number of the first stage in parameter names."""
    _free_stages: list[nn.Module] | None = None

    def stages(self) -> list[nn.Module]:
        """The transformer blocks or residual stages, shallow to deep; the stem is none of them."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        raise NotImplementedError

    def layer_depth(self, name: str) -> int:
        """Distance of a parameter from the heads: 1 for the last stage, largest for the stem."""
        found = re.search(self.stage_pattern, name)
        count = len(self.stages())
        return count - (int(found[1]) - self.first_stage) if found else count + 1

    def freeze(self, count: int) -> None:
        """Keep the stem and the first `count` stages as they are; 0 nothing, -1 the whole encoder.

        Frozen stages also stay in eval mode, so that neither drop path nor batch statistics move.

        Raises:
            SetrError: more stages than the encoder has.
        """
        stages = self.stages()
        if not -1 <= count <= len(stages):
            raise SetrError(
                f"freeze {count}: this encoder has {len(stages)} blocks; give -1 (all of it), "
                f"0 (nothing) or up to {len(stages)}",
                code=USAGE,
            )
        last = stages[count:] if count > 0 else []
        free = {id(p) for stage in last for p in stage.parameters()}
        for parameter in self.parameters():
            parameter.requires_grad_(count == 0 or id(parameter) in free)
        self._free_stages = last if count else None
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As `nn.Module.train`, but frozen stages stay in eval mode."""
        super().train(mode)
        if self._free_stages is not None:
            for child in self.children():
                child.eval()
            for stage in self._free_stages:
                stage.train(mode)
        return self

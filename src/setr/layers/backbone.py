"""Base class of all encoders, transformer or convolutional: stages, layer depth, freezing."""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

from setr.errors import UsageError


class Backbone(nn.Module):
    """Base class of the encoders, transformer or convolutional.

    Attributes:
        widths: number of channels of each feature map that `forward` returns.
        patch_size: pixels per token along each side; images are padded to multiples of it.
        in_chans: number of image channels.
        window_size: side in patches of the windows that attention is limited to; 0 if it is not.
    """

    widths: list[int]
    patch_size: int
    in_chans: int
    window_size: int = 0
    stage_pattern: str
    """Regular expression for parameter names; its first group is the number of the stage."""
    first_stage: int
    """Number of the first stage in parameter names."""
    unused: frozenset[str] = frozenset()
    """Names of parameters that `forward` does not read. They are never trained: with several
    processes, torch would wait for their gradients."""
    _trainable_stages: list[nn.Module] | None = None
    _adapters: list[nn.Module] | None = None

    def stages(self) -> list[nn.Module]:
        """The transformer blocks or residual stages, shallow to deep, without the stem."""
        raise NotImplementedError

    def padded(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images padded to whole patches, zeros at the bottom and right; and the grid (h, w)."""
        H, W = images.shape[-2:]
        p = self.patch_size
        padded = F.pad(images, (0, -W % p, 0, -H % p)) if H % p or W % p else images
        return padded, self.grid(images)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of images (B, C, H, W), the last of them padded."""
        H, W = images.shape[-2:]
        return -(-H // self.patch_size), -(-W // self.patch_size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        raise NotImplementedError

    def layer_depth(self, name: str) -> int:
        """Distance of a parameter from the heads: 1 in the last stage, largest in the stem."""
        found = re.search(self.stage_pattern, name)
        count = len(self.stages())
        return count - (int(found[1]) - self.first_stage) if found else count + 1

    def freeze(self, count: int) -> None:
        """Freeze the stem and the first `count` stages; 0 freezes nothing, -1 the whole encoder.

        Frozen stages stay in eval mode: no drop path, no updates of batch norm statistics. After
        `train_only` this applies to its parts; the rest stays frozen.

        Raises:
            SetrError: the encoder has fewer stages.
        """
        stages = self.stages()
        if not -1 <= count <= len(stages):
            raise UsageError(
                f"freeze {count}: this encoder has {len(stages)} blocks; give -1 (all of it), "
                f"0 (nothing) or up to {len(stages)}"
            )
        last = stages[count:] if count > 0 else []
        trainable = _ids(last if count else [self])
        if self._adapters is not None:
            trainable &= _ids(self._adapters)
        self._train_parameters(trainable)
        self._trainable_stages = last if count else None
        self.train(self.training)

    def train_only(self, parts: list[nn.Module]) -> None:
        """Freeze all parameters but those of some parts, also for later calls of `freeze`."""
        self._adapters = parts
        self._train_parameters(_ids(parts))

    def _train_parameters(self, trainable: set[int]) -> None:
        """Freeze all parameters but those with these ids, as far as they are used."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(id(parameter) in trainable and name not in self.unused)

    def train(self, mode: bool = True) -> Backbone:
        """As `nn.Module.train`, but frozen stages stay in eval mode."""
        super().train(mode)
        if self._trainable_stages is not None:
            for child in self.children():
                child.eval()
            for stage in self._trainable_stages:
                stage.train(mode)
        return self


def require_taps(taps: tuple[int, ...], name: str, parts: str, *, count: int) -> None:
    """Raise `SetrError` unless taps are numbers of an encoder's parts, ascending.

    Args:
        taps: the numbers.
        name: name of the encoder, for the message.
        parts: what is numbered, from 1: `blocks` or `stages`.
        count: number of these parts.
    """
    if not taps or list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] > count:
        raise UsageError(
            f"taps {taps}: {parts} are numbered 1 to {count} in {name} and must ascend"
        )


def _ids(modules: list[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}

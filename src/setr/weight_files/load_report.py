"""What loading weights did, in numbers and names."""

from __future__ import annotations

from dataclasses import dataclass, field

from setr.errors import first_few


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did; lists hold tensor names.

    Attributes:
        dialect: the checkpoint's layout, such as `timm` or `mmseg`.
        loaded: tensors of the model that were loaded, including resized ones.
        resized: position embeddings and tables of relative positions that were resampled to the
            model's grid, and patch embeddings that were resampled to its patch size.
        missing: tensors of the model that the checkpoint lacks; they keep their values.
        unexpected: tensors of the checkpoint that the model lacks.
        new_head: tensors of the heads that do not fit; they keep the model's values.
        filled: tensors that the layout does not store, set to the values it implies.
        differences: options by which the model computes another function than the checkpoint's.
        encoder_share: fraction of the tensors of `part` that were loaded, 0 to 1.
        part: the part that the checkpoint is for: `encoder`, or the `ViT` or `ResNet` of a Hybrid.
        adapted: first convolutions of RGB weights that were adapted to the model's channels.
    """

    dialect: str
    loaded: list[str]
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    new_head: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    encoder_share: float = 1.0
    part: str = "encoder"
    adapted: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"dialect {self.dialect}: {len(self.loaded)} tensors loaded "
            f"({self.encoder_share:.1%} of the {self.part})"
        ]
        for label, names in (
            ("resized", self.resized),
            ("adapted from RGB to the model's channels", self.adapted),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("head tensors newly initialised", self.new_head),
            ("filled in", self.filled),
            ("different options", self.differences),
        ):
            if names:
                parts.append(f"{len(names)} {label}: {first_few(names, 3)}")
        return "; ".join(parts)

"""Training and test settings of all systems in the paper's Tables 2 to 7.

Where the text and the authors' code differ, the code is followed. docs/paper.md lists the
differences, and what the paper leaves open.
"""

from __future__ import annotations

from typing import NamedTuple

from setr.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from setr.paper_tables import System, rows


class _Dataset(NamedTuple):
    """Settings shared by all SETR recipes on a data set; sides in pixels."""

    crop: int
    short_side: int
    long_side: int
    batch_size: int


class _Baseline(NamedTuple):
    """Settings of a baseline on a data set; sides in pixels."""

    crop: tuple[int, int]
    short_side: int
    long_side: int
    lr: float
    weight_decay: float
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None


_DATASETS = {
    "cityscapes": _Dataset(768, 1025, 2049, 8),
    "ade20k": _Dataset(512, 512, 2048, 16),
    "pascal_context": _Dataset(480, 520, 520, 16),
}
_BASELINES = {
    ("cityscapes", "fcn_r101"): _Baseline(
        (769, 769), 1025, 2049, 0.01, 5e-4, window=(769, 769), stride=(513, 513)
    ),
    ("cityscapes", "semantic_fpn_r101"): _Baseline((512, 1024), 1024, 2048, 0.01, 5e-4),
    ("ade20k", "fcn_r101"): _Baseline((512, 512), 512, 2048, 0.01, 5e-4),
    ("pascal_context", "fcn_r101"): _Baseline(
        (480, 480), 520, 520, 0.004, 1e-4, window=(480, 480), stride=(320, 320)
    ),
}
_LEARNING_RATES = {
    "cityscapes": {"naive": 0.01, "pup": 0.01, "mla": 0.002},
    "ade20k": {"naive": 0.01, "pup": 0.001, "mla": 0.001},
    "pascal_context": {"naive": 0.01, "pup": 0.001, "mla": 0.001},
}
_RESNET = "gluon_in1k"
_VIT_LARGE = (
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/"
    "jx_vit_large_p16_384-b3be5167.pth"
)
"""T-Large's weights, as in the authors' code."""


def paper_config(system: System) -> Config:
    """Settings of one system."""
    if (system.dataset, system.model) in _BASELINES:
        return _baseline_config(system, _BASELINES[system.dataset, system.model])
    sizes = _DATASETS[system.dataset]
    hybrid = system.model == "hybrid_base"
    decoder = "naive" if hybrid else system.model.split("_")[1]
    return Config(
        model=ModelConfig(
            name=system.model,
            pretrained=_vit_weights(system),
            pretrained_resnet=_RESNET if hybrid else None,
            img_size=sizes.crop,
            pos_interp="bilinear",
            prefix_tokens="drop" if decoder == "mla" else "keep",
        ),
        data=_data(system, (sizes.crop, sizes.crop), sizes.short_side, sizes.long_side),
        optim=OptimConfig(lr=_LEARNING_RATES[system.dataset][decoder]),
        train=_train(system),
        eval=EvalConfig(protocol="paper-ss", multi_scale=_has_multi_scale(system)),
    )


def _vit_weights(system: System) -> str | None:
    """The tag or address of the transformer's weights; None for random initialisation."""
    if system.pretraining == "random":
        return None
    if system.pretraining == "deit":
        return "deit_distilled"
    return _VIT_LARGE if system.model.endswith("large") else "orig_in21k_ft_in1k"


def _baseline_config(system: System, baseline: _Baseline) -> Config:
    """As in mmsegmentation: weight decay on all parameters, one learning rate."""
    pretrained = "in21k" if system.pretraining == "in21k" else _RESNET
    return Config(
        model=ModelConfig(name=system.model, pretrained=pretrained),
        data=_data(system, baseline.crop, baseline.short_side, baseline.long_side),
        optim=OptimConfig(
            lr=baseline.lr, head_lr_factor=1, weight_decay=baseline.weight_decay, decay_norms=True
        ),
        train=_train(system),
        eval=EvalConfig(
            window=baseline.window, stride=baseline.stride, multi_scale=_has_multi_scale(system)
        ),
    )


def _data(system: System, crop: tuple[int, int], short_side: int, long_side: int) -> DataConfig:
    splits = {"test_server": "train+val", "coarse": "train+val+train_extra"}
    return DataConfig(
        root=f"data/{system.dataset}",
        labels=system.dataset,
        train_split=splits.get(system.splits, "train"),
        crop_size=crop,
        short_side=short_side,
        long_side=long_side,
    )


def _train(system: System) -> TrainConfig:
    batch = _DATASETS[system.dataset].batch_size
    return TrainConfig(steps=1000 * system.steps, batch_size=batch, loss_norm="all")


def _has_multi_scale(system: System) -> bool:
    return any(row.recipe == system.name and row.protocol == "multi_scale" for row in rows())

"""The peer: SETR as mmsegmentation 1.2.2 has it, with mmcv-lite, and its process's peak memory."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "src"))  # not installed in a peer's
from setr.processes.machine import process_peak

SCALES = {"tiny": (192, 12, 3), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, depth and heads of the encoders."""
_TAPS = {"tiny": (4, 7, 9, 11), "base": (4, 7, 9, 11), "large": (9, 14, 19, 23)}
_NORM = {"type": "BN", "requires_grad": True}


class _NoOps(types.ModuleType):
    """mmcv-lite has no compiled operators; SETR uses none, but the package imports them."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


def load_mmseg() -> None:
    """Make mmseg importable and its models known."""
    sys.modules["mmcv.ops"] = _NoOps("mmcv.ops")
    sys.modules["timm"] = None  # type: ignore[assignment]  # optional there, and unused here
    from mmseg.utils import register_all_modules

    register_all_modules()


def setr_config(
    decoder: str,
    scale: str,
    side: int,
    num_classes: int,
    *,
    aux: bool = False,
    cls_token: bool = True,
    test_cfg: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `MODELS.build` makes a model of: the peer's ADE20K settings, at our encoder's size.

    Args:
        decoder: `naive`, `pup` or `mla`.
        scale: of `SCALES`.
        side: of the images in pixels.
        num_classes: K.
        aux: with auxiliary heads, as for training.
        cls_token: whether the encoder has a class token.
        test_cfg: how the model tests; whole images by default.
    """
    width, depth, heads = SCALES[scale]
    mla = decoder == "mla"
    taps = _TAPS[scale] if aux else (depth - 1,)
    if mla:
        taps = tuple(depth * i // 4 - 1 for i in (1, 2, 3, 4))
    common = {
        "num_classes": num_classes,
        "dropout_ratio": 0,
        "norm_cfg": _NORM,
        "align_corners": False,
    }
    config: dict[str, Any] = {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor"},
        "backbone": {
            "type": "VisionTransformer",
            "img_size": (side, side),
            "patch_size": 16,
            "embed_dims": width,
            "num_layers": depth,
            "num_heads": heads,
            "out_indices": taps,
            "with_cls_token": cls_token,
            "norm_cfg": {"type": "LN", "eps": 1e-6},
            "interpolate_mode": "bilinear",
        },
        "test_cfg": test_cfg or {"mode": "whole"},
    }
    if mla:
        config["neck"] = {"type": "MLANeck", "in_channels": [width] * 4, "out_channels": 256,
                          "norm_cfg": _NORM, "act_cfg": {"type": "ReLU"}}  # fmt: skip
        inputs = {"in_channels": [256] * 4, "channels": 512, "mla_channels": 128}
        config["decode_head"] = {
            "type": "SETRMLAHead", **inputs, "in_index": [0, 1, 2, 3], **common
        }  # fmt: skip
        others = [
            {"type": "FCNHead", "in_channels": 256, "channels": 256, "num_convs": 0,
             "in_index": i, "kernel_size": 1, "concat_input": False, **common}
            for i in range(4)
        ]  # fmt: skip
    else:
        kernel = 1 if decoder == "naive" else 3
        up = {"type": "SETRUPHead", "in_channels": width, "channels": 256, "kernel_size": kernel,
              **common}  # fmt: skip
        convs = {"num_convs": 1, "up_scale": 4} if kernel == 1 else {"num_convs": 4, "up_scale": 2}
        config["decode_head"] = {**up, **convs, "in_index": len(taps) - 1}
        others = [{**up, "in_index": i, "num_convs": 2} for i in range(3)]
    if aux:
        loss = {"type": "CrossEntropyLoss", "loss_weight": 0.4}
        config["auxiliary_head"] = [{**head, "loss_decode": loss} for head in others]
        config["train_cfg"] = {}
    return config


def peak_mb() -> float:
    """Peak main memory of this process alone."""
    return process_peak() / 2**20

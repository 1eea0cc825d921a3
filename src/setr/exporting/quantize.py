"""Post-training quantisation to int8 by nncf, with the user's own images.

Weights and activations of matrix products and convolutions become int8; their ranges come from
images run through the network as prediction runs them. The loss of accuracy is measured afterwards
(`export_check.compare_accuracy`).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from setr._extras import import_extra
from setr.data.dataset import Dataset
from setr.data.sampling import evenly_spaced
from setr.errors import DataError, SetrError
from setr.exporting.sessions import INPUT
from setr.inference import normalize
from setr.model_info import ModelInfo

NUM_IMAGES = 128
"""Calibration images, spread evenly over the split."""


def calibration_images(
    dataset: Dataset, info: ModelInfo, count: int = NUM_IMAGES
) -> list[np.ndarray]:
    """Images as the network sees them under the model's protocol: resized, one window from each.

    Args:
        info: normalisation and protocol.
        count: at most so many images.

    Returns:
        Normalised float32 arrays (1, C, h, w).

    Raises:
        SetrError: no image of the split can be read.
    """
    found, problem = [], "the split has no images"
    for place, index in enumerate(evenly_spaced(len(dataset), count)):
        try:
            image = dataset.load(index).image
        except SetrError as error:
            problem = str(error)
            continue
        x = normalize(torch.from_numpy(image)[None], info.mean, info.std)
        size = info.protocol.view_size(x.shape[-2], x.shape[-1], 1.0)
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        h, w = info.protocol.window or size
        free = max(0, size[0] - h), max(0, size[1] - w)
        top, left = (int((side + 1) * (place * 0.618034 % 1)) for side in free)
        found.append(x[..., top : top + h, left : left + w].contiguous().numpy())
    if not found:
        raise DataError(f"--calibration: {problem}")
    return found


def quantized(network: Any, images: list[np.ndarray]) -> Any:
    """An OpenVINO model or ONNX proto -> the same in int8.

    Raises:
        SetrError: nncf is not installed.
    """
    nncf = import_extra("nncf", "openvino", "--precision int8")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function also sets all handlers
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        data, kind = nncf.Dataset(images, lambda image: {INPUT: image}), nncf.ModelType.TRANSFORMER
        return nncf.quantize(network, data, model_type=kind, subset_size=len(images))

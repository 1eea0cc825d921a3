"""Import torchvision, repairing it where its compiled library does not fit a CPU-only torch.

timm imports torchvision at module level. A torchvision wheel beside a CPU build of torch can fail
with "operator torchvision::nms does not exist" (pytorch/vision#9077, #9085): two operator schemas
are missing, and nothing this package uses. The order matters: try the import first, because
defining the schemas beside a healthy torchvision aborts the process.
"""

from __future__ import annotations

import sys

import torch

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")  # the schemas live as long as this name
    for _operator in ("nms", "qnms"):
        _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

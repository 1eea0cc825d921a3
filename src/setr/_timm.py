"""timm, imported where a network is built or a name of timm's is asked for, and not before.

timm imports torchvision, which first may need a repair (`_torchvision.py`) and brings PyTorch's
compiler: 1.4 s and 100 MB that a program which runs an exported file has no use for.
"""

from __future__ import annotations

from setr import _torchvision  # noqa: F401  must come before timm
from setr._extras import unreported

unreported("huggingface_hub")  # which timm imports

import timm  # noqa: E402  isort: skip

__all__ = ["timm"]

"""Checkpoints of UPerNet on BEiT and data2vec, of Hugging Face transformers.

Its classes BeitForSemanticSegmentation and Data2VecVisionForSemanticSegmentation, under the names
of version 4, in which files are published, and those inside version 5.
"""

from __future__ import annotations

import re

from setr.weight_files.encoder_layouts import huggingface
from setr.weight_files.naming import Tensors, Translation
from setr.weight_files.setr_layouts import mmseg

DIALECT = "beit-transformers"
_ENCODER = re.compile(r"(beit|data2vec_vision)\.")
_PORT = (
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"\.psp_bottleneck\.", ".bottleneck."),
    (r"\.psp_modules\.blocks\.(\d)\.conv\.", r".psp_modules.\1.1."),
    (r"\.classifier\.", ".conv_seg."),
    (r"^fpn\.fpn1\.conv_transpose1\.", "fpn1.0."),
    (r"^fpn\.fpn1\.bn\.", "fpn1.1."),
    (r"^fpn\.fpn1\.conv_transpose2\.", "fpn1.3."),
    (r"^fpn1\.", "neck.upsample_4x."),
    (r"^fpn\.fpn2\.", "neck.upsample_2x.0."),
    (r"^fpn2\.", "neck.upsample_2x."),
)
"""Names of its heads -> those of mmsegmentation, applied in order."""


def transformers_beit(tensors: Tensors) -> Translation:
    """A checkpoint of transformers' BEiT or data2vec for segmentation."""
    encoder, heads = {}, {}
    for name, value in tensors.items():
        if _ENCODER.match(name):
            encoder[_ENCODER.sub("", name, count=1)] = value
            continue
        for pattern, there in _PORT:
            name = re.sub(pattern, there, name)
        heads[name] = value
    inner, outer = huggingface(encoder), mmseg(heads)
    named = {f"encoder.vit.{name}": value for name, value in inner.tensors.items()}
    unused = [name for name in named if re.match(r"encoder\.vit\.(norm|fc_norm)\.", name)]
    for name in unused:
        del named[name]
    return Translation(
        DIALECT,
        named | outer.tensors,
        whole=True,
        unexpected=[n for n in inner.unexpected if not n.startswith("pooler.")] + outer.unexpected,
        filled=outer.filled,
    )

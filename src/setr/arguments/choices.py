"""Allowed values of options, shared by the command line and the library; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PosInterp = Literal["bicubic", "bilinear", "bicubic_plain"]
PrefixTokens = Literal["keep", "drop"]
Readout = Literal["ignore", "add", "concat", "mean"]
Neck = Literal["ln_mln", "mln", "none", "feature2pyramid"]
OddSizes = Literal["crop", "squeeze"]
Sharding = Literal["none", "full"]
LossKind = Literal["cross_entropy", "ohem", "focal", "dice", "lovasz"]
Absent = Literal["skip", "zero"]
ExportFormat = Literal["onnx", "openvino", "torch"]
ExportPrecision = Literal["fp32", "bf16", "fp16", "int8"]
ShardForm = Literal["tar", "parquet"]
TableNumber = Literal[2, 3, 4, 5, 6, 7]
ServerName = Literal["cityscapes", "ade20k"]

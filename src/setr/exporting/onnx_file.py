"""Writes ONNX files: names of inputs and outputs, metadata, weights, int8.

`torch.onnx` makes the graph; here its axes get readable names, and what is needed to use the file
is stored in `metadata_props`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setr._extras import import_extra
from setr.exporting.graphs import free_axes, quiet
from setr.exporting.quantize import quantized
from setr.exporting.runtime import ANY, Form
from setr.exporting.sessions import COARSE, INPUT

OPSET = 20
MAX_INSIDE = 1_900_000_000
"""Weights of more bytes go to a second file, because protobuf is limited to 2 GiB."""


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    head: str,
    stored: dict[str, str],
    images: list[np.ndarray] | None,
    form: Form = ANY,
) -> None:
    """Write a traced graph as ONNX.

    Args:
        program: from `graphs.trace`.
        path: the file; weights above `MAX_INSIDE` go beside it.
        head: name of the first output.
        stored: metadata, each value written under `setr.KEY`.
        images: as the graph takes them, to quantise with; None leaves the precision.
        form: the graph's input.

    Raises:
        SetrError: the packages for ONNX are not installed.
    """
    onnx = import_extra("onnx", "onnx", path.name)
    import_extra("onnxscript", "onnx", path.name)  # torch.onnx needs it
    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[head, COARSE],
            verbose=False,
        )
    assert exported is not None
    proto: Any = exported.model_proto
    if images:
        proto = quantized(proto, images)
    _name_axes(proto, free_axes(form))
    _forget_sources(proto)
    proto.graph.name = "setr"
    for key, text in stored.items():
        proto.metadata_props.add(key=f"setr.{key}", value=text)
    large = proto.ByteSize() > MAX_INSIDE
    onnx.save_model(proto, path, save_as_external_data=large, location=weights_beside(path).name)


def weights_beside(path: Path) -> Path:
    """The second file of an ONNX file whose weights are too large for it."""
    return path.with_name(f"{path.name}.data")


def _forget_sources(proto: Any) -> None:
    """Remove torch's notes on each node, which name the source files on this machine."""
    for part in (proto.graph, *proto.functions):
        for node in part.node:
            node.ClearField("metadata_props")


def _name_axes(proto: Any, places: tuple[int, int, int]) -> None:
    """Rename symbols such as s34 to batch, height and width, the axes at these places."""
    axes = proto.graph.input[0].type.tensor_type.shape.dim
    names = {
        axes[i].dim_param: name
        for i, name in zip(places, ("batch", "height", "width"), strict=True)
        if axes[i].dim_param
    }
    symbol = re.compile("|".join(map(re.escape, names)) or "(?!)")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = symbol.sub(lambda found: names[found[0]], axis.dim_param)

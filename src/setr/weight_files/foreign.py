"""Build a model from a foreign checkpoint: a whole model, or one to be joined with its encoder.

The models of the authors and of mmsegmentation differ in details. The converter sets the options
that reproduce each (see the table in docs/parity.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from setr.arguments.choices import OddSizes
from setr.errors import SetrError, UsageError
from setr.labels import Labels, known_datasets, known_labels
from setr.model import SETR
from setr.model_info import ModelInfo
from setr.reading.parsed import BROKEN
from setr.weight_files.architecture import read_architecture
from setr.weight_files.delta import add_base
from setr.weight_files.licences import weights_licence
from setr.weight_files.lightly_layouts import lightly_settings
from setr.weight_files.linear_head import join_head, published_test
from setr.weight_files.load_report import LoadReport
from setr.weight_files.misfits import require_used
from setr.weight_files.naming import DELTA, LIGHTLY_LINEAR, SMP, WHOLE, Translation
from setr.weight_files.published import published_labels, published_settings
from setr.weight_files.recorded_form import (
    recorded_arguments,
    require_known_form,
    translate_file,
)
from setr.weight_files.recorded_test import squashed_size
from setr.weight_files.smp import smp_assumptions, smp_settings
from setr.weight_files.tensorfiles import read_tensor_file
from setr.weight_files.transformers_files import transformers_settings

_RENAMED_CLASSES = {"television receiver": "television"}
"""Class names of mmsegmentation's checkpoints -> our names, where they differ."""
_ANOTHER_ORDER = ("pascal_context", "pascal_context_59")
"""Data sets that mmsegmentation and SETR's authors name in FCN's order, whereas the ids in the
masks of mmsegmentation's converter, and so those of its models, are alphabetical, as ours."""

_HEADS = r"(decode\w*|\w*head|fpn|neck|classifier)\."
"""How other code calls the heads of its models."""


def convert_foreign(
    path: str | os.PathLike,
    *,
    num_heads: int | None = None,
    taps: tuple[int, ...] | None = None,
    aux_taps: tuple[int, ...] | None = None,
    img_size: int | tuple[int, int] | None = None,
    labels: Labels | None = None,
    odd_sizes: OddSizes = "crop",
    encoder: str | None = None,
    pretrained: str | None = None,
) -> tuple[SETR, ModelInfo, LoadReport]:
    """Load a whole model of other code (see docs/parity.md), or a linear head.

    Args:
        path: a .pth or .safetensors file, or a folder of transformers or
            segmentation_models.pytorch. For a file in such a
            folder, the settings beside it are used, too.
        num_heads: number of attention heads; by default as recorded in the file, else one per 64
            channels.
        taps: blocks read by the heads, counted from 1; by default the usual ones for the depth.
        aux_taps: taps with an auxiliary head, in the file's order.
        img_size: (height, width) in pixels, if the patch grid is not square.
        labels: class names and colours; by default the file's own.
        odd_sizes: see `SETR`; `squeeze` reproduces mmsegmentation for sides that are not multiples
            of 16.
        encoder: for a linear head, timm name of the encoder that it was trained on, by default the
            DINOv2 encoder of matching width; for segmentation_models.pytorch's DPT, that of the
            model, by default as in the `config.json` beside it, else the plain ViT of its width.
        pretrained: for a linear head, the encoder's weights, and for EoMT on DINOv3 of its
            authors, DINOv3's: a file, a repository on the Hub, or a tag of weights that timm
            downloads, such as `lvd142m` or `lvd1689m`.

    Returns:
        The model, on the CPU in eval mode, its description, and what was loaded.

    Raises:
        SetrError: an unreadable file, one that holds neither a whole model nor a linear head, or a
            keyword argument that is needed.
    """
    source = str(path)
    file = read_tensor_file(Path(path))
    found = translate_file(file, source)
    meta = file.meta
    if found.dialect in ("dpt-transformers", "beit-transformers", "eomt", LIGHTLY_LINEAR):
        with _understood(source, "what is stored beside its tensors does"):
            meta = {**meta, **lightly_settings(meta), **transformers_settings(file.path.parent)}
    if found.dialect == SMP:
        with _understood(source, "what is stored beside its tensors does"):
            named = {"encoder": encoder.removeprefix("tu-")} if encoder else {}
            meta = {**smp_settings(file.path.parent), **found.settings, **named}
    if found.dialect == "setr" and Path(path).is_dir():
        raise UsageError(
            f"{source}: is a model directory, which eval, predict and export take as it is; "
            "`setr convert --model NAME` loads its weights into another model"
        )
    if found.dialect not in (*WHOLE, "linear", DELTA):
        parts = [name for name in found.unexpected if re.match(_HEADS, name)]
        only = (
            f"an encoder and heads of another kind ({parts[0]}, …)" if parts else "an encoder only"
        )
        raise UsageError(
            f"{source}: holds {'bare weights' if found.whole else only} (layout "
            f"{found.dialect}); give the model's folder, or load it into a model: "
            "setr.load_weights(model, path), --model.pretrained, or `setr convert --model NAME`"
        )
    shape: dict[str, Any] = {
        "num_heads": num_heads,
        "taps": taps,
        "aux_taps": aux_taps,
        "img_size": img_size,
    }
    head: dict[str, Any] = {"encoder": encoder, "pretrained": pretrained}
    if found.dialect == SMP:
        del head["encoder"]
    is_head, is_delta = found.dialect == "linear", found.dialect == DELTA
    unused = shape if is_head else {"encoder": encoder} if is_delta else head
    for name, value in unused.items():
        if value is not None:
            what = "a linear head" if is_head else "a whole model"
            raise UsageError(f"{name} {value}: {source} is {what}; leave it out")
    with _understood(source, "its tensors do"):
        if is_head:
            model, report = join_head(found, source, odd_sizes=odd_sizes, **head)
        else:
            if is_delta:
                found = add_base(found, source, pretrained=pretrained, num_heads=num_heads)
            if found.dialect == "mmseg":
                require_known_form(meta, source)
            arguments = read_architecture(found, meta, source=source, **shape)
            if found.dialect == "mmseg":
                arguments |= recorded_arguments(meta)
            model, report = _build(arguments | {"odd_sizes": odd_sizes}, found, source)
    if labels is None and not is_head:
        labels = published_labels(found, meta, arguments["decoder"], model.num_classes)
    labels = labels or _stored_labels(meta, model.num_classes, source)
    if len(labels.classes) != model.num_classes:
        raise UsageError(
            f"{source}: has {model.num_classes} classes, the labels given {len(labels.classes)}"
        )
    if is_head:
        protocol, known = published_test(model, file.meta), ModelInfo(labels)
        crop, mean, std = protocol.window, known.mean, known.std
    else:
        with _understood(source, "what is stored beside its tensors does"):
            crop, protocol, mean, std = published_settings(found, meta, arguments, labels)
    if found.dialect == "mmseg" and (size := squashed_size(meta)):
        report.differences.append(f"tested on images squashed to {size[0]}x{size[1]}, here not")
    if found.settings.get("is_masked"):
        report.differences.append("masked attention in transformers' predictions, here not")
    if found.dialect == SMP:
        report.differences.extend(smp_assumptions(found, meta, model.arguments))
    channels = model.encoder.in_chans
    info = ModelInfo(
        labels=labels,
        mean=mean if channels == 3 else (0.5,) * channels,  # not recorded in any file
        std=std if channels == 3 else (0.25,) * channels,
        protocol=protocol,
        recipe=f"{_kind(model)} converted from {Path(source).name}",
        pretrained=pretrained and os.path.basename(pretrained),
        licence=weights_licence(model.arguments["encoder"], pretrained),
        crop_size=crop,
    )
    return model, info, report


@contextmanager
def _understood(source: str, what: str) -> Iterator[None]:
    """Context in which any error of reading a stranger's file is one about the file."""
    try:
        yield
    except SetrError:
        raise
    except (*BROKEN, RuntimeError) as error:
        raise SetrError(
            f"{source}: {what} not describe a known model ({error!r:.100}); the file is incomplete "
            "or of another network"
        ) from None


def _kind(model: SETR) -> str:
    decoder: str = model.arguments["decoder"]
    other = {
        "linear": "linear probe",
        "segmenter": "Segmenter",
        "dpt": "DPT",
        "eomt": "EoMT",
        "upernet": "UPerNet",
    }
    return other.get(decoder, f"SETR-{decoder.upper()}")


def _build(arguments: dict[str, Any], found: Translation, source: str) -> tuple[SETR, LoadReport]:
    """Build the model on the meta device and assign the tensors, without initialising weights."""
    with torch.device("meta"):
        model = SETR(**arguments)
    own = model.state_dict()
    given = found.tensors
    wrong = [n for n in own if n not in given or given[n].shape != own[n].shape]
    if wrong:
        what = (
            "is missing" if wrong[0] not in given else f"has shape {tuple(given[wrong[0]].shape)}"
        )
        raise SetrError(
            f"{source}: {wrong[0]} {what}; {len(wrong)} of {len(own)} tensors do not fit the "
            "architecture its other tensors describe"
        )
    is_port = found.dialect == "mmseg"  # whose layers all count
    parts = [n for n in found.unexpected if is_port and re.match(r"(backbone|neck|decoder)\.", n)]
    require_used(source, given, own, parts)
    state = {
        n: torch.empty(t.shape, dtype=t.dtype, device="cpu").copy_(given[n]) for n, t in own.items()
    }
    model.load_state_dict(state, assign=True)
    _compute_buffers(model)
    report = LoadReport(
        dialect=found.dialect,
        loaded=[n for n in own if n not in found.filled],
        unexpected=found.unexpected + [n for n in given if n not in own],
        filled=found.filled,
    )
    return model.eval(), report


def _compute_buffers(model: SETR) -> None:
    """Give a model from the meta device the buffers that no file stores, such as rotary periods."""
    for module in model.modules():
        buffers = {n: b for n, b in module.named_buffers(recurse=False) if b.is_meta}
        if buffers:
            for name, buffer in buffers.items():
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
            module.init_non_persistent_buffers()  # type: ignore[operator]  # of timm's layers


def _stored_labels(meta: Mapping[str, Any], num_classes: int, source: str) -> Labels:
    """Classes and colours recorded in a checkpoint; those of a known data set are ours."""
    stored = meta["dataset_meta"] if isinstance(meta.get("dataset_meta"), dict) else meta
    classes = stored.get("classes") or stored.get("CLASSES")
    palette = stored.get("palette") or stored.get("PALETTE") or ()
    label_map = None
    if isinstance(classes, dict):  # LightlyTrain's, by the ids in its masks
        label_map = {raw: place for place, raw in enumerate(classes)}
        classes = list(classes.values())
    if not isinstance(classes, list | tuple) or len(classes) != num_classes:
        classes = [None]
    if not all(isinstance(name, str) for name in classes):
        return Labels(tuple(f"class {i}" for i in range(num_classes)))
    stated = [_plain_name(c) for c in classes]
    for name in known_datasets():
        known = known_labels(name)
        ours = [_plain_name(c) for c in known.classes]
        if stated == ours or (name in _ANOTHER_ORDER and sorted(stated) == sorted(ours)):
            return known
    try:
        colours = palette if len(palette) == num_classes else ()
        return Labels.from_dict({"classes": classes, "colours": colours, "label_map": label_map})
    except (TypeError, ValueError, IndexError) as error:
        raise SetrError(f"{source}: its class list is invalid ({error})") from None


def _plain_name(name: object) -> str:
    """A class name for comparison; published lists of ADE20K have synonyms and stray spaces."""
    plain = str(name).replace(";", ",").partition(",")[0].strip().lower()
    return _RENAMED_CLASSES.get(plain, plain)

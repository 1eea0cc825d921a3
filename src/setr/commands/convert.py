"""`setr convert SOURCE -o DIR`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from setr.arguments.choices import OddSizes, PosInterp
from setr.arguments.named_values import encoder_arguments
from setr.commands.parsing import as_typed, parse, require_default
from setr.commands.shared import Out
from setr.errors import OK, UsageError
from setr.labels import Labels
from setr.processes.standard_streams import tell
from setr.reading.urls import is_url
from setr.writing import require_writable

if TYPE_CHECKING:
    from setr.model import SETR
    from setr.model_info import ModelInfo
    from setr.weights import LoadReport


@dataclass(frozen=True)
class Arguments:
    """Turn a foreign checkpoint into a model directory that eval and predict understand.

    A checkpoint of SETR, Segmenter, DPT, UPerNet or EoMT, from their authors, mmsegmentation,
    transformers or segmentation_models.pytorch, needs only its file; for the latter two also its
    folder, or owner/name on the Hub. A
    linear head of DINOv2 needs --pretrained, the encoder it was trained on, and so does EoMT on
    DINOv3 of its authors. An encoder (Google .npz, timm, DeiT, DINOv2, Hugging Face, torchvision)
    needs --model, and its heads start at random.

    setr convert checkpoint.pth -o model
    setr convert Intel/dpt-large-ade -o model
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Checkpoint file, its http(s) address, or owner/name on the Hub; with --model also a model
    directory, whose weights are taken."""
    out: Out
    """Folder to write."""
    model: str | None = None
    """Named model to load an encoder (or weights of this toolkit) into."""
    encoder: str | None = None
    """Any timm encoder in place of the model's own; of a linear head, and of a file of
    segmentation_models.pytorch without its config.json, the one it was trained on."""
    encoder_args: tuple[str, ...] | None = None
    """Settings of the encoder for --model in which it differs from timm's model of its name, each
    NAME=VALUE, such as init_values=1e-5 reg_tokens=4."""
    pretrained: str | None = None
    """Encoder weights of a linear head, or DINOv3's of EoMT: a file, a Hub name, or a tag such as
    lvd142m or lvd1689m."""
    num_heads: int | None = None
    """Attention heads of a whole checkpoint; one per 64 channels by default. Not with --model."""
    img_size: tuple[int, int] | None = None
    """Height and width in pixels the position grid is made for."""
    labels: str | None = None
    """Classes to store, with colours and label map: a known data set, or the folder or YAML file of
    your own."""
    num_classes: int | None = None
    """Number of classes for --model, where --labels is not given."""
    odd_sizes: OddSizes = "crop"
    """What happens to images whose sides are no multiples of 16; squeeze is mmsegmentation's."""
    pos_interp: PosInterp = "bicubic"
    """How an encoder's position grid is resampled; bilinear reproduces checkpoints of 2021."""
    partial: bool = False
    """Accept an encoder that matches below 95 %."""
    new_head: bool = False
    """Start head tensors that do not fit anew."""
    overwrite: bool = False
    """Replace an existing model directory."""
    json: bool = False
    """Print the report as JSON."""


def run(arguments: list[str]) -> int:
    """Convert; prints what was loaded, resized, missing and unexpected."""
    given: Arguments = parse(Arguments, arguments, "convert")
    if given.model:
        rule = f"does nothing with --model {given.model}, which has its own; leave one of them out"
        require_default(given, rule, "num_heads", "pretrained")
    else:
        rule = "does nothing without --model; add --model NAME, or leave it out"
        others = ("encoder_args", "num_classes", "pos_interp", "partial", "new_head")
        require_default(given, rule, *others)
    if given.labels:
        rule = f"does nothing with --labels {given.labels}; leave one of them out"
        require_default(given, rule, "num_classes")
    if (given.out / "config.json").exists() and not given.overwrite:
        raise UsageError(f"{given.out}: holds a model; add --overwrite")
    require_writable(given.out, "-o")
    from setr.hub import save_pretrained
    from setr.scoring import read_labels
    from setr.weight_files.licences import weights_repository

    labels = read_labels(given.labels) if given.labels else None
    model, info, report = _into_model(given, labels) if given.model else _whole(given, labels)
    encoder = model.arguments["encoder"]
    sources = (weights_repository(encoder, source) for source in (given.source, given.pretrained))
    base_model = next(filter(None, sources), None)
    info = dataclasses.replace(info, command=_command(given), base_model=base_model)
    save_pretrained(given.out, model, info)
    if given.json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        print(report)
        tell(f"wrote {given.out}")
    return OK


def _file(given: Arguments) -> Path:
    """The checkpoint, downloaded if an address or a repository was given."""
    from setr.hub import model_folder
    from setr.reading.remote import fetched, is_repository

    if is_url(given.source):
        return fetched(given.source)
    return model_folder(given.source) if is_repository(given.source) else Path(given.source)


def _command(given: Arguments) -> str:
    """The command that reproduces the model; the model card names files without their folders."""
    source, out = _bare(given.source), os.path.basename(os.path.abspath(given.out))
    options = dataclasses.replace(
        given,
        pretrained=given.pretrained and _bare(given.pretrained),
        labels=given.labels and _bare(given.labels),
    )
    words = itertools.chain(*as_typed(options).values())
    return shlex.join(["setr", "convert", source, "-o", out, *words])


def _bare(source: str) -> str:
    """The name of a file; addresses and names on the Hub as they are."""
    return os.path.basename(os.path.abspath(source)) if Path(source).exists() else source


def _whole(given: Arguments, labels: Labels | None) -> tuple[SETR, ModelInfo, LoadReport]:
    """A complete checkpoint, or a linear head with its encoder."""
    from setr.weight_files.foreign import convert_foreign

    return convert_foreign(
        _file(given),
        num_heads=given.num_heads,
        img_size=given.img_size,
        labels=labels,
        odd_sizes=given.odd_sizes,
        encoder=given.encoder,
        pretrained=given.pretrained,
    )


def _into_model(given: Arguments, labels: Labels | None) -> tuple[SETR, ModelInfo, LoadReport]:
    """An encoder, or weights that fit a named model."""
    from setr.model import create_model
    from setr.model_info import ModelInfo
    from setr.weight_files.licences import weights_licence
    from setr.weight_files.weight_settings import require_recorded
    from setr.weights import load_weights

    if labels is None and given.num_classes is None:
        raise UsageError("--model needs --labels NAME or --num-classes K")
    if labels is None:
        labels = Labels(tuple(f"class {i}" for i in range(given.num_classes or 0)))
    model = create_model(
        given.model or "",
        num_classes=len(labels.classes),
        encoder=given.encoder,
        encoder_args=encoder_arguments(given.encoder_args, "--encoder-args"),
        img_size=given.img_size,
        pos_interp=given.pos_interp,
        odd_sizes=given.odd_sizes,
    )
    file = _file(given)
    if (vit := getattr(model.encoder, "vit", None)) is not None:
        require_recorded(vit, model.arguments["encoder"], str(file))
    report = load_weights(model, file, partial=given.partial, new_head=given.new_head)
    info = ModelInfo(
        labels=labels,
        recipe=f"{given.model} from {file.name}",
        pretrained=file.name,
        licence=weights_licence(model.arguments["encoder"], given.source),
    )
    return model, info, report

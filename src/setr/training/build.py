"""Builds the model of a run and what is stored with it, and checks first that both are possible."""

from __future__ import annotations

from pathlib import Path

import torch

from setr._extras import import_extra
from setr.arguments.named_values import encoder_arguments
from setr.bands import Bands
from setr.catalog import is_convolutional
from setr.config import Config, ModelConfig
from setr.distributed import say, world
from setr.encoder import Encoder
from setr.errors import UsageError
from setr.labels import Labels
from setr.layers.mask_classifier import MaskClassifier
from setr.lora import add_lora
from setr.model import SETR, create_model
from setr.model_info import ModelInfo
from setr.protocols import Protocol, preset
from setr.reading.remote import is_repository
from setr.scores.adjustment import class_biases
from setr.weight_files.licences import joined
from setr.weight_files.pretrained import load_encoder, require_weights, require_weights_fit
from setr.weight_files.weight_settings import (
    Normalisation,
    require_recorded,
    trained_normalisation,
    usual_normalisations,
)


def build_model(config: Config, num_classes: int) -> SETR:
    """The model to train, with pretrained weights, frozen blocks, LoRA and checkpointing."""
    settings = config.model
    encoder_args = encoder_arguments(settings.encoder_args, "model.encoder_args")
    if settings.drop_path:
        encoder_args["drop_path_rate"] = settings.drop_path
    model = create_model(
        settings.name,
        num_classes=num_classes,
        img_size=settings.img_size,
        encoder=settings.encoder,
        aux=settings.aux,
        channels=settings.channels,
        taps=settings.taps,
        align_corners=settings.align_corners,
        neck=settings.neck,
        pos_interp=settings.pos_interp,
        prefix_tokens=settings.prefix_tokens,
        patch_stride=settings.patch_stride,
        merge_tokens=settings.merge_tokens,
        encoder_args=encoder_args,
        in_chans=len(settings.mean),
    )
    for source, resnet in _pretrained_sources(model, settings):
        report = load_encoder(model, source, resnet=resnet)
        say(f"encoder: weights of {source}: {report}")
        # our models come with their own values, and these codes' with ImageNet's
        own = report.dialect in ("setr", "official", "mmseg", "eomt")
        if not resnet and not own:
            _note_other_normalisation(model, settings, source, report.dialect)
    if settings.lora_rank:
        add_lora(model, settings.lora_rank)
    else:
        model.encoder.freeze(settings.freeze)
    if config.train.grad_checkpointing:
        model.set_grad_checkpointing()
    return model


def build_empty(config: Config, num_classes: int = 1) -> SETR:
    """The model on the meta device: its parameters have shapes, but neither values nor memory."""
    with torch.device("meta"):
        return build_model(without_weights(config), num_classes)


def require_buildable(config: Config, *, weights: bool) -> None:
    """Check that the model can be built, without allocating it or reading data.

    Args:
        weights: also check that the pretrained weights exist.

    Raises:
        SetrError: an unknown name, parts that do not fit together, missing weights.
    """
    model = build_empty(config)
    if isinstance(model.decoder, MaskClassifier):
        _require_mask_training(config, model)
    if config.train.cache_features != "none":
        _require_stored_features(model)
    for source, resnet in _pretrained_sources(model, config.model) if weights else ():
        require_weights(model, source, resnet=resnet)


def _require_stored_features(model: SETR) -> None:
    """Raise `SetrError` if the features of a model cannot be stored."""
    if world() > 1:
        raise UsageError("train.cache_features: needs a single process; start without torchrun")
    if not isinstance(model.encoder, Encoder):
        raise UsageError(
            f"train.cache_features: {model.arguments['encoder']} is not a transformer, its maps "
            "differ in size; leave it out"
        )


def _require_mask_training(config: Config, model: SETR) -> None:
    """Raise `SetrError` if settings do not fit a model with its own loss, or SciPy is missing."""
    train = config.train
    for name in ("loss", "loss_norm", "aux_weight"):
        if (value := getattr(train, name)) != getattr(type(train), name):
            raise UsageError(f"train.{name} {value}: EoMT has a loss of its own; leave it out")
    if train.cache_features != "none":
        raise UsageError(
            f"train.cache_features {train.cache_features}: EoMT's queries change the encoder's "
            "features; leave it out"
        )
    if config.distill.teacher:
        raise UsageError(
            "distill.teacher: EoMT learns masks, not a teacher's classes of pixels; leave it out"
        )
    if train.adjust_logits:
        class_biases(model)
    import_extra("scipy", "eomt", "training EoMT")


def require_fitting_weights(config: Config) -> None:
    """Check that the pretrained weights fit the encoder, before the slow check of the data.

    Args:
        config: settings of a new run, with the normalisation of its data.

    Raises:
        SetrError: names the first tensor that does not fit, or a file that holds no weights.
    """
    if not (config.model.pretrained or config.model.pretrained_resnet):
        return
    model = build_empty(config.replace({"model.lora_rank": 0}))  # which these weights do not have
    for source, resnet in _pretrained_sources(model, config.model):
        require_weights_fit(model, source)
        if not resnet and isinstance(model.encoder, Encoder):
            require_recorded(model.encoder.vit, model.arguments["encoder"], source)


def _pretrained_sources(model: SETR, settings: ModelConfig) -> list[tuple[str, bool]]:
    """Sources of pretrained weights, each with whether it is for the ResNet of the encoder."""
    if settings.pretrained_resnet and not model.arguments["resnet"]:
        raise UsageError(
            f"model.pretrained_resnet: {settings.name} has no ResNet in front of its encoder; give "
            "encoder weights with --model.pretrained"
        )
    found = (settings.pretrained, False), (settings.pretrained_resnet, True)
    return [(source, resnet) for source, resnet in found if source]


def _note_other_normalisation(
    model: SETR, settings: ModelConfig, source: str, dialect: str
) -> None:
    """Print a note if the weights were, or may have been, trained with another normalisation."""
    if model.encoder.in_chans != 3 or not isinstance(model.encoder, Encoder):
        return  # pretrained on RGB images
    ours, encoder = Normalisation(settings.mean, settings.std), model.arguments["encoder"]
    fixed = getattr(model.encoder.vit, "normalisation", None)
    known = Normalisation(*fixed) if fixed else trained_normalisation(encoder, source, dialect)
    usual = [known] if known else usual_normalisations(encoder)
    if len(usual) > 1:
        say(
            f"note: {source} does not say what it was trained with; timm's weights for {encoder} "
            f"were with {' or '.join(map(str, usual))}; this run has {ours}"
        )
    elif usual and not usual[0].is_near(ours):
        say(f"note: {source if known else encoder} was trained with {usual[0]}; this run is not")


def without_weights(config: Config) -> Config:
    """The settings without pretrained weights."""
    return config.replace({"model.pretrained": None, "model.pretrained_resnet": None})


def build_info(config: Config, labels: Labels, bands: Bands | None = None) -> ModelInfo:
    """The information stored with the model."""
    weights = config.model.pretrained, config.model.pretrained_resnet
    return ModelInfo(
        labels=labels,
        mean=config.model.mean,
        std=config.model.std,
        protocol=_protocol(config, labels),
        recipe=config.recipe,
        crop_size=config.data.crop_size,
        pretrained=joined(_bare(source) for source in weights if source),
        bands=bands,
    )


def _bare(source: str) -> str:
    """The name of a file or folder, without its place; a repository's on the Hub in full."""
    return source if is_repository(source) else Path(source).name


def _protocol(config: Config, labels: Labels) -> Protocol:
    own = Protocol(
        window=config.eval.window,
        stride=config.eval.stride,
        short_side=config.data.short_side,
        long_side=config.data.long_side,
    )
    if config.eval.protocol is None:
        return own
    grid = None if is_convolutional(config.model.name) else config.data.crop_size
    return preset(config.eval.protocol, own=own, labels=labels, grid=grid)

"""Names of other toolkits in Python, for hints when a program uses one of them.

Words of command lines are in `elsewhere.py`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

NAMES_ELSEWHERE: dict[str, dict[str, str]] = {
    "setr": {
        "AutoImageProcessor": "setr.load(SOURCE), which prepares images itself",
        "AutoModelForSemanticSegmentation": (
            "model, info = setr.from_pretrained(SOURCE), or setr.load(SOURCE)"
        ),
        "MMSegInferencer": "setr.load(MODEL), whose predict and predict_all segment images",
        "Trainer": "setr.train('finetune', data=FOLDER)",
        "TrainingArguments": "setr.recipe(NAME).replace({'train.epochs': 20})",
        "YOLO": "setr.load(MODEL) to predict, setr.train('finetune', data=FOLDER)",
        "create_transform": "setr.load(SOURCE), which prepares images itself",
        "export": "from setr.export import export, or the command `setr export MODEL -o FILE`",
        "inference_model": "setr.load(MODEL).predict(IMAGE)",
        "init_model": "setr.load(MODEL)",
        "list_encoders": "the command `setr models --encoders`",
        "load_dataset": "setr.open_dataset('hf:OWNER/NAME', 'train')",
        "load_model": "setr.load(MODEL)",
        "losses": "setr.segmentation_loss(logits, masks)",
        "pipeline": "setr.load(MODEL), which is called with an image",
        "predict": "setr.load(MODEL).predict(IMAGE)",
        "resolve_data_config": "setr.load(SOURCE).info, with mean, std, crop_size and protocol",
        "train_semantic_segmentation": "setr.train('finetune', data=FOLDER)",
        "tune": "setr.sweep('finetune', {'optim.lr': [5e-5, 1e-4]}, data=FOLDER)",
        "val": "setr.evaluate(MODEL, DATA)",
    },
    "SETR": {
        "backbone": "model.encoder",
        "blocks": "model.encoder.vit.blocks",
        "classifier": "model.decoder",
        "config": "model.arguments; classes are in the info of setr.from_pretrained",
        "default_cfg": "setr.from_pretrained(SOURCE), whose info has mean, std and crop_size",
        "embed_dim": "model.encoder.widths, one for each of model.encoder.taps",
        "feature_info": "model.encoder.widths and taps, and model.encoder.patch_size",
        "forward_features": "model.encoder(images), one map for each of model.encoder.taps",
        "forward_intermediates": "model.encoder(images), one map for each of model.encoder.taps",
        "freeze": "model.encoder.freeze(8), of its first blocks, or freeze(-1)",
        "from_pretrained": "model, info = setr.from_pretrained(SOURCE), or setr.load(SOURCE)",
        "get_classifier": "model.decoder",
        "get_intermediate_layers": "model.encoder(images), one map for each of model.encoder.taps",
        "group_matcher": "build_optimizer of setr.training.optim, or model.layer_depth(NAME)",
        "head": "model.decoder",
        "num_features": "model.encoder.widths, one for each of model.encoder.taps",
        "num_labels": "model.num_classes",
        "patch_size": "model.encoder.patch_size",
        "predict": "setr.load(model, info=setr.ModelInfo(…)).predict(IMAGE)",
        "pretrained_cfg": "setr.from_pretrained(SOURCE), whose info has mean, std and crop_size",
        "push_to_hub": "setr.push_to_hub(FOLDER, 'owner/name')",
        "reset_classifier": "setr.create_model(NAME, num_classes=K, pretrained=FOLDER)",
        "save_pretrained": "setr.save_pretrained(FOLDER, model, setr.ModelInfo(…))",
    },
    "Predictor": {
        "add_callback": "setr.train(config, trackers=[…]), subclasses of setr.Tracker",
        "benchmark": "the command `setr bench MODEL`",
        "cuda": "predictor.to('cuda')",
        "embed": "predictor.model.encoder(images), its feature maps",
        "eval": "setr.evaluate(predictor, DATA); the network is predictor.model",
        "evaluate": "setr.evaluate(predictor, DATA)",
        "export": "from setr.export import export, or the command `setr export MODEL -o FILE`",
        "from_pretrained": "setr.load(SOURCE)",
        "half": "setr.load(MODEL, precision='fp16')",
        "id2label": "predictor.classes, whose places are the ids",
        "metrics": "predictor.info.metrics",
        "names": "predictor.classes, whose places are the ids",
        "predict_folder": "predictor.predict_all(FOLDER)",
        "push_to_hub": "setr.push_to_hub, with the folder of the model",
        "save": "setr.save_pretrained(FOLDER, predictor.model, predictor.info)",
        "save_pretrained": "setr.save_pretrained(FOLDER, predictor.model, predictor.info)",
        "track": "predictor.predict_all(VIDEO), one result for each frame",
        "train": "setr.train, with model.pretrained set to the model's folder",
        "tune": "setr.sweep('finetune', {'optim.lr': [5e-5, 1e-4]}, data=FOLDER)",
        "val": "setr.evaluate(predictor, DATA)",
    },
    "Result": {
        "boxes": "result.polygons(), the regions of all classes",
        "cpu": "result.mask, an array",
        "logits": "result.scores, probabilities (K, H, W)",
        "masks": "result.mask, ids (H, W), whose places in predictor.classes are the classes",
        "names": "result.labels.classes, whose places are the ids",
        "numpy": "result.mask, an array",
        "orig_img": "result.image, RGB",
        "orig_shape": "result.mask.shape",
        "plot": "result.overlay(), an array, or result.show()",
        "predictions": "result.mask, ids (H, W)",
        "probs": "result.scores, probabilities (K, H, W)",
        "save_txt": "result.save('regions.geojson', 'geojson')",
        "semantic_mask": "result.mask, ids (H, W)",
        "summary": "result.share(), or result.shares",
        "to_csv": "pandas.DataFrame([result.shares for result in results]).to_csv(FILE)",
        "to_df": "pandas.DataFrame([result.shares for result in results])",
        "to_json": "result.share(), result.geojson() or result.coco()",
        "visualization": "result.overlay(), an array",
    },
}
"""Attribute in another toolkit -> what to use here, by the module or class that is asked for it."""


KEYWORDS_ELSEWHERE: dict[str, dict[str, str]] = {
    "create_model": {
        "backbone": "encoder",
        "checkpoint_path": "pretrained",
        "classes": "num_classes",
        "drop_path_rate": "encoder_args={'drop_path_rate': …}",
        "encoder_name": "encoder",
        "encoder_weights": "pretrained",
        "features_only": "create_model(…).encoder, which returns feature maps",
        "id2label": "num_classes; names are the labels of setr.ModelInfo",
        "image_size": "img_size",
        "in_channels": "in_chans",
        "num_labels": "num_classes",
        "out_indices": "taps, which count blocks from 1",
        "weights": "pretrained",
    },
    "evaluate": {
        "batch": "nothing in its place: images are predicted one by one, or by size on a GPU",
        "batch_size": "nothing in its place: images are predicted one by one, or by size on a GPU",
        "device": "setr.load(MODEL, device='cuda') as the model",
        "imgsz": "setr.load(MODEL, short_side=512) as the model",
        "plots": "the command `setr eval`, which writes a report",
        "save_json": "json.dump of the figures, or the command `setr eval`, which writes them",
    },
    "from_pretrained": {
        "cache_dir": "the variable HF_HOME",
        "device_map": "model.to('cuda') afterwards",
        "dtype": "model.to(torch.bfloat16) afterwards",
        "ignore_mismatched_sizes": "setr.create_model(NAME, num_classes=K, pretrained=SOURCE)",
        "local_files_only": "the variable HF_HUB_OFFLINE=1",
        "num_labels": "setr.create_model(NAME, num_classes=K, pretrained=SOURCE)",
        "token": "`hf auth login`, or the variable HF_TOKEN",
        "torch_dtype": "model.to(torch.bfloat16) afterwards",
    },
    "load": {
        "augment": "scales=(0.75, 1, 1.25), flip=True",
        "conf": "min_confidence",
        "device_map": "device",
        "dtype": "precision",
        "half": "precision='fp16'",
        "imgsz": "short_side",
        "torch_dtype": "precision",
    },
    "predict": {
        "augment": "setr.load(MODEL, scales=(0.75, 1, 1.25), flip=True)",
        "batch": "predict_batch(IMAGES), for images of one size",
        "classes": "result.overlay(classes=[NAME]), result.polygons(classes=[NAME])",
        "conf": "setr.load(MODEL, min_confidence=0.6)",
        "device": "setr.load(MODEL, device='cuda')",
        "half": "setr.load(MODEL, precision='fp16')",
        "imgsz": "setr.load(MODEL, short_side=512)",
        "save": "result.save('overlay.png', 'overlay')",
        "save_txt": "result.save('regions.geojson', 'geojson')",
        "show": "result.show()",
        "stream": "predict_all(SOURCES), which gives one result at a time",
    },
    "recipe": {},  # settings, which are found by their names
    "replace": {},  # the same
    "train": {  # and settings
        "callbacks": "trackers=[…], subclasses of setr.Tracker",
        "eval_dataset": "data=(train, val), two splits as setr.wrap_dataset makes them",
        "exist_ok": "overwrite=True",
        "name": "setr.recipe(NAME).replace({'out': 'runs/…'}) as config",
        "train_dataset": "data=(train, val), two splits as setr.wrap_dataset makes them",
    },
}
"""Argument of a function in another toolkit -> what to use here, by the function's name here."""


def answers_keywords(
    like: str, hint: Callable[[str], str] = lambda _: ""
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function that refuses keywords of other toolkits with what is used here.

    Args:
        like: key of `KEYWORDS_ELSEWHERE`.
        hint: a clause on further keywords; empty for those that it does not know, which are left to
            the function.
    """

    def answering(function: Callable[P, T]) -> Callable[P, T]:
        known = inspect.signature(function).parameters

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name in known:
                    continue
                here = KEYWORDS_ELSEWHERE[like].get(name)
                if advice := f"use {here}" if here else hint(name):
                    own = function.__name__
                    raise TypeError(f"{own}() has no argument '{name}'; {advice}")
            return function(*args, **kwargs)

        return call

    return answering


class _HintsAtNamesOfClasses(type):
    """Of a class whose unknown class attributes, too, are answered with what is used here."""

    if not TYPE_CHECKING:  # else every attribute would exist

        def __getattr__(cls, name):
            raise AttributeError(
                f"type object '{cls.__name__}' has no attribute '{name}'{hint_at(cls, name)}"
            )


class HintsAtNames(metaclass=_HintsAtNamesOfClasses):
    """Base of a class whose unknown attributes are answered with what is used here."""

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            hint = hint_at(type(self), name)
            if not hint:
                return object.__getattribute__(self, name)  # raises the error that led here
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'{hint}")


def hint_at(owner: str | type, name: str) -> str:
    """`; use …` for a name of another toolkit, else empty; of a class also for those above it."""
    owners = [owner] if isinstance(owner, str) else [cls.__name__ for cls in owner.__mro__]
    here = next(filter(None, (NAMES_ELSEWHERE.get(own, {}).get(name) for own in owners)), None)
    return f"; use {here}" if here else ""

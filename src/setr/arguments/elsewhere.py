"""Names of other toolkits, for hints when a user types or calls one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "accelerator": ("device",),
    "accumulate-grad-batches": ("accumulate",),
    "alpha": ("opacity",),
    "amp": ("precision",),
    "ann-dir": ("masks",),
    "arch": ("model.name",),
    "augment": ("multi-scale", "scales"),
    "backbone": ("encoder",),
    "backbone-lr": ("lr",),
    "backbone-weights": ("pretrained",),
    "batch": ("batch-size", "batch", "batches"),
    "batch-size": ("batch-size", "batch", "batches"),
    "bf16": ("precision",),
    "checkpoint": ("pretrained", "model", "models", "source"),
    "checkpoint-interval": ("save-every",),
    "chip-size": ("tile",),
    "ckpt": ("pretrained", "model", "models"),
    "class-weight": ("class-weights",),
    "color-jitter": ("photometric",),
    "conf": ("min-confidence",),
    "conf-thres": ("min-confidence",),
    "cos-lr": ("schedule",),
    "crop": ("crop-size",),
    "data": ("data", "root"),
    "data-dir": ("data", "root"),
    "dataloader-num-workers": ("workers",),
    "dataset": ("data", "root"),
    "decoder": ("model.name",),
    "degrees": ("rotate",),
    "devices": ("device",),
    "drop-path-rate": ("drop-path",),
    "early-stopping": ("patience",),
    "early-stopping-patience": ("patience",),
    "ema-decay": ("ema",),
    "epochs": ("epochs", "steps"),
    "eval-interval": ("eval-every",),
    "eval-steps": ("eval-every",),
    "exist-ok": ("overwrite",),
    "experiment": ("out",),
    "fliplr": ("flip",),
    "flipud": ("flip-vertical",),
    "fp16": ("precision",),
    "freeze-backbone": ("freeze",),
    "freeze-encoder": ("freeze",),
    "fsdp": ("sharding",),
    "gpu": ("device",),
    "gpu-ids": ("device",),
    "grad-accum-steps": ("accumulate",),
    "grad-clip": ("clip-grad",),
    "gradient-accumulation-steps": ("accumulate",),
    "gradient-checkpointing": ("grad-checkpointing",),
    "gradient-clip-val": ("clip-grad",),
    "half": ("precision",),
    "head-lr": ("head-lr-factor",),
    "hflip": ("flip",),
    "hsv-h": ("photometric",),
    "hsv-s": ("photometric",),
    "hsv-v": ("photometric",),
    "image-dir": ("images",),
    "image-size": ("crop-size", "img-size", "size"),
    "img-dir": ("images",),
    "img-size": ("crop-size", "img-size", "size"),
    "imgsz": ("crop-size", "img-size", "size"),
    "initial-checkpoint": ("pretrained",),
    "input": ("images", "image", "source"),
    "input-size": ("crop-size", "img-size", "size"),
    "int8": ("precision",),
    "iters": ("steps",),
    "kfold": ("folds",),
    "learning-rate": ("lr",),
    "load-from": ("pretrained",),
    "log-every-n-steps": ("log-every",),
    "log-every-num-steps": ("log-every",),
    "log-interval": ("log-every",),
    "logging-steps": ("log-every",),
    "lora": ("lora-rank",),
    "lora-r": ("lora-rank",),
    "lr-scheduler-type": ("schedule",),
    "lr0": ("lr",),
    "lrf": ("min-lr",),
    "mask-dir": ("masks",),
    "masks-dir": ("masks",),
    "max-epochs": ("epochs", "steps"),
    "max-grad-norm": ("clip-grad",),
    "max-iters": ("steps",),
    "max-keep-ckpts": ("keep-states",),
    "max-steps": ("steps",),
    "mixed-precision": ("precision",),
    "model": ("model", "models", "model.name"),
    "model-ema": ("ema",),
    "model-ema-decay": ("ema",),
    "model-kwargs": ("encoder-args",),
    "n-folds": ("folds",),
    "num-train-epochs": ("epochs", "steps"),
    "num-warmup-steps": ("warmup-steps",),
    "num-workers": ("workers",),
    "opt": ("optim.name",),
    "optim": ("optim.name",),
    "optimizer": ("optim.name",),
    "out-dir": ("out",),
    "out-file": ("out",),
    "output": ("output", "out"),
    "output-dir": ("out",),
    "per-device-train-batch-size": ("batch-size",),
    "poly-power": ("power",),
    "project": ("out",),
    "quantize": ("precision",),
    "report-to": ("log",),
    "resume-from": ("resume",),
    "resume-from-checkpoint": ("resume",),
    "resume-interrupted": ("resume",),
    "run-name": ("out",),
    "save-dir": ("out",),
    "save-every-num-steps": ("save-every",),
    "save-interval": ("save-every",),
    "save-period": ("save-every",),
    "save-steps": ("save-every",),
    "save-total-limit": ("keep-states",),
    "save-txt": ("save",),
    "scale": ("scale-range", "scales"),
    "sched": ("schedule",),
    "scheduler": ("schedule",),
    "show": ("save",),
    "show-dir": ("save", "out"),
    "source": ("source", "images", "image"),
    "strategy": ("sharding",),
    "tensorboard": ("log",),
    "test-size": ("val-share",),
    "threshold": ("min-confidence",),
    "tile-size": ("tile",),
    "time": ("minutes",),
    "torch-compile": ("compile",),
    "torchcompile": ("compile",),
    "tta": ("multi-scale", "scales"),
    "val": ("val-split", "split"),
    "val-check-interval": ("eval-every",),
    "val-every-num-steps": ("eval-every",),
    "val-interval": ("eval-every",),
    "val-ratio": ("val-share",),
    "val-split-pct": ("val-share",),
    "vflip": ("flip-vertical",),
    "wandb": ("log",),
    "warmup": ("warmup-steps",),
    "warmup-epochs": ("warmup-steps",),
    "warmup-iters": ("warmup-steps",),
    "warmup-ratio": ("warmup-steps",),
    "wd": ("weight-decay",),
    "weights": ("pretrained", "model", "models", "source"),
    "window-size": ("window",),
    "work-dir": ("out",),
}
"""Name in another toolkit -> names here; the hint gives the first one that the command has."""

_IN_DATA = "classes are named in data.yaml, which `setr init-data DIR` drafts"
_IN_LABEL_MAP = (
    "ids are never shifted: map them in data.yaml, as label_map: {0: ignore, 1: road, …}"
)
_IN_HELP = "--help lists every setting with its value"
_IN_IGNORE = "name ids to leave out in data.yaml, as ignore: [0, 255]"
_IN_PLACE = "give the file in place of the recipe: setr train config.yaml"
_TORCHRUN = "several GPUs take `torchrun --nproc-per-node 4 -m setr train …`"
ADVICE: dict[str, str] = {
    "class-names": _IN_DATA,
    "classes": _IN_DATA,
    "config": _IN_PLACE,
    "do-reduce-labels": _IN_LABEL_MAP,
    "dry-run": _IN_HELP,
    "gpus": _TORCHRUN,
    "ignore-index": _IN_IGNORE,
    "names": _IN_DATA,
    "nc": _IN_DATA,
    "nproc-per-node": _TORCHRUN,
    "num-classes": _IN_DATA,
    "num-gpus": _TORCHRUN,
    "print-config": _IN_HELP,
    "reduce-zero-label": _IN_LABEL_MAP,
}
"""Name in another toolkit -> what to do here, where no option of the command does the same."""

COMMANDS_ELSEWHERE = {
    "app": "serve",
    "attention": "explain attention",
    "benchmark": "bench",
    "browse": "doctor",
    "browse-dataset": "doctor",
    "calibrate": "eval",
    "check": "doctor",
    "evaluate": "eval",
    "features": "explain features",
    "finetune": "train",
    "fit": "train",
    "infer": "predict",
    "inference": "predict",
    "info": "models",
    "init": "init-data",
    "inspect": "doctor",
    "list-models": "models",
    "quantize": "export",
    "segment": "predict",
    "semantic": "train",
    "semseg": "train",
    "soup": "average",
    "test": "eval",
    "tile": "init-data --tile",
    "track": "predict",
    "val": "eval",
    "validate": "eval",
}
"""Command in another toolkit -> command here."""

NAMES_ELSEWHERE: dict[str, dict[str, str]] = {
    "setr": {
        "AutoModelForSemanticSegmentation": "setr.from_pretrained(SOURCE), or setr.load(SOURCE)",
        "MMSegInferencer": "setr.load(MODEL), whose predict and predict_all segment images",
        "Trainer": "setr.train('finetune', data=FOLDER)",
        "YOLO": "setr.load(MODEL) to predict, setr.train('finetune', data=FOLDER)",
        "export": "the command `setr export MODEL --format onnx -o FILE`",
        "inference_model": "setr.load(MODEL).predict(IMAGE)",
        "init_model": "setr.load(MODEL)",
        "load_model": "setr.load(MODEL)",
        "losses": "setr.segmentation_loss(logits, masks)",
        "pipeline": "setr.load(MODEL), which is called with an image",
        "predict": "setr.load(MODEL).predict(IMAGE)",
        "train_semantic_segmentation": "setr.train('finetune', data=FOLDER)",
        "val": "setr.evaluate(MODEL, DATA)",
    },
    "Predictor": {
        "eval": "setr.evaluate(predictor, DATA); the network is predictor.model",
        "evaluate": "setr.evaluate(predictor, DATA)",
        "export": "the command `setr export MODEL --format onnx -o FILE`",
        "id2label": "predictor.classes, whose places are the ids",
        "names": "predictor.classes, whose places are the ids",
        "predict_folder": "predictor.predict_all(FOLDER)",
        "push_to_hub": "setr.push_to_hub, with the folder of the model",
        "save": "setr.save_pretrained(FOLDER, predictor.model, predictor.info)",
        "save_pretrained": "setr.save_pretrained(FOLDER, predictor.model, predictor.info)",
        "track": "predictor.predict_all(VIDEO), one result for each frame",
        "train": "setr.train, with model.pretrained set to the model's folder",
        "val": "setr.evaluate(predictor, DATA)",
    },
    "Result": {
        "boxes": "result.polygons(), the regions of all classes",
        "logits": "result.scores, probabilities (K, H, W)",
        "masks": "result.mask, ids (H, W), whose places in predictor.classes are the classes",
        "names": "result.labels.classes, whose places are the ids",
        "orig_img": "result.image, RGB",
        "plot": "result.overlay(), an array, or result.show()",
        "predictions": "result.mask, ids (H, W)",
        "probs": "result.scores, probabilities (K, H, W)",
        "semantic_mask": "result.mask, ids (H, W)",
        "summary": "result.share(), or result.shares",
        "to_csv": "pandas.DataFrame([result.shares for result in results]).to_csv(FILE)",
        "to_df": "pandas.DataFrame([result.shares for result in results])",
        "to_json": "result.share(), result.geojson() or result.coco()",
        "visualization": "result.overlay(), an array",
    },
}
"""Attribute in another toolkit -> what to use here, by the module or class that is asked for it."""


KEYWORDS_ELSEWHERE = {
    "backbone": "encoder",
    "checkpoint_path": "pretrained",
    "classes": "num_classes",
    "drop_path_rate": "encoder_args={'drop_path_rate': …}",
    "encoder_name": "encoder",
    "encoder_weights": "pretrained",
    "features_only": "create_model(…).encoder, which returns feature maps",
    "image_size": "img_size",
    "in_channels": "in_chans",
    "num_labels": "num_classes",
    "weights": "pretrained",
}
"""Argument of a function that creates models in another toolkit -> that of `create_model`."""


def require_own_keywords(given: Iterable[str]) -> None:
    """Refuse keywords that other toolkits' functions have in place of those of `create_model`.

    Raises:
        TypeError: names the keyword here.
    """
    for name in given:
        if name in KEYWORDS_ELSEWHERE:
            here = KEYWORDS_ELSEWHERE[name]
            raise TypeError(f"create_model() has no argument '{name}'; use {here}")


class HintsAtNames:
    """Base of a class whose unknown attributes are answered with what is used here."""

    if not TYPE_CHECKING:  # else every attribute would exist

        def __getattr__(self, name):
            hint = hint_at(type(self).__name__, name)
            if not hint:
                return object.__getattribute__(self, name)  # raises the error that led here
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'{hint}")


def hint_at(owner: str, name: str) -> str:
    """`; use …` for a name of another toolkit, else empty."""
    here = NAMES_ELSEWHERE[owner].get(name)
    return f"; use {here}" if here else ""

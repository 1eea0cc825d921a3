"""Names of other toolkits, for hints when a user types or calls one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING


def _by_name(table: dict[str, str]) -> dict[str, str]:
    """What is here by name elsewhere, from a table of the opposite direction."""
    return {name: here for here, names in table.items() for name in names.split()}


OPTIONS_HERE = {
    "accumulate": "accumulate-grad-batches grad-accum-steps gradient-accumulation-steps",
    "batch-size": "per-device-train-batch-size",
    "batch-size batch batches": "batch batch-size",
    "class-weights": "class-weight",
    "clip-grad": "grad-clip gradient-clip-val max-grad-norm",
    "compile": "torch-compile torchcompile",
    "crop-size": "crop",
    "crop-size img-size size": "image-size img-size imgsz input-size",
    "data root": "data data-dir dataset",
    "device": "accelerator devices gpu gpu-ids",
    "drop-path": "drop-path-rate",
    "ema": "ema-decay model-ema model-ema-decay",
    "encoder": "backbone",
    "encoder-args": "model-kwargs",
    "epochs steps": "epochs max-epochs num-train-epochs",
    "eval-every": "eval-interval eval-steps val-check-interval val-every-num-steps val-interval",
    "flip": "fliplr hflip",
    "flip-vertical": "flipud vflip",
    "folds": "kfold n-folds",
    "freeze": "freeze-backbone freeze-encoder",
    "grad-checkpointing": "gradient-checkpointing",
    "head-lr-factor": "head-lr",
    "images": "image-dir img-dir",
    "images image source": "input",
    "keep-states": "max-keep-ckpts save-total-limit",
    "log": "report-to tensorboard wandb",
    "log-every": "log-every-n-steps log-every-num-steps log-interval logging-steps",
    "lora-rank": "lora lora-r",
    "lr": "backbone-lr learning-rate lr0",
    "masks": "ann-dir mask-dir masks-dir",
    "min-confidence": "conf conf-thres threshold",
    "min-lr": "lrf",
    "minutes": "time",
    "model models model.name": "model",
    "model.name": "arch decoder",
    "multi-scale scales": "augment tta",
    "opacity": "alpha",
    "optim.name": "opt optim optimizer",
    "out": "experiment out-dir out-file output-dir project run-name save-dir work-dir",
    "output out": "output",
    "overwrite": "exist-ok",
    "patience": "early-stopping early-stopping-patience",
    "photometric": "color-jitter hsv-h hsv-s hsv-v",
    "power": "poly-power",
    "precision": "amp bf16 fp16 half int8 mixed-precision quantize",
    "pretrained": "backbone-weights initial-checkpoint load-from",
    "pretrained model models": "ckpt",
    "pretrained model models source": "checkpoint weights",
    "resume": "resume-from resume-from-checkpoint resume-interrupted",
    "rotate": "degrees",
    "save": "save-txt show",
    "save out": "show-dir",
    "save-every": "checkpoint-interval save-every-num-steps save-interval save-period save-steps",
    "scale-range scales": "scale",
    "schedule": "cos-lr lr-scheduler-type sched scheduler",
    "sharding": "fsdp strategy",
    "source images image": "source",
    "steps": "iters max-iters max-steps",
    "tile": "chip-size tile-size",
    "val-share": "test-size val-ratio val-split-pct",
    "val-split split": "val",
    "warmup-steps": "num-warmup-steps warmup warmup-epochs warmup-iters warmup-ratio",
    "weight-decay": "wd",
    "window": "window-size",
    "workers": "dataloader-num-workers num-workers",
}
"""Names of an option here -> its names in other toolkits."""

ADVICE_HERE = {
    "--help lists every setting with its value": "dry-run print-config",
    "classes are named in data.yaml, which `setr init-data DIR` drafts": (
        "class-names classes names nc num-classes"
    ),
    "give the file in place of the recipe: setr train config.yaml": "config",
    "ids are never shifted: map them in data.yaml, as label_map: {0: ignore, 1: road, …}": (
        "do-reduce-labels reduce-zero-label"
    ),
    "name ids to leave out in data.yaml, as ignore: [0, 255]": "ignore-index",
    "several GPUs take `torchrun --nproc-per-node 4 -m setr train …`": (
        "gpus nproc-per-node num-gpus"
    ),
}
"""What to do here -> options in other toolkits, where no option of the command does the same."""

COMMANDS_HERE = {
    "average": "soup",
    "bench": "benchmark",
    "doctor": "browse browse-dataset check inspect",
    "eval": "calibrate evaluate test val validate",
    "explain attention": "attention",
    "explain features": "features",
    "export": "quantize",
    "init-data": "init",
    "init-data --tile": "tile",
    "models": "info list-models",
    "predict": "infer inference segment track",
    "serve": "app",
    "sweep": "grid hpo hyperparameter-search multirun optimize search tune",
    "train": "finetune fit semantic semseg",
}
"""Command here -> its names in other toolkits."""

ELSEWHERE = {name: tuple(here.split()) for name, here in _by_name(OPTIONS_HERE).items()}
"""Name in another toolkit -> names here; the hint gives the first one that the command has."""

ADVICE = _by_name(ADVICE_HERE)
"""Name in another toolkit -> what to do here."""

COMMANDS_ELSEWHERE = _by_name(COMMANDS_HERE)
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
        "tune": "setr.sweep('finetune', {'optim.lr': [5e-5, 1e-4]}, data=FOLDER)",
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

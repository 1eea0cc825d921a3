"""Names of other toolkits, for hints when a user types or calls one of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def _by_name(table: dict[str, str]) -> dict[str, str]:
    """What is here by name elsewhere, from a table of the opposite direction."""
    return {name: here for here, names in table.items() for name in names.split()}


OPTIONS_HERE = {
    "accumulate": "accumulate-grad-batches grad-accum-steps gradient-accumulation-steps nbs",
    "aux": "aux-head aux-loss auxiliary auxiliary-head",
    "batch-size": "per-device-train-batch-size samples-per-gpu",
    "batch-size batch batches": "batch batch-size",
    "class-key": "attribute class-field class-property column field label-field",
    "class-weights": "class-weight cls-pw pos-weight",
    "clip-grad": "grad-clip gradient-clip-val max-grad-norm",
    "compare": "baseline compare-with",
    "compile": "torch-compile torchcompile",
    "crop-size": "crop",
    "crop-size img-size size short-side": "image-size img-size imgsz input-size resize",
    "data root": "data data-dir dataset dataset-name",
    "device": "accelerator devices gpu gpu-id gpu-ids no-cuda use-cpu",
    "drop-path": "drop-path-rate dropout",
    "ema": "ema-decay model-ema model-ema-decay use-ema",
    "encoder": "backbone encoder-name",
    "encoder-args": "model-kwargs",
    "epochs steps": "epochs max-epochs num-train-epochs",
    "eval-every": (
        "check-val-every-n-epoch eval-interval eval-steps eval-strategy evaluation-strategy "
        "val-check-interval val-every-num-steps val-interval"
    ),
    "flip": "fliplr hflip",
    "flip-vertical": "flipud vflip",
    "folds": "kfold n-folds",
    "format": "framework include",
    "fraction": "limit-train-batches max-train-samples",
    "freeze": "freeze-backbone freeze-encoder freeze-layers",
    "grad-checkpointing": "gradient-checkpointing",
    "group-by": (
        "by-group by-patient group group-regex groups patient per-group per-patient subject"
    ),
    "head-lr-factor": "head-lr",
    "images": "image-dir img-dir",
    "images image source": "input",
    "keep-states": "max-keep-ckpts save-total-limit",
    "layer-decay": "llrd lr-decay lr-decay-rate",
    "log": "report-to tensorboard wandb",
    "log-every": "log-every-n-steps log-every-num-steps log-interval logging-steps print-freq",
    "lora-rank": "lora lora-r",
    "loss": "criterion loss-fn",
    "lr": "backbone-lr learning-rate lr0",
    "masks": "ann-dir mask-dir masks-dir",
    "min-confidence": "conf conf-thres",
    "min-lr": "lrf",
    "min-pixels": "min-area min-object-size min-size",
    "model models model.name": "model",
    "model.name": "arch decoder",
    "multi-scale scales": "aug-test augment tta",
    "opacity": "alpha",
    "optim.name": "opt optim optimizer",
    "out": "experiment out-dir out-file output-dir output-file project run-name save-dir work-dir",
    "output out": "output",
    "overwrite": "exist-ok",
    "patience": "early-stop early-stopping early-stopping-patience",
    "photometric": "brightness color-jitter contrast hsv-h hsv-s hsv-v hue jitter saturation",
    "power": "poly-power",
    "precision": "amp bf16 fp16 half int8 mixed-precision quantize",
    "pretrained": "backbone-weights encoder-weights initial-checkpoint load-from",
    "pretrained model models": "ckpt",
    "pretrained model models source": "checkpoint model-name-or-path weights",
    "rare-class-crops": "oversample-foreground oversample-foreground-percent",
    "repeat-rare": "oversample oversample-thr",
    "resume": "resume-from resume-from-checkpoint resume-interrupted",
    "rotate": "degrees",
    "save": (
        "format logits output-format probs save-conf save-img save-probs save-txt show softmax "
        "vectorize"
    ),
    "save out": "show-dir",
    "save-every": (
        "checkpoint-interval save-every-num-steps save-interval save-period save-steps "
        "save-strategy"
    ),
    "scale-range scales": "scale",
    "schedule": "cos-lr lr-scheduler-type sched scheduler",
    "seconds": "duration",
    "sharding": "fsdp strategy",
    "size": "input-shape shape",
    "source images image": "source",
    "steps": "iters max-iters max-steps",
    "teacher": "distill-model teacher-model teacher-weights",
    "tile window": "chip-size tile-size",
    "tolerance": "epsilon simplify simplify-tolerance",
    "val-share": "test-size val-ratio val-split-pct",
    "val-split split": "val",
    "warmup-steps": "num-warmup-steps warmup warmup-epochs warmup-iters warmup-ratio",
    "weight-decay": "wd",
    "window": "slide sliding-window window-size",
    "workers": "dataloader-num-workers num-workers",
}
"""Names of an option here -> its names in other toolkits."""

ADVICE_HERE = {
    "--help lists every setting with its value": "dry-run print-config",
    "--train.cache-features keeps those of a frozen encoder; images are read anew in each pass": (
        "cache cache-images cache-ram"
    ),
    "--train.ema is the decay, as 0.999: 1 less the momentum": "ema-momentum",
    "95 % intervals are always computed; --group-by makes them over groups": (
        "bootstrap ci n-bootstrap"
    ),
    "AdamW has the betas 0.9 and 0.999": "adam-beta1 adam-beta2 beta1 beta2 betas",
    "Cohen's kappa is always computed": "cohen-kappa kappa",
    "IoU, Dice, precision and recall of each class are always computed": (
        "dice dice-score metric metrics per-class"
    ),
    "OMP_NUM_THREADS sets the number of threads": "num-threads threads",
    "QGIS's Zonal histogram counts the classes of a mask in each polygon": (
        "fields zonal zonal-stats"
    ),
    "W&B takes WANDB_PROJECT and WANDB_MODE from the environment": "wandb-project",
    "`setr adjust MODEL DATA -o OUT --threshold T` sets that of a model of two classes": (
        "class-threshold prob-threshold threshold thresholds"
    ),
    "`setr auto DATA --minutes N` fits a training into a time": "max-time time",
    "`setr eval` writes metrics.json by itself, `setr predict --save coco` outlines": "save-json",
    "`setr train`, `setr eval` and `setr predict` are commands of their own": (
        "do-eval do-predict do-train"
    ),
    "a camera's newest frame is taken, and every frame of a video, without an option": (
        "fps skip-frames stream stream-buffer vid-stride"
    ),
    "a fold is two splits, as --data.train-split train1 --data.val-split val1": "fold folds",
    "areas of GeoTIFF files are in manifest.jsonl and, with --save share,gpkg, as area_m2": (
        "area areas hectares units"
    ),
    "bands are named in data.yaml, as bands: [4, 3, 2, 8]; `setr init-data` drafts them": (
        "bands channels in-channels"
    ),
    "batch norm is synchronised over processes by itself": "sync-batchnorm sync-bn",
    "boundary IoU and F are always computed; distances such as Hausdorff's are not": (
        "hausdorff hd95 nsd surface-dice"
    ),
    "classes are named in data.yaml, which `setr init-data DIR` drafts": (
        "class-names classes names nc num-classes"
    ),
    "colours of classes are named in data.yaml, and stored with the model": (
        "color-map colormap colors palette"
    ),
    "connected regions are counted by class, in the report and metrics.json": (
        "instances lesions objects regions"
    ),
    "each pixel gets a class; there are no boxes": (
        "agnostic-nms box dfl max-det nms show-boxes single-cls"
    ),
    "each setting is an option, as --optim.lr 1e-4": "cfg-options options opts",
    "frames are predicted one by one; nothing smooths them over time": "smooth smoothing temporal",
    "give the file in place of the recipe: setr train config.yaml": "cfg config",
    "ids are never shifted: map them in data.yaml, as label_map: {0: ignore, 1: road, …}": (
        "do-reduce-labels reduce-zero-label"
    ),
    "images.csv has a line per image, and groups.csv with --group-by one per group": (
        "csv per-image"
    ),
    "images/test with labels/test is the test split, or another folder named in data.yaml": (
        "test-ratio test-share test-split"
    ),
    "layers in the folder are found by themselves (.gpkg, .shp, .geojson)": (
        "geojson gpkg layer layers polygons shapefile shp vector"
    ),
    "name ids to leave out in data.yaml, as ignore: [0, 255]": (
        "ignore-index ignore-label ignore-value"
    ),
    "no rate changes with the batch size; give --optim.lr": "auto-scale-lr",
    "not built in; from Python, setr.train(…, augment=…) takes your own": (
        "aa augmentations auto-augment close-mosaic copy-paste cutmix cutout erasing "
        "gaussian-blur mixup mosaic perspective rand-aug random-erase reprob shear transform "
        "transform-args translate"
    ),
    "not built in; your own training loop takes any loss (docs/python.md)": (
        "label-smoothing label-smoothing-factor loss-weight loss-weights"
    ),
    "on one machine a run is reproducible bit for bit as it is": "deterministic",
    "outputs keep the input's coordinate system; gdalwarp -t_srs makes another": "crs epsg t-srs",
    "rare classes are spread over the splits by themselves, as far as possible": (
        "stratified stratify"
    ),
    "setr.push_to_hub(FOLDER, 'owner/name') uploads a model, from Python": (
        "hub-model-id push-to-hub"
    ),
    "several GPUs take `torchrun --nproc-per-node 4 -m setr train …`": (
        "ddp-backend dist-backend dist-url gpus launcher local-rank master-port nnodes "
        "node-rank nproc-per-node num-gpus num-nodes world-size"
    ),
    "the file has opset 20, and takes any batch, height and width unless --size is given": (
        "dynamic dynamic-axes dynamic-export opset"
    ),
    "the folder of a run holds the weights with the best val mIoU; its last/ the newest state": (
        "load-best-model-at-end metric-for-best-model monitor save-best save-last save-top-k"
    ),
    "the report of `setr eval` has the confusion matrix, and thresholds of two classes": (
        "confusion-matrix plots pr-curve"
    ),
    "what a file marks as nodata is left out by itself": "nodata nodata-value",
    "where images and masks are is said in data.yaml, which `setr init-data` drafts": (
        "img-suffix mask-suffix seg-map-path seg-map-suffix train-dir train-images train-masks "
        "val-dir val-images val-masks"
    ),
    "windows of `setr predict` overlap by a quarter, eval has --stride; tiles do not overlap": (
        "overlap"
    ),
}
"""What to do here -> options in other toolkits, where no option of the command does the same."""

COMMANDS_HERE = {
    "average": "soup",
    "bench": "benchmark",
    "doctor": "browse browse-dataset check inspect",
    "eval": "analyze-logs calibrate confusion-matrix evaluate test val validate",
    "eval MODEL DATA --compare OTHER": "compare significance",
    "explain attention": "attention",
    "explain features": "features",
    "export": "quantize",
    "init-data": "init",
    "init-data --folds": "cross-validate crossval cv kfold",
    "init-data --tile": "tile",
    "merge-tokens": "algm compress prune tome",
    "models": "get-flops info list-models",
    "predict": "camera detect infer inference live segment stream track watch webcam",
    "predict --save gpkg": "polygonize vectorize",
    "predict A,B": "ensemble",
    "score": "agreement iaa kappa",
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

VALUES_HERE = {
    "adamw": "adam adamw-torch",
    "bf16": "bfloat16",
    "cosine": "cos",
    "cross_entropy": "bce ce crossentropy softmax",
    "dice": "ce-dice dc-and-ce dice-ce dicece generalized-dice tversky",
    "fp16": "float16 half",
    "fp32": "float32",
    "lovasz": "jaccard lovasz-softmax",
    "onnx": "coreml engine tensorrt tflite trt",
    "poly": "polynomial",
    "torch": "exported-program pt2 torch-export torchscript",
}
"""Value of an option here -> the nearest ones in other toolkits; `dice` adds the cross-entropy."""

VALUES_ELSEWHERE = _by_name(VALUES_HERE)
"""Value in another toolkit -> value here."""

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
        "export": "the command `setr export MODEL --format onnx -o FILE`",
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
        "config": "model.arguments",
        "forward_features": "model.encoder(images), one map for each of model.encoder.taps",
        "from_pretrained": "model, info = setr.from_pretrained(SOURCE), or setr.load(SOURCE)",
        "predict": "setr.load(model, info=setr.ModelInfo(…)).predict(IMAGE)",
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
        "export": "the command `setr export MODEL --format onnx -o FILE`",
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
        "image_size": "img_size",
        "in_channels": "in_chans",
        "num_labels": "num_classes",
        "out_indices": "taps, which count blocks from 1",
        "weights": "pretrained",
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
    "train": {},  # settings, which are found by their names
}
"""Argument of a function in another toolkit -> what to use here, by the function's name here."""


def answers_keywords(
    like: str, hint: Callable[[str], str] = lambda _: ""
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function that refuses keywords of other toolkits with what is used here.

    Args:
        like: key of `KEYWORDS_ELSEWHERE`.
        hint: what to use for further keywords; empty for those that it does not know, which are
            left to the function.
    """

    def answering(function: Callable[P, T]) -> Callable[P, T]:
        known = inspect.signature(function).parameters

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                here = "" if name in known else KEYWORDS_ELSEWHERE[like].get(name) or hint(name)
                if here:
                    own = function.__name__
                    raise TypeError(f"{own}() has no argument '{name}'; use {here}")
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

"""Words of other toolkits' command lines, for hints when a user types one of them.

Names in Python are in `elsewhere_python.py`.
"""

from __future__ import annotations


def _table(text: str) -> dict[str, str]:
    """What is here -> its names elsewhere, from lines of `HERE <- NAMES`; the rest is indented."""
    lines = text.strip().replace("\n    ", " ").splitlines()
    return {here: names for here, _, names in (line.partition(" <- ") for line in lines)}


def _by_name(table: dict[str, str]) -> dict[str, str]:
    """What is here by name elsewhere, from a table of the opposite direction."""
    return {name: here for here, names in table.items() for name in names.split()}


OPTIONS_HERE = _table("""
accumulate <- accumulate-grad-batches grad-accum-steps gradient-accumulation-steps nbs
aux <- aux-head aux-loss auxiliary auxiliary-head
batch-size <- per-device-train-batch-size samples-per-gpu
batch-size batch batches <- batch batch-size
class-key <- attribute class-field class-property column field label-field
class-weights <- class-weight cls-pw pos-weight
clip-grad <- grad-clip gradient-clip-val max-grad-norm
compare <- baseline compare-with
compile <- torch-compile torchcompile
crop-size <- crop
crop-size img-size size short-side <- image-size img-size imgsz input-size resize
data root <- data data-dir dataset dataset-name
device <- accelerator devices gpu gpu-id gpu-ids no-cuda use-cpu
drop-path <- drop-path-rate dropout
ema <- ema-decay model-ema model-ema-decay use-ema
encoder <- backbone encoder-name
encoder-args <- model-kwargs
epochs steps <- epochs max-epochs num-train-epochs
eval-every <- check-val-every-n-epoch eval-interval eval-steps eval-strategy evaluation-strategy
    no-validate val-check-interval val-every-num-steps val-interval
flip <- fliplr hflip
flip-vertical <- flipud vflip
folds <- kfold n-folds
format <- framework include
fraction <- limit-train-batches max-train-samples
freeze <- freeze-backbone freeze-encoder freeze-layers
grad-checkpointing <- gradient-checkpointing
group-by <- by-group by-patient group group-regex groups patient per-group per-patient subject
head-lr-factor <- head-lr
images <- image-dir img-dir
images image source <- input
keep-states <- max-keep-ckpts save-total-limit
layer-decay <- llrd lr-decay lr-decay-rate
log <- report-to tensorboard wandb
log-every <- log-every-n-steps log-every-num-steps log-interval logging-steps print-freq
lora-rank <- lora lora-r
loss <- criterion loss-fn
lr <- backbone-lr learning-rate lr0
masks <- ann-dir mask-dir masks-dir
min-confidence <- conf conf-thres
min-lr <- lrf
min-pixels <- min-area min-object-size min-size
model models model.name <- model
model.name <- arch decoder
multi-scale scales <- aug-test augment tta
opacity <- alpha
optim.name <- opt optim optimizer
out <- experiment out-dir out-file output-dir output-file project run-name save-dir work-dir
output out <- output
overwrite <- exist-ok
patience <- early-stop early-stopping early-stopping-patience
photometric <- brightness color-jitter contrast hsv-h hsv-s hsv-v hue jitter saturation
power <- poly-power
precision <- amp bf16 fp16 half int8 mixed-precision quantize
pretrained <- backbone-weights encoder-weights initial-checkpoint load-from
pretrained model models <- ckpt
pretrained model models source <- checkpoint model-name-or-path weights
rare-class-crops <- oversample-foreground oversample-foreground-percent
repeat-rare <- oversample oversample-thr
resume <- resume-from resume-from-checkpoint resume-interrupted
rotate <- degrees
save <- format logits output-format probs save-conf save-img save-probs save-txt show softmax
    vectorize
save out <- show-dir
save-every <- checkpoint-interval save-every-num-steps save-interval save-period save-steps
    save-strategy
scale-range scales <- scale
schedule <- cos-lr lr-scheduler-type sched scheduler
seconds <- duration
sharding <- fsdp strategy
size <- input-shape shape
source images image <- source
steps <- iters max-iters max-steps
teacher <- distill-model teacher-model teacher-weights
tile window <- chip-size tile-size
tolerance <- epsilon simplify simplify-tolerance
val-share <- test-size val-ratio val-split-pct
val-split split <- val
warmup-steps <- num-warmup-steps warmup warmup-epochs warmup-iters warmup-ratio
weight-decay <- wd
window <- slide sliding-window window-size
workers <- dataloader-num-workers num-workers
""")
"""Names of an option here -> its names in other toolkits."""

ADVICE_HERE = _table("""
--help lists every setting with its value <- dry-run print-config
--train.cache-features keeps those of a frozen encoder; images are read anew in each pass <- cache
    cache-images cache-ram
--train.ema is the decay, as 0.999: 1 less the momentum <- ema-momentum
95 % intervals are always computed; --group-by makes them over groups <- bootstrap ci n-bootstrap
AdamW has the betas 0.9 and 0.999 <- adam-beta1 adam-beta2 beta1 beta2 betas
Cohen's kappa is always computed <- cohen-kappa kappa
IoU is always computed, by class; there are no boxes whose overlap to limit <- iou
IoU, Dice, precision and recall of each class are always computed <- dice dice-score eval metric
    metrics per-class
OMP_NUM_THREADS sets the number of threads <- num-threads threads
QGIS's Zonal histogram counts the classes of a mask in each polygon <- fields zonal zonal-stats
TLS is the task of a proxy in front of the server (docs/serve.md) <- cert certfile key keyfile ssl
    ssl-certfile ssl-keyfile tls
W&B takes WANDB_PROJECT and WANDB_MODE from the environment <- wandb-project
`setr adjust MODEL DATA -o OUT --threshold T` sets that of a model of two classes <- class-threshold
    prob-threshold threshold thresholds
`setr auto DATA --minutes N` fits a training into a time <- max-time time
`setr eval` writes metrics.json by itself, `setr predict --save coco` outlines <- save-json
`setr train`, `setr eval` and `setr predict` are commands of their own <- do-eval do-predict
    do-train
a camera's newest frame is taken, and every frame of a video, without an option <- fps skip-frames
    stream stream-buffer vid-stride
a fold is two splits, as --data.train-split train1 --data.val-split val1 <- fold folds
areas of GeoTIFF files are in manifest.jsonl and, with --save share,gpkg, as area_m2 <- area areas
    hectares units
bands are named in data.yaml, as bands: [4, 3, 2, 8]; `setr init-data` drafts them <- bands channels
    in-channels
batch norm is synchronised over processes by itself <- sync-batchnorm sync-bn
boundary IoU and F are always computed; distances such as Hausdorff's are not <- hausdorff hd95 nsd
    surface-dice
classes are named in data.yaml, which `setr init-data DIR` drafts <- class-names classes names nc
    num-classes
colours of classes are named in data.yaml, and stored with the model <- color-map colormap colors
    palette
connected regions are counted by class, in the report and metrics.json <- instances lesions objects
    regions
each pixel gets a class; there are no boxes <- agnostic-nms box dfl max-det nms show-boxes
    single-cls
each setting is an option, as --optim.lr 1e-4 <- cfg-options options opts
frames are predicted one by one; nothing smooths them over time <- smooth smoothing temporal
give the file in place of the recipe: setr train config.yaml <- cfg config
ids are never shifted: map them in data.yaml, as label_map: {0: ignore, 1: road, …} <-
    do-reduce-labels reduce-zero-label
images keep their shape; --data.crop-size cuts crops of one size <- keep-aspect-ratio keep-ratio
    letterbox rect
images.csv has a line per image, and groups.csv with --group-by one per group <- csv per-image
images/test with labels/test is the test split, or another folder named in data.yaml <- test-ratio
    test-share test-split
layers in the folder are found by themselves (.gpkg, .shp, .geojson) <- geojson gpkg layer layers
    polygons shapefile shp vector
name ids to leave out in data.yaml, as ignore: [0, 255] <- ignore-index ignore-label ignore-value
no rate changes with the batch size; give --optim.lr <- auto-scale-lr
not built in; from Python, setr.train(…, augment=…) takes your own <- aa augmentations auto-augment
    close-mosaic copy-paste cutmix cutout erasing gaussian-blur mixup mosaic perspective rand-aug
    random-erase reprob shear transform transform-args translate
not built in; your own training loop takes any loss (docs/python.md) <- label-smoothing
    label-smoothing-factor loss-weight loss-weights
on one machine a run is reproducible bit for bit as it is <- deterministic
outputs keep the input's coordinate system; gdalwarp -t_srs makes another <- crs epsg t-srs
progress goes to stderr, which 2>FILE keeps apart; --debug shows where an error is from <- log-level
    loglevel quiet silent verbose
rare classes are spread over the splits by themselves, as far as possible <- stratified stratify
results are named by -o, models of `setr serve` as NAME=MODEL <- name
setr.push_to_hub(FOLDER, 'owner/name') uploads a model, from Python <- hub-model-id push-to-hub
several GPUs take `torchrun --nproc-per-node 4 -m setr train …` <- ddp-backend dist-backend dist-url
    gpus launcher local-rank master-port nnodes node-rank nproc-per-node num-gpus num-nodes
    world-size
the factor on the low-rank product is 2: alpha is twice the rank <- lora-alpha lora-scale
    lora-scaling
the file has opset 20, and takes any batch, height and width unless --size is given <- dynamic
    dynamic-axes dynamic-export opset
the folder of a run holds the weights with the best val mIoU; its last/ the newest state <-
    load-best-model-at-end metric-for-best-model monitor save-best save-last save-top-k
the report of `setr eval` has the confusion matrix, and thresholds of two classes <-
    confusion-matrix plots pr-curve
what a file marks as nodata is left out by itself <- nodata nodata-value
where images and masks are is said in data.yaml, which `setr init-data` drafts <- img-suffix
    mask-suffix seg-map-path seg-map-suffix train-dir train-images train-masks val-dir val-images
    val-masks
windows of `setr predict` overlap by a quarter, eval has --stride; tiles do not overlap <- overlap
""")
"""What to do here -> options in other toolkits, where no option of the command does the same."""

COMMANDS_HERE = _table("""
average <- soup
bench <- benchmark
doctor <- browse browse-dataset check inspect
eval <- analyze-logs calibrate confusion-matrix evaluate test val validate
eval MODEL DATA --compare OTHER <- compare significance
explain attention <- attention
explain features <- features
export <- quantize
init-data <- init
init-data --folds <- cross-validate crossval cv kfold
init-data --tile <- tile
merge-tokens <- algm compress prune tome
models <- get-flops info list-models
predict <- camera detect infer inference live segment stream track watch webcam
predict --save gpkg <- polygonize vectorize
predict A,B <- ensemble
score <- agreement iaa kappa
serve <- app
sweep <- grid hpo hyperparameter-search multirun optimize search tune
train <- finetune fit semantic semseg
""")
"""Command here -> its names in other toolkits."""

ELSEWHERE = {name: tuple(here.split()) for name, here in _by_name(OPTIONS_HERE).items()}
"""Name in another toolkit -> names here; the hint gives the first one that the command has."""

ADVICE = _by_name(ADVICE_HERE)
"""Name in another toolkit -> what to do here."""

COMMANDS_ELSEWHERE = _by_name(COMMANDS_HERE)
"""Command in another toolkit -> command here."""

VALUES_HERE = _table("""
adamw <- adam adamw-torch
bf16 <- bfloat16
cosine <- cos
cross_entropy <- bce ce crossentropy softmax
dice <- ce-dice dc-and-ce dice-ce dicece generalized-dice tversky
fp16 <- float16 half
fp32 <- float32
lovasz <- jaccard lovasz-softmax
onnx <- coreml engine tensorrt tflite trt
poly <- polynomial
torch <- exported-program pt2 torch-export torchscript
""")
"""Value of an option here -> the nearest ones in other toolkits; `dice` adds the cross-entropy."""

VALUES_ELSEWHERE = _by_name(VALUES_HERE)
"""Value in another toolkit -> value here."""

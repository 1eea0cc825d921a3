"""Imports go one way: a module may import only what stands before it in this list."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import setr

ORDER = (
    # processes
    *(
        "arguments.choices",
        "arguments.elsewhere",
        "arguments.elsewhere_python",
        "errors",
        "arguments.typed",
        "arguments.named_values",
        "_extras",
        "processes.quota",
        "processes.standard_streams",
        "processes.forked",
        "processes.progress",
        "processes.watch",
        "processes.differences",
        "processes.launch",
        "distributed",
        "processes.interrupt",
    ),
    # files and samples
    *(
        "reading.heif",
        "reading.made_folders",
        "reading.files",
        "writing",
        "reading.parsed",
        "processes.lock",
        "reading.urls",
        "reading.remote",
        "model_sources",
        "_torchvision",
        "_timm",
        "reading.pillow",
        "reading.decode",
        "colours",
        "labels",
        "images",
        "reading.lazy_image",
        "reading.masks",
        "reading.gdal",
        "reading.vectors",
        "bands",
        "reading.arrays",
        "reading.storage",
        "data.mask_names",
        "data.pairing",
        "data.configured",
        "data.layouts",
        "data.pairs",
        "data.scenes",
        "data.shards",
        "data.shard_writer",
        "data.class_tables",
        "data.data_yaml",
        "data.dataset",
        "data.hub_rows",
        "datasets",
        "wrapped",
    ),
    *(
        "data.own_augmentation",
        "crop_window",
        "transforms",
        "data.unlabelled",
        "data.order",
        "data.sampling",
        "data.workers",
        "data.loader",
        "data.name_patterns",
        "data.name_groups",
    ),
    # figures
    *(
        "metrics",
        "scores.boundary",
        "scores.calibration",
        "scores.intervals",
        "scores.by_group",
        "scores.regions",
        "scores.thresholds",
        "scores.label_quality",
        "scores.misplaced",
        "scores.suspects",
        "scores.scorecard",
        "scoring",
    ),
    # checks of a data set
    *(
        "data.survey_rows",
        "data.survey",
        "data.findings",
        "training.weighting",
        "doctor",
        "data.class_files",
        "data.mask_values",
        "data.class_draft",
        "data.split_draft",
        "data.band_draft",
        "data.tile_draft",
        "data.tile_files",
        "data.tile_folder",
        "data.fold_draft",
        "data.flat_pairs",
        "data.found_pairs",
        "data.mask_parts",
    ),
    *(
        "outlines.mask_files",
        "outlines.drawing",
        "outlines.index",
        "outlines.places",
        "outlines.layers",
        "outlines.labelme",
        "outlines.coco",
        "outlines.supervisely",
        "outlines.cvat",
        "outlines.via_forms",
        "outlines.via",
        "outlines.label_studio",
        "outlines.labelbox",
        "outlines.darwin",
        "outlines.panoptic",
        "outlines.json_files",
        "outlines.yolo",
        "outlines.files",
        "outlines.rendering",
        "outlines.mask_store",
        "outlines.masks",
        "outlines.class_masks",
        "outlines.binary_masks",
        "init_data",
    ),
    # networks and weights
    *(
        "layers.precision",
        "layers.products",
        "layers.attention",
        "layers.cpu_blocks",
        "layers.recompute",
        "layers.backbone",
        "layers.low_rank",
        "layers.rotary",
        "layers.antialiased",
        "layers.positions",
        "layers.adapted_vit",
        "layers.relative_bias",
        "layers.readout",
        "layers.window_attention",
        "layers.patch_embedding",
        "layers.flexible_vit",
        "layers.language_vit",
        "layers.talking_heads",
        "layers.gated_positions",
        "layers.gemma_vit",
        "layers.timm_vit",
        "layers.token_merging",
        "encoder",
        "hybrid",
        "layers.upsampling",
        "layers.upsampled_convolution",
        "layers.normalised",
        "layers.channel_norm",
        "layers.conv_bn_relu",
        "layers.joined_convolution",
        "decoders",
        "layers.linear",
        "layers.mask_transformer",
        "layers.dpt",
        "layers.upernet",
        "layers.feature_pyramid",
        "query_encoder",
        "layers.mask_classifier",
        "layers.outputs",
        "baselines",
        "catalog",
        "weight_files.torch_files",
        "weight_files.tensorfiles",
        "weight_files.naming",
        "weight_files.stored_grid",
        "weight_files.relative_bias",
        "weight_files.sam",
        "weight_files.upernet",
        "weight_files.flexible_layouts",
        "weight_files.frames",
        "weight_files.multimodal_layouts",
        "weight_files.encoder_layouts",
        "weight_files.dpt_layouts",
        "weight_files.stem",
        "weight_files.transformers_files",
        "weight_files.smp",
        "weight_files.setr_layouts",
        "weight_files.eomt",
        "weight_files.lightly_layouts",
        "weight_files.beit_layouts",
        "weight_files.dialects",
        "weight_files.recorded_text",
        "weight_files.recorded_form",
    ),
    *(
        "weight_files.architecture",
        "weight_files.load_report",
        "weight_files.form",
        "weight_files.misfits",
        "weights",
        "weight_files.pretrained",
        "weight_files.weight_settings",
        "weight_files.licences",
        "parts",
        "model",
        "lora",
        "kernels.row_blocks",
        "kernels.region_losses",
        "kernels.divergence",
        "kernels.triton_loss",
        "mask_loss",
        "losses",
    ),
    *(
        "processes.machine",
        "processes.faults",
        "protocols",
        "kernels.best_class",
        "kernels.resized_rows",
        "kernels.windows",
        "kernels.capture",
        "kernels.recorded",
        "inference",
        "arguments.options",
        "arguments.usage",
        "arguments.help_text",
        "reading.typed_yaml",
        "model_info",
        "pages.model_card",
        "weight_files.mapped_model",
        "hub",
        "weight_files.averaging",
        "weight_files.linear_head",
        "weight_files.delta",
        "weight_files.recorded_test",
        "weight_files.published",
        "weight_files.foreign",
        "exporting.sessions",
        "exporting.runtime",
        "ensemble",
        "opening",
        "training.complexity",
    ),
    "training.single_value",
    "training.memory",
    # runs
    *(
        "provenance",
        "training.parallel",
        "checkpoint",
        "training.train_config",
        "config",
        "training.splits",
        "training.settings",
        "variations",
        "paper_tables",
        "paper",
        "fitting",
        "scores.split_loss",
        "scores.scored_images",
        "evaluation",
        "scores.adjustment",
        "training.optim",
        "published_recipes",
        "modern_recipes",
        "recipes",
        "training.named_config",
    ),
    *(
        "scores.submissions",
        "training.facts",
        "training.loss_scale",
    ),
    *(
        "pages.lettering",
        "pages.montage",
        "training.samples",
        "trackers",
        "training.runfolder",
        "training.snapshot",
        "training.normalisation",
        "training.build",
        "training.resolved",
        "training.pixel_counts",
        "training.repeats",
    ),
    *(
        "training.features",
        "training.sources",
        "training.teacher",
    ),
    *(
        "estimate",
        "training.telemetry",
        "training.profiling",
        "training.best",
        "training.graphed",
        "training.updates",
        "training.plan",
        "training.timing",
        "training.preparation",
        "training.run",
        "engine",
        "median_stop",
        "trials",
    ),
    # predictions
    *(
        "prediction.interlaced",
        "prediction.video",
        "prediction.live",
        "prediction.several",
        "prediction.polygons",
        "prediction.ground",
        "prediction.annotations",
        "prediction.rasters",
        "prediction.model_bands",
    ),
    *(
        "prediction.kinds",
        "prediction.shares",
        "prediction.chosen",
        "prediction.late_scores",
        "prediction.encoding",
        "prediction.display",
        "result",
    ),
    *(
        "prediction.outputs",
        "prediction.placed",
        "predictor",
        "loading",
        "prediction.filming",
        "prediction.mapping",
        "prediction.streams",
    ),
    *(
        "prediction.inputs",
        "prediction.output_check",
        "prediction.passes",
        "batch",
        "prediction.manifest",
        "prediction.settled",
        "prediction.packs",
        "prediction.batch_ray",
        "prediction.tally",
    ),
    *(
        "exporting.graphs",
        "exporting.quantize",
        "exporting.onnx_file",
        "exporting.export_check",
        "export",
        "exporting.bench_row",
        "bench",
        "token_shares",
    ),
    # pages and tables
    *(
        "pages.tables",
        "pages.group_tables",
        "pages.page",
        "pages.evaluation_tables",
        "pages.charts",
        "pages.loss_curves",
        "pages.sweep_page",
        "pages.gallery",
        "pages.evaluation_page",
        "review",
        "pages.review_tables",
        "pages.review_page",
        "picking",
        "pages.pick_page",
        "pages.run_page",
        "pages.doctor_page",
        "paper_results",
        "pages.results_tables",
        "sweeping",
    ),
    *(
        "captured_attention",
        "explain",
        "pages.figures",
    ),
    "serve",
    # the command line
    *(
        "commands",
        "cli",
    ),
)
SOURCE = Path(setr.__file__).parent
WHOLE = {"serve", "commands"}  # packages whose modules have one place


def place(path: Path) -> str:
    """`encoder`, `layers.attention`, or the name of a package that has one place."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0] if parts[0] in WHOLE else ".".join(parts)


def imported(path: Path) -> set[str]:
    """The places a file imports from, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.update([node.module or "", *(f"{node.module}.{a.name}" for a in node.names)])
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    names = {name.removeprefix("setr.") for name in found if name.startswith("setr.")}
    return {".".join(name.split(".")[:length]) for name in names for length in (1, 2)} & set(ORDER)


def test_every_module_has_a_place():
    modules = [path for path in SOURCE.rglob("*.py") if path.stem not in ("__init__", "__main__")]
    assert {place(path) for path in modules} == set(ORDER)


def test_imports_go_one_way():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        module = place(path)
        if module not in ORDER:
            continue
        for name in imported(path):
            if name != module and ORDER.index(name) > ORDER.index(module):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_public_names_have_types():
    """Type checkers and editors read imports that never run; they name what is loaded instead."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    read = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("setr.")
        for alias in node.names
    }
    assert read == {name: f"setr.{module}" for name, module in setr._EXPORTS.items()}


def documented() -> Iterator[tuple[str, str, set[str]]]:
    """The public functions, classes and methods: name, docstring and names of the arguments."""
    for name in sorted(setr._EXPORTS):
        found = getattr(setr, name)
        methods = vars(found).items() if inspect.isclass(found) else ()
        functions = {f"{name}.{key}": f for key, f in methods if inspect.isfunction(f)}
        for key, function in {name: found, **functions}.items():
            if "._" not in key:
                given = set(inspect.signature(function).parameters) - {"self"}
                yield key, inspect.getdoc(function) or "", given


def test_lists_of_arguments_are_complete():
    wrong = []
    for name, text, given in documented():
        assert text, name
        listed = re.search(r"^Args:\n((?: .*\n?|\n(?= ))*)", text, re.MULTILINE)
        if listed and set(re.findall(r"^ {4}(\w+):", listed[1], re.MULTILINE)) != given:
            wrong.append(name)
    assert not wrong


def test_packages_need_each_other_one_way():
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    needs: dict[str, set[str]] = {package: set() for package in packages}
    for package in packages:
        for path in (SOURCE / package).rglob("*.py"):
            needs[package] |= {name.split(".")[0] for name in imported(path)} & packages
        needs[package].discard(package)
    assert len(list(graphlib.TopologicalSorter(needs).static_order())) == len(packages)


def test_packages_are_empty():
    """What a package offers stands in its modules, so importing one module loads no other."""
    for path in SOURCE.glob("*/__init__.py"):
        assert len(ast.parse(path.read_text(encoding="utf-8")).body) == 1, path

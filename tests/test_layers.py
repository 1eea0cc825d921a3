"""Imports go one way: a module may import only what stands before it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

import setr

ORDER = (
    # processes
    *("choices", "errors", "quota", "progress", "watch", "launch", "distributed", "interrupt"),
    # files and samples
    *(
        "files",
        "lock",
        "remote",
        "_torchvision",
        "_timm",
        "decode",
        "labels",
        "images",
        "masks",
        "gdal",
        "bands",
        "urls",
        "arrays",
        "storage",
        "pairing",
        "configured",
        "layouts",
        "pairs",
        "scenes",
        "shards",
        "shard_writer",
        "data_yaml",
        "dataset",
        "hub_rows",
        "datasets",
        "wrapped",
    ),
    *("transforms", "loader"),
    # figures
    *("metrics", "boundary", "calibration", "intervals", "regions", "scorecard", "scoring"),
    # checks of a data set
    *("survey_rows", "survey", "doctor", "class_files", "class_draft", "band_draft"),
    *(
        "outlines",
        "outline_index",
        "outline_geojson",
        "outline_supervisely",
        "outline_cvat",
        "outline_via",
        "outline_label_studio",
        "outline_darwin",
        "outline_panoptic",
        "outline_json",
        "outline_files",
        "outline_masks",
        "class_masks",
        "init_data",
    ),
    # networks and weights
    *(
        "products",
        "attention",
        "cpu_blocks",
        "recompute",
        "backbone",
        "encoder",
        "hybrid",
        "upsampled_convolution",
        "normalised",
        "decoders",
        "linear",
        "baselines",
        "catalog",
        "tensorfiles",
        "naming",
        "setr_layouts",
        "encoder_layouts",
        "dialects",
    ),
    *(
        "architecture",
        "weights",
        "pretrained",
        "model",
        "lora",
        "row_blocks",
        "region_losses",
        "triton_loss",
        "losses",
    ),
    *(
        "machine",
        "faults",
        "protocols",
        "best_class",
        "windows",
        "inference",
        "options",
        "elsewhere",
        "usage",
        "typed_yaml",
        "model_info",
        "model_card",
        "hub",
        "averaging",
        "linear_head",
        "foreign",
        "runtime",
        "complexity",
    ),
    "memory",
    # runs
    *(
        "provenance",
        "parallel",
        "checkpoint",
        "weighting",
        "train_config",
        "precision",
        "config",
        "splits",
        "settings",
        "paper_tables",
        "paper",
        "evaluation",
        "adjustment",
        "optim",
        "recipes",
        "named_config",
    ),
    *("submissions", "facts", "loss_scale"),
    *("montage", "samples", "trackers", "runfolder", "snapshot", "normalisation", "build"),
    *("features", "sources"),
    *("estimate", "telemetry", "profiling", "best", "graphed", "updates", "engine"),
    # predictions
    *("video", "polygons", "annotations", "rasters", "model_bands"),
    *("kinds", "unsure", "late_scores", "result"),
    *("outputs", "predictor", "filming", "mapping", "streams"),
    *("inputs", "passes", "batch", "manifest", "settled", "packs", "batch_ray", "tally"),
    *("graphs", "quantize", "onnx_file", "export_check", "export", "bench_row", "bench"),
    # pages and tables
    *("tables", "page", "charts", "gallery", "report", "doctor_page", "results"),
    *("explain", "figures"),
    "serve",
    # the command line
    *("cli", "commands"),
)
SOURCE = Path(setr.__file__).parent


def imported(path: Path) -> set[str]:
    """First-level setr modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "setr":
            found.update(alias.name for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("setr."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found.update(a.name.split(".")[1] for a in node.names if a.name.startswith("setr."))
    return found


def test_every_module_has_a_place():
    names = {p.stem for p in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    names |= {p.parent.name for p in SOURCE.glob("*/__init__.py")}
    assert names == set(ORDER)


def test_imports_go_one_way():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        module = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if module in ("__init__", "__main__"):
            continue
        for name in imported(path):
            if name != module and ORDER.index(name) > ORDER.index(module):
                wrong.append(f"{module} imports {name}")
    assert not wrong

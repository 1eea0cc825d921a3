"""The manifest: every run behind the tables, as a recipe, the settings changed in it, and seeds.

A row of a table is one experiment; each of its seeds is a run. What a row changes is written as on
the command line of `setr train`. Settings were chosen on train and val; `test` is never a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Literal

Trainer = Literal["setr", "mmseg", "segformer", "upernet", "yolo"]

SEEDS = (0, 1, 2)
LONG, MAIN, SHORT = 1800, 1000, 600
"""Steps of 8 crops: 39, 22 and 13 passes over the 367 training images."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: of the row; its runs are NAME-s0, NAME-s1, …
        title: what the table calls it.
        settings: changes to the recipe, by dotted name.
        recipe: of `setr recipes`.
        against: name of the row its gain is counted from.
        every_seed: run all seeds at once; otherwise seeds 1 and 2 follow only where seed 0 is
            within two points of the row it is compared with.
        group: of switches that exclude each other.
        multi_scale: also test with six scales and flip.
        trainer: who trains.
        weights: starts from the pretrained encoder.
        smoke: part of the smoke test.
    """

    name: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: str = "camvid_setr_mla_small"
    against: str | None = None
    every_seed: bool = False
    group: str = ""
    multi_scale: bool = False
    trainer: Trainer = "setr"
    weights: bool = True
    smoke: bool = False


def schedule(steps: int) -> dict[str, Any]:
    """A schedule of this length that looks at the validation clip at its end.

    Logits are not adjusted on that clip, as the recipes would: switches are judged by it, the runs
    on train+val have seen it, and the rivals do nothing of the kind.
    """
    return {
        "train.steps": steps,
        "train.eval_every": 0,
        "train.save_every": max(1, steps // 2),
        "optim.warmup_steps": min(200, steps // 10),
        "train.adjust_logits": False,
        "eval.multi_scale": False,
        "data.workers": 3,
    }


def crops(height: int, width: int) -> dict[str, Any]:
    """Crops of this size, and tests in windows of it, two thirds apart."""
    return {
        "data.crop_size": (height, width),
        "eval.window": (height, width),
        "eval.stride": (height * 2 // 3, width * 2 // 3),
    }


SMALL = {"data.short_side": 360, **crops(252, 336)}
"""Images at their own 480x360: less than half of the main result's tokens, for comparisons."""

AVERAGE = {"train.ema": 0.99}
"""Of the weights over the last hundred steps; the recipes' 0.999 is for their 8000 steps."""

JOINED = {"data.train_split": "train+val"}
"""Trained on both splits; nothing is chosen: the weights after the last step are kept."""

# --- main result ----------------------------------------------------------------------------------

DECODERS = {"naive": "SETR-Naive", "pup": "SETR-PUP", "mla": "SETR-MLA"}


def _main() -> list[Row]:
    rows = []
    for split, extra in (("", {}), ("_trainval", JOINED)):
        for key, title in DECODERS.items():
            rows.append(
                Row(
                    f"{key}{split}",
                    title + (", train+val" if split else ""),
                    {**schedule(MAIN), **AVERAGE, **extra},
                    recipe=f"camvid_setr_{key}_small",
                    every_seed=True,
                    multi_scale=True,
                    smoke=f"{key}{split}" == "naive",
                )
            )
    return rows


# --- the recipes as they are ----------------------------------------------------------------------


def _recipes() -> list[Row]:
    """The long recipes, with their own schedule and choice of the best weights on val."""
    settings = {"eval.multi_scale": False, "data.workers": 6}  # no second test on val
    return [
        Row(
            f"{key}_recipe",
            f"{title}, the whole recipe",
            settings,
            recipe=f"camvid_setr_{key}_small",
            against=key,
            multi_scale=True,
        )
        for key, title in DECODERS.items()
    ]


# --- what the field knows, one switch at a time ---------------------------------------------------

PLAIN = {
    **schedule(SHORT),
    "optim.layer_decay": 1.0,
    "train.ema": 0.0,
    "train.class_weights": "none",
    "data.photometric": False,
    **SMALL,
}
"""The recipe without any of the switches."""

SWITCHES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "decay": ("layer-wise decay 0.75", "", {"optim.layer_decay": 0.75}),
    "ema": ("moving average of the weights", "", {"train.ema": 0.995}),
    "photometric": ("photometric distortion", "", {"data.photometric": True}),
    "weights": (
        "class weights, root of median frequency",
        "balance",
        {"train.class_weights": "sqrt_median_frequency"},
    ),
    "rare": ("half of the crops around rare classes", "balance", {"data.rare_class_crops": 0.5}),
    "input546": (
        "input enlarged to 546x728",
        "tokens",
        {"data.short_side": 546, **crops(378, 504)},
    ),
    "input728": (
        "input enlarged to 728x971",
        "tokens",
        {"data.short_side": 728, **crops(504, 672)},
    ),
    "stride10": ("patches overlap, stride 10", "tokens", {"model.patch_stride": 10}),
    "stride8": ("patches overlap, stride 8", "tokens", {"model.patch_stride": 8}),
    "long": ("longer schedule", "", schedule(LONG)),
    "drop": ("stochastic depth 0.1", "", {"model.drop_path": 0.1}),
    "lovasz": ("Lovász added to the loss", "", {"train.loss": "lovasz"}),
}
"""Name -> (title, group of switches that exclude each other, settings)."""


def _steps() -> list[Row]:
    rows = [Row("plain", "none of the switches", PLAIN, every_seed=True, smoke=True)]
    for key, (title, group, settings) in SWITCHES.items():
        rows.append(
            Row(
                f"with_{key}",
                f"+ {title}",
                {**PLAIN, **settings},
                against="plain",
                group=group,
                smoke=key == "stride8",
            )
        )
    adjusted = {**PLAIN, "train.adjust_logits": True}
    title = "+ logits adjusted on val (to which its figure on val is fitted)"
    return [*rows, Row("adjusted", title, adjusted, against="plain")]


MIN_GAIN = 0.3
"""Points of mIoU on the validation clip below which a gain counts for none."""


def combined(gains: dict[str, float], noise: float) -> dict[str, Any]:
    """Settings of all switches that helped on the validation clip, at the long schedule.

    Args:
        gains: mIoU on val over the plain row, in points, by switch.
        noise: standard deviation over the plain row's seeds; gains up to it do not count.
    """
    least = max(noise, MIN_GAIN)
    best: dict[str, str] = {}
    for key, gain in gains.items():
        place = SWITCHES[key][1] or key
        if gain > least and gain > gains.get(best.get(place, ""), 0.0):
            best[place] = key
    settings = dict(PLAIN)
    for key in SWITCHES:
        if key in best.values():
            settings |= SWITCHES[key][2]
    return {**settings, **schedule(LONG)}


def best_rows(settings: dict[str, Any]) -> list[Row]:
    """The switches together, and the same trained on train+val."""
    return [
        Row("best", "switches that helped on val", settings, every_seed=True, multi_scale=True),
        Row(
            "best_trainval",
            "the same, train+val",
            {**settings, **JOINED},
            every_seed=True,
            multi_scale=True,
        ),
    ]


# --- the paper's questions ------------------------------------------------------------------------

RANDOM = {"model.pretrained": None, "optim.layer_decay": 1.0}
"""Random weights; layers then all learn at the same rate."""


QUESTION = {**schedule(SHORT), **SMALL, **AVERAGE}
"""The recipe on small images, with a short schedule."""


def _question(
    name: str, title: str, settings: dict[str, Any], against: str = "mla_short", **other: Any
) -> Row:
    return Row(name, title, {**QUESTION, **settings}, against=against, **other)


def _questions() -> list[Row]:
    rows = [Row("mla_short", "SETR-MLA, pretrained", QUESTION, every_seed=True, smoke=True)]
    for key in ("naive", "pup"):
        recipe = f"camvid_setr_{key}_small"
        rows.append(_question(f"{key}_short", f"{DECODERS[key]}, pretrained", {}, recipe=recipe))
    for key, title in DECODERS.items():
        recipe = f"camvid_setr_{key}_small"
        rows.append(
            _question(f"{key}_random", f"{title}, random weights", RANDOM, f"{key}_short",
                      recipe=recipe, weights=False)
        )  # fmt: skip
    for key, title in DECODERS.items():
        recipe = f"camvid_setr_{key}_small"
        rows.append(
            _question(f"{key}_no_aux", f"{title}, no auxiliary losses", {"model.aux": False},
                      f"{key}_short", recipe=recipe)
        )  # fmt: skip
    for name, title in (
        ("fcn_r101", "FCN, ResNet-101"),
        ("semantic_fpn_r101", "Semantic FPN, ResNet-101"),
        ("hybrid_base", "Hybrid (ResNet-50 + T-Base, Naive)"),
    ):
        baseline = {**RANDOM, "model.name": name, "model.encoder": None}
        rows.append(
            _question(name, f"{title}, random weights", baseline, "mla_random", weights=False)
        )
    for factor, text in ((0.5, "half"), (2, "twice"), (4, "four times")):
        steps = int(SHORT * factor)
        rows.append(_question(f"steps_{steps}", f"{text} the steps", schedule(steps)))
    for crop in ((168, 224), (336, 448)):
        rows.append(_question(f"crop_{crop[0]}", f"crops of {crop[0]}x{crop[1]}", crops(*crop)))
    rows.append(
        _question("bilinear", "position embeddings bilinear", {"model.pos_interp": "bilinear"})
    )
    for taps in ((9, 10, 11, 12), (1, 4, 8, 12), (6, 8, 10, 12)):
        name = "taps_" + "_".join(map(str, taps))
        text = ", ".join(map(str, taps))
        rows.append(
            _question(name, f"heads read blocks {text}", {"model.taps": taps}, smoke=taps[0] == 9)
        )
    rows.append(_question("frozen", "encoder frozen", {"model.freeze": -1}))
    rows.append(_question("lora16", "encoder by LoRA, rank 16", {"model.lora_rank": 16}))
    return rows


# --- rivals: the same images, steps, batch and crop -----------------------------------------------


def _rivals() -> list[Row]:
    rows = [
        Row(
            f"mmseg_pup{start}",
            f"SETR-PUP, mmsegmentation 1.2.2, {text}",
            QUESTION,
            against=f"pup_{ours}",
            trainer="mmseg",
            weights=weights,
            smoke=weights,
        )
        for start, ours, text, weights in (
            ("", "short", "pretrained", True),
            ("_random", "random", "random weights", False),
        )
    ]
    return [
        *rows,
        Row(
            "upernet",
            "UPerNet on the same encoder, transformers",
            QUESTION,
            against="pup_short",
            trainer="upernet",
            smoke=True,
        ),
        Row(
            "segformer_b2",
            "SegFormer-B2, transformers",
            QUESTION,
            against="pup_random",
            trainer="segformer",
            weights=False,
            smoke=True,
        ),
        Row(
            "yolo26n",
            "YOLO26n-sem, Ultralytics, random weights",
            QUESTION,
            against="pup_random",
            trainer="yolo",
            weights=False,
            smoke=True,
        ),
    ]


TABLES: dict[str, list[Row]] = {
    "main": _main(),
    "recipes": _recipes(),
    "steps": _steps(),
    "questions": _questions(),
    "rivals": _rivals(),
}


def select(rows: list[Row], patterns: list[str] | None) -> list[Row]:
    """Rows whose name fits one of the shell patterns; all without patterns."""
    return [r for r in rows if not patterns or any(fnmatch(r.name, p) for p in patterns)]


def shrunk(row: Row) -> Row:
    """The row with a model, images and a schedule of a few seconds, for the smoke test."""
    settings = {
        **row.settings,
        "model.name": row.settings.get("model.name", row.recipe[7:]).replace("small", "nano"),
        "model.encoder": None,
        "model.channels": 16,
        "model.img_size": 64,
        **crops(48, 64),
        "data.short_side": 48,
        **schedule(2),
        "train.eval_every": 0,
        "data.workers": 0,
        "train.batch_size": 2,
        "train.log_every": 1,
        "train.precision": "fp32",
    }
    if "model.taps" in settings:
        settings["model.taps"] = (3, 4, 5, 6)
    if "model.patch_stride" in settings:
        settings["model.patch_stride"] = 6
    return Row(**{**row.__dict__, "settings": settings, "weights": False})

"""The paper's Tables 2 to 7 as printed, and the names of the recipes that train their systems.

Rows of other methods have no recipe.
"""

from __future__ import annotations

from typing import NamedTuple

IMAGES = {"cityscapes": (2975, 500), "ade20k": (20210, 2000), "pascal_context": (4998, 5105)}
"""Training and validation images of the paper's data sets (section 4.1)."""


class Row(NamedTuple):
    """One result of a table.

    Attributes:
        table: its number.
        method: as printed.
        setting: pretraining or backbone, schedule, data set and scales, as far as needed to
            identify the result.
        miou: in percent.
        recipe: name of the recipe that trains it; empty for other methods.
        protocol: `single_scale`, `multi_scale`, or `test_server` if the truth is not public.
        pixel_accuracy: in percent, where printed.
    """

    table: int
    method: str
    setting: str
    miou: float
    recipe: str
    protocol: str = "single_scale"
    pixel_accuracy: float | None = None


class System(NamedTuple):
    """Data set, model, pretraining and schedule (steps in thousands), which identify a recipe."""

    dataset: str
    model: str
    pretraining: str
    steps: int
    splits: str = ""

    @property
    def name(self) -> str:
        """Name of the recipe."""
        parts = (self.dataset, self.model, self.pretraining, self.splits)
        return "_".join([*filter(None, parts), f"{self.steps}k"])


# Table 2: method, model, pretraining, mIoU after 40k and 80k steps
_TABLE_2 = (
    ("FCN", "fcn_r101", "", 73.93, 75.52),
    ("Semantic FPN", "semantic_fpn_r101", "", None, 75.80),
    ("Hybrid-Base", "hybrid_base", "random", 74.48, 77.36),
    ("Hybrid-Base", "hybrid_base", "", 76.76, 76.57),
    ("Hybrid-DeiT", "hybrid_base", "deit", 77.42, 78.28),
    ("SETR-Naïve", "setr_naive_large", "", 77.37, 77.90),
    ("SETR-MLA", "setr_mla_large", "", 76.65, 77.24),
    ("SETR-PUP", "setr_pup_large", "", 78.39, 79.34),
    ("SETR-PUP", "setr_pup_large", "random", 42.27, None),
    ("SETR-Naïve-Base", "setr_naive_base", "", 75.54, 76.25),
    ("SETR-MLA-Base", "setr_mla_base", "", 75.60, 76.87),
    ("SETR-PUP-Base", "setr_pup_base", "", 76.71, 78.02),
    ("SETR-Naïve-DeiT", "setr_naive_base", "deit", 77.85, 78.66),
    ("SETR-MLA-DeiT", "setr_mla_base", "deit", 78.04, 78.98),
    ("SETR-PUP-DeiT", "setr_pup_base", "deit", 78.79, 79.45),
)
_PRINTED_PRETRAINING = {"": "21K", "random": "R", "deit": "1K", "in21k": "21K"}
# Table 3: method, model, pretraining, ADE20K (160k), Cityscapes and its schedule
_TABLE_3 = (
    ("FCN", "fcn_r101", "", 39.91, 73.93, 40),
    ("FCN", "fcn_r101", "in21k", 42.17, 76.38, 40),
    ("SETR-MLA", "setr_mla_large", "", 48.64, 76.65, 40),
    ("SETR-PUP", "setr_pup_large", "", 48.58, 78.39, 40),
    ("SETR-MLA-DeiT", "setr_mla_base", "deit", 46.15, 78.98, 80),
    ("SETR-PUP-DeiT", "setr_pup_base", "deit", 46.24, 79.45, 80),
)
# Tables 4, 5, 6: method, model, schedule, single-scale and multi-scale (mIoU, pixel accuracy)
_SINGLE_AND_MULTI = {
    (4, "ade20k"): (
        ("FCN", "fcn_r101", 160, (39.91, 79.52), (41.40, 80.65)),
        ("SETR-Naïve", "setr_naive_large", 160, (48.06, 82.40), (48.80, 82.92)),
        ("SETR-PUP", "setr_pup_large", 160, (48.58, 82.90), (50.09, 83.58)),
        ("SETR-MLA", "setr_mla_large", 160, (48.64, 82.64), (50.28, 83.46)),
    ),
    (5, "pascal_context"): (
        ("FCN", "fcn_r101", 80, (44.47, None), (45.74, None)),
        ("SETR-Naïve", "setr_naive_large", 80, (52.89, None), (53.61, None)),
        ("SETR-PUP", "setr_pup_large", 80, (54.40, None), (55.27, None)),
        ("SETR-MLA", "setr_mla_large", 80, (54.87, None), (55.83, None)),
    ),
    (6, "cityscapes"): (
        ("FCN", "fcn_r101", 40, (73.93, None), (75.14, None)),
        ("FCN", "fcn_r101", 80, (75.52, None), (76.61, None)),
        ("SETR-PUP", "setr_pup_large", 40, (78.39, None), (81.57, None)),
        ("SETR-PUP", "setr_pup_large", 80, (79.34, None), (82.15, None)),
    ),
}
# Tables 4 to 7, other methods: method, backbone, mIoU and pixel accuracy
_OTHERS: dict[int, tuple[tuple[str, str, float, float | None], ...]] = {
    4: (
        ("EncNet", "ResNet-101", 44.65, 81.69),
        ("PSPNet", "ResNet-269", 44.94, 81.69),
        ("DMNet", "ResNet-101", 45.50, None),
        ("CCNet", "ResNet-101", 45.22, None),
        ("Strip pooling", "ResNet-101", 45.60, 82.09),
        ("APCNet", "ResNet-101", 45.38, None),
        ("OCNet", "ResNet-101", 45.45, None),
    ),
    5: (
        ("PSPNet", "ResNet-101", 47.80, None),
        ("DANet", "ResNet-101", 52.60, None),
        ("EMANet", "ResNet-101", 53.10, None),
        ("SVCNet", "ResNet-101", 53.20, None),
        ("Strip pooling", "ResNet-101", 54.50, None),
        ("GFFNet", "ResNet-101", 54.20, None),
        ("APCNet", "ResNet-101", 54.70, None),
    ),
    6: (
        ("PSPNet", "ResNet-101", 78.50, None),
        ("DeepLab-v3", "ResNet-101, MS", 79.30, None),
        ("NonLocal", "ResNet-101", 79.10, None),
        ("CCNet", "ResNet-101", 80.20, None),
        ("GCNet", "ResNet-101", 78.10, None),
        ("Axial-DeepLab-XL", "Axial-ResNet-XL, MS", 81.10, None),
        ("Axial-DeepLab-L", "Axial-ResNet-L, MS", 81.50, None),
    ),
    7: (
        ("PSPNet", "ResNet-101", 78.40, None),
        ("DenseASPP", "DenseNet-161", 80.60, None),
        ("BiSeNet", "ResNet-101", 78.90, None),
        ("PSANet", "ResNet-101", 80.10, None),
        ("DANet", "ResNet-101", 81.50, None),
        ("OCNet", "ResNet-101", 80.10, None),
        ("CCNet", "ResNet-101", 81.90, None),
        ("Axial-DeepLab-L", "Axial-ResNet-L", 79.50, None),
        ("Axial-DeepLab-XL", "Axial-ResNet-XL", 79.90, None),
    ),
}


def systems() -> dict[str, System]:
    """All systems by the name of their recipe, in the order of the tables."""
    found: list[System] = []
    for _, model, pretraining, *figures in _TABLE_2:
        found += [
            System("cityscapes", model, pretraining, steps)
            for steps, miou in zip((40, 80), figures, strict=True)
            if miou
        ]
    for _, model, pretraining, _, _, steps in _TABLE_3:
        found.append(System("ade20k", model, pretraining, 160))
        found.append(System("cityscapes", model, pretraining, steps))
    for (_, dataset), lines in _SINGLE_AND_MULTI.items():
        found += [System(dataset, model, "", steps) for _, model, steps, *_ in lines]
    for splits in ("test_server", "coarse"):
        found.append(System("cityscapes", "setr_pup_large", "", 100, splits))
    found.append(System("ade20k", "setr_mla_large", "", 160, "test_server"))  # section 4.3
    return {system.name: system for system in found}


def rows(table: int | None = None) -> list[Row]:
    """All rows in printed order.

    Args:
        table: 2 to 7; all by default.
    """
    found: list[Row] = []
    for method, model, pretraining, *figures in _TABLE_2:
        printed = "1K" if "r101" in model else _PRINTED_PRETRAINING[pretraining]
        printed = "21K" if method == "Hybrid-DeiT" else printed  # as the paper prints it
        for steps, miou in zip((40, 80), figures, strict=True):
            if miou:
                name = System("cityscapes", model, pretraining, steps).name
                found.append(Row(2, method, f"{printed}, {steps}k", miou, name))
    for method, model, pretraining, ade, cityscapes, steps in _TABLE_3:
        baseline = model == "fcn_r101" and not pretraining
        printed = "1K" if baseline else _PRINTED_PRETRAINING[pretraining]
        for dataset, title, count, miou in (
            ("ade20k", "ADE20K", 160, ade),
            ("cityscapes", "Cityscapes", steps, cityscapes),
        ):
            name = System(dataset, model, pretraining, count).name
            found.append(Row(3, method, f"{printed}, {title}", miou, name))
    for (number, dataset), lines in _SINGLE_AND_MULTI.items():
        for method, model, steps, single, multi in lines:
            if model != "fcn_r101" and found[-1].method == "FCN":
                found += _other_rows(number)
            name = System(dataset, model, "", steps).name
            for short, protocol, (miou, accuracy) in (
                ("SS", "single_scale", single),
                ("MS", "multi_scale", multi),
            ):
                batch = "" if number == 6 else "16, "
                found.append(
                    Row(number, method, f"{batch}{steps}k, {short}", miou, name, protocol, accuracy)
                )
    found += _other_rows(7)
    for setting, splits, miou in (("100k", "test_server", 81.08), ("‡", "coarse", 81.64)):
        name = System("cityscapes", "setr_pup_large", "", 100, splits).name
        found.append(Row(7, "SETR-PUP", setting, miou, name, "test_server"))
    return [row for row in found if table in (None, row.table)]


def _other_rows(table: int) -> list[Row]:
    protocol = "test_server" if table == 7 else "single_scale"
    return [
        Row(table, method, backbone, miou, "", protocol, accuracy)
        for method, backbone, miou, accuracy in _OTHERS[table]
    ]


def describe(system: System) -> str:
    """The paper's results for a recipe and their tables, in one line."""
    short = {"single_scale": "SS", "multi_scale": "MS", "test_server": "test server"}
    own = [row for row in rows() if row.recipe == system.name]
    if not own:
        return "paper: first on the test server (section 4.3)"
    figures = dict.fromkeys(f"{row.miou:.2f} {short[row.protocol]}" for row in own)
    tables = sorted({row.table for row in own})
    needs = (
        "; needs --model.pretrained FILE, an ImageNet-21k ResNet-101 (the paper's is not public)"
    )
    more = needs if _needs_file(system.name) else ""
    return f"paper: mIoU {', '.join(figures)} (Table {', '.join(map(str, tables))}){more}"


def command(recipe: str) -> str:
    """The command that trains a recipe; with a weight file if its weights are not public."""
    return f"setr train {recipe}{' --model.pretrained FILE' if _needs_file(recipe) else ''}"


def _needs_file(recipe: str) -> bool:
    """Whether it starts from the authors' unreleased ImageNet-21k ResNet-101."""
    found = systems().get(recipe)
    return found is not None and found.pretraining == "in21k"

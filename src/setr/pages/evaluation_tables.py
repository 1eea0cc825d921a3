"""Parts of an evaluation's page: regions, thresholds and groups of images."""

from __future__ import annotations

from typing import Any

from setr.labels import Labels
from setr.pages.page import bar, dot, escape, percent, table

SHOWN = 200
"""Groups in the table; groups.csv has all."""
_ROWS = 10
"""The curve of thresholds is shown at multiples of one over this."""


def region_table(regions: dict[str, Any], labels: Labels) -> str:
    """Table of the connected regions of each class that has any, in truth and prediction."""
    colours = dict(zip(labels.classes, labels.colours, strict=True))
    head = ["class", "labelled", "found, %", "touched, %", "predicted", "right, %", "touching, %"]
    rows = [
        [
            f"{dot(colours[name])}{escape(name)}",
            *(str(found["regions"]), percent(found["found"]), percent(found["touched"])),
            *(str(found["predicted"]), percent(found["right"]), percent(found["touching"])),
        ]
        for name, found in regions.items()
        if found["regions"] or found["predicted"]
    ]
    return table(head, rows) + (
        '<p class="note">Connected regions of one class. A labelled region is found if at least '
        "half of its pixels are predicted as its class (recall of regions), touched if any is. A "
        "predicted region is right if at least half of its pixels are labelled as its class "
        "(precision of regions), touching if any is.</p>"
    )


def threshold_part(figures: dict[str, Any]) -> list[str]:
    """Table of precision and recall of the rarer of two classes by threshold; else nothing."""
    curve = figures.get("thresholds")
    if not curve:
        return []
    keys = ("precision", "recall", "dice")
    best = curve["threshold"].index(curve["best"]["threshold"])
    places = {i for i, t in enumerate(curve["threshold"]) if not round(t * 100) % (100 // _ROWS)}
    rows = []
    for i in sorted({*places, best}):
        shown = f"{curve['threshold'][i]:.2f}"
        shown = f"<b>{shown}, best Dice</b>" if i == best else shown
        rows.append([shown, *(percent(curve[key][i]) for key in keys)])
    return [
        f"<h2>Pixels of {escape(curve['class'])} by threshold</h2>",
        table(["threshold", "precision, %", "recall, %", "Dice, %"], rows),
        '<p class="note">A pixel has the class if its probability is at least the threshold; the '
        f"model takes 0.5. Average precision {percent(curve['average_precision'])} %. <code>setr "
        "adjust MODEL DATA -o OUT --threshold T</code> writes a model with another threshold; "
        "choose it on a split that is not the one of the final test.</p>",
    ]


def group_part(figures: dict[str, Any]) -> list[str]:
    """Tables of Dice by class, of the average group and of each group; nothing without groups."""
    if "groups" not in figures:
        return []
    groups = figures["groups"]
    found = {name: dice for name, dice in groups["dice"].items() if dice["mean"] is not None}
    means = [
        [
            *(escape(name), bar(dice["mean"]), str(dice["groups"])),
            " to ".join(map(percent, dice["interval"] or ())) or "n/a",
        ]
        for name, dice in found.items()
    ]
    each = list(groups["each"].items())
    rows = [
        [escape(name), str(row["images"]), *(percent(row["dice"][k]) for k in found)]
        for name, row in each[:SHOWN]
    ]
    left = f" The first {SHOWN} of {len(each)}." if len(each) > SHOWN else ""
    return [
        "<h2>Dice of the average group, %</h2>",
        table(["class", "Dice, %", "groups", "95 % interval, %"], means),
        "<h2>Dice per group, %</h2>",
        table(["group", "images", *map(escape, found)], rows),
        f'<p class="note">Groups by {escape(groups["by"])}. A class that a group has in neither '
        f"truth nor prediction has no Dice there. groups.csv has IoU, too.{left}</p>",
    ]

"""The HTML pages: complete, self-contained, safe with odd names."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from rich.cells import cell_len

from setr.labels import Labels
from setr.metrics import summarize
from setr.pages.charts import confusion_chart, reliability_chart
from setr.pages.evaluation_page import write_evaluation
from setr.pages.gallery import Gallery, paired
from setr.pages.loss_curves import loss_chart, loss_curves
from setr.pages.page import bar, error_map, figure, heat, write_page
from setr.pages.tables import figures_table
from setr.scores.regions import RegionCounts
from setr.scores.scorecard import Scorecard
from setr.scores.scored_images import ScoredImage

NAMES = ("road", "side<walk>", 'a "quoted" & long name', "never")


class Balanced(HTMLParser):
    """Raises where tags do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "img", "br", "html", "body"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("html", "body"):
            assert self.open.pop() == tag


def simulated(seed: int = 0, images: int = 5) -> tuple[dict, Gallery]:
    rng = np.random.default_rng(seed)
    card, gallery = Scorecard(NAMES), Gallery(shown=2)
    for number in range(images):
        truth = np.repeat(rng.integers(0, 3, (6, 1)), 40, axis=0).astype(np.uint8)
        truth = np.repeat(truth, 600, axis=1)
        wrong = rng.random(truth.shape) < 0.1 * (number + 1)
        prediction = np.where(wrong, 0, truth).astype(np.uint8)
        confidence = rng.random(truth.shape).astype(np.float32)
        figures = card.update(
            number, *map(torch.from_numpy, (prediction, truth)), torch.from_numpy(confidence)
        )
        image = rng.integers(0, 255, (*truth.shape, 3), dtype=np.uint8)
        name = f"<b>{number}\udcff.png"
        gallery(ScoredImage(number, name, image, truth, prediction, confidence, figures))
    return {**card.summary(), "protocol": "whole image", "seconds": 1.0}, gallery


def test_evaluation_page(tmp_path):
    figures, gallery = simulated()
    others, theirs = simulated(seed=1)
    metrics = {
        "single_scale": {**figures, "failed": ["x.png: <broken>"]},
        "multi_scale": figures,
        "compare": {"<other>": {**others, "against": paired(gallery, theirs)}},
    }
    path = tmp_path / "report.html"
    write_evaluation(path, "run <1>", metrics, Labels(NAMES), gallery)
    page = path.read_text()
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page
    assert "<b>0" not in page
    assert "<walk>" not in page
    assert page.count("<figure>") == 5 * 4  # two worst, two best, five pictures each
    for text in ("side&lt;walk&gt;", "x.png: &lt;broken&gt;",
                 "Classes in neither truth nor prediction, left out of the means: 1.",
                 "In neither truth nor prediction: never.", "prefers-color-scheme:dark",
                 "viewport", "&lt;other&gt;"):  # fmt: skip
        assert text in page
    assert page.count("never") == 1  # in no table and no chart
    occurring = page.split('<p class="legend">')[1].split("</p>")[0]
    assert "side&lt;walk&gt;" in occurring
    shown = re.findall(r"([\d.]+) %</h3>", page)
    mious = sorted(100 * row[1] for row in gallery.rows.values() if row[1] is not None)
    assert [float(v) for v in shown] == pytest.approx([*mious[:2], *mious[:-3:-1]], abs=0.06)


def test_many_classes_of_which_few_occur_have_a_chart_with_names(tmp_path):
    names = tuple(f"class {i}" for i in range(150))
    matrix = np.zeros((150, 151), np.int64)
    matrix[7, 7], matrix[7, 140] = 90, 10
    figures, gallery = simulated()
    figures = {**figures, **summarize(matrix, names), "confusion": matrix.tolist()}
    by_class = dict.fromkeys(names)
    figures["boundary"] = {**figures["boundary"], "iou_by_class": by_class, "f_by_class": by_class}
    figures["regions"] = RegionCounts(150).by_class(names)
    write_evaluation(tmp_path / "x.html", "x", {"single_scale": figures}, Labels(names), gallery)
    page = (tmp_path / "x.html").read_text()
    assert "class 7 predicted as class 140: 10.0 %" in page
    assert re.findall(r"<td><i[^>]*></i>(class \d+)</td>", page) == ["class 7", "class 140"]
    nothing = np.zeros_like(matrix)
    figures |= {**summarize(nothing, names), "confusion": nothing.tolist()}
    write_evaluation(tmp_path / "x.html", "x", {"single_scale": figures}, Labels(names), gallery)
    assert "No pixel was counted" in (tmp_path / "x.html").read_text()


def test_charts_show_the_numbers():
    matrix = np.array([[90, 10, 0], [5, 95, 0]])
    chart = confusion_chart(matrix, ("a", "b"))
    assert "a predicted as b: 10.0 %" in chart
    assert "other" not in chart
    matrix[0, 2] = 20
    assert "a predicted as other: 16.7 %" in confusion_chart(matrix, ("a", "b"))
    large = confusion_chart(np.eye(60, 61, dtype=np.int64), tuple(map(str, range(60))))
    assert "data:image/png" in large
    many = re.search(r"base64,([^\"]+)", confusion_chart(np.eye(255, 256), ("x",) * 255))
    with Image.open(io.BytesIO(base64.b64decode(many[1]))) as picture:
        assert picture.width % 255 == 0  # every cell is as large as the others
    long = "a name that takes more room than the picture of the matrix"
    cut = confusion_chart(np.eye(2, 3), (long, "b"))
    assert f">{long[:27]}…</text>" in cut
    assert f"<title>{long} predicted as b" in cut
    calibration = {"pixels": [0, 30], "accuracy": [None, 0.6], "confidence": [None, 0.8]}
    assert "confidence 80.0 %, accuracy 60.0 %" in reliability_chart(calibration)


def test_wide_characters_have_room():
    """Chinese, Japanese and Korean ones are twice as wide as Latin ones."""
    matrix = np.eye(2, 3, dtype=np.int64)

    def left(*names: str) -> int:
        return int(re.search(r'<rect class="axis" x="(\d+)"', confusion_chart(matrix, names))[1])

    assert left("道路", "b") == left("road", "b")
    figures = summarize(matrix, ("道路", "b"))
    lines = figures_table({"single_scale": figures}).splitlines()
    assert [cell_len(line) for line in lines[:3]] == [cell_len(lines[0])] * 3


def test_pictures():
    values = np.linspace(0, 1, 5)[None]
    levels = heat(values).astype(int).sum(axis=2)[0]
    assert (np.diff(levels) > 0).all()  # lightness rises, so a grey print can be read
    truth = np.array([[0, 1, 255]], np.uint8)
    assert len(np.unique(error_map(np.array([[0, 0, 0]]), truth).reshape(-1, 3), axis=0)) == 3
    assert 'alt="a &lt; b"' in figure(np.zeros((4, 1000, 3), np.uint8), "a < b")
    assert bar(None) == "n/a"


def test_page_title_is_escaped(tmp_path):
    write_page(tmp_path / "page.html", "a & b", ["<p>text</p>"])
    assert "<title>a &amp; b</title>" in (tmp_path / "page.html").read_text()


def test_a_title_is_text_whatever_it_says(tmp_path):
    write_page(tmp_path / "page.html", "BODY of </title>TITLE", ["<p>BODY and TITLE</p>"])
    page = (tmp_path / "page.html").read_text()
    shown = "BODY of &lt;/title&gt;TITLE"
    assert f"<title>{shown}</title>" in page
    assert f"<h1>{shown}</h1>" in page
    assert page.count("<p>BODY and TITLE</p>") == 1


@pytest.mark.parametrize("photo", [True, False])
@pytest.mark.parametrize(
    ("size", "shown"),
    [((500, 80000), (13, 2080)), ((1, 70000), (1, 2080)), ((100, 300), (100, 300)),
     ((1040, 30), (520, 15))],
)  # fmt: skip
def test_high_pictures_are_shrunk(photo, size, shown):
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    data = figure(picture, "strip", photo=photo).partition("base64,")[2].partition('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == shown


def test_the_gallery_keeps_small_pictures_that_show_the_same():
    """Of a large photo, the twelve that are kept would be gigabytes."""
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 700, 1301), dtype=np.uint8)
    confidence = rng.random(truth.shape).astype(np.float32)
    image = rng.integers(0, 255, (*truth.shape, 3), dtype=np.uint8)
    gallery = Gallery(shown=1)
    for number, miou in enumerate((0.5, 0.25, 0.75, 0.5)):
        figures = {"miou": miou, "pixel_accuracy": 1.0}
        gallery(ScoredImage(number, "x", image, truth, prediction, confidence, figures))
    assert [kept[0].number for kept in (gallery.worst, gallery.best)] == [1, 2]
    (kept,) = gallery.worst
    assert kept.image.shape == (280, 520, 3)
    assert kept.confidence is not None
    assert kept.confidence.shape == (280, 520)
    assert kept.confidence.mean() == pytest.approx(confidence.mean(), abs=1e-3)
    before = figure(error_map(prediction, truth), "error")
    assert figure(error_map(kept.prediction, kept.truth), "error") == before
    assert figure(kept.image, "image", photo=True) == figure(image, "image", photo=True)


@pytest.mark.parametrize(("high", "said"), [(3.04, "3.0"), (0.0412, "0.041"), (0.0, "1.0")])
def test_the_loss_curve_names_its_highest_value(high, said):
    chart = loss_chart({"training": [(1, high), (2, high / 2)]})
    assert f'text-anchor="end">{said}</text>' in chart
    assert "nan" not in chart


def test_both_losses_of_a_run_are_in_one_chart(tmp_path):
    """The validation's beside the main head's, since it has no auxiliary heads."""
    lines = [
        {"step": 50, "loss": 9.0, "main": 4.0},
        {"step": 100, "loss": 5.0, "main": 2.0},
        {"step": 100, "val": {"miou": 0.5, "loss": 3.0}},
        {"step": 150, "loss": 2.0, "main": 1.0},
        {"step": 150, "val": {"miou": 0.5, "loss": None}},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 200, "lo')
    chart = loss_curves(log)
    paths = re.findall(r'<polyline points="([^"]*)" style="stroke:var\(--(\w+)\)"', chart)
    assert paths == [("40.0,20.0 360.0,100.0 680.0,140.0", "accent"), ("360.0,60.0", "second")]
    assert ">training<" in chart
    assert ">validation<" in chart
    assert 'text-anchor="end">4.0</text>' in chart
    log.write_text(json.dumps(lines[0]))
    assert loss_curves(log) == "<p>Too few steps for a curve.</p>"


def test_regions_and_thresholds_have_tables(tmp_path):
    figures, gallery = simulated()
    name = next(iter(figures["iou"]))
    figures["regions"][name] = {
        **{"regions": 7, "found": 0.5, "touched": 0.75},
        **{"predicted": 9, "right": 0.25, "touching": None},
    }
    curve = {"threshold": [0.1, 0.37, 0.5], "precision": [0.2, 0.4, None]}
    curve |= {"recall": [0.9, 0.8, 0.7], "dice": [0.3, 0.55, 0.5]}
    best = {"threshold": 0.37, "precision": 0.4, "recall": 0.8, "dice": 0.55}
    figures["thresholds"] = {"class": name, "average_precision": 0.61, "best": best, **curve}
    labels = Labels(tuple(figures["iou"]))
    write_evaluation(tmp_path / "x.html", "x", {"single_scale": figures}, labels, gallery)
    text = re.sub("<[^>]*>", "|", (tmp_path / "x.html").read_text())
    assert re.search(r"\|7\|+50\.0\|+75\.0\|+9\|+25\.0\|+n/a\|", text)
    assert re.search(r"0\.37, best Dice\|+40\.0\|+80\.0\|+55\.0\|", text)
    assert re.search(r"\|0\.50\|+n/a\|+70\.0\|+50\.0\|", text)
    assert "Average precision 61.0 %" in text
    assert "Dice per group" not in text

"""The paper's qualitative figures from any model, as rows of pictures with captions.

Figure 6: attention of a point. Figure 5: features by layer. Figures 2 to 4: two models side by
side. Also the similarity of position embeddings, as in the ViT paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from setr.bands import as_rgb, read_pixels
from setr.data.dataset import require_size
from setr.errors import DataError, SetrError, UsageError
from setr.explain import (
    attention_maps,
    attention_rollout,
    layer_features,
    position_similarity,
    principal_colours,
    saturated,
    strongest_channels,
)
from setr.inference import normalize
from setr.labels import IGNORE, Labels
from setr.pages.montage import Panel, mark, shrunk
from setr.pages.page import RIGHT, WIDTH, WRONG, error_map, heat, percent
from setr.predictor import Predictor
from setr.reading.masks import ColourMaskError, read_mask


class Figure(NamedTuple):
    """Rows of panels, and a sentence that says how to read them.

    Panels are shrunk as for a page, since there may be dozens, each of a large photo.

    Attributes:
        legend: training ids of the classes to list below the picture.
    """

    rows: list[list[Panel]]
    note: str
    legend: tuple[int, ...] = ()


class View(NamedTuple):
    """An image as the model sees it.

    Attributes:
        image: uint8 RGB (H, W, 3).
        pixels: normalised (1, C, H', W'), at the size of the model's protocol.
    """

    image: np.ndarray
    pixels: torch.Tensor

    def over(self, shown: np.ndarray, values: np.ndarray, patch_size: int) -> np.ndarray:
        """A map over the patch grid (h, w[, 3]) at the size of the image as shown, (H'', W''[, 3]).

        The padding is cut off.
        """
        H, W = self.pixels.shape[-2:]
        h, w = values.shape[:2]
        full = cv2.resize(
            np.ascontiguousarray(values, dtype=np.float32), (w * patch_size, h * patch_size)
        )
        return cv2.resize(full[:H, :W], (shown.shape[1], shown.shape[0]))


def open_view(predictor: Predictor, path: Path, short_side: int | None = None) -> View:
    """Read an image and scale it as the model's protocol does, or to another short side."""
    return make_view(predictor, read_pixels(path, predictor.bands), short_side)


def make_view(predictor: Predictor, image: np.ndarray, short_side: int | None = None) -> View:
    """Scale an image uint8 (H, W, C) as the model's protocol does, or to a short side."""
    protocol = predictor.info.protocol.whole()
    if short_side:
        protocol = dataclasses.replace(protocol, short_side=short_side)
    x = torch.from_numpy(image)[None].to(predictor.device)
    x = normalize(x, predictor.info.mean, predictor.info.std)
    size = protocol.view_size(image.shape[0], image.shape[1], 1.0)
    return View(as_rgb(image), F.interpolate(x, size, mode="bilinear", align_corners=False))


@torch.inference_mode()
def attention_figure(
    predictor: Predictor,
    view: View,
    points: Sequence[tuple[float, float]],
    layers: Sequence[int],
    head: int | None = None,
) -> Figure:
    """Attention of points of the image.

    Args:
        points: (x, y) in pixels of the image; its centre if empty.
        layers: blocks from 1; the last if empty.
        head: one head, from 1; None for all and their mean.

    Raises:
        SetrError: a point outside the image, no such layer or head.
    """
    model, patch = predictor.network, predictor.network.encoder.patch_size
    (H, W), seen = view.image.shape[:2], view.pixels.shape[-2:]
    shown = _panel(view.image)
    layers = layers or (len(model.encoder.stages()),)
    rows: list[list[Panel]] = []
    for x, y in points or ((W / 2, H / 2),):
        if not (0 <= x < W and 0 <= y < H):
            raise UsageError(f"point {x:g},{y:g}: outside the image of {W}x{H}")
        cell = int(y * seen[0] / H) // patch, int(x * seen[1] / W) // patch
        maps = attention_maps(model, view.pixels, layers, cell)
        chosen = [(attention_rollout(model, view.pixels, cell), "rollout over all layers")]
        single: list[tuple[np.ndarray, str]] = []
        for layer in layers:
            heads = maps[layer]
            if head is None:
                chosen.append((heads.mean(axis=0), f"layer {layer}, mean of heads"))
                single += [(m, f"layer {layer}, head {i}") for i, m in enumerate(heads, 1)]
            elif 1 <= head <= len(heads):
                chosen.append((heads[head - 1], f"layer {layer}, head {head}"))
            else:
                raise UsageError(f"head {head}: layer {layer} has 1 to {len(heads)}")
        place = x * shown.shape[1] / W, y * shown.shape[0] / H
        panels = [
            (mark(heat(view.over(shown, saturated(values), patch)), *place), caption)
            for values, caption in (*chosen, *single)
        ]
        first = (mark(shown, *place), f"point {x:.0f},{y:.0f}")
        rows.append([first, *panels[: len(chosen)]])
        rows += [panels[i : i + 4] for i in range(len(chosen), len(panels), 4)]
    return Figure(
        rows,
        "Bright patches are what the ringed point attends to; each map is scaled so that its "
        "brightest 0.5 % saturate. Rollout follows attention back through all layers.",
    )


@torch.inference_mode()
def features_figure(
    predictor: Predictor, view: View, layers: Sequence[int], channels: int = 4
) -> Figure:
    """Outputs of blocks as colours and as their strongest channels.

    Args:
        layers: blocks from 1; if empty, the first and three more at equal distances, which are the
            paper's 1, 9, 17 and 24 where there are 24.
        channels: channel maps per layer.
    """
    model, patch = predictor.network, predictor.network.encoder.patch_size
    depth = len(model.encoder.stages())
    layers = layers or spread_layers(depth)
    shown = _panel(view.image)
    rows: list[list[Panel]] = [[(shown, "image")]]
    for layer, maps in layer_features(model, view.pixels, layers).items():
        colours = view.over(shown, principal_colours(maps), patch)
        row = [(np.rint(colours * 255).astype(np.uint8), f"layer {layer}, three main components")]
        row += [
            (heat(view.over(shown, channel, patch)), f"layer {layer}, channel {number}")
            for number, channel in strongest_channels(maps, channels)
        ]
        rows.append(row)
    return Figure(
        rows,
        "Per layer the three principal components over the image as red, green and blue, and the "
        "channels that vary most, dark to bright from their 2nd to their 98th percentile.",
    )


def spread_layers(depth: int) -> list[int]:
    """The first of `depth` blocks and three more at equal distances, counted from 1."""
    return sorted({min(depth, 1 + i * -(-depth // 3)) for i in range(4)})


def position_figure(predictor: Predictor, grid: int = 7) -> Figure:
    """Similarity of the embeddings of grid x grid positions to those of all positions."""
    similarity = position_similarity(predictor.network)
    h, w = similarity.shape[:2]
    ys, xs = (np.unique(np.linspace(0, n - 1, min(grid, n)).round().astype(int)) for n in (h, w))
    low = float(np.percentile(similarity, 1))
    rows: list[list[Panel]] = [
        [
            (heat((similarity[y, x] - low) / (1 - low + 1e-12)), f"row {y + 1}, column {x + 1}")
            for x in xs
        ]
        for y in ys
    ]
    return Figure(
        rows,
        f"Each map: cosine similarity of one position's embedding to those of all {h} x {w} "
        f"positions, dark {low:.2f} to bright 1.",
    )


def compare_figure(
    a: Predictor, b: Predictor, names: tuple[str, str], path: Path, truth: Path | None = None
) -> Figure:
    """Two models on one image.

    Args:
        a: first model.
        b: second model, with the same classes.
        names: of the models.
        truth: label image as the models' data have it, in ids or colours, if there is one.

    Raises:
        SetrError: other classes, or a truth of another size.
    """
    labels = a.info.labels
    if labels.classes != b.info.labels.classes:
        raise UsageError(
            f"{names[0]} and {names[1]} have different classes; give two models of the same ones"
        )
    ours, theirs = a.predict(path), b.predict(path)
    differ = ours.mask != theirs.mask
    share = f"{100 * differ.mean():.1f} %"
    colours = np.array([RIGHT, WRONG], np.uint8)[differ.astype(np.uint8)]
    rows: list[list[Panel]] = [
        [
            (_panel(ours.image), "image"),
            (_panel(ours.overlay()), names[0]),
            (_panel(theirs.overlay()), names[1]),
        ],
        [
            (_panel(colours), f"they differ in {share}"),
            (_panel(ours.color()), names[0]),
            (_panel(theirs.color()), names[1]),
        ],
    ]
    seen = np.union1d(ours.mask, theirs.mask)
    if truth:
        real = _truth(truth, labels, ours.mask.shape)
        row: list[Panel] = [(_panel(labels.palette[real]), "truth")]
        for name, result in zip(names, (ours, theirs), strict=True):
            counted = real != IGNORE
            right = (result.mask == real)[counted].mean() if counted.any() else None
            said = "no pixel counts" if right is None else f"{percent(right)} % right"
            row.append((_panel(error_map(result.mask, real)), f"{name}: {said}"))
        rows.append(row)
        seen = np.union1d(seen, real)
    return Figure(
        rows,
        f"{path.name}: the models differ on {share} of the pixels (orange).",
        tuple(int(i) for i in seen if i < len(labels.classes)),
    )


def _panel(picture: np.ndarray) -> np.ndarray:
    return shrunk(picture, WIDTH)


def _truth(path: Path, labels: Labels, size: tuple[int, ...]) -> np.ndarray:
    """Training ids (H, W) of a label image in the ids or colours that a model's data had."""
    try:
        raw = read_mask(path, rgb=labels.colour_map is not None)
        require_size(path, raw, size)
    except ColourMaskError:
        raise DataError(
            f"{path}: holds colours, but the models were trained on ids; give a label image of one "
            "id per pixel (8-bit grey or palette PNG), as their data had"
        ) from None
    except SetrError as error:
        raise DataError(str(error)) from None
    try:
        return labels.to_train_ids(raw)
    except SetrError as error:  # whose advice is for a data.yaml
        reason = str(error).partition(";")[0]
        raise DataError(f"{path}: {reason}; give a label image coded as the models' data") from None

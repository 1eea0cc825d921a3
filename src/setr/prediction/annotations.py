"""Polygons in the files other tools read: GeoJSON (RFC 7946), GeoPackage, COCO and LabelMe.

COCO has no holes in polygons, so regions with holes are run lengths there. LabelMe has no holes
either, but draws later shapes over earlier ones: outlines from the largest to the smallest give the
mask back, because what fills a hole is drawn after the region around it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from setr._extras import import_extra
from setr.colours import hex_colour
from setr.errors import SetrError, first_line
from setr.labels import Labels
from setr.outlines.drawing import Ring
from setr.prediction.ground import Georeference, PixelSizes
from setr.prediction.polygons import Polygon, run_lengths, signed_area, simplified
from setr.reading.vectors import wkb_polygon

_SMALL = 1000.0
"""Metres on a side of a region whose pixels are taken to be of one size."""


def to_geojson(
    polygons: Sequence[Polygon], labels: Labels, *, geo: Georeference | None = None
) -> dict[str, Any]:
    """A FeatureCollection, one feature per region.

    Args:
        polygons: of one mask.
        geo: if given, coordinates are on the map, with the reference system as GDAL and QGIS read
            it, and regions have their square metres on the ground (`area_m2`); otherwise they are
            pixels, y down the image.
    """
    features = []
    for polygon, properties in zip(polygons, _properties(polygons, labels, geo), strict=True):
        rings = [_closed(ring, geo).tolist() for ring in polygon.rings]
        geometry = {"type": "Polygon", "coordinates": rings}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if geo is not None and geo.crs:
        collection["crs"] = {"type": "name", "properties": {"name": _crs_name(geo.crs)}}
    return collection


def to_geopackage(
    polygons: Sequence[Polygon], labels: Labels, *, geo: Georeference | None = None
) -> bytes:
    """A GeoPackage with one layer of the features of `to_geojson` (extra `geo`).

    Args:
        polygons: of one mask.
        geo: as in `to_geojson`.

    Raises:
        SetrError: extra missing, or a reference system that cannot be written.
    """
    raw = import_extra("pyogrio.raw", "geo", "a GeoPackage")
    outlines = [wkb_polygon([_closed(r, geo) for r in polygon.rings]) for polygon in polygons]
    rows = _properties(polygons, labels, geo)
    kinds = {"class": object, "class_id": np.int32, "color": object, "pixels": np.int64}
    kinds |= {"area_m2": np.float64} if rows and "area_m2" in rows[0] else {}
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():  # of pixels, which have no reference system
            warnings.simplefilter("ignore")
            raw.write(
                file,
                np.array(outlines, object),
                [np.array([row[key] for row in rows], kind) for key, kind in kinds.items()],
                list(kinds),
                layer="polygons",
                driver="GPKG",
                geometry_type="Polygon",
                crs=(geo.crs if geo else "") or None,
            )
    except Exception as error:
        raise SetrError(f"a GeoPackage cannot be written: {first_line(error)}") from None
    return file.getvalue()


def to_coco(
    polygons: Sequence[Polygon],
    labels: Labels,
    *,
    file_name: str,
    size: tuple[int, int],
    tolerance: float = 0.0,
    all_run_lengths: bool = False,
) -> dict[str, Any]:
    """Images, annotations and categories of COCO's object annotations, one per region.

    Category ids are training ids + 1, because COCO's begin at 1.

    Args:
        polygons: exact polygons of one mask.
        file_name: of the image.
        size: (H, W) of the image.
        tolerance: polygons are simplified by at most this many pixels; run lengths stay exact.
        all_run_lengths: also for regions without holes.
    """
    annotations = []
    for number, polygon in enumerate(polygons, 1):
        if all_run_lengths or len(polygon.rings) > 1:
            segmentation: Any = {"size": list(size), "counts": run_lengths(polygon, size)}
        else:
            segmentation = [simplified(polygon, tolerance).rings[0].ravel().tolist()]
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": polygon.class_id + 1,
                "segmentation": segmentation,
                "area": polygon.pixels,
                "bbox": list(polygon.box),
                "iscrowd": 0,
            }
        )
    names = enumerate(labels.classes, 1)
    image = {"id": 1, "file_name": file_name, "width": size[1], "height": size[0]}
    return {
        "images": [image],
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in names],
    }


def merge_coco(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Joins COCO objects of single images, with new numbers for images and annotations."""
    whole: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for part in parts:
        image_id = len(whole["images"]) + 1
        whole["images"] += [{**image, "id": image_id} for image in part["images"]]
        for annotation in part["annotations"]:
            number = len(whole["annotations"]) + 1
            whole["annotations"].append({**annotation, "id": number, "image_id": image_id})
        whole["categories"] = part["categories"]
    return whole


def to_labelme(
    polygons: Sequence[Polygon], labels: Labels, *, file_name: str, size: tuple[int, int]
) -> dict[str, Any]:
    """A LabelMe file: outlines, the largest first.

    Args:
        polygons: of one mask.
        file_name: of the image, as seen from the file's folder.
        size: (H, W) of the image.
    """
    by_size = sorted(polygons, key=lambda p: -signed_area(p.rings[0]))
    shapes = [
        {
            "label": labels.classes[polygon.class_id],
            "points": polygon.rings[0].astype(float).tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
        }
        for polygon in by_size
    ]
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": file_name,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def _properties(
    polygons: Sequence[Polygon], labels: Labels, geo: Georeference | None
) -> list[dict[str, Any]]:
    """What is said of each region; of a map also its square metres, if they are known."""
    rows = [
        {
            "class": labels.classes[polygon.class_id],
            "class_id": polygon.class_id,
            "color": hex_colour(labels.colours[polygon.class_id]),
            "pixels": polygon.pixels,
        }
        for polygon in polygons
    ]
    areas = None if geo is None else _areas(polygons, geo)
    if areas is not None:
        for row, area in zip(rows, areas, strict=True):
            row["area_m2"] = round(area, 4)
    return rows


def _areas(polygons: Sequence[Polygon], geo: Georeference) -> list[float] | None:
    """Square metres of each region; None where the place is unknown.

    Pixels of a small region are taken to be of one size, that of the middle of its box.
    """
    if not polygons:
        return None
    x, y, width, height = np.array([polygon.box for polygon in polygons]).T
    left, top = int(x.min()), int(y.min())
    shape = (int((y + height).max()) - top, int((x + width).max()) - left)
    sizes = PixelSizes(geo, shape, top, left)
    if not sizes.known:
        return None
    means = sizes.at(y + height / 2, x + width / 2)
    large = np.maximum(width, height) * np.sqrt(means) > _SMALL
    for number in map(int, np.flatnonzero(large)):
        outline, *holes = (ring - (x[number], y[number]) for ring in polygons[number].rings)
        row, column, inside = Ring(outline, holes=tuple(holes)).cover(
            (int(height[number]), int(width[number]))
        )
        if count := np.count_nonzero(inside):
            place = int(y[number]) + row, int(x[number]) + column
            means[number] = sizes.sums(inside.view(np.uint8), *place, 2)[1] / count
    return [float(mean) * polygon.pixels for mean, polygon in zip(means, polygons, strict=True)]


def _closed(ring: np.ndarray, geo: Georeference | None) -> np.ndarray:
    """A ring as GeoJSON wants it: its first point again at the end, outlines anticlockwise."""
    ring = np.concatenate([ring, ring[:1]])
    if geo is None:
        return ring
    points = geo.to_map(ring)
    return points[::-1] if geo.mirrors else points


def _crs_name(crs: str) -> str:
    authority, _, code = crs.partition(":")
    return f"urn:ogc:def:crs:{authority}::{code}" if code.isdigit() else crs

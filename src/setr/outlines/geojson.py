"""GeoJSON from geographic information systems, or written by `setr predict`.

A file with the name of an image (`tile.geojson`, `tile.tif`) belongs to that image only. Any other
file is a layer: it is reprojected to the reference system of each georeferenced image and used for
those that it intersects. An image may have several layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setr.errors import SetrError
from setr.outlines.drawing import Ring, Shape, as_points
from setr.outlines.index import AnnotatedFolder, AnnotatedImage, ImageIndex, image_problem
from setr.reading.gdal import GdalFile, gdal_reason, import_gdal, is_georeferenced

CLASS_KEYS = ("class", "label", "class_name", "category", "name")
"""Properties that may name a feature's class, case-insensitive; the first one found is used."""
WGS84 = "OGC:CRS84"
"""Reference system of files that name none (RFC 7946, section 4)."""
BROKEN = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
"""Exceptions raised by files that do not follow their format."""


class _Area(NamedTuple):
    """A feature: its class, and its polygons, each an outline (N, 2) followed by its holes."""

    name: str
    polygons: list[list[np.ndarray]]

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounding box: minimum and maximum coordinates."""
        points = np.concatenate([outline for outline, *_ in self.polygons])
        return points.min(axis=0), points.max(axis=0)

    def shape(self) -> Shape:
        """The shape to draw; coordinates must be pixels."""
        lines = ((outline, tuple(holes)) for outline, *holes in self.polygons)
        return Shape(self.name, tuple(Ring(outline, holes=holes) for outline, holes in lines))


class _Georeference(NamedTuple):
    """Size (H, W), reference system (None if unknown) and affine transform of an image."""

    size: tuple[int, int]
    crs: Any
    transform: Any

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map coordinates (N, 2) as x, y in pixels."""
        return _apply_affine(points, ~self.transform)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounding box in map coordinates: minimum and maximum."""
        H, W = self.size
        corners = _apply_affine(np.array([(0, 0), (W, 0), (0, H), (W, H)], float), self.transform)
        return corners.min(axis=0), corners.max(axis=0)


class Layers:
    """The GeoJSON files of a folder.

    Args:
        root: the folder.
        images: their paths relative to it.
        index: finds images by name.
        known: class names by id.
        class_key: property that names the class; empty for `CLASS_KEYS`.
    """

    def __init__(
        self,
        root: Path,
        images: Sequence[str],
        index: ImageIndex,
        known: Mapping[int, str],
        class_key: str,
    ) -> None:
        self.root, self.index, self.known = root, index, known
        self.keys = (class_key.lower(),) if class_key else CLASS_KEYS
        self.by_file = not class_key  # without a class property, use the file name as class
        self.out = AnnotatedFolder("GeoJSON", True)
        self._rasters = [name for name in images if is_georeferenced(root / name)]
        self._georeferences: dict[str, _Georeference] = {}
        self._found: dict[str, AnnotatedImage] = {}

    def read(self, name: str, content: dict[str, Any]) -> None:
        """Add the features of a file; problems are recorded."""
        stem = os.path.splitext(os.path.basename(name))[0]
        images = self.index.find(stem, name)
        if len(images) > 1:
            self.out.problems.append(image_problem(name, stem, images))
            return
        if not images and not self._rasters:
            reason = f"no image is called '{stem}', and none is georeferenced"
            self.out.problems.append(f"{name}: {reason}")
            return
        layer = stem if self.by_file and not images else ""
        areas = self._areas(name, content["features"], layer)
        if images and images[0] not in self._rasters:
            self._add(name, images[0], areas)
            return
        try:
            self._overlay(name, areas, _crs(content), images)
        except SetrError as error:
            self.out.problems.append(str(error))

    def annotated(self) -> AnnotatedFolder:
        """All images with features."""
        self.out.images = [self._found[image] for image in sorted(self._found)]
        named = {shape.name for entry in self.out.images for shape in entry.shapes}
        listed = [name for name in self.known.values() if name in named]
        self.out.classes = (*listed, *sorted(named - set(listed)))
        return self.out

    def _add(self, name: str, image: str, areas: list[_Area]) -> None:
        """Append the shapes of a file to those of an image."""
        shapes = tuple(area.shape() for area in areas)
        before = self._found.get(image)
        if before is not None:
            shapes, name = (*before.shapes, *shapes), f"{before.source} and {name}"
        self._found[image] = AnnotatedImage(image, shapes, name)

    def _overlay(self, name: str, areas: list[_Area], crs: str, own: list[str]) -> None:
        """Add a file to its own image, or to all rasters that it intersects."""
        reprojected: dict[Any, list[_Area]] = {}
        boxes: dict[Any, np.ndarray] = {}
        intersects = not areas
        for image in own or self._rasters:
            geo = self._georeference(image)
            if geo.crs not in reprojected:
                reprojected[geo.crs] = _transformed(areas, _crs_transform(name, crs, geo.crs))
                corners = [area.box() for area in reprojected[geo.crs]]
                boxes[geo.crs] = np.array(corners).reshape(-1, 2, 2)
            low, high = geo.box()
            lows, highs = boxes[geo.crs].swapaxes(0, 1)
            chosen = np.flatnonzero(((lows < high) & (highs > low)).all(axis=1)).tolist()
            intersects |= bool(chosen)
            if own or chosen:
                here = [reprojected[geo.crs][i] for i in chosen]
                self._add(name, image, _transformed(here, geo.to_pixels))
        if not intersects:
            target = own[0] if own else f"any of {len(self._rasters)} georeferenced images"
            self.out.problems.append(
                f"{name}: none of its areas intersects {target}; check its reference system "
                f"({crs or 'assumed to be that of the image'})"
            )

    def _georeference(self, image: str) -> _Georeference:
        if image not in self._georeferences:
            with GdalFile(self.root / image) as opened:
                file = opened.file
                if file.transform.is_degenerate:
                    raise SetrError(f"{image}: its georeference gives pixels an area of zero")
                self._georeferences[image] = _Georeference(file.shape, file.crs, file.transform)
        return self._georeferences[image]

    def _areas(self, name: str, features: list[Any], layer: str) -> list[_Area]:
        """The features that have an area.

        If no property names classes, all get the class `layer`, unless that is empty.
        """
        found = []
        for number, feature in enumerate(features, 1):
            try:
                polygons = self._polygons(feature["geometry"])
                values = feature["properties"] or {}
                found.append((number, {key.lower(): values[key] for key in values}, polygons))
            except BROKEN:
                self.out.problems.append(f"{name}: feature {number} is not a valid area")
        key = next((key for key in self.keys if any(key in values for _, values, _ in found)), "")
        areas = []
        if found and layer and not key:
            others = ", ".join(dict.fromkeys(key for _, values, _ in found for key in values))
            hint = f"; --class-key names another property ({others:.80})" if others else ""
            self.out.notes.append(f"{name}: all of class '{layer}', from the file name{hint}")
        for number, values, polygons in found:
            class_name = self._class(values.get(key) if key or not layer else layer)
            if polygons and class_name:
                areas.append(_Area(class_name, polygons))
            elif polygons:
                keys = key or " or ".join(self.keys)
                self.out.problems.append(f"{name}: feature {number} has no property {keys}")
        return areas

    def _polygons(self, geometry: Any) -> list[list[np.ndarray]]:
        """Polygons of a geometry; geometries without area are counted and skipped."""
        if geometry is None:
            return []
        kind = geometry["type"]
        if kind == "GeometryCollection":
            return [p for part in geometry["geometries"] for p in self._polygons(part)]
        if kind not in ("Polygon", "MultiPolygon"):
            self.out.leave_out(f"GeoJSON's {kind}")
            return []
        polygons = geometry["coordinates"] if kind == "MultiPolygon" else [geometry["coordinates"]]
        return [[as_points([p[:2] for p in line]) for line in lines] for lines in polygons if lines]

    def _class(self, value: Any) -> str:
        """Class name for a property value; empty without one."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int:
            return self.known.get(value, f"class_{value}")
        return value.strip() if isinstance(value, str) else ""


def _transformed(areas: list[_Area], to: Callable[[np.ndarray], np.ndarray]) -> list[_Area]:
    """Areas with a function of points (N, 2) applied to all their points at once."""
    lines = [line for area in areas for polygon in area.polygons for line in polygon]
    if not lines:
        return areas
    ends = np.cumsum([len(line) for line in lines])[:-1]
    parts = iter(np.split(to(np.concatenate(lines)), ends))
    return [
        area._replace(polygons=[[next(parts) for _ in polygon] for polygon in area.polygons])
        for area in areas
    ]


def _crs_transform(name: str, own: str, target: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A function that reprojects points from a file's reference system to an image's.

    If either system is unknown, points are not changed.

    Raises:
        SetrError: an invalid system; when called, points that cannot be reprojected.
    """
    if target is None or not own:
        return lambda points: points
    gdal = import_gdal(name)
    from rasterio.warp import transform

    try:
        with gdal.Env():  # keeps PROJ from writing to stderr
            system = gdal.CRS.from_user_input(own)
    except Exception:
        raise SetrError(f"{name}: unknown reference system '{own:.60}'") from None

    def reproject(points: np.ndarray) -> np.ndarray:
        try:
            return np.stack(transform(system, target, *points.T), axis=1)
        except Exception as error:
            systems = f"{own:.60} to {target.to_string():.60}"
            raise SetrError(
                f"{name}: cannot be reprojected from {systems} ({gdal_reason(error):.80})"
            ) from None

    return (lambda points: points) if system == target else reproject


def _apply_affine(points: np.ndarray, transform: Any) -> np.ndarray:
    """Points (N, 2) mapped by an affine transform."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return points @ np.array([[a, d], [b, e]]) + (c, f)


def _crs(content: dict[str, Any]) -> str:
    """Name of the reference system: member `crs` (older files), or WGS 84; empty if unreadable."""
    if "crs" not in content:
        return WGS84
    try:
        return str(content["crs"]["properties"]["name"])
    except (TypeError, KeyError):
        return ""

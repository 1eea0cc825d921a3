"""GeoJSON, Shapefiles and GeoPackages from geographic information systems or `setr predict`.

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
from setr.outlines.places import Place, common_box, crs_transform, place_of
from setr.reading.gdal import is_georeferenced
from setr.reading.parsed import BROKEN
from setr.reading.vectors import FORMATS, Box, vector_layers

CLASS_KEYS = ("class", "label", "class_name", "category", "classification", "name")
"""Properties that may name a feature's class, case-insensitive; the first one found is used.

QuPath's `classification` is an object with the `name`; its `name` is that of the single shape."""
WGS84 = "OGC:CRS84"
"""Reference system of files that name none (RFC 7946, section 4)."""


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


class _Layer(NamedTuple):
    """A layer not read yet.

    Attributes:
        name: of its file, and of the layer if the file has several; for messages.
        title: of the layer itself; its class if no property names one.
        kind: format.
        crs: reference system; empty if it names none.
        total: number of features.
        features: reads those that may meet a box in the layer's own coordinates.
    """

    name: str
    title: str
    kind: str
    crs: str
    total: int
    features: Callable[[Box | None], list[Any]]


class Layers:
    """The GeoJSON files, Shapefiles and GeoPackages of a folder.

    Args:
        images: their paths relative to it.
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
        self.out = AnnotatedFolder("GeoJSON", True, has_properties=True)
        self._rasters = [name for name in images if is_georeferenced(root / name)]
        self._places: dict[str, Place] = {}
        self._found: dict[str, AnnotatedImage] = {}
        self._kinds: dict[str, None] = {}

    def read(self, name: str, content: dict[str, Any]) -> None:
        """Add the features of a GeoJSON file; problems are recorded."""
        stem = os.path.splitext(os.path.basename(name))[0]
        found = content["features"]
        layer = _Layer(name, stem, "GeoJSON", _crs(content), len(found), lambda _: found)
        self._add_file(name, [layer])

    def read_file(self, name: str) -> None:
        """Add the features of a Shapefile or GeoPackage; problems are recorded."""
        kind = FORMATS[os.path.splitext(name)[1].lower()]
        self._kinds[kind] = None
        try:
            layers = vector_layers(self.root / name)
        except SetrError as error:
            self.out.problems.append(str(error))
            return
        found = []
        for layer in layers:
            shown = f"{name}, layer '{layer.name}'" if len(layers) > 1 else name
            found.append(_Layer(shown, layer.name, kind, layer.crs, layer.total, layer.features))
        self._add_file(name, found)

    def _add_file(self, name: str, layers: list[_Layer]) -> None:
        stem = os.path.splitext(os.path.basename(name))[0]
        images = self.index.find(stem, name)
        if len(images) > 1:
            self.out.problems.append(image_problem(name, stem, images))
            return
        if not images and not self._rasters:
            reason = f"no image is called '{stem}', and none is georeferenced"
            self.out.problems.append(f"{name}: {reason}")
            return
        for layer in layers:
            self._kinds[layer.kind] = None
            try:
                self._add_layer(layer, stem, images)
            except SetrError as error:
                self.out.problems.append(str(error))

    def _add_layer(self, layer: _Layer, stem: str, own: list[str]) -> None:
        """Add a layer to its own image, or to all rasters that it intersects."""
        title = layer.title if self.by_file and not (own and layer.title == stem) else ""
        if own and own[0] not in self._rasters:
            self._add(layer.name, own[0], self._areas(layer, layer.features(None), title))
            return
        places = {image: self._place(image) for image in own or self._rasters}
        if layer.kind != "GeoJSON" and not layer.crs and any(p.crs for p in places.values()):
            where = " (its .prj file is missing)" if layer.kind == "Shapefile" else ""
            raise SetrError(
                f"{layer.name}: names no reference system{where}; set it where it was drawn, in "
                "QGIS with Set Layer CRS and Save Features As"
            )
        box = common_box(list(places.values()), layer.crs) if layer.kind != "GeoJSON" else None
        features = layer.features(box)
        areas = self._areas(layer, features, title)
        reprojected: dict[Any, list[_Area]] = {}
        boxes: dict[Any, np.ndarray] = {}
        intersects = not areas and (box is None or bool(features) or not layer.total)
        for image, place in places.items():
            if place.crs not in reprojected:
                to_crs = crs_transform(layer.name, layer.crs, place.crs)
                reprojected[place.crs] = _transformed(areas, to_crs)
                corners = [area.box() for area in reprojected[place.crs]]
                boxes[place.crs] = np.array(corners).reshape(-1, 2, 2)
            low, high = place.box()
            lows, highs = boxes[place.crs].swapaxes(0, 1)
            chosen = np.flatnonzero(((lows < high) & (highs > low)).all(axis=1)).tolist()
            intersects |= bool(chosen)
            if own or chosen:
                here = [reprojected[place.crs][i] for i in chosen]
                self._add(layer.name, image, _transformed(here, place.to_pixels))
        if not intersects:
            target = own[0] if own else f"any of {len(self._rasters)} georeferenced images"
            self.out.problems.append(
                f"{layer.name}: none of its areas intersects {target}; check its reference system "
                f"({layer.crs or 'assumed to be that of the image'})"
            )

    def annotated(self) -> AnnotatedFolder:
        """All images with features."""
        self.out.kind = " and ".join(self._kinds) or self.out.kind
        self.out.images = [self._found[image] for image in sorted(self._found)]
        named = {shape.name for entry in self.out.images for shape in entry.shapes}
        self.out.order_classes(name for name in self.known.values() if name in named)
        return self.out

    def _add(self, name: str, image: str, areas: list[_Area]) -> None:
        """Append the shapes of a file to those of an image."""
        shapes = tuple(area.shape() for area in areas)
        before = self._found.get(image)
        if before is not None:
            shapes, name = (*before.shapes, *shapes), f"{before.source} and {name}"
        self._found[image] = AnnotatedImage(image, shapes, name)

    def _place(self, image: str) -> Place:
        if image not in self._places:
            self._places[image] = place_of(self.root, image)
        return self._places[image]

    def _areas(self, layer: _Layer, features: list[Any], title: str) -> list[_Area]:
        """The features that have an area.

        If no property names classes, all get the class `title`, unless that is empty.
        """
        name = layer.name
        found = []
        for number, feature in enumerate(features, 1):
            try:
                polygons = self._polygons(feature["geometry"], layer.kind)
                values = feature["properties"] or {}
                found.append((number, {key.lower(): values[key] for key in values}, polygons))
            except BROKEN:
                self.out.problems.append(f"{name}: feature {number} is not a valid area")
        key = next((key for key in self.keys if any(key in values for _, values, _ in found)), "")
        others = ", ".join(dict.fromkeys(key for _, values, _ in found for key in values))
        if not key and any(polygons for _, _, polygons in found):
            if not title:
                has = f"it has {others:.160}" if others else "it has none"
                self.out.problems.append(
                    f"{name}: no property called {' or '.join(self.keys)} names the class; {has}; "
                    "choose one with --class-key"
                )
                return []
            hint = f"; --class-key names another property ({others:.80})" if others else ""
            source = "layer's" if layer.kind == "GeoPackage" else "file"
            self.out.notes.append(f"{name}: all of class '{title}', from the {source} name{hint}")
        areas = []
        for number, values, polygons in found:
            class_name = self._class(values.get(key)) if key else title
            if polygons and class_name:
                areas.append(_Area(class_name, polygons))
            elif polygons:
                value = values.get(key)
                given = "empty" if value in (None, "") else f"{value!r:.40}"
                self.out.problems.append(
                    f"{name}: feature {number} has no class: its property {key} is {given}; give a "
                    "name or an id"
                )
        return areas

    def _polygons(self, geometry: Any, kind: str) -> list[list[np.ndarray]]:
        """Polygons of a geometry; geometries without area are counted and skipped."""
        if geometry is None:
            return []
        form = geometry["type"]
        if form == "GeometryCollection":
            return [p for part in geometry["geometries"] for p in self._polygons(part, kind)]
        if form not in ("Polygon", "MultiPolygon"):
            self.out.leave_out(f"{kind}'s {form}")
            return []
        polygons = geometry["coordinates"] if form == "MultiPolygon" else [geometry["coordinates"]]
        return [[as_points(_flat(line)) for line in lines] for lines in polygons if len(lines)]

    def _class(self, value: Any) -> str:
        """Class name for a property value; empty without one."""
        if isinstance(value, Mapping):
            value = value.get("name")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int:
            return self.known.get(value, f"class_{value}")
        return value.strip() if isinstance(value, str) else ""


def _flat(line: Any) -> Any:
    """The points of a ring without heights."""
    return line if isinstance(line, np.ndarray) else [point[:2] for point in line]


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


def _crs(content: dict[str, Any]) -> str:
    """Name of the reference system: member `crs` (older files), or WGS 84; empty if unreadable."""
    if "crs" not in content:
        return WGS84
    try:
        return str(content["crs"]["properties"]["name"])
    except (TypeError, KeyError):
        return ""

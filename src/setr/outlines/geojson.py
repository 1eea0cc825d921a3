"""Outlines in GeoJSON, as geographic information systems keep them and `setr predict` writes them.

A file that is called like an image (`tile.geojson`, `tile.tif`) is for that image alone. Any other
is a layer: it is laid over every image with a georeference that it reaches, through whose reference
system it is led. Several layers may lie over one image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setr.errors import SetrError
from setr.outlines.drawing import Ring, Shape, as_points
from setr.outlines.index import Annotated, Images, Outlined, not_one
from setr.reading.gdal import GdalFile, gdal_reason, import_gdal, is_georeferenced

CLASS_KEYS = ("class", "label", "class_name", "category", "name")
"""Properties that may name the class of a feature, in any case of letters; the first one counts."""
WGS84 = "OGC:CRS84"
"""Reference system of a file that names none (RFC 7946, section 4)."""
BROKEN = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
"""What values of another kind than a format's raise."""


class _Area(NamedTuple):
    """A feature: its class, and its polygons, each an outline (N, 2) followed by its holes."""

    name: str
    polygons: list[list[np.ndarray]]

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest coordinates of the outlines."""
        points = np.concatenate([outline for outline, *_ in self.polygons])
        return points.min(axis=0), points.max(axis=0)

    def shape(self) -> Shape:
        """As it is drawn, if its coordinates are pixels."""
        lines = ((outline, tuple(holes)) for outline, *holes in self.polygons)
        return Shape(self.name, tuple(Ring(outline, holes=holes) for outline, holes in lines))


class _Place(NamedTuple):
    """Where an image lies: its size (H, W), reference system (None: not told) and transform."""

    size: tuple[int, int]
    crs: Any
    transform: Any

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map coordinates (N, 2) as x, y in pixels."""
        return _led(points, ~self.transform)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest map coordinates."""
        H, W = self.size
        corners = _led(np.array([(0, 0), (W, 0), (0, H), (W, H)], float), self.transform)
        return corners.min(axis=0), corners.max(axis=0)


class Layers:
    """The GeoJSON files of a folder.

    Args:
        root: the folder.
        images: in it, relative.
        where: finds images by name.
        known: names of classes by number.
        class_key: property that names the class; empty looks for `CLASS_KEYS`.
    """

    def __init__(
        self,
        root: Path,
        images: Sequence[str],
        where: Images,
        known: Mapping[int, str],
        class_key: str = "",
    ) -> None:
        self.root, self.where, self.known = root, where, known
        self.keys = (class_key.lower(),) if class_key else CLASS_KEYS
        self.by_file = not class_key  # where no property names classes, the name of the file does
        self.out = Outlined("GeoJSON", True)
        self._rasters = [name for name in images if is_georeferenced(root / name)]
        self._places: dict[str, _Place] = {}
        self._found: dict[str, Annotated] = {}

    def read(self, name: str, content: dict[str, Any]) -> None:
        """Take the features of a file, and note what is wrong with it."""
        stem = os.path.splitext(os.path.basename(name))[0]
        images = self.where.find(stem, name)
        if len(images) > 1:
            self.out.problems.append(not_one(name, stem, images))
            return
        if not images and not self._rasters:
            reason = f"no image is called '{stem}', and none has a georeference"
            self.out.problems.append(f"{name}: {reason}")
            return
        layer = stem if self.by_file and not images else ""
        areas = self._areas(name, content["features"], layer)
        if images and images[0] not in self._rasters:
            self._add(name, images[0], areas)
            return
        try:
            self._lay(name, areas, _crs(content), images)
        except SetrError as error:
            self.out.problems.append(str(error))

    def outlined(self) -> Outlined:
        """All that was found."""
        self.out.images = [self._found[image] for image in sorted(self._found)]
        named = {shape.name for entry in self.out.images for shape in entry.shapes}
        listed = [name for name in self.known.values() if name in named]
        self.out.classes = (*listed, *sorted(named - set(listed)))
        return self.out

    def _add(self, name: str, image: str, areas: list[_Area]) -> None:
        """Shapes of a file for an image, behind those of other files."""
        shapes = tuple(area.shape() for area in areas)
        before = self._found.get(image)
        if before is not None:
            shapes, name = (*before.shapes, *shapes), f"{before.source} and {name}"
        self._found[image] = Annotated(image, shapes, name)

    def _lay(self, name: str, areas: list[_Area], crs: str, own: list[str]) -> None:
        """Lay a file over its own image, or over all rasters that it reaches."""
        moved: dict[Any, list[_Area]] = {}
        boxes: dict[Any, np.ndarray] = {}
        reached = not areas
        for image in own or self._rasters:
            place = self._place(image)
            if place.crs not in moved:
                to = _route(name, crs, place.crs)
                moved[place.crs] = _moved(areas, to)
                ends = [area.box() for area in moved[place.crs]]
                boxes[place.crs] = np.array(ends).reshape(-1, 2, 2)
            low, high = place.box()
            least, most = boxes[place.crs].swapaxes(0, 1)
            chosen = np.flatnonzero(((least < high) & (most > low)).all(axis=1)).tolist()
            reached |= bool(chosen)
            if own or chosen:
                here = [moved[place.crs][index] for index in chosen]
                self._add(name, image, _moved(here, place.to_pixels))
        if not reached:
            over = own[0] if own else f"any of {len(self._rasters)} images with a georeference"
            self.out.problems.append(
                f"{name}: none of its areas lies over {over}; check its reference system "
                f"({crs or 'taken as that of the image'})"
            )

    def _place(self, image: str) -> _Place:
        if image not in self._places:
            with GdalFile(self.root / image) as opened:
                file = opened.file
                if file.transform.is_degenerate:
                    raise SetrError(f"{image}: its georeference gives pixels no area")
                self._places[image] = _Place(file.shape, file.crs, file.transform)
        return self._places[image]

    def _areas(self, name: str, features: list[Any], layer: str) -> list[_Area]:
        """The features that have an area.

        Where no property names classes, all are of the class `layer`, unless that is empty.
        """
        found = []
        for number, feature in enumerate(features, 1):
            try:
                polygons = self._polygons(feature["geometry"])
                values = feature["properties"] or {}
                found.append((number, {key.lower(): values[key] for key in values}, polygons))
            except BROKEN:
                self.out.problems.append(f"{name}: feature {number} is no valid area")
        key = next((key for key in self.keys if any(key in values for _, values, _ in found)), "")
        areas = []
        if found and layer and not key:
            others = ", ".join(dict.fromkeys(key for _, values, _ in found for key in values))
            hint = f"; --class-key names another property ({others:.80})" if others else ""
            self.out.notes.append(f"{name}: all of class '{layer}', after the file{hint}")
        for number, values, polygons in found:
            title = self._class(values.get(key) if key or not layer else layer)
            if polygons and title:
                areas.append(_Area(title, polygons))
            elif polygons:
                wanted = key or " or ".join(self.keys)
                self.out.problems.append(f"{name}: feature {number} has no property {wanted}")
        return areas

    def _polygons(self, geometry: Any) -> list[list[np.ndarray]]:
        """Polygons of a geometry; none, and counted, where it has no area."""
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
        """Name of a class; empty where there is none."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int:
            return self.known.get(value, f"class_{value}")
        return value.strip() if isinstance(value, str) else ""


def _moved(areas: list[_Area], to: Callable[[np.ndarray], np.ndarray]) -> list[_Area]:
    """Areas with all their points (N, 2) led through a function at once."""
    lines = [line for area in areas for polygon in area.polygons for line in polygon]
    if not lines:
        return areas
    ends = np.cumsum([len(line) for line in lines])[:-1]
    parts = iter(np.split(to(np.concatenate(lines)), ends))
    return [
        area._replace(polygons=[[next(parts) for _ in polygon] for polygon in area.polygons])
        for area in areas
    ]


def _route(name: str, own: str, target: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Leads points from a file's reference system to an image's; as they are if one is not known.

    Raises:
        SetrError: an unknown system; when called, points that have no place in the other.
    """
    if target is None or not own:
        return lambda points: points
    gdal = import_gdal(name)
    from rasterio.warp import transform

    try:
        with gdal.Env():  # or PROJ writes to stderr itself
            system = gdal.CRS.from_user_input(own)
    except Exception:
        raise SetrError(f"{name}: unknown reference system '{own:.60}'") from None

    def lead(points: np.ndarray) -> np.ndarray:
        try:
            return np.stack(transform(system, target, *points.T), axis=1)
        except Exception as error:
            systems = f"{own:.60} to {target.to_string():.60}"
            raise SetrError(
                f"{name}: cannot be led from {systems} ({gdal_reason(error):.80})"
            ) from None

    return (lambda points: points) if system == target else lead


def _led(points: np.ndarray, transform: Any) -> np.ndarray:
    """Points (N, 2) led through an affine transform."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return points @ np.array([[a, d], [b, e]]) + (c, f)


def _crs(content: dict[str, Any]) -> str:
    """Name of the reference system: of the member `crs`, which older files have, or WGS 84."""
    if "crs" not in content:
        return WGS84
    try:
        return str(content["crs"]["properties"]["name"])
    except (TypeError, KeyError):
        return ""

"""Features of Shapefiles and GeoPackages, in the form of GeoJSON (extra `geo`).

Geometries are exchanged in their well-known binary form (OGC 06-103r4, section 8).
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setr._extras import import_extra
from setr.errors import SetrError, first_line

Box = tuple[float, float, float, float]
"""Smallest x and y, largest x and y."""
FORMATS = {".shp": "Shapefile", ".gpkg": "GeoPackage"}
"""Formats by the suffix of their files."""
_HEADS = {".shp": b"\0\0\x27\x0a", ".gpkg": b"SQLite format 3\0"}
"""First bytes; GDAL would open other files, too, some of which name further files or addresses."""
_SHP_LENGTH = (24, 28)
"""Place of a Shapefile's length in words of two bytes (ESRI's technical description, table 1)."""
_KINDS = {
    **{1: "Point", 2: "LineString", 3: "Polygon", 4: "MultiPoint", 5: "MultiLineString"},
    **{
        6: "MultiPolygon",
        7: "GeometryCollection",
        15: "PolyhedralSurface",
        16: "TIN",
        17: "Polygon",
    },
}


class VectorLayer(NamedTuple):
    """A layer of a file.

    Attributes:
        path: the file.
        name: of the layer.
        crs: reference system, as `EPSG:32633` or WKT; empty if the file names none.
        total: number of features.
    """

    path: Path
    name: str
    crs: str
    total: int

    def features(self, box: Box | None = None) -> list[dict[str, Any]]:
        """Features with `geometry` and `properties`; rings are arrays (N, 2).

        Args:
            box: if given, only features that may meet it, in the layer's coordinates.

        Raises:
            SetrError: broken file.
        """
        try:
            meta, _, shapes, columns = self._read(box)
        except Exception as error:
            raise _unreadable(self.path, error) from None
        names = [str(name) for name in meta["fields"]]
        rows = zip(*(column.tolist() for column in columns), strict=True)
        values: Sequence[Any] = list(rows) or [()] * len(shapes)
        return [
            {"geometry": _geometry(shape), "properties": dict(zip(names, row, strict=True))}
            for shape, row in zip(shapes, values, strict=True)
        ]

    def _read(self, box: Box | None) -> Any:
        """What pyogrio reads of the layer.

        It takes the text of Shapefiles without a .cpg file for Latin-1. Other text is not valid
        UTF-8 by chance, so that is tried first.
        """
        raw = import_extra("pyogrio.raw", "geo", str(self.path))
        options = {"layer": self.name, "force_2d": True, "bbox": box, "datetime_as_string": True}
        cpg = (self.path.with_suffix(".cpg"), self.path.with_suffix(".CPG"))
        with _quiet():
            if self.path.suffix.lower() == ".shp" and not any(path.exists() for path in cpg):
                with contextlib.suppress(UnicodeDecodeError):
                    return raw.read(self.path, encoding="UTF-8", **options)
            return raw.read(self.path, **options)


def vector_layers(path: Path) -> list[VectorLayer]:
    """The layers of a file that have geometries, in its order.

    Raises:
        SetrError: extra `geo` missing, broken file, or another format.
    """
    kind = path.suffix.lower()
    pyogrio = import_extra("pyogrio", "geo", f"{path}: reading a {FORMATS[kind]}")
    try:
        with path.open("rb") as file:
            head, size = file.read(_SHP_LENGTH[1]), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise SetrError(f"{path}: cannot read: {error.strerror}") from None
    if not head.startswith(_HEADS[kind]):
        raise SetrError(f"{path}: not a {FORMATS[kind]}")
    stated = 2 * int.from_bytes(head[slice(*_SHP_LENGTH)], "big") if kind == ".shp" else 0
    if size < stated:  # GDAL would read the missing features as ones without a geometry
        raise SetrError(f"{path}: cut off, {size:,} of {stated:,} bytes; copy it again")
    try:
        with _quiet():
            named = [str(name) for name, geometry in pyogrio.list_layers(path) if geometry]
            facts = [pyogrio.read_info(path, layer=n, force_feature_count=True) for n in named]
    except Exception as error:
        raise _unreadable(path, error) from None
    return [
        VectorLayer(path, name, fact["crs"] or "", fact["features"])
        for name, fact in zip(named, facts, strict=True)
    ]


def wkb_polygon(rings: Sequence[np.ndarray]) -> bytes:
    """Well-known binary form of a polygon: closed rings (N, 2), its outline and then its holes."""
    parts = [struct.pack("<I", len(ring)) + ring.astype("<f8").tobytes() for ring in rings]
    return struct.pack("<BII", 1, 3, len(rings)) + b"".join(parts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of measured geometries, which lose their measures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _unreadable(path: Path, error: Exception) -> SetrError:
    if isinstance(error, UnicodeDecodeError):
        return SetrError(
            f"{path}: its text is not in {error.encoding}; correct the encoding in its .cpg file, "
            "such as CP1252"
        )
    kind = FORMATS[path.suffix.lower()]
    return SetrError(f"{path}: broken {kind} ({first_line(error):.160})")


def _geometry(wkb: bytes | None) -> dict[str, Any] | None:
    """A geometry in two dimensions from its well-known binary form."""
    return None if wkb is None else _parsed(wkb, 0)[0]


def _parsed(wkb: bytes, place: int) -> tuple[dict[str, Any], int]:
    """The geometry at a place, and the place after it; of those without area, only the type."""
    order = "<" if wkb[place] else ">"
    (code,) = struct.unpack_from(f"{order}I", wkb, place + 1)
    kind, place = _KINDS.get(code, f"type {code}"), place + 5
    if kind == "Point":
        return {"type": kind}, place + 16
    (count,) = struct.unpack_from(f"{order}I", wkb, place)
    place += 4
    if kind == "LineString":
        return {"type": kind}, place + 16 * count
    parts: list[Any] = []
    for _ in range(count):
        if kind == "Polygon":
            (points,) = struct.unpack_from(f"{order}I", wkb, place)
            parts.append(np.frombuffer(wkb, f"{order}f8", 2 * points, place + 4).reshape(-1, 2))
            place += 4 + 16 * points
        else:
            part, place = _parsed(wkb, place)
            parts.append(part)
    if kind == "MultiPolygon":
        parts = [part["coordinates"] for part in parts]
    member = "geometries" if kind == "GeometryCollection" else "coordinates"
    return {"type": kind, member: parts}, place

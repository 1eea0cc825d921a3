"""Result: the prediction for one image, in every form in which it can be used or saved.

Images (`mask`, `ids`, `color`, `overlay`, `confidence`), arrays (`scores`), class shares (`share`)
and polygons (`geojson`, `gpkg`, `coco`, `coco_rle`, `labelme`). `Result.save` writes one of them
(`encoding.py`); `outputs.py` writes several, named after the image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from setr.arguments.elsewhere_python import HintsAtNames
from setr.arguments.typed import checked
from setr.errors import UsageError
from setr.images import encode_png
from setr.labels import IGNORE, Labels
from setr.pages.montage import shrunk
from setr.prediction import display
from setr.prediction.annotations import to_coco, to_geojson, to_geopackage, to_labelme
from setr.prediction.chosen import chosen_ids, shown_only
from setr.prediction.encoding import json_file, picture_file, require_options, scores_file
from setr.prediction.ground import ClassAreas, Georeference
from setr.prediction.kinds import OPACITY, RASTER_PICTURES, checked_suffix
from setr.prediction.late_scores import LateScores
from setr.prediction.polygons import Polygon, PolygonOptions, mask_polygons, simplified
from setr.prediction.rasters import RasterWriter
from setr.prediction.shares import checked_confidence, class_shares, largest, share_table, unlabel
from setr.reading.files import printable
from setr.reading.storage import is_address
from setr.writing import make_folder, write_bytes

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Result(HintsAtNames):
    """The prediction for one image, as a `Predictor` makes it.

    Picklable; `scores` are included if they were computed.

    Attributes:
        image: the input image, uint8 RGB (H, W, 3).
        mask: predicted class ids, uint8 (H, W); 255 where unlabelled: a raster's pixels without
            data, and pixels below `min_confidence`.
        confidence: probability of the predicted class, float32 (H, W), 0 to 1; 0 for a raster's
            pixels without data.
        labels: names and colours of the classes.
        path: path of the image file; empty for images from memory.
        name: `file_name` in COCO files: the path relative to the folder that was searched; if
            empty, the name of the file is used.
        geo: georeference of a raster; None for other images.
        min_confidence: pixels whose class is less probable are unlabelled; 0 for none.
        unsure: number of pixels that are unlabelled for this reason.
    """

    def __init__(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        confidence: np.ndarray,
        labels: Labels,
        compute_scores: Callable[[], np.ndarray],
        *,
        path: str = "",
        geo: Georeference | None = None,
    ) -> None:
        self.image, self.mask, self.confidence, self.labels = image, mask, confidence, labels
        self.path, self.geo, self.name = path, geo, ""
        self.min_confidence, self.unsure = 0.0, 0
        self._compute_scores = LateScores(compute_scores)
        self._regions: tuple[int, set[int], list[Polygon]] | None = None  # least pixels, classes

    @cached_property
    def scores(self) -> np.ndarray:
        """Class probabilities, float32 (K, H, W); they sum to 1 over K.

        Computed on first access by running the model again, because the scores of large images with
        many classes may not fit into memory.

        Raises:
            SetrError: not computed before the result was pickled.
        """
        return self._compute_scores()

    @checked
    def with_min_confidence(self, least: float) -> Result:
        """A copy with pixels unlabelled (255) whose class is less probable than `least`.

        `confidence` and `scores` are unchanged; pixels that are already unlabelled stay so.

        Raises:
            SetrError: `least` is not within 0 to 1.
        """
        mask = self.mask.copy()
        unsure = unlabel(mask, self.confidence, checked_confidence(least))
        found = Result(self.image, mask, self.confidence, self.labels, lambda: self.scores)
        found.path, found.geo, found.name = self.path, self.geo, self.name
        found.min_confidence = max(self.min_confidence, least)
        found.unsure = self.unsure + unsure
        return found

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the image's pixels for each class that occurs, largest first.

        What is missing to 1 is unlabelled because of `min_confidence`.
        """
        counts = np.bincount(self.mask.ravel(), minlength=256)
        return class_shares(counts, self.labels.classes, self.unsure)

    @cached_property
    def areas(self) -> dict[str, float]:
        """Square metres on the ground of each class that occurs, largest first (extra `geo`).

        Empty for images without a georeference, or with an unknown reference system.
        """
        found = ClassAreas(self.geo, len(self.labels.classes))
        found.add(self.mask)
        return found.by_class(self.labels.classes)

    @checked
    def polygons(
        self, *, tolerance: float = 0.0, min_pixels: int = 1, classes: Sequence[str] = ()
    ) -> list[Polygon]:
        """One polygon per connected region of a class (neighbours share an edge), with its holes.

        Ordered by class and from top to bottom. A `Polygon` has `class_id`, `rings` of int32 points
        (N, 2), x then y, along the edges of pixels, `pixels` (its area) and `box` (x, y, width,
        height).

        Args:
            tolerance: maximum distance in pixels that simplification (Douglas and Peucker, 1973)
                may move the outline, 0 to 1,000,000; 0 keeps it exact.
            min_pixels: regions with fewer pixels are left out.
            classes: names of the classes to outline; all by default.

        Raises:
            SetrError: another tolerance, or a name that no class has.
        """
        least, ids = max(1, min_pixels), set(chosen_ids(classes, self.labels.classes))
        if self._regions is None or self._regions[0] > least or not ids <= self._regions[1]:
            count = len(self.labels.classes)
            found = mask_polygons(self.mask, count, min_pixels=least, class_ids=ids)
            self._regions = least, ids, found
        return [
            simplified(p, tolerance)
            for p in self._regions[2]
            if p.pixels >= least and p.class_id in ids
        ]

    def geojson(self, **options: Unpack[PolygonOptions]) -> dict[str, Any]:
        """A GeoJSON FeatureCollection, in map coordinates for georeferenced images, else in pixels.

        Arguments and errors are those of `polygons`.
        """
        return to_geojson(self.polygons(**options), self.labels, geo=self.geo)

    def geopackage(self, **options: Unpack[PolygonOptions]) -> bytes:
        """A GeoPackage with the features of `geojson` (extra `geo`); arguments as `polygons`.

        Raises:
            SetrError: as `polygons`, or the extra is not installed.
        """
        return to_geopackage(self.polygons(**options), self.labels, geo=self.geo)

    def coco(
        self, *, all_run_lengths: bool = False, **options: Unpack[PolygonOptions]
    ) -> dict[str, Any]:
        """A COCO data set of this image, with one annotation per region.

        Args:
            all_run_lengths: encode all regions as RLE; by default polygons, and RLE for regions
                with holes.
            options: arguments of `polygons`. Run lengths stay exact whatever the tolerance.
        """
        tolerance = options.pop("tolerance", 0.0)
        return to_coco(
            self.polygons(**options),
            self.labels,
            file_name=printable(self.name or os.path.basename(self.path)),
            size=self.mask.shape,
            tolerance=tolerance,
            all_run_lengths=all_run_lengths,
        )

    def labelme(
        self, *, folder: str | os.PathLike = "", **options: Unpack[PolygonOptions]
    ) -> dict[str, Any]:
        """The content of a LabelMe file.

        Args:
            folder: folder of the LabelMe file. It names the image by its path relative to this
                folder, or by its file name if either has a storage address (s3://…).
            options: arguments of `polygons`.
        """
        image = os.path.basename(self.path)
        if image and not any(is_address(os.fspath(place)) for place in (self.path, folder)):
            image = os.path.relpath(self.path, folder or ".")
        polygons = self.polygons(**options)
        return to_labelme(polygons, self.labels, file_name=printable(image), size=self.mask.shape)

    def color(self) -> np.ndarray:
        """The mask in class colours, uint8 RGB (H, W, 3)."""
        return self.labels.palette[self.mask]

    @checked
    def overlay(self, opacity: float = OPACITY, classes: Sequence[str] = ()) -> np.ndarray:
        """The class colours blended over the image, uint8 RGB (H, W, 3).

        Args:
            opacity: of the colours, 0 to 1.
            classes: names of the classes to colour; the image is left as it is elsewhere. By
                default all, and unlabelled pixels black.

        Raises:
            SetrError: another opacity, or a name that no class has.
        """
        if not 0 <= opacity <= 1:
            raise UsageError(f"opacity {opacity:g}: give 0 to 1")
        ids = chosen_ids(classes, self.labels.classes)
        blended = cv2.addWeighted(self.image, 1 - opacity, self.color(), opacity, 0)
        return shown_only(blended, self.image, self.mask, ids) if classes else blended

    def share(self) -> dict[str, Any]:
        """Image size, mean confidence, and share and number of pixels per class, JSON-serialisable.

        Of a georeferenced image also the square metres per class (`area_m2`). With
        `min_confidence`, also its value and the share of unlabelled pixels.
        """
        counts = np.bincount(self.mask.ravel(), minlength=256)
        empty = int(counts[IGNORE]) - self.unsure if self.geo else 0
        return share_table(
            printable(self.path),
            self.mask.shape,
            float(self.confidence.sum(dtype=np.float64)) / max(1, self.mask.size - empty),
            counts,
            self.labels.classes,
            unsure=self.unsure,
            min_confidence=self.min_confidence,
            areas=self.areas,
        )

    @checked
    def save(self, path: str | os.PathLike, kind: str = "mask", **options: Any) -> None:
        """Write one output, such as the mask, to a file. The file is written atomically.

        The suffix of the path selects the format: .png, .tif or .bmp for images, also .jpg or .webp
        (quality 95) for `color`, `overlay` and `confidence`, whose values need not be exact. A .tif
        of a georeferenced image's `mask`, `ids` or `confidence` is a GeoTIFF. A path without a
        suffix gets the kind's default format.

        Args:
            path: the file to write; missing folders are created.
            kind: `mask`, `ids`, `color`, `overlay`, `confidence`, `scores`, `share`, `geojson`,
                `gpkg`, `coco`, `coco_rle` or `labelme`.
            options: `opacity` and `classes` for `overlay`; `tolerance`, `min_pixels` and `classes`
                for polygons, see `polygons`.

        Raises:
            SetrError: unknown kind, a suffix that does not fit the kind, or a file that cannot be
                written.
            TypeError: an option that the kind does not have.
        """
        path = Path(path)
        suffix = checked_suffix(path, kind)
        on_map = self.geo and suffix in (".tif", ".tiff") and kind in RASTER_PICTURES
        data = b"" if on_map else self.encode(kind, folder=path.parent, suffix=suffix, **options)
        make_folder(path.parent)
        if self.geo and on_map:
            require_options(kind, options)
            labels = self.labels if kind == "mask" else None
            with RasterWriter(path, self.mask.shape, self.geo, kind, labels) as file:
                file.write(_PICTURES[kind](self), 0, 0)
        else:
            write_bytes(path, data)

    @checked
    def encode(
        self, kind: str, *, folder: str | os.PathLike = "", suffix: str = "", **options: Any
    ) -> bytes:
        """The bytes of the file that `save` writes.

        Args:
            kind: see `save`.
            folder: folder of the file, for `labelme`.
            suffix: its format, such as `.jpg`; by default the kind's own.
            options: see `save`.

        Raises:
            SetrError: unknown kind, or a format that does not fit it.
            TypeError: an option that the kind does not have.
        """
        require_options(kind, options)
        ending = suffix and f".{suffix.removeprefix('.')}"
        suffix = checked_suffix(Path(f"file{ending}"), kind)
        if kind == "scores":
            return scores_file(self.scores, self.labels)
        if kind == "gpkg":
            return self.geopackage(**options)
        if kind in _PICTURES:
            palette = self.labels.palette if kind == "mask" else None
            return picture_file(_PICTURES[kind](self, **options), suffix, palette)
        if kind == "labelme":
            options["folder"] = folder
        return json_file(_OBJECTS[kind](self, **options))

    def show(self) -> None:
        """Open the overlay with its legend in the system's viewer of pictures.

        Names whose letters no font of this machine has appear as the numbers of their classes.

        Raises:
            SetrError: the system has none, or no screen.
        """
        display.open_viewer(display.picture(self.overlay(), self.labels, self.shares))

    if not TYPE_CHECKING:  # else every result would be a sequence

        def __getitem__(self, _):  # also asked by loops
            raise TypeError(
                "'Result' is of one image and no list: take result.mask, result.scores[k] or "
                "result.polygons() of it; predictor.predict_all gives one result for each image"
            )

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"<Result {width}x{height}: {largest(self.shares, self.min_confidence, self.areas)}>"

    def _repr_png_(self) -> bytes:
        """The overlay with a legend below, for viewers without HTML."""
        return encode_png(display.picture(self._small_overlay(), self.labels, self.shares))

    def _repr_html_(self) -> str:
        """The overlay with a legend and the classes' shares, for notebooks."""
        return display.page_part(self._small_overlay(), self.labels, self.shares)

    def _small_overlay(self) -> np.ndarray:
        return shrunk(self.overlay(), display.NOTEBOOK_WIDTH)


_PICTURES: dict[str, Callable[..., np.ndarray]] = {
    "mask": lambda r: r.mask,
    "ids": lambda r: r.mask,
    "color": Result.color,
    "overlay": Result.overlay,
    "confidence": lambda r: np.rint(r.confidence * 255).astype(np.uint8),
}
_OBJECTS: dict[str, Callable[..., dict[str, Any]]] = {
    "share": Result.share,
    "geojson": Result.geojson,
    "coco": Result.coco,
    "coco_rle": lambda r, **options: r.coco(all_run_lengths=True, **options),
    "labelme": Result.labelme,
}

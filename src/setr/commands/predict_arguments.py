"""The options of `setr predict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from setr.arguments.choices import Precision, ServerName
from setr.commands.shared import Device, Flip, Model, NoFlip, Scales, Words
from setr.prediction.kinds import OPACITY
from setr.processes.quota import cpus
from setr.reading.pillow import MAX_PIXELS


@dataclass(frozen=True)
class Arguments:
    """Segment images; every output has the size of its input.

    OUT/manifest.jsonl has one line per image. The same command continues where a stopped one ended,
    and does again what has changed since: images, model or settings.

    setr predict runs/mine holiday.jpg -o out --save mask,overlay
    setr predict runs/mine photos/ clip.mp4 -o out
    """

    model: Model
    """A model directory, Hub name, checkpoint or file of `setr export`; several models, joined with
    commas, or a quoted pattern of folders: the mean of their probabilities."""
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGES…", help_behavior_hint="(required)"),
    ]
    """Files, folders (walked; hidden files and OUT left out), quoted globs, text files with one of
    these in each line (.txt), videos, GeoTIFF files, tar shards, Parquet files, or addresses of
    images and archives for fsspec (s3://…). Or one live source: the number of a camera (0), or the
    address of a stream (rtsp://…)."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder or fsspec address for the results, named after the images (a.png and a.jpg give
    a.png.png, a.jpg.png); the layout of a walked folder is kept."""
    save: str | None = None
    """What to write, joined with commas: mask (palette PNG of ids; GeoTIFF of a GeoTIFF), ids (grey
    PNG), color, overlay, confidence, scores, share, geojson, gpkg, coco, coco_rle, labelme. By
    default mask, and of a video overlay."""
    tolerance: float = 0.0
    """Polygons may leave out corners where that moves the outline by at most so many pixels."""
    min_pixels: int = 1
    """Polygons of smaller regions are left out."""
    opacity: float = OPACITY
    """Of the class colours in overlays, from 0 to 1."""
    classes: Words = ()
    """Names of the classes that overlays and polygons show; by default all."""
    min_confidence: float = 0.0
    """Pixels whose class is less probable, 0 to 1, are unlabelled: 255 in masks, black in colours,
    in no polygon."""
    protocol: str | None = None
    """paper-ss, paper-ms, mmseg-ss, mmseg-ms or whole, as in `setr eval`; the model's own if not
    given. GeoTIFF files are run as they are, without this, --scales, --flip and --short-side."""
    scales: Scales = None
    flip: Flip = False
    no_flip: NoFlip = False
    short_side: int | None = None
    """Images are first scaled to this short side in pixels, in place of the protocol's; a smaller
    one is faster. Outputs keep the size of the image."""
    window: int | None = None
    """Run images by blended windows of so many pixels, whatever the model's protocol."""
    bands: str = ""
    """Bands of a GeoTIFF shown as red, green and blue, such as 4,3,2; by default the first. Of a
    model that was trained on bands, those of every file; by default its own."""
    value_range: str = ""
    """Values of these files that become 0 and 255, such as 0,3000; by default the model's, else the
    whole range of 8 and 16 bits."""
    allow_urls: bool = False
    """Download images named by http(s) addresses, and open streams."""
    seconds: float | None = None
    """End a live source after so many seconds; by default it runs until Ctrl-C."""
    submit: ServerName | None = None
    """Write only OUT/NAME.zip, in the form that data set's test server takes."""
    pack: Literal["no", "tar", "parquet"] = "no"
    """Write archives of many results instead of single files."""
    pack_samples: int = 1000
    """Results per archive."""
    manifest: Literal["jsonl", "parquet"] = "jsonl"
    """parquet writes the manifest also as a table when all is done."""
    retry: bool = False
    """Try images again that failed before."""
    shard: str = "0/1"
    """i/n does only the i-th part of n, counted from 0, for n processes that share OUT."""
    batch: int = 8
    """Images of one size per pass of the model."""
    exact: bool = True
    """Batch only where that gives, bit for bit, the results of one by one."""
    workers: int = min(4, cpus())
    """Threads that decode, and as many that encode."""
    engine: Literal["plain", "ray"] = "plain"
    """ray: a pool of actors, here or on the cluster RAY_ADDRESS names (extra ray)."""
    actors: int | None = None
    """Of the Ray engine; one per GPU, or as many as the processors suffice for, if not given."""
    device: Device = "auto"
    precision: Precision = "auto"
    """Of the forward pass."""
    max_pixels: int = MAX_PIXELS
    """Larger images are refused from their header."""
    json: bool = False
    """Print one JSON object with the outcome of every image."""

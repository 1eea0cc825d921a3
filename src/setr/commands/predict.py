"""`setr predict MODEL IMAGES… -o OUT`."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from setr.cli import parse
from setr.errors import FAILED, OK, USAGE, SetrError
from setr.images import MAX_PIXELS, list_images

if TYPE_CHECKING:
    from setr.labels import Labels
    from setr.predictor import Predictor
    from setr.streams import Stream

Write = Callable[[Path, Path, Any], list[str]]
"""Image, output name without ending, `Result` -> the files written."""


@dataclass(frozen=True)
class Arguments:
    """Segment images; every output has the size of its input."""

    model: tyro.conf.Positional[str]
    """A model directory."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders (walked, hidden files left out), quoted globs, videos, GeoTIFF files."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder for the results, named after the images (a.png and a.jpg give a.png.png, a.jpg.png);
    the layout of a walked folder is kept."""
    save: str | None = None
    """What to write, joined with commas: mask (palette PNG of ids; GeoTIFF of a GeoTIFF), ids (grey
    PNG), color, overlay, confidence, scores, share, geojson, coco, coco_rle, labelme. By default
    mask, and of a video overlay."""
    tolerance: float = 0.0
    """Polygons may leave out corners where that moves the outline by at most so many pixels."""
    min_pixels: int = 1
    """Polygons of smaller regions are left out."""
    window: int | None = None
    """Run images by blended windows of so many pixels, whatever the model's protocol."""
    bands: str = ""
    """Bands of a GeoTIFF shown as red, green and blue, such as 4,3,2; by default the first."""
    value_range: str = ""
    """Values of a GeoTIFF that become 0 and 255, such as 0,3000; 8 and 16 bits have a default."""
    allow_urls: bool = False
    """Download images named by http(s) addresses."""
    submit: Literal["cityscapes", "ade20k"] | None = None
    """Write only OUT/NAME.zip, in the form that data set's test server takes."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the forward pass."""
    max_pixels: int = MAX_PIXELS
    """Larger images are refused from their header."""
    json: bool = False
    """Print one JSON object with the outcome of every image."""


def run(arguments: list[str]) -> int:
    """Segment every image; broken ones are named at the end, exit code 1."""
    given = parse(Arguments, arguments, "predict")
    from setr.outputs import parse_kinds
    from setr.predictor import load
    from setr.streams import split_sources

    kinds = parse_kinds(given.save or "mask")
    streams, rest = split_sources(given.images)
    if given.submit and streams:
        raise SetrError(f"--submit takes images, not {streams[0].source}", code=USAGE)
    special = {stream.source for stream in streams}
    files = [file for file in find_images(tuple(rest)) if str(file[0]) not in special]
    outputs = _output_names(files, Path(given.out))
    predictor = load(
        given.model,
        device=given.device,
        precision=given.precision,
        max_pixels=given.max_pixels,
        window=given.window,
        allow_urls=given.allow_urls,
    )
    outcomes, broken = _run_streams(given, predictor, streams, outputs)
    with _writer(given, kinds, predictor.info.labels) as write:
        for done, ((path, _), output) in enumerate(zip(files, outputs, strict=True), 1):
            try:
                result = predictor.predict(path)
                outcomes.append({"image": str(path), "files": write(path, output, result)})
                if not given.json:
                    print(_printable(f"{done}/{len(files)}  {path}  {result!r}"))
            except SetrError as error:
                if given.submit:  # a server refuses a submission with holes
                    raise
                broken.append(str(error))
                outcomes.append({"image": str(path), "error": str(error)})
    if given.json:
        print(json.dumps({"images": outcomes, "failed": len(broken)}))
    for problem in broken:
        print(f"setr: {_printable(' '.join(problem.split()))}", file=sys.stderr)
    if broken:
        total = len(files) + len(streams)
        print(f"setr: {len(broken)} of {total} images failed", file=sys.stderr)
    return FAILED if broken else OK


def _run_streams(
    given: Arguments, predictor: Predictor, streams: list[Stream], taken: list[Path]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Segment videos, GeoTIFF files and addresses; the outcome of each, and what went wrong."""
    from setr.outputs import parse_kinds
    from setr.progress import counting
    from setr.streams import predict_stream, stems

    outcomes: list[dict[str, Any]] = []
    broken = []
    for stream, stem in zip(streams, stems(streams, Path(given.out), taken), strict=True):
        try:
            files, text = predict_stream(
                predictor,
                stream,
                stem,
                parse_kinds(given.save) if given.save else None,
                bands=tuple(int(band) for band in _numbers("bands", given.bands)),
                value_range=_range(given.value_range),
                polygon_options={"tolerance": given.tolerance, "min_pixels": given.min_pixels},
                on_frame=counting(os.path.basename(stream.source)),
            )
            outcomes.append({"image": stream.source, "files": [str(file) for file in files]})
            if not given.json:
                print(_printable(f"{stream.source}  {text}"))
        except SetrError as error:
            broken.append(str(error))
            outcomes.append({"image": stream.source, "error": str(error)})
    return outcomes, broken


def _range(text: str) -> tuple[float, float] | None:
    values = _numbers("value-range", text)
    if values and len(values) != 2:
        raise SetrError(f"--value-range {text}: give two numbers, such as 0,3000", code=USAGE)
    return (values[0], values[1]) if values else None


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise SetrError(f"--{flag} {text}: give numbers joined with commas", code=USAGE) from None


@contextmanager
def _writer(given: Arguments, kinds: tuple[str, ...], labels: Labels) -> Iterator[Write]:
    """What happens to each result: files of the kinds asked for, or an entry of a submission."""
    from setr.outputs import write
    from setr.result import Result

    def save(_: Path, output: Path, result: Result) -> list[str]:
        options = {"tolerance": given.tolerance, "min_pixels": given.min_pixels}
        return [str(path) for path in write(result, output, kinds, **options)]

    if given.submit is None:
        yield save
        return
    from setr.submissions import Submission, check_submission

    path = Path(given.out) / f"{given.submit}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Submission(given.submit, path, labels) as submission:

        def add(image: Path, _: Path, result: Result) -> list[str]:
            submission.add(image.name, result.mask)
            return [str(path)]

        yield add
    count = check_submission(given.submit, path)
    print(f"setr: {path}: {count} predictions, checked against the server's rules", file=sys.stderr)


def find_images(sources: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """Files, folders and globs -> (file, its path below what was asked for), no file twice.

    Raises:
        SetrError: a source that names nothing.
    """
    found: dict[Path, Path] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = [(file, file.relative_to(path)) for file in list_images(path)]
        elif path.exists() or path.is_symlink() or not glob.has_magic(source):
            inside = [(path, Path(path.name))]
        else:
            inside = [(Path(f), Path(Path(f).name)) for f in sorted(glob.glob(source))]
        if not inside:
            raise SetrError(f"{source}: no images found here", code=USAGE)
        for file, below in inside:
            found.setdefault(file, below)
    return list(found.items())


def _output_names(files: list[tuple[Path, Path]], out: Path) -> list[Path]:
    """Output names without ending, one per image: its stem, or its whole name where stems clash.

    Raises:
        SetrError: two images would still write to one name.
    """
    stems = Counter(below.with_suffix("") for _, below in files)
    names: dict[Path, Path] = {}
    for file, below in files:
        stem = below.with_suffix("")
        name = out / (stem if stems[stem] == 1 else below)
        if name in names:
            raise SetrError(
                f"{file} and {names[name]} would both write {name}.png; use two output folders",
                code=USAGE,
            )
        names[name] = file
    return list(names)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")

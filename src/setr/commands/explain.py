"""`setr explain attention|features|position|compare …`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from setr.commands.parsing import parse, require_at_least, require_file
from setr.commands.shared import Device, Model, Out, Words, model_names
from setr.errors import OK, USAGE, UsageError, nearest
from setr.processes.standard_streams import tell
from setr.writing import require_writable

if TYPE_CHECKING:
    from setr.labels import Labels
    from setr.pages.figures import Figure, View
    from setr.predictor import Predictor

Picture = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
Layers = Annotated[
    tuple[str, ...],
    tyro.conf.arg(aliases=["--layer"], metavar="INT…", help_behavior_hint="(default: none)"),
]


@dataclass(frozen=True)
class Attention:
    """What a point of the image attends to, per head and layer (Figure 6 of the paper).

    setr explain attention runs/mine street.jpg --point 120,250 --layers 6 12
    """

    model: Model
    """Model directory, Hub name or checkpoint."""
    image: Picture
    """Image file."""
    point: Words = ()
    """Points X,Y in pixels of the image; its centre if not given."""
    layers: Layers = ()
    """Blocks, counted from 1; the last if not given."""
    head: int | None = None
    """One head, counted from 1; all of them and their mean if not given."""
    short_side: int | None = None
    """Short side the image is scaled to; the model's own if not given."""
    device: Device = "auto"
    out: Out = Path("explain")
    """Folder for attention.png and attention.html."""


@dataclass(frozen=True)
class Features:
    """Outputs of layers as colours and as their strongest channels (Figure 5 of the paper).

    setr explain features runs/mine street.jpg --layers 1 4 8 12
    """

    model: Model
    """Model directory, Hub name or checkpoint."""
    image: Picture
    """Image file."""
    layers: Layers = ()
    """Blocks, counted from 1; four spread evenly if not given."""
    channels: int = 4
    """Channel maps per layer."""
    short_side: int | None = None
    """Short side the image is scaled to; the model's own if not given."""
    device: Device = "auto"
    out: Out = Path("explain")
    """Folder for features.png and features.html."""


@dataclass(frozen=True)
class Position:
    """How similar the position embeddings of patches are.

    setr explain position runs/mine
    """

    model: Model
    """Model directory, Hub name or checkpoint."""
    grid: int = 7
    """Rows and columns of positions shown."""
    out: Out = Path("explain")
    """Folder for position.png and position.html."""


@dataclass(frozen=True)
class Compare:
    """Two models side by side on one image (Figures 2 to 4 of the paper).

    setr explain compare street.jpg runs/mine runs/other --truth mask.png
    """

    image: Picture
    """Image file."""
    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """First model."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Second model."""
    truth: Path | None = None
    """Label image of the truth."""
    device: Device = "auto"
    out: Out = Path("explain")
    """Folder for compare.png and compare.html."""


def run(arguments: list[str]) -> int:
    """Make one of the figures."""
    kinds: dict[str, tuple[Any, Callable[[Any], None]]] = {
        "attention": (Attention, _attention),
        "features": (Features, _features),
        "position": (Position, _position),
        "compare": (Compare, _compare),
    }
    kind = arguments[0] if arguments else "--help"
    if kind in ("-h", "--help"):
        print("usage: setr explain KIND …    setr explain KIND --help\n")
        for name, (options, _) in kinds.items():
            print(f"  {name:<10} {options.__doc__.splitlines()[0]}")
        return OK if arguments else USAGE
    if kind not in kinds:
        near = nearest(kind, kinds)
        hint = f"did you mean '{near}'?" if near else f"choose from {', '.join(kinds)}"
        raise UsageError(f"explain '{kind}': {hint}")
    options, make = kinds[kind]
    given = parse(options, arguments[1:], f"explain {kind}")
    require_writable(given.out, "-o")
    make(given)
    return OK


def _attention(given: Attention) -> None:
    from setr.pages.figures import attention_figure

    points, layers = [_point(text) for text in given.point], _numbers(given.layers)
    predictor, view = _opened(given)
    figure = attention_figure(predictor, view, points, layers, given.head)
    _write(given.out, "attention", f"Attention of {given.model}", figure)


def _features(given: Features) -> None:
    from setr.pages.figures import features_figure

    layers = _numbers(given.layers)
    require_at_least(given, 1, "channels")
    predictor, view = _opened(given)
    figure = features_figure(predictor, view, layers, given.channels)
    _write(given.out, "features", f"Features of {given.model}", figure)


def _opened(given: Attention | Features) -> tuple[Predictor, View]:
    """The model, and the image as it sees it."""
    from setr.loading import load
    from setr.pages.figures import open_view

    require_at_least(given, 1, "short_side")
    _require_image(given.image, f"{type(given).__name__.lower()} MODEL IMAGE")
    predictor = load(given.model, device=given.device)
    return predictor, open_view(predictor, given.image, given.short_side)


def _position(given: Position) -> None:
    from setr.loading import load
    from setr.pages.figures import position_figure

    require_at_least(given, 1, "grid")
    figure = position_figure(load(given.model, device="cpu"), given.grid)
    _write(given.out, "position", f"Position embeddings of {given.model}", figure, width=150)


def _compare(given: Compare) -> None:
    from setr.loading import load
    from setr.pages.figures import compare_figure

    _require_image(given.image, "compare IMAGE A B")
    if given.truth:
        require_file(given.truth)
    a, b = (load(model, device=given.device) for model in (given.a, given.b))
    names = model_names((given.a, given.b))
    figure = compare_figure(a, b, (names[0], names[1]), given.image, given.truth)
    _write(given.out, "compare", f"{names[0]} and {names[1]}", figure, labels=a.info.labels)


def _require_image(path: Path, order: str) -> None:
    """Refuse what is not there, and a model in the image's place."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder, not an image; the order is: setr explain {order}")
    require_file(path)


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--point {text}: give X,Y in pixels, such as 120,80") from None
    return x, y


def _numbers(words: Sequence[str]) -> list[int]:
    """Numbers apart by blanks or commas."""
    try:
        return [int(part) for word in words for part in word.split(",") if part.strip()]
    except ValueError:
        text = " ".join(words)
        raise UsageError(f"--layers {text}: give numbers such as 1 9 17 24") from None


def _write(
    out: Path,
    name: str,
    title: str,
    figure: Figure,
    *,
    labels: Labels | None = None,
    width: int = 320,
) -> None:
    """Write NAME.png and NAME.html."""
    from setr.images import encode_png
    from setr.pages import page
    from setr.pages.montage import montage, with_legend
    from setr.writing import make_folder, write_bytes

    make_folder(out)
    picture = montage(figure.rows, width=width)
    parts = [f'<p class="note">{page.escape(figure.note)}</p>']
    if labels:
        picture = with_legend(picture, labels, figure.legend)
        parts.append(page.legend(labels, figure.legend))
    else:
        parts.append(page.heat_scale("low", "high"))
    for row in figure.rows:
        cells = "".join(page.figure(p, caption, photo=True) for p, caption in row)
        parts.append(f'<div class="grid">{cells}</div>')
    write_bytes(out / f"{name}.png", encode_png(picture))
    page.write_page(out / f"{name}.html", title, parts)
    tell(f"written to {out}: {name}.png, {name}.html")

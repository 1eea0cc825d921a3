"""Test protocols: scales, flip and sliding windows, and the named presets.

`paper-*` is section 4.1 as in the authors' code, `mmseg-*` is the port in mmsegmentation 1.2.2. The
paper first resizes every image to the data set's short side, and never to less than the window; the
port's multi-scale test scales the original image, without such a minimum. Where the authors' own
scales differ from the text is listed in docs/paper.md.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from setr.arguments.typed import check_fields
from setr.errors import SetrError, UsageError, nearest
from setr.labels import Labels, known_name
from setr.reading.pillow import MAX_PIXELS

MULTI_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The paper's test scales (section 4.1)."""

WHOLE_PIXELS = 2048 * 2048
"""Images of more pixels, after the resize, are processed in windows even if the protocol has none:
the cost of attention grows with the square of the number of pixels."""

PRESETS = ("paper-ss", "paper-ms", "mmseg-ss", "mmseg-ms", "whole")
"""Names accepted by `preset`."""


@dataclass(frozen=True)
class Protocol:
    """How an image is tested.

    Args:
        scales: scale factors (applied after `short_side`); probabilities are averaged over them.
        flip: average with the horizontally flipped image.
        window: (height, width) of a sliding window in pixels; None runs the whole image at once.
        stride: (vertical, horizontal) step of the window in pixels; the window's size if None.
        short_side: the image is first resized to this short side in pixels; None keeps its size.
        long_side: upper limit of the long side in pixels for the resize to `short_side`.
        fill_window: a scaled short side below the window's is raised to it (section 4.1).
        blend: weight overlapping windows by the distance to their borders, which hides seams;
            otherwise all count the same, as in the paper.

    Raises:
        SetrError: scales or sides that are not positive, a stride above the window, or a field that
            needs another one (`stride`, `fill_window` and `blend` a window, `long_side` a short
            side).
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    short_side: int | None = None
    long_side: int | None = None
    fill_window: bool = False
    blend: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise UsageError(f"scales {self.scales}: give one or more positive factors")
        if self.window and min(self.window) < 1:
            raise UsageError(f"window {self.window}: give positive pixels")
        if (
            self.window
            and self.stride
            and not all(0 < s <= w for s, w in zip(self.stride, self.window, strict=True))
        ):
            raise UsageError(
                f"stride {self.stride}: must be between 1 and the window {self.window}, or pixels "
                "would be skipped; give the stride with the window"
            )
        for name in ("stride", "fill_window", "blend"):
            if getattr(self, name) and not self.window:
                raise UsageError(f"{name} needs a window: give a window too")
        if self.long_side is not None and self.short_side is None:
            raise UsageError("long_side limits the scaling to short_side: give that too")
        for name in ("short_side", "long_side"):
            side = getattr(self, name)
            if side is not None and side < 1:
                raise UsageError(f"{name} {side}: give positive pixels")

    def view_size(self, H: int, W: int, scale: float) -> tuple[int, int]:
        """(height, width) in pixels of an H x W image at one of the scales.

        As in the authors' code, `short_side` and `long_side` times the scale are truncated to whole
        pixels, and the other side of the image is rounded: Cityscapes' 1025 gives 768, 768, 1025,
        1281, 1537 and 1793. Without `short_side`, as in the port: both sides are scaled and
        rounded, and the smaller of the two resulting factors is used.

        Raises:
            SetrError: an image so narrow that it would be enlarged beyond the limit of pixels.
        """
        if self.short_side is None:
            factor = min(max(1, int(side * scale + 0.5)) / side for side in (H, W))
        else:
            factor = int(self.short_side * scale) / min(H, W)
            if self.long_side is not None:
                factor = min(factor, int(self.long_side * scale) / max(H, W))
        height, width = (max(1, int(side * factor + 0.5)) for side in (H, W))
        if self.fill_window and self.window and min(height, width) < min(self.window):
            factor = min(self.window) / min(H, W)
            height, width = (int(side * factor + 0.5) for side in (H, W))
        if height * width > max(MAX_PIXELS, H * W):
            lower = ", or lower the scales" if scale > 1 else ""
            raise SetrError(
                f"an image of {W}x{H} would be enlarged to {width}x{height}, above the limit of "
                f"{MAX_PIXELS:,} pixels: its aspect ratio is too large for this protocol; split it"
                f"{lower}"
            )
        return height, width

    def needs_windows(self, H: int, W: int) -> bool:
        """Whether an H x W image is too large to be run whole, as this protocol would.

        The limit is `WHOLE_PIXELS` at the largest scale. False for a protocol with a window.
        """
        if self.window is not None:
            return False
        height, width = self.view_size(H, W, max(self.scales))
        return height * width > WHOLE_PIXELS

    def multi_scale(self) -> Protocol:
        """A copy with the paper's six scales and flip.

        If the short side fills the window, the long side is not limited any more: the authors' code
        replaces the limit by that rule.
        """
        long_side = None if self.fill_window else self.long_side
        return dataclasses.replace(self, scales=MULTI_SCALES, flip=True, long_side=long_side)

    def overridden(self, **given: Any) -> Protocol:
        """A copy with these fields replaced; None keeps a field as it is.

        A larger short side raises the limit of the long side by as much, which else would undo it.

        Raises:
            SetrError: as the class.
        """
        changes = {name: v for name, v in given.items() if v is not None}
        larger = changes.get("short_side", 0) / (self.short_side or math.inf)
        if larger > 1 and self.long_side is not None:
            changes.setdefault("long_side", math.ceil(self.long_side * larger))
        return dataclasses.replace(self, **changes)

    def whole(self) -> Protocol:
        """Whole images at one scale, with the same short and long side."""
        return Protocol(short_side=self.short_side, long_side=self.long_side)

    def in_windows(self, window: int | tuple[int, int]) -> Protocol:
        """A copy with blended windows of this side, or (height, width), with a quarter overlap."""
        height, width = (window, window) if isinstance(window, int) else window
        stride = max(1, height - height // 4), max(1, width - width // 4)
        return dataclasses.replace(self, window=(height, width), stride=stride, blend=True)

    def describe(self) -> str:
        """The protocol in one readable line."""
        parts = [
            f"short side {self.short_side}" if self.short_side else "",
            f"long side at most {self.long_side}" if self.long_side else "",
            "scales " + ", ".join(f"{s:g}" for s in self.scales) if self.scales != (1.0,) else "",
            "flip" if self.flip else "",
            _window_text(self.window, self.stride),
            "short side raised to the window" if self.fill_window else "",
            "blended" if self.blend else "",
        ]
        return "; ".join(part for part in parts if part)


def _window_text(window: tuple[int, int] | None, stride: tuple[int, int] | None) -> str:
    if window is None:
        return "whole image"
    sh, sw = stride or window
    return f"window {window[0]}x{window[1]}, stride {sh}x{sw}"


class _TestSizes(NamedTuple):
    """Sizes in pixels for one data set, from the authors' and the port's settings.

    The authors' single-scale test limits the long side of ADE20K, too, to four windows. Narrower
    images are enlarged to the window here; their code cannot process them.
    """

    window: int
    stride: int
    short_side: int
    long_side: int | None  # limit in the authors' single-scale test
    port: tuple[int | None, int | None]  # short and long side of the port's single-scale test


_PAPER = {
    "ade20k": _TestSizes(512, 341, 512, 2048, (512, 2048)),
    "cityscapes": _TestSizes(768, 512, 1025, 2049, (1025, 2049)),
    "pascal_context": _TestSizes(480, 320, 520, None, (520, 520)),
}


def preset(
    name: str,
    *,
    own: Protocol | None = None,
    labels: Labels | None = None,
    grid: tuple[int, int] | None = (512, 512),
) -> Protocol:
    """A named protocol.

    On the paper's three data sets all sizes are the paper's. On others, window and short side are
    the model's, and the stride is two thirds of the window, as in the paper. `whole` has no window
    and the model's short and long side, unless a data set is named. The port has separate settings
    for FCN and Semantic FPN, which are those of their recipes here: for these models `mmseg-*` uses
    the model's sizes, unless a data set is named.

    Args:
        name: one of `PRESETS`; `NAME:DATASET` uses the sizes of one of the paper's data sets.
        own: the protocol stored with the model.
        labels: the model's classes, by which the paper's data sets are recognised.
        grid: (height, width) in pixels of the model's position embedding; the window if neither the
            data set nor `own` has one. None for convolutional models.

    Raises:
        SetrError: unknown name.
    """
    own = own or Protocol()
    base, _, dataset = name.partition(":")
    if base not in PRESETS or (dataset and dataset not in _PAPER):
        near = nearest(base, PRESETS)
        hint = f"did you mean '{near}'? " if near and base not in PRESETS else ""
        raise UsageError(
            f"protocol '{name}' is unknown; {hint}known: {', '.join(PRESETS)}, with "
            f":{', :'.join(_PAPER)} for that data set's sizes"
        )
    known = known_name(labels) if labels else None
    own_sizes = grid is None and base.startswith("mmseg")
    sizes = _PAPER.get(dataset or ("" if own_sizes else known or ""))
    if base == "whole":
        return Protocol(short_side=_PAPER[dataset].short_side) if dataset else own.whole()
    window: tuple[int, int] | None
    stride: tuple[int, int] | None
    if sizes:
        window, stride = (sizes.window, sizes.window), (sizes.stride, sizes.stride)
        short, long = sizes.short_side, sizes.long_side
        port_short, port_long = sizes.port
    else:
        window = own.window or (None if own_sizes else grid or (512, 512))
        stride = own.stride or (window and (-(-window[0] * 2 // 3), -(-window[1] * 2 // 3)))
        short = port_short = own.short_side  # type: ignore[assignment]
        long, port_long = None, own.long_side
    protocol = Protocol(window=window, stride=stride)
    if base.startswith("paper"):
        protocol = dataclasses.replace(protocol, short_side=short, long_side=long, fill_window=True)
    elif base == "mmseg-ss":
        protocol = dataclasses.replace(protocol, short_side=port_short, long_side=port_long)
    return protocol.multi_scale() if base.endswith("-ms") else protocol

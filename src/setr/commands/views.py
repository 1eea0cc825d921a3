"""Options that commands share: the views of an image that are averaged, and words in any number."""

from __future__ import annotations

from typing import Annotated

import tyro

Scales = Annotated[
    tuple[float, ...] | None,
    tyro.conf.arg(help="Factors on the image, in place of the protocol's."),
]
Flip = Annotated[
    bool, tyro.conf.arg(help="Average with the mirrored image, whatever the protocol.")
]
Words = Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: none)")]

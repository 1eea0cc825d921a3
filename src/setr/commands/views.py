"""Options that `setr eval` and `setr predict` share: the views of an image that are averaged."""

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

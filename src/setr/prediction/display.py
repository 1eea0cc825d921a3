"""How a result looks in a notebook, or in the system's viewer of pictures."""

from __future__ import annotations

import base64
import html
import os
import sys
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageShow

from setr.errors import SetrError
from setr.images import encode_png
from setr.labels import Labels
from setr.pages.montage import with_legend

_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")
"""Variables of the environment of which Linux sets one where there is a screen."""
NOTEBOOK_WIDTH = 960
"""Maximum width in pixels of images shown in notebooks."""


def picture(overlay: np.ndarray, labels: Labels, shares: Mapping[str, float]) -> np.ndarray:
    """An overlay with the names and colours of its classes below, uint8 RGB."""
    return with_legend(overlay, labels, [labels.classes.index(name) for name in shares])


def page_part(overlay: np.ndarray, labels: Labels, shares: Mapping[str, float]) -> str:
    """HTML of an overlay, with the names, colours and shares of its classes."""
    data = base64.b64encode(encode_png(overlay)).decode()
    legend = " ".join(
        f'<span style="white-space:nowrap"><span style="display:inline-block;width:.8em;'
        f'height:.8em;background:rgb{tuple(labels.colours[labels.classes.index(name)])}">'
        f"</span> {html.escape(name)} {share:.1%}</span>"
        for name, share in shares.items()
    )
    shown = ", ".join(f"{html.escape(name)} {share:.1%}" for name, share in shares.items())
    return (
        f'<img alt="overlay: {shown}" src="data:image/png;base64,{data}" style="max-width:100%">'
        f"<p>{legend}</p>"
    )


def open_viewer(shown: np.ndarray) -> None:
    """Open a picture uint8 RGB in the system's viewer.

    Raises:
        SetrError: the system has none, or no screen, of which `xdg-open` would not tell.
    """
    in_notebook = "ipykernel" in sys.modules  # there, Pillow puts the picture below the cell
    if sys.platform == "linux" and not in_notebook and not any(map(os.environ.get, _SCREENS)):
        raise SetrError(
            "no screen here to show a picture on (neither DISPLAY nor WAYLAND_DISPLAY is set); a "
            "notebook shows the result itself, else save it: result.save('x.png', 'overlay')"
        )
    if not ImageShow.show(Image.fromarray(shown), "setr"):
        raise SetrError(
            "no viewer of pictures on this machine; save one: result.save('x.png', 'overlay')"
        )

"""Text in pictures: a font that has its letters.

Pillow brings a font of ASCII alone. Other letters are drawn with a font of this machine.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

from PIL import ImageFont

SIZE = 14
"""Height of the letters in pixels."""
_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf"),
    *("arial.ttf", "Arial.ttf", "Arial Unicode.ttf", "segoeui.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "DroidSansFallbackFull.ttf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc", "YuGothM.ttc", "malgun.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc"),
    *("NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf"),
    *("NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf"),
)
"""Files with many letters that Linux, Windows and macOS have; Pillow knows their folders."""
_NO_CHARACTER = "\uffff"


@functools.cache
def lettered(text: str, instead: str = "") -> tuple[Any, str]:
    """A font, and the text to draw with it.

    Args:
        instead: ASCII drawn in its place if no font of this machine has all of its letters; by
            default it is drawn with ? for those that are no ASCII.
    """
    plain = ImageFont.load_default(SIZE)
    text = unicodedata.normalize("NFC", text)
    if text.isascii():
        return plain, text
    for name in _FONTS:
        font = _font(name)
        if font and all(_has(font, letter) for letter in set(text)):
            return font, text
    return plain, instead or text.encode("ascii", "replace").decode()


def fitted(font: Any, text: str, width: int) -> str:
    """A text that is at most `width` pixels wide: of a longer one, beginning and end."""
    shown, kept = text, len(text)
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        tail = kept // 2
        shown = f"{text[: kept - tail]}...{text[len(text) - tail :]}"
    return shown


@functools.cache
def _font(name: str) -> Any:
    """A font of this machine; None without it."""
    try:
        return ImageFont.truetype(name, SIZE)
    except OSError:
        return None


def _has(font: Any, letter: str) -> bool:
    """Whether a letter is drawn as itself, not as the box that stands for unknown ones."""
    shown, unknown = font.getmask(letter), font.getmask(_NO_CHARACTER)
    return (shown.size, bytes(shown)) != (unknown.size, bytes(unknown))

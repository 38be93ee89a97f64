"""What is drawn onto pictures: a colour for each class, and a font that has the letters needed."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from PIL import ImageFont

Colour = tuple[int, int, int]

SHADE: Colour = (24, 24, 28)

# Told apart by most people with a colour deficiency too (Okabe and Ito 2008).
CLASS_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (153, 153, 153),
)

_log = logging.getLogger(__name__)

# Font files of common systems: Chinese, Japanese and Korean first, then many other scripts.
FONT_FILES = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf"),
    *("SourceHanSansSC-Regular.otf", "SourceHanSansCN-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc", "Arial Unicode.ttf"),
    *("msyh.ttc", "simhei.ttf", "simsun.ttc", "DejaVuSans.ttf"),
)


def font(texts: Sequence[str], size: int) -> Any:
    """A font of `size` px with every letter of `texts`: Pillow's own, else one of the system.

    If no font has them all, Pillow's own is used, and one warning names the unreadable texts.
    """
    letters = "".join(sorted({letter for text in texts for letter in text if letter.strip()}))
    file = _file(letters)
    if file is None:
        _warn(tuple(sorted(text for text in set(texts) if missing(_own(size), text))))
    return ImageFont.truetype(file, size) if file else _own(size)


def missing(font: Any, text: str) -> str:
    """The letters of a text that a font does not have: it draws them all as the same box."""
    unknown = bytes(font.getmask("\U0010ffff"))
    return "".join(x for x in text if x.strip() and bytes(font.getmask(x)) == unknown)


def _own(size: int) -> Any:
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=64)
def _file(letters: str) -> str | None:
    """The font file for these letters; "" = Pillow's own, None = none."""
    if not missing(_own(24), letters):
        return ""
    for name in FONT_FILES:
        try:
            known = ImageFont.truetype(name, 24)
        except OSError:
            continue  # not on this system
        if not missing(known, letters):
            return str(known.path)
    return None


@functools.lru_cache(maxsize=64)
def _warn(texts: tuple[str, ...]) -> None:
    _log.warning(
        "no font on this system has the letters of %s: they are drawn as boxes; install one, as "
        "Noto Sans CJK",
        ", ".join(map(repr, texts)),
    )

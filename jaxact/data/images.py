"""Decodes image files to upright RGB bytes, at a fraction of the size where that is enough.

JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time (Pillow's draft mode). Resizing is
Pillow's: bilinear or bicubic, with a kernel that grows as the picture shrinks (no aliasing).
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from jaxact.config import UserError
from jaxact.data import media

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 px
Pixels = str | Path | bytes | np.ndarray  # a file (or in shards), its content, or u8[h, w, 3]

# What Pillow raises for files that are damaged, malicious or no pictures.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

_LONGEST = 4  # largest ratio of a thumbnail's sides; that of a panorama would not fit a JPEG
_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF orientation -> what puts the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(pixels: Pixels, side: int = 0, gap: float = 2.0, name: str = "") -> Image.Image:
    """An RGB picture, turned as its EXIF orientation says.

    Args:
      side: px; a JPEG is decoded at the smallest fraction whose sides are both at least
        `gap * side`. 0 = full size; other formats are always decoded in full.
      name: what errors call it where `pixels` is no path.

    Transparency is dropped and 16-bit grey is cut to 8 bits. An EXIF block that cannot be read
    counts as none.

    Raises: UserError for a missing, damaged or foreign file, naming it.
    """
    where = name or (str(pixels) if isinstance(pixels, str | Path) else "a picture")
    if isinstance(pixels, np.ndarray):
        return _from_array(pixels, where)
    try:
        opened = io.BytesIO(pixels) if isinstance(pixels, bytes) else media.source(pixels)
        with Image.open(opened) as image:
            turn = _UPRIGHT.get(_orientation(image))
            if side and gap and image.format == "JPEG":
                wanted = int(np.ceil(side * gap))
                image.draft(None, (wanted, wanted))
            image.load()
            picture = _rgb(image, where)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{where}: is a folder, not a picture") from None
    except DAMAGE as error:
        raise UserError(f"{where}: cannot be read as a picture: {_line(error)}") from None
    return picture if turn is None else picture.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(w, h) px of an opened picture once it is turned as its EXIF orientation says."""
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def _line(error: Exception) -> str:
    """The first line of an error; Pillow prints objects at addresses for unknown formats."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "its format is unknown"
    return (str(error) or type(error).__name__).splitlines()[0]


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _from_array(pixels: np.ndarray, where: str) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise UserError(
            f"{where}: {pixels.dtype}{list(pixels.shape)}; allowed: uint8[h, w, 1 or 3]"
        )
    return Image.fromarray(np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels)


def _rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(f"{where}: {image.mode} pixels of 32 bits; allowed: 8 or 16 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def resize(
    image: Image.Image,
    size: tuple[int, int],
    box: Box | None = None,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """u8[h, w, 3] of a box of the picture (None = all), stretched to `size` (h, w) px."""
    shape = (size[1], size[0])
    if image.size == shape and box is None:
        return np.asarray(image)
    return np.asarray(image.resize(shape, FILTERS[interpolation], box))


def thumbnail(pixels: Pixels, short: int, name: str = "") -> np.ndarray:
    """u8[h, w, 3] of the picture, its shorter side `short` px; of one that is more than `_LONGEST`
    times as long only the middle. Raises: as `decode`."""
    image = decode(pixels, short, name=name)
    longest = _LONGEST * min(image.size)
    across, down = (min(side, longest) for side in image.size)
    left, top = (image.size[0] - across) / 2, (image.size[1] - down) / 2
    factor = short / min(image.size)
    shape = round(down * factor), round(across * factor)
    return resize(image, shape, (left, top, left + across, top + down))


def boxes(
    size: tuple[int, int], scale: float = 1.0, crops: int = 1, square: bool = False
) -> list[Box]:
    """The boxes that an evaluation sees of a picture of `size` (w, h) px: middle, then corners.

    Args:
      scale: a box has 1 / scale of each side, as resizing to scale * s and cropping s would.
      crops: 1 or 5.
      square: of the shorter side, so that the aspect is kept; else both sides are stretched.
    """
    width, height = size
    across, down = (side / scale for side in ((min(size),) * 2 if square else size))
    x, y = (width - across) / 2, (height - down) / 2
    corners = [(0.0, 0.0), (2 * x, 0.0), (0.0, 2 * y), (2 * x, 2 * y)] if crops == 5 else []
    # `min`: rounding must not push a box over the edge.
    return [
        (left, top, min(left + across, width), min(top + down, height))
        for left, top in [(x, y), *corners]
    ]

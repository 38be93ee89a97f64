"""Decoded pictures kept small on disk, so that later epochs and runs do not decode them again.

One file a picture: two u32 (h, w), then the RGB bytes. Its name is a hash of the picture's path,
time of change, bytes and the size kept, so a changed picture is another entry. Files appear whole
(written aside, then renamed), so threads, workers and runs may share a folder.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from jaxact import atomic
from jaxact.config import UserError
from jaxact.data import images, media
from jaxact.tasks.crop.annotations import Picture

_HEAD = 8  # bytes


def load(picture: Picture, short: int, folder: str) -> Image.Image:
    """The picture with its shorter side at most `short` px, from the cache or into it.

    Raises: UserError for an unreadable picture, a folder that cannot be used, or an entry of
    the wrong length.
    """
    entry = Path(folder) / _name(picture, short)
    try:
        stored = entry.read_bytes()
    except FileNotFoundError:
        pixels = _small(picture, short)
        _store(entry, pixels)
        return Image.fromarray(pixels)
    except OSError as error:
        raise UserError(f"config.data.cache_dir: {entry} cannot be read: {error}") from None
    height, width = np.frombuffer(stored, np.uint32, 2).tolist() if len(stored) > _HEAD else (0, 0)
    if not height or len(stored) != _HEAD + height * width * 3:
        raise UserError(f"{entry}: is no entry of this cache (config.data.cache_dir); delete it")
    pixels = np.frombuffer(stored, np.uint8, offset=_HEAD).reshape(height, width, 3)
    return Image.fromarray(pixels)


def _name(picture: Picture, short: int) -> str:
    if picture.pixels is not None:
        content = picture.content
        key = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
    else:
        try:
            key = "\n".join(map(str, media.stamp(picture.path))).encode()
        except FileNotFoundError:
            raise UserError(f"{picture.path}: no such file") from None
    name = hashlib.sha1(key, usedforsecurity=False).hexdigest()
    return f"{name[:2]}/{name[2:]}_{short}"


def _small(picture: Picture, short: int) -> np.ndarray:
    """The picture shrunk to the shorter side; one that is smaller is kept as it is."""
    image = images.decode(picture.content, short, name=picture.id)
    factor = min(1.0, short / min(image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    return images.resize(image, (height, width))


def _store(entry: Path, pixels: np.ndarray) -> None:
    try:
        head = np.array(pixels.shape[:2], np.uint32).tobytes()
        atomic.write_bytes(entry, head + pixels.tobytes())
    except OSError as error:
        raise UserError(f"config.data.cache_dir: {entry} cannot be written: {error}") from None

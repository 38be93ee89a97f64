"""Crops of people: all crops of a frame from one decoding, kept in memory and optionally on disk.

A panorama takes tens of milliseconds to decode and holds tens of people, whose crops are a tenth
of its bytes. So they are cut together and kept for the pairs that follow; the picture is not kept.
"""

import dataclasses
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxact import atomic
from jaxact.config import UserError
from jaxact.data import images, media
from jaxact.tasks.relation.jrdb import Box

_HEAD = 8  # bytes of a cache entry before its pixels
SMALLEST = 32  # px, side of the square cut where a box has no area


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a box becomes a crop."""

    side: int = 112  # px
    padding: float = 0.2  # of the box's own width and height, added on each side
    wrap: bool = True  # over the seam of a panorama; else it ends there


def bounds(box: Box, size: tuple[int, int], cut: Cut) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) px of a padded box x, y, w, h; with `wrap` x is not limited to the picture.

    A box without area gives a square around its middle. Numbers are truncated, not rounded, as in
    AsukaLmy/simplename `GeometricDete/models/resnet_feature_extractors.py`.
    """
    (x, y, w, h), (width, height) = box, size
    left, right = int(x - cut.padding * w), int(x + w + cut.padding * w)
    top, bottom = int(y - cut.padding * h), int(y + h + cut.padding * h)

    def limited(x1: int, y1: int, x2: int, y2: int) -> tuple[int, int, int, int]:
        y1, y2 = max(0, y1), min(height, y2)
        if cut.wrap:
            return x1, y1, min(x2, x1 + width), y2
        return max(0, x1), y1, min(width, x2), y2

    x1, y1, x2, y2 = limited(left, top, right, bottom)
    if x2 > x1 and y2 > y1:
        return x1, y1, x2, y2
    side = max(SMALLEST, int(max(w, h)))
    across = min(max(0, int(x + w / 2)), width - 1)
    down = min(max(0, int(y + h / 2)), height - 1)
    half = side // 2
    return limited(across - half, down - half, across + half, down + half)


def crop(picture: np.ndarray, box: Box, cut: Cut) -> np.ndarray:
    """u8[s, s, 3] of a box in u8[h, w, 3], stretched; bilinear, without aliasing."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = bounds(box, (width, height), cut)
    if 0 <= x1 and x2 <= width:
        pixels = picture[y1:y2, x1:x2]
    else:
        pixels = picture[y1:y2].take(np.arange(x1, x2) % width, axis=1)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return images.resize(image, (cut.side, cut.side))


def decode(path: str, size: tuple[int, int]) -> np.ndarray:
    """u8[h, w, 3] of a file. Raises: UserError for one that cannot be read or is not of `size`."""
    picture = np.asarray(images.decode(path))
    same_size(path, (picture.shape[1], picture.shape[0]), size)
    return picture


def same_size(where: str, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Raises: UserError for a picture of another size (w, h) px than `config.data.size`."""
    if size != tuple(wanted):
        raise UserError(
            f"{where}: is {size[0]}x{size[1]} px; config.data.size says {wanted[0]}x{wanted[1]} "
            "(0,0 = each picture's own)"
        )


def cut_all(path: str, size: tuple[int, int], boxes: Sequence[Box], cut: Cut) -> np.ndarray:
    """u8[p, s, s, 3]: the crops of several boxes from one decoding. Raises: as `decode`."""
    picture = decode(path, size)
    return np.stack([crop(picture, box, cut) for box in boxes])


class Kept:
    """Arrays by key, each made once for all threads; the least recently used is dropped first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slots: OrderedDict[str, _Slot] = OrderedDict()
        self.bytes = 0

    def get(self, key: str, make: Callable[[], np.ndarray], limit: int) -> np.ndarray:
        """The array of a key, from `make` at most once while it is kept; `limit` in bytes."""
        with self.lock:
            slot = self.slots.setdefault(key, _Slot())
            self.slots.move_to_end(key)
        with slot.lock:
            if slot.array is None:
                made = make()
                with self.lock:
                    slot.array = made
                    if self.slots.get(key) is slot:
                        self.bytes += made.nbytes
                    self._shrink(limit)
            return slot.array

    def _shrink(self, limit: int) -> None:
        for key in list(self.slots):
            if self.bytes <= limit:
                return
            array = self.slots[key].array
            if array is not None:  # else it is being made
                self.bytes -= array.nbytes
                del self.slots[key]

    def clear(self) -> None:
        """Forgets everything."""
        with self.lock:
            self.slots.clear()
            self.bytes = 0


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.array: np.ndarray | None = None


KEPT = Kept()  # of this process: sources are copied into worker processes, pixels are not


def key(path: str, size: tuple[int, int], boxes: Sequence[Box], cut: Cut) -> str:
    """All that the crops of a frame depend on, except the content of its file."""
    text = f"{os.path.abspath(path)}\n{size}\n{dataclasses.astuple(cut)}\n"
    # Names in a file system need not be UTF-8.
    content = text.encode(errors="surrogatepass") + np.asarray(boxes, np.float64).tobytes()
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def load(
    path: str,
    size: tuple[int, int],
    boxes: Sequence[Box],
    cut: Cut,
    memory: int,
    folder: str = "",
) -> np.ndarray:
    """u8[p, s, s, 3], kept in up to `memory` bytes, and in the folder if one is given.

    Raises: UserError for a picture that cannot be read, or a folder that cannot be used.
    """

    def make() -> np.ndarray:
        if folder:
            return stored(path, size, boxes, cut, folder)
        return cut_all(path, size, boxes, cut)

    return KEPT.get(key(path, size, boxes, cut), make, memory)


def stored(
    path: str, size: tuple[int, int], boxes: Sequence[Box], cut: Cut, folder: str
) -> np.ndarray:
    """The crops from their file in the folder, which is written first where it does not exist.

    The file's name depends on the picture's version. It holds two u32 (p, s) and the pixels, and
    appears whole (written aside, then renamed). Raises: as `load`.
    """
    try:
        _, version, length = media.stamp(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    mark = f"{key(path, size, boxes, cut)}\n{version}\n{length}".encode()
    name = hashlib.sha1(mark, usedforsecurity=False).hexdigest()
    entry = Path(folder) / name[:2] / name[2:]
    shape = (len(boxes), cut.side, cut.side, 3)
    try:
        content = entry.read_bytes()
    except FileNotFoundError:
        every = cut_all(path, size, boxes, cut)
        _write(entry, np.array(shape[:2], np.uint32).tobytes() + every.tobytes())
        return every
    except OSError as error:
        raise UserError(f"config.data.cache_dir: {entry} cannot be read: {error}") from None
    if len(content) != _HEAD + int(np.prod(shape)):
        raise UserError(f"{entry}: is no entry of this cache (config.data.cache_dir); delete it")
    return np.frombuffer(content, np.uint8, offset=_HEAD).reshape(shape)


def _write(entry: Path, content: bytes) -> None:
    try:
        atomic.write_bytes(entry, content)
    except OSError as error:
        raise UserError(f"config.data.cache_dir: {entry} cannot be written: {error}") from None

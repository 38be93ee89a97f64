"""The index of a video file: where each frame lies. `jaxact.data.video` seeks by it.

It is made once per file and process, in one of three ways. Where each packet has a presentation
stamp and holds one frame, it comes from the packets (about 10 us each), and only the first picture
is decoded, for its rotation. Otherwise (MPEG-4 part 2, an open GOP cut at its start) the whole file
is decoded once. Where the pictures have no usable stamps either (AVI, MPEG streams), frames are
counted from the key frame before.
"""

import dataclasses
import io
import os
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from jaxact.config import UserError
from jaxact.data import media

# Containers that store a stamp per packet, and codecs whose packets hold one shown picture each.
STAMPED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
ONE_PICTURE = {"h264", "hevc", "av1", "vp9"}
CACHED_FRAMES = 8_000_000  # 64 MB of stamps


@dataclass(frozen=True)
class Index:
    """The frames of one file in presentation order, and the key frames decoding may start from."""

    stamps: array  # i64[frames], strictly increasing
    unit: float  # s per stamp
    fps: float  # mean frames/s
    keys: list[int]  # frame number of each key
    seeks: list[int]  # stamp to seek to for each key
    landings: dict[int, int]  # stamp (or byte offset, where counted) of a key packet -> which key
    counted: bool  # frames are known by counting from a key frame, not by their stamp
    turns: int = 0  # quarter turns counterclockwise from the stored picture to the shown one


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    pos: int | None
    key: bool
    shown: bool


_cache: OrderedDict[tuple[str, int, int], Index] = OrderedDict()
_cache_lock = threading.Lock()


def cached(path: str, build: Callable[[], Index], content: bytes | None = None) -> Index:
    """The index of this path or these bytes, cached by its `media.stamp`, or made by `build`."""
    name = media.stamp(path, content)
    with _cache_lock:
        if name in _cache:
            _cache.move_to_end(name)
            return _cache[name]
    index = build()  # outside the lock: two threads may both make it, but no thread waits
    with _cache_lock:
        _cache[name] = index
        while len(_cache) > 1 and sum(len(i.stamps) for i in _cache.values()) > CACHED_FRAMES:
            _cache.popitem(last=False)
    return index


def build(path: str, open_again: Callable[[], tuple[Any, Any]], failure: type[Exception]) -> Index:
    """The index of a file; `open_again` opens it at its start: PyAV's (container, stream).

    `failure` is what PyAV raises for a picture that cannot be decoded.

    Raises: UserError where there are no frames.
    """
    index = _frames(path, open_again)
    container, stream = open_again()
    try:
        angle = next((frame.rotation for frame in container.decode(stream)), 0)
    except failure:
        angle = 0  # reading the picture raises its own error
    return dataclasses.replace(index, turns=round(angle / 90) % 4)


def _frames(path: str, open_again: Callable[[], tuple[Any, Any]]) -> Index:
    container, stream = open_again()
    packets = [
        _Packet(p.pts, p.dts, p.pos, p.is_keyframe, not p.is_discard)
        for p in container.demux(stream)
        if p.size
    ]
    stamped = container.format.name in STAMPED and all(p.pts is not None for p in packets)
    stamps = sorted(p.pts for p in packets if p.shown and p.pts is not None)
    if (
        stamped
        and stamps
        and stream.codec.canonical_name in ONE_PICTURE
        and packets[0].key
        and packets[0].pts == min(p.pts for p in packets if p.pts is not None)
        and all(a < b for a, b in pairwise(stamps))
    ):
        return _by_stamp(stream, stamps, packets)

    container, stream = open_again()
    frames = [(f.pts, f.key_frame) for f in container.decode(stream)]
    if not frames:
        raise UserError(f"{path}: has no frames")
    stamps = [pts for pts, _ in frames if pts is not None]
    rising = len(stamps) == len(frames) and all(a < b for a, b in pairwise(stamps))
    if stamped and rising:
        return _by_stamp(stream, stamps, packets)
    return _by_count(stream, stamps if rising else None, [key for _, key in frames], packets)


def _by_stamp(stream: Any, stamps: list[int], packets: list[_Packet]) -> Index:
    # A key frame before the edit list starts is not shown, yet decoding has to begin there.
    heads = sorted(p.pts for p in packets if p.key and p.pts is not None and p.pts <= stamps[-1])
    unit = float(stream.time_base)
    return Index(
        stamps=array("q", stamps),
        unit=unit,
        fps=_rate(stream, stamps, unit),
        keys=[bisect_left(stamps, pts) for pts in heads],
        seeks=heads,
        landings={pts: key for key, pts in enumerate(heads)},
        counted=False,
    )


def _by_count(
    stream: Any, stamps: list[int] | None, keys: list[bool], packets: list[_Packet]
) -> Index:
    if stamps is None:
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        stamps, unit = list(range(len(keys))), 1 / fps
    else:
        unit = float(stream.time_base)
        fps = _rate(stream, stamps, unit)
    heads = [number for number, key in enumerate(keys) if key]
    sources = [p for p in packets if p.key and p.dts is not None and p.pos is not None]
    if len(heads) != len(sources) or len({p.pos for p in sources}) != len(sources):
        heads, sources = [], []  # which packet gives which picture is unknown: never seek
    return Index(
        stamps=array("q", stamps),
        unit=unit,
        fps=fps,
        keys=heads,
        seeks=[p.dts for p in sources if p.dts is not None],
        landings={p.pos: key for key, p in enumerate(sources) if p.pos is not None},
        counted=True,
    )


def _rate(stream: Any, stamps: list[int], unit: float) -> float:
    if stream.average_rate:
        return float(stream.average_rate)
    return (len(stamps) - 1) / ((stamps[-1] - stamps[0]) * unit) if len(stamps) > 1 else 0.0


def check_whole(path: str, content: bytes | None = None) -> None:
    """Raises UserError where `path` is missing, empty, or shorter than its container says.

    Reads the outermost structure of MP4 (boxes), AVI (RIFF length) and Matroska (segment length);
    other containers do not say. With `content`, checks these bytes; the path only names them.
    """
    if content is None and os.path.isdir(path):
        raise UserError(f"{path}: is a folder, not a video")
    try:
        length = os.path.getsize(path) if content is None else len(content)
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            head = file.read(64)
            boxes = _boxes(file) if head[4:8] in _FIRST_BOXES else []
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not length:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    if head[:4] == b"RIFF":
        promised = 8 + int.from_bytes(head[4:8], "little")
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        promised = _segment_end(head)
    else:
        promised = max((end for _, end in boxes), default=0)
    if promised > length:
        raise UserError(f"{path}: cut off: {length} of {promised} bytes are there")
    if boxes and not any(name == b"moov" for name, _ in boxes):
        raise UserError(f"{path}: cut off: the index (moov) at its end is missing")


_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip")


def _boxes(file: Any) -> list[tuple[bytes, int]]:
    """The name and end (bytes from the start) of each top-level MP4 box that holds frames."""
    boxes: list[tuple[bytes, int]] = []
    start = 0
    while True:
        file.seek(start)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or size < 8:  # the end, padding, or a box that runs to the end
            return boxes
        start += size
        if head[4:8] in (*_FIRST_BOXES, b"moof"):
            boxes.append((head[4:8], start))


def _segment_end(head: bytes) -> int:
    """Where the Matroska segment ends, bytes from the start; 0 for one of unknown length."""

    def number(at: int) -> tuple[int, int]:
        width = 9 - head[at].bit_length()  # the leading zeros of the first byte give the width
        value = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
        return (0 if value == (1 << 7 * width) - 1 else value), at + width

    size, at = number(4)
    at += size
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    size, at = number(at + 4)
    return at + size if size else 0

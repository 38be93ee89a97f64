"""Turns one media file into a record of a shard: checks it, and shrinks it if wanted.

Shrinking encodes again, with loss. Frames keep their number and time, sound is dropped, a turned
video or picture is stored upright, and every video becomes H.264 in MP4 under its old name.
Annotated joints still fit, since their annotations give the frame size that they belong to; boxes
of pairs do not, so panoramas must not be shrunk.
"""

import importlib.util
import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxact.config import UserError
from jaxact.data import geometry, images, media, video
from jaxact.tasks.action.annotation_files import parse as parse_clips
from jaxact.tasks.crop.annotation_files import parse as parse_images
from jaxact.tasks.detection.annotations import read as read_segments

VIDEOS = (*media.VIDEOS, ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
CHUNK = 64  # frames decoded at once
CRF = 23  # quality of shrunk videos, the encoder's own choice
GOP = 16  # frames from key frame to key frame: a seek decodes few frames that are not wanted
QUALITY = 92  # of shrunk JPEG pictures
EVEN = 1e-3  # s; frame times closer to even ones than this are even


def ready(names: Iterable[str], short_side: int, check: bool) -> None:
    """Raises UserError where these include videos that need the package av, which is missing."""
    videos = any(Path(name).suffix.lower() in VIDEOS for name in names)
    if videos and (short_side or check) and importlib.util.find_spec("av") is None:
        raise UserError(
            "checking and shrinking videos needs the package av: pip install 'jaxact[video]' "
            "(allowed without: --check=off)"
        )


def record(name: str, content: bytes, short_side: int = 0, check: bool = True) -> bytes:
    """The bytes stored for a media file. Raises: UserError, saying why it cannot be read."""
    if not content:
        raise UserError("the file is empty (0 bytes)")
    if not (short_side or check):
        return content
    suffix = Path(name).suffix.lower()
    if suffix in VIDEOS:
        return _video(name, content, short_side, check)
    if suffix in images.SUFFIXES:
        return _picture(name, content, short_side)
    raise UserError(f"suffix {suffix!r} is of no video or picture (--pattern, --check=off)")


def _video(name: str, content: bytes, short_side: int, check: bool) -> bytes:
    with video.Video(name, content=content) as opened:
        if check:
            opened.read(sorted({0, opened.frames - 1}))
        if not short_side or min(opened.size) <= short_side:
            return content
        size = geometry.short_side(opened.size, short_side)
        size = (max(2, size[0] // 2 * 2), max(2, size[1] // 2 * 2))  # colours are stored by halves
        ticks = np.arange(opened.frames) / opened.fps if opened.fps else np.inf
        times = None if np.abs(opened.times - ticks).max() < EVEN else opened.times
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "small.mp4"
            frames, fps = _frames(opened, size), opened.fps or 25.0
            video.write(path, frames, fps, times=times, crf=CRF, gop=GOP, preset="veryfast")
            return path.read_bytes()


def _frames(opened: video.Video, size: tuple[int, int]) -> Iterator[np.ndarray]:
    for first in range(0, opened.frames, CHUNK):
        yield from opened.read(range(first, min(first + CHUNK, opened.frames)), size)


def _picture(name: str, content: bytes, short_side: int) -> bytes:
    image = images.decode(content, name=name)
    if not short_side or min(image.size) <= short_side:
        return content
    factor = short_side / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    small = images.Image.fromarray(images.resize(image, (height, width)))
    kept = io.BytesIO()
    if Path(name).suffix.lower() in (".jpg", ".jpeg"):
        small.save(kept, "JPEG", quality=QUALITY, subsampling=0)
    else:
        small.save(kept, "PNG")
    return kept.getvalue()


def wanted(annotations: str) -> set[str]:
    """The media that an annotation file of any recipe names, as it writes them.

    Raises: UserError as the reader of its kind.
    """
    path = Path(annotations)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix in (".pkl", ".pickle", ".jsonl"):
        return {entry.video for entry in parse_clips(path).entries if entry.video}
    readers = [_images]
    if suffix == ".json" or path.suffix == ".gz":
        readers = [_segments, _images]  # the second: AI Challenger's list
    elif suffix == ".csv":
        readers = [_images, _segments]
    errors = []
    for read in readers:
        try:
            return read(annotations)
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _images(annotations: str) -> set[str]:
    return {row.file for row in parse_images(annotations, labelled=False).rows}


def _segments(annotations: str) -> set[str]:
    return {video.id for video in read_segments(annotations, ground_truth="keep").videos}

"""The views of an example in evaluation: which frames, which crops, in parts of bounded size.

Nothing here is random. The frames of all clips are chosen at once and one box serves them all; then
a part of the clips at a time is decoded, cut and fed, so that memory does not grow with their
number.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data import geometry
from jaxact.data.resize import Box
from jaxact.data.video import Video
from jaxact.tasks.action import clip_arrays, poses
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.clip_arrays import ABSENT, Streams
from jaxact.tasks.action.config import Data, Views

DECODED = 1 << 25  # bytes of decoded frames held at once, of one example


def spec(data: Data, split: str) -> Views:
    """The views of a split other than training."""
    return data.val if split == "val" else data.test


def parts(data: Data, split: str) -> int:
    """Parts that the views come in: equally many clips each, `data.clips_at_once` at most."""
    clips = spec(data, split).clips
    fitting = range(1, min(clips, data.clips_at_once) + 1)
    return clips // max(n for n in fitting if clips % n == 0)


def text(data: Data, split: str) -> str:
    """The views in words: "10 clips x 3 crops, flip, 256 px"."""
    views = spec(data, split)
    mirror = "flip" if views.flip else "double" if views.double else "no flip"
    counts = ((views.clips, "clip"), (views.crops, "crop"))
    many = " x ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in counts)
    return f"{many}, {mirror}, {data.test_size} px"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where all evaluation views of one clip lie."""

    at: dict[str, np.ndarray]  # stream -> frame numbers i64[clips, t]
    size: tuple[int, int]  # (h, w) px of a frame
    box: Box | None  # px, cut out first; None = the whole frame
    keypoint: np.ndarray | None  # f32[p, frames, j, 2] px of the frame
    score: np.ndarray | None  # f32[p, frames, j]

    def shown(self, part: int, count: int) -> dict[str, np.ndarray]:
        """Frame numbers i64[clips / count, t] of one of `count` parts."""
        size = len(next(iter(self.at.values()))) // count
        return {name: rows[part * size : (part + 1) * size] for name, rows in self.at.items()}


def layout(
    data: Data, streams: Streams, clip: Clip, frames: int, size: tuple[int, int], split: str
) -> Layout:
    """Chooses frames, people and the box of a clip of `frames` frames of `size` (h, w) px.

    Raises:
      UserError: there are no poses, and the model needs them.
    """
    at = clip_arrays.sample(data, streams, frames, spec(data, split).clips, None)
    if clip.keypoint is None or clip.score is None:
        if "pose" in streams:
            raise UserError(f"{clip.id}: has no keypoints, and this model needs them")
        return Layout(at, size, None, None, None)
    chosen, score = poses.choose_people(clip.keypoint, clip.score, data.people)
    keypoint = geometry.rescale(chosen, clip.size, size)
    assert keypoint is not None
    box = None
    if data.compact:
        steps = np.unique(at["pose"])
        box = geometry.compact_box(keypoint[:, steps], size, data.padding, pad=data.imgpad)
    return Layout(at, size, box, keypoint, score)


def cut(data: Data, place: Layout, split: str, frames: Any, keypoint: Any) -> list[Any]:
    """(frames u8[t, s, s, 3], keypoints) of each crop, s = data.test_size; either may be None."""
    side = (data.test_size, data.test_size)
    size, crops = place.size, spec(data, split).crops
    if place.box is not None:
        frames, keypoint, size = geometry.crop(frames, keypoint, place.box, keep_zeros=True)
    if not data.keep_ratio:
        frames, keypoint, size = geometry.resize(frames, keypoint, size, side)
        return [(frames, keypoint)] * crops
    new = geometry.short_side(size, data.test_size)
    frames, keypoint, size = geometry.resize(frames, keypoint, size, new)
    boxes = geometry.three_boxes(size, side) if crops == 3 else [geometry.centre_box(size, side)]
    return [geometry.crop(frames, keypoint, box)[:2] for box in boxes]


def resized(data: Data, place: Layout, split: str, frames: np.ndarray) -> np.ndarray:
    """u8[t, h, w, 3] as decoded -> u8[t, crops, s, s, 3]."""
    return np.stack([pictures for pictures, _ in cut(data, place, split, frames, None)], 1)


def decoded(
    video: Video, wanted: np.ndarray, size: tuple[int, int] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers, frames u8[t, h, w, 3]) some at a time (`DECODED`); `wanted` rises.

    With `size` (h, w) px the frames are scaled as they are converted.
    """
    height, width = size or video.size
    count = max(1, DECODED // (3 * height * width))
    for start in range(0, len(wanted), count):
        numbers = wanted[start : start + count]
        yield numbers, video.read(numbers, size)


def arrays(
    data: Data,
    streams: Streams,
    clip: Clip,
    place: Layout,
    read: Callable[[np.ndarray], np.ndarray] | None,
    split: str,
    part: int,
) -> dict[str, np.ndarray]:
    """One part of an example's views.

    `read` gives u8[t, crops, s, s, 3] of rising frame numbers; None for poses alone.
    """
    at = place.shown(part, parts(data, split))
    named: dict[str, Any] = {"label": np.int32(clip.label)}
    if read is not None:
        wanted, where = np.unique(at["rgb"], return_inverse=True)
        stack = read(wanted)[where.reshape(at["rgb"].shape)]  # clips, t, crops, s, s, 3
        stack = stack.swapaxes(1, 2)
        named["rgb"] = stack.reshape(-1, *stack.shape[2:])
    if "pose" in streams:
        assert place.keypoint is not None and place.score is not None
        steps = at["pose"].reshape(-1)
        people = [
            poses.pad_people(points, place.score[:, steps], data.people, ABSENT)
            for _, points in cut(data, place, split, None, place.keypoint[:, steps])
        ]
        named["keypoint"] = _by_view(np.stack([points for points, _ in people]), len(at["pose"]))
        named["score"] = _by_view(np.stack([scores for _, scores in people]), len(at["pose"]))
    return named


def _by_view(array: np.ndarray, clips: int) -> np.ndarray:
    """[crops, p, clips * t, ...] -> f32[clips * crops, p, t, ...]."""
    array = array.reshape(*array.shape[:2], clips, -1, *array.shape[3:])
    array = np.moveaxis(array, 2, 0).astype(np.float32)
    return array.reshape(-1, *array.shape[2:])


def example(
    data: Data, streams: Streams, clip: Clip, split: str, part: int = 0
) -> dict[str, np.ndarray]:
    """The arrays of one part of an example's views (the table is in `task.py`).

    Raises:
      UserError: the video cannot be read, or has far fewer frames than annotated; no poses.
    """
    if "rgb" not in streams:
        place = layout(data, streams, clip, clip.frames, clip.size, split)
        return arrays(data, streams, clip, place, None, split, part)
    with Video(clip.video) as video:
        frames = clip_arrays.frame_count(clip, video.frames)
        place = layout(data, streams, clip, frames, video.size, split)
        read = functools.partial(_read, data, video, place, split)
        return arrays(data, streams, clip, place, read, split, part)


def _read(data: Data, video: Video, place: Layout, split: str, wanted: np.ndarray) -> np.ndarray:
    stacks = [resized(data, place, split, frames) for _, frames in decoded(video, wanted)]
    return np.concatenate(stacks)

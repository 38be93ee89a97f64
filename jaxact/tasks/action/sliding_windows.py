"""Sliding windows over a video of any length: decoded once, in order, in bounded memory.

A window is a clip of its own: its frames, people and box are chosen as those of a short video. Only
the cut and resized frames of windows that overlap the current one are held, so memory depends on
window, stride and views but not on the length of the video.
"""

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from jaxact.config import UserError
from jaxact.data.resize import Box
from jaxact.data.video import Video
from jaxact.tasks.action import clip_arrays, eval_views
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.clip_arrays import Streams
from jaxact.tasks.action.config import Data

LEAST = 1e-6  # s, below which two moments are the same


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of a video, ready to be fed."""

    start: float  # s from the first frame
    end: float  # s
    arrays: Callable[[int], dict[str, np.ndarray]]  # part of its views -> arrays (see eval_views)


@dataclasses.dataclass(frozen=True)
class Span:
    """Which stretch: seconds, and the frames [first, after) that begin in it."""

    start: float
    end: float
    first: int
    after: int


@dataclasses.dataclass
class _Open:
    """A window some of whose frames may not have been decoded."""

    span: Span
    clip: Clip
    place: eval_views.Layout
    wanted: np.ndarray  # rising frame numbers of the video
    frames: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def last(self) -> int:
        return int(self.wanted[-1]) if len(self.wanted) else -1


def length(times: np.ndarray) -> float:
    """Seconds from the first frame to the end of the last one, which is shown as long as most are.

    >>> length(np.array([0.0, 0.5, 1.0]))
    1.5
    """
    steps = np.diff(times)
    return float(times[-1] + (np.median(steps) if len(steps) else 0.04))


def spans(times: np.ndarray, window: float, stride: float) -> Iterator[Span]:
    """Every `stride` s a window of `window` s, as far as the video goes.

    The last one ends with the video, as long as the others; a video shorter than a window is one.
    A window in which no frame begins (where the picture stands still) has the one before it.
    """
    end = length(times)
    count = math.ceil(max(end - window, 0.0) / stride - LEAST)
    for k in range(count + 1):
        start = min(k * stride, max(end - window, 0.0))
        stop = min(start + window, end)
        first, after = np.searchsorted(times, (start - LEAST, stop - LEAST)).tolist()
        if first == after:
            first = max(first - 1, 0)
            after = first + 1
        yield Span(start, stop, first, after)


def windows(
    data: Data, streams: Streams, clip: Clip, seconds: float, stride: float
) -> Iterator[Window]:
    """The windows of a video, one after the other.

    Raises:
      UserError: the video cannot be read; poses are missing or do not fit it.
    """
    if not clip.video:
        raise UserError(f"{clip.id}: names no video; without its times there are no windows")
    with Video(clip.video, threads=0) as video:
        times = video.times[: clip_arrays.frame_count(clip, video.frames)]
        coming = (_opened(data, streams, clip, video, s) for s in spans(times, seconds, stride))
        waiting: deque[_Open] = deque()
        done = -1  # the last frame decoded
        upcoming = next(coming, None)
        while waiting or upcoming is not None:
            # Every window that needs a frame which is decoded for the first one takes it along.
            while upcoming is not None and (not waiting or upcoming.span.first <= waiting[0].last):
                waiting.append(upcoming)
                upcoming = next(coming, None)
            head = waiting[0]
            _decode(data, video, waiting, done, head.last)
            done = max(done, head.last)
            waiting.popleft()
            read = functools.partial(_read, head) if "rgb" in streams else None
            arrays = functools.partial(
                eval_views.arrays, data, streams, head.clip, head.place, read, "predict"
            )
            yield Window(head.span.start, head.span.end, arrays)


def _opened(data: Data, streams: Streams, clip: Clip, video: Video, span: Span) -> _Open:
    part = slice(span.first, span.after)
    keypoint = None if clip.keypoint is None else clip.keypoint[:, part]
    score = None if clip.score is None else clip.score[:, part]
    count = span.after - span.first
    own = dataclasses.replace(clip, frames=count, keypoint=keypoint, score=score)
    size = video.size if "rgb" in streams else clip.size
    place = eval_views.layout(data, streams, own, count, size, "predict")
    wanted = np.unique(place.at["rgb"]) + span.first if "rgb" in streams else np.arange(0)
    return _Open(span, own, place, wanted)


def _decode(data: Data, video: Video, waiting: deque[_Open], done: int, last: int) -> None:
    """Frames after `done` up to `last`, cut for each of the windows that want them."""
    wanted = [w.wanted[(w.wanted > done) & (w.wanted <= last)] for w in waiting]
    for numbers, frames in eval_views.decoded(video, np.unique(np.concatenate(wanted))):
        boxes: dict[Box | None, list[tuple[_Open, np.ndarray]]] = {}
        for window, of_it in zip(waiting, wanted, strict=True):
            boxes.setdefault(window.place.box, []).append((window, np.intersect1d(of_it, numbers)))
        for takers in boxes.values():  # windows with the same box share their frames
            union = np.unique(np.concatenate([of_it for _, of_it in takers]))
            if not len(union):
                continue
            chosen = frames[np.searchsorted(numbers, union)]
            cut = eval_views.resized(data, takers[0][0].place, "predict", chosen)
            # Copies: a slice would keep all decoded frames alive.
            by_number = {int(n): picture.copy() for n, picture in zip(union, cut, strict=True)}
            for window, of_it in takers:
                window.frames |= {n: by_number[n] for n in of_it.tolist()}


def _read(window: _Open, wanted: np.ndarray) -> np.ndarray:
    """u8[t, crops, s, s, 3] of frame numbers counted from the window's first."""
    return np.stack([window.frames[n] for n in (wanted + window.span.first).tolist()])

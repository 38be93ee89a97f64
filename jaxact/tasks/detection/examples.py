"""From an annotated video to the arrays of one window.

Host side of the detection task. An example is a window of `window` steps (see `windows`):

| key      | dtype, shape       | unit |
|----------|--------------------|------|
| frames   | u8[f, h, w, 3]     | RGB, f = window * scale, cropped and resized; or |
| features | f32[t, c]          | pre-extracted, t = window |
| valid    | bool[t]            | False = past the end of the video |
| segments | f32[n, 2]          | steps from the start of the window; training only |
| labels   | i32[n]             | class, -1 = no segment; training only |
| video    | i32[]              | place of the video in the annotation |
| clock    | f32[3]             | s at step 0, s per step, duration in s |

A training example is a random crop of one video, an evaluation example one of its windows. Frames
past the end repeat the last one. All frames of a window share one draw of every augmentation.
"""

import functools
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data.video import Video
from jaxact.tasks.detection import features, frames, windows
from jaxact.tasks.detection.config import Data
from jaxact.tasks.detection.dataset import Sample


def prepare(
    data: Data, classes: int, sample: Sample, rng: np.random.Generator, stage_data: Any, split: str
) -> dict[str, np.ndarray]:
    """One window's arrays (see the module's table).

    `stage_data` has `size` (px of the training crop) and `augment` (full | light | none).
    Raises: UserError for a video or features that cannot be read, or too many segments.
    """
    arrays: dict[str, Any] = {"video": np.int32(sample.number)}
    start, end = sample.start, sample.end
    if split == "train":
        crop, labels = _training_crop(data, sample, rng)
        start, end = crop.start, crop.end
        labels = np.zeros_like(labels) if classes == 1 else labels
        arrays |= _padded(data, sample, crop.segments, labels)
    arrays["valid"] = np.arange(data.window) < end - start
    arrays["clock"] = np.array(clock(data, sample, start), np.float32)
    if data.features:
        arrays["features"] = _features(data, sample, start, end)
    else:
        size = stage_data.size if split == "train" else data.test_size
        draw = frames.draw(rng, data, stage_data.augment) if split == "train" else None
        numbers = functools.partial(_numbers, data, sample, start, end)
        arrays["frames"] = frames.read(sample.path, numbers, size, draw)
    return arrays


def clock(data: Data, sample: Sample, start: int) -> tuple[float, float, float]:
    """(s at step 0 of a window from `start`, s per step, duration in s)."""
    if data.mode == "resize":
        return 0.0, sample.duration / data.window, sample.duration
    first = (start * data.stride + data.offset) / sample.fps
    return first, data.stride / sample.fps, sample.duration


def in_steps(data: Data, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The video's segments f64[n, 2] in steps and their labels, equal ones once."""
    rows = windows.without_duplicates(sample.video.segments, sample.video.labels)
    seconds, labels = sample.video.segments[rows], sample.video.labels[rows]
    large = seconds[:, 1] - seconds[:, 0] >= data.smallest * sample.duration
    seconds, labels = seconds[large], labels[large]
    if data.mode == "resize":
        # ActivityNet has segments that end after their video: here the window ends with it.
        return np.clip(seconds / sample.duration, 0, 1) * data.window, labels
    return windows.to_steps(seconds, sample.fps, data.stride, data.offset), labels


def _training_crop(
    data: Data, sample: Sample, rng: np.random.Generator
) -> tuple[windows.Crop, np.ndarray]:
    table, labels = in_steps(data, sample)
    if data.mode == "resize":
        return windows.Crop(0, data.window, table, np.arange(len(table))), labels
    crop = windows.random_crop(table, sample.steps, data.window, rng, data.least, data.shortest)
    return crop, labels[crop.kept]


def _padded(
    data: Data, sample: Sample, table: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Segments and labels filled up to `most` rows."""
    if len(labels) > data.most:
        raise UserError(
            f"{sample.id}: {len(labels)} segments in one window, config.data.most={data.most}"
        )
    places = data.most - len(labels)
    return {
        "segments": np.pad(table, ((0, places), (0, 0))).astype(np.float32),
        "labels": np.pad(labels, (0, places), constant_values=-1).astype(np.int32),
    }


def _features(data: Data, sample: Sample, start: int, end: int) -> np.ndarray:
    rows = features.read(sample.path, data.channels)
    if data.mode == "resize":
        return windows.stretched(rows, data.window)
    part = rows[start:end]
    return np.pad(part, ((0, data.window - len(part)), (0, 0)))


def _agree(data: Data, sample: Sample, video: Video) -> None:
    """File and annotation must agree about times. Raises: UserError naming the file."""
    count, stated, rate = video.frames, sample.video, frames.rate(video)
    if data.mode == "resize":
        # Times are shares of the whole, whatever the frame rate: the duration has to agree.
        lasts = count / rate if rate else stated.duration
        if stated.duration and abs(lasts - stated.duration) > max(2, 0.05 * stated.duration):
            raise UserError(
                f"{sample.path}: lasts {lasts:.4g} s, but the annotation says "
                f"{stated.duration:.4g} s; allowed: 5 % (or 2 s) more or less"
            )
        return
    if not stated.frames and rate and stated.duration:
        # The annotation does not count the frames: only its duration can be compared.
        if count / rate < stated.duration - max(2, 0.05 * stated.duration):
            raise UserError(
                f"{sample.path}: lasts {count / rate:.4g} s, but the annotation says "
                f"{stated.duration:.4g} s; allowed: up to 5 % (or 2 s) less"
            )
    near = max(2, stated.frames // 20)
    if stated.frames and count < stated.frames - near:
        raise UserError(
            f"{sample.path}: {count} frames, but the annotation has {stated.frames}; allowed: "
            "up to 5 % (or 2) fewer"
        )
    # A video that is only longer does no harm; at another rate all times would be wrong.
    if stated.frames and count > stated.frames + near and abs(rate / sample.fps - 1) > 0.05:
        raise UserError(
            f"{sample.path}: {count} frames, {rate:.4g} a second, but the annotation has "
            f"{stated.frames}, {sample.fps:.4g} a second; allowed: rates within 5 %"
        )


def _numbers(data: Data, sample: Sample, start: int, end: int, video: Video) -> np.ndarray:
    """The frames i64[f] of a window of the opened video."""
    _agree(data, sample, video)
    if data.mode == "resize":
        return frames.even(video)[windows.spread(video.frames, data.window * data.scale)]
    # Frames past the crop are repetitions of its last one, as past the end of the video.
    last = min(video.frames, end * data.stride)
    numbers = windows.frame_numbers(start, data.window, data.stride, data.scale, last)
    # Where the rate of the annotation is not that of the time stamps, frames are counted.
    stamped = abs(frames.rate(video) / sample.fps - 1) <= 0.05
    return frames.even(video)[numbers] if stamped else numbers


def shapes(data: Data, stage_data: Any, split: str) -> dict[str, tuple[tuple[int, ...], Any]]:
    """name -> (shape of one example, dtype), as `prepare` makes them."""
    train = split == "train"
    table: dict[str, tuple[tuple[int, ...], Any]] = {
        "video": ((), np.int32),
        "valid": ((data.window,), bool),
        "clock": ((3,), np.float32),
    }
    if data.features:
        table["features"] = ((data.window, data.channels), np.float32)
    else:
        side = stage_data.size if train else data.test_size
        table["frames"] = ((data.window * data.scale, side, side, 3), np.uint8)
    if train:
        table |= {"segments": ((data.most, 2), np.float32), "labels": ((data.most,), np.int32)}
    return table


def audit(data: Data, sample: Sample) -> str:
    """Opens the file of a window and reads its two ends: "" or what is wrong with it."""
    try:
        if data.features:
            features.read(sample.path, data.channels)
        else:
            with Video(sample.path) as video:
                end = sample.end or sample.steps
                numbers = _numbers(data, sample, sample.start, end, video)
                video.read([numbers[0], numbers[-1]])
    except UserError as error:
        return str(error)
    return ""

"""Untrimmed videos for temporal action detection: from an annotation to the arrays of one window.

Host side of the detection task. An example is a window of `window` steps (`data.windows`):

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

from typing import Any

import numpy as np

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.data.video import Video
from jaxact.tasks.detection import annotations as segments
from jaxact.tasks.detection import features, windows
from jaxact.tasks.detection import frames as footage
from jaxact.tasks.detection.config import Data
from jaxact.tasks.detection.dataset import Sample


def validate(data: Data) -> None:
    """Ranges and choices. Raises: UserError naming the field."""
    require = schema.require
    modes = ("sliding", "resize")
    require(data.mode in modes, "data.mode", data.mode, ", ".join(modes))
    rules = segments.GROUND_TRUTHS
    require(data.ground_truth in rules, "data.ground_truth", data.ground_truth, ", ".join(rules))
    for name in ("window", "stride", "scale", "clip", "most", "resize", "test_size"):
        require(getattr(data, name) >= 1, f"data.{name}", getattr(data, name), "1 or more")
    require(data.stride % data.scale == 0, "data.scale", data.scale, f"divisors of {data.stride}")
    require(
        bool(data.features) == (data.channels > 0),
        "data.channels",
        data.channels,
        "the width of the features with data.features, 0 without",
    )
    require(
        bool(data.features) or data.window * data.scale % data.clip == 0,
        "data.window",
        data.window,
        f"windows of whole clips: window * scale a multiple of clip={data.clip}",
    )
    require(0 <= data.overlap < 1, "data.overlap", data.overlap, "0 to below 1")
    require(0 <= data.offset, "data.offset", data.offset, "0 or more frames")
    for name in ("least", "shortest"):
        require(0 < getattr(data, name) <= 1, f"data.{name}", getattr(data, name), "above 0 to 1")
    require(0 <= data.smallest < 1, "data.smallest", data.smallest, "0 (off) to below 1")
    for name in ("flip", "strength"):
        require(0 <= getattr(data, name) <= 1, f"data.{name}", getattr(data, name), "0 to 1")
    require(data.operations >= 0, "data.operations", data.operations, "0 (off) or more")
    for name, count in (("area", 2), ("aspect", 2), ("jitter", 4), ("mean", 3), ("std", 3)):
        found = getattr(data, name)
        require(len(found) == count, f"data.{name}", found, f"{count} numbers")
        require(min(found) >= 0, f"data.{name}", found, "0 or more each")
    low, high = data.area
    require(0 < low <= high <= 1, "data.area", data.area, "rising, above 0 to 1")
    low, high = data.aspect
    require(0 < low <= high, "data.aspect", data.aspect, "rising, above 0")
    require(min(data.std) > 0, "data.std", data.std, "above 0 each")


def prepare(
    data: Data, classes: int, sample: Sample, rng: np.random.Generator, stage_data: Any, split: str
) -> dict[str, np.ndarray]:
    """One window's arrays (see the module's table).

    `stage` has `size` (px of the training crop) and `augment` (full | light | none).
    Raises: UserError for a video or features that cannot be read, or too many segments.
    """
    found: dict[str, Any] = {"video": np.int32(sample.number)}
    start, end = sample.start, sample.end
    if split == "train":
        crop, labels = _training_crop(data, sample, rng)
        start, end = crop.start, crop.end
        labels = np.zeros_like(labels) if classes == 1 else labels
        found |= _padded(data, sample, crop.segments, labels)
    found["valid"] = np.arange(data.window) < end - start
    found["clock"] = np.array(clock(data, sample, start), np.float32)
    if data.features:
        found["features"] = _features(data, sample, start, end)
    else:
        size = stage_data.size if split == "train" else data.test_size
        look = footage.draw(rng, data, stage_data.augment) if split == "train" else None
        found["frames"] = footage.read(
            data, sample.path, _numbers(data, sample, start, end), size, look
        )
    return found


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
    full, kinds = np.zeros((data.most, 2), np.float32), np.full(data.most, -1, np.int32)
    full[: len(labels)], kinds[: len(labels)] = table, labels
    return {"segments": full, "labels": kinds}


def _features(data: Data, sample: Sample, start: int, end: int) -> np.ndarray:
    found = features.read(sample.path, data.channels)
    if data.mode == "resize":
        return windows.stretched(found, data.window)
    part = found[start:end]
    return np.pad(part, ((0, data.window - len(part)), (0, 0)))


def _agree(data: Data, sample: Sample, video: Video) -> None:
    """File and annotation must tell the same times. Raises: UserError naming the file."""
    frames, said, rate = video.frames, sample.video, footage.rate(video)
    if data.mode == "resize":
        # Times are shares of the whole, whatever the frame rate: the duration has to agree.
        lasts = frames / rate if rate else said.duration
        if said.duration and abs(lasts - said.duration) > max(2, 0.05 * said.duration):
            raise UserError(
                f"{sample.path}: lasts {lasts:.4g} s, but the annotation says {said.duration:.4g} "
                "s; allowed: 5 % (or 2 s) more or less"
            )
        return
    if not said.frames and rate and said.duration:
        # Nothing counts the frames, so the duration alone ties times to them.
        if frames / rate < said.duration - max(2, 0.05 * said.duration):
            raise UserError(
                f"{sample.path}: lasts {frames / rate:.4g} s, but the annotation says "
                f"{said.duration:.4g} s; allowed: up to 5 % (or 2 s) less"
            )
    near = max(2, said.frames // 20)
    if said.frames and frames < said.frames - near:
        raise UserError(
            f"{sample.path}: {frames} frames, but the annotation has {said.frames}; allowed: "
            "up to 5 % (or 2) fewer"
        )
    # More are no harm where the video is only longer; at another rate all times would be wrong.
    if said.frames and frames > said.frames + near and abs(rate / sample.fps - 1) > 0.05:
        raise UserError(
            f"{sample.path}: {frames} frames, {rate:.4g} a second, but the annotation has "
            f"{said.frames}, {sample.fps:.4g} a second; allowed: rates within 5 %"
        )


def _numbers(data: Data, sample: Sample, start: int, end: int) -> Any:
    """Frame numbers of a window, given its opened video."""

    def numbers(video: Video) -> np.ndarray:
        _agree(data, sample, video)
        frames = video.frames
        if data.mode == "resize":
            return footage.even(video)[windows.spread(frames, data.window * data.scale)]
        # Frames past the crop are repetitions of its last one, as past the end of the video.
        last = min(frames, end * data.stride)
        at = windows.frame_numbers(start, data.window, data.stride, data.scale, last)
        # Where the annotation's rate is another than the stamps', frames are counted, as there.
        stamped = abs(footage.rate(video) / sample.fps - 1) <= 0.05
        return footage.even(video)[at] if stamped else at

    return numbers


def shapes(data: Data, stage_data: Any, split: str) -> dict[str, tuple[tuple[int, ...], Any]]:
    """name -> (shape of one example, dtype), as `prepare` makes them."""
    train = split == "train"
    found: dict[str, tuple[tuple[int, ...], Any]] = {
        "video": ((), np.int32),
        "valid": ((data.window,), bool),
        "clock": ((3,), np.float32),
    }
    if data.features:
        found["features"] = ((data.window, data.channels), np.float32)
    else:
        side = stage_data.size if train else data.test_size
        found["frames"] = ((data.window * data.scale, side, side, 3), np.uint8)
    if train:
        found |= {"segments": ((data.most, 2), np.float32), "labels": ((data.most,), np.int32)}
    return found


def audit(data: Data, sample: Sample) -> str:
    """Opens what a window names and reads its ends: "" or what is wrong with it."""
    try:
        if data.features:
            features.read(sample.path, data.channels)
        else:
            with Video(sample.path) as video:
                at = _numbers(data, sample, sample.start, sample.end or sample.steps)(video)
                video.read([at[0], at[-1]])
    except UserError as error:
        return str(error)
    return ""

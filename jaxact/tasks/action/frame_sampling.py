"""Which frames make a clip: uniform sampling, its aligned second stream, dense sampling.

Every function returns frame numbers in [0, frames). Given a legacy `np.random.RandomState` the
draws equal, number by number, those of the reference pipelines (MMAction2 1.2, PYSKL, EPAM-Net).
"""

import numpy as np

from jaxact.config import UserError
from jaxact.data.geometry import Random, integers

LEGACIES = ("mmaction2", "pyskl")


def _check(frames: int, length: int, interval: tuple[float, float], legacy: str) -> None:
    if frames < 1 or length < 1:
        raise UserError(f"sampling {length} of {frames} frames: both numbers must be at least 1")
    if legacy not in LEGACIES:
        raise UserError(f"sampling legacy {legacy!r} is unknown; known: {', '.join(LEGACIES)}")
    if not 0 < interval[0] <= interval[1] <= 1:
        raise UserError(f"sampling interval {interval}: 0 < low <= high <= 1 is needed")


def _window(frames: int, rng: Random, interval: tuple[float, float], legacy: str):
    """Offset and length of a random sub-window whose share of the frames is in `interval`.

    PYSKL draws even where the window can only be the whole video; MMAction2 has no window.
    """
    if tuple(interval) == (1, 1) and legacy == "mmaction2":
        return 0, frames
    share = rng.random() if isinstance(rng, np.random.Generator) else rng.rand()
    low, high = interval
    window = max(1, int((share * (high - low) + low) * frames))
    return int(integers(rng, frames - window + 1)), window


def _spread(frames: int, length: int, rng: Random) -> np.ndarray:
    """One frame of each of `length` equal parts, for frames >= length."""
    steps = np.arange(length)
    if frames < 2 * length:  # parts of one or two frames: choose where a frame is passed over
        skipped = np.zeros(length + 1, np.int64)
        skipped[rng.choice(length + 1, frames - length, replace=False)] = 1
        return steps + np.cumsum(skipped)[:-1]
    bounds = np.arange(length + 1) * frames // length
    return bounds[:-1] + integers(rng, np.diff(bounds))


def uniform(
    frames: int,
    length: int,
    rng: Random,
    interval: tuple[float, float] = (1.0, 1.0),
    legacy: str = "mmaction2",
) -> np.ndarray:
    """Frames of one training clip: one from each of `length` equal parts; short videos wrap.

    Several clips of one sample are several calls with the same `rng`.

    Returns: i64[length]. Source: Duan et al. 2022 (PoseC3D) §3; UniformSampleFrames.
    """
    _check(frames, length, interval, legacy)
    offset, window = _window(frames, rng, interval, legacy)
    if window < length:
        picks = int(integers(rng, window)) + np.arange(length)
    else:
        picks = _spread(window, length, rng)
    return (picks + offset) % frames


def uniform_views(
    frames: int,
    length: int,
    clips: int = 1,
    interval: tuple[float, float] = (1.0, 1.0),
    legacy: str = "mmaction2",
) -> np.ndarray:
    """Frames of a sample's evaluation clips: always the same for the same arguments.

    Returns: i64[clips, length]. Source: UniformSampleFrames in test mode.
    """
    _check(frames, length, interval, legacy)
    if clips < 1:
        raise UserError(f"sampling {clips} clips: at least 1 is needed")
    rng = np.random.RandomState(255)  # the seed of the references
    views = np.empty((clips, length), np.int64)
    for i in range(clips):
        offset, window = _window(frames, rng, interval, legacy)
        if window < length:
            start = i if window < clips else i * window // clips
            picks = start + np.arange(length)
        else:
            picks = _spread(window, length, rng)
        views[i] = (picks + offset) % frames
    return views


def aligned(indices: np.ndarray, length: int) -> np.ndarray:
    """Every n-th of these frames, `length` in all: i64[..., n * length] -> i64[..., length].

    EPAM-Net's RGB frames: 16 of the 48 pose frames. Raises: UserError where n is not whole.
    """
    have = indices.shape[-1]
    if length < 1 or have % length:
        raise UserError(
            f"aligned streams of {have} and {length} frames: {have} is no multiple of {length}"
        )
    return indices[..., :: have // length]


def dense(
    frames: int, length: int, stride: int, clips: int = 1, rng: Random | None = None
) -> np.ndarray:
    """Clips of `length` frames, `stride` apart: at random with `rng`, else spread evenly.

    Clips that run over the end start again at frame 0.

    Returns: i64[clips, length]. Source: SampleFrames of MMAction2 (X3D, SlowOnly recipes).
    """
    _check(frames, length, (1.0, 1.0), "mmaction2")
    if stride < 1 or clips < 1:
        raise UserError(f"dense sampling with stride {stride}, clips {clips}: at least 1 is needed")
    if rng is None:
        starts = _even(frames, (length - 1) * stride + 1, clips)
    else:  # the reference counts a whole stride after the last frame here, and only here
        starts = _random(frames, length * stride, clips, rng)
    return (starts[:, None] + np.arange(length) * stride) % frames


def _even(frames: int, span: int, clips: int) -> np.ndarray:
    last = max(frames - span, 0)
    if clips == 1:
        return np.array([last // 2])
    return np.round(np.arange(clips) * (last / (clips - 1))).astype(np.int64)


def _random(frames: int, span: int, clips: int, rng: Random) -> np.ndarray:
    free = frames - span + 1
    part = free // clips
    if part > 0:
        return np.arange(clips) * part + integers(rng, part, clips)
    if frames > max(clips, span):
        return np.sort(integers(rng, free, clips))
    if part == 0:
        return np.around(np.arange(clips) * (free / clips)).astype(np.int64)
    return np.zeros(clips, np.int64)

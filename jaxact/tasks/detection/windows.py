"""Parts of an untrimmed video that are examples: sliding windows, random crops, whole videos.

The unit is the step: one feature of the detector, `stride` frames of the video. Step i lies at
(i * stride + offset) / fps seconds; the detector is trained on segments in steps.
Source: the data sets of OpenTAD (sliding, random truncation, resize) and ActionFormer.
"""

from typing import NamedTuple

import numpy as np

ROUND = 1e-6  # frames; added before a number of frames is cut to a whole one
TRIES = 200  # crops drawn until one holds a segment


class Crop(NamedTuple):
    """Part of a video, steps [start, end), and the segments that belong to it."""

    start: int
    end: int
    segments: np.ndarray  # f64[n, 2] steps from the start of the crop
    kept: np.ndarray  # i64[n]: which of the video's segments they are


def sliding(steps: int, length: int, overlap: float) -> list[tuple[int, int]]:
    """Windows [start, end) over a video of `steps`, each `overlap` of its length from the last.

    The last one is moved back to end with the video; a shorter video is one window. As in the
    reference a window that ends exactly with the video may come twice (792 on THUMOS, not 791).
    Unlike there, every step is covered also with an overlap below a half.

    >>> sliding(1133, 768, 0.5)
    [(0, 768), (365, 1133)]
    """
    hop = max(1, int(length * (1 - overlap)))
    parts: list[tuple[int, int]] = []
    for start in range(0, hop * max(1, steps // hop), hop):
        if start + length > steps:
            break
        parts.append((start, start + length))
    else:
        if parts[-1][1] == steps:
            return parts
    return [*parts, (max(0, steps - length), steps)]


def count(frames: int, stride: int) -> int:
    """Steps of a video: its frames 0, stride, 2 * stride, ..."""
    return -(-frames // stride)


def to_steps(seconds: np.ndarray, fps: float, stride: int, offset: float) -> np.ndarray:
    """Times f64[...] s in steps of the video; they are cut to whole frames first, as in OpenTAD."""
    frames = np.floor(np.asarray(seconds, np.float64) * fps + ROUND)
    return (frames - offset) / stride


def random_crop(
    segments: np.ndarray,
    steps: int,
    length: int,
    rng: np.random.Generator,
    least: float,
    shortest: float,
) -> Crop:
    """A training crop: segments f64[n, 2] in steps of the video.

    A video longer than `length` is cut to it, a shorter one to between `shortest` of itself and
    all. A segment belongs to the crop if at least `least` of it lies inside, and is cut to it.
    Crops are drawn up to TRIES times until one has a segment (one far longer never belongs).
    """
    if steps > length:
        cut = length
    else:
        cut = int(rng.integers(round(shortest * steps), steps + 1))
        if cut == steps:
            return Crop(0, steps, segments.copy(), np.arange(len(segments)))
    cut = max(cut, 1)
    for _ in range(TRIES):
        start = int(rng.integers(steps - cut + 1))
        crop = inside(segments, start, start + cut, least)
        if len(crop.kept):
            break
    return crop


def inside(segments: np.ndarray, start: int, end: int, least: float) -> Crop:
    """The segments f64[n, 2] of which at least `least` lies in steps [start, end), cut to it."""
    low, high = np.maximum(segments[:, 0], start), np.minimum(segments[:, 1], end)
    length = np.maximum(segments[:, 1] - segments[:, 0], ROUND)
    kept = np.flatnonzero(high - low >= least * length)
    return Crop(start, end, np.stack([low, high], 1)[kept] - start, kept)


def without_duplicates(segments: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows i64[m] to keep of segments f64[n, 2] and labels i64[n]: the first of equal ones."""
    if not len(labels):
        return np.zeros(0, np.int64)
    table = np.column_stack([segments, labels])
    return np.sort(np.unique(table, axis=0, return_index=True)[1])


def frame_numbers(start: int, length: int, stride: int, scale: int, frames: int) -> np.ndarray:
    """Frames i64[length * scale] of a window: `scale` of each step, the last one repeated.

    They are stride / scale apart, so a window covers the same time whatever the scale.
    """
    at = start * stride + np.arange(length * scale) * (stride // scale)
    last = (frames - 1) // (stride // scale) * (stride // scale)
    return np.minimum(at, last)


def spread(frames: int, length: int) -> np.ndarray:
    """Frames i64[length] at the middles of `length` equal parts of a whole video."""
    middle = (np.arange(length) + 0.5) * frames / length - 0.5
    return np.rint(np.clip(middle, 0, frames - 1)).astype(np.int64)


def stretched(features: np.ndarray, length: int) -> np.ndarray:
    """Features f[n, c] of a whole video -> f[length, c], linear between middles of parts."""
    at = np.clip((np.arange(length) + 0.5) * len(features) / length - 0.5, 0, len(features) - 1)
    low = np.floor(at).astype(np.int64)
    share = (at - low)[:, None].astype(features.dtype)
    high = np.minimum(low + 1, len(features) - 1)
    return features[low] * (1 - share) + features[high] * share

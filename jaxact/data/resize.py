"""Bilinear resizing of uint8 frames, bit for bit as OpenCV's INTER_LINEAR does it.

Two source pixels per axis at any scale (no smoothing before shrinking), weights of 11 bits, columns
first, and the same truncations in between: what the reference results were trained with.
"""

import numpy as np

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 px; the last column and row are not inside

_ONE = 2048  # a weight of 1
_LANE = np.uint64(21)  # bits of a channel's lane: a pixel's three channels share one 64-bit word
_VALUE = np.uint32(0x7FFF)  # what a row keeps of value * weight: the top 15 of 19 bits


def _taps(old: int, new: int, dtype: type, stop_at_edge: bool) -> tuple[np.ndarray, ...]:
    """The two source positions of each new one and their weights.

    Past an edge the edge repeats. `stop_at_edge` (columns) also gives it all the weight; for rows
    that would change the value, since the two are truncated separately.
    """
    at = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    low = np.floor(at).astype(np.intp)
    share = at - low.astype(np.float32)
    if stop_at_edge:
        share[(low < 0) | (low >= old - 1)] = 0
    weights = (np.rint(s * np.float32(_ONE)).astype(dtype) for s in (1 - share, share))
    return np.clip(low, 0, old - 1), np.clip(low + 1, 0, old - 1), *weights


def _pack(frame: np.ndarray, words: np.ndarray) -> None:
    """u8[h, w, 3] -> u64[h, w], the first channel in the lowest lane."""
    words[...] = frame[..., 2]
    words <<= _LANE
    words |= frame[..., 1]
    words <<= _LANE
    words |= frame[..., 0]


def _columns(words: np.ndarray, taps: tuple[np.ndarray, ...] | None) -> np.ndarray:
    """value * weight / 16 in each lane: u64[h, w] -> u64[h, w']; bits spill into the lane below."""
    if taps is None:
        words <<= np.uint64(7)
        return words
    left, right, left_weight, right_weight = taps
    mixed = words.take(left, 1)
    mixed *= left_weight
    other = words.take(right, 1)
    other *= right_weight
    mixed += other
    mixed >>= np.uint64(4)
    return mixed


def _rows(plane: np.ndarray, taps: tuple[np.ndarray, ...] | None) -> np.ndarray:
    """u32[h, w'] -> u32[h', w'] of grey levels."""
    if taps is None:
        plane >>= np.uint32(5)
        mixed = plane
    else:
        upper, lower, upper_weight, lower_weight = taps
        mixed = plane.take(upper, 0)
        mixed *= upper_weight[:, None]
        mixed >>= np.uint32(16)
        other = plane.take(lower, 0)
        other *= lower_weight[:, None]
        other >>= np.uint32(16)
        mixed += other
    mixed += np.uint32(2)
    mixed >>= np.uint32(2)
    return mixed


def crop_frames(frames: np.ndarray, box: Box) -> np.ndarray:
    """The part of u8[t, h, w, 3] in the box; black where the box leaves the frame."""
    x0, y0, x1, y1 = box
    height, width = frames.shape[1:3]
    inside = frames[:, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return inside
    canvas = np.zeros((len(frames), y1 - y0, x1 - x0, 3), np.uint8)
    top, left = max(-y0, 0), max(-x0, 0)
    canvas[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
    return canvas


def resample(frames: np.ndarray, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """Crops to the box, then resizes to `size` (h, w): u8[t, h, w, 3] -> u8[t, *size, 3].

    Source: OpenCV 4.11 `cv::resize`, fixed-point path.
    """
    if box is not None:
        frames = crop_frames(frames, box)
    count, height, width = frames.shape[:3]
    if (height, width) == tuple(size):
        return frames
    columns = _taps(width, size[1], np.uint64, True) if width != size[1] else None
    rows = _taps(height, size[0], np.uint32, False) if height != size[0] else None
    if rows is not None and 2 * size[0] < height:  # leave out the rows that are not read
        used, where = np.unique(np.concatenate(rows[:2]), return_inverse=True)
        frames, rows = frames[:, used], (where[: size[0]], where[size[0] :], *rows[2:])
    resized = np.empty((count, *size, 3), np.uint8)
    words = np.empty(frames.shape[1:3], np.uint64)
    plane = np.empty((frames.shape[1], size[1]), np.uint32)
    for frame, out in zip(frames, resized, strict=True):  # one frame at a time stays in the cache
        _pack(frame, words)
        mixed = _columns(words, columns)
        for channel in range(3):
            if channel:
                mixed >>= _LANE
            plane[...] = mixed
            np.bitwise_and(plane, _VALUE, out=plane)
            out[..., channel] = _rows(plane, rows)
    return resized

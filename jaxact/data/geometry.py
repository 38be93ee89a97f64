"""Crops, resizes and flips of a clip: frames and keypoints together, in plain functions.

A clip is `frames: u8[t, h, w, 3] | None`, `keypoint: f[p, t, j, 2] px | None` (x, y; a
coordinate of exactly 0 means "not detected") and `size` (h, w) px. Either of the two may be None;
their frame counts may differ. Keypoint arithmetic keeps the dtype it is given. Nothing is changed
in place. Source: the transforms of MMAction2 1.2 (PoseCompact, MMCompact, Resize, the crops, Flip).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data.resize import Box, crop_frames, resample

Random = np.random.Generator | np.random.RandomState

THRESHOLD = 10  # px; a compact box is not made around joints that span less
REACH = 2  # frame sizes that a compact box may lie beyond the frame; bounds the crop's memory

Size = tuple[int, int]
Frames = np.ndarray | None
Keypoint = np.ndarray | None


def whole(size: Size) -> Box:
    """The box of the whole frame."""
    return 0, 0, size[1], size[0]


def compact_box(
    keypoint: np.ndarray,
    size: Size,
    padding: float = 0.25,
    threshold: float = THRESHOLD,
    ratio: tuple[float, float] | None = (1.0, 1.0),
    pad: bool = True,
) -> Box:
    """The box around all joints of all persons and frames, `padding` larger on every side.

    `ratio` bounds height / width from below and above (the box only grows; None = as it is).
    With `pad` the box may leave the frame, by two frame sizes at most (a joint far away must not
    make a huge picture), else it is cut to it. The whole frame where no joint is detected or the
    joints' width or height is below `threshold` px. Corners are cut to integers toward zero.
    """
    middles, halves = [], []
    for axis in (0, 1):
        values = keypoint[..., axis]
        values = values[(values != 0) & ~np.isnan(values)]
        if not values.size or values.max() - values.min() < threshold:
            return whole(size)
        low, high = values.min(), values.max()
        middles.append(float(low + high) / 2)
        halves.append(float(high - low) / 2 * (1 + padding))
    if ratio is not None:
        halves[1] = max(ratio[0] * halves[0], halves[1])
        halves[0] = max(halves[1] / ratio[1], halves[0])
    (x, y), (w, h) = middles, halves
    beyond = REACH if pad else 0
    more = beyond * size[1], beyond * size[0]
    x0, y0 = max(x - w, -more[0]), max(y - h, -more[1])
    x1, y1 = min(x + w, size[1] + more[0]), min(y + h, size[0] + more[1])
    if x1 - x0 < 1 or y1 - y0 < 1:  # every joint lies outside
        return whole(size)
    return int(x0), int(y0), int(x1), int(y1)


def crop(
    frames: Frames, keypoint: Keypoint, box: Box, keep_zeros: bool = False
) -> tuple[Frames, Keypoint, Size]:
    """Cuts out the box (black beyond the frame) -> frames, keypoint, size.

    `keep_zeros`: coordinates of 0 stay 0 (compact crops); else they shift like all (other crops).
    """
    if frames is not None:
        frames = crop_frames(frames, box)
    return frames, _shifted(keypoint, box, keep_zeros), (box[3] - box[1], box[2] - box[0])


def resize(
    frames: Frames, keypoint: Keypoint, size: Size, new: Size
) -> tuple[Frames, Keypoint, Size]:
    """Stretches from `size` to `new` (h, w) -> frames, keypoint, size.

    `size` is the keypoints' frame; decoded frames of another size come out at `new` too.
    """
    if frames is not None:
        frames = resample(frames, new)
    return frames, rescale(keypoint, size, new), new


def crop_resize(
    frames: Frames, keypoint: Keypoint, box: Box, new: Size, keep_zeros: bool = False
) -> tuple[Frames, Keypoint, Size]:
    """`crop` then `resize`, the frames in one pass -> frames, keypoint, size."""
    size = box[3] - box[1], box[2] - box[0]
    if frames is not None:
        frames = resample(frames, new, box)
    return frames, rescale(_shifted(keypoint, box, keep_zeros), size, new), new


def rescale(keypoint: Keypoint, size: Size, new: Size) -> Keypoint:
    """Keypoints annotated for a frame of `size`, in pixels of a frame of `new` (both h, w)."""
    if keypoint is None or tuple(size) == tuple(new):
        return keypoint
    return keypoint * np.array([new[1] / size[1], new[0] / size[0]], np.float32)


def flip(
    frames: Frames, keypoint: Keypoint, score: np.ndarray | None, size: Size, swap: Sequence[int]
) -> tuple[Frames, Keypoint, np.ndarray | None]:
    """Mirrors left to right, joints trading places -> frames, keypoint, score.

    Column x of the frames goes to w - 1 - x, x of keypoints to w - x (0 stays): the two differ by a
    pixel as in the reference. `swap` is `Skeleton.swap`. The frames are a view.
    """
    if frames is not None:
        frames = frames[:, :, ::-1]
    if keypoint is not None:
        keypoint = keypoint[..., list(swap), :]
        x = keypoint[..., 0]
        keypoint[..., 0] = np.where(x != 0, size[1] - x, x)
    if score is not None:
        score = score[..., list(swap)]
    return frames, keypoint, score


def _shifted(keypoint: Keypoint, box: Box, keep_zeros: bool) -> Keypoint:
    if keypoint is None:
        return None
    keypoint = np.where(np.isnan(keypoint), keypoint.dtype.type(0), keypoint)
    moved = keypoint - np.array(box[:2], keypoint.dtype)
    return np.where(keypoint != 0, moved, keypoint) if keep_zeros else moved


def scaled(size: Size, factor: float) -> Size:
    """`size` times a factor, each side rounded half up."""
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def short_side(size: Size, short: int) -> Size:
    """The size of this aspect whose shorter side is `short` px."""
    return scaled(size, short / min(size))


def _within(size: Size, new: Size) -> None:
    if new[0] > size[0] or new[1] > size[1]:
        raise UserError(f"crop {new[0]}x{new[1]} (h x w) does not fit in {size[0]}x{size[1]}")


def random_box(
    size: Size,
    rng: Random,
    area: tuple[float, float] = (0.56, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    offset: Callable[[int], int] | None = None,
) -> Box:
    """A box of random area (share of the frame) and aspect (w / h, log-uniform): RandomResizedCrop.

    Ten candidates are drawn at once and the first that fits is taken; the centred square else.
    `offset(n)` draws one of 0..n (default: from `rng`); the reference takes these two numbers
    from Python's `random.randint`.
    """
    height, width = size
    low, high = np.log(aspect[0]), np.log(aspect[1])
    aspects = np.exp(rng.uniform(low, high, 10))
    areas = rng.uniform(area[0], area[1], 10) * (height * width)
    widths = np.round(np.sqrt(areas * aspects)).astype(np.int64)
    heights = np.round(np.sqrt(areas / aspects)).astype(np.int64)
    for w, h in zip(widths.tolist(), heights.tolist(), strict=True):
        if 0 < w <= width and 0 < h <= height:
            draw = offset or (lambda n: int(integers(rng, n + 1)))
            x = draw(width - w)
            y = draw(height - h)
            return x, y, x + w, y + h
    return centre_box(size, (min(size), min(size)))


def offset_box(size: Size, new: Size, rng: Random) -> Box:
    """A box of `new` (h, w) at a random place: RandomCrop (which misses each last one)."""
    _within(size, new)
    free = (old - side for old, side in zip(size, new, strict=True))
    y, x = (int(integers(rng, n + 1)) if n > 0 else 0 for n in free)
    return x, y, x + new[1], y + new[0]


def centre_box(size: Size, new: Size) -> Box:
    """The box of `new` (h, w) in the middle: CenterCrop."""
    _within(size, new)
    y, x = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    return x, y, x + new[1], y + new[0]


def three_boxes(size: Size, new: Size) -> tuple[Box, Box, Box]:
    """The boxes of `new` (h, w) at the start, end and middle of the longer free side: ThreeCrop."""
    _within(size, new)
    x, y = (size[1] - new[1]) // 2, (size[0] - new[0]) // 2
    if x >= y:
        corners = (0, y), (2 * x, y), (x, y)
    else:
        corners = (x, 0), (x, 2 * y), (x, y)
    first, last, middle = ((x, y, x + new[1], y + new[0]) for x, y in corners)
    return first, last, middle


def integers(rng: Random, high: Any, size: int | None = None) -> Any:
    """Uniform integers in [0, high) from either kind of NumPy generator."""
    if isinstance(rng, np.random.Generator):
        return rng.integers(high, size=size)
    return rng.randint(high, size=size)

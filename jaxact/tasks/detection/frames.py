"""Frames of a window of an untrimmed video: decoded in one pass, cropped, augmented alike.

A window has hundreds of frames. It is decoded and cropped in chunks; `Video` seeks once and then
decodes on. All chunks share one draw of the augmentation.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image

from jaxact.data import color, geometry, randaugment, resize
from jaxact.data.color import Colour
from jaxact.data.video import Video
from jaxact.tasks.detection.config import Data

CHUNK = 64  # frames decoded at once


def rate(video: Video) -> float:
    """Mean frames/s by the frames' time stamps; the rate that the container states may be wrong."""
    span = float(video.times[-1])
    return (video.frames - 1) / span if span > 0 else video.fps


def even(video: Video) -> np.ndarray:
    """The frames i64[n] nearest to n evenly spaced times, i / `rate`, of a video of n frames.

    At a constant rate these are 0, 1, ... n - 1. Telephones and screen recordings vary the rate.
    """
    same = np.arange(video.frames)
    if video.frames < 3:
        return same
    middles = (video.times[1:] + video.times[:-1]) / 2
    nearest = np.searchsorted(middles, same / rate(video), "right")
    # Where a frame was only dropped or doubled somewhere, frames are counted as references do.
    return same if np.abs(nearest - same).max() <= 1 else nearest


@dataclasses.dataclass(frozen=True)
class Draw:
    """One draw of the augmentation. The crop depends on the frame's size, so it is a seed here."""

    crop: int  # seed of the random crop; -1 = centre
    mirror: bool
    operations: int  # seed of the RandAugment operations
    count: int  # how many of them; 0 = none
    strength: float
    colour: Colour | None
    short: int  # px of the short side before the crop
    area: tuple[float, float]
    aspect: tuple[float, float]


def draw(rng: np.random.Generator, data: Data, augment: str) -> Draw:
    """A draw: `augment` full = crop, mirror, RandAugment, colour; light = mirror; none.

    The generator moves by as many numbers in each case.
    """
    seeds = rng.integers(0, 2**31, 2).tolist()
    mirror = bool(rng.random() < data.flip)
    brightness, contrast, saturation, hue = data.jitter
    colour = color.draw_colour(rng, brightness, contrast, saturation, hue)
    full = augment == "full"
    return Draw(
        crop=seeds[0] if full else -1,
        mirror=mirror and augment != "none",
        operations=seeds[1],
        count=data.operations if full else 0,
        strength=data.strength,
        colour=colour if full and any(data.jitter) else None,
        short=data.resize,
        area=(data.area[0], data.area[1]),
        aspect=(data.aspect[0], data.aspect[1]),
    )


def read(
    path: str, numbers: Callable[[Video], np.ndarray], side: int, drawn: Draw | None
) -> np.ndarray:
    """u8[t, side, side, 3]: the frames i64[t] that `numbers` gives for the opened video.

    drawn: None = evaluation: short side `side`, centre crop.
    Raises: UserError naming the file.
    """
    with Video(path) as video:
        unique, where = np.unique(numbers(video), return_inverse=True)  # the last one repeats
        if drawn is not None and drawn.crop >= 0:
            size = geometry.short_side(video.size, max(drawn.short, side))
            rng = np.random.default_rng(drawn.crop)
            box = geometry.random_box(size, rng, drawn.area, drawn.aspect)
        else:
            size = geometry.short_side(video.size, side)
            box = geometry.centre_box(size, (side, side))
        decoded = np.empty((len(unique), side, side, 3), np.uint8)
        for first in range(0, len(unique), CHUNK):
            chunk = slice(first, first + CHUNK)
            # Scaling to `size` while colours are converted costs next to nothing.
            frames = resize.resample(video.read(unique[chunk], size), (side, side), box)
            decoded[chunk] = frames if drawn is None else _augmented(frames, drawn)
    return decoded if len(unique) == len(where) else decoded[where.reshape(-1)]


def _augmented(frames: np.ndarray, drawn: Draw) -> np.ndarray:
    """u8[t, h, w, 3] mirrored and recoloured as drawn."""
    if drawn.mirror:
        frames = frames[:, :, ::-1]
    if drawn.count:
        # Every frame draws from the same seed, so all go through the same operations.
        frames = np.stack(
            [
                np.asarray(
                    randaugment.apply(
                        Image.fromarray(np.ascontiguousarray(frame)),
                        np.random.default_rng(drawn.operations),
                        drawn.count,
                        drawn.strength,
                    )
                )
                for frame in frames
            ]
        )
    if drawn.colour is not None:
        frames = color.jitter(frames, drawn.colour)
    return frames

"""Frames of a window of an untrimmed video: decoded in one pass, cropped, augmented alike.

A window is hundreds of frames, so it is decoded in chunks that go through the crop one after the
other; `Video` seeks once and then decodes on. All chunks share one draw.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from jaxact.data import color, geometry, randaugment, resize
from jaxact.data.color import Colour
from jaxact.data.video import Video

CHUNK = 64  # frames decoded at once


def rate(video: Video) -> float:
    """Mean frames/s by the frames' stamps, which hold where the container's word does not."""
    span = float(video.times[-1])
    return (video.frames - 1) / span if span > 0 else video.fps


def even(video: Video) -> np.ndarray:
    """The frame i64[frames] to show at each of as many times that are evenly spaced.

    Frame i of an untrimmed video stands for the time i / `rate`. Where the rate varies (telephones,
    screen recordings) that is not the i-th frame, but the nearest one; elsewhere it is.
    """
    same = np.arange(video.frames)
    if video.frames < 3:
        return same
    middles = (video.times[1:] + video.times[:-1]) / 2
    found = np.searchsorted(middles, same / rate(video), "right")
    # One frame dropped or doubled somewhere is no reason to leave the count of the references.
    return same if np.abs(found - same).max() <= 1 else found


@dataclasses.dataclass(frozen=True)
class Look:
    """One draw of the augmentation; the box depends on the frame's size, hence its seed."""

    box: int  # seed of the random crop; -1 = centre
    mirror: bool
    operations: int  # seed of the RandAugment operations
    count: int  # how many of them; 0 = none
    strength: float
    colour: Colour | None
    short: int  # px of the short side before the crop
    area: tuple[float, float]
    aspect: tuple[float, float]


def draw(rng: np.random.Generator, data: Any, augment: str) -> Look:
    """A draw: `augment` full = crop, mirror, RandAugment, colour; light = mirror; none.

    The same numbers are drawn whatever the kind.
    """
    seeds = rng.integers(0, 2**31, 2).tolist()
    mirror = bool(rng.random() < data.flip)
    colour = color.draw_colour(rng, *data.jitter)
    full = augment == "full"
    return Look(
        box=seeds[0] if full else -1,
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
    data: Any,
    path: str,
    numbers: Callable[[Video], np.ndarray],
    side: int,
    look: Look | None,
) -> np.ndarray:
    """u8[t, side, side, 3] at the frame `numbers` (given the opened video).

    Without a look (evaluation): short side `side`, centre crop. Repeats at the end are not decoded
    again. Raises: UserError naming the file.
    """
    with Video(path) as video:
        wanted, where = np.unique(numbers(video), return_inverse=True)
        random = look is not None and look.box >= 0
        short = max(look.short, side) if look is not None and random else side
        size = geometry.short_side(video.size, short)
        box = geometry.centre_box(size, (side, side))
        if look is not None and random:
            rng = np.random.default_rng(look.box)
            box = geometry.random_box(size, rng, look.area, look.aspect)
        found = np.empty((len(wanted), side, side, 3), np.uint8)
        for first in range(0, len(wanted), CHUNK):
            part = slice(first, first + CHUNK)
            # Frames are scaled while their colours are converted: that costs next to nothing.
            frames = video.read(wanted[part], size)
            frames = resize.resample(frames, (side, side), box)
            found[part] = frames if look is None else _retouched(frames, look)
    return found if len(wanted) == len(where) else found[where.reshape(-1)]


def _retouched(frames: np.ndarray, look: Look) -> np.ndarray:
    """u8[t, h, w, 3] mirrored and recoloured as drawn."""
    if look.mirror:
        frames = frames[:, :, ::-1]
    if look.count:
        # Every frame draws from the same seed, so all go through the same operations.
        frames = np.stack(
            [
                np.asarray(
                    randaugment.apply(
                        Image.fromarray(np.ascontiguousarray(frame)),
                        np.random.default_rng(look.operations),
                        look.count,
                        look.strength,
                    )
                )
                for frame in frames
            ]
        )
    if look.colour is not None:
        frames = color.jitter(frames, look.colour)
    return frames

"""Colour changes of uint8 clips: brightness, contrast, saturation and hue, once per clip.

Source: ColorJitter of MMAction2 1.2 (which draws the order once per data set, not per clip).
"""

from typing import NamedTuple

import numpy as np

from jaxact.data.geometry import Random

_GREY = np.array([0.2989, 0.587, 0.114], np.float32)


class Colour(NamedTuple):
    """Factors around 1, a hue turn (1 = all 255 steps), and the order in which they are applied.

    `order` holds 0 brightness, 1 contrast, 2 saturation, 3 hue.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = (0, 1, 2, 3)


def draw_colour(
    rng: Random,
    brightness: float = 0.5,
    contrast: float = 0.5,
    saturation: float = 0.5,
    hue: float = 0.1,
) -> Colour:
    """Factors drawn uniformly in [1 - s, 1 + s] for each strength s, a turn in [-hue, hue].

    The order is drawn first.
    """
    order = tuple(rng.permutation(4).tolist())
    strengths = brightness, contrast, saturation
    light, gap, depth = (float(rng.uniform(max(0.0, 1 - s), 1 + s)) for s in strengths)
    return Colour(light, gap, depth, float(rng.uniform(-hue, hue)), order)


def jitter(frames: np.ndarray, colour: Colour) -> np.ndarray:
    """The frames with these changes applied: u8[t, h, w, 3] RGB -> u8[t, h, w, 3].

    Contrast pulls each frame toward its own mean grey. Values are cut to 0..255 at the end and
    before a hue turn.
    """
    changed = np.empty_like(frames, order="C")
    for frame, out in zip(frames, changed, strict=True):
        values = frame.astype(np.float32)
        for change in colour.order:
            values = _change(values, change, colour)
        out[...] = np.clip(values, 0, 255, out=values)
    return changed


def _change(values: np.ndarray, change: int, colour: Colour) -> np.ndarray:
    """One change of f32[h, w, 3], in place where it can be."""
    if change == 0:
        values *= np.float32(colour.brightness)
    elif change == 1 and colour.contrast != 1:
        mean = float((values @ _GREY).mean())
        values *= np.float32(colour.contrast)
        values += np.float32((1 - colour.contrast) * mean)
    elif change == 2 and colour.saturation != 1:
        grey = values @ _GREY
        grey *= np.float32(1 - colour.saturation)
        values *= np.float32(colour.saturation)
        values += grey[..., None]
    elif change == 3 and colour.hue != 0:
        values = _turned(np.clip(values, 0, 255).astype(np.uint8), int(colour.hue * 255))
    return values


def _reciprocals(numerator: float) -> np.ndarray:
    """round(4096 * numerator / i) for i = 0..255 (0 for 0): division as OpenCV does it on bytes."""
    table = np.zeros(256, np.int32)
    table[1:] = np.rint(4096 * numerator / np.arange(1, 256))
    return table


_PER_VALUE, _PER_SPREAD = _reciprocals(255), _reciprocals(30)


def _dips() -> np.ndarray:
    """f32[3, 180]: at full saturation, how far red, green, blue lie below the value at each hue."""
    turn = np.arange(180, dtype=np.float32) * np.float32(1 / 30)  # six sectors of 30 steps
    rising = turn - np.floor(turn)
    none, full, falling = np.zeros(180, np.float32), np.ones(180, np.float32), 1 - rising
    around = none, rising, full, full, falling, none  # red's, sector by sector
    sector = turn.astype(int)
    return np.stack([np.choose((sector + shift) % 6, around) for shift in (0, 4, 2)])


_DIPS = _dips()


def _turned(frame: np.ndarray, steps: int) -> np.ndarray:
    """u8[h, w, 3] with its hue, of 180 steps a turn, moved by `steps` -> f32[h, w, 3].

    Through bytes of hue, saturation, value, as the reference goes through OpenCV's.
    """
    r, g, b = np.moveaxis(frame, -1, 0).astype(np.int32)
    value = np.maximum(np.maximum(r, g), b)
    spread = value - np.minimum(np.minimum(r, g), b)
    hue = np.where(value == g, b - r + 2 * spread, r - g + 4 * spread)
    np.copyto(hue, g - b, where=value == r)
    hue *= _PER_SPREAD.take(spread)
    hue += 2048
    hue >>= 12  # -30..179; a negative one counts from the end of the table, where it belongs
    saturation = _PER_VALUE.take(value)
    saturation *= spread
    saturation += 2048
    saturation >>= 12
    depth = saturation.astype(np.float32)
    depth *= np.float32(1 / 255)
    level = value.astype(np.float32)
    level *= np.float32(1 / 255)
    turned = np.empty(frame.shape, np.float32)
    for channel, dips in enumerate(np.roll(_DIPS, -steps, axis=1)):
        share = dips.take(hue, mode="wrap")
        share *= depth
        np.subtract(1, share, out=share)
        np.multiply(level, share, out=turned[..., channel])
    turned *= 255
    return np.rint(turned, out=turned)

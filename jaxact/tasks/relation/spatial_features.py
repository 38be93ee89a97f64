"""Spatial features of two people: eight numbers of their boxes in a cylindrical panorama.

A box is x, y, w, h (px) with x, y its upper left corner; W, H are the picture's sides. With dx the
distance of the centres across the seam where that is shorter, dy the vertical one, a = w h:

    0 gap           (dx - (wA + wB) / 2) / W       4 area ratio    min(a) / max(a)
    1 height ratio  min(h) / max(h)                5 distance      sqrt(dx^2 + dy^2) / sqrt(aA + aB)
    2 offset        dx / W                         6 vertical gap  dy / H
    3 overlap       shared rows / min(h)           7 scene         how crowded the frame is

All are the same for (A, B), (B, A) and the mirrored picture. Source: AsukaLmy/simplename
`GeometricDete/geometric_features.py`. Its per-pair form adds 1e-6 to B's operand of max and min,
its vectorised form to the whole denominator; here it is the latter. The original has two forms of
the scene: the share min(n / 10, 1), which its ResNet classifier uses (1 for no box at all), and a
level 0 (nobody), 1 (up to 2 people), 2 (up to 5), 3 (more), which the golden vectors hold.
"""

import numpy as np

GEOMETRIC = ("gap", "height_ratio", "offset", "overlap", "area_ratio", "distance", "vertical_gap")
SCENES = ("share", "level", "off")
EPS = 1e-6


def geometric(a: np.ndarray, b: np.ndarray, size: tuple[int, int], wrap: bool = True) -> np.ndarray:
    """f64[..., 7] of boxes f[..., 4] (x, y, w, h px) in a picture of `size` (W, H) px.

    wrap: the picture closes on itself, as a panorama does.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    (xa, ya, wa, ha), (xb, yb, wb, hb) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    width, height = size
    dx = np.abs((xa + wa / 2) - (xb + wb / 2))
    if wrap:
        dx = np.minimum(dx % width, width - dx % width)
    dy = np.abs((ya + ha / 2) - (yb + hb / 2))
    shared = np.minimum(ya + ha, yb + hb) - np.maximum(ya, yb)
    areas = wa * ha, wb * hb
    numbers = (
        (dx - (wa + wb) / 2) / width,
        np.minimum(ha, hb) / (np.maximum(ha, hb) + EPS),
        dx / width,
        np.maximum(shared, 0) / (np.minimum(ha, hb) + EPS),
        np.minimum(*areas) / (np.maximum(*areas) + EPS),
        np.sqrt(dx**2 + dy**2) / np.sqrt(areas[0] + areas[1] + EPS),
        dy / height,
    )
    return np.stack(numbers, -1)


def scene(people: int, form: str = "share") -> float:
    """How crowded a frame of so many people is. Raises: ValueError for another form."""
    if form == "share":
        return min(people / 10, 1.0) if people else 1.0
    if form == "level":
        return float(sum(people >= first for first in (1, 3, 6)))
    raise ValueError(f"scene {form!r}: choose share or level")


def features(
    a: np.ndarray,
    b: np.ndarray,
    size: tuple[int, int],
    people: int,
    *,
    wrap: bool = True,
    places: bool = True,
    form: str = "share",
    log: bool = False,
) -> np.ndarray:
    """f32[n] of one pair: 7 with `places`, and 1 unless the scene's `form` is "off".

    log: ln(1 + d) of the distance, which has no upper bound.
    """
    parts = []
    if places:
        parts.append(geometric(a, b, size, wrap))
        if log:
            parts[0][5] = np.log1p(parts[0][5])
    if form != "off":
        parts.append(np.array([scene(people, form)]))
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def count(places: bool, form: str) -> int:
    """Number of features that `features` gives."""
    return 7 * places + (form != "off")

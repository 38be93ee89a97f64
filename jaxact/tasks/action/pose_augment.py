"""Random changes of poses for training without frames: turn, scale, shift, and noise per joint."""

from typing import NamedTuple

import numpy as np

from jaxact.data.geometry import Random, Size


class Warp(NamedTuple):
    """A turn (degrees, clockwise on screen), a factor, and a shift (x, y; shares of the frame)."""

    degrees: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)


def draw_warp(rng: Random, degrees: float = 0.0, scale: float = 0.0, shift: float = 0.0) -> Warp:
    """A warp within these strengths: +-degrees, factor in [1 - scale, 1 + scale], +-shift.

    Four numbers are drawn whatever the strengths, so that one may change without the others.
    """
    turn, factor, x, y = rng.uniform(-1, 1, 4).tolist()
    return Warp(turn * degrees, 1 + factor * scale, (x * shift, y * shift))


def warp(keypoint: np.ndarray, size: Size, change: Warp) -> np.ndarray:
    """Keypoints f32[p, t, j, 2] turned and scaled about the frame's middle, then shifted.

    Joints at exactly (0, 0), the undetected ones, stay.
    """
    angle = np.deg2rad(change.degrees)
    cos, sin = np.cos(angle) * change.scale, np.sin(angle) * change.scale
    sides = np.array([size[1], size[0]])
    middle = sides / 2
    turn = np.array([[cos, sin], [-sin, cos]])
    moved = (keypoint - middle) @ turn + (middle + np.array(change.shift) * sides)
    detected = (keypoint != 0).any(-1, keepdims=True)
    return np.where(detected, moved, keypoint).astype(keypoint.dtype)


def shake(keypoint: np.ndarray, deviation: float, rng: Random) -> np.ndarray:
    """Keypoints with normal noise of this deviation (px); undetected joints stay."""
    noise = rng.normal(0.0, deviation, keypoint.shape)
    detected = (keypoint != 0).any(-1, keepdims=True)
    return np.where(detected, keypoint + noise, keypoint).astype(keypoint.dtype)

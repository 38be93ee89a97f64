"""A stick figure for generated data: its 17 COCO joints for given limb angles, and its picture.

Lengths are in units of the figure's height, which is given in pixels. The figure faces the camera,
so its left side is at larger x. Angles are in radians from straight down, positive outwards: 0
hangs, pi/2 points sideways, pi up.
"""

from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from jaxact.data.drawing import Colour

NOSE, EYES, EARS = 0, (1, 2), (3, 4)
SHOULDERS, ELBOWS, WRISTS = (5, 6), (7, 8), (9, 10)
HIPS, KNEES, ANKLES = (11, 12), (13, 14), (15, 16)
SIDES = (1.0, -1.0)  # left, right

HEAD, NECK, HIP = 0.075, 0.18, 0.48  # centres below the crown
HEAD_RADIUS, SHOULDER, PELVIS = 0.068, 0.115, 0.07  # half widths
UPPER_ARM, FOREARM, THIGH, SHANK = 0.165, 0.155, 0.25, 0.25
ARM_WIDTH, LEG_WIDTH = 0.058, 0.075


@dataclass(frozen=True)
class Look:
    """The colours of one figure (RGB)."""

    skin: Colour
    shirt: Colour
    trousers: Colour
    hair: Colour


@dataclass(frozen=True)
class Motion:
    """How one figure moves; f64[t, 2] arrays hold left and right."""

    upper_arm: np.ndarray  # angle, rad
    forearm: np.ndarray  # angle, rad
    knee: np.ndarray  # how high the knee is lifted, 0 to 1
    sway: np.ndarray  # f64[t]; sideways shift of the whole figure, heights


def joints(motion: Motion, height: float, ground: np.ndarray) -> np.ndarray:
    """The joints `f64[t, 17, 2]` (x, y) px of a figure that stands at `ground` f64[t, 2] px."""
    frames = len(motion.sway)
    points = np.zeros((frames, 17, 2))
    points[:, :, 0] = motion.sway[:, None]
    points[:, NOSE, 1] = HEAD + 0.01
    for side in (0, 1):
        out = SIDES[side]
        points[:, EYES[side]] += (0.022 * out, HEAD - 0.012)
        points[:, EARS[side]] += (0.058 * out, HEAD)
        points[:, SHOULDERS[side]] += (SHOULDER * out, NECK)
        points[:, HIPS[side]] += (PELVIS * out, HIP)
        upper, fore = (_direction(arm[:, side], out) for arm in (motion.upper_arm, motion.forearm))
        points[:, ELBOWS[side]] = points[:, SHOULDERS[side]] + UPPER_ARM * upper
        points[:, WRISTS[side]] = points[:, ELBOWS[side]] + FOREARM * fore
        # A knee lifted towards the camera: the thigh is seen shortened, the foot leaves the floor.
        lift = motion.knee[:, side]
        points[:, KNEES[side], 0] += out * (PELVIS + 0.03 * lift)
        points[:, KNEES[side], 1] = HIP + THIGH * (1 - 0.65 * lift)
        points[:, ANKLES[side], 0] += out * (PELVIS + 0.01 * lift)
        points[:, ANKLES[side], 1] = points[:, KNEES[side], 1] + SHANK * (1 - 0.1 * lift)
    points[:, :, 1] -= HIP + THIGH + SHANK
    return points * height + ground[:, None]


def _direction(angle: np.ndarray, out: float) -> np.ndarray:
    return np.stack([out * np.sin(angle), np.cos(angle)], -1)


def beat(rng: np.random.Generator, frames: int, times: tuple[float, float]) -> np.ndarray:
    """A sine f64[t] that swings `times` (from, to) times during the clip, from any phase."""
    u = np.linspace(0, 1, frames)
    return np.sin(2 * np.pi * (rng.uniform(*times) * u + rng.uniform()))


def raising(rng: np.random.Generator, frames: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """One arm goes from low to high once, the other hangs: (upper arm, forearm) f64[t, 2] rad."""
    upper, fore = np.empty((frames, 2)), np.empty((frames, 2))
    start, span = rng.uniform(0.15, 0.4), rng.uniform(0.25, 0.45)
    low, high, bend = rng.uniform(48, 64), rng.uniform(145, 170), rng.uniform(0, 18)
    done = ((np.linspace(0, 1, frames) - start) / span).clip(0, 1)
    upper[:, side] = low + (high - low) * done * done * (3 - 2 * done)
    fore[:, side] = upper[:, side] + bend
    idle = 3 * beat(rng, frames, (0.5, 1.5))
    upper[:, 1 - side] = rng.uniform(8, 22) + idle
    fore[:, 1 - side] = rng.uniform(-35, 5) + idle
    return np.radians(upper), np.radians(fore)


def clapping(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Both hands meet before the chest: (upper arm, forearm) f64[t, 2] rad."""
    swing = beat(rng, frames, (2.5, 4.0))[:, None].repeat(2, 1)
    upper = rng.uniform(18, 32) + 6 * swing
    return np.radians(upper), np.radians(rng.uniform(-72, -60) + 34 * swing)


def stretching(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Both arms swing from low to overhead and back: (upper arm, forearm) f64[t, 2] rad."""
    swing = beat(rng, frames, (1.0, 2.0))[:, None].repeat(2, 1)
    upper = rng.uniform(98, 112) + rng.uniform(45, 58) * swing
    return np.radians(upper), np.radians(upper + rng.uniform(0, 15))


def marching(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Knees lifted in turn, f64[t, 2]."""
    step = beat(rng, frames, (2.5, 4.0))
    return rng.uniform(0.6, 0.9) * np.stack([step, -step], -1).clip(0, None)


def standing(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Knees as good as straight, f64[t, 2]."""
    return np.broadcast_to(rng.uniform(0, 0.05, 2), (frames, 2))


def walking(rng: np.random.Generator, frames: int) -> Motion:
    """Arms and legs of a person who walks."""
    step = beat(rng, frames, (2.0, 3.0))
    both = np.stack([step, -step], -1)
    return Motion(0.2 + 0.12 * both, 0.1 + 0.2 * both, 0.5 * both.clip(0, None), np.zeros(frames))


def draw(canvas: ImageDraw.ImageDraw, points: np.ndarray, height: float, look: Look) -> None:
    """Draws one figure, its `points` f64[17, 2] and `height` in pixels of the canvas."""
    for side in (0, 1):
        leg = points[[HIPS[side], KNEES[side], ANKLES[side]]]
        _limb(canvas, leg, LEG_WIDTH * height, look.trousers)
    trunk = points[[SHOULDERS[0], SHOULDERS[1], HIPS[1], HIPS[0]]]
    canvas.polygon([tuple(p) for p in trunk], fill=look.shirt)
    _limb(canvas, points[[*SHOULDERS]], ARM_WIDTH * height, look.shirt)
    _limb(canvas, points[[*HIPS]], LEG_WIDTH * height, look.shirt)
    head = points[[*EARS]].mean(0)
    _disc(canvas, head - np.array([0, 0.02 * height]), HEAD_RADIUS * height, look.hair)
    _disc(canvas, head + np.array([0, 0.012 * height]), 0.9 * HEAD_RADIUS * height, look.skin)
    for side in (0, 1):
        _limb(canvas, points[[SHOULDERS[side], ELBOWS[side]]], ARM_WIDTH * height, look.shirt)
        _limb(canvas, points[[ELBOWS[side], WRISTS[side]]], 0.8 * ARM_WIDTH * height, look.skin)
        _disc(canvas, points[WRISTS[side]], 0.5 * ARM_WIDTH * height, look.skin)


def draw_flag(
    canvas: ImageDraw.ImageDraw, points: np.ndarray, side: int, height: float, colour: Colour
) -> None:
    """Draws a flag on a stick that prolongs the forearm of that side (0 left, 1 right)."""
    wrist, elbow = points[WRISTS[side]], points[ELBOWS[side]]
    along = (wrist - elbow) / (FOREARM * height)
    across = np.array([along[1], -along[0]]) * SIDES[side]
    tip, foot = wrist + 0.25 * height * along, wrist + 0.07 * height * along
    grip = wrist + 0.5 * ARM_WIDTH * height * along  # outside the hand
    canvas.line([tuple(grip), tuple(tip)], fill=(70, 60, 50), width=max(1, round(0.02 * height)))
    cloth = [foot, tip, tip + 0.19 * height * across, foot + 0.19 * height * across]
    canvas.polygon([tuple(p) for p in cloth], fill=colour)


def _limb(canvas: ImageDraw.ImageDraw, points: np.ndarray, width: float, colour: Colour) -> None:
    canvas.line([tuple(p) for p in points], fill=colour, width=max(1, round(width)))
    for point in points:
        _disc(canvas, point, width / 2, colour)


def _disc(canvas: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, colour: Colour) -> None:
    canvas.ellipse([tuple(centre - radius), tuple(centre + radius)], fill=colour)

"""RandAugment: a few of fourteen operations, drawn for each picture, all at one strength.

Source: Cubuk et al., "RandAugment", 2019 (the operations and their ranges are AutoAugment's).
Beyond a picture's edges, sheared, moved or turned pictures show its mean colour.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, float], Image.Image]

_SHEAR, _MOVE, _TURN, _ENHANCE = 0.3, 0.45, 30.0, 0.9  # at full strength; shares, degrees


def _affine(image: Image.Image, table: tuple[float, ...]) -> Image.Image:
    small = image.reduce(8) if min(image.size) >= 32 else image
    fill = tuple(np.rint(np.asarray(small).reshape(-1, 3).mean(0)).astype(int).tolist())
    how = Image.Resampling.BILINEAR
    return image.transform(image.size, Image.Transform.AFFINE, table, how, fillcolor=fill)


def _shear(x: float, y: float) -> Operation:
    """A shear about the middle of the picture."""

    def operation(image: Image.Image, strength: float) -> Image.Image:
        a, b = x * strength, y * strength
        width, height = image.size
        return _affine(image, (1, a, -a * height / 2, b, 1, -b * width / 2))

    return operation


def _move(x: float, y: float) -> Operation:
    def operation(image: Image.Image, strength: float) -> Image.Image:
        width, height = image.size
        return _affine(image, (1, 0, x * strength * width, 0, 1, y * strength * height))

    return operation


def _turn(image: Image.Image, strength: float) -> Image.Image:
    angle = np.deg2rad(_TURN * strength)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    x, y = image.size[0] / 2, image.size[1] / 2
    return _affine(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength: kind(image).enhance(1 + _ENHANCE * strength)


# name -> (operation, is its strength drawn with either sign?). Strengths are 0..1, or -1..1.
OPERATIONS: dict[str, tuple[Operation, bool]] = {
    "identity": (lambda image, strength: image, False),
    "autocontrast": (lambda image, strength: ImageOps.autocontrast(image), False),
    "equalize": (lambda image, strength: ImageOps.equalize(image), False),
    "rotate": (_turn, True),
    "solarize": (lambda image, x: ImageOps.solarize(image, round(256 * (1 - x))), False),
    "posterize": (lambda image, x: ImageOps.posterize(image, 8 - round(4 * x)), False),
    "colour": (_enhance(ImageEnhance.Color), True),
    "contrast": (_enhance(ImageEnhance.Contrast), True),
    "brightness": (_enhance(ImageEnhance.Brightness), True),
    "sharpness": (_enhance(ImageEnhance.Sharpness), True),
    "shear_x": (_shear(_SHEAR, 0), True),
    "shear_y": (_shear(0, _SHEAR), True),
    "move_x": (_move(_MOVE, 0), True),
    "move_y": (_move(0, _MOVE), True),
}


def apply(image: Image.Image, rng: np.random.Generator, count: int, strength: float) -> Image.Image:
    """The picture after `count` operations, drawn with replacement, at `strength` in 0..1."""
    names = tuple(OPERATIONS)
    for index in rng.integers(len(names), size=count).tolist():
        operation, signed = OPERATIONS[names[index]]
        sign = -1.0 if signed and rng.random() < 0.5 else 1.0
        image = operation(image, sign * strength)
    return image

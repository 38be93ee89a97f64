"""Random changes of a picture in training: one warp, one colour matrix, blur, erasing.

All geometry of a picture (crop, flips, shift, scale, rotation, distortions) is composed first and
resampled once; all colour is one 3x4 matrix. Both run in Pillow's C code, without the GIL.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageFilter

from jaxact.data import color, geometry, randaugment
from jaxact.data.color import Colour
from jaxact.data.images import FILTERS
from jaxact.tasks.crop.config import Augment

CELLS = 10  # a distorted picture is warped in CELLS x CELLS squares
_GRID_STEPS = 5  # columns and rows of a grid distortion
_GRID_LIMIT = 0.3  # share by which one of them is wider or narrower
_ELASTIC = 0.03  # share of the side that a node of an elastic distortion moves at most
_BLUR = ImageFilter.Kernel((3, 3), [1, 2, 1, 2, 4, 2, 1, 2, 1], 16)
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_YIQ)
_SAME, _TO_GREY = np.eye(3), np.tile(_YIQ[0], (3, 1))


# ---------------------------------------------------------------------------------------- geometry


@dataclasses.dataclass(frozen=True)
class Warp:
    """Where the output looks in the picture, both as squares [0, 1]^2.

    A point p of the output looks at `centre + (turn @ (p + bend(p) - 1/2 + offset)) * sides`.
    """

    centre: tuple[float, float] = (0.5, 0.5)
    sides: tuple[float, float] = (1.0, 1.0)
    turn: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))
    offset: tuple[float, float] = (0.0, 0.0)
    bend: np.ndarray | None = None  # f64[CELLS + 1, CELLS + 1, 2] (x, y) at the nodes

    def look(self, points: np.ndarray) -> np.ndarray:
        """Output points f64[..., 2] (x, y in 0..1) -> points of the picture, without `bend`."""
        turned = (points - 0.5 + self.offset) @ np.array(self.turn).T
        return turned * np.array(self.sides) + np.array(self.centre)


def draw_warp(rng: np.random.Generator, augment: Augment) -> Warp:
    """Crop, flips, shift, scale, rotation and distortions."""
    centre, sides = (0.5, 0.5), (1.0, 1.0)
    area, aspect = augment.area, augment.aspect
    if tuple(area) != (1.0, 1.0):
        # In thousandths: the box of the square that the picture is stretched to.
        x0, y0, x1, y1 = geometry.random_box(
            (1000, 1000), rng, (area[0], area[1]), (aspect[0], aspect[1])
        )
        centre = ((x0 + x1) / 2000, (y0 + y1) / 2000)
        sides = ((x1 - x0) / 1000, (y1 - y0) / 1000)
    across = -1.0 if rng.random() < augment.hflip else 1.0
    down = -1.0 if rng.random() < augment.vflip else 1.0
    cos, sin, x, y = 1.0, 0.0, 0.0, 0.0
    if rng.random() < augment.warp:
        angle, factor, x, y = rng.uniform(-1, 1, 4).tolist()
        angle, factor = math.radians(angle * augment.rotate), 1 + factor * augment.scale
        cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
        x, y = x * augment.shift, y * augment.shift
    turn = ((across * cos, across * sin), (-down * sin, down * cos))
    grid, elastic = rng.random() < augment.grid, rng.random() < augment.elastic
    bend = _grid(rng) if grid else None
    if elastic:
        bend = _elastic(rng) if bend is None else bend + _elastic(rng)
    return Warp(centre, sides, turn, (x, y), bend)


def _grid(rng: np.random.Generator) -> np.ndarray:
    """Displacements of a grid whose columns and rows are 1 +- a limit wide, the whole as before."""
    nodes = np.linspace(0, 1, CELLS + 1)
    moved = []
    for _ in range(2):
        widths = 1 + rng.uniform(-_GRID_LIMIT, _GRID_LIMIT, _GRID_STEPS)
        edges = np.concatenate([[0], np.cumsum(widths)]) / widths.sum()
        moved.append(np.interp(nodes, np.linspace(0, 1, _GRID_STEPS + 1), edges) - nodes)
    return np.stack(np.meshgrid(moved[0], moved[1]), -1)


def _elastic(rng: np.random.Generator) -> np.ndarray:
    """Displacements drawn at every other node, the ones between them the mean of their sides."""
    coarse = rng.uniform(-_ELASTIC, _ELASTIC, (CELLS // 2 + 1, CELLS // 2 + 1, 2))
    fine = np.empty((CELLS + 1, CELLS + 1, 2))
    fine[::2, ::2] = coarse
    fine[1::2, ::2] = (coarse[1:] + coarse[:-1]) / 2
    fine[:, 1::2] = (fine[:, 2::2] + fine[:, :-1:2]) / 2
    return fine


def apply_warp(image: Image.Image, warp: Warp, side: int, interpolation: str) -> Image.Image:
    """The warped picture, side x side px; beyond its edges it is mirrored.

    Flips and crops alone are an antialiased resize. Turned pictures are first shrunk by a whole
    factor, to less than twice the size, then sampled once.
    """
    (a, b), (c, d) = warp.turn
    rigid = warp.bend is None and b == c == 0 and abs(a) == abs(d) == 1 and warp.offset == (0, 0)
    if rigid:
        low, high = (np.array(warp.centre) + np.array(warp.sides) * (h / 2) for h in (-1, 1))
        width, height = image.size
        box = (low[0] * width, low[1] * height, high[0] * width, high[1] * height)
        shape = (side, side)
        if image.size != shape or warp.sides != (1.0, 1.0):
            image = image.resize(shape, FILTERS[interpolation], box)
        if a < 0:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if d < 0:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        return image
    shrink = [max(1, int(n * s / side)) for n, s in zip(image.size, warp.sides, strict=True)]
    if max(shrink) > 1:
        image = image.reduce((shrink[0], shrink[1]))
    return _sampled(image, warp, side, interpolation)


def _sampled(image: Image.Image, warp: Warp, side: int, interpolation: str) -> Image.Image:
    """The warp of a picture by interpolation between its pixels."""
    nodes = np.linspace(0, 1, CELLS + 1 if warp.bend is not None else 2)
    points = np.stack(np.meshgrid(nodes, nodes), -1)  # rows, columns, (x, y)
    if warp.bend is not None:
        points = points + warp.bend
    seen = warp.look(points) * np.array(image.size)
    # Three more pixels on each side for the filter's support.
    low = np.maximum(np.ceil(3 - seen.min((0, 1))).astype(int), 0)
    high = np.maximum(np.ceil(seen.max((0, 1)) - np.array(image.size) + 3).astype(int), 0)
    if low.any() or high.any():
        beyond = ((low[1], high[1]), (low[0], high[0]), (0, 0))
        image = Image.fromarray(np.pad(np.asarray(image), beyond, mode="symmetric"))
        seen = seen + low
    shape, how = (side, side), FILTERS[interpolation]
    if warp.bend is None:
        start, right, below = seen[0, 0], (seen[0, 1] - seen[0, 0]), (seen[1, 0] - seen[0, 0])
        right, below = right / side, below / side
        table = (right[0], below[0], start[0], right[1], below[1], start[1])
        return image.transform(shape, Image.Transform.AFFINE, table, how)
    edges = np.rint(nodes * side).astype(int).tolist()
    squares = []
    for row in range(CELLS):
        for column in range(CELLS):
            box = (edges[column], edges[row], edges[column + 1], edges[row + 1])
            corners = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
            squares.append((box, tuple(float(v) for at in corners for v in seen[at])))
    return image.transform(shape, Image.Transform.MESH, squares, how)


# ------------------------------------------------------------------------------------------ colour


def draw_colour(rng: np.random.Generator, augment: Augment) -> Colour | None:
    """Colour factors, or None where the draw says so."""
    if rng.random() >= augment.colour or not any(augment.jitter):
        return None
    light, gap, depth, hue = augment.jitter
    if augment.one:
        kind = rng.integers(3)
        light, gap = (0.0, 0.0) if kind == 1 else (light, gap)
        depth, hue = (0.0, 0.0) if kind == 0 else (depth, hue)
    return color.draw_colour(rng, light, gap, depth, hue)


def colour_matrix(colour: Colour, mean: np.ndarray) -> np.ndarray:
    """f64[3, 4]: the changes of a Colour on RGB in 0..255 as one affine map, in their order.

    Args:
      mean: f[3], the picture's mean colour, whose grey contrast pulls toward.

    Differs from `color.jitter` where that cuts to 0..255 in between, and in the hue, which
    turns in the YIQ plane and so keeps the luma.
    """
    matrix, shift = _SAME, np.zeros(3)
    for change in colour.order:
        step, more = _SAME, 0.0
        if change == 0:
            step = _SAME * colour.brightness
        elif change == 1:
            step = _SAME * colour.contrast
            more = (1 - colour.contrast) * (_YIQ[0] @ (matrix @ mean + shift))
        elif change == 2:
            step = _SAME * colour.saturation + _TO_GREY * (1 - colour.saturation)
        elif colour.hue:
            cos, sin = math.cos(2 * math.pi * colour.hue), math.sin(2 * math.pi * colour.hue)
            spin = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
            step = _FROM_YIQ @ spin @ _YIQ
        matrix, shift = step @ matrix, step @ shift + more
    return np.concatenate([matrix, shift[:, None]], 1)


def recolour(image: Image.Image, colour: Colour) -> Image.Image:
    """The picture with these colours, in one pass."""
    small = image.reduce(8) if min(image.size) >= 32 else image
    mean = np.asarray(small).reshape(-1, 3).mean(0)
    return image.convert("RGB", tuple(colour_matrix(colour, mean).ravel().tolist()))


# ----------------------------------------------------------------------------------------- together


def erased(pixels: np.ndarray, rng: np.random.Generator, area: tuple[float, ...]) -> np.ndarray:
    """u8[h, w, 3] with a random box set to its mean colour: random erasing."""
    x0, y0, x1, y1 = geometry.random_box(pixels.shape[:2], rng, (area[0], area[1]), (0.3, 1 / 0.3))
    pixels = pixels.copy()
    pixels[y0:y1, x0:x1] = np.rint(pixels.mean((0, 1))).astype(np.uint8)
    return pixels


def augmented(
    image: Image.Image, augment: Augment, side: int, rng: np.random.Generator, interpolation: str
) -> np.ndarray:
    """u8[side, side, 3]: a picture, randomly changed. Every draw comes from `rng`."""
    image = apply_warp(image, draw_warp(rng, augment), side, interpolation)
    if augment.operations:
        image = randaugment.apply(image, rng, augment.operations, augment.magnitude / 10)
    colour = draw_colour(rng, augment)
    if colour is not None:
        image = recolour(image, colour)
    if rng.random() < augment.blur:
        image = image.filter(_BLUR)
    pixels = np.asarray(image)
    if augment.erase and rng.random() < augment.erase:
        pixels = erased(pixels, rng, augment.erase_area)
    return pixels

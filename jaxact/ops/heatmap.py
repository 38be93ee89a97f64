"""Gaussian pose heatmaps drawn from keypoints inside jit.

A joint's map is the maximum over people of `c * exp(-|x - mu|^2 / (2 sigma^2))`, cut off at
`trunc(mu - 3 sigma) .. trunc(mu + 3 sigma)` in columns and rows (PoseC3D, Duan et al., CVPR 2022;
MMAction2 `pose_transforms.py`, class GeneratePoseTarget). Keypoints are thousands of times smaller
than the volumes they stand for, so they cross to the device and the volume never does.

Truncation rounds toward zero, as in the reference: a joint less than one pixel beyond the 3-sigma
reach of the left or upper border still draws on line 0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Pairs = Sequence[tuple[int, int]]


def grid(size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """Height and width of the maps for a frame of `size` (h, w) px: `int(side * scale + 0.5)`."""
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def joints(
    keypoint: jax.Array,
    score: jax.Array,
    size: tuple[int, int],
    sigma: float,
    scale: float = 1.0,
    use_score: bool = True,
    threshold: float = 1e-4,
) -> jax.Array:
    """One map per joint, all people on one canvas.

    Args:
      keypoint: f32[..., p, t, j, 2], (x, y) in px of a frame of `size`.
      score: f32[..., p, t, j], confidence: the height of the peak.
      size: (h, w) px of the frame the coordinates refer to; static.
      sigma: width of the Gaussian in px of the map.
      scale: map px per frame px (0.25: 224 -> 56).
      use_score: False draws every joint with height 1, whatever its score.
      threshold: joints with a height below it are not drawn (PySKL: 1e-3).
    Returns: f32[..., t, h, w, j].
    Source: MMAction2 GeneratePoseTarget.generate_a_heatmap.
    """
    height, width = grid(size, scale)
    at, peak = _peaks(keypoint, score, scale, use_score, threshold)
    # A Gaussian is a product of two lines, so the exponentials cost h + w per joint, not h * w.
    column = _line(at[..., 0], width, sigma)  # [..., p, t, w, j]
    row = _line(at[..., 1], height, sigma) * peak[..., None, :]  # [..., p, t, h, j]
    people = [
        row[..., p, :, :, None, :] * column[..., p, :, None, :, :] for p in range(row.shape[-4])
    ]
    return _highest(people)


def limbs(
    keypoint: jax.Array,
    score: jax.Array,
    size: tuple[int, int],
    sigma: float,
    pairs: Pairs,
    scale: float = 1.0,
    use_score: bool = True,
    threshold: float = 1e-4,
) -> jax.Array:
    """One map per limb (pair of joints): arguments as in `joints` -> f32[..., t, h, w, limbs].

    The height is the lower score of the two ends and the distance is to the segment; the window is
    the box of both ends plus 3 sigma. Ends closer than 1 px draw the first joint's own map.
    Source: MMAction2 GeneratePoseTarget.generate_a_limb_heatmap.
    """
    height, width = grid(size, scale)
    at, peak = _peaks(keypoint, score, scale, use_score, threshold)
    first, second = (jnp.asarray([pair[end] for pair in pairs]) for end in (0, 1))
    a, b = at[..., first, :], at[..., second, :]  # [..., p, t, l, 2]
    peak_a, peak_b = peak[..., first], peak[..., second]
    lower = jnp.minimum(peak_a, peak_b)
    short = jnp.sum((b - a) ** 2, axis=-1) < 1
    # A segment of length zero at `a` is the joint's map: same distance, same window.
    b = jnp.where(short[..., None], a, b)
    lower = jnp.where(short & (lower > 0), peak_a, lower)

    along = b - a
    along = along / jnp.maximum(jnp.sum(along**2, axis=-1, keepdims=True), 1.0)
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    inside_x = _window(low[..., 0], high[..., 0], width, sigma)  # [..., p, t, w, l]
    inside_y = _window(low[..., 1], high[..., 1], height, sigma)  # [..., p, t, h, l]
    people = []
    for p in range(at.shape[-4]):
        ax, ay, bx, by, ux, uy, top = (
            v[..., p, :, None, None, :]
            for v in (*_xy(a), *_xy(b), *_xy(along), lower)  # [..., t, 1, 1, l]
        )
        dx = jnp.arange(width, dtype=jnp.float32)[:, None] - ax  # [..., t, 1, w, l]
        dy = jnp.arange(height, dtype=jnp.float32)[:, None, None] - ay  # [..., t, h, 1, l]
        share = jnp.clip(dx * ux + dy * uy, 0.0, 1.0)  # of the way from a to b
        distance = (dx - share * (bx - ax)) ** 2 + (dy - share * (by - ay)) ** 2
        inside = inside_y[..., p, :, :, None, :] & inside_x[..., p, :, None, :, :]
        people.append(jnp.where(inside, top * jnp.exp(distance * (-0.5 / sigma**2)), 0.0))
    return _highest(people)


def both(
    keypoint: jax.Array,
    score: jax.Array,
    size: tuple[int, int],
    sigma: float,
    pairs: Pairs,
    scale: float = 1.0,
    use_score: bool = True,
    threshold: float = 1e-4,
) -> jax.Array:
    """Joints, then limbs, in channels of their own: f32[..., t, h, w, j + limbs].

    MMAction2 1.x writes the limbs over the joints here; this follows EPAM-Net, which does not.
    """
    rest = (scale, use_score, threshold)
    return jnp.concatenate(
        [
            joints(keypoint, score, size, sigma, *rest),
            limbs(keypoint, score, size, sigma, pairs, *rest),
        ],
        axis=-1,
    )


def mirrored(maps: jax.Array, order: Sequence[int]) -> jax.Array:
    """The mirror image of f32[..., h, w, c]: columns reversed, channel i taken from `order[i]`.

    `order` comes from `mirror.map_order`. The original followed by its mirror image is the
    reference's `double`. Mirroring the array sends x to w - 1 - x, one pixel from flipping the
    keypoints (w - x).
    """
    return maps[..., ::-1, jnp.asarray(order)]


def _peaks(keypoint, score, scale, use_score, threshold):
    """Coordinates in map px and the height of each peak, 0 where nothing is to be drawn."""
    at = jnp.asarray(keypoint, jnp.float32) * scale
    score = jnp.asarray(score, jnp.float32)
    if not use_score:
        return at, jnp.ones_like(score)
    return at, jnp.where(score >= threshold, score, 0.0)


def _window(low, high, length, sigma):
    """Which n lie in trunc(low - 3 sigma) .. trunc(high + 3 sigma): [..., j] -> bool[..., n, j]."""
    n = jnp.arange(length, dtype=jnp.float32)[:, None]
    low, high, reach = low[..., None, :], high[..., None, :], 3 * sigma
    begun = _excess(low, n + 1, reach) < 0  # n >= 0: trunc(v) <= n where v < n + 1
    left = _excess(jnp.where(n == 0, -1.0, n), high, reach)  # trunc(v) >= 0 where v > -1
    return begun & ((left < 0) | ((left == 0) & (n > 0)))


def _excess(x, y, reach):
    """A number with the exact sign of x - y - reach for f32 x, y and a double `reach`.

    Rounding x - y to f32 would move the edge of a window where it falls within an ulp of a pixel;
    so the rounding error of the difference, and of `reach`, is carried along (Knuth's two-sum).
    """
    near = np.float32(reach)
    difference = x - y
    back = difference - x
    error = (x - (difference - back)) - (y + back)
    return (difference - near) + (error - np.float32(reach - float(near)))


def _line(mu, length, sigma):
    """A windowed one-dimensional Gaussian: f32[..., j] -> f32[..., length, j]."""
    position = jnp.arange(length, dtype=jnp.float32)[:, None]
    value = jnp.exp((position - mu[..., None, :]) ** 2 * (-0.5 / sigma**2))
    return jnp.where(_window(mu, mu, length, sigma), value, 0.0)


def _xy(point):
    return point[..., 0], point[..., 1]


def _highest(people):
    """The maximum over people, written pairwise so that it fuses with what drew them."""
    maps = people[0]
    for other in people[1:]:
        maps = jnp.maximum(maps, other)
    return maps

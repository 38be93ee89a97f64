"""Positions: fixed sine tables, their spatial resize, and resampling along time.

Tables are made on the host in NumPy: they depend on shapes only and become constants of a program.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

CUBIC = -0.75  # PyTorch's free coefficient of the cubic kernel; jax.image.resize has -0.5


@functools.cache
def sincos(count: int, width: int) -> np.ndarray:
    """The sine table f32[n, c] of `count` positions: even channels sine, odd ones cosine.

    Channel j of position p has the angle p / 10000 ** (2 * (j // 2) / width).
    """
    channel = np.arange(width)
    angle = np.arange(count)[:, None] / 10000.0 ** (2 * (channel // 2) / width)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


@functools.cache
def bicubic(old: int, new: int) -> np.ndarray:
    """The matrix f64[new, old] that resizes one axis as PyTorch's bicubic mode does.

    Half-pixel centres, indices clamped at the ends, no antialiasing (align_corners=False).
    """
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        first = math.floor(centre)
        for tap in range(-1, 3):
            x = abs(centre - (first + tap))
            if x <= 1:
                weight = (CUBIC + 2) * x**3 - (CUBIC + 3) * x**2 + 1
            else:
                weight = CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(first + tap, 0), old - 1)] += weight
    return matrix


@functools.cache
def clip_table(frames: int, native: int, grid: tuple[int, int], width: int) -> np.ndarray:
    """Positions f32[t * h * w, c] of a clip's tokens, time first.

    The sine table runs over the flattened tokens of a `frames` x `native` x `native` clip; each
    frame of it is then resized to `grid` (h, w). (VideoMAE; MMAction2 `vit_mae.py`.)
    """
    table = sincos(frames * native * native, width)
    if grid == (native, native):
        return table
    cube = table.reshape(frames, native, native, width).astype(np.float64)
    rows, columns = bicubic(native, grid[0]), bicubic(native, grid[1])
    cube = np.einsum("yh,xw,thwc->tyxc", rows, columns, cube, optimize=True)
    return cube.reshape(-1, width).astype(np.float32)


def resample(x: jax.Array, count: int) -> jax.Array:
    """Resizes f[b, t, c] linearly to `count` steps: half-pixel centres, ends clamped, no blur.

    >>> resample(jnp.array([[[0.0], [4.0]]]), 4)[0, :, 0].tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    old = x.shape[1]
    if count == old:
        return x
    centre = np.clip((np.arange(count) + 0.5) * old / count - 0.5, 0, old - 1)
    low = np.floor(centre).astype(np.int32)
    share = jnp.asarray((centre - low)[:, None], x.dtype)
    return x[:, low] * (1 - share) + x[:, np.minimum(low + 1, old - 1)] * share

"""Points on a pyramid of time, their targets, and segments decoded from their distances.

Everything is in grid units: one unit is one step of the finest level. A point is (t, low, high,
stride): it answers for segments whose longer side, seen from t, is within [low, high], and it
measures them in units of its stride. (ActionFormer, arXiv 2202.07925; OpenTAD `anchor_free_head`.)
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.config import UserError

TIE = 1e-3  # grid units: segments whose lengths differ by less share a point
SMALLEST = 1e-7  # of a union, so that two empty segments have IoU 0


def strides(levels: int) -> tuple[int, ...]:
    """Grid units between the points of each level: 1, 2, 4, ..."""
    return tuple(2**level for level in range(levels))


def points(length: int, ranges: Sequence[float]) -> np.ndarray:
    """All points f32[n, 4] over `length` grid units, finest level first; no half-stride offset.

    ranges: low and high of each level, flat.
    Raises: UserError if the coarsest level does not divide the length.
    """
    levels = len(ranges) // 2
    if length % 2 ** (levels - 1):
        raise UserError(
            f"a window of {length} steps has no {levels} levels; allowed: multiples of "
            f"{2 ** (levels - 1)} steps"
        )
    rows = []
    for level, stride in enumerate(strides(levels)):
        t = np.arange(0, length, stride)
        rest = [np.full(len(t), each) for each in (*ranges[2 * level : 2 * level + 2], stride)]
        rows.append(np.stack([t, *rest], axis=1))
    return np.concatenate(rows).astype(np.float32)


def point_mask(mask: jax.Array, levels: int) -> jax.Array:
    """bool[b, t] of the finest level -> bool[b, n] of all points."""
    return jnp.concatenate([mask[:, ::stride] for stride in strides(levels)], axis=1)


def assign(
    points: jax.Array,
    segments: jax.Array,
    labels: jax.Array,
    real: jax.Array,
    classes: int,
    radius: float = 1.5,
    similar: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """The targets of each point: (classes f[b, n, k] of 0 and 1, distances f[b, n, 2]).

    A segment claims a point that lies strictly inside it, at most `radius` strides from its centre,
    and whose range holds the longer of the two distances to its ends (both limits included). The
    shortest claiming segment gives the distances, in strides. The classes are those of all claiming
    segments as short as that one (`TIE`), or of all claiming segments if not `similar`. Points
    without a class are negatives; their distances mean nothing.

    Args:
      points: f[n, 4] as `points` gives them.
      segments: f[b, g, 2] start and end in grid units.
      labels: i[b, g].
      real: bool[b, g], False where a row is padding.
    """
    points = jnp.asarray(points, segments.dtype)
    if not segments.shape[1]:
        size = (segments.shape[0], points.shape[0])
        return jnp.zeros((*size, classes), segments.dtype), jnp.zeros((*size, 2), segments.dtype)
    t, low, high, stride = (points[None, :, None, i] for i in range(4))  # 1, n, 1
    start, end = segments[:, None, :, 0], segments[:, None, :, 1]  # b, 1, g
    centre = 0.5 * (start + end)
    inside = (t > jnp.maximum(centre - radius * stride, start)) & (
        t < jnp.minimum(centre + radius * stride, end)
    )
    longer = jnp.maximum(t - start, end - t)
    claims = inside & (longer >= low) & (longer <= high) & real[:, None]
    length = jnp.where(claims, end - start, math.inf)  # b, n, g
    shortest = length.min(-1, keepdims=True)
    winner = jnp.argmin(length, -1)[..., None]  # the first of equals
    distance = jnp.stack([t - start, end - t], -1) / stride[..., None]
    chosen = jnp.take_along_axis(distance, winner[..., None], axis=2)[:, :, 0]
    if similar:
        claims &= length <= shortest + TIE
    known = jax.nn.one_hot(labels, classes, dtype=segments.dtype)
    claimed = jnp.einsum("bng,bgk->bnk", claims.astype(segments.dtype), known)
    return jnp.minimum(claimed, 1), chosen


def decode(points: jax.Array, distances: jax.Array) -> jax.Array:
    """Segments f[b, n, 2] in grid units from distances f[b, n, 2] in strides; not clamped."""
    points = jnp.asarray(points, distances.dtype)
    t, stride = points[:, 0], points[:, 3]
    start = t - distances[..., 0] * stride
    return jnp.stack([start, t + distances[..., 1] * stride], -1)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union f[...] of segments f[..., 2], pair by pair."""
    start, end = jnp.maximum(a[..., 0], b[..., 0]), jnp.minimum(a[..., 1], b[..., 1])
    shared = jnp.maximum(end - start, 0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - shared
    return shared / jnp.maximum(union, SMALLEST)

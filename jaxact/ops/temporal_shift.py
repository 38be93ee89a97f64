"""Temporal shift: a few channels look one frame ahead, as many one frame back."""

import jax
import jax.numpy as jnp


def shift(x: jax.Array, fold_div: int) -> jax.Array:
    """Moves 1/`fold_div` of the channels one frame earlier and as many one frame later.

    x: f32[..., t, h, w, c]. With f = c // fold_div, channels [0, f) take the next frame's value,
    [f, 2f) the previous frame's, the rest stay; the frames beyond either end are zeros. No
    parameters, no multiplications; the gradient is the opposite shift.

    Source: Temporal Shift Module (arXiv 1811.08383) section 3; mit-han-lab/temporal-shift-module.
    """
    fold = x.shape[-1] // fold_div
    if fold == 0:
        return x
    frames = x.ndim - 4
    edge = jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=frames)[..., :fold])
    later = jax.lax.slice_in_dim(x, 1, None, axis=frames)[..., :fold]
    earlier = jax.lax.slice_in_dim(x, 0, -1, axis=frames)[..., fold : 2 * fold]
    return jnp.concatenate(
        [
            jnp.concatenate([later, edge], axis=frames),
            jnp.concatenate([edge, earlier], axis=frames),
            x[..., 2 * fold :],
        ],
        axis=-1,
    )

"""Temporal adapters that let a frozen clip network see a whole video (AdaTAD, arXiv 2311.17241).

A video goes through the network clip by clip; only an adapter's convolution over time joins them.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.models import sequence


class TemporalAdapter(nn.Module):
    """gamma * up(u + mix(u)) with u = gelu(down(x)): f[b, t, s, c] -> f32, the same shape.

    `mix` runs along t, each place s of the frame by itself: a depthwise convolution of 3 taps, then
    a 1x1 convolution. `up` starts at zero and gamma at one, so it adds nothing at first. The whole
    has 2 c h + 5 h + h h + c + 1 parameters for a hidden width of h = floor(ratio c).
    """

    ratio: float = 0.25
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, hidden = x.shape[-1], int(x.shape[-1] * self.ratio)
        dense = functools.partial(sequence.Dense, dtype=self.dtype)
        gamma = self.param("gamma", nn.initializers.ones, (1,), jnp.float32)
        down = dense(hidden, kernel_init=nn.initializers.normal(0.02), name="down")
        u = jax.nn.gelu(down(x), approximate=False)
        v = sequence.TemporalDepthwise(
            kernel_init=nn.initializers.normal((2 / 3) ** 0.5),
            use_bias=True,
            dtype=self.dtype,
            name="depthwise",
        )(u)
        mix = dense(hidden, kernel_init=nn.initializers.normal((2 / hidden) ** 0.5), name="mix")
        y = dense(width, kernel_init=nn.initializers.zeros, name="up")(u + mix(v))
        # Wide, as its gradient is one sum over all of it.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return gamma.astype(wide) * y.astype(wide)

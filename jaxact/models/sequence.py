"""Layers over sequences f[b, t, c]: short filters, pooling, attention with masked steps.

Three taps always see one step beyond either end, so a stride of 2 keeps steps 0, 2, 4, ... in the
middle of their filter, as torch's padding of 1 does.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.models import layers


class TemporalDepthwise(nn.Module):
    """Depthwise convolution of 3 taps along t: f[b, t, ..., c] -> f[b, ceil(t / stride), ..., c].

    One zero on both sides, whatever the stride. Shifted multiply-adds: XLA's grouped convolution is
    slow on CPU, and on any device this reads its input once.
    """

    stride: int = 1
    use_bias: bool = False
    kernel_init: Callable = layers.torch_uniform
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 1, width), jnp.float32)
        kernel = kernel.astype(self.dtype)
        near = taps(x.astype(self.dtype), self.stride)
        y = near[0] * kernel[0] + near[1] * kernel[1] + near[2] * kernel[2]
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (width,), jnp.float32).astype(y.dtype)
        return y


class TemporalConv(nn.Module):
    """Convolution of 3 taps along t: f[b, t, c] -> f[b, t, k], one zero on both sides."""

    features: int
    use_bias: bool = False
    bias_init: Callable = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        kernel = self.param("kernel", layers.torch_uniform, (3, width, self.features), jnp.float32)
        joined = jnp.concatenate(taps(x.astype(self.dtype)), axis=-1)
        y = joined @ kernel.astype(self.dtype).reshape(3 * width, self.features)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(
                y.dtype
            )
        return y


def taps(x: jax.Array, stride: int = 1, fill: float = 0.0) -> list[jax.Array]:
    """Each step's predecessor, itself and its successor: three f[b, ceil(t / stride), ..., c]."""
    rest = ((0, 0),) * (x.ndim - 2)
    padded = jnp.pad(x, ((0, 0), (1, 1), *rest), constant_values=fill)
    last = (x.shape[1] - 1) // stride * stride + 1
    return [padded[:, k : k + last : stride] for k in range(3)]


def pooled(x: jax.Array, stride: int) -> jax.Array:
    """The largest of each three steps, f[b, t, c] -> f[b, ceil(t / stride), c]."""
    return layers.peak(jnp.stack(taps(x, stride, -jnp.inf), axis=2), 2)[:, :, 0]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, window: int = 0) -> jax.Array:
    """Softmax attention of f[b, t, h, c] over the steps where `mask` bool[b, t] is True.

    window: 0 = all steps; else an odd number, the steps around each one that it sees, itself in the
    middle. Then scores are computed in blocks of steps against their neighbours, so memory grows
    with t, not its square. A step that sees no real one gets a finite result without meaning.
    """
    if not window or window >= 2 * q.shape[1] - 1:
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])
    b, t, heads, width = q.shape
    half = window // 2
    size = min(max(half, 64), t)
    count = -(-t // size)

    def blocks(x: jax.Array, margin: int) -> jax.Array:
        """b, t, ... -> b, count, size + 2 margin, ...: each block with what surrounds it."""
        rest = ((0, 0),) * (x.ndim - 2)
        end = count * size - t + margin
        x = jnp.pad(x, ((0, 0), (margin, end), *rest))
        index = jnp.arange(count)[:, None] * size + jnp.arange(size + 2 * margin)
        return x[:, index]

    near = blocks(mask, half)[:, :, None]  # b, count, 1, size + 2 half
    offset = jnp.arange(size + 2 * half) - jnp.arange(size)[:, None]
    seen = near & (offset >= 0) & (offset <= 2 * half)
    parts = [
        blocks(x, margin).reshape(b * count, -1, heads, width)
        for x, margin in ((q, 0), (k, half), (v, half))
    ]
    y = jax.nn.dot_product_attention(
        parts[0], parts[1], parts[2], mask=seen.reshape(b * count, 1, size, -1)
    )
    return y.reshape(b, count * size, heads, width)[:, :t]

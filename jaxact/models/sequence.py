"""Layers over sequences f[b, t, c]: short filters, pooling, attention with masked steps.

Three taps always see one step beyond either end, so a stride of 2 keeps steps 0, 2, 4, ... in the
middle of their filter, as torch's padding of 1 does.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.models import layers


class Dense(nn.Module):
    """A linear layer f[..., c] -> f[..., k] whose product runs in `dtype`, its bias in f32.

    Else the bias's gradient would be one sum of 16-bit numbers over all steps and places, which
    loses percents (in a sum of thousands a bf16 addend may no longer count at all).
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable = layers.torch_uniform
    bias_init: Callable = nn.initializers.zeros
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if not self.use_bias:
            return y
        return added(y, self.param("bias", self.bias_init, (self.features,), jnp.float32))


def added(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y f[..., c] plus bias f[c], summed in f32 both ways; the dtype of y."""
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return (y.astype(wide) + bias.astype(wide)).astype(y.dtype)


class TemporalDepthwise(nn.Module):
    """Depthwise convolution of 3 taps along t: f[b, t, ..., c] -> f[b, ceil(t / stride), ..., c].

    One zero on both sides, whatever the stride. Shifted multiply-adds: XLA's grouped convolution is
    slow on CPU, and on any device this reads its input once. They and their gradients are summed in
    f32, see `Dense`.
    """

    stride: int = 1
    use_bias: bool = False
    kernel_init: Callable = layers.torch_uniform
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 1, width), jnp.float32)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        kernel = kernel.astype(wide)
        near = [each.astype(wide) for each in taps(x.astype(self.dtype), self.stride)]
        y = near[0] * kernel[0] + near[1] * kernel[1] + near[2] * kernel[2]
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (width,), jnp.float32).astype(wide)
        return y.astype(self.dtype)


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
        if not self.use_bias:
            return y
        return added(y, self.param("bias", self.bias_init, (self.features,), jnp.float32))


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

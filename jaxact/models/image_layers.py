"""Layers of the image networks: convolution, depthwise convolution, drop path, pooling.

Images are channels-last, padding is counted on both sides as in torch, parameters are f32 and
`dtype` is what the arithmetic runs in. The video networks' layers are in `models.layers`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxact.models import layers
from jaxact.ops import depthwise as depthwise_op
from jaxact.ops import target

Pads = tuple[tuple[int, int], tuple[int, int]]


def same_pads(size: tuple[int, int], kernel: int, stride: int) -> Pads:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd zero at the end of h and of w."""
    totals = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size]
    return tuple((total // 2, total - total // 2) for total in totals)  # type: ignore[return-value]


def _pads(x: jax.Array, kernel: int, stride: int, same: bool, patch: bool = False) -> Pads:
    if same:
        return same_pads((x.shape[1], x.shape[2]), kernel, stride)
    half = 0 if patch else kernel // 2
    return ((half, half), (half, half))


class Conv(nn.Module):
    """Dense 2-D convolution over f32[b, h, w, c], padded by half the kernel on every side.

    `patch`: no padding; with stride = kernel the image is cut into patches (a remainder is
    dropped, as torch does). `same`: TensorFlow's asymmetric padding instead.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    patch: bool = False
    same: bool = False
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = layers.he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.kernel == 1:
            # A matrix product; XLA's CPU backend runs it faster than a convolution.
            x = x[:, :: self.stride, :: self.stride]
            y = lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
        elif self.patch and self.stride == self.kernel:
            y = _patches(x, kernel)
        else:
            pads = _pads(x, self.kernel, self.stride, self.same, self.patch)
            small = min(x.shape[1], x.shape[2]) <= self.kernel + 1
            if small and target.platform() == "cpu":
                # XLA's CPU convolution takes 80 times as long on a 2x2 map, its gradient 25 times
                # on a 4x4 one with stride 2.
                y = _windows(x, kernel, self.stride, pads)
            else:
                y = lax.conv_general_dilated(
                    x,
                    kernel,
                    (self.stride, self.stride),
                    pads,
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


def _patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Each k x k patch of f32[b, h, w, c] times f32[k, k, c, o]: one matrix product."""
    k = kernel.shape[0]
    b, h, w, c = x.shape
    x = x[:, : h // k * k, : w // k * k]
    x = x.reshape(b, h // k, k, w // k, k, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, h // k, w // k, k * k * c)
    return lax.dot_general(x, kernel.reshape(k * k * c, -1), (((3,), (0,)), ((), ())))


def _windows(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """The pixels under every place of f32[k, k, c, o], side by side, as one matrix product."""
    k = kernel.shape[0]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = ((n - k) // stride * stride + 1 for n in x.shape[1:3])
    taps = [
        x[:, i : i + rows : stride, j : j + columns : stride] for i in range(k) for j in range(k)
    ]
    wide = jnp.concatenate(taps, -1)
    return lax.dot_general(wide, kernel.reshape(wide.shape[-1], -1), (((3,), (0,)), ((), ())))


class Depthwise(nn.Module):
    """Depthwise 2-D convolution over f32[b, h, w, c], padded by half the kernel on every side.

    implementation: as in `ops.depthwise`. `same`: TensorFlow's asymmetric padding instead.
    """

    kernel: int
    stride: int = 1
    same: bool = False
    use_bias: bool = False
    implementation: str = "auto"
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = layers.he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x = x.astype(self.dtype)
        (top, bottom), (left, right) = _pads(x, self.kernel, self.stride, self.same)
        # What both sides share is left to the operation; only an odd zero needs a copy.
        shared = (min(top, bottom), min(left, right))
        if (top, left) != (bottom, right):
            odd = (top - shared[0], bottom - shared[0]), (left - shared[1], right - shared[1])
            x = jnp.pad(x, ((0, 0), *odd, (0, 0)))
        y = depthwise_op.depthwise(
            x[:, None],  # one frame
            kernel[None],
            (1, self.stride, self.stride),
            (0, *shared),
            self.implementation,
        )[:, 0]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


def drop_path(x: jax.Array, rate: float, train: bool, name: str = "drop_path") -> jax.Array:
    """Stochastic depth (arXiv 1603.09382): a whole example's branch is zero with this chance.

    The rest is scaled by 1 / (1 - rate). Random stream "dropout".
    """
    if rate == 0:
        return x
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train, name=name)(x)


def mean_pool(x: jax.Array) -> jax.Array:
    """The mean over h and w, summed in f32 or wider: dtype[b, h, w, c] -> f32[b, c]."""
    return x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def layer_norm(
    name: str, dtype: jnp.dtype, epsilon: float = 1e-6
) -> Callable[[jax.Array], jax.Array]:
    """LayerNorm over channels, variance in two passes as in torch."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)

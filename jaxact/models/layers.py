"""Layers shared by the video networks: convolution, depthwise convolution, BN, SE, swish.

Clips are channels-last, padding is counted on both sides as in torch, parameters are f32 and
`dtype` is what the arithmetic runs in.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxact.ops import depthwise as depthwise_op
from jaxact.ops import target

Triple = tuple[int, int, int]

# He normal by fan_out with the gain of a ReLU. On a depthwise kernel [kt, kh, kw, 1, c] this is
# sqrt(2 / (c * taps)), which is what torch computes too.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
linear_normal = nn.initializers.normal(0.01)
# torch's default for kernels: uniform in +-1/sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Callable:
    """torch's default initialiser of a bias: uniform in +-1/sqrt(fan_in)."""

    def draw(key, shape, dtype=jnp.float32):
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


class Conv(nn.Module):
    """Dense 3-D convolution without bias over f32[b, t, h, w, c].

    Padded by half the kernel on both sides of t, h, w. XLA's CPU backend runs 1x1x1 fastest as a
    matrix product and a longer kernel fastest in 2-D: frames join the batch, neighbouring frames
    the channels.
    """

    features: int
    kernel_size: Triple = (1, 1, 1)
    strides: Triple = (1, 1, 1)
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = he_normal
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        y = convolve(x.astype(self.dtype), kernel, self.strides)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Triple = (1, 1, 1), padding: Triple | None = None
) -> jax.Array:
    """Convolves f32[b, t, h, w, c] with f32[kt, kh, kw, c, k], zeros on both sides as in torch.

    padding: zeros on each side of t, h, w; None is half the kernel.
    """
    taps = kernel.shape[:3]
    if padding is None:
        padding = (taps[0] // 2, taps[1] // 2, taps[2] // 2)
    if taps == (1, 1, 1) and padding == (0, 0, 0):
        if strides != (1, 1, 1):
            x = x[:, :: strides[0], :: strides[1], :: strides[2]]
        return lax.dot_general(x, kernel[0, 0, 0], (((4,), (0,)), ((), ())))
    if taps[0] > 1 and target.platform() != "cpu":
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            [(p, p) for p in padding],
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    b, _, h, w, c = x.shape
    if padding[0]:
        x = jnp.pad(x, ((0, 0), (padding[0], padding[0]), (0, 0), (0, 0), (0, 0)))
    frames = (x.shape[1] - taps[0]) // strides[0] + 1
    last = (frames - 1) * strides[0] + 1
    near = [x[:, k : k + last : strides[0]] for k in range(taps[0])]
    joined = near[0] if taps[0] == 1 else jnp.concatenate(near, axis=-1)
    flat = kernel.transpose(1, 2, 0, 3, 4).reshape(*taps[1:], taps[0] * c, kernel.shape[4])
    if taps[1:] == (1, 1) or h < taps[1] or w < taps[2]:
        # Here a matrix product is 3 times as fast; of maps smaller than the kernel, 50 times.
        return _windows(joined, taps, strides, padding) @ flat.reshape(-1, flat.shape[-1])
    y = lax.conv_general_dilated(
        joined.reshape(b * frames, h, w, taps[0] * c),
        flat,
        strides[1:],
        [(p, p) for p in padding[1:]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(b, frames, *y.shape[1:])


def _windows(x: jax.Array, taps: tuple[int, ...], strides: Triple, padding: Triple) -> jax.Array:
    """The pixels under each place of a kernel, one after the other in the channels."""
    x = jnp.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding[1:]), (0, 0)))
    last = [(x.shape[n + 1] - taps[n]) // strides[n] * strides[n] + 1 for n in (1, 2)]
    near = [
        x[:, :, i : i + last[0] : strides[1], j : j + last[1] : strides[2]]
        for i in range(taps[1])
        for j in range(taps[2])
    ]
    return near[0] if len(near) == 1 else jnp.concatenate(near, -1)


class Depthwise(nn.Module):
    """Depthwise convolution without bias over f32[b, t, h, w, c]; see `ops.depthwise`."""

    kernel_size: Triple
    strides: Triple = (1, 1, 1)
    implementation: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", he_normal, shape, jnp.float32)
        return depthwise_op.depthwise(
            x.astype(self.dtype), kernel, self.strides, implementation=self.implementation
        )


def batch_norm(
    name: str | None,
    train: bool,
    dtype: jnp.dtype,
    momentum: float = 0.9,
    scale: float = 1.0,
    epsilon: float = 1e-5,
) -> Callable[[jax.Array], jax.Array]:
    """BatchNorm as in torch, statistics in f32; its scale starts at `scale`."""
    module = nn.BatchNorm(
        momentum=momentum,
        epsilon=epsilon,
        dtype=dtype,
        scale_init=nn.initializers.constant(scale),
        name=name,
    )
    # Given at the call, where a training step that freezes this layer can replace it.
    return functools.partial(module, use_running_average=not train)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the mean: f32[b, t, h, w, c] -> the same."""

    squeezed: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=he_normal)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        mean = x.mean((1, 2, 3), dtype=wide).astype(self.dtype)
        gate = dense(x.shape[-1], name="fc2")(nn.relu(dense(self.squeezed, name="fc1")(mean)))
        return x * nn.sigmoid(gate)[:, None, None, None]


def swish(x: jax.Array) -> jax.Array:
    """x * sigmoid(x)."""
    return x * nn.sigmoid(x)


def peak(x: jax.Array, axis: int) -> jax.Array:
    """The largest value along an axis, which stays with size 1; its gradient goes to one place.

    jnp.max instead compares x with its maximum, and under jit both may come from differently
    rounded copies of x: then nothing is equal and the gradient is 0 / 0.
    """
    place = jnp.expand_dims(jnp.argmax(x, axis), axis)
    return jnp.take_along_axis(x, place, axis)


def round_width(width: float, scale: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to width * scale, at least `divisor`, never 10 % below."""
    target = width * scale
    rounded = max(divisor, math.floor((target + divisor / 2) / divisor) * divisor)
    return rounded + divisor if rounded < 0.9 * target else rounded

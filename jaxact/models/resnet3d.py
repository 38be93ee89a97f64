"""Residual networks for clips: bottlenecks whose first convolution may see neighbouring frames.

SlowOnly on RGB, PoseC3D on heatmaps and both paths of RGBPoseConv3D are this network with other
numbers. Only kernels 1 x k x k and k x 1 x 1 occur, so frames join the batch in the former and
channels in the latter (`layers.convolve`).

Sources: SlowFast (arXiv 1812.03982), PoseC3D and RGBPoseConv3D (arXiv 2104.13586; MMAction2
`resnet3d.py`, `resnet3d_slowonly.py`).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxact.models import layers
from jaxact.models.layers import Triple
from jaxact.models.specs import EXPANSION, ResNet3DSpec

SLOWONLY_R50 = ResNet3DSpec()
POSEC3D = ResNet3DSpec(
    blocks=(4, 6, 3),
    width=32,
    inflate=(0, 1, 1),
    strides=(2, 2, 2),
    temporal_strides=(1, 1, 2),
    stem_stride=1,
    pool_stride=1,
)
POSE_ONLY = dataclasses.replace(POSEC3D, temporal_strides=(1, 1, 1))


def max_pool(x: jax.Array, stride: int) -> jax.Array:
    """The 3 x 3 maximum around every `stride`-th pixel of f32[b, t, h, w, c], as torch pads it.

    Rows, then columns, by comparisons of shifted copies: a fifth of the time of XLA's window
    reduction and its gradient on a CPU. Of equal values one gets the gradient.
    """
    for axis in (2, 3):
        size = (x.shape[axis] - 1) // stride + 1
        widths = [(0, 0)] * x.ndim
        widths[axis] = (1, 1)
        padded = jnp.pad(x, widths, constant_values=-jnp.inf)
        last = (size - 1) * stride + 1
        taps = [lax.slice_in_dim(padded, k, k + last, stride, axis) for k in range(3)]
        x = taps[0]
        for other in taps[1:]:
            x = jnp.where(other > x, other, x)
    return x


class Stem(nn.Module):
    """First convolution, BN, ReLU (the pool is `ResNet3D.begin`'s)."""

    spec: ResNet3DSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        stride, (t, h, w) = self.spec.stem_stride, self.spec.stem_kernel
        x = layers.Conv(
            self.spec.width,
            (t, h, w),
            (1, stride, stride),
            dtype=self.dtype,
            name="conv",
        )(x)
        return nn.relu(layers.batch_norm("bn", train, self.dtype)(x))


class Bottleneck(nn.Module):
    """Reduce (3x1x1 or 1x1x1), filter 1x3x3 with the strides, expand 1x1x1, add the shortcut."""

    inner: int
    inflate: bool
    strides: Triple = (1, 1, 1)
    last_scale: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features = EXPANSION * self.inner
        first = (3, 1, 1) if self.inflate else (1, 1, 1)
        y = layers.Conv(self.inner, first, dtype=self.dtype, name="a")(x)
        y = nn.relu(layers.batch_norm("a_bn", train, self.dtype)(y))
        y = layers.Conv(self.inner, (1, 3, 3), self.strides, dtype=self.dtype, name="b")(y)
        y = nn.relu(layers.batch_norm("b_bn", train, self.dtype)(y))
        y = layers.Conv(features, dtype=self.dtype, name="c")(y)
        y = layers.batch_norm("c_bn", train, self.dtype, scale=self.last_scale)(y)
        if self.strides != (1, 1, 1) or x.shape[-1] != features:
            x = layers.Conv(features, strides=self.strides, dtype=self.dtype, name="shortcut")(x)
            x = layers.batch_norm("shortcut_bn", train, self.dtype)(x)
        return nn.relu(x + y)


class Stage(nn.Module):
    """The bottlenecks of one stage."""

    spec: ResNet3DSpec
    index: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, index = self.spec, self.index
        # `train` picks the program, so it must stay a Python value inside the checkpointed block.
        block: Any = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        first = (spec.temporal_strides[index], spec.strides[index], spec.strides[index])
        for number in range(spec.blocks[index]):
            x = block(
                inner=spec.width * 2**index,
                inflate=bool(spec.inflate[index]),
                strides=first if number == 0 else (1, 1, 1),
                last_scale=spec.last_scale,
                dtype=self.dtype,
                name=f"block{number}",
            )(x, train)
        return x


class ResNet3D(nn.Module):
    """The network up to its last map: f32[b, t, h, w, c] -> dtype[b, t', h', w', channels[-1]].

    `begin` and `advance` are its parts, for a network that exchanges maps with another one between
    stages. `remat` stores only block inputs in the forward pass and computes the rest again.
    """

    spec: ResNet3DSpec = SLOWONLY_R50
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        """The stem and the stages, under the names stem, res2, res3, ..."""
        self.stem = Stem(self.spec, self.dtype)
        for index in range(len(self.spec.blocks)):
            setattr(self, f"res{index + 2}", Stage(self.spec, index, self.dtype, self.remat))

    def begin(self, x: jax.Array, train: bool) -> jax.Array:
        """Stem and pool."""
        return max_pool(self.stem(x, train), self.spec.pool_stride)

    def advance(self, index: int, x: jax.Array, train: bool) -> jax.Array:
        """Stage `index`, counted from 0; x may have more channels than the stage before gave."""
        return getattr(self, f"res{index + 2}")(x, train)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.begin(x, train)
        for index in range(len(self.spec.blocks)):
            x = self.advance(index, x, train)
        return x

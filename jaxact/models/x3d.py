"""X3D and X-Shift: expand, filter depthwise, project; time is never strided.

Sources: X3D (arXiv 2004.04730; SlowFast `x3d_helper.py`, MMAction2 `x3d.py`), X-ShiftNet of
EPAM-Net (arXiv 2408.05421), which replaces the 3x3x3 filter by a temporal shift and a 1x3x3 one.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.models import layers
from jaxact.models.specs import X3DSpec
from jaxact.ops import temporal_shift


def scaled(
    gamma_w: float = 1.0,
    gamma_b: float = 2.25,
    gamma_d: float = 2.2,
    blocks: tuple[int, ...] = (1, 2, 5, 3),
    **fields,
) -> X3DSpec:
    """A Spec by X3D's expansion factors: width, bottleneck and depth of the base network."""
    return X3DSpec(
        blocks=tuple(math.ceil(gamma_d * count) for count in blocks),
        width=layers.round_width(24, gamma_w),
        bottleneck=gamma_b,
        **fields,
    )


X3D_M = X3DSpec()  # XS, S and M differ in frames and crop only
X3D_L = scaled(gamma_d=5.0)
X_SHIFT_RGB = X3DSpec(temporal="shift")
X_SHIFT_POSE = X3DSpec(blocks=(5, 11, 7), temporal="shift", fold_div=4, stem_stride=1)


class Stem(nn.Module):
    """First convolution, spatial then temporal (temporal = conv) or spatial alone (shift)."""

    spec: X3DSpec
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        stride = self.spec.stem_stride
        x = layers.Conv(
            self.spec.width, (1, 3, 3), (1, stride, stride), dtype=self.dtype, name="conv_s"
        )(x)
        if self.spec.temporal == "conv":
            x = layers.Depthwise(
                (5, 1, 1), implementation=self.implementation, dtype=self.dtype, name="conv_t"
            )(x)
        return nn.relu(layers.batch_norm("bn", train, self.dtype)(x))


class Block(nn.Module):
    """Expand 1x1x1, filter depthwise, [squeeze-excite], project 1x1x1, add the shortcut."""

    features: int
    inner: int
    stride: int
    temporal: str
    fold_div: int
    swish: bool
    se: bool
    shortcut: bool
    shortcut_bn: bool
    last_scale: float = 0.0
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        strides = (1, self.stride, self.stride)
        shift = self.temporal == "shift"
        y = temporal_shift.shift(x, self.fold_div) if shift else x
        y = layers.Conv(self.inner, dtype=self.dtype, name="a")(y)
        y = nn.relu(layers.batch_norm("a_bn", train, self.dtype)(y))
        y = layers.Depthwise(
            (1, 3, 3) if shift else (3, 3, 3),
            strides,
            implementation=self.implementation,
            dtype=self.dtype,
            name="b",
        )(y)
        y = layers.batch_norm("b_bn", train, self.dtype)(y)
        if self.se:
            squeezed = layers.round_width(self.inner, 1 / 16)
            y = layers.SqueezeExcite(squeezed, dtype=self.dtype, name="se")(y)
        # MMAction2 and PYSKL (golden `pyskl_x3d_shallow_48`) put no ReLU in its place.
        y = layers.swish(y) if self.swish else y
        y = layers.Conv(self.features, dtype=self.dtype, name="c")(y)
        # A scale of 0 makes a new block the identity (plus ReLU), which deep nets train from.
        y = layers.batch_norm("c_bn", train, self.dtype, scale=self.last_scale)(y)
        if self.shortcut:
            x = layers.Conv(self.features, strides=strides, dtype=self.dtype, name="shortcut")(x)
            if self.shortcut_bn:
                x = layers.batch_norm("shortcut_bn", train, self.dtype)(x)
        return nn.relu(y + x.astype(self.dtype))


class Stage(nn.Module):
    """Blocks of one width; the first halves height and width."""

    spec: X3DSpec
    index: int
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        spec, features = self.spec, self.spec.channels[self.index]
        # `train` picks the program, so it must stay a Python value inside the checkpointed block.
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for number in range(spec.blocks[self.index]):
            x = block(
                features=features,
                inner=int(features * spec.bottleneck),
                stride=2 if number == 0 else 1,
                temporal=spec.temporal,
                fold_div=spec.fold_div,
                swish=spec.swish,
                se=spec.se == "all" or (spec.se == "half" and number % 2 == 0),
                shortcut=number == 0,
                shortcut_bn=self.index > 0 or spec.res2_shortcut_bn,
                last_scale=spec.last_scale,
                dtype=self.dtype,
                implementation=self.implementation,
                name=f"block{number}",
            )(x, train)
        return x


class X3DFeatures(nn.Module):
    """The backbone up to conv5: f32[b, t, h, w, c] -> dtype[b, t, h', w', spec.features].

    With `stages` the result is (features, dict of the maps after stem, res2, ..., conv5).
    `remat` stores only block inputs in the forward pass and computes the rest again.
    """

    spec: X3DSpec = X3D_M
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, stages: bool = False):
        maps = {}
        x = Stem(self.spec, self.dtype, self.implementation, name="stem")(x, train)
        maps["stem"] = x
        for index in range(len(self.spec.blocks)):
            name = f"res{index + 2}"
            x = Stage(self.spec, index, self.dtype, self.implementation, self.remat, name=name)(
                x, train
            )
            maps[name] = x
        if self.spec.conv5:
            x = layers.Conv(self.spec.features, dtype=self.dtype, name="conv5")(x)
            x = nn.relu(layers.batch_norm("conv5_bn", train, self.dtype)(x))
            maps["conv5"] = x
        return (x, maps) if stages else x

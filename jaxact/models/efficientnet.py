"""EfficientNet-B0 and B3: expand, filter depthwise, squeeze-excite, project.

Sources: arXiv 1905.11946; timm `efficientnet.py` (symmetric padding, BN eps 1e-5, also
torchvision's); the TensorFlow original, which Hugging Face and timm's `tf_` weights follow, pads
asymmetrically at stride 2 and has BN eps 1e-3: its weights give wrong results in the other form.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.models import image_layers, layers
from jaxact.models.specs import EfficientNetSpec

# kernel, stride of the first block, expansion: the same in every size
_STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))


def _spatial_normal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Normal with variance 2 / taps: the fan out of one channel's own filter."""
    return math.sqrt(2 / math.prod(shape[:2])) * jax.random.normal(key, shape, dtype)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the map's mean: f32[b, h, w, c] -> the same."""

    squeezed: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=layers.he_normal)
        mean = image_layers.mean_pool(x).astype(self.dtype)
        seen = layers.swish(dense(self.squeezed, name="reduce")(mean))
        gate = nn.sigmoid(dense(x.shape[-1], name="expand")(seen))
        return x * gate[:, None, None, :]


class Block(nn.Module):
    """[Expand 1x1], filter depthwise, squeeze-excite, project 1x1, add where shapes agree."""

    features: int
    kernel: int
    stride: int
    expansion: int
    drop_path: float
    tensorflow: bool
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        epsilon = 1e-3 if self.tensorflow else 1e-5
        norm = functools.partial(layers.batch_norm, train=train, dtype=self.dtype, epsilon=epsilon)
        inner, y = x.shape[-1] * self.expansion, x
        if self.expansion != 1:
            y = image_layers.Conv(inner, dtype=self.dtype, name="expand")(y)
            y = layers.swish(norm("expand_bn")(y))
        y = image_layers.Depthwise(
            self.kernel,
            self.stride,
            same=self.tensorflow,
            implementation=self.implementation,
            dtype=self.dtype,
            kernel_init=_spatial_normal,
            name="filter",
        )(y)
        y = layers.swish(norm("filter_bn")(y))
        # A quarter of the block's input, not of the expanded map.
        y = SqueezeExcite(x.shape[-1] // 4, self.dtype, name="se")(y)
        y = image_layers.Conv(self.features, dtype=self.dtype, name="project")(y)
        y = norm("project_bn")(y)
        if self.stride == 1 and x.shape[-1] == self.features:
            y = image_layers.drop_path(y, self.drop_path, train) + x
        return y


class Stage(nn.Module):
    """Blocks of one width; the first may halve height and width."""

    spec: EfficientNetSpec
    index: int
    drop_paths: tuple[float, ...]  # of each block
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kernel, stride, expansion = _STAGES[self.index]
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for number in range(self.spec.repeats[self.index]):
            x = block(
                features=self.spec.channels[self.index],
                kernel=kernel,
                stride=stride if number == 0 else 1,
                expansion=expansion,
                drop_path=self.drop_paths[number],
                tensorflow=self.spec.tensorflow,
                dtype=self.dtype,
                implementation=self.implementation,
                name=f"block{number}",
            )(x, train)
        return x


class ConvNorm(nn.Module):
    """Convolution, BN, swish: the stem and the head."""

    features: int
    kernel: int
    stride: int
    tensorflow: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = image_layers.Conv(
            self.features,
            self.kernel,
            self.stride,
            same=self.tensorflow,
            dtype=self.dtype,
            name="conv",
        )(x)
        epsilon = 1e-3 if self.tensorflow else 1e-5
        return layers.swish(layers.batch_norm("bn", train, self.dtype, epsilon=epsilon)(x))


def trunk(
    spec: EfficientNetSpec,
    x: jax.Array,
    train: bool,
    dtype: jnp.dtype,
    remat: bool,
    drop_path: float,
    implementation: str,
) -> dict:
    """Maps after stem, blocks0 ... blocks6 and head, in order, inside a compact module.

    x: f32[b, h, w, 3]; the last value is dtype[b, h / 32, w / 32, spec.features], rounded up.
    Block i of n drops its branch with chance drop_path * i / n.
    """
    x = ConvNorm(spec.stem, 3, 2, spec.tensorflow, dtype, name="stem")(x, train)
    maps, total, first = {"stem": x}, sum(spec.repeats), 0
    for index, repeats in enumerate(spec.repeats):
        rates = tuple(drop_path * (first + number) / total for number in range(repeats))
        name, first = f"blocks{index}", first + repeats
        x = maps[name] = Stage(spec, index, rates, dtype, implementation, remat, name=name)(
            x, train
        )
    maps["head"] = ConvNorm(spec.features, 1, 1, spec.tensorflow, dtype, name="head")(x, train)
    return maps

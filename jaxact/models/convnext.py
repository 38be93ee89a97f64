"""ConvNeXt-T and B: depthwise 7x7, LayerNorm, a two-layer MLP on every position.

Sources: arXiv 2201.03545; timm `convnext.py`, torchvision `convnext.py`, Hugging Face `convnext`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxact.models import image_layers
from jaxact.models.specs import ConvNeXtSpec

_normal = nn.initializers.normal(0.02)
_Patches = functools.partial(image_layers.Conv, patch=True, use_bias=True, kernel_init=_normal)


class Block(nn.Module):
    """Filter depthwise 7x7, normalise, widen four times, GELU (exact), narrow, scale, add."""

    drop_path: float
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        y = image_layers.Depthwise(
            7,
            use_bias=True,
            implementation=self.implementation,
            dtype=self.dtype,
            kernel_init=_normal,
            name="filter",
        )(x)
        y = image_layers.layer_norm("norm", self.dtype)(y)
        y = nn.Dense(4 * width, dtype=self.dtype, kernel_init=_normal, name="fc1")(y)
        y = nn.gelu(y, approximate=False)
        y = nn.Dense(width, dtype=self.dtype, kernel_init=_normal, name="fc2")(y)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (width,), jnp.float32)
        y = image_layers.drop_path(y * gamma.astype(self.dtype), self.drop_path, train)
        return x + y


class Stage(nn.Module):
    """[Normalise and halve height and width], then blocks of one width.

    Returns (the map that enters the first block, the map after the last).
    """

    spec: ConvNeXtSpec
    index: int
    drop_paths: tuple[float, ...]  # of each block
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        if self.index > 0:
            x = image_layers.layer_norm("down_norm", self.dtype)(x)
            x = _Patches(self.spec.channels[self.index], 2, 2, dtype=self.dtype, name="down")(x)
        entry = x
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for number, rate in enumerate(self.drop_paths):
            x = block(rate, self.dtype, self.implementation, name=f"block{number}")(x, train)
        return entry, x


class Stem(nn.Module):
    """Patches of 4x4 pixels, normalised."""

    spec: ConvNeXtSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _Patches(self.spec.channels[0], 4, 4, dtype=self.dtype, name="conv")(x)
        return image_layers.layer_norm("norm", self.dtype)(x)


def trunk(
    spec: ConvNeXtSpec,
    x: jax.Array,
    train: bool,
    dtype: jnp.dtype,
    remat: bool,
    drop_path: float,
    implementation: str,
) -> dict:
    """Maps after stem and stage0 ... stage3, in order, inside a compact module.

    x: f32[b, h, w, 3]; the last value is dtype[b, h / 32, w / 32, spec.features], rounded down.
    `down1` ... `down3` are the maps between stages. The chance to drop a branch grows linearly
    over all blocks from 0 to `drop_path`.
    """
    x = Stem(spec, dtype, name="stem")(x)
    rates = np.split(np.linspace(0, drop_path, sum(spec.blocks)), np.cumsum(spec.blocks)[:-1])
    maps = {"stem": x}
    for index, part in enumerate(rates):
        drop_paths = tuple(float(rate) for rate in part)
        entry, x = Stage(
            spec, index, drop_paths, dtype, implementation, remat, name=f"stage{index}"
        )(x, train)
        if index > 0:
            maps[f"down{index}"] = entry
        maps[f"stage{index}"] = x
    return maps

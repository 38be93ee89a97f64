"""ResNet v1.5 and small relatives for small images.

Sources: arXiv 1512.03385; v1.5 strides in the 3x3 convolution of a bottleneck (torchvision
`resnet.py`, timm `resnet.py`). The small ones have the 3x3 stem without max-pooling that the paper
uses on CIFAR, with the basic block and four stages.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.models import image_layers, layers
from jaxact.models.specs import ResNetSpec


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 (strided), 1x1, and the shortcut."""

    features: int
    stride: int
    bottleneck: bool
    last_scale: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        widest = self.features * (4 if self.bottleneck else 1)
        # (channels, kernel, stride) of each
        convolutions = (
            ((self.features, 1, 1), (self.features, 3, self.stride), (widest, 1, 1))
            if self.bottleneck
            else ((widest, 3, self.stride), (widest, 3, 1))
        )
        y = x
        for number, (channels, kernel, stride) in enumerate(convolutions, 1):
            last = number == len(convolutions)
            conv = image_layers.Conv(
                channels, kernel, stride, dtype=self.dtype, name=f"conv{number}"
            )
            scale = self.last_scale if last else 1.0
            y = layers.batch_norm(f"bn{number}", train, self.dtype, scale=scale)(conv(y))
            y = y if last else nn.relu(y)
        if self.stride != 1 or x.shape[-1] != widest:
            x = image_layers.Conv(widest, 1, self.stride, dtype=self.dtype, name="shortcut")(x)
            x = layers.batch_norm("shortcut_bn", train, self.dtype)(x)
        return nn.relu(y + x)


class Stem(nn.Module):
    """The first convolution, before any pooling."""

    spec: ResNetSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kernel = 7 if self.spec.stem == "pooled" else 3
        x = image_layers.Conv(
            self.spec.width, kernel, self.spec.stem_stride, dtype=self.dtype, name="conv"
        )(x)
        return nn.relu(layers.batch_norm("bn", train, self.dtype)(x))


class Stage(nn.Module):
    """Blocks of one width; the first of stages 1, 2, 3 halves height and width."""

    spec: ResNetSpec
    index: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        # `train` picks the program, so it must stay a Python value inside the checkpointed block.
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for number in range(self.spec.blocks[self.index]):
            x = block(
                features=self.spec.width * 2**self.index,
                stride=2 if self.index > 0 and number == 0 else 1,
                bottleneck=self.spec.bottleneck,
                last_scale=self.spec.last_scale,
                dtype=self.dtype,
                name=f"block{number}",
            )(x, train)
        return x


def trunk(spec: ResNetSpec, x: jax.Array, train: bool, dtype: jnp.dtype, remat: bool) -> dict:
    """Maps after stem, pool and layer1 ... layer4, in order, inside a compact module.

    x: f32[b, h, w, 3]. The last value is dtype[b, h / 32, w / 32, spec.features] (rounded up) with
    the pooled stem, h / 16 or h / 8 with the plain one.
    """
    maps = {"stem": Stem(spec, dtype, name="stem")(x, train)}
    x = maps["stem"]
    if spec.stem == "pooled":
        x = maps["pool"] = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for index in range(len(spec.blocks)):
        name = f"layer{index + 1}"
        x = maps[name] = Stage(spec, index, dtype, remat, name=name)(x, train)
    return maps

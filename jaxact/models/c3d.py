"""C3D with batch normalisation: 3x3x3 convolutions and mean pools.

Source: C3D (arXiv 1412.0767) as PYSKL builds it for heatmaps (`c3d.py`): mean pools where the paper
has max pools, no fully connected layers, 32 channels and no pooling in time for "C3D-light".
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import layers
from jaxact.models.specs import C3DSpec

C3D_LIGHT = C3DSpec()


def mean_pool(x: jax.Array, time: bool) -> jax.Array:
    """The mean of 2 x 2 pixels (with `time`, of two frames); an odd one at the end is dropped."""
    b, t, h, w, c = x.shape
    frames = 2 if time else 1
    x = x[:, : t // frames * frames, : h // 2 * 2, : w // 2 * 2]
    x = x.reshape(b, t // frames, frames, h // 2, 2, w // 2, 2, c)
    return x.mean((2, 4, 6))


class C3D(nn.Module):
    """f32[b, t, h, w, c] -> dtype[b, t', h', w', channels of the last stage].

    Raises UserError for a clip that the pools leave nothing of.
    """

    spec: C3DSpec = C3D_LIGHT
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = nn.remat(Layer, static_argnums=(2,)) if self.remat else Layer
        for stage in range(1, self.spec.stages + 1):
            if stage > 1:
                x = mean_pool(x, self.spec.pool_time and stage > 2)
                if 0 in x.shape:
                    raise UserError(
                        f"c3d: nothing is left of the clip after {stage - 1} pools; use larger or "
                        "longer clips, or fewer stages"
                    )
            features = self.spec.width * 2 ** min(stage - 1, 3)
            for letter in "a" if stage < 3 else "ab":
                x = layer(features, self.dtype, name=f"conv{stage}{letter}")(x, train)
        return x


class Layer(nn.Module):
    """3x3x3 convolution, BN, ReLU."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = layers.Conv(self.features, (3, 3, 3), dtype=self.dtype, name="conv")(x)
        return nn.relu(layers.batch_norm("bn", train, self.dtype)(x))

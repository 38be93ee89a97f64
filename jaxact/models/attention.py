"""Pose-driven attention over the RGB feature map (EPAM-Net, arXiv 2408.05421)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import layers


class PoseAttention(nn.Module):
    """Weights of places and frames, from the pose: -> f32[b, t, h, w, 1] in (0, 1), 107 parameters.

    pose: f32[b, t_pose, h, w, c], read at the RGB frames' times 0, s, 2s, ... with
    s = t_pose // t. Largest and mean channel -> 7x7 convolution, BN, sigmoid = where; its mean
    over h, w -> 7-frame convolution, sigmoid = when; it returns their product.
    Raises UserError if the pose stream has fewer frames than the RGB stream.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pose: jax.Array, frames: int, train: bool) -> jax.Array:
        step = pose.shape[1] // frames
        if step == 0:
            raise UserError(
                f"attention: {pose.shape[1]} pose frames for {frames} RGB frames; the pose stream "
                "needs at least as many"
            )
        pose = pose[:, : step * frames : step]
        maps = jnp.concatenate(
            [layers.peak(pose, -1), pose.mean(-1, keepdims=True)], axis=-1
        ).astype(self.dtype)
        spatial = Kernel((7, 7, 2, 1), name="spatial")().astype(self.dtype)
        where = layers.convolve(maps, spatial[None])
        where = nn.sigmoid(layers.batch_norm("spatial_bn", train, self.dtype, momentum=0.99)(where))
        temporal = Kernel((7, 1, 1), name="temporal")().astype(self.dtype)
        track = where.mean((2, 3))  # b, t, 1
        when = jax.lax.conv_general_dilated(
            track, temporal, (1,), [(3, 3)], dimension_numbers=("NHC", "HIO", "NHC")
        )
        return where * nn.sigmoid(when)[:, :, None, None]


class Kernel(nn.Module):
    """A bare convolution kernel drawn as torch draws its own."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", layers.torch_uniform, self.shape, jnp.float32)

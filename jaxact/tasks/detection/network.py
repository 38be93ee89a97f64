"""The network of a detector: an optional video backbone, then ActionFormer.

Batch arguments: `video` is f32[b, f, h, w, 3], normalised frames, or f32[b, t, c], features, when
there is no backbone; `mask` bool[b, t] says which of the t steps are real (t = window length).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import actionformer, videomae
from jaxact.models.specs import VISION_TRANSFORMERS, VisionTransformerSpec
from jaxact.ops import detection_losses, position, segments
from jaxact.tasks.detection.config import Model


class Detector(nn.Module):
    """Segments of a window: {"logits": f32[b, n, k], "offsets": f32[b, n, 2], ...} of n points.

    The other outputs: "mask" bool[b, n], the points of real steps; "points" f32[n, 4] (see
    `ops.segments`); "normaliser" f32[], what the losses are divided by. In training `positives`
    f32[] is the number of positive points of the batch (`ops.detection_losses.positives`): it moves
    the running mean in the collection "normaliser" before that is used. Without it the mean is
    returned as it is.
    """

    spec: Model = Model()
    transformer: VisionTransformerSpec | None = None  # of the backbone; None = features
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        video: jax.Array,
        mask: jax.Array,
        positives: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        length = mask.shape[1]
        if self.transformer is not None:
            x = self._features(self.transformer, video, length, train)
        elif video.ndim != 3 or video.shape[:2] != mask.shape:
            raise UserError(
                f"detector: features {video.shape} for a mask {mask.shape}; needs (b, t, c) and "
                "(b, t)"
            )
        else:
            x = video
        levels = actionformer.Projection(self.spec, self.dtype, name="projection")(x, mask, train)
        levels = actionformer.Neck(self.dtype, name="neck")(levels)
        logits, offsets = actionformer.Head(self.spec, self.dtype, name="head")(levels)
        return {
            "logits": logits,
            "offsets": offsets,
            "mask": segments.point_mask(mask, self.spec.levels),
            "points": jnp.asarray(segments.points(length, self.spec.ranges)),
            "normaliser": self._normaliser(positives, train),
        }

    def _features(
        self, transformer: VisionTransformerSpec, frames: jax.Array, length: int, train: bool
    ) -> jax.Array:
        """One feature a step, f32[b, t, c]: the mean of each token frame, resampled in time."""
        if frames.ndim != 5:
            raise UserError(f"detector: frames {frames.shape}; a backbone needs (b, f, h, w, 3)")
        spec = self.spec.backbone
        backbone = videomae.VideoMAE(
            transformer,
            adaptation=spec,
            drop_path=spec.drop_path,
            remat=spec.remat,
            clips_at_once=spec.clips_at_once,
            attention=spec.attention,
            dtype=self.dtype,
            name="backbone",
        )
        pooled = backbone(frames, train).mean((2, 3))
        return position.resample(pooled, length)

    def _normaliser(self, positives: jax.Array | None, train: bool) -> jax.Array:
        running = self.variable(
            "normaliser", "positives", lambda: jnp.full((), self.spec.normaliser, jnp.float32)
        )
        if positives is not None and train and not self.is_initializing():
            count = positives.astype(running.value.dtype)
            running.value = detection_losses.moved(running.value, count, self.spec.momentum)
        return running.value


def build(model: Model, dtype: str) -> Detector:
    """The detector of `config.model`, computing in `dtype`.

    Raises: UserError for sizes that do not go together and modes that do not exist.
    """
    # Copies: the network keeps its settings whatever becomes of the config, and they are checked.
    spec = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone))
    # None, too, where the size is "none".
    return Detector(spec, VISION_TRANSFORMERS.get(spec.backbone.size), jnp.dtype(dtype))

"""Temporal action detectors: an optional video backbone, then ActionFormer; as a config tells.

Batch arguments: `video` is f32[b, f, h, w, 3], normalised frames, or f32[b, t, c], features, when
there is no backbone; `mask` bool[b, t] says which of the t steps are real (t = window length).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.models import actionformer, videomae
from jaxact.models.specs import (
    ADAPTER_MODES,
    ATTENTION,
    RANGES,
    VISION_TRANSFORMERS,
    ActionFormerSpec,
    AdapterSpec,
    VisionTransformerSpec,
)
from jaxact.ops import detection_losses, position, segments
from jaxact.tasks.detection.config import Model


class Detector(nn.Module):
    """Segments of a window -> {"logits": f32[b, n, k], "offsets": f32[b, n, 2], ...}.

    Also in the result: "mask" bool[b, n], the points of real steps; "points" f32[n, 4] (see
    `ops.segments`); "normaliser" f32[], what the losses are divided by. In training `positives`
    f32[] is the number of positive points of the batch (`ops.detection_losses.positives`): it moves
    the running mean in the collection "normaliser" before that is used. Without it the mean is
    returned as it is.
    """

    spec: ActionFormerSpec = ActionFormerSpec()
    ranges: tuple[float, ...] = RANGES
    backbone: VisionTransformerSpec | None = None
    adaptation: AdapterSpec = AdapterSpec()
    drop_path: float = 0.0
    remat: bool = False
    clips_at_once: int = 0
    attention: str = "auto"
    normaliser: float = 100.0
    momentum: float = 0.9
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
        if self.backbone is not None:
            x = self._features(self.backbone, video, length, train)
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
            "points": jnp.asarray(segments.points(length, self.ranges)),
            "normaliser": self._normaliser(positives, train),
        }

    def _features(
        self, spec: VisionTransformerSpec, frames: jax.Array, length: int, train: bool
    ) -> jax.Array:
        """One feature a step, f32[b, t, c]: the mean of each token frame, resampled in time."""
        if frames.ndim != 5:
            raise UserError(f"detector: frames {frames.shape}; a backbone needs (b, f, h, w, 3)")
        backbone = videomae.VideoMAE(
            spec,
            self.adaptation,
            self.drop_path,
            self.remat,
            self.clips_at_once,
            self.attention,
            self.dtype,
            name="backbone",
        )
        pooled = backbone(frames, train).mean((2, 3))
        return position.resample(pooled, length)

    def _normaliser(self, positives: jax.Array | None, train: bool) -> jax.Array:
        running = self.variable(
            "normaliser", "positives", lambda: jnp.full((), self.normaliser, jnp.float32)
        )
        if positives is not None and train and not self.is_initializing():
            count = positives.astype(running.value.dtype)
            running.value = detection_losses.moved(running.value, count, self.momentum)
        return running.value


def build(model: Model, dtype: str) -> Detector:
    """The detector of `config.model`, computing in `dtype`.

    Raises: UserError for sizes and modes that do not exist.
    """
    _validate(model)
    backbone, frames = model.backbone, model.backbone.size != "none"
    spec = ActionFormerSpec(
        classes=model.classes,
        width=model.width,
        heads=model.heads,
        stem=model.stem,
        branch=model.branch,
        window=model.window,
        drop_path=model.drop_path,
        input_dropout=model.input_dropout,
        positions=model.positions,
    )
    return Detector(
        spec=spec,
        ranges=tuple(model.ranges),
        backbone=VISION_TRANSFORMERS[backbone.size] if frames else None,
        adaptation=AdapterSpec(backbone.mode, backbone.ratio, backbone.first),
        drop_path=backbone.drop_path,
        remat=backbone.remat,
        clips_at_once=backbone.clips_at_once,
        attention=backbone.attention,
        normaliser=model.normaliser,
        momentum=model.momentum,
        dtype=jnp.dtype(dtype),
    )


def _validate(model: Model) -> None:
    """Ranges and choices of the fields, each error naming `config.model.<field>`."""
    require, backbone = schema.require, model.backbone
    named: Any = {"": model, "backbone.": backbone}
    for field, allowed in (
        ("backbone.size", (*VISION_TRANSFORMERS, "none")),
        ("backbone.mode", ADAPTER_MODES),
        ("backbone.attention", ATTENTION),
    ):
        found = getattr(backbone, field.removeprefix("backbone."))
        require(found in allowed, f"model.{field}", found, ", ".join(allowed))
    for field in ("classes", "width", "heads", "stem", "branch", "normaliser", "radius"):
        least = 0 if field in ("stem", "branch") else 1
        require(
            getattr(model, field) >= least,
            f"model.{field}",
            getattr(model, field),
            f"{least} or more",
        )
    for prefix, fields in (
        ("", ("drop_path", "input_dropout", "momentum")),
        ("backbone.", ("drop_path",)),
    ):
        for field in fields:
            found = getattr(named[prefix], field)
            require(0 <= found < 1, f"model.{prefix}{field}", found, "0 to below 1")
    for field in ("clips_at_once", "first"):
        found = getattr(backbone, field)
        require(found >= 0, f"model.backbone.{field}", found, "0 or more")
    require(0 < backbone.ratio <= 4, "model.backbone.ratio", backbone.ratio, "above 0 up to 4")
    require(model.positions >= 0, "model.positions", model.positions, "0 (none) or more")
    require(model.loss_weight >= 0, "model.loss_weight", model.loss_weight, "0 (balanced) or more")
    require(
        model.width % model.heads == 0,
        "model.heads",
        model.heads,
        f"divisors of width={model.width}",
    )
    require(
        model.window == 0 or (model.window >= 3 and model.window % 2 == 1),
        "model.window",
        model.window,
        "0 (all steps), or odd and 3 or more",
    )
    require(
        len(model.ranges) == 2 * (model.branch + 1),
        "model.ranges",
        model.ranges,
        f"low and high of each of the {model.branch + 1} levels",
    )

"""The action recogniser: one or two X3D backbones, optional pose attention, a head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import attention, heads, x3d
from jaxact.models.specs import X3DSpec

STREAMS = ("rgb", "pose", "rgb+pose")


def check_streams(streams: str, both_for: str = "") -> None:
    """Raises UserError for an unknown stream, or where `both_for` needs the two of them."""
    if streams not in STREAMS:
        raise UserError(f"streams {streams!r}: choose one of {', '.join(STREAMS)}")
    if both_for and streams != "rgb+pose":
        raise UserError(f"{both_for} needs streams 'rgb+pose', not {streams!r}")


def clips_of(streams: str, rgb: jax.Array | None, pose: jax.Array | None) -> dict[str, jax.Array]:
    """The clips of the streams in use, by name. Raises: UserError for one that is missing."""
    clips = {}
    for name, clip in (("rgb", rgb), ("pose", pose)):
        if name in streams.split("+"):
            if clip is None:
                raise UserError(f"streams {streams!r}: the {name} input is missing")
            clips[name] = clip
    return clips


class Recognizer(nn.Module):
    """Logits from RGB clips, pose heatmaps, or both.

    rgb: f32[b, t, h, w, 3]; pose: f32[b, t', h', w', j]; the one a single-stream net does not use
    is None. Returns the head's dict: f32[b, k] logits "rgb", "pose" and, with coarse_classes,
    "rgb_coarse", "pose_coarse"; see `heads.Head` for the prototype terms. With `attention` the RGB
    features are scaled by 1 + A, A seen by the pose stream (sown as intermediates/attention_map).

    Sources: EPAM-Net (arXiv 2408.05421), RGBPoseX3DRecognizer of 9527haoyunlai/PCANetwork.
    Raises UserError for an unknown stream, a missing input, attention without both streams.
    """

    classes: int
    streams: str = "rgb+pose"
    rgb: X3DSpec = x3d.X_SHIFT_RGB
    pose: X3DSpec = x3d.X_SHIFT_POSE
    use_attention: bool = False
    head_kind: str = "linear"
    coarse_classes: int = 0
    dropout: tuple[float, float] = (0.5, 0.5)  # rgb, pose
    pool: str = "mean"
    window: tuple[int, int, int] = (0, 0, 0)  # t, h, w
    prototypes: heads.Prototypes | None = None
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"  # of the depthwise filters
    remat: bool = False
    head_deviation: float = 0.01  # of the classifiers' first weights

    def __post_init__(self):
        check_streams(self.streams, "attention" if self.use_attention else "")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        rgb: jax.Array | None,
        pose: jax.Array | None,
        train: bool,
        labels: jax.Array | None = None,
        coarse_labels: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        features = {}
        for stream, clip in clips_of(self.streams, rgb, pose).items():
            spec = self.rgb if stream == "rgb" else self.pose
            features[stream] = x3d.X3DFeatures(
                spec, self.dtype, self.implementation, self.remat, name=stream
            )(clip, train)
        if self.use_attention:
            target = features["rgb"]
            sizes = [tuple(features[stream].shape[2:4]) for stream in ("rgb", "pose")]
            if sizes[0] != sizes[1]:
                raise UserError(
                    f"attention: the RGB map is {sizes[0]}, the pose map {sizes[1]} (h, w); "
                    "choose clip sizes that make them equal (224 and 56 px, 256 and 64 px)"
                )
            scale = attention.PoseAttention(self.dtype, name="attention")(
                features["pose"], target.shape[1], train
            )
            self.sow("intermediates", "attention_map", scale)
            features["rgb"] = target + target * scale
        return heads.Head(
            self.classes,
            self.coarse_classes,
            self.head_kind,
            self.dropout,
            self.pool,
            self.window,
            self.prototypes,
            self.dtype,
            self.head_deviation,
            name="head",
        )(features, train, labels, coarse_labels, mask)

"""Recognisers of dense 3-D convolutions: one network a stream, with or without exchange between.

RGBPoseConv3D runs an RGB and a pose path side by side and lets each see the other's map after two
of its stages. Without that exchange it is PoseC3D, SlowOnly, C3D, or two of them.

Source: PoseC3D (arXiv 2104.13586), MMAction2 `rgbposeconv3d.py`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import c3d, heads, layers, resnet3d
from jaxact.models.recognizer import check_streams, clips_of
from jaxact.models.specs import C3DSpec, ExchangeSpec, ResNet3DSpec


class Upsample(nn.Module):
    """Transposed convolution in time: f32[b, t, h, w, c] -> dtype[b, t * stride, h, w, features].

    As torch's with padding (kernel - 1) / 2 and an output padding that makes the length exactly
    t * stride. Every frame is multiplied by all taps at once (kernel[k, 0, 0, c, features], in
    torch's order of taps); output frame q * stride + r sums the products that fall on it.
    """

    features: int
    stride: int
    taps: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The original leaves torch's own initial values: uniform, 1 / sqrt(features * taps).
        draw = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        shape = (self.taps, 1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", draw, shape, jnp.float32).astype(self.dtype)
        flat = kernel[:, 0, 0].transpose(1, 0, 2).reshape(x.shape[-1], -1)
        products = (x.astype(self.dtype) @ flat).reshape(*x.shape[:-1], self.taps, self.features)
        frames, half = x.shape[1], self.taps // 2
        phases = []
        for r in range(self.stride):
            total = jnp.zeros((*x.shape[:-1], self.features), self.dtype)
            for k in range(self.taps):
                # Input frame i reaches output frame stride * i + k - half.
                if (k - half - r) % self.stride == 0:
                    ahead = -((k - half - r) // self.stride)
                    total += _moved(products[..., k, :], ahead, frames)
            phases.append(total)
        return jnp.stack(phases, 2).reshape(x.shape[0], -1, *x.shape[2:-1], self.features)


def _moved(x: jax.Array, ahead: int, frames: int) -> jax.Array:
    """y[:, q] = x[:, q + ahead], zeros outside."""
    before, after = max(0, -ahead), max(0, ahead)
    inside = x[:, min(after, frames) : max(frames - before, 0)]
    widths = [(0, 0), (min(before, frames), min(after, frames)), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(inside, widths)


class Lateral(nn.Module):
    """One exchange: each path's map with channels made of the other's map appended.

    rgb f32[b, t, h, w, c], pose f32[b, t * n, h, w, c'] -> the same with c + c / share and
    c' + c' / share channels. Pose to RGB is a strided convolution in time without BN, RGB to pose a
    transposed one with BN and ReLU. `dropped`: two bool[], RGB's and pose's; None = never.
    """

    exchange: ExchangeSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, rgb, pose, train: bool, dropped) -> tuple[jax.Array, jax.Array]:
        spec, ratio = self.exchange, pose.shape[1] // max(rgb.shape[1], 1)
        if rgb.shape[2:4] != pose.shape[2:4] or ratio * rgb.shape[1] != pose.shape[1] or ratio < 1:
            raise UserError(
                f"rgbpose: the RGB map is {rgb.shape[1:4]}, the pose map {pose.shape[1:4]} "
                "(t, h, w); choose clips whose h and w become equal (8 x 224 and 32 x 56 px) and "
                "pose frames a multiple of RGB frames"
            )
        source = jax.lax.stop_gradient(pose) if spec.rgb_detach else pose
        to_rgb = layers.Conv(
            rgb.shape[-1] // spec.share,
            (spec.kernel, 1, 1),
            (ratio, 1, 1),
            dtype=self.dtype,
            name="to_rgb",
        )(source)
        source = jax.lax.stop_gradient(rgb) if spec.pose_detach else rgb
        to_pose = Upsample(
            pose.shape[-1] // spec.share, ratio, spec.kernel, self.dtype, name="to_pose"
        )(source)
        to_pose = nn.relu(layers.batch_norm("to_pose_bn", train, self.dtype)(to_pose))
        if dropped is not None:
            to_rgb = jnp.where(dropped[0], 0, to_rgb)
            to_pose = jnp.where(dropped[1], 0, to_pose)
        rgb = jnp.concatenate([rgb, to_rgb], -1)
        return rgb, jnp.concatenate([pose, to_pose], -1)


Spec = ResNet3DSpec | C3DSpec


class ConvRecognizer(nn.Module):
    """Logits from RGB clips, pose heatmaps, or both; see `recognizer.Recognizer` for the call.

    With `exchange` (both streams, both of `ResNet3DSpec`) it is RGBPoseConv3D, else each stream
    answers alone.

    Raises UserError for an unknown stream, a missing input, an exchange that cannot be.
    """

    head: heads.Head
    streams: str = "rgb+pose"
    rgb: Spec = resnet3d.SLOWONLY_R50
    pose: Spec = resnet3d.POSE_ONLY
    exchange: ExchangeSpec | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def __post_init__(self):
        check_streams(self.streams, "" if self.exchange is None else "an exchange")
        if self.exchange is not None:
            for name, after in (
                ("rgb", self.exchange.rgb_after),
                ("pose", self.exchange.pose_after),
            ):
                spec = getattr(self, name)
                if not isinstance(spec, ResNet3DSpec):
                    raise UserError("an exchange needs two networks of resnet3d")
                if max(after, default=0) >= len(spec.blocks):
                    raise UserError(
                        f"exchange {name}_after {after!r}: the path has {len(spec.blocks)} stages, "
                        "one must be left after it"
                    )
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
        clips = clips_of(self.streams, rgb, pose)
        paths = {name: self._path(name) for name in clips}
        if self.exchange is None:
            features = {name: path(clips[name], train) for name, path in paths.items()}
        else:
            features = self._exchanged(self.exchange, paths, clips, train)
        return self.head(features, train, labels, coarse_labels, mask)

    def _path(self, stream: str) -> nn.Module:
        spec = getattr(self, stream)
        kind = resnet3d.ResNet3D if isinstance(spec, ResNet3DSpec) else c3d.C3D
        return kind(spec, self.dtype, self.remat, name=stream)

    def _exchanged(self, exchange: ExchangeSpec, paths, clips, train: bool) -> dict[str, jax.Array]:
        maps = {name: path.begin(clips[name], train) for name, path in paths.items()}
        done = {"rgb": 0, "pose": 0}
        dropped = self._dropped(exchange) if train else None
        ends = [*zip(exchange.rgb_after, exchange.pose_after, strict=True)]
        for number, pair in enumerate([*ends, tuple(len(p.spec.blocks) for p in paths.values())]):
            for name, stop in zip(paths, pair, strict=True):
                for index in range(done[name], stop):
                    maps[name] = paths[name].advance(index, maps[name], train)
                done[name] = stop
            if number < len(ends):
                maps["rgb"], maps["pose"] = Lateral(exchange, self.dtype, name=f"lateral{number}")(
                    maps["rgb"], maps["pose"], train, dropped
                )
        return maps

    def _dropped(self, exchange: ExchangeSpec) -> tuple | None:
        """One draw a path and forward pass, for all exchanges alike."""
        rates = (exchange.rgb_drop_path, exchange.pose_drop_path)
        if max(rates) == 0:
            return None
        keys = jax.random.split(self.make_rng("dropout"))
        return tuple(jax.random.bernoulli(key, rate) for key, rate in zip(keys, rates, strict=True))

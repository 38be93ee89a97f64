"""VideoMAE's vision transformer over windows of any length, 16 frames at a time.

A window f32[b, t, h, w, 3] is cut into m = t / 16 clips. Attention stays within a clip; adapters
(`models.adapters`) join them. Tokens are f32[b, m, n, c] with n = 8 * (h // patch) * (w // patch);
the sums along the blocks stay f32, matrix products run in `dtype`.
(arXiv 2203.12602; MCG-NJU/VideoMAE `modeling_finetune.py`, OpenTAD `vit_adapter.py`.)
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import adapters, layers, sequence
from jaxact.models.specs import ATTENTION, AdapterSpec, VisionTransformerSpec
from jaxact.ops import position, target

CLIP = 16  # frames
TUBE = 2  # frames of a token

norm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)
_dense = functools.partial(sequence.Dense, kernel_init=nn.initializers.normal(0.02))


class TubeEmbedding(nn.Module):
    """Tokens of tubes of 2 frames x patch x patch px, with positions: -> f32[b, m, n, c].

    A convolution whose stride is its kernel, written as a matrix product. What is left at the right
    and lower edge is not seen.
    """

    spec: VisionTransformerSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        b, t, h, w, channels = frames.shape
        p, spec = self.spec.patch, self.spec
        if t % CLIP or min(h, w) < p:
            raise UserError(
                f"backbone: a window of {t} frames of {w}x{h} px; needs a multiple of {CLIP} "
                f"frames and {p} px or more"
            )
        rows, columns = h // p, w // p
        tubes = frames[:, :, : rows * p, : columns * p].reshape(
            b, t // CLIP, CLIP // TUBE, TUBE, rows, p, columns, p, channels
        )
        tubes = tubes.transpose(0, 1, 2, 4, 6, 3, 5, 7, 8)  # b, m, t', h', w', 2, p, p, 3
        size = TUBE * p * p * channels
        tubes = tubes.reshape(b, t // CLIP, -1, size)
        tokens = sequence.Dense(
            spec.width,
            kernel_init=layers.torch_uniform,
            bias_init=layers.torch_bias(size),
            dtype=self.dtype,
            name="projection",
        )(tubes)
        native = spec.native // p
        table = position.clip_table(CLIP // TUBE, native, (rows, columns), spec.width)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return tokens.astype(wide) + jnp.asarray(table, wide)


class Attention(nn.Module):
    """Multi-head self-attention over f[b, n, c]; keys have no bias."""

    heads: int
    implementation: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, width = x.shape
        q_bias = self.param("q_bias", nn.initializers.zeros, (width,), jnp.float32)
        v_bias = self.param("v_bias", nn.initializers.zeros, (width,), jnp.float32)
        bias = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
        qkv = _dense(3 * width, use_bias=False, dtype=self.dtype, name="qkv")(x)
        q, k, v = (
            part.reshape(b, n, self.heads, width // self.heads)
            for part in jnp.split(sequence.added(qkv, bias), 3, axis=-1)
        )
        # cuDNN's fused kernel never holds the n x n scores; it takes 16-bit numbers only.
        fused = self.implementation == "cudnn" or (
            self.implementation == "auto"
            and target.platform() == "gpu"
            and q.dtype in (jnp.bfloat16, jnp.float16)
        )
        y = jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if fused else "xla")
        return _dense(width, dtype=self.dtype, name="proj")(y.reshape(b, n, width))


class Mlp(nn.Module):
    """Two layers with an exact GELU between."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = jax.nn.gelu(_dense(self.hidden, dtype=self.dtype, name="fc1")(x), approximate=False)
        return _dense(width, dtype=self.dtype, name="fc2")(x)


class Block(nn.Module):
    """A pre-norm transformer block over the tokens of each clip: f32[b, m, n, c].

    `keep` f32[2, b, m] scales the two branches of each clip (stochastic depth), or is None.
    """

    spec: VisionTransformerSpec
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None) -> jax.Array:
        b, m, n, width = x.shape
        x = x.reshape(b * m, n, width)
        y = norm(dtype=self.dtype, name="norm1")(x)
        y = Attention(self.spec.heads, self.attention, self.dtype, name="attn")(y)
        x = x + _kept(y.astype(x.dtype), keep, 0)
        y = norm(dtype=self.dtype, name="norm2")(x)
        y = Mlp(self.spec.hidden, self.dtype, name="mlp")(y)
        x = x + _kept(y.astype(x.dtype), keep, 1)
        return x.reshape(b, m, n, width)


def _kept(y: jax.Array, keep: jax.Array | None, branch: int) -> jax.Array:
    """A branch f[b * m, n, c] times the factor of each clip, keep[branch] f32[b, m]."""
    return y if keep is None else y * keep[branch].reshape(-1, 1, 1).astype(y.dtype)


class VideoMAE(nn.Module):
    """The backbone: frames f32[b, t, h, w, 3], normalised -> feature map f32[b, t/2, h', w', c].

    The map is that of the last block's raw tokens; `fc_norm` exists for the classifier
    (`VideoMAEClassifier`) and so that a checkpoint has a place for each of its tensors.

    adaptation: None = the plain network with all its gradients.
    drop_path: stochastic depth of the last block, linear from 0 in the first, drawn for each clip.
    remat: recompute each block in the backward pass.
    clips_at_once: clips of each video in memory at a time within a block; 0 = all.
    attention: auto (cuDNN's fused kernel on a GPU with 16-bit numbers, else XLA) | xla | cudnn.
    """

    spec: VisionTransformerSpec = VisionTransformerSpec()
    adaptation: AdapterSpec | None = None
    drop_path: float = 0.0
    remat: bool = False
    clips_at_once: int = 0
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        if self.attention not in ATTENTION:
            raise UserError(
                f"backbone attention {self.attention!r}: choose one of {', '.join(ATTENTION)}"
            )
        if self.mode in ("adapter", "side") and self.first >= self.spec.depth:
            raise UserError(
                f"adapters from block {self.first} on: the backbone has blocks 0 to "
                f"{self.spec.depth - 1}"
            )
        super().__post_init__()

    @property
    def mode(self) -> str:
        """adapter | frozen | full | side."""
        return self.adaptation.mode if self.adaptation else "full"

    @property
    def first(self) -> int:
        """The first block with an adapter."""
        return self.adaptation.first if self.adaptation else 0

    def setup(self):
        """Names the parts: embed, block0, block1, ..., adapter0, ... or ladder0, ..., fc_norm."""
        self.embed = TubeEmbedding(self.spec, self.dtype)
        for index in range(self.spec.depth):
            setattr(self, f"block{index}", Block(self.spec, self.attention, self.dtype))
            if self.adaptation and self._adapter_name(index):
                adapter = adapters.TemporalAdapter(self.adaptation.ratio, self.dtype)
                setattr(self, self._adapter_name(index), adapter)
        self.fc_norm = norm(dtype=self.dtype)

    def __call__(self, frames: jax.Array, train: bool = False) -> jax.Array:
        x = self.embed(frames)
        side: Any = 0.0
        for index in range(self.spec.depth):
            x = self._layer(index, x, self._keep(index, x.shape[:2], train))
            if self.mode == "side" and index >= self.first:
                ladder = functools.partial(VideoMAE._adapt, name=self._adapter_name(index))
                side = side + self._checkpoint(ladder)(self, jax.lax.stop_gradient(x))
            self.sow("intermediates", f"tokens{index}", x)
        if self.mode in ("frozen", "side"):
            x = jax.lax.stop_gradient(x)
        x = x + side
        if self.is_initializing():
            self.fc_norm(x)
        b, t, h, w, _ = frames.shape
        p = self.spec.patch
        return x.reshape(b, t // TUBE, h // p, w // p, self.spec.width)

    def normed(self, x: jax.Array) -> jax.Array:
        """`fc_norm` of f32[..., c]."""
        return self.fc_norm(x)

    def _layer(self, index: int, x: jax.Array, keep: jax.Array | None) -> jax.Array:
        """Block `index`, then its adapter if it has one: f32[b, m, n, c] -> the same.

        With `remat` the backward pass stores the layer's input and computes the rest again. Nothing
        up to the first adapter has a gradient, so nothing of those blocks is stored anyway.
        """
        adapter = self._adapter_name(index) if self.mode == "adapter" else ""
        has_gradient = self.mode == "full" or (self.mode == "adapter" and index > self.first)
        groups = 1 if self.is_initializing() else self._groups(x.shape[1])

        def block(mdl: Any, x: jax.Array, keep: jax.Array | None) -> jax.Array:
            return getattr(mdl, f"block{index}")(x, keep)

        def adapt(mdl: Any, x: jax.Array) -> jax.Array:
            return x + mdl._adapt(x, adapter)

        def both(mdl: Any, x: jax.Array, keep: jax.Array | None) -> jax.Array:
            return adapt(mdl, block(mdl, x, keep))

        if adapter and has_gradient and groups == 1:
            return self._checkpoint(both)(self, x, keep)
        # Each group is its own checkpoint: one around the scan would store all of them.
        run = self._checkpoint(block) if has_gradient else block
        x = run(self, x, keep) if groups == 1 else self._in_groups(run, groups, x, keep)
        return self._checkpoint(adapt)(self, x) if adapter else x

    def _checkpoint(self, function: Callable) -> Callable:
        return nn.remat(function) if self.remat else function

    def _in_groups(
        self, block: Callable, groups: int, x: jax.Array, keep: jax.Array | None
    ) -> jax.Array:
        """`block` over groups of clips, one group in memory at a time."""

        def split(a: jax.Array, axis: int) -> jax.Array:
            """The groups of clips along `axis`, as the first axis."""
            shape = (*a.shape[:axis], groups, -1, *a.shape[axis + 1 :])
            return jnp.moveaxis(a.reshape(shape), axis, 0)

        def step(mdl: Any, carry: tuple, group: Any) -> tuple[tuple, jax.Array]:
            return carry, block(mdl, *group)

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        _, y = scan(self, (), (split(x, 1), None if keep is None else split(keep, 2)))
        return jnp.moveaxis(y, 0, 1).reshape(x.shape)

    def _groups(self, clips: int) -> int:
        """Into how many equal groups the clips of a video are split."""
        if not self.clips_at_once:
            return 1
        return next(
            g for g in range(1, clips + 1) if clips % g == 0 and clips // g <= self.clips_at_once
        )

    def _adapter_name(self, index: int) -> str:
        """Of a block: adapter0, ... or ladder0, ... (counted from the first one), "" = none."""
        if self.mode not in ("adapter", "side") or index < self.first:
            return ""
        return f"adapter{index}" if self.mode == "adapter" else f"ladder{index - self.first}"

    def _adapt(self, x: jax.Array, name: str) -> jax.Array:
        """The named adapter over the whole window: f32[b, m, n, c] -> the same."""
        b, m, n, width = x.shape
        frames = CLIP // TUBE
        y = getattr(self, name)(x.reshape(b, m * frames, n // frames, width))
        return y.reshape(x.shape).astype(x.dtype)

    def _keep(self, index: int, size: tuple[int, ...], train: bool) -> jax.Array | None:
        """Factors f32[2, b, m] of the block's branches, or None where all are one."""
        rate = self.drop_path * index / max(self.spec.depth - 1, 1)
        if not train or not rate:
            return None
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (2, *size))
        return kept / (1 - rate)


class VideoMAEClassifier(nn.Module):
    """Clip classification f32[b, k]: mean of the tokens, `fc_norm`, a linear layer."""

    classes: int
    spec: VisionTransformerSpec = VisionTransformerSpec()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool = False) -> jax.Array:
        backbone = VideoMAE(self.spec, dtype=self.dtype, name="backbone")
        pooled = backbone.normed(backbone(frames, train).mean((1, 2, 3)))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return nn.Dense(self.classes, dtype=wide, name="classifier")(pooled)

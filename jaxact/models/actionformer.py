"""ActionFormer: a pyramid of transformers over time, one head for all of its levels.

Features f[b, t, c] -> for each point of each level class logits and the distances to the two ends
of its segment. Masked (padded) steps are zero after each layer and are never attended to; but a
normalisation gives them its bias, which the filters of the last real steps see, as in the original.
The eps of normalisations differ: 1e-6 in convolution modules and the neck, 1e-5 in the transformer
blocks.
(arXiv 2202.07925; OpenTAD `actionformer_proj.py`, `actionformer_head.py`.)
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import layers, sequence
from jaxact.models.specs import ActionFormerSpec
from jaxact.ops import position

PRIOR = 0.01  # probability that a class starts with

_norm = functools.partial(nn.LayerNorm, use_fast_variance=False)
_dense = functools.partial(sequence.Dense, kernel_init=layers.torch_uniform)


class ConvNorm(nn.Module):
    """Convolution of 3 taps, LayerNorm, ReLU over f[b, t, c]; masked steps are zero."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = sequence.TemporalConv(self.features, dtype=self.dtype, name="conv")(x)
        x = _norm(epsilon=1e-6, dtype=self.dtype, name="norm")(_masked(x, mask))
        return _masked(nn.relu(x), mask)


class Attention(nn.Module):
    """Attention whose q, k, v each pass a depthwise convolution of 3 taps and a LayerNorm.

    With stride 2 all three have half the length: f[b, t, c] -> f[b, t / stride, c].
    """

    heads: int
    stride: int = 1
    window: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        width, mask = x.shape[-1], mask[:, :: self.stride]
        projected = []
        for name in ("query", "key", "value"):
            y = sequence.TemporalDepthwise(self.stride, dtype=self.dtype, name=f"{name}_conv")(x)
            y = _norm(epsilon=1e-5, dtype=self.dtype, name=f"{name}_norm")(_masked(y, mask))
            projected.append(_dense(width, dtype=self.dtype, name=name)(y))
        q, k, v = (y.reshape(*y.shape[:2], self.heads, width // self.heads) for y in projected)
        y = sequence.attend(q, k, v, mask, self.window).reshape(*mask.shape, width)
        return _masked(_dense(width, dtype=self.dtype, name="proj")(y), mask)


class Block(nn.Module):
    """A pre-norm transformer block f[b, t, c] -> f32[b, t / stride, c].

    Both branches are scaled for each channel, from 1e-4 on, and dropped whole with probability
    `drop_path` for each example; the shortcut of a stride is a max pool. Sums stay f32: in 16 bits
    so small a part of a branch would be rounded away.
    """

    heads: int
    stride: int = 1
    window: int = 0
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        norm = functools.partial(_norm, epsilon=1e-5, dtype=self.dtype)
        attend = Attention(self.heads, self.stride, self.window, self.dtype, name="attn")
        y = attend(norm(name="ln1")(x), mask)
        mask = mask[:, :: self.stride]
        shortcut = sequence.pooled(x, self.stride) if self.stride > 1 else x
        x = _masked(shortcut, mask) + self._branch("attn_scale", y, train)
        y = _dense(4 * width, dtype=self.dtype, name="fc1")(norm(name="ln2")(x))
        y = _dense(width, dtype=self.dtype, name="fc2")(jax.nn.gelu(y, approximate=False))
        return x + self._branch("mlp_scale", _masked(y, mask), train)

    def _branch(self, name: str, y: jax.Array, train: bool) -> jax.Array:
        scale = self.param(name, nn.initializers.constant(1e-4), (y.shape[-1],), jnp.float32)
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return drop(y.astype(wide) * scale.astype(wide))


class Projection(nn.Module):
    """The pyramid: f[b, t, c], mask bool[b, t] -> one (f[b, t / 2**l, width], mask) a level l.

    The input itself is not masked: as in the original, the last real step sees the feature of the
    first padded one, which a backbone computes from repeated frames.
    Raises: UserError if the coarsest level does not divide t.
    """

    spec: ActionFormerSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, train: bool
    ) -> list[tuple[jax.Array, jax.Array]]:
        spec, length = self.spec, x.shape[1]
        if length % 2**spec.branch:
            raise UserError(
                f"detector: a window of {length} steps cannot be halved {spec.branch} times; "
                f"allowed: multiples of {2**spec.branch}"
            )
        # One draw for all steps of a channel.
        drop = nn.Dropout(spec.input_dropout, broadcast_dims=(1,), deterministic=not train)
        x = drop(x.astype(self.dtype))
        for index in range(spec.embed):
            x = ConvNorm(spec.width, self.dtype, name=f"embed{index}")(x, mask)
        if spec.positions:
            x = _masked(x + self._table(length, train), mask)
        block = functools.partial(
            Block, spec.heads, window=spec.window, drop_path=spec.drop_path, dtype=self.dtype
        )
        for index in range(spec.stem):
            x = block(name=f"stem{index}")(x, mask, train)
        levels = [(x, mask)]
        for index in range(spec.branch):
            x, mask = block(stride=2, name=f"branch{index}")(x, mask, train), mask[:, ::2]
            levels.append((x, mask))
        return levels

    def _table(self, length: int, train: bool) -> jax.Array:
        """Absolute positions f[t, c], stretched where an evaluated window exceeds the table."""
        count, width = self.spec.positions, self.spec.width
        if length > count and train:
            raise UserError(
                f"detector: a training window of {length} steps; the position table has {count}"
            )
        wide = jnp.promote_types(self.dtype, jnp.float32)
        table = jnp.asarray(position.sincos(count, width), wide) / math.sqrt(width)
        return position.resample(table[None], length)[0] if length > count else table[:length]


class Neck(nn.Module):
    """A LayerNorm of its own for each level."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, levels: list[tuple[jax.Array, jax.Array]]
    ) -> list[tuple[jax.Array, jax.Array]]:
        return [
            (_norm(epsilon=1e-6, dtype=self.dtype, name=f"norm{index}")(x), mask)
            for index, (x, mask) in enumerate(levels)
        ]


class Head(nn.Module):
    """Logits f32[b, n, k] and distances f32[b, n, 2] >= 0, in strides, of all levels' points.

    Two towers shared by all levels; only the scale of the distances is each level's own.
    """

    spec: ActionFormerSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
        spec, wide = self.spec, jnp.promote_types(self.dtype, jnp.float32)
        bias = -math.log((1 - PRIOR) / PRIOR)
        conv = functools.partial(sequence.TemporalConv, use_bias=True, dtype=wide)
        towers = {
            kind: [
                ConvNorm(spec.width, self.dtype, name=f"{kind}_tower{i}") for i in range(spec.tower)
            ]
            for kind in ("cls", "reg")
        }
        ends = {
            "cls": conv(spec.classes, bias_init=nn.initializers.constant(bias), name="cls"),
            "reg": conv(2, bias_init=layers.torch_bias(3 * spec.width), name="reg"),
        }
        logits, distances = [], []
        for level, (x, mask) in enumerate(levels):
            outputs = {}
            for kind, tower in towers.items():
                y = x
                for layer in tower:
                    y = layer(y, mask)
                outputs[kind] = ends[kind](y)
            scale = self.param(f"scale{level}", nn.initializers.ones, (), jnp.float32)
            logits.append(outputs["cls"])
            distances.append(nn.relu(outputs["reg"] * scale.astype(wide)))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(distances, axis=1)


def _masked(x: jax.Array, mask: jax.Array) -> jax.Array:
    """f[b, t, c] with zeros where mask bool[b, t] is False."""
    return jnp.where(mask[..., None], x, 0)

"""Temporal adapters that let a frozen clip network see a whole video (AdaTAD, arXiv 2311.17241).

A video goes through the network clip by clip; only an adapter's convolution over time joins them.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import Group, UserError
from jaxact.models import sequence
from jaxact.models.specs import ADAPTER_MODES


class TemporalAdapter(nn.Module):
    """gamma * up(u + mix(u)) with u = gelu(down(x)): f[b, t, s, c] -> f32, the same shape.

    `mix` runs along t, each place s of the frame by itself: a depthwise convolution of 3 taps, then
    a 1x1 convolution. `up` starts at zero and gamma at one, so it adds nothing at first. The whole
    has 2 c h + 5 h + h h + c + 1 parameters for a hidden width of h = floor(ratio c).
    """

    ratio: float = 0.25
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, hidden = x.shape[-1], int(x.shape[-1] * self.ratio)
        dense = functools.partial(sequence.Dense, dtype=self.dtype)
        gamma = self.param("gamma", nn.initializers.ones, (1,), jnp.float32)
        down = dense(hidden, kernel_init=nn.initializers.normal(0.02), name="down")
        u = jax.nn.gelu(down(x), approximate=False)
        v = sequence.TemporalDepthwise(
            kernel_init=nn.initializers.normal((2 / 3) ** 0.5),
            use_bias=True,
            dtype=self.dtype,
            name="depthwise",
        )(u)
        mix = dense(hidden, kernel_init=nn.initializers.normal((2 / hidden) ** 0.5), name="mix")
        y = dense(width, kernel_init=nn.initializers.zeros, name="up")(u + mix(v))
        # Wide, as its gradient is one sum over all of it.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return gamma.astype(wide) * y.astype(wide)


# Biases, scales of normalisation, of levels and of residual branches: no weight decay.
_PLAIN = r"(^|/)(bias|scale\d*|\w+_scale)$"
_ADAPTERS = r"^backbone/(adapter|ladder)\d+/"


def groups(mode: str, backbone_lr: float = 1.0, weight_decay: float = 0.05) -> tuple[Group, ...]:
    """Optimiser groups of a detector: ("" | adapter | frozen | full | side) -> in matching order.

    "" is a detector on features, without a backbone. `backbone_lr` is the factor of what learns in
    the backbone on the detector's learning rate: for THUMOS-14 2 for the adapters of ViT-S, 1 for
    those of the larger ones, 0.1 for `full`. Every tensor there has weight decay, biases too.

    Raises: UserError for another mode.
    """
    if mode not in ("", *ADAPTER_MODES):
        raise UserError(
            f"backbone mode {mode!r}: choose one of {', '.join(ADAPTER_MODES)}, or nothing"
        )
    found = []
    if mode in ("adapter", "side"):
        found.append(Group("adapter", _ADAPTERS, backbone_lr, weight_decay))
    if mode in ("adapter", "side", "frozen"):
        found.append(Group("frozen", r"^backbone/", frozen=True))
    if mode == "full":
        found.append(Group("backbone", r"^backbone/", backbone_lr, weight_decay))
    return (
        *found,
        Group("plain", _PLAIN, weight_decay=0.0),
        Group("detector", ".*", weight_decay=weight_decay),
    )

"""Mixup and CutMix under jit, one draw shared by all streams of a batch.

    mix = draw(key, batch=b, size=(56, 56), mixup_alpha=0.2, mixup_prob=0.5)
    rgb, pose = apply(mix, rgb), apply(mix, pose)
    soft = targets(mix, losses.onehot(labels, classes))

One lambda, one permutation and one box serve a whole batch and every stream of it: blending RGB
with one partner and pose with another would leave no label that is true of both. Alphas and
probabilities may be traced, so a staged schedule changes them without recompiling; alpha 0 is off.

An example that could not be read (masked out) may be the partner of one that could: give `targets`
a row of zeros for it (label -1), or the other example is taught the label that stands in its place.

Where a batch is split over devices, partners from the whole of it make every device fetch all
examples. `draw(..., group=g)` takes them from g consecutive positions instead: devices that hold
whole groups fetch nothing. Who is mixed with whom depends on positions, never on the devices.

Sources: Zhang et al., ICLR 2018 (mixup); Yun et al., ICCV 2019 (CutMix).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxact.config import require

Scalar = jax.Array | float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mix:
    """How every example is mixed with its partner.

    lam: f32[], share of the own label; order: i32[b], the partner of each example; cut: bool[],
    whether a box is pasted (else pixels are blended); box: f32[4], top, left, bottom, right of the
    box as shares of height and width, so that streams of other sizes are cut at the same place.
    group: static; above 0, `order` stays within each `group` consecutive positions.
    """

    lam: jax.Array
    order: jax.Array
    cut: jax.Array
    box: jax.Array
    group: int = dataclasses.field(default=0, metadata={"static": True})


def check_group(group: int, batch: int, field: str) -> None:
    """Raises UserError, naming the config's field, for a group that does not divide a batch."""
    allowed = f"0 (the whole batch) or a divisor of the {batch} examples mixed at a time, from 2 on"
    require(group == 0 or (group >= 2 and batch % group == 0), field, group, allowed)


def group_of(config: Any) -> int:
    """The group of a run's config: `mixing_group`; 1, everyone alone, where no stage mixes.

    Alphas are traced, so the program could not know, and would fetch partners to add none of them.
    """
    alphas = [alpha for row in config.stages for alpha in (*row.mixup, *row.cutmix)]
    return config.mixing_group if max(alphas, default=0) > 0 else 1


def blend(lam: Scalar, order: jax.Array, group: int = 0) -> Mix:
    """Mixup with a given lambda and partners i32[b]; lambda 1 leaves the batch as it is."""
    lam = jnp.asarray(lam, jnp.float32)
    return Mix(lam, order, jnp.zeros((), bool), jnp.zeros(4, jnp.float32), group)


def paste(edges: jax.Array, order: jax.Array, size: tuple[int, int], group: int = 0) -> Mix:
    """CutMix of a given box: edges i32[4] (top, left, bottom, right) px of a frame of `size` h, w.

    lambda is the share of the frame that stays, from the clipped box.
    """
    height, width = size
    whole = jnp.array([height, width, height, width], jnp.float32)
    top, left, bottom, right = edges
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    return Mix(lam.astype(jnp.float32), order, jnp.ones((), bool), edges / whole, group)


def edges(lam: Scalar, centre: jax.Array, size: tuple[int, int], odd: bool = False) -> jax.Array:
    """The box of CutMix: sides int(side * sqrt(1 - lam)) around centre i32[2] (y, x), clipped.

    Returns i32[4]: top, left, bottom, right in px of `size`. The half side is floored, so an odd
    side loses a pixel (MMAction2 and the crop guide); `odd` keeps it (timm).
    """
    limit = jnp.array(size)
    share = jnp.sqrt(1 - jnp.asarray(lam, jnp.float32))
    # lam is rounded to float32: without the margin a side of exactly n px could come out as n - 1.
    side = jnp.floor(limit * share + 1e-4).astype(jnp.int32)
    start = centre - side // 2
    end = start + (side if odd else side // 2 * 2)
    return jnp.concatenate([jnp.clip(start, 0, limit), jnp.clip(end, 0, limit)]).astype(jnp.int32)


def draw(
    key: jax.Array,
    batch: int,
    size: tuple[int, int],
    mixup_alpha: Scalar = 0.0,
    cutmix_alpha: Scalar = 0.0,
    mixup_prob: Scalar = 1.0,
    cutmix_prob: Scalar = 1.0,
    group: int = 0,
) -> Mix:
    """One draw for a batch: mixup with its probability, else CutMix with its own, else nothing.

    Args:
      key: a key for this step alone.
      batch: number of examples b; static.
      size: (h, w) px on which the box is drawn; static. Take the smallest stream: where the others
        are whole multiples of it, the pasted share is exactly lambda in all of them.
      mixup_alpha, cutmix_alpha: of Beta(alpha, alpha); 0 switches that kind off, and its share of
        the probability goes to what follows it.
      mixup_prob, cutmix_prob: the crop guide's .7 and .5 give 70 % mixup, 15 % CutMix.
        For timm's (prob p, switch_prob s): p (1 - s) and p s / (1 - p (1 - s)).
      group: a permutation within each `group` consecutive examples; 0 = of the whole batch; static.
        An example is its own partner with probability 1 / group. A batch smaller than that is
        one group.

    Raises: ValueError where `group` does not divide a larger batch.
    """
    group = min(group, batch)
    pick, fraction, place, shuffle = jax.random.split(key, 4)
    mixup_alpha, cutmix_alpha = jnp.asarray(mixup_alpha), jnp.asarray(cutmix_alpha)
    first, second = jax.random.uniform(pick, (2,))
    mixed = (mixup_alpha > 0) & (first < mixup_prob)
    cut = ~mixed & (cutmix_alpha > 0) & (second < cutmix_prob)
    alpha = jnp.where(cut, cutmix_alpha, mixup_alpha)
    alpha = jnp.where(mixed | cut, alpha, 1.0)  # Beta(0, 0) has no draws
    lam = jax.random.beta(fraction, alpha, alpha, dtype=jnp.float32)
    order = _partners(shuffle, batch, group)
    centre = jax.random.randint(place, (2,), 0, jnp.array(size))

    blended = blend(jnp.where(mixed, lam, 1.0), order, group)
    pasted = paste(edges(lam, centre, size), order, size, group)
    return jax.tree.map(lambda a, b: jnp.where(cut, a, b), pasted, blended)


def _partners(key: jax.Array, batch: int, group: int) -> jax.Array:
    """i32[b], a permutation: of everything, or within each group."""
    if not group:
        return jax.random.permutation(key, batch)
    if batch % group:
        raise ValueError(f"groups of {group} do not divide a batch of {batch}")
    keys = jax.random.split(key, batch // group)
    within = jax.vmap(lambda key: jax.random.permutation(key, group))(keys)
    return (within + jnp.arange(0, batch, group)[:, None]).reshape(batch)


def partners(mix: Mix, x: jax.Array) -> jax.Array:
    """The partner's row for every row of x[b, ...]."""
    if not mix.group:
        return x[mix.order]
    if mix.group == 1:
        return x
    # A gather with the group as batch dimension is split over devices as the groups are; one by
    # positions in the batch is not, whatever the positions.
    order = mix.order.reshape(-1, mix.group) % mix.group
    grouped = x.reshape(-1, mix.group, *x.shape[1:])
    return jax.vmap(lambda rows, places: rows[places])(grouped, order).reshape(x.shape)


def apply(mix: Mix, x: jax.Array) -> jax.Array:
    """Mixes f[b, ..., h, w, c] along b; computed in f32, returned in the dtype of x.

    A pixel belongs to the box if its centre does. Raises: TypeError for integer pixels, which
    would be rounded: mix after normalising.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"mixing needs float pixels, got {x.dtype}: normalise them first")
    height, width = x.shape[-3:-1]
    top, left, bottom, right = mix.box
    y = (jnp.arange(height, dtype=jnp.float32)[:, None, None] + 0.5) / height
    x_ = (jnp.arange(width, dtype=jnp.float32)[:, None] + 0.5) / width
    inside = (y >= top) & (y < bottom) & (x_ >= left) & (x_ < right)  # [h, w, 1]
    own = jnp.where(mix.cut, jnp.where(inside, 0.0, 1.0), mix.lam)
    mixed = own * x.astype(jnp.float32) + (1 - own) * partners(mix, x).astype(jnp.float32)
    return mixed.astype(x.dtype)


def targets(mix: Mix, onehot: jax.Array) -> jax.Array:
    """Soft labels of distributions f[b, k]: lam * own + (1 - lam) * the partner's, f32[b, k].

    Smoothing before or after makes no difference.
    """
    onehot = onehot.astype(jnp.float32)
    return mix.lam * onehot + (1 - mix.lam) * partners(mix, onehot)

"""Prototype contrast and the label-tree loss of PCAN (micro-action recognition, AAAI 2025).

Facts from 9527haoyunlai/PCANetwork at 71ae106 (`rgbpose_head.py`), without its defects: labels are
never altered, the coarse map is an argument, the tree's fine nodes start after its coarse nodes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zero, with zero gradient, where x is zero."""
    square = (x * x).sum(-1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return x / (norm + 1e-12)


def cosine(z: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Cosine of every vector f32[b, h] with every prototype f32[h, k]: f32[b, k]."""
    return unit(z) @ unit(prototypes.T).T


def contrast(
    z: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
    prototypes: jax.Array,
    hits: jax.Array,
    misses: Sequence[tuple[jax.Array, float]],
    mask: jax.Array,
    momentum: float = 0.9,
    penalty: float = 0.125,
    temperature: float = 0.125,
) -> tuple[jax.Array, jax.Array]:
    """Pulls vectors to their class's prototype, harder where the class is confused.

    z: f32[b, h]; logits: f32[b, k]; labels: i32[b]; prototypes: f32[h, k]; hits: bool[b], examples
    that move their prototype; misses: (bool[b], factor) for each kind of false negative; mask:
    bool[b]. Each prototype first moves by (1 - momentum) to the mean of its hits. Then, for each
    kind of miss and for false positives, cross-entropy of factor * cosine / temperature, the true
    class's cosine lowered by penalty * (1 - p) * (1 -+ cos(z, sum of the confused vectors)).
    Returns (f32[b] losses, f32[h, k] new prototypes); gradients flow through the batch means.
    """
    classes = prototypes.shape[1]
    real = mask.astype(z.dtype)
    own = jax.nn.one_hot(labels, classes, dtype=z.dtype)
    guess = jnp.argmax(logits, -1)

    members = own * (real * hits)[:, None]
    count = members.sum(0)
    mean = (z.T @ members) / jnp.maximum(count, 1)
    moved = momentum * prototypes + (1 - momentum) * mean
    prototypes = jnp.where(count > 0, moved, prototypes)

    direction = unit(z)
    base = cosine(z, prototypes)
    chance = jax.nn.softmax(logits, -1)
    doubt = penalty * (1 - (chance * own).sum(-1))

    def cross_entropy(members, sign, factor):
        """Loss when the vectors of `members`, summed by class, count as confused with it."""
        confused = unit(members.T @ z)  # k, h
        exists = (members.sum(0) > 0).astype(z.dtype)
        shift = (sign * (confused[labels] * direction).sum(-1) - 1) * doubt * exists[labels]
        scores = (base + own * shift[:, None]) / temperature * factor
        return -(jax.nn.log_softmax(scores, -1) * own).sum(-1)

    losses = cross_entropy(
        jax.nn.one_hot(guess, classes, dtype=z.dtype) * (real * (guess != labels))[:, None], -1, 1.0
    )
    for missed, factor in misses:
        losses = losses + cross_entropy(own * (real * missed)[:, None], 1, factor)
    return losses, prototypes


def two_levels(
    z: dict[str, jax.Array],
    logits: dict[str, jax.Array],
    labels: dict[str, jax.Array],
    prototypes: dict[str, jax.Array],
    mask: jax.Array,
    miss_factors: Sequence[float],
    **settings: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`contrast` of the "fine" and the "coarse" classes, summed: f32[b], and the new prototypes.

    Every dict has both keys. A coarse hit is a right coarse guess; a fine hit needs both guesses
    right, and a fine miss counts by `miss_factors`: only the fine guess wrong, only the coarse,
    both.
    """
    right = {level: jnp.argmax(logits[level], -1) == labels[level] for level in logits}
    both = right["coarse"] & right["fine"]
    kinds = (right["coarse"] & ~right["fine"], ~right["coarse"] & right["fine"])
    neither = ~(right["coarse"] | right["fine"])
    rules = {
        "coarse": (right["coarse"], [(~right["coarse"], 1.0)]),
        "fine": (both, list(zip((*kinds, neither), miss_factors, strict=True))),
    }
    losses, moved = jnp.zeros(mask.shape, z["fine"].dtype), {}
    for level, (hits, misses) in rules.items():
        loss, moved[level] = contrast(
            z[level],
            logits[level],
            labels[level],
            prototypes[level],
            hits,
            misses,
            mask,
            **settings,
        )
        losses = losses + loss
    return losses, moved


def diversity(prototypes: jax.Array) -> jax.Array:
    """Frobenius norm of the prototypes' cosine matrix; prototypes: f32[h, k]."""
    vectors = unit(prototypes.T)
    return jnp.sqrt(((vectors @ vectors.T) ** 2).sum())


def tree(
    coarse_logits: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
    coarse_map: Sequence[int],
    offset: int | None = None,
) -> jax.Array:
    """-log of the share of legal label-tree states that contain the true fine node: f32[b].

    A state is a coarse node, or a fine node with its parent `coarse_map[fine]`; its mass is the
    exponential of the summed sigmoids of its nodes. Node `labels + offset` is the true one; offset
    None = the number of coarse nodes, which is where the fine nodes start.
    """
    coarse, fine = coarse_logits.shape[-1], logits.shape[-1]
    states = np.eye(coarse + fine)
    states[coarse + np.arange(fine), np.asarray(coarse_map)] = 1
    scores = jax.nn.sigmoid(jnp.concatenate([coarse_logits, logits], -1))
    energy = scores @ jnp.asarray(states.T, scores.dtype)  # b, states
    holds = jnp.asarray(states.T > 0)[labels + (coarse if offset is None else offset)]
    total = jax.nn.logsumexp(energy, -1)
    return total - jax.nn.logsumexp(energy, -1, where=holds)

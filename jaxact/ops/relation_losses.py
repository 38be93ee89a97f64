"""Losses of the pair classifier: cross entropy, balance between the classes, soft accuracy.

With p = softmax(logits) and a_c the mean of p[i, c] over the examples i of class c:

    ce    class-weighted cross entropy, divided by the sum of the weights (or focal loss)
    mpca  "variance": unbiased variance of the a_c of the classes present + 1e-8
          "mean": 1 - the mean of those a_c, the soft form of the metric itself
    acc   1 - mean_i p[i, y_i]

Source: AsukaLmy/simplename `GeometricDete/geometric_stage2_classifier.py`, which adds
-mean p[i, y_i]: 0.05 less in the total, the same gradient. A class that is absent counts nowhere;
with fewer than two present the variance is 0. Examples masked out count nowhere.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxact.ops import losses

MODES = ("variance", "mean")
FLOOR = 1e-8  # added to the variance by the original


def soft_accuracy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(a f32[k], how many examples f32[k]) of logits f[b, k], labels i[b], mask bool[b]."""
    share = jax.nn.softmax(logits.astype(jnp.float32))
    member = losses.onehot(labels, logits.shape[-1]) * mask[:, None]
    count = member.sum(0)
    # where, not a product alone: what is masked out may hold inf or nan.
    own = jnp.where(member > 0, share, 0.0).sum(0)
    return own / jnp.maximum(count, 1.0), count


def class_balance(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, mode: str = "variance"
) -> jax.Array:
    """The MPCA term f32[] of a batch. Raises: ValueError for another mode."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: choose one of {', '.join(MODES)}")
    each, count = soft_accuracy(logits, labels, mask)
    present = count > 0
    classes = present.sum(dtype=jnp.float32)
    mean = jnp.where(present, each, 0.0).sum() / jnp.maximum(classes, 1.0)
    if mode == "mean":
        return jnp.where(classes > 0, 1 - mean, 0.0)
    square = jnp.where(present, (each - mean) ** 2, 0.0).sum()
    return jnp.where(classes > 1, square / jnp.maximum(classes - 1, 1.0), 0.0) + FLOOR


def miss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 - p of the label, f32[b]; 0 for an unknown label."""
    share = jax.nn.softmax(logits.astype(jnp.float32))
    member = losses.onehot(labels, logits.shape[-1])
    return (member * (1 - share)).sum(-1)


def weighted_entropy(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    gamma: float | None = None,
) -> jax.Array:
    """f32[b] whose mean over the mask is sum w_y l / sum w_y; focal loss with `gamma`, plain mean.

    weights: f32[k], one for each class (alpha of the focal loss).
    """
    if gamma is not None:
        return losses.focal(logits, labels, gamma, weights)
    each = losses.cross_entropy(logits, labels, weights=weights)
    weight = jnp.where(mask, losses.class_weight(labels, weights), 0.0)
    real = mask.sum(dtype=jnp.float32)
    return each * real / jnp.maximum(weight.sum(), 1e-12)


def terms(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    *,
    mpca: float = 0.1,
    acc: float = 0.05,
    mode: str = "variance",
    gamma: float | None = None,
) -> dict[str, Any]:
    """{"ce", "mpca", "acc"}: f32[b] each; the sum of their means over the mask is the loss.

    The MPCA term belongs to the batch as a whole; it stands at every example.
    """
    return {
        "ce": weighted_entropy(logits, labels, mask, weights, gamma),
        "mpca": jnp.broadcast_to(mpca * class_balance(logits, labels, mask, mode), labels.shape),
        "acc": acc * miss(logits, labels),
    }

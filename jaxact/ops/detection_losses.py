"""Losses of a detector over points: sigmoid focal, DIoU, their common normaliser.

In f32, or f64 where the logits are f64. (Focal: arXiv 1708.02002; DIoU: arXiv 1911.08287; as
OpenTAD's ActionFormer head uses them.)
"""

import jax
import jax.numpy as jnp

from jaxact.ops import segments


def smooth(targets: jax.Array, amount: jax.Array | float) -> jax.Array:
    """Label smoothing of independent classes f[..., k]: y (1 - e) + e / (k + 1)."""
    return targets * (1 - amount) + amount / (targets.shape[-1] + 1)


def focal(
    logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """Sigmoid focal loss of each element: logits f[...], targets f[...] in [0, 1] -> f32[...].

    alpha weighs positives against negatives (below 0 = off), gamma lowers the loss of points that
    are already right.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    p = jax.nn.sigmoid(logits)
    entropy = jax.nn.softplus(logits) - targets * logits
    right = p * targets + (1 - p) * (1 - targets)
    loss = entropy * (1 - right) ** gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss


def diou(predicted: jax.Array, wanted: jax.Array) -> jax.Array:
    """1 - DIoU of segments f[..., 2], pair by pair: f32[...].

    DIoU is the IoU less the squared distance of the centres over the squared length that encloses
    both.
    """
    predicted = predicted.astype(jnp.promote_types(predicted.dtype, jnp.float32))
    start = jnp.minimum(predicted[..., 0], wanted[..., 0])
    end = jnp.maximum(predicted[..., 1], wanted[..., 1])
    distance = 0.5 * (predicted.sum(-1) - wanted.sum(-1))
    enclosing = jnp.maximum((end - start) ** 2, segments.SMALLEST)
    return 1 - segments.iou(predicted, wanted) + distance**2 / enclosing


def positives(targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Points with a class: targets f[b, n, k], mask bool[b, n] -> bool[b, n]."""
    return mask & (targets.sum(-1) > 0)


def moved(mean: jax.Array, count: jax.Array, momentum: float = 0.9) -> jax.Array:
    """The running number of positives m after a step with n: momentum m + (1 - momentum) max(n, 1).

    It is moved before it is used; evaluation uses max(n, 1) itself.
    """
    return momentum * mean + (1 - momentum) * jnp.maximum(count, 1)


def detection(
    logits: jax.Array,
    offsets: jax.Array,
    points: jax.Array,
    targets: tuple[jax.Array, jax.Array],
    mask: jax.Array,
    normaliser: jax.Array,
    smoothing: jax.Array | float = 0.0,
    loss_weight: float = 1.0,
) -> dict[str, jax.Array]:
    """The two terms of each example: {"cls": f32[b], "reg": f32[b]}; the loss is their sum over b.

    Args:
      logits: f[b, n, k]; offsets: f[b, n, 2] in strides, not negative.
      points: f[n, 4] (see `segments.points`).
      targets: (classes f[b, n, k], distances f[b, n, 2]) of `segments.assign`.
      mask: bool[b, n], the points of real steps; all False for an example that is padding.
      normaliser: f[] both sums are divided by (see `moved`).
      smoothing: of the class targets (`smooth`).
      loss_weight: factor of "reg"; 0 or less = the ratio of the two terms, which makes them equal.
    """
    wanted, distances = targets
    chosen = positives(wanted, mask)
    loss = focal(logits, smooth(wanted, smoothing))
    cls = jnp.where(mask[..., None], loss, 0).sum((1, 2)) / normaliser
    # Masked before the loss too: distances of negatives are noise and may be anything.
    predicted = segments.decode(points, jnp.where(chosen[..., None], offsets, 0))
    goal = segments.decode(points, jnp.where(chosen[..., None], distances, 0))
    reg = jnp.where(chosen, diou(predicted, goal), 0).sum(1) / normaliser
    if loss_weight > 0:
        return {"cls": cls, "reg": loss_weight * reg}
    balance = jax.lax.stop_gradient(cls.sum() / jnp.maximum(reg.sum(), 0.01))
    return {"cls": cls, "reg": balance * reg}

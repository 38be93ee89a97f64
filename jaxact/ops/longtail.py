"""Losses for long-tailed classes, as tables: column c is what an example costs if its label is c.

    table = smoothed(adjusted(logits, prior, tau), smoothing, weights)  # f32[b, k]
    each = reduce(table, share, weights, mask)                          # f32[b]

A mixed label is a distribution over the columns (`ops.mixing.targets`), so
lam L(y_a) + (1 - lam) L(y_b) needs no second pass, and tail classes can have another loss than the
rest. Every scalar (smoothing, tau, gate) may be traced: a staged schedule recompiles nothing.

Sources: Ren et al., NeurIPS 2020 (balanced softmax); Menon et al., ICLR 2021 (logit adjustment);
Cao et al., NeurIPS 2019 (LDAM, deferred re-weighting).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.ops import losses

Scalar = jax.Array | float
Row = jax.Array | np.ndarray  # a number for each class
CENTER_NORMS = ("none", "size", "unit")
_LEARNT = 0.01  # nats: below this mean the weight of a loss no longer grows


def log_prior(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Log of the share of each class among training examples i[k] -> f32[k].

    A class without examples is taken to have one: log 0 would remove it from every softmax.
    """
    examples = np.maximum(np.asarray(counts, np.float64), 1.0)
    return np.log(examples / examples.sum()).astype(np.float32)


def margins(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """LDAM's margins n^(-1/4) of training examples i[k], the rarest class having 1: f32[k]."""
    margin = np.maximum(np.asarray(counts, np.float64), 1.0) ** -0.25
    return (margin / margin.max()).astype(np.float32)


def adjusted(logits: jax.Array, prior: Row, tau: Scalar) -> jax.Array:
    """Logits f[b, k] + tau log prior f[k], in f32: in the loss tau 1 is balanced softmax.

    At evaluation take -tau: what is left favours no class for being frequent.
    """
    return logits.astype(jnp.float32) + tau * jnp.asarray(prior)


def smoothed(logits: jax.Array, smoothing: Scalar = 0.0, weights: Row | None = None) -> jax.Array:
    """Cross entropy of every label: (1 - e) w_c nll_c + (e / k) sum_j w_j nll_j, f32[b, k].

    `torch.nn.functional.cross_entropy(weight=w, label_smoothing=e, reduction="none")`.
    """
    return _smoothing(_nll(logits, weights), logits, smoothing, weights)


def focal(logits: jax.Array, gamma: Scalar, weights: Row | None = None) -> jax.Array:
    """Focal loss of every label, w_c (1 - p_c)^gamma nll_c: f32[b, k]. No smoothing."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    # The floor keeps the gradient finite for gamma < 1 where p is 1 (as in `losses.focal`).
    miss = jnp.maximum(-jnp.expm1(logp), 1e-12)
    return miss**gamma * _nll(logits, weights)


def ldam(
    logits: jax.Array, margin: Row, smoothing: Scalar = 0.0, weights: Row | None = None
) -> jax.Array:
    """Cross entropy of every label c after its own logit has lost `margin` f[k]: f32[b, k].

    Margins are in units of the logits: for LDAM on a cosine head of scale s they are
    s * largest * `margins(counts)`. The smoothed part, if any, has no margins.
    """
    wide = logits.astype(jnp.float32)
    # softplus(log sum of the others - own): a margin of 15 decides where p has long rounded to 1.
    own = jax.nn.softplus(_others(wide) - (wide - jnp.asarray(margin)))
    own = own if weights is None else own * jnp.asarray(weights)
    return _smoothing(own, logits, smoothing, weights)


def reduce(
    table: jax.Array, share: jax.Array, weights: Row | None = None, mask: Row | None = None
) -> jax.Array:
    """Costs f[b, k] under label distributions f[b, k] -> f32[b], whose mean is PyTorch's.

    PyTorch's weighted mean is sum / (sum of w of the labels); here each example is scaled by
    n / (that sum), n being the examples that `mask` bool[b] leaves, so that their plain mean is it.
    """
    share, weights, count = _parts(table, share, weights, mask)
    return jnp.sum(share * table, -1) * (count / _positive(jnp.sum(share * weights)))


def sum_of_means(
    table: jax.Array,
    share: jax.Array,
    tail: Row,
    weights: Row | None = None,
    mask: Row | None = None,
) -> jax.Array:
    """As `reduce`, but the mean over tail labels (bool[k]) plus the mean over the others.

    The form of the crop guide: it weighs a tail example by (others / tail) and shifts the scale of
    the loss; `reduce` of `where(tail, focal, smoothed)` does neither.
    """
    share, weights, count = _parts(table, share, weights, mask)
    total = jnp.zeros(share.shape[:1], jnp.float32)
    for part in (jnp.asarray(tail), ~jnp.asarray(tail)):
        mine = share * part
        total += jnp.sum(mine * table, -1) * (count / _positive(jnp.sum(mine * weights)))
    return total


def center(
    features: jax.Array, targets: jax.Array, centers: jax.Array, norm: str = "size"
) -> jax.Array:
    """Center loss f32[b] of features f[b, d], classes i[b] and centres f[k, d].

    norm "none" is the squared distance (hundreds on raw features), "size" divides it by d, "unit"
    takes both sides at unit length. Raises: ValueError for another norm.
    """
    if norm not in CENTER_NORMS:
        raise ValueError(f"center norm {norm!r}: one of {', '.join(CENTER_NORMS)}")
    if norm == "unit":
        features = losses.unit(features.astype(jnp.float32), -1)
        centers = losses.unit(centers.astype(jnp.float32), -1)
    distance = losses.center(features, targets, centers)
    return distance / features.shape[-1] if norm == "size" else distance


def mean_loss(logits: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean cross entropy f32[], mass f32[]) of logits f[b, k] under distributions f[b, k].

    Rows of zeros, and what a mixed row lacks to 1, are not known and do not count: they have no
    mass. Without any mass the mean is 0.
    """
    share = losses.onehot(share, logits.shape[-1])
    mass = jnp.sum(share)
    return jnp.sum(share * _nll(logits, None)) / _positive(mass), mass


def inverse_loss_weights(base: Sequence[float], means: jax.Array) -> jax.Array:
    """Weights f32[n] of n losses: `base` over their means f32[n], scaled to the sum of `base`.

    A mean of 0 has not been seen: that loss keeps its base, and the others share theirs. Means
    count as 0.01 at least, or a head that is learnt would take everything.
    """
    wanted, seen = jnp.asarray(base, jnp.float32), means > 0
    raw = jnp.where(seen, wanted / jnp.maximum(means, _LEARNT), 0.0)
    total = jnp.sum(jnp.where(seen, wanted, 0.0))
    return jnp.where(seen, raw * (total / _positive(jnp.sum(raw))), wanted)


def _nll(logits: jax.Array, weights: Row | None) -> jax.Array:
    nll = -jax.nn.log_softmax(logits.astype(jnp.float32))
    return nll if weights is None else nll * jnp.asarray(weights)


def _smoothing(
    own: jax.Array, logits: jax.Array, smoothing: Scalar, weights: Row | None
) -> jax.Array:
    return (1 - smoothing) * own + smoothing * _nll(logits, weights).mean(-1, keepdims=True)


def _others(logits: jax.Array) -> jax.Array:
    """For each class the log-sum-exp of all other logits: f32[b, k]."""
    below = jax.lax.cumlogsumexp(logits, axis=logits.ndim - 1)
    above = jax.lax.cumlogsumexp(logits, axis=logits.ndim - 1, reverse=True)
    none = jnp.full_like(logits[..., :1], -1e30)
    return jnp.logaddexp(
        jnp.concatenate([none, below[..., :-1]], -1), jnp.concatenate([above[..., 1:], none], -1)
    )


def _parts(
    table: jax.Array, share: jax.Array, weights: Row | None, mask: Row | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    share = losses.onehot(share, table.shape[-1])
    weights = jnp.ones(table.shape[-1]) if weights is None else jnp.asarray(weights)
    if mask is None:
        return share, weights, jnp.float32(len(share))
    return jnp.where(mask[:, None], share, 0.0), weights, jnp.sum(mask, dtype=jnp.float32)


def _positive(x: jax.Array) -> jax.Array:
    """x, or 1 where nothing was summed (its numerator is 0 too)."""
    return jnp.where(x > 0, x, 1.0)

"""Classification losses per example, in float32 whatever the dtype of the logits.

Targets are class numbers `i32[b]` or distributions `f32[b, k]` (mixup). A class number outside
0..k-1 (an unknown label, -1) contributes nothing. Leading dimensions are free: `b` may stand for
several. Means are left to the caller.
"""

import jax
import jax.numpy as jnp

Scalar = jax.Array | float


def onehot(targets: jax.Array, classes: int) -> jax.Array:
    """Class numbers i[b] as distributions f32[b, k]; distributions f[b, k] pass as float32."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return jax.nn.one_hot(targets, classes, dtype=jnp.float32)
    return targets.astype(jnp.float32)


def smooth(targets: jax.Array, smoothing: Scalar) -> jax.Array:
    """Label smoothing of distributions f32[b, k]: (1 - e) t + e / k. `smoothing` may be traced.

    A row of zeros (an unknown label) stays zero.
    """
    mass = jnp.sum(targets, axis=-1, keepdims=True)
    return (1 - smoothing) * targets + smoothing * mass / targets.shape[-1]


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    smoothing: Scalar = 0.0,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Softmax cross entropy: logits f[b, k], targets i[b] or f[b, k] -> f32[b].

    With class weights w f32[k] and smoothed targets t: -sum_c w_c t_c log p_c, which is
    `torch.nn.functional.cross_entropy(reduction="none")`. PyTorch's "mean" divides by the sum of
    w of the labels (`class_weight`), not by b; for distributions it divides by b even with weights.
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    share = smooth(onehot(targets, logits.shape[-1]), smoothing)
    if weights is not None:
        share = share * weights.astype(jnp.float32)
    return -jnp.sum(share * logp, axis=-1)


def class_weight(targets: jax.Array, weights: jax.Array) -> jax.Array:
    """The weight of each example: w of its label, or the mean of w under its distribution, f32[b].

    Under mixup this keeps lam * mean(L(y_a)) + (1 - lam) * mean(L(y_b)) equal to the mean of the
    soft-target loss, because both label sets of a batch have the same weights.
    """
    return jnp.sum(onehot(targets, weights.shape[-1]) * weights.astype(jnp.float32), axis=-1)


def focal(
    logits: jax.Array, targets: jax.Array, gamma: Scalar = 2.0, alpha: jax.Array | None = None
) -> jax.Array:
    """Softmax focal loss: -sum_c alpha_c t_c (1 - p_c)^gamma log p_c, f[b, k] -> f32[b].

    Lin et al., ICCV 2017, for one label among k. `alpha` f32[k] are class weights; the mean over
    examples is plain. gamma 0 is cross entropy; gamma may be traced.
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    # 1 - p without cancellation; the floor keeps the gradient finite for gamma < 1 where p is 1.
    miss = jnp.maximum(-jnp.expm1(logp), 1e-12)
    share = onehot(targets, logits.shape[-1])
    if alpha is not None:
        share = share * alpha.astype(jnp.float32)
    return -jnp.sum(share * miss**gamma * logp, axis=-1)


def cosine_logits(features: jax.Array, kernel: jax.Array, scale: Scalar = 30.0) -> jax.Array:
    """scale * cosine of features f[b, d] and the columns of kernel f[d, k] -> f32[b, k].

    Norms have a floor of 1e-12, as in `torch.nn.functional.normalize`.
    """
    features = unit(features.astype(jnp.float32), axis=-1)
    kernel = unit(kernel.astype(jnp.float32), axis=0)
    # Accelerators would round to bf16 here, and the scale multiplies what that loses.
    return scale * jnp.matmul(features, kernel, precision=jax.lax.Precision.HIGHEST)


def center(features: jax.Array, targets: jax.Array, centers: jax.Array) -> jax.Array:
    """Squared distance of features f[b, d] to the centre f[k, d] of their class i[b] -> f32[b].

    Wen et al., ECCV 2016, without the factor 1/2; summed over d.
    An unknown label costs nothing and moves no centre.
    """
    known = (targets >= 0) & (targets < centers.shape[0])
    own = centers.astype(jnp.float32)[jnp.where(known, targets, 0)]
    distance = jnp.sum((features.astype(jnp.float32) - own) ** 2, axis=-1)
    return jnp.where(known, distance, 0.0)


def unit(x: jax.Array, axis: int, eps: float = 1e-12) -> jax.Array:
    """x / max(|x|, eps) along `axis`, with a gradient that is finite at zero."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, eps**2))

"""Augmentation of the two crops of a pair, under jit: mirror, recolour, erase, swap.

The spatial features are the same for (A, B), (B, A) and the mirrored picture, so only crops change.
"""

import jax
import jax.numpy as jnp

from jaxact.tasks.relation.config import Augment

GREY = (0.299, 0.587, 0.114)
TRIES = (0.02, 0.33)  # share of the area that is erased
ASPECT = (0.3, 3.3)


def apply(options: Augment, key: jax.Array, crops: jax.Array) -> jax.Array:
    """Crops f32[b, 2, h, w, 3] of 0..255; the draws of each pair are its own."""
    keys = jax.random.split(key, (4, crops.shape[0]))
    if options.jitter:
        crops = jax.vmap(lambda k, x: _recoloured(k, x, options.jitter))(keys[0], crops)
    if options.erase:
        crops = jax.vmap(lambda k, x: _erased(k, x, options.erase))(keys[1], crops)
    for number, (chance, axis) in enumerate(((options.hflip, 3), (options.swap, 1))):
        if chance:
            turn = jax.vmap(lambda k, p=chance: jax.random.bernoulli(k, p))(keys[2 + number])
            crops = jnp.where(turn[:, None, None, None, None], jnp.flip(crops, axis), crops)
    return crops


def _recoloured(key: jax.Array, pair: jax.Array, strength: float) -> jax.Array:
    """f32[2, h, w, 3]: both crops change alike, because they are of one picture."""
    low, high = max(0.0, 1 - strength), 1 + strength
    light, contrast, colour = jax.random.uniform(key, (3,), minval=low, maxval=high)
    pair = jnp.clip(pair * light, 0, 255)
    mean = (pair @ jnp.asarray(GREY)).mean((1, 2), keepdims=True)[..., None]
    pair = jnp.clip(mean + (pair - mean) * contrast, 0, 255)
    grey = (pair @ jnp.asarray(GREY))[..., None]
    return jnp.clip(grey + (pair - grey) * colour, 0, 255)


def _erased(key: jax.Array, pair: jax.Array, chance: float) -> jax.Array:
    """f32[2, h, w, 3]: each crop loses a rectangle with this chance, filled with its mean."""

    def one(key: jax.Array, crop: jax.Array) -> jax.Array:
        height, width = crop.shape[:2]
        on, size, shape, corner = jax.random.split(key, 4)
        area = height * width * jax.random.uniform(size, minval=TRIES[0], maxval=TRIES[1])
        aspect = jnp.exp(
            jax.random.uniform(shape, minval=jnp.log(ASPECT[0]), maxval=jnp.log(ASPECT[1]))
        )
        tall = jnp.minimum(jnp.sqrt(area * aspect), height)
        wide = jnp.minimum(jnp.sqrt(area / aspect), width)
        top, left = jax.random.uniform(corner, (2,)) * jnp.stack([height - tall, width - wide])
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
        within = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        within &= jax.random.bernoulli(on, chance)
        return jnp.where(within[..., None], crop.mean((0, 1)), crop)

    return jax.vmap(one)(jax.random.split(key, 2), pair)

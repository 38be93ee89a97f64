"""Bytes of pictures and clips as a network takes them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp


def normalised(pixels: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """(pixels - mean) / std in f32, channels last: u8 or f32[..., c] -> f32[..., c].

    `mean` and `std` are in the units of the pixels (0..255).
    """
    return (pixels.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)

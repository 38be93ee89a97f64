"""Depthwise convolution: shifted multiply-adds against XLA's grouped convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.ops.depthwise import depthwise

CASES = [
    # kernel, strides, padding, (t, h, w)
    ((3, 3, 3), (1, 1, 1), None, (4, 5, 6)),
    ((3, 3, 3), (1, 2, 2), None, (4, 5, 6)),
    ((1, 3, 3), (1, 1, 1), None, (3, 4, 5)),
    ((1, 3, 3), (1, 2, 2), None, (3, 6, 7)),
    ((5, 1, 1), (1, 1, 1), None, (4, 3, 3)),
    ((3, 3, 3), (2, 3, 2), (0, 1, 1), (6, 8, 7)),
    ((1, 1, 1), (1, 2, 2), None, (2, 5, 6)),
    ((3, 5, 3), (2, 2, 2), (1, 2, 0), (5, 8, 9)),
]


@pytest.mark.parametrize(("taps", "strides", "padding", "sizes"), CASES)
def test_shifts_equal_the_convolution(taps, strides, padding, sizes):
    with jax.enable_x64(True):
        draw = np.random.RandomState(0).standard_normal
        x, kernel = jnp.asarray(draw((2, *sizes, 5))), jnp.asarray(draw((*taps, 1, 5)))
        runs = {}
        for name in ("conv", "shift"):

            def run(x, kernel, name=name):
                y, pull = jax.vjp(lambda x, k: depthwise(x, k, strides, padding, name), x, kernel)
                return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

            runs[name] = jax.jit(run)(x, kernel)
        for ours, theirs in zip(runs["shift"], runs["conv"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_padding_is_symmetric_where_same_padding_is_not():
    """Stride 2 on an even size: torch pads one zero before and one after, XLA's SAME only after."""
    x = jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4, 1)
    kernel = jnp.asarray([1.0, 10.0, 100.0]).reshape(1, 1, 3, 1, 1)
    for name in ("conv", "shift"):
        y = depthwise(x, kernel, (1, 1, 2), None, name)
        np.testing.assert_array_equal(y[0, 0, 0, :, 0], [10 * 1 + 100 * 2, 2 + 10 * 3 + 100 * 4])


def test_bfloat16_sums_in_float32():
    x = jax.random.normal(jax.random.key(0), (1, 3, 8, 8, 16)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 1, 16))
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    run = jax.jit(lambda x, k: depthwise(x, k, implementation="shift"))
    exact = run(x.astype(jnp.float32), rounded)
    y = run(x, kernel.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    gradients = jax.eval_shape(
        jax.grad(lambda x, k: depthwise(x, k).astype(jnp.float32).sum(), (0, 1)), x, kernel
    )
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]


def test_unknown_implementation():
    with pytest.raises(UserError, match="'fft': choose one of auto, conv, shift"):
        depthwise(jnp.zeros((1, 1, 3, 3, 1)), jnp.zeros((1, 3, 3, 1, 1)), implementation="fft")

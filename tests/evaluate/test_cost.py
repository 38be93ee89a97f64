"""Multiply-adds counted from jaxprs, through every kind of inner function."""

import jax
import jax.numpy as jnp
import pytest

from jaxact.evaluate import cost

X = jax.ShapeDtypeStruct((2, 8, 6), jnp.float32)
W = jax.ShapeDtypeStruct((6, 6), jnp.float32)
ONE = 2 * 8 * 6 * 6


def test_matrix_products():
    assert cost.macs(lambda x, w: x @ w, X, W) == ONE
    batched = jax.ShapeDtypeStruct((2, 6, 5), jnp.float32)
    assert cost.macs(lambda x, y: jnp.einsum("bik,bkj->bij", x, y), X, batched) == 2 * 8 * 6 * 5


@pytest.mark.parametrize("groups", [1, 3])
def test_convolutions(groups):
    x = jax.ShapeDtypeStruct((2, 9, 9, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 6 // groups, 12), jnp.float32)

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    assert cost.macs(convolve, x, kernel) == 2 * 5 * 5 * 12 * 9 * 6 // groups


def test_inner_functions():
    def product(x, w):
        return x @ w

    custom = jax.custom_vjp(product)
    custom.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))
    for wrapped in (jax.jit(product), jax.checkpoint(product), custom):
        assert cost.macs(wrapped, X, W) == ONE

    def looped(x, w):
        return jax.lax.scan(lambda x, _: (jax.jit(product)(x, w), None), x, None, length=7)[0]

    def chosen(x, w):
        return jax.lax.cond(x.sum() > 0, product, lambda x, w: product(product(x, w), w), x, w)

    assert cost.macs(looped, X, W) == 7 * ONE
    assert cost.macs(chosen, X, W) == 2 * ONE


def test_a_loop_of_unknown_length_is_refused():
    def endless(x, w):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="number of steps is unknown"):
        cost.macs(endless, X, W)


def test_table_folds_deep_modules_and_ends_with_the_total():
    leaf = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    rows = cost.table({"a": {"b": {"c": {"kernel": leaf}}, "kernel": leaf}, "z": {"bias": leaf}})
    assert [(row.module, row.parameters) for row in rows] == [
        ("a/b", 6),
        ("a", 6),
        ("z", 6),
        ("", 18),
    ]

"""Layers: every way of running a convolution gives the same numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.models import layers


@pytest.mark.parametrize(
    ("taps", "strides", "padding"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((1, 1, 1), (1, 2, 2), None),
        ((1, 3, 3), (1, 2, 2), None),
        ((3, 3, 3), (1, 1, 1), None),
        ((3, 1, 1), (1, 1, 1), None),
        ((3, 3, 3), (2, 2, 2), (0, 1, 1)),
        ((5, 7, 7), (1, 2, 2), (2, 3, 3)),
    ],
)
def test_convolve_equals_the_3d_convolution(taps, strides, padding):
    draw = np.random.RandomState(0).standard_normal
    x, kernel = jnp.asarray(draw((2, 5, 6, 7, 4))), jnp.asarray(draw((*taps, 4, 3)))
    pads = padding or tuple(k // 2 for k in taps)
    wanted = jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [(p, p) for p in pads],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    ours = jax.jit(lambda x, k: layers.convolve(x, k, strides, padding))(x, kernel)
    assert ours.shape == wanted.shape
    np.testing.assert_allclose(ours, wanted, atol=2e-4, rtol=1e-4)


def test_bias_and_paths():
    x = jnp.ones((1, 2, 4, 4, 3))
    variables = layers.Conv(5, (1, 3, 3), use_bias=True).init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"kernel": (1, 3, 3, 3, 5), "bias": (5,)}
    biased = {"params": {**variables["params"], "bias": jnp.full(5, 2.0)}}
    layer = layers.Conv(5, (1, 3, 3), use_bias=True)
    np.testing.assert_allclose(layer.apply(biased, x), layer.apply(variables, x) + 2, rtol=1e-6)


def test_squeeze_excite_by_hand():
    layer = layers.SqueezeExcite(1)
    x = jnp.asarray([1.0, 3.0]).reshape(1, 2, 1, 1, 1) * jnp.asarray([1.0, 10.0])
    params = {
        "fc1": {"kernel": jnp.asarray([[1.0], [0.5]]), "bias": jnp.asarray([-2.0])},
        "fc2": {"kernel": jnp.asarray([[1.0, 0.0]]), "bias": jnp.asarray([0.0, 0.5])},
    }
    squeezed = max(0.0, 2.0 * 1 + 20 * 0.5 - 2)
    gate = 1 / (1 + np.exp(-np.asarray([squeezed, 0.5])))
    np.testing.assert_allclose(layer.apply({"params": params}, x), x * gate, rtol=1e-6)


class Normalised(nn.Module):
    """One BatchNorm in training."""

    @nn.compact
    def __call__(self, x):
        return layers.batch_norm("bn", True, jnp.float32)(x)


def test_batch_norm_is_torch_s():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 5)) * 3 + 1
    module = Normalised()
    variables = module.init(jax.random.key(1), x)
    y, state = module.apply(variables, x, mutable=["batch_stats"])
    flat = np.asarray(x).reshape(-1, 5)
    wanted = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y, wanted, atol=1e-4)
    np.testing.assert_allclose(state["batch_stats"]["bn"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        state["batch_stats"]["bn"]["var"], 0.9 + 0.1 * flat.var(0), rtol=1e-5
    )

"""Drawing variables without compiling the forward pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxact.models.initialise import initialise
from jaxact.models.recognizer import Recognizer
from jaxact.models.specs import X3DSpec

SPEC = X3DSpec(blocks=(1, 1), temporal="shift")
CLIP = jax.ShapeDtypeStruct((2, 3, 8, 8, 3), jnp.float32)


class Zoo(nn.Module):
    """One parameter for each way of drawing, and two kinds of state."""

    @nn.compact
    def __call__(self, x, train: bool):
        makers = nn.initializers
        shape = (300, 400)
        self.param("normal", makers.normal(0.02), shape)
        self.param("shifted", lambda key, shape: 3 + jax.random.normal(key, shape), shape)
        self.param("uniform", makers.uniform(0.5), shape)
        self.param("between", lambda key, s: jax.random.uniform(key, s, minval=-2, maxval=1), shape)
        self.param("truncated", makers.truncated_normal(1.0), shape)
        self.param("lecun", makers.lecun_normal(), shape)
        self.param("orthogonal", makers.orthogonal(), (64, 64))
        self.param("table", lambda key, shape: jnp.arange(6.0).reshape(shape), (2, 3))
        self.param("half", makers.normal(1.0), shape, jnp.bfloat16)
        self.variable("state", "seen", lambda: jax.random.normal(self.make_rng("params"), (9,)))
        x = nn.BatchNorm(not train)(nn.Dense(7)(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_same_tree_and_distributions_as_init():
    x = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    ours = initialise(Zoo(), jax.random.key(0), x, train=True)
    keys = {"params": jax.random.key(5), "dropout": jax.random.key(6)}
    theirs = jax.jit(lambda: Zoo().init(keys, jnp.zeros((4, 5)), True))()
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
    for name in ("normal", "shifted", "uniform", "between", "truncated", "lecun", "half"):
        a, b = (np.sort(np.float64(v["params"][name]).ravel()) for v in (ours, theirs))
        # Two samples of 120,000: quantiles agree to a few thousandths of the spread.
        quantiles = np.linspace(0.01, 0.99, 99)
        apart = abs(np.quantile(a, quantiles) - np.quantile(b, quantiles)).max()
        # bfloat16 has eight bits: neighbours near the ends are 1/64 apart.
        assert apart < (0.05 if name == "half" else 0.02) * b.std(), name
        if name not in ("normal", "shifted", "half"):  # the others are bounded, close to their ends
            ends = (a.min() - b.min(), a.max() - b.max())
            assert max(map(abs, ends)) < 0.002 * b.std(), name
    square = ours["params"]["orthogonal"]
    np.testing.assert_allclose(square @ square.T, np.eye(64), atol=1e-5)
    np.testing.assert_array_equal(ours["params"]["table"], theirs["params"]["table"])
    np.testing.assert_array_equal(ours["batch_stats"]["BatchNorm_0"]["var"], np.ones(7))


def test_the_key_decides_and_no_two_draws_repeat():
    model = Recognizer(5, streams="rgb", rgb=SPEC)
    first, again, other = (
        initialise(model, jax.random.key(seed), CLIP, None, False) for seed in (3, 3, 4)
    )
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    path = ("params", "rgb", "res3", "block0", "a", "kernel")
    drawn = [
        np.asarray(jax.tree_util.tree_reduce(lambda n, k: n[k], path, v)) for v in (first, other)
    ]
    assert not np.array_equal(*drawn)
    kernels = [np.asarray(v).ravel()[:8] for v in jax.tree.leaves(first["params"]) if v.ndim > 1]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


def test_checkpointed_blocks_draw_the_same():
    plain, remat = (
        initialise(
            Recognizer(5, streams="rgb", rgb=SPEC, remat=r), jax.random.key(0), CLIP, None, True
        )
        for r in (False, True)
    )
    assert jax.tree.structure(plain) == jax.tree.structure(remat)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_array_equal(a, b)


def test_video_layers_follow_the_reference_rule():
    """He normal by fan_out (a depthwise kernel's counts its channels); zero last scale."""
    params = initialise(Recognizer(60, streams="rgb"), jax.random.key(0), CLIP, None, False)[
        "params"
    ]
    block = params["rgb"]["res5"]["block0"]
    for kernel, fan_out in (
        (block["a"]["kernel"], 432),
        (block["b"]["kernel"], 432 * 9),
        (block["c"]["kernel"], 192),
        (block["se"]["fc1"]["kernel"], 32),
    ):
        assert abs(np.std(kernel) / np.sqrt(2 / fan_out) - 1) < 0.03
    assert not block["c_bn"]["scale"].any() and (block["b_bn"]["scale"] == 1).all()
    assert abs(np.std(params["head"]["rgb"]["kernel"]) / 0.01 - 1) < 0.03


def test_large_arrays_use_large_blocks():
    model = nn.Dense(1500)
    kernel = initialise(model, jax.random.key(0), jnp.zeros((1, 1000)))["params"]["kernel"]
    assert abs(np.std(kernel) * np.sqrt(1000) - 1) < 0.01
    # 23 random bits a number: of 1.5 million about 92 % differ from all others.
    assert len(np.unique(kernel)) > 0.9 * kernel.size

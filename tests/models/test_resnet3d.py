"""3-D ResNets and C3D: shapes, first values, pools, small maps, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxact.config import UserError
from jaxact.models import c3d, layers, resnet3d
from jaxact.models.initialise import initialise
from jaxact.models.resnet3d import Bottleneck, ResNet3D
from jaxact.models.specs import C3DSpec, ResNet3DSpec

SMALL = ResNet3DSpec((2, 1), 4, (0, 1), (2, 2), (1, 2), (3, 5, 5), 1, 1)


def random(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def shape_of(spec, *clip: int):
    kind = ResNet3D if isinstance(spec, ResNet3DSpec) else c3d.C3D
    model, x = kind(spec), jax.ShapeDtypeStruct(clip, jnp.float32)
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, False)[0], x).shape


def test_shapes_of_the_published_networks():
    assert shape_of(resnet3d.SLOWONLY_R50, 2, 8, 224, 224, 3) == (2, 8, 7, 7, 2048)
    assert shape_of(resnet3d.POSE_ONLY, 2, 32, 56, 56, 17) == (2, 32, 7, 7, 512)
    assert shape_of(resnet3d.POSEC3D, 1, 48, 56, 56, 17) == (1, 24, 7, 7, 512)
    assert shape_of(resnet3d.POSEC3D, 1, 47, 61, 53, 20) == (1, 24, 8, 7, 512)
    assert shape_of(c3d.C3D_LIGHT, 1, 48, 56, 56, 17) == (1, 48, 7, 7, 256)
    assert shape_of(C3DSpec(8, 5, True), 1, 16, 80, 66, 3) == (1, 2, 5, 4, 64)


def test_a_new_block_is_its_shortcut():
    """The last BN scale starts at 0, so a block gives ReLU(shortcut)."""
    x = random(1, 1, 4, 6, 6, 16)
    for inflate, taps, scale in ((True, 3, 0.0), (False, 1, 1.0)):
        block = Bottleneck(4, inflate, last_scale=scale)
        variables = initialise(block, jax.random.key(0), x, False)
        y = jax.jit(lambda v, x, block=block: block.apply(v, x, False))(variables, x)
        change = np.abs(y - jax.nn.relu(x)).max()
        assert (change > 0.1) if scale else (change == 0)
        assert variables["params"]["a"]["kernel"].shape == (taps, 1, 1, 16, 4)
        assert "shortcut" not in variables["params"]


def test_first_kernels_are_he_normal_by_their_outputs():
    x = jax.ShapeDtypeStruct((1, 4, 6, 6, 32), jnp.float32)
    params = initialise(Bottleneck(64, True), jax.random.key(0), x, False)["params"]
    for name, fan_out in (("a", 3 * 64), ("b", 9 * 64), ("c", 256), ("shortcut", 256)):
        spread = np.std(params[name]["kernel"])
        np.testing.assert_allclose(spread, np.sqrt(2 / fan_out), rtol=0.05)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 6), (8, 3), (2, 1)])
def test_max_pool_is_the_padded_window(stride, size):
    x = random(2, 2, 3, *size, 4) - 3  # a zero padding would win
    padding = ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))

    def reference(x):
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 1, 3, 3, 1), (1, 1, stride, stride, 1), padding
        )

    def pool(x):
        return resnet3d.max_pool(x, stride)

    np.testing.assert_array_equal(pool(x), reference(x))
    seen = random(3, *reference(x).shape)
    one, other = (jax.grad(lambda x, f=f: (f(x) * seen).sum())(x) for f in (pool, reference))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_pool_divides_no_gradient_among_equals():
    slopes = jax.grad(lambda x: resnet3d.max_pool(x, 2).sum())(jnp.zeros((1, 1, 5, 5, 1)))
    assert set(np.unique(slopes)) <= {0, 1, 2, 3, 4} and slopes.sum() == 9


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 2), (2, 2)])
@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("taps", [(1, 3, 3), (3, 3, 3), (3, 1, 1), (7, 1, 1)])
def test_maps_smaller_than_the_kernel(size, strides, taps):
    x, kernel = random(4, 2, 7, *size, 5), random(5, *taps, 5, 6)
    padding = [(k // 2, k // 2) for k in taps]
    names = ("NDHWC", "DHWIO", "NDHWC")
    wanted = lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=names)
    convolved = layers.convolve(x, kernel, strides)
    assert convolved.shape == wanted.shape
    np.testing.assert_allclose(convolved, wanted, atol=1e-4)


def test_remat_recomputes_each_block_under_the_same_names():
    x = jax.ShapeDtypeStruct((2, 4, 12, 12, 3), jnp.float32)
    for spec, units in ((SMALL, 3), (C3DSpec(4, 2), 2)):
        kind = ResNet3D if isinstance(spec, ResNet3DSpec) else c3d.C3D
        trees = []
        for remat in (False, True):
            model = kind(spec, remat=remat)
            variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), x)  # noqa: B023
            program = jax.make_jaxpr(lambda v, x: model.apply(v, x, True, mutable=["batch_stats"]))  # noqa: B023
            assert str(program(variables, x)).count("remat") == (units if remat else 0)
            trees.append(jax.tree.map(lambda leaf: leaf.shape, variables))
        assert trees[0] == trees[1]


def test_mean_pool_drops_what_is_left_over():
    x = random(7, 1, 3, 5, 4, 2)
    y = c3d.mean_pool(x, True)
    np.testing.assert_allclose(y[0, 0, 1, 1], x[0, :2, 2:4, 2:4].mean((0, 1, 2)), rtol=1e-5)
    assert y.shape == (1, 1, 2, 2, 2)
    assert c3d.mean_pool(x, False).shape == (1, 3, 2, 2, 2)


def test_mistakes_are_named():
    for fields, message in (
        ({"blocks": ()}, r"blocks \(\): at least one block"),
        ({"strides": (1, 2)}, r"strides \(1, 2\): needs one number for each of the 4 stages"),
        ({"inflate": (0, 0, 1, 2)}, r"inflate=\(0, 0, 1, 2\) .*: each 0 to 1"),
        ({"temporal_strides": (1, 0, 1, 1)}, "temporal_strides=.*: each 1 to 8"),
        ({"stem_kernel": (1, 4, 4)}, r"stem_kernel \(1, 4, 4\): three odd numbers"),
        ({"width": 0}, "width=0 .*: 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            ResNet3DSpec(**fields)
    with pytest.raises(UserError, match=r"c3d.stages=6 .*: 1 to 5"):
        C3DSpec(stages=6)
    with pytest.raises(UserError, match="nothing is left of the clip after 3 pools"):
        shape_of(c3d.C3D_LIGHT, 1, 4, 7, 7, 3)

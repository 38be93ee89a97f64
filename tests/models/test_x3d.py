"""X3D and X-Shift: exact counts, shapes, initial state, parity with three code bases."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import recipe

from jaxact.config import UserError
from jaxact.evaluate import cost
from jaxact.models import heads, x3d
from jaxact.models.initialise import initialise
from jaxact.models.layers import round_width
from jaxact.models.recognizer import Recognizer
from jaxact.models.specs import X3DSpec
from jaxact.weights import convert
from jaxact.weights import x3d as tables

PYTORCHVIDEO = X3DSpec(res2_shortcut_bn=False)


def clip(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def abstract(model, *inputs):
    """The model's variables as shapes."""
    return jax.eval_shape(
        lambda *inputs: model.init(jax.random.key(0), *inputs, train=False), *inputs
    )


def count(tree) -> int:
    return cost.table(tree)[-1].parameters


def classifier(spec: X3DSpec, classes: int = 400, **fields) -> Recognizer:
    return Recognizer(classes, streams="rgb", rgb=spec, head_kind="x3d", **fields)


@pytest.mark.parametrize(
    ("spec", "classes", "whole", "backbone"),
    [
        (x3d.X3D_M, 400, 3_794_322, 2_089_986),
        (x3d.X3D_M, 60, 3_097_662, 2_089_986),
        (x3d.X3D_L, 400, 6_153_432, 4_449_096),
        (PYTORCHVIDEO, 400, 3_794_274, 2_089_938),
        (x3d.scaled(gamma_d=5.0, res2_shortcut_bn=False), 400, 6_153_384, 4_449_048),
    ],
)
def test_parameters_of_x3d(spec, classes, whole, backbone):
    params = abstract(classifier(spec, classes), clip(1, 4, 64, 64, 3), None)["params"]
    assert (count(params), count(params["rgb"])) == (whole, backbone)


@pytest.mark.parametrize(
    ("spec", "channels", "parts"),
    [
        (x3d.X3D_M, 3, (816, 15_418, 73_248, 569_256, 1_347_440, 83_808)),
        (x3d.X3D_L, 3, (816, 24_972, 145_996, 1_296_304, 2_897_200, 83_808)),
        (x3d.X_SHIFT_RGB, 3, (696, 12_502, 63_528, 526_488, 1_293_008, 83_808)),
        (x3d.X_SHIFT_POSE, 17, (3_720, 20_112, 140_268, 334_312, 21_168)),
    ],
)
def test_parameters_of_each_stage(spec, channels, parts):
    params = abstract(x3d.X3DFeatures(spec), clip(1, 4, 32, 32, channels))["params"]
    stages = [f"res{index + 2}" for index in range(len(spec.blocks))]
    sizes = [count(params[name]) for name in ("stem", *stages)]
    assert (*sizes, count(params["conv5"]) + count(params["conv5_bn"])) == parts


@pytest.mark.parametrize(
    ("spec", "frames", "size", "whole", "backbone"),
    [
        (x3d.X3D_M, 4, 160, 605_256_512, 603_552_576),
        (x3d.X3D_M, 13, 160, 1_962_892_112, 1_961_188_176),
        (x3d.X3D_M, 16, 224, 4_732_468_736, 4_730_764_800),
        (x3d.X3D_L, 16, 312, 18_367_710_176, 18_366_006_240),
        (x3d.X3D_M, 4, 182, 838_807_664, None),
        (x3d.X3D_M, 13, 182, 2_721_933_356, None),
        (x3d.X3D_M, 16, 256, 6_180_613_376, None),
        (x3d.X3D_L, 16, 356, 24_764_017_280, None),
    ],
)
def test_multiply_adds_of_x3d(spec, frames, size, whole, backbone):
    model, x = classifier(spec, implementation="conv"), clip(1, frames, size, size, 3)
    macs = cost.macs(lambda v, x: model.apply(v, x, None, False), abstract(model, x, None), x)
    assert macs == whole
    assert backbone is None or whole - 432 * 2048 - 2048 * 400 == backbone


@pytest.mark.parametrize(
    ("spec", "shape", "output", "macs"),
    [
        (x3d.X_SHIFT_RGB, (16, 224, 224, 3), (16, 7, 7, 432), 4_261_644_288),
        (x3d.X_SHIFT_RGB, (16, 256, 256, 3), (16, 8, 8, 432), 5_566_180_608),
        (x3d.X_SHIFT_POSE, (48, 56, 56, 17), (48, 7, 7, 216), 3_356_269_344),
        (x3d.X_SHIFT_POSE, (48, 64, 64, 17), (48, 8, 8, 216), 4_383_686_304),
    ],
)
def test_shape_and_multiply_adds_of_x_shift(spec, shape, output, macs):
    model, x = x3d.X3DFeatures(spec, implementation="conv"), clip(1, *shape)
    variables = abstract(model, x)

    def forward(v, x):
        return model.apply(v, x, False)

    assert jax.eval_shape(forward, variables, x).shape == (1, *output)
    assert cost.macs(forward, variables, x) == macs


def test_stages_by_name():
    model, x = x3d.X3DFeatures(x3d.X_SHIFT_POSE), clip(2, 5, 18, 22, 13)
    _, maps = jax.eval_shape(
        lambda v, x: model.apply(v, x, False, stages=True), abstract(model, x), x
    )
    assert {name: value.shape for name, value in maps.items()} == {
        "stem": (2, 5, 18, 22, 24),
        "res2": (2, 5, 9, 11, 24),
        "res3": (2, 5, 5, 6, 48),
        "res4": (2, 5, 3, 3, 96),
        "conv5": (2, 5, 3, 3, 216),
    }


def test_rounding_of_widths_and_depths():
    assert [round_width(24, gamma) for gamma in (1, 1.2, 1.5)] == [24, 32, 40]
    assert [round_width(inner, 1 / 16) for inner in (54, 108, 216, 432)] == [8, 8, 16, 32]
    assert x3d.scaled() == x3d.X3D_M
    assert x3d.X3D_L.blocks == (5, 10, 25, 15)
    assert x3d.scaled(gamma_d=2.5).blocks == (3, 5, 13, 8)
    assert x3d.scaled(gamma_w=1.2).channels == (32, 64, 128, 256)


def test_squeeze_excite_placement():
    def squeezed(se: str) -> list[bool]:
        spec = X3DSpec(blocks=(3,), se=se)
        params = abstract(x3d.X3DFeatures(spec), clip(1, 2, 8, 8, 3))["params"]["res2"]
        return ["se" in params[f"block{number}"] for number in range(3)]

    assert squeezed("half") == [True, False, True]
    assert squeezed("all") == [True] * 3
    assert squeezed("none") == [False] * 3


def test_new_blocks_are_the_identity_and_relu():
    """The last scale of a block starts at zero, so only the shortcut passes."""
    block = x3d.Block(24, 54, 1, "shift", 8, True, True, shortcut=False, shortcut_bn=True)
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 24))

    @jax.jit
    def run(x):
        variables = block.init(jax.random.key(1), x, True)
        return block.apply(variables, x, True, mutable=["batch_stats"])[0]

    np.testing.assert_array_equal(run(x), jax.nn.relu(x))


def test_swish_flag_and_remat_keep_the_tree():
    x = clip(1, 2, 16, 16, 3)
    plain = abstract(x3d.X3DFeatures(X3DSpec(blocks=(2,))), x)
    for model in (
        x3d.X3DFeatures(X3DSpec(blocks=(2,), swish=False)),
        x3d.X3DFeatures(X3DSpec(blocks=(2,)), remat=True),
    ):
        assert abstract(model, x) == plain


def test_remat_changes_no_number():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 3))

    def run(remat: bool):
        model = x3d.X3DFeatures(X3DSpec(blocks=(1,), temporal="shift"), remat=remat)
        variables = initialise(model, jax.random.key(1), x, True)
        # Scales away from zero, or the blocks would not be seen.
        variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)

        def loss(params):
            y, state = model.apply(
                {**variables, "params": params}, x, True, mutable=["batch_stats"]
            )
            return (y**2).mean(), state

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    for ours, theirs in zip(*(jax.tree.leaves(run(remat)) for remat in (True, False)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"temporal='tsm' .*: conv, shift"):
        X3DSpec(temporal="tsm")
    with pytest.raises(UserError, match=r"se='some' .*: half, all, none"):
        X3DSpec(se="some")
    with pytest.raises(UserError, match="at least one block"):
        X3DSpec(blocks=())


# Parity. XS, S and M share one architecture and the weights of one naming.
FAMILIES = {
    "slowfast": (tables.SLOWFAST, x3d.X3D_M),
    "mmaction2": (tables.mmaction2("rgb"), x3d.X3D_M),
    "pytorchvideo": (tables.PYTORCHVIDEO, PYTORCHVIDEO),
}
FRAMES = {"xs": 4, "s": 13, "m": 16}
CLOSE = {"atol": 1e-4, "rtol": 0}  # the suggested tolerances lie between 4.7e-5 and 1e-4


@functools.cache
def backbone(spec: X3DSpec):
    """The compiled backbone, shared by the namings with one architecture."""
    model = x3d.X3DFeatures(spec)
    return jax.jit(lambda variables, x: model.apply(variables, x, False, stages=True)[1])


def check_family(golden, family: str, size: str) -> None:
    table, spec = FAMILIES[family]
    entry = f"{family}_x3d_{size}"
    facts = json.loads((golden / "statedict" / f"{entry}.json").read_text())
    tensors = {k: recipe.fill(k, s, facts["norm_gain"]) for k, s in facts["tensors"].items()}
    target = abstract(classifier(spec), clip(1, 4, 64, 64, 3), None)
    variables, _ = convert.apply(table, tensors, target)
    with np.load(golden / "x3d" / f"{entry}.npz") as file:
        wanted = {key: file[key] for key in file.files}
    for crop, seed, batch, pixels in (("train_crop", 201, 2, 64), ("test_crop", 202, 1, 96)):
        x = recipe.draw(seed, (batch, 3, FRAMES[size], pixels, pixels))
        x = jnp.asarray(x.transpose(0, 2, 3, 4, 1))
        maps = backbone(spec)({name: tree["rgb"] for name, tree in variables.items()}, x)
        check_stages(wanted, f"{crop}/stage", maps)
        head = {"params": variables["params"]["head"]}
        here = {k.removeprefix(f"{crop}/"): v for k, v in wanted.items() if k.startswith(crop)}
        {"slowfast": check_slowfast, "pytorchvideo": check_positions, "mmaction2": check_mean}[
            family
        ](here, head, maps["conv5"])


def check_stages(wanted, root: str, maps) -> None:
    """Samples and moments of every stage."""
    for name, value in maps.items():
        value = np.moveaxis(np.asarray(value), -1, 1)
        assert value.shape == tuple(wanted[f"{root}/{name}/shape"])
        sample = value.reshape(-1)[:: wanted[f"{root}/{name}/stride"]]
        np.testing.assert_allclose(sample, wanted[f"{root}/{name}/sample"], **CLOSE)
        moments = [value.mean(), value.std(), abs(value).mean(), value.min(), value.max()]
        np.testing.assert_allclose(moments, wanted[f"{root}/{name}/stats"], atol=1e-4, rtol=1e-5)


def classify(variables, features, pool: str):
    """Logits, and what each of the head's layers returned."""
    head = heads.Head(400, kind="x3d", pool=pool, window=(0, 2, 2))
    logits, state = head.apply(
        variables,
        {"rgb": features},
        False,
        mutable=["intermediates"],
        capture_intermediates=True,
    )
    return logits["rgb"], state["intermediates"]


def check_mean(wanted, variables, features) -> None:
    np.testing.assert_allclose(classify(variables, features, "mean")[0], wanted["logits"], **CLOSE)


def check_positions(wanted, variables, features) -> None:
    logits, layers = classify(variables, features, "logits")
    positions = layers["rgb"]["__call__"][0]
    np.testing.assert_allclose(positions, wanted["position_logits"], **CLOSE)
    lin5 = {"lin5": jax.nn.relu(layers["rgb_lin5"]["__call__"][0])}
    check_stages(wanted, "stage", lin5)
    mean = wanted["output"] if "output" in wanted else wanted["mean_logits"]
    np.testing.assert_allclose(logits, mean, **CLOSE)


def check_slowfast(wanted, variables, features) -> None:
    check_positions(wanted, variables, features)
    logits, _ = classify(variables, features, "softmax")
    np.testing.assert_allclose(jax.nn.softmax(logits), wanted["output_probs"], atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_of_xs(golden, family):
    check_family(golden, family, "xs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "size"),
    [("slowfast", "s"), ("mmaction2", "s"), ("pytorchvideo", "s"), ("slowfast", "m")],
)
def test_parity_of_longer_clips(golden, family, size):
    check_family(golden, family, size)


def test_small_nets_may_leave_out_conv5_and_start_at_full_scale():
    """What configs/x3d.py `small` asks for: no conv5 map, residual branches at scale 1."""
    spec = X3DSpec(blocks=(1, 1), width=8, temporal="shift", conv5=False, last_scale=1.0)
    model = x3d.X3DFeatures(spec)
    x = jnp.zeros((1, 2, 8, 8, 3))
    variables = model.init(jax.random.key(0), x, False)
    assert "conv5" not in variables["params"] and "conv5_bn" not in variables["params"]
    features, maps = model.apply(variables, x, False, stages=True)
    assert features.shape == (1, 2, 1, 1, spec.features) and spec.features == 16
    assert list(maps) == ["stem", "res2", "res3"]
    np.testing.assert_array_equal(variables["params"]["res2"]["block0"]["c_bn"]["scale"], 1.0)
    zero = x3d.X3DFeatures(X3DSpec(blocks=(1,), width=8)).init(jax.random.key(0), x, False)
    np.testing.assert_array_equal(zero["params"]["res2"]["block0"]["c_bn"]["scale"], 0.0)

"""The two-stream recogniser against EPAM-Net and PCAN: inference, training steps, mistakes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import recipe

from jaxact.config import UserError
from jaxact.evaluate import cost
from jaxact.models import heads, x3d
from jaxact.models.attention import PoseAttention
from jaxact.models.recognizer import Recognizer
from jaxact.models.specs import X3DSpec
from jaxact.weights import convert
from jaxact.weights import x3d as tables

EPAM = Recognizer(60, use_attention=True)
RGB = jax.ShapeDtypeStruct((1, 16, 224, 224, 3), jnp.float32)
POSE = jax.ShapeDtypeStruct((1, 48, 56, 56, 17), jnp.float32)
TINY = {
    "rgb": X3DSpec(blocks=(1, 1), temporal="shift"),
    "pose": X3DSpec(blocks=(1, 1), temporal="shift", stem_stride=1),
}


def drawn(seed: int, shape: tuple[int, ...], kind: str = "normal") -> jax.Array:
    """A golden input, channels last."""
    return jnp.asarray(np.moveaxis(recipe.draw(seed, shape, kind), 1, -1))


def abstract(model, *inputs):
    return jax.eval_shape(lambda *i: model.init(jax.random.key(0), *i, False), *inputs)


def loaded(golden, entry: str, table, model, *inputs, extra=None, dtype=jnp.float32):
    """Golden weights as the model's variables, and the report that maps names."""
    facts = json.loads((golden / "statedict" / f"{entry}.json").read_text())
    shapes = {**facts["tensors"], **(extra or {})}
    tensors = {key: recipe.fill(key, shape, facts["norm_gain"]) for key, shape in shapes.items()}
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), abstract(model, *inputs))
    return convert.apply(table, tensors, target)


def check_map(wanted, root: str, value, atol: float) -> None:
    """One channels-last feature map against a sample and moments of the reference's."""
    value = np.moveaxis(np.asarray(value), -1, 1)
    assert value.shape == tuple(wanted[f"{root}/shape"])
    sample = value.reshape(-1)[:: wanted[f"{root}/stride"]]
    np.testing.assert_allclose(sample, wanted[f"{root}/sample"], atol=atol, rtol=0)
    moments = [value.mean(), value.std(), abs(value).mean(), value.min(), value.max()]
    np.testing.assert_allclose(moments, wanted[f"{root}/stats"], atol=atol, rtol=1e-5)


@functools.cache
def golden_file(path) -> dict:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def test_exact_parameters():
    params = abstract(EPAM, RGB, POSE)["params"]
    parts = {name: cost.table(tree)[-1].parameters for name, tree in params.items()}
    assert parts == {"rgb": 1_980_030, "pose": 519_580, "attention": 107, "head": 39_000}
    assert sum(parts.values()) == 2_538_717


def test_exact_parameters_of_the_prototype_head():
    model = Recognizer(60, coarse_classes=8, prototypes=heads.Prototypes((0, 7) * 30))
    variables = abstract(model, RGB, POSE)
    assert cost.table(variables["params"]["head"])[-1].parameters == 293_800
    assert cost.table(variables["params"])[-1].parameters == 2_793_410
    assert cost.table(variables["prototypes"])[-1].parameters == 32_768


def test_multiply_adds():
    model = EPAM.clone(implementation="conv")
    macs = cost.macs(
        lambda v, a, b: model.apply(v, a, b, False), abstract(model, RGB, POSE), RGB, POSE
    )
    attention = 16 * 7 * 7 * (7 * 7 * 2) + 16 * 7
    heads_macs = 60 * (432 + 216)
    assert macs == 4_261_644_288 + 3_356_269_344 + attention + heads_macs
    assert round(macs / 1e9, 2) == 7.62


def test_parity_of_the_attention_alone(golden):
    wanted = golden_file(golden / "epam" / "attention_7x7.npz")
    variables, _ = loaded(golden, "epamnet_full", tables.EPAM, EPAM, RGB, POSE)
    part = {name: tree["attention"] for name, tree in variables.items()}
    pose, rgb = drawn(403, (2, 216, 48, 7, 7)), drawn(404, (2, 432, 16, 7, 7))
    scale = PoseAttention().apply(part, pose, 16, False)
    np.testing.assert_allclose(np.moveaxis(scale, -1, 1), wanted["attention"], atol=2e-6)
    guided = rgb + rgb * scale
    check_map(wanted, "guided_rgb", guided, 2e-5)
    np.testing.assert_allclose(guided.mean((1, 2, 3)), wanted["guided_rgb/pooled"], atol=2e-6)


@pytest.fixture(scope="module")
def epam(golden):
    """Logits and every layer's output of the golden EPAM-Net on the golden clips."""
    rgb, pose = drawn(401, (2, 3, 16, 64, 64)), drawn(402, (2, 17, 48, 16, 16), "unit")
    variables, _ = loaded(golden, "epamnet_full", tables.EPAM, EPAM, rgb, pose)

    @jax.jit
    def run(variables, rgb, pose):
        return EPAM.apply(
            variables, rgb, pose, False, mutable=["intermediates"], capture_intermediates=True
        )

    logits, state = run(variables, rgb, pose)
    return logits, state["intermediates"]


def features(maps, stream: str):
    """The conv5 map, before any attention."""
    return jax.nn.relu(maps[stream]["conv5_bn"]["__call__"][0])


def test_parity_of_epam_net(golden, epam):
    wanted = golden_file(golden / "epam" / "epamnet_full.npz")
    (logits, maps), atol = epam, 1.1e-4
    np.testing.assert_allclose(logits["rgb"], wanted["rgb_logits"], atol=atol)
    np.testing.assert_allclose(logits["pose"], wanted["pose_logits"], atol=atol)
    fused = logits["rgb"] + logits["pose"]
    np.testing.assert_allclose(fused, wanted["fused_logits"], atol=2 * atol)
    attention = np.moveaxis(maps["attention_map"][0], -1, 1)
    np.testing.assert_allclose(attention, wanted["attention"], atol=2e-6)
    spatial = np.moveaxis(maps["attention"]["spatial_bn"]["__call__"][0], -1, 1)
    np.testing.assert_allclose(spatial, wanted["attention_spatial_presigmoid"], atol=2e-5)
    for stream, stages in (("rgb", 4), ("pose", 3)):
        tree = maps[stream]
        check_map(wanted, f"{stream}_feat", features(maps, stream), atol)
        check_map(wanted, f"stage/{stream}/stem", tree["stem"]["__call__"][0], atol)
        first = tree["res2"]["block0"]["__call__"][0]
        check_map(wanted, f"stage/{stream}/layer1_block0", first, atol)
        for stage in range(1, stages + 1):
            value = tree[f"res{stage + 1}"]["__call__"][0]
            check_map(wanted, f"stage/{stream}/layer{stage}", value, atol)


def to_torch(path: str, value) -> np.ndarray:
    """One of our arrays in the reference's layout."""
    value = np.asarray(value)
    if path.endswith("attention/spatial/kernel"):
        return value.transpose(3, 2, 0, 1)[:, :, None]
    orders = {5: (4, 3, 0, 1, 2), 3: (2, 1, 0), 2: (1, 0), 1: (0,)}
    return value.transpose(orders[value.ndim])


def leaf(tree, path: str):
    return functools.reduce(lambda node, name: node[name], path.split("/"), tree)


def test_training_steps_equal_the_reference(golden):
    """Losses, gradients, running statistics and three SGD steps of EPAM-Net, in float64."""
    wanted = golden_file(golden / "epam" / "epamnet_train.npz")
    labels = jnp.asarray(wanted["labels"])
    with jax.enable_x64(True):
        model = EPAM.clone(dropout=(0.0, 0.0), dtype=jnp.float64)
        rgb, pose = (
            drawn(seed, shape, kind).astype(jnp.float64)
            for seed, shape, kind in (
                (405, (4, 3, 16, 64, 64), "normal"),
                (406, (4, 17, 48, 16, 16), "unit"),
            )
        )
        variables, report = loaded(
            golden, "epamnet_full", tables.EPAM, model, rgb, pose, dtype=jnp.float64
        )
        paths = {source: target for target, source in report.loaded}

        @jax.jit
        def step(params, stats):
            def loss(params):
                logits, state = model.apply(
                    {"params": params, "batch_stats": stats},
                    rgb,
                    pose,
                    True,
                    mutable=["batch_stats"],
                )
                terms = {
                    stream: optax.softmax_cross_entropy_with_integer_labels(value, labels).mean()
                    for stream, value in logits.items()
                }
                return terms["rgb"] + terms["pose"], (terms, state["batch_stats"])

            return jax.value_and_grad(loss, has_aux=True)(params)

        # The reference clips by 10 / (norm + 1e-6).
        norms = []
        rules = optax.chain(optax.add_decayed_weights(3e-4), optax.trace(0.9), optax.scale(-0.0015))
        params, stats = variables["params"], variables["batch_stats"]
        state, losses = rules.init(params), []
        for number in range(3):
            (loss, (terms, new_stats)), gradients = step(params, stats)
            losses.append(loss)
            norms.append(optax.tree.norm(gradients))
            if number == 0:
                check_first_step(wanted, paths, terms, gradients, stats, new_stats)
            factor = jnp.minimum(1, 10 / (norms[-1] + 1e-6))
            clipped = jax.tree.map(lambda g: g * factor, gradients)  # noqa: B023
            updates, state = rules.update(clipped, state, params)
            params, stats = optax.apply_updates(params, updates), new_stats
        np.testing.assert_allclose(losses, wanted["f64/loss_per_step"], rtol=1e-9)
        np.testing.assert_allclose(norms, wanted["f64/global_grad_norm_per_step"], rtol=1e-8)
        after = [key for key in wanted if key.startswith("f64/param_after/")]
        names = sorted({key.split("/")[2] for key in after})
        assert len(names) == 16
        for name in names:
            check_sample(wanted, f"f64/param_after/{name}", paths[name], params, 1e-8)


def check_sample(wanted, root: str, path: str, tree, tolerance: float) -> None:
    value = to_torch(path, leaf(tree, path.removeprefix("params/")))
    sample = value.reshape(-1)[:: wanted[f"{root}/stride"]]
    size = abs(wanted[f"{root}/sample"]).max()
    np.testing.assert_allclose(sample, wanted[f"{root}/sample"], rtol=0, atol=tolerance * size)


def check_first_step(wanted, paths, terms, gradients, old, new) -> None:
    for stream, value in terms.items():
        np.testing.assert_allclose(value, wanted[f"f64/step0/terms/{stream}"], rtol=1e-10)
    names = sorted({key.split("/")[2] for key in wanted if key.startswith("f64/grad/")})
    assert len(names) == 16
    for name in names:
        path = paths[name]
        norm = np.linalg.norm(np.asarray(leaf(gradients, path.removeprefix("params/"))))
        np.testing.assert_allclose(norm, wanted[f"f64/grad/{name}/norm"], rtol=1e-8)
        check_sample(wanted, f"f64/grad/{name}", path, gradients, 1e-7)
    # Values averaged per channel: torch's running variance is the unbiased estimate, ours is not.
    for layer, path, count, momentum in (
        ("rgb_backbone.conv1_s.bn", "rgb/stem/bn", 4 * 16 * 32 * 32, 0.1),
        ("rgb_backbone.conv5.bn", "rgb/conv5_bn", 4 * 16 * 2 * 2, 0.1),
        ("pose_backbone.layer2.3.conv2.bn", "pose/res3/block3/b_bn", 4 * 48 * 4 * 4, 0.1),
        ("attention_module.spatial.bn", "attention/spatial_bn", 4 * 16 * 2 * 2, 0.01),
    ):
        root = f"f64/bn_after_step0/{layer}"
        before, after = leaf(old, path), leaf(new, path)
        biased = (after["var"] - (1 - momentum) * before["var"]) / momentum
        unbiased = (1 - momentum) * before["var"] + momentum * biased * count / (count - 1)
        for name, value in (("running_mean", after["mean"]), ("running_var", unbiased)):
            sample = np.asarray(value)[:: wanted[f"{root}/{name}/stride"]]
            np.testing.assert_allclose(sample, wanted[f"{root}/{name}/sample"], atol=1e-9)


def test_parity_of_pcan(golden, epam):
    """Raw logits, and those corrected by the prototypes; its backbones are EPAM-Net's."""
    wanted = golden_file(golden / "epam" / "pcan_full_eval.npz")
    maps = json.loads((golden / "epam" / "pcan_coarse_maps.json").read_text())
    options = heads.Prototypes(tuple(maps["semantic"]))
    variables, _ = loaded(
        golden,
        "pcan_full_eval",
        tables.PCAN,
        Recognizer(60, coarse_classes=8, prototypes=options),
        RGB,
        POSE,
        extra={f"cls_head.fr_coarse_{s}.spatio_cl_net.avg_f": [128, 8] for s in ("rgb", "pose")},
    )
    clips = {stream: features(epam[1], stream) for stream in ("rgb", "pose")}
    logits, state = heads.Head(60, 8, prototypes=options).apply(
        {name: variables[name]["head"] for name in ("params", "prototypes")},
        clips,
        False,
        mutable=["intermediates"],
        capture_intermediates=True,
    )
    for stream in ("rgb", "pose"):
        check_map(wanted, f"{stream}_feat", clips[stream], 1.1e-4)
        raw = state["intermediates"][stream]["__call__"][0]
        np.testing.assert_allclose(raw, wanted[f"{stream}_raw"], atol=1.1e-4)
        np.testing.assert_allclose(logits[stream], wanted[f"{stream}_rectified"], atol=1.1e-4)
        coarse = logits[f"{stream}_coarse"]
        np.testing.assert_allclose(coarse, wanted[f"{stream}_coarse"], atol=1.1e-4)


@pytest.mark.parametrize("streams", ["rgb", "pose"])
def test_single_streams_and_any_sizes(streams):
    model = Recognizer(5, streams=streams, coarse_classes=2, **TINY)
    inputs = [
        jnp.ones((2, 3, 10, 14, 3)) if streams == "rgb" else None,
        jnp.ones((2, 5, 6, 9, 25)) if streams == "pose" else None,
    ]
    variables = abstract(model, *inputs)
    assert set(variables["params"]) == {streams, "head"}
    shapes = jax.eval_shape(lambda v: model.apply(v, *inputs, False), variables)
    assert {name: (s.shape, s.dtype) for name, s in shapes.items()} == {
        streams: ((2, 5), jnp.float32),
        f"{streams}_coarse": ((2, 2), jnp.float32),
    }


def test_bfloat16_keeps_float32_parameters_statistics_and_logits():
    model = Recognizer(5, use_attention=True, dtype=jnp.bfloat16, **TINY)
    inputs = (
        jax.ShapeDtypeStruct((2, 3, 16, 16, 3), jnp.float32),
        jax.ShapeDtypeStruct((2, 6, 8, 8, 17), jnp.float32),
    )
    variables = abstract(model, *inputs)
    key = jax.random.key(0)
    logits, state = jax.eval_shape(
        lambda v, *i: model.apply(v, *i, True, mutable=["batch_stats"], rngs={"dropout": key}),
        variables,
        *inputs,
    )
    for tree in (variables, logits, state):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(jnp.float32)}
    inner = jax.eval_shape(
        lambda v, a: x3d.X3DFeatures(TINY["rgb"], jnp.bfloat16).apply(v, a, False),
        {name: variables[name]["rgb"] for name in ("params", "batch_stats")},
        inputs[0],
    )
    assert inner.dtype == jnp.bfloat16


def test_mistakes_are_named():
    with pytest.raises(UserError, match="streams 'flow': choose one of rgb, pose, rgb\\+pose"):
        Recognizer(5, streams="flow")
    with pytest.raises(UserError, match="attention needs streams 'rgb\\+pose', not 'rgb'"):
        Recognizer(5, streams="rgb", use_attention=True)
    with pytest.raises(UserError, match="the pose input is missing"):
        abstract(Recognizer(5, **TINY), jnp.ones((1, 2, 8, 8, 3)), None)
    attentive = Recognizer(5, use_attention=True, **TINY)
    with pytest.raises(UserError, match="2 pose frames for 4 RGB frames"):
        abstract(attentive, jnp.ones((1, 4, 16, 16, 3)), jnp.ones((1, 2, 8, 8, 17)))
    with pytest.raises(UserError, match=r"the RGB map is \(2, 2\), the pose map \(1, 1\)"):
        abstract(attentive, jnp.ones((1, 4, 16, 16, 3)), jnp.ones((1, 4, 4, 4, 17)))

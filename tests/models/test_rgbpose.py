"""RGBPoseConv3D, SlowOnly, PoseC3D and the light pose networks against MMAction2 and PYSKL."""

import dataclasses
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
from jaxact.models import c3d, heads, resnet3d
from jaxact.models.recognizer import Recognizer
from jaxact.models.rgbpose import ConvRecognizer, Lateral, Upsample
from jaxact.models.specs import ExchangeSpec, ResNet3DSpec, X3DSpec
from jaxact.weights import convert
from jaxact.weights import resnet3d as tables
from jaxact.weights import x3d as x3d_tables

HEAD = heads.Head(60)
FULL = ConvRecognizer(HEAD, exchange=ExchangeSpec())
RGB_ONLY = ConvRecognizer(HEAD, "rgb")
POSEC3D = ConvRecognizer(HEAD, "pose", pose=resnet3d.POSEC3D)
POSE_ONLY = ConvRecognizer(HEAD, "pose")
C3D_LIGHT = ConvRecognizer(HEAD, "pose", pose=c3d.C3D_LIGHT)
X3D_SHALLOW = Recognizer(
    60, "pose", pose=X3DSpec(blocks=(2, 5, 3), se="none", swish=False), implementation="conv"
)
SMALL_RGB = ResNet3DSpec((1, 1, 1), 4, (0, 0, 1), (1, 2, 2), (1, 1, 1))
SMALL_POSE = ResNet3DSpec((1, 1, 1), 4, (0, 1, 1), (2, 2, 1), (1, 1, 1), (1, 7, 7), 1, 1)
SMALL = ExchangeSpec(rgb_after=(1, 2), pose_after=(1, 2))


def small(**fields) -> ConvRecognizer:
    """RGBPoseConv3D of one block a stage, for clips [b, t, 16, 16, 3] and [b, n * t, 8, 8, j]."""
    fields = {"rgb": SMALL_RGB, "pose": SMALL_POSE, "exchange": SMALL, **fields}
    return ConvRecognizer(heads.Head(5, dropout=(0.0, 0.0)), **fields)


def rgb_of(frames: int, size: int):
    return jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.float32)


def pose_of(frames: int, size: int):
    return jax.ShapeDtypeStruct((1, frames, size, size, 17), jnp.float32)


def drawn(seed: int, shape: tuple[int, ...], kind: str = "normal") -> jax.Array:
    """A golden input, channels last."""
    return jnp.asarray(np.moveaxis(recipe.draw(seed, shape, kind), 1, -1))


def abstract(model, rgb, pose):
    return jax.eval_shape(lambda r, p: model.init(jax.random.key(0), r, p, False), rgb, pose)


def concrete(model, rgb, pose, seed=0):
    """Variables with no zeros in them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(
            rng.standard_normal(s.shape) / 4 if len(s.shape) > 1 else 0.5 + rng.random(s.shape),
            jnp.float32,
        ),
        abstract(model, rgb, pose),
    )


def loaded(golden, entry: str, table, model, rgb, pose, dtype=jnp.float32):
    """Golden weights as the model's variables, and the report that maps names."""
    facts = json.loads((golden / "statedict" / f"{entry}.json").read_text())
    tensors = {k: recipe.fill(k, s, facts["norm_gain"]) for k, s in facts["tensors"].items()}
    shapes = abstract(model, rgb, pose)
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), shapes)
    return convert.apply(table, tensors, target)


def captured(model, variables, rgb, pose):
    """(logits, every module's output) in evaluation."""

    @jax.jit
    def run(variables, rgb, pose):
        return model.apply(
            variables, rgb, pose, False, mutable=["intermediates"], capture_intermediates=True
        )

    logits, state = run(variables, rgb, pose)
    return logits, state["intermediates"]


def output(maps, path: str):
    return functools.reduce(lambda node, name: node[name], path.split("/"), maps)["__call__"][0]


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


# ------------------------------------------------------------------------------------------- sizes


def test_exact_parameters_of_the_two_paths():
    params = abstract(FULL, rgb_of(8, 224), pose_of(32, 56))["params"]
    parts = {name: cost.table(tree)[-1].parameters for name, tree in params.items()}
    laterals = parts.pop("lateral0") + parts.pop("lateral1")
    assert parts == {"rgb": 32_781_376, "pose": 2_065_760, "head": 153_720}
    assert laterals == 1_147_072
    assert sum(parts.values()) + laterals == 36_147_928


# Parameters and multiply-adds for 60 classes; published in G to the digits of the last column.
COSTS = {
    "rgbpose": (FULL, rgb_of(8, 224), pose_of(32, 56), 36_147_928, 58_005_215_232, "58.0"),
    "rgbpose 256": (FULL, rgb_of(8, 256), pose_of(32, 64), 36_147_928, 75_761_866_752, "75.8"),
    "rgb_only": (RGB_ONLY, rgb_of(8, 224), None, 31_757_436, 41_740_132_352, "41.74"),
    "pose_only": (POSE_ONLY, None, pose_of(32, 56), 2_024_860, 11_332_581_376, "11.33"),
    "PoseC3D": (POSEC3D, None, pose_of(48, 56), 2_024_860, 15_630_858_240, "15.63"),
    "PoseC3D 64": (POSEC3D, None, pose_of(48, 64), 2_024_860, 20_415_805_440, "20.42"),
    "C3D-light": (C3D_LIGHT, None, pose_of(48, 56), 3_404_892, 16_777_264_128, "16.78"),
    "X3D-shallow": (X3D_SHALLOW, None, pose_of(48, 56), 254_508, 568_950_624, "0.57"),
}


@pytest.mark.parametrize("name", COSTS)
def test_exact_costs(name):
    model, rgb, pose, parameters, wanted, published = COSTS[name]
    variables = abstract(model, rgb, pose)
    assert cost.table(variables["params"])[-1].parameters == parameters
    macs = cost.macs(lambda v, r, p: model.apply(v, r, p, False), variables, rgb, pose)
    assert macs == wanted
    assert f"{macs / 1e9:.{len(published.split('.')[1])}f}" == published


# ------------------------------------------------------------------------------------------ parity


def test_parity_of_rgbposeconv3d(golden):
    """Logits, both maps, every stage, both pairs of laterals."""
    wanted = golden_file(golden / "rgbpose" / "rgbposeconv3d_full.npz")
    rgb, pose = drawn(311, (2, 3, 8, 64, 64)), drawn(312, (2, 17, 32, 16, 16), "unit")
    variables, report = loaded(golden, "rgbposeconv3d_full", tables.RGBPOSE, FULL, rgb, pose)
    assert not (report.missing or report.unused or report.notes)
    logits, maps = captured(FULL, variables, rgb, pose)
    atol = 3.9e-4
    for stream, depth in (("rgb", 4), ("pose", 3)):
        np.testing.assert_allclose(logits[stream], wanted[f"{stream}_logits"], atol=atol)
        last = output(maps, f"{stream}/res{depth + 1}")
        check_map(wanted, f"{stream}_feat", last, atol)
        stem = output(maps, f"{stream}/stem")
        check_map(wanted, f"stage/{stream}/stem", stem, atol)
        pooled = resnet3d.max_pool(stem, 2 if stream == "rgb" else 1)
        check_map(wanted, f"stage/{stream}/pool", pooled, atol)
        for stage in range(1, depth + 1):
            value = output(maps, f"{stream}/res{stage + 1}")
            check_map(wanted, f"stage/{stream}/layer{stage}", value, atol)
    for number in (0, 1):
        to_rgb = output(maps, f"lateral{number}/to_rgb")
        check_map(wanted, f"stage/rgb/layer{number + 2}_lateral(pose->rgb)", to_rgb, atol)
        to_pose = jax.nn.relu(output(maps, f"lateral{number}/to_pose_bn"))
        check_map(wanted, f"stage/pose/layer{number + 1}_lateral(rgb->pose)", to_pose, atol)


STAGES = {f"layer{stage}": f"res{stage + 1}" for stage in (1, 2, 3, 4)}
# model, table, golden entry of the weights, atol, stage names, clips of each input
ALONE = {
    "posec3d_slowonly_48": (
        POSEC3D,
        tables.slowonly("pose"),
        3.5e-5,
        ("layer1", "layer2", "layer3"),
        {"heatmap": (301, (2, 17, 48, 16, 16)), "odd": (302, (1, 17, 12, 14, 14))},
    ),
    "rgb_only_slowonly_r50": (
        RGB_ONLY,
        tables.slowonly("rgb"),
        1.4e-4,
        ("layer1", "layer2", "layer3", "layer4"),
        {"rgb": (304, (2, 3, 8, 64, 64))},
    ),
    "pyskl_x3d_shallow_48": (
        X3D_SHALLOW.clone(implementation="auto"),
        x3d_tables.pyskl("pose"),
        2.7e-5,
        ("layer1", "layer2", "layer3"),
        {"heatmap": (321, (2, 17, 48, 32, 32))},
    ),
}


@pytest.mark.parametrize("entry", ALONE)
def test_parity_of_one_stream(golden, entry):
    """Logits and every stage of the networks that see one stream."""
    model, table, atol, stages, clips = ALONE[entry]
    wanted = golden_file(golden / "rgbpose" / f"{entry}.npz")
    stream = model.streams
    for name, (seed, shape) in clips.items():
        clip = drawn(seed, shape, "unit" if stream == "pose" else "normal")
        inputs = (clip, None) if stream == "rgb" else (None, clip)
        variables, report = loaded(golden, entry, table, model, *inputs)
        assert not (report.missing or report.unused or report.notes)
        logits, maps = captured(model, variables, *inputs)
        np.testing.assert_allclose(logits[stream], wanted[f"{name}/logits"], atol=atol)
        stem = output(maps, f"{stream}/stem")
        check_map(wanted, f"{name}/stage/stem", stem, atol)
        if f"{name}/stage/pool/shape" in wanted:
            spec = getattr(model, stream)
            pooled = resnet3d.max_pool(stem, spec.pool_stride)
            check_map(wanted, f"{name}/stage/pool", pooled, atol)
        if f"{name}/stage/conv5/shape" in wanted:
            value = jax.nn.relu(output(maps, f"{stream}/conv5_bn"))
            check_map(wanted, f"{name}/stage/conv5", value, atol)
        for stage in stages:
            value = output(maps, f"{stream}/{STAGES[stage]}")
            check_map(wanted, f"{name}/stage/{stage}", value, atol)


# ---------------------------------------------------------------------------------------- training


def to_torch(path: str, value) -> np.ndarray:
    """One of our arrays in the reference's layout."""
    value = np.asarray(value)
    if path.endswith("to_pose/kernel"):
        return value.transpose(3, 4, 0, 1, 2)
    return value.transpose({5: (4, 3, 0, 1, 2), 2: (1, 0), 1: (0,)}[value.ndim])


def leaf(tree, path: str):
    return functools.reduce(lambda node, name: node[name], path.split("/"), tree)


def check_sample(wanted, root: str, path: str, tree, tolerance: float) -> None:
    value = to_torch(path, leaf(tree, path.removeprefix("params/")))
    sample = value.reshape(-1)[:: wanted[f"{root}/stride"]]
    size = abs(wanted[f"{root}/sample"]).max()
    np.testing.assert_allclose(sample, wanted[f"{root}/sample"], rtol=0, atol=tolerance * size)


@pytest.fixture(scope="module")
def training(golden):
    """(golden vectors, labels, model, clips, variables, reference key -> path), in float64."""
    with jax.enable_x64(True):
        model = FULL.clone(
            head=heads.Head(60, dropout=(0.0, 0.0), dtype=jnp.float64), dtype=jnp.float64
        )
        rgb, pose = (
            drawn(seed, shape, kind).astype(jnp.float64)
            for seed, shape, kind in (
                (313, (3, 3, 8, 64, 64), "normal"),
                (314, (3, 17, 32, 16, 16), "unit"),
            )
        )
        variables, report = loaded(
            golden, "rgbposeconv3d_full", tables.RGBPOSE, model, rgb, pose, jnp.float64
        )
    wanted = golden_file(golden / "rgbpose" / "rgbposeconv3d_train.npz")
    paths = {source: target for target, source in report.loaded}
    return wanted, jnp.asarray(wanted["labels"]), model, (rgb, pose), variables, paths


def step_of(model, clips, labels):
    """Jitted (params, stats) -> ((loss, (its terms, new stats)), gradients)."""

    def step(params, stats):
        def loss(params):
            state = {"params": params, "batch_stats": stats}
            logits, state = model.apply(state, *clips, True, mutable=["batch_stats"])
            terms = {
                stream: optax.softmax_cross_entropy_with_integer_labels(value, labels).mean()
                for stream, value in logits.items()
            }
            return terms["rgb"] + terms["pose"], (terms, state["batch_stats"])

        return jax.value_and_grad(loss, has_aux=True)(params)

    return jax.jit(step)


def test_training_steps_equal_the_reference(training):
    """Losses, gradients, running statistics and three SGD steps, in float64."""
    wanted, labels, model, clips, variables, paths = training
    with jax.enable_x64(True):
        step = step_of(model, clips, labels)
        rules = optax.chain(optax.add_decayed_weights(1e-4), optax.trace(0.9), optax.scale(-0.0075))
        params, stats = variables["params"], variables["batch_stats"]
        state, losses, norms = rules.init(params), [], []
        for number in range(3):
            (loss, (terms, new_stats)), gradients = step(params, stats)
            losses.append(loss)
            norms.append(optax.tree.norm(gradients))
            if number == 0:
                check_first_step(wanted, paths, terms, gradients, stats, new_stats)
            # The reference clips by 10 / (norm + 1e-6).
            factor = jnp.minimum(1, 10 / (norms[-1] + 1e-6))
            clipped = jax.tree.map(lambda g: g * factor, gradients)  # noqa: B023
            updates, state = rules.update(clipped, state, params)
            params, stats = optax.apply_updates(params, updates), new_stats
        np.testing.assert_allclose(losses, wanted["f64/loss_per_step"], rtol=1e-9)
        np.testing.assert_allclose(norms, wanted["f64/global_grad_norm_per_step"], rtol=1e-8)
        names = {key.split("/")[2] for key in wanted if key.startswith("f64/param_after/")}
        assert len(names) == 15
        for name in names:
            check_sample(wanted, f"f64/param_after/{name}", paths[name], params, 1e-8)


def check_first_step(wanted, paths, terms, gradients, old, new) -> None:
    for stream, value in terms.items():
        np.testing.assert_allclose(value, wanted[f"f64/step0/terms/{stream}_loss_cls"], rtol=1e-10)
    names = {key.split("/")[2] for key in wanted if key.startswith("f64/grad/")}
    assert len(names) == 15
    for name in names:
        path = paths[name]
        norm = np.linalg.norm(np.asarray(leaf(gradients, path.removeprefix("params/"))))
        np.testing.assert_allclose(norm, wanted[f"f64/grad/{name}/norm"], rtol=1e-8)
        check_sample(wanted, f"f64/grad/{name}", path, gradients, 1e-7)
    # Values averaged per channel: torch's running variance is the unbiased estimate, ours is not.
    for layer, path, count in (
        ("rgb_path.conv1.bn", "rgb/stem/bn", 3 * 8 * 32 * 32),
        ("rgb_path.layer4.2.conv3.bn", "rgb/res5/block2/c_bn", 3 * 8 * 2 * 2),
        ("pose_path.layer1_lateral.bn", "lateral0/to_pose_bn", 3 * 32 * 8 * 8),
        ("pose_path.layer2.3.conv2.bn", "pose/res3/block3/b_bn", 3 * 32 * 4 * 4),
    ):
        root = f"f64/bn_after_step0/backbone.{layer}"
        before, after = leaf(old, path), leaf(new, path)
        biased = (after["var"] - 0.9 * before["var"]) / 0.1
        unbiased = 0.9 * before["var"] + 0.1 * biased * count / (count - 1)
        for name, value in (("running_mean", after["mean"]), ("running_var", unbiased)):
            sample = np.asarray(value)[:: wanted[f"{root}/{name}/stride"]]
            np.testing.assert_allclose(sample, wanted[f"{root}/{name}/sample"], atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["rgb_detach", "pose_detach"])
def test_gradients_of_detached_paths_equal_the_reference(training, which):
    wanted, labels, model, clips, variables, paths = training
    with jax.enable_x64(True):
        model = model.clone(exchange=ExchangeSpec(**{which: True}))
        _, gradients = step_of(model, clips, labels)(variables["params"], variables["batch_stats"])
        names = {key.split("/")[2] for key in wanted if key.startswith(f"f64_{which}/grad/")}
        assert len(names) == 15
        for name in names:
            norm = np.linalg.norm(np.asarray(leaf(gradients, paths[name].removeprefix("params/"))))
            np.testing.assert_allclose(norm, wanted[f"f64_{which}/grad/{name}/norm"], rtol=1e-8)


# ------------------------------------------------------------------------------------ what it does


def inputs(seed=0, batch=2):
    """Clips that `small` networks take, 2 RGB frames and 8 pose frames."""
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((batch, 2, 16, 16, 3), (batch, 8, 8, 8, 4))
    )


def answers(model, variables, rgb, pose):
    """Logits in evaluation."""
    return jax.jit(lambda v, r, p: model.apply(v, r, p, False))(variables, rgb, pose)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_upsampling_is_the_transposed_convolution(stride, frames):
    """As XLA writes it: frames spread apart, the kernel reversed, 3 zeros before and the rest."""
    rng = np.random.default_rng(stride)
    x = jnp.asarray(rng.standard_normal((2, frames, 2, 3, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((7, 1, 1, 4, 5)), jnp.float32)
    model = Upsample(5, stride, 7)
    longer = jax.jit(lambda k, x: model.apply({"params": {"kernel": k}}, x))(kernel, x)
    wanted = jax.lax.conv_general_dilated(
        x,
        kernel[::-1],
        (1, 1, 1),
        [(3, 3 + stride - 1), (0, 0), (0, 0)],
        lhs_dilation=(stride, 1, 1),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    assert longer.shape == (2, frames * stride, 2, 3, 5)
    np.testing.assert_allclose(longer, wanted, atol=1e-5)


def test_upsampling_starts_as_torch_does():
    x = jnp.zeros((1, 2, 1, 1, 64))
    kernel = Upsample(32, 4, 7).init(jax.random.key(0), x)["params"]["kernel"]
    bound = 1 / np.sqrt(32 * 7)  # of the outputs: what a transposed kernel's fan is in torch
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.03)


def test_an_exchange_appends_what_it_receives():
    rng = np.random.default_rng(0)
    rgb, pose = (
        jnp.asarray(rng.random(shape), jnp.float32) for shape in ((1, 2, 3, 3, 8), (1, 6, 3, 3, 4))
    )
    model = Lateral(ExchangeSpec())
    variables = model.init(jax.random.key(0), rgb, pose, False, None)
    both = model.apply(variables, rgb, pose, False, None)
    assert [x.shape for x in both] == [(1, 2, 3, 3, 10), (1, 6, 3, 3, 5)]
    np.testing.assert_array_equal(both[0][..., :8], rgb)
    np.testing.assert_array_equal(both[1][..., :4], pose)
    np.testing.assert_array_equal(
        model.apply(variables, rgb, pose, False, (True, False))[0][..., 8:], 0
    )


def test_without_exchange_each_stream_answers_alone():
    rgb, pose = inputs()
    both = small(exchange=None)
    variables = concrete(both, rgb, pose)
    logits = answers(both, variables, rgb, pose)
    for stream, clips in (("rgb", (rgb, None)), ("pose", (None, pose))):
        alone = small(exchange=None, streams=stream)
        part = {
            name: {
                stream: tree[stream],
                **({"head": {stream: tree["head"][stream]}} if "head" in tree else {}),
            }
            for name, tree in variables.items()
        }
        outputs = answers(alone, part, *clips)
        np.testing.assert_allclose(outputs[stream], logits[stream], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["", "rgb_detach", "pose_detach", "dropped rgb", "dropped pose"])
def test_which_path_each_loss_trains(which):
    """Detaching or dropping what one path receives keeps its loss out of the other path."""
    rng = np.random.default_rng(0)
    maps = [jnp.asarray(rng.random(s), jnp.float32) for s in ((1, 2, 3, 3, 8), (1, 6, 3, 3, 4))]
    model = Lateral(ExchangeSpec(**({which: True} if which.endswith("detach") else {})))
    dropped = (which == "dropped rgb", which == "dropped pose")
    shapes = jax.eval_shape(lambda m: model.init(jax.random.key(0), *m, False, None), maps)
    variables = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)

    @jax.jit
    def gradients(maps):
        def answer(maps, stream):
            return (model.apply(variables, *maps, False, dropped)[stream] ** 2).sum()

        return [jax.grad(answer)(maps, stream) for stream in (0, 1)]

    slopes = [[float(jnp.abs(g).max()) for g in pair] for pair in gradients(maps)]
    for stream, name in ((0, "rgb"), (1, "pose")):
        assert slopes[stream][stream] > 1e-3
        assert (slopes[stream][1 - stream] > 1e-3) == (name not in which)


def test_a_path_is_dropped_by_chance_in_training_only():
    """One draw a path for all exchanges of a step, with the given probability."""
    rgb, pose = inputs()
    model = small(exchange=dataclasses.replace(SMALL, rgb_drop_path=0.3, pose_drop_path=0.0))
    variables = concrete(model, rgb, pose)

    @jax.jit
    def run(key, pose):
        return model.apply(
            variables, rgb, pose, True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]["rgb"]

    keys = jax.random.split(jax.random.key(1), 100)
    apart = [float(jnp.abs(run(key, pose) - run(key, pose[::-1] + 1)).max()) for key in keys]
    dropped = sum(change == 0 for change in apart)
    assert 15 <= dropped <= 45  # 30 of 100 expected, deviation 4.6
    one, other = (answers(model, variables, rgb, x)["rgb"] for x in (pose, pose[::-1] + 1))
    assert np.abs(one - other).max() > 1e-3


def test_bfloat16_keeps_float32_parameters_statistics_and_logits():
    model = small(dtype=jnp.bfloat16)
    clips = inputs()
    variables = abstract(model, *clips)
    logits, state = jax.eval_shape(
        lambda v: model.apply(v, *clips, True, mutable=["batch_stats"]), variables
    )
    for tree in (variables, logits, state):
        assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype(jnp.float32)}
    assert {name: x.shape for name, x in logits.items()} == {"rgb": (2, 5), "pose": (2, 5)}


def test_mistakes_are_named():
    rgb, pose = inputs()
    with pytest.raises(UserError, match="streams 'flow': choose one of"):
        small(streams="flow")
    with pytest.raises(UserError, match="an exchange needs streams 'rgb\\+pose', not 'rgb'"):
        small(streams="rgb")
    with pytest.raises(UserError, match="an exchange needs two networks of resnet3d"):
        small(pose=c3d.C3D_LIGHT)
    with pytest.raises(UserError, match=r"rgb_after \(1, 3\): the path has 3 stages, one must be"):
        small(exchange=ExchangeSpec(rgb_after=(1, 3)))
    with pytest.raises(UserError, match="the pose input is missing"):
        abstract(small(), rgb, None)
    with pytest.raises(UserError, match=r"the RGB map is \(2, 4, 4\), the pose map \(8, 2, 2\)"):
        abstract(small(), rgb, pose[:, :, :4, :4])
    with pytest.raises(UserError, match="pose frames a multiple of RGB frames"):
        abstract(small(), rgb, pose[:, :7])
    for fields, message in (
        ({"rgb_after": (2,)}, r"rgb_after \(2,\), pose_after \(1, 2\): as many"),
        ({"pose_after": (2, 1)}, "pose_after .*: stages from 1 on, rising"),
        ({"kernel": 4}, "kernel 4: an odd number"),
        ({"share": 0}, "share=0 .*: 1 or more"),
        ({"rgb_drop_path": 1.5}, "rgb_drop_path=1.5 .*: 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            ExchangeSpec(**fields)

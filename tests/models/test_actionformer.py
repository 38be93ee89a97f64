"""ActionFormer and the whole detector: golden vectors, counts, masks, windows, gradients."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.models import actionformer, sequence
from jaxact.models.initialise import initialise
from jaxact.models.specs import RANGES, ActionFormerSpec
from jaxact.ops import detection_losses, segments
from jaxact.tasks.detection import config, network
from jaxact.tasks.detection.config import Backbone, Model
from jaxact.weights import adatad, convert
from jaxact.weights.table import flatten, translate

GOLDEN = Model(classes=5, width=16, heads=4, drop_path=0.1)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes_of(model, video, steps):
    video = jax.ShapeDtypeStruct((1, *video), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, steps), bool)
    return jax.eval_shape(lambda v, m: model.init(jax.random.key(0), v, m), video, mask)


@pytest.fixture(scope="module")
def vectors(golden):
    return dict(np.load(golden / "detection" / "detector_tiny_base.npz"))


@pytest.fixture(scope="module")
def case(vectors):
    """The golden detector, its f64 variables, features, mask."""
    model = network.Detector(GOLDEN, dtype=jnp.float64)
    tensors = {k.removeprefix("param/"): v for k, v in vectors.items() if k.startswith("param/")}
    target = shapes_of(network.Detector(GOLDEN), (64, 12), 64)
    variables, report = convert.apply(adatad.ADATAD, tensors, target, strict=False)
    assert report.missing == ["normaliser/positives"] and not report.unused
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    features = np.asarray(vectors["input"].transpose(0, 2, 1), np.float64)
    return model, {"params": params, "normaliser": {"positives": np.float32(100)}}, features


@pytest.fixture(scope="module")
def evaluated(case, vectors):
    model, variables, features = case
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(model.apply, capture_intermediates=True, mutable=True))
        # Positives without training: what an evaluated loss would come with.
        return run(variables, jnp.asarray(features), jnp.asarray(vectors["mask"]), np.float32(18))


@pytest.mark.parametrize("part", ["projection", "neck"])
def test_golden_levels(evaluated, vectors, part):
    levels = evaluated[1]["intermediates"][part]["__call__"][0]
    for level, (x, mask) in enumerate(levels):
        np.testing.assert_array_equal(mask, vectors[f"mask_{level}"])
        wanted = vectors[f"{part[:4]}_{level}"].transpose(0, 2, 1)
        np.testing.assert_allclose(x, wanted, atol=1e-4, rtol=0)


def test_golden_outputs(evaluated, vectors):
    outputs = evaluated[0]
    np.testing.assert_allclose(outputs["logits"], vectors["cls_logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(outputs["offsets"], vectors["reg"], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(outputs["points"], vectors["points"])
    with jax.enable_x64(True):
        segment = segments.decode(vectors["points"], outputs["offsets"])
    np.testing.assert_allclose(segment, vectors["proposals"], atol=1e-4, rtol=0)
    assert outputs["normaliser"] == 100  # it moves in training only


def targets_of(vectors):
    """The golden ground truth assigned, padded to five segments."""
    boxes, labels = np.zeros((2, 5, 2)), np.zeros((2, 5), np.int32)
    real = np.zeros((2, 5), bool)
    for index in range(2):
        size = len(vectors[f"gt_lab_{index}"])
        boxes[index, :size] = vectors[f"gt_seg_{index}"]
        labels[index, :size] = vectors[f"gt_lab_{index}"]
        real[index, :size] = True
    return segments.assign(vectors["points"], *map(jnp.asarray, (boxes, labels, real)), 5)


def test_golden_losses_and_gradients(case, vectors):
    """Two training steps of the normaliser; gradients of 215 tensors, without drop path."""
    model, variables, features = case
    model = model.clone(spec=Model(classes=5, width=16, heads=4, drop_path=0.0))
    with jax.enable_x64(True):
        targets = targets_of(vectors)

        def loss(params, state):
            mask = jnp.asarray(vectors["mask"])
            positive = detection_losses.positives(targets[0], segments.point_mask(mask, 6))
            outputs, state = model.apply(
                {"params": params, **state},
                jnp.asarray(features),
                mask,
                positive.sum(),
                train=True,
                mutable=["normaliser"],
            )
            terms = detection_losses.detection(
                outputs["logits"],
                outputs["offsets"],
                outputs["points"],
                targets,
                outputs["mask"],
                outputs["normaliser"],
            )
            total = {name: value.sum() for name, value in terms.items()}
            return total["cls"] + total["reg"], (total, state)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        state = {"normaliser": variables["normaliser"]}
        gradients = []
        for number, suffix in ((1, ""), (2, "_step2")):
            (_, (terms, state)), grads = step(variables["params"], state)
            gradients.append(grads)
            for name, value in terms.items():
                wanted = vectors[f"{name}_loss{suffix}"]
                np.testing.assert_allclose(value, wanted, atol=1e-5, rtol=0)
            mean = state["normaliser"]["positives"]
            np.testing.assert_allclose(mean, vectors[f"norm_after{number}"], rtol=1e-6)
            assert mean.dtype == jnp.float32

    theirs = {k.removeprefix("grad/"): v for k, v in vectors.items() if k.startswith("grad/")}
    wanted = translate(adatad.ADATAD, theirs).flat
    ours = flatten({"params": gradients[0]})
    assert len(theirs) == len(wanted) == 215
    # Stored are all but the two matrices of each MLP.
    assert all(re.search(r"/fc[12]/kernel", path) for path in ours.keys() - wanted.keys())
    for path, value in wanted.items():
        np.testing.assert_allclose(ours[path], value, atol=1e-4, rtol=1e-4, err_msg=path)


# ---------------------------------------------------------------------------------------- sizes

WIDTHS = {"s": 384, "b": 768, "l": 1024, "h": 1280, "g": 1408}


@pytest.mark.parametrize(
    ("size", "projection"),
    [
        ("s", 23_505_920),
        ("b", 24_095_744),
        ("l", 24_488_960),
        ("h", 24_882_176),
        ("g", 25_078_784),
    ],
)
def test_parameters_of_the_parts(size, projection):
    params = shapes_of(network.Detector(), (64, WIDTHS[size]), 64)["params"]
    sizes = {name: count(part) for name, part in params.items()}
    assert sizes == {"projection": projection, "neck": 6_144, "head": 3_183_644}


def test_parameters_for_activitynet():
    spec = Model(classes=1, width=256, positions=192)
    params = shapes_of(network.Detector(spec), (64, 384), 64)["params"]
    sizes = {name: count(part) for name, part in params.items()}
    assert sizes == {"projection": 6_051_328, "neck": 3_072, "head": 790_793}


# ---------------------------------------------------------------------------------- behaviour


def small(**fields):
    spec = {"classes": 3, "width": 16, "heads": 2, "branch": 2, "stem": 1, **fields}
    return network.Detector(Model(**spec, ranges=RANGES[:6]))


@functools.cache
def variables_of(model, channels=8, steps=16):
    video = jax.ShapeDtypeStruct((1, steps, channels), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, steps), bool)
    variables = initialise(model, jax.random.key(0), video, mask)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), variables)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(1).standard_normal((2, 16, 8)).astype(np.float32)


@pytest.mark.parametrize("window", [0, 5])
def test_masked_steps_are_not_seen(features, window):
    """Other numbers there change nothing, but for the first one; padding alone gives no NaN."""
    model = small(window=window)
    mask = np.arange(16)[None] < np.array([[11], [0]])
    noisy = np.where(np.arange(16)[:, None] > 11, 7.0, features).astype(np.float32)
    run = jax.jit(model.apply)
    a, b = (run(variables_of(model), x, mask) for x in (features, noisy))
    for name in ("logits", "offsets"):
        np.testing.assert_array_equal(a[name][0], b[name][0])
        assert np.isfinite(a[name]).all()
    np.testing.assert_array_equal(a["mask"].sum(1), [11 + 6 + 3, 0])


@pytest.mark.parametrize("window", [0, 5])
def test_a_padded_window_equals_the_unpadded_one(features, window):
    """But for the biases of normalisations: as in the golden network, the padding has those."""
    model = small(window=window)
    run = jax.jit(model.apply)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if re.search("(ln1|neck).*bias", jax.tree_util.keystr(path)) else x,
        variables_of(model),
    )
    short = run(variables, features, np.ones((2, 16), bool))
    padded = np.pad(features, ((0, 0), (0, 16), (0, 0)))
    long = run(variables, padded, np.arange(32)[None].repeat(2, 0) < 16)
    real = np.asarray(long["mask"][0])
    assert real.sum() == 16 + 8 + 4
    for name in ("logits", "offsets"):
        np.testing.assert_allclose(long[name][:, real], short[name], atol=2e-5, err_msg=name)


def test_fresh_heads_expect_nothing(features):
    model = small()
    video = jax.ShapeDtypeStruct(features.shape, jnp.float32)
    mask = np.ones((2, 16), bool)
    variables = initialise(model, jax.random.key(0), video, jax.ShapeDtypeStruct(mask.shape, bool))
    head = variables["params"]["head"]
    np.testing.assert_allclose(head["cls"]["bias"], -4.59512, atol=1e-5)
    assert head["scale1"] == 1 and variables["normaliser"]["positives"] == 100
    stem = variables["params"]["projection"]["stem0"]
    np.testing.assert_allclose(stem["attn_scale"], 1e-4)
    np.testing.assert_allclose(np.abs(stem["fc1"]["kernel"]).max(), 16**-0.5, rtol=0.05)


def test_bf16_keeps_sums_wide(features):
    """A fresh branch adds 1e-4 of itself, which a sum of 16 bits would swallow."""
    mask, added = np.ones((2, 16), bool), []
    for dtype in (jnp.float32, jnp.bfloat16):
        spec = ActionFormerSpec(width=16, heads=2, stem=1, branch=0)
        whole, short = (
            actionformer.Projection(dataclasses.replace(spec, stem=stem), dtype) for stem in (1, 0)
        )
        params = initialise(whole, jax.random.key(0), features, mask, train=False)["params"]
        before = {name: leaf for name, leaf in params.items() if "stem" not in name}
        runs = ((whole, params), (short, before))
        (after, _), (first, _) = (
            jax.jit(functools.partial(model.apply, train=False))({"params": p}, features, mask)[0]
            for model, p in runs
        )
        assert after.dtype == jnp.float32
        added.append(np.asarray(after, np.float32) - np.asarray(first, np.float32))
    assert np.linalg.norm(added[0] - added[1]) < 0.05 * np.linalg.norm(added[0])


@pytest.mark.parametrize("window", [3, 9, 17, 33])
@pytest.mark.parametrize("steps", [10, 150])
def test_local_attention_is_global_attention_within_a_band(window, steps):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, steps, 2, 4)), jnp.float32) for _ in range(3))
    mask = jnp.asarray(np.arange(steps) < np.array([[steps], [steps - 3]]))
    attended = jax.jit(sequence.attend, static_argnums=4)(q, k, v, mask, window)
    near = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps))) <= window // 2
    scores = np.einsum("bthd,bshd->bhts", q, k) / 2
    scores = np.where(near & np.asarray(mask)[:, None, None], scores, -np.inf)
    some = np.isfinite(scores).any(-1)[:, 0]
    weights = np.exp(scores - np.where(some[:, None], scores.max(-1), 0)[..., None])
    weights = weights / np.where(some[:, None], weights.sum(-1), 1)[..., None]
    wanted = np.einsum("bhts,bshd->bthd", weights, v)
    assert np.isfinite(attended).all() and some[0].all()
    np.testing.assert_allclose(np.asarray(attended)[some], wanted[some], atol=1e-5)


def test_short_filters_are_those_of_torch():
    """Stride 2 looks at steps 0, 2, 4, ... with one zero (or nothing, for the pool) before."""
    x = jnp.asarray([[[3.0], [1.0], [4.0], [1.0], [5.0], [9.0]]])
    assert sequence.pooled(x, 2).ravel().tolist() == [3, 4, 9]
    assert sequence.pooled(-x, 2).ravel().tolist() == [-1, -1, -1]
    near = [each.ravel().tolist() for each in sequence.taps(x, 2)]
    assert near == [[0, 1, 1], [3, 4, 5], [1, 1, 9]]
    assert [each.shape[1] for each in sequence.taps(x[:, :5], 2)] == [3, 3, 3]


def test_input_dropout_takes_whole_channels(features):
    model = small(input_dropout=0.5, drop_path=0.0)
    variables = variables_of(model)

    def run(x):
        mask = np.ones((2, 16), bool)
        rngs = {"dropout": jax.random.key(0)}
        outputs, _ = model.apply(variables, x, mask, train=True, rngs=rngs, mutable=["normaliser"])
        return outputs["logits"].sum()

    grads = np.asarray(jax.jit(jax.grad(run))(features))
    dead = (grads == 0).all(1)
    assert 0 < dead.sum() < dead.size and ((grads == 0).any(1) == dead).all()


def test_positions_stretch_beyond_their_table(features):
    model = small(positions=16)
    variables = variables_of(model)
    long = np.concatenate([features, features], axis=1)
    outputs = jax.eval_shape(model.apply, variables, long, np.ones((2, 32), bool))
    assert outputs["logits"].shape == (2, 32 + 16 + 8, 3)
    with pytest.raises(UserError, match="position table has 16"):
        model.apply(variables, long, np.ones((2, 32), bool), train=True)
    plain = jax.jit(small().apply)(variables, features, np.ones((2, 16), bool))
    with_table = jax.jit(model.apply)(variables, features, np.ones((2, 16), bool))
    assert np.abs(plain["logits"] - with_table["logits"]).max() > 1e-3


@pytest.mark.parametrize(
    ("video", "mask", "told"),
    [
        ((1, 18, 8), (1, 18), "multiples of 4"),
        ((1, 16, 8), (1, 32), r"features \(1, 16, 8\) for a mask \(1, 32\)"),
        ((1, 16, 8, 8, 3), (1, 16), "features"),
    ],
)
def test_shapes_that_do_not_fit(video, mask, told):
    model = small()
    with pytest.raises(UserError, match=told):
        model.apply(variables_of(model), jnp.zeros(video), jnp.ones(mask, bool))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"classes": 0}, "config.model.classes=0"),
        ({"window": 4}, "config.model.window=4"),
        ({"heads": 5}, "divisors of width=512"),
        ({"branch": 3}, "config.model.ranges"),
        ({"backbone": dict(size="xl")}, "config.model.backbone.size='xl'"),
        ({"backbone": dict(mode="tuned")}, "adapter, frozen, full, side"),
        ({"backbone": dict(drop_path=1.0)}, "config.model.backbone.drop_path=1.0"),
        ({"backbone": dict(ratio=0.0)}, "config.model.backbone.ratio"),
        ({"backbone": dict(first=12)}, "blocks 0 to 11"),
    ],
)
def test_configs_that_do_not_fit(fields, told):
    backbone = fields.get("backbone", {})
    with pytest.raises(UserError, match=told) as error:
        model = Model(**fields | {"backbone": Backbone(**backbone)})
        shapes_of(network.build(model, "float32"), (32, 32, 32, 3), 32)
    assert "\n" not in str(error.value)


def test_groups_of_a_detector_on_features():
    names = [group.name for group in config.groups("")]
    assert names == ["plain", "detector"]

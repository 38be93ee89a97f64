"""VideoMAE: exact counts, parity with golden vectors, windows of any length, clips in groups."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import recipe

from jaxact.config import UserError
from jaxact.models import videomae
from jaxact.models.initialise import initialise
from jaxact.models.specs import VISION_TRANSFORMERS, AdapterSpec, VisionTransformerSpec
from jaxact.ops import position
from jaxact.weights import adatad, convert
from jaxact.weights import videomae as names
from jaxact.weights.table import detect, flatten, nest

# The network of the golden files: 32 px clips, positions counted at 48 px.
GOLDEN = VisionTransformerSpec(24, 2, 2, 96, 16, 48)
TINY = VisionTransformerSpec(24, 3, 2, 48, 8, 32)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def abstract(model, frames=(1, 16, 32, 32, 3)):
    x = jax.ShapeDtypeStruct(frames, jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("s", 21_879_936),
        ("b", 86_227_200),
        ("l", 303_860_736),
        ("h", 631_607_040),
        ("g", 1_011_610_752),
    ],
)
def test_parameters(size, parameters):
    assert count(abstract(videomae.VideoMAE(VISION_TRANSFORMERS[size]))) == parameters


def test_tokens_of_a_clip_of_160_px():
    shapes = {}
    for size in ("s", "g"):
        model = videomae.VideoMAE(VISION_TRANSFORMERS[size])
        x = jax.ShapeDtypeStruct((2, 48, 160, 160, 3), jnp.float32)
        variables = abstract(model)
        shapes[size] = jax.eval_shape(model.apply, variables, x).shape
    assert shapes == {"s": (2, 24, 10, 10, 384), "g": (2, 24, 11, 11, 1408)}


def golden_variables(model, vectors, dtype=jnp.float64):
    """The golden network's weights for `model`, through the table of AdaTAD's names."""
    tensors = {
        f"backbone.model.backbone.{key.removeprefix('param/')}": value
        for key, value in vectors.items()
        if key.startswith("param/")
    }
    target = {"params": {"backbone": abstract(model)["params"]}}
    variables, report = convert.apply(adatad.ADATAD, tensors, target)
    assert len(report.loaded) == len(flatten(target)) and report.ignored
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), variables["params"]["backbone"])


@pytest.mark.parametrize(
    ("mode", "remat", "clips_at_once"),
    [("adapter", False, 0), ("adapter", True, 1), ("plain", True, 1)],
)
def test_golden_backbone(golden, mode, remat, clips_at_once):
    vectors = dict(np.load(golden / "detection" / f"backbone_tiny_{mode}.npz"))
    model = videomae.VideoMAE(
        GOLDEN,
        AdapterSpec("adapter") if mode == "adapter" else None,
        clips_at_once=clips_at_once,
        remat=remat,
        dtype=jnp.float64,
    )
    with jax.enable_x64(True):
        params = golden_variables(model, vectors)
        frames = jnp.asarray(vectors["input"][:, 0].transpose(0, 2, 3, 4, 1), jnp.float64)

        def loss(params):
            map_ = model.apply({"params": params}, frames)
            pooled = map_.mean((2, 3))
            steps = position.resample(pooled, 32)
            weight = jnp.linspace(-1, 1, steps.size).reshape(1, 24, 32).transpose(0, 2, 1)
            return (steps * weight).sum(), (map_, pooled, steps)

        differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, (map_, pooled, steps)), grads = differentiate(params)
    maps = map_.reshape(2, 8, 2, 2, 24).transpose(0, 4, 1, 2, 3)
    np.testing.assert_allclose(maps, vectors["out_feat_map"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(pooled.transpose(0, 2, 1), vectors["out_pooled"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(steps.transpose(0, 2, 1), vectors["out_interp"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(value, vectors["loss"], rtol=1e-5)

    theirs = {key.removeprefix("grad/"): v for key, v in vectors.items() if key.startswith("grad/")}
    assert len(theirs) == {"adapter": 18, "plain": 28}[mode]
    tensors = {f"backbone.model.backbone.{key}": value for key, value in theirs.items()}
    wanted = flatten({"params": {"backbone": grads}})
    ours = {path: wanted[path] for path in _targets(tensors)}
    back, _ = convert.apply(adatad.ADATAD, tensors, nest(ours))
    for path, value in flatten(back).items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(ours[path], value, atol=1e-4 * scale, rtol=0, err_msg=path)
    if mode == "adapter":
        assert len(ours) == 18 and all("adapter" in path for path in ours)


def _targets(tensors):
    from jaxact.weights.table import translate

    return translate(adatad.ADATAD, tensors).flat


@functools.cache
def _classifier_variables(path, dtype):
    entry = json.loads(path.read_text())
    tensors = {k: recipe.fill(k, v, entry["norm_gain"]) for k, v in entry["tensors"].items()}
    for key in entry["kept"]:
        tensors[key] = position.sincos(1568, 384)[None]
    model = videomae.VideoMAEClassifier(400, dtype=dtype)
    target = abstract(model, (1, 16, 160, 160, 3))
    table = detect(tensors, names.TABLES)
    return model, convert.apply(table, tensors, target)[0]


@pytest.mark.parametrize("naming", ["hf", "mmaction2"])
def test_golden_small_videomae(golden, naming):
    stem = f"{naming}_videomae_small_160"
    vectors = np.load(golden / "videomae" / f"{stem}.npz")
    model, variables = _classifier_variables(golden / "statedict" / f"{stem}.json", jnp.float32)
    clip = recipe.draw(501, (1, 3, 16, 160, 160))
    np.testing.assert_array_equal(clip.ravel()[:8], vectors["input/first8"])
    frames = jnp.asarray(clip.transpose(0, 2, 3, 4, 1))

    @jax.jit
    def run(variables, frames):
        return model.apply(variables, frames, capture_intermediates=False, mutable="intermediates")

    logits, state = run(variables, frames)
    seen = state["intermediates"]["backbone"]
    for index in (0, 5, 11):
        tokens = np.asarray(seen[f"tokens{index}"][0]).reshape(1, 800, 384)
        name = f"tokens/block{index}"
        sample = tokens.ravel()[:: int(vectors[f"{name}/stride"])]
        np.testing.assert_allclose(sample, vectors[f"{name}/sample"], atol=1e-4, rtol=0)
    map_ = tokens.reshape(1, 8, 10, 10, 384).transpose(0, 4, 1, 2, 3)
    sample = map_.ravel()[:: int(vectors["feature_map/stride"])]
    np.testing.assert_allclose(sample, vectors["feature_map/sample"], atol=1e-4, rtol=0)
    pooled = map_.mean((3, 4))
    np.testing.assert_allclose(pooled, vectors["feature_map/pooled_hw"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits, vectors["logits"], atol=1e-4, rtol=0)


def tiny(mode="adapter", **fields):
    adaptation = AdapterSpec(mode, first=fields.pop("first", 0))
    return videomae.VideoMAE(TINY, adaptation, **fields)


@functools.cache
def tiny_variables(mode="adapter", first=0):
    """Fresh variables whose adapters do something."""
    model = tiny(mode, first=first)
    variables = initialise(model, jax.random.key(0), jnp.zeros((1, 16, 32, 32, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), variables)


@pytest.fixture(scope="module")
def window():
    return jnp.asarray(np.random.default_rng(1).standard_normal((2, 64, 32, 32, 3), np.float32))


def test_a_model_takes_windows_of_any_length(window):
    variables = tiny_variables()
    for frames in (16, 48, 64):
        map_ = jax.eval_shape(tiny().apply, variables, window[:, :frames])
        assert map_.shape == (2, frames // 2, 4, 4, 24)


def test_only_adapters_join_clips(window):
    """Another second clip changes the first one's features only with adapters, and next to it."""
    other = window.at[:, 16:32].set(0)

    def reach(model, left_out):
        """Of each token frame, the largest difference that the second clip makes."""
        params = {k: v for k, v in tiny_variables()["params"].items() if k not in left_out}
        run = jax.jit(model.apply)
        a, b = (run({"params": params}, x) for x in (window, other))
        return np.abs(a - b).max((0, 2, 3, 4))

    adapters_ = ("adapter0", "adapter1", "adapter2")
    alone = reach(videomae.VideoMAE(TINY), adapters_)
    assert alone[8:16].min() > 1e-3 and alone[:8].max() == alone[16:].max() == 0
    # One adapter, in the last block: one token frame further on either side.
    one = reach(tiny(first=2), adapters_[:2])
    assert one[7:17].min() > 1e-4 and one[:7].max() == one[17:].max() == 0
    # With earlier ones, attention spreads what has arrived over the whole neighbouring clip.
    assert reach(tiny(), ()).min() > 0


def test_fresh_adapters_add_nothing(window):
    model = tiny()
    variables = initialise(model, jax.random.key(0), jnp.zeros((1, 16, 32, 32, 3)))
    bare = {name: leaf for name, leaf in variables["params"].items() if "adapter" not in name}
    plain = jax.jit(videomae.VideoMAE(TINY).apply)({"params": bare}, window)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, window), plain, atol=1e-6)
    assert np.all(variables["params"]["adapter0"]["gamma"] == 1)


@pytest.mark.parametrize(("mode", "at_once"), [("adapter", 3), ("full", 1), ("side", 1)])
def test_groups_and_remat_change_nothing(window, mode, at_once):
    """Also with stochastic depth: the draws are made outside of the groups."""
    variables = tiny_variables(mode)
    results = []
    for fields in ({}, {"remat": True, "clips_at_once": at_once}):
        model = tiny(mode, drop_path=0.5, **fields)

        def loss(params, model=model):
            rngs = {"dropout": jax.random.key(3)}
            return (model.apply({"params": params}, window, True, rngs=rngs) ** 2).mean()

        results.append(jax.jit(jax.value_and_grad(loss))(variables["params"]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def test_groups_divide_the_clips():
    model = tiny(clips_at_once=4)
    assert [model._groups(clips) for clips in (3, 4, 6, 7, 48)] == [1, 1, 2, 7, 12]


def test_stochastic_depth_is_drawn_for_each_clip(window):
    """And never in the first block, nor in evaluation."""
    model, variables = tiny("full", drop_path=0.9), tiny_variables("full")
    same = jnp.tile(window[:1, :16], (1, 8, 1, 1, 1))

    @jax.jit
    def train(key):
        return model.apply(variables, same, True, rngs={"dropout": key})

    for seed in range(3):
        clips = np.asarray(train(jax.random.key(seed))).reshape(8, -1)
        different = np.unique(np.round(clips, 3), axis=0)
        assert 1 < len(different) <= 8
    still = videomae.VideoMAE(dataclasses.replace(TINY, depth=1), drop_path=0.9)
    x = window[:1, :16]
    variables = still.init(jax.random.key(0), x)
    np.testing.assert_array_equal(still.apply(variables, x, True), still.apply(variables, x))


def test_bf16_keeps_sums_wide(window):
    model = tiny(dtype=jnp.bfloat16)
    y = jax.jit(model.apply)(tiny_variables(), window)
    assert y.dtype == jnp.float32
    exact = jax.jit(tiny().apply)(tiny_variables(), window)
    assert 0 < np.abs(y - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("shape", "told"), [((1, 20, 32, 32, 3), "20 frames"), ((1, 16, 32, 6, 3), "6x32 px")]
)
def test_windows_that_do_not_fit(shape, told):
    with pytest.raises(UserError, match=told):
        tiny().apply(tiny_variables(), jnp.zeros(shape))


def test_choices_are_named():
    with pytest.raises(UserError, match="auto, xla, cudnn"):
        tiny(attention="flash")
    with pytest.raises(UserError, match="blocks 0 to 2"):
        tiny(first=3)
    with pytest.raises(UserError, match="over 5 heads"):
        VisionTransformerSpec(heads=5)

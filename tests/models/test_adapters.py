"""Temporal adapters: exact counts of what learns in each mode, gradients there and only there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.config import Config, Optim, UserError
from jaxact.models import adapters, videomae
from jaxact.models.initialise import initialise
from jaxact.models.specs import (
    ADAPTER_MODES,
    RANGES,
    VISION_TRANSFORMERS,
    AdapterSpec,
)
from jaxact.ops import detection_losses, segments
from jaxact.tasks.detection import config as detection_config
from jaxact.tasks.detection import network as detector
from jaxact.tasks.detection.config import Backbone, Model
from jaxact.train import optimizer, restore
from jaxact.train import state as states

FRAMES, STEPS = 32, 32


def build(size="s", mode="adapter", **fields):
    """The THUMOS-14 detector on a backbone."""
    backbone = Backbone(size=size, mode=mode, remat=False, **fields)
    return detector.build(Model(backbone=backbone), "float32")


@functools.cache
def shapes(model):
    video = jax.ShapeDtypeStruct((1, FRAMES, 32, 32, 3), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, STEPS), bool)
    return jax.eval_shape(lambda v, m: model.init(jax.random.key(0), v, m), video, mask)["params"]


def counts(model, mode):
    """Parameters of each optimiser group."""
    groups = optimizer.resolve_groups(Optim(groups=detection_config.groups(mode)), shapes(model))
    sizes: dict[str, int] = {}
    for path, leaf in states.flatten(shapes(model)).items():
        name = groups.member[path]
        sizes[name] = sizes.get(name, 0) + leaf.size
    return sizes


ADAPTERS = {"s": 83_905, "b": 333_697, "l": 592_385, "h": 924_801, "g": 1_118_657}
DETECTORS = {
    "s": 26_695_708,
    "b": 27_285_532,
    "l": 27_678_748,
    "h": 28_071_964,
    "g": 28_268_572,
}
TRAINABLE = {
    "s": (27_702_568, 48_575_644),
    "b": (31_289_896, 113_512_732),
    "l": (41_895_988, 331_539_484),
    "h": (57_665_596, 659_679_004),
    "g": (73_014_852, 1_039_879_324),
}


@pytest.mark.parametrize("size", list(ADAPTERS))
def test_what_learns_with_adapters(size):
    sizes = counts(build(size), "adapter")
    assert sizes["adapter"] == VISION_TRANSFORMERS[size].depth * ADAPTERS[size]
    assert sizes["plain"] + sizes["detector"] == DETECTORS[size]
    assert sum(sizes.values()) - sizes["frozen"] == TRAINABLE[size][0]
    assert sum(sizes.values()) - sizes["adapter"] == TRAINABLE[size][1]  # full


def test_what_learns_without_adapters():
    whole = counts(build("s", "full"), "full")
    assert "frozen" not in whole and sum(whole.values()) == TRAINABLE["s"][1]
    still = counts(build("s", "frozen"), "frozen")
    assert sum(still.values()) - still["frozen"] == DETECTORS["s"]
    assert still["frozen"] == whole["backbone"]


@pytest.mark.parametrize(
    ("size", "fields", "parameters"),
    [
        ("s", {"first": 6}, 503_430),
        ("b", {"first": 6}, 2_002_182),
        ("l", {"first": 12}, 7_108_620),
        ("g", {"first": 20, "ratio": 1 / 8}, 10_581_140),
    ],
)
def test_side_adapters(size, fields, parameters):
    sizes = counts(build(size, "side", **fields), "side")
    assert sizes["adapter"] == parameters


def test_no_decay_where_there_should_be_none():
    model = build()
    groups = optimizer.resolve_groups(
        Optim(groups=detection_config.groups("adapter", 2.0)), shapes(model)
    )
    flat = states.flatten(shapes(model))
    plain = {path for path in flat if groups.member[path] == "plain"}
    rest = {path for path in flat if groups.member[path] == "detector"}
    assert all(flat[path].ndim <= 1 for path in plain) and all(flat[p].ndim > 1 for p in rest)
    assert {
        "head/scale5",
        "head/reg/bias",
        "projection/stem0/mlp_scale",
        "neck/norm0/scale",
    } <= plain
    by_name = {group.name: group for group in groups.groups}
    assert by_name["adapter"].lr == 2 and by_name["adapter"].weight_decay == 0.05
    assert by_name["plain"].weight_decay == 0 and by_name["frozen"].frozen


def test_adapters_of_the_last_blocks():
    names = shapes(build(first=9))["backbone"]
    assert {name for name in names if "adapter" in name} == {"adapter9", "adapter10", "adapter11"}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    video = jnp.asarray(rng.standard_normal((1, FRAMES, 32, 32, 3)), jnp.float32)
    mask = jnp.ones((1, STEPS), bool)
    points = segments.points(STEPS, RANGES[:4])
    boxes, labels = jnp.asarray([[[3.0, 9.0], [12.0, 30.0]]]), jnp.asarray([[0, 1]])
    targets = segments.assign(points, boxes, labels, jnp.ones((1, 2), bool), 2)
    return video, mask, targets


class Small(Model):
    """One convolution before the transformer, and one in each tower."""

    embed = tower = 1


def tiny(mode, remat=False):
    """The smallest detector that has each of its parts."""
    backbone = Backbone(size="tiny", mode=mode, drop_path=0.0, remat=remat)
    spec = Small(2, 16, 2, 0, 1, drop_path=0.0, ranges=RANGES[:4], backbone=backbone)
    return detector.build(spec, "float32")


@functools.cache
def tiny_variables(mode):
    video = jax.ShapeDtypeStruct((1, FRAMES, 32, 32, 3), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, STEPS), bool)
    variables = initialise(tiny(mode), jax.random.key(0), video, mask)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), variables)


def loss_of(model, variables, batch):
    """Loss of flat trained leaves, the others given."""
    video, mask, targets = batch

    def loss(trained, kept):
        params = states.unflatten({**kept, **trained})
        outputs, _ = model.apply(
            {"params": params, "normaliser": variables["normaliser"]},
            video,
            mask,
            detection_losses.positives(targets[0], segments.point_mask(mask, 2)).sum(),
            train=True,
            mutable=["normaliser"],
            rngs={"dropout": jax.random.key(0)},
        )
        names = ("logits", "offsets", "points")
        terms = detection_losses.detection(
            *(outputs[name] for name in names), targets, outputs["mask"], outputs["normaliser"]
        )
        return sum(term.sum() for term in terms.values())

    return loss


@pytest.mark.parametrize("mode", ADAPTER_MODES)
def test_only_what_learns_has_gradients(batch, mode):
    """Every trained leaf has one, but those of `fc_norm`, which a detector never uses."""
    model, variables = tiny(mode, mode != "full"), tiny_variables(mode)
    optim = Optim(groups=detection_config.groups(mode))
    groups = optimizer.resolve_groups(optim, variables["params"])
    flat = states.flatten(variables["params"])
    trained = groups.select(flat, groups.trainable)
    kept = {path: leaf for path, leaf in flat.items() if path not in trained}
    differentiate = jax.jit(jax.grad(loss_of(model, variables, batch)))
    if mode == "frozen":  # the detector's gradients are looked at with the other modes
        grads = jax.eval_shape(differentiate, trained, kept)
    else:
        grads = differentiate(trained, kept)
    assert grads.keys() == trained.keys()
    backbone = {path for path in grads if path.startswith("backbone/")}
    if mode == "full":
        assert backbone == {path for path in flat if path.startswith("backbone/")}
    elif mode == "frozen":
        assert not backbone
    else:
        assert backbone and all("adapter" in p or "ladder" in p for p in backbone)
    known = {} if mode == "frozen" else grads
    still = {path for path, grad in known.items() if not np.asarray(grad).any()}
    assert still <= {p for p in flat if "fc_norm" in p}
    assert bool(still) == (mode == "full")

    config = Config(optim=dataclasses.replace(optim, name="adamw", ema=0.999))
    fresh = restore.create(config, groups, variables)
    assert fresh.ema["params"].keys() == trained.keys()
    held = {path for path in flat for name in [groups.member[path]] if name in fresh.opt_state}
    assert held == trained.keys()


@pytest.mark.parametrize("mode", ["frozen", "side"])
def test_no_gradient_reaches_a_network_that_is_only_read(batch, mode):
    model, variables = tiny(mode), tiny_variables(mode)
    flat = states.flatten(variables["params"])
    network = {
        p: leaf for p, leaf in flat.items() if p.startswith(("backbone/block", "backbone/e"))
    }
    rest = {path: leaf for path, leaf in flat.items() if path not in network}
    grads = jax.jit(jax.grad(loss_of(model, variables, batch)))(network, rest)
    assert not any(np.asarray(grad).any() for grad in grads.values())


def test_side_adapters_add_to_the_last_map(batch):
    spec = VISION_TRANSFORMERS["tiny"]
    side = videomae.VideoMAE(spec, AdapterSpec("side"))
    variables = {"params": tiny_variables("side")["params"]["backbone"]}
    map_, state = jax.jit(lambda v: side.apply(v, batch[0], mutable="intermediates"))(variables)
    tokens = [state["intermediates"][f"tokens{i}"][0] for i in range(spec.depth)]
    adapter = adapters.TemporalAdapter()
    wanted = tokens[-1]
    for index, x in enumerate(tokens):
        over_time = x.reshape(1, 16, -1, spec.width)
        params = {"params": variables["params"][f"ladder{index}"]}
        wanted = wanted + adapter.apply(params, over_time).reshape(x.shape)
    np.testing.assert_allclose(map_.reshape(wanted.shape), wanted, atol=1e-5)


def test_gamma_gathers_its_gradient_in_full():
    """It is one sum over all tokens of a window; in bf16 that sum loses percents."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 384, 50, 16)), jnp.float32)
    params = adapters.TemporalAdapter().init(jax.random.key(0), x)["params"]
    params["up"]["bias"] = params["up"]["bias"] + 0.7

    def total(gamma, dtype):
        y = adapters.TemporalAdapter(dtype=dtype).apply({"params": {**params, "gamma": gamma}}, x)
        return y.astype(jnp.float32).sum()

    exact, half = (
        jax.jit(jax.grad(functools.partial(total, dtype=dtype)))(params["gamma"])
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    np.testing.assert_allclose(half, exact, rtol=5e-3)


def test_modes_are_named():
    for wrong in (lambda: AdapterSpec("lora"), lambda: detection_config.groups("lora")):
        with pytest.raises(UserError, match="adapter, frozen, full, side"):
            wrong()
    with pytest.raises(UserError, match="ratio"):
        AdapterSpec(ratio=0)

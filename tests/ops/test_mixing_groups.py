"""Partners from groups of the batch: who they are, what travels between devices, which losses."""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import config as schema
from jaxact import task as tasks
from jaxact.config import UserError
from jaxact.ops import mixing

HERE = pathlib.Path(__file__).parent
# data x fsdp; split parameters are the same to both, and long to compile for many layers
GRIDS = {"x3d": ((1, 1), (8, 1)), "crop": ((1, 1), (8, 1), (2, 4))}
RECIPES = tuple(GRIDS)
# Programs that run a few times: quick to compile, and no other sums.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
BATCH = 16


def recipe(name, group, mixed=True):
    """A tiny network with both kinds of mixing, half of the batches each, or with none."""
    config = schema.load(command.ROOT / "configs" / f"{name}.py", "tiny")
    if name == "x3d":
        config.model.rgb.blocks = config.model.pose.blocks = (1,)
        config.data.resize, config.data.test_size, config.stages[0].size = 16, 16, 16
    else:
        config.data.classes = 2
    row = config.stages[0]
    row.mixup, row.cutmix, row.mixup_prob, row.cutmix_prob = (0.4,), (0.6,), (0.5,), (1.0,)
    if not mixed:
        row.mixup, row.cutmix = (0.0,), ()
    config.batch_size = config.eval.batch_size = BATCH
    config.mixing_group = group
    config.optim.lr = 1e-3  # BatchNorm over few numbers: large steps make much of rounding
    config.mesh.min_size = 1
    return config


# ------------------------------------------------------- in a process of its own, with 8 devices


def counted(text):
    """Kind of collective -> count, bytes and bytes sent, by the script that users have."""
    path = command.ROOT / "scripts" / "bench" / "collectives.py"
    spec = importlib.util.spec_from_file_location("collectives", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.summed(module.collectives(text))


def trained(name, group, shape, batches, mixed=True):
    """Losses of three steps on a grid of devices, and the collectives of the compiled step."""
    from jaxact.train import mesh
    from jaxact.train.restore import start
    from jaxact.train.run import abstract_batch, open_run
    from jaxact.train.step import make_train_step

    config = recipe(name, group, mixed)
    run = open_run(config, pathlib.Path("unused"))
    grid = jax.make_mesh(
        (*shape, 1),
        mesh.AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[: shape[0] * shape[1]],
    )
    run = dataclasses.replace(run, mesh=grid)
    plan = run.plan(10)
    row = plan.rows[0]
    state, groups = start(run, row.stage_data, lambda text: None)
    step = make_train_step(config, run.task, plan, groups, row, run.layout, state)
    form = abstract_batch(run.task, row.stage_data, "train", BATCH, mesh.batch_sharding(grid))
    compiled = step.lower(state, form).compile()
    losses = []
    for number in range(batches):
        state, metrics = compiled(state, mesh.split(drawn(form, number), grid))
        losses.append(float(metrics["loss"]))
    clips = sum(leaf.nbytes for key, leaf in drawn(form, 0).items() if leaf.ndim > 2)
    return {"losses": losses, "collectives": counted(compiled.as_text()), "clips": clips}


def drawn(form, number):
    """A batch of these shapes: labels 0 and 1, joints inside 16 px, all examples real."""
    rng = np.random.default_rng(number)
    arrays = {}
    for key, leaf in sorted(form.items()):
        if leaf.dtype == bool:
            arrays[key] = np.ones(leaf.shape, bool)
        elif leaf.dtype == np.uint8:
            arrays[key] = rng.integers(0, 256, leaf.shape).astype(np.uint8)
        elif np.issubdtype(leaf.dtype, np.integer):
            arrays[key] = rng.integers(0, 2, leaf.shape).astype(leaf.dtype)
        else:
            top = 1.0 if key == "score" else 16.0
            arrays[key] = rng.uniform(0, top, leaf.shape).astype(leaf.dtype)
    return arrays


def report():
    """What the tests look at, as JSON."""
    programs = {}
    for name in RECIPES:
        grouped = {str(shape): trained(name, 2, shape, 3) for shape in GRIDS[name]}
        programs[name] = {"grouped": grouped, "whole": trained(name, 0, (8, 1), 0)}
    programs["wide"] = trained("crop", 4, (8, 1), 0)  # groups that lie on two devices each
    programs["unmixed"] = trained("x3d", 0, (8, 1), 0, mixed=False)
    print(json.dumps(programs))


@pytest.fixture(scope="module")
def programs():
    paths = [str(HERE), str(command.TESTS), str(command.ROOT)]
    env = {
        **os.environ,
        "XLA_FLAGS": FLAGS,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    code = "from test_mixing_groups import report; report()"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------- tests


def largest(step):
    """Bytes of all collectives that move examples: everything but sums."""
    kinds = step["collectives"].items()
    return sum(numbers["bytes"] for kind, numbers in kinds if kind != "all-reduce")


@pytest.mark.parametrize("name", RECIPES)
def test_examples_of_a_group_do_not_travel(programs, name):
    whole, grouped = programs[name]["whole"], programs[name]["grouped"]["(8, 1)"]
    # Pixels are f32 when they are mixed; a pose is mixed as maps, larger than its joints.
    assert whole["collectives"]["all-gather of examples"]["bytes"] > whole["clips"]
    assert largest(grouped) == 0
    assert grouped["collectives"]["all-reduce"] == whole["collectives"]["all-reduce"]
    for step in programs[name]["grouped"].values():
        assert "all-gather of examples" not in step["collectives"]


def test_groups_wider_than_a_device_travel(programs):
    whole, wide = programs["crop"]["whole"], programs["wide"]
    # Between the two devices that share a group, not all eight.
    assert 0.9 < 4 * largest(wide) / largest(whole) < 1.1


def test_a_run_that_never_mixes_fetches_nobody(programs):
    assert largest(programs["unmixed"]) == 0
    assert mixing.group_of(recipe("x3d", 8)) == 8 and mixing.group_of(recipe("x3d", 0)) == 0
    assert mixing.group_of(recipe("x3d", 8, mixed=False)) == 1
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 8, 8, 3)).astype(np.float32))
    alone = mixing.draw(jax.random.key(0), 4, (8, 8), group=1)
    np.testing.assert_array_equal(mixing.apply(alone, x), x)
    np.testing.assert_array_equal(alone.order, np.arange(4))


@pytest.mark.parametrize("name", RECIPES)
def test_losses_do_not_depend_on_the_devices(programs, name):
    one, *others = (programs[name]["grouped"][str(shape)]["losses"] for shape in GRIDS[name])
    assert len(set(one)) == 3
    for losses in others:
        np.testing.assert_allclose(losses, one, rtol=0, atol=1e-6)


@functools.partial(jax.jit, static_argnums=(0, 1))
def orders(batch, group):
    keys = jax.random.split(jax.random.key(0), 600)
    return jax.vmap(lambda key: mixing.draw(key, batch, (8, 8), group=group).order)(keys)


def test_partners_are_of_the_group():
    order = np.asarray(orders(12, 4))
    within = order.reshape(-1, 3, 4) - np.arange(0, 12, 4)[:, None]
    assert (np.sort(within, axis=-1) == np.arange(4)).all()
    # Each of the four with the same probability, and no group as another.
    share = np.mean(within[..., None] == np.arange(4), axis=0)
    assert share == pytest.approx(np.full((3, 4, 4), 0.25), abs=0.08)
    same = np.mean((within[:, 0] == within[:, 1]).all(-1))
    assert same == pytest.approx(1 / 24, abs=0.03)


def test_a_group_of_all_is_a_permutation_and_none_is_the_draw_of_before():
    assert (np.sort(orders(6, 6), axis=1) == np.arange(6)).all()
    assert (np.asarray(orders(6, 8)) == orders(6, 6)).all()  # fewer than a group are one
    key = jax.random.key(3)
    mix = mixing.draw(key, 16, (8, 8), 0.4)
    wanted = jax.random.permutation(jax.random.split(key, 4)[3], 16)
    np.testing.assert_array_equal(mix.order, wanted)
    other = mixing.draw(key, 16, (8, 8), 0.4, group=4)
    for name in ("lam", "cut", "box"):
        np.testing.assert_array_equal(getattr(other, name), getattr(mix, name))


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 0.6)])
def test_a_group_is_mixed_as_its_order_says(alphas):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 2, 8, 8, 3)).astype(np.float32))
    mix = mixing.draw(jax.random.key(5), 12, (8, 8), *alphas, group=4)
    assert (np.asarray(mix.order) != np.arange(12)).any() and mix.lam < 1
    plain = dataclasses.replace(mix, group=0)
    np.testing.assert_array_equal(mixing.partners(mix, x), x[mix.order])
    np.testing.assert_array_equal(mixing.apply(mix, x), mixing.apply(plain, x))
    table = jax.nn.one_hot(jnp.arange(12) % 5, 5)
    np.testing.assert_array_equal(mixing.targets(mix, table), mixing.targets(plain, table))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("group", [1, -2, 3, 16])
def test_groups_that_do_not_divide_the_batch(name, group):
    config = recipe(name, group)
    config.optim.accumulate = 2
    with pytest.raises(UserError) as caught:
        tasks.make(config)
    text = str(caught.value)
    assert text.startswith(f"config.mixing_group={group} is not allowed; allowed: 0 ")
    assert "divisor of the 8 examples" in text and "\n" not in text
    with pytest.raises(ValueError, match="groups of 5 do not divide a batch of 8"):
        mixing.draw(jax.random.key(0), 8, (8, 8), group=5)

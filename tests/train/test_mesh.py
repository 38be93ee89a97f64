"""The table of axes, rows of hosts, and a state split over eight virtual devices."""

import json
import os
import pathlib
import subprocess
import sys

import command
import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from toy import blobs, recipe

from jaxact.config import UserError, validate
from jaxact.data import pipeline
from jaxact.train import mesh, sharding

HERE = pathlib.Path(__file__).parent
SHAPES = ((8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8))


# ------------------------------------------------------- in a process of its own, with 8 devices


def grids():
    """Every shape over all devices."""
    from jaxact import config

    for shape in SHAPES:
        yield mesh.make_mesh(config.Mesh(data=shape[0], fsdp=shape[1], tensor=shape[2]))


def opened(grid, **model):
    """The toy with large arrays and everything that a state can hold, on a mesh."""
    import dataclasses

    from jaxact.config import Optim
    from jaxact.train.run import open_run

    config = recipe.get_config()
    # A bias before BatchNorm has no gradient but rounding: a small eps would make steps of it.
    config.optim = Optim(name="adamw", lr=1e-3, eps=1e-3, ema=0.9, clip=1.0)
    config.mesh.min_size = 1
    for name, value in model.items():
        setattr(config.model, name, value)
    run = open_run(config, pathlib.Path("unused"))
    return dataclasses.replace(run, mesh=grid)


def compiled(run):
    """(state, groups, step) of a run at its start."""
    from jaxact.train import restore
    from jaxact.train.run import abstract_batch
    from jaxact.train.step import make_train_step

    plan = run.plan(10)
    state, groups = restore.start(run, plan.rows[0].stage_data, lambda text: None)
    step = make_train_step(run.config, run.task, plan, groups, plan.rows[0], run.layout, state)
    batch = abstract_batch(
        run.task, plan.rows[0].stage_data, "train", 8, mesh.batch_sharding(run.mesh)
    )
    return state, step.lower(state, batch).compile()


def trained(run, batches):
    """Losses and parameters after a few steps, and whether the state lies where it lay."""
    state, step = compiled(run)
    losses = []
    for batch in batches:
        state, metrics = step(state, mesh.split(batch, run.mesh))
        losses.append(float(metrics["loss"]))
    places = jax.tree.leaves(run.layout.places(state))
    stays = [
        leaf.sharding.is_equivalent_to(place, leaf.ndim)
        for leaf, place in zip(jax.tree.leaves(state), places, strict=True)
    ]
    last = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(state.params)]
    return state, {
        "losses": losses,
        "params": np.concatenate(last).tolist(),
        "stays": all(stays),
        "split": sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)),
    }


def moved(folder, states):
    """A checkpoint written on each mesh and read on the next: arrays equal, places the new ones."""
    from jaxact.config import Save
    from jaxact.train import checkpoint

    leaves = []
    for number, (_, state) in enumerate(states):
        run, other = states[(number + 1) % len(states)]
        files = checkpoint.Checkpoints(
            folder / str(number), Save(), "top1", True, lambda text: None
        )
        files.save(state)
        files.wait()
        read = files.restore(other)
        files.close()
        places = run.layout.places(read)
        same = jax.tree.map(
            lambda a, b, p: (
                bool((np.asarray(a) == np.asarray(b)).all())
                and b.sharding.is_equivalent_to(p, b.ndim)
            ),
            state,
            read,
            places,
        )
        leaves.append(all(jax.tree.leaves(same)))
    return leaves


def vision(grid, x, variables):
    """Outputs and gradients of a small vision transformer whose parameters lie by the table."""
    from jaxact.models import videomae
    from jaxact.models.specs import VISION_TRANSFORMERS
    from jaxact.train import state as states

    model = videomae.VideoMAEClassifier(3, VISION_TRANSFORMERS["tiny"])
    layout = sharding.Layout(grid, 1)
    params = layout.place(variables["params"])
    flat = sharding_paths(params)

    def loss(params, x):
        flat = layout.gather(states.flatten(params))
        return (model.apply({"params": states.unflatten(flat)}, x) ** 2).sum()

    x = mesh.split({"x": x}, grid)["x"]
    places = layout.places(params)
    value, grads = jax.jit(jax.value_and_grad(loss), out_shardings=(None, places))(params, x)
    arrays = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(grads)]
    return {"value": float(value), "grads": np.concatenate(arrays), "axes": flat}


def sharding_paths(params):
    """Path -> its axes, of what is split."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        sharding.joined(path): list(leaf.sharding.spec)
        for path, leaf in flat
        if not leaf.sharding.is_fully_replicated
    }


def report(folder):
    """What the tests look at, as JSON."""
    from jaxact.data.pipeline import train_batches
    from jaxact.models import videomae
    from jaxact.models.initialise import initialise
    from jaxact.models.specs import VISION_TRANSFORMERS

    one = jax.make_mesh(
        (1, 1, 1),
        mesh.AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )
    measured = {"training": [], "bytes": {}}
    states = []
    for grid in (one, *grids()):
        run = opened(grid)
        batches = train_batches(
            run.config, run.task, run.source("train"), run.plan(10).rows[0].stage_data, 0, 5
        )
        state, numbers = trained(run, list(batches))
        measured["training"].append(numbers)
        states.append((run, state))
    measured["moved"] = moved(pathlib.Path(folder), states)
    for name, grid in zip(("data", "fsdp"), grids(), strict=False):
        state, step = compiled(opened(grid, width=1 << 14, classes=8))
        tree = {"state": (state.params, state.opt_state, state.ema)}
        measured["bytes"][name] = {
            "compiled": step.memory_analysis().argument_size_in_bytes,
            "told": opened(grid).layout.bytes_of(tree),
            "whole": sum(leaf.nbytes for leaf in jax.tree.leaves(tree)),
        }
    x = np.random.default_rng(0).normal(size=(8, 16, 32, 32, 3)).astype(np.float32)
    model = videomae.VideoMAEClassifier(3, VISION_TRANSFORMERS["tiny"])
    variables = initialise(model, jax.random.key(0), x)
    vits = [vision(grid, x, variables) for grid in (one, *list(grids())[3:4])]
    worst = float(np.abs(vits[0]["grads"] - vits[1]["grads"]).max())
    measured["vision"] = {
        "values": [v["value"] for v in vits],
        "axes": vits[1]["axes"],
        "worst": worst,
        "largest": float(np.abs(vits[0]["grads"]).max()),
    }
    print(json.dumps(measured))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    paths = [str(HERE), str(command.TESTS), str(command.ROOT)]
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    folder = tmp_path_factory.mktemp("moved")
    ended = subprocess.run(
        [sys.executable, "-c", f"from test_mesh import report; report({str(folder)!r})"],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------- tests


def test_every_mesh_trains_as_one_device(measured):
    one, *others = measured["training"]
    for numbers in others:
        np.testing.assert_allclose(numbers["losses"], one["losses"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(numbers["params"], one["params"], rtol=0, atol=1e-5)
    assert all(numbers["stays"] for numbers in measured["training"])
    # Parameters, two moments and average of three dense arrays and four vectors; not the counts.
    split = [numbers["split"] for numbers in measured["training"]]
    assert split[0] == split[1] == split[5] == 0 and min(split[2:5]) > 12


def test_a_checkpoint_fits_any_mesh(measured):
    assert measured["moved"] == [True] * (1 + len(SHAPES))


def test_fsdp_takes_an_eighth_of_the_memory(measured):
    data, fsdp = measured["bytes"]["data"], measured["bytes"]["fsdp"]
    assert data["told"] == data["whole"]
    assert data["compiled"] >= data["whole"]
    assert 0.12 < fsdp["compiled"] / data["compiled"] < 0.13
    assert 0.12 < fsdp["told"] / fsdp["whole"] < 0.13


def test_a_vision_transformer_in_parts(measured):
    vit = measured["vision"]
    one, parts = vit["values"]
    assert abs(one - parts) < 1e-5 * abs(one)
    assert vit["worst"] < 1e-5 * max(vit["largest"], 1)
    axes = vit["axes"]
    assert axes["backbone/block0/attn/qkv/kernel"] == ["fsdp", "tensor"]
    assert axes["backbone/block1/attn/proj/kernel"] == ["tensor", "fsdp"]
    assert axes["backbone/block0/mlp/fc1/bias"] == ["tensor"]


def videomae_paths():
    """Path -> shape of the parameters of a small vision transformer."""
    from jaxact.models import videomae
    from jaxact.models.specs import VISION_TRANSFORMERS

    model = videomae.VideoMAEClassifier(3, VISION_TRANSFORMERS["tiny"])
    x = jax.ShapeDtypeStruct((1, 16, 32, 32, 3), np.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {sharding.joined(path): leaf.shape for path, leaf in flat}


def layout(data=1, fsdp=1, tensor=1, min_size=1):
    return sharding.Layout(AbstractMesh((data, fsdp, tensor), mesh.AXES), min_size)


def test_every_row_of_the_table_is_used():
    import re

    shapes = videomae_paths()
    for pattern, axes in sharding.TABLE:
        hits = [path for path in shapes if re.search(pattern, path)]
        assert hits and all(len(shapes[path]) == len(axes) for path in hits), pattern
        assert set(axes) <= sharding.LOGICAL.keys()


@pytest.mark.parametrize(
    ("path", "shape", "wanted"),
    [
        ("params/a/kernel", (64, 32), PartitionSpec("fsdp", None)),
        ("params/a/kernel", (30, 32), PartitionSpec(None, "fsdp")),
        ("params/a/kernel", (30, 34), PartitionSpec()),
        ("params/a/kernel", (3, 3, 3, 8, 8), PartitionSpec(None, None, None, "fsdp", None)),
        ("params/a/bias", (4,), PartitionSpec()),  # below min_size
        ("opt/all/0/mu/x/block3/attn/qkv/kernel", (8, 24), PartitionSpec("fsdp", "tensor")),
        ("ema/params/x/block3/mlp/fc2/kernel", (32, 8), PartitionSpec("tensor", "fsdp")),
        ("params/block3/attn/qkv/kernel", (8, 27), PartitionSpec("fsdp", None)),
        ("step", (), PartitionSpec()),
    ],
)
def test_axes_of_an_array(path, shape, wanted):
    assert layout(2, 4, 2, min_size=16).spec(path, shape) == wanted


def test_without_ways_nothing_is_split():
    for path, shape in videomae_paths().items():
        assert layout(8).spec(path, shape) == PartitionSpec()


# ------------------------------------------------------------------------------ rows of the hosts


def rows_read(rows, start=2, end=5):
    """ids and x of some rows of the toy's batches."""
    config = recipe.get_config()
    task = blobs.make(config)
    stream = pipeline.train_batches(
        config,
        task,
        task.training.source("train"),
        blobs.Stage(sampler="natural", size=8),
        start,
        end,
        rows,
    )
    return list(stream)


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_read_each_row_once(hosts):
    whole = rows_read(None)
    parts = [rows_read(range(k * 8 // hosts, (k + 1) * 8 // hosts)) for k in range(hosts)]
    for number, batch in enumerate(whole):
        for name, array in batch.items():
            joined = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(joined, array)


@pytest.mark.parametrize("count", [21, 16, 3])
def test_hosts_evaluate_each_example_once(count):
    config = recipe.get_config()
    config.data.held_out = count
    task = blobs.make(config)
    source = task.training.source("val")
    view = blobs.Stage(sampler="natural", size=8)
    ids = []
    for rows in ((0, 1, 2, 5), (3, 4, 6, 7)):
        stream = pipeline.eval_batches(config, task, source, view, "val", 8, rows=rows)
        for batch in stream:
            ids += batch["id"][batch["mask"]].tolist()
    assert sorted(ids) == list(range(count))


def test_one_process_reads_all():
    assert mesh.rows(mesh.make_mesh(), 8) is None


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("data", 3, "over 1 devices"),
        ("fsdp", 2, "fsdp=2"),
        ("tensor", 5, "tensor=5"),
    ],
)
def test_a_grid_that_is_not_the_devices(field, value, says):
    config = recipe.get_config()
    setattr(config.mesh, field, value)
    validate(config)
    if jax.device_count() > 1:
        pytest.skip("the numbers are those of one device")
    with pytest.raises(UserError, match=says):
        mesh.make_mesh(config.mesh)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"fsdp": 0}, "config.mesh.fsdp=0"),
        ({"data": -1}, "config.mesh.data=-1"),
        ({"hosts": "two"}, "one, given, auto"),
        ({"hosts": "given"}, "config.mesh.coordinator=''"),
        ({"hosts": "given", "coordinator": "a:1"}, "config.mesh.processes=0"),
        (
            {"hosts": "given", "coordinator": "a:1", "processes": 2, "process": 2},
            "config.mesh.process=2 is not allowed; allowed: 0 to 1",
        ),
        ({"timeout": 1}, "config.mesh.timeout=1"),
    ],
)
def test_fields_out_of_range(fields, says):
    config = recipe.get_config()
    for name, value in fields.items():
        setattr(config.mesh, name, value)
    with pytest.raises(UserError) as caught:
        validate(config)
    assert says in str(caught.value)

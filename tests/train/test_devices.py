"""Eight virtual devices give the numbers of one."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import command
import jax
import numpy as np
import pytest
from command import TOY

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
HERE = pathlib.Path(__file__).parent


# ------------------------------------------------------- in a process of its own, with 8 devices


def meshes():
    """One mesh over one device, one over all."""
    from jax.sharding import AxisType

    for count in (1, 8):
        devices = jax.devices()[:count]
        yield jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def trained(run, grid, batches):
    """Losses of a few steps, and what they leave."""
    from jaxact.train import mesh
    from jaxact.train.restore import start
    from jaxact.train.step import make_train_step

    run = dataclasses.replace(run, mesh=grid)
    plan = run.plan(10)
    state, groups = start(run, plan.rows[0].stage_data, lambda text: None)
    step = make_train_step(run.config, run.task, plan, groups, plan.rows[0])
    losses, statistics = [], []
    for batch in batches:
        state, metrics = step(state, mesh.split(batch, grid))
        losses.append(float(metrics["loss"]))
        leaves = jax.tree.leaves(state.model_state)
        statistics.append([np.asarray(leaf, np.float64).tolist() for leaf in leaves])
    last = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(state.params)]
    return {
        "losses": losses,
        "statistics": statistics,
        "params": np.concatenate(last).tolist(),
        "devices": len(state.step.sharding.device_set),
    }


def evaluated(run, grid):
    """Scores, ids and score rows of the ragged split."""
    from jaxact.train.evaluation import evaluate
    from jaxact.train.run import initial_variables
    from jaxact.train.step import make_eval_step

    run = dataclasses.replace(run, mesh=grid)
    view = run.plan().rows[0].stage_data
    variables = initial_variables(run, view)
    scores, rows, ids = evaluate(run, make_eval_step(run.task, "val"), variables, "val", view)
    return {"scores": scores, "ids": ids, "rows": rows["scores"].tolist()}


def report():
    """What the tests look at, as JSON."""
    from test_step import clips, tiny, toy

    from jaxact.config import UserError
    from jaxact.data.pipeline import train_batches
    from jaxact.train.run import initial_variables, open_run

    nowhere = pathlib.Path("unused")
    measured = {}
    run = open_run(toy(), nowhere)
    view = run.plan().rows[0].stage_data
    batches = list(train_batches(run.config, run.task, run.source("train"), view, 0, 5))
    batches[3]["mask"][[1, 6]] = False  # the mean is over what is left, on whatever device
    measured["toy"] = [trained(run, grid, batches) for grid in meshes()]
    measured["x"] = batches[0]["x"].tolist()
    first = initial_variables(run, view)["params"]["body"]
    assert not np.asarray(first["bias"]).any()
    measured["kernel"] = np.asarray(first["kernel"]).tolist()
    measured["evaluation"] = [evaluated(run, grid) for grid in meshes()]
    config = tiny(batch_size=8)
    run = open_run(config, nowhere)
    measured["recogniser"] = [trained(run, grid, clips(config, 3)) for grid in meshes()]
    measured["refused"] = {}
    for name, fields in {
        "batch_size": {"batch_size": 12, "eval__batch_size": 8},
        "accumulate": {"optim__accumulate": 2, "eval__batch_size": 8},
        "eval.batch_size": {"eval__batch_size": 20},
    }.items():
        try:
            open_run(toy(**fields), nowhere)
        except UserError as error:
            measured["refused"][name] = str(error)
    print(json.dumps(measured))


@pytest.fixture(scope="module")
def measured():
    paths = [str(HERE), str(command.TESTS), str(command.ROOT)]
    cache = jax.config.jax_compilation_cache_dir or ""
    env = {
        **os.environ,
        **EIGHT,
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    ended = subprocess.run(
        [sys.executable, "-c", "from test_devices import report; report()"],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("system", ["toy", "recogniser"])
def test_training_on_eight_devices_is_training_on_one(measured, system):
    one, eight = measured[system]
    assert (one["devices"], eight["devices"]) == (1, 8)
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(eight["params"], one["params"], atol=1e-5)
    pairs = zip(
        jax.tree.leaves(one["statistics"]), jax.tree.leaves(eight["statistics"]), strict=True
    )
    np.testing.assert_allclose(*map(np.array, zip(*pairs, strict=True)), rtol=1e-5, atol=1e-5)
    assert len(set(one["losses"])) == len(one["losses"])


def test_batch_norm_sees_the_whole_batch(measured):
    """A tenth of the whole batch's mean and variance; one example a device has variance 0."""
    y = np.array(measured["x"]).reshape(8, 4, -1).mean(-1) @ np.array(measured["kernel"])
    assert y.var(0).min() > 0.01
    for place in measured["toy"]:
        mean, var = (np.array(leaf) for leaf in place["statistics"][0])
        np.testing.assert_allclose(mean, 0.1 * y.mean(0), atol=1e-6)
        np.testing.assert_allclose(var, 0.9 + 0.1 * y.var(0), atol=1e-6)


def test_evaluation_counts_every_example_once(measured):
    for place in measured["evaluation"]:
        assert place["ids"] == [f"val{k}" for k in range(21)]
        assert len(place["rows"]) == 21
    one, eight = measured["evaluation"]
    np.testing.assert_allclose(eight["rows"], one["rows"], atol=1e-5)
    assert eight["scores"]["top1"] == one["scores"]["top1"]
    labels = np.arange(21) % 3
    assert one["scores"]["top1"] == (np.argmax(one["rows"], 1) == labels).mean()


def test_batches_that_do_not_split_are_refused(measured):
    refused = measured["refused"]
    assert "config.batch_size=12" in refused["batch_size"]
    assert "multiples of 8" in refused["batch_size"]
    assert "batch_size=4" in refused["accumulate"]
    assert "config.eval.batch_size=20" in refused["eval.batch_size"]


def test_a_run_moves_between_machines(tmp_path):
    """Trained on eight devices, evaluated on one, and trained on there."""
    run = (TOY, f"--workdir={tmp_path}")
    command.trained(*run, "--config.length=1 epochs", env=EIGHT)
    before = json.loads((tmp_path / "results.json").read_text())
    assert before["versions"]["devices"].startswith("8 x")
    scores = json.loads(command.trained(*run, "--mode=eval").out)["scores"]
    assert scores["top1"] == before["scores"]["top1"]
    assert scores["nll"] == pytest.approx(before["scores"]["nll"], abs=1e-5)
    assert "resumed from step 6" in command.trained(*run, "--config.length=2 epochs").err
    after = json.loads((tmp_path / "results.json").read_text())
    assert after["steps"] == 12 and after["versions"]["devices"].startswith("1 x")

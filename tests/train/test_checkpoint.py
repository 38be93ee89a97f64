"""What is kept, what is read back, and starting from another run."""

import dataclasses
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from altered import changed
from toy import blobs, recipe

from jaxact.config import Group, UserError
from jaxact.train import checkpoint, state
from jaxact.train.restore import same_shapes, start
from jaxact.train.run import abstract_variables, open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(recipe.get_config(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def fresh(run):
    """A state at step 0."""
    return start(run, run.plan().rows[0].stage_data, lambda text: None)[0]


def at(fresh, step):
    """That state as if `step` updates had been done: every float leaf is the step."""

    def mark(leaf):
        return leaf * 0 + step if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) else leaf

    return dataclasses.replace(jax.tree.map(mark, fresh), step=jax.numpy.int32(step))


def opened(folder, said=None, metric="top1", maximise=True, **kept):
    save = dataclasses.replace(recipe.get_config().save, **kept)
    say = (lambda text: None) if said is None else said.append
    return checkpoint.Checkpoints(folder / "checkpoints", save, metric, maximise, say)


def on_disk(folder):
    return sorted(
        int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()
    )


SCORES = {1: 0.5, 2: 0.9, 3: 0.7, 4: None, 5: 0.8, 6: 0.1}


def saved(folder, fresh, **options):
    """Checkpoints 1 to 6; the fourth was not validated."""
    files = opened(folder, **options)
    for step, top1 in SCORES.items():
        metrics = None if top1 is None else {"top1": top1, "nll": 1 - top1}
        files.save(at(fresh, step), metrics)
    files.wait()
    return files


@pytest.mark.parametrize(
    ("best", "latest", "wanted"),
    [
        (1, 1, [2, 6]),
        (1, 2, [2, 5, 6]),
        (2, 1, [2, 5, 6]),
        (3, 1, [2, 3, 5, 6]),
        (1, 3, [2, 4, 5, 6]),
    ],
)
def test_the_best_and_the_newest_are_kept(tmp_path, fresh, best, latest, wanted):
    files = saved(tmp_path, fresh, best=best, latest=latest)
    files.close()
    assert on_disk(tmp_path) == wanted
    again = opened(tmp_path, best=best, latest=latest)
    assert again.steps() == wanted and again.best() == 2
    assert checkpoint.stored_metrics(again.folder / "2") == {"top1": 0.9, "nll": pytest.approx(0.1)}
    assert checkpoint.stored_metrics(again.folder / "6")["top1"] == 0.1
    again.close()


def test_less_may_be_better(tmp_path, fresh):
    files = saved(tmp_path, fresh, metric="nll", maximise=False, best=1, latest=1)
    assert files.steps() == [2, 6] and files.best() == 2
    files.close()


def test_of_equals_the_newest_is_best(tmp_path, fresh):
    files = opened(tmp_path, best=2, latest=2)
    for step in (1, 2):
        files.save(at(fresh, step), {"top1": 0.5})
    files.wait()
    assert files.best() == 2
    files.close()


def test_keeping_goes_on_after_a_restart(tmp_path, fresh):
    saved(tmp_path, fresh, best=1, latest=1).close()
    files = opened(tmp_path, best=1, latest=1)
    files.save(at(fresh, 7), {"top1": 0.2})
    files.close()
    assert on_disk(tmp_path) == [2, 7]


def test_the_newest_is_restored_whole(tmp_path, fresh):
    saved(tmp_path, fresh).close()
    files = opened(tmp_path)
    restored = files.restore(fresh)
    wanted = at(fresh, 6)
    assert jax.tree.structure(restored) == jax.tree.structure(wanted)
    trees = (jax.tree.leaves(tree) for tree in (restored, wanted, fresh))
    for one, other, template in zip(*trees, strict=True):
        assert one.dtype == other.dtype and one.sharding == template.sharding
        np.testing.assert_array_equal(one, other)
    files.close()


def test_an_empty_folder_restores_nothing(tmp_path, fresh):
    files = opened(tmp_path)
    assert files.restore(fresh) is None and files.best() is None and files.steps() == []
    files.close()


def test_a_half_written_checkpoint_is_not_one(tmp_path, fresh):
    """What a kill leaves behind, and the same step can be written again."""
    saved(tmp_path, fresh, best=1, latest=1).close()
    source = tmp_path / "checkpoints" / "6"
    source.rename(tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp")
    files = opened(tmp_path, best=1, latest=1)
    assert files.steps() == [2]
    assert int(files.restore(fresh).step) == 2
    files.save(at(fresh, 6), {"top1": 0.3})
    files.close()
    assert on_disk(tmp_path) == [2, 6]


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("empty", "weights/_METADATA"),
        ("gone", "weights/_METADATA"),
        ("cut", "weights/manifest.ocdbt"),
        ("other", "weights/d/*"),
        ("cut", "weights/d/*"),
        ("empty", "progress/d/*"),
        ("gone", "progress/d/*"),
    ],
)
def test_one_damaged_file_is_enough_to_fall_back(tmp_path, fresh, kind, place):
    saved(tmp_path, fresh, best=1, latest=2).close()
    for path in (tmp_path / "checkpoints" / "6").glob(place):
        DAMAGE[kind](path)
    said = []
    files = opened(tmp_path, said, best=1, latest=2)
    assert int(files.restore(fresh).step) == 5
    assert files.steps() == [2, 5]
    assert (tmp_path / "checkpoints" / "corrupt-6").is_dir()
    assert len(said) == 1 and said[0].startswith("checkpoint 6 is corrupt (")
    files.save(at(fresh, 6), {"top1": 0.95})  # the step is trained again
    files.close()
    assert on_disk(tmp_path) == [5, 6]


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_metrics_cost_only_the_metrics(tmp_path, fresh, kind):
    saved(tmp_path, fresh, best=1, latest=2).close()
    DAMAGE[kind](tmp_path / "checkpoints" / "2" / "metrics" / "metrics")
    said = []
    files = opened(tmp_path, said, best=1, latest=2)
    assert int(files.restore(fresh).step) == 6
    assert files.best() == 5
    assert len(said) == (kind != "gone")
    files.close()


def test_another_model_is_told_by_its_first_array(tmp_path, run, fresh):
    saved(tmp_path, fresh, best=1, latest=1).close()
    config = recipe.get_config()
    config.model.classes = 5
    other = open_run(config, tmp_path)
    now = start(other, other.plan().rows[0].stage_data, lambda text: None)[0]
    files = opened(tmp_path, best=1, latest=1)
    with pytest.raises(UserError, match=r"head/bias is \(3,\) there and \(5,\) here"):
        files.restore(now)
    files.close()
    assert on_disk(tmp_path) == [2, 6]


class Bare(nn.Module):
    """A model without statistics."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3, name="head")(x)


def test_weights_are_read_without_a_template(tmp_path, fresh):
    saved(tmp_path, fresh, best=1, latest=1).close()
    stored = checkpoint.read_weights(tmp_path / "checkpoints" / "6")
    assert stored.keys() == {"params", "model_state", "ema"}
    assert state.flatten(stored["params"]).keys() == state.flatten(fresh.params).keys()
    assert stored["ema"]["params"].keys() == fresh.ema["params"].keys()
    np.testing.assert_array_equal(stored["params"]["head"]["kernel"], np.full((16, 3), 6.0))


def test_a_model_without_statistics_or_average(tmp_path):
    config = recipe.get_config()
    config.optim.ema = 0.0
    run = open_run(config, tmp_path)
    run = dataclasses.replace(run, task=changed(run.task, model=Bare()))
    view = run.plan().rows[0].stage_data
    now = start(run, view, lambda text: None)[0]
    files = opened(tmp_path)
    files.save(at(now, 1), {"top1": 1.0})
    files.close()
    files = opened(tmp_path)
    assert int(files.restore(now).step) == 1
    files.close()
    stored = checkpoint.read_weights(tmp_path / "checkpoints" / "1")
    same_shapes(abstract_variables(run, view), stored, tmp_path)
    assert not stored.get("ema") and not stored["model_state"]


# ------------------------------------------------------------------------------------- init_from


def started(folder, origin, **model):
    """Variables of a run that starts from another, and its report."""
    config = recipe.get_config()
    config.init_from = str(origin)
    for name, value in model.items():
        setattr(config.model, name, value)
    run = open_run(config, folder)
    said = []
    begun, _ = start(run, run.plan().rows[0].stage_data, said.append)
    return begun, said, (folder / "init_report.txt").read_text()


def test_a_start_from_another_run(tmp_path, fresh):
    """The best checkpoint of its work dir (not the newest), its averaged weights, step 0."""
    origin = tmp_path / "origin"
    saved(origin, fresh, best=1, latest=1).close()
    (origin / "config.json").write_text(
        '{"config": {"eval": {"metric": "top1", "maximise": true}}}'
    )
    begun, said, report = started(tmp_path / "new", origin)
    assert int(begun.step) == 0
    for leaf in jax.tree.leaves((begun.params, begun.model_state, begun.ema)):
        np.testing.assert_array_equal(leaf, 2.0)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(begun.opt_state))
    assert "8 of 8 arrays loaded (ema weights)" in report.splitlines()[0]
    assert said == [f"{report.splitlines()[0]}; full report: {tmp_path / 'new/init_report.txt'}"]
    begun, _, _ = started(tmp_path / "newest", origin / "checkpoints" / "6")
    np.testing.assert_array_equal(begun.params["head"]["bias"], 6.0)


def test_a_start_from_another_number_of_classes(tmp_path, fresh):
    origin = tmp_path / "origin"
    saved(origin, fresh, best=1, latest=1).close()
    begun, _, report = started(tmp_path / "new", origin, classes=5)
    np.testing.assert_array_equal(begun.params["body"]["kernel"], 6.0)
    assert begun.params["head"]["kernel"].shape == (16, 5)
    assert not (np.asarray(begun.params["head"]["kernel"]) == 6).any()
    lines = report.splitlines()
    assert "6 of 8 arrays loaded" in lines[0]
    replaced = [line.split()[1] for line in lines if line.startswith("replaced")]
    assert sorted(replaced) == ["params/head/bias", "params/head/kernel"]
    assert re.search(r"params/head/kernel \(16, 3\) -> \(16, 5\): keeps its initial value", report)


def test_a_start_from_something_that_does_not_fit(tmp_path, fresh):
    origin = tmp_path / "origin"
    saved(origin, fresh, best=1, latest=1).close()
    with pytest.raises(UserError, match="does not exist"):
        started(tmp_path / "new", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        started(tmp_path / "new", tmp_path / "empty")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"zip")
    with pytest.raises(UserError, match="reads only its own checkpoints"):
        started(tmp_path / "new", weights)


def test_frozen_groups_are_evaluated_with_their_weights(tmp_path):
    """They are in no average; what evaluation reads has them all the same."""
    config = recipe.get_config()
    config.optim.groups = (Group("body", "^body", frozen=True), Group("head", ".*"))
    run = open_run(config, tmp_path)
    now = start(run, run.plan().rows[0].stage_data, lambda text: None)[0]
    files = opened(tmp_path)
    files.save(at(now, 3), {"top1": 1.0})
    files.close()
    stored = checkpoint.read_weights(tmp_path / "checkpoints" / "3")
    variables = blobs_variables(stored)
    assert variables["params"].keys() == {"body", "body_bn", "head"}
    np.testing.assert_array_equal(variables["params"]["body"]["kernel"], 3.0)


def blobs_variables(stored):
    from jaxact.train.restore import stored_variables

    variables = stored_variables(stored)
    net = blobs.make(recipe.get_config()).training.model
    assert np.isfinite(net.apply(variables, np.ones((2, 8), np.float32), train=False)).all()
    return variables

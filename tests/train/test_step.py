"""One update: what moves and what does not, how often it is traced, accumulation, averaging."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from altered import changed, with_fields
from toy import blobs, recipe

from jaxact import config as schema
from jaxact.config import Group
from jaxact.data.pipeline import random_batch, train_batches
from jaxact.models.specs import X3DSpec
from jaxact.tasks.action import task as action
from jaxact.tasks.action.config import Config, Data, Model, Stage
from jaxact.train import loop, mesh, restore, state
from jaxact.train.run import open_run
from jaxact.train.step import make_train_step

TOY_GROUPS = (Group("body", "^body"), Group("head", "^head"))


def toy(**fields):
    """The toy's config with a constant learning rate and these fields (optim__lr=0.1)."""
    config = recipe.get_config()
    config.optim.schedule = "constant"
    return with_fields(config, **fields)


def tiny(streams="rgb+pose", **fields):
    """A recogniser of one block a stage; batches of it are random bytes."""
    spec = X3DSpec(blocks=(1,), width=8, temporal="shift")
    pose = dataclasses.replace(spec, fold_div=4, stem_stride=1)
    model = Model(streams=streams, classes=3, rgb=spec, pose=pose, dropout=(0.0, 0.0))
    data = Data(rgb_frames=2, pose_frames=4, test_size=16, scale=0.5, people=1)
    config = Config(batch_size=4, length="10 steps", model=model, data=data)
    config.stages = (Stage(size=16),)
    config.optim = schema.Optim(lr=0.05, schedule="constant", ema=0.5)
    return with_fields(config, **fields)


@dataclasses.dataclass
class History:
    """A training step by step: NumPy copies of the states, and the metrics."""

    states: list[Any]
    metrics: list[dict[str, float]]
    fit: Any


def flat(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def steps(config, count, folder, task=None, batches=None) -> History:
    """Runs the first steps of a config as the loop does."""
    run = open_run(config, folder)
    if task is not None:
        run = dataclasses.replace(run, task=task)
    plan = run.plan(None if batches is None else 10)
    current, groups = restore.start(run, plan.rows[0].stage_data, lambda text: None)
    programs = {}
    kept, metrics = [jax.device_get(current)], []
    for row, start, end in plan.segments(0):
        if row.program not in programs:
            programs[row.program] = make_train_step(config, run.task, plan, groups, row)
        if batches is None:
            stream = train_batches(
                config, run.task, run.source("train"), row.stage_data, start, end
            )
        else:
            stream = iter(batches[start:end])
        for batch in stream:
            current, now = programs[row.program](current, mesh.split(batch, run.mesh))
            # A copy: the step donates its state, and on CPU NumPy looks at the same memory.
            kept.append(jax.tree.map(np.array, jax.device_get(current)))
            metrics.append({name: float(value) for name, value in now.items()})
            if len(metrics) == count:
                return History(kept, metrics, (run, plan, groups))
    return History(kept, metrics, (run, plan, groups))


def clips(config, count, seed=0):
    """Batches for the recogniser: random pixels, joints and labels."""
    task = action.make(config)
    view = type("View", (), {"size": config.stages[0].size, "augment": "none"})
    rng, batches = np.random.default_rng(seed), []
    for _ in range(count):
        batch = random_batch(task.training.shapes(view, "train"), config.batch_size)
        batch["rgb"] = rng.integers(0, 256, batch["rgb"].shape, dtype=np.uint8)
        batch["keypoint"] = rng.uniform(2, 14, batch["keypoint"].shape).astype(np.float32)
        batch["score"] = np.ones(batch["score"].shape, np.float32)
        batch["label"] = rng.integers(0, config.model.classes, config.batch_size).astype(np.int32)
        batches.append(batch)
    return batches


def same(one, other, names=None):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# ----------------------------------------------------------------------------------------- traces


def test_traces_are_counted_by_shape_and_trained_set(tmp_path):
    """Six rows, three programs: values and samplers never trace, shapes and trained sets do once
    each."""
    config = toy(optim__groups=TOY_GROUPS, length="12 steps")
    config.stages = (
        blobs.Stage(train="head"),
        blobs.Stage(start="2 steps", label_smoothing=(0.1,), lr=(0.5,)),
        blobs.Stage(start="4 steps", train=".*"),
        blobs.Stage(start="6 steps", size=4),
        blobs.Stage(start="8 steps", size=8, sampler="skewed"),
        blobs.Stage(start="10 steps", train="head", label_smoothing=(0.2, 0.0)),
    )
    config.eval.every = "100 steps"
    config.save.every = "100 steps"
    run = open_run(config, tmp_path)
    counts = {"train": 0, "eval": 0}

    def loss(*arguments):
        counts["train"] += 1
        return run.task.training.loss(*arguments)

    def infer(*arguments):
        counts["eval"] += 1
        return run.task.evaluation.infer(*arguments)

    counting = changed(run.task, loss=loss, infer=infer)
    plan = run.plan()
    assert len({row.program for row in plan.rows}) == 3 and len(plan.rows) == 6
    results = loop.train(dataclasses.replace(run, task=counting))
    assert results["steps"] == 12
    assert counts == {"train": 3, "eval": 2}  # val and test


# --------------------------------------------------------------------------------------- accumulate


class Plain(nn.Module):
    """No BatchNorm, no dropout."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return nn.Dense(3, name="head")(nn.tanh(nn.Dense(16, name="body")(x)))


@pytest.mark.parametrize("pieces", [2, 8])
def test_accumulation_equals_the_full_batch(tmp_path, pieces):
    def trained(count):
        config = toy(optim__accumulate=count)
        task = changed(blobs.make(config), model=Plain())
        return steps(config, 4, tmp_path, task)

    whole, parts = trained(1), trained(pieces)
    for one, other in zip(whole.metrics, parts.metrics, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    for (name, one), other in zip(
        flat(whole.states[-1]).items(), flat(parts.states[-1]).values(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6, err_msg=name)


def test_accumulation_counts_real_examples(tmp_path):
    """Three of eight are masked out, two of them in one half: the mean is over the other five."""
    mask = np.array([1, 0, 0, 1, 1, 1, 0, 1], bool)

    def trained(count):
        config = toy(optim__accumulate=count)
        task = changed(blobs.make(config), model=Plain())
        run = open_run(config, tmp_path)
        batch = next(
            train_batches(config, task, run.source("train"), run.plan().rows[0].stage_data, 0, 1)
        )
        batch["x"][~mask] = np.nan  # what padding holds must not matter
        return steps(config, 1, tmp_path, task, [{**batch, "mask": mask}])

    whole, parts = trained(1), trained(2)
    assert np.isfinite(whole.metrics[0]["loss"])
    assert whole.metrics[0]["loss"] == pytest.approx(parts.metrics[0]["loss"], abs=1e-6)


# ----------------------------------------------------------------------------------------- freezing


def test_a_frozen_group_is_left_out_of_everything(tmp_path):
    groups = (Group("body", "^body", frozen=True), Group("head", ".*"))
    history = steps(toy(optim__groups=groups, optim__name="adamw"), 5, tmp_path)
    first, last = history.states[0], history.states[-1]
    for name in ("body", "body_bn"):
        same(first.params[name], last.params[name])
    same(first.model_state, last.model_state)
    assert (first.params["head"]["kernel"] != last.params["head"]["kernel"]).any()
    assert set(last.opt_state) == {"head"}
    assert not [name for name in flat(last.opt_state) if "body" in name]
    assert set(last.ema["params"]) == {"head/kernel", "head/bias"}
    averaged = state.weights(last)["params"]
    same(averaged["body"], first.params["body"])


def test_a_staged_freeze_moves_nothing_and_then_everything(tmp_path):
    config = toy(optim__groups=TOY_GROUPS, optim__name="adam", length="12 steps")
    config.stages = (
        blobs.Stage(train="head"),
        blobs.Stage(start="4 steps", train=".*"),
        blobs.Stage(start="8 steps", train="head"),
    )
    states = steps(config, 12, tmp_path).states
    for start, end, moves in ((0, 4, False), (4, 8, True), (8, 12, False)):
        one, other = states[start], states[end]
        pairs = [
            (one.params["body"], other.params["body"]),
            (one.params["body_bn"], other.params["body_bn"]),
            (one.model_state, other.model_state),
            (one.opt_state["body"], other.opt_state["body"]),
        ]
        for before, after in pairs:
            before, after = flat(before), flat(after)
            for name, array in before.items():
                assert (array == after[name]).all() != moves, (start, name)
        head = flat(one.opt_state["head"]), flat(other.opt_state["head"])
        assert all((head[0][name] != head[1][name]).any() for name in head[0])
    counts = {
        name: int(next(a for p, a in flat(states[12].opt_state[name]).items() if "count" in p))
        for name in ("body", "head")
    }
    assert counts == {"body": 4, "head": 12}


def test_a_staged_freeze_of_a_recogniser_with_remat(tmp_path):
    """BatchNorm deep in checkpointed blocks keeps its statistics, the other stream's move."""
    config = tiny(model__remat=True, model__attention=False)
    config.optim.groups = (Group("rgb", "rgb"), Group("pose", "pose"))
    config.stages = (
        Stage(size=16, train="pose"),
        Stage(start="2 steps", train=".*"),
    )
    states = steps(config, 4, tmp_path, batches=clips(config, 4)).states
    statistics = [s.model_state["batch_stats"] for s in states]
    same(statistics[0]["rgb"], statistics[2]["rgb"])
    same(states[0].params["rgb"], states[2].params["rgb"])
    same(states[0].opt_state["rgb"], states[2].opt_state["rgb"])
    for start, end, moving in ((0, 2, ("pose",)), (2, 4, ("rgb", "pose"))):
        for stream in moving:
            one, other = flat(statistics[start][stream]), flat(statistics[end][stream])
            for name, array in one.items():
                assert (array != other[name]).any(), f"{stream}{name}"


def test_frozen_batch_norm_normalises_with_its_running_statistics(tmp_path):
    """Not only kept: used. The frozen body's output does not depend on the rest of the batch."""
    groups = (Group("body", "^body", frozen=True), Group("head", ".*"))
    config = toy(optim__groups=groups, model__dropout=0.0)
    run = open_run(config, tmp_path)
    view = run.plan().rows[0].stage_data
    batch = next(train_batches(config, run.task, run.source("train"), view, 0, 1))
    only = np.array([True] + [False] * 7)
    other = {**batch, "x": np.where(only[:, None], batch["x"], 5.0).astype(np.float32)}
    losses = [
        steps(config, 1, tmp_path, batches=[{**b, "mask": only}]).metrics[0]["loss"]
        for b in (batch, other)
    ]
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------ averaging


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_follows_its_recurrence(tmp_path, warmup):
    """e <- d e + (1 - d) now, over parameters and BatchNorm statistics; d = (1 + n) / (10 + n) as
    long as that is less."""
    states = steps(toy(optim__ema=0.3, optim__ema_warmup=warmup), 8, tmp_path).states

    def now(s):
        return {**flat(s.params), **flat(s.model_state)}

    wanted = now(states[0])
    for n, after in enumerate(states[1:]):
        d = min(0.3, (1 + n) / (10 + n)) if warmup else 0.3
        wanted = {name: d * wanted[name] + (1 - d) * value for name, value in now(after).items()}
        averaged = state.weights(after)
        have = {**flat(averaged["params"]), **flat({"batch_stats": averaged["batch_stats"]})}
        for name, value in wanted.items():
            np.testing.assert_allclose(have[name], value, atol=1e-6, err_msg=name)
    assert (now(states[-1])["['head']['kernel']"] != wanted["['head']['kernel']"]).any()


def test_without_an_average_there_is_none(tmp_path):
    last = steps(toy(optim__ema=0.0), 1, tmp_path).states[-1]
    assert last.ema == {}
    same(state.weights(last)["params"], last.params)


# ----------------------------------------------------------------------------------------- clipping


def test_clipping_bounds_the_update(tmp_path):
    plain = dict(optim__momentum=0.0, optim__weight_decay=0.0, optim__lr=0.5)

    def update(limit):
        history = steps(toy(**plain, optim__clip=limit), 1, tmp_path)
        one, other = (flat(s.params) for s in history.states)
        moved = {name: other[name] - one[name] for name in one}
        return moved, history.metrics[0]["grad_norm"]

    free, norm = update(0.0)
    length = np.sqrt(sum((m.astype(np.float64) ** 2).sum() for m in free.values()))
    assert length == pytest.approx(0.5 * norm, rel=1e-5)
    assert norm > 0.02
    clipped, same_norm = update(0.01)
    assert same_norm == pytest.approx(norm, rel=1e-6)  # the log shows the norm before
    for name in free:
        np.testing.assert_allclose(clipped[name], free[name] * 0.01 / norm, atol=1e-7)
    loose, _ = update(10 * norm)
    same(loose, free)


# --------------------------------------------------------------------------- remat, dtype, schedule


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """Three float32 steps of a recogniser."""
    config = tiny()
    return steps(config, 3, tmp_path_factory.mktemp("exact"), batches=clips(config, 3))


def test_remat_changes_no_number(tmp_path, exact):
    batches, one = clips(tiny(), 3), exact
    other = steps(tiny(model__remat=True), 3, tmp_path, batches=batches)
    for a, b in zip(one.metrics, other.metrics, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    # One step of plain SGD is the gradient.
    for name, array in flat(one.states[1].params).items():
        np.testing.assert_allclose(
            array, flat(other.states[1].params)[name], atol=1e-6, err_msg=name
        )


def test_bfloat16_keeps_float32_state(tmp_path, exact):
    config = tiny(dtype="bfloat16")
    batches = clips(config, 3)
    history = steps(config, 3, tmp_path, batches=batches)
    for name, array in flat(history.states[-1]).items():
        assert array.dtype == (np.int32 if "step" in name else np.float32), name
    assert all(np.isfinite(row["loss"]) for row in history.metrics)
    wanted = exact.metrics[0]["loss"]
    assert history.metrics[0]["loss"] == pytest.approx(wanted, rel=0.02)
    assert history.metrics[0]["loss"] != wanted


def test_alphas_of_zero_are_off_exactly():
    """The traced mixing and smoothing at 0 leave pixels, maps, labels and loss as they are."""
    config = tiny()
    config.stages[0].mixup = (0.4, 0.0)  # a schedule that ends without: alphas are traced
    task, batch = action.make(config), clips(config, 1)[0]
    view = type("View", (), {"size": 16, "augment": "none"})
    names = [f.name for f in dataclasses.fields(Stage) if f.metadata.get("kind") == "value"]
    off = {name: jnp.float32(0) for name in names} | {
        "mixup_prob": jnp.float32(1),
        "cutmix_prob": jnp.float32(1),
    }

    @jax.jit
    def mixed(batch, hyper, key):
        return task.training.inputs(batch, hyper, key, view)

    @jax.jit
    def plain(batch):
        return task.training.inputs(batch, {}, None, None)[0]

    config.data.test_size = 16
    for seed in range(3):
        streams, targets = mixed(batch, off, jax.random.key(seed))
        wanted = plain(batch)
        for name in ("rgb", "pose"):
            np.testing.assert_array_equal(streams[name], wanted[name])
        np.testing.assert_array_equal(targets["fine"], np.eye(3, dtype=np.float32)[batch["label"]])
    on = {**off, "mixup": jnp.float32(0.4)}
    streams, targets = mixed(batch, on, jax.random.key(0))
    assert (np.asarray(streams["rgb"]) != np.asarray(wanted["rgb"])).any()
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    hard = jnp.asarray(np.eye(3, dtype=np.float32)[batch["label"]])
    outputs = {"rgb": logits, "pose": logits}
    loss = task.training.loss(outputs, {"fine": hard}, off)
    entropy = -jax.nn.log_softmax(logits)[np.arange(4), batch["label"]]
    np.testing.assert_allclose(loss["rgb"], entropy, rtol=1e-6)
    assert (
        float(
            jnp.abs(
                task.training.loss(outputs, {"fine": hard}, {**off, "label_smoothing": 0.3})["rgb"]
                - entropy
            ).max()
        )
        > 1e-3
    )


def test_randomness_is_a_function_of_seed_and_step(tmp_path):
    """One state and one batch: the same loss twice, another with another seed or step."""
    config = toy(model__dropout=0.5, optim__ema=0.0)
    run = open_run(config, tmp_path)
    plan = run.plan()
    row = plan.rows[0]
    batch = next(train_batches(config, run.task, run.source("train"), row.stage_data, 0, 1))

    def loss(seed, step):
        start, groups = restore.start(run, row.stage_data, lambda text: None)
        other = dataclasses.replace(config, seed=seed)
        program = make_train_step(other, run.task, plan, groups, row)
        return float(program(start.replace(step=jnp.int32(step)), batch)[1]["loss"])

    wanted = loss(0, 0)
    assert loss(0, 0) == wanted
    assert len({wanted, loss(1, 0), loss(0, 5)}) == 3


def test_the_same_training_twice_is_the_same_bits(tmp_path):
    one, other = (steps(toy(model__dropout=0.5), 4, tmp_path) for _ in range(2))
    assert one.metrics == other.metrics
    same(one.states[-1], other.states[-1])

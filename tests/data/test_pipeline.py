"""Batches as a function of the step: order, randomness, masks, threads and processes."""

import collections
import dataclasses

import numpy as np
import pytest
from absl import flags
from altered import with_fields
from toy import blobs, recipe

from jaxact.config import UserError
from jaxact.data.pipeline import Order, eval_batches, train_batches
from jaxact.train import schedule
from jaxact.train.run import open_run


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
    """Reading processes look at the command line."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def epoch(order, number):
    return [order(number * order.per_epoch + place) for place in range(order.per_epoch)]


# -------------------------------------------------------------------------------------- the order


@pytest.mark.parametrize(("records", "batch"), [(42, 8), (40, 8), (5, 8), (1, 4), (17, 1)])
def test_every_record_once_an_epoch_and_filled_up_from_its_start(records, batch):
    order = Order(records, batch, seed=3)
    assert order.per_epoch % batch == 0
    assert order.per_epoch == schedule.epoch_steps(records, batch) * batch
    for number in range(3):
        drawn = epoch(order, number)
        assert sorted(drawn[:records]) == list(range(records))
        rest = drawn[records:]
        assert rest == (drawn[:records] * batch)[: len(rest)]


def test_epochs_and_seeds_differ():
    orders = [tuple(epoch(Order(42, 8, seed), number)) for seed in (0, 1) for number in range(4)]
    assert len(set(orders)) == len(orders)


def test_a_position_needs_no_history():
    forward = [Order(42, 8, 5)(k) for k in range(300)]
    jumping = Order(42, 8, 5)
    for k in np.random.default_rng(0).permutation(300):
        assert jumping(int(k)) == forward[k]


def test_weighted_draws_follow_the_weights():
    weights = (1.0, 3.0, 0.0, 4.0)
    order = Order(4, 4, 0, weights)
    drawn = collections.Counter(order(k) for k in range(8000))
    for record, weight in enumerate(weights):
        assert abs(drawn[record] / 8000 - weight / 8) < 0.02
    assert drawn[2] == 0
    assert [order(k) for k in range(100)] == [Order(4, 4, 0, weights)(k) for k in range(100)]


# ------------------------------------------------------------------------------------ the batches


@dataclasses.dataclass
class Toy:
    """The toy's pieces with some settings changed."""

    config: blobs.Config
    task: object
    source: object
    stage: object


def toy(split="train", **changes):
    config = recipe.get_config()
    with_fields(config, **changes)
    task = blobs.make(config)
    source = task.training.source(split)
    rows = schedule.resolve(config, schedule.epoch_steps(len(source), config.batch_size)).rows
    return Toy(config, task, source, rows[0].stage_data)


def batches(given: Toy, start: int, end: int):
    return list(train_batches(given.config, given.task, given.source, given.stage, start, end))


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_holds_what_the_task_promises():
    given = toy()
    batch = batches(given, 0, 1)[0]
    shapes = given.task.training.shapes(given.stage, "train")
    assert batch.keys() == {"id", "mask", *shapes}
    for name, (shape, dtype) in shapes.items():
        assert batch[name].shape == (8, *shape) and batch[name].dtype == dtype
    assert batch["id"].dtype == np.int32 and batch["mask"].dtype == bool and batch["mask"].all()
    np.testing.assert_array_equal(batch["label"], given.source.labels[batch["id"]])


def test_the_tail_needs_no_head():
    """Steps [a, b) are the end of [0, b), across epochs, randomness included."""
    given = toy()
    whole = batches(given, 0, 14)
    for start in (1, 5, 6, 13):
        same(batches(given, start, 14), whole[start:])
    assert batches(given, 9, 9) == []


def test_the_same_record_is_seen_differently_every_time():
    given = toy(data__examples=8)
    first, second = batches(given, 0, 2)
    assert sorted(first["id"]) == sorted(second["id"]) == list(range(8))
    for record in range(8):
        one, other = first["x"][first["id"] == record], second["x"][second["id"] == record]
        assert np.abs(one - other).max() > 1e-3


def test_seeds_change_order_and_noise():
    one, other = (batches(toy(seed=seed), 0, 1)[0] for seed in (0, 1))
    assert (one["id"] != other["id"]).any()


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (3, 1), (3, 8)])
def test_threads_change_nothing(threads, prefetch):
    wanted = batches(toy(), 2, 9)
    same(batches(toy(input__threads=threads, input__prefetch=prefetch), 2, 9), wanted)


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_change_nothing(workers):
    wanted = batches(toy(), 2, 6)
    kept = batches(toy(input__workers=workers), 2, 6)
    same(kept, wanted)  # all at the end: none was overwritten by a later one


def test_a_weighted_sampler_of_the_task():
    given = toy(stages=(blobs.Stage(sampler="skewed"),))
    labels = np.concatenate([batch["label"] for batch in batches(given, 0, 12)])
    assert (labels == 0).mean() > 0.9
    labels = np.concatenate([batch["label"] for batch in batches(toy(), 0, 6)])
    assert np.bincount(labels[:42]).tolist() == [14, 14, 14]


def test_unreadable_examples_stop_or_are_masked_out(capfd):
    with pytest.raises(UserError, match="blob 3 cannot be read"):
        batches(toy(data__broken=3), 0, 6)
    whole = batches(toy(), 0, 6)
    masked = batches(toy(data__broken=3, input__broken="skip"), 0, 6)
    told = capfd.readouterr()
    assert "blob 3 cannot be read" in told.err and not told.out
    hits = 0
    for wanted, batch in zip(whole, masked, strict=True):
        broken = wanted["id"] == 3
        hits += broken.sum()
        np.testing.assert_array_equal(batch["mask"], ~broken)
        np.testing.assert_array_equal(batch["id"], wanted["id"])
        assert (batch["x"][broken] == 0).all()
        np.testing.assert_array_equal(batch["x"][~broken], wanted["x"][~broken])
    assert hits >= 1


# --------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(("count", "size"), [(21, 8), (16, 8), (3, 8), (21, 1)])
def test_evaluation_sees_every_example_once_in_order(count, size):
    given = toy("val", data__held_out=count)
    all_of_it = eval_batches(given.config, given.task, given.source, given.stage, "val", size)
    all_of_it = list(all_of_it)
    assert all(batch["x"].shape == (size, 8) for batch in all_of_it)
    ids = np.concatenate([batch["id"] for batch in all_of_it])
    mask = np.concatenate([batch["mask"] for batch in all_of_it])
    x = np.concatenate([batch["x"] for batch in all_of_it])
    assert ids[mask].tolist() == list(range(count))
    assert mask.tolist() == [True] * count + [False] * (-count % size)
    assert (x[~mask] == 0).all()


def test_evaluation_does_not_depend_on_the_batch_size():
    given = toy("val")

    def read(size):
        stream = eval_batches(given.config, given.task, given.source, given.stage, "val", size)
        return np.concatenate([batch["x"][batch["mask"]] for batch in stream])

    np.testing.assert_array_equal(read(8), read(5))


def test_an_empty_split_is_a_mistake(tmp_path):
    config = recipe.get_config()
    config.data.held_out = 0
    run = open_run(config, tmp_path)
    with pytest.raises(UserError, match="the val split has no examples"):
        run.source("val")

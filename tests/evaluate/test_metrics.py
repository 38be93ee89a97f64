"""Metrics against MMAction2's numbers, hand-made tables, and themselves in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.evaluate import metrics


@pytest.fixture(scope="module")
def want(golden):
    with np.load(golden / "losses/metrics_mmaction2.npz") as file:
        return dict(file)


def tables(want):
    streams = [want["rgb_prob"], want["pose_prob"]]
    yield "rgb", streams[0]
    yield "pose", streams[1]
    for weights in ((1, 1), (2, 1), (1, 2)):
        yield f"RGBPose_{weights[0]}:{weights[1]}", metrics.fuse(streams, weights)


def test_fusion_and_accuracies_equal_mmaction2(want):
    labels = want["labels"]
    for name, scores in tables(want):
        assert metrics.topk(scores, labels, 1) == want[f"acc/{name}_top1"]
        assert metrics.topk(scores, labels, 5) == want[f"acc/{name}_top5"]
        table = metrics.Confusion.count(scores.argmax(axis=1), labels, 7)
        assert table.mean_class(union=True) == pytest.approx(want[f"acc/{name}_mean1"], abs=1e-12)
        all_of_it = metrics.classification(scores / scores.sum(axis=1, keepdims=True), labels)
        assert all_of_it["top1"] == want[f"acc/{name}_top1"]
        assert all_of_it["mean_class_union"] == table.mean_class(union=True)


def test_confusion_on_the_device_equals_mmaction2(want):
    scores, labels = want["rgb_prob"], want["labels"].astype(np.int32)
    table = jax.jit(metrics.Confusion.of)(scores, labels)
    np.testing.assert_array_equal(table.table, want["confusion_rgb"])
    assert table.top1() == want["acc/rgb_top1"]
    # Class 6 is predicted but never true: the usual rule leaves it out, the union rule does not.
    assert table.support[6] == 0 < table.predicted[6]
    assert table.mean_class() == pytest.approx(table.mean_class(union=True) * 7 / 6)


def measure(scores, labels, mask):
    return {
        "value": metrics.Average.of(scores[:, 0], mask),
        "confusion": metrics.Confusion.of(scores, labels, mask),
    }


def test_padded_batches_merge_to_the_whole(want):
    scores, labels = jnp.asarray(want["rgb_prob"]), jnp.asarray(want["labels"], jnp.int32)
    whole = measure(scores, labels, jnp.ones(40, bool))
    parts = []
    step = jax.jit(lambda *batch: measure(*batch))
    for start in range(0, 40, 16):
        real = min(16, 40 - start)
        batch = jnp.full((16, 7), jnp.nan).at[:real].set(scores[start : start + real])
        target = jnp.full(16, -1).at[:real].set(labels[start : start + real])
        parts.append(step(batch, target, jnp.arange(16) < real))
    merged = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    np.testing.assert_array_equal(merged["confusion"].table, whole["confusion"].table)
    assert int(merged["confusion"].support.sum()) == int(merged["value"].count) == 40
    assert merged["value"].compute() == pytest.approx(float(scores[:, 0].mean()), rel=1e-6)


def test_nothing_counted_has_no_mean():
    nothing = metrics.Average.of(jnp.ones(3), jnp.zeros(3, bool))
    assert np.isnan(nothing.compute())


def test_ties_go_to_the_lower_class_and_nan_never_helps():
    scores = np.array([[1.0, 2, 2, 0], [0, 0, 0, 0], [np.nan, 1, 0, 0], [3, 2, 1, np.nan]])
    for xp in (np, jnp):
        table = xp.asarray(scores)
        place = [np.asarray(metrics.rank(table, xp.full(4, label))).tolist() for label in range(4)]
        assert place == [[2, 0, 4, 1], [0, 1, 1, 2], [1, 2, 2, 3], [3, 3, 3, 4]]
    flat = np.zeros((5, 3))
    assert metrics.topk(flat, np.array([0, 1, 2, 0, 1]), 1) == 0.4
    assert metrics.topk(flat, np.array([0, 1, 2, 0, 1]), 2) == 0.8
    assert metrics.topk(flat, np.array([0, 1, 2, 0, 1]), 5) == 1.0


def test_rank_is_a_stable_sort():
    rng = np.random.RandomState(3)
    scores = rng.randint(0, 4, (50, 9)).astype(np.float32)  # full of ties
    labels = rng.randint(0, 9, 50)
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = (order == labels[:, None]).argmax(axis=1)
    np.testing.assert_array_equal(metrics.rank(scores, labels), expected)
    np.testing.assert_array_equal(metrics.rank(jnp.asarray(scores), labels), expected)


def test_shares_of_a_hand_made_table():
    table = metrics.Confusion(np.array([[3, 1, 0, 0], [1, 1, 0, 2], [0, 0, 0, 0], [0, 0, 0, 2]]))
    np.testing.assert_allclose(table.recall(), [0.75, 0.25, 0, 1])
    np.testing.assert_allclose(table.precision(), [0.75, 0.5, 0, 0.5])
    np.testing.assert_allclose(table.f1(), [0.75, 1 / 3, 0, 2 / 3])
    assert table.top1() == 0.6
    assert table.mean_class() == table.mean_class(union=True) == pytest.approx(2 / 3)
    assert table.macro_f1() == pytest.approx((0.75 + 1 / 3 + 2 / 3) / 3)
    assert table.macro_f1(everywhere=True) == pytest.approx((0.75 + 1 / 3 + 2 / 3) / 4)


def test_unknown_labels_are_not_counted():
    scores = jnp.eye(3)[jnp.array([0, 1, 2, 0])]
    labels = jnp.array([0, -1, 3, 1])
    assert np.asarray(metrics.Confusion.of(scores, labels).table).tolist() == [
        [1, 0, 0],
        [1, 0, 0],
        [0, 0, 0],
    ]


def test_fusion_of_logits_and_its_errors():
    first, second = np.array([[2.0, 0]]), np.array([[0.0, 1]])
    np.testing.assert_allclose(metrics.fuse([first, second], [1, 1]), [[2, 1]])
    both = metrics.fuse([metrics.softmax(first), metrics.softmax(second)], [0.5, 0.5])
    np.testing.assert_allclose(both.sum(), 1)
    with pytest.raises(UserError, match="one shape"):
        metrics.fuse([first, np.zeros((2, 2))], [1, 1])
    with pytest.raises(UserError, match="got 1 weights"):
        metrics.fuse([first, second], [1])


def test_calibration_error_and_likelihood_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    labels = np.array([0, 1, 0, 1])
    # Bins of 15: .9 -> (13/15, 14/15], .6 -> (8/15, 9/15], .8 -> (11/15, 12/15].
    expected = (abs(1 - 1.8) + abs(1 - 0.6) + abs(1 - 0.8)) / 4
    assert metrics.calibration_error(probabilities, labels) == pytest.approx(expected)
    assert metrics.calibration_error(probabilities, labels, 1) == pytest.approx(0.8 - 0.75)
    assert metrics.nll(probabilities, labels) == pytest.approx(-np.log([0.9, 0.1, 0.6, 0.8]).mean())
    certain = np.array([[1.0, 0.0]])
    assert metrics.calibration_error(certain, np.array([0])) == 0
    assert metrics.nll(certain, np.array([1])) == pytest.approx(12 * np.log(10))


def test_bad_rows_are_the_users_mistake():
    with pytest.raises(UserError, match=r"label 7 of 2 rows: must be in 0\.\.6"):
        metrics.topk(np.zeros((2, 7)), np.array([0, 7]))
    with pytest.raises(UserError, match=r"\(n, classes\)"):
        metrics.nll(np.zeros((2, 7)), np.array([0]))

"""Fusion of stored scores: aligned by id, averaged in three spaces, weights fitted."""

import itertools

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.evaluate import ensemble, metrics
from jaxact.evaluate.ensemble import Predictions


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def drawn(runs=3, examples=60, classes=5, seed=0):
    """(probability tables, labels): each run sees the label through noise of its own strength."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    sure = 3 * np.eye(classes)[labels]
    return [softmax(sure / (r + 1) + rng.normal(0, 1, sure.shape)) for r in range(runs)], labels


def run(name, ids, scores, label=None):
    label = np.full(len(ids), -1) if label is None else np.asarray(label)
    return Predictions(name, tuple(ids), np.asarray(scores, float), label)


# ---------------------------------------------------------------------------------------- align


def test_runs_are_put_in_the_order_of_the_first():
    tables, labels = drawn(2)
    ids = [f"clip{k}" for k in range(60)]
    order = np.random.default_rng(1).permutation(60)
    other = run("b", [ids[k] for k in order], tables[1][order], labels[order])
    found, aligned, label = ensemble.align([run("a", ids, tables[0], labels), other])
    assert found == tuple(ids)
    np.testing.assert_array_equal(aligned[0], tables[0])
    np.testing.assert_array_equal(aligned[1], tables[1])
    np.testing.assert_array_equal(label, labels)


def test_a_label_that_one_run_lacks_comes_from_another():
    scores = np.eye(3)
    one = run("a", "xyz", scores, [0, -1, -1])
    two = run("b", "xyz", scores, [-1, 1, -1])
    assert ensemble.align([one, two])[2].tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (run("b", "xyw", np.eye(3), [0, 1, 2]), ["b has no scores for 1 of the 3", "'z'"]),
        (run("b", "xyzw", np.eye(4)[:, :3], [0, 1, 2, 0]), ["a has no scores for 1 of", "'w'"]),
        (run("b", "xyz", np.eye(3), [0, 2, 2]), ["b labels 'y' 2", "1"]),
        (run("b", "xyz", np.eye(4)[:3], [0, 1, 2]), ["b has 4 classes", "a has 3"]),
        (run("b", "xyy", np.eye(3), [0, 1, 2]), ["b holds 'y' twice"]),
        (run("b", "xyz", np.eye(3) * np.nan, [0, 1, 2]), ["b: the scores of 'x'", "not finite"]),
    ],
)
def test_runs_that_do_not_belong_together(other, said):
    with pytest.raises(UserError) as caught:
        ensemble.align([run("a", "xyz", np.eye(3), [0, 1, 2]), other])
    for part in said:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_run_is_no_ensemble():
    with pytest.raises(UserError, match="2 or more"):
        ensemble.align([run("a", "x", [[1, 0]])])


# ----------------------------------------------------------------------------------------- fuse


def test_fusion_equals_mmaction2(golden):
    """Sums with the reference's coefficients rank as shares of them do."""
    with np.load(golden / "losses/metrics_mmaction2.npz") as file:
        want = dict(file)
    streams = [want["rgb_prob"], want["pose_prob"]]
    for weights in ((1, 1), (2, 1), (1, 2)):
        fused = ensemble.fuse(streams, weights, "score")
        name = f"RGBPose_{weights[0]}:{weights[1]}"
        assert metrics.topk(fused, want["labels"], 1) == want[f"acc/{name}_top1"]
        assert metrics.topk(fused, want["labels"], 5) == want[f"acc/{name}_top5"]


def test_three_spaces_by_hand():
    logits = [np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 1.0, 0.5]])]
    shares = [softmax(x) for x in logits]
    names = ("a", "b")

    def fused(tables, space):
        return ensemble.fuse(ensemble.moved(tables, names, space), (3, 1), space)

    np.testing.assert_allclose(fused(logits, "score"), 0.75 * logits[0] + 0.25 * logits[1])
    mean = 0.75 * shares[0] + 0.25 * shares[1]
    for tables in (logits, shares, [logits[0], shares[1]]):
        np.testing.assert_allclose(fused(tables, "prob"), mean, rtol=1e-12)
        # The geometric mean of probabilities is the softmax of the mean logits.
        want = softmax(0.75 * logits[0] + 0.25 * logits[1])
        np.testing.assert_allclose(fused(tables, "logit"), want, rtol=1e-12)


def test_probabilities_beside_raw_scores_have_no_mean():
    tables = [np.array([[0.5, 0.5]]), np.array([[3.0, -1.0]])]
    with pytest.raises(UserError, match="a holds probabilities and b raw scores"):
        ensemble.moved(tables, ("a", "b"), "score")


def test_ensembles_nest():
    """Of four equal runs, pairs of pairs are what all four at once are."""
    tables, _ = drawn(4)
    halves = [ensemble.fuse(tables[k : k + 2], (), "prob") for k in (0, 2)]
    assert all(ensemble.are_probabilities(half) for half in halves)
    all_four = ensemble.fuse(tables, (), "prob")
    np.testing.assert_allclose(ensemble.fuse(halves, (), "prob"), all_four, rtol=1e-12)


@pytest.mark.parametrize(
    ("weights", "said"),
    [((1,), "--weights=1 are 1"), ((1, -1), "=1,-1"), ((0, 0), "=0,0"), ((1, np.inf), "inf")],
)
def test_weights_are_refused(weights, said):
    with pytest.raises(UserError, match="allowed") as caught:
        ensemble.shares_of(weights, 2)
    assert said in str(caught.value)


def test_agreement():
    one, two = np.eye(4), np.eye(4)[[0, 1, 3, 2]]
    np.testing.assert_array_equal(ensemble.agreement([one, two]), [[1, 0.5], [0.5, 1]])


# --------------------------------------------------------------------------------------- search


def test_the_grid_is_every_weighting_once():
    deals = ensemble.simplex(3, 20)
    assert len(deals) == len(set(deals)) == 231
    assert all(sum(deal) == 20 and min(deal) >= 0 for deal in deals)


@pytest.mark.parametrize("space", ["prob", "logit"])
def test_grid_search_finds_the_best_of_its_grid(space):
    tables, labels = drawn(3, seed=3)
    moved = ensemble.moved(tables, "abc", space)
    weights = ensemble.grid_search(moved, labels, space)

    def key(w):
        fused = ensemble.fuse(moved, w, space)
        return -metrics.topk(fused, labels, 1), metrics.nll(fused, labels)

    tried = [np.array(w) / 20 for w in itertools.product(range(21), repeat=3) if sum(w) == 20]
    best = min(key(w) for w in tried)
    assert key(weights) == pytest.approx(best, abs=1e-9)
    assert key(weights)[0] <= min(key(w)[0] for w in np.eye(3))


def test_grid_search_gives_a_useless_run_nothing():
    tables, labels = drawn(2)
    against = softmax(-5 * np.eye(5)[labels])  # sure of everything but the label
    weights = ensemble.grid_search([tables[0], against], labels, "prob")
    assert weights.tolist() == [1, 0]


def test_equal_runs_share_the_weight():
    tables, labels = drawn(1)
    np.testing.assert_allclose(ensemble.grid_search([tables[0]] * 2, labels, "prob"), [0.5, 0.5])


@pytest.mark.parametrize("seed", range(4))
def test_least_squares_is_optimal(seed):
    """Nowhere on the simplex is the squared error smaller, and the gradient says so too."""
    tables, labels = drawn(4, examples=40, seed=seed)
    weights = ensemble.least_squares(tables, labels)
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1)
    flat = np.stack([table.reshape(-1) for table in tables])
    target = np.eye(5)[labels].reshape(-1)

    def error(w):
        return float(((w @ flat - target) ** 2).sum())

    others = np.random.default_rng(seed).dirichlet([0.5] * 4, 2000)
    assert error(weights) <= min(error(w) for w in (*others, *np.eye(4))) + 1e-9
    slope = 2 * flat @ (weights @ flat - target)
    used = weights > 0
    np.testing.assert_allclose(slope[used], slope[used][0], rtol=1e-6, atol=1e-6)
    assert (slope[~used] >= slope[used][0] - 1e-6).all()


def test_least_squares_recovers_a_known_mixture():
    """Where a mixture of the runs is exactly right, it is found."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 30)
    noise = rng.dirichlet(np.ones(4), 30)
    right = np.eye(4)[labels]
    tables = [right + 0.5 * (noise - right), noise]
    assert ensemble.least_squares(tables, labels).tolist() == [1, 0]
    # The twin changes nothing, and gets nothing.
    assert ensemble.least_squares([tables[0], tables[0], noise], labels).tolist() == [1, 0, 0]


def test_unlabelled_examples_do_not_count():
    tables, labels = drawn(3)
    some = labels.copy()
    some[::2] = -1
    half = [table[1::2] for table in tables]
    for found in (ensemble.grid_search, ensemble.least_squares):
        rest = ("prob",) if found is ensemble.grid_search else ()
        np.testing.assert_array_equal(found(tables, some, *rest), found(half, labels[1::2], *rest))
        with pytest.raises(UserError, match="no example of the validation split"):
            found(tables, np.full(60, -1), *rest)
    assert ensemble.scores_of(tables[0], np.full(60, -1)) == {}
    assert ensemble.scores_of(tables[0], some)["top1"] == metrics.topk(half[0], labels[1::2])


def test_too_many_runs_to_search():
    tables, labels = drawn(13, examples=4)
    with pytest.raises(UserError, match="up to 12"):
        ensemble.least_squares(tables, labels)
    tables, labels = drawn(30, examples=4)
    with pytest.raises(UserError, match="too much"):
        ensemble.grid_search(tables, labels, "prob")

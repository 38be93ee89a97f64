"""Long-tail losses against PyTorch's numbers, the spec's hand-made ones and their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.ops import longtail, losses

LOGITS = np.array([[2, 0, 0, -1], [0, 1, 0.5, 0], [0.2, 0, 0.1, 3]], np.float32)
LABELS = np.array([0, 2, 3])
WEIGHTS = np.array([1, 2, 0.5, 4], np.float32)
TAIL = np.array([False, False, True, False])


@pytest.fixture(scope="module")
def want(golden):
    with np.load(golden / "losses/classification_losses.npz") as file:
        return dict(file)


def mean(table, share, *rest):
    return float(jnp.mean(longtail.reduce(table, share, *rest)))


def test_spec_numbers():
    for smoothing, value in ((0.0, 0.594120), (0.02, 0.621120), (0.05, 0.661620)):
        assert abs(mean(longtail.smoothed(LOGITS, smoothing), LABELS) - value) < 1e-6
    weighted = mean(longtail.smoothed(LOGITS, 0.05, WEIGHTS), LABELS, WEIGHTS)
    assert abs(weighted - 0.366309) < 1e-6
    table = longtail.focal(LOGITS, 1.5)
    own = np.take_along_axis(np.asarray(table), LABELS[:, None], 1)[:, 0]
    np.testing.assert_allclose(own, [0.033234, 0.861926, 0.008208], atol=1e-6)
    both = jnp.where(TAIL, table, longtail.smoothed(LOGITS))
    assert abs(mean(both, LABELS) - 0.431053) < 1e-6
    assert abs(float(longtail.sum_of_means(both, LABELS, TAIL).mean()) - 1.077542) < 1e-6


@pytest.mark.parametrize("smoothing", ["0.0", "0.02", "0.05", "0.1"])
@pytest.mark.parametrize("weighted", [False, True])
def test_smoothed_equals_torch_and_its_gradient(want, smoothing, weighted):
    key = f"torch_ce/eps{smoothing}/{'weights' if weighted else 'none'}"
    weights = want["class_weights"] if weighted else None

    def loss(logits, eps):
        table = longtail.smoothed(logits, eps, weights)
        return jnp.mean(longtail.reduce(table, want["labels"], weights))

    value, gradient = jax.jit(jax.value_and_grad(loss))(want["logits"], float(smoothing))
    np.testing.assert_allclose(value, want[f"{key}/mean"], rtol=1e-6)
    np.testing.assert_allclose(gradient, want[f"{key}/grad"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gamma", [1.5, 2.0])
def test_focal_equals_the_guide(want, gamma):
    def loss(logits):
        return jnp.mean(longtail.reduce(longtail.focal(logits, gamma), want["labels"]))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(want["logits"]))
    np.testing.assert_allclose(value, want[f"focal/gamma{gamma}/mean"], rtol=1e-6)
    np.testing.assert_allclose(gradient, want[f"focal/gamma{gamma}/grad"], rtol=1e-4, atol=1e-7)


def test_mixed_labels_are_the_mixture_of_losses(want):
    """Of both reductions, with weights and with a tail that has another loss."""
    logits, first, weights = want["logits"], want["labels"], want["class_weights"]
    second, lam = first[::-1], 0.3
    soft = lam * losses.onehot(first, 61) + (1 - lam) * losses.onehot(second, 61)
    tail = np.isin(np.arange(61), first[:3])
    table = jnp.where(
        tail, longtail.focal(logits, 1.5, weights), longtail.smoothed(logits, 0.05, weights)
    )
    for rule in (
        lambda share: longtail.reduce(table, share, weights).mean(),
        lambda share: longtail.sum_of_means(table, share, tail, weights).mean(),
    ):
        parts = lam * rule(first) + (1 - lam) * rule(second)
        np.testing.assert_allclose(rule(soft), parts, rtol=1e-6)


def test_padding_and_unknown_labels_cost_nothing(want):
    logits, labels = want["logits"], want["labels"]
    weights = want["class_weights"]
    mask = np.array([True] * 6 + [False] * 2)
    table = longtail.smoothed(logits, 0.1, weights)
    short = longtail.reduce(table[:6], labels[:6], weights)
    padded = longtail.reduce(table, labels, weights, mask)
    np.testing.assert_allclose(padded[:6], short, rtol=1e-6)
    np.testing.assert_array_equal(padded[6:], 0)
    unknown = longtail.reduce(table, np.where(mask, labels, -1), weights)
    # Their mean over eight is what the mean over the six known ones was.
    np.testing.assert_allclose(unknown.mean(), short.mean(), rtol=1e-6)
    nothing = longtail.sum_of_means(table, labels, np.zeros(61, bool), weights, np.zeros(8, bool))
    np.testing.assert_array_equal(nothing, 0)


def test_balanced_softmax_is_softmax_with_counts(want):
    counts = np.arange(1, 62)
    table = longtail.smoothed(longtail.adjusted(want["logits"], longtail.log_prior(counts), 1.0))
    power = counts * np.exp(want["logits"].astype(np.float64))
    np.testing.assert_allclose(table, -np.log(power / power.sum(1, keepdims=True)), rtol=1e-5)
    # Subtracting it afterwards undoes it.
    back = longtail.adjusted(
        longtail.adjusted(want["logits"], longtail.log_prior(counts), 1.0),
        longtail.log_prior(counts),
        -1.0,
    )
    np.testing.assert_allclose(back, want["logits"], atol=1e-5)
    assert np.isfinite(longtail.log_prior([0, 3, 5])).all()


def test_ldam_equals_its_definition(want):
    counts = np.array([1000, 10, 1, 100])
    margin = 30 * 0.5 * longtail.margins(counts)
    np.testing.assert_allclose(margin[2], 15)
    np.testing.assert_allclose(margin[0] / margin[2], 1000**-0.25, rtol=1e-6)
    table = longtail.ldam(LOGITS, margin)
    for c in range(4):
        shifted = LOGITS.astype(np.float64)
        shifted[:, c] -= margin[c]
        wanted = np.log(np.exp(shifted).sum(1)) - shifted[:, c]
        np.testing.assert_allclose(table[:, c], wanted, rtol=1e-5)
    plain = longtail.ldam(want["logits"], np.zeros(61), 0.1, want["class_weights"])
    usual = longtail.smoothed(want["logits"], 0.1, want["class_weights"])
    np.testing.assert_allclose(plain, usual, rtol=1e-5, atol=1e-6)


def test_a_margin_is_felt_where_the_class_is_certain():
    """exp(-20) is lost in 1 - p, and a margin of 15 makes it exp(-5)."""
    logits = jnp.array([[20.0, 0.0, -50.0]])
    value, gradient = jax.value_and_grad(
        lambda x: longtail.ldam(x, jnp.array([15.0, 0, 0]))[0, 0], argnums=0
    )(logits)
    np.testing.assert_allclose(value, np.log1p(np.exp(-5.0)), rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 0], -1 / (1 + np.exp(5.0)), rtol=1e-4)
    assert np.isfinite(gradient).all()


def test_center_norms(want):
    features, labels, centers = want["cosine/features"], want["labels"], want["center/centers"]
    raw = longtail.center(features, labels, centers, "none")
    np.testing.assert_allclose(raw.mean(), want["center/loss"], rtol=1e-6)
    np.testing.assert_allclose(longtail.center(features, labels, centers), raw / 24, rtol=1e-6)
    unit = np.asarray(longtail.center(features, labels, centers, "unit"))
    f, c = features.astype(np.float64), centers[labels].astype(np.float64)
    cosine = (f * c).sum(1) / np.linalg.norm(f, axis=1) / np.linalg.norm(c, axis=1)
    np.testing.assert_allclose(unit, 2 - 2 * cosine, rtol=1e-5)
    with pytest.raises(ValueError, match="center norm"):
        longtail.center(features, labels, centers, "l1")

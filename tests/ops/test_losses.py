"""Losses against PyTorch, timm, torchvision and the crop guide's own modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.ops import losses


@pytest.fixture(scope="module")
def want(golden):
    with np.load(golden / "losses/classification_losses.npz") as file:
        return dict(file)


def weighted_mean(each, targets, weights):
    """PyTorch's mean under class weights."""
    return each.sum() / losses.class_weight(targets, weights).sum()


def close(got, expected, atol=2e-5):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("smoothing", ["0.0", "0.02", "0.05", "0.1"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_equals_torch(want, smoothing, weighted):
    key = f"torch_ce/eps{smoothing}/{'weights' if weighted else 'none'}"
    weights = want["class_weights"] if weighted else None

    @jax.jit
    def each(logits, eps):  # eps traced, as inside a plan
        return losses.cross_entropy(logits, want["labels"], eps, weights)

    def mean(logits):
        one = each(logits, float(smoothing))
        return weighted_mean(one, want["labels"], weights) if weighted else jnp.mean(one)

    close(each(want["logits"], float(smoothing)), want[f"{key}/none"])
    value, gradient = jax.value_and_grad(mean)(want["logits"])
    close(value, want[f"{key}/mean"])
    np.testing.assert_allclose(gradient, want[f"{key}/grad"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("smoothing", ["0.0", "0.02", "0.05", "0.1"])
def test_soft_targets_equal_torch(want, smoothing):
    def mean(logits):
        return jnp.mean(losses.cross_entropy(logits, want["soft_targets"], float(smoothing)))

    value, gradient = jax.value_and_grad(mean)(want["logits"])
    close(value, want[f"torch_ce_soft/eps{smoothing}/mean"])
    expected = want[f"torch_ce_soft/eps{smoothing}/grad"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_other_libraries_agree(want):
    logits, labels, soft = want["logits"], want["labels"], want["soft_targets"]
    weighted = losses.cross_entropy(logits, soft, 0.0, want["class_weights"])
    close(weighted.mean(), want["torch_ce_soft/weights/mean"])
    for smoothing in ("0.0", "0.1"):
        close(
            losses.cross_entropy(logits, labels, float(smoothing)).mean(),
            want[f"mmaction2_head/eps{smoothing}/loss_cls"],
        )
    close(losses.cross_entropy(logits, soft).mean(), want["mmaction2_head/soft_labels/loss_cls"])
    close(losses.cross_entropy(logits, soft).mean(), want["timm/SoftTargetCrossEntropy"])
    close(
        losses.cross_entropy(logits, labels, 0.1).mean(), want["timm/LabelSmoothingCrossEntropy0.1"]
    )


@pytest.mark.parametrize("gamma", ["1.5", "2.0"])
def test_focal_equals_the_guide(want, gamma):
    logits, labels = want["logits"], want["labels"]
    close(losses.focal(logits, labels, float(gamma)), want[f"focal/gamma{gamma}/none"])
    value, gradient = jax.value_and_grad(lambda x: jnp.mean(losses.focal(x, labels, float(gamma))))(
        logits
    )
    close(value, want[f"focal/gamma{gamma}/mean"])
    expected = want[f"focal/gamma{gamma}/grad"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)
    alpha = losses.focal(logits, labels, float(gamma), want["class_weights"])
    close(alpha.mean(), want[f"focal/gamma{gamma}/alpha_weights/mean"])


def test_focal_is_cross_entropy_at_gamma_zero_and_finite_when_certain(want):
    logits, labels = jnp.asarray(want["logits"]), want["labels"]
    close(losses.focal(logits, labels, 0.0), losses.cross_entropy(logits, labels))
    certain = logits.at[jnp.arange(8), labels].set(200.0)
    for gamma in (0.0, 0.5, 1.5):
        gradient = jax.grad(lambda x, g=gamma: jnp.sum(losses.focal(x, labels, g)))(certain)
        assert np.isfinite(gradient).all()


def test_multitask_total(want):
    logits, labels, weights = want["logits"], want["labels"], want["class_weights"]
    one = losses.cross_entropy(logits, labels, 0.1, weights)
    means = {
        "label_61": weighted_mean(one, labels, weights),
        "crop": losses.cross_entropy(logits[:, :10], labels % 10, 0.1).mean(),
        "disease": losses.cross_entropy(logits[:, 10:33], labels % 23, 0.1).mean(),
        "severity": losses.cross_entropy(logits[:, 40:43], labels % 3, 0.1).mean(),
    }
    for name, mean in means.items():
        close(mean, want[f"multitask/{name}"])
    factors = {"label_61": 1.0, "crop": 0.3, "disease": 0.3, "severity": 0.5}
    close(sum(factors[name] * means[name] for name in means), want["multitask/total"])


def test_cosine_classifier_and_center_loss(want):
    features, kernel = want["cosine/features"], want["cosine/weight"].T
    close(losses.cosine_logits(features, kernel), want["cosine/logits"], atol=1e-5)
    zero = jax.grad(lambda x: losses.cosine_logits(x, kernel).sum())(jnp.zeros((2, 24)))
    assert np.isfinite(zero).all()
    loss = losses.center(features, want["labels"], want["center/centers"])
    assert loss.shape == (8,)
    close(loss.mean(), want["center/loss"])


def test_hand_computed_values_of_the_crop_spec():
    logits = np.array([[2, 0, 0, -1], [0, 1, 0.5, 0], [0.2, 0, 0.1, 3]], np.float32)
    labels = np.array([0, 2, 3])
    for smoothing, value in ((0.0, 0.594120), (0.02, 0.621120), (0.05, 0.661620)):
        close(losses.cross_entropy(logits, labels, smoothing).mean(), value, atol=1e-6)
    weights = np.array([1, 2, 0.5, 4], np.float32)
    one = losses.cross_entropy(logits, labels, 0.05, weights)
    close(weighted_mean(one, labels, weights), 0.366309, atol=1e-6)
    close(losses.focal(logits, labels, 1.5), [0.033234, 0.861926, 0.008208], atol=1e-6)


def test_mixed_targets_equal_the_mixture_of_losses(want):
    """lam L(y_a) + (1 - lam) L(y_b) with PyTorch's weighted mean is one soft-target mean."""
    logits, first, weights = want["logits"], want["labels"], want["class_weights"]
    second, lam = first[::-1], 0.3
    soft = lam * losses.onehot(first, 61) + (1 - lam) * losses.onehot(second, 61)

    def mean(targets):
        one = losses.cross_entropy(logits, targets, 0.05, weights)
        return weighted_mean(one, targets, weights)

    close(mean(soft), lam * mean(first) + (1 - lam) * mean(second))
    mixed = losses.focal(logits, soft, 1.5)
    parts = [losses.focal(logits, labels, 1.5) for labels in (first, second)]
    close(mixed, lam * parts[0] + (1 - lam) * parts[1])


def test_half_precision_logits_are_computed_in_float32(want):
    logits, labels = want["logits"].astype(jnp.bfloat16), want["labels"]
    centers = jnp.asarray(want["center/centers"], jnp.bfloat16)
    features = jnp.asarray(want["cosine/features"], jnp.bfloat16)
    results = [
        (losses.cross_entropy, (logits, labels, 0.1)),
        (losses.focal, (logits, labels)),
        (losses.center, (features, labels, centers)),
        (losses.cosine_logits, (features, centers.T)),
    ]
    for function, arguments in results:
        wide = [np.asarray(a, np.float32) if a is not labels else a for a in arguments]
        got = function(*arguments)
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, function(*wide))


def test_unknown_labels_cost_nothing(want):
    labels = np.array([-1, 61, 3])
    logits, features = want["logits"][:3], want["cosine/features"][:3]
    for loss in (
        losses.cross_entropy(logits, labels, 0.1),
        losses.focal(logits, labels),
        losses.center(features, labels, want["center/centers"]),
    ):
        assert loss[0] == loss[1] == 0 < loss[2]

"""Focal and DIoU losses, smoothing, normaliser: golden vectors and worked values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.ops import detection_losses as losses
from jaxact.ops import segments


@pytest.mark.parametrize(
    ("y", "wanted"),
    [
        (1, [1.128382, 0.412520, 0.0433217, 0.00167571, 2.73e-5]),
        (0, [7.54e-7, 0.00135267, 0.129965, 0.852954, 2.074710]),
    ],
)
def test_focal(y, wanted):
    logits = jnp.asarray([-4.59512, -2, 0, 1.5, 3])
    np.testing.assert_allclose(losses.focal(logits, jnp.full(5, float(y))), wanted, rtol=1e-3)
    np.testing.assert_allclose(losses.focal(logits, jnp.full(5, float(y))), wanted, atol=1e-6)


def test_focal_equals_torchvision(golden):
    with np.load(golden / "losses/classification_losses.npz") as want:
        logits, targets = want["logits"], np.eye(61, dtype=np.float32)[want["labels"]]
        each = losses.focal(logits, targets, 0.25, 2.0)
        np.testing.assert_allclose(each, want["sigmoid_focal/alpha0.25_gamma2/none"], 1e-4, 1e-6)
        total = losses.focal(logits, targets, -1, 1.5).sum()
        np.testing.assert_allclose(total, want["sigmoid_focal/alpha-1_gamma1.5/sum"], 1e-5, 2e-5)


def test_focal_of_extreme_logits_is_finite():
    loss = lambda x: losses.focal(x, jnp.asarray([0.0, 1.0])).sum()  # noqa: E731
    for x in ([-1e4, 1e4], [1e4, -1e4]):
        value, grad = jax.value_and_grad(loss)(jnp.asarray(x))
        assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize(
    ("predicted", "wanted", "loss"),
    [
        ([0, 10], [0, 10], 0),
        ([2, 4], [3, 7], 0.96),
        ([0, 1], [5, 6], 1.694444),
        ([3, 3], [3, 5], 1.25),
    ],
)
def test_diou(predicted, wanted, loss):
    both = (jnp.asarray(each, jnp.float32) for each in (predicted, wanted))
    np.testing.assert_allclose(losses.diou(*both), loss, atol=1e-6)


def test_smoothing():
    targets = losses.smooth(jnp.asarray([[0.0, 1.0, 0.0, 1.0]]), 0.1)
    np.testing.assert_allclose(targets, [[0.02, 0.92, 0.02, 0.92]], atol=1e-7)


def test_normaliser():
    mean = losses.moved(jnp.float32(100), jnp.float32(18))
    np.testing.assert_allclose(mean, 91.8, rtol=1e-6)
    np.testing.assert_allclose(losses.moved(mean, jnp.float32(18)), 84.42, rtol=1e-6)
    np.testing.assert_allclose(losses.moved(jnp.float32(10), jnp.float32(0)), 9.1, rtol=1e-6)


@pytest.fixture(scope="module")
def case(golden):
    vectors = np.load(golden / "detection" / "detector_tiny_base.npz")
    mask = segments.point_mask(jnp.asarray(vectors["mask"]), 6)
    targets = (jnp.asarray(vectors["target_cls"]), jnp.asarray(vectors["target_reg"]))
    outputs = (jnp.asarray(vectors["cls_logits"]), jnp.asarray(vectors["reg"]))
    return vectors, outputs, targets, mask


def test_golden_losses(case):
    vectors, outputs, targets, mask = case
    count = losses.positives(targets[0], mask).sum()
    assert count == vectors["num_pos"] == 18
    mean = jnp.float32(100)
    for step in ("", "_step2", "_eval"):
        mean = jnp.maximum(count, 1) if step == "_eval" else losses.moved(mean, count)
        if step != "_eval":
            number = vectors[f"norm_after{2 if step else 1}"]
            np.testing.assert_allclose(mean, number, rtol=1e-6)
        terms = losses.detection(*outputs, vectors["points"], targets, mask, mean)
        for term in ("cls", "reg"):
            wanted = vectors[f"{term}_loss{step}"]
            np.testing.assert_allclose(terms[term].sum(), wanted, atol=1e-5, rtol=0)


def test_masked_points_and_padding_examples_do_not_count(case):
    vectors, (logits, offsets), targets, mask = case
    noise = jnp.where(mask[..., None], 0, jnp.nan)
    run = lambda *outputs: losses.detection(  # noqa: E731
        *outputs, vectors["points"], targets, mask, jnp.float32(10)
    )
    clean, dirty = run(logits, offsets), run(logits + noise, offsets + noise[..., :2])
    for term in clean:
        np.testing.assert_array_equal(clean[term], dirty[term])
    grads = jax.grad(lambda x: sum(v.sum() for v in run(x, offsets).values()))(logits)
    assert np.all(np.asarray(grads)[~np.asarray(mask)] == 0)
    nothing = losses.detection(
        logits, offsets, vectors["points"], targets, mask & False, jnp.float32(10)
    )
    assert not nothing["cls"].any() and not nothing["reg"].any()


def test_weights_of_the_two_terms(case):
    vectors, outputs, targets, mask = case
    arguments = (*outputs, vectors["points"], targets, mask, jnp.float32(10))
    plain, double = (losses.detection(*arguments, loss_weight=w) for w in (1.0, 2.0))
    np.testing.assert_allclose(double["reg"], 2 * plain["reg"])
    balanced = losses.detection(*arguments, loss_weight=0)
    np.testing.assert_allclose(balanced["reg"].sum(), plain["cls"].sum(), rtol=1e-6)
    smoothed = losses.detection(*arguments, smoothing=0.1)
    each = losses.focal(outputs[0], 0.9 * targets[0] + 0.1 / 6)
    np.testing.assert_allclose(smoothed["cls"].sum(), each[mask].sum() / 10, rtol=1e-5)
    np.testing.assert_array_equal(smoothed["reg"], plain["reg"])

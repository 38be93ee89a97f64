"""The pair classifier's loss: golden values and gradients, absent classes, masks, both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.evaluate.metrics import Confusion
from jaxact.ops import losses, relation_losses

LOGITS = np.array([[2, 0, 0], [0, 1, 0], [0, 0, 0.5], [1, 1, 0], [0, 2, 1]], np.float32)
LABELS = np.array([0, 1, 2, 0, 1])
STATIC = np.array([1.0, 1.4, 6.1], np.float32)


def total(logits, labels, weights=(1, 1, 1), mask=None, **options):
    mask = np.ones(len(labels), bool) if mask is None else mask
    terms = relation_losses.terms(
        jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask), jnp.asarray(weights), **options
    )
    return sum(jnp.where(mask, each, 0).sum() / mask.sum() for each in terms.values())


def test_values_of_the_spec():
    each, count = relation_losses.soft_accuracy(LOGITS, LABELS, np.ones(5, bool))
    np.testing.assert_allclose(each, [0.6047, 0.6207, 0.4519], atol=5e-5)
    assert count.tolist() == [2, 2, 1]
    spread = relation_losses.class_balance(LOGITS, LABELS, np.ones(5, bool))
    assert float(spread) == pytest.approx(0.0086834, abs=1e-7)
    assert 1 - float(relation_losses.miss(LOGITS, LABELS).mean()) == pytest.approx(
        0.580505, abs=1e-6
    )
    mask = np.ones(5, bool)
    for weights, wanted in (((1, 1, 1), 0.570993), (STATIC, 0.668799)):
        entropy = relation_losses.weighted_entropy(LOGITS, LABELS, mask, jnp.asarray(weights))
        assert float(entropy.mean()) == pytest.approx(wanted, abs=1e-6)
    assert float(total(LOGITS, LABELS)) == pytest.approx(0.592836, abs=1e-6)


@pytest.mark.parametrize("case", ["w1", "w", "w_missing_class", "w_single_class"])
def test_golden_loss_and_gradient(golden, case):
    with np.load(golden / "relation/features_losses.npz") as file:
        logits = file["loss/logits"]
        wanted = {k: file[f"loss/{case}/{k}"] for k in ("total", "ce_mpca_acc", "grad", "labels")}
    weights = jnp.ones(3) if case == "w1" else jnp.asarray(STATIC)
    loss, gradient = jax.value_and_grad(total)(logits, wanted["labels"], weights)
    assert float(loss) - 0.05 == pytest.approx(float(wanted["total"]), abs=1e-6)
    np.testing.assert_allclose(gradient, wanted["grad"], rtol=0, atol=1e-6)
    mask = np.ones(len(logits), bool)
    entropy = relation_losses.weighted_entropy(logits, wanted["labels"], mask, weights).mean()
    spread = relation_losses.class_balance(logits, wanted["labels"], mask)
    assert float(entropy) == pytest.approx(wanted["ce_mpca_acc"][0], abs=1e-6)
    assert float(spread) == pytest.approx(wanted["ce_mpca_acc"][1], abs=1e-8)
    # The third number is the accuracy that the metric counts.
    right = (logits.argmax(1) == wanted["labels"]).mean()
    assert right == pytest.approx(float(wanted["ce_mpca_acc"][2]), abs=1e-6)


def test_a_masked_example_counts_nowhere():
    logits = np.concatenate([LOGITS, [[np.inf, np.nan, 0]]]).astype(np.float32)
    labels, mask = np.append(LABELS, 0), np.array([True] * 5 + [False])
    for mode in relation_losses.MODES:
        want = relation_losses.class_balance(LOGITS, LABELS, np.ones(5, bool), mode)
        balance = relation_losses.class_balance(logits, labels, mask, mode)
        assert float(balance) == pytest.approx(float(want), abs=1e-8)
    # Masking equals leaving out, also where the weights differ.
    first = np.arange(5) < 3
    assert float(total(LOGITS, LABELS, STATIC, first)) == pytest.approx(
        float(total(LOGITS[:3], LABELS[:3], STATIC)), abs=1e-6
    )


def test_mean_mode_raises_the_metric_and_variance_may_lower_it():
    each, _ = relation_losses.soft_accuracy(LOGITS, LABELS, np.ones(5, bool))
    soft = relation_losses.class_balance(LOGITS, LABELS, np.ones(5, bool), "mean")
    assert float(soft) == pytest.approx(1 - float(np.mean(each)), abs=1e-6)
    only = relation_losses.class_balance(LOGITS[:1], LABELS[:1], np.ones(1, bool), "mean")
    assert float(only) == pytest.approx(1 - float(jax.nn.softmax(LOGITS[0])[0]), abs=1e-6)
    nobody = relation_losses.class_balance(LOGITS, LABELS, np.zeros(5, bool), "mean")
    assert float(nobody) == 0.0
    gradient = {
        mode: jax.grad(relation_losses.class_balance)(LOGITS, LABELS, np.ones(5, bool), mode)
        for mode in relation_losses.MODES
    }
    best = 1, 1  # the example and label of the class with the highest soft accuracy
    assert gradient["variance"][best] > 0 > gradient["mean"][best]
    with pytest.raises(ValueError, match="choose one of variance, mean"):
        relation_losses.class_balance(LOGITS, LABELS, np.ones(5, bool), "sum")


def test_focal_form():
    entropy = relation_losses.weighted_entropy(
        LOGITS, LABELS, np.ones(5, bool), jnp.asarray(STATIC), gamma=2.0
    )
    np.testing.assert_allclose(entropy, losses.focal(LOGITS, LABELS, 2.0, jnp.asarray(STATIC)))
    share = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    own = share[range(5), LABELS]
    np.testing.assert_allclose(entropy, -STATIC[LABELS] * (1 - own) ** 2 * np.log(own), rtol=1e-5)


def test_gradients_are_finite_where_one_class_is_there():
    for mode in relation_losses.MODES:
        slope = jax.grad(total)(LOGITS, np.ones(5, int), mode=mode)
        assert np.isfinite(slope).all()


def test_the_metric_counts_the_classes_that_occur():
    scores = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 1]]
    labels, mask = np.array([0, 1, 1, 0, 2]), np.array([True, True, True, True, False])
    confusion = Confusion.of(jnp.asarray(scores), jnp.asarray(labels), jnp.asarray(mask))
    assert confusion.mean_class() == pytest.approx((1 / 2 + 1 / 2) / 2)  # class 2 is masked out
    whole = Confusion.of(jnp.asarray(scores), jnp.asarray(labels))
    assert whole.mean_class() == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)

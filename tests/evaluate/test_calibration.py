"""Calibration on tables small enough to check by hand."""

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.evaluate import calibration, metrics

# Confidences .9 (right), .8 (wrong), .6 (right), .6 (right).
SHARE = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.6, 0.4]])
LABELS = np.array([0, 1, 1, 0])


def test_reliability_by_hand():
    found = calibration.reliability(SHARE, LABELS, bins=5)
    np.testing.assert_array_equal(found.count, [0, 0, 2, 1, 1])
    np.testing.assert_allclose(found.confidence, [0, 0, 0.6, 0.8, 0.9])
    np.testing.assert_allclose(found.accuracy, [0, 0, 1, 0, 1])
    assert found.error == pytest.approx((2 * 0.4 + 0.8 + 0.1) / 4)
    assert found.largest == pytest.approx(0.8)


def test_two_ways_to_the_same_error():
    rng = np.random.default_rng(0)
    share = metrics.softmax(rng.normal(0, 3, (500, 7)))
    labels = rng.integers(0, 7, 500)
    for bins in (10, 15):
        found = calibration.reliability(share, labels, bins)
        assert found.count.sum() == 500
        assert found.error == pytest.approx(metrics.calibration_error(share, labels, bins))


def test_brier_by_hand():
    wanted = np.mean([2 * 0.1**2, 2 * 0.8**2, 2 * 0.4**2, 2 * 0.4**2])
    assert calibration.brier(SHARE, LABELS) == pytest.approx(wanted)
    assert calibration.brier(np.eye(3), np.arange(3)) == pytest.approx(0)
    assert calibration.brier(np.eye(3), [1, 2, 0]) == pytest.approx(2)


def test_temperature_by_hand():
    """Two thirds right at a gap of 1: the likeliest probability is 2/3, a gap of log 2."""
    logits, labels = np.array([[1.0, 0.0]] * 3), np.array([0, 0, 1])
    assert calibration.temperature(logits, labels) == pytest.approx(1 / np.log(2), rel=1e-6)
    assert calibration.temperature(logits * 5, labels) == pytest.approx(5 / np.log(2), rel=1e-6)
    # Log probabilities serve as logits.
    logp = np.log(metrics.softmax(logits))
    assert calibration.temperature(logp, labels) == pytest.approx(1 / np.log(2), rel=1e-6)


def test_temperature_brings_back_a_calibrated_table():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (20000, 5))
    share = metrics.softmax(logits)
    labels = (share.cumsum(1) > rng.random((20000, 1))).argmax(1)
    assert calibration.temperature(logits, labels) == pytest.approx(1, abs=0.03)
    sharp = 3 * logits
    found = calibration.temperature(sharp, labels)
    assert found == pytest.approx(3, abs=0.1)
    before, after = calibration.numbers(sharp, labels), calibration.numbers(sharp / found, labels)
    assert before["ece"] > 0.15 and after["ece"] < 0.02
    assert after["nll"] < before["nll"] and after["brier"] < before["brier"]
    # It is the minimum.
    for factor in (0.97, 1.03):
        other = calibration.scaled(sharp, found * factor)
        assert metrics.nll(other, labels) > after["nll"]


def test_temperature_stays_within_its_limits():
    logits = np.array([[3.0, 0.0], [0.0, 2.0]])
    assert calibration.temperature(logits, np.array([0, 1])) == pytest.approx(0.01)
    assert calibration.temperature(logits, np.array([1, 0])) == pytest.approx(100)


def test_tables_that_do_not_fit():
    for share, labels in ((SHARE, LABELS[:2]), (SHARE[0], LABELS), (SHARE[:0], LABELS[:0])):
        with pytest.raises(UserError, match="must be"):
            calibration.reliability(share, labels)

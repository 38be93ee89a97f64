"""How far probabilities are from frequencies: calibration error, Brier score, temperature.

All functions work on stored rows in NumPy float64: probabilities or logits f[n, k], labels i[n].
Log probabilities serve as logits. Guo et al., ICML 2017; Brier, 1950.
"""

import dataclasses

import numpy as np

from jaxact.config import UserError
from jaxact.evaluate import metrics

BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """The rows in equal bins (low, high] of their confidence 0..1."""

    count: np.ndarray  # i[bins], rows
    confidence: np.ndarray  # f[bins], mean; 0 where a bin is empty
    accuracy: np.ndarray  # f[bins], mean; 0 where a bin is empty

    @property
    def error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| over examples."""
        gap = np.abs(self.accuracy - self.confidence)
        return float((gap * self.count).sum() / self.count.sum())

    @property
    def largest(self) -> float:
        """Maximum calibration error over the bins that hold examples."""
        return float(np.abs(self.accuracy - self.confidence).max())


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Rows by their confidence. Raises: UserError for tables that do not fit, or without rows."""
    probabilities, labels = _table(probabilities, labels)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    whole = np.maximum(count, 1)
    return Reliability(
        count,
        np.bincount(place, weights=confidence, minlength=bins) / whole,
        np.bincount(place, weights=right, minlength=bins) / whole,
    )


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance to the one-hot label, summed over classes: 0 to 2."""
    probabilities, labels = _table(probabilities, labels)
    own = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    return float(np.mean((probabilities**2).sum(1) - 2 * own + 1))


def scaled(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities f64[n, k] of logits divided by a temperature."""
    return metrics.softmax(np.asarray(logits, np.float64) / temperature)


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T in 1/100..100 with the highest likelihood of the labels.

    The log likelihood is concave in 1 / T, so bisection finds the zero of its slope. Fit it on
    validation rows and apply it to others.
    """
    logits, labels = _table(logits, labels)
    logits = logits - logits.max(1, keepdims=True)
    own = np.take_along_axis(logits, labels[:, None], 1)[:, 0].mean()

    def slope(inverse: float) -> float:
        power = np.exp(inverse * logits)
        return float(own - ((power * logits).sum(1) / power.sum(1)).mean())

    low, high = np.log(0.01), np.log(100.0)  # of 1 / T
    for _ in range(50):
        middle = (low + high) / 2
        if slope(np.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))


def numbers(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """nll (nats), ece, mce (15 bins) and brier of logits f[n, k]."""
    probabilities = scaled(logits, 1.0)
    bins = reliability(probabilities, labels)
    return {
        "nll": metrics.nll(probabilities, labels),
        "ece": bins.error,
        "mce": bins.largest,
        "brier": brier(probabilities, labels),
    }


def _table(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise UserError(
            f"scores {scores.shape} and labels {labels.shape}: must be (n, classes) and (n,), n > 0"
        )
    return scores, labels.astype(np.int64)

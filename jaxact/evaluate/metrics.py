"""Classification metrics: sums for the device, exact scores of stored rows for the host.

The device side: `Average` and `Confusion` are pytrees of sums. Batches, from however many devices,
are merged by adding them leaf by leaf. Padding (mask False) does not count, nor does an unknown
label (outside 0..k-1) in `Confusion`.

The host side works on stored rows (scores f32[n, k], labels i[n]) in NumPy, sums in float64.

Ties are broken towards the lower class number everywhere, as `argmax` does.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.config import UserError

Array = Any  # of NumPy or of JAX


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Average:
    """The mean of a per-example value: total f32[], count f32[] (the sum of the mask)."""

    total: Array
    count: Array

    @classmethod
    def of(cls, values: Array, mask: Array | None = None) -> "Average":
        """Values f[b] where `mask` bool[b] (absent: all); NaN in padding does no harm."""
        keep = jnp.ones(values.shape, bool) if mask is None else mask
        kept = jnp.where(keep, values.astype(jnp.float32), 0.0)
        return cls(jnp.sum(kept), jnp.sum(keep, dtype=jnp.float32))

    def compute(self) -> float:
        """The mean; NaN where nothing was counted."""
        return float(self.total) / float(self.count) if float(self.count) else float("nan")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts i32[k, k]: rows are true classes, columns are predictions. Shares of 0/0 are 0."""

    table: Array

    @classmethod
    def of(cls, scores: Array, labels: Array, mask: Array | None = None) -> "Confusion":
        """On the device: the best class of scores f[b, k], labels i[b], where mask bool[b]."""
        classes = scores.shape[-1]
        keep = _known(labels, classes, mask)
        row = jnp.where(keep, labels, classes)  # outside the table: dropped
        best = jnp.argmax(scores, axis=-1)
        table = jnp.zeros((classes, classes), jnp.int32)
        return cls(table.at[row, best].add(1, mode="drop"))

    @classmethod
    def count(cls, predictions: Array, labels: Array, classes: int) -> "Confusion":
        """On the host, of predictions i[n] and labels i[n]. Raises: UserError outside 0..k-1."""
        predictions = _checked(predictions, classes, "prediction")
        labels = _checked(labels, classes, "label")
        flat = np.bincount(labels * classes + predictions, minlength=classes * classes)
        return cls(flat.reshape(classes, classes))

    @property
    def support(self) -> np.ndarray:
        """True examples of each class, i64[k]."""
        return np.asarray(self.table, np.int64).sum(axis=1)

    @property
    def predicted(self) -> np.ndarray:
        """Predictions of each class, i64[k]."""
        return np.asarray(self.table, np.int64).sum(axis=0)

    def top1(self) -> float:
        """Share of examples on the diagonal."""
        return float(_share(np.trace(np.asarray(self.table, np.int64)), self.support.sum()))

    def recall(self) -> np.ndarray:
        """Correct of those that are of the class, f64[k]."""
        return _share(np.diagonal(self.table), self.support)

    def precision(self) -> np.ndarray:
        """Correct of those predicted as the class, f64[k]."""
        return _share(np.diagonal(self.table), self.predicted)

    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, f64[k]."""
        return _share(2 * np.diagonal(self.table), self.support + self.predicted)

    def mean_class(self, union: bool = False) -> float:
        """Mean recall over the classes that occur among the labels.

        union: classes that are predicted but never true count too, as 0, as in MMAction2's
        `mean_class_accuracy`.
        """
        seen = (self.support > 0) | (union & (self.predicted > 0))
        return float(_share(self.recall()[seen].sum(), seen.sum()))

    def macro_f1(self, everywhere: bool = False) -> float:
        """Mean F1 over the classes that occur among the labels, or over all k."""
        seen = (self.support > 0) | everywhere
        return float(_share(self.f1()[seen].sum(), seen.sum()))


def rank(scores: Array, labels: Array) -> Array:
    """Number of classes that come before the label: scores f[..., k], labels i[...] -> i[...].

    Equal scores rank by class number; a NaN anywhere never makes a label look better.
    """
    xp = scores.__array_namespace__()
    classes = scores.shape[-1]
    label = xp.clip(labels, 0, classes - 1)[..., None]
    own = xp.take_along_axis(scores, label, axis=-1)
    other = xp.arange(classes)
    behind = (scores < own) | ((scores == own) & (other >= label))
    return classes - xp.sum(behind, axis=-1)


def softmax(scores: Array) -> Array:
    """Probabilities over the last axis, of NumPy or JAX arrays."""
    xp = scores.__array_namespace__()
    shifted = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    return shifted / xp.sum(shifted, axis=-1, keepdims=True)


def fuse(scores: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted sum of score tables f[n, k].

    Weights are used as given: (1, 1), (2, 1), (1, 2) are MMAction2's RGB:pose fusions; take
    weights that add up to 1 where the sum has to be a probability.
    Raises: UserError where the tables or the weights do not match.
    """
    shapes = [tuple(table.shape) for table in scores]
    if not shapes or len(set(shapes)) > 1:
        raise UserError(f"fusion needs score tables of one shape, got {shapes}")
    if len(weights) != len(shapes):
        raise UserError(f"fusion of {len(shapes)} score tables got {len(weights)} weights")
    others = zip(weights[1:], scores[1:], strict=True)
    return sum(weight * table for weight, table in others) + weights[0] * scores[0]


def topk(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of rows whose label is among the k best scores f[n, k'], labels i[n]; NaN for n = 0."""
    scores, labels = _rows(scores, labels)
    return float(np.mean(rank(scores, labels) < k)) if len(labels) else float("nan")


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood (nats) of probabilities f[n, k]; floor 1e-12, NaN for n = 0."""
    probabilities, labels = _rows(probabilities, labels)
    own = np.take_along_axis(probabilities.astype(np.float64), labels[:, None], axis=1)
    return float(np.mean(-np.log(np.maximum(own, 1e-12)))) if len(labels) else float("nan")


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean |accuracy - confidence| over equal bins (lo, hi] of 0..1.

    Probabilities f[n, k], labels i[n]; the confidence is that of the best class. NaN for n = 0.
    Guo et al., ICML 2017.
    """
    probabilities, labels = _rows(probabilities, labels)
    if not len(labels):
        return float("nan")
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


CLASSIFICATION = (
    *("top1", "top5", "mean_class", "mean_class_union", "macro_f1", "macro_f1_all", "nll", "ece"),
)


def classification(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All numbers of one table of probabilities f[n, k]; shares in 0..1.

    top1, top5, mean_class (mean recall of the classes present), mean_class_union (MMAction2's
    rule), macro_f1 (classes present), macro_f1_all, nll (nats), ece (15 bins).
    """
    probabilities, labels = _rows(probabilities, labels)
    table = Confusion.count(probabilities.argmax(axis=1), labels, probabilities.shape[1])
    return {
        "top1": topk(probabilities, labels, 1),
        "top5": topk(probabilities, labels, 5),
        "mean_class": table.mean_class(),
        "mean_class_union": table.mean_class(union=True),
        "macro_f1": table.macro_f1(),
        "macro_f1_all": table.macro_f1(everywhere=True),
        "nll": nll(probabilities, labels),
        "ece": calibration_error(probabilities, labels),
    }


def _known(labels, classes, mask):
    known = (labels >= 0) & (labels < classes)
    return known if mask is None else known & mask


def _share(part, whole):
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _checked(numbers, classes, what):
    numbers = np.asarray(numbers)
    wrong = numbers[(numbers < 0) | (numbers >= classes)]
    if wrong.size:
        raise UserError(f"{what} {wrong[0]} of {len(numbers)} rows: must be in 0..{classes - 1}")
    return numbers.astype(np.int64)


def _rows(scores, labels):
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise UserError(
            f"scores {scores.shape} and labels {labels.shape}: must be (n, classes) and (n,)"
        )
    return scores, _checked(labels, scores.shape[1], "label")

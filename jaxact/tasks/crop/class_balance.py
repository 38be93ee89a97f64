"""Loss weights that make up for rare classes, and which classes are the tail."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.crop.classes import rows_by_class
from jaxact.tasks.crop.config import Balance

TAIL = 0.25  # of the classes


def loss_weights(settings: Balance, counts: np.ndarray) -> np.ndarray:
    """f32[k]: loss weights of classes with `counts` i[k] training examples, or those of a file.

    With N examples and K classes: inverse N / (K n); sqrt, its root; effective (1 - beta) /
    (1 - beta^n) (Cui et al. 2019), scaled so that the mean over examples is 1; none 1. Then clipped
    and divided by their mean over the classes that have examples. A class without examples gets 0.

    Raises: UserError for a bad file.
    """
    if settings.file:
        return read_weights(settings.file, len(counts))
    counts = np.asarray(counts, np.float64)
    some = counts > 0
    n = np.where(some, counts, 1)
    if settings.weights == "none":
        return some.astype(np.float32)
    if settings.weights == "effective":
        raw = (1 - settings.beta) / (1 - settings.beta**n)
        raw *= counts.sum() / (counts * raw).sum()
    else:
        raw = counts.sum() / (len(counts) * n)
        raw = np.sqrt(raw) if settings.weights == "sqrt" else raw
    clipped = np.clip(raw, settings.clip[0], settings.clip[1])
    return np.where(some, clipped / clipped[some].mean(), 0).astype(np.float32)


def read_weights(path: str | Path, classes: int) -> np.ndarray:
    """f32[k] from a CSV with the columns class_id, weight.

    Raises: UserError for a missing file, a class that is missing, repeated or out of range, a
    weight that is no number from 0.
    """
    rows = rows_by_class(path, ("weight",))
    weights = np.zeros(classes, np.float32)
    for number, (where, row) in rows.items():
        if number >= classes:
            raise UserError(
                f"{where}: class_id {number} of {classes} classes; allowed: 0 to {classes - 1}, "
                "once"
            )
        try:
            weight = float(row["weight"])
        except ValueError:
            weight = np.nan
        if not 0 <= weight < np.inf:
            raise UserError(f"{where}: weight {row['weight']!r}; allowed: numbers from 0")
        weights[number] = weight
    missing = sorted(set(range(classes)) - rows.keys())
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{path}: no weight for class {missing[0]}{more}; allowed: a row for each of "
            f"{classes} classes"
        )
    return weights


def tail(counts: Sequence[int] | np.ndarray, share: float = TAIL) -> np.ndarray:
    """bool[k]: the floor(share k) classes with the smallest counts i[k], ties by number.

    Of the negative counts it is the head: the classes with the most examples.
    """
    counts = np.asarray(counts)
    rare = np.zeros(len(counts), bool)
    rare[np.argsort(counts, kind="stable")[: int(share * len(counts))]] = True
    return rare

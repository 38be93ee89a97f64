"""Weights of rare classes in the loss, and which classes are the tail."""

from pathlib import Path

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.crop.classes import _class_id, _rows


def weights(
    counts: np.ndarray,
    mode: str = "sqrt",
    beta: float = 0.999,
    low: float = 0.1,
    high: float = 10.0,
) -> np.ndarray:
    """f32[k]: loss weights of classes with `counts` i[k] training examples.

    With N examples and K classes: inverse N / (K n); sqrt, its root; effective (1 - beta) /
    (1 - beta^n) (Cui et al. 2019), scaled so that the mean over examples is 1; none 1. Then clipped
    to [low, high] and divided by their mean over the classes that have examples. A class without
    examples gets 0.
    """
    counts = np.asarray(counts, np.float64)
    some = counts > 0
    n = np.where(some, counts, 1)
    if mode == "none":
        return some.astype(np.float32)
    if mode == "effective":
        raw = (1 - beta) / (1 - beta**n)
        raw *= counts.sum() / (counts * raw).sum()
    else:
        raw = counts.sum() / (len(counts) * n)
        raw = np.sqrt(raw) if mode == "sqrt" else raw
    clipped = np.clip(raw, low, high)
    return np.where(some, clipped / clipped[some].mean(), 0).astype(np.float32)


def read_weights(path: str | Path, classes: int) -> np.ndarray:
    """f32[k] from a CSV with the columns class_id, weight.

    Raises: UserError for a missing file, a class that is missing, repeated or out of range, a
    weight that is no number from 0.
    """
    found: dict[int, float] = {}
    for line, row in _rows(path, ("class_id", "weight")):
        where = f"{path}:{line}"
        number = _class_id(row["class_id"], where)
        if number >= classes or number in found:
            what = "is there twice" if number in found else f"of {classes} classes"
            raise UserError(f"{where}: class_id {number} {what}; allowed: 0 to {classes - 1}, once")
        try:
            weight = float(row["weight"])
        except ValueError:
            weight = float("nan")
        if not 0 <= weight < float("inf"):
            raise UserError(f"{where}: weight {row['weight']!r}; allowed: numbers from 0")
        found[number] = weight
    missing = sorted(set(range(classes)) - found.keys())
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{path}: no weight for class {missing[0]}{more}; allowed: a row for each of "
            f"{classes} classes"
        )
    return np.array([found[k] for k in range(classes)], np.float32)


def tail(counts: np.ndarray, share: float = 0.25) -> tuple[int, ...]:
    """The floor(share * k) classes with the fewest training examples, ties by number, sorted."""
    order = np.argsort(np.asarray(counts), kind="stable")
    return tuple(sorted(order[: int(share * len(order))].tolist()))


def head(counts: np.ndarray, share: float = 0.25) -> tuple[int, ...]:
    """The floor(share * k) classes with the most training examples, ties by number, sorted."""
    order = np.argsort(-np.asarray(counts), kind="stable")
    return tuple(sorted(order[: int(share * len(order))].tolist()))

"""Fusion of the stored scores of several runs: align by id, bring to one space, average, search.

All in NumPy, sums in float64. A table is f[n, k]: n examples, k classes. Weights are divided by
their sum, so that averaged probabilities are probabilities.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from jaxact.config import UserError
from jaxact.evaluate import metrics

SPACES = ("prob", "score", "logit")
SEARCHES = ("grid", "least_squares")
GRID = 20000  # weightings that a grid search tries at most
SUBSETS = 12  # runs that least squares takes at most: it looks at every subset of them


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The scores of one run on one split."""

    name: str
    ids: tuple[str, ...]
    scores: np.ndarray  # f[n, k]
    label: np.ndarray  # i[n]; -1 = unknown


def align(runs: Sequence[Predictions]) -> tuple[tuple[str, ...], list[np.ndarray], np.ndarray]:
    """(ids, a table for each run, labels) in the order of the first run.

    A label that one run does not know is taken from another.
    Raises UserError: fewer than two runs; an id twice, or missing in a run; labels that disagree;
    other class counts.
    """
    if len(runs) < 2:
        raise UserError(f"an ensemble of {len(runs)} run(s); allowed: 2 or more")
    first = runs[0]
    for run in runs:
        _check_scores(run)
        if run.scores.shape[1] != first.scores.shape[1]:
            raise UserError(
                f"{run.name} has {run.scores.shape[1]} classes, {first.name} has "
                f"{first.scores.shape[1]}; allowed: runs of the same classes"
            )
        for one, other in ((first, run), (run, first)):
            known = set(other.ids)
            lacking = [name for name in one.ids if name not in known]
            if lacking:
                some = ", ".join(map(repr, lacking[:3]))
                raise UserError(
                    f"{other.name} has no scores for {len(lacking)} of the {len(one.ids)} examples "
                    f"of {one.name}, as {some}; allowed: runs of the same examples"
                )
    tables, label = [], np.full(len(first.ids), -1)
    for run in runs:
        place = {name: index for index, name in enumerate(run.ids)}
        order = np.array([place[name] for name in first.ids])
        tables.append(run.scores[order].astype(np.float64))
        theirs = run.label[order]
        wrong = np.flatnonzero((label >= 0) & (theirs >= 0) & (label != theirs))
        if wrong.size:
            index = wrong[0]
            raise UserError(
                f"{run.name} labels {first.ids[index]!r} {theirs[index]}, an earlier run "
                f"{label[index]} (and {wrong.size - 1} more); allowed: runs of the same labels"
            )
        label = np.where(label < 0, theirs, label)
    return first.ids, tables, label


def _check_scores(run: Predictions) -> None:
    seen: set[str] = set()
    for name in run.ids:
        if name in seen:
            raise UserError(f"{run.name} holds {name!r} twice; allowed: each example once")
        seen.add(name)
    if not np.isfinite(run.scores).all():
        row = int(np.flatnonzero(~np.isfinite(run.scores).all(axis=1))[0])
        raise UserError(f"{run.name}: the scores of {run.ids[row]!r} are not finite")


def are_probabilities(table: np.ndarray) -> bool:
    """Is no score negative, and does every row add up to 1?"""
    return bool((table >= 0).all() and np.allclose(table.sum(axis=1), 1, atol=1e-3))


def probabilities(table: np.ndarray) -> np.ndarray:
    """The table itself where it holds probabilities, else its softmax."""
    return table if are_probabilities(table) else metrics.softmax(table)


def moved(tables: Sequence[np.ndarray], names: Sequence[str], space: str) -> list[np.ndarray]:
    """The tables as they are averaged.

    "prob": probabilities; "logit": their logarithms, so that the mean is geometric; "score": as
    stored. Raises UserError: another space, or "score" with probabilities beside raw scores.
    """
    if space not in SPACES:
        raise UserError(f"--space={space} is not known; allowed: {', '.join(SPACES)}")
    if space == "score":
        kinds = [are_probabilities(table) for table in tables]
        if len(set(kinds)) > 1:
            raise UserError(
                f"{names[kinds.index(True)]} holds probabilities and {names[kinds.index(False)]} "
                "raw scores: their mean means nothing; allowed: --space=prob or --space=logit"
            )
        return list(tables)
    shares = [probabilities(table) for table in tables]
    if space == "prob":
        return shares
    return [np.log(np.maximum(share, 1e-12)) for share in shares]


def shares_of(weights: Sequence[float], count: int) -> np.ndarray:
    """Weights divided by their sum; () = equal. Raises UserError: another count, or a negative."""
    if not len(weights):
        return np.full(count, 1 / count)
    given = np.asarray(weights, np.float64)
    shown = ",".join(f"{w:g}" for w in given)
    if len(given) != count:
        raise UserError(f"--weights={shown} are {len(given)}; allowed: {count}, one for each run")
    if not np.isfinite(given).all() or (given < 0).any() or given.sum() <= 0:
        raise UserError(f"--weights={shown}; allowed: 0 or more, not all 0")
    return given / given.sum()


def fuse(tables: Sequence[np.ndarray], weights: Sequence[float], space: str) -> np.ndarray:
    """Weighted mean f64[n, k] of tables from `moved`; "logit" comes back as probabilities."""
    total = metrics.fuse(tables, shares_of(weights, len(tables)).tolist())
    return metrics.softmax(total) if space == "logit" else total


def agreement(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Share f64[r, r] of examples for which two runs choose the same class."""
    best = np.stack([table.argmax(axis=1) for table in tables])
    return (best[:, None] == best[None]).mean(axis=2)


def simplex(count: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to give `parts` equal parts to `count` runs.

    >>> simplex(2, 2)
    [(0, 2), (1, 1), (2, 0)]
    """
    bars = itertools.combinations(range(parts + count - 1), count - 1)
    return [
        tuple(b - a - 1 for a, b in itertools.pairwise((-1, *bar, parts + count - 1)))
        for bar in bars
    ]


def grid_search(tables: Sequence[np.ndarray], labels: np.ndarray, space: str) -> np.ndarray:
    """The weights on a grid (steps of 1/20, 1/10 or 1/5) with the best top1 on known labels.

    A tie goes to the lowest negative log-likelihood, then to the weights nearest to equal ones.
    Raises UserError: too many runs for a grid, or no known label.
    """
    tables, labels = _known(tables, labels)
    count = len(tables)
    for parts in (20, 10, 5):
        if math.comb(parts + count - 1, count - 1) <= GRID:
            break
    else:
        raise UserError(f"--search=grid with {count} runs is too much; allowed: least_squares")
    best: tuple[tuple[float, float, float], np.ndarray] | None = None
    for shares in simplex(count, parts):
        weights = np.array(shares) / parts
        table = fuse(tables, weights.tolist(), space)
        key = (
            -metrics.topk(table, labels, 1),
            round(metrics.nll(probabilities(table), labels), 12),
            float(np.abs(weights - 1 / count).sum()),
        )
        if best is None or key < best[0]:
            best = key, weights
    assert best is not None
    return best[1]


def least_squares(tables: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The weights whose mean of probability tables is nearest to the one-hot labels.

    Minimises |sum_r w_r P_r - Y|^2 over w >= 0, sum w = 1, exactly: the optimum solves the
    equations of one subset of the runs, so every subset is tried, the smallest first.
    Raises UserError: more runs than SUBSETS, or no known label.
    """
    tables, labels = _known(tables, labels)
    count = len(tables)
    if count > SUBSETS:
        raise UserError(f"--search=least_squares with {count} runs; allowed: up to {SUBSETS}")
    flat = np.stack([table.reshape(-1) for table in tables])
    target = np.eye(tables[0].shape[1])[labels].reshape(-1)
    gram, cross = flat @ flat.T, flat @ target
    best: tuple[float, np.ndarray] | None = None
    for size in range(1, count + 1):
        for subset in itertools.combinations(range(count), size):
            rows = list(subset)
            system = np.ones((size + 1, size + 1))  # stationary in w, and sum w = 1
            system[:size, :size], system[size, size] = gram[np.ix_(rows, rows)], 0
            solved = np.linalg.lstsq(system, np.append(cross[rows], 1.0), rcond=None)[0][:size]
            if (solved < 0).any():
                continue
            weights = np.zeros(count)
            weights[rows] = solved / solved.sum()
            error = float(weights @ gram @ weights - 2 * weights @ cross)
            if best is None or error < best[0] - 1e-9 * abs(best[0]):
                best = error, weights
    assert best is not None
    return best[1]


def _known(tables: Sequence[np.ndarray], labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    known = labels >= 0
    if not known.any():
        raise UserError(
            "weights cannot be searched: no example of the validation split is labelled"
        )
    return [table[known] for table in tables], labels[known]


def scores_of(table: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`metrics.classification` of the rows with a known label; {} where there are none."""
    known = labels >= 0
    if not known.any():
        return {}
    return metrics.classification(probabilities(table)[known], labels[known])

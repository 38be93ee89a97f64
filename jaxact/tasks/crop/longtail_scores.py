"""Scores of long-tailed, hierarchical classification: which classes carry a number.

Classes are split by their number of TRAINING images: tail and head are the quarters (rounded down)
with the fewest and the most, mid the rest; few, medium and many are below 20, up to 100 and above
(the convention of ImageNet-LT). Accuracy of a part is the mean recall of its classes that occur.
"""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from jaxact.evaluate.metrics import Confusion

TAIL = 0.25  # of the classes
SHOTS = (20, 100)  # images: few below the first, many above the second


def tail(counts: Sequence[int] | np.ndarray, share: float = TAIL) -> np.ndarray:
    """bool[k]: the floor(share k) classes with the fewest training images i[k], ties by number."""
    counts = np.asarray(counts)
    found = np.zeros(len(counts), bool)
    found[np.argsort(counts, kind="stable")[: int(share * len(counts))]] = True
    return found


def parts(counts: Sequence[int] | np.ndarray, share: float = TAIL) -> dict[str, np.ndarray]:
    """bool[k] of tail, mid, head and of few, medium, many, from training images i[k]."""
    counts = np.asarray(counts)
    low = tail(counts, share)
    head = np.zeros_like(low)
    head[np.argsort(-counts, kind="stable")[: int(share * len(counts))]] = True
    head &= ~low  # where a share above one half lets them meet
    few, many = counts < SHOTS[0], counts > SHOTS[1]
    return {
        "tail": low,
        "mid": ~(low | head),
        "head": head,
        "few": few,
        "medium": ~(few | many),
        "many": many,
    }


def part_scores(table: Confusion, members: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{part}_acc: the mean recall of the part's classes that occur; a part without any is left
    out."""
    recall, seen = table.recall(), table.support > 0
    return {
        f"{name}_acc": float(recall[seen & mine].mean())
        for name, mine in members.items()
        if (seen & mine).any()
    }


def grouped(probabilities: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Probabilities f[n, k] summed over the classes of each group i[k] -> f[n, max group + 1]."""
    onto = np.zeros((len(group), int(np.max(group)) + 1))
    onto[np.arange(len(group)), group] = 1.0
    return np.asarray(probabilities, np.float64) @ onto


def group_accuracy(probabilities: np.ndarray, labels: np.ndarray, group: np.ndarray) -> float:
    """Share of rows whose likeliest group i[k] is that of the label (marginalised, not merged)."""
    return float(np.mean(grouped(probabilities, group).argmax(1) == group[labels]))


def merged_accuracy(guess: np.ndarray, labels: np.ndarray, group: np.ndarray) -> float:
    """Share of guesses i[n] in the same group i[k] as the label i[n]: errors inside it forgiven."""
    return float(np.mean(group[guess] == group[labels]))


def class_table(
    table: Confusion, names: Sequence[str], counts: Sequence[int] | np.ndarray, share: float = TAIL
) -> str:
    """CSV text: class, name, train images, part, support, predicted, precision, recall, f1."""
    members = parts(counts, share)
    of = np.select([members["tail"], members["head"]], ["tail", "head"], "mid")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ("class", "name", "train", "part", "support", "predicted", "precision", "recall", "f1")
    )
    columns = (table.support, table.predicted, table.precision(), table.recall(), table.f1())
    for k, (name, count) in enumerate(zip(names, counts, strict=True)):
        support, predicted, *shares = (column[k] for column in columns)
        rates = [f"{value:.6f}" for value in shares]
        writer.writerow((k, name, int(count), of[k], support, predicted, *rates))
    return file.getvalue()

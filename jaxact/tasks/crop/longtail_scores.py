"""Scores of long-tailed, hierarchical classification: accuracies of subsets of the classes.

Subsets go by the number of TRAINING pictures: tail and head are the quarters (rounded down) of the
classes with the fewest and the most, mid the rest; few, medium and many have below 20, 20 to 100
and above 100 (as in ImageNet-LT). The accuracy of a subset is the mean recall of its classes that
occur.
"""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from jaxact.evaluate.metrics import Confusion
from jaxact.tasks.crop.class_balance import TAIL, tail

SUBSETS = ("tail", "mid", "head", "few", "medium", "many")
SHOTS = (20, 100)  # pictures: few below the first, many above the second


def subsets(counts: Sequence[int] | np.ndarray, share: float = TAIL) -> dict[str, np.ndarray]:
    """bool[k] of each of SUBSETS, from training pictures i[k]."""
    counts = np.asarray(counts)
    low = tail(counts, share)
    head = tail(-counts, share) & ~low  # a share above one half lets them meet
    few, many = counts < SHOTS[0], counts > SHOTS[1]
    return dict(zip(SUBSETS, (low, ~(low | head), head, few, ~(few | many), many), strict=True))


def subset_scores(table: Confusion, members: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{subset}_acc: the mean recall of its classes that occur; without any it is left out."""
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
    members = subsets(counts, share)
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

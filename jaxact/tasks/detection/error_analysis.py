"""Why detections are wrong: localisation, confusion, double, background; and what was missed.

    counted = errors(truth, detections, tiou=0.5, classes=20)
    counted.text(names)

At one tIoU t and a floor f (0.1), a detection is of the first kind that holds for it:

| kind | its video has a ground truth |
|---|---|
| true | that it takes in the evaluation (own class, IoU >= t, still free) |
| double | of its class, IoU >= t, taken by a better one |
| localisation | of its class, f <= IoU < t |
| confusion | of another class, IoU >= f |
| background | (has none with IoU >= f) |

A ground truth that no detection takes is missed. Only the best detections count, in each class
`per_truth` times its ground truths: thousands of near-zero scores would hide the rest. `gain` of a
kind is the rise of mAP (at t) without its detections (of "missed": without those ground truths).
Source: the kinds of DETAD (Alwassel et al., ECCV 2018), whose wrong labels we join with confusion.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.detection import mean_ap
from jaxact.tasks.detection.mean_ap import Instances, Protocol

TRUE, DOUBLE, LOCALISATION, CONFUSION, BACKGROUND = range(5)
KINDS = ("true", "double", "localisation", "confusion", "background")


@dataclasses.dataclass(frozen=True, eq=False)
class Errors:
    """Counts of detections by kind, of missed ground truths, and what each kind costs."""

    tiou: float
    counts: np.ndarray  # i64[k, 5]: KINDS of the detections of each class
    missed: np.ndarray  # i64[k]
    positives: np.ndarray  # i64[k] ground truths
    gain: dict[str, float]  # mAP gained without this kind
    confused: np.ndarray  # i64[k, k]: rows are true classes, columns those of detections

    def numbers(self) -> dict[str, float]:
        """Shares of the detections counted, the share of ground truths missed, and gains."""
        total = max(int(self.counts.sum()), 1)
        shares = dict(zip(KINDS, self.counts.sum(0) / total, strict=True))
        shares["missed"] = self.missed.sum() / self.positives.sum()
        numbers = {f"share/{kind}": float(share) for kind, share in shares.items()}
        return numbers | {f"gain/{kind}": value for kind, value in self.gain.items()}

    def text(self, names: Sequence[str]) -> str:
        """A table: a row for each class with ground truth, then the sum and the gains."""
        columns = (*KINDS, "missed", "truths")
        table = np.column_stack([self.counts, self.missed, self.positives])
        rows = [(names[k], table[k]) for k in np.flatnonzero(self.positives).tolist()]
        rows.append(("all", table.sum(0)))
        width = max(len(name) for name, _ in rows)
        lines = [f"{'':{width}} " + " ".join(f"{c:>12}" for c in columns)]
        lines += [f"{name:{width}} " + " ".join(f"{n:>12,}" for n in row) for name, row in rows]
        gains = ["" if kind == "true" else f"{self.gain[kind]:+.4f}" for kind in columns[:-1]]
        lines.append(f"{'mAP gain':{width}} " + " ".join(f"{gain:>12}" for gain in gains))
        return "\n".join(lines)


def errors(
    truth: Instances,
    detections: Instances,
    tiou: float,
    classes: int,
    floor: float = 0.1,
    per_truth: int = 10,
) -> Errors:
    """Counts detections by kind at one tIoU. Labels are 0..classes-1; see the module's table.

    Raises: UserError for no ground truth, or a floor that is not below the tIoU.
    """
    if not 0 < floor < tiou <= 1:
        raise UserError(f"error split: floor {floor}, tIoU {tiou}; needed: 0 < floor < tIoU <= 1")
    if not len(truth.video):
        raise UserError("error split: there is no ground truth")
    positives = np.bincount(truth.label, minlength=classes)
    detections = _best(detections, positives * per_truth)
    taken = mean_ap.match(truth, detections, (tiou,))[0]
    kind, other = kinds(truth, detections, taken, tiou, floor)
    counts = np.zeros((classes, len(KINDS)), np.int64)
    np.add.at(counts, (detections.label, kind), 1)
    confused = np.zeros((classes, classes), np.int64)
    wrong = kind == CONFUSION
    np.add.at(confused, (truth.label[other[wrong]], detections.label[wrong]), 1)
    hit = np.zeros(len(truth.video), bool)
    hit[taken[taken >= 0]] = True
    missed = np.bincount(truth.label[~hit], minlength=classes)

    def score(truth: Instances, detections: Instances) -> float:
        return mean_ap.evaluate(truth, detections, Protocol((tiou,)), classes).average

    base = score(truth, detections)
    gain = {
        name: score(truth, detections.at(kind != index)) - base
        for index, name in enumerate(KINDS)
        if index != TRUE
    }
    # A class without any hit would leave the mean with its ground truths: it keeps them.
    kept = hit | ~np.isin(truth.label, truth.label[hit])
    gain["missed"] = score(truth.at(kept), detections) - base if kept.any() else 0.0
    return Errors(tiou, counts, missed, positives, gain, confused)


def _best(detections: Instances, most: np.ndarray) -> Instances:
    """By falling score, in each class the best `most[k]`; other labels are left out."""
    detections = mean_ap.by_score(
        detections.at((detections.label >= 0) & (detections.label < len(most)))
    )
    rank = mean_ap.ranks(detections.label)
    return detections.at(rank < most[detections.label])


def kinds(
    truth: Instances, detections: Instances, taken: np.ndarray, tiou: float, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """(kind i64[n], row i64[n] of the ground truth that explains it or -1) of detections.

    `taken` i64[n] are the rows that they take at this tIoU, from `mean_ap.match`.
    """
    rows, others, overlap = mean_ap.pairs(truth, detections, floor, any_class=True)
    own = truth.label[others] == detections.label[rows]
    kind = np.full(len(detections.video), BACKGROUND)
    about = np.full(len(detections.video), -1)
    order = np.argsort(overlap, kind="stable")  # the most overlapped one is written last
    rows, others, overlap, own = rows[order], others[order], overlap[order], own[order]
    for index, chosen in (
        (CONFUSION, ~own),
        (LOCALISATION, own & (overlap < tiou)),
        (DOUBLE, own & (overlap >= tiou)),
    ):
        kind[rows[chosen]] = index
        about[rows[chosen]] = others[chosen]
    hit = taken >= 0
    kind[hit], about[hit] = TRUE, taken[hit]
    return kind, about

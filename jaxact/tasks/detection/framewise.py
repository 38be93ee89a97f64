"""Scores of framewise labels: accuracy, segmental edit score, segmental F1 at overlaps.

A run of equal labels is a segment. Source: Lea et al., Temporal Convolutional Networks for Action
Segmentation and Detection (ED-TCN), which averages the scores of the videos; later work (MS-TCN)
counts F1 over all videos together: `pooled`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxact.config import UserError

OVERLAPS = (0.1, 0.25, 0.5)


class Runs(NamedTuple):
    """The segments of a label sequence, in order; frame `end` is not inside."""

    label: np.ndarray  # i64[n]
    start: np.ndarray  # i64[n] frames
    end: np.ndarray  # i64[n] frames


@dataclasses.dataclass(frozen=True)
class Counts:
    """F1 counts of one or more videos."""

    true: int  # predicted segments that take a ground truth of their own
    false: int  # those that take none
    missed: int  # ground truths that none takes

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.true + other.true, self.false + other.false, self.missed + other.missed)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 0 where there is nothing at all."""
        total = 2 * self.true + self.false + self.missed
        return 2 * self.true / total if total else 0.0


def runs(labels: np.ndarray, background: int = -1) -> Runs:
    """Segments of labels i[t]; those of the background class are left out (-1 = none is)."""
    labels = np.asarray(labels, np.int64)
    start = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    end = np.append(start[1:], len(labels))
    keep = labels[start] != background if background >= 0 else np.ones(len(start), bool)
    return Runs(labels[start][keep], start[keep], end[keep])


def segments(labels: np.ndarray, background: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """(i64[n, 2] frames [start, end), i64[n] labels) of a label sequence i[t]."""
    label, start, end = runs(labels, background)
    return np.stack([start, end], axis=1), label


def frames(segment: np.ndarray, label: np.ndarray, score: np.ndarray, length: int, background: int):
    """Label sequence i64[length] of detections: the best one over a frame gives its label.

    segment f[n, 2] in frames, label i[n], score f[n]; the time of frame i is its middle, i + 0.5.
    Frames that no detection covers are background.
    """
    labels = np.full(length, background, np.int64)
    for row in np.argsort(score, kind="stable"):  # the best is painted last
        low, high = np.ceil(np.asarray(segment[row], np.float64) - 0.5)
        labels[int(max(low, 0)) : int(max(high, 0))] = label[row]
    return labels


def accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of equal frames."""
    return float(np.mean(np.asarray(predicted) == np.asarray(truth)))


def edit(predicted: np.ndarray, truth: np.ndarray, background: int = -1) -> float:
    """1 - Levenshtein distance of the segments' labels / length of the longer list.

    1 where neither side has a segment.
    """
    a, b = runs(predicted, background).label, runs(truth, background).label
    longest = max(len(a), len(b))
    return 1 - distance(a, b) / longest if longest else 1.0


def distance(a: np.ndarray, b: np.ndarray) -> int:
    """Least number of insertions, deletions and substitutions that turn a i[n] into b i[m]."""
    row = np.arange(len(b) + 1)
    for i, value in enumerate(a):
        # First without insertions. Then each place may be reached from the left, for 1 a step:
        # a running minimum of (cost - place).
        cost = np.append(i + 1, np.minimum(row[1:] + 1, row[:-1] + (b != value)))
        row = np.minimum.accumulate(cost - np.arange(len(cost))) + np.arange(len(cost))
    return int(row[-1])


def overlap_counts(
    predicted: np.ndarray, truth: np.ndarray, overlap: float, background: int = -1
) -> Counts:
    """F1 counts of one video: label sequences i[t].

    Each predicted segment is compared with the ground truth of its label that it overlaps most; it
    is right if the IoU reaches `overlap` and no earlier one has taken that ground truth.
    """
    a, b = runs(predicted, background), runs(truth, background)
    if not len(a.label) or not len(b.label):
        return Counts(0, len(a.label), len(b.label))
    inner = np.minimum(a.end[:, None], b.end) - np.maximum(a.start[:, None], b.start)
    outer = np.maximum(a.end[:, None], b.end) - np.minimum(a.start[:, None], b.start)
    # `inner` is negative for segments that do not overlap, so their IoU is below every threshold.
    share = np.where(a.label[:, None] == b.label, inner / outer, -np.inf)
    best = share.argmax(1)
    good = share[np.arange(len(best)), best] >= overlap
    true = len(np.unique(best[good]))
    return Counts(true, len(a.label) - true, len(b.label) - true)


def evaluate(
    predicted: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    background: int = -1,
    overlaps: Sequence[float] = OVERLAPS,
    pooled: bool = True,
) -> dict[str, float]:
    """{"accuracy", "edit", "f1@10", ...} of videos' label sequences, all in 0..1.

    Accuracy is over all frames together (background included), edit the mean over videos; F1 from
    counts over all videos, or, not `pooled`, the mean over videos.
    Raises: UserError where the numbers of videos or frames differ.
    """
    if len(predicted) != len(truth) or not len(truth):
        raise UserError(
            f"segmentation: predictions of {len(predicted)} videos, ground truth of {len(truth)}"
        )
    pairs = list(zip(predicted, truth, strict=True))
    for index, (a, b) in enumerate(pairs):
        if len(a) != len(b):
            raise UserError(f"segmentation: video {index} has {len(a)} labels for {len(b)} frames")
    numbers = {
        "accuracy": accuracy(np.concatenate(predicted), np.concatenate(truth)),
        "edit": float(np.mean([edit(a, b, background) for a, b in pairs])),
    }
    for overlap in overlaps:
        counts = [overlap_counts(a, b, overlap, background) for a, b in pairs]
        total = sum(counts, Counts(0, 0, 0))
        mean = float(np.mean([count.f1 for count in counts]))
        numbers[f"f1@{round(100 * overlap)}"] = total.f1 if pooled else mean
    return numbers

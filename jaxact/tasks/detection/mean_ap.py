"""Mean average precision of temporal detections, in plain arrays.

    scores = evaluate(truth, detections, THUMOS, classes=20)
    scores.numbers()  # {"mAP": ..., "mAP@0.3": ..., "recall@0.5@1x": ...}

The definition (ActivityNet's, which THUMOS, EPIC and Ego4D share): the detections of a class in all
videos are taken by falling score. Each takes, of the ground truths of its video that are still
free, the one that it overlaps most, if the IoU reaches the threshold (tIoU). AP is the area under
the precision envelope over recall (VOC 2010). Classes without ground truth do not count, nor do
their detections.

Equal scores keep the order of the input (the references' quicksort leaves them in any order, which
moves the mean by up to 0.06 points where scores are rounded to four decimals). Of ground truths
with equal overlap the earlier one is taken.
"""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from jaxact.config import UserError

PAIRS = 4_000_000  # pairs of a detection and a ground truth compared at once
UNION = 1e-8  # s; least union, so that two empty segments do not overlap


class Instances(NamedTuple):
    """Segments of many videos, a row each; `video` numbers are shared with the other side."""

    video: np.ndarray  # i64[n]
    segment: np.ndarray  # f64[n, 2] s
    label: np.ndarray  # i64[n]
    score: np.ndarray  # f64[n]; 1 for ground truth

    def at(self, rows: np.ndarray) -> "Instances":
        """These rows (indices or a mask)."""
        return Instances(*(column[rows] for column in self))


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a benchmark is scored."""

    tious: tuple[float, ...]
    duplicates: float = -1.0  # s; a ground truth is dropped if both ends are that near another's
    shortest: float = -1.0  # s; ground truths no longer than this are dropped
    multiples: tuple[int, ...] = (1, 5)  # recall of the best m * (ground truths) detections


def _steps(low: int, high: int, step: int) -> tuple[float, ...]:
    return tuple(hundredth / 100 for hundredth in range(low, high + 1, step))


# OpenTAD drops duplicates within 1 ms and empty segments, ActionFormer segments below 1 ms too;
# ActivityNet's own toolkit neither.
THUMOS = Protocol(_steps(30, 70, 10), duplicates=1e-3, shortest=0.0)
ACTIONFORMER = Protocol(_steps(30, 70, 10), duplicates=1e-3, shortest=1e-3)
ACTIVITYNET = Protocol(_steps(50, 95, 5))
EPIC = Protocol(_steps(10, 50, 10), duplicates=1e-3, shortest=0.0)  # Ego4D-MQ too
DENSE = Protocol(_steps(10, 90, 10), duplicates=1e-3, shortest=0.0)  # MultiTHUMOS, Charades
PROTOCOLS = {
    "thumos": THUMOS,
    "actionformer": ACTIONFORMER,
    "activitynet": ACTIVITYNET,
    "epic": EPIC,
    "dense": DENSE,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What `evaluate` returns; NaN in `ap` for classes without ground truth."""

    protocol: Protocol
    ap: np.ndarray  # f64[tious, k]
    recall: np.ndarray  # f64[tious, multiples], mean over classes
    positives: np.ndarray  # i64[k] ground truths

    @property
    def means(self) -> np.ndarray:
        """mAP at each tIoU, f64[tious]."""
        return np.nanmean(self.ap, axis=1)

    @property
    def average(self) -> float:
        """The mean of `means`."""
        return float(self.means.mean())

    def numbers(self) -> dict[str, float]:
        """All means over classes, by name."""
        numbers = {"mAP": self.average}
        rows = zip(self.protocol.tious, self.means, self.recall, strict=True)
        for tiou, mean, recall in rows:
            numbers[f"mAP@{tiou:g}"] = float(mean)
            for multiple, share in zip(self.protocol.multiples, recall, strict=True):
                numbers[f"recall@{tiou:g}@{multiple}x"] = float(share)
        return numbers


def instances(
    video: np.ndarray, segment: np.ndarray, label: np.ndarray, score: np.ndarray | None = None
) -> Instances:
    """Instances of checked dtypes. Raises: UserError for lengths that differ or NaN."""
    video, label = np.asarray(video, np.int64).ravel(), np.asarray(label, np.int64).ravel()
    segment = np.asarray(segment, np.float64).reshape(-1, 2)
    score = np.ones(len(video)) if score is None else np.asarray(score, np.float64).ravel()
    lengths = {len(video), len(segment), len(label), len(score)}
    if len(lengths) > 1:
        raise UserError(f"detections: columns of {sorted(lengths)} rows; they must be equal")
    for name, column in (("segments", segment), ("scores", score)):
        if not np.isfinite(column).all():
            raise UserError(f"detections: {name} hold {np.sum(~np.isfinite(column))} NaN or inf")
    return Instances(video, segment, label, score)


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Overlap of segments f[..., 2] with others, broadcast: intersection over union."""
    start = np.maximum(first[..., 0], second[..., 0])
    inner = np.maximum(np.minimum(first[..., 1], second[..., 1]) - start, 0)
    union = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - inner
    return inner / np.maximum(union, UNION)


def clean(truth: Instances, duplicates: float, shortest: float) -> Instances:
    """Ground truth without near duplicates (the first stays) and very short segments, in order."""
    keep = truth.segment[:, 1] - truth.segment[:, 0] > shortest
    truth = truth.at(keep) if shortest >= 0 else truth
    if duplicates < 0:
        return truth
    order = np.lexsort((truth.segment[:, 0], truth.label, truth.video))
    lost = np.zeros(len(order), bool)
    for distance in range(1, len(order)):
        # Neighbours by start: stop at the distance where no two starts are near any more.
        a, b = order[:-distance], order[distance:]
        same = (truth.video[a] == truth.video[b]) & (truth.label[a] == truth.label[b])
        near = same & (np.abs(truth.segment[a, 0] - truth.segment[b, 0]) < duplicates)
        if not near.any():
            break
        near &= np.abs(truth.segment[a, 1] - truth.segment[b, 1]) < duplicates
        lost[np.maximum(a, b)[near]] = True
    return truth.at(~lost)


def pairs(
    truth: Instances, detections: Instances, least: float, any_class: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one video and class with an IoU of at least `least`, by row of detections.

    Returns (row of detections i64[p], row of truth i64[p], IoU f64[p]). `any_class`: pairs of one
    video, whatever their classes.
    """
    key, wanted = truth.video, detections.video
    if not any_class:
        low = min(truth.label.min(initial=0), detections.label.min(initial=0))
        span = max(truth.label.max(initial=0), detections.label.max(initial=0)) - low + 1
        key = key * span + truth.label - low
        wanted = wanted * span + detections.label - low
    order = np.argsort(key, kind="stable")
    start = np.searchsorted(key[order], wanted, "left")
    count = np.searchsorted(key[order], wanted, "right") - start
    total = np.concatenate([[0], np.cumsum(count)])
    kept, first = [], 0
    while first < len(wanted):
        last = max(first + 1, int(np.searchsorted(total, total[first] + PAIRS, "right")) - 1)
        rows = np.repeat(np.arange(first, last), count[first:last])
        inside = np.arange(len(rows)) - (total[rows] - total[first])
        others = order[start[rows] + inside]
        overlap = iou(detections.segment[rows], truth.segment[others])
        near = overlap >= least
        kept.append((rows[near], others[near], overlap[near]))
        first = last
    if not kept:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(0)
    rows, others, overlap = (np.concatenate(column) for column in zip(*kept, strict=True))
    return rows, others, overlap


def by_score(detections: Instances) -> Instances:
    """The detections by falling score; equal scores keep their order."""
    return detections.at(np.argsort(-detections.score, kind="stable"))


def ranks(group: np.ndarray) -> np.ndarray:
    """Place of each row among the rows of its group, from 0: groups i64[n] -> i64[n]."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    first = np.searchsorted(ordered, ordered, "left")
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - first
    return rank


def _groups(detections: Instances) -> np.ndarray:
    """A number for each video and class: i64[n]."""
    span = int(detections.label.max(initial=0)) + 1
    return detections.video * span + detections.label


def match(truth: Instances, detections: Instances, tious: tuple[float, ...]) -> np.ndarray:
    """The row of the ground truth that each detection takes at each tIoU: i64[tious, n], -1 = none.

    `detections` are sorted by score. A group is a video and a class. The first detections of all
    groups choose at once, then the second ones ...: groups do not compete, so the result is that of
    one choice after the other.
    """
    taken = np.full((len(tious), len(detections.video)), -1, np.int64)
    rows, others, overlap = pairs(truth, detections, min(tious))
    if not len(rows):
        return taken
    chosen, place = np.unique(rows, return_inverse=True)
    rank = ranks(_groups(detections.at(chosen)))[place]
    order = np.lexsort((others, -overlap, rows, rank))
    rows, others, overlap, rank = rows[order], others[order], overlap[order], rank[order]
    enough = overlap >= np.asarray(tious)[:, None]
    free = np.ones((len(tious), len(truth.video)), bool)
    rounds = np.flatnonzero(np.diff(rank, prepend=-1, append=rank[-1] + 1))
    heads = np.flatnonzero(np.diff(rows, prepend=-1) != 0)  # the first pair of each detection
    splits = np.searchsorted(heads, rounds)
    for number, (start, end) in enumerate(itertools.pairwise(rounds)):
        own = heads[splits[number] : splits[number + 1]]
        open_ = enough[:, start:end] & free[:, others[start:end]]
        place = np.where(open_, np.arange(start, end), len(rows))
        first = np.minimum.reduceat(place, own - start, axis=1)
        level, which = np.nonzero(first < len(rows))
        pair = first[level, which]
        free[level, others[pair]] = False
        taken[level, rows[pair]] = others[pair]
    return taken


def average_precision(hits: np.ndarray, positives: int) -> np.ndarray:
    """Area under the precision envelope: hits bool[..., n] by falling score -> f64[...]."""
    true = np.cumsum(hits, axis=-1, dtype=np.float64)
    precision = true / np.arange(1, hits.shape[-1] + 1)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    return np.sum(envelope * hits, axis=-1) / positives  # recall rises at hits only


def evaluate(truth: Instances, detections: Instances, protocol: Protocol, classes: int) -> Scores:
    """Scores detections, in any order, against ground truth; labels are 0..classes-1.

    Raises: UserError where there is no ground truth, or its labels are outside the classes.
    """
    truth = clean(truth, protocol.duplicates, protocol.shortest)
    if not len(truth.video):
        raise UserError("detection: there is no ground truth to score against")
    outside = truth.label[(truth.label < 0) | (truth.label >= classes)]
    if outside.size:
        raise UserError(f"detection: label {outside[0]}, allowed: 0 to {classes - 1}")
    positives = np.bincount(truth.label, minlength=classes)
    known = (detections.label >= 0) & (detections.label < classes)
    detections = by_score(detections.at(known))
    hits = match(truth, detections, protocol.tious) >= 0
    ap = np.full((len(protocol.tious), classes), np.nan)
    for label in np.flatnonzero(positives):
        own = detections.label == label
        ap[:, label] = average_precision(hits[:, own], positives[label]) if own.any() else 0.0
    return Scores(protocol, ap, _recall(truth, detections, protocol, positives), positives)


def _recall(
    truth: Instances, detections: Instances, protocol: Protocol, positives: np.ndarray
) -> np.ndarray:
    """f64[tious, multiples]: share of a class's ground truths reached, mean over classes.

    By one of the best m * n detections of its video and class, which have n ground truths.
    """
    span = max(int(truth.label.max()), int(detections.label.max(initial=0))) + 1
    group, other = truth.video * span + truth.label, detections.video * span + detections.label
    names, count = np.unique(group, return_counts=True)
    place = np.minimum(np.searchsorted(names, other), len(names) - 1)
    size = np.where(names[place] == other, count[place], 0)
    rank = ranks(other)
    best = rank < max(protocol.multiples) * size
    detections, rank, size = detections.at(best), rank[best], size[best]
    rows, others, overlap = pairs(truth, detections, min(protocol.tious))
    recall = np.zeros((len(protocol.tious), len(protocol.multiples)))
    seen = positives > 0
    for j, multiple in enumerate(protocol.multiples):
        inside = rank[rows] < multiple * size[rows]
        for i, tiou in enumerate(protocol.tious):
            reached = np.unique(others[inside & (overlap >= tiou)])
            hits = np.bincount(truth.label[reached], minlength=len(positives))
            recall[i, j] = np.mean(hits[seen] / positives[seen])
    return recall

"""Non-maximum suppression of temporal segments: soft (gaussian, linear) and hard, with voting.

    kept = suppress(segment, score, label, Nms(sigma=0.7, most=2000))

On the host, in NumPy: each pick depends on the one before, so an accelerator would wait for each
(`scripts/bench/detection_eval.py` measures both). The best segment of any class is picked next. So
`most` picks give the same as suppression in each class by itself, cut at `most` over all classes.
A pick changes only the scores of segments that can overlap it: those of its class between two
places of the order by start.

Equal scores: the earlier start is taken first, then the lower class.
Source: the soft-NMS of ActionFormer and OpenTAD (there a compiled extension).
"""

from typing import Any, NamedTuple

import numpy as np

from jaxact.tasks.detection.config import Nms

LENGTH = 1e-6  # added to every length, so that an empty segment has one
VOTES = 500_000  # pairs of segments compared at once


class Kept(NamedTuple):
    """The segments kept, by falling score."""

    segment: np.ndarray  # f32[n, 2], unit of the input
    score: np.ndarray  # f32[n]
    label: np.ndarray  # i64[n]


def suppress(segment: Any, score: Any, label: Any, rule: Nms) -> Kept:
    """Non-maximum suppression of one video: segments f[n, 2], scores f[n] >= 0, labels i[n]."""
    segment = np.asarray(segment, np.float32).reshape(-1, 2)
    score, label = np.asarray(score, np.float32).ravel(), np.asarray(label, np.int64).ravel()
    if rule.method == "hard" and rule.least:
        above = score > rule.least
        segment, score, label = segment[above], score[above], label[above]
    group = label if rule.multiclass else np.zeros_like(label)
    rows, scores = _picks(segment, score, group, rule)
    chosen = segment[rows]
    if rule.voting and not rule.multiclass:
        chosen = vote(chosen, segment, score, rule.voting)
    return Kept(chosen, scores, label[rows])


def _picks(
    segment: np.ndarray, score: np.ndarray, group: np.ndarray, rule: Nms
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, decayed scores) in the order in which they are picked."""
    if not len(score):
        return np.zeros(0, np.int64), score
    order = np.lexsort((segment[:, 0], group))
    start, end = segment[order, 0], segment[order, 1]
    length = end - start + np.float32(LENGTH)
    left = score[order]  # a copy: the scores as they decay
    bounds = np.flatnonzero(np.diff(group[order], prepend=group[order[0]] - 1))
    parts = [slice(a, b) for a, b in zip(bounds, [*bounds[1:], len(order)], strict=True)]
    latest = [np.maximum.accumulate(end[part]) for part in parts]  # end of it and those before it
    best = np.array([int(np.argmax(left[part])) + part.start for part in parts])
    top = left[best]
    rows: list[int] = []
    scores: list[float] = []
    while len(rows) < rule.most:
        g = int(np.argmax(top))
        pick = int(best[g])
        if top[g] < rule.least or top[g] == -np.inf:
            break
        rows.append(int(order[pick]))
        scores.append(top[g])
        left[pick] = -np.inf
        part = parts[g]
        low = part.start + int(np.searchsorted(latest[g], start[pick], "right"))
        high = part.start + int(np.searchsorted(start[part], end[pick], "left"))
        if low < high:
            near = slice(low, high)
            inner = np.minimum(end[near], end[pick]) - np.maximum(start[near], start[pick])
            np.maximum(inner, 0, out=inner)
            left[near] = _decayed(left[near], inner / (length[near] + length[pick] - inner), rule)
        best[g] = int(np.argmax(left[part])) + part.start
        top[g] = left[best[g]]
    return np.array(rows, np.int64), np.array(scores, np.float32)


def _decayed(score: np.ndarray, overlap: np.ndarray, rule: Nms) -> np.ndarray:
    """Scores after a pick with these overlaps (IoU); -inf = dropped."""
    kept = np.maximum(score, 0)  # -inf times a weight of 0 would be NaN
    if rule.method == "gaussian":
        kept = kept * np.exp(-np.square(overlap) / np.float32(rule.sigma))
    elif rule.method == "linear":
        kept = kept * np.where(overlap >= rule.iou, 1 - overlap, np.float32(1))
    else:
        kept = np.where(overlap >= rule.iou, np.float32(-np.inf), kept)
    return np.where((score < 0) | (kept < rule.least), np.float32(-np.inf), kept)


def vote(chosen: np.ndarray, segment: np.ndarray, score: np.ndarray, least: float) -> np.ndarray:
    """Each chosen segment becomes the mean, weighted by score, of all that overlap it `least`.

    chosen f[m, 2], segment f[n, 2], score f[n] (before suppression) -> f[m, 2].
    """
    count = max(1, VOTES // max(1, len(segment)))
    chunks = [chosen[first : first + count] for first in range(0, len(chosen), count)]
    return np.concatenate([_mean(chunk, segment, score, least) for chunk in chunks] or [chosen])


def _mean(chosen: np.ndarray, segment: np.ndarray, score: np.ndarray, least: float) -> np.ndarray:
    start = np.maximum(chosen[:, None, 0], segment[None, :, 0])
    inner = np.maximum(np.minimum(chosen[:, None, 1], segment[None, :, 1]) - start, 0)
    lengths = (chosen[:, 1] - chosen[:, 0])[:, None] + (segment[:, 1] - segment[:, 0])[None]
    weight = np.where(inner >= least * (lengths - inner), score, 0)
    total = weight.sum(1, keepdims=True)
    # An empty segment overlaps not even itself: it stays.
    mean = weight @ segment / np.where(total > 0, total, 1)
    return np.where(total > 0, mean, chosen)

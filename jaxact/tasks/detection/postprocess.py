"""From detections in the steps of windows to detections of videos in seconds.

    detections = merge(rows, Nms(), Merging())  # rows as the detection task keeps them

In the order of the reference: times in seconds, cut to the video; classes and scores of a
video-level classifier, if any; rounding; suppression over all windows of a video; rounding again.
For videos that are one window each (ActivityNet) suppression comes first, in steps, and each of the
classifier's classes has all the segments that were kept.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.detection import nms
from jaxact.tasks.detection.config import Merging, Nms
from jaxact.tasks.detection.mean_ap import Instances, instances
from jaxact.tasks.detection.nms import Kept


def seconds(segment: Any, clock: Any) -> np.ndarray:
    """Segments f[..., 2] in steps of a window -> f64[..., 2] s, cut to the video.

    clock f[..., 3]: s at step 0, s per step, duration in s; a segment's leading axes are its.

    >>> seconds([[0, 10], [-3000, 700]], [[51.2, 4 / 30, 120.0]]).round(4).tolist()
    [[51.2, 52.5333], [0.0, 120.0]]
    """
    clock = np.asarray(clock, np.float64)
    first, step, last = (clock[..., i, None] for i in range(3))
    return np.clip(first + np.asarray(segment, np.float64) * step, 0, last)


def classified(
    segment: np.ndarray, score: np.ndarray, classes: np.ndarray, rule: Merging
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One video's detections, repeated for each of its best classes: (segment, score, label).

    segment f[n, 2], score f[n], classes f[k] (video-level scores) -> best * n rows.
    """
    if rule.softmax:
        classes = np.exp(classes - classes.max())
        classes = classes / classes.sum()
    best = np.argsort(-classes, kind="stable")[: rule.best]
    both = classes[best][:, None] * score[None]
    both = np.sqrt(both) if rule.fusion == "root" else both
    label = np.repeat(best, len(score))
    return np.tile(segment, (len(best), 1)), both.ravel(), label


def merge(
    windows: Mapping[str, Any],
    suppression: Nms,
    rule: Merging,
    classes: dict[int, np.ndarray] | None = None,
) -> Instances:
    """Detections of all videos, in the order of the videos' numbers and by falling score.

    Args:
      windows: "video" i[n], whose window it is; "clock" f[n, 3], see `seconds`; "segment"
        f[n, m, 2] steps; "score" f[n, m], 0 and below = no detection; "label" i[n, m].
      classes: video number -> f[k], scores of the video-level classifier.

    Raises: UserError for a video without classifier scores, or several windows where `single`.
    """
    video, clock = np.asarray(windows["video"], np.int64), windows["clock"]
    segment, score, label = (windows[name] for name in ("segment", "score", "label"))
    order = np.argsort(video, kind="stable")
    bounds = np.flatnonzero(np.diff(video[order], prepend=video[order][:1] - 1))
    columns: list[tuple[np.ndarray, ...]] = []
    for rows in np.split(order, bounds[1:]) if len(order) else []:
        number = int(video[rows[0]])
        if rule.single and len(rows) > 1:
            raise UserError(f"video {number}: {len(rows)} windows, where one is the whole video")
        parts = [
            _window(segment[row], score[row], label[row], clock[row], suppression, rule)
            for row in rows
        ]
        kept = Kept(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        if classes is not None:
            if number not in classes:
                raise UserError(f"video {number}: the video-level classifier has no scores of it")
            kept = Kept(*classified(kept.segment, kept.score, classes[number], rule))
        kept = _rounded(kept, rule)
        if not rule.single:
            kept = _rounded(nms.suppress(*kept, suppression), rule)
        best = np.argsort(-kept.score, kind="stable")
        columns.append((np.full(len(best), number), *(column[best] for column in kept)))
    if not columns:
        return instances(np.zeros(0), np.zeros((0, 2)), np.zeros(0))
    numbers, times, scores, labels = (
        np.concatenate(column) for column in zip(*columns, strict=True)
    )
    return instances(numbers, times, labels, scores)


def _window(
    segment: Any, score: Any, label: Any, clock: Any, suppression: Nms, rule: Merging
) -> Kept:
    """One window's detections in seconds."""
    score = np.asarray(score)
    real = score > 0
    kept = Kept(np.asarray(segment)[real], score[real], np.asarray(label, np.int64)[real])
    if rule.single:
        kept = nms.suppress(*kept, suppression)
    return kept._replace(segment=seconds(kept.segment, np.asarray(clock)[None]))


def _rounded(kept: Kept, rule: Merging) -> Kept:
    times, score = np.asarray(kept.segment, np.float64), np.asarray(kept.score, np.float64)
    times = np.round(times, rule.seconds) if rule.seconds >= 0 else times
    score = np.round(score, rule.digits) if rule.digits >= 0 else score
    return Kept(times, score, kept.label)

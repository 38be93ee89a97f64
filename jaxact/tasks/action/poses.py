"""Pose arrays as annotated: validation, missing joints, single detections, choice of people."""

from typing import Any

import numpy as np

from jaxact.config import UserError

MOST_PEOPLE = 10
# Detectors overshoot [0, 1] by a little; what lies far outside is a coordinate, not a confidence.
SCORES = (-0.1, 1.5)
# A joint may lie outside the frame, but no further than this many times its longer side.
FARTHEST = 10


def checked(
    keypoint: Any,
    score: Any,
    frames: int,
    where: str,
    nan: str = "zero",
    size: tuple[int, int] = (0, 0),
) -> tuple[np.ndarray, np.ndarray, int]:
    """Keypoints f32[p, t, j, 2] px and scores f32[p, t, j], or the reason why not.

    `keypoint` is [p, t, j, 2] or [p, t, j, 3]; the third value is a confidence. `frames` is the
    number there must be, 0 = any. Absent scores are ones. Joints with a NaN in any value become
    coordinates and score 0 (`nan="zero"`; "error" refuses them), which is how detectors mark a
    joint that they miss and what draws nothing; a record of nothing else is refused. `size` is the
    frame's (h, w) px, 0 = unknown; coordinates farther than ten times its longer side are refused.

    Returns: keypoint, score, number of NaN joints. Raises: UserError that starts with `where`.
    """
    if nan not in ("zero", "error"):
        raise UserError(f"nan={nan!r} is unknown; known: zero, error")
    values, confidence = _shaped(keypoint, score, frames, where)
    lost = np.isnan(values).any(-1) | np.isnan(confidence)
    count = int(lost.sum())
    if count and nan == "error":
        raise UserError(f"{where}: {count} joints are NaN; nan='zero' reads them as not detected")
    if count == lost.size:
        raise UserError(f"{where}: every joint is NaN; leave the record out")
    values = np.where(lost[..., None], np.float32(0), values)
    confidence = np.where(lost, np.float32(0), confidence)
    if not np.isfinite(values).all():
        raise UserError(f"{where}: keypoint holds infinite values; coordinates are pixels")
    farthest, limit = float(np.abs(values).max()), FARTHEST * max(size)
    if limit and farthest > limit:
        raise UserError(
            f"{where}: a coordinate of {farthest:g} px in a frame of {size[0]}x{size[1]} (h x w); "
            f"allowed: up to {limit} px either way, 0 or NaN for a joint that was not detected"
        )
    low, high = confidence.min(), confidence.max()
    if not (low >= SCORES[0] and high <= SCORES[1]):
        raise UserError(
            f"{where}: scores run from {low:g} to {high:g}, allowed: {SCORES[0]} to {SCORES[1]} "
            "(the third value of a 3-D pose is no score; leave it out)"
        )
    return np.ascontiguousarray(values), np.ascontiguousarray(confidence), count


def _shaped(keypoint: Any, score: Any, frames: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates and scores apart, whatever their values."""
    values = _numbers(keypoint, "keypoint", where)
    shape = "x".join(map(str, values.shape))
    if values.ndim != 4 or values.shape[3] not in (2, 3):
        raise UserError(f"{where}: keypoint is {shape}, needed: people x frames x joints x 2 or 3")
    if 0 in values.shape:
        raise UserError(f"{where}: keypoint is {shape}, it holds no pose; leave the record out")
    if frames and values.shape[1] != frames:
        raise UserError(f"{where}: keypoint has {values.shape[1]} frames, total_frames is {frames}")
    if values.shape[3] == 3 and score is not None:
        raise UserError(
            f"{where}: keypoint has three values a joint and there are scores besides; leave one "
            "of them out"
        )
    if values.shape[3] == 3:
        confidence = values[..., 2]
    elif score is None:
        confidence = np.ones(values.shape[:3], np.float32)
    else:
        confidence = _numbers(score, "score", where)
    if confidence.shape != values.shape[:3]:
        have = "x".join(map(str, confidence.shape))
        raise UserError(f"{where}: score is {have}, keypoint is {shape}")
    return values[..., :2], confidence


def _numbers(values: Any, name: str, where: str) -> np.ndarray:
    """As float32; lists of numbers too."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{where}: {name} is ragged, each list needs one length") from error
    if array.dtype.kind not in "fiu":
        raise UserError(f"{where}: {name} holds {array.dtype}, needed: numbers")
    return array.astype(np.float32)


def grouped(
    keypoint: Any, frame_inds: Any, box_score: Any, frames: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Single detections [n, j, 3] put together by frame (0-based): [p, t, j, 2], [p, t, j].

    People of a frame are ordered by box score (by their joints' mean score where there is none) and
    the first ten are kept; places without a person are 0. The same place in two frames need not
    be the same person. Source: the K400 pose annotations of PYSKL.
    """
    values = _numbers(keypoint, "keypoint", where)
    if values.ndim != 3 or values.shape[2] != 3 or not values.size:
        have = "x".join(map(str, values.shape))
        raise UserError(
            f"{where}: keypoint is {have}, with frame_inds needed: detections x joints x 3"
        )
    count = len(values)
    at = _numbers(frame_inds, "frame_inds", where)
    rank = values[..., 2].mean(-1) if box_score is None else _numbers(box_score, "box_score", where)
    for name, array in (("frame_inds", at), ("box_score", rank)):
        if array.shape != (count,):
            raise UserError(f"{where}: {name} has shape {array.shape}, needed: ({count},)")
    at = at.astype(np.int64)
    if at.min() < 0 or at.max() >= frames:
        raise UserError(
            f"{where}: frame_inds run from {at.min()} to {at.max()}, allowed: 0 to {frames - 1}"
        )
    order = np.lexsort((-rank, at))  # by frame, the best first, ties as they came
    at, values = at[order], values[order]
    place = np.arange(count) - np.searchsorted(at, at)
    kept = place < MOST_PEOPLE
    at, values, place = at[kept], values[kept], place[kept]
    people = np.zeros((int(place.max()) + 1, frames, *values.shape[1:]), np.float32)
    people[place, at] = values
    return people[..., :2], people[..., 2]


def choose_people(
    keypoint: np.ndarray, score: np.ndarray, people: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `people` with the highest mean score, in their old order: [p, t, j, 2], [p, t, j]."""
    if len(score) <= people:
        return keypoint, score
    best = np.argsort(-score.mean((1, 2)), kind="stable")[:people]
    best.sort()
    return keypoint[best], score[best]


def pad_people(
    keypoint: np.ndarray, score: np.ndarray, people: int, absent: float
) -> tuple[np.ndarray, np.ndarray]:
    """As many people as asked for: the missing ones stand at `absent` px with score 0.

    Goes after the geometry, with `absent` far outside the frame so that nothing of them is drawn.

    Raises: ValueError for more people than places.
    """
    missing = people - len(score)
    if missing < 0:
        raise ValueError(f"{len(score)} people do not fit in {people} places")
    widths = [(0, missing), *[(0, 0)] * 2]
    return (np.pad(keypoint, [*widths, (0, 0)], constant_values=absent), np.pad(score, widths))

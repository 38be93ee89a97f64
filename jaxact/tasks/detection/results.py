"""Files of detections, and of the scores of a video-level classifier.

Detections: JSON in the form of ActivityNet's evaluation server, or CSV. Classifier scores, which
give class-agnostic detections their classes: JSON {"results": {id: [scores]}, "class": [names]}
(CUHK's and InternVideo's form for ActivityNet), or UntrimmedNet's array for THUMOS-14, .npy
f[1574, 101] over its test videos and all 101 classes of UCF101 (.gz too).
"""

import gzip
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.detection import annotation_files

UCF101 = 101  # classes
# The twenty classes of THUMOS-14 detection by their numbers, from 1, among UCF101's.
THUMOS_IDS = {
    "BaseballPitch": 7,
    "BasketballDunk": 9,
    "Billiards": 12,
    "CleanAndJerk": 21,
    "CliffDiving": 22,
    "CricketBowling": 23,
    "CricketShot": 24,
    "Diving": 26,
    "FrisbeeCatch": 31,
    "GolfSwing": 33,
    "HammerThrow": 36,
    "HighJump": 40,
    "JavelinThrow": 45,
    "LongJump": 51,
    "PoleVault": 68,
    "Shotput": 79,
    "SoccerPenalty": 85,
    "TennisSwing": 92,
    "ThrowDiscus": 93,
    "VolleyballSpiking": 97,
}


class Detections(NamedTuple):
    """The detections of one video."""

    segment: np.ndarray  # f64[n, 2] s
    score: np.ndarray  # f64[n]
    label: np.ndarray  # i64[n]; -1 = a class that is not ours


def read(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Detections]:
    """Detections by video id: JSON {"results": {id: [{"segment", "label", "score"}]}} or CSV.

    The CSV has the columns of annotations and `score`. Labels that are no class become -1.
    Raises: UserError naming file, video and segment.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    if annotation_files.suffix(path) == ".csv":
        for line, row in annotation_files.columns(path):
            if "score" not in row:
                raise UserError(f"{path} line {line}: has no column 'score'")
            item = {"segment": [row["start"], row["end"]], **row}
            rows.setdefault(row["video"], []).append(item)
    else:
        for key, items in annotation_files.document(path, "results").items():
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise UserError(f"{path}: video {key!r}: needed: a list of objects")
            rows[key] = items
    number = {name: k for k, name in enumerate(names)}
    detections = {}
    for key, items in rows.items():
        places = [f"{path}: video {key!r}, segment {i}" for i in range(len(items))]
        pairs = list(zip(items, places, strict=True))
        spans = [annotation_files.span(*pair) for pair in pairs]
        scores = [annotation_files.number(item.get("score"), "score", at) for item, at in pairs]
        labels = [number.get(annotation_files.label(*pair), -1) for pair in pairs]
        detections[key] = Detections(
            np.array(spans).reshape(-1, 2), np.array(scores), np.array(labels, np.int64)
        )
    return detections


def results(detections: Mapping[str, Detections], names: Sequence[str]) -> dict[str, Any]:
    """Detections by video id as the JSON that `read` reads.

    ActivityNet's toolkit refuses a file without "version" and "external_data".
    """
    return {
        "version": "VERSION 1.3",
        "external_data": {},
        "results": {
            key: [
                {"segment": [float(a), float(b)], "label": names[label], "score": float(score)}
                for (a, b), score, label in zip(*rows, strict=True)
            ]
            for key, rows in detections.items()
        },
    }


# --------------------------------------------- scores of a classifier


def read_scores(
    path: str | os.PathLike[str], ids: Sequence[str], names: Sequence[str]
) -> np.ndarray:
    """A classifier's scores f64[videos, k] of these videos and classes.

    Raises: UserError naming the file and the video or class that it lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; needed: classifier scores, .json or .npy")
    form = _json if ".json" in path.suffixes else _untrimmednet
    scores = form(path, ids, names)
    if not np.isfinite(scores).all():
        raise UserError(f"{path}: {np.sum(~np.isfinite(scores))} scores are NaN or infinite")
    return scores


def _json(path: Path, ids: Sequence[str], names: Sequence[str]) -> np.ndarray:
    table = {}
    for key, row in annotation_files.document(path, "results").items():
        where = f"{path}: video {key!r}"
        if not isinstance(row, list):
            raise UserError(f"{where}: needed: a list of scores")
        table[key] = [annotation_files.number(score, "score", where) for score in row]
    order = annotation_files.parsed(path).get("class")
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise UserError(f"{path}: needs 'class', the list of class names")
    lost = [name for name in names if name not in order]
    if lost:
        raise UserError(f"{path}: has no scores of class {lost[0]!r} (and {len(lost) - 1} others)")
    columns = [order.index(name) for name in names]
    scores = []
    for name in ids:
        # CUHK's file names videos without the leading v_, and so does ActivityNet's annotation.
        row = table.get(name, table.get(name.removeprefix("v_"), table.get(f"v_{name}")))
        if row is None:
            raise UserError(f"{path}: has no scores of video {name!r}")
        if len(row) != len(order):
            raise UserError(f"{path}: video {name!r} has {len(row)} scores, {len(order)} classes")
        scores.append(np.asarray(row, np.float64)[columns])
    return np.array(scores).reshape(-1, len(names))


def _untrimmednet(path: Path, ids: Sequence[str], names: Sequence[str]) -> np.ndarray:
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            table = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as an array ({error})") from error
    if table.ndim != 2 or table.shape[1] != UCF101:
        raise UserError(f"{path}: shape {table.shape}, needed: [videos, {UCF101}]")
    lost = [name for name in names if name not in THUMOS_IDS]
    if lost:
        raise UserError(f"{path}: {lost[0]!r} is none of the 20 classes of THUMOS-14")
    columns, rows = [THUMOS_IDS[name] - 1 for name in names], []
    for name in ids:
        # The scores of other subsets are in other files: their numbers overlap with these.
        match = re.fullmatch(r"video_test_(\d+)", name)
        row = int(match[1][-4:]) - 1 if match else -1
        if not 0 <= row < len(table):
            raise UserError(
                f"{path}: has no scores of video {name!r}; it has video_test_0000001 to "
                f"video_test_{len(table):07d}"
            )
        rows.append(row)
    return table[rows][:, columns].astype(np.float64)

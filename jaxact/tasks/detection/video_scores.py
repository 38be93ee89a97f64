"""Scores of a video-level classifier, which give class-agnostic detections their classes.

    table = read("uNet_test.npy", ids, names)  # f64[videos, k]

Readable: JSON {"results": {id: [scores]}, "class": [names]} (CUHK's and InternVideo's form for
ActivityNet) and UntrimmedNet's array for THUMOS-14, .npy f[1574, 101] over its test videos and all
101 classes of UCF101 (.gz too).
"""

import gzip
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.detection import annotation_files

UCF101 = 101
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


def read(path: str | os.PathLike[str], ids: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Scores f64[videos, k] of these videos and classes.

    Raises: UserError naming the file and the video or class that it lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; needed: classifier scores, .json or .npy")
    json = ".json" in path.suffixes
    found = _json(path, ids, names) if json else _untrimmednet(path, ids, names)
    if not np.isfinite(found).all():
        raise UserError(f"{path}: {np.sum(~np.isfinite(found))} scores are NaN or infinite")
    return found


def json_table(
    path: str | os.PathLike[str],
) -> tuple[dict[str, list[float]], list[str]]:
    """(scores by video id, class names in their order) of {"results": {id: [scores]}, "class": []}.

    Raises: UserError naming the file.
    """
    whole, rows = annotation_files.parsed(path), annotation_files.document(path, "results")
    names = whole.get("class")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: needs 'class', the list of class names")
    found = {}
    for key, row in rows.items():
        if not isinstance(row, list):
            raise UserError(f"{path}: video {key!r}: needed: a list of scores")
        found[key] = [annotation_files.number(x, "score", f"{path}: video {key!r}") for x in row]
    return found, names


def _json(path: Path, ids: Sequence[str], names: Sequence[str]) -> np.ndarray:
    rows, order = json_table(path)
    lost = [name for name in names if name not in order]
    if lost:
        raise UserError(f"{path}: has no scores of class {lost[0]!r} (and {len(lost) - 1} others)")
    columns = [order.index(name) for name in names]
    found = []
    for name in ids:
        # CUHK's file names videos without the leading v_, and so does ActivityNet's annotation.
        row = rows.get(name, rows.get(name.removeprefix("v_"), rows.get(f"v_{name}")))
        if row is None:
            raise UserError(f"{path}: has no scores of video {name!r}")
        if len(row) != len(order):
            raise UserError(f"{path}: video {name!r} has {len(row)} scores, {len(order)} classes")
        found.append(np.asarray(row, np.float64)[columns])
    return np.array(found).reshape(-1, len(names))


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

"""Files of detections: JSON in the form of ActivityNet's evaluation server, or CSV."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.detection import annotation_files


class Detections(NamedTuple):
    """What was found in one video."""

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
    found = {}
    for key, items in rows.items():
        places = [f"{path}: video {key!r}, segment {i}" for i in range(len(items))]
        pairs = list(zip(items, places, strict=True))
        found[key] = Detections(
            np.array([annotation_files.span(item, where) for item, where in pairs]).reshape(-1, 2),
            np.array(
                [
                    annotation_files.number(item.get("score"), "score", where)
                    for item, where in pairs
                ]
            ),
            np.array([number.get(annotation_files.label(*pair), -1) for pair in pairs], np.int64),
        )
    return found


def results(found: Mapping[str, Detections], names: Sequence[str]) -> dict[str, Any]:
    """{"results": {id: [{"segment", "label", "score"}]}}, JSON-able; `read` reads it.

    ActivityNet's toolkit refuses a file without the two other fields.
    """
    return {
        "version": "VERSION 1.3",
        "external_data": {},
        "results": {
            key: [
                {"segment": [float(a), float(b)], "label": names[label], "score": float(score)}
                for (a, b), score, label in zip(*rows, strict=True)
            ]
            for key, rows in found.items()
        },
    }

"""Predictions of overlapping windows merged into a timeline of their recording.

First `tiled` cuts the windows so that none overlap, then `merged` joins neighbours of one class.
"""

import itertools
from typing import Any

import numpy as np

Piece = dict[str, Any]  # of a recording: start, end (s), name and probability of its class, ...

TOUCHING = 1e-6  # s


def tiled(windows: list[Piece]) -> list[Piece]:
    """Windows cut so that none overlap: each moment goes to the window whose middle is nearest.

    Windows are in order of time; where they leave gaps, these stay.

    >>> [(p["start"], p["end"]) for p in tiled([{"start": 0, "end": 2}, {"start": 1, "end": 3}])]
    [(0, 1.5), (1.5, 3)]
    """
    tiles = [dict(window) for window in windows]
    neighbours = zip(itertools.pairwise(tiles), itertools.pairwise(windows), strict=True)
    for (before, after), (one, other) in neighbours:
        if other["start"] < one["end"]:
            middle = (one["start"] + one["end"] + other["start"] + other["end"]) / 4
            before["end"] = after["start"] = round(middle, 3)
    return tiles


def merged(tiles: list[Piece]) -> list[Piece]:
    """Joins pieces of the same name that touch; their probability is the mean of the windows'."""
    groups: list[list[Piece]] = []
    for tile in tiles:
        last = groups[-1][-1] if groups else None
        if last and last["name"] == tile["name"] and tile["start"] - last["end"] <= TOUCHING:
            groups[-1].append(tile)
        else:
            groups.append([tile])
    return [
        {
            **group[0],
            "end": group[-1]["end"],
            "probability": float(np.mean([tile["probability"] for tile in group])),
        }
        for group in groups
    ]

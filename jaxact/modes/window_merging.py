"""What windows come to: a recording tiled by them, equal neighbours joined, files for videos."""

import collections
import itertools
import pathlib
from typing import Any

import numpy as np

from jaxact.config import UserError

Piece = dict[str, Any]  # start, end (s), name, probability and what else is known

TOUCHING = 1e-6  # s


def tiled(windows: list[Piece]) -> list[Piece]:
    """Windows cut so that none overlap: each moment goes to the window whose middle is nearest.

    Windows are in order of time; where they leave gaps, these stay.

    >>> [(p["start"], p["end"]) for p in tiled([{"start": 0, "end": 2}, {"start": 1, "end": 3}])]
    [(0, 1.5), (1.5, 3)]
    """
    found = [dict(window) for window in windows]
    for before, after, (one, other) in zip(
        found, found[1:], itertools.pairwise(windows), strict=False
    ):
        if other["start"] < one["end"]:
            middle = (one["start"] + one["end"] + other["start"] + other["end"]) / 4
            before["end"] = after["start"] = round(middle, 3)
    return found


def merged(tiles: list[Piece]) -> list[Piece]:
    """Touching pieces of the same name joined; their probability is the mean of the windows'."""
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


def files(target: str, ids: list[str], suffix: str = ".mp4") -> list[pathlib.Path]:
    """Where what is drawn of each goes: `target` itself (for one), or a file in its folder.

    Raises:
      UserError: one file for several recordings; a folder that cannot be made.
    """
    path = pathlib.Path(target)
    if path.suffix.lower() == suffix and not path.is_dir():
        if len(ids) > 1:
            raise UserError(f"--render={target} is one file for {len(ids)} inputs; give a folder")
        if not path.parent.is_dir():
            raise UserError(f"--render={target}: there is no folder {path.parent}")
        return [path]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--render={target}: no folder can be made ({error.strerror})") from error
    names = [pathlib.Path(name) for name in ids]
    for shorten in (lambda p: p.stem, lambda p: p.name):
        short = [shorten(name) for name in names]
        if max(collections.Counter(short).values()) == 1:
            return [path / f"{name}{suffix}" for name in short]
    flat = ("_".join(part for part in name.parts if part not in ("/", "..")) for name in names)
    return [path / f"{name}{suffix}" for name in flat]

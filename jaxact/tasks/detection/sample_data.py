"""Untrimmed videos made here, so that the boundaries of their actions are known.

    write("composed", clips("fight_surv/labels.csv", "fight_surv/videos"), background="noFight")
    draw("drawn")  # needs no source: for tests

`write` joins trimmed clips into longer videos: one action, then the background class, by turns. A
clip's split is kept, so where clips of one source share a split, train and test videos share no
source. All clips are brought to one frame rate and size, and the background has as many cuts as the
actions, so that a cut alone says nothing.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data import geometry, resize, video
from jaxact.data.video import Video
from jaxact.tasks.detection import annotations
from jaxact.tasks.detection.annotations import Annotation, Untrimmed

FORMAT = 1  # of the set; a set of another format is written anew
SPLITS = ("train", "test")
SUBSETS = {"train": "training", "test": "validation"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """A trimmed video of one class."""

    path: str
    label: str
    split: str  # train | test


def clips(labels: str | os.PathLike[str], videos: str | os.PathLike[str]) -> list[Clip]:
    """Clips of a CSV with columns file, label, split. Raises: UserError naming file and line."""
    path, listed = Path(labels), []
    if not path.is_file():
        raise UserError(f"{path}: no such file; needed: a .csv with columns file, label, split")
    with open(path, encoding="utf-8", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            if not all(row.get(name) for name in ("file", "label", "split")):
                raise UserError(f"{path} line {line}: needed: file, label and split")
            if row["split"] not in SPLITS:
                raise UserError(f"{path} line {line}: split {row['split']!r}, allowed: train, test")
            listed.append(Clip(str(Path(videos) / row["file"]), row["label"], row["split"]))
    return listed


def write(
    directory: str | os.PathLike[str],
    trimmed: Sequence[Clip],
    background: str,
    *,
    train: int = 60,
    test: int = 20,
    actions: int = 4,
    fps: float = 15.0,
    size: tuple[int, int] = (144, 192),
    seed: int = 0,
) -> Path:
    """Writes `train` + `test` videos with `actions` segments each; returns the annotation's path.

    A segment is 1 to 3 clips of one label; before, between and after segments are 1 to 3 clips of
    the background. `directory` gets videos/<id>.mp4, annotations.json (OpenTAD's form, subsets
    training and validation) and, last, manifest.json: a set whose manifest names the same arguments
    is used as it is. The same clips and arguments give the same bytes.

    Raises: UserError for a split without clips of the background or of any action.
    """
    arguments = {
        "clips": [dataclasses.astuple(clip) for clip in trimmed],
        "background": background,
        "counts": [train, test, actions],
        "fps": fps,
        "size": list(size),
        "seed": seed,
    }
    plans = []
    for split, count in zip(SPLITS, (train, test), strict=True):
        own = [clip for clip in trimmed if clip.split == split]
        rng = np.random.default_rng((seed, SPLITS.index(split)))
        for number in range(count):
            name = f"{split}{number:04d}"
            plans.append((name, SUBSETS[split], list(_plan(own, background, actions, rng, split))))
    names = tuple(sorted({clip.label for clip in trimmed} - {background}))

    def one(name: str, subset: str, plan: list[Clip]) -> Untrimmed:
        return _join(Path(directory) / "videos" / f"{name}.mp4", subset, plan, names, fps, size)

    return _stored(Path(directory), arguments, names, plans, one)


def _stored(
    root: Path,
    arguments: dict[str, Any],
    names: tuple[str, ...],
    plans: Sequence[Any],
    one: Callable[..., Untrimmed],
) -> Path:
    """Writes the videos of the plans and their annotation, unless the folder has them."""
    path, manifest = root / "annotations.json", root / "manifest.json"
    wanted = json.dumps({"format": FORMAT, "arguments": arguments}, sort_keys=True)
    files = [root / "videos" / f"{name}.mp4" for name, *_ in plans]
    if manifest.is_file() and manifest.read_text() == wanted:
        if all(file.is_file() for file in (path, *files)):
            return path
    manifest.unlink(missing_ok=True)
    (root / "videos").mkdir(parents=True, exist_ok=True)
    written = tuple(one(*plan) for plan in plans)
    annotations.write(path, Annotation(str(path), names, written))
    manifest.write_text(wanted)
    return path


def _plan(
    clips: list[Clip], background: str, actions: int, rng: np.random.Generator, split: str
) -> Iterator[Clip]:
    """The clips of one video in order, no clip twice in a row."""
    labels = sorted({clip.label for clip in clips} - {background})
    pool = {name: [c for c in clips if c.label == name] for name in (*labels, background)}
    if not labels or not pool[background]:
        raise UserError(f"split {split!r} needs clips of {background!r} and of an action")
    for _ in range(actions):
        for label in (background, labels[int(rng.integers(len(labels)))]):
            count = min(int(rng.integers(1, 4)), len(pool[label]))
            for index in rng.choice(len(pool[label]), count, replace=False):
                yield pool[label][int(index)]
    yield pool[background][int(rng.integers(len(pool[background])))]


def _join(
    path: Path,
    subset: str,
    plan: Sequence[Clip],
    names: tuple[str, ...],
    fps: float,
    size: tuple[int, int],
) -> Untrimmed:
    """Writes one video; its segments are the runs of clips of one action."""
    spans: list[tuple[float, float]] = []
    labels: list[int] = []
    total = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal total
        last = ""
        for clip in plan:
            pixels = _resampled(clip.path, fps, size)
            if clip.label in names:
                start = spans.pop()[0] if clip.label == last else total / fps
                spans.append((start, (total + len(pixels)) / fps))
                if clip.label != last:
                    labels.append(names.index(clip.label))
            last, total = clip.label, total + len(pixels)
            yield from pixels

    video.write(path, frames(), fps, crf=23, gop=48)
    table = np.array(spans, np.float64).reshape(-1, 2)
    return Untrimmed(path.stem, subset, total / fps, total, fps, table, np.array(labels, np.int64))


def _resampled(path: str, fps: float, size: tuple[int, int]) -> np.ndarray:
    """A clip u8[t, h, w, 3] at this rate (nearest frames) and size (scaled to cover, centre)."""
    with Video(path) as opened:
        count = max(1, round(opened.frames / opened.fps * fps))
        at = np.minimum((np.arange(count) + 0.5) * opened.fps / fps, opened.frames - 1).astype(int)
        factor = max(size[0] / opened.size[0], size[1] / opened.size[1])
        scaled = geometry.scaled(opened.size, factor)
        clip = opened.read(at, scaled)
    return resize.crop_frames(clip, geometry.centre_box(scaled, size))


# ------------------------------------------------------------------------------------------ drawn

DRAWN = ("across", "down")  # the direction in which a bright square moves


def draw(
    directory: str | os.PathLike[str],
    *,
    train: int = 4,
    test: int = 2,
    frames: int = 96,
    size: tuple[int, int] = (36, 48),
    fps: float = 12.0,
    seed: int = 0,
) -> Path:
    """Writes videos of a square that rests or moves `across` or `down`: the two actions.

    The files are those of `write`; for tests and `:tiny`.
    """
    arguments = {"drawn": [train, test, frames, list(size), fps, seed]}
    plans = [
        (f"{split}{number:04d}", SUBSETS[split], SPLITS.index(split), number)
        for split, count in zip(SPLITS, (train, test), strict=True)
        for number in range(count)
    ]

    def one(name: str, subset: str, split: int, number: int) -> Untrimmed:
        rng = np.random.default_rng((seed, split, number))
        path = Path(directory) / "videos" / f"{name}.mp4"
        return _drawn(path, subset, frames, size, fps, rng)

    return _stored(Path(directory), arguments, DRAWN, plans, one)


def _drawn(
    path: Path,
    subset: str,
    frames: int,
    size: tuple[int, int],
    fps: float,
    rng: np.random.Generator,
) -> Untrimmed:
    """One video: rest and action by turns, each a sixth to a third of it."""
    scene = rng.integers(40, 120, (*size, 3), np.uint8)
    side = min(size) // 4
    corner = np.array([rng.integers(size[0] - side), rng.integers(size[1] - side)])
    speed = np.zeros(2, np.int64)
    pictures, spans, labels = [], [], []
    acting, left, start = False, int(rng.integers(frames // 6, frames // 3)), 0
    for t in range(frames):
        if not left or t == frames - 1:
            if acting:
                spans.append((start / fps, t / fps))
            acting, left, start = not acting, int(rng.integers(frames // 6, frames // 3)), t
            label = int(rng.integers(len(DRAWN)))
            speed = np.array([(0, 2), (2, 0)][label]) if acting else np.zeros(2, np.int64)
            if acting and t < frames - 1:
                labels.append(label)
        corner = (corner + speed) % (np.array(size) - side)
        picture = scene.copy()
        picture[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = 230
        pictures.append(picture)
        left -= 1
    video.write(path, pictures, fps, crf=18, gop=12)
    table = np.array(spans, np.float64).reshape(-1, 2)
    return Untrimmed(path.stem, subset, frames / fps, frames, fps, table, np.array(labels, int))

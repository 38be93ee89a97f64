"""JRDB-Social on disk: stitched panoramas and JSON labels -> frames and labelled pairs.

    <root>/images/image_stitched/<scene>/NNNNNN.jpg
    <root>/labels/labels_2d_activity_social_stitched/<scene>.json

A label file is {"labels": {frame name: [person]}}; a person has `label_id` "pedestrian:7", `box`
[x, y, w, h] px, `attributes` and `H-interaction` (or `HHI`), a list of {"pair": "pedestrian:9",
"inter_labels": {name: difficulty}}. Both people's lists are read: some pairs stand in one only.

Sources: the JRDB-Social toolkit; AsukaLmy/simplename `GeometricDete/datasets`, which takes the
pairs of `policy` "first" with `sides` "lower".
"""

import dataclasses
import functools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxact.config import UserError
from jaxact.tasks.relation import jrdb_splits
from jaxact.tasks.relation.jrdb_splits import PRESETS, disjoint

CLASSES = ("walking together", "standing together", "sitting together")
ALIASES = {"standing together together": "standing together"}  # in the toolkit's own list
POLICIES = ("unique", "first")
SIDES = ("both", "lower")
VISIBLE = ("Fully_visible", "Mostly_visible")
SPLITS = ("train", "val", "test")
LONGEST = 5000  # px, sides of a box
LARGEST = 2**31 - 1  # number of a person: batches hold them as i32

Box = tuple[float, float, float, float]  # x, y, w, h px


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One picture, everybody in it, and its pairs."""

    id: str
    path: str
    scene: str
    people: tuple[int, ...]  # their numbers
    boxes: tuple[Box, ...]  # in the same order
    pairs: tuple[tuple[int, int, int], ...]  # indices of A and B in `people`, and the label


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which pairs of a label file are taken."""

    classes: tuple[str, ...] = CLASSES
    interval: int = 1  # every n-th frame in the order of names, from the first
    policy: str = "unique"  # unique: one class, else the easiest | first: the lower's first name
    sides: str = "both"  # both | lower: what the person of the lower number lists
    visible: bool = False  # both at least mostly visible
    border: int = 0  # px at both ends of the panorama in which no box may lie; 0 = off
    width: int = 3760  # px, of the panorama
    height: int = 480
    strict: bool = False  # what is otherwise left out and counted is an error
    images: str = ""  # folder (or shards) of <scene>/<frame>; "" = <root>/images/image_stitched


def splits(name: str, root: str) -> dict[str, tuple[str, ...]]:
    """Scenes of train, val and test: a preset, or a JSON file {"train": [...], ...} (in the root).

    Raises: UserError for an unknown preset, a bad file, or a scene in two splits.
    """
    if name in PRESETS:
        return disjoint(PRESETS[name], f"config.data.splits={name}")
    path = Path(root) / name if (Path(root) / name).is_file() else Path(name)
    if path.suffix.lower() != ".json" or not path.is_file():
        allowed = ", ".join(PRESETS)
        raise UserError(
            f"config.data.splits={name!r}: allowed: {allowed}, or a .json file of scene names "
            f"(looked for at {Path(root) / name})"
        )
    scenes = read_json(path)
    ok = isinstance(scenes, dict) and set(scenes) <= set(SPLITS)
    if not ok or not all(_are_texts(names) for names in scenes.values()):
        raise UserError(f'{path}: must be {{"train": [scene, ...], "val": [...], "test": [...]}}')
    return disjoint({split: tuple(scenes.get(split, ())) for split in SPLITS}, str(path))


def _are_texts(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def read_json(path: Path, needed: str = "") -> Any:
    """The content of a file. Raises: UserError; `needed` adds why a missing file is needed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{needed}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from None


def read(
    root: str, scenes: Sequence[str], rules: Rules
) -> tuple[tuple[Frame, ...], Mapping[str, int]]:
    """(frames that have pairs, what became of everything listed) of some scenes.

    Raises: UserError for a missing or damaged file, or a record of another form; with
    `rules.strict` for what is left out otherwise.
    """
    folder = Path(root) / jrdb_splits.LABELS
    if not folder.is_dir():
        raise UserError(f"config.data.root={root}: has no folder {jrdb_splits.LABELS}")
    frames: list[Frame] = []
    counts: Counter[str] = Counter()
    for scene in scenes:
        path = folder / f"{scene}.json"
        stamp = path.stat().st_mtime_ns if path.is_file() else 0
        some, counted = _scene(str(root), scene, rules, stamp)
        frames += some
        counts.update(counted)
    return tuple(frames), counts


@functools.lru_cache(maxsize=128)
def _scene(
    root: str, scene: str, rules: Rules, stamp: int
) -> tuple[tuple[Frame, ...], Mapping[str, int]]:
    del stamp  # only part of the cache's key
    path = Path(root) / jrdb_splits.LABELS / f"{scene}.json"
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise UserError(f'{path}: must be {{"labels": {{frame: [person, ...]}}}}')
    counts: Counter[str] = Counter()
    frames = []
    for name in sorted(labels)[:: rules.interval]:
        if not isinstance(labels[name], list) or not _plain(name):
            raise UserError(f"{path}: frame {name!r} must be a file name with a list of people")
        reader = _Reader(f"{path}: frame {name}", rules, counts)
        people, boxes, pairs = reader.read(labels[name])
        counts["frames"] += 1
        if pairs:
            images = Path(rules.images) if rules.images else Path(root) / jrdb_splits.IMAGES
            file = images / scene / name
            where = f"{scene}/{Path(name).stem}"
            frames.append(Frame(where, str(file), scene, people, boxes, pairs))
    return tuple(frames), counts


def _plain(name: str) -> bool:
    """A file name, not a path out of the scene's folder."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\")


class _Reader:
    """One frame's records; counts what becomes of them."""

    def __init__(self, where: str, rules: Rules, counts: Counter[str]):
        self.where, self.rules, self.counts = where, rules, counts

    def read(self, records: list[Any]) -> tuple[Any, Any, Any]:
        """(people, boxes, pairs) of a frame."""
        place: dict[int, int] = {}
        boxes: list[Box] = []
        passes: dict[int, bool] = {}
        listed: list[tuple[int, Any]] = []
        for record in records:
            number = self.person(record)
            if number is None:
                continue
            if number in place:
                raise UserError(f"{self.where}: pedestrian:{number} is listed twice")
            box = self.box(record.get("box"), number)
            if box is None:
                continue
            place[number] = len(boxes)
            boxes.append(box)
            passes[number] = self.passes(record, box)
            listed.append((number, record))
        between: dict[tuple[int, int], list[dict[str, int]]] = {}
        for number, record in sorted(listed, key=lambda one: one[0]):  # the lower's list first
            for other, names in self.interactions(record, number):
                low, high = sorted((number, other))
                if other not in place:
                    self.drop("partner absent", f"pedestrian:{number} names pedestrian:{other}")
                elif self.rules.sides == "both" or number == low:
                    between.setdefault((low, high), []).append(names)
        pairs = []
        for (low, high), lists in sorted(between.items()):
            label = self.label(lists, f"pair {low}, {high}")
            if label is None:
                continue
            if not (passes[low] and passes[high]):
                self.counts["pairs filtered out (occlusion, border)"] += 1
                continue
            self.counts["pairs kept"] += 1
            pairs.append((place[low], place[high], label))
        self.counts["people"] += len(boxes)
        return tuple(place), tuple(boxes), tuple(pairs)

    def person(self, record: Any) -> int | None:
        """Number of a record's person; None for what is no pedestrian."""
        if not isinstance(record, dict):
            raise UserError(f"{self.where}: {record!r:.40} is no record of a person")
        return _number(record.get("label_id"), self.where)

    def box(self, box: Any, number: int) -> Box | None:
        """A usable box, or None, counted."""
        who = f"pedestrian:{number} has box {box!r:.60}"
        if not isinstance(box, list) or len(box) != 4 or not all(map(finite, box)):
            raise UserError(f"{self.where}: {who}; allowed: 4 numbers x, y, w, h (px)")
        x, y, w, h = map(float, box)
        if not (0 < w <= LONGEST and 0 < h <= LONGEST and x >= 0 and y >= 0):
            self.drop("box invalid", who)
            return None
        if x >= self.rules.width or y >= self.rules.height:
            size = f"{self.rules.width}x{self.rules.height}"
            self.drop("box outside the picture", f"{who} outside {size} px")
            return None
        return x, y, w, h

    def passes(self, record: Any, box: Box) -> bool:
        """Does a person pass the filters?"""
        rules, attributes = self.rules, record.get("attributes")
        occlusion = attributes.get("occlusion") if isinstance(attributes, dict) else None
        if rules.visible and occlusion not in VISIBLE:
            return False
        x, _, w, _ = box
        return not rules.border or (x >= rules.border and x + w <= rules.width - rules.border)

    def interactions(self, record: Any, number: int) -> Iterator[tuple[int, dict[str, int]]]:
        """(number of the other, names with their difficulty) of each interaction in a record."""
        listed = record.get("H-interaction") or record.get("HHI") or []
        who = f"{self.where}: pedestrian:{number}"
        if not isinstance(listed, list):
            raise UserError(f"{who}: H-interaction must be a list")
        for item in listed:
            names = item.get("inter_labels") if isinstance(item, dict) else None
            if not isinstance(names, dict) or not all(map(finite, names.values())):
                raise UserError(f"{who}: an interaction needs pair and inter_labels {{name: 1}}")
            other = _number(item.get("pair"), who)
            if other == number:
                self.drop("person paired with itself", f"pedestrian:{number}")
            elif other is not None:
                yield other, names

    def label(self, lists: list[dict[str, int]], who: str) -> int | None:
        """The class of a pair from the lists of both people; None, counted, where there is none."""
        classes = self.rules.classes
        if self.rules.policy == "first":
            lists = [dict([next(iter(names.items()))]) for names in lists[:1] if names]
        level: dict[str, float] = {}
        for names in lists:
            for text, difficulty in names.items():
                name = self.known(text, who)
                if name in classes:
                    level[name] = min(level.get(name, math.inf), difficulty)
        if not level:
            self.counts["pairs of no class"] += 1
            return None
        best = min(level.values())
        easiest = [name for name, difficulty in level.items() if difficulty == best]
        if len(easiest) > 1:
            self.counts["pairs of several classes, none easier"] += 1
            return None
        if len(level) > 1:
            self.counts["pairs of several classes, the easiest taken"] += 1
        return classes.index(easiest[0])

    def known(self, text: str, who: str) -> str:
        """A name as the classes are spelt. Raises: UserError for one that nearly is a class."""
        name = ALIASES.get(text, text)
        if name in self.rules.classes:
            return name
        if name not in jrdb_splits.OTHERS and name not in CLASSES:
            close = jrdb_splits.nearest(name, self.rules.classes)
            if close or self.rules.strict:
                hint = f"did you mean {close!r}?" if close else "allowed without data.strict"
                raise UserError(f"{self.where}: {who} has the unknown label {text!r}; {hint}")
        self.counts[f"name {name}"] += 1
        return name

    def drop(self, reason: str, what: str) -> None:
        """Counts what is left out. Raises: UserError with `rules.strict`."""
        if self.rules.strict:
            raise UserError(f"{self.where}: {reason}: {what} (allowed without data.strict)")
        self.counts[reason] += 1


def finite(value: Any) -> bool:
    """Is it a number that a float can hold? (An int may be too large.)"""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) <= sys.float_info.max


def _number(text: Any, where: str) -> int | None:
    """7 of "pedestrian:7"; None for another kind of thing."""
    if not isinstance(text, str):
        raise UserError(f"{where}: {text!r:.40} must be text like 'pedestrian:7'")
    kind, _, number = text.partition(":")
    if kind != "pedestrian":
        return None
    if not re.fullmatch(r"[0-9]{1,10}", number) or int(number) > LARGEST:
        raise UserError(f"{where}: {text!r:.40} must be text like 'pedestrian:7'")
    return int(number)

"""Pairs of people in files of other data sets: a CSV with labels, JSON boxes to predict on.

A CSV has the columns image, box_a, box_b (x y w h in px, with spaces between), label, split (train,
val or test), and if wanted scene (else the picture) and a, b (the people's numbers). A boxes file
is {"image": "x.jpg", "people": [{"id": 3, "box": [x, y, w, h]}, ...], "pairs": [[3, 7], ...]} or a
list of these; without "pairs" every two people are a pair.
"""

import csv
import functools
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxact.config import UserError
from jaxact.data import images, media
from jaxact.tasks.relation.crops import same_size
from jaxact.tasks.relation.jrdb import LARGEST, SPLITS, Box, Frame, finite, read_json
from jaxact.tasks.relation.jrdb_splits import disjoint, nearest

COLUMNS = ("image", "box_a", "box_b", "label", "split")

Size = tuple[int, int]


def inside(box: Box, size: Size, wrap: bool, where: str, named: bool = False) -> Box:
    """The box itself. Raises: UserError where it has no area or does not begin in the picture.

    named: `size` is not the picture's own but that of config.data.size.
    """
    x, y, w, h = box
    if not all(map(math.isfinite, box)) or w <= 0 or h <= 0:
        raise UserError(f"{where}: box {_text(box)} is empty; allowed: x y w h with w, h above 0")
    width, height = size
    ends = x + w if not wrap else x
    if not (0 <= x < width and 0 <= y and y + h <= height and ends <= width and w <= width):
        raise UserError(
            f"{where}: box {_text(box)} is outside the picture of {width}x{height} px"
            + (" (x may lie over the seam: 0 <= x < width)" if wrap else "")
            + (" (config.data.size; 0,0 = each picture's own)" if named else "")
        )
    return box


def _text(box: Box) -> str:
    return " ".join(f"{number:g}" for number in box)


class _FrameBuilder:
    """The people and pairs of one picture, collected line by line."""

    def __init__(self, path: str):
        self.path = path
        self.scene = ""
        self.people: dict[int, int] = {}
        self.boxes: list[Box] = []
        self.pairs: dict[tuple[int, int], tuple[int, str]] = {}

    def person(self, box: Box, number: str, where: str) -> int:
        """The index of a person, who is known by the number or, without one, by the box."""
        if number:
            if not re.fullmatch(r"[0-9]{1,10}", number) or int(number) > LARGEST:
                allowed = f"numbers from 0 to {LARGEST}, or nothing"
                raise UserError(f"{where}: person {number!r:.40}; allowed: {allowed}")
            known = self.people.get(int(number))
            if known is not None and self.boxes[known] != box:
                raise UserError(
                    f"{where}: person {number} has box {_text(box)}, and "
                    f"{_text(self.boxes[known])} on an earlier line"
                )
            key = int(number)
        elif box in self.boxes:
            return self.boxes.index(box)
        else:
            key = len(self.boxes)
            while key in self.people:
                key += 1
        if key not in self.people:
            self.people[key] = len(self.boxes)
            self.boxes.append(box)
        return self.people[key]

    def pair(self, a: int, b: int, label: int, where: str) -> None:
        """Adds a pair. Raises: UserError for one with itself or with two labels."""
        if a == b:
            raise UserError(f"{where}: both boxes are the same person")
        low, high = min(a, b), max(a, b)
        before = self.pairs.setdefault((low, high), (label, where))
        if before[0] != label:
            raise UserError(f"{where}: has another label than the same pair at {before[1]}")

    def frame(self, id: str) -> Frame:
        """The frame with all that was collected."""
        pairs = tuple((a, b, label) for (a, b), (label, _) in self.pairs.items())
        people = tuple(self.people)
        return Frame(id, self.path, self.scene or id, people, tuple(self.boxes), pairs)


@functools.lru_cache(maxsize=8)
def read(
    path: str,
    folder: str,
    classes: tuple[str, ...],
    size: Size,
    wrap: bool,
    labelled: bool = True,
    stamp: int = 0,
) -> dict[str, tuple[Frame, ...]]:
    """Split -> its frames, from a CSV. `size` (0, 0) looks into each picture.

    Args:
      folder: of the pictures; "" = that of the CSV.
      labelled: False allows rows without a label (-1) and without a split.

    Raises: UserError naming the line.
    """
    del stamp  # only part of the cache's key
    base = Path(folder) if folder else Path(path).parent
    frames: dict[str, dict[str, _FrameBuilder]] = {split: {} for split in SPLITS}
    for where, row in _rows(path, labelled):
        split = row.get("split") or "" if labelled else "test"
        if split not in SPLITS:
            raise UserError(f"{where}: split {split!r}; allowed: {', '.join(SPLITS)}")
        name = Path(row["image"]).as_posix()  # the same for ./x.png and x.png
        frame = frames[split].setdefault(name, _FrameBuilder(str(base / name)))
        scene = row.get("scene") or name
        if frame.scene not in ("", scene):
            raise UserError(f"{where}: {name} is of scene {scene!r}, before of {frame.scene!r}")
        frame.scene = scene
        sides = _size(frame.path, where) if size == (0, 0) else size
        a, b = (
            frame.person(
                inside(_box(row[f"box_{side}"], where), sides, wrap, where, size != (0, 0)),
                row.get(side) or "",
                where,
            )
            for side in ("a", "b")
        )
        frame.pair(a, b, _label(row.get("label") or "", classes, where, labelled), where)
    scenes = {split: dict.fromkeys(one.scene for one in frames[split].values()) for split in SPLITS}
    disjoint({split: tuple(names) for split, names in scenes.items()}, path)
    return {
        split: tuple(one.frame(name) for name, one in members.items())
        for split, members in frames.items()
    }


def _rows(path: str, labelled: bool) -> Iterator[tuple[str, dict[str, str]]]:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file (config.data.annotations or --input)")
    wanted = COLUMNS if labelled else COLUMNS[:3]
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            missing = [name for name in wanted if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: has no column {missing[0]}; needed: {', '.join(wanted)}")
            for record in reader:
                where = f"{path}:{reader.line_num}"
                row = {k: (v or "").strip() for k, v in record.items() if isinstance(k, str)}
                if not row["image"]:
                    raise UserError(f"{where}: names no image")
                yield where, row
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8: {error.reason}") from None
    except csv.Error as error:
        raise UserError(f"{path}: is not a CSV file: {error}") from None


def _box(text: str, where: str) -> Box:
    try:
        x, y, w, h = map(float, text.split())
    except ValueError:
        raise UserError(f"{where}: box {text!r}; allowed: 4 numbers x y w h (px)") from None
    return x, y, w, h


def _label(text: str, classes: Sequence[str], where: str, labelled: bool) -> int:
    if text in classes:
        return classes.index(text)
    if not text and not labelled:
        return -1
    close = nearest(text, classes)
    hint = f" (did you mean {close!r}?)" if close else ""
    raise UserError(f"{where}: label {text!r} is unknown; allowed: {', '.join(classes)}{hint}")


@functools.lru_cache(maxsize=65536)
def header(path: str) -> Size:
    """(w, h) px of the upright picture, from its first bytes. Raises: UserError for other files."""
    try:
        with images.Image.open(media.source(path)) as image:
            return images.upright_size(image)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except images.DAMAGE as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a picture: {line}") from None


def _size(path: str, where: str) -> Size:
    try:
        return header(path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


# ------------------------------------------------------------------------------------- to predict


def boxes(path: Path, wrap: bool, size: Size = (0, 0)) -> list[Frame]:
    """The frames of a boxes file. Raises: UserError naming the entry.

    size: px (w, h) that every picture must have; (0, 0) = any.
    """
    content = read_json(path, needed="; a picture needs its boxes there")
    entries = content if isinstance(content, list) else [content]
    return [
        _entry(entry, path, f"{path}: entry {n}", wrap, size) for n, entry in enumerate(entries)
    ]


def _entry(entry: Any, path: Path, where: str, wrap: bool, wanted: Size) -> Frame:
    people = entry.get("people") if isinstance(entry, dict) else None
    if not isinstance(people, list) or not isinstance(entry.get("image"), str):
        raise UserError(f'{where}: must be {{"image": "x.jpg", "people": [{{"id", "box"}}, ...]}}')
    file = str(path.parent / entry["image"])
    size = _size(file, where)
    if wanted != (0, 0):
        same_size(f"{where}: {file}", size, wanted)
    place: dict[int, int] = {}
    listed: list[Box] = []
    for person in people:
        number = person.get("id") if isinstance(person, dict) else None
        box = person.get("box") if isinstance(person, dict) else None
        numbers = box if isinstance(box, list) and len(box) == 4 else [None]
        plain = all(map(finite, numbers))
        if not plain or not isinstance(number, int) or not finite(number) or abs(number) > LARGEST:
            raise UserError(
                f'{where}: a person is {{"id": 3, "box": [x, y, w, h]}}, the id a number of 32 bits'
            )
        if number in place:
            raise UserError(f"{where}: person {number} is listed twice")
        place[number] = len(listed)
        x, y, w, h = map(float, numbers)
        listed.append(inside((x, y, w, h), size, wrap, f"{where}: person {number}"))
    pairs = _pairs(entry.get("pairs"), place, where)
    return Frame(file, file, file, tuple(place), tuple(listed), pairs)


def _pairs(listed: Any, place: dict[int, int], where: str) -> tuple[tuple[int, int, int], ...]:
    if listed is None:
        return tuple((a, b, -1) for a, b in itertools.combinations(range(len(place)), 2))
    if not isinstance(listed, list):
        raise UserError(f"{where}: pairs must be a list of [person, person]")
    pairs = []
    for pair in listed:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(f"{where}: pair {pair!r:.40}; allowed: two different people")
        for number in pair:
            if not isinstance(number, int) or number not in place:
                raise UserError(f"{where}: pair {pair} names person {number!r:.20}, who is absent")
        pairs.append((place[pair[0]], place[pair[1]], -1))
    return tuple(pairs)

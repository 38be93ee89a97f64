"""A small drawn JRDB-Social: panoramas as JPEG files, label files as JSON, a split.

    write(folder)  # images/, labels/, splits.json: what `jrdb` reads

Pairs walk, stand or sit together. Posture, in the crops, tells the classes apart. The spatial
features help a little: who sits is closer and who walks is further apart, with much overlap. Some
pairs are hidden from the waist down behind a counter, where the spatial features are needed.

The label files have the difficulties of the real ones: pairs over the seam of the panorama; pairs
listed by both people, or by one of them alone; other names beside a class; partners who are not in
the frame; boxes without area; people in no pair.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jaxact.config import UserError
from jaxact.data import stick_figure
from jaxact.data.stick_figure import Look, Motion
from jaxact.tasks.relation.jrdb import CLASSES
from jaxact.tasks.relation.jrdb_splits import IMAGES, LABELS

SIZE = (1200, 160)  # px
WALK, STAND, SIT = range(3)
ODDS = (0.45, 0.33, 0.22)  # of the classes
GAP = ((0.9, 0.17), (0.66, 0.17), (0.48, 0.14))  # mean, deviation: between centres, in box heights
SEATED = 0.8  # height of a figure that sits; it is drawn larger by as much, so boxes look alike
HIDDEN = 0.2  # share of the pairs behind a counter
SPLITS = {"train": 48, "val": 12, "test": 24}  # scenes

Record = dict[str, Any]


@dataclasses.dataclass
class Person:
    """One figure of a scene; px."""

    number: int
    look: Look
    height: float
    x: float  # of the middle, may be beyond the seam
    ground: float
    kind: int  # WALK, STAND or SIT
    speed: float  # px from frame to frame
    phase: float  # of the step, turns


@dataclasses.dataclass
class Couple:
    """Two figures that do the same together."""

    a: Person
    b: Person
    kind: int
    hidden: bool
    listed: str  # both | high | low: whose record names the pair
    other: bool  # is another name listed as well?


def write(
    folder: str | Path,
    scenes: dict[str, int] | None = None,
    frames: int = 6,
    couples: int = 5,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> Path:
    """Draws the whole set and returns its folder.

    Args:
      scenes: how many each split has; None = 48, 12 and 24.
      frames: of each scene; couples: pairs in each.
      size: px (w, h) of the panoramas, at least 96 px high and 120 px wide for each couple.

    Raises: UserError for sizes that leave no room, or a folder that holds such a set already or
    cannot be made.
    """
    root = Path(folder)
    wanted = SPLITS if scenes is None else scenes
    for split, count in wanted.items():
        if count < 0:
            raise UserError(f"scenes {split} {count}; allowed: 0 or more")
    if size[1] < 96 or size[0] < 120 * couples or frames < 1 or couples < 1:
        raise UserError(
            f"scenes of {size[0]}x{size[1]} px with {couples} couples; allowed: 96 px of height or "
            "more, 120 px of width for each couple, one frame or more"
        )
    if (root / LABELS).exists():
        raise UserError(f"{root}: holds scenes already; give another folder")
    try:
        (root / LABELS).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{root} cannot be made: {error.strerror}") from None
    names: dict[str, list[str]] = {}
    for split, count in wanted.items():
        names[split] = [f"{split}-place-{number:02}" for number in range(count)]
        for number, name in enumerate(names[split]):
            rng = np.random.default_rng((seed, sorted(wanted).index(split), number))
            labels = _Scene(rng, couples, size).write(root / IMAGES / name, frames)
            path = root / LABELS / f"{name}.json"
            path.write_text(json.dumps({"labels": labels}), encoding="utf-8")
    (root / "splits.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    return root


class _Scene:
    """A place with its couples, who keep their looks and move from frame to frame."""

    def __init__(self, rng: np.random.Generator, couples: int, size: tuple[int, int]):
        self.rng, self.size = rng, size
        self.floor, self.wall = rng.integers(70, 150, 3), rng.integers(120, 230, 3)
        self.couples: list[Couple] = []
        self.singles: list[Person] = []
        # Slots around the panorama; one of them may lie over the seam.
        width, start = size[0] / couples, rng.uniform(-0.5, 0.5)
        numbers = iter(rng.permutation(np.arange(1, 4 * couples)).tolist())
        for place in range(couples):
            middle = (place + start + rng.uniform(0.45, 0.55)) * width
            self.couples.append(self._couple(middle, numbers))
            if rng.uniform() < 0.3:
                kind = int(rng.choice((WALK, STAND)))
                self.singles.append(self._person(next(numbers), middle + 0.45 * width, kind))

    def _person(self, number: int, x: float, kind: int) -> Person:
        rng, high = self.rng, self.size[1]
        colours = [tuple(rng.integers(30, 230, 3).tolist()) for _ in range(2)]
        skin, hair = [(224, 172, 140), (160, 110, 80)], [(40, 30, 25), (150, 110, 60)]
        look = Look(skin[rng.integers(2)], colours[0], colours[1], hair[rng.integers(2)])
        height = rng.uniform(0.42, 0.62) * high / (SEATED if kind == SIT else 1)
        ground = high * rng.uniform(0.86, 0.95)
        return Person(number, look, height, x, ground, kind, 0.0, rng.uniform())

    def _couple(self, middle: float, numbers: Any) -> Couple:
        rng = self.rng
        kind = int(rng.choice(3, p=ODDS))
        a, b = (self._person(next(numbers), middle, kind) for _ in range(2))
        b.height = a.height * rng.uniform(0.88, 1.12)
        b.ground = a.ground + rng.uniform(-0.02, 0.02) * self.size[1]
        tall = a.height * (SEATED if kind == SIT else 1)
        gap = tall * float(np.clip(rng.normal(*GAP[kind]), 0.3, 1.4))
        a.x, b.x = middle - gap / 2, middle + gap / 2
        if kind == WALK:
            a.speed = b.speed = float(rng.choice((-1, 1)) * rng.uniform(2, 4))
        listed = str(rng.choice(("both", "both", "high", "low")))
        return Couple(a, b, kind, bool(rng.uniform() < HIDDEN), listed, bool(rng.uniform() < 0.2))

    def write(self, folder: Path, frames: int) -> dict[str, list[Record]]:
        """Writes the pictures; returns the records of each frame."""
        folder.mkdir(parents=True)
        labels = {}
        for number in range(frames):
            picture, records = self._frame()
            name = f"{number:06}.jpg"
            picture.save(folder / name, quality=88)
            labels[name] = records
            for person in self._everybody():
                person.x += person.speed + self.rng.normal(0, 0.4)
                person.phase += 0.21
        return labels

    def _everybody(self) -> list[Person]:
        return [p for couple in self.couples for p in (couple.a, couple.b)] + self.singles

    def _frame(self) -> tuple[Image.Image, list[Record]]:
        rng, (width, height) = self.rng, self.size
        canvas = np.empty((height, width, 3))
        canvas[:] = self.wall
        canvas[int(0.72 * height) :] = self.floor
        canvas += rng.normal(0, 6, canvas.shape)
        picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(picture)
        records: dict[int, Record] = {}
        hidden = {p.number for c in self.couples if c.hidden for p in (c.a, c.b)}
        for person in sorted(self._everybody(), key=lambda p: p.ground):
            records[person.number] = self._draw(pen, person, person.number in hidden)
        for couple in self.couples:
            if couple.hidden:
                self._counter(pen, couple)
        return picture, self._listed(records)

    def _draw(self, pen: ImageDraw.ImageDraw, person: Person, hidden: bool) -> Record:
        """Draws a figure, twice where it is over the seam; returns its record."""
        points = stick_figure.joints(_motion(person), person.height, np.zeros((1, 2)))[0]
        width, height = self.size
        # Feet stand on the ground whatever the knees do.
        points[:, 1] += person.ground - points[:, 1].max()
        x = person.x % width
        for turn in (-width, 0, width):
            moved = points + np.array([x + turn, 0])
            if person.kind == SIT:
                _chair(pen, moved, person.height)
            stick_figure.draw(pen, moved, person.height, person.look)
        radius = stick_figure.HEAD_RADIUS * person.height
        top = max(0.0, points[:, 1].min() - radius)
        tall = min(height, person.ground + 0.03 * person.height) - top
        # The width is the same for all postures: only the content of a box may tell the class.
        wide = self.rng.uniform(0.4, 0.5) * tall
        box = [(x - wide / 2) % width, top, wide, tall]
        return {
            "label_id": f"pedestrian:{person.number}",
            "box": [round(float(value), 1) for value in box],
            "attributes": {
                "interpolated": False,
                "no_eval": False,
                "occlusion": "Severely_occluded" if hidden else "Fully_visible",
                "truncated": "false",
            },
            "H-interaction": [],
        }

    def _counter(self, pen: ImageDraw.ImageDraw, couple: Couple) -> None:
        """Hides a couple from the waist down."""
        width, height = self.size
        middle = (couple.a.x + couple.b.x) / 2
        half = abs(couple.a.x - couple.b.x) / 2 + 0.45 * couple.a.height
        left, right = (middle - half) % width, (middle - half) % width + 2 * half
        # Up to the waist of somebody who sits, so that it hides the same of everybody.
        top = max(couple.a.ground, couple.b.ground) - 0.36 * couple.a.height
        for turn in (-width, 0):
            pen.rectangle((left + turn, top, right + turn, height), fill=(96, 72, 52))

    def _listed(self, records: dict[int, Record]) -> list[Record]:
        """The records with their interactions, and some invalid ones."""
        rng = self.rng
        for couple in self.couples:
            low, high = sorted((couple.a.number, couple.b.number))
            names = {CLASSES[couple.kind]: 1}
            if couple.other:
                names["conversation"] = 2
            for mine, theirs, side in ((low, high, "low"), (high, low, "high")):
                if couple.listed in ("both", side):
                    entry = {
                        "pair": f"pedestrian:{theirs}",
                        "box_pair": records[theirs]["box"],
                        "inter_labels": dict(names),
                    }
                    records[mine]["H-interaction"].append(entry)
        for person in self.singles:
            if rng.uniform() < 0.3:  # with somebody who has left the picture
                gone: Record = {"pair": "pedestrian:900", "box_pair": [0, 0, 0, 0]}
                gone["inter_labels"] = {CLASSES[STAND]: 1}
                records[person.number]["H-interaction"].append(gone)
        empty = {"label_id": "pedestrian:901", "box": [10, 10, 0, 20], "H-interaction": []}
        return [*records.values(), *([empty] if rng.uniform() < 0.2 else [])]


def _motion(person: Person) -> Motion:
    """The movement of a figure in one frame."""
    zero = np.zeros(1)
    if person.kind == SIT:
        knee = np.ones((1, 2))
        return Motion(np.full((1, 2), 0.35), np.full((1, 2), -0.5), knee, zero)
    if person.kind == WALK:
        step = np.sin(2 * np.pi * person.phase)
        both = np.array([[step, -step]])
        # When the feet pass each other, somebody who walks looks like one who stands.
        return Motion(0.25 + 0.3 * both, 0.15 + 0.4 * both, 0.55 * both.clip(0, None), zero)
    still = np.array([[0.16, 0.16]]) + 0.08 * np.sin(2 * np.pi * person.phase)
    return Motion(still, still * 0.5, np.zeros((1, 2)), zero)


def _chair(pen: ImageDraw.ImageDraw, points: np.ndarray, height: float) -> None:
    """A seat behind a figure that sits."""
    (left, top), (right, bottom) = points[[*stick_figure.HIPS]].min(0), points.max(0)
    out = 0.06 * height
    pen.rectangle((left - out, top - 0.02 * height, right + out, bottom), fill=(60, 60, 70))

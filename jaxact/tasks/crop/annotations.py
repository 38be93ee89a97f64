"""Labelled pictures as random-access sources: rows of annotation files with the class of each.

Errors name the row; where a row contradicts the class table, both are named.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.crop.annotation_files import Listing, Row
from jaxact.tasks.crop.classes import HEALTHY, UNGRADED, ClassTable, Meaning, checked


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture. Numbers are -1 where they are not known."""

    id: str
    path: str  # file; "" where `pixels` holds the picture
    label: int = -1
    crop: int = -1
    disease: int = -1
    severity: int = -1
    pixels: Callable[[], Any] | None = dataclasses.field(default=None, repr=False, compare=False)
    """For pictures that are no files: gives the content as bytes, or u8[h, w, 3]."""

    @property
    def content(self) -> Any:
        """What `images.decode` takes."""
        return self.path if self.pixels is None else self.pixels()


class PictureSource:
    """The pictures of one split."""

    def __init__(self, pictures: Sequence[Picture]):
        self.pictures, self.ids = pictures, [picture.id for picture in pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Picture:
        return self.pictures[index]

    def labels(self) -> np.ndarray:
        """i64[n], without opening a picture; -1 = unknown."""
        return np.array([picture.label for picture in self.pictures], np.int64)

    def files(self) -> frozenset[str]:
        """Paths of the pictures; ids of those that are no files."""
        return frozenset(picture.path or picture.id for picture in self.pictures)

    def counts(self, classes: int) -> np.ndarray:
        """i64[k]: pictures of each class."""
        labels = self.labels()
        return np.bincount(labels[labels >= 0], minlength=classes)


@functools.lru_cache(maxsize=8)
def meanings(listings: tuple[Listing, ...], classes: int = 0) -> tuple[Meaning, ...]:
    """The classes that annotations imply, in label order.

    Labels are numbers, or names numbered by their sorted order. Names, crops, diseases and grades
    come from the columns that give them.

    Args:
      classes: how many there are; 0 = as many as are named.

    Raises: UserError for a class whose rows disagree, or with a number out of range, and for
    numbers among names: 1 could be the class of that name or of that number.
    """
    rows = [row for listing in listings for row in listing.rows if row.label not in ("", "-1")]
    numbers = [bool(re.fullmatch(r"\d+", row.label)) for row in rows]
    numbered = all(numbers)
    if any(numbers) and not numbered:
        number, name = rows[numbers.index(True)], rows[numbers.index(False)]
        raise UserError(
            f"{number.where}: label {number.label} is a number and {name.label!r} at {name.where} "
            "is a name; allowed: one kind of labels (a column with the names may stand beside)"
        )
    labels = sorted({row.label for row in rows}, key=int if numbered else None)
    by_label: dict[str, Meaning] = {}
    first: dict[tuple[str, str], Row] = {}  # (label, field) -> the row that gave it
    for row in rows:
        by_label[row.label] = _agreed(by_label.get(row.label, Meaning("")), row, first)
    named = {
        label: dataclasses.replace(m, name=(m.name if numbered else "") or label)
        for label, m in by_label.items()
    }
    if not numbered:
        if classes and classes != len(labels):
            where = listings[0].path
            raise UserError(
                f"config.data.classes={classes}: {where} names {len(labels)} classes; allowed: 0 "
                "(count them) or their number"
            )
        return tuple(named[label] for label in labels)
    count = classes or int(labels[-1]) + 1
    for label in labels:
        if int(label) >= count:
            raise UserError(_out_of_range(next(r for r in rows if r.label == label), count))
    return tuple(named.get(str(k), Meaning(str(k))) for k in range(count))


def _agreed(known: Meaning, row: Row, first: dict[tuple[str, str], Row]) -> Meaning:
    """The class with what a row adds to it. Raises: UserError for a row that contradicts it."""
    well = row.well.lower() in ("1", "true", "yes")
    disease = row.disease or (HEALTHY if well else "")
    said = checked(Meaning(row.name, row.crop, disease, row.severity), row.where)
    new = {}
    for field in ("name", "crop", "disease", "severity"):
        here, there = getattr(said, field), getattr(known, field)
        if here and there and here != there:
            raise UserError(
                f"{row.where}: {field} {here!r} contradicts label {row.label} ({known.name}), "
                f"which has {there!r} at {first[row.label, field].where}; allowed: one {field} for "
                "each class"
            )
        if here and not there:
            new[field] = here
            first[row.label, field] = row
    return dataclasses.replace(known, **new) if new else known


def _out_of_range(row: Row, classes: int) -> str:
    return (
        f"{row.where}: class {row.label} of {row.file} is out of range; allowed: 0 to {classes - 1}"
    )


def picture(row: Row, table: ClassTable, folder: Path, labelled: bool = True) -> Picture:
    """The picture of a row. Raises: UserError for a label that is unknown, or is contradicted."""
    label = _label(row, table, labelled)
    bare = Picture(row.file, str(folder / row.file), label)
    return with_parts(bare, table, _severity(row, table, label))


def with_parts(picture: Picture, table: ClassTable, severity: int = -1) -> Picture:
    """The picture with the crop, disease and severity of its class, or this severity."""
    label = picture.label
    if label < 0 or not table.crops:
        return picture
    grade = table.severity_of[label] if severity < 0 else severity
    return dataclasses.replace(
        picture, crop=table.crop_of[label], disease=table.disease_of[label], severity=grade
    )


def _label(row: Row, table: ClassTable, labelled: bool) -> int:
    if not labelled and row.label in ("", "-1"):
        return -1
    if re.fullmatch(r"\d+", row.label):
        if int(row.label) >= len(table.names):
            raise UserError(_out_of_range(row, len(table.names)))
        return int(row.label)
    if row.label in table.names:
        return table.names.index(row.label)
    known = ", ".join(table.names[:3])
    raise UserError(f"{row.where}: class {row.label!r} is unknown; allowed: {known}, ...")


def _severity(row: Row, table: ClassTable, label: int) -> int:
    """The grade of the class, else of the row. A row may leave it out, not contradict it."""
    if label < 0 or not table.severities:
        return -1
    wanted, stated = table.severity_of[label], table.severity(row.severity)
    well = table.diseases[table.disease_of[label]] == HEALTHY
    if well and row.severity.lower() in UNGRADED:
        return wanted
    if row.severity and stated != wanted and not (stated == -1 or (wanted == -1 and stated >= 0)):
        means = table.severities[wanted] if wanted >= 0 else "not graded"
        raise UserError(
            f"{row.where}: severity {row.severity!r} contradicts class {label} "
            f"({table.names[label]}), which is {means}; allowed: that, or no severity"
        )
    return wanted if wanted >= 0 else stated


def folder_of(listing: Listing, images: str) -> Path:
    """The folder that a listing's files are relative to.

    `images` if given; else the listing's own, or `images` in it where only that has the first file.
    """
    if images:
        return Path(images)
    own = Path(listing.path).parent
    first = listing.rows[0].file
    return own / "images" if not (own / first).is_file() and (own / "images").is_dir() else own


def few_shots(pictures: Sequence[Picture], shots: int, seed: int) -> list[Picture]:
    """At most `shots` pictures of each class, chosen by the seed and the class alone, in order."""
    by_class: dict[int, list[int]] = {}
    for index, picture in enumerate(pictures):
        by_class.setdefault(picture.label, []).append(index)
    kept: list[int] = []
    for label, members in by_class.items():
        order = np.random.default_rng((seed, label)).permutation(len(members))[:shots]
        kept += [members[i] for i in order]
    return [pictures[i] for i in sorted(kept)]

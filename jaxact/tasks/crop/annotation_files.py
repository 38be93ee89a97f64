"""Annotation files of pictures -> rows, as they stand there.

    rows = parse("labels.csv")

A table (.csv with a file and a label column; split, and the class's name, crop, disease and
severity if wanted), AI Challenger's list (.json: [{"image_id", "disease_class"}]), or lines of
`path label` (.txt, forward or backward slashes).
"""

import csv
import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxact.config import UserError

SUFFIXES = (".csv", ".json", ".txt")
# column wanted -> the names it goes by, in the order they are looked for
COLUMNS = {
    "file": ("file", "image_path", "path", "filename", "image_name", "image"),
    "label": ("label", "class_id", "label_61", "disease_class"),
    "name": ("class", "label_name", "class_name", "name"),
    "crop": ("crop", "crop_type"),
    "disease": ("disease",),
    "severity": ("severity",),
    "well": ("is_healthy",),
    "split": ("split",),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One record as it stands in its file; "" = not given."""

    where: str  # file and line, as errors name them
    file: str
    label: str
    name: str = ""
    crop: str = ""
    disease: str = ""
    severity: str = ""
    well: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: hashing the rows would cost more
class Listing:
    """The rows of an annotation file, and which columns it has."""

    path: str
    rows: tuple[Row, ...]
    columns: frozenset[str]

    def chosen(self, split: str, field: str) -> tuple[Row, ...]:
        """The rows of one split; all where the file has no splits.

        Raises: UserError for a split that is not there.
        """
        if "split" not in self.columns:
            return self.rows
        rows = tuple(row for row in self.rows if row.split == split)
        if not rows:
            known = ", ".join(sorted({row.split for row in self.rows})) or "none"
            raise UserError(
                f"config.data.{field}={split!r}: {self.path} has no row of this split; allowed: "
                f"{known}"
            )
        return rows


def parse(path: str | Path, labelled: bool = True) -> Listing:
    """Reads an annotation file by its suffix; the last few are kept in memory.

    Args:
      labelled: False allows rows without a label.

    Raises: UserError for a missing file, another suffix, or a record that is not of its form.
    """
    path = Path(path)
    readers = dict(zip(SUFFIXES, (_csv, _json, _txt), strict=True))
    if path.is_dir():
        raise UserError(
            f"{path}: is a folder; allowed: a list of its pictures ({', '.join(SUFFIXES)}), as "
            "`python scripts/prepare_crop.py folders` writes for a folder of each class"
        )
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: suffix {path.suffix!r}; allowed: {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file (config.data.annotations or --input)")
    state = path.stat()
    return _parsed(readers[path.suffix.lower()], str(path), labelled, state.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _parsed(reader: Any, path: str, labelled: bool, changed: int) -> Listing:
    del changed  # only part of the cache's key
    try:
        columns, *rows = reader(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8: {error.reason}") from None
    if not rows:
        raise UserError(f"{path}: has no records")
    for row in rows:
        if not row.file:
            raise UserError(f"{row.where}: names no file")
        if labelled and row.label in ("", "-1"):
            raise UserError(f"{row.where}: {row.file} has no label")
    return Listing(path, tuple(rows), columns)


def _csv(path: str) -> Iterator[Any]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="", strict=True)
        there = tuple(reader.fieldnames or ())
        column = {
            wanted: next((name for name in names if name in there), "")
            for wanted, names in COLUMNS.items()
        }
        if not column["label"]:
            # A table of names only.
            column["label"] = column["name"]
        if not column["file"]:
            names = ", ".join(COLUMNS["file"])
            header = ", ".join(there) or "no header line"
            raise UserError(f"{path}: has no column of files ({names}); it has {header}")
        yield frozenset(wanted for wanted, name in column.items() if name)
        try:
            for record in reader:
                cells = {
                    wanted: (record[name] or "").strip() if name else ""
                    for wanted, name in column.items()
                }
                yield Row(f"{path}:{reader.line_num}", **cells)
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: is not a CSV line: {error}") from None


def _json(path: str) -> Iterator[Any]:
    try:
        with open(path, encoding="utf-8") as file:
            records = json.load(file)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    if not isinstance(records, list):
        raise UserError(f'{path}: must be a list of {{"image_id": ..., "disease_class": ...}}')
    yield frozenset({"file", "label"})
    for index, record in enumerate(records):
        where = f"{path}: record {index}"
        if not isinstance(record, dict) or not isinstance(record.get("image_id"), str):
            raise UserError(f'{where}: must have the text "image_id" and "disease_class"')
        label = record.get("disease_class", "")
        if not (isinstance(label, int) and not isinstance(label, bool)) and label != "":
            raise UserError(f"{where}: disease_class {label!r}; allowed: numbers from 0")
        yield Row(where, record["image_id"], str(label))


def _txt(path: str) -> Iterator[Any]:
    yield frozenset({"file", "label"})
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            # Names may hold spaces ("a - copy.jpg 3"), so the label is what follows the last one.
            match = re.fullmatch(r"(.*?)(?:\s+(-?\d+))?", line.strip())
            assert match is not None
            yield Row(f"{path}:{number}", match[1].replace("\\", "/"), match[2] or "")

"""Reads the text of annotation and detection files (JSON, CSV, gzipped too) and checks its values.

Every error is a UserError that names file and place.
"""

import csv
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxact.config import UserError


def suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of a file, that of a .gz being the one before."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def content(path: str | os.PathLike[str]) -> str:
    """The text of a file, without a byte order mark. Raises: UserError where there is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; needed: a .json or .csv, or one of them with .gz")
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig") as file:
                return file.read()
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def parsed(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file. Raises: UserError naming line and column."""
    try:
        return json.loads(content(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from error


def document(path: str | os.PathLike[str], key: str) -> Mapping[str, Any]:
    """The object under a key of a JSON file."""
    whole = parsed(path)
    videos = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(videos, dict):
        raise UserError(f"{path}: needs an object {key!r} that maps video ids")
    return videos


_ALIASES = {
    "video": ("video", "video-id", "video_id"),
    "start": ("start", "t-start", "t_start"),
    "end": ("end", "t-end", "t_end"),
}


def columns(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file; columns have our names."""
    reader = csv.DictReader(io.StringIO(content(path)), skipinitialspace=True)
    fields = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    rename = {}
    for name, aliases in _ALIASES.items():
        column = next((alias for alias in aliases if alias in fields), None)
        if column is None:
            raise UserError(f"{path}: has no column {name!r}; columns: {', '.join(fields)}")
        rename[column] = name
    if "label" not in fields:
        raise UserError(f"{path}: has no column 'label'; columns: {', '.join(fields)}")
    for row in reader:
        line = reader.line_num
        if None in row or None in row.values():
            raise UserError(f"{path} line {line}: {len(fields)} cells are needed")
        yield line, {rename.get(key, key): cell.strip() for key, cell in row.items()}


def label(item: Mapping[str, Any], where: str) -> str:
    """The class name of a segment."""
    name = item.get("label")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: label {name!r}, needed: a class name")
    return name


def number(value: Any, name: str, where: str, positive: bool = False) -> float:
    """A finite number of JSON or text."""
    try:
        if isinstance(value, bool):
            raise TypeError
        converted = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {name} {value!r}, needed: a number") from error
    if not math.isfinite(converted) or (positive and converted <= 0):
        raise UserError(f"{where}: {name} {value}, needed: {'above 0' if positive else 'finite'}")
    return converted


def span(item: Mapping[str, Any], where: str) -> tuple[float, float]:
    """(start, end) in seconds of a segment."""
    segment = item.get("segment")
    if not isinstance(segment, list) or len(segment) != 2:
        raise UserError(f"{where}: segment {segment!r}, needed: [start, end] in seconds")
    start, end = (number(x, "time", where) for x in segment)
    if start < 0 or end < start:
        raise UserError(f"{where}: segment {start:g} to {end:g} s, needed: 0 <= start <= end")
    return start, end

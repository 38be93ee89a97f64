"""Annotation files -> entries: the pose pickle of PYSKL and MMAction2, CSV, JSON lines.

Here the form of a file is checked; what its values mean is for `jaxact.tasks.action.annotations`.
"""

import csv
import difflib
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxact.config import UserError
from jaxact.data import safe_pickle


@dataclass
class Entry:
    """One record as it stands in its file. None = not given."""

    where: str  # file and record, as errors name them
    id: str
    label: Any = None
    splits: tuple[str, ...] = ()
    video: str = ""  # path as written
    suffixed: bool = True  # False: `video` still lacks its suffix
    frames: Any = None
    size: Any = None
    keypoint: Any = None
    score: Any = None
    joints: Any = None
    frame_inds: Any = None  # given: `keypoint` holds single detections
    box_score: Any = None


@dataclass
class Listing:
    """A file's entries in file order, and its class names where it has them."""

    path: str
    entries: list[Entry]
    classes: tuple[str, ...] = ()  # in label order; () = labels are numbers only
    members: dict[str, list[str]] = field(default_factory=dict)  # split -> ids, in that order


def parse(path: str | Path) -> Listing:
    """Reads a file by its suffix: .pkl/.pickle, .csv, .jsonl.

    Raises: UserError for another suffix, an absent file, or a file that is not of its form; a
    repeated id.
    """
    path = Path(path)
    if path.suffix not in PARSERS:
        raise UserError(f"{path}: suffix {path.suffix!r}, allowed: {', '.join(PARSERS)}")
    if not path.is_file():
        return PARSERS[path.suffix](path)  # which says what is wrong
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1)  # a run asks for the names and for each split in turn
def _parsed(path: Path, changed: int, size: int) -> Listing:
    listing = PARSERS[path.suffix](path)
    seen: dict[str, str] = {}
    for entry in listing.entries:
        if entry.id in seen:
            raise UserError(f"{entry.where}: id {entry.id!r} was used before, by {seen[entry.id]}")
        seen[entry.id] = entry.where
    if not listing.entries:
        raise UserError(f"{path}: no records")
    return listing


def _pickle(path: Path) -> Listing:
    data = safe_pickle.load(path)
    form = "needed: {'split': {name: [ids]}, 'annotations': [records]}"
    if isinstance(data, list):
        raise UserError(
            f"{path}: a bare list of records, without splits, is the old form; wrap it, {form}"
        )
    if not isinstance(data, dict) or not {"split", "annotations"} <= set(data):
        have = (
            f"keys {', '.join(map(str, data))}" if isinstance(data, dict) else type(data).__name__
        )
        raise UserError(f"{path}: {have}; {form}")
    members, records = data["split"], data["annotations"]
    if not isinstance(members, dict) or not isinstance(records, list):
        raise UserError(f"{path}: 'split' must be a dict and 'annotations' a list; {form}")
    entries = [_record(record, f"{path}: record {i}") for i, record in enumerate(records)]
    for entry in entries:
        entry.joints = data.get("joints")
    known = {entry.id for entry in entries}
    lists = {}
    for name, ids in members.items():
        if not isinstance(ids, (list, tuple, set)):
            raise UserError(f"{path}: split {name!r} is a {type(ids).__name__}, needed: a list")
        ids = [str(i) for i in ids]
        absent = [i for i in ids if i not in known]
        if absent:
            raise UserError(
                f"{path}: split {name!r} names {len(absent)} ids that have no record, "
                f"first {absent[0]!r}"
            )
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise UserError(f"{path}: split {name!r} names {twice!r} twice")
        lists[str(name)] = ids
    classes = tuple(str(name) for name in data.get("classes", ()))
    return Listing(str(path), entries, classes, lists)


def _record(record: Any, where: str) -> Entry:
    if not isinstance(record, dict):
        raise UserError(f"{where}: is a {type(record).__name__}, needed: a dict")
    named = record.get("filename"), record.get("frame_dir")
    if not any(named):
        raise UserError(f"{where}: has neither 'frame_dir' nor 'filename'")
    key = str(named[0] or named[1])
    where = f"{where} ({key})"
    if record.get("keypoint") is None:
        if record.get("raw_file"):
            raise UserError(
                f"{where}: its poses are in another file, {record['raw_file']!r}; "
                "put its array into the record as 'keypoint'"
            )
        raise UserError(f"{where}: has no 'keypoint'")
    for name in ("total_frames", "img_shape"):
        if record.get(name) is None:
            raise UserError(f"{where}: has no {name!r}")
    return Entry(
        where=where,
        id=key,
        label=record.get("label"),
        video=key,
        suffixed=named[0] is not None,
        frames=record["total_frames"],
        size=record["img_shape"],
        keypoint=record["keypoint"],
        score=record.get("keypoint_score"),
        frame_inds=record.get("frame_inds"),
        box_score=record.get("box_score"),
    )


def _csv(path: Path) -> Listing:
    rows = list(csv.reader(_text(path).splitlines()))
    header = [name.strip() for name in rows[0]] if rows else []
    for name in ("file", "label"):
        if header.count(name) != 1:
            raise UserError(
                f"{path}: the first line must name the columns file, label and, if wanted, split, "
                f"id, frames; it reads {', '.join(header) or 'nothing'}"
            )
    entries = []
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        where = f"{path}: line {number}"
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} fields, the header has {len(header)}")
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        frames = cells.get("frames")
        if not cells["file"]:
            raise UserError(f"{where}: field file is empty")
        if frames and not frames.isdigit():
            raise UserError(f"{where}: frames {frames!r}, needed: a whole number")
        entries.append(
            Entry(
                where=where,
                id=cells.get("id") or Path(cells["file"]).with_suffix("").as_posix(),
                label=cells["label"] or None,
                splits=(cells["split"],) if cells.get("split") else (),
                video=cells["file"],
                frames=int(frames) if frames else None,
            )
        )
    return _listed(path, entries)


_FIELDS = ("id", "video", "label", "split", "size", "joints", "keypoint", "score", "frames")


def _jsonl(path: Path) -> Listing:
    entries = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            data = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: is not JSON ({error})") from error
        if not isinstance(data, dict):
            raise UserError(f"{where}: is a {type(data).__name__}, needed: an object")
        for name in data:
            if name not in _FIELDS:
                close = difflib.get_close_matches(name, _FIELDS, 1)
                hint = f", did you mean {close[0]!r}?" if close else ""
                raise UserError(
                    f"{where}: field {name!r} is unknown{hint}; known: {', '.join(_FIELDS)}"
                )
        if not data.get("id"):
            raise UserError(f"{where}: has no 'id'")
        where = f"{where} ({data['id']})"
        pose = data.get("keypoint") is not None
        if not pose and not data.get("video"):
            raise UserError(f"{where}: has neither 'video' nor 'keypoint'")
        if pose and (data.get("size") is None or data.get("joints") is None):
            raise UserError(f"{where}: has a 'keypoint', so it needs 'size' and 'joints'")
        entries.append(
            Entry(
                where=where,
                id=str(data["id"]),
                label=data.get("label"),
                splits=(str(data["split"]),) if data.get("split") else (),
                video=str(data.get("video") or ""),
                frames=data.get("frames"),
                size=data.get("size"),
                keypoint=data.get("keypoint"),
                score=data.get("score"),
                joints=data.get("joints"),
            )
        )
    return _listed(path, entries)


def _listed(path: Path, entries: list[Entry]) -> Listing:
    """The listing of entries that name their own split; text labels give the class names."""
    members: dict[str, list[str]] = {}
    for entry in entries:
        for split in entry.splits:
            members.setdefault(split, []).append(entry.id)
    given = [entry for entry in entries if entry.label is not None]
    numbers = [entry for entry in given if _is_number(entry.label)]
    if numbers and len(numbers) < len(given):
        named = next(entry for entry in given if not _is_number(entry.label))
        raise UserError(
            f"{named.where}: label {named.label!r} is a name, {numbers[0].where} has the number "
            f"{numbers[0].label!r}; a file uses one or the other"
        )
    for entry in numbers:
        entry.label = int(entry.label)
    classes = () if numbers else tuple(sorted({str(entry.label) for entry in given}))
    return Listing(str(path), entries, classes, members)


def _is_number(label: Any) -> bool:
    if isinstance(label, str):
        return label.removeprefix("-").isdigit()
    return isinstance(label, int) and not isinstance(label, bool)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start})") from error


PARSERS: dict[str, Callable[[Path], Listing]] = {
    ".pkl": _pickle,
    ".pickle": _pickle,
    ".csv": _csv,
    ".jsonl": _jsonl,
}

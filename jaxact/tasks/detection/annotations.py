"""Annotations of untrimmed videos: read, validated, converted.

    annotation = read("thumos14.json", ground_truth="opentad")
    videos = annotation.subset("validation")

Readable are JSON {"database": {id: {"subset", "duration", "annotations": [{"segment": [s, s],
"label"}]}}}, as of OpenTAD (with "frame", the number of frames), ActionFormer (with "fps") and
ActivityNet (with neither), and CSV, a segment a row: columns video, start, end, label (names as
`video-id`, `t-start`, `t-end` too), and subset, duration, fps, frames if known; a video without
segments is a row without start, end and label.

`GROUND_TRUTHS` says what becomes of a segment that ends after its video: data sets differ in that,
and so does the ground truth that results are published on.
"""

import dataclasses
import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.detection import annotation_files

AMBIGUOUS = "Ambiguous"  # label of THUMOS for segments that are neither right nor wrong


@dataclasses.dataclass(frozen=True)
class Rule:
    """What of a file is ground truth."""

    late: str  # error | keep | clip | drop: a segment that ends after its video
    without: tuple[str, ...] = ()  # ids left out


# THUMOS-14 test: 270 has wrong labels, 1292 has none. ActionFormer's file scores 3,358 segments of
# 212 videos, OpenTAD 3,325 of 211, G-TAD 3,311 of 210.
GROUND_TRUTHS = {
    "strict": Rule("error"),
    "keep": Rule("keep"),
    "clip": Rule("clip"),
    "drop": Rule("drop"),
    "actionformer": Rule("keep"),
    "opentad": Rule("drop", ("video_test_0000270", "video_test_0001292")),
    "gtad": Rule("keep", ("video_test_0000270", "video_test_0001292", "video_test_0001496")),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Untrimmed:
    """One video and its segments; 0 = not stated in the file."""

    id: str
    subset: str = ""
    duration: float = 0.0  # s
    frames: int = 0
    fps: float = 0.0  # frames/s
    segments: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))  # f64 s
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class Annotation:
    """All videos of a file, in its order; labels number the names."""

    path: str
    names: tuple[str, ...]
    videos: tuple[Untrimmed, ...]

    @property
    def subsets(self) -> tuple[str, ...]:
        """The subsets that occur, in order of appearance."""
        return tuple(dict.fromkeys(video.subset for video in self.videos))

    def subset(self, name: str, segments: bool = True) -> list[Untrimmed]:
        """The videos of a subset ("" = all). With `segments`, one of them must have some.

        Raises: UserError naming the file for an unknown subset or one without ground truth.
        """
        videos = [video for video in self.videos if name in ("", video.subset)]
        if not videos:
            known = ", ".join(each or "''" for each in self.subsets)
            known = f"subsets: {known}" if known else "the file has no videos"
            if self.subsets == ("",):
                known = "the file names no subsets; '' takes all of its videos"
            raise UserError(f"{self.path}: subset {name!r} is unknown; {known}")
        if segments and not any(len(video.labels) for video in videos):
            raise UserError(
                f"{self.path}: subset {name!r} has no ground truth ({len(videos)} videos without "
                "segments)"
            )
        return videos


def read(
    path: str | os.PathLike[str],
    *,
    names: Sequence[str] = (),
    ground_truth: str = "strict",
) -> Annotation:
    """All videos of an annotation file, validated.

    Args:
      names: class names in label order; () = the labels of the whole file, sorted.
      ground_truth: a key of GROUND_TRUTHS.

    Segments of the label AMBIGUOUS are left out.
    Raises: UserError naming file, video and segment: unknown label; times that are not numbers, not
    in order or past the video's end (as `ground_truth` says); duration, fps or frames not above 0.
    """
    rule = GROUND_TRUTHS.get(ground_truth)
    if rule is None:
        known = ", ".join(GROUND_TRUTHS)
        raise UserError(f"ground truth {ground_truth!r} is unknown; allowed: {known}")
    rows = dict(_csv(path) if annotation_files.suffix(path) == ".csv" else _json(path))
    rows = {key: row for key, row in rows.items() if key not in rule.without}
    if not names:
        labels = {
            annotation_files.label(item, f"{path}: video {key!r}")
            for key, (_, items) in rows.items()
            for item in items
        }
        names = sorted(labels - {AMBIGUOUS})
    number = {name: k for k, name in enumerate(names)}
    videos = tuple(
        _video(key, facts, items, number, rule.late, f"{path}: video {key!r}")
        for key, (facts, items) in rows.items()
    )
    return Annotation(os.fspath(path), tuple(number), videos)


Row = tuple[Mapping[str, Any], list[Mapping[str, Any]]]  # facts of a video, its segments


def _json(path: str | os.PathLike[str]) -> Iterator[tuple[str, Row]]:
    for key, facts in annotation_files.document(path, "database").items():
        where = f"{path}: video {key!r}"
        if not isinstance(facts, dict):
            raise UserError(f"{where}: is {type(facts).__name__}, needed: an object")
        items = facts.get("annotations", [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"{where}: 'annotations' must be a list of objects")
        yield key, (facts, items)


def _csv(path: str | os.PathLike[str]) -> Iterator[tuple[str, Row]]:
    videos: dict[str, Row] = {}
    for line, row in annotation_files.columns(path):
        given = {
            "frame" if name == "frames" else name: row[name]
            for name in ("subset", "duration", "fps", "frames")
            if row.get(name)
        }
        facts, items = videos.setdefault(row["video"], (given, []))
        if facts != given:
            raise UserError(f"{path} line {line}: {given}, but the video's first row says {facts}")
        if row["start"] or row["end"] or row["label"]:
            items.append({"segment": [row["start"], row["end"]], "label": row["label"]})
    yield from videos.items()


def _video(
    key: str,
    facts: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    number: Mapping[str, int],
    late: str,
    where: str,
) -> Untrimmed:
    given = {
        name: annotation_files.number(facts[name], name, where, positive=True)
        for name in ("duration", "frame", "fps")
        if name in facts
    }
    duration, fps = given.get("duration", 0.0), given.get("fps", 0.0)
    frames = int(given.get("frame", duration * fps))
    if duration and "frame" in given:
        fps = frames / duration  # windows are laid over this number of frames
    segments, labels = [], []
    for index, item in enumerate(items):
        place = f"{where}, segment {index}"
        label = annotation_files.label(item, place)
        if label == AMBIGUOUS:
            continue
        if label not in number:
            close = difflib.get_close_matches(label, number, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(f"{place}: label {label!r} is none of the {len(number)} classes{hint}")
        start, end = annotation_files.span(item, place)
        if duration and end > duration:
            if late == "error":
                raise UserError(
                    f"{place}: {start:g} to {end:g} s, but the video ends at {duration:g} s; "
                    "ground_truth=clip, drop or keep would allow that"
                )
            if late == "drop" or (late == "clip" and start >= duration):
                continue
            end = min(end, duration) if late == "clip" else end
        segments.append((start, end))
        labels.append(number[label])
    subset = facts.get("subset", "")
    if not isinstance(subset, str):
        raise UserError(f"{where}: subset {subset!r}, needed: a text")
    table = np.array(segments, np.float64).reshape(-1, 2)
    return Untrimmed(key, subset, duration, frames, fps, table, np.array(labels, np.int64))


def read_ids(path: str | os.PathLike[str]) -> frozenset[str]:
    """Video ids of a JSON list or of an object's keys. Raises: UserError naming the file."""
    ids = annotation_files.parsed(path)
    if not isinstance(ids, (list, dict)) or not all(isinstance(key, str) for key in ids):
        raise UserError(f"{path}: needed: a JSON list of video ids, or an object of them")
    return frozenset(ids)


def write(path: str | os.PathLike[str], annotation: Annotation) -> None:
    """Writes an annotation as JSON in OpenTAD's form, which `read` gives back."""
    database = {}
    for video in annotation.videos:
        facts: dict[str, Any] = {"subset": video.subset}
        if video.duration:
            facts["duration"] = video.duration
        if video.frames:
            facts["frame"] = video.frames
        elif video.fps:
            facts["fps"] = video.fps
        facts["annotations"] = [
            {"segment": [float(x) for x in segment], "label": annotation.names[label]}
            for segment, label in zip(video.segments, video.labels, strict=True)
        ]
        database[video.id] = facts
    Path(path).write_text(json.dumps({"version": "jaxact", "database": database}, indent=1))

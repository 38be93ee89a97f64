"""Clips: what to train on, read from an annotation file and validated.

    clips = read("ntu60_hrnet.pkl", "xsub_train", classes=60, videos="nturgbd_videos")

A pose pickle (.pkl: {"split": {name: [ids]}, "annotations": [records]}, PYSKL and MMAction2), a
table (.csv: columns file, label, and split, id, frames if wanted) or JSON lines (.jsonl, one clip
a line: {"id", "video", "label", "split", "size": [h, w], "joints": "coco17" or names, "keypoint":
[people][frames][joints][2 or 3], "score", "frames"}, all but id optional).
"""

import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.action import poses, skeletons
from jaxact.tasks.action.annotation_files import Entry, Listing, parse
from jaxact.tasks.action.skeletons import Skeleton

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Clip:
    """One annotated clip: a video, a pose sequence, or both."""

    id: str
    label: int  # -1 = unknown
    frames: int  # as annotated; 0 = ask the video
    video: str = ""  # path; "" = pose only
    size: tuple[int, int] = (0, 0)  # (h, w) px of the keypoint coordinates
    keypoint: np.ndarray | None = None  # f32[p, t, j, 2] px
    score: np.ndarray | None = None  # f32[p, t, j]


def read(
    path: str | Path,
    split: str = "",
    *,
    classes: int | Sequence[str] = 0,
    videos: str | Path = "",
    suffix: str = ".mp4",
    skeleton: Skeleton | None = None,
    third: str = "score",
    nan: str = "zero",
    labelled: bool = True,
) -> list[Clip]:
    """The clips of one split of an annotation file, in the file's order.

    Args:
      split: its name; "" takes the whole file.
      classes: number of classes, or their names in label order; 0 = do not check. Text labels
        without given names are numbered by their sorted order over the whole file.
      videos: folder of the videos. Pickle: "" = poses only; the file is `id + suffix`, or the
        record's `filename`. CSV, JSON lines: "" = the annotation file's own folder.
      skeleton: joint order wanted; a file that names its joints is reordered to it, one that does
        not must have their number. None keeps each file's own order.
      third: "score" or "drop", what the third value of a keypoint is (see `poses.checked`).
      nan: "zero" reads NaN joints as not detected (logged), "error" refuses them.
      labelled: False allows records without a label (-1).

    Raises: UserError naming file and record.
    """
    listing = parse(path)
    given = _names(listing, classes)
    return convert(
        *(path, _chosen(listing, split), given),
        classes=classes,
        videos=videos,
        suffix=suffix,
        skeleton=skeleton,
        third=third,
        nan=nan,
        labelled=labelled,
    )


def convert(
    path: str | Path,
    entries: Sequence[Entry],
    names: tuple[str, ...],
    *,
    classes: int | Sequence[str] = 0,
    videos: str | Path = "",
    suffix: str = ".mp4",
    skeleton: Skeleton | None = None,
    third: str = "score",
    nan: str = "zero",
    labelled: bool = True,
) -> list[Clip]:
    """`read` for entries of a file that is parsed already; `names` are of its text labels."""
    folder = Path(videos) if str(videos) else None
    if folder is None and Path(path).suffix in (".csv", ".jsonl"):
        folder = Path(path).parent
    clips, lost = [], []
    for entry in entries:
        label = _label(entry, names, classes, labelled)
        frames = 0 if entry.frames is None else _count(entry.frames, "total_frames", entry.where)
        video = _video(entry, folder, suffix)
        if entry.keypoint is None:
            clips.append(Clip(entry.id, label, frames, video))
            continue
        size = _size(entry)
        keypoint, score, count = _pose(entry, frames, size, skeleton, third, nan)
        if count:
            lost.append((entry, count))
        clips.append(Clip(entry.id, label, keypoint.shape[1], video, size, keypoint, score))
    _same_joints(clips, entries)
    if lost:
        _log.warning(
            "%s: %d NaN joints in %d records (first: %s) are read as not detected",
            *(path, sum(count for _, count in lost), len(lost), lost[0][0].id),
        )
    return clips


def class_names(path: str | Path) -> tuple[str, ...]:
    """Class names in label order that a file implies or states; () where labels are numbers only.

    Raises: UserError as `read`.
    """
    return parse(path).classes


def split_names(path: str | Path) -> tuple[str, ...]:
    """The splits of an annotation file. Raises: UserError as `read`."""
    return parse(path).splits


def _names(listing: Listing, classes: int | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(classes, int):
        return tuple(classes)
    if classes and listing.classes and len(listing.classes) != classes:
        raise UserError(
            f"{listing.path}: {len(listing.classes)} class names ({', '.join(listing.classes[:3])} "
            f"...), the config says {classes} classes"
        )
    return listing.classes


def _chosen(listing: Listing, split: str) -> list[Entry]:
    if not split:
        return listing.entries
    if split not in listing.members:
        known = ", ".join(listing.splits) or "none, the file has no splits"
        raise UserError(f"{listing.path}: split {split!r} is unknown; splits: {known}")
    if not listing.members[split]:
        raise UserError(f"{listing.path}: split {split!r} is empty")
    members = set(listing.members[split])
    return [entry for entry in listing.entries if entry.id in members]


def _label(
    entry: Entry, names: tuple[str, ...], classes: int | Sequence[str], labelled: bool
) -> int:
    label = entry.label
    if label is None or (not labelled and isinstance(label, int) and label == -1):
        if labelled:
            raise UserError(f"{entry.where}: has no label")
        return -1
    if isinstance(label, str):
        if label not in names:
            raise UserError(
                f"{entry.where}: label {label!r}, allowed: {', '.join(names) or 'numbers'}"
            )
        return names.index(label)
    number = _integer(label, "label", entry.where)
    count = classes if isinstance(classes, int) else len(names)
    if number < 0 or (count and number >= count):
        allowed = f"0 to {count - 1}" if count else "0 and above"
        raise UserError(f"{entry.where}: label {number}, allowed: {allowed}")
    return number


def _integer(value: Any, name: str, where: str) -> int:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value.item() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {name} {value!r}, needed: a whole number") from error


def _count(value: Any, name: str, where: str) -> int:
    number = _integer(value, name, where)
    if number < 1:
        raise UserError(f"{where}: {name} {number}, needed: at least 1")
    return number


def _size(entry: Entry) -> tuple[int, int]:
    try:
        height, width = entry.size
    except (TypeError, ValueError) as error:
        raise UserError(f"{entry.where}: frame size {entry.size!r}, needed: (h, w) px") from error
    return (
        _count(height, "frame height", entry.where),
        _count(width, "frame width", entry.where),
    )


def _video(entry: Entry, folder: Path | None, suffix: str) -> str:
    if folder is None or not entry.video:
        return ""
    return str(folder / (entry.video if entry.suffixed else entry.video + suffix))


def _pose(
    entry: Entry,
    frames: int,
    size: tuple[int, int],
    skeleton: Skeleton | None,
    third: str,
    nan: str,
) -> tuple[np.ndarray, np.ndarray, int]:
    keypoint, score = entry.keypoint, entry.score
    if entry.frame_inds is not None:
        keypoint, score = poses.grouped(
            keypoint, entry.frame_inds, entry.box_score, frames, entry.where
        )
    where = entry.where
    keypoint, score, lost = poses.checked(keypoint, score, frames, where, third, nan, size)
    if entry.joints is not None:
        names = _joint_names(entry)
        if len(names) != keypoint.shape[2]:
            raise UserError(
                f"{entry.where}: {keypoint.shape[2]} joints a person, 'joints' names {len(names)}"
            )
        if skeleton is not None:
            try:
                order = skeletons.order(names, skeleton)
            except UserError as error:
                raise UserError(f"{entry.where}: {error}") from error
            if order is not None:
                keypoint, score = keypoint[:, :, list(order)], score[:, :, list(order)]
    elif skeleton is not None and len(skeleton.joints) != keypoint.shape[2]:
        raise UserError(
            f"{entry.where}: {keypoint.shape[2]} joints a person, {skeleton.name} has "
            f"{len(skeleton.joints)}"
        )
    return keypoint, score, lost


def _joint_names(entry: Entry) -> tuple[str, ...]:
    if isinstance(entry.joints, str):
        try:
            return skeletons.find(entry.joints).joints
        except UserError as error:
            raise UserError(f"{entry.where}: {error}") from error
    return tuple(str(joint) for joint in entry.joints)


def _same_joints(clips: list[Clip], entries: Sequence[Entry]) -> None:
    first = None
    for clip, entry in zip(clips, entries, strict=True):
        if clip.keypoint is None:
            continue
        joints = clip.keypoint.shape[2]
        if first is None:
            first = joints
        elif joints != first:
            raise UserError(
                f"{entry.where}: {joints} joints a person, the records before it {first}"
            )

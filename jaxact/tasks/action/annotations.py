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
    source: str | Path | Listing,
    split: str = "",
    *,
    entries: Sequence[Entry] | None = None,
    classes: int | Sequence[str] = 0,
    videos: str | Path = "",
    suffix: str = ".mp4",
    skeleton: Skeleton | None = None,
    nan: str = "zero",
    labelled: bool = True,
) -> list[Clip]:
    """The clips of one split of an annotation file, in the file's order.

    Args:
      source: the file, or what `parse` made of it.
      split: its name; "" takes the whole file.
      entries: the records to take, instead of a split.
      classes: number of classes, or their names in label order; 0 = do not check. Text labels
        without given names are numbered by their sorted order over the whole file.
      videos: folder of the videos. Pickle: "" = poses only; the file is `id + suffix`, or the
        record's `filename`. CSV, JSON lines: "" = the annotation file's own folder.
      skeleton: joint order wanted; a file that names its joints is reordered to it, one that does
        not must have their number. None keeps each file's own order.
      nan: "zero" reads NaN joints as not detected (logged), "error" refuses them.
      labelled: False allows records without a label (-1).

    Raises: UserError naming file and record.
    """
    listing = source if isinstance(source, Listing) else parse(source)
    entries = _chosen(listing, split) if entries is None else entries
    names = _names(listing, classes)
    folder = Path(videos) if str(videos) else None
    if folder is None and Path(listing.path).suffix in (".csv", ".jsonl"):
        folder = Path(listing.path).parent
    clips, lost, joints = [], [], 0
    for entry in entries:
        label = _label(entry, names, classes, labelled)
        frames = 0 if entry.frames is None else _count(entry.frames, "total_frames", entry.where)
        video = _video(entry, folder, suffix)
        if entry.keypoint is None:
            clips.append(Clip(entry.id, label, frames, video))
            continue
        size = _size(entry)
        keypoint, score, count = _pose(entry, frames, size, skeleton, nan)
        if joints not in (0, keypoint.shape[2]):
            raise UserError(
                f"{entry.where}: {keypoint.shape[2]} joints a person, the records before it "
                f"{joints}"
            )
        joints = keypoint.shape[2]
        if count:
            lost.append((entry, count))
        clips.append(Clip(entry.id, label, keypoint.shape[1], video, size, keypoint, score))
    if lost:
        _log.warning(
            "%s: %d NaN joints in %d records (first: %s) are read as not detected",
            *(listing.path, sum(count for _, count in lost), len(lost), lost[0][0].id),
        )
    return clips


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
        known = ", ".join(listing.members) or "none, the file has no splits"
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
    return (_count(height, "frame height", entry.where), _count(width, "frame width", entry.where))


def _video(entry: Entry, folder: Path | None, suffix: str) -> str:
    if folder is None or not entry.video:
        return ""
    return str(folder / (entry.video if entry.suffixed else entry.video + suffix))


def _pose(
    entry: Entry, frames: int, size: tuple[int, int], skeleton: Skeleton | None, nan: str
) -> tuple[np.ndarray, np.ndarray, int]:
    keypoint, score = entry.keypoint, entry.score
    if entry.frame_inds is not None:
        keypoint, score = poses.grouped(
            keypoint, entry.frame_inds, entry.box_score, frames, entry.where
        )
    where = entry.where
    keypoint, score, lost = poses.checked(keypoint, score, frames, where, nan, size)
    if entry.joints is not None:
        try:
            order = _joint_order(entry.joints, keypoint.shape[2], skeleton)
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


def _joint_order(joints: Any, count: int, skeleton: Skeleton | None) -> tuple[int, ...] | None:
    """Where each joint of `skeleton` stands among `count` named ones; None = nothing moves."""
    if isinstance(joints, str):
        joints = skeletons.find(joints).joints
    if len(joints) != count:
        raise UserError(f"{count} joints a person, 'joints' names {len(joints)}")
    return None if skeleton is None else skeletons.order(tuple(map(str, joints)), skeleton)

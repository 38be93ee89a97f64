"""What `predict` is given: a video, a folder of videos or a list, with or without a pose file."""

import dataclasses
import functools
import threading
from collections.abc import Sequence
from pathlib import Path

from jaxact.config import UserError
from jaxact.data import media
from jaxact.data.media import VIDEOS
from jaxact.data.video import Video
from jaxact.tasks.action import annotations, dataset, skeletons
from jaxact.tasks.action.annotation_files import Entry, Listing, parse
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.clip_arrays import Streams
from jaxact.tasks.action.config import Data
from jaxact.tasks.action.dataset import ClipSource

POSES = (".jsonl", ".pkl", ".pickle")


class PosedSource(ClipSource):
    """Clips whose poses are looked up one at a time; an absent one is an error only then."""

    def __init__(self, data: Data, clips: Sequence[Clip], poses: str):
        super().__init__(clips)
        self.data, self.poses = data, Path(poses)

    def __getitem__(self, index: int) -> Clip:
        clip = self.clips[index]
        if clip.keypoint is not None:
            raise UserError(f"{clip.id}: has keypoints already; leave --poses={self.poses} out")
        pose = self._match(clip, where := self._file(clip))
        if pose.keypoint is None:
            raise UserError(f"{where}: {pose.id!r} has no keypoints")
        if clip.video:
            with Video(clip.video) as video:
                count = video.frames
            if abs(count - pose.frames) > max(2, count // 20):
                raise UserError(
                    f"{clip.id}: {count} frames, but {where} has poses of {pose.frames}; "
                    "allowed: up to 5 % (or 2) apart"
                )
        return dataclasses.replace(
            clip, frames=pose.frames, size=pose.size, keypoint=pose.keypoint, score=pose.score
        )

    def _file(self, clip: Clip) -> Path:
        """The pose file of a clip."""
        where = self.poses
        if not where.is_dir():
            return where
        name = Path(clip.video or clip.id)
        for path in (where / (n + suffix) for n in (name.name, name.stem) for suffix in POSES):
            if path.is_file():
                return path
        raise UserError(
            f"{clip.id}: --poses={where} holds no file for it; expected "
            f"{name.stem}{{{','.join(POSES)}}}"
        )

    def _match(self, clip: Clip, where: Path) -> Clip:
        """The record of a clip: of its file name, of its name without suffix, or the only one."""
        name, (listing, named) = Path(clip.video or clip.id), _indexed(where)
        entries: Sequence[Entry] = named.get(name.name) or named.get(name.stem) or ()
        alone = len(listing.entries) == 1 and (len(self.clips) == 1 or where != self.poses)
        if not entries and alone:
            entries = listing.entries
        if not entries:
            known = _some(listing.entries)
            raise UserError(f"{where}: no record fits {clip.id}; its records: {known}")
        if len(entries) > 1:
            raise UserError(f"{where}: several records fit {clip.id}: {_some(entries)}")
        skeleton, nan = skeletons.find(self.data.skeleton), self.data.nan
        return annotations.read(
            listing, entries=entries, skeleton=skeleton, nan=nan, labelled=False
        )[0]


_LOCK = threading.Lock()


def _indexed(path: Path) -> tuple[Listing, dict[str, list[Entry]]]:
    """A pose file and its entries under each of their names."""
    with _LOCK:  # one of several threads reads it, the others wait
        state = path.stat()
        return _index(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1)
def _index(path: Path, changed: int, size: int) -> tuple[Listing, dict[str, list[Entry]]]:
    listing = parse(path)
    named: dict[str, list[Entry]] = {}
    for entry in listing.entries:
        for name in dict.fromkeys(_names(entry, path)):
            named.setdefault(name, []).append(entry)
    return listing, named


def _names(entry: Entry, path: Path) -> tuple[str, ...]:
    names = entry.id, Path(entry.id).name
    if path.suffix != ".jsonl" or not entry.video:
        return names  # a pickle names no video
    video = Path(entry.video if entry.suffixed else f"{entry.video}.mp4")
    return *names, video.name, video.stem


def _some(entries: Sequence[Entry]) -> str:
    names = ", ".join(entry.id for entry in entries[:3])
    return names if len(entries) <= 3 else f"{names} and {len(entries) - 3} more"


def examples(data: Data, streams: Streams, classes: int, path: str, poses: str = "") -> ClipSource:
    """Clips of a video file, a folder of videos, or an annotation list of any of the kinds.

    `poses` is a file with the keypoints of these videos, or a folder with one file for each.

    Raises:
      UserError: for what does not exist, and for missing poses where there is no `poses`.
    """
    given, held = Path(path), media.held(path, VIDEOS)
    for flag, named in (("input", given), ("poses", Path(poses))):
        if str(named) and not named.exists() and not (held and named is given):
            raise UserError(f"--{flag}={named} does not exist")
    if poses and Path(poses).is_file() and Path(poses).suffix not in POSES:
        raise UserError(f"--poses={poses}: suffix {Path(poses).suffix!r}, allowed: {POSES}")
    if not held and given.is_file() and given.suffix.lower() not in VIDEOS:
        needed: Streams = () if poses else streams
        clips = dataset.read(data, needed, classes, path, "", labelled=False)
        return PosedSource(data, clips, poses) if poses else ClipSource(clips)
    files = [Path(file) for file in held or [path]]
    if given.is_dir():
        files = sorted(p for p in given.rglob("*") if p.suffix.lower() in VIDEOS)
    if "pose" in streams and not poses:
        raise UserError(
            f"--input={path}: this model needs poses; give --poses, or a .jsonl or .pkl list with "
            "keypoints, or use a model with config.model.streams=rgb"
        )
    clips = [Clip(str(path), -1, 0, str(path)) for path in files]
    return PosedSource(data, clips, poses) if poses else ClipSource(clips)

"""The windows of each split of untrimmed videos, and their ground truth.

    windows = source(data, classes=20, split="test")  # every window of every test video
    video, segment, label = truth(data, numbers)  # what their detections are scored against

Videos are numbered by their place in the annotation, whatever the split.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxact.config import UserError
from jaxact.data import media
from jaxact.data.class_names import read_names
from jaxact.data.media import VIDEOS
from jaxact.data.video import Video
from jaxact.tasks.detection import annotations, features, frames, windows
from jaxact.tasks.detection.annotations import Annotation, Untrimmed
from jaxact.tasks.detection.config import Data


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """What an example is made of: a video, and in evaluation a window of it."""

    id: str
    number: int  # place of the video in the annotation
    video: Untrimmed
    path: str  # of the video or its features
    steps: int  # of the whole video; in resize mode `window`
    fps: float
    duration: float  # s
    start: int = 0  # first step of the window
    end: int = 0  # 0 = training: to be drawn


class Windows:
    """The examples of one split."""

    def __init__(self, samples: Sequence[Sample]):
        self.samples, self.ids = samples, [sample.id for sample in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def annotation(data: Data) -> Annotation:
    """The annotation of a config, read once. Raises: UserError as `annotations.read`."""
    if not data.annotations:
        raise UserError("config.data.annotations is empty; give a .json or .csv file")
    stamp = os.stat(data.annotations).st_mtime if os.path.isfile(data.annotations) else 0.0
    return _annotation(data.annotations, _names(data), data.ground_truth, stamp)


@functools.lru_cache(maxsize=4)
def _annotation(path: str, names: tuple[str, ...], ground_truth: str, stamp: float) -> Annotation:
    return annotations.read(path, names=names, ground_truth=ground_truth)


def _names(data: Data) -> tuple[str, ...]:
    """The names of the file that the config gives, () without one.

    Raises: UserError for a name given twice, which would shift the labels after it.
    """
    names = read_names(data.class_names) if data.class_names else ()
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"config.data.class_names={data.class_names!r}: names {twice[0]!r} twice")
    return names


def class_names(data: Data, classes: int) -> tuple[str, ...]:
    """Names of the annotation's classes; numbers where there is no file yet.

    A model of one class (class-agnostic) goes with any annotation.
    Raises: UserError where the model has another number of classes.
    """
    known = _names(data)
    if not known and os.path.isfile(data.annotations):
        known = annotation(data).names
    if not known:
        return tuple(str(k) for k in range(classes))
    if classes not in (1, len(known)):
        where = data.class_names or data.annotations
        raise UserError(
            f"{where}: {len(known)} classes, config.model.classes={classes}; allowed: "
            f"{len(known)}, or 1 (class-agnostic)"
        )
    return known


def _blocked(data: Data, listed: Annotation) -> frozenset[str]:
    """The ids to leave out. Raises: UserError where none of them is in the annotation."""
    if not data.blocked:
        return frozenset()
    ids = annotations.read_ids(data.blocked)
    if ids and ids.isdisjoint(video.id for video in listed.videos):
        raise UserError(
            f"{data.blocked}: none of its {len(ids)} ids is in {listed.path} ({min(ids)!r}, ...); "
            "needed: ids of the annotation"
        )
    return ids


def _subset(data: Data, split: str) -> str:
    subsets = {"train": data.train_split, "val": data.val_split}
    return subsets.get(split, data.test_split or data.val_split)


def source(data: Data, classes: int, split: str) -> Windows:
    """The windows of one split; in training its videos that have segments.

    Raises: UserError for missing or invalid annotations, videos or features.
    """
    listed = annotation(data)
    class_names(data, classes)
    blocked = _blocked(data, listed)
    chosen = {id(video) for video in listed.subset(_subset(data, split)) if video.id not in blocked}
    rows = [
        (number, video)
        for number, video in enumerate(listed.videos)
        if id(video) in chosen and (split != "train" or len(video.labels))
    ]
    if data.features:
        features.check_present(data.features, [f"{data.prefix}{video.id}" for _, video in rows])
    samples: list[Sample] = []
    for number, video in rows:
        whole = _measured(data, number, video, _path(data, video.id))
        samples += [whole] if split == "train" else _cut(data, whole)
    return Windows(samples)


def truth(data: Data, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ground truth of the subsets that these videos belong to: (video i64[n], f64[n, 2] s, label).

    `numbers` are places in the annotation. Raises: UserError where there is no ground truth.
    """
    listed = annotation(data)
    subsets = {listed.videos[number].subset for number in np.unique(numbers).tolist()}
    blocked = _blocked(data, listed)
    rows = [
        (number, video)
        for number, video in enumerate(listed.videos)
        if video.subset in subsets and video.id not in blocked
    ]
    if not any(len(video.labels) for _, video in rows):
        named = ", ".join(sorted(subsets))
        raise UserError(f"{listed.path}: subset {named!r} has no ground truth")
    return (
        np.concatenate([np.full(len(video.labels), number) for number, video in rows]),
        np.concatenate([video.segments for _, video in rows]),
        np.concatenate([video.labels for _, video in rows]),
    )


def examples(data: Data, path: str, poses: str = "") -> Windows:
    """All windows of a video (or feature) file, of a folder of them, or of an annotation's videos.

    Raises: UserError for a path that does not exist or is none of these.
    """
    if poses:
        raise UserError(f"--poses={poses}: detection has no use for poses; leave it out")
    given = pathlib.Path(path)
    suffixes = features.SUFFIXES if data.features else VIDEOS
    held = None if data.features else media.held(path, suffixes)
    if not held and not given.exists():
        raise UserError(f"--input={path} does not exist")
    if held:
        named = [(Untrimmed(file), file) for file in held]
    elif given.is_file() and given.suffix.lower() in (".json", ".csv", ".gz"):
        listed = annotations.read(path, ground_truth="keep").videos  # whatever their labels
        named = [(video, _path(data, video.id)) for video in listed]
    else:
        files = sorted(given.rglob("*")) if given.is_dir() else [given]
        files = [file for file in files if file.suffix.lower() in suffixes]
        if not files:
            raise UserError(f"--input={path}: needed: {', '.join(suffixes)}, a .json or a .csv")
        named = [(Untrimmed(str(file)), str(file)) for file in files]
    samples: list[Sample] = []
    for number, (video, file) in enumerate(named):
        samples += _cut(data, _measured(data, number, video, file))
    return Windows(samples)


def _path(data: Data, name: str) -> str:
    if data.features:
        return features.find(data.features, f"{data.prefix}{name}")
    if not data.videos:
        raise UserError("config.data.videos is empty; give the folder of the videos")
    suffixes = (data.video_suffix,) if data.video_suffix else ("", *VIDEOS)
    files = [pathlib.Path(data.videos) / f"{data.prefix}{name}{suffix}" for suffix in suffixes]
    # A file that is absent is an error when it is read, or skipped (config.input.broken).
    return str(next((file for file in files if media.exists(file)), files[0]))


def _measured(data: Data, number: int, video: Untrimmed, path: str) -> Sample:
    """A whole video with its length in steps, by the annotation or else by the file."""
    count, fps, duration = video.frames, video.fps, video.duration
    if data.features:
        steps = features.steps(path, data.channels)
        features.check_length(path, steps, count if data.mode == "sliding" else 0, data.stride)
        fps = fps or (steps * data.stride / duration if duration else 0.0)
        if not fps:
            raise UserError(f"{path}: has no times; list {video.id!r} in a .json or .csv with fps")
        duration = duration or steps * data.stride / fps
    elif not duration or (data.mode == "sliding" and not (count and fps)):
        # Of a whole video the duration is enough: thousands of files need not be opened.
        with Video(path) as opened:
            count, fps = opened.frames, frames.rate(opened)
        duration = duration or count / fps
    if not data.features:
        steps = windows.count(count, data.stride)
        read = windows.count(count, data.stride // data.scale)
        if data.mode == "sliding" and read < data.clip:
            raise UserError(
                f"{path}: {count} frames, of which {read} are read; needed: {data.clip} (one "
                "clip), or a smaller config.data.stride"
            )
    duration = duration or count / fps
    steps = data.window if data.mode == "resize" else steps
    return Sample(video.id, number, video, path, steps, fps, duration)


def _cut(data: Data, whole: Sample) -> list[Sample]:
    """The evaluation windows of a video."""
    parts = [(0, data.window)]
    if data.mode == "sliding":
        parts = windows.sliding(whole.steps, data.window, data.overlap)
    return [
        dataclasses.replace(whole, id=f"{whole.id}#{k}", start=start, end=end)
        for k, (start, end) in enumerate(parts)
    ]

"""The clips of each split: listed, audited, and turned into the arrays of an example.

How the frames of one clip are chosen and cut: `clip_arrays` (training); `eval_views`
(evaluation).
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.data import geometry, shards
from jaxact.data.class_names import read_names
from jaxact.data.video import Video
from jaxact.tasks.action import annotation_files, annotations, clip_arrays, eval_views, skeletons
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.clip_arrays import Streams
from jaxact.tasks.action.config import Data
from jaxact.tasks.action.skeletons import Skeleton


def class_names(data: Data, count: int) -> tuple[str, ...]:
    """Names from the given file, else from the annotations, else numbers."""
    path = data.class_names
    if not path:
        listed = pathlib.Path(data.annotations).is_file()
        names = annotation_files.parse(data.annotations).classes if listed else ()
        return names if len(names) == count else tuple(map(str, range(count)))
    names = read_names(path)
    if path.endswith(".json") and len(names) != count:
        raise UserError(
            f"the run of {path} has {len(names)} classes ({', '.join(names[:2])} ...), this config "
            f"{count} (config.model.classes); give the --config and the fields it was trained with"
        )
    rule = f"{count} (model.classes)"
    schema.require(len(names) == count, "data.class_names", f"{len(names)} names", rule)
    return names


class ClipSource:
    """The clips of one split."""

    def __init__(self, clips: Sequence[Clip]):
        self.clips, self.ids = clips, [clip.id for clip in clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]


def source(data: Data, streams: Streams, classes: int, split: str) -> ClipSource:
    """The clips of one split. Raises UserError for missing or invalid annotations."""
    splits = {"train": data.train_split, "val": data.val_split}
    splits["test"] = data.test_split or data.val_split
    return ClipSource(read(data, streams, classes, data.annotations, splits[split]))


def read(
    data: Data, streams: Streams, classes: int, path: str, split: str, labelled: bool = True
) -> list[Clip]:
    """The clips of one split ("" = all) of a list. Raises UserError also for missing poses."""
    if not path:
        raise UserError("config.data.annotations is empty; give a .pkl, .csv or .jsonl file")
    names = class_names(data, classes) if data.class_names else classes
    folder = data.videos
    if "rgb" in streams and folder and not shards.named(folder):
        if not pathlib.Path(folder).is_dir():
            raise UserError(f"config.data.videos={folder!r} is no folder")
    clips = annotations.read(
        path,
        split,
        classes=names,
        videos=data.videos,
        suffix=data.video_suffix,
        skeleton=skeletons.find(data.skeleton),
        nan=data.nan,
        labelled=labelled,
    )
    if "pose" in streams:
        bare = [clip.id for clip in clips if clip.keypoint is None]
        if bare:
            raise UserError(
                f"{path}: clip {bare[0]!r} has no keypoints (and {len(bare) - 1} others); "
                "allowed without: config.model.streams=rgb"
            )
    return clips


def prepare(
    data: Data,
    streams: Streams,
    skeleton: Skeleton,
    clip: Clip,
    rng: np.random.Generator,
    stage_data: Any,
    split: str,
    part: int = 0,
) -> dict[str, np.ndarray]:
    """The arrays of one example: a training clip, or one part of the evaluation views."""
    if split == "train":
        return clip_arrays.training_example(data, streams, skeleton, clip, rng, stage_data)
    return eval_views.example(data, streams, clip, split, part)


def shapes(
    data: Data, streams: Streams, skeleton: Skeleton, stage_data: Any, split: str
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """name -> (shape of one example, or of one part of its views; dtype), as `prepare` makes it."""
    side = stage_data.size if split == "train" else data.test_size
    views = eval_views.spec(data, split)
    each = views.clips // eval_views.parts(data, split) * views.crops
    leading = () if split == "train" else (each,)
    named: dict[str, tuple[tuple[int, ...], Any]] = {"label": ((), np.int32)}
    if "rgb" in streams:
        named["rgb"] = ((*leading, data.rgb_frames, side, side, 3), np.uint8)
    if "pose" in streams:
        points = (*leading, data.people, data.pose_frames, len(skeleton.joints))
        named["keypoint"] = ((*points, 2), np.float32)
        named["score"] = (points, np.float32)
    return named


def audit(streams: Streams, clip: Clip) -> str:
    """Opens the video of a clip and reads its ends: "" or what is wrong with it."""
    if "rgb" not in streams:
        return ""
    try:
        with Video(clip.video) as video:
            clip_arrays.frame_count(clip, video.frames)
            video.read([0, video.frames - 1])
    except UserError as error:
        return str(error)
    return ""


def survey(sources: Mapping[str, Any]) -> tuple[Sequence[str], str]:
    """Clips of the training split that are in another one too, by id or by file; a table."""
    names = {split: {clip.id for clip in source.clips} for split, source in sources.items()}
    files = {
        split: {str(pathlib.Path(clip.video).resolve()) for clip in source.clips if clip.video}
        for split, source in sources.items()
    }
    findings, lines = [], ["# clips in common"]
    for one, other in itertools.combinations(sources, 2):
        ids, videos = names[one] & names[other], files[one] & files[other]
        lines.append(f"{one}, {other:<8} {len(ids):>8,} ids {len(videos):>8,} videos")
        if "train" in (one, other) and (ids or videos):
            findings.append(
                f"{one} and {other} share {len(ids)} ids and {len(videos)} videos, as "
                f"{min(ids or videos)!r}: what is trained on is tested"
            )
    return findings, "\n".join(lines)


def thumbnail(streams: Streams, clip: Clip) -> np.ndarray | None:
    """Six frames of a clip at 96 px for the report."""
    if "rgb" not in streams or not clip.video:
        return None
    with Video(clip.video) as video:
        at = np.linspace(0, video.frames - 1, 6).round().astype(int)
        frames = video.read(at)
    new = geometry.short_side(frames.shape[1:3], 96)
    return geometry.resize(frames, None, frames.shape[1:3], new)[0]

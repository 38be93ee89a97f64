"""Clips for recognition: from an annotation and a video to the arrays of one training example.

Host side of `task.py`, which has the table of the arrays; `eval_views` has that of evaluation.
Everything drawn at random comes from the generator given, and both streams of an example share one
draw of the geometry.
"""

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.data import color, geometry, shards
from jaxact.data.video import Video
from jaxact.tasks.action import annotations as records
from jaxact.tasks.action import frame_sampling, pose_augment, poses, skeletons
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.config import Data

# Where an absent person stands (px): outside every heatmap, mirrored or not.
ABSENT = -1e4

Streams = tuple[str, ...]  # "rgb", "pose" or both, in this order


def class_names(data: Data, count: int) -> tuple[str, ...]:
    """Names from the given file, else from the annotations, else numbers."""
    path = data.class_names
    if not path:
        stated: tuple[str, ...] = ()
        if pathlib.Path(data.annotations).is_file():
            stated = records.class_names(data.annotations)
        return stated if len(stated) == count else tuple(str(k) for k in range(count))
    if not pathlib.Path(path).is_file():
        raise UserError(f"config.data.class_names={path!r} does not exist")
    text = pathlib.Path(path).read_text()
    if path.endswith(".json"):
        try:
            names = tuple(map(str, json.loads(text)["classes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"config.data.class_names={path!r}: needed: JSON with a list 'classes'"
            ) from error
    else:
        names = tuple(line for line in text.splitlines() if line.strip())
    if path.endswith(".json") and len(names) != count:
        raise UserError(
            f"the run of {path} has {len(names)} classes ({', '.join(names[:2])} ...), this config "
            f"{count} (config.model.classes); give the --config and the fields it was trained with"
        )
    schema.require(
        len(names) == count, "data.class_names", f"{len(names)} names", f"{count} (model.classes)"
    )
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
    clips = records.read(
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
    skeleton: skeletons.Skeleton,
    clip: Clip,
    rng: np.random.Generator,
    stage_data: Any,
) -> dict[str, np.ndarray]:
    """One training example's arrays (see the table above), one draw shared by both streams.

    Raises:
      UserError: the video cannot be read, or has far fewer frames than annotated.
    """
    rgb, pose = ("rgb" in streams), ("pose" in streams)
    frames, keypoint, score, size = None, None, None, clip.size
    if rgb:
        with Video(clip.video) as video:
            at = sample(data, streams, frame_count(clip, video.frames), 1, rng)
            wanted, where = np.unique(at["rgb"], return_inverse=True)
            frames = video.read(wanted)[where.reshape(-1)]
            size = video.size
    else:
        at = sample(data, streams, clip.frames, 1, rng)
    if clip.keypoint is not None and "pose" in at:
        assert clip.score is not None
        steps = at["pose"].reshape(-1)
        keypoint, score = poses.choose_people(clip.keypoint, clip.score, data.people)
        keypoint = geometry.rescale(keypoint[:, steps], clip.size, size)
        score = score[:, steps]
    if data.compact and keypoint is not None:
        box = geometry.compact_box(keypoint, size, data.padding, pad=data.imgpad)
        frames, keypoint, size = geometry.crop(frames, keypoint, box, keep_zeros=True)
    frames, keypoint, score, size = _augment(
        data, skeleton, frames, keypoint, score, size, rng, stage_data
    )
    found: dict[str, Any] = {"label": np.int32(clip.label)}
    if rgb:
        found["rgb"] = np.ascontiguousarray(frames)
    if pose:
        assert keypoint is not None and score is not None
        keypoint, score = poses.pad_people(keypoint, score, data.people, ABSENT)
        found |= {"keypoint": keypoint.astype(np.float32), "score": score.astype(np.float32)}
    return found


def frame_count(clip: Clip, decoded: int) -> int:
    """Frames to sample from; annotation and video may differ by a frame or two at the end."""
    if not clip.frames:
        return decoded
    if decoded < clip.frames - max(2, clip.frames // 20):
        raise UserError(
            f"{clip.video}: {decoded} frames, but the annotation of {clip.id!r} has {clip.frames}; "
            "allowed: up to 5 % (or 2) fewer"
        )
    return min(decoded, clip.frames)


def sample(
    data: Data, streams: Streams, frames: int, clips: int, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """Frame numbers i64[clips, length] of each stream: drawn from `rng`, or (None) evaluation's."""

    def draw(length: int) -> np.ndarray:
        interval = (data.interval[0], data.interval[1])
        if data.sampling == "dense":
            return frame_sampling.dense(frames, length, data.stride, clips, rng)
        if rng is not None:
            return np.stack(
                [frame_sampling.uniform(frames, length, rng, interval) for _ in range(clips)]
            )
        return frame_sampling.uniform_views(frames, length, clips)

    if streams == ("rgb", "pose") and data.aligned:
        pose = draw(data.pose_frames)
        return {"pose": pose, "rgb": frame_sampling.aligned(pose, data.rgb_frames)}
    found = {}
    if "rgb" in streams:
        found["rgb"] = draw(data.rgb_frames)
        # Poses that an RGB-only model does not see still place its crop.
        found["pose"] = found["rgb"]
    if "pose" in streams:
        found["pose"] = draw(data.pose_frames)
    return found


def _augment(
    data: Data,
    skeleton: skeletons.Skeleton,
    frames: Any,
    keypoint: Any,
    score: Any,
    size: tuple[int, int],
    rng: np.random.Generator,
    stage_data: Any,
) -> tuple[Any, Any, Any, tuple[int, int]]:
    """Training geometry and colour: resize, random crop, resize, mirror, jitter."""
    side = (stage_data.size, stage_data.size)
    if stage_data.augment == "full" and data.short:
        new = geometry.short_side(size, int(rng.integers(data.short[0], data.short[1] + 1)))
        frames, keypoint, size = geometry.resize(frames, keypoint, size, new)
        box = geometry.offset_box(size, side, rng)
        frames, keypoint, size = geometry.crop(frames, keypoint, box)
    elif stage_data.augment == "full":
        new = geometry.short_side(size, data.resize) if data.keep_ratio else (data.resize,) * 2
        frames, keypoint, size = geometry.resize(frames, keypoint, size, new)
        area, aspect = (data.area[0], data.area[1]), (data.aspect[0], data.aspect[1])
        box = geometry.random_box(size, rng, area, aspect)
        frames, keypoint, size = geometry.crop_resize(frames, keypoint, box, side)
    elif data.keep_ratio:
        new = geometry.short_side(size, stage_data.size)
        frames, keypoint, size = geometry.resize(frames, keypoint, size, new)
        frames, keypoint, size = geometry.crop(frames, keypoint, geometry.centre_box(size, side))
    else:
        frames, keypoint, size = geometry.resize(frames, keypoint, size, side)
    if stage_data.augment != "none" and rng.random() < data.flip:
        swap = skeleton.swap
        frames, keypoint, score = geometry.flip(frames, keypoint, score, size, swap)
    if stage_data.augment == "full":
        if frames is not None and any(data.jitter):
            brightness, contrast, saturation, hue = data.jitter
            colour = color.draw_colour(rng, brightness, contrast, saturation, hue)
            frames = color.jitter(frames, colour)
        if keypoint is not None and frames is None:
            # Only where no frames have to move along.
            change = pose_augment.draw_warp(rng, data.rotate, data.stretch, data.shift)
            keypoint = pose_augment.warp(keypoint, size, change)
            keypoint = pose_augment.shake(keypoint, data.noise, rng)
    return frames, keypoint, score, size


def audit(streams: Streams, clip: Clip) -> str:
    """Opens the video of a clip and reads its ends: "" or what is wrong with it."""
    if "rgb" not in streams:
        return ""
    try:
        with Video(clip.video) as video:
            frame_count(clip, video.frames)
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
            what = f"{len(ids)} ids and {len(videos)} videos"
            findings.append(
                f"{one} and {other} share {what}, as {min(ids or videos)!r}: what is trained on is "
                "tested"
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

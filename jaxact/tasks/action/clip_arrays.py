"""One clip: which of its frames are taken, and the arrays of a training example.

Everything drawn at random comes from the generator given, and both streams of an example share one
draw of the geometry. `eval_views` makes the arrays of evaluation from the same frame numbers.
"""

from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data import color, geometry
from jaxact.data.video import Video
from jaxact.tasks.action import frame_sampling, pose_augment, poses
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.config import Data
from jaxact.tasks.action.skeletons import Skeleton

# Where an absent person stands (px): outside every heatmap, mirrored or not.
ABSENT = -1e4

Rng = np.random.Generator
Streams = tuple[str, ...]  # "rgb", "pose" or both, in this order


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
    data: Data, streams: Streams, frames: int, clips: int, rng: Rng | None
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
    numbers = {"rgb": draw(data.rgb_frames)} if "rgb" in streams else {}
    # Poses that an RGB-only model does not see still place its crop.
    numbers["pose"] = draw(data.pose_frames) if "pose" in streams else numbers["rgb"]
    return numbers


def training_example(
    data: Data, streams: Streams, skeleton: Skeleton, clip: Clip, rng: Rng, stage_data: Any
) -> dict[str, np.ndarray]:
    """The arrays of one training example; the table of them is in `task.py`.

    Raises:
      UserError: the video cannot be read, or has far fewer frames than annotated.
    """
    frames, keypoint, score, size = None, None, None, clip.size
    if "rgb" in streams:
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
    arrays: dict[str, Any] = {"label": np.int32(clip.label)}
    if "rgb" in streams:
        arrays["rgb"] = np.ascontiguousarray(frames)
    if "pose" in streams:
        assert keypoint is not None and score is not None
        keypoint, score = poses.pad_people(keypoint, score, data.people, ABSENT)
        arrays |= {"keypoint": keypoint.astype(np.float32), "score": score.astype(np.float32)}
    return arrays


def _augment(
    data: Data,
    skeleton: Skeleton,
    frames: Any,
    keypoint: Any,
    score: Any,
    size: tuple[int, int],
    rng: Rng,
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
        frames, keypoint, score = geometry.flip(frames, keypoint, score, size, skeleton.swap)
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

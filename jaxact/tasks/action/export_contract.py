"""What an exported recogniser takes: one view of a clip, and how a file becomes that.

`eval_views` does it. These are the same steps in words and numbers, for other programs.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxact.data import geometry
from jaxact.task import Port
from jaxact.tasks.action import dataset, eval_views
from jaxact.tasks.action.clip_arrays import ABSENT, Streams
from jaxact.tasks.action.config import Data
from jaxact.tasks.action.skeletons import Skeleton


def inputs(data: Data, streams: Streams, skeleton: Skeleton) -> dict[str, Port]:
    """The arrays of one view, without the label."""
    side = data.test_size
    place = (
        f"px (x, y) in the crop of {side} px; an absent person stands at {ABSENT:g}; axes person, "
        "frame, joint, xy"
    )
    meanings = {
        "rgb": (0, 255, "RGB frames of the crop; axes frame, row, column, colour"),
        "keypoint": (0, side, place),
        "score": (0, 1, "confidence of each joint, 0 = absent; axes person, frame, joint"),
    }
    ports = {}
    for name, (shape, dtype) in dataset.shapes(data, streams, skeleton, None, "predict").items():
        if name in meanings:
            low, high, meaning = meanings[name]
            ports[name] = Port(shape[1:], np.dtype(dtype), meaning, low, high)  # one of the views
    return ports


def preprocessing(data: Data, streams: Streams, skeleton: Skeleton) -> dict[str, Any]:
    """The steps before the program, in their order, and those inside it."""
    steps: dict[str, Any] = {
        "frames": _frames(data, streams),
        "crop": _crop(data),
        "resize": _resize(data),
        "inside_the_program": _inside(data, streams),
        "views": {
            **dataclasses.asdict(eval_views.spec(data, "predict")),
            "meaning": "clips x crops (x 2 with the mirror image) of one video, each a call of the "
            "program; their scores are averaged",
            "averaged": "probabilities" if data.average == "prob" else "logits",
        },
    }
    if "pose" in streams:
        steps["skeleton"] = {
            "name": skeleton.name,
            "joints": list(skeleton.joints),
            "mirror": list(skeleton.swap),
            "people": f"the {data.people} with the highest mean score",
        }
    return steps


def _frames(data: Data, streams: Streams) -> dict[str, Any]:
    rule: dict[str, Any] = {"sampling": data.sampling}
    if data.sampling == "dense":
        rule["stride"] = data.stride
        rule["meaning"] = (
            "frames `stride` apart; one clip: the middle one, several: spread evenly from the "
            "first frame to the last possible; past the end it starts again"
        )
    else:
        rule["meaning"] = (
            "one frame of each of n equal parts, drawn with numpy RandomState(255) for each video; "
            "a shorter video starts again"
        )
    lengths = {"rgb": data.rgb_frames, "pose": data.pose_frames}
    rule |= {stream: lengths[stream] for stream in streams}
    if len(streams) == 2:
        every = f"the first of every {data.pose_frames // data.rgb_frames} pose frames"
        rule["rgb_from_pose"] = every if data.aligned else "sampled independently"
    return rule


def _crop(data: Data) -> dict[str, Any]:
    if not data.compact:
        return {"compact": False}
    return {
        "compact": True,
        "meaning": "where poses are known: the square around all joints of the sampled frames",
        "larger_on_each_side_by": data.padding,
        "may_leave_the_image": data.imgpad,
        "outside": "black",
        "whole_frame_if": "no joint is detected, or the joints span less than "
        f"{geometry.THRESHOLD} px in width or in height; a coordinate of 0 is no joint",
        "leaves_the_image_at_most_by": f"{geometry.REACH} of its widths and heights",
    }


def _resize(data: Data) -> dict[str, Any]:
    side = data.test_size
    if not data.keep_ratio:
        return {"to": [side, side], "meaning": "height and width, whatever the ratio; bilinear"}
    crops = eval_views.spec(data, "predict").crops
    which = "the middle" if crops == 1 else "both ends and the middle"
    return {
        "short_side": side,
        "crop": [side, side],
        "meaning": f"short side, keeping the ratio, bilinear; then {which}",
    }


def _inside(data: Data, streams: Streams) -> dict[str, Any]:
    """What the program does itself, so that nobody does it twice."""
    steps: dict[str, Any] = {}
    if "rgb" in streams:
        steps["normalise"] = {
            "mean": list(data.mean),
            "std": list(data.std),
            "meaning": "(rgb - mean) / std, channels R, G, B of 0..255",
        }
    if "pose" in streams:
        steps["heatmaps"] = {
            "kind": data.heatmap,
            "scale": data.scale,
            "sigma": data.sigma,
            "peak": "the score of the joint" if data.use_score else 1,
            "meaning": "keypoints become Gaussian maps; scale is map px / crop px, sigma in map px",
        }
    return steps

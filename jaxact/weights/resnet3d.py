"""Names of 3-D ResNets, RGBPoseConv3D and C3D in the code bases that publish weights.

Sources: open-mmlab/mmaction2 and kennymckormick/pyskl, whose names agree (SlowOnly, PoseC3D,
RGBPoseConv3D; C3D is PYSKL's), torchvision and timm (2-D ResNets with bottlenecks).
All targets are those of `models.rgbpose.ConvRecognizer`.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.weights import convert, pcan
from jaxact.weights.convert import Report
from jaxact.weights.table import (
    Flat,
    Rule,
    Table,
    Tensors,
    batch_norm,
    conv,
    dense,
    kernel,
    lone_stream,
    top_or_head,
)


def transposed(x: np.ndarray) -> np.ndarray:
    """A transposed convolution, in torch's order of taps: [i, o, t, h, w] -> [t, h, w, i, o]."""
    return x.transpose(2, 3, 4, 0, 1)


def one_frame(x: np.ndarray) -> np.ndarray:
    """A convolution of single frames: [o, i, h, w] -> [1, h, w, i, o]."""
    return kernel(x)[None]


_BLOCK = (("a", "conv1"), ("b", "conv2"), ("c", "conv3"), ("shortcut", "downsample"))


def _path(prefix: str, stream: str) -> tuple[Rule, ...]:
    """The rules of one ResNet in MMAction2's names."""
    theirs, ours = f"{prefix}layer{{s-1}}.{{j}}.", f"{stream}/res{{s}}/block{{j}}/"
    rows = [(f"{prefix}conv1", f"{stream}/stem/conv", f"{stream}/stem/bn")]
    rows += [(theirs + their, ours + our, f"{ours}{our}_bn") for our, their in _BLOCK]
    return tuple(
        rule
        for source, target, norm in rows
        for rule in (*conv(f"{source}.conv", target), *batch_norm(f"{source}.bn", norm))
    )


def _part(path: str) -> str:
    """A whole path, all exchanges, or one layer of the head."""
    name = top_or_head(path)
    return "laterals" if name.startswith("lateral") else name


def extend_inputs(flat: Flat, wanted: Flat) -> tuple[Flat, tuple[str, ...]]:
    """Kernels of paths trained alone, for paths that also receive channels of the other one.

    The received channels come last, so zeros are appended to the inputs of the first and the
    shortcut convolutions behind each exchange: the merged network starts with the answers of its
    two parts. Returns the variables and notes for a report. Source: the merge of MMAction2's
    RGBPoseConv3D (`merge_rgbpose`).
    """
    grown = []
    if any(_part(path) == "laterals" for path in wanted):
        for path, value in flat.items():
            if path not in wanted or not re.search(r"/block0/(a|shortcut)/kernel$", path):
                continue
            old, new = tuple(value.shape), tuple(wanted[path].shape)
            more = new[-2] - old[-2] if len(new) == len(old) == 5 else 0
            if more > 0 and old[:3] + old[4:] == new[:3] + new[4:]:
                zeros = np.zeros((*old[:3], more, old[4]), value.dtype)
                flat = {**flat, path: np.concatenate([value, zeros], 3)}
                grown.append(f"{path} ({old[3]} to {new[3]})")
    if not grown:
        return flat, ()
    return flat, (f"input channels extended with zeros: {', '.join(grown)}",)


def _inflate(flat: Flat, wanted: Flat) -> tuple[Flat, tuple[str, ...]]:
    """2-D kernels repeated over the frames of 3-D ones and divided by their number."""
    count = 0
    for path, value in flat.items():
        if path in wanted and len(wanted[path].shape) == value.ndim == 5:
            frames = wanted[path].shape[0]
            if frames > value.shape[0] == 1:
                flat = {**flat, path: np.repeat(value, frames, 0) / frames}
                count += 1
    flat, notes = extend_inputs(flat, wanted)
    return flat, (*notes, *((f"{count} 2-D kernels inflated in time",) * (count > 0)))


_table = functools.partial(Table, heads=pcan.HEADS, part=_part, adapt=extend_inputs)

RGBPOSE = _table(
    name="RGBPoseConv3D",
    rules=(
        *_path("backbone.rgb_path.", "rgb"),
        *_path("backbone.pose_path.", "pose"),
        *conv("backbone.rgb_path.layer{i+2}_lateral.conv", "lateral{i}/to_rgb"),
        Rule(
            ("backbone.pose_path.layer{i+1}_lateral.conv.weight",),
            "params/lateral{i}/to_pose/kernel",
            transposed,
        ),
        *batch_norm("backbone.pose_path.layer{i+1}_lateral.bn", "lateral{i}/to_pose_bn"),
        *pcan.RULES,  # of which the original has the two fine classifiers
    ),
    optional=pcan.OPTIONAL,
)


@functools.cache
def slowonly(stream: str) -> Table:
    """One 3-D ResNet with its linear head: SlowOnly, PoseC3D, `rgb_only`, `pose_only`."""
    return _table(
        name="MMAction2 SlowOnly",
        rules=(*_path("backbone.", stream), *dense("cls_head.fc_cls", f"head/{stream}")),
    )


@functools.cache
def c3d(stream: str) -> Table:
    """C3D of PYSKL with its linear head."""
    rules: list[Rule] = []
    for letter in "ab":
        source, target = f"backbone.conv{{s}}{letter}", f"{stream}/conv{{s}}{letter}"
        rules += conv(f"{source}.conv", f"{target}/conv")
        rules += batch_norm(f"{source}.bn", f"{target}/bn")
    return _table(name="PYSKL C3D", rules=(*rules, *dense("cls_head.fc_cls", f"head/{stream}")))


def _images() -> Table:
    theirs, ours = "layer{s-1}.{j}.", "rgb/res{s}/block{j}/"
    rows = [("conv1", "bn1", "rgb/stem/conv", "rgb/stem/bn")]
    rows += [
        (f"{theirs}conv{n}", f"{theirs}bn{n}", ours + our, f"{ours}{our}_bn")
        for n, our in enumerate("abc", 1)
    ]
    shortcut = (f"{theirs}downsample.0", f"{theirs}downsample.1")
    rows.append((*shortcut, f"{ours}shortcut", f"{ours}shortcut_bn"))
    rules: list[Rule] = []
    for source, norm, target, target_norm in rows:
        rules.append(Rule((f"{source}.weight",), f"params/{target}/kernel", one_frame))
        rules += batch_norm(norm, target_norm)
    return _table(
        name="2-D ResNet of torchvision or timm",
        rules=(*rules, *dense("fc", "head/rgb")),
        adapt=_inflate,
    )


IMAGES = _images()  # for the RGB path, bottleneck ResNets only


def tables(tensors: Tensors, target: Mapping[str, Any]) -> Sequence[Table]:
    """Every table; a lone network is for the target's only stream, or told by its channels."""
    stems = (tensors.get(f"backbone.{name}.conv.weight") for name in ("conv1", "conv1a"))
    stream = lone_stream(next((stem for stem in stems if stem is not None), None), target)
    return RGBPOSE, slowonly(stream), c3d(stream), IMAGES


def load(path: str | Path, target: Mapping[str, Any], **options: Any) -> tuple[dict, Report]:
    """`convert.load` for a ConvRecognizer's variables, with the tables of this file.

    A network trained alone fills its path of an RGBPoseConv3D target (`extend_inputs`), a 2-D
    ResNet the RGB path, inflated in time; the report says so.
    """
    return convert.load(path, target, tables, **options)

"""Names of X3D, X-Shift and the two-stream recogniser in the code bases that publish weights.

Sources: facebookresearch/SlowFast, facebookresearch/pytorchvideo, open-mmlab/mmaction2 (X3D),
ahmed-nady/Multimodal-Action-Recognition (EPAM-Net), 9527haoyunlai/PCANetwork (PCAN head).
All targets are those of `models.recognizer.Recognizer`.
"""

import functools
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
    frame_kernel,
    kernel,
    lone_stream,
    pointwise,
)

# Our name | SlowFast | PyTorchVideo | MMAction2, after the backbone's prefix. PyTorchVideo's stem
# names are swapped: its conv_t is spatial. Stages count from res2 = s2 = blocks.1 = layer1.
_CONVOLUTIONS = (
    ("stem/conv_s", "s1.pathway0_stem.conv_xy", "blocks.0.conv.conv_t", "conv1_s.conv"),
    ("stem/conv_t", "s1.pathway0_stem.conv", "blocks.0.conv.conv_xy", "conv1_t.conv"),
    ("conv5", "head.conv_5", "blocks.5.pool.pre_conv", "conv5.conv"),
)
_NORMS = (
    ("stem/bn", "s1.pathway0_stem.bn", "blocks.0.norm", "conv1_t.bn"),
    ("conv5_bn", "head.conv_5_bn", "blocks.5.pool.pre_norm", "conv5.bn"),
)
_STAGE = (
    "res{s}/block{j}",
    "s{s}.pathway0_res{j}",
    "blocks.{s-1}.res_blocks.{j}",
    "layer{s-1}.{j}",
)
_BLOCK_CONVOLUTIONS = (
    ("a", "branch2.a", "branch2.conv_a", "conv1.conv"),
    ("b", "branch2.b", "branch2.conv_b", "conv2.conv"),
    ("c", "branch2.c", "branch2.conv_c", "conv3.conv"),
    ("shortcut", "branch1", "branch1_conv", "downsample.conv"),
)
_BLOCK_NORMS = (
    ("a_bn", "branch2.a_bn", "branch2.norm_a", "conv1.bn"),
    ("b_bn", "branch2.b_bn", "branch2.norm_b.0", "conv2.bn"),
    ("c_bn", "branch2.c_bn", "branch2.norm_c", "conv3.bn"),
    ("shortcut_bn", "branch1_bn", "branch1_norm", "downsample.bn"),
)
_BLOCK_SE = (
    ("se/fc1", "branch2.se.fc1", "branch2.norm_b.1.block.0", "se_module.fc1"),
    ("se/fc2", "branch2.se.fc2", "branch2.norm_b.1.block.2", "se_module.fc2"),
)
_SLOWFAST, _PYTORCHVIDEO, _MMACTION2 = 1, 2, 3


def _backbone(naming: int, stream: str, prefix: str = "", shift: bool = False) -> tuple[Rule, ...]:
    """The rules of one backbone; `shift` is X-Shift, whose stem has its BN on the only conv."""
    rules: list[Rule] = []
    for row in _CONVOLUTIONS:
        if not (shift and row[0] == "stem/conv_t"):
            rules += conv(prefix + row[naming], f"{stream}/{row[0]}")
    for row in _NORMS:
        source = row[naming].replace("conv1_t", "conv1_s") if shift else row[naming]
        rules += batch_norm(prefix + source, f"{stream}/{row[0]}")
    ours, theirs = f"{stream}/{_STAGE[0]}/", f"{prefix}{_STAGE[naming]}."
    for row in _BLOCK_CONVOLUTIONS:
        rules += conv(theirs + row[naming], ours + row[0])
    for row in _BLOCK_NORMS:
        rules += batch_norm(theirs + row[naming], ours + row[0])
    for row in _BLOCK_SE:
        rules += dense(theirs + row[naming], ours + row[0], pointwise(3))
    return tuple(rules)


def _fit(flat: Flat, wanted: Flat) -> tuple[Flat, tuple[str, ...]]:
    """X3D weights for an X-Shift target, and the one BN that PyTorchVideo does not have."""
    notes = []
    for stream in ("rgb", "pose"):
        temporal = f"params/{stream}/stem/conv_t/kernel"
        if temporal in flat and temporal not in wanted:
            flat = _summed(flat, f"params/{stream}/")
            notes.append(f"{stream}: X3D kernels summed over time for X-Shift")
        first = f"{stream}/res2/block0/shortcut"
        norm = {path for path in wanted if path.split("/", 1)[1].startswith(f"{first}_bn/")}
        if norm and f"params/{first}/kernel" in flat and not norm & flat.keys():
            # eps is inside the square root: this scale makes the evaluated BN the identity.
            values = {"scale": np.sqrt(1 + 1e-5), "bias": 0.0, "mean": 0.0, "var": 1.0}
            for path in norm:
                value = np.float32(values[path.rsplit("/", 1)[1]])
                flat = {**flat, path: np.full(wanted[path].shape, value)}
            notes.append(f"{first}_bn: absent in PyTorchVideo, set to the identity (evaluation)")
    return flat, tuple(notes)


def _summed(flat: Flat, root: str) -> Flat:
    """Variables of one X3D backbone as X-Shift's: temporal kernels summed, the rest unchanged.

    The stem's 1x3x3 kernel is multiplied by the sum of its 5x1x1 kernel for each channel, 3x3x3
    depthwise kernels become 1x3x3. Equal to X3D on a clip that does not move, away from its ends
    (X3D pads with zeros there) and with the shift off. `root`: "params/rgb/".
    """
    summed = {}
    for path, value in flat.items():
        if path == f"{root}stem/conv_s/kernel":
            # conv_t is depthwise, so its tap sum is one factor for each output channel.
            value = value * flat[f"{root}stem/conv_t/kernel"].sum(0)[None]
        elif path.startswith(f"{root}res") and path.endswith("/b/kernel"):
            value = value.sum(0, keepdims=True)
        if path != f"{root}stem/conv_t/kernel":
            summed[path] = value
    return summed


_table = functools.partial(Table, heads=pcan.HEADS, adapt=_fit)


def _two_streams() -> tuple[Rule, ...]:
    rgb = _backbone(_MMACTION2, "rgb", "rgb_backbone.", shift=True)
    return rgb + _backbone(_MMACTION2, "pose", "pose_backbone.", shift=True)


SLOWFAST = _table(
    name="SlowFast X3D",
    rules=(
        *_backbone(_SLOWFAST, "rgb"),
        Rule(("head.lin_5.weight",), "params/head/rgb_lin5/kernel", pointwise(3)),
        *dense("head.projection", "head/rgb"),
    ),
)
PYTORCHVIDEO = _table(
    name="PyTorchVideo X3D",
    rules=(
        *_backbone(_PYTORCHVIDEO, "rgb"),
        Rule(("blocks.5.pool.post_conv.weight",), "params/head/rgb_lin5/kernel", pointwise(3)),
        *dense("blocks.5.proj", "head/rgb"),
    ),
)
EPAM = _table(
    name="EPAM-Net",
    rules=(
        *_two_streams(),
        *dense("rgb_cls_head.fc_cls", "head/rgb"),
        *dense("pose_cls_head.fc_cls", "head/pose"),
        Rule(
            ("attention_module.spatial.conv.weight",),
            "params/attention/spatial/kernel",
            frame_kernel,
        ),
        *batch_norm("attention_module.spatial.bn", "attention/spatial_bn"),
        Rule(
            ("attention_module.conv_temporal_attention.weight",),
            "params/attention/temporal/kernel",
            kernel,
        ),
    ),
)
PCAN = _table(
    name="PCAN RGB + pose X3D",
    rules=(*_two_streams(), *pcan.RULES),
    optional=pcan.OPTIONAL,
)


@functools.cache
def mmaction2(stream: str) -> Table:
    """X3D of MMAction2 as the given stream."""
    return _table(
        name="MMAction2 X3D",
        rules=(
            *_backbone(_MMACTION2, stream, "backbone."),
            *conv("cls_head.fc1", f"head/{stream}_lin5"),
            *dense("cls_head.fc2", f"head/{stream}"),
        ),
    )


@functools.cache
def xshift(stream: str) -> Table:
    """One X-Shift backbone with its linear head, as EPAM-Net's code trains each stream alone."""
    return _table(
        name="MMAction2 X-Shift",
        rules=(
            *_backbone(_MMACTION2, stream, "backbone.", shift=True),
            *dense("cls_head.fc_cls", f"head/{stream}"),
        ),
    )


@functools.cache
def pyskl(stream: str) -> Table:
    """PYSKL's X3D on heatmaps: X3D with a linear head."""
    return _table(
        name="PYSKL X3D",
        rules=(
            *_backbone(_MMACTION2, stream, "backbone."),
            *dense("cls_head.fc_cls", f"head/{stream}"),
        ),
    )


def tables(tensors: Tensors, target: Mapping[str, Any]) -> Sequence[Table]:
    """Every table; a lone backbone is for the target's only stream, or told by its channels."""
    stream = lone_stream(tensors.get("backbone.conv1_s.conv.weight"), target)
    return (
        *(SLOWFAST, PYTORCHVIDEO, mmaction2(stream), xshift(stream), pyskl(stream)),
        *(EPAM, PCAN),
    )


def load(path: str | Path, target: Mapping[str, Any], **options: Any) -> tuple[dict, Report]:
    """`convert.load` for a Recognizer's variables, with the tables of this file.

    X3D weights for an X-Shift target are summed over time (`_summed`); the report says so.
    """
    return convert.load(path, target, tables, **options)

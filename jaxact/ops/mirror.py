"""Mirror images of clips and poses under jit, of two kinds that differ by one pixel."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxact.ops import heatmap


def flipped(batch: dict[str, Any], swap: Sequence[int], width: int) -> dict[str, Any]:
    """Mirrors the frames "rgb" u8[..., h, w, 3] and the joints "keypoint" f32[..., j, 2], "score".

    Joint i is taken from `swap[i]` (left and right), with x -> width - x; undetected joints (x = 0)
    stay. Frames send column x to w - 1 - x, joints x to w - x: one pixel apart, as in the
    references. Source: MMAction2 `Flip`.
    """
    streams = {}
    if "rgb" in batch:
        streams["rgb"] = batch["rgb"][..., ::-1, :]
    if "keypoint" in batch:
        order = jnp.asarray(swap)
        point = batch["keypoint"][..., order, :]
        x = jnp.where(point[..., 0] != 0, width - point[..., 0], 0.0)
        streams["keypoint"] = jnp.stack([x, point[..., 1]], -1)
        streams["score"] = batch["score"][..., order]
    return streams


def doubled(streams: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Mirrors the frames "rgb" f32[..., h, w, 3] and the heatmaps "pose" f32[..., h, w, c].

    "rgb" may be None. Both send x to w - 1 - x; map i is taken from `order[i]` (left and right).
    Source: GeneratePoseTarget's `double` of MMAction2, which has it for heatmaps alone.
    """
    rgb = streams["rgb"]
    return {
        **streams,
        "rgb": None if rgb is None else rgb[..., ::-1, :],
        "pose": heatmap.mirrored(streams["pose"], order),
    }


def map_order(kind: str, joints: Sequence[int], limbs: Sequence[int]) -> tuple[int, ...]:
    """The order of maps of a kind (joints, limbs, both) in a mirror, from those of its parts."""
    both = (*joints, *(len(joints) + limb for limb in limbs))
    return {"joints": tuple(joints), "limbs": tuple(limbs), "both": both}[kind]

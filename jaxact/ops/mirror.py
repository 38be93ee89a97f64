"""Mirror images of clips and poses under jit, of two kinds that differ by one pixel."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxact.ops import heatmap


def flipped(view: dict[str, Any], swap: Sequence[int], width: int) -> dict[str, Any]:
    """Mirrored frames u8[..., h, w, 3] and joints: x -> width - x, left and right trading places.

    Undetected joints (x = 0) stay. Frames send column x to w - 1 - x, joints x to w - x: one pixel
    apart, as in the references. Source: MMAction2 `Flip`.
    """
    found = {}
    if "rgb" in view:
        found["rgb"] = view["rgb"][..., ::-1, :]
    if "keypoint" in view:
        order = jnp.asarray(swap)
        point = view["keypoint"][..., order, :]
        x = jnp.where(point[..., 0] != 0, width - point[..., 0], 0.0)
        found["keypoint"] = jnp.stack([x, point[..., 1]], -1)
        found["score"] = view["score"][..., order]
    return found


def doubled(streams: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Mirrored frames f32[..., h, w, 3] and heatmaps f32[..., h, w, c], both x -> w - 1 - x.

    `order` says which map each map becomes (left and right). Source: GeneratePoseTarget's `double`
    of MMAction2, which has it for heatmaps alone.
    """
    found = dict(streams)
    if found["rgb"] is not None:
        found["rgb"] = found["rgb"][..., ::-1, :]
    found["pose"] = heatmap.mirrored(found["pose"], order)
    return found


def map_order(kind: str, joints: Sequence[int], limbs: Sequence[int]) -> tuple[int, ...]:
    """The order of maps of a kind (joints, limbs, both) in a mirror, from those of its parts."""
    both = (*joints, *(len(joints) + limb for limb in limbs))
    return {"joints": tuple(joints), "limbs": tuple(limbs), "both": both}[kind]

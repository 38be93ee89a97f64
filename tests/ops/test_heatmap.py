"""Heatmaps against the reference's volumes and against a plain loop over people and pixels."""

import functools
import math

import jax
import numpy as np
import pytest

from jaxact.ops import heatmap
from jaxact.tasks.action.clip_arrays import ABSENT
from jaxact.tasks.action.skeletons import COCO17, COCO17_NTU

SIZE = (28, 36)
LIMBS = functools.partial(heatmap.limbs, pairs=COCO17.limbs)
LARGE = {"size": (113, 142), "scale": 0.25}  # with keypoints four times as large


@pytest.fixture(scope="module")
def pose(golden):
    with np.load(golden / "data/heatmap_joint_mmaction2.npz") as file:
        return file["keypoint"], file["keypoint_score"]


def stored(golden, file, name):
    with np.load(golden / f"data/heatmap_{file}.npz") as arrays:
        return arrays[f"out/{name}"]


def draw(function, keypoint, score, size=SIZE, **options):
    """The compiled function's maps in the reference's layout [t, c, h, w]."""
    compiled = jax.jit(functools.partial(function, size=size, **options))
    return np.moveaxis(np.asarray(compiled(keypoint, score)), -1, -3)


JOINT_CASES = {
    "joint_s0.6": {"sigma": 0.6},
    "joint_s0.7": {"sigma": 0.7},
    "joint_s1.0": {"sigma": 1.0},
    "joint_s2.0": {"sigma": 2.0},
    "joint_s0.6_noscore": {"sigma": 0.6, "use_score": False},
    "joint_s0.6_missing_score_key": {"sigma": 0.6},
    "joint_s0.7_scale0.25": {"sigma": 0.7, **LARGE},
    "joint_s0.6_f16": {"sigma": 0.6},
    "joint_s0.6_f64": {"sigma": 0.6},
}


@pytest.mark.parametrize("name", JOINT_CASES)
def test_joints_equal_mmaction2(golden, pose, name):
    keypoint, score = pose
    if name.endswith("missing_score_key"):
        score = np.ones_like(score)
    if name.endswith("scale0.25"):
        keypoint = keypoint * 4
    for suffix, kind in (("f16", np.float16), ("f64", np.float64)):
        if name.endswith(suffix):
            keypoint, score = keypoint.astype(kind), score.astype(kind)
    got = draw(heatmap.joints, keypoint, score, **JOINT_CASES[name])
    np.testing.assert_allclose(
        got, stored(golden, "joint_mmaction2", name), rtol=0, atol=1e-6, strict=True
    )


LIMB_CASES = {
    "limb_s0.6": ([0, 1, 2, 3], {"sigma": 0.6}),
    "limb_s1.0_noscore": ([1, 3], {"sigma": 1.0, "use_score": False}),
    "limb_s0.7_scale0.25": ([0, 3], {"sigma": 0.7, **LARGE}),
}


@pytest.mark.parametrize("name", LIMB_CASES)
def test_limbs_equal_mmaction2(golden, pose, name):
    frames, options = LIMB_CASES[name]
    keypoint, score = pose[0][:, frames], pose[1][:, frames]
    got = draw(LIMBS, keypoint * (4 if "scale" in options else 1), score, **options)
    np.testing.assert_allclose(
        got, stored(golden, "limb_mmaction2", name), rtol=0, atol=3e-6, strict=True
    )


def test_pyskl_threshold(golden, pose):
    options = {"sigma": 0.6, "threshold": 1e-3}
    joints = draw(heatmap.joints, *pose, **options)
    np.testing.assert_allclose(joints, stored(golden, "pyskl", "joint_s0.6"), rtol=0, atol=1e-6)
    limbs = draw(LIMBS, *pose, **options)
    np.testing.assert_allclose(limbs, stored(golden, "pyskl", "limb_s0.6"), rtol=0, atol=3e-6)
    assert np.abs(joints - stored(golden, "joint_mmaction2", "joint_s0.6")).max() > 5e-4


def test_joints_and_limbs_have_channels_of_their_own(golden, pose):
    both = functools.partial(heatmap.both, pairs=COCO17.limbs)
    got = draw(both, pose[0][:, [0, 3]], pose[1][:, [0, 3]], sigma=0.6)
    np.testing.assert_allclose(got, stored(golden, "epam", "both_s0.6"), rtol=0, atol=3e-6)


def test_mirrored_appended_is_mmaction2_double(golden, pose):
    maps = jax.jit(functools.partial(heatmap.joints, size=SIZE, sigma=0.6))(*pose)
    pair = np.concatenate([maps, heatmap.mirrored(maps, COCO17.swap)])
    want = stored(golden, "joint_mmaction2", "joint_s0.6_double")
    np.testing.assert_allclose(np.moveaxis(pair, -1, 1), want, rtol=0, atol=1e-6)


def test_mirrored_limbs_in_the_ntu_order(golden, pose):
    keypoint, score = pose[0][:, [0, 3]], pose[1][:, [0, 3]]
    maps = heatmap.limbs(keypoint, score, SIZE, 0.6, COCO17_NTU.limbs)
    pair = np.concatenate([maps, heatmap.mirrored(maps, COCO17_NTU.limb_swap)])
    want = stored(golden, "limb_mmaction2", "limb_s0.6_ntu_double")
    np.testing.assert_allclose(np.moveaxis(pair, -1, 1), want, rtol=0, atol=3e-6)


def test_flipped_keypoints_are_epam_double(golden, pose):
    """EPAM-Net flips the keypoints (x -> w - x) and draws again: one pixel from the mirror."""
    keypoint, score = pose
    order = np.array(COCO17.swap)
    x = keypoint[..., 0]
    flipped = np.stack([np.where(x != 0, SIZE[1] - x, x), keypoint[..., 1]], axis=-1)
    pair = np.concatenate(
        [
            draw(heatmap.joints, keypoint, score, sigma=0.6),
            draw(heatmap.joints, flipped[..., order, :], score[..., order], sigma=0.6),
        ]
    )
    want = stored(golden, "epam", "joint_s0.6_double")
    np.testing.assert_allclose(pair, want, rtol=0, atol=1e-6)


def loop(keypoint, score, size, sigma, scale, use_score, threshold, pairs):
    """The definition in float64, pixel by pixel; coordinates scaled in float32 as on the device."""
    height, width = int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)
    at = (keypoint * np.float32(scale)).astype(np.float32)
    people, frames, count = score.shape
    ends = pairs or [(j, j) for j in range(count)]
    reach = 3 * sigma  # in float64: an edge must not move by rounding
    out = np.zeros((frames, height, width, len(ends)))
    for p, t, c in np.ndindex(people, frames, len(ends)):
        first, second = ends[c]
        a, b = at[p, t, first], at[p, t, second]
        top = 1.0
        if use_score:
            top = float(min(score[p, t, first], score[p, t, second]))
            if top < np.float32(threshold):
                continue
        if float(np.sum((a - b) ** 2)) < 1:
            b, top = a, float(score[p, t, first]) if use_score else 1.0
        low, high = np.minimum(a, b) - reach, np.maximum(a, b) + reach
        for y in range(max(int(low[1]), 0), min(int(high[1]) + 1, height)):
            for x in range(max(int(low[0]), 0), min(int(high[0]) + 1, width)):
                away = np.array([x, y]) - a.astype(np.float64)
                along = b.astype(np.float64) - a
                length = along @ along
                share = min(max(away @ along / length, 0.0), 1.0) if length else 0.0
                distance = np.sum((away - share * along) ** 2)
                value = top * math.exp(-distance / (2 * sigma**2))
                out[t, y, x, c] = max(out[t, y, x, c], value)
    return out


LOOP_CASES = [
    {"sigma": 0.6, "scale": 1.0, "use_score": True, "threshold": 1e-4},
    {"sigma": 0.6, "scale": 1.0, "use_score": False, "threshold": 1e-4},
    {"sigma": 0.7, "scale": 0.5, "use_score": True, "threshold": 1e-3},
    {"sigma": 1.5, "scale": 0.25, "use_score": True, "threshold": 1e-4},
]


@pytest.mark.parametrize("options", LOOP_CASES)
@pytest.mark.parametrize("pairs", [None, COCO17.limbs[:6]])
def test_equals_a_plain_loop(options, pairs):
    size = (13, 17)
    rng = np.random.RandomState(7)
    keypoint = rng.uniform(-6, 24, (3, 2, 17, 2)).astype(np.float32)
    score = rng.choice([0.0, 5e-5, 5e-4, 0.3, 1.0], (3, 2, 17)).astype(np.float32)
    keypoint[1, 0, 1] = keypoint[1, 0, 0] + 0.3  # ends of a limb less than a pixel apart
    keypoint[2, 1] = keypoint[0, 1] + 0.5  # two people on top of each other
    keypoint[0, 0, 2] = 0.0
    if pairs is None:
        got = heatmap.joints(keypoint, score, size, **options)
    else:
        got = heatmap.limbs(keypoint, score, size, pairs=pairs, **options)
    want = loop(keypoint, score, size, pairs=pairs, **options)
    assert want.max() > 0.2
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 if pairs is None else 3e-6)


def test_window_reaches_over_the_border_by_truncation():
    """sigma 1: x = -3.9 truncates to column 0, x = -4 does not; the far side needs x - 3 < w."""
    x = np.array([-3.9, -4.0, 9.9, 11.0], np.float32)
    keypoint = np.stack([x, np.full_like(x, 2)], axis=-1)[None, None]  # [p, t, j, 2]
    maps = np.asarray(heatmap.joints(keypoint, np.ones((1, 1, 4)), (5, 8), 1.0))[0]
    drawn = [np.flatnonzero(maps[2, :, j]).tolist() for j in range(4)]
    assert drawn == [[0], [], [6, 7], []]


@pytest.mark.parametrize("sigma", [0.6, 0.7, 1.1])
def test_window_edges_do_not_depend_on_rounding(sigma):
    """Joints within a few ulp of the places where a window gains or loses a line."""
    reach = 3 * sigma
    edges = np.arange(-2, 14).repeat(2) + np.tile([reach, -reach], 16)
    x = [np.float32(edge) for edge in edges]
    for _ in range(2):
        x += [np.nextafter(v, np.float32(to)) for v in x for to in (-99, 99)]
    x = np.unique(np.array(x, np.float32))
    keypoint = np.stack([x, np.full_like(x, 2)], axis=-1)[None, None]
    maps = jax.jit(functools.partial(heatmap.joints, size=(5, 12), sigma=sigma))(
        keypoint, np.ones((1, 1, len(x)), np.float32)
    )
    first = np.trunc(x.astype(np.float64) - reach)
    last = np.trunc(x.astype(np.float64) + reach)
    column = np.arange(12)[:, None]
    np.testing.assert_array_equal(np.asarray(maps)[0, 2] > 0, (column >= first) & (column <= last))


def test_padding_people_and_empty_joints_draw_nothing():
    keypoint = np.full((2, 1, 3, 2), ABSENT, np.float32)
    keypoint[1] = np.nan
    for options in ({"use_score": False}, {"use_score": True}):
        maps = heatmap.both(keypoint, np.ones((2, 1, 3)), (8, 8), 0.6, ((0, 1), (1, 2)), **options)
        np.testing.assert_array_equal(maps, np.zeros((1, 8, 8, 5)))
    centre = np.full((1, 1, 3, 2), 4.0, np.float32)
    assert heatmap.joints(centre, np.zeros((1, 1, 3)), (8, 8), 0.6).max() == 0
    assert heatmap.joints(centre, np.zeros((1, 1, 3)), (8, 8), 0.6, use_score=False).min() == 0


def test_leading_dimensions_are_a_loop_over_clips(pose):
    keypoint = np.stack([pose[0], pose[0] + 1.5])
    score = np.stack([pose[1], pose[1] / 2])
    for function in (heatmap.joints, LIMBS):
        together = draw(function, keypoint, score, sigma=0.6)
        alone = [draw(function, k, s, sigma=0.6) for k, s in zip(keypoint, score, strict=True)]
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)

"""Whole pipelines of the reference, from the annotation to the packed tensors."""

import random

import numpy as np
import pytest

from jaxact.data import geometry
from jaxact.ops import heatmap
from jaxact.tasks.action import frame_sampling
from jaxact.tasks.action.skeletons import COCO17

MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])


@pytest.fixture(scope="module")
def pose(golden):
    return np.load(golden / "data/pipeline_pose_mmaction2.npz")


@pytest.fixture(scope="module")
def rgbpose(golden):
    return np.load(golden / "data/pipeline_rgbpose_mmaction2.npz")


def annotation(stored):
    return (
        stored["ann/keypoint_f16"].astype(np.float32),
        stored["ann/keypoint_score_f16"].astype(np.float32),
    )


def packed(stored, case, kind=""):
    """The reference's heatmaps, stored sparsely: f32[n, c, t, h, w] -> f32[n, t, h, w, c]."""
    prefix = f"{case}/{kind}"
    shape = stored[f"{case}/heatmap_shape" if kind == "heatmap_" else f"{case}/shape"]
    dense = np.zeros(int(np.prod(shape)), np.float32)
    dense[stored[prefix + "nonzero_index"]] = stored[prefix + "nonzero_value"]
    return np.moveaxis(dense.reshape(shape), 1, -1)


def train_geometry(frames, keypoint, score, size, short, seed, rng):
    """Everything after the compact crop, as the references' training pipelines do it."""
    pick = random.Random(seed)
    frames, keypoint, size = geometry.resize(frames, keypoint, size, short)
    box = geometry.random_box(size, rng, (0.56, 1.0), offset=lambda n: pick.randint(0, n))
    frames, keypoint, size = geometry.crop(frames, keypoint.astype(np.float64), box)
    frames, keypoint, size = geometry.resize(frames, keypoint, size, (56, 56))
    if rng.rand() < 0.5:
        frames, keypoint, score = geometry.flip(frames, keypoint, score, size, COCO17.swap)
    return frames, keypoint.astype(np.float32), score


def compact(frames, keypoint, size):
    box = geometry.compact_box(keypoint, size)
    return geometry.crop(frames, keypoint, box, keep_zeros=True)


@pytest.mark.parametrize(
    ("case", "length", "seed"),
    [
        ("pose_train_seed0", 12, 0),
        ("pose_train_seed1", 12, 1),
        ("pose_train_seed2", 12, 2),
        ("limb_train_seed0", 3, 0),
    ],
)
def test_pose_train(pose, case, length, seed):
    keypoint, score = annotation(pose)
    rng = np.random.RandomState(seed)
    picks = frame_sampling.uniform(keypoint.shape[1], length, rng)
    _, keypoint, size = compact(None, keypoint[:, picks], (1080, 1920))
    short = geometry.short_side(size, 64)
    _, keypoint, score = train_geometry(None, keypoint, score[:, picks], size, short, seed, rng)
    assert keypoint.shape == (2, length, 17, 2)
    limb = case.startswith("limb")
    if limb:
        maps = heatmap.limbs(keypoint, score, (56, 56), 0.6, COCO17.limbs)
    else:
        maps = heatmap.joints(keypoint, score, (56, 56), 0.6)
    # The reference draws limbs in single precision throughout.
    np.testing.assert_allclose(
        maps[None], packed(pose, case, "inputs_"), rtol=0, atol=3e-6 if limb else 3e-7
    )
    assert pose[f"{case}/label"] == 3


def test_pose_test(pose):
    keypoint, score = annotation(pose)
    views = frame_sampling.uniform_views(keypoint.shape[1], 6, 2)
    _, keypoint, size = compact(None, keypoint[:, views.ravel()], (1080, 1920))
    _, keypoint, size = geometry.resize(None, keypoint, size, geometry.short_side(size, 64))
    box = geometry.centre_box(size, (64, 64))
    _, keypoint, size = geometry.crop(None, keypoint.astype(np.float64), box)
    maps = heatmap.joints(keypoint.astype(np.float32), score[:, views.ravel()], size, 0.6)
    maps = maps.reshape(2, 6, 64, 64, 17)
    double = np.concatenate([maps, heatmap.mirrored(maps, COCO17.swap)])
    want = packed(pose, "pose_test", "inputs_")
    assert double.shape == want.shape
    np.testing.assert_allclose(double, want, rtol=0, atol=3e-7)


def clip(frames, keypoint, rgb, pose_picks):
    """The decoded frames and the keypoints brought to their size."""
    video = np.random.RandomState(640).randint(0, 256, (70, 54, 96, 3)).astype(np.uint8)
    return video[rgb], geometry.rescale(keypoint[:, pose_picks], (108, 192), (54, 96)), (54, 96)


def check_frames(stored, case, frames):
    """`frames`: u8[n, t, h, w, 3] against the reference's u8[n, 3, t, h, w]."""
    want = np.moveaxis(stored[f"{case}/imgs_u8"], 1, -1)
    assert frames.shape == want.shape
    np.testing.assert_array_equal(frames, want)


@pytest.mark.parametrize("seed", [0, 3])
def test_rgbpose_train(rgbpose, seed):
    case = f"rgbpose_train_seed{seed}"
    keypoint, score = annotation(rgbpose)
    rng = np.random.RandomState(seed)
    rgb, picks = (frame_sampling.uniform(70, length, rng) for length in (4, 8))
    frames, keypoint, size = compact(*clip(70, keypoint, rgb, picks))
    frames, keypoint, score = train_geometry(
        frames, keypoint, score[:, picks], size, (64, 64), seed, rng
    )
    check_frames(rgbpose, case, frames[None])
    maps = heatmap.joints(keypoint, score, (56, 56), 0.7, 0.25)
    want = packed(rgbpose, case, "heatmap_")
    np.testing.assert_allclose(maps[None], want, rtol=0, atol=3e-7)
    normalised(rgbpose, case, frames[None])


def test_rgbpose_test(rgbpose):
    keypoint, score = annotation(rgbpose)
    rgb, picks = (frame_sampling.uniform_views(70, length, 2).ravel() for length in (2, 8))
    frames, keypoint, size = compact(*clip(70, keypoint, rgb, picks))
    frames, keypoint, size = geometry.resize(frames, keypoint, size, (64, 64))
    frames = frames.reshape(2, 2, 64, 64, 3)
    check_frames(rgbpose, "rgbpose_test", frames)
    maps = heatmap.joints(keypoint, score[:, picks], size, 0.7, 0.25)
    want = packed(rgbpose, "rgbpose_test", "heatmap_")
    np.testing.assert_allclose(maps.reshape(want.shape), want, rtol=0, atol=3e-7)
    normalised(rgbpose, "rgbpose_test", frames)


def normalised(stored, case, frames):
    """The sample of (frames - mean) / std in the reference's [1, n, c, t, h, w]."""
    values = np.moveaxis((frames - MEAN) / STD, -1, 1)[None]
    assert list(values.shape) == stored[f"{case}/normalised_imgs/shape"].tolist()
    got = values.ravel()[:: int(stored[f"{case}/normalised_imgs/stride"])]
    want = stored[f"{case}/normalised_imgs/sample"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)

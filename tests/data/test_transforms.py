"""Crops, resizes, flips and colour against every stored array of the reference, and edges."""

import random

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.data import color, geometry, resize
from jaxact.tasks.action.skeletons import COCO17


def draw(seed, *shape):
    return np.random.RandomState(seed).randint(0, 256, (*shape, 3)).astype(np.uint8)


def within_one_level(got, want):
    assert got.shape == want.shape and got.dtype == np.uint8
    return np.abs(got.astype(int) - want).max() <= 1


COMPACT = {
    "pose/default": {"ratio": None},
    "pose/ratio1": {},
    "pose/ratio1_nopad": {"pad": False},
    "pose/ratio_pair": {"ratio": (0.7, 1.3)},
    "pose/padding0": {"ratio": None, "padding": 0.0},
    "pose/zeros_nan": {},
    "pose/offimage": {},
    "pose/offimage_nopad": {"pad": False},
    "pose/too_narrow_noop": {},
    "pose/all_zero_noop": {},
    "mm_pad": {},
    "mm_nopad": {"pad": False},
    "mm_ratio_none": {"ratio": None},
    "mm_noop": {},
}


@pytest.fixture(scope="module")
def compact(golden):
    return np.load(golden / "data/compact_mmaction2.npz")


@pytest.fixture(scope="module")
def stored(golden):
    return np.load(golden / "data/crop_resize_flip_mmaction2.npz")


def test_every_compact_case_is_covered(compact):
    assert {name.rsplit("/", 1)[0] for name in compact.files} == set(COMPACT)


@pytest.mark.parametrize("case", COMPACT)
def test_compact(compact, case):
    moving = case.startswith("mm_")
    size = (48, 64) if moving else (120, 160)
    frames = draw(613, 2, *size) if moving else None
    prefix = f"{case}/kp_" if moving else f"{case}/"
    keypoint = compact[prefix + "in"]
    given = keypoint.copy()
    box = geometry.compact_box(keypoint, size, **COMPACT[case])
    frames, keypoint, new = geometry.crop(frames, keypoint, box, keep_zeros=True)
    np.testing.assert_array_equal(keypoint, compact[prefix + "out"])
    assert keypoint.dtype == np.float32
    assert list(new) == compact[f"{case}/img_shape"].tolist()
    np.testing.assert_array_equal(given, compact[prefix + "in"])
    if moving:
        np.testing.assert_array_equal(frames, compact[f"{case}/imgs_out"])
        return
    share = np.array(box) / np.array([size[1], size[0]] * 2)  # x0, y0, x1, y1
    quadruple = compact[f"{case}/crop_quadruple"]  # x0, y0, width, height as shares
    if np.isnan(quadruple).any():
        assert box == geometry.whole(size)
    else:
        shares = [share[0], share[1], share[2] - share[0], share[3] - share[1]]
        np.testing.assert_allclose(shares, quadruple, rtol=0, atol=1e-12)


@pytest.mark.parametrize("far", [400.0, -900.0])
def test_a_joint_far_away_makes_no_picture_without_bounds(far):
    size = (48, 64)
    keypoint = np.random.default_rng(0).uniform(10, 40, (1, 3, 17, 2)).astype(np.float32)
    near = geometry.compact_box(keypoint, size)
    keypoint[0, 1, 5] = far
    x0, y0, x1, y1 = box = geometry.compact_box(keypoint, size)
    assert -128 <= x0 <= near[0] and near[2] <= x1 <= 192
    assert -96 <= y0 <= near[1] and near[3] <= y1 <= 144
    frames, _, new = geometry.crop(np.ones((3, *size, 3), np.uint8), keypoint, box)
    assert frames.shape[1:3] == new and frames.sum() == 3 * 3 * 48 * 64  # all of it is inside
    assert geometry.compact_box(keypoint[:, 1:2, 5:6] + [[0, 0], [20, 20]], size) == (0, 0, 64, 48)


def test_compact_without_a_joint_in_the_frame():
    keypoint = np.array([[[[-90.0, -80.0], [-20.0, -20.0]]]], np.float32)
    assert geometry.compact_box(keypoint, (100, 100), pad=False) == (0, 0, 100, 100)
    assert geometry.compact_box(keypoint * np.nan, (100, 100)) == (0, 0, 100, 100)


def crop_box(seed, size, area, aspect=(3 / 4, 4 / 3)):
    pick = random.Random(seed)
    rng = np.random.RandomState(seed)
    return geometry.random_box(size, rng, area, aspect, lambda n: pick.randint(0, n))


def test_random_boxes(stored):
    for name, size, area in (
        ("bbox_64x64_area0.56-1_seed0-39", (64, 64), (0.56, 1.0)),
        ("bbox_h90w40_area0.08-1_seed0-39", (90, 40), (0.08, 1.0)),
        ("bbox_h100w10_fallback_seed0-9", (100, 10), (0.56, 1.0)),
    ):
        want = stored[f"rrc/{name}"]
        got = [crop_box(seed, size, area) for seed in range(len(want))]
        np.testing.assert_array_equal(got, want)


def test_random_streams(stored):
    rng = np.random.RandomState(5)
    low, high = np.log(3 / 4), np.log(4 / 3)
    draws = np.concatenate([rng.uniform(low, high, 10), rng.uniform(0.56, 1.0, 10)])
    np.testing.assert_array_equal(draws, stored["rrc/numpy_draws_seed5_uniform_aspect_then_area"])
    pick = random.Random(5)
    offsets = [pick.randint(0, 9) for _ in range(20)]
    np.testing.assert_array_equal(offsets, stored["rrc/python_random_randint_0_9_seed5_first20"])


def test_random_resized_crop_applied(stored):
    frames = draw(622, 2, 64, 64)
    box = crop_box(11, (64, 64), (0.56, 1.0))
    assert list(box) == stored["rrc/seed11/crop_bbox"].tolist()
    got, keypoint, size = geometry.crop(frames, stored["kp"].astype(np.float64), box)
    np.testing.assert_array_equal(got, stored["rrc/seed11/imgs"])
    np.testing.assert_array_equal(keypoint, stored["rrc/seed11/kp"])
    assert size == (57, 43)
    shares = np.array([box[0], box[1], size[1], size[0]]) / 64
    np.testing.assert_allclose(shares, stored["rrc/seed11/crop_quadruple"], rtol=0, atol=1e-7)


def test_random_boxes_of_a_modern_generator():
    rng = np.random.default_rng(0)
    boxes = np.array([geometry.random_box((64, 80), rng, (0.3, 1.0)) for _ in range(200)])
    assert (boxes[:, :2] >= 0).all() and boxes[:, 2].max() == 80 and boxes[:, 3].max() == 64
    share = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (64 * 80)
    assert share.min() >= 0.28 and share.max() <= 1


def test_random_crop(stored):
    want = stored["randomcrop/h64w60_size48_seed0-19"]
    got = [
        # The reference never takes the last offset of an axis.
        geometry.offset_box((63, 59), (48, 48), np.random.RandomState(seed))
        for seed in range(20)
    ]
    np.testing.assert_array_equal(got, want)
    rng = np.random.default_rng(0)
    corners = np.array([geometry.offset_box((50, 49), (48, 48), rng)[:2] for _ in range(100)])
    assert corners.min(0).tolist() == [0, 0] and corners.max(0).tolist() == [1, 2]
    assert geometry.offset_box((48, 48), (48, 48), rng) == (0, 0, 48, 48)


def test_centre_crop(stored):
    box = geometry.centre_box((61, 66), (48, 48))
    assert list(box) == stored["centercrop/h61w66_48/bbox"].tolist()
    _, keypoint, size = geometry.crop(None, stored["kp"].astype(np.float64), box)
    np.testing.assert_array_equal(keypoint, stored["centercrop/h61w66_48/kp"])
    assert size == (48, 48)


@pytest.mark.parametrize(("case", "size"), [("wide", (32, 50)), ("tall", (50, 32))])
def test_three_crop(stored, case, size):
    boxes = geometry.three_boxes(size, (32, 32))
    np.testing.assert_array_equal(boxes, stored[f"threecrop/{case}/bbox"])
    frames = draw(624, 1, *size)
    got = np.concatenate([geometry.crop(frames, None, box)[0] for box in boxes])
    np.testing.assert_array_equal(got, stored[f"threecrop/{case}/imgs"])


RESIZES = {
    "short64": lambda size: geometry.short_side(size, 64),
    "exact56": lambda size: (56, 56),
    "fit_40x30": lambda size: geometry.scaled(size, min(40 / max(size), 30 / min(size))),
    "factor0.5": lambda size: geometry.scaled(size, 0.5),
}


@pytest.mark.parametrize("case", RESIZES)
def test_resize(stored, case):
    size = (48, 70)
    new = RESIZES[case](size)
    assert list(new) == stored[f"resize/{case}/img_shape"].tolist()
    frames, keypoint, out = geometry.resize(draw(625, 1, *size), stored["kp"], size, new)
    assert out == new
    np.testing.assert_array_equal(keypoint, stored[f"resize/{case}/kp"])
    factor = np.array([new[1] / 70, new[0] / 48], np.float32)
    np.testing.assert_array_equal(factor, stored[f"resize/{case}/scale_factor"])
    np.testing.assert_array_equal(frames[0], stored[f"resize/{case}/img_cv2_bilinear"])


def test_sizes(stored):
    for old, scale, want in zip(
        stored["resize/rescale_size_in_h_w"].tolist(),
        stored["resize/rescale_size_scale"].tolist(),
        stored["resize/rescale_size_out_h_w"].tolist(),
        strict=True,
    ):
        size = tuple(old)
        got = (
            geometry.short_side(size, max(scale))
            if min(scale) == -1
            else geometry.scaled(size, min(max(scale) / max(size), min(scale) / min(size)))
        )
        assert list(got) == want


def test_flip(stored):
    frames, keypoint, score = geometry.flip(
        draw(626, 1, 64, 64), stored["kp"], stored["kp_score"], (64, 64), COCO17.swap
    )
    np.testing.assert_array_equal(keypoint, stored["flip/kp"])
    np.testing.assert_array_equal(score, stored["flip/kp_score"])
    np.testing.assert_array_equal(frames[0], stored["flip/img"])
    decisions = [np.random.RandomState(seed).rand() < 0.5 for seed in range(40)]
    np.testing.assert_array_equal(decisions, stored["flip/decision_p0.5_seed0-39"])


@pytest.mark.parametrize("seed", range(4))
def test_colour(stored, seed):
    colour = color.draw_colour(np.random.RandomState(seed))
    assert list(colour.order) == stored[f"colorjitter/seed{seed}/fn_order"].tolist()
    got = color.jitter(draw(627, 2, 20, 24), colour)
    assert within_one_level(got, stored[f"colorjitter/seed{seed}/out"])


def test_colour_one_by_one():
    frames = draw(0, 2, 9, 7)
    same = color.jitter(frames, color.Colour())
    np.testing.assert_array_equal(same, frames)
    dark = color.jitter(frames, color.Colour(brightness=0.5))
    np.testing.assert_array_equal(dark, frames // 2)
    bright = color.jitter(frames, color.Colour(brightness=2.0))
    np.testing.assert_array_equal(bright, np.minimum(frames.astype(int) * 2, 255))
    flat = color.jitter(frames, color.Colour(contrast=0.0))
    assert all(np.ptp(frame) == 0 for frame in flat)
    grey = color.jitter(frames, color.Colour(saturation=0.0))
    assert np.ptp(grey, axis=-1).max() == 0
    red = np.zeros((1, 1, 1, 3), np.uint8)
    red[..., 0] = 200
    third = color.jitter(red, color.Colour(hue=60 / 255))  # 60 of 180 steps
    assert third.ravel().tolist() == [0, 200, 0]
    back = color.jitter(third, color.Colour(hue=-60 / 255))
    np.testing.assert_array_equal(back, red)


def linear(frames, size):
    """Bilinear interpolation in float64, written down plainly."""

    def axis(values, new, at):
        old = values.shape[at]
        where = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(where).astype(int)
        high = np.minimum(low + 1, old - 1)
        shape = [1] * values.ndim
        shape[at] = new
        weight = (where - low).reshape(shape)
        return values.take(low, at) * (1 - weight) + values.take(high, at) * weight

    return axis(axis(frames.astype(np.float64), size[0], 1), size[1], 2)


@pytest.mark.parametrize("size", [(7, 9), (9, 7), (50, 13), (13, 50), (1, 1), (40, 70), (120, 31)])
def test_resample_against_plain_interpolation(size):
    frames = draw(1, 2, 50, 31)
    got = resize.resample(frames, size)
    assert got.shape == (2, *size, 3)
    # Half a level of rounding, and what the two truncations of OpenCV lose.
    assert np.abs(got - linear(frames, size)).max() < 1


def test_resample_extremes():
    for value in (0, 255):
        frames = np.full((1, 40, 30, 3), value, np.uint8)
        for size in ((17, 90), (40, 90), (17, 30), (100, 7)):
            assert (resize.resample(frames, size) == value).all()
    corner = np.zeros((1, 2, 2, 3), np.uint8)
    corner[0, 0, 0, 1] = 255  # one channel must not leak into the others
    got = resize.resample(corner, (8, 8))
    assert got[..., 1].max() == 255 and got[..., 0].max() == got[..., 2].max() == 0


@pytest.mark.parametrize(
    "box", [(0, 0, 30, 40), (5, 3, 20, 33), (-4, -7, 25, 60), (25, 30, 90, 45)]
)
def test_crop_and_resize_in_one_pass(box):
    frames = draw(2, 3, 40, 30)
    keypoint = np.random.default_rng(0).uniform(0, 30, (1, 3, 5, 2)).astype(np.float32)
    keypoint[0, 0, 0] = 0
    for keep in (False, True):
        a, b, size = geometry.crop(frames, keypoint, box, keep)
        two = geometry.resize(a, b, size, (24, 20))
        one = geometry.crop_resize(frames, keypoint, box, (24, 20), keep)
        assert two[2] == one[2] == (24, 20)
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
        assert (one[1][0, 0, 0] == 0).all() == (keep or box[:2] == (0, 0))


def test_crop_outside_is_black():
    frames = np.full((1, 4, 4, 3), 9, np.uint8)
    out, _, size = geometry.crop(frames, None, (-2, -1, 3, 6))
    assert size == (7, 5)
    assert (out[0, 1:5, 2:] == 9).all() and out.sum() == 4 * 3 * 3 * 9
    away, _, _ = geometry.crop(frames, None, (10, 10, 12, 12))
    assert away.shape == (1, 2, 2, 3) and not away.any()
    before, _, _ = geometry.crop(frames, None, (-9, -9, -7, -7))
    assert before.shape == (1, 2, 2, 3) and not before.any()


def test_one_stream_alone():
    keypoint = np.ones((1, 1, 2, 2), np.float32)
    assert geometry.resize(None, keypoint, (10, 20), (20, 20))[0] is None
    frames = draw(0, 1, 10, 20)
    got, none, size = geometry.crop_resize(frames, None, (0, 0, 20, 10), (5, 5))
    assert none is None and size == (5, 5) and got.shape == (1, 5, 5, 3)
    assert geometry.flip(frames, None, None, (10, 20), ())[1:] == (None, None)
    assert geometry.rescale(keypoint, (10, 20), (20, 20))[0, 0, 0].tolist() == [1, 2]


def test_crops_that_do_not_fit():
    for make in (geometry.centre_box, geometry.three_boxes):
        with pytest.raises(UserError, match="crop 64x64"):
            make((60, 80), (64, 64))

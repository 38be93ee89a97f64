"""The training changes: geometry against plain arrays, colour against the golden-tested jitter."""

import dataclasses
import random

import numpy as np
import pytest
from PIL import Image

from jaxact.data import color, randaugment
from jaxact.data.color import Colour
from jaxact.tasks.crop import config
from jaxact.tasks.crop.augment import (
    Warp,
    _elastic,
    _grid,
    apply_warp,
    augmented,
    draw_colour,
    draw_warp,
    erased,
    recolour,
)
from jaxact.tasks.crop.config import Augment

STILL = Augment(
    hflip=0, vflip=0, warp=0, colour=0, blur=0, grid=0, elastic=0, operations=0, erase=0
)


def scene(side=64, seed=0):
    """u8[s, s, 3], smooth and without any symmetry."""
    cells = np.random.default_rng(seed).integers(40, 216, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(cells).resize((side, side), Image.BICUBIC))


def changed(augment, seed=0, picture=None, side=64):
    picture = scene() if picture is None else picture
    rng = np.random.default_rng(seed)
    return augmented(Image.fromarray(picture), augment, side, rng, "bilinear")


def test_with_everything_off_nothing_changes():
    np.testing.assert_array_equal(changed(STILL), scene())
    wide = np.concatenate([scene(), scene(seed=1)], 1)
    resized = Image.fromarray(wide).resize((48, 48), Image.BILINEAR)
    np.testing.assert_array_equal(changed(STILL, picture=wide, side=48), np.asarray(resized))


def test_flips_are_exact():
    across = dataclasses.replace(STILL, hflip=1.0)
    down = dataclasses.replace(STILL, vflip=1.0)
    np.testing.assert_array_equal(changed(across), scene()[:, ::-1])
    np.testing.assert_array_equal(changed(down), scene()[::-1])


def test_presets_are_the_guides():
    full, light, strong = Augment(), config.light(), config.strong()
    assert (full.hflip, full.vflip, full.shift, full.scale, full.rotate) == (
        0.5,
        0.2,
        0.05,
        0.1,
        25,
    )
    assert (full.warp, full.jitter, full.colour, full.blur) == (
        0.5,
        (0.2, 0.2, 0.2, 0.08),
        0.7,
        0.3,
    )
    assert (light.hflip, light.jitter, light.colour) == (0.5, (0.15, 0.15, 0.15, 0.05), 0.5)
    assert (light.vflip, light.warp, light.blur, light.grid, light.elastic) == (0, 0, 0, 0, 0)
    assert (strong.vflip, strong.shift, strong.scale, strong.rotate) == (0.3, 0.1, 0.15, 30)
    assert (strong.warp, strong.colour, strong.blur) == (0.7, 0.8, 0.5)
    assert (strong.grid, strong.elastic, strong.one) == (0.3, 0.3, True)
    assert all(a.operations == 0 and a.erase == 0 for a in (full, light, strong))


def warped(picture, warp, side=64):
    image = apply_warp(Image.fromarray(picture), warp, side, "bilinear")
    return np.asarray(image)


def test_a_quarter_turn_and_a_whole_pixel_shift_are_exact():
    quarter = Warp(turn=((0.0, 1.0), (-1.0, 0.0)))
    np.testing.assert_array_equal(warped(scene(), quarter), np.rot90(scene(), -1))
    moved = warped(scene(), Warp(offset=(5 / 64, -3 / 64)))
    np.testing.assert_array_equal(moved[3:, :-5], scene()[:-3, 5:])
    # Beyond the edge the picture is mirrored.
    np.testing.assert_array_equal(moved[3:, -5:], scene()[:-3, :-6:-1])
    np.testing.assert_array_equal(moved[:3, :-5], scene()[2::-1, 5:])


def test_crops_look_at_their_part():
    part = Warp(centre=(0.25, 0.75), sides=(0.5, 0.5))
    np.testing.assert_array_equal(warped(scene(), part, 32), scene()[32:, :32])


def test_pictures_shrink_without_aliasing():
    """A turned checkerboard of single pixels is grey, not a pattern."""
    board = np.indices((512, 512)).sum(0)[..., None] % 2 * np.full(3, 255)
    angle = np.radians(10)
    turn = ((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle)))
    found = warped(board.astype(np.uint8), Warp(turn=turn), 64)
    assert np.abs(found.astype(int) - 128).max() <= 3


def test_no_black_comes_in():
    white = np.full((40, 70, 3), 255, np.uint8)
    strong = config.strong()
    strong.colour, strong.warp, strong.grid, strong.elastic = 0.0, 1.0, 0.5, 0.5
    for seed in range(12):
        assert changed(strong, seed, white).min() == 255


def test_the_drawn_warp_is_what_was_asked_for():
    augment = Augment(warp=1.0, hflip=0.0, vflip=0.0, shift=0.05, scale=0.1, rotate=25.0)
    drawn = [draw_warp(np.random.default_rng(s), augment) for s in range(400)]
    turns = np.array([w.turn for w in drawn])
    degrees = np.degrees(np.arctan2(turns[:, 0, 1], turns[:, 0, 0]))
    factors = 1 / np.hypot(turns[:, 0, 0], turns[:, 0, 1])
    offsets = np.array([w.offset for w in drawn])
    for values, limit in ((degrees, 25), (factors - 1, 0.1), (offsets, 0.05)):
        assert 0.9 * limit < np.abs(values).max() <= limit + 1e-9
        assert abs(values.mean()) < 0.15 * limit
    augment = Augment(warp=0.5, hflip=0.5, vflip=0.2)
    drawn = [draw_warp(np.random.default_rng(s), augment) for s in range(600)]
    signs = np.array([[w.turn[0][0] < 0, w.turn[1][1] < 0, w.offset != (0, 0)] for w in drawn])
    np.testing.assert_allclose(signs.mean(0), [0.5, 0.2, 0.5], atol=0.06)


def test_distortions_move_nodes_smoothly_and_keep_the_frame():
    rng = np.random.default_rng(0)
    grid, elastic = _grid(rng), _elastic(rng)
    assert np.abs(grid[[0, -1], :, 1]).max() < 1e-12 and np.abs(grid[:, [0, -1], 0]).max() < 1e-12
    assert 0.01 < np.abs(grid).max() < 0.2
    assert 0.01 < np.abs(elastic).max() <= 0.03
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 1, 3))
    found = warped(ramp, Warp(bend=grid)).astype(int)
    assert np.diff(found[:, 2:-2, 0], axis=1).min() >= 0  # columns stay in order
    assert np.abs(found - ramp).mean() > 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (1, 3, 2, 0)])
def test_colour_is_the_jitter_of_frames_up_to_rounding(order):
    colour = Colour(1.1, 0.85, 1.15, 0.0, order)
    picture = scene()
    found = np.asarray(recolour(Image.fromarray(picture), colour)).astype(int)
    wanted = color.jitter(picture[None], colour)[0]
    assert np.abs(found - wanted).max() <= 2
    assert np.abs(found - picture).mean() > 3


def test_hue_turns_colours_but_not_grey_nor_luma():
    grey = np.full((8, 8, 3), 90, np.uint8)
    turned = Colour(hue=0.3)
    np.testing.assert_array_equal(recolour(Image.fromarray(grey), turned), grey)
    picture = (scene() // 4 + 96).astype(np.uint8)  # pale, so that nothing is cut off
    found = np.asarray(recolour(Image.fromarray(picture), turned))
    luma = [0.299, 0.587, 0.114]
    np.testing.assert_allclose(found @ luma, picture @ luma, atol=1)
    assert np.abs(found.astype(int) - picture).mean() > 5
    # Red turned by a third of the circle is the green side of the wheel.
    red = np.full((8, 8, 3), (180, 60, 60), np.uint8)
    third = np.asarray(recolour(Image.fromarray(red), Colour(hue=1 / 3)))[0, 0]
    assert third.argmax() == 1
    whole = np.asarray(recolour(Image.fromarray(picture), Colour(hue=1.0)))
    np.testing.assert_allclose(whole.astype(int), picture, atol=1)


def test_one_kind_of_colour_at_a_time():
    augment = config.strong()
    augment.colour = 1.0
    kinds = set()
    for seed in range(60):
        c = draw_colour(np.random.default_rng(seed), augment)
        kinds.add((c.brightness != 1 or c.contrast != 1, c.saturation != 1 or c.hue != 0))
    assert kinds == {(True, False), (False, True), (True, True)}


def test_blur_is_a_3x3_gaussian():
    dot = np.zeros((9, 9, 3), np.uint8)
    dot[4, 4] = 160
    found = changed(dataclasses.replace(STILL, blur=1.0), picture=dot, side=9)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) * 10
    np.testing.assert_array_equal(found[3:6, 3:6, 0], kernel)


def test_erasing_takes_the_share_asked_for():
    shares = []
    for seed in range(40):
        found = erased(scene(), np.random.default_rng(seed), (0.1, 0.2))
        gone = (found != scene()).any(-1)
        y, x = np.nonzero(gone)
        shares.append((np.ptp(y) + 1) * (np.ptp(x) + 1) / gone.size)
    assert 0.08 < min(shares) and max(shares) < 0.22


@pytest.mark.parametrize("kind", ["full", "light", "strong"])
def test_the_generator_given_is_the_only_source_of_chance(kind):
    augment = getattr(config.Data(), kind)
    augment.operations, augment.erase = 2, 0.5
    before = random.getstate()
    first = [changed(augment, seed, side=32) for seed in range(8)]
    np.random.seed(5)  # noqa: NPY002
    assert random.getstate() == before
    random.seed(5)
    again = [changed(augment, seed, side=32) for seed in range(8)]
    np.testing.assert_array_equal(first, again)
    assert all(a.shape == (32, 32, 3) and a.dtype == np.uint8 for a in first)
    assert len({a.tobytes() for a in first}) == 8


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_operations(name):
    operation, signed = randaugment.OPERATIONS[name]
    image = Image.fromarray(scene())
    for strength in (0.9, -0.9) if signed else (0.9,):
        found = operation(image, strength)
        assert found.size == image.size and found.mode == "RGB"
        same = np.array_equal(found, scene())
        assert same == (name == "identity")
    if name not in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(operation(image, 0.0), scene())


def test_a_sheared_picture_keeps_its_middle_row():
    found = np.asarray(randaugment.OPERATIONS["shear_x"][0](Image.fromarray(scene()), 1.0))
    wanted = (scene()[31].astype(int) + scene()[32]) / 2
    assert np.abs((found[31].astype(int) + found[32]) / 2 - wanted).max() < 6


def test_randaugment_draws_operations_evenly():
    seen = []
    original = dict(randaugment.OPERATIONS)
    spies = {
        n: (lambda image, s, n=n: seen.append((n, s)) or image, signed)
        for n, (_, signed) in original.items()
    }
    try:
        randaugment.OPERATIONS.update(spies)
        rng = np.random.default_rng(0)
        for _ in range(700):
            randaugment.apply(Image.fromarray(scene(8)), rng, 2, 0.9)
    finally:
        randaugment.OPERATIONS.update(original)
    names, strengths = zip(*seen, strict=True)
    counts = np.array([names.count(n) for n in original])
    assert len(seen) == 1400 and counts.min() > 70 and counts.max() < 130
    assert {s for n, s in seen if n == "solarize"} == {0.9}
    assert {s for n, s in seen if n == "rotate"} == {0.9, -0.9}
    assert set(strengths) == {0.9, -0.9}

"""The eight spatial features: golden vectors, symmetries, what can be left out."""

import numpy as np
import pytest

from jaxact.tasks.relation import spatial_features

SIZE = (3760, 480)
SPEC = (  # A, B, the seven of relation.md section 4
    (
        (1000, 200, 100, 200),
        (1200, 180, 120, 220),
        (0.026596, 0.909091, 0.055851, 1.0, 0.757576, 0.976005, 0.020833),
    ),
    (
        (3700, 100, 50, 150),
        (20, 110, 40, 140),
        (0.007979, 0.933333, 0.019947, 1.0, 0.746667, 0.656733, 0.010417),
    ),
    (
        (2962, 63, 299, 397),
        (3359, 106, 236, 366),
        (0.026064, 0.921914, 0.097207, 0.967213, 0.727665, 0.80938, 0.057292),
    ),
)


@pytest.fixture(scope="module")
def original(golden):
    with np.load(golden / "relation/features_losses.npz") as file:
        return {name: file[name] for name in file.files}


def test_golden_features(original):
    found = spatial_features.geometric(original["boxes_A"], original["boxes_B"], SIZE)
    assert np.abs(found - original["geometric7"]).max() < 1e-6


@pytest.mark.parametrize(("a", "b", "wanted"), SPEC)
def test_features_of_the_spec(a, b, wanted):
    np.testing.assert_allclose(spatial_features.geometric(a, b, SIZE), wanted, rtol=0, atol=1e-6)


def boxes(count=200):
    rng = np.random.default_rng(5)
    corner = rng.uniform((0, 0), (SIZE[0], SIZE[1] - 300), (2, count, 2))
    return np.concatenate([corner, rng.uniform(5, 300, (2, count, 2))], -1)


def test_swap_mirror_and_turn_change_nothing():
    a, b = boxes()
    found = spatial_features.geometric(a, b, SIZE)
    np.testing.assert_array_equal(found, spatial_features.geometric(b, a, SIZE))
    mirrored = [np.stack([SIZE[0] - x[:, 0] - x[:, 2], *x[:, 1:].T], -1) for x in (a, b)]
    np.testing.assert_allclose(found, spatial_features.geometric(*mirrored, SIZE), atol=1e-9)
    turned = [np.stack([(x[:, 0] + 1234) % SIZE[0], *x[:, 1:].T], -1) for x in (a, b)]
    np.testing.assert_allclose(found, spatial_features.geometric(*turned, SIZE), atol=1e-9)


def test_ranges():
    found = spatial_features.geometric(*boxes(), SIZE)
    for index in (1, 2, 3, 4, 6):
        assert found[:, index].min() >= 0 and found[:, index].max() <= 1
    assert found[:, 2].max() <= 0.5 and found[:, 0].max() <= 0.5


def test_a_plain_picture_has_no_seam():
    a, b = (3700, 100, 50, 150), (20, 110, 40, 140)
    flat = spatial_features.geometric(a, b, SIZE, wrap=False)
    assert flat[2] == pytest.approx(3685 / 3760)


def test_scene_forms(original):
    for people in (0, 1, 3, 10, 14):
        wanted = original[f"scene_context_n{people}"]
        assert spatial_features.scene(people, "level") == wanted[0]
    # The share of relation.md section 4 that the ResNet classifier takes.
    assert [spatial_features.scene(n) for n in (0, 1, 4, 10, 30)] == [1.0, 0.1, 0.4, 1.0, 1.0]
    with pytest.raises(ValueError, match="choose share or level"):
        spatial_features.scene(3, "crowd")


def test_what_can_be_left_out():
    a, b, _ = SPEC[0]
    whole = spatial_features.features(a, b, SIZE, 4)
    assert whole.dtype == np.float32 and whole.shape == (8,) and whole[7] == np.float32(0.4)
    for places, form in ((True, "off"), (False, "share"), (False, "off"), (True, "level")):
        found = spatial_features.features(a, b, SIZE, 4, places=places, form=form)
        assert found.shape == (spatial_features.count(places, form),)
    logged = spatial_features.features(a, b, SIZE, 4, log=True)
    assert logged[5] == pytest.approx(np.log1p(whole[5])) and (logged != whole).sum() == 1

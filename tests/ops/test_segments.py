"""Points, assignment and decoding of segments: golden vectors and worked cases."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.models.specs import RANGES
from jaxact.ops import segments


@pytest.fixture(scope="module")
def vectors(golden):
    return dict(np.load(golden / "detection" / "detector_tiny_base.npz"))


def truth(vectors, room=6):
    """Ground truth of both golden examples, padded to `room` rows of noise."""
    boxes = np.random.default_rng(0).uniform(0, 60, (2, room, 2)).astype(np.float32)
    labels, real = np.ones((2, room), np.int32), np.zeros((2, room), bool)
    for index in range(2):
        rows = vectors[f"gt_seg_{index}"]
        boxes[index, : len(rows)] = rows
        labels[index, : len(rows)] = vectors[f"gt_lab_{index}"]
        real[index, : len(rows)] = True
    return jnp.asarray(boxes), jnp.asarray(labels), jnp.asarray(real)


def test_points_of_the_golden_file(vectors):
    np.testing.assert_array_equal(segments.points(64, RANGES), vectors["points"])


def test_thumos_has_1512_points():
    points = segments.points(768, RANGES)
    assert points.shape == (1512, 4)
    assert np.unique(points[:, 3], return_counts=True)[1].tolist() == [768, 384, 192, 96, 48, 24]


def test_points_of_a_length_that_does_not_halve():
    with pytest.raises(UserError, match="multiples of 32"):
        segments.points(100, RANGES)


def test_point_masks_of_the_golden_file(vectors):
    wanted = np.concatenate([vectors[f"mask_{level}"] for level in range(6)], axis=1)
    mask = segments.point_mask(jnp.asarray(vectors["mask"]), 6)
    np.testing.assert_array_equal(mask, wanted)


def test_golden_targets_are_exact(vectors):
    boxes, labels, real = truth(vectors)
    classes, distances = segments.assign(vectors["points"], boxes, labels, real, 5)
    np.testing.assert_array_equal(classes, vectors["target_cls"])
    positive = vectors["target_cls"].sum(-1) > 0
    np.testing.assert_array_equal(distances[positive], vectors["target_reg"][positive])
    assert positive.sum() == 18


def test_golden_decoding(vectors):
    decoded = segments.decode(vectors["points"], jnp.asarray(vectors["reg"]))
    np.testing.assert_allclose(decoded, vectors["proposals"], atol=1e-5, rtol=0)


def assigned(boxes, labels, similar=True, length=32, **fields):
    points = segments.points(length, RANGES[:8])
    boxes = jnp.asarray(boxes, jnp.float32).reshape(1, -1, 2)
    labels = jnp.asarray(labels, jnp.int32).reshape(1, -1)
    real = jnp.ones(labels.shape, bool)
    classes, distances = segments.assign(points, boxes, labels, real, 3, similar=similar, **fields)
    return points, np.asarray(classes[0]), np.asarray(distances[0])


def test_segments_of_equal_length_share_their_points():
    """As all CliffDiving of THUMOS-14 does with Diving."""
    _, classes, _ = assigned([[4.3, 8.3], [4.3, 8.3005], [4.3, 8.3]], [0, 1, 0])
    assert {tuple(row) for row in classes} == {(0, 0, 0), (1, 1, 0)}
    _, classes, _ = assigned([[4.3, 8.3], [4.3, 8.31]], [0, 1])
    assert {tuple(row) for row in classes} == {(0, 0, 0), (1, 0, 0)}
    _, classes, _ = assigned([[4.3, 8.3], [4.3, 8.31]], [0, 1], similar=False)
    assert (1, 1, 0) in {tuple(row) for row in classes}


def test_the_shortest_segment_wins():
    points, classes, distances = assigned([[0, 31], [10, 13]], [0, 1], radius=100)
    at = {(float(t), float(stride)): i for i, (t, _, _, stride) in enumerate(points)}
    assert classes[at[11, 1]].tolist() == [0, 1, 0]
    np.testing.assert_allclose(distances[at[11, 1]], [1, 2])
    assert classes[at[16, 8]].tolist() == [1, 0, 0]  # the long one: 16 to 32 units from its centre
    np.testing.assert_allclose(distances[at[16, 8]], [2, 15 / 8])


def test_limits_of_ranges_are_inside_and_ends_of_segments_are_not():
    points, classes, _ = assigned([[0, 8]], [0])
    positive = {(float(t), float(stride)) for t, _, _, stride in points[classes[:, 0] > 0]}
    # Half of 8 is 4, in the ranges of two levels; the radius is 1.5 strides from t = 4.
    assert positive == {(4, 1), (4, 2), (2, 2), (6, 2)}
    _, classes, _ = assigned([[4, 6]], [0], radius=1)
    assert classes.sum() == 1  # t = 5 alone: 4 and 6 are its ends


def test_nothing_to_find():
    points, classes, distances = assigned(np.zeros((0, 2)), [])
    assert classes.shape == (len(points), 3) and not classes.any() and not distances.any()
    classes, _ = segments.assign(
        points, jnp.full((1, 2, 2), 5.0), jnp.zeros((1, 2), int), jnp.zeros((1, 2), bool), 3
    )
    assert not classes.any()


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [([2, 4], [3, 7], 1 / 5), ([0, 1], [5, 6], 0), ([1, 5], [2, 3], 1 / 4), ([2, 2], [2, 2], 0)],
)
def test_iou(a, b, wanted):
    overlap = segments.iou(jnp.asarray(a, float), jnp.asarray(b, float))
    np.testing.assert_allclose(overlap, wanted, atol=1e-7)

"""Position tables and resampling against golden vectors and check values."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.ops import position


@pytest.mark.parametrize("width", [384, 768])
def test_golden_tables(golden, width):
    vectors = np.load(golden / "detection" / "pos_embed_14to10.npz")
    channels = vectors[f"ch_{width}"]
    table = position.clip_table(8, 14, (14, 14), width)
    np.testing.assert_allclose(table[:, channels], vectors[f"pe_{width}"], atol=1e-6, rtol=0)
    small = position.clip_table(8, 14, (10, 10), width)
    np.testing.assert_allclose(small[:, channels], vectors[f"pe10_{width}"], atol=1e-5, rtol=0)


def test_check_values_of_the_small_table():
    table, small = position.sincos(1568, 384), position.clip_table(8, 14, (10, 10), 384)
    close = {"atol": 5e-5, "rtol": 0}
    np.testing.assert_allclose(table[1567, :4], [0.6089, -0.7932, -0.9753, -0.2208], **close)
    np.testing.assert_allclose(small[0, :4], [0.3086, 0.7957, 0.2459, 0.8993], **close)
    np.testing.assert_allclose(small[799, :4], [0.7293, -0.4432, -0.8228, -0.4384], **close)
    np.testing.assert_allclose(np.abs(small, dtype=np.float64).sum(), 186385.5, atol=0.1)
    np.testing.assert_allclose((small.astype(np.float64) ** 2).sum(), 145579.84, atol=0.1)


def test_a_table_for_frames_that_are_not_square():
    wide = position.clip_table(8, 14, (10, 14), 384).reshape(8, 10, 14, 384)
    square = position.clip_table(8, 14, (10, 10), 384).reshape(8, 10, 10, 384)
    narrow = np.einsum("xw,thwc->thxc", position.bicubic(14, 10), wide)
    np.testing.assert_allclose(narrow, square, atol=1e-5)


def test_rows_of_the_bicubic_matrix_sum_to_one():
    for old, new in ((14, 10), (3, 2), (10, 14), (5, 5)):
        matrix = position.bicubic(old, new)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(position.bicubic(5, 5), np.eye(5), atol=1e-12)


def test_resampling_in_time():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 3)), jnp.float32)
    double = position.resample(x, 12)
    np.testing.assert_allclose(double[:, 0], x[:, 0])
    np.testing.assert_allclose(double[:, -1], x[:, -1])
    np.testing.assert_allclose(double[:, 1], 0.75 * x[:, 0] + 0.25 * x[:, 1], atol=1e-6)
    np.testing.assert_allclose(double[:, 2], 0.25 * x[:, 0] + 0.75 * x[:, 1], atol=1e-6)
    half = position.resample(x, 3)
    np.testing.assert_allclose(half, (x[:, ::2] + x[:, 1::2]) / 2, atol=1e-6)
    assert position.resample(x, 6) is x

"""Temporal shift against the reference's numbers, its adjoint, its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.ops.temporal_shift import shift


@pytest.mark.parametrize(
    ("n", "t", "c", "fold_div"),
    [(2, 4, 16, 8), (1, 5, 24, 8), (1, 3, 9, 3), (2, 1, 8, 4), (1, 6, 10, 4), (1, 8, 24, 4)],
)
def test_equals_the_reference(golden, n, t, c, fold_div):
    with np.load(golden / "losses" / "temporal_shift.npz") as file:
        wanted = file[f"shift_N{n}_T{t}_C{c}_div{fold_div}"]
    frames = np.arange(1, n * t * c * 2 + 1, dtype=np.float32).reshape(n, t, c, 2, 1)
    shifted = shift(jnp.asarray(frames.transpose(0, 1, 3, 4, 2)), fold_div)
    np.testing.assert_array_equal(
        np.asarray(shifted).transpose(0, 1, 4, 2, 3).reshape(n * t, c, 2, 1), wanted
    )


def test_by_hand():
    x = jnp.arange(1.0, 13.0).reshape(1, 3, 1, 1, 4)  # frames 1 2 3 4 | 5 6 7 8 | 9 10 11 12
    wanted = [[5, 0, 3, 4], [9, 2, 7, 8], [0, 6, 11, 12]]
    np.testing.assert_array_equal(shift(x, 4)[0, :, 0, 0], wanted)


def test_gradient_is_the_opposite_shift():
    x = jax.random.normal(jax.random.key(0), (2, 5, 2, 3, 9))
    dy = jax.random.normal(jax.random.key(1), x.shape)
    _, pull = jax.vjp(lambda x: shift(x, 4), x)
    back = np.array(dy)  # fold = 2: undo by moving the first two later, the next two earlier
    back[:, 1:, ..., :2], back[:, :1, ..., :2] = dy[:, :-1, ..., :2], 0
    back[:, :-1, ..., 2:4], back[:, -1:, ..., 2:4] = dy[:, 1:, ..., 2:4], 0
    np.testing.assert_array_equal(pull(dy)[0], back)


def test_one_frame_loses_both_folds_and_few_channels_stay():
    x = jnp.ones((1, 1, 2, 2, 8))
    np.testing.assert_array_equal(shift(x, 4)[0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(shift(x[..., :3], 4), x[..., :3])


def test_any_leading_axes():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 2, 2, 8))
    np.testing.assert_array_equal(shift(x, 8)[1, 2], shift(x[1, 2], 8))

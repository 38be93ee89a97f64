"""Mixup and CutMix with the references' draws, and the distribution of our own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import recipe

from jaxact.ops import losses, mixing

LABELS = np.array([3, 0, 7, 9])
SIZE = (16, 20)


@pytest.fixture(scope="module")
def want(golden):
    with np.load(golden / "losses/mixup_cutmix.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(recipe.draw(711, (4, 3, *SIZE)).transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def clips():
    views = recipe.draw(712, (4, 1, 3, 2, 12, 14))  # b, v, c, t, h, w
    return jnp.asarray(views.transpose(0, 1, 3, 4, 5, 2))


def onehot(classes=10):
    return losses.onehot(LABELS, classes)


def total(x):
    return np.abs(np.asarray(x, np.float64)).sum()


@pytest.mark.parametrize("lam", ["0.1", "0.35", "0.8"])
def test_mixup_equals_mmaction2(want, clips, lam):
    key = f"mmaction2/mixup_lam{lam}"
    mix = mixing.blend(float(lam), want[f"{key}/perm"])
    got = jax.jit(mixing.apply)(mix, clips)
    np.testing.assert_allclose(got[0, 0, 0, :, :, 0], want[f"{key}/x_sample0"], atol=1e-6)
    np.testing.assert_allclose(total(got), want[f"{key}/x_absum"], rtol=1e-6)
    np.testing.assert_allclose(mixing.targets(mix, onehot()), want[f"{key}/soft_label"], atol=1e-6)


@pytest.mark.parametrize("lam", ["0.1", "0.35", "0.8"])
def test_cutmix_equals_mmaction2(want, clips, lam):
    key = f"mmaction2/cutmix_lam{lam}"
    left, top, right, bottom = want[f"{key}/bbox_x1y1x2y2"]
    mix = mixing.paste(jnp.array([top, left, bottom, right]), want[f"{key}/perm"], (12, 14))
    got = jax.jit(mixing.apply)(mix, clips)
    np.testing.assert_array_equal(got[0, 0, 0, :, :, 0], want[f"{key}/x_sample0"])
    np.testing.assert_allclose(total(got), want[f"{key}/x_absum"], rtol=1e-6)
    np.testing.assert_allclose(mixing.targets(mix, onehot()), want[f"{key}/soft_label"], atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_batches_of_the_crop_guide(want, images, seed):
    key = f"shuwei/seed{seed}"
    kind = want["shuwei/kind_seed0-11(0 mixup,1 cutmix,2 none)"][seed]
    lam, order, row = (want[f"{key}/{name}"] for name in ("lam", "perm", "x_row"))
    mix = mixing.blend(lam if kind == 0 else 1.0, order)
    if kind == 1:  # the box is where the stored row differs from the image
        y, x = np.nonzero(row != np.asarray(images[0, :, :, 0]))
        if len(y):
            box = jnp.array([y.min(), x.min(), y.max() + 1, x.max() + 1])
            mix = mixing.paste(box, order, SIZE)
    got = mixing.apply(mix, images)
    np.testing.assert_allclose(got[0, :, :, 0], row, atol=1e-6)
    np.testing.assert_allclose(total(got), want[f"{key}/x_absum"], rtol=1e-6)
    partner = want[f"{key}/targets_b"]
    soft = lam * onehot() + (1 - lam) * losses.onehot(partner, 10)
    np.testing.assert_allclose(mixing.targets(mix, onehot()), soft, atol=1e-6)


def test_boxes_equal_timm(want):
    box = jax.jit(functools.partial(mixing.edges, size=SIZE, odd=True))

    def drawn(seed, lam):
        rng = np.random.RandomState(seed)
        top, left, bottom, right = box(lam, jnp.array([rng.randint(side) for side in SIZE]))
        return [int(v) for v in (top, bottom, left, right)]

    for seed in range(30):
        assert drawn(seed, 0.3) == want["timm/bbox_seed0-29_h16w20_lam0.3"][seed].tolist()
    for lam, edge, left in zip(
        want["timm/bbox_lams"],
        want["timm/bbox_by_lam_seed7"],
        want["timm/corrected_lam_seed7"],
        strict=True,
    ):
        top, bottom, west, east = drawn(7, lam)
        assert [top, bottom, west, east] == edge.tolist()
        mix = mixing.paste(jnp.array([top, west, bottom, east]), jnp.arange(4), SIZE)
        np.testing.assert_allclose(mix.lam, left, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_batches_of_timm(want, images, seed):
    """timm's Mixup(.4, .6): partners are the flipped batch, the centre comes after lambda."""
    key = f"timm/batch_seed{seed}"
    lam, cut = want[f"{key}/lam_drawn_usecutmix"]
    order = jnp.array([3, 2, 1, 0])
    mix = mixing.blend(lam, order)
    if cut:
        rng = np.random.RandomState(seed)
        rng.rand(2)  # whether to mix, and which kind
        assert rng.beta(0.6, 0.6) == lam
        centre = jnp.array([rng.randint(side) for side in SIZE])
        mix = mixing.paste(mixing.edges(lam, centre, SIZE, odd=True), order, SIZE)
    got = mixing.apply(mix, images)
    np.testing.assert_allclose(got[0, :, :, 0], want[f"{key}/x_row"], atol=1e-6)
    np.testing.assert_allclose(total(got), want[f"{key}/x_sum_absum"][1], rtol=1e-6)
    smoothed = losses.smooth(onehot(), 0.1)
    np.testing.assert_allclose(mixing.targets(mix, smoothed), want[f"{key}/target"], atol=1e-6)
    after = losses.smooth(mixing.targets(mix, onehot()), 0.1)
    np.testing.assert_allclose(after, want[f"{key}/target"], atol=1e-6)


@pytest.mark.parametrize("lam", ["0.3", "1.0"])
def test_smoothed_targets_equal_timm(want, lam):
    mix = mixing.blend(float(lam), jnp.array([3, 2, 1, 0]))
    got = mixing.targets(mix, losses.smooth(onehot(), 0.1))
    np.testing.assert_allclose(got, want[f"timm/mixup_target_lam{lam}_smooth0.1"], atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def many(count, *options):
    keys = jax.random.split(jax.random.key(0), count)
    return jax.vmap(lambda key: mixing.draw(key, 4, (14, 14), *options))(keys)


def test_kinds_are_drawn_with_their_probabilities():
    mix = many(4000, 0.4, 0.6, 0.7, 0.5)
    none = np.asarray(~mix.cut & (mix.lam == 1))
    assert np.mean(mix.cut) == pytest.approx(0.15, abs=0.02)
    assert np.mean(none) == pytest.approx(0.15, abs=0.02)
    assert (np.sort(mix.order, axis=1) == np.arange(4)).all()


def test_alpha_zero_is_off_in_the_same_program():
    before = many._cache_size()
    for mixup, cutmix in ((0.0, 0.0), (0.4, 0.0), (0.0, 0.6), (0.4, 0.6)):
        mix = many(500, mixup, cutmix, 0.7, 1.0)
        blended = np.asarray(~mix.cut & (mix.lam < 1))
        assert blended.any() == (mixup > 0)
        assert np.asarray(mix.cut).any() == (cutmix > 0)
        assert np.isfinite(mix.lam).all()
    assert many._cache_size() == before + 1


def test_lambda_follows_its_beta_distribution():
    for alpha in (0.2, 0.4, 0.6):
        lam = np.asarray(many(4000, alpha, 0.0, 1.0, 1.0).lam)
        assert lam.mean() == pytest.approx(0.5, abs=0.03)
        assert lam.var() == pytest.approx(0.25 / (2 * alpha + 1), abs=0.01)


def test_streams_share_box_and_lambda():
    """A box drawn on 14 x 14 cuts the same share out of 14, 28 and 56 px: exactly 1 - lambda."""
    x = {s: jnp.zeros((4, 2, s, s, 3)).at[1:].set(1.0) for s in (14, 28, 56)}
    cuts = 0
    for seed in range(20):
        mix = mixing.draw(jax.random.key(seed), 4, (14, 14), cutmix_alpha=1.0)
        mixed = {s: np.asarray(mixing.apply(mix, value)) for s, value in x.items()}
        if int(mix.order[0]) == 0:
            continue
        cuts += 1
        for side, value in mixed.items():
            assert value[0].mean() == pytest.approx(1 - float(mix.lam), abs=1e-6)
            scale = side // 14
            np.testing.assert_array_equal(value[0][:, ::scale, ::scale], mixed[14][0])
    assert cuts > 5


def test_lambda_one_and_half_precision():
    x = jnp.asarray(recipe.draw(3, (4, 2, 6, 6, 3)))
    off = mixing.draw(jax.random.key(1), 4, (6, 6))
    np.testing.assert_array_equal(mixing.apply(off, x), x)
    np.testing.assert_array_equal(mixing.targets(off, onehot()), onehot())
    half = mixing.apply(mixing.blend(0.3, jnp.array([1, 0, 3, 2])), x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="normalise"):
        mixing.apply(off, jnp.zeros((4, 6, 6, 3), jnp.uint8))

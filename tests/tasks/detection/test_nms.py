"""Suppression of overlapping segments: published vectors, and what each rule means by hand."""

import json
import tracemalloc

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.tasks.detection import nms
from jaxact.tasks.detection.config import Config, Nms, Post, validate

CONFIGS = ("adapter", "frozen", "top100", "anet", "hard", "linear", "vanilla")


def rule(found: dict) -> Nms:
    """A rule from a configuration of the reference."""
    methods = {0: "hard", 1: "linear", 2: "gaussian"}
    return Nms(
        method=methods[found.get("method", 2)] if found["use_soft_nms"] else "hard",
        sigma=found.get("sigma", 0.5),
        iou=found.get("iou_threshold", 0.1),
        least=found.get("min_score", 0.0),
        most=found["max_seg_num"],
        multiclass=found["multiclass"],
        voting=0.0 if found["multiclass"] else found["voting_thresh"],
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_golden(golden, name):
    arrays = np.load(golden / "detection" / "nms.npz")
    config = json.loads((golden / "detection" / "nms_config.json").read_text())
    given = (arrays[key] for key in ("segs", "scores", "labels"))
    kept = nms.suppress(*given, rule(config[name]))
    np.testing.assert_allclose(kept.segment, arrays[f"{name}/segs"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kept.score, arrays[f"{name}/scores"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(kept.label, arrays[f"{name}/labels"])


def one_by_one(segment, score, label, sigma):
    """Gaussian soft suppression as its paper states it, a class at a time."""
    found = []
    for name in set(label.tolist()):
        pool = [[*s, p] for s, p, k in zip(segment, score, label, strict=True) if k == name]
        while pool:
            best = max(range(len(pool)), key=lambda i: pool[i][2])
            a, b, p = pool.pop(best)
            found.append((p, a, b, name))
            for row in pool:
                inner = max(0.0, min(b, row[1]) - max(a, row[0]))
                union = (b - a) + (row[1] - row[0]) - inner + 2e-6
                row[2] *= np.exp(-((inner / union) ** 2) / sigma)
    return sorted(found, reverse=True)


def test_gaussian_is_the_naive_loop():
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 60, 120)
    segment = np.stack([start, start + rng.gamma(2, 5, 120)], 1)
    score, label = rng.permutation(120) / 120 + 0.001, rng.integers(0, 3, 120)
    wanted = one_by_one(segment, score, label, 0.4)
    kept = nms.suppress(segment, score, label, Nms(sigma=0.4))
    np.testing.assert_allclose(kept.score, [row[0] for row in wanted], atol=1e-5)
    np.testing.assert_allclose(kept.segment, [row[1:3] for row in wanted], atol=1e-4)


def test_the_cut_of_all_classes_is_the_head_of_the_whole():
    rng = np.random.default_rng(1)
    start = rng.uniform(0, 60, 200)
    segment = np.stack([start, start + rng.gamma(2, 5, 200)], 1)
    score, label = rng.uniform(0, 1, 200), rng.integers(0, 5, 200)
    whole = nms.suppress(segment, score, label, Nms())
    head = nms.suppress(segment, score, label, Nms(most=30))
    for cut, full in zip(head, whole, strict=True):
        np.testing.assert_array_equal(cut, full[:30])
    assert (np.diff(whole.score) <= 0).all()


def test_hard_and_linear_by_hand():
    segment = [[0, 10], [0, 8], [20, 30], [0, 5]]  # IoU with the first: 0.8, 0, 0.5
    score = [0.9, 0.8, 0.7, 0.6]
    hard = nms.suppress(segment, score, [0, 0, 0, 0], Nms(method="hard", iou=0.6))
    np.testing.assert_allclose(hard.score, [0.9, 0.7, 0.6], atol=1e-6)
    linear = nms.suppress(segment, score, [0, 0, 0, 0], Nms(method="linear", iou=0.6))
    # The second falls to 0.8 * (1 - 0.8) = 0.16 by the first, and to 0.06 by the fourth (IoU
    # 0.625); the fourth overlaps the first by 0.5 only.
    np.testing.assert_allclose(linear.score, [0.9, 0.7, 0.6, 0.16 * 0.375], atol=1e-5)


def test_classes_compete_only_without_multiclass():
    segment, score = [[0, 10], [0, 10]], [0.9, 0.8]
    apart = nms.suppress(segment, score, [0, 1], Nms(method="hard"))
    together = nms.suppress(segment, score, [0, 1], Nms(method="hard", multiclass=False))
    assert apart.label.tolist() == [0, 1] and together.label.tolist() == [0]


def test_voting_is_the_weighted_mean_of_what_overlaps():
    segment = np.array([[0, 10], [1, 11], [50, 60]], np.float32)
    rule = Nms(method="hard", iou=0.5, multiclass=False, voting=0.7)
    kept = nms.suppress(segment, [0.6, 0.2, 0.1], [0, 0, 0], rule)
    np.testing.assert_allclose(kept.segment, [[0.25, 10.25], [50, 60]], atol=1e-5)


def test_voting_takes_little_memory():
    """A long video has a hundred thousand class-agnostic segments before suppression."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 600, 10_000)
    segment = np.stack([start, start + rng.gamma(2, 5, 10_000)], 1).astype(np.float32)
    score = rng.random(10_000).astype(np.float32)
    tracemalloc.start()
    found = nms.vote(segment[:1000], segment, score, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6
    few = nms.vote(segment[500:510], segment, score, 0.5)
    np.testing.assert_allclose(found[500:510], few, rtol=1e-6)


def test_equal_scores_take_the_earlier_start():
    kept = nms.suppress([[9, 10], [0, 1], [4, 5]], [0.5, 0.5, 0.5], [1, 1, 0], Nms())
    assert kept.segment[:, 0].tolist() == [4, 0, 9]


def test_nothing_in_nothing_out():
    kept = nms.suppress(np.zeros((0, 2)), [], [], Nms(voting=0.5, multiclass=False))
    assert [len(column) for column in kept] == [0, 0, 0]


def test_a_decayed_score_of_zero_never_comes_back():
    same = np.tile([[0.0, 10.0]], (3, 1))
    kept = nms.suppress(same, [0.9, 0.8, 0.7], [0, 0, 0], Nms(sigma=1e-4, least=1e-6))
    assert kept.score.tolist() == pytest.approx([0.9])
    linear = nms.suppress(same, [0.9, 0.8, 0.7], [0, 0, 0], Nms(method="linear", least=1e-3))
    assert len(linear.score) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "soft"}, "config.post.nms.method='soft'"),
        ({"sigma": 0.0}, "config.post.nms.sigma=0.0"),
        ({"voting": 0.5}, "config.post.nms.voting=0.5"),
        ({"least": 1.0}, "config.post.nms.least=1.0"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(UserError, match=message):
        validate(Config(post=Post(nms=Nms(**fields))))

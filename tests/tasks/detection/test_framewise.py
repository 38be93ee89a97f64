"""Framewise and segmental scores: by hand, and the published rows of ED-TCN."""

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.tasks.detection import framewise

# Lea et al. (CVPR 2017), tables of 50 Salads: F1@10, 25, 50, edit, accuracy (mean over videos), %.
PUBLISHED = {
    "salads50_mid_edtcn": ((68.0, 63.9, 52.6), 59.8, 64.7),
    "salads50_eval_edtcn": ((76.5, 73.8, 64.5), 72.2, 73.4),
}


def labels(text: str) -> np.ndarray:
    """Label sequence of a text of digits."""
    return np.array([int(c) for c in text])


def test_runs_and_segments():
    found = framewise.runs(labels("0011120"), background=0)
    assert found.label.tolist() == [1, 2]
    assert found.start.tolist() == [2, 5] and found.end.tolist() == [5, 6]
    table, names = framewise.segments(labels("0011120"))
    assert table.tolist() == [[0, 2], [2, 5], [5, 6], [6, 7]] and names.tolist() == [0, 1, 2, 0]
    assert len(framewise.runs(labels("")).label) == 0


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [("", "", 0), ("123", "", 3), ("123", "123", 0), ("1232", "132", 1), ("1234", "4321", 4)],
)
def test_distance(a, b, wanted):
    assert framewise.distance(labels(a), labels(b)) == wanted
    assert framewise.distance(labels(b), labels(a)) == wanted


def test_distance_is_the_textbook_table():
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = (rng.integers(0, 4, rng.integers(0, 12)) for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
        for i in range(len(a)):
            for j in range(len(b)):
                table[i + 1, j + 1] = min(
                    table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a[i] != b[j])
                )
        assert framewise.distance(a, b) == table[-1, -1]


def test_edit_compares_the_order_of_segments_only():
    assert framewise.edit(labels("000112"), labels("011112")) == 1.0
    assert framewise.edit(labels("001100"), labels("001122")) == pytest.approx(2 / 3)
    assert framewise.edit(labels("0000"), labels("0000"), background=0) == 1.0


def test_f1_by_hand():
    truth, found = labels("1111100000222"), labels("1100110000222")
    at = framewise.overlap_counts(found, truth, 0.25, background=0)
    # Both 1s look at the same ground truth (IoU 2/5 and 1/6): one is right, the other is not.
    assert (at.true, at.false, at.missed) == (2, 1, 0) and at.f1 == pytest.approx(0.8)
    strict = framewise.overlap_counts(found, truth, 0.5, background=0)
    assert (strict.true, strict.false, strict.missed) == (1, 2, 1)
    nothing = framewise.overlap_counts(labels("0000"), labels("0110"), 0.1, background=0)
    assert (nothing.true, nothing.false, nothing.missed) == (0, 0, 1) and nothing.f1 == 0


def test_over_segmentation_costs_f1_but_not_accuracy():
    truth = labels("1" * 50 + "2" * 50)
    found = truth.copy()
    found[10:90:10] = 3
    numbers = framewise.evaluate([found], [truth])
    assert numbers["accuracy"] == pytest.approx(0.92)
    assert numbers["f1@50"] == 0 and numbers["edit"] < 0.2


def test_pooled_and_mean_over_videos():
    truth = [labels("11220"), labels("1111")]
    found = [labels("11220"), labels("0000")]
    pooled = framewise.evaluate(found, truth, background=0)
    mean = framewise.evaluate(found, truth, background=0, pooled=False)
    assert pooled["f1@50"] == pytest.approx(4 / 5) and mean["f1@50"] == pytest.approx(0.5)
    assert pooled["edit"] == pytest.approx(0.5) and pooled["accuracy"] == pytest.approx(5 / 9)


def test_frames_of_detections():
    segment = np.array([[0.0, 4.0], [2.0, 6.0], [9.5, 20.0]])
    found = framewise.frames(segment, np.array([1, 2, 3]), np.array([0.9, 0.5, 0.1]), 10, 0)
    assert found.tolist() == [1, 1, 1, 1, 2, 2, 0, 0, 0, 3]
    truth = labels("0112221100")
    table, names = framewise.segments(truth, background=0)
    back = framewise.frames(table, names, np.ones(len(names)), len(truth), 0)
    np.testing.assert_array_equal(back, truth)


def test_lengths_must_agree():
    with pytest.raises(UserError, match="video 1 has 2 labels for 3 frames"):
        framewise.evaluate([labels("11"), labels("11")], [labels("11"), labels("111")])
    with pytest.raises(UserError, match="predictions of 0 videos"):
        framewise.evaluate([], [])


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_rows(real_data, name):
    stored = np.load(real_data / "tad_eval" / f"{name}.npz")
    videos = [np.split(stored[key].astype(int), stored["offsets"][1:-1]) for key in ("pred", "gt")]
    numbers = framewise.evaluate(*videos, background=0, pooled=False)
    f1, edit, accuracy = PUBLISHED[name]
    for overlap, wanted in zip((10, 25, 50), f1, strict=True):
        assert 100 * numbers[f"f1@{overlap}"] == pytest.approx(wanted, abs=0.051)
    assert 100 * numbers["edit"] == pytest.approx(edit, abs=0.1)
    per_video = [framewise.accuracy(a, b) for a, b in zip(*videos, strict=True)]
    assert 100 * np.mean(per_video) == pytest.approx(accuracy, abs=0.051)

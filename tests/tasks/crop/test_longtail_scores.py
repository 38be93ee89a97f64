"""Parts of a long tail, groups of classes, the per-class table."""

import csv
import io

import numpy as np
import pytest

from jaxact.evaluate.metrics import Confusion
from jaxact.tasks.crop import longtail_scores
from jaxact.tasks.crop.class_balance import tail


def test_tail_of_61_classes_is_15_with_ties_by_number():
    counts = np.full(61, 50)
    counts[[44, 45, 53, 5, 52]] = [1, 1, 22, 40, 43]
    found = np.flatnonzero(tail(counts))
    assert len(found) == 15
    assert found.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 44, 45, 52, 53]


def test_parts_cover_every_class_once():
    counts = np.array([500, 19, 20, 100, 101, 3, 60, 60])
    found = longtail_scores.subsets(counts)
    for names in (("tail", "mid", "head"), ("few", "medium", "many")):
        np.testing.assert_array_equal(sum(found[n].astype(int) for n in names), 1)
    assert np.flatnonzero(found["tail"]).tolist() == [1, 5]
    assert np.flatnonzero(found["head"]).tolist() == [0, 4]
    assert np.flatnonzero(found["few"]).tolist() == [1, 5]
    assert np.flatnonzero(found["many"]).tolist() == [0, 4]
    wide = longtail_scores.subsets(counts, 0.75)
    np.testing.assert_array_equal(wide["tail"] & wide["head"], False)


def test_subset_scores_count_classes_that_occur():
    # class 0: 3 of 4 right; class 1: 0 of 1; class 2 never true; class 3: 2 of 2.
    table = Confusion(np.array([[3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 2]]))
    members = {
        "tail": np.array([False, True, True, False]),
        "head": np.array([True, False, False, True]),
        "few": np.array([False, False, True, False]),
    }
    assert longtail_scores.subset_scores(table, members) == {"tail_acc": 0.0, "head_acc": 0.875}


def test_groups_marginalise():
    share = np.array([[0.4, 0.3, 0.3], [0.5, 0.2, 0.3], [0.2, 0.5, 0.3]])
    crop = np.array([0, 1, 1])
    np.testing.assert_allclose(
        longtail_scores.grouped(share, crop), [[0.4, 0.6], [0.5, 0.5], [0.2, 0.8]]
    )
    labels = np.array([1, 0, 2])
    # Row 0: class 0 is likeliest, yet crop 1 is.
    assert longtail_scores.group_accuracy(share, labels, crop) == 1.0
    assert longtail_scores.merged_accuracy(share.argmax(1), labels, crop) == pytest.approx(2 / 3)


def test_class_table():
    table = Confusion(np.array([[3, 1, 0], [0, 0, 2], [0, 0, 0]]))
    text = longtail_scores.class_table(table, ["a", 'b, "c"', "d"], [9, 1, 5], 0.34)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in rows] == ["a", 'b, "c"', "d"]
    assert [row["part"] for row in rows] == ["head", "tail", "mid"]
    assert [row["support"] for row in rows] == ["4", "2", "0"]
    assert [row["predicted"] for row in rows] == ["3", "1", "2"]
    assert [float(row["recall"]) for row in rows] == [0.75, 0, 0]
    assert float(rows[0]["f1"]) == pytest.approx(6 / 7, abs=1e-6)
    assert len(text.splitlines()) == 4

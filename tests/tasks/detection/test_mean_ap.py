"""Mean average precision: published detections, a naive evaluator, and small cases by hand."""

import dataclasses
import json
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.tasks.detection import (
    annotations,
    error_analysis,
    mean_ap,
    postprocess,
    results,
    timeline,
)
from jaxact.tasks.detection.config import Config, Merging, Nms, Post, validate
from jaxact.tasks.detection.mean_ap import EPIC, THUMOS, Instances, Protocol


def made(*rows) -> Instances:
    """Instances of rows (video, start, end, label[, score])."""
    table = np.array([row if len(row) == 5 else (*row, 1.0) for row in rows], float)
    table = table.reshape(-1, 5)
    return mean_ap.instances(table[:, 0], table[:, 1:3], table[:, 3], table[:, 4])


def loaded(annotation, found=None) -> tuple[Instances, Instances]:
    """Ground truth of all videos, and detections by video id."""
    number = {video.id: i for i, video in enumerate(annotation)}
    truth = mean_ap.instances(
        np.concatenate([np.full(len(v.labels), number[v.id]) for v in annotation]),
        np.concatenate([v.segments for v in annotation]),
        np.concatenate([v.labels for v in annotation]),
    )
    for key in found:
        number.setdefault(key, len(number))
    rows = [(np.full(len(d.score), number[key]), *d) for key, d in found.items()]
    video, segment, score, label = (np.concatenate(part) for part in zip(*rows, strict=True))
    return truth, mean_ap.instances(video, segment, label, score)


def naive(truth: Instances, found: Instances, tiou: float, classes: int) -> np.ndarray:
    """AP of each class, row by row."""
    result = np.full(classes, np.nan)
    for k in range(classes):
        own = [i for i in range(len(truth.video)) if truth.label[i] == k]
        if not own:
            continue
        mine = [i for i in range(len(found.video)) if found.label[i] == k]
        mine.sort(key=lambda i: -found.score[i])
        free, hits = set(own), []
        for i in mine:
            rivals = [j for j in own if truth.video[j] == found.video[i]]
            overlap = {j: mean_ap.iou(found.segment[i], truth.segment[j]) for j in rivals}
            good = [j for j in rivals if overlap[j] >= tiou and j in free]
            best = max(good, key=lambda j: overlap[j]) if good else None
            free.discard(best)
            hits.append(best is not None)
        precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
        area = sum(max(precision[i:]) for i in range(len(hits)) if hits[i])
        result[k] = area / len(own)
    return result


def random_case(seed: int, classes: int = 4) -> tuple[Instances, Instances]:
    """Crowded videos with detections near and far, and many equal scores."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 60, 60)
    spans = np.stack([start, start + rng.uniform(0.5, 12, 60)], 1)
    truth = mean_ap.instances(rng.integers(0, 4, 60), spans, rng.integers(0, classes - 1, 60))
    pick = rng.integers(0, 60, 300)
    near = truth.segment[pick] + rng.normal(0, 1.5, (300, 2))
    label = np.where(rng.random(300) < 0.8, truth.label[pick], rng.integers(0, classes, 300))
    score = rng.integers(0, 40, 300) / 40
    return truth, mean_ap.instances(truth.video[pick], np.sort(near, 1), label, score)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_row_by_row_evaluator(seed):
    truth, found = random_case(seed)
    scores = mean_ap.evaluate(truth, found, EPIC, 4)
    assert np.isnan(scores.ap[:, 3]).all()  # no ground truth: not in the mean
    for row, tiou in zip(scores.ap, EPIC.tious, strict=True):
        np.testing.assert_allclose(row, naive(truth, found, tiou, 4), atol=1e-12)


def test_pieces_of_pairs_change_nothing(monkeypatch):
    truth, found = random_case(7)
    whole = mean_ap.evaluate(truth, found, THUMOS, 4).numbers()
    monkeypatch.setattr(mean_ap, "PAIRS", 16)
    assert mean_ap.evaluate(truth, found, THUMOS, 4).numbers() == whole


def test_ap_by_hand():
    truth = made((0, 0, 10, 0), (0, 20, 30, 0), (1, 0, 10, 0))
    found = made(
        (0, 0, 10, 0, 0.9),  # right
        (0, 1, 10, 0, 0.8),  # double
        (1, 50, 60, 0, 0.7),  # nowhere
        (0, 20, 29, 0, 0.6),  # right
        (5, 0, 10, 0, 0.5),  # a video without ground truth
        (0, 20, 30, 9, 0.99),  # a class that is not ours
    )
    scores = mean_ap.evaluate(truth, found, Protocol((0.5,)), 1)
    assert scores.average == pytest.approx((1 + 2 / 4) / 3)
    assert scores.recall[0].tolist() == pytest.approx([1 / 3, 2 / 3])


def test_a_better_overlap_is_taken_first_and_a_second_best_if_it_is_gone():
    truth = made((0, 0, 10, 0), (0, 1, 11, 0))
    found = made((0, 1, 11, 0, 0.9), (0, 1, 11, 0, 0.8))
    taken = mean_ap.match(truth, found, (0.5, 0.9))
    assert taken.tolist() == [[1, 0], [1, -1]]


def test_equal_scores_keep_their_order():
    truth = made((0, 0, 10, 0))
    good, bad = (0, 0, 10, 0, 0.5), (0, 50, 60, 0, 0.5)
    for rows, wanted in (((good, bad), 1.0), ((bad, good), 0.5)):
        assert mean_ap.evaluate(truth, made(*rows), THUMOS, 1).average == pytest.approx(wanted)


def test_no_detections_is_zero_and_no_truth_an_error():
    truth = made((0, 0, 10, 0))
    nothing = mean_ap.evaluate(truth, made(), THUMOS, 2)
    assert nothing.average == 0 and nothing.numbers()["recall@0.5@1x"] == 0
    with pytest.raises(UserError, match="no ground truth"):
        mean_ap.evaluate(made(), truth, THUMOS, 1)
    with pytest.raises(UserError, match="label 0, allowed: 0 to -1"):
        mean_ap.evaluate(truth, truth, THUMOS, 0)
    with pytest.raises(UserError, match="1 NaN"):
        made((0, np.nan, 1, 0))
    with pytest.raises(UserError, match="columns of"):
        mean_ap.instances([0, 1], [[0, 1]], [0])


def test_near_duplicates_of_the_ground_truth_go():
    truth = made((0, 0, 10, 0), (0, 5, 5, 0), (0, 0.0004, 10.0004, 0), (0, 0, 10, 1), (1, 0, 10, 0))
    kept = mean_ap.clean(truth, 1e-3, 0.0)
    assert kept.segment[:, 0].tolist() == [0, 0, 0] and kept.video.tolist() == [0, 0, 1]
    assert len(mean_ap.clean(truth, -1, -1).video) == 5


# -------------------------------------------------------------------------------- published data


def test_thumos_synthetic(golden, real_data):
    annotation = annotations.read(
        real_data / "thumos14" / "thumos14_opentad_style_reconstructed.json", ground_truth="opentad"
    )
    folder = golden / "detection"
    found = results.read(folder / "thumos14_synthetic_predictions.json.gz", annotation.names)
    wanted = json.loads((folder / "thumos14_synthetic_expected.json").read_text())
    truth, found = loaded(annotation.subset("validation"), found)
    assert len(found.video) == wanted["n_pred"]
    scores = mean_ap.evaluate(truth, found, THUMOS, 20)
    assert scores.positives.sum() == wanted["n_gt"] == 3325
    numbers = scores.numbers()
    assert numbers["mAP"] == pytest.approx(0.6061066275558759, abs=1e-9)
    for tiou in THUMOS.tious:
        assert numbers[f"mAP@{tiou}"] == pytest.approx(wanted["metrics"][f"mAP@{tiou}"], abs=1e-9)
    for name, value in wanted["mean_topkx_recall"].items():
        assert numbers[name] == pytest.approx(value, abs=1e-9)
    middle = THUMOS.tious.index(0.5)
    for name, value in wanted["per_class_ap_at_0_5"].items():
        ap = scores.ap[middle, annotation.names.index(name)]
        assert ap == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("split", range(10))
def test_freezad(real_data, split):
    folder = real_data / "freezad"
    wanted = json.loads((folder / "expected.json").read_text())["per_split"][f"50/{split}"]
    annotation = annotations.read(folder / "50" / f"gt_{split}.csv.gz")
    found = results.read(folder / "50" / f"pred_{split}.csv.gz", annotation.names)
    truth, found = loaded(annotation.videos, found)
    assert (len(truth.video), len(found.video)) == (wanted["n_gt"], wanted["n_pred"])
    scores = mean_ap.evaluate(truth, found, THUMOS, len(annotation.names))
    np.testing.assert_allclose(scores.means, wanted["mAP"], atol=1e-6)
    assert scores.average == pytest.approx(wanted["avg"], abs=1e-6)


def test_activitynet_at_its_size(real_data):
    path = real_data / "tad_eval" / "activitynet13_val_gt.json"
    annotation = annotations.read(path, ground_truth="keep")
    rng = np.random.default_rng(0)
    found = {}
    for video in annotation.videos:
        spans = np.sort(rng.random((100, 2)) * video.duration, 1)
        label = np.where(rng.random(100) < 0.8, video.labels[0], rng.integers(0, 200, 100))
        found[video.id] = results.Detections(spans, rng.random(100), label)
    truth, found = loaded(annotation.videos, found)
    assert len(truth.video) == 7654 and len(found.video) == 492_600
    start = time.perf_counter()
    scores = mean_ap.evaluate(truth, found, mean_ap.ACTIVITYNET, 200)
    assert time.perf_counter() - start < 20
    assert 0 < scores.average < 0.2
    one = annotations.read(path, ground_truth="keep").videos
    perfect = {v.id: results.Detections(v.segments, np.ones(len(v.labels)), v.labels) for v in one}
    perfect_scores = mean_ap.evaluate(*loaded(one, perfect), mean_ap.ACTIVITYNET, 200)
    assert perfect_scores.average > 0.99  # three segments of the file are empty


# ------------------------------------------------------------------------------- errors, pictures


def test_kinds_of_errors_by_hand():
    truth = made((0, 0, 10, 0), (0, 20, 30, 1), (1, 0, 10, 0))
    found = made(
        (0, 0, 10, 0, 0.9),  # true
        (0, 0, 9, 0, 0.8),  # double
        (0, 4, 12, 0, 0.7),  # IoU 0.5, but taken: double; at 0.6 localisation
        (0, 20, 30, 0, 0.6),  # confusion
        (0, 60, 70, 1, 0.5),  # background
        (7, 0, 10, 0, 0.4),  # another video: background
    )
    split = error_analysis.errors(truth, found, 0.6, 2)
    assert split.counts.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
    assert split.missed.tolist() == [1, 1] and split.positives.tolist() == [2, 1]
    assert split.confused.tolist() == [[0, 0], [1, 0]]
    numbers = split.numbers()
    assert numbers["share/true"] == pytest.approx(1 / 6)
    assert numbers["share/missed"] == pytest.approx(2 / 3)
    table = split.text(["run", "jump"]).splitlines()
    assert [line.split()[0] for line in table[1:]] == ["run", "jump", "all", "mAP"]
    with pytest.raises(UserError, match="floor"):
        error_analysis.errors(truth, found, 0.1, 2)


def test_gains_are_what_removing_brings():
    truth, found = random_case(3)
    split = error_analysis.errors(truth, found, 0.5, 4, per_truth=1000)
    assert split.counts.sum() == (found.label < 3).sum()  # of class 3 there is no truth
    assert split.counts[:, 0].sum() == (truth.label < 4).sum() - split.missed.sum()
    base = mean_ap.evaluate(truth, found, Protocol((0.5,)), 4).average
    ordered = mean_ap.by_score(found)
    taken = mean_ap.match(truth, ordered, (0.5,))[0]
    kind, _ = error_analysis.kinds(truth, ordered, taken, 0.5, 0.1)
    left = ordered.at(kind != error_analysis.LOCALISATION)
    without = mean_ap.evaluate(truth, left, Protocol((0.5,)), 4).average
    assert split.gain["localisation"] == pytest.approx(without - base)
    assert all(gain >= -1e-12 for gain in split.gain.values())


def test_timeline_is_a_picture_that_says_everything():
    truth = timeline.Track(np.array([[1.0, 3.5]]), np.array([1]), np.ones(1))
    found = timeline.Track(
        np.array([[1.2, 3.0], [70.0, 80.0]]), np.array([1, 0]), np.array([0.8, 0.05])
    )
    picture = timeline.svg("<v&1>\x00", 75.0, truth, found, ["walk", 'ju"mp'])
    tree = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    bars = tree.findall(f"{space}rect")
    tips = [bar.find(f"{space}title").text for bar in bars]
    assert tips == [
        'annotated: ju"mp 1.00 to 3.50 s',
        "detected: walk 70.00 to 80.00 s, score 0.050",
        'detected: ju"mp 1.20 to 3.00 s, score 0.800',
    ]
    for bar in bars:  # also what ends after the video stays inside
        assert float(bar.get("x")) + float(bar.get("width")) <= timeline.WIDTH
    assert "1:15" in picture and "<v&1>" not in picture
    assert ElementTree.fromstring(timeline.svg("x", 0.0, truth, truth, "ab")) is not None
    assert timeline.page("a<b", [picture]).startswith("<!DOCTYPE html>")


# ----------------------------------------------------------------------------------- merging


def test_times_of_the_specification():
    clock = np.array([1536 / 30, 4 / 30, 120.0])
    found = postprocess.seconds([[0, 10], [-3000, 700], [767, 900]], clock[None])
    np.testing.assert_allclose(found, [[51.2, 52.53333333], [0, 120], [120, 120]], atol=1e-6)


def windows(*columns) -> dict:
    """Rows of windows: video, clock, segment, score, label."""
    names = ("video", "clock", "segment", "score", "label")
    return dict(zip(names, columns, strict=True))


def test_windows_of_a_video_are_merged_before_suppression():
    clock = np.array([[0, 0.5, 40], [10, 0.5, 40], [0, 0.5, 8]])
    segment = np.array([[[20, 40], [0, 0]], [[0, 20], [40, 60]], [[4, 8], [0, 1]]], float)
    score = np.array([[0.9, 0.0], [0.80004, 0.3], [0.5, 0.25]])
    label = np.zeros((3, 2), int)
    found = postprocess.merge(
        windows([4, 4, 2], clock, segment, score, label), Nms(method="hard"), Merging()
    )
    assert found.video.tolist() == [2, 2, 4, 4]
    np.testing.assert_allclose(found.segment, [[2, 4], [0, 0.5], [10, 20], [30, 40]])
    np.testing.assert_allclose(found.score, [0.5, 0.25, 0.9, 0.3], atol=1e-6)


def test_times_and_scores_are_rounded():
    given = windows([0], [[0, 1, 99]], [[[1.23456, 2.34567]]], [[0.123456]], [[3]])
    found = postprocess.merge(given, Nms(), Merging())
    assert found.segment.tolist() == [[1.23, 2.35]] and found.label.tolist() == [3]
    assert found.score.tolist() == pytest.approx([0.1235])
    raw = postprocess.merge(given, Nms(), Merging(seconds=-1, digits=-1))
    np.testing.assert_allclose(raw.segment, [[1.23456, 2.34567]], atol=1e-6)


def test_classifier_gives_classes_and_scores():
    rule = Merging(classifier="x", best=2)
    segment, score = np.array([[0.0, 1.0], [5.0, 6.0]]), np.array([0.5, 0.4])
    found = postprocess.classified(segment, score, np.array([0.1, 0.6, 0.3]), rule)
    assert found[2].tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(found[1], [0.3, 0.24, 0.15, 0.12])
    root = postprocess.classified(
        segment, score, np.zeros(4), Merging(fusion="root", softmax=True, best=1)
    )
    np.testing.assert_allclose(root[1], np.sqrt([0.125, 0.1]))


def test_a_video_of_one_window_is_thinned_in_steps():
    rule = Merging(single=True, classifier="x", best=1)
    thin = Nms(multiclass=False, method="hard", iou=0.5, most=2)
    segment = np.array([[[0, 10], [0, 9], [20, 30], [40, 50]]], float)
    score = [[0.9, 0.8, 0.7, 0.6]]
    given = windows([0], [[0, 0.1, 5.0]], segment, score, np.zeros((1, 4), int))
    found = postprocess.merge(given, thin, rule, {0: np.array([0.0, 0.5])})
    np.testing.assert_allclose(found.segment, [[0, 1], [2, 3]])
    assert found.label.tolist() == [1, 1]
    # The cut is that of the suppression: each of the classifier's classes has all that is left.
    both = dataclasses.replace(rule, best=2)
    every = postprocess.merge(given, thin, both, {0: np.array([0.25, 0.5])})
    assert every.label.tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(every.score, [0.45, 0.35, 0.225, 0.175], atol=1e-6)
    with pytest.raises(UserError, match="no scores of it"):
        postprocess.merge(given, thin, rule, {})
    double = windows([0, 0], np.ones((2, 3)), np.zeros((2, 1, 2)), *[np.ones((2, 1))] * 2)
    with pytest.raises(UserError, match="2 windows"):
        postprocess.merge(double, thin, rule)


def test_merging_fields_are_checked():
    for field, value in (("fusion", "sum"), ("best", 0)):
        post = Post(merging=Merging(**{field: value}))
        with pytest.raises(UserError, match=rf"config\.post\.merging\.{field}={value!r}"):
            validate(Config(post=post))
    validate(Config())

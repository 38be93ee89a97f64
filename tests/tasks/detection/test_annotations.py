"""Annotations of untrimmed videos: every form that is read, what is refused, what is written."""

import gzip
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.tasks.detection import annotations, results

SCRIPT = Path(__file__).parents[3] / "scripts" / "prepare_detection.py"

GOOD = {
    "a": {
        "subset": "training",
        "duration": 10.0,
        "frame": 300,
        "annotations": [
            {"label": "run", "segment": [1.0, 2.5]},
            {"label": "jump", "segment": [2, 9.75]},
            {"label": "Ambiguous", "segment": [0, 9]},
        ],
    },
    "b": {"subset": "validation", "duration": 4.0, "fps": 25, "annotations": []},
    "c": {"subset": "test", "annotations": [{"label": "run", "segment": [0, 3]}]},
}


def stored(tmp_path, database, name="notes.json"):
    path = tmp_path / name
    path.write_text(json.dumps({"version": "1", "database": database}))
    return path


def video(**fields):
    return {"v": {"subset": "x", "duration": 10.0, "annotations": [], **fields}}


def segment(**fields):
    return video(annotations=[{"label": "run", "segment": [1, 2], **fields}])


def test_the_three_json_forms(tmp_path):
    found = annotations.read(stored(tmp_path, GOOD))
    assert found.names == ("jump", "run") and found.subsets == ("training", "validation", "test")
    a, b, c = found.videos
    assert (a.frames, a.fps, a.duration) == (300, 30.0, 10.0)
    assert a.segments.tolist() == [[1.0, 2.5], [2.0, 9.75]] and a.labels.tolist() == [1, 0]
    assert (b.frames, b.fps) == (100, 25.0) and b.segments.shape == (0, 2)
    assert (c.frames, c.fps, c.duration) == (0, 0.0, 0.0) and c.labels.tolist() == [1]
    assert [video.id for video in found.subset("training")] == ["a"]
    assert len(found.subset("")) == 3


def test_csv_in_two_spellings_and_gzip(tmp_path):
    text = "video,start,end,label,subset,duration,frames\na,1.0,2.5,run,training,10,300\n"
    text += "a,2,9.75,jump,training,10,300\nb,,,,validation,4,\n"
    path = tmp_path / "notes.csv"
    path.write_text(text)
    found = annotations.read(path)
    assert [v.id for v in found.videos] == ["a", "b"] and found.videos[0].fps == 30
    assert found.videos[0].segments.tolist() == [[1.0, 2.5], [2.0, 9.75]]
    assert len(found.videos[1].labels) == 0
    plain = text.replace("video,start,end", "video-id,t-start,t-end")
    packed = tmp_path / "notes.csv.gz"
    packed.write_bytes(gzip.compress(plain.encode()))
    again = annotations.read(packed)
    assert [v.labels.tolist() for v in again.videos] == [v.labels.tolist() for v in found.videos]


def test_tables_of_spreadsheets(tmp_path):
    """A byte order mark, blanks after commas, empty lines, quoted cells, names of any script."""
    rows = ["video, start, end, label", "a, 1, 2, Läufer", "", '"b,1", 3, 4, "走る\u2028x"']
    path = tmp_path / "notes.csv"
    path.write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    found = annotations.read(path)
    assert [video.id for video in found.videos] == ["a", "b,1"]
    assert found.names == ("Läufer", "走る\u2028x")
    path.write_bytes("\r\n".join([*rows[:3], "b, 5"]).encode("utf-8-sig"))
    with pytest.raises(UserError, match="line 4: 4 cells"):  # the line of the file
        annotations.read(path)
    text = json.dumps({"database": GOOD})
    (tmp_path / "notes.json").write_bytes(text.encode("utf-8-sig"))
    assert len(annotations.read(tmp_path / "notes.json").videos) == 3


def test_what_is_written_reads_the_same(tmp_path):
    first = annotations.read(stored(tmp_path, GOOD))
    annotations.write(tmp_path / "again.json", first)
    second = annotations.read(tmp_path / "again.json")
    assert first.names == second.names
    for one, two in zip(first.videos, second.videos, strict=True):
        assert (one.id, one.subset, one.duration) == (two.id, two.subset, two.duration)
        assert (one.frames, one.fps) == (two.frames, two.fps)
        np.testing.assert_array_equal(one.segments, two.segments)
        np.testing.assert_array_equal(one.labels, two.labels)


@pytest.mark.parametrize(
    ("database", "message"),
    [
        (segment(segment=[1, 12]), r"video 'v', segment 0: 1 to 12 s, but the video ends at 10 s"),
        (segment(segment=[3, 2]), r"segment 0: segment 3 to 2 s, needed: 0 <= start <= end"),
        (segment(segment=[-1, 2]), r"segment -1 to 2 s"),
        (segment(segment=[1]), r"segment \[1\], needed: \[start, end\]"),
        (segment(segment=["x", 2]), r"time 'x', needed: a number"),
        (segment(segment=[float("nan"), 2]), r"time nan, needed: finite"),
        (segment(label=3), r"label 3, needed: a class name"),
        (segment(label="runn"), r"'runn' is none of the 2 classes \(did you mean 'run'\?\)"),
        (video(fps=0), r"video 'v': fps 0, needed: above 0"),
        (video(frame=0), r"video 'v': frame 0, needed: above 0"),
        (video(duration=-1), r"duration -1, needed: above 0"),
        (video(duration="long"), r"duration 'long', needed: a number"),
        (video(annotations={}), r"'annotations' must be a list"),
        (video(subset=3), r"subset 3, needed: a text"),
        ({"v": 3}, r"video 'v': is int, needed: an object"),
    ],
)
def test_errors_name_file_video_and_segment(tmp_path, database, message):
    path = stored(tmp_path, database)
    with pytest.raises(UserError, match=message) as error:
        annotations.read(path, names=("run", "jump"))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON .line 1"),
        ("[]", "needs an object 'database'"),
        ('{"database": []}', "needs an object 'database'"),
    ],
)
def test_broken_documents(tmp_path, text, message):
    path = tmp_path / "notes.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        annotations.read(path)
    with pytest.raises(UserError, match="no such file"):
        annotations.read(tmp_path / "absent.json")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"x" * 999)[:15])
    with pytest.raises(UserError, match="cannot be read"):
        annotations.read(tmp_path / "cut.json.gz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,start,label\n", "has no column 'end'"),
        ("video,start,end\n", "has no column 'label'"),
        ("video,start,end,label\na,1,2\n", "line 2: 4 cells"),
        ("video,start,end,label,fps\na,1,2,x,5\na,1,2,x,6\n", "line 3.*first row says"),
        ("video,start,end,label,fps\na,1,2,x,0\n", "fps 0, needed: above 0"),
    ],
)
def test_broken_tables(tmp_path, text, message):
    path = tmp_path / "notes.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        annotations.read(path)


def test_a_subset_without_ground_truth_is_an_error(tmp_path):
    found = annotations.read(stored(tmp_path, GOOD))
    with pytest.raises(UserError, match=r"'validation' has no ground truth \(1 videos"):
        found.subset("validation")
    assert len(found.subset("validation", segments=False)) == 1
    with pytest.raises(UserError, match="'val' is unknown; subsets: training, validation, test"):
        found.subset("val")
    table = tmp_path / "notes.csv"
    table.write_text("video,start,end,label\na,1,2,run\n")
    with pytest.raises(UserError, match="names no subsets; '' takes all of its videos"):
        annotations.read(table).subset("training")


def test_rules_for_late_segments(tmp_path):
    rows = [{"label": "run", "segment": times} for times in ([1, 2], [8, 11], [10, 12], [9, 10.0])]
    path = stored(tmp_path, video(annotations=rows))
    times = {
        rule: annotations.read(path, ground_truth=rule).videos[0].segments.tolist()
        for rule in ("keep", "clip", "drop")
    }
    assert times["keep"] == [[1, 2], [8, 11], [10, 12], [9, 10]]
    assert times["clip"] == [[1, 2], [8, 10], [9, 10]]
    assert times["drop"] == [[1, 2], [9, 10]]
    with pytest.raises(UserError, match="ground truth 'late' is unknown; allowed: strict, keep"):
        annotations.read(path, ground_truth="late")


@pytest.mark.parametrize(
    ("rule", "videos", "count"),
    [("actionformer", 212, 3358), ("opentad", 211, 3325), ("gtad", 210, 3311)],
)
def test_the_three_ground_truths_of_thumos(real_data, rule, videos, count):
    path = real_data / "thumos14" / "thumos14_actionformer_format.json"
    found = annotations.read(path, ground_truth=rule)
    test = found.subset("Test")
    assert len(found.names) == 20 and len(test) == videos
    assert sum(len(video.labels) for video in test) == count


def test_the_file_of_thumos_is_refused_as_it_is(real_data):
    with pytest.raises(UserError, match=r"'video_test_0000270', segment 7: .* ends at 176\.25 s"):
        annotations.read(real_data / "thumos14" / "thumos14_actionformer_format.json")


def test_activitynet(real_data):
    path = real_data / "tad_eval" / "activitynet13_val_gt.json"
    found = annotations.read(path, ground_truth="keep")
    assert len(found.names) == 200 and len(found.subset("validation")) == 4926
    assert sum(len(video.labels) for video in found.videos) == 7654


def test_detections_there_and_back(tmp_path):
    found = {
        "a": results.Detections(
            np.array([[0.5, 1.25], [3.0, 4.0]]), np.array([0.75, 0.5]), np.array([1, 0])
        ),
        "b": results.Detections(np.zeros((0, 2)), np.zeros(0), np.zeros(0, int)),
    }
    path = tmp_path / "found.json"
    path.write_text(json.dumps(results.results(found, ("run", "jump"))))
    # The fields without which ActivityNet's toolkit refuses a file.
    assert {"results", "version", "external_data"} == set(json.loads(path.read_text()))
    again = results.read(path, ("run", "jump"))
    assert list(again) == ["a", "b"] and again["b"].segment.shape == (0, 2)
    for one, two in zip(found["a"], again["a"], strict=True):
        np.testing.assert_array_equal(one, two)
    assert results.read(path, ("run",))["a"].label.tolist() == [-1, 0]
    path.write_text('{"results": {"a": [{"segment": [0, 1], "label": "x"}]}}')
    with pytest.raises(UserError, match="video 'a', segment 0: score None"):
        results.read(path, ("x",))


def test_untrimmednet_scores_know_the_videos(real_data):
    annotation = annotations.read(
        real_data / "thumos14" / "thumos14_actionformer_format.json", ground_truth="opentad"
    )
    videos = annotation.subset("Test")
    path = real_data / "thumos14" / "uNet_test.npy.gz"
    scores = results.read_scores(path, [video.id for video in videos], annotation.names)
    assert scores.shape == (211, 20)
    right = [
        row.argmax() in set(video.labels.tolist())
        for row, video in zip(scores, videos, strict=True)
    ]
    assert sum(right) == 195  # one column off: 4
    for name in ("video_validation_0000051", "video_test_0009999", "clip"):
        with pytest.raises(UserError, match="has no scores of video"):
            results.read_scores(path, [name], annotation.names)
    with pytest.raises(UserError, match="'Run' is none of the 20"):
        results.read_scores(path, [], ("Run",))


def test_classifier_scores_of_json(tmp_path):
    path = tmp_path / "cuhk.json"
    path.write_text(json.dumps({"class": ["b", "a"], "results": {"x1": [0.25, 0.75]}}))
    assert results.read_scores(path, ["v_x1"], ("a", "b")).tolist() == [[0.75, 0.25]]
    path.write_text(json.dumps({"class": ["b", "a"], "results": {"v_x1": [0.25, 0.75]}}))
    assert results.read_scores(path, ["x1"], ("a", "b")).tolist() == [[0.75, 0.25]]
    for ids, names, message in (
        (["v_x2"], ("a", "b"), "video 'v_x2'"),
        (["x1"], ("a", "c"), "class 'c'"),
    ):
        with pytest.raises(UserError, match=message):
            results.read_scores(path, ids, names)
    path.write_text(json.dumps({"class": ["b", "a"], "results": {"x1": [0.25]}}))
    with pytest.raises(UserError, match="1 scores, 2 classes"):
        results.read_scores(path, ["x1"], ("a", "b"))


def test_lists_of_ids(tmp_path):
    path = tmp_path / "blocked.json"
    for content in (["a", "b"], {"a": "gone", "b": "gone"}):
        path.write_text(json.dumps(content))
        assert annotations.read_ids(path) == {"a", "b"}
    path.write_text("[1]")
    with pytest.raises(UserError, match="a JSON list of video ids"):
        annotations.read_ids(path)


# ---------------------------------------------------------------------------------------- script


@pytest.fixture(scope="module")
def prepare():
    return runpy.run_path(str(SCRIPT))["main"]


def test_prepare_converts(tmp_path, prepare, capsys):
    out = tmp_path / "folder" / "out.json"
    given = ["--source", str(stored(tmp_path, GOOD)), "--out", str(out)]
    assert prepare(["convert", *given]) == 0
    assert "3 videos, 2 classes" in capsys.readouterr().out
    assert [video.id for video in annotations.read(out).videos] == ["a", "b", "c"]
    late = ["--source", str(stored(tmp_path, segment(segment=[1, 12]))), "--out", str(out)]
    assert prepare(["convert", *late]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert prepare(["convert", *late, "--ground-truth", "clip"]) == 0
    assert annotations.read(out).videos[0].segments.tolist() == [[1, 10]]


def test_prepare_framewise(tmp_path, prepare, capsys):
    source = tmp_path / "scores.npz"
    truth = np.array([0, 0, 2, 2, 1, 0, 1, 1], np.int16)
    scores = np.arange(24, dtype=np.float32).reshape(8, 3)
    arrays = {"gt": truth, "scores": scores, "offsets": np.array([0, 5, 8])}
    np.savez(source, **arrays, split=np.array([1, 2], np.int8))
    given = ["framewise", "--source", str(source), "--out", str(tmp_path / "out")]
    assert prepare(given) == 0
    found = annotations.read(tmp_path / "out" / "split2.json", names=("action01", "action02"))
    assert [video.subset for video in found.videos] == ["training", "validation"]
    first = found.videos[0]
    assert first.segments.tolist() == [[2, 4], [4, 5]] and first.labels.tolist() == [1, 0]
    assert (first.frames, first.fps, first.duration) == (5, 1.0, 5.0)
    np.testing.assert_array_equal(np.load(tmp_path / "out/features/video001.npy"), scores[5:])
    np.savez(source, **arrays, split=np.array([1], np.int8))
    assert prepare(given) == 2 and "contradict each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (b"no archive", "cannot be read"),
        (b"PK\x03\x04 cut off", "cannot be read"),
        ({"scores": np.zeros(8)}, r"scores of shape \(8,\), needed: \[frames, classes\]"),
        ({"gt": np.array([0, 0, 2, 2, 1, 0, 3, 1])}, "labels 0 to 3, needed: 0 to 2"),
        ({"offsets": np.array([0, 9, 8])}, "contradict each other"),
        ({"offsets": np.array([2, 5, 8])}, "contradict each other"),
    ],
)
def test_broken_framewise_scores(tmp_path, prepare, capsys, arrays, message):
    source = tmp_path / "scores.npz"
    good = {
        "gt": np.array([0, 0, 2, 2, 1, 0, 1, 1]),
        "scores": np.zeros((8, 3), np.float32),
        "offsets": np.array([0, 5, 8]),
        "split": np.array([1, 2]),
    }
    if isinstance(arrays, bytes):
        source.write_bytes(arrays)
    else:
        np.savez(source, **{**good, **arrays})
    assert prepare(["framewise", "--source", str(source), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1 and "scores.npz" in said
    assert not (tmp_path / "out").exists()


def test_prepare_framewise_of_50_salads(tmp_path, prepare, real_data):
    source = real_data / "tad_eval" / "salads50_mid_svm.npz"
    assert prepare(["framewise", "--source", str(source), "--out", str(tmp_path)]) == 0
    parts = [annotations.read(tmp_path / f"split{k}.json") for k in range(1, 6)]
    assert all(len(part.names) == 17 and len(part.subset("validation")) == 10 for part in parts)
    tested = [video.id for part in parts for video in part.subset("validation")]
    assert len(set(tested)) == 50


def test_prepare_composes(tmp_path, prepare, real_data, capsys):
    given = ["--source", str(real_data / "fight_surv"), "--out", str(tmp_path)]
    assert prepare(["composed", *given, "--train", "1", "--test", "1"]) == 0
    assert "2 videos, 8 segments" in capsys.readouterr().out
    found = annotations.read(tmp_path / "annotations.json")
    assert found.names == ("fight",) and found.subsets == ("training", "validation")


def test_prepare_draws(tmp_path, prepare, capsys):
    out = tmp_path / "drawn"
    assert prepare(["drawn", "--out", str(out), "--train", "1", "--test", "1"]) == 0
    assert "2 videos" in capsys.readouterr().out
    found = annotations.read(out / "annotations.json")
    assert [(video.id, video.subset, video.frames) for video in found.videos] == [
        ("train0000", "training", 192),
        ("test0000", "validation", 192),
    ]
    assert found.names == ("across", "down")
    with pytest.raises(SystemExit):
        prepare(["composed", "--out", str(out)])
    assert "composed needs --source" in capsys.readouterr().err

"""Annotation files of every form, and every way in which they may be wrong."""

import csv
import json
import logging
import pickle
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from jaxact.config import UserError
from jaxact.tasks.action import annotation_files, annotations, pose_augment, poses, skeletons
from jaxact.tasks.action.skeletons import COCO17, OPENPOSE18

SCRIPT = Path(__file__).parents[3] / "scripts" / "prepare_pose.py"


def poses_of(people=1, frames=6, joints=17, seed=0, values=2):
    rng = np.random.default_rng(seed)
    shape = (people, frames, joints, values)
    keypoint = rng.uniform(1, 99, shape).astype(np.float16)
    if values == 3:
        keypoint[..., 2] = rng.uniform(0, 1, shape[:3])
    return keypoint


def annotation(name, label=0, **changes):
    keypoint = poses_of()
    record = {
        "frame_dir": name,
        "label": label,
        "img_shape": (100, 200),
        "original_shape": (100, 200),
        "total_frames": 6,
        "keypoint": keypoint,
        "keypoint_score": np.full(keypoint.shape[:3], 0.5, np.float16),
    }
    record.update(changes)
    return {key: value for key, value in record.items() if value is not None}


def three(**changes):
    return [annotation("a"), annotation("b", **{"label": 1, **changes}), annotation("c", 2)]


def save(tmp_path, annotations, split=None, **more):
    path = tmp_path / "poses.pkl"
    if split is None:
        names = [r.get("filename") or r.get("frame_dir") for r in annotations]
        split = {"train": names[:2], "val": names[2:]}
    path.write_bytes(pickle.dumps({"split": split, "annotations": annotations, **more}))
    return path


def test_pickle(tmp_path):
    path = save(tmp_path, three())
    clips = annotations.read(path, "train", classes=3)
    assert [(clip.id, clip.label, clip.frames, clip.video) for clip in clips] == [
        ("a", 0, 6, ""),
        ("b", 1, 6, ""),
    ]
    clip = clips[0]
    assert clip.size == (100, 200)
    assert clip.keypoint.dtype == clip.score.dtype == np.float32
    np.testing.assert_array_equal(clip.keypoint, poses_of().astype(np.float32))
    assert (clip.score == 0.5).all() and clip.score.shape == (1, 6, 17)
    assert [clip.id for clip in annotations.read(path)] == ["a", "b", "c"]
    assert tuple(annotation_files.parse(path).members) == ("train", "val")
    assert annotation_files.parse(path).classes == ()


def test_pickle_videos(tmp_path):
    path = save(tmp_path, [annotation("a"), annotation("b", filename="x/b.avi")])
    clips = annotations.read(path, videos="clips")
    assert [clip.video for clip in clips] == ["clips/a.mp4", "clips/x/b.avi"]
    assert [clip.id for clip in clips] == ["a", "x/b.avi"]
    clips = annotations.read(path, "train", videos="clips", suffix="_rgb.avi")
    assert clips[0].video == "clips/a_rgb.avi"


def test_scores(tmp_path):
    clips = annotations.read(save(tmp_path, three(keypoint_score=None)))
    assert (clips[1].score == 1).all()
    given = poses_of(values=3)
    path = save(tmp_path, three(keypoint=given, keypoint_score=None))
    clip = annotations.read(path)[1]
    np.testing.assert_array_equal(clip.keypoint, given[..., :2].astype(np.float32))
    np.testing.assert_array_equal(clip.score, given[..., 2].astype(np.float32))
    path = save(tmp_path, three(keypoint=given))
    with pytest.raises(UserError, match="leave one of them out"):
        annotations.read(path)


def test_nan_joints(tmp_path, caplog):
    keypoint = poses_of()
    keypoint[0, 2, 3, 1] = np.nan
    score = np.full(keypoint.shape[:3], 0.5, np.float32)
    score[0, 4, 5] = np.nan
    path = save(tmp_path, three(keypoint=keypoint, keypoint_score=score))
    with caplog.at_level(logging.WARNING):
        clip = annotations.read(path)[1]
    assert "2 NaN joints in 1 records (first: b)" in caplog.text
    for t, j in ((2, 3), (4, 5)):
        assert clip.keypoint[0, t, j].tolist() == [0, 0] and clip.score[0, t, j] == 0
    assert (clip.score > 0).sum() == 6 * 17 - 2
    assert np.isfinite(clip.keypoint).all()
    with pytest.raises(UserError, match=re.escape("record 1 (b): 2 joints are NaN")):
        annotations.read(path, nan="error")


def test_detections_are_grouped_by_frame(tmp_path):
    count = 14
    keypoint = np.zeros((count, 17, 3), np.float16)
    keypoint[:, :, 0] = np.arange(1, count + 1)[:, None]
    keypoint[:, :, 2] = 0.5
    at = np.array([4, 0, 0] + [2] * 11)
    boxes = np.array([0.9, 0.1, 0.8, *np.linspace(0.1, 0.9, 11)])
    record = annotation(
        "b", 1, keypoint=keypoint, frame_inds=at, box_score=boxes, raw_file="k400.pkl"
    )
    del record["keypoint_score"]
    clip = annotations.read(save(tmp_path, [record], {"train": ["b"]}))[0]
    assert clip.keypoint.shape == (10, 6, 17, 2)
    assert clip.keypoint[:, 4, 0, 0].tolist() == [1] + [0] * 9
    assert clip.keypoint[:, 0, 0, 0].tolist() == [3, 2] + [0] * 8
    assert clip.keypoint[:, 2, 0, 0].tolist() == list(range(14, 4, -1))  # the 11th is left out
    assert not clip.score[:, [1, 3, 5]].any()
    assert (clip.score[:, 2] == 0.5).all()
    del record["box_score"]
    keypoint[1, :, 2] = 0.6
    clip = annotations.read(save(tmp_path, [record], {"train": ["b"]}))[0]
    assert clip.keypoint[:2, 0, 0, 0].tolist() == [2, 3]


BAD_RECORDS = {
    "no label": (dict(label=None), "record 1 (b): has no label"),
    "label above": (dict(label=3), "record 1 (b): label 3, allowed: 0 to 2"),
    "label below": (dict(label=-1), "label -1, allowed: 0 to 2"),
    "label kind": (dict(label=1.5), "label 1.5, needed: a whole number"),
    "label truth": (dict(label=True), "label True, needed: a whole number"),
    "label name": (dict(label="jump"), "label 'jump', allowed: numbers"),
    "no frames": (dict(total_frames=None), "has no 'total_frames'"),
    "zero frames": (dict(total_frames=0), "total_frames 0, needed: at least 1"),
    "frame count": (dict(total_frames=7), "keypoint has 6 frames, total_frames is 7"),
    "no size": (dict(img_shape=None), "has no 'img_shape'"),
    "size": (dict(img_shape=(100, 200, 3)), "frame size (100, 200, 3), needed: (h, w) px"),
    "size zero": (dict(img_shape=(0, 200)), "frame height 0, needed: at least 1"),
    "no pose": (dict(keypoint=None), "has no 'keypoint'"),
    "raw file": (dict(keypoint=None, raw_file="x.pkl"), "in another file, 'x.pkl'"),
    "rank": (dict(keypoint=np.zeros((6, 17, 2))), "keypoint is 6x17x2, needed: people x frames"),
    "coordinates": (dict(keypoint=np.zeros((1, 6, 17, 4))), "keypoint is 1x6x17x4"),
    "nobody": (dict(keypoint=np.zeros((0, 6, 17, 2))), "it holds no pose"),
    "score shape": (dict(keypoint_score=np.ones((1, 6, 16))), "score is 1x6x16, keypoint is"),
    "score range": (dict(keypoint_score=np.full((1, 6, 17), 3.0)), "scores run from 3 to 3"),
    "far away": (
        dict(keypoint=np.where(np.arange(2) == 1, -2001, poses_of()).astype(np.float32)),
        "a coordinate of 2001 px in a frame of 100x200 (h x w); allowed: up to 2000 px either way",
    ),
    "all nan": (dict(keypoint=np.full((1, 6, 17, 2), np.nan)), "every joint is NaN"),
    "infinite": (dict(keypoint=np.full((1, 6, 17, 2), np.inf)), "infinite"),
    "joints": (
        dict(keypoint=np.ones((1, 6, 15, 2)), keypoint_score=None),
        "15 joints a person, the records before it 17",
    ),
    "text": (dict(keypoint=[["a"]]), "keypoint holds <U1, needed: numbers"),
    "ragged": (dict(keypoint=[[[1], [2, 3]]]), "keypoint is ragged"),
    "nameless": (dict(frame_dir=None), "record 1: has neither 'frame_dir' nor 'filename'"),
    "twice": (dict(frame_dir="a"), "id 'a' was used before"),
    "frame index": (
        dict(keypoint=poses_of(values=3)[0], frame_inds=np.array([0, 1, 2, 3, 4, 6])),
        "frame_inds run from 0 to 6, allowed: 0 to 5",
    ),
    "frame indices": (
        dict(keypoint=poses_of(values=3)[0], frame_inds=np.array([0, 1])),
        "frame_inds has shape (2,), needed: (6,)",
    ),
    "detections": (
        dict(keypoint=poses_of()[0], frame_inds=np.arange(6)),
        "needed: detections x joints x 3",
    ),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_record(tmp_path, case):
    changes, message = BAD_RECORDS[case]
    path = save(tmp_path, three(**changes), {"train": ["a"]})
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        annotations.read(path, classes=3)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


BAD_PICKLES = {
    "list": ([annotation("a")], "a bare list of records"),
    "keys": ({"annotations": []}, "keys annotations; needed: {'split'"),
    "kind": (3, "int; needed"),
    "tables": ({"split": [], "annotations": []}, "'split' must be a dict"),
    "record": ({"split": {}, "annotations": [1]}, "record 0: is a int"),
    "empty": ({"split": {}, "annotations": []}, "no records"),
    "unknown id": (
        {"split": {"train": ["a", "z"]}, "annotations": [annotation("a")]},
        "names 1 ids that have no record, first 'z'",
    ),
    "id twice": (
        {"split": {"train": ["a", "a"]}, "annotations": [annotation("a")]},
        "split 'train' names 'a' twice",
    ),
    "split kind": ({"split": {"train": "a"}, "annotations": [annotation("a")]}, "is a str"),
    "unknown split": (
        {"split": {"xsub_train": ["a"], "xsub_val": []}, "annotations": [annotation("a")]},
        "split 'train' is unknown; splits: xsub_train, xsub_val",
    ),
    "empty split": (
        {"split": {"train": []}, "annotations": [annotation("a")]},
        "split 'train' is empty",
    ),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_bad_pickle(tmp_path, case):
    content, message = BAD_PICKLES[case]
    path = tmp_path / "poses.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        annotations.read(path, "train")
    assert str(path) in str(raised.value)


def test_other_files(tmp_path):
    with pytest.raises(UserError, match=r"suffix '\.npy', allowed: \.pkl, .* \.jsonl"):
        annotations.read(tmp_path / "poses.npy")
    for name in ("a.pkl", "a.csv", "a.jsonl"):
        with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
            annotations.read(tmp_path / name)
    (tmp_path / "b.csv").write_bytes(b"file,label\n\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        annotations.read(tmp_path / "b.csv")


def test_unlabelled(tmp_path):
    clips = annotations.read(save(tmp_path, three(label=None)), labelled=False)
    assert [clip.label for clip in clips] == [0, -1, 2]


def table(tmp_path, *rows, header=("file", "label", "split")):
    path = tmp_path / "clips.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_csv(tmp_path):
    path = table(
        tmp_path, ("x/a.mp4", "wave", "train"), ("b.mp4", "clap", "val"), ("c.mp4", "wave", "val")
    )
    clips = annotations.read(path, "val")
    assert [(clip.id, clip.label, clip.frames) for clip in clips] == [("b", 0, 0), ("c", 1, 0)]
    assert clips[0].video == str(tmp_path / "b.mp4") and clips[0].keypoint is None
    assert annotations.read(path)[0].id == "x/a"
    assert annotation_files.parse(path).classes == ("clap", "wave")
    assert [clip.label for clip in annotations.read(path, classes=("wave", "clap"))] == [0, 1, 0]
    assert annotations.read(path, videos="v")[1].video == "v/b.mp4"
    with pytest.raises(UserError, match="label 'clap', allowed: wave, jump"):
        annotations.read(path, classes=("wave", "jump"))
    with pytest.raises(UserError, match=r"2 class names .* the config says 3"):
        annotations.read(path, classes=3)


def test_csv_numbers_and_columns(tmp_path):
    header = ("id", "label", "file", "frames", "note")
    path = table(
        tmp_path, ("one", "4", "a.mp4", "30", "x"), ("two", "0", "b.mp4", "", ""), header=header
    )
    first, second = annotations.read(path, classes=5)
    assert (first.id, first.label, first.frames) == ("one", 4, 30)
    assert (second.id, second.label, second.frames) == ("two", 0, 0)
    assert annotation_files.parse(path).classes == () and annotation_files.parse(path).members == {}
    with pytest.raises(UserError, match=r"line 2: label 4, allowed: 0 to 3"):
        annotations.read(path, classes=4)
    with pytest.raises(UserError, match="none, the file has no splits"):
        annotations.read(path, "train")
    assert annotations.read(path, classes=("a", "b", "c", "d", "e"))[0].label == 4


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("a.mp4", "1")], ("path", "label"), "must name the columns file, label"),
        ([], (), "it reads nothing"),
        ([], ("file", "label"), "no records"),
        ([("a.mp4",)], ("file", "label"), "line 2: 1 fields, the header has 2"),
        ([("", "1")], ("file", "label"), "line 2: field file is empty"),
        ([("a.mp4", "")], ("file", "label"), "line 2: has no label"),
        ([("a.mp4", "1"), ("b.mp4", "x")], ("file", "label"), "line 3: label 'x' is a name"),
        ([("a.mp4", "1"), ("a.avi", "1")], ("file", "label"), "line 3: id 'a' was used before"),
        ([("a.mp4", "1", "x")], ("file", "label", "frames"), "frames 'x', needed: a whole number"),
    ],
)
def test_bad_csv(tmp_path, rows, header, message):
    path = table(tmp_path, *rows, header=header)
    with pytest.raises(UserError, match=re.escape(message)):
        annotations.read(path)


def lines(tmp_path, *objects):
    path = tmp_path / "clips.jsonl"
    path.write_text("\n".join(o if isinstance(o, str) else json.dumps(o) for o in objects) + "\n\n")
    return path


def pose_line(**changes):
    data = {
        "id": "a",
        "label": 1,
        "size": [100, 200],
        "joints": "coco17",
        "keypoint": poses_of().tolist(),
    }
    data.update(changes)
    return {key: value for key, value in data.items() if value is not None}


def test_jsonl(tmp_path):
    path = lines(
        tmp_path,
        pose_line(split="train", keypoint=poses_of(values=3).tolist()),
        {"id": "b", "video": "v/b.mp4", "label": 0, "split": "val", "frames": 9},
    )
    clip = annotations.read(path, "train", classes=2, skeleton=COCO17)[0]
    assert (clip.id, clip.label, clip.frames, clip.video) == ("a", 1, 6, "")
    assert clip.size == (100, 200) and clip.keypoint.shape == (1, 6, 17, 2)
    np.testing.assert_allclose(clip.score, poses_of(values=3)[..., 2], rtol=0, atol=1e-7)
    clip = annotations.read(path, "val")[0]
    assert clip.keypoint is None and clip.frames == 9
    assert clip.video == str(tmp_path / "v/b.mp4")
    named = lines(tmp_path, {"id": "a", "video": "a.mp4", "label": "x"})
    assert annotation_files.parse(named).classes == ("x",)


def test_jsonl_joints_by_name(tmp_path):
    keypoint = poses_of(joints=18)
    path = lines(tmp_path, pose_line(joints="openpose18", keypoint=keypoint.tolist()))
    assert annotations.read(path)[0].keypoint.shape[2] == 18
    clip = annotations.read(path, skeleton=COCO17)[0]
    for joint in ("nose", "l_wrist", "r_ear"):
        np.testing.assert_array_equal(
            clip.keypoint[:, :, COCO17.joints.index(joint)],
            keypoint[:, :, OPENPOSE18.joints.index(joint)].astype(np.float32),
        )
    with pytest.raises(UserError, match=r"line 1 \(a\): lacks the joints belly, face"):
        annotations.read(path, skeleton=skeletons.JHMDB15)
    long = [joint.replace("l_", "left_").replace("r_", "right_") for joint in COCO17.joints]
    path = lines(tmp_path, pose_line(joints=long))
    np.testing.assert_array_equal(annotations.read(path, skeleton=COCO17)[0].keypoint, poses_of())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: is not JSON"),
        ("[1]", "line 1: is a list, needed: an object"),
        (pose_line(keypoints=[]), "field 'keypoints' is unknown, did you mean 'keypoint'?"),
        (pose_line(id=None), "line 1: has no 'id'"),
        ({"id": "a", "label": 0}, "line 1 (a): has neither 'video' nor 'keypoint'"),
        (pose_line(size=None), "so it needs 'size' and 'joints'"),
        (pose_line(joints=None), "so it needs 'size' and 'joints'"),
        (pose_line(joints="coco"), "skeleton 'coco' is unknown"),
        (pose_line(joints=["nose"]), "17 joints a person, 'joints' names 1"),
        (pose_line(frames=7), "keypoint has 6 frames, total_frames is 7"),
        (pose_line(keypoint=[[[[1, 2], [3]]]]), "keypoint is ragged"),
        (pose_line(keypoint=[[1, 2]]), "keypoint is 1x2, needed"),
        (pose_line(label=0.5), "label 0.5, needed: a whole number"),
        (pose_line(size=7), "frame size 7, needed: (h, w) px"),
    ],
)
def test_bad_jsonl(tmp_path, line, message):
    path = lines(tmp_path, line)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        annotations.read(path)
    assert str(path) in str(raised.value)


def test_joint_count_against_the_skeleton(tmp_path):
    path = save(tmp_path, three())
    assert len(annotations.read(path, skeleton=COCO17)) == 3
    with pytest.raises(UserError, match="17 joints a person, openpose18 has 18"):
        annotations.read(path, skeleton=OPENPOSE18)
    path = save(tmp_path, three(), joints=list(COCO17.joints), classes=["x", "y", "z"])
    assert annotation_files.parse(path).classes == ("x", "y", "z")
    assert len(annotations.read(path, skeleton=COCO17, classes=3)) == 3


def test_people():
    keypoint = np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((4, 2, 3, 2))
    score = np.array([0.2, 0.9, 0.5, 0.9])[:, None, None] * np.ones((4, 2, 3))
    chosen, best = poses.choose_people(keypoint, score, 2)
    assert chosen[:, 0, 0, 0].tolist() == [1, 3] and best[:, 0, 0].tolist() == [0.9, 0.9]
    assert poses.choose_people(keypoint, score, 4)[0] is keypoint
    padded, scores = poses.pad_people(chosen, best, 5, -1e4)
    assert padded.shape == (5, 2, 3, 2) and (padded[2:] == -1e4).all()
    assert scores.shape == (5, 2, 3) and not scores[2:].any()
    np.testing.assert_array_equal(padded[:2], chosen)
    with pytest.raises(ValueError, match="4 people"):
        poses.pad_people(keypoint, score, 2, 0)


def test_skeletons():
    assert [COCO17.swap[i] for i in (0, 1, 2, 15, 16)] == [0, 2, 1, 16, 15]
    left, right = (0, 2, 3, 6, 7, 8, 12, 14), (1, 4, 5, 9, 10, 11, 13, 15)
    swap = skeletons.COCO17_NTU.limb_swap
    assert [swap[i] for i in left] == list(right) and swap[16] == 16
    for skeleton in skeletons.SKELETONS.values():
        joints, limbs = skeleton.swap, skeleton.limb_swap
        assert [joints[i] for i in joints] == list(range(len(joints)))
        assert [limbs[i] for i in limbs] == list(range(len(skeleton.limbs)))
        assert len(set(skeleton.joints)) == len(skeleton.joints)
        assert {end for limb in skeleton.limbs for end in limb} == set(range(len(joints)))
        assert skeletons.order(skeleton.joints, skeleton) is None


def test_joint_names_of_other_styles():
    hands = skeletons.Skeleton("hands", ("l_hand", "r_hand", "head"))
    assert hands.swap == (1, 0, 2)
    assert skeletons.order(["Head", "LeftHand", "right_hand"], hands) == (1, 2, 0)
    with pytest.raises(UserError, match="lacks the joints r_hand of hands"):
        skeletons.order(["head", "L-hand"], hands)
    with pytest.raises(UserError, match="did you mean 'coco17'"):
        skeletons.find("coco_17")


def test_perturbations():
    rng = np.random.default_rng(0)
    keypoint = rng.uniform(1, 99, (2, 3, 5, 2)).astype(np.float32)
    keypoint[0, 0, 0] = 0
    still = pose_augment.draw_warp(rng)
    np.testing.assert_allclose(pose_augment.warp(keypoint, (60, 100), still), keypoint, atol=1e-4)
    quarter = pose_augment.warp(
        np.array([[[[80.0, 30.0]]]]), (60, 100), pose_augment.Warp(degrees=90)
    )
    np.testing.assert_allclose(quarter.ravel(), [50, 60], atol=1e-9)  # right of the middle -> below
    double = pose_augment.warp(keypoint, (60, 100), pose_augment.Warp(scale=2.0, shift=(0.1, -0.5)))
    assert double.dtype == np.float32 and double[0, 0, 0].tolist() == [0, 0]
    want = (keypoint - [50, 30]) * 2 + [60, 0]
    np.testing.assert_allclose(double[1], want[1], rtol=0, atol=1e-4)
    drawn = [pose_augment.draw_warp(rng, 30, 0.2, 0.1) for _ in range(200)]
    assert 25 < max(w.degrees for w in drawn) <= 30 and min(w.scale for w in drawn) >= 0.8
    shaken = pose_augment.shake(keypoint, 2.0, np.random.default_rng(1))
    assert shaken[0, 0, 0].tolist() == [0, 0] and 1 < (shaken - keypoint).std() < 3
    assert shaken.dtype == np.float32
    np.testing.assert_array_equal(pose_augment.shake(keypoint, 0.0, rng), keypoint)


@pytest.fixture(scope="module")
def prepare():
    return runpy.run_path(str(SCRIPT))["main"]


def test_prepare_jhmdb(real_data, prepare, tmp_path):
    out = tmp_path / "jhmdb.pkl"
    arguments = ["jhmdb", "--source", str(real_data / "jhmdb_pose"), "--out", str(out)]
    assert prepare(arguments) == 0
    raw = np.load(real_data / "jhmdb_pose/jhmdb_pose.npz")
    counts = {"split1": (433, 176), "split2": (433, 176), "split3": (434, 175)}
    for name, (train, test) in counts.items():
        sides = [
            annotations.read(out, f"{name}_{s}", classes=14, skeleton=skeletons.JHMDB15)
            for s in ("train", "test")
        ]
        assert [len(side) for side in sides] == [train, test]
        assert not {c.id for c in sides[0]} & {c.id for c in sides[1]}
    clips = annotations.read(out, classes=14)
    assert [clip.label for clip in clips] == raw["label"].tolist()
    assert np.array([clip.frames for clip in clips]).sum() == len(raw["keypoints_norm"])
    start = raw["offsets"][7]
    want = (raw["keypoints_norm"][start : start + clips[7].frames] + 0.5) * [320, 240]
    np.testing.assert_allclose(clips[7].keypoint[0], want, rtol=0, atol=2e-3)
    assert all((clip.keypoint != 0).all() and (clip.score == 1).all() for clip in clips)
    assert annotation_files.parse(out).classes[:2] == ("catch", "clap")


def test_prepare_openpose(real_data, prepare, tmp_path):
    out = tmp_path / "exercise.pkl"
    arguments = ["openpose", "--source", str(real_data / "openpose_exercise"), "--out", str(out)]
    assert prepare(arguments) == 0
    first = out.read_bytes()
    assert prepare(arguments) == 0 and out.read_bytes() == first
    tested = []
    for fold in range(5):
        train = annotations.read(out, f"fold{fold}_train", classes=8, skeleton=COCO17)
        test = annotations.read(out, f"fold{fold}_test", classes=8, skeleton=COCO17)
        assert len(train) + len(test) == 112 and len(test) in (22, 23)
        assert {clip.label for clip in train} == {clip.label for clip in test} == set(range(8))
        tested += [clip.id for clip in test]
    assert len(tested) == len(set(tested)) == 112
    clip = annotations.read(out)[0]
    assert clip.size == (720, 1280) and clip.score.max() <= 1.05
    assert ((clip.keypoint == 0).all(-1) == (clip.score == 0)).all()


def test_prepare_refuses(prepare, tmp_path, capsys):
    assert prepare(["jhmdb", "--source", str(tmp_path), "--out", str(tmp_path / "x.pkl")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert prepare(["jhmdb", "--source", str(tmp_path), "--out", str(tmp_path / "x.npz")]) == 2
    assert "suffix must be .pkl" in capsys.readouterr().err
    np.savez(tmp_path / "openpose_exercise.npz", label=np.zeros(1))
    assert prepare(["openpose", "--source", str(tmp_path), "--out", str(tmp_path / "x.pkl")]) == 2
    assert "lacks the arrays keypoints" in capsys.readouterr().err


def test_real_table(real_data):
    path = real_data / "fight_surv/labels.csv"
    videos = path.parent / "videos"
    train, test = (
        annotations.read(path, split, classes=2, videos=videos) for split in ("train", "test")
    )
    assert (len(train), len(test)) == (220, 80)
    assert annotation_files.parse(path).classes == ("fight", "noFight")
    assert all(Path(clip.video).is_file() and clip.frames > 0 for clip in test)


def test_every_reader_is_listed():
    assert set(annotation_files.PARSERS) == {".pkl", ".pickle", ".csv", ".jsonl"}

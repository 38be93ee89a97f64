"""The JRDB-Social reader: pairs, policies, filters, splits, and what it refuses."""

import json

import pytest

from jaxact.config import UserError
from jaxact.tasks.relation import jrdb, jrdb_splits
from jaxact.tasks.relation.jrdb import Rules

WALK, STAND, SIT = jrdb.CLASSES


def person(
    number, box=(100, 100, 40, 100), pairs=(), occlusion="Fully_visible", key="H-interaction"
):
    """A record as the label files have it; pairs: (other, names)."""
    return {
        "label_id": f"pedestrian:{number}",
        "box": list(box),
        "attributes": {"occlusion": occlusion, "no_eval": False},
        key: [
            {"pair": f"pedestrian:{other}", "box_pair": [0, 0, 1, 1], "inter_labels": names}
            for other, names in pairs
        ],
    }


def scene(tmp_path, frames, name="a"):
    """Writes a scene; frames: name -> records, or the records of one frame."""
    folder = tmp_path / jrdb_splits.LABELS
    folder.mkdir(parents=True, exist_ok=True)
    frames = frames if isinstance(frames, dict) else {"000000.jpg": frames}
    (folder / f"{name}.json").write_text(json.dumps({"labels": frames}))
    return str(tmp_path)


def pairs(tmp_path, frames, **rules):
    """({(A, B): label} of the only frame, counts)."""
    found, counts = jrdb.read(scene(tmp_path, frames), ["a"], Rules(**rules))
    assert len(found) <= 1
    named = {(f.people[a], f.people[b]): label for f in found for a, b, label in f.pairs}
    return named, dict(counts)


def test_a_pair_is_one_pair_whoever_lists_it(tmp_path):
    records = [
        person(7, pairs=[(9, {WALK: 1})]),
        person(9, (200, 90, 40, 100), [(7, {WALK: 1}), (3, {SIT: 1})]),
        person(3, (300, 90, 40, 100)),  # named by 9 alone, the higher number
        person(12, (400, 90, 40, 100), [(3, {"standing together together": 1})], key="HHI"),
        {"label_id": "car:1", "box": "what cars have"},
    ]
    found, counts = pairs(tmp_path, records)
    assert found == {(7, 9): 0, (3, 9): 2, (3, 12): 1}
    assert counts["pairs kept"] == 3 and counts["people"] == 4
    assert pairs(tmp_path, records, sides="lower")[0] == {(7, 9): 0}


def test_policies(tmp_path):
    cases = {  # names -> label under unique, under first
        1: ({"conversation": 1, WALK: 2}, 0, None),
        2: ({WALK: 2, STAND: 1}, 1, 0),
        3: ({SIT: 1, STAND: 1}, None, 2),
        4: ({"eating": 1}, None, None),
        5: ({SIT: 3, "conversation": 1}, 2, 2),
    }
    for number, (names, unique, first) in cases.items():
        records = [person(1, pairs=[(2, names)]), person(2, (200, 100, 40, 100))]
        for policy, label in (("unique", unique), ("first", first)):
            found, _ = pairs(tmp_path / f"{number}{policy}", records, policy=policy)
            assert found == ({} if label is None else {(1, 2): label}), (names, policy)


def test_every_outcome_is_counted(tmp_path):
    records = [
        person(1, pairs=[(2, {WALK: 2, STAND: 1}), (3, {SIT: 1, WALK: 1}), (99, {WALK: 1})]),
        person(2, (200, 100, 40, 100), [(3, {"eating": 1}), (2, {WALK: 1})]),
        person(3, (300, 100, 40, 100)),
        person(4, (10, 10, 0, 5)),
        person(5, (-3, 10, 20, 50)),
        person(6, (3760, 10, 20, 50)),
    ]
    found, counts = pairs(tmp_path, records)
    assert found == {(1, 2): 1}
    assert counts == {
        "frames": 1,
        "people": 3,
        "pairs kept": 1,
        "pairs of no class": 1,
        "pairs of several classes, none easier": 1,
        "pairs of several classes, the easiest taken": 1,
        "partner absent": 1,
        "person paired with itself": 1,
        "box invalid": 2,
        "box outside the picture": 1,
        "name eating": 1,
    }


def test_sides_that_disagree(tmp_path):
    records = [
        person(1, pairs=[(2, {WALK: 2})]),
        person(2, (200, 100, 40, 100), [(1, {STAND: 1})]),
    ]
    assert pairs(tmp_path, records)[0] == {(1, 2): 1}
    assert pairs(tmp_path, records, policy="first")[0] == {(1, 2): 0}


def test_filters_leave_everybody_in_the_crowd(tmp_path):
    records = [
        person(1, (100, 100, 40, 100), [(2, {WALK: 1}), (3, {WALK: 1})]),
        person(2, (400, 100, 40, 100), [(3, {STAND: 1})], "Severely_occluded"),
        person(3, (600, 100, 40, 100), [], "Mostly_visible"),
        person(4, (3500, 100, 100, 100), [(3, {SIT: 1})]),
    ]
    assert len(pairs(tmp_path, records)[0]) == 4
    found, counts = pairs(tmp_path, records, visible=True)
    assert set(found) == {(1, 3), (3, 4)}
    assert counts["pairs filtered out (occlusion, border)"] == 2
    # 100 px from the left and ending 160 px from the right: both within 200 px of an end.
    assert set(pairs(tmp_path, records, border=200)[0]) == {(2, 3)}
    frames, _ = jrdb.read(str(tmp_path), ["a"], Rules(visible=True))
    assert len(frames[0].boxes) == 4  # what the density counts


def test_frames_by_name_every_nth(tmp_path):
    both = [person(1, pairs=[(2, {WALK: 1})]), person(2, (200, 100, 40, 100))]
    root = scene(tmp_path, {f"{n:06}.jpg": both for n in (4, 0, 3, 1, 2)})
    assert [f.id for f in jrdb.read(root, ["a"], Rules(interval=2))[0]] == [
        "a/000000",
        "a/000002",
        "a/000004",
    ]
    frame = jrdb.read(root, ["a"], Rules())[0][1]
    assert frame.path == f"{root}/images/image_stitched/a/000001.jpg" and frame.scene == "a"


def test_presets():
    fixed = jrdb.splits("fixed", "")
    assert [len(scenes) for scenes in fixed.values()] == [19, 5, 3]
    everything = [scene for scenes in fixed.values() for scene in scenes]
    assert len(set(everything)) == len(everything) == 27
    assert "stlc-111-2019-04-19_0" in fixed["train"]  # the original tests on it as well
    social = jrdb.splits("jrdb_social", "")
    assert [len(scenes) for scenes in social.values()] == [20, 7, 0]
    assert {*social["train"], *social["val"]} == set(everything)


def test_splits_of_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"train": ["a", "b"], "val": ["c"]}')
    assert jrdb.splits("mine.json", str(tmp_path)) == {
        "train": ("a", "b"),
        "val": ("c",),
        "test": (),
    }
    for text, message in (
        ('{"train": ["a"], "test": ["a"]}', r"scene a is in train and in test"),
        ('{"train": ["a", "a"]}', r"scene a is in train and in train"),
        ('{"train": "a"}', r'must be \{"train": \[scene'),
        ('{"training": ["a"]}', r'must be \{"train": \[scene'),
        ('{"train": ["a"', r"mine.json: is not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            jrdb.splits(str(path), "")
    with pytest.raises(UserError, match=r"splits='guide': allowed: fixed, jrdb_social, or a .json"):
        jrdb.splits("guide", str(tmp_path))


BAD = [  # the records of a frame, and the line
    ([person(1), person(1)], r"frame 000000.jpg: pedestrian:1 is listed twice"),
    (["walking"], r"is no record of a person"),
    ([person(1, (1, 2, 3))], r"pedestrian:1 has box \[1, 2, 3\]; allowed: 4 numbers"),
    ([person(1, (1, 2, 3, "4"))], r"allowed: 4 numbers"),
    ([{**person(1), "label_id": "pedestrian:one"}], r"must be text like 'pedestrian:7'"),
    ([{**person(1), "label_id": 7}], r"must be text like 'pedestrian:7'"),
    ([{**person(1), "H-interaction": "x"}], r"H-interaction must be a list"),
    ([{**person(1), "H-interaction": [{"pair": "pedestrian:2"}]}], r"needs pair and inter_labels"),
    ([person(1, pairs=[(2, {WALK: "1"})]), person(2)], r"needs pair and inter_labels"),
    (
        [person(1, pairs=[(2, {"Walking Together": 1})]), person(2)],
        r"pair 1, 2 has the unknown label 'Walking Together'; did you mean 'walking together'",
    ),
    ([person(1, pairs=[(2, {"sitting togehter": 1})]), person(2)], r"mean 'sitting together'"),
]


@pytest.mark.parametrize(("records", "message"), BAD)
def test_bad_records(tmp_path, records, message):
    with pytest.raises(UserError, match=message) as error:
        pairs(tmp_path, records)
    assert "a.json: frame 000000.jpg" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (person(1, (10, 10, 0, 5)), r"box invalid: pedestrian:1 has box \[10, 10, 0, 5\]"),
        (person(1, (4000, 0, 10, 10)), r"outside the picture: pedestrian:1 .* outside 3760x480 px"),
        (person(1, pairs=[(5, {WALK: 1})]), r"partner absent: pedestrian:1 names pedestrian:5"),
        (person(1, pairs=[(1, {WALK: 1})]), r"person paired with itself"),
        (person(1, pairs=[(2, {"waltzing": 1})]), r"the unknown label 'waltzing'; allowed without"),
    ],
)
def test_strict_names_what_is_left_out_otherwise(tmp_path, record, message):
    records = [record, person(2, (200, 100, 40, 100))]
    pairs(tmp_path, records)
    with pytest.raises(UserError, match=message):
        pairs(tmp_path, records, strict=True)


def test_bad_files(tmp_path):
    root = scene(tmp_path, [person(1)])
    path = tmp_path / jrdb_splits.LABELS / "a.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.json: is not JSON: ") as error:
        jrdb.read(root, ["a"], Rules())
    assert "\n" not in str(error.value)
    for text, message in (
        ("[]", r'must be \{"labels"'),
        ('{"labels": {"a": {}}}', r"frame 'a' must be a file name with a list"),
        ('{"labels": {"../a": []}}', r"frame '../a' must be a file name"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            jrdb.read(root, ["a"], Rules(interval=1 + len(text)))  # another key of the cache
    with pytest.raises(UserError, match=r"b\.json: no such file"):
        jrdb.read(root, ["b"], Rules())
    with pytest.raises(UserError, match=r"has no folder labels/labels_2d_activity_social_stitched"):
        jrdb.read(str(tmp_path / "elsewhere"), ["a"], Rules())


def test_a_changed_file_is_read_again(tmp_path):
    import os

    both = [person(1, pairs=[(2, {WALK: 1})]), person(2, (200, 100, 40, 100))]
    assert pairs(tmp_path, both)[0] == {(1, 2): 0}
    path = tmp_path / jrdb_splits.LABELS / "a.json"
    path.write_text(path.read_text().replace(WALK, SIT))
    os.utime(path, ns=(1, 1))
    frames, _ = jrdb.read(str(tmp_path), ["a"], Rules())
    assert frames[0].pairs[0][2] == 2

"""What a stranger's files hold: turned photos, huge numbers, odd paths, locked files, empty frames.

Read by the JRDB-Social, CSV and boxes readers.
"""

import json
import os

import numpy as np
import pytest
from PIL import Image
from tasks.relation.test_jrdb import SIT, STAND, WALK, person, scene
from tasks.relation.test_jrdb import pairs as of_scene

from jaxact.config import UserError
from jaxact.tasks.relation import annotation_files, crops, dataset, jrdb, jrdb_splits
from jaxact.tasks.relation.config import Data
from jaxact.tasks.relation.jrdb import Rules

SIZE = (200, 60)
TWO = [{"id": n, "box": [20 * n, 10, 15, 40]} for n in (1, 3)]


class Stage:
    size = 16


@pytest.fixture(autouse=True)
def fresh():
    crops.KEPT.clear()
    annotation_files.header.cache_clear()


def picture(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def asked(tmp_path, people=TWO, name="x.jpg", **fields):
    """The examples of a boxes file."""
    (tmp_path / "x.json").write_text(json.dumps({"image": name, "people": people}))
    return dataset.examples(Data(**{"size": (0, 0), **fields}), str(tmp_path / "x.json"))


# ----------------------------------------------------------------------------------- JRDB-Social


def test_the_first_name_is_that_of_the_lower_number_wherever_it_stands(tmp_path):
    high = person(2, (200, 100, 40, 100), [(1, {STAND: 1})])
    low = person(1, pairs=[(2, {WALK: 2})])
    for number, records in enumerate(([low, high], [high, low])):
        assert of_scene(tmp_path / str(number), records, policy="first")[0] == {(1, 2): 0}


def test_who_is_of_unknown_visibility_is_not_visible(tmp_path):
    records = [person(1, pairs=[(2, {WALK: 1})]), person(2, (200, 100, 40, 100))]
    assert of_scene(tmp_path / "a", records, visible=True)[0] == {(1, 2): 0}
    for change in ({"attributes": None}, {"attributes": {}}):
        found, counts = of_scene(tmp_path / "b", [records[0], records[1] | change], visible=True)
        assert not found and counts["pairs filtered out (occlusion, border)"] == 1


def test_strict_knows_the_classes_that_are_not_asked_for(tmp_path):
    records = [person(1, pairs=[(2, {WALK: 1, SIT: 2})]), person(2, (200, 100, 40, 100))]
    found, _ = of_scene(tmp_path, records, classes=(WALK, STAND), strict=True)
    assert found == {(1, 2): 0}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (person(2**31), r"'pedestrian:2147483648' must be text like 'pedestrian:7'"),
        (person("9" * 5000), r"must be text like 'pedestrian:7'"),
        (person(1, pairs=[(2**40, {WALK: 1})]), r"must be text like 'pedestrian:7'"),
        (person(1, (10**400, 1, 2, 3)), r"allowed: 4 numbers x, y, w, h"),
        (person(1, pairs=[(2, {WALK: 10**400})]), r"needs pair and inter_labels"),
    ],
)
def test_numbers_beyond_every_measure(tmp_path, record, message):
    with pytest.raises(UserError, match=message) as error:
        of_scene(tmp_path, [record])
    assert len(str(error.value)) < 400


def test_label_files_that_cannot_be_opened(tmp_path):
    path = tmp_path / jrdb_splits.LABELS / "a.json"
    path.mkdir(parents=True)
    with pytest.raises(UserError, match=r"a\.json: cannot be read: Is a directory"):
        jrdb.read(str(tmp_path), ["a"], Rules())
    root = scene(tmp_path / "b", [])
    (tmp_path / "b" / jrdb_splits.LABELS / "a.json").write_text("1" * 5000)
    with pytest.raises(UserError, match=r"a\.json: is not JSON: "):
        jrdb.read(root, ["a"], Rules())


def test_a_split_in_the_root_comes_before_one_of_the_working_folder(tmp_path, monkeypatch):
    root, other = tmp_path / "root", tmp_path / "other"
    for folder, name in ((root, "a"), (other, "b")):
        folder.mkdir()
        (folder / "splits.json").write_text(json.dumps({"train": [name]}))
    monkeypatch.chdir(other)
    assert jrdb.splits("splits.json", str(root))["train"] == ("a",)
    assert jrdb.splits("splits.json", str(tmp_path))["train"] == ("b",)
    assert jrdb.splits(str(other / "splits.json"), str(root))["train"] == ("b",)


def test_boxes_beyond_pictures_of_any_size_are_found_when_these_are_opened(tmp_path):
    records = [person(1, (20, 5, 30, 40), [(2, {WALK: 1})]), person(2, (250, 5, 30, 40))]
    root = scene(tmp_path, records)
    picture(tmp_path / jrdb_splits.IMAGES / "a" / "000000.jpg")
    (tmp_path / "s.json").write_text('{"train": ["a"]}')
    data = Data(root=root, splits="s.json", size=(0, 0))
    pair = dataset.source(data, "train")[0]
    message = r"000000\.jpg: person 2 has box 250 5 30 40, outside the picture of 200x60 px"
    for with_crops in (True, False):
        with pytest.raises(UserError, match=message):
            dataset.prepare(data, with_crops, pair, None, Stage, "train")
    assert "person 2 has box" in dataset.audit(data, True, pair)


def test_class_weights_without_data_are_even():
    np.testing.assert_array_equal(dataset.class_weights(Data(balance="weights")), np.ones(3))


# ------------------------------------------------------------------------------------------ photos


def test_a_photo_that_its_camera_turned(tmp_path):
    """Boxes are in the upright picture, 60 px wide and 200 px high."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = picture(tmp_path / "x.jpg", exif=exif)
    assert annotation_files.header(str(path)) == (60, 200)
    people = [{"id": n, "box": [10, 50 * n, 20, 40]} for n in (1, 3)]
    found = dataset.prepare(Data(size=(0, 0)), True, asked(tmp_path, people)[0], None, Stage, "val")
    assert found["crops"].shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match=r"outside the picture of 60x200 px"):
        asked(tmp_path, [TWO[0], {"id": 2, "box": [70, 10, 20, 40]}])


def test_pictures_of_another_size_say_how_any_size_is_taken(tmp_path):
    """Also for spatial features alone, which open no picture."""
    picture(tmp_path / "x.jpg")
    message = r"x\.jpg: is 200x60 px; config\.data\.size says 400x60 \(0,0 = each picture's own\)"
    with pytest.raises(UserError, match=message):
        asked(tmp_path, size=(400, 60))
    assert len(asked(tmp_path, size=SIZE)) == 1


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 10**400])
def test_people_numbered_beyond_32_bits(tmp_path, number):
    picture(tmp_path / "x.jpg")
    with pytest.raises(UserError, match=r"entry 0: a person is .*, the id a number of 32 bits"):
        asked(tmp_path, [TWO[0], {**TWO[1], "id": number}])


def test_a_box_beyond_every_measure(tmp_path):
    picture(tmp_path / "x.jpg")
    with pytest.raises(UserError, match=r"entry 0: a person is "):
        asked(tmp_path, [TWO[0], {**TWO[1], "box": [10**400, 1, 2, 3]}])


def test_a_csv_with_people_numbered_beyond_32_bits(tmp_path):
    picture(tmp_path / "x.png")
    path = tmp_path / "pairs.csv"
    path.write_text(
        f"image,box_a,box_b,label,split,a,b\nx.png,10 10 20 40,40 10 20 40,{WALK},train,1,{2**31}\n"
    )
    with pytest.raises(UserError, match=r"pairs\.csv:2: person '2147483648'; allowed: numbers"):
        dataset.source(Data(annotations=str(path), size=SIZE), "train")


def test_a_csv_for_pictures_of_another_size_says_so(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(
        f"image,box_a,box_b,label,split\nx.png,10 10 20 40,40 500 20 400,{WALK},train\n"
    )
    with pytest.raises(UserError, match=r"outside the picture of 3760x480 px.*config\.data\.size"):
        dataset.source(Data(annotations=str(path)), "train")


def test_a_picture_with_one_person_is_named(tmp_path, capsys):
    picture(tmp_path / "x.jpg")
    assert len(asked(tmp_path, TWO[:1])) == 0
    assert capsys.readouterr().err == f"left out: {tmp_path / 'x.jpg'}: has no pair of people\n"


# ------------------------------------------------------------------------------------------- paths


def test_names_that_are_no_utf8(tmp_path):
    """As a Linux file system may hold them, with the crops kept in memory and on disk."""
    folder = tmp_path / os.fsdecode(b"caf\xe9 \xe4\xba\xba")
    path = picture(folder / "x.jpg")
    (folder / "x.json").write_text(json.dumps({"image": "x.jpg", "people": TWO}))
    for cache in ("", str(tmp_path / "crops")):
        data = Data(size=(0, 0), cache_dir=cache)
        pair = dataset.examples(data, str(path))[0]
        assert dataset.pair_crops(data, pair, 16).shape == (2, 16, 16, 3)


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "y.json").mkdir()
    with pytest.raises(UserError, match=r"y\.json: cannot be read: Is a directory"):
        dataset.examples(Data(), str(tmp_path))
    boxes = ((10.0, 10.0, 20.0, 30.0), (50.0, 10.0, 20.0, 30.0))
    name = tmp_path / "y.json" / ("x" * 300)
    with pytest.raises(UserError, match=r"cannot be read: File name too long"):
        crops.stored(str(name), SIZE, boxes, crops.Cut(), str(tmp_path / "crops"))

"""Pairs of people: sources, crops, the order of reading, the two caches, what is refused."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from jaxact.config import UserError
from jaxact.tasks.relation import annotation_files, crops, dataset, jrdb, sample_data
from jaxact.tasks.relation.config import Data
from jaxact.tasks.relation.crops import Cut
from jaxact.tasks.relation.dataset import PairSource
from jaxact.tasks.relation.jrdb import Frame

SIZE = (200, 60)


class Stage:
    size = 16


@pytest.fixture(autouse=True)
def fresh():
    crops.KEPT.clear()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    scenes = {"train": 3, "val": 1, "test": 1}
    return sample_data.write(folder, scenes, frames=3, couples=4)


@pytest.fixture
def data(root):
    size = sample_data.SIZE
    return Data(root=str(root), splits="splits.json", size=size, eval_interval=1)


@pytest.fixture
def decoded(monkeypatch):
    """Paths of the pictures decoded so far."""
    found, decode = [], crops.decode
    monkeypatch.setattr(crops, "decode", lambda p, size: (found.append(p), decode(p, size))[1])
    return found


@pytest.fixture
def ramp(tmp_path):
    """A picture whose pixels say where they are."""
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    path = tmp_path / "ramp.png"
    Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)).save(path)
    return path


# ------------------------------------------------------------------------------------------ crops


def test_bounds_of_the_original():
    flat = Cut(112, 0.2, wrap=False)
    size = (3760, 480)
    cases = {
        (1000.0, 200.0, 100.0, 200.0): (980, 160, 1120, 440),
        (3700.5, 100.0, 50.0, 150.0): (3690, 70, 3760, 280),
        (3.0, 2.0, 40.0, 140.0): (0, 0, 51, 170),  # -5 and -26 are cut off
        (3800.0, 470.0, 40.0, 40.0): (3739, 459, 3760, 480),  # outside: a square at the edge
    }
    for box, wanted in cases.items():
        assert crops.bounds(box, size, flat) == wanted
    over = crops.bounds((3700.5, 100.0, 50.0, 150.0), size, Cut(112, 0.2))
    assert over == (3690, 70, 3760, 280)
    assert crops.bounds((3740.0, 100.0, 50.0, 150.0), size, Cut(112)) == (3730, 70, 3800, 280)
    assert crops.bounds((3.0, 2.0, 40.0, 140.0), size, Cut(112)) == (-5, 0, 51, 170)


def test_a_crop_is_the_picture_there(ramp):
    picture = crops.decode(str(ramp), SIZE)
    cut = Cut(20, padding=0.0)
    found = crops.crop(picture, (50.0, 10.0, 20.0, 20.0), cut)
    np.testing.assert_array_equal(found, picture[10:30, 50:70])
    seam = crops.crop(picture, (190.0, 10.0, 20.0, 20.0), cut)
    np.testing.assert_array_equal(seam[:, :10], picture[10:30, 190:])
    np.testing.assert_array_equal(seam[:, 10:], picture[10:30, :10])
    ended = crops.crop(picture, (190.0, 10.0, 20.0, 20.0), Cut(20, 0.0, wrap=False))
    whole = Image.fromarray(picture[10:30, 190:]).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(ended, np.asarray(whole))


def test_crops_are_resized_without_aliasing_from_the_crop_alone(ramp):
    """As Pillow resizes a picture cut out, not as it resizes a box of a larger one."""
    picture = crops.decode(str(ramp), SIZE)
    found = crops.crop(picture, (20.0, 5.0, 100.0, 40.0), Cut(8))
    cut = Image.fromarray(picture).crop((0, 0, 140, 53))
    np.testing.assert_array_equal(found, np.asarray(cut.resize((8, 8), Image.Resampling.BILINEAR)))


def test_an_example(data):
    source = dataset.source(data, "train")
    index = 5
    pair = source[index]
    found = dataset.prepare(data, True, pair, np.random.default_rng(0), Stage, "train")
    shapes = dataset.shapes(data, True, Stage, "train")
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (shape, np.dtype(dtype)) for k, (shape, dtype) in shapes.items()
    }
    picture = crops.decode(pair.frame.path, sample_data.SIZE)
    for place, person in enumerate((pair.a, pair.b)):
        one = crops.crop(picture, pair.frame.boxes[person], Cut(16))
        np.testing.assert_array_equal(found["crops"][place], one)
    assert found["place"][7] == np.float32(min(len(pair.frame.boxes) / 10, 1))
    a, b = found["people"]
    assert source.ids[index] == pair.id == f"{pair.frame.id}#{a}-{b}" and a < b
    bare = Data(**{**vars(data), "places": False, "scene": "off"})
    assert set(dataset.prepare(bare, True, pair, None, Stage, "val")) == (set(shapes) - {"place"})
    assert "crops" not in dataset.shapes(data, False, Stage, "val")


# ------------------------------------------------------------------------- decoding once per frame


def epoch(data, source, order):
    for index in order:
        dataset.pair_crops(data, source[index], 16)


def test_a_frame_is_decoded_once_for_all_its_pairs(data, decoded, monkeypatch):
    source = dataset.source(data, "train")
    drawn = np.random.default_rng(0).permutation(len(source))
    data.mix = 2
    order = dataset.arrange(data, source, drawn, np.random.default_rng(1))
    assert sorted(order) == list(range(len(source))) and (order != drawn).any()
    # Room for the crops of the two frames being mixed and no more.
    people = max(len({p for a, b, _ in f.pairs for p in (a, b)}) for f in source.frames)
    monkeypatch.setattr(dataset, "MEBIBYTE", 1)
    data.memory = 2 * people * 16 * 16 * 3
    epoch(data, source, order)
    assert len(decoded) == len(set(decoded)) == len(source.frames) == 9
    decoded.clear()
    crops.KEPT.clear()
    epoch(data, source, drawn)  # in any order the same memory does not do
    assert len(decoded) > 18
    decoded.clear()
    crops.KEPT.clear()
    data.memory = data.mix = 0
    assert dataset.arrange(data, source, drawn, np.random.default_rng(1)) is drawn
    epoch(data, source, drawn)
    assert len(decoded) == len(source) == 36


def test_pairs_of_the_frames_being_mixed_come_in_any_order(data):
    source = dataset.source(data, "train")
    data.mix = 3
    drawn = np.arange(len(source)).repeat(2)  # as a sampler with replacement would
    order = dataset.arrange(data, source, drawn, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(order), drawn)
    frames = source.frame_of[order].reshape(3, -1)
    windows = [set(row) for row in frames]
    assert all(len(w) == 3 for w in windows) and len(set.union(*windows)) == 9
    assert all((np.diff(row) != 0).sum() > 6 for row in frames)
    again = dataset.arrange(data, source, drawn, np.random.default_rng(0))
    np.testing.assert_array_equal(order, again)


def test_many_threads_decode_a_frame_once(data, decoded):
    source = dataset.source(data, "train")
    barrier = threading.Barrier(4)

    def read():
        barrier.wait()
        epoch(data, source, range(12))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 3


def test_memory_is_bounded_and_the_oldest_goes_first():
    kept, made = crops.Kept(), []

    def get(key):
        return kept.get(key, lambda: (made.append(key), np.zeros(40, np.uint8))[1], 100)

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"] and kept.bytes == 80
    with pytest.raises(UserError, match="broken"):
        kept.get("d", lambda: (_ for _ in ()).throw(UserError("broken")), 100)
    assert get("d").nbytes == 40  # an error is not kept


def test_the_folder_of_crops(data, decoded, tmp_path):
    source = dataset.source(data, "val")
    want = dataset.pair_crops(data, source[0], 16)
    data.cache_dir, data.memory = str(tmp_path / "crops"), 0
    for _ in range(2):
        crops.KEPT.clear()
        np.testing.assert_array_equal(dataset.pair_crops(data, source[0], 16), want)
    assert len(decoded) == 2  # once before, once into the folder
    data.padding = 0.1
    assert (dataset.pair_crops(data, source[0], 16) != want).any() and len(decoded) == 3
    entries = [p for p in (tmp_path / "crops").rglob("*") if p.is_file()]
    assert len(entries) == 2
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-1])
    crops.KEPT.clear()
    with pytest.raises(UserError, match=r"is no entry of this cache \(config.data.cache_dir\)"):
        dataset.pair_crops(data, source[0], 16)
    data.cache_dir = str(entries[0])
    with pytest.raises(UserError, match="cannot be read"):
        dataset.pair_crops(data, source[0], 16)


def test_sampling_makes_classes_equal(data):
    source = dataset.source(data, "train")
    weights = dataset.sampler(data, source, Stage)
    labels, counts = source.labels(), dataset.counts(source, 3)
    even = counts.sum() / (3 * np.maximum(counts, 1))
    assert {*np.round([weights[labels == k].sum() for k in np.flatnonzero(counts)], 9)} == {1.0}
    balances = {"none": (False, False), "weights": (False, True), "both": (True, True)}
    for balance, (drawn, weighted) in balances.items():
        data.balance = balance
        assert (dataset.sampler(data, source, Stage) is not None) == drawn
        wanted = even if weighted else np.ones(3)
        np.testing.assert_allclose(dataset.class_weights(data), wanted, rtol=1e-6)


# ------------------------------------------------------------------------------------------ a CSV


HEAD = "image,box_a,box_b,label,split"
GOOD = "ramp.png,10 10 20 40,40 10 20 40,walking together,train"


def listed(tmp_path, *lines, head=HEAD, **fields):
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join((head, *lines)) + "\n")
    annotation_files.read.cache_clear()
    return Data(annotations=str(path), size=SIZE, **fields)


def test_a_csv(tmp_path, ramp):
    data = listed(
        tmp_path,
        GOOD,
        "ramp.png,40 10 20 40,190 10 20 40,sitting together,train",
        "other.png,1 1 9 9,30 1 9 9,standing together,val",
    )
    source = dataset.source(data, "train")
    assert source.labels().tolist() == [0, 2]
    assert source.ids == ["ramp.png#0-1", "ramp.png#1-2"]
    assert len(source.frames) == 1 and len(source.frames[0].boxes) == 3
    found = dataset.prepare(data, True, source[1], None, Stage, "train")
    assert found["crops"].shape == (2, 16, 16, 3) and found["label"] == 2
    assert len(dataset.source(data, "val")) == 1 and len(dataset.source(data, "test")) == 0
    data.size = (0, 0)
    with pytest.raises(UserError, match=r"pairs.csv:4: .*other.png: no such file"):
        dataset.source(data, "val")


LINES = [
    ("ramp.png,10 10 20,40 10 20 40,walking together,train", r":3: box '10 10 20'; allowed: 4 nu"),
    (
        "ramp.png,10 10 20 40,250 10 20 40,walking together,train",
        r":3: box 250 10 20 40 is outside",
    ),
    ("ramp.png,10 30 20 40,40 10 20 40,walking together,train", r":3: box 10 30 20 40 is outside"),
    ("ramp.png,10 10 0 40,40 10 20 40,walking together,train", r":3: box 10 10 0 40 is empty"),
    ("ramp.png,10 10 nan 40,40 10 20 40,walking together,train", r"is empty"),
    (
        "ramp.png,10 10 20 40,40 10 20 40,walking togehter,train",
        r":3: label 'walking togehter' .*mean",
    ),
    ("ramp.png,10 10 20 40,40 10 20 40,,train", r":3: label '' is unknown; allowed: walking"),
    ("ramp.png,10 10 20 40,40 10 20 40,sitting together,train", r":3: has another label .*csv:2"),
    ("ramp.png,10 10 20 40,10 10 20 40,walking together,train", r":3: both boxes are the same"),
    (
        "ramp.png,10 10 20 40,40 10 20 40,walking together,dev",
        r":3: split 'dev'; allowed: train, v",
    ),
    (
        "ramp.png,10 10 20 40,40 10 20 40,walking together,val",
        r"scene ramp.png is in train and in val",
    ),
    (
        ".//ramp.png,10 10 20 40,40 10 20 40,walking together,val",
        r"scene ramp.png is in train and in val",
    ),
    (",10 10 20 40,40 10 20 40,walking together,val", r":3: names no image"),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_bad_lines(tmp_path, ramp, line, message):
    with pytest.raises(UserError, match=message) as error:
        dataset.source(listed(tmp_path, GOOD, line), "train")
    assert "\n" not in str(error.value)


def test_bad_csv_files(tmp_path, ramp):
    with pytest.raises(UserError, match="has no column box_b; needed: image, box_a, box_b, label"):
        dataset.source(listed(tmp_path, head="image,box_a,label,split"), "train")
    with pytest.raises(UserError, match="no such file"):
        dataset.source(Data(annotations=str(tmp_path / "none.csv")), "train")
    head = f"{HEAD},scene,a,b"
    lines = (f"{GOOD},hall,1,2", "two.png,1 1 9 9,30 1 9 9,standing together,val,hall,1,2")
    with pytest.raises(UserError, match="scene hall is in train and in val"):
        dataset.source(listed(tmp_path, *lines, head=head), "train")
    moved = "ramp.png,10 10 20 41,60 10 20 40,walking together,train,hall,1,3"
    with pytest.raises(UserError, match=r":3: person 1 has box 10 10 20 41, and 10 10 20 40 on an"):
        dataset.source(listed(tmp_path, lines[0], moved, head=head), "train")


# --------------------------------------------------------------------------------- files, mistakes


def test_boxes_to_predict_on(tmp_path, ramp):
    people = [{"id": n, "box": [20 * n, 10, 15, 40]} for n in (1, 3, 7)]
    path = ramp.with_suffix(".json")
    data = Data(size=(0, 0))

    def found(entry, given=path):
        path.write_text(json.dumps(entry))
        return dataset.examples(data, str(given))

    entry = {"image": "ramp.png", "people": people}
    assert [i.split("#")[1] for i in found(entry).ids] == ["1-3", "1-7", "3-7"]
    for given in (ramp, tmp_path):
        assert len(found({**entry, "pairs": [[7, 1]]}, given)) == 1
    assert len(found([entry, entry])) == 6
    assert len(found({**entry, "people": people[:1]})) == 0
    beyond = {"id": 9, "box": [250, 10, 5, 5]}
    for change, message in (
        ({"pairs": [[1, 4]]}, r"entry 0: pair \[1, 4\] names person 4, who is absent"),
        ({"pairs": [[1, 1]]}, r"pair \[1, 1\]; allowed: two different people"),
        ({"pairs": 3}, "pairs must be a list"),
        ({"people": [*people, beyond]}, r"person 9: box 250 10 5 5 is outside the picture of 200x"),
        ({"people": [people[0], people[0]]}, "person 1 is listed twice"),
        ({"people": [{"id": 1, "box": [1, 2]}]}, 'a person is {"id": 3, "box"'),
        ({"people": None}, "must be {"),
        ({"image": "gone.png"}, r"gone.png: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            found({**entry, **change})
    path.write_text("{")
    with pytest.raises(UserError, match=r"ramp.json: is not JSON"):
        dataset.examples(data, str(path))
    path.unlink()
    for given, message in (
        (ramp, "a picture needs its boxes there"),
        (tmp_path, "needed: a .json of boxes"),
        (tmp_path / "no", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            dataset.examples(data, str(given))


def test_pictures_that_cannot_be_used(tmp_path, ramp):
    boxes = ((10.0, 10.0, 20.0, 30.0), (50.0, 10.0, 20.0, 30.0))

    def pair(path):
        return PairSource([Frame("f", str(path), "s", (0, 1), boxes, ((0, 1, 0),))])[0]

    data = Data(size=SIZE)
    assert dataset.audit(data, True, pair(ramp)) == ""
    for path, content, message in (
        (tmp_path / "gone.png", None, "gone.png: no such file"),
        (tmp_path / "half.png", ramp.read_bytes()[:60], "half.png: cannot be read as a picture"),
        (tmp_path / "text.png", b"hello", "text.png: cannot be read as a picture"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            dataset.prepare(data, True, pair(path), None, Stage, "train")
        assert message in dataset.audit(data, True, pair(path))
        assert message in dataset.audit(Data(size=(0, 0)), True, pair(path))
        # Spatial features alone need no picture.
        assert set(dataset.prepare(data, False, pair(path), None, Stage, "train")) >= {"place"}
        assert dataset.audit(data, False, pair(path)) == ""
    data.size = (400, 60)
    with pytest.raises(UserError, match=r"is 200x60 px; config\.data\.size says 400x60"):
        dataset.prepare(data, True, pair(ramp), None, Stage, "train")


def test_splits_without_labels(data):
    data.splits = "jrdb_social"
    with pytest.raises(UserError, match=r"no test scenes with labels; allowed: train, val"):
        dataset.source(data, "test")
    with pytest.raises(UserError, match=r"clark-center-2019-02-28_1\.json: no such file"):
        dataset.source(data, "val")
    small = Data(**{**vars(data), "splits": "splits.json", "size": (5, 5)})
    with pytest.raises(UserError, match=r"no val pair is left .*\(box outside the picture 27, f"):
        dataset.source(small, "val")
    with pytest.raises(UserError, match=r"config.data.root is empty; allowed: the folder"):
        dataset.source(Data(), "train")


def test_survey(data, root):
    sources = {name: dataset.source(data, name) for name in ("train", "val")}
    findings, table = dataset.survey(jrdb.CLASSES, sources)
    rows = {line.split("  ")[0]: line.split()[-2:] for line in table.splitlines()}
    assert rows["(pairs kept)"] == ["36", "12"]
    counted = dataset.counts(sources["train"], 3)
    assert [int(rows[name][0]) for name in jrdb.CLASSES] == counted.tolist()
    gone = sources["train"].counts.get("partner absent", 0)
    said = [line for line in findings if line.startswith("train:") and "partner absent" in line]
    assert bool(said) == bool(gone)
    for name, n in zip(jrdb.CLASSES, counted, strict=True):
        assert (f"train: no pair of {name}" in findings) == (n == 0)


def test_a_root_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config.data.root='.*nowhere' does not exist; allowed"):
        dataset.source(Data(root=str(tmp_path / "nowhere")), "train")

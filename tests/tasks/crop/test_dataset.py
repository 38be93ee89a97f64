"""Annotations -> pictures -> arrays of the crop-disease task, and what is said of bad ones."""

import dataclasses
import json
import pickle
import sys
import types

import numpy as np
import pytest
from altered import with_fields
from PIL import Image

from jaxact.config import UserError
from jaxact.tasks.crop import annotation_files, cache, dataset, tfds
from jaxact.tasks.crop.class_balance import loss_weights
from jaxact.tasks.crop.config import (
    AUGMENTS,
    SAMPLERS,
    Config,
    Data,
    Stage,
    Views,
    validate,
)

HEAD = "file,label,class,crop,disease,severity,split\n"
ROWS = (
    "a0.png,0,pea healthy,pea,healthy,,train\n"
    "a1.png,1,pea rust mild,pea,rust,mild,train\n"
    "a2.png,2,pea rust bad,pea,rust,bad,train\n"
    "a3.png,3,corn healthy,corn,healthy,0,train\n"
    "a4.png,0,pea healthy,pea,healthy,,val\n"
    "a5.png,2,pea rust bad,pea,rust,,test\n"
)


def stage(size=24, augment="none", sampler="natural"):
    return types.SimpleNamespace(size=size, augment=augment, sampler=sampler)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def folder(tmp_path):
    """Six pictures, 40 x 30 px, each of one colour, and their table."""
    for index in range(6):
        colour = (40 * index, 10, 200 - 30 * index)
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"a{index}.png")
    (tmp_path / "labels.csv").write_text(HEAD + ROWS)
    return tmp_path


def annotated(folder, text=HEAD + ROWS, name="labels.csv", **fields):
    (folder / name).write_text(text)
    return Data(annotations=str(folder / name), **fields)


def test_a_table_with_everything(folder):
    data = annotated(folder, test_split="test")
    table = dataset.table(data)
    assert table.names == ("pea healthy", "pea rust mild", "pea rust bad", "corn healthy")
    assert (table.crops, table.diseases) == (("pea", "corn"), ("healthy", "rust"))
    assert table.severities == ("healthy", "bad", "mild")
    train = dataset.source(data, "train")
    assert len(train) == 4 and train.ids == ["a0.png", "a1.png", "a2.png", "a3.png"]
    assert [(p.label, p.crop, p.disease, p.severity) for p in train.pictures] == [
        (0, 0, 0, 0),
        (1, 0, 1, 2),
        (2, 0, 1, 1),
        (3, 1, 0, 0),
    ]
    assert dataset.source(data, "val").ids == ["a4.png"]
    assert dataset.source(data, "test")[0].severity == 1  # a row may leave out what its class says
    assert dataset.source(Data(annotations=data.annotations), "test").ids == ["a4.png"]
    specific = dataset.table(annotated(folder, diseases="specific"))
    assert specific.diseases == ("healthy", "pea rust")


def test_a_table_of_other_classes_than_the_annotations_name(folder):
    """Class 0 would be called by the table's first name, whatever its pictures show."""
    data = annotated(folder, class_table="ai_challenger", missing="allow")
    with pytest.raises(UserError, match=r"corn healthy, .* are not those of .*ai_chall"):
        dataset.table(data)
    known = annotated(folder, "file,label,class,split\na0.png,0,Apple healthy,train\n")
    known = dataclasses.replace(known, class_table="ai_challenger", missing="allow")
    assert len(dataset.table(known).names) == 61


def test_plain_tables_of_numbers_and_of_names(folder):
    text = "file,label,split\na0.png,1,train\na1.png,0,train\na2.png,1,val\n"
    data = annotated(folder, text)
    table = dataset.table(data)
    assert table.names == ("0", "1") and table.crops == ()
    assert [p.label for p in dataset.source(data, "train").pictures] == [1, 0]
    named = annotated(folder, text.replace(",1,", ",rust,").replace(",0,", ",blight,"))
    assert dataset.table(named).names == ("blight", "rust")
    assert [p.label for p in dataset.source(named, "train").pictures] == [1, 0]
    assert dataset.source(named, "train")[0].crop == -1
    assert len(dataset.table(annotated(folder, text, classes=5)).names) == 5


def test_ai_challenger_lists_and_text_lists(folder):
    (folder / "images").mkdir()
    for index in range(6):
        (folder / f"a{index}.png").rename(folder / "images" / f"a{index}.png")
    train = [{"image_id": f"a{k}.png", "disease_class": k} for k in range(3)]
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "val.txt").write_text("images\\a4.png 1\nimages\\a5 - copy.png 2\n")
    data = Data(
        annotations=str(folder / "train.json"),
        val_annotations=str(folder / "val.txt"),
        class_table="ai_challenger",
        missing="allow",
    )
    found = dataset.source(data, "train")
    assert found[1].path == str(folder / "images" / "a1.png")
    assert (found[1].crop, found[1].disease, found[1].severity) == (0, 1, 1)
    held = dataset.source(data, "val")
    assert held.ids == ["images/a4.png", "images/a5 - copy.png"]
    assert held[0].path == str(folder / "images" / "a4.png") and held[1].label == 2


def test_columns_of_the_published_metadata(folder):
    head = (
        "image_name,image_path,label_61,label_name,crop_type,crop_id,disease,disease_id,severity,"
        "is_healthy\n"
    )
    text = head + "a0.png,a0.png,0,Apple healthy,Apple,0,None,0,0,1\n"
    text += "a1.png,a1.png,2,Apple Scab serious,Apple,0,Scab,1,2,0\n"
    data = annotated(folder, text, class_table="ai_challenger", missing="allow")
    assert [p.severity for p in dataset.source(data, "train").pictures] == [0, 2]
    wrong = text + "a2.png,a2.png,15,Corn serious,Corn,2,Curvularia,7,1,0\n"
    data = annotated(folder, wrong, class_table="ai_challenger", missing="allow")
    message = (
        r"labels\.csv:4: severity '1' contradicts class 15 \(Corn curvularia leaf spot serious"
    )
    with pytest.raises(UserError, match=message):
        dataset.source(data, "train")


BAD = {
    "no file column": ("name,label\na,0\n", {}, "has no column of files"),
    "no label": ("file,label\na0.png,\n", {}, r":2: a0\.png has no label"),
    "no file name": ("file,label\n,1\n", {}, r":2: names no file"),
    "empty": ("file,label\n", {}, "has no records"),
    "no split column": ("file,label\na0.png,0\n", {}, "has no column 'split' to tell val"),
    "unknown split": (HEAD + ROWS, {"val_split": "dev"}, r"val_split='dev'.*: test, train, val"),
    "class out of range": (
        HEAD + ROWS,
        {"classes": 3},
        r":5: class 3 of a3\.png is out of range; allowed: 0 to 2",
    ),
    "severity against the label": (
        HEAD + ROWS + "a5.png,1,pea rust mild,pea,rust,bad,train\n",
        {},
        r":8: severity 'bad' contradicts label 1 \(pea rust mild\), which has 'mild' at .*:3",
    ),
    "healthy but severe": (
        HEAD + "a0.png,0,x,pea,healthy,2,train\n",
        {},
        r":2: severity '2' contradicts the healthy class 'x'",
    ),
    "crop against the label": (
        HEAD + ROWS + "a5.png,0,pea healthy,corn,healthy,,train\n",
        {},
        r":8: crop 'corn' contradicts label 0",
    ),
    "class without training": (
        HEAD + ROWS.replace("corn,healthy,0,train", "corn,healthy,0,val"),
        {},
        r"class 3 \(corn healthy\) has no training picture but is in the val split",
    ),
    "table of another count": (
        HEAD + ROWS,
        {"classes": 4, "class_table": "ai_challenger"},
        "has 61",
    ),
    "unlisted class name": (
        "file,label,split\na0.png,rust,val\n",
        {"class_table": "ai_challenger"},
        r":2: class 'rust' is unknown; allowed: Apple healthy",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_annotations(folder, name):
    text, fields, message = BAD[name]
    data = annotated(folder, text, **fields)
    with pytest.raises(UserError, match=message) as found:
        dataset.table(data)
        dataset.source(data, "val")
    assert "\n" not in str(found.value)


def test_a_class_missing_in_training(folder):
    text = HEAD + ROWS.replace("a1.png,1,pea rust mild,pea,rust,mild,train\n", "")
    with pytest.raises(UserError, match=r"class 1 \(1\) has no training picture; allowed with"):
        dataset.source(annotated(folder, text), "train")
    assert len(dataset.source(annotated(folder, text, missing="allow"), "train")) == 3
    # Where validation lacks the class as well, there is nothing to score it on.
    assert len(dataset.source(annotated(folder, text), "val")) == 1


def test_bad_files_of_annotations(folder):
    for name, text, message in (
        ("l.json", "{}", "must be a list of"),
        ("l.json", "[1", "is not JSON"),
        ("l.json", '[{"image_id": 3}]', "record 0: must have the text"),
        ("l.json", '[{"image_id": "a", "disease_class": "x"}]', "record 0: disease_class 'x'"),
        ("l.txt", "a0.png\n", r":1: a0\.png has no label"),
        ("l.tsv", "a", "suffix '.tsv'; allowed: .csv, .json, .txt"),
        # 1 would be the second of the sorted names, not the class of that name.
        ("l.csv", "file,label\na,rust\nb,1\nc,blight\n", r":3: label 1 is a number and 'rust' at"),
    ):
        with pytest.raises(UserError, match=message):
            dataset.table(annotated(folder, text, name))
    with pytest.raises(UserError, match=r"is a folder; allowed: a list .*prepare_crop.py folders"):
        dataset.table(Data(annotations=str(folder)))
    with pytest.raises(UserError, match="no such file"):
        dataset.table(Data(annotations=str(folder / "none.csv")))
    with pytest.raises(UserError, match=r"config\.data\.annotations is empty"):
        dataset.table(Data())
    (folder / "latin.csv").write_bytes(b"file,label\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="not text in UTF-8"):
        annotation_files.parse(folder / "latin.csv")


# ----------------------------------------------------------------------------- counts and chance


def long_tailed(folder, sizes=(50, 10, 2)):
    rows = [f"c{k}_{i}.png,{k},train\n" for k, n in enumerate(sizes) for i in range(n)]
    return annotated(folder, "file,label,split\n" + "".join(rows))


def test_samplers(folder):
    data = long_tailed(folder)
    source = dataset.source(data, "train")
    assert source.counts(4).tolist() == [50, 10, 2, 0]
    share = {}
    for name in SAMPLERS:
        found = dataset.sampler(data, source, stage(sampler=name))
        weight = np.ones(62) if found is None else found
        mass = np.bincount(source.labels(), weight)
        share[name] = mass / mass.sum()
    natural = np.array([50, 10, 2]) / 62
    np.testing.assert_allclose(share["natural"], natural)
    np.testing.assert_allclose(share["balanced"], [1 / 3] * 3)
    root = np.sqrt([50, 10, 2])
    np.testing.assert_allclose(share["weighted"], root / root.sum())
    np.testing.assert_allclose(share["mix25"], 0.75 * natural + 0.25 / 3)
    with pytest.raises(UserError, match=r"stages\[0\]\.sampler='even' is not allowed"):
        validate(Config(stages=(Stage(sampler="even"),)))


def test_balance_follows_its_fields(folder):
    data = long_tailed(folder)
    counts = dataset.source(data, "train").counts(3)
    data.balance.clip = (0.01, 100.0)
    found = {}
    for mode in ("none", "sqrt", "inverse", "effective"):
        data.balance.weights = mode
        found[mode] = loss_weights(data.balance, counts)
    assert found["none"].tolist() == [1, 1, 1]
    np.testing.assert_allclose(found["inverse"] / found["inverse"][0], [1, 5, 25], rtol=1e-6)
    np.testing.assert_allclose(found["sqrt"] ** 2, found["sqrt"][0] ** 2 * np.array([1, 5, 25]))
    data.balance.clip, data.balance.weights = (0.1, 2.0), "inverse"
    clipped = loss_weights(data.balance, counts)
    np.testing.assert_allclose(clipped[1:], clipped[0] * 2 / (62 / 150), rtol=1e-6)
    (folder / "w.csv").write_text("class_id,weight\n0,1\n1,2\n")
    data.balance.file = str(folder / "w.csv")
    with pytest.raises(UserError, match=r"w\.csv: no weight for class 2"):
        loss_weights(data.balance, counts)


def test_few_shots_are_fixed_by_their_seed(folder):
    data = long_tailed(folder)
    chosen = {}
    for seed in (0, 1):
        data.shots, data.shots_seed = 5, seed
        chosen[seed] = dataset.source(data, "train")
        assert chosen[seed].counts(3).tolist() == [5, 5, 2]
        assert dataset.source(data, "train").ids == chosen[seed].ids
    assert chosen[0].ids != chosen[1].ids
    # More classes do not change what is chosen of one.
    other = long_tailed(folder, (50, 10, 2, 7))
    other.shots = 5
    assert dataset.source(other, "train").ids[:12] == chosen[0].ids


# --------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("keep_ratio", [False, True])
def test_arrays_have_the_promised_shapes(folder, augment, keep_ratio):
    data = annotated(folder, keep_ratio=keep_ratio)
    data.test = Views(scales=(1.0, 1.25), crops=5 if keep_ratio else 1)
    data.test_size = 20
    for split in ("train", "val", "test"):
        row = stage(augment=augment)
        picture = dataset.source(data, split)[0]
        found = dataset.prepare(data, picture, rng(), row, split)
        wanted = dataset.shapes(data, row, split)
        assert {k: (v.shape, v.dtype) for k, v in found.items()} == wanted
        assert found["image"].shape[-3:] == ((24, 24, 3) if split == "train" else (20, 20, 3))
    assert found["image"].shape[0] == (10 if keep_ratio else 2)
    assert dataset.shapes(Data(), stage(32), "val")["image"][0] == (1, 32, 32, 3)


def test_evaluation_draws_nothing_and_squeezes_or_cuts(folder):
    left = np.zeros((30, 60, 3), np.uint8)
    left[:, :15] = 255
    Image.fromarray(left).save(folder / "a4.png")
    data = annotated(folder)
    picture = dataset.source(data, "val")[0]
    squeezed = dataset.prepare(data, picture, None, stage(20), "val")["image"][0]
    assert squeezed[:, :4].min() == 255 and squeezed[:, 7:].max() == 0
    data.keep_ratio = True
    middle = dataset.prepare(data, picture, None, stage(20), "val")["image"][0]
    assert middle[:, 1:].max() == 0  # the first column is mixed with its neighbour outside
    data.val.crops = 5
    corner = dataset.prepare(data, picture, None, stage(20), "val")["image"]
    assert corner[1, :, :9].min() == 255 and corner[2, :, 1:].max() == 0


def test_training_is_a_function_of_the_generator(folder):
    data = annotated(folder)
    Image.fromarray(rng(3).integers(0, 256, (30, 40, 3), np.uint8)).save(folder / "a0.png")
    picture = pickle.loads(pickle.dumps(dataset.source(data, "train")[0]))
    for augment in ("full", "light", "strong"):
        row = stage(augment=augment)
        one, same, other = (
            dataset.prepare(data, picture, rng(seed), row, "train")["image"] for seed in (5, 5, 6)
        )
        assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_unreadable_and_missing_pictures_are_one_line(folder):
    (folder / "a0.png").write_bytes(b"not a picture")
    (folder / "a1.png").unlink()
    data = annotated(folder)
    for picture, message in zip(
        dataset.source(data, "train").pictures, ("format is unknown", "no such file"), strict=False
    ):
        with pytest.raises(UserError, match=message) as found:
            dataset.prepare(data, picture, rng(), stage(), "train")
        assert picture.path in str(found.value)
        assert message in dataset.audit(picture)
    assert dataset.audit(dataset.source(data, "train")[2]) == ""


def test_examples_for_predict(folder):
    data = annotated(folder)
    assert [p.id for p in dataset.examples(data, str(folder))] == [
        str(folder / f"a{k}.png") for k in range(6)
    ]
    one = dataset.examples(data, str(folder / "a2.png"))
    assert len(one) == 1 and one[0].label == -1 and one[0].severity == -1
    arrays = dataset.prepare(data, one[0], rng(), stage(), "predict")
    assert arrays["label"] == -1 and arrays["image"].shape == (1, 24, 24, 3)
    (folder / "some.csv").write_text("file,label\na1.png,\na2.png,2\n")
    listed = dataset.examples(data, str(folder / "some.csv"))
    assert [p.label for p in listed] == [-1, 2] and listed[1].disease == 1
    assert dataset.thumbnail(one[0]).shape == (1, 96, 128, 3)
    (folder / "empty").mkdir()
    for path, message in (("gone.png", "does not exist"), ("empty", "no pictures in it")):
        with pytest.raises(UserError, match=message):
            dataset.examples(data, str(folder / path))
    # Animations count as their first frame, whether named, listed or found.
    frames = [Image.new("RGB", (40, 30), (k, 200, 10)) for k in (250, 0)]
    frames[0].save(folder / "empty" / "b.GIF", save_all=True, append_images=frames[1:])
    for given in (folder / "empty", folder / "empty" / "b.GIF"):
        (found,) = dataset.examples(data, str(given))
        pixels = dataset.prepare(data, found, None, stage(), "predict")["image"]
        assert np.abs(pixels.astype(int) - (250, 200, 10)).max() < 12
    (folder / "clip.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"suffix '.mp4'; allowed: a folder .*\.jpg.*\.csv"):
        dataset.examples(data, str(folder / "clip.mp4"))


# ----------------------------------------------------------------------------------------- cache


def test_the_cache_gives_the_same_pictures(folder):
    scene = rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(scene).resize((160, 120), Image.BICUBIC).save(folder / "a4.png")
    data = annotated(folder)
    picture = dataset.source(data, "val")[0]
    plain = dataset.prepare(data, picture, None, stage(48), "val")["image"]
    data.cache, data.cache_dir = 64, str(folder / "cache")
    first = dataset.prepare(data, picture, None, stage(48), "val")["image"]
    entries = [p for p in (folder / "cache").rglob("*") if p.is_file()]
    assert len(entries) == 1 and entries[0].stat().st_size == 8 + 64 * 85 * 3
    again = dataset.prepare(data, picture, None, stage(48), "val")["image"]
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - plain).mean() < 3
    # A changed file is another entry; a damaged entry is named.
    Image.new("RGB", (40, 30), (9, 9, 9)).save(folder / "a4.png")
    assert dataset.prepare(data, picture, None, stage(48), "val")["image"].max() == 9
    assert cache.load(picture, 64, data.cache_dir).size == (40, 30)  # never enlarged
    for entry in (folder / "cache").rglob("*_64"):
        entry.write_bytes(b"short")
    with pytest.raises(UserError, match="is no entry of this cache"):
        dataset.prepare(data, picture, None, stage(48), "val")


def test_a_cache_that_cannot_be_written(folder):
    data = annotated(folder, cache=64, cache_dir=str(folder / "labels.csv"))
    with pytest.raises(UserError, match=r"config\.data\.cache_dir: .* cannot be"):
        dataset.prepare(data, dataset.source(data, "val")[0], None, stage(), "val")


# -------------------------------------------------------------------------------------- the fields


def fields(**changes):
    data = Data()
    with_fields(data, **changes)
    return Config(data=data, stages=(Stage(size=64),))


@pytest.mark.parametrize(
    "change",
    [
        {"diseases": "some"},
        {"missing": "ignore"},
        {"interpolation": "nearest"},
        {"classes": -1},
        {"gap": 0.5},
        {"near": 40},
        {"cache": 64},
        {"cache_dir": "c", "cache": 32},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (1.0,)},
        {"balance__weights": "square"},
        {"balance__beta": 1.0},
        {"balance__clip": (2.0, 1.0)},
        {"balance__power": 3.0},
        {"val__crops": 3},
        {"val__crops": 5, "val__scales": (1.0,)},
        {"test__scales": ()},
        {"test__scales": (0.5,)},
        {"full__hflip": 1.5},
        {"full__rotate": 200.0},
        {"light__jitter": (0.1, 0.1)},
        {"strong__area": (0.5,)},
        {"full__erase_area": (0.3, 0.1)},
        {"full__operations": 20},
        {"full__magnitude": 11},
        {"full__shift": 0.9},
    ],
)
def test_fields_out_of_range_are_named(change):
    with pytest.raises(UserError) as found:
        validate(fields(**change))
    name = list(change)[-1].replace("__", ".")
    assert f"config.data.{name}" in str(found.value) and "allowed" in str(found.value)


def test_the_defaults_are_valid():
    validate(fields())
    validate(fields(val__crops=5, val__scales=(1.2,), cache=64, cache_dir="c"))


def test_a_healthy_picture_may_be_called_ungraded(tmp_path):
    path = tmp_path / "labels.csv"
    lines = [f"{k}.jpg,0,{text},train" for k, text in enumerate(("none", "None", "", "0"))]
    path.write_text("\n".join(["file,label,severity,split", *lines, "4.jpg,1,none,train"]))
    with pytest.raises(UserError, match=r"labels.csv:6: severity 'none' contradicts class 1"):
        dataset.source(Data(str(path), class_table="ai_challenger", missing="allow"), "train")
    path.write_text("\n".join(["file,label,severity,split", *lines]))
    found = dataset.source(Data(str(path), class_table="ai_challenger", missing="allow"), "train")
    assert [p.severity for p in found.pictures] == [0] * 4


# ---------------------------------------------------------------------------------- prepared sets


def test_prepared_sets_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"needs the extra \[tfds\] \(tensorflow-datasets"):
        dataset.table(Data(annotations="tfds:plant_village"))


class Records(list):
    """Random access, as a prepared set gives it."""


def test_prepared_sets_through_a_stand_in(monkeypatch, folder):
    """The calls we make of tensorflow_datasets, answered by six encoded pictures."""
    asked = []
    content = [(folder / f"a{k}.png").read_bytes() for k in range(6)]

    def as_data_source(split, decoders):
        asked.append((split, decoders["image"]))
        if split not in ("train[:4]", "train[4:]"):
            raise ValueError(f"Unknown split {split!r}\nsecond line")
        chosen = range(4) if split == "train[:4]" else range(4, 6)
        return Records({"image": content[k], "label": k % 2} for k in chosen)

    label = types.SimpleNamespace(names=["Apple___rust", "Corn___healthy"])
    info = types.SimpleNamespace(features={"image": 0, "label": label}, splits={"train": 6})
    builder = types.SimpleNamespace(info=info, as_data_source=as_data_source)
    module = types.ModuleType("tensorflow_datasets")
    module.builder = lambda name: builder
    module.decode = types.SimpleNamespace(SkipDecoding=lambda: "encoded")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    for cached in (tfds._builder, tfds._records, tfds.pictures):
        cached.cache_clear()
    data = Data(annotations="tfds:leaves", train_split="train[:4]", val_split="train[4:]")
    table = dataset.table(data)
    assert table.crops == ("Apple", "Corn") and table.diseases == ("healthy", "rust")
    train, held = dataset.source(data, "train"), dataset.source(data, "val")
    assert train.labels().tolist() == [0, 1, 0, 1] and held.ids == ["train[4:]/0", "train[4:]/1"]
    assert (train[1].crop, train[1].disease) == (1, 0)
    picture = pickle.loads(pickle.dumps(held[1]))
    found = dataset.prepare(data, picture, None, stage(), "val")["image"]
    assert found[0, 0, 0].tolist() == [200, 10, 50]
    assert dataset.audit(held[0]) == "" and asked[0] == ("train[:4]", "encoded")
    data.train_split = "nowhere"
    with pytest.raises(UserError, match="split 'nowhere' cannot be read") as error:
        dataset.source(data, "train")
    assert "\n" not in str(error.value)
    for cached in (tfds._builder, tfds._records, tfds.pictures):
        cached.cache_clear()


# ---------------------------------------------------------------------------------------- real data


def test_real_data(real_data):
    data = Data(annotations=str(real_data / "crop_disease_lt" / "labels.csv"), test_split="test")
    table = dataset.table(data)
    assert (len(table.names), len(table.crops), len(table.diseases)) == (52, 12, 31)
    assert table.severities == ("healthy", "1", "2", "2+", "3", "4")
    sources = {p: dataset.source(data, p) for p in ("train", "val", "test")}
    assert [len(s) for s in sources.values()] == [5460, 798, 1588]
    counts = sources["train"].counts(52)
    assert counts.max() == 849 and counts.min() == 4
    for source in sources.values():
        for picture in source.pictures[::400]:
            assert dataset.audit(picture) == ""
            arrays = dataset.prepare(data, picture, rng(), stage(64, "full"), "train")
            assert arrays["image"].std() > 5


def test_an_empty_list_is_named(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match=r"empty.csv: has no column of files .*no header line"):
        dataset.source(Data(annotations=str(tmp_path / "empty.csv")), "train")

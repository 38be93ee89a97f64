"""What the audit finds in pictures made to have it, and nothing where there is nothing."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxact.tasks.crop import audit
from jaxact.tasks.crop.annotations import Picture, PictureSource

SCRIPT = pathlib.Path(__file__).parents[3] / "scripts" / "prepare_crop.py"


def scene(seed, side=96):
    cells = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.BICUBIC)


@pytest.fixture
def splits(tmp_path):
    """Eight pictures to train on, four held out, two classes; nothing wrong with them."""
    made = {}
    for split, seeds in (("train", range(8)), ("val", range(8, 12))):
        found = []
        for seed in seeds:
            name = f"{split}{chr(97 + seed)}.jpg"
            scene(seed).save(tmp_path / name, quality=90)
            found.append(Picture(name, str(tmp_path / name), seed % 2))
        made[split] = PictureSource(found)
    return made


def survey(splits, near=8):
    return audit.survey(("healthy", "rust"), near, splits)


def path(splits, split, index):
    return pathlib.Path(splits[split][index].path)


def test_sound_pictures_give_no_finding(splits):
    findings, text = survey(splits)
    assert findings == []
    assert text.splitlines()[:3] == [
        "class  name     train  val",
        "0      healthy      4    2",
        "1      rust         4    2",
    ]
    assert "ratio 1.0:1" in text


def test_only_val_and_test_may_be_the_same_pictures(splits):
    findings, text = survey({**splits, "test": splits["val"]})
    assert findings == [] and "val=test" in text
    findings, text = survey({**splits, "test": splits["train"]})
    assert findings[0].startswith("test is the training split")
    assert findings[1].startswith("8 exact copies across train/test")
    assert text.splitlines()[0].split() == ["class", "name", "train", "val", "test"]


def test_exact_copies(splits):
    path(splits, "val", 1).write_bytes(path(splits, "train", 3).read_bytes())
    path(splits, "train", 6).write_bytes(path(splits, "train", 1).read_bytes())
    findings, _ = survey(splits)
    assert findings == [
        "1 exact copies across train/val: traind.jpg = valj.jpg",
        "1 pictures under different labels: trainb.jpg = traing.jpg",
        "1 exact copies within a split",
    ]


def test_pictures_that_look_alike(splits):
    image = scene(2).resize((80, 80), Image.BICUBIC)
    ImageEnhance.Brightness(image).enhance(1.02).save(path(splits, "val", 0), quality=60)
    findings, _ = survey(splits)
    assert findings == ["1 pairs look alike across train/val: trainc.jpg ~ vali.jpg"]
    # Of one split it is no leak.
    scene(2).save(path(splits, "train", 5), quality=50)
    assert survey(splits)[0][:1] == [
        "2 pairs look alike across train/val: trainc.jpg ~ vali.jpg, trainf.jpg ~ vali.jpg"
    ]


def test_unreadable_pictures_are_findings_and_the_rest_goes_on(splits):
    whole = path(splits, "train", 0).read_bytes()
    path(splits, "train", 0).write_bytes(whole[: len(whole) // 2])
    path(splits, "val", 0).unlink()
    findings, _ = survey(splits)
    assert len(findings) == 2
    assert "traina.jpg: cannot be read as a picture" in findings[0]
    assert "vali.jpg: no such file" in findings[1]
    # A file that was mended is read again.
    path(splits, "train", 0).write_bytes(whole)
    assert audit.inspect(splits["train"][0]).error == ""


def test_splits_that_are_the_same_pictures_are_no_leak(splits):
    findings, text = survey({**splits, "test": splits["val"]})
    assert findings == [] and "val=test" in text


def pictures(*names_and_labels):
    return [Picture(name, name, label) for name, label in names_and_labels]


def test_names_that_tell_the_label():
    told = pictures(*((f"{k}_{i}.jpg", k) for k in range(3) for i in range(20)))
    (finding,) = audit._telling_names(told)
    assert "60 of 60 labels" in finding and "(as in 0, 0, 0 and 57 more)" in finding
    mixed = pictures(*((f"{(k + i) % 3}_{i}.jpg", k) for k in range(3) for i in range(20)))
    assert audit._telling_names(mixed) == []
    numbers = pictures(*((f"IMG{k * 20 + i}.jpg", k) for k in range(3) for i in range(20)))
    assert audit._telling_names(numbers) == []
    folders = pictures(*((f"class{k}/{i:05d}.jpg", k) for k in range(3) for i in range(20)))
    assert audit._telling_names(folders) == []
    copies = pictures(("x1.jpg", 0), ("x1 - 副本.jpg", 0), ("y - Copy.jpg", 1), ("z(2).jpg", 1))
    assert audit._telling_names(copies) == [
        "3 file names say they are copies: x1 - 副本, y - Copy, z(2)"
    ]


def test_classes_without_pictures(splits):
    findings, text = audit.survey(("healthy", "rust", "scab"), 8, splits)
    assert findings == ["train: no picture of scab", "val: no picture of scab"]
    assert text.splitlines()[3].split() == ["2", "scab", "0", "0"]


def test_head_and_tail_of_the_table():
    found = audit._table({"train": np.array([5, 1, 90, 4])}, "abcd")
    assert found.splitlines()[5:] == [
        "train: largest class 90, smallest 1, ratio 90.0:1",
        "head (1 classes, 90.0% of the pictures): 2",
        "tail (1 classes, 1.0% of the pictures): 1",
        "rest (2 classes, 9.0% of the pictures): 0 3",
    ]


def test_near_pairs_against_all_pairs(monkeypatch):
    monkeypatch.setattr(audit, "_BLOCK", 16)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 50, dtype=np.uint64)
    hashes[40:] = hashes[:10] ^ np.uint64(0b10110)
    groups = rng.integers(0, 2, 50)
    wanted = {
        (i, j)
        for i in range(50)
        for j in range(i + 1, 50)
        if groups[i] != groups[j] and int(hashes[i] ^ hashes[j]).bit_count() <= 3
    }
    found = audit.near_pairs(hashes, groups, 3)
    assert set(found) == wanted and len(found) == len(wanted) and len(wanted) >= 3


def test_the_hash_is_of_neighbours():
    ramp = np.tile(np.linspace(255, 0, 90).astype(np.uint8)[None, :, None], (80, 1, 3))
    falling = audit.inspect(Picture("r", "", pixels=lambda: ramp))
    rising = audit.inspect(Picture("r", "", pixels=lambda: ramp[:, ::-1]))
    assert falling.difference == 2**64 - 1 and rising.difference == 0


# --------------------------------------------------------------------------------- prepare_crop


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_crop", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def challenge(tmp_path):
    for split, name in (("training", "train"), ("validation", "validation")):
        folder = tmp_path / f"AgriculturalDisease_{split}set"
        (folder / "images").mkdir(parents=True)
        labels = (0, 2, 44, 45, 60) if name == "train" else (0, 60)
        records = []
        for index, label in enumerate(labels):
            scene(index).save(folder / "images" / f"{index}.jpg")
            records.append({"image_id": f"{index}.jpg", "disease_class": label})
        (folder / f"AgriculturalDisease_{name}_annotations.json").write_text(json.dumps(records))
    return tmp_path


def test_prepare_ai_challenger(script, challenge, capsys):
    out = challenge / "out" / "labels.csv"
    source = str(challenge)
    assert script.main(["ai_challenger", "--source", source, "--out", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "file,label,class,crop,disease,severity,split" and len(lines) == 8
    assert lines[2] == (
        "AgriculturalDisease_trainingset/images/1.jpg,2,Apple scab serious,Apple,scab,serious,train"
    )
    assert lines[7].endswith(",60,Tomato mosaic virus,Tomato,mosaic virus,general,val")
    dropped = [*("ai_challenger", "--source", source, "--out", str(out)), "--drop", "44", "45"]
    assert script.main(dropped) == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 6 and ",58,Tomato mosaic virus," in lines[5]
    from jaxact.tasks.crop import dataset
    from jaxact.tasks.crop.config import Data

    data = Data(
        annotations=str(out),
        images=source,
        class_table=str(out.with_name("labels_classes.csv")),
        missing="allow",
    )
    table = dataset.table(data)
    assert len(table.names) == 59 and len(table.crops) == 10 and len(table.severities) == 3
    held = dataset.source(data, "val")
    assert [p.label for p in held.pictures] == [0, 58]
    assert dataset.audit(held[1]) == ""
    assert script.main([*dropped, "99"]) == 2
    assert "prepare_crop: --drop 99" in capsys.readouterr().err


def test_prepare_metadata(script, tmp_path, capsys):
    """The layout of the guide, with its CSV that calls a serious class general."""
    head = "image_name,image_path,label_61,label_name,severity"
    tables = {
        "train": ["a.jpg,elsewhere/a.jpg,0,Apple healthy,0", "b c.jpg,x,15,Corn serious,1"],
        "val": ["d.jpg,x,2,Apple scab serious,2", "e.jpg,x,60,Tomato mosaic virus,1"],
    }
    flags = []
    for split, lines in tables.items():
        path = tmp_path / f"{split}.csv"
        path.write_text("\n".join([head, *lines]) + "\n")
        for line in lines:
            name, _, label, *_ = line.split(",")
            folder = tmp_path / "pictures" / split / f"class_{int(label):02d}"
            folder.mkdir(parents=True, exist_ok=True)
            scene(int(label)).save(folder / name)
        flags += [f"--{split}-dir", str(tmp_path / "pictures" / split), f"--{split}-meta", path]
    out = tmp_path / "made" / "labels.csv"
    assert script.main(["metadata", *map(str, flags), "--out", str(out)]) == 0
    assert "severity: 1 of 4 rows corrected by the class table (classes 15)" in (
        capsys.readouterr().out
    )
    from jaxact.tasks.crop import dataset
    from jaxact.tasks.crop.config import Data

    data = Data(str(out), class_table="ai_challenger", missing="allow")
    for split, labels, grades in (("train", [0, 15], [0, 2]), ("val", [2, 60], [2, 1])):
        found = dataset.source(data, split)
        assert [p.label for p in found.pictures] == labels
        assert [p.severity for p in found.pictures] == grades
        assert [dataset.audit(p) for p in found.pictures] == ["", ""]
    (tmp_path / "val.csv").write_text(head + "\nd.jpg,x,61,what,0\n")
    assert script.main(["metadata", *map(str, flags), "--out", str(out)]) == 2
    assert "val.csv:2: label_61 '61'; allowed: 0 to 60" in capsys.readouterr().err


def test_prepare_folders_of_classes(script, tmp_path, capsys):
    """Names with spaces and letters of other alphabets, a class of one picture, a deeper folder."""
    sizes = {"Blatt flecken": 10, "Ähre gesund": 5, "玉米 锈病": 1}
    for name, count in sizes.items():
        for index in range(count):
            folder = tmp_path / "own" / name / ("more" if index == 0 else "")
            folder.mkdir(parents=True, exist_ok=True)
            scene(index).save(folder / f"bild {index}.JPG")
    (tmp_path / "own" / "notes.txt").write_text("not a picture")
    out = tmp_path / "lists" / "labels.csv"
    flags = ["folders", "--source", str(tmp_path / "own"), "--out", str(out)]
    assert script.main(flags) == 0
    from jaxact.tasks.crop import dataset
    from jaxact.tasks.crop.config import Data

    data = Data(str(out))
    assert dataset.table(data).names == tuple(sorted(sizes)) and not dataset.table(data).crops
    found = {split: dataset.source(data, split) for split in ("train", "val")}
    counts = {split: np.bincount(f.labels(), minlength=3).tolist() for split, f in found.items()}
    assert counts == {"train": [8, 4, 1], "val": [2, 1, 0]}
    for source in found.values():
        assert [dataset.audit(p) for p in source.pictures] == [""] * len(source)
    before = out.read_text()
    assert script.main(flags) == 0 and out.read_text() == before
    assert script.main([*flags, "--seed", "1"]) == 0 and out.read_text() != before
    assert script.main([*flags, "--val", "0.99"]) == 0
    assert [line.rsplit(",", 1)[1] for line in out.read_text().splitlines()].count("train") == 3
    # With splits of its own, and names that tell crop and disease.
    for name in ("Train", "valid", "test"):
        for kind in ("pea___healthy", "pea___rust"):
            (tmp_path / "split" / name / kind).mkdir(parents=True)
            scene(3).save(tmp_path / "split" / name / kind / "a.png")
    flags[2] = str(tmp_path / "split")
    assert script.main(flags) == 0
    data = Data(str(out), test_split="test")
    assert dataset.table(data).diseases == ("healthy", "rust")
    assert [len(dataset.source(data, split)) for split in ("train", "val", "test")] == [2, 2, 2]
    (tmp_path / "split" / "holdout").mkdir()
    capsys.readouterr()
    for bad, said in (
        (flags, "holdout: stands beside train"),
        ([*flags[:2], str(tmp_path / "lists"), *flags[3:]], "no pictures in folders"),
        ([*flags, "--val", "1"], "--val 1.0; allowed: a share"),
    ):
        assert script.main(bad) == 2
        assert said in capsys.readouterr().err


def test_prepare_says_what_is_missing(script, tmp_path, capsys):
    out = str(tmp_path / "l.csv")
    assert script.main(["ai_challenger", "--source", str(tmp_path), "--out", out]) == 2
    assert "0 files *train*annotations*.json; needed: one" in capsys.readouterr().err


def test_table_and_clean(script, challenge, capsys):
    table = challenge / "classes.csv"
    assert script.main(["table", "--out", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 62
    labels, out = challenge / "labels.csv", challenge / "clean.csv"
    script.main(["ai_challenger", "--source", str(challenge), "--out", str(labels)])
    broken = challenge / "AgriculturalDisease_trainingset" / "images" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    capsys.readouterr()
    assert script.main(["clean", "--annotations", str(labels), "--out", str(out)]) == 0
    found = capsys.readouterr()
    assert "1 of 7 cannot be read" in found.out and found.err.count("\n") == 1
    kept = labels.read_text().splitlines()
    del kept[3]
    assert out.read_text().splitlines() == kept

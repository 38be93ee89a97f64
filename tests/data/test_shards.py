"""Every recipe from shards: the same batches, losses and parameters as from files, bit for bit."""

import copy
import dataclasses
import json
import pathlib
import shutil

import leaves
import numpy as np
import pytest
from absl import flags
from command import ROOT

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.data import shards
from jaxact.data.pipeline import eval_batches, train_batches
from jaxact.packing import writer
from jaxact.packing.storage import Folder
from jaxact.tasks.action import sample_data as action_data
from jaxact.tasks.crop import audit
from jaxact.tasks.detection import sample_data as detection_data
from jaxact.tasks.relation import crops, jrdb_splits
from jaxact.tasks.relation import sample_data as relation_data
from jaxact.train import loop
from jaxact.train.run import open_run

RECIPES = ("x3d", "crop", "relation", "adatad")


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
    """Reading processes look at the command line."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def load(recipe, variant="tiny"):
    config = schema.load(ROOT / "configs" / f"{recipe}.py", variant)
    config.save.tensorboard = config.save.report = False
    config.length = config.eval.every = config.save.every = "3 steps"
    return config


def prepared(source, out):
    """Shards of a folder; says how recipes name them."""
    options, here, there = writer.Options(shards=2), Folder(source), Folder(out)
    entries = writer.listing(here)
    for number, members in enumerate(writer.assigned(entries, options.shards)):
        writer.write_shard(here, there, number, members, options)
    writer.finish(there, entries, options)
    return f"{shards.PREFIX}{out}"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """recipe -> (config on files, config on shards)."""
    folder = tmp_path_factory.mktemp("media")
    configs = {}

    clips = folder / "clips"
    action_data.write(clips, train=16, test=8, frames=12, size=(48, 64))
    config = load("x3d")
    config.data.annotations, config.data.videos = (
        str(clips / "annotations.pkl"),
        str(clips / "clips"),
    )
    place = prepared(clips / "clips", folder / "clip_shards")
    configs["x3d"] = config, changed(config, videos=place)

    config = load("crop")
    config.data.annotations = str(leaves.write(folder / "leaves"))
    config.data.class_table, config.data.missing = "", "error"
    place = prepared(folder / "leaves" / "images", folder / "leaf_shards")
    configs["crop"] = config, changed(config, images=place)

    scenes = {"train": 3, "val": 1, "test": 1}
    root = relation_data.write(folder / "scenes", scenes, frames=2, couples=4)
    config = load("relation")
    config.data.root = str(root)
    place = prepared(root / jrdb_splits.IMAGES, folder / "scene_shards")
    configs["relation"] = config, changed(config, images=place)

    detection_data.draw(folder / "drawn", train=3, test=2)
    config = load("adatad")
    config.data.annotations = str(folder / "drawn" / "annotations.json")
    config.data.videos = str(folder / "drawn" / "videos")
    place = prepared(folder / "drawn" / "videos", folder / "drawn_shards")
    configs["adatad"] = config, changed(config, videos=place)
    return configs


def changed(config, **fields):
    """The config with other fields of its data."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))


def fresh():
    """Forgets what this process has decoded."""
    crops.KEPT.clear()


def batches(config, folder, workers=0, test=True):
    """Some batches of training and, if wanted, of a test."""
    fresh()
    config = dataclasses.replace(config, input=dataclasses.replace(config.input, workers=workers))
    run = open_run(config, folder)
    stage = run.plan().rows[0].stage_data
    source = run.task.training.source("train")
    yield from train_batches(config, run.task, source, stage, 0, 2)
    if test:
        source = run.task.training.source("test")
        yield from eval_batches(config, run.task, source, stage, "test", 2)


def same(one, other):
    count = 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        count += 1
    return count


@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_are_those_of_the_files(pairs, recipe, tmp_path):
    files, held = pairs[recipe]
    assert same(batches(files, tmp_path / "a"), batches(held, tmp_path / "b")) > 2


def test_the_suffix_is_found_in_shards_too(pairs, tmp_path):
    """Detection with `video_suffix` empty takes whichever file an id has."""
    held = changed(pairs["adatad"][1], video_suffix="")
    source = open_run(held, tmp_path / "w").task.training.source("test")
    assert all(sample.path.endswith(".mp4") for sample in source.samples)


@pytest.mark.parametrize("recipe", ["x3d", "crop"])
def test_worker_processes_open_the_shards_themselves(pairs, recipe, tmp_path):
    files, held = pairs[recipe]
    one = batches(files, tmp_path / "a", test=False)
    assert same(one, batches(held, tmp_path / "b", workers=1, test=False)) == 2


def trained(config, folder):
    """Every number that a run logs, but for its speed."""
    fresh()
    run = open_run(config, folder)
    loop.train(run)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "examples_per_s"} for row in rows]


@pytest.mark.parametrize("recipe", ["x3d", "crop"])
def test_losses_are_those_of_the_files(pairs, recipe, tmp_path):
    """Three steps from files and from shards: every number that is logged, bit for bit."""
    files, held = pairs[recipe]
    one, other = trained(files, tmp_path / "a"), trained(held, tmp_path / "b")
    losses = [row["loss"] for row in one if row["split"] == "train"]
    assert len(losses) == 3 and len(set(losses)) == 3
    assert one == other


def test_picture_caches_tell_files_from_shards(pairs, tmp_path):
    """Decoded pictures and crops kept on disk, from either, are the same."""
    for recipe, fields in (("crop", {"cache": 32}), ("relation", {"memory": 0})):
        files, held = pairs[recipe]
        kept = [
            changed(config, cache_dir=str(tmp_path / f"{recipe}{k}"), **fields)
            for k, config in enumerate((files, held, held))
        ]
        kept[2].data.cache_dir = kept[1].data.cache_dir  # read from the cache
        one, other, again = (list(batches(c, tmp_path / f"w{k}")) for k, c in enumerate(kept))
        assert same(one, other) == same(one, again) > 2
        assert any((tmp_path / f"{recipe}1").rglob("*"))


def test_the_audit_sees_the_same_pictures(pairs, tmp_path):
    looks = []
    for config in pairs["crop"]:
        source = open_run(config, tmp_path / "w").task.training.source("train")
        looks.append([audit.inspect(picture) for picture in source.pictures])
    assert looks[0] == looks[1] and not looks[0][0].error


def test_what_is_not_in_the_shards_is_named(pairs, tmp_path):
    files, _ = pairs["x3d"]
    clips = tmp_path / "few"
    clips.mkdir()
    source = sorted((ROOT / files.data.videos).glob("test*.mp4"))
    for path in source[1:]:
        shutil.copy(path, clips)
    config = changed(files, videos=prepared(clips, tmp_path / "set"))
    run = open_run(config, tmp_path / "w")
    stage, test = run.plan(10).rows[0].stage_data, run.task.training.source("test")
    with pytest.raises(UserError, match=f"{source[0].name}: not in shards .*which have 7 media"):
        list(eval_batches(config, run.task, test, stage, "test", 2))
    failed: dict[int, str] = {}
    list(eval_batches(config, run.task, test, stage, "test", 2, failed))
    assert list(failed) == [0] and "not in shards" in failed[0]
    assert "not in shards" in run.task.shipping.audit(test[0]) and not run.task.shipping.audit(
        test[1]
    )


@pytest.mark.parametrize("recipe", ["x3d", "crop", "adatad"])
def test_predict_takes_a_place_in_shards(pairs, recipe, tmp_path):
    files, held = copy.deepcopy(pairs[recipe])
    if recipe == "crop":
        folder = pathlib.Path(files.data.annotations).parent / "images"
        place, folder = held.data.images, str(folder)
    else:
        place, folder = held.data.videos, files.data.videos
    if recipe == "x3d":
        held.model.streams, held.model.coarse = "rgb", ()  # what predicts without poses
    example = open_run(held, tmp_path / "w").task.prediction.example
    ids = [name.removeprefix(place) for name in example(place).ids]
    assert ids == [name.removeprefix(folder) for name in example(folder).ids]
    assert len(ids) > 4
    first = ids[0].partition("#")[0]  # detection numbers the windows of a file
    alone = [name.removeprefix(place).partition("#")[0] for name in example(place + first).ids]
    assert set(alone) == {first}
    with pytest.raises(UserError, match="nothing there; needed: "):
        example(f"{place}/none")

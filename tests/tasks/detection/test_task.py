"""Temporal action detection: what a batch is, its loss, its detections, from files to numbers."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from altered import with_fields

from jaxact import config as schema
from jaxact.config import Eval, Optim, Save, UserError
from jaxact.modes import predict
from jaxact.ops import segments
from jaxact.task import Ending
from jaxact.tasks.detection import config as detection_config
from jaxact.tasks.detection import dataset
from jaxact.tasks.detection import task as detection
from jaxact.tasks.detection.config import Backbone, Config, Data, Model, Nms, Stage
from jaxact.train import loop
from jaxact.train.run import open_run

RANGES = (0.0, 6.0, 6.0, 10000.0)
VIEW = types.SimpleNamespace(augment="none", size=32)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """Features that all but say the answer: 6 + 3 videos of 40 steps, 2 classes."""
    folder = tmp_path_factory.mktemp("features")
    database, rng = {}, np.random.default_rng(0)
    for index in range(9):
        start = int(rng.integers(2, 14))
        spans = [(start, start + int(rng.integers(5, 9))), (26, 26 + int(rng.integers(6, 10)))]
        rows = rng.normal(0, 0.1, (40, 4)).astype(np.float32)
        notes = []
        for (low, high), label in zip(spans, rng.integers(0, 2, 2).tolist(), strict=True):
            rows[low:high, label] += 1
            rows[low - 1 : low + 1, 2] += 1
            rows[high - 1 : high + 1, 3] += 1
            notes.append({"label": f"class{label}", "segment": [low / 2, high / 2]})
        np.save(folder / f"v{index}.npy", rows)
        facts = {"subset": "training" if index < 6 else "validation", "duration": 20, "frame": 40}
        database[f"v{index}"] = {**facts, "annotations": notes}
    (folder / "notes.json").write_text(json.dumps({"database": database}))
    return folder


def config(features=None, videos=None, **fields):
    """A small config; fields as post__top=3, model__classes=5."""
    model = Model(
        classes=2,
        width=16,
        heads=2,
        stem=1,
        branch=1,
        ranges=RANGES,
        normaliser=10.0,
        drop_path=0.0,
    )
    model.backbone = Backbone(size="none" if features else "tiny", remat=False)
    data = Data(window=32, stride=1, most=4, test_size=32, resize=36)
    if features:
        data.annotations, data.features = str(features / "notes.json"), str(features)
        data.channels = 4
    if videos:
        data.annotations, data.videos = str(videos / "annotations.json"), str(videos / "videos")
        data.stride = 2
    found = Config(batch_size=2, model=model, data=data)
    found.stages = (Stage(size=32),)
    return with_fields(found, **fields)


def batch_of(task, source, split="train", count=2):
    """Prepared examples, stacked."""
    rng = np.random.default_rng(0)
    rows = [task.training.prepare(source[i % len(source)], rng, VIEW, split) for i in range(count)]
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return found | {"id": np.arange(count, dtype=np.int32), "mask": np.ones(count, bool)}


def test_inputs_find_points_for_every_segment(extracted):
    settings = config(extracted)
    task = detection.make(settings)
    batch = batch_of(task, task.training.source("train"))
    arguments, targets = task.training.inputs(batch, {}, jax.random.key(0), VIEW)
    assert arguments["video"].shape == (2, 32, 4) and targets["count"] == 2
    classes, distances = targets["points"]
    points = segments.points(32, RANGES)
    assert classes.shape == (2, 48, 2) and arguments["positives"] == (classes.sum(-1) > 0).sum()
    back = np.asarray(segments.decode(points, distances))
    for i in range(2):
        real = batch["labels"][i] >= 0
        hit = back[i][np.asarray(classes[i].sum(-1) > 0)]
        for row in batch["segments"][i][real]:
            assert np.abs(hit - row).max(-1).min() < 1e-4
    # A padding example has no positives and no valid step.
    half = batch | {"mask": np.array([True, False])}
    arguments, targets = task.training.inputs(half, {}, jax.random.key(0), VIEW)
    assert not arguments["mask"][1].any() and targets["count"] == 1
    assert not targets["points"][0][1].any()


def outputs_of(logits, offsets, settings):
    """A model's outputs for one window, all steps real."""
    points = segments.points(settings.data.window, settings.model.ranges)
    return {
        "logits": jnp.asarray(logits, jnp.float32)[None],
        "offsets": jnp.asarray(offsets, jnp.float32)[None],
        "mask": jnp.ones((1, len(points)), bool),
        "points": jnp.asarray(points),
        "normaliser": jnp.float32(1.0),
    }


def test_inference_keeps_the_best_of_points_and_classes(extracted):
    settings = config(extracted, post__top=3, post__least=0.3)
    task = detection.make(settings)
    batch = batch_of(task, task.training.source("val"), "val", 1)
    logits, offsets = np.full((48, 2), -5.0), np.zeros((48, 2))
    logits[10, 1], logits[40, 0] = 2.0, 1.0  # point 40: step 16 of the second level
    offsets[10], offsets[40] = (2, 3), (4, 1)
    found = task.evaluation.infer(lambda **_: outputs_of(logits, offsets, settings), batch, "val")
    np.testing.assert_allclose(found["score"][0], [0.880797, 0.731059, 0.0], atol=1e-5)
    assert found["label"][0, :2].tolist() == [1, 0]
    np.testing.assert_allclose(found["segment"][0, :2], [[8, 13], [8, 18]])
    agnostic = detection.make(config(extracted, model__classes=1, post__top=3))
    one = task.evaluation.infer.func(
        config(extracted, model__classes=1, post__top=3),
        lambda **_: outputs_of(logits[:, :1], offsets, settings),
        batch,
        "val",
    )
    assert one["score"].shape == (1, 48) and agnostic.training.classes == ("class0", "class1")


def test_the_loss_is_a_sum_over_the_batch(extracted):
    settings = config(extracted)
    task = detection.make(settings)
    batch = batch_of(task, task.training.source("train"))
    _, targets = task.training.inputs(batch, {}, jax.random.key(0), VIEW)
    rng = np.random.default_rng(0)
    one = outputs_of(rng.normal(size=(48, 2)), rng.uniform(0, 4, (48, 2)), settings)
    both = {
        name: jnp.concatenate([x, x]) if name in ("logits", "offsets", "mask") else x
        for name, x in one.items()
    }
    terms = task.training.loss(both, targets, {"label_smoothing": 0.0})
    assert set(terms) == {"cls", "reg"} and all(x.shape == (2,) for x in terms.values())
    halved = task.training.loss(both, targets | {"count": jnp.float32(1)}, {"label_smoothing": 0.0})
    for name in terms:  # mean of the two examples times two
        np.testing.assert_allclose(terms[name], 2 * halved[name], rtol=1e-6)


def rows_of(task, split="val"):
    """Perfect detections of every window, in its steps, as rows; and their source."""
    source = task.training.source(split)
    rows = {name: [] for name in ("video", "clock", "segment", "score", "label")}
    for sample in source.samples:
        clock = np.array([sample.start / sample.fps, 1 / sample.fps, sample.duration])
        table = np.zeros((4, 2))
        count = len(sample.video.labels)
        table[:count] = (sample.video.segments - clock[0]) / clock[1]
        rows["video"].append(sample.number)
        rows["clock"].append(clock)
        rows["segment"].append(table)
        rows["score"].append(np.where(np.arange(4) < count, 0.9, 0.0))
        rows["label"].append(np.resize(sample.video.labels, 4))
    return {name: np.array(column) for name, column in rows.items()}, source


def test_perfect_windows_score_one(extracted):
    settings = config(extracted, post__framewise=0.5, post__nms=Nms(method="hard"))
    task = detection.make(settings)
    rows, source = rows_of(task)
    found = task.evaluation.score({"windows": np.int32(len(source))}, rows)
    assert tuple(found) == task.evaluation.metrics
    for name in ("mAP", "recall@0.7@1x", "accuracy", "edit", "f1@50"):
        assert found[name] == pytest.approx(1.0), name


def test_the_end_of_a_run(extracted):
    task = detection.make(config(extracted, post__nms=Nms(method="hard"), post__pictures=1))
    rows, source = rows_of(task)
    ending = Ending("val", source.ids, rows, {}, {}, [], None, source, VIEW, True)
    extra = task.evaluation.conclude(ending)
    assert set(extra.files) == {"detections.json", "errors.txt", "timeline.html"}
    stored = json.loads(extra.files["detections.json"])["results"]
    assert set(stored) == {"v6", "v7", "v8"} and len(stored["v6"]) == 2
    assert extra.numbers["errors"]["share/true"] == 1
    assert [x for row in extra.numbers["ap"].values() for x in row] == [1.0] * 10
    assert len(extra.figures) == 1 and "<svg" in extra.figures[0].html


def test_the_end_of_a_run_with_empty_videos_and_doubled_truth(extracted, tmp_path):
    """A video without detections is listed and drawn; errors are split on the truth that counts."""
    notes = json.loads((extracted / "notes.json").read_text())
    first = notes["database"]["v6"]["annotations"]
    first.append(dict(first[0]))
    notes["database"]["v8"]["annotations"] = []
    path = tmp_path / "notes.json"
    path.write_text(json.dumps(notes))
    task = detection.make(
        config(
            extracted,
            data__annotations=str(path),
            post__nms=Nms(method="hard"),
            post__framewise=0.5,
        )
    )
    rows, source = rows_of(task)
    rows["score"][rows["video"] == 7] = 0
    ending = Ending("val", source.ids, rows, {}, {}, [], None, source, VIEW, True)
    extra = task.evaluation.conclude(ending)
    stored = json.loads(extra.files["detections.json"])["results"]
    assert {name: len(found) for name, found in stored.items()} == {"v6": 2, "v7": 0, "v8": 0}
    assert "v7" in extra.files["timeline.html"]
    split = extra.numbers["errors"]
    assert split["share/missed"] == pytest.approx(2 / 4)  # of v6 two, of v7 two
    last = extra.files["errors.txt"].splitlines()[-2].split()
    assert last[0] == "all" and last[-1] == "4"
    # Frames of a video without any segment count too.
    given = {"windows": np.int32(len(source))}
    right = task.evaluation.score(given, rows)
    rows["score"][rows["video"] == 8, 0] = 0.9
    rows["segment"][rows["video"] == 8, 0] = [0, 20]
    wrong = task.evaluation.score(given, rows)
    assert wrong["accuracy"] < right["accuracy"] and wrong["f1@10"] < right["f1@10"]


def test_describe_joins_windows(extracted):
    task = detection.make(config(extracted, post__nms=Nms(method="hard")))
    rows, source = rows_of(task)
    own = rows["video"] == rows["video"][0]
    assert own.sum() > 1
    line = task.prediction.describe({name: column[own] for name, column in rows.items()}, top=5)
    video = source[0].video
    wanted = sorted(video.segments.tolist())
    assert sorted(row["segment"] for row in line["segments"]) == wanted
    assert line["duration"] == 20 and line["timeline"].startswith("<svg")
    assert json.dumps(line) and task.prediction.recording(source[0]) == video.id


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"post__protocol": "voc"}, r"config\.post\.protocol='voc'"),
        ({"post__top": 0}, r"config\.post\.top=0"),
        ({"post__errors_at": 0.05}, r"config\.post\.errors_at=0\.05"),
        ({"post__nms": Nms(sigma=0.0)}, r"config\.post\.nms\.sigma=0\.0"),
        ({"post__merging__single": True}, r"config\.post\.merging\.single=True"),
        ({"post__merging__classifier": "x"}, r"config\.post\.merging\.classifier='x'"),
        ({"model__backbone__size": "s"}, r"config\.model\.backbone\.size='s'"),
        ({"data__overlap": 2.0}, r"config\.data\.overlap=2\.0"),
        ({"model__classes": 3}, r"2 classes, config\.model\.classes=3"),
    ],
)
def test_fields_are_checked(extracted, fields, message):
    with pytest.raises(UserError, match=message):
        detection.make(config(extracted, **fields))


def test_features_are_learnt_and_predicted(extracted, tmp_path):
    """Training, evaluation, files and prediction of the whole machine, on features."""
    settings = config(
        extracted,
        length="60 steps",
        batch_size=6,
        optim=Optim(name="adamw", lr=5e-3, groups=detection_config.groups(""), clip=1.0),
        eval=Eval(every="60 steps", batch_size=4, metric="mAP"),
        save=Save(every="60 steps", log_every=60, tensorboard=False),
    )
    schema.validate(settings)
    run = open_run(settings, tmp_path, "")
    loop.train(run)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["scores"]["mAP@0.3"] > 0.5
    assert {"errors.txt", "timeline.html"} <= {path.name for path in tmp_path.iterdir()}
    lines = []
    predict.predict(run, "", predict.Request(str(extracted / "notes.json")), lines.append)
    found = [json.loads(line) for line in lines]
    assert [line["id"] for line in found] == [f"v{index}" for index in range(9)]
    best = found[6]["segments"][0]
    assert best["score"] == max(row["score"] for row in found[6]["segments"])
    assert 0 <= best["segment"][0] < best["segment"][1] <= 20
    with pytest.raises(UserError, match=r"has no times; list .* with fps"):
        predict.predict(run, "", predict.Request(str(extracted / "v6.npy")), lines.append)


def test_a_class_agnostic_model_needs_classes_to_be_scored(extracted, tmp_path):
    """Training may begin only where its detections can be scored; prediction says "action"."""
    task = detection.make(config(extracted, model__classes=1))
    assert len(task.training.source("train")) == 6
    for split in ("val", "test"):
        with pytest.raises(UserError, match=r"config\.post\.merging\.classifier='' with model\.cl"):
            task.training.source(split)
    names = [f"v{index}" for index in range(6, 9)]
    table = {"results": {name: [0.2, 0.8] for name in names}, "class": ["class0", "class1"]}
    path = tmp_path / "classifier.json"
    path.write_text(json.dumps(table))
    given = config(
        extracted,
        model__classes=1,
        post__merging__classifier=str(path),
        post__merging__best=1,
        post__nms=Nms(method="hard", multiclass=False),
    )
    scored = detection.make(given)
    rows, source = rows_of(scored)
    rows["label"] = np.zeros_like(rows["label"])
    found = scored.evaluation.score({"windows": np.int32(len(source))}, rows)
    labels = np.concatenate([sample.video.labels for sample in source.samples[::2]])
    assert set(labels.tolist()) == {0, 1}
    assert found["recall@0.7@5x"] == pytest.approx(0.5)  # all of class1, none of class0
    line = scored.prediction.describe({name: column[:1] for name, column in rows.items()})
    assert {row["label"] for row in line["segments"]} == {"action"}


def test_framewise_scores_need_a_rate(extracted, tmp_path):
    notes = json.loads((extracted / "notes.json").read_text())
    rows, source = rows_of(detection.make(config(extracted)))
    for facts in notes["database"].values():
        del facts["frame"]
    path = tmp_path / "notes.json"
    path.write_text(json.dumps(notes))
    task = detection.make(config(extracted, data__annotations=str(path), post__framewise=0.5))
    with pytest.raises(UserError, match=r"notes\.json: video 'v6' has no fps .*framewise=-1"):
        task.evaluation.score({"windows": np.int32(len(source))}, rows)


def test_the_contract_of_an_artefact(extracted, drawn):
    """Segments and scores of all points: what `infer` chooses the best from."""
    settings = config(extracted)
    task = detection.make(settings)
    contract = task.shipping.contract()
    assert {name: port.shape for name, port in contract.inputs.items()} == {
        "features": (32, 4),
        "valid": (32,),
    }
    rng = np.random.default_rng(0)
    outputs = outputs_of(rng.normal(size=(48, 2)), rng.uniform(0, 4, (48, 2)), settings)
    batch = batch_of(task, task.training.source("val"), "val", 1)
    found = contract.call(lambda **_: outputs, {name: batch[name] for name in contract.inputs})
    best = task.evaluation.infer(lambda **_: outputs, batch, "val")
    order = np.argsort(-np.asarray(found["score"][0]).ravel(), kind="stable")
    np.testing.assert_allclose(best["score"][0], np.asarray(found["score"][0]).ravel()[order])
    np.testing.assert_allclose(best["segment"][0], found["segment"][0][order // 2])
    assert set(contract.outputs) == set(found)
    frames = detection.make(config(videos=drawn)).shipping.contract()
    assert frames.inputs["frames"].shape == (32, 32, 32, 3) and frames.inputs["frames"].high == 255
    assert frames.preprocessing["afterwards"]["nms"]["sigma"] == 0.7


def test_a_timeline_is_written(extracted, tmp_path):
    task = detection.make(config(extracted))
    rows, source = rows_of(task)
    line = task.prediction.describe({name: column[:1] for name, column in rows.items()})
    assert task.prediction.drawn == ".html"
    task.prediction.render(
        source[0], tmp_path / "page.html", [{"start": 0.0, "end": 20.0, **line}], 0
    )
    page = (tmp_path / "page.html").read_text()
    assert "<title>v6</title>" in page and line["timeline"] in page


def test_frames_reach_the_backbone(drawn):
    task = detection.make(config(videos=drawn))
    batch = batch_of(task, task.training.source("train"), count=1)
    assert batch["frames"].shape == (1, 32, 32, 32, 3)
    arguments, _ = task.training.inputs(batch, {}, jax.random.key(0), VIEW)
    wanted = (batch["frames"][0, 0, 0, 0] - np.array([123.675, 116.28, 103.53])) / np.array(
        [58.395, 57.12, 57.375]
    )
    np.testing.assert_allclose(arguments["video"][0, 0, 0, 0], wanted, atol=1e-5)
    variables = jax.eval_shape(task.training.model.init, jax.random.key(0), **arguments)
    shapes = jax.eval_shape(lambda v: task.training.model.apply(v, **arguments), variables)
    assert shapes["logits"].shape == (1, 48, 2)


def test_whole_videos_are_not_opened_for_their_length(drawn, tmp_path):
    """ActivityNet's annotation has durations alone, of thousands of videos."""
    notes = json.loads((drawn / "annotations.json").read_text())
    for facts in notes["database"].values():
        del facts["frame"]
    path = tmp_path / "notes.json"
    path.write_text(json.dumps(notes))
    data = config(videos=drawn, data__annotations=str(path), data__mode="resize").data
    found = dataset.source(dataclasses.replace(data, videos=str(tmp_path)), 2, "val")
    assert [sample.duration for sample in found.samples] == [8.0, 8.0]
    with pytest.raises(UserError, match=r"test0000\.mp4"):
        dataset.source(dataclasses.replace(data, videos=str(tmp_path), mode="sliding"), 2, "val")
    task = detection.make(
        config(
            videos=drawn,
            data__annotations=str(path),
            data__mode="resize",
            post__merging__single=True,
        )
    )
    example = task.training.prepare(
        task.training.source("val")[0], np.random.default_rng(0), VIEW, "val"
    )
    assert example["frames"].shape == (32, 32, 32, 3)
    np.testing.assert_allclose(example["clock"], [0, 0.25, 8])


def test_the_numbers_of_videos_outlive_the_split(drawn):
    data = config(videos=drawn).data
    named = {sample.number for sample in dataset.source(data, 2, "val").samples}
    assert named == {3, 4}
    swapped = dataclasses.replace(data, val_split="training", train_split="validation")
    assert {sample.number for sample in dataset.source(swapped, 2, "val").samples} == {0, 1, 2}

"""The recipe `configs/adatad.py`: schedules, what learns, its `:tiny` through the command."""

import gc
import json
import pathlib
import shutil
import types
import weakref

import command
import jax
import numpy as np
import pytest
from weights import inverse, writer

from jaxact import config as schema
from jaxact import exported
from jaxact.config import UserError
from jaxact.data import video
from jaxact.models import videomae
from jaxact.models.specs import VisionTransformerSpec
from jaxact.modes import predict
from jaxact.tasks.detection import frames
from jaxact.train import checkpoint, loop, optimizer, restore, setup, state
from jaxact.train.run import abstract_batch, abstract_variables, initial_variables, open_run
from jaxact.train.schedule import resolve
from jaxact.weights import videomae as names

ROOT = pathlib.Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "adatad.py"
TINY = f"--config={RECIPE}:tiny"
VARIANTS = (
    *("", "frozen", "full", "side", "activitynet", "features"),
    *("salads", "composed", "composed_frozen", "composed_full", "tiny"),
    *("drawn", "drawn_frozen", "drawn_full"),
)


# ------------------------------------------------------------------------------------ the recipe


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_task(variant, tmp_path):
    """Its fields go together, its groups hold every parameter, its plan resolves; without data."""
    config = schema.load(RECIPE, variant)
    schema.validate(config)
    run = open_run(config, tmp_path)
    setup.known_metric(run)
    schedule = run.plan(100)
    variables = abstract_variables(run, schedule.rows[0].stage_data)
    groups = optimizer.resolve_groups(config.optim, variables["params"])
    used = set(groups.member.values())
    assert used == {group.name for group in config.optim.groups}
    if variant.partition("_")[0] in ("composed", "drawn") and "_" in variant:
        return  # the same code with other groups
    loss = jax.eval_shape(
        lambda v, b: step_loss(run.task, v, b, schedule.rows[0].stage_data),
        variables,
        abstract_batch(run.task, schedule.rows[0].stage_data, "train", 1),
    )
    assert all(leaf.shape == (1,) for leaf in loss.values())


def step_loss(task, variables, batch, stage):
    arguments, targets = task.training.inputs(batch, {}, jax.random.key(0), stage)
    rngs = {"dropout": jax.random.key(1)}
    outputs, _ = task.training.model.apply(
        variables, **arguments, train=True, rngs=rngs, mutable=["normaliser"]
    )
    return task.training.loss(outputs, targets, {"label_smoothing": 0.1})


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match=r"no variant 'xl'; allowed: none, frozen, full"):
        schema.load(RECIPE, "xl")


# Rates of the adapters of ViT-S at steps of 100 an epoch, from a run of the reference's scheduler.
RATES = {
    0: 0.0,
    1: 4.008e-7,
    250: 1.0020e-4,
    499: 2e-4,
    500: 2e-4,
    1000: 1.98636e-4,
    2500: 1.78915e-4,
    4000: 1.40173e-4,
    5000: 1.08263e-4,
    5999: 7.5490e-5,
}


def test_learning_rates_of_thumos():
    config = schema.load(RECIPE)
    schedule = resolve(config, 100)
    factor = {group.name: group.lr for group in config.optim.groups}
    assert schedule.total == 6000 and factor["detector"] == factor["plain"] == 1
    for step, rate in RATES.items():
        found = float(schedule.hyper(step)["lr"])
        assert factor["adapter"] * found == pytest.approx(rate, rel=1e-5, abs=1e-12), step
        assert found == pytest.approx(rate / 2, rel=1e-5, abs=1e-12), step


@pytest.mark.parametrize(
    ("variant", "group", "rate"),
    [("full", "backbone", 1e-5), ("b", "adapter", 1e-4), ("l", "adapter", 1e-4)],
)
def test_rates_of_other_backbones(variant, group, rate):
    config = schema.load(RECIPE, variant)
    factor = {each.name: each.lr for each in config.optim.groups}
    peak = float(resolve(config, 100).hyper(500)["lr"])
    assert peak == pytest.approx(1e-4) and factor[group] * peak == pytest.approx(rate)


@pytest.mark.parametrize(
    ("variant", "epochs"),
    [
        ("", [42, 44, 46, 48, 50, 52, 54, 56, 58, 60]),
        ("frozen", [40, 45, 50, 55, 60]),
        ("full", [40, 45, 50, 55, 60]),
        ("activitynet", [9, 10, 11, 12, 13, 14, 15]),
    ],
)
def test_validations(variant, epochs):
    config = schema.load(RECIPE, variant)
    schedule = resolve(config, 100)
    part = types.SimpleNamespace(plan=schedule, run=types.SimpleNamespace(config=config))
    steps = range(1, schedule.total + 1)
    due = [s for s in steps if loop.validation_due(part, s)]
    assert due == [100 * epoch for epoch in epochs]


# The detector on 256 channels of ActivityNet, and ViT-S's adapters.
ACTIVITYNET = 6_051_328 + 3_072 + 790_793 + 1_006_860


@pytest.mark.parametrize(
    ("variant", "learns", "everything"),
    [
        ("", 27_702_568, 27_702_568 + 21_879_936),
        ("frozen", 26_695_708, 26_695_708 + 21_879_936),
        ("full", 48_575_644, 48_575_644),
        ("side", 26_695_708 + 503_430, 26_695_708 + 503_430 + 21_879_936),
        ("b", 31_289_896, 31_289_896 + 86_227_200),
        ("l", 41_895_988, 41_895_988 + 303_860_736),
        ("activitynet", ACTIVITYNET, ACTIVITYNET + 21_879_936),
    ],
)
def test_what_learns(variant, learns, everything, tmp_path):
    config = schema.load(RECIPE, variant)
    run = open_run(config, tmp_path)
    variables = abstract_variables(run, run.plan(100).rows[0].stage_data)
    groups = optimizer.resolve_groups(config.optim, variables["params"])
    flat = state.flatten(variables["params"])
    assert sum(leaf.size for leaf in flat.values()) == everything
    trained = groups.select(flat, groups.trainable)
    assert sum(leaf.size for leaf in trained.values()) == learns
    fresh = jax.eval_shape(lambda v: restore.create(config, groups, v), variables)
    averaged = jax.tree.leaves(fresh.ema["params"])
    assert sum(leaf.size for leaf in averaged) == learns
    moments = [leaf.size for leaf in jax.tree.leaves(fresh.opt_state) if leaf.ndim]
    assert sum(moments) <= 2 * learns


# ------------------------------------------------------------------------------ the real command


def data(folder):
    return (
        f"--config.data.annotations={folder / 'annotations.json'}",
        f"--config.data.videos={folder / 'videos'}",
    )


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    command.trained(TINY, *data(drawn), f"--workdir={workdir}", "--config.save.tensorboard=False")
    return workdir


def test_training_leaves_what_is_promised(trained):
    assert {path.name for path in trained.iterdir()} == {
        *("config.json", "metrics.jsonl", "results.json", "report.html", "checkpoints"),
        *("predictions", "detections.json", "errors.txt", "timeline.html"),
    }
    results = json.loads((trained / "results.json").read_text())
    assert results["weights"] == "ema" and results["steps"] == 2
    assert {"mAP", "mAP@0.5", "recall@0.7@5x", "f1@50", "edit"} <= set(results["scores"])
    assert set(results["ap"]) == {"across", "down"} and len(results["ap"]["down"]) == 5
    page = (trained / "report.html").read_text()
    assert "Timelines" in page and "test0000" in page and "<svg" in page
    found = json.loads((trained / "detections.json").read_text())["results"]
    assert set(found) == {"test0000", "test0001"}
    rows = command.rows(trained)
    assert {"loss/cls", "loss/reg", "grad_norm"} <= set(rows[0])
    stored = np.load(trained / "predictions" / "test.npz")
    assert stored["segment"].shape == (6, 50, 2) and stored["clock"].shape == (6, 3)


def test_a_resumed_training_ends_the_same(trained, drawn, tmp_path):
    """From the state after the first step, bit for bit."""
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    for name in ("results.json", "report.html", "detections.json"):
        (again / name).unlink()
    shutil.rmtree(again / "checkpoints" / "2")
    flags = ("--config.save.tensorboard=False", f"--workdir={again}")
    ended = command.trained(TINY, *data(drawn), *flags)
    assert "resumed from step 1" in ended.err
    one, other = (checkpoint.read_weights(path / "checkpoints" / "2") for path in (trained, again))
    for name in ("params", "ema", "model_state"):
        first, second = (state.flatten(each[name]) for each in (one, other))
        assert first.keys() == second.keys()
        for path, leaf in first.items():
            np.testing.assert_array_equal(leaf, second[path], err_msg=path)
    assert (again / "detections.json").read_text() == (trained / "detections.json").read_text()


def test_evaluation_and_prediction(trained, drawn, tmp_path):
    """Both give what training found at its end; predict needs a video file alone."""
    shown = command.trained(
        TINY, *data(drawn), "--mode=eval", f"--checkpoint={trained}", f"--workdir={tmp_path}"
    )
    results = json.loads((trained / "results.json").read_text())
    assert json.loads(shown.out)["scores"] == pytest.approx(results["scores"], rel=1e-6)
    page = tmp_path / "timeline.html"
    flags = (f"--workdir={trained}", f"--input={drawn / 'videos' / 'test0000.mp4'}")
    ended = command.trained(TINY, "--mode=predict", *flags, f"--render={page}")
    (line,) = [json.loads(row) for row in ended.out.splitlines()]
    wanted = json.loads((trained / "detections.json").read_text())["results"]["test0000"]
    assert line["duration"] == 8.0
    assert [row["label"] for row in line["segments"]] == [row["label"] for row in wanted]
    for mine, other in zip(line["segments"], wanted, strict=True):
        assert mine["segment"] == pytest.approx(other["segment"])
        assert mine["score"] == pytest.approx(other["score"])
    assert line["timeline"].startswith("<svg") and line["timeline"] in page.read_text()


def test_check_prints_what_learns(drawn):
    out = command.trained(TINY, *data(drawn), "--mode=check").out
    assert "group adapter" in out and "frozen" in out
    assert "frames       uint8[2, 32, 32, 32, 3]" in out
    assert "train 3, val 6, test 6 examples, all readable" in out


def test_an_artefact_answers_as_the_model(trained, tmp_path):
    flags = (f"--workdir={trained}", "--mode=export", f"--output={tmp_path / 'out'}")
    assert json.loads(command.trained(TINY, *flags).out)["largest_difference"] <= 1e-5
    model = exported.load(tmp_path / "out")
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 32, 3), np.uint8)
    valid = np.arange(32) < np.array([[32], [20], [32]])
    found = model(frames=frames, valid=valid)
    assert found["segment"].shape == (3, 56, 2) and found["score"].shape == (3, 56, 2)
    assert (found["score"][1, 20:32] == 0).all() and (found["score"][1, :20] > 0).all()


@pytest.mark.slow
def test_bench(drawn):
    found = json.loads(command.trained(TINY, *data(drawn), "--mode=bench", "--bench_steps=2").out)
    assert found["shapes"]["frames"] == [2, 32, 32, 32, 3]
    assert found["device_examples_per_s"] > 0 and found["pipeline_examples_per_s"] > 0


# -------------------------------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """(*flags) -> the line of the mistake, of trainings that end before anything is compiled."""
    folder = tmp_path_factory.mktemp("forks")
    forks = command.Forks(folder)

    def run(*flags):
        ended = forks.run(TINY, f"--workdir={folder / 'run'}", *flags)
        assert ended.code == 2, ended.err
        return ended.error

    yield run
    forks.close()


def edited(drawn, path, change):
    """The annotation after `change(database)`, as flags."""
    whole = json.loads((drawn / "annotations.json").read_text())
    change(whole["database"])
    path.write_text(json.dumps(whole))
    return (f"--config.data.annotations={path}", f"--config.data.videos={drawn / 'videos'}")


def forget(database):
    for facts in database.values():
        facts["annotations"] = facts["annotations"] if facts["subset"] == "training" else []


def rename(database):
    database["train0001"]["annotations"][0]["label"] = "acros"


def overrun(database):
    database["train0001"]["annotations"][-1]["segment"][1] = 9.5


def stop(database):
    database["test0000"]["fps"] = 0


def lengthen(database):
    database["train0002"]["frame"] = 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (forget, ["subset 'validation' has no ground truth (2 videos without segments)"]),
        (rename, ["video 'train0001', segment 0", "label 'acros'", "did you mean 'across'?"]),
        (overrun, ["video 'train0001', segment", "to 9.5 s, but the video ends at 8 s", "clip"]),
        (stop, ["video 'test0000': fps 0", "needed: above 0"]),
    ],
)
def test_wrong_annotations(refused, drawn, tmp_path, change, said):
    names = tmp_path / "names.txt"
    names.write_text("across\ndown\n")
    flags = edited(drawn, tmp_path / "notes.json", change)
    line = refused(*flags, f"--config.data.class_names={names}")
    assert "notes.json" in line
    for part in said:
        assert part in line


def test_a_split_that_is_not_there(refused, drawn):
    line = refused(*data(drawn), "--config.data.val_split=testing")
    assert "subset 'testing' is unknown; subsets: training, validation" in line


def test_another_number_of_classes(refused, drawn):
    line = refused(*data(drawn), "--config.model.classes=20")
    assert "2 classes, config.model.classes=20; allowed: 2, or 1 (class-agnostic)" in line


def test_a_class_agnostic_model_of_many_classes_needs_a_classifier(refused, drawn):
    line = refused(*data(drawn), "--config.model.classes=1")
    assert "config.post.merging.classifier=''" in line and "2 classes" in line


def test_a_video_that_is_shorter_than_annotated(refused, drawn, tmp_path):
    line = refused(*edited(drawn, tmp_path / "notes.json", lengthen), "--mode=check")
    assert "train0002.mp4: 96 frames, but the annotation has 200" in line


def test_a_video_shorter_than_one_clip(refused, drawn, tmp_path):
    shutil.copytree(drawn / "videos", tmp_path / "videos")
    frames = np.zeros((20, 36, 48, 3), np.uint8)
    video.write(tmp_path / "videos" / "train0000.mp4", frames, 12)

    def shorten(database):
        database["train0000"] |= {"frame": 20, "duration": 20 / 12, "annotations": [
            {"label": "down", "segment": [0.1, 1.0]}
        ]}  # fmt: skip

    notes, _ = edited(drawn, tmp_path / "notes.json", shorten)
    line = refused(notes, f"--config.data.videos={tmp_path / 'videos'}")
    assert "train0000.mp4: 20 frames, of which 10 are read; needed: 16 (one clip)" in line


def test_features_that_contradict_the_duration(refused, drawn, tmp_path):
    for name in json.loads((drawn / "annotations.json").read_text())["database"]:
        count = 60 if name == "train0001" else 48
        np.save(tmp_path / f"{name}.npy", np.zeros((count, 4), np.float32))
    line = refused(
        f"--config.data.annotations={drawn / 'annotations.json'}",
        f"--config.data.features={tmp_path}",
        "--config.data.channels=4",
        "--config.model.backbone.size=none",
    )
    assert "train0001.npy: 60 features, but the annotation's 96 frames make 48 steps" in line


def test_weights_of_another_size(refused, drawn, tmp_path):
    """A narrower VideoMAE: named with its file, and nothing is loaded in silence."""
    model = videomae.VideoMAEClassifier(400, VisionTransformerSpec(24, 2, 2, 48))
    window = jax.ShapeDtypeStruct((1, 16, 32, 32, 3), np.float32)
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32),
        jax.eval_shape(model.init, jax.random.key(0), window),
    )
    path = tmp_path / "vit.pth"
    tensors = inverse.invert(names.TABLES[1], variables)
    writer.write_zip(path, {"state_dict": tensors})
    line = refused(*data(drawn), f"--config.init_from={path}")
    assert "vit.pth" in line and "sizes differ" in line and "backbone" in line


# ----------------------------------------------------------------------------------- long videos


class Counted:
    """How many frame arrays of windows are alive, at most, and how many there were."""

    def __init__(self, read):
        self.read, self.alive, self.most, self.total = read, 0, 0, 0

    def __call__(self, *arguments):
        found = self.read(*arguments)
        self.total, self.alive = self.total + 1, self.alive + 1
        self.most = max(self.most, self.alive)
        weakref.finalize(found, self.freed)
        return found

    def freed(self):
        self.alive -= 1


def test_a_long_video_takes_no_more_memory(tmp_path, monkeypatch):
    """Windows are read while others are computed: as many are held for a long video as a short."""
    config = schema.load(RECIPE, "tiny")
    config.data.overlap, config.input.threads, config.post.nms.most = 0.0, 1, 2000
    run = open_run(config, tmp_path)
    variables = initial_variables(run, run.plan(1).rows[-1].stage_data)
    monkeypatch.setattr(predict, "load", lambda *_: (variables, "fresh"))
    rng = np.random.default_rng(0)
    most = {}
    for seconds in (40, 160):
        file = tmp_path / f"{seconds}.mp4"
        pictures = (rng.integers(0, 255, (36, 48, 1)).repeat(3, 2) for _ in range(12 * seconds))
        video.write(file, (picture.astype(np.uint8) for picture in pictures), 12)
        counted = Counted(frames.read)
        monkeypatch.setattr(frames, "read", counted)
        lines = []
        predict.predict(run, "", predict.Request(str(file)), lines.append)
        monkeypatch.setattr(frames, "read", counted.read)
        gc.collect()
        assert counted.total >= 12 * seconds // 64
        most[seconds] = counted.most
        (line,) = [json.loads(text) for text in lines]
        assert line["duration"] == seconds
        assert max(row["segment"][1] for row in line["segments"]) > 0.9 * seconds
    assert most[160] <= most[40] <= 8, most

"""Evaluation views of action recognition: any number, in parts, of bounded size, said aloud."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from altered import changed

from jaxact.config import UserError
from jaxact.data.pipeline import eval_batches
from jaxact.modes.check import check
from jaxact.modes.evaluate import evaluate_split
from jaxact.ops import heatmap
from jaxact.tasks.action import dataset, eval_views, export_contract, sample_data, skeletons
from jaxact.tasks.action import task as action
from jaxact.tasks.action.config import Config, Data, Model, Stage, Views
from jaxact.train import evaluation
from jaxact.train.run import initial_variables, open_run
from jaxact.train.step import make_eval_step


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    sample_data.write(folder, train=8, test=8, frames=30, size=(48, 64))
    return folder


class Net(nn.Module):
    """Compiles at once, and every pixel and map value matters."""

    @nn.compact
    def __call__(self, rgb, pose, train):
        found = {}
        for name, x in (("rgb", rgb), ("pose", pose)):
            if x is not None:
                x = nn.Dense(16, name=name)(x.reshape(len(x), -1))
                found[name] = nn.Dense(8, name=f"{name}_head")(nn.tanh(x))
        return found


def config(clips, **fields):
    """Two streams; fields of data."""
    found = Config(batch_size=3, model=Model(classes=8))
    found.data = Data(
        annotations=str(clips / "annotations.pkl"),
        videos=str(clips / "clips"),
        val_split="test",
        **{"rgb_frames": 2, "pose_frames": 4, "resize": 36, "test_size": 32, "scale": 0.5} | fields,
    )
    found.stages = (Stage(size=32),)
    return found


def opened(clips, tmp_path, streams="rgb+pose", **fields):
    """(run, stage, variables) of the small net."""
    found = config(clips, **fields)
    found.model.streams = streams
    run = open_run(found, tmp_path)
    run = dataclasses.replace(run, task=changed(run.task, model=Net(), counted=None))
    stage = run.plan(1).rows[-1].stage_data
    return run, stage, initial_variables(run, stage)


def rows_of(run, stage, variables, split="test"):
    program = make_eval_step(run.task, split)
    _, rows, ids = evaluation.evaluate(run, program, variables, split, stage)
    assert ids == run.source(split).ids
    return rows


# ------------------------------------------------------------------------------------ in parts


@pytest.mark.parametrize(
    ("clips_at_once", "wanted"), [(1, 20), (3, 10), (4, 5), (5, 4), (19, 2), (20, 1), (99, 1)]
)
def test_parts_are_equal_and_of_bounded_size(clips_at_once, wanted):
    data = Data(test=Views(clips=20), clips_at_once=clips_at_once)
    assert eval_views.parts(data, "test") == wanted
    assert 20 % wanted == 0 and 20 // wanted <= clips_at_once
    assert eval_views.parts(data, "val") == 1


def test_batches_do_not_grow_with_the_number_of_clips():
    sizes = set()
    for count in (5, 10, 15, 20, 1000):
        data = Data(test=Views(clips=count))
        shapes = dataset.shapes(data, ("rgb", "pose"), skeletons.COCO17, None, "test")
        sizes.add(sum(np.prod(s) * np.dtype(d).itemsize for s, d in shapes.values()))
    assert len(sizes) == 1


@pytest.mark.parametrize("fields", [{}, {"keep_ratio": True, "compact": False}])
def test_parts_together_are_all_views(clips, fields):
    """Same frames, same box, in the same order, as if prepared at once."""
    spec = Views(clips=6, crops=3 if fields else 1)
    whole = action.make(config(clips, test=spec, clips_at_once=6, **fields))
    apart = action.make(config(clips, test=spec, clips_at_once=2, **fields))
    assert (whole.evaluation.parts("test"), apart.evaluation.parts("test")) == (1, 3)
    for clip in list(whole.training.source("test"))[:2]:
        wanted = whole.training.prepare(clip, np.random.default_rng(0), None, "test")
        parts = [
            apart.training.prepare(clip, np.random.default_rng(0), None, "test", part=k)
            for k in range(3)
        ]
        for name, (shape, _) in apart.training.shapes(None, "test").items():
            assert all(part[name].shape == shape for part in parts)
            if name != "label":
                joined = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(joined, wanted[name])


def test_every_part_of_every_example_comes_once_in_order(clips):
    found = config(clips, test=Views(clips=4), clips_at_once=2)
    task = action.make(found)
    source = task.training.source("test")
    batches = list(eval_batches(found, task, source, None, "test", 3))
    assert [b["id"].tolist() for b in batches] == [
        *[[0, 1, 2]] * 2,
        *[[3, 4, 5]] * 2,
        *[[6, 7, -1]] * 2,
    ]
    for number, batch in enumerate(batches):
        for place, record in enumerate(batch["id"].tolist()):
            if record >= 0:
                alone = task.training.prepare(source[record], None, None, "test", part=number % 2)
                np.testing.assert_array_equal(batch["rgb"][place], alone["rgb"])


@pytest.mark.parametrize("average", ["prob", "score"])
def test_twenty_clips_are_the_mean_of_twenty_single_ones(clips, tmp_path, average):
    spec = Views(clips=20)
    fields = dict(test=spec, average=average)
    run, stage, variables = opened(clips, tmp_path, **fields, clips_at_once=20)
    source, task = run.source("test"), run.task
    single = make_eval_step(opened(clips, tmp_path, average=average)[0].task, "test")
    wanted = []
    for clip in source:
        every = task.training.prepare(clip, None, stage, "test")
        one_by_one = []
        for view in range(20):
            batch = {k: v[None, view : view + 1] for k, v in every.items() if np.ndim(v)}
            batch |= {"label": every["label"][None], "id": np.zeros(1, np.int32)}
            _, rows = single.whole(variables, {**batch, "mask": np.ones(1, bool)})
            one_by_one.append(rows)
        wanted.append(jax.tree.map(lambda *x: np.mean([np.asarray(v) for v in x], 0), *one_by_one))
    wanted = jax.tree.map(lambda *x: np.concatenate(x), *wanted)
    assert np.ptp(wanted["scores"], 0).max() > 1e-3  # examples differ
    for at_once in (20, 5, 1):
        run, stage, _ = opened(clips, tmp_path, **fields, clips_at_once=at_once, views_at_once=3)
        found = rows_of(run, stage, variables)
        for name in ("rgb", "pose", "scores"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-6)


def test_an_example_that_breaks_in_a_later_part_is_left_out(clips, tmp_path, capfd, monkeypatch):
    run, stage, variables = opened(clips, tmp_path, test=Views(clips=3), clips_at_once=1)
    run.config.input.broken = "skip"
    wanted = rows_of(run, stage, variables)
    prepare = run.task.training.prepare

    def breaking(clip, rng, stage, split, part=0):
        if clip.id == "test0002" and part >= 1:
            raise UserError(f"{clip.id}: cannot be decoded")
        return prepare(clip, rng, stage, split, part=part)

    broken = dataclasses.replace(run, task=changed(run.task, prepare=breaking))
    program = make_eval_step(broken.task, "test")
    scores, rows, ids = evaluation.evaluate(broken, program, variables, "test", stage)
    assert ids == [
        f"test{k:04d}" for k in range(8) if k != 2
    ]  # score() counts them against `measure`
    assert "top1" in scores
    np.testing.assert_allclose(rows["scores"], np.delete(wanted["scores"], 2, 0), atol=1e-6)
    assert capfd.readouterr().err.count("test0002: cannot be decoded") == 1
    run.config.input.broken = "stop"
    with pytest.raises(UserError, match="test0002"):
        evaluation.evaluate(broken, program, variables, "test", stage)


# -------------------------------------------------------------------------------------- doubled


@pytest.mark.parametrize("kind", ["joints", "limbs", "both"])
def test_double_mirrors_frames_and_maps_as_arrays(clips, kind):
    def apply(rgb, pose):
        return {"rgb": rgb.reshape(len(rgb), -1), "pose": pose.reshape(len(pose), -1)}

    plain, double = (
        action.make(config(clips, heatmap=kind, average="score", test=Views(double=d)))
        for d in (False, True)
    )
    one = plain.training.prepare(plain.training.source("test")[0], None, None, "test")
    batch = {k: jnp.asarray(v)[None] for k, v in one.items()}
    once, twice = (task.evaluation.infer(apply, batch, "test") for task in (plain, double))
    channels = {"joints": 17, "limbs": 17, "both": 34}[kind]
    rgb = np.asarray(once["rgb"]).reshape(1, 2, 32, 32, 3)
    pose = np.asarray(once["pose"]).reshape(1, 4, 16, 16, channels)
    mirrored = (rgb + rgb[:, :, :, ::-1]) / 2
    np.testing.assert_allclose(twice["rgb"], mirrored.reshape(1, -1), rtol=1e-6, atol=1e-6)
    # A plain loop over channels: left and right trade places, limbs by their ends.
    skeleton, flat = skeletons.COCO17, pose[:, :, :, ::-1]
    names = list(skeleton.joints)
    other = [names.index({"l": "r_", "r": "l_"}[n[0]] + n[2:] if n[1] == "_" else n) for n in names]
    wanted = []
    if kind != "limbs":
        wanted += [flat[..., other[k]] for k in range(17)]
    if kind != "joints":
        start = 17 if kind == "both" else 0
        ends = [frozenset(limb) for limb in skeleton.limbs]
        for a, b in skeleton.limbs:
            wanted.append(flat[..., start + ends.index(frozenset((other[a], other[b])))])
    assert pose.max() > 0.1
    mirrored = (pose + np.stack(wanted, -1)) / 2
    np.testing.assert_allclose(twice["pose"], mirrored.reshape(1, -1), rtol=1e-6)


def test_double_and_flip_are_a_pixel_apart():
    """Peaks at x -> w - 1 - x and x -> w - x (windows are not symmetric: maps differ by more)."""
    rng = np.random.default_rng(0)
    point = rng.integers(8, 24, (1, 1, 2, 17, 2)).astype(np.float32)
    score = np.ones((1, 1, 2, 17), np.float32)
    swap = list(skeletons.COCO17.swap)
    maps = heatmap.joints(point, score, (32, 32), 0.6)
    doubled = heatmap.mirrored(maps, swap)
    flipped = heatmap.joints(point[..., swap, :] * [-1, 1] + [32, 0], score, (32, 32), 0.6)
    at = point[0, 0][:, swap, 0]
    for drawn, width in ((doubled, 31), (flipped, 32)):
        columns = np.asarray(drawn)[0].max(1).argmax(1)  # t, w, j -> t, j
        np.testing.assert_array_equal(columns, width - at)


@pytest.mark.parametrize(
    ("streams", "spec"),
    [("rgb", Views(double=True)), ("rgb+pose", Views(double=True, flip=True))],
)
def test_double_is_refused_where_it_means_nothing(clips, streams, spec):
    found = config(clips, val=spec)
    found.model.streams = streams
    with pytest.raises(UserError, match=r"config\.data\.val\.double=True"):
        action.make(found)
    with pytest.raises(UserError, match=r"config\.data\.clips_at_once=0"):
        action.make(config(clips, clips_at_once=0))


# --------------------------------------------------------------------------------- said aloud


def test_views_are_said_and_a_difference_is_a_warning(clips, capfd):
    alike = action.make(config(clips))
    assert evaluation.say_views(alike)["views"] == {
        "val": "1 clip x 1 crop, no flip, 32 px",
        "test": "1 clip x 1 crop, no flip, 32 px",
    }
    line = "views val: 1 clip x 1 crop, no flip, 32 px | test: 1 clip x 1 crop, no flip, 32 px\n"
    assert capfd.readouterr().err == line
    spec = Views(clips=10, crops=3, flip=True)
    unlike = action.make(config(clips, test=spec, keep_ratio=True, compact=False))
    assert evaluation.say_views(unlike)["views"]["test"] == "10 clips x 3 crops, flip, 32 px"
    assert "\nwarning: val and test see an example differently" in capfd.readouterr().err


def test_eval_and_check_tell_the_views(clips, tmp_path, monkeypatch):
    run, _, variables = opened(clips, tmp_path, test=Views(clips=10, double=True))
    monkeypatch.setattr("jaxact.modes.evaluate.load", lambda *a: (variables, "here"))
    found = evaluate_split(run, "")
    assert found["views"]["test"] == "10 clips x 1 crop, double, 32 px"
    stored = json.loads((tmp_path / "eval_test.json").read_text())
    assert stored["views"] == found["views"]
    lines = []
    check(run, lines.append)
    assert "# val views: 1 clip x 1 crop, no flip, 32 px" in lines
    assert "# test views: 10 clips x 1 crop, double, 32 px" in lines
    macs = [int(line.split()[0].replace(",", "")) for line in lines if "multiply-adds" in line]
    train, val, test = macs
    assert train == val and test == 20 * val
    assert any("2 such parts of the views" in line for line in lines)


def test_an_export_says_how_evaluation_sees_a_clip():
    """What training alone draws is not in it; when the whole frame is taken is."""
    data = Data(interval=(0.5, 1.0), test=Views(clips=2))
    found = export_contract.preprocessing(data, ("rgb", "pose"), skeletons.COCO17)
    assert "interval" not in found["frames"]
    assert "less than 10 px" in found["crop"]["whole_frame_if"]
    assert found["crop"]["leaves_the_image_at_most_by"] == "2 of its widths and heights"


@pytest.mark.parametrize("streams", ["rgb+pose", "rgb"])
def test_metrics_are_named_as_they_are_scored(clips, tmp_path, streams):
    run, stage, variables = opened(clips, tmp_path, streams)
    program = make_eval_step(run.task, "val")
    scores, _, _ = evaluation.evaluate(run, program, variables, "val", stage)
    assert tuple(scores) == run.task.evaluation.metrics

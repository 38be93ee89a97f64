"""Two-stream action recognition: what a batch is, its loss, its scores, from files to numbers."""

import dataclasses
import json
import pickle
import types

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from altered import with_fields
from command import ONE_STREAM, ROOT
from golden import recipe as golden_recipe
from weights import writer

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.data import geometry, video
from jaxact.data.pipeline import eval_batches, train_batches
from jaxact.models.specs import X3DSpec
from jaxact.ops import heatmap
from jaxact.tasks.action import annotations, dataset, skeletons
from jaxact.tasks.action import task as action
from jaxact.tasks.action.annotations import Clip
from jaxact.tasks.action.config import Config, Data, Model, Stage, Views
from jaxact.train.evaluation import evaluate
from jaxact.train.restore import start
from jaxact.train.run import open_run
from jaxact.train.step import make_eval_step, make_train_step

RECIPE = ROOT / "configs" / "x3d.py"
SPLITS = ("train", "val", "test", "predict")


def config(clips=None, streams="rgb+pose", **fields):
    """A small config; fields as data__crops=3, model__classes=5."""
    model = Model(streams=streams, classes=8)
    data = Data(rgb_frames=2, pose_frames=4, resize=36, test_size=32, scale=0.5)
    if clips is not None:
        data.annotations, data.videos = str(clips / "annotations.pkl"), str(clips / "clips")
        data.train_split, data.val_split = "train", "test"
    found = Config(batch_size=4, model=model, data=data)
    found.stages = (Stage(size=32),)
    return with_fields(found, **fields)


def view(augment="none", size=32):
    return types.SimpleNamespace(augment=augment, size=size)


def prepared(task, clip, split="test", augment="none", seed=0, size=32):
    return task.training.prepare(clip, np.random.default_rng(seed), view(augment, size), split)


# --------------------------------------------------------------------------- prepare against shapes

VARIANTS = {
    "rgb+pose": {},
    "rgb": {"streams": "rgb"},
    "pose": {"streams": "pose", "data__rotate": 10.0, "data__noise": 1.0},
    "three people": {"data__people": 3},
    "independent frames": {"data__aligned": False, "data__pose_frames": 5},
    "one side first": {"data__keep_ratio": True},
    "views": {
        "data__keep_ratio": True,
        "data__compact": False,
        "data__val": Views(clips=2, crops=3, flip=True),
        "data__test": Views(clips=3, crops=3),
    },
    "clips": {"data__val": Views(clips=4), "data__test": Views(clips=2, flip=True)},
    "jittered short side": {
        "streams": "rgb",
        "data__keep_ratio": True,
        "data__compact": False,
        "data__short": (34, 44),
    },
    "whole frames": {"data__compact": False},
    "inside the image": {"data__imgpad": False, "data__jitter": (0.2, 0.2, 0.2, 0.1)},
    "dense": {"streams": "rgb", "data__sampling": "dense", "data__stride": 3},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_prepare_gives_what_shapes_promise(clips, name):
    task = action.make(config(clips, **VARIANTS[name]))
    for split in SPLITS:
        source = task.training.source("test" if split == "predict" else split)
        for augment in ("full", "light", "none") if split == "train" else ("none",):
            shapes = task.training.shapes(view(augment), split)
            found = prepared(task, source[3], split, augment)
            assert found.keys() == shapes.keys()
            for key, (shape, dtype) in shapes.items():
                assert (found[key].shape, found[key].dtype) == (shape, np.dtype(dtype)), key
            assert int(found["label"]) == source[3].label


def test_a_table_of_clips_without_poses(clips, tmp_path):
    table = tmp_path / "list.csv"
    lines = [f"clips/test{k:04d}.mp4,{'ab'[k % 2]},all" for k in range(4)]
    table.write_text("\n".join(["file,label,split", *lines]))
    fields = dict(data__annotations=str(table), data__videos=str(clips), model__classes=2)
    fields |= dict(data__train_split="all", data__val_split="all")
    task = action.make(config(streams="rgb", **fields))
    assert task.training.classes == ("a", "b")
    for split in SPLITS:
        source = task.training.source("test" if split == "predict" else split)
        assert [int(prepared(task, clip, split)["label"]) for clip in source] == [0, 1, 0, 1]
    with pytest.raises(UserError, match=r"no keypoints.*model.streams=rgb"):
        action.make(config(**fields)).training.source("train")


def test_training_draws_differ_and_evaluation_does_not(clips):
    task = action.make(config(clips))
    clip = task.training.source("train")[0]
    for split, differ in (("train", True), ("test", False)):
        one, other = (prepared(task, clip, split, "full", seed) for seed in (0, 1))
        again = prepared(task, clip, split, "full", 0)
        for name in ("rgb", "keypoint"):
            assert (one[name] != other[name]).any() == differ
            np.testing.assert_array_equal(one[name], again[name])


# -------------------------------------------------------------------------------- frames and joints


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A clip whose frames and joints tell their number: grey 10 n, the nose at x = n."""
    path = tmp_path_factory.mktemp("counted") / "counted.mp4"
    frames = np.repeat(np.arange(20, dtype=np.uint8) * 10, 32 * 32 * 3).reshape(20, 32, 32, 3)
    video.write(path, frames, 10, crf=0, pixels="yuv444p")
    point = np.full((1, 20, 17, 2), 16.0, np.float32)
    point[0, :, 0, 0] = np.arange(20) + 1  # 0 would be "not detected"
    return Clip("counted", 0, 20, str(path), (32, 32), point, np.ones((1, 20, 17), np.float32))


def numbers(found):
    """Frame numbers [v, t] of both streams."""
    rgb = found["rgb"].astype(float).mean((-1, -2, -3))
    return np.round(rgb / 10).astype(int), np.round(found["keypoint"][..., 0, :, 0, 0]).astype(
        int
    ) - 1


@pytest.mark.parametrize(("rgb", "pose"), [(2, 4), (3, 9), (16, 48), (4, 4)])
def test_rgb_frames_are_every_nth_pose_frame(counted, rgb, pose):
    fields = dict(data__rgb_frames=rgb, data__pose_frames=pose, data__compact=False)
    fields |= dict(data__people=1, data__test=Views(clips=3))
    task = action.make(config(**fields))
    seen = set()
    for split in ("train", "test"):
        for seed in range(3):
            found = prepared(task, counted, split, seed=seed)
            seen.add(found["rgb"].tobytes())
            frames, joints = numbers(found)
            np.testing.assert_array_equal(frames, joints[..., :: pose // rgb])
    assert len(seen) > 2  # training draws


def test_independent_frames_need_not_agree(counted):
    fields = dict(data__rgb_frames=4, data__pose_frames=8, data__compact=False, data__aligned=False)
    task = action.make(config(**fields, data__people=1))
    apart = []
    for seed in range(4):
        frames, joints = numbers(prepared(task, counted, "train", seed=seed))
        apart.append((frames != joints[::2]).any())
    assert any(apart)


def test_frames_and_joints_move_together(tmp_path):
    """A bright square with a joint in its middle, through every crop, resize and mirror."""
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    frames[:, 20:28, 40:48] = 255
    path = tmp_path / "square.mp4"
    video.write(path, frames, 10, crf=0, pixels="yuv444p")
    point = np.zeros((1, 4, 17, 2), np.float32)
    point[0, :, 5] = (44, 24)  # a left shoulder
    point[0, :, 16] = (5, 40)  # holds the box open
    clip = Clip("square", 0, 4, str(path), (48, 64), point, np.ones((1, 4, 17), np.float32))
    task = action.make(config(data__people=1, data__keep_ratio=False))
    mirrored = 0
    for seed in range(12):
        found = prepared(task, clip, "train", "full", seed)
        joint = found["keypoint"][0, 0]
        at = 5 if joint[5].any() and joint[5, 0] != 0 else 6
        mirrored += at == 6
        bright = np.argwhere(found["rgb"][0, :, :, 0] > 127)
        if not len(bright):
            continue  # cropped away
        low, high = bright.min(0), bright.max(0)
        if (low == 0).any() or (high == 31).any():
            continue  # cut by the border
        middle = (low + high + 1) / 2
        assert np.abs(joint[at, ::-1] - middle).max() < 1.5, seed
    assert 0 < mirrored < 12


def test_people_are_chosen_and_the_absent_draw_nothing(counted):
    second = counted.keypoint + 5
    both = dataclasses.replace(
        counted,
        keypoint=np.concatenate([counted.keypoint, second]),
        score=np.stack([counted.score[0] * 0.5, counted.score[0] * 0.9]),
    )
    fields = dict(streams="pose", data__compact=False)
    one = prepared(action.make(config(data__people=1, **fields)), both)
    np.testing.assert_allclose(one["score"], 0.9)
    three = prepared(action.make(config(data__people=3, **fields)), both)
    assert three["score"][0, :2].all() and not three["score"][0, 2].any()

    def maps(found, **options):
        keypoint, score = found["keypoint"][0], found["score"][0]
        return heatmap.joints(keypoint, score, (32, 32), 0.6, 0.5, **options)

    for use_score in (True, False):
        drawn = maps(three, use_score=use_score)
        np.testing.assert_array_equal(
            drawn,
            maps({k: three[k][:, :2] for k in ("keypoint", "score")}, use_score=use_score),
        )


def test_annotations_longer_than_the_video(counted):
    task = action.make(config(data__compact=False))

    def with_frames(count):
        pose = np.repeat(counted.keypoint[:, :1], count, 1)
        score = np.ones((1, count, 17), np.float32)
        return dataclasses.replace(counted, frames=count, keypoint=pose, score=score)

    prepared(task, with_frames(22))  # two frames fewer than annotated are common
    with pytest.raises(UserError, match=r"counted.mp4: 20 frames.*'counted' has 40"):
        prepared(task, with_frames(40))


# ------------------------------------------------------------------------------ views on the device


def fake(classes=5):
    """A stand-in for the model: logits that depend on every pixel and map value."""
    rng = np.random.default_rng(0)
    tables = {}

    def apply(rgb, pose):
        found = {}
        for name, x in (("rgb", rgb), ("pose", pose)):
            if x is not None:
                flat = x.reshape(x.shape[0], -1)
                if name not in tables:
                    tables[name] = rng.normal(size=(flat.shape[1], classes)).astype(np.float32)
                found[name] = 3 * jnp.tanh(flat @ tables[name] / np.sqrt(flat.shape[1]))
        return found

    return apply


def random_views(count, examples=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "rgb": rng.integers(0, 256, (examples, count, 2, 32, 32, 3), dtype=np.uint8),
        "keypoint": rng.uniform(1, 31, (examples, count, 2, 4, 17, 2)).astype(np.float32),
        "score": rng.uniform(0.2, 1, (examples, count, 2, 4, 17)).astype(np.float32),
        "label": np.zeros(examples, np.int32),
        "id": np.arange(examples, dtype=np.int32),
        "mask": np.ones(examples, bool),
    }


def softmax(x):
    power = np.exp(x - x.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


@pytest.mark.parametrize("average", ["prob", "score"])
@pytest.mark.parametrize("flip", [False, True])
def test_views_are_averaged_as_in_a_plain_loop(average, flip):
    batch, apply = random_views(3), fake()
    found = config(data__average=average, data__test=Views(clips=3, flip=flip))
    mean, std = np.array(found.data.mean), np.array(found.data.std)
    wanted = {"rgb": [], "pose": []}
    for v in range(3):
        for mirror in (False, True) if flip else (False,):
            rgb, keypoint, score = (batch[name][:, v] for name in ("rgb", "keypoint", "score"))
            if mirror:
                rgb = rgb[:, :, :, ::-1]
                swap = skeletons.COCO17.swap
                _, keypoint, score = geometry.flip(None, keypoint.copy(), score, (32, 32), swap)
            maps = heatmap.joints(keypoint, score, (32, 32), 0.6, 0.5)
            logits = apply(jnp.float32((rgb - mean) / std), maps)
            for name in wanted:
                one = np.asarray(logits[name])
                wanted[name].append(softmax(one) if average == "prob" else one)
    for at_once in (1, 2, 3, 8):
        found.data.views_at_once = at_once
        task = action.make(found)
        outputs = jax.jit(lambda b, task=task: task.evaluation.infer(apply, b, "test"))(batch)
        for name in wanted:
            np.testing.assert_allclose(outputs[name], np.mean(wanted[name], 0), atol=2e-5)
        rows = task.evaluation.rows(outputs, batch)
        np.testing.assert_allclose(
            rows["scores"], (outputs["rgb"] + outputs["pose"]) / 2, rtol=1e-6
        )


@pytest.mark.parametrize("kind", ["joints", "limbs", "both"])
def test_mirrored_maps_are_those_of_mirrored_joints(kind):
    """x -> w - x, undetected zeros stay, left and right trade places: on the device as on the
    host."""
    batch = random_views(1)
    batch["keypoint"][0, 0, 0, 1, 3] = 0  # undetected
    found = config(data__heatmap=kind, data__average="score", streams="pose")

    def apply(rgb, pose):
        return {"pose": pose.reshape(pose.shape[0], -1)}

    found.data.test = Views(flip=True)
    outputs = action.make(found).evaluation.infer(apply, batch, "test")["pose"]
    swap = skeletons.COCO17.swap
    keypoint, score = batch["keypoint"][:, 0], batch["score"][:, 0]
    _, mirror, mirror_score = geometry.flip(None, keypoint.copy(), score, (32, 32), swap)
    draw = {"joints": heatmap.joints, "limbs": heatmap.limbs, "both": heatmap.both}[kind]
    limbs = () if kind == "joints" else (skeletons.COCO17.limbs,)
    maps = [
        np.asarray(draw(k, s, (32, 32), 0.6, *limbs, scale=0.5))
        for k, s in ((keypoint, score), (mirror, mirror_score))
    ]
    assert np.abs(maps[0] - maps[1]).max() > 0.1
    np.testing.assert_allclose(outputs, (maps[0] + maps[1]).reshape(2, -1) / 2, atol=1e-6)


# --------------------------------------------------------------------------------------------- loss

COARSE = (2, 0, 0, 1, 1, 2, 0, 1)
OFF = {
    name: jnp.float32(name.endswith("prob"))
    for name in ("label_smoothing", "mixup", "cutmix", "mixup_prob", "cutmix_prob", "lr")
}


def training_batch(labels):
    batch = {k: v[:, 0] for k, v in random_views(1, len(labels)).items() if v.ndim > 1}
    return {
        **batch,
        "label": np.array(labels, np.int32),
        "id": np.arange(len(labels), dtype=np.int32),
        "mask": np.ones(len(labels), bool),
    }


def inputs(task, batch, hyper=OFF, seed=0):
    """The model's arguments and the targets, under jit as in training."""
    return jax.jit(lambda b, h, k: task.training.inputs(b, h, k, view()))(
        batch, hyper, jax.random.key(seed)
    )


# A batch without class 0, one with it, and one of a single class: what the labels are does not
# depend on what else is in the batch.
@pytest.mark.parametrize("labels", [(3, 1, 7, 5), (0, 1, 7, 5), (7, 7, 7, 7)])
def test_the_loss_is_four_weighted_entropies_of_the_given_labels(labels):
    weights = (1.0, 1.5, 0.6, 1.2)
    task = action.make(config(model__coarse=COARSE, model__loss_weights=weights))
    batch = training_batch(labels)
    _, targets = inputs(task, batch)
    assert batch["label"].tolist() == list(labels)
    rng = np.random.default_rng(1)
    sizes = {"rgb": 8, "pose": 8, "rgb_coarse": 3, "pose_coarse": 3}
    outputs = {k: rng.normal(size=(4, n)).astype(np.float32) for k, n in sizes.items()}
    terms = task.training.loss(jax.tree.map(jnp.asarray, outputs), targets, OFF)
    assert list(terms) == ["rgb", "pose", "rgb_coarse", "pose_coarse"]
    for (name, term), weight in zip(terms.items(), weights, strict=True):
        true = [COARSE[label] for label in labels] if "coarse" in name else list(labels)
        entropy = -np.log(softmax(outputs[name].astype(np.float64)))[np.arange(4), true]
        np.testing.assert_allclose(term, weight * entropy, rtol=1e-5)


def test_clips_trained_and_tested_on_are_found(clips, tmp_path):
    found = config(clips)
    task = action.make(found)
    sources = {split: task.training.source(split) for split in ("train", "val", "test")}
    findings, table = task.shipping.survey(sources)
    assert findings == [] and "val, test            8 ids        8 videos" in table
    clip = sources["train"].clips[3]
    again = dataclasses.replace(clip, id="z")  # the same file under another name
    sources["test"] = dataset.ClipSource([clip, again])
    findings, table = task.shipping.survey(sources)
    assert findings == [
        f"train and test share 1 ids and 1 videos, as {clip.id!r}: what is trained on is tested"
    ]
    sources["test"] = dataset.ClipSource([again])
    assert "share 0 ids and 1 videos" in task.shipping.survey(sources)[0][0]


def test_label_smoothing_is_that_of_the_stage():
    task = action.make(config())
    batch = training_batch((0, 3, 5, 7))
    _, targets = inputs(task, batch)
    logits = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    outputs = {"rgb": jnp.asarray(logits), "pose": jnp.asarray(logits)}
    terms = task.training.loss(outputs, targets, {**OFF, "label_smoothing": jnp.float32(0.2)})
    share = 0.8 * np.eye(8)[batch["label"]] + 0.2 / 8
    entropy = -(share * np.log(softmax(logits.astype(np.float64)))).sum(1)
    np.testing.assert_allclose(terms["rgb"], entropy, rtol=1e-5)
    np.testing.assert_allclose(terms["pose"], 1.5 * entropy, rtol=1e-5)


def test_both_streams_and_all_targets_are_mixed_alike():
    """One lambda and one order for frames, maps, fine and coarse labels."""
    mixing = (Stage(mixup=(1.0,)),)
    task = action.make(config(model__coarse=COARSE, stages=mixing))
    batch = training_batch(range(8))
    plain, hard = inputs(task, batch)
    fewer = 0
    for seed in range(4):
        hyper = {**OFF, "mixup": jnp.float32(1.0)}
        streams, targets = inputs(task, batch, hyper, seed)
        share = np.asarray(targets["fine"])  # row i: lam at i, 1 - lam at its partner
        own = share.diagonal()
        order = (share - np.diag(own)).argmax(1)
        moved = order[(share - np.diag(own)).max(1) > 1e-6]
        fewer += len(moved)
        lam = own.min()
        for k in range(8):
            partner = order[k] if share[k, k] < 1 - 1e-6 else k
            for name in ("rgb", "pose"):
                wanted = lam * plain[name][k] + (1 - lam) * plain[name][partner]
                np.testing.assert_allclose(streams[name][k], wanted, atol=1e-5)
            coarse = lam * hard["coarse"][k] + (1 - lam) * hard["coarse"][partner]
            np.testing.assert_allclose(targets["coarse"][k], coarse, atol=1e-6)
    assert fewer > 8


def test_coarse_classes_are_given_not_guessed():
    assert "coarse" not in inputs(action.make(config()), training_batch((1, 2)))[1]
    ntu60 = schema.load(RECIPE).model
    assert np.bincount(ntu60.coarse).tolist() == [40, 9, 11] and ntu60.classes == 60


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(model__coarse=(0, 1)), "model.coarse='2 entries'"),
        (dict(model__loss_weights=(1.0, 1.0)), "4 numbers"),
        (dict(data__pose_frames=5), "multiples of rgb_frames=2"),
        (dict(data__sampling="dense"), "uniform, for a pose stream"),
        (dict(data__test=Views(crops=2)), "1 or 3"),
        (dict(data__val=Views(crops=3)), "data.keep_ratio"),
        (dict(data__val=Views(crops=3), data__keep_ratio=True), "1 with data.compact"),
        (dict(data__rotate=5.0), "data.rotate=5.0"),
        (dict(streams="video"), "rgb, pose, rgb"),
        (dict(model__rgb__temporal="shfit"), "conv, shift"),
        (dict(model__prototypes=True), "prototypes"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, said):
    with pytest.raises(UserError) as caught:
        action.make(config(**fields))
    assert said in str(caught.value) or set(said.split(", ")) <= set(
        str(caught.value).replace("+pose", "").replace(":", ",").split(", ")
    )


# ------------------------------------------------------------------------------------------- scores


def test_scores_of_streams_and_fusions():
    task = action.make(config())
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 8, 40).astype(np.int32)  # -1: unknown, counted nowhere
    outputs = {
        name: softmax(rng.normal(size=(40, 8))).astype(np.float32) for name in ("rgb", "pose")
    }
    outputs = jax.tree.map(jnp.asarray, outputs)
    batch = {"label": jnp.asarray(labels), "mask": jnp.ones(40, bool)}
    rows = jax.tree.map(np.asarray, task.evaluation.rows(outputs, batch))
    found = task.evaluation.score(jax.device_get(task.evaluation.measure(outputs, batch)), rows)
    known = labels >= 0
    rgb, pose = (np.asarray(outputs[name])[known] for name in ("rgb", "pose"))

    def top(scores, k=1):
        return np.mean(
            [y in np.argsort(-s)[:k] for s, y in zip(scores, labels[known], strict=True)]
        )

    wanted = {
        "top1": top(rgb + pose),
        "top5": top(rgb + pose, 5),
        "rgb_top1": top(rgb),
        "pose_top5": top(pose, 5),
        "fused_2:1_top1": top(2 * rgb + pose),
        "fused_1:2_top1": top(rgb + 2 * pose),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_what_a_prediction_says():
    task = action.make(config(data__average="score"))
    scores = np.array([0, 3, 1, 1, -2, 0, 0, 2], np.float32)
    said = task.prediction.describe({"scores": scores})
    assert [t["class"] for t in said["top"]] == [1, 7, 2, 3, 0]
    assert said["probability"] == pytest.approx(softmax(scores)[1])
    json.dumps(said)


# ------------------------------------------------------------------------------------ real networks


def quick(clips, **fields):
    """Two streams that learn eight clips by heart."""
    spec = X3DSpec(blocks=(1, 1), width=16, temporal="shift")
    found = config(clips, **fields)
    found.model.rgb = spec
    found.model.pose = dataclasses.replace(spec, fold_div=4, stem_stride=1)
    found.model.dropout = (0.0, 0.0)
    found.data.rgb_frames, found.data.pose_frames = 4, 8
    found.data.val_split = "train"
    found.batch_size = 8
    found.length = "120 steps"
    found.optim = schema.Optim(name="adam", lr=4e-3, schedule="constant")
    found.stages = (Stage(size=32, augment="none"),)
    return found


def test_one_batch_is_learnt_by_heart(clips, tmp_path):
    """Eight clips in four pairs of twins, two told apart by pixels alone and two by joints alone.

    A stream that cannot tell two pairs apart has a loss of ln 2 on half of the clips.
    """
    found = quick(clips)
    run = open_run(found, tmp_path)
    eight = dataset.ClipSource(run.source("train").clips[:8])
    assert sorted(clip.label for clip in eight.clips) == list(range(8))
    run.sources.update(train=eight, val=eight)
    plan = run.plan()
    state, groups = start(run, plan.rows[0].stage_data, lambda text: None)
    step = make_train_step(found, run.task, plan, groups, plan.rows[0])
    losses = []
    for batch in train_batches(found, run.task, eight, plan.rows[0].stage_data, 0, plan.total):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 1.1 * (1.0 + 1.5) * np.log(2) / 2 < losses[0] / 5
    program = make_eval_step(run.task, "val")
    variables = {"params": state.params, **state.model_state}
    scores, rows, _ = evaluate(run, program, variables, "val", plan.rows[0].stage_data, eight)
    assert scores["top1"] > 0.99, rows["scores"].argmax(1)
    assert scores["rgb_top1"] >= 0.75 and scores["pose_top1"] >= 0.75


@pytest.fixture(scope="module")
def epam(golden, tmp_path_factory):
    """A PyTorch file and a safetensors file of a two-stream network with attention, 60 classes."""
    folder = tmp_path_factory.mktemp("epam")
    entry = json.loads((golden / "statedict" / "epamnet_full.json").read_text())
    tensors = {
        key: golden_recipe.fill(key, shape, entry["norm_gain"])
        for key, shape in entry["tensors"].items()
    }
    zipped, safe = folder / "epam.pth", folder / "epam.safetensors"
    content = {"state_dict": {key: writer.view(array) for key, array in tensors.items()}}
    writer.write_zip(zipped, content)
    writer.write_safetensors(safe, tensors)
    return zipped, safe, tensors


SMALL_EPAM = (
    f"--config={RECIPE}:epam",
    *("--config.data.train_split=train", "--config.data.val_split=test"),
    *("--config.data.rgb_frames=2", "--config.data.pose_frames=4"),
    *("--config.data.resize=64", "--config.data.test_size=64", "--config.stages[0].size=64"),
)


@pytest.fixture(scope="module")
def unnamed(clips, tmp_path_factory):
    """An annotation of the clips without class names: labels of a larger set, for all it says."""
    content = pickle.loads((clips / "annotations.pkl").read_bytes())
    del content["classes"]
    path = tmp_path_factory.mktemp("unnamed") / "annotations.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


def test_foreign_weights_evaluate(epam, clips, unnamed, tmp_path):
    zipped, _, tensors = epam
    flags = ("--mode=eval", f"--checkpoint={zipped}", f"--workdir={tmp_path}")
    flags += (f"--config.data.annotations={unnamed}",)
    ended = command.trained(*SMALL_EPAM, *command.data(clips), *flags)
    found = json.loads(ended.out)
    assert found["examples"] == 8 and found["checkpoint"] == str(zipped)
    rows = np.load(tmp_path / "predictions" / "test.npz")
    assert rows["scores"].shape == (8, 60) and np.isfinite(rows["scores"]).all()
    assert rows["scores"].std() > 0.1  # fresh heads would give logits of 0.01
    floats = [key for key in tensors if not key.endswith("num_batches_tracked")]
    assert f"{len(floats)} variables loaded" in ended.err


def test_foreign_weights_start_a_training(epam, clips, unnamed, tmp_path):
    _, safe, tensors = epam
    found = schema.load(RECIPE, "epam")
    found.init_from = str(safe)
    found.data.annotations, found.data.videos = str(unnamed), str(clips / "clips")
    found.data.train_split = "train"
    run = open_run(found, tmp_path)
    state, _ = start(run, run.plan().rows[0].stage_data, lambda text: None)
    for path, key in (
        ("head/rgb", "rgb_cls_head.fc_cls.weight"),
        ("head/pose", "pose_cls_head.fc_cls.weight"),
    ):
        node = state.params
        for part in path.split("/"):
            node = node[part]
        np.testing.assert_array_equal(node["kernel"], tensors[key].T)
    np.testing.assert_array_equal(
        state.params["attention"]["spatial"]["kernel"],
        tensors["attention_module.spatial.conv.weight"][:, :, 0].transpose(2, 3, 1, 0),
    )
    report = (tmp_path / "init_report.txt").read_text()
    assert str(safe) in report and "rgb_cls_head.fc_cls.weight" in report
    assert "kept their initial values" not in report


def test_real_videos_of_any_kind(real_data, clips, tmp_path):
    """A model of RGB alone on a folder of videos as they come: other codecs, sizes, lengths."""
    workdir = f"--workdir={tmp_path / 'run'}"
    flags = (*ONE_STREAM, "--config.save.report=False")
    command.trained(*flags, *command.data(clips), "--config.length=1 epochs", workdir)
    folder = real_data / "decode_samples"
    output = tmp_path / "out.jsonl"
    ended = command.trained(
        *flags, "--mode=predict", workdir, f"--input={folder}", f"--output={output}"
    )
    assert ended.out == ""
    found = {row["id"]: row for row in map(json.loads, output.read_text().splitlines())}
    videos = {str(p) for p in folder.iterdir() if p.suffix in (".mp4", ".avi")}
    assert found.keys() == videos and len(videos) == 6
    for row in found.values():
        shares = [t["probability"] for t in row["top"]]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6


def test_an_example_is_the_same_from_every_list(clips, tmp_path):
    """The same video from its folder, a table, a JSON list or the pickle is the same batch."""
    found = config(clips, streams="rgb", data__compact=False)
    found.data.annotations = ""
    task = action.make(found)
    path = clips / "clips" / "test0001.mp4"
    table, lines = tmp_path / "list.csv", tmp_path / "list.jsonl"
    table.write_text(f"file,label\n{path},\n")
    lines.write_text(json.dumps({"id": "x", "video": str(path)}) + "\n")
    given = [task.prediction.example(str(p))[0] for p in (path, table, lines)]
    assert all(clip.label == -1 for clip in given)
    batches = []
    for clip in given:
        source = dataset.ClipSource([clip])
        batches.append(next(eval_batches(found, task, source, view(), "predict", 2)))
    for batch in batches[1:]:
        for name in ("rgb", "label", "mask"):
            np.testing.assert_array_equal(batch[name], batches[0][name])
    known = annotations.read(clips / "annotations.pkl", "test", videos=clips / "clips")[1]
    np.testing.assert_array_equal(prepared(task, known, "predict")["rgb"], batches[0]["rgb"][0])


def test_short_side_jitter_is_a_pure_crop_of_a_resized_frame(clips):
    """The short side is drawn from the range and the crop cut without another resize (X3D)."""
    found = config(
        clips, streams="rgb", data__keep_ratio=True, data__compact=False, data__short=(40, 40)
    )
    found.data.flip = 0.0
    task = action.make(found)
    clip = task.training.source("train")[0]
    cut = prepared(task, clip, "train", "full")["rgb"]
    with video.Video(clip.video) as opened:
        every = opened.read(range(opened.frames))
    whole, _, size = geometry.resize(every, None, every.shape[1:3], (40, 53))
    places = [
        (y, x)
        for y in range(size[0] - 31)
        for x in range(size[1] - 31)
        if any(np.array_equal(frame[y : y + 32, x : x + 32], cut[0]) for frame in whole)
    ]
    assert places
    with pytest.raises(UserError, match=r"config\.data\.short"):
        action.make(config(clips, data__short=(20, 40)))

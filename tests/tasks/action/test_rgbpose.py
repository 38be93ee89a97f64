"""The recipe of dense 3-D convolutions: its variants, and a fusion started from its two parts."""

import json

import command
import jax
import numpy as np
import pytest
from command import ROOT

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.evaluate import cost
from jaxact.models.specs import C3DSpec, ExchangeSpec, ResNet3DSpec, X3DSpec
from jaxact.modes import check
from jaxact.tasks.action import skeletons
from jaxact.tasks.action import task as action
from jaxact.tasks.action.config import Views
from jaxact.train import checkpoint
from jaxact.train.restore import find_checkpoint, start
from jaxact.train.run import abstract_variables, cold_start, open_run

RECIPE = ROOT / "configs" / "rgbpose_conv3d.py"
TINY = f"--config={RECIPE}:tiny"
PARAMETERS = {
    "": 36_147_928,
    "fusion": 36_147_928,
    "conservative": 36_155_614,
    "rgb_only": 31_757_436,
    "pose_only": 2_024_860,
    "late": 33_782_296,
    "posec3d": 2_024_860,
    "posec3d_limb": 2_024_860,
    "c3d_light": 3_404_892,
    "x3d_shallow": 254_508,
}
SMALLER = ("jhmdb", "jhmdb_limb", "jhmdb_both", "demo_fusion", "demo_rgb_only", "demo_pose_only")


def made(variant, **model):
    """(config, task) of a variant, with other values in its model."""
    config = schema.load(RECIPE, variant)
    for name, value in model.items():
        setattr(config.model, name, value)
    schema.validate(config)
    return config, action.make(config)


def altered(record, **fields):
    """The record with other values, as the command line sets them."""
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def parameters(tmp_path, variant):
    """Numbers in the parameters that a run of the variant would train."""
    config, _ = made(variant)
    run = open_run(config, tmp_path)
    view = run.plan(100).rows[0].stage_data
    return cost.table(abstract_variables(run, view)["params"])[-1].parameters


@pytest.mark.parametrize("variant", PARAMETERS)
def test_published_variants(tmp_path, variant):
    assert parameters(tmp_path, variant) == PARAMETERS[variant]


@pytest.mark.parametrize("variant", SMALLER)
def test_laptop_variants_are_small(tmp_path, variant):
    assert parameters(tmp_path, variant) < 300_000


def test_every_variant_is_listed():
    page = RECIPE.read_text().split('"""')[1]
    with pytest.raises(UserError, match="no variant 'rgbonly'; allowed: none, fusion") as error:
        schema.load(RECIPE, "rgbonly")
    for name in (*PARAMETERS, *SMALLER, "tiny"):
        assert name in page and name in str(error.value)


def test_limbs_are_ordered_as_in_published_weights():
    """A checkpoint's first kernel has one input channel a limb."""
    config, _ = made("posec3d_limb")
    assert config.data.heatmap == "limbs"
    assert skeletons.find(config.data.skeleton).limbs[:4] == ((0, 5), (0, 6), (5, 7), (7, 9))


# Of each recipe what its sources say: batch, lr at that batch, weight decay, epochs, schedule,
# frames, px of the training crop and in evaluation, map scale and sigma, clips and mirror of the
# test, loss weights that count (RGB, pose, coarse ones).
BOTH = ("8+32", 224, 256, 0.25, 0.7, 10, "no")
ALONE = (56, 64, 1.0, 0.6, 10, "double", (1.0,))
PINNED = {
    "": (48, 0.0075, 1e-4, 20, "step", *BOTH, (1.0, 1.0, 0.0, 0.0)),
    "fusion": (48, 0.0075, 1e-4, 20, "step", *BOTH, (1.0, 1.0, 0.0, 0.0)),
    "late": (48, 0.0075, 1e-4, 20, "step", *BOTH, (1.0, 1.0, 0.0, 0.0)),
    "conservative": (48, 0.0005, 2e-4, 15, "cosine", *BOTH, (1.0, 1.5, 0.6, 1.2)),
    "rgb_only": (96, 0.15, 1e-4, 180, "cosine", "8", 224, 224, 0.25, 0.7, 10, "no", (1.0,)),
    "pose_only": (128, 0.2, 3e-4, 180, "cosine", "32", *ALONE),
    "posec3d": (128, 0.2, 3e-4, 240, "cosine", "48", *ALONE),
    "posec3d_limb": (128, 0.2, 3e-4, 240, "cosine", "48", *ALONE),
    "c3d_light": (128, 0.2, 3e-4, 240, "cosine", "48", *ALONE),
    "x3d_shallow": (128, 0.2, 3e-4, 240, "cosine", "48", *ALONE),
}


@pytest.mark.parametrize("variant", PINNED)
def test_numbers_of_the_published_recipes(variant):
    config, task = made(variant)
    view = open_run(config, ROOT).plan(10).rows[0].stage_data
    data, optim, model = config.data, config.optim, config.model
    streams = model.streams.split("+")
    frames = [{"rgb": data.rgb_frames, "pose": data.pose_frames}[name] for name in streams]
    mirror = "double" if data.test.double else "flip" if data.test.flip else "no"
    weights = dict(zip(("rgb", "pose"), model.loss_weights[:2], strict=True))
    counted = tuple(weights[name] for name in streams)
    if len(streams) == 2:
        counted += model.loss_weights[2:]
        assert bool(model.coarse) == any(model.loss_weights[2:])
    assert PINNED[variant] == (
        *(config.batch_size, optim.lr, optim.weight_decay, int(config.length.split()[0])),
        *(optim.schedule, "+".join(map(str, frames)), view.size, data.test_size),
        *(data.scale, data.sigma, data.test.clips, mirror, counted),
    )
    assert optim.name == "sgd" and optim.momentum == 0.9 and not optim.nesterov
    assert optim.clip == 40 and optim.lr_batch in (0, config.batch_size)
    assert optim.warmup == "0" and optim.min_lr == 0
    if optim.schedule == "step":
        assert optim.milestones == ("12 epochs", "16 epochs") and optim.gamma == 0.1
    assert data.val == Views() and data.test.crops == 1
    assert data.resize == (256 if "rgb" in streams else 64) and data.area == (0.56, 1.0)
    assert data.flip == 0.5 and not any(data.jitter) and data.compact and data.padding == 0.25
    assert model.dropout == (0.5, 0.5)
    assert len(config.stages) == 1 and view.augment == "full"
    assert not any(config.stages[0].label_smoothing + config.stages[0].mixup)
    assert not any(config.stages[0].cutmix)
    assert task.evaluation.views("val") == f"1 clip x 1 crop, no flip, {data.test_size} px"


def test_schedules_of_the_published_recipes():
    """Learning rates by epoch of the originals, at their batch sizes and another one."""
    for variant, batch, wanted in (
        ("fusion", 48, {0: 0.0075, 11: 0.0075, 12: 0.00075, 16: 0.000075, 19: 0.000075}),
        ("fusion", 24, {0: 0.00375}),
        ("rgb_only", 96, {0: 0.15, 90: 0.075}),
        ("pose_only", 128, {0: 0.2, 90: 0.1}),
        ("posec3d", 128, {0: 0.2, 120: 0.1}),
        ("conservative", 48, {0: 0.0005}),
    ):
        config, _ = made(variant)
        config.batch_size = batch
        run = open_run(config, ROOT)
        schedule = run.plan(10)
        for epoch, rate in wanted.items():
            np.testing.assert_allclose(schedule.curve(np.int64(10 * epoch)), rate, rtol=1e-5)


def test_mistakes_of_the_model_are_named():
    for variant, model, message in (
        ("tiny", {"network": "slowfast"}, "model.network='slowfast' .*: x3d, slowonly, c3d, rgbp"),
        ("tiny", {"streams": "rgb"}, r"model.streams='rgb' .*: rgb\+pose"),
        ("tiny", {"attention": True}, "model.attention=True .*: False with network=rgbpose"),
        ("tiny", {"depthwise": "conv"}, "model.depthwise='conv' .*: auto"),
        ("c3d_light", {"c3d": altered(C3DSpec(), stages=9)}, "model.c3d.stages=9 .*: 1 to 5"),
        (
            "posec3d",
            {"network": "c3d"},
            r"temporal_strides=\(1, 1, 2\) .*: \(1, 1, 1\)",
        ),
        ("tiny", {"network": "slowonly"}, r"exchange.rgb_after=\(1, 2\) .*network=slowonly does"),
        (
            "posec3d",
            {"pose": X3DSpec(temporal="shift")},
            r"model.pose.blocks=\(3, 5, 11, 7\) .*not use",
        ),
        ("c3d_light", {"rgb_resnet": ResNet3DSpec(width=8)}, "model.rgb_resnet.width=8 .*: 64"),
        ("late", {"c3d": C3DSpec(width=8)}, "model.c3d.width=8 .*: 32, its default"),
        (
            "posec3d",
            {"pose_resnet": altered(ResNet3DSpec(), blocks=(1,))},
            r"inflate \(0, 0, 1, 1\)",
        ),
        ("tiny", {"exchange": ExchangeSpec((1, 3))}, r"rgb_after \(1, 3\): the path has 3"),
        (
            "tiny",
            {"exchange": altered(ExchangeSpec((1, 2)), pose_drop_path=2.0)},
            r"model.exchange.pose_drop_path=2.0 .*: 0 to 1",
        ),
    ):
        with pytest.raises(UserError, match=message):
            made(variant, **model)


def test_paths_that_do_not_meet_are_an_error(tmp_path):
    config, _ = made("tiny")
    config.data.scale = 1.0
    run = open_run(config, tmp_path)
    with pytest.raises(UserError, match=r"the RGB map is \(2, 8, 8\), the pose map \(4, 16, 16\)"):
        abstract_variables(run, run.plan(10).rows[0].stage_data)


# -------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def runs(clips, tmp_path_factory):
    """Work dirs of the two paths (as they are before training) and of a fusion from them."""
    root = tmp_path_factory.mktemp("runs")
    for seed, stream in enumerate(("rgb", "pose"), 1):
        config, _ = made("tiny", network="slowonly", streams=stream, exchange=ExchangeSpec())
        config.seed = seed
        run = open_run(config, root / stream)
        state, _ = start(run, run.plan(4).rows[0].stage_data, lambda line: None)
        files = checkpoint.Checkpoints(
            root / stream / "checkpoints", config.save, "top1", True, lambda line: None
        )
        files.save(state, {"top1": 0.5})
        files.wait()
        files.close()
    both = f"--config.init_from={root / 'rgb'},{root / 'pose'}"
    ended = command.trained(TINY, *command.data(clips), both, f"--workdir={root / 'fusion'}")
    return root, ended


def test_a_fusion_trains_from_its_two_parts(runs):
    root, ended = runs
    results = json.loads((root / "fusion" / "results.json").read_text())
    assert results["steps"] == 2 and results["split"] == "test"
    assert {"top1", "rgb_top1", "pose_top1"} <= results["scores"].keys()
    rows = command.rows(root / "fusion")
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss/rgb"] + rows[0]["loss/pose"], rel=1e-6)
    report = (root / "fusion" / "init_report.txt").read_text()
    assert report.count("arrays loaded") == 2 and ended.err.count("full report: ") == 2
    assert report.count("input channels extended with zeros") == 2
    assert "params/pose/res3/block0/a/kernel (16 to 20)" in report
    stored = np.load(root / "fusion" / "predictions" / "test.npz")
    assert stored["rgb"].shape == stored["pose"].shape == (8, 8)


def test_a_fusion_starts_with_what_its_parts_learned(runs, clips, tmp_path):
    """Arrays of both work dirs are found in the state at step 0, received channels weighted 0."""
    root, _ = runs
    config, _ = made("tiny")
    config.data.annotations, config.data.videos = (
        str(clips / "annotations.pkl"),
        str(clips / "clips"),
    )
    config.init_from = f"{root / 'rgb'},{root / 'pose'}"
    run = open_run(config, tmp_path)
    found, _ = start(run, run.plan().rows[0].stage_data, lambda line: None)
    for stream in ("rgb", "pose"):
        stored = checkpoint.read_weights(find_checkpoint(root / stream))["params"]
        for path, value in jax.tree_util.tree_leaves_with_path(stored):
            now = found.params
            for part in path:
                now = now[part.key]
            if now.shape != value.shape:
                np.testing.assert_array_equal(now[:, :, :, value.shape[3] :], 0)
                now = now[:, :, :, : value.shape[3]]
            np.testing.assert_array_equal(now, value)


def test_fine_tuning_without_weights_is_a_warning(tmp_path):
    warning = "warning: config.init_from is empty: this recipe has the rates"
    lines = []
    for variant in (*PARAMETERS, *SMALLER, "tiny"):
        config, _ = made(variant)
        found = cold_start(config)
        assert bool(found) == (variant in ("", "fusion", "late", "conservative")), variant
        config.init_from = "runs/rgb,runs/pose"
        assert cold_start(config) == ()
    config, _ = made("tiny")
    config.pretrained = True
    with pytest.raises(UserError, match="annotations is empty"):
        check.check(open_run(config, tmp_path), lines.append)
    assert lines[0].startswith(warning)


def test_check_prints_the_costs(clips):
    ended = command.trained(TINY, *command.data(clips), "--mode=check")
    assert "init_from" not in ended.out
    assert "lateral0" in ended.out and "multiply-adds for one example" in ended.out
    assert "train 16, val 8, test 8 examples, all readable" in ended.out

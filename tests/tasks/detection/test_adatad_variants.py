"""Each variant of `configs/adatad.py` at work: a twin of small widths trains, scores, predicts.

Only sizes are the twin's own: of the network, the frames, the windows, the schedule. All else, such
as bf16, recomputation, groups, head, post-processing and protocol, is the recipe's.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxact import config as schema
from jaxact.modes import predict
from jaxact.tasks.detection import sample_data
from jaxact.train import checkpoint, loop, optimizer, state
from jaxact.train.run import drawn_variables, open_run
from jaxact.train.schedule import resolve

RECIPE = pathlib.Path(__file__).parents[3] / "configs" / "adatad.py"
VARIANTS = ("", "frozen", "full", "side", "b", "l", "activitynet", "features")
QUICK = ("activitynet", "features")
WORKING = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in VARIANTS
    if name not in ("b", "l")  # twins of the first
]
CHANNELS = 6  # of the features


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Videos, features of them (.npy and .npz) and a video-level classifier's scores."""
    folder = tmp_path_factory.mktemp("drawn")
    sample_data.draw(folder, train=2, test=2)
    names = json.loads((folder / "annotations.json").read_text())["database"]
    rng = np.random.default_rng(0)
    (folder / "features").mkdir()
    for number, name in enumerate(sorted(names)):
        rows = rng.standard_normal((24, CHANNELS)).astype(np.float32)
        path = folder / "features" / name
        if number % 2:
            np.save(f"{path}.npy", rows)
        else:
            np.savez(f"{path}.npz", feats=rows)
    scores = {"results": {name: [0.7, 0.3] for name in names}, "class": list(sample_data.DRAWN)}
    (folder / "classifier.json").write_text(json.dumps(scores))
    return folder


def twin(variant, folder):
    """The variant's config at test size."""
    config = schema.load(RECIPE, variant)
    model, data = config.model, config.data
    config.length, config.batch_size, config.optim.warmup = "2 steps", 2, "1 steps"
    model.width, model.branch, model.ranges = 16, 2, (0.0, 4.0, 4.0, 8.0, 8.0, 10000.0)
    data.annotations = str(folder / "annotations.json")
    data.window, data.most = 32, 16
    if data.features:
        data.features, data.channels = str(folder / "features"), CHANNELS
    else:
        data.videos = str(folder / "videos")
        data.resize, data.test_size = 36, 32
        config.stages[0].size = 32
        model.backbone.size = "tiny"
        model.backbone.first = min(model.backbone.first, 1)
    if model.classes == 1:
        model.positions = 32
        config.post.merging.classifier = str(folder / "classifier.json")
    else:
        model.classes = 2
    config.eval.every, config.eval.first = "2 steps", "2 steps"
    config.save.every, config.save.log_every, config.save.tensorboard = "2 steps", 1, False
    config.input.threads = 1
    return config


@pytest.mark.parametrize("variant", WORKING)
def test_a_twin_works(variant, drawn, tmp_path):
    config = twin(variant, drawn)
    schema.validate(config)
    run = open_run(config, tmp_path)
    stage = run.plan().rows[0].stage_data
    fresh = state.flatten(drawn_variables(run, stage)["params"])
    results = loop.train(run)
    assert results["steps"] == 2 and 0 <= results["scores"]["mAP"] <= 1

    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss/reg" in row]
    assert len(steps) == 2 and all(np.isfinite(row["loss"]) for row in steps)

    stored = checkpoint.read_weights(tmp_path / "checkpoints" / "2")
    moved = state.flatten(stored["params"])
    groups = optimizer.resolve_groups(config.optim, stored["params"])
    still = {path for path, leaf in fresh.items() if np.array_equal(leaf, moved[path])}
    for name in {group.name for group in config.optim.groups}:
        own = {path for path in fresh if groups.member[path] == name}
        assert own <= still if name == "frozen" else len(own & still) < len(own) / 2, name
    # What starts at zero moves by its gradient alone.
    assert not still & {path for path in fresh if path.endswith("/up/kernel")}
    mean = float(jax.tree.leaves(stored["model_state"]["normaliser"])[0])
    assert 0 < mean < config.model.normaliser

    lines = []
    given = drawn / ("annotations.json" if config.data.features else "videos/test0000.mp4")
    predict.predict(run, "", predict.Request(str(given)), lines.append)
    (found, *_) = [json.loads(line) for line in lines]
    assert found["duration"] == 8 and found["segments"]
    labels = {row["label"] for row in found["segments"]}
    assert labels <= ({"action"} if config.model.classes == 1 else set(sample_data.DRAWN))
    assert all(0 <= row["segment"][0] <= row["segment"][1] <= 8 for row in found["segments"])
    assert len(found["segments"]) <= config.post.nms.most


# Facts of the published recipes that no shape or loss would betray.


def test_a_frozen_backbone_is_trained_on_plain_frames():
    """OpenTAD resizes and centre-crops them as in evaluation; composed_frozen is compared with the
    other modes, so it has their augmentation."""

    def look(name):
        return resolve(schema.load(RECIPE, name), 100).rows[0].stage_data.augment

    plain = {name for name in (*VARIANTS, "composed_frozen") if look(name) == "none"}
    assert plain == {"frozen"} and look("composed_frozen") == look("") == "full"


@pytest.mark.parametrize("variant", ["activitynet", "features"])
def test_schedules_that_run_to_their_end(variant):
    """Detector's rate there, as OpenTAD's and ActionFormer's cosine has it for each group."""
    schedule = resolve(schema.load(RECIPE, variant), 100)
    assert float(schedule.hyper(schedule.total)["lr"]) == pytest.approx(1e-8, rel=1e-3)


def test_detections_of_a_video_as_actionformer_keeps_them():
    nms = schema.load(RECIPE, "features").post.nms
    assert (nms.sigma, nms.least, nms.most, nms.voting) == (0.5, 0.001, 200, 0.0)

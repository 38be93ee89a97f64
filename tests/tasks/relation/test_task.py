"""The relation task: presets, what is trained and what is frozen, whole runs, predictions."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import pickle
import shutil
import subprocess
import sys

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from altered import with_fields
from PIL import Image
from weights import inverse, writer

from jaxact import config as schema
from jaxact import task as tasks
from jaxact.config import Group, UserError
from jaxact.data import drawing
from jaxact.data.pipeline import Order, train_batches
from jaxact.evaluate import cost
from jaxact.evaluate.metrics import Average, Confusion
from jaxact.modes import check, predict
from jaxact.task import Ending
from jaxact.tasks.relation import augment, crops, sample_data, scoring
from jaxact.tasks.relation import task as relation
from jaxact.tasks.relation.config import Augment, Stage
from jaxact.tasks.relation.dataset import Pair
from jaxact.tasks.relation.jrdb import Frame
from jaxact.train import checkpoint, evaluation, loop, optimizer, restore, state
from jaxact.train.run import (
    abstract_batch,
    abstract_variables,
    cold_start,
    initial_variables,
    open_run,
)
from jaxact.train.step import make_eval_step, make_train_step
from jaxact.weights import relation as names

ROOT = pathlib.Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "relation.py"


def recipe():
    """The recipe file as a module."""
    spec = importlib.util.spec_from_file_location("relation_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    scenes = {"train": 4, "val": 2, "test": 1}
    return sample_data.write(folder, scenes, frames=2, couples=4)


def tiny(root, **fields):
    """The recipe's :tiny on the drawn scenes; a__b=1 sets config.a.b."""
    config = schema.load(RECIPE, "tiny")
    config.data.root = str(root)
    config.save.tensorboard = False
    return with_fields(config, **fields)


# --------------------------------------------------------------------------------------- presets

PRESETS = {  # of the spec: backbone, features, hidden, batch, lr, epochs, parameters (concat)
    "resnet18": ("resnet18", 256, (128, 64, 32), 16, 1e-4, 50, 11_359_779),
    "resnet18_frozen": ("resnet18", 256, (128, 64, 32), 24, 1e-3, 30, 11_359_779),
    "resnet34": ("resnet34", 256, (128, 64, 32), 12, 5e-5, 50, 21_467_939),
    "resnet50": ("resnet50", 512, (1024, 512, 256), 8, 5e-5, 40, 27_053_379),
    "debug": ("resnet18", 256, (128, 64, 32), 4, 1e-4, 5, 11_359_779),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    backbone, visual, hidden, batch, lr, epochs, total = PRESETS[name]
    config = schema.load(RECIPE, name)
    schema.validate(config)
    model, optim = config.model, config.optim
    assert (model.backbone, model.visual, model.hidden) == (backbone, visual, hidden)
    assert (config.batch_size, optim.lr, config.length) == (batch, lr, f"{epochs} epochs")
    assert (optim.name, optim.weight_decay, optim.clip) == ("adam", 1e-5, 1.0)
    assert (config.eval.metric, config.eval.patience, config.seed) == ("mpca", 15, 42)
    assert config.data.train_interval == (10 if name == "debug" else 1)
    run = open_run(config, pathlib.Path("unused"))
    variables = abstract_variables(run, run.plan(10).rows[0].stage_data)
    assert cost.table(variables["params"])[-1].parameters == total
    groups = optimizer.resolve_groups(optim, variables["params"])
    rates = {group.name: (group.lr, group.frozen) for group in groups.groups}
    if name == "resnet18_frozen":
        assert rates == {"frozen": (1.0, True), "backbone": (0.1, False), "rest": (1.0, False)}
        assert groups.member["mapper/kernel"] == "backbone"
    else:
        assert rates == {"backbone": (0.1, False), "rest": (1.0, False)}


def test_spatial_features_alone_by_name():
    """Of the presets, on real scenes too."""
    config = schema.load(RECIPE, "geometry")
    run = open_run(config, pathlib.Path("unused"))
    view = run.plan(10).rows[0].stage_data
    params = abstract_variables(run, view)["params"]
    assert set(params) == {"spatial", "relation0", "relation1", "relation2", "label"}
    assert optimizer.resolve_groups(config.optim, params).trainable == {"all"}
    assert (config.data.splits, config.data.size) == ("fixed", (3760, 480))


def test_who_starts_from_drawn_weights_is_told():
    """The presets have the rates of fine-tuning; what starts from nothing does not."""
    for name in recipe().VARIANTS:
        told = cold_start(schema.load(RECIPE, name))
        assert bool(told) == (name in ("", *PRESETS)), name


def test_other_fusions_through_the_task():
    """Totals of the spec's section 5; a bilinear form of 268 million weights is of low rank."""
    totals = {"add": 11_351_587, "bilinear": 11_884_195}
    for fusion, total in totals.items():
        config = schema.load(RECIPE)
        config.model.fusion = fusion
        run = open_run(config, pathlib.Path("unused"))
        variables = abstract_variables(run, run.plan(10).rows[0].stage_data)
        assert cost.table(variables["params"])[-1].parameters == total


def test_a_low_rank_form_says_why(capsys):
    config = schema.load(RECIPE, "resnet50")
    config.model.fusion = "bilinear"
    tasks.make(config)
    assert "because the full form has 268,435,456, over 20,000,000" in capsys.readouterr().err
    config.model.full_bilinear = 10**9
    tasks.make(config)
    assert not capsys.readouterr().err


def test_the_learning_rate_is_the_originals():
    """lr / 2 (1 + cos(pi (k - 1) / E)) in epoch k."""
    config = schema.load(RECIPE)
    run = open_run(config, pathlib.Path("unused"))
    plan = run.plan(7)
    for epoch in (1, 2, 25, 50):
        wanted = 1e-4 / 2 * (1 + math.cos(math.pi * (epoch - 1) / 50))
        for step in (7 * (epoch - 1), 7 * epoch - 1):
            assert float(plan.hyper(step)["lr"]) == pytest.approx(wanted, rel=1e-5)


def test_groups_of_the_recipe():
    groups = recipe().groups
    assert [g.frozen for g in groups()] == [False, False]
    patterns = [groups(freeze_blocks=n)[0].pattern for n in range(5)]
    assert patterns[0] == "^backbone/(stem)/" and patterns[2] == "^backbone/(stem|layer1|layer2)/"
    with pytest.raises(UserError, match="freeze_blocks=5; allowed: -1"):
        groups(freeze_blocks=5)
    with pytest.raises(UserError, match="has no variant 'nano'; allowed: none, resnet18"):
        recipe().get_config("nano")


MISTAKES = [
    ("model__backbone", "resnet19", r"config.model.backbone='resnet19' .*did you mean 'resnet18'"),
    ("model__fusion", "mean", r"config.model.fusion='mean' .*concat, bilinear, add, interaction"),
    ("model__hidden", (), r"config.model.hidden=\(\)"),
    ("model__visual", 0, r"config.model.visual=0"),
    ("model__dropout", 1.0, r"config.model.dropout=1.0"),
    ("stages", (Stage(size=-5),), r"config.stages\[0\].size=-5 is not .* or 1 or more"),
    ("loss__kind", "mse", r"config.loss.kind='mse'"),
    ("loss__mpca_mode", "sum", r"config.loss.mpca_mode='sum'"),
    ("loss__acc", -1.0, r"config.loss.acc=-1.0"),
    ("augment__swap", 2.0, r"config.augment.swap=2.0"),
    ("data__balance", "all", r"config.data.balance='all' .*sampler, weights, both, none"),
    ("data__policy", "last", r"config.data.policy='last'"),
    ("data__scene", "crowd", r"config.data.scene='crowd'"),
    ("data__classes", ("a", "a"), r"config.data.classes="),
    ("data__size", (3760,), r"config.data.size=\(3760,\)"),
    ("data__eval_interval", 0, r"config.data.eval_interval=0"),
    ("data__padding", -0.1, r"config.data.padding=-0.1"),
    ("data__memory", -1, r"config.data.memory=-1"),
    ("data__annotations", "x.csv", r"one of data.root \(JRDB-Social\) and data.annotations"),
]


@pytest.mark.parametrize(("field", "value", "message"), MISTAKES)
def test_fields_out_of_range(field, value, message):
    with pytest.raises(UserError, match=message):
        tasks.make(tiny("somewhere", **{field: value}))


def test_neither_crops_nor_places():
    nothing = {"model__backbone": "", "data__places": False, "data__scene": "off"}
    with pytest.raises(UserError, match=r"config.model.backbone='' .* spatial features"):
        tasks.make(tiny("somewhere", **nothing))


# ------------------------------------------------------------------------------------ under jit


def test_the_loss_is_the_weighted_sum(root):
    """On a batch with padding, with class weights and in every form."""
    config = tiny(root, data__balance="weights", loss__mpca=0.3, loss__acc=0.2)
    task = relation.make(config)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    labels, mask = jnp.array([0, 1, 2, 0, 1]), jnp.array([True, True, True, True, False])
    terms = task.training.loss({"logits": logits}, {"label": labels, "mask": mask}, {})
    means = {name: float(each[:4].mean()) for name, each in terms.items()}
    share = np.asarray(jax.nn.softmax(logits[:4]), np.float64)
    own = share[range(4), np.asarray(labels[:4])]
    counts = np.bincount(task.training.source("train").labels(), minlength=3)
    weight = (counts.sum() / (3 * counts))[np.asarray(labels[:4])]
    assert means["ce"] == pytest.approx(-(weight * np.log(own)).sum() / weight.sum(), rel=1e-5)
    assert means["acc"] == pytest.approx(0.2 * (1 - own.mean()), rel=1e-5)
    each = [own[[0, 3]].mean(), own[1], own[2]]
    assert means["mpca"] == pytest.approx(0.3 * np.var(each, ddof=1), rel=1e-4)
    config.loss.mpca_mode, config.loss.kind = "mean", "focal"
    other = relation.make(config).training.loss(
        {"logits": logits}, {"label": labels, "mask": mask}, {}
    )
    assert float(other["mpca"][0]) == pytest.approx(0.3 * (1 - np.mean(each)), rel=1e-5)
    wanted = -weight * (1 - own) ** 2 * np.log(own)
    np.testing.assert_allclose(other["ce"][:4], wanted, rtol=1e-4)


def test_augmentation():
    key = jax.random.key(3)
    pairs = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (64, 2, 12, 8, 3)), jnp.float32)
    assert augment.apply(Augment(), key, pairs) is pairs
    forms = {
        "mirrored": Augment(hflip=1.0),
        "swapped": Augment(swap=1.0),
        "some": Augment(swap=0.5, hflip=0.5),
        "erased": Augment(erase=0.5),
        "coloured": Augment(jitter=0.2),
    }
    draw = jax.jit(lambda k: {n: augment.apply(form, k, pairs) for n, form in forms.items()})
    found = draw(key)
    mirrored, swapped, some, erased, coloured = (found[name] for name in forms)
    np.testing.assert_array_equal(mirrored, pairs[:, :, :, ::-1])
    np.testing.assert_array_equal(swapped, pairs[:, ::-1])
    ways = [pairs, pairs[:, ::-1], mirrored, mirrored[:, ::-1]]
    hits = [int((some == form).all((1, 2, 3, 4)).sum()) for form in ways]
    assert sum(hits) == 64 and min(hits) > 5  # both crops of a pair are mirrored together
    changed = (erased != pairs).any(-1).mean((2, 3))
    assert 30 < (changed > 0).sum() < 98 and changed.max() < 0.5
    assert coloured.min() >= 0 and coloured.max() <= 255
    assert (coloured != pairs).any((1, 2, 3, 4)).all()
    assert float(jnp.abs(coloured - pairs).mean()) < 40
    np.testing.assert_array_equal(coloured, draw(key)["coloured"])
    assert (coloured != draw(jax.random.key(4))["coloured"]).any()


def test_evaluation_does_not_augment(root):
    config = tiny(root, augment=Augment(1.0, 0.5, 1.0, 1.0))
    task = relation.make(config)
    batch = {"crops": np.full((1, 2, 4, 4, 3), 124, np.uint8), "place": np.ones((1, 8))}
    arguments, targets = task.training.inputs(batch, {}, None, None)
    wanted = (124 - np.array(config.data.mean)) / np.array(config.data.std)
    np.testing.assert_allclose(arguments["crops"][0, 0, 0, 0], wanted, rtol=1e-5)
    assert targets is None


def test_an_untrained_model_answers_evenly(root):
    """Its cross entropy on drawn scenes is ln 3."""
    run = open_run(tiny(root), pathlib.Path("unused"))
    stage = run.plan().rows[0].stage_data
    variables = initial_variables(run, stage)
    program = make_eval_step(run.task, "val")
    scores, rows, ids = evaluation.evaluate(run, program, variables, "val", stage)
    assert len(ids) == 16 and scores["loss"] == pytest.approx(math.log(3), abs=0.02)
    np.testing.assert_allclose(rows["scores"].sum(1), 1, rtol=1e-5)


# ---------------------------------------------------------------------------------------- scores


def test_scores_with_an_absent_class():
    classes = ("a b", "c", "d")
    logits = np.eye(3)[[0, 0, 1, 1, 1, 0]] * 4.0
    rows = {"label": np.array([0, 0, 0, 1, 1, -1]), "logits": logits}
    table = np.array([[2, 1, 0], [0, 2, 0], [0, 0, 0]])
    merged = {"confusion": Confusion(table), "loss": Average(2.0, 5.0)}
    found = scoring.score(classes, merged, rows)
    assert found["acc"] == pytest.approx(0.8) and found["loss"] == pytest.approx(0.4)
    assert found["mpca"] == pytest.approx((2 / 3 + 1) / 2)  # class d does not occur
    assert found["macro_f1"] == pytest.approx((0.8 + 0.8) / 2)
    assert found["weighted_f1"] == pytest.approx(0.6 * 0.8 + 0.4 * 0.8)
    assert found["recall_a_b"] == pytest.approx(2 / 3) and "recall_d" not in found
    assert set(found) <= set(scoring.names(classes))
    assert scoring.score(classes, merged, {"label": np.full(2, -1)}) == {}


def ending(history, variables):
    """A run that ended with these rows of metrics.jsonl."""
    rows = {"label": np.array([0, 1]), "logits": np.eye(3)[:2]}
    return Ending("test", ("a", "b"), rows, {}, {}, history, variables, None, None, False)


def test_the_best_epoch_is_that_of_the_weights_that_were_tested():
    """Checkpoints are chosen by eval.metric, the newest of equals; the maxima stand alone."""
    numbers = ((1, 0.7, 0.5, 0.9), (2, 0.6, 0.6, 0.8), (3, 0.65, 0.6, 1.0), (4, 0.1, 0.1, 1.1))
    names = ("epoch", "acc", "mpca", "loss")
    history = [
        {"split": "val", "step": row[0], **dict(zip(names, row, strict=True))} for row in numbers
    ]
    history.insert(2, {"split": "train", "step": 2, "loss": 0.1})
    for metric, maximise, epoch in (("mpca", True, 3), ("loss", False, 2), ("acc", True, 1)):
        config = schema.load(RECIPE, "tiny")
        config.eval.metric, config.eval.maximise = metric, maximise
        found = scoring.conclude(config, ending(history, {"params": {}})).numbers
        assert (found["best_val_accuracy"], found["best_val_mpca"]) == (0.7, 0.6)
        assert found["best_epoch"] == epoch
        assert found["val_accuracy_at_best"] == history[epoch - 1 + (epoch > 2)]["acc"]


def test_the_model_is_counted_with_what_is_frozen():
    config = schema.load(RECIPE, "resnet18_frozen")
    params = {
        "backbone": {"stem": {"conv": {"kernel": np.zeros(30)}}},
        "mapper": {"kernel": np.zeros((4, 5)), "bias": np.zeros(5)},
        "label": {"bias": np.zeros(3)},
    }
    found = scoring.conclude(config, ending((), {"params": params})).numbers["model_info"]
    assert found == {
        "total_params": 58,
        "trainable_params": 28,
        "frozen_params": 30,
        "parts": {"backbone": 30, "mapper": 25, "label": 3},
    }


# --------------------------------------------------------------------------------------- reading


def test_the_training_stream_keeps_frames_together(root):
    """Every pair once an epoch; frames two at a time; any step reached by itself."""
    config = tiny(root, batch_size=4, data__mix=2, data__balance="none")
    task = relation.make(config)
    source = task.training.source("train")
    stage = open_run(config, pathlib.Path("unused")).plan().rows[0].stage_data

    def ids(start, end):
        stream = train_batches(config, task, source, stage, start, end)
        return np.concatenate([batch["id"] for batch in stream]).reshape(-1, 4)

    crops.KEPT.clear()
    whole = ids(0, 16)
    assert sorted(whole[:8].ravel()) == sorted(whole[8:].ravel()) == list(range(32))
    assert (whole[:8] != whole[8:]).any()
    for epoch in (whole[:8], whole[8:]):
        frames = source.frame_of[epoch.reshape(4, 8)]
        assert [len(set(row)) for row in frames] == [2] * 4
    np.testing.assert_array_equal(ids(5, 7), whole[5:7])


def test_everything_goes_to_worker_processes(root):
    """As the pipeline sends it: the task, and the source without a pixel."""
    cloudpickle = pytest.importorskip("cloudpickle")
    task = relation.make(tiny(root, data__balance="both"))
    source = task.training.source("train")
    copied, pairs = pickle.loads(cloudpickle.dumps((task, source)))
    stage = open_run(tiny(root), pathlib.Path("unused")).plan().rows[0].stage_data
    ours = task.training.prepare(source[3], None, stage, "train")
    theirs = copied.training.prepare(pairs[3], None, stage, "train")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_an_order_without_arrangement_is_as_it_was():
    plain = Order(10, 4, 7)
    turned = dataclasses.replace(plain, arrange=lambda drawn, rng: drawn[::-1])
    first = [plain(k) for k in range(10)]
    assert sorted(first) == list(range(10)) and [turned(k) for k in range(10)] == first[::-1]


# ---------------------------------------------------------------------------------------- freezing


def changed(config, folder):
    """{name: is it another after the training of a work dir than before?}"""
    stored = checkpoint.read_weights(folder / "checkpoints" / "2")
    run = open_run(config, folder)
    before = initial_variables(run, run.plan(1).rows[0].stage_data)
    first = state.flatten(before)
    last = state.flatten({"params": stored["params"], **stored["model_state"]})
    return {name: not np.array_equal(first[name], last[name]) for name in first}


@pytest.mark.parametrize("blocks", [4, 2])
def test_what_is_frozen_stays_to_the_bit(root, tmp_path, blocks):
    """Parameters and BN statistics; what follows is trained, the mapper always."""
    config = tiny(root, save__report=False)
    config.optim.groups = recipe().groups(freeze_blocks=blocks)
    loop.train(open_run(config, tmp_path))
    moved = changed(config, tmp_path)
    frozen = ("stem", "layer1", "layer2", "layer3", "layer4")[: blocks + 1]
    held = [n for n in moved if n.split("/")[1] == "backbone" and n.split("/")[2] in frozen]
    assert any("batch_stats" in n for n in held) and not any(moved[n] for n in held)
    free = [n for n in moved if n not in held]
    still = [n for n in free if not moved[n] and not n.endswith("bias")]
    assert not still, still
    assert moved["params/mapper/kernel"] and moved["params/label/kernel"]
    if blocks == 2:
        assert moved["params/backbone/layer3/block0/conv1/kernel"]
        assert any(n.startswith("batch_stats/backbone/layer3") for n in free)


def test_nothing_frozen_moves_everything(root, done):
    moved = changed(tiny(root), done[1])
    stats = [n for n in moved if n.startswith("batch_stats")]
    assert stats and all(moved[n] for n in stats)
    assert moved["params/backbone/stem/conv/kernel"]


# ------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    """(flags, work dir) of a run of the real command."""
    workdir = tmp_path_factory.mktemp("run") / "out"
    flags = (f"--config={RECIPE}:tiny", f"--config.data.root={root}", f"--workdir={workdir}")
    command.trained(*flags, "--config.save.tensorboard=False")
    return flags, workdir


def test_results_of_a_run(done):
    results = json.loads((done[1] / "results.json").read_text())
    rows = [row for row in command.rows(done[1]) if row["split"] == "val"]
    assert results["test_accuracy"] == results["scores"]["acc"]
    assert results["test_mpca"] == results["scores"]["mpca"]
    assert results["best_val_accuracy"] == max(row["acc"] for row in rows)
    assert results["best_val_mpca"] == max(row["mpca"] for row in rows) == rows[0]["mpca"]
    assert results["best_epoch"] == rows[0]["epoch"]
    assert results["config"] == {
        "backbone_name": "resnet10_w8",
        "visual_feature_dim": 16,
        "relation_hidden_dims": [16, 8],
        "fusion_strategy": "concat",
        "symmetric": False,
        "use_geometric": True,
        "use_scene_context": True,
        "spatial_feature_dim": 8,
        "frozen": [],
        "learning_rate": 2e-3,
        "batch_size": 4,
    }
    model = results["model_info"]
    assert model["total_params"] == model["trainable_params"] == results["parameters"]
    assert sum(model["parts"].values()) == results["parameters"] and model["parts"]["mapper"]
    lines = (done[1] / "predictions" / "test_classes.csv").read_text().splitlines()
    assert lines[0] == "class,support,precision,recall,f1" and len(lines) == 4
    assert sum(int(line.split(",")[1]) for line in lines[1:]) == 8
    stored = np.load(done[1] / "predictions" / "test.npz")
    assert stored["people"].shape == (8, 2) and stored["box"].shape == (8, 2, 4)
    page = (done[1] / "report.html").read_text()
    assert "walking together" in page and "data:image/jpeg" in page


def test_a_pair_of_pictures_is_predicted_and_drawn(done, root, tmp_path):
    """Image and boxes -> pairs with behaviour and probability, and the pairs drawn in."""
    image = next((root / "images" / "image_stitched" / "test-place-00").glob("*.jpg"))
    people = [
        {"id": 4, "box": [300, 60, 40, 90]},
        {"id": 9, "box": [350, 60, 40, 90]},
        {"id": 2, "box": [1180, 60, 40, 90]},  # over the seam
    ]
    for name in ("one", "two"):
        (tmp_path / f"{name}.jpg").write_bytes(image.read_bytes())
        entry = {"image": f"{name}.jpg", "people": people}
        entry |= {"pairs": [[9, 4]]} if name == "two" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps(entry))
    flags, _ = done
    ended = command.trained(
        *flags, "--mode=predict", f"--input={tmp_path}", f"--render={tmp_path / 'drawn'}"
    )
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [pathlib.Path(line["id"]).name for line in lines] == ["one.jpg", "two.jpg"]
    assert [[(p["a"], p["b"]) for p in line["pairs"]] for line in lines] == [
        [(4, 9), (4, 2), (9, 2)],
        [(9, 4)],
    ]
    for pair in lines[0]["pairs"]:
        assert pair["behaviour"] == pair["top"][0]["name"]
        assert sum(c["probability"] for c in pair["top"]) == pytest.approx(1, abs=1e-5)
        assert pair["probability"] == max(c["probability"] for c in pair["top"])
    for name in ("one", "two"):
        drawn = np.asarray(Image.open(tmp_path / "drawn" / f"{name}.png")).astype(int)
        plain = np.asarray(Image.open(image)).astype(int)
        assert drawn.shape == plain.shape
        changed = np.abs(drawn - plain).max(-1) > 60
        assert changed[62:148, 299:303].mean() > 0.3  # the left edge of 4's box
        assert (changed[62:148, 17:23].mean() > 0.3) == (name == "one")  # 2 beyond the seam


def test_one_picture_to_a_file_of_ones_own(done, root, tmp_path):
    image = next((root / "images" / "image_stitched" / "test-place-00").glob("*.jpg"))
    picture, path = tmp_path / "x.jpg", tmp_path / "y.png"
    picture.write_bytes(image.read_bytes())
    people = [{"id": n, "box": [100 * n, 60, 40, 90]} for n in (1, 2, 3)]
    picture.with_suffix(".json").write_text(json.dumps({"image": "x.jpg", "people": people}))
    render = (f"--render={path}", "--render_size=320")
    command.trained(*done[0], "--mode=predict", f"--input={picture}", *render)
    with Image.open(path) as drawn:
        assert drawn.size == (2400, 320)


def test_names_in_other_letters_are_drawn_with_a_font_that_has_them(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("RGB", (200, 60)).save(path)
    asked, font = [], drawing.font
    monkeypatch.setattr(drawing, "font", lambda texts, n: (asked.append(texts), font("a", n))[1])
    frame = Frame("x", str(path), "s", (1, 2), ((10.0, 10.0, 15.0, 40.0),) * 2, ((0, 1, -1),))
    found = {"a": 1, "b": 2, "behaviour": "同行", "probability": 0.5, "boxes": frame.boxes}
    classes = ("同行", "b")
    scoring.render(classes, Pair("x", frame, 0, 1), tmp_path / "y.png", [{"pairs": [found]}])
    assert asked == [classes] and (tmp_path / "y.png").is_file()


def test_classes_of_ones_own_are_those_of_the_run(tmp_path):
    """A prediction names what the weights were trained on, without being told again."""
    workdir, classes = tmp_path / "run", ("hug", "push", "talk")
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"config": {}, "classes": classes}))
    config = schema.load(RECIPE, "tiny")
    for where in ("", str(workdir / "checkpoints" / "2")):
        assert predict.with_names(config, workdir, where).data.classes == classes
    config.data.classes = ("a", "b", "c")
    assert predict.with_names(config, workdir, "") is config


def test_evaluation_repeats_the_test(done):
    ended = command.trained(*done[0], "--mode=eval")
    results = json.loads((done[1] / "results.json").read_text())
    assert json.loads(ended.out)["scores"] == pytest.approx(results["scores"], rel=1e-6)


OTHER = [
    {"model__backbone": "", "optim__groups": (Group(),)},
    {"data__places": False, "data__scene": "off", "model__fusion": "interaction"},
    {"data__places": False, "model__fusion": "bilinear", "model__symmetric": True},
]
SLOW = pytest.mark.slow  # each compiles a step of its own


@pytest.mark.parametrize("fields", OTHER[1:])
def test_other_inputs_have_a_step(root, fields):
    """Traced, with the shapes that the batches have."""
    run = open_run(tiny(root, **fields), pathlib.Path("unused"))
    plan = run.plan()
    row = plan.rows[0]
    variables = abstract_variables(run, row.stage_data)
    groups = optimizer.resolve_groups(run.config.optim, variables["params"])
    fresh = jax.eval_shape(lambda v: restore.create(run.config, groups, v), variables)
    batch = abstract_batch(run.task, row.stage_data, "train", 4)
    assert ("place" in batch) == (run.config.data.scene != "off")
    step = make_train_step(run.config, run.task, plan, groups, row)
    _, metrics = jax.eval_shape(step, fresh, batch)
    assert {"loss/ce", "loss/mpca", "loss/acc", "acc", "loss"} <= metrics.keys()


@pytest.mark.parametrize(
    "fields",
    [OTHER[0], *(pytest.param(fields, marks=SLOW) for fields in OTHER[1:])],
    ids=["places", "crops", "bilinear"],
)
def test_other_inputs_train(root, tmp_path, fields):
    config = tiny(root, save__report=False, **fields)
    results = loop.train(open_run(config, tmp_path))
    assert math.isfinite(results["scores"]["loss"]) and "test_mpca" in results


def test_check_opens_every_picture(root, tmp_path, capsys):
    lines = []
    check.check(open_run(tiny(root), tmp_path), lines.append)
    text = "\n".join(lines)
    assert "# data: train 32, val 16, test 8 examples, all readable" in text
    assert "(pairs kept)" in text
    broken = tmp_path / "broken"
    shutil.copytree(root, broken)
    (broken / "images/image_stitched/val-place-01/000001.jpg").unlink()
    capsys.readouterr()
    with pytest.raises(UserError, match=r"1 unreadable of train 32.*/000001\.jpg: no such file"):
        check.audit(open_run(tiny(broken), tmp_path), lines.append)
    assert capsys.readouterr().err.count("000001.jpg: no such file") == 1


def test_a_label_file_cut_in_half_is_one_line(done, root, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(root, broken)
    path = next((broken / "labels").rglob("train-place-02.json"))
    path.write_bytes(path.read_bytes()[:500])
    flags = [done[0][0], f"--config.data.root={broken}", f"--workdir={tmp_path / 'out'}"]
    ended = command.run(*flags)
    assert ended.code == 2 and "train-place-02.json: is not JSON" in ended.error
    assert not (tmp_path / "out").exists()


def test_weights_of_the_original(root, tmp_path):
    """A checkpoint under the original's names starts a training."""
    config = tiny(root)
    run = open_run(config, tmp_path)
    stage = run.plan(1).rows[0].stage_data
    variables = jax.device_get(initial_variables(run, stage))
    tensors = inverse.invert(names.tables({}, variables)[0], variables)
    assert "person_encoder.0.weight" in tensors and "backbone.backbone.0.weight" in tensors
    path = writer.write_zip(
        tmp_path / "best_model.pth",
        {"model_state_dict": {k: writer.view(2 * v) for k, v in tensors.items()}},
    )
    found, report = run.task.shipping.weights(path, variables)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), found, variables)
    assert report.startswith(f"weights from {path} (simplename pair classifier)")


def test_the_script_draws_a_set(tmp_path):
    out = tmp_path / "set"
    script = [sys.executable, str(ROOT / "scripts" / "prepare_scenes.py"), str(out)]
    small = ["--scenes", "1", "1", "1", "--frames", "1", "--couples", "2", "--size", "300", "96"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    found = subprocess.run([*script, *small], capture_output=True, text=True, env=environment)
    assert found.returncode == 0 and "3 panoramas, 6 pairs" in found.stdout, found.stderr
    again = subprocess.run([*script, *small], capture_output=True, text=True, env=environment)
    assert again.returncode == 2 and "holds scenes already" in again.stderr

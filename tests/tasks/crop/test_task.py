"""The crop task: sizes, losses, what stages change, and whole runs of a small twin."""

import csv
import dataclasses
import io
import json
import pathlib
import shutil
import types

import command
import jax
import jax.numpy as jnp
import leaves
import numpy as np
import pytest
from altered import with_fields

from jaxact import config as schema
from jaxact import task as tasks
from jaxact.config import Group, UserError
from jaxact.models import classifier
from jaxact.models.initialise import initialise
from jaxact.models.specs import CLASSIFIER_KINDS, ClassifierSpec
from jaxact.modes import check
from jaxact.tasks.crop import classes, scoring, stage_change
from jaxact.tasks.crop import task as crop
from jaxact.tasks.crop.config import Config, Stage
from jaxact.train import checkpoint, loop, run, setup, state

ROOT = pathlib.Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "crop.py"


def tiny(annotations, **fields):
    """The recipe's :tiny on the drawn leaves."""
    config = schema.load(RECIPE, "tiny")
    config.data.annotations = str(annotations)
    config.save.tensorboard = False
    return with_fields(config, **fields)


# ----------------------------------------------------------------------------------------- sizes

TOTALS = {  # backbone: features, baseline, few-shot in all, few-shot head (61 classes)
    "resnet34": (512, 21315965, 21578621, 293949),
    "resnet50": (2048, 23633021, 24588413, 1080381),
    "resnet101": (2048, 42625149, 43580541, 1080381),
    "efficientnet_b0": (1280, 4085689, 4694713, 687165),
    "efficientnet_b3": (1536, 10789989, 11514469, 818237),
    "convnext_tiny": (768, 27867037, 28245149, 425021),
    "convnext_base": (1024, 87628989, 88122557, 556093),
}


def size(module, *shape, **options):
    shapes = jax.eval_shape(
        lambda key: module.init(key, jnp.zeros(shape), train=False, **options), jax.random.key(0)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("name", TOTALS)
def test_parameter_totals(name):
    features, baseline, fewshot, head = TOTALS[name]
    table = classes.build(classes.ai_challenger())
    sizes = (len(table.crops), len(table.diseases), len(table.severities))
    assert (len(table.names), *sizes) == (61, 10, 23, 3)
    spec = ClassifierSpec(backbone=name)
    assert size(classifier.Classifier(spec, 61, sizes), 1, 64, 64, 3) == baseline
    heads = {}
    for kind in CLASSIFIER_KINDS:
        chosen = classifier.Heads(dataclasses.replace(spec, kind=kind), 61, sizes)
        heads[kind] = size(chosen, 1, features)
    below = baseline - heads["baseline"]
    assert heads["baseline"] == 61 * (features + 1)
    assert heads["multitask"] - heads["baseline"] == 36 * (features + 1)
    assert (heads["fewshot"], below + heads["fewshot"]) == (head, fewshot)


def test_both_heads_and_the_centres_are_there_from_the_start():
    heads = classifier.Heads(ClassifierSpec(cosine=True, center=True), 61)
    found = jax.eval_shape(lambda k: heads.init(k, jnp.zeros((1, 24))), jax.random.key(0))
    shapes = {k: v.shape for k, v in state.flatten(found["params"]).items()}
    assert shapes == {
        "label/kernel": (24, 61),
        "label/bias": (61,),
        "cosine_kernel": (24, 61),
        "centers": (61, 24),
    }
    assert found["switch"]["cosine"].dtype == jnp.int32  # an average of weights leaves it alone


def test_the_gate_is_remembered_for_evaluation(golden):
    with np.load(golden / "losses/classification_losses.npz") as file:
        features, weight, want = (file[f"cosine/{k}"] for k in ("features", "weight", "logits"))
    heads = classifier.Heads(ClassifierSpec(dropout=0.0, cosine=True), 61)
    variables = heads.init(jax.random.key(0), features)
    variables["params"]["cosine_kernel"] = weight.T
    linear, label = heads.apply(variables, features)["logits"], variables["params"]["label"]
    product = features @ label["kernel"] + label["bias"]
    np.testing.assert_allclose(linear, product, rtol=1e-4, atol=1e-5)
    for gate, wanted in ((1.0, want), (0.0, linear)):
        found, written = heads.apply(
            variables, features, jnp.float32(gate), train=True, mutable=["switch"]
        )
        np.testing.assert_allclose(found["logits"], wanted, rtol=1e-5, atol=1e-5)
        later = heads.apply({**variables, **written}, features)["logits"]
        np.testing.assert_allclose(later, wanted, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------- losses

LOGITS = np.array([[2, 0, 0, -1], [0, 1, 0.5, 0], [0.2, 0, 0.1, 3]], np.float32)
LABELS = np.array([0, 2, 3])


def loss_of(counts, hyper, logits=LOGITS, labels=LABELS, lam=1.0, order=None, config=None, **more):
    """Mean of each term of the task's loss."""
    config = config or Config()
    names = [f.name for f in dataclasses.fields(Stage) if f.metadata.get("kind") == "value"]
    zero = {name: 0.0 for name in names}
    order = np.arange(len(labels)) if order is None else order
    targets = {
        "mask": np.ones(len(labels), bool),
        "own": jnp.asarray(labels),
        "partner": jnp.asarray(labels)[order],
        "lam": lam,
        "order": order,
    }
    outputs = {"logits": jnp.asarray(logits), **more}
    statistics = crop._class_statistics(config, *[lambda: np.asarray(counts)] * 2)
    found = crop._loss(config, lambda: statistics, outputs, targets, {**zero, **hyper})
    return {name: float(each.mean()) for name, each in found.items()}


def test_losses_of_the_spec():
    even = [10, 10, 1, 10]  # class 2 is the tail
    for smoothing, value in ((0.0, 0.594120), (0.02, 0.621120), (0.05, 0.661620)):
        found = loss_of(even, {"label_smoothing": smoothing})["label"]
        assert found == pytest.approx(value, abs=1e-6)
    assert loss_of(even, {"focal": 1.0})["label"] == pytest.approx(0.431053, abs=1e-6)
    config = Config()
    config.loss.tail_form = "sum_of_means"
    assert loss_of(even, {"focal": 1.0}, config=config)["label"] == (
        pytest.approx(1.077542, abs=1e-6)
    )
    # Before its stage the other form is the plain mean.
    assert loss_of(even, {}, config=config)["label"] == pytest.approx(0.594120, abs=1e-6)


def test_class_weights_come_from_a_file_and_are_gated(tmp_path):
    path = tmp_path / "class_weights.csv"
    path.write_text("class_id,weight\n0,1\n1,2\n2,0.5\n3,4\n")
    config = Config()
    config.data.balance.file = str(path)
    found = loss_of([9, 9, 9, 9], {"label_smoothing": 0.05, "class_weight": 1.0}, config=config)
    assert found["label"] == pytest.approx(0.366309, abs=1e-6)
    found = loss_of([9, 9, 9, 9], {"label_smoothing": 0.05}, config=config)
    assert found["label"] == pytest.approx(0.661620, abs=1e-6)


def test_mixing_adjustment_and_margin():
    order, lam = np.array([1, 2, 0]), 0.7
    mixed = loss_of([4] * 4, {"label_smoothing": 0.1}, lam=lam, order=order)["label"]
    parts = [
        loss_of([4] * 4, {"label_smoothing": 0.1}, labels=labels)["label"]
        for labels in (LABELS, LABELS[order])
    ]
    assert mixed == pytest.approx(lam * parts[0] + (1 - lam) * parts[1], rel=1e-6)
    counts = np.array([1, 2, 3, 4])
    adjusted = loss_of(counts, {"tau": 1.0})["label"]
    power = counts * np.exp(LOGITS.astype(np.float64))
    share = power / power.sum(1, keepdims=True)
    assert adjusted == pytest.approx(-np.log(share[range(3), LABELS]).mean(), rel=1e-5)
    config = Config(stages=(Stage(margin=(2.0,)),))
    shifted = LOGITS.astype(np.float64)
    shifted[range(3), LABELS] -= 2.0 * counts[LABELS] ** -0.25
    wanted = np.log(np.exp(shifted).sum(1)) - shifted[range(3), LABELS]
    found = loss_of(counts, {"margin": 2.0}, config=config)["label"]
    assert found == pytest.approx(wanted.mean(), rel=1e-5)


def test_center_loss_follows_the_mixture(golden):
    with np.load(golden / "losses/classification_losses.npz") as file:
        features, centers, labels = file["cosine/features"], file["center/centers"], file["labels"]
        logits, want = file["logits"], float(file["center/loss"])
    config = Config()
    config.model.center = True
    more = {"features": features, "centers": centers}
    rest = dict(config=config, logits=logits, labels=labels, **more)
    config.loss.center_norm = "none"
    assert loss_of([5] * 61, {"center": 0.01}, **rest)["center"] == pytest.approx(0.01 * want)
    config.loss.center_norm = "size"
    assert loss_of([5] * 61, {"center": 1.0}, **rest)["center"] == pytest.approx(want / 24)
    # The mean over a batch does not change where every label also is a partner.
    order = np.roll(np.arange(8), 1)
    own = loss_of([5] * 61, {"center": 1.0}, lam=0.25, order=order, **rest)["center"]
    partner = loss_of([5] * 61, {"center": 1.0}, **{**rest, "labels": labels[order]})["center"]
    assert own == pytest.approx(0.25 * want / 24 + 0.75 * partner, rel=1e-5)


def test_multitask_loss_of_the_guide(golden, annotations):
    with np.load(golden / "losses/classification_losses.npz") as file:
        want = {k: file[k] for k in ("logits", "labels", "class_weights")}
        parts = {k: float(file[f"multitask/{k}"]) for k in ("crop", "disease", "severity", "total")}
    config = Config()
    config.model.kind = "multitask"
    labels, logits = want["labels"], want["logits"]
    outputs = {
        "logits": logits,
        "crop": logits[:, :10],
        "disease": logits[:, 10:33],
        "severity": logits[:, 40:43],
    }
    targets = {"mask": np.ones(8, bool), "own": labels, "partner": labels, "lam": 1.0}
    for name, count in (("crop", 10), ("disease", 23), ("severity", 3)):
        targets[name] = jax.nn.one_hot(labels % count, count)
    names = [f.name for f in dataclasses.fields(Stage) if f.metadata.get("kind") == "value"]
    hyper = {**{name: 0.0 for name in names}, "label_smoothing": 0.1, "class_weight": 1.0}
    weights = want["class_weights"]
    statistics = crop.ClassStatistics(np.zeros(61), np.zeros(61), weights, np.zeros(61, bool))
    found = crop._loss(config, lambda: statistics, outputs, targets, hyper)
    means = {name: float(each.mean()) for name, each in found.items()}
    for name, factor in (("crop", 0.3), ("disease", 0.3), ("severity", 0.5)):
        assert means[name] == pytest.approx(factor * parts[name], rel=1e-5)
    assert sum(means.values()) == pytest.approx(parts["total"], rel=1e-5)


def test_watched_accuracy_is_weighted_by_the_mixture():
    outputs = {"logits": jnp.eye(3)}
    targets = {"own": jnp.array([0, 0, 2]), "partner": jnp.array([1, 1, 2]), "lam": 0.7}
    np.testing.assert_allclose(crop._watch(outputs, targets)["acc"], [0.7, 0.3, 1.0], rtol=1e-6)


# ------------------------------------------------------------------------------- between stages


def rows(before, after):
    """Two rows of a plan with these fields."""
    base = {"cosine": 0.0, "center": 0.0, "restart": "none"}

    def row(fields):
        found = {**base, **fields}
        values = {name: (found[name], found[name]) for name in ("cosine", "center")}
        return types.SimpleNamespace(values=values, data={"restart": found["restart"]})

    return row(before), row(after)


def entered(before, after, batches=()):
    rng = np.random.default_rng(0)
    head = {
        "label": {"kernel": jnp.asarray(rng.normal(size=(3, 4))), "bias": jnp.ones(4)},
        "cosine_kernel": jnp.zeros((3, 4)),
        "centers": jnp.full((4, 3), 9.0),
    }
    variables = {"params": {"backbone": {"w": jnp.ones(2)}, "head": head}, "switch": {}}
    found = stage_change.enter(
        lambda image: image / 2.0,
        lambda _, image: image.mean((1, 2)),
        variables,
        *rows(before, after),
        jax.random.key(1),
        lambda: iter(batches),
    )
    return variables, found


def test_entering_an_equal_stage_changes_nothing():
    for fields in ({}, {"cosine": 1.0}, {"cosine": 1.0, "center": 0.01}, {"restart": "head"}):
        before, found = entered(fields, fields)
        assert found is before


def test_the_cosine_head_takes_the_linear_rows():
    before, found = entered({}, {"cosine": 1.0})
    head = found["params"]["head"]
    np.testing.assert_array_equal(
        head["cosine_kernel"], before["params"]["head"]["label"]["kernel"]
    )
    assert head["centers"] is before["params"]["head"]["centers"]
    assert found["params"]["backbone"] is before["params"]["backbone"]


def test_centres_are_class_means_of_known_examples():
    image = np.arange(6.0)[:, None, None, None, None] * np.ones((6, 1, 2, 2, 3))
    batch = {
        "image": image,
        "label": np.array([0, 0, 1, 3, -1, 1]),
        "mask": np.array([True] * 5 + [False]),
    }
    _, found = entered({}, {"center": 0.01}, [batch, batch])
    np.testing.assert_allclose(found["params"]["head"]["centers"][:, 0], [0.25, 1.0, 9.0, 1.5])


def test_a_restarted_head_is_drawn_like_a_new_one():
    before, found = entered({}, {"restart": "head"})
    kernel = found["params"]["head"]["label"]["kernel"]
    assert kernel.shape == (3, 4) and np.abs(kernel).max() <= 1 / np.sqrt(3)
    assert not np.allclose(kernel, before["params"]["head"]["label"]["kernel"])
    again = entered({}, {"restart": "head"})[1]["params"]["head"]["label"]["kernel"]
    np.testing.assert_array_equal(kernel, again)


# -------------------------------------------------------------------------------- activation maps


def test_activation_maps_of_a_linear_head_are_its_class_maps():
    model = classifier.Classifier(ClassifierSpec(backbone="resnet10_w8"), 5)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, 32, 32, 3)), jnp.float32)
    variables = initialise(model, jax.random.key(0), images)
    labels = np.array([4, 0, 2])
    found = jax.jit(lambda *a: classifier.activation_map(model, *a))(variables, images, labels)
    last = jax.jit(lambda *a: model.apply(*a, with_map=True))(variables, images)["map"]
    kernel = variables["params"]["head"]["label"]["kernel"][:, labels].T
    wanted = np.maximum(np.einsum("bhwc,bc->bhw", last, kernel), 0)
    np.testing.assert_allclose(
        found, wanted / np.maximum(wanted.max((1, 2), keepdims=True), 1e-12), atol=1e-5
    )
    assert found.shape == (3, 2, 2) and found.max() <= 1


# ----------------------------------------------------------------------------------- whole runs

# A small twin of the full schedule: every kind of change once, two or three steps a row.
TWIN = (
    dict(
        size=32,
        train="head",
        sampler="weighted",
        mixup=(0.4,),
        cutmix=(0.6,),
        label_smoothing=(0.05,),
    ),
    dict(start="2 steps", train="head|last_stage", mixup=(0.2,), cutmix=(0.0,), lr=(1.2,)),
    dict(start="4 steps", sampler="natural", mixup=(0.0,), focal=(1.0,), class_weight=(1.0,)),
    dict(start="6 steps", train="head|last_stage|rest", label_smoothing=(0.0,)),
    dict(start="8 steps", size=40, lr=(0.48,)),
    dict(
        start="10 steps",
        train="features|last_stage|rest",
        cosine=(1.0,),
        center=(0.01,),
        augment="light",
    ),
    dict(start="13 steps", train="features", restart="head", sampler="balanced", tau=(1.0,)),
)
TOTAL = 15


def twin(annotations):
    config = tiny(annotations, length=f"{TOTAL} steps")
    config.model.cosine = config.model.center = True
    config.optim.groups = (
        Group("features", "^head/(cosine_kernel|centers)"),
        *config.optim.groups,
    )
    config.optim.ema, config.optim.lr = 0.9, 1e-3
    config.stages = tuple(Stage(**row) for row in TWIN)
    config.eval.every = "5 steps"
    config.save.every, config.save.latest, config.save.best = "1 steps", TOTAL, TOTAL
    config.save.report = False
    return config


@pytest.fixture(scope="module")
def programs():
    """Compiled training steps by their keys: each is a function of state and batch alone."""
    return {}


def sharing(programs):
    """`make_train_step` that keeps and reuses compiled programs, as a compilation cache would."""
    make = setup.make_train_step

    def made(config, task, plan, groups, row, *places):
        def lower(*arguments):
            if row.program not in programs:
                step = make(config, task, plan, groups, row, *places)
                programs[row.program] = step.lower(*arguments).compile()
            return types.SimpleNamespace(compile=lambda: programs[row.program])

        return types.SimpleNamespace(lower=lower)

    return made


@pytest.fixture
def reused(programs, monkeypatch):
    """Trainings of the same config share their programs."""
    monkeypatch.setattr(setup, "make_train_step", sharing(programs))


@pytest.fixture(scope="module")
def whole(annotations, tmp_path_factory, programs):
    """The twin's training from end to end, every step's checkpoint kept."""
    folder = tmp_path_factory.mktemp("twin")
    traced = []
    with pytest.MonkeyPatch.context() as patch:
        losses = crop._loss
        patch.setattr(crop, "_loss", lambda *a: (traced.append(1), losses(*a))[1])
        patch.setattr(setup, "make_train_step", sharing(programs))
        results = loop.train(run.open_run(twin(annotations), folder))
    return folder, results, len(traced)


def stored(folder, step):
    """(leaves of the weights, names) of a checkpoint."""
    return state.flatten(checkpoint.read_weights(folder / "checkpoints" / str(step)))


def test_traces_are_distinct_shapes_and_trained_sets(whole, programs):
    _, _, traced = whole
    # 32 px x (head, + last stage, all), 40 px x (all, all by cosine, cosine head alone).
    assert len(programs) == 6 == traced


@pytest.mark.parametrize("step", [1, 3, 5, 7, 9, 10, 11, 13, 14])
def test_resume_in_and_between_all_stages_is_bit_exact(whole, annotations, reused, tmp_path, step):
    """In the middle of each row, and at 10 and 13, where entering a row changes the state."""
    folder = whole[0]
    shutil.copytree(folder, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    (tmp_path / "run" / "results.json").unlink()
    loop.train(run.open_run(twin(annotations), tmp_path / "run"))
    one, other = stored(folder, TOTAL), stored(tmp_path / "run", TOTAL)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
    metrics = [command.rows(path) for path in (folder, tmp_path / "run")]
    for row, again in zip(*metrics, strict=True):
        row.pop("examples_per_s", 0), again.pop("examples_per_s", 0)
        assert row == again


def changed(folder, first, last):
    """Names of parameters that differ between two checkpoints."""
    one, other = stored(folder, first), stored(folder, last)
    names = [n for n in one if n.startswith("params/")]
    return {n.removeprefix("params/") for n in names if not np.array_equal(one[n], other[n])}


def test_only_the_groups_of_a_row_move(whole):
    folder = whole[0]
    head = {"head/label/kernel", "head/label/bias"}
    assert changed(folder, 1, 2) == head
    moved = changed(folder, 2, 4)
    assert moved > head and all(n in head or n.startswith("backbone/layer4/") for n in moved)
    moved = changed(folder, 6, 8)
    assert any(n.startswith("backbone/stem/") for n in moved)
    assert not {"head/cosine_kernel", "head/centers"} & moved
    moved = changed(folder, 11, 12)
    assert {"head/cosine_kernel", "head/centers"} <= moved and not head & moved
    # The last row trains the head that was drawn anew, and nothing below it.
    assert changed(folder, 14, 15) == {"head/cosine_kernel", "head/centers"}
    assert changed(folder, 13, 14) == head | {"head/cosine_kernel", "head/centers"}


def test_batch_statistics_of_frozen_parts_do_not_move(whole):
    folder = whole[0]

    def statistics(step):
        found = stored(folder, step)
        return {n: v for n, v in found.items() if n.startswith("model_state/batch_stats/")}

    one, two, last = statistics(1), statistics(2), statistics(4)
    assert one and all(np.array_equal(one[n], two[n]) for n in one)
    moved = {n for n in two if not np.array_equal(two[n], last[n])}
    assert moved and all("/layer4/" in n for n in moved)


def test_the_cosine_head_starts_from_the_linear_one_in_the_average_too(whole):
    """At step 11 both trees are one update away from the linear rows of step 10."""
    folder = whole[0]
    before, after = stored(folder, 10), stored(folder, 11)
    rate = 1e-3 * 0.48 * 1.2
    for tree, cosine in (("params/", "params/"), ("ema/params/", "ema/params/")):
        kernel = [n for n in before if n.startswith(tree) and n.endswith("label/kernel")]
        assert len(kernel) == 1
        now = [n for n in after if n.startswith(cosine) and n.endswith("cosine_kernel")]
        gap = np.abs(np.asarray(after[now[0]]) - np.asarray(before[kernel[0]])).max()
        assert gap < 2 * rate, tree
    assert (
        int(before["model_state/switch/head/cosine"])
        == 0
        < int(after["model_state/switch/head/cosine"])
    )


def lines(path):
    return path.read_text().splitlines()


def test_results_files_and_scores(whole, annotations):
    folder, results, _ = whole
    assert results["steps"] == TOTAL and results["weights"] == "ema"
    task = tasks.make(twin(annotations))
    assert set(results["scores"]) <= set(task.evaluation.metrics)
    assert {"acc", "loss", "macro_f1", "tail_acc", "ece", "severity_merged_acc", "crop_acc"} <= set(
        results["scores"]
    )
    assert results["scores"]["loss"] == pytest.approx(results["scores"]["nll"], rel=1e-5)
    told = results["calibration"]
    assert told["temperature"] == results["best_val"]["temperature"]
    assert told["scaled"].keys() == told["raw"].keys() == {"nll", "ece", "mce", "brier"}
    rows_ = list(csv.DictReader(lines(folder / "predictions/test_classes.csv")))
    assert [int(row["train"]) for row in rows_] == list(leaves.COUNTS["train"])
    assert [int(row["support"]) for row in rows_] == list(leaves.COUNTS["test"])
    saved = np.load(folder / "predictions/test.npz")
    right = (saved["scores"].argmax(1) == saved["label"]).mean()
    assert right == pytest.approx(results["scores"]["acc"])
    np.testing.assert_allclose(saved["scores"].sum(1), 1, rtol=1e-5)
    history = list(csv.DictReader(lines(folder / "training_history.csv")))
    assert tuple(history[0]) == ("epoch", *scoring.HISTORY) and len(history) == 3
    validations = [row for row in command.rows(folder) if row["split"] == "val"]
    for row, line in zip(validations, history, strict=True):
        assert float(line["val_acc"]) == pytest.approx(100 * row["acc"], rel=1e-4)
    training = [row for row in command.rows(folder) if row["split"] == "train"]
    assert all(0 <= row["acc"] <= 1 for row in training)
    assert float(history[0]["train_acc"]) == pytest.approx(
        100 * np.mean([row["acc"] for row in training[:5]]), rel=1e-4
    )
    table = list(csv.reader(lines(folder / "predictions/test_confusion.csv")))
    assert sum(int(x) for row in table[1:] for x in row[1:]) == sum(leaves.COUNTS["test"])


# --------------------------------------------------------------------------- through the command


def test_tiny_trains_evaluates_predicts_and_reports(annotations, tmp_path):
    flags = (f"--config={RECIPE}:tiny", f"--config.data.annotations={annotations}")
    workdir = tmp_path / "run"
    command.trained(*flags, f"--workdir={workdir}", "--config.model.kind=multitask")
    results = json.loads((workdir / "results.json").read_text())
    assert {"crop_head_acc", "disease_head_acc", "severity_head_acc"} <= set(results["scores"])
    page = (workdir / "report.html").read_text()
    assert "Where it looks" in page and "Reliability" in page and page.count("data:image/jpeg") >= 8
    flags += ("--config.model.kind=multitask",)
    ended = command.trained(
        *flags,
        "--mode=eval",
        f"--workdir={workdir}",
        "--config.data.test.flip=True",
        "--config.data.test.scales=(1.0,1.25)",
    )
    assert json.loads(ended.out)["examples"] == sum(leaves.COUNTS["test"])
    picture = annotations.parent / "images" / "test00.png"
    ended = command.trained(*flags, "--mode=predict", f"--workdir={workdir}", f"--input={picture}")
    line = json.loads(ended.out.splitlines()[0])
    assert line["id"].endswith("test00.png") and len(line["top"]) == 5
    assert line["name"] in [name for name, *_ in leaves.CLASSES] and line["crop"] in (
        "apple",
        "bean",
    )


def test_the_seven_scalars_of_tensorboard(annotations, tmp_path):
    pytest.importorskip("tensorboardX")
    config = tiny(annotations)
    config.save.tensorboard, config.save.report = True, False
    loop.train(run.open_run(config, tmp_path))
    content = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    for tag in ("train/loss", "train/acc", "val/loss", "val/acc", "val/tail_acc", "val/macro_f1"):
        assert tag.encode() in content, tag
    assert b"\x02lr" in content and b"train/lr" not in content


def test_check_prints_the_plan_the_survey_and_its_warnings(annotations, tmp_path):
    config = tiny(annotations)
    config.stages = (*config.stages, Stage(start="5 epochs", size=64))
    said = []
    check.check(run.open_run(config, tmp_path), said.append)
    text = "\n".join(said)
    assert "stages[1] starts after the end and is never reached" in text
    assert "1 training program(s)" in text
    assert f"train {sum(leaves.COUNTS['train'])}" in text and "all readable" in text
    assert all(name in text for name, *_ in leaves.CLASSES)


# ----------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(model__backbone="resnet5"), r"config.model.backbone='resnet5'.*resnet50"),
        (dict(model__kind="basline"), r"config.model.kind='basline'.*did you mean 'baseline'"),
        (dict(model__kind="fewshot", model__cosine=True), r"config.model.cosine=True"),
        (dict(stages=(Stage(cosine=(1.0,)),)), r"config.stages\[0\].cosine.*model.cosine"),
        (dict(stages=(Stage(center=(0.01,)),)), r"config.stages\[0\].center.*model.center"),
        (dict(stages=(Stage(label_smoothing=(1.5,)),)), r"config.stages\[0\].label_smoothing"),
        (dict(stages=(Stage(mixup=(-0.1,)),)), r"config.stages\[0\].mixup"),
        (dict(loss__tail_form="both"), r"config.loss.tail_form='both'"),
        (dict(loss__weights=(1.0,)), r"config.loss.weights"),
        (dict(loss__center_norm="l2"), r"config.loss.center_norm='l2'"),
        (dict(loss__tail=2.0), r"config.loss.tail=2.0"),
        (dict(model__dropout=1.0), r"config.model.dropout=1.0"),
        (dict(loss__kind="focal"), r"stages\[0\].label_smoothing=\(0.05,\).*loss.kind=focal"),
        (
            dict(loss__kind="focal", stages=(Stage(margin=(1.0,)),)),
            r"stages\[0\].margin=\(1.0,\).*loss.kind=focal",
        ),
        (dict(data__cache=96, data__cache_dir="x", stages=(Stage(),)), "largest.*224 px"),
    ],
)
def test_mistakes_are_named(annotations, fields, said):
    with pytest.raises(UserError, match=said) as error:
        tasks.make(tiny(annotations, **fields))
    assert "\n" not in str(error.value)


def test_an_unknown_metric_is_refused_before_training(annotations, tmp_path):
    config = tiny(annotations, eval__metric="macro_f")
    with pytest.raises(UserError, match=r"config.eval.metric='macro_f'.*did you mean 'macro_f1'"):
        loop.train(run.open_run(config, tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_want_other_pixels_are_refused(annotations, monkeypatch):
    pixels = types.SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3, source="config.json")
    monkeypatch.setattr(crop.images, "load", lambda *a: ({}, "report", pixels))
    task = tasks.make(tiny(annotations))
    with pytest.raises(UserError, match=r"config.data.mean=.*--config.data.mean=127.5,127.5,127.5"):
        task.shipping.weights(pathlib.Path("x.safetensors"), {})


def test_history_has_a_row_for_each_validation():
    history = [
        {"step": 1, "epoch": 0.5, "split": "train", "loss": 2.0, "acc": 0.25, "lr": 0.1},
        {"step": 2, "epoch": 1.0, "split": "train", "loss": 1.0, "acc": 0.75, "lr": 0.2},
        {"step": 2, "epoch": 1.0, "split": "val", "loss": 1.5, "acc": 0.5, "macro_f1": 0.4},
    ]
    rows_ = list(csv.DictReader(io.StringIO(scoring.history_table(history))))
    assert rows_ == [
        {
            "epoch": "1",
            "train_loss": "1.5",
            "train_acc": "50",
            "val_loss": "1.5",
            "val_acc": "50",
            "tail_acc": "",
            "macro_f1": "0.4",
            "lr": "0.2",
        }
    ]

"""Heads of the crop task beside the plain one: weights that follow the losses, heads drawn anew,
where each kind of network looks, scores worked out by hand."""

import base64
import dataclasses
import io
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import leaves
import numpy as np
import pytest
from leaves import small
from PIL import Image

from jaxact import task as tasks
from jaxact.config import UserError
from jaxact.evaluate.metrics import Confusion
from jaxact.models import classifier
from jaxact.models.initialise import initialise
from jaxact.models.specs import (
    CLASSIFIER_KINDS,
    CONVNEXTS,
    EFFICIENTNETS,
    PARTS,
    ClassifierSpec,
    ConvNeXtSpec,
    EfficientNetSpec,
)
from jaxact.ops import longtail
from jaxact.task import Ending
from jaxact.tasks.crop import classes, stage_change
from jaxact.tasks.crop import task as crop
from jaxact.tasks.crop.classes import Meaning
from jaxact.tasks.crop.config import Config, Stage
from jaxact.tasks.crop.scoring import Scoring
from jaxact.train import optimizer, restore, schedule, state, step
from jaxact.train import stage_change as transition
from jaxact.train.restore import start
from jaxact.train.run import abstract_batch, abstract_variables, open_run

RECIPE = pathlib.Path(__file__).parents[3] / "configs" / "crop.py"
HEADS = ("label", *PARTS)


# ------------------------------------------------------------------------ weights by the losses


def test_weights_fall_with_the_loss_and_keep_their_sum():
    base = (1.0, 0.3, 0.3, 0.5)
    found = longtail.inverse_loss_weights(base, jnp.array([2.0, 0.5, 1.0, 0.25]))
    # 1/2 + .3/.5 + .3/1 + .5/.25 = 3.4, their sum is to be 2.1.
    np.testing.assert_allclose(found, np.array([0.5, 0.6, 0.3, 2.0]) * 2.1 / 3.4, rtol=1e-6)
    np.testing.assert_allclose(longtail.inverse_loss_weights(base, jnp.full(4, 0.7)), base)
    # A head without an example so far keeps its own; the rest share what is theirs.
    found = longtail.inverse_loss_weights(base, jnp.array([2.0, 0.5, 1.0, 0.0]))
    wanted = [*(np.array([0.5, 0.6, 0.3]) * 1.6 / 1.4), 0.5]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    # A head that is learnt does not take everything.
    found = longtail.inverse_loss_weights((1.0, 1.0), jnp.array([1.0, 1e-9]))
    np.testing.assert_allclose(found, np.array([1, 100]) * 2 / 101, rtol=1e-6)


def test_the_heads_keep_a_moving_mean_of_their_losses():
    """Two updates by hand: the first loss whole, then 0.6 of what was and 0.4 of what is."""
    spec = ClassifierSpec("multitask", dropout=0.0)
    heads = classifier.Heads(spec, 3, (2, 2, 2), momentum=0.6)
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(4, 5)).astype(np.float32) for _ in range(2)]
    variables = heads.init(jax.random.key(0), batches[0])
    assert set(variables["balance"]) == {f"mean_{name}" for name in HEADS}
    eye = {"label": np.eye(3), **{name: np.eye(2) for name in PARTS}}
    known = {name: np.asarray(e[[0, 1, 1, 0]], np.float32) for name, e in eye.items()}
    known["crop"][0] *= 0.25  # the known share of a mixture
    none = {**known, "severity": np.zeros((4, 2), np.float32)}  # nobody is graded
    apply = jax.jit(lambda v, x, k: heads.apply(v, x, None, True, k, mutable=["balance"]))
    wanted = {name: 0.0 for name in HEADS}
    for number, (batch, share) in enumerate(zip(batches, (none, known), strict=True)):
        outputs, written = apply(variables, batch, share)
        variables = {**variables, **written}
        for name in HEADS:
            logits = np.asarray(outputs["logits" if name == "label" else name], np.float64)
            logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            if share[name].any():
                now = -(share[name] * logp).sum() / share[name].sum()
                seen = number > 0 and name != "severity"
                wanted[name] = 0.6 * wanted[name] + 0.4 * now if seen else now
            kept = written["balance"][f"mean_{name}"]
            assert kept == pytest.approx(wanted[name], rel=1e-5), name
            assert outputs["balance"][name] == kept
    # Evaluation has no use for them and changes none.
    assert "balance" not in heads.apply(variables, batches[0])
    without = classifier.Heads(spec, 3, (2, 2, 2))
    assert "balance" not in without.init(jax.random.key(0), batches[0])


def test_dynamic_weights_weigh_the_terms_and_take_no_part_in_the_gradient():
    config = Config()
    config.model.kind, config.loss.dynamic = "multitask", 0.9
    names = [f.name for f in dataclasses.fields(Stage) if f.metadata.get("kind") == "value"]
    hyper = {name: 0.0 for name in names}
    statistics = crop.ClassStatistics(np.zeros(3), np.zeros(3), np.ones(3), np.zeros(3, bool))
    labels = jnp.array([0, 2])
    targets = {"mask": np.ones(2, bool), "own": labels, "partner": labels, "lam": 1.0}
    targets |= {name: jax.nn.one_hot(labels % 2, 2) for name in PARTS}
    means = {"label": 2.0, "crop": 0.5, "disease": 1.0, "severity": 0.25}
    rng = np.random.default_rng(0)
    outputs = {"logits": jnp.asarray(rng.normal(size=(2, 3)))}
    outputs |= {name: jnp.asarray(rng.normal(size=(2, 2))) for name in PARTS}

    def terms(means):
        return crop._loss(config, lambda: statistics, {**outputs, **means}, targets, hyper)

    fixed = terms({})
    found = terms({"balance": {k: jnp.float32(v) for k, v in means.items()}})
    factors = longtail.inverse_loss_weights(config.loss.weights, jnp.array(list(means.values())))
    for name, factor, base in zip(HEADS, factors, config.loss.weights, strict=True):
        np.testing.assert_allclose(found[name], fixed[name] * factor / base, rtol=1e-5)
    slope = jax.grad(lambda m: sum(jnp.sum(each) for each in terms({"balance": m}).values()))(
        {k: jnp.float32(v) for k, v in means.items()}
    )
    assert all(float(each) == 0 for each in slope.values())


def test_dynamic_weights_are_part_of_the_state(annotations, tmp_path):
    """A step with micro-batches and an average of weights keeps the tree; off, there is none."""
    config = small(annotations)
    config.model.kind, config.loss.dynamic = "multitask", 0.6
    config.optim.accumulate = 2
    run = open_run(config, tmp_path)
    row = run.plan().rows[0]
    fresh = abstract_variables(run, row.stage_data)
    groups = optimizer.resolve_groups(config.optim, fresh["params"])
    begun = jax.eval_shape(lambda v: restore.create(config, groups, v), fresh)
    update = step.make_train_step(config, run.task, run.plan(), groups, row)
    after, _ = jax.eval_shape(update, begun, abstract_batch(run.task, row.stage_data, "train", 4))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, begun)
    names = {f"mean_{name}" for name in HEADS}
    for tree in (after.model_state, after.ema["model_state"]):
        assert set(tree["balance"]["head"]) == names
    batch = abstract_batch(run.task, row.stage_data, "val", 4)
    _, rows = jax.eval_shape(step.make_eval_step(run.task, "val").whole, fresh, batch)
    assert "crop_scores" in rows
    off = open_run(small(annotations), tmp_path)
    assert "balance" not in abstract_variables(off, row.stage_data)


@pytest.mark.parametrize(
    ("kind", "dynamic", "said"),
    [
        ("baseline", 0.6, r"config.loss.dynamic=0.6 .*multitask"),
        ("multitask", 1.0, r"config.loss.dynamic=1.0 .*0 \(off\) to below 1"),
    ],
)
def test_mistakes_of_dynamic_weights(annotations, kind, dynamic, said):
    config = small(annotations)
    config.model.kind, config.loss.dynamic = kind, dynamic
    with pytest.raises(UserError, match=said) as error:
        tasks.make(config)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------- heads drawn anew


@pytest.mark.parametrize("kind", CLASSIFIER_KINDS)
def test_a_restart_draws_every_layer_of_the_head_anew(kind):
    heads = classifier.Heads(ClassifierSpec(kind, hidden=7), 5, (2, 3, 2))
    drawn = [heads.init(jax.random.key(seed), jnp.zeros((1, 6)))["params"] for seed in (0, 1)]
    moved = jax.tree.map(lambda x: x + 1, drawn[0])  # as training left it
    variables = {"params": {"backbone": {"w": jnp.ones(2)}, "head": moved}}

    def row(restart):
        values = {"cosine": (0.0, 0.0), "center": (0.0, 0.0)}
        return types.SimpleNamespace(values=values, data={"restart": restart})

    def enter(seed):
        found = stage_change.enter(
            None, None, variables, row("none"), row("head"), jax.random.key(seed), None
        )
        return found["params"]

    found, again, other = enter(3), enter(3), enter(4)
    assert found["backbone"] is variables["params"]["backbone"]
    layers = {"baseline": {"label"}, "fewshot": {"label", "hidden"}, "multitask": set(HEADS)}
    assert set(found["head"]) == layers[kind]
    kernels = []
    for name, layer in found["head"].items():
        limit = 1 / np.sqrt(layer["kernel"].shape[0])
        for part in ("kernel", "bias"):
            assert layer[part].shape == moved[name][part].shape
            assert np.abs(layer[part]).max() <= limit < np.abs(moved[name][part]).max(), name
            np.testing.assert_array_equal(layer[part], again["head"][name][part])
            assert not np.array_equal(layer[part], other["head"][name][part])
        kernels.append(np.ravel(layer["kernel"])[:4] / limit)
    # Each from a key of its own.
    assert len({tuple(np.round(k, 4)) for k in kernels}) == len(kernels)


def test_a_head_drawn_anew_replaces_its_average_and_starts_its_optimiser(annotations, tmp_path):
    config = small(annotations, "crt")
    config.stages[0].size, config.length = 32, "10 steps"
    run = open_run(config, tmp_path)
    made, groups = start(run, run.plan().rows[0].stage_data, lambda text: None)

    def worn(tree):
        return jax.tree.map(lambda x: x + jnp.ones_like(x), tree)

    before = made.replace(
        step=jnp.int32(8),
        opt_state=worn(made.opt_state),
        ema=jax.tree.map(lambda x: 2 * x, worn(made.ema)),
    )
    row = run.plan().rows[1]
    fit = types.SimpleNamespace(run=run, plan=run.plan(), state=before, groups=groups)
    transition.enter(fit, row, row.start)
    after = fit.state
    head = [name for name in after.ema["params"] if name.startswith("head/")]
    assert sorted(head) == ["head/label/bias", "head/label/kernel"] and row.start == 8
    new, old = state.flatten(after.params), state.flatten(before.params)
    for name, average in after.ema["params"].items():
        if name in head:
            np.testing.assert_array_equal(average, new[name])
            assert not np.array_equal(new[name], old[name])
        else:
            np.testing.assert_array_equal(average, before.ema["params"][name])
            np.testing.assert_array_equal(new[name], old[name])
    for name, fresh in (("head", True), ("rest", False)):
        was = made.opt_state[name] if fresh else before.opt_state[name]
        jax.tree.map(np.testing.assert_array_equal, after.opt_state[name], was)


# --------------------------------------------------------------------------------- where it looks

SMALL = {
    "convnext_tiny": (CONVNEXTS, ConvNeXtSpec((1, 1, 1, 1), (8, 8, 16, 16))),
    "efficientnet_b0": (EFFICIENTNETS, EfficientNetSpec(8, (1,) * 7, (8,) * 7, 16)),
}


@pytest.fixture(params=SMALL)
def network(request, monkeypatch):
    """A small network of each family, on 96 px: maps of 3 x 3."""
    family, spec = SMALL[request.param]
    monkeypatch.setitem(family, request.param, spec)
    model = classifier.Classifier(ClassifierSpec(backbone=request.param, dropout=0.0), 4)
    images = np.random.default_rng(0).normal(size=(3, 96, 96, 3)).astype(np.float32)
    variables = initialise(model, jax.random.key(0), jnp.asarray(images))
    return model, variables, images


def normalised(params, mean):
    """What a linear head sees of a pooled map f64[b, c]."""
    norm = params["backbone"].get("norm")
    if norm is None:
        return mean
    scale, bias = (np.asarray(norm[k], np.float64) for k in ("scale", "bias"))
    centred = mean - mean.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * scale + bias


def test_activation_maps_equal_finite_differences(network):
    """Each channel's weight is the logit's slope along its mean, measured on the real head."""
    model, variables, images = network
    params = variables["params"]
    labels = np.array([3, 0, 2])
    found = jax.jit(lambda *a: classifier.activation_map(model, *a))(variables, images, labels)
    run = jax.jit(lambda *a: model.apply(*a, with_map=True))(variables, images)
    last = np.asarray(run["map"], np.float64)
    assert found.shape == last.shape[:3] == (3, 3, 3)
    label = {k: np.asarray(v, np.float64) for k, v in params["head"]["label"].items()}

    def logits(mean):
        return (normalised(params, mean) @ label["kernel"] + label["bias"])[range(3), labels]

    mean = last.mean((1, 2))
    # This head is the network's.
    own = np.asarray(run["logits"])[range(3), labels]
    np.testing.assert_allclose(logits(mean), own, rtol=1e-4, atol=1e-4)
    step = 1e-6
    slope = np.stack(
        [(logits(mean + d) - logits(mean - d)) / (2 * step) for d in step * np.eye(16)], -1
    )
    wanted = np.maximum(np.einsum("bhwc,bc->bhw", last, slope), 0)
    wanted /= np.maximum(wanted.max((1, 2), keepdims=True), 1e-12)
    assert wanted.max() == 1
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_activation_maps_are_highest_where_the_evidence_is(network):
    """One cell of an even picture is noisy; a class is the difference of its features from the
    rest's, so it is that cell that speaks for it."""
    model, variables, images = network
    place = (2, 1)
    picture = np.zeros((1, 96, 96, 3), np.float32)
    box = slice(32 * place[0], 32 * place[0] + 32), slice(32 * place[1], 32 * place[1] + 32)
    picture[0, box[0], box[1]] = 3 * images[0, :32, :32]
    last = np.asarray(jax.jit(lambda *a: model.apply(*a, with_map=True))(variables, picture)["map"])
    others = np.ones((3, 3), bool)
    others[place] = False
    kernel = np.zeros((16, 4), np.float32)
    kernel[:, 2] = last[0][place] - last[0][others].mean(0)
    head = {"label": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(4)}}
    variables = {**variables, "params": {**variables["params"], "head": head}}
    look = jax.jit(lambda *a: classifier.activation_map(model, *a))
    heat = np.asarray(look(variables, picture, np.array([2])))[0]
    assert np.unravel_index(heat.argmax(), heat.shape) == place
    assert heat[others].max() < 0.9


@pytest.mark.parametrize("backbone", SMALL)
def test_pictures_of_activation_maps_are_written(annotations, monkeypatch, backbone):
    family, spec = SMALL[backbone]
    monkeypatch.setitem(family, backbone, spec)
    config = small(annotations)
    config.model.backbone, config.stages[0].size = backbone, 64
    task = tasks.make(config)
    source = task.training.source("test")
    logits = np.random.default_rng(0).normal(size=(len(source), 6))
    shape = jnp.zeros((1, 64, 64, 3))
    end = Ending(
        split="test",
        ids=source.ids,
        rows={
            "label": source.labels(),
            "logits": logits,
            "scores": np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        },
        scores={},
        best_val={},
        history=(),
        variables=initialise(task.training.model, jax.random.key(0), shape),
        source=source,
        stage_data=schedule.last_stage_data(config),
        pictures=True,
    )
    figure = task.evaluation.conclude(end).figures[-1]
    assert figure.title == "Where it looks"
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", figure.html)
    wrong = int((logits.argmax(1) != source.labels()).sum())
    assert len(found) == min(4, wrong) + min(4, len(source) - wrong) >= 5
    for text in found:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert image.size[0] == 2 * image.size[1]  # beside itself under the map
            pixels = np.asarray(image).astype(int)
        half = pixels.shape[1] // 2
        assert np.abs(pixels[:, :half] - pixels[:, half:]).mean() > 5


# ----------------------------------------------------------------------- metrics that cannot be


@pytest.mark.parametrize(
    ("metric", "fields", "said"),
    [
        ("tail_acc", {"tail": 0.1}, r"'tail_acc': no .* of a 'tail' class \(0 of 6 classes"),
        ("tau1_tail_acc", {"tail": 0.1}, r"metric='tau1_tail_acc': no validation picture"),
        ("many_acc", {}, r"metric='many_acc': no validation picture is of a 'many' class"),
        ("tail_acc", {"tail": 0.34}, ""),
        ("tau1_acc", {"tail": 0.1}, ""),
        ("severity_acc", {}, ""),
    ],
)
def test_a_metric_without_pictures_is_refused_with_the_data(annotations, metric, fields, said):
    """Before the first step, not after the first epoch; other splits are not concerned."""
    config = small(annotations)
    config.eval.metric, config.eval.taus = metric, (1.0,)
    config.loss.tail = fields.get("tail", config.loss.tail)
    task = tasks.make(config)
    assert metric in task.evaluation.metrics
    if not said:
        assert len(task.training.source("val")) == sum(leaves.COUNTS["val"])
        return
    with pytest.raises(UserError, match=said) as error:
        task.training.source("val")
    assert "\n" not in str(error.value)
    assert len(task.training.source("test")) == sum(leaves.COUNTS["test"])


def test_a_metric_of_grades_needs_graded_pictures(annotations, tmp_path):
    lines = annotations.read_text().splitlines()
    kept = [line for line in lines if "val" not in line.split(",") or "healthy" in line]
    # Healthy pictures are graded (healthy); bare ones are not, so nothing at all is known.
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(kept))
    config = small(path)
    config.eval.metric, config.data.images = "severity_acc", str(annotations.parent / "images")
    task = tasks.make(config)
    assert len(task.training.source("val")) == 3
    bare = dataclasses.replace(
        task.training.source.args[1].config,
        eval=dataclasses.replace(config.eval, metric="severity_acc"),
    )
    scoring = Scoring(bare, TABLE, lambda: np.ones(6), lambda: np.ones(6))
    ungraded = types.SimpleNamespace(
        labels=lambda: np.array([5]), pictures=[types.SimpleNamespace(severity=-1)]
    )
    with pytest.raises(UserError, match="'severity_acc': no validation picture is graded"):
        scoring.require_metric(ungraded)


# --------------------------------------------------------------------------------- scores by hand

TABLE = classes.build(
    [
        Meaning("pea well", "pea", "healthy"),
        Meaning("pea rust mild", "pea", "rust", "1"),
        Meaning("pea rust bad", "pea", "rust", "2"),
        Meaning("bean well", "bean", "healthy"),
        Meaning("bean rust mild", "bean", "rust", "1"),
        Meaning("bean spot", "bean", "spot"),  # not graded
    ]
)


def test_hierarchical_scores_by_hand():
    """Percent of each class, the label, and what each score makes of it."""
    rows = np.array(
        [
            [40, 30, 30, 0, 0, 0],  # 1: wrong; pea right, rust 60 right, grade: well by 40
            [0, 20, 45, 0, 35, 0],  # 1: wrong; pair right, pea, rust; grade 1 has 55: right
            [0, 0, 40, 10, 10, 40],  # 5: takes class 2, wrong; bean 60 right; rust 50: wrong
            [0, 0, 0, 70, 30, 0],  # 3: right everywhere
        ]
    )
    labels = np.array([1, 1, 5, 3])
    share = rows / 100
    config = Config()
    counts = np.array([9, 5, 2, 30, 7, 8])
    scoring = Scoring(config, TABLE, lambda: counts, lambda: counts)
    logits = np.log(np.maximum(share, 1e-30))
    measured = {
        "confusion": Confusion.count(share.argmax(1), labels, 6),
        "loss": types.SimpleNamespace(total=np.float32(2.0), count=np.float32(4)),
    }
    none = np.full(4, -1)
    found = scoring.score(
        measured,
        {
            "label": labels,
            "logits": logits,
            "scores": share,
            "crop": none,
            "disease": none,
            "severity": none,
        },
    )
    assert found["acc"] == 0.25
    # Forgiven: the second (rust of pea taken for its other grade); not the first (healthy pea).
    assert found["severity_merged_acc"] == 0.5
    assert found["crop_acc"] == 1.0
    assert found["disease_acc"] == 0.75
    # Three rows are graded. The first is healthy by 40 to 30 to 30, the second mild, the last well.
    assert found["severity_acc"] == pytest.approx(2 / 3)
    # Recalls of the classes that occur: 1: 0 of 2, 3: 1 of 1, 5: 0 of 1.
    assert found["balanced_acc"] == pytest.approx(1 / 3)
    # F1 of 3 is 1; over three classes that occur, or six.
    assert found["macro_f1"] == pytest.approx(1 / 3)
    assert found["macro_f1_all"] == pytest.approx(1 / 6)
    # The tail is one of six classes (2), which never occurs; the head is class 3.
    assert "tail_acc" not in found and found["head_acc"] == 1.0
    assert found["nll"] == pytest.approx(-np.log([0.3, 0.2, 0.4, 0.7]).mean())
    assert found["loss"] == 0.5


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_views_and_mirror_images_are_averaged_as_probabilities(annotations, tau):
    """Two scales x (as it is, mirrored), by hand; tau takes the prior off their mean."""
    config = small(annotations, "tiny")
    config.model.kind, config.eval.tau = "multitask", tau
    config.data.test.scales, config.data.test.flip = (1.0, 1.5), True
    task = tasks.make(config)
    views = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), np.uint8)
    assert task.training.shapes(schedule.last_stage_data(config), "test")["image"][0][0] == 2

    def network(image):
        left = image[:, :, :4].mean((2, 3))  # not the same mirrored
        return {"logits": 3 * left[:, :6], "crop": left[:, :2], "disease": left[:, 2:4]}

    found = task.evaluation.infer(
        lambda image: network(image), {"image": jnp.asarray(views)}, "test"
    )
    mean, std = (np.array(getattr(config.data, k)) for k in ("mean", "std"))
    share = {name: 0 for name in ("logits", "crop", "disease")}
    for view in range(2):
        for way in (1, -1):
            image = (views[:, view, :, ::way] - mean) / std
            for name, logits in network(image).items():
                power = np.exp(logits)
                share[name] = share[name] + power / power.sum(1, keepdims=True) / 4
    counts = np.array(leaves.COUNTS["train"])
    adjusted = share["logits"] / (counts / counts.sum()) ** tau
    adjusted /= adjusted.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(found["logits"]), adjusted, rtol=1e-4)
    for name in ("crop", "disease"):
        np.testing.assert_allclose(found[name], share[name], rtol=1e-4)
    # Validation sees one view, not mirrored.
    (one,) = [task.evaluation.infer(network, {"image": jnp.asarray(views[:, :1])}, "val")["crop"]]
    power = np.exp(network((views[:, 0] - mean) / std)["crop"])
    np.testing.assert_allclose(one, power / power.sum(1, keepdims=True), rtol=1e-4)

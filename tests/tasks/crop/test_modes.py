"""Crop diseases in every mode: what is evaluated at which size, exported, kept, warned of."""

import dataclasses
import json
import pathlib
import types

import command
import jax
import jax.numpy as jnp
import leaves
import numpy as np
import pytest
from absl import flags
from leaves import small

from jaxact import config as schema
from jaxact import exported
from jaxact import task as tasks
from jaxact.config import UserError
from jaxact.data.pipeline import train_batches
from jaxact.models.classifier import Classifier
from jaxact.models.initialise import initialise
from jaxact.modes import bench, check, evaluate, export, predict
from jaxact.ops import mixing
from jaxact.task import Ending
from jaxact.tasks.crop import classes
from jaxact.tasks.crop import task as crop
from jaxact.tasks.crop.config import Config, Stage
from jaxact.tasks.crop.scoring import Scoring
from jaxact.train import finish, loop, optimizer, restore, schedule, setup, state, step
from jaxact.train.restore import stage_data_of, start
from jaxact.train.run import (
    abstract_batch,
    abstract_variables,
    drawn_and_frozen,
    initial_variables,
    open_run,
    value_names,
)

RECIPE = pathlib.Path(__file__).parents[3] / "configs" / "crop.py"


@pytest.fixture(scope="module")
def grown(annotations, tmp_path_factory):
    """A run whose pictures grow after the first of two epochs, which is chosen as the best."""
    config = small(annotations)
    config.length = "2 epochs"
    config.stages = (Stage(size=32), Stage(start="1 epochs", size=40, augment="light"))
    config.eval.every = config.save.every = "1 epochs"
    config.save.keep_every = "1 epochs"
    # The rate of the first step of the second epoch alone is above 0.
    config.eval.metric, config.eval.maximise = "top5", True
    run = open_run(config, tmp_path_factory.mktemp("grown"))
    sides = []
    with pytest.MonkeyPatch.context() as patch:
        scores = iter([0.9, 0.1])
        found = loop.evaluate

        def evaluated(run, program, variables, split, stage, source=None):
            numbers, *rest = found(run, program, variables, split, stage, source)
            return {**numbers, "top5": next(scores)}, *rest

        def tested(run, program, variables, split, stage, source=None):
            sides.append(stage.size)
            return found(run, program, variables, split, stage, source)

        patch.setattr(loop, "evaluate", evaluated)
        patch.setattr(finish, "evaluate", tested)
        results = loop.train(run)
    return run, results, sides


def test_the_best_is_tested_at_the_size_it_was_chosen_at(grown):
    run, results, sides = grown
    assert results["best_step"] == results["steps"] // 2 and sides == [32]
    # Evaluation, prediction and export know it from the work dir ...
    assert stage_data_of(run, "").size == 32
    last = str(run.workdir / "checkpoints" / str(results["steps"]))
    assert stage_data_of(run, last).size == 40 and stage_data_of(run, last).augment == "light"
    # ... as long as it had this schedule.
    other = dataclasses.replace(run.config, stages=(Stage(size=48),))
    assert stage_data_of(dataclasses.replace(run, config=other), "").size == 48
    assert evaluate.evaluate_split(run, "")["scores"] == results["scores"]
    assert results["views"]["val"] == (
        "32 or 40 px (the stage's), squeezed to a square, scales 1, 1 crop, not mirrored"
    )


def test_an_export_has_the_size_of_its_checkpoint(grown, tmp_path):
    pytest.importorskip("flatbuffers")
    run, *_ = grown
    written = export.export(run, "", tmp_path / "made")
    assert written["inputs"]["image"]["shape"] == ["b", 32, 32, 3]
    assert written["preprocessing"]["resize"].startswith("resized to a square, 32 px")
    found = exported.load(tmp_path / "made")(image=np.zeros((1, 32, 32, 3), np.uint8))
    assert found["scores"].shape == (1, len(leaves.CLASSES))


def recipe_variants():
    return [name for name in schema_module().VARIANTS]


def schema_module():
    import importlib.util

    spec = importlib.util.spec_from_file_location("crop_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIDES = {"": 256, "advanced": 256, "multitask": 256, "fewshot": 224, "deferred": 224}
SIDES |= {"adjusted": 224, "crt": 224, "tiny": 32}  # the rest: 64


@pytest.mark.parametrize("variant", recipe_variants())
def test_every_variant_has_a_contract_of_the_last_size(annotations, variant):
    task = tasks.make(small(annotations, variant))
    side = SIDES.get(variant, 64)
    assert task.shipping.contract().inputs["image"].shape == (side, side, 3)


def test_the_staged_leaves_are_evaluated_and_predicted(annotations, tmp_path, capsys):
    """Its rows at 30 % and 36 % of twelve epochs are one where an epoch has a single step."""
    config = small(annotations, "leaves_staged")
    config.data.test_size = 32
    run = open_run(config, tmp_path)
    variables = initial_variables(run, schedule.last_stage_data(config))
    made, _ = start(run, schedule.last_stage_data(config), lambda text: None)
    from jaxact.train import checkpoint

    files = checkpoint.Checkpoints(tmp_path / "checkpoints", config.save, "acc", True)
    files.save(made, {"acc": 0.5})
    files.close()
    found = evaluate.evaluate_split(run, "")
    assert found["examples"] == sum(leaves.COUNTS["test"])
    picture = annotations.parent / "images" / "test00.png"
    said = []
    predict.predict(run, "", predict.Request(str(picture)), said.append)
    assert json.loads(said[0])["id"].endswith("test00.png")
    assert run.task.shipping.contract().inputs["image"].shape == (32, 32, 3)
    assert state.flatten(variables)


# ----------------------------------------------------------------------------------- what is kept


def test_every_epochs_checkpoint_is_kept(annotations, tmp_path):
    config = small(annotations)
    config.length, config.eval.every, config.save.every = "6 steps", "6 steps", "5 steps"
    config.save.keep_every, config.save.latest = "2 steps", 1
    loop.train(open_run(config, tmp_path))
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [2, 4, 6]  # written though nothing else asked for them; 5 has gone


# -------------------------------------------------------------------------------------- warnings


def test_a_head_on_random_features_is_warned_of(annotations, tmp_path, capfd):
    config = small(annotations, "fewshot")
    config.length, config.stages = "1 steps", (Stage(size=32),)
    config.model.hidden, config.data.shots = 4, 1
    config.batch_size = config.eval.batch_size = 4
    said = []
    check.check(open_run(config, tmp_path), said.append)
    warned = [line for line in said if line.startswith("warning: config.init_from is empty")]
    assert len(warned) == 1 and "random" in warned[0]
    setup.open_setup(open_run(config, tmp_path)).checkpoints.close()
    assert capfd.readouterr().err.count("warning: config.init_from is empty") == 1
    # Not where all is trained, and not where weights are given.
    for changed in (small(annotations), dataclasses.replace(config, init_from="x")):
        run = open_run(changed, tmp_path)
        variables = abstract_variables(run, run.plan().rows[0].stage_data)
        groups = optimizer.resolve_groups(changed.optim, variables["params"])
        assert not drawn_and_frozen(changed, groups, ".*", variables["params"])
    run = open_run(small(annotations, "advanced"), tmp_path)
    variables = abstract_variables(run, run.plan().rows[0].stage_data)
    groups = optimizer.resolve_groups(run.config.optim, variables["params"])
    text = drawn_and_frozen(run.config, groups, "head", variables["params"])
    assert "stage 0 (train='head')" in text and "\n" not in text


# ------------------------------------------------------------------------------- incomplete tables


def test_no_graded_class_leaves_the_severity_head_out(annotations, tmp_path):
    """Training and evaluation with three of the four heads; mirrored views too."""
    path = tmp_path / "labels.csv"
    cells = [line.split(",") for line in annotations.read_text().splitlines()]
    column = cells[0].index("severity")
    for row in cells[1:]:
        row[column] = ""
    path.write_text("\n".join(",".join(row) for row in cells))
    config = small(path)
    config.model.kind, config.data.test.flip = "multitask", True
    run = open_run(config, tmp_path)
    assert "severity_head_acc" not in run.task.evaluation.metrics
    stage = run.plan().rows[0].stage_data
    fresh = abstract_variables(run, stage)
    assert set(fresh["params"]["head"]) == {"label", "crop", "disease"}
    row = run.plan().rows[0]
    groups = optimizer.resolve_groups(config.optim, fresh["params"])
    begun = jax.eval_shape(lambda v: restore.create(config, groups, v), fresh)
    update = step.make_train_step(config, run.task, run.plan(), groups, row)
    _, means = jax.eval_shape(update, begun, abstract_batch(run.task, stage, "train", 4))
    assert {"loss/label", "loss/crop", "loss/disease"} < set(means) and "loss/severity" not in means
    batch = abstract_batch(run.task, stage, "test", 4)
    _, rows = jax.eval_shape(step.make_eval_step(run.task, "test").whole, fresh, batch)
    assert "crop_scores" in rows and "severity_scores" not in rows
    # A size of 0 is left out of the tree when it is really drawn, too.
    built = Classifier(config.model, 6, (2, 2, 0))
    drawn = initialise(built, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert set(drawn["params"]["head"]) == {"label", "crop", "disease"}


def test_few_shots_do_not_decide_what_is_rare(annotations):
    config = small(annotations)
    config.data.shots, config.loss.tail = 1, 0.34
    counts = np.array(leaves.COUNTS["train"])
    rare = np.argsort(counts, kind="stable")[:2]
    task = tasks.make(config)
    scoring = task.evaluation.score.__self__
    assert set(np.flatnonzero(scoring.subsets()["tail"])) == set(rare)
    assert scoring.counts().tolist() == [1] * 6
    assert scoring.full_counts().tolist() == counts.tolist()
    statistics = task.training.loss.args[1]()
    assert set(np.flatnonzero(statistics.tail)) == set(rare)
    # What the loss makes up for is what is drawn.
    np.testing.assert_allclose(statistics.prior, np.log(1 / 6), rtol=1e-6)
    np.testing.assert_allclose(statistics.weights, 1, rtol=1e-6)


def test_further_taus_are_not_added_to_the_first():
    def scores(tau, taus, shift):
        config = Config()
        config.eval.tau, config.eval.taus = tau, taus
        table = classes.ClassTable(("a", "b"))
        counts = np.array([9, 1])
        scoring = Scoring(config, table, lambda: counts, lambda: counts)
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(200, 2)) - shift * np.log(counts / 10)
        return scoring._adjusted(logits, np.arange(200) % 2, 1.0)

    assert scores(0.5, (1.0,), 0.5) == scores(0.0, (1.0,), 0.0)


# --------------------------------------------------------------------------------------- skipped


@pytest.mark.parametrize("kind", ["baseline", "multitask"])
def test_a_skipped_example_teaches_its_partner_nothing(annotations, kind):
    config = small(annotations)
    config.model.kind = kind
    task = tasks.make(config)
    batch = {
        "image": jnp.zeros((3, 8, 8, 3), jnp.uint8),
        "mask": jnp.array([True, True, False]),
        **{name: jnp.array([1, 1, 0]) for name in ("label", "crop", "disease", "severity")},
    }
    hyper = {name: 0.5 for name in value_names(config)}
    hyper |= {"mixup": 1.0, "mixup_prob": 1.0}
    config.stages = (Stage(mixup=(1.0,)),)
    for seed in range(20):
        _, targets = task.training.inputs(
            batch, hyper, jax.random.key(seed), types.SimpleNamespace()
        )
        if targets["order"][0] == 2:
            break
    assert targets["order"][0] == 2 and 0 < targets["lam"] < 1
    assert targets["partner"][0] == -1
    share = crop._share(targets, 6)
    np.testing.assert_allclose(share[0], targets["lam"] * np.eye(6)[1], rtol=1e-6)
    if kind == "multitask":
        np.testing.assert_allclose(targets["crop"][0], targets["lam"] * np.eye(2)[1], rtol=1e-6)


def test_a_skipped_clip_teaches_its_partner_nothing(monkeypatch):
    from jaxact.tasks.action import task as action

    recipe = schema.load(RECIPE.parent / "x3d.py", "tiny")
    monkeypatch.setattr(mixing, "draw", lambda *a: mixing.blend(0.7, jnp.array([1, 0])))
    recipe.model.classes, recipe.model.coarse = 3, (0, 1, 1)
    batch = {
        "rgb": jnp.zeros((2, 2, 8, 8, 3), jnp.uint8),
        "label": jnp.array([2, 0]),
        "mask": jnp.array([True, False]),
    }
    hyper = {name: 0.0 for name in value_names(recipe)}
    stage = types.SimpleNamespace(size=8)
    _, share = action._inputs(recipe, None, batch, hyper, jax.random.key(0), stage)
    np.testing.assert_allclose(share["fine"][0], [0, 0, 0.7], rtol=1e-6)
    np.testing.assert_allclose(share["coarse"][0], [0, 0.7], rtol=1e-6)


# ------------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("apart", [True, False])
def test_a_temperature_is_not_scored_where_it_was_fitted(annotations, apart, capsys):
    config = small(annotations)
    config.data.test_split = "test" if apart else "val"
    task = tasks.make(config)
    source = task.training.source("test")
    labels = source.labels()
    logits = np.random.default_rng(0).normal(size=(len(labels), 6))
    end = Ending(
        split="test",
        ids=source.ids,
        rows={"label": labels, "logits": logits},
        scores={},
        best_val={"temperature": 2.0},
        history=(),
        variables=None,
        source=source,
        stage_data=None,
        pictures=False,
    )
    extra = task.evaluation.conclude(end)
    assert ("scaled" in extra.numbers["calibration"]) == apart
    assert len(extra.figures) == 1 + apart
    assert ("fitted and scored on the same pictures" in capsys.readouterr().err) != apart


# ------------------------------------------------------------------------------------ without data


def test_a_bench_needs_no_annotations(tmp_path):
    config = schema.load(RECIPE, "tiny")
    config.data.classes = 6
    config.stages[0].tau = (1.0,)
    found = bench.bench(open_run(config, tmp_path), 1)
    assert (
        found["device_examples_per_s"] > 0 and "config.data.annotations is empty" in found["note"]
    )
    config.eval.tau = 1.0
    task = tasks.make(config)
    image = {"image": jnp.zeros((1, 1, 32, 32, 3), jnp.uint8)}
    with pytest.raises(UserError, match=r"config.eval.tau=1.0 needs the training counts"):
        task.evaluation.infer(lambda image: {"logits": jnp.zeros((1, 6))}, image, "predict")


def test_predictions_take_the_classes_of_the_run(annotations, tmp_path):
    config = small(annotations)
    workdir = tmp_path / "run"
    loop.train(open_run(config, workdir))
    stored = json.loads((workdir / "config.json").read_text())["class_table"]
    assert [row["name"] for row in stored] == [name for name, *_ in leaves.CLASSES]
    picture = annotations.parent / "images" / "test00.png"
    wanted = (f"--config={RECIPE}:tiny", f"--workdir={workdir}", "--mode=predict")
    wanted += (f"--config.model.backbone={config.model.backbone}", f"--input={picture}")
    line = json.loads(command.trained(*wanted).out.splitlines()[0])
    assert line["name"] in [name for name, *_ in leaves.CLASSES] and "crop" in line
    both = [
        tasks.make(c) for c in (config, dataclasses.replace(config, data=named(config, workdir)))
    ]
    assert both[0].prediction.describe.args[0] == both[1].prediction.describe.args[0]
    (workdir / "config.json").write_text('{"class_table": [{"class_id": 1}]}')
    with pytest.raises(UserError, match="holds no class_table"):
        classes.read(workdir / "config.json")


def test_runs_of_bare_names_are_predicted_without_their_annotations(annotations, tmp_path):
    """Names only: no crop, no disease, no severity."""
    rows = [line.split(",") for line in annotations.read_text().splitlines()]
    place = [rows[0].index(name) for name in ("file", "class", "split")]
    bare = tmp_path / "names.csv"
    lines = [",".join(row[k] for k in place) for row in rows]
    bare.write_text("\n".join(lines).replace("file,class", "file,label"), encoding="utf-8")
    config = small(bare)
    table = tasks.make(config).shipping.meanings
    assert [row["name"] for row in table] == sorted(name for name, *_ in leaves.CLASSES)
    names = {"classes": [row["name"] for row in table], "class_table": table}
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, **names}))
    # With annotations they say it; a number of classes is no list of them.
    assert predict.with_names(config, tmp_path, "").data == config.data
    data = named(config, tmp_path)
    task = tasks.make(dataclasses.replace(config, data=data))
    assert (
        task.training.classes == tasks.make(config).training.classes
        and task.prediction.describe.args[0].crops == ()
    )


def named(config, workdir):
    """Its data without annotations, the class table being the run's."""
    data = dataclasses.replace(config.data, annotations="", class_table="")
    bare = dataclasses.replace(config, data=data)
    found = predict.with_names(bare, workdir, "").data
    assert found.class_table == str(workdir / "config.json")
    return found


# ------------------------------------------------------------------------------ worker processes


def test_worker_processes_change_nothing(annotations):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def batches(workers):
        config = small(annotations)
        config.input.workers = workers
        task = tasks.make(config)
        stage = schedule.last_stage_data(config)
        return list(train_batches(config, task, task.training.source("train"), stage, 0, 3))

    for one, other in zip(batches(0), batches(1), strict=True):
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)

"""`export` and `ensemble` through the real command, from trained runs to what users read."""

import json
import shutil
import subprocess
import sys

import command
import numpy as np
import pytest
from command import ONE_STREAM, ROOT, TOY
from toy import recipe

from jaxact import config as schema
from jaxact.data.pipeline import eval_batches
from jaxact.evaluate import metrics
from jaxact.modes import evaluate
from jaxact.tasks.action import task as action
from jaxact.train import loop, predictions
from jaxact.train.run import open_run


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """Processes that have imported everything: an ensemble is done before an import would be."""
    made = command.Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def refused(forks):
    """(*flags) -> the line of the mistake."""

    def run(*flags):
        ended = forks.run(*flags)
        assert ended.code == 2, ended.err
        return ended.error

    return run


@pytest.fixture(scope="module")
def done(forks):
    """(*flags) -> how a command that succeeded ended."""

    def run(*flags):
        ended = forks.run(*flags)
        assert ended.code == 0, ended.err
        return ended

    return run


# ----------------------------------------------------------------------------------------- export


@pytest.fixture(scope="module")
def rgb(clips, tmp_path_factory):
    """(flags of the recipe, work dir of a training of it)."""
    workdir = tmp_path_factory.mktemp("rgb")
    flags = (*ONE_STREAM, *command.data(clips), "--config.data.test.clips=1")
    command.trained(*flags, f"--workdir={workdir}", "--config.save.report=False")
    return flags, workdir


def test_an_export_scores_what_evaluation_scored(rgb, clips, tmp_path):
    """From the test clips' own arrays, through the artefact's command, to the stored scores."""
    flags, workdir = rgb
    out = tmp_path / "new" / "model"
    ended = command.trained(*flags, "--mode=export", f"--workdir={workdir}", f"--output={out}")
    said = json.loads(ended.out)
    assert said["output"] == str(out) and said["largest_difference"] <= 1e-5
    contract = json.loads((out / "contract.json").read_text())
    results = json.loads((workdir / "results.json").read_text())
    assert contract["parameters"] == results["parameters"]
    assert contract["checkpoint"] == str(workdir / "checkpoints" / "2")

    config = schema.load(ROOT / "configs" / "x3d.py", "tiny")
    config.model.streams, config.model.coarse, config.model.rgb.blocks = "rgb", (), (1,)
    config.data.annotations = str(clips / "annotations.pkl")
    config.data.videos = str(clips / "clips")
    config.data.test.clips = 1
    task = action.make(config)
    assert contract["classes"] == list(task.training.classes)
    source = task.training.source("test")
    batches = eval_batches(config, task, source, config.stages[0], "test", 8)
    batch = next(batches)
    batches.close()
    arrays = {"rgb": batch["rgb"][:, 0], "ids": np.array(source.ids), "label": batch["label"]}
    np.savez(tmp_path / "in.npz", **arrays)
    files = [f"--input={tmp_path / 'in.npz'}", f"--output={tmp_path / 'out.npz'}"]
    subprocess.run(
        [sys.executable, "-m", "jaxact.exported", str(out), *files], cwd=ROOT, check=True
    )
    scored, stored = np.load(tmp_path / "out.npz"), np.load(workdir / "predictions" / "test.npz")
    assert scored["ids"].tolist() == stored["ids"].tolist()
    np.testing.assert_allclose(scored["scores"], stored["scores"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        metrics.softmax(scored["rgb_logits"]), stored["rgb"], rtol=0, atol=1e-5
    )


def test_an_export_names_what_differs_from_the_training(rgb, tmp_path):
    """The contract is that of the config given, so a difference from the run's is said aloud.

    Data are not needed; the names of the classes are then those of the run.
    """
    flags = (*ONE_STREAM, "--config.data.mean=1,2,3", "--config.optim.lr=3", "--export_batch=1")
    more = ("--mode=export", f"--checkpoint={rgb[1]}", f"--output={tmp_path / 'out'}")
    ended = command.trained(*flags, *more)
    said = [line.split(" was ")[0] for line in ended.err.splitlines() if " was " in line]
    assert said == ["config.data.mean", "config.data.test.clips"]
    contract = json.loads((tmp_path / "out" / "contract.json").read_text())
    assert contract["classes"] == json.loads((rgb[1] / "config.json").read_text())["classes"]
    inside = contract["preprocessing"]["inside_the_program"]
    assert inside["normalise"]["mean"] == [1.0, 2.0, 3.0]
    assert contract["inputs"]["rgb"]["shape"][0] == 1


def test_what_an_evaluation_sees_otherwise_than_the_training_is_said(rgb, done):
    flags, workdir = rgb
    changed = (*flags, "--config.data.mean=1,2,3", f"--workdir={workdir}")
    ended = done(*changed, "--mode=eval", "--config.eval.split=val")
    lines = ended.err.splitlines()
    said = [line for line in lines if " was " in line and "is replaced" not in line]
    assert len(said) == 1 and said[0].startswith("config.data.mean was [")
    assert said[0].endswith("is [1, 2, 3] here")


def test_a_run_of_another_number_of_classes(rgb, refused, tmp_path):
    error = refused(
        *(*ONE_STREAM, "--config.model.classes=5", "--mode=export"),
        *(f"--checkpoint={rgb[1]}", f"--output={tmp_path / 'out'}"),
    )
    assert "has 8 classes" in error and "this config 5" in error and str(rgb[1]) in error


@pytest.mark.parametrize("content", ['{"config": {"da', "{}", "[1]"])
def test_a_damaged_config_of_a_run_is_one_line(rgb, refused, tmp_path, content):
    flags, workdir = rgb
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(workdir / "checkpoints")
    (tmp_path / "run" / "config.json").write_text(content)
    where = f"--workdir={tmp_path / 'run'}"
    named = str(tmp_path / "run" / "config.json")
    assert named in refused(*flags, where, "--mode=eval")
    assert named in refused(*ONE_STREAM, where, "--mode=export", f"--output={tmp_path / 'out'}")
    assert named in refused(*flags, where, "--config.length=3 steps")
    assert (tmp_path / "run" / "config.json").read_text() == content


def test_exports_that_are_refused(refused, tmp_path):
    flags = (TOY, "--mode=export", f"--workdir={tmp_path}")
    assert "--output is missing" in refused(*flags)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert "full is not empty" in refused(*flags, f"--output={tmp_path / 'full'}")
    out = tmp_path / "out"
    assert "holds no checkpoint" in refused(*flags, f"--output={out}")
    assert "--export_batch=-1" in refused(*flags, f"--output={out}", "--export_batch=-1")
    assert not out.exists()


# --------------------------------------------------------------------------------------- ensemble


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two toy trainings of other seeds, with validation predictions: their work dirs."""
    folders = []
    for seed in (0, 1):
        workdir = tmp_path_factory.mktemp(f"seed{seed}")
        config = recipe.get_config()
        config.seed, config.length = seed, "1 epochs"
        loop.train(open_run(config, workdir))
        config.eval.split = "val"
        evaluate.evaluate_split(open_run(config, workdir), "")
        folders.append(workdir)
    return folders


def ensemble(*flags):
    return ("--mode=ensemble", *flags)


def test_an_ensemble_of_two_runs(runs, tmp_path):
    flags = (f"--runs={runs[0]},{runs[1]}", "--weights=3,1", f"--workdir={tmp_path}")
    ended = command.trained(*ensemble(*flags))
    stored = [np.load(run / "predictions" / "test.npz") for run in runs]
    fused = np.load(tmp_path / "predictions" / "test.npz")
    assert fused["ids"].tolist() == stored[0]["ids"].tolist()
    assert fused["label"].tolist() == stored[0]["label"].tolist()
    want = sum(w * metrics.softmax(s["scores"]) for w, s in zip((0.75, 0.25), stored, strict=True))
    np.testing.assert_allclose(fused["scores"], want, rtol=1e-6)
    results = json.loads((tmp_path / "ensemble.json").read_text())
    assert results["scores"] == pytest.approx(metrics.classification(want, fused["label"]))
    assert results["weights"] == {str(runs[0]): 0.75, str(runs[1]): 0.25}
    for run in runs:
        own = json.loads((run / "results.json").read_text())["scores"]
        assert results["runs"][str(run)]["top1"] == own["top1"]
    guesses = [s["scores"].argmax(1) for s in stored]
    agree = (guesses[0] == guesses[1]).mean()
    np.testing.assert_allclose(results["agreement"], [[1, agree], [agree, 1]])
    last = next(line for line in ended.out.splitlines() if line.startswith("ensemble"))
    assert f"{results['scores']['top1']:.4f}" in last


def test_an_ensemble_in_an_ensemble(runs, done, refused, tmp_path):
    """What an ensemble writes is a run's predictions again; a file may be named, too."""
    both = tmp_path / "both"
    done(*ensemble(f"--runs={runs[0]},{runs[1]}", f"--workdir={both}"))
    file = runs[0] / "predictions" / "test.npz"
    three = (f"--runs={both},{file}:scores", "--weights=2,1", "--space=logit")
    done(*ensemble(*three, f"--workdir={tmp_path / 'three'}"))
    fused = np.load(tmp_path / "three" / "predictions" / "test.npz")["scores"]
    stored = metrics.softmax(np.load(file)["scores"].astype(float))
    logs = 2 / 3 * np.log(np.load(both / "predictions" / "test.npz")["scores"].astype(float))
    np.testing.assert_allclose(fused, metrics.softmax(logs + np.log(stored) / 3), rtol=1e-5)
    same = refused(*ensemble(f"--runs={both},{runs[0]}", f"--workdir={both}"))
    assert "is one of --runs" in same


@pytest.mark.parametrize("method", ["grid", "least_squares"])
def test_weights_are_fitted_on_validation(runs, done, tmp_path, method):
    flags = (f"--runs={runs[0]},{runs[1]}", f"--search={method}", f"--workdir={tmp_path}")
    ended = done(*ensemble(*flags))
    results = json.loads((tmp_path / "ensemble.json").read_text())
    fitted = results["search"]
    assert fitted["method"] == method and fitted["split"] == "val" and fitted["examples"] == 21
    assert sum(results["weights"].values()) == pytest.approx(1)
    assert f"weights fitted by {method} on 21 val examples" in ended.out
    tables = [np.load(run / "predictions" / "val.npz") for run in runs]
    alone = [metrics.topk(metrics.softmax(t["scores"]), t["label"]) for t in tables]
    if method == "grid":
        assert fitted["scores"]["top1"] >= max(alone)


def test_weights_are_not_fitted_on_what_is_scored(runs, refused, tmp_path):
    """Runs whose val and test splits are the same examples, and runs without val predictions."""
    folders = []
    for index, run in enumerate(runs):
        folder = tmp_path / f"run{index}" / "predictions"
        folder.mkdir(parents=True)
        (folder / "test.npz").write_bytes((run / "predictions" / "test.npz").read_bytes())
        folders.append(folder)
    flags = ensemble(
        f"--runs={folders[0].parent},{folders[1].parent}",
        *("--search=grid", f"--workdir={tmp_path / 'out'}"),
    )
    line = refused(*flags)
    assert "val.npz" in line and "--mode=eval --config.eval.split=val" in line
    assert f"--workdir={folders[0].parent}" in line
    for folder in folders:
        (folder / "val.npz").write_bytes((folder / "test.npz").read_bytes())
    line = refused(*flags)
    assert "would fit weights on 21 of the 21 examples that are scored" in line
    assert "'test0'" in line
    assert not (tmp_path / "out").exists()


def test_weights_are_not_fitted_on_another_checkpoint(runs, done, refused, tmp_path):
    """val.npz of one training and test.npz of another would be fitted and scored together."""
    folders = []
    for index, run in enumerate(runs):
        folders.append(shutil.copytree(run / "predictions", tmp_path / f"{index}" / "predictions"))
    flags = ensemble(
        f"--runs={folders[0].parent},{folders[1].parent}",
        *("--search=grid", f"--workdir={tmp_path / 'out'}"),
    )
    done(*flags)
    shutil.copy(runs[1] / "predictions" / "val.npz", folders[0])
    line = refused(*flags)
    assert f"--runs={folders[0].parent}: --search needs both splits from the same weights" in line
    assert line.count("checkpoints/6") == 2
    bare = np.load(runs[0] / "predictions" / "val.npz")
    kept = {name: bare[name] for name in bare.files if not name.startswith("origin_")}
    np.savez(folders[0] / "val.npz", **kept)
    assert "val.npz is of an unknown checkpoint" in refused(*flags)
    both = predictions.stored(tmp_path / "out" / "predictions" / "test.npz")
    assert both.checkpoint.startswith("ensemble of ") and both.checkpoint.count("points/6") == 2


def test_ensembles_that_are_refused(runs, refused, tmp_path):
    one, two = runs
    both = f"--runs={one},{two}"
    out = f"--workdir={tmp_path / 'out'}"
    for flags, said in (
        ((both,), ["--workdir is missing"]),
        ((out,), ["--runs is missing"]),
        ((both, f"--workdir={one}"), ["work dir of a training"]),
        ((f"--runs={one}", out), ["2 or more"]),
        ((f"--runs={one},{one}", out), ["twice"]),
        ((f"--runs={one},{tmp_path / 'none'}", out), ["none does not exist"]),
        ((f"--runs={one},{tmp_path}", out), ["test.npz does not exist", "--mode=eval"]),
        (
            (f"--runs={one},{two}:rgb", out),
            ["'rgb'", "ids, label, scores", "streams to choose: none"],
        ),
        ((both, "--weights=1", out), ["--weights=1 are 1", "2, one for each run"]),
        ((both, "--weights=1,x", out), ["--weights=1,x", "numbers"]),
        ((both, "--weights=1,1", "--search=grid", out), ["exclude each other"]),
        ((both, "--search=gird", out), ["--search=gird", "grid, least_squares"]),
        ((both, "--space=logits", out), ["--space=logits", "prob, score, logit"]),
        ((both, "--split=train", out), ["--split=train", "val, test"]),
        ((both, "--search=grid", "--split=val", out), ["--split=test"]),
        ((both, "--search=least_squares", "--space=logit", out), ["--space=prob"]),
    ):
        line = refused(*ensemble(*flags))
        for part in said:
            assert part in line, line
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_predictions(runs, refused, tmp_path):
    def fused(name):
        flags = (f"--runs={runs[0]},{tmp_path / name}", f"--workdir={tmp_path / 'out'}")
        return refused(*ensemble(*flags))

    (tmp_path / "torn.npz").write_bytes((runs[0] / "predictions" / "test.npz").read_bytes()[:99])
    np.savez(tmp_path / "objects.npz", ids=np.array([{}]), scores=np.ones((1, 3)))
    np.savez(tmp_path / "label.npz", ids=["a"], scores=np.ones((1, 3)), label=[3])
    np.savez(tmp_path / "others.npz", ids=["a"], scores=np.ones((1, 3)), label=[2])
    assert "torn.npz is no .npz file" in fused("torn.npz")
    assert "objects.npz is no .npz file of plain arrays" in fused("objects.npz")
    assert "label 3; allowed: below 3" in fused("label.npz")
    line = fused("others.npz")
    assert "has no scores for 21 of the 21 examples" in line and "'test0', 'test1'" in line


def test_a_config_given_to_an_ensemble_is_named_as_unused(runs, done, tmp_path):
    flags = (TOY, f"--runs={runs[0]},{runs[1]}", f"--workdir={tmp_path}")
    assert "--config is not used" in done(*ensemble(*flags)).err

"""The loop: what is logged, validated, kept and reported, whole or in pieces."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from altered import with_fields
from toy import blobs, recipe

from jaxact.data.pipeline import eval_batches
from jaxact.train import checkpoint, loop, restore
from jaxact.train.run import open_run

RESULTS = {
    *("split", "scores", "best_step", "best_val", "weights", "parameters", "examples_per_s"),
    *("wall_s", "steps", "stop_reason", "versions"),
}


def config(length="2 epochs", **fields):
    """The toy's config: 6 steps an epoch."""
    options = recipe.get_config()
    options.length = length
    return with_fields(options, **fields)


def train(workdir, **fields):
    return loop.train(open_run(config(**fields), workdir))


def rows(workdir, split=None, timed=False):
    """Rows of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in lines:
        if not timed:
            row.pop("examples_per_s", None)
    return [row for row in lines if split in (None, row["split"])]


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


class Killed(BaseException):
    """Stands for a process that ends without any warning."""


def kill_at(monkeypatch, step):
    """The next training ends before it can log this step or anything after it."""
    log = loop.log

    def logged(setup, now):
        if now >= step:
            raise Killed
        log(setup, now)

    monkeypatch.setattr(loop, "log", logged)


# ------------------------------------------------------------------------------------- in one piece


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(work dir, results) of an undisturbed training of three epochs."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(workdir, length="3 epochs")


def test_results(whole):
    workdir, results = whole
    assert json.loads((workdir / "results.json").read_text()) == results
    assert results.keys() == RESULTS
    assert results["steps"] == 18 and results["stop_reason"] == "end of the plan"
    assert results["parameters"] == 4 * 16 + 16 + 2 * 16 + 16 * 3 + 3
    assert results["best_val"].keys() == results["scores"].keys() == {"top1", "nll"}
    assert results["examples_per_s"] > 0 and results["wall_s"] > 0


def test_rows_of_the_log(whole):
    lines = rows(whole[0])
    assert [row["step"] for row in lines if row["split"] == "train"] == [3, 6, 9, 12, 15, 18]
    assert [row["step"] for row in lines if row["split"] == "val"] == [6, 12, 18]
    assert [row["step"] for row in lines if row["split"] == "test"] == [18]
    assert all(row["epoch"] == pytest.approx(row["step"] / 6, abs=1e-6) for row in lines)
    assert [row["step"] for row in lines] == sorted(row["step"] for row in lines)


def test_losses_are_means_since_the_last_line_and_rates_are_the_last(whole, tmp_path):
    train(tmp_path, length="3 epochs", save__log_every=1)
    fine, coarse = rows(tmp_path, "train"), rows(whole[0], "train")
    assert len(fine) == 18
    for number, row in enumerate(coarse):
        part = fine[3 * number : 3 * number + 3]
        for name in ("loss", "loss/ce", "grad_norm"):
            assert row[name] == pytest.approx(np.mean([p[name] for p in part]), rel=1e-6)
        assert row["lr"] == part[-1]["lr"]


def test_predictions_are_those_of_the_named_weights(whole):
    """results.json says ema, so the stored scores are what the averaged weights give."""
    workdir, results = whole
    assert results["weights"] == "ema"
    stored = np.load(workdir / "predictions" / "test.npz")
    assert stored["ids"].tolist() == [f"test{k}" for k in range(21)]
    run = open_run(config(), workdir)
    folder = workdir / "checkpoints" / str(results["best_step"])
    weights = checkpoint.read_weights(folder)
    view = run.plan().rows[0].stage_data
    batch = next(eval_batches(run.config, run.task, run.source("test"), view, "test", 21))
    averaged = restore.stored_variables(weights)
    raw = {"params": weights["params"], **weights["model_state"]}
    scores = [run.task.training.model.apply(v, batch["x"], train=False) for v in (averaged, raw)]
    np.testing.assert_allclose(stored["scores"], scores[0], atol=1e-5)
    assert np.abs(stored["scores"] - scores[1]).max() > 1e-3
    right = stored["scores"].argmax(1) == stored["label"]
    assert results["scores"]["top1"] == pytest.approx(right.mean())


def test_a_checkpoint_chosen_on_what_is_tested_is_said(tmp_path, monkeypatch, capfd):
    """Both splits with the same examples; one validation alone chooses nothing."""
    apart = blobs.Source.__init__

    def same(self, config, split):
        apart(self, config, "train" if split == "train" else "test")

    monkeypatch.setattr(blobs.Source, "__init__", same)
    results = train(tmp_path / "often")
    assert results["selected_on_test"] is True
    said = capfd.readouterr().err
    assert "warning: the checkpoint is the best of 2 validations on 21 of the 21 examples" in said
    assert "selected_on_test" not in train(tmp_path / "once", eval__every="100%")
    assert "warning: the checkpoint" not in capfd.readouterr().err


def test_raw_weights_are_named_too(tmp_path):
    assert train(tmp_path, length="3 steps", optim__ema=0.0)["weights"] == "raw"


def test_the_final_test_is_that_of_the_best_checkpoint(tmp_path):
    """A learning rate that wrecks the second half; val and test hold the same examples here."""
    stages = (blobs.Stage(), blobs.Stage(start="2 epochs", lr=(300.0,)))
    results = train(
        tmp_path,
        length="4 epochs",
        stages=stages,
        optim__schedule="constant",
        eval__metric="nll",
        eval__maximise=False,
    )
    validated = {row["step"]: row["nll"] for row in rows(tmp_path, "val")}
    assert results["best_step"] == min(validated, key=validated.get) <= 12
    assert results["scores"]["nll"] == pytest.approx(validated[results["best_step"]], rel=1e-5)
    assert results["best_val"]["nll"] == pytest.approx(validated[results["best_step"]], rel=1e-6)
    assert validated[24] > 2 * results["scores"]["nll"]
    assert set(steps(tmp_path)) == {results["best_step"], 18, 24}


def test_the_last_step_counts_even_if_nothing_is_due(tmp_path):
    train(tmp_path, length="8 steps", eval__every="5 steps", save__every="100 steps")
    assert [row["step"] for row in rows(tmp_path, "val")] == [5, 8]
    assert [row["step"] for row in rows(tmp_path, "train")] == [3, 5, 6, 8]
    assert steps(tmp_path) == [5, 8]


def test_validation_begins_when_asked(tmp_path):
    fields = dict(eval__every="2 steps", eval__first="1 epochs", save__every="3 steps")
    train(tmp_path, length="10 steps", **fields, save__latest=9)
    assert [row["step"] for row in rows(tmp_path, "val")] == [6, 8, 10]
    assert steps(tmp_path) == [3, 6, 8, 9, 10]


def test_a_final_test_on_val_is_no_second_validation(tmp_path):
    train(tmp_path, length="6 steps", eval__split="val")
    assert [(row["step"], row["split"]) for row in rows(tmp_path)][-2:] == [
        (6, "train"),
        (6, "val"),
    ]
    assert (tmp_path / "predictions" / "val.npz").is_file()


# ---------------------------------------------------------------------------------------- in pieces


@pytest.mark.parametrize("death", [2, 6, 9, 13, 18])
def test_a_killed_run_has_every_row_once(whole, tmp_path, monkeypatch, death):
    with monkeypatch.context() as patch:
        kill_at(patch, death)
        with pytest.raises(Killed):
            train(tmp_path, length="3 epochs")
    assert not (tmp_path / "results.json").exists()
    results = train(tmp_path, length="3 epochs")
    assert rows(tmp_path) == rows(whole[0])
    assert results["scores"] == whole[1]["scores"]
    one, other = (checkpoint.read_weights(d / "checkpoints" / "18") for d in (whole[0], tmp_path))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_very_step(whole, tmp_path, monkeypatch, number):
    log = loop.log

    def logged(setup, now):
        if now == 9:
            signal.raise_signal(number)
        log(setup, now)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "log", logged)
        before = signal.getsignal(number)
        with pytest.raises(loop.Interrupted) as caught:
            train(tmp_path, length="3 epochs")
        assert signal.getsignal(number) is before
    assert caught.value.number == number
    assert steps(tmp_path) == [6, 9]
    train(tmp_path, length="3 epochs")
    assert rows(tmp_path) == rows(whole[0])


def test_half_a_line_is_forgotten(whole, tmp_path):
    """A kill in the middle of a write."""
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 19, "spl')
    train(workdir, length="4 epochs")
    lines = rows(workdir)
    assert lines[: len(rows(whole[0]))] == rows(whole[0])
    assert [row["step"] for row in lines if row["split"] == "train"][-2:] == [21, 24]


def test_a_kill_between_the_last_checkpoint_and_the_results(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    (workdir / "results.json").unlink()
    (workdir / "predictions" / "test.npz").unlink()
    results = train(workdir, length="3 epochs")
    assert rows(workdir) == rows(whole[0])
    assert results["scores"] == whole[1]["scores"]
    assert results["stop_reason"] == "end of the plan"
    assert (workdir / "predictions" / "test.npz").is_file()


def test_a_complete_run_keeps_its_results(whole, capfd):
    workdir, results = whole
    names = ("results.json", "metrics.jsonl", "predictions/test.npz")
    before = [(workdir / name).read_bytes() for name in names]
    assert train(workdir, length="3 epochs") == results
    assert [(workdir / name).read_bytes() for name in names] == before
    assert "already complete (end of the plan)" in capfd.readouterr().err


def test_a_longer_run_goes_on_and_says_what_changed(whole, tmp_path, capfd):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    results = train(workdir, length="4 epochs", optim__lr=0.05)
    said = capfd.readouterr().err
    assert "resumed from step 18" in said
    assert "config.length was '3 epochs' when this work dir was made and is '4 epochs' now" in said
    assert "config.optim.lr was 0.1 when this work dir was made and is 0.05 now" in said
    assert results["steps"] == 24
    assert [row["step"] for row in rows(workdir, "test")] == [18, 24]
    stored = json.loads((workdir / "config.json").read_text())["config"]
    assert stored["length"] == "4 epochs" and stored["optim"]["lr"] == 0.05


def test_own_checkpoints_come_before_init_from(whole, tmp_path, capfd):
    """What another run gave is in them already; it need not exist any more."""
    origin = shutil.copytree(whole[0], tmp_path / "origin")
    fields = dict(init_from=str(origin))
    results = train(tmp_path / "new", length="1 epochs", **fields)
    assert results["steps"] == 6
    assert "8 of 8 arrays loaded (ema weights)" in (tmp_path / "new/init_report.txt").read_text()
    first = rows(tmp_path / "new", "train")[0]["loss"]
    assert first < rows(whole[0], "train")[0]["loss"]  # it did not start from nothing
    shutil.rmtree(origin)
    capfd.readouterr()
    assert train(tmp_path / "new", length="2 epochs", **fields)["steps"] == 12
    assert "resumed from step 6" in capfd.readouterr().err


# ----------------------------------------------------------------------------------- early stopping

PATIENT = dict(length="10 epochs", eval__patience=2, eval__min_delta=1.0)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Nothing after the first validation counts as better: the third one stops."""
    workdir = tmp_path_factory.mktemp("stopped")
    return workdir, train(workdir, **PATIENT)


def test_early_stopping(stopped):
    workdir, results = stopped
    assert results["steps"] == 18
    assert results["stop_reason"] == "no improvement of top1 in 2 validations"
    assert [row["step"] for row in rows(workdir, "val")] == [6, 12, 18]


@pytest.mark.parametrize("death", [4, 9, 15])
def test_early_stopping_survives_a_resume(stopped, tmp_path, monkeypatch, death):
    with monkeypatch.context() as patch:
        kill_at(patch, death)
        with pytest.raises(Killed):
            train(tmp_path, **PATIENT)
    results = train(tmp_path, **PATIENT)
    assert (results["steps"], results["stop_reason"]) == (18, stopped[1]["stop_reason"])
    assert rows(tmp_path) == rows(stopped[0])


def test_a_run_that_stopped_early_stays_stopped(stopped, tmp_path):
    workdir = shutil.copytree(stopped[0], tmp_path / "run")
    assert train(workdir, **PATIENT) == stopped[1]
    (workdir / "results.json").unlink()  # a kill just after the last validation
    results = train(workdir, **PATIENT)
    assert results["steps"] == 18 and results["stop_reason"] == stopped[1]["stop_reason"]
    assert rows(workdir) == rows(stopped[0])


def test_improvement_restarts_the_count(tmp_path):
    """nll falls all the time at a small learning rate: patience 1 never runs out."""
    fields = dict(eval__metric="nll", eval__maximise=False, eval__patience=1, optim__lr=0.02)
    results = train(tmp_path, length="4 epochs", **fields, optim__ema=0.0)
    falls = [row["nll"] for row in rows(tmp_path, "val")]
    assert falls == sorted(falls, reverse=True) and len(falls) == 4
    assert results["stop_reason"] == "end of the plan"

"""Training: resumes by itself, evaluates, keeps the best and the newest, ends with a test and a
report."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np

from jaxact import config as schema
from jaxact.data.pipeline import train_batches
from jaxact.train import finish, hosts, mesh, stage_change, workdir
from jaxact.train import state as states
from jaxact.train.evaluation import ahead, evaluate
from jaxact.train.run import Run
from jaxact.train.setup import Diverged, Fit, Interrupted, open_fit

__all__ = ["Diverged", "Fit", "Interrupted", "train"]


def train(run: Run) -> dict[str, Any]:
    """Trains to the end of the plan and returns what results.json holds.

    Raises:
      Diverged: a loss or gradient norm is not finite; the last checkpoint before it is kept.
      Interrupted: after saving, on SIGTERM or SIGINT.
      UserError: see `build`, `checkpoint` and the task.
    """
    began = time.monotonic()
    fit = open_fit(run)
    try:
        with stop_signals(fit):
            reason = over(fit)
            results = finish.earlier_results(fit) if reason else None
            if results is None:
                reason = reason or steps(fit)
                fit.files.wait()
                results = finish.finish(fit, reason, began)
        return results
    finally:
        # However it ends, a checkpoint on its way to disk gets there.
        fit.files.close()
        fit.book.close()


def over(fit: Fit) -> str:
    """Why nothing is left to train, or ""."""
    options = fit.run.config.eval
    if int(fit.state.step) >= fit.plan.total:
        return "end of the plan"
    if patience_over(fit):
        return f"no improvement of {options.metric} in {options.patience} validations"
    return ""


def steps(fit: Fit) -> str:
    """Runs the remaining steps; returns why it stopped."""
    run, config, plan = fit.run, fit.run.config, fit.plan
    size = config.batch_size
    step = int(fit.state.step)
    for row, start, end in plan.segments(step):
        stage_change.enter(fit, row, start)
        mine = mesh.rows(run.mesh, size)
        host = train_batches(
            config, run.task, run.source("train"), row.stage_data, start, end, mine
        )
        with contextlib.closing(timed(fit, host)) as stream:
            batches = ahead(stream, lambda batch: mesh.split(batch, run.mesh))
            begin = time.monotonic()
            for batch in batches:
                fit.state, metrics = fit.programs[row.program](fit.state, batch)
                step += 1
                fit.pending.append((step, metrics))
                if len(fit.pending) > 2:
                    jax.block_until_ready(fit.pending[-3][1]["loss"])
                fit.progress.steps += 1
                last = step == plan.total
                if hosts.stopping(step):
                    fit.signal = signal.SIGTERM
                if fit.signal or last or step % config.save.log_every == 0 or due_any(fit, step):
                    flush(fit, step)
                    fit.progress.busy += time.monotonic() - begin
                    log(fit, step, size)
                    stop = milestones(fit, step, row.stage_data, last)
                    begin = time.monotonic()
                    if stop:
                        return stop
            fit.progress.busy += time.monotonic() - begin
    return "end of the plan"


def timed(fit: Fit, batches: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Counts the seconds spent waiting for the host."""
    with contextlib.closing(batches):
        while True:
            begin = time.monotonic()
            batch = next(batches, None)
            fit.progress.waited += time.monotonic() - begin
            if batch is None:
                return
            yield batch


def duration(fit: Fit, text: str, field: str) -> int:
    """Steps of a duration of the config."""
    return schema.steps(text, per_epoch=fit.plan.per_epoch, total=fit.plan.total, field=field)


def due(fit: Fit, step: int, every: str, first: str, field: str) -> bool:
    """Is something that happens `every` duration from `first` on due after this step?"""
    count = duration(fit, every, f"{field}.every")
    return count > 0 and step % count == 0 and step >= duration(fit, first, f"{field}.first")


def due_any(fit: Fit, step: int) -> bool:
    """Evaluation or checkpoint due?"""
    config = fit.run.config
    return due(fit, step, config.eval.every, config.eval.first, "eval") or save_due(fit, step)


def save_due(fit: Fit, step: int) -> bool:
    """Checkpoint due, to go on from or to keep?"""
    save = fit.run.config.save
    kept = duration(fit, save.keep_every, "save.keep_every")
    return due(fit, step, save.every, "0", "save") or (kept > 0 and step % kept == 0)


def flush(fit: Fit, step: int) -> None:
    """Fetches the metrics of the steps since the last flush and refuses what is not finite."""
    for number, metrics in fit.pending:
        found = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        bad.sort(key=lambda name: not name.startswith("loss"))  # where it began
        if bad:
            kept = fit.files.steps()
            where = f"checkpoint {kept[-1]}" if kept else "no checkpoint yet"
            raise Diverged(
                f"training diverged at step {number}: {bad[0]} is {found[bad[0]]}; "
                f"last good state: {where} in {fit.run.workdir}; a lower config.optim.lr or "
                "config.optim.clip > 0 may help"
            )
        fit.window.append(found)
    fit.pending.clear()


def log(fit: Fit, step: int, size: int) -> None:
    """Averages the steps since the last line; lr and other schedule values are the last ones."""
    names = fit.window[-1]
    means = {name: float(np.mean([row[name] for row in fit.window])) for name in names}
    numbers = {
        # Of the schedule the last value, of everything measured the mean.
        name: names[name] if name in fit.plan.rows[0].values else means[name]
        for name in names
    }
    fit.window.clear()
    numbers["examples_per_s"] = fit.progress.rate
    fit.book.add(step, "train", numbers)
    shown = {name: numbers[name] for name in ("loss", "lr")}
    workdir.say(fit.progress.line(step, step / fit.plan.per_epoch, shown))


def milestones(fit: Fit, step: int, stage_data: Any, last: bool) -> str:
    """Validation, checkpoint, early stop and signals; returns a reason to stop or ""."""
    config = fit.run.config
    scores = None
    if last or due(fit, step, config.eval.every, config.eval.first, "eval"):
        scores = validate(fit, step, stage_data)
    if last or scores or fit.signal or save_due(fit, step):
        fit.files.save(fit.state, scores)
    if fit.signal:
        fit.files.wait()
        workdir.say(f"saved step {step} of {fit.plan.total}; the same command goes on from there")
        raise Interrupted(fit.signal)
    return over(fit) if scores and not last else ""


def validate(fit: Fit, step: int, stage_data: Any) -> dict[str, float]:
    """Scores of the validation split with the averaged weights where there are any."""
    begin = time.monotonic()
    variables = states.weights(fit.state, ema=True)
    scores, _, ids = evaluate(fit.run, fit.programs["val"], variables, "val", stage_data)
    metric = fit.run.config.eval.metric
    if metric not in scores:
        raise schema.UserError(
            f"config.eval.metric={metric!r} is not measured; allowed: {', '.join(sorted(scores))}"
        )
    fit.book.add(step, "val", scores)
    shown = " ".join(f"{k} {v:.4f}" for k, v in scores.items())
    workdir.say(f"val   {step}: {shown} ({len(ids)} examples, {time.monotonic() - begin:.1f} s)")
    return scores


def patience_over(fit: Fit) -> bool:
    """Early stopping, derived from the validation rows so far (so a resumed run agrees)."""
    options = fit.run.config.eval
    if not options.patience:
        return False
    sign = 1 if options.maximise else -1
    best, since = -math.inf, 0
    for row in fit.book.rows:
        if row["split"] == "val":
            now = sign * row[options.metric]
            best, since = (now, 0) if now > best + options.min_delta else (best, since + 1)
    return since >= options.patience


@contextlib.contextmanager
def stop_signals(fit: Fit) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a save at the next step; a second one kills as usual.

    Of several hosts JAX hears SIGTERM, and tells all of them (`hosts.stopping`).
    """
    if hosts.several():
        old = signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, old)
        return

    def ask(number: int, frame: Any) -> None:
        fit.signal = number
        signal.signal(number, before[signal.Signals(number)])

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

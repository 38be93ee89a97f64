"""Training: resumes by itself, evaluates, keeps the best and the newest, ends with a test and a
report."""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np

from jaxact import config as schema
from jaxact.data.pipeline import train_batches
from jaxact.train import build, checkpoint, journal, mesh, summary
from jaxact.train import state as states
from jaxact.train.evaluation import ahead, evaluate
from jaxact.train.plan import Plan
from jaxact.train.state import TrainState
from jaxact.train.step import make_eval_step, make_train_step


class Diverged(Exception):
    """A training number is no longer finite. Exit code 3."""


class Interrupted(Exception):
    """SIGTERM or SIGINT arrived and the state is saved. Exit code 128 + signal."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclasses.dataclass
class Fit:
    """One training in progress: the record that fills as it runs."""

    run: build.Run
    plan: Plan
    state: TrainState
    groups: states.Groups
    book: journal.Journal
    files: checkpoint.Checkpoints
    progress: journal.Progress
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)
    pending: list[tuple[int, Any]] = dataclasses.field(default_factory=list)
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)
    signal: int = 0


def train(run: build.Run) -> dict[str, Any]:
    """Trains to the end of the plan and returns what results.json holds.

    Raises:
      Diverged: a loss or gradient norm is not finite; the last checkpoint before it is kept.
      Interrupted: after saving, on SIGTERM or SIGINT.
      UserError: see `build`, `checkpoint` and the task.
    """
    began = time.monotonic()
    fit = prepare(run)
    with stop_signals(fit):
        reason = over(fit)
        results = earlier_results(fit) if reason else None
        if results is None:
            reason = reason or steps(fit)
            fit.files.wait()
            results = finish(fit, reason, began)
    fit.files.close()
    fit.book.close()
    return results


def prepare(run: build.Run) -> Fit:
    """Plan, state (restored where there is one), compiled programs."""
    config, say = run.config, journal.say
    plan = run.plan()
    first = plan.rows[0].view
    for purpose in ("val", config.eval.split):
        run.source(purpose)  # what is wrong with it is said now, not after the first epoch
    make_folder(run.workdir)
    evaluation = config.eval
    files = checkpoint.Checkpoints(
        run.workdir / "checkpoints", config.save, evaluation.metric, evaluation.maximise, say
    )
    if files.steps():
        # What init_from gave is in the checkpoint already.
        fresh = dataclasses.replace(config, init_from="")
        state, groups = build.start(dataclasses.replace(run, config=fresh), first, say)
        restored = files.restore(state)
        state = restored if restored is not None else state
        say(f"resumed from step {int(state.step)} of {run.workdir}")
    else:
        state, groups = build.start(run, first, say)
    # Only now: a work dir whose checkpoints do not fit keeps its files as they are.
    book = journal.Journal(run.workdir, config, plan.per_epoch, plan.total)
    book.resume(int(state.step))
    say(plan.table())
    say(groups.text(state.params))
    progress = journal.Progress(plan.total, config.batch_size)
    fit = Fit(run, plan, state, groups, book, files, progress)
    compile_programs(fit)
    return fit


def make_folder(path: pathlib.Path) -> None:
    """Makes the work dir. Raises UserError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise schema.UserError(f"--workdir={path} cannot be made: {error.strerror}") from error


def over(fit: Fit) -> str:
    """Why nothing is left to train, or ""."""
    options = fit.run.config.eval
    if int(fit.state.step) >= fit.plan.total:
        return "end of the plan"
    if patience_over(fit):
        return f"no improvement of {options.metric} in {options.patience} validations"
    return ""


def earlier_results(fit: Fit) -> dict[str, Any] | None:
    """results.json of this very step: the training was complete before."""
    path = fit.run.workdir / "results.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    if results["steps"] != int(fit.state.step):
        return None
    journal.say(f"already complete ({results['stop_reason']}); see {path}, or use --mode=eval")
    return results


def compile_programs(fit: Fit) -> None:
    """One program for each distinct batch shape and trainable set still ahead, before step 1."""
    run = fit.run
    sharding = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec("data"))
    for row, _, _ in fit.plan.segments(int(fit.state.step)):
        if row.program in fit.programs:
            continue
        begin = time.monotonic()
        step = make_train_step(run.config, run.task, fit.plan, fit.groups, row)
        batch = build.abstract_batch(run.task, row.view, "train", run.config.batch_size, sharding)
        compiled = step.lower(fit.state, batch).compile()
        fit.programs[row.program] = compiled
        journal.say(
            f"compiled the step of stage {row.index} in {time.monotonic() - begin:.1f} s; "
            f"{memory(compiled)}"
        )
    for purpose in {"val", run.config.eval.split}:
        fit.programs[purpose] = make_eval_step(run.task, purpose)


def memory(compiled: Any) -> str:
    """Bytes a device needs for a compiled program, as far as the backend tells."""
    found = compiled.memory_analysis()
    if found is None:
        return "memory unknown"
    mib = 2**20
    return (
        f"{found.argument_size_in_bytes / mib:.0f} MiB of arguments and "
        f"{found.temp_size_in_bytes / mib:.0f} MiB of temporaries on each device"
    )


def steps(fit: Fit) -> str:
    """Runs the remaining steps; returns why it stopped."""
    run, config, plan = fit.run, fit.run.config, fit.plan
    size = config.batch_size
    step = int(fit.state.step)
    for row, start, end in plan.segments(step):
        host = train_batches(config, run.task, run.source("train"), row.view, start, end)
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
                if fit.signal or last or step % config.save.log_every == 0 or due_any(fit, step):
                    flush(fit, step)
                    fit.progress.busy += time.monotonic() - begin
                    log(fit, step, size)
                    stop = milestones(fit, step, row.view, last)
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
    return due(fit, step, config.eval.every, config.eval.first, "eval") or due(
        fit, step, config.save.every, "0", "save"
    )


def flush(fit: Fit, step: int) -> None:
    """Fetches the metrics of the steps since the last flush and refuses what is not finite."""
    for number, metrics in fit.pending:
        found = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        bad.sort(key=lambda name: not name.startswith("loss"))  # where it began
        if bad:
            kept = fit.files.steps()
            where = f"checkpoint {kept[-1]}" if kept else "no checkpoint yet"
            fit.files.close()
            fit.book.close()
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
        name: means[name] if name.startswith(("loss", "grad_norm")) else names[name]
        for name in names
    }
    fit.window.clear()
    numbers["examples_per_s"] = fit.progress.rate
    fit.book.add(step, "train", numbers)
    shown = {name: numbers[name] for name in ("loss", "lr")}
    journal.say(fit.progress.line(step, step / fit.plan.per_epoch, shown))


def milestones(fit: Fit, step: int, stage: Any, last: bool) -> str:
    """Validation, checkpoint, early stop and signals; returns a reason to stop or ""."""
    config = fit.run.config
    scores = None
    if last or due(fit, step, config.eval.every, config.eval.first, "eval"):
        scores = validate(fit, step, stage)
    if last or scores or fit.signal or due(fit, step, config.save.every, "0", "save"):
        fit.files.save(fit.state, scores)
    if fit.signal:
        fit.files.close()
        fit.book.close()
        journal.say(f"saved step {step} of {fit.plan.total}; the same command goes on from there")
        raise Interrupted(fit.signal)
    return over(fit) if scores and not last else ""


def validate(fit: Fit, step: int, stage: Any) -> dict[str, float]:
    """Scores of the validation split with the averaged weights where there are any."""
    begin = time.monotonic()
    variables = states.weights(fit.state, ema=True)
    scores, _, ids = evaluate(fit.run, fit.programs["val"], variables, "val", stage)
    metric = fit.run.config.eval.metric
    if metric not in scores:
        raise schema.UserError(
            f"config.eval.metric={metric!r} is not measured; allowed: {', '.join(sorted(scores))}"
        )
    fit.book.add(step, "val", scores)
    shown = " ".join(f"{k} {v:.4f}" for k, v in scores.items())
    journal.say(f"val   {step}: {shown} ({len(ids)} examples, {time.monotonic() - begin:.1f} s)")
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
    """SIGTERM and SIGINT ask for a save at the next step; a second one kills as usual."""

    def ask(number: int, frame: Any) -> None:
        fit.signal = number
        signal.signal(number, before[signal.Signals(number)])

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(fit: Fit, reason: str, began: float) -> dict[str, Any]:
    """Final test with the best checkpoint; writes predictions, results.json and the report."""
    run, config = fit.run, fit.run.config
    best = fit.files.best()
    variables, kind = best_variables(fit, best)
    purpose = config.eval.split
    stage = fit.plan.rows[-1].view
    scores, rows, ids = evaluate(run, fit.programs[purpose], variables, purpose, stage)
    step = int(fit.state.step)
    if not any(row["split"] == purpose and row["step"] == step for row in fit.book.rows):
        fit.book.add(step, purpose, scores)
    journal.write_predictions(run.workdir / "predictions" / f"{purpose}.npz", ids, rows)
    results: dict[str, Any] = {
        "split": purpose,
        "scores": scores,
        "best_step": best,
        "best_val": fit.files.metrics(best) if best is not None else {},
        "weights": kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(fit.state.params)),
        "examples_per_s": round(fit.progress.rate, 3),
        "wall_s": round(time.monotonic() - began, 1),
        "steps": step,
        "stop_reason": reason,
        "versions": journal.versions(),
    }
    shown = ", ".join(f"{k} {v:.4f}" for k, v in scores.items())
    journal.say(f"{purpose} ({kind} weights of step {best}): {shown}")
    if config.save.report:
        page = run.workdir / "report.html"
        summary.write_report(page, run, results, fit.book.rows, rows, ids)
        journal.say(f"report: {page}")
    # Last: where it exists, everything else does.
    journal.write_json(run.workdir / "results.json", results)
    return results


def best_variables(fit: Fit, best: int | None) -> tuple[Any, str]:
    """The variables that validation liked best, and whether they are averaged."""
    kind = "ema" if fit.state.ema else "raw"
    if best is None or best == int(fit.state.step):
        return states.weights(fit.state, ema=True), kind
    folder = fit.files.folder / str(best)
    return mesh.replicate(stored_variables(checkpoint.read_weights(folder)), fit.run.mesh), kind


def stored_variables(stored: dict[str, Any]) -> Any:
    """Variables of a checkpoint's weights item, averaged where it has an average."""
    state = TrainState(0, stored["params"], stored["model_state"], {}, stored.get("ema") or {})
    return states.weights(state, ema=True)

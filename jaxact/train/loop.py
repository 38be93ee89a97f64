"""The training loop: fetch a batch, run the step, log, validate, save; at the end a final test.

After an interruption the same command goes on from the newest checkpoint, to the same numbers.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxact.config import UserError
from jaxact.data.pipeline import train_batches
from jaxact.task import Batch, StageData
from jaxact.train import finish, hosts, mesh, stage_change, workdir
from jaxact.train import state as states
from jaxact.train.evaluation import ahead, evaluate
from jaxact.train.run import Run
from jaxact.train.schedule import PlanRow
from jaxact.train.setup import Diverged, Interrupted, Setup, open_setup


def train(run: Run) -> dict[str, Any]:
    """Trains to the end of the plan and returns what results.json holds.

    Raises:
      Diverged: a loss or gradient norm is not finite; the last checkpoint before it is kept.
      Interrupted: after saving, on SIGTERM or SIGINT.
      UserError: see `setup`, `checkpoint` and the task.
    """
    began = time.monotonic()
    setup = open_setup(run)
    try:
        with stop_signals(setup):
            reason = finished(setup)
            results = finish.earlier_results(setup) if reason else None
            if results is None:
                reason = reason or train_steps(setup)
                setup.checkpoints.wait()
                results = finish.finish(setup, reason, began)
        return results
    finally:
        # However training ends, a checkpoint that is being written is completed.
        setup.checkpoints.close()
        setup.log.close()


def train_steps(setup: Setup) -> str:
    """Runs the steps that are left; returns why training ended."""
    config, plan = setup.run.config, setup.plan
    for row, first, end in plan.segments(int(setup.state.step)):
        stage_change.enter(setup, row, first)
        train_step = setup.programs[row.program]
        with device_batches(setup, row, first, end) as batches:
            setup.progress.start()
            for step, batch in enumerate(batches, first + 1):
                setup.state, metrics = train_step(setup.state, batch)
                setup.pending.append((step, metrics))
                if len(setup.pending) > 2:  # the host is at most two steps ahead of the device
                    jax.block_until_ready(setup.pending[-3][1]["loss"])
                setup.progress.steps += 1
                if hosts.stopping(step):
                    setup.signal = signal.SIGTERM
                last = step == plan.total
                validation = last or validation_due(setup, step)
                save = validation or save_due(setup, step)
                if not (save or setup.signal or step % config.save.log_every == 0):
                    continue
                log(setup, step)
                scores = validate(setup, step, row.stage_data) if validation else None
                if save or setup.signal:  # a signal may have come meanwhile
                    setup.checkpoints.save(setup.state, scores)
                if setup.signal:
                    setup.checkpoints.wait()
                    left = "the same command goes on from there"
                    workdir.say(f"saved step {step} of {plan.total}; {left}")
                    raise Interrupted(setup.signal)
                if validation and (reason := finished(setup)):
                    return reason
                setup.progress.start()
            setup.progress.stop()
    return "end of the plan"


@contextlib.contextmanager
def device_batches(setup: Setup, row: PlanRow, first: int, end: int) -> Iterator[Iterator[Batch]]:
    """The batches of steps first to end on the devices, each sent while the one before it is used.

    Counts the seconds spent waiting for the host pipeline.
    """
    run, rows = setup.run, mesh.rows(setup.run.mesh, setup.run.config.batch_size)
    source = run.source("train")
    host = train_batches(run.config, run.task, source, row.stage_data, first, end, rows)

    def read() -> Iterator[Batch]:
        while True:
            begin = time.monotonic()
            batch = next(host, None)
            setup.progress.waited += time.monotonic() - begin
            if batch is None:
                return
            yield batch

    with contextlib.closing(host):
        yield ahead(read(), lambda batch: mesh.split(batch, run.mesh))


def finished(setup: Setup) -> str:
    """Why nothing is left to train, or ""."""
    options = setup.run.config.eval
    if int(setup.state.step) >= setup.plan.total:
        return "end of the plan"
    if out_of_patience(setup):
        return f"no improvement of {options.metric} in {options.patience} validations"
    return ""


def out_of_patience(setup: Setup) -> bool:
    """Is early stopping due? Derived from the logged validations, so that a resumed run agrees."""
    options = setup.run.config.eval
    if not options.patience:
        return False
    sign = 1 if options.maximise else -1
    best, since = -math.inf, 0
    for row in setup.log.rows:
        if row["split"] == "val":
            now = sign * row[options.metric]
            best, since = (now, 0) if now > best + options.min_delta else (best, since + 1)
    return since >= options.patience


def validation_due(setup: Setup, step: int) -> bool:
    """Does `eval.every` ask for a validation after this step?"""
    options, plan = setup.run.config.eval, setup.plan
    every = plan.steps(options.every, "eval.every")
    return every > 0 and step % every == 0 and step >= plan.steps(options.first, "eval.first")


def save_due(setup: Setup, step: int) -> bool:
    """Does `save.every` or `save.keep_every` ask for a checkpoint after this step?"""
    save, plan = setup.run.config.save, setup.plan
    durations = (save.every, "save.every"), (save.keep_every, "save.keep_every")
    counts = [plan.steps(*duration) for duration in durations]
    return any(count > 0 and step % count == 0 for count in counts)


def log(setup: Setup, step: int) -> None:
    """Logs the steps since the last line: means of what was measured, the last schedule values.

    Raises Diverged: one of the numbers is not finite.
    """
    rows = [
        finite(setup, number, {name: float(value) for name, value in metrics.items()})
        for number, metrics in jax.device_get(setup.pending)
    ]
    setup.pending.clear()
    setup.progress.stop()
    scheduled = setup.plan.rows[0].values
    numbers = {
        name: value if name in scheduled else float(np.mean([row[name] for row in rows]))
        for name, value in rows[-1].items()
    }
    numbers["examples_per_s"] = setup.progress.rate
    setup.log.add(step, "train", numbers)
    shown = {name: numbers[name] for name in ("loss", "lr")}
    workdir.say(setup.progress.line(step, step / setup.plan.per_epoch, shown))


def finite(setup: Setup, step: int, metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of a step. Raises: Diverged where one is infinite or NaN."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        first = min(bad, key=lambda name: not name.startswith("loss"))  # where it began
        kept = setup.checkpoints.steps()
        where = f"checkpoint {kept[-1]}" if kept else "no checkpoint yet"
        raise Diverged(
            f"training diverged at step {step}: {first} is {metrics[first]}; "
            f"last good state: {where} in {setup.run.workdir}; a lower config.optim.lr or "
            "config.optim.clip > 0 may help"
        )
    return metrics


def validate(setup: Setup, step: int, stage_data: StageData) -> dict[str, float]:
    """Scores of the validation split with the averaged weights where there are any."""
    begin = time.monotonic()
    variables = states.weights(setup.state)
    scores, _, ids = evaluate(setup.run, setup.programs["val"], variables, "val", stage_data)
    metric = setup.run.config.eval.metric
    if metric not in scores:
        raise UserError(
            f"config.eval.metric={metric!r} is not measured; allowed: {', '.join(sorted(scores))}"
        )
    setup.log.add(step, "val", scores)
    shown = " ".join(f"{k} {v:.4f}" for k, v in scores.items())
    workdir.say(f"val   {step}: {shown} ({len(ids)} examples, {time.monotonic() - begin:.1f} s)")
    return scores


@contextlib.contextmanager
def stop_signals(setup: Setup) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a save after the current step; a second one kills as usual.

    Of several hosts JAX hears SIGTERM and tells all of them (`hosts.stopping`).
    """
    if hosts.several():
        old = signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, old)
        return

    def ask(number: int, frame: Any) -> None:
        setup.signal = number
        signal.signal(number, before[signal.Signals(number)])

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

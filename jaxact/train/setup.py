"""A training in progress: opened on a fresh or restored state, its programs compiled."""

import dataclasses
import difflib
import pathlib
import signal
import time
from typing import Any

from jaxact import config as schema
from jaxact.train import checkpoint, mesh, workdir
from jaxact.train.optimizer import Groups
from jaxact.train.restore import restored, start
from jaxact.train.run import Run, abstract_batch, cold_start, drawn_and_frozen
from jaxact.train.schedule import Plan
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

    run: Run
    plan: Plan
    state: TrainState
    groups: Groups
    book: workdir.Journal
    files: checkpoint.Checkpoints
    progress: workdir.Progress
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)
    pending: list[tuple[int, Any]] = dataclasses.field(default_factory=list)
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)
    signal: int = 0


def open_fit(run: Run) -> Fit:
    """Plan, state (restored where there is one), compiled programs."""
    config, say = run.config, workdir.say
    plan = run.plan()
    first = plan.rows[0].stage_data
    known_metric(run)
    for split in ("val", config.eval.split):
        run.source(split)  # what is wrong with it is said now, not after the first epoch
    make_folder(run.workdir)
    evaluation = config.eval
    files = checkpoint.Checkpoints(
        run.workdir / "checkpoints",
        config.save,
        evaluation.metric,
        evaluation.maximise,
        say,
        schema.steps(
            config.save.keep_every,
            per_epoch=plan.per_epoch,
            total=plan.total,
            field="save.keep_every",
        ),
    )
    origin = run.workdir if files.steps() or not run.resume_from else pathlib.Path(run.resume_from)
    if files.steps() or run.resume_from:
        # What init_from gave is in the checkpoint already.
        fresh = dataclasses.replace(config, init_from="")
        state, groups = start(dataclasses.replace(run, config=fresh), first, say)
        state = restored(origin, files, config, state)
        say(f"resumed from step {int(state.step)} of {origin}")
    else:
        for line in cold_start(config):
            say(line)
        state, groups = start(run, first, say)
        warning = drawn_and_frozen(config, groups, plan.rows[0].train, state.params)
        if warning:
            say(warning)
    # Only now: a work dir whose checkpoints do not fit keeps its files as they are.
    names = (run.task.training.classes, run.task.shipping.meanings)
    book = workdir.Journal(run.workdir, config, plan.per_epoch, plan.total, *names)
    book.resume(int(state.step))
    say(plan.table())
    say(groups.text(state.params))
    progress = workdir.Progress(plan.total, config.batch_size)
    fit = Fit(run, plan, state, groups, book, files, progress)
    compile_programs(fit)
    return fit


def known_metric(run: Run) -> None:
    """Refuses an eval.metric that the task does not give, as far as it says what it gives."""
    metric, allowed = run.config.eval.metric, run.task.evaluation.metrics
    if allowed and metric not in allowed:
        close = difflib.get_close_matches(metric, allowed, 3)
        hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        raise schema.UserError(
            f"config.eval.metric={metric!r} is not measured; allowed: {', '.join(allowed)}{hint}"
        )


def make_folder(path: pathlib.Path) -> None:
    """Makes the work dir. Raises UserError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise schema.UserError(f"--workdir={path} cannot be made: {error.strerror}") from error


def compile_programs(fit: Fit) -> None:
    """One program for each distinct batch shape and trainable set still ahead, before step 1."""
    run = fit.run
    sharding = mesh.batch_sharding(run.mesh)
    for row, _, _ in fit.plan.segments(int(fit.state.step)):
        if row.program in fit.programs:
            continue
        begin = time.monotonic()
        step = make_train_step(
            run.config, run.task, fit.plan, fit.groups, row, run.layout, fit.state
        )
        batch = abstract_batch(run.task, row.stage_data, "train", run.config.batch_size, sharding)
        compiled = step.lower(fit.state, batch).compile()
        fit.programs[row.program] = compiled
        workdir.say(
            f"compiled the step of stage {row.index} in {time.monotonic() - begin:.1f} s; "
            f"{memory(compiled)}"
        )
    for split in {"val", run.config.eval.split}:
        fit.programs[split] = make_eval_step(run.task, split)


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

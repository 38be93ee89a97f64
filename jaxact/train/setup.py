"""A training in progress: opened on a fresh or restored state, its programs compiled."""

import dataclasses
import difflib
import pathlib
import signal
import time
from typing import Any

from jaxact.config import UserError
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
class Setup:
    """One training in progress: all that the loop works with; `state` is the newest."""

    run: Run
    plan: Plan
    state: TrainState
    groups: Groups
    log: workdir.MetricsLog
    checkpoints: checkpoint.Checkpoints
    progress: workdir.Progress
    programs: dict[Any, Any]  # `PlanRow.program` -> compiled step, split -> `EvalStep`
    signal: int = 0  # that asks for an end; 0 = none
    # (step, metrics on the device) since the last log line
    pending: list[tuple[int, Any]] = dataclasses.field(default_factory=list)


def open_setup(run: Run) -> Setup:
    """Makes the plan, the state (restored where there is a checkpoint) and the compiled programs.

    Raises UserError: a metric, split, work dir or checkpoint that does not fit the config.
    """
    config, plan = run.config, run.plan()
    known_metric(run)
    for split in ("val", config.eval.split):
        run.source(split)  # what is wrong with it is said now, not after the first epoch
    make_folder(run.workdir)
    folder, how = run.workdir / "checkpoints", (config.eval.metric, config.eval.maximise)
    keep_every = plan.steps(config.save.keep_every, "save.keep_every")
    checkpoints = checkpoint.Checkpoints(folder, config.save, *how, workdir.say, keep_every)
    state, groups = open_state(run, plan, checkpoints)
    # Only now: a work dir whose checkpoints do not fit keeps its files as they are.
    names = (run.task.training.classes, run.task.shipping.meanings)
    log = workdir.MetricsLog(run.workdir, config, plan.per_epoch, *names)
    log.resume(int(state.step))
    workdir.say(plan.table())
    workdir.say(groups.text(state.params))
    progress = workdir.Progress(plan.total, config.batch_size)
    programs = compiled_programs(run, plan, state, groups)
    return Setup(run, plan, state, groups, log, checkpoints, progress, programs)


def open_state(
    run: Run, plan: Plan, checkpoints: checkpoint.Checkpoints
) -> tuple[TrainState, Groups]:
    """The state that training goes on from: of this work dir, of `resume_from`, or at step 0."""
    config, stage_data = run.config, plan.rows[0].stage_data
    own = bool(checkpoints.steps())
    if own or run.resume_from:
        origin = run.workdir if own else pathlib.Path(run.resume_from)
        # What init_from gave is in the checkpoint already.
        fresh = dataclasses.replace(run, config=dataclasses.replace(config, init_from=""))
        state, groups = start(fresh, stage_data, workdir.say)
        state = restored(origin, checkpoints, config, state)
        workdir.say(f"resumed from step {int(state.step)} of {origin}")
        return state, groups
    for line in cold_start(config):
        workdir.say(line)
    state, groups = start(run, stage_data, workdir.say)
    warning = drawn_and_frozen(config, groups, plan.rows[0].train, state.params)
    if warning:
        workdir.say(warning)
    return state, groups


def known_metric(run: Run) -> None:
    """Raises UserError for an eval.metric that is not among those that the task lists, if any."""
    metric, allowed = run.config.eval.metric, run.task.evaluation.metrics
    if allowed and metric not in allowed:
        close = difflib.get_close_matches(metric, allowed, 3)
        hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        raise UserError(
            f"config.eval.metric={metric!r} is not measured; allowed: {', '.join(allowed)}{hint}"
        )


def make_folder(path: pathlib.Path) -> None:
    """Makes the work dir. Raises UserError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={path} cannot be made: {error.strerror}") from error


def compiled_programs(run: Run, plan: Plan, state: TrainState, groups: Groups) -> dict[Any, Any]:
    """A training program for each distinct batch shape and trainable set that is still ahead, and
    the programs of evaluation."""
    config, task, sharding = run.config, run.task, mesh.batch_sharding(run.mesh)
    programs: dict[Any, Any] = {s: make_eval_step(task, s) for s in ("val", config.eval.split)}
    for row, _, _ in plan.segments(int(state.step)):
        if row.program in programs:
            continue
        begin = time.monotonic()
        step = make_train_step(config, task, plan, groups, row, run.layout, state)
        batch = abstract_batch(task, row.stage_data, "train", config.batch_size, sharding)
        programs[row.program] = compiled = step.lower(state, batch).compile()
        took = time.monotonic() - begin
        workdir.say(f"compiled the step of stage {row.index} in {took:.1f} s; {memory(compiled)}")
    return programs


def memory(compiled: Any) -> str:
    """Bytes a device needs for a compiled program, as far as the backend tells."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return "memory unknown"
    arguments, temporaries = sizes.argument_size_in_bytes / 2**20, sizes.temp_size_in_bytes / 2**20
    return (
        f"{arguments:.0f} MiB of arguments and {temporaries:.0f} MiB of temporaries on each device"
    )

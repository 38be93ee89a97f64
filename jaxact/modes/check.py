"""`--mode=check`: what a run would do, in exact numbers, and whether its data can be read."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxact.config import UserError
from jaxact.evaluate import cost
from jaxact.train import mesh, optimizer, restore
from jaxact.train.evaluation import view_texts
from jaxact.train.run import (
    Run,
    abstract_batch,
    abstract_variables,
    cold_start,
    drawn_and_frozen,
    eval_size,
    value_names,
)
from jaxact.train.setup import known_metric
from jaxact.train.workdir import say

NOMINAL = 100  # steps of an epoch where the training split cannot be counted


def check(run: Run, out: Callable[[str], None] = print) -> None:
    """Prints the plan, the parameter and MAC tables, batch shapes and bytes; then opens every file.

    Raises:
      UserError: after the tables, for the first thing that is wrong with the data.
    """
    missing: UserError | None = None
    known_metric(run)
    for line in cold_start(run.config):
        out(line)
    try:
        schedule = run.plan()
    except UserError as error:
        missing, schedule = error, run.plan(NOMINAL)
        out(f"# the training split cannot be read ({error}); epochs of {NOMINAL} steps are assumed")
    out(f"# plan: {schedule.total} steps, {schedule.per_epoch} an epoch")
    out(schedule.table())
    stage_data = schedule.rows[0].stage_data
    variables = abstract_variables(run, stage_data)
    groups = optimizer.resolve_groups(run.config.optim, variables["params"])
    out("# parameters")
    for row in cost.table(variables["params"]):
        out(f"{row[0]:<40} {row[1]:>14,}")
    out(groups.text(variables["params"]))
    warning = drawn_and_frozen(run.config, groups, schedule.rows[0].train, variables["params"])
    if warning:
        out(warning)
    programs = {row.program for row in schedule.rows}
    out(f"# {len(programs)} training program(s) to compile, and one for each evaluation shape")
    for split, text in view_texts(run.task).items():
        out(f"# {split} views: {text}")
    for split in ("train", "val", "test"):
        shapes_and_costs(run, stage_data, split, variables, out)
    bytes_of_state(run, variables, groups, out)
    if missing is not None:
        raise missing
    audit(run, out)


def shapes_and_costs(
    run: Run, stage_data: Any, split: str, variables: Any, out: Callable[[str], None]
) -> None:
    """Batch shapes, bytes on each device, and MACs of one example at those shapes."""
    size = run.config.batch_size if split == "train" else eval_size(run.config)
    batch = abstract_batch(run.task, stage_data, split, size)
    total = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in batch.values())
    each = total / mesh.shards(run.mesh) / 2**20
    parts = 1 if split == "train" else run.task.evaluation.parts(split)
    note = f"; {parts} such parts of the views of an example" if parts > 1 else ""
    out(f"# {split} batch: {each:.1f} MiB on each of {run.mesh.size} device(s){note}")
    for name, leaf in batch.items():
        out(f"{name:<12} {leaf.dtype}{list(leaf.shape)}")
    one = abstract_batch(run.task, stage_data, split, 1)
    model = run.task.shipping.counted or run.task.training.model

    def example(variables: Any, batch: Any) -> Any:
        apply = functools.partial(model.apply, variables, train=False)
        if split != "train":
            return run.task.evaluation.infer(apply, batch, split)
        hyper = {name: np.float32(0) for name in value_names(run.config)}
        return apply(**run.task.training.inputs(batch, hyper, jax.random.key(0), stage_data)[0])

    macs = parts * cost.macs(example, variables, one)
    out(f"{macs:,} multiply-adds for one example (forward, convolutions and matrix products)")


def bytes_of_state(
    run: Run, variables: Any, groups: optimizer.Groups, out: Callable[[str], None]
) -> None:
    """Bytes of each part of the training state on each device."""
    fresh = jax.eval_shape(lambda v: restore.create(run.config, groups, v), variables)
    out("# bytes of the state on each device")
    for name in ("params", "model_state", "opt_state", "ema"):
        out(f"{name:<12} {run.layout.bytes_of(getattr(fresh, name)):>14,}")


def audit(run: Run, out: Callable[[str], None]) -> None:
    """Opens every file that a split names; lists all problems, then raises the first."""
    problems: list[str] = []
    counts: dict[str, int] = {}
    sources: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        source = sources[split] = run.source(split)
        counts[split] = len(source)
        for index in range(len(source)):
            problem = run.task.shipping.audit(source[index])
            if problem:
                problems.append(problem)
                say(problem)
    if run.task.shipping.survey is not None:
        findings, table = run.task.shipping.survey(sources)
        for finding in findings:
            out(f"warning: {finding}")
        out(table)
    text = ", ".join(f"{name} {count}" for name, count in counts.items())
    if problems:
        raise UserError(f"{len(problems)} unreadable of {text}; first: {problems[0]}")
    out(f"# data: {text} examples, all readable")

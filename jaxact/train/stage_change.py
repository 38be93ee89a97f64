"""What a task changes in the state where training passes from one row of the plan to the next."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxact.data.pipeline import eval_batches
from jaxact.train import mesh, workdir
from jaxact.train import state as states
from jaxact.train.evaluation import ahead
from jaxact.train.run import eval_size
from jaxact.train.schedule import PlanRow
from jaxact.train.setup import Setup
from jaxact.train.state import TrainState


def enter(setup: Setup, row: PlanRow, start: int) -> None:
    """Lets the task's `enter` change the state where training begins at the first step of a row.

    The checkpoint of that step holds the state before the change. A run that resumes there makes
    the change again, with the same key and the same data: bit for bit the same state.
    """
    run, state = setup.run, setup.state
    change = run.task.training.enter
    if change is None or start != row.start or start == 0:
        return
    before = setup.plan.rows[row.index - 1]
    # Not the key of the step itself.
    key = jax.random.fold_in(jax.random.key(run.config.seed + 1), start)

    def batches() -> Iterator[Any]:
        source, size = run.source("train"), eval_size(run.config)
        stream = eval_batches(run.config, run.task, source, row.stage_data, "val", size)
        if mesh.several(run.mesh):  # each host by itself: the same numbers on all
            return ahead(stream, jax.device_put)
        return ahead(stream, lambda batch: mesh.split(batch, run.mesh))

    now = mesh.own({"params": state.params, **state.model_state}, run.mesh)
    variables = change(now, before, row, key, batches)
    if variables is now:
        return
    params, model_state = _parts(variables)
    flat, old = states.flatten(params), states.flatten(now["params"])
    replaced = {setup.groups.member[path] for path in flat if flat[path] is not old[path]}
    restarted = replaced & setup.groups.trainable
    fresh = setup.groups.init(params)
    opt_state = {**state.opt_state, **{name: fresh[name] for name in restarted}}
    ema = state.ema
    if ema:
        averaged = mesh.own(states.weights(state), run.mesh)
        averaged, averaged_state = _parts(change(averaged, before, row, key, batches))
        averaged = setup.groups.select(states.flatten(averaged), setup.groups.trainable)
        ema = {"params": averaged, "model_state": averaged_state}
    changed = TrainState(state.step, params, model_state, opt_state, ema)
    # The step donates its state: an array that stands in two places would be given away twice.
    setup.state = run.layout.place(jax.tree.map(jnp.array, changed))
    workdir.say(f"stage {row.index} begins at step {start}: new {', '.join(sorted(replaced))}")


def _parts(variables: Any) -> tuple[Any, Any]:
    """(parameters, the other collections)."""
    rest = dict(variables)
    return rest.pop("params"), rest

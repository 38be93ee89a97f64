"""From one row of the plan to the next: what a task changes in the state besides its updates."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxact.data.pipeline import eval_batches
from jaxact.train import mesh, run, workdir
from jaxact.train import state as states
from jaxact.train.evaluation import ahead
from jaxact.train.schedule import PlanRow
from jaxact.train.setup import Fit
from jaxact.train.state import TrainState


def enter(fit: Fit, row: PlanRow, start: int) -> None:
    """Lets `Task.enter` change the state where a segment begins at its row's first step.

    The checkpoint of that step holds the state before the change, so a run that resumes there makes
    it again, with the same key and the same data: bit for bit the same state.
    """
    change = fit.run.task.training.enter
    if change is None or start != row.start or start == 0:
        return
    before = fit.plan.rows[row.index - 1]
    # Apart from the key of the step itself.
    key = jax.random.fold_in(jax.random.key(fit.run.config.seed + 1), start)

    def batches() -> Iterator[Any]:
        source = fit.run.source("train")
        size = run.eval_size(fit.run.config)
        stream = eval_batches(fit.run.config, fit.run.task, source, row.stage_data, "val", size)
        if mesh.several(fit.run.mesh):  # each host by itself: the same numbers on all
            return ahead(stream, jax.device_put)
        return ahead(stream, lambda batch: mesh.split(batch, fit.run.mesh))

    state = fit.state
    now = mesh.own({"params": state.params, **state.model_state}, fit.run.mesh)
    found = change(now, before, row, key, batches)
    if found is now:
        return
    params, model_state = _parts(found)
    flat, old = states.flatten(params), states.flatten(now["params"])
    replaced = {fit.groups.member[path] for path in flat if flat[path] is not old[path]}
    restarted = replaced & fit.groups.trainable
    fresh = fit.groups.init(params)
    opt_state = {**state.opt_state, **{name: fresh[name] for name in restarted}}
    ema = state.ema
    if ema:
        kept = mesh.own(states.weights(state, ema=True), fit.run.mesh)
        averaged = change(kept, before, row, key, batches)
        kept, averaged_state = _parts(averaged)
        kept = fit.groups.select(states.flatten(kept), fit.groups.trainable)
        ema = {"params": kept, "model_state": averaged_state}
    changed = TrainState(state.step, params, model_state, opt_state, ema)
    # The step donates its state: an array that stands in two places would be given away twice.
    fit.state = fit.run.layout.place(jax.tree.map(jnp.array, changed))
    workdir.say(f"stage {row.index} begins at step {start}: new {', '.join(sorted(replaced))}")


def _parts(variables: Any) -> tuple[Any, Any]:
    """(parameters, the other collections)."""
    rest = dict(variables)
    return rest.pop("params"), rest

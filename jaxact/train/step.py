"""The training step and the evaluation step, as pure functions under jit."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxact.config import Config, Optim
from jaxact.task import Batch, Task
from jaxact.train import mesh as meshes
from jaxact.train import optimizer
from jaxact.train import state as states
from jaxact.train.optimizer import Groups
from jaxact.train.schedule import Plan, PlanRow
from jaxact.train.sharding import Layout
from jaxact.train.state import TrainState

# (trained, kept, model_state, batch, hyper, key) -> ((loss f32[], (named means f32[], new
# model_state, real examples f32[])), gradients of `trained`). `trained` and `kept` are flat.
Gradient = Callable[..., tuple[Any, Any]]
Measured = tuple[Any, dict[str, Any]]  # (metric pytree, rows [b, ...])


def make_train_step(
    config: Config,
    task: Task,
    plan: Plan,
    groups: Groups,
    row: PlanRow,
    layout: Layout | None = None,
    state: TrainState | None = None,
) -> Any:
    """The jitted update of rows like `row`: (state, batch) -> (state, metrics f32[]).

    Of the row only the batch shape and the trained groups matter (`PlanRow.program`). Randomness is
    `fold_in(seed, step)`; the schedule is read at `state.step`. With a layout the state (or its
    shapes) stays split by it, and layers gather what they compute with.
    """
    optim, seed, active = config.optim, config.seed, groups.active(row.train)
    gradient = loss_gradient(task, groups, row, layout)
    if optim.accumulate > 1:
        gradient = accumulated(gradient, optim.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        hyper = plan.hyper(state.step)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        flat = states.flatten(state.params)
        trained = groups.select(flat, active)
        kept = {path: leaf for path, leaf in flat.items() if path not in trained}
        (loss, (terms, model_state, _)), grads = gradient(
            trained, kept, state.model_state, batch, hyper, key
        )
        grads, norm = optimizer.clip(grads, optim.clip)
        flat, opt_state = groups.update(grads, state.opt_state, flat, hyper["lr"], active)
        params, ema = states.unflatten(flat), averaged(optim, state, flat, model_state)
        metrics = {"loss": loss, "grad_norm": norm, **terms, **hyper}
        return TrainState(state.step + 1, params, model_state, opt_state, ema), metrics

    return jitted(step, layout, state)


def loss_gradient(task: Task, groups: Groups, row: PlanRow, layout: Layout | None) -> Gradient:
    """The loss of a batch, the mean over its real examples, and its gradient."""
    active = groups.active(row.train)

    def losses(
        trained: Any, kept: Any, model_state: Any, batch: Batch, hyper: Any, key: Any
    ) -> tuple[Any, Any]:
        flat = {**kept, **trained}
        params = states.unflatten(layout.gather(flat) if layout else flat)
        key_inputs, key_dropout = jax.random.split(key)
        arguments, targets = task.training.inputs(batch, hyper, key_inputs, row.stage_data)
        with fixed_statistics(groups, active):
            outputs, new_state = task.training.model.apply(
                {"params": params, **model_state},
                **arguments,
                train=True,
                rngs={"dropout": key_dropout},
                mutable=list(model_state),
            )
        terms = task.training.loss(outputs, targets, hyper)
        mask = batch["mask"].astype(jnp.float32)
        real = jnp.maximum(mask.sum(), 1.0)
        means = {f"loss/{name}": each for name, each in terms.items()}
        if task.training.watch is not None:
            means |= jax.lax.stop_gradient(task.training.watch(outputs, targets))
        # where, not a product: a padding example may hold inf or nan.
        means = {k: jnp.where(mask > 0, v, 0.0).sum() / real for k, v in means.items()}
        return total(means), (means, new_state, mask.sum())

    return jax.value_and_grad(losses, has_aux=True)


def fixed_statistics(groups: Groups, active: frozenset[str]) -> Any:
    """Context in which BatchNorm layers of inactive groups use their running statistics and do not
    change them."""

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
            path = "/".join((*module.path, "scale"))
            # Under nn.remat the path is the same: the wrapper keeps the module's name.
            if path in groups.member and groups.member[path] not in active:
                kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def total(means: dict[str, Any]) -> Any:
    """The sum of the losses among named means."""
    return sum(mean for name, mean in means.items() if name.startswith("loss/"))


def accumulated(gradient: Gradient, count: int) -> Gradient:
    """The mean gradient over `count` micro-batches, weighted by their real examples."""

    def accumulate(
        trained: Any, kept: Any, model_state: Any, batch: Batch, hyper: Any, key: Any
    ) -> tuple[Any, Any]:
        micro = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)

        def body(carry: Any, item: Any) -> Any:
            index, part = item
            (_, (terms, model_state, n)), grads = gradient(
                trained, kept, carry[0], part, hyper, jax.random.fold_in(key, index)
            )
            add = jax.tree.map(lambda a, b: a + n * b, carry[1], (grads, terms))
            return (model_state, add, carry[2] + n), None

        shapes = jax.eval_shape(
            gradient, trained, kept, model_state, jax.tree.map(lambda x: x[0], micro), hyper, key
        )
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[1], shapes[0][1][0]))
        (model_state, sums, n), _ = jax.lax.scan(
            body, (model_state, zero, 0.0), (jnp.arange(count), micro)
        )
        grads, terms = jax.tree.map(lambda x: x / jnp.maximum(n, 1.0).astype(x.dtype), sums)
        return (total(terms), (terms, model_state, n)), grads

    return accumulate


def averaged(optim: Optim, state: TrainState, flat: states.Flat, model_state: Any) -> Any:
    """The moving average of parameters and model state after an update; {} where it is off."""
    if not optim.ema:
        return state.ema
    decay: Any = optim.ema
    if optim.ema_warmup:
        decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return states.average(state.ema, decay, flat, model_state)


def jitted(step: Callable[..., Any], layout: Layout | None, state: TrainState | None) -> Any:
    """The jitted step. Its first argument is donated: do not use it afterwards.

    With a layout the state stays split by it.
    """
    if layout is None:
        return jax.jit(step, donate_argnums=0)
    places, everywhere = layout.places(state), NamedSharding(layout.mesh, PartitionSpec())
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, meshes.batch_sharding(layout.mesh)),
        out_shardings=(places, everywhere),
    )


@dataclasses.dataclass(frozen=True)
class EvalStep:
    """The jitted programs of evaluation; deterministic.

    Examples in one part go through `whole`; of several parts each goes through `infer`, and the sum
    of their outputs with any of their batches through `close`.
    """

    parts: int
    whole: Callable[[Any, Batch], Measured]  # (variables, batch) -> measured
    infer: Callable[[Any, Batch], Any]  # (variables, batch) -> outputs
    close: Callable[[Any, Batch], Measured]  # (sum of outputs, batch) -> measured


def make_eval_step(task: Task, split: str) -> EvalStep:
    """The programs of one split; each is compiled when it is first used."""
    parts = task.evaluation.parts(split)

    def infer(variables: Any, batch: Batch) -> Any:
        apply = functools.partial(task.training.model.apply, variables, train=False)
        return task.evaluation.infer(apply, batch, split)

    def measured(outputs: Any, batch: Batch) -> Measured:
        return task.evaluation.measure(outputs, batch), task.evaluation.rows(outputs, batch)

    def whole(variables: Any, batch: Batch) -> Measured:
        return measured(infer(variables, batch), batch)

    def close(sums: Any, batch: Batch) -> Measured:
        return measured(jax.tree.map(lambda x: x / parts, sums), batch)

    return EvalStep(parts, jax.jit(whole), jax.jit(infer), jax.jit(close))

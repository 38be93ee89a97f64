"""From a checkpoint or a foreign file to a state or to variables; which of several is taken."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxact import config as schema
from jaxact.config import Config, UserError, as_dict
from jaxact.train import checkpoint, hosts, optimizer, schedule
from jaxact.train.optimizer import Groups
from jaxact.train.run import Run, abstract_batch, abstract_variables, drawn_variables
from jaxact.train.state import TrainState, flatten, unflatten, weights
from jaxact.train.step import make_eval_step
from jaxact.train.workdir import mention, recorded, say

PREDICT = "predict"

Computed = tuple[Callable[[Any, Any], Any], Any]  # (variables, batch) -> results; abstract batch


def start(run: Run, stage_data: Any, say: Any) -> tuple[TrainState, Groups]:
    """A state at step 0: fresh, or partly from `config.init_from`, with a written report.

    Of several checkpoints each fills what it holds, in their order.
    """
    variables = drawn_variables(run, stage_data)
    if run.config.init_from:
        reports = []
        for path in _paths(run.config.init_from):
            variables, report = load_weights(run, path, variables)
            reports.append(report)
            say(report.splitlines()[0] + f"; full report: {run.workdir / 'init_report.txt'}")
        if hosts.first():
            run.workdir.mkdir(parents=True, exist_ok=True)
            (run.workdir / "init_report.txt").write_text("\n\n".join(reports) + "\n")
    variables = run.layout.place(variables)
    groups = optimizer.resolve_groups(run.config.optim, variables["params"])

    # One program for all the zeros, instead of one for each shape.
    def filled(variables: Any) -> TrainState:
        return create(run.config, groups, variables)

    places = run.layout.places(jax.eval_shape(filled, variables))
    return jax.jit(filled, out_shardings=places)(variables), groups


def stage_data_of(run: Run, where: str) -> Any:
    """The data and shape fields that the checkpoint of `--checkpoint` was validated with.

    Those of its step, if its run had this schedule; else those of the last row.
    """
    path = pathlib.Path(where) if where else run.workdir
    try:
        folder = find_checkpoint(path)
    except UserError:  # a foreign file, or nothing: whoever loads it says so
        return schedule.last_stage_data(run.config)
    else:
        stored = recorded(folder.parent.parent / "config.json")
        if folder.name.isdigit() and stored:
            now = as_dict(run.config)
            per_epoch = stored.get("steps_per_epoch")
            same = all(stored["config"].get(k) == now[k] for k in ("stages", "length"))
            if per_epoch and same:
                return (
                    schedule.resolve(run.config, per_epoch)
                    .row(max(int(folder.name) - 1, 0))
                    .stage_data
                )
    return schedule.last_stage_data(run.config)


def _paths(listed: str) -> list[pathlib.Path]:
    """The paths of a comma-separated list; a path that exists may hold commas itself."""
    if pathlib.Path(listed).exists():
        return [pathlib.Path(listed)]
    return [pathlib.Path(part.strip()) for part in listed.split(",")]


def load_weights(run: Run, path: pathlib.Path, variables: Any) -> tuple[Any, str]:
    """Variables from a checkpoint of ours (folder) or a foreign file, as far as they fit."""
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if path.is_dir():
        return _from_ours(path, variables, run.task.shipping.grow)
    if run.task.shipping.weights is None:
        raise UserError(f"{path}: this task reads only its own checkpoints (a folder)")
    return run.task.shipping.weights(path, variables)


def _from_ours(path: pathlib.Path, variables: Any, grow: Any = None) -> tuple[Any, str]:
    stored = checkpoint.read_weights(find_checkpoint(path))
    flat = flatten({"params": stored["params"], **stored["model_state"]})
    ema = stored.get("ema") or {}
    if ema:
        averaged = {f"params/{k}": v for k, v in ema["params"].items()}
        flat |= {**averaged, **flatten(ema["model_state"])}
    wanted = flatten(variables)
    lines, found = [], {}
    if grow is not None:
        flat, notes = grow(flat, wanted)
        lines += [f"note      {note}" for note in notes]
    for name, leaf in wanted.items():
        if name not in flat:
            lines.append(f"missing   {name} {tuple(leaf.shape)}: keeps its initial value")
        elif flat[name].shape != leaf.shape:
            shapes = f"{tuple(flat[name].shape)} -> {tuple(leaf.shape)}"
            lines.append(f"replaced  {name} {shapes}: keeps its initial value")
        else:
            found[name] = jnp.asarray(flat[name], leaf.dtype)
            lines.append(f"loaded    {name} {tuple(leaf.shape)}")
    lines += [f"unused    {name}" for name in flat if name not in wanted]
    if not found:
        raise UserError(
            f"{path}: no array fits this model (first of its names: {next(iter(flat))})"
        )
    head = (
        f"{path}: {len(found)} of {len(wanted)} arrays loaded ({'ema' if ema else 'raw'} weights)"
    )
    return unflatten({**wanted, **found}), "\n".join([head, *lines])


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
    """A checkpoint folder from itself, a `checkpoints` folder or a work dir.

    Of several it is the best by the metric of the run that made them, else the newest.
    """
    if (path / "weights").is_dir():
        return path
    for folder in (path / "checkpoints", path):
        steps = [int(p.name) for p in folder.glob("*") if re.fullmatch(r"\d+", p.name)]
        if steps:
            best = None
            if made := recorded(folder.parent / "config.json"):
                how = made["config"]["eval"]
                best = checkpoint.best_of(folder, steps, how["metric"], how["maximise"])
            return folder / str(max(steps) if best is None else best)
    raise UserError(f"{path} holds no checkpoint; expected <workdir>/checkpoints/<step>")


def same_shapes(wanted: Any, stored: dict[str, Any], folder: pathlib.Path) -> None:
    """The checkpoint must hold exactly the model's arrays.

    Raises:
      UserError: naming the first array that differs.
    """
    now = flatten(wanted)
    was = flatten({"params": stored["params"], **stored["model_state"]})
    for name in sorted(now.keys() | was.keys()):
        old = tuple(was[name].shape) if name in was else "absent"
        new = tuple(now[name].shape) if name in now else "absent"
        if old != new:
            raise UserError(
                f"checkpoint {folder} does not fit the model: {name} is {old} there and {new} "
                "here; use the config it was trained with"
            )


def create(config: Config, groups: Groups, variables: Any) -> TrainState:
    """A state at step 0 from the model's variables."""
    variables = dict(variables)
    params = variables.pop("params")
    ema: Any = {}
    if config.optim.ema:
        ema = {"params": groups.select(flatten(params), groups.trainable), "model_state": variables}
        ema = jax.tree.map(jnp.copy, ema)
    return TrainState(jnp.int32(0), params, variables, groups.init(params), ema)


def load(run: Run, where: str, stage_data: Any, used: Computed | None = None) -> tuple[Any, str]:
    """Variables of `--checkpoint` (ours or a foreign file), else the best of the work dir.

    `used` is what will be computed with them; None = predictions.
    Raises:
      UserError: they are not there, or lack something that what is computed with them depends on.
    """
    path = pathlib.Path(where) if where else run.workdir
    if where and path.is_file():
        fresh = drawn_variables(run, stage_data)
        variables, report = load_weights(run, path, fresh)
        say(report.splitlines()[0])
        _complete(path, fresh, variables, used or evaluated(run, stage_data, PREDICT))
        return run.layout.place(variables), str(path)
    if not path.exists():
        raise UserError(f"{'--checkpoint' if where else '--workdir'}={path} does not exist")
    folder = find_checkpoint(path)
    stored = checkpoint.read_weights(folder)
    same_shapes(abstract_variables(run, stage_data), stored, folder)
    kind = "ema" if stored.get("ema") else "raw"
    say(f"{kind} weights of {folder}")
    mention(run.config, path)
    return run.layout.place(stored_variables(stored)), str(folder)


def evaluated(run: Run, stage_data: Any, split: str) -> Computed:
    """The scores of a batch in evaluation."""
    return make_eval_step(run.task, split).whole, abstract_batch(run.task, stage_data, split, 1)


def _complete(path: pathlib.Path, fresh: Any, variables: Any, used: Computed) -> None:
    """Refuses a foreign file that leaves arrays which the results depend on as they were drawn."""
    function, batch = used
    was, now = flatten(fresh), flatten(variables)
    counts = flatten(reaching(function, fresh, batch)[0])
    lacking = [name for name, leaf in was.items() if now[name] is leaf and counts[name]]
    lacking.sort(key=lambda name: not name.startswith("params/"))
    if lacking:
        first = f"{lacking[0]} {tuple(was[lacking[0]].shape)}"
        raise UserError(
            f"--checkpoint={path} does not fill {len(lacking)} of the {len(was)} arrays of this "
            f"model, as {first}; allowed: a file with all that is used, or the fields of "
            "config.model that it was trained with (a training may start from it: "
            "--config.init_from)"
        )


def stored_variables(stored: dict[str, Any]) -> Any:
    """Variables of a checkpoint's weights item, averaged where it has an average."""
    state = TrainState(0, stored["params"], stored["model_state"], {}, stored.get("ema") or {})
    return weights(state, ema=True)


def restored(
    origin: pathlib.Path, files: checkpoint.Checkpoints, config: schema.Config, state: TrainState
) -> TrainState:
    """The newest state of a work dir: of this run, or of the one given by --resume_from."""
    folder = origin / "checkpoints"
    if folder.absolute() == files.folder:
        found = files.restore(state)
    else:
        if not folder.is_dir():
            raise schema.UserError(f"--resume_from={origin} holds no checkpoints")
        options = config.eval
        other = checkpoint.Checkpoints(folder, config.save, options.metric, options.maximise)
        found = other.restore(state)
        other.close()
    if found is None:
        raise schema.UserError(f"--resume_from={origin} holds no checkpoints")
    return found


def reaching(function: Callable[..., Any], *inputs: Any) -> Any:
    """The tree of bools, like `inputs`, that says which leaves `function(*inputs)` depends on.

    Inputs may be abstract. Calls and scans are looked into; of other control flow every input
    counts.
    """
    leaves, shape = jax.tree.flatten(inputs)
    closed = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(shape, flat)))(*leaves)
    return jax.tree.unflatten(shape, _read(closed.jaxpr, [True] * len(closed.jaxpr.outvars)))


def _read(jaxpr: Any, wanted: list[bool]) -> list[bool]:
    """For each input, whether any of the wanted outputs depends on it."""
    needed = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and _named(v)}
    for equation in reversed(jaxpr.eqns):
        given = [v in needed for v in equation.outvars]
        if any(given):
            pairs = zip(equation.invars, _taken(equation, given), strict=True)
            needed |= {v for v, taken in pairs if taken and _named(v)}
    return [v in needed for v in jaxpr.invars]


def _named(variable: Any) -> bool:
    return isinstance(variable, core.Var)  # the rest are literals


def _taken(equation: Any, given: list[bool]) -> list[bool]:
    """For each input of an equation, whether the outputs `given` depend on it."""
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)  # of a closed one
    sizes = len(equation.invars), len(equation.outvars)
    if inner is None or (len(inner.invars), len(inner.outvars)) != sizes:
        return [True] * sizes[0]
    if equation.primitive.name != "scan":
        return _read(inner, given)
    first, count = equation.params["num_consts"], equation.params["num_carry"]
    while True:  # what a round carries over may be needed by the rounds after it
        taken = _read(inner, given)
        carried = [a or b for a, b in zip(given, taken[first : first + count], strict=False)]
        if carried == given[:count]:
            return taken
        given = carried + given[count:]

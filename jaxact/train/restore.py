"""From a checkpoint or a foreign file to a training state or to a model's variables."""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jaxact import atomic
from jaxact.config import Config, UserError, as_dict
from jaxact.task import StageData
from jaxact.train import checkpoint, hosts, optimizer, schedule
from jaxact.train.optimizer import Groups
from jaxact.train.run import Run, abstract_batch, abstract_variables, drawn_variables
from jaxact.train.state import TrainState, flatten, unflatten, weights
from jaxact.train.step import make_eval_step
from jaxact.train.workdir import mention, recorded, say

PREDICT = "predict"

Computed = tuple[Callable[[Any, Any], Any], Any]  # function(variables, batch); abstract batch


def start(run: Run, stage_data: Any, say: Callable[[str], None]) -> tuple[TrainState, Groups]:
    """A state at step 0: fresh, or partly from `config.init_from`, with a written report.

    Of several checkpoints each fills what it holds, in their order.
    """
    file, reports = run.workdir / "init_report.txt", []
    variables = drawn_variables(run, stage_data)
    for path in _paths(run.config.init_from):
        variables, report = load_weights(run, path, variables)
        reports.append(report)
        say(f"{report.splitlines()[0]}; full report: {file}")
    if reports and hosts.first():
        atomic.write_text(file, "\n\n".join(reports) + "\n")
    variables = run.layout.place(variables)
    groups = optimizer.resolve_groups(run.config.optim, variables["params"])

    # One program for all the zeros, instead of one for each shape.
    filled = functools.partial(create, run.config, groups)
    places = run.layout.places(jax.eval_shape(filled, variables))
    return jax.jit(filled, out_shardings=places)(variables), groups


def stage_data_of(run: Run, where: str) -> StageData:
    """The data and shape fields that the checkpoint of `--checkpoint` was validated with.

    Those of its step, if its run had this schedule; else those of the last row.
    """
    try:
        folder = find_checkpoint(pathlib.Path(where) if where else run.workdir)
        stored = recorded(folder.parent.parent / "config.json") if folder.name.isdigit() else {}
    except UserError:  # a foreign file, or nothing: whoever loads it says so
        stored = {}
    now, per_epoch = as_dict(run.config), stored.get("steps_per_epoch")
    if per_epoch and all(stored["config"].get(k) == now[k] for k in ("stages", "length")):
        return run.plan(per_epoch).row(max(int(folder.name) - 1, 0)).stage_data
    return schedule.last_stage_data(run.config)


def _paths(listed: str) -> list[pathlib.Path]:
    """The paths of a comma-separated list; a path that exists may hold commas itself."""
    if not listed or pathlib.Path(listed).exists():
        return [pathlib.Path(listed)] if listed else []
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


def _from_ours(path: pathlib.Path, variables: Any, grow: Any) -> tuple[Any, str]:
    """The arrays of a checkpoint that have the model's names and shapes, and a line for each."""
    item = checkpoint.read_weights(find_checkpoint(path))
    flat, wanted = flatten(stored_variables(item)), flatten(variables)
    flat, notes = grow(flat, wanted) if grow is not None else (flat, ())
    lines, loaded = [f"note      {note}" for note in notes], {}
    for name, leaf in wanted.items():
        if name not in flat:
            lines.append(f"missing   {name} {tuple(leaf.shape)}: keeps its initial value")
        elif flat[name].shape != leaf.shape:
            shapes = f"{tuple(flat[name].shape)} -> {tuple(leaf.shape)}"
            lines.append(f"replaced  {name} {shapes}: keeps its initial value")
        else:
            loaded[name] = jnp.asarray(flat[name], leaf.dtype)
            lines.append(f"loaded    {name} {tuple(leaf.shape)}")
    lines += [f"unused    {name}" for name in flat if name not in wanted]
    if not loaded:
        first = next(iter(flat))
        raise UserError(f"{path}: no array fits this model (first of its names: {first})")
    head = f"{path}: {len(loaded)} of {len(wanted)} arrays loaded ({kind_of(item)} weights)"
    return unflatten({**wanted, **loaded}), "\n".join([head, *lines])


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
    """Raises UserError, naming the first array, where a weights item has not the model's arrays."""
    raw = {"params": stored["params"], **stored["model_state"]}
    if difference := checkpoint.difference(raw, wanted):
        raise UserError(
            f"checkpoint {folder} does not fit the model: {difference}; use the config it was "
            "trained with"
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
    """Variables of `--checkpoint` (ours or a foreign file), else the best of the work dir; and the
    path they come from.

    `used` is what will be computed with them; None = predictions.
    Raises UserError: they are not there, or a foreign file lacks something that this depends on.
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
    item = checkpoint.read_weights(folder)
    same_shapes(abstract_variables(run, stage_data), item, folder)
    say(f"{kind_of(item)} weights of {folder}")
    mention(run.config, path)
    return run.layout.place(stored_variables(item)), str(folder)


def evaluated(run: Run, stage_data: Any, split: str) -> Computed:
    """The scores of a batch in evaluation."""
    return make_eval_step(run.task, split).whole, abstract_batch(run.task, stage_data, split, 1)


def _complete(path: pathlib.Path, fresh: Any, variables: Any, used: Computed) -> None:
    """Refuses a foreign file that leaves arrays which `used` depends on as they were drawn."""
    function, batch = used
    before, after = flatten(fresh), flatten(variables)
    needed = flatten(used_inputs(function, fresh, batch)[0])
    lacking = [name for name, leaf in before.items() if after[name] is leaf and needed[name]]
    lacking.sort(key=lambda name: not name.startswith("params/"))
    if lacking:
        first = f"{lacking[0]} {tuple(before[lacking[0]].shape)}"
        raise UserError(
            f"--checkpoint={path} does not fill {len(lacking)} of the {len(before)} arrays of this "
            f"model, as {first}; allowed: a file with all that is used, or the fields of "
            "config.model that it was trained with (a training may start from it: "
            "--config.init_from)"
        )


def stored_variables(item: dict[str, Any]) -> Any:
    """Variables of a checkpoint's weights item, averaged where it has an average."""
    return weights(TrainState(0, item["params"], item["model_state"], {}, item.get("ema") or {}))


def kind_of(item: dict[str, Any]) -> str:
    """What `stored_variables` takes of a weights item: "ema" or "raw" weights."""
    return "ema" if item.get("ema") else "raw"


def restored(
    origin: pathlib.Path, own: checkpoint.Checkpoints, config: Config, state: TrainState
) -> TrainState:
    """The newest state of a work dir: of this run (`own`), or of the one of --resume_from."""
    folder, options = origin / "checkpoints", config.eval
    newest = None
    if folder.absolute() == own.folder:
        newest = own.restore(state)
    elif folder.is_dir():
        other = checkpoint.Checkpoints(folder, config.save, options.metric, options.maximise)
        newest = other.restore(state)
        other.close()
    if newest is None:
        raise UserError(f"--resume_from={origin} holds no checkpoints")
    return newest


def used_inputs(function: Callable[..., Any], *inputs: Any) -> Any:
    """A tree of bools like `inputs`: does `function(*inputs)` depend on this leaf?

    Inputs may be abstract. Calls, scans and conditions are looked into; of a
    function with a derivative of its own every input counts.
    """
    leaves, shape = jax.tree.flatten(inputs)
    closed = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(shape, flat)))(*leaves)
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, True)
    return jax.tree.unflatten(shape, used)

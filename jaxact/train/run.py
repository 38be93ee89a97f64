"""From a config to everything a mode needs: mesh, source, plan, groups, state."""

import dataclasses
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import task as tasks
from jaxact.config import Config, UserError, as_dict
from jaxact.models.initialise import initialise
from jaxact.task import Task
from jaxact.train import checkpoint, hosts, mesh, schedule, state
from jaxact.train.sharding import Layout
from jaxact.train.state import Groups, TrainState
from jaxact.train.workdir import recorded


@dataclasses.dataclass(frozen=True)
class Run:
    """What all modes share. `sources` opens a split on first use."""

    config: Config
    task: Task
    mesh: Any
    workdir: pathlib.Path
    resume_from: str = ""  # another work dir, whose newest state a fresh one starts from
    sources: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Where each array of the state lies."""
        return Layout(self.mesh, self.config.mesh.min_size)

    def source(self, purpose: str) -> Any:
        """The examples of one split, opened once."""
        if purpose not in self.sources:
            found = self.task.source(purpose)
            if len(found) == 0:
                raise UserError(f"the {purpose} split has no examples; see config.data")
            self.sources[purpose] = found
        return self.sources[purpose]

    def plan(self, per_epoch: int | None = None) -> schedule.Plan:
        """The resolved schedule; without a given epoch length the training split is counted."""
        if per_epoch is None:
            per_epoch = schedule.epoch_steps(len(self.source("train")), self.config.batch_size)
        return schedule.resolve(self.config, per_epoch)


def open_run(config: Config, workdir: pathlib.Path, resume_from: str = "") -> Run:
    """Makes the task and the mesh, and checks that batches split over the devices."""
    task = tasks.make(config)
    grid = mesh.make_mesh(config.mesh)
    mesh.check_batch(config.batch_size // config.optim.accumulate, grid, "batch_size")
    mesh.check_batch(eval_size(config), grid, "eval.batch_size")
    return Run(config, task, grid, workdir, resume_from)


def eval_size(config: Config) -> int:
    """Examples in an evaluation batch."""
    return config.eval.batch_size or config.batch_size


def abstract_batch(task: Task, stage: Any, purpose: str, size: int, sharding: Any = None) -> Any:
    """Shapes and dtypes of a batch, without data."""
    shapes: dict[str, Any] = {"id": ((), np.int32), "mask": ((), np.bool_)}
    shapes |= task.shapes(stage, purpose)
    return {
        name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def abstract_variables(run: Run, stage: Any) -> Any:
    """Shapes of the model's variables, without computing anything."""
    arguments = _arguments(run, stage)
    return jax.eval_shape(
        lambda key, named: run.task.model.init(
            {"params": key, "dropout": key}, **named, train=False
        ),
        jax.random.key(0),
        arguments,
    )


def _arguments(run: Run, stage: Any) -> Any:
    batch = abstract_batch(run.task, stage, "train", 1)
    hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in value_names(run.config)}
    return jax.eval_shape(
        lambda b, h, k: run.task.inputs(b, h, k, stage)[0], batch, hyper, jax.random.key(0)
    )


def value_names(config: Any) -> list[str]:
    """Names of the stage fields that are read inside the step."""
    fields = dataclasses.fields(config.stages[0])
    return [f.name for f in fields if f.metadata.get("kind") == "value"]


def drawn_variables(run: Run, stage: Any) -> Any:
    """Fresh variables from the seed, the same on each host."""
    key = jax.random.key(run.config.seed)
    return initialise(run.task.model, key, **_arguments(run, stage), train=False)


def initial_variables(run: Run, stage: Any) -> Any:
    """Fresh variables from the seed, on the devices."""
    return run.layout.place(drawn_variables(run, stage))


def start(run: Run, stage: Any, say: Any) -> tuple[TrainState, Groups]:
    """A state at step 0: fresh, or partly from `config.init_from`, with a written report.

    Of several checkpoints each fills what it holds, in their order.
    """
    variables = drawn_variables(run, stage)
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
    groups = state.resolve_groups(run.config.optim, variables["params"])

    # One program for all the zeros, instead of one for each shape.
    def create(found: Any) -> TrainState:
        return state.create(run.config, groups, found)

    places = run.layout.places(jax.eval_shape(create, variables))
    return jax.jit(create, out_shardings=places)(variables), groups


def drawn_and_frozen(config: Config, groups: Groups, train: str, params: Any) -> str:
    """A warning where the first stage trains (`train`) a small part of a network that is random.

    "" where `config.init_from` fills it, or at least half of the parameters are trained.
    """
    flat = state.flatten(params)
    trained = groups.select(flat, groups.active(train))
    still = {path: leaf for path, leaf in flat.items() if path not in trained}
    sizes = [sum(int(leaf.size) for leaf in part.values()) for part in (still, trained)]
    if config.init_from or sizes[0] <= sizes[1]:
        return ""
    return (
        f"warning: config.init_from is empty, so {sizes[0]:,} parameters are random and stage 0 "
        f"(train={train!r}) keeps them so: it fits {sizes[1]:,} parameters to random features; "
        "give --config.init_from=FILE, or train all groups from the start"
    )


def view_of(run: Run, where: str) -> Any:
    """The data and shape fields that the checkpoint of `--checkpoint` was validated with.

    Those of its step, if its run had this schedule; else those of the last row.
    """
    path = pathlib.Path(where) if where else run.workdir
    try:
        folder = find_checkpoint(path)
    except UserError:  # a foreign file, or nothing: whoever loads it says so
        return schedule.last_view(run.config)
    else:
        stored = recorded(folder.parent.parent / "config.json")
        if folder.name.isdigit() and stored:
            now = as_dict(run.config)
            per_epoch = stored.get("steps_per_epoch")
            same = all(stored["config"].get(k) == now[k] for k in ("stages", "length"))
            if per_epoch and same:
                return (
                    schedule.resolve(run.config, per_epoch).stage(max(int(folder.name) - 1, 0)).view
                )
    return schedule.last_view(run.config)


def cold_start(config: Config) -> tuple[str, ...]:
    """The warning for a recipe of fine-tuning that is given no weights; () where there is none."""
    if not config.pretrained or config.init_from:
        return ()
    return (
        "warning: config.init_from is empty: this recipe has the rates and the length of "
        "fine-tuning, and it starts from random weights",
    )


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
        return _from_ours(path, variables, run.task.grow)
    if run.task.weights is None:
        raise UserError(f"{path}: this task reads only its own checkpoints (a folder)")
    return run.task.weights(path, variables)


def _from_ours(path: pathlib.Path, variables: Any, grow: Any = None) -> tuple[Any, str]:
    stored = checkpoint.read_weights(find_checkpoint(path))
    flat = state.flatten({"params": stored["params"], **stored["model_state"]})
    ema = stored.get("ema") or {}
    if ema:
        averaged = {f"params/{k}": v for k, v in ema["params"].items()}
        flat |= {**averaged, **state.flatten(ema["model_state"])}
    wanted = state.flatten(variables)
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
    return state.unflatten({**wanted, **found}), "\n".join([head, *lines])


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
    now = state.flatten(wanted)
    was = state.flatten({"params": stored["params"], **stored["model_state"]})
    for name in sorted(now.keys() | was.keys()):
        old = tuple(was[name].shape) if name in was else "absent"
        new = tuple(now[name].shape) if name in now else "absent"
        if old != new:
            raise UserError(
                f"checkpoint {folder} does not fit the model: {name} is {old} there and {new} "
                "here; use the config it was trained with"
            )

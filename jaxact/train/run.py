"""What all modes share: the task, the mesh, the examples, and shapes without data."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import task as tasks
from jaxact.config import Config, UserError
from jaxact.models.initialise import initialise
from jaxact.task import Task
from jaxact.train import mesh, schedule, state
from jaxact.train.optimizer import Groups
from jaxact.train.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Run:
    """A config with its task and mesh. `sources` are the splits that are open."""

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

    def source(self, split: str) -> Any:
        """The examples of one split, opened once."""
        if split not in self.sources:
            examples = self.task.training.source(split)
            if len(examples) == 0:
                raise UserError(f"the {split} split has no examples; see config.data")
            self.sources[split] = examples
        return self.sources[split]

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


def abstract_batch(task: Task, stage_data: Any, split: str, size: int, sharding: Any = None) -> Any:
    """Shapes and dtypes of a batch, without data."""
    shapes: dict[str, Any] = {"id": ((), np.int32), "mask": ((), np.bool_)}
    shapes |= task.training.shapes(stage_data, split)
    return {
        name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def abstract_variables(run: Run, stage_data: Any) -> Any:
    """Shapes of the model's variables, without computing anything."""

    def init(key: Any, named: Any) -> Any:
        return run.task.training.model.init({"params": key, "dropout": key}, **named, train=False)

    return jax.eval_shape(init, jax.random.key(0), _arguments(run, stage_data))


def _arguments(run: Run, stage_data: Any) -> Any:
    """Shapes of the arguments that the model is called with."""
    batch = abstract_batch(run.task, stage_data, "train", 1)
    hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in value_names(run.config)}

    def arguments(batch: Any, hyper: Any, key: Any) -> Any:
        return run.task.training.inputs(batch, hyper, key, stage_data)[0]

    return jax.eval_shape(arguments, batch, hyper, jax.random.key(0))


def value_names(config: Any) -> list[str]:
    """Names of the stage fields that are read inside the step."""
    fields = dataclasses.fields(config.stages[0])
    return [f.name for f in fields if f.metadata.get("kind") == "value"]


def drawn_variables(run: Run, stage_data: Any) -> Any:
    """Fresh variables from the seed, the same on each host."""
    key = jax.random.key(run.config.seed)
    return initialise(run.task.training.model, key, **_arguments(run, stage_data), train=False)


def initial_variables(run: Run, stage_data: Any) -> Any:
    """Fresh variables from the seed, on the devices."""
    return run.layout.place(drawn_variables(run, stage_data))


def drawn_and_frozen(config: Config, groups: Groups, train: str, params: Any) -> str:
    """A warning where stage 0 (its `train`) fits less than half of a random network, or ""."""
    flat = state.flatten(params)
    trained = groups.select(flat, groups.active(train))
    fitted = sum(int(leaf.size) for leaf in trained.values())
    fixed = sum(int(leaf.size) for leaf in flat.values()) - fitted
    if config.init_from or fixed <= fitted:
        return ""
    return (
        f"warning: config.init_from is empty, so {fixed:,} parameters are random and stage 0 "
        f"(train={train!r}) keeps them so: it fits {fitted:,} parameters to random features; "
        "give --config.init_from=FILE, or train all groups from the start"
    )


def cold_start(config: Config) -> tuple[str, ...]:
    """A warning where a recipe of fine-tuning is given no weights, else ()."""
    if not config.pretrained or config.init_from:
        return ()
    return (
        "warning: config.init_from is empty: this recipe has the rates and the length of "
        "fine-tuning, and it starts from random weights",
    )

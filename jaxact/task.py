"""The Task record: everything the trainer needs to know of a system, as plain functions.

A task is made by one file, `jaxact/tasks/<name>.py`, with `make(config) -> Task`. There is no base
class and no registry: the trainer calls these functions and knows nothing else.
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from jaxact.config import UserError

Batch = dict[str, Any]  # name -> array with leading b; always holds id: i32[b] and mask: bool[b]
Hyper = dict[str, Any]  # name of a stage value field -> f32[] at this step
Outputs = Any  # whatever the model returns


class Source(Protocol):
    """Random access to the examples of one split. `ids[i]` names example i in files and reports."""

    @property
    def ids(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """A system. Shapes: b examples, v views of one example (evaluation only).

    `purpose` is "train", "val", "test" or "predict"; `stage` is the resolved row of the schedule
    (its data and shape fields as attributes).
    """

    model: Any
    """The flax module; called as `model.apply(variables, **arguments, train=bool)`."""
    classes: tuple[str, ...]
    """Class names in the order of the labels; () when the task has none."""
    source: Callable[[str], Source]
    """purpose -> examples. Raises UserError for missing or invalid annotations."""
    prepare: Callable[[Any, np.random.Generator, Any, str], dict[str, np.ndarray]]
    """(example, rng, stage, purpose) -> one example's arrays, of the shapes that `shapes` gives."""
    shapes: Callable[[Any, str], dict[str, tuple[tuple[int, ...], Any]]]
    """(stage, purpose) -> name -> (shape of one example, dtype); needs no data."""
    inputs: Callable[[Batch, Hyper, Any, Any], tuple[dict[str, Any], Any]]
    """(batch, hyper, key, stage) -> (keyword arguments of the model, targets). Runs under jit.
    `stage` is None in evaluation, where a batch has no views axis any more."""
    loss: Callable[[Outputs, Any, Hyper], dict[str, Any]]
    """(outputs, targets, hyper) -> named, weighted losses f32[b]; their sum is minimised."""
    infer: Callable[[Callable[..., Outputs], Batch, str], Outputs]
    """(apply, batch, purpose) -> outputs of evaluation, views averaged in bounded memory. Under
    jit; `apply(**arguments)` runs the model."""
    measure: Callable[[Outputs, Batch], Any]
    """(outputs, batch) -> masked metric pytree of sums: batches merge by addition. Under jit."""
    rows: Callable[[Outputs, Batch], dict[str, Any]]
    """(outputs, batch) -> arrays [b, ...] kept for each example in predictions/<split>.npz."""
    score: Callable[[Any, dict[str, np.ndarray]], dict[str, float]]
    """(merged metrics, rows of the whole split) -> final numbers."""
    example: Callable[[str], Sequence[Any]]
    """A file, a folder or a list for `predict` -> examples (with an `id`)."""
    describe: Callable[[dict[str, np.ndarray]], dict[str, Any]]
    """One example's rows -> what `predict` prints, JSON-able."""
    audit: Callable[[Any], str]
    """Opens everything one example names; "" or one line that says what is wrong."""
    counted: Any = None
    """The same module written so that every multiplication is a convolution or a matrix product,
    for exact MAC counts; None = `model`."""
    weights: Callable[[Any, Any], tuple[Any, str]] | None = None
    """(path, variables) -> (variables, report text): loads a foreign checkpoint."""
    sampler: Callable[[Source, Any], np.ndarray | None] | None = None
    """(train source, stage) -> f64[n] sampling weights, or None for each example once an epoch."""
    thumbnail: Callable[[Any], np.ndarray | None] | None = None
    """Example -> u8[t, h, w, 3] for the report, or None."""


def make(config: Any) -> Task:
    """The task that a config names: a file of `jaxact/tasks`, or a dotted module name of the user's
    own.

    Raises:
      UserError: no such task.
    """
    name = config.task if "." in config.task else f"jaxact.tasks.{config.task}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(
            f"config.task={config.task!r}: there is no module {name}; allowed: a file of "
            "jaxact/tasks, or the dotted name of a module with make(config)"
        ) from None
    return module.make(config)

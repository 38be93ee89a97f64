"""The Task record: everything the trainer needs to know of a system, as plain functions.

A task is made by `make(config)` of `jaxact/tasks/<name>/task.py`. There is no base class and no
registry: the trainer calls these functions and knows nothing else.
"""

import dataclasses
import importlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from jaxact.config import UserError

Batch = dict[str, Any]  # name -> array with leading b; always holds id: i32[b] and mask: bool[b]
Hyper = dict[str, Any]  # name of a stage value field -> f32[] at this step
Outputs = Any  # whatever the model returns


@dataclasses.dataclass(frozen=True)
class Port:
    """An input of an exported model."""

    shape: tuple[int, ...]  # of one example
    dtype: Any
    meaning: str  # one line: what it is, the names of its axes, its unit
    low: float = 0.0  # valid values are in low..high
    high: float = 1.0


@dataclasses.dataclass(frozen=True)
class Contract:
    """What an exported model takes and gives, and what has to happen before it."""

    inputs: dict[str, Port]
    outputs: dict[str, str]  # name -> meaning, one line
    preprocessing: dict[str, Any]  # JSON-able: how files become inputs, what is done inside
    call: Callable[[Callable[..., Outputs], Batch], dict[str, Any]]
    """(apply, inputs [b, ...]) -> outputs [b, ...]. Under jit; `apply(**arguments)` runs the
    model."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """A finished run, its final test included: what `Evaluation.conclude` sees."""

    split: str
    ids: Sequence[str]  # of the rows
    rows: dict[str, np.ndarray]
    scores: dict[str, float]
    best_val: dict[str, float]  # validation scores of the weights that were tested; {} = none kept
    history: Sequence[dict[str, Any]]  # the rows of metrics.jsonl
    variables: Any  # that were tested
    source: "Source"
    stage_data: "StageData"  # what the evaluation was prepared with
    pictures: bool  # is there a report to draw figures for?


@dataclasses.dataclass(frozen=True)
class Extra:
    """What a task adds to the end of a run."""

    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)  # further in results.json
    files: dict[str, str] = dataclasses.field(default_factory=dict)  # path in the work dir -> text
    figures: Sequence[Any] = ()  # `evaluate.figures.Figure`, for the report


class StageData(types.SimpleNamespace):
    """The data and shape fields of a row of the plan, as attributes: what a loader sees of it."""


class Source(Protocol):
    """Random access to the examples of one split. `ids[i]` names example i in files and reports."""

    @property
    def ids(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Window(Protocol):
    """A stretch of a recording: seconds, and the arrays of one part of its views."""

    @property
    def start(self) -> float: ...

    @property
    def end(self) -> float: ...

    @property
    def arrays(self) -> Callable[[int], dict[str, np.ndarray]]: ...


@dataclasses.dataclass(frozen=True)
class Training:
    """What training needs. Shapes: b examples."""

    model: Any
    """The flax module; called as `model.apply(variables, **arguments, train=bool)`."""
    classes: tuple[str, ...]
    """Class names in the order of the labels; () when the task has none."""
    source: Callable[[str], Source]
    """split -> examples. Raises UserError for missing or invalid annotations."""
    prepare: Callable[..., dict[str, np.ndarray]]
    """(example, rng, stage_data, split) -> one example's arrays, of the shapes that `shapes` gives;
    with `part=number` where the views of that split come in parts."""
    shapes: Callable[[Any, str], dict[str, tuple[tuple[int, ...], Any]]]
    """(stage_data, split) -> name -> (shape of one example, dtype); needs no data."""
    inputs: Callable[[Batch, Hyper, Any, Any], tuple[dict[str, Any], Any]]
    """(batch, hyper, key, stage_data) -> (keyword arguments of the model, targets). Runs under jit.
    `stage_data` is None in evaluation, where a batch has no views axis any more."""
    loss: Callable[[Outputs, Any, Hyper], dict[str, Any]]
    """(outputs, targets, hyper) -> named, weighted losses f32[b]; their sum is minimised."""
    sampler: Callable[[Source, Any], np.ndarray | None] | None = None
    """(train source, stage_data) -> f64[n] sampling weights; None = each example once an epoch."""
    arrange: Callable[[Source, np.ndarray, np.random.Generator], np.ndarray] | None = None
    """(train source, records i64[n] drawn for an epoch, rng) -> the same records in the order they
    are read; keeps together what is read from one file. None = as drawn."""
    enter: Callable[[Any, Any, Any, Any, Callable[[], Iterator[Batch]]], Any] | None = None
    """(variables, row before, row, key, batches) -> variables as the first step of a stage finds
    them, the same object where nothing changes. Called when training passes from one row of the
    plan to the next, for the averaged variables too; must be a pure function, because a run that
    resumes there calls it again. `batches()` goes once through the training split, prepared as for
    validation. A group whose arrays are replaced starts its optimiser state anew."""
    watch: Callable[[Outputs, Any], dict[str, Any]] | None = None
    """(outputs, targets) -> numbers f32[b] that training logs the means of and does not minimise.
    Under jit."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What evaluation needs. Shapes: b examples, v views of one example."""

    infer: Callable[[Callable[..., Outputs], Batch, str], Outputs]
    """(apply, batch, split) -> outputs of evaluation, views averaged in bounded memory. Under
    jit; `apply(**arguments)` runs the model."""
    measure: Callable[[Outputs, Batch], Any]
    """(outputs, batch) -> masked metric pytree of sums: batches merge by addition. Under jit."""
    rows: Callable[[Outputs, Batch], dict[str, Any]]
    """(outputs, batch) -> arrays [b, ...] kept for each example in predictions/<split>.npz."""
    score: Callable[[Any, dict[str, np.ndarray]], dict[str, float]]
    """(merged metrics, rows of the whole split) -> final numbers."""
    metrics: tuple[str, ...] = ()
    """Names that `score` gives: another eval.metric is refused at the start; () = not told."""
    views: Callable[[str], str] = lambda split: ""
    """split -> how an example is seen in evaluation, in words, for logs and results."""
    parts: Callable[[str], int] = lambda split: 1
    """split -> parts that an example's views come in. Each is prepared and inferred by itself and
    the outputs are averaged: memory does not grow with the number of views."""
    conclude: Callable[[Ending], Extra] | None = None
    """What the task adds to results.json, the work dir and the report."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What `predict` needs."""

    example: Callable[..., Source]
    """A file, a folder or a list for `predict` -> examples; a second argument, where it is given,
    names their poses."""
    describe: Callable[..., dict[str, Any]]
    """(one example's rows, top=number of classes) -> what `predict` prints, JSON-able."""
    windows: Callable[[Any, float, float], Iterator[Window]] | None = None
    """(example, window s, stride s) -> windows of a long recording, for `predict`."""
    recording: Callable[[Any], str] | None = None
    """Example -> the recording that it is a part of. `predict` gives `describe` the rows [n, ...]
    of all parts of a recording, neighbours in the source, and prints one line. None = whole."""
    render: Callable[[Any, Any, list[dict[str, Any]], int], None] | None = None
    """(example, path, pieces, side px) -> writes a video with the predictions drawn in. A piece has
    start and end (s) and what `describe` gives; they tile the recording. A task whose examples are
    parts of recordings gets the first part and one piece."""
    drawn: str = ".mp4"
    """Suffix of the files that `render` writes."""


@dataclasses.dataclass(frozen=True)
class Shipping:
    """For weights, exports, checks and the report."""

    audit: Callable[[Any], str]
    """Opens everything one example names; "" or one line that says what is wrong."""
    weights: Callable[[Any, Any], tuple[Any, str]] | None = None
    """(path, variables) -> (variables, report text): loads a foreign checkpoint."""
    grow: Callable[..., tuple[dict[str, Any], Sequence[str]]] | None = None
    """(arrays of a checkpoint of ours by path, the model's by path) -> (the former, made larger
    where a part of the model grew, and notes for the report); None = as they are."""
    contract: Callable[..., Contract] | None = None
    """([stage_data]) -> what `export` ships, at the shapes of the last stage if none is given;
    None = the model's outputs on the arrays of `shapes` that reach it."""
    counted: Any = None
    """The same module written so that every multiplication is a convolution or a matrix product,
    for exact MAC counts; None = `model`."""
    meanings: Sequence[dict[str, str]] = ()
    """What each class stands for beside its name, as config.json keeps it; () = nothing."""
    survey: Callable[[dict[str, Source]], tuple[Sequence[str], str]] | None = None
    """Sources by split -> (what is suspicious in the data as a whole, a line each; a table)."""
    thumbnail: Callable[[Any], np.ndarray | None] | None = None
    """Example -> u8[t, h, w, 3] for the report, or None."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A system: four records of functions, by who reads them.

    A `split` is "train", "val", "test" or "predict".
    """

    training: Training
    evaluation: Evaluation
    prediction: Prediction
    shipping: Shipping


def make(config: Any) -> Task:
    """The task that a config names: a wing of `jaxact/tasks`, or a dotted module name of the user's
    own.

    Raises UserError: no such task.
    """
    name = config.task if "." in config.task else f"jaxact.tasks.{config.task}.task"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"config.task={config.task!r}: there is no module {name}; allowed: a folder of "
            "jaxact/tasks, or the dotted name of a module with make(config)"
        ) from None
    return module.make(config)

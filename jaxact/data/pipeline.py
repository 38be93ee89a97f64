"""Batches as a function of the step: order, randomness of each example, reading ahead.

The record and the random generator at position k of the training stream (k = step * batch + place)
follow from (seed, k) alone, so any step can be reached without replaying the ones before it.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jaxact.config import Config, UserError
from jaxact.task import Task


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: hashing the weights would cost more
class Order:
    """Which record stands at which position of an endless training stream.

    An epoch is a permutation of the records (or n weighted draws with replacement), filled up to
    whole batches from its own start, so each epoch has ceil(n / batch) steps of one static shape.
    """

    records: int
    batch: int
    seed: int
    weights: tuple[float, ...] = ()  # () = each record once an epoch
    # Puts the records of an epoch into another order; None = as drawn.
    arrange: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None

    @property
    def per_epoch(self) -> int:
        """Positions of an epoch."""
        return -(-self.records // self.batch) * self.batch

    def __call__(self, position: int) -> int:
        """Record at a position."""
        epoch, place = divmod(position, self.per_epoch)
        return int(_epoch(self, epoch)[place])


@functools.lru_cache(maxsize=8)
def _epoch(order: Order, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((order.seed, epoch, 0))
    if order.weights:
        p = np.asarray(order.weights, np.float64)
        drawn = rng.choice(order.records, order.records, p=p / p.sum())
    else:
        drawn = rng.permutation(order.records)
    if order.arrange is not None:
        drawn = order.arrange(drawn, rng)
    return np.resize(drawn, order.per_epoch)


class _Positions:
    """The positions [start, end), or of every batch only some rows, as a random-access source."""

    def __init__(self, start: int, end: int, batch: int, rows: Sequence[int] | None = None):
        self.start, self.end, self.batch = start, end, batch
        self.rows = range(batch) if rows is None else rows

    def __len__(self) -> int:
        return (self.end - self.start) // self.batch * len(self.rows)

    def __getitem__(self, index: int) -> int:
        number, place = divmod(index, len(self.rows))
        return self.start + number * self.batch + self.rows[place]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Which record, and which part of it, stands at which position of an evaluation.

    The first parts of a batch of records come first, then their second parts, and so on.
    """

    batch: int  # examples of a batch
    count: int = 1  # parts of an example

    def __call__(self, position: int) -> tuple[int, int]:
        """(record, part) at a position."""
        number, place = divmod(position, self.batch)
        group, part = divmod(number, self.count)
        return group * self.batch + place, part


@dataclasses.dataclass(frozen=True, eq=False)
class Load:
    """Position -> the arrays of one example, with `id` and `mask`.

    Worker processes get a copy, so it holds of the task only what prepares examples: a task may
    hold what cannot leave this process, and workers import no JAX.
    """

    prepare: Callable[..., dict[str, Any]]
    shapes: dict[str, tuple[tuple[int, ...], Any]]  # of what `prepare` returns
    source: Any
    stage_data: Any
    split: str
    seed: int
    places: Order | Parts  # training | evaluation
    skip: bool  # mask out examples that cannot be read; else the first of them is an error
    failed: dict[int, str] | None = None  # record -> why it cannot be read; None = not collected
    told: set[int] = dataclasses.field(default_factory=set)  # records whose error was printed

    def __call__(self, position: int) -> dict[str, Any]:
        which: dict[str, int] = {}
        if isinstance(self.places, Order):
            record, draw = self.places(position), position
        else:
            record, part = self.places(position)
            draw = record
            which = {"part": part} if self.places.count > 1 else {}
        if record >= len(self.source):
            return self.padding()
        rng = np.random.default_rng((self.seed, draw, 1))
        try:
            arrays = self.prepare(self.source[record], rng, self.stage_data, self.split, **which)
        except UserError as error:
            self.refuse(record, error)
            return self.padding(record)
        return {**arrays, "id": np.int32(record), "mask": np.bool_(True)}

    def refuse(self, record: int, error: UserError) -> None:
        """Collects or prints why an example cannot be read, or raises it.

        An evaluation reads the parts of an example one by one, but prints its error once.
        """
        if self.failed is not None:
            self.failed.setdefault(record, str(error))
        elif not self.skip:
            raise error
        elif record not in self.told or isinstance(self.places, Order):
            self.told.add(record)
            print(f"skipped (masked out): {error}", file=sys.stderr, flush=True)

    def padding(self, record: int = -1) -> dict[str, Any]:
        """Zeros of the right shapes, masked out."""
        zeros = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.shapes.items()}
        return {**zeros, "id": np.int32(record), "mask": np.bool_(False)}


def loader(
    config: Config,
    task: Task,
    source: Any,
    stage_data: Any,
    split: str,
    places: Order | Parts,
    failed: dict[int, str] | None = None,
) -> Load:
    """The `Load` of a split; `places` is an `Order` in training, `Parts` in evaluation."""
    prepare, shapes = task.training.prepare, task.training.shapes(stage_data, split)
    skip = config.input.broken == "skip"
    return Load(prepare, shapes, source, stage_data, split, config.seed, places, skip, failed)


def _run(
    load: Load, positions: _Positions, config: Config
) -> Generator[dict[str, np.ndarray], None, None]:
    dataset: Any = grain.MapDataset.source(positions).map(load).batch(len(positions.rows))
    options = config.input
    read = grain.ReadOptions(
        num_threads=options.threads, prefetch_buffer_size=max(options.prefetch, options.threads)
    )
    stream: Any = dataset.to_iter_dataset(read)
    if options.workers:
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(options.workers, per_worker_buffer_size=1)
        )
    iterator = iter(stream)
    try:
        for batch in iterator:
            # Worker processes write again to the shared memory that their arrays lie in.
            yield {k: np.array(v) if options.workers else v for k, v in batch.items()}
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def train_batches(
    config: Config,
    task: Task,
    source: Any,
    stage_data: Any,
    start: int,
    end: int,
    rows: Sequence[int] | None = None,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Batches of steps [start, end) of one stage; leading axis b = config.batch_size.

    With `rows` only those of every batch: what one of several hosts reads.
    """
    size, training = config.batch_size, task.training
    weights = training.sampler(source, stage_data) if training.sampler else None
    order = Order(
        len(source),
        size,
        config.seed,
        () if weights is None else tuple(float(w) for w in weights),
        functools.partial(training.arrange, source) if training.arrange else None,
    )
    load = loader(config, task, source, stage_data, "train", order)
    return _run(load, _Positions(start * size, end * size, size, rows), config)


def eval_batches(
    config: Config,
    task: Task,
    source: Any,
    stage_data: Any,
    split: str,
    size: int,
    failed: dict[int, str] | None = None,
    rows: Sequence[int] | None = None,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Every example once, in order; the last batch is padded with mask = False.

    Where examples have parts, `task.evaluation.parts(split)` batches in a row hold the parts of the
    same examples. With `failed`, examples that cannot be read are masked out and their errors put
    there; this process then reads them itself, without workers. `rows` as in `train_batches`.
    """
    parts = Parts(size, task.evaluation.parts(split))
    load = loader(config, task, source, stage_data, split, parts, failed)
    if failed is not None:
        threads = dataclasses.replace(config.input, workers=0)
        config = dataclasses.replace(config, input=threads)
    padded = -(-len(source) // size) * size
    return _run(load, _Positions(0, padded * parts.count, size, rows), config)


def read_ahead(items: Iterator[Any]) -> Generator[Any, None, None]:
    """The same items; while one is used, a thread makes the next two."""
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        ready = collections.deque(thread.submit(next, items, end) for _ in range(2))
        while (item := ready.popleft().result()) is not end:
            ready.append(thread.submit(next, items, end))
            yield item


def random_batch(
    shapes: dict[str, tuple[tuple[int, ...], Any]], size: int
) -> dict[str, np.ndarray]:
    """A batch of valid random bytes for benchmarks: integers in range of uint8, labels 0."""
    rng = np.random.default_rng(0)
    batch: dict[str, np.ndarray] = {"id": np.arange(size, dtype=np.int32)}
    batch["mask"] = np.ones(size, bool)
    for name, (shape, dtype) in shapes.items():
        if np.issubdtype(dtype, np.floating):
            batch[name] = rng.uniform(0, 32, (size, *shape)).astype(dtype)
        elif np.dtype(dtype) == np.uint8:
            batch[name] = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
        else:
            batch[name] = np.zeros((size, *shape), dtype)
    return batch

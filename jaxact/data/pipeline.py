"""Batches as a function of the step: order, per-example randomness, reading ahead.

Position k of the training stream (k = step * batch + place) names a record and a random generator
by arithmetic on (seed, k) alone, so any step can be reached without replaying the ones before it.
"""

import dataclasses
import functools
import queue
import sys
import threading
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
    arrange: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = (
        None  # None = as drawn
    )

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
    """Positions [start, end), or some rows of every batch among them, as a random-access source."""

    def __init__(self, start: int, end: int, batch: int, rows: Sequence[int] | None = None):
        self.start, self.end, self.batch = start, end, batch
        self.rows = range(batch) if rows is None else rows

    def __len__(self) -> int:
        return (self.end - self.start) // self.batch * len(self.rows)

    def __getitem__(self, index: int) -> int:
        number, place = divmod(index, len(self.rows))
        return self.start + number * self.batch + self.rows[place]


class _Load:
    """Position -> one example's arrays with `id` and `mask`."""

    def __init__(self, task: Task, source: Any, stage_data: Any, split: str, config: Config):
        # Not the task: worker processes get this object, and a task may hold what only runs here.
        self.prepare, self.source, self.stage_data, self.split = (
            task.training.prepare,
            source,
            stage_data,
            split,
        )
        self.shapes = task.training.shapes(stage_data, split)
        self.seed, self.skip = config.seed, config.input.broken == "skip"
        self.order: Callable[[int], int] | None = None
        self.size = self.parts = 1  # evaluation: examples in a batch, parts of each
        self.failed: dict[int, str] | None = None  # filled instead of stopping
        self.told: set[int] = set()

    def __call__(self, position: int) -> dict[str, Any]:
        which: dict[str, int] = {}
        if self.order is not None:
            record = self.order(position)
        else:
            record, part = _placed(position, self.size, self.parts)
            which = {"part": part} if self.parts > 1 else {}
        if record >= len(self.source):
            return self.padding()
        draw = position if self.order is not None else record
        rng = np.random.default_rng((self.seed, draw, 1))
        try:
            found = self.prepare(self.source[record], rng, self.stage_data, self.split, **which)
        except UserError as error:
            self.refuse(record, error)
            return self.padding(record)
        return {**found, "id": np.int32(record), "mask": np.bool_(True)}

    def refuse(self, record: int, error: UserError) -> None:
        """Notes an example that cannot be read, once; or stops."""
        if self.failed is not None:
            self.failed.setdefault(record, str(error))
        elif not self.skip:
            raise error
        elif record not in self.told or self.order is not None:
            self.told.add(record)
            print(f"skipped (masked out): {error}", file=sys.stderr, flush=True)

    def padding(self, record: int = -1) -> dict[str, Any]:
        """Zeros of the right shapes, masked out."""
        zeros = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.shapes.items()}
        return {**zeros, "id": np.int32(record), "mask": np.bool_(False)}


def _placed(position: int, size: int, parts: int) -> tuple[int, int]:
    """(record, part) of a position: `size` records' first parts, their second parts, ..."""
    batch, place = divmod(position, size)
    group, part = divmod(batch, parts)
    return group * size + place, part


def _run(
    load: _Load, positions: _Positions, config: Config
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
        for found in iterator:
            # Worker processes hand over views of shared memory that they will write to again.
            yield {k: np.array(v) if options.workers else v for k, v in found.items()}
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
    weights = task.training.sampler(source, stage_data) if task.training.sampler else None
    order = Order(
        len(source),
        config.batch_size,
        config.seed,
        () if weights is None else tuple(float(w) for w in weights),
        functools.partial(task.training.arrange, source) if task.training.arrange else None,
    )
    load = _Load(task, source, stage_data, "train", config)
    load.order = order
    size = config.batch_size
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

    Where examples come in parts, `task.parts(split)` batches in a row hold the parts of the same
    examples. With `failed`, examples that cannot be read are masked out and their reasons put
    there (which takes threads: no worker processes are started). `rows` as in `train_batches`.
    """
    load = _Load(task, source, stage_data, split, config)
    load.size, load.parts, load.failed = size, task.evaluation.parts(split), failed
    if failed is not None:
        threads = dataclasses.replace(config.input, workers=0)
        config = dataclasses.replace(config, input=threads)
    padded = -(-len(source) // size) * size
    return _run(load, _Positions(0, padded * load.parts, size, rows), config)


def read_ahead(items: Iterator[Any]) -> Generator[Any, None, None]:
    """The same items, the next one being made by a thread while one is used."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
    over = threading.Event()

    def put(kind: str, item: Any) -> None:
        while not over.is_set():
            try:
                return ready.put((kind, item), timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put("item", item)
                if over.is_set():
                    return
        except BaseException as error:
            put("error", error)
        else:
            put("end", None)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        over.set()
        thread.join()


def random_batch(
    shapes: dict[str, tuple[tuple[int, ...], Any]], size: int
) -> dict[str, np.ndarray]:
    """A batch of valid random bytes for benchmarks: integers in range of uint8, labels 0."""
    rng = np.random.default_rng(0)
    batch: dict[str, np.ndarray] = {
        "id": np.arange(size, dtype=np.int32),
        "mask": np.ones(size, bool),
    }
    for name, (shape, dtype) in shapes.items():
        if np.issubdtype(dtype, np.floating):
            batch[name] = rng.uniform(0, 32, (size, *shape)).astype(dtype)
        elif np.dtype(dtype) == np.uint8:
            batch[name] = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
        else:
            batch[name] = np.zeros((size, *shape), dtype)
    return batch

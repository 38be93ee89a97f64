"""Batches as a function of the step: order, per-example randomness, reading ahead.

Position k of the training stream (k = step * batch + place) names a record and a random generator
by arithmetic on (seed, k) alone, so any step can be reached without replaying the ones before it.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Generator
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
    return np.resize(drawn, order.per_epoch)


class _Positions:
    """Positions [start, end) as a random-access source of plain integers."""

    def __init__(self, start: int, end: int):
        self.start, self.end = start, end

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: int) -> int:
        return self.start + index


class _Load:
    """Position -> one example's arrays with `id` and `mask`."""

    def __init__(self, task: Task, source: Any, stage: Any, purpose: str, config: Config):
        self.task, self.source, self.stage, self.purpose = task, source, stage, purpose
        self.shapes = task.shapes(stage, purpose)
        self.seed, self.skip = config.seed, config.input.broken == "skip"
        self.order: Callable[[int], int] | None = None

    def __call__(self, position: int) -> dict[str, Any]:
        train = self.order is not None
        record = self.order(position) if self.order is not None else position
        if record >= len(self.source):
            return self.padding()
        rng = np.random.default_rng((self.seed, position if train else record, 1))
        try:
            found = self.task.prepare(self.source[record], rng, self.stage, self.purpose)
        except UserError as error:
            if not self.skip:
                raise
            print(f"skipped (masked out): {error}", file=sys.stderr, flush=True)
            return self.padding(record)
        return {**found, "id": np.int32(record), "mask": np.bool_(True)}

    def padding(self, record: int = -1) -> dict[str, Any]:
        """Zeros of the right shapes, masked out."""
        zeros = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.shapes.items()}
        return {**zeros, "id": np.int32(record), "mask": np.bool_(False)}


def _run(
    load: _Load, positions: _Positions, batch: int, config: Config
) -> Generator[dict[str, np.ndarray], None, None]:
    dataset: Any = grain.MapDataset.source(positions).map(load).batch(batch)
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
    config: Config, task: Task, source: Any, stage: Any, start: int, end: int
) -> Generator[dict[str, np.ndarray], None, None]:
    """Batches of steps [start, end) of one stage; leading axis b = config.batch_size."""
    weights = task.sampler(source, stage) if task.sampler else None
    order = Order(
        len(source),
        config.batch_size,
        config.seed,
        () if weights is None else tuple(float(w) for w in weights),
    )
    load = _Load(task, source, stage, "train", config)
    load.order = order
    size = config.batch_size
    return _run(load, _Positions(start * size, end * size), size, config)


def eval_batches(
    config: Config, task: Task, source: Any, stage: Any, purpose: str, size: int
) -> Generator[dict[str, np.ndarray], None, None]:
    """Every example once, in order; the last batch is padded with mask = False."""
    padded = -(-len(source) // size) * size
    load = _Load(task, source, stage, purpose, config)
    return _run(load, _Positions(0, padded), size, config)


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

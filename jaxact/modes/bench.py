"""`--mode=bench`: compile time, the device step alone, the input pipeline alone, both; as JSON."""

import itertools
import statistics
import time
from typing import Any

import jax

from jaxact.config import UserError
from jaxact.data.pipeline import random_batch, train_batches
from jaxact.train import mesh, workdir
from jaxact.train.evaluation import ahead
from jaxact.train.restore import start
from jaxact.train.run import Run
from jaxact.train.schedule import epoch_steps
from jaxact.train.setup import memory
from jaxact.train.step import make_train_step


def bench(run: Run, count: int = 10) -> dict[str, Any]:
    """Times `count` steps at the recipe's shapes; without data only the device is measured."""
    config, size = run.config, run.config.batch_size
    note = ""
    try:
        per_epoch = epoch_steps(len(run.source("train")), size)
    except UserError as error:
        per_epoch, note = 100, f"no pipeline figures: {error}"
    schedule = run.plan(per_epoch)
    row = schedule.rows[0]
    state, groups = start(run, row.stage_data, workdir.say)
    batch = mesh.split(
        random_batch(run.task.training.shapes(row.stage_data, "train"), size), run.mesh
    )
    step = make_train_step(config, run.task, schedule, groups, row, run.layout, state)
    begin = time.perf_counter()
    lowered = step.lower(state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    workdir.say(memory(compiled))
    state, times = device_only(compiled, state, batch, count)
    median = statistics.median(times)
    measured: dict[str, Any] = {
        "batch_size": size,
        "shapes": {k: list(v.shape) for k, v in batch.items()},
        "dtype": config.dtype,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "trace_s": round(traced - begin, 2),
        "compile_s": round(done - traced, 2),
        "device_step_ms": {
            name: round(1e3 * seconds, 1)
            for name, seconds in (("median", median), ("min", min(times)), ("max", max(times)))
        },
        "device_steps_per_s": round(1 / median, 4),
        "device_examples_per_s": round(size / median, 3),
        "peak_device_bytes": peak_bytes(compiled),
        "versions": workdir.versions(),
    }
    if note:
        return {**measured, "note": note}
    measured["pipeline_examples_per_s"] = round(pipeline_only(run, row, count), 2)
    measured["end_to_end_examples_per_s"] = round(together(run, row, compiled, state, count), 3)
    return measured


def device_only(compiled: Any, state: Any, batch: Any, count: int) -> tuple[Any, list[float]]:
    """Seconds of each step on a batch that is already on the device."""
    times = []
    for index in range(count + 1):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        if index:  # the first step also pays for page faults and allocation
            times.append(time.perf_counter() - begin)
    return state, times


def pipeline_only(run: Run, row: Any, count: int) -> float:
    """Examples per second of the host pipeline, after its first batch."""
    stream = train_batches(run.config, run.task, run.source("train"), row.stage_data, 0, count + 1)
    next(stream)
    begin = time.perf_counter()
    read = sum(1 for _ in itertools.islice(stream, count))
    return read * run.config.batch_size / (time.perf_counter() - begin)


def together(run: Run, row: Any, compiled: Any, state: Any, count: int) -> float:
    """Examples per second of training as the loop does it, after its first step."""
    stream = train_batches(run.config, run.task, run.source("train"), row.stage_data, 0, count + 1)
    done, begin = 0, time.perf_counter()
    for batch in ahead(stream, lambda b: mesh.split(b, run.mesh)):
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        if done == 0:
            begin = time.perf_counter()
        done += 1
    return (done - 1) * run.config.batch_size / (time.perf_counter() - begin)


def peak_bytes(compiled: Any) -> int:
    """The peak of the device's allocator; where it keeps none, arguments and temporaries."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    memory = compiled.memory_analysis()
    return int(memory.argument_size_in_bytes + memory.temp_size_in_bytes)

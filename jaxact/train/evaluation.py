"""Evaluation on one split: every example once, on any number of devices."""

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np

from jaxact.config import UserError
from jaxact.data.pipeline import eval_batches
from jaxact.task import Task
from jaxact.train import mesh, workdir
from jaxact.train.run import Run, eval_size
from jaxact.train.step import EvalStep


def ahead(batches: Iterator[Any], put: Any) -> Iterator[Any]:
    """Yields `put(batch)` of each batch; the next one is on its way to the device already."""
    last = None
    for batch in batches:
        sent = put(batch)
        if last is not None:
            yield last
        last = sent
    if last is not None:
        yield last


def results(
    program: EvalStep,
    variables: Any,
    batches: Generator[dict[str, np.ndarray], None, None],
    grid: Any,
) -> Iterator[tuple[np.ndarray, Any, dict[str, np.ndarray]]]:
    """(ids i32[n], metrics, rows [n, ...]) of the real examples of each batch.

    `program.parts` successive batches are parts of the same examples. Their outputs are added up,
    so one part is in memory (and one on its way) however many there are. An example is left out if
    any of its parts could not be read.
    """
    sums, mask = None, np.ones(0, bool)
    with contextlib.closing(batches):
        stream = ahead(batches, lambda b: (b, mesh.split(b, grid)))
        for number, (host, device) in enumerate(stream):
            part = number % program.parts
            mask = np.asarray(host["mask"] if part == 0 else mask & host["mask"])
            if program.parts == 1:
                metrics, rows = program.whole(variables, device)
            else:
                outputs = program.infer(variables, device)
                sums = outputs if part == 0 else jax.tree.map(lambda a, b: a + b, sums, outputs)
                jax.block_until_ready(sums)  # else many parts would wait on the device
                if part < program.parts - 1:
                    continue
                metrics, rows = program.close(sums, device | mesh.split({"mask": mask}, grid))
            numbers = np.asarray(host["id"])
            if mesh.several(grid):
                ours = mesh.split({"id": numbers, "mask": mask}, grid)
                metrics, rows, all_of = mesh.whole((metrics, rows, ours), grid)
                numbers, mask = np.asarray(all_of["id"]), np.asarray(all_of["mask"])
            yield numbers[mask], metrics, {k: np.asarray(array)[mask] for k, array in rows.items()}


def evaluate(
    run: Run, program: EvalStep, variables: Any, split: str, stage_data: Any, source: Any = None
) -> tuple[dict[str, float], dict[str, np.ndarray], list[str]]:
    """(scores, rows [n, ...] in the order of the source, ids) of one split.

    Metric pytrees are sums, so batches merge by addition; the task masks padding in them.
    """
    source = run.source(split) if source is None else source
    size, merged, kept, ids = eval_size(run.config), None, [], []
    mine = mesh.rows(run.mesh, size)
    stream = eval_batches(run.config, run.task, source, stage_data, split, size, rows=mine)
    for numbers, metrics, rows in results(program, variables, stream, run.mesh):
        merged = metrics if merged is None else jax.tree.map(lambda a, b: a + b, merged, metrics)
        kept.append(rows)
        ids += [source.ids[i] for i in numbers]
    if not ids:
        raise UserError(f"no example of the {split} split could be read")
    rows = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
    return run.task.evaluation.score(jax.device_get(merged), rows), rows, ids


def view_texts(task: Task) -> dict[str, str]:
    """How val and test see an example, in words; {} where the task does not say."""
    texts = {split: task.evaluation.views(split) for split in ("val", "test")}
    return texts if any(texts.values()) else {}


def say_views(task: Task) -> dict[str, dict[str, str]]:
    """Prints the views of val and test on one line, with a warning where they differ.

    Returns {"views": texts} for the results, or {} where the task does not say.
    """
    texts = view_texts(task)
    if not texts:
        return {}
    workdir.say("views " + " | ".join(f"{name}: {text}" for name, text in texts.items()))
    if texts["val"] != texts["test"]:
        different = "val and test see an example differently"
        workdir.say(f"warning: {different}, so their scores do not compare")
    return {"views": texts}

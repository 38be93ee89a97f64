"""Evaluation on one split: every example once, on any number of devices."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxact.config import UserError
from jaxact.data.pipeline import eval_batches
from jaxact.train import mesh
from jaxact.train.build import Run, eval_size


def ahead(batches: Iterator[Any], put: Any) -> Iterator[Any]:
    """Keeps one batch on its way to the device while the one before it is computed."""
    last = None
    for batch in batches:
        found = put(batch)
        if last is not None:
            yield last
        last = found
    if last is not None:
        yield last


def evaluate(
    run: Run, program: Any, variables: Any, purpose: str, stage: Any, source: Any = None
) -> tuple[dict[str, float], dict[str, np.ndarray], list[str]]:
    """(scores, rows [n, ...] in the order of the source, ids) of one split.

    Metric pytrees are sums, so batches merge by addition; padding is masked by the task and dropped
    here.
    """
    source = run.source(purpose) if source is None else source
    merged, kept, ids = None, [], []
    stream = eval_batches(run.config, run.task, source, stage, purpose, eval_size(run.config))
    for batch in ahead(stream, lambda b: (b, mesh.split(b, run.mesh))):
        host, device = batch
        metrics, rows = program(variables, device)
        merged = metrics if merged is None else jax.tree.map(lambda a, b: a + b, merged, metrics)
        real = np.asarray(host["mask"])
        kept.append({name: np.asarray(array)[real] for name, array in rows.items()})
        ids += [source.ids[i] for i in np.asarray(host["id"])[real]]
    if not ids:
        raise UserError(f"no example of the {purpose} split could be read")
    rows = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
    return run.task.score(jax.device_get(merged), rows), rows, ids

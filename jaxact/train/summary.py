"""From a finished run to its report page."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxact.evaluate.metrics import Confusion
from jaxact.evaluate.report import Example, Report, Result, write
from jaxact.train.run import Run

SHOWN = 8  # worst and best examples


def write_report(
    path: pathlib.Path,
    run: Run,
    results: dict[str, Any],
    history: list[dict[str, Any]],
    rows: dict[str, np.ndarray],
    ids: list[str],
    figures: Sequence[Any] = (),
) -> None:
    """Writes the page of results, curves, confusion matrix and examples; `ids` name the rows.

    Classification parts appear where the rows hold `scores` f[n, k] and `label` i[n].
    """
    command = "python -m jaxact.main " + " ".join(sys.argv[1:])
    numbers = [
        Result(f"{name}, {results['split']}", value, results["weights"], command)
        for name, value in results["scores"].items()
    ]
    numbers += [
        Result(name, results[name])
        for name in ("parameters", "examples_per_s", "wall_s", "steps", "stop_reason")
    ]
    config, classes = (
        json.loads((run.workdir / "config.json").read_text()),
        run.task.training.classes,
    )
    report = Report(
        title=f"{run.config.task}: {run.workdir.name}",
        summary=f"{results['steps']} steps, {results['stop_reason']}.",
        results=numbers,
        metrics=history,
        classes=classes,
        figures=figures,
        config=config["config"],
        environment=config["versions"],
    )
    if "scores" in rows and "label" in rows and classes:
        known = np.flatnonzero(rows["label"] >= 0)
        scores, labels = rows["scores"][known], rows["label"][known]
        table = Confusion.count(scores.argmax(1), labels, len(classes)).table
        worst, best = _examples(run, results["split"], [ids[i] for i in known], scores, labels)
        report = dataclasses.replace(report, confusion=table, worst=worst, best=best)
    write(path, report)


def _examples(
    run: Run, split: str, ids: list[str], scores: np.ndarray, labels: np.ndarray
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The confidently wrong and the confidently right, most confident first."""
    source, names = run.source(split), run.task.training.classes
    place = {name: index for index, name in enumerate(source.ids)}
    share = scores / np.maximum(np.abs(scores).sum(1, keepdims=True), 1e-12)
    if (scores < 0).any():  # logits
        power = np.exp(scores - scores.max(1, keepdims=True))
        share = power / power.sum(1, keepdims=True)
    guess, sure = share.argmax(1), share.max(1)
    order = np.argsort(-sure, kind="stable")

    def frames(name: str) -> Any:
        thumbnail = run.task.shipping.thumbnail
        return None if thumbnail is None else thumbnail(source[place[name]])

    def chosen(right: bool) -> tuple[Example, ...]:
        picks = [i for i in order if (guess[i] == labels[i]) == right][:SHOWN]
        return tuple(
            Example(ids[i], names[labels[i]], names[guess[i]], float(sure[i]), frames(ids[i]))
            for i in picks
        )

    return chosen(False), chosen(True)

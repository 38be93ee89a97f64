"""The end of a training: the final test with the best checkpoint, and what is written about it."""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxact.task import Ending, Extra
from jaxact.train import checkpoint, hosts, mesh, predictions, summary, workdir
from jaxact.train import state as states
from jaxact.train.evaluation import evaluate, say_views
from jaxact.train.restore import stored_variables
from jaxact.train.run import Run
from jaxact.train.setup import Fit


def earlier_results(fit: Fit) -> dict[str, Any] | None:
    """results.json of this very step: the training was complete before."""
    path = fit.run.workdir / "results.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    if results["steps"] != int(fit.state.step):
        return None
    workdir.say(f"already complete ({results['stop_reason']}); see {path}, or use --mode=eval")
    return results


def finish(fit: Fit, reason: str, began: float) -> dict[str, Any]:
    """Final test with the best checkpoint; writes predictions, results.json and the report."""
    run, config = fit.run, fit.run.config
    best = fit.files.best()
    variables, kind = best_variables(fit, best)
    split = config.eval.split
    # As the validation that chose it saw its examples.
    stage_data = (fit.plan.rows[-1] if best is None else fit.plan.row(max(best - 1, 0))).stage_data
    scores, rows, ids = evaluate(run, fit.programs[split], variables, split, stage_data)
    step = int(fit.state.step)
    if not any(row["split"] == split and row["step"] == step for row in fit.book.rows):
        fit.book.add(step, split, scores)
    shared = selection(run, fit.book.rows, ids)
    tested = fit.files.folder / str(step if best is None else best)
    origin = predictions.of(
        mesh.own(variables, run.mesh), str(tested), run.workdir, run.task.evaluation.views(split)
    )
    stored = run.workdir / "predictions" / f"{split}.npz"
    predictions.write_predictions(stored, ids, rows, origin)
    results: dict[str, Any] = {
        "split": split,
        "scores": scores,
        **say_views(run.task),
        **({"selected_on_test": True} if shared else {}),
        "best_step": best,
        "best_val": fit.files.metrics(best) if best is not None else {},
        "weights": kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(fit.state.params)),
        "examples_per_s": round(fit.progress.rate, 3),
        "wall_s": round(time.monotonic() - began, 1),
        "steps": step,
        "stop_reason": reason,
        "versions": workdir.versions(),
    }
    ending = Ending(
        split=split,
        ids=ids,
        rows=rows,
        scores=scores,
        best_val=results["best_val"],
        history=fit.book.rows,
        variables=variables,
        source=run.source(split),
        stage_data=stage_data,
        pictures=config.save.report,
    )
    extra = concluded(run, ending)
    results |= extra.numbers
    shown = ", ".join(f"{k} {v:.4f}" for k, v in scores.items())
    workdir.say(f"{split} ({kind} weights of step {best}): {shown}")
    if config.save.report and hosts.first():
        page = run.workdir / "report.html"
        summary.write_report(page, run, results, fit.book.rows, rows, ids, extra.figures)
        workdir.say(f"report: {page}")
    # Last: where it exists, everything else does.
    workdir.write_json(run.workdir / "results.json", results)
    return results


def selection(run: Run, history: Sequence[dict[str, Any]], ids: Sequence[str]) -> int:
    """How many of the tested examples the checkpoint was chosen on; one line where there are any.

    Nothing is chosen by a single validation.
    """
    count = sum(row["split"] == "val" for row in history)
    shared = len(set(ids) & set(run.source("val").ids)) if count > 1 else 0
    if shared:
        workdir.say(
            f"warning: the checkpoint is the best of {count} validations on {shared} of the "
            f"{len(ids)} examples that are tested: the scores are too good; give the final test a "
            "split of its own, or validate once (config.eval.every=100%)"
        )
    return shared


def concluded(run: Run, ending: Ending) -> Extra:
    """What the task adds; its files are written. Of several hosts the first one's work alone."""
    if run.task.evaluation.conclude is None:
        return Extra()
    ending = dataclasses.replace(ending, variables=mesh.own(ending.variables, run.mesh))
    extra = run.task.evaluation.conclude(ending) if hosts.first() else Extra()
    workdir.write_texts(run.workdir, extra.files)
    return extra


def best_variables(fit: Fit, best: int | None) -> tuple[Any, str]:
    """The variables that validation liked best, and whether they are averaged."""
    kind = "ema" if fit.state.ema else "raw"
    if best is None or best == int(fit.state.step):
        return states.weights(fit.state, ema=True), kind
    folder = fit.files.folder / str(best)
    return fit.run.layout.place(stored_variables(checkpoint.read_weights(folder))), kind

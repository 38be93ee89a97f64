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
from jaxact.train.setup import Setup


def earlier_results(setup: Setup) -> dict[str, Any] | None:
    """What results.json holds if it is of this very step: the training was complete before."""
    path = setup.run.workdir / "results.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    if results["steps"] != int(setup.state.step):
        return None
    workdir.say(f"already complete ({results['stop_reason']}); see {path}, or use --mode=eval")
    return results


def finish(setup: Setup, reason: str, began: float) -> dict[str, Any]:
    """Final test with the best checkpoint; writes predictions, results.json and the report."""
    run, config = setup.run, setup.run.config
    split, step, best = config.eval.split, int(setup.state.step), setup.checkpoints.best()
    variables, kind = best_variables(setup, best)
    # What the validation that chose it was prepared with.
    row = setup.plan.rows[-1] if best is None else setup.plan.row(max(best - 1, 0))
    scores, rows, ids = evaluate(run, setup.programs[split], variables, split, row.stage_data)
    if not any(row["split"] == split and row["step"] == step for row in setup.log.rows):
        setup.log.add(step, split, scores)
    shared = selection(run, setup.log.rows, ids)
    checkpoints = setup.checkpoints.folder
    tested = checkpoints / str(step if best is None else best)
    own, views = mesh.own(variables, run.mesh), run.task.evaluation.views(split)
    record = predictions.made_with(own, str(tested), run.workdir, views)
    predictions.write_predictions(run.workdir / "predictions" / f"{split}.npz", ids, rows, record)
    results: dict[str, Any] = {
        "split": split,
        "scores": scores,
        **say_views(run.task),
        **({"selected_on_test": True} if shared else {}),
        "best_step": best,
        "best_val": {} if best is None else checkpoint.stored_metrics(checkpoints / str(best)),
        "weights": kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(setup.state.params)),
        "examples_per_s": round(setup.progress.rate, 3),
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
        history=setup.log.rows,
        variables=variables,
        source=run.source(split),
        stage_data=row.stage_data,
        pictures=config.save.report,
    )
    extra = concluded(run, ending)
    results |= extra.numbers
    shown = ", ".join(f"{k} {v:.4f}" for k, v in scores.items())
    workdir.say(f"{split} ({kind} weights of step {best}): {shown}")
    if config.save.report and hosts.first():
        page = run.workdir / "report.html"
        summary.write_report(page, run, results, setup.log.rows, rows, ids, extra.figures)
        workdir.say(f"report: {page}")
    # Last: where it exists, everything else does.
    workdir.write_json(run.workdir / "results.json", results)
    return results


def selection(run: Run, history: Sequence[dict[str, Any]], ids: Sequence[str]) -> int:
    """Number of tested examples that several validations chose the checkpoint on; warns of them."""
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
    """What the task adds at the end; writes its files. Of several hosts the first one does it."""
    if run.task.evaluation.conclude is None:
        return Extra()
    ending = dataclasses.replace(ending, variables=mesh.own(ending.variables, run.mesh))
    extra = run.task.evaluation.conclude(ending) if hosts.first() else Extra()
    workdir.write_texts(run.workdir, extra.files)
    return extra


def best_variables(setup: Setup, best: int | None) -> tuple[Any, str]:
    """The variables of the best checkpoint (None = the last state), and "ema" or "raw"."""
    kind = "ema" if setup.state.ema else "raw"
    if best is None or best == int(setup.state.step):
        return states.weights(setup.state), kind
    folder = setup.checkpoints.folder / str(best)
    return setup.run.layout.place(stored_variables(checkpoint.read_weights(folder))), kind

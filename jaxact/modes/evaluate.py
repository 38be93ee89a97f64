"""`--mode=eval`: one split with the weights of a checkpoint, as the end of a training does it."""

from typing import Any

from jaxact.task import Ending
from jaxact.train import mesh, predictions
from jaxact.train.evaluation import evaluate, say_views
from jaxact.train.finish import concluded
from jaxact.train.predictions import write_predictions
from jaxact.train.restore import evaluated, load, view_of
from jaxact.train.run import Run
from jaxact.train.step import make_eval_step
from jaxact.train.workdir import say, write_json


def evaluate_split(run: Run, where: str) -> dict[str, Any]:
    """Scores of `config.eval.split`; writes predictions/<split>.npz and eval_<split>.json."""
    purpose = run.config.eval.split
    source = run.source(purpose)
    stage = view_of(run, where)
    variables, origin = load(run, where, stage, evaluated(run, stage, purpose))
    seen = say_views(run.task)
    scores, rows, ids = evaluate(
        run, make_eval_step(run.task, purpose), variables, purpose, stage, source
    )
    stored = run.workdir / "predictions" / f"{purpose}.npz"
    before = predictions.stored(stored)
    own = mesh.own(variables, run.mesh)
    made = predictions.of(own, origin, run.workdir, run.task.evaluation.views(purpose))
    if before.weights and before != made:
        say(f"{stored}: was made with {before.text()}, is replaced with {made.text()}")
    write_predictions(stored, ids, rows, made)
    found = {
        "split": purpose,
        "checkpoint": origin,
        "examples": len(ids),
        **seen,
        "scores": scores,
    }
    ending = Ending(
        split=purpose,
        ids=ids,
        rows=rows,
        scores=scores,
        best_val={},
        history=(),
        variables=variables,
        source=source,
        stage=stage,
        pictures=False,
    )
    found |= concluded(run, ending).numbers
    write_json(run.workdir / f"eval_{purpose}.json", found)
    return found

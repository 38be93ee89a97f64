"""`--mode=eval`: evaluates a checkpoint on one split, as at the end of a training."""

from typing import Any

from jaxact.task import Ending
from jaxact.train import mesh, predictions
from jaxact.train.evaluation import evaluate, say_views
from jaxact.train.finish import concluded
from jaxact.train.predictions import write_predictions
from jaxact.train.restore import evaluated, load, stage_data_of
from jaxact.train.run import Run
from jaxact.train.step import make_eval_step
from jaxact.train.workdir import say, write_json


def evaluate_split(run: Run, where: str) -> dict[str, Any]:
    """Scores of `config.eval.split`; writes predictions/<split>.npz and eval_<split>.json."""
    split = run.config.eval.split
    source = run.source(split)
    stage_data = stage_data_of(run, where)
    variables, origin = load(run, where, stage_data, evaluated(run, stage_data, split))
    seen = say_views(run.task)
    scores, rows, ids = evaluate(
        run, make_eval_step(run.task, split), variables, split, stage_data, source
    )
    stored = run.workdir / "predictions" / f"{split}.npz"
    before = predictions.stored(stored)
    own = mesh.own(variables, run.mesh)
    made = predictions.made_with(own, origin, run.workdir, run.task.evaluation.views(split))
    if before.weights and before != made:
        say(f"{stored}: was made with {before.text()}, is replaced with {made.text()}")
    write_predictions(stored, ids, rows, made)
    summary = {"split": split, "checkpoint": origin, "examples": len(ids), **seen, "scores": scores}
    ending = Ending(
        split=split,
        ids=ids,
        rows=rows,
        scores=scores,
        best_val={},
        history=(),
        variables=variables,
        source=source,
        stage_data=stage_data,
        pictures=False,
    )
    summary |= concluded(run, ending).numbers
    write_json(run.workdir / f"eval_{split}.json", summary)
    return summary

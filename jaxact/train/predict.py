"""`--mode=eval` and `--mode=predict`: a trained checkpoint on a split, or on files."""

import json
import pathlib
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.train import build, checkpoint, journal, mesh
from jaxact.train.evaluation import evaluate
from jaxact.train.finish import stored_variables
from jaxact.train.step import make_eval_step


def load(run: build.Run, where: str, stage: Any) -> tuple[Any, str]:
    """Variables of `--checkpoint` (ours or a foreign file), else the best of the work dir."""
    path = pathlib.Path(where) if where else run.workdir
    if where and path.is_file():
        variables = build.initial_variables(run, stage)
        variables, report = build.load_weights(run, path, variables)
        journal.say(report.splitlines()[0])
        return mesh.replicate(variables, run.mesh), str(path)
    if not path.exists():
        raise UserError(f"{'--checkpoint' if where else '--workdir'}={path} does not exist")
    folder = build.find_checkpoint(path)
    stored = checkpoint.read_weights(folder)
    build.same_shapes(build.abstract_variables(run, stage), stored, folder)
    kind = "ema" if stored.get("ema") else "raw"
    journal.say(f"{kind} weights of {folder}")
    return mesh.replicate(stored_variables(stored), run.mesh), str(folder)


def evaluate_split(run: build.Run, where: str) -> dict[str, Any]:
    """Scores of `config.eval.split`; writes predictions/<split>.npz and eval_<split>.json."""
    purpose = run.config.eval.split
    source = run.source(purpose)
    stage = run.plan(1).rows[-1].view
    variables, origin = load(run, where, stage)
    scores, rows, ids = evaluate(
        run, make_eval_step(run.task, purpose), variables, purpose, stage, source
    )
    journal.write_predictions(run.workdir / "predictions" / f"{purpose}.npz", ids, rows)
    found = {"split": purpose, "checkpoint": origin, "examples": len(ids), "scores": scores}
    journal.write_json(run.workdir / f"eval_{purpose}.json", found)
    return found


class Listed:
    """A list of examples as a source."""

    def __init__(self, examples: Any):
        self.examples, self.ids = examples, [example.id for example in examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


def predict(run: build.Run, where: str, inputs: str) -> list[str]:
    """One JSON line for each example of `--input`."""
    source = Listed(run.task.example(inputs))
    if not len(source):
        raise UserError(f"--input={inputs} names no example")
    stage = run.plan(1).rows[-1].view
    variables, _ = load(run, where, stage)
    program = make_eval_step(run.task, "predict")
    _, rows, ids = evaluate(run, program, variables, "predict", stage, source)
    lines = []
    for index, name in enumerate(ids):
        described = run.task.describe({k: np.asarray(v[index]) for k, v in rows.items()})
        lines.append(json.dumps({"id": name, **described}))
    return lines

"""`--mode=ensemble`: fuses the stored predictions of several runs."""

import dataclasses
import pathlib
import zipfile
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.evaluate import ensemble as fusion
from jaxact.evaluate.ensemble import Predictions
from jaxact.train import predictions
from jaxact.train.predictions import write_predictions
from jaxact.train.workdir import versions, write_json

SHOWN = ("top1", "top5", "mean_class", "nll", "ece")


@dataclasses.dataclass(frozen=True)
class Request:
    """What to fuse, and how."""

    runs: tuple[str, ...]  # DIR, FILE.npz, DIR:stream or FILE.npz:stream
    weights: tuple[float, ...]  # () = equal
    search: str  # "" = none
    space: str
    split: str


def request(runs: list[str], weights: list[str], search: str, space: str, split: str) -> Request:
    """The request of the flags. Raises: UserError for values that do not go together."""
    if not runs:
        raise UserError("--runs is missing; allowed: work dirs or .npz files, as in --runs=a,b:rgb")
    for flag, value, allowed in (
        ("space", space, fusion.SPACES),
        ("search", search, ("", *fusion.SEARCHES)),
        ("split", split, ("val", "test")),
    ):
        if value not in allowed:
            names = ", ".join(name for name in allowed if name)
            raise UserError(f"--{flag}={value} is not known; allowed: {names}")
    if len(set(runs)) < len(runs):
        twice = next(name for name in runs if runs.count(name) > 1)
        raise UserError(f"--runs names {twice} twice; allowed: each run once")
    if search and weights:
        raise UserError("--weights and --search exclude each other: a search finds the weights")
    if search and split == "val":
        raise UserError(
            "--search fits weights on val, so val cannot be what is scored; allowed: --split=test"
        )
    if search == "least_squares" and space != "prob":
        raise UserError(
            f"--search=least_squares with --space={space}: it fits probabilities; allowed: "
            "--space=prob, or --search=grid"
        )
    try:
        numbers = tuple(float(weight) for weight in weights)
    except ValueError:
        raise UserError(f"--weights={','.join(weights)}; allowed: numbers, as 0.4,0.6") from None
    fusion.shares_of(numbers, len(runs))
    return Request(tuple(runs), numbers, search, space, split)


def located(run: str, split: str) -> tuple[pathlib.Path, str]:
    """(predictions file, stream) of an entry of --runs; the stream is "" for the fused scores."""
    path, stream = pathlib.Path(run), ""
    if not path.exists() and ":" in run:
        head, stream = run.rsplit(":", 1)
        path = pathlib.Path(head)
    if not path.exists():
        raise UserError(f"--runs={run}: {path} does not exist")
    if path.is_dir():
        path = path / "predictions" / f"{split}.npz"
        if not path.is_file():
            raise UserError(f"--runs={run}: {path} does not exist; {_advice(run, stream, split)}")
    return path, stream


def _advice(run: str, stream: str, split: str) -> str:
    folder = run.removesuffix(f":{stream}")
    return f"make it with --mode=eval --config.eval.split={split} --workdir={folder}"


def read(run: str, path: pathlib.Path, stream: str) -> Predictions:
    """Predictions from a file that `write_predictions` wrote.

    Raises: UserError for another file, or a stream that it does not have.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"--runs={run}: {path} is no .npz file of plain arrays: {error}") from None
    ids, table = arrays.get("ids"), arrays.get(stream or "scores")
    if ids is None or table is None or table.ndim != 2 or len(table) != len(ids):
        # Only tables over classes can be fused.
        tables = [
            n for n, a in arrays.items() if n != "scores" and a.ndim == 2 and a.dtype.kind == "f"
        ]
        raise UserError(
            f"--runs={run}: {path} has no ids with a score table {stream or 'scores'!r}; it holds "
            f"{', '.join(arrays)}; streams to choose: {', '.join(tables) or 'none'}"
        )
    label = arrays.get("label", np.full(len(ids), -1))
    if label.shape != (len(ids),) or label.dtype.kind not in "iu":
        raise UserError(
            f"--runs={run}: {path}: label is {label.dtype}{list(label.shape)}, not i[n]"
        )
    outside = label[(label >= table.shape[1])]
    if outside.size:
        raise UserError(
            f"--runs={run}: {path}: label {outside[0]}; allowed: below {table.shape[1]}"
        )
    return Predictions(run, tuple(str(name) for name in ids), table, label.astype(np.int64))


def ensemble(request: Request, workdir: pathlib.Path) -> str:
    """Fuses and scores; writes predictions/<split>.npz and ensemble.json; returns the table.

    Raises: UserError for runs that do not fit together, weights that would be fitted on examples
    that are scored, and a work dir that belongs to a run.
    """
    split = request.split
    files = [located(run, split) for run in request.runs]
    destination = workdir / "predictions" / f"{split}.npz"
    _check_workdir(workdir, destination, [path for path, _ in files])
    runs = [read(run, *file) for run, file in zip(request.runs, files, strict=True)]
    ids, stored, label = fusion.align(runs)
    tables = fusion.moved(stored, request.runs, request.space)
    weights = fusion.shares_of(request.weights, len(runs))
    fitted: dict[str, Any] | None = None
    if request.search:
        weights, fitted = search(request, files, ids)
    fused = fusion.fuse(tables, weights.tolist(), request.space)
    pairs = zip(request.runs, stored, strict=True)
    single = {run: fusion.scores_of(table, label) for run, table in pairs}
    summary: dict[str, Any] = {
        "split": split,
        "examples": len(ids),
        "labelled": int((label >= 0).sum()),
        "space": request.space,
        "weights": dict(zip(request.runs, weights.tolist(), strict=True)),
        "search": fitted,
        "scores": fusion.scores_of(fused, label),
        "runs": single,
        "agreement": fusion.agreement(tables).tolist(),
        "versions": versions(),
    }
    rows = {"scores": fused.astype(np.float32), "label": label.astype(np.int32)}
    members = [predictions.stored(path) for path, _ in files]
    origin = predictions.fused(members, weights.tolist(), request.space)
    write_predictions(destination, list(ids), rows, origin)
    write_json(workdir / "ensemble.json", summary)
    return text(summary)


def _check_workdir(workdir: pathlib.Path, target: pathlib.Path, files: list[pathlib.Path]) -> None:
    """Raises UserError where writing would replace a run of a model, or one of the inputs."""
    if (workdir / "config.json").exists():
        raise UserError(
            f"--workdir={workdir} is the work dir of a training; allowed: another one, for the "
            "fused predictions"
        )
    if target.resolve() in [path.resolve() for path in files]:
        raise UserError(f"--workdir={workdir}: {target} is one of --runs; allowed: another")


def search(
    request: Request, files: list[tuple[pathlib.Path, str]], ids: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, Any]]:
    """(weights, how they were fitted) from the validation predictions of the same runs.

    Raises: UserError where a run has none, or they share examples with those that are scored.
    """
    runs = []
    for run, (path, stream) in zip(request.runs, files, strict=True):
        if path.name != f"{request.split}.npz":
            raise UserError(
                f"--runs={run}: --search needs the validation predictions too; allowed: work dirs, "
                f"or files named {request.split}.npz beside their val.npz"
            )
        beside = path.with_name("val.npz")
        if not beside.is_file():
            folder = str(path.parent.parent)
            raise UserError(f"--runs={run}: --search needs {beside}; {_advice(folder, '', 'val')}")
        runs.append(read(run, beside, stream))
        fitted, scored = predictions.stored(beside), predictions.stored(path)
        if fitted.weights != scored.weights:
            raise UserError(
                f"--runs={run}: --search needs both splits from the same weights; {beside.name} is "
                f"of {fitted.text()}, {path.name} of {scored.text()}; make them again with "
                "--mode=eval"
            )
    val_ids, tables, label = fusion.align(runs)
    shared = sorted(set(val_ids) & set(ids))
    if shared:
        raise UserError(
            f"--search={request.search} would fit weights on {len(shared)} of the {len(ids)} "
            f"examples that are scored, as {shared[0]!r}; allowed: --weights, or runs whose val "
            f"and {request.split} splits share nothing"
        )
    tables = fusion.moved(tables, request.runs, request.space)
    if request.search == "grid":
        weights = fusion.grid_search(tables, label, request.space)
    else:
        weights = fusion.least_squares(tables, label)
    fused = fusion.fuse(tables, weights.tolist(), request.space)
    fit = {
        "method": request.search,
        "split": "val",
        "examples": int((label >= 0).sum()),
        "scores": fusion.scores_of(fused, label),
    }
    return weights, fit


def text(summary: dict[str, Any]) -> str:
    """A table of the runs and the ensemble, and how often the runs agree."""
    names = list(summary["runs"])
    wide = max(len(name) for name in (*names, "ensemble"))
    lines = [
        f"# {summary['split']}: {summary['examples']} examples, {summary['labelled']} labelled, "
        f"averaged as {summary['space']}",
        " ".join([f"{'run':<{wide}}", f"{'weight':>7}", *(f"{name:>10}" for name in SHOWN)]),
    ]
    rows = [(name, f"{summary['weights'][name]:.4f}", summary["runs"][name]) for name in names]
    for name, weight, scores in (*rows, ("ensemble", "", summary["scores"])):
        numbers = [f"{scores[k]:>10.4f}" if k in scores else f"{'-':>10}" for k in SHOWN]
        lines.append(" ".join([f"{name:<{wide}}", f"{weight:>7}", *numbers]))
    lines.append("# agreement: share of examples with the same first class")
    for name, row in zip(names, summary["agreement"], strict=True):
        lines.append(" ".join([f"{name:<{wide}}", *(f"{share:>7.4f}" for share in row)]))
    if summary["search"]:
        fit = summary["search"]
        lines.append(
            f"# weights fitted by {fit['method']} on {fit['examples']} val examples "
            f"(top1 {fit['scores']['top1']:.4f})"
        )
    return "\n".join(lines)

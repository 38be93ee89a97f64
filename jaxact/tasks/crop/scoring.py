"""How crop-disease classification is scored, and what it adds to the end of a run."""

import csv
import functools
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.config import UserError
from jaxact.evaluate import calibration, figures, metrics
from jaxact.evaluate.metrics import Confusion
from jaxact.evaluate.tables import confusion_table
from jaxact.models import classifier
from jaxact.models.specs import PARTS
from jaxact.task import Ending, Extra
from jaxact.tasks.crop import dataset, longtail_scores

SHOWN = 8  # pictures with activation maps
PIECES = ("tail", "mid", "head", "few", "medium", "many")
CORE = (
    *("loss", "acc", "top5", "macro_f1", "macro_f1_all", "balanced_acc"),
    *("nll", "ece", "mce", "brier", "temperature"),
)
HISTORY = ("train_loss", "train_acc", "val_loss", "val_acc", "tail_acc", "macro_f1", "lr")


class Scoring:
    """Scores of one config: classes, their hierarchy, and the training counts (read once).

    `counts` are of what was trained on: the prior. `whole` are those before data.shots: they decide
    which classes are tail, few, many and the like.
    """

    def __init__(
        self,
        config: Any,
        table: Any,
        counts: Callable[[], np.ndarray],
        whole: Callable[[], np.ndarray],
    ):
        self.config, self.table, self.counts, self.whole = config, table, counts, whole

    def names(self) -> tuple[str, ...]:
        """Every number that `score` can give."""
        found = [*CORE, *(f"{piece}_acc" for piece in PIECES)]
        if self.table.crops:
            found += ["severity_merged_acc", "crop_acc", "disease_acc"]
            found += ["severity_acc"] if self.table.severities else []
            if self.config.model.kind == "multitask":
                found += [f"{name}_head_acc" for name in PARTS[: 2 + bool(self.table.severities)]]
        for tau in self.config.eval.taus:
            found += [f"tau{tau:g}_{name}" for name in ("acc", "macro_f1", "tail_acc")]
        return tuple(found)

    def score(self, merged: Any, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Accuracies and F1 as shares of 1; nothing where no label is known.

        `balanced_acc` is the mean recall of the classes that occur, `crop_acc` and the like
        marginalise the label's probabilities, `severity_merged_acc` forgives errors within one
        disease of one crop, `temperature` is the one that would suit these rows best.
        """
        known = rows["label"] >= 0
        if not known.any():
            return {}
        labels, logits, share = (rows[name][known] for name in ("label", "logits", "scores"))
        guess = logits.argmax(1)
        confusion = Confusion.count(guess, labels, logits.shape[1])
        assert int(merged["confusion"].table.sum()) == len(labels), "an example lost or repeated"
        found = {
            "loss": float(merged["loss"].total) / float(merged["loss"].count),
            "acc": confusion.top1(),
            "top5": metrics.topk(logits, labels, 5),
            "macro_f1": confusion.macro_f1(),
            "macro_f1_all": confusion.macro_f1(everywhere=True),
            "balanced_acc": confusion.mean_class(),
            **calibration.numbers(logits, labels),
            "temperature": calibration.temperature(logits, labels),
            **longtail_scores.part_scores(confusion, self.pieces()),
            **self._hierarchy(share, guess, labels),
            **self._heads(rows),
        }
        for tau in self.config.eval.taus:
            found |= self._adjusted(logits, labels, tau)
        return found

    def require_metric(self, validation: Any) -> None:
        """Raises: UserError where `eval.metric` is of classes that have no validation picture."""
        metric = self.config.eval.metric
        labels = validation.labels()
        for name in PIECES:
            taus = (f"tau{tau:g}_{name}_acc" for tau in self.config.eval.taus)
            if metric not in (f"{name}_acc", *taus):
                continue
            mine = self.pieces()[name]
            if not mine[labels[labels >= 0]].any():
                members = f"{int(mine.sum())} of {len(mine)} classes are, by config.loss.tail"
                members = members if name in ("tail", "mid", "head") else "see evaluate/longtail.py"
                raise UserError(
                    f"config.eval.metric={metric!r}: no validation picture is of a {name!r} class "
                    f"({members}); allowed: another metric, as macro_f1"
                )
        if metric in ("severity_acc", "severity_head_acc"):
            if not any(p.severity >= 0 for p in validation.pictures):
                raise UserError(
                    f"config.eval.metric={metric!r}: no validation picture is graded; allowed: "
                    "another metric, as macro_f1"
                )

    def pieces(self) -> dict[str, np.ndarray]:
        """bool[k] of each part of the tail."""
        return longtail_scores.parts(self.whole(), self.config.loss.tail)

    def _hierarchy(
        self, share: np.ndarray, guess: np.ndarray, labels: np.ndarray
    ) -> dict[str, float]:
        table = self.table
        if not table.crops:
            return {}
        crop, disease = np.array(table.crop_of), np.array(table.disease_of)
        pair = crop * len(table.diseases) + disease
        found = {
            "severity_merged_acc": longtail_scores.merged_accuracy(guess, labels, pair),
            "crop_acc": longtail_scores.group_accuracy(share, labels, crop),
            "disease_acc": longtail_scores.group_accuracy(share, labels, disease),
        }
        grade = np.array(table.severity_of)
        graded = grade[labels] >= 0
        if table.severities and graded.any():
            # The mass of classes without grades belongs to none.
            group = np.where(grade < 0, len(table.severities), grade)
            best = longtail_scores.grouped(share[graded], group)[:, : len(table.severities)].argmax(
                1
            )
            found["severity_acc"] = float(np.mean(best == grade[labels[graded]]))
        return found

    def _heads(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        found = {}
        for name in PARTS:
            scores, known = rows.get(f"{name}_scores"), rows[name] >= 0
            if scores is not None and scores.shape[1] and known.any():
                right = scores[known].argmax(1) == rows[name][known]
                found[f"{name}_head_acc"] = float(right.mean())
        return found

    def _adjusted(self, logits: np.ndarray, labels: np.ndarray, tau: float) -> dict[str, float]:
        counts = np.maximum(self.counts(), 1)
        # eval.tau has been taken off the logits already.
        shifted = logits - (tau - self.config.eval.tau) * np.log(counts / counts.sum())
        confusion = Confusion.count(shifted.argmax(1), labels, logits.shape[1])
        tail = longtail_scores.part_scores(confusion, {"tail": self.pieces()["tail"]})
        numbers = {"acc": confusion.top1(), "macro_f1": confusion.macro_f1(), **tail}
        return {f"tau{tau:g}_{name}": value for name, value in numbers.items()}


def conclude(
    config: Any, scoring: Scoring, model: Any, normalised: Callable[[Any], Any], end: Ending
) -> Extra:
    """Calibration by the validation split's temperature, per-class and history tables, pictures."""
    known = end.rows["label"] >= 0
    if not known.any():
        return Extra()
    labels, logits = end.rows["label"][known], end.rows["logits"][known]
    confusion = Confusion.count(logits.argmax(1), labels, logits.shape[1])
    names, counts = scoring.table.names, scoring.whole()
    files = {
        f"predictions/{end.split}_classes.csv": longtail_scores.class_table(
            confusion, names, counts, config.loss.tail
        ),
        f"predictions/{end.split}_confusion.csv": confusion_table(confusion, names),
    }
    if end.history:
        files["training_history.csv"] = history_table(end.history)
    numbers: dict[str, Any] = {"calibration": {"raw": calibration.numbers(logits, labels)}}
    before = calibration.reliability(calibration.scaled(logits, 1), labels)
    drawn = [
        figures.reliability("Reliability", f"As trained; {end.split} split.", before),
    ]
    warmth = end.best_val.get("temperature")
    if warmth is not None and _shared(end.source, dataset.source(config.data, "val")):
        note = "not shown: the temperature would be fitted and scored on the same pictures"
        print(f"calibration: {note} ({end.split} holds pictures of val)", file=sys.stderr)
        numbers["calibration"]["scaled_note"] = note
    elif warmth is not None:
        after = calibration.numbers(logits / warmth, labels)
        numbers["calibration"] |= {"temperature": warmth, "scaled": after}
        text = f"Logits divided by {warmth:.3f}, fitted on the validation split."
        diagram = calibration.reliability(calibration.scaled(logits, warmth), labels)
        drawn.append(figures.reliability("Reliability at that temperature", text, diagram))
    if end.pictures:
        drawn.append(_activation_maps(config, model, names, normalised, end))
    return Extra(numbers, files, drawn)


def _shared(one: Any, other: Any) -> bool:
    """Do two sources have a picture in common?"""
    first, second = ({p.path or p.id for p in source.pictures} for source in (one, other))
    return bool(first & second)


def history_table(history: Sequence[dict[str, Any]]) -> str:
    """CSV text, a row for each validation: accuracies in percent, macro F1 as a share.

    The training columns are means of the log lines since the validation before.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("epoch", *HISTORY))
    since: list[dict[str, Any]] = []
    for row in history:
        if row["split"] == "train":
            since.append(row)
        elif row["split"] == "val":
            mean = {k: np.mean([r[k] for r in since]) for k in ("loss", "acc")} if since else {}
            cells = (
                mean.get("loss"),
                _percent(mean.get("acc")),
                row["loss"],
                _percent(row["acc"]),
                _percent(row.get("tail_acc")),
                row["macro_f1"],
                since[-1]["lr"] if since else None,
            )
            shown = ["" if cell is None else f"{cell:.6g}" for cell in cells]
            writer.writerow((f"{row['epoch']:g}", *shown))
            since = []
    return file.getvalue()


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _activation_maps(
    config: Any,
    model: Any,
    names: Sequence[str],
    normalised: Callable[[Any], Any],
    end: Ending,
) -> figures.Figure:
    """Where the network looks: the confidently wrong first, then the confidently right."""
    labels, scores = end.rows["label"], end.rows["scores"]
    guess, sure = scores.argmax(1), scores.max(1)
    order = [i for i in np.argsort(-sure, kind="stable") if labels[i] >= 0]
    wrong = [i for i in order if guess[i] != labels[i]][: SHOWN // 2]
    right = [i for i in order if guess[i] == labels[i]][: SHOWN - len(wrong)]
    chosen = wrong + right
    place = {name: index for index, name in enumerate(end.source.ids)}
    rng = np.random.default_rng(0)  # evaluation draws nothing
    images = np.stack(
        [
            dataset.prepare(
                config.data, end.source[place[end.ids[i]]], rng, end.stage_data, end.split
            )["image"][0]
            for i in chosen
        ]
    )
    look = jax.jit(functools.partial(classifier.activation_map, model))
    heat = np.asarray(look(end.variables, normalised(jnp.asarray(images)), guess[chosen]))
    found = []
    for k, i in enumerate(chosen):
        caption = (
            f"{end.ids[i]}: true {names[labels[i]]}, predicted {names[guess[i]]} ({sure[i]:.1%})"
        )
        found.append((caption, figures.overlay(images[k], heat[k])))
    text = "Grad-CAM of the predicted class on the last feature map; bright is what spoke for it."
    return figures.pictures("Where it looks", text, found)

"""How crop-disease classification is scored, and what it adds to the end of a run."""

import csv
import dataclasses
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
from jaxact.tasks.crop.classes import ClassTable
from jaxact.tasks.crop.config import Config
from jaxact.tasks.crop.longtail_scores import SUBSETS

SHOWN = 8  # pictures with activation maps
CORE = (
    *("loss", "acc", "top5", "macro_f1", "macro_f1_all", "balanced_acc"),
    *("nll", "ece", "mce", "brier", "temperature"),
)
HISTORY = ("train_loss", "train_acc", "val_loss", "val_acc", "tail_acc", "macro_f1", "lr")


Counts = Callable[[], np.ndarray]  # i64[k], read when it is first called


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Scores of one config."""

    config: Config
    table: ClassTable
    counts: Counts  # training pictures of each class: the prior
    full_counts: Counts  # before data.shots: they decide which classes are tail, few and so on

    def names(self) -> tuple[str, ...]:
        """Every number that `score` can give."""
        names = [*CORE, *(f"{name}_acc" for name in SUBSETS)]
        if self.table.crops:
            names += ["severity_merged_acc", "crop_acc", "disease_acc"]
            names += ["severity_acc"] if self.table.severities else []
            if self.config.model.kind == "multitask":
                names += [f"{name}_head_acc" for name in PARTS[: 2 + bool(self.table.severities)]]
        for tau in self.config.eval.taus:
            names += [f"tau{tau:g}_{name}" for name in ("acc", "macro_f1", "tail_acc")]
        return tuple(names)

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
        numbers = {
            "loss": float(merged["loss"].total) / float(merged["loss"].count),
            "acc": confusion.top1(),
            "top5": metrics.topk(logits, labels, 5),
            "macro_f1": confusion.macro_f1(),
            "macro_f1_all": confusion.macro_f1(everywhere=True),
            "balanced_acc": confusion.mean_class(),
            **calibration.numbers(logits, labels),
            "temperature": calibration.temperature(logits, labels),
            **longtail_scores.subset_scores(confusion, self.subsets()),
            **self._hierarchy(share, guess, labels),
            **self._heads(rows),
        }
        for tau in self.config.eval.taus:
            numbers |= self._adjusted(logits, labels, tau)
        return numbers

    def require_metric(self, validation: Any) -> None:
        """Raises: UserError where `eval.metric` is of classes that have no validation picture."""
        metric = self.config.eval.metric
        labels = validation.labels()
        for name in SUBSETS:
            taus = (f"tau{tau:g}_{name}_acc" for tau in self.config.eval.taus)
            if metric not in (f"{name}_acc", *taus):
                continue
            mine = self.subsets()[name]
            if not mine[labels[labels >= 0]].any():
                how = "config.loss.tail" if name in SUBSETS[:3] else "their training pictures"
                raise UserError(
                    f"config.eval.metric={metric!r}: no validation picture is of a {name!r} class "
                    f"({int(mine.sum())} of {len(mine)} classes are, by {how}); allowed: another "
                    "metric, as macro_f1"
                )
        if metric in ("severity_acc", "severity_head_acc"):
            if not any(p.severity >= 0 for p in validation.pictures):
                raise UserError(
                    f"config.eval.metric={metric!r}: no validation picture is graded; allowed: "
                    "another metric, as macro_f1"
                )

    def subsets(self) -> dict[str, np.ndarray]:
        """bool[k] of each of SUBSETS."""
        return longtail_scores.subsets(self.full_counts(), self.config.loss.tail)

    def _hierarchy(
        self, share: np.ndarray, guess: np.ndarray, labels: np.ndarray
    ) -> dict[str, float]:
        table = self.table
        if not table.crops:
            return {}
        crop, disease = np.array(table.crop_of), np.array(table.disease_of)
        pair = crop * len(table.diseases) + disease
        shares = {
            "severity_merged_acc": longtail_scores.merged_accuracy(guess, labels, pair),
            "crop_acc": longtail_scores.group_accuracy(share, labels, crop),
            "disease_acc": longtail_scores.group_accuracy(share, labels, disease),
        }
        grade = np.array(table.severity_of)
        graded = grade[labels] >= 0
        if table.severities and graded.any():
            # The mass of classes without grades belongs to none.
            group = np.where(grade < 0, len(table.severities), grade)
            by_grade = longtail_scores.grouped(share[graded], group)[:, : len(table.severities)]
            right = by_grade.argmax(1) == grade[labels[graded]]
            shares["severity_acc"] = float(np.mean(right))
        return shares

    def _heads(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        shares = {}
        for name in PARTS:
            scores, known = rows.get(f"{name}_scores"), rows[name] >= 0
            if scores is not None and scores.shape[1] and known.any():
                right = scores[known].argmax(1) == rows[name][known]
                shares[f"{name}_head_acc"] = float(right.mean())
        return shares

    def _adjusted(self, logits: np.ndarray, labels: np.ndarray, tau: float) -> dict[str, float]:
        counts = np.maximum(self.counts(), 1)
        # eval.tau has been taken off the logits already.
        shifted = logits - (tau - self.config.eval.tau) * np.log(counts / counts.sum())
        confusion = Confusion.count(shifted.argmax(1), labels, logits.shape[1])
        tail = longtail_scores.subset_scores(confusion, {"tail": self.subsets()["tail"]})
        numbers = {"acc": confusion.top1(), "macro_f1": confusion.macro_f1(), **tail}
        return {f"tau{tau:g}_{name}": value for name, value in numbers.items()}


def conclude(
    config: Config, scoring: Scoring, model: Any, normalised: Callable[[Any], Any], end: Ending
) -> Extra:
    """Calibration by the validation split's temperature, per-class and history tables, pictures."""
    known = end.rows["label"] >= 0
    if not known.any():
        return Extra()
    labels, logits = end.rows["label"][known], end.rows["logits"][known]
    confusion = Confusion.count(logits.argmax(1), labels, logits.shape[1])
    names, counts = scoring.table.names, scoring.full_counts()
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
    drawn = [figures.reliability("Reliability", f"As trained; {end.split} split.", before)]
    temperature = end.best_val.get("temperature")
    tested: Any = end.source
    if temperature is not None and tested.files() & dataset.source(config.data, "val").files():
        note = "not shown: the temperature would be fitted and scored on the same pictures"
        print(f"calibration: {note} ({end.split} holds pictures of val)", file=sys.stderr)
        numbers["calibration"]["scaled_note"] = note
    elif temperature is not None:
        after = calibration.numbers(logits / temperature, labels)
        numbers["calibration"] |= {"temperature": temperature, "scaled": after}
        text = f"Logits divided by {temperature:.3f}, fitted on the validation split."
        diagram = calibration.reliability(calibration.scaled(logits, temperature), labels)
        drawn.append(figures.reliability("Reliability at that temperature", text, diagram))
    if end.pictures:
        drawn.append(_activation_maps(config, model, names, normalised, end))
    return Extra(numbers, files, drawn)


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
            cells = {"val_loss": row["loss"], "val_acc": 100 * row["acc"]}
            cells["macro_f1"] = row["macro_f1"]
            if "tail_acc" in row:
                cells["tail_acc"] = 100 * row["tail_acc"]
            if since:
                cells["train_loss"] = np.mean([line["loss"] for line in since])
                cells["train_acc"] = 100 * np.mean([line["acc"] for line in since])
                cells["lr"] = since[-1]["lr"]
            shown = [f"{cells[name]:.6g}" if name in cells else "" for name in HISTORY]
            writer.writerow((f"{row['epoch']:g}", *shown))
            since = []
    return file.getvalue()


def _activation_maps(
    config: Config, model: Any, names: Sequence[str], normalised: Callable[[Any], Any], end: Ending
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
    shown = (end.source[place[end.ids[i]]] for i in chosen)
    prepare = functools.partial(dataset.prepare, config.data)
    prepared = [prepare(picture, rng, end.stage_data, end.split)["image"][0] for picture in shown]
    images = np.stack(prepared)
    look = jax.jit(functools.partial(classifier.activation_map, model))
    heat = np.asarray(look(end.variables, normalised(jnp.asarray(images)), guess[chosen]))
    captioned = []
    for k, i in enumerate(chosen):
        caption = (
            f"{end.ids[i]}: true {names[labels[i]]}, predicted {names[guess[i]]} ({sure[i]:.1%})"
        )
        captioned.append((caption, figures.overlay(images[k], heat[k])))
    text = "Grad-CAM of the predicted class on the last feature map; bright is what spoke for it."
    return figures.pictures("Where it looks", text, captioned)

"""Scores of action recognition: streams fused, classes ranked, what `predict` prints."""

from typing import Any

import numpy as np

from jaxact.evaluate import metrics
from jaxact.task import Batch
from jaxact.tasks.action.config import Config


def fused(outputs: Any) -> Any:
    """The 1:1 mean of the streams' scores f32[b, k]."""
    tables = [outputs[name] for name in ("rgb", "pose") if name in outputs]
    return metrics.fuse(tables, [1 / len(tables)] * len(tables))


def measure(outputs: Any, batch: Batch) -> Any:
    """Sums of a batch: the confusion table of the examples with a label. Under jit."""
    known = batch["mask"] & (batch["label"] >= 0)
    return {"confusion": metrics.Confusion.of(fused(outputs), batch["label"], known)}


def rows(outputs: Any, batch: Batch) -> dict[str, Any]:
    """What is kept of each example: scores of each stream and their mean f32[b, k], the label."""
    return {**outputs, "scores": fused(outputs), "label": batch["label"]}


FUSIONS = ((2, 1), (1, 2))  # weights of rgb and pose beside 1:1


def metric_names(streams: tuple[str, ...]) -> tuple[str, ...]:
    """What `score` gives."""
    if len(streams) < 2:
        return metrics.CLASSIFICATION
    alone = (f"{stream}_top{k}" for stream in streams for k in (1, 5))
    fused = (f"fused_{rgb}:{pose}_top1" for rgb, pose in FUSIONS)
    return (*metrics.CLASSIFICATION, *alone, *fused)


def score(config: Config, merged: Any, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """top1, top5, mean_class, ... of the fused scores, top1 of each stream and other fusions."""
    known = rows["label"] >= 0
    if not known.any():
        return {}
    labels = rows["label"][known]
    scores = {name: rows[name][known] for name in ("scores", "rgb", "pose") if name in rows}
    numbers = metrics.classification(probabilities(config, scores["scores"]), labels)
    assert int(merged["confusion"].table.sum()) == len(labels), "an example was lost or repeated"
    if "rgb" in scores and "pose" in scores:
        for name in ("rgb", "pose"):
            numbers[f"{name}_top1"] = metrics.topk(scores[name], labels, 1)
            numbers[f"{name}_top5"] = metrics.topk(scores[name], labels, 5)
        for rgb, pose in FUSIONS:
            mixed = metrics.fuse([scores["rgb"], scores["pose"]], [rgb, pose])
            numbers[f"fused_{rgb}:{pose}_top1"] = metrics.topk(mixed, labels, 1)
    return numbers


def probabilities(config: Config, scores: np.ndarray) -> np.ndarray:
    """f[b, k] in 0..1, from the scores that evaluation averages."""
    return scores if config.data.average == "prob" else metrics.softmax(scores)


def describe(
    config: Config, names: tuple[str, ...], row: dict[str, np.ndarray], top: int = 5
) -> dict[str, Any]:
    """The likeliest classes, `top` of them."""
    share = probabilities(config, row["scores"])
    order = np.argsort(-share, kind="stable")[:top]
    best = [{"class": int(k), "name": names[k], "probability": float(share[k])} for k in order]
    return {"name": best[0]["name"], "probability": best[0]["probability"], "top": best}

"""Scores of pairwise behaviour, what a run adds at its end, predictions in text and on pictures."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jaxact.config import Group, UserError
from jaxact.data import drawing, images, media
from jaxact.data.drawing import CLASS_COLOURS, SHADE
from jaxact.evaluate import calibration
from jaxact.evaluate.metrics import Confusion
from jaxact.evaluate.tables import confusion_table, csv_text
from jaxact.task import Ending, Extra
from jaxact.tasks.relation import spatial_features
from jaxact.tasks.relation.dataset import Pair
from jaxact.weights.table import flatten

CORE = ("loss", "acc", "mpca", "macro_f1", "weighted_f1", "nll", "ece")


def _short(name: str) -> str:
    return name.replace(" ", "_")


def names(classes: Sequence[str]) -> tuple[str, ...]:
    """Every number that `score` gives."""
    return (*CORE, *(f"recall_{_short(name)}" for name in classes))


def score(classes: Sequence[str], merged: Any, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares of 1; {} where no label is known.

    mpca is the mean recall of the classes that occur; the loss is the plain cross entropy.
    """
    known = rows["label"] >= 0
    if not known.any():
        return {}
    labels, logits = rows["label"][known], rows["logits"][known]
    confusion = Confusion.count(logits.argmax(1), labels, len(classes))
    assert int(merged["confusion"].table.sum()) == len(labels), "a pair lost or counted twice"
    share = confusion.support / len(labels)
    reliable = calibration.numbers(logits, labels)
    scores = {
        "loss": merged["loss"].compute(),
        "acc": confusion.top1(),
        "mpca": confusion.mean_class(),
        "macro_f1": confusion.macro_f1(),
        "weighted_f1": float((share * confusion.f1()).sum()),
        "nll": reliable["nll"],
        "ece": reliable["ece"],
    }
    recalls = zip(classes, confusion.recall(), confusion.support, strict=True)
    # A class that does not occur has no recall.
    return scores | {f"recall_{_short(name)}": float(r) for name, r, n in recalls if n}


# --------------------------------------------------------------------------------- end of a run


def conclude(config: Any, end: Ending) -> Extra:
    """The numbers of the original's final_results.json, the best epoch, tables by class."""
    params = end.variables["params"]
    numbers: dict[str, Any] = {
        "config": _model_facts(config),
        "model_info": _model_info(params, config.optim.groups),
    }
    if end.scores:
        for name, ours in (("accuracy", "acc"), ("mpca", "mpca")):
            numbers[f"{end.split}_{name}"] = end.scores[ours]
    validations = [row for row in end.history if row["split"] == "val" and "mpca" in row]
    if validations:
        metric, sign = config.eval.metric, 1 if config.eval.maximise else -1
        # As for the checkpoint that is tested: of equals the newest.
        best = max(
            validations, key=lambda row: (sign * row.get(metric, -sign * math.inf), row["step"])
        )
        numbers |= {
            "best_val_accuracy": max(row["acc"] for row in validations),
            "best_val_mpca": max(row["mpca"] for row in validations),
            "best_epoch": best["epoch"],
            "val_accuracy_at_best": best["acc"],
        }
    files = {}
    known = end.rows["label"] >= 0
    if known.any():
        classes = tuple(config.data.classes)
        labels, logits = end.rows["label"][known], end.rows["logits"][known]
        confusion = Confusion.count(logits.argmax(1), labels, len(classes))
        files[f"predictions/{end.split}_classes.csv"] = class_table(confusion, classes)
        files[f"predictions/{end.split}_confusion.csv"] = confusion_table(confusion, classes)
    return Extra(numbers, files)


def _model_facts(config: Any) -> dict[str, Any]:
    model, data = config.model, config.data
    return {
        "backbone_name": model.backbone,
        "visual_feature_dim": model.visual,
        "relation_hidden_dims": list(model.hidden),
        "fusion_strategy": model.fusion,
        "symmetric": model.symmetric,
        "use_geometric": data.places,
        "use_scene_context": data.scene != "off",
        "spatial_feature_dim": spatial_features.count(data.places, data.scene),
        "frozen": [group.pattern for group in config.optim.groups if group.frozen],
        "learning_rate": config.optim.lr,
        "batch_size": config.batch_size,
    }


def _model_info(params: Mapping[str, Any], groups: Sequence[Group]) -> dict[str, Any]:
    """Numbers of parameters: all, trained, frozen, and of each part of the network."""
    sizes = {path: int(np.size(leaf)) for path, leaf in flatten(params).items()}
    parts: Counter[str] = Counter()
    frozen = 0
    for path, size in sizes.items():
        parts[path.split("/")[0]] += size
        # A parameter belongs to the first group whose pattern matches.
        if next((group.frozen for group in groups if re.search(group.pattern, path)), False):
            frozen += size
    total = sum(sizes.values())
    return {
        "total_params": total,
        "trainable_params": total - frozen,
        "frozen_params": frozen,
        "parts": dict(parts),
    }


def class_table(confusion: Confusion, classes: Sequence[str]) -> str:
    """CSV text: support, precision, recall and F1 of each class."""
    columns = (confusion.support, confusion.precision(), confusion.recall(), confusion.f1())
    rows = [
        (name, int(n), *(f"{x:.6f}" for x in shares))
        for name, n, *shares in zip(classes, *columns, strict=True)
    ]
    return csv_text([("class", "support", "precision", "recall", "f1"), *rows])


# ------------------------------------------------------------------------------------ predictions


def describe(classes: Sequence[str], rows: dict[str, np.ndarray], top: int = 5) -> dict[str, Any]:
    """The pairs of one picture: both people, and the `top` behaviours by probability."""
    pairs = []
    for people, boxes, share in zip(rows["people"], rows["box"], rows["scores"], strict=True):
        order = np.argsort(-share, kind="stable")[:top]
        ranked = [{"name": classes[k], "probability": float(share[k])} for k in order]
        pairs.append(
            {
                "a": int(people[0]),
                "b": int(people[1]),
                "behaviour": ranked[0]["name"],
                "probability": ranked[0]["probability"],
                "top": ranked,
                "boxes": [[round(float(x), 2) for x in box] for box in boxes],
            }
        )
    return {"pairs": pairs}


def render(
    classes: Sequence[str],
    pair: Pair,
    path: str | Path,
    described: list[dict[str, Any]],
    side: int = 0,
) -> None:
    """Writes the picture of a pair's frame with all its pairs drawn in.

    Args:
      described: one item, what `describe` gives for the picture.
      side: px of the shorter side of the written picture; 0 = as it is.

    Raises: UserError for a picture that cannot be read or written, or the input itself.
    """
    if media.same_file(path, pair.frame.path):
        raise UserError(f"--render={path} is the input itself; give another name")
    image = images.decode(pair.frame.path)
    factor = side / min(image.size) if side else 1.0
    if factor != 1:
        width, height = (max(1, round(n * factor)) for n in image.size)
        image = Image.fromarray(images.resize(image, (height, width)))
    drawn = image.copy()  # what is decoded may be read-only
    pen = ImageDraw.Draw(drawn)
    font = drawing.font(classes, max(10, min(drawn.size) // 16))
    for number, each in enumerate(described[0]["pairs"]):
        label = list(classes).index(each["behaviour"])
        colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
        boxes = np.asarray(each["boxes"]) * factor
        for person, box in zip((each["a"], each["b"]), boxes, strict=True):
            _box(pen, box, colour, drawn.size[0], str(person), font)
        _link(pen, boxes, colour, drawn.size[0])
        text = f"{each['a']}-{each['b']} {each['behaviour']} {each['probability']:.0%}"
        _label(pen, boxes, text, colour, drawn.size, font, number)
    try:
        drawn.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--render={path} cannot be written: {error}") from None


def _turns(x: float, w: float, width: int) -> tuple[int, ...]:
    """Shifts in px at which a box is drawn: two where it lies over the seam of a panorama."""
    return (0, -width) if x + w > width else (0,)


def _box(pen: Any, box: np.ndarray, colour: Any, width: int, text: str, font: Any) -> None:
    x, y, w, h = box
    for turn in _turns(x, w, width):
        pen.rectangle((x + turn, y, x + w + turn, y + h), outline=colour, width=2)
        pen.text((x + turn + 3, y + 1), text, fill=colour, font=font)


def _link(pen: Any, boxes: np.ndarray, colour: Any, width: int) -> None:
    """A line between the feet, over the seam where that is the shorter way."""
    (xa, ya), (xb, yb) = ((x + w / 2, y + h) for x, y, w, h in boxes)
    if abs(xa - xb) <= width / 2:
        pen.line((xa, ya, xb, yb), fill=colour, width=2)
        return
    if xa < xb:
        (xa, ya), (xb, yb) = (xb, yb), (xa, ya)
    pen.line((xa, ya, xb + width, yb), fill=colour, width=2)
    pen.line((xa - width, ya, xb, yb), fill=colour, width=2)


def _label(
    pen: Any,
    boxes: np.ndarray,
    text: str,
    colour: Any,
    size: tuple[int, int],
    font: Any,
    number: int,
) -> None:
    """Text above the two boxes; every second one is higher, so that neighbours do not overlap."""
    _, _, wide, tall = pen.textbbox((0, 0), text, font=font)
    x = min(max(0.0, float(boxes[:, 0].min())), size[0] - wide - 4)
    y = max(0.0, float(boxes[:, 1].min()) - (tall + 6) * (1 + number % 2))
    pen.rectangle((x, y, x + wide + 4, y + tall + 4), fill=SHADE)
    pen.text((x + 2, y + 1), text, fill=colour, font=font)

"""Pairwise behaviour of people, from their crops and spatial features: the Task.

Batch keys beside `id` and `mask` (b pairs):

| key    | dtype, shape        | unit |
|--------|---------------------|------|
| crops  | u8[b, 2, s, s, 3]   | RGB, A and B; absent without a backbone |
| place  | f32[b, n]           | spatial features (`spatial_features`); absent where all are off |
| label  | i32[b]              | class, -1 = unknown |
| people | i32[b, 2]           | their numbers |
| box    | f32[b, 2, 4]        | px: x, y, w, h |
"""

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.config import carried
from jaxact.evaluate import metrics
from jaxact.models.relation import Relation, bilinear_form
from jaxact.models.specs import RelationSpec
from jaxact.ops import losses, pixels, relation_losses
from jaxact.task import (
    Batch,
    Contract,
    Evaluation,
    Hyper,
    Port,
    Prediction,
    Shipping,
    Task,
    Training,
)
from jaxact.tasks.relation import augment, dataset, scoring, spatial_features
from jaxact.tasks.relation.config import Config, validate
from jaxact.tasks.relation.dataset import Pair
from jaxact.weights import relation


def make(config: Config) -> Task:
    """The task of a config. Raises UserError for fields that do not go together."""
    validate(config)
    spec = dataclasses.replace(config.model)
    _explain(spec)
    data, classes, bound = config.data, tuple(config.data.classes), functools.partial
    seen = bool(spec.backbone)
    return Task(
        training=Training(
            model=Relation(spec, len(classes), jnp.dtype(config.dtype)),
            classes=classes,
            source=bound(dataset.source, data),
            prepare=bound(dataset.prepare, data, seen),
            shapes=bound(dataset.shapes, data, seen),
            inputs=bound(_inputs, config),
            loss=bound(_loss, config),
            sampler=bound(dataset.sampler, data),
            arrange=bound(dataset.arrange, data),
            watch=_watch,
        ),
        evaluation=Evaluation(
            infer=bound(_infer, config),
            measure=_measure,
            rows=_rows,
            score=bound(scoring.score, classes),
            metrics=scoring.names(classes),
            conclude=bound(scoring.conclude, config),
        ),
        prediction=Prediction(
            example=bound(dataset.examples, data),
            describe=bound(scoring.describe, classes),
            recording=_frame,
            render=bound(scoring.render, classes),
            drawn=".png",
        ),
        shipping=Shipping(
            audit=bound(dataset.audit, data, seen),
            weights=_load_foreign if seen else None,
            thumbnail=bound(_thumbnail, config) if seen else None,
            contract=bound(_contract, config),
            survey=bound(dataset.survey, classes),
        ),
    )


def _explain(spec: RelationSpec) -> None:
    """Prints why a bilinear form is of low rank, where it is."""
    if spec.fusion == "bilinear" and spec.backbone:
        low, reason = bilinear_form(spec.hidden[0], spec.full_bilinear)
        if low:
            print(reason, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------- under jit


def _inputs(
    config: Config, batch: Batch, hyper: Hyper, key: Any, stage_data: Any
) -> tuple[dict[str, Any], Any]:
    """Normalised crops, in training augmented, and the spatial features; None for what is off."""
    crops = batch.get("crops")
    if crops is not None:
        crops = crops.astype(jnp.float32)
        if stage_data is not None:
            crops = augment.apply(config.augment, key, crops)
        crops = pixels.normalised(crops, config.data.mean, config.data.std)
    arguments = {"crops": crops, "spatial": batch.get("place")}
    if stage_data is None:
        return arguments, None
    return arguments, {"label": batch["label"], "mask": batch["mask"]}


def _loss(config: Config, outputs: Any, targets: Any, hyper: Hyper) -> dict[str, Any]:
    """The three terms, f32[b] each; the balance of the classes is one value of the whole batch.

    The class weights are read when a step is traced.
    """
    loss = config.loss
    return relation_losses.terms(
        outputs["logits"],
        targets["label"],
        targets["mask"],
        jnp.asarray(dataset.class_weights(config.data)),
        mpca=loss.mpca,
        acc=loss.acc,
        mode=loss.mpca_mode,
        gamma=loss.gamma if loss.kind == "focal" else None,
    )


def _watch(outputs: Any, targets: Any) -> dict[str, Any]:
    """acc f32[b]: 1 where the best class is the right one."""
    return {"acc": (outputs["logits"].argmax(-1) == targets["label"]).astype(jnp.float32)}


def _infer(config: Config, apply: Any, batch: Batch, split: str) -> Any:
    del split
    arguments, _ = _inputs(config, batch, {}, None, None)
    return apply(**arguments)["logits"].astype(jnp.float32)


def _measure(outputs: Any, batch: Batch) -> Any:
    known = batch["mask"] & (batch["label"] >= 0)
    return {
        "confusion": metrics.Confusion.of(outputs, batch["label"], known),
        "loss": metrics.Average.of(losses.cross_entropy(outputs, batch["label"]), known),
    }


def _rows(outputs: Any, batch: Batch) -> dict[str, Any]:
    kept = {name: batch[name] for name in ("label", "people", "box")}
    return {"scores": jax.nn.softmax(outputs), "logits": outputs, **kept}


# ------------------------------------------------------------------------------- files, exports


def _load_foreign(path: Any, variables: Any) -> tuple[Any, str]:
    """Our variables from a checkpoint of the original or of a ResNet, and the report."""
    loaded, report = relation.load(path, variables)
    return loaded, report.text(full=True)


def _frame(pair: Pair) -> str:
    """The picture that a pair is part of."""
    return pair.frame.id


def _thumbnail(config: Config, pair: Pair) -> np.ndarray:
    """u8[1, s, 2 s, 3]: both crops, for the report."""
    return np.concatenate(list(dataset.pair_crops(config.data, pair, _side(config))), axis=1)[None]


def _side(config: Config) -> int:
    """px of the crops in the last row of the schedule."""
    return carried(config.stages, "size")[-1]


def _contract(config: Config, stage_data: Any = None) -> Contract:
    """An exported model: two crops and the spatial features in, probabilities out."""
    data, side = config.data, _side(config) if stage_data is None else stage_data.size
    count = spatial_features.count(data.places, data.scene)
    inputs: dict[str, Port] = {}
    before: dict[str, Any] = {}
    if config.model.backbone:
        inputs["crops"] = Port(
            (2, side, side, 3), np.uint8, "[person, h, w, c] RGB bytes of A and B, 0..255", 0, 255
        )
        seam = "over the seam" if data.panorama and data.wrap else "up to the picture's ends"
        before["crops"] = f"boxes padded by {data.padding} of their sides, {seam}, to {side} px"
        before["inside"] = f"(x - {list(data.mean)}) / {list(data.std)}"
    if count:
        inputs["place"] = Port((count,), np.float32, "spatial features of the pair", -0.1, 1)
        named = list(spatial_features.GEOMETRIC) if data.places else []
        before["place"] = named + ([f"scene ({data.scene})"] if data.scene != "off" else [])
        before["log_distance"] = data.log_distance

    def call(apply: Any, batch: Batch) -> dict[str, Any]:
        logits = _infer(config, apply, batch, "export")
        return {"logits": logits, "scores": jax.nn.softmax(logits)}

    return Contract(
        inputs=inputs,
        outputs={"logits": "f32[b, k]", "scores": "f32[b, k] probabilities of the classes"},
        preprocessing=before,
        call=call,
    )

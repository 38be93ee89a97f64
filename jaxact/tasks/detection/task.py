"""Temporal action detection: VideoMAE with adapters, or features, and an ActionFormer head.

Batch keys beside `id` and `mask` (b windows):

| key      | dtype, shape          | unit |
|----------|-----------------------|------|
| frames   | u8[b, f, h, w, 3]     | RGB, f = window * scale; or |
| features | f32[b, t, c]          | pre-extracted, t = window |
| valid    | bool[b, t]            | False = past the end of the video |
| segments | f32[b, n, 2]          | steps from the start of the window; training only |
| labels   | i32[b, n]             | class, -1 = no segment; training only |
| video    | i32[b]                | place of the video in the annotation |
| clock    | f32[b, 3]             | s at step 0, s per step, duration in s |

A training example is a random crop of a video, an evaluation example one window. Rows kept of a
window: its best `top` detections in steps; `postprocess` makes those of videos on the host.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.config import UserError
from jaxact.ops import detection_losses, pixels, segments
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
from jaxact.tasks.detection import dataset, examples, network, scoring
from jaxact.tasks.detection.config import Config, validate
from jaxact.weights import adatad


def make(config: Config) -> Task:
    """The task of a config. Raises UserError for fields that do not go together."""
    validate(config)
    data, classes = config.data, config.model.classes
    names = dataset.class_names(data, classes)
    bound = functools.partial
    return Task(
        training=Training(
            model=network.build(config.model, config.dtype),
            classes=names,
            source=bound(_source, config, names),
            prepare=bound(examples.prepare, data, classes),
            shapes=bound(examples.shapes, data),
            inputs=bound(_inputs, config),
            loss=bound(_loss, config),
        ),
        evaluation=Evaluation(
            infer=bound(_infer, config),
            measure=_measure,
            rows=_rows,
            score=bound(scoring.score, config),
            metrics=scoring.metric_names(config),
            conclude=bound(scoring.conclude, config, names),
        ),
        prediction=Prediction(
            example=bound(dataset.examples, data),
            describe=bound(scoring.describe, config, names),
            recording=lambda sample: sample.video.id,
            render=scoring.render,
            drawn=".html",
        ),
        shipping=Shipping(
            audit=bound(examples.audit, data),
            weights=_load_foreign,
            contract=bound(_contract, config),
        ),
    )


# ---------------------------------------------------------------------------------- under jit


def _inputs(
    config: Config, batch: Batch, hyper: Hyper, key: Any, stage_data: Any
) -> tuple[dict[str, Any], Any]:
    """Normalised frames, or features; in training also the class and distances of each point."""
    data, model = config.data, config.model
    mask = batch["valid"] & batch["mask"][:, None]
    if "frames" in batch:
        video = pixels.normalised(batch["frames"], data.mean, data.std)
    else:
        video = batch["features"]
    arguments = {"video": video, "mask": mask}
    if stage_data is None:
        return arguments, None
    points = jnp.asarray(segments.points(data.window, model.ranges))
    real = (batch["labels"] >= 0) & batch["mask"][:, None]
    targets = segments.assign(
        points,
        batch["segments"],
        batch["labels"],
        real,
        model.classes,
        model.radius,
        model.similar,
    )
    positives = detection_losses.positives(targets[0], segments.point_mask(mask, model.levels))
    arguments["positives"] = positives.sum().astype(jnp.float32)
    return arguments, {"points": targets, "count": batch["mask"].sum().astype(jnp.float32)}


def _loss(config: Config, outputs: Any, targets: Any, hyper: Hyper) -> dict[str, Any]:
    """Focal loss of the classes and DIoU of the segments, over the running number of positives.

    The loss is a sum over the batch; the trainer takes the mean of examples, hence the factor.
    With `optim.accumulate` sums and running positives are those of a micro-batch (in OpenTAD, of a
    device): after the first dozens of steps the loss is the same.
    """
    losses = detection_losses.detection(
        outputs["logits"],
        outputs["offsets"],
        outputs["points"],
        targets["points"],
        outputs["mask"],
        outputs["normaliser"],
        hyper["label_smoothing"],
        config.model.loss_weight,
    )
    return {name: each * targets["count"] for name, each in losses.items()}


def _points(outputs: Any) -> tuple[jax.Array, jax.Array]:
    """(segments f32[b, n, 2] in steps, scores f32[b, n, k]) of all points; masked ones score 0."""
    score = jax.nn.sigmoid(outputs["logits"].astype(jnp.float32))
    score = jnp.where(outputs["mask"][..., None], score, 0)
    return segments.decode(outputs["points"], outputs["offsets"].astype(jnp.float32)), score


def _infer(config: Config, apply: Any, batch: Batch, split: str) -> Any:
    """The best detections of each window: segment f32[b, m, 2] steps, score f32[b, m], label."""
    arguments, _ = _inputs(config, batch, {}, None, None)
    outputs = apply(**arguments)
    spans, score = _points(outputs)
    if config.model.classes > 1:
        score = jnp.where(score > config.post.least, score, 0)
    size = score.shape[1] * score.shape[2]
    most = size if config.model.classes == 1 else min(config.post.top, size)
    best, place = jax.lax.top_k(score.reshape(score.shape[0], -1), most)
    point = (place // score.shape[2])[..., None]
    return {
        "segment": jnp.take_along_axis(spans, point, axis=1),
        "score": best,
        "label": (place % score.shape[2]).astype(jnp.int32),
    }


def _measure(outputs: Any, batch: Batch) -> Any:
    return {"windows": batch["mask"].sum(dtype=jnp.int32)}


def _rows(outputs: Any, batch: Batch) -> dict[str, Any]:
    return {**outputs, "video": batch["video"], "clock": batch["clock"]}


# ----------------------------------------------------------------------------- files and exports


def _source(config: Config, names: tuple[str, ...], split: str) -> dataset.Windows:
    """The windows of a split. Raises: UserError where their detections could not be scored."""
    post, model = config.post, config.model
    if split != "train" and model.classes == 1 < len(names) and not post.merging.classifier:
        raise UserError(
            f"config.post.merging.classifier='' with model.classes=1 and the {len(names)} classes "
            f"of {config.data.annotations}: detections would have no class to be scored by; "
            "allowed: a file of video-level scores, or a model of all classes"
        )
    return dataset.source(config.data, model.classes, split)


def _load_foreign(path: Any, variables: Any) -> tuple[Any, str]:
    """Our variables from an OpenTAD or VideoMAE file, as far as they fit, and the report."""
    loaded, report = adatad.load(path, variables)
    return loaded, report.text(full=True)


def _contract(config: Config, stage_data: Any = None) -> Contract:
    """The exported function: one window in, the segment and the scores of each point out.

    The same in every stage.
    """
    data, post = config.data, config.post
    before: dict[str, Any] = {
        "window": {"mode": data.mode, "steps": data.window, "overlap": data.overlap},
        "step": {"frames": data.stride, "offset_frames": data.offset},
    }
    shape: tuple[int, ...]
    if data.features:
        name, shape = "features", (data.window, data.channels)
        port = Port(shape, np.float32, "[t, c] pre-extracted, a row a step")
    else:
        side = data.test_size
        before["frames"] = f"{data.scale} a step; past the end the last one again"
        before["resize"] = f"short side to {side} px, centre crop"
        before["inside"] = f"(x - {list(data.mean)}) / {list(data.std)}"
        name, shape = "frames", (data.window * data.scale, side, side, 3)
        port = Port(shape, np.uint8, "[t, h, w, c] RGB bytes, 0..255", 0, 255)
    after = {"least_score": post.least, "most": post.top, "nms": dataclasses.asdict(post.nms)}

    def call(apply: Any, batch: Batch) -> dict[str, Any]:
        real = {"mask": jnp.ones(batch["valid"].shape[0], bool)}
        outputs = apply(**_inputs(config, {**batch, **real}, {}, None, None)[0])
        return dict(zip(("segment", "score"), _points(outputs), strict=True))

    valid = Port((data.window,), np.bool_, "[t] False = past the end of the video")
    return Contract(
        inputs={name: port, "valid": valid},
        outputs={
            "segment": "f32[b, n, 2] start and end in steps of the window, a row a point",
            "score": "f32[b, n, k] probabilities; 0 at points past the end",
        },
        preprocessing={**before, "afterwards": after},
        call=call,
    )

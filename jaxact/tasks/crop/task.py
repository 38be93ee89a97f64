"""Long-tailed crop-disease classification on single pictures.

Batch keys beside `id` and `mask` (b examples; evaluation has v views of each after b):

| key      | dtype, shape      | unit |
|----------|-------------------|------|
| image    | u8[b, h, w, 3]    | RGB, resized; mirrored views are made on the device |
| label    | i32[b]            | class, -1 = unknown |
| crop     | i32[b]            | -1 = unknown |
| disease  | i32[b]            | 0 = healthy where a class is, -1 = unknown |
| severity | i32[b]            | grade of the class table, -1 = not graded |
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import config as schema
from jaxact.evaluate import metrics
from jaxact.models.classifier import Classifier
from jaxact.models.specs import PARTS
from jaxact.ops import longtail, losses, mixing, pixels
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
from jaxact.tasks.crop import audit, class_balance, dataset, stage_change
from jaxact.tasks.crop.annotations import PictureSource
from jaxact.tasks.crop.classes import ClassTable, as_rows
from jaxact.tasks.crop.config import Config, Data, Loss, validate
from jaxact.tasks.crop.scoring import Counts, Scoring, conclude
from jaxact.weights import images


def make(config: Config) -> Task:
    """The task of a config. Raises UserError for fields that do not go together."""
    validate(config)
    data, bound = config.data, functools.partial
    micro_batch = config.batch_size // config.optim.accumulate
    mixing.check_group(config.mixing_group, micro_batch, "mixing_group")
    table = dataset.table(data)
    if config.model.kind == "multitask":
        table.require_heads("model.kind")
    sizes = (len(table.names), len(table.crops), len(table.diseases), len(table.severities))
    spec, dtype = dataclasses.replace(config.model), jnp.dtype(config.dtype)
    model: Any = Classifier(spec, sizes[0], sizes[1:], config.loss.dynamic, dtype)
    counts = functools.cache(bound(_counts, data, sizes[0]))
    full_counts = functools.cache(bound(_counts, dataclasses.replace(data, shots=0), sizes[0]))
    statistics = functools.cache(bound(_class_statistics, config, counts, full_counts))
    scoring = Scoring(config, table, counts, full_counts)
    normalised = bound(_normalised, data)
    features = jax.jit(lambda v, image: model.apply(v, image, train=False)["features"])
    return Task(
        training=Training(
            model=model,
            classes=table.names,
            source=bound(_source, data, scoring),
            prepare=bound(dataset.prepare, data),
            shapes=bound(dataset.shapes, data),
            inputs=bound(_inputs, config, sizes),
            loss=bound(_loss, config, statistics),
            sampler=bound(dataset.sampler, data),
            watch=_watch,
            enter=bound(stage_change.enter, normalised, features),
        ),
        evaluation=Evaluation(
            infer=bound(_infer, config, counts),
            measure=_measure,
            rows=_rows,
            score=scoring.score,
            views=bound(dataset.view_text, data, schema.carried(schema.reached(config), "size")),
            metrics=scoring.names(),
            conclude=bound(conclude, config, scoring, model, normalised),
        ),
        prediction=Prediction(
            example=bound(dataset.examples, data), describe=bound(_describe, table)
        ),
        shipping=Shipping(
            counted=model.clone(implementation="conv"),
            meanings=as_rows(dataset.meanings(data)),
            audit=dataset.audit,
            weights=bound(_load_weights, config),
            thumbnail=dataset.thumbnail,
            contract=bound(_contract, config),
            survey=bound(audit.survey, table.names, data.near),
        ),
    )


def _source(data: Data, scoring: Scoring, split: str) -> PictureSource:
    """The pictures of a split; of validation, those that `eval.metric` can be measured on."""
    pictures = dataset.source(data, split)
    if split == "val":
        scoring.require_metric(pictures)
    return pictures


def _counts(data: Data, classes: int) -> np.ndarray:
    """i64[k]: training pictures of each class.

    Ones where no annotations are named: how fast a step is (`bench`) does not depend on them.
    """
    if not data.annotations:
        return np.ones(classes, np.int64)
    return dataset.source(data, "train").counts(classes)


@dataclasses.dataclass(frozen=True)
class ClassStatistics:
    """What the loss needs to know of the training pictures of each class; all arrays are [k]."""

    prior: np.ndarray  # f: logarithm of its share
    margins: np.ndarray  # f: LDAM's
    weights: np.ndarray  # f32: in the loss
    tail: np.ndarray  # bool: one of those with the fewest pictures


def _class_statistics(config: Config, counts: Counts, full_counts: Counts) -> ClassStatistics:
    """Prior, margins and weights by the pictures trained on, `counts`; the tail by those before
    `data.shots` makes all classes equal, `full_counts`."""
    return ClassStatistics(
        longtail.log_prior(counts()),
        longtail.margins(counts()),
        class_balance.loss_weights(config.data.balance, counts()),
        class_balance.tail(full_counts(), config.loss.tail),
    )


# ---------------------------------------------------------------------------------- under jit


def _normalised(data: Data, image: Any) -> Any:
    return pixels.normalised(image, data.mean, data.std)


def _inputs(
    config: Config, sizes: tuple[int, ...], batch: Batch, hyper: Hyper, key: Any, stage_data: Any
) -> tuple[dict[str, Any], Any]:
    """Normalised pictures; in training also mixed, with a distribution for each head.

    `sizes`: classes of the heads, the label's first.
    """
    image = _normalised(config.data, batch["image"])
    if stage_data is None:
        return {"image": image}, None
    mix = mixing.draw(
        key,
        image.shape[0],
        image.shape[1:3],
        hyper["mixup"],
        hyper["cutmix"],
        hyper["mixup_prob"],
        hyper["cutmix_prob"],
        mixing.group_of(config),
    )
    mask = batch["mask"]
    # A skipped example is another's partner in a mixture, but its labels are not known.
    known = {name: jnp.where(mask, batch[name], -1) for name in ("label", *PARTS)}
    label = known["label"]
    targets = {
        "mask": mask,
        "own": label,
        "partner": mixing.partners(mix, label),
        "lam": mix.lam,
        "order": mix.order,
    }
    if config.model.kind == "multitask":
        for name, size in zip(PARTS, sizes[1:], strict=True):
            targets[name] = mixing.targets(mix, losses.onehot(known[name], size))
    arguments = {"image": mixing.apply(mix, image), "gate": hyper["cosine"]}
    if config.loss.dynamic:
        shares = {name: targets[name] for name in PARTS}
        arguments["known"] = {"label": _share(targets, sizes[0]), **shares}
    return arguments, targets


def _share(targets: Any, classes: int) -> Any:
    """Label distributions f32[b, k] of a mixed batch."""
    lam = targets["lam"]
    own, partner = (losses.onehot(targets[name], classes) for name in ("own", "partner"))
    return lam * own + (1 - lam) * partner


def _loss(
    config: Config,
    statistics: Callable[[], ClassStatistics],
    outputs: Any,
    targets: Any,
    hyper: Hyper,
) -> dict[str, Any]:
    """Label loss by the stage's rules, the other heads' cross entropies, the center loss.

    `statistics` is called when the first step is traced.
    """
    settings, known = config.loss, statistics()
    logits = longtail.adjusted(outputs["logits"], known.prior, hyper["tau"])
    weights = 1 + hyper["class_weight"] * (known.weights - 1)
    share, mask = _share(targets, logits.shape[-1]), targets["mask"]
    smoothing = hyper["label_smoothing"]
    focal = longtail.focal(logits, settings.gamma, weights)
    if settings.kind == "focal":
        base = focal
    elif any(max(stage.margin, default=0) > 0 for stage in config.stages):
        base = longtail.ldam(logits, hyper["margin"] * known.margins, smoothing, weights)
    else:
        base = longtail.smoothed(logits, smoothing, weights)
    on = hyper["focal"] > 0
    table = jnp.where(on & known.tail, focal, base)
    each = longtail.reduce(table, share, weights, mask)
    if settings.tail_form == "sum_of_means":
        apart = longtail.sum_of_means(table, share, known.tail, weights, mask)
        each = jnp.where(on, apart, each)
    terms = {"label": each}
    if config.model.kind == "multitask":
        scale = _head_weights(settings, outputs)
        terms["label"] = scale["label"] * each
        for name in PARTS:
            if name in outputs:
                entropy = losses.cross_entropy(outputs[name], targets[name], smoothing)
                terms[name] = scale[name] * entropy
    if config.model.center:
        features, centers = outputs["features"], outputs["centers"]
        lam, norm = targets["lam"], settings.center_norm
        own = longtail.center(features, targets["own"], centers, norm)
        partner = longtail.center(features, targets["partner"], centers, norm)
        terms["center"] = hyper["center"] * (lam * own + (1 - lam) * partner)
    return terms


def _head_weights(settings: Loss, outputs: Any) -> dict[str, Any]:
    """Head -> its weight in the loss: fixed, or by what the heads' losses have been."""
    fixed = dict(zip(("label", *PARTS), settings.weights, strict=True))
    means = outputs.get("balance")
    if not means:
        return fixed
    base, seen = [fixed[name] for name in means], jnp.stack(list(means.values()))
    weights = longtail.inverse_loss_weights(base, jax.lax.stop_gradient(seen))
    return {**fixed, **dict(zip(means, weights, strict=True))}


def _watch(outputs: Any, targets: Any) -> dict[str, Any]:
    """acc: the share of the label, or of both labels of a mixture, that the best class has."""
    best = outputs["logits"].argmax(-1)
    lam = targets["lam"]
    own, partner = (best == targets[name] for name in ("own", "partner"))
    return {"acc": lam * own + (1 - lam) * partner}


def _infer(config: Config, counts: Counts, apply: Any, batch: Batch, split: str) -> Any:
    """Log probabilities f32[b, k] of the mean over views, one view in memory at a time, and the
    probabilities of the other heads."""
    data = config.data
    names = ("logits", *(PARTS if config.model.kind == "multitask" else ()))

    def one(image: Any) -> Any:
        outputs = apply(image=_normalised(data, image))
        return {name: jax.nn.softmax(outputs[name]) for name in names if name in outputs}

    def both(image: Any) -> Any:
        if not dataset.view_spec(data, split).flip:
            return one(image)
        return jax.tree.map(lambda a, b: (a + b) / 2, one(image), one(image[:, :, ::-1]))

    views = jnp.moveaxis(batch["image"], 1, 0)
    if len(views) == 1:
        shares = both(views[0])
    else:
        shares = jax.tree.map(lambda x: x.mean(0), jax.lax.map(both, views))
    logits = jnp.log(jnp.maximum(shares["logits"], jnp.finfo(jnp.float32).tiny))
    if config.eval.tau:
        if not data.annotations:
            raise schema.UserError(
                f"config.eval.tau={config.eval.tau} needs the training counts; allowed: "
                "config.data.annotations, or 0"
            )
        logits = longtail.adjusted(logits, longtail.log_prior(counts()), -config.eval.tau)
    return {**shares, "logits": jax.nn.log_softmax(logits)}


def _measure(outputs: Any, batch: Batch) -> Any:
    known = batch["mask"] & (batch["label"] >= 0)
    entropy = losses.cross_entropy(outputs["logits"], batch["label"])
    return {
        "confusion": metrics.Confusion.of(outputs["logits"], batch["label"], known),
        "loss": metrics.Average.of(entropy, known),
    }


def _rows(outputs: Any, batch: Batch) -> dict[str, Any]:
    heads = {f"{name}_scores": outputs[name] for name in PARTS if name in outputs}
    numbers = {name: batch[name] for name in ("label", *PARTS)}
    scores = jnp.exp(outputs["logits"])
    return {"scores": scores, "logits": outputs["logits"], **heads, **numbers}


# ------------------------------------------------------------------------------------ predictions


def _describe(table: ClassTable, row: dict[str, np.ndarray], top: int = 5) -> dict[str, Any]:
    """The likeliest classes, and what the best one means."""
    share = row["scores"]
    order = np.argsort(-share, kind="stable")[:top]
    first = [
        {"class": int(k), "name": table.names[k], "probability": float(share[k])} for k in order
    ]
    said = {"name": first[0]["name"], "probability": first[0]["probability"], "top": first}
    for name, of, names in (
        ("crop", table.crop_of, table.crops),
        ("disease", table.disease_of, table.diseases),
        ("severity", table.severity_of, table.severities),
    ):
        if of and of[order[0]] >= 0:
            said[name] = names[of[order[0]]]
    return said


def _load_weights(config: Config, path: Any, variables: Any) -> tuple[Any, str]:
    """Our variables from a PyTorch or safetensors file, as far as they fit, and the report.

    Raises: UserError where the file says that it wants other pixels than the config gives.
    """
    loaded, report, wants = images.load(path, variables, config.model.backbone)
    for field in ("mean", "std"):
        wanted = tuple(round(255 * value, 3) for value in getattr(wants, field))
        given = getattr(config.data, field)
        if not np.allclose(wanted, given, atol=0.1):
            raise schema.UserError(
                f"config.data.{field}={given} is not what {path} was trained with; allowed: "
                f"--config.data.{field}={','.join(map(str, wanted))} ({wants.source})"
            )
    return loaded, report


def _contract(config: Config, stage_data: Any = None) -> Contract:
    """What `export` ships: resized pictures in (of this row's size), probabilities out."""
    data = config.data
    last = schema.carried(schema.reached(config), "size")[-1]
    side = data.test_size or (last if stage_data is None else stage_data.size)
    ways = "resized to a square" if not data.keep_ratio else "its middle square, resized"

    def call(apply: Any, batch: Batch) -> dict[str, Any]:
        logits = apply(image=_normalised(data, batch["image"]))["logits"].astype(jnp.float32)
        return {"logits": logits, "scores": jax.nn.softmax(logits)}

    return Contract(
        inputs={"image": Port((side, side, 3), np.uint8, "[h, w, c] RGB bytes, 0..255", 0, 255)},
        outputs={
            "logits": "f32[b, k] before any adjustment",
            "scores": "f32[b, k] probabilities of the classes",
        },
        preprocessing={
            "resize": f"{ways}, {side} px, {data.interpolation}",
            "inside": f"(x - {list(data.mean)}) / {list(data.std)}",
        },
        call=call,
    )

"""Two-stream RGB + pose action recognition.

Batch keys beside `id` and `mask` (b examples; evaluation batches have v views after b):

| key      | dtype, shape          | unit |
|----------|-----------------------|------|
| rgb      | u8[b, t, h, w, 3]     | RGB frames, cropped and resized |
| keypoint | f32[b, p, t', j, 2]   | px (x, y) of a frame of the crop's size |
| score    | f32[b, p, t', j]      | joint confidence, 0 = absent |
| label    | i32[b]                | class, -1 = unknown |

A view is one clip x one crop; mirrored views are made on the device. `rgb` or the two pose keys are
absent when the model has no such stream.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxact.ops import heatmap, losses, mirror, mixing, pixels
from jaxact.task import Batch, Contract, Evaluation, Hyper, Prediction, Shipping, Task, Training
from jaxact.tasks.action import (
    dataset,
    eval_views,
    export_contract,
    network,
    predict_inputs,
    render,
    skeletons,
    sliding_windows,
)
from jaxact.tasks.action.clip_arrays import Streams
from jaxact.tasks.action.config import Config, Data, validate
from jaxact.tasks.action.scoring import describe, fused, measure, metric_names, rows, score
from jaxact.tasks.action.skeletons import Skeleton
from jaxact.weights import resnet3d, x3d


def make(config: Config) -> Task:
    """The task of a config. Raises UserError for fields that do not go together."""
    validate(config)
    micro = config.batch_size // config.optim.accumulate
    mixing.check_group(config.mixing_group, micro, "mixing_group")
    data, classes = config.data, config.model.classes
    streams = tuple(config.model.streams.split("+"))
    skeleton = skeletons.find(data.skeleton)
    names = dataset.class_names(data, classes)
    model = network.build(config.model, config.dtype)
    bound = functools.partial
    return Task(
        training=Training(
            model=model,
            classes=names,
            source=bound(dataset.source, data, streams, classes),
            prepare=bound(dataset.prepare, data, streams, skeleton),
            shapes=bound(dataset.shapes, data, streams, skeleton),
            inputs=bound(_inputs, config, skeleton),
            loss=bound(_loss, config),
        ),
        evaluation=Evaluation(
            infer=bound(_infer, config, skeleton),
            measure=measure,
            rows=rows,
            score=bound(score, config),
            metrics=metric_names(streams),
            parts=bound(eval_views.parts, data),
            views=bound(eval_views.text, data),
        ),
        prediction=Prediction(
            example=bound(predict_inputs.examples, data, streams, classes),
            describe=bound(describe, config, names),
            windows=bound(sliding_windows.windows, data, streams),
            render=bound(render.render, skeleton),
        ),
        shipping=Shipping(
            counted=network.countable(model),
            audit=bound(dataset.audit, streams),
            weights=bound(_load_foreign, config.model.network),
            grow=resnet3d.extend_inputs,
            thumbnail=bound(dataset.thumbnail, streams),
            contract=bound(_contract, config, streams, skeleton),
            survey=dataset.survey,
        ),
    )


# ---------------------------------------------------------------------------------- under jit


def _heatmaps(config: Config, skeleton: Skeleton, keypoint: Any, score: Any, side: int) -> Any:
    """f32[b, t, h, w, c] from keypoints in px of a side x side crop."""
    data = config.data
    size, rest = (side, side), (data.scale, data.use_score)
    if data.heatmap == "joints":
        return heatmap.joints(keypoint, score, size, data.sigma, *rest)
    draw = heatmap.limbs if data.heatmap == "limbs" else heatmap.both
    return draw(keypoint, score, size, data.sigma, skeleton.limbs, *rest)


def _inputs(
    config: Config, skeleton: Skeleton, batch: Batch, hyper: Hyper, key: Any, stage_data: Any
) -> tuple[dict[str, Any], Any]:
    """Normalised clips and heatmaps; in training also mixed, with soft targets."""
    data, model = config.data, config.model
    side = data.test_size if stage_data is None else stage_data.size
    streams: dict[str, Any] = {"rgb": None, "pose": None}
    if "rgb" in batch:
        streams["rgb"] = pixels.normalised(batch["rgb"], data.mean, data.std)
    if "keypoint" in batch:
        streams["pose"] = _heatmaps(config, skeleton, batch["keypoint"], batch["score"], side)
    if stage_data is None:
        return streams, None
    # A skipped example is another's partner in a mixture, but its label is not known.
    label = jnp.where(batch["mask"], batch["label"], -1)
    share = {"fine": losses.onehot(label, model.classes)}
    if model.coarse:
        coarse = jnp.where(label >= 0, jnp.asarray(model.coarse)[label], -1)
        share["coarse"] = losses.onehot(coarse, max(model.coarse) + 1)
    # One draw for both streams and all targets: they show the same mixture.
    sizes = [x.shape[2:4] for x in streams.values() if x is not None]
    mix = mixing.draw(
        key,
        batch["label"].shape[0],
        min(sizes),
        hyper["mixup"],
        hyper["cutmix"],
        hyper["mixup_prob"],
        hyper["cutmix_prob"],
        mixing.group_of(config),
    )
    streams = {k: None if x is None else mixing.apply(mix, x) for k, x in streams.items()}
    share = {name: mixing.targets(mix, table) for name, table in share.items()}
    if model.prototypes:
        streams |= {"labels": batch["label"], "mask": batch["mask"]}
    return streams, share


def _loss(config: Config, outputs: Any, targets: Any, hyper: Hyper) -> dict[str, Any]:
    """Four weighted cross entropies, and the prototype terms where the head gives them."""
    names = ("rgb", "pose", "rgb_coarse", "pose_coarse")
    terms = {}
    for name, weight in zip(names, config.model.loss_weights, strict=True):
        if name in outputs:
            share = targets["coarse" if name.endswith("coarse") else "fine"]
            entropy = losses.cross_entropy(outputs[name], share, hyper["label_smoothing"])
            terms[name] = weight * entropy
    size = targets["fine"].shape[:1]
    for name in ("prototype", "tree"):
        if name in outputs:
            terms[name] = jnp.broadcast_to(outputs[name], size)
    return terms


def _infer(config: Config, skeleton: Skeleton, apply: Any, batch: Batch, split: str) -> Any:
    """Scores f32[b, k] of each stream, averaged over views, a few views in memory at a time."""
    data, views = config.data, eval_views.spec(config.data, split)
    names = [name for name in ("rgb", "keypoint", "score") if name in batch]
    by_view = {name: jnp.moveaxis(batch[name], 1, 0) for name in names}  # v, b, ...
    order = mirror.map_order(data.heatmap, skeleton.swap, skeleton.limb_swap)

    def inputs(view: Any) -> Any:
        return _inputs(config, skeleton, view, {}, None, None)[0]

    def scores(streams: Any) -> Any:
        logits = apply(**streams)
        return {name: _averaged(data, logits[name]) for name in ("rgb", "pose") if name in logits}

    def one_view(view: Any) -> Any:
        streams = inputs(view)
        own = scores(streams)
        if views.flip:
            mirrored = scores(inputs(mirror.flipped(view, skeleton.swap, data.test_size)))
        elif views.double:
            mirrored = scores(mirror.doubled(streams, order))
        else:
            return own
        return jax.tree.map(lambda a, b: (a + b) / 2, own, mirrored)

    count = len(by_view[names[0]])
    tables = jax.lax.map(one_view, by_view, batch_size=min(data.views_at_once, count))
    return {name: table.mean(0) for name, table in tables.items()}


def _averaged(data: Data, logits: Any) -> Any:
    """What is averaged over views and streams: probabilities, or the logits themselves."""
    return jax.nn.softmax(logits) if data.average == "prob" else logits


def _contract(
    config: Config, streams: Streams, skeleton: Skeleton, stage_data: Any = None
) -> Contract:
    """What `export` ships: one view in (the same in every stage), the logits of each head and the
    fused scores out."""
    data = config.data
    heads = [f"{stream}{kind}" for kind in ("", "_coarse") for stream in streams]

    def call(apply: Any, batch: Batch) -> dict[str, Any]:
        arguments, _ = _inputs(config, skeleton, batch, {}, None, None)
        logits = apply(**arguments)
        named = {f"{head}_logits": logits[head] for head in heads if head in logits}
        scores = {stream: _averaged(data, logits[stream]) for stream in streams}
        return {**named, "scores": fused(scores)}

    what = "probabilities" if data.average == "prob" else "logits"
    outputs = {f"{head}_logits": f"logits of the {head} head" for head in heads}
    outputs["scores"] = f"mean over the streams of their {what}: what predictions are made of"
    return Contract(
        inputs=export_contract.inputs(data, streams, skeleton),
        outputs=outputs,
        preprocessing=export_contract.preprocessing(data, streams, skeleton),
        call=call,
    )


def _load_foreign(kind: str, path: Any, variables: Any) -> tuple[Any, str]:
    """Our variables from a PyTorch or safetensors file, as far as they fit, and the report."""
    loaded, report = (x3d if kind == "x3d" else resnet3d).load(path, variables)
    return loaded, report.text(full=True)

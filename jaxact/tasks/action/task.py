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

from jaxact import config as schema
from jaxact.ops import heatmap, losses, mirror, mixing, pixels
from jaxact.task import Batch, Contract, Evaluation, Hyper, Prediction, Shipping, Task, Training
from jaxact.tasks.action import config as action_config
from jaxact.tasks.action import (
    dataset,
    eval_views,
    export_contract,
    predict_inputs,
    render,
    skeletons,
    sliding_windows,
)
from jaxact.tasks.action import network as networks
from jaxact.tasks.action.config import Config
from jaxact.tasks.action.scoring import describe, fused, measure, metric_names, rows, score
from jaxact.weights import resnet3d, x3d


def make(config: Config) -> Task:
    """The task of a config. Raises UserError for fields that do not go together."""
    _validate(config)
    skeleton = skeletons.find(config.data.skeleton)
    data, streams = config.data, _streams(config)
    classes = config.model.classes
    names = dataset.class_names(data, classes)
    model = networks.build(config.model, config.dtype)
    bound = functools.partial
    return Task(
        training=Training(
            model=model,
            classes=names,
            source=bound(dataset.source, data, streams, classes),
            prepare=bound(eval_views.example, data, streams, skeleton),
            shapes=bound(eval_views.shapes, data, streams, skeleton),
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
            counted=networks.countable(model),
            audit=bound(dataset.audit, streams),
            weights=bound(_load_foreign, config.model.network),
            grow=resnet3d.extend_inputs,
            thumbnail=bound(dataset.thumbnail, streams),
            contract=bound(_contract, config, streams, skeleton),
            survey=dataset.survey,
        ),
    )


def _streams(config: Config) -> tuple[str, ...]:
    return tuple(config.model.streams.split("+"))


def _validate(config: Config) -> None:
    data, model = config.data, config.model
    one_of, require = schema.one_of, schema.require
    one_of(config, "model.streams", "rgb", "pose", "rgb+pose")
    one_of(config, "model.head", "linear", "x3d")
    one_of(config, "data.sampling", "uniform", "dense")
    one_of(config, "data.heatmap", "joints", "limbs", "both")
    one_of(config, "data.average", "prob", "score")
    one_of(config, "data.nan", "zero", "error")
    micro = config.batch_size // config.optim.accumulate
    mixing.check_group(config.mixing_group, micro, "mixing_group")
    action_config.check(model)
    require(model.classes >= 2, "model.classes", model.classes, "2 or more")
    require(len(model.loss_weights) == 4, "model.loss_weights", model.loss_weights, "4 numbers")
    require(len(model.dropout) == 2, "model.dropout", model.dropout, "2 numbers: rgb, pose")
    require(
        len(model.coarse) in (0, model.classes),
        "model.coarse",
        f"{len(model.coarse)} entries",
        f"() or one coarse class for each of the {model.classes} classes",
    )
    sizes = ("rgb_frames", "pose_frames", "people", "resize", "test_size")
    for field in (*sizes, "views_at_once", "clips_at_once"):
        require(getattr(data, field) >= 1, f"data.{field}", getattr(data, field), "1 or more")
    for field, count in (("interval", 2), ("area", 2), ("aspect", 2), ("jitter", 4), ("mean", 3)):
        found = getattr(data, field)
        require(len(found) == count, f"data.{field}", found, f"{count} numbers")
    require(
        len(data.short) in (0, 2) and list(data.short) == sorted(data.short),
        "data.short",
        data.short,
        "() or two sides in px, the smaller first",
    )
    largest = max((stage.size for stage in config.stages), default=0)
    require(
        not data.short or data.short[0] >= largest,
        "data.short",
        data.short,
        f"sides from the training crop's {largest} px on",
    )
    for field in ("val", "test"):
        seen = getattr(data, field)
        require(seen.clips >= 1, f"data.{field}.clips", seen.clips, "1 or more")
        require(seen.crops in (1, 3), f"data.{field}.crops", seen.crops, "1 or 3")
        require(
            seen.crops == 1 or data.keep_ratio,
            f"data.{field}.crops",
            seen.crops,
            "1 without data.keep_ratio: a frame squeezed into the square has no ends",
        )
        require(
            seen.crops == 1 or not data.compact,
            f"data.{field}.crops",
            seen.crops,
            "1 with data.compact: the square around the joints has no ends, the crops would be one",
        )
        require(
            not seen.double or ("pose" in model.streams and not seen.flip),
            f"data.{field}.double",
            True,
            "False beside flip (either mirrors each view once) and without a pose stream",
        )
    if "rgb" in model.streams:
        for field in ("rotate", "stretch", "shift", "noise"):
            found = getattr(data, field)
            require(found == 0, f"data.{field}", found, "0 with an RGB stream, which stays still")
    if config.model.streams == "rgb+pose" and data.aligned:
        require(
            data.pose_frames % data.rgb_frames == 0,
            "data.pose_frames",
            data.pose_frames,
            f"multiples of rgb_frames={data.rgb_frames}, or data.aligned=False",
        )
    if data.sampling == "dense":
        require(model.streams == "rgb", "data.sampling", "dense", "uniform, for a pose stream")


# ---------------------------------------------------------------------------------- under jit


def _heatmaps(
    config: Config, skeleton: skeletons.Skeleton, keypoint: Any, score: Any, side: int
) -> Any:
    """f32[b, t, h, w, c] from keypoints in px of a side x side crop."""
    data = config.data
    size, rest = (side, side), (data.scale, data.use_score)
    if data.heatmap == "joints":
        return heatmap.joints(keypoint, score, size, data.sigma, *rest)
    draw = heatmap.limbs if data.heatmap == "limbs" else heatmap.both
    return draw(keypoint, score, size, data.sigma, skeleton.limbs, *rest)


def _inputs(
    config: Config,
    skeleton: skeletons.Skeleton,
    batch: Batch,
    hyper: Hyper,
    key: Any,
    stage_data: Any,
) -> tuple[dict[str, Any], Any]:
    """Normalised clips and heatmaps; in training also mixed, with soft targets."""
    data, model = config.data, config.model
    side = data.test_size if stage_data is None else stage_data.size
    streams: dict[str, Any] = {"rgb": None, "pose": None}
    if "rgb" in batch:
        streams["rgb"] = pixels.normalised(batch["rgb"], data.mean, data.std)
    if "keypoint" in batch:
        maps = _heatmaps(config, skeleton, batch["keypoint"], batch["score"], side)
        streams["pose"] = maps
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
    found = {}
    for name, weight in zip(names, config.model.loss_weights, strict=True):
        if name in outputs:
            share = targets["coarse" if name.endswith("coarse") else "fine"]
            entropy = losses.cross_entropy(outputs[name], share, hyper["label_smoothing"])
            found[name] = weight * entropy
    size = targets["fine"].shape[:1]
    for name in ("prototype", "tree"):
        if name in outputs:
            found[name] = jnp.broadcast_to(outputs[name], size)
    return found


def _infer(
    config: Config, skeleton: skeletons.Skeleton, apply: Any, batch: Batch, split: str
) -> Any:
    """Scores f32[b, k] of each stream, averaged over views, a few views in memory at a time."""
    data, spec = config.data, eval_views.spec(config.data, split)
    names = [name for name in ("rgb", "keypoint", "score") if name in batch]
    seen = {name: jnp.moveaxis(batch[name], 1, 0) for name in names}  # v, b, ...

    def arguments(view: Any) -> Any:
        return _inputs(config, skeleton, view, {}, None, None)[0]

    def scores(streams: Any) -> Any:
        logits = apply(**streams)
        kept = {name: logits[name] for name in ("rgb", "pose") if name in logits}
        rule = jax.nn.softmax if data.average == "prob" else lambda x: x
        return {name: rule(x) for name, x in kept.items()}

    def both(view: Any) -> Any:
        streams = arguments(view)
        found = scores(streams)
        if spec.flip:
            mirrored = scores(arguments(mirror.flipped(view, skeleton.swap, data.test_size)))
        elif spec.double:
            mirrored = scores(mirror.doubled(streams, order))
        else:
            return found
        return jax.tree.map(lambda a, b: (a + b) / 2, found, mirrored)

    order = mirror.map_order(data.heatmap, skeleton.swap, skeleton.limb_swap)
    count = len(seen[names[0]])
    found = jax.lax.map(both, seen, batch_size=min(data.views_at_once, count))
    return {name: x.mean(0) for name, x in found.items()}


def _contract(
    config: Config, streams: dataset.Streams, skeleton: skeletons.Skeleton, stage_data: Any = None
) -> Contract:
    """What `export` ships: one view in (the same in every stage), the logits of each head and the
    fused scores out."""
    data = config.data
    rule = jax.nn.softmax if data.average == "prob" else lambda x: x
    heads = [f"{stream}{kind}" for kind in ("", "_coarse") for stream in streams]

    def call(apply: Any, batch: Batch) -> dict[str, Any]:
        arguments, _ = _inputs(config, skeleton, batch, {}, None, None)
        logits = apply(**arguments)
        scores = fused({stream: rule(logits[stream]) for stream in streams})
        found = {f"{head}_logits": logits[head] for head in heads if head in logits}
        return {**found, "scores": scores}

    what = "probabilities" if data.average == "prob" else "logits"
    outputs = {f"{head}_logits": f"logits of the {head} head" for head in heads}
    outputs["scores"] = f"mean over the streams of their {what}: what predictions are made of"
    return Contract(
        inputs=export_contract.inputs(data, streams, skeleton),
        outputs=outputs,
        preprocessing=export_contract.preprocessing(data, streams, skeleton),
        call=call,
    )


# --------------------------------------------------------------------------------- evaluation


def _load_foreign(network: str, path: Any, variables: Any) -> tuple[Any, str]:
    """Our variables from a PyTorch or safetensors file, as far as they fit, and the report."""
    found, report = (x3d if network == "x3d" else resnet3d).load(path, variables)
    return found, report.text(full=True)

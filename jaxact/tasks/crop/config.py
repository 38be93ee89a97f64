"""What can be set of a crop-disease run: the schema of `tasks/crop.py`."""

import dataclasses

from jaxact import config as schema
from jaxact.models import classifier as networks
from jaxact.models.classifier import Model
from jaxact.models.specs import CLASSIFIER_KINDS
from jaxact.ops import longtail, mixing
from jaxact.tasks.crop import dataset
from jaxact.tasks.crop.dataset import Data


@dataclasses.dataclass
class Stage(schema.Stage):
    """A row of the schedule for crop diseases."""

    label_smoothing: tuple[float, ...] = schema.value(0.0)
    mixup: tuple[float, ...] = schema.value(0.0)  # alpha of Beta(alpha, alpha); 0 = off
    cutmix: tuple[float, ...] = schema.value(0.0)  # alpha; 0 = off
    mixup_prob: tuple[float, ...] = schema.value(0.7)  # that a batch is mixed up, if mixup > 0
    cutmix_prob: tuple[float, ...] = schema.value(0.5)  # that one left over is cut, if cutmix > 0
    class_weight: tuple[float, ...] = schema.value(0.0)  # 0 none .. 1 data.balance's loss weights
    tau: tuple[float, ...] = schema.value(0.0)  # logit adjustment in the loss; 1 balanced softmax
    margin: tuple[float, ...] = schema.value(0.0)  # LDAM: the rarest class's, in units of logits
    focal: tuple[float, ...] = schema.value(0.0)  # above 0: focal loss for the tail's classes
    cosine: tuple[float, ...] = schema.value(0.0)  # above 0: the cosine head instead of the linear
    center: tuple[float, ...] = schema.value(0.0)  # weight of the center loss
    sampler: str = schema.choice("natural", dataset.SAMPLERS)
    augment: str = schema.choice("full", dataset.AUGMENTS)
    restart: str = schema.choice("none", ("none", "head"))  # head: all of it is drawn anew
    size: int = schema.shape(224)  # px


@dataclasses.dataclass
class Loss:
    """The parts of the loss that no stage changes."""

    kind: str = "ce"  # ce | focal: of all classes (stages decide on the tail's)
    gamma: float = 1.5  # focal
    tail: float = 0.25  # share of the classes, those with the fewest training pictures
    tail_form: str = "per_sample"  # per_sample | sum_of_means (tail and rest, each with its mean)
    center_norm: str = "size"  # none | size (divided by it) | unit: scale of the center loss
    weights: tuple[float, ...] = (1.0, 0.3, 0.3, 0.5)  # multitask: label, crop, disease, severity
    dynamic: float = 0.0  # multitask: weights over moving means of the losses, of this decay; 0 off


@dataclasses.dataclass
class Eval(schema.Eval):
    """Evaluation, with logits adjusted afterwards where that is asked for."""

    metric: str = "acc"
    tau: float = 0.0  # tau x log prior is taken off the logits; 0 = off
    taus: tuple[float, ...] = ()  # further ones to report: acc, macro F1, tail accuracy of each


@dataclasses.dataclass
class Config(schema.Config):
    """A run of crop-disease classification."""

    task: str = "crop"
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    loss: Loss = dataclasses.field(default_factory=Loss)
    stages: tuple[Stage, ...] = (Stage(),)
    eval: Eval = dataclasses.field(default_factory=Eval)
    mixing_group: int = 0  # partners within so many examples (one device's: none travel); 0 = all


def validate(config: Config) -> None:
    """Checks ranges, choices and what goes together. Raises: UserError naming the field."""
    one_of, require = schema.one_of, schema.require
    model, loss = config.model, config.loss
    dataset.validate(config)
    micro = config.batch_size // config.optim.accumulate
    mixing.check_group(config.mixing_group, micro, "mixing_group")
    networks.describe_backbone(model.backbone)
    one_of(config, "model.kind", *CLASSIFIER_KINDS)
    one_of(config, "loss.kind", "ce", "focal")
    one_of(config, "loss.tail_form", "per_sample", "sum_of_means")
    one_of(config, "loss.center_norm", *longtail.CENTER_NORMS)
    require(0 <= model.dropout < 1, "model.dropout", model.dropout, "0 to below 1")
    require(0 <= model.drop_path < 1, "model.drop_path", model.drop_path, "0 to below 1")
    require(model.hidden >= 1, "model.hidden", model.hidden, "1 or more")
    require(model.scale > 0, "model.scale", model.scale, "above 0")
    require(loss.gamma >= 0, "loss.gamma", loss.gamma, "0 or more")
    require(0 <= loss.tail <= 1, "loss.tail", loss.tail, "a share, 0 to 1")
    require(
        len(loss.weights) == 4 and min(loss.weights) >= 0,
        "loss.weights",
        loss.weights,
        "4 numbers from 0: label, crop, disease, severity",
    )
    dynamic = loss.dynamic
    require(0 <= dynamic < 1, "loss.dynamic", dynamic, "0 (off) to below 1, a decay for each step")
    require(
        not dynamic or model.kind == "multitask",
        "loss.dynamic",
        dynamic,
        "0 but for config.model.kind=multitask",
    )
    for field in ("cosine", "center"):
        held = getattr(model, field)
        require(
            not held or model.kind == "baseline", f"model.{field}", held, "False but for baseline"
        )
        for index, stage in enumerate(config.stages):
            value = getattr(stage, field)
            require(
                held or max(value, default=0) == 0,
                f"stages[{index}].{field}",
                value,
                f"0 without config.model.{field}",
            )
    if loss.kind == "focal":
        for index, stage in enumerate(config.stages):
            for field in ("label_smoothing", "margin"):
                value = getattr(stage, field)
                where = f"stages[{index}].{field}"
                allowed = f"0 with config.loss.kind=focal, which has none (--config.{where}=0.0)"
                require(max(value, default=0) == 0, where, value, allowed)
    for index, stage in enumerate(config.stages):
        for field in ("label_smoothing", "mixup_prob", "cutmix_prob", "class_weight"):
            value = getattr(stage, field)
            require(all(0 <= x <= 1 for x in value), f"stages[{index}].{field}", value, "0 to 1")
        for field in ("mixup", "cutmix", "tau", "margin", "focal", "cosine", "center", "lr"):
            value = getattr(stage, field)
            require(all(x >= 0 for x in value), f"stages[{index}].{field}", value, "0 or more")

"""What can be set of a crop-disease run: the schema of `tasks/crop.py`."""

import dataclasses
from typing import Any

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.models.specs import backbone_info


@dataclasses.dataclass
class Model:
    """The classifier."""

    kind: str = "baseline"  # baseline | multitask (four heads) | fewshot (two layers, frozen below)
    backbone: str = "resnet50"  # see models.backbones.NAMES
    dropout: float = 0.3  # before each head
    hidden: int = 512  # fewshot: width of its inner layer
    cosine: bool = False  # hold a cosine head; the stage value `cosine` switches to it
    scale: float = 30.0  # of the cosine head's logits
    center: bool = False  # hold a centre for each class; the stage value `center` weighs the loss
    drop_path: float = 0.0  # of the deepest block (EfficientNet, ConvNeXt)
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time


@dataclasses.dataclass
class Augment:
    """What one kind of augmentation does, in this order; probabilities of 0 switch a part off."""

    area: tuple[float, ...] = (1.0, 1.0)  # share of the picture a random crop keeps
    aspect: tuple[float, ...] = (0.9, 1.1)  # its width / height, on the picture made square
    hflip: float = 0.5  # probability of the mirror image
    vflip: float = 0.2  # probability of upside down
    warp: float = 0.5  # probability of the next three together
    shift: float = 0.05  # share of the side, uniform in +-, x and y apart
    scale: float = 0.1  # share, uniform in 1 +-
    rotate: float = 25.0  # degrees, uniform in +-
    grid: float = 0.0  # probability of columns and rows stretched unevenly
    elastic: float = 0.0  # probability of a smooth random displacement
    colour: float = 0.7  # probability of the jitter
    jitter: tuple[float, ...] = (0.2, 0.2, 0.2, 0.08)  # brightness, contrast, saturation, hue
    one: bool = False  # one kind of jitter at a time: light, depth of colour, or all
    blur: float = 0.3  # probability of a 3x3 Gaussian
    operations: int = 0  # RandAugment: operations on each picture; 0 = off
    magnitude: int = 9  # RandAugment: their strength, 0 to 10
    erase: float = 0.0  # probability of random erasing
    erase_area: tuple[float, ...] = (0.02, 0.33)  # share of the picture erased


AUGMENTS = ("full", "light", "strong", "none")

SAMPLERS = ("natural", "weighted", "mix25", "mix50", "mix75", "balanced")


@dataclasses.dataclass
class Views:
    """What a picture is seen as in evaluation: scales x crops x (1 or 2 mirrored)."""

    scales: tuple[float, ...] = (1.0,)  # 1.1 = resized to 1.1 x size, the size cut out
    crops: int = 1  # 1 = middle | 5 = and the four corners
    flip: bool = False  # also the mirror image (on the device)


@dataclasses.dataclass
class Balance:
    """How rare classes are made up for, in the loss and in what is drawn."""

    weights: str = "sqrt"  # none | sqrt | inverse | effective: loss weight of a class by its count
    beta: float = 0.999  # effective
    clip: tuple[float, ...] = (0.1, 10.0)  # of the weights, before their mean is made 1
    file: str = ""  # CSV class_id,weight instead of computed ones
    power: float = 0.5  # sampler "weighted": an example is drawn with weight 1 / count^power


def full() -> Augment:
    """The guide's training augmentation."""
    return Augment()


def light() -> Augment:
    """The guide's augmentation of the last epochs: mirror and a weaker jitter."""
    return Augment(
        vflip=0.0, warp=0.0, blur=0.0, colour=0.5, jitter=(0.15, 0.15, 0.15, 0.05), area=(1.0, 1.0)
    )


def strong() -> Augment:
    """For a few examples a class: larger warps, one kind of colour change, distortions."""
    return Augment(
        vflip=0.3,
        warp=0.7,
        shift=0.1,
        scale=0.15,
        rotate=30.0,
        grid=0.3,
        elastic=0.3,
        colour=0.8,
        jitter=(0.3, 0.3, 0.3, 0.1),
        one=True,
        blur=0.5,
    )


@dataclasses.dataclass
class Data:
    """Annotations, classes, sizes, augmentation."""

    annotations: str = ""  # .csv, .json (AI Challenger), .txt (path label) or tfds:NAME
    val_annotations: str = ""  # "" = annotations; a file without splits is taken whole
    test_annotations: str = ""  # "" = val's, or annotations where test_split is given
    images: str = ""  # folder, or shards:FOLDER; "" = that of the annotations, or its `images`
    train_split: str = "train"  # tfds: "train[:80%]" and the like
    val_split: str = "val"
    test_split: str = ""  # "" = val's
    class_table: str = ""  # ai_challenger, or a CSV; "" = what the annotations say
    classes: int = 0  # 0 = as many as the table or the annotations have
    diseases: str = "agnostic"  # agnostic | specific: is one disease of two crops one class?
    missing: str = "error"  # error | allow: classes without a training picture
    shots: int = 0  # training pictures kept of each class; 0 = all
    shots_seed: int = 0  # which ones
    test_size: int = 0  # px, in evaluation; 0 = the stage's size
    keep_ratio: bool = False  # cut the middle square out, instead of squeezing both sides
    interpolation: str = "bilinear"  # bilinear | bicubic
    gap: float = 2.0  # JPEG is decoded at the fraction that is still this much larger; 0 = in full
    cache: int = 0  # px of the shorter side of decoded pictures kept in cache_dir; 0 = off
    cache_dir: str = ""  # folder of that cache
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # RGB, of 0..255
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    full: Augment = dataclasses.field(default_factory=full)
    light: Augment = dataclasses.field(default_factory=light)
    strong: Augment = dataclasses.field(default_factory=strong)
    balance: Balance = dataclasses.field(default_factory=Balance)
    val: Views = dataclasses.field(default_factory=Views)
    test: Views = dataclasses.field(default_factory=Views)
    near: int = 8  # check: pictures whose 64-bit hashes differ in so many bits look alike


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
    sampler: str = schema.choice("natural", SAMPLERS)
    augment: str = schema.choice("full", AUGMENTS)
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


def backbone(kind: str) -> Any:
    """Facts of a backbone (`models.backbones.Info`). Raises UserError for another name."""
    try:
        return backbone_info(kind)
    except UserError as error:
        raise UserError(f"config.model.backbone={kind!r}: {error}") from None

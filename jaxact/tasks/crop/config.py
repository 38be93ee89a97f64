"""The fields of a crop-disease run, and which of their values go together."""

import dataclasses

from jaxact import config as schema
from jaxact.config import field, require, value
from jaxact.data.images import FILTERS
from jaxact.models.specs import BackboneInfo, ClassifierSpec, backbone_info

AUGMENTS = ("full", "light", "strong", "none")
SAMPLERS = ("natural", "weighted", "mix25", "mix50", "mix75", "balanced")


def _probability(default: float) -> float:
    return field(default, least=0, most=1)


@dataclasses.dataclass
class Augment:
    """What one kind of augmentation does, in this order; probabilities of 0 switch a part off."""

    # Share of the picture that a random crop keeps.
    area: tuple[float, ...] = field((1.0, 1.0), length=2, least=0.01, most=1, rising=True)
    # Its width / height, on the picture made square.
    aspect: tuple[float, ...] = field((0.9, 1.1), length=2, least=0.1, most=10, rising=True)
    hflip: float = _probability(0.5)  # of the mirror image
    vflip: float = _probability(0.2)  # of upside down
    warp: float = _probability(0.5)  # of the next three together
    shift: float = field(0.05, least=0, most=0.5)  # share of the side, uniform in +-, x and y apart
    scale: float = field(0.1, least=0, most=0.5)  # share, uniform in 1 +-
    rotate: float = field(25.0, least=0, most=180)  # degrees, uniform in +-
    grid: float = _probability(0.0)  # of columns and rows stretched unevenly
    elastic: float = _probability(0.0)  # of a smooth random displacement
    colour: float = _probability(0.7)  # of the jitter
    # Brightness, contrast, saturation, and hue (up to 0.5).
    jitter: tuple[float, ...] = field(
        (0.2, 0.2, 0.2, 0.08),
        length=4,
        least=0,
        most=1,
        note="brightness, contrast, saturation, hue",
    )
    one: bool = False  # one kind of jitter at a time: light, depth of colour, or all
    blur: float = _probability(0.3)  # of a 3x3 Gaussian
    operations: int = field(0, least=0, most=8, names={0: "off"})  # RandAugment's of each picture
    magnitude: int = field(9, least=0, most=10)  # RandAugment: their strength
    erase: float = _probability(0.0)  # of random erasing
    # Share of the picture erased.
    erase_area: tuple[float, ...] = field((0.02, 0.33), length=2, least=0.001, most=1, rising=True)


@dataclasses.dataclass
class Views:
    """What a picture is seen as in evaluation: scales x crops x (1 or 2 mirrored)."""

    scales: tuple[float, ...] = field((1.0,), least=1)  # 1.1 = resized to 1.1 x size, size cut out
    crops: int = 1  # 1 = middle, 5 = and the four corners
    flip: bool = False  # also the mirror image (on the device)


@dataclasses.dataclass
class Balance:
    """How rare classes are made up for, in the loss and in what is drawn."""

    # Loss weight of a class by its count.
    weights: str = field("sqrt", choices=("none", "sqrt", "inverse", "effective"))
    beta: float = field(0.999, least=0, below=1)  # effective
    # Of the weights, before their mean is made 1.
    clip: tuple[float, ...] = field((0.1, 10.0), length=2, above=0, rising=True)
    file: str = ""  # CSV class_id,weight instead of computed ones
    power: float = field(0.5, least=0, most=2)  # sampler weighted: draws by 1 / count^power


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
    classes: int = field(0, least=0, names={0: "as many as the table or the annotations have"})
    diseases: str = field("agnostic", choices=("agnostic", "specific"))  # specific: to one crop
    missing: str = field("error", choices=("error", "allow"))  # classes without a training picture
    shots: int = field(0, least=0, names={0: "all"})  # training pictures kept of each class
    shots_seed: int = field(0, least=0)  # which ones
    test_size: int = field(0, least=0, names={0: "the stage's"})  # px, in evaluation
    keep_ratio: bool = False  # cut the middle square out, instead of squeezing both sides
    interpolation: str = field("bilinear", choices=tuple(FILTERS))
    # JPEG is decoded at the smallest fraction that is still this many times larger.
    gap: float = field(2.0, least=1, names={0: "in full"})
    cache: int = field(0, least=0, names={0: "off"})  # px, shorter side of those in cache_dir
    cache_dir: str = ""  # folder where decoded pictures are kept
    mean: tuple[float, ...] = field((123.675, 116.28, 103.53), length=3)  # RGB, of 0..255
    std: tuple[float, ...] = field((58.395, 57.12, 57.375), length=3, above=0)
    full: Augment = dataclasses.field(default_factory=Augment)  # the guide's in training
    light: Augment = dataclasses.field(default_factory=light)
    strong: Augment = dataclasses.field(default_factory=strong)
    balance: Balance = dataclasses.field(default_factory=Balance)
    val: Views = dataclasses.field(default_factory=Views)
    test: Views = dataclasses.field(default_factory=Views)
    near: int = field(
        8, least=0, most=16, note="bits"
    )  # check: bits of 64 in which look-alikes may differ


@dataclasses.dataclass
class Stage(schema.Stage):
    """A row of the schedule for crop diseases."""

    lr: tuple[float, ...] = value(1.0, least=0)  # factor on the base learning-rate curve
    label_smoothing: tuple[float, ...] = value(0.0, least=0, most=1)
    mixup: tuple[float, ...] = value(0.0, least=0)  # alpha of Beta(alpha, alpha); 0 = off
    cutmix: tuple[float, ...] = value(0.0, least=0)  # alpha; 0 = off
    # Probability that a batch is mixed up, if mixup > 0.
    mixup_prob: tuple[float, ...] = value(0.7, least=0, most=1)
    # Probability that a batch that is not mixed up is cut, if cutmix > 0.
    cutmix_prob: tuple[float, ...] = value(0.5, least=0, most=1)
    class_weight: tuple[float, ...] = value(0.0, least=0, most=1)  # 1: data.balance's weights
    tau: tuple[float, ...] = value(0.0, least=0)  # logit adjustment in the loss; 1 balanced softmax
    margin: tuple[float, ...] = value(0.0, least=0)  # LDAM: the rarest class's, in units of logits
    focal: tuple[float, ...] = value(0.0, least=0)  # above 0: focal loss for the tail's classes
    cosine: tuple[float, ...] = value(0.0, least=0)  # above 0: the cosine head, not the linear one
    center: tuple[float, ...] = value(0.0, least=0)  # weight of the center loss
    sampler: str = schema.choice("natural", SAMPLERS)
    augment: str = schema.choice("full", AUGMENTS)
    restart: str = schema.choice("none", ("none", "head"))  # head: all of it is drawn anew
    size: int = schema.shape(224)  # px


@dataclasses.dataclass
class Loss:
    """The parts of the loss that no stage changes."""

    kind: str = field("ce", choices=("ce", "focal"))  # of all classes; stages change the tail's
    gamma: float = field(1.5, least=0)  # focal
    tail: float = field(0.25, least=0, most=1)  # share of the classes, the ones with least data
    # sum_of_means: tail and rest, each with its mean.
    tail_form: str = field("per_sample", choices=("per_sample", "sum_of_means"))
    # Scale of the center loss; size: divided by the number of features.
    center_norm: str = field("size", choices=("none", "size", "unit"))
    # multitask: label, crop, disease, severity.
    weights: tuple[float, ...] = field(
        (1.0, 0.3, 0.3, 0.5), length=4, least=0, note="label, crop, disease, severity"
    )
    # multitask: weights over moving means of the losses, of this decay for each step.
    dynamic: float = field(0.0, least=0, below=1, names={0: "off"})


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
    model: ClassifierSpec = dataclasses.field(default_factory=ClassifierSpec)
    data: Data = dataclasses.field(default_factory=Data)
    loss: Loss = dataclasses.field(default_factory=Loss)
    stages: tuple[Stage, ...] = (Stage(),)
    eval: Eval = dataclasses.field(default_factory=Eval)
    mixing_group: int = 0  # partners within so many examples (one device's: none travel); 0 = all


def backbone(name: str) -> BackboneInfo:
    """What a recipe must know of an image backbone. Raises UserError for another name."""
    return backbone_info(name)


# ------------------------------------------------------------------------------ what goes together


def validate(config: Config) -> None:
    """Checks each field by itself, and what goes together. Raises: UserError naming the field."""
    schema.check(config)
    data = config.data
    allowed = "a folder if data.cache is set, nothing else"
    require(bool(data.cache) == bool(data.cache_dir), "data.cache_dir", data.cache_dir, allowed)
    largest = max(data.test_size, *schema.carried(config.stages, "size"))
    allowed = f"0 (off), or at least the largest size used, {largest} px"
    require(data.cache == 0 or data.cache >= largest, "data.cache", data.cache, allowed)
    for name in ("val", "test"):
        _validate_views(getattr(data, name), f"data.{name}", data.keep_ratio)
    for name in ("full", "light", "strong"):
        jitter = getattr(data, name).jitter
        require(
            jitter[3] <= 0.5, f"data.{name}.jitter", jitter, "a hue, the last number, of 0 to 0.5"
        )
    _validate_heads(config)
    if config.loss.kind == "focal":
        for index, stage in enumerate(config.stages):
            for name in ("label_smoothing", "margin"):
                numbers, where = getattr(stage, name), f"stages[{index}].{name}"
                allowed = f"0 with config.loss.kind=focal, which has none (--config.{where}=0.0)"
                require(max(numbers, default=0) == 0, where, numbers, allowed)


def _validate_views(views: Views, path: str, keep_ratio: bool) -> None:
    scales = views.scales
    require(views.crops in (1, 5), f"{path}.crops", views.crops, "1 or 5")
    require(len(scales) > 0, f"{path}.scales", scales, "one or more, from 1 on")
    allowed = "above 1 with 5 crops: the corners of the whole picture are the whole picture"
    whole = views.crops == 5 and not keep_ratio and min(scales) == 1
    require(not whole, f"{path}.scales", scales, allowed)


def _validate_heads(config: Config) -> None:
    """Heads that only some kinds of model have, and stage values that need them."""
    kind, dynamic = config.model.kind, config.loss.dynamic
    allowed = "0 but for config.model.kind=multitask"
    require(not dynamic or kind == "multitask", "loss.dynamic", dynamic, allowed)
    for name in ("cosine", "center"):
        held = getattr(config.model, name)
        require(not held or kind == "baseline", f"model.{name}", held, "False but for baseline")
        for index, stage in enumerate(config.stages):
            numbers = getattr(stage, name)
            allowed = f"0 without config.model.{name}"
            on = max(numbers, default=0) > 0
            require(held or not on, f"stages[{index}].{name}", numbers, allowed)

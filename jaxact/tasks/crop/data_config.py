"""What can be set of the pictures of `tasks/crop.py`: fields, defaults and their checks."""

import dataclasses
from typing import Any

from jaxact import config as schema
from jaxact.data import images
from jaxact.tasks.crop import augment as retouch
from jaxact.tasks.crop.augment import Augment

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
    full: Augment = dataclasses.field(default_factory=retouch.full)
    light: Augment = dataclasses.field(default_factory=retouch.light)
    strong: Augment = dataclasses.field(default_factory=retouch.strong)
    balance: Balance = dataclasses.field(default_factory=Balance)
    val: Views = dataclasses.field(default_factory=Views)
    test: Views = dataclasses.field(default_factory=Views)
    near: int = 8  # check: pictures whose 64-bit hashes differ in so many bits look alike


def validate(config: Any) -> None:
    """Checks the ranges and choices of `config.data`. Raises: UserError naming the field."""
    data, require, one_of = config.data, schema.require, schema.one_of
    one_of(config, "data.diseases", "agnostic", "specific")
    one_of(config, "data.missing", "error", "allow")
    one_of(config, "data.interpolation", *images.FILTERS)
    one_of(config, "data.balance.weights", "none", "sqrt", "inverse", "effective")
    for field in ("classes", "shots", "shots_seed", "test_size", "cache"):
        require(getattr(data, field) >= 0, f"data.{field}", getattr(data, field), "0 or more")
    require(data.gap == 0 or data.gap >= 1, "data.gap", data.gap, "0 (off), or 1 and more")
    require(0 <= data.near <= 16, "data.near", data.near, "0 to 16 bits")
    require(
        bool(data.cache) == bool(data.cache_dir),
        "data.cache_dir",
        data.cache_dir,
        "a folder if data.cache is set, nothing else",
    )
    for field in ("mean", "std"):
        found = getattr(data, field)
        require(len(found) == 3, f"data.{field}", found, "3 numbers")
    require(min(data.std) > 0, "data.std", data.std, "3 numbers above 0")
    balance = data.balance
    require(0 <= balance.beta < 1, "data.balance.beta", balance.beta, "0 to below 1")
    require(0 <= balance.power <= 2, "data.balance.power", balance.power, "0 to 2")
    require(
        len(balance.clip) == 2 and 0 < balance.clip[0] <= balance.clip[1],
        "data.balance.clip",
        balance.clip,
        "2 numbers above 0, the smaller first",
    )
    sizes = [data.test_size, *schema.carried(config.stages, "size")]
    require(
        data.cache == 0 or data.cache >= max(sizes),
        "data.cache",
        data.cache,
        f"0 (off), or at least the largest size used, {max(sizes)} px",
    )
    for name in ("val", "test"):
        _validate_views(getattr(data, name), f"data.{name}", data.keep_ratio)
    for name in ("full", "light", "strong"):
        _validate_augment(getattr(data, name), f"data.{name}")


def _validate_views(views: Views, field: str, keep_ratio: bool) -> None:
    require = schema.require
    require(views.crops in (1, 5), f"{field}.crops", views.crops, "1 or 5")
    scales = views.scales
    require(
        len(scales) > 0 and min(scales) >= 1, f"{field}.scales", scales, "one or more, from 1 on"
    )
    require(
        views.crops == 1 or keep_ratio or min(scales) > 1,
        f"{field}.scales",
        scales,
        "above 1 with 5 crops: the corners of the whole picture are the whole picture",
    )


def _validate_augment(augment: Augment, field: str) -> None:
    require = schema.require
    for name in ("hflip", "vflip", "warp", "grid", "elastic", "colour", "blur", "erase"):
        found = getattr(augment, name)
        require(0 <= found <= 1, f"{field}.{name}", found, "probabilities, 0 to 1")
    for name in ("shift", "scale"):
        found = getattr(augment, name)
        require(0 <= found <= 0.5, f"{field}.{name}", found, "shares, 0 to 0.5")
    require(0 <= augment.rotate <= 180, f"{field}.rotate", augment.rotate, "0 to 180 degrees")
    for name, low, high in (("area", 0.01, 1), ("erase_area", 0.001, 1), ("aspect", 0.1, 10)):
        found = getattr(augment, name)
        require(
            len(found) == 2 and low <= found[0] <= found[1] <= high,
            f"{field}.{name}",
            found,
            f"2 numbers, the smaller first, {low} to {high}",
        )
    jitter = augment.jitter
    require(
        len(jitter) == 4 and min(jitter) >= 0 and max(jitter[:3]) <= 1 and jitter[3] <= 0.5,
        f"{field}.jitter",
        jitter,
        "4 numbers: brightness, contrast, saturation (0 to 1) and hue (0 to 0.5)",
    )
    require(0 <= augment.operations <= 8, f"{field}.operations", augment.operations, "0 to 8")
    require(0 <= augment.magnitude <= 10, f"{field}.magnitude", augment.magnitude, "0 to 10")

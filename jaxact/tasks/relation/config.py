"""What can be set of pairwise behaviour classification. Imports no JAX."""

import dataclasses
from typing import Any

from jaxact import config as schema
from jaxact.config import field, require
from jaxact.models.specs import RelationSpec
from jaxact.tasks.relation import jrdb, spatial_features


@dataclasses.dataclass
class Augment:
    """What training does to crops; all 0 as in the original."""

    hflip: float = field(0.0, least=0, most=1)  # chance that both crops are mirrored
    # Brightness, contrast, saturation: factors of 1 - j to 1 + j, each pair's.
    jitter: float = field(0.0, least=0, most=1)
    # Chance that a rectangle of a crop is filled with the mean.
    erase: float = field(0.0, least=0, most=1)
    swap: float = field(0.0, least=0, most=1)  # chance that A and B change places


@dataclasses.dataclass
class Data:
    """Labels, which pairs are taken, crops, spatial features."""

    root: str = ""  # JRDB-Social: the folder that holds images/ and labels/
    annotations: str = ""  # instead of root: a CSV (`annotation_files`)
    images: str = ""  # folder or shards: of the CSV's ("" = its own), or of JRDB's scenes
    classes: tuple[str, ...] = jrdb.CLASSES  # names of the labels
    splits: str = "fixed"  # JRDB: fixed | jrdb_social | a .json file of scenes (in root)
    # JRDB: every n-th frame in training (15 frames a second).
    train_interval: int = field(1, least=1)
    eval_interval: int = field(15, least=1)  # JRDB: in evaluation
    # JRDB: which label counts; first: that of the lower number.
    policy: str = field("unique", choices=jrdb.POLICIES)
    sides: str = field("both", choices=jrdb.SIDES)  # JRDB: whose lists are read
    visible: bool = False  # JRDB: only pairs of people at least mostly visible
    # px; JRDB: only boxes so far from the panorama's ends.
    border: int = field(0, least=0, names={0: "off"})
    strict: bool = False  # JRDB: invalid boxes, absent partners, unknown names are errors
    # px, w and h of the pictures; 0,0 = each one's own.
    size: tuple[int, ...] = field((3760, 480), least=0, length=2, note="w, h in px, or 0,0")
    panorama: bool = True  # pictures close on themselves: distances and crops cross the seam
    # Of a box's width and height, added on each side of the crop.
    padding: float = field(0.2, least=0, most=2, note="share of the box")
    wrap: bool = True  # crops cross the seam of a panorama; else they end there
    places: bool = True  # the seven spatial features of the two boxes
    scene: str = field("share", choices=spatial_features.SCENES)  # how crowded the frame is
    log_distance: bool = False  # ln(1 + d) of the feature that has no upper bound
    # What rare classes get.
    balance: str = field("sampler", choices=("sampler", "weights", "both", "none"))
    # Frames whose pairs are mixed with each other.
    mix: int = field(64, least=0, names={0: "any pair after any"})
    # MiB of crops kept by each process.
    memory: int = field(256, least=0, names={0: "each pair decodes its frame"})
    cache_dir: str = ""  # folder of crops kept on disk; "" = none
    mean: tuple[float, ...] = field((123.675, 116.28, 103.53), length=3)  # RGB, of 0..255
    std: tuple[float, ...] = field((58.395, 57.12, 57.375), length=3, above=0)


@dataclasses.dataclass
class Stage(schema.Stage):
    """A row of the schedule for pairs of people."""

    size: int = schema.shape(112)  # px, side of the crops


@dataclasses.dataclass
class Loss:
    """Weights and forms of the three terms (`ops.relation_losses`)."""

    kind: str = field("ce", choices=("ce", "focal"))
    gamma: float = field(2.0, least=0)  # focal
    mpca: float = field(0.1, least=0)  # weight of the balance between the classes
    # variance: as the original; mean: raises the metric itself.
    mpca_mode: str = field("variance", choices=("variance", "mean"))
    acc: float = field(0.05, least=0)  # weight of the soft accuracy


@dataclasses.dataclass
class Eval(schema.Eval):
    """Evaluation: the mean accuracy of the classes decides."""

    metric: str = "mpca"


@dataclasses.dataclass
class Config(schema.Config):
    """A run of pairwise behaviour classification."""

    task: str = "relation"
    model: RelationSpec = dataclasses.field(default_factory=RelationSpec)
    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    loss: Loss = dataclasses.field(default_factory=Loss)
    stages: tuple[Stage, ...] = (Stage(),)
    eval: Eval = dataclasses.field(default_factory=Eval)


def validate(config: Any) -> None:
    """Checks every field, and what goes together. Raises: UserError naming the field."""
    schema.check(config)
    data, model = config.data, config.model
    different = len(set(data.classes)) == len(data.classes) > 1
    require(different, "data.classes", data.classes, "2 or more, different")
    sized = min(data.size) > 0
    own = data.size == (0, 0)
    require(sized or own, "data.size", data.size, "w,h in px, or 0,0 for each picture's own")
    require(sized or not data.border, "data.border", data.border, "0 where data.size is 0,0")
    either = "one of data.root (JRDB-Social) and data.annotations (a CSV)"
    require(not (data.root and data.annotations), "data.annotations", data.annotations, either)
    widths = "one width or more, each 4 or more"
    require(len(model.hidden) > 0, "model.hidden", model.hidden, widths)
    given = bool(model.backbone) or spatial_features.count(data.places, data.scene) > 0
    inputs = "a backbone, or spatial features (data.places, data.scene)"
    require(given, "model.backbone", model.backbone, inputs)

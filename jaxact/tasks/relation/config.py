"""What can be set of pairwise behaviour classification: fields, defaults, what goes together."""

import dataclasses

from jaxact import config as schema
from jaxact.models.specs import FULL_BILINEAR
from jaxact.tasks.relation import jrdb


@dataclasses.dataclass
class Augment:
    """Chances and strengths; all 0 as in the original."""

    hflip: float = 0.0  # chance that both crops are mirrored
    jitter: float = 0.0  # brightness, contrast, saturation: factors of 1 - j to 1 + j, each pair's
    erase: float = 0.0  # chance that a rectangle of a crop is filled with the mean
    swap: float = 0.0  # chance that A and B change places


BALANCES = ("sampler", "weights", "both", "none")


@dataclasses.dataclass
class Data:
    """Labels, which pairs are taken, crops, spatial features."""

    root: str = ""  # JRDB-Social: the folder that holds images/ and labels/
    annotations: str = ""  # instead of root: a CSV (`data.pair_lists`)
    images: str = ""  # folder or shards: of the CSV's ("" = its own), or of JRDB's scenes
    classes: tuple[str, ...] = jrdb.CLASSES  # names of the labels
    splits: str = "fixed"  # JRDB: fixed | jrdb_social | a .json file of scenes (in root)
    train_interval: int = 1  # JRDB: every n-th frame in training (15 frames a second)
    eval_interval: int = 15  # JRDB: in evaluation
    policy: str = "unique"  # JRDB: unique | first (of the lower number): which label counts
    sides: str = "both"  # JRDB: both | lower: whose lists are read
    visible: bool = False  # JRDB: only pairs of people at least mostly visible
    border: int = 0  # px: JRDB: only boxes so far from the panorama's ends; 0 = off
    strict: bool = False  # JRDB: invalid boxes, absent partners, unknown names are errors
    size: tuple[int, ...] = (3760, 480)  # px, w and h of the pictures; 0,0 = each one's own
    panorama: bool = True  # pictures close on themselves: distances and crops cross the seam
    padding: float = 0.2  # of a box's width and height, added on each side of the crop
    wrap: bool = True  # crops cross the seam of a panorama; else they end there
    places: bool = True  # the seven spatial features of the two boxes
    scene: str = "share"  # share | level | off: how crowded the frame is
    log_distance: bool = False  # ln(1 + d) of the feature that has no upper bound
    balance: str = "sampler"  # sampler | weights | both | none: what rare classes get
    mix: int = 64  # frames whose pairs are mixed with each other; 0 = any pair after any
    memory: int = 256  # MiB of crops kept by each process; 0 = each pair decodes its frame
    cache_dir: str = ""  # folder of crops kept on disk; "" = none
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # RGB, of 0..255
    std: tuple[float, ...] = (58.395, 57.12, 57.375)


@dataclasses.dataclass
class Stage(schema.Stage):
    """A row of the schedule for pairs of people."""

    size: int = schema.shape(112)  # px, side of the crops


@dataclasses.dataclass
class Model:
    """The network; freezing is in optim.groups."""

    backbone: str = "resnet18"  # of both people (`models.backbones`); "" = spatial features alone
    visual: int = 256  # channels of a person after the mapper
    hidden: tuple[int, ...] = (128, 64, 32)  # widths of the relation MLP; half the first is a code
    fusion: str = "concat"  # concat | bilinear | add | interaction
    full_bilinear: int = FULL_BILINEAR  # weights above which a bilinear form is of low rank
    symmetric: bool = False  # the same answer for (A, B) and (B, A)
    dropout: float = 0.3  # of the codes and the MLP
    mapper_dropout: float = 0.2
    remat: bool = False  # compute the backbone's blocks again in the backward pass


@dataclasses.dataclass
class Loss:
    """Weights and forms of the three terms (`ops.relation_losses`)."""

    kind: str = "ce"  # ce | focal
    gamma: float = 2.0  # focal
    mpca: float = 0.1  # weight of the balance between the classes
    mpca_mode: str = "variance"  # variance (the original's) | mean (raises the metric itself)
    acc: float = 0.05  # weight of the soft accuracy


@dataclasses.dataclass
class Eval(schema.Eval):
    """Evaluation: the mean accuracy of the classes decides."""

    metric: str = "mpca"


@dataclasses.dataclass
class Config(schema.Config):
    """A run of pairwise behaviour classification."""

    task: str = "relation"
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    loss: Loss = dataclasses.field(default_factory=Loss)
    stages: tuple[Stage, ...] = (Stage(),)
    eval: Eval = dataclasses.field(default_factory=Eval)

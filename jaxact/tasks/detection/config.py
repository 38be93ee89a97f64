"""What can be set of temporal action detection: fields, defaults, what goes together."""

import dataclasses

from jaxact import config as schema
from jaxact.config import Group, UserError
from jaxact.models.specs import ADAPTER_MODES, RANGES

# Biases, scales of normalisation, of levels and of residual branches: no weight decay.
_PLAIN = r"(^|/)(bias|scale\d*|\w+_scale)$"

_ADAPTERS = r"^backbone/(adapter|ladder)\d+/"


@dataclasses.dataclass
class Merging:
    """How windows become videos."""

    single: bool = False  # each video is one window, thinned out before its times are known
    classifier: str = ""  # file of video-level scores (class-agnostic detections); "" = none
    best: int = 2  # classes of a video taken from the classifier
    fusion: str = "product"  # product | root: of a detection's and its class's score
    softmax: bool = False  # the classifier's scores are logits
    seconds: int = 2  # decimals of times; -1 = not rounded
    digits: int = 4  # decimals of scores; -1 = not rounded


@dataclasses.dataclass
class Nms:
    """How overlapping segments are thinned out."""

    method: str = "gaussian"  # gaussian | linear | hard
    sigma: float = 0.7  # gaussian: overlapping scores *= exp(-iou^2 / sigma)
    iou: float = 0.5  # linear: scores *= 1 - iou from this IoU on; hard: dropped from it on
    least: float = 0.0  # score below which a segment is dropped
    most: int = 2000  # segments kept of a video (ActivityNet: 100)
    multiclass: bool = True  # segments of different classes do not compete
    voting: float = 0.0  # without multiclass: IoU from which on segments are averaged; 0 = off


@dataclasses.dataclass
class Backbone:
    """The video network (see `models.videomae`)."""

    size: str = "s"  # s | b | l | h | g | tiny; none = features instead of frames
    mode: str = "adapter"  # adapter | frozen | full | side: what learns
    ratio: float = 0.25  # adapters: hidden width / width of the network
    first: int = 0  # adapters: the first block that has one (side-tuned ViT-S: 6)
    drop_path: float = 0.1  # of the last block, linear from 0; 0 with frozen and side
    remat: bool = True  # recompute each block in the backward pass: less memory, more time
    clips_at_once: int = 0  # of a window, in memory at a time within a block; 0 = all
    attention: str = "auto"  # auto | xla | cudnn


@dataclasses.dataclass
class Model:
    """The detector (see `models.actionformer`)."""

    classes: int = 20  # 1 = class-agnostic
    backbone: Backbone = dataclasses.field(default_factory=Backbone)
    width: int = 512  # channels
    heads: int = 4  # of attention
    stem: int = 2  # transformer blocks at full length
    branch: int = 5  # blocks that each halve the length: one level more than this
    window: int = 0  # steps a step attends to (odd); 0 = all
    drop_path: float = 0.1  # of transformer blocks
    input_dropout: float = 0.0  # of whole input channels
    positions: int = 0  # steps of an absolute position table; 0 = none
    ranges: tuple[float, ...] = RANGES  # low, high of each level, in grid units
    radius: float = 1.5  # strides from a segment's centre within which points claim it
    similar: bool = True  # a point's classes: of all shortest segments (else of all claiming ones)
    loss_weight: float = 1.0  # of distances against classes; 0 = balanced by their ratio
    normaliser: float = 100.0  # first running number of positives
    momentum: float = 0.9  # of that number


@dataclasses.dataclass
class Data:
    """Annotations, windows, decoding, augmentation."""

    annotations: str = ""  # .json (OpenTAD, ActionFormer, ActivityNet) or .csv, also .gz
    videos: str = ""  # folder of the videos (or shards:FOLDER), <prefix><id><video_suffix>
    video_suffix: str = ".mp4"  # "" = in the id, or whichever is there
    prefix: str = ""  # of names of video and feature files, where ids lack it (ActivityNet: v_)
    features: str = ""  # folder of <id>.npy or .npz, read instead of the videos
    channels: int = 0  # of those features; 0 = videos are decoded
    class_names: str = ""  # text file, a name a line, or .json; "" = the annotation's, sorted
    ground_truth: str = "strict"  # late segments: strict | keep | clip | drop; THUMOS-14:
    # actionformer | opentad | gtad
    blocked: str = ""  # JSON list (or object) of video ids to leave out; "" = none
    train_split: str = "training"
    val_split: str = "validation"
    test_split: str = ""  # "" = val_split
    mode: str = "sliding"  # sliding | resize (the whole video is one window: ActivityNet)
    window: int = 768  # steps
    stride: int = 4  # frames per step
    scale: int = 1  # frames read per step
    offset: float = 0.0  # frames: where in the video step 0 lies
    overlap: float = 0.5  # of neighbouring windows in evaluation, share of the window
    clip: int = 16  # frames that the backbone sees at once; shorter videos are refused
    least: float = 0.75  # share of a segment that must lie in a training crop
    shortest: float = 0.9  # a training crop of a shorter video is at least that share of it
    smallest: float = 0.0  # training segments below that share of their video are left out
    most: int = 256  # places for segments in a training window
    resize: int = 182  # px, short side before the random crop in training
    test_size: int = 160  # px, in evaluation
    area: tuple[float, ...] = (0.08, 1.0)  # share of the frame a random crop keeps
    aspect: tuple[float, ...] = (0.75, 1.3333333333333333)  # its width / height
    flip: float = 0.5  # probability of the mirror image
    operations: int = 2  # of RandAugment in training; 0 = none
    strength: float = 0.9  # of those, 0..1
    jitter: tuple[float, ...] = (0.5, 0.5, 0.5, 0.1)  # brightness, contrast, saturation, hue
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # RGB, of 0..255
    std: tuple[float, ...] = (58.395, 57.12, 57.375)


@dataclasses.dataclass
class Stage(schema.Stage):
    """A row of the schedule for detection."""

    label_smoothing: tuple[float, ...] = schema.value(0.0)
    augment: str = schema.choice("full", ("full", "light", "none"))  # light: mirror only
    size: int = schema.shape(160)  # px of the training crop


@dataclasses.dataclass
class Post:
    """From scores of points to detections, and how those are scored."""

    least: float = 0.001  # score from which on a point counts; class-agnostic: 0
    top: int = 2000  # detections kept of a window
    nms: Nms = dataclasses.field(default_factory=Nms)
    merging: Merging = dataclasses.field(default_factory=Merging)
    protocol: str = "thumos"  # thumos | actionformer | activitynet | epic | dense
    errors_at: float = 0.5  # tIoU of the error split in the report
    pictures: int = 12  # videos drawn in the report
    framewise: float = -1.0  # least score of detections that label frames (F1, edit); -1 = off


@dataclasses.dataclass
class Config(schema.Config):
    """A run of temporal action detection."""

    task: str = "detection"
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    post: Post = dataclasses.field(default_factory=Post)
    stages: tuple[Stage, ...] = (Stage(),)


def groups(mode: str, backbone_lr: float = 1.0, weight_decay: float = 0.05) -> tuple[Group, ...]:
    """Optimiser groups of a detector: ("" | adapter | frozen | full | side) -> in matching order.

    "" is a detector on features, without a backbone. `backbone_lr` is the factor of what learns in
    the backbone on the detector's learning rate: for THUMOS-14 2 for the adapters of ViT-S, 1 for
    those of the larger ones, 0.1 for `full`. Every tensor there has weight decay, biases too.

    Raises: UserError for another mode.
    """
    if mode not in ("", *ADAPTER_MODES):
        raise UserError(
            f"backbone mode {mode!r}: choose one of {', '.join(ADAPTER_MODES)}, or nothing"
        )
    found = []
    if mode in ("adapter", "side"):
        found.append(Group("adapter", _ADAPTERS, backbone_lr, weight_decay))
    if mode in ("adapter", "side", "frozen"):
        found.append(Group("frozen", r"^backbone/", frozen=True))
    if mode == "full":
        found.append(Group("backbone", r"^backbone/", backbone_lr, weight_decay))
    return (
        *found,
        Group("plain", _PLAIN, weight_decay=0.0),
        Group("detector", ".*", weight_decay=weight_decay),
    )

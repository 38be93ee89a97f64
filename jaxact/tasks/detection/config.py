"""The settings of temporal action detection: fields, defaults, what goes together."""

import dataclasses

from jaxact import config as schema
from jaxact.config import Group, UserError, field, require
from jaxact.models.specs import (
    ADAPTER_MODES,
    ATTENTION,
    RANGES,
    VISION_TRANSFORMERS,
    ActionFormerSpec,
    AdapterSpec,
)
from jaxact.tasks.detection.annotations import GROUND_TRUTHS
from jaxact.tasks.detection.mean_ap import PROTOCOLS

# Biases and scales (of normalisation, levels, residual branches) of the detector: no weight decay.
_PLAIN = r"(^|/)(bias|scale\d*|\w+_scale)$"
_ADAPTERS = r"^backbone/(adapter|ladder)\d+/"
_WEIGHT_DECAY = 0.05


@dataclasses.dataclass
class Merging:
    """How the detections of windows become those of videos."""

    single: bool = False  # each video is one window: suppression before its times are known
    classifier: str = ""  # file of video-level scores (class-agnostic detections); "" = none
    best: int = field(2, least=1)  # classes of a video taken from the classifier
    # How a detection's and its class's score are joined; root: square root of the product.
    fusion: str = field("product", choices=("product", "root"))
    softmax: bool = False  # the classifier's scores are logits
    seconds: int = field(2, least=0, names={-1: "not rounded"})  # decimals of times
    digits: int = field(4, least=0, names={-1: "not rounded"})  # decimals of scores


@dataclasses.dataclass
class Nms:
    """Which of the overlapping segments are kept."""

    method: str = field("gaussian", choices=("gaussian", "linear", "hard"))
    sigma: float = field(0.7, above=0)  # gaussian: overlapping scores *= exp(-iou^2 / sigma)
    # linear: scores *= 1 - iou from this IoU on; hard: dropped from it on
    iou: float = field(0.5, above=0, most=1)
    least: float = field(0.0, least=0, below=1)  # score below which a segment is dropped
    most: int = field(2000, least=1)  # segments kept of a video (ActivityNet: 100)
    multiclass: bool = True  # segments of different classes do not compete
    # Without multiclass: IoU from which on segments are averaged.
    voting: float = field(0.0, least=0, most=1, names={0: "off"})


@dataclasses.dataclass(unsafe_hash=True)
class Backbone(AdapterSpec):
    """The video network (see `models.videomae`)."""

    # none: features instead of frames
    size: str = field("s", choices=(*VISION_TRANSFORMERS, "none"))
    # Of the last block, linear from 0; 0 with modes frozen and side.
    drop_path: float = field(0.1, least=0, below=1)
    remat: bool = True  # recompute each block in the backward pass: less memory, more time
    # Clips of a window in memory at a time within a block.
    clips_at_once: int = field(0, least=0, names={0: "all"})
    attention: str = field("auto", choices=ATTENTION)


@dataclasses.dataclass(unsafe_hash=True)
class Model(ActionFormerSpec):
    """The detector (see `models.actionformer`)."""

    backbone: Backbone = dataclasses.field(default_factory=Backbone)
    ranges: tuple[float, ...] = RANGES  # low, high of each level, in grid units
    radius: float = field(1.5, least=1)  # strides: points so near a segment's centre get it
    similar: bool = True  # a point has the classes of all shortest segments (else of all)
    # Weight of the loss of distances, relative to that of classes.
    loss_weight: float = field(1.0, least=0, names={0: "balanced by their ratio"})
    normaliser: float = field(100.0, least=1)  # first running number of positives
    momentum: float = field(0.9, least=0, below=1)  # of that number

    def __post_init__(self):
        super().__post_init__()
        rule = f"low and high of each of the {self.levels} levels"
        require(len(self.ranges) == 2 * self.levels, "model.ranges", self.ranges, rule)


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
    # What becomes of segments that end after their video. actionformer, opentad and gtad: what
    # these make of THUMOS-14.
    ground_truth: str = field("strict", choices=tuple(GROUND_TRUTHS))
    blocked: str = ""  # JSON list (or object) of video ids to leave out; "" = none
    train_split: str = "training"
    val_split: str = "validation"
    test_split: str = ""  # "" = val_split
    # resize: the whole video is one window (ActivityNet)
    mode: str = field("sliding", choices=("sliding", "resize"))
    window: int = field(768, least=1)  # steps
    stride: int = field(4, least=1)  # frames per step
    scale: int = field(1, least=1)  # frames read per step
    offset: float = field(0.0, least=0, note="frames")  # where in the video step 0 lies
    # Of neighbouring windows in evaluation, share of the window.
    overlap: float = field(0.5, least=0, below=1)
    clip: int = field(16, least=1)  # frames the backbone sees at once; shorter videos are refused
    least: float = field(0.75, above=0, most=1)  # share of a segment within a training crop
    # A training crop of a shorter video is at least that share of it.
    shortest: float = field(0.9, above=0, most=1)
    # Training segments below that share of their video are left out.
    smallest: float = field(0.0, least=0, below=1, names={0: "off"})
    most: int = field(256, least=1)  # places for segments in a training window
    resize: int = field(182, least=1)  # px, short side before the random crop in training
    test_size: int = field(160, least=1)  # px, in evaluation
    # Share of the frame that a random crop keeps.
    area: tuple[float, ...] = field((0.08, 1.0), length=2, above=0, most=1, rising=True)
    # Its width / height.
    aspect: tuple[float, ...] = field((0.75, 4 / 3), length=2, above=0, rising=True)
    flip: float = field(0.5, least=0, most=1)  # probability of the mirror image
    operations: int = field(2, least=0, names={0: "none"})  # of RandAugment in training
    strength: float = field(0.9, least=0, most=1)  # of those
    # Brightness, contrast, saturation, hue.
    jitter: tuple[float, ...] = field((0.5, 0.5, 0.5, 0.1), length=4, least=0)
    mean: tuple[float, ...] = field((123.675, 116.28, 103.53), length=3, least=0)  # RGB, of 0..255
    std: tuple[float, ...] = field((58.395, 57.12, 57.375), length=3, above=0)


@dataclasses.dataclass
class Stage(schema.Stage):
    """A row of the schedule for detection."""

    label_smoothing: tuple[float, ...] = schema.value(0.0)
    augment: str = schema.choice("full", ("full", "light", "none"))  # light: mirror only
    size: int = schema.shape(160)  # px of the training crop


@dataclasses.dataclass
class Post:
    """From scores of points to detections, and how those are scored."""

    # Score from which on a point counts; class-agnostic: 0.
    least: float = field(0.001, least=0, below=1)
    top: int = field(2000, least=1)  # detections kept of a window
    nms: Nms = dataclasses.field(default_factory=Nms)
    merging: Merging = dataclasses.field(default_factory=Merging)
    protocol: str = field("thumos", choices=tuple(PROTOCOLS))
    errors_at: float = field(0.5, above=0.1, most=1)  # tIoU of the error split in the report
    pictures: int = field(12, least=0)  # videos drawn in the report
    # Least score of detections that label frames (F1, edit).
    framewise: float = field(-1.0, least=-1, below=1, names={-1: "off"})


@dataclasses.dataclass
class Config(schema.Config):
    """A run of temporal action detection."""

    task: str = "detection"
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    post: Post = dataclasses.field(default_factory=Post)
    stages: tuple[Stage, ...] = (Stage(),)


def groups(mode: str, backbone_lr: float = 1.0) -> tuple[Group, ...]:
    """Optimiser groups of a detector, in matching order.

    Args:
      mode: what learns in the backbone, of ADAPTER_MODES; "" = there is none, but features.
      backbone_lr: its learning rate / that of the detector. THUMOS-14: 2 for the adapters of ViT-S,
        1 for those of larger networks, 0.1 for `full`.

    All that learns in the backbone has weight decay, biases too.
    Raises: UserError for another mode.
    """
    adapter = Group("adapter", _ADAPTERS, backbone_lr, _WEIGHT_DECAY)
    frozen = Group("frozen", r"^backbone/", frozen=True)
    of_backbone: dict[str, tuple[Group, ...]] = {
        "": (),
        "adapter": (adapter, frozen),
        "frozen": (frozen,),
        "full": (Group("backbone", r"^backbone/", backbone_lr, _WEIGHT_DECAY),),
        "side": (adapter, frozen),
    }
    if mode not in of_backbone:
        known = ", ".join(ADAPTER_MODES)
        raise UserError(f"backbone mode {mode!r}: choose one of {known}, or nothing")
    plain = Group("plain", _PLAIN, weight_decay=0.0)
    return (*of_backbone[mode], plain, Group("detector", ".*", weight_decay=_WEIGHT_DECAY))


def validate(config: Config) -> None:
    """Checks each field, and the rules between fields.

    Those between sizes of the model are checked by `Model` when `network.build` copies it.
    Raises: UserError naming the field, its value and what is allowed.
    """
    schema.check(config)
    data, model, post = config.data, config.model, config.post
    featured, whole = bool(data.features), data.mode == "resize"
    require(data.stride % data.scale == 0, "data.scale", data.scale, f"divisors of {data.stride}")
    rule = "the width of the features with data.features, 0 without"
    require(featured == (data.channels > 0), "data.channels", data.channels, rule)
    rule = f"windows of whole clips: window * scale a multiple of clip={data.clip}"
    clips = data.window * data.scale % data.clip == 0
    require(featured or clips, "data.window", data.window, rule)
    rule = "none with data.features, a backbone without"
    size = model.backbone.size
    require(featured == (size == "none"), "model.backbone.size", size, rule)
    merging, rule = post.merging, f"{whole} with data.mode={data.mode}"
    require(merging.single == whole, "post.merging.single", merging.single, rule)
    rule = '"" with a model of more than one class'
    agnostic = model.classes == 1
    require(agnostic or not merging.classifier, "post.merging.classifier", merging.classifier, rule)
    rule = "0 with post.nms.multiclass, where segments do not vote"
    votes = post.nms.voting and post.nms.multiclass
    require(not votes, "post.nms.voting", post.nms.voting, rule)

"""What can be set of action recognition: fields, defaults, what goes together."""

import dataclasses

from jaxact import config as schema
from jaxact.config import require

NETWORKS = ("x3d", "slowonly", "c3d", "rgbpose")

# Part of the config -> the networks that are made from it.
USED_BY = {
    "rgb": ("x3d",),
    "pose": ("x3d",),
    "rgb_resnet": ("slowonly", "rgbpose"),
    "pose_resnet": ("slowonly", "rgbpose"),
    "c3d": ("c3d",),
    "exchange": ("rgbpose",),
}


@dataclasses.dataclass
class Backbone:
    """One stream's X3D or X-Shift (see `models.x3d.Spec`)."""

    temporal: str = "shift"  # shift: X-Shift; conv: X3D with 3x3x3 filters
    blocks: tuple[int, ...] = (3, 5, 11, 7)  # blocks of each stage
    width: int = 24  # channels of the stem; each stage doubles
    bottleneck: float = 2.25  # inner channels / channels of a stage
    fold_div: int = 8  # 1/fold_div of the channels shift each way in time
    stem_stride: int = 2  # spatial
    swish: bool = True  # after the depthwise filter; False = nothing there
    se: str = "half"  # half | all | none: which blocks squeeze and excite
    res2_shortcut_bn: bool = True  # False = PyTorchVideo's X3D
    conv5: bool = True  # widen before pooling; small nets learn faster without
    last_scale: float = 0.0  # first scale of each block's last BN; 1 learns faster if shallow


@dataclasses.dataclass
class ResNet3D:
    """One stream's 3-D ResNet, for network = slowonly | rgbpose (see `models.resnet3d.Spec`)."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)  # bottlenecks of each stage
    width: int = 64  # channels of the stem; stage i has 4 * width * 2**i
    inflate: tuple[int, ...] = (0, 0, 1, 1)  # of each stage: 1 = its blocks see 3 frames
    strides: tuple[int, ...] = (1, 2, 2, 2)  # of each stage, in h and w
    temporal_strides: tuple[int, ...] = (1, 1, 1, 1)  # of each stage, in t
    stem_kernel: tuple[int, ...] = (1, 7, 7)  # t, h, w
    stem_stride: int = 2  # in h and w
    pool_stride: int = 2  # in h and w, of the max pool after the stem
    last_scale: float = 0.0  # first scale of each block's last BN; 1 learns faster if shallow


def pose_resnet() -> ResNet3D:
    """The pose network of PoseC3D's `pose_only` and of RGBPoseConv3D."""
    return ResNet3D(
        blocks=(4, 6, 3),
        width=32,
        inflate=(0, 1, 1),
        strides=(2, 2, 2),
        temporal_strides=(1, 1, 1),
        stem_stride=1,
        pool_stride=1,
    )


@dataclasses.dataclass
class C3D:
    """Either stream's C3D, for network = c3d (see `models.c3d.Spec`); as it is, C3D-light."""

    width: int = 32  # channels of the first stage
    stages: int = 4  # 1 to 5
    pool_time: bool = False  # later pools also halve the frames


@dataclasses.dataclass
class Exchange:
    """What the paths of network = rgbpose show each other (see `models.rgbpose.Exchange`)."""

    rgb_after: tuple[int, ...] = (2, 3)  # stages of the RGB path before each exchange
    pose_after: tuple[int, ...] = (1, 2)  # the same of the pose path
    share: int = 4  # a path's own channels / channels it receives
    kernel: int = 7  # frames of the finer path
    rgb_detach: bool = False  # the RGB path's loss does not train the pose path
    pose_detach: bool = False  # the pose path's loss does not train the RGB path
    rgb_drop_path: float = 0.0  # probability that the RGB path receives zeros in a training step
    pose_drop_path: float = 0.0  # the same of the pose path


@dataclasses.dataclass
class Model:
    """The recogniser."""

    network: str = "x3d"  # x3d | slowonly (3-D ResNet) | c3d | rgbpose (RGBPoseConv3D)
    streams: str = "rgb+pose"  # rgb | pose | rgb+pose
    classes: int = 60
    rgb: Backbone = dataclasses.field(default_factory=Backbone)
    pose: Backbone = dataclasses.field(
        default_factory=lambda: Backbone(blocks=(5, 11, 7), fold_div=4, stem_stride=1)
    )
    rgb_resnet: ResNet3D = dataclasses.field(default_factory=ResNet3D)
    pose_resnet: ResNet3D = dataclasses.field(default_factory=pose_resnet)
    c3d: C3D = dataclasses.field(default_factory=C3D)
    exchange: Exchange = dataclasses.field(default_factory=Exchange)
    attention: bool = (
        True  # x3d only. EPAM: pose features scale RGB features; off = plain RGBPoseX3D
    )
    head: str = "linear"  # linear | x3d (a 2048-wide layer before the classifier)
    pool: str = "mean"  # mean | logits | softmax: how the head treats several positions
    window: tuple[int, ...] = ()  # t, h, w of a position, for pool = logits | softmax
    coarse: tuple[int, ...] = ()  # coarse class of each class; () = no coarse heads
    loss_weights: tuple[float, ...] = (1.0, 1.5, 0.6, 1.2)  # rgb, pose, rgb coarse, pose coarse
    prototypes: bool = False  # PCAN's prototype contrast and tree terms (needs coarse)
    dropout: tuple[float, ...] = (0.5, 0.5)  # rgb, pose
    head_deviation: float = 0.01  # of the classifiers' first weights; 0.06 starts small nets faster
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    depthwise: str = "auto"  # x3d only. auto | shift | conv: see ops.depthwise


@dataclasses.dataclass
class Views:
    """What an example is seen as in evaluation: clips x crops x (1 or 2 mirrored)."""

    clips: int = 1  # in time
    crops: int = 1  # 1 = centre, 3 = both ends and the middle
    flip: bool = False  # also the mirror image: frames, and joints at x -> width - x
    double: bool = False  # also the mirror image: frames and heatmaps, column by column


@dataclasses.dataclass
class Data:
    """Annotations, sampling, geometry, augmentation."""

    annotations: str = ""  # .pkl (PySKL, MMAction2), .csv (file,label,split) or .jsonl
    videos: str = ""  # folder of the videos (or shards:FOLDER), for relative paths
    video_suffix: str = ".mp4"  # of <videos>/<id><suffix> where a record names no file
    class_names: str = ""  # text file, a name a line, or a run's config.json; "" = as annotated
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = ""  # "" = val_split
    skeleton: str = "coco17"  # joint order: coco17 | jhmdb15 | openpose18 | ...
    people: int = 2  # persons kept of a clip, those with the highest mean score
    nan: str = "zero"  # zero | error: joints that are not a number
    rgb_frames: int = 16
    pose_frames: int = 48
    sampling: str = "uniform"  # uniform | dense (rgb only: frames `stride` apart)
    stride: int = 1  # frames, for dense sampling
    interval: tuple[float, ...] = (1.0, 1.0)  # share of the video a training clip is drawn from
    aligned: bool = True  # RGB frames are every n-th pose frame; False = drawn independently
    compact: bool = True  # crop to the box around all joints first
    padding: float = 0.25  # that box is so much larger on each side
    imgpad: bool = True  # that box may leave the image (black there)
    resize: int = 256  # px, before the random crop in training
    test_size: int = 256  # px, in evaluation
    keep_ratio: bool = False  # resize the short side (then crop), instead of both sides
    short: tuple[int, ...] = ()  # px, from and to: short side drawn, then a random crop; () = area
    area: tuple[float, ...] = (0.56, 1.0)  # share of the frame a random crop keeps
    aspect: tuple[float, ...] = (0.75, 1.3333333333333333)  # its width / height
    flip: float = 0.5  # probability of the mirror image
    jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    rotate: float = 0.0  # degrees, uniform in +-; pose only
    stretch: float = 0.0  # share, uniform in 1 +-; pose only
    shift: float = 0.0  # share of the crop, uniform in +-, x and y apart; pose only
    noise: float = 0.0  # px of the crop, deviation of each joint; pose only
    heatmap: str = "joints"  # joints | limbs | both
    scale: float = 0.25  # heatmap px / crop px
    sigma: float = 0.6  # heatmap px
    use_score: bool = True  # peaks as high as the joint's score; False = 1
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # RGB, of 0..255
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    val: Views = dataclasses.field(default_factory=Views)
    test: Views = dataclasses.field(default_factory=Views)
    average: str = "prob"  # prob | score: what is averaged over views
    views_at_once: int = 1  # views computed together: memory against speed
    clips_at_once: int = 5  # clips prepared and fed together: memory against repeated decoding


@dataclasses.dataclass
class Stage(schema.Stage):
    """A row of the schedule for action recognition."""

    label_smoothing: tuple[float, ...] = schema.value(0.0)
    mixup: tuple[float, ...] = schema.value(0.0)  # alpha of Beta(alpha, alpha); 0 = off
    cutmix: tuple[float, ...] = schema.value(0.0)  # alpha; 0 = off
    mixup_prob: tuple[float, ...] = schema.value(1.0)  # that a batch is mixed up, if mixup > 0
    cutmix_prob: tuple[float, ...] = schema.value(1.0)  # that one left over is cut, if cutmix > 0
    augment: str = schema.choice("full", ("full", "light", "none"))  # light: mirror only
    size: int = schema.shape(224)  # px of the training crop


@dataclasses.dataclass
class Config(schema.Config):
    """A run of action recognition."""

    task: str = "action"
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    stages: tuple[Stage, ...] = (Stage(),)
    mixing_group: int = 0  # partners within so many examples (one device's: none travel); 0 = all


def check(model: Model) -> None:
    """Raises UserError for fields of the network that do not go together."""
    found = model.network
    require(found in NETWORKS, "model.network", found, ", ".join(NETWORKS))
    fresh = Model()
    for part in (name for name, networks in USED_BY.items() if found not in networks):
        given, default = getattr(model, part), getattr(fresh, part)
        for field in dataclasses.fields(given):
            now, usual = getattr(given, field.name), getattr(default, field.name)
            what = f"{usual}, its default: network={found} does not use it"
            require(now == usual, f"model.{part}.{field.name}", now, what)
    if found == "x3d":
        return
    require(not model.attention, "model.attention", True, f"False with network={found}")
    require(model.depthwise == "auto", "model.depthwise", model.depthwise, "auto, but with x3d")
    if found == "rgbpose":
        require(model.streams == "rgb+pose", "model.streams", model.streams, "rgb+pose")

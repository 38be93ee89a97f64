"""The settings of action recognition: fields, defaults, what goes together."""

import dataclasses

from jaxact import config as schema
from jaxact.config import field, require
from jaxact.models.specs import C3DSpec, ExchangeSpec, ResNet3DSpec, X3DSpec

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


def pose_resnet() -> ResNet3DSpec:
    """The pose network of PoseC3D's `pose_only` and of RGBPoseConv3D."""
    return ResNet3DSpec(
        blocks=(4, 6, 3),
        width=32,
        inflate=(0, 1, 1),
        strides=(2, 2, 2),
        temporal_strides=(1, 1, 1),
        stem_stride=1,
        pool_stride=1,
    )


@dataclasses.dataclass
class Model:
    """The recogniser."""

    network: str = field("x3d", choices=NETWORKS)  # slowonly: 3-D ResNet; rgbpose: RGBPoseConv3D
    streams: str = field("rgb+pose", choices=("rgb", "pose", "rgb+pose"))
    classes: int = field(60, least=2)
    rgb: X3DSpec = dataclasses.field(default_factory=lambda: X3DSpec(temporal="shift"))
    pose: X3DSpec = dataclasses.field(
        default_factory=lambda: X3DSpec((5, 11, 7), temporal="shift", fold_div=4, stem_stride=1)
    )
    rgb_resnet: ResNet3DSpec = dataclasses.field(default_factory=ResNet3DSpec)
    pose_resnet: ResNet3DSpec = dataclasses.field(default_factory=pose_resnet)
    c3d: C3DSpec = dataclasses.field(default_factory=C3DSpec)
    exchange: ExchangeSpec = dataclasses.field(default_factory=ExchangeSpec)
    attention: bool = True  # x3d only. Pose features scale RGB features; off = plain RGBPoseX3D
    head: str = field("linear", choices=("linear", "x3d"))  # x3d: a 2048-wide layer first
    pool: str = field("mean", choices=("mean", "logits", "softmax"))  # of several positions
    window: tuple[int, ...] = ()  # t, h, w of a position, for pool = logits or softmax
    coarse: tuple[int, ...] = ()  # coarse class of each class; () = no coarse heads
    loss_weights: tuple[float, ...] = field((1.0, 1.5, 0.6, 1.2), length=4)  # rgb, pose, coarse x 2
    prototypes: bool = False  # PCAN's prototype contrast and tree terms (needs coarse)
    dropout: tuple[float, ...] = field((0.5, 0.5), length=2, note="rgb, pose")
    head_deviation: float = 0.01  # of the classifiers' first weights; 0.06 starts small nets faster
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    depthwise: str = field("auto", choices=("auto", "shift", "conv"))  # x3d only: ops.depthwise


@dataclasses.dataclass
class Views:
    """What an example is seen as in evaluation: clips x crops x (1 or 2 mirrored)."""

    clips: int = field(1, least=1)  # in time
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
    people: int = field(2, least=1)  # persons kept of a clip, those with the highest mean score
    nan: str = field("zero", choices=("zero", "error"))  # joints that are not a number
    rgb_frames: int = field(16, least=1)
    pose_frames: int = field(48, least=1)
    sampling: str = field("uniform", choices=("uniform", "dense"))  # dense: rgb only
    stride: int = 1  # frames from one to the next, for dense sampling
    interval: tuple[float, ...] = field((1.0, 1.0), length=2)  # share of the video, for training
    aligned: bool = True  # RGB frames are every n-th pose frame; False = drawn independently
    compact: bool = True  # crop to the box around all joints first
    padding: float = 0.25  # that box is so much larger on each side
    imgpad: bool = True  # that box may leave the image (black there)
    resize: int = field(256, least=1)  # px, before the random crop in training
    test_size: int = field(256, least=1)  # px, in evaluation
    keep_ratio: bool = False  # resize the short side (then crop), instead of both sides
    short: tuple[int, ...] = field((), length=(0, 2), rising=True, note="px")  # of the short side
    area: tuple[float, ...] = field((0.56, 1.0), length=2)  # share that a crop keeps, if short = ()
    aspect: tuple[float, ...] = field((0.75, 1.3333333333333333), length=2)  # its width / height
    flip: float = 0.5  # probability of the mirror image
    jitter: tuple[float, ...] = field((0.0,) * 4, length=4)  # brightness, contrast, saturation, hue
    rotate: float = 0.0  # degrees, uniform in +-; pose only
    stretch: float = 0.0  # share, uniform in 1 +-; pose only
    shift: float = 0.0  # share of the crop, uniform in +-, x and y apart; pose only
    noise: float = 0.0  # px of the crop, deviation of each joint; pose only
    heatmap: str = field("joints", choices=("joints", "limbs", "both"))
    scale: float = 0.25  # heatmap px / crop px
    sigma: float = 0.6  # heatmap px
    use_score: bool = True  # peaks as high as the joint's score; False = 1
    mean: tuple[float, ...] = field((123.675, 116.28, 103.53), length=3)  # RGB, of 0..255
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    val: Views = dataclasses.field(default_factory=Views)
    test: Views = dataclasses.field(default_factory=Views)
    average: str = field("prob", choices=("prob", "score"))  # what is averaged over views
    views_at_once: int = field(1, least=1)  # views computed together: memory against speed
    clips_at_once: int = field(5, least=1)  # clips fed together: memory against repeated decoding


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


def validate(config: Config) -> None:
    """Raises UserError for a value that its field does not allow, or that another one rules out."""
    schema.check(config)
    model, data = config.model, config.data
    _validate_network(model)
    require(
        len(model.coarse) in (0, model.classes),
        "model.coarse",
        f"{len(model.coarse)} entries",
        f"() or one coarse class for each of the {model.classes} classes",
    )
    largest = max((stage.size for stage in config.stages), default=0)
    rule = f"sides from the training crop's {largest} px on"
    require(not data.short or data.short[0] >= largest, "data.short", data.short, rule)
    for name in ("val", "test"):
        _validate_views(getattr(data, name), f"data.{name}", data, model.streams)
    if "rgb" in model.streams:
        for name in ("rotate", "stretch", "shift", "noise"):
            value = getattr(data, name)
            require(value == 0, f"data.{name}", value, "0 with an RGB stream, which stays still")
    if model.streams == "rgb+pose" and data.aligned:
        rule = f"multiples of rgb_frames={data.rgb_frames}, or data.aligned=False"
        whole = data.pose_frames % data.rgb_frames == 0
        require(whole, "data.pose_frames", data.pose_frames, rule)
    if data.sampling == "dense":
        require(model.streams == "rgb", "data.sampling", "dense", "uniform, for a pose stream")


def _validate_views(views: Views, name: str, data: Data, streams: str) -> None:
    for ok, rule in (
        (views.crops in (1, 3), "1 or 3"),
        (
            views.crops == 1 or data.keep_ratio,
            "1 without data.keep_ratio: a frame squeezed into the square has no ends",
        ),
        (
            views.crops == 1 or not data.compact,
            "1 with data.compact: the square around the joints has no ends, the crops would be one",
        ),
    ):
        require(ok, f"{name}.crops", views.crops, rule)
    rule = "False beside flip (either mirrors each view once) and without a pose stream"
    ok = not views.double or ("pose" in streams and not views.flip)
    require(ok, f"{name}.double", True, rule)


def _validate_network(model: Model) -> None:
    """What is set belongs to the network; the parts of other networks keep their defaults."""
    network, fresh = model.network, Model()
    for part in (name for name, networks in USED_BY.items() if network not in networks):
        given, default = getattr(model, part), getattr(fresh, part)
        for item in dataclasses.fields(given):
            now, usual = getattr(given, item.name), getattr(default, item.name)
            rule = f"{usual}, its default: network={network} does not use it"
            require(now == usual, f"model.{part}.{item.name}", now, rule)
    if network == "x3d":
        return
    require(not model.attention, "model.attention", True, f"False with network={network}")
    require(model.depthwise == "auto", "model.depthwise", model.depthwise, "auto, but with x3d")
    if network == "rgbpose":
        require(model.streams == "rgb+pose", "model.streams", model.streams, "rgb+pose")

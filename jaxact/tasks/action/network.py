"""Networks of action recognition, as a config describes them."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jaxact.config import require
from jaxact.models import heads, rgbpose
from jaxact.models.recognizer import Recognizer
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


def build(model: Model, dtype: str) -> nn.Module:
    """The recogniser of `config.model`, computing in `dtype`.

    Called as (rgb, pose, train, ...) -> dict of logits; see `recognizer.Recognizer`.
    Raises UserError for numbers that make no network.
    """
    window = model.window or (0, 0, 0)
    head = heads.Head(
        classes=model.classes,
        coarse_classes=max(model.coarse) + 1 if model.coarse else 0,
        kind=model.head,
        dropout=(model.dropout[0], model.dropout[1]),
        pool=model.pool,
        window=(window[0], window[1], window[2]),
        prototypes=heads.Prototypes(tuple(model.coarse)) if model.prototypes else None,
        dtype=jnp.dtype(dtype),
        deviation=model.head_deviation,
    )
    if model.network == "x3d":
        return Recognizer(
            classes=head.classes,
            streams=model.streams,
            rgb=X3DSpec(**dataclasses.asdict(model.rgb)),
            pose=X3DSpec(**dataclasses.asdict(model.pose)),
            use_attention=model.attention and model.streams == "rgb+pose",
            head_kind=head.kind,
            coarse_classes=head.coarse_classes,
            dropout=head.dropout,
            pool=head.pool,
            window=head.window,
            prototypes=head.prototypes,
            dtype=head.dtype,
            implementation=model.depthwise,
            remat=model.remat,
            head_deviation=head.deviation,
        )
    rgb, pose = (
        C3DSpec(**dataclasses.asdict(model.c3d))
        if model.network == "c3d"
        else ResNet3DSpec(**dataclasses.asdict(config))
        for config in (model.rgb_resnet, model.pose_resnet)
    )
    exchange = ExchangeSpec(**dataclasses.asdict(model.exchange))
    return rgbpose.ConvRecognizer(
        head=head,
        streams=model.streams,
        rgb=rgb,
        pose=pose,
        exchange=exchange if model.network == "rgbpose" else None,
        dtype=head.dtype,
        remat=model.remat,
    )


def countable(module: nn.Module) -> nn.Module:
    """The same recogniser with every multiplication in a convolution or a matrix product."""
    return module.clone(implementation="conv") if isinstance(module, Recognizer) else module


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

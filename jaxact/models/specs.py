"""Shapes and constants of the networks: what a config may set of them. Imports no JAX."""

import dataclasses
from typing import ClassVar, NamedTuple

from jaxact.config import UserError, check, field, require

CLASSIFIER_KINDS = ("baseline", "multitask", "fewshot")

PARTS = ("crop", "disease", "severity")


FUSIONS = ("concat", "bilinear", "add", "interaction")

FULL_BILINEAR = 20_000_000  # weights of a bilinear form above which it is factorised


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BackboneInfo(NamedTuple):
    """What a recipe must know of a backbone. Patterns are regexes for the start of a parameter's
    path below the backbone ("layer4/block0/conv1/kernel")."""

    features: int  # channels of the map and of the pooled vector
    mean: tuple[float, float, float]  # of pixels in 0..1, red green blue
    std: tuple[float, float, float]
    size: int  # px, side of the training images it was designed for
    last_stage: str  # the part that is unfrozen first
    stages: tuple[str, ...]  # from the stem to the head, each parameter in one of them
    drop_path: float  # of the published recipe
    dropout: float  # of the published recipe, before the classifier


@dataclasses.dataclass(frozen=True)
class ConvNeXtSpec:
    """The shape of one network."""

    blocks: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def features(self) -> int:
        """Channels of the last map."""
        return self.channels[-1]


CONVNEXTS = {
    "convnext_tiny": ConvNeXtSpec((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_base": ConvNeXtSpec((3, 3, 27, 3), (128, 256, 512, 1024)),
}


@dataclasses.dataclass(frozen=True)
class EfficientNetSpec:
    """The shape of one network."""

    stem: int  # channels
    repeats: tuple[int, ...]
    channels: tuple[int, ...]
    features: int  # channels of the head's convolution
    tensorflow: bool = False  # SAME padding and BN eps 1e-3


_B0 = EfficientNetSpec(32, (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), 1280)

_B3 = EfficientNetSpec(40, (2, 3, 3, 5, 5, 6, 2), (24, 32, 48, 96, 136, 232, 384), 1536)

EFFICIENTNETS = {
    "efficientnet_b0": _B0,
    "efficientnet_b3": _B3,
    "tf_efficientnet_b0": dataclasses.replace(_B0, tensorflow=True),
    "tf_efficientnet_b3": dataclasses.replace(_B3, tensorflow=True),
}


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """The shape of one network; stage i has width * 2**i inner channels."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool = False  # 1x1, 3x3, 1x1 with 4 times the channels out; else 3x3, 3x3
    width: int = 64
    stem: str = "pooled"  # pooled: 7x7 stride 2, max-pool stride 2; plain: 3x3, no pooling
    stem_stride: int = 2
    # First value of each block's last BN scale: 0 makes a new block the identity, which deep nets
    # train from (timm's default); shallow ones learn faster from 1.
    last_scale: float = 0.0

    @property
    def features(self) -> int:
        """Channels of the last map."""
        return self.width * 8 * (4 if self.bottleneck else 1)


RESNETS = {
    "resnet18": ResNetSpec((2, 2, 2, 2)),
    "resnet34": ResNetSpec((3, 4, 6, 3)),
    "resnet50": ResNetSpec((3, 4, 6, 3), bottleneck=True),
    "resnet101": ResNetSpec((3, 4, 23, 3), bottleneck=True),
    "resnet10_w8": ResNetSpec((1, 1, 1, 1), width=8, stem="plain", last_scale=1.0),
    "resnet10_w16_s1": ResNetSpec(
        (1, 1, 1, 1), width=16, stem="plain", stem_stride=1, last_scale=1.0
    ),
    "resnet10_w32": ResNetSpec((1, 1, 1, 1), width=32, stem="plain", last_scale=1.0),
    "resnet18_w32": ResNetSpec((2, 2, 2, 2), width=32, stem="plain"),
}


BACKBONES: tuple[str, ...] = (*RESNETS, *EFFICIENTNETS, *CONVNEXTS)
"""Every `kind` of `models.backbones.Backbone`."""


def backbone_spec(name: str) -> ResNetSpec | EfficientNetSpec | ConvNeXtSpec:
    """The shape of one backbone. Raises UserError naming the allowed backbones."""
    for family in (RESNETS, EFFICIENTNETS, CONVNEXTS):
        if name in family:
            return family[name]
    raise UserError(f"backbone {name!r}: choose one of {', '.join(BACKBONES)}")


def backbone_info(name: str) -> BackboneInfo:
    """The facts of one backbone.

    Raises UserError naming the allowed backbones.
    """
    features = backbone_spec(name).features
    if name in RESNETS:
        size = 224 if RESNETS[name].stem == "pooled" else 64
        stages = ("stem/", *(f"layer{number}/" for number in (1, 2, 3, 4)))
        return BackboneInfo(
            features, IMAGENET_MEAN, IMAGENET_STD, size, stages[-1], stages, 0.0, 0.0
        )
    if name in EFFICIENTNETS:
        stages = ("stem/", *(f"blocks{number}/" for number in range(7)), "head/")
        last, larger = "(blocks5|blocks6|head)/", name.endswith("b3")
        size, dropout = (288, 0.3) if larger else (224, 0.2)
        return BackboneInfo(features, IMAGENET_MEAN, IMAGENET_STD, size, last, stages, 0.2, dropout)
    stages = ("stem/", *(f"stage{number}/" for number in range(4)), "norm/")
    drop_path = 0.1 if name == "convnext_tiny" else 0.5
    last = "(stage3|norm)/"
    return BackboneInfo(features, IMAGENET_MEAN, IMAGENET_STD, 224, last, stages, drop_path, 0.0)


RANGES = (0.0, 4.0, 4.0, 8.0, 8.0, 16.0, 16.0, 32.0, 32.0, 64.0, 64.0, 10000.0)
"""Low and high of each of six levels of a detector, in grid units (THUMOS-14)."""


@dataclasses.dataclass(unsafe_hash=True)
class ActionFormerSpec:
    """Sizes of the detector. The defaults are THUMOS-14's."""

    classes: int = field(20, least=1)  # 1 = class-agnostic
    width: int = field(512, least=1)  # channels
    heads: int = field(4, least=1)  # of attention
    stem: int = field(2, least=0)  # transformer blocks at full length
    branch: int = field(5, least=0)  # blocks that each halve the length: one level more than this
    # Steps that a step attends to (odd).
    window: int = field(0, least=3, names={0: "all"})
    drop_path: float = field(0.1, least=0, below=1)  # of transformer blocks
    input_dropout: float = field(0.0, least=0, below=1)  # of whole input channels
    positions: int = field(0, least=0, names={0: "none"})  # steps of an absolute position table

    # The same in all published networks, so not fields of a config; a subclass may have others.
    embed: ClassVar[int] = 2  # convolutions before the transformer
    tower: ClassVar[int] = 2  # convolutions before the classes and before the distances

    def __post_init__(self):
        check(self, "model.")
        rule = f"divisors of width={self.width}"
        require(self.width % self.heads == 0, "model.heads", self.heads, rule)
        odd = self.window == 0 or self.window % 2 == 1
        require(odd, "model.window", self.window, "0 (all), or odd and 3 or more")

    @property
    def levels(self) -> int:
        """Levels of the pyramid."""
        return self.branch + 1


ADAPTER_MODES = ("adapter", "frozen", "full", "side")


@dataclasses.dataclass(unsafe_hash=True)
class AdapterSpec:
    """How the backbone learns.

    adapter: gradients flow through a network whose own weights are fixed; frozen: none do; full:
    all weights learn, there are no adapters; side: adapters beside a network without gradients,
    whose outputs are added to its last feature map.
    """

    mode: str = field("adapter", choices=ADAPTER_MODES)  # what learns
    ratio: float = field(0.25, above=0, most=4)  # hidden width of an adapter / width of the network
    # The first block with an adapter; all later ones have one (side-tuned ViT-S: 6).
    first: int = field(0, least=0)

    def __post_init__(self):
        check(self, "model.backbone.")


ATTENTION = ("auto", "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class VisionTransformerSpec:
    """Sizes of a vision transformer. The defaults are ViT-S."""

    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int = 1536  # of the MLP
    patch: int = 16  # px
    native: int = 224  # px of the clips that positions are counted on

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"vision transformer: width {self.width} over {self.heads} heads")


VISION_TRANSFORMERS = {
    "tiny": VisionTransformerSpec(48, 2, 2, 96),  # for tests and demonstrations, not published
    "s": VisionTransformerSpec(),
    "b": VisionTransformerSpec(768, 12, 12, 3072),
    "l": VisionTransformerSpec(1024, 24, 16, 4096),
    "h": VisionTransformerSpec(1280, 32, 16, 5120),
    "g": VisionTransformerSpec(1408, 40, 16, 6144, 14),
}


@dataclasses.dataclass(frozen=True)
class ExchangeSpec:
    """Where and how two paths see each other."""

    rgb_after: tuple[int, ...] = (2, 3)  # stages of the RGB path (1 = first) before each exchange
    pose_after: tuple[int, ...] = (1, 2)  # the same of the pose path
    share: int = 4  # a path's own channels / channels it receives
    kernel: int = 7  # frames of the finer path
    rgb_detach: bool = False  # the RGB path's loss does not train the pose path
    pose_detach: bool = False  # the pose path's loss does not train the RGB path
    rgb_drop_path: float = 0.0  # probability that the RGB path receives zeros; training only
    pose_drop_path: float = 0.0  # the same of the pose path

    def __post_init__(self):
        pairs = (self.rgb_after, self.pose_after)
        if len(pairs[0]) != len(pairs[1]):
            raise UserError(f"exchange rgb_after {pairs[0]!r}, pose_after {pairs[1]!r}: as many")
        for name, stages in (("rgb_after", pairs[0]), ("pose_after", pairs[1])):
            if min(stages, default=1) < 1 or list(stages) != sorted(set(stages)):
                raise UserError(f"exchange {name} {stages!r}: stages from 1 on, rising")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"exchange kernel {self.kernel!r}: an odd number of frames")
        if self.share < 1:
            raise UserError(f"exchange share {self.share!r}: 1 or more")
        for name in ("rgb_drop_path", "pose_drop_path"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"exchange {name} {getattr(self, name)!r}: 0 to 1")


@dataclasses.dataclass(frozen=True)
class C3DSpec:
    """The shape of one network; stage i has width * 2**i channels, at most 8 * width."""

    width: int = 32  # channels of the first stage
    stages: int = 4  # convolutions 1a 2a 3a 3b 4a 4b 5a 5b; PYSKL's C3D-light has 4 of 5
    pool_time: bool = False  # later pools also halve the frames

    def __post_init__(self):
        if not 1 <= self.stages <= 5:
            raise UserError(f"c3d stages {self.stages!r}: 1 to 5")
        if self.width < 1:
            raise UserError(f"c3d width {self.width!r}: 1 or more")


EXPANSION = 4  # channels of a stage / inner channels of its bottlenecks


@dataclasses.dataclass(frozen=True)
class ResNet3DSpec:
    """The shape of one network; stage i has 4 * width * 2**i channels."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)  # bottlenecks of each stage
    width: int = 64  # channels of the stem
    inflate: tuple[int, ...] = (0, 0, 1, 1)  # each stage: 1 = first kernels 3x1x1, 0 = 1x1x1
    strides: tuple[int, ...] = (1, 2, 2, 2)  # of each stage's first block, in h and w
    temporal_strides: tuple[int, ...] = (1, 1, 1, 1)  # the same in time
    stem_kernel: tuple[int, int, int] = (1, 7, 7)  # t, h, w
    stem_stride: int = 2  # in h and w
    pool_stride: int = 2  # in h and w, of the 3 x 3 max pool after the stem
    last_scale: float = 0.0  # first value of each block's last BN scale; 1 learns faster if shallow

    def __post_init__(self):
        stages = len(self.blocks)
        if not self.blocks or min(self.blocks) < 1:
            raise UserError(f"resnet3d blocks {self.blocks!r}: at least one block in every stage")
        for name in ("inflate", "strides", "temporal_strides"):
            values = getattr(self, name)
            if len(values) != stages:
                raise UserError(
                    f"resnet3d {name} {values!r}: needs one number for each of the {stages} stages"
                )
            least, most = (0, 1) if name == "inflate" else (1, 8)
            if min(values) < least or max(values) > most:
                raise UserError(f"resnet3d {name} {values!r}: allowed are {least} to {most}")
        if len(self.stem_kernel) != 3 or any(k < 1 or k % 2 == 0 for k in self.stem_kernel):
            raise UserError(f"resnet3d stem_kernel {self.stem_kernel!r}: three odd numbers, t h w")
        for name in ("width", "stem_stride", "pool_stride"):
            if getattr(self, name) < 1:
                raise UserError(f"resnet3d {name} {getattr(self, name)!r}: 1 or more")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage's map."""
        return tuple(EXPANSION * self.width * 2**stage for stage in range(len(self.blocks)))


@dataclasses.dataclass(frozen=True)
class X3DSpec:
    """The shape of one backbone; stage i has width * 2**i channels."""

    blocks: tuple[int, ...] = (3, 5, 11, 7)  # blocks of each stage
    width: int = 24  # channels of the stem and the first stage
    bottleneck: float = 2.25  # inner channels / channels of a stage
    temporal: str = "conv"  # conv: 3x3x3 filters, 5x1x1 stem; shift: temporal shift, 1x3x3 filters
    fold_div: int = 8  # 1/fold_div of the channels shift each way; only with temporal = shift
    stem_stride: int = 2  # spatial; time keeps its length everywhere
    swish: bool = True  # after the depthwise filter; False = nothing there, as in X3D-shallow
    se: str = "half"  # half: blocks 0, 2, 4, ... of a stage; all; none
    res2_shortcut_bn: bool = True  # False: as PyTorchVideo builds it
    conv5: bool = True  # widen the last stage's map before pooling; small nets learn faster without
    last_scale: float = 0.0  # first value of each block's last BN scale; 1 learns faster if shallow

    def __post_init__(self):
        for name, allowed in (("temporal", ("conv", "shift")), ("se", ("half", "all", "none"))):
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"x3d {name} {value!r}: choose one of {', '.join(allowed)}")
        if not self.blocks or min(self.blocks) < 1:
            raise UserError(f"x3d blocks {self.blocks!r}: at least one block in every stage")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width * 2**stage for stage in range(len(self.blocks)))

    @property
    def features(self) -> int:
        """Channels of the map that is pooled."""
        return int(self.channels[-1] * self.bottleneck) if self.conv5 else self.channels[-1]

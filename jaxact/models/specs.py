"""Shapes of the networks, one record each, and the constants that configs share with them.

First the image backbones, then the detector, the vision transformer with its adapters, and the
networks for clips. Nothing here imports JAX: configs and the worker processes of the data read it.
"""

import dataclasses
from typing import ClassVar, NamedTuple

from jaxact.config import UserError, check, field, require

CLASSIFIER_KINDS = ("baseline", "multitask", "fewshot")

PARTS = ("crop", "disease", "severity")


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """An image ResNet; stage i has width * 2**i inner channels."""

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


# `resnet10_w32`: 10 layers, 32 channels in the first stage, 3x3 stem of stride 2; `_s1`: of stride
# 1, for images of 32 px.
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


@dataclasses.dataclass(frozen=True)
class EfficientNetSpec:
    """An EfficientNet; kernels, strides and expansions are the same in every size."""

    stem: int  # channels
    repeats: tuple[int, ...]  # blocks of each stage
    channels: tuple[int, ...]  # of each stage
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
class ConvNeXtSpec:
    """A ConvNeXt."""

    blocks: tuple[int, ...]  # of each stage
    channels: tuple[int, ...]  # of each stage

    @property
    def features(self) -> int:
        """Channels of the last map."""
        return self.channels[-1]


CONVNEXTS = {
    "convnext_tiny": ConvNeXtSpec((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_base": ConvNeXtSpec((3, 3, 27, 3), (128, 256, 512, 1024)),
}
BACKBONES: tuple[str, ...] = (*RESNETS, *EFFICIENTNETS, *CONVNEXTS)
"""Every `kind` of `models.backbones.Backbone`."""


@dataclasses.dataclass(unsafe_hash=True)
class ClassifierSpec:
    """Heads on an image backbone: baseline one linear layer, multitask four, fewshot two layers."""

    kind: str = field("baseline", choices=CLASSIFIER_KINDS)
    backbone: str = field("resnet50", choices=BACKBONES)
    dropout: float = field(0.3, least=0, below=1)  # before each head
    hidden: int = field(512, least=1)  # fewshot: width of its inner layer
    cosine: bool = False  # hold a cosine head; the stage value `cosine` switches to it
    scale: float = field(30.0, above=0)  # of the cosine head's logits
    center: bool = False  # hold a centre for each class; the stage value `center` weighs the loss
    # Of the deepest block (EfficientNet, ConvNeXt).
    drop_path: float = field(0.0, least=0, below=1)
    remat: bool = False  # recompute blocks in the backward pass: less memory, more time


def backbone_spec(name: str) -> ResNetSpec | EfficientNetSpec | ConvNeXtSpec:
    """The shape of one backbone. Raises UserError naming the allowed backbones."""
    for family in (RESNETS, EFFICIENTNETS, CONVNEXTS):
        if name in family:
            return family[name]
    raise UserError(f"backbone {name!r}: choose one of {', '.join(BACKBONES)}")


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


def backbone_info(name: str) -> BackboneInfo:
    """The facts of one backbone. Raises UserError naming the allowed backbones."""
    features = backbone_spec(name).features
    size, drop_path, dropout = 224, 0.0, 0.0
    if name in RESNETS:
        size = 224 if RESNETS[name].stem == "pooled" else 64
        stages = ("stem/", *(f"layer{number}/" for number in (1, 2, 3, 4)))
        last = stages[-1]
    elif name in EFFICIENTNETS:
        stages = ("stem/", *(f"blocks{number}/" for number in range(7)), "head/")
        last, drop_path = "(blocks5|blocks6|head)/", 0.2
        size, dropout = (288, 0.3) if name.endswith("b3") else (224, 0.2)
    else:
        stages = ("stem/", *(f"stage{number}/" for number in range(4)), "norm/")
        last, drop_path = "(stage3|norm)/", 0.1 if name == "convnext_tiny" else 0.5
    return BackboneInfo(
        features, IMAGENET_MEAN, IMAGENET_STD, size, last, stages, drop_path, dropout
    )


FUSIONS = ("concat", "bilinear", "add", "interaction")
"""Every `fusion` of `models.relation.Relation`."""

FULL_BILINEAR = 20_000_000  # weights of a bilinear form above which it is factorised


@dataclasses.dataclass(unsafe_hash=True)
class RelationSpec:
    """The pair classifier; freezing is in optim.groups."""

    # Shared by both people.
    backbone: str = field("resnet18", choices=BACKBONES, names={"": "spatial features alone"})
    visual: int = field(256, least=1)  # channels of a person after the mapper
    # Widths of the relation MLP; half the first is a person's code.
    hidden: tuple[int, ...] = field((128, 64, 32), least=4)
    fusion: str = field("concat", choices=FUSIONS)  # of the two codes
    # Weights above which a bilinear form is of low rank.
    full_bilinear: int = field(FULL_BILINEAR, least=1)
    symmetric: bool = False  # the same answer for (A, B) and (B, A)
    # Of the codes and the MLP; half of it on the spatial code and the last layer.
    dropout: float = field(0.3, least=0, below=1)
    mapper_dropout: float = field(0.2, least=0, below=1)
    remat: bool = False  # compute the backbone's blocks again in the backward pass

    def __post_init__(self):
        check(self, "model.")
        require(len(self.hidden) > 0, "model.hidden", self.hidden, "one width or more")


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
    window: int = field(0, least=3, names={0: "all"}, note="odd")
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


@dataclasses.dataclass(unsafe_hash=True)
class ExchangeSpec:
    """Where and how the two paths of RGBPoseConv3D see each other."""

    # Stages of the RGB path (1 = first) before each exchange.
    rgb_after: tuple[int, ...] = field((2, 3), least=1, note="stages, rising")
    pose_after: tuple[int, ...] = field((1, 2), least=1)  # the same of the pose path
    share: int = field(4, least=1)  # a path's own channels / channels it receives
    kernel: int = field(7, least=1, note="odd")  # frames of the finer path
    rgb_detach: bool = False  # the RGB path's loss does not train the pose path
    pose_detach: bool = False  # the pose path's loss does not train the RGB path
    # Probability that the RGB path receives zeros in a training step.
    rgb_drop_path: float = field(0.0, least=0, most=1)
    pose_drop_path: float = field(0.0, least=0, most=1)  # the same of the pose path

    def __post_init__(self):
        check(self, "exchange.", head="")
        pairs = (self.rgb_after, self.pose_after)
        if len(pairs[0]) != len(pairs[1]):
            raise UserError(f"exchange rgb_after {pairs[0]!r}, pose_after {pairs[1]!r}: as many")
        for name, stages in (("rgb_after", pairs[0]), ("pose_after", pairs[1])):
            if list(stages) != sorted(set(stages)):
                raise UserError(f"exchange {name} {stages!r}: stages from 1 on, rising")
        if self.kernel % 2 == 0:
            raise UserError(f"exchange kernel {self.kernel!r}: an odd number of frames")


@dataclasses.dataclass(unsafe_hash=True)
class C3DSpec:
    """The shape of one network; stage i has width * 2**i channels, at most 8 * width.

    The defaults are PYSKL's C3D-light.
    """

    width: int = field(32, least=1)  # channels of the first stage
    stages: int = field(4, least=1, most=5)  # convolutions 1a 2a 3a 3b 4a 4b 5a 5b
    pool_time: bool = False  # later pools also halve the frames

    def __post_init__(self):
        check(self, "c3d.", head="")


EXPANSION = 4  # channels of a stage / inner channels of its bottlenecks


@dataclasses.dataclass(unsafe_hash=True)
class ResNet3DSpec:
    """The shape of one network; stage i has 4 * width * 2**i channels."""

    blocks: tuple[int, ...] = field((3, 4, 6, 3), least=1)  # bottlenecks of each stage
    width: int = field(64, least=1)  # channels of the stem
    # Of each stage: 1 = its blocks see 3 frames (first kernels 3x1x1), 0 = one (1x1x1).
    inflate: tuple[int, ...] = field((0, 0, 1, 1), least=0, most=1)
    # Of each stage's first block, in h and w.
    strides: tuple[int, ...] = field((1, 2, 2, 2), least=1, most=8)
    temporal_strides: tuple[int, ...] = field((1, 1, 1, 1), least=1, most=8)  # the same in t
    stem_kernel: tuple[int, ...] = field((1, 7, 7), least=1, length=3, note="t, h, w, odd")
    stem_stride: int = field(2, least=1)  # in h and w
    pool_stride: int = field(2, least=1)  # in h and w, of the 3 x 3 max pool after the stem
    last_scale: float = 0.0  # first value of each block's last BN scale; 1 learns faster if shallow

    def __post_init__(self):
        check(self, "resnet3d.", head="")
        if not self.blocks:
            raise UserError(f"resnet3d blocks {self.blocks!r}: at least one block in every stage")
        for name in ("inflate", "strides", "temporal_strides"):
            numbers = getattr(self, name)
            if len(numbers) != len(self.blocks):
                raise UserError(
                    f"resnet3d {name} {numbers!r}: needs one number for each of the "
                    f"{len(self.blocks)} stages"
                )
        if any(size % 2 == 0 for size in self.stem_kernel):
            raise UserError(f"resnet3d stem_kernel {self.stem_kernel!r}: three odd numbers, t h w")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage's map."""
        return tuple(EXPANSION * self.width * 2**stage for stage in range(len(self.blocks)))


@dataclasses.dataclass(unsafe_hash=True)
class X3DSpec:
    """The shape of one X3D or X-Shift backbone; stage i has width * 2**i channels."""

    blocks: tuple[int, ...] = field((3, 5, 11, 7), least=1)  # blocks of each stage
    width: int = 24  # channels of the stem and the first stage
    bottleneck: float = 2.25  # inner channels / channels of a stage
    # conv: 3x3x3 filters, 5x1x1 stem (X3D); shift: temporal shift, 1x3x3 filters (X-Shift)
    temporal: str = field("conv", choices=("conv", "shift"))
    fold_div: int = 8  # 1/fold_div of the channels shift each way in time; only with shift
    stem_stride: int = 2  # spatial; time keeps its length everywhere
    swish: bool = True  # after the depthwise filter; False = nothing there, as in X3D-shallow
    # Blocks with squeeze and excitation; half: blocks 0, 2, 4, ... of a stage.
    se: str = field("half", choices=("half", "all", "none"))
    res2_shortcut_bn: bool = True  # False: as PyTorchVideo builds it
    conv5: bool = True  # widen the last stage's map before pooling; small nets learn faster without
    last_scale: float = 0.0  # first value of each block's last BN scale; 1 learns faster if shallow

    def __post_init__(self):
        check(self, "x3d.", head="")
        if not self.blocks:
            raise UserError(f"x3d blocks {self.blocks!r}: at least one block in every stage")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width * 2**stage for stage in range(len(self.blocks)))

    @property
    def features(self) -> int:
        """Channels of the map that is pooled."""
        return int(self.channels[-1] * self.bottleneck) if self.conv5 else self.channels[-1]

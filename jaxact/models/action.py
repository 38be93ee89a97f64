"""Networks of action recognition, as a config describes them."""

import dataclasses

import jax.numpy as jnp

from jaxact.models import heads, x3d
from jaxact.models.recognizer import Recognizer


@dataclasses.dataclass
class Backbone:
    """One stream's network (see `models.x3d.Spec`)."""

    temporal: str = "shift"  # shift: X-Shift; conv: X3D with 3x3x3 filters
    blocks: tuple[int, ...] = (3, 5, 11, 7)  # blocks of each stage
    width: int = 24  # channels of the stem; each stage doubles
    bottleneck: float = 2.25  # inner channels / channels of a stage
    fold_div: int = 8  # 1/fold_div of the channels shift each way in time
    stem_stride: int = 2  # spatial
    swish: bool = True  # after the depthwise filter; False = ReLU
    se: str = "half"  # half | all | none: which blocks squeeze and excite
    res2_shortcut_bn: bool = True  # False = PyTorchVideo's X3D
    conv5: bool = True  # widen before pooling; small nets learn faster without
    last_scale: float = 0.0  # first scale of each block's last BN; 1 learns faster if shallow


@dataclasses.dataclass
class Model:
    """The recogniser."""

    streams: str = "rgb+pose"  # rgb | pose | rgb+pose
    classes: int = 60
    rgb: Backbone = dataclasses.field(default_factory=Backbone)
    pose: Backbone = dataclasses.field(
        default_factory=lambda: Backbone(blocks=(5, 11, 7), fold_div=4, stem_stride=1)
    )
    attention: bool = True  # EPAM: pose features scale RGB features; off = plain RGBPoseX3D
    head: str = "linear"  # linear | x3d (a 2048-wide layer before the classifier)
    pool: str = "mean"  # mean | logits | softmax: how the head treats several positions
    window: tuple[int, ...] = ()  # t, h, w of a position, for pool = logits | softmax
    coarse: tuple[int, ...] = ()  # coarse class of each class; () = no coarse heads
    loss_weights: tuple[float, ...] = (1.0, 1.5, 0.6, 1.2)  # rgb, pose, rgb coarse, pose coarse
    prototypes: bool = False  # PCAN's prototype contrast and tree terms (needs coarse)
    dropout: tuple[float, ...] = (0.5, 0.5)  # rgb, pose
    head_deviation: float = 0.01  # of the classifiers' first weights; 0.06 starts small nets faster
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    depthwise: str = "auto"  # auto | shift | conv: see ops.depthwise


def build(model: Model, dtype: str) -> Recognizer:
    """The recogniser of `config.model`, computing in `dtype`."""
    coarse = max(model.coarse) + 1 if model.coarse else 0
    prototypes = heads.Prototypes(coarse_map=tuple(model.coarse)) if model.prototypes else None
    window = model.window or (0, 0, 0)
    return Recognizer(
        classes=model.classes,
        streams=model.streams,
        rgb=x3d.Spec(**dataclasses.asdict(model.rgb)),
        pose=x3d.Spec(**dataclasses.asdict(model.pose)),
        use_attention=model.attention and model.streams == "rgb+pose",
        head_kind=model.head,
        coarse_classes=coarse,
        dropout=(model.dropout[0], model.dropout[1]),
        pool=model.pool,
        window=(window[0], window[1], window[2]),
        prototypes=prototypes,
        dtype=jnp.dtype(dtype),
        implementation=model.depthwise,
        remat=model.remat,
        head_deviation=model.head_deviation,
    )

"""Image backbones by name: what each needs from a recipe, and the module that runs it."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxact.config import UserError
from jaxact.models import convnext, efficientnet, image_layers, resnet

NAMES: tuple[str, ...] = (*resnet.SPECS, *efficientnet.SPECS, *convnext.SPECS)
"""Every `kind` of `Backbone`."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Info(NamedTuple):
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


def info(name: str) -> Info:
    """The facts of one backbone.

    Raises UserError naming the allowed backbones.
    """
    features = _spec(name).features
    if name in resnet.SPECS:
        size = 224 if resnet.SPECS[name].stem == "pooled" else 64
        stages = ("stem/", *(f"layer{number}/" for number in (1, 2, 3, 4)))
        return Info(features, IMAGENET_MEAN, IMAGENET_STD, size, stages[-1], stages, 0.0, 0.0)
    if name in efficientnet.SPECS:
        stages = ("stem/", *(f"blocks{number}/" for number in range(7)), "head/")
        last, larger = "(blocks5|blocks6|head)/", name.endswith("b3")
        size, dropout = (288, 0.3) if larger else (224, 0.2)
        return Info(features, IMAGENET_MEAN, IMAGENET_STD, size, last, stages, 0.2, dropout)
    stages = ("stem/", *(f"stage{number}/" for number in range(4)), "norm/")
    drop_path = 0.1 if name == "convnext_tiny" else 0.5
    last = "(stage3|norm)/"
    return Info(features, IMAGENET_MEAN, IMAGENET_STD, 224, last, stages, drop_path, 0.0)


def _spec(name: str) -> resnet.Spec | efficientnet.Spec | convnext.Spec:
    for family in (resnet.SPECS, efficientnet.SPECS, convnext.SPECS):
        if name in family:
            return family[name]
    raise UserError(f"backbone {name!r}: choose one of {', '.join(NAMES)}")


class Backbone(nn.Module):
    """f32[b, h, w, 3] (normalised) -> (map dtype[b, h', w', c], pooled f32[b, c]).

    The map is the last one before pooling, where Grad-CAM looks; the pooled vector is what a
    classifier takes (ConvNeXt: normalised after pooling). With `stages` a dict of the maps after
    every stage comes third. `remat` stores only block inputs in the forward pass and computes the
    rest again; `drop_path` is the largest chance to drop a block's branch, with random stream
    "dropout" (EfficientNet and ConvNeXt; a ResNet takes 0 only). `implementation`: of depthwise
    filters, as in `ops.depthwise`.

    Raises UserError for an unknown `kind`, or drop_path with a ResNet.
    """

    kind: str
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    drop_path: float = 0.0
    implementation: str = "auto"

    @nn.compact
    def __call__(self, image: jax.Array, train: bool, stages: bool = False):
        spec, rate, how = _spec(self.kind), self.drop_path, self.implementation
        if isinstance(spec, resnet.Spec):
            if rate:
                allowed = "0 (drop path is for EfficientNet and ConvNeXt)"
                raise UserError(
                    f"drop_path {rate!r} with backbone {self.kind!r}: allowed is {allowed}"
                )
            maps = resnet.trunk(spec, image, train, self.dtype, self.remat)
        elif isinstance(spec, efficientnet.Spec):
            maps = efficientnet.trunk(spec, image, train, self.dtype, self.remat, rate, how)
        else:
            maps = convnext.trunk(spec, image, train, self.dtype, self.remat, rate, how)
        x = maps[next(reversed(maps))]
        pooled = image_layers.mean_pool(x)
        if isinstance(spec, convnext.Spec):
            pooled = image_layers.layer_norm("norm", pooled.dtype)(pooled)
        return (x, pooled, maps) if stages else (x, pooled)

"""Networks of action recognition, as a config describes them."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from jaxact.models import heads, rgbpose
from jaxact.models.recognizer import Recognizer
from jaxact.tasks.action.config import Model


def build(model: Model, dtype: str) -> nn.Module:
    """The recogniser of `config.model`, computing in `dtype`.

    Called as (rgb, pose, train, ...) -> dict of logits; see `recognizer.Recognizer`.
    The specs are copied, which checks them once more. Raises UserError for numbers that make no
    network.
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
            rgb=dataclasses.replace(model.rgb),
            pose=dataclasses.replace(model.pose),
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
    light = model.network == "c3d"
    return rgbpose.ConvRecognizer(
        head=head,
        streams=model.streams,
        rgb=dataclasses.replace(model.c3d if light else model.rgb_resnet),
        pose=dataclasses.replace(model.c3d if light else model.pose_resnet),
        exchange=dataclasses.replace(model.exchange) if model.network == "rgbpose" else None,
        dtype=head.dtype,
        remat=model.remat,
    )


def countable(module: nn.Module) -> nn.Module:
    """The same recogniser with every multiplication in a convolution or a matrix product."""
    return module.clone(implementation="conv") if isinstance(module, Recognizer) else module

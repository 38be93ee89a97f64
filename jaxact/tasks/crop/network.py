"""The network of a crop-disease run, as its config describes it."""

import jax.numpy as jnp

from jaxact.models.classifier import Classifier
from jaxact.tasks.crop.config import Model


def build(
    model: Model, classes: int, parts: tuple[int, ...], dtype: str, momentum: float = 0.0
) -> Classifier:
    """The classifier of `config.model` for k classes and the sizes of the other heads.

    `momentum`: of the moving means of their losses; 0 = none are kept.
    """
    return Classifier(
        backbone_kind=model.backbone,
        classes=classes,
        parts=parts if model.kind == "multitask" else (),
        hidden=model.hidden if model.kind == "fewshot" else 0,
        dropout=model.dropout,
        cosine=model.cosine,
        scale=model.scale,
        center=model.center,
        momentum=momentum if model.kind == "multitask" else 0.0,
        dtype=jnp.dtype(dtype),
        remat=model.remat,
        drop_path=model.drop_path,
    )

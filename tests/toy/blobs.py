"""Classifies vectors around class centres: small enough that whole trainings fit in a test.

Batch keys beside id and mask: x f32[b, 8], label i32[b].
"""

import dataclasses
import time
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.evaluate import metrics
from jaxact.ops import losses
from jaxact.task import Evaluation, Prediction, Shipping, Task, Training


@dataclasses.dataclass
class Data:
    examples: int = 42  # of the training split
    held_out: int = 21
    poison: int = -1  # this training example is not a number
    broken: int = -1  # this training example cannot be read
    pause: float = 0.0  # s, before each training example
    rest: float = 0.0  # s, before each other example


@dataclasses.dataclass
class Model:
    width: int = 16
    classes: int = 3
    dropout: float = 0.1


@dataclasses.dataclass
class Stage(schema.Stage):
    label_smoothing: tuple[float, ...] = schema.value(0.0)
    sampler: str = schema.choice("natural", ("natural", "skewed"))
    size: int = schema.shape(8)


@dataclasses.dataclass
class Config(schema.Config):
    task: str = "toy.blobs"
    length: str = "4 epochs"
    batch_size: int = 8
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    stages: tuple[Stage, ...] = (Stage(),)


class Net(nn.Module):
    """Two dense layers with BatchNorm and dropout; pools any number of values to 4 first."""

    width: int
    classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = x.reshape(x.shape[0], 4, -1).mean(-1)
        x = nn.Dense(self.width, name="body")(x)
        x = nn.relu(nn.BatchNorm(momentum=0.9, name="body_bn")(x, use_running_average=not train))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, name="head")(x)


class Source:
    def __init__(self, config: Config, split: str):
        count = config.data.examples if split == "train" else config.data.held_out
        rng = np.random.default_rng(split == "train")
        self.labels = np.arange(count) % config.model.classes
        centres = np.random.default_rng(7).normal(size=(config.model.classes, 4))
        noise = rng.normal(size=(count, 4)) * 0.7
        self.x = np.repeat(centres[self.labels] + noise, 4, 1).astype(np.float32)
        self.pause = config.data.pause if split == "train" else config.data.rest
        self.bad = (config.data.poison, config.data.broken) if split == "train" else (-1, -1)
        self.ids = [f"{split}{i}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.pause)
        if index == self.bad[1]:
            return "unreadable", None
        x = self.x[index] * (np.nan if index == self.bad[0] else 1)
        return x, self.labels[index]


def _prepare(example: Any, rng: Any, stage: Any, split: str) -> dict[str, np.ndarray]:
    x, label = example
    if isinstance(x, str):
        raise UserError("blob 3 cannot be read")
    x = x.reshape(4, 4)[:, : stage.size // 4].reshape(-1)
    noise = rng.normal(0, 0.1, x.shape) if split == "train" else 0.0
    return {"x": (x + noise).astype(np.float32), "label": np.int32(label)}


def make(config: Config) -> Task:
    schema.require(config.model.classes > 1, "model.classes", config.model.classes, "2 or more")
    model = Net(config.model.width, config.model.classes, config.model.dropout)

    def inputs(batch: Any, hyper: Any, key: Any, stage: Any) -> Any:
        return {"x": batch["x"]}, batch["label"]

    def loss(outputs: Any, targets: Any, hyper: Any) -> Any:
        return {"ce": losses.cross_entropy(outputs, targets, hyper["label_smoothing"])}

    def measure(outputs: Any, batch: Any) -> Any:
        return {"right": jnp.sum((outputs.argmax(-1) == batch["label"]) & batch["mask"])}

    def sampler(source: Any, stage: Any) -> Any:
        return (source.labels == 0) + 0.01 if stage.sampler == "skewed" else None

    def score(merged: Any, rows: Any) -> dict[str, float]:
        top1 = metrics.topk(rows["scores"], rows["label"], 1)
        assert int(merged["right"]) == round(top1 * len(rows["label"]))
        return {"top1": top1, "nll": metrics.nll(metrics.softmax(rows["scores"]), rows["label"])}

    return Task(
        training=Training(
            model=model,
            classes=tuple("abcdefgh"[: config.model.classes]),
            source=lambda split: Source(config, split),
            prepare=_prepare,
            shapes=lambda stage, split: {
                "x": ((stage.size,), np.float32),
                "label": ((), np.int32),
            },
            inputs=inputs,
            loss=loss,
            sampler=sampler,
        ),
        evaluation=Evaluation(
            infer=lambda apply, batch, split: apply(x=batch["x"]),
            measure=measure,
            rows=lambda outputs, batch: {"scores": outputs, "label": batch["label"]},
            score=score,
        ),
        prediction=Prediction(
            example=lambda path: [],
            describe=lambda row, top=5: {"scores": row["scores"].tolist()},
        ),
        shipping=Shipping(
            audit=lambda example: (
                "" if not isinstance(example[0], str) else "blob 3 cannot be read"
            ),
        ),
    )

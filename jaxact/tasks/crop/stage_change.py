"""What changes in the state when a stage begins: cosine head, centres, a head drawn anew.

Pure functions of the variables, the two rows and a key (`Training.enter`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxact.models import classifier
from jaxact.task import Batch


def enter(
    normalised: Callable[[Any], Any],
    features: Callable[[Any, Any], Any],
    variables: Any,
    before: Any,
    row: Any,
    key: Any,
    batches: Callable[[], Iterator[Batch]],
) -> Any:
    """Variables as the row's first step finds them; the same object where nothing changes.

    - `restart` turns "head": all of the head is drawn anew (classifier re-training, cRT): every
      head of `multitask`, both layers of `fewshot`, the cosine kernel with the label's.
    - `cosine` rises from 0: its columns are the trained linear ones, so accuracy goes on.
    - `center` rises from 0: the centres are the class means of the features over the training split
      (classes without a picture keep theirs). With a restarted head the backbone is the same, and
      so are they.
    """
    head = dict(variables["params"]["head"])
    old = dict(head)
    if row.data["restart"] == "head" and before.data["restart"] != "head":
        head |= classifier.redrawn(key, head)
        if "cosine_kernel" in head:
            head["cosine_kernel"] = head["label"]["kernel"]
    if rises("cosine", before, row):
        head["cosine_kernel"] = head["label"]["kernel"]
    if rises("center", before, row):
        head["centers"] = class_means(variables, head["centers"], normalised, features, batches())
    if all(head[name] is old[name] for name in head):
        return variables
    return {**variables, "params": {**variables["params"], "head": head}}


def rises(name: str, before: Any, row: Any) -> bool:
    """Is a value field above 0 in a row, and was it 0 at the end of the one before?"""
    return max(row.values[name]) > 0 and before.values[name][1] == 0


def class_means(
    variables: Any,
    centers: Any,
    normalised: Callable[[Any], Any],
    features: Callable[[Any, Any], Any],
    batches: Iterator[Batch],
) -> Any:
    """Mean features f32[k, d] of each class; the row of `centers` where a class has no example."""
    classes = len(centers)
    total = np.zeros(centers.shape, np.float64)
    count = np.zeros(classes, np.int64)
    for batch in batches:
        # One view: the middle of the picture, or the whole of it.
        values = np.asarray(features(variables, normalised(batch["image"][:, 0])), np.float64)
        label = np.asarray(batch["label"])
        known = np.asarray(batch["mask"]) & (label >= 0)
        np.add.at(total, label[known], values[known])
        count += np.bincount(label[known], minlength=classes)
    mean = total / np.maximum(count, 1)[:, None]
    return jnp.asarray(np.where(count[:, None] > 0, mean, np.asarray(centers)), jnp.float32)

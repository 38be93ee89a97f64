"""Image classification sets prepared by TensorFlow Datasets: `tfds:NAME`, or `tfds:FOLDER`.

Read without TensorFlow, as array_record files (`tfds build --file_format=array_record NAME`); needs
the package tensorflow-datasets. A split is written as there: "train", "train[:80%]".
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.crop.annotations import Picture
from jaxact.tasks.crop.classes import Meaning

_PREFIX = "tfds:"


def named(annotations: str) -> bool:
    """Does this name a prepared set?"""
    return annotations.startswith(_PREFIX)


@functools.lru_cache(maxsize=4)
def _builder(annotations: str) -> Any:
    """Raises: UserError where the package or the prepared set is missing, or has no labels."""
    name = annotations.removeprefix(_PREFIX)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"config.data.annotations={annotations!r} needs the extra [tfds] (tensorflow-datasets, "
            f"importlib-resources): {error}"
        ) from None
    try:
        folder = Path(name).is_dir()
        builder = tfds.builder_from_directory(name) if folder else tfds.builder(name)
    except (ValueError, LookupError, OSError, ImportError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"config.data.annotations={annotations!r}: {line}") from None
    if not {"image", "label"} <= set(builder.info.features or ()):
        raise UserError(
            f"config.data.annotations={annotations!r}: has the features "
            f"{', '.join(builder.info.features or ())}; allowed: sets with image and label"
        )
    return builder


def meanings(annotations: str) -> tuple[Meaning, ...]:
    """The set's classes in label order; names like `Apple___black_rot` tell crop and disease.

    Raises: UserError as above.
    """
    classes = []
    for name in _builder(annotations).info.features["label"].names:
        crop, _, disease = str(name).partition("___")
        classes.append(Meaning(str(name), crop if disease else "", disease))
    return tuple(classes)


def _encoded(annotations: str, split: str, index: int) -> bytes:
    """The encoded picture at one place of a prepared set."""
    return bytes(_records(annotations, split)[index]["image"])


@functools.lru_cache(maxsize=8)
def _records(annotations: str, split: str) -> Any:
    """Random access to a split's records, pictures left encoded."""
    import tensorflow_datasets as tfds

    builder = _builder(annotations)
    try:
        decoders = {"image": tfds.decode.SkipDecoding()}
        return builder.as_data_source(split, decoders=decoders)
    except (ValueError, LookupError, OSError, AssertionError, NotImplementedError) as error:
        known = ", ".join(builder.info.splits) or "none: it is not prepared"
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"config.data.annotations={annotations!r}: split {split!r} cannot be read ({line}); "
            f"splits: {known}"
        ) from None


@functools.lru_cache(maxsize=8)
def pictures(annotations: str, split: str) -> list[Picture]:
    """The pictures of a split with their labels; their content is read when it is decoded.

    Raises: UserError as above.
    """
    records = _records(annotations, split)
    labels = [int(np.asarray(records[i]["label"])) for i in range(len(records))]
    return [
        Picture(
            f"{split}/{i}", "", label, pixels=functools.partial(_encoded, annotations, split, i)
        )
        for i, label in enumerate(labels)
    ]

"""Stored predictions, predictions/<split>.npz, and which weights and views they were made with."""

import hashlib
import pathlib
import zipfile
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxact import atomic
from jaxact.train import hosts, state

PREFIX = "origin_"  # of the entries of an .npz that `MadeWith` fills


class MadeWith(NamedTuple):
    """Which weights and views predictions were made with; all "" where a file does not say."""

    checkpoint: str = ""  # path, relative to the work dir where it lies in it
    weights: str = ""  # sha256 of all numbers: equal only for equal weights
    views: str = ""  # how an example is seen, in words

    def text(self) -> str:
        """For a message."""
        if not self.weights:
            return "an unknown checkpoint"
        return f"{self.checkpoint} ({self.weights[:8]}{self.views and ', '}{self.views})"


def made_with(variables: Any, checkpoint: str, workdir: pathlib.Path, views: str) -> MadeWith:
    """The record of predictions by these variables, which came from `checkpoint`."""
    digest = hashlib.sha256()
    for name, leaf in sorted(state.flatten(jax.device_get(variables)).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    path = pathlib.Path(checkpoint).absolute()
    if path.is_relative_to(workdir.absolute()):
        path = path.relative_to(workdir.absolute())
    return MadeWith(str(path), digest.hexdigest(), views)


def fused(members: list[MadeWith], weights: list[float], space: str) -> MadeWith:
    """The record of an ensemble; it is empty where that of any member is."""
    if not all(member.weights for member in members):
        return MadeWith()
    shares = [f"{share:.6g}" for share in weights]
    parts = [f"{s} {m.weights}" for s, m in zip(shares, members, strict=True)]
    digest = hashlib.sha256("\n".join([space, *parts]).encode()).hexdigest()
    names = ", ".join(f"{s} {m.checkpoint}" for s, m in zip(shares, members, strict=True))
    return MadeWith(f"ensemble of {names}", digest, "")


def stored(path: pathlib.Path) -> MadeWith:
    """The record in a predictions file; an empty one where it is absent or no such file."""
    try:
        with np.load(path) as file:
            here = [name for name in MadeWith._fields if PREFIX + name in file.files]
            arrays = {name: file[PREFIX + name] for name in here}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return MadeWith()
    texts = {name: str(a) for name, a in arrays.items() if a.ndim == 0 and a.dtype.kind == "U"}
    return MadeWith(**texts) if len(texts) == len(MadeWith._fields) else MadeWith()


def write_predictions(
    path: pathlib.Path, ids: list[str], rows: dict[str, np.ndarray], record: MadeWith
) -> None:
    """Writes predictions/<split>.npz: `ids` (text), one array [n, ...] for each row name, and the
    record. Of several hosts the first one writes."""
    if not hosts.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {f"{PREFIX}{name}": np.array(text) for name, text in record._asdict().items()}
    arrays: dict[str, Any] = {"ids": np.array(ids), **rows, **entries}
    with atomic.replacing(path) as aside:
        np.savez(aside, **arrays)

"""What stored predictions were made with: beside the scores in predictions/<split>.npz."""

import hashlib
import pathlib
import zipfile
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxact.train import hosts, state

PREFIX = "origin_"  # of the entries of an .npz


class Provenance(NamedTuple):
    """Three texts; all "" where a file does not say."""

    checkpoint: str = ""  # path, relative to the work dir where it lies in it
    weights: str = ""  # digest of all numbers: equal only for equal weights
    views: str = ""  # how an example is seen, in words

    def arrays(self) -> dict[str, np.ndarray]:
        """As entries of an .npz."""
        return {f"{PREFIX}{name}": np.array(text) for name, text in self._asdict().items()}

    def text(self) -> str:
        """For a message."""
        if not self.weights:
            return "an unknown checkpoint"
        return f"{self.checkpoint} ({self.weights[:8]}{self.views and ', '}{self.views})"


def of(variables: Any, checkpoint: str, workdir: pathlib.Path, views: str) -> Provenance:
    """The provenance of what these variables predict."""
    found = hashlib.sha256()
    for name, leaf in sorted(state.flatten(jax.device_get(variables)).items()):
        array = np.ascontiguousarray(leaf)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    path = pathlib.Path(checkpoint).absolute()
    if path.is_relative_to(workdir.absolute()):
        path = path.relative_to(workdir.absolute())
    return Provenance(str(path), found.hexdigest(), views)


def fused(members: list[Provenance], weights: list[float], space: str) -> Provenance:
    """The provenance of an ensemble; of unknown members it is unknown too."""
    if not all(member.weights for member in members):
        return Provenance()
    shares = [f"{share:.6g}" for share in weights]
    parts = [f"{s} {m.weights}" for s, m in zip(shares, members, strict=True)]
    digest = hashlib.sha256("\n".join([space, *parts]).encode()).hexdigest()
    names = ", ".join(f"{s} {m.checkpoint}" for s, m in zip(shares, members, strict=True))
    return Provenance(f"ensemble of {names}", digest, "")


def stored(path: pathlib.Path) -> Provenance:
    """What a predictions file says; nothing where it is absent or no such file."""
    try:
        with np.load(path) as file:
            here = [name for name in Provenance._fields if PREFIX + name in file.files]
            named = {name: file[PREFIX + name] for name in here}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return Provenance()
    plain = {name: str(a) for name, a in named.items() if a.ndim == 0 and a.dtype.kind == "U"}
    return Provenance(**plain) if len(plain) == len(Provenance._fields) else Provenance()


def write_predictions(
    path: pathlib.Path,
    ids: list[str],
    rows: dict[str, np.ndarray],
    origin: Provenance,
) -> None:
    """predictions/<split>.npz: `ids` (text), one array [n, ...] for each row name, the origin."""
    if not hosts.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    arrays: dict[str, Any] = {"ids": np.array(ids), **rows, **origin.arrays()}
    np.savez(part, **arrays)
    part.replace(path)

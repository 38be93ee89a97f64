"""Pre-extracted features of a video, one file each: .npy f[n, c], or .npz with one such array.

Row i belongs to step i (`windows`). In an .npz the array is its only one, or "feats".
"""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from jaxact.config import UserError

SUFFIXES = (".npy", ".npz")


def find(folder: str | os.PathLike[str], name: str) -> str:
    """The feature file of a video in a folder. Raises: UserError where there is none."""
    path = _path(folder, name)
    if path is None:
        raise UserError(f"{folder}: {_absent(name)}")
    return str(path)


def check_present(folder: str | os.PathLike[str], names: Sequence[str]) -> None:
    """All these videos must have features. Raises: UserError that says how many have none."""
    lost = [name for name in names if _path(folder, name) is None]
    if lost:
        more = f" and of {len(lost) - 1} more; config.data.blocked leaves videos out"
        raise UserError(f"{folder}: {_absent(lost[0])}{more if len(lost) > 1 else ''}")


def _path(folder: str | os.PathLike[str], name: str) -> Path | None:
    files = (Path(folder) / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _absent(name: str) -> str:
    return f"has no features of {name!r} ({name}.npy or {name}.npz)"


def steps(path: str, channels: int) -> int:
    """How many rows the features have. Raises: UserError naming the file, for another shape too."""
    held = shape(path)
    _check(path, held, channels)
    return held[0]


def _check(path: str, held: tuple[int, ...], channels: int) -> None:
    if len(held) != 2 or held[1] != channels or not held[0]:
        raise UserError(
            f"{path}: features of shape {held}, needed: [steps, {channels}] (config.data.channels)"
        )


def _member(names: list[str], path: str) -> str:
    keys = [name.removesuffix(".npy") for name in names]
    if len(keys) != 1 and "feats" not in keys:
        raise UserError(
            f"{path}: holds {', '.join(keys) or 'nothing'}; needed: one array or 'feats'"
        )
    return keys[0] if len(keys) == 1 else "feats"


def shape(path: str) -> tuple[int, ...]:
    """Shape of the features without reading them. Raises: UserError naming the file."""
    try:
        if not path.endswith(".npz"):
            with open(path, "rb") as file:
                return _header(file)
        with zipfile.ZipFile(path) as archive:
            with archive.open(_member(archive.namelist(), path) + ".npy") as member:
                return _header(member)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as features ({error})") from error


def _header(file: IO[bytes]) -> tuple[int, ...]:
    """The shape in the header of an .npy."""
    if np.lib.format.read_magic(file) == (1, 0):
        return tuple(np.lib.format.read_array_header_1_0(file)[0])
    return tuple(np.lib.format.read_array_header_2_0(file)[0])


def read(path: str, channels: int) -> np.ndarray:
    """The features f32[n, c]. Raises: UserError for another shape, NaN, or a broken file."""
    try:
        with open(path, "rb") as file:  # np.load would not close a broken file
            loaded = np.load(file, allow_pickle=False)
            archive = isinstance(loaded, np.lib.npyio.NpzFile)
            rows = loaded[_member(loaded.files, path)] if archive else loaded
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as features ({error})") from error
    _check(path, rows.shape, channels)
    rows = np.asarray(rows, np.float32)
    if not np.isfinite(rows).all():
        raise UserError(f"{path}: {np.sum(~np.isfinite(rows))} features are NaN or infinite")
    return rows


def check_length(path: str, count: int, frames: int, stride: int) -> None:
    """Features and annotation must be about equally long: within 8 steps or 5 %.

    Raises: UserError naming the file and both lengths.
    """
    wanted = frames / stride
    if frames and abs(count - wanted) > max(8, 0.05 * wanted):
        raise UserError(
            f"{path}: {count} features, but the annotation's {frames} frames make {wanted:.0f} "
            f"steps of {stride} frames; allowed: 5 % or 8 more or fewer (config.data.stride)"
        )

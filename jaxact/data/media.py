"""Media files by their path, on disk or in shards (`data.shards`): the same to every decoder."""

import io
import os
from pathlib import Path

from jaxact.config import UserError
from jaxact.data import shards

VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v")


class Record(io.BytesIO):
    """A file in memory, with the name that decoders may take hints from."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def content(path: str | os.PathLike[str]) -> bytes | None:
    """The bytes of a record in shards; None for a file on disk. Raises: UserError, naming it."""
    return shards.read(path) if shards.named(path) else None


def source(path: str | os.PathLike[str]) -> str | os.PathLike[str] | Record:
    """What a decoder opens: the path itself, or the record in memory. Raises: UserError."""
    held = content(path)
    return path if held is None else Record(held, os.fspath(path))


def read(path: str | os.PathLike[str]) -> bytes:
    """All bytes. Raises: OSError for a file, UserError for a record."""
    held = content(path)
    return Path(path).read_bytes() if held is None else held


def stamp(path: str | os.PathLike[str], held: bytes | None = None) -> tuple[str, int, int]:
    """(absolute path, version, length in bytes); it differs when the content differs.

    The version is the time of change (ns) of a file, or the checksum of a record or of the bytes
    `held`, which `path` then only names. Raises: OSError for a file, UserError for a record.
    """
    if held is not None:
        return os.path.abspath(path), shards.checksum(held), len(held)
    if shards.named(path):
        folder, name = shards.locate(path)
        location = folder.find(name)
        return os.path.abspath(path), location.checksum, location.bytes
    state = os.stat(path)
    return os.path.abspath(path), state.st_mtime_ns, state.st_size


def exists(path: str | os.PathLike[str]) -> bool:
    """Is there such a file or record? Raises: UserError for shards that cannot be opened."""
    if not shards.named(path):
        return os.path.isfile(path)
    folder, name = shards.locate(path)
    return name in folder


def same_file(path: str | os.PathLike[str], media: str | os.PathLike[str]) -> bool:
    """Would writing to `path` overwrite this media file?"""
    if shards.named(media):
        return False
    return Path(path).exists() and Path(path).samefile(media)


def held(place: str | os.PathLike[str], suffixes: tuple[str, ...]) -> list[str] | None:
    """Paths of all media with these suffixes below a folder in shards; None for a folder on disk.

    Raises: UserError where the shards have none there.
    """
    if not shards.named(place):
        return None
    paths = [path for path in shards.within(place) if Path(path).suffix.lower() in suffixes]
    if not paths:
        raise UserError(f"{place}: nothing there; needed: {', '.join(suffixes)}")
    return paths

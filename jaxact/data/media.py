"""A media file by its path: on disk, or in shards (`data.shards`), for every decoder alike."""

import io
import os
from pathlib import Path

from jaxact.config import UserError
from jaxact.data import shards


class Record(io.BytesIO):
    """A file in memory, with the name that decoders may take hints from."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def content(path: str | os.PathLike[str]) -> bytes | None:
    """The bytes of what lies in shards; None for a file on disk. Raises: UserError, naming it."""
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
    """(absolute path, version, bytes): what changes when the content does.

    The version is a file's time of change (ns), a record's checksum or that of the bytes `held` of
    this name. Raises: OSError for a file, UserError for a record.
    """
    if held is not None:
        return os.path.abspath(path), shards.checksum(held), len(held)
    if shards.named(path):
        found = shards.find(path)
        return os.path.abspath(path), found.checksum, found.bytes
    state = os.stat(path)
    return os.path.abspath(path), state.st_mtime_ns, state.st_size


def exists(path: str | os.PathLike[str]) -> bool:
    """Is there such a file or record? Raises: UserError for shards that cannot be opened."""
    return shards.holds(path) if shards.named(path) else os.path.isfile(path)


def same_file(path: str | os.PathLike[str], media: str | os.PathLike[str]) -> bool:
    """Would writing to `path` overwrite this media file?"""
    if shards.named(media):
        return False
    return Path(path).exists() and Path(path).samefile(media)


def held(place: str | os.PathLike[str], suffixes: tuple[str, ...]) -> list[str] | None:
    """Paths of the media with these suffixes below a place in shards; None for a place on disk.

    Raises: UserError where the shards have none there.
    """
    if not shards.named(place):
        return None
    found = [path for path in shards.within(place) if Path(path).suffix.lower() in suffixes]
    if not found:
        raise UserError(f"{place}: nothing there; needed: {', '.join(suffixes)}")
    return found

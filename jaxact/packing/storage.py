"""Folders that media are read from and shards are written to, on this machine or elsewhere."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from jaxact.atomic import draft
from jaxact.config import UserError


@dataclasses.dataclass(frozen=True, order=True)
class Entry:
    """A media file of the source."""

    name: str  # relative to it, with forward slashes
    bytes: int
    changed: float  # s, time of change

    def text(self) -> str:
        """A line of JSON."""
        return json.dumps([self.name, self.bytes, self.changed], ensure_ascii=False)

    @classmethod
    def parse(cls, line: str) -> "Entry":
        """What `text` gave."""
        return cls(*json.loads(line))


class Place(Protocol):
    """A folder, wherever it is; paths in it are relative to it."""

    def entries(self) -> Iterator[Entry]:
        """Every file below, in any order."""

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises: OSError."""

    def write(self, name: str, content: bytes) -> None:
        """Puts a file there, whole."""

    def put(self, name: str, made: Path) -> None:
        """Moves a file of `scratch` there, whole."""

    def local(self, name: str) -> contextlib.AbstractContextManager[Path | None]:
        """The file on this machine; None where there is none."""

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """A folder on this machine for files that are not finished."""

    def remove(self, name: str) -> None:
        """Deletes a file if it is there."""


class Folder:
    """A `Place` on this machine."""

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root).absolute()

    def __str__(self) -> str:
        return str(self.root)

    def entries(self) -> Iterator[Entry]:
        """Every file below; hidden ones are left out."""
        if not self.root.is_dir():
            raise UserError(f"--source={self.root} is no folder")
        for folder, folders, files in os.walk(self.root, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in files:
                path = os.path.join(folder, file)
                if not file.startswith(".") and os.path.isfile(path):
                    state = os.stat(path)
                    name = Path(path).relative_to(self.root).as_posix()
                    if not name.isprintable():
                        raise UserError(f"{self.root}: the name {name!r} is no printable UTF-8")
                    yield Entry(name, state.st_size, state.st_mtime)

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Puts a file there, whole."""
        with self.scratch() as folder:
            (folder / "content").write_bytes(content)
            self.put(name, folder / "content")

    def put(self, name: str, made: Path) -> None:
        """Moves a file there, whole."""
        os.replace(made, self.root / name)

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path | None]:
        """The file itself."""
        path = self.root / name
        yield path if path.is_file() else None

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A hidden folder in this one, so that renaming stays within a file system."""
        self.root.mkdir(parents=True, exist_ok=True)
        folder = draft(self.root / "part")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Deletes a file if it is there."""
        (self.root / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Deletes what killed processes left behind."""
        for folder in self.root.glob(".part[.-]*"):
            shutil.rmtree(folder, ignore_errors=True)

"""Files that appear whole or not at all: written under another name, then renamed."""

import contextlib
import pathlib
import socket
import uuid
from collections.abc import Iterator


def draft(path: pathlib.Path) -> pathlib.Path:
    """A hidden name beside `path`, with its suffix, that nobody else takes.

    Two hosts, or two containers, that share a folder may have equal process and thread numbers,
    so a part of the name is random. The
    name of the host in it says who left a file behind.
    """
    return path.with_name(f".{path.stem}.{socket.gethostname()}.{uuid.uuid4().hex}{path.suffix}")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name to write to, which becomes `path` at the end; after an error it is deleted."""
    aside = draft(path)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all, and makes the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        aside.write_bytes(content)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file (UTF-8) whole or not at all, and makes the folders above it."""
    write_bytes(path, text.encode("utf-8"))

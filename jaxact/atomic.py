"""Names for files that are written aside and renamed when they are whole."""

import pathlib
import socket
import uuid


def draft(path: pathlib.Path) -> pathlib.Path:
    """A hidden name beside `path`, with its suffix, that nobody else takes.

    Two hosts, or two containers, that share a folder may have equal process and thread numbers,
    so it is drawn; the host's name in it tells whose a file is that was never renamed.
    """
    return path.with_name(f".{path.stem}.{socket.gethostname()}.{uuid.uuid4().hex}{path.suffix}")

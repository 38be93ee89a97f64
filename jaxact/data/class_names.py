"""Class names from a file that the user gives (`config.data.class_names`)."""

import gzip
import json
import zlib
from pathlib import Path

from jaxact.config import UserError


def read_names(path: str) -> tuple[str, ...]:
    """The names in label order: of a text file (also .gz), one a line, or of a .json.

    The JSON is an object with a list "classes", as a work dir's config.json.
    Raises: UserError naming the field and the file.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"config.data.class_names={path!r} does not exist")
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if file.suffix != ".json":
        return tuple(line.strip() for line in text.split("\n") if line.strip())
    try:
        names = json.loads(text)["classes"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("the classes are no list of names")
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(
            f"config.data.class_names={path!r}: needed: JSON with a list 'classes' ({place})"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"config.data.class_names={path!r}: needed: JSON with a list 'classes'"
        ) from error
    return tuple(names)

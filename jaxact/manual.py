"""The manual of the config: every field with its type, default, allowed values and meaning.

    python -m jaxact.manual > docs/config.md

Rows are read from the records: type, default, metadata (`jaxact.fields`), and from their source the
comment on a field's own line, or the comment lines above it. Imports no JAX.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import io
import pathlib
import re
import tokenize
import typing

from jaxact import config as schema
from jaxact.fields import rule_of

_TOP = """\
# Fields of a config

Written by `make docs` from the records in the code: do not edit this page.

Every field can be set on the command line: `--config.optim.lr=0.01`, `--config.stages[0].lr=0.5`,
`--config.data.mean=0,0,0`. The defaults are those of the records; recipes in `configs/` set others.
A duration is a text: `"80 epochs"`, `"500 steps"`, `"10%"` (of the whole training) or `"0"`.

A field of `stages[i]` that is not set stays as it was; its default is the value before the first
stage. A number is `(x,)`, a constant, or `(x, y)`, a linear ramp from x to y.

"""
_HEAD = "| field | type | default | allowed | meaning, unit |\n|---|---|---|---|---|"


class Row(typing.NamedTuple):
    """One field; or, with "" as its default, a record, whose fields follow."""

    path: str  # as "model.rgb.width"
    kind: str  # its type
    default: str  # as Python writes it
    allowed: str  # "" = every value of the type
    meaning: str


def fields_of(config: typing.Any, path: str = "") -> list[Row]:
    """The fields of a config record (or of its class) and of the records in it, in their order."""
    record: typing.Any = config if isinstance(config, type) else type(config)
    node = record() if record is config else config
    rows = [Row(path[:-1], record.__name__, "", "", inspect.getdoc(record) or "")]
    for item in dataclasses.fields(record):
        name, value = f"{path}{item.name}", getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            rows += fields_of(value, f"{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            rows += fields_of(value[0], f"{name}[i].")
        else:
            rule = rule_of(record, item.name)
            allowed = rule.text(isinstance(value, tuple)) if rule else ""
            kind = item.type.__name__ if type(item.type) is type else str(item.type)
            default = repr(item.metadata.get("initial", value))
            rows.append(Row(name, kind, default, allowed, _meanings(record).get(item.name, "")))
    return rows


def page() -> str:
    """The page docs/config.md: the fields that all systems have, then those of each system."""
    common = [*fields_of(schema.Config), *fields_of(schema.Stage, "stages[i].")]
    parts = [_TOP, "## All systems\n", _tables(common)]
    for file in sorted(pathlib.Path(__file__).parent.glob("tasks/*/config.py")):
        wing = importlib.import_module(f"jaxact.tasks.{file.parent.name}.config")
        rows = [row for row in fields_of(wing.Config) if row not in common]
        parts += [f"\n## {file.parent.name}\n", _tables(rows)]
    return "".join(parts)


@functools.cache
def _meanings(record: typing.Any) -> dict[str, str]:
    """Comments by field; a field that is declared again without a comment inherits it."""
    bases = [base for base in reversed(record.__mro__) if dataclasses.is_dataclass(base)]
    return {name: text for base in bases for name, text in _comments(base).items() if text}


def _comments(record: typing.Any) -> dict[str, str]:
    source = inspect.getsource(record)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.strip("# ") for t in tokens if t.type == tokenize.COMMENT}
    body: typing.Any = ast.parse(source).body[0]
    texts: dict[str, str] = {}
    name, end = "", 0
    for node in body.body:
        above = [line for line in sorted(comments) if end < line < node.lineno]
        own = [line for line in sorted(comments) if node.lineno <= line <= node.end_lineno]
        if name and own and end + 1 in above:  # these continue the comment of the field before
            texts[name] = " ".join([texts[name], *(comments[line] for line in above)])
        name, end = node.target.id if hasattr(node, "target") else "", node.end_lineno
        texts[name] = " ".join(comments[line] for line in own or above)
    return texts


def _tables(rows: list[Row]) -> str:
    """A table for each record that has rows, under the record's name."""
    meanings = {row.path: row.meaning for row in rows if not row.default}
    tables: dict[str, list[str]] = {path: [] for path in meanings}
    for path, *code, allowed, meaning in (row for row in rows if row.default):
        parent, _, name = path.rpartition(".")
        cells = (*(f"`{text}`" for text in (name, *code)), allowed, meaning)
        tables.setdefault(parent, []).append(f"| {' | '.join(map(_escaped, cells))} |\n")
    text = ""
    for parent, lines in tables.items():
        title = f"\n### `{parent}`\n" if parent else ""
        about = meanings.get(parent, "").split("\n\n")[0]
        text += f"{title}\n{_escaped(about)}\n\n{_HEAD}\n" if lines else ""
        text += "".join(lines)
    return text


def _escaped(text: str) -> str:
    """Text in one line of a Markdown table; outside of `code` the signs * and < are kept plain."""
    parts = text.replace("|", r"\|").replace("\n", " ").split("`")
    return "`".join(p if i % 2 else re.sub(r"([*<])", r"\\\1", p) for i, p in enumerate(parts))


if __name__ == "__main__":
    print(page(), end="")

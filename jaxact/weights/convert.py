"""Foreign weights into our variables: each key used once, each target filled once, all reported."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.weights.reader import read
from jaxact.weights.table import (
    Flat,
    Table,
    Tensors,
    detect,
    expected,
    flatten,
    listed,
    nest,
    translate,
)


@dataclasses.dataclass
class Report:
    """What became of every source key and every target."""

    source: str
    table: str
    loaded: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """(target, source keys)."""
    replaced: list[str] = dataclasses.field(default_factory=list)
    """Head targets of another size; they keep their initial values."""
    missing: list[str] = dataclasses.field(default_factory=list)
    """Targets that nothing filled; they keep their initial values."""
    unused: list[str] = dataclasses.field(default_factory=list)
    mismatched: list[str] = dataclasses.field(default_factory=list)
    ignored: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def text(self, full: bool = False) -> str:
        """A paragraph of counts and names; `full` lists every name, the loaded ones included."""
        lines = [f"weights from {self.source} ({self.table}): {len(self.loaded)} variables loaded"]
        lines += [f"  note: {note}" for note in self.notes]
        for title, names in (
            ("kept their initial values, sizes differ", self.replaced),
            ("kept their initial values, not in the file", self.missing),
            ("in the file, not used", self.unused),
            ("sizes differ", self.mismatched),
            ("ignored by the table", self.ignored if full else []),
            ("loaded", [f"{t} <- {s}" for t, s in self.loaded] if full else []),
        ):
            if names:
                lines.append(f"  {title}: {len(names)}")
                lines += [f"    {name}" for name in names[: len(names) if full else 8]]
                lines += [f"    ... and {len(names) - 8} more"] * (not full and len(names) > 8)
        return "\n".join(lines)


def apply(
    table: Table,
    tensors: Tensors,
    target: Mapping[str, Any],
    *,
    strict: bool = True,
    source: str = "weights",
) -> tuple[dict[str, Any], Report]:
    """`target` with its leaves taken from the tensors, in the target's dtypes, and the report.

    Args:
      target: variables by collection; arrays, or anything with shape and dtype. Leaves that nothing
        fills are returned as they are.
      strict: every key must be used and every target filled. Otherwise whole parts (a stream, a
        head) may be absent on either side, and a head of other sizes is left alone; within a part
        that both have, strictness holds. A head with another number of classes stays as it is in
        `target` in both cases.
      source: what errors call the tensors, usually the file.

    Raises: UserError, one line, naming keys and targets left over and shapes that differ.
    """
    wanted = flatten(target)
    converted = translate(table, tensors, source)
    report = Report(source, table.name, ignored=converted.ignored)
    flat = converted.flat
    if table.adapt:
        flat, notes = table.adapt(flat, wanted)
        report.notes.extend(notes)

    ours, theirs = {table.part(path) for path in wanted}, {table.part(path) for path in flat}
    foreign = set() if strict else theirs - ours
    absent = set() if strict else ours - theirs
    other_size = _other_heads(table, flat, wanted, strict)
    filled: Flat = {}
    surplus = list(converted.unknown)
    for path, value in flat.items():
        keys = converted.origin.get(path, ())
        part = table.part(path)
        if part in other_size or path not in wanted:
            (report.unused if part in foreign | other_size else surplus).extend(keys)
        elif tuple(value.shape) != tuple(wanted[path].shape):
            shapes = f"{tuple(value.shape)}, wanted {tuple(wanted[path].shape)}"
            report.mismatched.append(f"{path} <- {', '.join(keys)}: {shapes}")
        else:
            filled[path] = np.array(value, wanted[path].dtype, order="C")
            report.loaded.append((path, ", ".join(keys) or "(see note)"))
    lacking: list[str] = []
    for path in wanted:
        if table.part(path) in other_size:
            theirs_now = f"{tuple(flat[path].shape)} in the file" if path in flat else "not in it"
            report.replaced.append(f"{path} {tuple(wanted[path].shape)}, {theirs_now}")
        elif path not in flat:
            optional = any(re.fullmatch(pattern, path) for pattern in table.optional)
            known = optional or table.part(path) in absent
            (report.missing if known else lacking).append(path)
    _require(table, report, surplus, lacking, wanted, tensors)
    return nest({path: filled.get(path, leaf) for path, leaf in wanted.items()}), report


def _other_heads(table: Table, flat: Flat, wanted: Flat, strict: bool) -> set[str]:
    """Head parts whose sizes differ: by the number of classes, or at all where not strict."""
    parts = set()
    for path in flat.keys() & wanted.keys():
        part, new, old = table.part(path), tuple(flat[path].shape), tuple(wanted[path].shape)
        if new != old and any(re.fullmatch(pattern, part) for pattern in table.heads):
            differ = len(new) != len(old) or sum(a != b for a, b in zip(new, old, strict=True)) > 1
            classes = not differ and (new[-1] != old[-1] or path.startswith("prototypes/"))
            if classes or not strict:
                parts.add(part)
    return parts


def _require(
    table: Table,
    report: Report,
    surplus: list[str],
    lacking: list[str],
    wanted: Flat,
    tensors: Tensors,
) -> None:
    """Raises UserError unless nothing is left over and something was loaded."""
    problems = []
    if surplus:
        names = [key for path in wanted for key in expected(table, path)]
        close = {key: _closest(key, names) for key in surplus[:6]}
        problems.append(
            f"{len(surplus)} keys in the file fit nothing: "
            + listed([f"{key!r}{close.get(key, '')}" for key in surplus], 6)
        )
    if lacking:
        told = []
        for path in lacking[:6]:
            keys = expected(table, path)
            near = "".join(_closest(key, surplus or list(tensors)) for key in keys)
            told.append(f"{path!r} (key {', '.join(map(repr, keys)) or 'unknown'}{near})")
        problems.append(
            f"{len(lacking)} variables not in the file: "
            + listed(told + [repr(path) for path in lacking[6:]], 6)
        )
    if report.mismatched:
        problems.append(f"{len(report.mismatched)} sizes differ: {listed(report.mismatched, 6)}")
    if not problems and not report.loaded:
        problems.append(
            f"no variable of this model is in it; it holds {listed(sorted(tensors), 3)}, "
            f"the model {listed(sorted(wanted), 3)}"
        )
    if problems:
        raise UserError(f"{report.source} ({table.name}): " + "; ".join(problems))


def _closest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.8)
    return f" close to {near[0]!r}" if near and near[0] != name else ""


def load(
    path: str | Path,
    target: Mapping[str, Any],
    tables: Callable[[Tensors, Mapping[str, Any]], Sequence[Table]],
    *,
    strict: bool = False,
    container: str = "",
) -> tuple[dict[str, Any], Report]:
    """Reads a weights file, recognises its naming and applies it to `target`.

    Args:
      tables: (tensors, target) -> candidate tables, e.g. `x3d.tables`.
      strict: as in `apply`; by default whole parts of the model may be absent.
      container: as in `reader.read`.

    Raises: UserError as `read`, `tables`, `detect` and `apply` do.
    """
    tensors = read(path, container=container)
    table = detect(tensors, tables(tensors, target), str(path))
    return apply(table, tensors, target, strict=strict, source=str(path))

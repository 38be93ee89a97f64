"""Writes media files into shards (`data.shards`), each by itself; an interrupted job can go on.

    entries = listing(source, ("*.mp4",))
    for number, members in enumerate(assigned(entries, 16)):
        write_shard(source, out, number, members, options)  # each may run on another machine
    finish(out, entries, options)

The hash of a name decides its shard, and names are sorted within it, so equal sources give equal
bytes. Records are not compressed, since media already are. Each record is a group of its own, so
that it can be read without its neighbours.

A shard is written under another name, read back, then renamed; its list of records follows. A shard
is kept as it is if its list fits the source and its records have their checksums.
"""

import dataclasses
import fnmatch
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data.shards import FORMAT, INDEX, LISTING, MANIFEST, checksum, key, shard_name
from jaxact.packing import transcode
from jaxact.packing.storage import Entry, Place

SUFFIX = ".array_record"
# Random access needs groups of one record; the media are compressed already.
WRITER = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Options:
    """How media become records."""

    shards: int = 16
    short_side: int = 0  # px, larger media are shrunk to it; 0 = bytes as they are
    check: bool = True  # decode both ends of a video, all of a picture
    broken: str = "stop"  # stop | skip: what becomes of media that cannot be read

    def plan(self, entries: Sequence[Entry]) -> str:
        """A hash of all that decides the records of these entries."""
        settings = (FORMAT, self.shards, self.short_side, self.check)
        lines = (json.dumps(settings), *(entry.text() for entry in entries))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# ------------------------------------------------------------------------------------- the source


def listing(
    source: Place, patterns: Sequence[str] = ("*",), wanted: set[str] | None = None
) -> list[Entry]:
    """The files of the source whose name fits a pattern, by name; of them only `wanted`, if given.

    `wanted` are names as annotations write them, with or without the suffix.

    Raises: UserError where there are none, and for wanted names that no file has.
    """
    entries = sorted(e for e in source.entries() if any(fits(e.name, p) for p in patterns))
    if wanted is not None:
        names = {entry: {entry.name, entry.name.rpartition(".")[0]} & wanted for entry in entries}
        missing = wanted.difference(*names.values())
        if missing:
            raise UserError(
                f"--annotations names {len(missing)} media that --source={source} does not have "
                f"(under --pattern {', '.join(patterns)}), first {min(missing)!r}"
            )
        entries = [entry for entry in entries if names[entry]]
    if not entries:
        raise UserError(f"--source={source}: no file fits --pattern {', '.join(patterns)}")
    if len({key(entry.name) for entry in entries}) < len(entries):
        raise UserError(f"--source={source}: two names have the same 64-bit key; rename one")
    return entries


def fits(name: str, pattern: str) -> bool:
    """Does a pattern fit the whole name, or its last part where the pattern has no slash?"""
    return fnmatch.fnmatchcase(name if "/" in pattern else name.rpartition("/")[2], pattern)


def shard_of(name: str, shards: int) -> int:
    """The shard that a name belongs to."""
    return key(name) % shards


def assigned(entries: Sequence[Entry], shards: int) -> list[list[Entry]]:
    """The entries of each shard, by name."""
    members: list[list[Entry]] = [[] for _ in range(shards)]
    for entry in sorted(entries):
        members[shard_of(entry.name, shards)].append(entry)
    return members


# -------------------------------------------------------------------------------------- one shard


def write_shard(
    source: Place, out: Place, number: int, entries: Sequence[Entry], options: Options
) -> dict[str, int]:
    """Makes a shard and its list, unless they are there already and sound; says what was done.

    Counts `kept` or `written` shards, `records`, `bytes`, `broken`. With options.broken "stop" a
    shard with broken media is not written, only its list, which names them.

    Raises: UserError where records read back differ; OSError where `out` cannot be written.
    """
    entries = sorted(entries)
    transcode.ready([entry.name for entry in entries], options.short_side, options.check)
    name = shard_name(number, options.shards)
    plan = options.plan(entries)
    known = sound(out, name, plan, options)
    if known is not None:
        return _counts("kept", known)
    out.remove(f"{name}.json")
    with out.scratch() as folder:
        made = folder / f"{name}{SUFFIX}"
        records, broken = _records(source, made, entries, options)
        whole = not broken or options.broken == "skip"
        shard = {
            "plan": plan,
            "whole": whole,
            "records": records if whole else [],
            "broken": broken,
            "length": made.stat().st_size if whole else 0,
        }
        if whole:
            difference = compare(made, records)
            if difference:
                raise UserError(f"{out}/{name}{SUFFIX}: {difference}; is the disk full or failing?")
            out.put(f"{name}{SUFFIX}", made)
    out.write(f"{name}.json", json.dumps(shard, ensure_ascii=False).encode())
    return _counts("written" if whole else "stopped", shard)


def _counts(what: str, shard: dict[str, Any]) -> dict[str, int]:
    records, broken = shard["records"], shard["broken"]
    total = sum(length for _, length, _ in records)
    return {what: 1, "records": len(records), "bytes": total, "broken": len(broken)}


def _records(
    source: Place, path: Path, entries: Sequence[Entry], options: Options
) -> tuple[list[list[Any]], list[list[str]]]:
    """Writes the records; (name, bytes, checksum) of each, (name, reason) of what is broken."""
    from array_record.python.array_record_module import ArrayRecordWriter

    records: list[list[Any]] = []
    broken: list[list[str]] = []
    writer = ArrayRecordWriter(str(path), WRITER)
    try:
        for entry in entries:
            try:
                content = source.read(entry.name)
                if len(content) != entry.bytes:
                    raise UserError(f"{len(content)} bytes, {entry.bytes} when it was listed")
                content = transcode.record(entry.name, content, options.short_side, options.check)
            except (UserError, OSError) as error:
                why = str(error).splitlines()[0].removeprefix(f"{entry.name}: ")
                broken.append([entry.name, why])
                continue
            writer.write(content)
            records.append([entry.name, len(content), checksum(content)])
    finally:
        writer.close()
    return records, broken


def compare(path: Path, records: Sequence[Sequence[Any]]) -> str:
    """How a shard differs from its list of records; "" if it does not. Reads all of it."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        try:
            if reader.num_records() != len(records):
                return f"{reader.num_records()} records where {len(records)} were written"
            for number, (name, length, known) in enumerate(records):
                content = reader.read([number])[0]
                if len(content) != length or checksum(content) != known:
                    return f"record {number} ({name}) differs from its checksum"
        finally:
            reader.close()
    except (RuntimeError, ValueError, OSError) as error:
        return str(error).splitlines()[0]
    return ""


def sound(out: Place, name: str, plan: str, options: Options) -> dict[str, Any] | None:
    """The list of a shard; None unless it is of this plan, whole, and its records as listed."""
    known = listed(out, name)
    if known is None or known["plan"] != plan or not known["whole"]:
        return None
    if known["broken"] and options.broken == "stop":
        return None
    with out.local(f"{name}{SUFFIX}") as path:
        if path is None or path.stat().st_size != known["length"]:
            return None
        return None if compare(path, known["records"]) else known


def listed(out: Place, name: str) -> dict[str, Any] | None:
    """The list of a shard; None where there is none, or the file is no such list."""
    try:
        shard = json.loads(out.read(f"{name}.json"))
    except (OSError, ValueError):
        return None
    wanted = {"plan": str, "whole": bool, "records": list, "broken": list, "length": int}
    ok = isinstance(shard, dict) and all(isinstance(shard.get(k), t) for k, t in wanted.items())
    return shard if ok else None


# ---------------------------------------------------------------------------------------- the set


def begin(out: Place, entries: Sequence[Entry], options: Options) -> None:
    """Stores the listing of the source, and removes the manifest of another plan."""
    try:
        known = json.loads(out.read(MANIFEST)).get("plan")
    except (OSError, ValueError, AttributeError):
        known = None
    if known != options.plan(entries):
        out.remove(MANIFEST)
    out.write(LISTING, "".join(f"{entry.text()}\n" for entry in entries).encode())


def finish(out: Place, entries: Sequence[Entry], options: Options) -> dict[str, Any]:
    """Compares the lists of all shards with the entries, and writes index and manifest.

    Raises: UserError for a shard that is missing or of another plan, for broken media that stop
    the preparation (all named, a line each), and for counts that do not agree.
    """
    shards: list[dict[str, Any]] = []
    names: list[str] = []
    numbers: list[tuple[int, ...]] = []
    broken: list[list[str]] = []  # (name, reason)
    stopped: list[list[str]] = []  # those of them that were not to be skipped
    for number, members in enumerate(assigned(entries, options.shards)):
        name = shard_name(number, options.shards)
        shard = listed(out, name)
        if shard is None or shard["plan"] != options.plan(members):
            raise UserError(f"{out}/{name}.json: missing or of another preparation; run it again")
        stopped += [] if shard["whole"] else shard["broken"]
        broken += shard["broken"]
        for one, length, known in shard["records"]:
            numbers.append((key(one), len(names), length, known))
            names.append(one)
        count, length = len(shard["records"]), shard["length"]
        shards.append({"file": f"{name}{SUFFIX}", "records": count, "length": length})
    if not names and not stopped:
        raise UserError(f"{out}: all {len(broken)} media are broken; first: {' '.join(broken[0])}")
    if stopped:
        told = "; ".join(f"{one}: {why}" for one, why in stopped)
        raise UserError(f"{len(stopped)} broken media (--broken=skip leaves them out): {told}")
    accounted = sorted([*names, *(one for one, _ in broken)])
    if accounted != [entry.name for entry in sorted(entries)]:
        raise UserError(
            f"{out}: {len(names)} records and {len(broken)} broken media of {len(entries)} files; "
            "run it again"
        )
    index = np.array(sorted(numbers), np.uint64).reshape(-1, 4).T
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(index))
    manifest = {
        "format": FORMAT,
        "plan": options.plan(entries),
        "records": len(names),
        "bytes": int(index[2].sum()),
        "index": checksum(np.ascontiguousarray(index).tobytes()),
        "short_side": options.short_side,
        "checked": options.check,
        "shards": shards,
        "broken": broken,
    }
    out.write(INDEX, content.getvalue())
    out.write(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    return manifest

"""Reads media files by name from a few large files (shards): `shards:FOLDER/name`.

    content = read("shards:build/shards/clips/a1.mp4")  # the file's bytes

A folder made by `scripts/prepare_shards.py` holds

    shards.json                          what is in it, how it was made, what was left out
    shards.npy                           u64[4, records]: name key (rising), record, bytes, checksum
    media-00003-of-00016.array_record    a record is the bytes of one media file
    media-00003-of-00016.json            names, bytes and checksums of that shard
    listing.jsonl                        what the source had

Records are numbered through all shards, in their order. Annotations stay ordinary files. The index
is mapped into memory (32 bytes a record), so a million clips need almost no memory of a process.
A record is read whole, also where only a window of a long video is wanted.

Only local paths, as in array_record itself: a bucket has to be mounted or copied.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import posixpath
import threading
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError

PREFIX = "shards:"
MANIFEST, INDEX = "shards.json", "shards.npy"
LISTING = "listing.jsonl"  # what the source had: name, bytes, time of change (s)
FORMAT = 1
AGAIN = "run scripts/prepare_shards.py on it again"


def named(path: str | os.PathLike[str]) -> bool:
    """Does this path lead into shards?"""
    return os.fspath(path).startswith(PREFIX)


def key(name: str) -> int:
    """64 bits of a name: they find its record, and choose its shard."""
    # Names in a file system need not be UTF-8; in shards they are.
    text = name.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def checksum(content: bytes) -> int:
    """64 bits of a record's content."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def shard_name(number: int, count: int) -> str:
    """File name of a shard, without its suffix."""
    return f"media-{number:05d}-of-{count:05d}"


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a record lies, and what its bytes must be."""

    record: int  # through all shards
    bytes: int
    checksum: int


class Shards:
    """An open folder. Raises: UserError for one that is unfinished, damaged or incomplete.

    Opening compares the number and length of the shards with the manifest, and the index with its
    checksum; reading compares the record with its own.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder / MANIFEST)
        self.files = [shard["file"] for shard in self.manifest["shards"]]
        self.ends = list(itertools.accumulate(s["records"] for s in self.manifest["shards"]))
        self.names_broken: Mapping[str, str] = dict(self.manifest["broken"])
        for shard in self.manifest["shards"]:
            self._same_length(shard)
        self.index = self._index()
        self._lock = threading.Lock()
        self._source: Any = None

    def _same_length(self, shard: dict[str, Any]) -> None:
        # array_record itself opens a truncated shard as an empty one.
        path = self.folder / shard["file"]
        try:
            length = os.path.getsize(path)
        except FileNotFoundError:
            raise UserError(
                f"{path}: missing; {MANIFEST} lists {len(self.files)} shards: {AGAIN}"
            ) from None
        if length != shard["length"]:
            raise UserError(
                f"{path}: {length} bytes, {MANIFEST} says {shard['length']} "
                f"({shard['records']} records): {AGAIN}"
            )

    def _index(self) -> np.ndarray:
        path, count = self.folder / INDEX, self.manifest["records"]
        try:
            index = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({_line(error)}): {AGAIN}") from None
        ends = self.ends or [0]
        if index.dtype != np.uint64 or index.shape != (4, count) or ends[-1] != count:
            raise UserError(
                f"{path}: {index.dtype}{list(index.shape)} for {count} records of {MANIFEST} and "
                f"{ends[-1]} of its shards: {AGAIN}"
            )
        if checksum(index.tobytes()) != self.manifest["index"]:
            raise UserError(f"{path}: differs from its checksum in {MANIFEST}: {AGAIN}")
        return index

    def __len__(self) -> int:
        return int(self.manifest["records"])

    def find(self, name: str) -> Location:
        """Where a name lies. Raises: UserError for one that is not there, saying why if known."""
        row = self._row(name)
        if row < 0:
            if name in self.names_broken:
                why = self.names_broken[name]
                raise UserError(f"{name}: left out of shards {self.folder} as broken: {why}")
            raise UserError(
                f"{name}: not in shards {self.folder}, which have {len(self)} media; allowed: "
                "paths relative to the folder that was prepared"
            )
        return Location(*(int(number) for number in self.index[1:, row]))

    def __contains__(self, name: str) -> bool:
        return self._row(name) >= 0

    def _row(self, name: str) -> int:
        """The place of a name in the index; -1 = none."""
        keys, wanted = self.index[0], key(name)
        row = int(np.searchsorted(keys, np.uint64(wanted)))
        return row if row < len(keys) and int(keys[row]) == wanted else -1

    def read(self, name: str) -> bytes:
        """The bytes of one media file. Raises: UserError for an absent or damaged one."""
        location = self.find(name)
        try:
            content = bytes(self._records()[location.record])
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"{self.where(location)} ({name}) cannot be read ({_line(error)}): {AGAIN}"
            ) from None
        if len(content) != location.bytes or checksum(content) != location.checksum:
            raise UserError(f"{self.where(location)} ({name}) differs from its checksum: {AGAIN}")
        return content

    def where(self, location: Location) -> str:
        """Shard and record, as errors name them."""
        shard = bisect_right(self.ends, location.record)
        first = self.ends[shard - 1] if shard else 0
        return f"{self.folder / self.files[shard]}: record {location.record - first}"

    def names(self) -> list[str]:
        """Every name, sorted; reads the lists of all shards. Raises: UserError for a bad one."""
        names: list[str] = []
        for file in self.files:
            path = (self.folder / file).with_suffix(".json")
            try:
                names += [str(name) for name, _, _ in _json(path)["records"]]
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path}: is no list of a shard's records: {AGAIN}") from None
        return sorted(names)

    def _records(self) -> Any:
        """array_record's source of all records; opens each shard when it is first read."""
        with self._lock:
            if self._source is None:
                from array_record.python.array_record_data_source import ArrayRecordDataSource

                self._source = ArrayRecordDataSource(
                    [  # with its range given, a shard is not opened only to count it
                        f"{self.folder / shard['file']}[0:{shard['records']}]"
                        for shard in self.manifest["shards"]
                    ]
                )
            return self._source


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; scripts/prepare_shards.py writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({_line(error)}): {AGAIN}") from None


def _manifest(path: Path) -> dict[str, Any]:
    manifest = _json(path)
    wanted = {"format": int, "records": int, "index": int, "shards": list, "broken": list}
    ok = (
        isinstance(manifest, dict)
        and all(isinstance(manifest.get(name), kind) for name, kind in wanted.items())
        and all(map(_is_shard, manifest["shards"]))
        and all(map(_is_broken, manifest["broken"]))
    )
    if not ok:
        raise UserError(f"{path}: is no manifest of shards ({', '.join(wanted)}): {AGAIN}")
    if manifest["format"] != FORMAT:
        raise UserError(f"{path}: format {manifest['format']}; allowed: {FORMAT}")
    return manifest


def _is_shard(shard: Any) -> bool:
    numbers = ("records", "length")
    return (
        isinstance(shard, dict)
        and isinstance(shard.get("file"), str)
        and os.path.basename(shard["file"]) == shard["file"]
        and all(isinstance(shard.get(n), int) and shard[n] >= 0 for n in numbers)
    )


def _is_broken(broken: Any) -> bool:
    """Is it a name with a reason?"""
    return isinstance(broken, list) and [type(part) for part in broken] == [str, str]


# -------------------------------------------------------------------------------------- by path


@functools.lru_cache(maxsize=65536)
def _holder(folder: str) -> str:
    """The nearest folder with a manifest: this one, or one above it."""
    for place in (folder, *map(str, Path(folder).parents)):
        if os.path.isfile(os.path.join(place, MANIFEST)):
            return place
    for place in (folder, *map(str, Path(folder).parents)):
        if os.path.isfile(os.path.join(place, LISTING)):
            raise UserError(f"{place}: has no {MANIFEST}, its preparation is not finished: {AGAIN}")
    raise UserError(f"{PREFIX}{folder}: has no {MANIFEST}; make it with scripts/prepare_shards.py")


_LOCK = threading.Lock()


def opened(folder: str) -> Shards:
    """The shards of a folder, opened once in each process while their manifest is the same."""
    try:
        state = os.stat(os.path.join(folder, MANIFEST))
    except OSError as error:
        raise UserError(f"{folder}/{MANIFEST}: cannot be read ({error.strerror})") from None
    with _LOCK:  # one of several threads opens it, the others wait
        return _opened(folder, state.st_mtime_ns, state.st_size, os.getpid())


@functools.lru_cache(maxsize=8)
def _opened(folder: str, changed: int, size: int, process: int) -> Shards:
    del changed, size, process  # only for the cache's key: a fork must not share readers
    return Shards(folder)


def locate(path: str | os.PathLike[str]) -> tuple[Shards, str]:
    """(the shards, the name in them) of a path: the nearest folder above it that has a manifest.

    Raises: UserError where there is none, and as `Shards`.
    """
    plain = posixpath.normpath(os.path.abspath(os.fspath(path).removeprefix(PREFIX)))
    folder = _holder(posixpath.dirname(plain))
    return opened(folder), posixpath.relpath(plain, folder)


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a media file in shards. Raises: UserError as `locate` and `Shards.read`."""
    folder, name = locate(path)
    return folder.read(name)


def within(place: str | os.PathLike[str]) -> list[str]:
    """The path of every media file below a folder in shards, sorted. Raises: UserError."""
    plain = os.path.abspath(os.fspath(place).removeprefix(PREFIX))
    folder = _holder(plain)
    start = posixpath.relpath(plain, folder)
    names = opened(folder).names()
    if start != ".":
        names = [name for name in names if name == start or name.startswith(f"{start}/")]
    return [f"{PREFIX}{folder}/{name}" for name in names]

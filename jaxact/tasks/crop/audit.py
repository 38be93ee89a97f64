"""Checks all pictures before training: unreadable, repeated or rare ones, telling file names.

Each file is read once: its hash finds exact copies; a 64-bit difference hash (neighbours compared
on an 9x8 grey picture) together with a small grey picture finds those that look alike.
"""

import dataclasses
import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxact.config import UserError
from jaxact.data import images, media
from jaxact.tasks.crop import class_balance
from jaxact.tasks.crop.annotations import Picture, PictureSource

_SIDE = 16  # px of the grey picture that confirms a likeness
_ALIKE = 6.0  # mean difference of two such pictures, grey levels, up to which they are alike
_BLOCK = 2048  # hashes compared at a time
_NAMED = 3  # examples named in a finding
_COPY = re.compile(r"( - copy|副本|\(\d+\)$)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Look:
    """What one reading of a picture tells."""

    error: str = ""  # one line; "" = readable
    content: bytes = b""  # sha1
    difference: int = 0  # 64 bits: is a pixel brighter than its right neighbour?
    grey: bytes = b""  # _SIDE x _SIDE levels


def inspect(picture: Picture) -> Look:
    """Reads and decodes a picture; a file that has not changed is not read again."""
    if picture.pixels is not None:
        return _look(picture.content, picture.id)
    try:
        _, version, length = media.stamp(picture.path)
    except OSError:
        return Look(f"{picture.path}: no such file")
    except UserError as error:
        return Look(str(error))
    return _remembered(picture.path, version, length)


@functools.cache
def _remembered(path: str, changed: int, size: int) -> Look:
    del changed, size  # only part of the cache's key
    return _look(path, path)


def _look(content: Any, name: str) -> Look:
    try:
        if isinstance(content, str):
            content = media.read(content)
        image = images.decode(content, _SIDE, 1.0, name)
    except (UserError, OSError) as error:
        return Look(str(error))
    raw = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
    grey = image.convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(small[:, :-1] > small[:, 1:])
    return Look(
        "",
        hashlib.sha1(raw, usedforsecurity=False).digest(),
        int.from_bytes(bits.tobytes(), "big"),
        grey.resize((_SIDE, _SIDE), Image.Resampling.BOX).tobytes(),
    )


def near_pairs(hashes: np.ndarray, groups: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Pairs (i < j) of different groups whose hashes u64[n] differ in at most `most` bits."""
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(hashes), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for other in range(start, len(hashes), _BLOCK):
            columns = slice(other, other + _BLOCK)
            bits = np.bitwise_count(hashes[rows, None] ^ hashes[None, columns])
            close = (bits <= most) & (groups[rows, None] != groups[None, columns])
            i, j = np.nonzero(close)
            both = zip((i + start).tolist(), (j + other).tolist(), strict=True)
            pairs += [(a, b) for a, b in both if a < b]
    return pairs


def survey(
    names: Sequence[str], near: int, sources: Mapping[str, PictureSource]
) -> tuple[list[str], str]:
    """Findings of all splits together, and a table of the classes.

    Args:
      names: of the classes.
      near: bits of 64 in which hashes of pictures that look alike may differ.
      sources: split -> its pictures; val and test count once where they are the same pictures.

    Findings are one line each: unreadable pictures; a split that is the training split; exact
    copies across splits or under different labels; pictures of different splits that look alike;
    names that tell the label, or say that they are copies; classes without pictures.
    """
    splits = _distinct(sources)
    everything = [(split, p) for split, source in splits.items() for p in source.pictures]
    looked = [(split, picture, inspect(picture)) for split, picture in everything]
    findings = [look.error for _, _, look in looked if look.error]
    sound = [entry for entry in looked if not entry[2].error]
    findings += _trained_on(splits)
    findings += _copies(sound)
    findings += _alike(sound, near)
    findings += _telling_names([p for _, p in everything])
    counted = {split: source.counts(len(names)) for split, source in splits.items()}
    for split, count in counted.items():
        empty = np.flatnonzero(count == 0).tolist()
        if empty:
            findings.append(f"{split}: no picture of {_list([names[k] for k in empty])}")
    return findings, _table(counted, names)


def _distinct(sources: Mapping[str, PictureSource]) -> dict[str, PictureSource]:
    """Splits by name, val and test as "val=test" where they are the same pictures."""
    val, test = sources.get("val"), sources.get("test")
    if val is None or test is None or val.files() != test.files():
        return dict(sources)
    return {
        "val=test" if name == "val" else name: source
        for name, source in sources.items()
        if name != "test"
    }


def _trained_on(splits: Mapping[str, PictureSource]) -> list[str]:
    """Splits that are the training split itself."""
    if "train" not in splits:
        return []
    trained = splits["train"].files()
    others = ((name, source) for name, source in splits.items() if name != "train")
    same = [name for name, source in others if source.files() == trained]
    return [f"{name} is the training split: its scores tell nothing of new ones" for name in same]


def _list(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


_Sound = Sequence[tuple[str, Picture, Look]]


def _copies(sound: _Sound) -> list[str]:
    """Exact copies across splits, and those under different labels."""
    by_content: dict[bytes, list[tuple[str, Picture]]] = defaultdict(list)
    for split, picture, look in sound:
        by_content[look.content].append((split, picture))
    across: dict[str, list[str]] = defaultdict(list)
    conflicting, repeated = [], 0
    for members in by_content.values():
        if len(members) == 1:
            continue
        names = " = ".join(picture.id for _, picture in members)
        splits = dict.fromkeys(split for split, _ in members)
        if len({picture.label for _, picture in members}) > 1:
            conflicting.append(names)
        if len(splits) > 1:
            across["/".join(splits)].append(names)
        else:
            repeated += len(members) - 1
    findings = [f"{len(n)} exact copies across {s}: {_list(n)}" for s, n in across.items()]
    if conflicting:
        findings.append(f"{len(conflicting)} pictures under different labels: {_list(conflicting)}")
    if repeated:
        findings.append(f"{repeated} exact copies within a split")
    return findings


def _alike(sound: _Sound, near: int) -> list[str]:
    """Pictures of different splits that look alike without being copies."""
    if not sound:
        return []
    splits = [split for split, _, _ in sound]
    order = list(dict.fromkeys(splits))
    hashes = np.array([look.difference for _, _, look in sound], np.uint64)
    groups = np.array([order.index(split) for split in splits])
    grey = np.stack([np.frombuffer(look.grey, np.uint8) for _, _, look in sound]).astype(np.int16)
    across: dict[str, list[str]] = defaultdict(list)
    for i, j in near_pairs(hashes, groups, near):
        if sound[i][2].content == sound[j][2].content:
            continue
        if np.abs(grey[i] - grey[j]).mean() <= _ALIKE:
            across[f"{splits[i]}/{splits[j]}"].append(f"{sound[i][1].id} ~ {sound[j][1].id}")
    return [f"{len(n)} pairs look alike across {s}: {_list(n)}" for s, n in across.items()]


def _telling_names(pictures: Sequence[Picture]) -> list[str]:
    """File names from whose beginning the label can be told, or that call themselves copies."""
    findings = []
    stems = [(re.split(r"[\\/]", p.id)[-1].rsplit(".", 1)[0], p.label) for p in pictures]
    labelled = [(stem, label) for stem, label in stems if label >= 0]
    starts = [(re.split(r"[_\-\s.]", stem)[0], label) for stem, label in labelled]
    by_start: dict[str, Counter[int]] = defaultdict(Counter)
    for start, label in starts:
        by_start[start][label] += 1
    told = sum(counts.most_common(1)[0][1] for counts in by_start.values())
    labels = {label for _, label in labelled}
    # Beginnings that are as many as the files tell nothing; neither does a single class.
    few = len(by_start) <= max(2 * len(labels), 1) and len(labelled) >= 4 * len(by_start)
    if few and len(labels) > 1 and told >= 0.95 * len(labelled):
        findings.append(
            f"file names tell the label: their beginning alone gives {told} of {len(labelled)} "
            f"labels (as in {_list(start for start, _ in starts)})"
        )
    copies = [stem for stem, _ in stems if _COPY.search(stem)]
    if copies:
        findings.append(f"{len(copies)} file names say they are copies: {_list(copies)}")
    return findings


def _table(counted: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Pictures of each class and split, and the head and tail of the first split."""
    rows = [["class", "name", *counted]]
    rows += [[str(k), n, *(str(c[k]) for c in counted.values())] for k, n in enumerate(names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    split, first = next(iter(counted.items()))
    some = first[first > 0]
    if not some.size:
        return "\n".join(lines)
    tail, head = class_balance.tail(first), class_balance.tail(-first)
    lines.append(
        f"{split}: largest class {some.max()}, smallest {some.min()}, ratio "
        f"{some.max() / some.min():.1f}:1"
    )
    for name, members in (("head", head), ("tail", tail), ("rest", ~(head | tail))):
        share = first[members].sum() / first.sum()
        numbers = " ".join(map(str, np.flatnonzero(members))) or "none"
        lines.append(f"{name} ({members.sum()} classes, {share:.1%} of the pictures): {numbers}")
    return "\n".join(lines)

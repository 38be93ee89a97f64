"""Pairs of people: from label files to the arrays of one example, on the host.

An example:

| key    | dtype, shape     | unit |
|--------|------------------|------|
| crops  | u8[2, s, s, 3]   | RGB, A and B; absent where the model takes none |
| place  | f32[n]           | `spatial_features`; absent where all of them are off |
| label  | i32              | class, -1 = unknown |
| people | i32[2]           | their numbers in the label file |
| box    | f32[2, 4]        | px: x, y, w, h |

Pictures are read by frame: an epoch visits the pairs of a few frames at a time (`arrange`), and all
the crops of a frame come from one decoding (`crops`).
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data import images
from jaxact.tasks.relation import annotation_files, crops, jrdb, spatial_features
from jaxact.tasks.relation.config import Data
from jaxact.tasks.relation.crops import Cut
from jaxact.tasks.relation.jrdb import Frame

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two people of a frame."""

    id: str  # "<frame>#<A>-<B>"
    frame: Frame
    a: int  # indices into frame.people
    b: int
    label: int = -1


class PairSource:
    """The pairs of one split, by frames."""

    def __init__(self, frames: Sequence[Frame], counts: Mapping[str, int] | None = None):
        self.frames, self.counts = tuple(frames), dict(counts or {})
        each = [len(frame.pairs) for frame in self.frames]
        self.frame_of = np.repeat(np.arange(len(each)), each)
        self.start = np.concatenate([[0], np.cumsum(each)]).astype(np.int64)

    @functools.cached_property
    def ids(self) -> list[str]:
        """The id of each pair."""
        return [self[index].id for index in range(len(self))]

    def __len__(self) -> int:
        return len(self.frame_of)

    def __getitem__(self, index: int) -> Pair:
        place = int(self.frame_of[index])
        frame = self.frames[place]
        a, b, label = frame.pairs[index - int(self.start[place])]
        return Pair(f"{frame.id}#{frame.people[a]}-{frame.people[b]}", frame, a, b, label)

    def labels(self) -> np.ndarray:
        """i64[n], without opening a picture."""
        pairs = itertools.chain.from_iterable(frame.pairs for frame in self.frames)
        return np.array([label for _, _, label in pairs], np.int64)


# ---------------------------------------------------------------------------------------- examples


def source(data: Data, split: str) -> PairSource:
    """The labelled pairs of one split. Raises: UserError for missing or invalid labels."""
    if data.annotations:
        frames = _listed(data, data.annotations)[split]
        return PairSource(frames, {"pairs kept": sum(len(frame.pairs) for frame in frames)})
    if not data.root:
        raise UserError(
            "config.data.root is empty; allowed: the folder of JRDB-Social, or a CSV in "
            "config.data.annotations"
        )
    if not Path(data.root).is_dir():
        raise UserError(
            f"config.data.root={data.root!r} does not exist; allowed: the folder of JRDB-Social"
        )
    scenes = jrdb.splits(data.splits, data.root)
    if not scenes[split]:
        raise UserError(
            f"config.data.splits={data.splits}: has no {split} scenes with labels; allowed: "
            f"{', '.join(name for name in scenes if scenes[name])} (config.eval.split)"
        )
    # 0,0: no picture is opened here; boxes are checked when their crops are cut.
    width, height = data.size if data.size != (0, 0) else (jrdb.LONGEST, jrdb.LONGEST)
    rules = jrdb.Rules(
        classes=tuple(data.classes),
        interval=data.train_interval if split == "train" else data.eval_interval,
        policy=data.policy,
        sides=data.sides,
        visible=data.visible,
        border=data.border,
        width=width,
        height=height,
        strict=data.strict,
        images=data.images,
    )
    frames, outcomes = jrdb.read(data.root, scenes[split], rules)
    if not frames:
        counted = sorted(outcomes.items())
        told = ", ".join(f"{name} {number}" for name, number in counted) or "nothing"
        raise UserError(
            f"config.data.root={data.root}: no {split} pair is left of what is listed ({told}); "
            "see config.data.size, classes, visible, border"
        )
    return PairSource(frames, outcomes)


def _listed(data: Data, path: str, labelled: bool = True) -> dict[str, tuple[Frame, ...]]:
    given = Path(path)
    stamp = given.stat().st_mtime_ns if given.is_file() else 0
    size, classes, wrap = (data.size[0], data.size[1]), tuple(data.classes), data.panorama
    return annotation_files.read(path, data.images, classes, size, wrap, labelled, stamp)


def counts(source: PairSource, classes: int) -> np.ndarray:
    """i64[k]: pairs of each class."""
    labels = source.labels()
    return np.bincount(labels[labels >= 0], minlength=classes)


def class_weights(data: Data) -> np.ndarray:
    """f32[k]: N / (K n_c) of the training pairs where `balance` weighs the loss, else ones."""
    classes = len(data.classes)
    # Without data a step can still be compiled and timed, so the weights are ones.
    if data.balance not in ("weights", "both") or not (data.root or data.annotations):
        return np.ones(classes, np.float32)
    counted = counts(source(data, "train"), classes)
    return (counted.sum() / (len(counted) * np.maximum(counted, 1))).astype(np.float32)


def sampler(data: Data, source: PairSource, stage_data: Any) -> np.ndarray | None:
    """f64[n] sampling weights 1 / n_c; None = each pair once an epoch."""
    del stage_data  # the same in every row of the schedule
    if data.balance not in ("sampler", "both"):
        return None
    labels = source.labels()
    return 1.0 / np.bincount(labels)[labels]


def arrange(
    data: Data, source: PairSource, drawn: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The pairs i64[n] drawn for an epoch, in the order in which they are read.

    Frames come in random order, `data.mix` at a time, and the pairs of these in random order. So a
    frame is decoded once for all its pairs, if their crops stay in memory that long.
    """
    if not data.mix:
        return drawn
    rank = rng.permutation(len(source.frames))[source.frame_of[drawn]]
    _, dense = np.unique(rank, return_inverse=True)  # frames without a drawn pair are not counted
    return drawn[np.lexsort((rng.permutation(len(drawn)), dense // data.mix))]


def size_of(data: Data, frame: Frame) -> tuple[int, int]:
    """(w, h) px of a frame's picture.

    Raises: UserError for a picture that cannot be opened, or a box of a pair outside it.
    """
    width, height = data.size
    if width:
        return width, height  # boxes were checked when they were read
    width, height = annotation_files.header(frame.path)
    for place in in_pairs(frame):
        x, y, w, h = frame.boxes[place]
        if x >= width or y >= height:
            raise UserError(
                f"{frame.path}: person {frame.people[place]} has box {x:g} {y:g} {w:g} {h:g}, "
                f"outside the picture of {width}x{height} px"
            )
    return width, height


def in_pairs(frame: Frame) -> list[int]:
    """Indices of the people who are in pairs; in crowds many are in none."""
    return sorted({place for a, b, _ in frame.pairs for place in (a, b)})


def cut_of(data: Data, side: int) -> Cut:
    """How crops of `side` px are cut."""
    return Cut(side, data.padding, data.panorama and data.wrap)


def pair_crops(data: Data, pair: Pair, side: int) -> np.ndarray:
    """u8[2, s, s, 3] of A and B. Raises: UserError for an unreadable picture."""
    frame, size, cut = pair.frame, size_of(data, pair.frame), cut_of(data, side)
    if not data.memory and not data.cache_dir:
        both = [frame.boxes[pair.a], frame.boxes[pair.b]]
        return crops.cut_all(frame.path, size, both, cut)
    wanted = in_pairs(frame)
    chosen = [frame.boxes[place] for place in wanted]
    limit = data.memory * MEBIBYTE
    every = crops.load(frame.path, size, chosen, cut, limit, data.cache_dir)
    return every[[wanted.index(pair.a), wanted.index(pair.b)]]


def prepare(
    data: Data,
    with_crops: bool,
    pair: Pair,
    rng: np.random.Generator,
    stage_data: Any,
    split: str,
) -> dict[str, np.ndarray]:
    """One example's arrays (see the table above). Raises: UserError for an unreadable picture."""
    del rng, split  # augmentation happens on the device; all splits are prepared alike
    frame = pair.frame
    a, b = (np.asarray(frame.boxes[place]) for place in (pair.a, pair.b))
    arrays: dict[str, Any] = {
        "label": np.int32(pair.label),
        "people": np.array([frame.people[pair.a], frame.people[pair.b]], np.int32),
        "box": np.stack([a, b]).astype(np.float32),
    }
    if spatial_features.count(data.places, data.scene):
        arrays["place"] = spatial_features.features(
            a,
            b,
            size_of(data, frame),
            len(frame.boxes),
            wrap=data.panorama,
            places=data.places,
            form=data.scene,
            log=data.log_distance,
        )
    if with_crops:
        arrays["crops"] = pair_crops(data, pair, stage_data.size)
    return arrays


def shapes(
    data: Data, with_crops: bool, stage_data: Any, split: str
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """name -> (shape of one example, dtype), as `prepare` makes them."""
    del split
    count = spatial_features.count(data.places, data.scene)
    formats: dict[str, tuple[tuple[int, ...], Any]] = {
        "label": ((), np.int32),
        "people": ((2,), np.int32),
        "box": ((2, 4), np.float32),
    }
    if count:
        formats["place"] = ((count,), np.float32)
    if with_crops:
        formats["crops"] = ((2, stage_data.size, stage_data.size, 3), np.uint8)
    return formats


def audit(data: Data, with_crops: bool, pair: Pair) -> str:
    """Decodes a frame's picture with its first pair; returns "" or what is wrong with it."""
    frame = pair.frame
    opened = with_crops or min(data.size) == 0
    if not opened or (pair.a, pair.b) != frame.pairs[0][:2]:
        return ""
    try:
        crops.decode(frame.path, size_of(data, frame))
    except UserError as error:
        return str(error)
    return ""


def survey(classes: Sequence[str], sources: Mapping[str, PairSource]) -> tuple[Sequence[str], str]:
    """(a line for each kind of thing left out of a split; a table of pairs and outcomes)."""
    findings = []
    counted: dict[str, dict[str, int]] = {}
    for split, source in sources.items():
        numbers = dict(zip(classes, counts(source, len(classes)).tolist(), strict=True))
        counted[split] = numbers | {f"({name})": n for name, n in sorted(source.counts.items())}
        findings += [f"{split}: no pair of {name}" for name in classes if not numbers[name]]
        for reason in ("box invalid", "box outside the picture", "partner absent"):
            if left := source.counts.get(reason):
                findings.append(f"{split}: {left} left out: {reason} (data.strict names it)")
    names = dict.fromkeys(itertools.chain.from_iterable(counted.values()))
    columns = [["", *names]]
    columns += [[split, *(str(n.get(name, 0)) for name in names)] for split, n in counted.items()]
    for column in columns:
        width = max(map(len, column))
        column[:] = [c.ljust(width) if column is columns[0] else c.rjust(width) for c in column]
    return findings, "\n".join(map("  ".join, zip(*columns, strict=True)))


def examples(data: Data, path: str) -> PairSource:
    """Pairs to predict on, from a boxes file, a picture beside one, a folder of these, or a CSV.

    Raises: UserError for a path that is missing or holds none.
    """
    given = Path(path)
    if not given.exists():
        raise UserError(f"--input={path} does not exist")
    if given.is_file() and given.suffix.lower() == ".csv":
        return PairSource(_listed(data, path, labelled=False)["test"])
    if given.is_dir():
        files = sorted(given.rglob("*.json"))
    elif given.suffix.lower() in images.SUFFIXES:
        files = [given.with_suffix(".json")]
    else:
        files = [given]
    if not files or any(file.suffix.lower() != ".json" for file in files):
        raise UserError(
            f"--input={path}: needed: a .json of boxes, or a picture with one beside it"
        )
    size = (data.size[0], data.size[1])
    frames = [
        frame for file in files for frame in annotation_files.boxes(file, data.panorama, size)
    ]
    for frame in frames:
        if not frame.pairs:
            print(f"left out: {frame.path}: has no pair of people", file=sys.stderr, flush=True)
    return PairSource([frame for frame in frames if frame.pairs])

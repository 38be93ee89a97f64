"""Prepares data for `configs/adatad.py`: annotations, composed videos, framewise scores.

    python scripts/prepare_detection.py convert --source FILE --out FILE.json [--ground-truth NAME]
    python scripts/prepare_detection.py composed --source DIR --out DIR
    python scripts/prepare_detection.py drawn --out DIR
    python scripts/prepare_detection.py framewise --source FILE.npz --out DIR

`convert`: an annotation of ActionFormer, ActivityNet or OpenTAD, or a CSV, to OpenTAD's JSON.
`composed`: untrimmed videos from the clips of fight_surv (DIR holds labels.csv and videos), with
boundaries known by construction; train and test share no source video.
`drawn`: videos of a square that rests, or moves across or down; needs no source.
`framewise`: scores [frames, classes] of many videos (50Salads, GTEA) as features, a file each, and
an annotation for every split left out: split1.json, ... (training = the other splits). The file has
no times, so a second here is one row. Class 0 is the background.
"""

import argparse
import itertools
import sys
import zipfile
from pathlib import Path

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.detection import annotations, sample_data
from jaxact.tasks.detection.annotations import Annotation, Untrimmed
from jaxact.tasks.detection.framewise import segments

BACKGROUND = 0
KEYS = ("gt", "scores", "offsets", "split")


def convert(source: Path, out: Path, ground_truth: str) -> str:
    """Reads, validates and writes an annotation; returns a summary."""
    annotation = annotations.read(source, ground_truth=ground_truth)
    out.parent.mkdir(parents=True, exist_ok=True)
    annotations.write(out, annotation)
    lines = [f"{out}: {len(annotation.videos)} videos, {len(annotation.names)} classes"]
    for subset in annotation.subsets:
        videos = annotation.subset(subset, segments=False)
        count = sum(len(video.labels) for video in videos)
        lines.append(f"  {subset or '(no subset)'}: {len(videos)} videos, {count} segments")
    return "\n".join(lines)


def compose(source: Path, out: Path, train: int, test: int, seed: int) -> str:
    """Writes the composed set."""
    clips = sample_data.clips(source / "labels.csv", source / "videos")
    path = sample_data.write(out, clips, "noFight", train=train, test=test, seed=seed)
    return summary(path)


def draw(out: Path, train: int, test: int, seed: int) -> str:
    """Writes the drawn set."""
    return summary(sample_data.draw(out, train=train, test=test, frames=192, seed=seed))


def summary(path: Path) -> str:
    """One line about an annotation."""
    annotation = annotations.read(path)
    count = sum(len(video.labels) for video in annotation.videos)
    seconds = sum(video.duration for video in annotation.videos)
    return f"{path}: {len(annotation.videos)} videos, {count} segments, {seconds:.0f} s"


def framewise(source: Path, out: Path) -> str:
    """Writes features/<id>.npy and split<k>.json; returns a summary.

    Raises: UserError for a file that lacks an array, or whose arrays contradict each other.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file; needed: an .npz with {', '.join(KEYS)}")
    try:
        # np.load does not close a broken file that it opened; of an .npy it gives an array.
        with open(source, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            missing = [key for key in KEYS if key not in getattr(archive, "files", ())]
            if missing:
                raise UserError(f"{source}: lacks the arrays {', '.join(missing)}")
            truth, scores, offsets, split = (archive[key] for key in KEYS)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{source}: cannot be read as arrays ({error})") from error
    if scores.ndim != 2:
        raise UserError(f"{source}: scores of shape {scores.shape}, needed: [frames, classes]")
    if len(truth) and not 0 <= truth.min() <= truth.max() < scores.shape[1]:
        raise UserError(
            f"{source}: labels {truth.min()} to {truth.max()}, needed: 0 to {scores.shape[1] - 1}"
        )
    fits = len(truth) == len(scores) == offsets[-1] and len(offsets) == len(split) + 1
    if not fits or offsets[0] != 0 or (np.diff(offsets) <= 0).any():
        raise UserError(
            f"{source}: {len(truth)} labels, {len(scores)} scores, offsets up to {offsets[-1]}, "
            f"{len(split)} videos; they contradict each other"
        )
    (out / "features").mkdir(parents=True, exist_ok=True)
    names = tuple(f"action{k:02d}" for k in range(1, scores.shape[1]))
    videos = []
    for index, (start, end) in enumerate(itertools.pairwise(offsets)):
        name = f"video{index:03d}"
        np.save(out / "features" / f"{name}.npy", scores[start:end].astype(np.float32))
        spans, labels = segments(truth[start:end], BACKGROUND)
        videos.append((name, int(end - start), spans.astype(np.float64), labels - 1))
    for left_out in sorted(set(split.tolist())):
        listed = tuple(
            Untrimmed(
                name,
                "validation" if part == left_out else "training",
                float(count),
                count,
                1.0,
                spans,
                labels,
            )
            for (name, count, spans, labels), part in zip(videos, split.tolist(), strict=True)
        )
        path = out / f"split{left_out}.json"
        annotations.write(path, Annotation(str(path), names, listed))
    return (
        f"{out}: {len(videos)} videos, {scores.shape[1]} channels, {len(names)} classes, "
        f"{len(set(split.tolist()))} splits"
    )


def main(arguments: list[str] | None = None) -> int:
    """Does one of the jobs and prints a summary; returns 2 for the user's mistakes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=("convert", "composed", "drawn", "framewise"))
    parser.add_argument("--source", type=Path, help="file or folder to read, but for drawn")
    parser.add_argument("--out", type=Path, required=True, help="file or folder to write")
    parser.add_argument(
        "--ground-truth", default="strict", choices=annotations.GROUND_TRUTHS, help="convert"
    )
    parser.add_argument("--train", type=int, default=60, help="composed, drawn: training videos")
    parser.add_argument("--test", type=int, default=20, help="composed, drawn: test videos")
    parser.add_argument("--seed", type=int, default=0, help="composed, drawn")
    options = parser.parse_args(arguments)
    if options.job != "drawn" and options.source is None:
        parser.error(f"{options.job} needs --source")
    jobs = {
        "convert": lambda: convert(options.source, options.out, options.ground_truth),
        "composed": lambda: compose(
            options.source, options.out, options.train, options.test, options.seed
        ),
        "drawn": lambda: draw(options.out, options.train, options.test, options.seed),
        "framewise": lambda: framewise(options.source, options.out),
    }
    try:
        print(jobs[options.job]())
    except UserError as error:
        print(f"prepare_detection: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

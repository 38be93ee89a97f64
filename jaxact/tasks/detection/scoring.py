"""How detections are scored and told: windows become videos, numbers, files, pictures.

Rows are those of `jaxact.tasks.detection.task`, config is its Config.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.evaluate import figures
from jaxact.task import Ending, Extra
from jaxact.tasks.detection import (
    dataset,
    error_analysis,
    framewise,
    postprocess,
    results,
    timeline,
    video_scores,
)
from jaxact.tasks.detection import mean_ap as scoring
from jaxact.tasks.detection.mean_ap import Instances


def _merged(config: Any, rows: dict[str, np.ndarray]) -> Instances:
    """Detections of the videos that the windows belong to."""
    post, classes = config.post, None
    if post.merging.classifier:
        annotation = dataset.annotation(config.data)
        numbers = np.unique(rows["video"]).tolist()
        ids = [annotation.videos[number].id for number in numbers]
        table = video_scores.read(post.merging.classifier, ids, annotation.names)
        classes = dict(zip(numbers, table, strict=True))
    return postprocess.merge(rows, post.nms, post.merging, classes)


def _truth(config: Any, rows: dict[str, np.ndarray]) -> Instances:
    video, segment, label = dataset.truth(config.data, rows["video"])
    return scoring.instances(video, segment, label)


def metric_names(config: Any) -> tuple[str, ...]:
    """What `score` gives."""
    protocol = scoring.PROTOCOLS[config.post.protocol]
    names = ["mAP"]
    for tiou in protocol.tious:
        names.append(f"mAP@{tiou:g}")
        names += [f"recall@{tiou:g}@{multiple}x" for multiple in protocol.multiples]
    if config.post.framewise >= 0:
        names += ["accuracy", "edit"]
        names += [f"f1@{round(100 * overlap)}" for overlap in framewise.OVERLAPS]
    return tuple(names)


def score(config: Any, merged: Any, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """mAP over the protocol's tIoUs, recall, and framewise scores if asked for."""
    assert int(merged["windows"]) == len(rows["video"]), "a window was lost or repeated"
    found, truth = _merged(config, rows), _truth(config, rows)
    classes = len(dataset.annotation(config.data).names)
    protocol = scoring.PROTOCOLS[config.post.protocol]
    numbers = scoring.evaluate(truth, found, protocol, classes).numbers()
    if config.post.framewise >= 0:
        numbers |= _framewise(config, np.unique(rows["video"]), truth, found, classes)
    return numbers


def _framewise(
    config: Any, numbers: np.ndarray, truth: Instances, found: Instances, background: int
) -> dict[str, float]:
    """Accuracy, edit score and F1 of the labels that detections give to steps of these videos."""
    videos, sequences = dataset.annotation(config.data).videos, []
    found = found.at(found.score >= config.post.framewise)
    for number in numbers.tolist():
        video = videos[number]
        if not video.fps or not video.duration:
            raise UserError(
                f"{config.data.annotations}: video {video.id!r} has no fps or no duration; both "
                "are needed for framewise scores (config.post.framewise=-1: none)"
            )
        rate = video.fps / config.data.stride  # steps per second
        length = max(1, round(video.duration * rate))
        sequences.append(
            [
                framewise.frames(own.segment * rate, own.label, own.score, length, background)
                for own in (found.at(found.video == number), truth.at(truth.video == number))
            ]
        )
    predicted, wanted = zip(*sequences, strict=True)
    return framewise.evaluate(predicted, wanted, background)


def describe(
    config: Any, names: tuple[str, ...], row: dict[str, np.ndarray], top: int = 0
) -> dict[str, Any]:
    """Segments of all windows [m, ...] of one video, in seconds, best first, and their picture.

    A class-agnostic model says "action" where there are several classes.
    """
    rule = dataclasses.replace(config.post.merging, classifier="")
    found = postprocess.merge(row, config.post.nms, rule)
    duration = float(row["clock"][0, 2])
    shown = ("action",) if config.model.classes == 1 and len(names) > 1 else names
    picture = timeline.svg("found", duration, timeline.NOTHING, timeline.Track(*found[1:]), shown)
    parts = zip(found.segment.tolist(), found.label.tolist(), found.score.tolist(), strict=True)
    return {
        "duration": duration,
        "segments": [{"segment": a, "label": shown[k], "score": p} for a, k, p in parts],
        "timeline": picture,
    }


def conclude(config: Any, names: tuple[str, ...], ending: Ending) -> Extra:
    """Per-class AP, the error split, the detections as JSON, a timeline of some videos."""
    found, truth = _merged(config, ending.rows), _truth(config, ending.rows)
    videos = dataset.annotation(config.data).videos
    protocol = scoring.PROTOCOLS[config.post.protocol]
    scores = scoring.evaluate(truth, found, protocol, len(names))
    counted = scoring.clean(truth, protocol.duplicates, protocol.shortest)
    split = error_analysis.errors(counted, found, config.post.errors_at, len(names))
    numbers = {
        "ap": {
            names[k]: [round(float(x), 6) for x in scores.ap[:, k]]
            for k in np.flatnonzero(scores.positives).tolist()
        },
        "tious": list(protocol.tious),
        "errors": split.numbers(),
    }
    listed: dict[str, results.Detections] = {}
    pictures: list[str] = []
    # Those in which nothing was found are listed and drawn too.
    for number in np.unique(ending.rows["video"]).tolist():
        own, video = found.at(found.video == number), videos[number]
        listed[video.id] = results.Detections(own.segment, own.score, own.label)
        if len(pictures) < config.post.pictures:
            known = truth.at(truth.video == number)
            known_track, own_track = (
                timeline.Track(x.segment, x.label, x.score) for x in (known, own)
            )
            length = float(ending.rows["clock"][ending.rows["video"] == number][0, 2])
            pictures.append(timeline.svg(video.id, length, known_track, own_track, names))
    files = {
        "detections.json": json.dumps(results.results(listed, names)),
        "errors.txt": split.text(names) + "\n",
        "timeline.html": timeline.page(f"{ending.split}: ground truth and detections", pictures),
    }
    drawn = "".join(f"<figure>{picture}</figure>" for picture in pictures)
    shown = [figures.Figure("Timelines", drawn)] if ending.pictures and pictures else []
    return Extra(numbers, files, shown)


def render(sample: Any, path: Any, pieces: Sequence[dict[str, Any]], side: int) -> None:
    """Writes the timeline of one video, an HTML page. `side` is of no use to it."""
    del side
    title = sample.video.id
    page = timeline.page(title, [piece["timeline"] for piece in pieces])
    Path(path).write_text(page, encoding="utf-8")

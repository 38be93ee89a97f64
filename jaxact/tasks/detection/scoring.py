"""What is made of detections: scores, lines of a prediction, the files and pictures of a run.

Rows are those of `jaxact.tasks.detection.task`.
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
    mean_ap,
    postprocess,
    results,
    timeline,
)
from jaxact.tasks.detection.config import Config
from jaxact.tasks.detection.mean_ap import Instances


def _merged(config: Config, rows: dict[str, np.ndarray]) -> Instances:
    """Detections of the videos that the windows belong to."""
    post, classes = config.post, None
    if post.merging.classifier:
        annotation = dataset.annotation(config.data)
        numbers = np.unique(rows["video"]).tolist()
        ids = [annotation.videos[number].id for number in numbers]
        table = results.read_scores(post.merging.classifier, ids, annotation.names)
        classes = dict(zip(numbers, table, strict=True))
    return postprocess.merge(rows, post.nms, post.merging, classes)


def _truth(config: Config, rows: dict[str, np.ndarray]) -> Instances:
    video, segment, label = dataset.truth(config.data, rows["video"])
    return mean_ap.instances(video, segment, label)


def metric_names(config: Config) -> tuple[str, ...]:
    """The names of the numbers that `score` returns."""
    protocol = mean_ap.PROTOCOLS[config.post.protocol]
    names = ["mAP"]
    for tiou in protocol.tious:
        names.append(f"mAP@{tiou:g}")
        names += [f"recall@{tiou:g}@{multiple}x" for multiple in protocol.multiples]
    if config.post.framewise >= 0:
        names += ["accuracy", "edit"]
        names += [f"f1@{round(100 * overlap)}" for overlap in framewise.OVERLAPS]
    return tuple(names)


def score(config: Config, merged: Any, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """mAP over the protocol's tIoUs, recall, and framewise scores if the config has them."""
    assert int(merged["windows"]) == len(rows["video"]), "a window was lost or repeated"
    detections, truth = _merged(config, rows), _truth(config, rows)
    classes = len(dataset.annotation(config.data).names)
    protocol = mean_ap.PROTOCOLS[config.post.protocol]
    numbers = mean_ap.evaluate(truth, detections, protocol, classes).numbers()
    if config.post.framewise >= 0:
        numbers |= _framewise(config, np.unique(rows["video"]), truth, detections, classes)
    return numbers


def _framewise(
    config: Config, numbers: np.ndarray, truth: Instances, detections: Instances, background: int
) -> dict[str, float]:
    """Accuracy, edit score and F1 of the labels that detections give to steps of these videos."""
    videos, sequences = dataset.annotation(config.data).videos, []
    detections = detections.at(detections.score >= config.post.framewise)
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
                for own in (_of_video(number, detections), _of_video(number, truth))
            ]
        )
    predicted, wanted = zip(*sequences, strict=True)
    return framewise.evaluate(predicted, wanted, background)


def _of_video(video: int, instances: Instances) -> Instances:
    return instances.at(instances.video == video)


def describe(
    config: Config, names: tuple[str, ...], row: dict[str, np.ndarray], top: int = 0
) -> dict[str, Any]:
    """The detections of one video, best first, and their picture.

    row: arrays of all its windows [m, ...]. A class-agnostic model says "action" where the
    annotation has several classes.
    """
    del top  # all are listed
    rule = dataclasses.replace(config.post.merging, classifier="")
    detections = postprocess.merge(row, config.post.nms, rule)
    duration = float(row["clock"][0, 2])
    shown = ("action",) if config.model.classes == 1 and len(names) > 1 else names
    track = timeline.Track(*detections[1:])
    picture = timeline.svg("detections", duration, timeline.NOTHING, track, shown)
    parts = zip(*(column.tolist() for column in detections[1:]), strict=True)
    return {
        "duration": duration,
        "segments": [{"segment": a, "label": shown[k], "score": p} for a, k, p in parts],
        "timeline": picture,
    }


def conclude(config: Config, names: tuple[str, ...], ending: Ending) -> Extra:
    """AP of each class, counts of errors, the detections as JSON, timelines of some videos."""
    detections, truth = _merged(config, ending.rows), _truth(config, ending.rows)
    videos = dataset.annotation(config.data).videos
    protocol = mean_ap.PROTOCOLS[config.post.protocol]
    scores = mean_ap.evaluate(truth, detections, protocol, len(names))
    counted = mean_ap.clean(truth, protocol.duplicates, protocol.shortest)
    errors = error_analysis.errors(counted, detections, config.post.errors_at, len(names))
    numbers = {
        "ap": {
            names[k]: [round(float(x), 6) for x in scores.ap[:, k]]
            for k in np.flatnonzero(scores.positives).tolist()
        },
        "tious": list(protocol.tious),
        "errors": errors.numbers(),
    }
    listed: dict[str, results.Detections] = {}
    pictures: list[str] = []
    # Videos without a detection are listed and drawn too.
    for number in np.unique(ending.rows["video"]).tolist():
        own, video = _of_video(number, detections), videos[number]
        listed[video.id] = results.Detections(own.segment, own.score, own.label)
        if len(pictures) < config.post.pictures:
            annotated = timeline.Track(*_of_video(number, truth)[1:])
            detected = timeline.Track(*own[1:])
            duration = float(ending.rows["clock"][ending.rows["video"] == number][0, 2])
            pictures.append(timeline.svg(video.id, duration, annotated, detected, names))
    files = {
        "detections.json": json.dumps(results.results(listed, names)),
        "errors.txt": errors.text(names) + "\n",
        "timeline.html": timeline.page(f"{ending.split}: ground truth and detections", pictures),
    }
    page = "".join(f"<figure>{picture}</figure>" for picture in pictures)
    shown = [figures.Figure("Timelines", page)] if ending.pictures and pictures else []
    return Extra(numbers, files, shown)


def render(sample: Any, path: Any, windows: Sequence[dict[str, Any]], side: int) -> None:
    """Writes the timeline of one video, an HTML page; `side` does not matter here."""
    del side
    page = timeline.page(sample.video.id, [window["timeline"] for window in windows])
    Path(path).write_text(page, encoding="utf-8")

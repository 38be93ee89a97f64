"""`--mode=predict`: a trained checkpoint on files; prints JSON lines.

There are three ways. `predict_whole`: each input is one example. `predict_joined`: a recording is
cut into examples, and gets one line. `predict_windows` (`--window`): a window slides over each
recording; each window gets a line, and so does the recording.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data.pipeline import eval_batches, read_ahead
from jaxact.modes import window_merging
from jaxact.train.evaluation import results
from jaxact.train.restore import PREDICT, load, stage_data_of
from jaxact.train.run import Run, eval_size
from jaxact.train.step import EvalStep, make_eval_step
from jaxact.train.workdir import recorded, say

Arrays = dict[str, np.ndarray]  # a batch, or a row: what the network says of one example


def with_names(config: Any, workdir: pathlib.Path, where: str) -> Any:
    """The config with the class names of the run whose weights are used, if it names none.

    They are set as the field that it has: `data.class_names`, `data.class_table` (where classes
    have a meaning too), or `data.classes` (where a config lists its classes).
    """
    data: Any = getattr(config, "data", None)
    fields = dataclasses.fields(data) if dataclasses.is_dataclass(data) else ()
    unset = {field.name for field in fields if getattr(data, field.name) == field.default}
    for field, stored in (
        ("class_names", "classes"),
        ("class_table", "class_table"),
        ("classes", "classes"),
    ):
        listed = field == "classes"
        if listed and not isinstance(getattr(data, field, None), tuple):
            continue  # a number of classes
        if field in unset and (listed or not getattr(data, "annotations", "")):
            given = pathlib.Path(where)
            for folder in (given, *given.parents[:2]) if where else (workdir,):
                path = folder / "config.json"
                if classes := recorded(path).get(stored):
                    value = tuple(classes) if listed else str(path)
                    return dataclasses.replace(
                        config, data=dataclasses.replace(data, **{field: value})
                    )
    return config


@dataclasses.dataclass(frozen=True)
class Request:
    """What `predict` is asked for: the values of its flags."""

    input: str  # file, folder or list
    poses: str = ""  # file or folder; "" = those of the list
    window: float = 0.0  # s; 0 = each recording as one example
    stride: float = 1.0  # s from window to window
    top: int = 5  # classes named
    render: str = ""  # .mp4 file or folder; "" = none
    render_size: int = 0  # px of the shorter side; 0 = as the input

    def check(self) -> None:
        """Raises UserError for a value out of its range."""
        for flag, ok, allowed in (
            ("window", self.window >= 0, "0 (the whole recording) or seconds"),
            ("stride", self.stride > 0, "seconds above 0"),
            ("top", self.top >= 1, "1 or more"),
            ("render_size", self.render_size == 0 or self.render_size >= 16, "0, or 16 or more px"),
        ):
            if not ok:
                raise UserError(
                    f"--{flag}={getattr(self, flag)} is not allowed; allowed: {allowed}"
                )


def predict(run: Run, where: str, request: Request, emit: Callable[[str], None]) -> None:
    """Hands each JSON line to `emit` as soon as it is known.

    An input that cannot be read is named and left out; the others are done.

    Raises:
      UserError: for the request itself; after all else is done, for what could not be read.
    """
    request.check()
    task = run.task
    source = task.prediction.example(*filter(None, (request.input, request.poses)))
    if not len(source):
        raise UserError(f"--input={request.input} names no example")
    for flag, wanted, able in (
        ("window", request.window, task.prediction.windows),
        ("render", request.render, task.prediction.render),
    ):
        if wanted and able is None:
            raise UserError(f"--{flag}={wanted}: this task has none; leave it out")
    if request.window and request.window < request.stride:
        say(f"--stride={request.stride} is longer than --window: parts are not looked at")
    files = _files(task, source, request.render) if request.render else []
    stage_data = stage_data_of(run, where)
    variables, _ = load(run, where, stage_data)
    program = make_eval_step(task, PREDICT)
    job = Job(run, request, source, files, stage_data, variables, program, emit)
    if request.window:
        predict_windows(job)
    elif task.prediction.recording:
        predict_joined(job)
    else:
        predict_whole(job)
    if job.failed:
        first = job.failed[min(job.failed)]
        if len(source) == 1:
            raise UserError(first)
        raise UserError(f"{len(job.failed)} of {len(source)} inputs failed; the first: {first}")


@dataclasses.dataclass(frozen=True)
class Job:
    """What the three ways share: the inputs, the network, and what has failed so far."""

    run: Run
    request: Request
    source: Any
    files: list[pathlib.Path]  # to render to, one for each example; [] = none
    stage_data: Any
    variables: Any
    program: EvalStep
    emit: Callable[[str], None]
    failed: dict[int, str] = dataclasses.field(default_factory=dict)  # example -> why
    told: set[int] = dataclasses.field(default_factory=set)  # of `failed`, those already named

    def batches(self) -> Generator[Arrays, None, None]:
        """Batches of the examples of the source."""
        config, task = self.run.config, self.run.task
        size = eval_size(config)
        return eval_batches(
            config, task, self.source, self.stage_data, PREDICT, size, failed=self.failed
        )

    def rows(self, batches: Generator[Arrays, None, None]) -> Iterator[tuple[int, Arrays]]:
        """(id, row) of every example that could be read; after each batch, names what has failed.

        What is drawn of the last batch can still fail: call `tell` at the end.
        """
        for ids, _, rows in results(self.program, self.variables, batches, self.run.mesh):
            for place, number in enumerate(ids.tolist()):
                yield number, {name: array[place] for name, array in rows.items()}
            self.tell()

    def describe(self, row: Arrays) -> dict[str, Any]:
        """What is printed of a row."""
        return self.run.task.prediction.describe(row, top=self.request.top)

    def write(self, name: str, line: dict[str, Any]) -> None:
        """Hands the line of an example or a recording to `emit`, with its name as `id`."""
        self.emit(json.dumps({"id": name, **line}))

    def draw(self, number: int, tiles: list[window_merging.Piece]) -> None:
        """Writes the video or picture of an example, if wanted."""
        if not self.files:
            return
        render = self.run.task.prediction.render
        assert render is not None
        try:
            render(self.source[number], self.files[number], tiles, self.request.render_size)
        except UserError as error:
            self.failed[number] = str(error)

    def tell(self) -> None:
        """Names what has failed since the last time, a line each."""
        for number in sorted(set(list(self.failed)) - self.told):
            if len(self.source) > 1:
                say(f"left out: {self.failed[number]}")
            self.told.add(number)


def predict_whole(job: Job) -> None:
    """Each input as one example."""
    for number, row in job.rows(job.batches()):
        line = job.describe(row)
        job.write(job.source.ids[number], line)
        job.draw(number, [{"start": 0.0, "end": float("inf"), **line}])
    job.tell()


def predict_joined(job: Job) -> None:
    """A line for each recording that is read whole; its examples follow each other."""
    source, recording = job.source, job.run.task.prediction.recording
    assert recording is not None
    named = ((recording(source[number]), number, row) for number, row in job.rows(job.batches()))
    for name, group in itertools.groupby(named, key=lambda item: item[0]):
        _, numbers, rows = zip(*group, strict=True)
        # A list, because the thread that reads ahead may add to it.
        if name in {recording(source[number]) for number in list(job.failed)}:
            continue
        line = job.describe({key: np.stack([row[key] for row in rows]) for key in rows[0]})
        job.write(name, line)
        job.draw(numbers[0], [{"start": 0.0, "end": float("inf"), **line}])
    job.tell()


def predict_windows(job: Job) -> None:
    """Each recording window by window; windows of several recordings fill one batch."""
    waiting: dict[int, tuple[int, float, float]] = {}  # window -> its recording, start, end (s)
    rows = job.rows(read_ahead(_window_batches(job, waiting)))
    windows = ((*waiting.pop(number), row) for number, row in rows)
    for record, group in itertools.groupby(windows, key=lambda window: window[0]):
        lines, kept = [], []
        for _, start, end, row in group:
            line = {"start": round(start, 3), "end": round(end, 3), **job.describe(row)}
            job.write(job.source.ids[record], line)
            lines.append(line)
            kept.append(row)
        if record not in job.failed:  # read to its end
            _close(job, record, lines, kept)
    job.tell()


def _close(job: Job, record: int, lines: list[window_merging.Piece], rows: list[Arrays]) -> None:
    """Writes the line of a recording: the mean of its windows, and a timeline of their classes."""
    mean = {name: np.stack([row[name] for row in rows]).mean(0) for name in rows[0]}
    tiles = window_merging.tiled(lines)
    timeline = [
        {name: piece[name] for name in ("start", "end", "name", "probability")}
        for piece in window_merging.merged(tiles)
    ]
    whole = {"windows": len(rows), **job.describe(mean), "timeline": timeline}
    job.write(job.source.ids[record], whole)
    job.draw(record, tiles)


def _window_batches(
    job: Job, waiting: dict[int, tuple[int, float, float]]
) -> Generator[Arrays, None, None]:
    """Batches of windows as `eval_batches` makes them of examples, with the window's number as id.

    Adds each window to `waiting` before its batch.
    """
    task = job.run.task
    size, parts = eval_size(job.run.config), task.evaluation.parts(PREDICT)
    shapes = task.training.shapes(job.stage_data, PREDICT)
    numbered = enumerate(_windows(job))
    while group := list(itertools.islice(numbered, size)):
        for number, (record, window) in group:
            waiting[number] = record, window.start, window.end
        for part in range(parts):
            batch = {n: np.zeros((size, *shape), dtype) for n, (shape, dtype) in shapes.items()}
            batch |= {"id": np.full(size, -1, np.int32), "mask": np.arange(size) < len(group)}
            for place, (number, (record, window)) in enumerate(group):
                batch["id"][place] = number
                try:
                    arrays = window.arrays(part)
                except UserError as error:
                    job.failed[record] = str(error)
                    batch["mask"][place] = False
                    continue
                for name, array in arrays.items():
                    batch[name][place] = array
            yield batch
        group.clear()  # its frames are not needed while the next ones are read


def _windows(job: Job) -> Iterator[tuple[int, Any]]:
    """(recording, window) of every recording, up to where it cannot be read."""
    windows, request = job.run.task.prediction.windows, job.request
    assert windows is not None
    for record in range(len(job.source)):
        try:
            for window in windows(job.source[record], request.window, request.stride):
                yield record, window
        except UserError as error:
            job.failed[record] = str(error)


def _files(task: Any, source: Any, target: str) -> list[pathlib.Path]:
    """Where what is drawn of each example goes; the parts of a recording share one file."""
    if task.prediction.recording is None:
        return files(target, list(source.ids), task.prediction.drawn)
    recordings = [task.prediction.recording(source[index]) for index in range(len(source))]
    names = list(dict.fromkeys(recordings))
    path = dict(zip(names, files(target, names, task.prediction.drawn), strict=True))
    return [path[name] for name in recordings]


def files(target: str, ids: list[str], suffix: str = ".mp4") -> list[pathlib.Path]:
    """Where what is drawn of each goes: `target` itself (for one), or a file in its folder.

    Raises:
      UserError: one file for several recordings; a folder that cannot be made.
    """
    path = pathlib.Path(target)
    if path.suffix.lower() == suffix and not path.is_dir():
        if len(ids) > 1:
            raise UserError(f"--render={target} is one file for {len(ids)} inputs; give a folder")
        if not path.parent.is_dir():
            raise UserError(f"--render={target}: there is no folder {path.parent}")
        return [path]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--render={target}: no folder can be made ({error.strerror})") from error
    names = [pathlib.Path(name) for name in ids]
    for shorten in (lambda p: p.stem, lambda p: p.name):
        short = [shorten(name) for name in names]
        if max(collections.Counter(short).values()) == 1:
            return [path / f"{name}{suffix}" for name in short]
    flat = ("_".join(part for part in name.parts if part not in ("/", "..")) for name in names)
    return [path / f"{name}{suffix}" for name in flat]

"""`--mode=eval` and `--mode=predict`: a trained checkpoint on a split, or on files."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.data.pipeline import eval_batches, read_ahead
from jaxact.modes import window_merging
from jaxact.train.evaluation import results
from jaxact.train.restore import (
    PREDICT,
    load,
    stage_data_of,
)
from jaxact.train.run import Run, eval_size
from jaxact.train.step import EvalStep, make_eval_step
from jaxact.train.workdir import recorded, say


def with_names(config: Any, workdir: pathlib.Path, where: str) -> Any:
    """The config with the class names of the run whose weights are used, if it names none.

    As `data.class_names`, where classes have a meaning too as `data.class_table`, or where a config
    lists its classes as `data.classes`.
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
                if found := recorded(path).get(stored):
                    named = dataclasses.replace(
                        data, **{field: tuple(found) if listed else str(path)}
                    )
                    return dataclasses.replace(config, data=named)
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
    """Hands each JSON line to `emit` as it is found.

    One line an example; with a window one line a window, and one for the whole recording after its
    last. What cannot be read is named and left out, and the rest is done.

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
    (job.windowed if request.window else job.joined if task.prediction.recording else job.whole)()
    if job.failed:
        first = job.failed[min(job.failed)]
        if len(source) == 1:
            raise UserError(first)
        raise UserError(f"{len(job.failed)} of {len(source)} inputs failed; the first: {first}")


def _files(task: Any, source: Any, target: str) -> list[pathlib.Path]:
    """Where what is drawn of each example goes; the parts of a recording share one file."""
    if task.prediction.recording is None:
        return window_merging.files(target, list(source.ids), task.prediction.drawn)
    of = [task.prediction.recording(source[index]) for index in range(len(source))]
    names = list(dict.fromkeys(of))
    path = dict(zip(names, window_merging.files(target, names, task.prediction.drawn), strict=True))
    return [path[name] for name in of]


@dataclasses.dataclass
class Job:
    """One prediction under way."""

    run: Run
    request: Request
    source: Any
    files: list[pathlib.Path]  # to render to, one for each example; [] = none
    stage_data: Any
    variables: Any
    program: EvalStep
    emit: Callable[[str], None]
    failed: dict[int, str] = dataclasses.field(default_factory=dict)
    told: set[int] = dataclasses.field(default_factory=set)

    def whole(self) -> None:
        """Each recording as one example."""
        config, task = self.run.config, self.run.task
        size = eval_size(config)
        stream = eval_batches(
            config, task, self.source, self.stage_data, PREDICT, size, failed=self.failed
        )
        for numbers, found in self.found(stream):
            for number, row in zip(numbers.tolist(), found, strict=True):
                self.emit(json.dumps({"id": self.source.ids[number], **row[1]}))
                if self.files:
                    self.draw(number, [{"start": 0.0, "end": float("inf"), **row[1]}])
            self.tell()
        self.tell()

    def joined(self) -> None:
        """Examples that are parts of recordings, a line for each recording that is read whole."""
        config, task, source = self.run.config, self.run.task, self.source
        assert task.prediction.recording is not None
        size = eval_size(config)
        stream = eval_batches(
            config, task, source, self.stage_data, PREDICT, size, failed=self.failed
        )
        program = make_eval_step(task, PREDICT)
        name, kept, first = "", list[dict[str, np.ndarray]](), 0

        def close() -> None:
            assert task.prediction.recording is not None
            # A list, because the thread that reads ahead may add to it.
            if kept and name not in {
                task.prediction.recording(source[i]) for i in list(self.failed)
            }:
                whole = {key: np.stack([row[key] for row in kept]) for key in kept[0]}
                found = self.describe(whole)
                self.emit(json.dumps({"id": name, **found}))
                if self.files:
                    self.draw(first, [{"start": 0.0, "end": float("inf"), **found}])

        for numbers, _, rows in results(program, self.variables, stream, self.run.mesh):
            for place, number in enumerate(numbers.tolist()):
                part = task.prediction.recording(source[number])
                if part != name:
                    close()
                    name, kept, first = part, [], number
                kept.append({key: array[place] for key, array in rows.items()})
            self.tell()
        close()
        self.tell()

    def windowed(self) -> None:
        """Each recording window by window, those of several recordings filling one batch."""
        waiting: dict[int, tuple[int, float, float]] = {}  # window -> recording, start, end (s)
        kept: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
        rows: dict[int, list[dict[str, np.ndarray]]] = collections.defaultdict(list)
        last = -1
        stream = read_ahead(self.batches(waiting))
        for numbers, found in self.found(stream):
            for number, (row, described) in zip(numbers.tolist(), found, strict=True):
                record, start, end = waiting.pop(number)
                if record != last and last >= 0:
                    self.close(last, kept.pop(last), rows.pop(last))
                last = record
                line = {"start": round(start, 3), "end": round(end, 3), **described}
                self.emit(json.dumps({"id": self.source.ids[record], **line}))
                kept[record].append(line)
                rows[record].append(row)
            self.tell()
        if last >= 0:
            self.close(last, kept.pop(last), rows.pop(last))
        self.tell()

    def found(self, stream: Generator[dict[str, np.ndarray], None, None]) -> Any:
        """(numbers, [(row, described)]) of each batch."""
        for numbers, _, rows in results(self.program, self.variables, stream, self.run.mesh):
            each = [{name: array[i] for name, array in rows.items()} for i in range(len(numbers))]
            yield numbers, [(row, self.describe(row)) for row in each]

    def describe(self, row: dict[str, np.ndarray]) -> dict[str, Any]:
        """What is printed of one example's rows."""
        return self.run.task.prediction.describe(row, top=self.request.top)

    def batches(
        self, waiting: dict[int, tuple[int, float, float]]
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """Batches of windows, as `eval_batches` gives them of examples; `id` counts the windows."""
        task = self.run.task
        size, parts = eval_size(self.run.config), task.evaluation.parts(PREDICT)
        shapes = task.training.shapes(self.stage_data, PREDICT)

        def batch(group: list[tuple[int, Any]], part: int) -> dict[str, np.ndarray]:
            full = {n: np.zeros((size, *shape), dtype) for n, (shape, dtype) in shapes.items()}
            full |= {"id": np.full(size, -1, np.int32), "mask": np.arange(size) < len(group)}
            for place, (number, window) in enumerate(group):
                full["id"][place] = number
                try:
                    found = window.arrays(part)
                except UserError as error:
                    self.failed[records[number]] = str(error)
                    full["mask"][place] = False
                    continue
                for name, array in found.items():
                    full[name][place] = array
            return full

        group: list[tuple[int, Any]] = []
        records: dict[int, int] = {}  # of the windows in the group
        count = 0
        for record in range(len(self.source)):
            for window in self.windows(record):
                waiting[count] = record, window.start, window.end
                records[count] = record
                group.append((count, window))
                count += 1
                if len(group) == size:
                    yield from (batch(group, part) for part in range(parts))
                    group, records = [], {}
        if group:
            yield from (batch(group, part) for part in range(parts))

    def windows(self, record: int) -> Iterator[Any]:
        """The windows of a recording, up to where it cannot be read."""
        task, request = self.run.task, self.request
        assert task.prediction.windows is not None
        try:
            windows = task.prediction.windows(self.source[record], request.window, request.stride)
        except UserError as error:
            self.failed[record] = str(error)
            return
        while True:
            try:
                window = next(windows, None)
            except UserError as error:
                self.failed[record] = str(error)
                return
            if window is None:
                return
            yield window

    def close(
        self, record: int, kept: list[dict[str, Any]], rows: list[dict[str, np.ndarray]]
    ) -> None:
        """The line of a whole recording: what its windows come to. None of one that broke off."""
        if record in self.failed:
            return
        mean = {name: np.stack([row[name] for row in rows]).mean(0) for name in rows[0]}
        tiles = window_merging.tiled(kept)
        timeline = [
            {name: piece[name] for name in ("start", "end", "name", "probability")}
            for piece in window_merging.merged(tiles)
        ]
        whole = {"windows": len(rows), **self.describe(mean), "timeline": timeline}
        self.emit(json.dumps({"id": self.source.ids[record], **whole}))
        if self.files:
            self.draw(record, tiles)

    def draw(self, record: int, tiles: list[dict[str, Any]]) -> None:
        """Writes the video of one recording."""
        assert self.run.task.prediction.render is not None
        try:
            path = self.files[record]
            self.run.task.prediction.render(
                self.source[record], path, tiles, self.request.render_size
            )
        except UserError as error:
            self.failed[record] = str(error)

    def tell(self) -> None:
        """Names what has failed since the last time, a line each."""
        for record in sorted(set(list(self.failed)) - self.told):
            if len(self.source) > 1:
                say(f"left out: {self.failed[record]}")
            self.told.add(record)

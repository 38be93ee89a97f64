"""Frames a second of sliding-window prediction on real files, decoding included; prints a table.

    python scripts/bench/predict.py --config=configs/x3d.py:fight_surv --workdir=runs/fights \\
      --input=videos [--poses=FILE] [--window=2] [--stride=1] [--checkpoint=...]

Rows of one file each: `decode` is reading and converting all its frames, `feed` the windows cut,
resized and stacked, `predict` both and the network. Frames are those of the file, however many a
window samples. The first file is run once before, so that compiling does not count.
"""

import pathlib
import sys
import time

import numpy as np

from jaxact import main as command
from jaxact.config import UserError
from jaxact.data import video
from jaxact.modes import predict
from jaxact.tasks.action import eval_views
from jaxact.train import restore
from jaxact.train.run import open_run
from jaxact.train.step import make_eval_step


class One:
    """A source of one of the examples of another."""

    def __init__(self, source, record: int):
        self.source, self.record, self.ids = source, record, [source.ids[record]]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        return self.source[self.record]


def seconds(work) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def decode(path: str) -> int:
    """Reads every frame once, in pieces of bounded size; returns how many."""
    with video.Video(path, threads=0) as opened:
        for _ in eval_views.decoded(opened, np.arange(opened.frames)):
            pass
        return opened.frames


def main() -> None:
    command.parse(sys.argv)
    config = predict.with_names(
        command.loaded_config(),
        pathlib.Path(command.WORKDIR.value or "."),
        command.CHECKPOINT.value,
    )
    run = open_run(config, pathlib.Path(command.WORKDIR.value or "."))
    window, stride = command.WINDOW.value or 2.0, command.STRIDE.value
    task, poses = run.task, command.POSES.value
    given = (command.INPUT.value, poses) if poses else (command.INPUT.value,)
    source = task.prediction.example(*given)
    stage = run.plan(1).rows[-1].stage_data
    variables, _ = restore.load(run, command.CHECKPOINT.value, stage)
    parts = task.evaluation.parts("predict")

    def feed(example) -> None:
        for sample in task.prediction.windows(example, window, stride):
            for part in range(parts):
                sample.arrays(part)

    program = make_eval_step(task, restore.PREDICT)
    request = predict.Request("", "", window, stride)

    def whole(record: int) -> None:
        one = One(source, record)
        job = predict.Job(run, request, one, [], stage, variables, program, len)
        predict.predict_windows(job)

    whole(0)
    print(f"window {window} s, stride {stride} s, {eval_views.text(config.data, 'predict')}")
    print(
        f"{'file':<28} {'frames':>6} {'px':>9} {'decode':>8} {'feed':>8} {'predict':>8}  (frames/s)"
    )
    for record, name in enumerate(source.ids):
        example = source[record]
        with video.Video(example.video) as opened:
            frames, (height, width) = opened.frames, opened.size
        times = [
            min(seconds(work) for _ in range(3))
            for work in (
                lambda e=example: decode(e.video),
                lambda e=example: feed(e),
                lambda r=record: whole(r),
            )
        ]
        rates = " ".join(f"{frames / spent:8.0f}" for spent in times)
        print(f"{pathlib.Path(name).name:<28} {frames:6} {f'{width}x{height}':>9} {rates}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

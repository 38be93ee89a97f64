"""Detection on long videos: frames a second with and without decoding, and peak memory.

    python scripts/bench/long_detection.py --config=configs/adatad.py:composed --minutes 1 10

Writes videos of that many minutes (moving noise, `--size` px, 30 fps, h264), and predicts each in a
process of its own with weights as they are drawn. Rows: all frames of the file over the seconds of
`decode` (reading and cropping every window, as the windows overlap most frames twice), `network`
(the windows' batches computed, their frames in memory), `both` (what `--mode=predict` does), and
the process's peak of resident memory during the last, after a short video has been through it (so
that compiling does not count; read from /proc, Linux only).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxact import config as schema
from jaxact.data import video
from jaxact.modes import predict
from jaxact.train import mesh
from jaxact.train.restore import PREDICT
from jaxact.train.run import eval_size, initial_variables, open_run
from jaxact.train.step import make_eval_step

FPS = 30.0


def noise(minutes: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames u8[h, w, 3] of a camera over a texture."""
    rng = np.random.default_rng(0)
    height, width = size
    cells = rng.integers(0, 256, (height // 8 + 40, width // 8 + 40, 3), np.uint8)
    scene = cells.repeat(8, 0).repeat(8, 1)
    for t in range(round(60 * minutes * FPS)):
        y, x = (int(150 + 149 * np.sin(t / each)) for each in (97.0, 61.0))
        yield scene[y : y + height, x : x + width]


def peak(reset: bool = False) -> float:
    """MiB of resident memory at its peak, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def measure(recipe: str, short: Path, path: Path) -> dict[str, Any]:
    """One row."""
    config = schema.load(*recipe.split(":", 1))
    run = open_run(config, Path("."))
    task, stage = run.task, run.plan(100).rows[-1].stage_data
    variables = initial_variables(run, stage)
    program = make_eval_step(task, PREDICT)

    def whole(file: Path) -> float:
        source = task.prediction.example(str(file))
        lines: list[str] = []
        request = predict.Request(str(file))
        job = predict.Job(run, request, source, [], stage, variables, program, lines.append)
        begin = time.perf_counter()
        predict.predict_joined(job)
        assert len(lines) == 1, job.failed
        return time.perf_counter() - begin

    whole(short)
    peak(reset=True)
    both = whole(path)
    memory = peak()
    source = task.prediction.example(str(path))
    rng = np.random.default_rng(0)
    begin = time.perf_counter()
    for index in range(len(source)):
        window = task.training.prepare(source[index], rng, stage, PREDICT)
    decode = time.perf_counter() - begin
    size = eval_size(config)
    arrays = {name: np.stack([array] * size) for name, array in window.items()}
    arrays |= {"id": np.arange(size, dtype=np.int32), "mask": np.ones(size, bool)}
    batches = -(-len(source) // size)
    batch = mesh.split(arrays, run.mesh)
    jax.block_until_ready(program.whole(variables, batch))
    begin = time.perf_counter()
    for _ in range(batches):
        jax.block_until_ready(program.whole(variables, batch))
    network = time.perf_counter() - begin
    with video.Video(path) as opened:
        frames = opened.frames
    return {
        "frames": frames,
        "windows": len(source),
        **{
            f"{name}_frames_per_s": round(frames / seconds, 1)
            for name, seconds in (("decode", decode), ("network", network), ("both", both))
        },
        "peak_mib": round(memory),
    }


def main() -> int:
    """Prints a JSON line for each length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/adatad.py:composed")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--size", type=int, nargs=2, default=[90, 160], metavar=("H", "W"))
    parser.add_argument("--files", type=Path, nargs=2, help=argparse.SUPPRESS)  # of a child
    options = parser.parse_args()
    if options.files:
        print(json.dumps(measure(options.config, *options.files)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        short = Path(folder) / "short.mp4"
        video.write(short, noise(0.2, options.size), FPS)
        for minutes in options.minutes:
            path = Path(folder) / f"{minutes:g}.mp4"
            video.write(path, noise(minutes, options.size), FPS)
            command = [sys.executable, __file__, f"--config={options.config}"]
            child = subprocess.run(
                [*command, "--files", str(short), str(path)], stdout=subprocess.PIPE, check=True
            )
            print(json.dumps({"minutes": minutes, **json.loads(child.stdout)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Times the preparation of shards and reading from them beside files; prints JSON lines.

    python scripts/bench/shards.py [--clips 1000] [--source DIR] [--folder build/bench_shards]

Run it with a Python that has Beam. Without a source 16 clips of 300 frames (320x240 h264) are
written, which stand under as many names as wanted. Preparation: seconds on the clock and of CPU,
all processes together; `start` is a run that makes one shard of one clip. Reading: milliseconds of
CPU a clip (which hold on a busy machine), medians of rounds in which files and shards take turns,
in one random order, one thread, everything in the page cache.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decode import moving_camera

from jaxact.data import media, video

SCRIPT = Path(__file__).parents[1] / "prepare_shards.py"
SUFFIXES = (".mp4", ".avi", ".mkv", ".webm")


def clips(folder: Path, source: Path | None, count: int) -> Path:
    """`count` names of a few clips (hard links)."""
    kept = sorted(source.rglob("*")) if source else []
    kept = [path for path in kept if path.suffix in SUFFIXES]
    if not kept:
        scene = moving_camera()
        for number in range(16):
            path = folder / "distinct" / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                video.write(path, scene[:, :, :: 1 if number % 2 else -1] + number, 30, gop=48)
            kept.append(path)
    out = folder / "clips"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for number in range(count):
        path = kept[number % len(kept)]
        place = out / f"{number:06d}{path.suffix}"
        try:
            os.link(path, place)
        except OSError:  # another file system, or not ours
            shutil.copy(path, place)
    return out


def prepare(source: Path, out: Path, *flags: str) -> dict[str, float]:
    """Seconds of a run, on the clock and of CPU."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, str(SCRIPT), "--source", str(source), "--out", str(out), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": time.perf_counter() - start, "cpu_s": cpu}


def timed(function: Callable[[str], Any], names: list[str]) -> float:
    """Milliseconds of CPU for each name."""
    start = time.process_time()
    for name in names:
        function(name)
    return 1e3 * (time.process_time() - start) / len(names)


def frames(path: str) -> None:
    """16 frames spread over a clip."""
    with video.Video(path) as opened:
        opened.read([k * opened.frames // 16 for k in range(16)])


def main() -> None:
    """Prepares, reads, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--source", type=Path, help="folder of videos")
    parser.add_argument("--folder", type=Path, default=Path("build/bench_shards"))
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--short_side", type=int, default=120, help="px")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    source = clips(options.folder, options.source, options.clips)
    paths = sorted(source.iterdir())
    say("source", {"clips": len(paths), "bytes": sum(path.stat().st_size for path in paths)})
    out, shards = options.folder / "set", f"--shards={options.shards}"
    for name in ("set", "unchecked", "small", "one"):
        shutil.rmtree(options.folder / name, ignore_errors=True)
    say("start", prepare(source, options.folder / "one", "--pattern", paths[0].name, "--shards=1"))
    say("prepare", prepare(source, out, shards))
    say("again, all kept", prepare(source, out, shards))
    say("unchecked", prepare(source, options.folder / "unchecked", shards, "--check=off"))
    order = [path.name for path in paths]
    random.Random(0).shuffle(order)
    places = {"files": str(source.absolute()), "shards": f"shards:{out.absolute()}"}
    for what, function, count in (("read", media.read, len(order)), ("16 frames", frames, 100)):
        rounds: dict[str, list[float]] = {place: [] for place in places}
        for _ in range(options.rounds):
            for place, folder in places.items():
                names = [f"{folder}/{name}" for name in order[:count]]
                rounds[place].append(timed(function, names))
        say(f"{what}, ms of CPU", {place: statistics.median(v) for place, v in rounds.items()})
    short = f"--short_side={options.short_side}"
    few = prepare(source, options.folder / "small", "--pattern", "0000[0-4]*", shards, short)
    say(f"50 clips to {options.short_side} px", few)


def say(what: str, numbers: dict[str, float]) -> None:
    """A line of JSON."""
    print(json.dumps({what: numbers}), flush=True)


if __name__ == "__main__":
    main()

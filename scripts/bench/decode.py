"""Times `jaxact.data.video` against plain PyAV on one file and prints JSON (milliseconds, medians).

    python scripts/bench/decode.py [--video FILE] [--repeats 9]

Without a file it writes one: 300 frames of 320x240 h264, a key every 48, a moving camera. The plain
reader decodes from the start and converts the wanted frames with `to_ndarray`; `first` includes
making the index, `again` finds it in memory. The variants take turns, so their ratios hold on a
busy machine where the milliseconds do not.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from jaxact.data import frame_index
from jaxact.data.video import Video, write


def moving_camera(frames: int = 300, height: int = 240, width: int = 320) -> np.ndarray:
    """Frames u8[t, h, w, 3] of a camera that pans over coarse and fine texture, with noise."""
    rng = np.random.default_rng(0)
    area = (width + frames, height + frames // 3)
    scene = np.zeros((area[1], area[0], 3), np.float32)
    for cell, weight in ((40, 0.6), (8, 0.3), (2, 0.1)):
        cells = rng.integers(0, 256, (area[1] // cell, area[0] // cell, 3), np.uint8)
        scene += weight * np.asarray(Image.fromarray(cells).resize(area), np.float32)
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        view = scene[t // 3 : t // 3 + height, t : t + width]
        clip[t] = np.clip(view + rng.normal(0, 2, (height, width, 1)), 0, 255)
    return clip


def plain(path: Path, indices: list[int]) -> np.ndarray:
    """The wanted frames (rising) as anyone would get them with PyAV."""
    wanted, last, frames = set(indices), indices[-1], []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number == last:
                break
    return np.stack(frames)


def ours(path: Path, indices: list[int], forget: bool) -> np.ndarray:
    """The same with `Video`; `forget` drops the remembered index first."""
    if forget:
        frame_index._cache.clear()
    with Video(path) as video:
        return video.read(indices)


def measure(path: Path, repeats: int) -> dict:
    """Milliseconds and ratios of each way of reading the file."""
    with Video(path) as video:
        frames, size = video.frames, video.size
    middle = frames // 2
    reads = {
        "all frames": list(range(frames)),
        "48 uniform": sorted({i * frames // 48 for i in range(48)}),
        "16 from the middle": list(range(middle, min(middle + 16, frames))),
    }
    table = {}
    for name, indices in reads.items():
        ways = {
            "plain": lambda i=indices: plain(path, i),
            "first": lambda i=indices: ours(path, i, True),
            "again": lambda i=indices: ours(path, i, False),
        }
        truth = ways["plain"]()
        times: dict[str, list[float]] = {way: [] for way in ways}
        exact = all(np.array_equal(read(), truth) for read in ways.values())
        for _ in range(repeats):
            for way, read in ways.items():
                start = time.perf_counter()
                read()
                times[way].append(1000 * (time.perf_counter() - start))
        row = {way: round(statistics.median(spent), 1) for way, spent in times.items()}
        table[name] = {
            **row,
            "exact": exact,
            "speedup": round(row["plain"] / row["again"], 2),
        }
    return {"file": path.name, "frames": frames, "size": size, "ms": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, help="the file to read (default: a generated one)")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.video
        if path is None:
            path = Path(folder) / "moving_camera.mp4"
            write(path, moving_camera(), 30, gop=48)
        print(json.dumps(measure(path, arguments.repeats), indent=2))


if __name__ == "__main__":
    main()

"""Times the picture pipeline beside a plain Pillow loop and PyTorch's DataLoader, prints JSON.

    python scripts/bench/images.py --annotations labels.csv [--images DIR] \
        [--torch-python PYTHON_WITH_TORCHVISION] [--sizes 96 224] [--count 1000] [--rounds 5]

Each contestant reads the same training pictures in the same order, makes u8 batches of 32 of them
and runs in a process of its own, held to one core, without worker processes; they take turns. The
figure is pictures per second of CPU time, the median of the rounds (a busy machine stretches wall
time, not this). Kinds: `none` (resize), `light`, `full`. All draw the same changes with the same
probabilities: ours makes one warp and one colour matrix of them; the other two do one after another
as torchvision does, hue through HSV. `cached` is ours from its disk cache. `--enlarge 1200` first
writes the pictures anew with a shorter side of so many pixels, as cameras give them.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH = 32
KINDS = ("none", "light", "full")
# jitter (brightness, contrast, saturation, hue), its probability
JITTER = {"light": ((0.15, 0.15, 0.15, 0.05), 0.5), "full": ((0.2, 0.2, 0.2, 0.08), 0.7)}


def ours(files: list[str], side: int, kind: str, cache: str = "") -> Iterator[int]:
    """Sizes of batches made by `pipeline.train_batches`, one thread."""
    from types import SimpleNamespace

    from jaxact.config import Config, Input
    from jaxact.data import pipeline
    from jaxact.tasks.crop import dataset
    from jaxact.tasks.crop.annotations import Picture, PictureSource
    from jaxact.tasks.crop.config import Data

    data = Data(cache=side if cache else 0, cache_dir=cache)
    task: Any = SimpleNamespace(
        training=SimpleNamespace(
            sampler=None,
            arrange=None,
            prepare=lambda *arguments: dataset.prepare(data, *arguments),
            shapes=lambda *arguments: dataset.shapes(data, *arguments),
        )
    )
    source = PictureSource([Picture(file, file, 0) for file in files])
    stage = SimpleNamespace(size=side, augment=kind)
    config = Config(batch_size=BATCH, input=Input(threads=1))
    steps = len(files) // BATCH
    for batch in pipeline.train_batches(config, task, source, stage, 0, steps):
        yield len(batch["image"])


def plain(files: list[str], side: int, kind: str) -> Iterator[int]:
    """A loop with Pillow as one would write it."""
    import numpy as np
    from PIL import Image, ImageEnhance, ImageFilter

    def changed(image: Image.Image) -> Image.Image:
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if kind == "full":
            if random.random() < 0.2:
                image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            if random.random() < 0.5:
                x, y = (random.uniform(-0.05, 0.05) * side for _ in "xy")
                turned = image.rotate(
                    random.uniform(-25, 25), Image.Resampling.BILINEAR, translate=(x, y)
                )
                factor = 1 / random.uniform(0.9, 1.1)
                corner = side / 2 * (1 - factor)
                table = (factor, 0, corner, 0, factor, corner)
                image = turned.transform(
                    image.size, Image.Transform.AFFINE, table, Image.Resampling.BILINEAR
                )
        (light, gap, depth, hue), probability = JITTER[kind]
        if random.random() < probability:
            image = ImageEnhance.Brightness(image).enhance(random.uniform(1 - light, 1 + light))
            image = ImageEnhance.Contrast(image).enhance(random.uniform(1 - gap, 1 + gap))
            image = ImageEnhance.Color(image).enhance(random.uniform(1 - depth, 1 + depth))
            h, s, v = image.convert("HSV").split()
            turn = int(random.uniform(-hue, hue) * 255)
            h = h.point([(level + turn) % 256 for level in range(256)])
            image = Image.merge("HSV", (h, s, v)).convert("RGB")
        if kind == "full" and random.random() < 0.3:
            image = image.filter(ImageFilter.GaussianBlur(0.8))
        return image

    for start in range(0, len(files) // BATCH * BATCH, BATCH):
        batch = []
        for file in files[start : start + BATCH]:
            image = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            batch.append(np.asarray(image if kind == "none" else changed(image)))
        yield len(np.stack(batch))


def loader(files: list[str], side: int, kind: str) -> Iterator[int]:
    """PyTorch's DataLoader with torchvision's transforms on Pillow pictures."""
    import torch
    from PIL import Image
    from torchvision import transforms as T

    torch.set_num_threads(1)
    bilinear = T.InterpolationMode.BILINEAR
    steps: list[Any] = [T.Resize((side, side), bilinear)]
    if kind != "none":
        jitter, probability = JITTER[kind]
        colour = T.RandomApply([T.ColorJitter(*jitter)], probability)
        steps.append(T.RandomHorizontalFlip(0.5))
        if kind == "full":
            warp = T.RandomAffine(25, (0.05, 0.05), (0.9, 1.1), interpolation=bilinear)
            steps += [T.RandomVerticalFlip(0.2), T.RandomApply([warp], 0.5), colour]
            steps.append(T.RandomApply([T.GaussianBlur(3)], 0.3))
        else:
            steps.append(colour)
    change = T.Compose([*steps, T.PILToTensor()])

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            return change(Image.open(files[index]).convert("RGB"))

    for batch in torch.utils.data.DataLoader(Files(), BATCH, drop_last=True):
        yield len(batch)


CONTESTANTS = {"jaxact": ours, "cached": ours, "plain": plain, "torch": loader}


def contest(job: dict[str, Any]) -> dict[str, float]:
    """Runs one contestant in this process: pictures a second of CPU time, and of wall time."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    run, files = CONTESTANTS[job["name"]], job["files"]
    rest = (job["side"], job["kind"], *([job["cache"]] if job["name"] == "cached" else []))
    for _ in run(files if job["name"] == "cached" else files[: 2 * BATCH], *rest):
        pass  # imports, page cache, the disk cache
    cpu, wall = time.process_time(), time.perf_counter()
    count = sum(run(files, *rest))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": count / cpu, "wall": count / wall}


def enlarged(files: list[str], short: int, folder: Path) -> list[str]:
    """The pictures as JPEG of that shorter side."""
    from PIL import Image

    written = []
    for index, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        factor = short / min(image.size)
        size = (round(image.size[0] * factor), round(image.size[1] * factor))
        written.append(str(folder / f"{index:05d}.jpg"))
        image.resize(size, Image.Resampling.BICUBIC).save(written[-1], quality=90)
    return written


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The medians of all rounds, contestant beside contestant."""
    from jaxact.tasks.crop import dataset
    from jaxact.tasks.crop.config import Data

    data = Data(
        annotations=options.annotations, images=options.images, missing="allow", train_split="train"
    )
    everything = [p.path for p in dataset.source(data, "train").pictures]
    random.Random(0).shuffle(everything)
    files = everything[: options.count // BATCH * BATCH]
    if options.enlarge:
        files = enlarged(files, options.enlarge, folder)
    names = [name for name in CONTESTANTS if name != "torch" or options.torch_python]
    table: dict[str, Any] = {}
    for side in options.sizes:
        for kind in KINDS:
            rates_of: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(options.rounds):
                for name in names:
                    job = {"name": name, "side": side, "kind": kind, "files": files}
                    job["cache"] = str(folder / f"cache{side}")
                    python = options.torch_python if name == "torch" else sys.executable
                    ran = subprocess.run(
                        [python, __file__, "--job"],
                        input=json.dumps(job),
                        capture_output=True,
                        text=True,
                    )
                    if ran.returncode:
                        raise SystemExit(f"{name} failed:\n{ran.stderr}")
                    rates_of[name].append(json.loads(ran.stdout)["cpu"])
            row = {name: round(statistics.median(rates)) for name, rates in rates_of.items()}
            others = [row[name] for name in ("plain", "torch") if name in row]
            table[f"{kind} {side}"] = {**row, "ratio": round(row["jaxact"] / max(others), 2)}
            print(f"{kind} {side}: {table[f'{kind} {side}']}", file=sys.stderr, flush=True)
    return {"pictures": len(files), "rounds": options.rounds, "per second and core": table}


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--annotations", help="CSV, JSON or text list of pictures")
    parser.add_argument("--images", default="", help="their folder")
    parser.add_argument("--torch-python", default="", help="an interpreter with torchvision")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--count", type=int, default=1000, help="pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--enlarge", type=int, default=0, help="px of the shorter side")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(contest(json.load(sys.stdin))))
        return
    if not options.annotations:
        parser.error("--annotations is needed")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=2))


if __name__ == "__main__":
    main()

"""A handful of drawn leaves on disk: two crops, each healthy or spotted in two severities."""

import csv
import pathlib

import numpy as np
from PIL import Image

from jaxact import config as schema

ROOT = pathlib.Path(__file__).parents[1]
CLASSES = tuple(
    (f"{crop} {what}", crop, "healthy" if what == "healthy" else "spot", severity)
    for crop in ("apple", "bean")
    for what, severity in (("healthy", ""), ("spot mild", "1"), ("spot severe", "2"))
)
COUNTS = {"train": (8, 6, 4, 3, 2, 1), "val": (2, 2, 2, 1, 1, 1), "test": (2, 2, 1, 2, 1, 1)}


def draw(label: int, rng: np.random.Generator, side: int = 40) -> np.ndarray:
    """u8[h, w, 3]: a green square, its shade the crop, its spots the disease."""
    crop, grade = divmod(label, 3)
    image = np.full((side, side, 3), (60, 150, 60) if crop == 0 else (120, 170, 40), np.float64)
    image += rng.normal(0, 8, image.shape)
    for _ in range((0, 3, 12)[grade]):
        y, x = rng.integers(2, side - 6, 2)
        image[y : y + 4, x : x + 4] = (120, 70, 30)
    return np.clip(image, 0, 255).astype(np.uint8)


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes images/ and labels.csv; returns the CSV."""
    rng = np.random.default_rng(3)
    rows = []
    for split, counts in COUNTS.items():
        for label, count in enumerate(counts):
            for number in range(count):
                name = f"{split}{sum(counts[:label]) + number:02}.png"
                path = folder / "images" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw(label, rng)).save(path)
                rows.append((name, label, *CLASSES[label], split))
    path = folder / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "class_id", "class", "crop", "disease", "severity", "split"))
        writer.writerows(rows)
    return path


def small(annotations: pathlib.Path, variant: str = "tiny"):
    """A variant of the recipe on the drawn leaves, with the smallest network and few files."""
    config = schema.load(ROOT / "configs" / "crop.py", variant)
    config.data.annotations = str(annotations)
    config.data.class_table, config.data.missing = "", "error"
    config.data.cache, config.data.cache_dir = 0, ""
    config.model.backbone = "resnet10_w8"
    config.save.tensorboard = config.save.report = False
    return config

"""The drawn JRDB-Social: what it holds, the hard cases, the same set from the same seed."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxact.config import UserError
from jaxact.tasks.relation import jrdb, jrdb_splits, sample_data, spatial_features
from jaxact.tasks.relation.jrdb import Rules

SIZE = sample_data.SIZE
RULES = Rules(width=SIZE[0], height=SIZE[1])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    scenes = {"train": 8, "val": 1, "test": 1}
    return sample_data.write(folder, scenes, frames=2)


@pytest.fixture(scope="module")
def train(root):
    return jrdb.read(str(root), jrdb.splits("splits.json", str(root))["train"], RULES)


def test_what_it_holds(root, train):
    frames, counts = train
    assert len(frames) == 16 and counts["pairs kept"] == 16 * 5
    labels = [label for frame in frames for _, _, label in frame.pairs]
    assert set(labels) == {0, 1, 2}
    for frame in frames:
        with Image.open(frame.path) as image:
            assert image.size == SIZE and image.format == "JPEG"
    assert jrdb.splits("splits.json", str(root)).keys() == {"train", "val", "test"}


def test_hard_cases(root, train):
    frames, counts = train
    assert counts["partner absent"] and counts["box invalid"] and counts["name conversation"]
    width = SIZE[0]
    seam = [box for frame in frames for box in frame.boxes if box[0] + box[2] > width]
    assert seam and all(0 <= x < width for frame in frames for x, *_ in frame.boxes)
    both = jrdb.read(str(root), [frames[0].scene], RULES)[1]["pairs kept"]
    sides = jrdb.Rules(width=width, height=SIZE[1], sides="lower")
    scenes = {frame.scene for frame in frames}
    lower = jrdb.read(str(root), sorted(scenes), sides)[1]["pairs kept"]
    assert both == 10 and 0 < lower < counts["pairs kept"]
    visible = Rules(width=width, height=SIZE[1], visible=True)
    assert 0 < jrdb.read(str(root), sorted(scenes), visible)[1]["pairs kept"] < len(frames) * 5
    lonely = [f for f in frames if len({p for a, b, _ in f.pairs for p in (a, b)}) < len(f.people)]
    assert lonely


def test_boxes_are_where_the_people_are(train):
    """The upper half of a box holds colours, also over the seam; the bare wall is flat."""
    inside = []
    for frame in train[0]:
        picture = np.asarray(Image.open(frame.path)).astype(float)
        grey = picture.mean(-1)
        for x, y, w, h in frame.boxes:
            rows = slice(int(y), int(y + 0.5 * h))
            columns = np.arange(int(x), int(x + w)) % SIZE[0]
            inside.append(grey[rows][:, columns].std())
    assert np.mean(np.array(inside) > 10) > 0.9  # the wall's noise: below 5


def test_geometry_says_a_part_only(train):
    """A box has no posture's shape, but those who sit are closer to each other."""
    sizes, gaps = [], []
    for frame in train[0]:
        for a, b, label in frame.pairs:
            found = spatial_features.geometric(frame.boxes[a], frame.boxes[b], SIZE)
            sizes += [(label, box[2] / box[3], box[3]) for box in (frame.boxes[a], frame.boxes[b])]
            gaps.append((label, found[5]))
    sizes, gaps = np.array(sizes), np.array(gaps)
    shape = [sizes[sizes[:, 0] == k, 1].mean() for k in range(3)]
    assert max(shape) - min(shape) < 0.02
    distance = [gaps[gaps[:, 0] == k, 1] for k in range(3)]
    assert distance[2].mean() < distance[0].mean()
    assert distance[2].max() > distance[0].min()  # they overlap


def test_the_same_seed_draws_the_same_set(root, tmp_path):
    again = sample_data.write(tmp_path / "again", {"train": 1, "val": 0, "test": 0}, frames=2)
    name = "train-place-00"
    for path in (jrdb_splits.LABELS + f"/{name}.json", f"{jrdb_splits.IMAGES}/{name}/000001.jpg"):
        assert (again / path).read_bytes() == (root / path).read_bytes()
    other = sample_data.write(
        tmp_path / "other", {"train": 1, "val": 0, "test": 0}, frames=1, seed=1
    )
    path = f"{jrdb_splits.LABELS}/{name}.json"
    ours, theirs = (json.loads((r / path).read_text())["labels"] for r in (root, other))
    assert ours["000000.jpg"] != theirs["000000.jpg"]


def test_mistakes(root, tmp_path):
    for options in ({"size": (1200, 50)}, {"couples": 20}, {"frames": 0}):
        with pytest.raises(UserError, match="allowed: 96 px of height or more, 120 px of width"):
            sample_data.write(tmp_path / "bad", **options)
    with pytest.raises(UserError, match="holds scenes already"):
        sample_data.write(root)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/set cannot be made: Not a directory"):
        sample_data.write(tmp_path / "file" / "set")
    with pytest.raises(UserError, match=r"scenes train -1; allowed: 0 or more"):
        sample_data.write(tmp_path / "bad", {"train": -1})

"""Turns two public pose packs into pose pickles for `configs/x3d.py` and the like.

    python scripts/prepare_pose.py jhmdb --source DIR --out FILE.pkl
    python scripts/prepare_pose.py openpose --source DIR --out FILE.pkl

`jhmdb`: 609 clips, 14 classes, 15 hand-annotated joints; splits split{1,2,3}_{train,test}, and
split{1,2,3}_{fit,dev}, the training part cut in two (every fifth clip of a class) to choose
settings on.
`openpose`: 112 exercise clips, 8 classes, 17 detected joints; splits fold{0..4}_{train,test}.
The pickle holds "split", "annotations", and by name "joints" and "classes".
"""

import argparse
import itertools
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.action.skeletons import COCO17, JHMDB15

JHMDB_SIZE = (240, 320)  # (h, w) px of the nominal frame, the size of most JHMDB videos
OPENPOSE_SIZE = (720, 1280)
FOLDS = 5


def load(source: Path, name: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named arrays of an archive. Raises: UserError for an absent file or array."""
    path = source / name
    if not path.is_file():
        raise UserError(f"{path}: no such file; --source is the folder that holds {name}")
    with np.load(path, allow_pickle=False) as archive:
        missing = [key for key in keys if key not in archive.files]
        if missing:
            raise UserError(f"{path}: lacks the arrays {', '.join(missing)}")
        return {key: archive[key] for key in keys}


def sequences(rows: np.ndarray, offsets: np.ndarray) -> Iterator[np.ndarray]:
    """The clips one by one: [all frames, j, c] -> [1, t, j, c] each."""
    for start, end in itertools.pairwise(offsets):
        yield rows[start:end][None]


def record(
    name: str, label: int, size: tuple[int, int], keypoint: np.ndarray, score: np.ndarray
) -> dict[str, Any]:
    """One annotation in the pickle's form."""
    return {
        "frame_dir": name,
        "label": int(label),
        "img_shape": size,
        "original_shape": size,
        "total_frames": keypoint.shape[1],
        "keypoint": keypoint.astype(np.float32),
        "keypoint_score": score.astype(np.float32),
    }


def jhmdb(source: Path) -> dict[str, Any]:
    """The JHMDB joints, in pixels of a nominal frame.

    The pack gives position minus the frame's middle, over frame size and puppet scale. The scale is
    not in it, so a person has one size in all clips and some joints fall outside the frame, also
    below 0; a compact crop fits the frame to them.
    """
    data = load(
        source,
        "jhmdb_pose.npz",
        ("keypoints_norm", "offsets", "label", "split", "classes", "joints"),
    )
    if tuple(data["joints"].tolist()) != JHMDB15.joints:
        raise UserError(f"{source}/jhmdb_pose.npz: joints are not in the order of jhmdb15")
    height, width = JHMDB_SIZE
    pixels = (data["keypoints_norm"] + 0.5) * np.array([width, height], np.float32)
    pixels[pixels == 0] = 1e-3  # 0 would read as "not detected", and every joint here is known
    classes = [str(name) for name in data["classes"]]
    annotations, count = [], [0] * len(classes)
    for label, keypoint in zip(data["label"], sequences(pixels, data["offsets"]), strict=True):
        name = f"{classes[label]}_{count[label]:03d}"
        count[label] += 1
        annotations.append(record(name, label, JHMDB_SIZE, keypoint, np.ones(keypoint.shape[:3])))
    names = [annotation["frame_dir"] for annotation in annotations]
    splits = {
        f"split{i + 1}_{side}": [
            name for name, code in zip(names, data["split"][:, i], strict=True) if code == mark
        ]
        for i in range(data["split"].shape[1])
        for mark, side in ((1, "train"), (2, "test"))
    }
    label = {annotation["frame_dir"]: annotation["label"] for annotation in annotations}
    for i in range(data["split"].shape[1]):
        splits |= cut(splits[f"split{i + 1}_train"], label, f"split{i + 1}")
    return {
        "split": splits,
        "annotations": annotations,
        "joints": list(JHMDB15.joints),
        "classes": classes,
    }


def cut(names: list[str], label: dict[str, int], split: str) -> dict[str, list[str]]:
    """A training part in two: every fifth clip of each class is `dev`, the rest `fit`."""
    seen: dict[int, int] = {}
    parts: dict[str, list[str]] = {f"{split}_fit": [], f"{split}_dev": []}
    for name in names:
        place = seen.get(label[name], 0)
        seen[label[name]] = place + 1
        parts[f"{split}_dev" if place % FOLDS == FOLDS - 1 else f"{split}_fit"].append(name)
    return parts


def openpose(source: Path) -> dict[str, Any]:
    """The OpenPose exercise clips; fold k tests every fifth clip of each class.

    Deterministic: clips get their folds in the order of names, and each class continues where the
    one before stopped, so folds differ by at most one clip in size and in each class.
    """
    data = load(
        source, "openpose_exercise.npz", ("keypoints", "offsets", "label", "classes", "name")
    )
    names = [str(name) for name in data["name"]]
    annotations = [
        record(name, label, OPENPOSE_SIZE, rows[..., :2], rows[..., 2])
        for name, label, rows in zip(
            names, data["label"], sequences(data["keypoints"], data["offsets"]), strict=True
        )
    ]
    dealt = sorted(range(len(names)), key=lambda i: (int(data["label"][i]), names[i]))
    fold = {names[i]: place % FOLDS for place, i in enumerate(dealt)}
    splits = {
        f"fold{k}_{side}": [name for name in names if (fold[name] == k) == (side == "test")]
        for k in range(FOLDS)
        for side in ("train", "test")
    }
    label = {annotation["frame_dir"]: annotation["label"] for annotation in annotations}
    for k in range(FOLDS):
        splits |= cut(splits[f"fold{k}_train"], label, f"fold{k}")
    return {
        "split": splits,
        "annotations": annotations,
        "joints": list(COCO17.joints),
        "classes": [str(name) for name in data["classes"]],
    }


PACKS = {"jhmdb": jhmdb, "openpose": openpose}


def main(arguments: list[str] | None = None) -> int:
    """Writes the pickle and prints what is in it; returns 2 for the user's mistakes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", choices=PACKS)
    parser.add_argument("--source", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--out", type=Path, required=True, help="pickle to write")
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix not in (".pkl", ".pickle"):
            raise UserError(f"--out {options.out}: suffix must be .pkl or .pickle")
        data = PACKS[options.pack](options.source)
    except UserError as error:
        print(f"prepare_pose: {error}", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "wb") as file:
        pickle.dump(data, file, protocol=4)
    print(f"{options.out}: {len(data['annotations'])} clips, {len(data['classes'])} classes")
    for name, ids in data["split"].items():
        print(f"  {name}: {len(ids)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

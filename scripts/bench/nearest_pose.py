"""Nearest neighbour on joints, the baseline of a pose stream: top-1 of each pair of splits.

    python scripts/bench/nearest_pose.py --annotations openpose.pkl --classes 8 --joints coco17 \
        --splits fold0_train:fold0_test fold1_train:fold1_test

The first person's joints, undetected ones filled in along time, moved to the middle of the
shoulders, divided by the mean distance from it, 24 frames spread evenly; Euclidean distance.
"""

import argparse
import sys

import numpy as np

from jaxact.config import UserError
from jaxact.tasks.action import annotations, skeletons

FRAMES = 24


def features(keypoint: np.ndarray, score: np.ndarray, middle: list[int]) -> np.ndarray:
    """f64[frames * j * 2] of one person: keypoint f32[t, j, 2] px, score f32[t, j]."""
    times = np.arange(len(keypoint))
    joints = np.zeros(keypoint.shape, np.float64)
    for joint in range(keypoint.shape[1]):
        seen = score[:, joint] > 0
        for axis in (0, 1):
            known = keypoint[seen, joint, axis]
            joints[:, joint, axis] = np.interp(times, times[seen], known) if seen.any() else np.nan
    joints -= np.nanmean(joints[:, middle], 1, keepdims=True)
    size = np.linalg.norm(np.nan_to_num(joints), axis=-1).mean()
    picked = np.linspace(0, len(times) - 1, FRAMES).round().astype(int)
    return np.nan_to_num(joints / max(size, 1e-9))[picked].ravel()


def main() -> int:
    """Prints the accuracy of each pair, their mean and deviation; 2 for the user's mistakes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", required=True, help="as config.data.annotations")
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--joints", default="coco17", help="as config.data.skeleton")
    parser.add_argument("--splits", nargs="+", required=True, help="TRAIN:TEST")
    options = parser.parse_args()
    rates = []
    try:
        skeleton = skeletons.find(options.joints)
        middle = [i for i, name in enumerate(skeleton.joints) if name.endswith("shoulder")]
        for pair in options.splits:
            sides = []
            for split in pair.split(":"):
                clips = annotations.read(
                    options.annotations, split, classes=options.classes, skeleton=skeleton
                )
                table = [features(c.keypoint[0], c.score[0], middle) for c in clips]
                sides.append((np.stack(table), np.array([c.label for c in clips])))
            (known, labels), (asked, truth) = sides
            distance = ((asked[:, None] - known[None]) ** 2).sum(-1)
            rates.append(float((labels[distance.argmin(1)] == truth).mean()))
            print(f"{pair}: {100 * rates[-1]:.1f} % of {len(truth)}")
    except UserError as error:
        print(f"nearest_pose: {error}", file=sys.stderr)
        return 2
    spread = np.std(rates, ddof=1) if len(rates) > 1 else 0.0
    print(f"mean {100 * np.mean(rates):.1f} %, deviation {100 * spread:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Draws a small set in the layout of JRDB-Social: panoramas, label files, a split by scenes.

    python scripts/prepare_scenes.py build/scenes [--scenes 48 12 24] [--frames 6] [--couples 5]

Train with --config=configs/relation.py:scenes --config.data.root=build/scenes; another size also
needs --config.data.size=W,H.
"""

import argparse
import sys
from pathlib import Path

from jaxact.config import UserError
from jaxact.tasks.relation import sample_data


def main(arguments: list[str] | None = None) -> int:
    """Draws the set; returns 2 for the user's mistakes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument(
        "--scenes", type=int, nargs=3, default=[48, 12, 24], help="in train, val, test"
    )
    parser.add_argument("--frames", type=int, default=6, help="of each scene")
    parser.add_argument("--couples", type=int, default=5, help="pairs in each frame")
    parser.add_argument("--size", type=int, nargs=2, default=[1200, 160], help="px, w and h")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    scenes = dict(zip(("train", "val", "test"), options.scenes, strict=True))
    try:
        sample_data.write(
            options.folder,
            scenes,
            options.frames,
            options.couples,
            tuple(options.size),
            options.seed,
        )
    except UserError as error:
        print(f"prepare_scenes: {error}", file=sys.stderr)
        return 2
    frames = sum(scenes.values()) * options.frames
    print(f"{options.folder}: {frames} panoramas, {frames * options.couples} pairs of people")
    return 0


if __name__ == "__main__":
    sys.exit(main())

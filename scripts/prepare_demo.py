"""Writes the demo's clips and their pose file: `python scripts/prepare_demo.py DIR`.

What is in them, and why one stream alone cannot pass 75 %: `jaxact/tasks/action/sample_data.py`.
"""

import argparse
import sys

from jaxact.config import UserError
from jaxact.tasks.action import sample_data


def main(arguments: list[str] | None = None) -> int:
    """Writes the set unless it is there already; returns 2 for the user's mistakes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="folder to write to")
    parser.add_argument("--train", type=int, default=320, help="training clips")
    parser.add_argument("--test", type=int, default=96, help="held-out clips")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        path = sample_data.write(
            options.directory, train=options.train, test=options.test, seed=options.seed
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {options.train} + {options.test} clips of {len(sample_data.CLASSES)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

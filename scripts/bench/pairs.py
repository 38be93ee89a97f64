"""Pairs a second of the input pipeline and its memory, keyed by frame against keyed by pair.

    python scripts/bench/pairs.py --data build/scenes [--size 1200 160] [--side 112]

Both read the same pairs of the training split in one process, in turns, through the pipeline that
training uses. Keyed by pair: any pair after any, each decodes its frame (as a data set of pairs
does). Keyed by frame: the recipe's order and its crops kept in memory. `--memory` MiB is what the
latter may keep. The peak is of the pixels kept and of the largest picture; the process as a whole
is given as well.
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from jaxact import config as schema
from jaxact import task as tasks
from jaxact.config import UserError
from jaxact.data.pipeline import train_batches
from jaxact.tasks.relation import crops
from jaxact.train import schedule

RECIPE = Path(__file__).parents[2] / "configs" / "relation.py"


def measured(config: Any, pairs: int) -> dict[str, float]:
    """Pairs a second, frames decoded and MiB kept, from an empty memory."""
    task = tasks.make(config)
    source = task.training.source("train")
    stage = schedule.resolve(config, 1).rows[-1].stage_data
    crops.KEPT.clear()
    decoded, decode, most = 0, crops.decode, 0

    def counting(path: str, size: tuple[int, int]) -> Any:
        nonlocal decoded
        decoded += 1
        return decode(path, size)

    crops.decode = counting
    steps = max(1, (min(pairs, len(source)) if pairs else len(source)) // config.batch_size)
    begin = time.perf_counter()
    try:
        for _ in train_batches(config, task, source, stage, 0, steps):
            most = max(most, crops.KEPT.bytes)
    finally:
        crops.decode = decode
    seconds = time.perf_counter() - begin
    read = steps * config.batch_size
    return {"pairs/s": read / seconds, "decoded": decoded, "pairs": read, "MiB": most / 2**20}


def main() -> int:
    """Measures both in turns and prints a Markdown table of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder in the layout of JRDB-Social")
    parser.add_argument("--splits", default="splits.json", help="fixed, or a file of scenes")
    parser.add_argument("--size", type=int, nargs=2, default=[1200, 160], help="px, w and h")
    parser.add_argument("--side", type=int, default=112, help="px of the crops")
    parser.add_argument("--pairs", type=int, default=0, help="read in each turn; 0 = an epoch")
    parser.add_argument("--memory", type=int, default=256, help="MiB of crops kept")
    parser.add_argument("--mix", type=int, default=64, help="frames mixed with each other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    config = schema.load(RECIPE, "scenes")
    config.data.root, config.data.splits = options.data, options.splits
    config.data.size = tuple(options.size)
    config.data.balance = "none"  # each pair once, so that both do the same
    config.stages[0].size = options.side
    config.input.threads = options.threads
    ways = {
        "keyed by pair": {"mix": 0, "memory": 0},
        "keyed by frame": {"mix": options.mix, "memory": options.memory},
    }
    measurements: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    try:
        for _ in range(options.turns):
            for name, fields in ways.items():
                for field, value in fields.items():
                    setattr(config.data, field, value)
                measurements[name].append(measured(config, options.pairs))
    except UserError as error:
        print(f"pairs: {error}", file=sys.stderr)
        return 2
    picture = options.size[0] * options.size[1] * 3 / 2**20
    print("| order | pairs/s | pictures decoded | for pairs | crops kept | one picture |")
    print("|---|---|---|---|---|---|")
    rate = {}
    for name, turns in measurements.items():
        rate[name] = statistics.median(turn["pairs/s"] for turn in turns)
        last = turns[-1]
        print(
            f"| {name} | {rate[name]:,.0f} | {last['decoded']:.0f} | {last['pairs']:.0f} | "
            f"{last['MiB']:.1f} MiB | {picture:.1f} MiB |"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{rate['keyed by frame'] / rate['keyed by pair']:.1f} times as fast; ", end="")
    print(f"the whole process at its largest: {peak:,.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Trains every variant of the pair classifier on the drawn scenes with the real command; one table.

    python scripts/prepare_scenes.py build/scenes
    python scripts/bench/relations.py --data build/scenes --out build/relations [--seeds 0 1 2]

The three fusions of the original and the interaction form, the two kinds of input by themselves,
and frozen networks: as they are drawn, or taken from the run on crops alone. Same scenes, epochs
and seeds for all; the scene split has other people in the test scenes. With several seeds a cell is
mean and deviation. A run that is there already is not trained again, and refused if it was made
with other scenes, epochs or seeds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

RECIPE = "configs/relation.py"

# title -> (variant, needs the crops run of the same seed to start from)
VARIANTS: dict[str, tuple[str, bool]] = {
    "spatial features alone": ("scenes_geometry", False),
    "crops alone": ("scenes_crops", False),
    "both, concat": ("scenes", False),
    "both, add": ("scenes_add", False),
    "both, bilinear": ("scenes_bilinear", False),
    "both, interaction": ("scenes_interaction", False),
    "both, concat, ResNet frozen as drawn": ("scenes_frozen", False),
    "both, concat, ResNet of the crops run, frozen": ("scenes_frozen", True),
    "both, concat, ResNet of the crops run, half frozen": ("scenes_half_frozen", True),
    "both, concat, ResNet of the crops run, all trained": ("scenes", True),
}
COLUMNS = ("acc", "mpca", "loss")


def run(variant: str, out: Path, flags: list[str]) -> dict[str, float]:
    """What results.json of a work dir holds, trained first if it is not there."""
    if not (out / "results.json").is_file():
        base = [f"--config={RECIPE}:{variant}", f"--workdir={out}", *flags]
        command = [sys.executable, "-m", "jaxact.main", *base]
        ended = subprocess.run(command, capture_output=True, text=True, env=os.environ.copy())
        out.with_suffix(".log").write_text(" ".join(command) + "\n" + ended.stdout + ended.stderr)
        if ended.returncode:
            print(ended.stderr[-2000:], file=sys.stderr)
            ended.check_returncode()
    results = json.loads((out / "results.json").read_text())
    made = json.loads((out / "config.json").read_text())["config"]
    wanted = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)
    for field, now in (
        ("length", made["length"]),
        ("seed", str(made["seed"])),
        ("data.root", made["data"]["root"]),
    ):
        if now != wanted[field]:
            raise SystemExit(f"{out} was trained with {field}={now!r}; remove it first")
    return {**results["scores"], "parameters": results["parameters"], "wall": results["wall_s"]}


def cell(values: list[float], percent: bool) -> str:
    """A mean, with the deviation where there are several."""
    scale = 100 if percent else 1
    text = f"{scale * statistics.mean(values):.{1 if percent else 3}f}"
    if len(values) > 1:
        text += f" ± {scale * statistics.stdev(values):.{1 if percent else 3}f}"
    return text


def main() -> int:
    """Trains what is missing and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of prepare_scenes.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the work dirs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=16)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print("| model | parameters | accuracy % | MPCA % | cross entropy |")
    print("|---|---|---|---|---|")
    for title, (variant, start) in VARIANTS.items():
        rows = []
        for seed in options.seeds:
            flags = [
                f"--config.data.root={options.data}",
                f"--config.length={options.epochs} epochs",
                f"--config.seed={seed}",
                "--config.save.report=False",
                "--config.save.tensorboard=False",
            ]
            if start:
                flags.append(f"--config.init_from={options.out / f'scenes_crops-{seed}'}")
            name = f"{variant}{'-started' if start else ''}-{seed}"
            rows.append(run(variant, options.out / name, flags))
        cells = [cell([row[c] for row in rows], c != "loss") for c in COLUMNS]
        print(f"| {title} | {rows[0]['parameters']:,.0f} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Trains every recogniser on the same generated clips with the real command; prints one table.

    python scripts/bench/recognisers.py --data build/demo/clips --out build/recognisers

Same clips (RGB 64 px, heatmaps 32 px), same epochs, same seed for all: streams alone, their late
fusion, RGBPoseConv3D started from the two single streams (its epochs come after theirs), X-Shift
with two streams, with pose attention (EPAM), and an ensemble. Weights of fusions are equal: nothing
is chosen on the test clips. A row that is there already is not trained again; step times are taken
at the end, in rounds over all models.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

BASELINE, OURS = "configs/rgbpose_conv3d.py", "configs/x3d.py"

# name -> (recipe, further flags, what it needs first)
TRAINED: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "rgb_only": (f"{BASELINE}:demo_rgb_only", (), ()),
    "pose_only": (f"{BASELINE}:demo_pose_only", (), ()),
    "fusion": (f"{BASELINE}:demo_fusion", (), ("rgb_only", "pose_only")),
    "xshift": (f"{OURS}:demo", (), ()),
    "epam": (f"{OURS}:demo", ("--config.model.attention=True",), ()),
}
FUSED: dict[str, tuple[str, ...]] = {
    "late fusion": ("rgb_only", "pose_only"),
    "ensemble": ("fusion", "xshift", "epam"),
}
TITLES = {
    "rgb_only": "SlowOnly, RGB alone",
    "pose_only": "SlowOnly, pose alone (PoseC3D)",
    "late fusion": "these two, late fusion 1:1",
    "fusion": "RGBPoseConv3D, started from the first two",
    "xshift": "X-Shift, two streams",
    "epam": "X-Shift, two streams, pose attention (EPAM)",
    "ensemble": "ensemble of the last three, equal weights",
}


def run(arguments: list[str], log: Path) -> str:
    """The output of one `python -m jaxact.main`. Raises CalledProcessError, the log is kept."""
    command = [sys.executable, "-m", "jaxact.main", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ.copy())
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(" ".join(command) + "\n" + ended.stdout + ended.stderr)
    if ended.returncode:
        print(ended.stderr[-2000:], file=sys.stderr)
        ended.check_returncode()
    return ended.stdout


def step_times(out: Path, shared: list[str], rounds: int) -> dict[str, str]:
    """Milliseconds of each trained model's training step: the median over rounds of `bench`."""
    times_of: dict[str, list[float]] = {name: [] for name in TRAINED}
    for _ in range(rounds):
        for name, (recipe, flags, _) in TRAINED.items():
            given = [f"--config={recipe}", f"--workdir={out / 'bench'}", *shared, *flags]
            said = run(["--mode=bench", "--bench_steps=5", *given], out / f"{name}.bench.log")
            times_of[name].append(json.loads(said)["device_step_ms"]["median"])
    return {name: f"{statistics.median(times):.0f}" for name, times in times_of.items()}


def trained(name: str, out: Path, shared: list[str]) -> dict[str, str]:
    """One row of a trained model: its cost by `check`, its speed and accuracy by results.json."""
    recipe, flags, needs = TRAINED[name]
    init = [f"--config.init_from={','.join(str(out / need) for need in needs)}"] if needs else []
    given = [f"--config={recipe}", f"--workdir={out / name}", *shared, *flags]
    if not (out / name / "results.json").is_file():
        run(["--mode=train", *given, *init], out / f"{name}.log")
    results = json.loads((out / name / "results.json").read_text())
    made = json.loads((out / name / "config.json").read_text())["config"]
    wanted = dict(flag.removeprefix("--config.").split("=", 1) for flag in shared)
    for field, now in (
        ("length", made["length"]),
        ("data.annotations", made["data"]["annotations"]),
    ):
        if now != wanted[field]:
            raise SystemExit(f"{out / name} was trained with {field}={now!r}; remove it first")
    checked = run(["--mode=check", *given], out / f"{name}.check.log")
    macs = re.findall(r"^([\d,]+) multiply-adds", checked, re.M)
    return {
        "parameters": f"{results['parameters']:,}",
        "MACs": f"{int(macs[0].replace(',', '')) / 1e6:,.0f} M",
        "top-1": f"{100 * results['scores']['top1']:.1f}",
    }


def fused(name: str, out: Path, _: list[str]) -> dict[str, str]:
    """One row of an ensemble with equal weights."""
    runs = ",".join(str(out / part) for part in FUSED[name])
    target = out / name.replace(" ", "_")
    run(["--mode=ensemble", f"--runs={runs}", f"--workdir={target}"], target.with_suffix(".log"))
    summary = json.loads((target / "ensemble.json").read_text())
    return {"top-1": f"{100 * summary['scores']['top1']:.1f}"}


def main() -> int:
    """Trains what is missing and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of prepare_demo.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the work dirs")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3, help="of step times")
    options = parser.parse_args()
    shared = [
        f"--config.data.annotations={options.data / 'annotations.pkl'}",
        f"--config.data.videos={options.data / 'clips'}",
        f"--config.length={options.epochs} epochs",
        # Maps of RGB and pose must agree for the attention: 64 px / 16 = 32 px / 8.
        "--config.data.resize=68",
        "--config.data.test_size=64",
        "--config.stages[0].size=64",
        "--config.data.scale=0.5",
    ]
    rows = {}
    for name in TITLES:
        rows[name] = (trained if name in TRAINED else fused)(name, options.out, shared)
        print(name, rows[name], file=sys.stderr, flush=True)
    for name, time in step_times(options.out, shared, options.rounds).items():
        rows[name]["step, ms"] = time
    columns = ("parameters", "MACs", "step, ms", "top-1")
    print("| model | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name, title in TITLES.items():
        cells = " | ".join(rows[name].get(column, "") for column in columns)
        print(f"| {title} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

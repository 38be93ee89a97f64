"""Accuracy, time and memory of test-time augmentation by number of clips; prints a table.

    python scripts/bench/tta.py --config=configs/x3d.py:demo --workdir=build/demo/run \\
      --config.data.annotations=build/demo/clips/annotations.pkl \\
      --config.data.videos=build/demo/clips/clips [--clips=1,5,10,20] [--rounds=2]

Each number of clips gets a process of its own. `s` is the fastest round over the whole test split,
reading included and compiling not; `host MiB` what that process held at its peak beyond what it
held before the first example; `feed MiB` one batch on its way to the device; `device MiB` the
arguments and temporaries of the compiled program. Flags of the config (views, sizes, clips_at_once)
pass through.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time

import jax

from jaxact import main as command
from jaxact.config import UserError
from jaxact.train import evaluation, restore
from jaxact.train.run import abstract_batch, eval_size, open_run
from jaxact.train.step import make_eval_step

MIB = 2**20


def held() -> int:
    """Bytes of memory this process holds now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """Bytes it has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(arguments: list[str], rounds: int) -> dict:
    """The figures of one row, in this process."""
    sys.argv = ["tta", *arguments]  # the parser of the config looks here
    command.parse(sys.argv)
    run = open_run(command.loaded_config(), pathlib.Path(command.WORKDIR.value))
    stage, split = run.plan(1).rows[-1].stage_data, "test"
    variables, _ = restore.load(run, command.CHECKPOINT.value, stage)
    program = make_eval_step(run.task, split)
    size = eval_size(run.config)
    batch = abstract_batch(run.task, stage, split, size)
    step = program.whole if program.parts == 1 else program.infer
    compiled = step.lower(variables, batch).compile().memory_analysis()
    source = run.source(split)
    before, times = held(), []
    for _ in range(rounds + 1):  # the first one compiles
        begin = time.perf_counter()
        scores, _, ids = evaluation.evaluate(run, program, variables, split, stage, source)
        times.append(time.perf_counter() - begin)
    feed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    return {
        "views": run.task.evaluation.views(split),
        "parts": program.parts,
        "examples": len(ids),
        "scores": scores,
        "s": min(times[1:]),
        "host": (peak() - before) / MIB,
        "feed": feed / MIB,
        "device": (compiled.argument_size_in_bytes + compiled.temp_size_in_bytes) / MIB,
    }


def flag(name: str, default: str) -> str:
    """Takes a flag of this script out of the command line."""
    given = [a for a in sys.argv if a.startswith(f"--{name}=")]
    for argument in given:
        sys.argv.remove(argument)
    return given[-1].split("=", 1)[1] if given else default


def main() -> None:
    counts = [int(n) for n in flag("clips", "1,5,10,20").split(",")]
    rounds, alone = int(flag("rounds", "2")), flag("row", "")
    rest = sys.argv[1:]
    if alone:
        print(json.dumps(measure([*rest, f"--config.data.test.clips={alone}"], rounds)))
        return
    rows = []
    for count in counts:
        again = [sys.executable, __file__, *rest, f"--row={count}", f"--rounds={rounds}"]
        ended = subprocess.run(again, stdout=subprocess.PIPE, text=True)
        if ended.returncode:
            sys.exit(ended.returncode)
        rows.append(json.loads(ended.stdout.splitlines()[-1]))
    names = [n for n in ("top1", "rgb_top1", "pose_top1", "nll") if n in rows[0]["scores"]]
    head = ["clips", "parts", *names, "s", "examples/s", "host MiB", "feed MiB", "device MiB"]
    print(f"{rows[0]['examples']} examples; with 1 clip: {rows[0]['views']}")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for count, row in zip(counts, rows, strict=True):
        cells = [str(count), str(row["parts"]), *(f"{row['scores'][n]:.4f}" for n in names)]
        cells += [f"{row['s']:.1f}", f"{row['examples'] / row['s']:.2f}"]
        cells += [f"{row[n]:.0f}" for n in ("host", "feed", "device")]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

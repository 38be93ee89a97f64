"""Bytes between devices in one training step, counted in the compiled program; nothing is run.

    python scripts/bench/collectives.py --config configs/x3d.py:tiny --devices 8 --fsdp 8

The step is compiled for virtual CPU devices. Prints one JSON object: bytes of state and temporaries
on each device, and for each kind of collective how often it stands in the program, the bytes of its
results, and the bytes each device sends when it runs as a ring over n devices: 2 (n - 1) / n of an
all-reduce's result, (n - 1) / n of an all-gather's, (n - 1) of a reduce-scatter's (which is 1/n),
(n - 1) / n of an all-to-all's, all of a permutation's. What stands in a loop counts as often as the
loop runs, where the program says how often.

The CPU backend writes "all-reduce, then take a part" where GPU and TPU have a reduce-scatter, so
FSDP's gradients count double here; `"sent_as_reduce_scatter"` counts them once.

With `--compute-ms`, the time of the step on one device at this share of the batch, it adds an
estimate for 8 to 256 GPUs of weak scaling (the batch grows with the devices): bytes sent / rate
+ collectives x latency x log2(n), with the rate of the link inside a machine up to 8 devices and
of the network beyond. Efficiency is given without any overlap and with as much as compute allows.
Examples gathered by index (mixup takes its partner from the whole batch) grow with the batch, all
else stays. That is arithmetic on assumptions, not a measurement.
"""

import argparse
import collections
import json
import math
import os
import re
from typing import Any

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "s16": 2, "u16": 2}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
EXAMPLES = "all-gather of examples"  # by index, over the batch: mixing with another example
IN_A_MACHINE = 8  # devices


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/x3d.py:tiny", help="recipe[:variant]")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--min-size", type=int, default=65536)
    parser.add_argument("--batch-size", type=int, default=0, help="0 = the recipe's")
    parser.add_argument("--mixup", type=float, default=-1.0, help="alpha; below 0 = the recipe's")
    parser.add_argument("--mixing-group", type=int, default=-1, help="below 0 = the recipe's")
    parser.add_argument("--compute-ms", type=float, default=0.0)
    parser.add_argument("--link", type=float, default=450.0, help="GB/s a device in a machine")
    parser.add_argument("--network", type=float, default=50.0, help="GB/s a device across machines")
    parser.add_argument("--latency-us", type=float, default=10.0, help="of a collective's hop")
    return parser.parse_args()


def collectives(text: str) -> list[tuple[str, int, int, int]]:
    """(kind, bytes of the result, devices of a group, times run) of each collective of an HLO
    module."""
    loops = dict(re.findall(r"body=%?([\w.\-]+).*?known_trip_count\D+(\d+)", text))
    calls, times = [], 1
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            times = int(loops.get(head[1], 1))
        match = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\(", line)
        if not match or match[2].removesuffix("-start") not in KINDS:
            continue
        kind = match[2].removesuffix("-start")
        if kind == "all-gather" and re.search(r'op_name="[^"]*/gather"', line):
            kind = EXAMPLES
        shapes = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match[1])
        if match[2].endswith("-start") and kind != "all-reduce":
            shapes = shapes[len(shapes) // 2 :]  # operands come first
        size = sum(
            BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in shapes
        )
        calls.append((kind, size, group_size(line), times))
    return calls


def group_size(line: str) -> int:
    """Devices that take part together, of any of the ways that HLO writes them; a pair for a
    permutation.

    Raises:
      ValueError: written in another way.
    """
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    mesh = re.search(r"replica_groups=mesh\[([^]]*)\][^{]*\{([^}]*)\}", line)
    if mesh:
        lengths = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or lengths[name]) for name, part in axes)
    if "source_target_pairs=" in line:
        return 2
    raise ValueError(f"no device groups in {line.strip()[:200]}")


def sent(kind: str, size: int, n: int) -> float:
    """Bytes that each of n devices sends in a ring."""
    if kind == "all-reduce":
        return 2 * (n - 1) / n * size
    if kind in ("all-gather", EXAMPLES, "all-to-all"):
        return (n - 1) / n * size
    return (n - 1) * size if kind == "reduce-scatter" else size


def summed(calls: list[tuple[str, int, int, int]]) -> dict[str, dict[str, float]]:
    """count, bytes, sent of each kind."""
    rows: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: {"count": 0, "bytes": 0, "sent": 0.0}
    )
    for kind, size, n, times in calls:
        row = rows[kind]
        row["count"] += times
        row["bytes"] += size * times
        row["sent"] += sent(kind, size, n) * times
    return {kind: {k: round(v) for k, v in row.items()} for kind, row in rows.items()}


def estimate(
    options: Any, total: float, count: int, n: int, examples: float = 0.0
) -> list[dict[str, float]]:
    """Weak scaling from `total` bytes sent by each of n devices in `count` collectives.

    `examples` of them gather the batch, whose bytes grow with the devices.
    """
    rows, compute = [], options.compute_ms / 1e3
    # A ring's share grows from (n - 1) / n towards 1.
    whole, batch = (total - examples) / ((n - 1) / n), examples / (n - 1)
    for devices in (8, 16, 32, 64, 128, 256):
        rate = 1e9 * (options.link if devices <= IN_A_MACHINE else options.network)
        moved = (whole * (devices - 1) / devices + batch * (devices - 1)) / rate
        waits = count * options.latency_us * 1e-6 * math.log2(devices)
        hidden = min(moved, compute)
        rows.append(
            {
                "devices": devices,
                "communication_ms": round(1e3 * (moved + waits), 3),
                "efficiency_without_overlap": round(compute / (compute + moved + waits), 4),
                "efficiency_with_overlap": round(compute / (compute + moved + waits - hidden), 4),
            }
        )
    return rows


def configured(options):
    """The config of the recipe with what the options say of mesh, batch and mixing."""
    from jaxact import config as schema

    path, _, variant = options.config.partition(":")
    config = schema.load(path, variant)
    config.mesh.fsdp, config.mesh.tensor = options.fsdp, options.tensor
    config.mesh.min_size = options.min_size
    if options.batch_size:
        config.batch_size = config.eval.batch_size = options.batch_size
    if options.mixup >= 0:
        config.stages[0].mixup = (options.mixup,)
    if options.mixing_group >= 0:
        config.mixing_group = options.mixing_group
    schema.validate(config)
    return config


def main():
    options = arguments()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import pathlib

    import jax

    from jaxact.train import mesh
    from jaxact.train.restore import start
    from jaxact.train.run import abstract_batch, open_run
    from jaxact.train.step import make_train_step

    config = configured(options)
    run = open_run(config, pathlib.Path("."))
    plan = run.plan(100)
    row = plan.rows[0]
    state, groups = start(run, row.stage_data, lambda text: None)
    step = make_train_step(config, run.task, plan, groups, row, run.layout, state)
    batch = abstract_batch(
        run.task, row.stage_data, "train", config.batch_size, mesh.batch_sharding(run.mesh)
    )
    compiled = step.lower(state, batch).compile()
    calls = collectives(compiled.as_text())
    memory = compiled.memory_analysis()
    by_kind = summed(calls)
    total = sum(kind["sent"] for kind in by_kind.values())
    # Of every all-reduce of FSDP's gradients a device keeps its part only.
    parts = sum(
        leaf.nbytes for leaf in jax.tree.leaves(state.params) if "fsdp" in leaf.sharding.spec
    )
    halved = parts * (options.fsdp - 1) / options.fsdp if options.devices == options.fsdp else 0.0
    counted = {
        "config": options.config,
        "mesh": dict(run.mesh.shape),
        "batch_size": config.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "state_bytes_per_device": run.layout.bytes_of(state),
        "argument_bytes_per_device": memory.argument_size_in_bytes,
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
        "collectives": by_kind,
        "sent_bytes_per_device": round(total),
        "sent_as_reduce_scatter": round(total - halved),
    }
    if options.compute_ms:
        count = sum(int(kind["count"]) for kind in by_kind.values())
        examples = by_kind.get(EXAMPLES, {}).get("sent", 0.0)
        sizes = (total - halved, count, options.devices, examples)
        counted["estimate"] = estimate(options, *sizes)
    print(json.dumps(counted, indent=1))


if __name__ == "__main__":
    main()

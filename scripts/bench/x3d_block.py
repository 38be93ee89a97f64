"""One X3D block's training step: JAX (shifts), JAX (grouped convolution) and PyTorch, side by side.

Forward and backward with batch statistics, 54 inner channels, batch 4, 13 frames, 80x80, float32;
"x3d" has a 3x3x3 filter, "x_shift" a temporal shift and a 1x3x3 filter. The contestants take turns,
so that a busy machine slows all of them alike; medians and ratios are printed as JSON.

    python scripts/bench/x3d_block.py --torch-python=PATH [--blocks=x3d,x_shift] [--rounds=5]

PyTorch runs in its own process under --torch-python (default: this interpreter).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

SHAPE = {"batch": 4, "frames": 13, "size": 80, "channels": 24, "inner": 54}
SLOW = ("jax conv", "torch contiguous")  # tens of seconds a step on CPU: fewer rounds

TORCH = r"""
import json, sys, time
import torch
from torch import nn

shape, block, threads = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if threads:
    torch.set_num_threads(threads)
c, inner, temporal = shape["channels"], shape["inner"], block == "x3d"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        taps = (3, 3, 3) if temporal else (1, 3, 3)
        pads = (1, 1, 1) if temporal else (0, 1, 1)
        self.a = nn.Conv3d(c, inner, 1, bias=False)
        self.b = nn.Conv3d(inner, inner, taps, padding=pads, groups=inner, bias=False)
        self.c = nn.Conv3d(inner, c, 1, bias=False)
        self.a_bn, self.b_bn = nn.BatchNorm3d(inner), nn.BatchNorm3d(inner)
        self.c_bn = nn.BatchNorm3d(c)

    def shift(self, x):
        fold = c // 8
        y = torch.zeros_like(x)
        y[:, :fold, :-1] = x[:, :fold, 1:]
        y[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
        y[:, 2 * fold :] = x[:, 2 * fold :]
        return y

    def forward(self, x):
        y = x if temporal else self.shift(x)
        y = torch.relu(self.a_bn(self.a(y)))
        y = nn.functional.silu(self.b_bn(self.b(y)))
        return torch.relu(self.c_bn(self.c(y)) + x)


runs = {}
for name, layout in (
    ("torch channels_last", torch.channels_last_3d),
    ("torch contiguous", torch.contiguous_format),
):
    net = Block().to(memory_format=layout)
    x = torch.randn(shape["batch"], c, shape["frames"], shape["size"], shape["size"])
    runs[name] = (net, x.to(memory_format=layout).requires_grad_())
print("ready", flush=True)
for line in sys.stdin:
    net, x = runs[line.strip()]
    net.zero_grad(set_to_none=True)
    x.grad = None
    start = time.perf_counter()
    (net(x) ** 2).mean().backward()
    print(time.perf_counter() - start, flush=True)
"""


def jax_steps(block: str) -> dict:
    """Compiled steps by name, and their compile seconds."""
    import jax
    import jax.numpy as jnp

    from jaxact.models import x3d
    from jaxact.models.initialise import initialise

    shape = (SHAPE["batch"], SHAPE["frames"], SHAPE["size"], SHAPE["size"], SHAPE["channels"])
    x = jax.random.normal(jax.random.key(0), shape)
    steps, seconds = {}, {}
    for implementation in ("shift", "conv"):
        net = x3d.Block(
            SHAPE["channels"],
            SHAPE["inner"],
            stride=1,
            temporal="conv" if block == "x3d" else "shift",
            fold_div=8,
            swish=True,
            se=False,
            shortcut=False,
            shortcut_bn=True,
            implementation=implementation,
        )
        variables = initialise(net, jax.random.key(0), x, True)
        # A fresh block's last scale is zero, which would stop most gradients.
        variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)

        def loss(params, x, stats, net=net):
            y, state = net.apply(
                {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
            )
            return jnp.mean(y**2), state

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        arguments = (variables["params"], x, variables["batch_stats"])
        start = time.perf_counter()
        compiled = step.lower(*arguments).compile()
        seconds[f"jax {implementation}"] = round(time.perf_counter() - start, 2)

        def run(compiled=compiled, arguments=arguments):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            return time.perf_counter() - start

        steps[f"jax {implementation}"] = run
    return {"steps": steps, "compile_s": seconds}


def compare(block: str, rounds: int, torch_python: str, slow: bool, threads: int) -> dict:
    """Median milliseconds of every contestant, taking turns."""
    made = jax_steps(block)
    torch = subprocess.Popen(
        [torch_python, "-c", TORCH, json.dumps(SHAPE), block, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stdin, stdout = torch.stdin, torch.stdout
    assert stdin is not None and stdout is not None
    if stdout.readline().strip() != "ready":
        raise SystemExit(f"PyTorch did not start under {torch_python}")

    def remote(name: str) -> float:
        print(name, file=stdin, flush=True)
        return float(stdout.readline())

    contestants = {**made["steps"]}
    for name in ("torch channels_last", "torch contiguous"):
        contestants[name] = lambda name=name: remote(name)
    if not slow:
        contestants = {k: v for k, v in contestants.items() if k not in SLOW}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            if name in SLOW and number > 1:
                continue
            elapsed = run()
            if number:  # the first round warms up
                times[name].append(elapsed)
    stdin.close()
    torch.wait()
    medians = {name: round(statistics.median(t) * 1e3, 1) for name, t in times.items()}
    best = min(value for name, value in medians.items() if name.startswith("torch"))
    return {
        "median_ms": medians,
        "rounds": {name: len(t) for name, t in times.items()},
        "jax_over_best_torch": round(medians["jax shift"] / best, 3),
        "jax_compile_s": made["compile_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--blocks", default="x3d,x_shift")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="PyTorch's; 0 = its default")
    parser.add_argument("--skip-slow", action="store_true", help="leave out " + " and ".join(SLOW))
    options = parser.parse_args()
    results = {
        block: compare(
            block, options.rounds, options.torch_python, not options.skip_slow, options.threads
        )
        for block in options.blocks.split(",")
    }
    print(json.dumps({"shape": SHAPE, "blocks": results}, indent=2))


if __name__ == "__main__":
    main()

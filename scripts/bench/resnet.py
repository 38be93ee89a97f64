"""Image backbones' training steps and forward passes on CPU: JAX and PyTorch, side by side.

A step is forward and backward with batch statistics and cross-entropy over 1000 classes, float32;
"forward" is evaluation. The contestants take turns, so that a busy machine slows all of them alike;
medians and ratios are printed as JSON.

    python scripts/bench/resnet.py --torch-python=PATH [--cases=resnet50:8:224,...] [--rounds=5]

A case is backbone:batch:pixels. PyTorch runs in its own process under --torch-python (default: this
interpreter), which needs torchvision.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

CASES = "resnet50:8:224,efficientnet_b0:8:160,convnext_tiny:8:160"

TORCH = r"""
import json, sys, time
import torch, torchvision

(kind, batch, size), threads = json.loads(sys.argv[1]), int(sys.argv[2])
if threads:
    torch.set_num_threads(threads)
runs = {}
for name, layout in (
    ("torch channels_last", torch.channels_last),
    ("torch contiguous", torch.contiguous_format),
):
    net = getattr(torchvision.models, kind)().to(memory_format=layout)
    x = torch.randn(batch, 3, size, size).to(memory_format=layout)
    runs[name] = (net, x)
labels = torch.zeros(batch, dtype=torch.int64)
print("ready", flush=True)
for line in sys.stdin:
    name, what = line.strip().split("/")
    net, x = runs[name]
    net.train(what == "step")
    net.zero_grad(set_to_none=True)
    start = time.perf_counter()
    if what == "step":
        torch.nn.functional.cross_entropy(net(x), labels).backward()
    else:
        with torch.no_grad():
            net(x)
    print(time.perf_counter() - start, flush=True)
"""


def jax_runs(kind: str, batch: int, size: int) -> tuple[dict, dict]:
    """Compiled "step" and "forward" as timed functions, and their compile seconds."""
    import jax

    from jaxact.models.backbones import Backbone
    from jaxact.models.initialise import initialise
    from jaxact.models.specs import backbone_info

    image = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    net = Backbone(kind)
    variables = initialise(net, jax.random.key(0), image, False)
    stats = {name: tree for name, tree in variables.items() if name != "params"}
    # A fresh block's last scale is near zero, which would stop most gradients.
    params = jax.tree.map(lambda leaf: leaf + 0.01, variables["params"])
    label = 0.01 * jax.random.normal(jax.random.key(1), (backbone_info(kind).features, 1000))

    def loss(trained, stats, image):
        (_, pooled), state = net.apply(
            {"params": trained[0], **stats}, image, True, mutable=list(stats)
        )
        return -jax.nn.log_softmax(pooled @ trained[1])[:, 0].mean(), state

    def forward(trained, stats, image):
        return net.apply({"params": trained[0], **stats}, image, False)[1] @ trained[1]

    runs, seconds = {}, {}
    arguments = ((params, label), stats, image)
    for name, function in (
        ("step", jax.value_and_grad(loss, has_aux=True)),
        ("forward", forward),
    ):
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        seconds[name] = round(time.perf_counter() - start, 2)

        def run(compiled=compiled):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            return time.perf_counter() - start

        runs[name] = run
    return runs, seconds


def compare(case: str, rounds: int, torch_python: str, threads: int) -> dict:
    """Median milliseconds of every contestant, taking turns."""
    kind, batch, size = case.split(":")
    runs, seconds = jax_runs(kind, int(batch), int(size))
    setting = json.dumps([kind, int(batch), int(size)])
    torch = subprocess.Popen(
        [torch_python, "-W", "ignore", "-c", TORCH, setting, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stdin, stdout = torch.stdin, torch.stdout
    assert stdin is not None and stdout is not None
    if stdout.readline().strip() != "ready":
        raise SystemExit(f"PyTorch with torchvision did not start under {torch_python}")

    def remote(name: str) -> float:
        print(name, file=stdin, flush=True)
        return float(stdout.readline())

    contestants = {f"jax/{what}": run for what, run in runs.items()}
    for layout in ("channels_last", "contiguous"):
        for what in runs:
            name = f"torch {layout}/{what}"
            contestants[name] = lambda name=name: remote(name)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            elapsed = run()
            if number:  # the first round warms up
                times[name].append(elapsed)
    stdin.close()
    torch.wait()
    medians = {name: round(statistics.median(seconds) * 1e3, 1) for name, seconds in times.items()}
    ratios = {
        what: round(
            medians[f"jax/{what}"]
            / min(medians[f"torch {layout}/{what}"] for layout in ("channels_last", "contiguous")),
            3,
        )
        for what in runs
    }
    return {"median_ms": medians, "jax_over_best_torch": ratios, "jax_compile_s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="PyTorch's; 0 = its default")
    options = parser.parse_args()
    results = {
        case: compare(case, options.rounds, options.torch_python, options.threads)
        for case in options.cases.split(",")
    }
    print(json.dumps({"load": os.getloadavg(), "cases": results}, indent=2))


if __name__ == "__main__":
    main()

"""Device memory of one training step of AdaTAD, from the compiled program, without running it.

    python scripts/bench/detection_memory.py --size s --modes adapter frozen full

Prints one JSON line a mode: bytes of arguments (parameters, optimiser state, one window a video),
of temporary buffers at their peak, and GiB in all, as XLA plans them for the backend it compiles
for. XLA's CPU backend undoes recomputation outside of loops and has no fused attention, so its plan
says something about an accelerator only with `--clips-at-once`, where each group of clips is
recomputed inside a loop; it then is an upper bound, with 32-bit copies of 16-bit products. `--run`
(on an accelerator) also takes steps and prints their time and the allocator's peak.
"""

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp

from jaxact.config import Config, Optim
from jaxact.models.initialise import initialise
from jaxact.models.specs import RANGES
from jaxact.ops import detection_losses, segments
from jaxact.tasks.detection import config as detection_config
from jaxact.tasks.detection import network
from jaxact.tasks.detection.config import Backbone, Model
from jaxact.train import optimizer, restore
from jaxact.train import state as states

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
GROUND_TRUTH = 64  # segments of a window


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="s", help="s | b | l | h | g | tiny")
    parser.add_argument("--modes", nargs="+", default=["adapter", "frozen", "full"])
    parser.add_argument("--frames", type=int, default=768)
    parser.add_argument("--pixels", type=int, default=160)
    parser.add_argument("--batch", type=int, default=1, help="windows")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--clips-at-once", type=int, default=0)
    parser.add_argument("--no-remat", action="store_true")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--run", type=int, default=0, help="steps to take, after two to warm up")
    return parser.parse_args()


def build(given, mode):
    """The detector and its optimiser groups."""
    backbone = Backbone(
        size=given.size,
        mode=mode,
        drop_path=0.0 if mode in ("frozen", "side") else 0.1,
        remat=not given.no_remat,
        clips_at_once=given.clips_at_once,
        attention=given.attention,
    )
    model = network.build(Model(backbone=backbone), given.dtype)
    rate = {"full": 0.1, "adapter": 2.0, "side": 2.0}.get(mode, 1.0)
    optim = Optim(
        name="adamw", lr=1e-4, clip=1.0, ema=0.999, groups=detection_config.groups(mode, rate)
    )
    return model, Config(optim=optim, dtype=given.dtype)


def batch_of(given):
    """Shapes of a batch: frames as they leave the host, ground truth, what is real."""
    b, size = given.batch, given.pixels
    shape = jax.ShapeDtypeStruct
    return {
        "video": shape((b, given.frames, size, size, 3), jnp.uint8),
        "mask": shape((b, given.frames), bool),
        "segments": shape((b, GROUND_TRUTH, 2), jnp.float32),
        "labels": shape((b, GROUND_TRUTH), jnp.int32),
        "real": shape((b, GROUND_TRUTH), bool),
    }


def step(model, config, groups, state, batch):
    """One update, as the trainer makes it: normalise, assign, loss, gradients, AdamW, EMA."""
    frames = (batch["video"].astype(jnp.float32) - jnp.asarray(MEAN)) / jnp.asarray(STD)
    targets = segments.assign(
        segments.points(given_length(batch), RANGES),
        *(batch[name] for name in ("segments", "labels", "real")),
        model.spec.classes,
    )
    mask = segments.point_mask(batch["mask"], model.spec.levels)
    active = groups.trainable
    flat = states.flatten(state.params)
    trained = groups.select(flat, active)
    kept = {path: leaf for path, leaf in flat.items() if path not in trained}

    def loss(trained):
        outputs, moved = model.apply(
            {"params": states.unflatten({**kept, **trained}), **state.model_state},
            frames,
            batch["mask"],
            detection_losses.positives(targets[0], mask).sum(),
            train=True,
            mutable=["normaliser"],
            rngs={"dropout": jax.random.fold_in(jax.random.key(0), state.step)},
        )
        names = ("logits", "offsets", "points")
        terms = detection_losses.detection(
            *(outputs[name] for name in names), targets, mask, outputs["normaliser"]
        )
        return sum(term.sum() for term in terms.values()), moved

    (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    grads, _ = optimizer.clip(grads, config.optim.clip)
    flat, opt_state = groups.update(grads, state.opt_state, flat, config.optim.lr, active)
    ema = states.average(state.ema, config.optim.ema, flat, moved)
    params = states.unflatten(flat)
    return states.TrainState(state.step + 1, params, moved, opt_state, ema), value


def given_length(batch):
    return batch["mask"].shape[1]


def measure(given, mode):
    """The compiled step's planned bytes, and what a run of it took."""
    model, config = build(given, mode)
    batch = batch_of(given)
    video = jax.ShapeDtypeStruct(batch["video"].shape, jnp.float32)
    inputs = (video, batch["mask"])
    fresh = functools.partial(model.init, jax.random.key(0))
    variables = jax.eval_shape(fresh, *inputs)
    groups = optimizer.resolve_groups(config.optim, variables["params"])
    create = functools.partial(restore.create, config, groups)
    run = jax.jit(functools.partial(step, model, config, groups), donate_argnums=0)
    before = time.perf_counter()
    compiled = run.lower(jax.eval_shape(create, variables), batch).compile()
    seconds = time.perf_counter() - before
    plan = compiled.memory_analysis()
    flat = states.flatten(variables["params"])
    trained = groups.select(flat, groups.trainable)
    resident = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    measured = {
        "mode": mode,
        **{k: v for k, v in vars(given).items() if k not in ("modes", "run")},
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "trained": sum(leaf.size for leaf in trained.values()),
        "parameters": sum(leaf.size for leaf in flat.values()),
        "argument_bytes": plan.argument_size_in_bytes,
        "temporary_bytes": plan.temp_size_in_bytes,
        "peak_gib": round((resident + plan.temp_size_in_bytes) / 2**30, 3),
        "compile_s": round(seconds, 1),
    }
    if given.run:
        measured |= timed(
            given, compiled, create(initialise(model, jax.random.key(0), *inputs)), batch
        )
    return measured


def timed(given, compiled, state, batch):
    """Seconds of a step and the allocator's peak, on generated windows."""
    keys = jax.random.split(jax.random.key(1), 2)
    batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), batch)
    batch["video"] = jax.random.randint(keys[0], batch["video"].shape, 0, 256).astype(jnp.uint8)
    start = jax.random.uniform(keys[1], batch["labels"].shape) * 0.9 * given.frames
    batch["segments"] = jnp.stack([start, start + 20], -1)
    laps = []
    for _ in range(given.run + 2):
        before = time.perf_counter()
        state, loss = compiled(state, batch)
        jax.block_until_ready(loss)
        laps.append(time.perf_counter() - before)
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "step_s": round(sorted(laps[2:])[len(laps[2:]) // 2], 4),
        "allocated_peak_gib": round(stats.get("peak_bytes_in_use", 0) / 2**30, 3),
        "loss": float(loss),
    }


def main():
    given = arguments()
    for mode in given.modes:
        print(json.dumps(measure(given, mode)), flush=True)


if __name__ == "__main__":
    main()

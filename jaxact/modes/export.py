"""`--mode=export`: a trained model as StableHLO programs, its weights and a contract.

A folder of contract.json (inputs, outputs, preprocessing), weights.npz, and one program for each
family of platforms; `jaxact.exported` runs it without the code of the model.
"""

import functools
import hashlib
import importlib.util
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import exported
from jaxact.atomic import draft
from jaxact.config import UserError
from jaxact.ops import target
from jaxact.task import Contract, Port
from jaxact.train import restore, schedule, state, workdir
from jaxact.train.restore import stage_data_of, used_inputs
from jaxact.train.run import Run

# file -> (platforms, the one that it is traced for). Some operations have another form on CPU.
# Forms for the GPUs of one maker are not used, so one program serves all accelerators.
PROGRAMS = {
    "program_cpu.bin": (("cpu",), "cpu"),
    "program_accelerator.bin": (("cuda", "rocm", "tpu"), "tpu"),
}
WEIGHTS, CONTRACT = "weights.npz", "contract.json"
LIMIT = 1e-5  # of the self-check, relative to the largest output (at least 1)
CHECKED = 2  # examples of the self-check, where the batch is symbolic

# Never inputs of an artefact: known only in training and evaluation.
RESERVED = ("id", "mask", "label")

Function = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


class Unequal(Exception):
    """The artefact does not compute what the model does; it has been removed. Exit code 1."""


def export(run: Run, where: str, output: pathlib.Path, batch: int = 0) -> dict[str, Any]:
    """Writes the artefact of a checkpoint (see `write`); returns its contract.

    Raises:
      UserError: the folder holds something, or the checkpoint does not fit the config.
      Unequal: the self-check failed; nothing is left.
    """
    _possible(output, batch)
    stage_data = stage_data_of(run, where)
    contract = contract_of(run, stage_data)
    inputs = {n: jax.ShapeDtypeStruct((1, *p.shape), p.dtype) for n, p in contract.inputs.items()}

    def outputs(variables: Any, batch: dict[str, Any]) -> Any:
        apply = functools.partial(run.task.training.model.apply, variables, train=False)
        return contract.call(apply, batch)

    variables, origin = restore.load(run, where, stage_data, (outputs, inputs))
    return write(run, variables, origin, output, batch, stage_data)


def _possible(output: pathlib.Path, batch: int) -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("--mode=export needs flatbuffers; install the extra [export]")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} is not empty; allowed: a new folder")
    if batch < 0:
        raise UserError(f"--export_batch={batch} is not allowed; allowed: 0 (any) or 1 and up")


def write(
    run: Run,
    variables: Any,
    origin: str,
    output: pathlib.Path,
    batch: int = 0,
    stage_data: Any = None,
) -> dict[str, Any]:
    """Writes variables as an artefact to a new folder, checks it, returns its contract.

    `batch` is the number of examples of a call; 0 = any (a symbolic dimension). `stage_data` are
    those of the stage whose shapes it gets; None = of the last.
    Raises: as `export`.
    """
    _possible(output, batch)
    stage_data = stage_data or schedule.last_stage_data(run.config)
    weights = {name: np.asarray(leaf) for name, leaf in state.flatten(variables).items()}
    contract = contract_of(run, stage_data)
    part = draft(output)  # renamed when it is whole
    part.mkdir(parents=True)
    try:
        arrays: dict[str, Any] = dict(weights)
        np.savez(part / WEIGHTS, **arrays)
        written = _programs(run, contract, weights, part, batch)
        written["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        written["checkpoint"] = origin
        workdir.write_json(part / CONTRACT, written)
        written["self_check"] = check(run, contract, weights, part, batch or CHECKED)
        workdir.write_json(part / CONTRACT, written)
        if output.exists():
            output.rmdir()  # empty, or `_possible` had refused it
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return written


def contract_of(run: Run, stage_data: Any) -> Contract:
    """The task's own contract, or else the model itself on the arrays that it uses."""
    if run.task.shipping.contract is not None:
        return run.task.shipping.contract(stage_data)
    shapes = run.task.training.shapes(stage_data, "predict")
    free = {name: shape for name, shape in shapes.items() if name not in RESERVED}

    def arguments(batch: Any) -> Any:
        one = next(iter(batch.values())).shape[0]
        rest: dict[str, Any] = {"id": jnp.zeros(one, jnp.int32), "mask": jnp.ones(one, bool)}
        if "label" in shapes:
            shape, dtype = shapes["label"]
            rest["label"] = jnp.zeros((one, *shape), dtype)
        return run.task.training.inputs({**rest, **batch}, {}, None, None)[0]

    abstract = {name: jax.ShapeDtypeStruct((1, *s), d) for name, (s, d) in free.items()}
    used = [name for name, needed in used_inputs(arguments, abstract)[0].items() if needed]
    return Contract(
        inputs={
            name: Port(free[name][0], np.dtype(free[name][1]), "as the recipe's data have it")
            for name in used
        },
        outputs={},
        preprocessing={},
        call=lambda apply, batch: named(apply(**arguments(_filled(batch, free)))),
    )


def _filled(batch: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """The batch, with zeros for the arrays that no output depends on."""
    size = next(iter(batch.values())).shape[0]
    return {n: batch[n] if n in batch else jnp.zeros((size, *s), d) for n, (s, d) in shapes.items()}


def named(outputs: Any) -> dict[str, Any]:
    """Outputs as one flat dict: "/"-joined paths of a tree; "output" for a single array."""
    flat, _ = jax.tree_util.tree_flatten_with_path(outputs)
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        or "output": leaf
        for path, leaf in flat
    }


def function_of(run: Run, contract: Contract) -> Function:
    """(weights by path, inputs) -> outputs; a new function each time, so that it is traced anew."""

    def program(weights: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        apply = functools.partial(
            run.task.training.model.apply, state.unflatten(weights), train=False
        )
        return contract.call(apply, batch)

    return program


def _programs(
    run: Run, contract: Contract, weights: dict[str, np.ndarray], folder: pathlib.Path, batch: int
) -> dict[str, Any]:
    """Writes the programs; returns the contract so far."""
    size = batch or jax.export.symbolic_shape("b")[0]
    arrays = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
    ports = {
        name: jax.ShapeDtypeStruct((size, *port.shape), port.dtype)
        for name, port in contract.inputs.items()
    }
    programs = []
    for file, (platforms, form) in PROGRAMS.items():
        with target.traced_for(form):
            jitted = jax.jit(function_of(run, contract))
            program = jax.export.export(jitted, platforms=platforms)(arrays, ports)
        (folder / file).write_bytes(program.serialize())
        programs.append(
            {
                "file": file,
                "platforms": list(platforms),
                "calling_convention": program.calling_convention_version,
            }
        )
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    return {
        "format": exported.FORMAT,
        "task": run.config.task,
        "classes": list(run.task.training.classes),
        "inputs": {
            name: {**_port(ports[name]), "meaning": port.meaning, "range": [port.low, port.high]}
            for name, port in contract.inputs.items()
        },
        "outputs": {
            name: {**_port(array), "meaning": contract.outputs.get(name, "an output of the model")}
            for name, array in outputs.items()
        },
        "preprocessing": contract.preprocessing,
        "programs": programs,
        "weights": WEIGHTS,
        "versions": workdir.versions(),
        "sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (WEIGHTS, *PROGRAMS)
        },
    }


def _port(array: Any) -> dict[str, Any]:
    shape = [n if isinstance(n, int) else str(n) for n in array.shape]
    return {"dtype": str(np.dtype(array.dtype)), "shape": shape}


def check(
    run: Run, contract: Contract, weights: dict[str, np.ndarray], folder: pathlib.Path, size: int
) -> dict[str, Any]:
    """Runs the artefact and the model on one random batch, on this platform.

    Raises Unequal: an output differs by more than LIMIT, or is not finite.
    """
    batch = random_inputs(contract, size)
    expected = jax.jit(function_of(run, contract))(weights, batch)
    got = exported.load(folder)(**batch)
    worst = {}
    for name, array in expected.items():
        ours, theirs = np.asarray(array, np.float64), got[name].astype(np.float64)
        worst[name] = float(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))
    largest = max(worst.values(), key=lambda x: (np.isnan(x), x))
    if not largest <= LIMIT:
        shown = ", ".join(f"{name} {difference:.3g}" for name, difference in worst.items())
        raise Unequal(
            f"self-check failed: the exported program differs from the model by more than "
            f"{LIMIT:g} ({shown}); nothing was kept"
        )
    here = jax.export.default_export_platform()
    workdir.say(f"self-check on {here}: {size} examples, largest difference {largest:.3g}")
    return {"platform": here, "examples": size, "largest_difference": largest, "limit": LIMIT}


def random_inputs(contract: Contract, size: int) -> dict[str, np.ndarray]:
    """Arrays of `size` examples with values in the ranges of the contract."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, port in contract.inputs.items():
        shape, dtype = (size, *port.shape), np.dtype(port.dtype)
        if dtype.kind in "iu":
            arrays[name] = rng.integers(int(port.low), int(port.high) + 1, shape).astype(dtype)
        else:
            arrays[name] = rng.uniform(port.low, port.high, shape).astype(dtype)
    return arrays

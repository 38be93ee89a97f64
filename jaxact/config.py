"""The schema, which is also the manual: one line a field, with its unit.

A recipe (`configs/*.py`) returns one `Config` (a task may extend it with its own model, data and
stage fields) from `get_config(variant)`. Every field can be set from the command line
(`--config.optim.lr=0.01`, `--config.stages[0].lr=0.5`); an unknown field is an error. Nothing is
derived inside a config: what depends on something else is computed where it is used, so an override
can never leave a stale value behind.

Durations are text: `"80 epochs"`, `"500 steps"`, `"10%"` (of the whole training) or `"0"`.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxact.fields import UserError, allowed, check, field, require

__all__ = ["UserError", "allowed", "check", "field", "require"]  # a wing's config needs one import


# ---------------------------------------------------------------------------------------- stages


def value(initial: float, **rule: Any) -> Any:
    """A stage field read inside the step: () = as before, (x,) = constant, (x, y) = linear ramp.

    `rule`: what each number may be, as in `fields.allowed`.
    """
    metadata = {"kind": "value", "initial": float(initial), "allowed": allowed(**rule)}
    return dataclasses.field(default=(), metadata=metadata)


def choice(initial: str, choices: tuple[str, ...] = ()) -> Any:
    """A stage field that rebuilds the host data set: "" = as before."""
    rule = allowed(choices, names={"": "as before"})
    return dataclasses.field(
        default="", metadata={"kind": "data", "initial": initial, "allowed": rule}
    )


def shape(initial: int = 0) -> Any:
    """A stage field that changes the batch shape, so one program for each value: 0 = as before."""
    rule = allowed(least=1, names={0: "as before"})
    return dataclasses.field(
        default=0, metadata={"kind": "shape", "initial": initial, "allowed": rule}
    )


def groups(initial: str) -> Any:
    """A stage field that selects the optimiser groups being trained: "" = as before."""
    return dataclasses.field(default="", metadata={"kind": "groups", "initial": initial})


@dataclasses.dataclass
class Stage:
    """One row of the staged schedule; what is unspecified keeps the previous row's value."""

    start: str = "0"  # duration from the start of training at which this row takes over
    lr: tuple[float, ...] = value(1.0)  # factor on the base learning-rate curve
    train: str = groups(".*")  # regex over optimiser group names: the groups that are updated


# ------------------------------------------------------------------------------------- optimiser


@dataclasses.dataclass
class Group:
    """Parameters that share a learning-rate factor, a weight decay and a freeze."""

    name: str = "all"  # how stages and logs refer to it
    pattern: str = ".*"  # regex, searched in the "/"-joined parameter path; first match wins
    lr: float = 1.0  # factor on the learning rate
    weight_decay: float = -1.0  # -1 = optim.weight_decay
    frozen: bool = False  # never trained: no gradient, no optimiser state, no EMA, BN in eval mode


@dataclasses.dataclass
class Optim:
    """Optimiser, base learning-rate curve, clipping, accumulation, averaging."""

    # adam: L2 decay, as torch.optim.Adam; adamw: decoupled decay
    name: str = field("sgd", choices=("sgd", "adam", "adamw"))
    lr: float = field(0.1, above=0)  # base learning rate, at batch size `lr_batch`
    lr_batch: int = 0  # examples; >0 scales lr by batch_size / lr_batch; 0 = lr as it is
    momentum: float = field(0.9, least=0, below=1)  # sgd
    nesterov: bool = False  # sgd
    b1: float = 0.9  # adam, adamw
    b2: float = 0.999  # adam, adamw
    eps: float = 1e-8  # adam, adamw
    weight_decay: float = field(0.0, least=0)  # see `name` for its form
    groups: tuple[Group, ...] = (Group(),)  # every parameter must match one
    schedule: str = field("cosine", choices=("cosine", "cosine_restarts", "step", "constant"))
    per: str = field("step", choices=("step", "epoch"))  # how often the curve moves
    warmup: str = "0"  # duration of the linear warm-up
    warmup_from: float = 0.0  # factor at its first step
    warmup_full: bool = True  # its last step has the full rate (else the first step after it has)
    # The warm-up rises to lr, or to the curve's value at its end.
    warmup_to: str = field("base", choices=("base", "curve"))
    warmup_prefix: bool = True  # the curve starts after the warm-up (else at step 0)
    decay_over: str = ""  # duration of the cosine; "" = to the end of training
    min_lr: float = 0.0  # cosine ends here (absolute, scaled like lr)
    restart_every: str = ""  # cosine_restarts: first period
    restart_growth: float = 1.0  # cosine_restarts: factor on the next period
    milestones: tuple[str, ...] = ()  # step: durations at which lr is multiplied
    gamma: float = 0.1  # step: by this factor
    clip: float = field(0.0, least=0, names={0: "off"})  # global gradient norm
    accumulate: int = field(1, least=1)  # micro-batches per step; BN statistics are of each
    # Decay of the moving average of params and BN statistics.
    ema: float = field(0.0, least=0, below=1, names={0: "off"})
    ema_warmup: bool = False  # decay = min(ema, (1 + step) / (10 + step))


# --------------------------------------------------------------------------- evaluation and files


@dataclasses.dataclass
class Eval:
    """When and with what the model is evaluated."""

    every: str = "1 epochs"  # duration between validations
    first: str = "0"  # no validation before this
    split: str = field("test", choices=("val", "test"))  # for --mode=eval and the end of training
    batch_size: int = 0  # global; 0 = batch_size
    metric: str = "top1"  # the number that chooses the best checkpoint and stops early
    maximise: bool = True  # is more better?
    patience: int = 0  # validations without improvement before stopping; 0 = off
    min_delta: float = 0.0  # what counts as improvement


@dataclasses.dataclass
class Save:
    """Checkpoints and logs."""

    every: str = "1 epochs"  # duration between checkpoints
    best: int = field(1, least=1)  # best checkpoints kept
    latest: int = field(2, least=1)  # newest checkpoints kept (2 = one to fall back on)
    keep_every: str = "0"  # duration between checkpoints that are written and kept; 0 = none
    log_every: int = field(20, least=1)  # steps between log lines
    tensorboard: bool = True  # event files beside metrics.jsonl (needs the extra [tensorboard])
    report: bool = True  # report.html at the end


@dataclasses.dataclass
class Input:
    """How the host feeds the device."""

    threads: int = field(2, least=1)  # reading threads in each process
    workers: int = field(0, least=0)  # worker processes; 0 = threads of this process only
    prefetch: int = field(2, least=1)  # batches read ahead
    broken: str = field("stop", choices=("stop", "skip"))  # an unreadable example; skip masks it


@dataclasses.dataclass
class Mesh:
    """The devices as a grid data x fsdp x tensor, and the processes that hold them."""

    # Copies, each with its part of the batch.
    data: int = field(0, least=0, names={0: "all devices left"})
    fsdp: int = field(1, least=1)  # ways that parameters, optimiser state, average, batch are split
    tensor: int = field(1, least=1)  # ways that heads and MLPs of a vision transformer are split
    min_size: int = field(65536, least=1)  # numbers; smaller arrays are not split by fsdp
    # given: by the three below; auto: Slurm, a TPU ... tell them.
    hosts: str = field("one", choices=("one", "given", "auto"))
    coordinator: str = ""  # given: host:port of process 0
    processes: int = 0  # given
    process: int = -1  # given: number of this one, from 0
    start_timeout: int = field(300, least=1)  # s that processes wait for each other at the start
    timeout: int = field(60, least=2)  # s without a sign of life after which a process is lost


@dataclasses.dataclass
class Config:
    """One run. A task extends this with `model`, `data` and its kind of `stages`."""

    task: str = ""  # a folder of jaxact/tasks, or the dotted name of a module of yours
    seed: int = 0  # every random draw is a function of (seed, step)
    length: str = "1 epochs"  # duration of the training
    batch_size: int = field(32, least=1)  # examples per step, over all devices and hosts
    # Of the arithmetic; parameters and statistics stay float32.
    dtype: str = field("float32", choices=("float32", "bfloat16"))
    init_from: str = ""  # checkpoints (PyTorch files, work dirs of ours) for a partial start: A,B
    pretrained: bool = False  # made for trained weights: a start without init_from is a warning
    optim: Optim = dataclasses.field(default_factory=Optim)
    eval: Eval = dataclasses.field(default_factory=Eval)
    save: Save = dataclasses.field(default_factory=Save)
    input: Input = dataclasses.field(default_factory=Input)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)


# ------------------------------------------------------------------------------------- durations


def steps(duration: str, *, per_epoch: int, total: int | None = None, field: str = "") -> int:
    """Steps of a duration, rounded to the nearest.

    >>> steps("1.5 epochs", per_epoch=10), steps("7 steps", per_epoch=10)
    (15, 7)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(epochs?|steps?|%)?\s*", duration)
    if match and (match[2] or float(match[1]) == 0):
        number = float(match[1])
        if not match[2]:
            return 0
        if match[2] == "%":
            if total is not None:
                return round(number / 100 * total)
        else:
            return round(number * (per_epoch if match[2].startswith("epoch") else 1))
    raise UserError(
        f"config.{field or '<duration>'}={duration!r} is not a duration here; "
        'allowed: "80 epochs", "500 steps"' + (', "10%"' if total is not None else "") + ' or "0"'
    )


def reached(config: Any) -> tuple[Any, ...]:
    """The stages that training can reach, as far as that is known without counting its examples.

    Left out is what starts at or after the end however many steps an epoch has.
    """

    def late(start: str, per_epoch: int) -> bool:
        total = steps(config.length, per_epoch=per_epoch, field="length")
        return steps(start, per_epoch=per_epoch, total=total, field="stages.start") >= total

    first, *rest = config.stages
    return first, *(s for s in rest if not (late(s.start, 1) and late(s.start, 10**6)))


def carried(stages: Any, name: str) -> list[Any]:
    """A data or shape field stage by stage: what a stage leaves out is as in the one before it."""
    fields = {field.name: field for field in dataclasses.fields(stages[0])}
    values = [fields[name].metadata["initial"]]
    for stage in stages:
        values.append(getattr(stage, name) or values[-1])
    return values[1:]


# ------------------------------------------------------------------------------------- validation


def validate(config: Config) -> None:
    """Checks each field by itself, and what of the common fields goes together.

    A task checks in `make` what goes together in its own fields.

    Raises UserError: naming the field, its value and what is allowed.
    """
    check(config)
    optim = config.optim
    require(
        config.batch_size % optim.accumulate == 0,
        "optim.accumulate",
        optim.accumulate,
        f"divisors of batch_size={config.batch_size}",
    )
    require(len(optim.groups) > 0, "optim.groups", optim.groups, "at least one group")
    names = [group.name for group in optim.groups]
    require(len(set(names)) == len(names), "optim.groups", names, "names that differ")
    for index, group in enumerate(optim.groups):
        _regex(group.pattern, f"optim.groups[{index}].pattern")
    _validate_mesh(config.mesh)
    if optim.schedule == "cosine_restarts":
        require(
            bool(optim.restart_every), "optim.restart_every", "", "a duration for cosine_restarts"
        )
        require(optim.restart_growth >= 1, "optim.restart_growth", optim.restart_growth, "1 or up")
    if optim.schedule == "step":
        allowed = 'durations for step, as "20 epochs","40 epochs"'
        require(bool(optim.milestones), "optim.milestones", optim.milestones, allowed)


def _validate_mesh(mesh: Mesh) -> None:
    if mesh.hosts == "given":
        place = re.fullmatch(r".+:\d+", mesh.coordinator) is not None
        require(place, "mesh.coordinator", mesh.coordinator, "host:port of process 0")
        require(mesh.processes >= 1, "mesh.processes", mesh.processes, "1 or more")
        last = mesh.processes - 1
        require(0 <= mesh.process <= last, "mesh.process", mesh.process, f"0 to {last}")


def _regex(pattern: str, field: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"config.{field}={pattern!r} is not a regular expression: {error}"
        ) from None


# ---------------------------------------------------------------------------------------- as text


def as_dict(config: Any) -> dict[str, Any]:
    """Nested dict of plain values, in the order of the schema."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def load(path: str | pathlib.Path, variant: str = "") -> Any:
    """The config of a recipe file, without the command line: `load("configs/x3d.py", "tiny")`."""
    import importlib.util

    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"--config={path} does not exist; recipes are in configs/")
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def variant_of(variants: Mapping[str, Callable[[], Any]], name: str, recipe: str) -> Any:
    """The config of a recipe's variant. Raises UserError, with the names there are, for another."""
    if name not in variants:
        known = ", ".join(each for each in variants if each)
        file = f"configs/{pathlib.Path(recipe).name}"
        raise UserError(f"{file} has no variant {name!r}; allowed: none, {known}")
    return variants[name]()

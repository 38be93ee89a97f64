"""The staged schedule as data: a table of rows, resolved once, read inside the step.

`Plan.hyper(step)` gives every value field at a step, the learning rate included; `Plan.row(step)`
the row. Both are functions of the step alone, so a resumed run needs no state for them.
"""

import bisect
import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxact import config as schema
from jaxact.config import Config, Optim, UserError, reached, require
from jaxact.task import StageData


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One resolved stage: steps [start, end), its value ramps, data, shape and trained groups."""

    index: int
    start: int
    end: int
    values: dict[str, tuple[float, float]]  # at `start` and towards `end`
    data: dict[str, str]
    shape: dict[str, int]
    train: str

    @property
    def stage_data(self) -> StageData:
        """The data and shape fields as attributes: what a loader sees."""
        return StageData(**self.data, **self.shape)

    @property
    def program(self) -> tuple[Any, ...]:
        """Rows with equal keys share one compiled program."""
        return (tuple(sorted(self.shape.items())), self.train)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All rows, the base learning-rate curve and the step counts they were resolved with."""

    rows: tuple[PlanRow, ...]
    unreachable: tuple[int, ...]  # indices of config rows that start at or after the end
    total: int  # steps
    per_epoch: int  # steps
    curve: "Curve"

    def steps(self, duration: str, field: str) -> int:
        """Steps of a duration of the config; `field` names it in the error for a wrong one."""
        return schema.steps(duration, per_epoch=self.per_epoch, total=self.total, field=field)

    def row(self, step: int) -> PlanRow:
        """The row in force at a step."""
        return self.rows[bisect.bisect_right([row.start for row in self.rows], step) - 1]

    def hyper(self, step: Any) -> dict[str, Any]:
        """Value fields f32[] at a step (traced or not), "lr" being curve x stage factor."""
        starts = np.array([row.start for row in self.rows], np.int32)
        ends = np.array([row.end for row in self.rows], np.int32)
        index = jnp.searchsorted(starts, step, side="right") - 1
        length = jnp.maximum(jnp.asarray(ends)[index] - jnp.asarray(starts)[index], 1)
        part = (step - jnp.asarray(starts)[index]) / length
        values = {}
        for name in self.rows[0].values:
            low, high = np.array([row.values[name] for row in self.rows], np.float32).T
            first, last = jnp.asarray(low)[index], jnp.asarray(high)[index]
            values[name] = first + (last - first) * part
        # After the warm-up a stage scales what lies above the curve's floor, not the floor.
        floor = jnp.where(step < self.curve.warmup, 0.0, self.curve.floor)
        values["lr"] = floor + values["lr"] * (self.curve(step, jnp) - floor)
        return values

    def segments(self, start: int) -> Iterator[tuple[PlanRow, int, int]]:
        """The rows that are left from a step on: (row, first step, end step)."""
        for row in self.rows:
            if row.end > start:
                yield row, max(start, row.start), row.end

    def table(self) -> str:
        """The rows as text, with the learning rate at each row's first and last step."""
        names = sorted(set(self.rows[0].values) - {"lr"})
        lines = [["row", "epochs", "steps", "lr first", "lr last", "trains"]]
        lines[0] += [*names, *self.rows[0].data, *self.rows[0].shape]
        for row in self.rows:
            first, last = self.hyper(row.start), self.hyper(row.end - 1)
            cells = [
                str(row.index),
                f"{row.start / self.per_epoch:g}-{row.end / self.per_epoch:g}",
                f"{row.start}-{row.end}",
                f"{float(first['lr']):.4e}",
                f"{float(last['lr']):.4e}",
                row.train,
            ]
            for name in names:
                low, high = row.values[name]
                cells.append(f"{low:g}" if low == high else f"{low:g}->{high:g}")
            lines.append([*cells, *row.data.values(), *map(str, row.shape.values())])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        late = "warning: stages[{}] starts after the end and is never reached"
        return "\n".join([*text, *map(late.format, self.unreachable)])


@dataclasses.dataclass(frozen=True)
class Curve:
    """The base learning rate as a function of the step: warm-up, then one of four shapes.

    The durations of `optim` in steps; with `unit` > 1 the curve moves every `unit` steps.
    """

    optim: Optim
    base: float
    floor: float
    unit: int
    warmup: int
    horizon: int
    period: int
    milestones: tuple[int, ...]

    def __call__(self, step: Any, xp: Any = np) -> Any:
        """Learning rate at a step, with NumPy (float64) or jax.numpy (float32, traced)."""
        optim = self.optim
        step = (step // self.unit) * self.unit
        after = self._after(step - self.warmup if optim.warmup_prefix else step, xp)
        if not self.warmup:
            return after
        top = self.base
        if optim.warmup_to == "curve":
            top = float(self._after(0 if optim.warmup_prefix else self.warmup, np))
        span = self.warmup - (self.unit if optim.warmup_full else 0)
        part = step / span if span > 0 else 1.0
        low = self.base * optim.warmup_from
        return xp.where(step < self.warmup, low + (top - low) * part, after)

    def _after(self, step: Any, xp: Any) -> Any:
        """The rate without warm-up."""
        step = xp.maximum(step, 0)
        if self.optim.schedule == "constant":
            return self.base + 0.0 * step
        if self.optim.schedule == "step":
            passed = sum((step >= m) * 1.0 for m in self.milestones)
            return self.base * self.optim.gamma**passed
        if self.optim.schedule == "cosine":
            left = (self.horizon - step) / max(self.horizon, 1)
        else:
            left = self._left_of_cycle(step, xp)
        # (1 + cos(pi p)) / 2 = sin(pi (1 - p) / 2)^2, which keeps its digits near the end in f32.
        left = xp.clip(left, 0.0, 1.0)
        return self.floor + (self.base - self.floor) * xp.sin(math.pi / 2 * left) ** 2

    def _left_of_cycle(self, step: Any, xp: Any) -> Any:
        """The part of the present cosine cycle that is left."""
        growth = self.optim.restart_growth
        if growth == 1.0:
            return 1 - (step % self.period) / self.period
        ratio = step * (growth - 1) / self.period + 1
        cycle = xp.floor(xp.log(ratio) / math.log(growth) + 1e-6)
        length = self.period * growth**cycle
        begin = self.period * (growth**cycle - 1) / (growth - 1)
        return 1 - (step - begin) / length


def curve(config: Config, per_epoch: int, total: int) -> Curve:
    """Resolves the durations of `config.optim` into steps."""
    optim = config.optim

    def count(duration: str, field: str) -> int:
        return schema.steps(duration, per_epoch=per_epoch, total=total, field=f"optim.{field}")

    scale = config.batch_size / optim.lr_batch if optim.lr_batch else 1.0
    warmup = count(optim.warmup, "warmup")
    before = warmup if optim.warmup_prefix else 0  # the curve starts here
    period = count(optim.restart_every, "restart_every") if optim.restart_every else 0
    if optim.schedule == "cosine_restarts":
        require(period >= 1, "optim.restart_every", optim.restart_every, "one step or more")
    return Curve(
        optim=dataclasses.replace(optim),
        base=optim.lr * scale,
        floor=optim.min_lr * scale if optim.schedule.startswith("cosine") else 0.0,
        unit=per_epoch if optim.per == "epoch" else 1,
        warmup=warmup,
        horizon=count(optim.decay_over, "decay_over") if optim.decay_over else total - before,
        period=period,
        # They are counted from the start of training.
        milestones=tuple(count(m, "milestones") - before for m in optim.milestones),
    )


def resolve(config: Any, per_epoch: int) -> Plan:
    """Resolves `config.stages` for a data set of `per_epoch` steps.

    Raises UserError: stages out of order, a value that is no constant or ramp, an unknown choice.
    """
    total = schema.steps(config.length, per_epoch=per_epoch, field="length")
    require(total >= 1, "length", config.length, "at least one step")
    require(len(config.stages) > 0, "stages", config.stages, "at least one row")
    base = curve(config, per_epoch, total)
    starts: list[int] = []
    for i, stage in enumerate(config.stages):
        name = f"stages[{i}].start"
        starts.append(schema.steps(stage.start, per_epoch=per_epoch, total=total, field=name))
        if i == 0:
            require(starts[0] == 0, name, stage.start, '"0"')
        else:
            require(starts[i] > starts[i - 1], name, stage.start, "later than the row before it")
    rows, fields = [], _initial(config.stages[0])
    for i, (start, end) in enumerate(zip(starts, [*starts[1:], total], strict=True)):
        fields = _carry(config.stages[i], i, fields)
        if start < total:
            rows.append(PlanRow(i, start, min(end, total), **fields))
        fields = {**fields, "values": {k: (v[1], v[1]) for k, v in fields["values"].items()}}
    late = tuple(i for i in range(len(starts)) if starts[i] >= total)
    return Plan(tuple(rows), late, total, per_epoch, base)


def last_stage_data(config: Any) -> StageData:
    """What a loader sees of the last stage that training reaches; needs no data."""
    stages = reached(config)
    fields = _initial(stages[0])
    for stage in stages:
        fields = _carry(stage, config.stages.index(stage), fields)
    return StageData(**fields["data"], **fields["shape"])


def _initial(stage: Any) -> dict[str, Any]:
    """The fields of a `PlanRow` before the first stage: what the schema says."""
    row: dict[str, Any] = {"values": {}, "data": {}, "shape": {}, "train": ".*"}
    for field in dataclasses.fields(stage):
        kind, initial = field.metadata.get("kind"), field.metadata.get("initial")
        if kind == "value":
            row["values"][field.name] = (initial, initial)
        elif kind in ("data", "shape"):
            row[kind][field.name] = initial
        elif kind == "groups":
            row["train"] = initial
    return row


def _carry(stage: Any, index: int, before: dict[str, Any]) -> dict[str, Any]:
    """The fields of a stage's `PlanRow`: what it gives, else those of the row before it."""
    row = copy.deepcopy(before)
    for field in dataclasses.fields(stage):
        kind, given = field.metadata.get("kind"), getattr(stage, field.name)
        where = f"stages[{index}].{field.name}"
        if kind is None or given in ((), "", 0):
            continue
        if kind == "value":
            require(1 <= len(given) <= 2, where, given, "() or one number or two (a ramp)")
            row["values"][field.name] = (float(given[0]), float(given[-1]))
        elif kind == "groups":
            row["train"] = given
        else:
            rule = field.metadata["allowed"]
            require(rule.holds(given), where, given, rule.text())
            row[kind][field.name] = given
    return row


def epoch_steps(examples: int, batch_size: int) -> int:
    """Steps of one epoch: the last batch is filled up from the start of the epoch's order."""
    if examples < 1:
        raise UserError("the training split has no examples")
    return -(-examples // batch_size)

"""The staged schedule as data: a table of rows, resolved once, read inside the step.

`Plan.hyper(step)` gives every value field at a step, the learning rate included; `Plan.stage(step)`
the row. Both are functions of the step alone, so a resumed run needs no state for them.
"""

import bisect
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxact.config import Config, UserError, reached, require, steps
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
        """The data and shape fields as attributes: what `Task.prepare` sees."""
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
        found = {}
        for name in self.rows[0].values:
            low, high = np.array([row.values[name] for row in self.rows], np.float32).T
            first, last = jnp.asarray(low)[index], jnp.asarray(high)[index]
            found[name] = first + (last - first) * part
        # After the warm-up a stage scales what lies above the curve's floor, not the floor.
        floor = jnp.where(step < self.curve.warmup, 0.0, self.curve.floor)
        found["lr"] = floor + found["lr"] * (self.curve(step, jnp) - floor)
        return found

    def segments(self, start: int) -> Iterator[tuple[PlanRow, int, int]]:
        """What is left from a step on: (row, first step, end step)."""
        for row in self.rows:
            if row.end > start:
                yield row, max(start, row.start), row.end

    def table(self) -> str:
        """The rows as text, with the learning rate at each row's first and last step."""
        names = sorted(set(self.rows[0].values) - {"lr"})
        head = ["row", "epochs", "steps", "lr first", "lr last", "trains"]
        head += [*names, *self.rows[0].data, *self.rows[0].shape]
        lines = [head]
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
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        for index in self.unreachable:
            text.append(f"warning: stages[{index}] starts after the end and is never reached")
        return "\n".join(text)


@dataclasses.dataclass(frozen=True)
class Curve:
    """The base learning rate as a function of the step: warm-up, then one of four shapes.

    All counts are in steps; with `unit` > 1 the curve moves once every `unit` steps (per epoch).
    """

    base: float
    floor: float
    shape: str
    unit: int
    warmup: int
    warmup_from: float
    warmup_full: bool
    warmup_to: str
    prefix: bool
    horizon: int
    period: int
    growth: float
    milestones: tuple[int, ...]
    gamma: float

    def __call__(self, step: Any, xp: Any = np) -> Any:
        """Learning rate at a step, with NumPy (float64) or jax.numpy (float32, traced)."""
        step = (step // self.unit) * self.unit
        after = self._after(step - self.warmup if self.prefix else step, xp)
        if not self.warmup:
            return after
        top = self.base
        if self.warmup_to == "curve":
            top = float(self._after(0 if self.prefix else self.warmup, np))
        span = self.warmup - (self.unit if self.warmup_full else 0)
        part = step / span if span > 0 else 1.0
        low = self.base * self.warmup_from
        return xp.where(step < self.warmup, low + (top - low) * part, after)

    def _after(self, step: Any, xp: Any) -> Any:
        step = xp.maximum(step, 0)
        if self.shape == "constant":
            return self.base + 0.0 * step
        if self.shape == "step":
            passed = sum((step >= m) * 1.0 for m in self.milestones)
            return self.base * self.gamma**passed
        if self.shape == "cosine":
            left = (self.horizon - step) / max(self.horizon, 1)
        else:
            left = self._left_of_cycle(step, xp)
        # (1 + cos(pi p)) / 2 = sin(pi (1 - p) / 2)^2, which keeps its digits near the end in f32.
        left = xp.clip(left, 0.0, 1.0)
        return self.floor + (self.base - self.floor) * xp.sin(math.pi / 2 * left) ** 2

    def _left_of_cycle(self, step: Any, xp: Any) -> Any:
        if self.growth == 1.0:
            return 1 - (step % self.period) / self.period
        ratio = step * (self.growth - 1) / self.period + 1
        cycle = xp.floor(xp.log(ratio) / math.log(self.growth) + 1e-6)
        length = self.period * self.growth**cycle
        begin = self.period * (self.growth**cycle - 1) / (self.growth - 1)
        return 1 - (step - begin) / length


def curve(config: Config, per_epoch: int, total: int) -> Curve:
    """Resolves the durations of `config.optim` into steps."""
    optim = config.optim

    def count(duration: str, field: str) -> int:
        return steps(duration, per_epoch=per_epoch, total=total, field=f"optim.{field}")

    scale = config.batch_size / optim.lr_batch if optim.lr_batch else 1.0
    warmup = count(optim.warmup, "warmup")
    begin = warmup if optim.warmup_prefix else 0
    horizon = count(optim.decay_over, "decay_over") if optim.decay_over else total - begin
    period = count(optim.restart_every, "restart_every") if optim.restart_every else 0
    if optim.schedule == "cosine_restarts":
        require(period >= 1, "optim.restart_every", optim.restart_every, "one step or more")
    offset = 0 if optim.warmup_prefix is False else warmup
    return Curve(
        base=optim.lr * scale,
        floor=optim.min_lr * scale if optim.schedule.startswith("cosine") else 0.0,
        shape=optim.schedule,
        unit=per_epoch if optim.per == "epoch" else 1,
        warmup=warmup,
        warmup_from=optim.warmup_from,
        warmup_full=optim.warmup_full,
        warmup_to=optim.warmup_to,
        prefix=optim.warmup_prefix,
        horizon=horizon,
        period=period,
        growth=optim.restart_growth,
        # Milestones are counted from the start of training.
        milestones=tuple(count(m, "milestones") - offset for m in optim.milestones),
        gamma=optim.gamma,
    )


def resolve(config: Any, per_epoch: int) -> Plan:
    """Resolves `config.stages` for a data set of `per_epoch` steps.

    Raises:
      UserError: rows out of order, a value that is no constant or ramp, an unknown choice.
    """
    total = steps(config.length, per_epoch=per_epoch, field="length")
    require(total >= 1, "length", config.length, "at least one step")
    require(len(config.stages) > 0, "stages", config.stages, "at least one row")
    base = curve(config, per_epoch, total)
    starts = [
        steps(row.start, per_epoch=per_epoch, total=total, field=f"stages[{i}].start")
        for i, row in enumerate(config.stages)
    ]
    require(starts[0] == 0, "stages[0].start", config.stages[0].start, '"0"')
    for i in range(1, len(starts)):
        require(
            starts[i] > starts[i - 1],
            f"stages[{i}].start",
            config.stages[i].start,
            "later than the row before it",
        )
    rows: list[PlanRow] = []
    before = _initial(config.stages[0])
    for i, row in enumerate(config.stages):
        before = _carry(row, i, before)
        if starts[i] < total:
            end = min(starts[i + 1], total) if i + 1 < len(starts) else total
            rows.append(PlanRow(i, starts[i], end, **before))
        before = {**before, "values": {k: (v[1], v[1]) for k, v in before["values"].items()}}
    late = tuple(i for i in range(len(starts)) if starts[i] >= total)
    return Plan(tuple(rows), late, total, per_epoch, base)


def last_stage_data(config: Any) -> StageData:
    """What `Task.prepare` sees in the last row that training reaches; needs no data.

    Rows are carried over but not placed in time: of an epoch of unknown length no step is known.
    """
    rows = reached(config)
    before = _initial(rows[0])
    for row in rows:
        before = _carry(row, config.stages.index(row), before)
    return StageData(**before["data"], **before["shape"])


def _initial(stage: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"values": {}, "data": {}, "shape": {}, "train": ".*"}
    for field in dataclasses.fields(stage):
        kind, initial = field.metadata.get("kind"), field.metadata.get("initial")
        if kind == "value":
            found["values"][field.name] = (initial, initial)
        elif kind in ("data", "shape"):
            found[kind][field.name] = initial
        elif kind == "groups":
            found["train"] = initial
    return found


def _carry(stage: Any, index: int, before: dict[str, Any]) -> dict[str, Any]:
    found = {
        "values": dict(before["values"]),
        "data": dict(before["data"]),
        "shape": dict(before["shape"]),
        "train": before["train"],
    }
    for field in dataclasses.fields(stage):
        kind, given = field.metadata.get("kind"), getattr(stage, field.name)
        where = f"stages[{index}].{field.name}"
        if kind is None or given in ((), "", 0):
            continue
        if kind == "value":
            require(1 <= len(given) <= 2, where, given, "() or one number or two (a ramp)")
            found["values"][field.name] = (float(given[0]), float(given[-1]))
        elif kind == "data":
            rule = field.metadata["allowed"]
            require(rule.holds(given), where, given, rule.text())
            found["data"][field.name] = given
        elif kind == "shape":
            rule = field.metadata["allowed"]
            require(rule.holds(given), where, given, rule.text())
            found["shape"][field.name] = given
        else:
            found["train"] = given
    return found


def epoch_steps(examples: int, batch_size: int) -> int:
    """Steps of one epoch: the last batch is filled up from the start of the epoch's order."""
    if examples < 1:
        raise UserError("the training split has no examples")
    return -(-examples // batch_size)

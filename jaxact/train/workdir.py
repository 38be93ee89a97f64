"""What a run writes beside its checkpoints: config.json, metrics.jsonl, TensorBoard events, lines
for the person watching."""

import contextlib
import importlib.metadata
import json
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxact import atomic
from jaxact import config as schema
from jaxact.config import UserError
from jaxact.train import hosts

# Fields that results depend on begin with these, except those that only say where data lies.
SHAPING = ("task", "dtype", "model", "data", "stages")
PLACES = re.compile(
    r"data\.(\w*annotations|videos|images|root|features|\w+_split|class_names|class_table|cache\w*)"
)

Number = float | int


def say(text: str) -> None:
    """Prints a line on standard error; standard output belongs to results.

    Of several hosts only the first one prints, and only it writes the files of this module.
    """
    if hosts.first():
        print(text, file=sys.stderr, flush=True)


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, and the devices."""
    import jax

    names = {"python": sys.version.split()[0]}
    for name in ("jaxact", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
        try:
            names[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            names[name] = "source tree"
    devices = jax.devices()
    names["devices"] = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    return names


class MetricsLog:
    """metrics.jsonl (`rows`) and TensorBoard events of a work dir; writes its config.json first."""

    def __init__(
        self,
        workdir: pathlib.Path,
        config: Any,
        per_epoch: int,
        classes: Sequence[str] = (),
        meanings: Sequence[dict[str, str]] = (),
    ):
        self.workdir, self.per_epoch = workdir, per_epoch
        self.path = workdir / "metrics.jsonl"
        if hosts.first():
            self._write_config(config, {"classes": list(classes), "class_table": list(meanings)})
        self.board = self._open_board() if config.save.tensorboard and hosts.first() else None
        self.rows: list[dict[str, Any]] = []

    def _write_config(self, config: Any, names: dict[str, Any]) -> None:
        """config.json with the versions; says what has changed since it was made."""
        path, now = self.workdir / "config.json", schema.as_dict(config)
        if before := recorded(path):
            for name, old, new in differences(before["config"], now):
                say(f"config.{name} was {old!r} when this work dir was made and is {new!r} now")
        content = {"config": now, **names, "steps_per_epoch": self.per_epoch}
        write_json(path, {**content, "versions": versions()})

    def _open_board(self) -> Any:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            say("no TensorBoard events: tensorboardX is not installed (extra [tensorboard])")
            return None
        return SummaryWriter(str(self.workdir / "tensorboard"))

    def resume(self, step: int) -> None:
        """Keeps the rows up to a step: what comes after it is computed again."""
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            with contextlib.suppress(json.JSONDecodeError):  # half a line from a killed process
                row = json.loads(line)
                self.rows += [row] if row["step"] <= step else []
        if hosts.first():
            atomic.write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, step: int, split: str, numbers: dict[str, Number]) -> None:
        """Appends a row; numbers are rounded to nine significant digits."""
        clean = {k: float(f"{float(v):.9g}") for k, v in numbers.items()}
        row = {"step": step, "epoch": round(step / self.per_epoch, 6), "split": split, **clean}
        self.rows.append(row)
        if not hosts.first():
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, number in clean.items():
                # The learning rate is of the schedule, not of a split.
                tag = name if name == "lr" else f"{split}/{name}"
                self.board.add_scalar(tag, number, step)

    def close(self) -> None:
        """Flushes the event file."""
        if self.board is not None:
            self.board.close()


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves of two plain trees that differ: (dotted name, old, new)."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(path, old, new)]
    keys = {key: f"{path}.{key}" if path else key for key in {**old, **new}}
    return [leaf for k, name in keys.items() for leaf in differences(old.get(k), new.get(k), name)]


def recorded(path: pathlib.Path) -> dict[str, Any]:
    """What a run's config.json holds; {} where there is none. Raises: UserError if damaged."""
    if not path.is_file():
        return {}
    try:
        content, why = json.loads(path.read_text()), "it lacks the fields of a run"
    except (OSError, ValueError, RecursionError) as error:
        content, why = None, str(error).splitlines()[0]
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(
            f"{path}: cannot be read as a run's config ({why}); allowed: the file that training "
            "wrote there, or none"
        )
    return content


def mention(config: Any, path: pathlib.Path) -> None:
    """Says where the config differs from that of the work dir a checkpoint comes from."""
    for folder in (path, path.parent, path.parent.parent):
        file = folder / "config.json"
        if path.is_dir() and (folder / "checkpoints").is_dir() and file.is_file():
            before = recorded(file)["config"]
            for name, old, new in differences(before, schema.as_dict(config)):
                if name.split(".")[0] in SHAPING and not PLACES.fullmatch(name):
                    say(f"config.{name} was {old!r} in {folder}, is {new!r} here")
            return


class Progress:
    """Rate and time left, from the steps of this process alone."""

    def __init__(self, total: int, batch_size: int):
        self.total, self.batch_size = total, batch_size
        self.steps, self.started = 0, 0.0
        self.busy = 0.0  # s in training steps, evaluation left out
        self.waited = 0.0  # s spent waiting for the host pipeline

    def start(self) -> None:
        """Training goes on."""
        self.started = time.monotonic()

    def stop(self) -> None:
        """Training pauses, for a validation or a change of stage."""
        self.busy += time.monotonic() - self.started

    def line(self, step: int, epoch: float, numbers: dict[str, Number]) -> str:
        """The log line of a step."""
        left = clock_text((self.total - step) / max(self.rate / self.batch_size, 1e-9))
        shown = " ".join(f"{k} {float(v):.4g}" for k, v in numbers.items())
        waiting = 100 * self.waited / max(self.busy, 1e-9)
        return (
            f"step {step}/{self.total} epoch {epoch:.2f} {shown} | {self.rate:.1f} examples/s, "
            f"{waiting:.0f} % waiting for input, {left} left"
        )

    @property
    def rate(self) -> float:
        """Examples per second of training time."""
        return self.steps * self.batch_size / max(self.busy, 1e-9)


def clock_text(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03.

    >>> clock_text(62)
    '1:02'
    """
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file whole or not at all; NumPy values become plain ones."""
    if hosts.first():
        atomic.write_text(path, json.dumps(content, indent=1, default=_plain) + "\n")


def write_texts(folder: pathlib.Path, files: dict[str, str]) -> None:
    """Writes texts by their path below a folder, each whole or not at all."""
    for name, text in files.items() if hosts.first() else ():
        atomic.write_text(folder / name, text)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")

"""What a run writes beside its checkpoints: config.json, metrics.jsonl, TensorBoard, progress,
results.json."""

import contextlib
import importlib.metadata
import json
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxact import config as schema
from jaxact.config import UserError
from jaxact.train import hosts

# What results depend on begins with these; what only says where data lies, or names it, does not.
SHAPING = ("task", "dtype", "model", "data", "stages")
PLACES = re.compile(
    r"data\.(\w*annotations|videos|images|root|features|\w+_split|class_names|class_table|cache\w*)"
)

Number = float | int


def say(text: str) -> None:
    """One line for the person watching (standard error: standard output belongs to results).

    Of several hosts the first one speaks, and it alone writes what this module writes.
    """
    if hosts.first():
        print(text, file=sys.stderr, flush=True)


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, and the device."""
    import jax

    found = {"python": sys.version.split()[0]}
    for name in ("jaxact", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "source tree"
    devices = jax.devices()
    found["devices"] = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    return found


class Journal:
    """Appends to the work dir; on resume it forgets what lies after the restored step."""

    def __init__(
        self,
        workdir: pathlib.Path,
        config: Any,
        per_epoch: int,
        total: int,
        classes: Sequence[str] = (),
        meanings: Sequence[dict[str, str]] = (),
    ):
        self.workdir, self.per_epoch, self.total = workdir, per_epoch, total
        self.path = workdir / "metrics.jsonl"
        if hosts.first():
            self._write_config(config, {"classes": list(classes), "class_table": list(meanings)})
        self.board = self._open_board() if config.save.tensorboard and hosts.first() else None
        self.rows: list[dict[str, Any]] = []

    def _write_config(self, config: Any, names: dict[str, Any]) -> None:
        path, now = self.workdir / "config.json", schema.as_dict(config)
        if before := recorded(path):
            for name, old, new in differences(before["config"], now):
                say(f"config.{name} was {old!r} when this work dir was made and is {new!r} now")
        made = {"config": now, **names, "steps_per_epoch": self.per_epoch}
        write_json(path, {**made, "versions": versions()})

    def _open_board(self) -> Any:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            say("no TensorBoard events: tensorboardX is not installed (extra [tensorboard])")
            return None
        return SummaryWriter(str(self.workdir / "tensorboard"))

    def resume(self, step: int) -> None:
        """Keeps the rows up to a step: what comes after is computed again."""
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # half a line from a killed process: its step is computed again
                if row["step"] <= step:
                    self.rows.append(row)
        if not hosts.first():
            return
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        part.replace(self.path)

    def add(self, step: int, split: str, numbers: dict[str, Number]) -> None:
        """One row; numbers are rounded to nine significant digits."""
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
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in {**old, **new}:
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [(path, old, new)]


def recorded(path: pathlib.Path) -> dict[str, Any]:
    """What a run's config.json holds; {} where there is none. Raises: UserError if damaged."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        found, why = None, str(error).splitlines()[0]
    else:
        why = "it lacks the fields of a run"
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise UserError(
            f"{path}: cannot be read as a run's config ({why}); allowed: the file that training "
            "wrote there, or none"
        )
    return found


def mention(config: Any, path: pathlib.Path) -> None:
    """Says where the config differs from that of the work dir a checkpoint comes from."""
    for folder in (path, path.parent, path.parent.parent):
        made = folder / "config.json"
        if path.is_dir() and (folder / "checkpoints").is_dir() and made.is_file():
            before = recorded(made)
            for name, old, new in differences(before["config"], schema.as_dict(config)):
                if name.split(".")[0] in SHAPING and not PLACES.fullmatch(name):
                    say(f"config.{name} was {old!r} in {folder}, is {new!r} here")
            return


class Progress:
    """Rate and time left, from the steps of this process alone."""

    def __init__(self, total: int, batch_size: int, clock: Callable[[], float] = time.monotonic):
        self.total, self.batch_size, self.clock = total, batch_size, clock
        self.busy = 0.0  # s in training steps, evaluation left out
        self.steps = 0
        self.waited = 0.0  # s spent waiting for the host pipeline

    def line(self, step: int, epoch: float, numbers: dict[str, Number]) -> str:
        """The log line of a step."""
        rate = self.rate
        left = (self.total - step) / max(rate / self.batch_size, 1e-9)
        shown = " ".join(f"{k} {float(v):.4g}" for k, v in numbers.items())
        return (
            f"step {step}/{self.total} epoch {epoch:.2f} {shown} | {rate:.1f} examples/s, "
            f"{100 * self.waited / max(self.busy, 1e-9):.0f} % waiting for input, "
            f"{clock_text(left)} left"
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
    """Writes whole or not at all."""
    if not hosts.first():
        return
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(content, indent=1, default=_plain) + "\n")
    part.replace(path)


@contextlib.contextmanager
def lines(target: str) -> Iterator[Callable[[str], None]]:
    """Gives a function that writes a line to a file, or ("-") to standard output.

    The file is replaced at the end, whatever the end is, and stays as it was if there is no line.

    Raises:
      UserError: the file's folder does not exist.
    """
    if target == "-":
        yield lambda line: print(line, flush=True)
        return
    path = pathlib.Path(target)
    if not path.parent.is_dir():
        raise schema.UserError(f"--output={target}: there is no folder {path.parent}")
    if path.is_dir():
        raise schema.UserError(f"--output={target} is a folder; give a file")
    plain = path.is_file() or not path.exists()  # not a device or a pipe
    part = path.with_name(path.name + ".part") if plain else path
    count = 0
    with part.open("w") as file:

        def write(line: str) -> None:
            nonlocal count
            file.write(line + "\n")
            file.flush()
            count += 1

        try:
            yield write
        finally:
            file.close()
            if plain and count:
                part.replace(path)
            elif plain:
                part.unlink()


def write_texts(folder: pathlib.Path, files: dict[str, str]) -> None:
    """Writes texts by their path below a folder, each whole or not at all."""
    if not hosts.first():
        return
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)


def _plain(found: Any) -> Any:
    if isinstance(found, np.generic | np.ndarray):
        return found.tolist()
    raise TypeError(f"{type(found).__name__} is not JSON")

"""Checkpoints on disk: the newest and the best ones, written in the background, whole or not.

A checkpoint has two items: `weights` (params, model_state, ema), which evaluation and other runs
read, and `progress` (step, opt_state). Orbax renames a finished folder into place, so a killed
write leaves no broken checkpoint.
"""

import contextlib
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN

from jaxact.config import Save, UserError
from jaxact.train import hosts
from jaxact.train.sharding import joined
from jaxact.train.state import TrainState

ITEMS = ("weights", "progress")
# What the storage raises for files that are missing, cut off or altered.
UNREADABLE = (ValueError, OSError, KeyError, TypeError)


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, but only the training loop asks JAX whether a signal has come."""

    def reached_preemption(self, step: int) -> bool:
        # The writing thread would ask about the step that is being written. JAX takes that for the
        # step this host is at, so all hosts might agree to stop at one that this has passed.
        return False


class Checkpoints:
    """The `checkpoints/` folder of a work dir."""

    def __init__(
        self,
        folder: pathlib.Path,
        save: Save,
        metric: str,
        maximise: bool,
        say: Callable = print,
        keep_every: int = 0,
    ):
        """`keep_every`: checkpoints of its multiples, in steps, are never deleted (0 = none)."""
        self.folder, self.say, self.metric, self.maximise = folder.absolute(), say, metric, maximise

        def score(metrics: Any) -> float:
            return float((metrics or {}).get(metric, -float("inf") if maximise else float("inf")))

        kept: list[Any] = [
            LatestN(save.latest),
            BestN(n=save.best, get_metric_fn=score, reverse=not maximise),
        ]
        kept += [EveryNSteps(keep_every)] if keep_every else []
        self._set_broken_metrics_aside()
        self.manager = _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                # Without best_fn the manager does not write metrics at all.
                best_fn=score,
                best_mode="max" if maximise else "min",
                preservation_policy=AnyPreservationPolicy(kept),
                enable_async_checkpointing=True,
            ),
            # Named here, so that a manager that has saved nothing yet can read their metadata.
            item_handlers={name: ocp.StandardCheckpointHandler() for name in ITEMS},
        )

    def _set_broken_metrics_aside(self) -> None:
        """Moves away metrics that are no JSON: the manager would give up at the first of them."""
        for path in self.folder.glob("*/metrics/metrics") if hosts.first() else ():
            try:
                json.loads(path.read_text())
            except ValueError as error:
                self._set_aside(path.parent, f"{path.parts[-3]}-metrics", str(path), error)
        hosts.meet()

    def _set_aside(self, folder: pathlib.Path, name: str, what: str, reason: Any) -> None:
        aside = self.folder / f"corrupt-{name}"
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        self.say(f"{what} is corrupt ({_first_line(reason)}); moved to {aside}")

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first, as the first host sees them."""
        return hosts.agreed(lambda: sorted(self.manager.all_steps()))

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts writing; raises UserError if this or the previous write failed (disk full)."""
        step = int(state.step)
        with self._writing(f"of step {step} "):
            if step in self.steps():
                if metrics is None:
                    return
                self.manager.wait_until_finished()
                self.manager.delete(step)
            items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
            # Metrics of None make the manager warn each time.
            args = ocp.args.Composite(**items)
            self.manager.save(step, args=args, metrics=metrics or {}, force=True)
            self.manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is on disk. Raises UserError if a write failed."""
        with self._writing():
            self.manager.wait_until_finished()
            self.manager.check_for_errors()

    @contextlib.contextmanager
    def _writing(self, which: str = "") -> Iterator[None]:
        """Turns an error of the storage into one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError):
                # What hosts agree on before they write fails if one of them is gone.
                hosts.report_failure(error)
            free = shutil.disk_usage(self.folder).free // 2**20
            kept = sorted(self.manager.all_steps()) or "none"
            raise UserError(
                f"checkpoint {which}could not be written to {self.folder} ({free} MiB free): "
                f"{_first_line(error)}; kept: {kept}; free some space and run the same command "
                "again"
            ) from error

    def restore(self, state: TrainState) -> TrainState | None:
        """The newest readable checkpoint, or None when there is none.

        Newer ones that cannot be read are then moved aside as `corrupt-<step>`. Raises UserError,
        and moves nothing: one holds other arrays than this state, or none is readable.
        """
        corrupt: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            reason = hosts.agreed(functools.partial(self._fault, step, state))
            try:
                restored = None if reason else self._read(step, state)
            except UNREADABLE as error:
                if hosts.several():  # the others may have read it
                    hosts.report_failure(error)
                    raise
                restored, reason = None, _first_line(error)
            if restored is None:
                corrupt.append((step, reason))
                continue
            hosts.meet()  # all have read what they are about to lose
            for number, reason in corrupt if hosts.first() else ():
                folder = self.folder / str(number)
                self._set_aside(folder, str(number), f"checkpoint {number}", reason)
            hosts.meet()
            if corrupt:
                self.manager.reload()
            return restored
        if corrupt:
            raise UserError(
                f"no checkpoint in {self.folder} can be read ({corrupt[0][0]}: {corrupt[0][1]}); "
                "delete the folder to start afresh"
            )
        return None

    def _fault(self, step: int, state: TrainState) -> str:
        """What is wrong with the files of a checkpoint, or ""."""
        try:
            for item in ITEMS:
                verify(self.folder / str(step) / item)
            self._compare(step, state)
        except UNREADABLE as error:
            return _first_line(error)
        return ""

    def _read(self, step: int, state: TrainState) -> TrainState:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _items(state)
        )
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        items = self.manager.restore(step, args=ocp.args.Composite(**wanted))
        fields = {**items["weights"], **items["progress"]}
        if int(fields["step"]) != step:
            raise ValueError(f"holds step {int(fields['step'])}")
        return TrainState(**fields)

    def _compare(self, step: int, state: TrainState) -> None:
        """One line instead of a long storage error where the model or the optimiser has changed."""
        items = self.manager.item_metadata(step)
        for item, tree in _items(state).items():
            saved = getattr(items[item], "tree", items[item])
            if what := difference(saved, tree):
                raise UserError(
                    f"checkpoint {self.folder / str(step)} does not fit this config: {what}; use "
                    "the config it was trained with, another --workdir, or config.init_from"
                )

    def best(self) -> int | None:
        """Step of the best checkpoint by the named metric, or None."""
        how = (self.metric, self.maximise)
        return hosts.agreed(lambda: best_of(self.folder, self.manager.all_steps(), *how))

    def close(self) -> None:
        """Waits for pending writes and frees the threads."""
        self.wait()
        self.manager.close()


def _items(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds, by item."""
    weights = {"params": state.params, "model_state": state.model_state, "ema": state.ema}
    return {"weights": weights, "progress": {"step": state.step, "opt_state": state.opt_state}}


def difference(saved: Any, wanted: Any) -> str:
    """The first array that two trees do not have in one shape, in words, or ""."""
    old, new = (
        {joined(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (saved, wanted)
    )
    for path in sorted(new.keys() | old.keys()):
        if old.get(path) != new.get(path):
            return f"{path} is {old.get(path, 'absent')} there and {new.get(path, 'absent')} here"
    return ""


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:160]


def verify(folder: pathlib.Path) -> None:
    """Reads every file of an item once, in order; raises one of UNREADABLE for a damaged one.

    In the storage's parallel read it would be a page of traces from several threads.
    """
    # Only _METADATA is needed: the others are hints, but must be sound where they exist.
    hints = (folder / "_sharding", *folder.glob("array_metadatas/*"))
    for path in (folder / "_METADATA", *(p for p in hints if p.is_file())):
        json.loads(path.read_text())
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    store = tensorstore.KvStore.open(spec).result()
    for key in store.list().result():
        store.read(key).result()


def stored_metrics(folder: pathlib.Path) -> dict[str, float]:
    """The validation numbers in one checkpoint folder; {} where it was saved without."""
    path = folder / "metrics" / "metrics"
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is corrupt: {_first_line(error)}") from error


def best_of(folder: pathlib.Path, steps: Iterable[int], metric: str, maximise: bool) -> int | None:
    """The step of the best checkpoint by a metric, the newest of equals; None without numbers."""
    values = {step: stored_metrics(folder / str(step)).get(metric) for step in steps}
    scored = [(v if maximise else -v, step) for step, v in values.items() if v is not None]
    return max(scored)[1] if scored else None


def read_weights(folder: pathlib.Path) -> dict[str, Any]:
    """The weights item of one checkpoint folder (`.../checkpoints/<step>`), without a template.

    Returns {"params": tree, "model_state": tree, "ema": {} or {"params": flat, "model_state":
    tree}}. Raises UserError: it is no checkpoint, or damaged.
    """
    item = folder.absolute() / "weights"
    if not item.is_dir():
        raise UserError(f"{folder} is not a checkpoint of jaxact (it has no folder `weights`)")
    try:
        verify(item)
        with ocp.StandardCheckpointer() as reader:
            # As NumPy arrays: the devices it was saved from need not exist here.
            saved = ocp.StandardCheckpointHandler().metadata(item).tree
            return reader.restore(item, jax.tree.map(lambda m: np.empty(m.shape, m.dtype), saved))
    except UNREADABLE as error:
        raise UserError(f"checkpoint {folder} is corrupt: {_first_line(error)}") from error

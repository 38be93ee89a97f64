"""Checkpoints on disk: the newest ones, the best ones, written in the background, never half.

A checkpoint has two items: `weights` (params, model_state, ema), which evaluation and other runs
read, and `progress` (step, opt_state). Orbax renames a finished directory into place, so a killed
write leaves no broken checkpoint.
"""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxact.config import Save, UserError
from jaxact.train.state import TrainState


class Checkpoints:
    """The `checkpoints/` folder of a work dir."""

    def __init__(
        self, folder: pathlib.Path, save: Save, metric: str, maximise: bool, say: Callable = print
    ):
        self.folder, self.say, self.metric, self.maximise = folder.absolute(), say, metric, maximise

        def score(metrics: Any) -> float:
            return float((metrics or {}).get(metric, -float("inf") if maximise else float("inf")))

        policies = checkpoint_managers
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(save.latest),
                policies.BestN(n=save.best, get_metric_fn=score, reverse=not maximise),
            ]
        )
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                # Without best_fn the manager does not write metrics at all.
                best_fn=score,
                best_mode="max" if maximise else "min",
                preservation_policy=keep,
                enable_async_checkpointing=True,
            ),
            item_names=("weights", "progress"),
        )

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts writing; raises UserError if this or the previous write failed (disk full)."""
        step = int(state.step)
        try:
            if step in self.manager.all_steps():
                if metrics is None:
                    return
                self.manager.wait_until_finished()
                self.manager.delete(step)
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardSave(
                        {
                            "params": state.params,
                            "model_state": state.model_state,
                            "ema": state.ema,
                        }
                    ),
                    progress=ocp.args.StandardSave(
                        {"step": state.step, "opt_state": state.opt_state}
                    ),
                ),
                metrics=metrics or {},  # None makes the manager warn each time
                force=True,
            )
            self.manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Until everything is on disk."""
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._failed(-1, error) from error

    def _failed(self, step: int, error: Exception) -> UserError:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
        free = shutil.disk_usage(self.folder).free // 2**20
        kept = self.manager.all_steps()
        which = f"of step {step} " if step >= 0 else ""
        return UserError(
            f"checkpoint {which}could not be written to {self.folder} ({free} MiB free): {first}; "
            f"kept: {sorted(kept) or 'none'}; free some space and run the same command again"
        )

    def restore(self, state: TrainState) -> TrainState | None:
        """The newest readable checkpoint, or None when there is none.

        A checkpoint that cannot be read is moved aside as `corrupt-<step>` and the one before it is
        used.

        Raises:
          UserError: checkpoints exist but their arrays have other shapes, or none is readable.
        """
        steps = self.steps()
        for step in reversed(steps):
            self._compare(step, state)
            try:
                return self._read(step, state)
            except (ValueError, OSError, KeyError, TypeError) as error:
                reason = (str(error).strip().splitlines() or [repr(error)])[0][:160]
                aside = self.folder / f"corrupt-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
                self.manager.reload()
                self.say(f"checkpoint {step} is corrupt ({reason}); moved to {aside}")
        if steps:
            raise UserError(
                f"no readable checkpoint in {self.folder}; delete the folder to start afresh"
            )
        return None

    def _read(self, step: int, state: TrainState) -> TrainState:
        def abstract(tree: Any) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
            )

        found = self.manager.restore(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardRestore(
                    abstract(
                        {
                            "params": state.params,
                            "model_state": state.model_state,
                            "ema": state.ema,
                        }
                    )
                ),
                progress=ocp.args.StandardRestore(
                    abstract({"step": state.step, "opt_state": state.opt_state})
                ),
            ),
        )
        kept, moved = found["weights"], found["progress"]
        if int(moved["step"]) != step:
            raise ValueError(f"holds step {int(moved['step'])}")
        return TrainState(
            moved["step"],
            kept["params"],
            kept["model_state"],
            moved["opt_state"],
            kept["ema"],
        )

    def _compare(self, step: int, state: TrainState) -> None:
        """One line instead of a long storage error where the model has changed."""
        try:
            saved = self.manager.item_metadata(step)["weights"]
            tree = getattr(saved, "tree", saved)
            was = _shapes(tree["params"])
        except (ValueError, OSError, KeyError, TypeError, AttributeError):
            return  # unreadable: `restore` handles it
        now = _shapes(state.params)
        for path in sorted(now.keys() | was.keys()):
            if was.get(path) != now.get(path):
                raise UserError(
                    f"checkpoint {self.folder / str(step)} does not fit the model: {path} is "
                    f"{was.get(path, 'absent')} there and {now.get(path, 'absent')} here; "
                    "use the config it was trained with, another --workdir, or config.init_from"
                )

    def best(self) -> int | None:
        """Step of the best checkpoint by the named metric, or None."""
        scored = []
        for step in self.steps():
            value = self.metrics(step).get(self.metric)
            if value is not None:
                scored.append((value if self.maximise else -value, step))
        return max(scored)[1] if scored else None

    def metrics(self, step: int) -> dict[str, float]:
        """The validation numbers stored with a checkpoint."""
        path = self.folder / str(step) / "metrics" / "metrics"
        return json.loads(path.read_text()) if path.is_file() else {}

    def close(self) -> None:
        """Waits for pending writes and frees the threads."""
        self.wait()
        self.manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape") and not isinstance(x, dict)
    )
    return {
        "/".join(str(getattr(k, "key", k)) for k in path): tuple(leaf.shape) for path, leaf in flat
    }


def read_weights(folder: pathlib.Path) -> dict[str, Any]:
    """The weights item of one checkpoint folder (`.../checkpoints/<step>`), without a template.

    Returns {"params": tree, "model_state": tree, "ema": {} or {"params": flat, "model_state":
    tree}}.
    """
    item = folder.absolute() / "weights"
    if not item.is_dir():
        raise UserError(f"{folder} is not a checkpoint of jaxact (it has no folder `weights`)")
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(item)

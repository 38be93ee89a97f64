"""The training state, its moving average, and the variables that evaluation uses."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util

Flat = dict[str, Any]  # "/"-joined path -> leaf


class TrainState(flax.struct.PyTreeNode):
    """Everything a checkpoint holds: no random state, no functions, no configuration.

    `opt_state` and `ema["params"]` leave out permanently frozen groups.
    """

    step: Any  # i32[]: updates done
    params: Any
    model_state: Any  # BN statistics and other collections that are not differentiated
    opt_state: Any  # group name -> optax state over {path: leaf}
    ema: Any  # {} or {"params": {path: leaf}, "model_state": tree}


def flatten(tree: Any) -> Flat:
    """A nested dict as one level: "/"-joined path -> leaf."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Flat) -> Any:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def average(ema: Any, decay: Any, params: Flat, model_state: Any) -> Any:
    """ema <- decay * ema + (1 - decay) * now, over parameters and model state."""

    def mix(old: Any, new: Any) -> Any:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return old * decay + new * (1 - decay)

    return {
        "params": {path: mix(leaf, params[path]) for path, leaf in ema["params"].items()},
        "model_state": jax.tree.map(mix, ema["model_state"], model_state),
    }


def weights(state: TrainState) -> Any:
    """Variables for evaluation: the averaged weights where there are any, else the raw ones."""
    if not state.ema:
        return {"params": state.params, **state.model_state}
    flat = {**flatten(state.params), **state.ema["params"]}
    return {"params": unflatten(flat), **state.ema["model_state"]}

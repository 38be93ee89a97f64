"""Optimiser groups: which parameters share a rate, a decay, a freeze; clipping."""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import optax

from jaxact.config import Group, Optim, UserError
from jaxact.train.state import Flat, flatten


@dataclasses.dataclass(frozen=True)
class Groups:
    """The optimiser groups resolved over a parameter tree."""

    config: Optim
    groups: tuple[Group, ...]
    member: dict[str, str]  # path -> group name

    def active(self, train: str) -> frozenset[str]:
        """Names of the groups that a stage trains (`train` is its regex)."""
        names = frozenset(name for name in self.trainable if re.fullmatch(train, name))
        if not names:
            known = ", ".join(g.name for g in self.groups if not g.frozen)
            raise UserError(f"stage train={train!r} matches no group; allowed: {known}")
        return names

    def select(self, flat: Flat, names: frozenset[str]) -> Flat:
        """The leaves of the named groups."""
        return {path: leaf for path, leaf in flat.items() if self.member[path] in names}

    @property
    def trainable(self) -> frozenset[str]:
        """Names of all groups that are not permanently frozen."""
        return frozenset(g.name for g in self.groups if not g.frozen)

    def decay(self, group: Group) -> float:
        """A group's own weight decay, or that of all groups."""
        return self.config.weight_decay if group.weight_decay < 0 else group.weight_decay

    def transform(self, group: Group) -> optax.GradientTransformation:
        """Gradient -> direction, before the learning rate; torch's order of operations."""
        optim, add_decay = self.config, optax.add_decayed_weights(self.decay(group))
        if optim.name == "sgd":
            if not optim.momentum:
                return add_decay
            return optax.chain(add_decay, optax.trace(optim.momentum, optim.nesterov))
        adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
        return optax.chain(*((add_decay, adam) if optim.name == "adam" else (adam, add_decay)))

    def init(self, params: Any) -> dict[str, Any]:
        """Optimiser state of every group that can be trained."""
        flat = flatten(params)
        return {
            group.name: self.transform(group).init(self.select(flat, frozenset([group.name])))
            for group in self.groups
            if not group.frozen
        }

    def update(
        self, grads: Flat, opt_state: Any, flat: Flat, lr: Any, active: frozenset[str]
    ) -> tuple[Flat, Any]:
        """One update of the active groups; the state of the others, counts included, stays."""
        flat, opt_state = dict(flat), dict(opt_state)
        for group in self.groups:
            if group.name not in active:
                continue
            mine = frozenset([group.name])
            old = self.select(flat, mine)
            step, opt_state[group.name] = self.transform(group).update(
                self.select(grads, mine), opt_state[group.name], old
            )
            rate = lr * group.lr
            for path, leaf in old.items():
                flat[path] = leaf - (rate * step[path]).astype(leaf.dtype)
        return flat, opt_state

    def text(self, params: Any) -> str:
        """Which parameters each group holds, for the log."""
        lines = []
        for group in self.groups:
            leaves = self.select(flatten(params), frozenset([group.name])).values()
            decay = f"weight decay {self.decay(group):g}"
            how = "frozen" if group.frozen else f"lr x{group.lr:g}, {decay}"
            held = f"{len(leaves)} arrays, {sum(leaf.size for leaf in leaves):,} parameters"
            lines.append(f"group {group.name} ({group.pattern}): {held}, {how}")
        return "\n".join(lines)


def resolve_groups(optim: Optim, params: Any) -> Groups:
    """Assigns each parameter to the first group whose pattern matches a part of its path.

    Raises UserError: a parameter matches no group, or a group matches no parameter.
    """
    member: dict[str, str] = {}
    for path in flatten(params):
        names = [group.name for group in optim.groups if re.search(group.pattern, path)]
        if not names:
            raise UserError(
                f"config.optim.groups: parameter {path!r} matches no pattern; "
                "add a last group with '.*'"
            )
        member[path] = names[0]
    for index, group in enumerate(optim.groups):
        if group.name not in member.values():
            raise UserError(
                f"config.optim.groups[{index}].pattern={group.pattern!r} matches no parameter "
                f"that an earlier group left; paths look like {next(iter(member))!r}"
            )
    return Groups(optim, tuple(optim.groups), member)


def clip(flat: Flat, limit: float) -> tuple[Flat, Any]:
    """Scales gradients to an L2 norm over all of at most `limit` (0 = off): (gradients, norm before
    that f32[])."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in flat.values()))
    if not limit:
        return flat, norm
    # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
    factor = jnp.minimum(1.0, limit / (norm + 1e-6))
    return {path: leaf * factor.astype(leaf.dtype) for path, leaf in flat.items()}, norm

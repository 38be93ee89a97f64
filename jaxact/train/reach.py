"""Which inputs of a function its results depend on, read from its jaxpr."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def reaching(function: Callable[..., Any], *inputs: Any) -> Any:
    """The tree of bools, like `inputs`, that says which leaves `function(*inputs)` depends on.

    Inputs may be abstract. Calls and scans are looked into; of other control flow every input
    counts.
    """
    leaves, shape = jax.tree.flatten(inputs)
    closed = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(shape, flat)))(*leaves)
    return jax.tree.unflatten(shape, _read(closed.jaxpr, [True] * len(closed.jaxpr.outvars)))


def _read(jaxpr: Any, wanted: list[bool]) -> list[bool]:
    """For each input, whether any of the wanted outputs depends on it."""
    needed = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and _named(v)}
    for equation in reversed(jaxpr.eqns):
        given = [v in needed for v in equation.outvars]
        if any(given):
            pairs = zip(equation.invars, _taken(equation, given), strict=True)
            needed |= {v for v, taken in pairs if taken and _named(v)}
    return [v in needed for v in jaxpr.invars]


def _named(variable: Any) -> bool:
    return isinstance(variable, core.Var)  # the rest are literals


def _taken(equation: Any, given: list[bool]) -> list[bool]:
    """For each input of an equation, whether the outputs `given` depend on it."""
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)  # of a closed one
    sizes = len(equation.invars), len(equation.outvars)
    if inner is None or (len(inner.invars), len(inner.outvars)) != sizes:
        return [True] * sizes[0]
    if equation.primitive.name != "scan":
        return _read(inner, given)
    first, count = equation.params["num_consts"], equation.params["num_carry"]
    while True:  # what a round carries over may be needed by the rounds after it
        taken = _read(inner, given)
        carried = [a or b for a, b in zip(given, taken[first : first + count], strict=False)]
        if carried == given[:count]:
            return taken
        given = carried + given[count:]

"""Cost of a network: exact multiply-adds from its jaxpr, parameters by module."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core


def macs(function: Callable, *args: Any, **kwargs: Any) -> int:
    """Multiply-adds of the convolutions and matrix products in `function(*args, **kwargs)`.

    Arguments may be `jax.ShapeDtypeStruct`s; nothing is computed. Padding counts as data, as it
    does in the published tables; normalisation, activations and pooling count nothing. The body of
    a scan counts once for each step; of a condition only the most expensive branch counts.
    Raises ValueError for a product inside a `while` loop, whose length is unknown.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = {k: x for k, x in enumerate(leaves) if hasattr(x, "shape") and hasattr(x, "dtype")}

    def call(traced):
        filled = [traced.get(k, leaf) for k, leaf in enumerate(leaves)]
        positional, named = jax.tree.unflatten(tree, filled)
        return function(*positional, **named)

    return _jaxpr_macs(jax.make_jaxpr(call)(arrays).jaxpr)


def _jaxpr_macs(jaxpr) -> int:
    return sum(_equation_macs(equation) for equation in jaxpr.eqns)


def _equation_macs(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // outputs
    if name == "dot_general":
        left = _shape(equation.invars[0])
        contracted = math.prod(left[axis] for axis in params["dimension_numbers"][0][0])
        return math.prod(_shape(equation.outvars[0])) * contracted
    inner = [_jaxpr_macs(body) for body in _bodies(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("multiply-adds inside a while loop: its number of steps is unknown")
    return sum(inner)


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _bodies(params: dict) -> list:
    """The jaxprs among an equation's parameters."""
    bodies = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                bodies.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                bodies.append(item)
    return bodies


class Row(NamedTuple):
    """One line of the parameter table."""

    module: str  # path, "/"-joined; "" = the whole tree
    parameters: int


def table(params: Any) -> list[Row]:
    """Parameters by module, in tree order, the total last.

    Modules below the second level of the tree count as part of the one there.
    """
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
        module = "/".join(names[:-1][:2])
        counts[module] = counts.get(module, 0) + math.prod(leaf.shape)
    return [*(Row(*line) for line in counts.items()), Row("", sum(counts.values()))]

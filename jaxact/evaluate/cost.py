"""What a network costs: exact multiply-adds from its jaxpr, parameters by module."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core


def macs(function: Callable, *args: Any, **kwargs: Any) -> int:
    """Multiply-adds of the convolutions and matrix products in `function(*args, **kwargs)`.

    Arguments may be `jax.ShapeDtypeStruct`s; nothing is computed. Padding counts as data, as it
    does in the published tables; normalisation, activations and pooling count nothing. A scan's
    body counts once for each step, the dearest branch of a condition counts.
    Raises ValueError for a product inside a `while` loop, whose length is unknown.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    shaped = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

    def call(*arrays):
        given = iter(arrays)
        filled = [
            next(given) if is_array else leaf for leaf, is_array in zip(leaves, shaped, strict=True)
        ]
        positional, named = jax.tree.unflatten(tree, filled)
        return function(*positional, **named)

    arrays = [leaf for leaf, is_array in zip(leaves, shaped, strict=True) if is_array]
    return _jaxpr_macs(jax.make_jaxpr(call)(*arrays).jaxpr)


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
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


class Row(NamedTuple):
    """One line of the parameter table."""

    module: str  # path, "/"-joined; "" = the whole tree
    parameters: int
    shapes: tuple[tuple[int, ...], ...]  # of the module's own arrays


def table(params: Any, depth: int = 2) -> list[Row]:
    """Parameters by module in tree order, modules deeper than `depth` folded in; the total last."""
    rows: dict[str, tuple[int, tuple]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
        module = "/".join(names[:-1][:depth])
        count, shapes = rows.get(module, (0, ()))
        rows[module] = (count + math.prod(leaf.shape), (*shapes, tuple(leaf.shape)))
    lines = [Row(module, count, shapes) for module, (count, shapes) in rows.items()]
    return [*lines, Row("", sum(line.parameters for line in lines), ())]

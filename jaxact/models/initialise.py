"""Fresh variables of any linen module without compiling its forward pass.

`jit(model.init)` compiles every random draw of a deep network into one program: most of a minute.
Here `model.init` is traced, what no variable depends on is dropped, and the rest runs one
operation at a time. Random numbers come in blocks of fixed size, so two small programs draw a whole
network whatever its shapes; scaling them is left to NumPy.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Checkpointed blocks: looking inside lets the forward pass within them be dropped too.
_CHECKPOINTS = ("checkpoint", "remat2")
_NUMPY: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "sqrt": np.sqrt,
    "neg": np.negative,
}
_SAMPLERS: dict[str, Callable] = {
    "_normal": lambda key, shape: jax.random.normal(key, shape),
    "_uniform": lambda key, shape, low, high: jax.random.uniform(
        key, shape, minval=low, maxval=high
    ),
    "_truncated_normal": lambda key, shape, low, high: jax.random.truncated_normal(
        key, low, high, shape
    ),
}
_BLOCKS = (1 << 15, 1 << 20)  # numbers drawn by one call


def initialise(model, key: jax.Array, *args, **kwargs):
    """Variables distributed as `model.init(key, *args, **kwargs)` draws them, fixed by `key`.

    Arrays among the arguments (also nested) are used for their shape and dtype only and may be
    `jax.ShapeDtypeStruct`s; anything else (None, True, "name") is passed as it is. Other random
    streams of the module (dropout) start from the same key. The numbers are not those of
    `model.init`, their distributions are.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    shaped = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

    def draw(key, *arrays):
        given = iter(arrays)
        filled = [
            next(given) if is_array else leaf for leaf, is_array in zip(leaves, shaped, strict=True)
        ]
        positional, named = jax.tree.unflatten(tree, filled)
        return model.init({"params": key, "dropout": key}, *positional, **named)

    abstract = [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for leaf, is_array in zip(leaves, shaped, strict=True)
        if is_array
    ]
    closed, shapes = jax.make_jaxpr(draw, return_shape=True)(key, *abstract)
    return jax.tree.unflatten(jax.tree.structure(shapes), _outputs(closed, key))


class _Operation(NamedTuple):
    """One equation of a flattened jaxpr; inputs are literals or numbers of values."""

    equation: core.JaxprEqn
    inputs: list
    outputs: list[int]

    def run(self, values: dict) -> None:
        """Computes the outputs into `values`."""
        equation = self.equation
        given = [values[a] if isinstance(a, int) else np.asarray(a.val) for a in self.inputs]
        arrays = _sampled(equation, given)
        name = equation.primitive.name
        if arrays is None and name in _NUMPY and all(isinstance(v, np.ndarray) for v in given):
            arrays = [np.asarray(_NUMPY[name](*given))]
        if arrays is None and name == "broadcast_in_dim" and np.ndim(given[0]) == 0:
            aval: Any = equation.outvars[0].aval
            arrays = [np.full(aval.shape, given[0], aval.dtype)]
        if arrays is None:
            arrays = _evaluated(equation, given)
        values.update(zip(self.outputs, arrays, strict=True))


def _evaluated(equation: core.JaxprEqn, given: list) -> list:
    """Runs one equation; all arrays but keys go on as NumPy arrays."""
    params = equation.params
    body = params.get("call_jaxpr", params.get("fun_jaxpr"))
    if body is not None:  # a function with its own derivative: only its value matters here
        arrays = core.jaxpr_as_fun(body)(*given)
    else:
        arrays = equation.primitive.bind(*given, **params)
    arrays = arrays if equation.primitive.multiple_results else [arrays]
    return [x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x) for x in arrays]


@functools.cache
def _block(name: str, size: int):
    return jax.jit(lambda key, *limits: _SAMPLERS[name](key, (size,), *limits))


@functools.cache
def _reference(name: str, shape: tuple[int, ...], impl: str) -> str:
    """The jaxpr of a sampler as JAX traces it, to recognise it in a module's own."""
    limits = () if name == "_normal" else (jnp.float32(0), jnp.float32(1))
    traced = jax.make_jaxpr(lambda key, *limits: _SAMPLERS[name](key, shape, *limits))(
        jax.random.key(0, impl=impl), *limits
    )
    calls = [e for e in traced.eqns if e.params.get("name") == name]
    return str(calls[0].params["jaxpr"]) if calls else ""


def _sampled(equation: core.JaxprEqn, given: list) -> list | None:
    """The equation's random numbers if it is a known f32 sampler, else None."""
    name = equation.params.get("name")
    if name not in _SAMPLERS or len(equation.outvars) != 1:
        return None
    aval: Any = equation.outvars[0].aval
    key = given[0]
    if aval.dtype != jnp.float32 or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return None
    impl = str(jax.random.key_impl(key))
    if str(equation.params["jaxpr"]) != _reference(name, aval.shape, impl):
        return None
    count = math.prod(aval.shape)
    size = _BLOCKS[0] if count <= _BLOCKS[1] // 4 else _BLOCKS[1]
    sample = _block(name, size)
    blocks = [
        np.asarray(sample(jax.random.fold_in(key, number), *given[1:]))
        for number in range(-(-count // size))
    ]
    return [np.concatenate(blocks)[:count].reshape(aval.shape) if blocks else None]


def _outputs(closed: core.ClosedJaxpr, key: jax.Array) -> list[jax.Array]:
    """Evaluates a jaxpr whose first argument is `key` and whose outputs need no other argument."""
    counter = itertools.count()
    operations: list[_Operation] = []

    def flatten(jaxpr, names: dict) -> list:
        """Appends the jaxpr's operations; returns its outputs as literals or numbers."""

        def read(atom):
            return atom if isinstance(atom, core.Literal) else names[atom]

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            if equation.primitive.name in _CHECKPOINTS:
                body = equation.params["jaxpr"]
                outputs = flatten(body, dict(zip(body.invars, inputs, strict=True)))
            else:
                outputs = [next(counter) for _ in equation.outvars]
                operations.append(_Operation(equation, inputs, outputs))
            names.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    jaxpr = closed.jaxpr
    names = {var: next(counter) for var in (*jaxpr.constvars, *jaxpr.invars)}
    values = {names[v]: c for v, c in zip(jaxpr.constvars, closed.consts, strict=True)}
    values[names[jaxpr.invars[0]]] = key
    atoms = flatten(jaxpr, names)

    needed = {atom for atom in atoms if isinstance(atom, int)}
    kept = []
    for operation in reversed(operations):
        if needed.intersection(operation.outputs):
            needed.update(atom for atom in operation.inputs if isinstance(atom, int))
            kept.append(operation)
    for operation in reversed(kept):
        operation.run(values)
    return [jnp.asarray(values[a] if isinstance(a, int) else a.val) for a in atoms]

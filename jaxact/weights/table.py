"""Tables of names: foreign tensors under our names and layouts, and back.

A table is a list of rules between key templates: `"s{s}.res{j}.a.weight"` and
`"params/res{s}/block{j}/a/kernel"`. `{s}` stands for a number, `{s+1}` for that number plus one, so
one table serves any depth and reads in both directions.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxact.config import UserError

Tensors = Mapping[str, np.ndarray]
Flat = dict[str, Any]  # "params/stem/bn/scale" -> array or anything with shape and dtype


@dataclasses.dataclass(frozen=True)
class Transform:
    """How arrays change layout, and back; with several sources `forward` takes them all."""

    forward: Callable[..., np.ndarray]
    inverse: Callable[[np.ndarray], Any]


same = Transform(lambda x: x, lambda x: x)
# Any convolution, depthwise ones included, and linear: [o, i, ...] <-> [..., i, o].
kernel = Transform(
    lambda x: x.transpose(*range(2, x.ndim), 1, 0),
    lambda x: x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)),
)


def _squeezed(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.squeeze(x, axes)


def pointwise(dims: int) -> Transform:
    """A convolution with a kernel of ones in `dims` dimensions, used as a linear layer."""
    axes = tuple(range(2, 2 + dims))
    return Transform(
        lambda x: _squeezed(x, axes).T, lambda x: x.T.reshape(*x.T.shape, *(1,) * dims)
    )


# A 1 x h x w convolution over frames: [o, i, 1, h, w] <-> [h, w, i, o].
frame_kernel = Transform(
    lambda x: kernel.forward(_squeezed(x, (2,))),
    lambda x: np.expand_dims(kernel.inverse(x), 2),
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One or several source templates and the target they fill."""

    sources: tuple[str, ...]
    target: str
    transform: Transform = same


def conv(source: str, target: str) -> tuple[Rule, ...]:
    """A convolution or linear layer without bias, as modules."""
    return (Rule((f"{source}.weight",), f"params/{target}/kernel", kernel),)


def dense(source: str, target: str, transform: Transform = kernel) -> tuple[Rule, ...]:
    """A linear layer with bias, as modules; `transform` where it is stored as a convolution."""
    return (
        Rule((f"{source}.weight",), f"params/{target}/kernel", transform),
        Rule((f"{source}.bias",), f"params/{target}/bias"),
    )


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Scale, bias and running statistics, as modules."""
    return (
        Rule((f"{source}.weight",), f"params/{target}/scale"),
        Rule((f"{source}.bias",), f"params/{target}/bias"),
        Rule((f"{source}.running_mean",), f"batch_stats/{target}/mean"),
        Rule((f"{source}.running_var",), f"batch_stats/{target}/var"),
    )


def _module(path: str) -> str:
    """The module of a variable, without collection and leaf name."""
    return "/".join(path.split("/")[1:-1])


@dataclasses.dataclass(frozen=True)
class Table:
    """The names of one code base for one model."""

    name: str
    """What errors and reports call it."""
    rules: tuple[Rule, ...]
    heads: tuple[str, ...] = ()
    """Regexes of parts whose size follows the number of classes."""
    part: Callable[[str], str] = _module
    """Target path -> the part it belongs to; partial loading takes a part whole or not at all."""
    optional: tuple[str, ...] = ()
    """Regexes of targets that the code base does not save."""
    ignore: tuple[str, ...] = (r".*\.num_batches_tracked",)
    """Regexes of source keys without meaning for us."""
    adapt: Callable[[Flat, Flat], tuple[Flat, tuple[str, ...]]] | None = None
    """(converted, target) -> (converted for this target, notes for the report)."""


@functools.cache
def _tokens(template: str) -> tuple[tuple[str, str, int], ...]:
    """(text, field, offset) runs of a template; the last run has no field."""
    pieces = re.split(r"\{(\w+)([+-]\d+)?\}", template)
    texts, fields, offsets = pieces[::3], [*pieces[1::3], ""], [*pieces[2::3], None]
    return tuple((t, f, int(o or 0)) for t, f, o in zip(texts, fields, offsets, strict=True))


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    runs = _tokens(template)
    return re.compile("".join(re.escape(t) + (rf"(?P<{f}>\d+)" if f else "") for t, f, _ in runs))


def _match(template: str, name: str) -> dict[str, int] | None:
    """The numbers that make the template this name, or None."""
    found = _pattern(template).fullmatch(name)
    if not found:
        return None
    return {f: int(found[f]) - offset for _, f, offset in _tokens(template) if f}


def _expand(template: str, fields: Mapping[str, int]) -> str:
    runs = _tokens(template)
    return "".join(t + (str(fields[f] + offset) if f else "") for t, f, offset in runs)


def flatten(variables: Mapping[str, Any], prefix: str = "") -> Flat:
    """Nested variables as {"params/stem/bn/scale": leaf}; flat ones stay as they are."""
    flat: Flat = {}
    for key, value in variables.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    variables: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        at = variables
        for parent in parents:
            at = at.setdefault(parent, {})
        at[leaf] = value
    return variables


@dataclasses.dataclass
class Converted:
    """Tensors under our names, before any target is looked at."""

    flat: Flat
    origin: dict[str, tuple[str, ...]]  # target -> source keys
    unknown: list[str]  # keys without a rule
    ignored: list[str]


def _find(table: Table, key: str) -> tuple[Rule, int, dict[str, int]] | None:
    """(rule, index of the source template, numbers) of a source key."""
    for rule in table.rules:
        for index, template in enumerate(rule.sources):
            fields = _match(template, key)
            if fields is not None:
                return rule, index, fields
    return None


def translate(table: Table, tensors: Tensors, source: str = "weights") -> Converted:
    """The tensors in our layout under our names.

    Raises: UserError if two keys fill one target, or a tensor has the wrong number of axes.
    """
    result = Converted({}, {}, [], [])
    found: dict[str, tuple[Rule, dict[int, str]]] = {}
    for key in tensors:
        if any(re.fullmatch(pattern, key) for pattern in table.ignore):
            result.ignored.append(key)
            continue
        hit = _find(table, key)
        if hit is None:
            result.unknown.append(key)
            continue
        rule, index, fields = hit
        target = _expand(rule.target, fields)
        _, keys = found.setdefault(target, (rule, {}))
        if index in keys or found[target][0] is not rule:
            raise UserError(
                f"{source}: {key!r} and {next(iter(keys.values()))!r} both fill {target!r}"
            )
        keys[index] = key
    for target, (rule, keys) in found.items():
        if len(keys) < len(rule.sources):  # the target will be reported as missing
            result.unknown.extend(keys.values())
            continue
        names = tuple(keys[index] for index in range(len(rule.sources)))
        try:
            result.flat[target] = rule.transform.forward(*(tensors[name] for name in names))
        except ValueError as error:
            shapes = ", ".join(f"{name} {tensors[name].shape}" for name in names)
            raise UserError(f"{source}: {shapes} does not fit {target!r} ({error})") from error
        result.origin[target] = names
    return result


def expected(table: Table, path: str) -> tuple[str, ...]:
    """The source keys that would fill a target; () where the table has no rule for it."""
    for rule in table.rules:
        fields = _match(rule.target, path)
        if fields is not None:
            return tuple(_expand(template, fields) for template in rule.sources)
    return ()


def invert(table: Table, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our variables under the table's names and layouts (f32 as they are, counters left out).

    Raises: UserError for a variable that the table does not know.
    """
    tensors: dict[str, np.ndarray] = {}
    for path, value in flatten(variables).items():
        for rule in table.rules:
            fields = _match(rule.target, path)
            if fields is not None:
                parts = rule.transform.inverse(np.asarray(value))
                parts = parts if isinstance(parts, tuple) else (parts,)
                for template, part in zip(rule.sources, parts, strict=True):
                    tensors[_expand(template, fields)] = np.array(part, order="C")
                break
        else:
            raise UserError(f"{table.name} has no name for {path!r}")
    return tensors


def listed(names: Sequence[str], limit: int) -> str:
    """The first names, and how many more there are."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def detect(tensors: Tensors, tables: Sequence[Table], source: str = "weights") -> Table:
    """The table that knows most of the keys.

    Raises: UserError listing the tables if none knows half of them.
    """

    def known(table: Table) -> int:
        return sum(_find(table, key) is not None for key in tensors)

    scores = [known(table) for table in tables]
    skipped = tables[0].ignore
    counted = sum(not any(re.fullmatch(pattern, key) for pattern in skipped) for key in tensors)
    best = max(range(len(tables)), key=scores.__getitem__)
    if scores[best] == 0 or scores[best] < counted / 2:
        raise UserError(
            f"{source}: unknown naming, keys are like {listed(list(tensors), 3)}; "
            f"supported: {', '.join(table.name for table in tables)}"
        )
    return tables[best]

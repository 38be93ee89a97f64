"""Tables of names: foreign tensors under our names and layouts.

A table is a list of rules between key templates: `"s{s}.res{j}.a.weight"` and
`"params/res{s}/block{j}/a/kernel"`. `{s}` stands for a number, `{s+1}` for that number plus one, so
one table serves any depth, and an error can name the key that a target lacks.
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


# What turns a source's array into ours; with several sources it takes them all.
Transform = Callable[..., np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
    """The array as it is."""
    return x


def kernel(x: np.ndarray) -> np.ndarray:
    """Any convolution, depthwise ones included, or linear layer: [o, i, ...] -> [..., i, o]."""
    return x.transpose(*range(2, x.ndim), 1, 0)


@functools.cache
def pointwise(dims: int) -> Transform:
    """A convolution with a kernel of ones in `dims` dimensions, as a linear layer: -> [i, o]."""
    return lambda x: np.squeeze(x, tuple(range(2, 2 + dims))).T


def per_channel(x: np.ndarray) -> np.ndarray:
    """One number a channel, with axes of size 1 around it: -> [c]."""
    return x.reshape(-1)


def frame_kernel(x: np.ndarray) -> np.ndarray:
    """A 1 x h x w convolution over frames: [o, i, 1, h, w] -> [h, w, i, o]."""
    return kernel(np.squeeze(x, 2))


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


def layer_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Scale and bias, as modules."""
    return (
        Rule((f"{source}.weight",), f"params/{target}/scale"),
        Rule((f"{source}.bias",), f"params/{target}/bias"),
    )


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Scale, bias and running statistics, as modules."""
    return (
        *layer_norm(source, target),
        Rule((f"{source}.running_mean",), f"batch_stats/{target}/mean"),
        Rule((f"{source}.running_var",), f"batch_stats/{target}/var"),
    )


def top_or_head(path: str) -> str:
    """The part of a path: a top-level module (a backbone, a stream), or one layer of the head."""
    names = path.split("/")
    return names[1] if names[1] != "head" else "/".join(names[1:3])


@dataclasses.dataclass(frozen=True)
class Table:
    """The names of one code base for one model."""

    name: str
    """What errors and reports call it."""
    rules: tuple[Rule, ...]
    heads: tuple[str, ...] = ()
    """Regexes of parts whose size follows the number of classes."""
    part: Callable[[str], str] = top_or_head
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
    runs = re.split(r"\{(\w+)([+-]\d+)?\}", template)
    texts, fields, offsets = runs[::3], [*runs[1::3], ""], [*runs[2::3], None]
    return tuple((t, f, int(o or 0)) for t, f, o in zip(texts, fields, offsets, strict=True))


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    runs = _tokens(template)
    return re.compile("".join(re.escape(t) + (rf"(?P<{f}>\d+)" if f else "") for t, f, _ in runs))


def _match(template: str, name: str) -> dict[str, int] | None:
    """The numbers that make the template this name, or None."""
    match = _pattern(template).fullmatch(name)
    if not match:
        return None
    return {f: int(match[f]) - offset for _, f, offset in _tokens(template) if f}


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
    converted = Converted({}, {}, [], [])
    matched: dict[str, tuple[Rule, dict[int, str]]] = {}  # target -> its rule and keys by position
    for key in tensors:
        if any(re.fullmatch(pattern, key) for pattern in table.ignore):
            converted.ignored.append(key)
            continue
        hit = _find(table, key)
        if hit is None:
            converted.unknown.append(key)
            continue
        rule, index, fields = hit
        target = _expand(rule.target, fields)
        first, keys = matched.setdefault(target, (rule, {}))
        if index in keys or first is not rule:
            raise UserError(
                f"{source}: {key!r} and {next(iter(keys.values()))!r} both fill {target!r}"
            )
        keys[index] = key
    for target, (rule, keys) in matched.items():
        if len(keys) < len(rule.sources):  # the target will be reported as missing
            converted.unknown.extend(keys.values())
            continue
        names = tuple(keys[index] for index in range(len(rule.sources)))
        try:
            converted.flat[target] = rule.transform(*(tensors[name] for name in names))
        except ValueError as error:
            shapes = ", ".join(f"{name} {tensors[name].shape}" for name in names)
            raise UserError(f"{source}: {shapes} does not fit {target!r} ({error})") from error
        converted.origin[target] = names
    return converted


def expected(table: Table, path: str) -> tuple[str, ...]:
    """The source keys that would fill a target; () where the table has no rule for it."""
    for rule in table.rules:
        fields = _match(rule.target, path)
        if fields is not None:
            return tuple(_expand(template, fields) for template in rule.sources)
    return ()


def listed(names: Sequence[str], limit: int) -> str:
    """The first names, and how many more there are."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def lone_stream(stem: np.ndarray | None, target: Mapping[str, Any]) -> str:
    """rgb | pose: whose weights a lone network's are; its first kernel [o, i, ...] may be absent.

    Those of the target's only stream, or, where it has both, told by the input channels.
    """
    streams = [stream for stream in ("rgb", "pose") if stream in target.get("params", {})]
    if len(streams) == 1:
        return streams[0]
    return "rgb" if stem is None or stem.shape[1] == 3 else "pose"


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

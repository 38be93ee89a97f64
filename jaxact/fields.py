"""What a field of a config allows: bounds and choices as data, checked and described in one place.

    window: int = field(768, least=1)  # steps
    mode: str = field("sliding", choices=("sliding", "resize"))
    dropout: float = field(0.3, least=0, below=1)
    area: tuple[float, ...] = field((0.1, 1.0), length=2, above=0, most=1, rising=True)
    cache: int = field(0, least=1, names={0: "off"})  # 0 is allowed too, and means off

`check` walks a config and refuses the first value that its field does not allow; `Allowed.text`
says the same in words, for errors and for the manual.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """The user's mistake: one line that says what, where and what is allowed. Exit code 2."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The values that a field takes; of a tuple, those that each of its items takes."""

    choices: tuple[str, ...] = ()  # () = no list
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    names: tuple[tuple[Any, str], ...] = ()  # (value, what it means); allowed whatever the bounds
    length: tuple[int, ...] = ()  # numbers of items that a tuple may have; () = any
    rising: bool = False  # no item of a tuple is below the one before it
    note: str = ""  # what the numbers are, or what else they must be: "odd", "rgb, pose"

    def holds(self, value: Any) -> bool:
        """Is the value allowed?"""
        if not isinstance(value, tuple):
            return self._holds(value)
        return (
            (not self.length or len(value) in self.length)
            and all(map(self._holds, value))
            and not (self.rising and list(value) != sorted(value))
        )

    def _holds(self, value: Any) -> bool:
        if value in [known for known, _ in self.names]:
            return True
        if self.choices:
            return value in self.choices
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def text(self, of_tuple: bool = False) -> str:
        """The rule in words, as "0 (off) to below 1" or "2 numbers, each above 0"."""
        shown = ", ".join(f"{v!r} ({name})" for v, name in self.names if v != self.least)
        rule = ", or ".join(part for part in (shown, self._range()) if part)
        if not of_tuple:
            return f"{rule} ({self.note})" if self.note else rule
        counts = " or ".join(str(n) if n else "()" for n in self.length)
        kind = ("texts" if self.choices else "numbers") + (f" ({self.note})" if self.note else "")
        parts = [f"{counts} {kind}"] if counts else [kind] if self.note else []
        parts += [f"each {rule}"] if rule else []
        parts += ["the smaller first"] if self.rising else []
        return ", ".join(parts)

    def _range(self) -> str:
        if self.choices:
            return ", ".join(self.choices)
        end = "" if self.below is None else f"below {self.below:g}"
        end = end if self.most is None else f"{self.most:g}"
        if self.above is not None:
            until = f", up to {end}" if self.below is None else f", {end}"
            return f"above {self.above:g}" + (until if end else "")
        if self.least is None:
            return f"up to {end}" if end else ""
        meaning = dict(self.names).get(self.least)
        start = f"{self.least:g}" + (f" ({meaning})" if meaning else "")
        return f"{start} to {end}" if end else f"{start} or more"


def allowed(
    choices: tuple[str, ...] = (),
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    names: Mapping[Any, str] | None = None,
    length: int | tuple[int, ...] = (),
    rising: bool = False,
    note: str = "",
) -> Allowed:
    """An `Allowed` from what a recipe writes; `length` may be one number."""
    lengths = (length,) if isinstance(length, int) else length
    meanings = tuple((names or {}).items())
    return Allowed(choices, least, above, most, below, meanings, lengths, rising, note)


def field(default: Any, **rule: Any) -> Any:
    """A field with a default and what it allows: the keywords of `allowed`."""
    return dataclasses.field(default=default, metadata={"allowed": allowed(**rule)})


def require(ok: bool, name: str, value: Any, rule: str, head: str = "config.") -> None:
    """One-line error for a field (dotted name below `head`) whose value is not allowed.

    Raises UserError: `ok` is False.
    """
    if not ok:
        raise UserError(f"{head}{name}={value!r} is not allowed; allowed: {rule}")


def rule_of(schema: type, name: str) -> Allowed | None:
    """What a field allows, by its own declaration or by that of a class it is inherited from."""
    for each in schema.__mro__:
        item = getattr(each, "__dataclass_fields__", {}).get(name)
        if item is not None and "allowed" in item.metadata:
            return item.metadata["allowed"]
    return None


def check(node: Any, path: str = "", head: str = "config.") -> None:
    """Every value below a config has its field's type and is one that its field allows.

    Raises UserError: naming the first that does not.
    """
    for item in dataclasses.fields(node):
        value, name = getattr(node, item.name), f"{path}{item.name}"
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.", head)
            continue
        _check_type(item, value, name, head)
        rule = rule_of(type(node), item.name)
        if isinstance(value, tuple):
            for index, part in enumerate(value):
                if dataclasses.is_dataclass(part):
                    check(part, f"{name}[{index}].", head)
        if rule is not None and not rule.holds(value):
            close = difflib.get_close_matches(str(value), rule.choices, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            require(False, name, value, rule.text(isinstance(value, tuple)) + hint, head)


_PLAIN = (bool, int, float, str)
_ITEMS = {"float": (int, float), "int": (int,), "str": (str,)}


def _check_type(item: Any, value: Any, name: str, head: str) -> None:
    """A leaf has the type of its default: the flag parser does not look inside tuples."""
    if not isinstance(value, tuple):
        rule = "a bool, int, float, str, a tuple or a dataclass"
        require(isinstance(value, _PLAIN), name, value, rule, head)
        return
    for kind, types in _ITEMS.items():
        if f"tuple[{kind}" in str(item.type):
            rule = f"a tuple of {kind}, as in --config.{name}=1,2"
            for index, part in enumerate(value):
                ok = isinstance(part, types) and not isinstance(part, bool)
                require(ok, f"{name}[{index}]", part, rule, head)

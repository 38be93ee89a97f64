"""Reads pickles of plain containers and NumPy arrays without running anything that they name.

A pickle is a program: it calls the objects that `find_class` returns. Here these are only sealed
stand-ins of this file, so a pickle can call neither NumPy's own `__setstate__` (which trusts
offsets and item sizes) nor any other importable object.
"""

import codecs
import functools
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxact.config import UserError

_KINDS = "biufcSU"  # of dtypes: no objects, no structures, no dates
_BROKEN = (
    *(pickle.UnpicklingError, EOFError, ImportError, MemoryError, OverflowError, RecursionError),
    *(AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error),
)


class Sealed:
    """A callable whose attributes a pickle cannot change (by its operation BUILD)."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]):
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class Ordered(dict):
    """An OrderedDict's items; attributes that the pickle gives it are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """A pickled dtype: a type string, then (by BUILD) its byte order."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, spec: Any, align: Any = False, copy: Any = False):
        self.value = np.dtype(spec) if isinstance(spec, str) else np.dtype(object)
        if self.value.kind not in _KINDS or self.value.names or self.value.subdtype:
            raise pickle.UnpicklingError(f"array elements of type {spec!r} are not read")

    def __setstate__(self, state: tuple) -> None:
        order, subdtype, names, fields = state[1:5]
        if subdtype is not None or names is not None or fields is not None:
            raise pickle.UnpicklingError("structured arrays are not read")
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class _Array:
    """An array pickled below protocol 5: created empty, filled by BUILD, replaced at the end."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *unused: Any):
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, raw = state[-4:]
        self.value = _frombuffer(raw, dtype, shape, "F" if fortran else "C")


def _frombuffer(raw: Any, dtype: _DType, shape: Any, order: str, axes: Any = None) -> np.ndarray:
    """The array over these bytes, as a writable copy; the bytes must fill the shape exactly."""
    if isinstance(raw, str):  # Python 2 strings arrive as latin-1 text
        raw = raw.encode("latin-1")
    flat = np.frombuffer(raw, dtype.value) if len(raw) else np.zeros(0, dtype.value)
    if order == "K" and axes is not None:
        return flat.reshape(shape).transpose(axes).copy(order="K")
    return flat.reshape(shape, order="F" if order == "F" else "C").copy(order="K")


def _scalar(dtype: _DType, raw: Any) -> Any:
    return _frombuffer(raw, dtype, (), "C")[()]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError(f"_codecs.encode with encoding {encoding!r}")
    return text.encode("latin-1")


def _bytes(kind: type, content: Any = b"", encoding: str = "latin1") -> Any:
    if isinstance(content, int):  # bytes(n) would allocate n zeros
        raise pickle.UnpicklingError(f"{kind.__name__} of a number")
    return kind(_encode(content, encoding) if isinstance(content, str) else content)


def _defaultdict(factory: Any = None, items: Any = ()) -> dict:
    return dict(items)


_TYPES: tuple[type, ...] = (list, dict, tuple, set, frozenset, bool, int, float, complex, str)
_PLAIN: dict[str, Callable[..., Any]] = {
    **{kind.__name__: kind for kind in _TYPES},
    "bytes": functools.partial(_bytes, bytes),
    "bytearray": functools.partial(_bytes, bytearray),
}
_NUMPY: dict[str, Callable[..., Any]] = {
    "_reconstruct": _Array,
    "scalar": _scalar,
    "_frombuffer": _frombuffer,
}
SAFE: Mapping[str, Any] = {
    **{f"{m}.{n}": Sealed(f) for m in ("builtins", "__builtin__") for n, f in _PLAIN.items()},
    **{
        f"numpy.{core}.{module}.{name}": Sealed(call)
        for core in ("core", "_core")
        for module in ("multiarray", "numeric")
        for name, call in _NUMPY.items()
    },
    "numpy.ndarray": "ndarray",  # only ever an argument of _reconstruct
    "numpy.dtype": Sealed(_DType),
    "_codecs.encode": Sealed(_encode),
    "collections.OrderedDict": Sealed(Ordered),
    "collections.defaultdict": Sealed(_defaultdict),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, name, allowed, unknown, persistent):
        # latin-1 is how Python 2 strings, and so arrays pickled there, are read losslessly.
        super().__init__(file, encoding="latin1")
        self._name, self._allowed = name, allowed
        self._unknown, self._persistent = unknown, persistent

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside the pickle")
        return self._persistent(pid)

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path in self._allowed:
            return self._allowed[path]
        value = self._unknown(module, name) if self._unknown else None
        if value is None:
            raise UserError(
                f"{self._name}: refused, the pickle asks for {path!r}; "
                "only plain containers and numeric arrays are allowed"
            )
        return value


def _settle(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with the stand-ins of arrays and dtypes replaced, containers changed in place.

    `seen`: id -> (object, its replacement); holding the object keeps its id from being reused.
    """
    if isinstance(value, (_Array, _DType)):
        return value.value
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = value, value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _settle(item, seen)
    elif isinstance(value, list):
        value[:] = [_settle(item, seen) for item in value]
    else:
        items = [_settle(item, seen) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            seen[id(value)] = value, tuple(items)
    return seen[id(value)][1]


def restricted_load(
    file: BinaryIO,
    name: str,
    *,
    extra: Mapping[str, Any] | None = None,
    unknown: Callable[[str, str], Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object of the next pickle in an open file; `name` is what errors call the file.

    Args:
      extra: further globals ("module.name" -> `Sealed` stand-in) beside `SAFE`.
      unknown: stand-in for a global in neither table, or None to refuse it.
      persistent: resolves persistent ids.

    Raises: UserError for a forbidden global, a truncated or a damaged pickle.
    """
    try:
        unpickler = _Unpickler(file, name, {**SAFE, **(extra or {})}, unknown, persistent)
        return _settle(unpickler.load(), {})
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{name}: not a readable pickle ({reason})") from error


def load(path: str | Path) -> Any:
    """The object in a pickle file of dicts, lists, tuples, sets, strings, numbers, NumPy arrays.

    Raises: UserError for an absent file, a forbidden global, a truncated or a damaged pickle.
    """
    try:
        with open(path, "rb") as file:
            return restricted_load(file, str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error

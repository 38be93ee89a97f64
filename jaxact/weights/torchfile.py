"""PyTorch checkpoint files (zip and pre-1.6 formats) as NumPy arrays, without running their pickle.

Storages are read only when a tensor is asked for, so optimiser states cost nothing. Classes of
training code that a checkpoint drags along (config nodes, meters) become inert objects; anything
of Python itself that could act (`os`, `subprocess`, `builtins.eval`, ...) is refused by name.
"""

import math
import pickle
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxact.config import UserError
from jaxact.data.safe_pickle import Sealed, restricted_load

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        **{"float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": ml_dtypes.bfloat16},
        **{"int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "?"},
        **{"uint16": "u2", "uint32": "u4", "uint64": "u8", "complex64": "c8", "complex128": "c16"},
        **{n: getattr(ml_dtypes, n) for n in ("float8_e4m3fn", "float8_e4m3fnuz")},
        **{n: getattr(ml_dtypes, n) for n in ("float8_e5m2", "float8_e5m2fnuz")},
    }.items()
}
_STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"},
    **{"Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}
# Of the standard library, only these may be named, and they too only yield inert objects.
_HARMLESS = {
    *{"argparse.Namespace", "types.SimpleNamespace", "functools.partial", "builtins.object"},
    *{"builtins.slice", "builtins.range", "copyreg._reconstructor", "copy_reg._reconstructor"},
    *{"datetime.datetime", "datetime.timedelta", "datetime.date", "datetime.timezone"},
    *{"collections.Counter", "collections.deque", "uuid.UUID", "decimal.Decimal"},
    *{f"pathlib.{kind}" for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "Path")},
    *{"pathlib._local.PosixPath", "pathlib._local.WindowsPath", "__builtin__.object"},
}
_PYTHON = set(sys.stdlib_module_names) | {"__builtin__", "copy_reg", "commands"}


class _Locked(type):
    """The class of inert classes: a pickle's BUILD cannot change them."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it changes a class")


class Inert(metaclass=_Locked):
    """An object of a class that is not ours to import: takes everything, does and keeps nothing."""

    __slots__ = ()
    path = ""

    def __new__(cls, *arguments: Any, **fields: Any) -> "Inert":
        return super().__new__(cls)

    def __call__(self, *arguments: Any, **fields: Any) -> "Inert":
        return type(self)()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


@dataclass(frozen=True)
class Storage:
    """A run of `count` elements of one dtype; in old files a tensor may begin at `start`."""

    key: str
    dtype: np.dtype
    count: int
    start: int = 0


@dataclass(frozen=True)
class Tensor:
    """A strided view of a storage, not yet read. Offsets and strides in elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        pass  # Python attributes of a tensor subclass

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, raw: bytes, swap: bool) -> np.ndarray:
        """The elements as a contiguous array of their own. Raises ValueError outside `raw`."""
        store = np.frombuffer(raw, np.uint8)
        size = self.dtype.itemsize
        first = self.storage.start * self.storage.dtype.itemsize + self.offset * size
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        if min((*self.shape, *self.strides, self.offset, 0)) < 0:
            raise ValueError("negative offset, size or stride")
        if first + (last + 1) * size > store.size:
            raise ValueError(f"shape {self.shape} with strides {self.strides} leaves its storage")
        flat = store[first : first + (last + 1) * size].view(self.dtype)
        if swap:
            flat = flat.byteswap()
        steps = tuple(s * size for s in self.strides)
        return np.array(np.lib.stride_tricks.as_strided(flat, self.shape, steps), order="C")


@dataclass(frozen=True)
class _Dtype:
    name: str

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild_v2(storage: Storage, offset: int, shape: tuple, strides: tuple, *more: Any) -> Tensor:
    if len(more) > 2 and more[2]:  # (requires_grad, hooks, {"conj", "neg"})
        raise pickle.UnpicklingError("a tensor is stored conjugated or negated")
    return _rebuild_v3(storage, offset, shape, strides, None, None, storage.dtype)


def _rebuild_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    dtype = DTYPES[dtype.name] if isinstance(dtype, _Dtype) else dtype
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(n) is int for n in numbers):
        raise pickle.UnpicklingError("a tensor is not built from a storage and whole numbers")
    if len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor has as many strides as axes")
    return Tensor(storage, np.dtype(dtype), offset, tuple(shape), tuple(strides))


def _rebuild_subclass(rebuild: Any, kind: Any, arguments: tuple, state: Any) -> Any:
    if not isinstance(rebuild, Sealed):
        raise pickle.UnpicklingError("a tensor subclass is rebuilt by an unknown function")
    return rebuild(*arguments)


def _getattr(owner: Any, name: str) -> Inert:
    """How old protocols name methods; only of inert classes, and as an inert object."""
    if not (isinstance(owner, type) and issubclass(owner, Inert)) and not isinstance(owner, Inert):
        raise UserError(f"refused, the pickle asks for builtins.getattr(..., {name!r})")
    return _inert(f"{owner.path}.{name}")()


def _inert(path: str) -> Any:
    return _Locked("Inert", (Inert,), {"__slots__": (), "path": path})


_EXTRA: dict[str, Any] = {
    **{f"torch.{name}Storage": _Dtype(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{module}UntypedStorage": _Dtype("uint8") for module in ("", "storage.")},
    **{f"torch.{name}": _Dtype(name) for name in DTYPES},
    "torch._utils._rebuild_tensor": Sealed(_rebuild_v2),
    "torch._utils._rebuild_tensor_v2": Sealed(_rebuild_v2),
    "torch._utils._rebuild_tensor_v3": Sealed(_rebuild_v3),
    "torch._utils._rebuild_parameter": Sealed(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": Sealed(lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": Sealed(_rebuild_subclass),
    "torch.Size": Sealed(lambda sizes=(): tuple(sizes)),
    "torch.device": Sealed(lambda *parts: ":".join(map(str, parts))),
    **{f"{module}.getattr": Sealed(_getattr) for module in ("builtins", "__builtin__")},
}
_TORCH_CODE = ("torch._utils", "torch._tensor", "torch.storage", "torch.serialization", "torch._C")


def _unknown(module: str, name: str) -> Any:
    """An inert class for a name of someone's training code, None (refused) for the rest."""
    path = f"{module}.{name}"
    if module in _TORCH_CODE or path.endswith("Storage"):
        return None  # quantised, sparse or nested tensors: their numbers would be lost
    if module.split(".")[0] in _PYTHON and path not in _HARMLESS:
        return None
    return _inert(path)


def _load_pickle(file: BinaryIO, name: str, persistent: Callable[[Any], Any] | None = None) -> Any:
    return restricted_load(file, name, extra=_EXTRA, unknown=_unknown, persistent=persistent)


def _storage(pid: Any, start: int = 0) -> Storage:
    """The storage of a persistent id ("storage", type, key, device, number of elements)."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
        raise pickle.UnpicklingError("a persistent id is not a storage")
    kind, key, count = pid[1], pid[2], pid[4]
    if not isinstance(kind, _Dtype) or not isinstance(key, str) or type(count) is not int:
        raise pickle.UnpicklingError("a storage lacks its type, key or size")
    return Storage(key, DTYPES[kind.name], count, start)


Fetch = Callable[[Tensor], np.ndarray]


def open_zip(archive: zipfile.ZipFile, name: str) -> tuple[Any, Fetch]:
    """The pickled object of a zip-format file, tensors unread, and the function that reads one.

    Raises: UserError for an archive that is not a checkpoint, or a damaged one.
    """
    entries = {info.filename: info for info in archive.infolist()}
    roots = [entry[: -len("data.pkl")] for entry in entries if entry.endswith("data.pkl")]
    if not roots:
        raise UserError(f"{name}: a zip archive without data.pkl is not a PyTorch checkpoint")
    root = min(roots, key=len)
    if root + "constants.pkl" in entries:
        raise UserError(f"{name}: a TorchScript archive; save the module's state_dict() instead")

    def content(entry: str) -> bytes:
        if entry not in entries:
            raise UserError(f"{name}: damaged, the archive lacks {entry!r}")
        if entries[entry].compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{name}: {entry!r} is compressed; PyTorch stores without compression")
        try:
            return archive.read(entries[entry])
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{name}: damaged at {entry!r} ({error})") from error

    order = content(root + "byteorder").decode("latin-1") if root + "byteorder" in entries else ""
    swap = (order or "little") != sys.byteorder
    opened: dict[str, bytes] = {}

    def fetch(tensor: Tensor) -> np.ndarray:
        entry = f"{root}data/{tensor.storage.key}"
        if entry not in opened:
            opened.clear()  # views of one storage are neighbours: one is kept
            opened[entry] = content(entry)
        if len(opened[entry]) < tensor.storage.count * tensor.storage.dtype.itemsize:
            raise UserError(f"{name}: damaged, {entry!r} is shorter than its tensors")
        return tensor.view(opened[entry], swap)

    with archive.open(root + "data.pkl") as file:
        if entries[root + "data.pkl"].compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{name}: data.pkl is compressed; PyTorch stores without compression")
        return _load_pickle(file, name, _storage), fetch  # type: ignore[arg-type]


def open_stream(file: BinaryIO, name: str) -> tuple[Any, Fetch]:
    """As `open_zip` for the format before PyTorch 1.6; a plain pickle of arrays is read as well."""
    first = _load_pickle(file, name)
    if first != LEGACY_MAGIC:
        return first, _no_tensor
    version, system = _load_pickle(file, name), _load_pickle(file, name)
    if version != LEGACY_PROTOCOL or not isinstance(system, dict):
        raise UserError(f"{name}: PyTorch file protocol {version!r}, supported is 1001")
    stored: dict[str, Storage] = {}

    def persistent(pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]  # a pickled nn.Module with its source text: inert
        part = pid[5] if isinstance(pid, tuple) and len(pid) > 5 else None
        storage = _storage(pid, part[1] if part else 0)
        stored.setdefault(storage.key, storage)
        return storage

    content = _load_pickle(file, name, persistent)
    keys = _load_pickle(file, name)
    places: dict[str, tuple[int, int]] = {}
    if not isinstance(keys, list) or not set(keys) <= set(stored):
        raise UserError(f"{name}: damaged, its list of storages does not fit its tensors")
    at, end = file.tell(), file.seek(0, 2)
    little = system.get("little_endian", True)
    for key in keys:
        file.seek(at)
        count = int.from_bytes(file.read(8), "little" if little else "big", signed=True)
        length = count * stored[key].dtype.itemsize
        if count < 0 or at + 8 + length > end:
            raise UserError(f"{name}: truncated or damaged at storage {key!r}")
        places[key] = (at + 8, length)
        at += 8 + length
    swap = little != (sys.byteorder == "little")

    def fetch(tensor: Tensor) -> np.ndarray:
        if tensor.storage.key not in places:
            raise UserError(f"{name}: damaged, storage {tensor.storage.key!r} is missing")
        start, length = places[tensor.storage.key]
        file.seek(start)
        return tensor.view(file.read(length), swap)

    return content, fetch


def _no_tensor(tensor: Tensor) -> np.ndarray:
    raise ValueError("a pickle without storages holds no tensor")

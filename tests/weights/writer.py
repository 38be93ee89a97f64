"""PyTorch checkpoint files written without PyTorch: the zip format and the one before 1.6."""

import collections
import dataclasses
import io
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    **{"float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16"},
    **{"int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte"},
    **{"bool": "Bool", "complex64": "ComplexFloat"},
}


@dataclasses.dataclass(frozen=True)
class Name:
    """A global, pickled by name whether or not it can be imported here."""

    module: str
    name: str

    def __call__(self):
        raise NotImplementedError


@dataclasses.dataclass(eq=False)
class Storage:
    values: np.ndarray  # flat
    key: str = ""


@dataclasses.dataclass(eq=False)
class View:
    """A tensor over a storage; offsets and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


@dataclasses.dataclass(eq=False)
class Call:
    """What a pickle does when it is loaded: call this with these."""

    function: Name
    arguments: tuple


def view(array):
    """A contiguous array as a tensor with a storage of its own."""
    array = np.array(array, order="C")
    strides = tuple(s // array.itemsize for s in array.strides)
    return View(Storage(array.reshape(-1)), 0, array.shape, strides)


class _Pickler(pickle._Pickler):
    dispatch = pickle._Pickler.dispatch.copy()

    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.storages, self.legacy = [], legacy

    def save_name(self, name):
        self.write(f"c{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    dispatch[Name] = save_name

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            value.key = str(len(self.storages))
            self.storages.append(value)
        kind = Name("torch", f"{STORAGES[value.values.dtype.name]}Storage")
        location = ("storage", kind, value.key, "cpu", value.values.size)
        return (*location, None) if self.legacy else location

    def reducer_override(self, value):
        if isinstance(value, Call):
            return value.function, value.arguments
        if isinstance(value, View):
            layout = (value.storage, value.offset, value.shape, value.strides)
            rebuild = Name("torch._utils", "_rebuild_tensor_v2")
            return rebuild, (*layout, False, collections.OrderedDict())
        return NotImplemented


def pickled(content, legacy=False):
    """(pickle, storages) of an object that holds `View`s, `Call`s and `Name`s."""
    file = io.BytesIO()
    pickler = _Pickler(file, legacy)
    pickler.dump(content)
    return file.getvalue(), pickler.storages


def write_zip(path, content, order="little", compression=zipfile.ZIP_STORED):
    """As torch.save writes since 1.6."""
    data, storages = pickled(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", order)
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", _raw(storage, order))
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path, content, order="little", version=1001):
    """As torch.save wrote before 1.6."""
    data, storages = pickled(content, legacy=True)
    with open(path, "wb") as file:
        for head in (0x1950A86A20F9469CFC6C, version, {"little_endian": order == "little"}):
            pickle.dump(head, file, protocol=2)
        file.write(data)
        pickle.dump([storage.key for storage in storages], file, protocol=2)
        for storage in storages:
            file.write(struct.pack("<q" if order == "little" else ">q", storage.values.size))
            file.write(_raw(storage, order))
    return path


def write_safetensors(path, tensors, metadata=None):
    """As the safetensors library writes, by hand."""
    import json

    kinds = {"float32": "F32", "bfloat16": "BF16", "int64": "I64", "float16": "F16", "bool": "BOOL"}
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for key, value in tensors.items():
        raw = np.ascontiguousarray(value).tobytes()
        header[key] = {
            "dtype": kinds[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
    return path


def _raw(storage, order):
    values = storage.values
    return (values if order == "little" else values.byteswap()).tobytes()


def every_dtype():
    """Small arrays of each storage type, values that a wrong dtype would show."""
    rng = np.random.default_rng(0)
    arrays = {
        f"x.{name}": (100 * rng.standard_normal((2, 3))).astype(
            ml_dtypes.bfloat16 if name == "bfloat16" else name
        )
        for name in STORAGES
        if name not in ("uint8", "bool")
    }
    return arrays | {
        "x.uint8": np.array([0, 7, 255], np.uint8),
        "x.bool": np.array([True, False]),
        "x.scalar": np.array(3.5, np.float32),
        "x.empty": np.zeros((0, 4), np.float32),
    }

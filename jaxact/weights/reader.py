"""A weights file as a flat dict of NumPy arrays: PyTorch `.pth .pyth .pt .bin`, `.safetensors`.

Nothing in the file is run and PyTorch is not needed.
"""

import contextlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxact.config import UserError
from jaxact.weights import torchfile
from jaxact.weights.torchfile import DTYPES, Fetch, Inert, Tensor

CONTAINERS = (
    *("model_state", "model_state_dict", "state_dict", "module", "model", "params"),
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema"),
)
_DEPTH = 4  # containers within containers
LIMIT = 32 << 30  # bytes; larger files are refused rather than read into host memory
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_SAFETENSORS = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"},
    **{"U16": "uint16", "U32": "uint32", "U64": "uint64", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


def read(path: str | Path, *, container: str = "", limit: int = LIMIT) -> dict[str, np.ndarray]:
    """The tensors of a weights file by name; `module.` of data-parallel training is stripped.

    Args:
      container: the entry of the file that holds the state dict, e.g. "state_dict_ema"; "" takes
        the first of `CONTAINERS` that holds tensors.
      limit: bytes; a larger file is refused.

    Raises: UserError, one line, for a file that is absent, too large, truncated, damaged, of
      another kind, or whose pickle names anything that could act.
    """
    with _opened(path, limit) as file:
        head = file.read(16)
        file.seek(0)
        if Path(path).suffix == ".safetensors":
            tensors = _read_safetensors(file, str(path))
        elif head.startswith(b"PK"):
            tensors = _read_zip(file, str(path), container, limit)
        elif head.startswith(b"\x80"):
            content, fetch = torchfile.open_stream(file, str(path))
            tensors = _collect(content, fetch, str(path), container, limit)
        elif head[8:9] == b"{":
            tensors = _read_safetensors(file, str(path))
        else:
            raise UserError(
                f"{path}: not a weights file (it starts with {head[:8]!r}); "
                "readable are .pth .pyth .pt .bin of PyTorch and .safetensors"
            )
    return _unwrapped(tensors)


def entries(path: str | Path, limit: int = LIMIT) -> tuple[str, ...]:
    """Names under which a PyTorch file holds weights; () where they lie flat in it.

    Raises: UserError as `read` does for a file that cannot be opened.
    """
    with _opened(path, limit) as file:
        head = file.read(16)
        file.seek(0)
        if head.startswith(b"PK"):
            with _archive(file, str(path)) as archive:
                content, _ = torchfile.open_zip(archive, str(path))
        elif head.startswith(b"\x80"):
            content, _ = torchfile.open_stream(file, str(path))
        else:
            return ()
    if not isinstance(content, Mapping):
        return ()
    return tuple(k for k, v in content.items() if isinstance(k, str) and _holds_tensors(v))


@contextlib.contextmanager
def _opened(path: str | Path, limit: int) -> Iterator[BinaryIO]:
    if Path(path).is_dir():
        raise UserError(f"{path}: is a folder; give the weights file itself")
    try:
        with open(path, "rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size > limit:
                raise UserError(f"{path}: {size} bytes; files over {limit} bytes are not read")
            if size == 0:
                raise UserError(f"{path}: the file is empty")
            file.seek(0)
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_zip(file: BinaryIO, name: str, container: str, limit: int) -> dict[str, np.ndarray]:
    with _archive(file, name) as archive:
        content, fetch = torchfile.open_zip(archive, name)
        return _collect(content, fetch, name, container, limit)


def _archive(file: BinaryIO, name: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{name}: truncated or damaged zip archive ({error})") from error


def _collect(
    content: Any, fetch: Fetch, name: str, container: str, limit: int
) -> dict[str, np.ndarray]:
    """The arrays of the state dict within a checkpoint's object."""
    tensors = {}
    for key, value in _state_dict(content, name, container).items():
        if isinstance(value, Tensor):
            if value.nbytes > limit:
                raise UserError(f"{name}: {key!r} has shape {value.shape}, over {limit} bytes")
            try:
                tensors[key] = fetch(value)
            except ValueError as error:
                raise UserError(f"{name}: damaged, {key!r}: {error}") from error
        elif isinstance(value, np.ndarray):
            tensors[key] = value
        elif isinstance(value, Inert):
            raise UserError(f"{name}: {key!r} is an object of {value.path}, not a tensor")
    return tensors


def _state_dict(content: Any, name: str, container: str) -> Mapping[str, Any]:
    """The innermost mapping of names to tensors, looked for under the usual entries."""
    if isinstance(content, Inert):
        raise UserError(
            f"{name}: holds a pickled object of {content.path}, not weights; "
            "save its state_dict() instead"
        )
    if container:
        if not isinstance(content, Mapping) or not _holds_tensors(content.get(container)):
            raise UserError(
                f"{name}: no weights under {container!r}; the file holds {_entries(content)}"
            )
        content = content[container]
    if not _holds_tensors(content):
        raise UserError(
            f"{name}: no weights in it, flat or under {', '.join(CONTAINERS)}; "
            f"the file holds {_entries(content)}"
        )
    for _ in range(_DEPTH):
        inner = [entry for entry in CONTAINERS if _holds_tensors(content.get(entry))]
        if not inner:
            break
        content = content[inner[0]]
    return {key: value for key, value in content.items() if isinstance(key, str)}


def _holds_tensors(content: Any, depth: int = _DEPTH) -> bool:
    """Whether a mapping holds tensors, itself or under one of `CONTAINERS`."""
    if not isinstance(content, Mapping) or not depth:
        return False
    if any(isinstance(value, (Tensor, np.ndarray)) for value in content.values()):
        return True
    return any(_holds_tensors(content.get(entry), depth - 1) for entry in CONTAINERS)


def _entries(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return ", ".join(repr(key) for key in list(content)[:12]) or "nothing"


def _unwrapped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the prefixes of training wrappers, where every array (counters apart) has them."""
    for wrapper in _WRAPPERS * 2:  # either may be outside
        named = [key for key, value in tensors.items() if value.ndim or key.startswith(wrapper)]
        if named and all(key.startswith(wrapper) for key in named):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return tensors


def _read_safetensors(file: BinaryIO, name: str) -> dict[str, np.ndarray]:
    """8 bytes of header length, a JSON header of {name: dtype, shape, offsets}, then the data."""
    length = int.from_bytes(file.read(8), "little")
    end = file.seek(0, io.SEEK_END)
    if length > end - 8:
        raise UserError(f"{name}: truncated or not a safetensors file (header of {length} bytes)")
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        layout = []
        for key, entry in header.items():
            if key != "__metadata__":
                dtype, shape = DTYPES[_SAFETENSORS[entry["dtype"]]], tuple(map(int, entry["shape"]))
                start, stop = map(int, entry["data_offsets"])
                layout.append((str(key), dtype, shape, start, stop))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{name}: damaged safetensors header ({error!r})") from error
    tensors = {}
    for key, dtype, shape, start, stop in layout:
        size = math.prod(shape) * dtype.itemsize
        if min((*shape, start)) < 0 or stop - start != size or 8 + length + stop > end:
            raise UserError(f"{name}: truncated or damaged, {key!r} {shape} at {start}:{stop}")
        file.seek(8 + length + start)
        little = dtype.newbyteorder("<") if dtype.kind != "V" else dtype
        tensors[key] = np.frombuffer(file.read(size), little).reshape(shape).astype(dtype)
    return tensors

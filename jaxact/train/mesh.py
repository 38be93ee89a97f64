"""The mesh of devices, and how arrays get onto it and off it, on one host or many.

Axes: "data" (copies), "fsdp" (copies that share one state), "tensor" (parts of a layer). A batch is
split along the first two; `sharding` says how the state is split.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxact import config as schema
from jaxact.config import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # axes that a batch is split along


def make_mesh(options: schema.Mesh | None = None) -> Mesh:
    """All devices of all hosts as data x fsdp x tensor; the compiler places the collectives.

    Raises UserError: that product is not the number of devices.
    """
    options, devices = options or schema.Mesh(), jax.device_count()
    fixed = options.fsdp * options.tensor
    data = options.data or max(devices // fixed, 1)
    if data * fixed != devices:
        raise UserError(
            f"config.mesh: data={options.data} x fsdp={options.fsdp} x tensor={options.tensor} "
            f"over {devices} devices; allowed: fsdp x tensor divides {devices}, and data is 0 or "
            "the quotient"
        )
    shape = (data, options.fsdp, options.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: axis b over `BATCH`."""
    axes = tuple(axis for axis in BATCH if axis in mesh.axis_names)
    return NamedSharding(mesh, PartitionSpec(axes))


def shards(mesh: Mesh) -> int:
    """Parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH if axis in mesh.axis_names)


def several(mesh: Any) -> bool:
    """Does the mesh hold devices of other processes?"""
    return len(mesh.local_devices) < mesh.size


def check_batch(size: int, mesh: Mesh, field: str) -> None:
    """Raises UserError where a batch does not split evenly over the devices."""
    count = shards(mesh)
    if size % count:
        what = f"config.{field}={size} does not split over {count} devices"
        raise UserError(f"{what}; allowed: multiples of {count}")


def rows(mesh: Mesh, size: int) -> tuple[int, ...] | None:
    """Which rows of every batch of `size` this process reads, ascending; None = all of them.

    Rows of devices that share them (along "tensor") are read by each process that has one.
    """
    if not several(mesh):
        return None
    parts = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return tuple(sorted({row for part in parts if part for row in range(size)[part[0]]}))


def split(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """The global batch, sharded along b, from the rows that this process read; returns at once."""
    place = batch_sharding(mesh)
    if not several(mesh):
        return jax.device_put(batch, place)
    count = shards(mesh)
    mine = len(rows(mesh, count) or ())
    return {
        name: jax.make_array_from_process_local_data(
            place, array, (len(array) * count // mine, *array.shape[1:])
        )
        for name, array in batch.items()
    }


def place(tree: Any, places: Any) -> Any:
    """Puts a tree on the devices; its leaves are equal on all hosts, or global already."""

    def put(leaf: Any, where: NamedSharding) -> Any:
        if not several(where.mesh):
            return jax.device_put(leaf, where)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return _moved(where)(leaf)
        # Without the check of device_put, which would send every leaf to all hosts.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])

    return jax.tree.map(put, tree, places)


def whole(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process can read in full. Where there are several, all must call it."""
    if not several(mesh):
        return tree
    return _moved(NamedSharding(mesh, PartitionSpec()))(tree)


def own(tree: Any, mesh: Mesh) -> Any:
    """A copy of the tree that each host may use by itself. Where there are several, all must call
    it."""
    if not several(mesh):
        return tree
    return jax.tree.map(lambda leaf: jax.numpy.asarray(np.asarray(leaf)), whole(tree, mesh))


@functools.lru_cache(maxsize=256)
def _moved(where: NamedSharding) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=where)

"""One mesh over all devices; batches are split along it, everything else is replicated."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxact.config import UserError


def make_mesh() -> Mesh:
    """All devices on one axis "data". Auto axes: the compiler places the collectives."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_batch(size: int, mesh: Mesh, field: str) -> None:
    """A batch must split evenly over the devices."""
    if size % mesh.size:
        raise UserError(
            f"config.{field}={size} does not split over {mesh.size} devices; "
            f"allowed: multiples of {mesh.size}"
        )


def split(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Puts a host batch on the devices, sharded along b; returns at once."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))

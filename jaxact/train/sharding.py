"""Which axis of the mesh each dimension of the state is split along: one table.

The rule depends on path, shape and mesh alone, so parameters, their gradients, optimiser state and
average are split alike, and a checkpoint fits any mesh.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxact.train import mesh as meshes

# Logical axis -> axis of the mesh. "width" is what runs between layers: whole on every device.
LOGICAL = {"width": "", "heads": "tensor", "hidden": "tensor"}

# Regex searched in a "/"-joined path -> logical axes of the dimensions; first match wins. Of a
# block's two matrices the first is split by columns, the second by rows: one sum joins the parts.
TABLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"block\d+/attn/qkv/kernel$", ("width", "heads")),
    (r"block\d+/attn/[qv]_bias$", ("heads",)),
    (r"block\d+/attn/proj/kernel$", ("heads", "width")),
    (r"block\d+/mlp/fc1/kernel$", ("width", "hidden")),
    (r"block\d+/mlp/fc1/bias$", ("hidden",)),
    (r"block\d+/mlp/fc2/kernel$", ("hidden", "width")),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rule on one mesh. Arrays of fewer than `min_size` numbers are not split by fsdp."""

    mesh: Mesh
    min_size: int

    def spec(self, path: str, shape: tuple[int, ...], fsdp: bool = True) -> PartitionSpec:
        """Mesh axis of each dimension: by the table, then fsdp for the largest one that is left.

        Without `fsdp`: the split that a layer computes with.
        """
        axes: list[str | None] = [None] * len(shape)
        for pattern, logical in TABLE:
            if re.search(pattern, path) and len(logical) == len(shape):
                for index, name in enumerate(logical):
                    if self._divides(LOGICAL[name], shape[index]):
                        axes[index] = LOGICAL[name]
                break
        if fsdp and math.prod(shape) >= self.min_size:
            free = [i for i, axis in enumerate(axes) if axis is None]
            fit = [i for i in free if self._divides("fsdp", shape[i])]
            if fit:
                axes[max(fit, key=lambda i: shape[i])] = "fsdp"
        return PartitionSpec(*axes) if any(axes) else PartitionSpec()

    def _divides(self, axis: str, length: int) -> bool:
        ways = self.mesh.shape.get(axis, 1)
        return ways > 1 and length % ways == 0

    def places(self, tree: Any) -> Any:
        """The sharding of every leaf of a tree of arrays or their shapes."""

        def of(path: Any, leaf: Any) -> NamedSharding:
            return NamedSharding(self.mesh, self.spec(joined(path), leaf.shape))

        return jax.tree_util.tree_map_with_path(of, tree)

    def place(self, tree: Any) -> Any:
        """Puts a tree on the devices, split by the rule."""
        return meshes.place(tree, self.places(tree))

    def gather(self, flat: dict[str, Any]) -> dict[str, Any]:
        """Parameters as layers compute with them; their gradients come back split. Under jit."""

        def one(path: str, leaf: Any) -> Any:
            parts, whole = self.spec(path, leaf.shape), self.spec(path, leaf.shape, fsdp=False)
            if parts == whole:
                return leaf
            return _gathered(leaf, NamedSharding(self.mesh, whole), NamedSharding(self.mesh, parts))

        return {path: one(path, leaf) for path, leaf in flat.items()}

    def bytes_of(self, tree: Any) -> int:
        """Bytes that a tree (arrays or their shapes) takes on each device."""

        def size(leaf: Any, place: NamedSharding) -> int:
            return math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize

        return sum(jax.tree.leaves(jax.tree.map(size, tree, self.places(tree))))


def joined(path: Any) -> str:
    """A key path of JAX joined by "/"."""

    def name(key: Any) -> str:
        return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))

    return "/".join(map(name, path))


# Without this the transpose of the gathering would ask for whole gradients on every device.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: jax.Array, whole: NamedSharding, parts: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, whole)


def _forward(x: jax.Array, whole: NamedSharding, parts: NamedSharding) -> tuple[jax.Array, None]:
    return _gathered(x, whole, parts), None


def _backward(whole: NamedSharding, parts: NamedSharding, kept: None, g: jax.Array) -> tuple:
    return (jax.lax.with_sharding_constraint(g, parts),)


_gathered.defvjp(_forward, _backward)

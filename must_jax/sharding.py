"""Where arrays live: the mesh of devices, and the way onto it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def to_mesh(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch that the processes' parts (b, ...) form, in the order of processes."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies a tree onto every device. The copy shares no memory with `tree`."""
    return jax.device_put(tree, replicated(mesh), may_alias=False)

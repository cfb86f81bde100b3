"""Where arrays live: the mesh of devices, what each of its axes splits, and the way onto it."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from must_jax.errors import UserError

# From the outermost, which tolerates slow links, to the innermost.
AXES = ("data", "fsdp", "model")
ROWS = ("data", "fsdp")  # the axes that the batch is split over
STACKED = "blocks"  # below this key, the leading axis is the layer
# Of the matrices of a block, without the layer: which axis `fsdp` splits (one that a contraction
# or its gradient runs over), and which `model` (heads, or the hidden units of the MLP).
BLOCK_AXES = {
    "qkv/kernel": ("fsdp", None, "model", None),  # (W, 3, heads, W / heads)
    "qkv/bias": (None, "model", None),  # (3, heads, W / heads)
    "out/kernel": ("model", None, "fsdp"),  # (heads, W / heads, W)
    "fc1/kernel": ("fsdp", "model"),  # (W, hidden)
    "fc1/bias": ("model",),
    "fc2/kernel": ("model", "fsdp"),  # (hidden, W)
}
VECTORS = frozenset({"bias", "scale"})


def mesh_shape(*, data: int, fsdp: int, model: int, num_devices: int) -> tuple[int, int, int]:
    """The sizes of the axes, -1 being the devices that the others leave.

    Raises:
      UserError: the sizes don't make up the devices.
    """
    sizes = [data, fsdp, model]
    told = f"config.mesh is data={data}, fsdp={fsdp}, model={model}"
    if sizes.count(-1) > 1 or any(size < 1 for size in sizes if size != -1):
        raise UserError(f"{told}; sizes must be positive, or -1 for one of them")
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise UserError(
            f"{told}, which {num_devices} device(s) don't make up; the product of the sizes must "
            f"be {num_devices}, or divide it where one size is -1"
        )
    data, fsdp, model = (num_devices // known if size == -1 else size for size in sizes)
    return data, fsdp, model


def make_mesh(
    *, data: int = -1, fsdp: int = 1, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """The mesh of the axes `data`, `fsdp` and `model`, placed so that neighbours are close.

    Where devices form several slices (or nodes), which slow links join, slices lie along `data` as
    far as its size goes, then along `fsdp`, then along `model`.

    Args:
      data: copies of the state; the batch is split over them. -1: the rest of the devices.
      fsdp: parts that the state is split into; the batch is split over them too. Likewise.
      model: parts that attention heads and MLPs are split into. Likewise.
      devices: all of all processes, if None; or those of a topology to compile for.

    Raises:
      UserError: the sizes don't make up the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(data=data, fsdp=fsdp, model=model, num_devices=len(devices))
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    between, left = [], num_slices
    for size in shape:
        between.append(math.gcd(size, left))
        left //= between[-1]
    within = [size // dcn for size, dcn in zip(shape, between, strict=True)]
    placed = mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def num_row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Parts that a batch is split into; it must be a multiple."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def state_shardings(mesh: Mesh, shapes: Any) -> Any:
    """How a state is split: one sharding for each leaf of `shapes`.

    Every matrix is split over `fsdp`, along an axis other than the layers', so that a scan over
    layers gathers one of them at a time; vectors (biases, norms, the class token), under 0.2 % of a
    ViT-B/16, stay whole. Heads and the MLP's hidden units are split over `model` (Shoeybi et al.,
    2019). An axis that a size does not divide stays whole.

    Args:
      mesh: with the axes `data`, `fsdp` and `model`.
      shapes: parameters, or a tree that holds trees like them, such as a `TrainState`; arrays or
        their shapes.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        # Optimizer states hold the parameters' trees below keys of their own kinds.
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        if STACKED not in names:
            return NamedSharding(mesh, _leaf_spec(names, leaf.shape, mesh.shape))
        layer = _leaf_spec(names, leaf.shape[1:], mesh.shape, in_block=True)
        return NamedSharding(mesh, PartitionSpec(None, *layer))

    return jax.tree.map_with_path(sharding, shapes)


def _leaf_spec(
    names: list[str], shape: tuple[int, ...], parts: Mapping[str, int], *, in_block: bool = False
) -> PartitionSpec:
    """How a leaf is split, by the keys of its path, its shape without layers, and the axes."""
    axes: tuple[str | None, ...] | None
    axes = BLOCK_AXES.get("/".join(names[-2:])) if in_block else None
    if axes is None:
        is_vector = not names or names[-1] in VECTORS or math.prod(shape) == max(shape)
        axes = (None,) * len(shape) if is_vector else _longest(shape, parts["fsdp"])
    return PartitionSpec(
        *(
            axis if axis and size % parts[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def _longest(sizes: tuple[int, ...], parts: int) -> tuple[str | None, ...]:
    """`fsdp` at the longest axis that `parts` divides."""
    fitting = [size if size % parts == 0 else 0 for size in sizes]
    longest = fitting.index(max(fitting))
    return tuple("fsdp" if i == longest and fitting[i] else None for i in range(len(sizes)))


@contextlib.contextmanager
def computing_on(mesh: Mesh) -> Iterator[None]:
    """Inside, while jit traces a function, `gathered` and `split_rows` know the mesh.

    Op by op, with jit disabled, they have no meaning and do nothing.
    """
    with contextlib.ExitStack() as stack:
        without_jit = jax.config.jax_disable_jit  # type: ignore[attr-defined]
        if not without_jit:
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh.abstract_mesh))
        yield


def _gathers() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["fsdp"] > 1


def gathered(params: Any, *, layer: bool = False, dtype: Any = None) -> Any:
    """Parameters for use: whole along `fsdp`, their gradient being split as they were.

    Without it the compiler may rather split activations along the width and move those. It does
    nothing outside of `computing_on`, and values never change.

    Args:
      params: a tree of parameters; stacked layers are left as they are.
      layer: it is the parameters of one layer, taken from the stack.
      dtype: that they are used in, if not their own; what is moved is then that much smaller.
    """
    if not _gathers():
        return params
    mesh = jax.sharding.get_abstract_mesh()

    def gather(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [str(key.key) for key in path]
        if STACKED in names:
            return leaf
        split = _leaf_spec(names, leaf.shape, mesh.shape, in_block=layer)
        whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in split))
        if whole == split:
            return leaf
        # Two constraints, for the gradient goes through them the other way round.
        leaf = leaf if dtype is None else leaf.astype(dtype)
        leaf = jax.lax.with_sharding_constraint(leaf, split)
        return jax.lax.with_sharding_constraint(leaf, whole)

    return jax.tree.map_with_path(gather, params)


def regathering(policy: Callable[..., bool] | None = None) -> Callable[..., bool] | None:
    """The policy for `jax.checkpoint` under which the backward pass gathers parameters anew.

    Saved for it, the gathered layers would be as large as if they had never been split.

    Args:
      policy: what else to save; None: everything.

    Returns:
      None where nothing is gathered and everything saved: no checkpoint is needed then.
    """
    if not _gathers():
        return policy

    def saved(primitive: Any, *args: Any, **params: Any) -> bool:
        if primitive.name == "sharding_constraint":
            return False
        return policy is None or policy(primitive, *args, **params)

    return saved


def split_rows(x: jax.Array) -> jax.Array:
    """Activations (B, ...) split along the batch alone, where `computing_on` tells a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % num_row_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS))


def process_rows(mesh: Mesh) -> tuple[int, int]:
    """Which part of every global batch this process feeds its devices with, and of how many.

    Processes whose devices hold the same rows (they differ along `model` only) have the same part.

    Raises:
      UserError: the rows of two processes overlap without being the same.
    """
    count = num_row_shards(mesh)
    of_process: dict[int, set[int]] = {}
    indices: Any = batch_sharding(mesh).devices_indices_map((count,))
    for device, (rows,) in indices.items():
        of_process.setdefault(device.process_index, set()).update(range(*rows.indices(count)))
    parts = sorted({tuple(sorted(rows)) for rows in of_process.values()})
    if sum(map(len, parts)) != count or len(set(map(len, parts))) != 1:
        raise UserError(
            f"config.mesh.model is {mesh.shape['model']}, which cuts across the devices of the "
            f"{len(of_process)} processes; it must divide a process's devices or be a multiple"
        )
    return parts.index(tuple(sorted(of_process[jax.process_index()]))), len(parts)


def to_mesh(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch that the parts (b, ...) of `process_rows` form, in their order."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def put(tree: Any, shardings: Any) -> Any:
    """A tree of the same values on every process, laid out by `shardings`, a tree like it.

    What lies there already is passed on; the rest shares no memory with `tree`.
    """

    def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding, may_alias=False)
        # A device gets its own part alone, and processes need not talk.
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(place, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies a tree, the same on every process, onto every device."""
    return put(tree, jax.tree.map(lambda _: replicated(mesh), tree))

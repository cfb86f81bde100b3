"""Reads the arrays of a converted checkpoint, of which nothing is believed."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from must_jax.convert.fields import read_json
from must_jax.convert.source import KEPT_TYPES
from must_jax.convert.zstd_frames import unpacked_bytes
from must_jax.errors import UserError

# What earlier versions wrote too. Of others, a chunk says itself how much memory it needs.
_CODECS = {"bytes", "crc32c", "sharding_indexed", "zstd"}
_MAX_DESCRIPTION = 2**16  # bytes that tell of an array; a thousand are usual
# Bytes that a store's tree of names makes when it is unpacked, 128 KiB as a rule; beside those of
# the arrays, which earlier versions compressed.
_MAX_NODES = 2**26


def read_arrays(folder: Path, *, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays that Orbax wrote into a folder, by name, as float32.

    Orbax reads what its files tell of, where kilobytes may stand for terabytes. Here nothing is
    read before all that is stored is known to be what a conversion writes.

    Args:
      folder: with one store, as Orbax writes it.
      shapes: of the architecture's parameters, by name.

    Raises:
      UserError: other arrays are stored, or in other ways.
      Exception: of many types; they can't be read.
    """
    stores = [file.parent for file in folder.glob("*/manifest.ocdbt")]
    if len(stores) != 1:
        raise UserError(f"{folder}: {len(stores)} stores of arrays, not 1; convert again")
    _check_nodes(folder, num_bytes=4 * sum(map(math.prod, shapes.values())))
    # Not the names in the store: a tree whose branches meet has more than any memory holds.
    if wrong := sorted(_names(stores[0]) ^ shapes.keys()):
        reason = "is missing" if wrong[0] in shapes else "was added"
        raise _misfit(folder, len(wrong), f"{wrong[0]}, which {reason}")
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{stores[0]}/"}}
    stored = {name: _opened(store, name, where=folder) for name in shapes}
    wrong = [name for name, shape in shapes.items() if stored[name].shape != shape]
    if wrong:
        found_shape, shape = stored[wrong[0]].shape, shapes[wrong[0]]
        raise _misfit(folder, len(wrong), f"{wrong[0]}: {found_shape}, not {shape}")
    for name, array in stored.items():
        if odd := _odd_storage(array):
            raise UserError(f"{folder}: {name} is stored {odd}; convert again")
    reading = {name: array.read() for name, array in stored.items()}
    arrays = {name: np.asarray(future.result(), np.float32) for name, future in reading.items()}
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise UserError(f"{folder}: {name} holds numbers that are not finite; convert again")
    return arrays


def _check_nodes(folder: Path, *, num_bytes: int) -> None:
    """Refuses a store whose nodes, which are read as a whole, unpack to more than they should."""
    left = limit = num_bytes + _MAX_NODES
    for file in folder.rglob("*"):
        left -= unpacked_bytes(file, limit=left) if file.is_file() else 0
        if left < 0:
            raise UserError(
                f"{folder}: unpacks to more than {limit:,} bytes, for {num_bytes:,} of parameters; "
                "convert again"
            )


def _names(store: Path) -> set[str]:
    """The names of all arrays, as Orbax notes them beside the store."""
    file = store / "_METADATA"
    try:
        leaves = read_json(file)["tree_metadata"].values()
        return {".".join(part["key"] for part in leaf["key_metadata"]) for leaf in leaves}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error!r:.80}); convert again") from error


def _opened(store: dict[str, Any], name: str, *, where: Path) -> tensorstore.TensorStore:
    """An array of which nothing but its description was read, and that is short."""
    path = f"{name}/"
    found = tensorstore.KvStore.open(store | {"path": path}).result().read("zarr.json").result()
    if found.state != "value":
        raise _misfit(where, 1, f"{name}, which is missing")
    if len(found.value) > _MAX_DESCRIPTION:
        raise UserError(
            f"{where}: {len(found.value):,} bytes tell of {name}, not {_MAX_DESCRIPTION:,} at "
            "most; convert again"
        )
    zarr = {"driver": "zarr3", "fill_missing_data_reads": False}
    return tensorstore.open(zarr | {"kvstore": store | {"path": path}}, open=True).result()


def _misfit(folder: Path, count: int, such_as: str) -> UserError:
    return UserError(
        f"{folder}: {count} parameters do not fit clip.json, such as {such_as}; convert again"
    )


def _odd_storage(array: tensorstore.TensorStore) -> str | None:
    """How an array is stored, where that is none of the ways of a conversion."""
    if array.dtype.name not in KEPT_TYPES:
        return f"as {array.dtype.name}"
    chunks = array.chunk_layout
    for chunk in (chunks.read_chunk.shape, chunks.write_chunk.shape):
        # Each of them is held as a whole, however little of it the array has.
        if (chunk or ()) != array.shape:
            return f"in chunks of {chunk}"
    assert array.codec is not None  # a zarr array has some
    codecs = set(re.findall(r'"name": "(.*?)"', json.dumps(array.codec.to_json())))
    return f"by {min(codecs - _CODECS)}" if codecs - _CODECS else None

"""Finds and opens the weights in a folder: safetensors or PyTorch's, in one file or several."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by name only after this)
import numpy as np
import safetensors

from must_jax.convert.fields import read_json
from must_jax.convert.tensors import LazyTensor, Tensor, Tensors
from must_jax.convert.torch_archive import open_torch_archive
from must_jax.errors import UserError
from must_jax.local_files import open_regular

# In the order of preference: safetensors before pickles, one file before several.
HUGGING_FACE_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OPEN_CLIP_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.bin.index.json",
)

# The types of safetensors files that numpy has.
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype("bfloat16"),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}


def has_weights(folder: Path, *, names: Sequence[str]) -> bool:
    """Whether a folder holds one of the files."""
    return any((folder / name).is_file() for name in names)


def open_weights(folder: Path, *, names: Sequence[str]) -> Tensors:
    """The tensors of the first of the files that a folder holds, shards of an index included.

    Raises:
      UserError: there is none, or one is missing, damaged or holds more than tensors.
    """
    for name in names:
        if (folder / name).is_file():
            return _open_shards(folder / name) if name.endswith(".json") else _open(folder / name)
    raise UserError(f"{folder}: no weights; expected {', '.join(names[:-1])} or {names[-1]} there")


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """All tensors of one safetensors file, in their own types.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        open_regular(path).close()
        with safetensors.safe_open(path, framework="numpy") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: _lazy(path, name, view) for name, view in views.items()}
    except (OSError, safetensors.SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _lazy(path: Path, name: str, view: Any) -> LazyTensor:
    if view.get_dtype() not in _DTYPES:
        raise UserError(f"{path}: {name} is of type {view.get_dtype()}, which no CLIP has")

    def read() -> np.ndarray:
        # Opened anew every time: the pages of a file that stays mapped count as memory in use.
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    return LazyTensor(tuple(view.get_shape()), _DTYPES[view.get_dtype()], read)


def _open(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    return open_torch_archive(path)


def _open_shards(index: Path) -> Tensors:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{index}: no weight_map from names to files")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file:
            raise UserError(f"{index}: {file!r} lies outside the folder")
        shard = _open(index.parent / file)
        lacking = [name for name, home in names.items() if home == file and name not in shard]
        if lacking:
            raise UserError(
                f"{index.parent / file}: lacks {', '.join(lacking)}, which {index.name} promises"
            )
        twice = sorted(shard.keys() & tensors.keys())
        if twice:
            raise UserError(f"{index.parent / file}: has {twice[0]}, which another file has too")
        tensors |= shard
    return tensors

"""Reads the weights of a Hugging Face folder."""

import json
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by name only after this)
import numpy as np
import safetensors

from must_jax.convert.torch_archive import read_torch_archive
from must_jax.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH = "pytorch_model.bin"


def read_json(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
      UserError: the file is missing, unreadable, or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of one safetensors file, in their own types.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a Hugging Face folder: one safetensors file, sharded ones, or PyTorch's.

    Raises:
      UserError: there are no weights, or a file of them is missing or damaged.
    """
    if (folder / SINGLE).is_file():
        return read_safetensors(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    if (folder / TORCH).is_file():
        return read_torch_archive(folder / TORCH)
    raise UserError(f"{folder}: no weights; expected {SINGLE}, {INDEX} or {TORCH} there")


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    index = folder / INDEX
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{index}: no weight_map from names to files")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file:
            raise UserError(f"{index}: {file!r} lies outside the folder")
        shard = read_safetensors(folder / file)
        lacking = [name for name, home in names.items() if home == file and name not in shard]
        if lacking:
            raise UserError(f"{folder / file}: lacks {', '.join(lacking)}, which {INDEX} promises")
        tensors |= shard
    return tensors

"""Writes a state dict as `torch.save` does, without PyTorch.

The archive is a zip file of uncompressed members: `data.pkl`, a pickle that names tensors and where
their numbers are; `byteorder`; one member a tensor; and `version`. Members start at multiples of 64
bytes, as PyTorch's own do, so that a file can be mapped into memory.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ALIGNMENT = 64
_ROOT = "archive"
_HEADER = 30  # bytes of a member's header in the file, without its name and extra field
_VERSION = b"3\n"
# The types that are written, as the pickle and the state dict call them.
_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}

# Instructions of a pickle.
_START, _MARK, _TUPLE, _CALL = b"\x80\x02", b"(", b"t", b"R"
_PERSISTENT, _SET_ITEMS, _STOP = b"Q", b"u", b"."


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _plain(value: Any) -> bytes:
    """The instructions that make a text, a number or a tuple of numbers."""
    return pickle.dumps(value, protocol=2)[len(_START) : -len(_STOP)]


_EMPTY_DICT = _global("collections", "OrderedDict") + b")" + _CALL


def _tensor(key: str, array: np.ndarray) -> bytes:
    storage = _global("torch", _STORAGES[array.dtype.name])
    strides = tuple(step // array.itemsize for step in array.strides)
    return b"".join(
        [
            _global("torch._utils", "_rebuild_tensor_v2"),
            _MARK,
            *[_MARK, _plain("storage"), storage, _plain(key), _plain("cpu"), _plain(array.size)],
            *[_TUPLE, _PERSISTENT],
            *[_plain(0), _plain(array.shape), _plain(strides), _plain(False), _EMPTY_DICT],
            *[_TUPLE, _CALL],
        ]
    )


def _add(archive: zipfile.ZipFile, name: str, data: Any, *, at: int) -> None:
    """Adds a member, whose header is to be `at`, so that its bytes are aligned."""
    member = zipfile.ZipInfo(f"{_ROOT}/{name}")
    member.file_size = memoryview(data).nbytes
    start = at + _HEADER + len(member.filename)
    # A field of its own kind ("FB"), of 4 bytes and what fills up.
    padding = -(start + 4) % _ALIGNMENT
    member.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(member, "w") as opened:
        opened.write(data)


def write_torch_archive(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors as a state dict that `torch.load` reads, with `weights_only` too.

    Args:
      path: of the file.
      tensors: float32 or int64, by name.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    entries = [
        _plain(name) + _tensor(str(i), array.reshape(tensors[name].shape))
        for i, (name, array) in enumerate(arrays.items())
    ]
    content = b"".join([_START, _EMPTY_DICT, _MARK, *entries, _SET_ITEMS, _STOP])
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", content, at=file.tell())
        _add(archive, "byteorder", b"little", at=file.tell())
        for i, array in enumerate(arrays.values()):
            numbers = array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1)
            _add(archive, f"data/{i}", numbers.data, at=file.tell())
        _add(archive, "version", _VERSION, at=file.tell())

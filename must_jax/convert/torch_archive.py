"""Opens the tensors of a PyTorch archive without PyTorch, and without running what it holds."""

import dataclasses
import functools
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from must_jax.convert.pickles import (
    MAX_BYTES,
    Class,
    ForbiddenGlobalError,
    Function,
    Object,
    as_dict,
    read_pickle,
    short,
)
from must_jax.convert.tensors import LazyTensor
from must_jax.convert.zip_directory import check_directory
from must_jax.errors import UserError

_STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

_MAX_AXES = 8
_TOO_LARGE = 2**48  # for a number of elements
_MAX_ATTRIBUTES = 200_000  # of all modules; the largest CLIPs' have a tenth
_MAX_NAME = 1_000  # letters
# Tensors may be views of one storage: a small file could stand for a checkpoint of any size.
_MAX_SHARED = 8
# Storages in turn are read again and again: some twenty times where two, or one a block, hold all.
_MAX_READ = 32


@dataclasses.dataclass(frozen=True)
class _Storage:
    """`size` numbers inside the archive, which `read` fetches."""

    dtype: np.dtype
    size: int
    read: Callable[[], np.ndarray]


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> LazyTensor:
    """The view that (offset, size, stride), in elements, cut out of a storage."""
    if (
        not isinstance(storage, _Storage)
        or not isinstance(size, tuple)
        or not isinstance(stride, tuple)
        or len(size) != len(stride)
        or len(size) > _MAX_AXES
        or not all(type(n) is int and 0 <= n < _TOO_LARGE for n in (offset, *size, *stride))
    ):
        raise pickle.UnpicklingError(
            f"tensor of size {short(size)} and stride {short(stride)} at {short(offset)}"
        )
    if math.prod(size):
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= storage.size or math.prod(size) > storage.size:
            raise pickle.UnpicklingError(f"tensor of size {size} is larger than its storage")
    strides = [step * storage.dtype.itemsize for step in stride]

    def read() -> np.ndarray:
        if not math.prod(size):
            return np.zeros(size, storage.dtype)
        numbers = storage.read()[offset:]
        return np.lib.stride_tricks.as_strided(numbers, size, strides, writeable=False)

    return LazyTensor(tuple(size), storage.dtype, read)


_FUNCTIONS = {
    ("collections", "OrderedDict"): Function(lambda pairs=(): as_dict(pairs)),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(lambda tensor, *_: tensor),
    # Values of a TorchScript module that are not tensors: they are read past, never interpreted.
    ("torch", "device"): Function(lambda *_: None),
    ("torch", "Size"): Function(lambda *_: None),
    ("torch.jit._pickle", "build_boollist"): Function(lambda *_: None),
    ("torch.jit._pickle", "build_doublelist"): Function(lambda *_: None),
    ("torch.jit._pickle", "build_intlist"): Function(lambda *_: None),
    ("torch.jit._pickle", "build_tensorlist"): Function(lambda *_: None),
    ("torch.jit._pickle", "restore_type_tag"): Function(lambda *_: None),
}


class _Archive:
    """What the pickle of an open archive may ask for: names that rebuild tensors, and storages.

    TorchScript's classes become inert stand-ins.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        self._path = path
        self._archive = archive
        self._root = root
        names = set(archive.namelist())
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        self._byteorder: Literal["<", ">"] = ">" if order.strip() == b"big" else "<"
        self._budget = _MAX_READ * path.stat().st_size  # bytes that may still be read
        # The last storage is kept, for further tensors that share it.
        self._read_last = functools.lru_cache(maxsize=1)(self._read)

    def load(self) -> Any:
        """The value of its pickle."""
        return read_pickle(
            self._archive.read(f"{self._root}data.pkl"),
            find_global=_find_global,
            load_persistent=self._storage,
        )

    def _storage(self, pid: Any) -> _Storage:
        kind, type_name, key, _, size = pid
        dtype = _STORAGE_DTYPES.get(type_name) if type(type_name) is str else None
        if kind != "storage" or dtype is None or type(key) is not str or type(size) is not int:
            raise pickle.UnpicklingError(f"{short(kind)} in place of a tensor's storage")
        if len(key) > _MAX_NAME:
            raise pickle.UnpicklingError(f"a storage's name of {len(key)} letters")
        name = f"{self._root}data/{key}"
        if self._archive.getinfo(name).file_size < size * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {short(key)} is shorter than it says")
        return _Storage(dtype, size, functools.partial(self._read_last, name, dtype, size))

    def _read(self, name: str, dtype: np.dtype, size: int) -> np.ndarray:
        """`size` numbers of a file inside the archive."""
        self._budget -= self._archive.getinfo(name).file_size
        if self._budget < 0:
            raise UserError(
                f"{self._path}: its tensors lie such that it would be read {_MAX_READ} times over; "
                "save it anew, each tensor a clone()"
            )
        try:
            data = self._archive.read(name)
            ordered = np.frombuffer(data, dtype.newbyteorder(self._byteorder), size)
        # The zip reader raises many types for entries that are damaged.
        except Exception as error:
            raise UserError(f"{self._path}: cannot be read, or damaged ({error})") from error
        return ordered.astype(dtype, copy=False)


def _find_global(module: str, name: str) -> Any:
    if (module, name) in _FUNCTIONS:
        return _FUNCTIONS[module, name]
    if module == "torch" and name in _STORAGE_DTYPES:
        return name
    if module == "__torch__" or module.startswith("__torch__."):
        return Class()
    return None


def _module_tensors(root: Object) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    pending = [("", root)]
    visited = 0
    while pending:
        prefix, module = pending.pop()
        # A module may stand in several places: some forty that do make a trillion places.
        visited += len(module.attributes)
        if visited > _MAX_ATTRIBUTES:
            raise pickle.UnpicklingError(
                f"modules of more than {_MAX_ATTRIBUTES:,} attributes, or in themselves"
            )
        for name, value in module.attributes.items():
            path = f"{prefix}{name}"
            if len(path) > _MAX_NAME:
                raise pickle.UnpicklingError(f"a tensor's name of more than {_MAX_NAME:,} letters")
            if isinstance(value, LazyTensor):
                tensors[path] = value
            elif isinstance(value, Object):
                pending.append((f"{path}.", value))
    return tensors


def _state_dict(root: Any) -> dict[str, LazyTensor] | None:
    if isinstance(root, Object):
        return _module_tensors(root)
    if not isinstance(root, dict):
        return None
    for key in ("state_dict", "model"):
        if isinstance(root.get(key), dict):
            return _state_dict(root[key])
    tensors = {k: v for k, v in root.items() if isinstance(v, LazyTensor) and isinstance(k, str)}
    # Data-parallel training puts every name below one module of this name.
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _root(path: Path, archive: zipfile.ZipFile) -> str:
    """The folder inside that holds all, of an archive that may be read."""
    entries = archive.infolist()
    pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(f"{path}: not a PyTorch archive (no data.pkl inside)")
    if pickles[0].file_size > MAX_BYTES:
        raise UserError(f"{path}: {pickles[0].filename} is larger than {MAX_BYTES} bytes")
    root = pickles[0].filename.removesuffix("data.pkl")
    # PyTorch compresses no data; what is compressed may be any size when it is read.
    for entry in entries:
        is_data = entry.filename.startswith((f"{root}data", f"{root}byteorder"))
        if is_data and entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: {entry.filename} is compressed; save it with PyTorch")
    return root


def open_torch_archive(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a TorchScript archive or of a saved state dict, in their own types.

    A state dict may lie below `state_dict` or `model`. The pickle inside may name nothing but what
    rebuilds tensors; the code inside a TorchScript archive is never read.

    Raises:
      UserError: the file is none of these, is damaged, or its pickle asks for anything else.
    """
    try:
        check_directory(path)
        # It stays open for the tensors, which are read when they are asked for: to open it anew for
        # each would be to read its directory, of any length, a thousand times.
        archive = zipfile.ZipFile(path)
        tensors = _state_dict(_Archive(path, archive, _root(path, archive)).load())
    except ForbiddenGlobalError as error:
        raise UserError(
            f"{path}: refused, its pickle asks for {error}, which is no part of a tensor; "
            "save the state dict alone, with torch.save(model.state_dict(), path)"
        ) from error
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path}: not a PyTorch archive, or damaged ({error}); files of torch.save before "
            "PyTorch 1.6 have to be saved again with a newer one"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UserError:
        raise
    except Exception as error:
        # A damaged pickle can make the unpickler raise nearly anything.
        raise UserError(
            f"{path}: a damaged PyTorch archive ({type(error).__name__}: {error})"
        ) from error
    if not tensors:
        raise UserError(f"{path}: holds no state dict; expected one, bare or below state_dict")
    size = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    if size > _MAX_SHARED * path.stat().st_size:
        raise UserError(f"{path}: its tensors would take {size:,} bytes, many times its own size")
    return tensors

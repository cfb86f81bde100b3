"""Opens the tensors of a PyTorch archive without PyTorch, and without running what it holds."""

import collections
import dataclasses
import functools
import io
import math
import pickle
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from must_jax.convert.tensors import LazyTensor
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

# Values of a TorchScript module that are not tensors: they are read past, never interpreted.
_INERT_GLOBALS = {
    ("torch", "device"),
    ("torch", "Size"),
    ("torch.jit._pickle", "build_boollist"),
    ("torch.jit._pickle", "build_doublelist"),
    ("torch.jit._pickle", "build_intlist"),
    ("torch.jit._pickle", "build_tensorlist"),
    ("torch.jit._pickle", "restore_type_tag"),
}


class ForbiddenGlobalError(pickle.UnpicklingError):
    """A pickle asked for a name that is no part of a tensor. The message is that name."""


class _Module:
    """Stands for an object of any class that a TorchScript archive defines: attributes alone."""


class _Call:
    """An immutable callable, so that no pickle instruction can alter what it does."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"attribute {name} set on a function")

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """`size` numbers inside the archive, which `read` fetches."""

    dtype: np.dtype
    size: int
    read: Callable[[], np.ndarray]

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state set on a storage")


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> LazyTensor:
    """The view that (offset, size, stride), in elements, cut out of a storage."""
    numbers = (offset, *size, *stride)
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or len(size) != len(stride):
        raise pickle.UnpicklingError(f"tensor of size {size} and stride {stride} at {offset}")
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


def _inert(*_: Any) -> None:
    return None


def _read(path: Path, name: str, dtype: np.dtype, size: int, *, is_big: bool) -> np.ndarray:
    """`size` numbers of a file inside the archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(name)
        ordered = np.frombuffer(data, dtype.newbyteorder(">" if is_big else "<"), size)
    # The zip reader raises many types for entries that are damaged.
    except Exception as error:
        raise UserError(f"{path}: cannot be read, or damaged ({error})") from error
    return ordered.astype(dtype, copy=False)


class _TensorUnpickler(pickle.Unpickler):
    """Admits the names that rebuild tensors, and puts inert stand-ins for TorchScript's classes."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")), encoding="utf-8")
        self._archive = archive
        self._root = root
        names = set(archive.namelist())
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        is_big = order.strip() == b"big"
        # The last storage is kept, for further tensors that share it.
        self._read = functools.lru_cache(maxsize=1)(functools.partial(_read, path, is_big=is_big))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Call(_rebuild_tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Call(lambda tensor, *_: tensor)
        if module == "torch" and name in _STORAGE_DTYPES:
            return name
        if module == "__torch__" or module.startswith("__torch__."):
            return types.new_class(name, (_Module,))
        if (module, name) in _INERT_GLOBALS:
            return _Call(_inert)
        # The name is the stranger's: it must not write to the terminal anything but letters.
        raise ForbiddenGlobalError(f"{module}.{name}".encode("unicode_escape").decode())

    def persistent_load(self, pid: Any) -> _Storage:
        kind, type_name, key, _, size = pid
        dtype = _STORAGE_DTYPES.get(type_name)
        if kind != "storage" or dtype is None or type(key) is not str or type(size) is not int:
            raise pickle.UnpicklingError(f"{kind!r} in place of a tensor's storage")
        name = f"{self._root}data/{key}"
        if self._archive.getinfo(name).file_size < size * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} is shorter than it says")
        return _Storage(dtype, size, functools.partial(self._read, name, dtype, size))


def _module_tensors(module: _Module, prefix: str) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for name, value in vars(module).items():
        if isinstance(value, LazyTensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Module):
            tensors |= _module_tensors(value, f"{prefix}{name}.")
    return tensors


def _state_dict(root: Any) -> dict[str, LazyTensor] | None:
    if isinstance(root, _Module):
        return _module_tensors(root, "")
    if not isinstance(root, Mapping):
        return None
    for key in ("state_dict", "model"):
        if isinstance(root.get(key), Mapping):
            return _state_dict(root[key])
    tensors = {k: v for k, v in root.items() if isinstance(v, LazyTensor) and isinstance(k, str)}
    # Data-parallel training puts every name below one module of this name.
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def open_torch_archive(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a TorchScript archive or of a saved state dict, in their own types.

    A state dict may lie below `state_dict` or `model`. The pickle inside may name nothing but what
    rebuilds tensors; the code inside a TorchScript archive is never read.

    Raises:
      UserError: the file is none of these, is damaged, or its pickle asks for anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise UserError(f"{path}: not a PyTorch archive (no data.pkl inside)")
            root = pickles[0].removesuffix("data.pkl")
            # PyTorch compresses no data; what is compressed may be any size when it is read.
            for entry in archive.infolist():
                is_data = entry.filename.startswith((f"{root}data", f"{root}byteorder"))
                if is_data and entry.compress_type != zipfile.ZIP_STORED:
                    raise UserError(f"{path}: {entry.filename} is compressed; save it with PyTorch")
            tensors = _state_dict(_TensorUnpickler(path, archive, root).load())
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
    return tensors

"""Tensors of a checkpoint that stay in their file until they are asked for."""

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np


class Tensor(Protocol):
    """Shape and type of a tensor, whose values `np.asarray` gives: an array is one, too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> Any:
        """Its type."""

    def __array__(self) -> np.ndarray:
        """Its values."""


Tensors = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values `read` fetches from its file, anew every time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values, read now."""
        values = self.read()
        return values if dtype is None else values.astype(dtype, copy=False)

    def __setstate__(self, state: Any) -> None:
        """Refuses a pickle that would alter a tensor behind the checks of its size."""
        raise pickle.UnpicklingError("state set on a tensor")

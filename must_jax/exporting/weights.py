"""The weights of a serving artifact: as they are, in bfloat16, or in 8-bit integers.

Matrices are what is large, and alone are made smaller; norms, biases, embeddings of positions and
the classifier stay float32. A set of weights is a flat dictionary of arrays that numpy knows, which
`unpack` turns into the model's parameters inside the program.
"""

from collections.abc import Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from must_jax.convert.source import Params
from must_jax.sharding import STACKED

KINDS = ("float32", "bfloat16", "int8")
SCALE = ":scale"
_LARGEST = 127  # of the integers, which are as many below 0


def is_matrix(name: str) -> bool:
    """Whether a parameter, such as `blocks/mlp/fc1/kernel`, is one of the large matrices."""
    return name.rpartition("/")[2] in ("kernel", "proj")


def input_axes(name: str) -> tuple[int, ...]:
    """The axes of a matrix that its product sums over; all others are outputs, or the layer."""
    names = name.split("/")
    first = int(STACKED in names)
    # After attention, heads and their units are summed over.
    return (first, first + 1) if names[-2:-1] == ["out"] else (first,)


def quantize(matrix: np.ndarray, *, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest multiples of one scale an output channel, symmetric around 0.

    Args:
      matrix: any shape, float32.
      axes: that the outputs are sums over.

    Returns:
      Integers int8 in the matrix's shape, and float32 scales with 1 along `axes`. Their product
      differs from the matrix by no more than half a scale, which is a channel's largest absolute
      value over 254.
    """
    scale = np.max(np.abs(matrix), axis=axes, keepdims=True) / np.float32(_LARGEST)
    steps = np.divide(matrix, scale, out=np.zeros_like(matrix), where=scale > 0)
    return np.rint(steps).astype(np.int8), scale


def pack(params: Params, *, kind: str) -> dict[str, np.ndarray]:
    """A tree of float32 parameters as a set of weights of one of `KINDS`.

    numpy's files don't know bfloat16: its bits are kept in uint16.
    """
    weights: dict[str, np.ndarray] = {}
    for name, array in flax.traverse_util.flatten_dict(params, sep="/").items():
        array = np.asarray(array)
        if kind == "bfloat16" and is_matrix(name):
            weights[name] = array.astype(ml_dtypes.bfloat16).view(np.uint16)
        elif kind == "int8" and is_matrix(name):
            weights[name], weights[name + SCALE] = quantize(array, axes=input_axes(name))
        else:
            weights[name] = array
    return weights


def unpack(weights: Mapping[str, jax.Array]) -> Params:
    """The parameters that a set of weights stands for, float32 or bfloat16."""
    params: dict[str, jax.Array] = {}
    for name, array in weights.items():
        if name.endswith(SCALE):
            continue
        if array.dtype == np.uint16:
            array = jax.lax.bitcast_convert_type(array, jnp.bfloat16)
        elif array.dtype == np.int8:
            array = array.astype(jnp.float32) * weights[name + SCALE]
        params[name] = array
    return flax.traverse_util.unflatten_dict(params, sep="/")

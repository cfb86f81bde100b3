"""How tensors of a checkpoint become parameters, and back: every transform with its inverse.

Shapes are those of `layout`. All move numbers and change none, so that both ways are exact.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from must_jax.models.spec import TowerSpec

Change = Callable[[np.ndarray, TowerSpec], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of layout.

    Attributes:
      to_param: from a block's tensors, joined along their first axis, to the parameter.
      to_source: from the parameter to these; or, where several parameters are parts of the same
        tensors, to its own rows of them.
    """

    to_param: Change
    to_source: Change


def _from_patches(x: np.ndarray, spec: TowerSpec) -> np.ndarray:
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


# The tensor as it is.
same = Transform(lambda x, _: x, lambda x, _: x)

# A matrix of the checkpoint (outputs, inputs) to (inputs, outputs).
transpose = Transform(lambda x, _: x.T, lambda x, _: x.T)

# Convolution weights (W, 3, P, P) to (P * P * 3, W), the colour running fastest.
patches = Transform(
    lambda x, _: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    _from_patches,
)

# Query, key and value rows (3W, W) to (W, 3, heads, head width).
qkv_kernel = Transform(
    lambda x, spec: x.T.reshape(spec.width, 3, spec.num_heads, -1),
    lambda x, spec: x.reshape(spec.width, -1).T,
)

# Query, key and value biases (3W,) to (3, heads, head width).
qkv_bias = Transform(
    lambda x, spec: x.reshape(3, spec.num_heads, -1),
    lambda x, _: x.reshape(-1),
)

# The matrix after attention (W, W) to (heads, head width, W).
out_kernel = Transform(
    lambda x, spec: x.T.reshape(spec.num_heads, -1, spec.width),
    lambda x, spec: x.reshape(-1, spec.width).T,
)
